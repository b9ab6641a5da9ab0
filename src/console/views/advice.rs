//! SHOW ADVICE: what to change; SHOW CALLSITES: what is known of leases that begin alike.

use super::{View, row};
use crate::book::advice::Advice;
use crate::book::view::CallSiteView;
use crate::console::source::Source;
use crate::console::table::{Row, Value, fraction, int, text};

pub(super) static CALLSITES: View = View {
    name: "callsites",
    what: "one row a call site (route and first statement): holds, pauses, repeats; the idlest first",
    columns: &[
        text("route"),
        text("call_site"),
        text("first_fp"),
        int("leases"),
        int("hold_ms"),
        int("active_ms"),
        int("idle_ms"),
        fraction("efficiency"),
        int("p99_hold_ms"),
        int("p99_gap_ms"),
        int("repeats_max"),
        int("leaks"),
    ],
    quotes: &[],
    rows: callsites,
};

pub(super) static ADVICE: View = View {
    name: "advice",
    what: "what to change in the application or here, the gravest first",
    columns: &[text("topic"), text("scope"), text("finding"), text("advice"), fraction("value")],
    quotes: &[],
    rows: |source| {
        let row = |it: Advice| row![it.topic, it.scope, it.finding, it.advice, Value::Float(it.value)];
        source.advice().into_iter().map(row).collect()
    },
};

fn callsites(source: &dyn Source) -> Vec<Row> {
    let row = |site: CallSiteView| {
        row![
            site.route.as_ref(),
            site.call_site.as_ref(),
            (site.fingerprint != 0).then(|| format!("{:016x}", site.fingerprint)),
            site.leases,
            Value::millis(site.held),
            Value::millis(site.active),
            Value::millis(site.idle()),
            Value::Float((site.efficiency() * 1e4).round() / 1e4),
            site.hold_p99.map(Value::millis),
            site.gap_p99.map(Value::millis),
            site.repeats,
            site.leaks,
        ]
    };
    source.callsites().into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rights;
    use crate::console::fake::Fake;

    #[test]
    fn a_call_site_says_what_its_leases_cost() {
        let rows = CALLSITES.table(&Fake::planted(), Rights::ALL).rows;
        let texts: Vec<_> = rows[0].iter().map(|value| value.to_text().unwrap_or_default()).collect();
        let times = ["400", "1200000", "12000", "1188000", "0.01", "6000", "", "12", "3"];
        let expected = [&["/api/orders", "orders.service.ts:88", "00000000000077ab"][..], &times].concat();
        assert_eq!(texts, expected);
    }
}
