//! The tenant fence for row-level security (wire.md C4): every tenant sees all of its own rows and none
//! of another's, whatever the sessions before and the client itself do to the backend.

use crate::support::watch::{leases, metric};
use crate::support::{Config, Db, Login, Proxy, Refused, Reply, Wire, msg, until};

pub(crate) const SETUP: &[&str] = &[
    "create table docs (tenant text not null, id int)",
    "insert into docs select tenant, id from unnest(array['a', 'b', 'c']) tenant, generate_series(1, 3) id",
    "alter table docs enable row level security",
    "alter table docs force row level security",
    "create policy own on docs using (tenant = current_setting('app.tenant_id', true))",
    "create table log (line text)",
    "create procedure commits() language plpgsql as $$ begin commit; perform 1; commit; end $$",
    "create function secretly(who text) returns text language sql as \
     $$ select set_config('app.' || 'tenant_id', who, false) $$",
];

/// Whose rows a session sees, and how many.
pub(crate) const LOOK: &str =
    "select coalesce(string_agg(distinct tenant, ','), 'none') || count(*) from docs";

pub(crate) fn fenced(size: usize, policy: &str) -> Config {
    Config::of_size(size)
        .with("tenant_context", "key = \"app.tenant_id\"")
        .with("tenant_context", &format!("policy = \"{policy}\""))
}

pub(crate) fn start(config: Config) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(SETUP);
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

pub(crate) fn of(proxy: &Proxy, tenant: &str) -> Wire {
    let mut wire = proxy.connect();
    wire.batch(&format!("set bursar.tenant = '{tenant}'"));
    wire
}

fn seen(tenant: &str) -> String {
    if tenant.is_empty() { "none0".to_owned() } else { format!("{tenant}3") }
}

pub(crate) fn violations(proxy: &Proxy, kind: &str) -> f64 {
    metric(proxy, &format!("bursar_isolation_violations_total{{kind=\"{kind}\"}}"))
}

/// The backend of a pool of one has been taken back from a tenant once.
pub(crate) fn warm(proxy: &Proxy) {
    look(&mut of(proxy, "c"), 0);
    until("its lease has ended", || leases(proxy) == 0);
}

/// Takes the right to set a context away; the superuser who gives it back, and how.
pub(crate) fn revoke(db: &Db<'_>) -> (Wire, String) {
    let revoke = "revoke execute on function pg_catalog.set_config(text, text, boolean) from public";
    let mut superuser = Wire::login(db.cluster().addr(), &Login::new("postgres", db.name()));
    superuser.batch(revoke);
    (superuser, revoke.replace("revoke", "grant").replace("from public", "to public"))
}

/// The look in one of the ways a driver has.
pub(crate) fn look(wire: &mut Wire, how: usize) -> String {
    let named = [msg::bind("", "look"), msg::execute("", 0), msg::sync()].concat();
    let reply = match how {
        0 => wire.query(LOOK),
        1 => wire.ask(&[msg::unnamed(LOOK), msg::sync()].concat()),
        2 => wire.ask(&[msg::parse("look", LOOK), named, msg::close_statement("look"), msg::sync()].concat()),
        3 => {
            wire.batch("begin");
            let reply = wire.query(LOOK);
            wire.batch("commit");
            reply
        }
        _ => {
            wire.batch("begin isolation level serializable");
            let reply = wire.query(LOOK);
            wire.batch("rollback");
            reply
        }
    };
    let value = reply.value();
    if how == 2 {
        wire.recv_reply();
    }
    value
}

