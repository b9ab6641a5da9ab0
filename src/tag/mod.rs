//! Tags: whose work a lease is (budgets.md §2.2).
//!
//! The nouns are here; [`Tags`] keeps what a session was told, and says what it comes to. How tags
//! arrive (start-up packet, SET, comments) is [`crate::wire`]'s business, what they are worth is the
//! book's. Tags are claims of the client: they account and order work, they isolate nobody.

mod layers;
mod value;

pub use layers::{Identity, Scope, Tags, reads_comment, split_user};
pub use value::{MAX_VALUE, TagError};

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The tag keys a client may set with `SET bursar.<key>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Key {
    /// `bursar.tenant`
    Tenant,
    /// `bursar.request_id`
    RequestId,
    /// `bursar.user_id`
    UserId,
    /// `bursar.thread_id`
    ThreadId,
    /// `bursar.session_id`
    SessionId,
    /// `bursar.class`
    Class,
    /// `bursar.deadline_ms`
    DeadlineMs,
    /// `bursar.route`
    Route,
    /// `bursar.max_leases`
    MaxLeases,
    /// `bursar.max_concurrent`
    MaxConcurrent,
    /// `bursar.max_statement_ms`
    MaxStatementMs,
    /// `bursar.max_idle_ms`
    MaxIdleMs,
    /// `bursar.max_age_ms`
    MaxAgeMs,
    /// `bursar.call_site`
    CallSite,
}

impl Key {
    /// Every key, in the order of their discriminants.
    pub const ALL: [Key; 14] = [
        Key::Tenant,
        Key::RequestId,
        Key::UserId,
        Key::ThreadId,
        Key::SessionId,
        Key::Class,
        Key::DeadlineMs,
        Key::Route,
        Key::MaxLeases,
        Key::MaxConcurrent,
        Key::MaxStatementMs,
        Key::MaxIdleMs,
        Key::MaxAgeMs,
        Key::CallSite,
    ];

    /// The name after `bursar.`
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Key::Tenant => "tenant",
            Key::RequestId => "request_id",
            Key::UserId => "user_id",
            Key::ThreadId => "thread_id",
            Key::SessionId => "session_id",
            Key::Class => "class",
            Key::DeadlineMs => "deadline_ms",
            Key::Route => "route",
            Key::MaxLeases => "max_leases",
            Key::MaxConcurrent => "max_concurrent",
            Key::MaxStatementMs => "max_statement_ms",
            Key::MaxIdleMs => "max_idle_ms",
            Key::MaxAgeMs => "max_age_ms",
            Key::CallSite => "call_site",
        }
    }

    /// The key of a name (ASCII case-insensitive, without `bursar.`).
    #[must_use]
    pub fn of(name: &str) -> Option<Key> {
        Key::ALL.into_iter().find(|key| key.name().eq_ignore_ascii_case(name))
    }

    /// The key whose name is nearest to a mistyped one, for a hint; `None` if none is near (more than
    /// two edits, or more than half the name).
    #[must_use]
    pub fn nearest(name: &str) -> Option<Key> {
        let name = name.to_ascii_lowercase();
        if name.len() > 32 {
            return None;
        }
        let most = (name.len() / 2).min(2);
        Key::ALL
            .into_iter()
            .map(|key| (edits(&name, key.name()), key))
            .filter(|(edits, _)| *edits <= most)
            .min_by_key(|(edits, _)| *edits)
            .map(|(_, key)| key)
    }

    /// The numbers this key takes, if it takes numbers: milliseconds (at most an hour, the hard cap on a
    /// request's life), or leases.
    #[must_use]
    pub fn range(self) -> Option<RangeInclusive<u32>> {
        match self {
            Key::DeadlineMs | Key::MaxStatementMs | Key::MaxIdleMs | Key::MaxAgeMs => Some(1..=3_600_000),
            Key::MaxLeases | Key::MaxConcurrent => Some(1..=1_000_000),
            _ => None,
        }
    }
}

/// Levenshtein's distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// What the tags of a session come to at one moment: the claim of its next lease.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tag {
    /// Accounting and fairness principal; never empty.
    pub tenant: Arc<str>,
    /// Somebody has named that tenant: it is not just the login role.
    pub has_tenant: bool,
    /// The request, if tagged.
    pub request: Option<Arc<str>>,
    /// When a session-level SET last named that request, if one did.
    pub request_since: Option<Instant>,
    /// `bursar.user_id`
    pub user_id: Option<Arc<str>>,
    /// `bursar.thread_id`
    pub thread_id: Option<Arc<str>>,
    /// `bursar.session_id`
    pub session_id: Option<Arc<str>>,
    /// `bursar.class`
    pub class: Option<Arc<str>>,
    /// `bursar.route`, or the comment's `route`, `controller#action`.
    pub route: Option<Arc<str>>,
    /// `bursar.call_site`, or the comment's `call_site`, `source_location` or `file` and `line`: where in the
    /// application the work comes from.
    pub call_site: Option<Arc<str>>,
    /// `bursar.max_leases`: the client's own, tighter B2.
    pub max_leases: Option<u32>,
    /// `bursar.max_concurrent`: the client's own, tighter B1.
    pub max_concurrent: Option<u32>,
    /// `bursar.deadline_ms`: bounds the wait for a lease and the statement it was for, together.
    pub deadline_ms: Option<u32>,
    /// `bursar.max_statement_ms`: the client's own, tighter B12.
    pub max_statement_ms: Option<u32>,
    /// `bursar.max_idle_ms`: the client's own, tighter B11.
    pub max_idle_ms: Option<u32>,
    /// `bursar.max_age_ms`: the client's own, tighter B10.
    pub max_age_ms: Option<u32>,
}

/// The times that a client has set itself: they act whatever the configuration says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Own {
    /// From asking for a backend, or from a later statement's start, to the statement's end.
    pub deadline: Option<Duration>,
    /// For one statement (B12).
    pub statement: Option<Duration>,
    /// Idle in a transaction (B11).
    pub idle: Option<Duration>,
    /// Age of a transaction (B10).
    pub age: Option<Duration>,
}

impl Tag {
    /// The client's own budgets of time.
    #[must_use]
    pub fn own(&self) -> Own {
        let span = |ms: Option<u32>| ms.map(|ms| Duration::from_millis(ms.into()));
        Own {
            deadline: span(self.deadline_ms),
            statement: span(self.max_statement_ms),
            idle: span(self.max_idle_ms),
            age: span(self.max_age_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_keys_and_back() {
        assert!(Key::ALL.iter().enumerate().all(|(i, key)| *key as usize == i));
        assert!(Key::ALL.iter().all(|key| Key::of(&key.name().to_uppercase()) == Some(*key)));
        assert_eq!(Key::of("tenent"), None);
    }

    #[test]
    fn a_mistyped_name_finds_its_key() {
        assert_eq!(Key::nearest("Tenent"), Some(Key::Tenant));
        assert_eq!(Key::nearest("requestid"), Some(Key::RequestId));
        assert_eq!(Key::nearest("deadline"), None);
        assert_eq!(Key::nearest("x"), None);
        assert_eq!(Key::nearest(""), None);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
