//! Requests: the view of all, and the row behind `bursar.request('id')` that tests count by.

use super::{View, row};
use crate::book::End;
use crate::book::view::RequestView;
use crate::console::source::Source;
use crate::console::table::{Column, Row, Value, int, text};
use std::time::Instant;

/// The columns of a request; only the name of the highest number of leases at once differs between
/// the view (`leases_peak`) and the function (`peak_leases`). SELECT takes either name in both.
macro_rules! columns {
    ($peak:literal) => {
        &[
            text("id"),
            text("tenant"),
            text("user_id"),
            text("thread_id"),
            text("session_id"),
            text("route"),
            text("class"),
            text("state"),
            int("age_ms"),
            int("leases_now"),
            int($peak),
            int("leases_total"),
            int("waiting"),
            int("wait_ms"),
            int("db_ms"),
            int("hold_ms"),
            int("statements"),
            int("rejections"),
            int("repeats_max"),
            int("idle_ms"),
            int("budget_left"),
            text("mode"),
            text("ended_by"),
        ]
    };
}

/// Columns of `bursar.request('id')`.
pub(in crate::console) const FUNCTION_COLUMNS: &[Column] = columns!("peak_leases");

pub(super) static REQUESTS: View = View {
    name: "requests",
    what: "one row a request: what it holds, held and waited for",
    columns: columns!("leases_peak"),
    quotes: &[],
    rows: |source: &dyn Source| {
        let now = source.now();
        source.view().requests.iter().map(|request| request_row(now, request)).collect()
    },
};

/// The row of one request.
pub(in crate::console) fn request_row(now: Instant, request: &RequestView) -> Row {
    let tag = &request.tag;
    let state = match request {
        RequestView { end: Some(_), .. } => "ended",
        RequestView { waiting: 1.., .. } => "waiting",
        RequestView { leases_now: 1.., .. } => "holding",
        _ => "idle",
    };
    row![
        &request.id,
        &tag.tenant,
        tag.user_id.as_ref(),
        tag.thread_id.as_ref(),
        tag.session_id.as_ref(),
        tag.route.as_ref(),
        tag.class.as_ref(),
        state,
        Value::millis(now.saturating_duration_since(request.since)),
        request.leases_now,
        request.leases_peak,
        request.leases_total,
        request.waiting,
        Value::millis(request.waited),
        Value::millis(request.active),
        Value::millis(request.held),
        request.statements,
        request.rejections,
        request.repeats,
        Value::millis(request.held.saturating_sub(request.active)),
        request.leases_left,
        request.mode.name(),
        request.end.map(End::name),
    ]
}
