//! After a deadlock: who goes first, and who goes last.
//!
//! Aborting somebody is not enough. What the victim gives back would go to whoever is next, who opens
//! an outer transaction, nests, and is stuck again (budgets.md F3: a detector alone livelocks). So the
//! eldest request of the knot is favoured: while it holds a lease, its waiters stand before all others,
//! until it is through. And the victim, when it comes again, stays behind while anybody of that knot,
//! other victims included, holds a lease. Every deadlock lets at least one request through for good, and so there are only so
//! many.

use crate::book::turns::Line;
use crate::book::who::Who;
use crate::book::{Action, Book, Claim, SessionId, WaiterId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a victim stays behind at most.
const BEHIND_MOST: Duration = Duration::from_secs(1);

/// Requests by name, since the number of one that is not busy may become another's.
#[derive(Debug, Default)]
pub(in crate::book) struct Aftermath {
    favoured: Vec<Arc<str>>,
    victims: Vec<Victim>,
    /// Waiters that stay behind, by order of arrival.
    behind: BTreeMap<i64, WaiterId>,
}

#[derive(Debug)]
struct Victim {
    request: Arc<str>,
    /// Of its leases and waiters: a retry may come under another name.
    sessions: Vec<SessionId>,
    /// The others of the knot.
    others: Vec<Arc<str>>,
    until: Instant,
}

impl<B, W> Book<B, W> {
    /// From now on the eldest of `others` is favoured, and the victim behind them all.
    pub(super) fn settle_knot(
        &mut self,
        victim: u32,
        sessions: Vec<SessionId>,
        others: &[u32],
        now: Instant,
    ) {
        let name = |at: u32| Arc::clone(self.requests.name(at));
        let eldest = others.iter().min_by_key(|&&at| (self.requests[at].since, at));
        let favoured = eldest.filter(|&&at| !self.is_favoured(at)).map(|&at| name(at));
        let request = name(victim);
        // Victims come again one after the other, or they would only meet in the next knot.
        let earlier = self.aftermath.victims.iter().map(|earlier| earlier.request.clone());
        let others = others.iter().map(|&at| name(at)).chain(earlier).collect();
        self.aftermath.favoured.extend(favoured);
        self.aftermath.victims.iter_mut().for_each(|earlier| earlier.others.push(request.clone()));
        self.aftermath.victims.push(Victim { request, sessions, others, until: now + BEHIND_MOST });
    }

    /// Moves the waiters of favoured requests before all others.
    pub(super) fn advance_favoured(&mut self) {
        let mut ids: Vec<WaiterId> = Vec::new();
        if !self.aftermath.favoured.is_empty() {
            ids.extend(self.waiters.keys());
            ids.sort_unstable();
        }
        ids.into_iter().for_each(|id| self.advance(id));
    }

    /// Puts a waiter of a favoured request before all others; anybody else stays where it is.
    pub(in crate::book) fn advance(&mut self, id: WaiterId) {
        if self.aftermath.favoured.is_empty() {
            return;
        }
        let Some(waiter) = self.waiters.get(&id) else { return };
        let Some(request) = waiter.who.request.filter(|&at| self.is_favoured(at)) else { return };
        let old = waiter.order;
        if !matches!(waiter.line, Line::Tenant | Line::Finish(_)) {
            return;
        }
        self.unline(id, true);
        let request = &mut self.requests[request];
        for line in [&mut request.lined, &mut request.first] {
            line.remove(&old);
        }
        if let Some(waiter) = self.waiters.get_mut(&id) {
            waiter.before_all = true;
        }
        self.line_up(id);
    }

    fn is_favoured(&self, at: u32) -> bool {
        let favoured = &self.aftermath.favoured;
        !favoured.is_empty() && favoured.contains(self.requests.name(at)) && self.requests[at].leases > 0
    }

    fn is_holding(&self, name: &str) -> bool {
        self.requests.find(0, name).is_some_and(|at| self.requests[at].leases > 0)
    }

    /// Whether a claim is a victim's that has come again, and the others are not through.
    pub(in crate::book) fn is_behind(&self, claim: &Claim, who: Who) -> bool {
        let is_of = |victim: &&Victim| {
            claim.tag.request.as_ref() == Some(&victim.request) || victim.sessions.contains(&claim.session)
        };
        !self.aftermath.victims.is_empty()
            && who.request.is_none_or(|at| self.requests[at].leases == 0)
            && self.aftermath.victims.iter().filter(is_of).any(|victim| {
                victim.others.iter().any(|name| *name != victim.request && self.is_holding(name))
            })
    }

    /// A waiter joins those behind.
    pub(in crate::book) fn stay_behind(&mut self, id: WaiterId, order: i64, now: Instant) {
        self.aftermath.behind.insert(order, id);
        self.wake(now + crate::book::limits::STUCK / 2);
    }

    /// A waiter is gone from them.
    pub(in crate::book) fn leave_behind(&mut self, order: i64) {
        self.aftermath.behind.remove(&order);
    }

    /// At a tick: forgets who is through, and lines up those behind who need not be any more.
    pub(super) fn end_aftermath(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        let mut left = std::mem::take(&mut self.aftermath);
        left.favoured.retain(|name| self.is_holding(name));
        left.victims.retain(|victim| now < victim.until);
        self.aftermath = left;
        let behind: Vec<(i64, WaiterId)> =
            self.aftermath.behind.iter().map(|(&order, &id)| (order, id)).collect();
        for (order, id) in behind {
            let Some(waiter) = self.waiters.get(&id) else { continue };
            if !self.is_behind(&waiter.claim, waiter.who) {
                self.leave_behind(order);
                if let Some(pool) = self.line_up(id) {
                    self.serve(pool, now, actions);
                }
            }
        }
        if !self.aftermath.behind.is_empty() {
            self.wake(now + crate::book::limits::STUCK / 2);
        }
    }
}
