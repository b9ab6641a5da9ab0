//! The book against a naive twin: random programs of every call, with a toy pool that carries out
//! the actions late, out of turn, or with failures, as the real one may. After every call the twin,
//! which recomputes everything from scratch, is asked whether the book's promises hold.

use super::report::view::WaiterView;
use super::tests::{Setup, setup};
use super::*;
use crate::tag::Tag;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};

#[path = "tests/able.rs"]
mod able;

const POOLS: usize = 3;

#[derive(Debug, Clone)]
enum Op {
    Checkout { session: u8, pool: u8, tenant: u8, request: Option<u8>, login: bool },
    Checkin { pick: u8, gone: bool, hint: bool },
    Cancel { pick: u8 },
    Vanish { pick: u8 },
    IdleDies { pool: u8 },
    DialEnds { pick: u8, ok: bool },
    EvictEnds { pick: u8 },
    Lend { pool: u8 },
    BringBack { pick: u8, gone: bool },
    Tick { ms: u16 },
    EndRequest { request: u8, closed: bool },
    Pause { database: Option<u8>, on: bool },
    Reload { size: u8, max: u8, cap: u8, k: u8 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (any::<u8>(), any::<u8>(), 0..4u8, prop::option::weighted(0.6, 0..4u8), prop::bool::weighted(0.1))
            .prop_map(|(session, pool, tenant, request, login)| Op::Checkout { session, pool, tenant, request, login }),
        8 => (any::<u8>(), prop::bool::weighted(0.15), prop::bool::weighted(0.1))
            .prop_map(|(pick, gone, hint)| Op::Checkin { pick, gone, hint }),
        2 => any::<u8>().prop_map(|pick| Op::Cancel { pick }),
        1 => any::<u8>().prop_map(|pick| Op::Vanish { pick }),
        1 => any::<u8>().prop_map(|pool| Op::IdleDies { pool }),
        6 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(pick, ok)| Op::DialEnds { pick, ok }),
        3 => any::<u8>().prop_map(|pick| Op::EvictEnds { pick }),
        2 => any::<u8>().prop_map(|pool| Op::Lend { pool }),
        2 => (any::<u8>(), prop::bool::weighted(0.2)).prop_map(|(pick, gone)| Op::BringBack { pick, gone }),
        3 => (0..400u16).prop_map(|ms| Op::Tick { ms }),
        1 => (0..4u8, any::<bool>()).prop_map(|(request, closed)| Op::EndRequest { request, closed }),
        1 => (prop::option::of(any::<u8>()), any::<bool>()).prop_map(|(database, on)| Op::Pause { database, on }),
        1 => (1..5u8, 2..10u8, 1..4u8, 1..4u8)
            .prop_map(|(size, max, cap, k)| Op::Reload { size, max, cap, k }),
    ]
}

/// What the twin knows of a waiter.
#[derive(Debug, Clone)]
struct Waits {
    id: WaiterId,
    claim: Claim,
}

#[derive(Debug)]
struct Holds {
    claim: Claim,
    backend: u32,
}

/// Requests as the twin counts them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Ledger {
    granted: u64,
    refused: u64,
    cancelled: u64,
    queued: u64,
}

struct World {
    book: Book<u32, u32>,
    setup: Setup,
    now: Instant,
    pools: Vec<PoolId>,
    stores: Vec<Vec<u32>>,
    dials: Vec<PoolId>,
    evictions: Vec<PoolId>,
    /// Backends that Bursar asks something itself.
    lent: Vec<(PoolId, u32)>,
    held: BTreeMap<LeaseId, Holds>,
    waiting: BTreeMap<u32, Waits>,
    next_token: u32,
    next_backend: u32,
    live: HashSet<u32>,
    ledger: Ledger,
    leases_by_pool: Vec<u64>,
    failing: bool,
    steps: u64,
}

fn tag(tenant: u8, request: Option<u8>) -> Arc<Tag> {
    Arc::new(Tag {
        tenant: format!("t{tenant}").into(),
        request: request.map(|request| format!("r{request}").into()),
        ..Tag::default()
    })
}

fn pick<T: Copy>(items: &[T], at: u8) -> Option<T> {
    (!items.is_empty()).then(|| items[at as usize % items.len()])
}

