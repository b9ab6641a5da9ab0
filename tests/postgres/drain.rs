//! How the process leaves: by a signal, by a second one, by the console's SHUTDOWN (interface.md,
//! "Signals and exit").

use crate::support::watch::status;
use crate::support::{Config, Db, Proxy, Refused, Wire, cluster, msg, signal, until};
use std::time::{Duration, Instant};

const TOLD: &str = "E(FATAL 57P01) EOF";

#[test]
fn a_drain_lets_transactions_finish_and_closes_the_idle() {
    let db = Db::new();
    db.run(&["create table kept (id int)"]);
    let config = Config::of_size(2).with("drain", "notice = \"2s\"").with("drain", "deadline = \"20s\"");
    let mut proxy = Proxy::start(&db, config);
    let mut idle: Vec<Wire> = (0..3).map(|_| proxy.connect()).collect();
    idle[0].batch("select 1");
    let mut busy = proxy.connect();
    busy.batch("begin; insert into kept values (1)");
    assert_eq!(status(&proxy, "/readyz"), 200);

    let asked = Instant::now();
    signal(proxy.pid(), "TERM");
    until("it is not ready", || status(&proxy, "/readyz") == 503);
    assert!(asked.elapsed() < Duration::from_secs(2), "at once, not after the notice");
    assert_eq!(status(&proxy, "/livez"), 200);
    idle.push(proxy.connect());
    assert_eq!(idle[1].query("select 2").value(), "2", "served as before during the notice");

    for client in &mut idle {
        assert_eq!(client.recv_to_end().trace(), TOLD);
    }
    assert!(asked.elapsed() >= Duration::from_secs(2), "the notice is kept");
    cluster::wait_closed(proxy.addr());
    assert_eq!(busy.query("insert into kept values (2)").trace(), "C(INSERT 0 1) Z(T)");
    busy.send(&msg::query("commit"));
    assert_eq!(busy.recv_to_end().trace(), format!("C(COMMIT) Z(I) {TOLD}"));
    assert_eq!(proxy.wait().code(), Some(0));
    assert_eq!(db.value("select count(*) from kept"), "2");
    until("no backend is left", || db.pids().is_empty());
}

/// Nobody is half let in: a login during the drain is told so, or not taken at all.
#[test]
fn a_login_during_the_drain_is_told_so() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, Config::of_size(2));
    let mut busy = proxy.connect();
    busy.batch("begin");
    signal(proxy.pid(), "TERM");
    until("it is not let in", || match Wire::try_login(proxy.addr(), &proxy.as_app()) {
        Ok(_) => false,
        Err(Refused::Said(reply)) => {
            let told = ["57P01", "57P03"].contains(&reply.code().as_str());
            assert!(reply.messages.is_empty() || told, "{reply:?}");
            true
        }
        Err(Refused::Io(_)) => true,
    });
    busy.bye();
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn what_is_left_at_the_deadline_is_cut() {
    let db = Db::new();
    db.run(&["create table kept (id int)"]);
    let mut proxy = Proxy::start(&db, Config::of_size(3).with("drain", "deadline = \"1s\""));
    let mut stuck = proxy.connect();
    stuck.batch("begin; insert into kept values (1)");
    let mut running = proxy.connect();
    running.send(&msg::query("select pg_sleep(60)"));
    until("the statement runs", || db.running("pg_sleep") == 1);

    let asked = Instant::now();
    signal(proxy.pid(), "TERM");
    assert_eq!(stuck.recv_to_end().trace(), TOLD);
    assert!(asked.elapsed() >= Duration::from_secs(1), "cut after {:?}", asked.elapsed());
    assert!(running.recv_to_end().closed);
    assert_eq!(proxy.wait().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(5), "left after {:?}", asked.elapsed());
    assert_eq!(db.value("select count(*) from kept"), "0");
}

#[test]
fn a_second_signal_leaves_now() {
    let db = Db::new();
    for first in ["TERM", "INT"] {
        let mut proxy = Proxy::start(&db, Config::of_size(2).with("drain", "deadline = \"5m\""));
        let mut stuck = proxy.connect();
        stuck.batch("begin");
        let mut idle = proxy.connect();
        signal(proxy.pid(), first);
        assert_eq!(idle.recv_to_end().trace(), TOLD, "the first signal has been seen");
        cluster::wait_closed(proxy.addr());
        assert!(stuck.recv_arrived().is_empty(), "a transaction may go on");
        signal(proxy.pid(), "TERM");
        assert_eq!(stuck.recv_to_end().trace(), TOLD);
        assert_eq!(proxy.wait().code(), Some(0));
    }
}

#[test]
fn shutdown_leaves_when_it_says() {
    let db = Db::new();
    for (command, waits) in [("shutdown", false), ("shutdown wait_for_servers", true)] {
        let mut proxy = Proxy::start(&db, Config::one_backend());
        let mut client = proxy.connect();
        client.batch("begin");
        let answer = proxy.console().query(command);
        assert_eq!(answer.messages.first().map(ToString::to_string).as_deref(), Some("C(SHUTDOWN)"));
        if waits {
            cluster::wait_closed(proxy.addr());
            assert_eq!(client.query("commit").trace(), "C(COMMIT) Z(I)");
        }
        assert_eq!(client.recv_to_end().trace(), TOLD);
        assert_eq!(proxy.wait().code(), Some(0));
    }
    let mut proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    proxy.console().batch("shutdown wait_for_clients");
    cluster::wait_closed(proxy.addr());
    assert_eq!(client.query("select 1").value(), "1", "who is there may stay");
    client.bye();
    assert_eq!(proxy.wait().code(), Some(0));
}
