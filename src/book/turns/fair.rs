//! Start-time fair queueing on backend-seconds: which tenant is next (budgets.md §3.2).
//!
//! Every tenant has a virtual time in each class of each pool: the backend-seconds it has had there,
//! divided by its weight. The next backend goes to the tenant that has had least. A lease is charged
//! an estimate when it is granted, more when it outstays that (each tick), and the difference to the
//! truth when it is back; so cost counts as it arises, and not only once it is over.
//!
//! The class has a virtual time too, `v_now`: the least of those who may be served. Who begins to wait
//! starts there, without credit for the time it asked for nothing. So does who comes back from its cap
//! (B4): with the low virtual time it kept there it would own the pool (finding F5).
//!
//! ```text
//!   1  who lost the backend it was promised           `first`
//!   2  who holds a lease already, oldest request first `finish` (finish.rs)
//!   3  classes by priority, one turn in twenty the other way round, reserves left alone
//!   4    tenants below their minimum (B5)              rank 0
//!   5    the tenant with the least virtual time        rank 1
//! ```
//!
//! Within a tenant who goes on with a request comes before who begins one (`groups.rs`), then the first
//! come. A tenant's waiters stand in up to four lanes a class: work known to be long may be barred while
//! short work is not (express slots), and so may requests that may nest (the banker), and neither
//! must stop what stands behind it.

use super::predict::Guess;
use super::queue::Line;
use crate::book::class::ClassId;
use crate::book::pool::{Place, Pool};
use crate::book::share::Lane;
use crate::book::who::Who;
use crate::book::{Book, PoolId, WaiterId};
use crate::config::PoolMode;
use std::time::{Duration, Instant};

/// One turn in so many goes to the lowest class that waits.
const TURNS: u64 = 20;

/// So many tenants are looked at for one that the banker lets pass.
const LOOKS: usize = 64;

/// A tenant's place in a class: below its minimum or not, virtual time, arrival of its first waiter there;
/// and of several lanes of one tenant, whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::book) struct Key {
    pub(super) rank: u8,
    pub(super) v: u64,
    order: i64,
    turn: i64,
}

/// What may keep a waiter back while another one of its tenant is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::book) struct Kind(u8);

impl Kind {
    pub(in crate::book) const COUNT: usize = 4;

    pub(super) fn of(long: bool, nests: bool) -> Self {
        Kind(u8::from(long) | u8::from(nests) << 1)
    }

    fn all() -> impl Iterator<Item = Kind> {
        (0..Self::COUNT as u8).map(Kind)
    }

    pub(super) fn at(self) -> usize {
        self.0 as usize
    }

    fn long(self) -> bool {
        self.0 & 1 != 0
    }

    fn nests(self) -> bool {
        self.0 & 2 != 0
    }
}

/// Virtual time of a hold: sixteenths of a microsecond or so (16 ns), by weight. Enough for a
/// hundred backends over ninety years.
pub(in crate::book) fn units(held: Duration, weight: u32) -> u64 {
    crate::book::report::nanos(held) / 16 / u64::from(weight)
}

/// And back, for people.
pub(in crate::book) fn span(units: u64) -> Duration {
    Duration::from_nanos(units.saturating_mul(16))
}

/// How a lease came about, for its charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::book) enum Entrance {
    /// Nobody waited.
    AtOnce,
    /// Its tenant's turn had come.
    Turn,
    /// It went before its turn, or had been barred.
    Other,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
pub(in crate::book) enum Pick {
    First(i64, WaiterId),
    Finish(WaiterId),
    Lane {
        waiter: WaiterId,
        class: ClassId,
        /// Served without having been barred.
        plain: bool,
        /// The least virtual time of those who might have been served.
        least: u64,
    },
}

/// Whose turn it is, if anybody's, and the first that the banker passed over for it.
pub(in crate::book) type Picked = (Option<Pick>, Option<WaiterId>);

/// Why a waiter may not have a backend that is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::book) enum Bar {
    TenantCap,
    ClassCap,
    Reserve,
    Express,
    Unsafe,
}

