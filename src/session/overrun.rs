//! A statement that is over its budget: cancelled (B12, deadlines); and in whose words the client hears of a
//! statement that Bursar has cancelled, for whatever reason.
//!
//! The book names the statement, and a cancel request is sent only while that one runs. While the
//! request is on its way the session keeps its backend and sends it nothing new, so that the signal
//! hits this statement, or one that the client had sent ahead behind it, or none. What PostgreSQL then says
//! (57014) is passed on with the reason that only Bursar knows; if the statement was quicker, it ends as if
//! nothing had been.
//!
//! One sent ahead is hit where the statement ends while the signal is on its way, and since PostgreSQL signals
//! its process and then the process group: between the two a backend may have gone on. It is told so.

use super::reply;
use super::{Session, Socket};
use crate::book::Overrun;
use crate::pool::cell::Begun;
use crate::wire::backend::error_field;
use crate::wire::error::Report;
use crate::wire::walk::HEADER;
use std::time::{Duration, Instant};

/// How long connecting to the server for a cancel request may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A statement that is being cancelled.
#[derive(Debug)]
pub(super) struct Cut {
    why: Overrun,
    /// When the statement began that is to be hit; `None` = whichever runs.
    statement: Option<Instant>,
    /// What has just failed is not that statement.
    missed: bool,
    /// The cancel request has reached the server, or never will.
    delivered: bool,
}

impl Cut {
    /// Of a statement that has been cancelled.
    pub(super) fn delivered(why: Overrun) -> Cut {
        Cut { why, statement: None, missed: false, delivered: true }
    }

    fn report(&self) -> Report {
        match self.why {
            Overrun::Statement { .. } | Overrun::Deadline { .. } if self.missed => {
                reply::hit_instead(&self.why)
            }
            _ => reply::overrun(&self.why),
        }
    }
}

impl<S: Socket> Session<S> {
    /// Cancels the statement that began then, unless it has ended. The book asks again if it has to.
    pub(super) fn cut(&mut self, statement: Instant, why: Overrun) {
        if self.linked.cut.as_ref().is_some_and(|cut| !cut.delivered) {
            return;
        }
        let Begun::Signal(ticket) = self.cell.begin_cancel(Some(statement)) else { return };
        let statement = Some(statement);
        self.linked.cut = Some(Box::new(Cut { why, statement, missed: false, delivered: false }));
        let session = self.cell.id.0;
        tokio::spawn(async move {
            let handle = ticket.handle.clone();
            if let Err(error) = handle.send(CONNECT, || ticket.is_wanted()).await {
                tracing::warn!(%error, session, "cannot cancel a statement that is over its budget");
            }
        });
    }
}

impl<S> Session<S> {
    /// The cancel request is through: the statement ends now, or has ended by itself.
    pub(super) fn cut_delivered(&mut self) {
        if let Some(cut) = &mut self.linked.cut {
            cut.delivered = true;
        }
        if !self.tracker.is_busy() {
            self.linked.cut = None;
        }
    }

    /// A statement fails: whether it is the one to be cancelled, which is to be asked while it still runs for the
    /// cell.
    pub(super) fn aim_cut(&mut self) {
        if let Some(cut) = &mut self.linked.cut {
            cut.missed = cut.statement.is_some() && cut.statement != self.cell.runs_since();
        }
    }

    /// Nothing is outstanding any more.
    pub(super) fn end_cut(&mut self) {
        self.linked.cut.take_if(|cut| cut.delivered);
    }

    /// Whether the client's next message waits for a cancel request to arrive, Bursar's or the client's.
    #[inline]
    pub(super) fn is_held_for_cancel(&self) -> bool {
        let cut = || self.linked.cut.as_ref().is_some_and(|cut| !cut.delivered);
        (self.cell.has_cancels() || cut()) && self.lease.is_some()
    }

    /// An error for the client, of which so much has been seen: if a statement was cancelled, and that was
    /// Bursar's doing, says why instead. Returns whether it did.
    pub(super) fn says_why_cancelled(&mut self, seen: usize) -> bool {
        let body = &self.down.lane.unwalked()[HEADER..seen];
        if error_field(body, b'C') != Some(b"57014") {
            return false;
        }
        let Some(why) = self.why_cancelled() else { return false };
        self.down.lane.make(|out| why.encode(out));
        true
    }

    /// Whichever of those who cancel it was: the doors, of a lock; the book, of a budget; or the session itself,
    /// of a transaction that is to end.
    fn why_cancelled(&mut self) -> Option<Report> {
        if let Some(lock) = self.cell.take_own_lock() {
            return Some(reply::own_lock(&lock));
        }
        if let Some(cut) = &self.linked.cut {
            return Some(cut.report());
        }
        self.linked.verdict.take().map(|why| *why)
    }
}
