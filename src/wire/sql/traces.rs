//! Names for what a session may leave behind on a backend, and what CommandComplete tags say of it
//! (wire.md C2). [`scan`](super::scan) says it of texts; how it is cleared is not decided here.

/// What a text may leave behind; bits are or-ed over all statements of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traces(u16);

impl Traces {
    /// Nothing.
    pub const NONE: Traces = Traces(0);
    /// A session-level SET, RESET, `set_config(…, false)`, SET ROLE, SET SESSION AUTHORIZATION, DISCARD
    /// ALL; [`settings`](super::settings) names what is set.
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
    /// Settings that nobody can name have been changed.
    pub const HIDDEN: Traces = Traces(512);

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

    /// Those that are also in `other`.
    #[must_use]
    pub const fn only(self, other: Traces) -> Traces {
        Traces(self.0 & other.0)
    }

    /// Whether any of `other` is there.
    #[must_use]
    pub const fn any(self, other: Traces) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether all of `other` are there.
    #[must_use]
    pub const fn has(self, other: Traces) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those that are in both.
    #[must_use]
    pub const fn and(self, other: Traces) -> Traces {
        Traces(self.0 & other.0)
    }

    /// Whether nothing is there.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The name users see as a pin's reason, for the lowest bit set; empty for none.
    #[must_use]
    pub fn reason(self) -> &'static str {
        const NAMES: [&str; 10] = [
            "setting",
            "listen",
            "temp_table",
            "advisory_lock",
            "hold_cursor",
            "prepare",
            "load",
            "suspect",
            "named_statement",
            "setting",
        ];
        NAMES.get(self.0.trailing_zeros() as usize).copied().unwrap_or("")
    }
}

/// What a CommandComplete tag says (without its NUL). A `SET` tag does not say whether it was
/// `SET LOCAL`; [`Scan::tag`](super::scan::Scan::tag) knows. `DECLARE CURSOR` does not say `WITH HOLD`; the text does.
#[must_use]
pub fn tag_traces(tag: &[u8]) -> Traces {
    match tag {
        b"SET" | b"RESET" => Traces::SETTING,
        b"LISTEN" => Traces::LISTEN,
        b"PREPARE" => Traces::PREPARE,
        b"LOAD" => Traces::LOAD,
        b"DO" | b"CALL" => Traces::SUSPECT,
        _ => Traces::NONE,
    }
}

/// Whether a CommandComplete tag that begins so is one of the commonest, which say nothing of the
/// session: none of the questions below need be asked.
#[must_use]
#[inline]
pub fn says_nothing(tag: &[u8]) -> bool {
    matches!(tag.first_chunk(), Some(b"SELECT" | b"INSERT" | b"UPDATE" | b"DELETE" | b"COMMIT"))
        || tag.first_chunk() == Some(b"BEGIN")
}

/// Whether a statement with this CommandComplete tag may end what keeps a backend: a LISTEN, a
/// temporary object, a cursor, a prepared statement.
#[must_use]
pub fn may_end_traces(tag: &[u8]) -> bool {
    [&b"UNLISTEN"[..], b"CLOSE CURSOR", b"DROP ", b"DISCARD TEMP", b"DEALLOCATE"]
        .iter()
        .any(|start| tag.starts_with(start))
}

/// Whether this CommandComplete tag says that a session's state is gone: settings, cursors, listens,
/// prepared statements, temporary tables and advisory locks. A library that was loaded stays.
#[must_use]
pub fn clears_everything(tag: &[u8]) -> bool {
    tag == b"DISCARD ALL"
}

/// Whether this CommandComplete tag says that every prepared statement is gone.
#[must_use]
pub fn deallocate_all(tag: &[u8]) -> bool {
    tag == b"DEALLOCATE ALL"
}

/// Whether this CommandComplete tag says that tables, types, functions or the like are other ones now.
#[must_use]
pub fn changes_objects(tag: &[u8]) -> bool {
    [&b"CREATE "[..], b"ALTER ", b"DROP "].iter().any(|verb| tag.starts_with(verb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_has_no_other_answer() {
        for tag in ["SELECT 1", "INSERT 0 1", "UPDATE 3", "DELETE 0", "COMMIT", "COMMIT PREPARED", "BEGIN"] {
            let tag = tag.as_bytes();
            assert!(says_nothing(tag));
            assert_eq!(tag_traces(tag), Traces::NONE);
            assert!(!may_end_traces(tag) && !changes_objects(tag));
            assert!(!clears_everything(tag) && !deallocate_all(tag));
        }
        for tag in
            ["ROLLBACK", "SET", "DECLARE CURSOR", "DEALLOCATE", "CREATE TABLE", "DISCARD ALL", "DO", ""]
        {
            assert!(!says_nothing(tag.as_bytes()), "{tag}");
        }
    }

    #[test]
    fn tags() {
        assert_eq!(tag_traces(b"SET"), Traces::SETTING);
        assert_eq!(tag_traces(b"RESET"), Traces::SETTING);
        assert_eq!(tag_traces(b"SET CONSTRAINTS"), Traces::NONE);
        assert_eq!(tag_traces(b"LISTEN"), Traces::LISTEN);
        assert_eq!(tag_traces(b"PREPARE"), Traces::PREPARE);
        assert_eq!(tag_traces(b"PREPARE TRANSACTION"), Traces::NONE);
        assert_eq!(tag_traces(b"LOAD"), Traces::LOAD);
        assert_eq!(tag_traces(b"DO"), Traces::SUSPECT);
        assert_eq!(tag_traces(b"CALL"), Traces::SUSPECT);
        assert_eq!(tag_traces(b"DECLARE CURSOR"), Traces::NONE);
        assert_eq!(tag_traces(b"SELECT 1"), Traces::NONE);
        assert!(clears_everything(b"DISCARD ALL") && !clears_everything(b"DISCARD TEMP"));
        assert!(changes_objects(b"DROP TYPE") && !changes_objects(b"DELETE 1"));
        assert!(deallocate_all(b"DEALLOCATE ALL") && !deallocate_all(b"DEALLOCATE"));
        assert!(may_end_traces(b"DROP TABLE") && may_end_traces(b"CLOSE CURSOR ALL"));
        assert!(!may_end_traces(b"SELECT 1"));
    }

    #[test]
    fn the_lowest_bit_names_the_pin() {
        assert_eq!(Traces::NONE.reason(), "");
        assert_eq!(Traces::TEMP.with(Traces::LOCK).reason(), "temp_table");
        assert_eq!(Traces::STATEMENT.reason(), "named_statement");
        assert_eq!(Traces::HIDDEN.reason(), "setting");
        assert!(Traces::TEMP.with(Traces::LOCK).has(Traces::LOCK) && !Traces::LOCK.has(Traces::TEMP));
    }
}
