//! More work than there is room for: who is refused, and what they are told (budgets.md §6.2).

use crate::support::watch::metric;
use crate::support::{Config, Db, Proxy, Wire, msg, until};

/// The one backend is held, and so many wait.
fn crowd(proxy: &Proxy, classes: &[&str]) -> (Wire, Vec<Wire>) {
    let mut holder = proxy.connect_for("holder", "h");
    holder.batch("begin");
    let mut console = proxy.console();
    let mut waiters = Vec::new();
    for (at, class) in classes.iter().enumerate() {
        let mut waiter = proxy.connect_for(&format!("t{at}"), &format!("r{at}"));
        waiter.batch(&format!("set bursar.class = '{class}'"));
        waiter.send(&msg::query("select 1"));
        let waiting = (at + 1).to_string();
        until("it waits", || console.query("select count(*) from bursar.queue").value() == waiting);
        waiters.push(waiter);
    }
    (holder, waiters)
}

fn short_queue() -> Config {
    Config::one_backend().with("pool", "queue = 2").with("pool", "max_wait = \"60s\"")
}

#[test]
fn a_full_queue_lets_the_lowest_class_go_first() {
    let db = Db::new();
    let proxy = Proxy::start(&db, short_queue());
    let (mut holder, mut waiters) = crowd(&proxy, &["normal", "batch"]);
    let mut critical = proxy.connect_for("acme", "c");
    critical.batch("set bursar.class = 'critical'");
    critical.send(&msg::query("select 3"));
    let shed = waiters[1].recv_reply();
    assert_eq!(shed.trace(), "E(53300) Z(I)");
    let error = shed.error().expect("an error");
    assert_eq!(error.field(b'M').as_deref(), Some("bursar: too many clients wait for a backend"));
    // Nobody is left that is lower than this one.
    let mut batch = proxy.connect_for("acme", "b");
    batch.batch("set bursar.class = 'batch'");
    assert_eq!(batch.query("select 4").code(), "53300");
    holder.batch("commit");
    assert_eq!(waiters[0].recv_reply().value(), "1");
    assert_eq!(critical.recv_reply().value(), "3");
    drop((holder, waiters, critical, batch));
    proxy.stop();
}

#[test]
fn who_retries_at_once_is_told_to_wait_twice_as_long() {
    let db = Db::new();
    let proxy = Proxy::start(&db, short_queue());
    let (holder, waiters) = crowd(&proxy, &["normal", "normal"]);
    let mut hasty = proxy.connect_for("acme", "again and again");
    let mut hints = Vec::new();
    for _ in 0..4 {
        let reply = hasty.query("select 1");
        let hint = reply.error().and_then(|error| error.field(b'H')).unwrap_or_default();
        let after = hint.strip_prefix("Retry after ").and_then(|rest| rest.split(' ').next());
        hints.push(after.and_then(|after| after.parse::<u64>().ok()).unwrap_or_else(|| panic!("{hint}")));
    }
    assert!(hints[0] >= 50 && hints[0] == hints[1], "{hints:?}");
    assert_eq!(hints[2..], [2 * hints[0], 2 * hints[0]]);
    assert_eq!(metric(&proxy, "bursar_retry_storms_total"), 2.0);
    drop((holder, waiters, hasty));
    proxy.stop();
}
