//! A bounded table of named things (tenants of a pool, requests): found by name once, by number
//! after that; what has been idle longest goes when the table is full.
//!
//! Names come from clients, so hashing is keyed and seeded at random. It does not decide when a
//! thing is over, only which idle one to drop.

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// Something a table may have to keep, because others hold its number.
pub(super) trait Busy {
    fn busy(&self) -> bool;
}

#[derive(Debug)]
pub(super) struct Roll<T> {
    by_name: HashTable<u32>,
    hasher: RandomState,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<u32>,
    /// Every idle entry is here exactly once, and some that are busy again.
    idle: VecDeque<u32>,
    limit: usize,
    /// What was looked for last, which is most often looked for next: no name is hashed for it.
    recent: u32,
}

#[derive(Debug)]
struct Slot<T> {
    space: u32,
    name: Arc<str>,
    value: T,
    /// In `idle`.
    listed: bool,
    /// Used since it was last considered for dropping.
    touched: bool,
}

impl<T: Busy> Roll<T> {
    /// Keeps up to `limit` entries, and beyond it only busy ones.
    pub(super) fn new(limit: usize) -> Self {
        Roll {
            by_name: HashTable::new(),
            hasher: RandomState::default(),
            slots: Vec::new(),
            free: Vec::new(),
            idle: VecDeque::new(),
            limit,
            recent: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The number of a name within a space (a pool's number, or zero).
    pub(super) fn find(&self, space: u32, name: &str) -> Option<u32> {
        self.by_name.find(self.hasher.hash_one((space, name)), self.is(space, name)).copied()
    }

    /// The number of a name, made with `value` if it is new. Whoever makes the entry busy keeps the
    /// number until [`Roll::settle`].
    pub(super) fn find_or_insert(
        &mut self,
        space: u32,
        name: &Arc<str>,
        value: impl FnOnce() -> T,
    ) -> (u32, bool) {
        if let Some(Some(slot)) = self.slots.get_mut(self.recent as usize)
            && slot.space == space
            && *slot.name == **name
        {
            slot.touched = true;
            return (self.recent, false);
        }
        let hash = self.hasher.hash_one((space, &**name));
        if let Some(&at) = self.by_name.find(hash, self.is(space, name)) {
            if let Some(slot) = &mut self.slots[at as usize] {
                slot.touched = true;
            }
            self.recent = at;
            return (at, false);
        }
        while self.len() >= self.limit && self.drop_one_idle() {}
        let slot = Slot { space, name: name.clone(), value: value(), listed: true, touched: false };
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[at as usize] = Some(slot);
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.by_name.insert_unique(hash, at, |&at| match &slots[at as usize] {
            Some(slot) => hasher.hash_one((slot.space, &*slot.name)),
            None => 0,
        });
        self.idle.push_back(at);
        (at, true)
    }

    /// An entry may have become idle: remember it as one to drop.
    pub(super) fn settle(&mut self, at: u32) {
        if let Some(slot) = &mut self.slots[at as usize]
            && !slot.listed
            && !slot.value.busy()
        {
            (slot.listed, slot.touched) = (true, false);
            self.idle.push_back(at);
        }
    }

    /// Drops idle entries that are `old`, looking at no more than `steps` of them.
    pub(super) fn forget(&mut self, steps: usize, old: impl Fn(&T) -> bool) {
        for _ in 0..steps.min(self.idle.len()) {
            let Some(at) = self.idle.pop_front() else { return };
            let Some(slot) = &mut self.slots[at as usize] else { continue };
            if slot.value.busy() {
                slot.listed = false;
            } else if old(&slot.value) {
                self.remove(at);
            } else {
                self.idle.push_back(at);
            }
        }
    }

    /// Second chance in order of becoming idle: every step unlists a busy entry or uses up a touch,
    /// each of which was paid for by a use. False if every entry is busy.
    fn drop_one_idle(&mut self) -> bool {
        while let Some(at) = self.idle.pop_front() {
            let Some(slot) = &mut self.slots[at as usize] else { continue };
            if slot.value.busy() {
                slot.listed = false;
            } else if std::mem::take(&mut slot.touched) {
                self.idle.push_back(at);
            } else {
                self.remove(at);
                return true;
            }
        }
        false
    }

    fn remove(&mut self, at: u32) {
        let Some(slot) = self.slots[at as usize].take() else { return };
        let hash = self.hasher.hash_one((slot.space, &*slot.name));
        if let Ok(entry) = self.by_name.find_entry(hash, |&other| other == at) {
            entry.remove();
        }
        self.free.push(at);
    }

    fn is<'a>(&'a self, space: u32, name: &'a str) -> impl Fn(&u32) -> bool + 'a {
        move |&at| {
            self.slots[at as usize].as_ref().is_some_and(|slot| slot.space == space && *slot.name == *name)
        }
    }

    /// The numbers in use among the next `steps` places, and where to go on.
    pub(super) fn round(&self, from: usize, steps: usize) -> (Vec<u32>, usize) {
        let to = from.saturating_add(steps).min(self.slots.len());
        let used = |at: &usize| self.slots[*at].is_some();
        let found = (from.min(to)..to).filter(used).map(|at| at as u32).collect();
        (found, if to == self.slots.len() { 0 } else { to })
    }

    /// The name an entry was made with.
    pub(super) fn name(&self, at: u32) -> &Arc<str> {
        &self.slots[at as usize].as_ref().expect("a number in use names an entry").name
    }

    /// Every entry with its name, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &T)> {
        self.slots.iter().flatten().map(|slot| (&slot.name, &slot.value))
    }

    /// The number and name of every entry, to be looked up again.
    pub(super) fn names(&self) -> Vec<(u32, Arc<str>)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(at, slot)| Some((at as u32, slot.as_ref()?.name.clone()))).collect()
    }
}

