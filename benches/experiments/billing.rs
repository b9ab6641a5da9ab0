//! E6: a service of agents beside a tenant that overloads the pool. A request runs two tools at once, each
//! in a transaction of its own that is open while the tool thinks, and meanwhile writes what it costs: an
//! insert, a commit and a refresh, in a session of class `billing`, for which one backend is kept.
//!
//! Requests come by the clock, more of them than their share of the pool carries. A billing wait is the time
//! of `begin` and `insert`, or of the refresh, without what the same took while nobody else was there.

use crate::clients::{self, Crowd, Samples, Window};
use crate::common::Failure;
use crate::common::lab::Setup;
use crate::report::{Measured, Table, Target};
use crate::{Bench, Proxy};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_postgres::Client;

/// Backends.
const POOL: usize = 20;
/// Clients of the overload tenant, each asking again as soon as it is answered.
const CROWD: u64 = 200;
const CROWD_WORK: &str = "select pg_sleep(0.05)";
/// Between two requests of agents.
const EVERY: Duration = Duration::from_millis(200);
/// How long a tool thinks between its statements, in a transaction.
const THINK: Duration = Duration::from_millis(2400);
/// Goes over an idle pool, for what billing takes without waiting.
const IDLE_GOES: usize = 20;
/// Before requests count: the crowd has gathered.
const WARM_UP: Duration = Duration::from_secs(3);
/// What a request may take in all once the crowd is gone.
const PATIENCE: Duration = Duration::from_secs(60);

const TABLES: &str = "create table if not exists llm_requests (id bigserial primary key, side text, request text, \
     cost numeric); create table if not exists tool_runs (id bigserial primary key, request text)";

/// One side.
struct Outcome {
    /// Waits of billing's checkouts.
    waits: Samples,
    /// Time of both tools of a request.
    tools: Samples,
    /// Requests that came to their end, and those that did not.
    done: f64,
    failed: f64,
    /// Rows of `llm_requests` over requests.
    rows: f64,
}

/// The experiment.
pub(crate) async fn experiment(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let direct = clients::direct(bench.lab.port()).await?;
    direct.batch_execute(TABLES).await?;
    let setup = Setup::of(POOL)
        .with("pool", "max_wait = \"120s\"")
        .with("class.billing", "reserve = 1")
        .with("class.billing", "match = [\"tag:class=billing\"]");
    let theirs = run(&direct, "pgbouncer", &bench.pgbouncer(&setup)?, length).await?;
    let ours = run(&direct, "bursar", &bench.bursar(&setup)?, length).await?;
    let mut table = Table::default();
    let mut line = |metric: &str, unit, value: fn(&Outcome) -> f64, target| {
        table.line(metric, unit, Measured::Is(value(&ours)), Measured::Is(value(&theirs)), target);
    };
    line("billing's wait, median", "ms", |side| side.waits.per_mille(500), Target::None);
    line("billing's wait, p99", "ms", |side| side.waits.per_mille(990), Target::AtMost(10.0));
    line("billing's wait, longest", "ms", |side| side.waits.max(), Target::None);
    line("rows of billing a request", "", |side| side.rows, Target::Exactly(1.0));
    line("requests that failed", "", |side| side.failed, Target::Exactly(0.0));
    line("requests done", "", |side| side.done, Target::None);
    line(
        "both tools of a request (2.4 s of thinking), median",
        "ms",
        |side| side.tools.per_mille(500),
        Target::None,
    );
    Ok(table)
}

/// What the requests of a side share.
struct Shared {
    port: u16,
    side: &'static str,
    /// What `begin` and `insert`, and the refresh, take without waiting.
    service: [Duration; 2],
    waits: Mutex<Vec<Duration>>,
    tools: Mutex<Vec<Duration>>,
}