#[test]
fn every_tenant_sees_its_own_rows_and_all_of_them() {
    for (size, policy, lazy) in
        [(1, "strict", false), (1, "trusted", true), (3, "strict", true), (3, "trusted", false)]
    {
        let config = fenced(size, policy).with("pool", "reuse = \"round_robin\"");
        let (db, proxy) = start(if lazy { config.lazy() } else { config });
        let tenants = ["a", "b", "", "c", "nobody"];
        let mut wires: Vec<Wire> = tenants.iter().map(|tenant| of(&proxy, tenant)).collect();
        for round in 0..20 {
            for (tenant, wire) in tenants.iter().zip(&mut wires) {
                let expected = if *tenant == "nobody" { seen("") } else { seen(tenant) };
                assert_eq!(look(wire, round % 5), expected, "{policy} {size}, round {round}: {tenant}");
            }
        }
        // One session that works for one tenant after the other.
        let mut wire = proxy.connect();
        for tenant in ["a", "b", "", "c", "c", "a"] {
            wire.batch(&format!("set bursar.tenant = '{tenant}'"));
            assert_eq!(look(&mut wire, 0), seen(tenant));
        }
        assert_eq!(metric(&proxy, "bursar_tenant_context_mismatch_total"), 0.0);
        assert!(db.pids().len() <= size);
        proxy.stop();
    }
}

#[test]
fn the_context_outlives_whatever_the_client_does() {
    for policy in ["strict", "trusted"] {
        let (_db, proxy) = start(fenced(1, policy).lazy());
        let (mut a, mut b) = (of(&proxy, "a"), of(&proxy, "b"));
        for program in [
            "begin; rollback",
            "begin|rollback",
            "begin|select 1/0|rollback",
            "begin|select 1|commit and chain|LOOK|commit and chain|LOOK|commit",
            "begin|savepoint s|select 1/0|rollback to s|LOOK|rollback",
            "call commits()",
            "begin|reset all|LOOK|rollback",
            "begin|reset all|LOOK|commit",
            "begin|savepoint s|reset all|rollback to s|LOOK|reset all|release s|LOOK|commit",
            "reset all",
            "discard all",
            "begin isolation level repeatable read|LOOK|commit",
            "begin|set transaction isolation level serializable, read only, deferrable|LOOK|commit",
            "set default_transaction_isolation = serializable|LOOK|reset default_transaction_isolation",
            "set default_transaction_read_only = on|LOOK|set default_transaction_deferrable = on|LOOK|reset all",
            "vacuum docs",
            "create index concurrently i on docs (id)|drop index concurrently i",
            "deallocate all",
            "set role app|LOOK|reset role",
            "listen news|LOOK|discard all|LOOK|unlisten *",
            "create temp table t (id int)|LOOK|reset all|LOOK|discard all|LOOK",
            "select pg_advisory_lock(1)|LOOK|select secretly('b')|LOOK|select pg_advisory_unlock(1)",
            "set statement_timeout = '30ms'|select pg_sleep(1)|LOOK|reset statement_timeout",
        ] {
            if policy == "trusted" && program.contains("secretly") {
                // That is what is trusted: functions.
                continue;
            }
            for statement in program.split('|') {
                if statement != "LOOK" {
                    a.query(statement);
                    // Outside a transaction that takes its tags as well.
                    if !program.starts_with("begin") && ["reset all", "discard all"].contains(&statement) {
                        assert_eq!(look(&mut a, 0), "none0", "{policy}: in {program}");
                        a.batch("set bursar.tenant = 'a'");
                    }
                    continue;
                }
                assert_eq!(look(&mut a, 0), "a3", "{policy}: in {program}");
            }
            assert_eq!(look(&mut b, 0), "b3", "{policy}: another session, after {program}");
            for how in 0..5 {
                assert_eq!(look(&mut a, how), "a3", "{policy}: after {program}");
            }
        }
        proxy.stop();
    }
}

#[test]
fn an_idle_backend_has_no_tenant_even_after_a_function_has_changed_it() {
    let (_db, proxy) = start(fenced(1, "strict"));
    let (mut a, mut nobody) = (of(&proxy, "a"), proxy.connect());
    for statement in
        ["select 1", "select secretly('b')", "begin; select secretly('c'); commit", "discard all"]
    {
        a.batch(statement);
        assert_eq!(nobody.query("select current_setting('app.tenant_id')").value(), "", "{statement}");
        assert_eq!(look(&mut nobody, 0), "none0", "{statement}");
        nobody.batch(statement);
        assert_eq!(look(&mut nobody, 0), "none0", "nobody after {statement}");
        a.batch("set bursar.tenant = 'a'");
        assert_eq!(look(&mut a, 0), "a3", "{statement}");
    }
    proxy.stop();
}

