//! Which tenants have series of their own (budgets.md §8.2, "Cardinality").
//!
//! The ten with the most lease-seconds do, chosen anew every ten minutes; the others share
//! `tenant="_other"`. Counters must never go back, so `_other` gathers what happened to each tenant
//! *while* it was among the others instead of subtracting totals: a tenant that rises or falls moves
//! nothing that was already told.

use crate::book::PoolId;
use crate::book::view::TenantView;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tenants with series of their own.
pub(super) const TOP: usize = 10;
/// How long a choice stands.
const STANDS: Duration = Duration::from_secs(600);
/// The label of all others.
pub(super) const OTHER: &str = "_other";

/// What is counted of a tenant in a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Totals {
    pub(super) leases: f64,
    pub(super) held: f64,
    pub(super) active: f64,
    pub(super) waited: f64,
    pub(super) rejections: f64,
}

impl Totals {
    fn of(row: &TenantView) -> Totals {
        Totals {
            leases: row.leases_total as f64,
            held: row.held.as_secs_f64(),
            active: row.active.as_secs_f64(),
            waited: row.waited.as_secs_f64(),
            rejections: row.rejections as f64,
        }
    }

    /// Adds what came since `last`; all of it if the row was forgotten and began again.
    fn gather(&mut self, now: &Totals, last: &Totals) {
        let since = |now: f64, last: f64| if now >= last { now - last } else { now };
        self.leases += since(now.leases, last.leases);
        self.held += since(now.held, last.held);
        self.active += since(now.active, last.active);
        self.waited += since(now.waited, last.waited);
        self.rejections += since(now.rejections, last.rejections);
    }
}

/// One tenant, or all others, in one pool.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub(super) pool: PoolId,
    pub(super) tenant: Arc<str>,
    pub(super) totals: Totals,
    pub(super) in_use: u64,
    pub(super) queue: u64,
}

/// The choice, and what the others have gathered.
#[derive(Debug, Default)]
pub(super) struct TopTenants {
    chosen: HashSet<Arc<str>>,
    until: Option<Instant>,
    /// What was last seen of each row that has no series of its own.
    last: HashMap<(PoolId, Arc<str>), Totals>,
    others: HashMap<PoolId, Totals>,
}

impl TopTenants {
    /// The series to show now. Called at every scrape.
    pub(super) fn series(&mut self, now: Instant, rows: &[TenantView]) -> Vec<Series> {
        self.choose(now, rows);
        let mut series = Vec::new();
        let mut others: HashMap<PoolId, (u64, u64)> = HashMap::new();
        let mut seen = HashMap::new();
        for row in rows {
            let totals = Totals::of(row);
            if self.chosen.contains(&row.tenant) {
                series.push(Series {
                    pool: row.pool,
                    tenant: Arc::clone(&row.tenant),
                    totals,
                    in_use: row.leased.into(),
                    queue: row.waiting.into(),
                });
            } else {
                let last = self.last.get(&(row.pool, Arc::clone(&row.tenant))).copied().unwrap_or_default();
                self.others.entry(row.pool).or_default().gather(&totals, &last);
                let gauges = others.entry(row.pool).or_default();
                *gauges = (gauges.0 + u64::from(row.leased), gauges.1 + u64::from(row.waiting));
            }
            // Kept for the chosen too: what they did as such is not told again when they fall.
            seen.insert((row.pool, Arc::clone(&row.tenant)), totals);
        }
        self.last = seen;
        series.extend(self.others.iter().map(|(pool, totals)| {
            let (in_use, queue) = others.get(pool).copied().unwrap_or_default();
            Series { pool: *pool, tenant: OTHER.into(), totals: *totals, in_use, queue }
        }));
        series
    }

    fn choose(&mut self, now: Instant, rows: &[TenantView]) {
        let stands = self.until.is_some_and(|until| now < until);
        if stands && self.chosen.len() >= TOP {
            return;
        }
        if !stands {
            self.chosen.clear();
            self.until = Some(now + STANDS);
        }
        let mut held: HashMap<&Arc<str>, Duration> = HashMap::new();
        for row in rows.iter().filter(|row| !self.chosen.contains(&row.tenant) && *row.tenant != *OTHER) {
            *held.entry(&row.tenant).or_default() += row.held;
        }
        let mut ranked: Vec<_> = held.into_iter().collect();
        ranked.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        let free = TOP - self.chosen.len();
        self.chosen.extend(ranked.into_iter().take(free).map(|(tenant, _)| Arc::clone(tenant)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn row(tenant: &str, held: u64) -> TenantView {
        TenantView {
            tenant: tenant.into(),
            pool: PoolId(0),
            weight: 1,
            min: 0,
            cap: 2,
            leased: 1,
            waiting: 2,
            oldest_wait: Duration::ZERO,
            leases_total: held,
            held: Duration::from_secs(held),
            active: Duration::ZERO,
            waited: Duration::ZERO,
            rejections: 0,
            sessions: 1,
            vtime_lag_ms: 0,
            lease_1m: Duration::ZERO,
            share_1m: 0.0,
            share_due_1m: 0.0,
        }
    }

    fn held(series: &[Series]) -> BTreeMap<String, f64> {
        series.iter().map(|series| (series.tenant.to_string(), series.totals.held)).collect()
    }

    #[test]
    fn the_greatest_have_their_own_series_and_the_rest_share_one() {
        let rows: Vec<_> = (0..25).map(|n| row(&format!("t{n:02}"), n)).collect();
        let series = TopTenants::default().series(Instant::now(), &rows);
        assert_eq!(series.len(), TOP + 1);
        let held = held(&series);
        assert_eq!(held["t24"], 24.0);
        assert_eq!(held["t15"], 15.0);
        assert_eq!(held[OTHER], f64::from((0..15).sum::<u32>()));
        let others = series.iter().find(|series| &*series.tenant == OTHER).unwrap();
        assert_eq!((others.in_use, others.queue), (15, 30));
    }

    #[test]
    fn no_counter_goes_back_when_tenants_rise_fall_or_are_forgotten() {
        let (mut top, start) = (TopTenants::default(), Instant::now());
        let mut rows: Vec<_> = (0..12).map(|n| row(&format!("t{n:02}"), 100 - n)).collect();
        assert_eq!(held(&top.series(start, &rows))[OTHER], 90.0 + 89.0);
        // t11 overtakes everybody, but the choice stands for ten minutes.
        rows[11] = row("t11", 589);
        assert_eq!(held(&top.series(start + Duration::from_secs(1), &rows))[OTHER], 679.0);
        // It rises, t09 falls; t10 did nothing.
        let later = held(&top.series(start + STANDS, &rows));
        assert_eq!((later["t11"], later[OTHER], later.contains_key("t09")), (589.0, 679.0, false));
        // What t09 did as a chosen one is not told again; what it does from now on is.
        rows[9] = row("t09", 91 + 5);
        assert_eq!(held(&top.series(start + STANDS, &rows))[OTHER], 684.0);
        // The book forgot t10 and met it again.
        rows[10] = row("t10", 2);
        assert_eq!(held(&top.series(start + STANDS, &rows))[OTHER], 686.0);
    }

    #[test]
    fn free_places_are_taken_at_once() {
        let (mut top, now) = (TopTenants::default(), Instant::now());
        assert_eq!(top.series(now, &[row("a", 1)]).len(), 1);
        assert_eq!(held(&top.series(now, &[row("a", 1), row("b", 1)])).len(), 2);
        assert_eq!(top.series(now, &[]), []);
    }
}
