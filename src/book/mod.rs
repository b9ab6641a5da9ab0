//! Who gets a backend, how much, and for how long: the one decision maker.
//!
//! Pure: `now` is an argument, a backend is any `B`, a waiter any `W`; tests put integers where
//! production puts sockets. Every call returns what must be done ([`Action`]) and the caller does it
//! after unlocking. It opens, closes and wakes nothing itself, and it keeps no backend: those that
//! are idle are in the pool's store, and the book counts them.
//!
//! ```text
//!             open_one                dialled                    checkin, nobody waits
//!   (no slot) ────────► dialling ──────────────► leased ◄──────────────────────────► idle
//!       ▲                                          │  checkout, grant                  │
//!       └──────────────────────────────────────────┴──────── leaving ◄─────────────────┘
//!                  checkin(None), idle_closed           evicted        Evict
//! ```
//!
//! This floor has the nouns that every rule reads, and the two places where things happen: `leases.rs`, when
//! somebody asks or gives back, and `tick.rs`, when time has passed. The rules are in rooms:
//!
//! | room | |
//! |---|---|
//! | `turns` | who is next: lines, fair queueing, finish first; who is refused |
//! | `slots` | which pool may open one more backend, and where a free one goes |
//! | `requests` | all leases with one request id: their ledger, their end, their storms |
//! | `watch` | what a held lease may still do: the budgets of time, parking |
//! | `leaks` | which leases will not come back by themselves |
//! | `deadlocks` | who waits for one another, and the way out |
//! | `report` | what is counted, told, shown, advised |
//!
//! A tenant in a pool is `share.rs`, a class `class.rs`, and `who.rs` is whom a claim is accounted to.
//!
//! What must hold, and `model.rs` holds it to:
//!
//! * leased + idle + dialling + leaving is at most a pool's size (and overflow, while clients wait),
//!   and at most `server.max_backends` over all pools;
//! * nobody waits while a backend is idle that they may have;
//! * tenants of a pool are served by what they have had (`turns::fair`), a tenant's waiters in order of
//!   arrival, those who go on with a request first (`turns::groups`), and nobody who could make requests
//!   wait for one another (`turns::finish`);
//! * every waiter ends exactly once: granted, refused, or cancelled.
//!
//! **What the caller owes.** Carry out actions in order. A backend has to be found in the idle store
//! from the moment the book counts it, so do [`Action::Store`] before another session can look there
//! for a lease it was just promised (an empty store is taken for a dead backend). Tell of every
//! backend once: by `checkin`, `dialled`, `idle_closed`, `idle_vanished` or `evicted`, after it is
//! closed if it is. Wake a timer at [`Book::due`].

mod class;
mod deadlocks;
mod leaks;
mod leases;
mod limits;
mod pins;
mod pool;
mod report;
mod requests;
mod roll;
mod share;
mod slots;
mod tick;
mod turns;
mod types;
mod verdicts;
mod watch;
mod who;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use deadlocks::{DEADLOCKS_KEPT, Deadlock, DeadlockKind, Resolution, Suspect};
pub use leaks::{CLOSED_KEPT, Evidence, LeakClass, LeakEvent, Outcome, Threshold};
pub use report::view::{self, View};
pub use report::{Violation, advice, saturation};
pub use requests::{End, RequestOver};
pub use slots::DialFailure;
pub use types::*;
pub use verdicts::*;

use crate::config::{Config, Mode, PoolRules, Timed};
use hashbrown::HashMap;
use report::{Dim, Told};
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap as Named, VecDeque};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bounds of `bursar_lease_wait_seconds` (budgets.md §8.2), in seconds.
pub const WAIT_BOUNDS: [f64; 16] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Bounds of `bursar_lease_hold_seconds` (budgets.md §8.2), in seconds.
pub const HOLD_BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// By numbers the book itself gave out, where a fixed seed does no harm.
type ById<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// The decision maker for one PostgreSQL server; see the module.
#[derive(Debug)]
pub struct Book<B, W> {
    limits: limits::Limits,
    closing: bool,

