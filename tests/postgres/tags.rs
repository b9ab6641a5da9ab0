//! Whose work a lease is: tags by SET, by start-up packet, by comment and by user name (budgets.md
//! §2.2), and that none of them needs a backend.

use crate::support::{Config, Db, Login, Proxy, Wire, msg};

/// A proxy whose only backend is taken, by the session returned with it.
fn start() -> (Db<'static>, Proxy, Wire) {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("pool", "max_wait = \"100ms\""));
    let mut holder = proxy.connect();
    holder.batch("begin");
    (db, proxy, holder)
}

fn pbe(sql: &str) -> Vec<u8> {
    [msg::parse("", sql), msg::bind("", ""), msg::execute("", 0)].concat()
}

/// `SELECT leases_total` of a request, from the console.
fn leases(proxy: &Proxy, request: &str) -> String {
    proxy.console().query(&format!("select leases_total from bursar.request('{request}')")).value()
}

#[test]
fn set_show_and_reset_need_no_backend() {
    let (_db, proxy, holder) = start();
    let mut client = proxy.connect();
    assert_eq!(client.query("select 1").trace(), "E(53300) Z(I)", "the backend is taken");
    for key in ["tenant", "request_id", "user_id", "thread_id", "session_id", "class", "route"] {
        let set = client.query(&format!("set bursar.{key} = 'it''s {key}'"));
        assert_eq!(set.trace(), "C(SET) Z(I)");
        let shown = client.query(&format!("show bursar.{key}"));
        assert_eq!(shown.trace(), "T D C(SHOW) Z(I)");
        assert_eq!(shown.columns(), [format!("bursar.{key}")]);
        assert_eq!(shown.value(), format!("it's {key}"));
    }
    for (set, shown) in [
        ("set bursar.deadline_ms = 250", "250"),
        ("SET SESSION Bursar.Deadline_MS TO '300' ;", "300"),
        ("set \"bursar\".\"deadline_ms\" to 350", "350"),
    ] {
        assert_eq!(client.query(set).trace(), "C(SET) Z(I)", "{set}");
        assert_eq!(client.query("show bursar.deadline_ms").value(), shown, "{set}");
    }
    assert_eq!(client.query("set bursar.max_leases = 9").trace(), "C(SET) Z(I)");
    assert_eq!(client.query("reset bursar.route").trace(), "C(RESET) Z(I)");
    assert_eq!(client.query("show bursar.route").value(), "");
    drop((client, holder));
    proxy.stop();
}

#[test]
fn nor_do_they_in_the_extended_protocol() {
    let (_db, proxy, holder) = start();
    let mut client = proxy.connect();
    let set = "set bursar.request_id = 'r1'";
    assert_eq!(client.ask(&[pbe(set), msg::sync()].concat()).trace(), "1 2 C(SET) Z(I)");
    let described = [
        msg::parse("", set),
        msg::describe_statement(""),
        msg::bind("", ""),
        msg::describe_portal(""),
        msg::execute("", 0),
        msg::close_portal(""),
        msg::sync(),
    ];
    assert_eq!(client.ask(&described.concat()).trace(), "1 t n 2 n C(SET) 3 Z(I)");
    let named = [msg::parse("tag", set), msg::sync(), msg::bind("", "tag"), msg::execute("", 0), msg::sync()]
        .concat();
    client.send(&named);
    assert_eq!(client.recv_reply().trace(), "1 Z(I)");
    assert_eq!(client.recv_reply().trace(), "2 C(SET) Z(I)");
    let show = [
        msg::parse("", "show bursar.request_id"),
        msg::bind("", ""),
        msg::describe_portal(""),
        msg::execute("", 0),
        msg::sync(),
    ];
    let shown = client.ask(&show.concat());
    assert_eq!((shown.trace().as_str(), shown.value().as_str()), ("1 2 T D C(SHOW) Z(I)", "r1"));
    drop((client, holder));
    proxy.stop();
}

#[test]
fn they_keep_their_place_among_other_statements() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    let set = "set bursar.request_id = 'r1'";
    let pipeline = [pbe("select 1"), pbe(set), pbe("select 2"), msg::sync()].concat();
    assert_eq!(client.ask(&pipeline).trace(), "1 2 D C(SELECT 1) 1 2 C(SET) 1 2 D C(SELECT 1) Z(I)");
    let pipeline = [pbe(set), pbe("select no_such_column"), pbe(set), msg::sync()].concat();
    assert_eq!(client.ask(&pipeline).trace(), "1 2 C(SET) E(42703) Z(I)");
    let queries = [msg::query("select 1"), msg::query(set), msg::query("select 2")].concat();
    client.send(&queries);
    let traces: Vec<String> = (0..3).map(|_| client.recv_reply().trace()).collect();
    assert_eq!(traces, ["T D C(SELECT 1) Z(I)", "C(SET) Z(I)", "T D C(SELECT 1) Z(I)"]);
    client.bye();
    proxy.stop();
}

