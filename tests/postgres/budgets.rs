//! Session budgets under real load: counts that are exact, and refusals as budgets.md §2.5 words
//! them.

use crate::support::wire::Msg;
use crate::support::{Config, Db, Proxy, Reply, Wire, msg, until};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// SQLSTATE, MESSAGE, DETAIL and HINT.
fn words(error: &Msg) -> [String; 4] {
    [b'C', b'M', b'D', b'H'].map(|field| error.field(field).unwrap_or_default())
}

/// An ERROR of ours that leaves the session as it was.
fn refusal(reply: &Reply) -> [String; 4] {
    assert!(!reply.closed, "{reply:?}");
    let error = reply.error().unwrap_or_else(|| panic!("not refused: {reply:?}"));
    assert_eq!(error.field(b'V').as_deref(), Some("ERROR"));
    words(error)
}

/// One call of problem S0, "provision a tenant": 26 sessions, up to 3 at a time one inside the other.
/// A session is a transaction; the one at depth n runs on connection n.
struct Call {
    connections: Vec<Wire>,
    sessions: usize,
}

impl Call {
    fn new(proxy: &Proxy, request: &str) -> Call {
        Call { connections: (0..3).map(|_| proxy.connect_for("acme", request)).collect(), sessions: 0 }
    }

    fn open(&mut self, depth: usize) {
        self.sessions += 1;
        self.connections[depth].batch("begin");
        self.connections[depth].batch("insert into audit values (1)");
    }

    fn close(&mut self, depth: usize) {
        self.connections[depth].batch("commit");
    }

    fn leaf(&mut self, depth: usize) {
        self.open(depth);
        self.close(depth);
    }

    fn run(&mut self) -> usize {
        // Look-ups one after the other, the tenant, the admin user.
        for _ in 0..5 {
            self.leaf(0);
        }
        // Six resources, each in a session of its own inside an outer one.
        self.open(0);
        for _ in 0..6 {
            self.leaf(1);
        }
        self.close(0);
        // Two agents: an outer session, inside it one that opens three more.
        for _ in 0..2 {
            self.open(0);
            self.open(1);
            for _ in 0..3 {
                self.leaf(2);
            }
            self.close(1);
            self.leaf(1);
            self.close(0);
        }
        self.leaf(0);
        self.leaf(0);
        self.sessions
    }
}

#[test]
fn ten_callers_of_s0_are_counted_exactly() {
    const CALLERS: usize = 10;
    let db = Db::new();
    db.run(&["create table audit (n int)"]);
    let config = Config::of_size(30).with("budget.request.max_concurrent", "mode = \"observe\"");
    let proxy = Proxy::start(&db, config.with("tenant.\"*\"", "max = \"100%\""));
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let proxy = &proxy;
            scope.spawn(move || assert_eq!(Call::new(proxy, &format!("call-{caller}")).run(), 26));
        }
    });
    let mut console = proxy.console();
    for caller in 0..CALLERS {
        let sql = format!("SELECT leases_total, peak_leases FROM bursar.request('call-{caller}')");
        let rows = console.query(&sql).rows();
        assert_eq!(rows, [[Some("26".to_owned()), Some("3".to_owned())]], "call {caller}");
    }
    assert_eq!(db.value("select count(*) from audit"), (26 * CALLERS).to_string());
    assert!(db.pids().len() <= 30);
    // The check of the application's own test: one query.
    assert_eq!(console.query("select leases_total < 10 from bursar.request('call-0')").value(), "f");
    proxy.stop();
}

