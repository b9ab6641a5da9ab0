//! Leaks: reported once, in time, by name; and again when they end.

use crate::support::{Config, Db, Proxy, Wire, until};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const THRESHOLD: Duration = Duration::from_millis(300);
/// Of the report behind the threshold.
const TOLERANCE: Duration = Duration::from_millis(50);

fn config() -> Config {
    Config::of_size(3).with("leak", "idle = \"300ms\"").with("log", "format = \"json\"")
}

/// SHOW LEAKS, each row by column.
fn leaks(console: &mut Wire) -> Vec<HashMap<String, String>> {
    let reply = console.query("show leaks");
    let columns = reply.columns();
    reply
        .rows()
        .into_iter()
        .map(|row| columns.iter().cloned().zip(row.into_iter().map(Option::unwrap_or_default)).collect())
        .collect()
}

#[test]
fn an_idle_transaction_is_named_in_time_and_its_end_told() {
    let db = Db::new();
    let proxy = Proxy::start(&db, config());
    let mut console = proxy.console();
    // One that keeps working is no leak.
    let mut busy = proxy.connect_for("other", "busy");
    busy.batch("begin");

    let mut client = proxy.connect_for("acme", "r1");
    client.batch("set bursar.user_id = 'u-19'");
    client.batch("set bursar.route = '/api/orders'");
    client.batch("begin");
    let pid = client.query("select pg_backend_pid()").value();
    let idle_since = Instant::now();
    let found = loop {
        let found = leaks(&mut console);
        if !found.is_empty() {
            break found;
        }
        assert!(idle_since.elapsed() < Duration::from_secs(5), "not reported");
        busy.batch("select 1");
    };
    let took = idle_since.elapsed();
    println!("reported after {took:?}");
    assert!(took <= THRESHOLD + TOLERANCE, "reported after {took:?}");
    assert!(took + Duration::from_millis(20) >= THRESHOLD, "reported too early, after {took:?}");
    assert_eq!(found.len(), 1, "{found:?}");
    for (column, value) in [
        ("class", "idle_in_tx"),
        ("outcome", "open"),
        ("request", "r1"),
        ("tenant", "acme"),
        ("user_id", "u-19"),
        ("route", "/api/orders"),
        ("backend_pid", &pid),
    ] {
        assert_eq!(found[0].get(column).map(String::as_str), Some(value), "{column} of {:?}", found[0]);
    }
    assert!(found[0]["client"].starts_with("127.0.0.1:"), "{:?}", found[0]);

    client.batch("commit");
    until("its return is told", || leaks(&mut console)[0]["outcome"] == "returned");
    assert_eq!(leaks(&mut console).len(), 1, "reported once");
    drop((client, busy));

    let log = proxy.log();
    let told: Vec<&str> =
        log.lines().filter(|line| line.contains("\"r1\"") && line.contains("leak")).collect();
    assert!(told.len() >= 2, "opened and returned, in\n{log}");
    assert!(told.iter().all(|line| line.starts_with('{') && line.ends_with('}')), "JSON: {told:?}");
    proxy.stop();
}

#[test]
fn a_client_that_goes_away_ends_its_case() {
    let db = Db::new();
    let proxy = Proxy::start(&db, config());
    let mut console = proxy.console();
    let mut client = proxy.connect_for("acme", "r1");
    client.batch("begin");
    until("it is reported", || !leaks(&mut console).is_empty());
    drop(client);
    until("its end is told", || leaks(&mut console)[0]["outcome"] == "client_gone");
    proxy.stop();
}

#[test]
fn nested_sessions_and_quick_work_are_no_leaks() {
    let db = Db::new();
    let proxy = Proxy::start(&db, config());
    let mut client = proxy.connect_for("acme", "r1");
    let end = Instant::now() + 2 * THRESHOLD;
    let mut transactions = 0;
    while Instant::now() < end {
        client.batch("begin");
        client.batch("select 1");
        client.batch("commit");
        transactions += 1;
    }
    // A session that stays open between its transactions holds nothing.
    let rest = Instant::now();
    let mut other = proxy.connect();
    while rest.elapsed() < 2 * THRESHOLD {
        other.batch("select 1");
    }
    assert_eq!(leaks(&mut proxy.console()), Vec::new(), "after {transactions} transactions");
    drop((client, other));
    proxy.stop();
}
