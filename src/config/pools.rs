//! The nouns of `[pool]` and `[tenant_context]`: how a pool lends its backends, and what it sees to on them.

use super::{Secret, Share};
use std::time::Duration;

/// When a lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// With the client session.
    Session,
    /// With the transaction.
    Transaction,
    /// With the statement: transaction blocks are refused.
    Statement,
    /// With the transaction; and what resets a session's settings ends the request that it worked for.
    Request,
}

/// Which idle backend is used next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// The warmest one.
    Lifo,
    /// Each in turn.
    RoundRobin,
}

/// When a backend is scrubbed between two sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// When the session left state that was seen.
    Dirty,
    /// Always, for applications whose functions change settings unseen.
    Always,
}

/// What becomes of a lease when a statement leaves something on its backend that cannot be carried to
/// another one (wire.md C3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The lease lasts as long as what was left.
    #[default]
    Pin,
    /// The lease ends with its transaction, and what was left is cleared.
    Scrub,
    /// The statement is refused before the server sees it.
    Refuse,
}

/// A [`Policy`] for each kind of thing a statement may leave, by the names that pins have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policies {
    /// LISTEN.
    pub listen: Policy,
    /// A temporary table, view or sequence.
    pub temp_table: Policy,
    /// A session-level advisory lock.
    pub advisory_lock: Policy,
    /// `DECLARE … WITH HOLD`.
    pub hold_cursor: Policy,
    /// SQL-level PREPARE.
    pub prepare: Policy,
    /// LOAD.
    pub load: Policy,
}

/// Where the tenant that row-level security is told comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContextSource {
    /// The tenant tag, as a client, its start-up packet or its user name's suffix has named it; the plain
    /// login role is no tenant.
    #[default]
    Tenant,
    /// `bursar.user_id`
    UserId,
    /// The login role: one role for each tenant.
    User,
}

/// How the tenant context is kept (wire.md C4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContextPolicy {
    /// Not at all.
    Off,
    /// Set when another tenant's lease begins.
    Trusted,
    /// Set at every lease, taken back and verified at its end.
    #[default]
    Strict,
}

/// `[tenant_context]`: what Bursar sets for row-level security (budgets.md §4.5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantContext {
    /// The setting that policies read, in lower case; `None` = no context at all.
    pub key: Option<String>,
    /// What its value is.
    pub from: ContextSource,
    /// How it is kept.
    pub policy: ContextPolicy,
    /// A setting that gets the request tag as well.
    pub request_key: Option<String>,
    /// What tenants are signed with, for policies that check it.
    pub secret: Option<Secret>,
}

impl TenantContext {
    /// The setting, where one is to be kept.
    #[must_use]
    pub fn kept(&self) -> Option<&str> {
        self.key.as_deref().filter(|_| self.policy != ContextPolicy::Off)
    }
}

/// What becomes of a client that asks for a replication connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationRule {
    /// It is refused.
    Refuse,
    /// It gets a server connection of its own, outside the pool.
    Pass,
}

/// Which of several servers is fit, in libpq's words (`target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionAttrs {
    /// Whichever.
    #[default]
    Any,
    /// One that takes writes by default.
    ReadWrite,
    /// One that does not.
    ReadOnly,
    /// One that is no standby.
    Primary,
    /// A standby.
    Standby,
    /// A standby, or whichever if there is none.
    PreferStandby,
}

impl SessionAttrs {
    /// Every value by its name.
    pub const NAMES: [(&str, SessionAttrs); 6] = [
        ("any", SessionAttrs::Any),
        ("read-write", SessionAttrs::ReadWrite),
        ("read-only", SessionAttrs::ReadOnly),
        ("primary", SessionAttrs::Primary),
        ("standby", SessionAttrs::Standby),
        ("prefer-standby", SessionAttrs::PreferStandby),
    ];

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        SessionAttrs::NAMES.iter().find(|(_, attrs)| *attrs == self).map_or("", |(name, _)| name)
    }
}

/// The pool of one (database, user).
#[derive(Debug, Clone, PartialEq)]
pub struct PoolRules {
    /// When a lease ends.
    pub mode: PoolMode,
    /// Backends.
    pub size: usize,
    /// Extra backends while clients wait.
    pub overflow: usize,
    /// B7: for how long at a time; `None` = as long as they wait.
    pub overflow_time: Option<Duration>,
    /// Backends kept open while nobody asks.
    pub min_idle: usize,
    /// Slots for short work.
    pub express: super::Express,
    /// Order of reuse.
    pub reuse: Reuse,
    /// When to scrub.
    pub reset: Reset,
    /// B17: leases kept beyond their transaction at once, of all tenants; in the mode of the tenant that
    /// would have one more.
    pub max_pins: Share,
    /// What may be left on a backend in transaction and statement mode.
    pub policy: Policies,
    /// Whether replication connections are let in.
    pub replication: ReplicationRule,
    /// V2 (budgets.md §2.7): a statement of a session without a tenant is refused.
    pub require_tenant_context: bool,
    /// `[tenant_context]`, which a `[database.NAME.tenant_context]` overrides.
    pub tenant_context: TenantContext,
    /// B9: how long a checkout waits before ERROR 53300; always enforced.
    pub max_wait: Duration,
    /// Waiters in this pool (B15); always enforced.
    pub queue: usize,
    /// For how long nobody may have made progress before that is called a deadlock; `None` = never.
    pub deadlock_after: Option<Duration>,
    /// Extra backends for five seconds when the pool is deadlocked; a quarter of `size` at most.
    pub deadlock_overflow: usize,
    /// An idle backend is closed after this; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// A backend is retired after this, ±10 % jitter; `None` = never.
    pub lifetime: Option<Duration>,
    /// From dial to ready.
    pub connect_timeout: Duration,
    /// How long a running statement may finish after its client has gone (wire.md A6).
    pub client_gone_grace: Duration,
    /// Shared prepared statements one backend may have; 0: they are not shared.
    pub max_prepared: usize,
    /// In transaction mode a BEGIN waits for the first statement (budgets.md §4.4).
    pub lazy_begin: bool,
}