#[test]
fn the_tenth_session_of_a_request_is_refused() {
    let db = Db::new();
    let own = Proxy::start(&db, Config::of_size(2));
    let mut client = own.connect_for("acme", "r1");
    client.batch("set bursar.max_leases = 9");
    let theirs = Config::of_size(2)
        .with("budget.request.max_leases", "reject = 9")
        .with("budget.request.max_leases", "mode = \"enforce\"");
    let theirs = Proxy::start(&db, theirs);
    for (mut client, budget) in
        [(client, "bursar.max_leases"), (theirs.connect_for("acme", "r1"), "max_leases")]
    {
        for n in 1..=9 {
            assert_eq!(client.query("select 1").value(), "1", "session {n}");
        }
        for n in 10..=11 {
            let reply = client.query("select 1");
            assert_eq!(reply.trace(), "E(54000) Z(I)");
            let [_, message, detail, hint] = refusal(&reply);
            assert_eq!(message, "bursar: request opened too many sessions");
            let opened = format!("request r1 opened session {n}, budget {budget}=9");
            assert!(n > 10 || detail.starts_with(&opened), "{detail}");
            assert_eq!(hint, "Reuse one session for the request or batch the statement. Not retryable.");
        }
        // In a pipeline the rest is skipped, up to Sync.
        let one = [msg::parse("", "select 1"), msg::bind("", ""), msg::execute("", 0)].concat();
        assert_eq!(client.ask(&[one.clone(), one, msg::sync()].concat()).trace(), "E(54000) Z(I)");
        client.batch("set bursar.request_id = 'r2'");
        assert_eq!(client.query("select 1").value(), "1", "another request has a budget of its own");
        client.bye();
    }
    own.stop();
    theirs.stop();
}

fn concurrent(limit: u32) -> Config {
    Config::of_size(10)
        .with("budget.request.max_concurrent", &format!("limit = {limit}"))
        .with("budget.request.max_concurrent", "mode = \"enforce\"")
        .with("tenant.\"*\"", "max = \"100%\"")
}

#[test]
fn a_request_that_nests_deeper_than_its_budget_is_refused() {
    let db = Db::new();
    let proxy = Proxy::start(&db, concurrent(3));
    let mut holders: Vec<Wire> = (0..3).map(|_| proxy.connect_for("acme", "r1")).collect();
    for holder in &mut holders {
        holder.batch("begin");
    }
    let mut fourth = proxy.connect_for("acme", "r1");
    let asked = Instant::now();
    let reply = fourth.query("select 1");
    let [code, message, detail, hint] = refusal(&reply);
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("54000", "bursar: request nests more sessions than its budget")
    );
    assert_eq!(
        detail,
        "request r1 holds 3 sessions, all idle in transaction, and asked for a 4th (max_concurrent=3)."
    );
    assert!(!hint.is_empty());
    assert!(asked.elapsed() >= Duration::from_millis(50), "refused after {:?}", asked.elapsed());
    assert_eq!(proxy.connect_for("acme", "r2").query("select 2").value(), "2", "another request");
    holders.pop().expect("three").bye();
    assert_eq!(fourth.query("select 4").value(), "4", "one has ended");
    drop((holders, fourth));
    proxy.stop();
}

#[test]
fn a_request_over_its_budget_waits_while_one_of_its_sessions_works() {
    let db = Db::new();
    let proxy = Proxy::start(&db, concurrent(1));
    let mut working = proxy.connect_for("acme", "r1");
    working.send(&msg::query("select pg_sleep(0.4)"));
    until("the statement runs", || db.running("pg_sleep") == 1);
    let asked = Instant::now();
    let mut second = proxy.connect_for("acme", "r1");
    assert_eq!(second.query("select 1").value(), "1");
    assert!(asked.elapsed() >= Duration::from_millis(200), "it waited for {:?}", asked.elapsed());
    assert!(working.recv_reply().error().is_none());
    drop((working, second));
    proxy.stop();
}

