//! A transaction that has only read gives its backend back while its client is silent and others wait, and
//! goes on where it was (budgets.md §4.4).

use crate::support::watch::{leases, rows, series};
use crate::support::{Config, Db, Proxy, Wire, msg, until};

const PARKED: &str = "parked";

fn config(mode: &str) -> Config {
    let config = Config::one_backend().lazy().with("parking", &format!("mode = \"{mode}\""));
    config.with("parking", "min_gap = \"0ms\"").with("pool", "max_wait = \"10s\"")
}

fn start(db: &Db<'_>, config: Config) -> Proxy {
    let proxy = Proxy::start(db, config);
    warm(&proxy);
    proxy
}

/// What is safe is asked for at the end of the first transaction in which a client was silent.
fn warm(proxy: &Proxy) {
    let mut wire = proxy.connect();
    for text in ["begin", "select 1", "select 2", "commit"] {
        wire.batch(text);
    }
}

/// The sum of the series with this start and end.
fn of(proxy: &Proxy, start: &str, end: &str) -> f64 {
    let all = series(proxy);
    all.iter()
        .filter(|(name, _)| name.starts_with(start) && name.ends_with(end))
        .map(|(_, value)| value)
        .sum()
}

/// How many transactions came to this.
fn parks(proxy: &Proxy, result: &str) -> f64 {
    of(proxy, "bursar_parks_total{", &format!("result=\"{result}\"}}"))
}

/// Transactions that could not be parked for this.
fn unparkable(proxy: &Proxy, reason: &str) -> f64 {
    of(proxy, "bursar_unparkable_total{", &format!("reason=\"{reason}\"}}"))
}

fn parkable_seconds(proxy: &Proxy) -> f64 {
    of(proxy, "bursar_parkable_seconds_total{", "}")
}

/// What clients do, in alphabetical order.
fn doing(proxy: &Proxy) -> Vec<String> {
    rows(&mut proxy.console(), "select doing from bursar.clients order by doing").concat()
}

/// Another client needs the only backend, and has it until it is dropped.
fn take_backend(other: &mut Wire) {
    other.send(&msg::query("begin isolation level serializable"));
    assert_eq!(other.recv_reply().trace(), "C(BEGIN) Z(T)");
}

#[test]
fn the_only_backend_goes_round_while_transactions_are_silent() {
    let db = Db::new();
    db.run(&["create table t (id int)", "insert into t values (7)"]);
    let proxy = start(&db, config("enforce"));
    let (mut wire, mut other) = (proxy.connect(), proxy.connect());
    for (begin, tag) in [("begin", "BEGIN"), ("start transaction read only", "START TRANSACTION")] {
        let before = parks(&proxy, PARKED);
        assert_eq!(wire.query(begin).trace(), format!("C({tag}) Z(T)"));
        assert_eq!(wire.query("select id from t").value(), "7");
        take_backend(&mut other);
        assert_eq!(parks(&proxy, PARKED), before + 1.0, "{begin}");
        other.batch("commit");
        assert_eq!(wire.query("select id from t").trace(), "T D C(SELECT 1) Z(T)");
        take_backend(&mut other);
        other.batch("insert into t values (8)");
        other.batch("commit");
        // READ COMMITTED: each statement sees what others have committed.
        assert_eq!(wire.query("select count(*) from t").value(), "2");
        assert_eq!(wire.query("show transaction_read_only").value() == "on", begin.contains("read only"));
        take_backend(&mut other);
        assert_eq!(of(&proxy, "bursar_parked{", "}"), 1.0);
        assert_eq!(doing(&proxy), ["idle_in_tx", "parked"]);
        assert_eq!(wire.query("commit").trace(), "C(COMMIT) Z(I)", "without a backend");
        assert_eq!(doing(&proxy), ["idle", "idle_in_tx"]);
        other.batch("rollback");
        assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
        db.run(&["delete from t where id = 8"]);
    }
    assert_eq!(parks(&proxy, "ended"), 2.0);
    assert_eq!(parks(&proxy, PARKED), parks(&proxy, "resumed") + parks(&proxy, "ended"));
    proxy.stop();
}