#[test]
fn the_same_tenant_again_costs_nothing_where_it_is_trusted() {
    let (_db, proxy) = start(fenced(1, "trusted"));
    let (mut one, mut two, mut other) = (of(&proxy, "a"), of(&proxy, "a"), of(&proxy, "b"));
    // What a function has changed is only seen if nothing is sent again.
    one.batch("select secretly('c')");
    assert_eq!(
        (look(&mut two, 0), look(&mut other, 0), look(&mut two, 0)),
        ("c3".into(), "b3".into(), "a3".into())
    );
    proxy.stop();
}

#[test]
fn a_tenant_named_between_two_statements_of_one_write_is_that_of_the_second() {
    for mode in ["transaction", "session", "statement"] {
        let (_db, proxy) = start(fenced(2, "strict").with("pool", &format!("mode = \"{mode}\"")));
        let mut wire = of(&proxy, "a");
        let write = [
            msg::query(LOOK),
            msg::query("set bursar.tenant = 'b'"),
            msg::query(LOOK),
            msg::unnamed("set bursar.tenant = 'c'"),
            msg::sync(),
            msg::unnamed(LOOK),
            msg::sync(),
            msg::query(&format!("{LOOK} /*tenant='a'*/")),
        ]
        .concat();
        for _ in 0..10 {
            wire.send(&write);
            let replies: Vec<Reply> = (0..6).map(|_| wire.recv_reply()).collect();
            let values = [0, 2, 4].map(|at| replies[at].value());
            assert_eq!((values[1].as_str(), values[2].as_str()), ("b3", "c3"), "{mode}: {replies:?}");
            assert_eq!(replies[5].value(), "c3", "{mode}: SET goes before a comment");
        }
        // Where nothing is SET, a comment names the tenant, statement by statement.
        let mut wire = proxy.connect();
        let write: Vec<u8> = ["a", "b", "c"]
            .iter()
            .flat_map(|tenant| msg::query(&format!("{LOOK} /*tenant='{tenant}'*/")))
            .collect();
        for round in 0..10 {
            wire.send(&write);
            for tenant in ["a3", "b3", "c3"] {
                assert_eq!(wire.recv_reply().value(), tenant, "{mode}, round {round}");
            }
        }
        proxy.stop();
    }
}

#[test]
fn a_transaction_has_one_tenant() {
    for (mode, lazy) in [("transaction", true), ("transaction", false), ("session", false)] {
        let config = fenced(2, "strict").with("pool", &format!("mode = \"{mode}\""));
        let (_db, proxy) = start(if lazy { config.lazy() } else { config });
        let mut wire = of(&proxy, "a");
        wire.batch("begin");
        assert_eq!(look(&mut wire, 0), "a3");
        assert_eq!(wire.query("set bursar.tenant = 'b'").trace(), "E(42501) Z(T)");
        assert_eq!(look(&mut wire, 0), "a3", "it goes on as it was");
        wire.batch("commit");
        assert_eq!(violations(&proxy, "V1"), 1.0);
        wire.batch("set bursar.tenant = 'b'");
        assert_eq!(look(&mut wire, 0), "b3");
        // In a comment it concerns a statement, which does not run.
        let mut wire = proxy.connect();
        if mode == "session" {
            continue;
        }
        wire.batch("begin /*tenant='c'*/");
        assert_eq!(wire.query(&format!("{LOOK} /*tenant='c'*/")).value(), "c3");
        assert_eq!(wire.query("insert into log values ('b') /*tenant='b'*/").trace(), "E(42501) Z(E)");
        wire.batch("rollback");
        assert_eq!(violations(&proxy, "V1"), 2.0);
        proxy.stop();
    }
}

