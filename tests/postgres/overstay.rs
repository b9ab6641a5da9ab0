//! A transaction that takes too long is ended where a budget says so, and its client told why (budgets.md
//! §2.5: B10, B11). What the client sees from then on is in `soft_abort`.

use crate::support::watch::rows;
use crate::support::{Config, Db, Proxy, Reply, msg, until};
use std::time::{Duration, Instant};

/// What a machine that runs other tests may be late by.
const SLACK: Duration = Duration::from_millis(250);

fn start(config: Config) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(&["create table t (id int)"]);
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

/// What a client is told: severity, SQLSTATE, message, detail, hint.
fn told(reply: &Reply) -> [String; 5] {
    let error = reply.error().unwrap_or_else(|| panic!("{reply:?}"));
    let field = |code| error.field(code).unwrap_or_default();
    [field(b'V'), field(b'C'), field(b'M'), field(b'D'), field(b'H')]
}

/// The detail with its measured tenths of a second left out.
fn without_figures(detail: &str) -> String {
    detail
        .split(' ')
        .map(|word| if word.contains('.') && word.parse::<f64>().is_ok() { "N" } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn an_idle_transaction_is_ended_for_those_who_wait() {
    let (db, proxy) =
        start(Config::one_backend().with("leak", "idle = \"300ms\"").with("log", "format = \"json\"").with("pool", "max_wait = \"10s\"").with("tenant.\"*\"", "max = \"100%\"").with(
            "budget.transaction",
            "max_idle = { warn = \"300ms\", abort = \"400ms\", abort_alone = \"off\", mode = \"enforce\", force = true }",
        ));
    let mut idle = proxy.connect_for("acme", "r1");
    idle.batch("begin");
    idle.batch("insert into t values (1)");
    // Nobody waits: it may stay, however long.
    let mut console = proxy.console();
    let state = "select idle_ms > 600 from bursar.leases";
    until("it is far beyond its budget", || rows(&mut console, state) == [["t"]]);
    assert!(idle.recv_arrived().is_empty() && !idle.is_closed());
    let mut waits = proxy.connect();
    assert_eq!(waits.query("select count(*) from t").value(), "0", "rolled back, and the backend is fit");
    let reply = idle.query("insert into t values (2)");
    assert_eq!(reply.trace(), "E(25P03) Z(E)");
    let [severity, code, message, detail, hint] = told(&reply);
    assert_eq!(
        [severity, code, message, without_figures(&detail), hint],
        [
            "ERROR",
            "25P03",
            "bursar: transaction rolled back after being idle too long",
            "idle N s (budget 400 ms) while 1 client waited; transaction age N s.",
            "Nothing was committed. Do not hold a transaction open across network calls.",
        ]
    );
    let over = "select outcome, action from bursar.leaks";
    assert_eq!(rows(&mut console, over), [["reclaimed", "soft_abort"]]);
    assert_eq!(proxy.log().matches("\"outcome\":\"reclaimed\"").count(), 1);
    assert!(db.pids().len() <= 1);
    proxy.stop();
}

#[test]
fn a_transaction_is_ended_at_its_age() {
    let (db, proxy) = start(Config::one_backend().with(
        "budget.transaction",
        "max_age = { warn = \"200ms\", abort = \"400ms\", mode = \"enforce\", force = true }",
    ));
    let mut wire = proxy.connect();
    let began = Instant::now();
    wire.batch("begin");
    wire.batch("insert into t values (1)");
    wire.send(&msg::query("select pg_sleep(60)"));
    let reply = wire.recv_reply();
    assert_eq!(reply.trace(), "T E(25P04) Z(E)");
    let [severity, code, message, detail, hint] = told(&reply);
    let after = began.elapsed();
    println!("ended {after:?} after its beginning, budget 400 ms");
    assert!(
        after >= Duration::from_millis(390) && after < Duration::from_millis(450) + SLACK,
        "after {after:?}"
    );
    assert_eq!(
        [severity, code, message, without_figures(&detail), hint],
        [
            "ERROR",
            "25P04",
            "bursar: transaction rolled back after running too long",
            "transaction age N s (budget 400 ms) while nobody waited.",
            "Nothing was committed. Split the work into shorter transactions.",
        ]
    );
    let mut next = proxy.connect();
    assert_eq!(next.query("select count(*) from t").value(), "0");
    assert_eq!(db.running("pg_sleep(60)"), 0);
    assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)", "it has been told");
    assert_eq!(wire.query("select count(*) from t").value(), "0", "on the same connection");
    proxy.stop();
}
