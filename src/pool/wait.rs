//! A queued checkout: the promise of a lease, cancelled by dropping it.

use super::Pools;
use super::lease::Lease;
use crate::book::{Refusal, WaiterId, Warning};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// How a wait ends. The waiter is handed the lease itself: if nobody is there to take it, it is
/// dropped and so given back.
pub enum Granted {
    /// With a lease, and budgets in `warn` mode that it exceeds. In a box: it is passed on many times
    /// before it is taken.
    Lease(Box<Lease>, Vec<Warning>),
    /// Without.
    Refused(Refusal),
}

/// The book's end of a queued checkout.
pub struct Waiter {
    sender: oneshot::Sender<Granted>,
}

impl Waiter {
    /// A waiter whose other end is left in `receiver`.
    pub(super) fn new(receiver: &mut Option<oneshot::Receiver<Granted>>) -> Waiter {
        let (sender, other) = oneshot::channel();
        *receiver = Some(other);
        Waiter { sender }
    }

    pub(super) fn tell(self, granted: Granted) {
        // A waiter that has gone drops what it was granted.
        drop(self.sender.send(granted));
    }
}

/// The session's end. A future; cancel safe: dropping it takes the session out of the queue, and a
/// lease that was already on its way is given back.
pub struct Waiting {
    pools: Arc<Pools>,
    id: WaiterId,
    receiver: oneshot::Receiver<Granted>,
    done: bool,
}

impl Waiting {
    pub(super) fn new(pools: Arc<Pools>, id: WaiterId, receiver: oneshot::Receiver<Granted>) -> Waiting {
        Waiting { pools, id, receiver, done: false }
    }
}

impl Future for Waiting {
    type Output = Granted;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Granted> {
        let polled = Pin::new(&mut self.receiver).poll(cx);
        polled.map(|granted| {
            self.done = true;
            match granted {
                Ok(Granted::Lease(mut lease, warnings)) => {
                    lease.mark_used();
                    Granted::Lease(lease, warnings)
                }
                Ok(refused) => refused,
                // The book drops a waiter only when it is closed.
                Err(_) => Granted::Refused(Refusal::Closing),
            }
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.done {
            self.pools.cancel_wait(self.id);
        }
    }
}