impl World {
    fn new(setup: Setup) -> Self {
        let now = Instant::now();
        let mut book = Book::new(&setup.config());
        let mut actions = Vec::new();
        let pools: Vec<PoolId> = (0..POOLS)
            .map(|at| book.pool(&format!("db{at}"), "app", "db:5432", &setup.rules, now, &mut actions))
            .collect();
        let mut world = World {
            book,
            setup,
            now,
            stores: vec![Vec::new(); POOLS],
            leases_by_pool: vec![0; POOLS],
            pools,
            dials: Vec::new(),
            evictions: Vec::new(),
            lent: Vec::new(),
            held: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_token: 0,
            next_backend: 0,
            live: HashSet::new(),
            ledger: Ledger::default(),
            failing: false,
            steps: 0,
        };
        world.carry_out(actions);
        world
    }

    fn carry_out(&mut self, actions: Vec<Action<u32, u32>>) {
        for action in actions {
            match action {
                Action::Grant { waiter, claim, lease, backend, .. } => {
                    let waits = self.waiting.remove(&waiter).expect("a waiter ends once");
                    assert_eq!(waits.claim.pool, claim.pool);
                    self.ledger.granted += 1;
                    self.hold(lease, waits.claim, backend);
                }
                Action::Refuse { waiter, .. } => {
                    self.waiting.remove(&waiter).expect("a waiter ends once");
                    self.ledger.refused += 1;
                }
                Action::Dial { pool, .. } => self.dials.push(pool),
                Action::Store { pool, backend } => {
                    assert!(self.live.contains(&backend));
                    self.stores[pool.0 as usize].push(backend);
                }
                Action::Close { backend, .. } => assert!(self.live.remove(&backend)),
                Action::Evict { pool } => self.evictions.push(pool),
                Action::End { lease, .. }
                | Action::Cancel { lease, .. }
                | Action::Warn { lease, .. }
                | Action::Park { lease, .. } => {
                    assert!(self.held.contains_key(&lease));
                }
                Action::Leak(_)
                | Action::Violation(_)
                | Action::Deadlock(_)
                | Action::AskLocks(_)
                | Action::Breaker(_)
                | Action::RequestOver(_) => {}
            }
        }
    }

    fn hold(&mut self, lease: LeaseId, claim: Claim, backend: Option<u32>) {
        self.leases_by_pool[claim.pool.0 as usize] += 1;
        let backend = backend.or_else(|| self.stores[claim.pool.0 as usize].pop());
        let backend = backend.expect("a backend counted idle is in the store");
        assert!(self.live.contains(&backend));
        assert!(self.held.values().all(|other| other.backend != backend), "one backend, two leases");
        assert!(self.stores.iter().flatten().all(|&idle| idle != backend), "leased and idle");
        assert!(self.held.insert(lease, Holds { claim, backend }).is_none());
    }

    fn held_by_request(&self, request: &Arc<str>) -> usize {
        let of = |holds: &&Holds| !holds.claim.login && holds.claim.tag.request.as_ref() == Some(request);
        self.held.values().filter(of).count()
    }

    fn held_by_tenant(&self, pool: PoolId, tenant: &Arc<str>) -> usize {
        self.held.values().filter(|h| h.claim.pool == pool && h.claim.tag.tenant == *tenant).count()
    }

    fn is_login(&self, session: SessionId) -> bool {
        self.waiting.values().any(|waits| waits.claim.session == session && waits.claim.login)
    }

    fn check(&mut self) {
        self.steps += 1;
        let view = self.book.view(self.now);
        self.check_bounds(&view);
        self.check_accounts(&view);
        self.check_conservation(&view);
    }

    fn check_bounds(&self, view: &View) {
        let mut total = 0;
        for (at, pool) in view.pools.iter().enumerate() {
            let sum = pool.leased + pool.idle + pool.dialling + pool.leaving;
            let grown = self.setup.most_ever.max(self.setup.rules.size + self.setup.rules.overflow);
            assert!(sum <= grown, "pool {at}: {sum} slots");
            total += sum;
            let id = self.pools[at];
            assert_eq!(pool.leased, self.held.values().filter(|held| held.claim.pool == id).count());
            let lent = self.lent.iter().filter(|(lent, _)| *lent == id).count();
            assert_eq!(pool.dialling, self.dials.iter().filter(|&&dial| dial == id).count() + lent);
            assert_eq!(pool.leaving, self.evictions.iter().filter(|&&leaving| leaving == id).count());
            assert_eq!(pool.idle + pool.leaving, self.stores[at].len(), "pool {at}: idle");
        }
        assert!(total <= self.setup.max_ever);
        assert!(self.dials.len() <= self.setup.parallel_ever);
    }

