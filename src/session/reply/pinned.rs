//! The words for a session that keeps a backend beyond its transaction and does nothing with it.

use super::{report, span, spent};
use crate::wire::error::{Report, Severity};
use std::time::Duration;

/// Its backend is taken back, and the session with it (`[leak] pinned_close`): what pins a backend cannot be
/// moved to another.
pub(super) fn closed(idle: Duration, limit: Duration, pin: &str) -> Report {
    report(
        Severity::Fatal,
        "57P01",
        "bursar: session kept a backend for too long without using it",
        format!("kept by {pin}, idle {} (pinned_close {}).", spent(idle), span(limit)),
        "Connect again when there is something to do, use session mode, or raise pinned_close.".into(),
    )
}
