//! Rules of the book: B1, B2, B10, B11, B18 and what their modes do.

use super::*;

#[test]
fn the_tenth_lease_is_refused_by_the_clients_own_budget_in_any_mode() {
    let mut desk = Desk::new(setup(), 1);
    let tag = Tag { max_leases: Some(9), ..of("a", Some("r")) };
    for _ in 0..9 {
        let lease = desk.lease_for(tag.clone());
        desk.checkin(lease, Some(0));
    }
    let refusal = desk.refused(tag);
    assert!(
        matches!(refusal, Refusal::TooManyLeases { ordinal: 10, limit: 9, own: true, .. }),
        "{refusal:?}"
    );
    let request = desk.book.request("r", desk.now).expect("a request");
    assert_eq!((request.leases_total, request.rejections, request.leases_peak), (9, 1, 1));
}

#[test]
fn leases_queued_count_towards_the_budget_too() {
    let mut setup = setup();
    setup.budget.leases_reject = Some(2);
    setup.budget.leases_mode = Mode::Enforce;
    let mut desk = Desk::new(setup, 1);
    desk.lease_for(of("a", Some("r")));
    let waiter = desk.queued_for(of("a", Some("r")));
    let refusal = desk.refused(of("a", Some("r")));
    assert!(matches!(refusal, Refusal::TooManyLeases { ordinal: 3, limit: 2, own: false, .. }));
    desk.book.cancel(desk.now, waiter, &mut desk.actions);
    desk.queued_for(of("a", Some("r")));
}

#[test]
fn a_login_is_no_lease_of_the_request() {
    let mut desk = Desk::new(setup(), 1);
    let claim = Claim { login: true, ..desk.claim(Tag { max_leases: Some(0), ..of("a", Some("r")) }) };
    let answer = desk.book.checkout(desk.now, &claim, |id| id, &mut desk.warnings, &mut desk.actions);
    assert!(matches!(answer, Checkout::Idle(_)), "{answer:?}");
    assert!(desk.book.request("r", desk.now).is_none());
    assert_eq!(desk.row().leased, 1);
}

#[test]
fn observe_counts_and_warn_tells_once_a_request() {
    for (mode, outcome, told) in [(Mode::Observe, "would", 0), (Mode::Warn, "warn", 1)] {
        let mut setup = setup();
        setup.budget.leases_warn = Some(2);
        setup.budget.leases_mode = mode;
        let mut desk = Desk::new(setup, 1);
        for _ in 0..4 {
            let lease = desk.lease_for(of("a", Some("r")));
            desk.checkin(lease, Some(0));
        }
        assert_eq!((desk.count("B2", outcome), desk.warnings.len()), (3, told));
        assert_eq!(desk.count("B2", "ok"), 1);
    }
}

