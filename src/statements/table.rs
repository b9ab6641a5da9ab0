//! The statements of one pool, by text: who parses the same text shares the statement.
//!
//! Pure. The key is everything that makes PostgreSQL plan differently: the text (without a comment
//! that Bursar took for itself), the parameter types, and the session's settings that a plan depends
//! on ([`Planner`]). Hashing is keyed, so that no client can choose texts that collide, and the whole
//! key is compared.
//!
//! A statement that nobody's session names any more stays, for the next session with the same text,
//! until the table is full; then those go that were asked for longest ago.

use bytes::{BufMut, BytesMut};
use hashbrown::HashTable;
use std::cmp::Reverse;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::wire::backend::message;
use crate::wire::sql::lead::{deallocates, exits, is_read_alike};
use crate::wire::sql::scan::{Scan, scan};

/// How the names of shared statements on a backend begin.
pub const PREFIX: &[u8] = b"bursar_";

/// Most statements of one pool.
pub const MAX_STATEMENTS: usize = 10_000;

/// Most bytes of their texts and types together: 64 MiB.
pub const MAX_BYTES: usize = 64 << 20;

/// The number of a statement, which is never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StatementId(NonZeroU32);

impl StatementId {
    /// The number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.get()
    }

    /// Appends the name it has on a backend, with its NUL.
    pub fn write_name(self, out: &mut BytesMut) {
        let mut digits = [0; 10];
        let mut at = digits.len();
        let mut rest = self.0.get();
        while rest > 0 {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(PREFIX);
        out.extend_from_slice(&digits[at..]);
        out.put_u8(0);
    }

    /// Appends a Close of it.
    pub fn write_close(self, out: &mut BytesMut) {
        self.write_about(b'C', out);
    }

    /// Appends a Describe of it.
    pub fn write_describe(self, out: &mut BytesMut) {
        self.write_about(b'D', out);
    }

    fn write_about(self, kind: u8, out: &mut BytesMut) {
        message(out, kind, |out| {
            out.put_u8(b'S');
            self.write_name(out);
        });
    }
}

/// The settings of a session that decide what a text means to PostgreSQL, as a number; 0 for none. In its upper 16
/// bits, those among them that decide which characters and tokens it is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Planner(pub u64);

impl Planner {
    /// So many lower bits are of all settings.
    const ALL: u32 = 48;

    /// Of two hashes: of all settings that matter, and of those that decide how a text is read, if there are any.
    #[must_use]
    pub fn of(all: u64, reading: Option<u64>) -> Planner {
        let reading = reading.map_or(0, |hash| hash >> Self::ALL | 1);
        Planner(reading << Self::ALL | all & ((1 << Self::ALL) - 1))
    }

    /// Whether every text is read as the same characters and tokens.
    #[must_use]
    pub fn reads_as(self, other: Planner) -> bool {
        self.0 >> Self::ALL == other.0 >> Self::ALL
    }
}

/// Who may share a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Sessions with these settings.
    Among(Planner),
    /// Nobody: the text means something else each time it is parsed.
    Alone,
}

/// What a look at a text says of every execution of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// What it may leave behind on a backend.
    pub scan: Scan,
    /// It ends a transaction, so that PostgreSQL takes it in one that has failed.
    pub exits: bool,
    /// It takes prepared statements away.
    pub deallocates: bool,
}

impl Facts {
    /// Looks at a text.
    #[must_use]
    pub fn of(text: &[u8]) -> Facts {
        Facts { scan: scan(text), exits: exits(text), deallocates: deallocates(text).is_some() }
    }
}

/// One statement.
#[derive(Debug)]
pub struct Statement {
    /// Its number.
    pub id: StatementId,
    /// What is known of its text.
    pub facts: Facts,
    planner: Option<Planner>,
    /// What follows the name in a Parse: text, NUL, parameter types.
    tail: Box<[u8]>,
    text: usize,
    /// What a client was told of its rows.
    shape: OnceLock<u64>,
    stale: AtomicBool,
}

impl Statement {
    /// The shape of its rows that the first Describe was told ([`crate::wire::backend::row_shape`]).
    #[must_use]
    pub fn shape(&self) -> Option<u64> {
        self.shape.get().copied()
    }

