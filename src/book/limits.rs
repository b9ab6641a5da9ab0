//! The part of the configuration the book decides by, taken out once per reload.

use crate::config::{Budgets, Config, Leak, Share as Portion, TenantRule};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Tenants (of a pool) and requests remembered while nobody uses them.
pub(super) const REMEMBERED: usize = 10_000;
/// A request without leases and waiters for this long is over (budgets.md §2.1).
pub(super) const REQUEST_IDLE_TTL: Duration = Duration::from_secs(30);
/// A request older than this starts over (budgets.md §2.1).
pub(super) const REQUEST_CAP: Duration = Duration::from_secs(3600);
/// For how long a request that is over can still be asked about.
pub(super) const REQUEST_RECALL: Duration = Duration::from_secs(300);
/// A lease idle in transaction for this long makes no progress (B1, budgets.md §2.3).
pub(super) const STUCK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Limits {
    pub(super) max_backends: usize,
    pub(super) connect_parallel: usize,
    pub(super) budget: Budgets,
    pub(super) leak: Leak,
    tenant_default: TenantRule,
    tenants: BTreeMap<String, TenantRule>,
}

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        let mut budget = config.budget.clone();
        budget.max_concurrent = budget.max_concurrent.max(1);
        Limits {
            max_backends: config.server.max_backends,
            connect_parallel: config.server.connect_parallel.max(1),
            budget,
            leak: config.leak.clone(),
            tenant_default: config.tenant_default.clone(),
            tenants: config.tenants.clone(),
        }
    }

    pub(super) fn tenant(&self, name: &str) -> &TenantRule {
        self.tenants.get(name).unwrap_or(&self.tenant_default)
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
