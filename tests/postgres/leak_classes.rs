//! Each class of leak (budgets.md §5.2) as it comes about with a real server: named once, for what it is, and
//! taken back where that is asked for.

use crate::support::watch::{row, rows, series};
use crate::support::{Config, Db, PATIENCE, Proxy, Wire, eventually, msg, until};

/// Short thresholds, and what is leaked is taken back at once.
const QUICK: [&str; 5] =
    ["hold = \"500ms\"", "idle = \"300ms\"", "leaked = \"400ms\"", "mode = \"enforce\"", "force = true"];

fn start(size: usize, lines: &[&str]) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(&["create table t (id int)", "insert into t values (1)"]);
    let config = Config::of_size(size).with("log", "format = \"json\"");
    let config = lines.iter().fold(config, |config, line| config.with("leak", line));
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

/// A session whose request is said by SET, so that it can be ended.
fn tagged(proxy: &Proxy, request: &str) -> Wire {
    let mut wire = proxy.connect();
    wire.batch(&format!("set bursar.request_id = '{request}'"));
    wire
}

/// The columns of the only case, as soon as it is of this class.
fn case(console: &mut Wire, class: &str, columns: &str) -> Vec<String> {
    let sql = format!("select {columns} from bursar.leaks where class = '{class}'");
    eventually(class, PATIENCE, || rows(console, &sql).pop())
}

/// Waits until the case of this class has ended so.
fn ends(console: &mut Wire, class: &str, action: &str, outcome: &str) {
    let sql = format!("select action, outcome from bursar.leaks where class = '{class}'");
    until(outcome, || rows(console, &sql) == [[action, outcome]]);
}

#[test]
fn what_an_ended_request_left_open_is_rolled_back_and_its_client_stays() {
    let (db, proxy) = start(2, &QUICK);
    let mut console = proxy.console();
    let mut wire = tagged(&proxy, "r-1");
    wire.batch("set bursar.call_site = 'orders.service.ts:88'");
    wire.batch("begin");
    wire.batch("insert into t values (2)");
    wire.batch("set bursar.request_id = ''");
    let columns = "action, mode, threshold_kind, threshold_ms, evidence, request, request_ended, call_site";
    let seen = case(&mut console, "leaked", columns);
    let expected =
        ["soft_abort", "enforce", "static", "400", "request_ended", "r-1", "t", "orders.service.ts:88"];
    assert_eq!(seen, expected);
    until("it is rolled back", || db.backends("state = 'idle in transaction'") == 0);
    ends(&mut console, "leaked", "soft_abort", "reclaimed");
    assert_eq!(wire.query("select 1").trace(), "E(25P03) Z(E)");
    wire.batch("rollback");
    assert_eq!(wire.query("select count(*) from t").value(), "1");
    let ours = ["bursar_leaks_total", "\"soft_abort\"", "\"leaked\"", "\"reclaimed\""];
    let all = series(&proxy);
    let counted = all.iter().find(|(name, _)| ours.iter().all(|part| name.contains(part)));
    assert_eq!(counted.map(|(_, value)| *value as u64), Some(1));
    let log = proxy.log();
    let event = log.lines().find(|line| line.contains("\"class\":\"leaked\"")).expect("an event");
    let event: serde_json::Value = serde_json::from_str(event).expect("JSON");
    for (field, value) in
        [("evidence", "request_ended"), ("call_site", "orders.service.ts:88"), ("mode", "enforce")]
    {
        assert_eq!(event[field], value, "{event}");
    }
    drop(wire);
    proxy.stop();
}

#[test]
fn a_request_whose_other_sessions_are_gone_has_leaked_what_is_left() {
    let (_db, proxy) = start(2, &QUICK[..3]);
    let mut console = proxy.console();
    let (mut first, mut second) = (tagged(&proxy, "r-1"), tagged(&proxy, "r-1"));
    first.batch("begin");
    first.batch("select 1");
    second.batch("select 1");
    assert_eq!(case(&mut console, "idle_in_tx", "evidence"), [""]);
    second.bye();
    assert_eq!(
        case(&mut console, "leaked", "evidence, action, mode"),
        ["siblings_left", "would_abort", "warn"]
    );
    first.batch("commit");
    ends(&mut console, "leaked", "would_abort", "returned");
    assert_eq!(row(&mut console, "select count(*) from bursar.leaks"), ["1"], "one case, renamed");
    drop(first);
    proxy.stop();
}

