//! The tenant that a client tells PostgreSQL, read along the way: `SET LOCAL app.tenant_id = 'acme'` and
//! `set_config('app.tenant_id', $1, true)` of the settings in `[tag] tenant_keys` name the tenant of the
//! transaction, so an application that keeps row-level security by itself is tagged as it is (budgets.md §2.2).
//!
//! Who says two things at once, a tenant by a tag and another one by such a setting, mixes the work of two
//! tenants: V1 (§2.7), which `[isolation] mode` decides about here, since nothing of Bursar's depends on it.
//!
//! The text goes to the server as it is; what it means there is not looked at.

use super::Session;
use super::message::query_text;
use super::up::Next;
use crate::config::Mode;
use crate::metrics::Isolation;
use crate::statements::session::Look;
use crate::tag::Key;
use crate::wire::frontend::{Kind, bind_names, bind_values};
use crate::wire::sql::assigned::{Given, assigned};
use crate::wire::walk::{HEADER, Header, cstr};

impl<S> Session<S> {
    /// A Query, Parse or Bind is about to be decided. `Some`: it was refused.
    pub(super) fn hear_tenant(&mut self, kind: Kind, total: usize) -> Option<Next> {
        let bytes = self.up.lane.unwalked();
        if bytes.len() < total || self.tracker.is_copying_in() {
            return None;
        }
        let told = match kind {
            Kind::Query => self.told_by(query_text(bytes, total).0, None),
            Kind::Parse => {
                // Whose a lease is, is decided with the Parse: what it will be bound to may be there already.
                let (name, rest) = cstr(&bytes[HEADER..total])?;
                let (text, _) = cstr(rest)?;
                let bound = bind_behind(&bytes[total..], name)?;
                self.told_by(text, Some(bound))
            }
            Kind::Bind => {
                let body = &bytes[HEADER..total];
                let (_, name) = bind_names(body)?;
                let shared;
                let text = if name.is_empty() {
                    let message = self.statements.unnamed().1?;
                    cstr(message.get(HEADER + 1..)?)?.0
                } else {
                    let Look::Shared(statement) = self.statements.look(name) else { return None };
                    shared = statement;
                    shared.text()
                };
                self.told_by(text, Some(body))
            }
            _ => return None,
        };
        for (value, local) in told {
            if let Some(refused) = self.take_tenant(kind, total, value.as_deref(), local) {
                return Some(refused);
            }
        }
        None
    }

    /// The values that a text gives to the settings, with a Bind's body for its parameters.
    fn told_by(&self, text: &[u8], bound: Option<&[u8]>) -> Vec<(Option<String>, bool)> {
        let keys = self.config.tag.tenant_keys.iter().map(String::as_str);
        let known = |given| match given {
            Given::Value(value) => Some(Some(value)),
            Given::Default => Some(None),
            Given::Parameter(number) => {
                let value = *bind_values(bound?)?.get(number.checked_sub(1)?)?;
                Some(Some(str::from_utf8(value?).ok()?.to_owned()))
            }
        };
        assigned(text, keys)
            .into_iter()
            .filter_map(|assigned| Some((known(assigned.given)?, assigned.local)))
            .collect()
    }

    /// One of the settings is given a value. `Some`: not by this message.
    fn take_tenant(&mut self, kind: Kind, total: usize, value: Option<&str>, local: bool) -> Option<Next> {
        let told = value.filter(|value| !value.is_empty());
        // Looked at before, where the message had to wait.
        if self.tags.tenant_key(local) == told {
            return None;
        }
        if told.is_some_and(|told| self.tags.denies_tenant(&self.config.tag, told)) {
            // Of a Parse nothing runs; its Bind comes here too.
            if kind == Kind::Parse {
                return None;
            }
            let tag = self.resolve(self.now);
            let mode = self.config.isolation.mode;
            if mode == Mode::Enforce {
                let report = self.violated(Isolation::V1, &tag);
                self.refuse_message(kind, total, &report);
                return Some(Next::Done);
            }
            self.pools.metrics.isolation.inc(Isolation::V1);
            if mode == Mode::Warn {
                crate::pool::events::isolation(Isolation::V1, &self.cell, &tag, false);
            }
        }
        self.tags.set_tenant_key(local, value);
        let tag = self.resolve(self.now);
        match self.lease {
            None => self.cell.tagged(&tag),
            Some(_) => self.cell.bound(tag.own()),
        }
        None
    }

    /// Whether a transaction works for another tenant by such a setting than a tag is about to say.
    pub(super) fn keys_deny(&self, key: Key, told: Option<&str>) -> bool {
        let by_key = self.tags.tenant_key(true);
        key == Key::Tenant && told.is_some() && by_key.is_some() && by_key != told
    }
}

/// The body of the Bind of this statement in what the client has sent behind its Parse.
fn bind_behind<'b>(mut bytes: &'b [u8], name: &[u8]) -> Option<&'b [u8]> {
    loop {
        let head = Header::read(bytes)?;
        let total = head.total()?;
        let body = bytes.get(HEADER..total)?;
        match Kind::of(head.kind)? {
            Kind::Describe => bytes = &bytes[total..],
            Kind::Bind => return bind_names(body).filter(|(_, bound)| *bound == name).map(|_| body),
            _ => return None,
        }
    }
}
