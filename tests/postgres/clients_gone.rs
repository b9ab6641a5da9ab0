//! A client leaves, in every state it can leave in (wire.md A6). What a direct client's leaving does
//! to its data, it does here; the backend is fit for the next client, and soon.

use crate::support::{Config, Db, Proxy, Wire, msg, signal, until};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const IN: &str = "copy t from stdin";

fn start() -> (Db<'static>, Proxy) {
    start_with(Config::one_backend())
}

fn start_with(config: Config) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(&["create table t (id int, note text)"]);
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

fn rows(db: &Db<'_>) -> String {
    db.value("select count(*) from t")
}

/// The one backend serves another client, at once, and nothing of the last one is left.
fn assert_usable(db: &Db<'_>, proxy: &Proxy) {
    let mut next = proxy.connect();
    assert_eq!(next.query("select 7").trace(), "T D C(SELECT 1) Z(I)");
    next.bye();
    until("no transaction is left open", || db.backends("state <> 'idle'") == 0);
    assert!(db.pids().len() <= 1, "more backends than the pool has: {:?}", db.pids());
}

#[test]
fn a_killed_process_in_a_transaction_is_rolled_back_within_50_ms() {
    let (db, proxy) = start();
    let mut took = Vec::new();
    for _ in 0..5 {
        let mut psql = Command::new(db.cluster().program("psql"))
            .args(["-X", "-q", "-h", "127.0.0.1", "-U", "app", "-d", db.name(), "-p"])
            .arg(proxy.addr().port().to_string())
            .stdin(Stdio::piped())
            .spawn()
            .expect("psql starts");
        let mut stdin = psql.stdin.take().expect("piped");
        writeln!(stdin, "begin; insert into t values (1, 'x');").expect("psql reads");
        until("the transaction is open", || db.backends("state = 'idle in transaction'") == 1);
        signal(psql.id(), "KILL");
        let killed = Instant::now();
        until("the backend is free", || db.backends("state = 'idle in transaction'") == 0);
        took.push(killed.elapsed());
        psql.wait().expect("psql is gone");
    }
    took.sort();
    println!("rolled back after {took:?}");
    assert!(took[took.len() / 2] <= Duration::from_millis(50), "rolled back after {took:?}");
    assert_eq!(rows(&db), "0");
    assert_usable(&db, &proxy);
    proxy.stop();
}

#[test]
fn an_open_transaction_is_rolled_back() {
    let (db, proxy) = start();
    for leave in [true, false] {
        let mut client = proxy.connect();
        client.batch("begin");
        client.batch("insert into t values (1)");
        if leave {
            client.bye();
        } else {
            drop(client);
        }
        assert_usable(&db, &proxy);
        assert_eq!(rows(&db), "0");
    }
    proxy.stop();
}

/// A message that is held back until it is known whether a COPY begins. PostgreSQL keeps its replies
/// to itself, and never says so.
#[test]
fn a_message_that_waits_for_replies_does_not_keep_the_backend() {
    let (db, proxy) = start();
    let mut client = proxy.connect();
    client.send(&[msg::parse("", "select generate_series(1, 5)"), msg::bind("p", "")].concat());
    client.send(&[msg::execute("p", 1), msg::copy_done()].concat());
    drop(client);
    assert_usable(&db, &proxy);

    // Also while a statement runs that takes longer than the client is given.
    let mut client = proxy.connect();
    let sleep = [msg::parse("", "select pg_sleep(600)"), msg::bind("", ""), msg::execute("", 0)].concat();
    client.send(&[sleep, msg::copy_done()].concat());
    until("the statement runs", || db.running("pg_sleep") == 1);
    drop(client);
    assert_usable(&db, &proxy);
    proxy.stop();
}

#[test]
fn a_pipelined_copy_before_the_clients_end_is_done() {
    let (db, proxy) = start();
    let mut client = proxy.connect();
    let begin = [msg::parse("", IN), msg::bind("", ""), msg::execute("", 0)].concat();
    let data = [msg::copy_data("7\tx\n"), msg::copy_done(), msg::sync()].concat();
    let insert = msg::query("insert into t values (8)");
    client.send(&[begin, data, insert].concat());
    client.half_close();
    assert_eq!(client.recv_to_end().trace(), "1 2 G C(COPY 1) Z(I) C(INSERT 0 1) Z(I) EOF");
    assert_eq!(rows(&db), "2");
    let leaks = proxy.console().query("show leaks");
    assert_eq!(leaks.rows(), Vec::<Vec<Option<String>>>::new(), "nothing was left behind");
    assert_usable(&db, &proxy);
    proxy.stop();
}

