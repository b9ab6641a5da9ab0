//! Who holds too long is named, once, in time and in full; and named again when it is over (budgets.md
//! §5.3).

use crate::support::watch::{row, rows};
use crate::support::{Config, Db, PATIENCE, Proxy, Wire, eventually, until};
use std::time::{Duration, Instant};

const IDLE: Duration = Duration::from_millis(300);
/// Behind the threshold, at most: the promise.
const PROMISE: Duration = Duration::from_millis(50);
/// A machine that runs other tests may be late by this on top.
const SLACK: Duration = Duration::from_millis(250);

fn start(size: usize) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(&["create table t (id int)"]);
    let config = Config::of_size(size).with("leak", "idle = \"300ms\"").with("log", "format = \"json\"");
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

/// A session that goes idle in a transaction, all tags set; and since when.
fn leak(proxy: &Proxy) -> (Wire, Instant) {
    let login = proxy.as_app().with("application_name", "sales-web").with("bursar.tenant", "acme");
    let mut wire = Wire::login(proxy.addr(), &login);
    for (key, value) in
        [("request_id", "5f0c"), ("user_id", "u-19"), ("thread_id", "t-4"), ("route", "/api/orders")]
    {
        wire.batch(&format!("set bursar.{key} = '{value}'"));
    }
    wire.batch("begin");
    let before = Instant::now();
    wire.batch("insert into t values (1)");
    (wire, before)
}

/// How many cases have this outcome.
fn cases(console: &mut Wire, outcome: &str) -> usize {
    rows(console, &format!("select id from bursar.leaks where outcome = '{outcome}'")).len()
}

/// Leak events of the log with this outcome.
fn logged(proxy: &Proxy, outcome: &str) -> Vec<serde_json::Value> {
    let log = proxy.log();
    let events = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    events.filter(|event| event["event"] == "lease_leak" && event["outcome"] == outcome).collect()
}

#[test]
fn a_leak_is_named_in_full() {
    let (db, proxy) = start(2);
    let mut console = proxy.console();
    let (wire, since) = leak(&proxy);
    let sql = "select class, outcome, action, request, tenant, user_id, thread_id, route, \"user\", \
               application, client, backend_pid, request_leases, waiters_blocked, threshold_ms, database \
               from bursar.leaks";
    let seen = eventually("the leak is shown", PATIENCE, || rows(&mut console, sql).pop());
    let after = since.elapsed();
    println!("named {after:?} after it went idle, threshold {IDLE:?}");
    assert!(after >= IDLE && after <= IDLE + PROMISE + SLACK, "named after {after:?}");
    let client = format!("127.0.0.1:{}", wire.local_port());
    let pid =
        db.ask("select pid from pg_stat_activity where datname = $DB and state = 'idle in transaction'");
    let tags = ["5f0c", "acme", "u-19", "t-4", "/api/orders"];
    let who = ["app", "sales-web", &client, &pid, "1", "0", "300", db.name()];
    assert_eq!(seen, [&["idle_in_tx", "open", "report"][..], &tags, &who].concat());

    let [event] = &logged(&proxy, "open")[..] else { panic!("one event: {}", proxy.log()) };
    let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    assert_eq!(["request", "tenant", "user_id", "thread_id", "route"].map(text), tags);
    assert_eq!(
        ["application", "client", "class", "action"].map(text),
        ["sales-web", &client, "idle_in_tx", "report"]
    );
    assert_eq!(text("pool"), format!("{}/app", db.name()));
    assert_eq!(event["backend_pid"].as_i64().map(|pid| pid.to_string()), Some(pid));
    let ms = |field: &str| event[field].as_u64().expect("a number");
    assert_eq!((ms("threshold_ms"), ms("request_leases"), ms("waiters")), (300, 1, 0));
    assert!(ms("hold_ms") >= ms("idle_ms") && ms("tx_age_ms") >= ms("idle_ms"), "{event}");
    assert_eq!(text("statements").split("; ").count(), 2, "fingerprints of BEGIN and INSERT: {event}");
    assert!(!proxy.log().contains("insert into"), "no statement text unless asked for");
    drop(wire);
    proxy.stop();
}

