//! What is said where work of different tenants, users or requests would mix (budgets.md §2.7).

use super::report;
use crate::metrics::Isolation;
use crate::state::fence::BadValue;
use crate::tag::Tag;
use crate::wire::error::{Report, Severity};
use std::time::Duration;

/// A violation, told to who has caused it; its statement did not run.
#[must_use]
pub fn violation(kind: Isolation, tag: &Tag, role: &str) -> Report {
    let request = tag.request.as_deref().unwrap_or("(none)");
    let (message, detail, hint) = match kind {
        Isolation::V1 => (
            "bursar: the tenant context is not the client's to change",
            format!("The tenant is {} for the whole transaction.", tag.tenant),
            "SET bursar.tenant between transactions; it sets the context. Not retryable.",
        ),
        Isolation::V2 => (
            "bursar: no tenant context",
            format!("role {role}: no tenant is named (require_tenant_context = true)."),
            "SET bursar.tenant, or name the tenant in the start-up packet, before the first statement.",
        ),
        Isolation::V3 => (
            "bursar: one request is used by different users",
            format!("request {request}."),
            "Give each request an id of its own, and reset it when a connection goes back to its pool.",
        ),
        Isolation::V4 => (
            "bursar: a backend has state of another session",
            "What follows the end of the transaction would see the rows of another tenant.".to_owned(),
            "Send it as a query of its own. A function has set the tenant context for its session: let it set it for its transaction.",
        ),
        Isolation::V5 => (
            "bursar: the role may not act for this tenant",
            format!("role {role} is not in tenant.{}.users.", tag.tenant),
            "Log in as a role of this tenant, or name the role there.",
        ),
        Isolation::V6 => (
            "bursar: the user changed inside a transaction",
            format!("request {request}."),
            "Set bursar.user_id between transactions. Do not share a session between users.",
        ),
        Isolation::V7 => (
            "bursar: the request changed inside a transaction",
            format!("request {request}."),
            "Set bursar.request_id between transactions. Do not share a session between requests.",
        ),
    };
    report(Severity::Error, "42501", message, detail, hint.to_owned())
}

/// The id of a request is refused, because sessions that used it were closed for what they did.
#[must_use]
pub fn quarantined(tag: &Tag, left: Duration) -> Report {
    let request = tag.request.as_deref().unwrap_or("(none)");
    report(
        Severity::Error,
        "42501",
        "bursar: the request is in quarantine",
        format!("request {request}: a session was closed for repeated isolation violations under this id."),
        format!("Use another request id, or wait {}.", super::span(left)),
    )
}

/// The same session has done it again.
#[must_use]
pub fn expelled() -> Report {
    report(
        Severity::Fatal,
        "57P01",
        "bursar: terminating connection due to repeated isolation violations",
        "The error before this one names the last of them.".to_owned(),
        "Look for event=isolation_violation in the log.".to_owned(),
    )
}

/// The backend did not take the tenant context.
#[must_use]
pub fn unfenced() -> Report {
    report(
        Severity::Fatal,
        "42501",
        "bursar: the tenant context could not be set",
        "The statement may have run, without a tenant.".to_owned(),
        "Look for the server's error in the log. A statement without row-level security may have been done."
            .to_owned(),
    )
}

/// A parked transaction could not be begun again as it was.
#[must_use]
pub fn unrestored() -> Report {
    report(
        Severity::Error,
        "42501",
        "bursar: the transaction could not be resumed with its settings",
        "Its backend had been given back while the client was silent (parking). Nothing of this statement ran."
            .to_owned(),
        "Retry the transaction: its route is not parked any more. Look for the server's error in the log."
            .to_owned(),
    )
}

/// A transaction failed when its backend was asked whether it may be parked.
#[must_use]
pub fn lost(why: &str) -> Report {
    report(
        Severity::Error,
        "40001",
        "bursar: the transaction was rolled back while it was idle",
        format!("Its backend was asked whether it may be parked and said: {why}."),
        "Nothing was written. Retry the transaction.".to_owned(),
    )
}

/// A tenant that cannot be one for row-level security.
#[must_use]
pub fn bad_value(why: BadValue) -> Report {
    let hint = "Use another name for the tenant, or set tenant_context.policy = \"off\".";
    report(
        Severity::Error,
        "22023",
        "bursar: invalid tenant for row-level security",
        why.to_string(),
        hint.to_owned(),
    )
}

/// A start-up packet that sets what is Bursar's to set.
#[must_use]
pub fn reserved_at_login(name: &str) -> Report {
    report(
        Severity::Fatal,
        "42501",
        "bursar: the tenant context is not the client's to change",
        format!("parameter {name} is set by Bursar (tenant_context.key)."),
        "Name the tenant as bursar.tenant.".to_owned(),
    )
}
