//! The tenant context that row-level security reads: what a backend holds, and the messages that give it
//! another one (wire.md C4).
//!
//! The context travels as bound parameters of a `SELECT set_config(…)`, prepared once a backend, ahead of
//! the client's bytes and in one of two ways:
//!
//! * *Brought*, in segments of its own (`Bind Execute Sync`), each committed by itself: nothing the client
//!   does to its transaction takes it back, and nothing that must be first in its transaction or run
//!   outside of one finds it in the way. Nobody stops the client's bytes behind a segment that fails.
//!   Therefore a backend is never led from one tenant to another: [`Held::bring`] takes the old context
//!   back first ([`Context::DENY`]), and a statement that runs after either segment failed sees no tenant,
//!   or the right one.
//! * *Lent*, as SET LOCAL is, within a transaction of the client's whose first statement is known to be one
//!   of rows ([`Held::lend`], `Bind Execute`). If it fails, the server skips what follows up to the next
//!   Sync, so nothing runs without it; it is gone with its transaction, so nothing has to take it back. What
//!   a function may have left behind it is unknown, and is taken back before the next context is brought;
//!   the next one that is lent is answered with what it found ([`Held::may_have_had`]).
//!
//! Nothing is sent here, and who may have which context is not decided.

use super::text;
use crate::config::{ContextPolicy, ContextSource, Secret, TenantContext};
use crate::tag::Tag;
use crate::wire::compose;
use bytes::BytesMut;
use ring::hmac;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::fmt::Write;
use std::hash::BuildHasher;
use std::sync::Arc;

/// The longest value, in bytes (budgets.md §4.5).
pub const MAX_VALUE: usize = 128;

/// PostgreSQL's number for the type `text`.
const TEXT: u32 = 25;

/// What a lease's transactions run under; `None` is the empty value, for which policies show no row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// The tenant.
    pub tenant: Option<Arc<str>>,
    /// The request, where the configuration has a setting for it.
    pub request: Option<Arc<str>>,
}

impl Context {
    /// What an idle backend of a strict fence has.
    pub const DENY: Context = Context { tenant: None, request: None };
}

/// A tenant whose name no setting may have: `[A-Za-z0-9_.:-]{1,128}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tenant context takes 1 to 128 of A-Z, a-z, 0-9 and _ . : -")]
pub struct BadValue;

/// What `[tenant_context]` comes to.
#[derive(Debug, PartialEq, Eq)]
pub struct Fence {
    key: Box<str>,
    request_key: Option<Box<str>>,
    from: ContextSource,
    strict: bool,
    signs: Option<Signature>,
    /// Sets the context for the session.
    brings: Prepared,
    /// Sets it for the transaction; its first column is the tenant's value before.
    lends: Prepared,
}

/// A statement that each backend is to have.
#[derive(Debug, PartialEq, Eq)]
struct Prepared {
    name: Box<[u8]>,
    /// Its Parse message.
    parse: Box<[u8]>,
}

impl Prepared {
    /// The one of these keys.
    fn of(keys: &[&str], local: bool) -> Prepared {
        let mut sql = "SELECT ".to_owned();
        if local {
            let _ = write!(sql, "pg_catalog.current_setting('{}',true),", keys[0]);
        }
        for (i, key) in keys.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(sql, "{comma}pg_catalog.set_config('{key}',${},{local})", i + 1);
        }
        // Another name for another text: a reload may change the settings under a living backend.
        let number = foldhash::fast::FixedState::default().hash_one(&sql);
        let name = format!("bursar_fence_{number:016x}").into_bytes();
        let mut parse = BytesMut::new();
        compose::parse(&mut parse, &name, sql.as_bytes(), &[TEXT, TEXT][..keys.len()]);
        Prepared { name: name.into(), parse: parse[..].into() }
    }
}

/// For how long a context is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// For the session, once the transaction commits.
    Session,
    /// To the end of the transaction.
    Transaction,
}

