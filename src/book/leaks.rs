//! Leak cases: opened once, closed once, the last thousand closed ones kept.
//!
//! What counts as a leak is the tick's business (`overstay`); how to log one is the pool's.

use super::leases::Lease;
use super::{Action, Book, LeakClass, LeakEvent, LeaseId};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Closed cases kept for SHOW LEAKS (budgets.md §5.3).
pub const CLOSED_KEPT: usize = 1_000;

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

/// A lease's end of an open case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenCase {
    id: u64,
    pub(super) class: LeakClass,
    /// When the transaction, statement or pause in question began: tells it from the next one.
    pub(super) mark: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Cases {
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
    pub(super) tx_age: Duration,
}

impl LeakClass {
    /// Whether a case of this class is over when its transaction is.
    pub(super) fn of_transaction(self) -> bool {
        matches!(self, LeakClass::IdleInTx | LeakClass::LongTx)
    }
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
        *self.totals.entry((event.class, event.action, Outcome::Open)).or_default() += 1;
        actions.push(Action::Leak(Box::new(event.clone())));
        let case = OpenCase { id: event.id, class: event.class, mark };
        self.open.insert(event.id, event);
        case
    }

    pub(super) fn close<B, W>(
        &mut self,
        case: OpenCase,
        outcome: Outcome,
        ended: bool,
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
        event.outcome = outcome;
        event.action = action(case.class, ended);
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
    pub(super) fn rows(&self) -> Vec<LeakEvent> {
        let mut rows: Vec<LeakEvent> = self.closed.iter().chain(self.open.values()).cloned().collect();
        rows.sort_unstable_by_key(|event| event.id);
        rows
    }

    pub(super) fn totals(&self) -> Vec<(&'static str, &'static str, &'static str, u64)> {
        let rows = self.totals.iter();
        rows.map(|(&(class, action, outcome), &count)| (class.name(), action, outcome.name(), count))
            .collect()
    }
}

fn action(class: LeakClass, ended: bool) -> &'static str {
    match (class, ended) {
        (LeakClass::AbandonedClient, _) => "rollback",
        (_, true) => "soft_abort",
        (_, false) => "report",
    }
}

impl<B, W> Book<B, W> {
    /// A case about a held lease as it stands.
    pub(super) fn leak_event(
        &self,
        id: LeaseId,
        class: LeakClass,
        threshold: Duration,
        ended: bool,
        spans: Spans,
    ) -> Option<LeakEvent> {
        Some(self.event_about(id, self.leases.get(&id)?, class, threshold, ended, spans))
    }

    fn event_about(
        &self,
        id: LeaseId,
        lease: &Lease,
        class: LeakClass,
        threshold: Duration,
        ended: bool,
        spans: Spans,
    ) -> LeakEvent {
        let in_pool = self.waiters.values().filter(|waiter| waiter.claim.pool == lease.pool);
        let oldest = in_pool.map(|waiter| waiter.since).min();
        LeakEvent {
            id: 0,
            lease: id,
            session: lease.session,
            pool: lease.pool,
            class,
            outcome: Outcome::Open,
            action: action(class, ended),
            threshold,
            reported: spans.now,
            held: spans.now.saturating_duration_since(lease.since),
            idle: spans.idle,
            tx_age: spans.tx_age,
            tag: lease.tag.clone(),
            request_leases: lease.who.request.map_or(1, |request| self.requests[request].leases_total()),
            waiters: self.pools[lease.pool.0 as usize].waiting,
            oldest_wait: oldest.map_or(Duration::ZERO, |since| spans.now.saturating_duration_since(since)),
        }
    }

    /// A lease is back: its cases are closed, and a client that left work behind is one by itself.
    pub(super) fn close_cases(
        &mut self,
        id: LeaseId,
        lease: &Lease,
        hint: Option<Outcome>,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let watch = lease.watch.as_deref().copied().unwrap_or_default();
        if watch.long.is_none() && watch.idle.is_none() {
            if hint == Some(Outcome::ClientGone) {
                let spans = Spans { now, idle: Duration::ZERO, tx_age: Duration::ZERO };
                let class = LeakClass::AbandonedClient;
                let mut event = self.event_about(id, lease, class, Duration::ZERO, false, spans);
                event.outcome = Outcome::ClientGone;
                self.cases.next += 1;
                event.id = self.cases.next;
                self.cases.file(event, actions);
            }
            return;
        }
        let by_itself = if watch.ended { Outcome::Reclaimed } else { Outcome::Returned };
        let outcome = hint.unwrap_or(by_itself);
        for case in [watch.long, watch.idle].into_iter().flatten() {
            self.cases.close(case, outcome, watch.ended, now, actions);
        }
    }
}
