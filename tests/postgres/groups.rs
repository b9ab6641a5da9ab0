//! Request groups (budgets.md §4.1): a client says that its request is over.

use crate::support::watch::{self, metric, row};
use crate::support::{Config, Db, Login, PATIENCE, Proxy, Wire, eventually, msg, trace, until};

const END: &str = "select bursar.end_request()";

/// A session whose request is said by SET.
fn tagged(proxy: &Proxy, request: &str) -> Wire {
    let mut wire = proxy.connect();
    wire.batch(&format!("set bursar.request_id = '{request}'"));
    wire
}

/// State and leases so far of a request.
fn request(proxy: &Proxy, id: &str) -> Vec<String> {
    let sql = format!("select state, leases_total from bursar.request('{id}')");
    row(&mut proxy.console(), &sql)
}

#[test]
fn a_request_ends_in_every_protocol_shape_and_without_a_backend() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("pool", "max_wait = \"1s\""));
    let mut wire = tagged(&proxy, "r1");
    wire.batch("select 1");
    let mut holder = proxy.connect();
    holder.batch("begin; select 1");
    // Simple, by any name of the column.
    let ended = wire.query(END);
    assert_eq!((ended.trace().as_str(), ended.value().as_str()), ("T D C(SELECT 1) Z(I)", "r1"));
    assert_eq!(ended.columns(), ["end_request"]);
    assert_eq!(request(&proxy, "r1"), ["ended", "1"]);
    assert_eq!(wire.query("show bursar.request_id").value(), "");
    let none = wire.query("select bursar.end_request() as end_request_1");
    assert_eq!((none.columns(), none.rows()), (vec!["end_request_1".to_owned()], vec![vec![None]]));
    // Extended, described and not.
    wire.batch("set bursar.request_id = 'r2'");
    let described = [
        msg::parse("end", END),
        msg::describe_statement("end"),
        msg::bind("", "end"),
        msg::describe_portal(""),
        msg::execute("", 0),
        msg::sync(),
    ];
    let ended = wire.ask(&described.concat());
    assert_eq!((ended.trace().as_str(), ended.value().as_str()), ("1 t T 2 T D C(SELECT 1) Z(I)", "r2"));
    wire.batch("set bursar.request_id = 'r3'");
    let again = wire.ask(&[msg::bind("", "end"), msg::execute("", 0), msg::sync()].concat());
    assert_eq!((again.trace().as_str(), again.value().as_str()), ("2 D C(SELECT 1) Z(I)", "r3"));
    holder.batch("commit");
    proxy.stop();
}

#[test]
fn the_end_keeps_its_place_in_a_pipeline_and_in_a_transaction() {
    let db = Db::new();
    db.run(&["create table t (id int)"]);
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut wire = tagged(&proxy, "r1");
    let show = "show bursar.request_id";
    let pipeline = [
        msg::unnamed("insert into t values (1)"),
        msg::unnamed(END),
        msg::unnamed(show),
        msg::unnamed("insert into t values (2)"),
        msg::sync(),
        msg::query("set bursar.request_id = 'r2'; show bursar.request_id"),
    ];
    wire.send(&pipeline.concat());
    let first = wire.recv_reply();
    let inserted = "1 2 n C(INSERT 0 1)";
    assert_eq!(first.trace(), format!("{inserted} 1 2 T D C(SELECT 1) 1 2 T D C(SHOW) {inserted} Z(I)"));
    assert_eq!(first.rows(), [[Some("r1".to_owned())], [Some(String::new())]]);
    assert_eq!(wire.recv_reply().value(), "r2", "set at the same moment, it is another request");
    assert_eq!(wire.query("insert into t values (3)").trace(), "C(INSERT 0 1) Z(I)");
    assert_eq!(request(&proxy, "r2"), ["idle", "1"]);
    // What comes behind an error does not happen.
    let skipped = [msg::unnamed("select no_such_column"), msg::unnamed(END), msg::sync()].concat();
    assert_eq!(wire.ask(&skipped).trace(), "E(42703) Z(I)");
    assert_eq!(wire.query(show).value(), "r2");
    // In a transaction that goes on; and in one that has failed.
    wire.batch("begin; insert into t values (4)");
    let ended = wire.query(END);
    assert_eq!((ended.trace().as_str(), ended.value().as_str()), ("T D C(SELECT 1) Z(T)", "r2"));
    assert_eq!(wire.query("commit").trace(), "C(COMMIT) Z(I)");
    assert_eq!(db.value("select count(*) from t"), "4");
    wire.batch("set bursar.request_id = 'r3'");
    wire.batch("begin");
    assert_eq!(wire.query("select no_such_column").trace(), "E(42703) Z(E)");
    assert_eq!(wire.query(END).trace(), "T D C(SELECT 1) Z(E)");
    assert_eq!(wire.query("rollback").trace(), "C(ROLLBACK) Z(I)");
    // It is told with a Flush too.
    wire.send(&[msg::unnamed(END), msg::flush()].concat());
    assert_eq!(trace(&wire.recv_count(5)), "1 2 T D C(SELECT 1)");
    assert_eq!(wire.ask(&msg::sync()).trace(), "Z(I)");
    proxy.stop();
}

