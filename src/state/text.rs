//! Statements of Bursar's own about a session's settings and leftovers.
//!
//! Every text is ASCII, whatever the values hold: bytes from 0x80 on are written as `\xHH` in an
//! escape string constant, which means a byte of the *server's* encoding. So a text means the same
//! under every `client_encoding`, `standard_conforming_strings` and `bytea_output`, and nothing a
//! client chose stands outside a literal. Functions and types are named with their schema.

use super::{Set, Setting};
use crate::wire::sql::scan::Traces;
use crate::wire::sql::settings::{IDENTITY, is_identity};

/// Settings that would bear on Bursar's own statements: undone before anything else is set.
const EARLY: [&str; 5] = [
    "statement_timeout",
    "transaction_timeout",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "default_transaction_deferrable",
];

/// Lists of names (GUC_LIST_QUOTE): `SET` would take a whole list in one literal for one name.
const LISTS: [&str; 3] = ["search_path", "temp_tablespaces", "local_preload_libraries"];

/// A deferrable transaction may wait for others before its first snapshot; Bursar's own must not.
const NOT_SERIALIZABLE: &[u8] = b"SET TRANSACTION ISOLATION LEVEL READ COMMITTED;";

/// What turns a backend that carries one set into one that carries another: two queries, each empty
/// if there is nothing to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// To be sent first: gives up the old role, timeouts, and what the new set lacks.
    pub undo: Vec<u8>,
    /// To be sent as a query of its own, which the old settings do not bear on.
    pub apply: Vec<u8>,
}

/// See [`Difference`].
///
/// Values travel as literals of `set_config(name, value, false)`, which takes them exactly as a
/// start-up packet would. A role is given up first and taken on last: it may not be allowed to set
/// the rest. Before it, SET SESSION AUTHORIZATION, which ends it.
#[must_use]
pub fn difference(from: &Set, to: &Set) -> Difference {
    let mut difference = Difference::default();
    if from == to {
        return difference;
    }
    let undone = |(name, value): &Setting| match to.value(name) {
        None => true,
        Some(new) => is_identity(name) || (EARLY.contains(&&**name) && *new != **value),
    };
    let mut undo: Vec<&Setting> = from.settings().iter().filter(|setting| undone(setting)).collect();
    undo.sort_by_key(|(name, _)| std::cmp::Reverse(rank(name)));
    if from.value("session_authorization").is_some() {
        undo.retain(|(name, _)| &**name != "session_authorization");
        difference.undo.extend_from_slice(b"RESET SESSION AUTHORIZATION;");
    }
    for (name, _) in undo {
        difference.undo.extend_from_slice(b"RESET ");
        identifier(&mut difference.undo, name);
        difference.undo.push(b';');
    }
    let lacks = |setting: &&Setting| undone(setting) || from.value(&setting.0) != Some(&*setting.1);
    difference.apply = apply(to.settings().iter().filter(lacks), to);
    difference
}

/// One SELECT that sets these; empty for none.
fn apply<'a>(settings: impl Iterator<Item = &'a Setting>, to: &Set) -> Vec<u8> {
    let mut settings: Vec<&Setting> = settings.collect();
    settings.sort_by_key(|(name, _)| rank(name));
    let mut text = Vec::new();
    if !settings.is_empty() && to.value("default_transaction_deferrable").is_some() {
        text.extend_from_slice(NOT_SERIALIZABLE);
    }
    let mut verb: &[u8] = b"SELECT ";
    for (name, value) in settings {
        text.extend_from_slice(std::mem::replace(&mut verb, b","));
        text.extend_from_slice(b"pg_catalog.set_config(");
        literal(&mut text, name.as_bytes());
        text.push(b',');
        literal(&mut text, value);
        text.extend_from_slice(b",false)");
    }
    text
}

/// Whether a set has somebody act as another role.
#[must_use]
pub fn has_role(set: &Set) -> bool {
    set.settings().iter().any(|(name, value)| is_identity(name) && **value != *b"none")
}

/// Who one is is a setting too: set last, given up first.
fn rank(name: &str) -> usize {
    IDENTITY.iter().position(|known| *known == name).map_or(0, |at| at + 1)
}

