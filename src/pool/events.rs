//! Leak events for the log (budgets.md §5.3): the book's half, and what only doors know.

use super::Pools;
use crate::book::LeakEvent;
use crate::clock;
use std::sync::Arc;

/// Logs one event: opened, or closed again.
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
    tracing::warn!(
        event = "lease_leak",
        case = event.id,
        class = event.class.name(),
        outcome = event.outcome.name(),
        action = event.action,
        pool = pools
            .by_id(event.pool)
            .map_or_else(String::new, |pool| format!("{}/{}", pool.database, pool.user)),
        lease = event.lease.0,
        session = event.session.0,
        backend_pid = cell.and_then(|cell| cell.backend_of(event.lease)).unwrap_or(0),
        hold_ms = event.held.as_millis() as u64,
        idle_ms = event.idle.as_millis() as u64,
        active_ms = detail.map_or(0, |detail| detail.active.as_millis() as u64),
        tx_age_ms = event.tx_age.as_millis() as u64,
        threshold_ms = event.threshold.as_millis() as u64,
        request = event.tag.request.as_deref().unwrap_or(""),
        request_leases = event.request_leases,
        tenant = &*event.tag.tenant,
        user_id = event.tag.user_id.as_deref().unwrap_or(""),
        thread_id = event.tag.thread_id.as_deref().unwrap_or(""),
        session_id = event.tag.session_id.as_deref().unwrap_or(""),
        route = event.tag.route.as_deref().unwrap_or(""),
        application = cell.map_or("", |cell| &*cell.application),
        client = cell.map_or("", |cell| &*cell.client),
        statements,
        waiters = event.waiters,
        oldest_wait_ms = event.oldest_wait.as_millis() as u64,
        "a session holds its backend too long"
    );
}
