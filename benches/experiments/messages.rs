//! E15: random message sequences against the model of the transaction that a client sees, and random programs
//! of clients against PostgreSQL itself. Both are tests of this repository; here they run for longer.

use crate::common::Failure;
use crate::report::{Measured, Table, Target};
use std::process::Command;
use std::time::Duration;

/// What the tests make of a second, about.
const SEQUENCES_A_SECOND: u64 = 2_000;
const PROGRAMS_A_SECOND: u64 = 10;

/// Runs each for about this time.
pub(crate) fn experiment(length: Duration) -> Result<Table, Failure> {
    let sequences = length.as_secs() * SEQUENCES_A_SECOND;
    let model = run(&["--lib", "--", "session::virtual_tx"], "BURSAR_TEST_SEQUENCES", sequences)?;
    let programs = length.as_secs() * PROGRAMS_A_SECOND;
    let same = ["--test", "postgres", "--", "differential::random_programs_see_no_difference"];
    let real = run(&same, "BURSAR_TEST_PROGRAMS", programs)?;
    let mut table = Table::default();
    for (what, count, broken) in [
        ("message sequences against the model", sequences, model),
        ("programs against PostgreSQL", programs, real),
    ] {
        #[allow(clippy::cast_precision_loss, reason = "well below what an f64 counts")]
        let count = Measured::Is(count as f64);
        table.line(what, "", count, Measured::No, Target::None);
        table.line("  tests of them that fail", "", Measured::Is(broken), Measured::No, Target::Exactly(0.0));
    }
    Ok(table)
}

/// How many of these tests fail, with so many random cases.
fn run(tests: &[&str], variable: &str, cases: u64) -> Result<f64, Failure> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--quiet", "--locked"])
        .args(tests)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env(variable, cases.to_string())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let result = text.lines().find(|line| line.starts_with("test result:")).unwrap_or_default();
    let count = |word: &str| -> Option<f64> {
        let (before, _) = result.split_once(&format!(" {word}"))?;
        before.rsplit(' ').next()?.parse().ok()
    };
    match (count("passed"), count("failed")) {
        (Some(passed), Some(failed)) if passed + failed > 0.0 => Ok(failed),
        _ => Err(format!("no result of {tests:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}
