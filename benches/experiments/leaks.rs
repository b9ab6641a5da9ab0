//! E7: leaks among honest traffic. Transactions of one call site, one in a hundred of them slow; between them
//! transactions that nobody will end, in three ways: their request is over, its other session is gone, or
//! nothing is known but their silence. Bursar takes back what is leaked and says whose it was; PgBouncer has
//! one timeout for all.
//!
//! And clients that vanish in a transaction, on both sides: how long their backend stays in it, by
//! PostgreSQL's own word.

use crate::clients::{self, Crowd, Samples};
use crate::common::Failure;
use crate::common::lab::Setup;
use crate::report::{Measured, Table, Target};
use crate::{Bench, Proxy};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Backends.
const POOL: usize = 60;
/// Honest clients.
const HONEST: u32 = 20;
/// Pauses in their transactions: most of them, and one in a hundred.
const QUICK: Duration = Duration::from_millis(20);
const SLOW: Duration = Duration::from_millis(1_500);
/// A leak this often.
const EVERY: Duration = Duration::from_millis(250);
/// `[leak] leaked`, and `leaked_alone`.
const LEAKED: Duration = Duration::from_millis(1_000);
const ALONE: Duration = Duration::from_millis(2_000);
/// Behind the threshold, at most.
const PROMISE: f64 = 50.0;
/// Clients that vanish.
const VANISH: usize = 20;
/// Before leaks begin: the call site has to be known.
const WARM_UP: Duration = Duration::from_secs(8);
/// For what was leaked last.
const AFTER: Duration = Duration::from_secs(4);

/// What honest clients came to.
#[derive(Default)]
struct Honest {
    done: AtomicU32,
    ended: AtomicU32,
}

/// The experiment.
pub(crate) async fn experiment(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let direct = clients::direct(bench.lab.port()).await?;
    let setup = Setup::of(POOL)
        .with("leak", "hold = \"off\"")
        .with("leak", "idle = \"off\"")
        .with("leak", &format!("leaked = \"{}ms\"", LEAKED.as_millis()))
        .with("leak", &format!("leaked_alone = \"{}ms\"", ALONE.as_millis()))
        .with("leak", "mode = \"enforce\"")
        .with("leak", "force = true");
    let theirs = vanish(&direct, &bench.pgbouncer(&setup)?).await?;
    let proxy = bench.bursar(&setup)?;
    let ours = vanish(&direct, &proxy).await?;

    let honest = Arc::new(Honest::default());
    let mut crowd = Crowd::default();
    (0..HONEST).for_each(|n| crowd.join(work(proxy.port(), n, honest.clone())));
    tokio::time::sleep(WARM_UP).await;
    let (from, mut held) = (Instant::now(), Vec::new());
    while from.elapsed() < length {
        held.push(leak(proxy.port(), held.len()).await?);
        tokio::time::sleep(EVERY).await;
    }
    tokio::time::sleep(AFTER).await;
    let console = clients::console(proxy.port()).await?;
    let found = found(&console, held.len()).await?;
    drop(crowd);

    let mut table = Table::default();
    let (injected, count) = (held.len() as f64, |count: u32| Measured::Is(f64::from(count)));
    table.line("leaks", "", Measured::Is(injected), Measured::No, Target::None);
    table.line(
        "taken back",
        "",
        Measured::Is(found.late.count() as f64),
        Measured::No,
        Target::Exactly(injected),
    );
    table.line(
        "found behind their threshold, median",
        "ms",
        Measured::Is(found.late.per_mille(500)),
        Measured::No,
        Target::None,
    );
    table.line(
        "found behind their threshold, longest",
        "ms",
        Measured::Is(found.late.max()),
        Measured::No,
        Target::AtMost(PROMISE),
    );
    table.line(
        "named by request, route and call site",
        "",
        Measured::Is(found.named),
        Measured::No,
        Target::Exactly(injected),
    );
    let (done, ended) = (honest.done.load(Ordering::Relaxed), honest.ended.load(Ordering::Relaxed));
    table.line("honest transactions", "", count(done), Measured::No, Target::None);
    table.line("of these ended by Bursar", "", count(ended), Measured::No, Target::Exactly(0.0));
    table.line(
        "a vanished client's transaction is over, median",
        "ms",
        Measured::Is(ours.per_mille(500)),
        Measured::Is(theirs.per_mille(500)),
        Target::None,
    );
    table.line(
        "a vanished client's transaction is over, longest",
        "ms",
        Measured::Is(ours.max()),
        Measured::Is(theirs.max()),
        Target::AtMost(PROMISE),
    );
    Ok(table)
}

