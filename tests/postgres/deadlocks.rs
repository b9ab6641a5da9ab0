//! Sessions that wait for each other: for backends, and for rows. Real callers, which try again when
//! they are told 40P01, as frameworks do.

use crate::support::{Config, Db, Msg, Proxy, Reply, Wire, msg, until, watch};
use std::sync::Barrier;
use std::thread;

const POOL: &str = "bursar: connection pool deadlock";
const ROW: &str = "bursar: request waits for a lock of its own";

/// Four backends that one tenant may fill, and a wait that is longer than any test.
fn crowded(size: usize) -> Config {
    Config::of_size(size)
        .with("pool", "max_wait = \"60s\"")
        .with("tenant.\"*\"", "max = \"100%\"")
        .with("budget.request", "max_concurrent = { limit = 1, mode = \"observe\" }")
        .with("budget.transaction", "max_idle = { warn = \"off\", abort = \"off\", abort_alone = \"off\" }")
}

fn row(proxy: &Proxy, sql: &str) -> Vec<String> {
    watch::row(&mut proxy.console(), sql)
}

fn count(proxy: &Proxy, resolution: &str) -> u32 {
    let sql = format!("select count(*) from bursar.deadlocks where resolution = '{resolution}'");
    row(proxy, &sql)[0].parse().expect("a count")
}

fn waiting(proxy: &Proxy, count: usize) {
    until("they wait", || row(proxy, "select count(*) from bursar.queue") == [count.to_string()]);
}

/// SQLSTATE and MESSAGE.
fn said(error: &Msg) -> (String, String) {
    (error.field(b'C').unwrap_or_default(), error.field(b'M').unwrap_or_default())
}

fn failure(reply: &Reply) -> Option<(String, String)> {
    reply.error().map(said)
}

/// Opens sessions one inside the other and then ends them all, inside out. `Err` when told of a deadlock.
fn nest(proxy: &Proxy, request: &str, depth: usize, met: &dyn Fn()) -> Result<(), ()> {
    let mut wires: Vec<Wire> = Vec::new();
    for level in 0..depth {
        let mut wire = proxy.connect_for("acme", request);
        let begun = wire.query("begin; select 1");
        if let Some(error) = failure(&begun) {
            assert_eq!(error, ("40P01".to_owned(), POOL.to_owned()));
            return Err(());
        }
        wires.push(wire);
        if level == 0 {
            met();
        }
    }
    for mut wire in wires.into_iter().rev() {
        let ended = wire.query(&format!("insert into done values ('{request}'); commit"));
        assert_eq!(failure(&ended), None);
        wire.bye();
    }
    Ok(())
}

#[test]
fn four_calls_three_deep_on_four_backends_all_finish_after_a_few_victims() {
    let db = Db::new();
    db.run(&["create table done (request text)"]);
    let proxy = Proxy::start(&db, crowded(4));
    let outer = Barrier::new(4);
    let tries: Vec<u32> = thread::scope(|scope| {
        let one = |at: usize| {
            let (proxy, outer) = (&proxy, &outer);
            scope.spawn(move || {
                let request = format!("call-{at}");
                let met = || {
                    outer.wait();
                };
                if nest(proxy, &request, 3, &met).is_ok() {
                    return 1;
                }
                (2..20).find(|_| nest(proxy, &request, 3, &|| ()).is_ok()).expect("it never finishes")
            })
        };
        let calls: Vec<_> = (0..4).map(one).collect();
        calls.into_iter().map(|call| call.join().expect("a call")).collect()
    });
    // One makes room for the eldest's second session, one for its third; then all go on in turn, unless
    // a victim is back, on a slow machine, before the eldest has its third.
    let victims = count(&proxy, "victim");
    assert!((2..=4).contains(&victims), "{tries:?}");
    assert_eq!(tries.iter().sum::<u32>(), 4 + victims, "{tries:?}");
    assert_eq!(db.value("select count(*) from done"), "12");
    assert_eq!(row(&proxy, "select count(*) from bursar.leases"), ["0"]);
    assert_eq!(row(&proxy, "select count(*) from bursar.deadlocks where lasted_ms is null"), ["0"]);
    let kinds = row(&proxy, "select kind, holders, parties, waiters from bursar.deadlocks limit 1");
    assert_eq!(kinds, ["pool", "4", "4", "4"]);
    proxy.stop();
}

