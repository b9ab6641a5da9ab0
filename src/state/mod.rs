//! Session settings as interned sets: what a backend lacks, and what to send it.
//!
//! What a session has set, at start-up or later, is one [`Set`], interned; a backend remembers which
//! set it carries. When the two differ, [`text::difference`] gives the statements that make the
//! backend fit, to go out as segments of their own in the same write as the client's first message
//! (wire.md C3). After a lease in which settings were changed the backend itself is asked for their
//! values ([`text::read_back`]): no other account of transactions, savepoints and functions is exact.
//!
//! Values are bytes of the server's encoding, exactly as the server keeps them.

pub mod fence;
pub mod parking;
pub mod text;
pub mod volatile;

use crate::statements::Planner;
use crate::wire::sql::settings::is_name;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, Weak};

/// A setting: lower-case name, value.
pub type Setting = (Box<str>, Box<[u8]>);

/// Settings in order of their names.
type Settings = Vec<Setting>;

/// Different sets that may be in use at once.
pub const MAX_SETS: usize = 10_000;

/// Bytes of all sets together, names and values.
pub const MAX_BYTES: usize = 64 << 20;

/// An interned set. Sets of one [`Table`] are equal exactly if they are the same.
#[derive(Debug, Clone, Default)]
pub struct Set(Option<Arc<Settings>>);

impl Set {
    /// What a backend carries when it is new, or was reset.
    pub const BASE: Set = Set(None);

    /// The settings in order of their names.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }

    /// The value of a setting (lower-case name), if it is in the set.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        let settings = self.settings();
        let at = settings.binary_search_by(|(other, _)| (**other).cmp(name)).ok()?;
        Some(&settings[at].1)
    }

    /// A key that does not keep the set in use.
    #[must_use]
    pub fn key(&self) -> SetKey {
        SetKey(self.0.as_ref().map(Arc::downgrade))
    }

    fn address(&self) -> usize {
        self.0.as_ref().map_or(0, |settings| Arc::as_ptr(settings).addr())
    }
}

impl PartialEq for Set {
    fn eq(&self, other: &Set) -> bool {
        self.address() == other.address()
    }
}

impl Eq for Set {}

/// A set as a key of what is remembered about it, for as long as somebody uses the set.
#[derive(Debug, Clone)]
pub struct SetKey(Option<Weak<Settings>>);

impl SetKey {
    /// Whether anybody still uses the set.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.0.as_ref().is_none_or(|settings| settings.strong_count() > 0)
    }

    /// No other set can get this address while the key exists.
    fn address(&self) -> usize {
        self.0.as_ref().map_or(0, |settings| settings.as_ptr().addr())
    }
}

impl PartialEq for SetKey {
    fn eq(&self, other: &SetKey) -> bool {
        self.address() == other.address()
    }
}

impl Eq for SetKey {}

impl Hash for SetKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

/// A settings name that PostgreSQL could not have, or too many sets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not a parameter name.
    #[error("unrecognized configuration parameter")]
    Name(String),
    /// See [`MAX_SETS`] and [`MAX_BYTES`].
    #[error("too many different sets of settings")]
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

/// Whether a setting (lower-case name) may decide what a statement means when it is parsed.
#[must_use]
pub fn matters(name: &str) -> bool {
    !PLAIN.contains(&name) && !name.contains('.')
}

/// Settings that decide as which characters and tokens a text is read (lexical structure, "String Constants").
const READING: [&str; 3] = ["backslash_quote", "client_encoding", "standard_conforming_strings"];

/// Every set in use in this process. Sets that nobody uses any more go when room is needed.
#[derive(Debug)]
pub struct Table {
    sets: HashSet<Arc<Settings>>,
    bytes: usize,
    /// So many sets are worth a look at which are still used.
    sweep_at: usize,
}

/// Fewer sets than this are kept, used or not.
const KEPT: usize = 256;

impl Default for Table {
    fn default() -> Self {
        Table { sets: HashSet::new(), bytes: 0, sweep_at: KEPT }
    }
}

impl Table {
    /// The set of some (name, value) pairs; of pairs with the same name the last one counts, as in
    /// PostgreSQL.
    ///
    /// # Errors
    /// A name that is no identifier (with dots), or one set too many.
    pub fn intern<'a>(
        &mut self,
        pairs: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Set, SettingsError> {
        self.change(&Set::BASE, pairs.map(|(name, value)| (name, Some(value))))
    }

    /// A set with other values for some settings, or without them (`None`).
    ///
    /// # Errors
    /// As [`Table::intern`].
    pub fn change<'a>(
        &mut self,
        set: &Set,
        changes: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Result<Set, SettingsError> {
        let mut settings = set.settings().to_vec();
        for (name, value) in changes {
            if !is_name(name) {
                return Err(SettingsError::Name(name.to_owned()));
            }
            let name = name.to_ascii_lowercase();
            let at = settings.binary_search_by(|(other, _)| (**other).cmp(&*name));
            match (at, value) {
                (Ok(at), Some(value)) => settings[at].1 = value.into(),
                (Ok(at), None) => drop(settings.remove(at)),
                (Err(at), Some(value)) => settings.insert(at, (name.into(), value.into())),
                (Err(_), None) => {}
            }
        }
        if settings.is_empty() {
            return Ok(Set::BASE);
        }
        if let Some(known) = self.sets.get(&settings) {
            return Ok(Set(Some(known.clone())));
        }
        let bytes = size(&settings);
        if self.sets.len() >= self.sweep_at || self.bytes + bytes > MAX_BYTES {
            self.sweep();
        }
        if self.sets.len() >= MAX_SETS || self.bytes + bytes > MAX_BYTES {
            return Err(SettingsError::TooMany);
        }
        let settings = Arc::new(settings);
        self.bytes += bytes;
        self.sets.insert(settings.clone());
        Ok(Set(Some(settings)))
    }

