//! E3: an application that keeps a transaction open for a whole request, to tell row-level security whose it
//! is, before a pool of seventeen.
//!
//! Time is scaled: a second of the problem is a tenth of one here, in everything that the clients do. What
//! statements take is not: that is PostgreSQL's.

use crate::Bench;
use crate::clients::{self, Crowd, Samples, Window};
use crate::common::Failure;
use crate::common::lab::{Proxy, Setup};
use crate::common::wire::Client as Wire;
use crate::report::{Measured, Table, Target};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Of the problem's time, in ours.
const SCALE: f64 = 0.1;
/// Prisma's pool on eight cores.
const POOL: usize = 17;
const USERS: u64 = 100;
/// A request takes so long, in seconds: a median, and bounds.
const MEDIAN: f64 = 3.0;
const BOUNDS: (f64, f64) = (1.0, 60.0);
/// Between two requests of a user, seconds.
const THINK: std::ops::Range<f64> = 1.0..3.0;
/// A statement that has no answer by then has timed out, seconds.
const PATIENCE: f64 = 10.0;
/// Statements of a request, behind the one that says whose it is.
const STATEMENTS: u32 = 8;
/// One request in so many writes, from this statement on.
const WRITERS: u32 = 5;
const FIRST_WRITE: u32 = 6;
const WARM_UP: Duration = Duration::from_secs(3);

/// What became of the requests that ended in the window.
#[derive(Default)]
struct Done {
    completed: u32,
    timed_out: u32,
    failed: u32,
    /// Time that statements took, waits included.
    took: Vec<Duration>,
}

/// E3.
pub(crate) async fn transactions(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    Wire::connect(bench.lab.port())?.query(
        "drop table if exists orders; create table orders (tenant text, id serial, note text);\
         insert into orders (tenant, note) select 't' || n % 100, 'x' from generate_series(1, 1000) n;\
         create index on orders (tenant)",
    )?;
    let setup = Setup::of(POOL);
    let off = setup.clone().with("parking", "mode = \"off\"");
    let on = setup.clone().with("parking", "mode = \"enforce\"");
    let theirs = run(&bench.pgbouncer(&setup)?, length).await?;
    let without = run(&bench.bursar(&off)?, length).await?;
    let ours = run(&bench.bursar(&on)?, length).await?;
    let mut table = Table::default();
    let rate = |done: &Done| f64::from(done.completed) / length.as_secs_f64();
    let shared = |done: &Done| {
        let all = f64::from(done.completed + done.timed_out + done.failed);
        f64::from(done.timed_out) / all.max(1.0)
    };
    table.line("requests done", "1/s", Measured::Is(rate(&ours)), Measured::Is(rate(&theirs)), Target::None);
    let times = Measured::Is(rate(&ours) / rate(&theirs).max(0.1));
    table.line("the same over PgBouncer's", "", times, Measured::No, Target::AtLeast(4.0));
    let [timeouts, their_timeouts] = [&ours, &theirs].map(|done| Measured::Is(done.timed_out.into()));
    table.line("requests that timed out", "", timeouts, their_timeouts, Target::Exactly(0.0));
    let [part, their_part] = [&ours, &theirs].map(|done| Measured::Is(shared(done)));
    table.line("the same, of all", "", part, their_part, Target::None);
    let [failed, their_failed] = [&ours, &theirs].map(|done| Measured::Is(done.failed.into()));
    table.line("requests that failed otherwise", "", failed, their_failed, Target::Exactly(0.0));
    let [p99, their_p99] =
        [&ours, &theirs].map(|done| Measured::Is(Samples::new(done.took.clone()).per_mille(990)));
    table.line("a statement, p99", "ms", p99, their_p99, Target::None);
    table.group("without parking".to_owned());
    table.line("requests done", "1/s", Measured::Is(rate(&without)), Measured::No, Target::None);
    table.line(
        "requests that timed out, of all",
        "",
        Measured::Is(shared(&without)),
        Measured::No,
        Target::None,
    );
    Ok(table)
}

async fn run(proxy: &Proxy, length: Duration) -> Result<Done, Failure> {
    let window = Window::after(WARM_UP, length);
    let done = Arc::new(Mutex::new(Done::default()));
    let mut crowd = Crowd::default();
    for n in 0..USERS {
        crowd.join(user(proxy.port(), n, window, done.clone()));
    }
    tokio::time::sleep_until(window.to.into()).await;
    drop(crowd);
    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *done))
}

fn scaled(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * SCALE)
}

/// How a request ended badly.
enum Bad {
    TimedOut,
    Failed,
}

async fn user(port: u16, n: u64, window: Window, done: Arc<Mutex<Done>>) {
    let mut random = StdRng::seed_from_u64(n);
    let tenant = format!("t{n}");
    tokio::time::sleep(scaled(random.random_range(0.0..THINK.end))).await;
    loop {
        let Ok(client) = clients::session(port, &[]).await else {
            tokio::time::sleep(scaled(1.0)).await;
            continue;
        };
        // As long as all goes well it keeps its connection, as an application's pool does.
        loop {
            let mut took = Vec::new();
            let ended = request(&client, &tenant, &mut random, &mut took).await;
            if window.has(Instant::now()) {
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                match ended {
                    Ok(()) => done.completed += 1,
                    Err(Bad::TimedOut) => done.timed_out += 1,
                    Err(Bad::Failed) => done.failed += 1,
                }
                done.took.append(&mut took);
            }
            tokio::time::sleep(scaled(random.random_range(THINK))).await;
            if ended.is_err() {
                break;
            }
        }
    }
}

/// One request: a transaction with pauses between its statements, in which the application works.
async fn request(
    client: &tokio_postgres::Client,
    tenant: &str,
    random: &mut StdRng,
    took: &mut Vec<Duration>,
) -> Result<(), Bad> {
    // Lognormal with a deviation of 1, by Box and Muller.
    let (one, two): (f64, f64) = (random.random_range(f64::EPSILON..1.0), random.random());
    let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos();
    let length = scaled((MEDIAN * normal.exp()).clamp(BOUNDS.0, BOUNDS.1));
    let writes = random.random_ratio(1, WRITERS);
    in_time(client.batch_execute("begin"), took).await?;
    let context = format!("select set_config('app.tenant_id', '{tenant}', true)");
    in_time(client.batch_execute(&context), took).await?;
    for n in 0..STATEMENTS {
        tokio::time::sleep(length / STATEMENTS).await;
        let read = "select id, note from orders where tenant = current_setting('app.tenant_id') limit 20";
        let write = "insert into orders (tenant, note) values (current_setting('app.tenant_id'), 'new')";
        let text = if writes && n >= FIRST_WRITE { write } else { read };
        in_time(client.batch_execute(text), took).await?;
    }
    in_time(client.batch_execute("commit"), took).await
}

async fn in_time(
    statement: impl Future<Output = Result<(), tokio_postgres::Error>>,
    took: &mut Vec<Duration>,
) -> Result<(), Bad> {
    let began = Instant::now();
    let ended = tokio::time::timeout(scaled(PATIENCE), statement).await;
    took.push(began.elapsed());
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Bad::Failed),
        Err(_) => Err(Bad::TimedOut),
    }
}