#[test]
fn a_session_whose_request_is_at_work_in_another_nests() {
    let (_db, proxy) = start(
        4,
        &["hold = \"off\"", "idle = \"300ms\"", "leaked = \"300ms\"", "mode = \"enforce\"", "force = true"],
    );
    let mut console = proxy.console();
    let (mut outer, mut inner) = (tagged(&proxy, "r-1"), tagged(&proxy, "r-1"));
    outer.batch("begin");
    outer.batch("select 1");
    inner.send(&msg::query("select pg_sleep(1)"));
    assert_eq!(case(&mut console, "nested", "action, request_peak"), ["report", "2"]);
    assert_eq!(inner.recv_reply().trace(), "T D C(SELECT 1) Z(I)");
    assert_eq!(outer.query("commit").trace(), "C(COMMIT) Z(I)");
    ends(&mut console, "nested", "report", "returned");
    assert_eq!(row(&mut console, "select count(*) from bursar.leaks"), ["1"]);
    drop((outer, inner));
    proxy.stop();
}

#[test]
fn a_statement_that_waits_for_a_lock_is_told_from_a_slow_one() {
    let (_db, proxy) = start(3, &["hold = \"500ms\"", "idle = \"off\"", "leaked = \"off\""]);
    let mut console = proxy.console();
    let (mut holder, mut waiter) = (tagged(&proxy, "holder"), tagged(&proxy, "waiter"));
    holder.batch("begin");
    holder.batch("update t set id = 2");
    waiter.send(&msg::query("update t set id = 3"));
    let seen = case(&mut console, "lock_wait", "request, blocked_by");
    assert_eq!(seen[0], "waiter");
    assert!(seen[1].contains("request holder") && seen[1].contains("idle_in_tx"), "{seen:?}");
    holder.batch("commit");
    assert_eq!(waiter.recv_reply().trace(), "C(UPDATE 1) Z(I)");
    ends(&mut console, "lock_wait", "report", "returned");
    waiter.batch("select pg_sleep(0.8)");
    ends(&mut console, "slow_query", "report", "returned");
    drop((holder, waiter));
    proxy.stop();
}

#[test]
fn a_transaction_that_is_long_and_works_is_only_long() {
    let (_db, proxy) = start(1, &["hold = \"500ms\"", "idle = \"400ms\""]);
    let mut console = proxy.console();
    let mut wire = proxy.connect();
    wire.batch("begin");
    until("it is long", || {
        wire.batch("select 1");
        row(&mut console, "select count(*) from bursar.leaks where class = 'long_tx'") == ["1"]
    });
    wire.batch("commit");
    ends(&mut console, "long_tx", "report", "returned");
    assert_eq!(row(&mut console, "select count(*) from bursar.leaks"), ["1"]);
    drop(wire);
    proxy.stop();
}

#[test]
fn a_client_that_does_not_read_and_one_that_does_not_send_are_stalled() {
    let db = Db::new();
    db.run(&["create table t (id int)"]);
    let config =
        Config::of_size(2).with("budget.statement", "max_stall = { warn = \"300ms\", mode = \"observe\" }");
    let proxy = Proxy::start(&db, config);
    let mut console = proxy.console();
    let mut reader = tagged(&proxy, "reader");
    reader.send(&msg::query("select repeat('x', 1000) from generate_series(1, 50000)"));
    assert_eq!(case(&mut console, "stalled_client", "request, outcome"), ["reader", "open"]);
    while reader.skip_message().is_some_and(|(kind, _)| kind != b'Z') {}
    ends(&mut console, "stalled_client", "report", "returned");

    let mut writer = tagged(&proxy, "writer");
    writer.send(&msg::query("copy t from stdin"));
    assert_eq!(writer.recv().map(|message| message.kind), Some(b'G'));
    let open = "select request, class from bursar.leaks where outcome = 'open'";
    let seen = eventually("the COPY is abandoned", PATIENCE, || rows(&mut console, open).pop());
    assert_eq!(seen, ["writer", "stalled_client"]);
    writer.send(&[msg::copy_data("1\n"), msg::copy_done()].concat());
    assert_eq!(writer.recv_reply().trace(), "C(COPY 1) Z(I)");
    until("it is over", || rows(&mut console, open).is_empty());
    drop((reader, writer));
    proxy.stop();
}

