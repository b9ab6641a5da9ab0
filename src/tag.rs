//! Tags: whose work a lease is (budgets.md §2.2).

use std::sync::Arc;

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
}

impl Key {
    /// Every key, in the order of their discriminants.
    pub const ALL: [Key; 9] = [
        Key::Tenant,
        Key::RequestId,
        Key::UserId,
        Key::ThreadId,
        Key::SessionId,
        Key::Class,
        Key::DeadlineMs,
        Key::Route,
        Key::MaxLeases,
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
        }
    }

    /// The key of a name (ASCII case-insensitive, without `bursar.`).
    #[must_use]
    pub fn of(name: &str) -> Option<Key> {
        Key::ALL.into_iter().find(|key| key.name().eq_ignore_ascii_case(name))
    }
}

/// What the tags of a session come to at one moment: the claim of its next lease.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tag {
    /// Accounting and fairness principal; never empty.
    pub tenant: Arc<str>,
    /// The request, if tagged.
    pub request: Option<Arc<str>>,
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
    /// `bursar.max_leases`: the client's own, tighter B2.
    pub max_leases: Option<u32>,
    /// `bursar.deadline_ms`: bounds the wait for a lease, in milliseconds.
    pub deadline_ms: Option<u32>,
}
