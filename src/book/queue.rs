//! Waiters: how they enter a pool's lines, and how they leave them.
//!
//! ```text
//!            checkout                         turn comes, backend there
//!   ────────────┬──────────► Tenant ────────────────────────────────► granted
//!               │             │  ▲ its request holds one  ▲
//!    request    │     at cap  │  └─────────► Finish ──────┤ (any line) ───► refused | cancelled
//!    at its cap │     by now  ▼
//!               └──────────► Request (B1)
//! ```
//!
//! Who is next among tenants is said in `fair.rs`, who goes before them in `finish.rs`. Whoever lost
//! the backend it was promised stands before all, in line `First`.

use super::class::ClassId;
use super::counters::{Dim, Told};
use super::fair::{Bar, Kind};
use super::limits::later;
use super::predict::Guess;
use super::{Action, Book, Claim, PoolId, Refusal, SessionId, Standing, WaiterId, groups, storms};
use crate::config::Mode;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where a claim is accounted: looked up once, by name, at checkout.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub(super) share: u32,
    /// `None` for untagged work and for logins.
    pub(super) request: Option<u32>,
    /// The number of its budgets ([`super::limits::Limits::budgets`]).
    pub(super) budgets: u32,
    pub(super) class: ClassId,
    pub(super) guess: Guess,
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
    /// Its place among its tenant's: its order, unless it goes on with a request.
    pub(super) turn: i64,
    pub(super) line: Line,
    /// Its lane among its tenant's.
    pub(super) kind: Kind,
    /// Had a lease already, on a backend that turned out to be gone.
    pub(super) again: bool,
    /// And has not had to step back since.
    pub(super) before_all: bool,
    /// Counted as put off by the banker.
    pub(super) deferred: bool,
}

/// Where a waiter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// In none, for a moment.
    None,
    /// Before all others of its pool.
    First,
    /// Before all tenants of its pool, by the birth of its request.
    Finish(Instant),
    /// Among its tenant's waiters.
    Tenant,
    /// Among its request's waiters, held back by B1.
    Request,
    /// Behind those of a deadlock whose victim it was ([`super::aftermath`]).
    Behind,
}

/// How a waiter enters its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// At the end, if the caps on the queue allow.
    Back,
    /// First of all: its lease came to nothing. The instant is when it was promised.
    Front(Instant),
}

impl<W> Waiter<W> {
    /// Whether it goes on with a request that has had leases before ([`groups`]).
    pub(super) fn continues(&self) -> bool {
        self.turn != self.order
    }
}

impl<B, W> Book<B, W> {
    /// Room in the queue? B15 always refuses, B8 by its mode.
    pub(super) fn queue_full(
        &mut self,
        claim: &Claim,
        who: Who,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) -> Option<Refusal> {
        let limit = self.pools[claim.pool.0 as usize].queue_limit();
        self.shed_for(claim.pool, who, limit, now, actions);
        let (pool, share) = (&self.pools[claim.pool.0 as usize], &self.shares[who.share]);
        let waiting = pool.waiting;
        let (own, own_limit, mode) = (share.waiting, share.queue, share.mode);

        let refusal = if waiting >= limit {
            self.tally.count(Dim::B15, Told::Reject);
            Refusal::QueueFull { limit, standing: self.standing(claim.pool, who, claim.session, now) }
        } else if own >= own_limit && mode == Mode::Enforce {
            self.tally.count(Dim::B8, Told::Reject);
            let standing = self.standing(claim.pool, who, claim.session, now);
            Refusal::TenantQueueFull { limit: own_limit, standing }
        } else {
            let told = match own >= own_limit {
                true => Told::beyond(mode),
                false => Told::within(u64::from(own) + 1, own_limit.into()),
            };
            self.tally.count(Dim::B8, told);
            self.peaks.saw(Dim::B8, u64::from(own) + 1);
            self.peaks.saw(Dim::B15, waiting as u64 + 1);
            self.tally.count(Dim::B15, Told::within(waiting as u64 + 1, limit as u64));
            return None;
        };
        self.count_refusal(claim, who, &refusal);
        Some(refusal)
    }

    /// B15: makes room in a full queue by refusing the newest waiter of the lowest class, if that is lower
    /// than the newcomer's (budgets.md §6.2).
    fn shed_for(
        &mut self,
        pool: PoolId,
        who: Who,
        limit: usize,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let pool = &mut self.pools[pool.0 as usize];
        if pool.waiting < limit {
            return;
        }
        let rank = self.classes.get(who.class).rule.rank();
        let lowest = pool.shed.first(|id| self.waiters.contains_key(&id));
        if let Some(((Reverse(lowest), _), waiter)) = lowest
            && lowest < rank
        {
            self.tally.count(Dim::B15, Told::Reject);
            self.refuse(waiter, now, actions, |standing| Refusal::QueueFull { limit, standing });
        }
    }

