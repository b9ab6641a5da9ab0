//! Which shared statements one backend has, and which of them was used longest ago.
//!
//! Pure. It says what will be there once everything sent so far has run; what an error sweeps away
//! is undone by [`super::session`].

use super::count::Count;
use super::table::StatementId;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Held {
    used: HashMap<StatementId, u64, FixedState>,
    clock: u64,
    count: Count,
}

impl Held {
    /// Statements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used.len()
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> impl Iterator<Item = StatementId> {
        self.used.keys().copied()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    /// How many there are, to be read from outside.
    #[must_use]
    pub fn count(&self) -> Count {
        self.count.clone()
    }

    /// Whether it has this statement, which is about to be used.
    pub fn touch(&mut self, id: StatementId) -> bool {
        self.clock += 1;
        let clock = self.clock;
        self.used.get_mut(&id).map(|used| *used = clock).is_some()
    }

    /// It is given this statement.
    pub fn add(&mut self, id: StatementId) {
        self.clock += 1;
        self.used.insert(id, self.clock);
        self.count.set(self.used.len());
    }

    /// It loses this statement.
    pub fn remove(&mut self, id: StatementId) {
        self.used.remove(&id);
        self.count.set(self.used.len());
    }

    /// It loses all of them.
    pub fn clear(&mut self) {
        self.used.clear();
        self.count.set(0);
    }

    /// The one used longest ago, if there are `cap` or more. Looks at all of them: a Parse, which
    /// must follow, costs far more.
    #[must_use]
    pub fn surplus(&self, cap: usize) -> Option<StatementId> {
        if self.used.len() < cap {
            return None;
        }
        self.used.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id)
    }
}
