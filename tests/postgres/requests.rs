//! Budgets of requests and tenants: counted exactly, refused in the words of budgets.md §2.5, and
//! never at the cost of the session that asked.

use crate::support::{Config, Db, Login, Msg, Proxy, Refused, Wire, eventually, msg, until, watch};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

const REUSE: &str = "Reuse one session for the request or batch the statement. Not retryable.";
const TOO_MANY: &str = "bursar: request opened too many sessions";

fn start(config: Config) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(&["create table done (request text, depth int)"]);
    let proxy = Proxy::start(&db, config);
    (db, proxy)
}

/// A pool of this size whose tenants may fill it.
fn of_size(size: usize) -> Config {
    // How long an outer session waits for its inner ones is not what these tests are about, nor how old it gets.
    Config::of_size(size)
        .with("tenant.\"*\"", "max = \"100%\"")
        .with("budget.transaction", "max_idle = { warn = \"off\", abort = \"off\", abort_alone = \"off\" }")
        .with("budget.transaction", "max_age = { warn = \"off\", mode = \"observe\" }")
}

/// Values of the console's only row.
fn row(proxy: &Proxy, sql: &str) -> Vec<String> {
    watch::row(&mut proxy.console(), sql)
}

fn ledger(proxy: &Proxy, request: &str) -> Vec<String> {
    row(proxy, &format!("SELECT leases_total, peak_leases FROM bursar.request('{request}')"))
}

fn budget(proxy: &Proxy, dimension: &str, outcome: &str) -> u64 {
    let sql = format!("select {outcome} from bursar.budgets where dimension = '{dimension}' limit 1");
    row(proxy, &sql)[0].parse().expect("a count")
}

/// Severity, SQLSTATE, message, detail and hint.
fn said(error: &Msg) -> [String; 5] {
    [b'V', b'C', b'M', b'D', b'H'].map(|field| error.field(field).unwrap_or_default())
}

fn refused(reply: &crate::support::Reply) -> [String; 5] {
    said(reply.error().unwrap_or_else(|| panic!("a refusal was expected: {reply:?}")))
}

fn waiting(proxy: &Proxy, count: usize) {
    until("they wait", || row(proxy, "select count(*) from bursar.queue") == [count.to_string()]);
}

/// A session that holds a backend until it is told otherwise.
fn holder(proxy: &Proxy, tenant: &str, request: &str) -> Wire {
    let mut wire = proxy.connect_for(tenant, request);
    wire.batch("begin");
    wire
}

/// One session of a call, and those that are opened while it is in its transaction.
struct Node(Vec<Node>);

fn leaves(count: usize) -> Vec<Node> {
    (0..count).map(|_| Node(Vec::new())).collect()
}

/// `provision_user` of the first problem: 5 sessions one after another, one with 6 inside, and two
/// agents of 7, nested three deep. 26 in all.
fn provision_user() -> Vec<Node> {
    let mut calls = leaves(5);
    calls.push(Node(leaves(6)));
    for _ in 0..2 {
        let mut agent = leaves(1);
        agent.push(Node(leaves(4)));
        calls.push(Node(agent));
    }
    calls
}

/// Opens the sessions of a call as an ORM without a pool does; returns how many were refused.
fn call(proxy: &Proxy, request: &str, depth: usize, nodes: &[Node]) -> usize {
    let mut refusals = 0;
    for Node(inner) in nodes {
        let mut wire = proxy.connect_for("acme", request);
        let begun = wire.query("begin");
        if begun.trace() == "E(54000) Z(I)" {
            refusals += 1;
            continue;
        }
        assert_eq!(begun.trace(), "C(BEGIN) Z(T)");
        wire.batch(&format!("insert into done values ('{request}', {depth})"));
        refusals += call(proxy, request, depth + 1, inner);
        assert_eq!(wire.query("commit").trace(), "C(COMMIT) Z(I)");
        wire.bye();
    }
    refusals
}

/// Ten of these calls at once; request → refusals.
fn ten_callers(proxy: &Proxy, nodes: &[Node]) -> BTreeMap<String, usize> {
    thread::scope(|scope| {
        let one = |n: usize| {
            let request = format!("call-{n}");
            (request.clone(), scope.spawn(move || call(proxy, &request, 1, nodes)))
        };
        let calls: Vec<_> = (0..10).map(one).collect();
        calls.into_iter().map(|(request, call)| (request, call.join().expect("the call"))).collect()
    })
}

