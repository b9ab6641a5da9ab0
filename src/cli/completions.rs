//! `bursar completions SHELL`: a completion script on standard output.

use super::Cli;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::{self, Write};

/// Writes the script.
///
/// # Errors
/// What writing to `out` reports.
pub fn run(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    // Through a buffer, because the generator panics where a pipe is closed early.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "bursar", &mut script);
    out.write_all(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_knows_the_subcommands() {
        let mut script = Vec::new();
        run(Shell::Bash, &mut script).unwrap();
        let script = String::from_utf8(script).unwrap();
        for word in ["check", "bench", "demo", "health", "completions", "--config"] {
            assert!(script.contains(word), "{word}");
        }
    }
}
