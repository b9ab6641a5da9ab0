//! Events for the log. Deadlocks, as the book tells them; leaks (budgets.md §5.3): the book's half, and what only doors know. Logged here, and what
//! doors know is kept for SHOW LEAKS, because the session may be gone before anybody looks.

use super::Pools;
use super::cell::Cell;
use super::view::LeakDetail;
use crate::book::{BreakerTurn, CLOSED_KEPT, Deadlock, End, LeakEvent, Outcome, RequestOver, Violation};
use crate::breaker::State;
use crate::clock;
use crate::config::Mode;
use crate::metrics::{Isolation, Label};
use crate::tag::Tag;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Details by case, as long as the book keeps the case: open, or among the last closed.
#[derive(Debug, Default)]
pub(super) struct Details {
    cases: HashMap<u64, LeakDetail>,
    closed: VecDeque<u64>,
}

impl Details {
    /// Keeps what was known first: a case is reported again when its session may be gone.
    fn learn(&mut self, event: &LeakEvent, detail: impl FnOnce() -> Option<LeakDetail>) {
        if !self.cases.contains_key(&event.id)
            && let Some(detail) = detail()
        {
            self.cases.insert(event.id, detail);
        }
        if event.outcome != Outcome::Open {
            self.closed.push_back(event.id);
        }
        if self.closed.len() > CLOSED_KEPT
            && let Some(oldest) = self.closed.pop_front()
        {
            self.cases.remove(&oldest);
        }
    }

    /// PostgreSQL has said whether the transaction of a case has written something.
    pub(super) fn learn_xid(&mut self, case: u64, assigned: bool) {
        if let Some(detail) = self.cases.get_mut(&case) {
            detail.xid_assigned = Some(assigned);
        }
    }

    fn xid(&self, case: u64) -> Option<bool> {
        self.cases.get(&case)?.xid_assigned
    }

    pub(super) fn all(&self) -> HashMap<u64, LeakDetail> {
        self.cases.clone()
    }
}

/// Logs that a server's breaker has changed its state.
pub(super) fn breaker(turn: &BreakerTurn) {
    let BreakerTurn { upstream, turn, error } = turn;
    let (state, reason, error) = (turn.to.name(), turn.reason.name(), error.as_deref());
    match turn.to {
        State::Open { .. } => tracing::warn!(server = %upstream, state, reason, error, "breaker"),
        State::HalfOpen | State::Closed => {
            tracing::info!(server = %upstream, state, reason, error, "breaker")
        }
    }
}

