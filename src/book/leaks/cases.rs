//! Leak cases: opened once, given a stronger name at most, closed once, the last thousand closed ones kept.
//!
//! What is a case is said in `classify`, when it becomes one in `find`; how to log one is the pool's
//! business.

use super::classify::{Evidence, Threshold};
use crate::book::leases::Lease;
use crate::book::report::Dim;
use crate::book::watch::Watch;
use crate::book::{Action, Book, LeaseId, PoolId, SessionId};
use crate::config::Mode;
use crate::tag::Tag;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Closed cases kept for SHOW LEAKS (budgets.md §5.3).
pub const CLOSED_KEPT: usize = 1_000;

/// The classes of budgets.md §5.2, the strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LeakClass {
    /// The client went away and left work behind.
    AbandonedClient,
    /// In a transaction, idle, and nobody will come back to it.
    Leaked,
    /// In a transaction, idle too long.
    IdleInTx,
    /// The same, but its request is at work in another session.
    Nested,
    /// A statement waits for a lock.
    LockWait,
    /// A statement runs too long.
    SlowQuery,
    /// The client does not take the result, or does not send the data of a COPY.
    StalledClient,
    /// A transaction too old, but working.
    LongTx,
    /// Kept by a pin, doing nothing, in a pool that lends per transaction.
    Pinned,
}

impl LeakClass {
    /// Each of them, the strongest first.
    pub const ALL: [LeakClass; 9] = [
        LeakClass::AbandonedClient,
        LeakClass::Leaked,
        LeakClass::IdleInTx,
        LeakClass::Nested,
        LeakClass::LockWait,
        LeakClass::SlowQuery,
        LeakClass::StalledClient,
        LeakClass::LongTx,
        LeakClass::Pinned,
    ];

    /// As in `SHOW LEAKS` and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LeakClass::AbandonedClient => "abandoned_client",
            LeakClass::Leaked => "leaked",
            LeakClass::IdleInTx => "idle_in_tx",
            LeakClass::Nested => "nested",
            LeakClass::LockWait => "lock_wait",
            LeakClass::SlowQuery => "slow_query",
            LeakClass::StalledClient => "stalled_client",
            LeakClass::LongTx => "long_tx",
            LeakClass::Pinned => "pinned",
        }
    }

    /// Whether a case of this class is over when its transaction is.
    pub(super) fn of_transaction(self) -> bool {
        matches!(self, LeakClass::Leaked | LeakClass::IdleInTx | LeakClass::Nested | LeakClass::LongTx)
    }
}

/// How a leak case stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Still held.
    Open,
    /// Came back by itself.
    Returned,
    /// Taken back by Bursar.
    Reclaimed,
    /// Came back because its client went away.
    ClientGone,
}

impl Outcome {
    /// As in `SHOW LEAKS` and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Open => "open",
            Outcome::Returned => "returned",
            Outcome::Reclaimed => "reclaimed",
            Outcome::ClientGone => "client_gone",
        }
    }
}

/// One leak case as it stands: the book's half of budgets.md §5.3's event. The pool adds what only
/// doors know (client address, application, backend pid, statements) from the lease's cell.
#[derive(Debug, Clone)]
pub struct LeakEvent {
    /// Case number.
    pub id: u64,
    /// The lease.
    pub lease: LeaseId,
    /// The session that holds it.
    pub session: SessionId,
    /// The pool.
    pub pool: PoolId,
    /// Class.
    pub class: LeakClass,
    /// How it stands.
    pub outcome: Outcome,
    /// `report`; `would_abort`, `would_close` where a mode other than enforce keeps from acting; `soft_abort`,
    /// `cancel`, `close` once Bursar has acted; `rollback` for an abandoned client.
    pub action: &'static str,
    /// The mode of `[leak]`.
    pub mode: Mode,
    /// Threshold that was crossed; zero where none is.
    pub threshold: Threshold,
    /// What else speaks for it.
    pub evidence: Evidence,
    /// When it opened or, once closed, when it was closed.
    pub reported: Instant,
    /// Held for.
    pub held: Duration,
    /// Time in which statements ran, at the time of the report.
    pub active: Duration,
    /// Idle for (at the time of the report).
    pub idle: Duration,
    /// Age of the transaction.
    pub tx_age: Duration,
    /// Whose.
    pub tag: Arc<Tag>,
    /// Leases of its request so far.
    pub request_leases: u32,
    /// The most of them at once.
    pub request_peak: u32,
    /// Whether its client has said that the request is over.
    pub request_ended: bool,
    /// Waiters in the pool, and how long the oldest has waited.
    pub waiters: usize,
    /// The oldest waiter's wait.
    pub oldest_wait: Duration,
    /// Of `lock_wait`: who has the lock.
    pub blocked_by: Option<Arc<str>>,
}

