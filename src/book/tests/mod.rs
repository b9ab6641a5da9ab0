//! Rules of the book, one by one; here the desk they are tried at. `model.rs` holds all of them at
//! once to a twin.

mod bounds;
mod budgets;
mod capacity;
mod fair;
mod groups;
mod leaks;
mod lognormal;
mod order;
mod overload;
mod parking;
mod requests;
mod simulate;
mod statements;
mod trees;
mod upstreams;

use super::*;
use crate::config::*;
use crate::tag::Tag;

/// A configuration for tests, with what the model varies.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) rules: PoolRules,
    pub(super) max_backends: usize,
    pub(super) parallel: usize,
    /// B4, enforced.
    pub(super) cap: u32,
    /// B1, enforced.
    pub(super) k: u32,
    pub(super) budget: Budgets,
    pub(super) tenant: TenantRule,
    pub(super) leak: Leak,
    pub(super) request: Requests,
    /// Highest values so far: what a reload leaves behind may still be there.
    pub(super) most_ever: usize,
    pub(super) max_ever: usize,
    pub(super) parallel_ever: usize,
    pub(super) k_ever: u32,
}

impl Setup {
    pub(super) fn reload(&mut self, size: usize, max: usize, cap: u32, k: u32) {
        self.rules.size = size;
        (self.max_backends, self.cap, self.k) = (max, cap, k);
        self.most_ever = self.most_ever.max(size + self.rules.overflow);
        self.max_ever = self.max_ever.max(max);
        self.k_ever = self.k_ever.max(k);
        self.budget.max_concurrent = k;
        self.budget.max_concurrent_mode = Mode::Enforce;
        self.tenant.max = Share::Count(cap);
        self.tenant.mode = Mode::Enforce;
    }

    pub(super) fn config(&self) -> Config {
        Config {
            pool: self.rules.clone(),
            any_database: Some(Arc::new(Database { pool: self.rules.clone(), ..Database::default() })),
            server: Server { max_backends: self.max_backends, connect_parallel: self.parallel },
            budget: self.budget.clone(),
            tenant_default: self.tenant.clone(),
            leak: self.leak.clone(),
            request: self.request,
            ..Config::default()
        }
    }
}

/// No budget of time.
const UNLIMITED: Timed = Timed { warn: None, abort: None, mode: Mode::Observe, force: false };

/// One backend, no budget that acts.
pub(super) fn setup() -> Setup {
    Setup {
        rules: PoolRules { size: 1, queue: 1000, idle_timeout: None, lifetime: None, ..PoolRules::default() },
        max_backends: 100,
        parallel: 4,
        cap: u32::MAX,
        k: u32::MAX,
        budget: Budgets {
            max_concurrent: 3,
            max_concurrent_mode: Mode::Observe,
            leases_warn: None,
            leases_reject: None,
            leases_mode: Mode::Observe,
            max_wait: None,
            db_time: UNLIMITED,
            age: UNLIMITED,
            idle: UNLIMITED,
            idle_abort_alone: None,
            idle_warn_only_if_waiters: true,
            statement: UNLIMITED,
            stall: UNLIMITED,
            parking: Budgets::default().parking,
        },
        tenant: TenantRule {
            max: Share::Percent(100.0),
            min: 0,
            weight: 1,
            queue: 1000,
            max_pins: 1000,
            max_sessions: 1000,
            mode: Mode::Observe,
            users: Vec::new(),
        },
        leak: Leak { hold: None, idle: None, leaked: None, pinned: None, ..Leak::default() },
        request: Requests::default(),
        most_ever: 0,
        max_ever: 0,
        parallel_ever: 0,
        k_ever: 0,
    }
}

/// A book with a clock, and shorthand for what tests do with it.
struct Desk {
    book: Book<u32, WaiterId>,
    setup: Setup,
    now: Instant,
    pool: PoolId,
    actions: Vec<Action<u32, WaiterId>>,
    warnings: Vec<Warning>,
    sessions: u64,
}

impl Desk {
    /// With `size` idle backends.
    fn new(mut setup: Setup, size: usize) -> Self {
        setup.rules.size = size;
        let now = Instant::now();
        let mut book = Book::new(&setup.config());
        let mut actions = Vec::new();
        let pool = book.pool("app", "web", "db:5432", &setup.rules, now, &mut actions);
        assert!(actions.is_empty());
        let mut desk = Desk { book, setup, now, pool, actions, warnings: Vec::new(), sessions: 0 };
        let first: Vec<WaiterId> = (0..size).map(|at| desk.queued(&format!("warm{at}"))).collect();
        let mut leases = Vec::new();
        while leases.len() < first.len() {
            let dials = desk.take().iter().filter(|action| matches!(action, Action::Dial { .. })).count();
            for _ in 0..dials {
                desk.dialled(desk.pool, Ok(leases.len() as u32));
                leases.push(desk.granted());
            }
        }
        for (backend, lease) in leases.into_iter().enumerate() {
            desk.checkin(lease, Some(backend as u32));
        }
        desk.take();
        desk
    }

