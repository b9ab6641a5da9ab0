//! A BEGIN takes no backend before the first statement, and nothing else shows it (budgets.md §4.4).

use crate::support::watch::{leases, metric, rows};
use crate::support::{Cluster, Config, Db, Login, Proxy, Stop, Wire, msg, until};

fn start(config: Config) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(&["create table t (id int)"]);
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

#[test]
fn a_begin_takes_no_backend_and_an_empty_transaction_none_at_all() {
    let (_db, proxy) = start(Config::one_backend().lazy());
    let mut clients: Vec<Wire> = (0..3).map(|_| proxy.connect()).collect();
    let before = metric(&proxy, "bursar_lease_hold_seconds_count");
    for wire in &mut clients {
        assert_eq!(wire.query("begin").trace(), "C(BEGIN) Z(T)");
    }
    assert_eq!(leases(&proxy), 0);
    assert_eq!(clients[0].query("commit").trace(), "C(COMMIT) Z(I)");
    assert_eq!(clients[1].query("rollback;").trace(), "C(ROLLBACK) Z(I)");
    assert_eq!(clients[2].ask(&msg::sync()).trace(), "Z(T)");
    assert_eq!(clients[0].query("start transaction read only").trace(), "C(START TRANSACTION) Z(T)");
    assert_eq!(clients[0].query("end").trace(), "C(COMMIT) Z(I)");
    assert_eq!(metric(&proxy, "bursar_lease_hold_seconds_count"), before);
    proxy.stop();
}

#[test]
fn the_first_statement_runs_in_it() {
    let (db, proxy) = start(Config::one_backend().lazy());
    let mut wire = proxy.connect();
    let ends = [("commit", "1"), ("rollback", "1")];
    for (end, count) in ends {
        wire.batch("begin");
        assert_eq!(wire.query("insert into t values (1)").trace(), "C(INSERT 0 1) Z(T)");
        assert_eq!(leases(&proxy), 1);
        wire.batch(end);
        assert_eq!(db.value("select count(*) from t"), count, "{end}");
    }
    wire.batch("begin isolation level read committed, read only");
    assert_eq!(wire.query("insert into t values (1)").trace(), "E(25006) Z(E)", "with its modes");
    assert_eq!(wire.query("select 1").trace(), "E(25P02) Z(E)");
    assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)");
    wire.batch("begin");
    assert_eq!(wire.query("begin").trace(), "N(25001) C(BEGIN) Z(T)", "PostgreSQL's own warning");
    assert_eq!(wire.query("commit and chain").trace(), "C(COMMIT) Z(T)");
    assert_eq!(wire.query("savepoint a").trace(), "C(SAVEPOINT) Z(T)");
    wire.batch("commit");
    wire.batch("begin");
    assert_eq!(wire.query("commit and chain").trace(), "C(COMMIT) Z(T)");
    wire.batch("commit");
    wire.batch("begin");
    assert_eq!(wire.query("set transaction isolation level serializable").trace(), "C(SET) Z(T)");
    assert_eq!(wire.query("show transaction_isolation").value(), "serializable");
    wire.batch("commit");
    wire.batch("begin");
    assert_eq!(wire.query("vacuum t").trace(), "E(25001) Z(E)");
    wire.batch("rollback");
    proxy.stop();
}

#[test]
fn a_pipeline_behind_it_is_one_of_the_transaction() {
    let (db, proxy) = start(Config::one_backend().lazy());
    let mut wire = proxy.connect();
    let insert = || msg::unnamed("insert into t values (1)");
    wire.batch("begin");
    let two = [insert(), insert(), msg::sync(), insert(), msg::sync()].concat();
    assert_eq!(wire.ask(&two).trace(), "1 2 n C(INSERT 0 1) 1 2 n C(INSERT 0 1) Z(T)");
    assert_eq!(wire.recv_reply().trace(), "1 2 n C(INSERT 0 1) Z(T)");
    wire.batch("rollback");
    // An error skips to its own Sync, and no further.
    wire.batch("begin");
    let bad = [msg::unnamed("select 1 / 0"), insert(), msg::sync(), insert(), msg::sync()].concat();
    assert_eq!(wire.ask(&bad).trace(), "1 E(22012) Z(E)");
    assert_eq!(wire.recv_reply().trace(), "E(25P02) Z(E)");
    assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)");
    // No portal of Bursar's is left behind.
    wire.batch("begin");
    assert_eq!(wire.ask(&[msg::execute("", 0), msg::sync()].concat()).trace(), "E(34000) Z(E)");
    wire.batch("rollback");
    wire.batch("begin");
    assert_eq!(wire.ask(&[msg::bind("", ""), msg::sync()].concat()).trace(), "E(26000) Z(E)");
    wire.batch("rollback");
    // The unnamed statement is the client's own.
    wire.ask(&[msg::parse("", "select 5"), msg::sync()].concat());
    wire.send(&[msg::query("begin"), msg::query("select 1"), msg::query("commit")].concat());
    assert_eq!(wire.recv_reply().trace(), "C(BEGIN) Z(T)");
    assert_eq!(wire.recv_reply().trace(), "T D C(SELECT 1) Z(T)");
    assert_eq!(wire.recv_reply().trace(), "C(COMMIT) Z(I)");
    assert_eq!(wire.ask(&[msg::bind("", ""), msg::sync()].concat()).trace(), "E(26000) Z(I)", "dropped");
    wire.batch("begin");
    assert_eq!(wire.ask(&[msg::unnamed("commit"), msg::sync()].concat()).trace(), "1 2 n C(COMMIT) Z(I)");
    wire.batch("begin");
    wire.send(&msg::query("copy t from stdin"));
    assert_eq!(wire.recv().expect("CopyInResponse").to_string(), "G");
    wire.send(&[msg::copy_data("7\n"), msg::copy_done()].concat());
    assert_eq!(wire.recv_reply().trace(), "C(COPY 1) Z(T)");
    wire.batch("commit");
    assert_eq!(db.value("select count(*) from t"), "1");
    proxy.stop();
}

