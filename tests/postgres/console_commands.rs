//! What the console is told to do, and by whom: PAUSE, KILL, RECONNECT and what is no command
//! (interface.md, "Admin console"; SHUTDOWN and RELOAD are in `drain` and `reload`).

use crate::support::watch::{leases, printed, psql, row, rows};
use crate::support::{Config, Db, Login, Proxy, Refused, Wire, msg, until};

const TOLD: &str = "E(FATAL 57P01) EOF";

#[test]
fn pause_waits_for_leases_and_keeps_new_work_waiting() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2).with("pool", "max_wait = \"60s\""));
    let mut holder = proxy.connect();
    holder.batch("begin");
    let mut newcomer = proxy.connect();
    let (mut pausing, mut console) = (proxy.console(), proxy.console());
    pausing.send(&msg::query("pause"));
    until("the pool is paused", || row(&mut console, "select paused from bursar.pools") == ["t"]);
    newcomer.send(&msg::query("select 1"));
    until("new work waits", || rows(&mut console, "show queue").len() == 1);
    assert!(pausing.recv_arrived().is_empty(), "a lease is held");
    holder.batch("commit");
    assert_eq!(pausing.recv_reply().trace(), "C(PAUSE) Z(I)");
    assert_eq!(leases(&proxy), 0);
    assert!(newcomer.recv_arrived().is_empty());
    assert_eq!(console.query("resume").trace(), "C(RESUME) Z(I)");
    assert_eq!(newcomer.recv_reply().value(), "1");
    // With nothing held it is done at once, and an idle backend is no way round it.
    assert_eq!(console.query("pause").trace(), "C(PAUSE) Z(I)");
    newcomer.send(&msg::query("select 2"));
    until("new work waits", || rows(&mut console, "show queue").len() == 1);
    assert!(newcomer.recv_arrived().is_empty());
    assert_eq!(console.query("resume").trace(), "C(RESUME) Z(I)");
    assert_eq!(newcomer.recv_reply().value(), "2");
    drop((holder, newcomer));
    proxy.stop();
}

#[test]
fn kills_hit_whom_they_name() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(5));
    let mut console = proxy.console();
    let mut spared = proxy.connect_for("spared", "r-spared");
    spared.batch("begin");

    let mut victim = proxy.connect();
    let named = format!("select id from bursar.clients where port = {}", victim.local_port());
    let id = console.query(&named).value();
    assert_eq!(console.query(&format!("kill_client {id}")).trace(), "C(KILL_CLIENT 1) Z(I)");
    assert_eq!(victim.recv_to_end().trace(), TOLD);
    until("it is gone", || rows(&mut console, &named).is_empty());
    assert_eq!(console.query(&format!("kill_client {id}")).trace(), "E(55000) Z(I)");

    let mut victims: Vec<Wire> = (0..2).map(|_| proxy.connect_for("acme", "r-1")).collect();
    victims.iter_mut().for_each(|victim| drop(victim.batch("begin")));
    assert_eq!(console.query("kill_request 'r-1'").trace(), "C(KILL_REQUEST 2) Z(I)");
    victims.iter_mut().for_each(|victim| assert_eq!(victim.recv_to_end().trace(), TOLD));
    let acme = "select id from bursar.clients where tenant = 'acme'";
    until("they are gone", || rows(&mut console, acme).is_empty());

    let mut victim = proxy.connect_for("acme", "r-2");
    victim.send(&msg::query("select pg_sleep(60)"));
    until("the statement runs", || db.running("pg_sleep") == 1);
    assert_eq!(console.query("kill_tenant acme").trace(), "C(KILL_TENANT 1) Z(I)");
    assert!(victim.recv_to_end().closed);
    until("PostgreSQL runs it no more", || db.running("pg_sleep") == 0);

    assert_eq!(spared.query("select 1").value(), "1");
    assert_eq!(console.query(&format!("kill {}", db.name())).trace(), "C(KILL) Z(I)");
    assert_eq!(spared.recv_to_end().trace(), TOLD);
    until("its backends are gone", || db.pids().is_empty());
    assert_eq!(proxy.connect().query("select 1").value(), "1", "and who comes anew is served");
    // PgBouncer's way back in, which scripts use, does no harm.
    assert_eq!(console.query(&format!("resume {}", db.name())).trace(), "C(RESUME) Z(I)");
    assert_eq!(proxy.connect().query("select 1").value(), "1");
    proxy.stop();
}

