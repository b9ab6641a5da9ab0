//! What a lease is about to be used for, as far as the order of service asks: a fingerprint of its
//! first statement, and where a class may be recognised by it, the start of its text.

use super::Session;
use super::message::query_text;
use crate::config::{ClassMatch, Config, STATEMENT_PREFIX};
use crate::statements::session::Look;
use crate::wire::frontend::Kind;
use crate::wire::sql::comment;
use crate::wire::walk::{HEADER, Header, cstr};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// Of a text, so much makes its fingerprint here: enough to tell one call site from another, and a
/// bound on what it costs.
const FINGERPRINTED: usize = 256;

/// Bytes looked at in one go for the start of a value.
const BLOCK: usize = 16;

/// The last fingerprint of a session: with parameters it asks for the same text again and again.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct First {
    raw: u64,
    fingerprint: u64,
}

impl First {
    fn of(&mut self, text: &[u8]) -> u64 {
        let start = &text[..text.len().min(FINGERPRINTED)];
        let raw = foldhash::fast::FixedState::default().hash_one(start);
        if raw != self.raw || self.fingerprint == 0 {
            *self = First { raw, fingerprint: fingerprint(text) };
        }
        self.fingerprint
    }
}

/// A hash of a text without its values: equal for texts that differ in numbers and strings
/// only. Never 0, and not for people: blanks and letters count as they are written, which is cheap.
fn fingerprint(text: &[u8]) -> u64 {
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    // Tags in a comment are another's each time.
    let text = match comment::find(text) {
        Some(found) if text[..found.cut.start].trim_ascii_start().is_empty() => &text[found.cut.end..],
        Some(found) => &text[..found.cut.start],
        None => text,
    };
    let mut rest = &text[..text.len().min(FINGERPRINTED)];
    while let Some(at) = value_in(rest) {
        let len = length_of_value(&rest[at..]);
        let before = rest[..at].last().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$'));
        // `$1`, `t1` and `int4` are words.
        let is_word = before && rest[at] != b'\'';
        let run = &rest[..if is_word { at + len } else { at }];
        // What is written in two strings, `'it''s'`, is one value.
        if !run.is_empty() {
            hasher.write(run);
        }
        rest = &rest[at + len..];
    }
    hasher.write(rest);
    hasher.finish().max(1)
}

/// Where the first digit or quotation mark is.
fn value_in(text: &[u8]) -> Option<usize> {
    let begins = |b: &u8| b.is_ascii_digit() || *b == b'\'';
    // Without branches inside a block: the compiler makes vector instructions of it.
    let passed = text
        .as_chunks::<BLOCK>()
        .0
        .iter()
        .take_while(|block| !block.iter().fold(false, |found, b| found | begins(b)));
    let start = passed.count() * BLOCK;
    Some(start + text[start..].iter().position(begins)?)
}

/// How long the value is that `text` begins with.
fn length_of_value(text: &[u8]) -> usize {
    if text[0] == b'\'' {
        return memchr::memchr(b'\'', &text[1..]).map_or(text.len(), |end| end + 2);
    }
    text.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'.').count()
}

/// Whether a class is recognised by the first statement.
pub(super) fn reads_statements(config: &Config) -> bool {
    let mut matches = config.classes.values().flat_map(|class| &class.matches);
    matches.any(|each| matches!(each, ClassMatch::FirstStatement(_)))
}

impl<S> Session<S> {
    /// Fingerprint and, if asked for, start of the statement that the next message is about; 0 and
    /// `None` where it names none that is known.
    pub(super) fn first_statement(&mut self) -> (u64, Option<Arc<str>>) {
        let bytes = self.up.lane.unwalked();
        let Some((kind, total)) = Header::read(bytes).and_then(|head| Some((head.kind, head.total()?)))
        else {
            return (0, None);
        };
        let body = &bytes[HEADER..total.min(bytes.len())];
        let second = || cstr(body).map(|(_, rest)| rest);
        let shared;
        let text = match Kind::of(kind) {
            Some(Kind::Query) => query_text(bytes, total).0,
            Some(Kind::Parse) => {
                let rest = second().unwrap_or_default();
                cstr(rest).map_or(rest, |(text, _)| text)
            }
            Some(Kind::Bind) => match second().and_then(cstr).map(|(name, _)| self.statements.look(name)) {
                Some(Look::Shared(statement)) => {
                    shared = statement;
                    shared.text()
                }
                _ => return (0, None),
            },
            _ => return (0, None),
        };
        let start = self.reads_statements.then(|| start_of(text));
        (self.first.of(text), start)
    }
}