/// Sets some settings of a set again; empty for none. In a transaction as `SET`, which needs no
/// snapshot: `SET TRANSACTION ISOLATION LEVEL` may still follow.
#[must_use]
pub fn restore(set: &Set, in_transaction: bool, which: impl Fn(&str) -> bool) -> Vec<u8> {
    let chosen = set.settings().iter().filter(|(name, _)| which(name));
    if !in_transaction {
        return apply(chosen, set);
    }
    let mut settings: Vec<&Setting> = chosen.collect();
    settings.sort_by_key(|(name, _)| rank(name));
    let mut text = Vec::new();
    for (name, value) in settings {
        if !LISTS.contains(&&**name) {
            set_to(&mut text, false, name, value);
            continue;
        }
        text.extend_from_slice(b"SET ");
        identifier(&mut text, name);
        text.extend_from_slice(b" TO ");
        for (i, item) in items(value).iter().enumerate() {
            text.extend_from_slice(if i == 0 { b"" } else { b"," });
            literal(&mut text, item);
        }
        text.push(b';');
    }
    text
}

/// `SHOW` of one setting, with a semicolon behind it.
pub(super) fn show(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b"SHOW ");
    identifier(out, name);
    out.push(b';');
}

/// `SET`, or `SET LOCAL`, of one setting that is no list, with a semicolon behind it.
pub(super) fn set_to(out: &mut Vec<u8>, locally: bool, name: &str, value: &[u8]) {
    out.extend_from_slice(if locally { b"SET LOCAL " } else { b"SET " });
    identifier(out, name);
    out.extend_from_slice(b" TO ");
    literal(out, value);
    out.push(b';');
}

/// The names of a list as PostgreSQL splits one (SplitIdentifierString): quoted ones as they are, others
/// folded. Never none.
fn items(list: &[u8]) -> Vec<Vec<u8>> {
    let mut items = vec![Vec::new()];
    let mut quoted = false;
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let item = items.last_mut().expect("there is always one");
        match byte {
            b'"' if quoted && bytes.peek() == Some(&b'"') => item.extend(bytes.next()),
            b'"' => quoted = !quoted,
            b',' if !quoted => items.push(Vec::new()),
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c if !quoted => {}
            _ if quoted => item.push(byte),
            _ => item.push(byte.to_ascii_lowercase()),
        }
    }
    items
}

/// Asks for the values of settings: two rows with a column for each name, as [`from_hex`] reads it or
/// NULL for one that does not exist. First what it is, then what it would be if it were reset, as
/// the role that logged in (`roles`: the session may have taken on another).
///
/// The whole is refused if one of the names cannot be set at all, or not by that role.
#[must_use]
pub fn read_back(names: &[&str], roles: bool) -> Vec<u8> {
    let mut text = NOT_SERIALIZABLE.to_vec();
    values(&mut text, names);
    // To the end of this query, which is one transaction.
    let identities = if roles { &IDENTITY[..] } else { &[] };
    for name in identities.iter().chain(names) {
        text.extend_from_slice(b";SET LOCAL ");
        identifier(&mut text, name);
        text.extend_from_slice(b" TO DEFAULT");
    }
    text.push(b';');
    values(&mut text, names);
    text
}

fn values(text: &mut Vec<u8>, names: &[&str]) {
    let mut verb: &[u8] = b"SELECT ";
    for name in names {
        text.extend_from_slice(std::mem::replace(&mut verb, b","));
        text.extend_from_slice(b"pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting(");
        literal(text, name.as_bytes());
        text.extend_from_slice(b",true),pg_catalog.getdatabaseencoding()),'hex')");
    }
}

/// The bytes of a column of [`read_back`].
#[must_use]
pub fn from_hex(hex: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = hex.as_chunks::<2>();
    let bytes = pairs.iter().map(|&[high, low]| Some((digit(high)? * 16 + digit(low)?) as u8));
    if rest.is_empty() { bytes.collect() } else { None }
}

/// What a session may leave that [`LEFT`] asks for, in the order of its columns.
pub const LOOKED_FOR: [Traces; 5] =
    [Traces::LISTEN, Traces::TEMP, Traces::LOCK, Traces::HOLD, Traces::PREPARE];

