//! Where a statement text is code, and where it is string, quoted name or comment.
//!
//! Two layers. [`Pieces`] cuts a text into code and what is not code; it looks closely only at the
//! five bytes that can open something (`'`, `"`, `$`, `-`, `/`). [`Tokens`] reads words and marks
//! inside the code pieces. Rules are those of PostgreSQL's scanner ("Lexical Structure", §4.1, and
//! `scan.l`): doubled quotes, `E'…'` with backslashes and its continuation on the next line,
//! `$tag$…$tag$`, comments that nest. An unterminated piece reaches to the end of the text, where
//! PostgreSQL refuses the whole text. Nothing here fails, allocates, or costs more than linear time,
//! whatever the bytes are.
//!
//! # What bytes alone cannot tell
//!
//! * With `standard_conforming_strings = off`, a backslash escapes in a plain `'…'` too.
//! * In SJIS, BIG5, GBK, UHC, JOHAB and GB18030 the second byte of a character may be a backslash. It
//!   is never a quote, dollar, dash, star or slash (all second bytes are 0x30 and above), and a
//!   semicolon only in JOHAB.
//!
//! Both concern backslashes only, so a text without one has a single [`Reading`]. For a text with
//! one, [`readings`] lists the ways it may be meant, and callers must take the careful union: what
//! *any* reading suspects is suspected, what not *all* readings confirm is not confirmed. Left open:
//! SJIS half-width katakana directly before a real backslash, in a text that also needs the
//! double-byte reading elsewhere.

mod pieces;

pub use pieces::{Part, Piece, Pieces, Reading, readings};

use pieces::{end_of_block, end_of_line};

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Letters, digits, `_`, `$` and bytes from 0x80 on, not starting with a digit or `$`.
    Word,
    /// Digits and dots, starting with a digit.
    Number,
    /// As [`Part::Name`].
    Name,
    /// As [`Part::Text`].
    Text,
    /// As [`Part::EscapedText`].
    EscapedText,
    /// Any other byte, one at a time.
    Mark(u8),
}

/// A token and its bytes, quotes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Where it starts in the text.
    pub start: usize,
}

impl Token<'_> {
    /// Whether this is the unquoted word `word` (given in lower case), in any case.
    #[must_use]
    pub fn is(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.bytes.eq_ignore_ascii_case(word.as_bytes())
    }
}

/// The tokens of a text; blanks and comments are left out.
#[derive(Debug, Clone)]
pub struct Tokens<'a> {
    pieces: Pieces<'a>,
    at: usize,
    code_end: usize,
}

impl<'a> Tokens<'a> {
    /// Reads `text` under one reading.
    #[must_use]
    pub fn new(text: &'a [u8], reading: Reading) -> Self {
        Tokens { pieces: Pieces::new(text, reading), at: 0, code_end: 0 }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let text = self.pieces.text;
        loop {
            let code = &text[self.at..self.code_end];
            let blanks = code.iter().take_while(|&&b| is_blank(b)).count();
            let code = &code[blanks..];
            let start = self.at + blanks;
            if let Some(&first) = code.first() {
                let (kind, len) = if is_word_start(first) {
                    (Kind::Word, code.iter().take_while(|&&b| is_word(b)).count())
                } else if first.is_ascii_digit() {
                    let digits = code.iter().take_while(|&&b| b.is_ascii_digit() || b == b'.').count();
                    (Kind::Number, digits)
                } else {
                    (Kind::Mark(first), 1)
                };
                self.at = start + len;
                return Some(Token { kind, bytes: &code[..len], start });
            }
            let piece = self.pieces.next()?;
            (self.at, self.code_end) = (piece.end, piece.end);
            let kind = match piece.part {
                Part::Comment => continue,
                Part::Code => {
                    self.at = piece.start;
                    continue;
                }
                Part::Text => Kind::Text,
                Part::EscapedText => Kind::EscapedText,
                Part::Name => Kind::Name,
            };
            return Some(Token { kind, bytes: &text[piece.start..piece.end], start: piece.start });
        }
    }
}

const WORD: u8 = 1;
const WORD_START: u8 = 2;
const DIGIT: u8 = 4;
const OPENER: u8 = 8;

const CLASS: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        table[i] = match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => WORD | WORD_START,
            b'0'..=b'9' => WORD | DIGIT,
            b'$' => WORD | OPENER,
            b'\'' | b'"' | b'-' | b'/' => OPENER,
            _ => 0,
        };
        i += 1;
    }
    table
};

/// The text from its first byte that is neither blank nor comment.
#[must_use]
#[inline]
pub fn skip_to_code(text: &[u8]) -> &[u8] {
    // Nearly every text begins with a word, nearly every word follows one blank.
    match *text {
        [first, ..] if is_word_start(first) => text,
        [b' ', second, ..] if is_word_start(second) => &text[1..],
        _ => skip_all_to_code(text),
    }
}

fn skip_all_to_code(text: &[u8]) -> &[u8] {
    let mut at = 0;
    loop {
        at = match (text.get(at), text.get(at + 1)) {
            (Some(&b), _) if is_blank(b) => at + 1,
            (Some(b'-'), Some(b'-')) => end_of_line(text, at),
            (Some(b'/'), Some(b'*')) => end_of_block(text, at),
            _ => return &text[at..],
        };
    }
}

/// The word at the very start of `text`; empty if there is none.
#[must_use]
pub fn first_word(text: &[u8]) -> &[u8] {
    if text.first().is_some_and(|&b| is_word_start(b)) {
        &text[..text.iter().take_while(|&&b| is_word(b)).count()]
    } else {
        &[]
    }
}

/// Whether a byte may continue a word.
#[must_use]
pub fn is_word(b: u8) -> bool {
    CLASS[b as usize] & WORD != 0
}

/// Whether a byte may start a word.
#[must_use]
pub fn is_word_start(b: u8) -> bool {
    CLASS[b as usize] & WORD_START != 0
}

/// PostgreSQL's white space.
#[must_use]
pub fn is_blank(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_its_first_word() {
        assert_eq!(first_word(skip_to_code(b" -- a\n/*b/*c*/*/\tse1$t(x)")), b"se1$t");
        assert_eq!(first_word(skip_to_code(b"1a")), b"");
        assert_eq!(skip_to_code(b"/* open"), b"");
        assert_eq!(skip_to_code(b"-- x"), b"");
        assert_eq!(skip_to_code(b"-1"), b"-1");
    }

    #[test]
    fn tokens_leave_out_blanks_and_comments() {
        let text = b"SET/*x*/bursar.\"a\" = 1.5 -- end";
        let tokens: Vec<_> = Tokens::new(text, Reading::STANDARD).map(|t| (t.kind, t.start)).collect();
        let expected = [
            (Kind::Word, 0),
            (Kind::Word, 8),
            (Kind::Mark(b'.'), 14),
            (Kind::Name, 15),
            (Kind::Mark(b'='), 19),
            (Kind::Number, 21),
        ];
        assert_eq!(tokens, expected);
    }
}
