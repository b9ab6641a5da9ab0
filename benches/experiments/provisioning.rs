//! E2: `provision_user()`, a call that opens 26 database sessions, nested three deep, each a connection of
//! its own as an ORM without a pool opens it.
//!
//! Callers are closed-loop, as threads of a web server are. Beside Bursar's own order of service stands the
//! bound that HikariCP's wiki gives ("About Pool Sizing"): with k sessions at once in a call, a pool of P is
//! safe if no more than (P - 1) / (k - 1) calls are let in. It is the same Bursar and the same pool, with
//! that many callers admitted at a time by the application.

use crate::clients::{self, Samples, Window};
use crate::common::Failure;
use crate::common::lab::Setup;
use crate::report::{Measured, Table, Target};
use crate::{Bench, Proxy};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_postgres::Client;

/// One session of the call, and those that are opened while it is in its transaction.
struct Session {
    what: &'static str,
    inner: &'static [Session],
}

const fn alone(what: &'static str) -> Session {
    Session { what, inner: &[] }
}

const fn around(what: &'static str, inner: &'static [Session]) -> Session {
    Session { what, inner }
}

/// Creating an agent: it is looked up, then created together with its permissions.
const GET_AGENT: Session = alone("get agent");
const CREATE_AGENT: Session = around(
    "create agent",
    &[around("agent permissions", &[alone("grant to owner"), alone("grant to tenant")])],
);

/// The call, in the order in which its code runs: five sessions one after another, permissions for six
/// resources inside one, two agents three deep, the workspace. 26 in all.
const PROVISION_USER: &[Session] = &[
    alone("find user"),
    alone("find tenant"),
    alone("create tenant"),
    alone("tenant settings"),
    alone("create user"),
    around(
        "permissions",
        &[alone("users"), alone("agents"), alone("files"), alone("threads"), alone("keys"), alone("bills")],
    ),
    GET_AGENT,
    CREATE_AGENT,
    GET_AGENT,
    CREATE_AGENT,
    around("workspace", &[alone("members")]),
    alone("workspace settings"),
    alone("welcome"),
];
/// Sessions of a call.
const SESSIONS: u32 = count(PROVISION_USER);
/// Sessions of a call at once: what HikariCP's formula calls Cm.
const DEPTH: u32 = depth(PROVISION_USER);
/// What a session does before the sessions inside it.
const WORK: &str = "select pg_sleep(0.04)";
/// How long a statement is waited for: SQLAlchemy's `pool_timeout`.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Before anything counts.
const WARM_UP: Duration = Duration::from_secs(3);

const fn count(sessions: &[Session]) -> u32 {
    let (mut sum, mut i) = (0, 0);
    while i < sessions.len() {
        sum += 1 + count(sessions[i].inner);
        i += 1;
    }
    sum
}

const fn depth(sessions: &[Session]) -> u32 {
    let (mut deepest, mut i) = (0, 0);
    while i < sessions.len() {
        let this = 1 + depth(sessions[i].inner);
        deepest = if this > deepest { this } else { deepest };
        i += 1;
    }
    deepest
}

/// One side of one cell.
#[derive(Debug, Default)]
struct Outcome {
    /// Calls that came to their end, and those that did not.
    done: u32,
    failed: u32,
    /// Committed sessions a second over the sessions of a call.
    calls_per_second: f64,
    /// How long the calls took that came to their end.
    took: Vec<Duration>,
    /// Sessions of a call, as Bursar counted them: fewest, most, and most at once.
    counted: Option<[u32; 3]>,
}

/// All cells.
pub(crate) async fn experiment(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let direct = clients::direct(bench.lab.port()).await?;
    direct.batch_execute("create table if not exists provisioned (call text, what text)").await?;
    // Both at once: they mostly wait.
    let theirs = [bench.pgbouncer(&setup(30))?, bench.pgbouncer(&setup(10))?];
    let [large, small] = theirs.map(|proxy| run(proxy, false, 50, None, length));
    let (large, small) = tokio::try_join!(large, small)?;
    let bound = (30 - 1) / (DEPTH - 1);
    let bounded = run(bench.bursar(&setup(30))?, true, 50, Some(bound), length).await?;
    let mut table = Table::default();
    for (pool, callers, theirs, bounded) in [
        (30, 10, None, None),
        (30, 25, None, None),
        (30, 50, Some(&large), Some(&bounded)),
        (10, 50, Some(&small), None),
    ] {
        let ours = run(bench.bursar(&setup(pool))?, true, callers, None, length).await?;
        table.cell(pool, callers, &ours, bounded, theirs);
    }
    Ok(table)
}

fn setup(pool: u32) -> Setup {
    Setup::of(pool as usize)
        .with("budget.request", &format!("max_concurrent = {{ limit = {DEPTH}, mode = \"enforce\" }}"))
        .with("budget.request", "max_leases = { warn = \"off\", mode = \"observe\" }")
}

