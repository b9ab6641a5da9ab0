//! Cancel requests: to the backend that a session holds *now*, or nowhere (wire.md E).
//!
//! While a request is on its way its session keeps the backend, so that the signal never hits
//! somebody else's statement. Nothing is answered, whatever happens, as in PostgreSQL.

use super::registry::Registry;
use crate::clock;
use crate::metrics::{Cancel, Metrics};
use crate::pool::cell::Begun;
use std::time::Duration;

/// How often to look whether Bursar's own work ahead of the statement is done.
const LOOK: Duration = Duration::from_millis(2);

/// How long connecting to the server may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Handles a CancelRequest to its end.
pub async fn request(registry: &Registry, metrics: &Metrics, pid: u32, key: &[u8]) {
    let Some(cell) = registry.by_key(pid, key) else {
        metrics.cancels.inc(Cancel::Unknown);
        return;
    };
    let started = clock::now();
    let ticket = loop {
        match cell.begin_cancel() {
            Begun::Signal(ticket) => break ticket,
            Begun::Queued => return metrics.cancels.inc(Cancel::Queued),
            Begun::NotYet if clock::now().saturating_duration_since(started) < CONNECT => {
                tokio::time::sleep(LOOK).await;
            }
            Begun::Idle | Begun::NotYet => return metrics.cancels.inc(Cancel::Idle),
        }
    };
    let handle = ticket.handle.clone();
    let sent = handle.send(CONNECT, || ticket.is_wanted()).await;
    metrics.cancels.inc(Cancel::Forwarded);
    if let Err(error) = sent {
        tracing::warn!(%error, session = cell.id.0, "cannot deliver a cancel request");
    }
}
