//! The experiments of the session budgets, live: Bursar and PgBouncer under the same load, one after the
//! other, before the same private PostgreSQL.
//!
//! `make experiments` prints a table an experiment: what was measured of each side, what it should be, and
//! whether it is; every value goes to `target/experiments.json` as well. docs/experiments.md explains them.
//! The clients are tasks of this program. All of them end by themselves, or are sent away when the time is
//! up, and whoever is still waiting then counts with the time it has waited.
//!
//! It does not judge: a missed target is a "no" in the table, and only a measurement that could not be made
//! fails the run.

mod billing;
mod clients;
#[allow(dead_code, reason = "versus uses more of it")]
#[path = "../common/mod.rs"]
mod common;
mod deadlocks;
mod leaks;
mod messages;
mod mixed;
mod neighbours;
mod occupancy;
mod provisioning;
mod report;
mod requests;
mod siege;
mod streams;
mod tenants;
mod waves;

use bursar::cli::throwaway;
use clap::Parser;
use common::Failure;
use common::lab::{Contender, Lab, Proxy, Setup};
use common::wire::Client;
use report::{Report, Table};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Command line; every option has an environment variable for use through make.
#[derive(Parser, Debug)]
struct Options {
    /// Experiments to run, by name; all if none (see --list)
    #[arg(long, env = "ROWS", value_delimiter = ',')]
    rows: Vec<String>,
    /// Length of one measurement, in seconds; each experiment has its own if not given
    #[arg(long, env = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: Option<u32>,
    /// Operations of each experiment that counts them (e9, e10)
    #[arg(long, env = "OPERATIONS", default_value_t = 100_000)]
    operations: u64,
    /// Of what these do at random
    #[arg(long, env = "SEED", default_value_t = 1)]
    seed: u64,
    /// The PgBouncer to compare with; found in PATH if not given
    #[arg(long, env = "PGBOUNCER")]
    pgbouncer: Option<PathBuf>,
    /// The Bursar to measure
    #[arg(long, env = "BURSAR_BIN", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/release/bursar"))]
    bursar: PathBuf,
    /// Where the JSON goes
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/experiments.json"))]
    json: PathBuf,
    /// Print the names of the experiments and leave
    #[arg(long)]
    list: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// An experiment's name in `ROWS=`, what it is about, and the seconds of each of its measurements; 0 of one
/// that counts its operations.
const EXPERIMENTS: [(&str, &str, u32); 16] = [
    ("e1", "noisy neighbour: 200 greedy clients, one tenant of long transactions, 50 quiet tenants", 12),
    ("e1b", "long transactions everywhere: 20 tenants of them, 50 quiet tenants", 16),
    ("e2", "provision_user: calls that open 26 sessions, nested three deep", 6),
    ("e3", "transactions as long as requests: 100 users on 17 backends, at a tenth of the time", 12),
    ("e4", "short reads and writes of 50 users, as problem S1 wants its application to be", 20),
    ("e5", "100, 50 and 1,000 concurrent isolated sessions, in waves", 5),
    ("e6", "parallel tools and a billing writer beside a tenant that overloads the pool", 14),
    ("e7", "leaks among honest transactions, and clients that vanish", 15),
    ("e8", "requests that nest sessions at random: progress and aborts", 12),
    ("e8b", "a session that waits for a row its own request has locked", 5),
    ("e9", "two hundred tenants under row-level security, at random and with faults", 0),
    ("e10", "isolation violations of every kind among honest operations", 0),
    ("fence", "what the tenant fence adds to a statement", 6),
    ("e19", "a row of 900 MB, a parameter of 500 MB, a query of 200 MB beside little questions", 20),
    ("siege", "10,000 idle clients, 2,000 slow ones and 1,000 wrong passwords a second", 15),
    ("e15", "random messages against the model of the transaction that a client sees", 10),
];

/// The size of what is counted and not timed.
#[derive(Clone, Copy)]
struct Load {
    /// So many operations.
    operations: u64,
    seed: u64,
}

/// What every experiment works with.
struct Bench {
    lab: Lab,
    pgbouncer: Contender,
    bursar: Contender,
    /// Bursar's program, whose subcommands are clients.
    tool: PathBuf,
}

impl Bench {
    /// Bursar, configured like this.
    fn bursar(&self, setup: &Setup) -> Result<Proxy, Failure> {
        self.clear()?;
        self.lab.start(&self.bursar, setup)
    }