#[test]
fn ten_calls_of_26_sessions_are_counted_exactly() {
    let (db, proxy) = start(
        of_size(30)
            .with("budget.request", "max_concurrent = { limit = 3, mode = \"observe\" }")
            .with("budget.request", "max_leases = { warn = 10, mode = \"observe\" }"),
    );
    let began = Instant::now();
    for (request, refusals) in ten_callers(&proxy, &provision_user()) {
        assert_eq!(refusals, 0);
        assert_eq!(ledger(&proxy, &request), ["26", "3"], "{request}");
        let few = format!("SELECT leases_total < 10 FROM bursar.request('{request}')");
        assert_eq!(row(&proxy, &few), ["f"]);
        assert_eq!(db.value(&format!("select count(*) from done where request = '{request}'")), "26");
    }
    println!("ten calls of 26 sessions took {:?}", began.elapsed());
    assert_eq!(db.value("select max(depth) from done"), "3");
    assert_eq!(budget(&proxy, "B2", "would"), 10 * 17, "sessions 10 to 26 of each");
    assert_eq!(budget(&proxy, "B1", "would"), 0);
    assert_eq!(row(&proxy, "select count(*) from bursar.leases"), ["0"]);
    assert!(db.pids().len() <= 30, "{} backends", db.pids().len());
    proxy.stop();
}

#[test]
fn three_at_once_enforced_lets_the_same_calls_through() {
    let (_db, proxy) = start(
        of_size(30)
            .with("budget.request", "max_concurrent = { limit = 3, mode = \"enforce\" }")
            .with("budget.request", "max_leases = { warn = \"off\", mode = \"enforce\" }"),
    );
    for (request, refusals) in ten_callers(&proxy, &provision_user()) {
        assert_eq!((refusals, ledger(&proxy, &request)), (0, vec!["26".into(), "3".into()]));
    }
    assert_eq!(budget(&proxy, "B1", "reject"), 0);
    proxy.stop();
}

#[test]
fn nine_sessions_enforced_refuse_the_tenth() {
    let (_db, proxy) = start(
        of_size(30).with("budget.request", "max_leases = { warn = \"off\", reject = 9, mode = \"enforce\" }"),
    );
    for (request, refusals) in ten_callers(&proxy, &leaves(26)) {
        assert_eq!((refusals, ledger(&proxy, &request)), (17, vec!["9".into(), "1".into()]));
        let few = format!("SELECT leases_total < 10, rejections FROM bursar.request('{request}')");
        assert_eq!(row(&proxy, &few), ["t", "17"]);
    }
    assert_eq!(budget(&proxy, "B2", "reject"), 170);

    let mut wire = proxy.connect_for("acme", "call-0");
    let detail = "request call-0 opened session 10, budget max_leases=9.";
    assert_eq!(refused(&wire.query("select 1")), ["ERROR", "54000", TOO_MANY, detail, REUSE]);
    let pipeline = [msg::parse("", "select 1"), msg::bind("", ""), msg::execute("", 0), msg::sync()].concat();
    assert_eq!(wire.ask(&pipeline).trace(), "E(54000) Z(I)");
    // The session lives, and works for another request.
    wire.batch("set bursar.request_id = 'another'");
    assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
    assert_eq!(ledger(&proxy, "another"), ["1", "1"]);
    proxy.stop();
}

#[test]
fn a_test_can_set_its_own_limit() {
    let (_db, proxy) = start(of_size(2));
    let mut wire = proxy.connect_for("acme", "ci");
    wire.batch("set bursar.max_leases = 9");
    for _ in 0..9 {
        assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
    }
    let detail = "request ci opened session 10, budget bursar.max_leases=9.";
    assert_eq!(refused(&wire.query("select 1")), ["ERROR", "54000", TOO_MANY, detail, REUSE]);
    assert_eq!(ledger(&proxy, "ci"), ["9", "1"]);
    wire.batch("reset bursar.request_id");
    assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(I)", "no request, no budget");
    proxy.stop();
}

