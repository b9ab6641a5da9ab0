//! Who is next: the waiters of a pool, tenants in turn, each tenant's in order of arrival.
//!
//! ```text
//!            checkout                         turn comes, backend there
//!   ────────────┬──────────► Tenant ────────────────────────────────► granted
//!               │             │    ▲                  (any line) ───► refused | cancelled
//!    request    │     at cap  │    │ a lease of
//!    at its cap │     by now  ▼    │ the request came back
//!               └──────────► Request (B1)
//! ```
//!
//! A tenant stands in its pool's ring exactly while it has waiters lined up and is below its cap
//! (B4), so the next waiter is found without looking at tenants that may not have one. Whoever lost
//! the backend it was promised stands before the ring, in line `First`, and costs no tenant a turn.

use super::counters::{Dim, Told};
use super::limits::{cap, later};
use super::roll::Busy;
use super::{Action, Book, Claim, PoolId, Refusal, Standing, WaiterId};
use crate::config::{Mode, TenantRule};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One tenant in one pool.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) pool: PoolId,
    pub(super) cap: u32,
    queue: u32,
    pub(super) mode: Mode,
    pub(super) leased: u32,
    /// B17
    pub(super) max_pins: u32,
    /// Of those leased, kept beyond their transaction.
    pub(super) pinned: u32,
    /// Waiters, those held back included.
    pub(super) waiting: u32,
    /// Waiters lined up, by order of arrival.
    ready: BTreeMap<i64, WaiterId>,
    /// Its place in the pool's ring.
    turn: Option<i64>,
    /// How many of `ready` its cap allows; counted into the pool's.
    demand: usize,
    pub(super) leases_total: u64,
    pub(super) held: Duration,
    pub(super) active: Duration,
    pub(super) waited: Duration,
    pub(super) rejections: u64,
}

impl Busy for Share {
    fn busy(&self) -> bool {
        self.leased > 0 || self.waiting > 0
    }
}

impl Share {
    pub(super) fn new(pool: PoolId, rule: &TenantRule, size: usize) -> Self {
        Share {
            pool,
            cap: cap(rule, size),
            queue: rule.queue,
            mode: rule.mode,
            leased: 0,
            max_pins: rule.max_pins,
            pinned: 0,
            waiting: 0,
            ready: BTreeMap::new(),
            turn: None,
            demand: 0,
            leases_total: 0,
            held: Duration::ZERO,
            active: Duration::ZERO,
            waited: Duration::ZERO,
            rejections: 0,
        }
    }

    pub(super) fn rule(&mut self, rule: &TenantRule, size: usize) {
        (self.cap, self.queue, self.mode) = (cap(rule, size), rule.queue, rule.mode);
        self.max_pins = rule.max_pins;
    }

    /// Leases B4 still allows.
    pub(super) fn room(&self) -> u32 {
        match self.mode {
            Mode::Enforce => self.cap.saturating_sub(self.leased),
            Mode::Observe | Mode::Warn => u32::MAX,
        }
    }
}

/// Where a claim is accounted: looked up once, by name, at checkout.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub(super) share: u32,
    /// `None` for untagged work and for logins.
    pub(super) request: Option<u32>,
    /// The number of its budgets ([`super::limits::Limits::budgets`]).
    pub(super) budgets: u32,
}

#[derive(Debug)]
pub(super) struct Waiter<W> {
    pub(super) handle: W,
    pub(super) claim: Claim,
    pub(super) who: Who,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
    /// Its place among others of its line, whichever that is.
    pub(super) order: i64,
    pub(super) line: Line,
    /// Had a lease already, on a backend that turned out to be gone.
    pub(super) again: bool,
}

/// Where a waiter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// Before all tenants of its pool.
    First,
    /// Among its tenant's waiters.
    Tenant,
    /// Among its request's waiters, held back by B1.
    Request,
}

/// How a waiter enters its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// At the end, if the caps on the queue allow.
    Back,
    /// First of all: its lease came to nothing. The instant is when it was promised.
    Front(Instant),
}

impl<B, W> Book<B, W> {
    /// Room in the queue? B15 always refuses, B8 by its mode.
    pub(super) fn queue_full(&mut self, claim: &Claim, who: Who, now: Instant) -> Option<Refusal> {
        let (pool, share) = (&self.pools[claim.pool.0 as usize], &self.shares[who.share]);
        let (waiting, limit) = (pool.waiting, pool.rules.queue);
        let (own, own_limit, mode) = (share.waiting, share.queue, share.mode);

        let refusal = if waiting >= limit {
            self.tally.count(Dim::B15, Told::Reject);
            Refusal::QueueFull { limit, standing: self.standing(claim.pool, who, now) }
        } else if own >= own_limit && mode == Mode::Enforce {
            self.tally.count(Dim::B8, Told::Reject);
            Refusal::TenantQueueFull { limit: own_limit, standing: self.standing(claim.pool, who, now) }
        } else {
            let told = match own >= own_limit {
                true => Told::beyond(mode),
                false => Told::within(u64::from(own) + 1, own_limit.into()),
            };
            self.tally.count(Dim::B8, told);
            self.tally.count(Dim::B15, Told::within(waiting as u64 + 1, limit as u64));
            return None;
        };
        self.count_refusal(claim.pool, who, &refusal);
        Some(refusal)
    }

