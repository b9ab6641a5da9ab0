//! `policy`: what leaves something on its backend that no other has keeps it, is cleared, or is refused.

use crate::support::watch::{leases, metric, rows};
use crate::support::{Config, Db, Login, Proxy, Wire, msg, until};

/// A statement of each kind, by the key that decides on it.
const KINDS: [(&str, &str); 6] = [
    ("listen", "listen news"),
    ("temp_table", "create temp table left_here (id int)"),
    ("advisory_lock", "select pg_advisory_lock(42)"),
    ("hold_cursor", "begin; declare left_open cursor with hold for select 1; commit"),
    ("prepare", "prepare left_over as select 1"),
    ("load", "load 'plpgsql'"),
];

/// What a session finds on its backend of all that, `load` aside.
const LEFT: &str = "select (select count(*) from pg_listening_channels()), \
    (select count(*) from pg_class where relname = 'left_here' and pg_table_is_visible(oid)), \
    (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), \
    (select count(*) from pg_cursors where name = 'left_open'), \
    (select count(*) from pg_prepared_statements where name = 'left_over')";

fn start(db: &Db<'_>, policy: &str) -> Proxy {
    db.run(&["create table kept (id int)"]);
    let all = KINDS.map(|(kind, _)| format!("{kind} = \"{policy}\"")).join(", ");
    Proxy::start(db, Config::one_backend().with("pool", &format!("policy = {{ {all} }}")))
}

/// Who may LOAD.
fn superuser(proxy: &Proxy, db: &Db<'_>) -> Wire {
    Wire::login(proxy.addr(), &Login::new("postgres", db.name()))
}

fn kept(db: &Db<'_>) -> String {
    db.value("select count(*) from kept")
}

fn counts(client: &mut Wire) -> Vec<String> {
    client.query(LEFT).rows().remove(0).into_iter().flatten().collect()
}

#[test]
fn each_kind_keeps_its_backend_by_default_and_is_counted() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(KINDS.len()));
    let mut clients = Vec::new();
    for (kind, statement) in KINDS {
        let mut client = superuser(&proxy, &db);
        client.batch(statement);
        clients.push(client);
        let mut console = proxy.console();
        let counted = format!("select leases from bursar.pins where reason = '{kind}'");
        until("it is counted", || rows(&mut console, &counted) == [["1"]]);
        assert_eq!(metric(&proxy, &format!("bursar_pins{{reason=\"{kind}\"}}")), 1.0, "{kind}");
        let leased =
            rows(&mut console, &format!("select state from bursar.leases where pin_reason = '{kind}'"));
        assert_eq!(leased.len(), 1, "{kind}");
    }
    drop(clients);
    proxy.stop();
}

#[test]
fn scrub_ends_the_lease_and_clears_what_was_left() {
    let db = Db::new();
    let proxy = start(&db, "scrub");
    let (mut one, mut two) = (superuser(&proxy, &db), superuser(&proxy, &db));
    let backend = |client: &mut Wire| client.query("select pg_backend_pid()").value();
    let before = backend(&mut one);
    for (kind, statement) in KINDS.iter().filter(|(kind, _)| *kind != "load") {
        one.batch(statement);
        until(&format!("the lease of {kind} has ended"), || leases(&proxy) == 0);
        assert_eq!(counts(&mut two), ["0", "0", "0", "0", "0"], "{kind}");
    }
    // In its own transaction it is there, and goes with it.
    one.batch("begin; create temp table left_here (id int); insert into left_here values (1)");
    assert_eq!(one.query("select count(*) from left_here").value(), "1");
    one.batch("commit");
    assert_eq!(counts(&mut one), ["0", "0", "0", "0", "0"]);
    assert_eq!(backend(&mut two), before, "the same backend all the while");
    // Nothing unloads a library: its backend goes.
    one.batch("load 'plpgsql'");
    assert_ne!(backend(&mut two), before);
    drop((one, two));
    proxy.stop();
}

#[test]
fn refuse_names_the_kind_and_the_key_and_needs_no_backend() {
    let db = Db::new();
    let proxy = start(&db, "refuse");
    let mut client = proxy.connect();
    let mut holder = proxy.connect();
    holder.batch("begin");
    for (kind, statement) in KINDS {
        let refused = client.query(statement);
        assert_eq!(refused.trace(), "E(0A000) Z(I)", "{kind}");
        let error = refused.error().expect("an error");
        let message = "bursar: the statement would keep its backend beyond the transaction";
        assert_eq!(error.field(b'M').as_deref(), Some(message));
        let (detail, hint) = (error.field(b'D').expect("a detail"), error.field(b'H').expect("a hint"));
        assert!(detail.contains(&format!("policy.{kind} = \"refuse\"")), "{detail}");
        assert!(hint.contains(&format!("policy.{kind} = \"pin\"")), "{hint}");

        client
            .send(&[msg::parse("", statement), msg::bind("", ""), msg::execute("", 0), msg::sync()].concat());
        assert_eq!(client.recv_reply().trace(), "E(0A000) Z(I)", "{kind}");
    }
    holder.batch("rollback");
    // What only looks like it, and what ends with its transaction.
    for statement in [
        "select 'listen news'",
        "select pg_advisory_xact_lock(42)",
        "begin; declare c cursor for select 1; commit",
        "unlisten *",
        "deallocate all",
    ] {
        assert!(client.query(statement).error().is_none(), "{statement}");
    }
    drop((client, holder));
    proxy.stop();
}

