//! Replies that Bursar makes itself, each in its place among those of the server.

use super::{Injected, Op, OpKind, Tracker};
use crate::wire::backend::{TxStatus, ready_for_query};
use bytes::{Bytes, BytesMut};

/// A reply that Bursar answers itself, waiting for its turn.
#[derive(Debug, Clone)]
pub(super) struct MadeUp {
    bytes: Bytes,
    ready: bool,
}

impl Tracker {
    /// Bursar answers a client message itself: `bytes`, and a ReadyForQuery with the status of that
    /// moment if `ready`. Returns what can be sent at once, which is nothing while replies to
    /// earlier messages are outstanding.
    pub fn answer(&mut self, kind: OpKind, bytes: Bytes, ready: bool, out: &mut BytesMut) {
        self.ops.push_back(Op { made_up: true, ..Op::new(kind) });
        self.made_up.push_back(MadeUp { bytes, ready });
        self.emit(out);
    }

    /// As [`Tracker::answer`], for a message of an extended segment that the server sees other parts
    /// of: like the server's own replies this one need not go out before a Flush or Sync. `noted` is
    /// kept with the op; see [`Tracker::take_told`].
    pub fn answer_later(&mut self, kind: OpKind, bytes: Bytes, noted: bool) {
        self.ops.push_back(Op { made_up: true, noted, ..Op::new(kind) });
        self.made_up.push_back(MadeUp { bytes, ready: false });
        self.unsynced = true;
    }

    /// Bursar sends a Sync of its own, which ends the client's pipeline as a Query of its would that
    /// the server never sees.
    pub fn end_pipeline(&mut self) {
        self.ops.push_back(Op { injected: Some(Injected::InPlace), ..Op::new(OpKind::Sync) });
        self.syncs += 1;
        self.unsynced = false;
        self.unflushed = false;
    }

    /// As [`Tracker::end_pipeline`], in the middle of what the client has begun: it owes a Sync still, and
    /// until then its messages are skipped, once [`Tracker::skip_to_sync`] says so. Returns whether the
    /// client had begun anything; if not, nothing is sent.
    pub fn cut_off(&mut self) -> bool {
        let open = self.unsynced || self.skipping;
        if open {
            self.end_pipeline();
            self.skipping = false;
        }
        open
    }

    /// What the client sees where no backend has its transaction, or another one than it sees.
    pub fn set_status(&mut self, status: TxStatus) {
        self.status = status;
    }

    /// A server message of this type comes next. Unless it is a ReadyForQuery, which may be the one in doubt
    /// behind a COPY that has failed, or nobody's reply, it ends that doubt.
    pub fn expect(&mut self, kind: u8) {
        if !matches!(kind, b'Z' | b'N' | b'S' | b'A') {
            self.slack = 0;
        }
    }

    /// Whether a made-up reply comes next. While it is in doubt how many ReadyForQuery come first, none does but
    /// one that stands between two Syncs.
    #[must_use]
    pub fn is_reply_due(&self) -> bool {
        self.marker.is_none()
            && self.ops.front().is_some_and(|op| op.made_up)
            && (self.slack == 0 || self.is_between_syncs())
    }

    /// Sends every made-up reply whose turn has come. To be asked before each server message, which
    /// [`Tracker::expect`] is told of, and when the client will not send more before it sees them.
    #[inline]
    pub fn emit(&mut self, out: &mut BytesMut) {
        if !self.made_up.is_empty() {
            self.emit_made_up(out);
        }
    }

    fn emit_made_up(&mut self, out: &mut BytesMut) {
        while self.is_reply_due() {
            self.guessed |= self.slack > 0;
            self.emit_one(out);
        }
    }

    pub(super) fn emit_one(&mut self, out: &mut BytesMut) {
        self.told += self.ops.pop_front().map_or(0, |op| usize::from(op.noted));
        if let Some(reply) = self.made_up.pop_front() {
            out.extend_from_slice(&reply.bytes);
            if reply.ready {
                ready_for_query(out, self.status);
            }
        }
    }

    /// Bursar raises an error of its own in an extended message, now or ([`Tracker::answer`]) when its
    /// turn comes: the client's messages are ignored up to its Sync, as PostgreSQL would.
    pub fn skip_to_sync(&mut self) {
        self.skipping = true;
    }

    /// A Sync that no server needs to see (nothing was sent): ends skipping.
    pub fn sync_here(&mut self) {
        self.skipping = false;
        self.unsynced = false;
    }

    /// How many noted made-up replies have been sent since this was last asked. Where a server message
    /// acknowledges a noted op too, that one comes first.
    pub fn take_told(&mut self) -> usize {
        std::mem::take(&mut self.told)
    }
}