#[test]
fn who_still_carries_the_id_of_an_ended_request_works_for_none_and_is_told() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2));
    let (mut first, mut second) = (tagged(&proxy, "r1"), tagged(&proxy, "r1"));
    first.batch("select 1");
    second.batch("begin; select 1");
    assert_eq!(first.query(END).value(), "r1");
    // A transaction that is open goes on as the request's, and is what it may have leaked.
    assert_eq!(second.query("select 1").trace(), "T D C(SELECT 1) Z(T)");
    assert_eq!(request(&proxy, "r1"), ["ended", "2"]);
    second.batch("commit");
    let told = second.query("select 1");
    assert_eq!(told.trace(), "N(01000) T D C(SELECT 1) Z(I)");
    assert_eq!(told.notices()[0].field(b'M').as_deref(), Some("bursar: request is over"));
    assert_eq!(second.query("select 1").trace(), "T D C(SELECT 1) Z(I)", "once");
    assert_eq!(second.query("show bursar.request_id").value(), "");
    assert_eq!(metric(&proxy, "bursar_stale_tags_total"), 1.0);
    assert_eq!(request(&proxy, "r1"), ["ended", "2"]);
    // Who says the id anew begins anew.
    second.batch("set bursar.request_id = 'r1'");
    second.batch("select 1");
    assert_eq!(request(&proxy, "r1"), ["idle", "1"]);
    // In the extended protocol, in a pipeline.
    let mut third = tagged(&proxy, "r1");
    assert_eq!(second.query(END).value(), "r1");
    let twice = [msg::unnamed("select 1"), msg::unnamed("select 2"), msg::sync()].concat();
    assert_eq!(third.ask(&twice).trace(), "N(01000) 1 2 T D C(SELECT 1) 1 2 T D C(SELECT 1) Z(I)");
    proxy.stop();
}

#[test]
fn what_mixes_work_twice_is_closed_and_its_request_in_quarantine() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2).with("isolation", "mode = \"enforce\""));
    let mut wire = tagged(&proxy, "r1");
    wire.batch("begin");
    let pid: i32 = wire.query("select pg_backend_pid()").value().parse().expect("a process id");
    assert_eq!(wire.query("set bursar.request_id = 'r2'").trace(), "E(42501) Z(T)");
    wire.send(&msg::query("set bursar.request_id = 'r3'"));
    assert_eq!(wire.recv_to_end().trace(), "E(42501) Z(T) E(FATAL 57P01) EOF");
    until("its backend is closed", || !db.pids().contains(&pid));
    let mut other = tagged(&proxy, "r1");
    let refused = other.query("select 1");
    assert_eq!(refused.trace(), "E(42501) Z(I)");
    let message = refused.error().and_then(|error| error.field(b'M'));
    assert_eq!(message.as_deref(), Some("bursar: the request is in quarantine"));
    other.batch("set bursar.request_id = 'r4'");
    other.batch("select 1");
    let login = Login::new("app", db.name()).with("bursar.request_id", "r1");
    assert_eq!(Wire::login(proxy.addr(), &login).query("select 1").trace(), "E(42501) Z(I)");
    proxy.stop();
}

