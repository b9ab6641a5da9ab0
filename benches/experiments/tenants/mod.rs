//! E9: two hundred tenants under row-level security, at random and with faults, every answer compared with
//! what the model says it must be. At PgBouncer the same clients SET the setting itself, outside of transactions,
//! one statement after the other and without faults: that shows that they notice foreign rows where there are.
//!
//! [`violations`] is E10: what Bursar says of isolation, over the same load without faults. [`cost`] is what the
//! fence adds to a statement.

mod client;
pub(crate) mod cost;
mod link;
mod model;
#[allow(dead_code, reason = "written for the tests, which use all of it")]
#[path = "../../../tests/postgres/support/msg.rs"]
mod msg;
pub(crate) mod violations;

use crate::common::Failure;
use crate::common::lab::{Proxy, Setup};
use crate::report::{Measured, Table, Target};
use crate::{Bench, Load};
use client::{Client, Manner, Shared};
use link::Link;
use model::{TENANTS, Tally, Written};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Clients at once.
const CLIENTS: u64 = 24;
/// Backends, but for session mode.
const POOL: usize = 8;
/// Between two faults on PostgreSQL's side; one in ten ends a backend, the others cancel.
const BETWEEN_FAULTS: Duration = Duration::from_millis(20);
/// PgBouncer gets this part of the operations of a configuration.
const OF_PGBOUNCER: u64 = 10;

/// What all the clients of one load came to.
#[derive(Default)]
struct Outcome {
    tally: Tally,
    cancels: u64,
    drops: u64,
    ended: u64,
    /// Acknowledged rows that are not there.
    vanished: u64,
    took: Duration,
}

impl Outcome {
    fn add(&mut self, other: Outcome) {
        self.tally.add(other.tally);
        self.cancels += other.cancels;
        self.drops += other.drops;
        self.ended += other.ended;
        self.vanished += other.vanished;
        self.took += other.took;
    }
}

/// A configuration of Bursar: a heading, its file, and whether functions may change the context.
fn configurations() -> [(&'static str, Setup, bool); 5] {
    let of = |pool: usize, policy: &str| {
        Setup::of(pool)
            .with("tenant_context", "key = \"app.tenant_id\"")
            .with("tenant_context", &format!("policy = \"{policy}\""))
            .with("pool", "reuse = \"round_robin\"")
    };
    let parked = of(POOL, "strict")
        .with("parking", "mode = \"enforce\"")
        .with("parking", "min_gap = \"1ms\"")
        .with("parking", "only_under_pressure = false");
    [
        ("strict", of(POOL, "strict"), true),
        ("strict, BEGIN sent at once", of(POOL, "strict").with("pool", "lazy_begin = false"), true),
        ("strict, transactions parked", parked, true),
        ("trusted", of(POOL, "trusted"), false),
        ("strict, session mode", of(CLIENTS as usize + 4, "strict").with("pool", "mode = \"session\""), true),
    ]
}

/// The experiment.
pub(crate) fn experiment(bench: &Bench, load: Load) -> Result<Table, Failure> {
    let mut superuser = prepare(bench)?;
    let configurations = configurations();
    let each = load.operations.div_ceil(configurations.len() as u64);
    let manner = Manner { tags: false, nobody: true, hidden: false, faults: false, tenants: TENANTS };
    let proxy = bench.pgbouncer(&Setup::of(POOL))?;
    let theirs = run(&proxy, &mut superuser, manner, each.div_ceil(OF_PGBOUNCER), load.seed)?;
    drop(proxy);

    let mut table = Table::default();
    let mut all = Outcome::default();
    let mut violations = 0.0;
    for (number, (name, setup, hidden)) in configurations.into_iter().enumerate() {
        let manner = Manner { tags: true, faults: true, hidden, ..manner };
        let admin = bursar::cli::throwaway::free_port()?;
        let proxy = bench.bursar(&setup.with("admin", &format!("address = \"127.0.0.1:{admin}\"")))?;
        let seed = load.seed.wrapping_mul(100).wrapping_add(number as u64);
        let ours = run(&proxy, &mut superuser, manner, each, seed)?;
        // What the functions leave on a backend is V4, and found.
        let kinds = (1..=7).filter(|kind| *kind != 4 || !hidden);
        violations += kinds.map(|kind| violations::counted(admin, kind)).sum::<Result<f64, Failure>>()?;
        eprintln!("experiments: e9 {name}: {} operations in {:.0?}", ours.tally.compared, ours.took);
        table.group(name.into());
        lines(&mut table, each, &ours, None);
        all.add(ours);
    }
    table.group("all of them".into());
    lines(&mut table, load.operations, &all, Some(&theirs));
    let counted = Measured::Is(violations);
    table.line("violations that Bursar counted", "", counted, Measured::No, Target::Exactly(0.0));
    let mut line = |metric: &str, count: u64| {
        table.line(metric, "", Measured::Is(count as f64), Measured::No, Target::None);
    };
    line("answers that a fault took away", all.tally.lost);
    line("cancels", all.cancels);
    line("backends ended", all.ended);
    line("connections dropped", all.drops);
    let rate = |of: &Outcome| Measured::Is(of.tally.compared as f64 / of.took.as_secs_f64());
    table.line("operations a second", "", rate(&all), rate(&theirs), Target::None);
    Ok(table)
}

fn lines(table: &mut Table, operations: u64, ours: &Outcome, theirs: Option<&Outcome>) {
    let mut line = |metric: &str, pick: fn(&Outcome) -> u64, target: Target| {
        let theirs = theirs.map_or(Measured::No, |theirs| Measured::Is(pick(theirs) as f64));
        table.line(metric, "", Measured::Is(pick(ours) as f64), theirs, target);
    };
    line("operations", |of| of.tally.compared, Target::AtLeast(operations as f64));
    line("rows of another tenant", |of| of.tally.foreign, Target::Exactly(0.0));
    line("rows missing", |of| of.tally.missing, Target::Exactly(0.0));
    line("other answers that are wrong", |of| of.tally.wrong, Target::Exactly(0.0));
    line("acknowledged rows that are not there", |of| of.vanished, Target::Exactly(0.0));
}

/// The tables and the role, and a connection past every proxy.
fn prepare(bench: &Bench) -> Result<Link, Failure> {
    let mut superuser = Link::login(bench.lab.port(), "postgres")?;
    // Who has that name is left alone when a proxy starts.
    superuser.ask("set application_name = 'experiments'")?.map_err(io::Error::from)?;
    let role = superuser.ask("select 1 from pg_roles where rolname = 'app'")?.map_err(io::Error::from)?;
    if role.is_empty() {
        superuser.ask("create role app login")?.map_err(io::Error::from)?;
    }
    for sql in model::SETUP {
        superuser.ask(sql)?.map_err(io::Error::from)?;
    }
    Ok(superuser)
}

/// One load, to its end.
fn run(
    proxy: &Proxy,
    superuser: &mut Link,
    manner: Manner,
    operations: u64,
    seed: u64,
) -> Result<Outcome, Failure> {
    superuser.ask("truncate written")?.map_err(io::Error::from)?;
    let (shared, over, began) = (Shared::default(), AtomicBool::new(false), Instant::now());
    let port = proxy.port();
    let (seen, ended) = std::thread::scope(|scope| {
        let workers = (0..CLIENTS)
            .map(|number| {
                let random = StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(number));
                let shared = &shared;
                scope.spawn(move || Client::new(port, manner, shared, random)?.work(operations))
            })
            .collect();
        let harassing = manner.faults.then(|| scope.spawn(|| harass(superuser, &shared, &over)));
        let seen = gather(workers);
        over.store(true, Ordering::Relaxed);
        (seen, harassing.map(|harassing| harassing.join()))
    });
    let (mut tally, written) = seen?;
    let ended = match ended {
        Some(harassed) => harassed.map_err(|_| "the source of faults has panicked")??,
        None => 0,
    };
    let took = began.elapsed();
    let vanished = look_after(superuser, &written, &mut tally)?;
    if manner.tags {
        tally.examples.iter().for_each(|example| eprintln!("experiments: {example}"));
    }
    let [cancels, drops] = [&shared.cancels, &shared.drops].map(|count| count.load(Ordering::Relaxed));
    Ok(Outcome { tally, cancels, drops, ended, vanished, took })
}