/// What signs tenants. A signature is worth something on the backend it was made for only, so that one
/// that was seen on another is of no use.
#[derive(Debug)]
struct Signature {
    secret: Secret,
    key: hmac::Key,
}

impl PartialEq for Signature {
    fn eq(&self, other: &Signature) -> bool {
        self.secret == other.secret
    }
}

impl Eq for Signature {}

impl Signature {
    fn of(secret: &Secret) -> Signature {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
        Signature { secret: secret.clone(), key }
    }

    /// `tenant|pid|HMAC-SHA-256(secret, "tenant|pid")`, the last in hexadecimal digits.
    fn sign(&self, tenant: &str, pid: i32) -> String {
        let mut value = format!("{tenant}|{pid}");
        let tag = hmac::sign(&self.key, value.as_bytes());
        value.push('|');
        for byte in tag.as_ref() {
            let _ = write!(value, "{byte:02x}");
        }
        value
    }
}

impl Fence {
    /// `None` where no context is kept.
    #[must_use]
    pub fn of(rules: &TenantContext) -> Option<Fence> {
        let key = rules.kept()?;
        let request_key = rules.request_key.as_deref();
        let keys: SmallVec<[&str; 2]> = [key].into_iter().chain(request_key).collect();
        Some(Fence {
            key: key.into(),
            request_key: request_key.map(Into::into),
            from: rules.from,
            strict: rules.policy == ContextPolicy::Strict,
            signs: rules.secret.as_ref().map(Signature::of),
            brings: Prepared::of(&keys, false),
            lends: Prepared::of(&keys, true),
        })
    }

    /// Whether an idle backend has no tenant.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// The settings, in the order of the statement's columns, in lower case.
    pub fn keys(&self) -> impl Iterator<Item = &str> + Clone {
        [&*self.key].into_iter().chain(self.request_key.as_deref())
    }

    /// What a session with these tags runs under.
    ///
    /// # Errors
    /// The tenant is no value that a context may have. A request id that is none is left out: no policy
    /// rests on it.
    pub fn context(&self, tag: &Tag, user: &Arc<str>) -> Result<Context, BadValue> {
        let tenant = self.tenant(tag, user)?.cloned();
        let request = self.request_key.as_ref().and(tag.request.as_ref());
        Ok(Context { tenant, request: request.filter(|request| fits(request)).cloned() })
    }

    /// The tenant of that.
    ///
    /// # Errors
    /// As of [`Fence::context`].
    pub fn tenant<'a>(&self, tag: &'a Tag, user: &'a Arc<str>) -> Result<Option<&'a Arc<str>>, BadValue> {
        let named = self.named(tag, user);
        if named.is_some_and(|tenant| !fits(tenant)) { Err(BadValue) } else { Ok(named) }
    }

    /// Whether [`Fence::context`] of these has the tenant of a context that was given before.
    #[must_use]
    pub fn is_same_tenant(&self, context: &Context, tag: &Tag, user: &Arc<str>) -> bool {
        self.named(tag, user) == context.tenant.as_ref()
    }

    fn named<'a>(&self, tag: &'a Tag, user: &'a Arc<str>) -> Option<&'a Arc<str>> {
        match self.from {
            ContextSource::Tenant => Some(&tag.tenant).filter(|_| tag.has_tenant),
            ContextSource::UserId => tag.user_id.as_ref(),
            ContextSource::User => Some(user),
        }
    }

    /// A statement that tells the tenant's value.
    pub fn show(&self, out: &mut Vec<u8>) {
        text::show(out, &self.key);
    }

    /// Statements that set the context where the client is in the middle of something. As `SET`, which needs
    /// no snapshot: `SET TRANSACTION ISOLATION LEVEL` may still follow.
    pub fn restore(&self, context: &Context, pid: i32, scope: Scope, out: &mut Vec<u8>) {
        for (key, value) in self.keys().zip(self.values(context, pid)) {
            text::set_to(out, scope == Scope::Transaction, key, value.as_bytes());
        }
    }

