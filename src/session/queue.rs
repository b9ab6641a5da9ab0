//! In the queue for a backend.

use super::reply::{self, Fault};
use super::serve::End;
use super::{Session, Socket};
use crate::clock;
use crate::pool::cell::Order;
use crate::pool::wait::Granted;
use crate::wire::walk::Header;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// How a wait for a lease ends.
enum Waited {
    Granted(Granted),
    Ordered,
    Gone,
}

impl<S: Socket> Session<S> {
    /// Waits for the backend that [`Session::queued`] promises, and begins the lease.
    pub(super) async fn begin_queued(&mut self) -> Result<(), End> {
        if let Some((_, tag)) = &self.queued {
            self.cell.set_waiting(true, tag, self.now);
        }
        self.up.lane.shrink();
        let waited = self.wait().await;
        let Some((_, tag)) = self.queued.take() else { return Ok(()) };
        let granted = waited?;
        self.now = clock::now();
        match granted {
            Some(Granted::Lease(mut lease, warnings)) => {
                if self.is_unfit(&mut lease) {
                    return Box::pin(self.adopt_unfit(Box::new((*lease, warnings, tag)))).await;
                }
                self.adopt(*lease, &warnings, &tag, self.now);
                Ok(())
            }
            Some(Granted::Refused(refusal)) => {
                self.cell.set_waiting(false, &tag, self.now);
                self.refuse(&refusal)
            }
            None => {
                self.cell.set_waiting(false, &tag, self.now);
                Ok(())
            }
        }
    }

    /// Waits for a lease, answering orders and watching for the client to go. `None` = cancelled.
    async fn wait(&mut self) -> Result<Option<Granted>, End> {
        loop {
            let waited = poll_fn(|cx| {
                if self.cell.has_orders() {
                    return Poll::Ready(Waited::Ordered);
                }
                let Some((waiting, _)) = &mut self.queued else { return Poll::Ready(Waited::Gone) };
                if let Poll::Ready(granted) = Pin::new(waiting).poll(cx) {
                    return Poll::Ready(Waited::Granted(granted));
                }
                if let Poll::Ready(Err(_)) = self.down.lane.poll_flush(cx, &mut self.client) {
                    return Poll::Ready(Waited::Gone);
                }
                loop {
                    match self.up.lane.poll_fill(cx, &mut self.client) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Err(_)) => return Poll::Ready(Waited::Gone),
                        Poll::Ready(Ok(0)) if self.up.lane.is_closed() && !self.said_goodbye() => {
                            return Poll::Ready(Waited::Gone);
                        }
                        Poll::Ready(Ok(0)) => return Poll::Pending,
                        Poll::Ready(Ok(_)) => {}
                    }
                }
            })
            .await;
            match waited {
                Waited::Granted(granted) => return Ok(Some(granted)),
                Waited::Gone => return Err(End::Lost),
                Waited::Ordered => {
                    self.listen_for_orders().await;
                    for order in self.cell.take_orders() {
                        match order {
                            Order::CancelWait => {
                                self.reject(&reply::fault(&Fault::CancelledInQueue));
                                return Ok(None);
                            }
                            Order::Kill => return Err(End::fault(&Fault::Shutdown)),
                            // What waits has begun, as far as its client knows.
                            Order::Drain => self.draining = true,
                            Order::Expel => return Err(End::Told(Box::new(reply::isolation::expelled()))),
                            Order::End(..)
                            | Order::Cancel(..)
                            | Order::Warn(..)
                            | Order::Park(_)
                            | Order::CancelDone => {}
                        }
                    }
                }
            }
        }
    }

    /// Whether what the client has sent ends with Terminate: a client that says goodbye behind
    /// complete work wants the work done, one that vanishes from the queue does not.
    fn said_goodbye(&self) -> bool {
        let mut bytes = self.up.lane.unwalked();
        while let Some(head) = Header::read(bytes) {
            if head.kind == b'X' {
                return true;
            }
            let Some(rest) = head.total().and_then(|total| bytes.get(total..)) else { return false };
            bytes = rest;
        }
        false
    }
}
