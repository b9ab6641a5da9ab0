//! The views: one function each from the [`Source`] to rows, shared by the console and HTTP.
//!
//! PgBouncer's views keep PgBouncer 1.25's columns in its order, Bursar's extras last; what Bursar
//! does not have is 0 or empty there. In Bursar's own views what does not exist is NULL.

mod advice;
mod budgets;
mod bursar;
mod deadlocks;
mod pgbouncer;
mod prepared;
mod requests;
mod sockets;
mod stats;
mod upstreams;

pub(super) use requests::{FUNCTION_COLUMNS, request_row};

use super::source::Source;
use super::table::{Column, Row, Table, Value};
use crate::config::{Right, Rights};
use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

/// One view.
#[derive(Debug)]
pub struct View {
    /// Name, in lower case: `SHOW name`, `bursar.name`, `/api/name`.
    pub name: &'static str,
    /// One line for HELP.
    pub what: &'static str,
    /// Columns.
    pub columns: &'static [Column],
    /// Those of them that quote statements: NULL for who may not see that.
    pub quotes: &'static [&'static str],
    /// The rows now, with everything in them.
    rows: fn(&dyn Source) -> Vec<Row>,
}

impl View {
    /// The rows now, for somebody with these rights. What he may not see is gone before anything is selected by it.
    #[must_use]
    pub fn rows(&self, source: &dyn Source, rights: Rights) -> Vec<Row> {
        let mut rows = (self.rows)(source);
        if !rights.has(Right::Sql) {
            let quotes = |(_, column): &(usize, &Column)| self.quotes.contains(&&*column.name);
            for (at, _) in self.columns.iter().enumerate().filter(quotes) {
                rows.iter_mut().filter_map(|row| row.get_mut(at)).for_each(|value| *value = Value::Null);
            }
        }
        rows
    }

    /// The whole view now, for somebody with these rights.
    #[must_use]
    pub fn table(&self, source: &dyn Source, rights: Rights) -> Table {
        Table { columns: Cow::Borrowed(self.columns), rows: self.rows(source, rights) }
    }
}

/// Every view, in the order of HELP.
pub static VIEWS: &[&View] = &[
    &pgbouncer::POOLS,
    &sockets::CLIENTS,
    &sockets::SERVERS,
    &pgbouncer::DATABASES,
    &pgbouncer::USERS,
    &pgbouncer::LISTS,
    &stats::STATS,
    &stats::STATS_TOTALS,
    &stats::STATS_AVERAGES,
    &stats::TOTALS,
    &pgbouncer::CONFIG,
    &pgbouncer::MEM,
    &pgbouncer::STATE,
    &pgbouncer::VERSION,
    &requests::REQUESTS,
    &bursar::TENANTS,
    &bursar::LEASES,
    &bursar::QUEUE,
    &bursar::LEAKS,
    &advice::ADVICE,
    &advice::CALLSITES,
    &deadlocks::DEADLOCKS,
    &budgets::BUDGETS,
    &bursar::PINS,
    &prepared::PREPARED,
    &upstreams::UPSTREAMS,
    &HELP,
];

/// The view of this name, in any case.
#[must_use]
pub fn find(name: &str) -> Option<&'static View> {
    VIEWS.iter().copied().find(|view| view.name.eq_ignore_ascii_case(name))
}

static HELP: View = View {
    name: "help",
    what: "this list",
    columns: &[super::table::text("command"), super::table::text("what")],
    quotes: &[],
    rows: |_| {
        let shows = VIEWS.iter().map(|view| (format!("SHOW {}", view.name.to_uppercase()), view.what));
        let commands = COMMANDS.iter().map(|(command, what)| ((*command).to_owned(), *what));
        shows.chain(commands).map(|(command, what)| row![command, what]).collect()
    },
};

/// Of a command that is understood and refused.
const NOT_YET: &str = "not in this version: ERROR 0A000";

