//! A transaction that Bursar has rolled back, as its client sees it: the table of budgets.md §2.6, in both
//! protocols, and what becomes of the backend.

use crate::support::watch::{leases, rows};
use crate::support::{Config, Db, Proxy, Wire, msg, trace, until};

/// Idle transactions are ended at once, also while nobody waits.
const IDLE: &str = "max_idle = { warn = \"20ms\", abort = \"40ms\", abort_alone = \"40ms\", mode = \"enforce\", force = true }";

/// Old ones are.
const OLD: &str = "max_age = { warn = \"100ms\", abort = \"200ms\", mode = \"enforce\", force = true }";

fn start(config: Config) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(&["create table t (id int)"]);
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

fn idle() -> Config {
    Config::one_backend().lazy().with("budget.transaction", IDLE)
}

/// A client whose transaction with one row has been rolled back, and which has not been told.
fn aborted(db: &Db<'_>, proxy: &Proxy) -> Wire {
    let mut wire = proxy.connect();
    abort(db, &mut wire);
    wire
}

fn abort(db: &Db<'_>, wire: &mut Wire) {
    wire.batch("begin");
    wire.batch("insert into t values (1)");
    gone(db);
}

/// Waits until no transaction is open on the server.
fn gone(db: &Db<'_>) {
    until("the transaction is rolled back", || db.backends("state = 'idle in transaction'") == 0);
}

/// The transaction has left nothing, and its client can go on.
fn usable(db: &Db<'_>, wire: &mut Wire) {
    assert_eq!(wire.query("select count(*) from t").trace(), "T D C(SELECT 1) Z(I)");
    assert_eq!(db.value("select count(*) from t"), "0");
}

const OVER: &[(&str, &str)] = &[("commit", "C(ROLLBACK) Z(I)"), ("rollback", "C(ROLLBACK) Z(I)")];

#[test]
fn a_query_is_told_once_and_then_the_transaction_has_failed() {
    let (db, proxy) = start(idle());
    for first in
        ["select 1", "savepoint a", "rollback to a", "begin", "select 1; commit", "", "commit; select 1"]
    {
        for (end, reply) in OVER {
            let mut wire = aborted(&db, &proxy);
            assert_eq!(wire.query(first).trace(), "E(25P03) Z(E)", "{first}");
            assert_eq!(wire.query("select 1").trace(), "E(25P02) Z(E)");
            assert_eq!(wire.query("release a").trace(), "E(25P02) Z(E)");
            assert_eq!(leases(&proxy), 0, "nobody needs a backend for that");
            assert_eq!(wire.query(end).trace(), *reply);
            usable(&db, &mut wire);
        }
    }
    proxy.stop();
}

#[test]
fn a_commit_is_never_answered_as_if_it_were_one() {
    let (db, proxy) = start(idle());
    for commit in ["commit", "END", "-- done\ncommit work;", "commit and no chain"] {
        let mut wire = aborted(&db, &proxy);
        assert_eq!(wire.query(commit).trace(), "E(25P03) Z(I)", "{commit}");
        usable(&db, &mut wire);
    }
    for rollback in ["rollback", "ABORT;"] {
        let mut wire = aborted(&db, &proxy);
        assert_eq!(wire.query(rollback).trace(), "C(ROLLBACK) Z(I)", "{rollback}");
        usable(&db, &mut wire);
    }
    // What may go on in a transaction of the same kind: nobody knows the kind any more.
    let mut wire = aborted(&db, &proxy);
    assert_eq!(wire.query("commit and chain").trace(), "E(25P03) Z(E)");
    assert_eq!(wire.query("rollback and chain").trace(), "E(25P02) Z(E)");
    assert_eq!(wire.query("prepare transaction 'x'").trace(), "C(ROLLBACK) Z(I)", "as PostgreSQL");
    usable(&db, &mut wire);
    proxy.stop();
}

fn unnamed(sql: &str) -> Vec<u8> {
    [msg::parse("", sql), msg::bind("", ""), msg::describe_portal(""), msg::execute("", 0), msg::sync()]
        .concat()
}

