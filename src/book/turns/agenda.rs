//! Waiters in an order of which only the first is ever wanted, and seldom: by deadline, or by who is
//! refused first when the queue is full.
//!
//! Nearly every waiter is granted long before it is the first, so leaving is free: whose wait is over
//! stays in the heap until it comes up or until most of the heap is like it. It does not know who
//! waits; whoever asks says so.

use crate::book::WaiterId;
use std::collections::BinaryHeap;

/// What the heap may hold, besides, for every waiter in it.
const GONE_FOR_ONE: usize = 2;
/// And anyway.
const SMALL: usize = 64;

/// Waiters, the greatest key first.
#[derive(Debug)]
pub(in crate::book) struct Agenda<K> {
    heap: BinaryHeap<(K, WaiterId)>,
}

impl<K: Ord + Copy> Agenda<K> {
    pub(in crate::book) fn new() -> Self {
        Agenda { heap: BinaryHeap::new() }
    }

    /// Enters a waiter: amortised over those entered, a constant number of calls of `waits`. `waiting` is
    /// how many of those entered wait still.
    pub(super) fn add(&mut self, key: K, id: WaiterId, waiting: usize, waits: impl Fn(WaiterId) -> bool) {
        if self.heap.len() >= SMALL + GONE_FOR_ONE * waiting {
            self.heap.retain(|&(_, id)| waits(id));
        }
        self.heap.push((key, id));
    }

    /// The first of those who wait.
    pub(in crate::book) fn first(&mut self, waits: impl Fn(WaiterId) -> bool) -> Option<(K, WaiterId)> {
        while let Some(&(_, id)) = self.heap.peek()
            && !waits(id)
        {
            self.heap.pop();
        }
        self.heap.peek().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against an ordered set: the same first one at any moment.
        #[test]
        fn the_first_is_that_of_an_ordered_set(steps in prop::collection::vec((0u8..3, 0u32..50), 1..600)) {
            let mut agenda = Agenda::new();
            let mut model: BTreeSet<(u32, u64)> = BTreeSet::new();
            for (at, (step, key)) in steps.into_iter().enumerate() {
                let waits = |model: &BTreeSet<(u32, u64)>, id| model.iter().any(|&(_, other)| WaiterId(other) == id);
                match step {
                    0 | 1 => {
                        agenda.add(key, WaiterId(at as u64), model.len(), |id| waits(&model, id));
                        model.insert((key, at as u64));
                    }
                    _ => {
                        let gone = model.iter().nth(key as usize % model.len().max(1)).copied();
                        gone.map(|gone| model.remove(&gone));
                    }
                }
                if step == 1 {
                    let first = agenda.first(|id| waits(&model, id)).map(|(key, id)| (key, id.0));
                    prop_assert_eq!(first, model.last().copied());
                }
            }
        }

        /// What is left by those who came and went is forgotten.
        #[test]
        fn who_has_gone_takes_no_room(comers in 1u64..5_000) {
            let mut agenda = Agenda::new();
            for at in 0..comers {
                agenda.add(at, WaiterId(at), 1, |id| id.0 + 1 >= at);
            }
            prop_assert!(agenda.heap.len() <= SMALL + GONE_FOR_ONE);
        }
    }
}