/// Another client has the backend and gives it back at once.
fn use_backend(other: &mut Wire) {
    assert_eq!(other.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
}

#[test]
fn every_way_to_send_a_statement_goes_on_elsewhere() {
    let db = Db::new();
    db.run(&["create table t (id int)", "insert into t values (7)"]);
    let proxy = start(&db, config("enforce"));
    let (mut wire, mut other) = (proxy.connect(), proxy.connect());
    // A statement parsed in one segment and bound in the next, unnamed and named.
    wire.ask(&[msg::unnamed("begin"), msg::unnamed("select 1"), msg::sync()].concat());
    assert_eq!(wire.ask(&[msg::parse("", "select id from t"), msg::sync()].concat()).trace(), "1 Z(T)");
    use_backend(&mut other);
    assert_eq!(parks(&proxy, PARKED), 1.0);
    let bound = [msg::bind("", ""), msg::execute("", 0), msg::sync()].concat();
    assert_eq!(wire.ask(&bound).trace(), "2 D C(SELECT 1) Z(T)");
    use_backend(&mut other);
    wire.ask(&[msg::parse("mine", "select id + $1 from t"), msg::sync()].concat());
    use_backend(&mut other);
    let named =
        |value| [msg::bind_with("", "mine", &[Some(value)]), msg::execute("", 0), msg::sync()].concat();
    for value in ["1", "2"] {
        let reply = wire.ask(&named(value));
        assert_eq!(reply.trace(), "2 D C(SELECT 1) Z(T)");
        use_backend(&mut other);
    }
    assert_eq!(wire.ask(&[msg::describe_statement("mine"), msg::sync()].concat()).trace(), "t T Z(T)");
    use_backend(&mut other);
    // Several statements in a Query, several in a segment, and two segments in one write.
    assert_eq!(wire.query("select 1; select 2").trace(), "T D C(SELECT 1) T D C(SELECT 1) Z(T)");
    use_backend(&mut other);
    wire.send(&[named("1"), named("2"), msg::query("select 3")].concat());
    for trace in ["2 D C(SELECT 1) Z(T)", "2 D C(SELECT 1) Z(T)", "T D C(SELECT 1) Z(T)"] {
        assert_eq!(wire.recv_reply().trace(), trace);
    }
    use_backend(&mut other);
    assert_eq!(parks(&proxy, PARKED), 8.0);
    // An error ends it as ever.
    assert_eq!(wire.query("select 1 / 0").trace(), "E(22012) Z(E)");
    assert_eq!(wire.query("rollback").trace(), "C(ROLLBACK) Z(I)");
    // COMMIT in the extended protocol, while it is parked.
    wire.batch("begin");
    wire.batch("select 1");
    use_backend(&mut other);
    assert_eq!(wire.ask(&[msg::unnamed("commit"), msg::sync()].concat()).trace(), "1 2 n C(COMMIT) Z(I)");
    assert_eq!((parks(&proxy, PARKED), parks(&proxy, "ended")), (9.0, 1.0));
    assert_eq!(leases(&proxy), 0);
    proxy.stop();
}

#[test]
fn what_a_transaction_has_set_for_itself_is_there_again() {
    let db = Db::new();
    db.run(&[
        "create table rows (tenant text, id int)",
        "insert into rows values ('a', 1), ('b', 2)",
        "alter table rows enable row level security",
        "alter table rows force row level security",
        "create policy p on rows using (tenant = current_setting('app.tenant', true))",
    ]);
    let proxy = start(&db, config("enforce"));
    let (mut wire, mut other) = (proxy.connect(), proxy.connect());
    wire.batch("begin");
    let set =
        "select set_config('app.tenant', $1, true), set_config('app.since', clock_timestamp()::text, true)";
    let bound = [msg::parse("", set), msg::bind_with("", "", &[Some("a")]), msg::execute("", 0), msg::sync()];
    assert_eq!(wire.ask(&bound.concat()).trace(), "1 2 D C(SELECT 1) Z(T)");
    wire.batch("set local app.odd = 'it''s \\ \u{fc}'");
    let before = wire.query("select current_setting('app.since')").value();
    use_backend(&mut other);
    assert_eq!(parks(&proxy, PARKED), 1.0);
    assert_eq!(wire.query("select id from rows").value(), "1", "its tenant's rows and no others");
    assert_eq!(wire.query("select current_setting('app.since')").value(), before);
    assert_eq!(wire.query("select current_setting('app.odd')").value(), "it's \\ \u{fc}");
    // Nobody else sees any of it.
    assert_eq!(
        other.query("select count(*), coalesce(current_setting('app.tenant', true), '') from rows").rows(),
        [[Some("0".to_owned()), Some(String::new())]]
    );
    assert_eq!(wire.query("select id from rows").value(), "1");
    wire.batch("commit");
    assert_eq!(wire.query("select coalesce(current_setting('app.tenant', true), '')").value(), "");
    proxy.stop();
}

#[test]
fn what_does_more_than_read_keeps_its_backend() {
    let db = Db::new();
    db.run(&[
        "create table t (id int)",
        "create sequence s",
        "create function writes() returns int language sql as 'insert into t values (1) returning id'",
        "create view sneaky as select writes() as id",
        "create view plain as select id from t",
    ]);
    let proxy = Proxy::start(&db, config("enforce").with("pool", "max_wait = \"1s\""));
    let (mut wire, mut other) = (proxy.connect(), proxy.connect());
    warm(&proxy);
    for (text, reason) in [
        ("insert into t values (1)", "statement"),
        ("savepoint a", "statement"),
        ("declare c cursor for select 1", "statement"),
        ("lock table t in access share mode", "statement"),
        ("notify n", "statement"),
        ("select id from t for update", "lock"),
        ("select id into u from t", "into"),
        ("select nextval('s')", "function"),
        ("select writes()", "function"),
        ("select * from sneaky", "function"),
        ("select pg_advisory_xact_lock(1)", "function"),
        ("set local role none", "context"),
        ("set transaction read only", "context"),
        ("select set_config('app.x', 'y', false)", "context"),
    ] {
        let before = unparkable(&proxy, reason);
        wire.batch("begin");
        wire.batch(text);
        assert_eq!(unparkable(&proxy, reason), before + 1.0, "{text}");
        assert_eq!(leases(&proxy), 1, "{text}");
        wire.batch("rollback");
    }
    wire.batch("begin");
    wire.ask(&[msg::parse("", "select 1"), msg::bind("p", ""), msg::execute("p", 0), msg::sync()].concat());
    assert_eq!(unparkable(&proxy, "portal"), 1.0);
    wire.batch("rollback");
    wire.batch("begin");
    let limited = [msg::parse("", "values (1), (2)"), msg::bind("", ""), msg::execute("", 1), msg::sync()];
    assert_eq!(wire.ask(&limited.concat()).trace(), "1 2 D s Z(T)");
    assert_eq!(unparkable(&proxy, "portal"), 2.0);
    wire.batch("rollback");
    wire.batch("begin isolation level repeatable read");
    wire.batch("select 1");
    assert_eq!(other.query("select 1").code(), "53300", "nobody is made to give way");
    wire.batch("rollback");
    wire.batch("begin");
    wire.batch("insert into t values (1)");
    assert_eq!(other.query("select 1").code(), "53300");
    wire.batch("commit");
    // A view that only reads does not keep it.
    wire.batch("begin");
    wire.batch("select * from plain");
    use_backend(&mut other);
    assert_eq!(parks(&proxy, PARKED), 1.0);
    wire.batch("commit");
    proxy.stop();
}

#[test]
fn in_mode_observe_nothing_is_parked_and_the_silence_is_counted() {
    let db = Db::new();
    let proxy = Proxy::start(&db, config("observe").with("pool", "max_wait = \"1s\""));
    let (mut wire, mut other) = (proxy.connect(), proxy.connect());
    warm(&proxy);
    wire.batch("begin");
    wire.batch("select 1");
    assert_eq!(other.query("select 1").code(), "53300", "as without parking");
    wire.batch("select 2");
    // All but the 5 ms that it would not have been parked.
    let silent = parkable_seconds(&proxy);
    assert!(silent > 0.9, "{silent}");
    let rows = rows(&mut proxy.console(), "select parkable from bursar.leases");
    assert_eq!(rows, [["t"]]);
    wire.batch("commit");
    assert_eq!((parks(&proxy, PARKED), unparkable(&proxy, "catalog")), (0.0, 1.0));
    proxy.stop();
}

#[test]
fn who_is_refused_a_backend_while_parked_has_a_failed_transaction() {
    let db = Db::new();
    let proxy = Proxy::start(&db, config("enforce").with("pool", "max_wait = \"1s\""));
    let (mut wire, mut other) = (proxy.connect(), proxy.connect());
    warm(&proxy);
    wire.batch("begin");
    wire.batch("select 1");
    take_backend(&mut other);
    assert_eq!(wire.query("select 1").trace(), "E(53300) Z(E)");
    assert_eq!(wire.query("select 1").trace(), "E(25P02) Z(E)");
    assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)");
    other.batch("commit");
    assert_eq!((parks(&proxy, PARKED), parks(&proxy, "lost")), (1.0, 1.0));
    // A client that leaves leaves nothing behind.
    wire.batch("begin");
    wire.batch("select 1");
    take_backend(&mut other);
    drop(wire);
    until("the parked transaction is given up", || parks(&proxy, "lost") == 2.0);
    other.batch("commit");
    assert_eq!((leases(&proxy), of(&proxy, "bursar_parked{", "}")), (0, 0.0));
    assert_eq!(db.backends("state <> 'idle'"), 0);
    proxy.stop();
}

