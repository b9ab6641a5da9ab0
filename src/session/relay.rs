//! The relay: spans between the client and the leased backend, both ways, in one poll.
//!
//! Each direction flushes what is staged, then reads once, walks what came and stages it, until a
//! socket has nothing more. Nothing is read while something staged waits to be written: a slow
//! reader stops the one who writes to it, and memory stays at one buffer a direction.
//!
//! A lease begins in the walk over the client's bytes and ends here, if neither has to wait for
//! anything; the loop is told of all else by an event.
//!
//! System calls of a small query: epoll_wait, recv, send; epoll_wait, recv, send. A short read
//! leaves tokio knowing that the socket is empty, so that looking again costs nothing.

use super::serve::Slow;
use super::up::{FLUSH, Stop};
use super::{Session, Socket};
use crate::clock;
use crate::wire::backend::TxStatus;
use crate::wire::error::Report;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

/// Unsent bytes with which a lease may end: the client gets them from its lane, the backend is free
/// (wire.md A4).
const SPOOL: usize = 64 << 10;

/// How often a poll goes through both directions before other sessions get their turn.
const TURNS: usize = 4;

/// Bytes after which a direction gives other sessions their turn if there is more to move: a long stream takes
/// some fifty microseconds of every turn, and not until its sockets are empty, which they may never be.
const SHARE: usize = 64 << 10;

