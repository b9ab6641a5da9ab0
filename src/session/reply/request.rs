//! What is said of requests that are over.

use super::report;
use crate::wire::error::{Report, Severity};

/// A session still carried the id of a request that was ended meanwhile.
#[must_use]
pub fn over(request: &str) -> Report {
    report(
        Severity::Warning,
        "01000",
        "bursar: request is over",
        format!("request {request} was ended; this session works for no request now."),
        "SET bursar.request_id when a connection is taken from its pool, and end a request last of all."
            .into(),
    )
}
