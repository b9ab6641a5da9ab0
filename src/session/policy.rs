//! What a session may leave on a backend beyond its transaction, as its pool's policy says
//! (wire.md C3).
//!
//! The policy is kept as sets of traces, so that asking costs an `and`. What a text leaves is found by
//! [`crate::wire::sql::scan`].

use super::Session;
use super::message::query_text;
use super::reply::{self, Fault};
use super::tracker::{Injected, OpKind};
use crate::config::{Config, Mode, Policies, Policy, PoolMode, PoolRules};
use crate::wire::error::Report;
use crate::wire::frontend::Kind;
use crate::wire::sql::scan::{Traces, scan};
use crate::wire::walk::{HEADER, cstr};
use bytes::BytesMut;

/// A Query that is none: an error, as the one that was refused should have been.
const FAIL_QUERY: &[u8] = b"Q\0\0\0\x20statement refused by bursar\0";

/// See the module's page.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Masks {
    /// Cleared when the transaction ends.
    pub(super) scrubbed: Traces,
    /// Not let through to the server.
    pub(super) refused: Traces,
    /// Looked for in every text: what is refused, and what pins where a tenant's pins are bounded (B17).
    pub(super) guarded: Traces,
}

impl Masks {
    /// Of a session in `mode`. In session mode the backend is the session's own, with all that is on it.
    pub(super) fn of(rules: &PoolRules, mode: PoolMode, config: &Config) -> Masks {
        let mut masks = Masks::default();
        if mode == PoolMode::Session {
            return masks;
        }
        let mut tenants = config.tenants.values().chain([&config.tenant_default]);
        let bounded = tenants.any(|tenant| tenant.mode == Mode::Enforce);
        let Policies { listen, temp_table, advisory_lock, hold_cursor, prepare, load } = rules.policy;
        for (policy, trace) in [
            (listen, Traces::LISTEN),
            (temp_table, Traces::TEMP),
            (advisory_lock, Traces::LOCK),
            (hold_cursor, Traces::HOLD),
            (prepare, Traces::PREPARE),
            (load, Traces::LOAD),
        ] {
            match policy {
                Policy::Pin if bounded => masks.guarded = masks.guarded.with(trace),
                Policy::Pin => {}
                Policy::Scrub => masks.scrubbed = masks.scrubbed.with(trace),
                Policy::Refuse => masks.refused = masks.refused.with(trace),
            }
        }
        masks.guarded = masks.guarded.with(masks.refused);
        masks
    }

    /// What a text would leave that is looked for.
    pub(super) fn found_in(self, text: &[u8]) -> Traces {
        scan(text).traces.only(self.guarded)
    }
}

impl<S> Session<S> {
    /// Refuses a statement that would leave what the pool's policy does not allow, or pin one lease more
    /// than may be (B17), where and as the server would: in a transaction it fails the transaction. Returns whether it did.
    pub(super) fn refuse_state(&mut self, kind: Kind, total: usize) -> bool {
        let bytes = self.up.lane.unwalked();
        // A second look is not needed, nor is a text that no scan can tell anything of; and in a COPY the
        // server has more to say.
        if self.glanced.is_some() || bytes.len() < total || self.tracker.is_copying_in() {
            return false;
        }
        let text = match kind {
            Kind::Query => Some(query_text(bytes, total).0),
            _ => cstr(&bytes[HEADER..total]).and_then(|(_, rest)| cstr(rest)).map(|(text, _)| text),
        };
        let found = text.map_or(Traces::NONE, |text| self.policy.found_in(text));
        let refused = found.only(self.policy.refused);
        let report = if found.is_none() {
            return false;
        } else if !refused.is_none() {
            reply::fault(&Fault::StateRefused { kind: refused.reason() })
        } else if self.lease.is_some() && self.linked.pinned {
            return false;
        } else {
            let tag = self.resolve(self.now);
            let Err(refusal) = self.pools.may_pin(self.pool.id, &tag.tenant) else { return false };
            reply::refusal(&refusal)
        };
        self.refuse_message(kind, total, &report);
        true
    }

    /// Refuses a message that asks for something of a backend, where and as the server would: in a
    /// transaction it fails the transaction.
    pub(super) fn refuse_message(&mut self, kind: Kind, total: usize, report: &Report) {
        self.glanced = None;
        if !matches!(kind, Kind::Query | Kind::FunctionCall) {
            let op = if kind == Kind::Parse { OpKind::Parse } else { OpKind::Execute };
            return self.refuse_here(op, total, BytesMut::new(), report);
        }
        if self.lease.is_some() {
            self.up.lane.put(FAIL_QUERY);
            self.tracker.inject(OpKind::Query, Injected::Failure);
            self.set_injected(true);
        }
        self.fail_unleased();
        self.make_up(OpKind::Query, total, |_, out| report.encode(out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canned_query_has_the_right_length() {
        let total = crate::wire::walk::Header::read(FAIL_QUERY).unwrap().total();
        assert_eq!(total, Some(FAIL_QUERY.len()));
    }

    #[test]
    fn kinds_are_named_as_their_keys() {
        let all = Policies {
            listen: Policy::Refuse,
            temp_table: Policy::Refuse,
            advisory_lock: Policy::Refuse,
            hold_cursor: Policy::Refuse,
            prepare: Policy::Refuse,
            load: Policy::Refuse,
        };
        let rules = PoolRules { policy: all, ..PoolRules::default() };
        let masks = Masks::of(&rules, PoolMode::Transaction, &Config::default());
        let of_session = Masks::of(&rules, PoolMode::Session, &Config::default());
        for (text, kind) in [
            ("listen news", "listen"),
            ("select 1; create temp table t ()", "temp_table"),
            ("select pg_advisory_lock(1)", "advisory_lock"),
            ("declare c cursor with hold for select 1", "hold_cursor"),
            ("prepare s as select 1", "prepare"),
            ("load 'auto_explain'", "load"),
        ] {
            assert_eq!(masks.found_in(text.as_bytes()).reason(), kind, "{text}");
            assert!(of_session.found_in(text.as_bytes()).is_none(), "{text}");
        }
        for text in ["set work_mem = '1MB'", "select 'listen'", "select pg_advisory_xact_lock(1)", "do $$$$"]
        {
            assert!(masks.found_in(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn what_is_scrubbed_is_not_refused_and_what_pins_is_looked_for_where_pins_are_bounded() {
        let policy = Policies { listen: Policy::Scrub, load: Policy::Refuse, ..Policies::default() };
        let rules = PoolRules { policy, ..PoolRules::default() };
        let mut config = Config::default();
        let masks = Masks::of(&rules, PoolMode::Statement, &config);
        assert_eq!(
            (masks.scrubbed, masks.refused, masks.guarded),
            (Traces::LISTEN, Traces::LOAD, Traces::LOAD)
        );
        config.tenant_default.mode = Mode::Enforce;
        let masks = Masks::of(&rules, PoolMode::Statement, &config);
        assert_eq!(masks.found_in(b"listen news; create temp table t ()"), Traces::TEMP);
    }
}