    /// Queues a claim; B1 decides in which line.
    pub(super) fn enqueue(
        &mut self,
        claim: &Claim,
        who: Who,
        entry: Entry,
        now: Instant,
        handle: impl FnOnce(WaiterId) -> W,
    ) -> WaiterId {
        let id = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        let (order, since) = match entry {
            Entry::Back => (self.ends.1, now),
            Entry::Front(since) => (self.ends.0, since),
        };
        match entry {
            Entry::Back => self.ends.1 += 1,
            Entry::Front(_) => self.ends.0 -= 1,
        }

        let pool = &mut self.pools[claim.pool.0 as usize];
        pool.waiting += 1;
        let asked = claim.tag.deadline_ms.map_or(Duration::MAX, |ms| Duration::from_millis(ms.into()));
        let max_wait = self.limits.budgets(who.budgets).max_wait.unwrap_or(pool.rules.max_wait);
        let deadline = later(since, max_wait.min(asked));
        self.deadlines.insert((deadline, id));
        self.wake(deadline);

        let again = entry != Entry::Back;
        let held_back = !again && self.held_back(who.request);
        let line = if held_back { Line::Request } else { Line::Tenant };
        let waiter =
            Waiter { handle: handle(id), claim: claim.clone(), who, since, deadline, order, line, again };
        self.waiters.insert(id, waiter);
        let share = &mut self.shares[who.share];
        share.waiting += 1;
        if share.room() == 0 && !held_back {
            self.tally.count(Dim::B4, Told::Queue);
        }
        if let Some(request) = who.request {
            self.requests[request].waiting += 1;
        }
        match who.request.filter(|_| held_back) {
            Some(request) => {
                self.hold_back(request, id, order);
                self.wake(now + super::limits::STUCK);
            }
            None => {
                self.line_up(id, order);
            }
        }
        id
    }

    fn hold_back(&mut self, request: u32, id: WaiterId, order: i64) {
        self.tally.count(Dim::B1, Told::Queue);
        self.requests[request].back.insert(order, id);
        self.crowded.insert(request);
        self.stand(id, Line::Request);
    }

    fn stand(&mut self, id: WaiterId, line: Line) {
        if let Some(waiter) = self.waiters.get_mut(&id) {
            waiter.line = line;
        }
    }

    /// Puts a waiter into the line from which it will be served; says in which pool.
    pub(super) fn line_up(&mut self, id: WaiterId, order: i64) -> Option<PoolId> {
        let waiter = self.waiters.get_mut(&id)?;
        let (share, pool) = (waiter.who.share, waiter.claim.pool);
        if waiter.again {
            waiter.line = Line::First;
            let pool = &mut self.pools[pool.0 as usize];
            pool.first.insert(order, id);
            pool.demand += 1;
        } else {
            waiter.line = Line::Tenant;
            self.shares[share].ready.insert(order, id);
            self.refresh(share);
        }
        Some(pool)
    }

    fn leave_ring(&mut self, share: u32) {
        let share = &mut self.shares[share];
        if let Some(turn) = share.turn.take() {
            self.pools[share.pool.0 as usize].ring.remove(&turn);
        }
    }

    /// After any change to a tenant's waiters, leases or cap: its demand, and whether it stands in
    /// the ring. Whoever enters does so at the end.
    pub(super) fn refresh(&mut self, at: u32) {
        let share = &mut self.shares[at];
        if share.ready.is_empty() && share.demand == 0 && share.turn.is_none() {
            return;
        }
        let pool = &mut self.pools[share.pool.0 as usize];
        let demand = share.ready.len().min(share.room() as usize);
        pool.demand = pool.demand - share.demand + demand;
        share.demand = demand;
        match share.turn {
            None if demand > 0 => {
                let turn = self.ends.1;
                self.ends.1 += 1;
                pool.ring.insert(turn, at);
                share.turn = Some(turn);
            }
            Some(_) if demand == 0 => self.leave_ring(at),
            _ => {}
        }
    }

