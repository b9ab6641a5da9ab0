//! Ordered rows, for what nearly always goes on at their ends or among a few.
//!
//! [`Row`]: one tenant's waiters. Who comes last stands last and who is first is served, so both cost the
//! same however long it is. [`Ranking`]: where tenants' lanes stand among one another. Mostly there are few,
//! and they move with every lease.

use std::collections::{BTreeMap, VecDeque};

/// A sorted map that is quick at its ends.
#[derive(Debug)]
pub(in crate::book) struct Row<V>(VecDeque<(i64, V)>);

impl<V: Copy> Row<V> {
    pub(in crate::book) fn new() -> Self {
        Row(VecDeque::new())
    }

    fn find(&self, turn: i64) -> Result<usize, usize> {
        match self.0.front() {
            Some(&(first, _)) if first == turn => Ok(0),
            _ => self.0.binary_search_by_key(&turn, |&(other, _)| other),
        }
    }

    /// Puts one into its place. No turn is given twice.
    pub(super) fn insert(&mut self, turn: i64, value: V) {
        if self.0.back().is_none_or(|&(last, _)| last < turn) {
            self.0.push_back((turn, value));
        } else if let Err(at) = self.find(turn) {
            self.0.insert(at, (turn, value));
        }
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, turn: i64) -> Option<V> {
        let at = self.find(turn).ok()?;
        self.0.remove(at).map(|(_, value)| value)
    }

    pub(in crate::book) fn first(&self) -> Option<(i64, V)> {
        self.0.front().copied()
    }

    /// The first from this turn on.
    pub(in crate::book) fn first_from(&self, turn: i64) -> Option<i64> {
        match self.first() {
            Some((first, _)) if first >= turn => Some(first),
            _ => self.0.get(self.find(turn).unwrap_or_else(|at| at)).map(|&(other, _)| other),
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = V> + '_ {
        self.0.iter().map(|&(_, value)| value)
    }

    pub(in crate::book) fn len(&self) -> usize {
        self.0.len()
    }

    pub(in crate::book) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// So many are looked through one by one.
const FEW: usize = 8;

/// A sorted map that is quick while it is small.
#[derive(Debug)]
pub(in crate::book) enum Ranking<K, V> {
    Few(Vec<(K, V)>),
    Many(BTreeMap<K, V>),
}

impl<K, V> Default for Ranking<K, V> {
    fn default() -> Self {
        Ranking::Few(Vec::new())
    }
}

impl<K: Ord + Copy, V: Copy> Ranking<K, V> {
    /// Takes out what stood at `old`, if anything, and puts in what `new` says.
    pub(super) fn shift(&mut self, old: Option<K>, new: Option<(K, V)>) {
        match self {
            Ranking::Few(few) => {
                if let Some(at) = old.and_then(|old| few.iter().position(|(key, _)| *key == old)) {
                    few.remove(at);
                }
                let Some((key, value)) = new else { return };
                let at = few.iter().position(|(other, _)| *other >= key).unwrap_or(few.len());
                match few.get_mut(at) {
                    Some(same) if same.0 == key => same.1 = value,
                    _ => few.insert(at, (key, value)),
                }
                if few.len() > FEW {
                    *self = Ranking::Many(few.drain(..).collect());
                }
            }
            Ranking::Many(many) => {
                if let Some(old) = old {
                    many.remove(&old);
                }
                if let Some((key, value)) = new {
                    many.insert(key, value);
                }
                if many.is_empty() {
                    *self = Ranking::default();
                }
            }
        }
    }

    pub(super) fn first(&self) -> Option<(K, V)> {
        match self {
            Ranking::Few(few) => few.first().copied(),
            Ranking::Many(many) => many.first_key_value().map(|(key, value)| (*key, *value)),
        }
    }

    /// The first key from this one on.
    pub(super) fn first_from(&self, from: K) -> Option<K> {
        match self {
            Ranking::Few(few) => few.iter().map(|(key, _)| *key).find(|key| *key >= from),
            Ranking::Many(many) => many.range(from..).next().map(|(key, _)| *key),
        }
    }

    /// The first of so many that this holds of.
    pub(super) fn find(&self, among: usize, mut holds: impl FnMut(V) -> bool) -> Option<(K, V)> {
        match self {
            Ranking::Few(few) => few.iter().take(among).copied().find(|(_, value)| holds(*value)),
            Ranking::Many(many) => {
                let mut places = many.iter().take(among).map(|(key, value)| (*key, *value));
                places.find(|(_, value)| holds(*value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against an ordered map, with turns that come mostly in order and go mostly from the front.
        #[test]
        fn a_row_is_an_ordered_map(steps in prop::collection::vec((0u8..6, -40i64..40), 1..400)) {
            let (mut row, mut model) = (Row::new(), BTreeMap::new());
            for (at, (step, turn)) in (0i64..).zip(steps) {
                match step {
                    0 | 1 => {
                        row.insert(100 + at, at);
                        model.insert(100 + at, at);
                    }
                    2 => {
                        row.insert(turn, at);
                        model.entry(turn).or_insert(at);
                    }
                    3 | 4 => {
                        let first = model.keys().next().copied().unwrap_or(turn);
                        prop_assert_eq!(row.remove(first), model.remove(&first));
                    }
                    _ => prop_assert_eq!(row.remove(turn), model.remove(&turn)),
                }
                prop_assert_eq!(row.first(), model.first_key_value().map(|(turn, value)| (*turn, *value)));
                prop_assert_eq!(row.first_from(turn), model.range(turn..).next().map(|(turn, _)| *turn));
                prop_assert!(row.values().eq(model.values().copied()));
                prop_assert_eq!((row.len(), row.is_empty()), (model.len(), model.is_empty()));
            }
        }

        /// Against an ordered map, few and many and few again.
        #[test]
        fn a_ranking_is_an_ordered_map(
            steps in prop::collection::vec((0u32..30, prop::option::of(0u32..30), 0usize..40), 1..400),
        ) {
            let (mut places, mut model) = (Ranking::default(), BTreeMap::new());
            let mut was_many = false;
            for (at, (old, new, among)) in (0u32..).zip(steps) {
                // Once in a while it runs empty.
                let fill = at % 90 < 45;
                let old = if fill { (at % 3 == 0).then_some(old) } else { model.keys().next().copied() };
                let new = new.filter(|_| fill).map(|new| (new, at));
                places.shift(old, new);
                old.map(|old| model.remove(&old));
                new.map(|(key, value)| model.insert(key, value));
                was_many |= matches!(places, Ranking::Many(_));
                prop_assert!(!model.is_empty() || matches!(places, Ranking::Few(_)));
                let pair = |(key, value): (&u32, &u32)| (*key, *value);
                prop_assert_eq!(places.first(), model.first_key_value().map(pair));
                prop_assert_eq!(places.first_from(at % 30), model.range(at % 30..).next().map(|(key, _)| *key));
                let even = |value: u32| value.is_multiple_of(2);
                let found = model.iter().map(pair).take(among).find(|(_, value)| even(*value));
                prop_assert_eq!(places.find(among, even), found);
            }
            prop_assert!(was_many || model.len() <= 30);
        }
    }
}
