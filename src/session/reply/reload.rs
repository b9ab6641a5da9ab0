//! What an administrator is told of a reload: a notice for each key, behind which RELOAD completes.

use crate::config::Changes;
use crate::wire::error::{Report, Severity};

/// Keys that are named, at most; the log has the others.
const NAMED: usize = 200;

/// What a reload has changed, and what waits for a restart.
#[must_use]
pub fn reloaded(changes: &Changes) -> Vec<Report> {
    let notice = |severity, code, message: &'static str, detail: String| {
        let mut report = Report::new(severity, code, message);
        report.detail = Some(detail);
        report
    };
    let changed = |detail| notice(Severity::Notice, "00000", "bursar: configuration changed", detail);
    let made = changes.made.iter().take(NAMED).map(|change| changed(change.to_string()));
    let mut told: Vec<Report> = made.collect();
    if let Some(more) = changes.made.len().checked_sub(NAMED + 1) {
        told.push(changed(format!("{} more keys, which the log names", more + 1)));
    }
    told.extend(changes.needs_restart.iter().map(|key| {
        let mut report =
            notice(Severity::Warning, "01000", "bursar: changes with a restart only", key.to_string());
        report.hint =
            Some("It is set up at start and stays as it is; start a new process when it suits.".to_owned());
        report
    }));
    told
}
