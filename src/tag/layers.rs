//! What one session was told about whose work it does, in layers, and what that comes to.
//!
//! | layer | from | until |
//! |---|---|---|
//! | startup | start-up packet, `options` | the session ends |
//! | session | `SET bursar.x` | changed, reset (`RESET ALL` too), or (request only) stale |
//! | local | `SET LOCAL bursar.x`, `set_config(…, true)` | the transaction ends |
//! | comment | a comment in a statement | the statement ends, or the transaction it opened |
//! | key | `SET` and `SET LOCAL` of a setting in `[tag] tenant_keys` | as `SET` and `SET LOCAL` of a tag |
//!
//! Which layer names the tenant and the request is configured (`[tag]`); for all other keys the later
//! row of the table wins. A session-level SET inside a transaction is not undone by ROLLBACK, unlike
//! PostgreSQL's settings: a tag says whose work this is, and that stays true.
//!
//! Whether a value may be believed, and what a tag costs, is not decided here.

use super::value::{MAX_VALUE, TagError, check, printable};
use super::{Key, Tag};
use crate::config::{TagRules, TagSource};
use std::sync::Arc;
use std::time::Instant;

/// Comment pairs kept; more are ignored.
const PAIRS: usize = 16;

/// Which layer a SET goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// From the start-up packet.
    Startup,
    /// `SET` and `SET SESSION`.
    Session,
    /// `SET LOCAL`, inside a transaction.
    Local,
}

/// Who a session is, apart from its tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The role it logged in as.
    pub user: &'a str,
    /// The database it asked for.
    pub database: &'a str,
    /// Its `application_name`, possibly empty.
    pub application_name: &'a str,
    /// What [`split_user`] took off the user name.
    pub user_suffix: Option<&'a str>,
}

/// Splits what follows the last `.` off a user name, if `[tag] tenant` asks for it: the role to log in
/// as, and the suffix. Role names may contain dots themselves: a caller that knows the full name as a
/// role does not ask.
#[must_use]
pub fn split_user<'a>(user: &'a str, rules: &TagRules) -> (&'a str, Option<&'a str>) {
    match user.rsplit_once('.') {
        Some((login, suffix))
            if rules.tenant.contains(&TagSource::UserSuffix) && !login.is_empty() && !suffix.is_empty() =>
        {
            (login, Some(suffix))
        }
        _ => (user, None),
    }
}

/// Whether `[tag]` reads the tenant or the request from this comment key: then a comment with it is
/// ours, whatever the key.
#[must_use]
pub fn reads_comment(rules: &TagRules, key: &str) -> bool {
    let mut sources = rules.tenant.iter().chain(&rules.request);
    sources.any(|source| matches!(source, TagSource::Comment(name) if name == key))
}

/// Values by key; an empty one was set explicitly and hides the layers below it. Most sessions use
/// few layers, and an idle one should be small.
#[derive(Debug, Default)]
struct Layer(Option<Box<[Option<Arc<str>>; Key::ALL.len()]>>);

impl Layer {
    fn get(&self, key: Key) -> Option<&Arc<str>> {
        self.0.as_ref()?[key as usize].as_ref()
    }

    fn set(&mut self, key: Key, value: Option<Arc<str>>) -> Option<Arc<str>> {
        if self.0.is_none() && value.is_none() {
            return None;
        }
        std::mem::replace(&mut self.0.get_or_insert_default()[key as usize], value)
    }

    fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|values| values.iter().all(Option::is_none))
    }
}

/// Values by comment key.
type Comment = Vec<(Box<str>, Arc<str>)>;

/// The tags of one session.
#[derive(Debug, Default)]
pub struct Tags {
    startup: Layer,
    session: Layer,
    local: Layer,
    /// The comment of the statement that runs.
    statement: Comment,
    /// The comment of the statement that opened the transaction.
    opened: Comment,
    /// The tenant by a setting of `tenant_keys`: the session's, and the transaction's.
    keys: [Option<Arc<str>>; 2],
    in_transaction: bool,
    /// When the session-level request tag was last set or used.
    used: Option<Instant>,
    /// When it was last set.
    told: Option<Instant>,
    stale: u64,
    ended: Option<Arc<str>>,
    resolved: Option<Arc<Tag>>,
}

