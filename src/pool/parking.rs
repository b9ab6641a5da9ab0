//! What the sessions of one pool share about parked transactions (budgets.md §4.4): which names of their
//! database are not safe, which routes may not be parked any more, and what came of it so far.
//!
//! The names are asked of a backend at the end of a lease, by the session that held it; whether a
//! transaction may be parked is [`crate::state::parking`]'s decision.

use super::Pool;
use super::view::ParkingRow;
use crate::metrics::{Counters, Park, Unparkable};
use crate::state::volatile::Names;
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Names are asked for again when they are this old.
const FRESH: Duration = Duration::from_secs(60);

/// And not believed any more.
const STALE: Duration = Duration::from_secs(120);

/// Who was to ask for them has failed to do so after this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Routes that are remembered as not to be parked; one more, and none of the pool is.
const ROUTES: usize = 1_000;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Parking {
    known: ArcSwapOption<Known>,
    asking: Mutex<Asking>,
    /// `None` in it: transactions without a route.
    barred: Mutex<HashSet<Option<Arc<str>>>>,
    /// What became of transactions.
    pub parks: Counters<Park>,
    /// What kept transactions from being parked.
    pub unparkable: Counters<Unparkable>,
    parkable: AtomicU64,
    parked: AtomicU64,
    now: AtomicU64,
}

#[derive(Debug)]
struct Known {
    /// `None`: its statements cannot be judged.
    names: Option<Arc<Names>>,
    at: Instant,
}

#[derive(Debug, Default)]
struct Asking {
    since: Option<Instant>,
    /// How often the database was seen to change.
    edition: u64,
}

impl Parking {
    /// The names that are not safe; `None` = not known, and nothing is.
    #[must_use]
    pub fn names(&self, now: Instant) -> Option<Arc<Names>> {
        let known = self.known.load();
        known.as_ref().filter(|known| now.saturating_duration_since(known.at) < STALE)?.names.clone()
    }

    /// Whether the names are to be asked for at the end of a lease.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.known.load().as_ref().is_none_or(|known| now.saturating_duration_since(known.at) >= FRESH)
    }

    /// The right to ask for them, for one session at a time; to be told with the answer.
    #[must_use]
    pub fn ask(&self, now: Instant) -> Option<u64> {
        let mut asking = self.asking.lock();
        let busy = asking.since.is_some_and(|since| now.saturating_duration_since(since) < PATIENCE);
        if busy || !self.is_due(now) {
            return None;
        }
        asking.since = Some(now);
        Some(asking.edition)
    }

    /// The answer, if there was one; it does not count if the database has been seen to change meanwhile.
    pub fn learn(&self, edition: u64, names: Option<Option<Names>>, now: Instant) {
        let mut asking = self.asking.lock();
        let Some(names) = names.filter(|_| asking.edition == edition) else { return };
        asking.since = None;
        self.known.store(Some(Arc::new(Known { names: names.map(Arc::new), at: now })));
    }

    /// The database has been seen to change.
    pub fn altered(&self) {
        let mut asking = self.asking.lock();
        asking.edition += 1;
        asking.since = None;
        self.known.store(None);
    }

    /// Transactions of this route are not to be parked any more.
    pub fn bar(&self, route: Option<Arc<str>>) {
        let mut barred = self.barred.lock();
        if barred.len() < ROUTES {
            barred.insert(route);
        }
    }

    /// Whether those of this route may not be.
    #[must_use]
    pub fn is_barred(&self, route: Option<&Arc<str>>) -> bool {
        let barred = self.barred.lock();
        !barred.is_empty() && (barred.len() >= ROUTES || barred.contains(&route.cloned()))
    }

    /// A client has been silent for so long beyond the least gap, in a transaction that could be parked.
    pub fn add_parkable(&self, time: Duration) {
        self.parkable.fetch_add(micros(time), Relaxed);
    }

    /// A transaction has been parked.
    pub fn begin(&self) {
        self.parks.inc(Park::Parked);
        self.now.fetch_add(1, Relaxed);
    }

    /// A transaction is not parked any more, after so long.
    pub fn end(&self, what: Park, time: Duration) {
        self.parks.inc(what);
        self.parked.fetch_add(micros(time), Relaxed);
        self.now.fetch_sub(1, Relaxed);
    }

    /// What there is to show.
    #[must_use]
    pub fn row(&self) -> ParkingRow {
        ParkingRow {
            parkable: Duration::from_micros(self.parkable.load(Relaxed)),
            parked: Duration::from_micros(self.parked.load(Relaxed)),
            now: self.now.load(Relaxed),
            parks: self.parks.all().collect(),
            unparkable: self.unparkable.all().collect(),
        }
    }
}