/// An honest client: one transaction after another, each idle for a while.
async fn work(port: u16, n: u32, honest: Arc<Honest>) {
    let Ok(client) = clients::session(port, &[("tenant", "shop"), ("route", "/orders")]).await else {
        return;
    };
    for round in 0_u32.. {
        let slow = (round * HONEST + n).is_multiple_of(100);
        let transaction = async {
            client.batch_execute("begin").await?;
            client.batch_execute("select 1 as orders").await?;
            tokio::time::sleep(if slow { SLOW } else { QUICK }).await;
            client.batch_execute("commit").await
        };
        match transaction.await {
            Ok(()) => honest.done.fetch_add(1, Ordering::Relaxed),
            Err(_) => {
                let _ = client.batch_execute("rollback").await;
                honest.ended.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// One transaction that nobody will end.
async fn leak(port: u16, number: usize) -> Result<Client, Failure> {
    let client = clients::session(port, &[("tenant", "shop"), ("route", "/orders")]).await?;
    client.batch_execute(&format!("set bursar.call_site = 'orders.rs:{number}'")).await?;
    let request = format!("set bursar.request_id = 'leak-{number}'");
    client.batch_execute(&request).await?;
    let sibling = if number % 3 == 1 {
        let sibling = clients::session(port, &[("tenant", "shop"), ("route", "/orders")]).await?;
        sibling.batch_execute(&request).await?;
        sibling.batch_execute("select 2").await?;
        Some(sibling)
    } else {
        None
    };
    client.batch_execute("begin").await?;
    client.batch_execute("select 1 as orders").await?;
    if number.is_multiple_of(3) {
        client.batch_execute("set bursar.request_id = ''").await?;
    }
    drop(sibling);
    Ok(client)
}

/// What SHOW LEAKS says of the leaks injected.
struct Found {
    /// Behind the threshold.
    late: Samples,
    named: f64,
}

async fn found(console: &Client, injected: usize) -> Result<Found, Failure> {
    let (mut late, mut named) = (Vec::new(), 0.0);
    for number in 0..injected {
        let sql = format!(
            "select idle_ms, threshold_ms, route, call_site, evidence from bursar.leaks \
             where class = 'leaked' and outcome = 'reclaimed' and request = 'leak-{number}'"
        );
        let Some(row) = clients::row(console, &sql).await? else { continue };
        let mut threshold = Duration::from_millis(row[1].parse()?);
        if row[4] == "long_idle" {
            threshold = threshold.max(ALONE);
        }
        late.push(Duration::from_millis(row[0].parse()?).saturating_sub(threshold));
        named += f64::from(row[2] == "/orders" && row[3] == format!("orders.rs:{number}"));
    }
    Ok(Found { late: Samples::new(late), named })
}

/// Clients that vanish in a transaction; how long PostgreSQL still has it.
async fn vanish(direct: &Client, proxy: &Proxy) -> Result<Samples, Failure> {
    let open = "select count(*) from pg_stat_activity where state = 'idle in transaction'";
    let is_open = async || -> Result<bool, Failure> {
        Ok(clients::row(direct, open).await?.is_some_and(|row| row[0] != "0"))
    };
    let mut took = Vec::new();
    for _ in 0..VANISH {
        let client = clients::session(proxy.port(), &[("tenant", "shop")]).await?;
        client.batch_execute("begin").await?;
        client.batch_execute("select txid_current()").await?;
        while !is_open().await? {}
        let gone = Instant::now();
        drop(client);
        while is_open().await? {
            if gone.elapsed() > Duration::from_secs(10) {
                break;
            }
        }
        took.push(gone.elapsed());
    }
    Ok(Samples::new(took))
}
