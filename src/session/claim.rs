//! What a lease is about to be used for, as far as the order of service asks: a fingerprint of its
//! first statement, and where a class may be recognised by it, the start of its text.

use super::Session;
use super::message::query_text;
use crate::backend::trail::fingerprint;
use crate::config::{ClassMatch, Config, STATEMENT_PREFIX};
use crate::statements::session::Look;
use crate::wire::frontend::Kind;
use crate::wire::walk::{HEADER, Header, cstr};
use std::sync::Arc;

/// Of a text, so much makes its fingerprint here: enough to tell one call site from another, and a
/// bound on what it costs.
const FINGERPRINTED: usize = 256;

/// The last fingerprint of a session: most ask for the same statement again and again.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct First {
    raw: u64,
    fingerprint: u64,
}

impl First {
    fn of(&mut self, text: &[u8]) -> u64 {
        use std::hash::BuildHasher;
        let text = &text[..text.len().min(FINGERPRINTED)];
        let raw = foldhash::fast::FixedState::default().hash_one(text);
        if raw != self.raw || self.fingerprint == 0 {
            *self = First { raw, fingerprint: fingerprint(text).max(1) };
        }
        self.fingerprint
    }
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
        let mut first = First::default();
        let one = first.of(b"SELECT a FROM t WHERE id = 1");
        assert_eq!(first.of(b"select a from t where id = 22"), one);
        assert_eq!(first.of(b"select a from t where id = 22"), one, "remembered");
        assert_ne!(first.of(b"select b from t where id = 22"), one);
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