    /// A Describe has been told this; the first one counts.
    pub fn learn_shape(&self, shape: u64) {
        let _ = self.shape.set(shape);
    }

    /// Whether its rows have another shape by now than somebody was told: nobody may use it.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale.load(Relaxed)
    }

    /// See [`Statement::is_stale`].
    pub fn make_stale(&self) {
        self.stale.store(true, Relaxed);
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.tail[..self.text]
    }

    /// Whether it is what a session with these settings means by its text.
    #[must_use]
    pub fn fits(&self, planner: Planner) -> bool {
        self.planner.is_none_or(|own| own == planner)
    }

    /// Whether a session with these settings reads its text as it was read.
    #[must_use]
    pub fn is_read_with(&self, planner: Planner) -> bool {
        is_read_alike(self.text()) || self.planner.is_none_or(|own| own.reads_as(planner))
    }

    /// Whether no other session uses it.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.planner.is_none()
    }

    /// What follows the name in a Parse.
    #[must_use]
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Appends the Parse that makes it on a backend.
    pub fn write_parse(&self, out: &mut BytesMut) {
        message(out, b'P', |out| {
            self.id.write_name(out);
            out.extend_from_slice(&self.tail);
        });
    }
}

/// There is no room for one more statement: all of them are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many prepared statements are in use")]
pub struct Full;

#[derive(Debug)]
struct Entry {
    statement: Arc<Statement>,
    used: u64,
    /// Nobody is given it any more; who has it keeps it.
    retired: bool,
}

/// See the module's page.
#[derive(Debug)]
pub struct Table {
    entries: HashTable<Entry>,
    hasher: RandomState,
    bytes: usize,
    last: u32,
    clock: u64,
    max: usize,
    max_bytes: usize,
}

impl Default for Table {
    fn default() -> Self {
        Table::with_limits(MAX_STATEMENTS, MAX_BYTES)
    }
}

impl Table {
    /// An empty table for at most `max` statements of `max_bytes` together.
    #[must_use]
    pub fn with_limits(max: usize, max_bytes: usize) -> Table {
        Table {
            entries: HashTable::new(),
            hasher: RandomState::new(),
            bytes: 0,
            last: 0,
            clock: 0,
            max,
            max_bytes,
        }
    }

    /// Statements, and bytes of their texts and types.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    /// The statement of this `tail` (text, NUL, parameter types); a new one is given the `facts` of
    /// its text.
    ///
    /// # Errors
    /// [`Full`].
    pub fn intern(
        &mut self,
        sharing: Sharing,
        tail: &[u8],
        facts: impl FnOnce(&[u8]) -> Facts,
    ) -> Result<Arc<Statement>, Full> {
        self.clock += 1;
        let clock = self.clock;
        let planner = match sharing {
            Sharing::Among(planner) => Some(planner),
            Sharing::Alone => None,
        };
        let hash = self.hasher.hash_one((planner, tail));
        let same = |entry: &Entry| {
            !entry.retired && entry.statement.planner == planner && *entry.statement.tail == *tail
        };
        if planner.is_some()
            && let Some(entry) = self.entries.find_mut(hash, same)
        {
            entry.used = clock;
            return Ok(entry.statement.clone());
        }
        self.make_room(tail.len())?;
        let id = self.last.checked_add(1).and_then(NonZeroU32::new).ok_or(Full)?;
        self.last = id.get();
        let text = tail.iter().position(|&byte| byte == 0).unwrap_or(tail.len());
        let statement = Arc::new(Statement {
            id: StatementId(id),
            facts: facts(&tail[..text]),
            planner,
            tail: tail.into(),
            text,
            shape: OnceLock::new(),
            stale: AtomicBool::new(false),
        });
        self.bytes += tail.len();
        let hasher = &self.hasher;
        let rehash = |entry: &Entry| hasher.hash_one((entry.statement.planner, &*entry.statement.tail));
        self.entries.insert_unique(
            hash,
            Entry { statement: statement.clone(), used: clock, retired: false },
            rehash,
        );
        Ok(statement)
    }

    /// The statement can no longer be what its text says (a table has changed under it): who parses
    /// the text from now on gets a new one. Sessions that have it keep it, and PostgreSQL's error.
    pub fn retire(&mut self, id: StatementId) {
        self.retire_where(|statement| statement.id == id);
    }

