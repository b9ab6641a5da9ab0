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
//! Who is next among tenants is said in `fair.rs`, who goes before them in `finish.rs`, whose wait comes to
//! nothing in `refusals.rs`. Whoever lost the backend it was promised stands before all, in line `First`.

use super::fair::Kind;
use super::groups;
use crate::book::limits::later;
use crate::book::report::{Dim, Told};
use crate::book::who::Who;
use crate::book::{Action, Book, Claim, PoolId, WaiterId};
use std::cmp::Reverse;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(in crate::book) struct Waiter<W> {
    pub(in crate::book) handle: W,
    pub(in crate::book) claim: Claim,
    pub(in crate::book) who: Who,
    pub(in crate::book) since: Instant,
    pub(in crate::book) deadline: Instant,
    /// Its place among others of its line, whichever that is.
    pub(in crate::book) order: i64,
    /// Its place among its tenant's: its order, unless it goes on with a request.
    pub(in crate::book) turn: i64,
    pub(in crate::book) line: Line,
    /// Its lane among its tenant's.
    pub(super) kind: Kind,
    /// Had a lease already, on a backend that turned out to be gone.
    pub(in crate::book) again: bool,
    /// And has not had to step back since.
    pub(in crate::book) before_all: bool,
    /// Counted as put off by the banker.
    pub(super) deferred: bool,
}

/// Where a waiter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::book) enum Line {
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
    /// Behind those of a deadlock whose victim it was (`deadlocks::aftermath`).
    Behind,
}

/// How a waiter enters its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::book) enum Entry {
    /// At the end, if the caps on the queue allow.
    Back,
    /// First of all: its lease came to nothing. The instant is when it was promised.
    Front(Instant),
}

impl<W> Waiter<W> {
    /// Whether it goes on with a request that has had leases before ([`groups`]).
    pub(in crate::book) fn continues(&self) -> bool {
        self.turn != self.order
    }
}

impl<B, W> Book<B, W> {
    /// How long somebody waits (B9).
    pub(in crate::book) fn patience(&self, claim: &Claim, who: Who) -> Duration {
        let of_class = self.classes.get(who.class).rule.max_wait;
        let own = of_class.or(self.limits.budgets(who.budgets).max_wait);
        let most = own.unwrap_or(self.pools[claim.pool.0 as usize].rules.max_wait);
        let asked = claim.tag.deadline_ms.map_or(Duration::MAX, |ms| Duration::from_millis(ms.into()));
        most.min(asked).min(claim.within.unwrap_or(Duration::MAX))
    }

    /// Queues a claim; B1 decides in which line.
    pub(in crate::book) fn enqueue(
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

        self.pools[claim.pool.0 as usize].waiting += 1;
        let deadline = later(since, self.patience(claim, who));
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
                self.wake(now + crate::book::limits::STUCK);
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
    pub(in crate::book) fn line_up(&mut self, id: WaiterId) -> Option<PoolId> {
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
        let guess = self.predictor.guess_of(waiter.who.guess.key);
        waiter.who.guess = self.pools[waiter.claim.pool.0 as usize].minded(guess);
        let who = waiter.who;
        let kind = Kind::of(who.guess.long, self.nests(who));
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        (waiter.line, waiter.kind) = (Line::Tenant, kind);
        self.shares[who.share].lane(who.class, kind).ready.insert(waiter.turn, id);
        self.refresh(who.share);
    }

    /// Takes a waiter out of the line of its pool, not out of its request's. Whoever calls sees to
    /// what its tenant's lanes come to ([`Book::refresh`]), if `false`.
    pub(in crate::book) fn unline(&mut self, id: WaiterId, refresh: bool) {
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        let (who, order, turn, kind) = (waiter.who, waiter.order, waiter.turn, waiter.kind);
        let pool = &mut self.pools[waiter.claim.pool.0 as usize];
        match std::mem::replace(&mut waiter.line, Line::None) {
            Line::First => pool.demand -= usize::from(pool.first.remove(&order).is_some()),
            Line::Finish(born) => {
                pool.demand -= usize::from(pool.finish.remove(&(born, order)).is_some());
            }
            Line::Tenant => {
                self.shares[who.share].lane(who.class, kind).ready.remove(turn);
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
    pub(in crate::book) fn detach(&mut self, id: WaiterId, granted: bool) -> Option<Waiter<W>> {
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

    /// Gives up a wait: the waiter's handle, or `None` if it was granted or refused already (then
    /// that action stands, and a granted lease has to be checked in).
    pub fn cancel(&mut self, now: Instant, waiter: WaiterId, actions: &mut Vec<Action<B, W>>) -> Option<W> {
        let waiter = self.detach(waiter, false)?;
        let promoted = self.promote(waiter.who.request);
        self.serve_all(&promoted, now, actions);
        self.look_again(now, actions);
        Some(waiter.handle)
    }

    pub(in crate::book) fn waited(&self, id: WaiterId, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.waiters.get(&id)?.since))
    }
}
