//! What the book counts: budget outcomes, histograms, totals. Plain integers, added to under the
//! book's lock; rendering is somebody else's.

use crate::book::{HOLD_BOUNDS, WAIT_BOUNDS, Warning};
use crate::config::Mode;
use std::time::Duration;

/// The budget dimensions of budgets.md §2.3 that exist so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::book) enum Dim {
    B1,
    B2,
    B3,
    B4,
    B8,
    B9,
    B10,
    B11,
    B12,
    B13,
    B15,
    B16,
    B17,
    B18,
}

const DIMS: [(Dim, &str); 14] = [
    (Dim::B1, "B1"),
    (Dim::B2, "B2"),
    (Dim::B3, "B3"),
    (Dim::B4, "B4"),
    (Dim::B8, "B8"),
    (Dim::B9, "B9"),
    (Dim::B10, "B10"),
    (Dim::B11, "B11"),
    (Dim::B12, "B12"),
    (Dim::B13, "B13"),
    (Dim::B15, "B15"),
    (Dim::B16, "B16"),
    (Dim::B17, "B17"),
    (Dim::B18, "B18"),
];

impl Dim {
    /// This dimension's place in a set of dimensions.
    pub(in crate::book) fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// How many there are.
pub(super) const DIMENSIONS: usize = DIMS.len();

impl Dim {
    /// Each of them.
    pub(super) fn all() -> impl Iterator<Item = Dim> {
        DIMS.into_iter().map(|(dim, _)| dim)
    }

    /// As in metrics and views.
    pub(super) fn name(self) -> &'static str {
        DIMS[self as usize].1
    }

    /// The table of its limits in the configuration, if it is a budget of time.
    pub(super) fn key(self) -> &'static str {
        match self {
            Dim::B3 => "budget.request.db_time",
            Dim::B10 => "budget.transaction.max_age",
            Dim::B11 => "budget.transaction.max_idle",
            Dim::B12 => "budget.statement.max_time",
            Dim::B13 => "budget.statement.max_stall",
            _ => "",
        }
    }

    /// The warning of one that would act, but has not been in mode warn for long enough.
    pub(in crate::book) fn spared(self, spent: Duration, limit: Duration) -> Warning {
        Warning::Spared { key: self.key(), spent, limit }
    }
}

/// What came of holding something against a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::book) enum Told {
    Ok,
    Near,
    Would,
    Warn,
    Queue,
    Reject,
    Cancel,
    Abort,
}

const TOLDS: [(Told, &str); 8] = [
    (Told::Ok, "ok"),
    (Told::Near, "near"),
    (Told::Would, "would"),
    (Told::Warn, "warn"),
    (Told::Queue, "queue"),
    (Told::Reject, "reject"),
    (Told::Cancel, "cancel"),
    (Told::Abort, "abort"),
];

impl Told {
    /// Within a limit: `Near` from 80 % on (budgets.md §2.4).
    pub(in crate::book) fn within(used: u64, limit: u64) -> Told {
        if used.saturating_mul(5) >= limit.saturating_mul(4) { Told::Near } else { Told::Ok }
    }

    /// Beyond a limit that does not act (yet): counted in observe, told in the other modes.
    pub(in crate::book) fn beyond(mode: Mode) -> Told {
        match mode {
            Mode::Observe => Told::Would,
            Mode::Warn | Mode::Enforce => Told::Warn,
        }
    }
}

/// `bursar_budget_total{dimension, outcome}`.
#[derive(Debug, Default)]
pub(in crate::book) struct Tally([[u64; TOLDS.len()]; DIMS.len()]);

impl Tally {
    pub(in crate::book) fn count(&mut self, dim: Dim, told: Told) {
        self.0[dim as usize][told as usize] += 1;
    }

    /// Every cell, those at zero too: a series that exists from the start has a rate.
    pub(super) fn rows(&self) -> Vec<(&'static str, &'static str, u64)> {
        let cell = |dim: (Dim, &'static str), told: (Told, &'static str)| {
            (dim.1, told.1, self.0[dim.0 as usize][told.0 as usize])
        };
        DIMS.into_iter().flat_map(|dim| TOLDS.into_iter().map(move |told| cell(dim, told))).collect()
    }
}

const BOUNDS: usize = WAIT_BOUNDS.len();

/// Counts per bucket, the last for what lies beyond every bound.
#[derive(Debug)]
pub(in crate::book) struct Histogram {
    bounds: &'static [u64; BOUNDS],
    counts: [u64; BOUNDS + 1],
}

impl Histogram {
    pub(in crate::book) fn wait() -> Self {
        static NANOS: [u64; BOUNDS] = in_nanos(WAIT_BOUNDS);
        Histogram { bounds: &NANOS, counts: [0; BOUNDS + 1] }
    }

    pub(in crate::book) fn hold() -> Self {
        static NANOS: [u64; BOUNDS] = in_nanos(HOLD_BOUNDS);
        Histogram { bounds: &NANOS, counts: [0; BOUNDS + 1] }
    }

    pub(in crate::book) fn add(&mut self, value: Duration) {
        self.counts[self.bucket(value)] += 1;
    }

    /// Takes back what was added.
    pub(in crate::book) fn remove(&mut self, value: Duration) {
        self.counts[self.bucket(value)] -= 1;
    }

    fn bucket(&self, value: Duration) -> usize {
        let nanos = nanos(value);
        // Most values fall into the first buckets, so looking from the front is the quick way.
        self.bounds.iter().position(|&bound| nanos <= bound).unwrap_or(BOUNDS)
    }

    pub(super) fn counts(&self) -> Vec<u64> {
        self.counts.to_vec()
    }
}

/// A duration in nanoseconds; five centuries at most.
pub(in crate::book) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

const fn in_nanos(seconds: [f64; BOUNDS]) -> [u64; BOUNDS] {
    let mut nanos = [0; BOUNDS];
    let mut at = 0;
    while at < BOUNDS {
        nanos[at] = (seconds[at] * 1e9 + 0.5) as u64;
        at += 1;
    }
    nanos
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_where_their_numbers_are() {
        assert!(DIMS.iter().enumerate().all(|(at, (dim, _))| *dim as usize == at));
        assert!(TOLDS.iter().enumerate().all(|(at, (told, _))| *told as usize == at));
    }

    #[test]
    fn near_begins_at_four_fifths() {
        assert_eq!(Told::within(7, 10), Told::Ok);
        assert_eq!(Told::within(8, 10), Told::Near);
        assert_eq!(Told::within(2, 3), Told::Ok);
        assert_eq!(Told::within(3, 3), Told::Near);
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut histogram = Histogram::wait();
        histogram.add(Duration::from_micros(100));
        histogram.add(Duration::from_nanos(100_001));
        histogram.add(Duration::from_secs(31));
        let counts = histogram.counts();
        assert_eq!((counts[0], counts[1], counts[16]), (1, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 3);
    }
}