    /// A client that has set itself a deadline which those of its tenant who wait before it make
    /// impossible, even if the whole pool were theirs, is told so at once.
    pub(super) fn cannot_make_it(&mut self, claim: &Claim, who: Who, now: Instant) -> Option<Refusal> {
        let deadline = Duration::from_millis(claim.tag.deadline_ms?.into());
        let before = self.shares[who.share].waiting as usize;
        let wait = self.pools[claim.pool.0 as usize].to_serve(before, super::pool::TELLING)?;
        if wait <= deadline {
            return None;
        }
        self.tally.count(Dim::B9, Told::Reject);
        let standing = self.standing(claim.pool, who, claim.session, now);
        let refusal = Refusal::WaitedTooLong { waited: Duration::ZERO, dial_error: None, standing };
        self.count_refusal(claim, who, &refusal);
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
        let of_class = self.classes.get(who.class).rule.max_wait;
        let own = of_class.or(self.limits.budgets(who.budgets).max_wait);
        let most = own.unwrap_or(pool.rules.max_wait);
        let asked = claim.tag.deadline_ms.map_or(Duration::MAX, |ms| Duration::from_millis(ms.into()));
        let deadline = later(since, most.min(asked));
        let waits = |id| self.waiters.contains_key(&id);
        self.deadlines.add(Reverse(deadline), id, self.waiters.len(), waits);
        self.wake(deadline);
        self.look_for_parkable(now);

        let again = entry != Entry::Back;
        let behind = !again && self.is_behind(claim, who);
        let held_back = !again && !behind && self.held_back(who.request);
        let rank = self.classes.get(who.class).rule.rank();
        if !again {
            let pool = &mut self.pools[claim.pool.0 as usize];
            let waits = |id| self.waiters.contains_key(&id);
            pool.shed.add((Reverse(rank), order), id, pool.waiting, waits);
        }
        let goes_on = || claim.resumes.is_some() || self.continues(claim, who, now);
        let continues = !again && who.request.is_some() && goes_on();
        let waiter = Waiter {
            handle: handle(id),
            claim: claim.clone(),
            who,
            since,
            deadline,
            order,
            turn: if continues { groups::ahead(order) } else { order },
            line: Line::None,
            kind: Kind::of(who.guess.long, false),
            again,
            before_all: again,
            deferred: false,
        };
        self.waiters.insert(id, waiter);
        let share = &mut self.shares[who.share];
        share.waiting += 1;
        if share.room() == 0 && !held_back {
            self.tally.count(Dim::B4, Told::Queue);
        }
        if let Some(request) = who.request {
            let request = &mut self.requests[request];
            request.waiting += 1;
            request.episode.most = request.episode.most.max(request.leases + request.waiting);
        }
        match who.request.filter(|_| held_back) {
            Some(request) => {
                self.hold_back(request, id, order);
                self.wake(now + super::limits::STUCK);
            }
            None if behind => {
                self.stand(id, Line::Behind);
                self.stay_behind(id, order, now);
            }
            None => {
                self.line_up(id);
                self.advance(id);
            }
        }
        id
    }