    fn check_accounts(&self, view: &View) {
        assert_eq!(view.waiters.len(), self.waiting.len());
        let deadline = view.waiters.iter().map(|waiter| waiter.deadline).min();
        assert!(deadline.is_none_or(|deadline| {
            self.book.due().is_some_and(|due| due <= deadline.max(self.now + tick::TICK_LEAST))
        }));
        assert!(self.held.is_empty() || self.book.due().is_some(), "leases unwatched");
        assert_eq!(view.leases.len(), self.held.len());
        let Ledger { granted, refused, cancelled, queued } = self.ledger;
        assert_eq!(queued, granted + refused + cancelled + self.waiting.len() as u64);
        for (at, pool) in view.pools.iter().enumerate() {
            assert_eq!(pool.leases_total, self.leases_by_pool[at]);
            assert_eq!(pool.wait().iter().sum::<u64>(), pool.leases_total);
            assert_eq!(pool.hold().iter().sum::<u64>(), pool.leases_total - pool.leased as u64);
            let mine = view.tenants.iter().filter(|tenant| tenant.pool == pool.id);
            assert_eq!(mine.clone().map(|tenant| tenant.leases_total).sum::<u64>(), pool.leases_total);
            assert_eq!(mine.clone().map(|tenant| tenant.leased as usize).sum::<usize>(), pool.leased);
            assert_eq!(mine.map(|tenant| tenant.waiting as usize).sum::<usize>(), pool.waiting);
        }
        for request in &view.requests {
            assert_eq!(request.leases_now as usize, self.held_by_request(&request.id));
            assert!(request.leases_now <= request.leases_peak && request.leases_peak <= self.setup.k_ever);
        }
    }

    fn check_conservation(&self, view: &View) {
        for waits in self.waiting.values() {
            if !self.able(waits, view) {
                continue;
            }
            let pool = &view.pools[waits.claim.pool.0 as usize];
            assert_eq!(pool.idle, 0, "waits beside an idle backend: {waits:?}");
            let slots = pool.leased + pool.dialling + pool.leaving;
            let total: usize = view.pools.iter().map(|p| p.leased + p.idle + p.dialling + p.leaving).sum();
            let may_open = slots < self.setup.rules.size + self.setup.rules.overflow
                && total < self.setup.max_backends
                && self.dials.len() < self.setup.parallel
                && !self.failing;
            assert!(
                !may_open || pool.dialling + pool.leaving > 0,
                "waits, and nobody dials: {waits:?} {:?}",
                view.pools
                    .iter()
                    .map(|p| (p.leased, p.idle, p.dialling, p.leaving, p.waiting))
                    .collect::<Vec<_>>()
            );
            // With every slot taken, the room of an idle backend elsewhere is on its way.
            let idle_elsewhere = view.pools.iter().any(|other| other.idle > 0);
            if idle_elsewhere && total >= self.setup.max_backends && !self.failing {
                let full = slots >= self.setup.rules.size + self.setup.rules.overflow;
                let coming = [self.dials.len(), self.evictions.len(), self.lent.len()] != [0, 0, 0];
                assert!(full || coming, "waits beside an idle backend of another pool");
            }
        }
    }

    fn checkout(&mut self, claim: Claim) {
        // One wait a session at most, so that a row shown can be told from others.
        if self.waiting.values().any(|waits| waits.claim.session == claim.session) {
            return;
        }
        let (mut actions, mut warnings) = (Vec::new(), Vec::new());
        let token = self.next_token;
        self.next_token += 1;
        let answer = self.book.checkout(self.now, &claim, |_| token, &mut warnings, &mut actions);
        match answer {
            Checkout::Idle(lease) => self.hold(lease, claim, None),
            Checkout::Queued(id) => {
                self.ledger.queued += 1;
                self.waiting.insert(token, Waits { id, claim });
            }
            Checkout::Refused(_) => {}
        }
        self.carry_out(actions);
    }

    fn vanish(&mut self, lease: LeaseId) {
        // As if the backend had been found dead when the session looked.
        let Holds { claim, backend } = self.held.remove(&lease).expect("picked from those held");
        self.live.remove(&backend);
        if self.waiting.values().any(|waits| waits.claim.session == claim.session) {
            return self.give_back(lease, None, None);
        }
        self.leases_by_pool[claim.pool.0 as usize] -= 1;
        let mut actions = Vec::new();
        let token = self.next_token;
        self.next_token += 1;
        match self.book.idle_vanished(self.now, lease, &claim, |_| token, &mut actions) {
            Checkout::Idle(again) => {
                assert_eq!(again, lease);
                self.hold(lease, claim, None);
            }
            Checkout::Queued(id) => {
                self.ledger.queued += 1;
                self.waiting.insert(token, Waits { id, claim });
            }
            Checkout::Refused(_) => {}
        }
        self.carry_out(actions);
    }

