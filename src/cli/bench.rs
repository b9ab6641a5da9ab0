//! `bursar bench`: how long N concurrent, tagged sessions take, and whether they leave anything behind.
//!
//! Every session does what a web request does with its own session: it says whose work follows
//! (`SET bursar.request_id`, `SET bursar.user_id`), begins a transaction, asks one question whose
//! answer only it can expect, and commits. Connections are opened before the clock starts, as the
//! application's own pool would have them.
//!
//! It is no load generator (pgbench is): one burst, or a few waves of it, and a verdict. It also
//! runs against a bare PostgreSQL, where the same `SET`s are legal and mean nothing.

use super::driver::{self, Row};
use super::{BenchArgs, Exit};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config};

/// Where Bursar listens unless told otherwise.
const DEFAULT_URL: &str = "postgres://postgres@127.0.0.1:6432/postgres";
/// Published for 100 concurrent sessions of a request-scoped session manager: total and mean, in ms.
const PUBLISHED_MS: (f64, f64) = (38.6, 0.39);
/// How long leases and transactions may take to end after the last COMMIT was answered.
const SETTLE: Duration = Duration::from_secs(1);

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("--sessions, --waves and --users must be at least 1")]
    Nothing,
    #[error("the URL is not understood: {0}")]
    Url(#[source] tokio_postgres::Error),
    #[error("connection {number} of {of} failed: {}", in_full(source))]
    Connect { number: usize, of: usize, source: tokio_postgres::Error },
    #[error("the check for what is left failed: {}", in_full(.0))]
    Check(#[source] tokio_postgres::Error),
}

/// How one session of a wave went.
#[derive(Debug)]
struct Finished {
    started: Instant,
    ended: Instant,
    /// PostgreSQL's process id of the backend that served it, or what went wrong.
    result: Result<i32, String>,
}

/// One burst.
#[derive(Debug)]
struct Wave {
    total: Duration,
    /// Ascending.
    took: Vec<Duration>,
    failed: usize,
    first_failure: Option<String>,
    backends: BTreeSet<i32>,
}

/// What is still held once everybody has finished.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    /// `None`: the server has no console that could tell.
    leases: Option<usize>,
    /// Transactions idle on the server, of this user in this database.
    transactions: i64,
}

/// Runs it and prints the result. Exit code 0 if every session succeeded and nothing is left behind.
pub async fn run(args: &BenchArgs) -> ExitCode {
    let exit = match bench(args).await {
        Ok(true) => Exit::Good,
        Ok(false) => Exit::Failed,
        Err(error) => {
            eprintln!("bursar bench: {error}");
            Exit::Failed
        }
    };
    exit.into()
}

async fn bench(args: &BenchArgs) -> Result<bool, Error> {
    let users = args.users.unwrap_or(args.sessions);
    if args.sessions == 0 || args.waves == 0 || users == 0 {
        return Err(Error::Nothing);
    }
    let url = args.url.clone().or_else(|| std::env::var("DATABASE_URL").ok());
    let mut config: Config = url.as_deref().unwrap_or(DEFAULT_URL).parse().map_err(Error::Url)?;
    config.application_name("bursar-bench");
    let run_id = format!("bench-{:08x}", rand::random::<u32>());

    let idle_before = open_transactions(&config).await.map_err(Error::Check)?;
    let mut clients = open_all(&config, args.sessions).await?;
    println!(
        "{} sessions at once, {users} users, {} waves; connections are open already",
        args.sessions, args.waves
    );
    println!("{:>6} {:>10} {:>10} {:>10} {:>10} {:>9}", "wave", "total", "mean", "p50", "p99", "success");
    let mut waves = Vec::new();
    for number in 1..=args.waves {
        let wave = run_wave(&mut clients, &format!("{run_id}-{number}"), users).await;
        println!("{}", wave.line(number));
        waves.push(wave);
    }
    println!("published for 100: {:.1} ms total, {:.2} ms mean", PUBLISHED_MS.0, PUBLISHED_MS.1);
    println!("(mean = total / sessions; p50 and p99 are of single sessions, tag to COMMIT)");
    print_backends(&waves);
    for reason in waves.iter().filter_map(|wave| wave.first_failure.as_ref()).take(1) {
        println!("first failure: {reason}");
    }

    // The clients are still connected: what is left is not held by a connection that is going away.
    let left = settle(&config, &run_id, idle_before).await.map_err(Error::Check)?;
    let leases = left.leases.map_or("n/a (no Bursar console here)".to_owned(), |count| count.to_string());
    println!("left behind: leases {leases}, open transactions {}", left.transactions);
    drop(clients);
    Ok(waves.iter().all(|wave| wave.failed == 0) && left.leases.unwrap_or(0) == 0 && left.transactions == 0)
}