/// As frameworks write them: every statement but BEGIN and COMMIT has the comment.
#[test]
fn a_comment_in_a_transaction_begun_without_one_holds_for_all_of_it() {
    for policy in ["strict", "trusted"] {
        let (_db, proxy) = start(fenced(1, policy).lazy());
        let mut wire = proxy.connect();
        let tagged = format!("{LOOK} /*tenant='a',request_id='r1'*/");
        for extended in [false, true] {
            wire.batch("begin");
            for _ in 0..2 {
                let look = if extended {
                    [msg::unnamed(&tagged), msg::sync()].concat()
                } else {
                    msg::query(&tagged)
                };
                wire.send(&look);
                assert_eq!(wire.recv_reply().value(), "a3");
            }
            assert_eq!(look(&mut wire, 0), "a3", "one that says nothing");
            wire.batch("commit");
            assert_eq!(look(&mut wire, 0), "none0", "and behind it nobody");
        }
        assert_eq!(violations(&proxy, "V1"), 0.0);
        let leases = "select leases_total from bursar.request('r1')";
        assert_eq!(proxy.console().query(leases).value(), "2");
        proxy.stop();
    }
}

#[test]
fn a_context_that_cannot_be_set_shows_nothing_and_closes() {
    let (db, proxy) = start(fenced(1, "strict"));
    let mut wire = of(&proxy, "a");
    assert_eq!(look(&mut wire, 0), "a3");
    until("its lease has ended", || leases(&proxy) == 0);
    let revoke = "revoke execute on function pg_catalog.set_config(text, text, boolean) from public";
    let mut superuser = Wire::login(db.cluster().addr(), &Login::new("postgres", db.name()));
    superuser.batch(revoke);
    wire.send(&msg::query(&format!("insert into log values ('told'); {LOOK}")));
    let reply = wire.recv_to_end();
    assert_eq!(reply.trace(), "E(FATAL 42501) EOF", "no word of what it did");
    until("the backend is closed", || db.backends("usename = 'app'") == 0);
    assert_eq!(metric(&proxy, "bursar_tenant_context_mismatch_total"), 1.0);
    superuser.batch(&revoke.replace("revoke", "grant").replace("from public", "to public"));
    assert_eq!(look(&mut of(&proxy, "b"), 0), "b3");
    proxy.stop();
}

#[test]
fn clients_may_not_set_the_context_themselves() {
    let config = fenced(5, "strict").with("tenant_context", "request_key = \"app.request_id\"");
    let (db, proxy) = start(config);
    for statement in [
        "set app.tenant_id = 'b'",
        "SET LOCAL \"app\".\"TENANT_id\" TO b",
        "/* x */ reset app . tenant_id",
        "begin; set local app.tenant_id = 'b'; select 1",
        "select set_config('app.request_id', 'x', true)",
        "select pg_catalog.set_config(U&'app.tenant\\005fid', 'b', true)",
        "do $$ begin perform set_config('app.tenant_id', 'b', false); end $$",
    ] {
        let mut wire = of(&proxy, "a");
        assert_eq!(wire.query(statement).trace(), "E(42501) Z(I)", "{statement}");
        assert_eq!(look(&mut wire, 0), "a3", "{statement}");
        let mut wire = of(&proxy, "a");
        let write = [msg::parse("", statement), msg::bind("", ""), msg::execute("", 0), msg::sync()].concat();
        assert_eq!(wire.ask(&write).trace(), "E(42501) Z(I)", "{statement}");
    }
    // By a parameter.
    let mut wire = of(&proxy, "a");
    let set = |name| {
        [msg::bind_with("", "s", &[Some(name), Some("b"), Some("t")]), msg::execute("", 0), msg::sync()]
            .concat()
    };
    wire.ask(&[msg::parse("s", "select set_config($1, $2, $3)"), msg::sync()].concat());
    assert_eq!(wire.ask(&set("app.other")).trace(), "2 D C(SELECT 1) Z(I)");
    assert_eq!(wire.ask(&set("App.Tenant_id")).trace(), "E(42501) Z(I)");
    // In a transaction it fails the transaction, and who does it again is shown the door.
    let mut wire = of(&proxy, "a");
    wire.batch("begin");
    assert_eq!(wire.query("set app.tenant_id = 'b'").trace(), "E(42501) Z(E)");
    wire.batch("rollback");
    wire.send(&msg::query("set app.tenant_id = 'b'"));
    assert_eq!(wire.recv_to_end().trace(), "E(42501) Z(I) E(FATAL 57P01) EOF");
    for login in [
        proxy.as_app().with("app.tenant_id", "b"),
        proxy.as_app().with("options", "-c APP.Request_Id=b"),
        proxy.as_app().with("options", "--app.tenant-id=b"),
    ] {
        let Err(Refused::Said(reply)) = Wire::try_login(proxy.addr(), &login) else { panic!("let in") };
        assert_eq!(reply.messages.last().and_then(|last| last.field(b'C')).as_deref(), Some("42501"));
    }
    assert_eq!(violations(&proxy, "V1"), 17.0);
    // Elsewhere they are settings like any other.
    drop(db);
    proxy.stop();
}