impl Tags {
    /// Sets a key; `None` is RESET and DEFAULT: back to the start-up value. An empty value is no value.
    /// `SET LOCAL` outside a transaction has no effect in PostgreSQL, and is the caller's to leave out.
    ///
    /// # Errors
    /// [`TagError`]; nothing has changed then.
    pub fn set(&mut self, scope: Scope, key: Key, value: Option<&str>, now: Instant) -> Result<(), TagError> {
        if let Some(value) = value {
            check(key, value)?;
        }
        let told = value.is_some_and(|value| !value.is_empty());
        let value = value.map(Arc::from);
        let before = self.current(key).filter(|_| key == Key::RequestId).cloned();
        match scope {
            Scope::Startup => drop(self.startup.set(key, value)),
            Scope::Session => {
                self.session.set(key, value);
                // The latest SET holds, also over an earlier SET LOCAL of the same transaction.
                self.local.set(key, None);
                if key == Key::RequestId {
                    self.used = told.then_some(now);
                    self.told = self.used;
                }
            }
            Scope::Local => {
                let default = || self.startup.get(key).cloned().unwrap_or_default();
                self.local.set(key, Some(value.unwrap_or_else(default)));
            }
        }
        self.resolved = None;
        // RESET back to the same start-up value ends nothing.
        if scope == Scope::Session && !told && self.current(key) != before.as_ref() {
            self.ended = before.or(self.ended.take());
        }
        Ok(())
    }

    /// `RESET ALL` has run: every key is back at its start-up value. It ends no request: a driver's pool says
    /// it for one connection, while others may work on.
    pub fn reset_all(&mut self) {
        self.session = Layer::default();
        (self.used, self.told) = (None, None);
        self.resolved = None;
    }

    /// Whether [`Tags::reset_all`] would take anything away.
    #[must_use]
    pub fn is_set(&self) -> bool {
        !self.session.is_empty()
    }

