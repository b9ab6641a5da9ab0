//! What a session leaves on its backend: kept for the session while it lives, and gone before
//! anybody else gets the backend.

use crate::support::{Config, Db, Login, Proxy, Wire, msg, until};
use std::time::{Duration, Instant};

/// How state is made, a look at it, and what a session that never made it sees.
struct Made {
    by: &'static str,
    look: &'static str,
    virgin: &'static str,
}

const fn made(by: &'static str, look: &'static str, virgin: &'static str) -> Made {
    Made { by, look, virgin }
}

const SETUP: &[&str] = &[
    "create sequence counter",
    "create schema elsewhere",
    "create function unseen() returns void language plpgsql as \
     $$ begin perform set_config('work_mem', '9MB', false); end $$",
];

/// `pg_locks` shows those of other databases too.
const LOCKS: &str = "select count(*) from pg_locks where locktype = 'advisory' \
     and database = (select oid from pg_database where datname = current_database())";

const STATE: &[Made] = &[
    made("set work_mem = '7MB'", "show work_mem", "4MB"),
    made("SET SESSION work_mem TO '7MB'", "show work_mem", "4MB"),
    made("/* x */ set work_mem = '7MB'", "show work_mem", "4MB"),
    made("begin; set work_mem = '7MB'; commit", "show work_mem", "4MB"),
    made("set work_mem = '7MB'; reset statement_timeout", "show work_mem", "4MB"),
    made("select set_config('work_mem', '7MB', false)", "show work_mem", "4MB"),
    made("do $$ begin set work_mem = '7MB'; end $$", "show work_mem", "4MB"),
    made("set search_path = elsewhere", "show search_path", "\"$user\", public"),
    made("set timezone = 'Asia/Tokyo'", "show timezone", "UTC"),
    made("set statement_timeout = 1", "show statement_timeout", "0"),
    made("set app.tenant_id = 'acme'", "select coalesce(current_setting('app.tenant_id', true), '')", ""),
    made(
        "select set_config('app.tenant_id', 'acme', false)",
        "select coalesce(current_setting('app.tenant_id', true), '')",
        "",
    ),
    made("set default_transaction_read_only = on", "show transaction_read_only", "off"),
    made(
        "set session characteristics as transaction isolation level serializable",
        "show transaction_isolation",
        "read committed",
    ),
    made("set role group_role", "select current_user", "app"),
    made("listen bell", "select count(*) from pg_listening_channels()", "0"),
    made("create temp table mine (id int)", "select to_regclass('pg_temp.mine') is null", "t"),
    made("create table pg_temp.mine (id int)", "select to_regclass('pg_temp.mine') is null", "t"),
    made("select 1 as id into temp mine", "select to_regclass('pg_temp.mine') is null", "t"),
    made("select pg_advisory_lock(7)", LOCKS, "0"),
    made("select pg_try_advisory_lock(7)", LOCKS, "0"),
    made("select pg_advisory_lock_shared(7)", LOCKS, "0"),
    made("begin; declare c cursor with hold for select 1; commit", "select count(*) from pg_cursors", "0"),
    made("prepare mine as select 1", "select count(*) from pg_prepared_statements", "0"),
];

/// The first value of a reply, or the SQLSTATE.
fn look(client: &mut Wire, sql: &str) -> String {
    let reply = client.query(sql);
    if reply.error().is_some() { reply.code() } else { reply.value() }
}

fn start(config: Config) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(SETUP);
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

#[test]
fn no_state_reaches_the_next_session() {
    let (db, proxy) = start(Config::one_backend());
    for Made { by, look: sql, virgin } in STATE {
        assert_eq!(look(&mut db.direct(), sql), *virgin, "PostgreSQL itself: {sql}");
        for leave in [true, false] {
            let mut first = proxy.connect();
            first.batch(by);
            if leave {
                first.bye();
            } else {
                drop(first);
            }
            let mut second = proxy.connect();
            assert_eq!(look(&mut second, sql), *virgin, "after {by}");
            second.bye();
        }
    }
    proxy.stop();
}

#[test]
fn nor_when_it_was_made_in_the_extended_protocol() {
    let (_db, proxy) = start(Config::one_backend());
    for Made { by, look: sql, virgin } in STATE.iter().filter(|made| !made.by.contains(';')) {
        let mut first = proxy.connect();
        let made = [msg::parse("", by), msg::bind("", ""), msg::execute("", 0), msg::sync()].concat();
        let reply = first.ask(&made);
        assert!(reply.error().is_none(), "{by}: {reply:?}");
        drop(first);
        let mut second = proxy.connect();
        assert_eq!(look(&mut second, sql), *virgin, "after {by}");
        second.bye();
    }
    let mut first = proxy.connect();
    first.ask(&[msg::parse("named", "select 1"), msg::sync()].concat());
    first.bye();
    let mut second = proxy.connect();
    let named = "select count(*) from pg_prepared_statements where name = 'named'";
    assert_eq!(look(&mut second, named), "0");
    assert_eq!(second.ask(&[msg::bind("", "named"), msg::sync()].concat()).trace(), "E(26000) Z(I)");
    second.bye();
    proxy.stop();
}

