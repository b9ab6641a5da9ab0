//! A text cut into code and what is not code, by a close look at the few bytes that can open something.

use super::{CLASS, DIGIT, OPENER, WORD, is_blank, is_word, is_word_start};

/// How a backslash inside quotes is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Plain strings have backslash escapes (`standard_conforming_strings = off`).
    pub plain_escapes: bool,
    /// Bytes from 0x80 on pair up with what follows them: a backslash may be half a character.
    pub double_byte: bool,
}

impl Reading {
    /// PostgreSQL's defaults, and every encoding a server may use.
    pub const STANDARD: Reading = Reading { plain_escapes: false, double_byte: false };
}

const READINGS: [Reading; 4] = [
    Reading::STANDARD,
    Reading { plain_escapes: true, double_byte: false },
    Reading { plain_escapes: false, double_byte: true },
    Reading { plain_escapes: true, double_byte: true },
];

/// The ways `text` may be meant: one without backslashes, two with, four if one follows a byte that
/// is not ASCII. [`Reading::STANDARD`] comes first.
#[must_use]
pub fn readings(text: &[u8]) -> &'static [Reading] {
    let mut count = 1;
    for at in memchr::memchr_iter(b'\\', text) {
        count = 2;
        if at > 0 && text[at - 1] >= 0x80 {
            return &READINGS;
        }
    }
    &READINGS[..count]
}

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Words, numbers, operators, blanks. The letter before an `E'…'` belongs here.
    Code,
    /// A string literal without backslash escapes, quotes or dollar tags included.
    Text,
    /// A string literal with backslash escapes, quotes included, the `E` not; its continuations
    /// on following lines belong to it.
    EscapedText,
    /// A quoted identifier, quotes included.
    Name,
    /// A comment, delimiters included; a line comment without its line end.
    Comment,
}

/// A piece: `text[start..end]`, never empty. Pieces follow each other without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// What it is.
    pub part: Part,
    /// First byte.
    pub start: usize,
    /// Behind the last byte.
    pub end: usize,
}

/// The pieces of a text, in order.
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    pub(super) text: &'a [u8],
    at: usize,
    reading: Reading,
    /// What opens at `at`, found when the code before it ended: the code decides how it opens.
    opened: Option<(Part, usize)>,
}

impl<'a> Pieces<'a> {
    /// Cuts `text` under one reading.
    #[must_use]
    pub fn new(text: &'a [u8], reading: Reading) -> Self {
        Pieces { text, at: 0, reading, opened: None }
    }

    /// What opens at `at`, if anything: its part and its end. `floor` is where the code before it
    /// starts.
    #[inline]
    fn opens(&self, floor: usize, at: usize) -> Option<(Part, usize)> {
        let text = self.text;
        match (text[at], text.get(at + 1)) {
            (b'\'', _) => {
                let prefixed = at > floor && text[at - 1] | 0x20 == b'e' && !in_word(text, floor, at - 1);
                if prefixed || self.reading.plain_escapes {
                    Some((Part::EscapedText, self.end_of_escaped(at)))
                } else {
                    Some((Part::Text, end_of_quoted(text, at, b'\'')))
                }
            }
            (b'"', _) => Some((Part::Name, end_of_quoted(text, at, b'"'))),
            (b'-', Some(b'-')) => Some((Part::Comment, end_of_line(text, at))),
            (b'/', Some(b'*')) => Some((Part::Comment, end_of_block(text, at))),
            _ => None,
        }
    }

    /// Behind the closing quote of the escaped string that opens at `at`, continuations included.
    fn end_of_escaped(&self, at: usize) -> usize {
        let text = self.text;
        let mut i = at + 1;
        while let Some(found) = memchr::memchr2(b'\'', b'\\', &text[i..]) {
            let here = i + found;
            if text[here] == b'\\' {
                let half = self.reading.double_byte && odd_high_bytes_before(text, here);
                i = (here + if half { 1 } else { 2 }).min(text.len());
            } else if text.get(here + 1) == Some(&b'\'') {
                i = here + 2;
            } else if let Some(next) = continuation(text, here + 1) {
                i = next + 1;
            } else {
                return here + 1;
            }
        }
        text.len()
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let text = self.text;
        let start = self.at;
        if let Some((part, end)) = self.opened.take() {
            self.at = end;
            return Some(Piece { part, start, end });
        }
        let (mut floor, mut i) = (start, start);
        loop {
            i += code_run(&text[i..]);
            if i >= text.len() {
                break;
            }
            self.opened = if text[i] == b'$' {
                match dollar(text, floor, i) {
                    Dollar::Quote(end) => Some((Part::Text, end)),
                    Dollar::Skip(to) => {
                        (floor, i) = (to, to);
                        continue;
                    }
                }
            } else {
                self.opens(floor, i)
            };
            if self.opened.is_some() {
                break;
            }
            i += 1;
        }
        if i == start {
            // The text's end, or something opens where the last piece ended.
            let (part, end) = self.opened.take()?;
            self.at = end;
            return Some(Piece { part, start, end });
        }
        self.at = i;
        Some(Piece { part: Part::Code, start, end: i })
    }
}

