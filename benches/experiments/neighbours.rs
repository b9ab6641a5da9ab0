//! E1 and E1b: what quiet tenants wait for while others take all they can get.
//!
//! The quiet ones ask open-loop: by a clock, whether or not the answer before has come, and each answer is
//! timed from when it was due, so that a slow pool cannot slow its questions down.

use crate::clients::{self, Crowd, Samples, Window};
use crate::common::Failure;
use crate::common::lab::Setup;
use crate::occupancy;
use crate::report::{Measured, Table, Target};
use crate::{Bench, Proxy};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_postgres::Client;

/// Backends.
const POOL: u32 = 20;
/// Tenants that ask now and then.
const QUIET: u32 = 50;
/// How often each of them asks, a second; arrivals are a Poisson process.
const QUIET_RATE: f64 = 4.0;
/// What they ask, and how long it takes once it has a backend.
const QUIET_WORK: &str = "select pg_sleep(0.005)";
const QUIET_SERVICE: Duration = Duration::from_millis(5);
/// Sessions a quiet tenant opens at most; more wait for one of them, timed from when they were due.
const QUIET_SESSIONS: usize = 16;
/// A greedy client's transaction.
const GREEDY_WORK: &str = "select pg_sleep(0.05)";
/// A long transaction, in seconds.
const LONG: std::ops::Range<f64> = 2.0..10.0;

/// Who shares the pool with the quiet ones.
#[derive(Debug, Clone, Copy)]
struct Mix {
    /// Clients of one tenant, each asking again as soon as it is answered.
    greedy: u32,
    /// Tenants of long transactions, and clients of each.
    long: (u32, u32),
    /// Before anything counts: the crowd has gathered, the long transactions have become known as such.
    warm_up: Duration,
}

/// One side.
struct Outcome {
    /// Waits of the quiet: latency without the statement's own time.
    waits: Samples,
    /// Statements of the quiet that failed.
    failed: u32,
    /// Backends in use, of all.
    used: f64,
    /// Transactions of the greedy, a second.
    greedy: f64,
}

/// E1.
pub(crate) async fn noisy(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let mix = Mix { greedy: 200, long: (1, 10), warm_up: Duration::from_secs(5) };
    let setup = patient();
    let theirs = run(bench, &bench.pgbouncer(&setup)?, mix, length).await?;
    let ours = run(bench, &bench.bursar(&setup)?, mix, length).await?;
    let mut table = Table::default();
    table.waits(&ours, &theirs, 250.0);
    let twentieth = theirs.waits.per_mille(990) / 20.0;
    let p99 = Measured::Is(ours.waits.per_mille(990));
    table.line("the same, a twentieth of PgBouncer's", "ms", p99, Measured::No, Target::AtMost(twentieth));
    let [used, their_used] = [&ours, &theirs].map(|side| Measured::Is(side.used));
    table.line("backends in use, of all", "", used, their_used, Target::AtLeast(0.95));
    let [greedy, their_greedy] = [&ours, &theirs].map(|side| Measured::Is(side.greedy));
    table.line("transactions of the greedy", "1/s", greedy, their_greedy, Target::None);
    table.alone(&alone(bench, length).await?);
    Ok(table)
}

/// E1b: beside PgBouncer, Bursar without the slots it keeps for short work.
pub(crate) async fn long_everywhere(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let mix = Mix { greedy: 0, long: (20, 3), warm_up: Duration::from_secs(12) };
    let setup = patient();
    let theirs = run(bench, &bench.pgbouncer(&setup)?, mix, length).await?;
    let without =
        run(bench, &bench.bursar(&setup.clone().with("pool", "express = \"off\""))?, mix, length).await?;
    let ours = run(bench, &bench.bursar(&setup)?, mix, length).await?;
    let mut table = Table::default();
    table.waits(&ours, &theirs, f64::INFINITY);
    let p99 = Measured::Is(without.waits.per_mille(990));
    table.line("the same without express slots", "ms", p99, Measured::No, Target::None);
    let [used, their_used] = [&ours, &theirs].map(|side| Measured::Is(side.used));
    table.line("backends in use, of all", "", used, their_used, Target::None);
    table.line("the same without express slots", "", Measured::Is(without.used), Measured::No, Target::None);
    let lost = Measured::Is(1.0 - ours.used / without.used);
    table.line(
        "throughput (backend-seconds) lost to express slots",
        "",
        lost,
        Measured::No,
        Target::AtMost(0.06),
    );
    table.alone(&alone(bench, length).await?);
    Ok(table)
}

/// The quiet with the pool to themselves: what of their wait is the machine's.
async fn alone(bench: &Bench, length: Duration) -> Result<Outcome, Failure> {
    let mix = Mix { greedy: 0, long: (0, 0), warm_up: Duration::from_secs(4) };
    run(bench, &bench.bursar(&patient())?, mix, length / 3).await
}

/// Nobody is sent away: this is about waiting.
fn patient() -> Setup {
    Setup::of(POOL as usize).with("pool", "max_wait = \"120s\"")
}

impl Table {
    fn alone(&mut self, side: &Outcome) {
        let p99 = Measured::Is(side.waits.per_mille(990));
        self.line("quiet tenants' wait with nobody else there, p99", "ms", p99, Measured::No, Target::None);
    }