/// A statement that says in which order it was served, sent and not waited for.
fn line_up(proxy: &Proxy, tenant: &str, request: &str, console: &mut Wire, place: usize) -> Wire {
    let mut wire = proxy.connect_for(tenant, request);
    wire.send(&msg::query(&format!("insert into served (who) values ('{tenant} {request}')")));
    until("it waits", || row(console, "select count(*) from bursar.queue") == [place.to_string()]);
    wire
}

#[test]
fn who_goes_on_with_a_request_comes_before_its_tenants_new_ones_and_not_before_another_tenants() {
    let db = Db::new();
    db.run(&["create table served (place serial, who text)"]);
    let config = Config::one_backend().with("request", "continuation = \"10m\"");
    let proxy = Proxy::start(&db, config.with("pool", "max_wait = \"60s\""));
    let mut console = proxy.console();
    proxy.connect_for("a", "old").batch("select 1");
    let mut holder = proxy.connect_for("c", "holder");
    holder.batch("begin; select 1");
    let mut waiting = Vec::new();
    for (place, (tenant, request)) in [("a", "new"), ("b", "new"), ("a", "old")].into_iter().enumerate() {
        waiting.push(line_up(&proxy, tenant, request, &mut console, place + 1));
    }
    let continues = "select tenant, request from bursar.queue where continues";
    assert_eq!(row(&mut console, continues), ["a", "old"]);
    holder.batch("commit");
    for wire in &mut waiting {
        assert_eq!(wire.recv_reply().trace(), "C(INSERT 0 1) Z(I)");
    }
    let order = db.value("select string_agg(who, ', ' order by place) from served");
    assert_eq!(order, "b new, a old, a new", "b has had nothing yet");
    proxy.stop();
}

#[test]
fn a_request_gets_its_last_backend_again_if_that_is_idle_and_does_not_wait_for_it() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(3));
    let all_back = || until("all is given back", || watch::leases(&proxy) == 0);
    let pid = |wire: &mut Wire| wire.query("select pg_backend_pid()").value();
    let mut others: Vec<Wire> = (0..3).map(|_| proxy.connect()).collect();
    for statement in ["begin; select 1", "commit"] {
        for wire in &mut others {
            wire.batch(statement);
        }
    }
    all_back();
    let mut wire = tagged(&proxy, "r1");
    let mine = pid(&mut wire);
    for _ in 0..3 {
        all_back();
        // Two others come and go; the second one's backend is the last back.
        let mut theirs = Vec::new();
        for other in &mut others[..2] {
            other.batch("begin");
            theirs.push(pid(other));
        }
        assert_eq!(theirs[0], mine, "the last one back is the next");
        for (back, other) in others[..2].iter_mut().enumerate() {
            other.batch("commit");
            until("it is back", || watch::leases(&proxy) == 1 - back);
        }
        assert_eq!(pid(&mut tagged(&proxy, "r1")), mine, "any session of the request");
        all_back();
        assert_eq!(pid(&mut proxy.connect()), mine, "the last one back, for whom it was");
    }
    all_back();
    others[0].batch("begin");
    assert_eq!(pid(&mut others[0]), mine, "it is kept for nobody");
    let another = pid(&mut wire);
    assert_ne!(another, mine, "and not waited for");
    others[0].batch("commit");
    all_back();
    assert_eq!(pid(&mut wire), another, "from now on it is this one");
    proxy.stop();
}