/// How many bytes from the start of `text` can open nothing.
#[inline]
fn code_run(text: &[u8]) -> usize {
    text.iter().position(|&b| CLASS[b as usize] & OPENER != 0).unwrap_or(text.len())
}

/// What a dollar sign in code is.
enum Dollar {
    /// It opens a quote that ends here.
    Quote(usize),
    /// Part of a name or parameter: go on here, where a new word may start.
    Skip(usize),
}

fn dollar(text: &[u8], floor: usize, at: usize) -> Dollar {
    let run = |from: usize, class: u8| {
        from + text[from..].iter().take_while(|&&b| CLASS[b as usize] & class != 0).count()
    };
    if in_word(text, floor, at) {
        return Dollar::Skip(run(at, WORD));
    }
    let mut close = at + 1;
    if text.get(close).is_some_and(|&b| is_word_start(b)) {
        close += text[close..].iter().take_while(|&&b| is_word(b) && b != b'$').count();
    }
    if text.get(close) != Some(&b'$') {
        return Dollar::Skip(run(at + 1, DIGIT));
    }
    let tag = &text[at..=close];
    match memchr::memmem::find(&text[close + 1..], tag) {
        Some(found) => Dollar::Quote(close + 1 + found + tag.len()),
        None => Dollar::Quote(text.len()),
    }
}

/// Whether the byte at `at` continues a word that began at or after `floor`: a digit run alone is a
/// number, and a number ends where letters begin.
fn in_word(text: &[u8], floor: usize, at: usize) -> bool {
    let digits = text[floor..at].iter().rev().take_while(|b| b.is_ascii_digit()).count();
    text[floor..at - digits].last().is_some_and(|&b| is_word(b))
}

fn odd_high_bytes_before(text: &[u8], at: usize) -> bool {
    text[..at].iter().rev().take_while(|&&b| b >= 0x80).count() % 2 == 1
}

/// Behind the closing quote of what opens at `at`; a doubled quote does not close.
fn end_of_quoted(text: &[u8], at: usize, quote: u8) -> usize {
    let mut i = at + 1;
    while let Some(found) = memchr::memchr(quote, &text[i..]) {
        let here = i + found;
        if text.get(here + 1) != Some(&quote) {
            return here + 1;
        }
        i = here + 2;
    }
    text.len()
}

/// The quote that continues a string closed before `at`: blanks and line comments with a line end
/// among them, then the quote (SQL's rule, `quotecontinue` in scan.l).
fn continuation(text: &[u8], at: usize) -> Option<usize> {
    let mut i = at;
    let mut line_end = false;
    loop {
        match text.get(i)? {
            b'\n' | b'\r' => line_end = true,
            b if is_blank(*b) => {}
            b'-' if text.get(i + 1) == Some(&b'-') => {
                i = end_of_line(text, i);
                continue;
            }
            b'\'' if line_end => return Some(i),
            _ => return None,
        }
        i += 1;
    }
}

pub(super) fn end_of_line(text: &[u8], at: usize) -> usize {
    memchr::memchr2(b'\n', b'\r', &text[at..]).map_or(text.len(), |found| at + found)
}

