//! Finish first: who holds a lease and waits for another one goes before all who hold none, the oldest
//! request first; and no grant is made that could leave requests waiting for one another (budgets.md
//! §3.2, F3).
//!
//! **Claims.** A request says by B1's `max_concurrent` how many leases it may hold at once (or by
//! `bursar.max_concurrent` or `bursar.max_leases`, if that is less). Untagged work says nothing and is taken to need one. What
//! nobody promised is never held against anybody: beyond its claim a request needs nothing more as
//! far as the banker knows, is not put first either, and the detector is the net. B1 is a claim only
//! where it is enforced; in mode warn it still says who goes first, and a request whose kind has been in a
//! deadlock claims what such requests have come to (`depth.rs`); in mode observe it says nothing.
//!
//! **What the pool has** (the banker's capacity): the backends leased, and [`Book::spare`]: idle, being
//! opened, or still to be opened within size, overflow and `server.max_backends`, less what is
//! reserved for classes. Where several pools share `max_backends` each counts the rest as its own; if
//! both then want it, the promise is too large, and again the detector is the net.
//!
//! **Several pools.** A request's need counts in full in every pool it holds something in. Everywhere
//! requests are taken to finish in order of their need, so an order that is safe in each pool is safe
//! over all of them.
//!
//! A tenant's cap (B4) is a pool of its own in all this: if it acts, a tenant's requests may wait for
//! each other below it.

use super::banker::Stake;
use super::fair::Bar;
use super::queue::Line;
use crate::book::requests::Request;
use crate::book::who::Who;
use crate::book::{Book, PoolId, WaiterId};
use crate::config::Mode;

/// Waiters of one request that go first; an id that everybody shares must not make moving them dear.
const FIRST_MOST: usize = 16;

/// What a request holds in one pool as one tenant.
#[derive(Debug, Clone, Copy)]
pub(in crate::book) struct Hold {
    pub(super) share: u32,
    /// As the bankers have it.
    pub(super) stake: Stake,
}

impl<B, W> Book<B, W> {
    /// Leases a request may hold at once, as far as B1 does more than watch.
    fn most_of(&self, request: &Request) -> u32 {
        let budget = self.limits.budgets(request.budgets);
        let ours = match budget.max_concurrent_mode {
            Mode::Enforce => Some(budget.max_concurrent),
            Mode::Warn => Some(budget.max_concurrent.max(request.episode.claim)),
            Mode::Observe => None,
        };
        let most = request.own.into_iter().chain(ours).min().unwrap_or(0);
        request.tag.max_leases.map_or(most, |total| most.min(total))
    }

    /// Leases a request promises not to exceed, or is expected to come to. B1 is a promise only where it is
    /// enforced: in mode warn it would keep backends from requests that never nest.
    fn claim_of(&self, request: &Request) -> u32 {
        match self.limits.budgets(request.budgets).max_concurrent_mode {
            _ if request.own.is_some() => self.most_of(request),
            Mode::Enforce => self.most_of(request),
            Mode::Warn => request.episode.claim,
            Mode::Observe => 0,
        }
    }

    /// The same of who may be about to hold its first lease.
    fn claim_with(&self, request: &Request, who: Who) -> u32 {
        let warns = self.limits.budgets(request.budgets).max_concurrent_mode == Mode::Warn;
        match request.leases == 0 && request.own.is_none() && warns {
            true => self.predictor.claim(who.guess.key),
            false => self.claim_of(request),
        }
    }

    /// Whether a claim's request says that it may need more than one lease, so that the banker has a
    /// say.
    pub(super) fn nests(&self, who: Who) -> bool {
        who.request.is_some_and(|at| self.claim_with(&self.requests[at], who) > 1)
    }

    /// The banker's test for one more lease.
    pub(super) fn is_safe(&self, id: PoolId, who: Who) -> bool {
        let Some(at) = who.request else { return true };
        let request = &self.requests[at];
        let need = self.claim_with(request, who).saturating_sub(request.leases + 1);
        let (pool, share) = (&self.pools[id.0 as usize], &self.shares[who.share]);
        // Who needs nothing more can finish; and a slot of its own reserve nobody else counts on.
        if need == 0 || pool.parts.of(who.class).unmet() > 0 {
            return true;
        }
        let hold = request.holds.iter().find(|hold| hold.share == who.share);
        let before = hold.map_or(Stake::default(), |hold| hold.stake);
        let after = Stake { need, held: before.held + 1 };
        let leased = pool.census.at(crate::book::pool::Place::Leased) as u32;
        let capacity = (leased + self.spare(id).max(1)).saturating_sub(pool.parts.reserves);
        let safe = |banker: &super::banker::Banker, capacity| {
            banker.would_be_safe(capacity, before, after)
                // Too much was promised before. Then who holds something goes on, as far as it gets.
                || (request.leases > 0 && !banker.is_safe(capacity))
        };
        safe(&pool.banker, capacity)
            && (share.limit() == u32::MAX
                || share.banker.as_ref().is_none_or(|banker| safe(banker, share.limit())))
    }

