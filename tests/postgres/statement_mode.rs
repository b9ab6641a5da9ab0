//! Statement mode: a lease ends with every ReadyForQuery, and what would outlast it is undone; and the
//! mode of a role before that of its database.

use crate::support::watch::{leases, row};
use crate::support::{Config, Db, Login, Proxy, Wire, msg, until};

fn start(db: &Db<'_>) -> Proxy {
    db.run(&["create table kept (id int)"]);
    Proxy::start(db, Config::one_backend().with("pool", "mode = \"statement\""))
}

fn kept(db: &Db<'_>) -> String {
    db.value("select coalesce(string_agg(id::text, ',' order by id), '') from kept")
}

#[test]
fn a_block_is_refused_and_rolled_back_and_everybody_goes_on() {
    let db = Db::new();
    let proxy = start(&db);
    let (mut one, mut two) = (proxy.connect(), proxy.connect());
    let backend = two.query("select pg_backend_pid()").value();

    let refused = one.query("begin");
    assert_eq!(refused.trace(), "C(BEGIN) E(0A000) Z(I)");
    let error = refused.error().expect("an error");
    assert_eq!(
        error.field(b'M').as_deref(),
        Some("bursar: transaction blocks are not allowed in statement mode")
    );
    let hint = error.field(b'H').expect("a hint");
    assert!(hint.contains("mode = \"transaction\""), "{hint}");
    until("nothing is held", || leases(&proxy) == 0);

    let half = "begin; insert into kept values (1)";
    assert_eq!(one.query(half).trace(), "C(BEGIN) C(INSERT 0 1) E(0A000) Z(I)");
    let whole = "begin; insert into kept values (2); commit";
    assert_eq!(one.query(whole).trace(), "C(BEGIN) C(INSERT 0 1) C(COMMIT) Z(I)");
    // The server has just told it of an error; another one would be one too many.
    assert_eq!(one.query("begin; select 1/0").trace(), "C(BEGIN) E(22012) Z(I)");
    assert_eq!(one.query("commit").trace(), "N(25P01) C(COMMIT) Z(I)");
    assert_eq!(kept(&db), "2");

    // The same backend serves both, statement by statement.
    assert_eq!(two.query("select pg_backend_pid()").value(), backend);
    assert_eq!(one.query("select pg_backend_pid()").value(), backend);
    drop((one, two));
    proxy.stop();
}

#[test]
fn the_extended_protocol_is_held_to_the_same() {
    let db = Db::new();
    let proxy = start(&db);
    let mut client = proxy.connect();
    let run = |sql: &str| [msg::parse("", sql), msg::bind("", ""), msg::execute("", 0)].concat();

    client.send(&[run("begin"), msg::sync()].concat());
    assert_eq!(client.recv_reply().trace(), "1 2 C(BEGIN) E(0A000) Z(I)");
    client.send(&[run("begin"), run("insert into kept values (1)"), msg::sync()].concat());
    assert_eq!(client.recv_reply().trace(), "1 2 C(BEGIN) 1 2 C(INSERT 0 1) E(0A000) Z(I)");
    client.send(&[run("begin"), run("insert into kept values (2)"), run("commit"), msg::sync()].concat());
    assert_eq!(client.recv_reply().trace(), "1 2 C(BEGIN) 1 2 C(INSERT 0 1) 1 2 C(COMMIT) Z(I)");
    assert_eq!(kept(&db), "2");
    client.bye();
    proxy.stop();
}

/// Sent ahead, the insert and the commit would otherwise run inside the block.
#[test]
fn statements_sent_ahead_never_run_in_a_block_that_is_undone() {
    let db = Db::new();
    let proxy = start(&db);
    let mut client = proxy.connect();
    let all = ["begin", "insert into kept values (1)", "rollback", "select 4"].map(msg::query).concat();
    client.send(&all);
    let replies: Vec<String> = (0..4).map(|_| client.recv_reply().trace()).collect();
    assert_eq!(
        replies,
        ["C(BEGIN) E(0A000) Z(I)", "C(INSERT 0 1) Z(I)", "N(25P01) C(ROLLBACK) Z(I)", "T D C(SELECT 1) Z(I)"]
    );
    assert_eq!(kept(&db), "1", "told that it was inserted, and it was");

    // And a client that goes away behind what it sent still has it done.
    client.send(&[msg::query("begin"), msg::query("insert into kept values (2)"), msg::terminate()].concat());
    assert_eq!(client.recv_to_end().trace(), "C(BEGIN) E(0A000) Z(I) C(INSERT 0 1) Z(I) EOF");
    assert_eq!(kept(&db), "1,2");
    proxy.stop();
}

