//! Cancelling what a session does, so that the signal hits what it is meant for or nothing (wire.md E).
//!
//! Who wants to cancel gets a ticket under the lock that also guards what the session does. While there is one the
//! session keeps its backend; whether the statement still runs is asked again just before the signal goes.

use super::{Cell, Link, Order, State};
use crate::backend::CancelHandle;
use crate::book::LeaseId;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A statement that waits for a lock of its own request, for the words of its error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnLock {
    /// Its backend's process id, and its fingerprint.
    pub waits: (i32, String),
    /// The same of the lease that has the lock, and of its last statement.
    pub holds: (i32, String),
    /// For how long that has been idle in transaction.
    pub idle: Duration,
}

impl Cell {
    /// A cancel request with the right key has come. A queued session cancels its wait; a session
    /// whose backend works for it gives a ticket to send the signal with; otherwise nothing
    /// happens, as in PostgreSQL.
    ///
    /// For one statement, if given: where another one runs by now there is nothing to cancel.
    ///
    /// One at a time: PostgreSQL starts a process for each, and a client may send any number.
    #[must_use]
    pub fn begin_cancel(self: &Arc<Self>, statement: Option<Instant>) -> Begun {
        let mut live = self.live.lock();
        if live.state == State::Waiting && statement.is_none() {
            drop(live);
            self.order(Order::CancelWait);
            return Begun::Queued;
        }
        let running = self.statement_of(&live);
        let busy = running.is_some() && (statement.is_none() || statement == running);
        let (Some(link), Some(running)) = (live.link.as_mut().filter(|_| busy), running) else {
            return Begun::Idle;
        };
        if link.injected {
            return Begun::NotYet;
        }
        if link.cancels > 0 {
            return Begun::Underway(running);
        }
        Begun::Signal(self.ticket(link, statement))
    }

    /// The statement that this lease has been running since `since` is to be cancelled, because it
    /// waits for a lock of its own request. `None` if it is over.
    #[must_use]
    pub fn begin_own_cancel(
        self: &Arc<Self>,
        lease: LeaseId,
        since: Instant,
        lock: OwnLock,
    ) -> Option<CancelTicket> {
        let mut live = self.live.lock();
        let runs = self.statement_of(&live) == Some(since);
        let link = live.link.as_mut().filter(|link| runs && link.lease == lease && !link.injected)?;
        link.own_lock = Some(Box::new(lock));
        Some(self.ticket(link, Some(since)))
    }

    /// One more cancel is on its way to the backend of this link.
    fn ticket(self: &Arc<Self>, link: &mut Link, statement: Option<Instant>) -> CancelTicket {
        link.cancels += 1;
        self.cancelling.store(true, Ordering::Release);
        CancelTicket { cell: self.clone(), handle: link.cancel.clone(), lease: link.lease, statement }
    }

    /// Why the statement that has just been cancelled was, if it was for a lock of its own request.
    #[must_use]
    pub fn take_own_lock(&self) -> Option<Box<OwnLock>> {
        self.live.lock().link.as_mut()?.own_lock.take()
    }
}

/// What a cancel request comes to.
#[derive(Debug)]
pub enum Begun {
    /// The backend works for the session: send the signal.
    Signal(CancelTicket),
    /// The session was queued and gives up its place.
    Queued,
    /// The backend is still busy with something of Bursar's own, ahead of the client's statement.
    NotYet,
    /// Another cancel is on its way to the statement that has been running since then.
    Underway(Instant),
    /// There is nothing to cancel.
    Idle,
}

/// The right to send one cancel: while it exists the backend stays with its session.
#[derive(Debug)]
pub struct CancelTicket {
    cell: Arc<Cell>,
    /// Where to send it.
    pub handle: Arc<CancelHandle>,
    lease: LeaseId,
    statement: Option<Instant>,
}

impl CancelTicket {
    /// Whether the backend still works for its session; to be asked just before sending.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.runs_since().is_some()
    }

    /// When the statement began that would be hit.
    #[must_use]
    pub fn runs_since(&self) -> Option<Instant> {
        let live = self.cell.live.lock();
        live.link.as_ref().filter(|link| link.lease == self.lease && !link.injected)?;
        let running = self.cell.statement_of(&live);
        running.filter(|_| self.statement.is_none() || self.statement == running)
    }
}

impl Drop for CancelTicket {
    fn drop(&mut self) {
        let mut live = self.cell.live.lock();
        let Some(link) = live.link.as_mut().filter(|link| link.lease == self.lease) else { return };
        link.cancels = link.cancels.saturating_sub(1);
        let last = link.cancels == 0;
        if last {
            self.cell.cancelling.store(false, Ordering::Release);
        }
        drop(live);
        if last {
            self.cell.order(Order::CancelDone);
        }
    }
}
