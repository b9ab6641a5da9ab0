//! Many clients, and big values: the bounds that a pool promises hold under pressure.

use crate::support::watch::{leases, peak_mib, printed};
use crate::support::{Cluster, Config, Db, Proxy, Wire, msg, until};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: usize = 20;
/// What the proxy may grow by while something big streams through, in MiB.
const ROOM: u64 = 64;
const MB: usize = 1_000_000;

/// Counts a pool's backends by a connection of its own, until told to stop; returns the most it saw and how
/// often it looked. Not the one that Bursar asks over who waits for locks, beside every pool.
fn watch(cluster: &Cluster, database: &str, over: &AtomicBool) -> (usize, usize) {
    let mut admin = cluster.admin();
    let count = format!(
        "select count(*) from pg_stat_activity \
         where datname = '{database}' and usename = 'app' and application_name <> 'bursar'"
    );
    let (mut most, mut looks) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        most = most.max(admin.query(&count).value().parse().expect("a count"));
        looks += 1;
    }
    (most, looks)
}

fn pgbench(proxy: &Proxy, database: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(Cluster::shared().program("pgbench"));
    command.args(["-n", "-h", "127.0.0.1", "-p", &proxy.addr().port().to_string(), "-U", "app"]);
    let output = command.args(arguments).arg(database).output().expect("pgbench runs");
    let text = printed(&output);
    assert!(output.status.success(), "pgbench {arguments:?}: {text}");
    text
}

/// Runs transactions; each must succeed.
fn transactions(proxy: &Proxy, database: &str, arguments: &[&str]) {
    let text = pgbench(proxy, database, arguments);
    assert!(text.contains("number of failed transactions: 0 (0.000%)"), "{arguments:?}: {text}");
    let processed =
        text.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let (done, due) = processed.and_then(|line| line.split_once('/')).expect("pgbench says how many");
    assert_eq!(done, due, "{arguments:?}: {text}");
}

fn pgbench_with(protocol: &str) {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(SIZE).lazy().with("pool", "max_wait = \"60s\""));
    pgbench(&proxy, db.name(), &["-i", "-q"]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (cluster, database) = (db.cluster(), db.name());
        let watcher = scope.spawn(|| watch(cluster, database, &over));
        for (clients, each) in [("1", "100"), ("50", "20"), ("1000", "5")] {
            transactions(&proxy, db.name(), &["-M", protocol, "-N", "-c", clients, "-j", "2", "-t", each]);
        }
        over.store(true, Ordering::Relaxed);
        let (most, looks) = watcher.join().expect("the watcher");
        assert!(looks > 10, "the watcher looked only {looks} times");
        assert!(most > 1 && most <= SIZE, "{most} backends of {SIZE}");
    });
    assert_eq!(db.value("select count(*) from pgbench_history"), (100 + 50 * 20 + 1000 * 5).to_string());
    assert_eq!(leases(&proxy), 0);
    proxy.stop();
}

#[test]
fn pgbench_finds_no_fault_in_the_simple_protocol() {
    pgbench_with("simple");
}

#[test]
fn nor_in_the_extended_one() {
    pgbench_with("extended");
}

/// Named statements pin their backend to the session, so there are only as many sessions as backends.
#[test]
fn nor_with_prepared_statements() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(SIZE).lazy());
    pgbench(&proxy, db.name(), &["-i", "-q"]);
    transactions(&proxy, db.name(), &["-M", "prepared", "-N", "-c", "20", "-j", "2", "-t", "20"]);
    assert!(db.pids().len() <= SIZE);
    proxy.stop();
}

/// One request: tagged, in a transaction, with an answer only it can expect. Ten a tenant, so that no
/// tenant comes above its half of the pool.
fn serve_request(proxy: &Proxy, number: usize, start: &Barrier) {
    let request = format!("r-{number}");
    let mut session = proxy.connect_for(&format!("tenant-{}", number % 10), &request);
    start.wait();
    assert_eq!(session.batch("begin").trace(), "C(BEGIN) Z(T)");
    assert_eq!(session.query(&format!("select 'answer {number}'")).value(), format!("answer {number}"));
    assert_eq!(session.query("show bursar.request_id").value(), request);
    assert_eq!(session.batch("commit").trace(), "C(COMMIT) Z(I)");
    session.bye();
}