#[test]
fn reconnect_replaces_every_backend() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2));
    let mut holder = proxy.connect();
    holder.batch("begin");
    let held = holder.query("select pg_backend_pid()").value();
    let mut client = proxy.connect();
    let idle = client.query("select pg_backend_pid()").value();
    let has = |pid: &str| db.pids().iter().any(|each| each.to_string() == pid);

    let mut console = proxy.console();
    let closes = "select remote_pid from bursar.servers where close_needed = 1";
    assert_eq!(rows(&mut console, closes), [[""; 1]; 0]);
    assert_eq!(console.query("reconnect").trace(), "C(RECONNECT) Z(I)");
    until("the idle one is closed", || !has(&idle));
    assert_eq!(holder.query("select pg_backend_pid()").value(), held, "the held one stays");
    until("it is the only one to close", || rows(&mut console, closes) == [[held.as_str()]]);
    holder.batch("commit");
    until("the held one is closed once it is back", || !has(&held));
    let pid = client.query("select pg_backend_pid()").value();
    assert!(pid != idle && pid != held, "{pid} is new");
    drop((holder, client));
    proxy.stop();
}

#[test]
fn reconnect_replaces_a_backend_that_somebody_waits_for() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("pool", "max_wait = \"60s\""));
    let (mut holder, mut waiter) = (proxy.connect(), proxy.connect());
    holder.batch("begin");
    let held = holder.query("select pg_backend_pid()").value();
    waiter.send(&msg::query("select pg_backend_pid()"));
    let mut console = proxy.console();
    until("it waits", || rows(&mut console, "show queue").len() == 1);
    assert_eq!(console.query("reconnect").trace(), "C(RECONNECT) Z(I)");
    holder.batch("commit");
    assert_ne!(waiter.recv_reply().value(), held, "handed from one to the other, it would never be replaced");
    drop((holder, waiter));
    proxy.stop();
}

#[test]
fn an_unknown_command_is_an_error_and_no_more() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut console = proxy.console();
    for command in ["show nonsense", "drop table pools", "selec", "select * from bursar.nonsense"] {
        let reply = console.query(command);
        assert!(reply.trace().starts_with("E(42") && reply.trace().ends_with("Z(I)"), "{command}: {reply:?}");
    }
    assert!(console.query("show version").error().is_none());
    console.bye();
    proxy.stop();
}

/// PgBouncer's commands that Bursar does not have are refused as such, and HELP says so.
#[test]
fn what_is_not_in_this_version_is_said_to_be_not() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut console = proxy.console();
    for (command, help) in [
        ("disable app", "DISABLE db"),
        ("enable app", "ENABLE db"),
        ("wait_close", "WAIT_CLOSE [db]"),
        ("set size = 3", "SET key = value"),
    ] {
        assert_eq!(console.query(command).trace(), "E(0A000) Z(I)", "{command}");
        let help = format!("select what from bursar.help where command = '{help}'");
        assert_eq!(row(&mut console, &help), ["not in this version: ERROR 0A000"], "{command}");
    }
    assert_eq!(console.query("show version").rows().len(), 1);
    console.bye();
    proxy.stop();
}

#[test]
fn the_console_is_for_admins_only() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("admin", "users = [\"keeper\"]"));
    let keeper = psql(&proxy, "keeper", "SHOW VERSION");
    assert!(keeper.status.success(), "{}", printed(&keeper));
    let refused = psql(&proxy, "app", "SHOW VERSION");
    assert_eq!(refused.status.code(), Some(2), "psql's code for no connection");
    let words = "permission denied for database \"bursar\" to user \"app\"";
    assert!(printed(&refused).contains(words), "{}", printed(&refused));
    match Wire::try_login(proxy.addr(), &Login::new("app", "bursar")) {
        Err(Refused::Said(reply)) => assert_eq!(reply.trace(), "E(FATAL 42501) EOF"),
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(proxy.connect().query("select 1").value(), "1", "and databases are for everybody");
    proxy.stop();
}