/// Logs one event, opened or closed again, and keeps its details.
pub(super) fn leak(pools: &Arc<Pools>, event: &LeakEvent) {
    let config = pools.config();
    let cell = pools.cell(event.session);
    let cell = cell.as_deref();
    let detail = cell.and_then(|cell| cell.detail(config.leak.statement_text, clock::now()));
    let detail = detail.as_ref().filter(|detail| detail.lease == event.lease);
    let statements = detail.map_or_else(String::new, |detail| {
        let list = detail.statements.iter().map(|s| match &s.text {
            Some(text) => format!("{} {} ms ago: {text}", s.fingerprint, s.ago.as_millis()),
            None => format!("{} {} ms ago", s.fingerprint, s.ago.as_millis()),
        });
        list.collect::<Vec<_>>().join("; ")
    });
    let backend_pid = cell.and_then(|cell| cell.backend_of(event.lease)).unwrap_or(0);
    pools.leaks.lock().learn(event, || {
        Some(LeakDetail {
            backend_pid,
            application: cell?.application.clone(),
            client: cell?.client.clone(),
            last_fp: detail.and_then(|detail| Some(detail.statements.last()?.fingerprint.clone())),
            xid_assigned: None,
        })
    });
    pools.wonder(event);
    if event.mode == Mode::Observe {
        return;
    }
    let (p99, kappa) = event.threshold.learnt.unwrap_or_default();
    tracing::warn!(
        event = "lease_leak",
        case = event.id,
        class = event.class.name(),
        outcome = event.outcome.name(),
        action = event.action,
        mode = event.mode.name(),
        pool = pools
            .by_id(event.pool)
            .map_or_else(String::new, |pool| format!("{}/{}", pool.database, pool.user)),
        lease = event.lease.0,
        session = event.session.0,
        backend_pid,
        hold_ms = event.held.as_millis() as u64,
        idle_ms = event.idle.as_millis() as u64,
        active_ms = detail.map_or(event.active, |detail| detail.active).as_millis() as u64,
        efficiency = efficiency(event),
        tx_age_ms = event.tx_age.as_millis() as u64,
        xid_assigned = pools.leaks.lock().xid(event.id),
        threshold_ms = event.threshold.limit.as_millis() as u64,
        threshold_kind = event.threshold.kind(),
        p99_ms = p99.as_millis() as u64,
        kappa,
        evidence = event.evidence.names().join(","),
        request = event.tag.request.as_deref().unwrap_or(""),
        request_leases = event.request_leases,
        request_peak = event.request_peak,
        request_ended = event.request_ended,
        tenant = &*event.tag.tenant,
        user_id = event.tag.user_id.as_deref().unwrap_or(""),
        thread_id = event.tag.thread_id.as_deref().unwrap_or(""),
        session_id = event.tag.session_id.as_deref().unwrap_or(""),
        route = event.tag.route.as_deref().unwrap_or(""),
        call_site = event.tag.call_site.as_deref().unwrap_or(""),
        application = cell.map_or("", |cell| &*cell.application),
        client = cell.map_or("", |cell| &*cell.client),
        statements,
        blocked_by = event.blocked_by.as_deref().unwrap_or(""),
        waiters = event.waiters,
        oldest_wait_ms = event.oldest_wait.as_millis() as u64,
        "a session holds its backend too long"
    );
}

/// The part of a lease's time in which statements ran, to four places.
fn efficiency(event: &LeakEvent) -> f64 {
    let held = event.held.as_secs_f64();
    let part = if held > 0.0 { event.active.as_secs_f64() / held } else { 0.0 };
    (part * 1e4).round() / 1e4
}

/// Logs one budget that was exceeded.
pub(super) fn violation(pools: &Arc<Pools>, violation: &Violation) {
    let pool = violation.pool.and_then(|pool| pools.by_id(pool));
    let tag = &violation.tag;
    tracing::warn!(
        event = "budget_violation",
        dimension = violation.dimension,
        key = violation.key,
        outcome = violation.outcome,
        pool = pool.map_or_else(String::new, |pool| format!("{}/{}", pool.database, pool.user)),
        tenant = &*tag.tenant,
        request = tag.request.as_deref().unwrap_or(""),
        route = tag.route.as_deref().unwrap_or(""),
        user_id = tag.user_id.as_deref().unwrap_or(""),
        spent = violation.spent,
        limit = violation.limit,
        suppressed = violation.suppressed,
        "a budget was exceeded"
    );
}

/// Logs one request that is over by itself, or too old. Of those that fell silent there are as many as there
/// are requests whose client says nothing.
pub(super) fn request_over(over: &RequestOver) {
    let (tag, row) = (&over.tag, &over.row);
    macro_rules! log {
        ($level:ident, $text:literal) => {
            tracing::$level!(
                event = "request_over",
                ended_by = over.end.name(),
                mode = over.mode.name(),
                request = &*row.id,
                tenant = &*tag.tenant,
                route = tag.route.as_deref().unwrap_or(""),
                user_id = tag.user_id.as_deref().unwrap_or(""),
                age_ms = over.age.as_millis() as u64,
                leases_total = row.leases_total,
                leases_peak = row.leases_peak,
                leases_now = row.leases_now,
                wait_ms = row.waited.as_millis() as u64,
                hold_ms = row.held.as_millis() as u64,
                db_ms = row.active.as_millis() as u64,
                statements = row.statements,
                $text
            )
        };
    }
    match over.end {
        End::Age => log!(warn, "a request is too old"),
        End::Client | End::Idle => log!(debug, "a request is over"),
    }
}

