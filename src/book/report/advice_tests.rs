//! What is said of which rows, and what is not worth a word.

use super::super::saturation::Instance;
use super::*;
use crate::book::Usage;
use crate::tag::Tag;
use std::time::Instant;

const S: Duration = Duration::from_secs(1);

fn site(route: &str, held: u64, active: u64) -> CallSiteView {
    CallSiteView {
        route: Some(route.into()),
        call_site: None,
        fingerprint: 0x77ab,
        leases: 40,
        held: Duration::from_secs(held),
        active: Duration::from_secs(active),
        gaps: Duration::ZERO,
        hold_p99: None,
        gap_p99: None,
        repeats: 1,
        leaks: 0,
    }
}

fn request(route: Option<&str>, peak: u32, repeats: u32) -> RequestView {
    RequestView {
        id: "r".into(),
        tag: Arc::new(Tag { route: route.map(Arc::from), ..Tag::default() }),
        since: Instant::now(),
        leases_now: 0,
        leases_peak: peak,
        leases_total: 26,
        waiting: 0,
        waited: Duration::ZERO,
        active: Duration::ZERO,
        held: Duration::ZERO,
        statements: 0,
        rejections: 0,
        end: Some(crate::book::End::Client),
        leases_left: None,
        mode: crate::config::Mode::Warn,
        repeats,
    }
}

fn pool(held: u64, active: u64, timeouts: u64) -> PoolView {
    PoolView {
        id: crate::book::PoolId(0),
        database: "app".into(),
        user: "web".into(),
        size: 17,
        leased: 0,
        idle: 0,
        dialling: 0,
        leaving: 0,
        waiting: 0,
        oldest_wait: Duration::ZERO,
        paused: false,
        logins: 0,
        leases_total: 1_000,
        usage: Usage { active: Duration::from_secs(active), ..Usage::default() },
        held: Duration::from_secs(held),
        waited: Duration::ZERO,
        timeouts,
        untagged: 0,
        deferred: 0,
        times: Vec::new(),
        leases_peak: 17,
    }
}

fn topics(seen: &Seen<'_>) -> Vec<(&'static str, String, f64)> {
    advise(seen).into_iter().map(|row| (row.topic, row.scope, row.value)).collect()
}

const NOTHING: Seen<'static> = Seen {
    pools: &[],
    requests: &[],
    callsites: &[],
    saturated: &[],
    parkable: &[],
    uptime: Duration::from_secs(100),
};

#[test]
fn good_work_is_not_spoken_of() {
    let pools = [pool(1_000, 700, 0), pool(5, 0, 0)];
    let callsites = [site("/a", 100, 60), site("/b", 9, 0)];
    let requests = [request(Some("/a"), 1, 4)];
    assert_eq!(topics(&Seen { pools: &pools, requests: &requests, callsites: &callsites, ..NOTHING }), []);
}

#[test]
fn the_worst_of_each_kind_are_named() {
    let pools = [pool(1_000, 12, 0)];
    let mut callsites = [site("/orders", 900, 9), site("/loop", 1, 1), site("/slow", 50, 40)];
    callsites[0].call_site = Some("orders.ts:88".into());
    callsites[1].repeats = 40;
    let requests =
        [request(Some("/provision"), 3, 6), request(Some("/provision"), 2, 5), request(None, 2, 1)];
    let seen = Seen { pools: &pools, requests: &requests, callsites: &callsites, ..NOTHING };
    let expected = [
        ("lease_efficiency", "app/web", 0.012),
        ("idle_transactions", "/orders at orders.ts:88, statement 00000000000077ab", 891.0),
        ("repeated_statements", "/loop, statement 00000000000077ab", 40.0),
        ("repeated_statements", "/provision", 6.0),
        ("nested_sessions", "/provision", 3.0),
        ("nested_sessions", "requests without a route", 2.0),
    ];
    assert_eq!(topics(&seen), expected.map(|(topic, scope, value)| (topic, scope.to_owned(), value)));
    let said = &advise(&seen)[0].finding;
    assert_eq!(said, "backends were held 1000 s and did nothing in 98.8 % of it");
}

#[test]
fn no_topic_takes_more_than_five_rows() {
    let callsites: Vec<_> = (0..20).map(|n| site(&format!("/{n}"), 100, 1)).collect();
    assert_eq!(advise(&Seen { callsites: &callsites, ..NOTHING }).len(), 5);
}

#[test]
fn an_application_that_starves_is_told_the_setting() {
    let instance = Instance { host: "10.0.0.7".into(), application: "".into(), user: "app".into() };
    let saturated = [Saturated { instance, sessions: 17, seen: Instant::now() }];
    let rows = advise(&Seen { saturated: &saturated, ..NOTHING });
    assert_eq!(rows[0].scope, "10.0.0.7 (no application_name) as app");
    assert!(rows[0].advice.contains("Prisma: connection_limit= in the same URL"), "{:?}", rows[0]);
}

#[test]
fn a_size_is_advised_where_work_waited() {
    // A load of 15.8 on 17 backends, as in problem S1.
    let busy = pool(1_580, 1_500, 3);
    let rows = advise(&Seen { pools: std::slice::from_ref(&busy), ..NOTHING });
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!(row.topic, "pool_size");
    assert!(row.value > 17.0 && row.finding.contains("a load of 15.8"), "{row:?}");
    assert_eq!(advise(&Seen { pools: &[pool(1_580, 1_500, 0)], ..NOTHING }), [], "nobody waited");
}

#[test]
fn parking_is_advised_where_silent_readers_keep_others_waiting() {
    let mut pools = [pool(1_580, 1_500, 0)];
    let parkable = [(pools[0].id, Duration::from_secs(420))];
    let said = |pools: &[PoolView], parkable: &[(PoolId, Duration)]| {
        let rows = advise(&Seen { pools, parkable, ..NOTHING });
        rows.into_iter().find(|row| row.topic == "parking").map(|row| (row.finding, row.advice, row.value))
    };
    assert_eq!(said(&pools, &parkable), None, "nobody waited");
    pools[0].waited = Duration::from_secs(61);
    assert_eq!(said(&pools, &[]), None);
    assert_eq!(said(&pools, &[(pools[0].id, Duration::from_secs(9))]), None, "too little");
    let (finding, advice, value) = said(&pools, &parkable).unwrap();
    assert_eq!(
        finding,
        "clients were silent for 420 s in transactions that had only read, while others waited 61 s for \
         backends: parking would free 4.2 of 17 on average"
    );
    assert!(advice.contains("[parking] mode = \"enforce\""), "{advice}");
    assert_eq!(value, 4.2);
}

/// The table of budgets.md §6.1, for holds of 20 ms.
#[test]
fn erlang_says_how_many() {
    let sizes = [5.0, 10.0, 20.0, 50.0].map(|load| erlang(load, 0.02));
    assert_eq!(sizes, [Some(10), Some(15), Some(26), Some(57)]);
    assert_eq!((erlang(0.0, 0.02), erlang(1.0, 0.0)), (None, None));
}

#[test]
fn a_second_is_long_enough_for_a_mean() {
    assert_eq!(part(S, 4 * S), 0.25);
    assert_eq!(part(S, Duration::ZERO), 1.0);
}