/// Asks which of [`LOOKED_FOR`] exist on an idle backend: one row, `t` or `f` for each. 2615 is
/// pg_namespace: whatever is in the temporary schema depends on it.
pub const LEFT: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;SELECT \
    EXISTS(SELECT FROM pg_catalog.pg_listening_channels()),\
    EXISTS(SELECT FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) 2615 \
    AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()),\
    EXISTS(SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' \
    AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()),\
    EXISTS(SELECT FROM pg_catalog.pg_cursors WHERE is_holdable),\
    EXISTS(SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)";

/// Clears what these traces may be of; empty if that is nothing (or nothing that can be cleared: a
/// library stays loaded). Afterwards the backend carries [`Set::BASE`] if `traces` have anything to
/// do with settings; see [`clears_settings`].
///
/// Prepared statements go only for their own traces: `DISCARD ALL` would drop those that others share.
#[must_use]
pub fn scrub(traces: Traces) -> Vec<u8> {
    let any = |of: Traces| traces.any(of.with(Traces::SUSPECT));
    [
        // As DISCARD ALL begins (discard.c); RESET ALL leaves both of these alone.
        (clears_settings(traces), "SET SESSION AUTHORIZATION DEFAULT;RESET ROLE;RESET ALL;"),
        (any(Traces::HOLD), "CLOSE ALL;"),
        (any(Traces::LISTEN), "UNLISTEN *;"),
        (any(Traces::LOCK), "SELECT pg_catalog.pg_advisory_unlock_all();"),
        (clears_statements(traces), "DEALLOCATE ALL;"),
        (any(Traces::TEMP), "DISCARD TEMP;"),
        (any(Traces::NONE), "DISCARD SEQUENCES;"),
    ]
    .into_iter()
    .flat_map(|(wanted, text)| if wanted { text.bytes() } else { "".bytes() })
    .collect()
}

/// Whether [`scrub`] drops all prepared statements.
#[must_use]
pub fn clears_statements(traces: Traces) -> bool {
    traces.any(Traces::PREPARE.with(Traces::STATEMENT))
}

/// Whether [`scrub`] resets all settings.
#[must_use]
pub fn clears_settings(traces: Traces) -> bool {
    traces.any(Traces::SETTING.with(Traces::HIDDEN).with(Traces::SUSPECT))
}

/// Whether a backend with these settings might cut a statement of Bursar's own short: a timeout of
/// less than a second. Such a set is not left on an idle backend.
#[must_use]
pub fn is_hasty(set: &Set) -> bool {
    EARLY[..2].iter().any(|name| {
        set.value(name).is_some_and(|value| {
            let value = value.trim_ascii();
            let digits = value.iter().take_while(|b| b.is_ascii_digit()).count();
            let number = str::from_utf8(&value[..digits]).ok().and_then(|n| n.parse::<u64>().ok());
            match (number, value[digits..].trim_ascii()) {
                (Some(0), b"") => false,
                (Some(number), b"" | b"ms") => number < 1000,
                (Some(1..), b"s" | b"min" | b"h" | b"d") => false,
                _ => true,
            }
        })
    })
}

/// Each part quoted, so that no part is taken for a keyword.
fn identifier(out: &mut Vec<u8>, name: &str) {
    for (i, part) in name.split('.').enumerate() {
        if i > 0 {
            out.push(b'.');
        }
        out.push(b'"');
        out.extend_from_slice(part.as_bytes());
        out.push(b'"');
    }
}

/// An escape string constant means the same whatever `standard_conforming_strings` says.
fn literal(out: &mut Vec<u8>, value: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"E'");
    for &byte in value {
        match byte {
            b'\'' | b'\\' => out.extend_from_slice(&[byte, byte]),
            0x80.. => {
                out.extend_from_slice(&[
                    b'\\',
                    b'x',
                    HEX[usize::from(byte >> 4)],
                    HEX[usize::from(byte & 15)],
                ]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::super::Table;
    use super::*;
    use proptest::prelude::*;

    fn set(table: &mut Table, list: &[(&str, &str)]) -> Set {
        table.intern(list.iter().map(|(name, value)| (*name, value.as_bytes()))).unwrap()
    }

    fn texts(difference: &Difference) -> [&str; 2] {
        [&difference.undo, &difference.apply].map(|text| str::from_utf8(text).unwrap())
    }

    #[test]
    fn the_difference_resets_sets_and_quotes() {
        let mut table = Table::default();
        let one = set(&mut table, &[("timezone", "UTC"), ("x.y", "1")]);
        let two = set(&mut table, &[("timezone", "UTC"), ("search_path", "a', \\b")]);
        assert_eq!(difference(&one, &one), Difference::default());
        assert_eq!(
            texts(&difference(&one, &two)),
            [r#"RESET "x"."y";"#, r"SELECT pg_catalog.set_config(E'search_path',E'a'', \\b',false)"]
        );
        assert_eq!(texts(&difference(&two, &Set::BASE)), [r#"RESET "search_path";RESET "timezone";"#, ""]);
    }

    #[test]
    fn a_role_goes_first_and_comes_last() {
        let mut table = Table::default();
        let names = [("a.b", "1"), ("role", "r"), ("session_authorization", "s"), ("timezone", "UTC")];
        let one = set(&mut table, &names);
        let two = set(&mut table, &[("a.b", "2"), names[1], names[2], names[3]]);
        assert_eq!(
            texts(&difference(&one, &two)),
            [
                r#"RESET SESSION AUTHORIZATION;RESET "role";"#,
                "SELECT pg_catalog.set_config(E'a.b',E'2',false),\
                 pg_catalog.set_config(E'session_authorization',E's',false),\
                 pg_catalog.set_config(E'role',E'r',false)"
            ]
        );
        assert_eq!(
            texts(&difference(&one, &Set::BASE))[0],
            r#"RESET SESSION AUTHORIZATION;RESET "role";RESET "a"."b";RESET "timezone";"#
        );
    }

    #[test]
    fn what_would_bear_on_the_statement_itself_is_undone_before() {
        let mut table = Table::default();
        let one = set(&mut table, &[("default_transaction_deferrable", "on"), ("statement_timeout", "1")]);
        let two = set(&mut table, &[("default_transaction_deferrable", "on"), ("statement_timeout", "9")]);
        assert_eq!(
            texts(&difference(&one, &two)),
            [
                r#"RESET "statement_timeout";"#,
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;\
                 SELECT pg_catalog.set_config(E'statement_timeout',E'9',false)"
            ]
        );
    }

    #[test]
    fn start_up_values_are_set_again() {
        let mut table = Table::default();
        let start = set(&mut table, &[("a.b", "it's"), ("search_path", "Aa, \"B\"\"b, c\"")]);
        assert_eq!(
            restore(&start, true, |_| true),
            br#"SET "a"."b" TO E'it''s';SET "search_path" TO E'aa',E'B"b, c';"#
        );
        assert_eq!(
            restore(&start, false, |name| name == "a.b"),
            b"SELECT pg_catalog.set_config(E'a.b',E'it''s',false)"
        );
        assert_eq!(restore(&start, true, |name| name == "timezone"), b"");
        assert_eq!(items(b""), [b""]);
    }

    #[test]
    fn a_scrub_is_as_long_as_it_must_be() {
        assert_eq!(scrub(Traces::NONE), b"");
        assert_eq!(scrub(Traces::LOAD), b"");
        assert_eq!(scrub(Traces::TEMP.with(Traces::LISTEN)), b"UNLISTEN *;DISCARD TEMP;");
        assert_eq!(scrub(Traces::PREPARE), b"DEALLOCATE ALL;");
        let settings = "SET SESSION AUTHORIZATION DEFAULT;RESET ROLE;RESET ALL;";
        assert_eq!(scrub(Traces::SETTING), settings.as_bytes());
        assert_eq!(scrub(Traces::HIDDEN), settings.as_bytes());
        let suspect = format!(
            "{settings}CLOSE ALL;UNLISTEN *;SELECT pg_catalog.pg_advisory_unlock_all();DISCARD TEMP;DISCARD SEQUENCES;"
        );
        assert_eq!(scrub(Traces::SUSPECT), suspect.as_bytes());
    }

    #[test]
    fn short_timeouts_are_hasty() {
        let mut table = Table::default();
        for (value, hasty) in [
            ("0", false),
            ("1", true),
            ("999", true),
            ("1000", false),
            ("50ms", true),
            ("5s", false),
            ("1min", false),
            ("500us", true),
            ("0.5s", true),
            (" 20 ms ", true),
            ("1000ms", false),
        ] {
            assert_eq!(is_hasty(&set(&mut table, &[("statement_timeout", value)])), hasty, "{value}");
        }
        assert!(!is_hasty(&Set::BASE));
    }

    #[test]
    fn values_are_asked_for_as_they_are_and_as_they_would_be() {
        let column = |name: &str| {
            format!(
                "pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting(E'{name}',true),\
                 pg_catalog.getdatabaseencoding()),'hex')"
            )
        };
        let row = format!("SELECT {},{}", column("a.b"), column("work_mem"));
        let expected = format!(
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;{row};SET LOCAL \"session_authorization\" TO DEFAULT;\
             SET LOCAL \"role\" TO DEFAULT;SET LOCAL \"a\".\"b\" TO DEFAULT;SET LOCAL \"work_mem\" TO DEFAULT;{row}"
        );
        assert_eq!(String::from_utf8(read_back(&["a.b", "work_mem"], true)).unwrap(), expected);
    }

    #[test]
    fn hex_is_read_back() {
        assert_eq!(from_hex(b""), Some(vec![]));
        assert_eq!(from_hex(b"00ffA0"), Some(vec![0, 255, 160]));
        assert_eq!(from_hex(b"0"), None);
        assert_eq!(from_hex(b"0g"), None);
    }

    /// What PostgreSQL makes of an escape string constant, which must have no byte outside ASCII.
    fn unescape(text: &[u8]) -> Vec<u8> {
        let inner = text.strip_prefix(b"E'").and_then(|text| text.strip_suffix(b"'")).unwrap();
        let mut out = Vec::new();
        let mut at = 0;
        while at < inner.len() {
            let (byte, len) = match &inner[at..] {
                [b'\'', b'\'', ..] | [b'\\', b'\\', ..] => (inner[at], 2),
                [b'\\', b'x', high, low, ..] => (from_hex(&[*high, *low]).unwrap()[0], 4),
                [byte, ..] => {
                    assert!(byte.is_ascii() && !b"'\\".contains(byte));
                    (*byte, 1)
                }
                [] => unreachable!(),
            };
            out.push(byte);
            at += len;
        }
        out
    }

    proptest! {
        /// Applying the texts of a difference to a model of a backend gives the other set, whatever
        /// the two are.
        #[test]
        fn a_difference_makes_the_one_the_other(
            one in prop::collection::btree_map("[a-d](\\.[a-c])?|role|session_authorization|statement_timeout", prop::collection::vec(1u8.., 0..9), 0..6),
            two in prop::collection::btree_map("[a-d](\\.[a-c])?|role|session_authorization|statement_timeout", prop::collection::vec(1u8.., 0..9), 0..6),
        ) {
            let mut table = Table::default();
            let mut intern = |map: &std::collections::BTreeMap<String, Vec<u8>>| {
                table.intern(map.iter().map(|(name, value)| (&**name, &**value))).unwrap()
            };
            let (from, to) = (intern(&one), intern(&two));
            let difference = difference(&from, &to);
            prop_assert!(difference.undo.is_ascii() && difference.apply.is_ascii());
            let mut backend = one.clone();
            for reset in str::from_utf8(&difference.undo).unwrap().split_terminator(';') {
                let name = reset.strip_prefix("RESET ").unwrap().replace('"', "");
                if name == "SESSION AUTHORIZATION" {
                    backend.remove("session_authorization");
                    backend.remove("role");
                } else {
                    backend.remove(&name);
                }
            }
            let mut order = Vec::new();
            let calls = difference.apply.strip_prefix(b"SELECT ").unwrap_or(&difference.apply);
            let mut rest = calls;
            while let Some(call) = rest.strip_prefix(b"pg_catalog.set_config(") {
                let end = call.windows(7).position(|w| w == b",false)").unwrap();
                let comma = call.iter().position(|&b| b == b',').unwrap();
                let name = String::from_utf8(unescape(&call[..comma])).unwrap();
                order.push(rank(&name));
                if name == "session_authorization" {
                    backend.remove("role");
                }
                backend.insert(name, unescape(&call[comma + 1..end]));
                rest = call[end + 7..].strip_prefix(b",").unwrap_or(b"");
            }
            prop_assert!(order.is_sorted());
            prop_assert_eq!(backend, two);
        }
    }
}