/// Opens the connections one after the other, then lets each ask once, all together, so that the
/// backends behind them are open too.
async fn open_all(config: &Config, sessions: usize) -> Result<Vec<Client>, Error> {
    let mut clients = Vec::with_capacity(sessions);
    for number in 1..=sessions {
        let failed = |source| Error::Connect { number, of: sessions, source };
        clients.push(driver::connect(config).await.map_err(failed)?);
    }
    let mut warming = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        warming.spawn(async move { (number, client.batch_execute("SELECT 1").await, client) });
    }
    let mut warm = Vec::with_capacity(sessions);
    while let Some(Ok((number, result, client))) = warming.join_next().await {
        result.map_err(|source| Error::Connect { number: number + 1, of: sessions, source })?;
        warm.push(client);
    }
    Ok(warm)
}

/// One burst over all clients; they come back for the next one.
async fn run_wave(clients: &mut Vec<Client>, wave_id: &str, users: usize) -> Wave {
    let barrier = Arc::new(Barrier::new(clients.len() + 1));
    let mut sessions = JoinSet::new();
    for (number, client) in clients.drain(..).enumerate() {
        let (barrier, request) = (Arc::clone(&barrier), format!("{wave_id}-{number}"));
        sessions.spawn(async move {
            barrier.wait().await;
            let started = Instant::now();
            let result = session(&client, &request, number % users).await;
            (client, Finished { started, ended: Instant::now(), result })
        });
    }
    barrier.wait().await;
    let mut finished = Vec::new();
    // A task ends in an error only if it panics, which `session` has no way to do.
    while let Some(Ok((client, one))) = sessions.join_next().await {
        clients.push(client);
        finished.push(one);
    }
    Wave::of(&finished)
}

/// What one request does. The unnamed statement of `query_typed` leaves nothing on the backend.
async fn session(client: &Client, request: &str, user: usize) -> Result<i32, String> {
    let work = async {
        client.batch_execute(&format!("SET bursar.request_id = '{request}'")).await?;
        client.batch_execute(&format!("SET bursar.user_id = 'user-{user}'")).await?;
        client.batch_execute("BEGIN").await?;
        let rows = client.query_typed("SELECT $1::text, pg_backend_pid()", &[(&request, Type::TEXT)]).await?;
        client.batch_execute("COMMIT").await?;
        Ok(rows)
    };
    let rows = work.await.map_err(|error: tokio_postgres::Error| in_full(&error))?;
    let [row] = rows.as_slice() else { return Err(format!("{} rows instead of one", rows.len())) };
    match row.try_get::<_, &str>(0) {
        Ok(echo) if echo == request => row.try_get(1).map_err(|error| in_full(&error)),
        Ok(_) => Err("the answer of another session".to_owned()),
        Err(error) => Err(in_full(&error)),
    }
}

impl Wave {
    fn of(finished: &[Finished]) -> Wave {
        let first = finished.iter().map(|one| one.started).min();
        let last = finished.iter().map(|one| one.ended).max();
        let mut took: Vec<Duration> =
            finished.iter().map(|one| one.ended.saturating_duration_since(one.started)).collect();
        took.sort_unstable();
        let failures = || finished.iter().filter_map(|one| one.result.as_ref().err());
        Wave {
            total: first
                .zip(last)
                .map_or(Duration::ZERO, |(first, last)| last.saturating_duration_since(first)),
            failed: failures().count(),
            first_failure: failures().next().cloned(),
            backends: finished.iter().filter_map(|one| one.result.as_ref().ok().copied()).collect(),
            took,
        }
    }