#[test]
fn work_sent_before_terminate_is_done() {
    let (db, proxy) = start();
    let insert = || msg::query("insert into t values (1)");
    let extended = [
        msg::parse("", "insert into t values (1)"),
        msg::bind("", ""),
        msg::execute("", 0),
        msg::sync(),
        msg::terminate(),
    ];
    let mut done = 0;
    let mut expect_one_more = |what: &str| {
        done += 1;
        until(what, || rows(&db) == done.to_string());
    };
    // Closed at once. The reply of PostgreSQL comes after the commit, so that it cannot fail before.
    for (what, program) in [
        ("simple", [insert(), msg::terminate()].concat()),
        ("extended", extended.concat()),
        ("slow", msg::query("insert into t select 1 from pg_sleep(0.2)")),
    ] {
        let mut client = proxy.connect();
        client.send(&program);
        drop(client);
        expect_one_more(what);
    }
    // Several replies: who closes before they are read may make PostgreSQL give up in the middle.
    let pipeline = [msg::query("begin"), insert(), msg::query("commit"), msg::terminate()].concat();
    let mut client = proxy.connect();
    client.send(&pipeline);
    let replies = client.recv_to_end();
    assert_eq!(replies.trace(), "C(BEGIN) Z(T) C(INSERT 0 1) Z(T) C(COMMIT) Z(I) EOF");
    expect_one_more("pipelined");
    assert_usable(&db, &proxy);
    proxy.stop();
}

#[test]
fn a_half_closed_client_gets_its_results() {
    let (db, proxy) = start();
    let mut client = proxy.connect();
    let slow = "insert into t select 1 from pg_sleep(0.1)";
    client.send(&[msg::query(slow), msg::query("select 2")].concat());
    client.half_close();
    let reply = client.recv_to_end();
    assert_eq!(reply.trace(), "C(INSERT 0 1) Z(I) T D C(SELECT 1) Z(I) EOF");
    assert_eq!(rows(&db), "1");
    assert_usable(&db, &proxy);
    proxy.stop();
}

#[test]
fn a_statement_nobody_waits_for_is_cancelled_after_the_grace() {
    let (db, proxy) = start_with(Config::one_backend().with("pool", "client_gone_grace = \"100ms\""));
    let mut client = proxy.connect();
    client.send(&msg::query("select pg_sleep(60)"));
    until("the statement runs", || db.running("pg_sleep") == 1);
    drop(client);
    assert_usable(&db, &proxy);
    proxy.stop();
}

#[test]
fn a_pipeline_without_sync_is_undone() {
    let (db, proxy) = start();
    let insert =
        [msg::parse("", "insert into t values (1)"), msg::bind("", ""), msg::execute("", 0)].concat();
    for (program, replies) in [
        ([insert.clone(), msg::flush()].concat(), 3),
        (insert.clone(), 0),
        ([msg::query("begin"), insert, msg::flush()].concat(), 5),
    ] {
        let mut client = proxy.connect();
        client.send(&program);
        assert_eq!(client.recv_count(replies).len(), replies);
        drop(client);
        assert_usable(&db, &proxy);
        assert_eq!(rows(&db), "0");
    }
    proxy.stop();
}

#[test]
fn an_abandoned_copy_in_is_undone() {
    let (db, proxy) = start();
    let data = msg::copy_data("1\ta\n");
    let extended = [msg::parse("", IN), msg::bind("", ""), msg::execute("", 0), msg::sync()].concat();
    for (begin, data) in [
        (msg::query(IN), data.clone()),
        (msg::query(IN), data[..data.len() - 2].to_vec()),
        (msg::query(IN), data[..3].to_vec()),
        (extended, data),
    ] {
        let mut client = proxy.connect();
        client.send(&begin);
        while client.recv().expect("CopyInResponse").kind != b'G' {}
        client.send(&data);
        drop(client);
        assert_usable(&db, &proxy);
        assert_eq!(rows(&db), "0");
    }
    proxy.stop();
}

