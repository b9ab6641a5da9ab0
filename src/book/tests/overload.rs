//! Rules of the book under more load than there is room for (budgets.md §6.2): who is refused, who is
//! told to wait for how long, and how often Bursar tries again itself.

use super::*;

fn classed(class: &str) -> Tag {
    Tag { class: Some(class.into()), ..of(class, None) }
}

/// One backend, and leases held so long by now (and one that was back at once).
fn used_to(hold: Duration, leases: usize, setup: Setup) -> Desk {
    let mut desk = Desk::new(setup, 1);
    for _ in 0..leases {
        let lease = desk.lease("earlier");
        desk.pass(hold);
        desk.checkin(lease, Some(0));
    }
    desk.take();
    desk
}

#[test]
fn a_full_queue_sheds_the_lowest_class_and_its_newest_first() {
    let mut setup = setup();
    setup.rules.queue = 3;
    let mut desk = Desk::new(setup, 1);
    desk.lease("a");
    let [_, early, late] = ["normal", "batch", "batch"].map(|class| desk.queued_for(classed(class)));
    let shed = |desk: &mut Desk| {
        let refusals = desk.refusals();
        let [(waiter, Refusal::QueueFull { limit: 3, .. })] = refusals[..] else { panic!("{refusals:?}") };
        waiter
    };
    let untold = desk.queued("names no class");
    assert_eq!(shed(&mut desk), late);
    let critical = desk.queued_for(classed("critical"));
    assert_eq!(shed(&mut desk), early);
    desk.queued_for(classed("critical"));
    assert_eq!(shed(&mut desk), untold, "normal, and newer than the other");
    assert!(
        matches!(desk.refused(classed("normal")), Refusal::QueueFull { .. }),
        "of its own class it is newest"
    );
    desk.book.cancel(desk.now, critical, &mut desk.actions);
    desk.queued_for(classed("batch"));
    assert!(desk.refusals().is_empty(), "there is room");
    assert_eq!(desk.count("B15", "reject"), 4);
}

#[test]
fn the_queue_is_as_long_as_can_be_served_ten_times_over() {
    let mut setup = setup();
    setup.rules.max_wait = 3 * S;
    let mut desk = used_to(S, 70, setup);
    desk.lease("a");
    for number in 0..30 {
        desk.queued(&format!("t{number}"));
    }
    let refusal = desk.refused(of("one more", None));
    assert!(matches!(refusal, Refusal::QueueFull { limit: 30, .. }), "{refusal:?}");
}

#[test]
fn a_hint_says_when_the_queue_will_have_been_served() {
    let mut setup = setup();
    setup.rules.queue = 4;
    let mut desk = used_to(S, 3, setup.clone());
    desk.lease("a");
    for number in 0..4 {
        desk.queued(&format!("t{number}"));
    }
    let retry = |refusal: Refusal| match refusal {
        Refusal::QueueFull { standing, .. } => standing.retry,
        other => panic!("{other:?}"),
    };
    let hasty = || of("a", Some("r"));
    assert_eq!([0; 4].map(|_| retry(desk.refused(hasty()))), [3 * S, 3 * S, 6 * S, 6 * S], "a storm");
    assert_eq!(retry(desk.refused(of("a", Some("another")))), 3 * S);
    assert_eq!(desk.book.view(desk.now).retry_storms, 2);
    desk.pass(10 * S);
    assert_eq!(retry(desk.refused(hasty())), 3 * S, "it has passed");

    setup.rules.queue = 1;
    let mut desk = used_to(MS, 3, setup);
    desk.lease("a");
    desk.queued("b");
    assert_eq!(retry(desk.refused(hasty())), 50 * MS, "not less");
}

#[test]
fn who_cannot_make_its_deadline_is_told_at_once() {
    let mut desk = used_to(100 * MS, 70, setup());
    desk.lease("a");
    for _ in 0..10 {
        desk.queued("a");
    }
    let hasty = |tenant| Tag { deadline_ms: Some(500), ..of(tenant, None) };
    let refusal = desk.refused(hasty("a"));
    assert!(matches!(refusal, Refusal::WaitedTooLong { waited: Duration::ZERO, .. }), "{refusal:?}");
    desk.queued_for(hasty("b"));
    desk.queued("a");
}

#[test]
fn a_dial_after_a_failed_one_is_a_retry() {
    let mut setup = setup();
    setup.rules.max_wait = 100 * S;
    let mut desk = Desk::new(setup, 0);
    desk.setup.rules.size = 1;
    let config = desk.setup.config();
    desk.book.reconfigure(&config, desk.now, &mut desk.actions);
    desk.queued("a");
    desk.dialled(desk.pool, Err("refused"));
    assert_eq!(desk.count("B16", "ok"), 0);
    desk.pass(S);
    desk.tick(None);
    assert_eq!(desk.count("B16", "ok"), 1);
}
