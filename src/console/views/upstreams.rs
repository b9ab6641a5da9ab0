//! SHOW UPSTREAMS: each server, and whether it is dialled (budgets.md §6.3).

use super::{View, row};
use crate::adapt::limits::Managed;
use crate::book::view::UpstreamView;
use crate::console::source::Source;
use crate::console::table::{Row, Value, int, text};

pub(super) static UPSTREAMS: View = View {
    name: "upstreams",
    what: "one row a server: its circuit breaker, when it is dialled again, why it was not; what it lets in",
    columns: &[
        text("upstream"),
        text("breaker"),
        int("opens_ms"),
        int("opened"),
        text("error"),
        text("version"),
        int("max_connections"),
        int("reserved"),
        text("managed"),
    ],
    quotes: &[],
    rows: upstreams,
};

fn upstreams(source: &dyn Source) -> Vec<Row> {
    let limits = source.server_limits();
    let row = |upstream: &UpstreamView| {
        let limits = limits.get(&upstream.name);
        let max = limits.and_then(|limits| limits.max_connections);
        let opened = upstream.turns.iter().filter(|(reason, _)| ["connect", "starting"].contains(reason));
        row![
            &upstream.name,
            upstream.state.name(),
            upstream.opens.map(Value::millis),
            opened.map(|(_, count)| count).sum::<u64>(),
            upstream.error.as_ref(),
            limits.and_then(|limits| limits.version.clone()),
            max,
            max.and(limits).map(|limits| limits.reserved),
            limits.and_then(|limits| limits.managed).map(Managed::name),
        ]
    };
    source.view().upstreams.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rights;
    use crate::console::fake::Fake;

    #[test]
    fn a_row_says_how_often_it_was_opened() {
        let fake = Fake::planted();
        let table = UPSTREAMS.table(&fake, Rights::ALL);
        let name: std::sync::Arc<str> = "db:5432".into();
        let expected =
            row![&name, "closed", Value::Null, 3_u64, Value::Null, "16.4", 100_u32, 3_u32, "Amazon RDS"];
        assert_eq!(table.rows, [expected]);
    }
}