/// A library cannot be unloaded: such a backend must be closed.
#[test]
fn a_loaded_library_does_not_reach_the_next_session() {
    let (db, proxy) = start(Config::one_backend());
    let login = Login::new("postgres", db.name());
    let mut first = Wire::login(proxy.addr(), &login);
    first.batch("load 'auto_explain'");
    first.bye();
    let mut second = Wire::login(proxy.addr(), &login);
    let seen = "select coalesce(current_setting('auto_explain.log_min_duration', true), 'none')";
    assert_eq!(second.query(seen).value(), "none");
    second.bye();
    proxy.stop();
}

#[test]
fn with_reset_always_not_even_unseen_state_does() {
    let (_db, proxy) = start(Config::one_backend().with("pool", "reset = \"always\""));
    let mut first = proxy.connect();
    first.batch("select unseen()");
    first.batch("select nextval('counter')");
    first.bye();
    let mut second = proxy.connect();
    assert_eq!(second.query("show work_mem").value(), "4MB");
    assert_eq!(second.query("select lastval()").code(), "55000");
    second.bye();
    proxy.stop();
}

#[test]
fn a_session_keeps_its_own_state_among_others() {
    let (_db, proxy) = start(Config::of_size(3).with("pool", "reuse = \"round_robin\""));
    let mut clients: Vec<Wire> = (0..3).map(|_| proxy.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.batch(&format!("set work_mem = '{}MB'", n + 5));
        client.batch(&format!("prepare mine as select {n}"));
        client.ask(&[msg::parse("named", &format!("select {n}")), msg::sync()].concat());
        client.batch(&format!("create temp table mine as select {n} as n"));
    }
    for _ in 0..3 {
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.query("show work_mem").value(), format!("{}MB", n + 5));
            assert_eq!(client.query("execute mine").value(), n.to_string());
            assert_eq!(client.query("select n from mine").value(), n.to_string());
            let run = [msg::bind("", "named"), msg::execute("", 0), msg::sync()].concat();
            assert_eq!(client.ask(&run).value(), n.to_string());
        }
    }
    drop(clients);
    proxy.stop();
}

/// What ends with its transaction does not tie the session to its backend.
#[test]
fn transactional_state_does_not_hold_a_backend() {
    let (_db, proxy) = start(Config::one_backend());
    let mut first = proxy.connect();
    let mut second = proxy.connect();
    for local in [
        "begin; set local work_mem = '7MB'; commit",
        "begin; select set_config('work_mem', '7MB', true); commit",
        "begin; select pg_advisory_xact_lock(7); commit",
        "begin; declare c cursor for select 1; fetch c; commit",
    ] {
        let before = first.query("select pg_backend_pid()").value();
        first.batch(local);
        assert_eq!(second.query("show work_mem").value(), "4MB", "while the first stays: {local}");
        assert_eq!(second.query("select pg_backend_pid()").value(), before, "{local}");
    }
    drop((first, second));
    proxy.stop();
}

#[test]
fn a_pinned_backend_is_waited_for_and_comes_back() {
    let (db, proxy) = start(Config::one_backend().with("pool", "max_wait = \"1s\""));
    let mut first = proxy.connect();
    first.batch("listen bell");
    let mut second = proxy.connect();
    let asked = Instant::now();
    assert_eq!(second.query("select 1").trace(), "E(53300) Z(I)");
    assert!(asked.elapsed() >= Duration::from_millis(300), "refused after {:?}", asked.elapsed());
    let mut direct = db.direct();
    direct.batch("notify bell, 'ding'");
    assert_eq!(first.recv().expect("a notification").to_string(), "A(bell ding)");
    first.bye();
    until("the backend is free", || second.query("select 1").error().is_none());
    direct.batch("notify bell, 'dong'");
    assert_eq!(second.query("select 1").trace(), "T D C(SELECT 1) Z(I)", "and nobody else hears it");
    second.bye();
    proxy.stop();
}

/// A driver's pool resets its sessions itself; after that nothing holds the backend.
#[test]
fn discard_all_unpins() {
    let (_db, proxy) = start(Config::one_backend());
    let mut first = proxy.connect();
    first.batch("set work_mem = '7MB'");
    first.batch("prepare mine as select 1");
    first.batch("discard all");
    let mut second = proxy.connect();
    assert_eq!(second.query("show work_mem").value(), "4MB");
    assert_eq!(first.query("show work_mem").value(), "4MB");
    drop((first, second));
    proxy.stop();
}

#[test]
fn session_mode_keeps_the_backend_and_cleans_it() {
    let (_db, proxy) = start(Config::one_backend().with("pool", "mode = \"session\""));
    let mut first = proxy.connect();
    first.batch("set work_mem = '7MB'");
    first.batch("create temp table mine (id int)");
    assert_eq!(first.query("show work_mem").value(), "7MB");
    let pid = first.query("select pg_backend_pid()").value();
    assert_eq!(pid, first.pid.to_string(), "wire.md I (1): in session mode the pid is the backend's own");
    first.bye();
    let mut second = proxy.connect();
    assert_eq!(second.query("show work_mem").value(), "4MB");
    assert_eq!(second.query("select to_regclass('pg_temp.mine') is null").value(), "t");
    second.bye();
    proxy.stop();
}
