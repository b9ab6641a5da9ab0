//! Budgets of a tenant, a route, a class, a role, a database; what a client may set itself; and budgets
//! that act only after they have warned.

use crate::support::{Config, Db, Proxy, Reply, Wire, until};

/// SQLSTATE, MESSAGE and DETAIL of every notice.
fn told(reply: &Reply) -> Vec<[String; 3]> {
    let words = |notice: &crate::support::wire::Msg| {
        [b'C', b'M', b'D'].map(|field| notice.field(field).unwrap_or_default())
    };
    reply.notices().into_iter().map(words).collect()
}

fn on_route(proxy: &Proxy, request: &str, route: &str) -> Wire {
    let mut client = proxy.connect_for("acme", request);
    client.batch(&format!("set bursar.route = '{route}'"));
    client
}

/// How many transactions a request may have before it is refused, up to five.
fn allowed(client: &mut Wire) -> usize {
    (0..5).take_while(|_| client.query("select 1").error().is_none()).count()
}

#[test]
fn a_route_is_enforced_while_others_are_observed() {
    let db = Db::new();
    let config = Config::of_size(2)
        .with("mode", "default = \"observe\"")
        .with("mode", "routes.\"/api/provision*\" = \"enforce\"")
        .with("budget.request", "max_leases = { warn = \"off\", reject = 2 }");
    let proxy = Proxy::start(&db, config);
    assert_eq!(allowed(&mut on_route(&proxy, "r1", "/api/provision/user")), 2);
    assert_eq!(allowed(&mut on_route(&proxy, "r2", "/api/orders")), 5);
    assert_eq!(allowed(&mut proxy.connect_for("acme", "r3")), 5);
    proxy.stop();
}

#[test]
fn the_most_specific_scope_wins() {
    let db = Db::new();
    let reject = |limit: u32| format!("max_leases = {{ warn = \"off\", reject = {limit} }}");
    let config = Config::of_size(2)
        .with("mode", "default = \"enforce\"")
        .with("budget.request", "max_leases = { warn = \"off\" }")
        .with("user.app.budget.request", &reject(4))
        .with("class.batch.budget.request", &reject(3))
        .with("route.\"/api/*\".budget.request", &reject(2))
        .with("tenant.acme.budget.request", &reject(1));
    let proxy = Proxy::start(&db, config);
    let mut client = proxy.connect_for("quiet", "r1");
    assert_eq!(allowed(&mut client), 4, "the role's");
    for (tag, value, expected) in [("class", "batch", 3), ("route", "/api/orders", 2), ("tenant", "acme", 1)]
    {
        client.batch(&format!("set bursar.request_id = '{tag}'"));
        client.batch(&format!("set bursar.{tag} = '{value}'"));
        assert_eq!(allowed(&mut client), expected, "{tag}");
    }
    client.bye();
    proxy.stop();
}

#[test]
fn a_tenant_may_wait_longer_and_run_shorter() {
    let db = Db::new();
    let config = Config::one_backend()
        .with("pool", "max_wait = \"500ms\"")
        .with("tenant.\"*\"", "max = \"100%\"")
        .with("tenant.patient.budget.request", "max_wait = \"60s\"")
        .with("tenant.brisk.budget.statement", "max_time = { abort = \"100ms\", mode = \"enforce\" }");
    let proxy = Proxy::start(&db, config);
    let mut brisk = proxy.connect_for("brisk", "r1");
    assert_eq!(brisk.query("select pg_sleep(60)").code(), "57014");
    brisk.batch("set bursar.tenant = 'slow'");
    brisk.batch("begin");
    let mut patient = proxy.connect_for("patient", "r2");
    patient.send(&crate::support::msg::query("select 1"));
    assert_eq!(proxy.connect_for("acme", "r3").query("select 1").code(), "53300");
    assert_eq!(brisk.query("select pg_sleep(0.3)").trace(), "T D C(SELECT 1) Z(T)", "another tenant's");
    brisk.batch("commit");
    assert_eq!(patient.recv_reply().value(), "1");
    drop((brisk, patient));
    proxy.stop();
}