    /// Takes the pairs of a statement's comment, keys without `bursar_`, a trace context as its trace
    /// id. Values that a SET would refuse are ignored: a comment cannot be answered.
    pub fn comment<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.statement.clear();
        for (key, value) in pairs.into_iter().take(PAIRS) {
            let refused = match Key::of(key) {
                Some(key) => check(key, value).is_err(),
                None => !printable(value),
            };
            if !refused && !value.is_empty() {
                self.statement.push((key.into(), value.into()));
            }
        }
        self.resolved = None;
    }

    /// A statement (or pipeline) has ended: ReadyForQuery, `in_transaction` unless its status is `I`.
    /// The comment of the statement that opened the transaction stays, every other one goes.
    pub fn end_statement(&mut self, in_transaction: bool) {
        if !in_transaction {
            return self.end_transaction();
        }
        if !std::mem::replace(&mut self.in_transaction, true) {
            self.opened = std::mem::take(&mut self.statement);
        } else if !self.statement.is_empty() {
            self.statement = Comment::new();
            self.resolved = None;
        }
    }

    /// The statement that runs has got a backend. In a transaction whose BEGIN had no comment, and no backend
    /// either, it is the one that opens it.
    pub fn leased(&mut self) {
        if self.in_transaction && self.opened.is_empty() {
            self.opened.clone_from(&self.statement);
        }
    }

    /// The transaction has ended, either way: local values and comments go.
    pub fn end_transaction(&mut self) {
        self.in_transaction = false;
        let key = self.keys[1].take().is_some();
        let local = key || !self.local.is_empty();
        if local || !self.statement.is_empty() || !self.opened.is_empty() {
            self.local = Layer::default();
            self.statement = Comment::new();
            self.opened = Comment::new();
            self.resolved = None;
        }
    }

    /// The tenant that a setting of `tenant_keys` names until the end of the transaction (`local`), or for the
    /// session.
    #[must_use]
    pub fn tenant_key(&self, local: bool) -> Option<&str> {
        self.keys[usize::from(local)].as_deref()
    }

    /// A setting of `tenant_keys` is given this value; `None` and an empty one say nothing. One that no tag may
    /// have says nothing either: it is PostgreSQL's to refuse.
    pub fn set_tenant_key(&mut self, local: bool, value: Option<&str>) {
        let value =
            value.filter(|value| !value.is_empty() && check(Key::Tenant, value).is_ok()).map(Arc::from);
        if !local {
            // The latest SET holds, also over an earlier SET LOCAL of the same transaction.
            self.keys[1] = None;
        }
        self.keys[usize::from(local)] = value;
        self.resolved = None;
    }

    /// Whether a tag, or the transaction's earlier word by such a setting, says another tenant than this.
    #[must_use]
    pub fn denies_tenant(&self, rules: &TagRules, tenant: &str) -> bool {
        let says = |source: &TagSource| match source {
            TagSource::Set => self.set_value(Key::Tenant),
            TagSource::Startup => self.startup.get(Key::Tenant),
            TagSource::Comment(name) => self.comment_value(name),
            _ => None,
        };
        let tags = rules.tenant.iter().filter_map(says).find(|value| !value.is_empty());
        tags.or(self.keys[1].as_ref()).is_some_and(|said| **said != *tenant)
    }

    /// A lease on these tags' behalf has just ended: the request tag was in use until now.
    pub fn used(&mut self, now: Instant) {
        if self.used.is_some() {
            self.used = Some(now);
        }
    }

    /// The book has closed this request: a session that still carries it carries a stale tag. Returns
    /// whether it did.
    pub fn request_closed(&mut self, request: &str) -> bool {
        let carried = self.session.get(Key::RequestId).is_some_and(|id| **id == *request);
        if carried {
            self.drop_stale();
        }
        carried
    }

    /// What `SHOW bursar.key` reads back: local, session, start-up, in this order; comments do not
    /// show. A key that nobody has set is `""`: PostgreSQL says that of a placeholder once it was set in
    /// the session and reset, and an application that reads its tag back should not get an error
    /// (42704) from a fresh connection and none from a used one.
    #[must_use]
    pub fn show(&self, key: Key) -> &str {
        self.current(key).map_or("", |value| value)
    }

    /// The request whose end was said (`SET bursar.request_id = ''`, RESET, DEFAULT) since last asked.
    pub fn take_ended(&mut self) -> Option<Arc<str>> {
        self.ended.take()
    }

    /// Request tags dropped as stale so far.
    #[must_use]
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// The rules or the identity have changed: resolve anew.
    pub fn invalidate(&mut self) {
        self.resolved = None;
    }

    /// What the tags come to now. Computed when something has changed, or when the session's request tag
    /// has become stale (`idle_ttl` without use, outside a transaction).
    pub fn resolve(&mut self, rules: &TagRules, identity: &Identity<'_>, now: Instant) -> &Arc<Tag> {
        if let Some(used) = self.used {
            if !self.in_transaction && now.saturating_duration_since(used) > rules.idle_ttl {
                self.drop_stale();
            } else {
                self.used = Some(now);
            }
        }
        let resolved = self.resolved.take().unwrap_or_else(|| Arc::new(self.compute(rules, identity)));
        self.resolved.insert(resolved)
    }

    /// What the tags have come to, kept but once for sessions one after another of which it is the same:
    /// `last` is the last one's.
    pub fn share(&mut self, last: &mut Arc<Tag>) {
        if let Some(resolved) = &mut self.resolved {
            if resolved == last {
                resolved.clone_from(last);
            } else {
                last.clone_from(resolved);
            }
        }
    }

    fn drop_stale(&mut self) {
        let dropped = self.session.set(Key::RequestId, None);
        (self.used, self.told) = (None, None);
        if dropped.is_some() {
            self.stale += 1;
            self.resolved = None;
        }
    }

    /// The value that SHOW shows, unless empty.
    fn current(&self, key: Key) -> Option<&Arc<str>> {
        self.set_value(key).or(self.startup.get(key)).filter(|value| !value.is_empty())
    }

    /// What SET or SET LOCAL says, an explicit empty value included.
    fn set_value(&self, key: Key) -> Option<&Arc<str>> {
        self.local.get(key).or(self.session.get(key))
    }

    /// What the comments say: the statement's own, then the one that opened the transaction.
    fn comment_value(&self, key: &str) -> Option<&Arc<str>> {
        let of = |comment: &'_ Comment| comment.iter().rposition(|(known, _)| **known == *key);
        match of(&self.statement) {
            Some(i) => self.statement.get(i),
            None => of(&self.opened).and_then(|i| self.opened.get(i)),
        }
        .map(|(_, value)| value)
    }

    /// The value of a key outside the configured lists.
    fn value(&self, key: Key) -> Option<Arc<str>> {
        self.comment_value(key.name()).or_else(|| self.current(key)).cloned()
    }

    /// The first source of `sources` that has a value.
    fn first_of<'a>(
        &self,
        sources: &'a [TagSource],
        key: Key,
        identity: &Identity<'_>,
    ) -> Option<(&'a TagSource, Arc<str>)> {
        let plain = |value: &str| (!value.is_empty() && printable(value)).then(|| Arc::from(value));
        let value = |source: &TagSource| match source {
            TagSource::Set => self.set_value(key).filter(|value| !value.is_empty()).cloned(),
            TagSource::Startup => self.startup.get(key).cloned().filter(|value| !value.is_empty()),
            TagSource::Comment(name) => self.comment_value(name).cloned(),
            TagSource::UserSuffix => identity.user_suffix.and_then(plain),
            TagSource::User => plain(identity.user),
            TagSource::ApplicationName => plain(identity.application_name),
            TagSource::Database => plain(identity.database),
        };
        sources.iter().find_map(|source| Some((source, value(source)?)))
    }

    fn compute(&self, rules: &TagRules, identity: &Identity<'_>) -> Tag {
        let number = |key: Key| self.value(key).and_then(|value| value.parse().ok());
        let by_key =
            self.keys[1].as_ref().or(self.keys[0].as_ref()).map(|tenant| (&TagSource::Set, tenant.clone()));
        let tenant = match self.first_of(&rules.tenant, Key::Tenant, identity) {
            said @ Some((TagSource::Set, _)) => said,
            said => by_key.or(said),
        };
        let request = self.first_of(&rules.request, Key::RequestId, identity);
        let by_session = |(source, _): &(&TagSource, Arc<str>)| {
            **source == TagSource::Set && self.local.get(Key::RequestId).is_none()
        };
        Tag {
            has_tenant: tenant.as_ref().is_some_and(|(source, _)| **source != TagSource::User),
            tenant: tenant.map_or_else(|| fallback(identity.user), |(_, tenant)| tenant),
            request_since: self.told.filter(|_| request.as_ref().is_some_and(by_session)),
            request: request.map(|(_, request)| request),
            user_id: self.value(Key::UserId),
            thread_id: self.value(Key::ThreadId),
            session_id: self.value(Key::SessionId),
            class: self.value(Key::Class),
            route: self.route(),
            call_site: self.call_site(),
            max_leases: number(Key::MaxLeases),
            max_concurrent: number(Key::MaxConcurrent),
            deadline_ms: number(Key::DeadlineMs),
            max_statement_ms: number(Key::MaxStatementMs),
            max_idle_ms: number(Key::MaxIdleMs),
            max_age_ms: number(Key::MaxAgeMs),
        }
    }

    /// A comment's `route`, its `controller#action`, or the route set.
    fn route(&self) -> Option<Arc<str>> {
        if let Some(route) = self.comment_value(Key::Route.name()) {
            return Some(route.clone());
        }
        match (self.comment_value("controller"), self.comment_value("action")) {
            (Some(controller), Some(action)) => Some(format!("{controller}#{action}").into()),
            (Some(controller), None) => Some(controller.clone()),
            _ => self.current(Key::Route).cloned(),
        }
    }

    /// What a comment says of the place in the application, or the place set.
    fn call_site(&self) -> Option<Arc<str>> {
        let said =
            [Key::CallSite.name(), "source_location"].into_iter().find_map(|key| self.comment_value(key));
        match (said, self.comment_value("file"), self.comment_value("line")) {
            (Some(said), ..) => Some(said.clone()),
            (None, Some(file), Some(line)) => Some(format!("{file}:{line}").into()),
            (None, Some(place), None) | (None, None, Some(place)) => Some(place.clone()),
            (None, None, None) => self.current(Key::CallSite).cloned(),
        }
    }
}

/// The tenant when no source has a value: the user name, made fit to show. Names that PostgreSQL
/// takes are short and pass unchanged.
fn fallback(user: &str) -> Arc<str> {
    let mut shown = String::new();
    for c in user.chars() {
        if shown.len() + c.len_utf8() > MAX_VALUE {
            break;
        }
        shown.push(if c.is_control() { '?' } else { c });
    }
    if shown.is_empty() { "?".into() } else { shown.into() }
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
