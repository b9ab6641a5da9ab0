//! PgBouncer's statistics by database: STATS, STATS_TOTALS, STATS_AVERAGES and TOTALS.
//!
//! Times are in microseconds, as there. Averages are since start: per second for counts and bytes,
//! per transaction, statement and lease for times; PgBouncer's are over its `stats_period`.

use super::{View, row};
use crate::console::source::Source;
use crate::console::table::{Row, Value, int, text};
use std::collections::BTreeMap;
use std::time::Duration;

/// PgBouncer's twelve numbers, in its order. Parses and binds are those of shared prepared statements, as
/// there: in session mode, and with `max_prepared = 0`, they stay 0.
#[derive(Debug, Clone, Copy, Default)]
struct Numbers {
    assignments: u64,
    transactions: u64,
    statements: u64,
    received: u64,
    sent: u64,
    held: Duration,
    active: Duration,
    waited: Duration,
    client_parses: u64,
    server_parses: u64,
    binds: u64,
    logins: u64,
}

const NAMES: [&str; 12] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "bytes_received",
    "bytes_sent",
    "xact_time",
    "query_time",
    "wait_time",
    "client_parse_count",
    "server_parse_count",
    "bind_count",
    "client_login_count",
];

impl Numbers {
    fn totals(&self) -> Row {
        row![
            self.assignments,
            self.transactions,
            self.statements,
            self.received,
            self.sent,
            Value::micros(self.held),
            Value::micros(self.active),
            Value::micros(self.waited),
            self.client_parses,
            self.server_parses,
            self.binds,
            self.logins,
        ]
    }

    fn averages(&self, uptime: Duration) -> Row {
        let seconds = uptime.as_secs().max(1);
        let mean = |sum: Duration, count: u64| {
            Value::from(u64::try_from(sum.as_micros() / u128::from(count.max(1))).unwrap_or(u64::MAX))
        };
        row![
            self.assignments / seconds,
            self.transactions / seconds,
            self.statements / seconds,
            self.received / seconds,
            self.sent / seconds,
            mean(self.held, self.transactions),
            mean(self.active, self.statements),
            mean(self.waited, self.assignments),
            self.client_parses / seconds,
            self.server_parses / seconds,
            self.binds / seconds,
            self.logins / seconds,
        ]
    }

    fn add(&mut self, other: &Numbers) {
        self.assignments += other.assignments;
        self.transactions += other.transactions;
        self.statements += other.statements;
        self.received += other.received;
        self.sent += other.sent;
        self.held += other.held;
        self.active += other.active;
        self.waited += other.waited;
        self.client_parses += other.client_parses;
        self.server_parses += other.server_parses;
        self.binds += other.binds;
        self.logins += other.logins;
    }
}

fn by_database(source: &dyn Source) -> BTreeMap<String, Numbers> {
    let mut databases: BTreeMap<String, Numbers> = BTreeMap::new();
    for pool in source.view().pools {
        databases.entry(pool.database.to_string()).or_default().add(&Numbers {
            assignments: pool.leases_total,
            transactions: pool.usage.transactions,
            statements: pool.usage.statements,
            received: pool.usage.bytes_in,
            sent: pool.usage.bytes_out,
            held: pool.held,
            active: pool.usage.active,
            waited: pool.waited,
            client_parses: pool.usage.client_parses,
            server_parses: pool.usage.server_parses,
            binds: pool.usage.binds,
            logins: pool.logins,
        });
    }
    databases
}

fn uptime(source: &dyn Source) -> Duration {
    source.now().saturating_duration_since(source.started())
}

fn rows(source: &dyn Source, numbers: impl Fn(&Numbers) -> Row) -> Vec<Row> {
    let row = |(name, sums): (String, Numbers)| {
        let mut row = row![name];
        row.extend(numbers(&sums));
        row
    };
    by_database(source).into_iter().map(row).collect()
}

