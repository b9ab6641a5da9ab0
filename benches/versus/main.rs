//! Bursar against PgBouncer: the same load, through each in turn, on the same PostgreSQL.
//!
//! `make versus` starts a private PostgreSQL, PgBouncer and Bursar with the same pool (20 backends,
//! transaction mode, trust) and lets pgbench run through them in alternating pairs, so that what
//! the machine does meanwhile hits both. Medians of the pairs and of their ratios go to the
//! terminal, every single value to `target/versus.json`. docs/benchmarks.md explains the figures.
//!
//! It does not judge: no figure fails the run. A row that one side cannot do says so.

#[path = "../common/mod.rs"]
mod common;
mod idle;
mod load;
mod report;
mod rows;

use bursar::cli::throwaway;
use clap::Parser;
use common::Failure;
use common::lab::{Contender, Lab};
use rows::Row;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Command line; every option has an environment variable for use through make.
#[derive(Parser, Debug)]
struct Options {
    /// Rows to run, by name or by beginning of a name; all if none (see --list)
    #[arg(long, env = "ROWS", value_delimiter = ',')]
    rows: Vec<String>,
    /// Alternating pairs a row
    #[arg(long, env = "PAIRS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// Length of one pgbench run, in seconds
    #[arg(long, env = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// The PgBouncer to compare with; found in PATH if not given
    #[arg(long, env = "PGBOUNCER")]
    pgbouncer: Option<PathBuf>,
    /// The Bursar to measure (a path to a PgBouncer makes it a test of the test)
    #[arg(long, env = "BURSAR_BIN", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/release/bursar"))]
    bursar: PathBuf,
    /// Threads of Bursar; PgBouncer has one
    #[arg(long, env = "WORKERS", default_value_t = 1)]
    workers: usize,
    /// Where the JSON goes
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/versus.json"))]
    json: PathBuf,
    /// Print the names of the rows and leave
    #[arg(long)]
    list: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for row in Row::all() {
            println!("{:<24} {}", row.name, row.about);
        }
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("versus: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let rows = Row::select(&options.rows)?;
    let pgbouncer = options.pgbouncer.clone().or_else(|| throwaway::find_in_path("pgbouncer"));
    let pgbouncer = pgbouncer.ok_or("PgBouncer was not found: install it, or set PGBOUNCER=path")?;
    let contenders = [
        Contender::new("pgbouncer", pgbouncer, 1)?,
        Contender::new("bursar", options.bursar.clone(), options.workers)?,
    ];
    eprintln!("versus: {} against {}", contenders[1].version, contenders[0].version);
    let lab = Lab::open("versus")?;
    load::fill(&lab)?;
    let mut report = report::Report::new(&lab, &contenders, options);
    for row in rows {
        eprintln!("versus: {} ({})", row.name, row.about);
        let length = Duration::from_secs(u64::from(options.seconds));
        report.add(&row, &row.measure(&lab, &contenders, options.pairs, length));
        // After every row, so that a run that is broken off has not been for nothing.
        report.save(&options.json)?;
    }
    report.print();
    println!("\nEvery single value: {}", options.json.display());
    Ok(())
}
