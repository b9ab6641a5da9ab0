//! The book's rows, copied as they stand. Sorted by what a person looks for, so that two looks at
//! the same book read alike.

use super::pool::Place;
use super::view::{LeaseView, PoolView, TenantView, View, WaiterView};
use super::{Book, PoolId};
use std::collections::HashMap;
use std::time::{Duration, Instant};

impl<B, W> Book<B, W> {
    /// Everything the book shows. Costs a walk over all of it: for scrapes and consoles.
    #[must_use]
    pub fn view(&self, now: Instant) -> View {
        let mut oldest = Oldest::default();
        let waiters = self.waiter_rows(&mut oldest);
        let mut requests: Vec<_> =
            self.requests.iter().filter(|(_, request)| !request.forgotten(now)).collect();
        requests.sort_unstable_by(|a, b| a.0.cmp(b.0));
        View {
            pools: self.pool_rows(now, &oldest),
            tenants: self.tenant_rows(now, &oldest),
            requests: requests.into_iter().map(|(id, request)| request.row(id)).collect(),
            leases: self.lease_rows(),
            waiters,
            leaks: self.cases.rows(),
            budgets: self.tally.rows(),
            rejections: self.rejection_rows(),
            leak_totals: self.cases.totals(),
            pins: self.pins.clone(),
            leases_peak: self.leases_peak,
        }
    }

    fn pool_rows(&self, now: Instant, oldest: &Oldest) -> Vec<PoolView> {
        let pools = self.pools.iter().enumerate().map(|(at, pool)| (PoolId(at as u32), pool));
        pools
            .map(|(id, pool)| PoolView {
                id,
                database: pool.database.clone(),
                user: pool.user.clone(),
                size: pool.rules.size,
                leased: pool.census.at(Place::Leased),
                idle: pool.census.at(Place::Idle),
                dialling: pool.census.at(Place::Dialling),
                leaving: pool.census.at(Place::Leaving),
                waiting: pool.waiting,
                oldest_wait: oldest
                    .pools
                    .get(&id)
                    .map_or(Duration::ZERO, |at| now.saturating_duration_since(*at)),
                paused: pool.paused,
                logins: pool.sofar.logins,
                leases_total: pool.sofar.leases,
                usage: pool.sofar.usage,
                held: pool.sofar.held,
                waited: pool.sofar.waited,
                timeouts: pool.sofar.timeouts,
                untagged: pool.sofar.untagged,
                wait: pool.sofar.wait.counts(),
                hold: pool.sofar.hold.counts(),
                leases_peak: pool.sofar.leases_peak as u64,
            })
            .collect()
    }

    fn tenant_rows(&self, now: Instant, oldest: &Oldest) -> Vec<TenantView> {
        let row = |at: u32, tenant: std::sync::Arc<str>| {
            let share = &self.shares[at];
            TenantView {
                sessions: self.sessions.get(&tenant).copied().unwrap_or(0),
                tenant,
                pool: share.pool,
                cap: share.cap,
                leased: share.leased,
                waiting: share.waiting,
                oldest_wait: oldest
                    .shares
                    .get(&at)
                    .map_or(Duration::ZERO, |at| now.saturating_duration_since(*at)),
                leases_total: share.leases_total,
                held: share.held,
                active: share.active,
                waited: share.waited,
                rejections: share.rejections,
            }
        };
        let mut rows: Vec<_> = self.shares.names().into_iter().map(|(at, name)| row(at, name)).collect();
        rows.sort_unstable_by(|a, b| (a.pool, &a.tenant).cmp(&(b.pool, &b.tenant)));
        rows
    }

    fn lease_rows(&self) -> Vec<LeaseView> {
        let rows = self.leases.iter().map(|(&id, lease)| LeaseView {
            id,
            session: lease.session,
            pool: lease.pool,
            tag: lease.tag.clone(),
            since: lease.since,
        });
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable_by_key(|row| row.id);
        rows
    }

    fn waiter_rows(&self, oldest: &mut Oldest) -> Vec<WaiterView> {
        let mut waiters: Vec<_> = self.waiters.values().collect();
        waiters.sort_unstable_by_key(|waiter| (waiter.claim.pool, waiter.order));
        let row = |waiter: &super::queue::Waiter<W>| {
            oldest.saw(waiter.claim.pool, waiter.who.share, waiter.since);
            let reason = if waiter.line == super::queue::Line::Request {
                "request_cap"
            } else if self.pools[waiter.claim.pool.0 as usize].paused {
                "paused"
            } else if self.shares[waiter.who.share].room() == 0 {
                "tenant_cap"
            } else {
                "pool_full"
            };
            WaiterView {
                session: waiter.claim.session,
                pool: waiter.claim.pool,
                tag: waiter.claim.tag.clone(),
                since: waiter.since,
                deadline: waiter.deadline,
                reason,
            }
        };
        waiters.into_iter().map(row).collect()
    }

    fn rejection_rows(&self) -> Vec<(PoolId, &'static str, u64)> {
        let pools = self.pools.iter().enumerate();
        pools
            .flat_map(|(at, pool)| {
                let rows = pool.sofar.rejections.iter();
                rows.map(move |(&code, &count)| (PoolId(at as u32), code, count))
            })
            .collect()
    }
}

/// Since when the oldest waiter waits.
#[derive(Default)]
struct Oldest {
    pools: HashMap<PoolId, Instant>,
    shares: HashMap<u32, Instant>,
}

impl Oldest {
    fn saw(&mut self, pool: PoolId, share: u32, since: Instant) {
        let older = |at: &mut Instant| *at = since.min(*at);
        older(self.pools.entry(pool).or_insert(since));
        older(self.shares.entry(share).or_insert(since));
    }
}