impl Table {
    fn cell(
        &mut self,
        pool: u32,
        callers: u32,
        ours: &Outcome,
        bounded: Option<&Outcome>,
        theirs: Option<&Outcome>,
    ) {
        let of_both = |value: fn(&Outcome) -> f64| {
            (Measured::Is(value(ours)), theirs.map_or(Measured::No, |side| Measured::Is(value(side))))
        };
        self.group(format!("{callers} callers on {pool} backends"));
        let mut line = |metric: &str, unit, (ours, theirs), target| {
            self.line(metric, unit, ours, theirs, target);
        };
        line("calls failed", "", of_both(|side| side.failed.into()), Target::Exactly(0.0));
        line("calls done", "", of_both(|side| side.done.into()), Target::None);
        line("calls", "1/s", of_both(|side| side.calls_per_second), Target::None);
        if let Some(bounded) = bounded {
            let rate = Measured::Is(bounded.calls_per_second);
            line("calls behind HikariCP's bound", "1/s", (rate, Measured::No), Target::None);
            let ratio = Measured::Is(ours.calls_per_second / bounded.calls_per_second);
            line("calls, over those", "", (ratio, Measured::No), Target::AtLeast(1.15));
        }
        line(
            "p99 of a call",
            "ms",
            of_both(|side| Samples::new(side.took.clone()).per_mille(990)),
            Target::None,
        );
        let counted = |which: usize| ours.counted.map_or(Measured::No, |all| Measured::Is(all[which].into()));
        let exactly = Target::Exactly(SESSIONS.into());
        line("sessions counted, fewest", "", (counted(0), Measured::No), exactly);
        line("sessions counted, most", "", (counted(1), Measured::No), exactly);
        line("leases at once, most", "", (counted(2), Measured::No), Target::AtMost(DEPTH.into()));
    }
}

/// What the callers of a cell share.
struct Shared {
    port: u16,
    window: Window,
    /// Sessions committed within the window.
    sessions: AtomicU32,
    outcome: Mutex<Outcome>,
    /// The application's own bound, if it has one.
    admission: Option<Semaphore>,
    /// Bursar's console, for what it has counted.
    console: Option<Client>,
}

async fn run(
    proxy: Proxy,
    has_console: bool,
    callers: u32,
    bound: Option<u32>,
    length: Duration,
) -> Result<Outcome, Failure> {
    let console = if has_console { Some(clients::console(proxy.port()).await?) } else { None };
    let shared = Arc::new(Shared {
        port: proxy.port(),
        window: Window::after(WARM_UP, length),
        sessions: AtomicU32::new(0),
        outcome: Mutex::default(),
        admission: bound.map(|bound| Semaphore::new(bound as usize)),
        console,
    });
    let mut all = JoinSet::new();
    for n in 0..callers {
        all.spawn(caller(n, shared.clone()));
    }
    let ended = async { while all.join_next().await.is_some() {} };
    // Whoever waits in vain does so for each of its sessions in turn.
    let late = shared.window.to + TIMEOUT + Duration::from_secs(2);
    let unfinished = match tokio::time::timeout_at(late.into(), ended).await {
        Ok(()) => 0,
        Err(_) => u32::try_from(all.len())?,
    };
    drop(all);
    let sessions = f64::from(shared.sessions.load(Ordering::Relaxed));
    let mut outcome = std::mem::take(&mut *shared.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    outcome.failed += unfinished;
    outcome.calls_per_second = sessions / f64::from(SESSIONS) / shared.window.seconds();
    Ok(outcome)
}

/// Calls again and again until the time is up, and finishes the call it is in.
async fn caller(n: u32, shared: Arc<Shared>) {
    // Not in step: callers are people.
    tokio::time::sleep(Duration::from_millis(u64::from(n) * 11)).await;
    let mut call = 0;
    while Instant::now() < shared.window.to {
        call += 1;
        let request = format!("call-{n}-{call}");
        let began = Instant::now();
        let result = admitted_call(&shared, &request).await;
        let counted = match &shared.console {
            Some(console) if result.is_ok() => counted(console, &request).await,
            _ => None,
        };
        let mut outcome = shared.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                outcome.done += 1;
                outcome.took.push(began.elapsed());
            }
            Err(failure) => {
                if outcome.failed == 0 {
                    eprintln!("experiments:   the first call that failed: {failure}");
                }
                outcome.failed += 1;
            }
        }
        if let Some([total, peak]) = counted {
            let [fewest, most, at_once] = outcome.counted.unwrap_or([total, total, peak]);
            outcome.counted = Some([fewest.min(total), most.max(total), at_once.max(peak)]);
        }
    }
}

async fn admitted_call(shared: &Shared, request: &str) -> Result<(), Failure> {
    let _admitted = match &shared.admission {
        Some(admission) => Some(admission.acquire().await?),
        None => None,
    };
    sessions(shared, request, PROVISION_USER).await
}

/// `leases_total` and `peak_leases` of a request.
async fn counted(console: &Client, request: &str) -> Option<[u32; 2]> {
    let sql = format!("SELECT leases_total, peak_leases FROM bursar.request('{request}')");
    let row = clients::row(console, &sql).await.ok()??;
    Some([row[0].parse().ok()?, row[1].parse().ok()?])
}

/// Opens these sessions one after another, each around those inside it.
fn sessions<'a>(
    shared: &'a Shared,
    request: &'a str,
    all: &'a [Session],
) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
    Box::pin(async move {
        for session in all {
            let tags = [("tenant", "acme"), ("request_id", request)];
            let client = within(clients::session(shared.port, &tags)).await?;
            within(client.batch_execute("begin")).await?;
            within(client.batch_execute(WORK)).await?;
            sessions(shared, request, session.inner).await?;
            let insert = format!("insert into provisioned values ('{request}', '{}')", session.what);
            within(client.batch_execute(&insert)).await?;
            within(client.batch_execute("commit")).await?;
            if shared.window.has(Instant::now()) {
                shared.sessions.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    })
}

/// An answer, in the time an application gives it.
async fn within<T>(answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|error| clients::in_full(&error).into()),
        Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs()).into()),
    }
}
