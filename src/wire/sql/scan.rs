//! What a statement text may leave behind on a backend (wire.md C2).

/// What a text may leave behind; bits are or-ed over all statements of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traces(u16);

impl Traces {
    /// Nothing.
    pub const NONE: Traces = Traces(0);
    /// A session-level SET, RESET, `set_config(…, false)`, SET ROLE, SET SESSION AUTHORIZATION.
    pub const SETTING: Traces = Traces(1);
    /// LISTEN.
    pub const LISTEN: Traces = Traces(2);
    /// A temporary table, view or sequence.
    pub const TEMP: Traces = Traces(4);
    /// A session-level advisory lock.
    pub const LOCK: Traces = Traces(8);
    /// `DECLARE … WITH HOLD`.
    pub const HOLD: Traces = Traces(16);
    /// SQL-level PREPARE.
    pub const PREPARE: Traces = Traces(32);
    /// LOAD.
    pub const LOAD: Traces = Traces(64);
    /// DO, CALL, or a text too long to scan: may have done anything, nobody can see what.
    pub const SUSPECT: Traces = Traces(128);
    /// A named protocol-level statement (never from a text scan; the tracker says it).
    pub const STATEMENT: Traces = Traces(256);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Traces) -> Traces {
        Traces(self.0 | other.0)
    }

    /// Without those of `other`.
    #[must_use]
    pub const fn without(self, other: Traces) -> Traces {
        Traces(self.0 & !other.0)
    }

    /// Whether any of `other` is there.
    #[must_use]
    pub const fn any(self, other: Traces) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether nothing is there.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The name users see as a pin's reason, for the lowest bit set; empty for none.
    #[must_use]
    pub fn reason(self) -> &'static str {
        const NAMES: [&str; 9] = [
            "setting",
            "listen",
            "temp_table",
            "advisory_lock",
            "hold_cursor",
            "prepare",
            "load",
            "suspect",
            "named_statement",
        ];
        NAMES.get(self.0.trailing_zeros() as usize).copied().unwrap_or("")
    }
}
