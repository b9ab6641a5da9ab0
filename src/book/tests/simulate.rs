//! The book in virtual time: whole workloads over the real thing, with integers for backends and a
//! list of events for a clock. Deterministic, so what comes out is asserted exactly as a bound.
//!
//! The workloads are A and A2 of budgets.md §3.3 (who waits how long beside greedy neighbours and
//! long transactions), and the session trees of E8 (§9): nested sessions on a pool that is too small
//! for all of them at once.

mod trees;
mod workloads;

use super::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// A pool with all its backends open, and events to come. `E` is what a workload does next.
struct World<E> {
    book: Book<u32, u64>,
    pool: PoolId,
    start: Instant,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Slot<E>)>>,
    steps: u64,
    /// Claims that wait, by token.
    waiting: BTreeMap<u64, (Instant, E)>,
    /// Granted since somebody looked: lease, when it was asked for, whose.
    granted: Vec<(LeaseId, Instant, E)>,
    refused: u64,
    held: BTreeMap<LeaseId, Activity>,
    idle: usize,
    dice: Dice,
}

/// Random numbers that a seed repeats (SplitMix64).
struct Dice(u64);

impl Dice {
    fn random(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From zero to one.
    fn uniform(&mut self) -> f64 {
        (self.random() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Exponentially distributed.
    fn about(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.uniform()).ln())
    }
}

/// Keeps what it holds out of the order of events.
struct Slot<E>(E);

impl<E> PartialEq for Slot<E> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<E> Eq for Slot<E> {}
impl<E> PartialOrd for Slot<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Slot<E> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl<E> World<E> {
    fn new(setup: &Setup, seed: u64) -> Self {
        let now = Instant::now();
        let mut book = Book::new(&setup.config());
        let mut actions = Vec::new();
        let pool = book.pool("app", "web", "db:5432", &setup.rules, now, &mut actions);
        let mut world = World {
            book,
            pool,
            start: now,
            now,
            events: BinaryHeap::new(),
            steps: 0,
            waiting: BTreeMap::new(),
            granted: Vec::new(),
            refused: 0,
            held: BTreeMap::new(),
            idle: 0,
            dice: Dice(seed),
        };
        world.carry_out(actions);
        assert_eq!(world.idle, setup.rules.size, "every backend is open");
        world
    }

    fn at(&mut self, after: Duration, event: E) {
        self.steps += 1;
        self.events.push(Reverse((self.now + after, self.steps, Slot(event))));
    }

    /// The next event, with the clock at it.
    fn next(&mut self) -> Option<E> {
        let Reverse((at, _, Slot(event))) = self.events.pop()?;
        self.now = at;
        Some(event)
    }

    fn carry_out(&mut self, actions: Vec<Action<u32, u64>>) {
        let mut todo: VecDeque<_> = actions.into();
        while let Some(action) = todo.pop_front() {
            let mut more = Vec::new();
            match action {
                Action::Grant { waiter, lease, backend, .. } => {
                    let (asked, event) = self.waiting.remove(&waiter).expect("a waiter ends once");
                    self.idle -= usize::from(backend.is_none());
                    self.hold(lease, asked, event);
                }
                Action::Refuse { waiter, .. } => {
                    self.waiting.remove(&waiter).expect("a waiter ends once");
                    self.refused += 1;
                }
                Action::Dial { pool, .. } => self.book.dialled(self.now, pool, Ok(0), &mut more),
                Action::Store { .. } => self.idle += 1,
                _ => {}
            }
            todo.extend(more);
        }
    }

    fn hold(&mut self, lease: LeaseId, asked: Instant, event: E) {
        let active = Activity::doing(Doing::Active, self.now);
        self.held.insert(lease, active);
        self.granted.push((lease, asked, event));
    }

    fn ask(&mut self, tag: Tag, fingerprint: u64, event: E) {
        self.steps += 1;
        let token = self.steps;
        let claim = Claim {
            session: SessionId(token),
            pool: self.pool,
            tag: Arc::new(tag),
            login: false,
            within: None,
            resumes: None,
            fingerprint,
            statement: None,
        };
        let mut actions = Vec::new();
        match self.book.checkout(self.now, &claim, |_| token, &mut Vec::new(), &mut actions) {
            Checkout::Idle(lease) => {
                self.idle -= 1;
                self.hold(lease, self.now, event);
            }
            Checkout::Queued(_) => {
                self.waiting.insert(token, (self.now, event));
            }
            Checkout::Refused(_) => self.refused += 1,
        }
        self.carry_out(actions);
    }

    fn give_back(&mut self, lease: LeaseId) {
        self.held.remove(&lease).expect("held");
        let mut actions = Vec::new();
        let idle = self.book.checkin(self.now, lease, Some(0), Usage::default(), None, &mut actions);
        self.idle += usize::from(idle.is_some());
        self.carry_out(actions);
    }

    fn tick(&mut self) {
        let held = &self.held;
        let mut actions = Vec::new();
        self.book.tick(self.now, &mut |_, lease| held.get(&lease).copied(), &mut actions);
        self.carry_out(actions);
    }
}