#[test]
fn a_request_has_its_setting_too() {
    let (_db, proxy) = start(fenced(1, "strict").with("tenant_context", "request_key = \"app.request_id\""));
    let mut wire = of(&proxy, "a");
    let ask = "select current_setting('app.tenant_id') || '/' || current_setting('app.request_id')";
    for (request, expected) in [("r-1", "a/r-1"), ("r-2", "a/r-2"), ("", "a/"), ("not a plain one", "a/")] {
        wire.batch(&format!("set bursar.request_id = '{request}'"));
        assert_eq!(wire.query(ask).value(), expected);
    }
    proxy.stop();
}

#[test]
fn who_has_no_tenant_or_another_ones_role_does_not_get_in() {
    let config = fenced(2, "strict")
        .with("pool", "require_tenant_context = true")
        .with("tenant.b", "users = [\"somebody\"]");
    let (_db, proxy) = start(config);
    let mut wire = proxy.connect();
    assert_eq!(wire.query(LOOK).trace(), "E(42501) Z(I)");
    assert_eq!(violations(&proxy, "V2"), 1.0);
    wire.batch("set bursar.tenant = 'a'");
    assert_eq!(look(&mut wire, 0), "a3");
    let mut wire = of(&proxy, "b");
    assert_eq!(wire.ask(&[msg::unnamed(LOOK), msg::sync()].concat()).trace(), "E(42501) Z(I)");
    assert_eq!(violations(&proxy, "V5"), 1.0);
    let mut wire = of(&proxy, "not a plain name");
    assert_eq!(wire.query(LOOK).trace(), "E(22023) Z(I)");
    wire.batch("set bursar.tenant = 'c'");
    assert_eq!(look(&mut wire, 0), "c3");
    until("no lease is held", || leases(&proxy) == 0);
    proxy.stop();
}

#[test]
fn cancels_and_kills_at_any_moment_show_no_foreign_row() {
    for policy in ["strict", "trusted"] {
        let (db, proxy) = start(fenced(2, policy));
        let mut wires = [("a", of(&proxy, "a")), ("b", of(&proxy, "b"))];
        let (mut looks, mut closed) = (0, 0);
        for round in 0..60 {
            for (tenant, wire) in &mut wires {
                wire.send(&msg::query(LOOK));
                match round % 3 {
                    0 => wire.cancel(),
                    1 => drop(db.ask(
                        "select count(pg_cancel_backend(pid)) from pg_stat_activity where datname = $DB",
                    )),
                    _ => drop(db.ask(
                        "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $DB",
                    )),
                }
                let reply = wire.recv_reply();
                if reply.error().is_none() {
                    assert_eq!(reply.value(), seen(tenant), "{policy}, round {round}");
                    looks += 1;
                }
                if reply.closed {
                    closed += 1;
                    *wire = of(&proxy, tenant);
                }
            }
        }
        assert!(looks > 0 && closed > 0, "{looks} looks, {closed} closed");
        proxy.stop();
    }
}