    /// The values of [`Fence::keys`] on the backend with this process id.
    fn values<'a>(&self, context: &'a Context, pid: i32) -> [Cow<'a, str>; 2] {
        let tenant = context.tenant.as_deref().unwrap_or_default();
        let tenant = match &self.signs {
            Some(signature) if !tenant.is_empty() => signature.sign(tenant, pid).into(),
            _ => tenant.into(),
        };
        [tenant, context.request.as_deref().unwrap_or_default().into()]
    }

    /// Bind and Execute of one of its statements.
    fn set(&self, statement: &Prepared, context: &Context, pid: i32, out: &mut BytesMut) {
        let [tenant, request] = self.values(context, pid);
        let values = [tenant.as_bytes(), request.as_bytes()];
        compose::bind(out, &statement.name, &values[..self.keys().count()]);
        out.extend_from_slice(compose::EXECUTE);
    }
}

/// Whether a context may have this value.
#[must_use]
pub fn fits(value: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    (1..=MAX_VALUE).contains(&value.len()) && value.bytes().all(plain)
}

/// For each segment written, whether it begins with a Parse.
pub type Segments = SmallVec<[bool; 4]>;

/// What is known of a backend's context.
#[derive(Debug, Default)]
pub struct Held {
    /// The backend's process id.
    pid: i32,
    /// Who gave it what it has.
    by: Option<Arc<Fence>>,
    /// `None`: nobody knows.
    context: Option<Context>,
    /// Nothing of a client's has run since.
    untouched: bool,
    /// It was empty, and since then contexts have only been lent.
    lent: bool,
    /// It has the statement that brings contexts.
    brings: bool,
    /// And the one that lends them.
    lends: bool,
}

impl Held {
    /// Of a new backend with this process id.
    #[must_use]
    pub fn of(pid: i32) -> Held {
        Held { pid, ..Held::default() }
    }

    /// Writes what gives the backend this context (`None`: nobody keeps one), before anything of the
    /// client's. Nothing if it has it and `again` is not asked for.
    ///
    /// The backend is believed to have it from now on: one that says otherwise is of no use.
    pub fn bring(
        &mut self,
        want: Option<(&Arc<Fence>, &Context)>,
        again: bool,
        out: &mut BytesMut,
    ) -> Segments {
        let mut segments = Segments::new();
        let same = |fence: &Arc<Fence>| self.is_kept_by(fence);
        if let Some(old) = self.by.clone()
            && !want.is_some_and(|(fence, _)| same(fence))
        {
            if self.context != Some(Context::DENY) {
                segments.push(self.write(&old, &Context::DENY, out));
                segments.push(self.write(&old, &Context::DENY, out));
            }
            *self = Held::of(self.pid);
        }
        let Some((fence, context)) = want else { return segments };
        if self.by.as_ref().is_some_and(|by| by.signs != fence.signs) {
            self.context = None;
        }
        self.by = Some(fence.clone());
        self.lent = false;
        let known = self.context.as_ref();
        let untouched = std::mem::take(&mut self.untouched);
        if known == Some(context) && (!again || untouched) {
            return segments;
        }
        if known != Some(context) && known != Some(&Context::DENY) {
            segments.push(self.write(fence, &Context::DENY, out));
        }
        // Also where that is to be nobody's: one of the two is enough.
        segments.push(self.write(fence, context, out));
        self.context = Some(context.clone());
        segments
    }

    /// Whether [`Held::lend`] would.
    #[must_use]
    pub fn may_lend(&self, fence: &Fence) -> bool {
        self.is_kept_by(fence) && (self.lent || self.context == Some(Context::DENY))
    }

