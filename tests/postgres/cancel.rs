//! Cancel requests: they reach what the session runs now, or nothing.

use crate::support::watch::metric;
use crate::support::{Config, Db, Gate, Proxy, Wire, eventually, msg, until, wire};
use std::time::Duration;

const SLEEP: &str = "select pg_sleep(60)";

/// Starts a long statement and waits until PostgreSQL runs it.
fn start_sleep(db: &Db<'_>, client: &mut Wire) {
    client.send(&msg::query(SLEEP));
    until("the statement runs", || sleeping(db) == 1);
}

fn sleeping(db: &Db<'_>) -> usize {
    db.running("pg_sleep")
}

#[test]
fn a_running_statement_is_cancelled() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    for _ in 0..3 {
        start_sleep(&db, &mut client);
        client.cancel();
        assert_eq!(client.recv_reply().trace(), "T E(57014) Z(I)");
        assert_eq!(client.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
    }
    client.bye();
    proxy.stop();
}

/// Settings and statement are brought to the backend in the same write.
#[test]
fn a_statement_is_cancelled_that_came_behind_work_of_bursar() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let (mut client, mut other) = (proxy.connect(), proxy.connect());
    client.batch("set work_mem = '1MB'");
    other.batch("set work_mem = '2MB'");
    client.send(&[msg::parse("s1", SLEEP), msg::bind("", "s1"), msg::execute("", 0), msg::sync()].concat());
    until("the statement runs", || sleeping(&db) == 1);
    client.cancel();
    assert_eq!(client.recv_reply().trace(), "1 2 E(57014) Z(I)");
    drop((client, other));
    proxy.stop();
}

/// And the BEGIN as well, which is the client's own: no more than its statement does it wait for a
/// ReadyForQuery to be known as such.
#[test]
fn a_statement_is_cancelled_that_came_behind_settings_and_a_begin() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().lazy());
    let (mut client, mut other) = (proxy.connect(), proxy.connect());
    client.batch("set work_mem = '1MB'");
    let named = [msg::parse("s1", SLEEP), msg::bind("", "s1"), msg::execute("", 0), msg::sync()].concat();
    for (sleep, cancelled) in [(msg::query(SLEEP), "T E(57014) Z(E)"), (named, "1 2 E(57014) Z(E)")] {
        other.batch("set work_mem = '2MB'");
        client.batch("begin");
        client.send(&sleep);
        until("the statement runs", || sleeping(&db) == 1);
        client.cancel();
        assert_eq!(client.recv_reply().trace(), cancelled);
        client.batch("rollback");
    }
    drop((client, other));
    proxy.stop();
}

/// The signal for one statement is on its way while the next one is sent: in session mode, and inside of a
/// transaction, that goes to the same backend.
#[test]
fn the_next_statement_is_not_hit() {
    let db = Db::new();
    for mode in ["session", "transaction"] {
        let proxy = Proxy::start(&db, Config::one_backend().with("pool", &format!("mode = \"{mode}\"")));
        let mut client = proxy.connect();
        for round in 0..20 {
            client.batch("begin");
            client.batch("savepoint s");
            start_sleep(&db, &mut client);
            let mut canceller = Wire::open(proxy.addr()).expect("a connection to cancel by");
            canceller.send(&msg::cancel_request(client.pid, &client.key));
            assert!(client.recv_reply().trace().starts_with("T E(57014) Z"));
            client.batch("rollback to s");
            let slept = client.query("select pg_sleep(0.02)").trace();
            assert!(slept.starts_with("T D C(SELECT 1) Z"), "{mode} mode, round {round}: {slept}");
            client.batch("rollback");
        }
        drop(client);
        proxy.stop();
    }
}

/// Drivers take the end of the connection as PostgreSQL means it: from then on no signal will come.
#[test]
fn the_connection_of_a_cancel_ends_when_the_signal_has_been_sent() {
    let db = Db::new();
    let proxy = Proxy::start_far(&db, Config::one_backend(), Duration::from_millis(20));
    let mut client = proxy.connect();
    start_sleep(&db, &mut client);
    client.cancel();
    assert_eq!(metric(&proxy, "bursar_cancels_total{result=\"forwarded\"}"), 1.0);
    assert_eq!(client.recv_reply().trace(), "T E(57014) Z(I)");
    drop(client);
    proxy.stop();
}

#[test]
fn a_queued_session_is_cancelled_while_it_waits() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("pool", "max_wait = \"60s\""));
    let mut holder = proxy.connect();
    holder.batch("begin");
    let mut waiter = proxy.connect();
    waiter.send(&[msg::query("select 1"), msg::query("select 2")].concat());
    // A cancel that comes before the query is in the queue is rightly lost: ask until it is heard.
    let first = eventually("the waiter is told", Duration::from_secs(10), || {
        waiter.cancel();
        waiter.try_recv(Duration::from_millis(20)).ok()
    });
    let first = first.expect("the connection stays");
    assert_eq!(first.to_string(), "E(57014)");
    assert_eq!(waiter.recv_reply().trace(), "Z(I)");
    // The second query waits in turn, and runs when there is a backend.
    holder.batch("commit");
    assert_eq!(waiter.recv_reply().trace(), "T D C(SELECT 1) Z(I)");
    assert_eq!(holder.query("select 3").value(), "3");
    drop((holder, waiter));
    proxy.stop();
}