    pub(super) fn hold_back(&mut self, request: u32, id: WaiterId, order: i64) {
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
    pub(super) fn line_up(&mut self, id: WaiterId) -> Option<PoolId> {
        let waiter = self.waiters.get_mut(&id)?;
        let (pool, order, request) = (waiter.claim.pool, waiter.order, waiter.who.request);
        if waiter.before_all {
            waiter.line = Line::First;
            let pool = &mut self.pools[pool.0 as usize];
            pool.first.insert(order, id);
            pool.demand += 1;
            return Some(waiter.claim.pool);
        }
        // Of a request that is known its other leases decide (B1).
        if let Some(began) = waiter.claim.resumes.filter(|_| request.is_none()) {
            return self.line_up_to_resume(id, began);
        }
        self.stand_among_tenants(id);
        if let Some(request) = request {
            self.requests[request].lined.insert(order, id);
            self.rank(request);
        }
        Some(pool)
    }

    /// Puts a waiter that is in no line into its tenant's.
    pub(super) fn stand_among_tenants(&mut self, id: WaiterId) {
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        waiter.who.guess = self.predictor.guess_of(waiter.who.guess.key);
        waiter.who.guess.long &= self.pools[waiter.claim.pool.0 as usize].minds_long();
        let who = waiter.who;
        let kind = Kind::of(who.guess.long, self.nests(who));
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        (waiter.line, waiter.kind) = (Line::Tenant, kind);
        self.shares[who.share].lane(who.class, kind).ready.insert(waiter.turn, id);
        self.refresh(who.share);
    }

    /// Takes a waiter out of the line of its pool, not out of its request's. Whoever calls sees to
    /// what its tenant's lanes come to ([`Book::refresh`]), if `false`.
    pub(super) fn unline(&mut self, id: WaiterId, refresh: bool) {
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        let (who, order, turn, kind) = (waiter.who, waiter.order, waiter.turn, waiter.kind);
        let pool = &mut self.pools[waiter.claim.pool.0 as usize];
        match std::mem::replace(&mut waiter.line, Line::None) {
            Line::First => pool.demand -= usize::from(pool.first.remove(&order).is_some()),
            Line::Finish(born) => {
                pool.demand -= usize::from(pool.finish.remove(&(born, order)).is_some());
            }
            Line::Tenant => {
                self.shares[who.share].lane(who.class, kind).ready.remove(&turn);
                if refresh {
                    self.refresh(who.share);
                }
            }
            Line::Behind => self.leave_behind(order),
            Line::Request | Line::None => {}
        }
    }

    /// Takes a waiter out of every line: the one way a wait ends. `granted` says that its lease is about
    /// to be written into the ledgers, which brings what depends on them in order.
    pub(super) fn detach(&mut self, id: WaiterId, granted: bool) -> Option<Waiter<W>> {
        self.unline(id, !granted);
        let waiter = self.waiters.remove(&id)?;
        self.pools[waiter.claim.pool.0 as usize].waiting -= 1;
        let who = waiter.who;
        self.shares[who.share].waiting -= 1;
        self.shares.settle(who.share);
        if let Some(at) = who.request {
            let request = &mut self.requests[at];
            request.waiting -= 1;
            for line in [&mut request.back, &mut request.lined, &mut request.first] {
                line.remove(&waiter.order);
            }
            if request.back.is_empty() {
                self.crowded.remove(&at);
            }
            self.requests.settle(at);
            if !granted {
                self.rank(at);
            }
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
        let (claim, who) = (waiter.claim.clone(), waiter.who);
        let refusal = why(self.standing(claim.pool, who, claim.session, now));
        self.count_refusal(&claim, who, &refusal);
        let Some(waiter) = self.detach(id, false) else { return };
        actions.push(Action::Refuse { waiter: waiter.handle, refusal });
        let promoted = self.promote(who.request);
        self.serve_all(&promoted, now, actions);
        self.look_again(now, actions);
    }

    /// Gives up a wait: the waiter's handle, or `None` if it was granted or refused already (then
    /// that action stands, and a granted lease has to be checked in).
    pub fn cancel(&mut self, now: Instant, waiter: WaiterId, actions: &mut Vec<Action<B, W>>) -> Option<W> {
        let waiter = self.detach(waiter, false)?;
        let promoted = self.promote(waiter.who.request);
        self.serve_all(&promoted, now, actions);
        self.look_again(now, actions);
        Some(waiter.handle)
    }

    pub(super) fn waited(&self, id: WaiterId, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.waiters.get(&id)?.since))
    }

    pub(super) fn count_refusal(&mut self, claim: &Claim, who: Who, refusal: &Refusal) {
        self.refused_event(refusal, Some(claim.pool), &claim.tag);
        let sofar = &mut self.pools[claim.pool.0 as usize].sofar;
        *sofar.rejections.entry(refusal.sqlstate()).or_default() += 1;
        self.shares[who.share].rejections += 1;
        if let Some(request) = who.request {
            self.requests[request].refused();
        }
    }

    /// The numbers of a refusal, before it changes them; and its part in a retry storm.
    pub(super) fn standing(&mut self, pool: PoolId, who: Who, by: SessionId, now: Instant) -> Box<Standing> {
        let named = who.request.map(|at| self.requests.name(at).clone());
        let named = named.map_or(storms::Who::Session(by), storms::Who::Request);
        let storm = self.storms.refused(named, now);
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
            retry: retry_after(pool) * if storm { 2 } else { 1 },
        })
    }

    /// Why a waiter waits, for `SHOW QUEUE`.
    pub(super) fn reason(&self, waiter: &Waiter<W>) -> &'static str {
        let id = waiter.claim.pool;
        if waiter.line == Line::Request {
            return "request_cap";
        }
        if waiter.line == Line::Behind {
            return "deadlock";
        }
        if self.pools[id.0 as usize].paused {
            return "paused";
        }
        let bar = match waiter.line {
            Line::Finish(_) => self.bar_to_finish(id, waiter.who, self.spare(id)),
            _ => self.bar(id, waiter.who),
        };
        match bar {
            // With nothing free a reserve is no reason yet, and neither is what only acts on who is next.
            Some(Bar::Reserve | Bar::Unsafe) if self.spare(id) == 0 => "pool_full",
            Some(Bar::TenantCap) => "tenant_cap",
            Some(Bar::ClassCap) => "class_cap",
            Some(Bar::Reserve) => "reserve",
            Some(Bar::Express) => "express",
            Some(Bar::Unsafe) => "unsafe",
            None => "pool_full",
        }
    }
}

/// When the queue as it is now will have been served (budgets.md §6.2), in whole milliseconds.
fn retry_after(pool: &super::pool::Pool) -> Duration {
    const LEAST: Duration = Duration::from_millis(50);
    const UNKNOWN: Duration = Duration::from_millis(250);
    let wait = pool.to_serve(pool.waiting, 1).map_or(UNKNOWN, |wait| wait.max(LEAST));
    Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}