    fn waits(&mut self, ours: &Outcome, theirs: &Outcome, longest: f64) {
        for (name, rank) in [("quiet tenants' wait, median", 500), ("quiet tenants' wait, p99", 990)] {
            let target = if rank == 990 { Target::AtMost(50.0) } else { Target::None };
            let [ours, theirs] = [ours, theirs].map(|side| Measured::Is(side.waits.per_mille(rank)));
            self.line(name, "ms", ours, theirs, target);
        }
        let target = if longest.is_finite() { Target::AtMost(longest) } else { Target::None };
        let [max, their_max] = [ours, theirs].map(|side| Measured::Is(side.waits.max()));
        self.line("quiet tenants' wait, longest", "ms", max, their_max, target);
        let [failed, their_failed] = [ours, theirs].map(|side| Measured::Is(side.failed.into()));
        self.line("quiet statements that failed", "", failed, their_failed, Target::Exactly(0.0));
        #[allow(clippy::cast_precision_loss, reason = "a few thousand")]
        let [count, their_count] = [ours, theirs].map(|side| Measured::Is(side.waits.count() as f64));
        self.line("quiet statements", "", count, their_count, Target::None);
    }
}

async fn run(bench: &Bench, proxy: &Proxy, mix: Mix, length: Duration) -> Result<Outcome, Failure> {
    let port = proxy.port();
    let window = Window::after(mix.warm_up, length);
    let done = Arc::new(AtomicU32::new(0));
    let mut crowd = Crowd::default();
    for n in 0..mix.greedy {
        crowd.join(greedy(port, n, window, done.clone()));
    }
    for tenant in 0..mix.long.0 {
        for n in 0..mix.long.1 {
            crowd.join(long(port, tenant, u64::from(tenant * mix.long.1 + n)));
        }
    }
    let answers = Arc::new(Answers::default());
    for tenant in 0..QUIET {
        crowd.join(quiet(port, tenant, window, answers.clone()));
    }
    let used = occupancy::mean_in_use(bench.lab.port(), window).await? / f64::from(POOL);
    tokio::time::sleep_until(window.to.into()).await;
    let greedy = f64::from(done.load(Ordering::Relaxed)) / window.seconds();
    let (waits, failed) = answers.waits();
    Ok(Outcome { waits, failed, used, greedy })
}

/// A client that asks again as soon as it is answered.
async fn greedy(port: u16, n: u32, window: Window, done: Arc<AtomicU32>) {
    // Not all at once: a crowd gathers.
    tokio::time::sleep(Duration::from_millis(u64::from(n) * 5)).await;
    let Ok(client) = clients::session(port, &[("tenant", "greedy")]).await else { return };
    loop {
        transaction(&client, GREEDY_WORK).await;
        if window.has(Instant::now()) {
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A client of long transactions.
async fn long(port: u16, tenant: u32, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let Ok(client) = clients::session(port, &[("tenant", &format!("long-{tenant}"))]).await else { return };
    loop {
        transaction(&client, &format!("select pg_sleep({:.3})", random.random_range(LONG))).await;
    }
}

/// One statement in a transaction of its own, three messages; a refusal is a pause.
async fn transaction(client: &Client, work: &str) {
    for statement in ["begin", work, "commit"] {
        if client.batch_execute(statement).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            // Also what fails outside a transaction: a warning then.
            let _ = client.batch_execute("rollback").await;
            return;
        }
    }
}

/// What became of each question of the quiet.
#[derive(Default)]
struct Answers(Mutex<Vec<Question>>);

struct Question {
    due: Instant,
    /// How long the answer took, if one came; `Err` if it was a refusal.
    answer: Option<Result<Duration, ()>>,
}

impl Answers {
    fn due(&self, when: Instant) -> usize {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Question { due: when, answer: None });
        all.len() - 1
    }

    fn answered(&self, index: usize, answer: Result<(), tokio_postgres::Error>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let took = all[index].due.elapsed();
        all[index].answer = Some(answer.map(|()| took).map_err(drop));
    }

    /// Waits, with those who still wait counted so far; and how many failed.
    fn waits(&self) -> (Samples, u32) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = 0;
        let waits = all.iter().filter_map(|Question { due, answer }| match answer {
            Some(Ok(took)) => Some(took.saturating_sub(QUIET_SERVICE)),
            Some(Err(())) => {
                failed += 1;
                None
            }
            None => Some(due.elapsed().saturating_sub(QUIET_SERVICE)),
        });
        (Samples::new(waits.collect()), failed)
    }
}

/// A tenant that asks by the clock, over a handful of sessions it keeps.
async fn quiet(port: u16, tenant: u32, window: Window, answers: Arc<Answers>) {
    let mut random = StdRng::seed_from_u64(1000 + u64::from(tenant));
    let name = format!("quiet-{tenant}");
    let sessions = Arc::new((Semaphore::new(QUIET_SESSIONS), Mutex::new(Vec::<Client>::new())));
    let mut due = Instant::now();
    let mut asked = Crowd::default();
    loop {
        // Exponential gaps; the logarithm of what is never zero.
        due += Duration::from_secs_f64(-(1.0 - random.random::<f64>()).ln() / QUIET_RATE);
        if due >= window.to {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let (name, sessions) = (name.clone(), sessions.clone());
        let index = window.has(due).then(|| answers.due(due));
        let answers = answers.clone();
        asked.join(async move {
            let Ok(_place) = sessions.0.acquire().await else { return };
            let idle = sessions.1.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let client = match idle {
                Some(client) => Ok(client),
                None => clients::session(port, &[("tenant", &name)]).await,
            };
            let answer = match client {
                Ok(client) => {
                    let answer = client.batch_execute(QUIET_WORK).await;
                    sessions.1.lock().unwrap_or_else(PoisonError::into_inner).push(client);
                    answer
                }
                Err(error) => Err(error),
            };
            if let Some(index) = index {
                answers.answered(index, answer);
            }
        });
    }
    // Whoever still waits does so until the crowd is sent away.
    std::future::pending::<()>().await;
}
