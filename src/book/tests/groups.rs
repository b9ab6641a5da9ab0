//! Rules of the book: who goes on with a request, and on which backend.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A pool of one backend, which a request `old` of tenant `a` has just given back and somebody else holds.
fn desk(setup: Setup) -> (Desk, LeaseId) {
    let mut desk = Desk::new(setup, 1);
    let old = desk.lease_for(of("a", Some("old")));
    desk.pass(MS);
    desk.checkin(old, Some(0));
    let held = desk.lease("c");
    desk.take();
    (desk, held)
}

/// The waiters in the order in which they get the backend, each for a millisecond.
fn served(desk: &mut Desk, mut held: LeaseId) -> Vec<WaiterId> {
    let mut order = Vec::new();
    loop {
        desk.pass(MS);
        desk.checkin(held, Some(0));
        let grant = desk.take().into_iter().find_map(|action| match action {
            Action::Grant { waiter, lease, .. } => Some((waiter, lease)),
            _ => None,
        });
        let Some((waiter, lease)) = grant else { return order };
        order.push(waiter);
        held = lease;
    }
}

#[test]
fn who_goes_on_comes_before_who_begins_and_not_before_another_tenant() {
    let (mut desk, held) = desk(setup());
    let begins = desk.queued_for(of("a", Some("new")));
    let other = desk.queued_for(of("b", Some("new too")));
    let untagged = desk.queued("a");
    desk.pass(98 * MS);
    let goes_on = [desk.queued_for(of("a", Some("old"))), desk.queued_for(of("a", Some("old")))];
    let rows = desk.book.view(desk.now).waiters;
    let shown: Vec<_> = rows.iter().map(|row| (row.tag.request.as_deref(), row.continues)).collect();
    let [one, two, new, too, none] = shown[..] else { panic!("{shown:?}") };
    assert_eq!([one, two], [(Some("old"), true); 2]);
    assert_eq!([new, too, none], [(Some("new"), false), (Some("new too"), false), (None, false)]);
    // The other tenant has had nothing yet: its turn comes first, whoever waits here.
    assert_eq!(served(&mut desk, held), [other, goes_on[0], goes_on[1], begins, untagged]);
}

#[test]
fn after_a_while_or_its_end_or_beyond_its_budgets_a_request_stands_where_it_came() {
    type Case = (&'static str, fn(&mut Setup), fn(&mut Desk));
    let cases: [Case; 5] = [
        ("too late", |_| {}, |desk| desk.pass(101 * MS)),
        ("over", |_| {}, |desk| desk.book.request_ended("old", desk.now)),
        ("B2 warns", |setup| setup.budget.leases_warn = Some(1), |_| {}),
        ("B2 refuses", |setup| setup.budget.leases_reject = Some(1), |_| {}),
        ("B3", |setup| setup.budget.db_time.warn = Some(Duration::ZERO), |_| {}),
    ];
    for (why, with, spoil) in cases {
        let mut setup = setup();
        with(&mut setup);
        let (mut desk, held) = desk(setup);
        let begins = desk.queued_for(of("a", Some("new")));
        spoil(&mut desk);
        let late = desk.queued_for(of("a", Some("old")));
        assert_eq!(served(&mut desk, held), [begins, late], "{why}");
    }
}

#[test]
fn one_id_for_everything_is_put_ahead_a_hundred_times_at_most() {
    let mut desk = Desk::new(setup(), 1);
    for _ in 0..100 {
        let lease = desk.lease_for(of("a", Some("all")));
        desk.checkin(lease, Some(0));
    }
    let held = desk.lease("c");
    let begins = desk.queued_for(of("a", Some("new")));
    let all = desk.queued_for(of("a", Some("all")));
    desk.take();
    assert_eq!(served(&mut desk, held), [begins, all]);
}

#[test]
fn a_lane_of_its_own_does_not_put_a_new_request_ahead() {
    // Requests that may nest stand in another lane than those that may not.
    let (mut desk, held) = desk(setup());
    let begins = desk.queued_for(of("a", Some("new")));
    let nests = desk.queued_for(Tag { max_concurrent: Some(2), ..of("a", Some("old")) });
    let (then, last) = (desk.queued("a"), desk.queued("a"));
    assert_eq!(served(&mut desk, held), [nests, begins, then, last]);
}

#[test]
fn a_group_prefers_its_last_backend_and_each_tenant_has_a_group_of_its_own() {
    let mut desk = Desk::new(setup(), 3);
    let give_back = |desk: &mut Desk, lease, backend| {
        let usage = Usage { backend, ..Usage::default() };
        let idle = desk.book.checkin(desk.now, lease, Some(0), usage, None, &mut desk.actions);
        assert_eq!(idle, Some(0));
    };
    let prefers = |desk: &mut Desk, tenant: &str, request| {
        let lease = desk.lease_for(of(tenant, request));
        let preferred = desk.book.preferred(lease);
        give_back(desk, lease, preferred.unwrap_or(9));
        preferred
    };
    assert_eq!(prefers(&mut desk, "a", None), None);
    assert_eq!(prefers(&mut desk, "a", None), None, "untagged work has no group");
    let lease = desk.lease_for(of("a", Some("r")));
    assert_eq!(desk.book.preferred(lease), None, "its first");
    give_back(&mut desk, lease, 7);
    assert_eq!(prefers(&mut desk, "a", Some("r")), Some(7));
    assert_eq!(prefers(&mut desk, "b", Some("r")), None);
    assert_eq!(prefers(&mut desk, "b", Some("r")), Some(9));
    assert_eq!(prefers(&mut desk, "a", Some("r")), Some(7));
    for tenant in ["c", "d", "e"] {
        desk.pass(MS);
        assert_eq!(prefers(&mut desk, tenant, Some("r")), None);
    }
    assert_eq!(prefers(&mut desk, "b", Some("r")), Some(9));
    assert_eq!(prefers(&mut desk, "a", Some("r")), None, "four are remembered");
    desk.book.request_ended("r", desk.now);
    assert_eq!(prefers(&mut desk, "e", Some("r")), None, "another request of the same id");
}

/// Asks of (tenant, request), and services of so many milliseconds.
#[derive(Debug, Clone, Copy)]
enum Step {
    Ask(u8, u8),
    Serve(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3u8, 0..6u8).prop_map(|(tenant, request)| Step::Ask(tenant, request)),
        (1..40u8).prop_map(Step::Serve),
    ]
}