/// What all the clients have seen and written; waits for every one.
fn gather(
    workers: Vec<std::thread::ScopedJoinHandle<'_, io::Result<(Tally, Written)>>>,
) -> Result<(Tally, Written), Failure> {
    let done: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
    let (mut tally, mut written) = (Tally::default(), Written::new());
    for client in done {
        let (seen, wrote) = client.map_err(|_| "a client has panicked")??;
        tally.add(seen);
        written.extend(wrote);
    }
    Ok((tally, written))
}

/// Cancels what runs, and ends backends, until it is over; how many it has ended.
fn harass(superuser: &mut Link, shared: &Shared, over: &AtomicBool) -> Result<u64, io::Error> {
    let mut ended = 0;
    for round in 0_u32.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let kill = round.is_multiple_of(10);
        let how = if kill { "pg_terminate_backend" } else { "pg_cancel_backend" };
        let victim = format!(
            "select {how}(pid) from pg_stat_activity where usename = 'app' order by random() limit 1"
        );
        let hit = superuser.ask(&victim)?.is_ok_and(|rows| rows.first().is_some_and(|row| row[0] == "t"));
        ended += u64::from(hit && kill);
        shared.cancels.fetch_add(u64::from(hit && !kill), Ordering::Relaxed);
        std::thread::sleep(BETWEEN_FAULTS);
    }
    Ok(ended)
}

/// What the table has against what the clients know; how many acknowledged rows are missing.
fn look_after(superuser: &mut Link, written: &Written, tally: &mut Tally) -> Result<u64, Failure> {
    let mut there = BTreeMap::new();
    let sql = "select client, substr(tenant, 2), count(*) from written group by 1, 2";
    for row in superuser.ask(sql)?.map_err(io::Error::from)? {
        there.insert((row[0].parse::<u32>()?, row[1].parse::<u32>()?), row[2].parse::<u64>()?);
    }
    let mut vanished = 0;
    for (owner, tenants) in written {
        for (tenant, count) in tenants {
            let found = there.remove(&(*owner, *tenant)).unwrap_or(0);
            vanished += count.known.saturating_sub(found);
            tally.wrong += found.saturating_sub(count.known + count.unknown);
        }
    }
    // Rows that nobody has written.
    tally.wrong += there.values().sum::<u64>();
    Ok(vanished)
}

/// The value of one series at Bursar's own address; 0 of one that is not there.
fn series(admin: u16, name: &str) -> Result<f64, Failure> {
    let mut stream = TcpStream::connect(("127.0.0.1", admin))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Ok(value.unwrap_or(0.0))
}
