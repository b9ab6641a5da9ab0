//! E5: concurrent isolated sessions, as a request-scoped session manager opens them. The clients are
//! `bursar bench`, which users have too: every session says whose request and user it works for, begins a
//! transaction, asks a question whose answer only it can expect, and commits. All of a wave start at once, over
//! connections that are open, and as many waves follow each other.
//!
//! Total is the time of a wave, from the first session's start to the last one's end. Mean is the total over the
//! number of sessions, as in the figures that were published (38.6 ms for 100, 7.7 ms for 50). What a single
//! session takes while all others run too is shown beside it.

use crate::Bench;
use crate::clients;
use crate::common::Failure;
use crate::common::lab::{Proxy, Setup};
use crate::report::{Measured, Table, Target};
use bursar::cli::throwaway;
use std::path::Path;
use std::process::Command;
use tokio::task::JoinSet;

/// Backends.
const POOL: usize = 20;

/// Sessions at once, waves, and what was published: total and mean, in milliseconds.
const LOADS: [(usize, usize, Published); 3] =
    [(100, 10, Some((38.6, 0.39))), (50, 10, Some((7.7, 0.2))), (1_000, 3, None)];

/// Total and mean of a wave, in milliseconds.
type Published = Option<(f64, f64)>;

/// One side under one load: medians over its waves, in milliseconds.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    total: f64,
    mean: f64,
    /// The slowest wave.
    worst: f64,
    /// Of single sessions.
    p50: f64,
    p99: f64,
    /// Of the worst wave, in percent.
    success: f64,
    /// Backends that served a wave after the first and not the first.
    new: f64,
    /// Leases and open transactions at the end.
    left: Option<f64>,
}

/// The experiment.
pub(crate) async fn experiment(bench: &Bench) -> Result<Table, Failure> {
    let setup = Setup::of(POOL);
    let mut table = Table::default();
    for (sessions, waves, published) in LOADS {
        let theirs = run(&bench.tool, &bench.pgbouncer(&setup)?, sessions, waves).await?;
        let ours = run(&bench.tool, &bench.bursar(&setup)?, sessions, waves).await?;
        table.group(format!("{sessions} sessions at once, {POOL} backends, {waves} waves"));
        let mut line = |metric: &str, unit, value: fn(&Outcome) -> f64, target| {
            table.line(metric, unit, Measured::Is(value(&ours)), Measured::Is(value(&theirs)), target);
        };
        let most = |limit: Option<f64>| limit.map_or(Target::None, Target::AtMost);
        line("total of a wave, median", "ms", |side| side.total, most(published.map(|(total, _)| total)));
        line(
            "mean (total / sessions), median",
            "ms",
            |side| side.mean,
            most(published.map(|(_, mean)| mean)),
        );
        line("total of the slowest wave", "ms", |side| side.worst, Target::None);
        line("one session among them, median", "ms", |side| side.p50, Target::None);
        line("one session among them, p99", "ms", |side| side.p99, Target::None);
        line("success in the worst wave", "%", |side| side.success, Target::Exactly(100.0));
        line("backends new after the first wave", "", |side| side.new, Target::Exactly(0.0));
        let left = |side: &Outcome| side.left.map_or(Measured::No, Measured::Is);
        table.line("leases and transactions left", "", left(&ours), left(&theirs), Target::Exactly(0.0));
    }
    Ok(table)
}

async fn run(tool: &Path, proxy: &Proxy, sessions: usize, waves: usize) -> Result<Outcome, Failure> {
    // The backends are there, as after any minute of work.
    let mut warm = JoinSet::new();
    for _ in 0..POOL {
        let port = proxy.port();
        warm.spawn(async move {
            let client = clients::session(port, &[]).await?;
            client.batch_execute("select pg_sleep(0.3)").await
        });
    }
    while let Some(one) = warm.join_next().await {
        one??;
    }
    let mut command: Command = throwaway::command(tool);
    command.arg("bench").args(["--sessions", &sessions.to_string(), "--waves", &waves.to_string()]);
    command.args(["--url", &format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port())]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout);
    read(&text, waves).ok_or_else(|| {
        format!("bursar bench said {text:?} and {:?}", String::from_utf8_lossy(&output.stderr)).into()
    })
}

/// What `bursar bench` has printed: a line a wave (number, total, mean, p50, p99, success), and in the end what
/// backends served and what is left.
fn read(text: &str, waves: usize) -> Option<Outcome> {
    let number = |word: &str| word.trim_end_matches(',').parse::<f64>().ok();
    let rows: Vec<Vec<f64>> = text
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, _, "ms", _, "ms", _, "ms", _, "ms", _, "%"] = words[..] else { return None };
            [1, 3, 5, 7, 9].into_iter().map(|at| number(words[at])).collect()
        })
        .collect();
    if rows.len() != waves || waves == 0 {
        return None;
    }
    let column = |at: usize| {
        let mut values: Vec<f64> = rows.iter().map(|row| row[at]).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let median = |at: usize| column(at)[waves / 2];
    let backends = text.lines().find(|line| line.starts_with("backends used:"))?;
    let left = text.lines().find_map(|line| line.strip_prefix("left behind: leases "))?;
    let (leases, transactions) = left.split_once(", open transactions ")?;
    let leases = if leases.starts_with("n/a") { 0.0 } else { number(leases)? };
    Some(Outcome {
        total: median(0),
        mean: median(1),
        worst: column(0)[waves - 1],
        p50: median(2),
        p99: median(3),
        success: column(4)[0],
        new: backends.rsplit(' ').next().and_then(number)?,
        left: Some(leases + number(transactions)?),
    })
}