/// Lets everybody else have a turn first, those included whose sockets have become ready meanwhile; a task
/// that wakes itself would be served before the runtime looks at these.
fn yield_turn(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

/// What the loop must act on.
pub(super) enum Event {
    /// Orders wait in the cell.
    Ordered,
    /// The next client message needs a backend, and there is none at once.
    Wait(Slow),
    /// The lease may end, and there is something to do first.
    Release,
    /// The client said goodbye, or closed its side; what it sent before is staged or done.
    ClientLeft,
    /// The client closed its side while a message of its waits for replies.
    ClientLeftHeld,
    /// The client's socket is broken: nothing reaches it any more.
    ClientLost,
    /// The client broke the protocol: tell it, then close.
    Fault(Box<Report>),
    /// The client broke the protocol in a way that PostgreSQL answers with silence.
    Silence,
    /// The session is to go, and nothing that its client has sent is left to do.
    Drained,
    /// The backend closed, or its socket broke.
    BackendGone,
    /// The backend's replies make no sense any more.
    Desync,
}

impl<S> Session<S> {
    /// The last reply was ReadyForQuery. What is staged for this backend must not reach it under
    /// another session.
    fn is_at_end(&self) -> bool {
        self.linked.at_ready && self.up.lane.staged() == 0
    }

    /// The client has no transaction, and has not begun to send one.
    fn is_between_transactions(&self) -> bool {
        let silent = self.up.rest == 0 && self.up.lane.unwalked().is_empty();
        let idle = !self.tracker.is_busy() && self.tracker.status() == TxStatus::Idle;
        silent && idle && !self.tracker.is_unsynced()
    }

    /// The lease ends here.
    pub(super) fn releases(&self) -> bool {
        self.is_at_end() && self.tracker.may_release() && (self.draining || self.pin().is_empty())
    }
}

impl<S: Socket> Session<S> {
    /// Moves bytes until something has to be decided. Cancel safe: all state is in the session.
    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        match self.poll_turns(cx) {
            // Only now: what had come when the session was told to go has been read, and is served.
            Poll::Pending if self.draining && self.is_between_transactions() => Poll::Ready(Event::Drained),
            event => event,
        }
    }

    fn poll_turns(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.cell.has_orders() {
            return Poll::Ready(Event::Ordered);
        }
        // Only the backend of a new lease is still to be asked to wake this task.
        let mut only_down = false;
        for _ in 0..TURNS {
            match self.poll_down(cx) {
                Poll::Ready(Event::Release) if self.end_at_once() => {}
                Poll::Ready(event) => return Poll::Ready(event),
                Poll::Pending if only_down => return Poll::Pending,
                Poll::Pending => {}
            }
            let unlinked = self.lease.is_none();
            let unsent = self.down.lane.staged();
            if let Poll::Ready(event) = self.poll_up(cx) {
                return Poll::Ready(event);
            }
            // What went up has its answer at another wake-up; only what was answered here, or what
            // held up the end of the lease, is for now.
            let answered = self.down.lane.staged() > unsent;
            let released = self.linked.at_ready && self.up.lane.staged() == 0 && unsent <= SPOOL;
            only_down = !answered && !released;
            if only_down && !(unlinked && self.lease.is_some()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// From the backend to the client.
    #[inline]
    pub(super) fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.lease.is_none() && self.down.lane.staged() == 0 {
            Poll::Pending
        } else {
            self.poll_down_linked(cx)
        }
    }

    fn poll_down_linked(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut moved = 0;
        loop {
            match self.down.lane.poll_flush(cx, &mut self.client) {
                Poll::Ready(Ok(())) => self.note_taken(),
                Poll::Ready(Err(_)) => return Poll::Ready(Event::ClientLost),
                Poll::Pending => {
                    self.note_stall();
                    // The backend need not wait for a slow reader that has little left to read.
                    return if self.down.lane.staged() <= SPOOL {
                        self.poll_release()
                    } else {
                        Poll::Pending
                    };
                }
            }
            if let Poll::Ready(event) = self.poll_release() {
                return Poll::Ready(event);
            }
            let Some(lease) = &mut self.lease else { return Poll::Pending };
            let stream = &mut lease.backend().stream;
            // Nobody waits for long where there is nothing more: to come back for that were a call for nothing.
            if moved >= SHARE && stream.is_readable() {
                yield_turn(cx);
                return Poll::Pending;
            }
            match self.down.lane.poll_fill(cx, stream) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.now = clock::now();
                    moved += n;
                }
                Poll::Ready(_) => return Poll::Ready(Event::BackendGone),
            }
            if self.walk_down().is_err() {
                return Poll::Ready(Event::Desync);
            }
        }
    }

    fn poll_release(&mut self) -> Poll<Event> {
        if !self.is_at_end() {
            return Poll::Pending;
        }
        // Or it may end, as soon as Bursar has looked.
        let ends = || self.may_unpin() || self.linked.injected_error || self.linked.unbegun;
        // A transaction that has begun, but not with all that it had set, is rolled back then.
        let half_begun = self.linked.unbegun && !self.tracker.is_busy();
        let releases = self.releases() || half_begun || self.tracker.may_release() && ends();
        self.linked.at_ready = false;
        if releases { Poll::Ready(Event::Release) } else { Poll::Pending }
    }

    /// From the client to the backend.
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut moved = 0;
        loop {
            if let Some(lease) = &mut self.lease {
                match self.up.lane.poll_flush(cx, &mut lease.backend().stream) {
                    Poll::Ready(Ok(())) => {}
                    // Why it closed is still to be read, and comes before anything we could say.
                    Poll::Ready(Err(_)) => self.up.lane.discard(),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.linked.doomed {
                return Poll::Pending;
            }
            let mut stop = if self.up.lane.unwalked().is_empty() { Stop::More } else { self.walk_up() };
            if matches!(stop, Stop::NeedBackend) {
                // What makes the backend fit goes out with the message that needs it.
                stop = match self.begin_at_once() {
                    Ok(()) => self.walk_up(),
                    Err(slow) => Stop::Wait(slow),
                };
            }
            if self.up.lane.staged() > 0 && self.lease.is_some() {
                continue;
            }
            match stop {
                Stop::More => {}
                Stop::Hold => {
                    if self.tracker.is_reply_due() {
                        self.emit_made_up();
                        continue;
                    }
                    if self.tracker.take_unflushed() {
                        self.up.lane.put(FLUSH);
                        continue;
                    }
                    return self.poll_held(cx);
                }
                Stop::NeedBackend => continue,
                Stop::Wait(slow) => return Poll::Ready(Event::Wait(slow)),
                Stop::Terminate => return Poll::Ready(Event::ClientLeft),
                Stop::Silence => return Poll::Ready(Event::Silence),
                Stop::Fault(report) => return Poll::Ready(Event::Fault(report)),
            }
            if self.down.lane.staged() > 0 {
                // Answered here: goes out before more is read.
                return Poll::Pending;
            }
            if self.up.lane.is_closed() {
                return Poll::Ready(Event::ClientLeft);
            }
            if moved >= SHARE && self.client.is_readable() {
                yield_turn(cx);
                return Poll::Pending;
            }
            match self.up.lane.poll_fill(cx, &mut self.client) {
                Poll::Pending => {
                    self.note_silence();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(n)) => {
                    self.now = clock::now();
                    self.note_speech();
                    moved += n;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Event::ClientLost),
            }
        }
    }

    /// While the client's next message waits for replies: watches for the client to go, reading
    /// ahead as much as the buffer takes.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        while !self.linked.doomed && !self.up.lane.is_closed() {
            match self.up.lane.poll_fill(cx, &mut self.client) {
                Poll::Ready(Ok(0)) if self.up.lane.is_closed() => return Poll::Ready(Event::ClientLeftHeld),
                Poll::Ready(Ok(0)) | Poll::Pending => break,
                Poll::Ready(Ok(_)) => self.now = clock::now(),
                Poll::Ready(Err(_)) => return Poll::Ready(Event::ClientLost),
            }
        }
        Poll::Pending
    }
}
