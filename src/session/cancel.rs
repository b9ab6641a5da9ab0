//! Cancel requests: to the backend that a session holds *now*, or nowhere (wire.md E).
//!
//! While a request is on its way its session keeps the backend, so that the signal never hits
//! somebody else's statement, and sends it nothing new, so that it does not hit the session's next one.
//! Nothing is answered, whatever happens, as in PostgreSQL.

use super::registry::Registry;
use crate::backend::Cancelled;
use crate::clock;
use crate::metrics::{Cancel, Metrics};
use crate::pool::cell::{Begun, Cell};
use std::sync::Arc;
use std::time::Duration;

/// How often to look whether Bursar's own work ahead of the statement is done, and at first, whether another
/// cancel is.
const LOOK: Duration = Duration::from_millis(2);

/// And at last: many may wait for one another.
const LOOK_OF_MANY: Duration = Duration::from_millis(64);

/// How long connecting to the server may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A backend that was given a statement so long ago has read it. PostgreSQL forgets a signal that comes
/// before that, and the statement may have waited for its backend, so that to its client it has been
/// running for long.
const READ: Duration = Duration::from_millis(100);

/// When to signal a statement again that may not have been read, at first; then twice as long each time.
const AGAIN: Duration = Duration::from_millis(5);

/// Handles a CancelRequest to its end. Whoever sent it may take the end of its connection to mean that no
/// signal will come any more, as it does with PostgreSQL.
pub async fn request(registry: &Registry, metrics: &Metrics, pid: u32, key: &[u8]) {
    let outcome = match registry.by_key(pid, key) {
        Some(cell) => deliver(&cell).await,
        None => Cancel::Unknown,
    };
    metrics.cancels.inc(outcome);
}

/// Cancels what the session does now: its wait, or what its backend runs for it.
pub(super) async fn deliver(cell: &Arc<Cell>) -> Cancel {
    let started = clock::now();
    let (mut again, mut look) = (AGAIN, LOOK);
    let mut signalled = None;
    loop {
        match cell.begin_cancel(signalled) {
            Begun::Signal(ticket) => {
                let mut aim = None;
                let aimed = || {
                    aim = ticket.runs_since();
                    aim.is_some()
                };
                let sent = ticket.handle.send(CONNECT, aimed).await;
                let sent = sent.inspect_err(|error| {
                    tracing::warn!(%error, session = cell.id.0, "cannot deliver a cancel request");
                });
                // Another one that runs by now is not what was meant.
                let runs = ticket.runs_since().filter(|since| aim == Some(*since));
                drop(ticket);
                let young = runs.filter(|since| clock::now().saturating_duration_since(*since) < READ);
                if young.is_none() || !matches!(sent, Ok(Cancelled::Signalled)) {
                    return Cancel::Forwarded;
                }
                signalled = young;
                tokio::time::sleep(again).await;
                again *= 2;
            }
            Begun::Queued => return Cancel::Queued,
            Begun::NotYet if clock::now().saturating_duration_since(started) < CONNECT => {
                tokio::time::sleep(LOOK).await;
            }
            // It may have come too early to count; if the statement is still there, it gets its own.
            Begun::Underway(statement) if clock::now().saturating_duration_since(started) < CONNECT => {
                signalled = Some(statement);
                tokio::time::sleep(look).await;
                look = (look * 2).min(LOOK_OF_MANY);
            }
            Begun::Underway(_) => return Cancel::Forwarded,
            Begun::Idle | Begun::NotYet if signalled.is_some() => return Cancel::Forwarded,
            Begun::Idle | Begun::NotYet => return Cancel::Idle,
        }
    }
}
