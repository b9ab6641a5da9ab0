//! The words for sessions that wait for each other: for a backend, or for a row.

use super::{count, report, spent};
use crate::pool::cell::OwnLock;
use crate::wire::error::{Report, Severity};

/// A statement that waited for a lock of its own request, and was cancelled (budgets.md §3.4).
#[must_use]
pub fn own_lock(lock: &OwnLock) -> Report {
    report(
        Severity::Error,
        "40P01",
        "bursar: request waits for a lock of its own",
        format!(
            "statement {} (backend {}) waits for a lock of another session of this request, idle in transaction for {} after statement {} (backend {}).",
            lock.waits.1,
            lock.waits.0,
            spent(lock.idle),
            lock.holds.1,
            lock.holds.0
        ),
        "Change the row in the session that has it, or finish that one before another changes the same row."
            .into(),
    )
}

/// Who waits for whom in a deadlock of the pool, for its victim.
pub(super) fn tied(backends: u32, requests: u32) -> String {
    let verb = if backends == 1 { "is" } else { "are" };
    let held = format!("{} {verb} held by", count(backends as usize, "backend"));
    match requests {
        1 => format!("{held} this request, which waits for another one."),
        many => format!(
            "{held} {many} requests that each wait for another backend. This request is the youngest."
        ),
    }
}