#[test]
fn a_pipeline_is_told_once_and_skipped_to_its_sync() {
    let (db, proxy) = start(idle());
    let mut wire = aborted(&db, &proxy);
    assert_eq!(wire.ask(&[unnamed("select 1"), unnamed("select 2")].concat()).trace(), "E(25P03) Z(E)");
    assert_eq!(wire.recv_reply().trace(), "E(25P02) Z(E)");
    assert_eq!(wire.ask(&msg::sync()).trace(), "Z(E)");
    assert_eq!(wire.ask(&unnamed("commit")).trace(), "1 2 n C(ROLLBACK) Z(I)");
    usable(&db, &mut wire);
    let mut wire = aborted(&db, &proxy);
    assert_eq!(wire.ask(&unnamed("commit")).trace(), "1 2 n E(25P03) Z(I)");
    usable(&db, &mut wire);
    let mut wire = aborted(&db, &proxy);
    assert_eq!(wire.ask(&unnamed("rollback")).trace(), "1 2 n C(ROLLBACK) Z(I)");
    usable(&db, &mut wire);
    let mut wire = aborted(&db, &proxy);
    assert_eq!(wire.ask(&msg::function_call(154, &["7", "2"])).trace(), "E(25P03) Z(E)");
    assert_eq!(wire.ask(&msg::function_call(154, &["7", "2"])).trace(), "E(25P02) Z(E)");
    assert_eq!(leases(&proxy), 0);
    proxy.stop();
}

#[test]
fn what_needs_more_is_answered_by_postgresql_in_a_failed_transaction() {
    let (db, proxy) = start(idle());
    let mut wire = proxy.connect();
    let parse = |name: &str, sql: &str| [msg::parse(name, sql), msg::sync()].concat();
    wire.ask(&parse("undo", "rollback"));
    wire.ask(&parse("one", "select 1"));
    abort(&db, &mut wire);
    assert_eq!(wire.query("select 1").code(), "25P03");
    let run = |name: &str| [msg::bind("", name), msg::execute("", 0), msg::sync()].concat();
    assert_eq!(wire.ask(&run("one")).trace(), "E(25P02) Z(E)");
    assert_eq!(wire.ask(&run("nobody")).trace(), "E(26000) Z(E)");
    assert_eq!(wire.ask(&run("undo")).trace(), "2 C(ROLLBACK) Z(I)");
    usable(&db, &mut wire);

    // A portal of the transaction that is gone; and one that was prepared in it stays prepared.
    wire.batch("begin");
    wire.ask(
        &[msg::parse("two", "select 2"), msg::bind("p", "two"), msg::execute("p", 0), msg::sync()].concat(),
    );
    gone(&db);
    assert_eq!(
        wire.ask(&[msg::execute("p", 0), msg::execute("p", 0), msg::sync()].concat()).trace(),
        "E(25P03) Z(E)"
    );
    assert_eq!(wire.ask(&[msg::execute("p", 0), msg::sync()].concat()).trace(), "E(34000) Z(E)");
    assert_eq!(wire.query("rollback; select 3").trace(), "C(ROLLBACK) T D C(SELECT 1) Z(I)");
    assert_eq!(wire.ask(&run("two")).trace(), "2 D C(SELECT 1) Z(I)");
    assert_eq!(wire.ask(&run("one")).trace(), "2 D C(SELECT 1) Z(I)");

    abort(&db, &mut wire);
    assert_eq!(wire.query("selec").code(), "25P03");
    assert_eq!(wire.query("commit; select 1").trace(), "C(ROLLBACK) T D C(SELECT 1) Z(I)");
    usable(&db, &mut wire);
    proxy.stop();
}

/// So it is where a backend has to be waited for: nothing may run outside the transaction that the client
/// believes it is in.
#[test]
fn what_waits_for_a_backend_finds_a_failed_transaction_too() {
    let (db, proxy) = start(idle());
    let mut wire = proxy.connect();
    wire.ask(&[msg::parse("insert", "insert into t values (9)"), msg::sync()].concat());
    abort(&db, &mut wire);
    assert_eq!(wire.query("select 1").code(), "25P03");
    let mut other = proxy.connect();
    other.send(&msg::query("select pg_sleep(0.3)"));
    until("it runs", || db.backends("wait_event = 'PgSleep'") == 1);
    let insert = [msg::bind("", "insert"), msg::execute("", 0), msg::sync()].concat();
    assert_eq!(wire.ask(&insert).trace(), "E(25P02) Z(E)");
    assert_eq!(other.recv_reply().trace(), "T D C(SELECT 1) Z(I)");
    assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)");
    assert_eq!(db.value("select count(*) from t"), "0");
    proxy.stop();
}

