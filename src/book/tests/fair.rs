//! Rules of the book: the bounds on who is overtaken by whom (budgets.md §3.3).

use super::*;
use proptest::prelude::*;

/// A pool of one backend, which goes from lease to lease; each is held so long.
struct Line {
    desk: Desk,
    lease: LeaseId,
}

impl Line {
    fn new(setup: Setup) -> Self {
        let mut desk = Desk::new(setup, 1);
        let lease = desk.lease("first");
        Line { desk, lease }
    }

    /// The lease ends, and somebody else has the backend.
    fn next(&mut self, held: Duration) -> WaiterId {
        self.desk.pass(held);
        self.desk.checkin(self.lease, Some(0));
        let Some(Action::Grant { waiter, lease, .. }) = self.desk.take().pop() else { panic!("no grant") };
        self.lease = lease;
        waiter
    }

    fn of_class(&mut self, tenant: &str, class: &str) -> WaiterId {
        self.desk.queued_for(Tag { class: Some(class.into()), ..of(tenant, None) })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// A tenant that begins to wait is overtaken at most once by each other one, whatever these had
    /// before and however many wait, if leases cost the same.
    #[test]
    fn who_begins_to_wait_is_overtaken_at_most_once_by_each(
        waiters in prop::collection::vec(1..12usize, 1..10),
        before in 0..30usize,
    ) {
        let mut line = Line::new(setup());
        let mut tenant = std::collections::BTreeMap::new();
        for (at, &count) in waiters.iter().enumerate() {
            for _ in 0..count {
                let name = format!("t{at}");
                tenant.insert(line.desk.queued(&name), at);
            }
        }
        let total: usize = waiters.iter().sum();
        for _ in 0..before.min(total - 1) {
            line.next(20 * MS);
        }
        let newcomer = line.desk.queued("newcomer");
        let mut overtaken = vec![0; waiters.len()];
        loop {
            let served = line.next(20 * MS);
            if served == newcomer {
                break;
            }
            overtaken[tenant[&served]] += 1;
        }
        prop_assert!(overtaken.iter().all(|&times| times <= 1), "{overtaken:?}");
    }

    /// Of tenants that always wait each gets backend-seconds by its weight, whatever its leases cost,
    /// but for a few leases.
    #[test]
    fn backend_seconds_are_shared_by_weight(kinds in prop::collection::vec((1..5u32, 1..60u32), 2..5)) {
        let mut config = setup().config();
        for (at, &(weight, _)) in kinds.iter().enumerate() {
            config.tenants.insert(format!("t{at}"), TenantRule { weight, ..setup().tenant });
        }
        let mut line = Line::new(setup());
        let mut actions = Vec::new();
        line.desk.book.reconfigure(&config, line.desk.now, &mut actions);
        let mut of_waiter = std::collections::BTreeMap::new();
        for at in 0..kinds.len() {
            for _ in 0..2 {
                of_waiter.insert(line.desk.queued(&format!("t{at}")), at);
            }
        }
        let (mut had, mut held) = (vec![0.0; kinds.len()], Duration::ZERO);
        for _ in 0..2_000 {
            let at = of_waiter[&line.next(held)];
            held = Duration::from_millis(kinds[at].1.into());
            had[at] += held.as_secs_f64() / f64::from(kinds[at].0);
            of_waiter.insert(line.desk.queued(&format!("t{at}")), at);
        }
        let (least, most) = had.iter().fold((f64::MAX, 0.0_f64), |(a, b), &x| (a.min(x), b.max(x)));
        // Start-time fair queueing on one server: the cost of a lease of each, by weight, is the most
        // that two can be apart; here two, as the first was charged a guess.
        prop_assert!(most - least <= 0.25, "{had:?}");
    }
}

#[test]
fn a_tenant_below_its_minimum_goes_before_all_shares() {
    let mut config = setup().config();
    config.tenants.insert("vip".into(), TenantRule { min: 1, ..setup().tenant });
    let mut line = Line::new(setup());
    line.desk.book.reconfigure(&config, line.desk.now, &mut Vec::new());
    // It has had much more than the others, which wait for longer.
    let vip = line.desk.queued("vip");
    assert_eq!(line.next(MS), vip);
    line.desk.queued("a");
    line.desk.queued("b");
    let again = line.desk.queued("vip");
    assert_eq!(line.next(900 * MS), again);
}

#[test]
fn a_class_waits_behind_higher_ones_but_for_one_turn_in_twenty() {
    let mut line = Line::new(setup());
    let batch: Vec<WaiterId> = (0..20).map(|_| line.of_class("b", "batch")).collect();
    let normal: Vec<WaiterId> = (0..150).map(|_| line.desk.queued("n")).collect();
    let critical = line.of_class("c", "critical");
    assert_eq!(line.next(MS), critical);
    let served: Vec<WaiterId> = (0..100).map(|_| line.next(MS)).collect();
    let turns: Vec<usize> = (0..100).filter(|&at| batch.contains(&served[at])).collect();
    assert_eq!(turns, [17, 37, 57, 77, 97], "every twentieth of the pool");
    assert!(served.iter().all(|waiter| batch.contains(waiter) || normal.contains(waiter)));
}

#[test]
fn a_reserve_is_left_alone_and_its_class_waits_only_for_itself() {
    let mut setup = setup();
    setup.rules.size = 3;
    let mut desk = Desk::new(setup.clone(), 3);
    let mut config = desk.setup.config();
    let billing = ClassRule { reserve: Reserve::Of(Share::Count(1)), ..ClassRule::default() };
    config.classes.insert("billing".into(), billing);
    desk.book.reconfigure(&config, desk.now, &mut desk.actions);
    let bill = || Tag { class: Some("billing".into()), ..of("pays", None) };
    let held = [desk.lease("a"), desk.lease("b")];
    let waiter = desk.queued("c");
    assert_eq!(desk.book.view(desk.now).waiters[0].reason, "reserve");
    let first = desk.lease_for(bill());
    // Its reserve is in use: now it is one of those that wait, by its priority.
    let second = desk.queued_for(bill());
    desk.checkin(held[0], Some(0));
    assert!(matches!(desk.take()[..], [Action::Grant { waiter, .. }] if waiter == second));
    desk.checkin(first, Some(0));
    assert!(matches!(desk.take()[..], [Action::Grant { waiter: woken, .. }] if woken == waiter));
}

#[test]
fn who_holds_a_lease_goes_first_the_oldest_request_before_younger_ones() {
    let mut setup = setup();
    setup.budget.max_concurrent = 2;
    setup.budget.max_concurrent_mode = Mode::Warn;
    let mut desk = Desk::new(setup, 3);
    let old = desk.lease_for(of("a", Some("old")));
    desk.pass(MS);
    let young = desk.lease_for(of("a", Some("young")));
    let other = desk.lease("b");
    let early = desk.queued("c");
    let of_young = desk.queued_for(of("a", Some("young")));
    let of_old = desk.queued_for(of("a", Some("old")));
    desk.checkin(other, Some(0));
    let Some(Action::Grant { waiter, lease, .. }) = desk.take().pop() else { panic!() };
    assert_eq!(waiter, of_old);
    desk.checkin(lease, Some(0));
    assert!(matches!(desk.take()[..], [Action::Grant { waiter, .. }] if waiter == of_young));
    desk.checkin(old, Some(0));
    assert!(matches!(desk.take()[..], [Action::Grant { waiter, .. }] if waiter == early));
    desk.checkin(young, Some(0));
}

#[test]
fn the_last_slots_are_not_given_to_requests_that_could_wait_for_one_another() {
    let mut setup = setup();
    setup.budget.max_concurrent = 2;
    setup.budget.max_concurrent_mode = Mode::Enforce;
    let mut desk = Desk::new(setup, 2);
    let outer = desk.lease_for(of("a", Some("one")));
    let second = desk.queued_for(of("a", Some("two")));
    assert_eq!(desk.book.view(desk.now).waiters[0].reason, "unsafe");
    let untagged = desk.lease("b");
    desk.checkin(untagged, Some(0));
    assert_eq!(desk.row().deferred, 1);
    assert!(desk.take().iter().all(|action| !matches!(action, Action::Grant { .. })));
    // Nesting goes on beside it, and when the first request is done it is served.
    let inner = desk.lease_for(of("a", Some("one")));
    desk.checkin(inner, Some(0));
    desk.take();
    desk.checkin(outer, Some(0));
    assert!(matches!(desk.take()[..], [Action::Grant { waiter, .. }, ..] if waiter == second));
}

#[test]
fn an_unknown_class_is_normal_and_counted() {
    let mut line = Line::new(setup());
    line.of_class("a", "bilinig");
    let view = line.desk.book.view(line.desk.now);
    assert_eq!((&*view.waiters[0].class, view.unknown_classes), ("normal", 1));
}

#[test]
fn a_class_is_recognised_by_its_first_statement_and_has_its_own_wait() {
    let mut desk = Desk::new(setup(), 1);
    let mut config = desk.setup.config();
    let rule = ClassMatch::FirstStatement(Pattern::new("^insert into llm_requests").unwrap());
    let billing = ClassRule { max_wait: Some(500 * MS), matches: vec![rule], ..ClassRule::default() };
    config.classes.insert("billing".into(), billing);
    desk.book.reconfigure(&config, desk.now, &mut desk.actions);
    desk.lease("a");
    let statement = Some("insert into llm_requests values ($1)".into());
    let claim = Claim { statement, ..desk.claim(of("a", None)) };
    let answer = desk.book.checkout(desk.now, &claim, |id| id, &mut desk.warnings, &mut desk.actions);
    assert!(matches!(answer, Checkout::Queued(_)));
    let waiter = &desk.book.view(desk.now).waiters[0];
    assert_eq!((&*waiter.class, waiter.deadline), ("billing", desk.now + 500 * MS));
}