    /// Tables, types or functions have changed: as [`Table::retire`], of all.
    pub fn retire_all(&mut self) {
        self.retire_where(|_| true);
    }

    fn retire_where(&mut self, which: impl Fn(&Statement) -> bool) {
        let bytes = &mut self.bytes;
        self.entries.retain(|entry| {
            entry.retired |= which(&entry.statement);
            let keep = !entry.retired || Arc::strong_count(&entry.statement) > 1;
            *bytes -= if keep { 0 } else { entry.statement.tail.len() };
            keep
        });
    }

    /// Every statement with how many sessions' names it has, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Statement, usize)> {
        self.entries.iter().map(|entry| (&*entry.statement, Arc::strong_count(&entry.statement) - 1))
    }

    /// The `count` statements that sessions have most names for, with how many, most first. Looks at
    /// all of them.
    #[must_use]
    pub fn most_named(&self, count: usize) -> Vec<(&Statement, usize)> {
        let mut all: Vec<_> = self.iter().collect();
        all.sort_unstable_by_key(|(statement, names)| (Reverse(*names), statement.id));
        all.truncate(count);
        all
    }

    /// Drops statements that no session names, the ones used longest ago, until there is room with
    /// a quarter to spare: this looks at all of them, and should be rare.
    fn make_room(&mut self, more: usize) -> Result<(), Full> {
        if self.entries.len() < self.max && self.bytes + more <= self.max_bytes {
            return Ok(());
        }
        let free = |entry: &&Entry| Arc::strong_count(&entry.statement) == 1;
        let mut ages: Vec<(u64, usize)> =
            self.entries.iter().filter(free).map(|entry| (entry.used, entry.statement.tail.len())).collect();
        ages.sort_unstable();
        let (mut left, mut bytes, mut oldest) = (self.entries.len(), self.bytes, 0);
        for (used, size) in ages {
            if left <= self.max / 4 * 3 && bytes + more <= self.max_bytes / 4 * 3 {
                break;
            }
            (left, bytes, oldest) = (left - 1, bytes - size, used);
        }
        self.entries.retain(|entry| entry.used > oldest || !free(&&*entry));
        self.bytes = bytes;
        if left < self.max && bytes + more <= self.max_bytes { Ok(()) } else { Err(Full) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intern(table: &mut Table, text: &str) -> Result<Arc<Statement>, Full> {
        let mut tail = text.as_bytes().to_vec();
        tail.extend_from_slice(b"\0\0\0");
        table.intern(Sharing::Among(Planner::default()), &tail, |_| Facts::default())
    }

    #[test]
    fn the_same_text_types_and_settings_are_one_statement() {
        let mut table = Table::default();
        let one = table.intern(Sharing::Among(Planner(0)), b"select $1\0\0\0", |_| Facts::default()).unwrap();
        let two = table.intern(Sharing::Among(Planner(0)), b"select $1\0\0\0", |_| unreachable!()).unwrap();
        assert_eq!(one.id, two.id);
        assert_eq!(one.text(), b"select $1");
        let typed = b"select $1\0\0\x01\0\0\0\x17";
        assert_ne!(one.id, table.intern(Sharing::Among(Planner(0)), typed, |_| Facts::default()).unwrap().id);
        assert_ne!(
            one.id,
            table.intern(Sharing::Among(Planner(1)), b"select $1\0\0\0", |_| Facts::default()).unwrap().id
        );
        assert_eq!(table.size(), (3, 12 + 16 + 12));
        let alone = table.intern(Sharing::Alone, typed, |_| Facts::default()).unwrap();
        assert_ne!(alone.id, table.intern(Sharing::Alone, typed, |_| Facts::default()).unwrap().id);
        assert!(alone.fits(Planner(7)) && one.fits(Planner(0)) && !one.fits(Planner(1)));
    }

    #[test]
    fn how_a_text_is_read_is_told_from_what_else_it_depends_on() {
        let (plain, path) = (Planner::of(1, None), Planner::of(2, None));
        let (latin, both) = (Planner::of(3, Some(u64::MAX)), Planner::of(4, Some(u64::MAX)));
        assert!(plain.reads_as(path) && latin.reads_as(both) && !plain.reads_as(latin));
        assert_ne!(plain, path);
        assert!(
            !Planner::default().reads_as(Planner::of(0, Some(0))),
            "one of them sets what the other does not"
        );
        let mut table = Table::default();
        let mut read = |text: &[u8], planner| {
            let tail = [text, b"\0\0\0"].concat();
            let statement = table.intern(Sharing::Among(plain), &tail, |_| Facts::default()).unwrap();
            statement.is_read_with(planner)
        };
        assert!(read(b"select 'e'", latin) && read("select 'é'".as_bytes(), path));
        assert!(!read("select 'é'".as_bytes(), latin) && !read(br"select '\'", latin));
    }

    #[test]
    fn messages_carry_the_shared_name() {
        let mut table = Table::default();
        let statement = intern(&mut table, "select 1").unwrap();
        let mut out = BytesMut::new();
        statement.write_parse(&mut out);
        assert_eq!(&out[..], b"P\0\0\0\x18bursar_1\0select 1\0\0\0");
        out.clear();
        statement.id.write_close(&mut out);
        assert_eq!(&out[..], b"C\0\0\0\x0eSbursar_1\0");
        let long = StatementId(NonZeroU32::MAX);
        out.clear();
        long.write_name(&mut out);
        assert_eq!(&out[..], b"bursar_4294967295\0");
    }

    #[test]
    fn a_full_table_drops_what_nobody_names_the_oldest_first() {
        let mut table = Table::with_limits(8, 1 << 20);
        let kept = intern(&mut table, "kept").unwrap();
        for i in 0..7 {
            intern(&mut table, &format!("s{i}")).unwrap();
        }
        let again = intern(&mut table, "s0").unwrap().id;
        intern(&mut table, "one more").unwrap();
        assert_eq!(table.size().0, 7);
        assert_eq!(intern(&mut table, "kept").unwrap().id, kept.id);
        assert_eq!(intern(&mut table, "s0").unwrap().id, again);
        let bytes: usize = table.iter().map(|(statement, _)| statement.tail.len()).sum();
        assert_eq!(table.size().1, bytes);
    }

    #[test]
    fn the_statements_with_most_names_come_first() {
        let mut table = Table::default();
        let named: Vec<_> =
            ["b", "c", "b", "a", "c", "b"].map(|text| intern(&mut table, text).unwrap()).into();
        intern(&mut table, "nobody's").unwrap();
        let most = |count| -> Vec<_> {
            let most = table.most_named(count).into_iter();
            most.map(|(statement, names)| (String::from_utf8_lossy(statement.text()).into_owned(), names))
                .collect()
        };
        assert_eq!(most(2), [("b".into(), 3), ("c".into(), 2)]);
        assert_eq!(most(9)[3], ("nobody's".into(), 0));
        drop(named);
    }

    #[test]
    fn a_table_whose_statements_are_all_in_use_is_full() {
        let mut table = Table::with_limits(4, 1 << 20);
        let mut named: Vec<_> = (0..4).map(|i| intern(&mut table, &format!("s{i}")).unwrap()).collect();
        assert_eq!(intern(&mut table, "more").unwrap_err(), Full);
        assert_eq!(intern(&mut table, "s3").unwrap().id, named[3].id);
        named.remove(0);
        assert!(intern(&mut table, "more").is_ok());
        let mut small = Table::with_limits(100, 20);
        let first = intern(&mut small, "0123456789").unwrap();
        assert_eq!(intern(&mut small, "9876543210").unwrap_err(), Full);
        drop(first);
        intern(&mut small, "9876543210").unwrap();
        assert_eq!(small.size(), (1, 13));
    }

    #[test]
    fn a_retired_statement_is_made_anew() {
        let mut table = Table::default();
        let old = intern(&mut table, "select * from t").unwrap();
        table.retire(old.id);
        let new = intern(&mut table, "select * from t").unwrap();
        assert_ne!(new.id, old.id);
        // It counts for as long as somebody has it.
        assert_eq!(table.size().0, 2);
        drop(old);
        table.retire_all();
        assert_eq!(table.size().0, 1);
        assert_ne!(intern(&mut table, "select * from t").unwrap().id, new.id);
        drop(new);
        table.retire_all();
        assert_eq!(table.size(), (0, 0));
    }
}
