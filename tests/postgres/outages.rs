//! A server that is killed, or away for longer than anybody waits, under load: who waits for a backend is
//! served, who was in the middle is told once, and the server that comes back is not stormed (budgets.md §6.3).

use crate::support::watch::leases;
use crate::support::{Cluster, Config, Db, Gate, Login, Proxy, Reply, Stop, Wire, until};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SIZE: usize = 4;
const CLIENTS: usize = 16;

/// When a server that was killed is started again.
const RESTART: Duration = Duration::from_millis(1500);

/// Longer than PostgreSQL then takes to recover on a machine that may stall for seconds. On one that does not, the
/// default of 3 s is enough.
const MAX_WAIT: Duration = Duration::from_secs(15);

/// How long the server is away; `BURSAR_TEST_OUTAGE` says otherwise, in seconds.
const AWAY: Duration = Duration::from_secs(10);

/// What a client was told.
#[derive(Debug, Default)]
struct Told {
    /// Rows whose insertion was acknowledged.
    acknowledged: BTreeSet<(usize, usize)>,
    /// FATAL 08007: they may be there.
    unknown: BTreeSet<(usize, usize)>,
    /// FATAL 08006: they are not.
    lost: usize,
    /// ERROR 53300, a wait that was in vain.
    refused: usize,
    /// The longest time to an acknowledgement.
    slowest: Duration,
}

/// Inserts one row after the other, each only once, until told to stop. Every other client does so in
/// transaction blocks.
fn write(proxy: &Proxy, number: usize, done: &AtomicUsize, over: &AtomicBool) -> Told {
    let mut told = Told::default();
    let mut client = proxy.connect();
    for row in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        let insert = format!("insert into kept values ({number}, {row})");
        let block = number.is_multiple_of(2);
        let reply = if block { in_block(&mut client, &insert) } else { client.query(&insert) };
        match reply.trace().as_str() {
            "C(INSERT 0 1) Z(I)" | "C(COMMIT) Z(I)" => {
                told.acknowledged.insert((number, row));
                told.slowest = told.slowest.max(begun.elapsed());
                done.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            "E(FATAL 08007) EOF" => drop(told.unknown.insert((number, row))),
            "E(FATAL 08006) EOF" => told.lost += 1,
            "E(53300) Z(I)" => {
                clean(&reply);
                told.refused += 1;
                continue;
            }
            other => panic!("client {number} was told {other}: {reply:?}"),
        }
        client = proxy.connect();
    }
    told
}

/// The reply to the COMMIT, or whatever came in its stead.
fn in_block(client: &mut Wire, insert: &str) -> Reply {
    for (sql, expected) in [("begin", "C(BEGIN) Z(T)"), (insert, "C(INSERT 0 1) Z(T)")] {
        let reply = client.query(sql);
        if reply.trace() != expected {
            return reply;
        }
    }
    client.query("commit")
}

/// One of docs/errors.md that says what to do.
fn clean(reply: &Reply) {
    let error = reply.error().expect("an error");
    let message = error.field(b'M').unwrap_or_default();
    let known = ["bursar: no backend became available in time", "bursar: the server cannot be reached"];
    assert!(known.contains(&message.as_str()), "{error:?}");
    assert!(error.field(b'H').is_some(), "{error:?}");
}

