//! Bursar's own views: tenants, leases, the queue, leaks, pins (budgets.md §8.3, as far as the data
//! exists; `docs/console.md` says what does not yet).

use super::{View, row, stamp};
use crate::book::view::View as Book;
use crate::book::{Doing, LeaseId, Outcome, PoolId};
use crate::console::source::Source;
use crate::console::table::{Row, Value, fraction, int, text, truth};
use crate::pool::view::LeaseDetail;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Database and role of each pool.
pub(super) fn pool_names(book: &Book) -> HashMap<PoolId, (Arc<str>, Arc<str>)> {
    book.pools.iter().map(|pool| (pool.id, (pool.database.clone(), pool.user.clone()))).collect()
}

fn details(source: &dyn Source) -> HashMap<LeaseId, LeaseDetail> {
    source.leases().into_iter().map(|detail| (detail.lease, detail)).collect()
}

/// Fingerprint of the last statement.
fn last_fp(detail: Option<&LeaseDetail>) -> Option<String> {
    Some(detail?.statements.last()?.fingerprint.clone())
}

pub(super) static TENANTS: View = View {
    name: "tenants",
    what: "one row a tenant and pool: weight, minimum, cap, leases, queue, what it had against its due",
    columns: &[
        text("tenant"),
        int("weight"),
        int("min"),
        int("cap"),
        int("in_use"),
        int("queue"),
        int("oldest_wait_ms"),
        int("vtime_lag_ms"),
        fraction("lease_s_1m"),
        fraction("share_1m"),
        fraction("share_due_1m"),
        int("leases_total"),
        int("wait_ms"),
        int("hold_ms"),
        int("active_ms"),
        int("rejects"),
        int("leaks"),
        int("sessions"),
        text("database"),
        text("user"),
    ],
    quotes: &[],
    rows: |source| {
        let book = source.view();
        let pools = pool_names(&book);
        let row = |tenant: &crate::book::view::TenantView| {
            let pool = pools.get(&tenant.pool);
            let leaks = book.leaks.iter().filter(|leak| {
                leak.outcome == Outcome::Open && leak.pool == tenant.pool && leak.tag.tenant == tenant.tenant
            });
            row![
                &tenant.tenant,
                tenant.weight,
                tenant.min,
                tenant.cap,
                tenant.leased,
                tenant.waiting,
                Value::millis(tenant.oldest_wait),
                Value::Int(tenant.vtime_lag_ms),
                rounded(tenant.lease_1m.as_secs_f64()),
                rounded(tenant.share_1m),
                rounded(tenant.share_due_1m),
                tenant.leases_total,
                Value::millis(tenant.waited),
                Value::millis(tenant.held),
                Value::millis(tenant.active),
                tenant.rejections,
                leaks.count(),
                tenant.sessions,
                pool.map(|(database, _)| database),
                pool.map(|(_, user)| user),
            ]
        };
        book.tenants.iter().map(row).collect()
    },
};

/// Three places after the point.
fn rounded(value: f64) -> Value {
    Value::Float((value * 1000.0).round() / 1000.0)
}

pub(super) static LEASES: View = View {
    name: "leases",
    what: "one row a lease: who holds which backend, and what it does",
    columns: &[
        int("id"),
        int("backend_pid"),
        text("client"),
        text("request"),
        text("tenant"),
        text("user_id"),
        text("thread_id"),
        text("session_id"),
        text("created_at"),
        truth("tagged"),
        text("class"),
        int("hold_ms"),
        int("idle_ms"),
        int("active_ms"),
        int("tx_age_ms"),
        text("state"),
        text("pin_reason"),
        truth("parkable"),
        text("route"),
        text("application"),
        int("client_id"),
        text("database"),
        text("user"),
        text("last_fp"),
        text("last_statement"),
    ],
    quotes: &["last_statement"],
    rows: leases,
};