    pools: Vec<pool::Pool>,
    by_name: Named<Arc<str>, Named<Arc<str>, PoolId>>,
    /// Slots over all pools.
    census: pool::Census,
    /// Pools that want a backend and could not have one yet, in turn.
    hungry: VecDeque<PoolId>,
    /// Pools where somebody is barred from a backend that is free.
    stalled: Vec<PoolId>,
    jitter: slots::Jitter,
    upstreams: Vec<slots::Upstream>,
    paused_all: bool,
    paused: BTreeSet<Box<str>>,

    /// Tenants by pool.
    shares: roll::Roll<share::Share>,
    classes: class::Classes,
    predictor: turns::Predictor,
    callsites: leaks::CallSites,
    requests: roll::Roll<requests::Request>,
    /// Requests with waiters held back.
    crowded: BTreeSet<u32>,
    /// Client sessions by tenant (B18).
    sessions: Named<Arc<str>, u32>,

    leases: ById<LeaseId, leases::Lease>,
    next_lease: u64,
    next_share: u32,
    leases_peak: u64,
    waiters: ById<WaiterId, turns::Waiter<W>>,
    next_waiter: u64,
    /// Waiters by deadline (B9).
    deadlines: turns::Agenda<Reverse<Instant>>,
    /// The next number before all places in line, and the next behind them.
    ends: (i64, i64),