#[test]
fn a_hundred_tagged_sessions_at_once_all_succeed_and_leave_nothing() {
    const SESSIONS: usize = 100;
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(SIZE).lazy().with("pool", "max_wait = \"30s\""));
    let start = Barrier::new(SESSIONS);
    std::thread::scope(|scope| {
        for number in 0..SESSIONS {
            let (proxy, start) = (&proxy, &start);
            scope.spawn(move || serve_request(proxy, number, start));
        }
    });
    assert_eq!(leases(&proxy), 0);
    assert_eq!(db.backends("state <> 'idle'"), 0, "no transaction is open");
    assert!(db.pids().len() <= SIZE);
    let mut console = proxy.console();
    let served = "select leases_total, leases_now, rejections from bursar.requests";
    let rows = console.query(served).rows();
    assert_eq!(rows.len(), SESSIONS);
    assert!(rows.iter().all(|row| row.iter().flatten().eq(["1", "0", "0"])), "{rows:?}");
    assert_eq!(console.query("show leaks").rows().len(), 0);
    proxy.stop();
}

/// Asks, and holds the proxy's memory against [`ROOM`].
fn within_bounds(proxy: &Proxy, what: &str, ask: impl FnOnce(&mut Wire)) {
    let mut client = proxy.connect();
    client.batch("select 1");
    let before = peak_mib(proxy);
    ask(&mut client);
    let grown = peak_mib(proxy) - before;
    assert!(grown < ROOM, "{what}: the proxy grew by {grown} MiB from {before}");
    assert_eq!(client.query("select 1").value(), "1", "and the session goes on after {what}");
    client.bye();
}

#[test]
fn big_values_stream_through_in_bounded_memory() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().lazy());
    within_bounds(&proxy, "a row of 100 MB", |client| {
        client.send(&msg::query(&format!("select repeat('x', {})", 100 * MB)));
        let reply = client.recv_reply();
        assert_eq!(reply.trace(), "T D C(SELECT 1) Z(I)");
        assert_eq!(reply.messages[1].body.len(), 2 + 4 + 100 * MB);
    });
    within_bounds(&proxy, "100 MB of small rows", |client| {
        let rows = client.query("select repeat('y', 1000) from generate_series(1, 100000)");
        assert_eq!(rows.messages.iter().filter(|message| message.kind == b'D').count(), 100_000);
    });
    let big = "z".repeat(50 * MB);
    within_bounds(&proxy, "a parameter of 50 MB", |client| {
        let parts = [
            msg::parse("", "select length($1)"),
            msg::bind_with("", "", &[Some(&big)]),
            msg::execute("", 0),
            msg::sync(),
        ];
        assert_eq!(client.ask(&parts.concat()).value(), (50 * MB).to_string());
    });
    within_bounds(&proxy, "a query of 50 MB", |client| {
        assert_eq!(client.query(&format!("select length('{big}')")).value(), (50 * MB).to_string());
    });
    proxy.stop();
}

/// More than the kernel keeps between two sockets, so that Bursar has to wait for its client, and moves it in steps.
#[test]
fn a_long_result_reaches_a_slow_client_whole() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2).lazy());
    let (mut slow, mut other) = (proxy.connect(), proxy.connect());
    slow.send(&msg::query(&format!(
        "select repeat('x', {MB}) || to_char(i, 'FM000') from generate_series(1, 150) i"
    )));
    assert_eq!(slow.recv().map(|message| message.kind), Some(b'T'));
    for row in 1..=150 {
        // What it is slow by.
        for _ in 0..5 {
            assert_eq!(other.query("select 7").value(), "7");
        }
        let message = slow.recv().expect("a row");
        let value = &message.body[2 + 4..];
        assert!(value.len() == MB + 3 && value.ends_with(format!("{row:03}").as_bytes()), "row {row}");
    }
    assert_eq!(slow.recv_reply().trace(), "C(SELECT 150) Z(I)");
    assert_eq!(slow.query("select 1").value(), "1", "and the session goes on");
    for client in [slow, other] {
        client.bye();
    }
    proxy.stop();
}

/// Each is opened while the one before is idle already.
#[test]
fn min_idle_is_reached_by_one_dial_at_a_time() {
    for reuse in ["lifo", "round_robin"] {
        let db = Db::new();
        let config = Config::of_size(3).with("server", "connect_parallel = 1").with("pool", "min_idle = 3");
        let proxy = Proxy::start(&db, config.with("pool", &format!("reuse = \"{reuse}\"")));
        drop(proxy.connect());
        until("there are three", || db.pids().len() == 3);
        proxy.stop();
    }
}
