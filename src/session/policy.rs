//! What a session may leave on a backend beyond its transaction, as its pool's policy says
//! (wire.md C3).
//!
//! The policy is kept as two sets of traces, so that asking costs an `and`. What a text leaves is found
//! by [`crate::wire::sql::scan`].

use crate::config::{Policies, Policy, PoolMode, PoolRules};
use crate::wire::sql::scan::{Traces, scan};

/// See the module's page.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Masks {
    /// Cleared when the transaction ends.
    pub(super) scrubbed: Traces,
    /// Not let through to the server.
    pub(super) refused: Traces,
}

impl Masks {
    /// Of a session in `mode`. In session mode the backend is the session's own, with all that is on it.
    pub(super) fn of(rules: &PoolRules, mode: PoolMode) -> Masks {
        let mut masks = Masks::default();
        if mode == PoolMode::Session {
            return masks;
        }
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
                Policy::Pin => {}
                Policy::Scrub => masks.scrubbed = masks.scrubbed.with(trace),
                Policy::Refuse => masks.refused = masks.refused.with(trace),
            }
        }
        masks
    }

    /// The kind of what a text would leave and must not, by its key; `None` = the text may pass.
    pub(super) fn refuses(self, text: &[u8]) -> Option<&'static str> {
        let found = scan(text).traces.only(self.refused);
        (!found.is_none()).then(|| found.reason())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let masks = Masks::of(&rules, PoolMode::Transaction);
        for (text, kind) in [
            ("listen news", "listen"),
            ("select 1; create temp table t ()", "temp_table"),
            ("select pg_advisory_lock(1)", "advisory_lock"),
            ("declare c cursor with hold for select 1", "hold_cursor"),
            ("prepare s as select 1", "prepare"),
            ("load 'auto_explain'", "load"),
        ] {
            assert_eq!(masks.refuses(text.as_bytes()), Some(kind), "{text}");
            assert_eq!(Masks::of(&rules, PoolMode::Session).refuses(text.as_bytes()), None, "{text}");
            assert_eq!(Masks::default().refuses(text.as_bytes()), None, "{text}");
        }
        for text in ["set work_mem = '1MB'", "select 'listen'", "select pg_advisory_xact_lock(1)", "do $$$$"]
        {
            assert_eq!(masks.refuses(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_is_scrubbed_is_not_refused() {
        let policy = Policies { listen: Policy::Scrub, load: Policy::Refuse, ..Policies::default() };
        let masks = Masks::of(&PoolRules { policy, ..PoolRules::default() }, PoolMode::Statement);
        assert_eq!((masks.scrubbed, masks.refused), (Traces::LISTEN, Traces::LOAD));
    }
}
