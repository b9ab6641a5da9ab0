//! What a decision costs: a checkout and checkin with nobody else about, with and without budgets, and
//! the hand-off of a busy backend with ten thousand waiting.
//!
//! Integers stand for backends and waiters, so this is the book alone: no lock, no socket, no clock.

use bursar::book::{Action, Book, Checkout, Claim, LeaseId, PoolId, SessionId, Usage, WaiterId};
use bursar::config::*;
use bursar::tag::Tag;
use divan::{Bencher, black_box};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Shows that the first of the two allocates nothing.
#[global_allocator]
static ALLOC: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

/// What is accounted of a lease.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ledger {
    /// Slots only: no budget has a limit.
    Slots,
    /// Every budget has limits that act.
    Budgets,
    /// So it has, and the lease is a request's.
    BudgetsOfRequest,
}

struct Rig {
    book: Book<u32, WaiterId>,
    pool: PoolId,
    now: Instant,
    actions: Vec<Action<u32, WaiterId>>,
}

impl Rig {
    /// A pool with its backends idle.
    fn new(size: usize, ledger: Ledger) -> Self {
        let rules = rules(size);
        let now = Instant::now();
        let mut book = Book::new(&config(&rules, ledger));
        let mut actions = Vec::new();
        let pool = book.pool("app", "web", "db:5432", &rules, now, &mut actions);
        let mut backend = 0;
        while let Some(action) = actions.pop() {
            if let Action::Dial { pool, .. } = action {
                backend += 1;
                book.dialled(now, pool, Ok(backend), &mut actions);
            }
        }
        assert_eq!(book.view(now).pools[0].idle, size);
        Rig { book, pool, now, actions }
    }

    fn claim(&self, tenant: &str, request: Option<&str>) -> Claim {
        let tag = Tag { tenant: tenant.into(), request: request.map(Arc::from), ..Tag::default() };
        Claim {
            session: SessionId(1),
            pool: self.pool,
            tag: Arc::new(tag),
            login: false,
            within: None,
            resumes: None,
            fingerprint: 0,
            statement: None,
        }
    }

    fn checkout(&mut self, claim: &Claim) -> Checkout {
        self.book.checkout(self.now, claim, |id| id, &mut Vec::new(), &mut self.actions)
    }

    fn checkin(&mut self, lease: LeaseId) {
        self.now += Duration::from_micros(100);
        black_box(self.book.checkin(self.now, lease, Some(1), Usage::default(), None, &mut self.actions));
    }
}

/// A lease and its return with an idle backend and nobody waiting.
#[divan::bench(args = [Ledger::Slots, Ledger::Budgets, Ledger::BudgetsOfRequest], sample_size = 1_000)]
fn grant_and_return(bencher: Bencher<'_, '_>, ledger: Ledger) {
    let mut rig = Rig::new(20, ledger);
    let request = (ledger == Ledger::BudgetsOfRequest).then_some("4bf92f3577b34da6a3ce929d0e0e4736");
    let claim = rig.claim("acme", request);
    bencher.bench_local(|| {
        let Checkout::Idle(lease) = rig.checkout(black_box(&claim)) else { panic!("not idle") };
        rig.checkin(lease);
        rig.actions.clear();
    });
}

/// A busy backend goes from a lease to the next of some 10,000 waiters of so many tenants.
#[divan::bench(args = [1, 5_000], sample_size = 1_000)]
fn hand_off_among_10_000(bencher: Bencher<'_, '_>, tenants: usize) {
    let crowd = RefCell::new(Crowd::of(tenants));
    bencher
        .with_inputs(|| crowd.borrow_mut().another_waits())
        .bench_local_values(|()| crowd.borrow_mut().hand_off());
}

/// A waiter joins some 10,000 of so many tenants.
#[divan::bench(args = [1, 5_000], sample_size = 1_000)]
fn queue_behind_10_000(bencher: Bencher<'_, '_>, tenants: usize) {
    let crowd = RefCell::new(Crowd::of(tenants));
    bencher
        .with_inputs(|| crowd.borrow_mut().hand_off())
        .bench_local_values(|()| crowd.borrow_mut().another_waits());
}

/// A pool of twenty, all leased, and 10,000 waiters; each timed call comes with one of the other kind,
/// a thousand at a time, so that there are 9,000 to 11,000 of them.
struct Crowd {
    rig: Rig,
    claims: Vec<Claim>,
    next: usize,
    /// The lease that ends next.
    lease: LeaseId,
}

impl Crowd {
    fn of(tenants: usize) -> Self {
        let mut rig = Rig::new(20, Ledger::Budgets);
        let claims: Vec<Claim> =
            (0..10_000).map(|at| rig.claim(&format!("tenant {}", at % tenants), None)).collect();
        let first = rig.claim("first", None);
        let Checkout::Idle(lease) = rig.checkout(&first) else { panic!("not idle") };
        while let Checkout::Idle(_) = rig.checkout(&first) {}
        for claim in &claims {
            assert!(matches!(rig.checkout(claim), Checkout::Queued(_)));
        }
        rig.actions.clear();
        Crowd { rig, claims, next: 0, lease }
    }

    fn hand_off(&mut self) {
        self.rig.checkin(self.lease);
        let Some(Action::Grant { lease, .. }) = self.rig.actions.pop() else { panic!("no grant") };
        self.lease = lease;
    }

    fn another_waits(&mut self) {
        let claim = &self.claims[self.next % self.claims.len()];
        assert!(matches!(self.rig.checkout(claim), Checkout::Queued(_)));
        self.next += 1;
    }
}

fn rules(size: usize) -> PoolRules {
    PoolRules {
        size,
        min_idle: size,
        max_wait: Duration::from_secs(3600),
        queue: 20_000,
        idle_timeout: None,
        lifetime: None,
        ..PoolRules::default()
    }
}

fn config(rules: &PoolRules, ledger: Ledger) -> Config {
    let limited = ledger != Ledger::Slots;
    let mode = if limited { Mode::Enforce } else { Mode::Observe };
    let most = Duration::from_secs(60);
    let timed = Timed { warn: limited.then_some(most), abort: limited.then_some(most), mode, force: true };
    Config {
        any_database: Some(Arc::new(Database { pool: rules.clone(), ..Database::default() })),
        pool: rules.clone(),
        server: Server { max_backends: 100, connect_parallel: 4 },
        budget: Budgets {
            max_concurrent_mode: mode,
            leases_warn: None,
            leases_reject: limited.then_some(u32::MAX),
            leases_mode: mode,
            db_time: timed,
            age: timed,
            idle: timed,
            statement: timed,
            stall: timed,
            ..Budgets::default()
        },
        tenant_default: TenantRule {
            max: Share::Percent(100.0),
            queue: 20_000,
            mode,
            ..TenantRule::default()
        },
        leak: Leak { hold: limited.then_some(most), ..Config::default().leak },
        ..Config::default()
    }
}