    tally: report::Tally,
    endings: requests::Endings,
    storms: requests::Storms,
    events: report::Events,
    peaks: report::Peaks,
    /// When somebody last asked for a lease, or time was last looked at.
    clock: Option<Instant>,
    retries: slots::Retries,
    cases: leaks::Cases,
    deadlocks: deadlocks::Deadlocks,
    watchman: deadlocks::Watchman,
    aftermath: deadlocks::Aftermath,
    pins: Vec<(&'static str, u64)>,
    ticks: u64,
    due: Option<Instant>,
    /// `due` was brought forward since somebody asked.
    sooner: bool,
    pace: Duration,
    /// From when on budgets act that were not told to at once (budgets.md §2.4); `None` = they do.
    armed: Option<Instant>,
    scratch: Vec<LeaseId>,
    /// Leases that the tick under way looks at more closely.
    suspects: Vec<tick::Sight>,
    /// Requests with leases, as the tick under way has seen them.
    spending: Vec<u32>,
    backends: PhantomData<fn(B) -> B>,
}

impl<B, W> Book<B, W> {
    /// An empty book with a configuration's budgets.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mut book = Book {
            limits: limits::Limits::of(config),
            closing: false,
            pools: Vec::new(),
            by_name: Named::new(),
            census: pool::Census::default(),
            hungry: VecDeque::new(),
            stalled: Vec::new(),
            jitter: slots::Jitter::new(),
            upstreams: Vec::new(),
            paused_all: false,
            paused: BTreeSet::new(),
            shares: roll::Roll::new(limits::REMEMBERED),
            classes: class::Classes::of(config),
            predictor: turns::Predictor::new(),
            callsites: leaks::CallSites::new(),
            requests: roll::Roll::new(limits::REMEMBERED),
            crowded: BTreeSet::new(),
            sessions: Named::new(),
            leases: ById::default(),
            next_lease: 1,
            next_share: 0,
            leases_peak: 0,
            waiters: ById::default(),
            next_waiter: 1,
            deadlines: turns::Agenda::new(),
            ends: (-1, 0),
            tally: report::Tally::default(),
            endings: requests::Endings::default(),
            storms: requests::Storms::default(),
            events: report::Events::default(),
            peaks: report::Peaks::default(),
            clock: None,
            retries: slots::Retries::default(),
            cases: leaks::Cases::default(),
            deadlocks: deadlocks::Deadlocks::default(),
            watchman: deadlocks::Watchman::default(),
            aftermath: deadlocks::Aftermath::default(),
            pins: Vec::new(),
            ticks: 0,
            due: None,
            sooner: false,
            pace: Duration::ZERO,
            armed: None,
            scratch: Vec::new(),
            suspects: Vec::new(),
            spending: Vec::new(),
            backends: PhantomData,
        };
        book.set_pace();
        book
    }

    /// The pool of a (database, user) at an upstream, made if new; a new one dials its `min_idle` backends.
    /// Call it for authenticated clients only: pools are never dropped.
    pub fn pool(
        &mut self,
        database: &str,
        user: &str,
        upstream: &str,
        rules: &PoolRules,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) -> PoolId {
        if let Some(&id) = self.by_name.get(database).and_then(|users| users.get(user)) {
            return id;
        }
        let id = PoolId(self.pools.len() as u32);
        let (database, user): (Arc<str>, Arc<str>) = (database.into(), user.into());
        let upstream = self.upstream(upstream);
        let mut pool = pool::Pool::new((database.clone(), user.clone()), upstream, rules.clone(), now);
        pool.paused = self.paused_all || self.paused.contains(&*database);
        self.pools.push(pool);
        self.set_pace();
        self.apportion(id);
        self.by_name.entry(database).or_default().insert(user, id);
        self.serve(id, now, actions);
        self.look_again(now, actions);
        id
    }

    /// Takes over a new configuration: budgets, tenants, and the rules of every pool whose database
    /// it still has. Leases and waiters stay, deadlines of waits under way too; what is idle beyond
    /// a smaller size goes at once, what is leased when it comes back.
    pub fn reconfigure(&mut self, config: &Config, now: Instant, actions: &mut Vec<Action<B, W>>) {
        self.limits = limits::Limits::of(config);
        self.set_breaker_rules(config.breaker);
        self.classes.take_over(config);
        self.renumber();
        for at in 0..self.pools.len() {
            let pool = &mut self.pools[at];
            if let Some(rules) = config.pool_rules(&pool.database, &pool.user) {
                pool.rules = rules;
            }
            self.apportion(PoolId(at as u32));
        }
        self.set_pace();
        for (at, tenant) in self.shares.names() {
            let share = &mut self.shares[at];
            let pool = &mut self.pools[share.pool.0 as usize];
            share.rule(&tenant, &self.limits, pool.rules.size);
            if share.promised {
                pool.unmet_mins -= share.leased.min(share.min);
            }
            self.refresh(at);
        }
        self.restake_all();
        for request in self.crowded.clone() {
            self.promote(Some(request));
        }
        self.shrink(now, actions);
        self.serve_every(|_| true, now, actions);
        if !self.leases.is_empty() || !self.waiters.is_empty() {
            self.wake_to_watch(now);
        }
    }

    /// Budgets whose acting destroys work (B3, B10, B11, B13) only warn before this moment, unless their
    /// `force` is set: they are to have been in mode warn for a day (budgets.md §2.4).
    pub fn arm(&mut self, from: Instant) {
        self.armed = Some(from);
    }

    fn is_armed(&self, timed: &Timed, now: Instant) -> bool {
        timed.force || self.armed.is_none_or(|from| from <= now)
    }

    /// What a pool of this size keeps for classes, for short work, and for tenants by name; as if nobody
    /// held anything.
    fn apportion(&mut self, id: PoolId) {
        let pool = &mut self.pools[id.0 as usize];
        let size = pool.rules.size.min(self.limits.max_backends);
        pool.parts.rules(&self.classes, pool.rules.size);
        pool.express = pool.rules.express.of(size) as u32;
        pool.mins = self.limits.promised();
        pool.unmet_mins = pool.mins;
    }

    /// B18: a client session of this tenant begins, perhaps with a warning. `Err` only in mode enforce;
    /// each `Ok` wants one [`Book::logout`].
    ///
    /// # Errors
    ///
    /// [`Refusal::TooManySessions`] if the tenant has as many as it may.
    pub fn login(&mut self, tenant: &Arc<str>) -> Result<Option<Warning>, Refusal> {
        let rule = self.limits.tenant(tenant);
        let (limit, mode) = (rule.max_sessions, rule.mode);
        let sessions = self.sessions.get(tenant).copied().unwrap_or(0);
        if sessions >= limit && mode == Mode::Enforce {
            self.tally.count(Dim::B18, Told::Reject);
            let refusal = Refusal::TooManySessions { tenant: tenant.clone(), sessions, limit };
            self.refused_event(&refusal, None, &of_tenant(tenant));
            return Err(refusal);
        }
        let told = match sessions >= limit {
            true => Told::beyond(mode),
            false => Told::within(u64::from(sessions) + 1, limit.into()),
        };
        self.tally.count(Dim::B18, told);
        *self.sessions.entry(tenant.clone()).or_default() += 1;
        let sessions = sessions + 1;
        self.peaks.saw(Dim::B18, sessions.into());
        let warning = (told == Told::Warn).then_some(Warning::ManySessions { sessions, limit });
        if let Some(warning) = &warning {
            self.warned_event(warning, None, &of_tenant(tenant));
        }
        Ok(warning)
    }

    /// A client session is ready to ask for leases of this pool.
    pub fn logged_in(&mut self, pool: PoolId) {
        self.pools[pool.0 as usize].sofar.logins += 1;
    }

    /// A client session of this tenant has ended.
    pub fn logout(&mut self, tenant: &str) {
        if let Some(sessions) = self.sessions.get_mut(tenant) {
            *sessions = sessions.saturating_sub(1);
            if *sessions == 0 {
                self.sessions.remove(tenant);
            }
        }
    }

    /// PAUSE: no more leases in the pools of a database (`None`: of any), those to come included.
    /// Held leases go on; waiters wait, each until its deadline.
    pub fn pause(&mut self, database: Option<&str>) {
        match database {
            None => self.paused_all = true,
            Some(name) => {
                self.paused.insert(name.into());
            }
        }
        self.mark_paused();
    }

    /// RESUME: undoes [`Book::pause`] of a database; `None` undoes every pause.
    pub fn resume(&mut self, database: Option<&str>, now: Instant, actions: &mut Vec<Action<B, W>>) {
        match database {
            None => {
                self.paused_all = false;
                self.paused.clear();
            }
            Some(name) => {
                self.paused.remove(name);
            }
        }
        self.mark_paused();
        self.serve_every(|pool| !pool.paused, now, actions);
    }

    fn mark_paused(&mut self) {
        for pool in &mut self.pools {
            pool.paused = self.paused_all || self.paused.contains(&*pool.database);
        }
    }

    fn serve_every(
        &mut self,
        which: impl Fn(&pool::Pool) -> bool,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) {
        for at in 0..self.pools.len() {
            if which(&self.pools[at]) {
                self.serve(PoolId(at as u32), now, actions);
            }
        }
        self.feed(now, actions);
        self.look_again(now, actions);
    }

    /// The end: waiters are refused, no more leases, and what comes back is closed.
    pub fn close(&mut self, actions: &mut Vec<Action<B, W>>) {
        self.closing = true;
        let mut waiters: Vec<WaiterId> = self.waiters.keys().copied().collect();
        waiters.sort_unstable();
        for id in waiters {
            let Some(waiter) = self.detach(id, false) else { continue };
            self.count_refusal(&waiter.claim, waiter.who, &Refusal::Closing);
            actions.push(Action::Refuse { waiter: waiter.handle, refusal: Refusal::Closing });
        }
    }

    /// Waiters of a pool.
    #[must_use]
    pub fn waiting(&self, pool: PoolId) -> usize {
        self.pools[pool.0 as usize].waiting
    }

    /// No leases, no waiters, nothing being dialled.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.leases.is_empty() && self.waiters.is_empty() && self.census.at(pool::Place::Dialling) == 0
    }
}

/// The tags of somebody of whom only the tenant is known.
fn of_tenant(tenant: &Arc<str>) -> Arc<crate::tag::Tag> {
    Arc::new(crate::tag::Tag { tenant: tenant.clone(), ..Default::default() })
}