#[test]
fn a_request_is_one_users_and_one_roles() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2).with("isolation", "mode = \"enforce\""));
    let user = |role: &str, id: &str, request: &str| {
        let mut wire = Wire::login(proxy.addr(), &Login::new(role, db.name()));
        wire.batch(&format!("set bursar.user_id = '{id}'; set bursar.request_id = '{request}'"));
        wire
    };
    let mut ann = user("app", "ann", "r1");
    ann.batch("select 1");
    ann.batch("select 1");
    user("app", "ann", "r1").batch("select 1");
    user("app", "", "r1").batch("select 1");
    assert_eq!(user("app", "bob", "r1").query("select 1").trace(), "E(42501) Z(I)");
    assert_eq!(violations(&proxy, "V3"), 1.0);
    assert_eq!(user("postgres", "ann", "r1").query("select 1").trace(), "E(42501) Z(I)");
    assert_eq!(violations(&proxy, "V3"), 2.0);
    user("app", "bob", "r2").batch("select 1");
    // A request that is over is nobody's.
    ann.batch("reset bursar.request_id");
    user("app", "bob", "r1").batch("select 1");
    assert_eq!(violations(&proxy, "V3"), 2.0);
    proxy.stop();
}

#[test]
fn in_mode_warn_who_uses_another_users_request_is_told_once() {
    let db = Db::new();
    for (mode, expected) in [("warn", "N(01000) T D C(SELECT 1) Z(I)"), ("observe", "T D C(SELECT 1) Z(I)")] {
        let proxy = Proxy::start(&db, Config::of_size(2).with("isolation", &format!("mode = \"{mode}\"")));
        let user = |id: &str| {
            let mut wire = proxy.connect();
            wire.batch(&format!("set bursar.user_id = '{id}'; set bursar.request_id = 'r1'"));
            wire
        };
        assert_eq!(user("ann").query("select 1").trace(), "T D C(SELECT 1) Z(I)");
        let mut bob = user("bob");
        assert_eq!(bob.query("select 1").trace(), expected);
        assert_eq!(bob.query("select 1").trace(), "T D C(SELECT 1) Z(I)", "once a request");
        assert_eq!(violations(&proxy, "V3"), 2.0);
        proxy.stop();
    }
}

#[test]
fn a_transaction_is_one_users_and_one_requests() {
    let db = Db::new();
    for mode in ["enforce", "warn", "observe"] {
        let proxy = Proxy::start(&db, Config::of_size(2).with("isolation", &format!("mode = \"{mode}\"")));
        for (key, kind) in [("user_id", "V6"), ("request_id", "V7")] {
            let mut wire = proxy.connect();
            let set = |value: &str| format!("set bursar.{key} = '{value}'");
            wire.batch("begin");
            for clean in ["one", "one", ""] {
                wire.batch(&set(clean));
                wire.batch("select 1");
            }
            wire.batch(&set("one"));
            assert_eq!(violations(&proxy, kind), 0.0);
            let expected = if mode == "enforce" { "E(42501) Z(T)" } else { "C(SET) Z(T)" };
            assert_eq!(wire.query(&set("two")).trace(), expected, "{mode}");
            wire.batch("select 1");
            wire.batch("commit");
            assert_eq!(violations(&proxy, kind), 1.0);
            wire.batch(&set("three"));
            wire.batch("select 1");
            assert_eq!(violations(&proxy, kind), 1.0);
        }
        let event = "event=\"isolation_violation\" kind=\"V6\"";
        assert_eq!(proxy.log().contains(event), mode != "observe", "{mode}");
        proxy.stop();
    }
}