#[test]
fn a_pin_that_nobody_uses_is_told_and_then_closed() {
    let lines = ["pinned = \"300ms\"", "pinned_close = \"900ms\"", "mode = \"enforce\"", "force = true"];
    let (db, proxy) = start(1, &lines);
    let mut console = proxy.console();
    let mut wire = proxy.connect();
    wire.batch("listen news");
    assert_eq!(case(&mut console, "pinned", "action"), ["report"]);
    let told = wire.recv().expect("the reason");
    let fields = [b'S', b'C', b'M'].map(|code| told.field(code).unwrap_or_default());
    assert_eq!(fields, ["FATAL", "57P01", "bursar: session kept a backend for too long without using it"]);
    assert!(wire.recv().is_none(), "closed");
    ends(&mut console, "pinned", "close", "reclaimed");
    assert_eq!(db.backends("query like 'listen%' and state <> 'idle'"), 0);
    let mut next = proxy.connect();
    assert_eq!(next.query("select 1").value(), "1", "its place is free");
    drop(next);
    proxy.stop();
}

#[test]
fn a_client_that_goes_away_in_a_transaction_has_abandoned_it() {
    let (db, proxy) = start(1, &[]);
    let mut console = proxy.console();
    let mut wire = tagged(&proxy, "r-1");
    wire.batch("begin");
    wire.batch("insert into t values (2)");
    drop(wire);
    assert_eq!(
        case(&mut console, "abandoned_client", "action, outcome, request"),
        ["rollback", "client_gone", "r-1"]
    );
    assert_eq!(db.value("select count(*) from t"), "1");
    proxy.stop();
}

#[test]
fn a_call_site_that_is_known_is_told_of_sooner() {
    let (_db, proxy) = start(1, &[]);
    let mut console = proxy.console();
    let mut wire = proxy.connect();
    wire.batch("set bursar.route = '/orders'");
    for _ in 0..100 {
        for sql in ["begin", "select 1", "commit"] {
            wire.batch(sql);
        }
    }
    wire.batch("begin");
    wire.batch("select 1");
    let seen = case(&mut console, "idle_in_tx", "threshold_kind, threshold_ms, route");
    assert_eq!(seen, ["adaptive", "1000", "/orders"]);
    let site = "select leases, repeats_max, leaks from bursar.callsites where route = '/orders'";
    assert_eq!(row(&mut console, site), ["100", "1", "1"]);
    // The loop within one transaction shows as well.
    for id in 0..12 {
        wire.batch(&format!("select {id}"));
    }
    wire.batch("commit");
    let looped = rows(&mut console, site).pop().expect("a row");
    assert_eq!(looped[0], "101");
    assert!(looped[1].parse::<u32>().is_ok_and(|times| times >= 12), "{looped:?}");
    drop(wire);
    proxy.stop();
}

#[test]
fn whether_a_transaction_has_written_is_asked_of_the_server() {
    let (_db, proxy) = start(2, &["idle = \"300ms\"", "leaked = \"off\""]);
    let mut console = proxy.console();
    let (mut reads, mut writes) = (tagged(&proxy, "reads"), tagged(&proxy, "writes"));
    reads.batch("begin; select * from t");
    writes.batch("begin; insert into t values (3)");
    let sql = "select request, xid_assigned from bursar.leaks where class = 'idle_in_tx' order by request";
    until("it has answered", || rows(&mut console, sql) == [["reads", "f"], ["writes", "t"]]);
    writes.batch("commit");
    reads.batch("commit");
    let over = |request: &str| {
        let log = proxy.log();
        let events = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        events.into_iter().find(|event| event["outcome"] == "returned" && event["request"] == request)
    };
    for (request, wrote) in [("reads", false), ("writes", true)] {
        let event = eventually("its end is logged", PATIENCE, || over(request));
        assert_eq!(event["xid_assigned"], wrote, "{event}");
    }
    proxy.stop();
}
