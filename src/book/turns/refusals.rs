//! Waits that come to nothing: refused at once, shed for somebody else, or over time (B8, B9, B15); the figures
//! a refusal is told with, and why who still waits does.

use super::fair::Bar;
use super::queue::{Line, Waiter};
use crate::book::pool::{Place, Pool, TELLING};
use crate::book::report::{Dim, Told};
use crate::book::requests::Refused;
use crate::book::who::Who;
use crate::book::{Action, Book, Claim, Holder, PoolId, Refusal, SessionId, Standing, WaiterId};
use crate::config::Mode;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl<B, W> Book<B, W> {
    /// Room in the queue? B15 always refuses, B8 by its mode.
    pub(in crate::book) fn queue_full(
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
    pub(in crate::book) fn cannot_make_it(
        &mut self,
        claim: &Claim,
        who: Who,
        now: Instant,
    ) -> Option<Refusal> {
        let deadline = Duration::from_millis(claim.tag.deadline_ms?.into());
        let before = self.shares[who.share].waiting as usize;
        let wait = self.pools[claim.pool.0 as usize].to_serve(before, TELLING)?;
        if wait <= deadline {
            return None;
        }
        self.tally.count(Dim::B9, Told::Reject);
        let standing = self.standing(claim.pool, who, claim.session, now);
        let refusal = Refusal::WaitedTooLong { waited: Duration::ZERO, dial_error: None, standing };
        self.count_refusal(claim, who, &refusal);
        Some(refusal)
    }

    /// B9: waits whose deadline has come.
    pub(in crate::book) fn expire(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        while let Some((Reverse(deadline), id)) = self.deadlines.first(|id| self.waiters.contains_key(&id))
            && deadline <= now
        {
            self.tally.count(Dim::B9, Told::Reject);
            let Some(dial_error) = self.timed_out(id) else { return };
            let waited = self.waited(id, now).unwrap_or_default();
            self.refuse(id, now, actions, |standing| Refusal::WaitedTooLong { waited, dial_error, standing });
        }
    }

    /// Counts a wait in vain; with the reason, if the pool was without a backend all the while.
    fn timed_out(&mut self, id: WaiterId) -> Option<Option<std::sync::Arc<str>>> {
        let waiter = self.waiters.get(&id)?;
        let (id, since) = (waiter.claim.pool, waiter.since);
        let pool = &mut self.pools[id.0 as usize];
        pool.sofar.timeouts += 1;
        let never = pool.empty_since.is_some_and(|empty| empty <= since);
        Some(self.dial_error(id).filter(|_| never))
    }

    pub(in crate::book) fn refuse(
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

    pub(in crate::book) fn count_refusal(&mut self, claim: &Claim, who: Who, refusal: &Refusal) {
        self.refused_event(refusal, Some(claim.pool), &claim.tag);
        let sofar = &mut self.pools[claim.pool.0 as usize].sofar;
        *sofar.rejections.entry(refusal.sqlstate()).or_default() += 1;
        self.shares[who.share].rejections += 1;
        if let Some(request) = who.request {
            self.requests[request].refused();
        }
    }

    /// The numbers of a refusal, before it changes them; and its part in a retry storm.
    pub(in crate::book) fn standing(
        &mut self,
        pool: PoolId,
        who: Who,
        by: SessionId,
        now: Instant,
    ) -> Box<Standing> {
        let named = who.request.map(|at| self.requests.name(at).clone());
        let named = named.map_or(Refused::Session(by), Refused::Request);
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
            pool_holds: pool.census.at(Place::Leased) as u32,
            pool_size: pool.rules.size as u32,
            pool_idle_in_tx: pool.seen.idle_in_tx,
            longest: self.longest_holder(pool, now),
            retry: retry_after(pool) * if storm { 2 } else { 1 },
        })
    }

    /// Why a waiter waits, for `SHOW QUEUE`.
    pub(in crate::book) fn reason(&self, waiter: &Waiter<W>) -> &'static str {
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
            None if self.is_shut_out(id) => "breaker",
            None => "pool_full",
        }
    }

    /// Who has held longest, as of the last tick, if it still does.
    pub(super) fn longest_holder(&self, pool: &Pool, now: Instant) -> Option<Holder> {
        let (id, since, idle_since) = pool.seen.longest?;
        let lease = self.leases.get(&id)?;
        Some(Holder {
            route: lease.tag.route.clone(),
            tenant: lease.tag.tenant.clone(),
            held: now.saturating_duration_since(since),
            idle: idle_since.map(|since| now.saturating_duration_since(since)),
        })
    }
}

/// When the queue as it is now will have been served (budgets.md §6.2), in whole milliseconds.
fn retry_after(pool: &Pool) -> Duration {
    const LEAST: Duration = Duration::from_millis(50);
    const UNKNOWN: Duration = Duration::from_millis(250);
    let wait = pool.to_serve(pool.waiting, 1).map_or(UNKNOWN, |wait| wait.max(LEAST));
    Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}
