//! The part of the configuration the book decides by, taken out once per reload.

use crate::config::{
    BreakerRules, Budgets, Config, Leak, ParkMode, Places, Requests, Scope, Scopes, Share as Portion,
    TenantRule,
};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Tenants (of a pool) and requests remembered while nobody uses them.
pub(super) const REMEMBERED: usize = 10_000;
/// For how long a request that is over can still be asked about.
pub(super) const REQUEST_RECALL: Duration = Duration::from_secs(300);
/// For how long the id of a request is refused in whose name isolation was violated again and again
/// (budgets.md §2.4).
pub(super) const QUARANTINE: Duration = Duration::from_secs(60);
/// A lease idle in transaction for this long makes no progress (B1, budgets.md §2.3).
pub(super) const STUCK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Limits {
    pub(super) max_backends: usize,
    pub(super) connect_parallel: usize,
    pub(super) breaker: BreakerRules,
    pub(super) leak: Leak,
    pub(super) request: Requests,
    /// Some transactions are parked.
    pub(super) parks: bool,
    scopes: Scopes,
    /// No budget is for part of the work only.
    alike: bool,
    /// Budgets by number; the first hold for everybody. As many as there are combinations of configured
    /// scopes that somebody was in.
    budgets: Vec<Budgets>,
    known: HashMap<Places, u32>,
    tenant_default: TenantRule,
    tenants: BTreeMap<String, TenantRule>,
}

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        let mut limits = Limits {
            max_backends: config.server.max_backends,
            connect_parallel: config.server.connect_parallel.max(1),
            breaker: config.breaker,
            leak: config.leak.clone(),
            request: config.request,
            parks: config.budget.parking.mode == ParkMode::Enforce || config.scopes.park(),
            alike: config.scopes.is_empty(),
            scopes: config.scopes.clone(),
            budgets: Vec::new(),
            known: HashMap::new(),
            tenant_default: config.tenant_default.clone(),
            tenants: config.tenants.clone(),
        };
        limits.add(config.budget.clone());
        limits
    }

    fn add(&mut self, mut budgets: Budgets) -> u32 {
        budgets.max_concurrent = budgets.max_concurrent.max(1);
        self.budgets.push(budgets);
        (self.budgets.len() - 1) as u32
    }

    /// The budgets of this number.
    pub(super) fn budgets(&self, at: u32) -> &Budgets {
        &self.budgets[at as usize]
    }

    /// The number of the budgets that hold for this work.
    #[inline]
    pub(super) fn number(&mut self, scope: &Scope<'_>) -> u32 {
        if self.alike { 0 } else { self.number_within(scope) }
    }

    fn number_within(&mut self, scope: &Scope<'_>) -> u32 {
        let places = self.scopes.places(scope);
        if let Some(&at) = self.known.get(&places) {
            return at;
        }
        let at = self.add(self.scopes.lay(&self.budgets[0], places));
        self.known.insert(places, at);
        at
    }

    pub(super) fn tenant(&self, name: &str) -> &TenantRule {
        self.tenants.get(name).unwrap_or(&self.tenant_default)
    }
}

impl Limits {
    /// Whether the configuration names this tenant.
    pub(super) fn promises(&self, tenant: &str) -> bool {
        self.tenants.contains_key(tenant)
    }

    /// Σ minimums of the tenants it names (B5).
    pub(super) fn promised(&self) -> u32 {
        self.tenants.values().fold(0, |sum, rule| rule.min.saturating_add(sum))
    }
}

/// B4 in leases: at least one, or the tenant could do nothing at all.
pub(super) fn cap(rule: &TenantRule, size: usize) -> u32 {
    part(rule.max, size)
}

/// A share of a pool in leases, rounded up, at least one.
pub(super) fn part(share: Portion, size: usize) -> u32 {
    match share {
        Portion::Count(count) => count.max(1),
        // `as` saturates, so no percentage can overflow.
        Portion::Percent(percent) => ((size as f64 * percent / 100.0).ceil() as u32).max(1),
    }
}

/// `at + by`; a duration too long for the clock means never, for which thirty years will do.
pub(super) fn later(at: Instant, by: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(30 * 365 * 86_400);
    at.checked_add(by).unwrap_or_else(|| at + NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;

    #[test]
    fn a_share_is_rounded_up_and_never_nothing() {
        let rule = |max| TenantRule { max, mode: Mode::Enforce, ..TenantRule::default() };
        assert_eq!(cap(&rule(Portion::Percent(50.0)), 17), 9);
        assert_eq!(cap(&rule(Portion::Percent(1.0)), 20), 1);
        assert_eq!(cap(&rule(Portion::Percent(0.0)), 20), 1);
        assert_eq!(cap(&rule(Portion::Percent(100.0)), 20), 20);
        assert_eq!(cap(&rule(Portion::Count(3)), 20), 3);
        assert_eq!(cap(&rule(Portion::Count(0)), 20), 1);
    }
}
