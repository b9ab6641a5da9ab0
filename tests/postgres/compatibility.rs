//! What docs/compatibility.md says differs from a direct connection, and is about nothing that has tests
//! of its own: it does differ, in this way and no other.

use crate::support::{Config, Db, Login, Proxy, Refused, Wire, msg, until};

/// Before three backends that take turns.
fn in_turns(db: &Db<'_>) -> Proxy {
    let config = Config::of_size(3).with("pool", "reuse = \"round_robin\"").with("pool", "min_idle = 3");
    let proxy = Proxy::start(db, config);
    drop(proxy.connect());
    until("there are three", || db.pids().len() == 3);
    proxy
}

/// A session whose start-up packet says work_mem = 5MB.
fn with_work_mem(proxy: &Proxy) -> Wire {
    Wire::login(proxy.addr(), &proxy.as_app().with("work_mem", "5MB"))
}

fn last_value(wire: &mut Wire, sql: &str) -> String {
    let rows = wire.query(sql).rows();
    rows.last().and_then(|row| row[0].clone()).unwrap_or_else(|| panic!("{sql}: {rows:?}"))
}

#[test]
fn what_follows_a_reset_in_the_same_query_sees_the_servers_value() {
    let db = Db::new();
    let proxy = in_turns(&db);
    let mut wire = with_work_mem(&proxy);
    assert_eq!(last_value(&mut wire, "set work_mem = '6MB'; reset work_mem; show work_mem"), "4MB");
    assert_eq!(wire.query("show work_mem").value(), "5MB");
    let pipeline = ["reset work_mem", "show work_mem"]
        .map(|sql| [msg::parse("", sql), msg::bind("", ""), msg::execute("", 0)].concat());
    let reply = wire.ask(&[pipeline.concat(), msg::sync()].concat());
    assert_eq!(reply.rows(), [[Some("4MB".to_owned())]]);
    assert_eq!(wire.query("show work_mem").value(), "5MB");
    proxy.stop();
}

#[test]
fn a_default_by_set_config_or_for_a_transaction_is_the_servers() {
    let db = Db::new();
    let proxy = in_turns(&db);
    let mut wire = with_work_mem(&proxy);
    wire.batch("set work_mem = '6MB'");
    assert_eq!(wire.query("select set_config('work_mem', null, false)").value(), "4MB");
    assert_eq!(wire.query("show work_mem").value(), "5MB");
    wire.batch("begin");
    wire.batch("set local work_mem to default");
    assert_eq!(wire.query("show work_mem").value(), "4MB");
    wire.batch("commit");
    assert_eq!(wire.query("show work_mem").value(), "5MB");
    proxy.stop();
}

#[test]
fn one_query_that_resets_and_rolls_back_leaves_the_servers_value() {
    let db = Db::new();
    let proxy = in_turns(&db);
    let mut wire = with_work_mem(&proxy);
    // Undone with its transaction, as directly.
    wire.batch("reset work_mem; begin; rollback");
    assert_eq!(wire.query("show work_mem").value(), "5MB");
    wire.batch("reset work_mem; commit; begin; rollback");
    assert_eq!(wire.query("show work_mem").value(), "4MB");
    wire.batch("reset work_mem");
    assert_eq!(wire.query("show work_mem").value(), "5MB");
    proxy.stop();
}

#[test]
fn a_prepared_reset_in_session_mode_goes_to_the_servers_value() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("pool", "mode = \"session\""));
    let mut wire = with_work_mem(&proxy);
    wire.ask(&[msg::parse("s", "reset work_mem"), msg::sync()].concat());
    let reset = wire.ask(&[msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat());
    assert_eq!(reset.trace(), "2 C(RESET) Z(I)");
    assert_eq!(wire.query("show work_mem").value(), "4MB");
    proxy.stop();
}

#[test]
fn a_setting_of_an_application_that_others_have_used_is_empty_and_not_null() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let look = "select current_setting('app.seen', true) is null";
    let (mut one, mut other) = (proxy.connect(), proxy.connect());
    assert_eq!(other.query(look).value(), "t");
    one.batch("set app.seen = 'one'");
    assert_eq!(other.query(look).value(), "f");
    assert_eq!(other.query("select current_setting('app.seen', true)").value(), "");
    proxy.stop();
}