/// Every other statement, for HELP.
pub(super) const COMMANDS: &[(&str, &str)] = &[
    ("SELECT … FROM bursar.<view> [WHERE …] [ORDER BY …] [LIMIT n]", "any view above, as a table"),
    ("SELECT … FROM bursar.request('id')", "one request: what it holds and held"),
    ("PAUSE [db]", "no new leases; returns when none is held"),
    ("RESUME [db]", "end PAUSE"),
    ("DISABLE db", NOT_YET),
    ("ENABLE db", NOT_YET),
    ("RECONNECT [db]", "replace every backend once it is free"),
    ("WAIT_CLOSE [db]", NOT_YET),
    ("KILL db", "end its sessions and close its backends"),
    ("KILL_CLIENT id", "end one session (id as in SHOW CLIENTS)"),
    ("KILL_REQUEST id", "end every session of a request"),
    ("KILL_TENANT name", "end every session of a tenant"),
    ("RELOAD", "read the configuration again"),
    ("SHUTDOWN [WAIT_FOR_SERVERS | WAIT_FOR_CLIENTS]", "leave"),
    ("SET key = value", NOT_YET),
];

/// A row from values of different types.
macro_rules! row {
    ($($value:expr),* $(,)?) => { vec![$($crate::console::table::Value::from($value)),*] };
}
use row;

/// A moment of the monotonic clock as PgBouncer writes times: `2026-09-01 10:00:11 UTC`.
fn stamp(source: &dyn Source, moment: Instant) -> String {
    let ago = source.now().saturating_duration_since(moment);
    let wall = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
    utc(wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// Time since the epoch as a date and time in UTC. Days to civil date by Howard Hinnant's published
/// algorithm: years begin on 1 March, so that the leap day comes last.
fn utc(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::fake::Fake;
    use crate::console::table::{Type, Value};
    use std::collections::BTreeSet;

    #[test]
    fn dates_are_civil() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_788_256_811, "2026-09-01 10:00:11 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn every_row_fits_its_columns() {
        let fake = Fake::planted();
        let names: BTreeSet<_> = VIEWS.iter().map(|view| view.name).collect();
        assert_eq!(names.len(), VIEWS.len());
        for view in VIEWS {
            let table = view.table(&fake, Rights::ALL);
            assert!(!table.rows.is_empty(), "{} shows nothing of the planted rows", view.name);
            let columns: BTreeSet<_> = table.columns.iter().map(|column| &column.name).collect();
            assert_eq!(columns.len(), table.columns.len(), "{}", view.name);
            for row in &table.rows {
                assert_eq!(row.len(), table.columns.len(), "{}", view.name);
                for (column, value) in table.columns.iter().zip(row) {
                    let fits = match value {
                        Value::Null => true,
                        Value::Bool(_) => column.kind == Type::Bool,
                        Value::Int(_) => column.kind == Type::Int,
                        Value::Float(_) => column.kind == Type::Float,
                        Value::Text(_) => column.kind == Type::Text,
                    };
                    assert!(fits, "{}.{} = {value:?}", view.name, column.name);
                }
            }
        }
    }

    #[test]
    fn the_page_of_the_console_lists_every_view_and_bursars_columns() {
        let page = include_str!("../../../docs/console.md");
        for view in VIEWS {
            let name = view.name.to_uppercase();
            let row = page.lines().find(|line| {
                let first = line.strip_prefix("| ").and_then(|line| line.split(" | ").next());
                first.is_some_and(|cell| cell.split([',', ' ']).any(|word| word == name))
            });
            let row = row.unwrap_or_else(|| panic!("{name} is not on the page"));
            if !row.contains("PgBouncer's") && row.contains('`') {
                let columns: Vec<_> = view.columns.iter().map(|column| &*column.name).collect();
                assert!(row.contains(&format!("`{}`", columns.join(" "))), "{name}: {}", columns.join(" "));
            }
        }
    }
}
