//! How long a lease will be held, guessed from how long leases like it were: same tenant, same
//! first statement but for its values, same route (budgets.md §3.2).
//!
//! A lease is *long* if more than one in ten like it was held for more than [`LONG`] lately, that
//! is, if the 90th percentile of its kind is above it. What is unknown counts as short: a wrong guess
//! costs one slot once, since a lease teaches as soon as it is long, not when it is back. Memory is
//! bounded: a table of two-way sets in which the less used of two makes room.

use super::depth::Depth;
use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use std::time::Duration;

/// Held longer than this is long.
pub(super) const LONG: Duration = Duration::from_millis(250);
/// What a lease of an unknown kind is charged at first.
pub(super) const UNKNOWN: Duration = Duration::from_millis(20);

const KINDS: usize = 4096;
/// Leases an average looks back on.
const MEMORY: u16 = 16;
/// A tenth, on the scale of [`Kind::long`].
const TENTH: u16 = u16::MAX / 10;

/// What is known of one kind of lease.
#[derive(Debug, Default, Clone, Copy)]
struct Kind {
    key: u64,
    /// Average hold in microseconds.
    hold: u32,
    /// Share of long ones, `u16::MAX` = all.
    long: u16,
    /// Leases seen, up to [`MEMORY`].
    seen: u16,
    /// Of requests whose first lease is of this kind.
    depth: Depth,
}

impl Kind {
    fn holds(&mut self, held: Duration, weight: f32) {
        let micros = u32::try_from(held.as_micros()).unwrap_or(u32::MAX) as f32;
        self.hold = (self.hold as f32 + (micros - self.hold as f32) * weight) as u32;
    }
}

/// A guess about a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::book) struct Guess {
    /// Its kind, for [`Predictor::learn`].
    pub(in crate::book) key: u64,
    pub(super) hold: Duration,
    pub(in crate::book) long: bool,
}

#[derive(Debug)]
pub(in crate::book) struct Predictor {
    kinds: Vec<Kind>,
    hasher: FixedState,
}

impl Predictor {
    pub(in crate::book) fn new() -> Self {
        Predictor { kinds: vec![Kind::default(); KINDS], hasher: FixedState::default() }
    }

    /// A guess about a lease of this tenant (by its serial number) with this first statement and route.
    pub(in crate::book) fn guess(&self, tenant: u32, statement: u64, route: Option<&str>) -> Guess {
        let route = route.map_or(0, |route| self.hasher.hash_one(route));
        // Two odd constants and a fold mix well enough for a table that nobody can gain by filling.
        let mixed = (u64::from(tenant) ^ statement.rotate_left(32) ^ route)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(statement);
        self.guess_of((mixed ^ (mixed >> 29)).max(1))
    }

    /// The guess by what is known now.
    pub(super) fn guess_of(&self, key: u64) -> Guess {
        match self.pair(key).into_iter().map(|at| self.kinds[at]).find(|kind| kind.key == key) {
            Some(kind) => {
                let hold = Duration::from_micros(kind.hold.into());
                Guess { key, hold, long: kind.long > TENTH }
            }
            None => Guess { key, hold: UNKNOWN, long: false },
        }
    }

    /// A lease of this kind was held so long. Returns whether its kind is long now and was not, or the
    /// other way round.
    pub(in crate::book) fn learn(&mut self, key: u64, held: Duration) -> bool {
        let kind = self.kind(key);
        let before = kind.long > TENTH;
        kind.seen = (kind.seen + 1).min(MEMORY);
        let weight = f32::from(kind.seen).recip();
        kind.holds(held, weight);
        let long = if held > LONG { f32::from(u16::MAX) } else { 0.0 };
        kind.long = (f32::from(kind.long) + (long - f32::from(kind.long)) * weight) as u16;
        (kind.long > TENTH) != before
    }

    /// How long a lease was held that was learnt from while it was held.
    pub(in crate::book) fn learn_the_rest(&mut self, key: u64, held: Duration) {
        let kind = self.kind(key);
        kind.holds(held, f32::from(kind.seen.max(1)).recip());
    }

    /// Leases at once that a request which begins with this kind has to be expected to hold; 0 = nothing is
    /// known against it.
    pub(in crate::book) fn claim(&self, key: u64) -> u32 {
        let known = self.pair(key).into_iter().map(|at| self.kinds[at]).find(|kind| kind.key == key);
        known.map_or(0, |kind| kind.depth.claim())
    }

    /// How many leases at once requests come to that begin with this kind.
    pub(in crate::book) fn depth(&mut self, key: u64) -> &mut Depth {
        &mut self.kind(key).depth
    }

    /// The entry of a kind, made if there is none.
    fn kind(&mut self, key: u64) -> &mut Kind {
        let [one, two] = self.pair(key);
        let at = if self.kinds[one].key == key {
            one
        } else if self.kinds[two].key == key {
            two
        } else {
            // The other one has seen a newcomer pass, and is nearer to its own end.
            let (out, stays) =
                if self.kinds[one].seen <= self.kinds[two].seen { (one, two) } else { (two, one) };
            self.kinds[stays].seen = (self.kinds[stays].seen / 2).max(u16::from(self.kinds[stays].key != 0));
            self.kinds[out] = Kind { key, ..Kind::default() };
            out
        };
        &mut self.kinds[at]
    }

    fn pair(&self, key: u64) -> [usize; 2] {
        let at = key as usize % KINDS;
        [at, at ^ 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_unknown_is_short_and_charged_a_little() {
        let guess = Predictor::new().guess(1, 7, None);
        assert_eq!((guess.hold, guess.long), (20 * MS, false));
    }

    #[test]
    fn a_kind_is_tenant_statement_and_route() {
        let mut predictor = Predictor::new();
        let slow = predictor.guess(1, 7, Some("/report"));
        predictor.learn(slow.key, 4000 * MS);
        let again = predictor.guess(1, 7, Some("/report"));
        assert_eq!((again.hold, again.long), (4000 * MS, true));
        for (tenant, statement, route) in [(2, 7, Some("/report")), (1, 8, Some("/report")), (1, 7, None)] {
            assert!(!predictor.guess(tenant, statement, route).long);
        }
    }

    #[test]
    fn one_in_ten_makes_a_kind_long_and_a_row_of_short_ones_mends_it() {
        let mut predictor = Predictor::new();
        let key = predictor.guess(1, 7, None).key;
        for _ in 0..20 {
            predictor.learn(key, 5 * MS);
        }
        predictor.learn(key, 300 * MS);
        assert!(!predictor.guess(1, 7, None).long, "one in sixteen");
        predictor.learn(key, 300 * MS);
        assert!(predictor.guess(1, 7, None).long, "two in sixteen");
        for _ in 0..3 {
            predictor.learn(key, 5 * MS);
        }
        assert!(!predictor.guess(1, 7, None).long);
    }

    #[test]
    fn a_flood_of_newcomers_stays_within_its_memory() {
        let mut predictor = Predictor::new();
        let often = predictor.guess(1, 1, None).key;
        for statement in 0..100_000 {
            predictor.learn(often, 900 * MS);
            let key = predictor.guess(2, statement, None).key;
            predictor.learn(key, MS);
        }
        assert_eq!(predictor.kinds.len(), KINDS);
        assert!(predictor.guess(1, 1, None).long, "what is used all the time is not forgotten");
    }
}
