//! Rules of the book: cases: opened in time, closed once.

use super::*;

fn leaky() -> Setup {
    let mut setup = setup();
    setup.leak = Leak { hold: Some(2 * S), idle: Some(300 * MS), statement_text: false };
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
    let pinned = |since| Some(Activity { pin: "listen", ..Activity::doing(Doing::Pinned, since) });
    for (class, doing) in [
        (LeakClass::LongTx, (|since| working(since, Some(since))) as fn(Instant) -> Option<Activity>),
        (LeakClass::SlowQuery, |since| working(since, None)),
        (LeakClass::Pinned, pinned),
    ] {
        let mut desk = Desk::new(leaky(), 1);
        let start = desk.now;
        let lease = desk.lease("a");
        desk.pass(2 * S);
        desk.tick(doing(start));
        assert_eq!(cases(&mut desk), [(class, Outcome::Open, "report")]);
        desk.tick(doing(desk.now));
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
    assert_eq!(desk.book.due(), Some(desk.now + 250 * MS));
    desk.pass(250 * MS);
    desk.tick(Some(Activity { pin: "listen", ..Activity::doing(Doing::Pinned, desk.now) }));
    assert_eq!(desk.book.view(desk.now).pins, [("listen", 1)]);
    desk.checkin(lease, Some(0));
    assert!(desk.tick(None).is_none());
    assert!(desk.book.view(desk.now).pins.is_empty());
}
