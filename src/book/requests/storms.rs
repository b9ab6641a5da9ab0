//! Retry storms: the same request, or the same session where none is named, refused again and again
//! (budgets.md §6.2).
//!
//! Who retries at once what was refused adds to the load that it was refused for. The third refusal
//! within ten seconds, and each one after it, is counted and told to wait twice as long.

use crate::book::SessionId;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Refusals within [`WINDOW`] that make a storm.
const STORM: usize = 3;
/// See [`STORM`].
const WINDOW: Duration = Duration::from_secs(10);
/// Who is remembered; of more, those refused longest ago are forgotten.
const REMEMBERED: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::book) enum Who {
    Request(Arc<str>),
    Session(SessionId),
}

#[derive(Debug, Default)]
pub(in crate::book) struct Storms {
    /// The last refusals, the oldest first.
    refused: HashMap<Who, [Option<Instant>; STORM]>,
    /// One entry a refusal, the oldest first.
    order: VecDeque<(Instant, Who)>,
    total: u64,
}

impl Storms {
    /// One more refusal. Returns whether it is part of a storm.
    pub(in crate::book) fn refused(&mut self, who: Who, now: Instant) -> bool {
        self.forget(now);
        let last = self.refused.entry(who.clone()).or_default();
        last.rotate_left(1);
        last[STORM - 1] = Some(now);
        let storm = last[0].is_some_and(|first| now.saturating_duration_since(first) < WINDOW);
        self.total += u64::from(storm);
        self.order.push_back((now, who));
        storm
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, _)) = self.order.front()
            && (now.saturating_duration_since(*at) >= WINDOW || self.order.len() >= REMEMBERED)
        {
            let Some((at, who)) = self.order.pop_front() else { return };
            if self.refused.get(&who).is_some_and(|last| last[STORM - 1] <= Some(at)) {
                self.refused.remove(&who);
            }
        }
    }

    /// Refusals that were part of a storm.
    pub(in crate::book) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_refusal_in_ten_seconds_is_a_storm() {
        let mut storms = Storms::default();
        let start = Instant::now();
        let mut refused = |who: u64, after| {
            storms.refused(Who::Session(SessionId(who)), start + Duration::from_secs(after))
        };
        assert_eq!([refused(1, 0), refused(1, 4), refused(1, 9)], [false, false, true]);
        assert_eq!([refused(1, 10), refused(2, 10), refused(1, 25)], [true, false, false]);
        assert_eq!(storms.total(), 2);
        assert_eq!(storms.refused.len(), 1, "the others are forgotten");
    }

    #[test]
    fn memory_is_bounded() {
        let mut storms = Storms::default();
        let now = Instant::now();
        for session in 0..3 * REMEMBERED as u64 {
            storms.refused(Who::Session(SessionId(session)), now);
        }
        assert!(storms.refused.len() <= REMEMBERED && storms.order.len() <= REMEMBERED);
    }
}