/// A pool of one backend that is always held, and who waits for it.
struct Line {
    desk: Desk,
    held: LeaseId,
    waiting: BTreeMap<WaiterId, (u8, u8)>,
}

impl Line {
    fn new() -> Line {
        let mut desk = Desk::new(setup(), 1);
        let held = desk.lease("first");
        Line { desk, held, waiting: BTreeMap::new() }
    }

    fn ask(&mut self, tenant: u8, request: u8) {
        let tag = of(&format!("t{tenant}"), Some(&format!("r{tenant}.{request}")));
        let waiter = self.desk.queued_for(tag);
        self.waiting.insert(waiter, (tenant, request));
    }

    /// The virtual time of a tenant.
    fn v(&self, tenant: u8) -> u64 {
        let book = &self.desk.book;
        let at = book.shares.find(self.desk.pool.0, &format!("t{tenant}")).expect("it waits, or has waited");
        book.shares[at].flows()[0].v
    }

    /// Gives the backend to whoever is next, after so long. Checks that of one tenant those who go on come
    /// first, and those who are alike in the order in which they came; and that no other tenant that waits
    /// has had less.
    fn serve(&mut self, ms: u8) {
        self.desk.pass(u32::from(ms) * MS);
        let continues: BTreeMap<WaiterId, bool> = self
            .waiting
            .keys()
            .map(|id| (*id, self.desk.book.waiters.get(id).is_some_and(turns::Waiter::continues)))
            .collect();
        self.desk.checkin(self.held, Some(0));
        let grant = self.desk.take().into_iter().find_map(|action| match action {
            Action::Grant { waiter, lease, .. } => Some((waiter, lease)),
            _ => None,
        });
        let Some((waiter, lease)) = grant else {
            assert!(self.waiting.is_empty(), "a backend is idle while somebody waits");
            self.held = self.desk.lease("first");
            return;
        };
        self.held = lease;
        let (tenant, _) = self.waiting.remove(&waiter).expect("it waited");
        let before = self.waiting.iter().filter(|(_, (other, _))| *other == tenant).map(|(id, _)| *id);
        for other in before {
            let ranks = [(!continues[&waiter], waiter), (!continues[&other], other)];
            assert!(ranks[0] < ranks[1], "{ranks:?}");
        }
        let had = self.v(tenant) - self.desk.book.leases[&lease].charged;
        for &(other, _) in self.waiting.values().filter(|(other, _)| *other != tenant) {
            assert!(self.v(other) >= had, "tenant {other} has had less than {tenant}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whoever goes on with what, the tenant that has had least is next, and everybody is served.
    #[test]
    fn continuations_take_nothing_from_other_tenants(steps in prop::collection::vec(step(), 1..200)) {
        let mut line = Line::new();
        for step in steps {
            match step {
                Step::Ask(tenant, request) => line.ask(tenant, request),
                Step::Serve(ms) => line.serve(ms),
            }
        }
        for _ in 0..line.waiting.len() {
            line.serve(1);
        }
        prop_assert!(line.waiting.is_empty());
    }
}
