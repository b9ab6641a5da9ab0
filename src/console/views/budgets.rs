//! SHOW BUDGETS: limits and modes from the configuration, outcomes from the book.

use super::{View, row};
use crate::config::{Budgets, Config, PoolRules, Reserve, Share, TenantRule, Timed};
use crate::console::table::{Row, Value, int, text};
use std::collections::BTreeSet;
use std::time::Duration;

pub(super) static BUDGETS: View = View {
    name: "budgets",
    what: "one row a budget and scope: limit, mode, how far it is used, outcomes so far",
    columns: &[
        text("dimension"),
        text("scope"),
        text("limit"),
        text("mode"),
        int("current"),
        int("peak_1h"),
        int("near"),
        int("would"),
        int("enforced"),
        int("ok"),
        int("warn"),
        int("queue"),
        int("reject"),
        int("cancel"),
        int("abort"),
        text("unit"),
        text("what"),
    ],
    quotes: &[],
    rows: |source| {
        let view = source.view();
        let config = source.config();
        let mut rows = Vec::new();
        for limit in limits(&config, &config.budget, &config.tenant_default) {
            let count = |outcome| {
                let matching = view.budgets.iter().filter(|(d, o, _)| *d == limit.dimension && *o == outcome);
                matching.map(|(_, _, count)| count).sum::<u64>()
            };
            let used = view.budget_usage.iter().find(|(dimension, ..)| *dimension == limit.dimension);
            let (current, peak) = used.map_or((0, 0), |(_, current, peak)| (*current, *peak));
            let enforced = ["queue", "reject", "cancel", "abort"].map(count).iter().sum::<u64>();
            rows.push(row![
                limit.dimension,
                "default",
                limit.limit,
                limit.mode,
                current,
                peak,
                count("near"),
                count("would"),
                enforced,
                count("ok"),
                count("warn"),
                count("queue"),
                count("reject"),
                count("cancel"),
                count("abort"),
                limit.unit,
                limit.what,
            ]);
        }
        rows.extend(scoped(&config));
        rows
    },
};

/// Rows of what scopes and tenants have otherwise. What is used and what came of it is counted by
/// dimension, not by scope.
fn scoped(config: &Config) -> Vec<Row> {
    let defaults = limits(config, &config.budget, &config.tenant_default);
    let mut rows = Vec::new();
    let mut add = |scope: &str, own: Vec<Limit>| {
        for (own, default) in own.into_iter().zip(&defaults) {
            if (&own.limit, own.mode) == (&default.limit, default.mode) {
                continue;
            }
            let mut row: Row = row![own.dimension, scope.to_owned(), own.limit, own.mode];
            row.extend((4..BUDGETS.columns.len() - 2).map(|_| Value::Null));
            row.extend(row![own.unit, own.what]);
            rows.push(row);
        }
    };
    for (scope, places) in config.scopes.all() {
        let budgets = config.scopes.lay(&config.budget, places);
        add(&scope, limits(config, &budgets, &config.tenant_default));
    }
    for (name, tenant) in &config.tenants {
        add(&format!("tenant {name}"), limits(config, &config.budget, tenant));
    }
    rows
}

/// One budget as it is configured (budgets.md §2.3).
struct Limit {
    dimension: &'static str,
    what: &'static str,
    unit: &'static str,
    limit: String,
    mode: &'static str,
}

const ALWAYS: &str = "enforce";

