//! The last statements of a lease, for whoever asks whose it was.
//!
//! Copied as they pass, at most [`TEXT`] bytes each; fingerprints are computed only when somebody
//! looks. A trail travels with its backend and is emptied at every checkout.

use smallvec::SmallVec;
use std::time::Instant;

/// Statements kept.
pub const STATEMENTS: usize = 8;
/// Bytes kept of each.
pub const TEXT: usize = 128;

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
        let prints: SmallVec<[u64; STATEMENTS]> = self.iter().map(|(text, _)| fingerprint(text)).collect();
        let same = |print: &u64| prints.iter().filter(|other| *other == print).count() as u64;
        let most = prints.iter().map(same).max().unwrap_or(0);
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

/// A fingerprint: FNV-1a over the text with literals left out, letters folded and blanks merged, so
/// that one call site has one fingerprint whatever its values. Not collision-proof, and need not be.
#[must_use]
pub fn fingerprint(text: &[u8]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut at = 0;
    let mut word = false;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'\'' => {
                add(b'?');
                at += memchr::memchr(b'\'', &text[at..]).map_or(text.len() - at, |end| end + 1);
            }
            b'0'..=b'9' if !word => {
                add(b'?');
                at += text[at..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'.').count();
            }
            b' ' | b'\t' | b'\r' | b'\n' => {
                add(b' ');
                at += text[at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
            }
            _ => add(byte.to_ascii_lowercase()),
        }
        word = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$');
    }
    hash
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
    fn a_fingerprint_ignores_values_case_and_blanks() {
        let one = fingerprint(b"SELECT a FROM t1 WHERE id = 42 AND n = 'x'");
        assert_eq!(one, fingerprint(b"select a  from t1\nwhere id = 7 and n = 'yy'"));
        assert_ne!(one, fingerprint(b"select a from t2 where id = 7 and n = 'yy'"));
    }
}
