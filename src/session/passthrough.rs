//! A replication connection once it is open: bytes both ways, untouched, until either side closes or
//! Bursar leaves.
//!
//! What the two say to each other is not looked at. Messages of the server are told apart only so that
//! Bursar's last words, if it has any, stand between two of them.

use super::handshake::Seat;
use super::registry::Registered;
use super::reply::{self, Fault};
use super::{Socket, Stretch};
use crate::backend::Backend;
use crate::clock;
use crate::net::buffers::Buffers;
use crate::net::lane::Lane;
use crate::pool::cell::{Cell, Order};
use crate::wire::walk::Header;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How long the rest of a message, and the last words behind it, may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// A replication connection and what its existence holds.
pub struct Passed<S> {
    /// The connection, to be served.
    pub relay: Passthrough<S>,
    /// Its cancel key.
    pub registered: Registered,
    /// Its place in the book.
    pub seat: Seat,
}

/// A client and its own server connection. See the module's page.
pub struct Passthrough<S> {
    client: S,
    backend: Backend,
    up: Lane,
    down: Stretch,
    cell: Arc<Cell>,
    /// No message of the server is begun any more.
    leaving: bool,
}

/// Why the relay stops.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// One side has closed, or its socket broke; what it had sent has been passed on.
    Closed,
    /// The server's messages make no sense any more.
    Senseless,
    /// Orders wait in the cell.
    Ordered,
}

impl<S: Socket> Passthrough<S> {
    /// `early` is what the client sent behind its login, `greeting` what it is told first.
    pub(super) fn new(
        client: S,
        backend: Backend,
        cell: Arc<Cell>,
        buffers: &Buffers,
        (early, greeting): (&[u8], &[u8]),
    ) -> Passthrough<S> {
        let mut down = Stretch::new(Lane::new(buffers.clone()));
        down.lane.put(greeting);
        Passthrough { client, backend, up: Lane::with(buffers.clone(), early), down, cell, leaving: false }
    }

    /// Relays until an end. Not cancel safe: dropped, both sockets are closed.
    pub async fn serve(&mut self) {
        loop {
            self.listen_for_orders().await;
            match poll_fn(|cx| self.poll_relay(cx)).await {
                Stop::Ordered => {
                    let orders = self.cell.take_orders();
                    if orders.iter().any(|order| matches!(order, Order::Kill | Order::Drain)) {
                        // There is no end of a transaction to wait for.
                        let _ = tokio::time::timeout(FAREWELL, self.last_words()).await;
                        break;
                    }
                }
                Stop::Senseless => {
                    tracing::error!(session = self.cell.id.0, "a replication server breaks the protocol");
                    break;
                }
                Stop::Closed => break,
            }
        }
        self.cell.abandon(clock::now());
        let _ = tokio::time::timeout(FAREWELL, self.client.shutdown()).await;
    }

    /// An order wakes this task from now on, once.
    async fn listen_for_orders(&self) {
        poll_fn(|cx| {
            self.cell.register(cx.waker());
            Poll::Ready(())
        })
        .await;
    }

    fn poll_relay(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        if self.cell.has_orders() {
            return Poll::Ready(Stop::Ordered);
        }
        match self.poll_down(cx) {
            Poll::Pending => self.poll_up(cx),
            stop => stop,
        }
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        loop {
            self.up.pass(self.up.unwalked().len());
            match self.up.poll_flush(cx, &mut self.backend.stream) {
                Poll::Ready(Ok(())) => {}
                // Why it closed is still to be read.
                Poll::Ready(Err(_)) => self.up.discard(),
                Poll::Pending => return Poll::Pending,
            }
            match self.up.poll_fill(cx, &mut self.client) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(Stop::Closed),
            }
        }
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        loop {
            match self.down.lane.poll_flush(cx, &mut self.client) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Stop::Closed),
                Poll::Pending => return Poll::Pending,
            }
            if self.leaving && self.down.rest == 0 {
                return Poll::Ready(Stop::Ordered);
            }
            match self.down.lane.poll_fill(cx, &mut self.backend.stream) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(Stop::Closed),
            }
            if !self.walk_down() {
                return Poll::Ready(Stop::Senseless);
            }
        }
    }

    /// Stages what has come from the server, but for the beginning of a header that is not whole yet.
    fn walk_down(&mut self) -> bool {
        loop {
            if self.down.rest > 0 && !self.down.stream() {
                return true;
            }
            if self.leaving {
                return true;
            }
            let Some(head) = Header::read(self.down.lane.unwalked()) else { return true };
            let Some(total) = head.total() else { return false };
            self.down.take(total, true);
        }
    }

    /// Says why the connection ends, behind the message that is on its way.
    async fn last_words(&mut self) {
        self.leaving = true;
        if poll_fn(|cx| self.poll_down(cx)).await == Stop::Ordered {
            self.down.lane.make(|out| reply::fault(&Fault::Shutdown).encode(out));
            let _ = poll_fn(|cx| self.down.lane.poll_flush(cx, &mut self.client)).await;
        }
    }
}