#[test]
fn the_backend_and_what_only_it_knows_change_between_transactions() {
    let db = Db::new();
    db.run(&["create sequence s"]);
    let proxy = in_turns(&db);
    let mut wire = proxy.connect();
    let pids: std::collections::BTreeSet<String> =
        (0..3).map(|_| wire.query("select pg_backend_pid()").value()).collect();
    assert_eq!(pids.len(), 3);
    // Nobody else is there, so each of the three is met in turn.
    assert_eq!(wire.query("select nextval('s')").value(), "1");
    assert_eq!(wire.query("select currval('s')").code(), "55000");
    assert_eq!(last_value(&mut wire, "begin; select nextval('s'); select currval('s'); commit"), "2");
    proxy.stop();
}

#[test]
fn sql_does_not_find_statements_that_the_protocol_has_named() {
    let db = Db::new();
    let prepare = [msg::parse("mine", "select 7"), msg::sync()].concat();
    let listed = "select name from pg_prepared_statements where statement = 'select 7'";
    for (mode, executed, name) in [("transaction", "26000", "bursar_"), ("session", "", "mine")] {
        let config = Config::one_backend().with("pool", &format!("mode = \"{mode}\""));
        let proxy = Proxy::start(&db, config);
        let mut wire = proxy.connect();
        assert_eq!(wire.ask(&prepare).trace(), "1 Z(I)");
        for sql in ["execute mine", "explain execute mine"] {
            assert_eq!(wire.query(sql).code(), executed, "{sql} in {mode} mode");
        }
        assert!(wire.query(listed).value().starts_with(name), "in {mode} mode");
        assert_eq!(wire.query("deallocate mine").trace(), "C(DEALLOCATE) Z(I)");
        proxy.stop();
    }
}

/// Directly the statement is there, and a Describe of one without rows works also now.
#[test]
fn in_a_failed_transaction_a_statement_that_the_backend_lacks_is_25p02() {
    let db = Db::new();
    let run = |wire: &mut Wire, transaction: &mut dyn FnMut(&mut Wire)| {
        let prepare = [msg::parse("mine", "set local work_mem = '5MB'"), msg::sync()].concat();
        assert_eq!(wire.ask(&prepare).trace(), "1 Z(I)");
        transaction(wire);
        assert_eq!(wire.query("select 1 / 0").trace(), "E(22012) Z(E)");
        let said = wire.ask(&[msg::describe_statement("mine"), msg::sync()].concat()).trace();
        wire.batch("rollback");
        said
    };
    let mut begin = |wire: &mut Wire| drop(wire.batch("begin"));
    assert_eq!(run(&mut db.direct(), &mut begin), "t n Z(E)");
    let proxy = in_turns(&db);
    assert_eq!(run(&mut proxy.connect(), &mut begin), "E(25P02) Z(E)");
    proxy.stop();
}

/// As text of a SET it goes through PostgreSQL's own reading of a list of names.
#[test]
fn a_path_that_is_reset_inside_a_transaction_may_be_spelled_otherwise() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let login = Login::new("app", db.name()).with("search_path", "a,Public");
    let [direct, proxied] = [db.cluster().addr(), proxy.addr()].map(|addr| {
        let mut wire = Wire::login(addr, &login);
        wire.batch("begin");
        wire.batch("reset search_path");
        wire.query("show search_path").value()
    });
    assert_eq!(direct, "a,Public");
    assert_eq!(proxied.replace(' ', "").to_lowercase(), "a,public", "{proxied}");
    proxy.stop();
}

/// Which of them is looked at first is no part of any contract.
#[test]
fn of_two_wrong_startup_parameters_either_may_be_named() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let wrong = ["TimeZone", "work_mem"];
    let login = wrong.iter().fold(Login::new("app", db.name()), |login, name| login.with(name, "nonsense"));
    for addr in [db.cluster().addr(), proxy.addr()] {
        let Err(Refused::Said(reply)) = Wire::try_login(addr, &login) else { panic!("let in") };
        let error = reply.error().expect("an error");
        let text = error.field(b'M').expect("its text");
        assert_eq!(error.to_string(), "E(FATAL 22023)", "{text}");
        assert!(wrong.iter().any(|name| text.contains(&format!("\"{name}\""))), "{text}");
    }
    proxy.stop();
}
