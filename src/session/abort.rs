//! Soft abort: a transaction is rolled back and its backend taken, but the client stays (budgets.md
//! §2.6).
//!
//! Where nothing is in flight that is one ROLLBACK. A statement that runs is cancelled first, and the
//! client gets what the server answers; so a COMMIT that was faster than the order stands, and is told.
//! A backend that does not come to an end is closed, and then its client must go too: nobody can say any
//! more what has been done.
//!
//! What the client hears afterwards is decided by [`super::virtual_tx`].

use super::reply;
use super::serve::End;
use super::tracker::{Injected, OpKind, Tracker};
use super::transaction::FAILED_BLOCK;
use super::up::FAIL;
use super::{Session, Socket, private};
use crate::clock;
use crate::config::PoolMode;
use crate::wire::backend::TxStatus;
use crate::wire::compose::SYNC;
use crate::wire::error::Report;
use std::time::Duration;

/// How long a cancelled statement may take to end.
const AFTER_CANCEL: Duration = Duration::from_secs(2);

/// CopyFail. PostgreSQL takes no cancel while it waits for data.
const COPY_FAIL: &[u8] = b"f\0\0\0\x16transaction ended\0";

/// How long a ROLLBACK may take.
const ROLLBACK: Duration = Duration::from_secs(5);

impl<S: Socket> Session<S> {
    /// Takes the transaction from the client, which will be told `why`, and the backend, unless it is the
    /// session's own. Nothing happens if the transaction has ended meanwhile.
    ///
    /// # Errors
    /// The backend was in the middle of something that did not end, or is gone: so must the session be.
    pub(super) async fn soft_abort(&mut self, why: Report) -> Result<(), End> {
        if self.lease.is_none() || self.linked.unbegun || self.tx.is_aborted() {
            return Ok(());
        }
        let closing = || End::Overstayed(Box::new(reply::closing(why.clone())));
        if self.up.is_mid_message() {
            return Err(closing());
        }
        let busy = self.tracker.is_busy();
        let copying = self.fail_copy(COPY_FAIL);
        // What a COPY that fails makes of the client's Syncs is found out first: nothing may go out meanwhile.
        let in_doubt = self.tracker.is_in_doubt();
        let mut open = !in_doubt && !copying && self.end_open_segment(&why);
        if open || busy {
            self.linked.verdict = busy.then(|| Box::new(why.clone()));
            self.cancel_what_runs(busy && !in_doubt).await.unwrap_or_else(|| Err(closing()))?;
            // A COPY that has failed now may have left its segment open.
            if self.end_open_segment(&why) {
                open = true;
                self.cancel_what_runs(false).await.unwrap_or_else(|| Err(closing()))?;
            }
        }
        // Taken: told already, by that very statement.
        let told = busy && self.linked.verdict.take().is_none() || open;
        let aborts = self.tracker.status() != TxStatus::Idle;
        if aborts {
            self.roll_back(closing).await?;
        }
        self.release().await?;
        if !aborts {
            // A statement without a transaction, or the end of one: nothing is left of either.
            return self.skip_rest(open);
        }
        let held = self.lease.is_some();
        if held {
            self.fail_held().await?;
        } else {
            self.tracker.set_status(TxStatus::Failed);
        }
        self.tx.abort((!told).then(|| Box::new(why)), held);
        self.skip_rest(open)
    }

    /// The client has sent extended messages without a Sync, which the server may be waiting for: an
    /// error takes the place of the next one, and what they have done is undone. Returns whether it has.
    fn end_open_segment(&mut self, why: &Report) -> bool {
        if self.tracker.is_unsynced() {
            let tracker = &mut self.tracker;
            self.down.lane.make(|out| {
                let mut told = bytes::BytesMut::new();
                why.encode(&mut told);
                tracker.answer(OpKind::Execute, told.freeze(), false, out);
            });
            self.up.lane.put(FAIL);
            self.tracker.inject(OpKind::Execute, Injected::Failure);
        }
        let open = self.tracker.cut_off();
        if open {
            self.up.lane.put(SYNC);
            self.statements.sync();
        }
        open
    }

    /// The client's messages are skipped up to the Sync that it owes.
    fn skip_rest(&mut self, open: bool) -> Result<(), End> {
        if open {
            self.tracker.skip_to_sync();
        }
        Ok(())
    }

    /// Cancels what runs, if anything does, and passes on what the server answers. `None`: it did not
    /// answer in time.
    async fn cancel_what_runs(&mut self, busy: bool) -> Option<Result<(), End>> {
        let handle = self.lease.as_mut().map(|lease| lease.backend().cancel.clone());
        if let Some(handle) = handle.filter(|_| busy) {
            // The lease is still ours, so whatever the signal hits is.
            if let Err(error) = handle.send(AFTER_CANCEL, || true).await {
                tracing::debug!(%error, "cannot cancel a statement whose transaction is to end");
            }
        }
        let ended = tokio::time::timeout(AFTER_CANCEL, self.drain_quietly(&mut true)).await.ok();
        self.now = clock::now();
        ended.map(|ended| if ended { Ok(()) } else { Err(self.backend_gone()) })
    }

    /// Rolls the backend's transaction back, or closes the backend, which comes to the same unless the
    /// session needs it.
    async fn roll_back(&mut self, closing: impl Fn() -> End) -> Result<(), End> {
        self.linked.ending_block = true;
        let done = self.say(b"ROLLBACK", Injected::Segment).await;
        self.linked.ending_block = false;
        if done && self.tracker.status() == TxStatus::Idle && !self.linked.injected_error {
            return Ok(());
        }
        let torn = self.down.rest > 0;
        if torn || self.linked.dying || self.mode == PoolMode::Session || !self.pin().is_empty() {
            return Err(closing());
        }
        // What it had set, it had set in this transaction: the settings of the session are as before it.
        self.abandon(false);
        self.up.lane.discard();
        self.tracker = Tracker::default();
        Ok(())
    }

    /// A session that keeps its backend finds a failed transaction there.
    async fn fail_held(&mut self) -> Result<(), End> {
        let done = self.say(FAILED_BLOCK, Injected::Failure).await;
        if !done || self.tracker.status() != TxStatus::Failed {
            return Err(self.backend_gone());
        }
        // The backend holds no lock and no snapshot: no clock of a transaction runs.
        let pin = self.pin();
        self.cell.ready(false, pin, self.now);
        Ok(())
    }

    /// Runs a Query of Bursar's own while nothing is in flight. Returns whether it has ended in time.
    async fn say(&mut self, text: &[u8], what: Injected) -> bool {
        self.up.lane.make(|out| private::query(out, text));
        self.tracker.inject(OpKind::Query, what);
        self.set_injected(true);
        self.statements.unnamed_is_gone();
        let said = tokio::time::timeout(ROLLBACK, self.drain_quietly(&mut true)).await;
        self.now = clock::now();
        said == Ok(true)
    }

    /// Ends the lease if it may end.
    async fn release(&mut self) -> Result<(), End> {
        self.linked.at_ready = false;
        if self.lease.is_some() && self.tracker.may_release() && (self.pin().is_empty() || self.may_unpin()) {
            return self.end_lease().await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::walk::Header;

    #[test]
    fn the_canned_message_has_the_right_length() {
        assert_eq!(Header::read(COPY_FAIL).unwrap().total(), Some(COPY_FAIL.len()));
    }
}
