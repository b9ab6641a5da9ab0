//! SET, SHOW and RESET of a tag: answered here in every protocol shape and transaction state, without
//! a backend and in their place among other replies (budgets.md §2.2, wire.md D).

use crate::support::watch::{row, rows};
use crate::support::{Config, Db, Login, Proxy, Refused, Wire, msg, trace};

const SIMPLE: &str = "C(SET) Z(I)";

fn start() -> (Db<'static>, Proxy) {
    let db = Db::new();
    // The first login waits for the first backend, which on a busy machine takes its time.
    let proxy = Proxy::start(&db, Config::one_backend().with("pool", "max_wait = \"20s\""));
    (db, proxy)
}

fn extended(wire: &mut Wire, sql: &str) -> String {
    wire.ask(&[msg::unnamed(sql), msg::sync()].concat()).trace()
}

#[test]
fn tags_are_answered_while_the_only_backend_is_held() {
    let (_db, mut proxy) = start();
    let mut holder = proxy.connect();
    holder.batch("begin");
    let mut wire = proxy.connect();
    proxy.change("pool", "max_wait = \"200ms\"");
    proxy.console().batch("reload");
    assert_eq!(wire.query("select 1").trace(), "E(53300) Z(I)", "the backend is taken");
    for key in ["tenant", "request_id", "user_id", "thread_id", "session_id", "class", "route"] {
        assert_eq!(wire.query(&format!("set bursar.{key} = 'it''s {key}'")).trace(), SIMPLE);
        let shown = wire.query(&format!("show bursar.{key}"));
        assert_eq!(shown.trace(), "T D C(SHOW) Z(I)");
        assert_eq!(shown.columns(), [format!("bursar.{key}")]);
        assert_eq!(shown.value(), format!("it's {key}"));
    }
    for (set, shown) in [
        ("set bursar.deadline_ms = 250", "250"),
        ("SET SESSION Bursar.Deadline_MS TO '300' ;", "300"),
        ("set \"bursar\".\"deadline_ms\" to 350", "350"),
    ] {
        assert_eq!(wire.query(set).trace(), SIMPLE, "{set}");
        assert_eq!(wire.query("SHOW bursar.deadline_ms").value(), shown, "{set}");
    }
    assert_eq!(wire.query("set bursar.max_leases = 9").trace(), SIMPLE);
    assert_eq!(wire.query("reset bursar.route").trace(), "C(RESET) Z(I)");
    assert_eq!(wire.query("show bursar.route").value(), "");
    let several = "set bursar.user_id = 'u'; set bursar.thread_id = 't'; show bursar.user_id; \
                   reset bursar.user_id";
    assert_eq!(wire.query(several).trace(), "C(SET) C(SET) T D C(SHOW) C(RESET) Z(I)");
    assert_eq!(wire.query("show bursar.user_id").value(), "");
    assert_eq!(wire.query("show bursar.thread_id").value(), "t");
    let mut console = proxy.console();
    let clients = "select doing, request from bursar.clients where request is not null";
    assert_eq!(row(&mut console, clients), ["idle", "it's request_id"]);
    assert_eq!(rows(&mut console, "select id from bursar.leases").len(), 1, "the holder's");
    holder.batch("commit");
    proxy.stop();
}

#[test]
fn the_extended_protocol_is_answered_without_a_backend() {
    let (_db, proxy) = start();
    let mut holder = proxy.connect();
    holder.batch("begin");
    let mut wire = proxy.connect();
    assert_eq!(extended(&mut wire, "set bursar.tenant = 'acme'"), "1 2 n C(SET) Z(I)");
    assert_eq!(extended(&mut wire, "show bursar.tenant"), "1 2 T D C(SHOW) Z(I)");
    let set = "set bursar.request_id = 'r1'";
    let undescribed = [msg::parse("", set), msg::bind("", ""), msg::execute("", 0), msg::sync()];
    assert_eq!(wire.ask(&undescribed.concat()).trace(), "1 2 C(SET) Z(I)");
    let described = [
        msg::parse("", set),
        msg::describe_statement(""),
        msg::bind("", ""),
        msg::describe_portal(""),
        msg::execute("", 0),
        msg::close_portal(""),
        msg::sync(),
    ];
    assert_eq!(wire.ask(&described.concat()).trace(), "1 t n 2 n C(SET) 3 Z(I)");
    // Flush brings the replies without ending the segment.
    wire.send(&[msg::unnamed("set bursar.tenant = 'globex'"), msg::flush()].concat());
    assert_eq!(trace(&wire.recv_count(4)), "1 2 n C(SET)");
    assert_eq!(wire.ask(&msg::sync()).trace(), "Z(I)");
    assert_eq!(wire.query("show bursar.tenant").value(), "globex");
    holder.batch("commit");
    proxy.stop();
}

