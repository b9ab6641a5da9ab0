//! Rules of the book: cases: opened in time, closed once.

use super::*;

fn leaky() -> Setup {
    let mut setup = setup();
    setup.leak = Leak { hold: Some(2 * S), idle: Some(300 * MS), pinned: Some(2 * S), ..Leak::default() };
    setup
}

fn cases(desk: &mut Desk) -> Vec<(LeakClass, Outcome, &'static str)> {
    let cases = desk.take().into_iter().filter_map(|action| match action {
        Action::Leak(event) => Some((event.class, event.outcome, event.action)),
        _ => None,
    });
    cases.collect()
}

#[test]
fn an_idle_transaction_is_named_in_time_once_and_again_when_it_comes_back() {
    let mut desk = Desk::new(leaky(), 1);
    let lease = desk.lease("a");
    let mut due = desk.tick(working(desk.now, None)).expect("leased");
    // It goes idle right after a tick: the worst case.
    let idle = desk.now + Duration::from_micros(1);
    let mut named = None;
    while named.is_none() {
        desk.now = due;
        due = desk.tick(idle_in_tx(idle)).expect("leased");
        named = cases(&mut desk).pop();
    }
    assert_eq!(named, Some((LeakClass::IdleInTx, Outcome::Open, "report")));
    assert!(desk.now - idle <= 350 * MS, "{:?}", desk.now - idle);
    desk.pass(10 * S);
    desk.tick(idle_in_tx(idle));
    assert_eq!(cases(&mut desk), []);
    desk.checkin(lease, Some(0));
    assert_eq!(cases(&mut desk), [(LeakClass::IdleInTx, Outcome::Returned, "report")]);
    let view = desk.book.view(desk.now);
    assert_eq!(view.leaks.len(), 1);
    assert_eq!(view.leaks[0].outcome, Outcome::Returned);
    assert!(view.leak_totals.contains(&("idle_in_tx", "report", "open", 1)));
    assert!(view.leak_totals.contains(&("idle_in_tx", "report", "returned", 1)));
}

#[test]
fn a_long_hold_has_the_name_of_what_it_does() {
    let pinned = |since, _| Some(Activity { pin: "listen", ..Activity::doing(Doing::Pinned, since) });
    let long_tx = |start: Instant, now| working(now, Some(start));
    for (class, doing) in [
        (LeakClass::LongTx, long_tx as fn(Instant, Instant) -> Option<Activity>),
        (LeakClass::SlowQuery, |since, _| working(since, Some(since))),
        (LeakClass::Pinned, pinned),
    ] {
        let mut desk = Desk::new(leaky(), 1);
        let start = desk.now;
        let lease = desk.lease("a");
        desk.pass(2 * S);
        desk.tick(doing(start, desk.now));
        assert_eq!(cases(&mut desk), [(class, Outcome::Open, "report")]);
        desk.tick(doing(desk.now, desk.now));
        assert_eq!(cases(&mut desk), [(class, Outcome::Returned, "report")], "the next one is another");
        desk.checkin(lease, Some(0));
        assert_eq!(cases(&mut desk), []);
    }
}

#[test]
fn what_a_budget_ends_is_reclaimed() {
    let mut setup = leaky();
    setup.budget.idle_abort_alone = Some(S);
    setup.budget.idle.mode = Mode::Enforce;
    let mut desk = Desk::new(setup, 1);
    let start = desk.now;
    let lease = desk.lease("a");
    desk.pass(S);
    desk.tick(idle_in_tx(start));
    desk.take();
    desk.checkin(lease, Some(0));
    assert_eq!(cases(&mut desk), [(LeakClass::IdleInTx, Outcome::Reclaimed, "soft_abort")]);
}

#[test]
fn a_client_that_leaves_work_behind_is_a_case_of_its_own() {
    let mut desk = Desk::new(leaky(), 1);
    let lease = desk.lease("a");
    let gone = Some(Outcome::ClientGone);
    desk.checkin_as(lease, Some(0), gone);
    assert_eq!(cases(&mut desk), [(LeakClass::AbandonedClient, Outcome::ClientGone, "rollback")]);
}

