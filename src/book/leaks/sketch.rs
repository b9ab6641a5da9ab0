//! How long things of one kind take: a histogram that forgets.
//!
//! Buckets grow by an eighth of a power of two, so that a percentile is told at most an eighth too long and
//! never too short. What was added counts half as much an hour later (budgets.md §5.1). 700 bytes, and
//! adding is two additions. It does not keep time: whoever adds says when an hour is over.

use std::time::Duration;

/// Buckets per power of two.
const FINE: u32 = 8;
/// The first bucket ends below `1 << LEAST` microseconds: what is shorter is all the same here.
const LEAST: u32 = 10;
/// The last one begins above an hour.
const MOST: u32 = 32;
const BUCKETS: usize = ((MOST - LEAST) * FINE) as usize + 1;
/// What one observation adds, so that its half, its quarter and so on are something yet.
const ONE: u32 = 16;

/// See the module's page.
#[derive(Debug, Clone)]
pub(super) struct Sketch {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Sketch {
    pub(super) fn new() -> Self {
        Sketch { counts: [0; BUCKETS], total: 0 }
    }

    /// Adds `times` observations of the same length.
    pub(super) fn add(&mut self, took: Duration, times: u32) {
        let weight = ONE.saturating_mul(times).min(u32::MAX / 4);
        if self.total > u32::MAX / 2 {
            self.halve();
        }
        self.counts[bucket(took)] += weight;
        self.total += weight;
    }

    /// Observations it is made of, the old ones counting less.
    pub(super) fn count(&self) -> u32 {
        self.total / ONE
    }

    /// An hour is over.
    pub(super) fn halve(&mut self) {
        self.total = 0;
        for count in &mut self.counts {
            *count /= 2;
            self.total += *count;
        }
    }

    /// What 99 in a hundred take no longer than; `None` if fewer than `least` are known.
    pub(super) fn p99(&self, least: u32) -> Option<Duration> {
        if self.count() < least.max(1) {
            return None;
        }
        let beyond = self.total / 100;
        let mut above = 0;
        let at = (0..BUCKETS).rev().find(|&at| {
            above += self.counts[at];
            above > beyond
        })?;
        Some(upper(at))
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    if micros < 1 << LEAST {
        return 0;
    }
    let power = micros.ilog2().min(MOST - 1);
    let within = (micros >> (power - FINE.ilog2())).min(u64::from(2 * FINE - 1)) - u64::from(FINE);
    ((power - LEAST) * FINE) as usize + within as usize + 1
}

/// Where a bucket ends.
fn upper(at: usize) -> Duration {
    let Some(at) = at.checked_sub(1) else { return Duration::from_micros(1 << LEAST) };
    let (power, within) = (at as u32 / FINE + LEAST, at as u32 % FINE);
    Duration::from_micros(u64::from(FINE + within + 1) << (power - FINE.ilog2()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_bucket_ends_at_most_an_eighth_above_what_is_in_it() {
        let mut micros = 1_024_u64;
        while micros < 1 << MOST {
            let took = Duration::from_micros(micros);
            let end = upper(bucket(took));
            assert!(end > took && end <= took + took / 8 + Duration::from_micros(1), "{took:?} {end:?}");
            micros += micros / 50 + 1;
        }
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(upper(0), Duration::from_micros(1024));
    }

    #[test]
    fn the_99th_percentile_leaves_one_in_a_hundred_out() {
        let mut sketch = Sketch::new();
        sketch.add(10 * MS, 990);
        sketch.add(2_000 * MS, 10);
        let p99 = sketch.p99(100).unwrap();
        assert!(p99 >= 10 * MS && p99 < 12 * MS, "{p99:?}");
        sketch.add(2_000 * MS, 1);
        let p99 = sketch.p99(100).unwrap();
        assert!(p99 >= 2_000 * MS && p99 <= 2_250 * MS, "{p99:?}");
    }

    #[test]
    fn few_observations_say_nothing() {
        let mut sketch = Sketch::new();
        sketch.add(MS, 99);
        assert_eq!((sketch.count(), sketch.p99(100)), (99, None));
        sketch.add(MS, 1);
        assert!(sketch.p99(100).is_some());
        assert_eq!(Sketch::new().p99(0), None);
    }

    #[test]
    fn what_is_old_counts_half_and_in_the_end_nothing() {
        let mut sketch = Sketch::new();
        sketch.add(5_000 * MS, 400);
        sketch.halve();
        assert_eq!(sketch.count(), 200);
        sketch.add(10 * MS, 20_000);
        assert!(sketch.p99(100).unwrap() < 12 * MS, "200 of 20,200 are less than one in a hundred");
        for _ in 0..20 {
            sketch.halve();
        }
        assert_eq!((sketch.count(), sketch.p99(1)), (0, None));
    }

    #[test]
    fn it_never_overflows() {
        let mut sketch = Sketch::new();
        for _ in 0..100 {
            sketch.add(MS, u32::MAX / ONE / 10);
        }
        assert!(sketch.count() > 1_000_000);
    }
}
