//! Answers to logins that have failed, held back from a source that fails too often; which, and for how long, is
//! decided in [`crate::auth::damping`].
//!
//! Whoever proves who it is never waits here, wherever it comes from: behind one address there may be many, and a
//! good login must not depend on what its neighbours do. So who fails leaves the lobby before it waits: there it would
//! take the places of those who have not failed, and whoever is sent away for that comes again. Those who wait have
//! places of their own, a quarter as many. Beyond that a connection is closed at once without an answer: to answer it
//! would be to serve who fails most the quickest.

use super::Visitor;
use crate::auth::damping::{Damping, Failures, Source};
use crate::clock;
use crate::metrics::Damped;
use crate::net::stream::Origin;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// The part of `listen.max_logins` that may, besides, wait for an answer at a time.
const PART: usize = 4;

/// See the module's page.
#[derive(Debug)]
pub struct Damper {
    failures: Mutex<Failures>,
    waiting: AtomicUsize,
    closing: CancellationToken,
}

/// One that waits for its answer.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Damper {
    /// Holds back nothing any more once that is cancelled.
    #[must_use]
    pub fn until(closing: CancellationToken) -> Damper {
        Damper { failures: Mutex::default(), waiting: AtomicUsize::new(0), closing }
    }

    /// Waits until a login that has failed may be told so, at the latest at its visitor's deadline; `false` = it is not to be
    /// told at all. `last` is what it would be told. Cancel safe, and ready at once when the client goes away: what its
    /// failure has cost its source stays.
    pub(super) async fn hold<S: AsyncRead + Unpin>(
        &self,
        stream: &mut S,
        visitor: &Visitor<'_>,
        last: &str,
    ) -> bool {
        let config = visitor.pools.config();
        let Some(delay) = config.auth.failure_delay else { return true };
        let rules = Damping { burst: config.auth.failure_burst, delay };
        let source = match visitor.origin {
            Origin::Tcp(address) => Source::from(address),
            Origin::Unix(uid) => Source::Unix(uid),
        };
        let damped = self.failures.lock().add(source, rules, clock::now());
        if let Some(failures) = damped.warn {
            tracing::warn!(%source, failures, last, "logins fail too often: answers to them are held back");
        }
        if damped.wait.is_zero() {
            return true;
        }
        let outcomes = &visitor.pools.metrics.damped;
        let Some(_place) = self.place(config.listen.max_logins / PART) else {
            outcomes.inc(Damped::Closed);
            return false;
        };
        let due = (Instant::now() + damped.wait).min(visitor.deadline.into());
        visitor.guest.stay();
        let answered = self.wait(stream, due).await;
        outcomes.inc(if answered { Damped::Answered } else { Damped::Gone });
        answered
    }

    fn place(&self, most: usize) -> Option<Place<'_>> {
        let more = |waiting| (waiting < most).then_some(waiting + 1);
        let taken = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Place(&self.waiting))
    }

    /// `false`: the client has gone, or sends what it was not asked for.
    async fn wait<S: AsyncRead + Unpin>(&self, stream: &mut S, due: Instant) -> bool {
        let mut byte = [0];
        tokio::select! {
            biased;
            () = self.closing.cancelled() => true,
            () = sleep_until(due) => true,
            _ = stream.read(&mut byte) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::duplex;

    const LATER: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_its_time_or_the_end_or_until_the_client_goes() {
        let closing = CancellationToken::new();
        let damper = Damper::until(closing.clone());
        let (mut near, far) = duplex(64);
        let start = Instant::now();
        assert!(damper.wait(&mut near, start + LATER).await);
        assert_eq!(start.elapsed(), LATER);

        drop(far);
        let start = Instant::now();
        assert!(!damper.wait(&mut near, start + LATER).await);
        assert_eq!(start.elapsed(), Duration::ZERO);

        let (mut near, _far) = duplex(64);
        closing.cancel();
        assert!(damper.wait(&mut near, start + LATER).await);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[test]
    fn so_many_wait_at_a_time() {
        let damper = Damper::until(CancellationToken::new());
        let first = damper.place(2);
        let second = damper.place(2);
        assert!(first.is_some() && second.is_some() && damper.place(2).is_none());
        drop(first);
        assert!(damper.place(2).is_some());
        drop(second);
        assert_eq!(damper.waiting.load(Ordering::Relaxed), 0);
        assert!(damper.place(0).is_none());
    }
}