impl<B, W> Book<B, W> {
    /// Slots a pool may still give away: idle, on their way, or to be opened. Those leaving count,
    /// they make room; and so do idle ones of other pools, which would make room under
    /// `server.max_backends`.
    pub(in crate::book) fn spare(&self, id: PoolId) -> u32 {
        let pool = &self.pools[id.0 as usize];
        let census = &pool.census;
        let ready = census.at(Place::Idle) + census.coming();
        let own = pool.limit().saturating_sub(census.total() - census.at(Place::Leaving));
        let fixed = self.census.total() - self.census.at(Place::Leaving);
        let movable = self.census.at(Place::Idle) - census.at(Place::Idle);
        let server = (self.limits.max_backends + movable).saturating_sub(fixed);
        (ready + own.min(server)) as u32
    }

    /// Whether a lease for this claim would have to wait although a backend is free.
    pub(in crate::book) fn bar(&self, id: PoolId, who: Who) -> Option<Bar> {
        let (pool, share) = (&self.pools[id.0 as usize], &self.shares[who.share]);
        if share.room() == 0 {
            return Some(Bar::TenantCap);
        }
        let part = pool.parts.of(who.class);
        if part.in_use >= part.cap {
            return Some(Bar::ClassCap);
        }
        if pool.parts.reserves > 0 && !pool.parts.reserve_allows(who.class, self.spare(id)) {
            return Some(Bar::Reserve);
        }
        if who.guess.long && !pool.admits_long(share.leased < share.min) {
            return Some(Bar::Express);
        }
        (!self.is_safe(id, who)).then_some(Bar::Unsafe)
    }

    /// Who would have the next backend of this pool, and the first that the banker passed over for it.
    pub(in crate::book) fn pick(&self, id: PoolId) -> Picked {
        let pool = &self.pools[id.0 as usize];
        let mut deferred = None;
        if pool.demand == 0 || pool.paused {
            return (None, deferred);
        }
        if let Some((&order, &waiter)) = pool.first.first_key_value() {
            return (Some(Pick::First(order, waiter)), deferred);
        }
        // Of the slot that this is about, at least, somebody else has decided that it is there.
        let spare = self.spare(id).max(1);
        for &waiter in pool.finish.values() {
            let Some(waiting) = self.waiters.get(&waiter) else { continue };
            match self.bar_to_finish(id, waiting.who, spare) {
                None => return (Some(Pick::Finish(waiter)), deferred),
                Some(Bar::Unsafe) => deferred = deferred.or(Some(waiter)),
                Some(_) => {}
            }
        }
        let order = self.classes.order();
        let mut turns = order.iter();
        let mut other_way = order.iter().rev();
        let last = pool.turns % TURNS == TURNS - 1;
        let next = || if last { other_way.next() } else { turns.next() };
        let pick = std::iter::from_fn(next).find_map(|&class| {
            let part = pool.parts.of(class);
            let open = part.in_use < part.cap && pool.parts.reserve_allows(class, spare);
            if open { self.pick_in(id, class, &mut deferred) } else { None }
        });
        (pick, deferred)
    }

    /// The first of a class.
    fn pick_in(&self, id: PoolId, class: ClassId, deferred: &mut Option<WaiterId>) -> Option<Pick> {
        let pool = &self.pools[id.0 as usize];
        let part = pool.parts.of(class);
        let mut best: Option<(Key, Kind, WaiterId)> = None;
        let mut least = u64::MAX;
        for kind in Kind::all() {
            let line = &part.lines[kind.at()];
            let safe = |(_, waiter): (u32, WaiterId)| {
                let safe = self.waiters.get(&waiter).is_none_or(|waiting| self.is_safe(id, waiting.who));
                if !safe {
                    *deferred = deferred.or(Some(waiter));
                }
                safe
            };
            // Within a tenant's own cap one may be unsafe where the next tenant's is not.
            let first = if kind.nests() { line.find(LOOKS, safe) } else { line.first() };
            let Some((key, (_, waiter))) = first else { continue };
            if kind.long() && !pool.admits_long(key.rank == 0) {
                continue;
            }
            // A tenant below its minimum may have had much: not its virtual time is the class's.
            let fair = Key { rank: 1, v: 0, order: i64::MIN, turn: i64::MIN };
            let behind = (key.rank == 0).then(|| line.first_from(fair)).flatten();
            least = least.min(key.v).min(behind.map_or(u64::MAX, |key| key.v));
            if best.is_none_or(|(other, ..)| key < other) {
                best = Some((key, kind, waiter));
            }
        }
        best.map(|(_, kind, waiter)| Pick::Lane { waiter, class, plain: kind.0 == 0, least })
    }