/// The promise of §5.3: threshold + 50 ms. As Bursar's own log tells, and the middle one of several,
/// since a machine that runs other tests delays one or the other. Each is a case of its own, though the
/// session is the same, and a session that keeps working beside it is none.
#[test]
fn leaks_are_named_within_50_ms_of_the_threshold() {
    const LEAKS: usize = 5;
    let (_db, proxy) = start(2);
    let mut console = proxy.console();
    let mut busy = proxy.connect_for("other", "busy");
    busy.batch("begin");
    let mut wire = proxy.connect_for("acme", "r1");
    for count in 1..=LEAKS {
        wire.batch("begin");
        eventually("it is named", PATIENCE, || {
            busy.batch("select 1");
            (cases(&mut console, "open") == 1).then_some(())
        });
        wire.batch("rollback");
        until("it is over", || cases(&mut console, "returned") == count);
    }
    let mut late: Vec<u64> = logged(&proxy, "open")
        .iter()
        .map(|event| event["idle_ms"].as_u64().expect("a number").checked_sub(300).expect("not sooner"))
        .collect();
    late.sort_unstable();
    println!("named {late:?} ms after the threshold");
    assert_eq!(late.len(), LEAKS);
    assert!(u128::from(late[LEAKS / 2]) <= PROMISE.as_millis(), "{late:?}");
    assert_eq!(rows(&mut console, "select id from bursar.leaks where request = 'busy'").len(), 0);
    drop((busy, wire));
    proxy.stop();
}

#[test]
fn a_leak_is_reported_again_when_it_is_over() {
    let (_db, proxy) = start(2);
    let mut console = proxy.console();
    let (mut returns, _) = leak(&proxy);
    let (leaves, _) = leak(&proxy);
    until("both are open", || cases(&mut console, "open") == 2);
    let known = "select client, application, backend_pid, last_fp from bursar.leaks order by id";
    let known_open = rows(&mut console, known);
    for (row, wire) in known_open.iter().zip([&returns, &leaves]) {
        assert_eq!(row[..2], [format!("127.0.0.1:{}", wire.local_port()), "sales-web".to_owned()]);
        assert!(row[2].parse::<u32>().is_ok() && row[3].len() == 16, "{row:?}");
    }
    returns.batch("commit");
    drop(leaves);
    until("both are over", || cases(&mut console, "open") == 0);
    let sql = "select class, outcome, action, request from bursar.leaks order by outcome";
    assert_eq!(
        rows(&mut console, sql),
        [["idle_in_tx", "client_gone", "report", "5f0c"], ["idle_in_tx", "returned", "report", "5f0c"]]
    );
    assert_eq!(rows(&mut console, known), known_open, "as when they were open");
    assert_eq!(logged(&proxy, "open").len(), 2, "each reported once");
    for outcome in ["returned", "client_gone"] {
        let [event] = &logged(&proxy, outcome)[..] else { panic!("one event: {}", proxy.log()) };
        assert_eq!((&event["request"], &event["tenant"]), (&"5f0c".into(), &"acme".into()));
        assert!(event["hold_ms"].as_u64() >= Some(300), "{event}");
        let opened = logged(&proxy, "open").into_iter().find(|open| open["case"] == event["case"]);
        let opened = opened.expect("it was opened");
        for field in ["client", "application", "backend_pid", "user_id", "thread_id", "route"] {
            assert_eq!(event[field], opened[field], "{field}: {event}");
        }
    }
    proxy.stop();
}

#[test]
fn quick_work_and_rest_between_transactions_are_no_leaks() {
    let (_db, proxy) = start(2);
    let mut client = proxy.connect_for("acme", "r1");
    let (begun, mut transactions) = (Instant::now(), 0);
    while begun.elapsed() < 2 * IDLE {
        for sql in ["begin", "select 1", "commit"] {
            client.batch(sql);
        }
        transactions += 1;
    }
    assert!(transactions > 2, "{transactions} transactions");
    // A session that stays open between its transactions holds nothing.
    let (begun, mut other) = (Instant::now(), proxy.connect());
    until("the first one has rested", || {
        other.batch("select 1");
        begun.elapsed() > 2 * IDLE
    });
    assert_eq!(row(&mut proxy.console(), "select count(*) from bursar.leaks"), ["0"]);
    drop((client, other));
    proxy.stop();
}
