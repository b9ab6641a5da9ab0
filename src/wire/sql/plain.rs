//! The short cut of [`scan`](super::scan): texts that certainly leave nothing behind.
//!
//! Nearly every text is plain: its first word says nothing, neither does the word after any `;`, and
//! no telling name occurs even as raw bytes. That is established without lexing and holds for every
//! [`lex::Reading`], since it looks at raw bytes only. A text that is not plain is not yet suspect:
//! the scan then reads it properly.

use super::lex;
use super::scan::Lead;

/// Texts with more semicolons are not worth the look behind each.
const SEMICOLONS: usize = 16;

/// Whether `text` certainly leaves nothing behind, without lexing it.
pub(super) fn is_plain(text: &[u8]) -> bool {
    let harmless = |start: &[u8]| Lead::of(lex::first_word(lex::skip_to_code(start))) == Lead::Other;
    if !harmless(text) {
        return false;
    }
    // A semicolon in a string starts no statement, but asking what it would start does no harm. Behind
    // the last byte nothing starts.
    let mut semicolons = 0;
    for at in memchr::memchr_iter(b';', text.strip_suffix(b";").unwrap_or(text)) {
        semicolons += 1;
        if semicolons > SEMICOLONS || !harmless(&text[at + 1..]) {
            return false;
        }
    }
    !names_something(text)
}

/// Whether a telling name occurs anywhere, in strings and comments too.
///
/// Each name contains a pair of letters that is rare in SQL. Blocks without any of the pairs are
/// passed in straight-line code that the compiler turns into vector instructions.
fn names_something(text: &[u8]) -> bool {
    let mut at = 0;
    while let Some(window) = text.get(at..).and_then(|rest| rest.first_chunk()) {
        if has_rare_pair(window) && (at..at + BLOCK).any(|i| name_at(text, i)) {
            return true;
        }
        at += BLOCK;
    }
    let rest = &text[at..];
    let mut window = [0u8; WINDOW];
    window[..rest.len()].copy_from_slice(rest);
    has_rare_pair(&window) && (at..text.len()).any(|i| name_at(text, i))
}

/// Bytes looked at in one go.
const BLOCK: usize = 32;
/// A block, and how far beyond it a pair match may look.
const WINDOW: usize = BLOCK + 3;

/// Whether any of the pairs that [`name_at`] asks for starts in the block. No early exit, no
/// branches: that is what makes it vector code.
#[inline]
fn has_rare_pair(window: &[u8; WINDOW]) -> bool {
    let mut hit = false;
    for i in 0..BLOCK {
        let (a, b) = (window[i] | 0x20, window[i + 1] | 0x20);
        let (c, d) = (window[i + 2] | 0x20, window[i + 3] | 0x20);
        hit |= (a == b'd') & ((b == b'v') | (b == b'b'));
        hit |= (a == b'n') & (b == b'f') & (c == b'i');
        hit |= (a == b'e') & (b == b'm') & (c == b'p') & (d != b'l');
    }
    hit
}

/// Whether a telling name has its rare pair at `at`: ad**v**isory, set_co**nf**ig, t**em**p,
/// **db**link.
#[inline]
fn name_at(text: &[u8], at: usize) -> bool {
    // `name` starts `back` bytes before `at`.
    let is = |back: usize, name: &[u8]| {
        at.checked_sub(back)
            .and_then(|start| text.get(start..start + name.len()))
            .is_some_and(|found| found.eq_ignore_ascii_case(name))
    };
    match text[at] | 0x20 {
        b'd' => is(1, b"advisory_lock") || is(0, b"dblink_connect"),
        b'n' => is(6, b"set_config"),
        b'e' if is(1, b"temp") => {
            let before = at.checked_sub(2).map(|i| text[i]);
            let after = text.get(at + 3).copied();
            is(4, b"pg_temp")
                || !before.is_some_and(lex::is_word)
                    && (!after.is_some_and(lex::is_word) || is(1, b"temporary"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The block filter finds what a plain search finds, at every offset.
        #[test]
        fn names_are_found_at_every_offset(
            before in "[a-z ]{0,70} ", after in " [a-z ]{0,70}", upper in any::<bool>(),
            name in prop::sample::select(vec![
                "set_config", "temp", "temporary", "pg_temp", "pg_temp_3", "pg_advisory_lock",
                "pg_try_advisory_lock_shared", "dblink_connect",
            ]),
        ) {
            let name = if upper { name.to_uppercase() } else { name.to_owned() };
            let text = format!("{before}{name}{after}");
            prop_assert!(names_something(text.as_bytes()));
        }
    }
}