/// A transaction that is parked.
#[must_use]
pub struct Ticket {
    pool: Option<Arc<Pool>>,
    /// When it began.
    pub began: Instant,
    since: Instant,
}

impl Ticket {
    /// A transaction of this pool that began at `began` is parked, silent since `since`.
    pub fn new(pool: &Arc<Pool>, began: Instant, since: Instant) -> Ticket {
        pool.parking.begin();
        Ticket { pool: Some(pool.clone()), began, since }
    }

    /// It is not any more.
    pub fn end(mut self, what: Park, now: Instant) {
        if let Some(pool) = self.pool.take() {
            pool.parking.end(what, now.saturating_duration_since(self.since));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.parking.end(Park::Lost, Duration::ZERO);
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_asked_for_by_one_session_and_again_when_old() {
        let (parking, start) = (Parking::default(), Instant::now());
        assert!(parking.is_due(start) && parking.names(start).is_none());
        let edition = parking.ask(start).unwrap();
        assert_eq!(parking.ask(start), None);
        // Who asked never came back.
        let later = start + PATIENCE;
        assert_eq!(parking.ask(later), Some(edition));
        parking.learn(edition, Some(Some(Names::default())), later);
        assert_eq!(parking.ask(later), None);
        assert!(parking.names(later + FRESH).is_some() && parking.is_due(later + FRESH));
        assert!(parking.names(later + STALE).is_none());
    }

    #[test]
    fn an_answer_from_before_a_change_does_not_count() {
        let (parking, now) = (Parking::default(), Instant::now());
        let edition = parking.ask(now).unwrap();
        parking.altered();
        parking.learn(edition, Some(Some(Names::default())), now);
        assert!(parking.names(now).is_none());
        let edition = parking.ask(now).unwrap();
        parking.learn(edition, None, now);
        assert!(parking.is_due(now));
        parking.learn(edition, Some(None), now);
        assert!(!parking.is_due(now) && parking.names(now).is_none());
    }

    #[test]
    fn routes_are_barred_one_by_one_and_all_when_there_are_too_many() {
        let parking = Parking::default();
        let (one, other): (Arc<str>, Arc<str>) = ("/a".into(), "/b".into());
        assert!(!parking.is_barred(Some(&one)) && !parking.is_barred(None));
        parking.bar(Some(one.clone()));
        assert!(parking.is_barred(Some(&one)) && !parking.is_barred(Some(&other)));
        assert!(!parking.is_barred(None));
        parking.bar(None);
        assert!(parking.is_barred(None));
        (0..ROUTES).for_each(|n| parking.bar(Some(n.to_string().into())));
        assert!(parking.is_barred(Some(&other)));
    }

    #[test]
    fn what_came_of_it_adds_up() {
        let parking = Parking::default();
        parking.add_parkable(Duration::from_millis(3));
        parking.begin();
        parking.begin();
        parking.end(Park::Resumed, Duration::from_millis(7));
        let row = parking.row();
        assert_eq!((row.parkable, row.parked), (Duration::from_millis(3), Duration::from_millis(7)));
        assert_eq!(row.now, 1);
        assert_eq!(row.parks[..2], [("parked", 2), ("resumed", 1)]);
    }
}