#[test]
fn prepared_by_name_they_run_again_and_again_without_a_backend() {
    let (_db, proxy) = start();
    let mut holder = proxy.connect();
    holder.batch("begin");
    let mut wire = proxy.connect();
    let prepare = [
        msg::parse("tag", "set bursar.request_id = 'r2'"),
        msg::describe_statement("tag"),
        msg::parse("look", "show bursar.request_id"),
        msg::describe_statement("look"),
        msg::sync(),
    ];
    assert_eq!(wire.ask(&prepare.concat()).trace(), "1 t n 1 t T Z(I)");
    let execute = |name: &str| [msg::bind("p", name), msg::execute("p", 0)].concat();
    for _ in 0..2 {
        let both = wire.ask(&[execute("tag"), execute("look"), msg::sync()].concat());
        assert_eq!((both.trace(), both.value()), ("2 C(SET) 2 D C(SHOW) Z(I)".into(), "r2".into()));
    }
    let close = [msg::close_portal("p"), msg::close_statement("tag"), msg::sync()].concat();
    assert_eq!(wire.ask(&close).trace(), "3 3 Z(I)");
    // Two segments in one write.
    let parse = [msg::parse("late", "set bursar.request_id = 'r3'"), msg::sync()].concat();
    wire.send(&[parse, msg::bind("", "late"), msg::execute("", 0), msg::sync()].concat());
    assert_eq!(wire.recv_reply().trace(), "1 Z(I)");
    assert_eq!(wire.recv_reply().trace(), "2 C(SET) Z(I)");
    assert_eq!(wire.query("show bursar.request_id").value(), "r3");
    holder.batch("commit");
    proxy.stop();
}

#[test]
fn replies_made_here_keep_their_place_in_a_pipeline() {
    let (_db, proxy) = start();
    let mut wire = proxy.connect();
    let pipeline = [
        msg::unnamed("select 1"),
        msg::unnamed("set bursar.request_id = 'mid'"),
        msg::unnamed("select 2"),
        msg::unnamed("show bursar.request_id"),
        msg::sync(),
        msg::query("set bursar.tenant = 'acme'"),
        msg::query("select 3"),
        msg::query("show bursar.tenant"),
    ];
    wire.send(&pipeline.concat());
    let first = wire.recv_reply();
    assert_eq!(first.trace(), "1 2 T D C(SELECT 1) 1 2 n C(SET) 1 2 T D C(SELECT 1) 1 2 T D C(SHOW) Z(I)");
    let values: Vec<_> = first.rows().into_iter().flatten().flatten().collect();
    assert_eq!(values, ["1", "2", "mid"]);
    assert_eq!(wire.recv_reply().trace(), SIMPLE);
    let third = wire.recv_reply();
    assert_eq!((third.trace().as_str(), third.value().as_str()), ("T D C(SELECT 1) Z(I)", "3"));
    assert_eq!(wire.recv_reply().value(), "acme");
    // After an error of PostgreSQL replies are skipped up to Sync, these as well.
    let set = |value: &str| format!("set bursar.request_id = '{value}'");
    let failing = [msg::unnamed("select 4"), msg::unnamed("select no_such_column")].concat();
    let pipeline = [msg::unnamed(&set("early")), failing, msg::unnamed(&set("late")), msg::sync()];
    let trace = "1 2 n C(SET) 1 2 T D C(SELECT 1) E(42703) Z(I)";
    assert_eq!(wire.ask(&pipeline.concat()).trace(), trace);
    assert_eq!(wire.query("show bursar.request_id").value(), "early", "what is skipped has no effect");
    // A Query in the same place is skipped too.
    let late = [msg::parse("", "selec"), msg::query(&set("late")), msg::sync()].concat();
    assert_eq!(wire.ask(&late).trace(), "E(42601) Z(I)");
    assert_eq!(wire.query("show bursar.request_id").value(), "early");
    proxy.stop();
}

