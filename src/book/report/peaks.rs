//! How far each budget is used: the most that any one request, tenant, pool or lease has used of it, now
//! and within the last hour (SHOW BUDGETS, budgets.md §8.3).
//!
//! Counts in leases, waiters and the like, times in milliseconds. By the minute, which a tick turns.

use super::counters::{DIMENSIONS, Dim, nanos};
use crate::book::pool::Pool;
use crate::book::{Book, Doing};
use std::time::{Duration, Instant};

const MINUTES: usize = 60;

#[derive(Debug)]
pub(in crate::book) struct Peaks {
    start: Option<Instant>,
    minute: u64,
    /// By dimension: the minute, counted from 1, and the most seen in it.
    ring: [[(u64, u64); MINUTES]; DIMENSIONS],
    /// Times as the last tick saw them.
    seen: [u64; DIMENSIONS],
}

impl Default for Peaks {
    fn default() -> Self {
        let ring = [[(0, 0); MINUTES]; DIMENSIONS];
        Peaks { start: None, minute: 1, ring, seen: [0; DIMENSIONS] }
    }
}

impl Peaks {
    /// So much of a budget is used.
    #[inline]
    pub(in crate::book) fn saw(&mut self, dim: Dim, used: u64) {
        let slot = &mut self.ring[dim as usize][self.minute as usize % MINUTES];
        if slot.0 != self.minute {
            *slot = (self.minute, used);
        } else if slot.1 < used {
            slot.1 = used;
        }
    }

    /// A time of something that goes on.
    pub(in crate::book) fn saw_time(&mut self, dim: Dim, used: Duration) {
        let millis = nanos(used) / 1_000_000;
        self.seen[dim as usize] = self.seen[dim as usize].max(millis);
        self.saw(dim, millis);
    }

    /// A tick begins.
    pub(in crate::book) fn turn(&mut self, now: Instant) {
        let start = *self.start.get_or_insert(now);
        self.minute = now.saturating_duration_since(start).as_secs() / 60 + 1;
        self.seen = [0; DIMENSIONS];
    }

    fn peak(&self, dim: Dim, now: Instant) -> u64 {
        let start = self.start.unwrap_or(now);
        let minute = now.saturating_duration_since(start).as_secs() / 60 + 1;
        let recent = self.ring[dim as usize].iter().filter(|slot| slot.0 + MINUTES as u64 > minute);
        recent.map(|slot| slot.1).max().unwrap_or(0)
    }
}

impl<B, W> Book<B, W> {
    /// By dimension: what is used now, and the most within the last hour.
    pub(super) fn usage_rows(&self, now: Instant) -> Vec<(&'static str, u64, u64)> {
        let row = |dim: Dim| {
            let current = self.used_now(dim, now);
            (dim.name(), current, self.peaks.peak(dim, now).max(current))
        };
        Dim::all().map(row).collect()
    }

    fn used_now(&self, dim: Dim, now: Instant) -> u64 {
        let requests = |of: fn(&crate::book::requests::Request) -> u64| {
            self.requests.iter().filter(|(_, r)| crate::book::roll::Busy::busy(*r)).map(|(_, r)| of(r)).max()
        };
        let shares =
            |of: fn(&crate::book::share::Share) -> u32| self.shares.iter().map(|(_, s)| of(s).into()).max();
        let pools = |of: fn(&Pool) -> usize| self.pools.iter().map(|pool| of(pool) as u64).max();
        let most = match dim {
            Dim::B1 => requests(|request| request.leases.into()),
            Dim::B2 => requests(|request| request.leases_total().into()),
            Dim::B3 => requests(|request| nanos(request.used()) / 1_000_000),
            Dim::B4 => shares(|share| share.leased),
            Dim::B8 => shares(|share| share.waiting),
            Dim::B9 => {
                let since = self.waiters.values().map(|waiter| waiter.since).min();
                since.map(|since| nanos(now.saturating_duration_since(since)) / 1_000_000)
            }
            Dim::B15 => pools(|pool| pool.waiting),
            Dim::B16 => Some(self.retries.recent(now)),
            Dim::B17 => shares(|share| share.pinned),
            Dim::B18 => self.sessions.values().map(|sessions| (*sessions).into()).max(),
            _ => Some(self.peaks.seen[dim as usize]),
        };
        most.unwrap_or(0)
    }

    /// The times of a lease, whatever its budgets.
    pub(in crate::book) fn note_times(&mut self, sight: &crate::book::tick::Sight) {
        let activity = &sight.activity;
        let for_ = |since: Instant| sight.now.saturating_duration_since(since);
        if let Some(start) = activity.tx_start {
            self.peaks.saw_time(Dim::B10, for_(start));
        }
        if activity.state == Doing::IdleInTx {
            self.peaks.saw_time(Dim::B11, for_(activity.since));
        }
        if let Some(statement) = activity.statement {
            self.peaks.saw_time(Dim::B12, for_(statement));
        }
        if let Some(stalled) = activity.stalled {
            self.peaks.saw_time(Dim::B13, for_(stalled));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_lasts_an_hour() {
        let mut peaks = Peaks::default();
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        peaks.turn(at(0));
        peaks.saw(Dim::B1, 7);
        peaks.saw(Dim::B1, 5);
        peaks.turn(at(30));
        peaks.saw(Dim::B1, 3);
        assert_eq!(peaks.peak(Dim::B1, at(59)), 7);
        assert_eq!(peaks.peak(Dim::B1, at(60)), 3);
        assert_eq!(peaks.peak(Dim::B1, at(90)), 0);
        assert_eq!(peaks.peak(Dim::B2, at(59)), 0);
    }
}
