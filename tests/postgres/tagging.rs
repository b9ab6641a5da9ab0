//! Tags: answered here in every protocol shape and transaction state, read from every channel, and
//! seen where they count, in the console's views (budgets.md §2.2, wire.md D).

use crate::support::{Config, Db, Login, Proxy, Refused, Wire, msg, trace, until};
use std::time::{Duration, Instant};

const SIMPLE: &str = "C(SET) Z(I)";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn start(config: Config) -> (Db<'static>, Proxy) {
    let db = Db::new();
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

fn one() -> (Db<'static>, Proxy) {
    start(Config::one_backend())
}

/// P B D E of one text, without Sync.
fn run(sql: &str) -> Vec<u8> {
    [msg::parse("", sql), msg::bind("", ""), msg::describe_portal(""), msg::execute("", 0)].concat()
}

fn extended(wire: &mut Wire, sql: &str) -> String {
    wire.ask(&[run(sql), msg::sync()].concat()).trace()
}

/// Column values of the console's only row, `-` for NULL.
fn row(proxy: &Proxy, sql: &str) -> Vec<String> {
    let rows = proxy.console().query(sql).rows();
    assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
    rows[0].iter().map(|value| value.clone().unwrap_or_else(|| "-".into())).collect()
}

/// What the lease that is held now is held for.
fn held_for(proxy: &Proxy) -> Vec<String> {
    row(proxy, "select tenant, request, route from bursar.leases")
}

/// Begins a transaction with these first words and says whose it is.
fn opened_by(proxy: &Proxy, wire: &mut Wire, begin: &str) -> Vec<String> {
    wire.batch(begin);
    let held = held_for(proxy);
    wire.batch("rollback");
    held
}

#[test]
fn tags_are_answered_while_the_only_backend_is_held() {
    let (_db, proxy) = one();
    let mut holder = proxy.connect();
    holder.batch("begin");
    let mut wire = proxy.connect();
    assert_eq!(wire.query("set bursar.tenant = 'acme'").trace(), SIMPLE);
    assert_eq!(wire.query("SET SESSION bursar.request_id TO 'r1';").trace(), SIMPLE);
    assert_eq!(wire.query("show bursar.tenant").value(), "acme");
    let shown = wire.query("SHOW bursar.request_id");
    assert_eq!(shown.trace(), "T D C(SHOW) Z(I)");
    assert_eq!((shown.columns(), shown.value()), (vec!["bursar.request_id".to_owned()], "r1".to_owned()));
    let several = "set bursar.user_id = 'u'; set bursar.thread_id = 't'; show bursar.user_id; \
                   reset bursar.user_id";
    assert_eq!(wire.query(several).trace(), "C(SET) C(SET) T D C(SHOW) C(RESET) Z(I)");
    assert_eq!(wire.query("show bursar.user_id").value(), "");
    assert_eq!(wire.query("show bursar.thread_id").value(), "t");
    assert_eq!(wire.query("reset bursar.tenant").trace(), "C(RESET) Z(I)");
    assert_eq!(wire.query("show bursar.tenant").value(), "");
    assert_eq!(
        row(&proxy, "select doing, request from bursar.clients where request is not null"),
        ["idle", "r1"]
    );
    assert_eq!(row(&proxy, "select count(*) from bursar.leases"), ["1"], "the holder's");
    holder.batch("commit");
    proxy.stop();
}

#[test]
fn the_extended_protocol_is_answered_without_a_backend() {
    let (_db, proxy) = one();
    let mut holder = proxy.connect();
    holder.batch("begin");
    let mut wire = proxy.connect();
    assert_eq!(extended(&mut wire, "set bursar.tenant = 'acme'"), "1 2 n C(SET) Z(I)");
    assert_eq!(extended(&mut wire, "show bursar.tenant"), "1 2 T D C(SHOW) Z(I)");
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
    // Flush brings the replies without ending the segment.
    wire.send(&[run("set bursar.tenant = 'globex'"), msg::flush()].concat());
    let replies = wire.recv_count(4);
    assert_eq!(trace(&replies), "1 2 n C(SET)");
    assert_eq!(wire.ask(&msg::sync()).trace(), "Z(I)");
    assert_eq!(wire.query("show bursar.tenant").value(), "globex");
    holder.batch("commit");
    proxy.stop();
}

#[test]
fn replies_made_here_keep_their_place_in_a_pipeline() {
    let (_db, proxy) = one();
    let mut wire = proxy.connect();
    let pipeline = [
        run("select 1"),
        run("set bursar.request_id = 'mid'"),
        run("select 2"),
        run("show bursar.request_id"),
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
    assert_eq!(wire.recv_reply().value(), "3");
    assert_eq!(wire.recv_reply().value(), "acme");
    proxy.stop();
}

#[test]
fn inside_a_transaction_its_status_is_told() {
    let (_db, proxy) = one();
    let mut wire = proxy.connect();
    wire.batch("begin");
    assert_eq!(wire.query("set bursar.tenant = 'acme'").trace(), "C(SET) Z(T)");
    assert_eq!(wire.query("set local bursar.route = '/here'").trace(), "C(SET) Z(T)");
    assert_eq!(extended(&mut wire, "set bursar.user_id = 'u'"), "1 2 n C(SET) Z(T)");
    assert_eq!(wire.query("show bursar.route").value(), "/here");
    assert_eq!(wire.query("select 1/0").trace(), "E(22012) Z(E)");
    assert_eq!(wire.query("set bursar.request_id = 'late'").trace(), "C(SET) Z(E)");
    assert_eq!(extended(&mut wire, "set bursar.thread_id = 't'"), "1 2 n C(SET) Z(E)");
    assert_eq!(extended(&mut wire, "show bursar.thread_id"), "1 2 T D C(SHOW) Z(E)");
    assert_eq!(wire.query("select 1").trace(), "E(25P02) Z(E)");
    assert_eq!(wire.query("rollback").trace(), "C(ROLLBACK) Z(I)");
    // A tag says whose work this is; that stays true. Only SET LOCAL ends with its transaction.
    assert_eq!(wire.query("show bursar.request_id").value(), "late");
    assert_eq!(wire.query("show bursar.tenant").value(), "acme");
    assert_eq!(wire.query("show bursar.route").value(), "");
    proxy.stop();
}

#[test]
fn what_is_no_tag_is_refused_and_the_session_lives() {
    let (db, proxy) = one();
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
    let (db, proxy) = one();
    let mut wire = proxy.connect();
    for sql in ["set bursar.tenent = 'x'", "show bursar.nothing", "reset bursar.nothing"] {
        let pipeline = [run(sql), run("select 1"), msg::sync()].concat();
        assert_eq!(wire.ask(&pipeline).trace(), "E(42704) Z(I)", "{sql}");
        assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
        // Behind real work its turn comes, and no sooner; before work that fails it never does.
        let behind = [run("select 1"), run(sql), run("select 2"), msg::sync()].concat();
        assert_eq!(wire.ask(&behind).trace(), "1 2 T D C(SELECT 1) E(42704) Z(I)");
        let fails = [run("select 1/0"), run(sql), msg::sync()].concat();
        assert_eq!(wire.ask(&fails).trace(), "1 E(22012) Z(I)");
        wire.send(&[run(sql)].concat());
        assert_eq!(trace(&wire.recv_count(1)), "E(42704)", "an error waits for no Sync");
        assert_eq!(wire.ask(&[run("select 1"), msg::sync()].concat()).trace(), "Z(I)");
    }
    // A client that leaves behind such an error has committed nothing that went before it.
    db.run(&["create table t (id int)"]);
    wire.send(&[run("insert into t values (1)"), run("set bursar.max_leases = 'x'"), msg::flush()].concat());
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
    let (_db, proxy) = one();
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
        let skipped = [run(&sql), run("select 1"), msg::sync()].concat();
        assert_eq!(wire.ask(&skipped).trace(), "1 2 n E(22023) Z(I)", "the rest is skipped: {sql}");
    }
    let many = "set bursar.user_id = 'u'; set bursar.max_leases = 'x'; set bursar.user_id = 'v'";
    assert_eq!(wire.query(many).trace(), "C(SET) E(22023) Z(I)");
    assert_eq!(wire.query("show bursar.user_id").value(), "u");
    assert_eq!(wire.query("show bursar.tenant").value(), "before");
    assert_eq!(wire.query(&format!("set bursar.tenant = '{}'", &long[1..])).trace(), SIMPLE);
    proxy.stop();
}

#[test]
fn a_comment_tags_its_transaction() {
    let (_db, proxy) = one();
    let mut wire = proxy.connect();
    let parent = format!("begin /*traceparent='00-{TRACE}-00f067aa0ba902b7-01'*/");
    for (begin, held) in [
        ("begin /*request_id='r1',tenant='acme'*/", ["acme", "r1", "-"]),
        ("/*request_id='r2',route='%2Forders'*/ begin", ["app", "r2", "/orders"]),
        ("begin /*action='show',controller='orders',tenant='acme'*/;", ["acme", "-", "orders#show"]),
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
    wire.ask(&[run("select 1 /*request_id='ext',tenant='acme'*/"), msg::sync()].concat());
    assert_eq!(
        row(&proxy, "select tenant, leases_total, leases_now from bursar.request('ext')"),
        ["acme", "1", "0"]
    );
    // What SET says goes before what a comment says, which goes before the start-up packet.
    wire.batch("set bursar.request_id = 'set'");
    assert_eq!(opened_by(&proxy, &mut wire, "begin /*request_id='comment'*/"), ["app", "set", "-"]);
    proxy.stop();
}

#[test]
fn a_comment_of_ours_does_not_reach_postgresql_and_others_do() {
    let own = "select query from pg_stat_activity where pid = pg_backend_pid()";
    let texts = |wire: &mut Wire, sql: &str| {
        let simple = wire.query(sql).value();
        let extended = wire.ask(&[run(sql), msg::sync()].concat()).value();
        assert_eq!(simple, extended, "{sql}");
        simple
    };
    let (_db, proxy) = one();
    let mut wire = proxy.connect();
    assert_eq!(texts(&mut wire, &format!("{own} /*request_id='r1',tenant='acme'*/")).trim(), own);
    assert_eq!(texts(&mut wire, &format!("/*request_id='r1'*/ {own}")).trim(), own);
    for kept in [format!("{own} /* hello */"), format!("/*+ SeqScan(t) */ {own}"), own.replace(' ', " /**/ ")]
    {
        assert_eq!(texts(&mut wire, &kept), kept);
    }
    let quoted = "select '/*request_id=''r9''*/'";
    assert_eq!(wire.query(quoted).value(), "/*request_id='r9'*/");
    assert_eq!(row(&proxy, "select count(*) from bursar.requests where id = 'r9'"), ["0"]);
    proxy.stop();

    let (_db, proxy) = start(Config::one_backend().with("tag", "strip_comments = false"));
    let mut wire = proxy.connect();
    let whole = format!("{own} /*request_id='r1'*/");
    assert_eq!(texts(&mut wire, &whole), whole);
    assert_eq!(row(&proxy, "select leases_total from bursar.request('r1')"), ["2"]);
    proxy.stop();
}

#[test]
fn the_start_up_packet_and_the_user_suffix_tag_a_session() {
    let (db, proxy) = start(Config::one_backend().with("user.app", "password = \"app\""));
    let login = |user: &str| Login::new(user, db.name());
    for (login, tenant, request) in [
        (login("app").with("bursar.tenant", "acme").with("bursar.request_id", "r1"), "acme", "r1"),
        (login("app").with("options", "-c bursar.tenant=x -c work_mem=7MB"), "x", "-"),
        (login("app").with("options", "--bursar.tenant=y"), "y", "-"),
        (login("app.acme"), "acme", "-"),
        (login("app.acme").with("bursar.tenant", "first"), "first", "-"),
        (login("app"), "app", "-"),
    ] {
        let mut wire = Wire::login(proxy.addr(), &login);
        assert_eq!(wire.query("select current_user").value(), "app");
        assert_eq!(opened_by(&proxy, &mut wire, "begin"), [tenant, request, "-"]);
        let found = "select tenant, request, \"user\" from bursar.clients";
        assert_eq!(row(&proxy, found), [tenant, request, "app"]);
        wire.bye();
        until("it is gone", || row(&proxy, "select count(*) from bursar.clients") == ["0"]);
    }
    // RESET goes back to what the start-up packet said.
    let mut wire = Wire::login(proxy.addr(), &login("app").with("bursar.tenant", "home"));
    wire.batch("set bursar.tenant = 'away'");
    wire.batch("reset bursar.tenant");
    assert_eq!(wire.query("show bursar.tenant").value(), "home");
    proxy.stop();
}

#[test]
fn a_request_tag_that_nobody_used_is_dropped() {
    let (_db, proxy) = start(Config::one_backend().with("tag", "idle_ttl = \"50ms\""));
    let mut wire = proxy.connect_for("acme", "forgotten");
    let set = Instant::now();
    until("the tag is stale", || set.elapsed() > Duration::from_millis(60));
    assert_eq!(opened_by(&proxy, &mut wire, "begin"), ["acme", "-", "-"], "the tenant stays");
    assert_eq!(wire.query("show bursar.request_id").value(), "");
    assert!(row(&proxy, "select count(*) from bursar.request('forgotten')") == ["0"]);
    proxy.stop();
}