/// Its Sync has been read as data. Whether it was is found out at once, and not when patience ends.
#[test]
fn an_abandoned_copy_in_behind_which_a_sync_was_sent_is_undone() {
    let rules = "client_gone_grace = \"60s\"\nmax_wait = \"2s\"";
    let (db, proxy) = start_with(Config::one_backend().with("pool", rules));
    // The error and what follows it come in one packet, or in two.
    for _ in 0..20 {
        let mut client = proxy.connect();
        client.send(&[msg::parse("", IN), msg::bind("", ""), msg::execute("", 0), msg::sync()].concat());
        let begun: Vec<u8> = (0..3).map(|_| client.recv().expect("a reply").kind).collect();
        assert_eq!(begun, *b"12G");
        drop(client);
        assert_usable(&db, &proxy);
    }
    assert_eq!(rows(&db), "0");
    proxy.stop();
}

#[test]
fn an_abandoned_copy_out_and_a_big_result_free_the_backend() {
    let (db, proxy) = start();
    for sql in [
        "copy (select repeat('x', 1000) from generate_series(1, 100000)) to stdout",
        "select repeat('x', 1000) from generate_series(1, 100000)",
    ] {
        let mut client = proxy.connect();
        client.send(&msg::query(sql));
        assert!(client.recv().is_some(), "the result begins");
        drop(client);
        assert_usable(&db, &proxy);
    }
    proxy.stop();
}

#[test]
fn half_a_message_disturbs_nobody() {
    let (db, proxy) = start();
    let insert = msg::query("insert into t values (1)");
    for before in [vec![], msg::query("begin"), msg::query("select 1")] {
        for cut in [1, 4, 5, insert.len() - 1] {
            let mut client = proxy.connect();
            client.send(&[before.clone(), insert[..cut].to_vec()].concat());
            assert!(client.wait_taken(), "it has been read");
            drop(client);
        }
        assert_usable(&db, &proxy);
    }
    assert_eq!(rows(&db), "0");
    proxy.stop();
}

/// wire.md, finding 4: PostgreSQL is idle while the client still sends.
#[test]
fn a_failed_copy_does_not_hold_the_backend() {
    let (db, proxy) = start();
    let bad = msg::copy_data("x\ta\n");
    let frame = msg::copy_data(&"7\tlate\n".repeat(100));
    for half in [0, 3, 5, 60] {
        let mut client = proxy.connect();
        client.send(&[msg::query(IN), bad.clone(), frame[..half].to_vec()].concat());
        assert_eq!(client.recv_reply().trace(), "G E(22P02) Z(I)");
        assert_usable(&db, &proxy);
        // The rest comes late, and the session goes on as if nothing had happened.
        let rest = if half == 0 { vec![] } else { frame[half..].to_vec() };
        client.send(&[rest, msg::copy_done(), msg::query("select 2")].concat());
        assert_eq!(client.recv_reply().trace(), "T D C(SELECT 1) Z(I)");
        client.bye();
    }
    assert_eq!(rows(&db), "0");
    proxy.stop();
}

#[test]
fn a_waiter_that_leaves_is_forgotten() {
    let (db, proxy) = start();
    let mut holder = proxy.connect();
    holder.batch("begin");
    for _ in 0..10 {
        let mut waiter = proxy.connect();
        waiter.send(&msg::query("select 1"));
        assert!(waiter.wait_taken(), "it has been read");
        drop(waiter);
    }
    holder.batch("commit");
    assert_usable(&db, &proxy);
    holder.bye();
    proxy.stop();
}

