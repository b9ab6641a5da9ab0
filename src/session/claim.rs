//! What a lease is about to be used for, as far as the order of service asks: a fingerprint of its
//! first statement, and where a class may be recognised by it, the start of its text. And what its client
//! is told of the request that it is asked for.

use super::Session;
use super::message::query_text;
use super::reply;
use crate::backend::trail;
use crate::config::{ClassMatch, Config, STATEMENT_PREFIX};
use crate::metrics::Isolation;
use crate::statements::session::Look;
use crate::tag::Tag;
use crate::wire::error::Severity;
use crate::wire::frontend::Kind;
use crate::wire::sql::comment;
use crate::wire::walk::{HEADER, Header, cstr};
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

/// The last fingerprint of a session: with parameters it asks for the same text again and again.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct First {
    raw: u64,
    fingerprint: u64,
}

impl First {
    pub(super) fn of(&mut self, text: &[u8]) -> u64 {
        let raw = foldhash::fast::FixedState::default().hash_one(&text[..text.len().min(trail::TEXT)]);
        if raw != self.raw || self.fingerprint == 0 {
            // Tags in a comment are another's each time.
            let text = match comment::find(text) {
                Some(found) => uncommented(text, &found.cut),
                None => text,
            };
            *self = First { raw, fingerprint: trail::fingerprint(text) };
        }
        self.fingerprint
    }
}

/// A text without the comment that is cut from its end or its start.
pub(super) fn uncommented<'t>(text: &'t [u8], cut: &Range<usize>) -> &'t [u8] {
    if text[..cut.start].trim_ascii_start().is_empty() { &text[cut.end..] } else { &text[..cut.start] }
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
        let fingerprint = match &mut self.usual {
            Some(usual) if self.is_usual => usual.fingerprint(&mut self.first, text),
            _ => self.first.of(text),
        };
        (fingerprint, start)
    }
}

impl<S> Session<S> {
    /// Tells the client that its request is another user's as well, once a request (V3, budgets.md §2.7).
    pub(super) fn warn_of_mixing(&mut self, tag: &Tag) {
        if self.mixed != tag.request && self.down.rest == 0 {
            self.mixed.clone_from(&tag.request);
            let mut report = reply::isolation::violation(Isolation::V3, tag, &self.pool.user);
            (report.severity, report.code) = (Severity::Warning, "01000");
            self.down.lane.make(|out| report.encode(out));
        }
    }

    /// The session still carries the id of a request that was closed since: from now on it works for
    /// none, and its client is told (budgets.md §2.2).
    pub(super) fn drop_request(&mut self, tag: &Tag) {
        let Some(request) = tag.request.as_deref().filter(|id| self.tags.request_closed(id)) else { return };
        self.pools.metrics.stale_tags.inc();
        if self.down.rest == 0 {
            self.down.lane.make(|out| reply::request::over(request).encode(out));
        }
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
    fn the_comment_of_tags_is_left_out() {
        let one = trail::fingerprint(b"select a from t");
        for text in [
            "select a from t /* request_id:r1,route:x */",
            "select a from t /*request_id='r2'*/",
            "/* request_id:r2 */ select a from t",
        ] {
            assert_eq!(First::default().of(text.as_bytes()), one, "{text}");
        }
    }

    #[test]
    fn the_last_text_is_remembered_and_no_other() {
        let mut first = First::default();
        for text in ["select $1", "select $1", "select $2", "select $1", ""] {
            assert_eq!(first.of(text.as_bytes()), trail::fingerprint(text.as_bytes()), "{text}");
        }
        let long = |end: &str| format!("{}{end}", "x".repeat(trail::TEXT));
        assert_eq!(first.of(long("a").as_bytes()), first.of(long("b").as_bytes()));
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