/// With B1 enforced the same ten calls still come to an end, and none holds more than it may.
#[test]
fn enforced_the_callers_of_s0_never_hold_more_than_their_budget() {
    let db = Db::new();
    db.run(&["create table audit (n int)"]);
    // Ten calls of three: with fewer backends they could wait for each other, which nobody breaks yet.
    let proxy = Proxy::start(&db, concurrent(3).with("pool", "size = 30"));
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for caller in 0..10 {
            let (proxy, done) = (&proxy, &done);
            scope.spawn(move || {
                done.fetch_add(Call::new(proxy, &format!("call-{caller}")).run(), Ordering::Relaxed)
            });
        }
        let mut console = proxy.console();
        while done.load(Ordering::Relaxed) < 260 {
            for row in console.query("select leases_now from bursar.requests").rows() {
                let now: u32 = row[0].as_deref().unwrap_or("0").parse().expect("a count");
                assert!(now <= 3, "a request holds {now}");
            }
        }
    });
    proxy.stop();
}

#[test]
fn a_wait_ends_in_time_and_says_who_holds() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("pool", "max_wait = \"1s\""));
    let mut holder = proxy.connect_for("acme", "slow");
    holder.batch("set bursar.route = '/api/orders'");
    holder.batch("begin");
    let mut waiter = proxy.connect_for("acme", "r1");
    let asked = Instant::now();
    let reply = waiter.query("select 1");
    let took = asked.elapsed();
    assert_eq!(reply.trace(), "E(53300) Z(I)");
    let [_, message, detail, hint] = refusal(&reply);
    assert_eq!(message, "bursar: no backend became available in time");
    assert!(detail.starts_with("waited 1") && detail.contains("pool 1/1"), "{detail}");
    assert!(hint.starts_with("Retry after ") && hint.contains("/api/orders"), "{hint}");
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
    holder.batch("commit");
    assert_eq!(waiter.query("select 1").value(), "1");
    // The client's own deadline is tighter.
    holder.batch("begin");
    waiter.batch("set bursar.deadline_ms = 50");
    let asked = Instant::now();
    assert_eq!(waiter.query("select 1").code(), "53300");
    assert!(asked.elapsed() < Duration::from_millis(190), "{:?}", asked.elapsed());
    drop((holder, waiter));
    proxy.stop();
}

#[test]
fn a_tenant_has_a_share_and_a_queue() {
    let db = Db::new();
    let config = Config::of_size(2)
        .with("pool", "max_wait = \"10s\"")
        .with("tenant.\"*\"", "max = 1")
        .with("tenant.\"*\"", "queue = 1")
        .with("tenant.\"*\"", "mode = \"enforce\"");
    let proxy = Proxy::start(&db, config);
    let mut holder = proxy.connect_for("acme", "r1");
    holder.batch("begin");
    let mut waiter = proxy.connect_for("acme", "r2");
    waiter.send(&msg::query("select 1"));
    let mut console = proxy.console();
    until("it waits", || console.query("select count(*) from bursar.queue").value() == "1");
    let reply = proxy.connect_for("acme", "r3").query("select 1");
    assert_eq!(reply.trace(), "E(53400) Z(I)");
    let [_, message, _, hint] = refusal(&reply);
    assert_eq!(message, "bursar: too many clients of this tenant wait for a backend");
    assert!(hint.starts_with("Retry after "), "{hint}");
    // The other half of the pool is for others.
    assert_eq!(proxy.connect_for("quiet", "r4").query("select 4").value(), "4");
    assert!(waiter.try_recv(Duration::from_millis(1)).is_err(), "still waiting for its own tenant");
    holder.batch("commit");
    assert_eq!(waiter.recv_reply().value(), "1");
    drop((holder, waiter));
    proxy.stop();
}