/// As after an error of PostgreSQL's own: the implicit transaction of the pipeline is undone.
/// As any Query does, one that is answered here ends a pipeline without Sync, and what was in it is done.
#[test]
fn a_pipeline_without_sync_ends_with_a_query_that_is_answered_here() {
    let (db, proxy) = start();
    db.run(&["create table t (id int)"]);
    let mut wire = proxy.connect();
    for (query, tag) in [("set bursar.tenant = 'a'", "SET"), ("deallocate s", "DEALLOCATE")] {
        let insert = [msg::parse("s", "insert into t values (1)"), msg::bind("", "s"), msg::execute("", 0)];
        let trace = wire.ask(&[&insert.concat()[..], &msg::query(query)].concat()).trace();
        assert_eq!(trace, format!("1 2 C(INSERT 0 1) C({tag}) Z(I)"), "{query}");
        let mut other = proxy.connect();
        assert_eq!(other.query("select count(*) from t").trace(), "T D C(SELECT 1) Z(I)", "{query}");
        wire.batch("deallocate all");
    }
    assert_eq!(db.value("select count(*) from t"), "2");
    // One that the backend has, so that the server owes no reply.
    wire.ask(&[msg::parse("known", "select 1"), msg::sync()].concat());
    let trace = wire.ask(&[msg::parse("s", "select 1"), msg::query("deallocate s")].concat()).trace();
    assert_eq!(trace, "1 C(DEALLOCATE) Z(I)");
    wire.bye();
    proxy.stop();
}

#[test]
fn a_refused_tag_undoes_the_pipeline_it_stands_in() {
    let (db, proxy) = start();
    db.run(&["create table t (id int)"]);
    let mut wire = proxy.connect();
    let insert = || msg::unnamed("insert into t values (1)");
    let refused = || msg::unnamed("set bursar.no_such_tag = 'x'");
    let pipeline = [insert(), refused(), insert(), msg::sync()];
    assert_eq!(wire.ask(&pipeline.concat()).trace(), "1 2 n C(INSERT 0 1) E(42704) Z(I)");
    assert_eq!(db.value("select count(*) from t"), "0");
    wire.batch("begin");
    assert_eq!(wire.ask(&[refused(), msg::sync()].concat()).trace(), "E(42704) Z(E)");
    assert_eq!(wire.query("rollback").trace(), "C(ROLLBACK) Z(I)");
    // The client leaves in the middle of it.
    wire.send(&[insert(), refused()].concat());
    assert_eq!(trace(&wire.recv_count(5)), "1 2 n C(INSERT 0 1) E(42704)");
    drop(wire);
    assert_eq!(proxy.connect().query("select count(*) from t").value(), "0");
    proxy.stop();
}

#[test]
fn inside_a_transaction_its_status_is_told() {
    let (_db, proxy) = start();
    let mut wire = proxy.connect();
    wire.batch("set bursar.route = '/outside'");
    wire.batch("begin");
    assert_eq!(wire.query("set bursar.tenant = 'acme'").trace(), "C(SET) Z(T)");
    assert_eq!(wire.query("set local bursar.route = '/here'").trace(), "C(SET) Z(T)");
    assert_eq!(extended(&mut wire, "set bursar.user_id = 'u'"), "1 2 n C(SET) Z(T)");
    let shown = wire.query("show bursar.route");
    assert_eq!((shown.trace().as_str(), shown.value().as_str()), ("T D C(SHOW) Z(T)", "/here"));
    assert_eq!(wire.query("select 1/0").trace(), "E(22012) Z(E)");
    assert_eq!(wire.query("set bursar.request_id = 'late'").trace(), "C(SET) Z(E)");
    assert_eq!(wire.query("show bursar.request_id").value(), "late");
    assert_eq!(extended(&mut wire, "set bursar.thread_id = 't'"), "1 2 n C(SET) Z(E)");
    assert_eq!(extended(&mut wire, "show bursar.thread_id"), "1 2 T D C(SHOW) Z(E)");
    assert_eq!(wire.query("select 1").trace(), "E(25P02) Z(E)");
    assert_eq!(wire.query("rollback").trace(), "C(ROLLBACK) Z(I)");
    // A tag says whose work this is; that stays true. Only SET LOCAL ends with its transaction.
    assert_eq!(wire.query("show bursar.request_id").value(), "late");
    assert_eq!(wire.query("show bursar.tenant").value(), "acme");
    assert_eq!(wire.query("show bursar.route").value(), "/outside");
    for (local, end) in [("/committed", "commit"), ("/rolled back", "rollback")] {
        wire.batch("begin");
        wire.batch(&format!("set local bursar.route = '{local}'"));
        assert_eq!(wire.query("show bursar.route").value(), local);
        wire.batch(end);
        assert_eq!(wire.query("show bursar.route").value(), "/outside", "{end}");
    }
    proxy.stop();
}

