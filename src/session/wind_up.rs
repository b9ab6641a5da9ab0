//! What is left to do when the client has gone and a lease is still held (wire.md A6).
//!
//! The reference is what PostgreSQL does for a direct client: complete messages already sent are
//! executed, their results go to a socket that may be half closed, and what is not finished (a
//! transaction, a pipeline without Sync, a COPY) is rolled back. A Sync is never sent to clean up:
//! it would commit.

use super::relay::Event;
use super::tracker::{Injected, Note, OpKind, Take};
use super::up::FAIL;
use super::{Session, Socket, private};
use crate::book::Outcome;
use crate::clock;
use crate::metrics::Reset;
use crate::pool::cell::Worked;
use crate::pool::lease::Lease;
use crate::state::{Set, text};
use crate::wire::backend::TxStatus;
use crate::wire::compose::SYNC;
use crate::wire::frontend::Kind;
use crate::wire::sql::scan::Traces;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

/// How long a cancelled statement may take to end before its backend is closed.
const AFTER_CANCEL: Duration = Duration::from_secs(2);

/// CopyFail.
const COPY_FAIL: &[u8] = b"f\0\0\0\x10client gone\0";

/// How what was outstanding came to its end, the worst last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Drained {
    Finished,
    Cancelled,
    /// It did not: the backend must be closed.
    Broken,
}

impl<S: Socket> Session<S> {
    /// Finishes or rolls back what the client left, and gives the backend back, or closes it.
    ///
    /// `grace` is how long a running statement may take to finish before it is cancelled.
    pub(super) async fn wind_up(&mut self, client_reads: bool, grace: Duration) {
        if self.lease.is_none() {
            return;
        }
        let unfinished = self.tracker.is_unsynced() || self.tracker.is_copying_in();
        let mut drained = Drained::Finished;
        if self.up.is_mid_message() {
            drained = Drained::Broken;
        } else {
            self.up.rest = 0;
            if self.fail_copy(COPY_FAIL) || self.tracker.is_in_doubt() {
                // Only then is it known whether the server waits for a Sync, and nothing may go out beside what
                // tells.
                drained = self.drain(client_reads, grace).await;
            }
        }
        if drained != Drained::Broken {
            let said = self.end_segment();
            drained = if said { drained.max(self.drain(client_reads, grace).await) } else { Drained::Broken };
        }
        let left = unfinished || drained != Drained::Finished || self.tracker.status() != TxStatus::Idle;
        if drained == Drained::Broken || self.linked.dying {
            self.abandon(left);
            return;
        }
        self.give_back(left).await;
    }

    /// Ends the COPY that the server reads with this CopyFail. Returns whether it reads one.
    pub(super) fn fail_copy(&mut self, message: &'static [u8]) -> bool {
        let copying = self.tracker.is_copying_in();
        if copying {
            self.tracker.client(Kind::CopyFail, Note::default());
            self.up.lane.put(message);
        }
        copying
    }

    /// Ends the segment for which the server may wait, so that nothing of it remains. Returns whether that could
    /// be said.
    fn end_segment(&mut self) -> bool {
        if self.tracker.is_unsynced() {
            // Also where the client skips because of an error of Bursar's, of which the server knows
            // nothing.
            self.tracker.inject(OpKind::Execute, Injected::Failure);
            self.up.lane.put(FAIL);
        }
        if self.tracker.is_unsynced() || self.tracker.is_skipping() {
            // The server waits for it, and has nothing left that it could commit.
            self.up.lane.put(SYNC);
            return self.tracker.client(Kind::Sync, Note::default()) == Take::Forward;
        }
        true
    }

