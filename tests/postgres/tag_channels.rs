//! Whose work a lease is, by every channel a tag may come through: start-up packet, `options`, user
//! name, comment and SET; which of them wins, and what is counted for it (budgets.md §2.2).

use crate::support::watch::{leases_of, row, rows};
use crate::support::{Config, Db, Login, Proxy, Wire, msg, until};
use std::time::{Duration, Instant};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// What PostgreSQL was sent, as it tells itself.
const SEEN: &str = "select query from pg_stat_activity where pid = pg_backend_pid()";

fn start(config: Config) -> (Db<'static>, Proxy) {
    let db = Db::new();
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

/// Tenant, request and route that the lease held now is held for.
fn held_for(proxy: &Proxy) -> Vec<String> {
    row(&mut proxy.console(), "select tenant, request, route from bursar.leases")
}

/// Begins a transaction with these first words and says whose it is.
fn opened_by(proxy: &Proxy, wire: &mut Wire, begin: &str) -> Vec<String> {
    wire.batch(begin);
    let held = held_for(proxy);
    wire.batch("rollback");
    held
}

#[test]
fn the_start_up_packet_and_the_user_suffix_tag_a_session() {
    let (db, proxy) = start(Config::one_backend().with("user.app", "password = \"app\""));
    let login = |user: &str| Login::new(user, db.name());
    let options = |options: &str| login("app").with("options", options);
    for (login, tenant, request) in [
        (login("app").with("bursar.tenant", "acme").with("bursar.request_id", "r1"), "acme", "r1"),
        (options("-c bursar.tenant=acme -cbursar.request_id=r2"), "acme", "r2"),
        (options("--bursar.tenant=acme --bursar.request-id=r3"), "acme", "r3"),
        (options("-c bursar.tenant=x -c work_mem=7MB"), "x", "-"),
        (login("app.acme"), "acme", "-"),
        (login("app.acme").with("bursar.tenant", "first"), "first", "-"),
        (login("app"), "app", "-"),
    ] {
        let mut wire = Wire::login(proxy.addr(), &login);
        assert_eq!(wire.query("select current_user").value(), "app");
        assert_eq!(opened_by(&proxy, &mut wire, "begin"), [tenant, request, "-"]);
        let mut console = proxy.console();
        let found = "select tenant, request, \"user\" from bursar.clients";
        assert_eq!(row(&mut console, found), [tenant, request, "app"]);
        wire.bye();
        until("it is gone", || rows(&mut console, "select id from bursar.clients").is_empty());
    }
    proxy.stop();
}

/// SHOW of what the start-up packet said needs no backend, and RESET goes back to it.
#[test]
fn what_the_start_up_packet_said_is_what_reset_goes_back_to() {
    let (_db, proxy) = start(Config::one_backend());
    let mut holder = proxy.connect();
    holder.batch("begin");
    let login = proxy.as_app().with("bursar.tenant", "home").with("options", "-c bursar.request_id=r1");
    let mut wire = Wire::login(proxy.addr(), &login);
    assert_eq!(wire.query("show bursar.request_id").value(), "r1");
    wire.batch("set bursar.tenant = 'away'");
    assert_eq!(wire.query("show bursar.tenant").value(), "away");
    wire.batch("reset bursar.tenant");
    assert_eq!(wire.query("show bursar.tenant").value(), "home");
    drop((wire, holder));
    proxy.stop();
}

/// A role that is known with its suffix keeps it, and the suffix still says whose work it is.
#[test]
fn a_role_known_with_its_suffix_keeps_it() {
    let (db, proxy) = start(Config::one_backend());
    db.cluster().admin().batch("create role \"app.acme\" login in role app");
    let mut wire = Wire::login(proxy.addr(), &Login::new("app.acme", db.name()));
    assert_eq!(opened_by(&proxy, &mut wire, "begin"), ["acme", "-", "-"]);
    wire.bye();
    proxy.stop();
}

#[test]
fn a_comment_tags_its_transaction() {
    let (_db, proxy) = start(Config::one_backend());
    let mut wire = proxy.connect();
    let parent = format!("begin /*traceparent='00-{TRACE}-00f067aa0ba902b7-01'*/");
    for (begin, held) in [
        ("begin /*request_id='r1',tenant='acme'*/", ["acme", "r1", "-"]),
        ("/*request_id='r2',route='%2Forders'*/ begin", ["app", "r2", "/orders"]),
        ("begin /*action='show',controller='orders',tenant='acme'*/;", ["acme", "-", "orders#show"]),
        ("begin /*request_id='c%204'*/;", ["app", "c 4", "-"]),
        (parent.as_str(), ["app", TRACE, "-"]),
        ("begin /* tenant of nobody */", ["app", "-", "-"]),
    ] {
        assert_eq!(opened_by(&proxy, &mut wire, begin), held, "{begin}");
    }
    // One inside it does not move the transaction to another request.
    wire.batch("begin /*request_id='opens'*/");
    wire.batch("select 1 /*request_id='inside'*/");
    assert_eq!(held_for(&proxy), ["app", "opens", "-"]);
    wire.batch("commit");
    // A single statement is a transaction, in either protocol.
    let once = "select 1 /*request_id='once',tenant='acme'*/";
    let of_once = "select tenant, leases_total, leases_now from bursar.request('once')";
    wire.batch(once);
    assert_eq!(row(&mut proxy.console(), of_once), ["acme", "1", "0"]);
    wire.ask(&[msg::unnamed(once), msg::sync()].concat());
    assert_eq!(row(&mut proxy.console(), of_once), ["acme", "2", "0"]);
    proxy.stop();
}

#[test]
fn a_comment_of_ours_does_not_reach_postgresql_and_others_do() {
    let texts = |wire: &mut Wire, sql: &str| {
        let simple = wire.query(sql).value();
        let extended = wire.ask(&[msg::unnamed(sql), msg::sync()].concat()).value();
        assert_eq!(simple, extended, "{sql}");
        simple
    };
    let (_db, proxy) = start(Config::one_backend());
    let mut wire = proxy.connect();
    for ours in [
        format!("{SEEN} /*request_id='r1',tenant='acme'*/"),
        format!("/*tenant='acme',request_id='r2'*/ {SEEN}"),
        format!("{SEEN} /*traceparent='00-{TRACE}-00f067aa0ba902b7-01'*/"),
    ] {
        assert_eq!(texts(&mut wire, &ours).trim(), SEEN);
    }
    let ended = texts(&mut wire, &format!("{SEEN} /*request_id='c%204'*/;"));
    assert!(ended.starts_with(SEEN) && !ended.contains("/*"), "{ended}");
    for kept in [
        format!("{SEEN} /* hello */"),
        format!("/*+ SeqScan(t) */ {SEEN}"),
        format!("{SEEN} /*+ SeqScan(t) */"),
    ] {
        assert_eq!(texts(&mut wire, &kept), kept);
    }
    let inner = SEEN.replace(' ', " /**/ ");
    assert_eq!(texts(&mut wire, &inner), inner);
    let quoted = "select '/*request_id=''r9''*/'";
    assert_eq!(wire.query(quoted).value(), "/*request_id='r9'*/");
    assert_eq!(rows(&mut proxy.console(), "select * from bursar.request('r9')").len(), 0);
    proxy.stop();

    let (_db, proxy) = start(Config::one_backend().with("tag", "strip_comments = false"));
    let mut wire = proxy.connect();
    let whole = format!("{SEEN} /*request_id='r1'*/");
    assert_eq!(texts(&mut wire, &whole), whole);
    assert_eq!(leases_of(&proxy, "r1"), "2");
    proxy.stop();
}

/// SET goes before a comment, which goes before the start-up packet.
#[test]
fn the_more_particular_tag_wins() {
    let (_db, proxy) = start(Config::one_backend());
    let login = proxy.as_app().with("bursar.request_id", "startup");
    let mut wire = Wire::login(proxy.addr(), &login);
    wire.batch("select 1");
    assert_eq!(opened_by(&proxy, &mut wire, "begin /*request_id='comment'*/"), ["app", "comment", "-"]);
    wire.batch("set bursar.request_id = 'set'");
    wire.batch("select 1");
    assert_eq!(opened_by(&proxy, &mut wire, "begin /*request_id='comment'*/"), ["app", "set", "-"]);
    wire.batch("reset bursar.request_id");
    wire.batch("select 1");
    assert_eq!(leases_of(&proxy, "startup"), "2", "before SET, and after RESET");
    assert_eq!((leases_of(&proxy, "comment"), leases_of(&proxy, "set")), ("1".into(), "2".into()));
    wire.bye();
    proxy.stop();
}

/// Each transaction is a lease of the request it is tagged with, and of no other.
#[test]
fn leases_are_counted_exactly() {
    let (_db, proxy) = start(Config::one_backend());
    let mut wire = proxy.connect_for("acme", "r1");
    wire.batch("select 1");
    for sql in ["begin", "select 1", "select 2", "commit"] {
        wire.batch(sql);
    }
    wire.send(&[msg::query("select 1"), msg::query("select 2"), msg::query("select 3")].concat());
    for _ in 0..3 {
        assert!(wire.recv_reply().error().is_none());
    }
    wire.ask(&[msg::unnamed("select 1"), msg::unnamed("select 2"), msg::sync()].concat());
    assert_eq!(leases_of(&proxy, "r1"), "6", "1 + 1 + 3 + 1 transactions");
    wire.batch("set bursar.request_id = 'r2'");
    wire.batch("select 1");
    assert_eq!((leases_of(&proxy, "r1"), leases_of(&proxy, "r2")), ("6".into(), "1".into()));
    wire.bye();
    proxy.stop();
}

#[test]
fn a_request_tag_that_nobody_used_is_dropped() {
    let config = Config::one_backend().with("tag", "idle_ttl = \"50ms\"");
    for (config, begin) in [(config.clone(), "begin"), (config.clone().lazy(), "begin"), (config.lazy(), "")]
    {
        let (_db, proxy) = start(config);
        let mut wire = proxy.connect_for("acme", "forgotten");
        let set = Instant::now();
        until("the tag is stale", || set.elapsed() > Duration::from_millis(60));
        if !begin.is_empty() {
            wire.batch(begin);
        }
        wire.batch("select 1");
        assert_eq!(wire.query("show bursar.request_id").value(), "");
        assert_eq!(wire.query("show bursar.tenant").value(), "acme", "the tenant stays");
        assert_eq!(rows(&mut proxy.console(), "select * from bursar.request('forgotten')").len(), 0);
        proxy.stop();
    }
}
