//! A number that its owner keeps up to date for others to read: how many statements there are.
//!
//! Views ask for it once in a while. So it is an atomic beside what it counts, set where that changes
//! and nowhere on the path of a query, instead of a lock around it. It says nothing about anything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// See the module's page. Clones are the same number.
#[derive(Debug, Clone, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Count {
    /// The number now.
    #[must_use]
    pub fn get(&self) -> usize {
        self.0.load(Relaxed)
    }

    pub(super) fn set(&self, count: usize) {
        self.0.store(count, Relaxed);
    }
}