#[test]
fn tags_can_be_set_and_settings_are_as_before() {
    let (db, proxy) = start(idle());
    let mut wire = proxy.connect();
    wire.batch("set timezone = 'Asia/Tokyo'");
    wire.batch("begin");
    assert_eq!(wire.query("set timezone = 'Europe/Paris'").trace(), "C(SET) S(TimeZone=Europe/Paris) Z(T)");
    gone(&db);
    assert_eq!(wire.query("set bursar.tenant = 'acme'").trace(), "S(TimeZone=Asia/Tokyo) C(SET) Z(E)");
    assert_eq!(wire.query("show bursar.tenant").value(), "acme");
    assert_eq!(wire.query("show timezone").trace(), "E(25P03) Z(E)");
    wire.batch("rollback");
    assert_eq!(wire.query("show timezone").value(), "Asia/Tokyo");
    proxy.stop();
}

#[test]
fn a_running_statement_is_cancelled_and_says_why() {
    let (db, proxy) = start(Config::one_backend().lazy().with("budget.transaction", OLD));
    let mut wire = proxy.connect();
    wire.batch("begin");
    wire.batch("insert into t values (1)");
    assert_eq!(wire.query("select pg_sleep(60)").trace(), "T E(25P04) Z(E)");
    assert_eq!(wire.query("select 1").trace(), "E(25P02) Z(E)");
    assert_eq!(leases(&proxy), 0);
    assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)");
    usable(&db, &mut wire);
    // Without a transaction of its own, it is the statement's.
    assert_eq!(wire.query("select pg_sleep(60)").trace(), "T E(25P04) Z(I)");
    usable(&db, &mut wire);
    // What is behind it in a pipeline is skipped, or refused, as after any error.
    wire.batch("begin");
    let pipeline =
        [msg::unnamed("select pg_sleep(60)"), msg::unnamed("select 1"), msg::sync(), unnamed("select 2")];
    assert_eq!(wire.ask(&pipeline.concat()).trace(), "1 2 T E(25P04) Z(E)");
    assert_eq!(wire.recv_reply().trace(), "E(25P02) Z(E)");
    wire.batch("rollback");
    usable(&db, &mut wire);
    proxy.stop();
}

#[test]
fn a_copy_is_cancelled() {
    let (db, proxy) = start(Config::one_backend().lazy().with("budget.transaction", OLD));
    let mut wire = proxy.connect();
    wire.batch("begin");
    wire.send(&msg::query("copy t from stdin"));
    assert_eq!(wire.recv().expect("CopyInResponse").to_string(), "G");
    wire.send(&msg::copy_data("1\n"));
    assert_eq!(wire.recv_reply().trace(), "E(25P04) Z(E)");
    // The client finds out in its own time.
    wire.send(&[msg::copy_data("2\n"), msg::copy_done()].concat());
    assert_eq!(wire.query("select 1").trace(), "E(25P02) Z(E)");
    wire.batch("rollback");
    usable(&db, &mut wire);

    wire.batch("begin");
    wire.send(&[msg::unnamed("copy t from stdin"), msg::flush()].concat());
    assert_eq!(trace(&wire.recv_count(4)), "1 2 n G");
    assert_eq!(wire.recv().expect("the end").to_string(), "E(25P04)");
    assert_eq!(wire.ask(&[msg::copy_done(), msg::sync()].concat()).trace(), "Z(E)");
    assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)");
    usable(&db, &mut wire);
    proxy.stop();
}