    /// Waits for outstanding replies: for the grace period, then with a cancel request.
    async fn drain(&mut self, mut client_reads: bool, grace: Duration) -> Drained {
        for (patience, end) in [(grace, Drained::Finished), (AFTER_CANCEL, Drained::Cancelled)] {
            match tokio::time::timeout(patience, self.drain_quietly(&mut client_reads)).await {
                Ok(true) => return end,
                Ok(false) => return Drained::Broken,
                Err(_) => {}
            }
            let Some(lease) = &mut self.lease else { return Drained::Broken };
            let handle = lease.backend().cancel.clone();
            // The lease is still ours, so whatever the signal hits is.
            if let Err(error) = handle.send(AFTER_CANCEL, || true).await {
                tracing::debug!(%error, "cannot cancel what a client left running");
            }
        }
        Drained::Broken
    }

    /// Passes replies to complete work on to the client, for as long as the grace period.
    pub(super) async fn drain_for_client(&mut self) {
        let grace = self.pool.rules().client_gone_grace;
        let _ = tokio::time::timeout(grace, self.drain_quietly(&mut true)).await;
    }

    pub(super) async fn drain_quietly(&mut self, client_reads: &mut bool) -> bool {
        poll_fn(|cx| {
            loop {
                if !*client_reads {
                    self.down.lane.discard();
                }
                // Nothing more comes from the client, but the backend may be owed bytes.
                let Some(lease) = &mut self.lease else { return Poll::Ready(false) };
                let flushed = match self.up.lane.poll_flush(cx, &mut lease.backend().stream) {
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    flushed => flushed.is_ready(),
                };
                match self.poll_down(cx) {
                    Poll::Ready(Event::ClientLost) => *client_reads = false,
                    Poll::Ready(Event::BackendGone | Event::Desync) => return Poll::Ready(false),
                    Poll::Ready(_) => {}
                    // What came asks for an answer: a marker, or the rest of a message.
                    Poll::Pending if flushed && self.up.lane.staged() > 0 => continue,
                    Poll::Pending => {
                        let done = !self.tracker.is_busy() && self.up.lane.staged() == 0;
                        return if done { Poll::Ready(true) } else { Poll::Pending };
                    }
                }
                if !self.tracker.is_busy() && self.up.lane.staged() == 0 {
                    return Poll::Ready(true);
                }
            }
        })
        .await
    }

    /// The lease ends with its backend idle: cleaned of whatever the session left on it.
    pub(super) async fn give_back(&mut self, client_gone: bool) {
        if let Some(dirty) = self.give_back_at_once(client_gone)
            && let Some(lease) = self.lease.take()
        {
            Box::pin(self.give_back_clean(lease, dirty, client_gone)).await;
        }
    }

    /// Nearly always there is nothing to wait for. If there is, the lease stays, and the answer is whether
    /// the backend is to be cleaned.
    pub(super) fn give_back_at_once(&mut self, client_gone: bool) -> Option<bool> {
        let left = self.leftovers();
        let always = self.scrubs_always();
        let lease = self.lease.as_mut()?;
        if always || !left.is_none() || self.tracker.status() != TxStatus::Idle {
            return Some(true);
        }
        self.linked.looks = self.linked.looks || lease.backend().is_to_be_seen(self.verify);
        if self.linked.looks || self.linked.lists || lease.backend().context.is_to_be_denied() {
            return Some(false);
        }
        let Some(worked) = self.cell.unlink(lease.backend(), self.now) else { return Some(false) };
        settle(lease, worked, client_gone);
        lease.finish(self.now);
        self.lease = None;
        None
    }