#[test]
fn warnings_come_once_a_request() {
    let (_db, proxy) = start(
        of_size(3)
            .with("budget.request", "max_concurrent = { limit = 1, mode = \"warn\" }")
            .with("budget.request", "max_leases = { warn = 3, mode = \"warn\" }"),
    );
    let mut outer = holder(&proxy, "acme", "r1");
    let mut inner = proxy.connect_for("acme", "r1");
    let first = inner.query("select 1");
    assert_eq!(first.trace(), "N(01000) T D C(SELECT 1) Z(I)");
    let unnest = "Finish a session before opening another one inside it. Not retryable.";
    let message = "bursar: request nests more sessions than its budget";
    let detail = "request holds 2 sessions (max_concurrent=1).";
    assert_eq!(said(first.notices()[0]), ["WARNING", "01000", message, detail, unnest]);
    let second = inner.query("select 1");
    assert_eq!(second.trace(), "N(01000) T D C(SELECT 1) Z(I)");
    let detail = "request opened session 3, budget max_leases=3.";
    assert_eq!(said(second.notices()[0]), ["WARNING", "01000", TOO_MANY, detail, REUSE]);
    assert_eq!(inner.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
    outer.batch("commit");
    proxy.stop();
}

#[test]
fn nesting_deeper_than_its_budget_is_refused_and_waiting_for_progress_is_not() {
    let (_db, proxy) =
        start(of_size(10).with("budget.request", "max_concurrent = { limit = 3, mode = \"enforce\" }"));
    let mut held: Vec<Wire> = (0..3).map(|_| holder(&proxy, "acme", "deep")).collect();
    let mut fourth = proxy.connect_for("acme", "deep");
    let asked = Instant::now();
    let reply = fourth.query("select 1");
    println!("nested too deep: refused after {:?}", asked.elapsed());
    assert_eq!(reply.trace(), "E(54000) Z(I)");
    assert_eq!(
        refused(&reply),
        [
            "ERROR",
            "54000",
            "bursar: request nests more sessions than its budget",
            "request deep holds 3 sessions, all idle in transaction, and asked for a 4th (max_concurrent=3).",
            "Finish a session before opening another one inside it. Not retryable.",
        ]
    );
    assert!(asked.elapsed() < Duration::from_secs(1), "no waiting for what cannot come");
    // While one of the three works, the fourth waits for it, and has its turn.
    held[0].send(&msg::query("select pg_sleep(0.3)"));
    until("it works", || row(&proxy, "select count(*) from bursar.leases where state = 'active'") == ["1"]);
    fourth.send(&msg::query("select 4"));
    until("it waits", || {
        proxy.console().query("select reason from bursar.queue").rows() == [[Some("request_cap".into())]]
    });
    assert_eq!(held[0].recv_reply().trace(), "T D C(SELECT 1) Z(T)");
    held[0].batch("commit");
    assert_eq!(fourth.recv_reply().value(), "4");
    assert_eq!(ledger(&proxy, "deep"), ["4", "3"]);
    proxy.stop();
}

#[test]
fn a_wait_ends_with_numbers() {
    let (_db, proxy) =
        start(Config::one_backend().with("pool", "max_wait = \"1s\"").with("tenant.\"*\"", "max = \"100%\""));
    let mut holder = proxy.connect_for("acme", "r0");
    holder.batch("set bursar.route = '/api/orders'");
    holder.batch("begin");
    let mut wire = proxy.connect_for("acme", "r1");
    let asked = Instant::now();
    let reply = wire.query("select 1");
    assert!(asked.elapsed() >= Duration::from_millis(200), "refused after {:?}", asked.elapsed());
    assert_eq!(reply.trace(), "E(53300) Z(I)");
    let [severity, code, message, detail, hint] = refused(&reply);
    assert_eq!([severity, code, message], ["ERROR", "53300", "bursar: no backend became available in time"]);
    let (waited, numbers) = detail.split_once(" ms; ").expect("waited …");
    let waited: u64 = waited.strip_prefix("waited ").and_then(|ms| ms.parse().ok()).expect("a number");
    assert!((1000..20_000).contains(&waited), "{detail}");
    let expected = "request r1 holds 0 of 3 leases; tenant acme uses 1 of 1 backends, 1 waiting; pool 1/1, ";
    assert!(numbers.starts_with(expected), "{detail}");
    let longest = "Retry after 50 ms. Longest holder: route \"/api/orders\", ";
    assert!(hint.starts_with(longest) && hint.ends_with(" s (SHOW LEASES)."), "{hint}");
    wire.batch("set bursar.deadline_ms = 50");
    let asked = Instant::now();
    assert_eq!(wire.query("select 1").trace(), "E(53300) Z(I)");
    assert!(asked.elapsed() < Duration::from_millis(200), "its own deadline: {:?}", asked.elapsed());
    holder.batch("commit");
    assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
    proxy.stop();
}

#[test]
fn a_tenants_queue_and_share_are_its_own() {
    let (_db, proxy) = start(
        Config::of_size(4)
            .with("tenant.\"*\"", "max = 2")
            .with("tenant.\"*\"", "queue = 1")
            .with("tenant.\"*\"", "mode = \"enforce\""),
    );
    let mut held = [holder(&proxy, "acme", "a1"), holder(&proxy, "acme", "a2")];
    let mut third = proxy.connect_for("acme", "a3");
    third.send(&msg::query("select 3"));
    waiting(&proxy, 1);
    let queued = "select tenant, request, reason from bursar.queue";
    assert_eq!(row(&proxy, queued), ["acme", "a3", "tenant_cap"]);
    let mut fourth = proxy.connect_for("acme", "a4");
    let [severity, code, message, detail, _] = refused(&fourth.query("select 4"));
    assert_eq!(
        [severity, code, message],
        ["ERROR", "53400", "bursar: too many clients of this tenant wait for a backend"]
    );
    // How many of the pool's are idle in transaction is as of the last look, and left out here.
    let numbers = "1 clients of this tenant wait (queue=1); request a4 holds 0 of 3 leases; tenant acme uses 2 \
                   of 2 backends, 1 waiting; pool 2/4, ";
    assert!(detail.starts_with(numbers), "{detail}");
    // Another tenant has the other half at once.
    let others = [holder(&proxy, "globex", "g1"), holder(&proxy, "globex", "g2")];
    for tenant in ["acme", "globex"] {
        let share = format!("select in_use, cap from bursar.tenants where tenant = '{tenant}'");
        assert_eq!(row(&proxy, &share), ["2", "2"]);
    }
    held[0].batch("commit");
    assert_eq!(third.recv_reply().value(), "3");
    assert_eq!(fourth.query("select 4").value(), "4", "its session went on");
    drop((held, others));
    proxy.stop();
}

fn fatal(login: Result<Wire, Refused>) -> [String; 5] {
    match login {
        Err(Refused::Said(reply)) if reply.closed => refused(&reply),
        other => panic!("a refusal was expected: {:?}", other.map(|_| ())),
    }
}

#[test]
fn too_many_sessions_of_a_tenant_are_refused_at_login() {
    let (_db, proxy) = start(
        Config::of_size(2)
            .with("tenant.\"*\"", "max_sessions = 2")
            .with("tenant.\"*\"", "mode = \"enforce\""),
    );
    let login = |tenant: &str| Wire::try_login(proxy.addr(), &proxy.as_app().with("bursar.tenant", tenant));
    let first = login("acme").expect("the first");
    let _second = login("acme").expect("the second");
    let message = "bursar: too many sessions of this tenant";
    let detail = "tenant acme has 2 sessions (max_sessions=2).";
    let hint = "Close idle connections, or make the application's pools smaller.";
    assert_eq!(fatal(login("acme")), ["FATAL", "53300", message, detail, hint]);
    let _other = login("globex").expect("another tenant");
    first.bye();
    eventually("its place is free", Duration::from_secs(5), || login("acme").ok());
    proxy.stop();
}

#[test]
fn too_many_clients_are_refused_at_login() {
    let (db, proxy) = start(Config::of_size(2).with("listen", "max_clients = 2"));
    let login = || Wire::try_login(proxy.addr(), &Login::new("app", db.name()));
    let mut here: Vec<Wire> =
        (0..2).map(|_| eventually("a place", Duration::from_secs(5), || login().ok())).collect();
    let hint = "Close idle connections, or raise listen.max_clients.";
    let message = "bursar: too many clients already";
    assert_eq!(fatal(login()), ["FATAL", "53300", message, "max_clients=2.", hint]);
    // Who is in can still cancel.
    here[0].send(&msg::query("select pg_sleep(60)"));
    until("it runs", || db.running("pg_sleep") == 1);
    here[0].cancel();
    assert_eq!(here[0].recv_reply().code(), "57014");
    here.pop().expect("a session").bye();
    eventually("a place is free", Duration::from_secs(5), || login().ok());
    proxy.stop();
}
