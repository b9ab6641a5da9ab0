//! SHOW DEADLOCKS: who waited for whom, and what was done about it (budgets.md §3.4).

use super::bursar::pool_names;
use super::{View, row, stamp};
use crate::book::Deadlock;
use crate::console::source::Source;
use crate::console::table::{Row, Value, int, text};

pub(super) static DEADLOCKS: View = View {
    name: "deadlocks",
    what: "one row a deadlock, newest last",
    columns: &[
        int("id"),
        text("kind"),
        text("since"),
        int("detected_ms"),
        int("lasted_ms"),
        text("resolution"),
        text("victim_request"),
        text("victim_tenant"),
        int("holders"),
        int("parties"),
        int("waiters"),
        text("evidence"),
        text("database"),
        text("user"),
    ],
    quotes: &[],
    rows: deadlocks,
};

fn deadlocks(source: &dyn Source) -> Vec<Row> {
    let book = source.view();
    let pools = pool_names(&book);
    let row = |case: &Deadlock| {
        let (pool, victim) = (pools.get(&case.pool), case.victim.as_ref());
        row![
            case.id,
            case.kind.name(),
            stamp(source, case.since),
            Value::millis(case.detected),
            case.lasted.map(Value::millis),
            case.resolution.name(),
            victim.and_then(|tag| tag.request.as_ref()),
            victim.map(|tag| &tag.tenant),
            case.holders,
            case.parties,
            case.waiters,
            case.evidence.clone(),
            pool.map(|(database, _)| database),
            pool.map(|(_, user)| user),
        ]
    };
    book.deadlocks.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rights;
    use crate::console::fake::Fake;

    #[test]
    fn a_case_that_goes_on_has_not_lasted_yet() {
        let table = DEADLOCKS.table(&Fake::planted(), Rights::ALL);
        let cells = |row: usize| -> Vec<String> {
            let texts = table.rows[row].iter().map(|value| value.to_text().unwrap_or_default().into_owned());
            texts.enumerate().filter(|(at, _)| *at != 2).map(|(_, text)| text).collect()
        };
        let evidence = "request req-1 holds 1 and waits for 1; request req-2 holds 1 and waits for 1";
        let same = |id, resolution, lasted, request, tenant| {
            [id, "pool", "210", lasted, resolution, request, tenant, "2", "2", "2", evidence, "app", "web"]
        };
        assert_eq!(cells(0), same("1", "victim", "230", "req-2", "acme"));
        assert_eq!(cells(1), same("2", "suspected", "", "", ""));
    }
}
