//! Rules of the book about single statements: B12, the client's own times, its deadline.

use super::*;
use crate::tag::Own;

fn cancels(desk: &mut Desk) -> Vec<(Instant, Overrun)> {
    let actions = desk.take().into_iter().filter_map(|action| match action {
        Action::Cancel { statement, why, .. } => Some((statement, why)),
        _ => None,
    });
    actions.collect()
}

fn strict() -> Setup {
    let mut setup = setup();
    setup.budget.statement =
        Timed { warn: Some(2 * S), abort: Some(5 * S), mode: Mode::Enforce, force: false };
    setup
}

#[test]
fn a_statement_is_told_at_one_limit_and_cancelled_at_the_next() {
    let mut desk = Desk::new(strict(), 1);
    let start = desk.now;
    desk.lease("a");
    let mut due = desk.tick(working(start, Some(start))).expect("leased");
    let mut seen = Vec::new();
    while desk.now < start + 5 * S + 500 * MS {
        desk.now = due;
        due = desk.tick(working(start, Some(start))).expect("leased");
        seen.extend(desk.take().into_iter().map(|action| (desk.now - start, action)));
    }
    match &seen[..] {
        [
            (told, Action::Warn { warning: Warning::Statement { limit: warned, .. }, .. }),
            (cut, Action::Cancel { statement, why: Overrun::Statement { limit, own: false, .. }, .. }),
        ] => {
            assert_eq!((*told, *warned), (2 * S, 2 * S));
            assert_eq!((*cut, *limit, *statement), (5 * S, 5 * S, start));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(["near", "warn", "cancel", "would"].map(|told| desk.count("B12", told)), [1, 1, 1, 0]);
}

#[test]
fn a_statement_that_goes_on_is_cancelled_again_and_counted_once() {
    let mut desk = Desk::new(strict(), 1);
    let start = desk.now;
    desk.lease("a");
    desk.pass(5 * S);
    let mut cut = 0;
    for _ in 0..30 {
        desk.tick(working(start, Some(start)));
        cut += cancels(&mut desk).len();
        desk.pass(100 * MS);
    }
    assert_eq!((cut, desk.count("B12", "cancel")), (3, 1), "once a second");
    // The next one of the same lease has its own time.
    let next = desk.now;
    desk.pass(5 * S);
    desk.tick(working(next, Some(start)));
    assert!(matches!(cancels(&mut desk)[..], [(statement, _)] if statement == next));
    assert_eq!(desk.count("B12", "cancel"), 2);
}

#[test]
fn in_other_modes_it_only_counts() {
    for (mode, told) in [(Mode::Observe, [1, 0, 0]), (Mode::Warn, [1, 1, 0])] {
        let mut setup = strict();
        setup.budget.statement.mode = mode;
        let mut desk = Desk::new(setup, 1);
        let start = desk.now;
        desk.lease("a");
        desk.pass(6 * S);
        desk.tick(working(start, Some(start)));
        assert_eq!(cancels(&mut desk), []);
        assert_eq!(["would", "warn", "cancel"].map(|told| desk.count("B12", told)), told, "{mode:?}");
    }
}

#[test]
fn what_the_client_has_set_itself_acts_in_any_mode() {
    let mut desk = Desk::new(setup(), 1);
    let start = desk.now;
    desk.lease("a");
    let own = Own { statement: Some(S), ..Own::default() };
    let runs = Some(Activity { own, ..Activity::doing(Doing::Active, start) });
    desk.pass(999 * MS);
    let due = desk.tick(runs).expect("leased");
    assert_eq!(cancels(&mut desk), []);
    desk.now = due;
    desk.tick(runs);
    let why = Overrun::Statement { ran: due - start, limit: S, own: true };
    assert_eq!(cancels(&mut desk), [(start, why)]);
}

/// The first statement is what the lease was asked for: its wait counts. A later one begins anew.
#[test]
fn a_deadline_counts_from_when_the_backend_was_asked_for() {
    let mut desk = Desk::new(setup(), 1);
    let holder = desk.lease("b");
    let asked = desk.now;
    desk.queued_for(Tag { deadline_ms: Some(100), ..of("a", None) });
    desk.pass(60 * MS);
    desk.checkin(holder, Some(0));
    desk.granted();
    let own = Own { deadline: Some(100 * MS), ..Own::default() };
    let first = Activity { first: true, own, ..Activity::doing(Doing::Active, desk.now) };
    let due = desk.book.due().expect("leased");
    assert!(due <= asked + 100 * MS, "not later than the deadline");
    desk.now = asked + 100 * MS;
    desk.tick(Some(first));
    let why = Overrun::Deadline { spent: 100 * MS, limit: 100 * MS };
    assert_eq!(cancels(&mut desk), [(asked + 60 * MS, why)]);
    assert_eq!(desk.count("B12", "cancel"), 1);
    let later = Activity { first: false, ..Activity { own, ..Activity::doing(Doing::Active, desk.now) } };
    desk.pass(99 * MS);
    desk.tick(Some(later));
    assert_eq!(cancels(&mut desk), []);
    desk.pass(10 * MS);
    desk.tick(Some(later));
    assert_eq!(cancels(&mut desk).len(), 1);
}

#[test]
fn the_clients_own_idleness_and_age_end_its_transaction() {
    for own in [Own { idle: Some(S), ..Own::default() }, Own { age: Some(S), ..Own::default() }] {
        let mut desk = Desk::new(setup(), 1);
        desk.lease("a");
        let idle = Activity { own, ..idle_in_tx(desk.now).expect("an activity") };
        desk.pass(S);
        desk.tick(Some(idle));
        let actions = desk.take();
        assert!(matches!(actions[..], [Action::End { .. }]), "{actions:?}");
    }
}

fn spent(active: Duration, since: Instant) -> Activity {
    Activity { active, ..Activity::doing(Doing::Active, since) }
}

/// B3: leases that are back and those that run count together.
#[test]
fn the_time_of_a_request_is_that_of_all_its_leases() {
    let mut setup = setup();
    setup.budget.db_time =
        Timed { warn: Some(20 * S), abort: Some(30 * S), mode: Mode::Enforce, force: false };
    // Or PostgreSQL is asked about locks.
    setup.rules.deadlock_after = None;
    let mut desk = Desk::new(setup, 3);
    let tag = || of("a", Some("r"));
    let back = desk.lease_for(tag());
    let usage = Usage { active: 10 * S, ..Usage::default() };
    let idle = desk.book.checkin(desk.now, back, Some(0), usage, None, &mut desk.actions);
    assert_eq!(idle, Some(0));
    let start = desk.now;
    let (one, two) = (desk.lease_for(tag()), desk.lease_for(tag()));
    let waits_in_tx = |now| idle_in_tx(now).expect("an activity");
    let look = |desk: &mut Desk| {
        let now = desk.now;
        let mut probe = |_, lease| Some(if lease == one { spent(5 * S, start) } else { waits_in_tx(now) });
        desk.book.tick(now, &mut probe, &mut desk.actions);
        desk.take()
    };
    desk.pass(4 * S);
    assert!(look(&mut desk).is_empty());
    desk.pass(S);
    match &look(&mut desk)[..] {
        [Action::Warn { warning: Warning::DbTime { used, limit }, .. }] => {
            assert_eq!((*used, *limit), (20 * S, 20 * S));
        }
        other => panic!("{other:?}"),
    }
    desk.pass(10 * S);
    match &look(&mut desk)[..] {
        [
            Action::Cancel { lease: cut, why: Overrun::DbTime { used, .. }, .. },
            Action::End { lease: ended, why: Overstay::DbTime { limit, .. }, .. },
        ] => assert_eq!((*cut, *ended, *used, *limit), (one, two, 30 * S, 30 * S)),
        other => panic!("{other:?}"),
    }
    let refusal = desk.refused(tag());
    assert!(matches!(refusal, Refusal::DbTimeUsedUp { limit, .. } if limit == 30 * S), "{refusal:?}");
    assert_eq!(["near", "warn", "cancel", "reject"].map(|told| desk.count("B3", told)), [1, 1, 1, 1]);
    desk.lease_for(of("a", Some("another")));
}

/// B13: once a stall, and only while the lease does something for the client.
#[test]
fn a_client_that_takes_nothing_loses_its_statement() {
    let mut setup = setup();
    setup.budget.stall = Timed { warn: Some(2 * S), abort: Some(30 * S), mode: Mode::Enforce, force: false };
    let mut desk = Desk::new(setup, 1);
    let start = desk.now;
    desk.lease("a");
    let stalled = |state| Some(Activity { stalled: Some(start), ..Activity::doing(state, start) });
    desk.pass(40 * S);
    desk.tick(stalled(Doing::IdleInTx));
    assert!(desk.take().is_empty(), "that is B11's");
    for _ in 0..3 {
        desk.tick(stalled(Doing::Active));
    }
    let why = Overrun::Stalled { stalled: 40 * S, limit: 30 * S };
    assert_eq!(cancels(&mut desk), [(start, why)]);
    assert_eq!(desk.count("B13", "cancel"), 1);
    // The client had just taken something when its session was told, and takes nothing since.
    let again = desk.now;
    desk.pass(29 * S);
    let stalled = Some(Activity { stalled: Some(again), ..Activity::doing(Doing::Active, start) });
    desk.tick(stalled);
    assert_eq!(cancels(&mut desk), []);
    desk.pass(S);
    desk.tick(stalled);
    assert_eq!(cancels(&mut desk), [(again, Overrun::Stalled { stalled: 30 * S, limit: 30 * S })]);
}