    /// As a number of this process, what of a set a prepared statement depends on: everything but a few
    /// settings that surely do not matter when a text is read, and those of applications (with a dot).
    #[must_use]
    pub fn planner(&self, set: &Set) -> Planner {
        let mut matter = set.settings().iter().filter(|(name, _)| matters(name)).peekable();
        if matter.peek().is_none() {
            return Planner::default();
        }
        let hash = |settings: &mut dyn Iterator<Item = &Setting>| {
            let mut hasher = self.sets.hasher().build_hasher();
            settings.for_each(|setting| setting.hash(&mut hasher));
            hasher.finish()
        };
        let mut reading = set.settings().iter().filter(|(name, _)| READING.contains(&&**name)).peekable();
        let read = reading.peek().is_some().then(|| hash(&mut reading));
        Planner::of(hash(&mut matter), read)
    }

    /// Forgets the sets that nobody uses.
    fn sweep(&mut self) {
        self.sets.retain(|settings| Arc::strong_count(settings) > 1);
        self.bytes = self.sets.iter().map(|settings| size(settings)).sum();
        self.sweep_at = (self.sets.len() * 2).clamp(KEPT, MAX_SETS);
    }
}

fn size(settings: &Settings) -> usize {
    settings.iter().map(|(name, value)| name.len() + value.len() + size_of::<Setting>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs<'a>(list: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        list.iter().map(|(name, value)| (*name, value.as_bytes()))
    }

    #[test]
    fn equal_sets_are_one_whatever_their_order_and_case() {
        let mut table = Table::default();
        let one = table.intern(pairs(&[("TimeZone", "UTC"), ("a.b", "1")])).unwrap();
        let two = table.intern(pairs(&[("a.b", "0"), ("a.b", "1"), ("timezone", "UTC")])).unwrap();
        assert_eq!(one, two);
        assert_eq!(table.intern(pairs(&[])).unwrap(), Set::BASE);
        assert_ne!(one, table.intern(pairs(&[("timezone", "utc"), ("a.b", "1")])).unwrap());
        assert_eq!(one.value("timezone"), Some(&b"UTC"[..]));
        assert_eq!(one.value("a"), None);
    }

    #[test]
    fn a_changed_set_is_the_set_of_its_settings() {
        let mut table = Table::default();
        let one = table.intern(pairs(&[("a.b", "1"), ("timezone", "UTC")])).unwrap();
        let changes = [("a.b", None), ("c.d", Some(&b"2"[..])), ("no.ne", None)];
        let two = table.change(&one, changes.into_iter()).unwrap();
        assert_eq!(two, table.intern(pairs(&[("c.d", "2"), ("timezone", "UTC")])).unwrap());
        let none = [("c.d", None), ("timezone", None)];
        assert_eq!(table.change(&two, none.into_iter()).unwrap(), Set::BASE);
    }

    #[test]
    fn names_are_identifiers() {
        let mut table = Table::default();
        for bad in ["", "1a", "a b", "a;b", "a..b", "a\"b", "é"] {
            let error = table.intern(pairs(&[(bad, "1")])).unwrap_err();
            assert_eq!(error, SettingsError::Name(bad.to_owned()));
        }
    }

    #[test]
    fn only_sets_in_use_count() {
        let mut table = Table::default();
        let number = |table: &mut Table, n: usize| {
            let value = n.to_string();
            table.intern([("application_name", value.as_bytes())].into_iter())
        };
        let kept = number(&mut table, 0).unwrap();
        for n in 1..3 * MAX_SETS {
            number(&mut table, n).unwrap();
            assert!(table.sets.len() <= KEPT);
        }
        assert_eq!(number(&mut table, 0).unwrap(), kept);
        let mut used: Vec<Set> = (1..MAX_SETS).map(|n| number(&mut table, n).unwrap()).collect();
        assert_eq!(number(&mut table, MAX_SETS), Err(SettingsError::TooMany));
        used.pop();
        assert!(number(&mut table, MAX_SETS).is_ok());
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut table = Table::default();
        let large = vec![b'x'; 8 << 20];
        let mut used = Vec::new();
        let error = (0u8..20).find_map(|n| {
            let mut value = large.clone();
            value[0] = n;
            table.intern([("a.b", &value[..])].into_iter()).map(|set| used.push(set)).err()
        });
        assert_eq!(error, Some(SettingsError::TooMany));
        assert_eq!(used.len(), 7);
        used.clear();
        assert!(table.intern([("a.b", &large[..])].into_iter()).is_ok());
    }

    #[test]
    fn a_key_does_not_keep_its_set() {
        let mut table = Table::default();
        let set = table.intern(pairs(&[("a.b", "1")])).unwrap();
        let key = set.key();
        assert!(key == set.key() && key.is_in_use() && key != Set::BASE.key());
        drop(set);
        table.sweep();
        assert!(!key.is_in_use());
        let again = table.intern(pairs(&[("a.b", "1")])).unwrap();
        assert!(again.key() != key);
    }
}