#[test]
fn a_thousand_closed_cases_are_kept() {
    let mut desk = Desk::new(leaky(), 1);
    for _ in 0..1_001 {
        let lease = desk.lease("a");
        let gone = Some(Outcome::ClientGone);
        desk.checkin_as(lease, Some(0), gone);
    }
    let leaks = desk.book.view(desk.now).leaks;
    assert_eq!((leaks.len(), leaks[0].id, leaks[999].id), (1_000, 2, 1_001));
}

#[test]
fn the_tick_rests_when_there_is_nothing_to_watch() {
    let mut desk = Desk::new(leaky(), 1);
    assert!(desk.tick(None).is_none());
    let lease = desk.lease("a");
    // The pace is that of the pool's `deadlock_after`.
    assert_eq!(desk.book.due(), Some(desk.now + 200 * MS));
    desk.pass(200 * MS);
    desk.tick(Some(Activity { pin: "listen", ..Activity::doing(Doing::Pinned, desk.now) }));
    assert_eq!(desk.book.view(desk.now).pins, [("listen", 1)]);
    desk.checkin(lease, Some(0));
    assert!(desk.tick(None).is_none());
    assert!(desk.book.view(desk.now).pins.is_empty());
}

/// With leaks ended at once.
fn strict() -> Setup {
    let mut setup = leaky();
    (setup.leak.hold, setup.leak.idle) = (None, Some(10 * S));
    (setup.leak.mode, setup.leak.force) = (Mode::Enforce, true);
    setup
}

/// A lease whose session is known to be connected.
fn held(desk: &mut Desk, tag: Tag) -> (LeaseId, SessionId) {
    let session = SessionId(desk.sessions + 1);
    desk.book.comes_from(session, 7);
    (desk.lease_for(tag), session)
}

/// What ticks come to while the first lease is idle since then and the others do this.
fn found(desk: &mut Desk, lease: LeaseId, idle: Instant, others: Option<Activity>) -> Vec<Case> {
    let mut probe = |_, id| if id == lease { idle_in_tx(idle) } else { others };
    desk.book.tick(desk.now, &mut probe, &mut desk.actions);
    let cases = desk.take().into_iter().filter_map(|action| match action {
        Action::Leak(event) => Some(Case::Told(event.class, event.action, event.evidence.names())),
        Action::End { lease, why: Overstay::Leaked { limit, .. }, .. } => Some(Case::Ended(lease, limit)),
        _ => None,
    });
    cases.collect()
}

#[derive(Debug, PartialEq)]
enum Case {
    Told(LeakClass, &'static str, Vec<&'static str>),
    Ended(LeaseId, Duration),
}

#[test]
fn what_an_ended_request_left_in_a_transaction_is_taken_back() {
    let mut desk = Desk::new(strict(), 1);
    let (idle, (lease, _)) = (desk.now, held(&mut desk, of("a", Some("r"))));
    desk.pass(S);
    assert_eq!(found(&mut desk, lease, idle, None), []);
    desk.book.request_ended("r", desk.now);
    assert_eq!(desk.book.hastened(), Some(desk.now), "it is looked at now");
    desk.pass(9 * S - MS);
    assert_eq!(found(&mut desk, lease, idle, None), []);
    assert_eq!(desk.book.due(), Some(idle + 10 * S).max(Some(desk.now + 10 * MS)));
    desk.pass(MS);
    let told = Case::Told(LeakClass::Leaked, "soft_abort", vec!["request_ended"]);
    assert_eq!(found(&mut desk, lease, idle, None), [Case::Ended(lease, 10 * S), told]);
    desk.pass(S);
    assert_eq!(found(&mut desk, lease, idle, None), [], "once");
    desk.checkin(lease, Some(0));
    assert_eq!(cases(&mut desk), [(LeakClass::Leaked, Outcome::Reclaimed, "soft_abort")]);
    let event = desk.book.view(desk.now).leaks.pop().unwrap();
    assert!(event.request_ended && event.mode == Mode::Enforce);
}

