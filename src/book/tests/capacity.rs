//! Rules of the book: who may open a backend, and where one goes that is free.

use super::*;

#[test]
fn a_busy_backend_goes_straight_to_the_next_waiter() {
    let mut desk = Desk::new(setup(), 1);
    let lease = desk.lease("a");
    let waiter = desk.queued("b");
    desk.pass(5 * MS);
    desk.checkin(lease, Some(0));
    match &desk.take()[..] {
        [Action::Grant { waiter: woken, backend: Some(0), .. }] => assert_eq!(*woken, waiter),
        other => panic!("{other:?}"),
    }
    assert_eq!(desk.row().waited, 5 * MS);
}

#[test]
fn dials_are_parallel_up_to_the_bound_and_serve_whoever_is_next() {
    let mut setup = setup();
    setup.rules.size = 10;
    setup.parallel = 2;
    let mut desk = Desk::new(setup.clone(), 0);
    desk.setup.rules.size = 10;
    desk.book.reconfigure(&desk.setup.config(), desk.now, &mut desk.actions);
    let waiters: Vec<WaiterId> = (0..5).map(|_| desk.queued("a")).collect();
    assert_eq!(desk.take().len(), 2, "two dials, though five wait");
    assert!(desk.book.cancel(desk.now, waiters[0], &mut desk.actions).is_some());
    desk.dialled(desk.pool, Ok(1));
    match &desk.take()[..] {
        [Action::Grant { waiter, .. }, Action::Dial { .. }] => assert_eq!(*waiter, waiters[1]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_failed_dial_fails_nobody_and_is_tried_again_later_and_later() {
    let mut desk = Desk::new(setup(), 0);
    desk.setup.rules.size = 2;
    desk.setup.rules.max_wait = 60 * S;
    desk.book.reconfigure(&desk.setup.config(), desk.now, &mut desk.actions);
    desk.queued("a");
    desk.queued("a");
    assert_eq!(desk.take().len(), 2);
    desk.dialled(desk.pool, Err("refused"));
    desk.dialled(desk.pool, Err("refused"));
    assert!(desk.take().is_empty(), "not at once");
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let failed = desk.now;
        let mut actions = desk.take();
        while actions.is_empty() {
            desk.now = desk.book.due().expect("a dial to come");
            desk.tick(None);
            actions = desk.take();
        }
        assert!(matches!(actions[..], [Action::Dial { .. }]), "one at a time");
        pauses.push((desk.now - failed).as_millis());
        desk.dialled(desk.pool, Err("refused"));
    }
    // After the fifth failure the breaker is open for 1 s, give or take a fifth, then twice as long.
    let spans = [180..=200, 360..=400, 720..=800, 800..=1200, 1600..=2400, 3200..=4800, 6400..=9600];
    for (pause, span) in pauses.iter().zip(spans) {
        assert!((span.start() - 10..=span.end() + 10).contains(pause), "{pauses:?}");
    }
    assert_eq!(desk.row().waiting, 2);
}

#[test]
fn min_idle_is_kept() {
    let mut setup = setup();
    setup.rules.size = 5;
    setup.rules.min_idle = 2;
    let now = Instant::now();
    let mut book: Book<u32, u32> = Book::new(&setup.config());
    let mut actions = Vec::new();
    let pool = book.pool("app", "web", "db:5432", &setup.rules, now, &mut actions);
    assert_eq!(actions.len(), 2);
    assert_eq!(book.pool("app", "web", "db:5432", &setup.rules, now, &mut actions), pool);
    actions.clear();
    book.dialled(now, pool, Ok(1), &mut actions);
    assert!(matches!(actions[..], [Action::Store { .. }]));
    actions.clear();
    book.idle_closed(now, pool, &mut actions);
    assert!(matches!(actions[..], [Action::Dial { .. }]));
}

#[test]
fn overflow_serves_waiters_and_goes_when_nobody_waits() {
    let mut setup = setup();
    setup.rules.overflow = 1;
    let mut desk = Desk::new(setup, 1);
    let first = desk.lease("a");
    desk.queued("a");
    assert!(matches!(desk.take()[..], [Action::Dial { .. }]));
    desk.dialled(desk.pool, Ok(7));
    desk.granted();
    desk.checkin(first, Some(0));
    assert!(matches!(desk.take()[..], [Action::Store { backend: 0, .. }, Action::Evict { .. }]));
    assert_eq!((desk.row().leased, desk.row().idle, desk.row().leaving), (1, 0, 1));
    desk.book.evicted(desk.now, desk.pool, &mut desk.actions);
    assert_eq!(desk.row().leaving, 0);
}

#[test]
fn overflow_is_for_a_time_and_then_rests_as_long() {
    let mut setup = setup();
    (setup.rules.overflow, setup.rules.overflow_time) = (1, Some(Duration::from_secs(5)));
    setup.rules.max_wait = Duration::from_secs(60);
    let mut desk = Desk::new(setup, 1);
    let first = desk.lease("a");
    desk.queued("a");
    assert!(matches!(desk.take()[..], [Action::Dial { .. }]));
    desk.dialled(desk.pool, Ok(7));
    let second = desk.granted();
    assert!(desk.book.due().is_some_and(|due| due <= desk.now + Duration::from_secs(5)));
    desk.pass(Duration::from_secs(5));
    desk.tick(None);
    assert!(desk.take().is_empty(), "what is held stays");
    desk.queued("a");
    desk.checkin(second, Some(7));
    assert!(
        matches!(desk.take()[..], [Action::Store { backend: 7, .. }, Action::Evict { .. }]),
        "back to size"
    );
    desk.book.evicted(desk.now, desk.pool, &mut desk.actions);
    assert!(desk.take().is_empty(), "it rests");
    desk.pass(Duration::from_secs(5));
    desk.tick(None);
    assert!(matches!(desk.take()[..], [Action::Dial { .. }]));
    desk.checkin(first, Some(0));
}

#[test]
fn room_is_made_for_a_waiter_of_another_pool() {
    let mut setup = setup();
    setup.max_backends = 1;
    let mut desk = Desk::new(setup, 1);
    let first = desk.pool;
    desk.pool = desk.book.pool("other", "web", "db:5432", &desk.setup.rules, desk.now, &mut desk.actions);
    desk.queued("a");
    match desk.take()[..] {
        [Action::Evict { pool }] => assert_eq!(pool, first),
        ref other => panic!("{other:?}"),
    }
    desk.book.evicted(desk.now, first, &mut desk.actions);
    assert!(matches!(desk.take()[..], [Action::Dial { pool, .. }] if pool == desk.pool));
}

#[test]
fn a_pool_with_nothing_does_not_starve_beside_a_busy_one() {
    let mut setup = setup();
    setup.max_backends = 1;
    let mut desk = Desk::new(setup, 1);
    let busy = desk.pool;
    let lease = desk.lease("a");
    desk.queued("a");
    desk.pool = desk.book.pool("other", "web", "db:5432", &desk.setup.rules, desk.now, &mut desk.actions);
    desk.queued("b");
    assert!(desk.take().is_empty());
    desk.checkin(lease, Some(0));
    assert!(matches!(desk.take()[..], [Action::Store { .. }, Action::Evict { pool }] if pool == busy));
    desk.book.evicted(desk.now, busy, &mut desk.actions);
    assert!(matches!(desk.take()[..], [Action::Dial { pool, .. }] if pool == desk.pool));
}

/// What comes back goes to a pool that has nothing, and whom its coming back made able takes what is idle.
#[test]
fn an_idle_backend_is_taken_when_the_one_that_came_back_goes_elsewhere() {
    let mut setup = setup();
    (setup.max_backends, setup.cap) = (3, 1);
    (setup.tenant.max, setup.tenant.mode) = (Share::Count(1), Mode::Enforce);
    let mut desk = Desk::new(setup, 2);
    let first = desk.pool;
    let other = desk.book.pool("other", "web", "other:5432", &desk.setup.rules, desk.now, &mut desk.actions);
    desk.pool = other;
    desk.queued("b");
    desk.dialled(other, Err("refused"));
    desk.pool = desk.book.pool("third", "web", "db:5432", &desk.setup.rules, desk.now, &mut desk.actions);
    desk.queued("c");
    desk.dialled(desk.pool, Ok(7));
    desk.granted();
    desk.pool = first;
    let lease = desk.lease("a");
    let capped = desk.queued("a");
    desk.take();
    desk.pass(Duration::from_secs(1));
    desk.checkin(lease, Some(0));
    let actions = desk.take();
    assert!(matches!(actions[..2], [Action::Store { .. }, Action::Evict { pool }] if pool == first));
    let granted =
        |action: &Action<u32, WaiterId>| matches!(action, Action::Grant { waiter, .. } if *waiter == capped);
    assert!(actions[2..].iter().any(granted), "{actions:?}");
}

#[test]
fn a_vanished_backend_puts_its_session_first() {
    let mut desk = Desk::new(setup(), 2);
    let (one, two) = (desk.lease("a"), desk.lease("a"));
    desk.queued("b");
    let claim = desk.claim(of("a", None));
    let answer = desk.book.idle_vanished(desk.now, one, &claim, |id| id, &mut desk.actions);
    let Checkout::Queued(first) = answer else { panic!("{answer:?}") };
    desk.take();
    desk.checkin(two, Some(0));
    assert!(matches!(desk.take()[..], [Action::Grant { waiter, .. }] if waiter == first));
    assert_eq!(desk.row().leases_total, 2 + 2, "two to warm up, and two that were served");
}

#[test]
fn pause_holds_everybody_and_resume_lets_them_go() {
    let mut desk = Desk::new(setup(), 2);
    let lease = desk.lease("a");
    desk.book.pause(Some("app"));
    desk.queued("b");
    desk.checkin(lease, Some(0));
    assert!(matches!(desk.take()[..], [Action::Store { .. }]));
    assert_eq!(desk.book.view(desk.now).waiters[0].reason, "paused");
    desk.book.resume(None, desk.now, &mut desk.actions);
    assert!(matches!(desk.take()[..], [Action::Grant { backend: None, .. }]));
}

#[test]
fn a_smaller_size_takes_effect_without_dropping_a_lease() {
    let mut desk = Desk::new(setup(), 3);
    let lease = desk.lease("a");
    desk.setup.rules.size = 1;
    desk.book.reconfigure(&desk.setup.config(), desk.now, &mut desk.actions);
    assert!(matches!(desk.take()[..], [Action::Evict { .. }, Action::Evict { .. }]));
    desk.checkin(lease, Some(0));
    desk.take();
    assert_eq!((desk.row().leased, desk.row().size), (0, 1));
}

#[test]
fn a_lease_whose_backend_has_to_go_still_lets_its_tenant_have_an_idle_one() {
    let mut desk = Desk::new(setup(), 3);
    desk.setup.reload(3, 100, 1, 1);
    desk.book.reconfigure(&desk.setup.config(), desk.now, &mut desk.actions);
    let lease = desk.lease("a");
    let waiter = desk.queued("a");
    desk.setup.max_backends = 2;
    desk.book.reconfigure(&desk.setup.config(), desk.now, &mut desk.actions);
    assert!(matches!(desk.take()[..], [Action::Evict { .. }]), "one of the two that are idle");
    // That one is not gone yet, so there is no room for the one that comes back.
    desk.checkin(lease, Some(0));
    match desk.take()[..] {
        [Action::Store { .. }, Action::Evict { .. }, Action::Grant { waiter: served, backend: None, .. }] => {
            assert_eq!(served, waiter);
        }
        ref other => panic!("{other:?}"),
    }
    assert_eq!((desk.row().leased, desk.row().idle, desk.row().leaving), (1, 0, 2));
}

#[test]
fn closing_refuses_waiters_and_newcomers_and_closes_what_comes_back() {
    let mut desk = Desk::new(setup(), 1);
    let lease = desk.lease("a");
    let waiter = desk.queued("b");
    desk.book.close(&mut desk.actions);
    assert_eq!(desk.refusals(), [(waiter, Refusal::Closing)]);
    assert_eq!(desk.refused(of("a", None)), Refusal::Closing);
    assert!(!desk.book.is_quiet());
    desk.checkin(lease, Some(0));
    assert!(matches!(desk.take()[..], [Action::Close { backend: 0, .. }]));
    assert!(desk.book.is_quiet());
    assert_eq!(desk.book.view(desk.now).rejections, [(desk.pool, "57P01", 2)]);
}