#[test]
fn transactions_that_stay_too_long_are_ended() {
    let db = Db::new();
    for (table, line, code, message) in [
        (
            "max_idle",
            "abort_alone = \"200ms\"",
            "25P03",
            "bursar: transaction rolled back after being idle too long",
        ),
        ("max_age", "abort = \"200ms\"", "25P04", "bursar: transaction rolled back after running too long"),
    ] {
        let table = format!("budget.transaction.{table}");
        let config = Config::one_backend().with(&table, line).with(&table, "mode = \"enforce\"");
        let proxy = Proxy::start(&db, config.with(&table, "force = true"));
        let mut idler = proxy.connect_for("acme", "r1");
        idler.batch("begin");
        let begun = Instant::now();
        until("it is rolled back", || db.backends("state = 'idle in transaction'") == 0);
        let took = begun.elapsed();
        assert_eq!(proxy.connect().query("select 1").value(), "1", "the backend is free");
        let end = idler.query("commit");
        assert_eq!(end.trace(), format!("E({code}) Z(I)"));
        let [_, said, detail, hint] = words(&end.messages[0]);
        assert_eq!(said, message);
        assert!(!detail.is_empty() && hint.starts_with("Nothing was committed."), "{detail} {hint}");
        assert!(took >= Duration::from_millis(150) && took < Duration::from_secs(2), "after {took:?}");
        proxy.stop();
    }
}

#[test]
fn client_sessions_are_bounded() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("listen", "max_clients = 2"));
    let refused = |proxy: &Proxy| match Wire::try_login(proxy.addr(), &proxy.as_app()) {
        Err(crate::support::Refused::Said(reply)) => reply.trace().ends_with("E(FATAL 53300) EOF"),
        Err(crate::support::Refused::Io(_)) | Ok(_) => false,
    };
    // The look whether the port is open was a client, too.
    until("two come in", || {
        let pair: Vec<_> =
            (0..2).filter_map(|_| Wire::try_login(proxy.addr(), &proxy.as_app()).ok()).collect();
        pair.len() == 2 && refused(&proxy)
    });
    until("and again when they have left", || Wire::try_login(proxy.addr(), &proxy.as_app()).is_ok());
    proxy.stop();
}

#[test]
fn in_warn_mode_a_notice_at_login_tells_of_too_many_sessions() {
    let db = Db::new();
    let config =
        Config::one_backend().with("tenant.acme", "max_sessions = 1").with("tenant.acme", "mode = \"warn\"");
    let proxy = Proxy::start(&db, config);
    let login = || proxy.as_app().with("bursar.tenant", "acme");
    let first = Wire::login(proxy.addr(), &login());
    let mut second = Wire::open(proxy.addr()).expect("it listens");
    second.send(&login().packet());
    let greeting = second.recv_reply();
    let [notice] = greeting.notices()[..] else { panic!("one notice, not {greeting:?}") };
    let field = |code| notice.field(code).unwrap_or_default();
    assert_eq!([field(b'S'), field(b'C')], ["WARNING", "01000"]);
    assert_eq!(field(b'M'), "bursar: too many sessions of this tenant");
    assert_eq!(field(b'D'), "tenant has 2 sessions (max_sessions=1).");
    assert_eq!(second.query("select 1").value(), "1");
    drop((first, second));
    proxy.stop();
}

#[test]
fn in_warn_mode_a_notice_tells_once() {
    let db = Db::new();
    let config = Config::of_size(2)
        .with("budget.request.max_leases", "warn = 2")
        .with("budget.request.max_leases", "mode = \"warn\"");
    let proxy = Proxy::start(&db, config);
    let mut client = proxy.connect_for("acme", "r1");
    let notices: Vec<usize> = (0..5).map(|_| client.batch("select 1").notices().len()).collect();
    assert_eq!(notices.iter().sum::<usize>(), 1, "at most one a dimension and request: {notices:?}");
    client.bye();
    proxy.stop();
}

#[test]
fn a_client_may_tighten_how_much_it_nests() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(4));
    let mut holder = proxy.connect_for("acme", "r1");
    holder.batch("begin");
    let mut second = proxy.connect_for("acme", "r1");
    second.batch("set bursar.max_concurrent = 1");
    let [code, message, detail, _] = refusal(&second.query("select 1"));
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("54000", "bursar: request nests more sessions than its budget")
    );
    assert_eq!(
        detail,
        "request r1 holds 1 session, all idle in transaction, and asked for a 2nd (max_concurrent=1)."
    );
    second.batch("reset bursar.max_concurrent");
    assert_eq!(second.query("select 1").value(), "1");
    drop((holder, second));
    proxy.stop();
}