#[test]
fn outside_enforce_and_before_its_day_a_leak_is_only_told() {
    for (mode, force) in [(Mode::Warn, true), (Mode::Observe, true), (Mode::Enforce, false)] {
        let mut setup = strict();
        (setup.leak.mode, setup.leak.force) = (mode, force);
        let mut desk = Desk::new(setup, 1);
        desk.book.arm(desk.now + 60 * S);
        let (idle, (lease, _)) = (desk.now, held(&mut desk, of("a", Some("r"))));
        desk.book.request_ended("r", desk.now);
        desk.pass(10 * S);
        let told = Case::Told(LeakClass::Leaked, "would_abort", vec!["request_ended"]);
        assert_eq!(found(&mut desk, lease, idle, None), [told], "{mode:?}");
        desk.pass(50 * S);
        let later = found(&mut desk, lease, idle, None);
        assert_eq!(later.first() == Some(&Case::Ended(lease, 10 * S)), mode == Mode::Enforce, "{later:?}");
        desk.checkin(lease, Some(0));
    }
}

#[test]
fn siblings_that_left_or_went_on_to_another_request_are_evidence() {
    let mut desk = Desk::new(strict(), 3);
    let (idle, (lease, _)) = (desk.now, held(&mut desk, of("a", Some("r"))));
    let (second, closes) = held(&mut desk, of("a", Some("r")));
    let (third, goes_on) = held(&mut desk, of("a", Some("r")));
    desk.checkin(second, Some(1));
    desk.checkin(third, Some(2));
    desk.pass(20 * S);
    let told = Case::Told(LeakClass::IdleInTx, "report", vec![]);
    assert_eq!(found(&mut desk, lease, idle, None), [told], "they are connected, and nobody else's");
    desk.book.has_left(closes, desk.now);
    assert_eq!(found(&mut desk, lease, idle, None), []);
    let mut claim = desk.claim(of("a", Some("other")));
    claim.session = goes_on;
    desk.book.checkout(desk.now, &claim, |id| id, &mut desk.warnings, &mut desk.actions);
    let working = working(desk.now, None);
    let told = Case::Told(LeakClass::Leaked, "soft_abort", vec!["siblings_left"]);
    assert_eq!(found(&mut desk, lease, idle, working), [Case::Ended(lease, 10 * S), told]);
}

#[test]
fn a_request_at_work_elsewhere_nests_and_leaks_only_once_it_is_over() {
    let mut desk = Desk::new(strict(), 2);
    let (idle, (lease, _)) = (desk.now, held(&mut desk, of("a", Some("r"))));
    let (inner, _) = held(&mut desk, of("a", Some("r")));
    desk.pass(100 * S);
    let works = working(desk.now, None);
    let nested = Case::Told(LeakClass::Nested, "report", vec!["long_idle"]);
    assert_eq!(found(&mut desk, lease, idle, works), [nested]);
    desk.checkin(inner, Some(1));
    // A queued session of the request says the same.
    let other = desk.lease("other");
    let (waiter, _) = (desk.queued_for(of("a", Some("r"))), desk.pass(S));
    assert_eq!(found(&mut desk, lease, idle, None), []);
    desk.book.cancel(desk.now, waiter, &mut desk.actions);
    desk.checkin(other, Some(1));
    desk.book.request_ended("r", desk.now);
    let evidence = ["request_ended", "siblings_left", "long_idle"];
    let found = found(&mut desk, lease, idle, None);
    let Case::Told(LeakClass::Leaked, "soft_abort", told) = &found[1] else { panic!("{found:?}") };
    assert!(told.iter().all(|each| evidence.contains(each)) && told.contains(&"request_ended"));
}

/// Leases of one call site, each idle once for so long.
fn taught(desk: &mut Desk, gap: Duration) {
    for _ in 0..100 {
        let lease = desk.lease("a");
        desk.pass(gap);
        let usage = Usage { gap_us: gap.as_micros() as u32, ..Usage::default() };
        let _ = desk.book.checkin(desk.now, lease, Some(0), usage, None, &mut desk.actions);
    }
    desk.take();
}

#[test]
fn a_call_site_known_to_be_quick_is_told_sooner_and_a_slow_one_ended_later() {
    for (gap, told, ended) in [(100 * MS, S, 60 * S), (10 * S, 10 * S, 100 * S)] {
        let mut desk = Desk::new(strict(), 1);
        taught(&mut desk, gap);
        let (idle, lease) = (desk.now, desk.lease("a"));
        desk.now = idle + told - MS;
        assert_eq!(found(&mut desk, lease, idle, None), []);
        desk.now = idle + told;
        let case = Case::Told(LeakClass::IdleInTx, "report", vec![]);
        assert_eq!(found(&mut desk, lease, idle, None), [case], "{gap:?}");
        desk.now = idle + ended - MS;
        assert_eq!(found(&mut desk, lease, idle, None), [], "{gap:?}");
        // A percentile is told at most an eighth too long.
        desk.now = idle + ended + ended / 8;
        let found = found(&mut desk, lease, idle, None);
        assert!(matches!(found[0], Case::Ended(..)), "{found:?}");
        let event = desk.book.view(desk.now).leaks.pop().unwrap();
        assert_eq!((event.threshold.kind(), event.evidence.names()), ("adaptive", vec!["long_idle"]));
    }
}