#[test]
fn in_mode_request_a_drivers_reset_ends_the_request() {
    let db = Db::new();
    let config = Config::of_size(2).with("pool", "mode = \"request\"");
    let proxy = Proxy::start(&db, config.with("user.postgres", "mode = \"transaction\""));
    let mut wire = tagged(&proxy, "r0");
    let asyncpg = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;";
    for (at, reset) in ["discard all", "reset all", asyncpg].into_iter().enumerate() {
        wire.batch(&format!("set bursar.request_id = 'r{at}'"));
        wire.batch("select 1");
        assert_eq!(request(&proxy, &format!("r{at}")), ["idle", "1"], "{reset}");
        wire.batch(reset);
        assert_eq!(wire.query("show bursar.request_id").value(), "", "{reset}");
        assert_eq!(request(&proxy, &format!("r{at}")), ["ended", "2"], "{reset}");
    }
    // What is rolled back has reset nothing.
    wire.batch("set bursar.request_id = 'r9'");
    wire.batch("begin; reset all; rollback");
    assert_eq!(wire.query("show bursar.request_id").value(), "r9");
    // It is transaction mode otherwise, and said to be this one.
    wire.batch("begin");
    assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(T)");
    wire.batch("commit");
    let mut console = proxy.console();
    let mode = "select pool_mode from bursar.pools where \"user\" = 'app'";
    assert_eq!(row(&mut console, mode), ["request"]);
    let mode =
        format!("select pool_mode from bursar.databases where name = '{}' or name = '*' limit 1", db.name());
    assert_eq!(row(&mut console, &mode), ["request"]);
    // By role, and there a reset ends nothing: only this session works for it no longer.
    let mut other = Wire::login(proxy.addr(), &Login::new("postgres", db.name()));
    other.batch("set bursar.request_id = 'r10'");
    other.batch("discard all");
    assert_eq!(other.query("show bursar.request_id").value(), "");
    assert_eq!(request(&proxy, "r10"), ["idle", "1"]);
    let mode = "select pool_mode from bursar.pools where \"user\" = 'postgres'";
    assert_eq!(row(&mut console, mode), ["transaction"]);
    proxy.stop();
}

/// Why a request is over, as soon as it is.
fn over(proxy: &Proxy, id: &str) -> String {
    let mut console = proxy.console();
    let sql = format!("select ended_by from bursar.request('{id}') where state = 'ended'");
    eventually("it is over", PATIENCE, || watch::rows(&mut console, &sql).pop())[0].clone()
}

#[test]
fn a_request_that_falls_silent_is_over_by_itself_and_not_while_it_holds_something() {
    let db = Db::new();
    let config = Config::of_size(3).with("request", "idle_ttl = \"200ms\"").with("log", "level = \"debug\"");
    let proxy = Proxy::start(&db, config.with("tag", "idle_ttl = \"10m\""));
    let mut holder = tagged(&proxy, "holds");
    holder.batch("begin; select 1");
    let mut wire = tagged(&proxy, "silent");
    wire.batch("select 1");
    assert_eq!(over(&proxy, "silent"), "idle");
    assert_eq!(request(&proxy, "holds"), ["holding", "1"]);
    let ended = "bursar_requests_ended_total{by=\"idle\"}";
    until("it is counted", || metric(&proxy, ended) == 1.0);
    let event = "event=\"request_over\" ended_by=\"idle\"";
    until("it is told", || proxy.log().lines().any(|line| line.contains(event) && line.contains("silent")));
    // Its id begins anew, without a word: nobody has closed it.
    assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
    assert_eq!(wire.query("show bursar.request_id").value(), "silent");
    let leases = "select leases_total from bursar.request('silent')";
    assert_eq!(row(&mut proxy.console(), leases), ["1"]);
    holder.batch("commit");
    assert_eq!(over(&proxy, "holds"), "idle");
    proxy.stop();
}

#[test]
fn a_request_that_is_too_old_is_over_whatever_it_does_or_only_told_by_its_mode() {
    let db = Db::new();
    for mode in ["enforce", "warn"] {
        let config = Config::of_size(2)
            .with("request", "max_age = \"300ms\"")
            .with("request", &format!("mode = \"{mode}\""))
            .with("tag", "idle_ttl = \"10m\"");
        let proxy = Proxy::start(&db, config);
        let mut wire = tagged(&proxy, "old");
        wire.batch("begin; select 1");
        let event = format!("event=\"request_over\" ended_by=\"age\" mode=\"{mode}\" request=\"old\"");
        until("it is told", || proxy.log().contains(&event));
        assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(T)", "its transaction goes on");
        wire.batch("commit");
        let next = wire.query("select 1").trace();
        if mode == "warn" {
            assert_eq!(next, "T D C(SELECT 1) Z(I)");
            assert_eq!(request(&proxy, "old"), ["idle", "2"]);
        } else {
            assert_eq!(next, "N(01000) T D C(SELECT 1) Z(I)");
            assert_eq!(over(&proxy, "old"), "age");
            assert_eq!(metric(&proxy, "bursar_stale_tags_total"), 1.0);
            assert_eq!(metric(&proxy, "bursar_requests_ended_total{by=\"age\"}"), 1.0);
        }
        proxy.stop();
    }
}