#[test]
fn a_warning_of_a_queued_lease_comes_with_its_grant() {
    let mut setup = setup();
    setup.budget.max_concurrent = 1;
    setup.budget.max_concurrent_mode = Mode::Warn;
    let mut desk = Desk::new(setup, 2);
    let other = desk.lease("b");
    desk.lease_for(of("a", Some("r")));
    desk.queued_for(of("a", Some("r")));
    desk.checkin(other, Some(0));
    match &desk.take()[..] {
        [Action::Grant { warnings, .. }] => {
            assert_eq!(warnings[..], [Warning::NestsTooDeep { holds: 2, limit: 1 }]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_old_transaction_is_told_once_and_ended_once() {
    let mut setup = setup();
    setup.budget.age.warn = Some(5 * S);
    setup.budget.age.abort = Some(60 * S);
    setup.budget.age.mode = Mode::Enforce;
    let mut desk = Desk::new(setup, 1);
    let start = desk.now;
    let lease = desk.lease("a");
    let mut due = desk.tick(working(start, Some(start))).expect("leased");
    let mut seen = Vec::new();
    while desk.now < start + 61 * S {
        desk.now = due;
        due = desk.tick(working(start, Some(start))).expect("leased");
        seen.extend(desk.take().into_iter().map(|action| (desk.now - start, action)));
    }
    match &seen[..] {
        [
            (told, Action::Warn { lease: one, warning: Warning::Age { limit: warned, .. }, .. }),
            (ended, Action::End { lease: two, why: Overstay::Age { limit, .. }, .. }),
        ] => {
            assert_eq!((*one, *two), (lease, lease));
            assert_eq!((*told, *ended), (5 * S, 60 * S), "a tick comes when a limit is crossed");
            assert_eq!((*warned, *limit), (5 * S, 60 * S));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((desk.count("B10", "near"), desk.count("B10", "warn"), desk.count("B10", "abort")), (1, 1, 1));
}

#[test]
fn idleness_is_judged_more_strictly_while_others_wait() {
    let mut setup = setup();
    setup.budget.idle.warn = Some(S);
    setup.budget.idle.abort = Some(10 * S);
    setup.budget.idle_abort_alone = Some(60 * S);
    setup.budget.idle.mode = Mode::Enforce;
    setup.rules.max_wait = 100 * S;
    let mut desk = Desk::new(setup, 1);
    let start = desk.now;
    desk.lease("a");
    desk.pass(30 * S);
    desk.tick(idle_in_tx(start));
    assert!(desk.take().is_empty(), "nobody waits");
    desk.queued("b");
    desk.tick(idle_in_tx(start));
    let actions = desk.take();
    assert!(
        matches!(actions[..], [Action::End { why: Overstay::Idle { idle, limit, waiting: 1, .. }, .. }]
            if idle == 30 * S && limit == 10 * S),
        "{actions:?}"
    );
    desk.tick(idle_in_tx(start));
    assert!(desk.take().is_empty(), "once");
    // A statement was faster than the order, and now it is idle again.
    let again = desk.now;
    desk.pass(10 * S);
    let anew = idle_in_tx(start).map(|activity| Activity { since: again, ..activity });
    desk.tick(anew);
    assert!(matches!(desk.take()[..], [Action::End { .. }]));
}

#[test]
fn sessions_of_a_tenant_are_counted() {
    let mut setup = setup();
    setup.tenant.max_sessions = 1;
    setup.tenant.mode = Mode::Enforce;
    let mut desk = Desk::new(setup, 1);
    let tenant: Arc<str> = "a".into();
    assert_eq!(desk.book.login(&tenant), Ok(None));
    let refusal = Refusal::TooManySessions { tenant: tenant.clone(), sessions: 1, limit: 1 };
    assert_eq!(desk.book.login(&tenant), Err(refusal));
    desk.book.logout(&tenant);
    assert_eq!(desk.book.login(&tenant), Ok(None));
    assert_eq!((desk.count("B18", "near"), desk.count("B18", "reject")), (2, 1));
    assert_eq!(desk.row().logins, 0, "not ready yet");
    desk.book.logged_in(desk.pool);
    assert_eq!(desk.row().logins, 1);
}

#[test]
fn a_refusal_quotes_what_its_own_tick_saw() {
    let mut desk = Desk::new(setup(), 1);
    desk.lease("a");
    desk.queued("b");
    desk.pass(3 * S);
    desk.tick(idle_in_tx(desk.now - S));
    match &desk.refusals()[..] {
        [(_, Refusal::WaitedTooLong { standing, .. })] => {
            let longest = standing.longest.as_ref().expect("a holder");
            assert_eq!((standing.pool_idle_in_tx, longest.held, longest.idle), (1, 3 * S, Some(S)));
        }
        other => panic!("{other:?}"),
    }
}

/// B17: by tenant and by pool, counted from the first pin to the lease's return.
#[test]
fn pins_are_bounded_by_tenant_and_by_pool() {
    let mut strict = setup();
    strict.tenant.max_pins = 2;
    strict.tenant.mode = Mode::Enforce;
    strict.rules.max_pins = Share::Count(3);
    let mut desk = Desk::new(strict, 6);
    let [one, two, three, four] = ["a", "a", "a", "b"].map(|tenant| desk.lease(tenant));
    let pool = desk.pool;
    for lease in [one, two] {
        assert_eq!(desk.book.may_pin(pool, "a"), Ok(()));
        assert_eq!(desk.book.pinned(lease), None);
        assert_eq!(desk.book.pinned(lease), None, "counted once");
    }
    let refusal = Refusal::TooManyPins { tenant: "a".into(), tenant_pins: (2, 2), pool_pins: (2, 3) };
    assert_eq!(desk.book.may_pin(pool, "a"), Err(refusal));
    // One that pinned unseen is told.
    let warning = Warning::TooManyPins { tenant_pins: (3, 2), pool_pins: (3, 3) };
    assert_eq!(desk.book.pinned(three), Some(warning));
    // The pool is full, for others too.
    let refusal = Refusal::TooManyPins { tenant: "b".into(), tenant_pins: (0, 2), pool_pins: (3, 3) };
    assert_eq!(desk.book.may_pin(pool, "b"), Err(refusal));
    desk.checkin(one, Some(0));
    assert_eq!(desk.book.may_pin(pool, "b"), Ok(()));
    assert_eq!(desk.book.pinned(four), None);
    assert_eq!(["ok", "near", "warn", "reject"].map(|told| desk.count("B17", told)), [1, 2, 1, 2]);
    desk.checkin(four, None);
    assert_eq!(desk.book.pinned(four), None, "a lease that is back");

    let mut watched = setup();
    watched.tenant.max_pins = 0;
    let mut desk = Desk::new(watched, 1);
    let lease = desk.lease("a");
    assert_eq!(desk.book.may_pin(desk.pool, "a"), Ok(()), "observed only");
    assert_eq!(desk.book.pinned(lease), None);
    assert_eq!(desk.count("B17", "would"), 1);
}

fn violations(desk: &mut Desk) -> Vec<(&'static str, &'static str, u64, u64)> {
    let events = std::mem::take(&mut desk.actions).into_iter().filter_map(|action| match action {
        Action::Violation(event) => Some((event.dimension, event.outcome, event.spent, event.limit)),
        _ => None,
    });
    events.collect()
}

#[test]
fn a_tenant_over_its_cap_is_an_event_and_who_tags_no_request_is_spared_the_warning() {
    for (request, told) in [(None, 0), (Some("r"), 1)] {
        let mut setup = setup();
        setup.tenant.max = Share::Count(2);
        setup.tenant.mode = Mode::Warn;
        let mut desk = Desk::new(setup, 4);
        let start = desk.now;
        desk.warnings.clear();
        for _ in 0..4 {
            desk.lease_for(of("a", request));
        }
        desk.tick(working(start, None));
        let events = [("B4", "warn", 3, 2), ("B4", "warn", 4, 2)];
        let one_a_request = if request.is_some() { &events[..1] } else { &events[..] };
        assert_eq!((violations(&mut desk).as_slice(), desk.warnings.len()), (one_a_request, told));
    }
}

#[test]
fn what_is_told_or_refused_or_ended_is_an_event_too() {
    let mut setup = setup();
    setup.budget.max_concurrent = 1;
    setup.budget.max_concurrent_mode = Mode::Warn;
    setup.budget.idle = Timed { warn: Some(S), abort: Some(10 * S), mode: Mode::Enforce, force: false };
    setup.budget.idle_abort_alone = Some(10 * S);
    setup.budget.idle_warn_only_if_waiters = false;
    setup.budget.leases_mode = Mode::Observe;
    setup.budget.leases_reject = Some(1);
    let mut desk = Desk::new(setup, 2);
    let start = desk.now;
    desk.lease_for(of("a", Some("r")));
    desk.lease_for(of("a", Some("r")));
    desk.refused(Tag { max_leases: Some(2), ..of("a", Some("r")) });
    desk.tick(working(start, None));
    let observed = "what is only observed is none";
    assert_eq!(violations(&mut desk), [("B1", "warn", 2, 1), ("B2", "reject", 3, 2)], "{observed}");
    desk.pass(S);
    desk.tick(idle_in_tx(start));
    assert_eq!(violations(&mut desk), [("B11", "warn", 1000, 1000); 2]);
    desk.book.arm(start + 100 * S);
    desk.pass(10 * S);
    desk.tick(idle_in_tx(start));
    let spared = desk.take();
    let [Action::Warn { warning: Warning::Spared { key, .. }, .. }, ..] = spared[..] else {
        panic!("{spared:?}")
    };
    assert_eq!(key, "budget.transaction.max_idle");
    assert_eq!(desk.count("B11", "would"), 2);
    desk.pass(100 * S);
    desk.tick(idle_in_tx(start));
    assert_eq!(violations(&mut desk), [("B11", "abort", 111_000, 10_000); 2]);
}

#[test]
fn usage_is_the_most_of_anybody_now_and_within_an_hour() {
    let mut desk = Desk::new(setup(), 3);
    let leases = [0; 3].map(|_| desk.lease_for(of("a", Some("r"))));
    let waiter = desk.queued("b");
    desk.tick(idle_in_tx(desk.now - 2 * S));
    let usage = |desk: &Desk, dimension| {
        let rows = desk.book.view(desk.now).budget_usage;
        rows.into_iter().find(|row| row.0 == dimension).map(|(_, now, peak)| (now, peak)).expect("a row")
    };
    assert_eq!((usage(&desk, "B1"), usage(&desk, "B4")), ((3, 3), (3, 3)));
    assert_eq!((usage(&desk, "B11"), usage(&desk, "B8")), ((2000, 2000), (1, 1)));
    desk.book.cancel(desk.now, waiter, &mut desk.actions);
    for (at, lease) in leases.into_iter().enumerate() {
        desk.checkin(lease, Some(at as u32));
    }
    desk.tick(None);
    assert_eq!((usage(&desk, "B1"), usage(&desk, "B11")), ((0, 3), (0, 2000)));
    assert_eq!(usage(&desk, "B2"), (0, 3));
    desk.pass(3600 * S);
    assert_eq!((usage(&desk, "B1"), usage(&desk, "B11")), ((0, 0), (0, 0)));
}

/// A scope of a class holds for what a rule puts into it, too. What is held keeps the class it came with.
#[test]
fn budgets_of_a_class_hold_for_all_its_work() {
    let text = "[class.batch]\nmatch = [\"tag:tenant=nightly\"]\n\
                [class.batch.budget.request]\nmax_leases = { warn = \"off\", reject = 2, mode = \"enforce\" }\n\
                [class.batch.budget.statement]\nmax_time = { abort = \"1s\", mode = \"enforce\" }\n";
    let mut desk = Desk::new(setup(), 9);
    let start = desk.now;
    desk.lease_for(of("nightly", Some("r")));
    desk.lease_for(of("daily", Some("d")));
    let config = crate::config::parse(text, "test", &std::collections::BTreeMap::new()).expect("no fault");
    desk.book.reconfigure(&config, desk.now, &mut desk.actions);
    desk.lease_for(of("nightly", Some("r")));
    assert!(matches!(desk.refused(of("nightly", Some("r"))), Refusal::TooManyLeases { limit: 2, .. }));
    for _ in 0..3 {
        desk.lease_for(of("daily", Some("d")));
    }
    desk.pass(S);
    desk.tick(working(start, Some(start)));
    let actions = desk.take();
    let cut = actions.iter().filter(|action| matches!(action, Action::Cancel { .. })).count();
    assert_eq!(cut, 1, "of the class only: {actions:?}");
}

/// budgets.md §3.4: within 250 ms, of which `deadlock_after` is 200.
#[test]
fn a_deadlock_that_begins_right_after_a_tick_is_undone_in_its_time() {
    let mut setup = setup();
    setup.budget.max_concurrent = 1;
    let mut desk = Desk::new(setup, 2);
    let tags = || [of("a", Some("one")), of("a", Some("two"))];
    for tag in tags() {
        desk.lease_for(tag);
    }
    let start = desk.now;
    let mut due = desk.tick(idle_in_tx(start)).expect("leases to watch");
    desk.pass(MS);
    let stuck = desk.now;
    for tag in tags() {
        desk.queued_for(tag);
    }
    due = desk.book.due().map_or(due, |sooner| sooner.min(due));
    while desk.take().is_empty() {
        desk.now = due;
        due = desk.tick(idle_in_tx(start)).expect("a deadlock to watch");
    }
    // And not at once after the tick that has seen it.
    let took = desk.now - stuck;
    assert!((200 * MS..=200 * MS + super::super::tick::TICK_LEAST).contains(&took), "{took:?}");
}

/// budgets.md §3.2: where B1 only warns, a deadlock says what the next ones of its kind will need.
#[test]
fn who_has_been_in_a_deadlock_is_kept_from_the_next() {
    let mut setup = setup();
    setup.budget.max_concurrent = 1;
    setup.budget.max_concurrent_mode = Mode::Warn;
    let mut desk = Desk::new(setup, 2);
    let request = |id: &str| Tag { route: Some("nests".into()), ..of("a", Some(id)) };
    let elder = desk.lease_for(request("one"));
    desk.pass(MS);
    let younger = desk.lease_for(request("two"));
    let start = desk.now;
    desk.queued_for(request("one"));
    desk.queued_for(request("two"));
    desk.tick(idle_in_tx(start));
    desk.pass(200 * MS);
    desk.tick(idle_in_tx(start));
    let actions = desk.take();
    let ended = |action: &Action<_, _>| matches!(action, Action::End { lease, .. } if *lease == younger);
    assert!(actions.iter().any(ended), "{actions:?}");
    desk.checkin(younger, Some(1));
    let inner = desk.granted();
    desk.checkin(inner, Some(1));
    desk.checkin(elder, Some(0));
    desk.take();

    let outer = desk.lease_for(request("three"));
    let waiter = desk.queued_for(request("four"));
    assert_eq!(desk.book.view(desk.now).waiters[0].reason, "unsafe");
    // It is not held against work that begins otherwise.
    let other = desk.lease_for(Tag { route: Some("flat".into()), ..of("a", Some("five")) });
    desk.checkin(other, Some(1));
    let inner = desk.lease_for(request("three"));
    desk.checkin(inner, Some(1));
    desk.checkin(outer, Some(0));
    let granted =
        |action: &Action<_, _>| matches!(action, Action::Grant { waiter: who, .. } if *who == waiter);
    assert!(desk.take().iter().any(granted));
}