#[test]
fn a_pipeline_without_its_sync_ends_with_the_error() {
    let (db, proxy) = start(Config::one_backend().lazy().with("budget.transaction", OLD));
    let mut wire = proxy.connect();
    wire.batch("begin");
    wire.send(&[msg::unnamed("insert into t values (1)"), msg::flush()].concat());
    assert_eq!(trace(&wire.recv_count(4)), "1 2 n C(INSERT 0 1)");
    assert_eq!(wire.recv().expect("the end").to_string(), "E(25P04)");
    until("the backend is free", || leases(&proxy) == 0);
    assert_eq!(wire.ask(&[msg::unnamed("select 1"), msg::sync()].concat()).trace(), "Z(E)");
    assert_eq!(wire.query("select 1").code(), "25P02");
    wire.batch("rollback");
    usable(&db, &mut wire);
    proxy.stop();
}

#[test]
fn half_a_message_is_the_end_of_the_session() {
    let (db, proxy) = start(Config::one_backend().lazy().with("budget.transaction", OLD));
    let mut wire = proxy.connect();
    wire.batch("begin");
    wire.batch("insert into t values (1)");
    let long = msg::bind_with("", "", &[Some(&"x".repeat(200_000))]);
    wire.send(&[&msg::parse("", "select length($1)")[..], &long[..150_000]].concat());
    let end = wire.recv_to_end();
    assert_eq!(end.trace(), "E(FATAL 57P01) EOF");
    assert_eq!(db.value("select count(*) from t"), "0");
    proxy.stop();
}

#[test]
fn a_session_that_keeps_its_backend_keeps_it() {
    let (db, proxy) = start(idle().with("pool", "mode = \"session\""));
    let mut wire = proxy.connect();
    wire.batch("create temp table mine (id int)");
    let pid = wire.query("select pg_backend_pid()").value();
    abort(&db, &mut wire);
    assert_eq!(wire.query("select 1").trace(), "E(25P03) Z(E)");
    assert_eq!(wire.query("select 1").trace(), "E(25P02) Z(E)");
    assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)");
    abort(&db, &mut wire);
    assert_eq!(wire.query("commit").trace(), "E(25P03) Z(I)");
    abort(&db, &mut wire);
    assert_eq!(wire.query("rollback").trace(), "C(ROLLBACK) Z(I)");
    abort(&db, &mut wire);
    assert_eq!(wire.ask(&unnamed("commit")).trace(), "E(25P03) Z(E)");
    assert_eq!(wire.ask(&unnamed("commit")).trace(), "1 2 n C(ROLLBACK) Z(I)");
    usable(&db, &mut wire);
    assert_eq!(wire.query("select count(*) from mine").value(), "0");
    assert_eq!(wire.query("select pg_backend_pid()").value(), pid);
    proxy.stop();
}

#[test]
fn what_was_pinned_before_the_transaction_stays_and_what_was_pinned_in_it_goes() {
    let (db, proxy) = start(idle());
    let mut wire = proxy.connect();
    wire.batch("listen news");
    abort(&db, &mut wire);
    assert_eq!(leases(&proxy), 1, "it listens");
    assert_eq!(wire.query("commit").trace(), "E(25P03) Z(I)");
    db.run(&["notify news"]);
    assert_eq!(wire.recv().expect("a notification").to_string(), "A(news)");
    usable(&db, &mut wire);
    wire.batch("unlisten *");
    wire.batch("begin");
    wire.batch("create temp table mine (id int)");
    gone(&db);
    until("its table is gone, and the backend free", || leases(&proxy) == 0);
    assert_eq!(wire.query("select 1").code(), "25P03");
    wire.batch("rollback");
    assert_eq!(wire.query("select count(*) from mine").code(), "42P01");
    proxy.stop();
}

#[test]
fn a_drain_waits_for_the_client_to_end_what_it_believes_it_has() {
    let (db, proxy) = start(idle());
    let mut wire = aborted(&db, &proxy);
    let mut console = proxy.console();
    let idle = "select state from bursar.clients where state = 'idle'";
    until("Bursar knows that it is idle", || rows(&mut console, idle).len() == 1);
    crate::support::signal(proxy.pid(), "TERM");
    until("no new clients", || Wire::open(proxy.addr()).is_err());
    assert_eq!(wire.query("commit").trace(), "E(25P03) Z(I)");
    assert_eq!(wire.recv_to_end().trace(), "E(FATAL 57P01) EOF");
    proxy.stop();
}