    /// Writes what gives the backend this context for the transaction that begins with it, ahead of a
    /// segment of the client's that must not run without it. Returns whether it begins with a Parse;
    /// `None`: nothing is written, since the backend may have a context of another transaction's.
    ///
    /// Whatever of the client's follows must leave the transaction alone, or not need the context behind it.
    pub fn lend(&mut self, fence: &Arc<Fence>, context: &Context, out: &mut BytesMut) -> Option<bool> {
        if !self.may_lend(fence) {
            return None;
        }
        (self.context, self.untouched, self.lent) = (None, false, true);
        Some(self.lend_again(fence, context, out))
    }

    /// [`Held::lend`] once more, to another transaction of the lease that has been lent the same context.
    pub fn lend_again(&mut self, fence: &Arc<Fence>, context: &Context, out: &mut BytesMut) -> bool {
        self.by = Some(fence.clone());
        let parses = !std::mem::replace(&mut self.lends, true);
        if parses {
            out.extend_from_slice(&fence.lends.parse);
        }
        fence.set(&fence.lends, context, self.pid, out);
        parses
    }

    /// The context has been set by [`Fence::restore`].
    pub fn set_within(&mut self, scope: Scope) {
        let lent = scope == Scope::Transaction && (self.lent || self.context == Some(Context::DENY));
        (self.context, self.untouched, self.lent) = (None, false, lent);
    }

    /// Whether the tenant's value may be what the session had when this context was lent: none, or that same
    /// context. Any other was left by a function, in another lease.
    #[must_use]
    pub fn may_have_had(&self, value: Option<&[u8]>, context: &Context) -> bool {
        let own = |value: &[u8]| {
            self.by.as_ref().is_some_and(|by| by.values(context, self.pid)[0].as_bytes() == value)
        };
        value.is_none_or(|value| value.is_empty() || own(value))
    }

    fn write(&mut self, fence: &Fence, context: &Context, out: &mut BytesMut) -> bool {
        let parses = !std::mem::replace(&mut self.brings, true);
        if parses {
            out.extend_from_slice(&fence.brings.parse);
        }
        fence.set(&fence.brings, context, self.pid, out);
        out.extend_from_slice(compose::SYNC);
        parses
    }

    fn is_kept_by(&self, fence: &Fence) -> bool {
        self.by.as_ref().is_some_and(|by| by.brings.name == fence.brings.name)
    }

    /// Whether anybody has ever given it one.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.by.is_some()
    }

    /// Whether a tenant's context is on the backend, or might be, that must not stay on an idle one.
    #[must_use]
    pub fn is_to_be_denied(&self) -> bool {
        !self.lent && self.is_doubtful()
    }

    /// Whether the backend has not said since its last client that it has no tenant, though it should.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        // Also from nobody's session: a function may have named a tenant unseen.
        self.by.as_ref().is_some_and(|by| by.strict)
            && !(self.untouched && self.context == Some(Context::DENY))
    }

    /// Writes what takes the context back; [`Held::denied`] judges the answer. Returns how many columns
    /// that has; `None`: there is no context.
    pub fn write_deny(&mut self, out: &mut BytesMut) -> Option<usize> {
        let by = self.by.clone()?;
        self.doubt();
        self.write(&by, &Context::DENY, out);
        Some(by.keys().count())
    }

    /// The backend has said that its settings are empty now.
    pub fn denied(&mut self) {
        self.context = Some(Context::DENY);
        (self.untouched, self.lent) = (true, false);
    }

    /// The settings, and the values that they are known to have.
    #[must_use]
    pub fn known(&self) -> Vec<(String, String)> {
        let (Some(by), Some(context)) = (&self.by, &self.context) else { return Vec::new() };
        let values = by.values(context, self.pid);
        by.keys().zip(values).map(|(key, value)| (key.to_owned(), value.into_owned())).collect()
    }

    /// Something may have changed the settings.
    pub fn doubt(&mut self) {
        (self.context, self.lent) = (None, false);
    }

    /// The backend's prepared statements are gone.
    pub fn lose_statements(&mut self) {
        (self.brings, self.lends) = (false, false);
    }

    /// The Parse that [`Held::lend`] has written did not run.
    pub fn lose_lending(&mut self) {
        self.lends = false;
    }
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
