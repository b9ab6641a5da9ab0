//! Backends die: one by one, all together, with their server, for ten seconds (wire.md A7). No
//! waiter is left without an answer, no slot is lost, and only who was in the middle notices.

use crate::support::{Cluster, Config, Db, PATIENCE, Proxy, Stop, Wire, eventually, msg, signal, until};
use std::time::{Duration, Instant};

#[test]
fn an_idle_backend_that_dies_is_replaced_unnoticed() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(3));
    let mut clients: Vec<Wire> = (0..3).map(|_| proxy.connect()).collect();
    for _ in 0..5 {
        for client in &mut clients {
            client.batch("begin");
        }
        for client in &mut clients {
            client.batch("commit");
        }
        assert_eq!(db.pids().len(), 3);
        db.terminate_backends();
        for client in &mut clients {
            assert_eq!(client.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
        }
    }
    drop(clients);
    proxy.stop();
}

#[test]
fn who_is_in_the_middle_is_told_and_nobody_else() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2));
    let mut bystander = proxy.connect();
    bystander.batch("select 1");
    let terminate = |state: &str| {
        db.ask(&format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $DB and state = '{state}'"
        ));
    };

    let mut client = proxy.connect();
    client.batch("begin");
    terminate("idle in transaction");
    assert_eq!(client.recv_to_end().trace(), "E(FATAL 57P01) EOF");

    let mut client = proxy.connect();
    client.send(&msg::query("select pg_sleep(60)"));
    // Active it is before, too: with its settings, and before it has described the row.
    until("the statement runs", || db.backends("wait_event = 'PgSleep'") == 1);
    terminate("active");
    assert_eq!(client.recv_to_end().trace(), "T E(FATAL 57P01) EOF");

    let mut client = proxy.connect();
    client.send(&msg::query("begin; select 1; select pg_terminate_backend(pg_backend_pid())"));
    let reply = client.recv_to_end();
    assert!(reply.trace().ends_with("E(FATAL 57P01) EOF"), "{reply:?}");

    assert_eq!(bystander.query("select 2").value(), "2");
    assert_all_slots_work(&proxy, 2);
    proxy.stop();
}

#[test]
fn a_database_dropped_and_made_anew_is_ordinary_life() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2));
    let mut client = proxy.connect();
    for round in 0..3 {
        client.batch("create table only_here (id int)");
        let mut admin = db.cluster().admin();
        admin.batch(&format!("drop database {} with (force)", db.name()));
        admin.batch(&format!("create database {} owner app template template0", db.name()));
        let seen = client.query("select to_regclass('only_here') is null");
        assert_eq!(seen.value(), "t", "round {round}");
    }
    client.bye();
    proxy.stop();
}

#[test]
fn a_restarted_server_costs_idle_sessions_nothing() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    let proxy = Proxy::start(&db, Config::of_size(3).with("pool", "max_wait = \"15s\""));
    let mut idle: Vec<Wire> = (0..6).map(|_| proxy.connect()).collect();
    for how in [Stop::Fast, Stop::Immediate] {
        let mut busy = proxy.connect();
        busy.batch("begin");
        for client in &mut idle {
            client.batch("select 1");
        }
        cluster.stop(how);
        // PostgreSQL says why when it is asked to stop, and nothing when it crashes.
        let end = busy.recv_to_end();
        assert!(end.trace().contains("E(FATAL ") && end.trace().ends_with(" EOF"), "{}", end.trace());
        cluster.start();
        for client in &mut idle {
            assert_eq!(client.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
        }
        assert_all_slots_work(&proxy, 3);
    }
    drop(idle);
    proxy.stop();
}

#[test]
fn a_crash_of_the_server_is_survived() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    let proxy = Proxy::start(&db, Config::of_size(3).with("pool", "max_wait = \"15s\""));
    let mut idle = proxy.connect();
    idle.batch("select 1");
    let mut victim = proxy.connect();
    victim.batch("begin");
    let pid = victim.query("select pg_backend_pid()").value();
    let mut witness = db.cluster().admin();
    signal(pid.parse().expect("a pid"), "KILL");
    assert_eq!(
        victim.recv_to_end().trace(),
        "E(FATAL 08006) EOF",
        "nothing was on its way: all of it is undone"
    );
    // The server hears of the death after the socket has closed; until then it lets in whom it throws
    // out a moment later. Once the witness is out, it has, and takes nobody before it has recovered.
    let end = witness.recv_to_end();
    assert!(end.trace().ends_with("EOF"), "{end:?}");
    assert_eq!(idle.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
    assert_all_slots_work(&proxy, 3);
    drop(idle);
    proxy.stop();
}

#[test]
fn ten_seconds_without_a_server_leave_no_stuck_waiter_and_no_lost_slot() {
    const AWAY: Duration = Duration::from_secs(10);
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    let proxy = Proxy::start(&db, Config::of_size(3).with("pool", "max_wait = \"1s\""));
    let mut clients: Vec<Wire> = (0..10).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.batch("select 1");
    }
    cluster.stop(Stop::Fast);
    let away = Instant::now();
    let refused: usize = std::thread::scope(|scope| {
        let each = |client| scope.spawn(move || ask_until(client, away + AWAY));
        let asking: Vec<_> = clients.iter_mut().map(each).collect();
        asking.into_iter().map(|client| client.join().expect("a client that was answered in time")).sum()
    });
    assert!(refused >= 10 * 5, "only {refused} refusals in {AWAY:?} at one a second");
    cluster.start();
    for client in &mut clients {
        // The proxy may be waiting out its backoff.
        eventually("the session works again", PATIENCE, || {
            client.query("select 1").error().is_none().then_some(())
        });
    }
    assert_all_slots_work(&proxy, 3);
    drop(clients);
    proxy.stop();
}

/// Asks again and again; each answer must be a 53300 that leaves the session alive, after about
/// `max_wait`. Returns how many there were.
fn ask_until(client: &mut Wire, end: Instant) -> usize {
    let mut refused = 0;
    while Instant::now() < end {
        let asked = Instant::now();
        let reply = client.query("select 1");
        assert_eq!(reply.trace(), "E(53300) Z(I)");
        assert!(asked.elapsed() < Duration::from_secs(4), "waited {:?}", asked.elapsed());
        refused += 1;
    }
    refused
}

/// As many transactions at once as the pool has backends, each on one of its own; and one more has
/// to wait.
fn assert_all_slots_work(proxy: &Proxy, size: usize) {
    let mut holders: Vec<Wire> = (0..size).map(|_| proxy.connect()).collect();
    let mut pids = Vec::new();
    for holder in &mut holders {
        holder.batch("begin");
        pids.push(holder.query("select pg_backend_pid()").value());
    }
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), size, "each transaction has a backend");
    let mut waiter = proxy.connect();
    waiter.send(&msg::query("select 1"));
    assert!(waiter.try_recv(Duration::from_millis(50)).is_err(), "the pool has no more than {size}");
    holders.pop().expect("at least one").bye();
    assert_eq!(waiter.recv_reply().value(), "1");
}
