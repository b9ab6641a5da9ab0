//! What the book shows: plain rows, copied under the lock, rendered elsewhere.

use crate::book::{LeakEvent, LeaseId, PoolId, SessionId, Usage};
use crate::tag::Tag;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything the book shows, at one moment.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// One row a pool.
    pub pools: Vec<PoolView>,
    /// One row a tenant and pool.
    pub tenants: Vec<TenantView>,
    /// One row a request.
    pub requests: Vec<RequestView>,
    /// One row a held lease.
    pub leases: Vec<LeaseView>,
    /// One row a waiter, in the order they would be served within their tenant.
    pub waiters: Vec<WaiterView>,
    /// Open and closed leak cases, newest last (ring of 1,000).
    pub leaks: Vec<LeakEvent>,
    /// Budget outcomes: (dimension such as `"B1"`, outcome `ok|near|would|warn|queue|reject|cancel|abort`, count).
    pub budgets: Vec<(&'static str, &'static str, u64)>,
    /// How far budgets are used: (dimension, the most by anybody now, the same within the last hour), in
    /// milliseconds or counts.
    pub budget_usage: Vec<(&'static str, u64, u64)>,
    /// Refusals: (pool, SQLSTATE, count).
    pub rejections: Vec<(PoolId, &'static str, u64)>,
    /// Leak totals: (class, action, outcome, count).
    pub leak_totals: Vec<(&'static str, &'static str, &'static str, u64)>,
    /// Deadlocks open and over, newest last (ring of 1,000).
    pub deadlocks: Vec<crate::book::Deadlock>,
    /// Deadlock totals: (kind, resolution, count).
    pub deadlock_totals: Vec<(&'static str, &'static str, u64)>,
    /// Pins: (reason, leases now held by it), from the last tick.
    pub pins: Vec<(&'static str, u64)>,
    /// Requests that are over: (why, count).
    pub request_ends: Vec<(&'static str, u64)>,
    /// Claims so far with a class that is not configured.
    pub unknown_classes: u64,
    /// Refusals that were at least the third of their request, or session, within ten seconds.
    pub retry_storms: u64,
    /// Highest number of leases at once over all pools since start.
    pub leases_peak: u64,
    /// One row a server.
    pub upstreams: Vec<UpstreamView>,
}

/// One server, by its address as configured.
#[derive(Debug, Clone)]
pub struct UpstreamView {
    /// The address.
    pub name: Arc<str>,
    /// Its breaker.
    pub state: crate::breaker::State,
    /// When it is dialled again, if that is not now.
    pub opens: Option<Duration>,
    /// The last failure since the last success.
    pub error: Option<Arc<str>>,
    /// Changes of the state: (reason, count).
    pub turns: Vec<(&'static str, u64)>,
}

/// One pool.
#[derive(Debug, Clone)]
pub struct PoolView {
    /// Id.
    pub id: PoolId,
    /// Database as the client names it.
    pub database: Arc<str>,
    /// Role as the client names it.
    pub user: Arc<str>,
    /// Configured size, without overflow.
    pub size: usize,
    /// Leases held.
    pub leased: usize,
    /// Idle backends.
    pub idle: usize,
    /// Dials in flight.
    pub dialling: usize,
    /// Backends about to be closed, which take up a slot until they are.
    pub leaving: usize,
    /// Waiters.
    pub waiting: usize,
    /// Longest wait of those waiting.
    pub oldest_wait: Duration,
    /// Whether PAUSE is on.
    pub paused: bool,
    /// Client logins so far, those that came to a session.
    pub logins: u64,
    /// Leases so far.
    pub leases_total: u64,
    /// Usage so far.
    pub usage: Usage,
    /// Σ hold so far.
    pub held: Duration,
    /// Σ wait of leases granted so far.
    pub waited: Duration,
    /// Waits that ended in 53300.
    pub timeouts: u64,
    /// Untagged leases so far.
    pub untagged: u64,
    /// Waiters so far that were put off because requests might have come to wait for one another.
    pub deferred: u64,
    /// Waits and holds of the classes that have had leases.
    pub times: Vec<TimesView>,
    /// Highest leases at once since start.
    pub leases_peak: u64,
}

/// Waits and holds of one class in one pool.
#[derive(Debug, Clone)]
pub struct TimesView {
    /// Class.
    pub class: Arc<str>,
    /// Σ wait of leases granted so far.
    pub waited: Duration,
    /// Their histogram: a count per bucket (not cumulative), bounds [`crate::book::WAIT_BOUNDS`], and one more
    /// for what lies beyond.
    pub wait: Vec<u64>,
    /// Σ hold of leases returned so far.
    pub held: Duration,
    /// Their histogram, likewise with [`crate::book::HOLD_BOUNDS`].
    pub hold: Vec<u64>,
}

impl PoolView {
    /// The wait histogram of all classes.
    #[must_use]
    pub fn wait(&self) -> Vec<u64> {
        total(self.times.iter().map(|times| &times.wait), crate::book::WAIT_BOUNDS.len())
    }

    /// The hold histogram of all classes.
    #[must_use]
    pub fn hold(&self) -> Vec<u64> {
        total(self.times.iter().map(|times| &times.hold), crate::book::HOLD_BOUNDS.len())
    }
}

/// One histogram of several.
fn total<'h>(all: impl Iterator<Item = &'h Vec<u64>>, bounds: usize) -> Vec<u64> {
    let mut sum = vec![0; bounds + 1];
    for counts in all {
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    sum
}

/// Leases that began with the same statement on the same route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallSiteView {
    /// Route, if tagged.
    pub route: Option<Arc<str>>,
    /// Where in the application, as it said last.
    pub call_site: Option<Arc<str>>,
    /// Fingerprint of the first statement; 0 = not known.
    pub fingerprint: u64,
    /// Leases so far, since the call site was first seen or last forgotten.
    pub leases: u64,
    /// Σ hold of these.
    pub held: Duration,
    /// Σ active of these.
    pub active: Duration,
    /// Σ of the longest pause in each of their transactions.
    pub gaps: Duration,
    /// 99 in a hundred were held no longer lately; `None` before 100 are known.
    pub hold_p99: Option<Duration>,
    /// 99 in a hundred paused no longer in their transaction; `None` before 100 are known.
    pub gap_p99: Option<Duration>,
    /// The most often that one lease ran one statement, of those it ran last.
    pub repeats: u32,
    /// Leak cases opened.
    pub leaks: u64,
}

impl CallSiteView {
    /// Σ of what its leases were held while no statement ran.
    #[must_use]
    pub fn idle(&self) -> Duration {
        self.held.saturating_sub(self.active)
    }

    /// Active over held; 0 of nothing.
    #[must_use]
    pub fn efficiency(&self) -> f64 {
        let held = self.held.as_secs_f64();
        if held > 0.0 { self.active.as_secs_f64() / held } else { 0.0 }
    }
}

/// One tenant in one pool.
#[derive(Debug, Clone)]
pub struct TenantView {
    /// Name.
    pub tenant: Arc<str>,
    /// Pool.
    pub pool: PoolId,
    /// Weight (B6).
    pub weight: u32,
    /// Minimum (B5) in leases.
    pub min: u32,
    /// Cap (B4) in leases.
    pub cap: u32,
    /// Leases held.
    pub leased: u32,
    /// Waiters.
    pub waiting: u32,
    /// Longest wait of those waiting.
    pub oldest_wait: Duration,
    /// Leases so far.
    pub leases_total: u64,
    /// Σ hold so far.
    pub held: Duration,
    /// Σ active so far.
    pub active: Duration,
    /// Σ wait so far.
    pub waited: Duration,
    /// Refusals so far.
    pub rejections: u64,
    /// Client sessions now.
    pub sessions: u32,
    /// How far its virtual time is behind that of its class, in milliseconds of a weight of one: what it
    /// has had too little. Below zero: it has had more, and others are before it.
    pub vtime_lag_ms: i64,
    /// Backend-seconds of about the last minute, those of leases still held included.
    pub lease_1m: Duration,
    /// That as a part of what all tenants of the pool had; zero if nobody had anything.
    pub share_1m: f64,
    /// The part it is due by its weight, among those who held or waited in that minute.
    pub share_due_1m: f64,
}

/// One request.
#[derive(Debug, Clone)]
pub struct RequestView {
    /// Id.
    pub id: Arc<str>,
    /// Whose.
    pub tag: Arc<Tag>,
    /// First seen.
    pub since: Instant,
    /// Leases held now.
    pub leases_now: u32,
    /// Highest at once.
    pub leases_peak: u32,
    /// Client transactions so far: what problem S0 counts as sessions.
    pub leases_total: u32,
    /// Waiters now.
    pub waiting: u32,
    /// Σ wait so far.
    pub waited: Duration,
    /// Σ active so far.
    pub active: Duration,
    /// Σ hold so far.
    pub held: Duration,
    /// Statements so far.
    pub statements: u64,
    /// Refusals so far.
    pub rejections: u32,
    /// Why it is over, if it is.
    pub end: Option<crate::book::End>,
    /// Leases left before B2 first says something, and its mode.
    pub leases_left: Option<u32>,
    /// See there.
    pub mode: crate::config::Mode,
    /// How often it ran the statement that it ran most often, as far as is known.
    pub repeats: u32,
}

/// One held lease.
#[derive(Debug, Clone)]
pub struct LeaseView {
    /// Id.
    pub id: LeaseId,
    /// Holder.
    pub session: SessionId,
    /// Pool.
    pub pool: PoolId,
    /// Whose.
    pub tag: Arc<Tag>,
    /// Granted at.
    pub since: Instant,
}

/// One waiter.
#[derive(Debug, Clone)]
pub struct WaiterView {
    /// Who.
    pub session: SessionId,
    /// Pool.
    pub pool: PoolId,
    /// Whose.
    pub tag: Arc<Tag>,
    /// Since.
    pub since: Instant,
    /// Until.
    pub deadline: Instant,
    /// Its scheduling class.
    pub class: Arc<str>,
    /// `pool_full`, `tenant_cap`, `request_cap`, `class_cap`, `reserve`, `express`, `unsafe`, `deadlock`, `paused`
    pub reason: &'static str,
    /// It goes on with a request, before new ones of its tenant.
    pub continues: bool,
}