#[test]
fn a_cancel_hits_the_statement_and_never_the_transaction_that_is_parked() {
    let db = Db::new();
    let proxy = start(&db, config("enforce"));
    let (mut wire, mut other) = (proxy.connect(), proxy.connect());
    wire.batch("begin");
    wire.batch("select 1");
    take_backend(&mut other);
    wire.cancel();
    assert_eq!(other.query("select 2").value(), "2", "nor anybody else");
    other.batch("commit");
    wire.send(&msg::query("select pg_sleep(60)"));
    until("it sleeps", || db.running("pg_sleep(60)") == 1);
    wire.cancel();
    assert_eq!(wire.recv_reply().trace(), "T E(57014) Z(E)");
    wire.batch("rollback");
    proxy.stop();
}

#[test]
fn a_transaction_that_cannot_be_begun_again_as_it_was_fails() {
    let db = Db::new();
    let proxy = start(&db, config("enforce"));
    let (mut wire, mut other) = (proxy.connect_for("a", "r"), proxy.connect());
    let begin = |wire: &mut Wire| {
        wire.batch("begin");
        wire.batch("set local auto_explain.log_min_duration = '1s'; select 1");
    };
    begin(&mut wire);
    use_backend(&mut other);
    assert_eq!(parks(&proxy, PARKED), 1.0);
    // From now on backends know the setting, and that it is a superuser's.
    let name = db.name();
    db.cluster()
        .admin()
        .batch(&format!("alter database {name} set session_preload_libraries = 'auto_explain'"));
    proxy.console().batch("reconnect");
    use_backend(&mut other);
    assert_eq!(wire.query("create table never (id int)").trace(), "E(42501) Z(E)");
    assert_eq!(wire.query("commit").trace(), "C(ROLLBACK) Z(I)");
    assert_eq!(db.value("select count(*) from pg_class where relname = 'never'"), "0");
    assert_eq!(parks(&proxy, "mismatch"), 1.0);
    assert!(proxy.log().contains("its route is not parked any more"), "{}", proxy.log());
    // Its route keeps its backends.
    wire.batch("begin");
    wire.batch("select 1");
    other.send(&msg::query("select 1"));
    until("the other one waits", || rows(&mut proxy.console(), "show queue").len() == 1);
    assert_eq!(wire.query("select 2").value(), "2");
    assert_eq!(parks(&proxy, PARKED), 1.0);
    wire.batch("commit");
    assert_eq!(other.recv_reply().trace(), "T D C(SELECT 1) Z(I)");
    proxy.stop();
}