/// Logs one isolation violation of a session.
pub fn isolation(kind: Isolation, cell: &Cell, tag: &Tag, repeated: bool) {
    tracing::warn!(
        event = "isolation_violation",
        kind = kind.name(),
        pool = format!("{}/{}", cell.database, cell.user),
        session = cell.id.0,
        tenant = &*tag.tenant,
        request = tag.request.as_deref().unwrap_or(""),
        user_id = tag.user_id.as_deref().unwrap_or(""),
        route = tag.route.as_deref().unwrap_or(""),
        application = &*cell.application,
        client = &*cell.client,
        repeated,
        "work that is to be kept apart would have mixed"
    );
}

/// Logs one deadlock.
pub(super) fn deadlock(pools: &Arc<Pools>, case: &Deadlock) {
    let victim = case.victim.as_deref();
    tracing::warn!(
        event = "deadlock",
        case = case.id,
        kind = case.kind.name(),
        resolution = case.resolution.name(),
        pool = pools
            .by_id(case.pool)
            .map_or_else(String::new, |pool| format!("{}/{}", pool.database, pool.user)),
        detected_ms = case.detected.as_millis() as u64,
        request = victim.and_then(|tag| tag.request.as_deref()).unwrap_or(""),
        tenant = victim.map_or("", |tag| &*tag.tenant),
        route = victim.and_then(|tag| tag.route.as_deref()).unwrap_or(""),
        holders = case.holders,
        parties = case.parties,
        waiters = case.waiters,
        evidence = case.evidence,
        "sessions wait for each other"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::{Evidence, LeakClass, LeaseId, PoolId, SessionId, Threshold};
    use std::time::Duration;

    fn event(id: u64, outcome: Outcome) -> LeakEvent {
        LeakEvent {
            id,
            lease: LeaseId(id),
            session: SessionId(1),
            pool: PoolId(0),
            class: LeakClass::IdleInTx,
            outcome,
            action: "report",
            mode: Mode::Warn,
            threshold: Threshold::fixed(Duration::ZERO),
            evidence: Evidence::NONE,
            reported: clock::now(),
            held: Duration::ZERO,
            active: Duration::ZERO,
            idle: Duration::ZERO,
            tx_age: Duration::ZERO,
            tag: Arc::default(),
            request_leases: 1,
            request_peak: 1,
            request_ended: false,
            waiters: 0,
            oldest_wait: Duration::ZERO,
            blocked_by: None,
        }
    }

    fn of(pid: i32) -> LeakDetail {
        LeakDetail {
            backend_pid: pid,
            application: "a".into(),
            client: "c".into(),
            last_fp: None,
            xid_assigned: None,
        }
    }

    #[test]
    fn details_last_as_long_as_their_case() {
        let mut details = Details::default();
        details.learn(&event(1, Outcome::Open), || Some(of(11)));
        details.learn(&event(2, Outcome::Open), || Some(of(12)));
        details.learn(&event(2, Outcome::ClientGone), || None);
        assert_eq!(details.all(), HashMap::from([(1, of(11)), (2, of(12))]));
        // A case that only shows when it is over.
        details.learn(&event(3, Outcome::Reclaimed), || Some(of(13)));
        for id in 4..4 + CLOSED_KEPT as u64 {
            details.learn(&event(id, Outcome::Open), || Some(of(14)));
            details.learn(&event(id, Outcome::Returned), || Some(of(15)));
        }
        let kept = details.all();
        assert_eq!(kept.len(), CLOSED_KEPT + 1, "the open one and the last closed");
        assert_eq!((kept.get(&1), kept.get(&2), kept.get(&3)), (Some(&of(11)), None, None));
        assert!(kept.iter().all(|(id, detail)| *id == 1 || *detail == of(14)), "the first stays");
        assert_eq!(details.closed.len(), CLOSED_KEPT);
    }
}
