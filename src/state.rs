//! Session settings as interned sets: what a backend lacks, and what to send it.
//!
//! A session's start-up parameters (and `options`) are one [`Settings`] value, interned once at
//! login; a backend remembers which set it carries. When the two differ, [`Table::difference`] gives
//! the one statement that makes the backend fit, to go out as a segment of its own in the same write
//! as the client's first message (wire.md C3). Values travel as string literals of
//! `set_config(name, value, false)`, which takes them exactly as a start-up packet would: `SET`
//! would quote a list such as `search_path` into one name.
//!
//! Settings that a client changes later are not here: they pin its backend, which is scrubbed
//! before anybody else gets it.

use crate::statements::Planner;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

/// An interned set. Sets are equal exactly if their ids are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SetId(u32);

impl SetId {
    /// What a backend carries when it is new, or was reset.
    pub const BASE: SetId = SetId(0);
}

/// Settings in order of their names: lower-case name, value as sent.
pub type Settings = Vec<(String, Vec<u8>)>;

/// Different sets one process will remember; a client that brings one more is refused.
pub const MAX_SETS: usize = 10_000;

/// A settings name that PostgreSQL could not have, or too many sets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not a parameter name.
    #[error("unrecognized configuration parameter")]
    Name(String),
    /// See [`MAX_SETS`].
    #[error("too many different sets of start-up parameters")]
    TooMany,
}

/// Settings that are of no consequence for what a statement means.
const PLAIN: [&str; 14] = [
    "application_name",
    "bytea_output",
    "client_connection_check_interval",
    "client_min_messages",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "lock_timeout",
    "log_min_duration_statement",
    "statement_timeout",
    "tcp_user_timeout",
    "work_mem",
];

/// Every set seen by this process.
#[derive(Debug)]
pub struct Table {
    sets: Vec<Arc<Settings>>,
    ids: HashMap<Arc<Settings>, SetId>,
}

impl Default for Table {
    fn default() -> Self {
        let base = Arc::new(Settings::new());
        Table { sets: vec![base.clone()], ids: HashMap::from([(base, SetId::BASE)]) }
    }
}

impl Table {
    /// The id of a set of (name, value) pairs; of pairs with the same name the last one counts, as
    /// in PostgreSQL.
    ///
    /// # Errors
    /// A name that is no identifier (with dots), or one set too many.
    pub fn intern<'a>(
        &mut self,
        pairs: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<SetId, SettingsError> {
        let mut settings = Settings::new();
        for (name, value) in pairs {
            if !is_name(name) {
                return Err(SettingsError::Name(name.to_owned()));
            }
            let name = name.to_ascii_lowercase();
            settings.retain(|(other, _)| *other != name);
            settings.push((name, value.to_vec()));
        }
        settings.sort();
        if let Some(id) = self.ids.get(&settings) {
            return Ok(*id);
        }
        if self.sets.len() >= MAX_SETS {
            return Err(SettingsError::TooMany);
        }
        let id = SetId(self.sets.len() as u32);
        let settings = Arc::new(settings);
        self.sets.push(settings.clone());
        self.ids.insert(settings, id);
        Ok(id)
    }

    /// The settings of a set.
    #[must_use]
    pub fn get(&self, id: SetId) -> Arc<Settings> {
        self.sets.get(id.0 as usize).unwrap_or(&self.sets[0]).clone()
    }

    /// As a number of this process, what of a set a prepared statement depends on: everything but a few settings that
    /// surely do not matter when a text is read.
    #[must_use]
    pub fn planner(&self, id: SetId) -> Planner {
        if id == SetId::BASE {
            return Planner::default();
        }
        let settings = self.get(id);
        let mut matter = settings.iter().filter(|(name, _)| !PLAIN.contains(&&**name)).peekable();
        if matter.peek().is_none() {
            return Planner::default();
        }
        let mut hasher = self.ids.hasher().build_hasher();
        matter.for_each(|setting| setting.hash(&mut hasher));
        Planner(hasher.finish())
    }

    /// The text of the one query that turns a backend that carries `from` into one that carries
    /// `to`; empty if nothing differs.
    #[must_use]
    pub fn difference(&self, from: SetId, to: SetId) -> Vec<u8> {
        let (from, to) = (self.get(from), self.get(to));
        let mut text = Vec::new();
        for (name, _) in from.iter().filter(|(name, _)| to.iter().all(|(other, _)| other != name)) {
            text.extend_from_slice(b"RESET ");
            identifier(&mut text, name);
            text.push(b';');
        }
        let mut verb: &[u8] = b"SELECT ";
        for (name, value) in to.iter().filter(|pair| !from.contains(pair)) {
            text.extend_from_slice(std::mem::replace(&mut verb, b","));
            text.extend_from_slice(b"pg_catalog.set_config(");
            literal(&mut text, name.as_bytes());
            text.push(b',');
            literal(&mut text, value);
            text.extend_from_slice(b",false)");
        }
        text
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= 128
        && name.split('.').all(|part| {
            let mut bytes = part.bytes();
            bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
                && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
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
    out.extend_from_slice(b"E'");
    for &byte in value {
        if matches!(byte, b'\'' | b'\\') {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs<'a>(list: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        list.iter().map(|(name, value)| (*name, value.as_bytes()))
    }

    #[test]
    fn equal_sets_have_one_id_whatever_their_order_and_case() {
        let mut table = Table::default();
        let one = table.intern(pairs(&[("TimeZone", "UTC"), ("a.b", "1")])).unwrap();
        let two = table.intern(pairs(&[("a.b", "0"), ("a.b", "1"), ("timezone", "UTC")])).unwrap();
        assert_eq!(one, two);
        assert_eq!(table.intern(pairs(&[])).unwrap(), SetId::BASE);
        assert_ne!(one, table.intern(pairs(&[("timezone", "utc"), ("a.b", "1")])).unwrap());
    }

    #[test]
    fn the_difference_resets_sets_and_quotes() {
        let mut table = Table::default();
        let one = table.intern(pairs(&[("timezone", "UTC"), ("x.y", "1")])).unwrap();
        let two = table.intern(pairs(&[("timezone", "UTC"), ("search_path", "a', \\b")])).unwrap();
        assert_eq!(table.difference(one, one), b"");
        assert_eq!(
            String::from_utf8(table.difference(one, two)).unwrap(),
            r#"RESET "x"."y";SELECT pg_catalog.set_config(E'search_path',E'a'', \\b',false)"#
        );
        assert_eq!(
            String::from_utf8(table.difference(two, SetId::BASE)).unwrap(),
            r#"RESET "search_path";RESET "timezone";"#
        );
    }

    #[test]
    fn names_are_identifiers() {
        let mut table = Table::default();
        for bad in ["", "1a", "a b", "a;b", "a..b", "a\"b", "é"] {
            let error = table.intern(pairs(&[(bad, "1")])).unwrap_err();
            assert_eq!(error, SettingsError::Name(bad.to_owned()));
        }
    }
}