#[test]
fn a_parked_transaction_stays_its_tenants_and_is_as_old_as_it_is() {
    let db = Db::new();
    let config = config("enforce").with("tenant_context", "key = \"app.tenant_id\"").with(
        "budget.transaction",
        "max_age = { warn = \"off\", abort = \"4s\", mode = \"enforce\", force = true }",
    );
    let proxy = Proxy::start(&db, config);
    let (mut wire, mut other) = (proxy.connect_for("a", "r"), proxy.connect_for("b", "s"));
    warm(&proxy);
    wire.batch("begin");
    assert_eq!(wire.query("select current_setting('app.tenant_id')").value(), "a");
    assert_eq!(other.query("select current_setting('app.tenant_id')").value(), "b");
    assert_eq!(parks(&proxy, PARKED), 1.0);
    assert_eq!(wire.query("set bursar.tenant = 'b'").code(), "42501");
    assert_eq!(wire.query("select current_setting('app.tenant_id')").value(), "a");
    for _ in 0..2 {
        // Each younger than the limit, both together older than it.
        assert_eq!(other.query("select pg_sleep(2.1)").trace(), "T D C(SELECT 1) Z(I)");
    }
    assert_eq!(parks(&proxy, PARKED), 2.0);
    assert_eq!(wire.query("select 1").trace(), "E(25P04) Z(E)", "its age counts while it is parked");
    wire.batch("rollback");
    proxy.stop();
}