#[test]
fn a_row_that_the_requests_own_idle_session_has_is_not_waited_for() {
    let db = Db::new();
    db.run(&["create table r (id int primary key, n int)", "insert into r values (1, 0), (2, 0)"]);
    let proxy = Proxy::start(&db, crowded(2));
    let mut outer = proxy.connect_for("acme", "call");
    outer.batch("begin");
    outer.batch("update r set n = n + 1 where id = 1");
    let mut inner = proxy.connect_for("acme", "call");
    inner.batch("begin");
    let reply = inner.query("update r set n = n + 10 where id = 1");
    assert_eq!(reply.trace(), "E(40P01) Z(E)");
    let error = reply.error().expect("an error");
    assert_eq!(said(error), ("40P01".to_owned(), ROW.to_owned()));
    let detail = error.field(b'D').unwrap_or_default();
    assert!(detail.contains("waits for a lock of another session of this request"), "{detail}");
    // Asked over a connection that says whose it is.
    let asks = "select count(*) from pg_stat_activity \
                where datname = current_database() and application_name = 'bursar'";
    assert_eq!(db.value(asks), "1");
    // In the extended protocol, and with every backend of the pool taken: the same.
    assert_eq!(inner.query("rollback").trace(), "C(ROLLBACK) Z(I)");
    let reply = inner.ask(&[msg::unnamed("update r set n = n + 10 where id = 1"), msg::sync()].concat());
    assert_eq!(failure(&reply), Some(("40P01".to_owned(), ROW.to_owned())));
    assert_eq!(inner.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
    // The session that has the row was never touched.
    assert_eq!(outer.query("commit").trace(), "C(COMMIT) Z(I)");
    assert_eq!(db.value("select n from r where id = 1"), "1");
    assert_eq!(count(&proxy, "cancelled"), 2);
    let case = "select kind, victim_request, victim_tenant, lasted_ms is null from bursar.deadlocks limit 1";
    assert_eq!(row(&proxy, case), ["lock", "call", "acme", "f"]);
    proxy.stop();
}

#[test]
fn a_row_that_somebody_else_has_is_reported_and_waited_for() {
    let db = Db::new();
    db.run(&["create table r (id int primary key, n int)", "insert into r values (1, 0)"]);
    let proxy = Proxy::start(&db, crowded(3));
    let mut other = proxy.connect_for("acme", "other");
    other.batch("begin");
    other.batch("update r set n = 1");
    let mut outer = proxy.connect_for("acme", "call");
    outer.batch("begin");
    let mut inner = proxy.connect_for("acme", "call");
    inner.send(&msg::query("update r set n = 2"));
    until("it is reported", || count(&proxy, "reported") == 1);
    other.batch("commit");
    assert_eq!(inner.recv_reply().trace(), "C(UPDATE 1) Z(I)");
    outer.batch("commit");
    assert_eq!(db.value("select n from r"), "2");
    assert_eq!((count(&proxy, "cancelled"), count(&proxy, "reported")), (0, 1));
    proxy.stop();
}

#[test]
fn untagged_sessions_are_suspected_and_never_aborted() {
    let db = Db::new();
    let proxy = Proxy::start(&db, crowded(2));
    let mut holders: Vec<Wire> = (0..2).map(|_| proxy.connect()).collect();
    for holder in &mut holders {
        holder.batch("begin");
    }
    let mut waiters: Vec<Wire> = (0..2).map(|_| proxy.connect()).collect();
    for waiter in &mut waiters {
        waiter.send(&msg::query("select 1"));
    }
    waiting(&proxy, 2);
    until("they are suspected", || count(&proxy, "suspected") == 1);
    for holder in &mut holders {
        assert_eq!(holder.query("commit").trace(), "C(COMMIT) Z(I)");
    }
    for waiter in &mut waiters {
        assert_eq!(waiter.recv_reply().trace(), "T D C(SELECT 1) Z(I)");
    }
    until("it is over", || {
        row(&proxy, "select count(*) from bursar.deadlocks where lasted_ms is null") == ["0"]
    });
    assert_eq!((count(&proxy, "suspected"), count(&proxy, "victim")), (1, 0), "one case while it lasted");
    proxy.stop();
}