    /// Whether a backend that turned up now would have a taker.
    pub(in crate::book) fn has_takers(&self, id: PoolId) -> bool {
        self.pick(id).0.is_some()
    }

    /// The waiter that gets the next backend of a pool, and how it comes to it.
    pub(in crate::book) fn next_in_line(&mut self, id: PoolId) -> Option<(WaiterId, Entrance)> {
        let picked = self.pick(id);
        self.next_picked(id, picked)
    }

    /// [`Book::next_in_line`] of what [`Book::pick`] has just said.
    pub(in crate::book) fn next_picked(
        &mut self,
        id: PoolId,
        picked: Picked,
    ) -> Option<(WaiterId, Entrance)> {
        let mut picked = Some(picked);
        loop {
            let (pick, deferred) = picked.take().unwrap_or_else(|| self.pick(id));
            self.count_deferred(id, deferred);
            match pick? {
                Pick::First(order, waiter) => {
                    let pool = &mut self.pools[id.0 as usize];
                    pool.first.remove(&order);
                    pool.demand -= 1;
                    let Some(waiting) = self.waiters.get_mut(&waiter) else { continue };
                    let who = waiting.who;
                    // Out of every line, until it is granted or lined up again.
                    waiting.line = Line::None;
                    let over = who.request.is_some_and(|request| self.at_its_cap(request));
                    if !over && self.shares[who.share].room() > 0 && self.is_safe(id, who) {
                        return Some((waiter, Entrance::Other));
                    }
                    // Others have used up what its caps allow; then it is first of its tenant only.
                    if let Some(waiting) = self.waiters.get_mut(&waiter) {
                        waiting.before_all = false;
                    }
                    self.line_up(waiter);
                }
                Pick::Finish(waiter) => return Some((waiter, Entrance::Other)),
                Pick::Lane { waiter, class, plain, least } => {
                    let pool = &mut self.pools[id.0 as usize];
                    pool.turns += 1;
                    let part = pool.parts.of_mut(class);
                    part.v_now = part.v_now.max(least);
                    return Some((waiter, if plain { Entrance::Turn } else { Entrance::Other }));
                }
            }
        }
    }

    /// `bursar_unsafe_grants_deferred_total`: once a waiter.
    fn count_deferred(&mut self, id: PoolId, deferred: Option<WaiterId>) {
        if let Some(waiter) = deferred.and_then(|waiter| self.waiters.get_mut(&waiter))
            && !std::mem::replace(&mut waiter.deferred, true)
        {
            self.pools[id.0 as usize].sofar.deferred += 1;
        }
    }

    /// After any change to a tenant's waiters, leases, virtual time or rule: its demand, and the
    /// places of its lanes. A lane that comes to be served starts at its class's virtual time.
    pub(in crate::book) fn refresh(&mut self, at: u32) {
        let share = &mut self.shares[at];
        if share.lanes.is_empty() && share.demand == 0 {
            return;
        }
        let pool = &mut self.pools[share.pool.0 as usize];
        let open = share.room() > 0;
        let demand = share.ready().min(share.room() as usize);
        pool.demand = pool.demand - share.demand + demand;
        share.demand = demand;
        let rank = u8::from(share.leased >= share.min);
        for lane in 0..share.lanes.len() {
            let Lane { class, key, ref ready, .. } = share.lanes[lane];
            if key.is_none() && open && !ready.is_empty() {
                let v_now = pool.parts.of(class).v_now;
                let flow = share.flow(class, v_now);
                flow.v = flow.v.max(v_now);
            }
        }
        for lane in 0..share.lanes.len() {
            let Lane { class, kind, key, ref ready } = share.lanes[lane];
            let front = ready.first().filter(|_| open);
            let place = front.map(|(turn, waiter)| {
                // Between tenants it does not count which of its waiters a tenant would have served.
                let lanes = share.lanes.iter().filter(|lane| lane.class == class);
                let order = lanes.map(Lane::oldest).min().unwrap_or(turn);
                let v = share.flow(class, 0).v;
                (Key { rank, v, order, turn }, waiter)
            });
            if place.map(|(key, _)| key) == key {
                continue;
            }
            let line = &mut pool.parts.of_mut(class).lines[kind.at()];
            line.shift(key, place.map(|(key, waiter)| (key, (at, waiter))));
            share.lanes[lane].key = place.map(|(key, _)| key);
        }
        share.lanes.retain(|lane| !lane.ready.is_empty());
    }