    /// The next waiter of a pool that may have a backend now. Its tenant's turn is over with it.
    pub(super) fn next_in_line(&mut self, pool: PoolId) -> Option<WaiterId> {
        while let Some((order, id)) = self.pools[pool.0 as usize].first.pop_first() {
            self.pools[pool.0 as usize].demand -= 1;
            let who = self.waiters.get(&id)?.who;
            self.stand(id, Line::Tenant);
            let share = &mut self.shares[who.share];
            let room = share.room() > 0;
            share.ready.insert(order, id);
            // Others may have used up what its caps allow; then it is first of its tenant only.
            if room && !who.request.is_some_and(|request| self.at_its_cap(request)) {
                return Some(id);
            }
            self.refresh(who.share);
        }
        loop {
            let share = *self.pools[pool.0 as usize].ring.first_key_value()?.1;
            let (&order, &id) = self.shares[share].ready.first_key_value()?;
            let request = self.waiters.get(&id)?.who.request;
            // Its request may have reached its cap since it lined up, by a lease elsewhere.
            if let Some(request) = request.filter(|&request| self.at_its_cap(request)) {
                self.shares[share].ready.remove(&order);
                self.hold_back(request, id, order);
                self.refresh(share);
                continue;
            }
            self.leave_ring(share);
            return Some(id);
        }
    }

    /// Takes a waiter out of every line: the one way a wait ends.
    pub(super) fn detach(&mut self, id: WaiterId) -> Option<Waiter<W>> {
        let waiter = self.waiters.remove(&id)?;
        self.deadlines.remove(&(waiter.deadline, id));
        self.pools[waiter.claim.pool.0 as usize].waiting -= 1;
        let who = waiter.who;
        self.shares[who.share].waiting -= 1;
        match waiter.line {
            Line::First => {
                let pool = &mut self.pools[waiter.claim.pool.0 as usize];
                pool.demand -= usize::from(pool.first.remove(&waiter.order).is_some());
            }
            Line::Tenant => {
                self.shares[who.share].ready.remove(&waiter.order);
                self.refresh(who.share);
            }
            Line::Request => {}
        }
        self.shares.settle(who.share);
        if let Some(at) = who.request {
            let request = &mut self.requests[at];
            request.waiting -= 1;
            if waiter.line == Line::Request {
                request.back.remove(&waiter.order);
            }
            if request.back.is_empty() {
                self.crowded.remove(&at);
            }
            self.requests.settle(at);
        }
        Some(waiter)
    }

    pub(super) fn refuse(
        &mut self,
        id: WaiterId,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
        why: impl FnOnce(Box<Standing>) -> Refusal,
    ) {
        let Some(waiter) = self.waiters.get(&id) else { return };
        let (pool, who) = (waiter.claim.pool, waiter.who);
        let refusal = why(self.standing(pool, who, now));
        self.count_refusal(pool, who, &refusal);
        let Some(waiter) = self.detach(id) else { return };
        actions.push(Action::Refuse { waiter: waiter.handle, refusal });
        let promoted = self.promote(who.request);
        self.serve_all(&promoted, now, actions);
    }

    /// Gives up a wait: the waiter's handle, or `None` if it was granted or refused already (then
    /// that action stands, and a granted lease has to be checked in).
    pub fn cancel(&mut self, now: Instant, waiter: WaiterId, actions: &mut Vec<Action<B, W>>) -> Option<W> {
        let waiter = self.detach(waiter)?;
        let promoted = self.promote(waiter.who.request);
        self.serve_all(&promoted, now, actions);
        Some(waiter.handle)
    }

    pub(super) fn waited(&self, id: WaiterId, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.waiters.get(&id)?.since))
    }

    pub(super) fn count_refusal(&mut self, pool: PoolId, who: Who, refusal: &Refusal) {
        let sofar = &mut self.pools[pool.0 as usize].sofar;
        *sofar.rejections.entry(refusal.sqlstate()).or_default() += 1;
        self.shares[who.share].rejections += 1;
        if let Some(request) = who.request {
            self.requests[request].refused();
        }
    }

    /// The numbers of a refusal, before it changes them.
    pub(super) fn standing(&self, pool: PoolId, who: Who, now: Instant) -> Box<Standing> {
        let (pool, share) = (&self.pools[pool.0 as usize], &self.shares[who.share]);
        let request = who.request.map(|at| &self.requests[at]);
        Box::new(Standing {
            request: request.and_then(|request| request.tag.request.clone()),
            request_holds: request.map_or(0, |request| request.leases),
            request_limit: who
                .request
                .map_or(u32::MAX, |at| self.concurrency(at))
                .min(self.limits.budgets(who.budgets).max_concurrent),
            tenant: Arc::clone(self.shares.name(who.share)),
            tenant_holds: share.leased,
            tenant_limit: share.cap,
            tenant_waits: share.waiting,
            pool_holds: pool.census.at(super::pool::Place::Leased) as u32,
            pool_size: pool.rules.size as u32,
            pool_idle_in_tx: pool.seen.idle_in_tx,
            longest: self.longest_holder(pool, now),
        })
    }
}