#[test]
fn what_has_a_snapshot_or_a_text_of_its_own_begins_at_once() {
    let (_db, proxy) = start(Config::one_backend().lazy());
    let mut wire = proxy.connect();
    for text in
        ["begin isolation level serializable", "begin isolation level repeatable read", "begin; select 1"]
    {
        wire.batch(text);
        assert_eq!(leases(&proxy), 1, "{text}");
        wire.batch("rollback");
    }
    wire.ask(&[msg::unnamed("begin"), msg::sync()].concat());
    assert_eq!(leases(&proxy), 1);
    wire.batch("rollback");
    proxy.stop();
    let (_db, proxy) = start(Config::one_backend().lazy().with("pool", "lazy_begin = false"));
    let mut wire = proxy.connect();
    wire.batch("begin");
    assert_eq!(leases(&proxy), 1, "where it is off");
    proxy.stop();
}

#[test]
fn who_is_refused_a_backend_is_in_a_failed_transaction() {
    let (_db, proxy) = start(Config::one_backend().lazy().with("pool", "max_wait = \"1s\""));
    let (mut holds, mut wire) = (proxy.connect(), proxy.connect());
    holds.batch("begin");
    holds.batch("select 1");
    wire.batch("begin");
    assert_eq!(wire.query("select 1").trace(), "E(53300) Z(E)");
    assert_eq!(wire.query("select 1").trace(), "E(25P02) Z(E)");
    assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)");
    wire.batch("begin");
    assert_eq!(wire.ask(&[msg::unnamed("select 1"), msg::sync()].concat()).trace(), "E(53300) Z(E)");
    assert_eq!(wire.query("rollback").trace(), "C(ROLLBACK) Z(I)");
    proxy.stop();
}

#[test]
fn a_cancel_of_a_begin_is_nothing_and_one_of_the_first_statement_is_heard() {
    let (_db, proxy) = start(Config::one_backend().lazy());
    let mut wire = proxy.connect();
    wire.batch("begin");
    wire.cancel();
    until("the cancel has come", || metric(&proxy, "bursar_cancels_total{result=\"idle\"}") == 1.0);
    assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(T)");
    wire.batch("commit");
    wire.batch("begin");
    wire.send(&msg::query("select pg_sleep(60)"));
    until("it runs", || _db.running("pg_sleep(60)") == 1);
    wire.cancel();
    assert_eq!(wire.recv_reply().trace(), "T E(57014) Z(E)");
    wire.batch("rollback");
    proxy.stop();
}

/// The server refuses the BEGIN itself. The statement behind it must not run outside a transaction.
#[test]
fn nothing_runs_behind_a_begin_that_fails() {
    let (db, proxy) = start(Config::of_size(2).lazy());
    // Every statement of the session is ended before it can begin.
    let mut wire = proxy.connect();
    db.run(&[
        "create function slow() returns int language plpgsql as 'begin perform pg_sleep(0.2); return 1; end'",
    ]);
    wire.batch("set statement_timeout = '1ms'");
    let mut failed = 0;
    for round in 0..200 {
        assert_eq!(wire.query("begin").trace(), "C(BEGIN) Z(T)");
        let reply = if round % 2 == 0 {
            wire.query("insert into t select slow()")
        } else {
            wire.ask(&[msg::unnamed("insert into t select slow()"), msg::sync()].concat())
        };
        assert!(
            reply.trace().ends_with("E(57014) Z(E)"),
            "round {round}: {reply:?}, under {:?}",
            wire.query("show statement_timeout").messages
        );
        failed += 1;
        // A COMMIT that takes a millisecond is ended as well.
        let over = loop {
            let reply = wire.query("commit");
            if reply.trace() != "E(57014) Z(E)" {
                break reply;
            }
        };
        assert_eq!(over.trace(), "C(ROLLBACK) Z(I)");
    }
    assert_eq!((failed, db.value("select count(*) from t").as_str()), (200, "0"));
    proxy.stop();
}