/// As if the server had raised it: in a transaction, in a pipeline, in its place among other replies.
#[test]
fn a_refusal_undoes_and_skips_what_an_error_of_the_server_would() {
    let db = Db::new();
    let proxy = start(&db, "refuse");
    let mut client = proxy.connect();
    let run = |sql: &str| [msg::parse("", sql), msg::bind("", ""), msg::execute("", 0)].concat();
    let insert = "insert into kept values (1)";

    // A transaction fails, simple and extended.
    for refused in [msg::query("listen news"), [run("listen news"), msg::sync()].concat()] {
        client.batch(&format!("begin; {insert}"));
        client.send(&refused);
        assert_eq!(client.recv_reply().trace(), "E(0A000) Z(E)");
        assert_eq!(client.query("select 1").trace(), "E(25P02) Z(E)");
        assert_eq!(client.query("commit").trace(), "C(ROLLBACK) Z(I)");
    }
    // Queries sent together are each on their own.
    client.send(&["select 1", "listen news", "select 2"].map(msg::query).concat());
    let replies: Vec<String> = (0..3).map(|_| client.recv_reply().trace()).collect();
    assert_eq!(replies, ["T D C(SELECT 1) Z(I)", "E(0A000) Z(I)", "T D C(SELECT 1) Z(I)"]);
    // The statements of one query are not.
    assert_eq!(client.query(&format!("{insert}; listen news")).trace(), "E(0A000) Z(I)");
    // Nor is a pipeline: what came before is undone, what follows is skipped.
    client.send(&[run(insert), run("listen news"), run(insert), msg::sync()].concat());
    assert_eq!(client.recv_reply().trace(), "1 2 C(INSERT 0 1) E(0A000) Z(I)");
    client.send(&[run(insert), msg::query("listen news")].concat());
    assert_eq!(client.recv_reply().trace(), "1 2 C(INSERT 0 1) E(0A000) Z(I)");
    // Behind an error it is skipped itself.
    client.send(&[run("selec"), msg::query("listen news"), msg::sync()].concat());
    assert_eq!(client.recv_reply().trace(), "E(42601) Z(I)");
    assert_eq!(kept(&db), "0");

    assert_eq!(client.query("select 3").value(), "3");
    until("nothing is held", || leases(&proxy) == 0);
    client.bye();
    proxy.stop();
}

#[test]
fn a_database_has_its_own_policy_and_session_mode_has_none() {
    let db = Db::new();
    let mut proxy = Proxy::start(
        &db,
        Config::of_size(2)
            .with("pool", "policy = { listen = \"refuse\", load = \"refuse\" }")
            .with(&format!("database.{}", db.name()), "policy = { listen = \"pin\" }"),
    );
    let mut client = proxy.connect();
    client.batch("listen news");
    assert_eq!(client.query("load 'plpgsql'").trace(), "E(0A000) Z(I)", "inherited key by key");
    client.bye();

    proxy.change(&format!("database.{}", db.name()), "policy = { listen = \"refuse\" }");
    proxy.console().batch("reload");
    assert_eq!(proxy.connect().query("listen news").trace(), "E(0A000) Z(I)", "after a reload");
    proxy.change("pool", "mode = \"session\"");
    proxy.console().batch("reload");
    superuser(&proxy, &db).batch("listen news; load 'plpgsql'");
    proxy.stop();
}

#[test]
fn a_tenant_may_have_so_many_pins_and_no_more() {
    let db = Db::new();
    let config = Config::of_size(5)
        .with("pool", "max_pins = 3")
        .with("tenant.\"*\"", "max_pins = 1")
        .with("tenant.strict", "mode = \"enforce\"");
    let proxy = Proxy::start(&db, config);
    let mut one = proxy.connect_for("strict", "r1");
    one.batch("listen news");
    one.batch("listen more");
    let mut two = proxy.connect_for("strict", "r2");
    for refused in [msg::query("listen news"), [msg::unnamed("listen news"), msg::sync()].concat()] {
        let told = two.ask(&refused);
        assert_eq!(told.trace(), "E(54000) Z(I)");
        let detail = told.error().and_then(|error| error.field(b'D')).expect("a detail");
        assert_eq!(detail, "tenant strict: 1 of this tenant (max_pins=1), 1 in the pool (max_pins=3).");
    }
    assert_eq!(two.query("begin; select 1").trace(), "C(BEGIN) T D C(SELECT 1) Z(T)");
    assert_eq!(two.query("listen news").trace(), "E(54000) Z(E)");
    two.batch("rollback");

    // In mode warn it is told, once a request, and goes on.
    let mut three = proxy.connect_for("easy", "r3");
    assert_eq!(three.query("listen news").trace(), "C(LISTEN) Z(I)");
    let mut four = proxy.connect_for("easy", "r4");
    assert_eq!(four.query("listen news").trace(), "C(LISTEN) N(01000) Z(I)");
    assert_eq!(four.query("listen more").trace(), "C(LISTEN) Z(I)");

    let mut console = proxy.console();
    let shown = rows(
        &mut console,
        "select \"limit\", mode, warn, reject from bursar.budgets where dimension = 'B17' and scope = 'default'",
    );
    assert_eq!(shown, [["1 per tenant, 3 in all", "warn", "1", "3"]]);
    // A place is free again when a lease comes back.
    one.bye();
    until("it may listen", || two.query("listen news").error().is_none());
    drop((two, three, four, console));
    proxy.stop();
}