fn limits(config: &Config, budget: &Budgets, tenant: &TenantRule) -> Vec<Limit> {
    let row = |dimension, what, unit, limit, mode| Limit { dimension, what, unit, limit, mode };
    let of_time =
        |dimension, what, timed: &Timed| row(dimension, what, "ms", times(timed), timed.mode.name());
    let pool_pins = over_pools(config, |pool| share(pool.max_pins));
    let pins = format!("{} per tenant, {pool_pins} in all", tenant.max_pins);
    let sessions = format!("{} per tenant, {} in all", tenant.max_sessions, config.listen.max_clients);
    let idle = format!(
        "{}{}, {} if nobody waits",
        times(&budget.idle),
        if budget.idle_warn_only_if_waiters { " (warns only if others wait)" } else { "" },
        budget.idle_abort_alone.map_or_else(|| "off".to_owned(), exactly),
    );
    let leases =
        warn_abort(budget.leases_warn.map(|n| n.to_string()), budget.leases_reject.map(|n| n.to_string()));
    let wait = budget.max_wait.map_or_else(|| over_pools(config, |pool| exactly(pool.max_wait)), exactly);
    let queue = over_pools(config, |pool| pool.queue.to_string());
    let overflow = over_pools(config, |pool| match pool.overflow_time {
        Some(time) if pool.overflow > 0 => format!("{} for {}", pool.overflow, exactly(time)),
        _ => pool.overflow.to_string(),
    });
    let (min, weight) = (tenant.min.to_string(), tenant.weight.to_string());
    let concurrent = budget.max_concurrent.to_string();
    let retries = "20% of the leases and 10/s, over 10 s".to_owned();
    let tenant_mode = tenant.mode.name();
    vec![
        row("B1", "leases of a request at once", "leases", concurrent, budget.max_concurrent_mode.name()),
        row("B2", "leases of a request in all", "leases", leases, budget.leases_mode.name()),
        of_time("B3", "database time of a request", &budget.db_time),
        row("B4", "leases of a tenant at once", "leases", share(tenant.max), tenant_mode),
        row("B5", "leases of a tenant before others get their shares", "leases", min, ALWAYS),
        row("B6", "weight of a tenant's share of backend-seconds", "", weight, ALWAYS),
        row("B7", "backends beyond the size, while clients wait", "backends", overflow, ALWAYS),
        row("B8", "waiters of a tenant", "waiters", tenant.queue.to_string(), tenant_mode),
        row("B9", "wait for a lease", "ms", wait, ALWAYS),
        of_time("B10", "age of a transaction", &budget.age),
        row("B11", "idle in transaction", "ms", idle, budget.idle.mode.name()),
        of_time("B12", "time of a statement", &budget.statement),
        of_time("B13", "a result that the client does not take", &budget.stall),
        row("B14", "leases kept for a class, and its most at once", "leases", classes(config), ALWAYS),
        row("B15", "waiters of a pool", "waiters", queue, ALWAYS),
        row("B16", "what Bursar tries again by itself", "tries", retries, ALWAYS),
        row("B17", "leases kept beyond their transaction", "leases", pins, tenant_mode),
        row("B18", "client sessions", "sessions", sessions, tenant_mode),
    ]
}

/// Of every class that has something of its own.
fn classes(config: &Config) -> String {
    let own = config.classes.iter().filter_map(|(name, rule)| {
        let kept = match rule.reserve {
            Reserve::Off => None,
            Reserve::Auto => Some("5% of the pool".to_owned()),
            Reserve::Of(kept) => Some(share(kept)),
        };
        let most = (rule.cap != Share::Percent(100.0)).then(|| share(rule.cap));
        let kept = kept.map(|kept| format!("{kept} kept"));
        let words: Vec<String> = kept.into_iter().chain(most.map(|most| format!("{most} at most"))).collect();
        (!words.is_empty()).then(|| format!("{name}: {}", words.join(", ")))
    });
    own.collect::<Vec<_>>().join("; ")
}

fn share(share: Share) -> String {
    match share {
        Share::Count(count) => count.to_string(),
        Share::Percent(percent) => format!("{percent}% of the pool"),
    }
}

fn times(timed: &Timed) -> String {
    warn_abort(timed.warn.map(exactly), timed.abort.map(exactly))
}

/// `warn 5s, act 60s`
fn warn_abort(warn: Option<String>, act: Option<String>) -> String {
    let word = |limit: Option<String>| limit.unwrap_or_else(|| "off".to_owned());
    format!("warn {}, act {}", word(warn), word(act))
}

/// In the largest unit that needs no rounding, as it would be configured.
fn exactly(duration: Duration) -> String {
    format!("{duration:?}")
}

/// What a pool rule is, over every database; several values are listed.
fn over_pools(config: &Config, rule: impl Fn(&PoolRules) -> String) -> String {
    let databases = config.databases.values().chain(&config.any_database);
    let values: BTreeSet<String> = databases.map(|database| rule(&database.pool)).collect();
    if values.is_empty() {
        return rule(&config.pool);
    }
    values.into_iter().collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rights;
    use crate::console::fake::Fake;

    /// The named columns of a row, as text.
    fn cells(row: usize, names: &[&str]) -> Vec<String> {
        let table = BUDGETS.table(&Fake::planted(), Rights::ALL);
        let at = |name: &&str| table.columns.iter().position(|column| column.name == **name).unwrap();
        names
            .iter()
            .map(|name| table.rows[row][at(name)].to_text().unwrap_or_default().into_owned())
            .collect()
    }

    #[test]
    fn budgets_show_limit_mode_and_outcomes() {
        let names =
            ["dimension", "scope", "limit", "current", "peak_1h", "would", "enforced", "reject", "unit"];
        assert_eq!(cells(0, &names), ["B1", "default", "3", "2", "3", "4", "2", "2", "leases"]);
        assert_eq!(cells(1, &names)[..3], ["B2", "default", "warn 10, act off"]);
        assert_eq!(cells(9, &["dimension", "limit"]), ["B10", "warn 5s, act 60s"]);
        let kept = "batch: 50% of the pool at most; critical: 5% of the pool kept, 50% of the pool at most";
        assert_eq!(cells(13, &["dimension", "limit"]), ["B14", kept]);
    }
}