    fn give_back(&mut self, lease: LeaseId, backend: Option<u32>, hint: Option<Outcome>) {
        let pool = self.book.leases.get(&lease).map(|lease| lease.pool);
        let mut actions = Vec::new();
        let idle = self.book.checkin(self.now, lease, backend, Usage::default(), hint, &mut actions);
        if let Some(backend) = idle {
            assert!(self.live.contains(&backend));
            self.stores[pool.expect("a lease held is known").0 as usize].push(backend);
        }
        self.carry_out(actions);
    }

    fn step(&mut self, op: Op) {
        let mut actions = Vec::new();
        match op {
            Op::Checkout { session, pool, tenant, request, login } => {
                let pool = self.pools[pool as usize % POOLS];
                let session = SessionId(session.into());
                self.checkout(Claim {
                    session,
                    pool,
                    tag: tag(tenant, request),
                    login,
                    within: None,
                    // As if some went on with parked transactions.
                    resumes: (session.0 % 5 == 4).then_some(self.now),
                    fingerprint: 0,
                    statement: None,
                });
            }
            Op::Checkin { pick: at, gone, hint } => {
                let leases: Vec<LeaseId> = self.held.keys().copied().collect();
                let Some(lease) = pick(&leases, at) else { return };
                let Some(Holds { backend, .. }) = self.held.remove(&lease) else { return };
                if gone {
                    self.live.remove(&backend);
                }
                let backend = (!gone).then_some(backend);
                self.give_back(lease, backend, hint.then_some(Outcome::ClientGone));
            }
            Op::Cancel { pick: at } => {
                let tokens: Vec<u32> = self.waiting.keys().copied().collect();
                let Some(token) = pick(&tokens, at) else { return };
                let id = self.waiting[&token].id;
                assert_eq!(self.book.cancel(self.now, id, &mut actions), Some(token));
                self.waiting.remove(&token);
                self.ledger.cancelled += 1;
                assert_eq!(self.book.cancel(self.now, id, &mut Vec::new()), None);
            }
            Op::Vanish { pick: at } => {
                let leases: Vec<LeaseId> = self.held.keys().copied().collect();
                let Some(lease) = pick(&leases, at) else { return };
                self.vanish(lease);
            }
            Op::IdleDies { pool } => {
                let at = pool as usize % POOLS;
                // One that is leaving is closed by its eviction, not by itself.
                let leaving = self.evictions.iter().filter(|id| id.0 as usize == at).count();
                if self.stores[at].len() <= leaving {
                    return;
                }
                let backend = self.stores[at].pop().expect("just counted");
                self.live.remove(&backend);
                self.book.idle_closed(self.now, self.pools[at], &mut actions);
            }
            Op::DialEnds { pick: at, ok } => self.end_dial(at, ok, &mut actions),
            Op::EvictEnds { pick: at } => self.end_eviction(at, &mut actions),
            Op::Lend { pool } => self.lend(pool as usize % POOLS),
            Op::BringBack { pick, gone } => self.bring_back(pick, gone, &mut actions),
            Op::Tick { ms } => {
                self.now += Duration::from_millis(ms.into());
                self.tick(&mut actions);
            }
            Op::EndRequest { request, closed } => {
                let id = format!("r{request}");
                if closed {
                    self.book.request_closed(&id, self.now);
                } else {
                    self.book.request_ended(&id, self.now);
                }
            }
            Op::Pause { database, on } => {
                let name = database.map(|at| format!("db{}", at as usize % POOLS));
                match on {
                    true => self.book.pause(name.as_deref()),
                    false => self.book.resume(name.as_deref(), self.now, &mut actions),
                }
            }
            Op::Reload { size, max, cap, k } => {
                self.setup.reload(size.into(), max.into(), cap.into(), k.into());
                self.book.reconfigure(&self.setup.config(), self.now, &mut actions);
            }
        }
        self.carry_out(actions);
    }

