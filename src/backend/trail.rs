//! The last statements of a lease, for whoever asks whose it was.
//!
//! Copied as they pass, at most [`TEXT`] bytes each; fingerprints are computed only when somebody
//! looks. A trail travels with its backend and is emptied at every checkout.

use smallvec::SmallVec;
use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

/// Statements kept.
pub const STATEMENTS: usize = 8;
/// Bytes kept of each.
pub const TEXT: usize = 128;
/// Bytes looked at in one go for the start of a value.
const BLOCK: usize = 16;

/// From so many statements of a lease on it is counted whether they are the same (budgets.md S0-15).
pub const REPEATED: u64 = 5;

#[derive(Debug, Clone, Copy)]
struct Entry {
    at: Option<Instant>,
    len: u8,
    text: [u8; TEXT],
}

/// See the module's page.
#[derive(Debug, Clone)]
pub struct Trail {
    ring: [Entry; STATEMENTS],
    next: usize,
}

impl Default for Trail {
    fn default() -> Self {
        Trail { ring: [Entry { at: None, len: 0, text: [0; TEXT] }; STATEMENTS], next: 0 }
    }
}

impl Trail {
    /// A statement starts.
    pub fn push(&mut self, text: &[u8], now: Instant) {
        let entry = &mut self.ring[self.next % STATEMENTS];
        let len = text.len().min(TEXT);
        entry.at = Some(now);
        entry.len = len as u8;
        entry.text[..len].copy_from_slice(&text[..len]);
        self.next += 1;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        // Entries from `next` on are not looked at.
        self.next = 0;
    }

    /// How often the statement ran that ran most often, of the `statements` so far: of more than the trail
    /// keeps, as if they went on like its last ones. Only many are worth the look.
    #[must_use]
    pub fn repeats(&self, statements: u64) -> u32 {
        if statements < REPEATED {
            return 1;
        }
        // Of statements with parameters the texts are the same, and hashing one of them is enough.
        let mut prints = SmallVec::<[(u64, &[u8]); STATEMENTS]>::new();
        for (text, _) in self.iter() {
            let known = prints.iter().find(|(_, other)| *other == text).map(|(print, _)| *print);
            prints.push((known.unwrap_or_else(|| fingerprint(text)), text));
        }
        let same = |print: u64| prints.iter().filter(|(other, _)| *other == print).count() as u64;
        let most = prints.iter().map(|(print, _)| same(*print)).max().unwrap_or(0);
        let of = (prints.len() as u64).max(1);
        u32::try_from(statements.max(of).saturating_mul(most) / of).unwrap_or(u32::MAX)
    }

    /// Text and start of each statement, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Instant)> {
        let first = self.next.saturating_sub(STATEMENTS);
        (first..self.next).filter_map(|i| {
            let entry = &self.ring[i % STATEMENTS];
            Some((&entry.text[..entry.len as usize], entry.at?))
        })
    }
}

/// A fingerprint: a hash of the first [`TEXT`] bytes without values, equal for texts that differ in numbers
/// and strings only, so that one call site has one. Letters and blanks count as they are written, which is
/// cheap. Never 0, not collision-proof, and need not be.
#[must_use]
pub fn fingerprint(text: &[u8]) -> u64 {
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    let mut rest = &text[..text.len().min(TEXT)];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_eight_statements_are_kept_in_order() {
        let mut trail = Trail::default();
        let now = Instant::now();
        for i in 0..11u8 {
            trail.push(&[b'a' + i], now);
        }
        let texts: Vec<&[u8]> = trail.iter().map(|(text, _)| text).collect();
        assert_eq!(texts, [b"d", b"e", b"f", b"g", b"h", b"i", b"j", b"k"]);
        trail.clear();
        assert_eq!(trail.iter().count(), 0);
    }

    #[test]
    fn a_loop_of_one_statement_is_counted_beyond_what_is_kept() {
        let (mut trail, now) = (Trail::default(), Instant::now());
        let mut ran = 0;
        let mut run = |trail: &mut Trail, text: String| {
            trail.push(text.as_bytes(), now);
            ran += 1;
            trail.repeats(ran)
        };
        assert_eq!((0..4).map(|id| run(&mut trail, format!("select {id}"))).max(), Some(1), "too few");
        assert_eq!((4..8).map(|id| run(&mut trail, format!("select {id}"))).max(), Some(8));
        assert_eq!((8..40).map(|id| run(&mut trail, format!("select {id}"))).max(), Some(40));
        trail.clear();
        ran = 0;
        for name in ["a", "b", "c", "d", "a", "f"] {
            trail.push(format!("select {name}").as_bytes(), now);
            ran += 1;
        }
        assert_eq!(trail.repeats(ran), 2);
    }

    #[test]
    fn a_statement_keeps_its_fingerprint_whatever_its_values() {
        let one = fingerprint(b"SELECT a FROM t1 WHERE id = 1 AND name = 'x' AND b = $1 LIMIT 3");
        let same = |text: &str| fingerprint(text.as_bytes()) == one;
        assert!(same("SELECT a FROM t1 WHERE id = 22.5e7 AND name = 'it''s' AND b = $1 LIMIT 20"));
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
}
