//! Rules of the book: whom a server that cannot be reached keeps waiting, and who is told at once.

use super::*;
use crate::breaker::{Failure, State};

/// A desk without backends.
fn down(max_wait: Duration) -> Desk {
    let mut desk = Desk::new(setup(), 0);
    (desk.setup.rules.size, desk.setup.rules.max_wait) = (2, max_wait);
    desk.book.reconfigure(&desk.setup.config(), desk.now, &mut desk.actions);
    desk
}

/// Fails every dial as soon as it goes out, until none will for so long.
fn fail_until_open(desk: &mut Desk, least: Duration) -> Duration {
    loop {
        let dials = desk.take().into_iter().filter_map(|action| match action {
            Action::Dial { pool, .. } => Some(pool),
            _ => None,
        });
        for pool in dials.collect::<Vec<_>>() {
            desk.dialled(pool, Err("refused"));
        }
        let opens = desk.book.view(desk.now).upstreams[0].opens;
        if let Some(opens) = opens.filter(|opens| *opens > least) {
            return opens;
        }
        desk.now = desk.book.due().expect("a dial to come").max(desk.now + MS);
        desk.tick(None);
    }
}

fn state(desk: &Desk) -> State {
    desk.book.view(desk.now).upstreams[0].state
}

#[test]
fn while_a_breaker_is_open_waiters_wait_and_newcomers_whom_it_outlasts_are_told_at_once() {
    let mut desk = down(60 * S);
    let waiters = [desk.queued("a"), desk.queued("b")];
    let opens = fail_until_open(&mut desk, 4 * S);
    assert_eq!(desk.row().waiting, 2, "those who wait do");

    let within = |deadline_ms| Tag { deadline_ms: Some(deadline_ms), ..of("c", None) };
    let refusal = desk.refused(within(1_000));
    let Refusal::Unavailable { opens: told, own, error, standing } = refusal else { panic!("{refusal:?}") };
    assert_eq!((told, own, error.as_deref()), (opens, false, Some("refused")));
    assert!(standing.retry > opens && standing.retry <= opens + S);
    desk.queued_for(within(20_000));
    let claim = Claim { within: Some(S), ..desk.claim(of("c", None)) };
    let answer = desk.book.checkout(desk.now, &claim, |id| id, &mut desk.warnings, &mut desk.actions);
    assert!(matches!(answer, Checkout::Refused(Refusal::Unavailable { own: false, .. })), "{answer:?}");
    let queue = desk.book.view(desk.now);
    assert!(queue.waiters.iter().all(|waiter| waiter.reason == "breaker"), "{:?}", queue.waiters);

    desk.pass(opens);
    desk.tick(None);
    assert!(matches!(desk.take()[..], [Action::Dial { .. }]), "one dial decides");
    assert_eq!(state(&desk), State::HalfOpen);
    desk.dialled(desk.pool, Ok(1));
    assert_eq!(state(&desk), State::Closed);
    match &desk.take()[..] {
        [Action::Grant { waiter, .. }, Action::Dial { .. }] => assert_eq!(*waiter, waiters[0]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_breaker_serves_all_pools_of_a_server_and_no_pool_of_another() {
    let mut desk = down(60 * S);
    let (rules, now) = (desk.setup.rules.clone(), desk.now);
    let mut pool =
        |database, upstream| desk.book.pool(database, "web", upstream, &rules, now, &mut desk.actions);
    let (beside, elsewhere) = (pool("beside", "db:5432"), pool("elsewhere", "other:5432"));
    desk.queued("a");
    fail_until_open(&mut desk, S);
    let first = std::mem::replace(&mut desk.pool, beside);
    desk.queued("a");
    assert!(desk.take().is_empty(), "its server is not dialled");
    desk.pool = elsewhere;
    desk.queued("a");
    assert!(matches!(desk.take()[..], [Action::Dial { pool, .. }] if pool == elsewhere));
    desk.pool = first;
    let names: Vec<_> = desk.book.view(desk.now).upstreams.iter().map(|row| row.name.to_string()).collect();
    assert_eq!(names, ["db:5432", "other:5432"]);
}

#[test]
fn a_role_that_is_refused_twice_is_not_tried_again_and_others_are_not_concerned() {
    let mut desk = down(3 * S);
    let refused = || Err(DialFailure { kind: Failure::Refused, error: "28P01".into() });
    let other = desk.book.pool("other", "web", "db:5432", &desk.setup.rules, desk.now, &mut desk.actions);
    desk.queued("a");
    for _ in 0..2 {
        while !desk.actions.iter().any(|action| matches!(action, Action::Dial { .. })) {
            desk.now = desk.book.due().expect("a dial to come");
            desk.tick(None);
        }
        desk.take();
        desk.book.dialled(desk.now, desk.pool, refused(), &mut desk.actions);
    }
    let refusal = desk.refused(of("b", None));
    assert!(matches!(refusal, Refusal::Unavailable { own: true, .. }), "{refusal:?}");
    assert_eq!(state(&desk), State::Closed);
    let first = std::mem::replace(&mut desk.pool, other);
    desk.take();
    desk.queued("a");
    assert!(matches!(desk.take()[..], [Action::Dial { pool, .. }] if pool == other));
    desk.pool = first;
    desk.book.reconfigure(&desk.setup.config(), desk.now, &mut desk.actions);
    let dials =
        |action: &Action<u32, WaiterId>| matches!(action, Action::Dial { pool, .. } if *pool == first);
    assert!(desk.take().iter().any(dials), "a reload tries at once");
}

#[test]
fn backends_that_break_call_for_one_dial_before_others() {
    let mut desk = down(60 * S);
    for _ in 0..3 {
        desk.book.broke(desk.now, desk.pool, &mut desk.actions);
    }
    assert_eq!(state(&desk), State::HalfOpen);
    desk.queued("a");
    desk.queued("b");
    assert!(matches!(desk.take()[..], [Action::Dial { .. }]), "one, though two wait and two may");
}
