//! The model's part of who may have a backend: by the rules alone, each time from scratch.

use super::super::report::view::PoolView;
use super::*;

impl World {
    /// Whether a waiter could be served if there were a backend, by the rules alone.
    pub(super) fn able(&self, waits: &Waits, rows: &View) -> bool {
        let claim = &waits.claim;
        let row = rows.waiters.iter().find(|row| row.session == claim.session);
        let row = row.expect("a waiter is shown");
        let capped = self.held_by_tenant(claim.pool, &claim.tag.tenant) >= self.setup.cap as usize;
        let paused = rows.pools[claim.pool.0 as usize].paused;
        let k = self.setup.k as usize;
        let request = claim.tag.request.as_ref().filter(|_| !claim.login);
        if row.reason == "request_cap" {
            // Held back: then its request's leases and lined-up waiters use up the budget.
            let request = request.expect("only a request is held back");
            let lined_up = |other: &&WaiterView| {
                other.reason != "request_cap" && other.tag.request.as_ref() == Some(request)
            };
            // Logins of the same request are lined up too, but never count.
            let lined_up = rows.waiters.iter().filter(lined_up).filter(|o| !self.is_login(o.session)).count();
            assert!(self.held_by_request(request) + lined_up >= k, "held back without need");
        }
        let over = request.is_some_and(|request| self.held_by_request(request) >= k);
        if capped || paused || over || row.reason == "request_cap" || row.reason == "deadlock" {
            return false;
        }
        let safe = self.is_safe(claim, rows);
        assert!(row.reason != "unsafe" || !safe, "{row:?}");
        assert!(row.reason != "express" && row.reason != "reserve" && row.reason != "class_cap");
        safe
    }

    /// The banker's test, by trying: can all who hold something and may need more finish one after
    /// another once this claim is granted, in its pool and within its tenant's cap?
    fn is_safe(&self, claim: &Claim, rows: &View) -> bool {
        let Some(own) = claim.tag.request.as_ref().filter(|_| !claim.login) else { return true };
        let need = |request: &Arc<str>, more: usize| {
            (self.setup.k as usize).saturating_sub(self.held_by_request(request) + more)
        };
        if need(own, 1) == 0 {
            return true;
        }
        let finishes = |capacity: usize, within: &dyn Fn(&Claim) -> bool, more: usize| {
            // By request and tenant, as different tenants' leases are told apart.
            let mut stakes: BTreeMap<(&Arc<str>, &Arc<str>), usize> = BTreeMap::new();
            let held = self.held.values().map(|held| &held.claim);
            for claim in held.chain(std::iter::repeat_n(claim, more)).filter(|c| within(c) && !c.login) {
                let Some(request) = &claim.tag.request else { continue };
                *stakes.entry((request, &claim.tag.tenant)).or_default() += 1;
            }
            let mut left: Vec<(usize, usize)> = stakes
                .into_iter()
                .map(|((id, _), held)| (need(id, if id == own { more } else { 0 }), held))
                .filter(|&(need, _)| need > 0)
                .collect();
            let taken: usize = left.iter().map(|(_, held)| held).sum();
            let mut free = capacity as i64 - taken as i64;
            while left.len() > 1 {
                let Some(at) = left.iter().position(|&(need, _)| need as i64 <= free) else { return false };
                free += left.swap_remove(at).1 as i64;
            }
            true
        };
        let pool = &rows.pools[claim.pool.0 as usize];
        let elsewhere = |at: fn(&PoolView) -> usize| {
            rows.pools.iter().filter(|other| other.id != pool.id).map(at).sum::<usize>()
        };
        let taken =
            pool.leased + pool.idle + pool.dialling + elsewhere(|other| other.leased + other.dialling);
        let server = self.setup.max_backends.saturating_sub(taken);
        let limit = self.setup.rules.size + self.setup.rules.overflow;
        let own_room = limit.saturating_sub(pool.leased + pool.idle + pool.dialling);
        let spare = (pool.idle + pool.dialling + own_room.min(server)).max(1);
        let holds = self.held_by_request(own) > 0;
        let (in_pool, of_tenant) = (
            |other: &Claim| other.pool == claim.pool,
            |other: &Claim| other.pool == claim.pool && other.tag.tenant == claim.tag.tenant,
        );
        let ok = |capacity, within: &dyn Fn(&Claim) -> bool| {
            finishes(capacity, within, 1) || (holds && !finishes(capacity, within, 0))
        };
        ok(pool.leased + spare, &in_pool) && ok(self.setup.cap as usize, &of_tenant)
    }
}