/// In lower case, without blanks in front, so much as classes look at.
fn start_of(text: &[u8]) -> Arc<str> {
    let text = text.trim_ascii_start();
    let text = &text[..text.len().min(STATEMENT_PREFIX)];
    String::from_utf8_lossy(text).to_ascii_lowercase().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_keeps_its_fingerprint_whatever_its_values() {
        let one = fingerprint(b"SELECT a FROM t1 WHERE id = 1 AND name = 'x' AND b = $1 LIMIT 3");
        let same = |text: &str| fingerprint(text.as_bytes()) == one;
        assert!(same("SELECT a FROM t1 WHERE id = 22.5e7 AND name = 'it''s' AND b = $1 LIMIT 20"));
        assert!(same(
            "SELECT a FROM t1 WHERE id = 1 AND name = 'x' AND b = $1 LIMIT 3 /* request_id:r1,route:x */"
        ));
        assert!(same("/* request_id:r2 */ SELECT a FROM t1 WHERE id = 1 AND name = 'x' AND b = $1 LIMIT 3"));
        for other in [
            "SELECT b FROM t1 WHERE id = 1 AND name = 'x' AND b = $1 LIMIT 3",
            "SELECT a FROM t2 WHERE id = 1 AND name = 'x' AND b = $1 LIMIT 3",
            "SELECT a FROM t1 WHERE id = 1 AND name = 'x' AND b = $2 LIMIT 3",
            "SELECT a FROM t1 WHERE id = 1 AND name = 'x' AND b = $1",
        ] {
            assert!(!same(other), "{other}");
        }
    }

    #[test]
    fn the_last_text_is_remembered_and_no_other() {
        let mut first = First::default();
        for text in ["select $1", "select $1", "select $2", "select $1", ""] {
            assert_eq!(first.of(text.as_bytes()), fingerprint(text.as_bytes()), "{text}");
        }
        let long = |end: &str| format!("{}{end}", "x".repeat(FINGERPRINTED));
        assert_eq!(first.of(long("a").as_bytes()), first.of(long("b").as_bytes()));
    }

    #[test]
    fn a_value_is_left_out_wherever_it_stands() {
        for at in 0..80 {
            let text = |value: &str| format!("{}{value} FROM t", " ".repeat(at));
            let fingerprint = |value: &str| fingerprint(text(value).as_bytes());
            assert_eq!(fingerprint("12"), fingerprint("345"), "at {at}");
            assert_eq!(fingerprint("'12 a'"), fingerprint("''"), "at {at}");
            assert_ne!(fingerprint("a1"), fingerprint("a2"), "at {at}");
        }
    }

    #[test]
    fn any_text_has_a_fingerprint() {
        for text in ["", "'", "'open", "1", "a'b'1", "\u{e9}1'", &"1,".repeat(300)] {
            assert_ne!(fingerprint(text.as_bytes()), 0, "{text}");
        }
    }

    #[test]
    fn classes_see_the_start_in_lower_case() {
        assert_eq!(
            &*start_of(b"\n  INSERT Into llm_requests VALUES (1)"),
            "insert into llm_requests values (1)"
        );
        assert_eq!(start_of(&[b'x'; 500]).len(), STATEMENT_PREFIX);
    }

    #[test]
    fn only_a_rule_about_statements_makes_sessions_read_them() {
        let mut config = Config::default();
        assert!(!reads_statements(&config));
        let rule = ClassMatch::FirstStatement(crate::config::Pattern::new("^insert").unwrap());
        config.classes.get_mut("batch").unwrap().matches.push(rule);
        assert!(reads_statements(&config));
    }
}
