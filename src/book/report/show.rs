//! The book's rows, copied as they stand. Sorted by what a person looks for, so that two looks at
//! the same book read alike.

use super::view::{LeaseView, PoolView, TenantView, TimesView, View, WaiterView};
use crate::book::pool::Place;
use crate::book::share::Share;
use crate::book::{Book, PoolId};
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
            requests: requests.into_iter().map(|(id, request)| request.row(id, &self.limits, now)).collect(),
            leases: self.lease_rows(),
            waiters,
            leaks: self.cases.rows(),
            budgets: self.tally.rows(),
            budget_usage: self.usage_rows(now),
            rejections: self.rejection_rows(),
            leak_totals: self.cases.totals(),
            deadlocks: self.deadlocks.rows(),
            deadlock_totals: self.deadlocks.totals(),
            pins: self.pins.clone(),
            request_ends: self.endings.rows(),
            unknown_classes: self.classes.unknown,
            retry_storms: self.storms.total(),
            leases_peak: self.leases_peak,
            upstreams: self.upstream_rows(now),
        }
    }

    /// Call sites, the one first whose leases did nothing for longest (at most 2,000). Apart from the
    /// rest, which is asked for often.
    #[must_use]
    pub fn callsites(&self) -> Vec<super::view::CallSiteView> {
        self.callsites.views()
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
                dialling: pool.census.coming(),
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
                deferred: pool.sofar.deferred,
                times: self.class_rows(pool),
                leases_peak: pool.sofar.leases_peak as u64,
            })
            .collect()
    }

    fn class_rows(&self, pool: &crate::book::pool::Pool) -> Vec<TimesView> {
        let row = |(times, class): (&crate::book::pool::Times, &crate::book::class::Class)| TimesView {
            class: class.name.clone(),
            waited: times.waited,
            wait: times.wait.counts(),
            held: times.held,
            hold: times.hold.counts(),
        };
        let used = pool.sofar.times.iter().zip(self.classes.all()).map(row);
        used.filter(|times| times.wait.iter().any(|count| *count > 0)).collect()
    }

    fn tenant_rows(&self, now: Instant, oldest: &Oldest) -> Vec<TenantView> {
        let recent = self.recent(now);
        let row = |at: u32, tenant: std::sync::Arc<str>| {
            let share = &self.shares[at];
            let (had, all, weights) = recent.of(at, share.pool);
            let lag = share.flows().first().map_or(0, |flow| {
                let v_now = self.pools[share.pool.0 as usize].parts.of(flow.class).v_now;
                let millis =
                    |units| i64::try_from(crate::book::turns::span(units).as_millis()).unwrap_or(i64::MAX);
                millis(v_now.saturating_sub(flow.v)) - millis(flow.v.saturating_sub(v_now))
            });
            let part = |of: f64, all: f64| if all > 0.0 { of / all } else { 0.0 };
            TenantView {
                sessions: self.sessions.get(&tenant).copied().unwrap_or(0),
                tenant,
                pool: share.pool,
                weight: share.weight,
                min: share.min,
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
                vtime_lag_ms: lag,
                lease_1m: had,
                share_1m: part(had.as_secs_f64(), all.as_secs_f64()),
                share_due_1m: if counts(share, had) {
                    part(share.weight.into(), weights as f64)
                } else {
                    0.0
                },
            }
        };
        let mut rows: Vec<_> = self.shares.names().into_iter().map(|(at, name)| row(at, name)).collect();
        rows.sort_unstable_by(|a, b| (a.pool, &a.tenant).cmp(&(b.pool, &b.tenant)));
        rows
    }

    /// Who had how much of the last minute.
    fn recent(&self, now: Instant) -> Recent {
        let mut recent = Recent::default();
        for (at, _) in self.shares.names() {
            recent.shares.insert(at, self.shares[at].minute.sum(now));
        }
        for lease in self.leases.values() {
            *recent.shares.entry(lease.who.share).or_default() +=
                now.saturating_duration_since(lease.since).saturating_sub(lease.counted);
        }
        for (&at, &had) in &recent.shares {
            let share = &self.shares[at];
            let pool = recent.pools.entry(share.pool).or_default();
            pool.0 += had;
            pool.1 += if counts(share, had) { u64::from(share.weight) } else { 0 };
        }
        recent
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
        waiters.sort_unstable_by_key(|waiter| (waiter.claim.pool, waiter.turn));
        let row = |waiter: &crate::book::turns::Waiter<W>| {
            oldest.saw(waiter.claim.pool, waiter.who.share, waiter.since);
            let reason = self.reason(waiter);
            WaiterView {
                session: waiter.claim.session,
                pool: waiter.claim.pool,
                tag: waiter.claim.tag.clone(),
                since: waiter.since,
                deadline: waiter.deadline,
                class: self.classes.get(waiter.who.class).name.clone(),
                reason,
                continues: waiter.continues(),
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

/// Backend-seconds of the last minute: by tenant, and by pool with the weights of those who had some or
/// wait for it.
#[derive(Default)]
struct Recent {
    shares: HashMap<u32, Duration>,
    pools: HashMap<PoolId, (Duration, u64)>,
}

impl Recent {
    /// What this tenant had, what its pool had, and the weights there.
    fn of(&self, share: u32, pool: PoolId) -> (Duration, Duration, u64) {
        let (all, weights) = self.pools.get(&pool).copied().unwrap_or_default();
        (self.shares.get(&share).copied().unwrap_or_default(), all, weights)
    }
}

/// Whether a tenant is one of those who share.
fn counts(share: &Share, had: Duration) -> bool {
    had > Duration::ZERO || share.waiting > 0
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
