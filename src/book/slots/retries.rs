//! B16: how often Bursar itself may try again (budgets.md §2.3): a fifth of the leases of the last ten
//! seconds, and ten times a second besides.
//!
//! A dial after one that failed is such a try, and so is a lease on another backend in the place of one
//! that was found dead. Each pool pauses between its dials anyway; this bounds them over all pools.

use std::time::{Duration, Instant};

const SECONDS: usize = 10;
/// Tries a second whatever the load.
const RESERVE: u64 = 10;
/// One try for so many leases.
const LEASES: u64 = 5;

#[derive(Debug, Default, Clone, Copy)]
struct Second {
    number: u64,
    tries: u64,
    /// Leases granted before it began.
    leases: u64,
}

#[derive(Debug, Default)]
pub(in crate::book) struct Retries {
    start: Option<Instant>,
    seconds: [Second; SECONDS],
}

impl Retries {
    /// Tries within the last ten seconds, and how many may be; `leases` = granted since the start.
    pub(super) fn spent(&mut self, now: Instant, leases: u64) -> (u64, u64) {
        let number = self.turn(now, leases);
        let recent = self.seconds.iter().filter(|second| second.number + (SECONDS as u64) > number);
        let (tries, first) = recent
            .fold((0, leases), |(tries, first), second| (tries + second.tries, first.min(second.leases)));
        (tries, RESERVE * SECONDS as u64 + leases.saturating_sub(first) / LEASES)
    }

    /// Tries within the last ten seconds, for those who only look.
    pub(in crate::book) fn recent(&self, now: Instant) -> u64 {
        let Some(start) = self.start else { return 0 };
        let number = now.saturating_duration_since(start).as_secs() + SECONDS as u64 + 1;
        let recent = self.seconds.iter().filter(|second| second.number + (SECONDS as u64) > number);
        recent.map(|second| second.tries).sum()
    }

    /// One more try.
    pub(super) fn count(&mut self, now: Instant, leases: u64) {
        let number = self.turn(now, leases);
        self.seconds[number as usize % SECONDS].tries += 1;
    }

    /// Begins a second, if another one than last time. Seconds count from 1: an unused slot is none.
    fn turn(&mut self, now: Instant, leases: u64) -> u64 {
        let start = *self.start.get_or_insert(now);
        let number = now.saturating_duration_since(start).as_secs() + SECONDS as u64 + 1;
        let slot = &mut self.seconds[number as usize % SECONDS];
        if slot.number != number {
            *slot = Second { number, tries: 0, leases };
        }
        number
    }
}

/// When a try that was not allowed is tried again.
pub(super) const LATER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_tries_in_ten_seconds_and_a_fifth_of_the_leases() {
        let mut retries = Retries::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(retries.spent(at(0), 0), (0, 100));
        for _ in 0..100 {
            retries.count(at(0), 0);
        }
        assert_eq!(retries.spent(at(9), 500), (100, 200));
        retries.count(at(9), 500);
        assert_eq!(retries.spent(at(10), 500), (1, 100), "the first second is over, and its leases with it");
        assert_eq!(retries.spent(at(30), 500), (0, 100));
    }
}