fn leases(source: &dyn Source) -> Vec<Row> {
    let (now, book) = (source.now(), source.view());
    let (pools, details) = (pool_names(&book), details(source));
    let row = |lease: &crate::book::view::LeaseView| {
        let (tag, pool) = (&lease.tag, pools.get(&lease.pool));
        let detail = details.get(&lease.id);
        let activity = detail.map(|detail| &detail.activity);
        let idle = activity.map(|activity| match activity.state {
            Doing::Active => Duration::ZERO,
            _ => now.saturating_duration_since(activity.since),
        });
        let tx_age = activity.and_then(|activity| activity.tx_start);
        row![
            lease.id.0,
            detail.map(|detail| detail.backend_pid),
            detail.map(|detail| &detail.client),
            tag.request.as_ref(),
            &tag.tenant,
            tag.user_id.as_ref(),
            tag.thread_id.as_ref(),
            tag.session_id.as_ref(),
            stamp(source, lease.since),
            tag.request.is_some(),
            tag.class.as_ref(),
            Value::millis(now.saturating_duration_since(lease.since)),
            idle.map(Value::millis),
            detail.map(|detail| Value::millis(detail.active)),
            tx_age.map(|start| Value::millis(now.saturating_duration_since(start))),
            activity.map(|activity| doing(activity.state)),
            activity.map(|activity| activity.pin).filter(|pin| !pin.is_empty()),
            activity.map(|activity| activity.parkable && activity.state == Doing::IdleInTx),
            tag.route.as_ref(),
            detail.map(|detail| &detail.application),
            lease.session.0,
            pool.map(|(database, _)| database),
            pool.map(|(_, user)| user),
            last_fp(detail),
            detail.and_then(|detail| detail.statements.last()?.text.clone()),
        ]
    };
    book.leases.iter().map(row).collect()
}

fn doing(state: Doing) -> &'static str {
    match state {
        Doing::Active => "active",
        Doing::IdleInTx => "idle_in_tx",
        Doing::Pinned => "pinned",
        Doing::Cleaning => "cleaning",
    }
}

pub(super) static QUEUE: View = View {
    name: "queue",
    what: "one row a waiter: since when, until when, why",
    columns: &[
        int("pos"),
        text("request"),
        text("tenant"),
        text("class"),
        int("waited_ms"),
        int("deadline_ms"),
        int("holds"),
        text("reason"),
        text("route"),
        int("client_id"),
        text("database"),
        text("user"),
        truth("continues"),
    ],
    quotes: &[],
    rows: |source| {
        let (now, book) = (source.now(), source.view());
        let pools = pool_names(&book);
        let holds: HashMap<_, _> = book.requests.iter().map(|r| (r.id.clone(), r.leases_now)).collect();
        let mut positions: HashMap<PoolId, u64> = HashMap::new();
        let row = |waiter: &crate::book::view::WaiterView| {
            let (tag, pool) = (&waiter.tag, pools.get(&waiter.pool));
            let position = positions.entry(waiter.pool).or_default();
            *position += 1;
            row![
                *position,
                tag.request.as_ref(),
                &tag.tenant,
                &waiter.class,
                Value::millis(now.saturating_duration_since(waiter.since)),
                Value::millis(waiter.deadline.saturating_duration_since(now)),
                tag.request.as_ref().and_then(|id| holds.get(id).copied()),
                waiter.reason,
                tag.route.as_ref(),
                waiter.session.0,
                pool.map(|(database, _)| database),
                pool.map(|(_, user)| user),
                waiter.continues,
            ]
        };
        book.waiters.iter().map(row).collect()
    },
};

pub(super) static LEAKS: View = View {
    name: "leaks",
    what: "one row a leak case, newest last",
    columns: &[
        int("id"),
        text("class"),
        text("since"),
        int("hold_ms"),
        int("idle_ms"),
        int("tx_age_ms"),
        int("threshold_ms"),
        text("request"),
        text("tenant"),
        text("user_id"),
        text("thread_id"),
        text("route"),
        text("client"),
        text("application"),
        int("backend_pid"),
        text("last_fp"),
        int("request_leases"),
        int("waiters_blocked"),
        int("oldest_wait_ms"),
        text("action"),
        text("outcome"),
        int("lease"),
        int("client_id"),
        text("database"),
        text("user"),
        int("active_ms"),
        text("session_id"),
        text("call_site"),
        text("mode"),
        text("threshold_kind"),
        int("p99_ms"),
        text("evidence"),
        int("request_peak"),
        truth("request_ended"),
        text("blocked_by"),
        truth("xid_assigned"),
    ],
    quotes: &[],
    rows: leaks,
};