impl<T> Roll<T> {
    /// The entry of a number that may be of no use by now.
    pub(super) fn get(&self, at: u32) -> Option<&T> {
        Some(&self.slots.get(at as usize)?.as_ref()?.value)
    }
}

impl<T> Index<u32> for Roll<T> {
    type Output = T;

    fn index(&self, at: u32) -> &T {
        &self.slots[at as usize].as_ref().expect("a number in use names an entry").value
    }
}

impl<T> IndexMut<u32> for Roll<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.slots[at as usize].as_mut().expect("a number in use names an entry").value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Busy for bool {
        fn busy(&self) -> bool {
            *self
        }
    }

    fn insert(roll: &mut Roll<bool>, name: &str) -> u32 {
        roll.find_or_insert(0, &name.into(), || false).0
    }

    #[test]
    fn the_longest_idle_goes_first_and_the_busy_stay() {
        let mut roll = Roll::new(3);
        let a = insert(&mut roll, "a");
        roll[a] = true;
        insert(&mut roll, "b");
        insert(&mut roll, "c");
        insert(&mut roll, "d");
        assert_eq!(roll.find(0, "b"), None, "the oldest idle one made room");
        assert_eq!(roll.find(0, "a"), Some(a));
        roll[a] = false;
        roll.settle(a);
        insert(&mut roll, "c");
        insert(&mut roll, "e");
        insert(&mut roll, "f");
        assert_eq!((roll.find(0, "d"), roll.find(0, "a")), (None, None));
        assert!(roll.find(0, "c").is_some(), "used since: a second chance");
        assert_eq!(roll.len(), 3);
    }

    #[test]
    fn only_the_busy_may_exceed_the_limit() {
        let mut roll = Roll::new(2);
        for number in 0..50 {
            let at = insert(&mut roll, &format!("busy {number}"));
            roll[at] = true;
        }
        assert_eq!(roll.len(), 50);
        for (at, _) in roll.names() {
            roll[at] = false;
            roll.settle(at);
        }
        roll.forget(100, |_| true);
        assert_eq!((roll.len(), roll.iter().count()), (0, 0));
    }

    #[test]
    fn a_name_is_another_one_in_another_space() {
        let mut roll = Roll::new(9);
        let (one, _) = roll.find_or_insert(1, &"acme".into(), || false);
        let (two, fresh) = roll.find_or_insert(2, &"acme".into(), || false);
        assert!(one != two && fresh);
        assert_eq!(roll.find(1, "acme"), Some(one));
    }
}
