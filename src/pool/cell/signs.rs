//! Signs that a session leaves for whoever looks for trouble: since when it waits for its client, how soon it is
//! used again, and which instance of an application it belongs to.

use super::{Cell, Live, State};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A session that is used again within this was waited for.
const AT_ONCE: Duration = Duration::from_millis(1);

impl Cell {
    /// Since when the client has not taken what is ready for it.
    pub fn stalled(&self, since: Option<Instant>) {
        self.stalled.store(self.nanos(since), Ordering::Relaxed);
    }

    /// Since when a COPY waits for data of the client.
    pub fn silent(&self, since: Option<Instant>) {
        self.silent.store(self.nanos(since), Ordering::Relaxed);
    }

    /// The request it works for, if tagged.
    #[must_use]
    pub fn request(&self) -> Option<Arc<str>> {
        self.live.lock().tag.request.clone()
    }

    /// Whether the transaction that it idles in may be parked.
    pub fn parkable(&self, parkable: bool) {
        self.parkable.store(parkable, Ordering::Relaxed);
    }

    /// As it was told last; holds only while it idles in a transaction.
    pub(super) fn is_parkable(&self) -> bool {
        self.parkable.load(Ordering::Relaxed)
    }

    /// When the transaction of its lease began.
    #[must_use]
    pub fn tx_start(&self) -> Option<Instant> {
        self.live.lock().link.as_ref()?.tx_start
    }

    /// Its transaction began before its lease did.
    pub fn began(&self, at: Instant) {
        if let Some(link) = &mut self.live.lock().link {
            link.tx_start = Some(at);
        }
    }

    /// Nobody stalls in the nanosecond of its connecting, so 0 is free to mean never.
    fn nanos(&self, since: Option<Instant>) -> u64 {
        since.map_or(0, |since| since.saturating_duration_since(self.connected).as_nanos() as u64)
    }

    /// Its transaction has given its backend back, or has come to its end without one.
    pub fn park(&self, parked: bool, now: Instant) {
        let mut live = self.live.lock();
        let (from, to) = if parked { (State::Idle, State::Parked) } else { (State::Parked, State::Idle) };
        if live.state == from {
            live.state = to;
            live.since = now;
        }
    }

    /// Whether it holds a backend, waits for one or is parked, how often it was taken at once after it was free, and how
    /// often at all.
    #[must_use]
    pub fn use_so_far(&self) -> (bool, u64, u64) {
        let live = self.live.lock();
        (matches!(live.state, State::Waiting | State::Leased(_) | State::Parked), live.quick, live.taken)
    }

    /// Where the client comes from, without the port.
    #[must_use]
    pub fn host(&self) -> &str {
        host(&self.client)
    }
}

impl Live {
    /// Asks for a backend after a rest, unless it waits already.
    pub(super) fn take(&mut self, now: Instant) {
        if self.state == State::Idle && self.last.is_some() {
            self.taken += 1;
            self.quick += u64::from(now.saturating_duration_since(self.since) < AT_ONCE);
        }
    }
}

fn host(client: &str) -> &str {
    client.rsplit_once(':').map_or(client, |(host, _)| host)
}

/// What tells one instance of an application from another.
pub(super) fn instance(client: &str, application: &str, user: &str) -> u64 {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    (host(client), application, user).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::SessionId;

    const MS: Duration = Duration::from_millis(1);

    fn cell(client: &str) -> Cell {
        let names = ("db".into(), "user".into(), "app".into());
        Cell::new(SessionId(1), names, client.into(), Instant::now())
    }

    #[test]
    fn instances_are_told_apart_by_host_and_not_by_port() {
        let [one, same, other] = ["10.0.0.1:5", "10.0.0.1:6", "10.0.0.2:5"].map(cell);
        assert_eq!((one.host(), one.instance), (same.host(), same.instance));
        assert_ne!(one.instance, other.instance);
        assert_eq!(cell("unix(7)").host(), "unix(7)");
    }

    #[test]
    fn a_session_that_asks_again_within_a_millisecond_was_waited_for() {
        let (cell, start) = (cell("unix"), Instant::now());
        let tag = Arc::default();
        // Until it has had a lease there is nothing to ask again for.
        cell.set_waiting(true, &tag, start);
        assert_eq!(cell.use_so_far(), (true, 0, 0));
        cell.set_waiting(false, &tag, start);
        cell.live.lock().last = Some((crate::book::LeaseId(1), 7));
        for (rest, expected) in [(MS / 2, (1, 1)), (MS, (1, 2)), (MS / 4, (2, 3))] {
            cell.set_waiting(false, &tag, start);
            assert!(!cell.use_so_far().0);
            cell.set_waiting(true, &tag, start + rest);
            cell.set_waiting(true, &tag, start + 9 * MS);
            assert_eq!(cell.use_so_far(), (true, expected.0, expected.1), "{rest:?}");
        }
    }

    #[test]
    fn a_stall_is_known_from_its_beginning() {
        let cell = cell("unix");
        assert_eq!(cell.nanos(None), 0);
        cell.silent(Some(cell.connected + 5 * MS));
        assert_eq!(cell.silent.load(Ordering::Relaxed), 5_000_000);
        cell.silent(None);
        assert_eq!(cell.silent.load(Ordering::Relaxed), 0);
    }
}
