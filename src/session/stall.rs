//! A client that does not take its result while its statement runs on (B13).
//!
//! Nothing is read from a backend while its client has not taken what was read before, so a client that
//! stops reading keeps its backend for as long as it likes. Beyond its budget the statement is cancelled;
//! PostgreSQL hears that only once what it is sending has gone somewhere, so the rest of the rows is
//! read and dropped. What else it says, the error first of all, waits for the client without a backend.
//!
//! A statement that comes to its end although rows of it were dropped, or that does not come to an end,
//! costs the session: nobody is told less than the truth.

use super::overrun::Cut;
use super::serve::End;
use super::{Session, Socket, reply};
use crate::book::Overrun;
use crate::clock;
use crate::net::lane::Lane;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::timeout;

/// Rows dropped, at most. budgets.md §2.3 says 1 MiB, which is what is kept; between two sockets alone
/// Linux keeps up to 10 MiB (tcp_wmem and tcp_rmem, tcp(7)), and a closed backend costs more than
/// reading those.
const DROPPED: usize = 16 << 20;

/// Bytes kept for the client, at most.
const KEPT: usize = 1 << 20;

/// How long the server may take to end a cancelled statement, and to take the cancel request.
const PATIENCE: Duration = Duration::from_secs(2);

/// Rows of the statement that is being cancelled, on their way to nowhere.
#[derive(Debug, Default)]
pub(super) struct Drops {
    /// Some were.
    pub(super) any: bool,
    /// The error has come: what follows is somebody else's.
    pub(super) over: bool,
    /// And so has its ReadyForQuery, which PostgreSQL sends by itself, a moment later.
    pub(super) ended: bool,
}

impl<S> Session<S> {
    /// The client takes nothing more for now.
    pub(super) fn note_stall(&mut self) {
        if !std::mem::replace(&mut self.stalled, true) {
            self.cell.stalled(Some(clock::now()));
        }
    }

    /// The client has taken everything.
    #[inline]
    pub(super) fn note_taken(&mut self) {
        if std::mem::take(&mut self.stalled) {
            self.cell.stalled(None);
        }
    }

    /// The client has sent nothing more for now; if a COPY waits for it, that is known from outside.
    #[inline]
    pub(super) fn note_silence(&mut self) {
        if self.lease.is_some() && !self.silent && self.tracker.is_copying_in() {
            self.silent = true;
            self.cell.silent(Some(self.now));
        }
    }

    /// The client has sent something.
    #[inline]
    pub(super) fn note_speech(&mut self) {
        if std::mem::take(&mut self.silent) {
            self.cell.silent(None);
        }
    }

    /// Whether a message of this kind is to be dropped instead of passed.
    #[inline]
    pub(super) fn drops(&mut self, kind: u8) -> bool {
        match &mut self.linked.drops {
            Some(drops) if matches!(kind, b'D' | b'd') && !drops.over => {
                drops.any = true;
                true
            }
            _ => false,
        }
    }

    /// Whether a result of which rows were dropped ends as if it were whole.
    pub(super) fn is_short_of_rows(&self, kind: u8) -> bool {
        let short = self.linked.drops.as_ref().is_some_and(|drops| drops.any && !drops.over);
        short && matches!(kind, b'C' | b's' | b'c')
    }
}

impl<S: Socket> Session<S> {
    /// Takes the backend's attention off a client that does not read.
    pub(super) async fn unstall(&mut self, why: Overrun) -> Result<(), End> {
        if !self.stalled || self.lease.is_none() {
            return Ok(());
        }
        if self.tracker.is_busy() && !self.drain_rows(why).await {
            self.abandon(false);
            if self.down.rest > 0 && self.down.keep {
                return Err(End::BackendGone);
            }
            return Err(End::Told(Box::new(reply::overrun(&why).fatal())));
        }
        // All that is left is in the lane, and waits there.
        if self.releases() {
            return self.end_lease().await;
        }
        // What the client had sent ahead runs now: another stall begins.
        self.cell.stalled(Some(clock::now()));
        Ok(())
    }

    /// Cancels what runs, and reads on until it has ended. Returns whether it has, with nothing lost that
    /// the client should have had.
    async fn drain_rows(&mut self, why: Overrun) -> bool {
        let Some(lease) = &mut self.lease else { return false };
        let handle = lease.backend().cancel.clone();
        // The lease is ours, so whatever the signal hits is.
        if let Err(error) = handle.send(PATIENCE, || true).await {
            tracing::warn!(%error, session = self.cell.id.0, "cannot cancel the statement of a stalled client");
        }
        self.linked.cut = Some(Box::new(Cut::delivered(why)));
        self.linked.drops = Some(Drops::default());
        // What is staged is set aside, so that the lane can be read into.
        let fresh = Lane::with(self.pools.buffers.clone(), self.down.lane.unwalked());
        let mut aside = std::mem::replace(&mut self.down.lane, fresh);
        let (mut kept, mut read) = (Vec::new(), 0);
        collect(&mut aside, &mut kept);
        let drained = timeout(PATIENCE, poll_fn(|cx| self.poll_drained(cx, &mut kept, &mut read))).await;
        self.linked.drops = None;
        self.down.lane.put(&kept);
        drained.unwrap_or(false)
    }

    fn poll_drained(&mut self, cx: &mut Context<'_>, kept: &mut Vec<u8>, read: &mut usize) -> Poll<bool> {
        loop {
            if self.walk_down().is_err() {
                return Poll::Ready(false);
            }
            collect(&mut self.down.lane, kept);
            let ended = self.linked.drops.as_ref().is_some_and(|drops| drops.ended);
            let whole = self.down.rest == 0 && self.down.lane.unwalked().is_empty();
            if ended || (whole && !self.tracker.is_busy()) {
                return Poll::Ready(true);
            }
            let Some(lease) = &mut self.lease else { return Poll::Ready(false) };
            // A marker, or the rest of a message, may be owed to the server.
            if let Poll::Ready(Err(_)) = self.up.lane.poll_flush(cx, &mut lease.backend().stream) {
                return Poll::Ready(false);
            }
            if *read > DROPPED || kept.len() > KEPT {
                return Poll::Ready(false);
            }
            match self.down.lane.poll_fill(cx, &mut lease.backend().stream) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => *read += n,
                Poll::Ready(_) => return Poll::Ready(false),
            }
        }
    }
}

/// Moves what is staged behind what was kept before.
fn collect(lane: &mut Lane, kept: &mut Vec<u8>) {
    // A vector takes everything at once.
    let _ = lane.poll_flush(&mut Context::from_waker(std::task::Waker::noop()), kept);
}