/// wire.md, finding 2: the unnamed statement belongs to the session that parsed it.
#[test]
fn the_unnamed_statement_of_one_session_is_no_others() {
    let (_db, proxy) = start();
    let run = || [msg::bind("", ""), msg::execute("", 0), msg::sync()].concat();
    let parse = |text| [msg::parse("", text), msg::sync()].concat();
    let (mut a, mut b) = (proxy.connect(), proxy.connect());
    assert_eq!(a.ask(&parse("select 'of a'")).trace(), "1 Z(I)");
    assert_eq!(b.ask(&run()).trace(), "E(26000) Z(I)");
    assert_eq!(b.ask(&parse("select 'of b'")).trace(), "1 Z(I)");
    assert_eq!(a.ask(&run()).value(), "of a");
    assert_eq!(b.ask(&run()).value(), "of b");
    // A session that comes later inherits nothing, either.
    a.bye();
    b.bye();
    assert_eq!(proxy.connect().ask(&run()).trace(), "E(26000) Z(I)");
    proxy.stop();
}

/// The same from the other side: a session of one client is not heard by another.
#[test]
fn replies_of_a_client_that_left_reach_nobody() {
    let (db, proxy) = start();
    for _ in 0..20 {
        let mut gone = proxy.connect();
        gone.send(&[msg::query("select 'gone'"), msg::query("select 'gone, too'")].concat());
        drop(gone);
        let mut next: Wire = proxy.connect();
        assert_eq!(next.query("select 'next'").value(), "next");
        next.bye();
    }
    assert_usable(&db, &proxy);
    proxy.stop();
}

/// The server is so far away that an error comes after 4 ms, and what asks how things stand is answered after 8.
const AWAY: Duration = Duration::from_millis(2);

fn pid(mut wire: Wire) -> String {
    wire.query("select pg_backend_pid()").value()
}

/// Returns whether the server takes data.
fn begin_to_copy(client: &mut Wire) -> bool {
    client.send(&[msg::parse("", IN), msg::bind("", ""), msg::execute("", 0), msg::flush()].concat());
    let begun = std::iter::from_fn(|| client.recv()).find(|message| matches!(message.kind, b'G' | b'E'));
    begun.is_some_and(|message| message.kind == b'G')
}

/// Whether a Sync behind data that was at fault has been answered is found out by a marker. The client leaves
/// before, while and after that is on its way.
#[test]
fn a_client_may_leave_while_it_is_in_doubt_which_sync_a_copy_has_swallowed() {
    let db = Db::new();
    db.run(&["create table t (id int, note text)"]);
    let proxy = Proxy::start_far(&db, Config::one_backend(), AWAY);
    let first = pid(proxy.connect());
    for stays in 0..14 {
        for intruder in [Vec::new(), msg::parse("", "select 1")] {
            let mut client = proxy.connect();
            assert!(begin_to_copy(&mut client));
            client.send(&[msg::copy_data("bad\n"), msg::sync(), intruder].concat());
            std::thread::sleep(Duration::from_millis(stays));
            drop(client);
            let mut next = proxy.connect();
            assert_eq!(
                next.query("select 7").trace(),
                "T D C(SELECT 1) Z(I)",
                "after one that stayed {stays} ms"
            );
        }
    }
    assert_eq!(pid(proxy.connect()), first, "no backend is closed for it");
    proxy.stop();
}

/// And its transaction may be ended then.
#[test]
fn a_transaction_may_be_ended_while_it_is_in_doubt_which_sync_a_copy_has_swallowed() {
    let db = Db::new();
    let age = "max_age = { abort = \"40ms\", mode = \"enforce\", force = true }";
    db.run(&["create table t (id int, note text)"]);
    let proxy = Proxy::start_far(&db, Config::one_backend().with("budget.transaction", age), AWAY);
    let first = pid(proxy.connect());
    for waits in 0..30 {
        let mut client = proxy.connect();
        client.batch("begin");
        if begin_to_copy(&mut client) {
            std::thread::sleep(Duration::from_millis(waits));
            client.send(&msg::copy_data("bad\n"));
        }
        client.send(&msg::sync());
        let ended = client.recv_reply();
        assert!(!ended.closed && ended.error().is_some(), "after {waits} ms: {ended:?}");
        assert_eq!(client.query("rollback").trace(), "C(ROLLBACK) Z(I)", "after {waits} ms and {ended:?}");
        assert_eq!(client.query("select 7").value(), "7", "after {waits} ms and {ended:?}");
        client.bye();
    }
    assert_eq!(pid(proxy.connect()), first, "no backend is closed for it");
    proxy.stop();
}