/// What a driver's pool says when it takes a connection back: PostgreSQL's settings go to what they were at
/// the start, and these are some.
#[test]
fn a_drivers_reset_takes_tags_back_to_those_of_the_start_up() {
    let asyncpg = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;";
    for mode in ["transaction", "session", "statement"] {
        let db = Db::new();
        let proxy = Proxy::start(&db, Config::of_size(2).with("pool", &format!("mode = \"{mode}\"")));
        let mut wire = Wire::login(proxy.addr(), &proxy.as_app().with("bursar.tenant", "first"));
        for reset in ["discard all", "reset all", asyncpg] {
            wire.batch("set bursar.tenant = 'second'; set bursar.request_id = 'r1'; set bursar.route = '/x'");
            wire.batch(reset);
            for (key, value) in [("tenant", "first"), ("request_id", ""), ("route", "")] {
                let shown = wire.query(&format!("show bursar.{key}")).value();
                assert_eq!(shown, value, "{mode}: {key} after {reset}");
            }
            // npgsql: in one write with what the next user of the connection says.
            wire.batch("set bursar.tenant = 'second'");
            wire.send(&[msg::query(reset), msg::query("set bursar.tenant = 'third'")].concat());
            wire.recv_reply();
            assert_eq!(wire.recv_reply().trace(), "C(SET) Z(I)");
            assert_eq!(wire.query("show bursar.tenant").value(), "third", "{mode}: behind {reset}");
            wire.ask(&[msg::unnamed("reset all"), msg::sync()].concat());
            assert_eq!(wire.query("show bursar.tenant").value(), "first", "{mode}: extended");
        }
        if mode != "statement" {
            wire.batch("set bursar.tenant = 'second'");
            wire.batch("begin; reset all; rollback");
            assert_eq!(wire.query("show bursar.tenant").value(), "second", "{mode}: what is rolled back");
            wire.batch("begin");
            wire.batch("reset all");
            assert_eq!(wire.query("show bursar.tenant").value(), "second", "{mode}: a transaction has one");
            wire.batch("rollback");
        }
        proxy.stop();
    }
}

#[test]
fn what_is_no_tag_is_refused_and_the_session_lives() {
    let (db, proxy) = start();
    let mut wire = proxy.connect();
    for (sql, detail) in [
        ("set bursar.tenent = 'x'", "bursar.tenent is not a tag. Did you mean bursar.tenant?"),
        ("show bursar.nothing", "bursar.nothing is not a tag."),
        ("reset bursar.nothing", "bursar.nothing is not a tag."),
    ] {
        let reply = wire.query(sql);
        assert_eq!(reply.trace(), "E(42704) Z(I)", "{sql}");
        let error = reply.error().expect("an error");
        assert_eq!(error.field(b'M').as_deref(), Some("bursar: unknown tag"));
        assert_eq!(error.field(b'D').as_deref(), Some(detail));
        assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
    }
    wire.batch("begin");
    assert_eq!(wire.query("set bursar.tenent = 'x'").trace(), "E(42704) Z(T)", "errors.md: as it was");
    wire.batch("commit");
    for (name, value, code) in [("bursar.tenent", "x", "42704"), ("bursar.max_leases", "x", "22023")] {
        match Wire::try_login(proxy.addr(), &Login::new("app", db.name()).with(name, value)) {
            Err(Refused::Said(said)) => {
                assert_eq!((said.code().as_str(), said.closed), (code, true));
                assert_eq!(said.error().and_then(|e| e.field(b'V')).as_deref(), Some("FATAL"));
            }
            other => panic!("{name} was not refused: {:?}", other.map(|_| ())),
        }
    }
    proxy.stop();
}