async fn run(
    direct: &Client,
    side: &'static str,
    proxy: &Proxy,
    length: Duration,
) -> Result<Outcome, Failure> {
    let port = proxy.port();
    let service = unloaded(port).await?;
    let mut crowd = Crowd::default();
    for n in 0..CROWD {
        crowd.join(overload(port, n));
    }
    let window = Window::after(WARM_UP, length);
    tokio::time::sleep_until(window.from.into()).await;
    let shared = Arc::new(Shared { port, side, service, waits: Mutex::default(), tools: Mutex::default() });
    let mut requests = JoinSet::new();
    let mut due = window.from;
    while due < window.to {
        tokio::time::sleep_until(due.into()).await;
        let request = format!("request-{}", requests.len());
        requests.spawn(agent(shared.clone(), request));
        due += EVERY;
    }
    drop(crowd);
    let (mut done, mut failed) = (0, 0);
    let all = async {
        while let Some(request) = requests.join_next().await {
            match request.map_err(Failure::from).and_then(|result| result) {
                Ok(()) => done += 1,
                Err(failure) => {
                    eprintln!("experiments:   {side}: a request failed: {failure}");
                    failed += 1;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await?;
    let sql = format!("select count(*) from llm_requests where side = '{side}' and cost > 0");
    let rows = clients::row(direct, &sql).await?.ok_or("no count of rows")?[0].parse::<f64>()?;
    let samples = |list: &Mutex<Vec<Duration>>| {
        Samples::new(list.lock().unwrap_or_else(PoisonError::into_inner).clone())
    };
    let (waits, tools) = (samples(&shared.waits), samples(&shared.tools));
    let (done, failed) = (f64::from(done), f64::from(failed));
    Ok(Outcome { waits, tools, done, failed, rows: rows / (done + failed) })
}

/// Medians of billing's two transactions while nobody else is there.
async fn unloaded(port: u16) -> Result<[Duration; 2], Failure> {
    let client = clients::session(port, &[("tenant", "agents"), ("class", "billing")]).await?;
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..IDLE_GOES {
        let [insert, refresh] = bill(&client, "warm-up", "warm-up").await?;
        took[0].push(insert);
        took[1].push(refresh);
    }
    Ok(took.map(|mut took| {
        took.sort_unstable();
        took[IDLE_GOES / 2]
    }))
}

async fn overload(port: u16, n: u64) {
    tokio::time::sleep(Duration::from_millis(n * 5)).await;
    let Ok(client) = clients::session(port, &[("tenant", "crowd")]).await else { return };
    loop {
        for statement in ["begin", CROWD_WORK, "commit"] {
            if client.batch_execute(statement).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
                break;
            }
        }
    }
}

/// A request: two tools and its bill, all at once.
async fn agent(shared: Arc<Shared>, request: String) -> Result<(), Failure> {
    let began = Instant::now();
    let tools = async {
        let both = tokio::try_join!(tool(&shared, &request), tool(&shared, &request));
        shared.tools.lock().unwrap_or_else(PoisonError::into_inner).push(began.elapsed());
        both.map(drop)
    };
    let billing = async {
        let tags = [("tenant", "agents"), ("request_id", request.as_str()), ("class", "billing")];
        let client = clients::session(shared.port, &tags).await?;
        let took = bill(&client, shared.side, &request).await?;
        let mut waits = shared.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.extend(took.iter().zip(shared.service).map(|(took, service)| took.saturating_sub(service)));
        Ok(())
    };
    tokio::try_join!(tools, billing).map(drop)
}

/// Reads, thinks, writes.
async fn tool(shared: &Shared, request: &str) -> Result<(), Failure> {
    let client = clients::session(shared.port, &[("tenant", "agents"), ("request_id", request)]).await?;
    let insert = format!("insert into tool_runs (request) values ('{request}')");
    client.batch_execute("begin").await?;
    client.batch_execute("select 1").await?;
    tokio::time::sleep(THINK).await;
    client.batch_execute(&insert).await?;
    client.batch_execute("commit").await?;
    Ok(())
}

/// `track_request()`: add, commit, refresh. How long it took up to the end of the insert, and the refresh.
async fn bill(client: &Client, side: &str, request: &str) -> Result<[Duration; 2], Failure> {
    let began = Instant::now();
    client.batch_execute("begin").await?;
    let values = format!("('{side}', '{request}', 0.0125)");
    let insert = format!("insert into llm_requests (side, request, cost) values {values} returning id");
    let id = clients::row(client, &insert).await?.ok_or("the insert returned no row")?[0].clone();
    let inserted = began.elapsed();
    client.batch_execute("commit").await?;
    let committed = Instant::now();
    let refreshed =
        clients::row(client, &format!("select request, cost from llm_requests where id = {id}")).await?;
    if refreshed.is_none_or(|row| row[0] != request) {
        return Err("the row is not there after its commit".into());
    }
    Ok([inserted, committed.elapsed()])
}
