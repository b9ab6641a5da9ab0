//! A session's hold on a backend, as a value: dropping it gives the backend back.

use super::{Pool, Pools};
use crate::backend::{Backend, Object, Store};
use crate::book::{LeaseId, Outcome, Usage};
use crate::clock;
use std::sync::Arc;
use std::time::Instant;

/// A lease. Unless [`Lease::finish`] says that the backend is fit for anybody, dropping the lease
/// closes it: a session that ends in the middle of something, by a panic or a cancelled task, never
/// leaves its state to the next one.
#[must_use]
pub struct Lease {
    pools: Arc<Pools>,
    pool: Arc<Pool>,
    id: LeaseId,
    object: Option<Object>,
    fit: bool,
    /// What it was used for so far.
    pub usage: Usage,
    /// How it ended, if it was part of a leak case.
    pub outcome: Option<Outcome>,
}

impl Lease {
    pub(super) fn new(pools: Arc<Pools>, pool: Arc<Pool>, id: LeaseId, object: Object) -> Lease {
        Lease { pools, pool, id, object: Some(object), fit: false, usage: Usage::default(), outcome: None }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// The backend.
    #[must_use]
    pub fn backend(&mut self) -> &mut Backend {
        match &mut self.object {
            Some(object) => object,
            None => unreachable!("the object leaves a lease only when it is dropped"),
        }
    }

    /// Gives the backend back, fit for the next session: nothing outstanding, status `I`, clean. All that
    /// may be done with the lease after that is to drop it.
    pub fn finish(&mut self, now: Instant) {
        self.fit = true;
        self.give_back(now);
    }

    /// A lease that was never used: its backend is as fit as it was.
    pub(super) fn mark_unused(&mut self) {
        self.fit = true;
    }

    /// The lease is in use from now on.
    pub(super) fn mark_used(&mut self) {
        self.fit = false;
    }

    fn give_back(&mut self, now: Instant) {
        let Some(mut object) = self.object.take() else { return };
        self.usage.backend = object.pid.unsigned_abs();
        let back = if !self.fit {
            Store::cut(object);
            None
        } else if object.doubted && !self.pools.still_suits(&self.pool, &mut object) {
            Store::discard(object);
            None
        } else if !self.pool.store.is_current(&object) || self.pool.lifetime.is_over(&object, now) {
            // In a busy pool a backend goes from lease to lease and never by its store.
            Store::discard(object);
            None
        } else {
            Some(object)
        };
        self.pools.checkin(&self.pool, now, self.id, back, self.usage, self.outcome);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.object.is_some() {
            self.give_back(clock::now());
        }
    }
}