/// A standby refuses a BEGIN that wants to write, each time: the client hears of it with its first
/// statement, and that has not run, nor has anything else up to the transaction's end.
#[test]
fn a_begin_that_the_server_refuses_fails_the_transaction_and_nothing_else() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    cluster.stop(Stop::Fast);
    std::fs::write(cluster.socket_dir().join("data/standby.signal"), "").expect("standby.signal");
    cluster.start();
    let proxy = Proxy::start(&db, Config::one_backend().lazy());
    let locks = || {
        let mut direct = Wire::login(cluster.addr(), &Login::new("postgres", db.name()));
        direct.query("select count(*) from pg_locks where locktype = 'advisory'").value()
    };
    let mut wire = proxy.connect();
    // A lock of the session's, which would outlast its transaction and its failure.
    let lock = "select pg_advisory_lock(1)";
    let simple = msg::query(lock);
    let unnamed = [msg::unnamed(lock), msg::sync()].concat();
    let named = [msg::parse("s", lock), msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat();
    for statement in [simple, unnamed, named] {
        assert_eq!(wire.query("begin read write").trace(), "C(BEGIN) Z(T)");
        wire.send(&[&statement[..], &msg::query(lock)].concat());
        assert_eq!(wire.recv_reply().trace(), "E(0A000) Z(E)");
        assert_eq!(wire.recv_reply().trace(), "E(25P02) Z(E)");
        assert_eq!(wire.ask(&statement).code(), "25P02");
        assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)");
        assert_eq!((locks().as_str(), leases(&proxy)), ("0", 0));
        assert_eq!(wire.query("select pg_is_in_recovery()").value(), "t", "the session goes on");
    }
    wire.batch("begin read only");
    assert_eq!(wire.query("select pg_is_in_recovery()").trace(), "T D C(SELECT 1) Z(T)");
    wire.batch("commit");
    proxy.stop();
}

#[test]
fn the_tags_of_a_begin_are_those_of_its_transaction() {
    let (_db, proxy) = start(Config::one_backend().lazy());
    let mut wire = proxy.connect();
    wire.batch("begin /*tenant='acme',request_id='r7'*/");
    wire.batch("set local bursar.route = '/orders'");
    assert_eq!(wire.query("show bursar.route").value(), "/orders");
    wire.batch("select 1");
    let mut console = proxy.console();
    let leases = "select tenant, request from bursar.leases";
    assert_eq!(rows(&mut console, leases), [["acme", "r7"]]);
    wire.batch("commit");
    assert_eq!(wire.query("show bursar.route").value(), "");
    wire.batch("begin");
    wire.batch("set local bursar.route = '/orders'");
    wire.batch("commit");
    assert_eq!(wire.query("show bursar.route").value(), "", "also without a backend");
    proxy.stop();
}

/// However it is sent.
#[test]
fn a_reset_is_a_first_statement_like_any_other() {
    let (_db, proxy) = start(Config::of_size(2).lazy());
    let mut wire = proxy.connect();
    let extended = |text: &str| [msg::unnamed(text), msg::sync()].concat();
    for (text, trace, end) in [
        ("reset standard_conforming_strings", "C(RESET) Z(T)", "C(COMMIT) Z(I)"),
        ("set work_mem to default", "C(SET) Z(T)", "C(COMMIT) Z(I)"),
        ("reset all", "C(RESET) Z(T)", "C(COMMIT) Z(I)"),
        ("set no_such_setting to default", "E(42704) Z(E)", "C(ROLLBACK) Z(I)"),
    ] {
        for first in [msg::query("begin"), extended("begin")] {
            for (second, parsed) in [(msg::query(text), ""), (extended(text), "1 2 n ")] {
                for at_once in [false, true] {
                    let begun = |trace: &str| trace.trim_start_matches("1 2 n ") == "C(BEGIN) Z(T)";
                    if at_once {
                        wire.send(&[first.clone(), second.clone()].concat());
                    } else {
                        wire.send(&first);
                    }
                    assert!(begun(&wire.recv_reply().trace()));
                    if !at_once {
                        wire.send(&second);
                    }
                    let reply = wire.recv_reply().trace();
                    assert_eq!(reply, format!("{parsed}{trace}"), "{text}, at once: {at_once}");
                    assert_eq!(wire.query("commit").trace(), end, "{text}");
                }
            }
        }
    }
    proxy.stop();
}

/// The settings that the session has go out before the BEGIN, each in a segment of its own.
#[test]
fn settings_that_go_before_a_begin_do_not_end_it() {
    let (_db, proxy) = start(Config::of_size(1).lazy());
    let (mut other, mut wire) = (proxy.connect(), proxy.connect());
    for (first, trace) in [
        ("reset standard_conforming_strings", "C(RESET) Z(T)"),
        ("set no_such_setting to default", "E(42704) Z(E)"),
    ] {
        other.batch("set standard_conforming_strings = off");
        wire.batch("set schema 'two'");
        other.batch("select 1");
        assert_eq!(wire.query("begin").trace(), "C(BEGIN) Z(T)");
        assert_eq!(wire.query(first).trace(), trace);
        wire.batch("rollback");
    }
    proxy.stop();
}
