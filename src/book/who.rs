//! Whom a claim is accounted to: its tenant's share, its request, its class and its budgets, each looked up once
//! by name and known by number from then on.

use super::class::ClassId;
use super::turns::Guess;
use super::{Book, Claim, LeaseId, PoolId};
use crate::config::Scope;
use crate::tag::Tag;
use std::time::Instant;

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

impl<B, W> Book<B, W> {
    /// Where a claim is accounted, made if new.
    pub(super) fn who(&mut self, claim: &Claim, now: Instant) -> Who {
        let class = self.classes.of_claim(claim);
        let budgets = self.budgets_of(claim.pool, class, &claim.tag);
        let (limits, pools) = (&self.limits, &self.pools);
        let tenant = &claim.tag.tenant;
        let (share, fresh) = self.shares.find_or_insert(claim.pool.0, tenant, || {
            let size = pools[claim.pool.0 as usize].rules.size;
            super::share::Share::new(claim.pool, tenant, limits, size, now)
        });
        if fresh {
            self.next_share = self.next_share.wrapping_add(1);
            self.shares[share].serial = self.next_share;
        }
        let request = claim.tag.request.as_ref().filter(|_| !claim.login).map(|id| {
            let (at, fresh) =
                self.requests.find_or_insert(0, id, || super::requests::Request::new(claim.tag.clone(), now));
            if !fresh {
                let over = self.requests[at].seen(&claim.tag, &self.limits.request, now);
                over.into_iter().for_each(|end| self.endings.count(end));
            }
            self.requests[at].budgets = budgets;
            self.requests[at].used_by(&claim.tag, claim.pool);
            at
        });
        let pool = &mut self.pools[claim.pool.0 as usize];
        if pool.parts.see(class) {
            pool.parts.rules(&self.classes, pool.rules.size);
        }
        let serial = self.shares[share].serial;
        let guess = self.predictor.guess(serial, claim.fingerprint, claim.tag.route.as_deref());
        let guess = pool.minded(guess);
        Who { share, request, budgets, class, guess }
    }

    /// The number of the budgets that hold for work with these tags in a pool.
    fn budgets_of(&mut self, pool: PoolId, class: super::class::ClassId, tag: &Tag) -> u32 {
        let pool = &self.pools[pool.0 as usize];
        self.limits.number(&Scope {
            database: &pool.database,
            user: &pool.user,
            class: Some(&self.classes.get(class).name),
            route: tag.route.as_deref(),
            tenant: &tag.tenant,
        })
    }

    /// After a reload: all that is held and waits is judged by the budgets that hold now.
    pub(super) fn renumber(&mut self) {
        for (at, _) in self.requests.names() {
            self.requests[at].budgets = 0;
        }
        let leases =
            self.leases.iter().map(|(id, held)| (Ok(*id), held.pool, held.who.class, held.tag.clone()));
        let waiters = self
            .waiters
            .iter()
            .map(|(id, waiter)| (Err(*id), waiter.claim.pool, waiter.who.class, waiter.claim.tag.clone()));
        for (id, pool, class, tag) in leases.chain(waiters).collect::<Vec<_>>() {
            let budgets = self.budgets_of(pool, class, &tag);
            let who = match id {
                Ok(lease) => self.leases.get_mut(&lease).map(|lease| &mut lease.who),
                Err(waiter) => self.waiters.get_mut(&waiter).map(|waiter| &mut waiter.who),
            };
            let Some(who) = who else { continue };
            who.budgets = budgets;
            if let Some(request) = who.request {
                self.requests[request].budgets = budgets;
            }
        }
    }

    /// The number of a lease's budgets.
    pub(super) fn budgets_at(&self, lease: LeaseId) -> u32 {
        self.leases.get(&lease).map_or(0, |lease| lease.who.budgets)
    }
}