/// A lease's end of an open case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::book) struct OpenCase {
    pub(super) id: u64,
    pub(super) class: LeakClass,
    /// When the transaction, statement or pause in question began: tells it from the next one.
    pub(super) mark: Instant,
}

#[derive(Debug, Default)]
pub(in crate::book) struct Cases {
    next: u64,
    open: BTreeMap<u64, LeakEvent>,
    closed: VecDeque<LeakEvent>,
    totals: BTreeMap<(LeakClass, &'static str, Outcome), u64>,
}

/// How long things have lasted when a case opens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spans {
    pub(super) now: Instant,
    pub(super) idle: Duration,
    pub(super) active: Duration,
    pub(super) tx_age: Duration,
}

/// What a case is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finding {
    pub(super) class: LeakClass,
    pub(super) threshold: Threshold,
    pub(super) evidence: Evidence,
    pub(super) action: &'static str,
}

impl Cases {
    pub(super) fn open<B, W>(
        &mut self,
        mut event: LeakEvent,
        mark: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) -> OpenCase {
        self.next += 1;
        event.id = self.next;
        let case = OpenCase { id: event.id, class: event.class, mark };
        self.tell(event, actions);
        case
    }

    /// An open case has another name, or more has become known of it: told once more.
    pub(super) fn rename<B, W>(
        &mut self,
        case: OpenCase,
        mut event: LeakEvent,
        actions: &mut Vec<Action<B, W>>,
    ) -> OpenCase {
        event.id = case.id;
        let class = event.class;
        self.tell(event, actions);
        OpenCase { class, ..case }
    }

    fn tell<B, W>(&mut self, event: LeakEvent, actions: &mut Vec<Action<B, W>>) {
        *self.totals.entry((event.class, event.action, Outcome::Open)).or_default() += 1;
        actions.push(Action::Leak(Box::new(event.clone())));
        self.open.insert(event.id, event);
    }

    /// What an open case was last said to come to.
    pub(super) fn action(&self, case: OpenCase) -> &'static str {
        self.open.get(&case.id).map_or("report", |event| event.action)
    }

    pub(super) fn close<B, W>(
        &mut self,
        case: OpenCase,
        hint: Option<Outcome>,
        watch: &Watch,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let Some(mut event) = self.open.remove(&case.id) else { return };
        let since_open = now.saturating_duration_since(event.reported);
        event.held += since_open;
        if case.class.of_transaction() {
            event.tx_age += since_open;
        }
        event.reported = now;
        let acted = acted(case.class, watch);
        event.action = acted.unwrap_or(event.action);
        let by_itself = if acted.is_some() { Outcome::Reclaimed } else { Outcome::Returned };
        event.outcome = hint.unwrap_or(by_itself);
        self.file(event, actions);
    }

    fn file<B, W>(&mut self, event: LeakEvent, actions: &mut Vec<Action<B, W>>) {
        *self.totals.entry((event.class, event.action, event.outcome)).or_default() += 1;
        actions.push(Action::Leak(Box::new(event.clone())));
        if self.closed.len() == CLOSED_KEPT {
            self.closed.pop_front();
        }
        self.closed.push_back(event);
    }

    /// By number, so the newest is last.
    pub(in crate::book) fn rows(&self) -> Vec<LeakEvent> {
        let mut rows: Vec<LeakEvent> = self.closed.iter().chain(self.open.values()).cloned().collect();
        rows.sort_unstable_by_key(|event| event.id);
        rows
    }

    pub(in crate::book) fn totals(&self) -> Vec<(&'static str, &'static str, &'static str, u64)> {
        let rows = self.totals.iter();
        rows.map(|(&(class, action, outcome), &count)| (class.name(), action, outcome.name(), count))
            .collect()
    }
}