    fn tick(&mut self, actions: &mut Vec<Action<u32, u32>>) {
        let now = self.now;
        let mut probe = |_: SessionId, lease: LeaseId| {
            let start = now.checked_sub(Duration::from_millis(lease.0 % 1000)).unwrap_or(now);
            let state = if lease.0.is_multiple_of(2) { Doing::IdleInTx } else { Doing::Active };
            Some(Activity { tx_start: Some(start), ..Activity::doing(state, start) })
        };
        let due = self.book.tick(now, &mut probe, actions);
        assert!(due.is_none_or(|due| due > now));
        assert!(self.book.view(now).waiters.iter().all(|waiter| waiter.deadline > now), "waits too long");
    }

    fn end_dial(&mut self, at: u8, ok: bool, actions: &mut Vec<Action<u32, u32>>) {
        if self.dials.is_empty() {
            return;
        }
        let pool = self.dials.remove(at as usize % self.dials.len());
        let result = if ok {
            self.next_backend += 1;
            self.live.insert(self.next_backend);
            Ok(self.next_backend)
        } else {
            Err(DialFailure { kind: crate::breaker::Failure::Unreachable, error: "refused".into() })
        };
        self.failing |= !ok;
        self.book.dialled(self.now, pool, result, actions);
    }

    fn end_eviction(&mut self, at: u8, actions: &mut Vec<Action<u32, u32>>) {
        if self.evictions.is_empty() {
            return;
        }
        let pool = self.evictions.remove(at as usize % self.evictions.len());
        let backend = self.stores[pool.0 as usize].pop().expect("what leaves is in the store");
        self.live.remove(&backend);
        self.book.evicted(self.now, pool, actions);
    }

    /// Takes an idle backend for a question, if the book has one to lend.
    fn lend(&mut self, at: usize) {
        if self.book.lend_idle(self.now, self.pools[at]) {
            let backend = self.stores[at].pop().expect("a backend counted idle is in the store");
            self.lent.push((self.pools[at], backend));
        }
    }

    fn bring_back(&mut self, at: u8, gone: bool, actions: &mut Vec<Action<u32, u32>>) {
        if self.lent.is_empty() {
            return;
        }
        let (pool, backend) = self.lent.remove(at as usize % self.lent.len());
        if gone {
            self.live.remove(&backend);
        }
        self.book.bring_back(self.now, pool, (!gone).then_some(backend), actions);
    }

    /// Everybody goes home: then nothing is held, waited for, or counted.
    fn finish(&mut self) {
        while let Some((lease, Holds { backend, .. })) = self.held.pop_first() {
            self.give_back(lease, Some(backend), None);
            self.check();
        }
        let mut actions = Vec::new();
        self.book.close(&mut actions);
        self.carry_out(actions);
        assert!(self.waiting.is_empty());
        for _ in 0..1000 {
            let mut actions = Vec::new();
            self.end_dial(0, true, &mut actions);
            self.end_eviction(0, &mut actions);
            self.bring_back(0, false, &mut actions);
            self.carry_out(actions);
            if let Some((lease, Holds { backend, .. })) = self.held.pop_first() {
                self.give_back(lease, Some(backend), None);
            }
        }
        assert!(self.book.is_quiet());
        let view = self.book.view(self.now);
        self.check_bounds(&view);
        self.check_accounts(&view);
        assert_eq!(self.live.len(), self.stores.iter().map(Vec::len).sum::<usize>());
    }
}

/// Work for the twin: few sessions, tight caps, so that everything happens often.
fn run(setup: Setup, ops: Vec<Op>) -> u64 {
    let mut world = World::new(setup);
    for op in ops {
        world.step(op);
        world.check();
    }
    let steps = world.steps;
    world.finish();
    steps
}

fn setups() -> impl Strategy<Value = Setup> {
    (1..5usize, 0..2usize, 0..2usize, 2..10usize, 1..4usize, 1..4u32, 1..4u32).prop_map(
        |(size, overflow, min_idle, max, parallel, cap, k)| {
            let mut setup = setup();
            setup.rules.size = size;
            setup.rules.overflow = overflow;
            setup.rules.min_idle = min_idle;
            setup.rules.queue = 12;
            setup.parallel = parallel;
            setup.parallel_ever = parallel;
            setup.reload(size, max, cap, k);
            setup
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_book_keeps_its_promises(setup in setups(), ops in prop::collection::vec(op(), 1..350)) {
        let many = ops.len() as u64;
        prop_assert_eq!(run(setup, ops), many);
    }
}