/// Behind the block comment that opens at `at`; they nest.
pub(super) fn end_of_block(text: &[u8], at: usize) -> usize {
    let mut depth = 1usize;
    let mut i = at + 2;
    while let Some(found) = memchr::memchr2(b'*', b'/', &text[i..]) {
        let here = i + found;
        match (text[here], text.get(here + 1)) {
            (b'/', Some(b'*')) => {
                depth += 1;
                i = here + 2;
            }
            (b'*', Some(b'/')) => {
                depth -= 1;
                i = here + 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i = here + 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::super::Tokens;
    use super::*;
    use proptest::prelude::*;

    fn parts(text: &str, reading: Reading) -> Vec<(Part, &str)> {
        Pieces::new(text.as_bytes(), reading).map(|p| (p.part, &text[p.start..p.end])).collect()
    }

    fn standard(text: &str) -> Vec<(Part, &str)> {
        parts(text, Reading::STANDARD)
    }

    use Part::{Code, Comment, EscapedText, Name, Text};

    #[test]
    fn quotes_close_where_postgresql_closes_them() {
        assert_eq!(standard("a'it''s'b"), [(Code, "a"), (Text, "'it''s'"), (Code, "b")]);
        assert_eq!(standard(r"'a\'b"), [(Text, r"'a\'"), (Code, "b")]);
        assert_eq!(standard(r"e'a\'b'c"), [(Code, "e"), (EscapedText, r"'a\'b'"), (Code, "c")]);
        assert_eq!(standard(r"name'a\'b"), [(Code, "name"), (Text, r"'a\'"), (Code, "b")]);
        assert_eq!(standard(r"1e'\''"), [(Code, "1e"), (EscapedText, r"'\''")]);
        assert_eq!(standard(r"a1e'\'"), [(Code, "a1e"), (Text, r"'\'")]);
        assert_eq!(standard("\"a\"\"b\"c"), [(Name, "\"a\"\"b\""), (Code, "c")]);
        assert_eq!(standard("'open"), [(Text, "'open")]);
    }

    #[test]
    fn an_escape_string_goes_on_on_the_next_line() {
        let text = "E'a' -- x\n 'b\\'c' d";
        assert_eq!(standard(text), [(Code, "E"), (EscapedText, "'a' -- x\n 'b\\'c'"), (Code, " d")]);
        assert_eq!(standard("E'a' 'b'").len(), 4);
    }

    #[test]
    fn dollars_quote_only_where_a_word_may_start() {
        assert_eq!(standard("$$a'$$b"), [(Text, "$$a'$$"), (Code, "b")]);
        assert_eq!(standard("$t$ $$ $t$x"), [(Text, "$t$ $$ $t$"), (Code, "x")]);
        assert_eq!(standard("a$b$c$b$"), [(Code, "a$b$c$b$")]);
        assert_eq!(standard("a1$$b"), [(Code, "a1$$b")]);
        assert_eq!(standard("$1 $2"), [(Code, "$1 $2")]);
        assert_eq!(standard("$1$$x$$"), [(Code, "$1"), (Text, "$$x$$")]);
        assert_eq!(standard("1$$x$$"), [(Code, "1"), (Text, "$$x$$")]);
        assert_eq!(standard("$open$ x"), [(Text, "$open$ x")]);
    }

    #[test]
    fn comments_nest_and_lines_end() {
        assert_eq!(standard("a/*x/*y*/z*/b"), [(Code, "a"), (Comment, "/*x/*y*/z*/"), (Code, "b")]);
        assert_eq!(standard("a--'x\rb"), [(Code, "a"), (Comment, "--'x"), (Code, "\rb")]);
        assert_eq!(standard("a-b/c"), [(Code, "a-b/c")]);
        assert_eq!(standard("/*/ x"), [(Comment, "/*/ x")]);
    }

    #[test]
    fn a_backslash_multiplies_the_readings() {
        assert_eq!(readings(b"select 'a'").len(), 1);
        assert_eq!(readings(br"select 'C:\'").len(), 2);
        // 0x95 0x5c is one SJIS character.
        let sjis = b"E'\x95\\' set";
        assert_eq!(readings(sjis).len(), 4);
        let end = |reading| Pieces::new(sjis, reading).nth(1).unwrap().end;
        assert_eq!(end(Reading::STANDARD), sjis.len());
        assert_eq!(end(Reading { plain_escapes: false, double_byte: true }), 5);
        let off = Reading { plain_escapes: true, double_byte: false };
        assert_eq!(parts(r"'a\'b'c", off), [(EscapedText, r"'a\'b'"), (Code, "c")]);
    }

    /// Pieces of known kind that cannot run into each other when code stands between them.
    fn piece() -> impl Strategy<Value = (Part, String)> {
        prop_oneof![
            "[^'\\\\]{0,8}".prop_map(|s| (Text, format!("'{s}'"))),
            "[^'\\\\]{0,8}".prop_map(|s| (Text, format!("'a''{s}'"))),
            "[^'\\\\]{0,8}".prop_map(|s| (EscapedText, format!("'\\'{s}\\\\'"))),
            "[^\"\\\\]{0,8}".prop_map(|s| (Name, format!("\"{s}\"\"\""))),
            "[^$\\\\]{0,8}".prop_map(|s| (Text, format!("$q${s}'$q$"))),
            "[^*/\\\\]{0,8}".prop_map(|s| (Comment, format!("/*{s}/*'*/*/"))),
            "[^\r\n\\\\]{0,8}".prop_map(|s| (Comment, format!("--{s}"))),
        ]
    }

    proptest! {
        #[test]
        fn pieces_of_known_kind_are_found_again(list in prop::collection::vec(piece(), 0..12)) {
            let mut text = String::new();
            let mut expected = Vec::new();
            for (part, body) in &list {
                let code = if *part == EscapedText { "\nx,E" } else { "\nx," };
                expected.push((Code, code.to_owned()));
                expected.push((*part, body.clone()));
                text.push_str(code);
                text.push_str(body);
            }
            let found: Vec<_> =
                standard(&text).into_iter().map(|(part, s)| (part, s.to_owned())).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn pieces_cover_any_bytes_without_gaps(
            text in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"'\"$-/*\\e\n 1a"[..])], 0..200),
        ) {
            for &reading in &READINGS {
                let mut at = 0;
                for piece in Pieces::new(&text, reading) {
                    prop_assert_eq!(piece.start, at);
                    prop_assert!(piece.end > at);
                    at = piece.end;
                }
                prop_assert_eq!(at, text.len());
                for token in Tokens::new(&text, reading) {
                    prop_assert_eq!(&text[token.start..token.start + token.bytes.len()], token.bytes);
                }
            }
        }
    }
}