    /// The same for a waiter that goes first because it holds something: neither the cap of its class
    /// nor express slots may stop it, or requests would wait for one another there.
    pub(in crate::book) fn bar_to_finish(&self, id: PoolId, who: Who, spare: u32) -> Option<Bar> {
        if self.shares[who.share].room() == 0 {
            return Some(Bar::TenantCap);
        }
        if !self.pools[id.0 as usize].parts.reserve_allows(who.class, spare) {
            return Some(Bar::Reserve);
        }
        (!self.is_safe(id, who)).then_some(Bar::Unsafe)
    }

    /// A lease of a request was granted or came back: what the bankers know, and who goes first.
    pub(in crate::book) fn restake(&mut self, at: u32, share: u32, granted: bool) {
        let request = &self.requests[at];
        let need = self.claim_of(request).saturating_sub(request.leases);
        let request = &mut self.requests[at];
        if !request.holds.iter().any(|hold| hold.share == share) {
            request.holds.push(Hold { share, stake: Stake::default() });
        }
        for hold in &mut request.holds {
            let mut stake = Stake { need, held: hold.stake.held };
            if hold.share == share {
                stake.held = if granted { stake.held + 1 } else { stake.held.saturating_sub(1) };
            }
            let old = std::mem::replace(&mut hold.stake, stake);
            let share = &mut self.shares[hold.share];
            let pool = &mut self.pools[share.pool.0 as usize].banker;
            pool.remove(old);
            pool.add(stake);
            if need > 0 || old.need > 0 {
                let own = share.banker.get_or_insert_default();
                own.remove(old);
                own.add(stake);
            }
        }
        request.holds.retain(|hold| hold.stake.held > 0);
        self.rank(at);
    }

    /// Claims may have changed by a reload.
    pub(in crate::book) fn restake_all(&mut self) {
        for (at, _) in self.requests.names() {
            self.claim_anew(at);
        }
    }

    /// What a request claims may have changed.
    fn claim_anew(&mut self, at: u32) {
        let request = &self.requests[at];
        let need = self.claim_of(request).saturating_sub(request.leases);
        for hold in &mut self.requests[at].holds {
            let stake = Stake { need, held: hold.stake.held };
            let old = std::mem::replace(&mut hold.stake, stake);
            let share = &mut self.shares[hold.share];
            let pool = &mut self.pools[share.pool.0 as usize].banker;
            for banker in [pool, share.banker.get_or_insert_default()] {
                banker.remove(old);
                banker.add(stake);
            }
        }
        let lined: Vec<WaiterId> = self.requests[at].lined.values().copied().collect();
        for waiter in lined {
            self.unline(waiter, true);
            self.stand_among_tenants(waiter);
        }
        self.rank(at);
    }

    /// A request holds and waits in a circle: what such requests come to is its kind's claim from now on, and
    /// its own.
    pub(in crate::book) fn learn_from_knot(&mut self, at: u32) {
        let episode = &mut self.requests[at].episode;
        let depth = self.predictor.depth(episode.kind);
        depth.tie(episode.most);
        episode.claim = depth.claim().max(episode.most);
        self.claim_anew(at);
    }

    /// Puts a request's waiters where they belong: first while it holds something, but less than it
    /// claims; all held back if B1 allows no more, the others among their tenant's.
    pub(super) fn rank(&mut self, at: u32) {
        let request = &self.requests[at];
        if request.lined.is_empty() && request.first.is_empty() {
            return;
        }
        if self.at_its_cap(at) {
            let request = &mut self.requests[at];
            let mut back = std::mem::take(&mut request.lined);
            back.append(&mut request.first);
            for (order, waiter) in back {
                self.unline(waiter, true);
                self.hold_back(at, waiter, order);
            }
            return;
        }
        let claims = request.leases > 0 && request.leases < self.most_of(request);
        let most = if claims { FIRST_MOST } else { 0 };
        while self.requests[at].first.len() > most
            && let Some((order, waiter)) = self.requests[at].first.pop_last()
        {
            self.unline(waiter, true);
            self.requests[at].lined.insert(order, waiter);
            self.stand_among_tenants(waiter);
        }
        while self.requests[at].first.len() < most
            && let Some((order, waiter)) = self.requests[at].lined.pop_first()
        {
            self.unline(waiter, true);
            self.requests[at].first.insert(order, waiter);
            let since = self.requests[at].since;
            let Some(waiting) = self.waiters.get_mut(&waiter) else { continue };
            waiting.line = Line::Finish(since);
            let pool = &mut self.pools[waiting.claim.pool.0 as usize];
            pool.finish.insert((since, order), waiter);
            pool.demand += 1;
        }
    }
}