#[test]
fn copy_works_and_a_block_around_it_does_not() {
    let db = Db::new();
    let proxy = start(&db);
    let mut client = proxy.connect();
    let data = |id: &str| [msg::copy_data(id), msg::copy_done()].concat();

    client.send(&[msg::query("copy kept from stdin"), data("1\n"), msg::query("select 1")].concat());
    assert_eq!(client.recv_reply().trace(), "G C(COPY 1) Z(I)");
    assert_eq!(client.recv_reply().trace(), "T D C(SELECT 1) Z(I)");
    // As libpq does it: Sync before the data, which the server swallows.
    let copy = [msg::parse("", "copy kept from stdin"), msg::bind("", ""), msg::execute("", 0), msg::sync()];
    client.send(&[copy.concat(), data("2\n"), msg::sync(), msg::query("select 2")].concat());
    assert_eq!(client.recv_reply().trace(), "1 2 G C(COPY 1) Z(I)");
    assert_eq!(client.recv_reply().trace(), "T D C(SELECT 1) Z(I)");
    // Syncs in the middle of a Query's data are swallowed as well.
    client.send(&[msg::query("copy kept from stdin"), msg::copy_data("3\n"), msg::sync()].concat());
    client.send(&data("4\n"));
    assert_eq!(client.recv_reply().trace(), "G C(COPY 2) Z(I)");

    client.send(&[msg::query("begin; copy kept from stdin"), data("5\n")].concat());
    assert_eq!(client.recv_reply().trace(), "C(BEGIN) G C(COPY 1) E(0A000) Z(I)");
    client.send(&[msg::query("begin; copy kept from stdin"), data("six\n"), msg::query("select 6")].concat());
    assert_eq!(client.recv_reply().trace(), "C(BEGIN) G E(22P02) Z(I)");
    assert_eq!(client.recv_reply().trace(), "T D C(SELECT 1) Z(I)");
    assert_eq!(kept(&db), "1,2,3,4");
    client.bye();
    proxy.stop();
}

/// Named statements outlive their lease here as in transaction mode, and pin nothing.
#[test]
fn named_statements_go_from_lease_to_lease() {
    let db = Db::new();
    let proxy = start(&db);
    let (mut one, mut two) = (proxy.connect(), proxy.connect());
    let prepare = |client: &mut Wire, sql| client.ask(&[msg::parse("s", sql), msg::sync()].concat()).trace();
    assert_eq!(prepare(&mut one, "select 'one'"), "1 Z(I)");
    assert_eq!(prepare(&mut two, "begin"), "1 Z(I)");
    for _ in 0..3 {
        let run = [msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat();
        assert_eq!(one.ask(&run).value(), "one");
        assert_eq!(two.ask(&run).trace(), "2 C(BEGIN) E(0A000) Z(I)");
        until("nothing is held", || leases(&proxy) == 0);
    }
    drop((one, two));
    proxy.stop();
}

/// A block changes what the client is told of its settings, and so does its end.
#[test]
fn settings_of_a_block_are_told_to_be_gone() {
    let db = Db::new();
    let proxy = start(&db);
    let mut client = proxy.connect();
    let refused = client.query("begin; set local datestyle = 'German'");
    assert_eq!(
        refused.trace(),
        "C(BEGIN) C(SET) S(DateStyle=German, DMY) S(DateStyle=ISO, MDY) E(0A000) Z(I)"
    );
    assert_eq!(client.query("show datestyle").value(), "ISO, MDY");
    client.bye();
    proxy.stop();
}

#[test]
fn a_role_has_its_own_mode_in_every_database() {
    let db = Db::new();
    let config = Config::of_size(2)
        .with("pool", "mode = \"session\"")
        .with(&format!("database.{}", db.name()), "mode = \"statement\"")
        .with("user.postgres", "mode = \"transaction\"");
    let mut proxy = Proxy::start(&db, config);
    let login = |user: &str| Wire::login(proxy.addr(), &Login::new(user, db.name()));
    assert_eq!(login("app").query("begin").trace(), "C(BEGIN) E(0A000) Z(I)", "by the database's table");
    let mut own = login("postgres");
    assert_eq!(own.query("begin").trace(), "C(BEGIN) Z(T)", "by the role's own");
    assert_eq!(own.query("rollback").trace(), "C(ROLLBACK) Z(I)");

    let mut console = proxy.console();
    let mut shown = |sql: &str| row(&mut console, sql);
    assert_eq!(shown("select pool_mode from bursar.users where name = 'postgres'"), ["transaction"]);
    assert_eq!(shown("select pool_mode from bursar.users where name = 'app'"), [""]);
    let name = db.name();
    assert_eq!(
        shown(&format!("select pool_mode from bursar.databases where name = '{name}'")),
        ["statement"]
    );
    for (user, mode) in [("app", "statement"), ("postgres", "transaction")] {
        let sql = format!("select pool_mode from bursar.pools where \"user\" = '{user}'");
        assert_eq!(shown(&sql), [mode]);
    }

    proxy.change("user.postgres", "mode = \"statement\"");
    proxy.console().batch("reload");
    assert_eq!(own.query("begin; commit").trace(), "C(BEGIN) C(COMMIT) Z(I)");
    let mut later = Wire::login(proxy.addr(), &Login::new("postgres", db.name()));
    assert_eq!(later.query("begin").trace(), "C(BEGIN) E(0A000) Z(I)", "from the next login on");
    drop((own, later, console));
    proxy.stop();
}