pub(super) static STATS: View = View {
    name: "stats",
    what: "totals and averages by database; times in microseconds",
    columns: &[
        text("database"),
        int("total_server_assignment_count"),
        int("total_xact_count"),
        int("total_query_count"),
        int("total_received"),
        int("total_sent"),
        int("total_xact_time"),
        int("total_query_time"),
        int("total_wait_time"),
        int("total_client_parse_count"),
        int("total_server_parse_count"),
        int("total_bind_count"),
        int("total_client_login_count"),
        int("avg_server_assignment_count"),
        int("avg_xact_count"),
        int("avg_query_count"),
        int("avg_recv"),
        int("avg_sent"),
        int("avg_xact_time"),
        int("avg_query_time"),
        int("avg_wait_time"),
        int("avg_client_parse_count"),
        int("avg_server_parse_count"),
        int("avg_bind_count"),
        int("avg_client_login_count"),
    ],
    quotes: &[],
    rows: |source| {
        let uptime = uptime(source);
        rows(source, |sums| [sums.totals(), sums.averages(uptime)].concat())
    },
};

pub(super) static STATS_TOTALS: View = View {
    name: "stats_totals",
    what: "totals by database",
    columns: &[
        text("database"),
        int(NAMES[0]),
        int(NAMES[1]),
        int(NAMES[2]),
        int(NAMES[3]),
        int(NAMES[4]),
        int(NAMES[5]),
        int(NAMES[6]),
        int(NAMES[7]),
        int(NAMES[8]),
        int(NAMES[9]),
        int(NAMES[10]),
        int(NAMES[11]),
    ],
    quotes: &[],
    rows: |source| rows(source, Numbers::totals),
};

pub(super) static STATS_AVERAGES: View = View {
    name: "stats_averages",
    what: "averages by database, since start",
    columns: &[
        text("database"),
        int(NAMES[0]),
        int(NAMES[1]),
        int(NAMES[2]),
        int(NAMES[3]),
        int(NAMES[4]),
        int(NAMES[5]),
        int(NAMES[6]),
        int(NAMES[7]),
        int("avg_client_parse_count"),
        int("avg_server_parse_count"),
        int("avg_bind_count"),
        int("avg_client_login_count"),
    ],
    quotes: &[],
    rows: |source| {
        let uptime = uptime(source);
        rows(source, |sums| sums.averages(uptime))
    },
};

pub(super) static TOTALS: View = View {
    name: "totals",
    what: "totals and averages over all databases",
    columns: &[text("name"), int("value")],
    quotes: &[],
    rows: |source| {
        let mut sums = Numbers::default();
        by_database(source).values().for_each(|numbers| sums.add(numbers));
        let named = |prefix: &'static str, values: Row| {
            let rows = NAMES.iter().zip(values);
            rows.map(move |(name, value)| row![format!("{prefix}{name}"), value]).collect::<Vec<_>>()
        };
        [named("total_", sums.totals()), named("avg_", sums.averages(uptime(source)))].concat()
    },
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rights;
    use crate::console::fake::Fake;

    #[test]
    fn totals_add_up_over_pools_and_averages_divide() {
        let rows = STATS.table(&Fake::planted(), Rights::ALL).rows;
        let texts: Vec<_> =
            rows[0].iter().map(|value| value.to_text().unwrap_or_default().into_owned()).collect();
        // Two pools of database "app": 1,000 + 500 leases, and so on; up for 100 s.
        assert_eq!(
            texts[..9],
            ["app", "1500", "1400", "4200", "300000", "6000000", "70000000", "42000000", "3000000"]
        );
        assert_eq!(texts[9..13], ["600", "30", "12000", "9"]);
        assert_eq!(texts[13..21], ["15", "14", "42", "3000", "60000", "50000", "10000", "2000"]);
        assert_eq!(texts[21..25], ["6", "0", "120", "0"]);
        let rows = TOTALS.table(&Fake::planted(), Rights::ALL).rows;
        assert_eq!(rows.len(), 24);
        assert_eq!(rows[1], row!["total_xact_count", 1400]);
        assert_eq!(rows[13], row!["avg_xact_count", 14]);
    }
}
