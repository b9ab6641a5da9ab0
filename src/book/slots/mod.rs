//! Slots: which pool may open one more backend, and where a backend goes that is free.
//!
//! Three bounds hold at every moment, backends on their way out included: a pool's size (and its
//! overflow, while clients wait), `server.max_backends` over all pools, and `server.connect_parallel`
//! dials in flight. A pool that wants a backend and may not have one *yet* is hungry and is looked
//! at again when a dial ends, a backend goes, or its server may be dialled again (`upstreams`).
//!
//! Where `max_backends` binds, a waiter's pool is given the room of an idle backend of the pool that
//! has not been used for longest; and a pool that has waiters and no backend at all is given the
//! room of the next one that comes back, or it would starve beside a busy neighbour.

mod burst;
mod retries;
mod upstreams;

pub(super) use burst::Burst;
pub(super) use retries::Retries;
pub use upstreams::DialFailure;
pub(super) use upstreams::Upstream;

use crate::book::limits::later;
use crate::book::pool::Place;
use crate::book::report::{Dim, Told};
use crate::book::{Action, Book, PoolId};
use crate::breaker::Room;
use std::time::{Duration, Instant};

/// A dial due within this is decided now, the rest of its pause left to the dialler: no tick
/// comes sooner.
const SOON: Duration = crate::book::tick::TICK_LEAST;

impl<B, W> Book<B, W> {
    /// A dial has ended. A failure may keep others from going out, and fails no waiter: each waits until
    /// its own deadline.
    pub fn dialled(
        &mut self,
        now: Instant,
        pool: PoolId,
        result: Result<B, DialFailure>,
        actions: &mut Vec<Action<B, W>>,
    ) {
        self.shift(pool, Some(Place::Dialling), None, now);
        self.end_dial(pool, result.as_ref().err(), now, actions);
        self.move_on(pool);
        self.come(pool, result.ok(), now, actions);
    }

    /// Lends an idle backend to Bursar itself, for a question, if there is one that nobody wants: take it out of the
    /// store, ask, and call [`Book::bring_back`]. It keeps its slot, and is nobody's lease.
    pub fn lend_idle(&mut self, now: Instant, pool: PoolId) -> bool {
        !self.closing && self.shift(pool, Some(Place::Idle), Some(Place::Lent), now)
    }

    /// The question has been asked; `None` = the backend is gone, and its connection closed.
    pub fn bring_back(
        &mut self,
        now: Instant,
        pool: PoolId,
        backend: Option<B>,
        actions: &mut Vec<Action<B, W>>,
    ) {
        self.shift(pool, Some(Place::Lent), None, now);
        self.come(pool, backend, now, actions);
    }

    /// A slot is free, and perhaps a backend at hand for it.
    fn come(&mut self, pool: PoolId, backend: Option<B>, now: Instant, actions: &mut Vec<Action<B, W>>) {
        if let Some(backend) = backend
            && let Some(backend) = self.arrive(pool, backend, now, actions)
        {
            actions.push(Action::Store { pool, backend });
        }
        self.serve(pool, now, actions);
        self.feed(now, actions);
        self.look_again(now, actions);
    }

    /// An [`Action::Evict`] has been carried out. Whether it closed a backend or found none (it had
    /// died, or a session found its own gone and took that one, and whoever has one too few will
    /// say so), one slot is free.
    pub fn evicted(&mut self, now: Instant, pool: PoolId, actions: &mut Vec<Action<B, W>>) {
        if let Some(heir) = self.pools[pool.0 as usize].leaving_for.pop() {
            self.shift(pool, Some(Place::Leaving), None, now);
            if heir != pool {
                self.pools[heir.0 as usize].awaited -= 1;
            }
            self.serve(heir, now, actions);
        }
        self.serve(pool, now, actions);
        self.feed(now, actions);
        self.look_again(now, actions);
    }

    /// An idle backend died or was retired, and is closed. If the book counts none idle, the one
    /// meant is promised to a lease, whose session will report it by `idle_vanished`.
    pub fn idle_closed(&mut self, now: Instant, pool: PoolId, actions: &mut Vec<Action<B, W>>) {
        self.shift(pool, Some(Place::Idle), None, now);
        self.serve(pool, now, actions);
        self.feed(now, actions);
        self.look_again(now, actions);
    }

    /// Moves a slot, in the pool's census and in that of all pools. False if there is none to move.
    pub(super) fn shift(
        &mut self,
        pool: PoolId,
        from: Option<Place>,
        to: Option<Place>,
        now: Instant,
    ) -> bool {
        let pool = &mut self.pools[pool.0 as usize];
        if !pool.census.shift(from, to) {
            return false;
        }
        self.census.shift(from, to);
        let over = pool.note_burst(now);
        if pool.census.up() > 0 {
            pool.empty_since = None;
        } else if pool.empty_since.is_none() {
            pool.empty_since = Some(now);
        }
        over.into_iter().for_each(|at| self.wake(at));
        true
    }