#[test]
fn a_transaction_goes_on_around_them_in_whatever_state_it_is() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    client.batch("begin");
    assert_eq!(client.query("set bursar.route = '/a'").trace(), "C(SET) Z(T)");
    assert_eq!(client.query("show bursar.route").trace(), "T D C(SHOW) Z(T)");
    assert_eq!(client.query("select 1/0").trace(), "E(22012) Z(E)");
    assert_eq!(client.query("set bursar.route = '/b'").trace(), "C(SET) Z(E)");
    assert_eq!(client.query("show bursar.route").value(), "/b");
    assert_eq!(client.query("rollback").trace(), "C(ROLLBACK) Z(I)");
    // SET LOCAL ends with the transaction.
    client.batch("begin");
    client.batch("set local bursar.route = '/local'");
    assert_eq!(client.query("show bursar.route").value(), "/local");
    client.batch("commit");
    assert_eq!(client.query("show bursar.route").value(), "/b");
    client.bye();
    proxy.stop();
}

#[test]
fn tags_come_with_the_startup_packet() {
    let (_db, proxy, holder) = start();
    for login in [
        proxy.as_app().with("bursar.tenant", "acme").with("bursar.request_id", "r1"),
        proxy.as_app().with("options", "-c bursar.tenant=acme -cbursar.request_id=r1"),
        proxy.as_app().with("options", "--bursar.tenant=acme --bursar.request-id=r1"),
    ] {
        let mut client = Wire::login(proxy.addr(), &login);
        assert_eq!(client.query("show bursar.tenant").value(), "acme");
        assert_eq!(client.query("show bursar.request_id").value(), "r1");
        client.bye();
    }
    drop(holder);
    proxy.stop();
}

#[test]
fn tags_come_with_comments_that_go_no_further() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    const SEEN: &str = "select query from pg_stat_activity where pid = pg_backend_pid()";
    for (request, sql) in [
        ("c1", format!("{SEEN} /*request_id='c1',tenant='acme'*/")),
        ("c2", format!("/*tenant='acme',request_id='c2'*/ {SEEN}")),
        (
            "4bf92f3577b34da6a3ce929d0e0e4736",
            format!("{SEEN} /*traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'*/"),
        ),
        ("c 4", format!("{SEEN} /*request_id='c%204'*/;")),
    ] {
        let seen = client.query(&sql).value();
        assert!(seen.starts_with("select query") && !seen.contains("/*"), "PostgreSQL saw: {seen}");
        assert_eq!(leases(&proxy, request), "1", "{sql}");
    }
    let prepared = format!("{SEEN} /*request_id='c5'*/");
    let seen = client.ask(&[pbe(&prepared), msg::sync()].concat()).value();
    assert!(!seen.contains("/*"), "PostgreSQL saw: {seen}");
    assert_eq!(leases(&proxy, "c5"), "1");
    // A comment that is not ours stays.
    let hint = client.query(&format!("{SEEN} /*+ SeqScan(t) */")).value();
    assert!(hint.ends_with("/*+ SeqScan(t) */"), "PostgreSQL saw: {hint}");
    client.bye();
    proxy.stop();
}

#[test]
fn the_more_particular_tag_wins() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let login = proxy.as_app().with("bursar.request_id", "startup");
    let mut client = Wire::login(proxy.addr(), &login);
    client.batch("select 1");
    client.batch("set bursar.request_id = 'set'");
    client.batch("select 1");
    client.batch("select 1");
    client.batch("reset bursar.request_id");
    client.batch("select 1");
    assert_eq!(leases(&proxy, "startup"), "2", "before SET, and after RESET");
    assert_eq!(leases(&proxy, "set"), "2");
    client.bye();
    proxy.stop();
}

#[test]
fn a_tenant_may_be_the_suffix_of_the_user_or_the_user() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut console = proxy.console();
    let mut tenants = |user: &str| {
        let mut client = Wire::login(proxy.addr(), &Login::new(user, db.name()));
        client.batch("begin");
        let tenant = console.query("select tenant from bursar.leases").value();
        client.bye();
        tenant
    };
    assert_eq!(tenants("app"), "app");
    // Known to the server with its suffix, so that it matters to nobody whether that is cut off.
    db.ask("select 1");
    let mut admin = db.cluster().admin();
    admin.batch("create role \"app.acme\" login in role app");
    assert_eq!(tenants("app.acme"), "acme");
    proxy.stop();
}

/// Each transaction is a lease of the request it is tagged with, and of no other.
#[test]
fn leases_are_counted_exactly() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect_for("acme", "r1");
    client.batch("select 1");
    client.batch("begin");
    client.batch("select 1");
    client.batch("select 2");
    client.batch("commit");
    client.send(&[msg::query("select 1"), msg::query("select 2"), msg::query("select 3")].concat());
    for _ in 0..3 {
        assert!(client.recv_reply().error().is_none());
    }
    client.ask(&[pbe("select 1"), pbe("select 2"), msg::sync()].concat());
    assert_eq!(leases(&proxy, "r1"), "6", "1 + 1 + 3 + 1 transactions");
    client.batch("set bursar.request_id = 'r2'");
    client.batch("select 1");
    assert_eq!((leases(&proxy, "r1"), leases(&proxy, "r2")), ("6".into(), "1".into()));
    client.bye();
    proxy.stop();
}