/// Runs clients beside `outage`, and counts what all were told. Every slot must be free afterwards, and the
/// table hold what was acknowledged and nothing but what may be.
fn under_load(db: &Db<'_>, proxy: &Proxy, outage: impl FnOnce(&AtomicUsize)) -> Told {
    let (done, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut all = Told::default();
    std::thread::scope(|scope| {
        let each = |number| {
            let (done, over) = (&done, &over);
            scope.spawn(move || write(proxy, number, done, over))
        };
        let clients: Vec<_> = (0..CLIENTS).map(each).collect();
        until("all are at work", || done.load(Ordering::Relaxed) > 10 * CLIENTS);
        outage(&done);
        let back = done.load(Ordering::Relaxed);
        until("all are at work again", || done.load(Ordering::Relaxed) > back + 10 * CLIENTS);
        over.store(true, Ordering::Relaxed);
        for client in clients {
            let told = client.join().expect("a client that was told what it may be told");
            all.acknowledged.extend(told.acknowledged);
            all.unknown.extend(told.unknown);
            all.lost += told.lost;
            all.refused += told.refused;
            all.slowest = all.slowest.max(told.slowest);
        }
    });
    println!(
        "{} acknowledged, the slowest after {:?}, {} lost, {} unknown, {} refused",
        all.acknowledged.len(),
        all.slowest,
        all.lost,
        all.unknown.len(),
        all.refused
    );
    assert_eq!(leases(proxy), 0, "no slot is leaked");
    let kept = db.direct().query("select client, n from kept").rows();
    let number =
        |value: &Option<String>| value.as_deref().and_then(|text| text.parse().ok()).expect("a number");
    let rows: BTreeSet<(usize, usize)> = kept.iter().map(|row| (number(&row[0]), number(&row[1]))).collect();
    assert_eq!(rows.len(), kept.len(), "none twice");
    let gone: Vec<_> = all.acknowledged.difference(&rows).collect();
    assert!(gone.is_empty(), "acknowledged and not there: {gone:?}");
    let more: BTreeSet<_> = rows.difference(&all.acknowledged).copied().collect();
    assert!(more.is_subset(&all.unknown), "there, and never said to be perhaps: {more:?}");
    all
}

#[test]
fn a_server_that_is_killed_and_comes_back_fails_nobody_who_waits() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    db.run(&["create table kept (client int, n int)"]);
    let max_wait = format!("max_wait = \"{}s\"", MAX_WAIT.as_secs());
    let proxy = Proxy::start(&db, Config::of_size(SIZE).with("pool", &max_wait));
    let told = under_load(&db, &proxy, |_| {
        let away = Instant::now();
        cluster.stop(Stop::Kill);
        std::thread::sleep(RESTART.saturating_sub(away.elapsed()));
        cluster.start();
        println!("the server was away for {:?}", away.elapsed());
    });
    assert_eq!(told.refused, 0, "everybody who waited was served");
    // Each backend that broke was one session's, which was told and nobody else.
    assert!((1..=SIZE).contains(&(told.lost + told.unknown.len())), "{} and {:?}", told.lost, told.unknown);
    proxy.stop();
}

#[test]
fn a_long_outage_is_survived_with_few_dials_and_clean_errors() {
    let away = std::env::var("BURSAR_TEST_OUTAGE").ok().map(|text| text.parse().expect("seconds"));
    let away = away.map_or(AWAY, Duration::from_secs);
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    db.run(&["create table kept (client int, n int)"]);
    let gate = Gate::before(cluster.addr());
    let config = Config::of_size(SIZE).with("pool", "max_wait = \"1s\"").with("breaker", "open_max = \"2s\"");
    let proxy = Proxy::start_at(&gate, &db, config);
    let told = under_load(&db, &proxy, |done| {
        let before = gate.came();
        cluster.stop(Stop::Kill);
        let begun = Instant::now();
        // Not logged in before: this one needs a backend.
        let stranger = Login::new("postgres", db.name());
        let mut turned_away = 0;
        while begun.elapsed() < away {
            let told = Wire::try_login(proxy.addr(), &stranger).err().expect("no way in");
            let told = format!("{told:?}");
            assert!(told.contains("FATAL 57P03"), "{told}");
            turned_away += 1;
            std::thread::sleep(Duration::from_millis(200));
        }
        let dials = gate.came() - before;
        let lasted = begun.elapsed();
        let stalled = done.load(Ordering::Relaxed);
        cluster.start();
        let back = Instant::now();
        until("somebody writes again", || done.load(Ordering::Relaxed) > stalled);
        println!(
            "{lasted:?} away: {dials} dials, {turned_away} logins refused; back after {:?}",
            back.elapsed()
        );
        // Five before it opens, two at once; then one an opening, of 0.8, 1.6 and ever again 1.6 s at least.
        // The two pools share them.
        let openings = (lasted.as_secs_f64() / 1.6).ceil() as usize + 1;
        assert!((5..=6 + openings).contains(&dials), "{dials} dials in {lasted:?}");
    });
    assert!(told.refused >= CLIENTS, "each was told at least once: {}", told.refused);
    assert!((1..=SIZE).contains(&(told.lost + told.unknown.len())), "{} and {:?}", told.lost, told.unknown);
    proxy.stop();
}
