//! SHOW BUDGETS: limits and modes from the configuration, outcomes from the book.

use super::{View, row};
use crate::config::{Config, Mode, PoolRules, Share};
use crate::console::table::{int, text};
use std::collections::BTreeSet;
use std::time::Duration;

pub(super) static BUDGETS: View = View {
    name: "budgets",
    what: "one row a budget: limit, mode, outcomes so far",
    columns: &[
        text("dimension"),
        text("scope"),
        text("limit"),
        text("mode"),
        int("near"),
        int("would"),
        int("enforced"),
        int("ok"),
        int("warn"),
        int("queue"),
        int("reject"),
        int("cancel"),
        int("abort"),
    ],
    rows: |source| {
        let counts = source.view().budgets;
        let row = |(dimension, scope, limit, mode): (&'static str, &'static str, String, &'static str)| {
            let count = |outcome| {
                let matching = counts.iter().filter(|(d, o, _)| *d == dimension && *o == outcome);
                matching.map(|(_, _, count)| count).sum::<u64>()
            };
            row![
                dimension,
                scope,
                limit,
                mode,
                count("near"),
                count("would"),
                count("queue") + count("reject") + count("cancel") + count("abort"),
                count("ok"),
                count("warn"),
                count("queue"),
                count("reject"),
                count("cancel"),
                count("abort"),
            ]
        };
        limits(&source.config()).into_iter().map(row).collect()
    },
};

/// Dimension, what it counts, its limits in words, and its mode (budgets.md §2.3).
fn limits(config: &Config) -> Vec<(&'static str, &'static str, String, &'static str)> {
    const ALWAYS: &str = "enforce";
    let budget = &config.budget;
    let tenant = &config.tenant_default;
    let share = match tenant.max {
        Share::Count(count) => count.to_string(),
        Share::Percent(percent) => format!("{percent}% of the pool"),
    };
    let pins = format!(
        "{} per tenant, {} in all",
        tenant.max_pins,
        over_pools(config, |pool| match pool.max_pins {
            Share::Count(count) => count.to_string(),
            Share::Percent(percent) => format!("{percent}% of the pool"),
        })
    );
    let sessions = format!("{} per tenant, {} in all", tenant.max_sessions, config.listen.max_clients);
    let idle = format!(
        "{}{}, {} if nobody waits",
        warn_abort(budget.idle.warn.map(seconds), budget.idle.abort.map(seconds)),
        if budget.idle_warn_only_if_waiters { " (warns only if others wait)" } else { "" },
        budget.idle_abort_alone.map_or_else(|| "off".to_owned(), seconds),
    );
    vec![
        (
            "B1",
            "leases of a request at once",
            budget.max_concurrent.to_string(),
            mode(budget.max_concurrent_mode),
        ),
        (
            "B2",
            "leases of a request in all",
            warn_abort(
                budget.leases_warn.map(|n| n.to_string()),
                budget.leases_reject.map(|n| n.to_string()),
            ),
            mode(budget.leases_mode),
        ),
        (
            "B3",
            "database time of a request",
            warn_abort(budget.db_time.warn.map(seconds), budget.db_time.abort.map(seconds)),
            mode(budget.db_time.mode),
        ),
        ("B4", "leases of a tenant at once", share, mode(tenant.mode)),
        ("B8", "waiters of a tenant", tenant.queue.to_string(), mode(tenant.mode)),
        ("B9", "wait for a lease", over_pools(config, |pool| seconds(pool.max_wait)), ALWAYS),
        (
            "B10",
            "age of a transaction",
            warn_abort(budget.age.warn.map(seconds), budget.age.abort.map(seconds)),
            mode(budget.age.mode),
        ),
        ("B11", "idle in transaction", idle, mode(budget.idle.mode)),
        (
            "B12",
            "time of a statement",
            warn_abort(budget.statement.warn.map(seconds), budget.statement.abort.map(seconds)),
            mode(budget.statement.mode),
        ),
        (
            "B13",
            "a result that the client does not take",
            warn_abort(budget.stall.warn.map(seconds), budget.stall.abort.map(seconds)),
            mode(budget.stall.mode),
        ),
        ("B15", "waiters of a pool", over_pools(config, |pool| pool.queue.to_string()), ALWAYS),
        (
            "B16",
            "what Bursar tries again by itself",
            "20% of the leases and 10/s, over 10 s".to_owned(),
            ALWAYS,
        ),
        ("B17", "leases kept beyond their transaction", pins, mode(tenant.mode)),
        ("B18", "client sessions", sessions, mode(tenant.mode)),
    ]
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Observe => "observe",
        Mode::Warn => "warn",
        Mode::Enforce => "enforce",
    }
}

/// `warn 5s, act 60s`
fn warn_abort(warn: Option<String>, act: Option<String>) -> String {
    let word = |limit: Option<String>| limit.unwrap_or_else(|| "off".to_owned());
    format!("warn {}, act {}", word(warn), word(act))
}

fn seconds(duration: Duration) -> String {
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
    use crate::console::fake::Fake;

    /// The named columns of a row, as text.
    fn cells(row: usize, names: &[&str]) -> Vec<String> {
        let table = BUDGETS.table(&Fake::planted());
        let at = |name: &&str| table.columns.iter().position(|column| column.name == **name).unwrap();
        names
            .iter()
            .map(|name| table.rows[row][at(name)].to_text().unwrap_or_default().into_owned())
            .collect()
    }

    #[test]
    fn budgets_show_limit_mode_and_outcomes() {
        let names = ["dimension", "limit", "near", "would", "enforced", "reject"];
        assert_eq!(cells(0, &names), ["B1", "3", "0", "4", "2", "2"]);
        assert_eq!(cells(1, &names)[..2], ["B2", "warn 10, act off"]);
        assert_eq!(cells(6, &["dimension", "limit"]), ["B10", "warn 5s, act 60s"]);
    }
}
