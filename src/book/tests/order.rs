//! Rules of the book: who waits, for how long, and who is next.

use super::*;

#[test]
fn one_tenants_burst_does_not_starve_another() {
    let mut desk = Desk::new(setup(), 1);
    let mut lease = desk.lease("greedy");
    let burst: Vec<WaiterId> = (0..200).map(|_| desk.queued("greedy")).collect();
    let quiet = desk.queued("quiet");
    let mut order = Vec::new();
    for _ in 0..4 {
        desk.pass(5 * MS);
        desk.checkin(lease, Some(0));
        let Some(Action::Grant { waiter, lease: next, .. }) = desk.take().pop() else { panic!() };
        order.push(waiter);
        lease = next;
    }
    assert_eq!(order, [quiet, burst[0], burst[1], burst[2]]);
}

#[test]
fn a_tenant_at_its_cap_is_passed_over() {
    let mut setup = setup();
    setup.tenant.max = Share::Count(1);
    setup.tenant.mode = Mode::Enforce;
    let mut desk = Desk::new(setup, 2);
    let lease = desk.lease("a");
    let waiter = desk.queued("a");
    assert_eq!(desk.book.view(desk.now).waiters[0].reason, "tenant_cap");
    assert!(desk.take().is_empty(), "and nothing is dialled for it");
    desk.lease("b");
    desk.checkin(lease, Some(0));
    assert!(matches!(desk.take()[..], [Action::Grant { waiter: woken, .. }] if woken == waiter));
    assert_eq!(desk.count("B4", "queue"), 1);
}

#[test]
fn nested_sessions_beyond_the_budget_are_refused_only_when_stuck() {
    let mut setup = setup();
    setup.budget.max_concurrent = 2;
    setup.budget.max_concurrent_mode = Mode::Enforce;
    let mut desk = Desk::new(setup, 5);
    let start = desk.now;
    let (one, _two) = (desk.lease_for(of("a", Some("r"))), desk.lease_for(of("a", Some("r"))));
    let third = desk.queued_for(of("a", Some("r")));
    desk.pass(60 * MS);
    desk.tick(working(start, None));
    assert!(desk.refusals().is_empty(), "its leases make progress");
    assert_eq!(desk.book.view(desk.now).waiters[0].reason, "request_cap");

    desk.checkin(one, Some(0));
    desk.granted();
    let fourth = desk.queued_for(of("a", Some("r")));
    assert!(third < fourth);
    desk.pass(49 * MS);
    desk.tick(idle_in_tx(start));
    assert!(desk.refusals().is_empty(), "it has not waited long enough to tell");
    desk.pass(MS);
    desk.tick(idle_in_tx(start));
    let refusals = desk.refusals();
    let [(waiter, Refusal::NestsTooDeep { standing })] = &refusals[..] else { panic!("{refusals:?}") };
    assert_eq!((*waiter, standing.request_holds, standing.request_limit), (fourth, 2, 2));
    assert_eq!(desk.count("B1", "reject"), 1);
}

#[test]
fn queues_are_bounded_by_pool_always_and_by_tenant_when_enforced() {
    let mut setup = setup();
    setup.rules.queue = 3;
    setup.tenant.queue = 1;
    setup.tenant.mode = Mode::Enforce;
    let mut desk = Desk::new(setup, 1);
    desk.lease("a");
    desk.queued("a");
    let refusal = desk.refused(of("a", None));
    assert!(matches!(refusal, Refusal::TenantQueueFull { limit: 1, .. }), "{refusal:?}");
    desk.queued("b");
    desk.queued("c");
    let refusal = desk.refused(of("d", None));
    assert!(matches!(refusal, Refusal::QueueFull { limit: 3, .. }), "{refusal:?}");
    let view = desk.book.view(desk.now);
    assert_eq!(view.rejections, [(desk.pool, "53300", 1), (desk.pool, "53400", 1)]);
}

#[test]
fn a_wait_ends_at_its_deadline_the_clients_own_if_sooner() {
    let mut desk = Desk::new(setup(), 1);
    desk.lease("a");
    let patient = desk.queued("a");
    let hasty = desk.queued_for(Tag { deadline_ms: Some(20), ..of("b", None) });
    assert_eq!(desk.book.due(), Some(desk.now + 20 * MS));
    desk.pass(20 * MS);
    desk.tick(working(desk.now, None));
    let refusals = desk.refusals();
    let [(waiter, Refusal::WaitedTooLong { waited, dial_error: None, standing })] = &refusals[..] else {
        panic!("{refusals:?}")
    };
    assert_eq!((*waiter, *waited, standing.pool_holds, standing.tenant_waits), (hasty, 20 * MS, 1, 1));
    desk.pass(3 * S);
    desk.tick(None);
    assert_eq!(desk.refusals()[0].0, patient);
    assert_eq!(desk.row().timeouts, 2);
}

#[test]
fn a_wait_in_vain_names_the_dial_error_only_if_there_never_was_a_backend() {
    let mut desk = Desk::new(setup(), 0);
    desk.setup.rules.size = 1;
    desk.book.reconfigure(&desk.setup.config(), desk.now, &mut desk.actions);
    desk.queued("a");
    desk.dialled(desk.pool, Err("connection refused"));
    desk.pass(3 * S);
    desk.take();
    desk.tick(None);
    let refusals = desk.refusals();
    assert!(
        matches!(&refusals[..], [(_, Refusal::WaitedTooLong { dial_error: Some(error), .. })]
            if **error == *"connection refused"),
        "{refusals:?}"
    );
}

#[test]
fn a_cancelled_wait_is_over() {
    let mut desk = Desk::new(setup(), 1);
    let lease = desk.lease("a");
    let (one, two) = (desk.queued("a"), desk.queued("a"));
    assert_eq!(desk.book.cancel(desk.now, one, &mut desk.actions), Some(one));
    desk.checkin(lease, Some(0));
    assert!(matches!(desk.take()[..], [Action::Grant { waiter, .. }] if waiter == two));
    assert_eq!(desk.book.cancel(desk.now, two, &mut desk.actions), None, "granted already");
}