    /// What is to be done; what is only to be logged is left out.
    fn take(&mut self) -> Vec<Action<u32, WaiterId>> {
        let actions = std::mem::take(&mut self.actions);
        actions
            .into_iter()
            .filter(|action| !matches!(action, Action::Violation(_) | Action::Breaker(_)))
            .collect()
    }

    fn claim(&mut self, tag: Tag) -> Claim {
        self.sessions += 1;
        Claim {
            session: SessionId(self.sessions),
            pool: self.pool,
            tag: Arc::new(tag),
            login: false,
            within: None,
            resumes: None,
            fingerprint: 0,
            statement: None,
        }
    }

    fn ask(&mut self, tag: Tag) -> Checkout {
        let claim = self.claim(tag);
        self.book.checkout(self.now, &claim, |id| id, &mut self.warnings, &mut self.actions)
    }

    fn lease(&mut self, tenant: &str) -> LeaseId {
        self.lease_for(of(tenant, None))
    }

    fn lease_for(&mut self, tag: Tag) -> LeaseId {
        match self.ask(tag) {
            Checkout::Idle(lease) => lease,
            other => panic!("not leased: {other:?}"),
        }
    }

    fn queued(&mut self, tenant: &str) -> WaiterId {
        self.queued_for(of(tenant, None))
    }

    fn queued_for(&mut self, tag: Tag) -> WaiterId {
        match self.ask(tag) {
            Checkout::Queued(id) => id,
            other => panic!("not queued: {other:?}"),
        }
    }

    fn refused(&mut self, tag: Tag) -> Refusal {
        match self.ask(tag) {
            Checkout::Refused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn checkin(&mut self, lease: LeaseId, backend: Option<u32>) {
        self.checkin_as(lease, backend, None);
    }

    /// What comes back idle is stored before anything else is done.
    fn checkin_as(&mut self, lease: LeaseId, backend: Option<u32>, hint: Option<Outcome>) {
        let pool = self.book.leases.get(&lease).map(|lease| lease.pool);
        let mut actions = Vec::new();
        let idle = self.book.checkin(self.now, lease, backend, Usage::default(), hint, &mut actions);
        let stored = pool.zip(idle).map(|(pool, backend)| Action::Store { pool, backend });
        self.actions.extend(stored.into_iter().chain(actions));
    }

    fn dialled(&mut self, pool: PoolId, result: Result<u32, &str>) {
        let kind = crate::breaker::Failure::Unreachable;
        let result = result.map_err(|error| DialFailure { kind, error: error.into() });
        self.book.dialled(self.now, pool, result, &mut self.actions);
    }

    /// The lease of the one grant among the actions so far.
    fn granted(&mut self) -> LeaseId {
        let at = self.actions.iter().position(|action| matches!(action, Action::Grant { .. }));
        match self.actions.remove(at.expect("a grant")) {
            Action::Grant { lease, .. } => lease,
            other => panic!("{other:?}"),
        }
    }

    fn refusals(&mut self) -> Vec<(WaiterId, Refusal)> {
        let refusals = self.take().into_iter().filter_map(|action| match action {
            Action::Refuse { waiter, refusal } => Some((waiter, refusal)),
            _ => None,
        });
        refusals.collect()
    }

    fn pass(&mut self, duration: Duration) {
        self.now += duration;
    }

    /// A tick at which every lease does the same.
    fn tick(&mut self, activity: Option<Activity>) -> Option<Instant> {
        self.book.tick(self.now, &mut |_, _| activity, &mut self.actions)
    }

    fn count(&self, dim: &str, outcome: &str) -> u64 {
        let view = self.book.view(self.now);
        view.budgets.iter().find(|row| row.0 == dim && row.1 == outcome).expect("a cell").2
    }

    fn row(&self) -> view::PoolView {
        self.book.view(self.now).pools.swap_remove(self.pool.0 as usize)
    }
}

fn of(tenant: &str, request: Option<&str>) -> Tag {
    Tag { tenant: tenant.into(), request: request.map(Arc::from), ..Tag::default() }
}

fn idle_in_tx(since: Instant) -> Option<Activity> {
    Some(Activity { tx_start: Some(since), ..Activity::doing(Doing::IdleInTx, since) })
}

fn working(since: Instant, tx_start: Option<Instant>) -> Option<Activity> {
    Some(Activity { tx_start, ..Activity::doing(Doing::Active, since) })
}

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
