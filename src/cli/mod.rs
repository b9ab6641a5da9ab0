//! The command line: what can be asked, one file a subcommand.
//!
//! Without a subcommand Bursar runs (`main.rs`). Settings come from the configuration, not from
//! flags; the one flag all subcommands share says which file.

pub mod bench;
pub mod check;
pub mod completions;
mod connect;
pub mod demo;
mod driver;
pub mod health;
pub mod throwaway;

use clap::{Args, Parser, Subcommand};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// A PostgreSQL connection-pool proxy that enforces session budgets.
///
/// Without a subcommand: run. TERM or INT drains and ends, HUP reloads the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "bursar", version, about, after_help = AFTER_HELP)]
pub struct Cli {
    /// Configuration file [default: $BURSAR_CONFIG, else config.toml if there is one]
    #[arg(long, short, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const AFTER_HELP: &str = "\
Every key of the file can be set by an environment variable: BURSAR_POOL_SIZE is size in [pool].
Exit codes: 0 drained or done, 1 failed, 64 bad configuration.";

/// Subcommands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Read the configuration, cross-check it and try each server; tell every fault
    Check(CheckArgs),
    /// Measure a burst of concurrent tagged sessions, and look for what they leave behind
    Bench(BenchArgs),
    /// Show Bursar at work: a throwaway PostgreSQL, a tagged workload, one leak in it
    Demo(DemoArgs),
    /// Ask a running Bursar whether it is alive; for a container's health check
    Health(HealthArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// `bursar check`
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct CheckArgs {
    /// Do not try to reach the servers
    #[arg(long)]
    pub offline: bool,
    /// Log in to each database and compare its limits with the sizes of the pools
    #[arg(long, conflicts_with = "offline")]
    pub connect: bool,
    /// With --connect: fail if something does not fit or could not be asked
    #[arg(long, requires = "connect")]
    pub strict: bool,
}

/// `bursar bench`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct BenchArgs {
    /// Concurrent sessions
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub sessions: usize,
    /// Where to [default: $DATABASE_URL, else Bursar's default address]
    #[arg(long)]
    pub url: Option<String>,
    /// How often the burst is repeated over the same connections
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub waves: usize,
    /// Distinct user ids [default: one a session]
    #[arg(long, value_name = "N")]
    pub users: Option<usize>,
}

/// `bursar demo`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DemoArgs {
    /// End after so many seconds [default: when interrupted]
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
    /// Concurrent clients
    #[arg(long, value_name = "N", default_value_t = 24)]
    pub clients: usize,
}

/// `bursar health`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct HealthArgs {
    /// What to ask [default: /livez at the configured admin.address]
    #[arg(long)]
    pub url: Option<String>,
}

/// How the process ends: the exit codes of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Drained, or the subcommand found all well.
    Good = 0,
    /// Failed.
    Failed = 1,
    /// The configuration is at fault (`EX_USAGE` of sysexits.h).
    BadConfig = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// The process's environment. A variable that is not UTF-8 cannot be one of ours and is left out.
#[must_use]
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_the_interfaces() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        assert_eq!(parse("bursar").unwrap(), Cli { config: None, command: None });
        let file = Some(PathBuf::from("b.toml"));
        assert_eq!(parse("bursar --config b.toml").unwrap().config, file);
        let check = parse("bursar check --config b.toml").unwrap();
        assert_eq!(check.config, file);
        assert_eq!(check.command, Some(Command::Check(CheckArgs::default())));
        let connect = parse("bursar check --connect --strict").unwrap().command;
        let all = CheckArgs { connect: true, strict: true, ..CheckArgs::default() };
        assert_eq!(connect, Some(Command::Check(all)));
        assert!(
            parse("bursar check --connect --offline").is_err() && parse("bursar check --strict").is_err()
        );
        let bench = BenchArgs { sessions: 100, url: None, waves: 1, users: None };
        assert_eq!(parse("bursar bench").unwrap().command, Some(Command::Bench(bench.clone())));
        let many = Command::Bench(BenchArgs { sessions: 500, ..bench });
        assert_eq!(parse("bursar bench --sessions 500").unwrap().command, Some(many));
        let demo = Command::Demo(DemoArgs { seconds: Some(20), clients: 24 });
        assert_eq!(parse("bursar demo --seconds 20").unwrap().command, Some(demo));
        assert!(parse("bursar completions bash").is_ok());
        assert!(parse("bursar serve").is_err());
    }
}
