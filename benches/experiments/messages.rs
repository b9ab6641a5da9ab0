//! E15: random message sequences against the model of the transaction that a client sees. It is a test of
//! this repository; here it runs for longer.

use crate::common::Failure;
use crate::report::{Measured, Table, Target};
use std::process::Command;
use std::time::{Duration, Instant};

/// Sequences that the model test makes of a second given to it, about.
const SEQUENCES_A_SECOND: u64 = 2_000;

/// Runs the model test with as many sequences as fit into about this time.
pub(crate) fn experiment(length: Duration) -> Result<Table, Failure> {
    let sequences = length.as_secs() * SEQUENCES_A_SECOND;
    let began = Instant::now();
    let output = Command::new(env!("CARGO"))
        .args(["test", "--locked", "--lib", "--", "session::virtual_tx"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PROPTEST_CASES", sequences.to_string())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let count = |word: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.starts_with("test result:"))?;
        let (before, _) = line.split_once(&format!(" {word}"))?;
        before.rsplit(' ').next()?.parse().ok()
    };
    let (passed, failed) = (count("passed").unwrap_or(0.0), count("failed").unwrap_or(f64::NAN));
    if passed + failed < 1.0 {
        return Err("no test of the virtual transaction was found".into());
    }
    let mut table = Table::default();
    #[allow(clippy::cast_precision_loss, reason = "well below what an f64 counts")]
    let sequences = Measured::Is(sequences as f64);
    table.line("random message sequences", "", sequences, Measured::No, Target::None);
    table.line("properties broken", "", Measured::Is(failed), Measured::No, Target::Exactly(0.0));
    table.line("took", "s", Measured::Is(began.elapsed().as_secs_f64()), Measured::No, Target::None);
    Ok(table)
}