    /// Charges a tenant for a lease of a class: the estimate, in virtual time. Who was not in line, or
    /// was barred there, has no credit from before.
    pub(in crate::book) fn charge(&mut self, id: PoolId, who: Who, entrance: Entrance) -> u64 {
        let share = &mut self.shares[who.share];
        let part = self.pools[id.0 as usize].parts.of_mut(who.class);
        let charged = units(who.guess.hold, share.weight);
        let flow = share.flow(who.class, part.v_now);
        let start = if entrance == Entrance::Turn { flow.v } else { flow.v.max(part.v_now) };
        if entrance == Entrance::AtOnce {
            part.v_now = start;
        }
        flow.v = start.saturating_add(charged);
        charged
    }

    /// Charges the difference between what was charged so far and what is due.
    pub(in crate::book) fn correct(&mut self, who: Who, charged: u64, due: u64) {
        let flow = self.shares[who.share].flow(who.class, 0);
        flow.v = flow.v.saturating_add(due).saturating_sub(charged);
    }

    /// A lease that is still held outstays its estimate: refresh charging (budgets.md §3.2).
    pub(in crate::book) fn charge_held(&mut self, lease: crate::book::LeaseId, now: Instant) {
        let Some(lease) = self.leases.get_mut(&lease) else { return };
        let held = now.saturating_duration_since(lease.since);
        let who = lease.who;
        let share = &mut self.shares[who.share];
        share.minute.add(held.saturating_sub(lease.counted), now);
        lease.counted = held;
        let turns_long = !lease.long && held > super::predict::LONG;
        if turns_long {
            lease.long = true;
            self.pools[lease.pool.0 as usize].long_in_use += 1;
        }
        let (charged, due) = (lease.charged, units(held, share.weight));
        if due > charged {
            lease.charged = due;
            self.correct(who, charged, due);
            self.refresh(who.share);
        }
        if turns_long && self.predictor.learn(who.guess.key, held) {
            self.regard_anew(who);
        }
    }

    /// The kind of a lease has turned out to be long, or not to be any more: those of its tenant who wait
    /// for one like it stand in the wrong lane.
    pub(in crate::book) fn regard_anew(&mut self, who: Who) {
        let like = |id: &WaiterId| self.waiters.get(id).is_some_and(|w| w.who.guess.key == who.guess.key);
        let lanes = &self.shares[who.share].lanes;
        let like: Vec<WaiterId> = lanes.iter().flat_map(|lane| lane.ready.values().filter(like)).collect();
        for id in like {
            self.unline(id, false);
            self.stand_among_tenants(id);
        }
    }
}

impl Pool {
    /// Whether one more lease known to be long may be granted: never on the express slots, nor, but for
    /// a tenant below its minimum, on the half of the promised slots that is not lent to long work.
    fn admits_long(&self, below_min: bool) -> bool {
        let kept = self.unmet_mins.min(self.mins.div_ceil(2));
        let kept = if below_min { self.express } else { self.express.max(kept) };
        kept == 0 || self.long_in_use + kept < self.rules.size as u32
    }

    /// A guess as far as it matters to this pool if a lease will be long. A session's own backend is its own
    /// for as long as it lives: where leases end with the session all are long.
    pub(in crate::book) fn minded(&self, guess: Guess) -> Guess {
        let minds = (self.express > 0 || self.mins > 0) && self.rules.mode != PoolMode::Session;
        Guess { long: guess.long && minds, ..guess }
    }
}
