//! One pool's numbers: where its backends are, how dialling goes, what it has done so far.

use super::class::ClassId;
use super::report::Histogram;
use super::turns::Agenda;
use super::{LeaseId, PoolId, Usage, WaiterId};
use crate::config::PoolRules;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where a backend that takes up a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// With a session.
    Leased,
    /// In the pool's idle store, free to be lent.
    Idle,
    /// Being opened.
    Dialling,
    /// In the idle store, to be closed: counts until it is gone.
    Leaving,
    /// With Bursar itself, for a question: idle but for a moment.
    Lent,
}

/// Slots by place: of one pool, or of all.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Census([usize; 5]);

impl Census {
    pub(super) fn at(&self, place: Place) -> usize {
        self.0[place as usize]
    }

    pub(super) fn total(&self) -> usize {
        self.0.iter().sum()
    }

    /// Leased or idle: backends that are up.
    pub(super) fn up(&self) -> usize {
        self.at(Place::Leased) + self.at(Place::Idle) + self.at(Place::Lent)
    }

    /// Those that will be at hand by themselves.
    pub(super) fn coming(&self) -> usize {
        self.at(Place::Dialling) + self.at(Place::Lent)
    }

    /// Moves one slot; `None` is outside. False if there was none to move.
    pub(super) fn shift(&mut self, from: Option<Place>, to: Option<Place>) -> bool {
        if let Some(from) = from {
            if self.at(from) == 0 {
                return false;
            }
            self.0[from as usize] -= 1;
        }
        if let Some(to) = to {
            self.0[to as usize] += 1;
        }
        true
    }
}

/// How dialling went lately.
#[derive(Debug, Default)]
pub(super) struct Dials {
    /// Failures since the last success.
    pub(super) failures: u32,
    /// Whether the server lets this role into this database.
    pub(super) door: crate::breaker::Door,
    /// The last failure since the last success.
    pub(super) error: Option<Arc<str>>,
}

/// What the last tick saw.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Seen {
    /// Leases asked to park.
    pub(super) parks: u32,
    pub(super) idle_in_tx: u32,
    /// The longest holder, since when it holds, and since when it idles in its transaction.
    pub(super) longest: Option<(LeaseId, Instant, Option<Instant>)>,
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) database: Arc<str>,
    pub(super) user: Arc<str>,
    /// Its server's number.
    pub(super) upstream: usize,
    /// The server that it is to move to, once no dial is under way.
    pub(super) bound_for: Option<usize>,
    pub(super) rules: PoolRules,
    pub(super) paused: bool,
    pub(super) census: Census,
    /// Whom each backend that is leaving makes room for.
    pub(super) leaving_for: Vec<PoolId>,
    /// Backends leaving other pools to make room for this one.
    pub(super) awaited: usize,
    /// Slots beyond its limit while it is deadlocked, and until when.
    pub(super) extra: Option<(usize, Instant)>,
    /// Waiters that lost the backend they were promised: before all others.
    pub(super) first: BTreeMap<i64, WaiterId>,
    /// Waiters of requests that hold something, the oldest request first: before all tenants.
    pub(super) finish: BTreeMap<(Instant, i64), WaiterId>,
    /// Classes, each with its tenants that may have the next backend.
    pub(super) parts: super::class::Parts,
    /// Backends that came to be a tenant's by its turn.
    pub(super) turns: u64,
    /// Every waiter that may be shed: the lowest class first, in it the newest (budgets.md §6.2).
    pub(super) shed: Agenda<(Reverse<u32>, i64)>,
    /// How long leases are held, lately.
    pub(super) hold: Mean,
    /// Waiters of all lines that their tenants' caps allow.
    pub(super) demand: usize,
    /// Slots that work known to be long never gets.
    pub(super) express: u32,
    /// Leases known to be long: by prediction, or because they are by now.
    pub(super) long_in_use: u32,
    /// Σ minimums of tenants named in the configuration, and of these, what nobody uses.
    pub(super) mins: u32,
    pub(super) unmet_mins: u32,
    /// Requests that hold leases here and may need more.
    pub(super) banker: super::turns::Banker,
    pub(super) waiting: usize,
    /// In the book's list of pools where somebody is barred from a backend that is free.
    pub(super) stalled: bool,
    /// In the book's list of pools that want a backend and could not have one yet.
    pub(super) hungry: bool,
    pub(super) dials: Dials,
    pub(super) burst: super::slots::Burst,
    /// Since when it has had neither a leased nor an idle backend.
    pub(super) empty_since: Option<Instant>,
    pub(super) last_used: Instant,
    /// Leases kept beyond their transaction.
    pub(super) pinned: u32,
    pub(super) seen: Seen,
    pub(super) sofar: SoFar,
}

/// See [`Mean`].
const LATELY: u64 = 16;

/// Leases that are to be back before their mean says anything.
pub(super) const TELLING: u64 = 64;

/// A moving average of the last leases, some sixteen of them ([`LATELY`]).
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Mean {
    nanos: u64,
    samples: u64,
}

impl Mean {
    /// One more. A single very long one counts as sixteen times the mean: it says little of the next.
    pub(super) fn add(&mut self, value: Duration) {
        let nanos = super::report::nanos(value);
        self.samples += 1;
        let weight = self.samples.min(LATELY);
        let most = self.nanos.saturating_mul(LATELY).max(1_000_000);
        let nanos = if self.samples > LATELY { nanos.min(most) } else { nanos };
        self.nanos = self.nanos - self.nanos / weight + nanos / weight;
    }