fn leaks(source: &dyn Source) -> Vec<Row> {
    let book = source.view();
    let (pools, details, kept) = (pool_names(&book), details(source), source.leaks());
    let row = |leak: &crate::book::LeakEvent| {
        let (tag, pool) = (&leak.tag, pools.get(&leak.pool));
        let detail = kept.get(&leak.id);
        // While the case is open its lease goes on, and may have sent more; and in its first moment
        // nothing is kept of it yet.
        let live = details.get(&leak.lease).filter(|_| leak.outcome == Outcome::Open);
        row![
            leak.id,
            leak.class.name(),
            stamp(source, leak.reported.checked_sub(leak.held).unwrap_or(leak.reported)),
            Value::millis(leak.held),
            Value::millis(leak.idle),
            Value::millis(leak.tx_age),
            Value::millis(leak.threshold.limit),
            tag.request.as_ref(),
            &tag.tenant,
            tag.user_id.as_ref(),
            tag.thread_id.as_ref(),
            tag.route.as_ref(),
            detail.map(|detail| &detail.client).or(live.map(|live| &live.client)),
            detail.map(|detail| &detail.application).or(live.map(|live| &live.application)),
            detail
                .map(|detail| detail.backend_pid)
                .or(live.map(|live| live.backend_pid))
                .filter(|pid| *pid != 0),
            last_fp(live).or_else(|| detail?.last_fp.clone()),
            leak.request_leases,
            leak.waiters,
            Value::millis(leak.oldest_wait),
            leak.action,
            leak.outcome.name(),
            leak.lease.0,
            leak.session.0,
            pool.map(|(database, _)| database),
            pool.map(|(_, user)| user),
            Value::millis(leak.active),
            tag.session_id.as_ref(),
            tag.call_site.as_ref(),
            leak.mode.name(),
            leak.threshold.kind(),
            leak.threshold.learnt.map(|(p99, _)| Value::millis(p99)),
            leak.evidence.names().join(","),
            leak.request_peak,
            leak.request_ended,
            leak.blocked_by.as_ref(),
            detail.and_then(|detail| detail.xid_assigned),
        ]
    };
    book.leaks.iter().map(row).collect()
}

pub(super) static PINS: View = View {
    name: "pins",
    what: "leases kept beyond their transaction, by reason",
    columns: &[text("reason"), int("leases")],
    quotes: &[],
    rows: |source| source.view().pins.into_iter().map(|(reason, leases)| row![reason, leases]).collect(),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rights;
    use crate::console::fake::Fake;

    /// The named columns of a row, as text.
    fn cells(view: &View, row: usize, names: &[&str]) -> Vec<String> {
        let table = view.table(&Fake::planted(), Rights::ALL);
        let at = |name: &&str| table.columns.iter().position(|column| column.name == **name).unwrap();
        names
            .iter()
            .map(|name| table.rows[row][at(name)].to_text().unwrap_or_default().into_owned())
            .collect()
    }

    #[test]
    fn a_lease_says_who_holds_what_and_what_it_does() {
        let names =
            ["id", "backend_pid", "request", "tenant", "state", "hold_ms", "idle_ms", "tx_age_ms", "last_fp"];
        let expected =
            ["7", "4711", "req-1", "acme", "idle_in_tx", "31000", "30000", "30900", "00000000000077ab"];
        assert_eq!(cells(&LEASES, 0, &names), expected);
        let expected = ["8", "4712", "", "quiet", "active", "250", "0", "", ""];
        assert_eq!(cells(&LEASES, 1, &names), expected);
    }

    #[test]
    fn a_leak_has_what_only_doors_know_even_when_it_is_closed() {
        let names = ["class", "outcome", "request", "client", "application", "backend_pid", "last_fp"];
        let (client, application) = ("10.2.3.4:51122", "sales-web");
        let expected = ["idle_in_tx", "open", "req-1", client, application, "4711", "00000000000077ab"];
        assert_eq!(cells(&LEAKS, 1, &names), expected, "the last statement is the live one");
        let expected = ["long_tx", "returned", "", client, application, "4700", "0000000000000001"];
        assert_eq!(cells(&LEAKS, 0, &names), expected);
        assert_eq!(cells(&LEAKS, 0, &["waiters_blocked"]), ["0"]);
    }

    #[test]
    fn the_queue_counts_positions_and_what_the_request_holds() {
        let names = ["pos", "request", "waited_ms", "deadline_ms", "holds", "reason"];
        assert_eq!(cells(&QUEUE, 0, &names), ["1", "req-1", "1500", "1500", "1", "pool_full"]);
    }

    #[test]
    fn tenants_count_their_open_leaks() {
        let names = ["tenant", "in_use", "queue", "rejects", "leaks", "database"];
        assert_eq!(cells(&TENANTS, 0, &names), ["acme", "1", "1", "2", "1", "app"]);
        assert_eq!(cells(&TENANTS, 1, &names), ["quiet", "1", "0", "0", "0", "app"]);
    }
}