    /// A backend without a slot is at hand: to the next waiter, or idle, or out. `Some` = it is
    /// counted idle, and to be stored before any action from here on.
    #[must_use]
    pub(super) fn arrive(
        &mut self,
        id: PoolId,
        backend: B,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) -> Option<B> {
        if self.closing {
            actions.push(Action::Close { pool: id, backend });
            return None;
        }
        let picked = self.pick(id);
        let takers = picked.0.is_some();
        let pool = &self.pools[id.0 as usize];
        let total = pool.census.total();
        let (size, most) = (pool.rules.size, if takers { pool.limit() } else { pool.rules.size });
        if total >= most || self.census.total() >= self.limits.max_backends {
            self.retire(id, id, backend, now, actions);
            return None;
        }
        if let Some(heir) = self.starving_beside(id, takers, now) {
            self.retire(id, heir, backend, now, actions);
            return None;
        }
        if takers && let Some((waiter, entrance)) = self.next_picked(id, picked) {
            self.shift(id, None, Some(Place::Leased), now);
            self.grant(waiter, Some(backend), entrance, now, actions);
            return None;
        }
        if total >= size {
            self.retire(id, id, backend, now, actions);
            return None;
        }
        self.shift(id, None, Some(Place::Idle), now);
        self.note_stalled(id);
        Some(backend)
    }

    /// Sends a backend out by way of the idle store, so that its slot stays taken until it is
    /// closed: the server never sees more connections than the bounds allow. Whom the end of its
    /// lease has let in (B4) is given one of those that stay.
    fn retire(
        &mut self,
        id: PoolId,
        heir: PoolId,
        backend: B,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) {
        actions.push(Action::Store { pool: id, backend });
        self.leave(id, None, heir, now, actions);
        self.hand_out(id, now, actions);
    }

    fn leave(
        &mut self,
        id: PoolId,
        from: Option<Place>,
        heir: PoolId,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) {
        self.shift(id, from, Some(Place::Leaving), now);
        self.pools[id.0 as usize].leaving_for.push(heir);
        if heir != id {
            self.pools[heir.0 as usize].awaited += 1;
        }
        actions.push(Action::Evict { pool: id });
    }

    /// With every slot taken: a hungry pool that should have the room of a backend just back in
    /// `id`, because it has none at all, because nobody waits in `id` (it is not `busy`), or because
    /// somebody waits there who comes before all others.
    fn starving_beside(&self, id: PoolId, busy: bool, now: Instant) -> Option<PoolId> {
        if self.census.total() + 1 < self.limits.max_backends {
            return None;
        }
        if !self.pools[id.0 as usize].first.is_empty() {
            return None;
        }
        self.hungry.iter().copied().find(|&other| {
            let pool = &self.pools[other.0 as usize];
            let has_nothing = pool.census.total() + pool.awaited == 0;
            other != id
                && pool.wants_room()
                && (has_nothing || !busy || !pool.first.is_empty())
                && self.room(other, now) == Room::Now
                && self.has_takers(other)
        })
    }

    /// Gives a pool's waiters what is idle, and opens what is missing.
    pub(super) fn serve(&mut self, id: PoolId, now: Instant, actions: &mut Vec<Action<B, W>>) {
        self.hand_out(id, now, actions);
        while self.open_one(id, now, actions) {}
        self.note_stalled(id);
    }

    pub(super) fn hand_out(&mut self, id: PoolId, now: Instant, actions: &mut Vec<Action<B, W>>) {
        while !self.pools[id.0 as usize].paused
            && self.pools[id.0 as usize].census.at(Place::Idle) > 0
            && let Some((waiter, entrance)) = self.next_in_line(id)
        {
            self.shift(id, Some(Place::Idle), Some(Place::Leased), now);
            self.grant(waiter, None, entrance, now, actions);
        }
        self.note_stalled(id);
    }

    /// Somebody waits beside a backend that is idle or could be opened, and may not have it. What ends
    /// that may happen anywhere: a lease of the same request, room under `server.max_backends`.
    fn note_stalled(&mut self, id: PoolId) {
        let pool = &mut self.pools[id.0 as usize];
        let barred = pool.census.at(Place::Idle) > 0 || (pool.wants_for_waiters() && !pool.hungry);
        if pool.demand > 0 && barred && !pool.paused && !pool.stalled {
            pool.stalled = true;
            self.stalled.push(id);
        }
    }

    /// Looks again at those who are barred so: after every change.
    #[inline]
    pub(super) fn look_again(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        if !self.stalled.is_empty() {
            self.look_again_at_all(now, actions);
        }
    }

    fn look_again_at_all(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        loop {
            let before = actions.len();
            for id in std::mem::take(&mut self.stalled) {
                self.pools[id.0 as usize].stalled = false;
                self.serve(id, now, actions);
            }
            if actions.len() == before {
                return;
            }
        }
    }