#[test]
fn what_no_text_shows_the_backend_is_asked() {
    let db = Db::new();
    db.run(&[
        "create table t (id int)",
        "create function opens() returns refcursor language plpgsql stable as \
         $$ declare c refcursor := 'mine'; begin open c for select 7; return c; end $$",
        "create function hides() returns text language plpgsql stable as \
         $$ begin return pg_current_xact_id(); end $$",
    ]);
    let proxy = start(&db, config("enforce").with("pool", "max_wait = \"1s\""));
    let (mut wire, mut other) = (proxy.connect(), proxy.connect());
    for (text, result) in [("select opens()", "unfit"), ("select hides() is null", "wrote")] {
        wire.batch("begin");
        wire.batch(text);
        assert_eq!(other.query("select 1").code(), "53300", "{text}");
        assert_eq!(parks(&proxy, result), 1.0, "asked once");
        if result == "unfit" {
            assert_eq!(wire.query("fetch all in mine").value(), "7");
        }
        wire.batch("commit");
    }
    assert_eq!(parks(&proxy, PARKED), 0.0);
    proxy.stop();
}

#[test]
fn what_must_come_before_any_query_is_refused_behind_one_as_ever() {
    let db = Db::new();
    let proxy = start(&db, config("enforce"));
    let (mut wire, mut other) = (proxy.connect(), proxy.connect());
    for set in ["set transaction isolation level serializable", "begin isolation level repeatable read"] {
        wire.batch("begin");
        wire.batch("select 1");
        use_backend(&mut other);
        assert_eq!(wire.query(set).code(), "25001", "{set}");
        wire.batch("rollback");
    }
    assert_eq!(parks(&proxy, PARKED), 2.0);
    proxy.stop();
}

#[test]
fn what_changes_the_database_is_known_to_the_next_transaction() {
    let db = Db::new();
    let proxy = start(&db, config("enforce"));
    let mut wire = proxy.connect();
    let counts = || (unparkable(&proxy, "catalog"), unparkable(&proxy, "function"));
    let mut calls = || {
        for text in ["begin", "select f()", "commit"] {
            wire.batch(text);
        }
    };
    let mut other = proxy.connect();
    other.batch("create function f() returns int language sql stable as 'select 1'");
    assert_eq!(counts(), (1.0, 0.0), "the very first transaction of all");
    calls();
    assert_eq!(counts(), (2.0, 0.0), "nobody knows what has been created");
    calls();
    assert_eq!(counts(), (2.0, 0.0));
    other.batch("create or replace function f() returns int language sql volatile as 'select 1'");
    calls();
    calls();
    assert_eq!(counts(), (3.0, 1.0));
    proxy.stop();
}