    /// [`Session::give_back`] where it takes time.
    async fn give_back_clean(&mut self, mut lease: Lease, dirty: bool, client_gone: bool) {
        if dirty {
            self.cell.finished(self.now);
            let in_transaction = self.tracker.status() != TxStatus::Idle;
            let (traces, all) = (self.leftovers_on(&lease.backend().settings), self.scrubs_always());
            let scrub = private::scrub(lease.backend(), &self.pools.buffers, in_transaction, traces, all);
            if let Err(trouble) = scrub.await {
                tracing::debug!(%trouble, "a backend cannot be scrubbed and is closed");
                self.pools.metrics.resets.inc(Reset::Closed);
                self.close_lease(lease, client_gone);
                return;
            }
            self.pools.metrics.resets.inc(Reset::Scrubbed);
            self.now = clock::now();
        }
        if lease.backend().context.is_doubtful() {
            self.cell.finished(self.now);
            if let Err(trouble) = private::deny(lease.backend(), &self.pools.buffers).await {
                self.pools.metrics.context_mismatches.inc();
                tracing::warn!(%trouble, "the tenant context of a backend cannot be taken back; it is closed");
                self.close_lease(lease, client_gone);
                return;
            }
            self.now = clock::now();
        }
        if self.linked.looks && !self.looks_clean(&mut lease).await {
            self.close_lease(lease, client_gone);
            return;
        }
        if self.linked.lists && !self.list_names(&mut lease).await {
            self.close_lease(lease, client_gone);
            return;
        }
        let worked = loop {
            if let Some(worked) = self.cell.unlink(lease.backend(), self.now) {
                break worked;
            }
            // A cancel request is on its way: the backend is not free before it has arrived.
            self.cancel_delivered().await;
        };
        settle(&mut lease, worked, client_gone);
        lease.finish(self.now);
    }

    /// What is to be scrubbed before another session may have the backend at hand.
    fn leftovers(&mut self) -> Traces {
        // Whether a set of settings is hasty is looked up where the last lease did not have it.
        if let Some(lease) = &mut self.lease
            && lease.backend().settings != self.unhurried
        {
            let settings = lease.backend().settings.clone();
            if self.is_hasty(&settings) {
                return self.leftovers_on(&settings);
            }
            self.unhurried = settings;
        }
        self.leftovers_of_session()
    }

    /// What is to be scrubbed from a backend that carries `settings`.
    fn leftovers_on(&self, settings: &Set) -> Traces {
        let traces = self.leftovers_of_session();
        if self.is_hasty(settings) { traces.with(Traces::SETTING) } else { traces }
    }

    /// Whether statements of Bursar's own would suffer from these settings on an idle backend: cut short,
    /// or, where there is one that takes a snapshot, made to wait for a safe one.
    fn is_hasty(&self, settings: &Set) -> bool {
        let waits = || self.fence.is_some() && settings.value("default_transaction_deferrable").is_some();
        text::is_hasty(settings) || waits()
    }

    fn leftovers_of_session(&self) -> Traces {
        let traces = self.linked.traces;
        let statements = self.statements.pins() || self.linked.untrusted;
        if statements { traces.with(Traces::STATEMENT) } else { traces }
    }

    async fn cancel_delivered(&self) {
        poll_fn(|cx| {
            self.cell.register(cx.waker());
            if self.cell.has_cancels() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// The lease ends with its backend closed.
    pub(super) fn abandon(&mut self, client_gone: bool) {
        if let Some(lease) = self.lease.take() {
            self.close_lease(lease, client_gone);
        }
    }

    fn close_lease(&self, mut lease: Lease, client_gone: bool) {
        let worked = self.cell.abandon(clock::now());
        settle(&mut lease, worked, client_gone);
        drop(lease);
    }
}

/// Notes what a lease came to, before it ends one way or the other.
fn settle(lease: &mut Lease, worked: Worked, client_gone: bool) {
    lease.usage.active = worked.active;
    lease.usage.statements = worked.statements;
    lease.usage.gap_us = u32::try_from(worked.gap.as_micros()).unwrap_or(u32::MAX);
    lease.usage.repeats = worked.repeats;
    if client_gone {
        lease.outcome.get_or_insert(Outcome::ClientGone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::walk::Header;

    #[test]
    fn canned_messages_have_the_right_lengths() {
        for message in [COPY_FAIL, FAIL, SYNC] {
            assert_eq!(Header::read(message).unwrap().total(), Some(message.len()));
        }
    }
}