/// The same in the extended protocol: the error comes with Parse, as PostgreSQL's own would, and what
/// follows is skipped up to Sync.
#[test]
fn what_is_no_tag_is_refused_in_the_extended_protocol_too() {
    let (db, proxy) = start();
    let mut wire = proxy.connect();
    for sql in ["set bursar.tenent = 'x'", "show bursar.nothing", "reset bursar.nothing"] {
        let pipeline = [msg::unnamed(sql), msg::unnamed("select 1"), msg::sync()].concat();
        assert_eq!(wire.ask(&pipeline).trace(), "E(42704) Z(I)", "{sql}");
        assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
        // Behind real work its turn comes, and no sooner; before work that fails it never does.
        let behind = ["select 1", sql, "select 2"].map(msg::unnamed).concat();
        let behind = wire.ask(&[behind, msg::sync()].concat());
        assert_eq!(behind.trace(), "1 2 T D C(SELECT 1) E(42704) Z(I)");
        let fails = [msg::unnamed("select 1/0"), msg::unnamed(sql), msg::sync()].concat();
        assert_eq!(wire.ask(&fails).trace(), "1 E(22012) Z(I)");
        wire.send(&msg::unnamed(sql));
        assert_eq!(trace(&wire.recv_count(1)), "E(42704)", "an error waits for no Sync");
        assert_eq!(wire.ask(&[msg::unnamed("select 1"), msg::sync()].concat()).trace(), "Z(I)");
    }
    // A client that leaves behind such an error has committed nothing that went before it.
    db.run(&["create table t (id int)"]);
    let insert = ["insert into t values (1)", "set bursar.max_leases = 'x'"].map(msg::unnamed).concat();
    wire.send(&[insert, msg::flush()].concat());
    assert_eq!(trace(&wire.recv_count(8)), "1 2 n C(INSERT 0 1) 1 2 n E(22023)");
    drop(wire);
    let mut wire = proxy.connect();
    assert_eq!(wire.query("select count(*) from t").value(), "0");
    let two = "set bursar.tenant = 'a'; set bursar.user_id = 'b'";
    assert_eq!(extended(&mut wire, two), "E(42601) Z(I)", "as PostgreSQL says of two commands");
    assert_eq!(extended(&mut wire, "show bursar.tenant"), "1 2 T D C(SHOW) Z(I)");
    proxy.stop();
}

#[test]
fn a_value_that_a_tag_cannot_have_is_refused() {
    let (_db, proxy) = start();
    let mut wire = proxy.connect();
    wire.batch("set bursar.tenant = 'before'");
    let long = "x".repeat(129);
    for (key, value, detail) in [
        ("tenant", long.as_str(), "bursar.tenant takes at most 128 bytes, not 129"),
        ("tenant", "a\tb", "bursar.tenant takes printable characters only"),
        ("tenant", "a\nb", "bursar.tenant takes printable characters only"),
        ("max_leases", "x", "bursar.max_leases takes a number from 1 to 1000000"),
        ("max_leases", "0", "bursar.max_leases takes a number from 1 to 1000000"),
        ("deadline_ms", "-1", "bursar.deadline_ms takes a number from 1 to 3600000"),
    ] {
        let sql = format!("set bursar.{key} = '{value}'");
        let reply = wire.query(&sql);
        assert_eq!(reply.trace(), "E(22023) Z(I)", "{sql}");
        let error = reply.error().expect("an error");
        assert_eq!(error.field(b'M').as_deref(), Some("bursar: invalid value for a tag"));
        assert_eq!(error.field(b'D').as_deref(), Some(detail));
        let skipped = [msg::unnamed(&sql), msg::unnamed("select 1"), msg::sync()].concat();
        assert_eq!(wire.ask(&skipped).trace(), "1 2 n E(22023) Z(I)", "the rest is skipped: {sql}");
    }
    let many = "set bursar.user_id = 'u'; set bursar.max_leases = 'x'; set bursar.user_id = 'v'";
    assert_eq!(wire.query(many).trace(), "C(SET) E(22023) Z(I)");
    assert_eq!(wire.query("show bursar.user_id").value(), "u");
    assert_eq!(wire.query("show bursar.tenant").value(), "before");
    assert_eq!(wire.query(&format!("set bursar.tenant = '{}'", &long[1..])).trace(), SIMPLE);
    proxy.stop();
}