    pub(super) fn serve_all(&mut self, ids: &[PoolId], now: Instant, actions: &mut Vec<Action<B, W>>) {
        for &id in ids {
            self.serve(id, now, actions);
        }
    }

    /// Hungry pools in turn, one backend each, while there is room.
    pub(super) fn feed(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        let mut fruitless = 0;
        while fruitless < self.hungry.len()
            && self.census.at(Place::Dialling) < self.limits.connect_parallel
            && let Some(id) = self.hungry.pop_front()
        {
            self.pools[id.0 as usize].hungry = false;
            if self.open_one(id, now, actions) {
                fruitless = 0;
                self.starve(id);
            } else if self.pools[id.0 as usize].hungry {
                fruitless += 1;
            } else {
                self.note_stalled(id);
            }
        }
    }

    fn starve(&mut self, id: PoolId) {
        let pool = &mut self.pools[id.0 as usize];
        if !pool.hungry {
            pool.hungry = true;
            self.hungry.push_back(id);
        }
    }

    /// Opens one backend for a pool that wants one, or makes room for it. False if it wants none,
    /// or cannot have one yet (then it is hungry).
    fn open_one(&mut self, id: PoolId, now: Instant, actions: &mut Vec<Action<B, W>>) -> bool {
        let pool = &self.pools[id.0 as usize];
        let for_waiters = pool.wants_for_waiters() && self.has_takers(id);
        if self.closing || !(for_waiters || pool.wants_for_itself()) {
            return false;
        }
        let pause = match self.room(id, now) {
            Room::Now => Duration::ZERO,
            Room::At(at) if at.saturating_duration_since(now) <= SOON => at.saturating_duration_since(now),
            Room::At(at) => {
                self.wake(at);
                self.starve(id);
                return false;
            }
            Room::Later => {
                self.starve(id);
                return false;
            }
        };
        let again = self.tries_again(id);
        if again && !self.may_retry(now) {
            self.starve(id);
            return false;
        }
        let pool = &self.pools[id.0 as usize];
        if self.census.total() >= self.limits.max_backends {
            if for_waiters
                && pool.wants_room()
                && let Some(victim) = self.longest_unused(Some(id))
            {
                self.leave(victim, Some(Place::Idle), id, now, actions);
                return true;
            }
            self.starve(id);
            return false;
        }
        if self.census.at(Place::Dialling) >= self.limits.connect_parallel {
            self.starve(id);
            return false;
        }
        if again {
            self.count_retry(now);
        }
        self.shift(id, None, Some(Place::Dialling), now);
        self.begin_dial(id, actions);
        actions.push(Action::Dial { pool: id, after: pause });
        true
    }

    /// B16: whether Bursar may try again by itself; if not, it looks again in a second.
    fn may_retry(&mut self, now: Instant) -> bool {
        let (tries, most) = self.retries.spent(now, self.next_lease);
        if tries < most {
            return true;
        }
        self.tally.count(Dim::B16, Told::Reject);
        self.wake(later(now, retries::LATER));
        false
    }

    /// B16: Bursar tries again by itself.
    pub(super) fn count_retry(&mut self, now: Instant) {
        let (tries, most) = self.retries.spent(now, self.next_lease);
        self.tally.count(Dim::B16, Told::within(tries + 1, most));
        self.retries.count(now, self.next_lease);
        self.peaks.saw(Dim::B16, tries + 1);
    }

    fn longest_unused(&self, beside: Option<PoolId>) -> Option<PoolId> {
        if self.census.at(Place::Idle) == 0 {
            return None;
        }
        let pools = self.pools.iter().enumerate();
        pools
            .map(|(at, pool)| (PoolId(at as u32), pool))
            .filter(|(id, pool)| Some(*id) != beside && pool.census.at(Place::Idle) > 0)
            .min_by_key(|(_, pool)| pool.last_used)
            .map(|(id, _)| id)
    }

    /// After a reload with smaller bounds: sends out what is idle and too much.
    pub(super) fn shrink(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        for at in 0..self.pools.len() {
            let id = PoolId(at as u32);
            let surplus = |book: &Self| {
                let pool = &book.pools[at];
                let leaving = pool.census.at(Place::Leaving);
                pool.census.at(Place::Idle) > 0 && pool.census.total() - leaving > pool.rules.size
            };
            while surplus(self) {
                self.leave(id, Some(Place::Idle), id, now, actions);
            }
        }
        while self.census.total() - self.census.at(Place::Leaving) > self.limits.max_backends
            && let Some(victim) = self.longest_unused(None)
        {
            self.leave(victim, Some(Place::Idle), victim, now, actions);
        }
    }
}

/// Spreads retries: deterministic, so that a test sees the same numbers twice (SplitMix64).
#[derive(Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new() -> Self {
        Jitter(0)
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