#[test]
fn an_unknown_call_site_is_not_ended_without_evidence() {
    let mut desk = Desk::new(strict(), 1);
    let (idle, lease) = (desk.now, desk.lease("a"));
    desk.pass(3_600 * S);
    let told = Case::Told(LeakClass::Leaked, "report", vec!["long_idle"]);
    assert_eq!(found(&mut desk, lease, idle, None), [told]);
}

#[test]
fn a_slow_statement_that_waits_for_a_lock_is_named_so() {
    let mut desk = Desk::new(leaky(), 1);
    let (start, lease) = (desk.now, desk.lease("a"));
    desk.pass(2 * S);
    desk.tick(working(start, Some(start)));
    assert_eq!(cases(&mut desk), [(LeakClass::SlowQuery, Outcome::Open, "report")]);
    desk.book.waits_for_lock(lease, start, "backend 7".into(), desk.now);
    desk.tick(working(start, Some(start)));
    assert_eq!(cases(&mut desk), [(LeakClass::LockWait, Outcome::Open, "report")]);
    assert_eq!(desk.book.view(desk.now).leaks[0].blocked_by.as_deref(), Some("backend 7"));
    desk.checkin(lease, Some(0));
    assert_eq!(cases(&mut desk), [(LeakClass::LockWait, Outcome::Returned, "report")]);
    let totals = desk.book.view(desk.now).leak_totals;
    assert!(totals.contains(&("slow_query", "report", "open", 1)));
    assert!(totals.contains(&("lock_wait", "report", "returned", 1)));
}

#[test]
fn a_client_that_takes_nothing_is_stalled_until_it_does() {
    let mut setup = leaky();
    setup.budget.stall = Timed { abort: Some(5 * S), mode: Mode::Enforce, ..setup.budget.stall };
    let mut desk = Desk::new(setup, 1);
    let (start, lease) = (desk.now, desk.lease("a"));
    let stalled =
        |since: Option<Instant>| Some(Activity { stalled: since, ..working(start, Some(start)).unwrap() });
    desk.pass(2 * S);
    desk.tick(stalled(Some(start)));
    assert_eq!(cases(&mut desk), [(LeakClass::StalledClient, Outcome::Open, "report")]);
    desk.pass(4 * S);
    desk.tick(stalled(Some(start)));
    desk.take();
    desk.checkin(lease, Some(0));
    assert_eq!(cases(&mut desk), [(LeakClass::StalledClient, Outcome::Reclaimed, "cancel")]);
}

#[test]
fn a_pin_without_use_is_told_and_ended_much_later() {
    let mut setup = strict();
    (setup.leak.pinned, setup.leak.pinned_close) = (Some(300 * S), Some(1_800 * S));
    let mut desk = Desk::new(setup, 1);
    let (start, lease) = (desk.now, desk.lease("a"));
    let pinned = Some(Activity { pin: "listen", ..Activity::doing(Doing::Pinned, start) });
    desk.pass(300 * S);
    desk.tick(pinned);
    assert_eq!(cases(&mut desk), [(LeakClass::Pinned, Outcome::Open, "report")]);
    desk.pass(1_500 * S);
    desk.tick(pinned);
    let ends = desk.actions.iter().filter(|action| {
        matches!(action, Action::End { why: Overstay::Pinned { pin: "listen", limit, .. }, .. } if *limit == 1_800 * S)
    });
    assert_eq!(ends.count(), 1);
    assert_eq!(cases(&mut desk), [(LeakClass::Pinned, Outcome::Open, "close")]);
    desk.checkin_as(lease, None, Some(Outcome::Reclaimed));
    assert_eq!(cases(&mut desk), [(LeakClass::Pinned, Outcome::Reclaimed, "close")]);
}