#[test]
fn a_wrong_key_cancels_nothing() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    start_sleep(&db, &mut client);
    let mut key = client.key.clone();
    key[0] ^= 1;
    wire::cancel(proxy.addr(), client.pid, &key);
    wire::cancel(proxy.addr(), client.pid.wrapping_add(1), &client.key);
    wire::cancel(proxy.addr(), client.pid, &client.key[..3]);
    wire::cancel(proxy.addr(), client.pid, &[client.key.clone(), vec![0; 300]].concat());
    wire::cancel(proxy.addr(), 0, &[]);
    assert_eq!(sleeping(&db), 1, "it still runs");
    client.cancel();
    assert_eq!(client.recv_reply().trace(), "T E(57014) Z(I)");
    client.bye();
    proxy.stop();
}

/// Whatever set it going, and wherever in a transaction: asyncpg parses with a Flush and no Sync.
#[test]
fn a_statement_in_a_transaction_is_cancelled_however_it_was_started() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    let oid = db.value("select 'pg_catalog.pg_sleep'::regproc::oid").parse().expect("an oid");
    let prepared = [msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat();
    for (start, cancelled) in
        [(prepared, "2 E(57014) Z(E)"), (msg::function_call(oid, &["600"]), "E(57014) Z(E)")]
    {
        client.send(&[msg::parse("s", "select pg_sleep(600)"), msg::flush()].concat());
        assert_eq!(client.recv().map(|reply| reply.kind), Some(b'1'));
        assert_eq!(client.query("begin").trace(), "C(BEGIN) Z(T)");
        client.send(&start);
        until("it sleeps", || db.backends("wait_event = 'PgSleep'") == 1);
        client.cancel();
        assert_eq!(client.recv_reply().trace(), cancelled);
        assert_eq!(client.query("rollback").trace(), "C(ROLLBACK) Z(I)");
        client.batch("deallocate s");
    }
    client.bye();
    proxy.stop();
}

#[test]
fn the_key_of_an_idle_session_does_not_reach_the_next_holder_of_its_backend() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut idle = proxy.connect();
    assert_eq!(idle.query("select 1").value(), "1");
    let mut busy = proxy.connect();
    start_sleep(&db, &mut busy);
    for _ in 0..20 {
        idle.cancel();
    }
    assert_eq!(sleeping(&db), 1, "it still runs");
    busy.cancel();
    assert_eq!(busy.recv_reply().trace(), "T E(57014) Z(I)");
    drop((idle, busy));
    proxy.stop();
}

/// Each signal is a connection, for which PostgreSQL starts a process.
#[test]
fn a_flood_of_cancels_is_one_connection_at_a_time() {
    const CANCELS: usize = 100;
    let db = Db::new();
    let gate = Gate::before(db.cluster().addr());
    let proxy = Proxy::start_at(&gate, &db, Config::one_backend());
    let mut client = proxy.connect();
    start_sleep(&db, &mut client);
    gate.take_most();
    let before = gate.came();
    std::thread::scope(|scope| {
        for _ in 0..CANCELS {
            scope.spawn(|| client.cancel());
        }
    });
    assert_eq!(gate.take_most(), 1);
    assert!(gate.came() > before);
    assert_eq!(client.recv_reply().trace(), "T E(57014) Z(I)");
    // All of them were meant for that statement.
    assert_eq!(client.query("select pg_sleep(0.2)").code(), "");
    let told = |result| metric(&proxy, &format!("bursar_cancels_total{{result=\"{result}\"}}"));
    assert_eq!(told("forwarded") + told("idle"), CANCELS as f64);
    drop(client);
    proxy.stop();
}

/// The race of a cancel in flight with the backend's next holder.
#[test]
fn late_cancels_never_hit_another_session() {
    const ROUNDS: usize = 150;
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut hit = 0;
    std::thread::scope(|scope| {
        let bystander = scope.spawn(|| {
            let mut client = proxy.connect();
            for _ in 0..4 * ROUNDS {
                let reply = client.query("select count(*) from generate_series(1, 3000)");
                assert_eq!(reply.trace(), "T D C(SELECT 1) Z(I)");
            }
        });
        let mut target = proxy.connect();
        for _ in 0..ROUNDS {
            target.send(&msg::query("select count(*) from generate_series(1, 3000)"));
            target.cancel();
            let reply = target.recv_reply();
            hit += usize::from(reply.code() == "57014");
            assert!(reply.error().is_none() || reply.code() == "57014", "{reply:?}");
        }
        bystander.join().expect("the bystander is never cancelled");
    });
    println!("{hit} of {ROUNDS} cancels were in time");
    proxy.stop();
}

/// What has waited runs as far as its client knows: a cancel that comes at the moment of the grant, or
/// before the server has read the statement, is not lost.
#[test]
fn a_cancel_is_heard_that_comes_as_a_backend_is_granted() {
    const ROUNDS: usize = 100;
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let (mut holder, mut waiter, mut console) = (proxy.connect(), proxy.connect(), proxy.console());
    waiter.batch("set work_mem = '1MB'");
    let addr = proxy.addr();
    for round in 0..ROUNDS {
        holder.batch("begin");
        let name = format!("s{round}");
        let sleep = format!("select pg_sleep(60), {}", round / 3);
        let named = [msg::parse(&name, &sleep), msg::bind("", &name), msg::execute("", 0), msg::sync()];
        waiter.send(&if round % 3 == 0 { msg::query(SLEEP) } else { named.concat() });
        until("it waits", || console.query("select count(*) from bursar.queue").value() == "1");
        let (pid, key) = (waiter.pid, waiter.key.clone());
        std::thread::scope(|scope| {
            let cancel = scope.spawn(move || wire::cancel(addr, pid, &key));
            for _ in 0..(round * 20_000 / ROUNDS) {
                std::hint::spin_loop();
            }
            holder.batch("commit");
            cancel.join().expect("a cancel");
        });
        let reply = waiter.recv_reply();
        assert_eq!(reply.code(), "57014", "round {round}: {reply:?}");
    }
    drop((holder, waiter, console));
    proxy.stop();
}