/// What Bursar has done about a lease of this class, if anything.
pub(super) fn acted(class: LeakClass, watch: &Watch) -> Option<&'static str> {
    let cancels = match class {
        LeakClass::StalledClient => watch.has_acted(Dim::B13),
        LeakClass::SlowQuery | LeakClass::LockWait => watch.has_acted(Dim::B12),
        _ => false,
    };
    match class {
        LeakClass::AbandonedClient => Some("rollback"),
        LeakClass::Pinned if watch.ended => Some("close"),
        _ if watch.ended => Some("soft_abort"),
        _ => cancels.then_some("cancel"),
    }
}

impl<B, W> Book<B, W> {
    /// A case about a lease as it stands.
    pub(super) fn event_about(
        &self,
        id: LeaseId,
        lease: &Lease,
        finding: Finding,
        spans: Spans,
    ) -> LeakEvent {
        let in_pool = self.waiters.values().filter(|waiter| waiter.claim.pool == lease.pool);
        let oldest = in_pool.map(|waiter| waiter.since).min();
        let request = lease.who.request.map(|request| &self.requests[request]);
        LeakEvent {
            id: 0,
            lease: id,
            session: lease.session,
            pool: lease.pool,
            class: finding.class,
            outcome: Outcome::Open,
            action: finding.action,
            mode: self.limits.leak.mode,
            threshold: finding.threshold,
            evidence: finding.evidence,
            reported: spans.now,
            held: spans.now.saturating_duration_since(lease.since),
            active: spans.active,
            idle: spans.idle,
            tx_age: spans.tx_age,
            tag: lease.tag.clone(),
            request_leases: request.map_or(1, crate::book::requests::Request::leases_total),
            request_peak: request.map_or(1, crate::book::requests::Request::leases_peak),
            request_ended: request.is_some_and(|request| request.ended.is_some()),
            blocked_by: self
                .watchman
                .locked
                .get(&id)
                .filter(|_| finding.class == LeakClass::LockWait)
                .map(|(_, others)| others.clone()),
            waiters: self.pools[lease.pool.0 as usize].waiting,
            oldest_wait: oldest.map_or(Duration::ZERO, |since| spans.now.saturating_duration_since(since)),
        }
    }

    /// A lease is back: its case is closed, and a client that left work behind is one by itself.
    pub(in crate::book) fn close_cases(
        &mut self,
        id: LeaseId,
        lease: &Lease,
        (hint, active): (Option<Outcome>, Duration),
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let watch = lease.watch.as_deref();
        if let Some((watch, case)) = watch.and_then(|watch| Some((watch, watch.case?))) {
            return self.cases.close(case, hint, watch, now, actions);
        }
        if hint == Some(Outcome::ClientGone) {
            let finding = Finding {
                class: LeakClass::AbandonedClient,
                threshold: Threshold::fixed(Duration::ZERO),
                evidence: Evidence::NONE,
                action: "rollback",
            };
            let spans = Spans { now, idle: Duration::ZERO, active, tx_age: Duration::ZERO };
            let mut event = self.event_about(id, lease, finding, spans);
            event.outcome = Outcome::ClientGone;
            self.cases.next += 1;
            event.id = self.cases.next;
            self.callsites.leaked(&lease.tag, lease.fingerprint, now);
            self.cases.file(event, actions);
        }
    }
}
