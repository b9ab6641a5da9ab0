//! E4: the application of problem S1 after its own fix. Fifty users of ten tenants on seventeen backends: twenty
//! only read, ten write, the others do four reads to a write. Every request first asks who it is (session and
//! roles, two statements of their own), then reads in one statement of 10 to 50 ms without a transaction, or
//! writes in a transaction of 100 to 500 ms, with its line in the audit log; then its user thinks for half a
//! second to one and a half.
//!
//! The times are the users': round trips, waits and the work itself.

use crate::clients::{self, Samples, Window};
use crate::common::Failure;
use crate::common::lab::Setup;
use crate::occupancy;
use crate::report::{Measured, Table, Target};
use crate::{Bench, Proxy};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_postgres::Client;

/// Backends: what Prisma takes on eight cores, and S1's limit of users.
const POOL: usize = 17;
const READERS: u64 = 20;
const WRITERS: u64 = 10;
const USERS: u64 = 50;
const TENANTS: u64 = 10;
/// Before requests count.
const WARM_UP: Duration = Duration::from_secs(2);
/// What a request under way at the end may still take.
const PATIENCE: Duration = Duration::from_secs(10);

const TABLES: &str = "drop table if exists app_sessions, app_roles, app_orders, app_audit; \
     create table app_sessions (id int primary key, expires timestamptz not null); \
     create table app_roles (session int primary key, role text not null); \
     create table app_orders (id bigserial primary key, owner int not null, amount numeric not null); \
     create table app_audit (id bigserial primary key, owner int not null); \
     insert into app_sessions select n, now() + interval '1 day' from generate_series(0, 49) n; \
     insert into app_roles select n, 'sales' from generate_series(0, 49) n";

/// One side.
struct Outcome {
    auth: Samples,
    reads: Samples,
    writes: Samples,
    failed: f64,
    /// Share of the backends that is in use, on average.
    used: f64,
    /// Lines of the audit log over orders.
    audited: f64,
}

/// The experiment.
pub(crate) async fn experiment(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let direct = clients::direct(bench.lab.port()).await?;
    let setup = Setup::of(POOL).with("pool", "profile = \"prisma\"");
    let theirs = run(&direct, &bench.pgbouncer(&setup)?, bench.lab.port(), length).await?;
    let ours = run(&direct, &bench.bursar(&setup)?, bench.lab.port(), length).await?;
    let mut table = Table::default();
    let mut line = |metric: &str, unit, value: fn(&Outcome) -> f64, target| {
        table.line(metric, unit, Measured::Is(value(&ours)), Measured::Is(value(&theirs)), target);
    };
    line("authentication (2 statements), p99", "ms", |side| side.auth.per_mille(990), Target::AtMost(100.0));
    line("read (10 to 50 ms of work), p99", "ms", |side| side.reads.per_mille(990), Target::AtMost(200.0));
    line(
        "write (100 to 500 ms of work), p99",
        "ms",
        |side| side.writes.per_mille(990),
        Target::AtMost(1000.0),
    );
    line("backends in use, of 1", "", |side| side.used, Target::AtMost(0.5));
    line("requests that failed or timed out", "", |side| side.failed, Target::Exactly(0.0));
    line("lines of the audit log an order", "", |side| side.audited, Target::Exactly(1.0));
    #[allow(clippy::cast_precision_loss, reason = "well below what an f64 counts")]
    line("requests done", "", |side| (side.reads.count() + side.writes.count()) as f64, Target::None);
    Ok(table)
}

/// What the users of a side share.
#[derive(Default)]
struct Times {
    auth: Mutex<Vec<Duration>>,
    reads: Mutex<Vec<Duration>>,
    writes: Mutex<Vec<Duration>>,
    failed: Mutex<Vec<String>>,
}

fn note<T>(list: &Mutex<Vec<T>>, one: T) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push(one);
}

async fn run(direct: &Client, proxy: &Proxy, server: u16, length: Duration) -> Result<Outcome, Failure> {
    direct.batch_execute(TABLES).await?;
    let window = Window::after(WARM_UP, length);
    let times = Arc::new(Times::default());
    let mut users = JoinSet::new();
    for n in 0..USERS {
        users.spawn(user(proxy.port(), n, window, times.clone()));
    }
    let in_use = occupancy::mean_in_use(server, window).await?;
    let all = async { while users.join_next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, all).await?;
    let count = "select (select count(*) from app_audit), (select count(*) from app_orders)";
    let rows = clients::row(direct, count).await?.ok_or("no counts")?;
    let [audited, orders] = [rows[0].parse::<f64>()?, rows[1].parse::<f64>()?];
    let taken = |list: &Mutex<Vec<Duration>>| {
        Samples::new(std::mem::take(&mut *list.lock().unwrap_or_else(PoisonError::into_inner)))
    };
    let failures = times.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(first) = failures.first() {
        eprintln!("experiments:   a request failed: {first}");
    }
    #[allow(clippy::cast_precision_loss, reason = "well below what an f64 counts")]
    Ok(Outcome {
        auth: taken(&times.auth),
        reads: taken(&times.reads),
        writes: taken(&times.writes),
        failed: failures.len() as f64,
        used: in_use / POOL as f64,
        audited: audited / orders,
    })
}

/// Requests of one user, one after another over one connection.
async fn user(port: u16, n: u64, window: Window, times: Arc<Times>) {
    let tenant = format!("tenant-{}", n % TENANTS);
    let client = match clients::session(port, &[("tenant", tenant.as_str())]).await {
        Ok(client) => client,
        Err(error) => return note(&times.failed, clients::in_full(&error)),
    };
    for request in 0.. {
        tokio::time::sleep(Duration::from_millis(rand::random_range(500..1_500))).await;
        let began = Instant::now();
        if began >= window.to {
            return;
        }
        let writes = if n < READERS { false } else { n < READERS + WRITERS || request % 5 == 4 };
        let outcome = one_request(&client, n, request, writes).await;
        if !window.has(began) {
            continue;
        }
        match outcome {
            Ok([auth, work]) => {
                note(&times.auth, auth);
                note(if writes { &times.writes } else { &times.reads }, work);
            }
            Err(error) => note(&times.failed, clients::in_full(&error)),
        }
    }
}

/// How long it took to know who asks, and to do what is asked.
async fn one_request(
    client: &Client,
    n: u64,
    request: u64,
    writes: bool,
) -> Result<[Duration; 2], tokio_postgres::Error> {
    let began = Instant::now();
    client.batch_execute(&format!("set bursar.request_id = 'user-{n}-{request}'")).await?;
    clients::row(client, &format!("select expires > now() from app_sessions where id = {n}")).await?;
    clients::row(client, &format!("select role from app_roles where session = {n}")).await?;
    let known = Instant::now();
    if writes {
        let work = f64::from(rand::random_range(100..500)) / 1e3;
        client.batch_execute("begin").await?;
        client.batch_execute(&format!("insert into app_orders (owner, amount) values ({n}, 12.5)")).await?;
        client.batch_execute(&format!("select pg_sleep({work})")).await?;
        client.batch_execute(&format!("insert into app_audit (owner) values ({n})")).await?;
        client.batch_execute("commit").await?;
    } else {
        let work = f64::from(rand::random_range(10..50)) / 1e3;
        let sql = format!("select pg_sleep({work}), count(*) from app_orders where owner = {n}");
        clients::row(client, &sql).await?;
    }
    Ok([known - began, known.elapsed()])
}
