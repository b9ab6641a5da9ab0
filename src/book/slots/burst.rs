//! B7: for how long a pool may have more backends than its size (`pool.overflow_time`).
//!
//! The time runs while it has more, whoever has them. Once it is used up the pool rests: it opens no more
//! beyond its size until it has been back there, and not before the same time has passed again, so that
//! peaks are served and a load that stays is not. Leases that are held are never ended for this.

use crate::book::pool::Pool;
use crate::book::{Action, Book};
use std::time::{Duration, Instant};

/// A pool's time beyond its size.
#[derive(Debug, Default)]
pub(in crate::book) struct Burst {
    since: Option<Instant>,
    /// It rests until then at least.
    rests: Option<Instant>,
}

impl Pool {
    /// Slots beyond the size that clients who wait may have now.
    pub(in crate::book) fn overflow(&self) -> usize {
        if self.burst.rests.is_some() { 0 } else { self.rules.overflow }
    }

    /// The census has changed. Returns when the time will be used up, if it has begun to run.
    pub(super) fn note_burst(&mut self, now: Instant) -> Option<Instant> {
        let beyond = self.census.total() > self.rules.size;
        if beyond == self.burst.since.is_some() {
            return None;
        }
        self.burst.since = beyond.then_some(now);
        self.rules.overflow_time.filter(|_| beyond).map(|time| crate::book::limits::later(now, time))
    }

    /// Begins or ends its rest. Returns when to look again.
    fn watch_burst(&mut self, time: Duration, now: Instant) -> Option<Instant> {
        let Burst { since, rests } = &mut self.burst;
        let over = since.map(|since| crate::book::limits::later(since, time));
        if rests.is_none() && over.is_some_and(|over| over <= now) {
            *rests = Some(crate::book::limits::later(now, time));
        } else if since.is_none() && rests.is_some_and(|until| until <= now) {
            *rests = None;
        }
        rests.or(over).filter(|at| *at > now)
    }
}

impl<B, W> Book<B, W> {
    /// At a tick.
    pub(in crate::book) fn watch_bursts(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        for at in 0..self.pools.len() {
            let pool = &mut self.pools[at];
            let (rested, rules) = (pool.burst.rests.is_some(), &pool.rules);
            let Some(time) = rules.overflow_time.filter(|_| rules.overflow > 0) else {
                pool.burst.rests = None;
                continue;
            };
            let next = pool.watch_burst(time, now);
            let rests = pool.burst.rests.is_some();
            next.into_iter().for_each(|at| self.wake(at));
            match (rested, rests) {
                (false, true) => self.shrink(now, actions),
                (true, false) => self.serve(crate::book::PoolId(at as u32), now, actions),
                _ => {}
            }
        }
    }
}
