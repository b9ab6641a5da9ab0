//! Who holds too long is named, in time and in full; and ended where a budget says so (budgets.md
//! §2.5, §5.3). Who asks too much does not push others back (§3).

use crate::support::{Config, Db, PATIENCE, Proxy, Wire, eventually, msg, until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The promise is threshold + 50 ms; a machine that runs other tests may be late by this on top.
const SLACK: Duration = Duration::from_millis(250);
const IDLE: Duration = Duration::from_millis(300);

fn start(config: Config) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(&["create table t (id int)"]);
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

fn watchful(size: usize) -> Config {
    Config::of_size(size).with("leak", "idle = \"300ms\"").with("log", "format = \"json\"")
}

/// Values of the console's rows, `-` for NULL.
fn rows(console: &mut Wire, sql: &str) -> Vec<Vec<String>> {
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    console.query(sql).rows().into_iter().map(|row| row.into_iter().map(text).collect()).collect()
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

/// Leak events of the log with this outcome.
fn logged(proxy: &Proxy, outcome: &str) -> Vec<serde_json::Value> {
    let log = proxy.log();
    let events = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    events.filter(|event| event["event"] == "lease_leak" && event["outcome"] == outcome).collect()
}

#[test]
fn a_leak_is_named_within_its_threshold_and_50_ms() {
    let (db, proxy) = start(watchful(2));
    let mut console = proxy.console();
    let (wire, since) = leak(&proxy);
    let sql = "select class, outcome, action, request, tenant, user_id, thread_id, route, \"user\", \
               application, client, backend_pid, request_leases, waiters_blocked, threshold_ms, database \
               from bursar.leaks";
    let seen = eventually("the leak is shown", PATIENCE, || rows(&mut console, sql).pop());
    let after = since.elapsed();
    println!("named {after:?} after it went idle, threshold {IDLE:?}");
    assert!(after >= IDLE && after <= IDLE + Duration::from_millis(50) + SLACK, "named after {after:?}");
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
    let late = ms("idle_ms") - 300;
    println!("as logged: {late} ms after the threshold");
    assert!(late <= 50 + 250, "{event}");
    assert!(ms("hold_ms") >= ms("idle_ms") && ms("tx_age_ms") >= ms("idle_ms"), "{event}");
    assert_eq!(text("statements").split("; ").count(), 2, "fingerprints of BEGIN and INSERT: {event}");
    assert!(!proxy.log().contains("insert into"), "no statement text unless asked for");
    drop(wire);
    proxy.stop();
}

#[test]
fn a_leak_is_reported_again_when_it_is_over() {
    let (_db, proxy) = start(watchful(2));
    let mut console = proxy.console();
    let mut cases = "select count(*) from bursar.leaks where outcome = 'open'".to_owned();
    let (mut returns, _) = leak(&proxy);
    let (leaves, _) = leak(&proxy);
    until("both are open", || rows(&mut console, &cases) == [["2"]]);
    returns.batch("commit");
    drop(leaves);
    until("both are over", || rows(&mut console, &cases) == [["0"]]);
    cases = "select class, outcome, action, request from bursar.leaks order by outcome".into();
    assert_eq!(
        rows(&mut console, &cases),
        [["idle_in_tx", "client_gone", "report", "5f0c"], ["idle_in_tx", "returned", "report", "5f0c"]]
    );
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

/// The same session leaks again, and that is another case.
#[test]
fn each_transaction_that_leaks_is_a_case() {
    let (_db, proxy) = start(watchful(1));
    let mut console = proxy.console();
    let mut wire = proxy.connect();
    for count in 1..=2 {
        wire.batch("begin");
        let sql = "select count(*) from bursar.leaks where outcome = 'open'";
        until("it is named", || rows(&mut console, sql) == [["1"]]);
        wire.batch("rollback");
        let sql = "select count(*) from bursar.leaks where outcome = 'returned'";
        until("it is over", || rows(&mut console, sql) == [[count.to_string()]]);
    }
    proxy.stop();
}

/// Tells what a session hears when it is ended: severity, SQLSTATE, message, detail, hint.
fn last_words(wire: &mut Wire) -> [String; 5] {
    let end = wire.recv_to_end();
    assert_eq!(end.messages.len(), 1, "{end:?}");
    let field = |code| end.messages[0].field(code).unwrap_or_default();
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
        start(watchful(1).with("pool", "max_wait = \"10s\"").with("tenant.\"*\"", "max = \"100%\"").with(
            "budget.transaction",
            "max_idle = { warn = \"300ms\", abort = \"400ms\", abort_alone = \"off\", mode = \"enforce\" }",
        ));
    let (mut idle, _) = leak(&proxy);
    // Nobody waits: it may stay, however long.
    let mut console = proxy.console();
    let state = "select idle_ms > 600 from bursar.leases";
    until("it is far beyond its budget", || rows(&mut console, state) == [["t"]]);
    assert!(idle.recv_arrived().is_empty() && !idle.is_closed());
    let mut waits = proxy.connect();
    assert_eq!(waits.query("select count(*) from t").value(), "0", "rolled back, and the backend is fit");
    let [severity, code, message, detail, hint] = last_words(&mut idle);
    assert_eq!(
        [severity, code, message, without_figures(&detail), hint],
        [
            "FATAL",
            "25P03",
            "bursar: transaction rolled back after being idle too long",
            "idle N s (budget 400 ms) while 1 client waited; transaction age N s.",
            "Nothing was committed. Do not hold a transaction open across network calls.",
        ]
    );
    let over = "select outcome, action from bursar.leaks";
    assert_eq!(rows(&mut console, over), [["reclaimed", "end_session"]]);
    assert_eq!(logged(&proxy, "reclaimed").len(), 1);
    assert!(db.pids().len() <= 1);
    proxy.stop();
}

#[test]
fn a_transaction_is_ended_at_its_age() {
    let (db, proxy) =
        start(Config::one_backend().with(
            "budget.transaction",
            "max_age = { warn = \"200ms\", abort = \"400ms\", mode = \"enforce\" }",
        ));
    let mut wire = proxy.connect();
    let began = Instant::now();
    wire.batch("begin");
    wire.batch("insert into t values (1)");
    wire.send(&msg::query("select pg_sleep(60)"));
    let [severity, code, message, detail, hint] = last_words(&mut wire);
    let after = began.elapsed();
    println!("ended {after:?} after its beginning, budget 400 ms");
    assert!(
        after >= Duration::from_millis(390) && after < Duration::from_millis(450) + SLACK,
        "after {after:?}"
    );
    assert_eq!(
        [severity, code, message, without_figures(&detail), hint],
        [
            "FATAL",
            "25P04",
            "bursar: transaction rolled back after running too long",
            "transaction age N s (budget 400 ms) while nobody waited.",
            "Nothing was committed. Split the work into shorter transactions.",
        ]
    );
    let mut next = proxy.connect();
    assert_eq!(next.query("select count(*) from t").value(), "0");
    until("the statement is gone", || db.backends("query like '%pg_sleep(60)%' and state = 'active'") == 0);
    proxy.stop();
}

const GREEDY: usize = 200;

fn median_and_p99(mut waits: Vec<Duration>) -> (Duration, Duration) {
    waits.sort();
    (waits[waits.len() / 2], waits[waits.len() * 99 / 100])
}

/// Two hundred clients of one tenant ask without pause, one of another does beside them. First come,
/// first served would let it wait as long as them; it waits a tenth of that at most.
#[test]
fn a_greedy_tenant_does_not_push_a_quiet_one_back() {
    let (_db, proxy) =
        start(Config::of_size(2).with("pool", "max_wait = \"60s\"").with("tenant.\"*\"", "max = \"100%\""));
    let over = AtomicBool::new(false);
    let ask = |wire: &mut Wire| {
        let asked = Instant::now();
        assert_eq!(wire.query("select pg_sleep(0.005)").trace(), "T D C(SELECT 1) Z(I)");
        asked.elapsed()
    };
    let (quiet, greedy) = thread::scope(|scope| {
        let client = || {
            let mut wire = proxy.connect_for("greedy", "");
            let mut waits = Vec::new();
            while !over.load(Ordering::Relaxed) {
                waits.push(ask(&mut wire));
            }
            waits
        };
        let crowd: Vec<_> = (0..GREEDY).map(|_| scope.spawn(client)).collect();
        let mut console = proxy.console();
        let queue = format!("select queue >= {} from bursar.tenants where tenant = 'greedy'", GREEDY - 5);
        until("the crowd waits", || rows(&mut console, &queue) == [["t"]]);
        let mut wire = proxy.connect_for("quiet", "");
        let quiet: Vec<Duration> = (0..100).map(|_| ask(&mut wire)).collect();
        over.store(true, Ordering::Relaxed);
        (quiet, crowd.into_iter().flat_map(|client| client.join().expect("a client")).collect::<Vec<_>>())
    });
    let ((median, p99), (greedy_median, greedy_p99)) = (median_and_p99(quiet), median_and_p99(greedy));
    println!("quiet: median {median:?}, p99 {p99:?}; greedy: median {greedy_median:?}, p99 {greedy_p99:?}");
    assert!(p99 * 10 < greedy_median, "quiet p99 {p99:?}, greedy median {greedy_median:?}");
    proxy.stop();
}