    fn line(&self, number: usize) -> String {
        let sessions = u32::try_from(self.took.len()).unwrap_or(u32::MAX).max(1);
        let failed = u32::try_from(self.failed).unwrap_or(u32::MAX);
        let success = 100.0 * f64::from(sessions - failed.min(sessions)) / f64::from(sessions);
        let [total, mean, p50, p99] =
            [self.total, self.total / sessions, percentile(&self.took, 50), percentile(&self.took, 99)]
                .map(|time| time.as_secs_f64() * 1e3);
        format!("{number:>6} {total:>7.2} ms {mean:>7.3} ms {p50:>7.2} ms {p99:>7.2} ms {success:>7.2} %")
    }
}

/// How many backends served the sessions, and how many of them only from the second wave on: with
/// reuse as it should be, none.
fn print_backends(waves: &[Wave]) {
    let Some((first, later)) = waves.split_first() else { return };
    let all: BTreeSet<i32> = waves.iter().flat_map(|wave| wave.backends.iter().copied()).collect();
    let new = all.difference(&first.backends).count();
    match later {
        [] => println!("backends used: {}", all.len()),
        _ => println!("backends used: {}, of them new after the first wave: {new}", all.len()),
    }
}

/// Looks until nothing is left or [`SETTLE`] is over.
async fn settle(config: &Config, run_id: &str, idle_before: i64) -> Result<Left, tokio_postgres::Error> {
    let mut console = config.clone();
    console.dbname("bursar");
    let console = driver::connect(&console).await.ok();
    let deadline = Instant::now() + SETTLE;
    loop {
        let leases = match &console {
            // A bare PostgreSQL may well have a database of that name, but no SHOW LEASES.
            Some(client) => driver::rows(client, "SHOW LEASES").await.ok(),
            None => None,
        };
        let left = Left {
            leases: leases.map(|rows| count_ours(&rows, run_id)),
            transactions: (open_transactions(config).await? - idle_before).max(0),
        };
        let clean = left.leases.unwrap_or(0) == 0 && left.transactions == 0;
        if clean || Instant::now() > deadline {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn count_ours(leases: &[Row], run_id: &str) -> usize {
    leases.iter().filter(|row| row.get("request").is_some_and(|id| id.starts_with(run_id))).count()
}

/// Transactions that sit idle on the server, of this user in this database; asked on a connection
/// of its own, which is closed again.
async fn open_transactions(config: &Config) -> Result<i64, tokio_postgres::Error> {
    let client = driver::connect(config).await?;
    let rows = client
        .query_typed(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND usename = current_user AND state LIKE 'idle in transaction%'",
            &[],
        )
        .await?;
    rows.first().map_or(Ok(0), |row| row.try_get(0))
}

/// Nearest rank; zero of nothing.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The driver's own text says only "db error"; the server's is its source.
fn in_full(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(server) => format!("{} {}: {}", server.severity(), server.code().code(), server.message()),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(started: Instant, took_ms: u64, result: Result<i32, String>) -> Finished {
        Finished { started, ended: started + Duration::from_millis(took_ms), result }
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(50));
        assert_eq!(percentile(&times, 99), Duration::from_millis(99));
        assert_eq!(percentile(&times[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn a_wave_ends_with_its_last_session_and_names_its_first_failure() {
        let started = Instant::now();
        let wave = Wave::of(&[
            finished(started, 4, Ok(11)),
            finished(started, 9, Err("FATAL 57P01: gone".into())),
            finished(started, 1, Ok(11)),
            finished(started, 2, Ok(12)),
        ]);
        assert_eq!(wave.total, Duration::from_millis(9));
        assert_eq!(wave.failed, 1);
        assert_eq!(wave.first_failure.as_deref(), Some("FATAL 57P01: gone"));
        assert_eq!(wave.backends, BTreeSet::from([11, 12]));
        assert_eq!(wave.line(1), "     1    9.00 ms   2.250 ms    2.00 ms    9.00 ms   75.00 %");
    }

    #[test]
    fn only_our_leases_count() {
        let row = |request: &str| Row::from([("request".to_owned(), request.to_owned())]);
        let rows = [row("bench-1-1-1"), row("bench-2-1-1"), Row::new()];
        assert_eq!(count_ours(&rows, "bench-1"), 1);
    }
}