#[test]
fn a_backend_with_something_left_on_it_is_found_and_closed() {
    let db = Db::new();
    db.run(SETUP);
    db.run(&[
        "create function locks() returns void language plpgsql as $$ begin perform pg_advisory_lock(1); end $$",
        "create function makes() returns void language plpgsql as $$ begin create temp table left_here (); end $$",
        "create function acts() returns void language plpgsql as $$ begin set role app; end $$",
        "create function listens() returns void language plpgsql as $$ begin listen news; end $$",
        "create function names() returns void language plpgsql as $$ begin \
         perform set_config('app.tenant_id', 'b', false); end $$",
    ]);
    let backend = |wire: &mut Wire| wire.query("select pg_backend_pid()").value();
    for policy in ["strict", "trusted"] {
        let proxy = Proxy::start(&db, fenced(1, policy).with("isolation", "verify = 1"));
        let mut wire = Wire::login(proxy.addr(), &Login::new("postgres", db.name()));
        wire.batch("set bursar.tenant = 'a'");
        let before = backend(&mut wire);
        for _ in 0..20 {
            wire.batch("begin; select 1; commit");
            wire.batch("set work_mem = '5MB'");
            wire.batch("reset all");
        }
        assert_eq!(
            (backend(&mut wire), violations(&proxy, "V4")),
            (before, 0.0),
            "{policy}: nothing was left"
        );
        for (found, call) in ["locks()", "makes()", "acts()", "listens()"].iter().enumerate() {
            let before = backend(&mut wire);
            wire.batch(&format!("select {call}"));
            until("it is found", || violations(&proxy, "V4") == (found + 1) as f64);
            assert_ne!(backend(&mut wire), before, "{policy}: {call}");
        }
        // What is taken back after each lease need not be found.
        let before = backend(&mut wire);
        wire.batch("select names()");
        let found = if policy == "trusted" { 5.0 } else { 4.0 };
        until("it is found", || violations(&proxy, "V4") == found);
        assert_eq!(backend(&mut wire) == before, policy == "strict");
        proxy.stop();
    }
}

#[test]
fn a_signed_tenant_cannot_be_forged() {
    let db = Db::new();
    db.run(SETUP);
    let mut superuser = Wire::login(db.cluster().addr(), &Login::new("postgres", db.name()));
    superuser.batch(include_str!("../../deploy/sql/signed-tenant.sql"));
    superuser.batch("select bursar.set_secret('hush')");
    superuser.batch(
        "drop policy own on docs; create policy own on docs using (tenant = (select bursar.tenant()))",
    );
    for policy in ["strict", "trusted"] {
        let proxy = Proxy::start(&db, fenced(1, policy).with("tenant_context", "secret = \"hush\""));
        let (mut a, mut b) = (of(&proxy, "a"), of(&proxy, "b"));
        for _ in 0..3 {
            assert_eq!((look(&mut a, 0), look(&mut b, 1)), ("a3".to_owned(), "b3".to_owned()), "{policy}");
        }
        // What b has here is b's, whoever has it next; nothing else that a can say is anybody's.
        let value = "select current_setting('app.tenant_id')";
        let own = a.query(value).value();
        let forged =
            [own.replacen('a', "b", 1), "b".to_owned(), format!("{own}0"), "b||".to_owned(), "||".to_owned()];
        for forged in forged {
            a.batch("begin");
            a.batch(&format!("select secretly('{forged}')"));
            assert_eq!(look(&mut a, 0), "none0", "{policy}: {forged}");
            a.batch("rollback");
            assert_eq!(look(&mut a, 0), "a3");
        }
        a.batch("begin; reset all");
        assert_eq!(look(&mut a, 0), "a3");
        a.batch("commit");
        assert_eq!(a.query("select count(*) from bursar.secret").code(), "42501");
        assert_eq!(a.query("select bursar.set_secret('x')").code(), "42501");
        proxy.stop();
    }
    let proxy = Proxy::start(&db, fenced(1, "strict").with("tenant_context", "secret = \"another\""));
    assert_eq!(look(&mut of(&proxy, "a"), 0), "none0", "another secret");
    proxy.stop();
}
