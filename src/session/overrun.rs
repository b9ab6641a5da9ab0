//! A statement that is over its budget: cancelled, and the client told in Bursar's words (B12,
//! deadlines).
//!
//! The book names the statement, and a cancel request is sent only while that one runs. While the
//! request is on its way the session keeps its backend and sends it nothing new, so that the signal
//! hits this statement or none. What PostgreSQL then says (57014) is passed on with the reason that
//! only Bursar knows; if the statement was quicker, it ends as if nothing had been.

use super::reply;
use super::{Session, Socket};
use crate::book::Overrun;
use crate::pool::cell::Begun;
use crate::wire::backend::error_field;
use crate::wire::walk::HEADER;
use bytes::BytesMut;
use std::time::{Duration, Instant};

/// How long connecting to the server for a cancel request may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A statement that is being cancelled.
#[derive(Debug)]
pub(super) struct Cut {
    why: Overrun,
    /// The cancel request has reached the server, or never will.
    delivered: bool,
}

impl Cut {
    /// Of a statement that has been cancelled.
    pub(super) fn delivered(why: Overrun) -> Cut {
        Cut { why, delivered: true }
    }
}

impl<S: Socket> Session<S> {
    /// Cancels the statement that began then, unless it has ended. The book asks again if it has to.
    pub(super) fn cut(&mut self, statement: Instant, why: Overrun) {
        if self.linked.cut.as_ref().is_some_and(|cut| !cut.delivered) {
            return;
        }
        let Begun::Signal(ticket) = self.cell.begin_cancel(Some(statement)) else { return };
        self.linked.cut = Some(Box::new(Cut { why, delivered: false }));
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

    /// Nothing is outstanding any more.
    pub(super) fn end_cut(&mut self) {
        self.linked.cut.take_if(|cut| cut.delivered);
    }

    /// Whether the client's next message waits for a cancel request to arrive.
    #[inline]
    pub(super) fn is_held_for_cut(&self) -> bool {
        self.linked.cut.as_ref().is_some_and(|cut| !cut.delivered) && self.lease.is_some()
    }

    /// Whether the next message, of which so much has been seen, is the error of a statement that was
    /// cancelled for its budget.
    pub(super) fn is_cut(&self, seen: usize) -> bool {
        self.linked.cut.is_some()
            && error_field(&self.down.lane.unwalked()[HEADER..seen], b'C') == Some(b"57014")
    }

    /// Says it in our words.
    pub(super) fn pass_cut(&mut self, total: usize) {
        let mut told = BytesMut::new();
        if let Some(cut) = &self.linked.cut {
            reply::overrun(&cut.why).encode(&mut told);
        }
        self.down.take(total, false);
        self.down.lane.put(&told);
    }
}