    /// PgBouncer with as many backends.
    fn pgbouncer(&self, setup: &Setup) -> Result<Proxy, Failure> {
        self.clear()?;
        self.lab.start(&self.pgbouncer, setup)
    }

    /// Ends what an earlier measurement has left running on the server.
    fn clear(&self) -> Result<(), Failure> {
        let others = "select pg_terminate_backend(pid, 5000) from pg_stat_activity \
             where backend_type = 'client backend' and application_name <> 'experiments' and pid <> pg_backend_pid()";
        Ok(Client::connect(self.lab.port())?.query(others)?)
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for (name, about, seconds) in EXPERIMENTS {
            match seconds {
                0 => println!("{name:<5} {about} (by operations)"),
                seconds => println!("{name:<5} {about} ({seconds} s)"),
            }
        }
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(failure) => return fail(&failure.into()),
    };
    match runtime.block_on(run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    eprintln!("experiments: {failure}");
    ExitCode::FAILURE
}

/// Runs what was asked for; whether every measurement could be made.
async fn run(options: &Options) -> Result<bool, Failure> {
    let wanted: Vec<&str> = options.rows.iter().map(|row| row.trim()).filter(|row| !row.is_empty()).collect();
    if let Some(unknown) = wanted.iter().find(|row| !EXPERIMENTS.iter().any(|(name, ..)| name == *row)) {
        return Err(format!("no experiment is called {unknown:?}; --list shows them").into());
    }
    let pgbouncer = options.pgbouncer.clone().or_else(|| throwaway::find_in_path("pgbouncer"));
    let pgbouncer = pgbouncer.ok_or("PgBouncer was not found: install it, or set PGBOUNCER=path")?;
    let bench = Bench {
        lab: Lab::open("experiments")?,
        pgbouncer: Contender::new("pgbouncer", pgbouncer, 1)?,
        bursar: Contender::new("bursar", options.bursar.clone(), 1)?,
        tool: options.bursar.clone(),
    };
    let load = Load { operations: options.operations, seed: options.seed };
    let mut report = Report::new(&bench);
    for (name, about, seconds) in EXPERIMENTS {
        if !wanted.is_empty() && !wanted.contains(&name) {
            continue;
        }
        eprintln!("experiments: {name} ({about})");
        let length = Duration::from_secs(options.seconds.unwrap_or(seconds).into());
        let measured = measure(name, &bench, length, load).await;
        report.add(name, about, measured);
        // After every experiment, so that a run that is broken off has not been for nothing.
        report.save(&options.json)?;
    }
    println!("\n{}\nEvery value: {}", report.summary(), options.json.display());
    Ok(report.complete())
}

async fn measure(name: &str, bench: &Bench, length: Duration, load: Load) -> Result<Table, Failure> {
    match name {
        "e1" => neighbours::noisy(bench, length).await,
        "e1b" => neighbours::long_everywhere(bench, length).await,
        "e2" => provisioning::experiment(bench, length).await,
        "e3" => requests::transactions(bench, length).await,
        "e4" => mixed::experiment(bench, length).await,
        "e5" => waves::experiment(bench).await,
        "e6" => billing::experiment(bench, length).await,
        "e7" => leaks::experiment(bench, length).await,
        "e8" => deadlocks::random_trees(bench, length).await,
        "e8b" => deadlocks::own_row_lock(bench, length).await,
        "e9" => tenants::experiment(bench, load),
        "e10" => tenants::violations::experiment(bench, load),
        "fence" => tenants::cost::experiment(bench, length),
        "e19" => streams::experiment(bench, length).await,
        "siege" => siege::experiment(bench, length).await,
        "e15" => messages::experiment(length),
        other => Err(format!("{other} is listed and not written").into()),
    }
}