#[test]
fn a_client_is_told_that_it_cannot_widen_its_budget() {
    let db = Db::new();
    let config = Config::of_size(2)
        .with("budget.request", "max_leases = { reject = 8 }")
        .with("budget.statement", "max_time = { abort = \"5s\" }");
    let proxy = Proxy::start(&db, config);
    let mut client = proxy.connect();
    let message = "bursar: a client may only tighten its own budget";
    for (set, detail) in [
        ("max_leases = 9", "bursar.max_leases=9 is wider than max_leases=8, which stays."),
        ("max_concurrent = 4", "bursar.max_concurrent=4 is wider than max_concurrent=3, which stays."),
        (
            "max_statement_ms = 5001",
            "bursar.max_statement_ms=5001 is wider than max_time.abort=5 s, which stays.",
        ),
    ] {
        let reply = client.query(&format!("set bursar.{set}"));
        assert_eq!(reply.trace(), "N(01000) C(SET) Z(I)");
        assert_eq!(told(&reply), [["01000".to_owned(), message.to_owned(), detail.to_owned()]]);
    }
    for narrower in ["max_leases = 8", "max_concurrent = 1", "max_statement_ms = 5000", "max_age_ms = 60000"]
    {
        assert_eq!(client.query(&format!("set bursar.{narrower}")).trace(), "C(SET) Z(I)");
    }
    client.bye();
    proxy.stop();
}

/// budgets.md §2.4: what ends work has to have warned for a day, or be forced.
#[test]
fn enforcing_begins_with_warning() {
    let db = Db::new();
    let strict =
        "max_idle = { warn = \"off\", abort_alone = \"100ms\", abort = \"100ms\", mode = \"enforce\" }";
    let config = Config::one_backend().with("budget.transaction", strict);
    let proxy = Proxy::start(&db, config.clone());
    let mut idle = proxy.connect_for("acme", "r1");
    idle.batch("begin");
    idle.batch("select 1");
    let notice = idle.recv().expect("a notice, and the session stays");
    let [code, message, detail] = [b'C', b'M', b'D'].map(|field| notice.field(field).unwrap_or_default());
    assert_eq!((code.as_str(), message.as_str()), ("01000", "bursar: budget exceeded, not enforced yet"));
    assert!(detail.ends_with("(budget.transaction.max_idle: 100 ms)."), "{detail}");
    assert_eq!(idle.query("commit").trace(), "C(COMMIT) Z(I)");
    let counts = "select would, enforced from bursar.budgets where dimension = 'B11'";
    assert_eq!(proxy.console().query(counts).rows(), [[Some("1".into()), Some("0".into())]]);
    assert!(proxy.log().contains("budget.transaction.max_idle.mode"), "said at the start");
    idle.bye();
    proxy.stop();

    // It has warned before.
    let proxy = Proxy::start(&db, config.with("mode", "warned_since = \"2026-01-01\""));
    let mut idle = proxy.connect_for("acme", "r1");
    idle.batch("begin");
    until("it is rolled back", || db.backends("state = 'idle in transaction'") == 0);
    assert_eq!(idle.query("select 1").code(), "25P03");
    assert_eq!(idle.query("rollback").trace(), "C(ROLLBACK) Z(I)");
    idle.bye();
    proxy.stop();
}

/// SHOW BUDGETS: limits by scope, how far they are used, and one event a violation.
#[test]
fn budgets_are_shown_with_their_scopes_and_logged_when_exceeded() {
    let db = Db::new();
    let config = Config::of_size(3)
        .with("log", "format = \"json\"")
        .with("budget.request", "max_leases = { warn = \"off\", reject = 2, mode = \"enforce\" }")
        .with("tenant.acme.budget.request", "max_leases = { reject = 3 }")
        .with("tenant.acme", "queue = 7");
    let proxy = Proxy::start(&db, config);
    let mut console = proxy.console();
    let mut rows = |sql: &str| crate::support::watch::rows(&mut console, sql);
    let limits =
        "select dimension, scope, \"limit\", mode, unit from bursar.budgets where scope <> 'default'";
    assert_eq!(
        rows(limits),
        [
            ["B2", "tenant acme", "warn off, act 3", "enforce", "leases"],
            ["B8", "tenant acme", "7", "warn", "waiters"],
        ]
    );
    let mut clients: Vec<Wire> = (0..2).map(|_| proxy.connect_for("quiet", "r1")).collect();
    for client in &mut clients {
        client.batch("begin");
    }
    assert_eq!(proxy.connect_for("quiet", "r1").query("select 1").code(), "54000");
    let used = "select current, peak_1h from bursar.budgets where dimension = 'B1' and scope = 'default'";
    assert_eq!(rows(used), [["2", "2"]]);
    clients.clear();
    crate::support::until("they have ended", || rows(used) == [["0", "2"]]);
    let event = "\"event\":\"budget_violation\",\"dimension\":\"B2\"";
    crate::support::until("it is logged", || proxy.log().contains(event));
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains(event)).expect("the event");
    for field in
        ["\"outcome\":\"reject\"", "\"tenant\":\"quiet\"", "\"request\":\"r1\"", "\"spent\":3", "\"limit\":2"]
    {
        assert!(line.contains(field), "{field}: {line}");
    }
    assert_eq!(log.matches(event).count(), 1);
    proxy.stop();
}