    /// The mean, once there are `least` to go by.
    pub(super) fn get(&self, least: u64) -> Option<Duration> {
        (self.samples >= least.max(1)).then(|| Duration::from_nanos(self.nanos.max(1)))
    }
}

/// Totals of a pool since it was made.
#[derive(Debug)]
pub(super) struct SoFar {
    pub(super) logins: u64,
    pub(super) leases: u64,
    pub(super) leases_peak: usize,
    pub(super) usage: Usage,
    pub(super) held: Duration,
    pub(super) waited: Duration,
    pub(super) timeouts: u64,
    pub(super) untagged: u64,
    /// Waiters the banker passed over, each once.
    pub(super) deferred: u64,
    /// Waits and holds, by class.
    pub(super) times: Vec<Times>,
    pub(super) rejections: BTreeMap<&'static str, u64>,
}

/// Of one class in one pool.
#[derive(Debug)]
pub(super) struct Times {
    pub(super) waited: Duration,
    pub(super) wait: Histogram,
    pub(super) held: Duration,
    pub(super) hold: Histogram,
}

impl SoFar {
    fn of(&mut self, class: ClassId) -> &mut Times {
        if self.times.len() <= class.at() {
            let none = || Times {
                waited: Duration::ZERO,
                wait: Histogram::wait(),
                held: Duration::ZERO,
                hold: Histogram::hold(),
            };
            self.times.resize_with(class.at() + 1, none);
        }
        &mut self.times[class.at()]
    }

    pub(super) fn granted(&mut self, class: ClassId, waited: Duration) {
        self.waited += waited;
        let times = self.of(class);
        times.waited += waited;
        times.wait.add(waited);
    }

    /// It never was.
    pub(super) fn ungranted(&mut self, class: ClassId, waited: Duration) {
        self.waited -= waited;
        let times = self.of(class);
        times.waited -= waited;
        times.wait.remove(waited);
    }

    pub(super) fn returned(&mut self, class: ClassId, held: Duration) {
        self.held += held;
        let times = self.of(class);
        times.held += held;
        times.hold.add(held);
    }
}

impl Pool {
    pub(super) fn new(
        (database, user): (Arc<str>, Arc<str>),
        upstream: usize,
        rules: PoolRules,
        now: Instant,
    ) -> Self {
        Pool {
            database,
            user,
            upstream,
            bound_for: None,
            rules,
            paused: false,
            census: Census::default(),
            leaving_for: Vec::new(),
            awaited: 0,
            extra: None,
            first: BTreeMap::new(),
            finish: BTreeMap::new(),
            parts: super::class::Parts::default(),
            turns: 0,
            shed: Agenda::new(),
            hold: Mean::default(),
            demand: 0,
            express: 0,
            long_in_use: 0,
            mins: 0,
            unmet_mins: 0,
            banker: super::turns::Banker::default(),
            waiting: 0,
            stalled: false,
            hungry: false,
            dials: Dials::default(),
            burst: super::slots::Burst::default(),
            empty_since: Some(now),
            last_used: now,
            pinned: 0,
            seen: Seen::default(),
            sofar: SoFar {
                logins: 0,
                leases: 0,
                leases_peak: 0,
                usage: Usage::default(),
                held: Duration::ZERO,
                waited: Duration::ZERO,
                timeouts: 0,
                untagged: 0,
                deferred: 0,
                times: Vec::new(),
                rejections: BTreeMap::new(),
            },
        }
    }

    /// Slots it may take up while clients wait.
    pub(super) fn limit(&self) -> usize {
        self.rules.size + self.overflow() + self.extra.map_or(0, |(slots, _)| slots)
    }

    /// How long it takes to serve so many waiters; `None` while too few leases are back to tell.
    pub(super) fn to_serve(&self, waiters: usize, least: u64) -> Option<Duration> {
        let waiters = u32::try_from(waiters).unwrap_or(u32::MAX);
        let size = u32::try_from(self.rules.size.max(1)).unwrap_or(u32::MAX);
        Some(self.hold.get(least)?.saturating_mul(waiters) / size)
    }

    /// B15: ten times as many waiters as can be served within `max_wait`, at least one a backend, and
    /// never more than `queue`.
    pub(super) fn queue_limit(&self) -> usize {
        let most = self.rules.queue;
        let Some(hold) = self.hold.get(TELLING) else { return most };
        let each = self.rules.max_wait.as_secs_f64() / hold.as_secs_f64();
        // `as` saturates.
        let served = (10.0 * self.rules.size as f64 * each) as usize;
        served.max(self.rules.size).min(most)
    }

    /// Whether its size allows one more backend than is being opened for the waiters it may have.
    pub(super) fn wants_for_waiters(&self) -> bool {
        !self.paused && self.demand > self.census.at(Place::Dialling) && self.census.total() < self.limit()
    }

    /// The same, with what is made room for. Room made is not kept for whom it was made: a slot that
    /// is free sooner serves as well.
    pub(super) fn wants_room(&self) -> bool {
        self.wants_for_waiters()
            && self.demand > self.census.at(Place::Dialling) + self.awaited
            && self.census.total() + self.awaited < self.limit()
    }

    /// Whether `min_idle` wants one more backend.
    pub(super) fn wants_for_itself(&self) -> bool {
        !self.paused && self.census.total() < self.rules.min_idle.min(self.rules.size)
    }
}

impl Usage {
    pub(super) fn add(&mut self, other: &Usage) {
        self.transactions += other.transactions;
        self.statements += other.statements;
        self.active += other.active;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.client_parses += other.client_parses;
        self.server_parses += other.server_parses;
        self.binds += other.binds;
    }
}