/// The end of a request says whose the work was, not that there is no more of it.
#[test]
fn a_transaction_goes_on_whose_request_was_ended_while_it_was_parked() {
    let db = Db::new();
    db.run(&["create table t (id int)", "insert into t values (7)"]);
    let proxy = start(&db, config("enforce"));
    let (mut wire, mut sibling, mut other) = (proxy.connect(), proxy.connect(), proxy.connect());
    // Who still carries the id of a request that another session has ended is told.
    for (request, told) in [("r1", ""), ("r2", "N(01000) ")] {
        wire.batch(&format!("set bursar.request_id = '{request}'"));
        wire.batch("begin");
        wire.batch("select 1");
        use_backend(&mut other);
        assert_eq!(of(&proxy, "bursar_parked{", "}"), 1.0);
        // By the client itself, and by another session of the request.
        let ends = if request == "r1" { &mut wire } else { &mut sibling };
        ends.batch(&format!("set bursar.request_id = '{request}'"));
        assert_eq!(ends.query("select bursar.end_request()").value(), request);
        let reply = wire.query("select id from t where id = 7");
        assert_eq!(reply.trace(), format!("{told}T D C(SELECT 1) Z(T)"), "{request}");
        use_backend(&mut other);
        wire.batch("insert into t values (8)");
        assert_eq!(wire.query("commit").trace(), "C(COMMIT) Z(I)");
    }
    assert_eq!(db.value("select count(*) from t where id = 8"), "2");
    assert_eq!((parks(&proxy, PARKED), parks(&proxy, "resumed")), (4.0, 4.0));
    assert_eq!(leases(&proxy), 0);
    proxy.stop();
}

#[test]
fn a_drain_waits_for_a_parked_transaction() {
    let db = Db::new();
    let mut proxy = start(&db, config("enforce"));
    let (mut wire, mut other) = (proxy.connect(), proxy.connect());
    wire.batch("begin");
    wire.batch("select 1");
    use_backend(&mut other);
    assert_eq!(parks(&proxy, PARKED), 1.0);
    crate::support::signal(proxy.pid(), "TERM");
    assert_eq!(other.recv_to_end().trace(), "E(FATAL 57P01) EOF");
    assert_eq!(wire.query("select 2").value(), "2");
    wire.send(&msg::query("commit"));
    assert_eq!(wire.recv_to_end().trace(), "C(COMMIT) Z(I) E(FATAL 57P01) EOF");
    assert!(proxy.wait().success());
}

/// The end is answered here, what its pipeline executes behind it is another transaction.
#[test]
fn a_pipeline_that_ends_it_goes_on_behind_it() {
    let db = Db::new();
    for fence in [false, true] {
        let config = config("enforce");
        let config = if fence { config.with("tenant_context", "key = \"app.tenant_id\"") } else { config };
        let proxy = start(&db, config);
        let (mut wire, mut other) = (proxy.connect(), proxy.connect());
        for end in ["commit", "rollback"] {
            for statement in ["select 7", "select * from generate_series(1, 3)"] {
                wire.batch("begin");
                assert_eq!(wire.query("select 1").value(), "1");
                let before = parks(&proxy, PARKED);
                take_backend(&mut other);
                assert_eq!(parks(&proxy, PARKED), before + 1.0);
                other.batch("commit");
                let pipeline = [msg::unnamed(end), msg::unnamed(statement), msg::sync()].concat();
                let reply = wire.ask(&pipeline);
                let rows = " D".repeat(reply.rows().len());
                let tag =
                    format!("C({}) 1 2 T{rows} C(SELECT {}) Z(I)", end.to_uppercase(), reply.rows().len());
                assert_eq!(reply.trace(), format!("1 2 n {tag}"), "{fence}");
            }
        }
        proxy.stop();
    }
}
