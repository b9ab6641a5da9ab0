//! How a single statement begins: whether it ends a transaction, takes prepared statements away, or does
//! no more than read and write rows.

use super::lex::{self, Kind, Reading, Token, Tokens};
use std::borrow::Cow;

/// Which prepared statements a text takes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deallocates<'a> {
    /// `DEALLOCATE [PREPARE] name`, and nothing else: the name as PostgreSQL reads it.
    One(Cow<'a, [u8]>),
    /// `DEALLOCATE [PREPARE] ALL`, and nothing else.
    All,
    /// Something else that begins with DEALLOCATE or DISCARD.
    Others,
}

/// Whether PostgreSQL takes this statement in a transaction that has failed (`IsTransactionExitStmt`
/// in postgres.c): COMMIT, END, ROLLBACK, ABORT, with whatever follows, and PREPARE TRANSACTION.
#[must_use]
pub fn exits(text: &[u8]) -> bool {
    let mut tokens = significant(text);
    let Some(first) = tokens.next() else { return true };
    ["commit", "end", "rollback", "abort"].iter().any(|word| first.is(word))
        || (first.is("prepare") && tokens.next().is_some_and(|token| token.is("transaction")))
}

/// Whether a text is one statement of rows, which runs in any transaction and leaves it alone: SELECT,
/// INSERT, UPDATE, DELETE, MERGE, VALUES, TABLE, or one of them behind WITH. Careful: a semicolon that does
/// not end the text is one too many, in a string too.
#[must_use]
pub fn is_of_rows(text: &[u8]) -> bool {
    let text = text.trim_ascii_end();
    let text = text.strip_suffix(b";").unwrap_or(text);
    let first = lex::first_word(lex::skip_to_code(text));
    let word: &[u8] = match first.first().map_or(0, |letter| letter | 0x20) {
        b's' => b"select",
        b'i' => b"insert",
        b'u' => b"update",
        b'd' => b"delete",
        b'm' => b"merge",
        b'v' => b"values",
        b't' => b"table",
        b'w' => b"with",
        _ => return false,
    };
    first.eq_ignore_ascii_case(word) && memchr::memchr(b';', text).is_none()
}

/// What a text that begins with DEALLOCATE or DISCARD takes away; `None` for every other text, after
/// a look at its first letter.
#[must_use]
pub fn deallocates(text: &[u8]) -> Option<Deallocates<'_>> {
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace())?;
    if !matches!(first, b'd' | b'D' | b'-' | b'/' | b';') {
        return None;
    }
    let mut tokens = significant(text);
    let verb = tokens.next()?;
    if verb.is("discard") {
        return Some(Deallocates::Others);
    }
    if !verb.is("deallocate") {
        return None;
    }
    Some(one(tokens).unwrap_or(Deallocates::Others))
}

/// Whether a string in a text may stand for the time at which PostgreSQL reads it (`'now'`, `'today'` and
/// their kind, "Special Date/Time Inputs"): such a statement means something else each time it is parsed.
#[must_use]
pub fn is_dated(text: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];
    let has = |string: &[u8]| {
        let mut words = string.split(|byte| !byte.is_ascii_alphabetic());
        words.any(|word| WORDS.iter().any(|dated| word.eq_ignore_ascii_case(dated)))
    };
    memchr::memchr2(b'\'', b'$', text).is_some()
        && Tokens::new(text, Reading::STANDARD)
            .any(|token| matches!(token.kind, Kind::Text | Kind::EscapedText) && has(token.bytes))
}

/// Whether a text is read in the same way under all settings: `client_encoding` matters beyond ASCII, and
/// `standard_conforming_strings` and its kind where there is a backslash.
#[must_use]
pub fn is_read_alike(text: &[u8]) -> bool {
    text.is_ascii() && memchr::memchr(b'\\', text).is_none()
}

/// Behind DEALLOCATE, if it is followed by a name, or ALL, and nothing else.
fn one<'a>(mut tokens: impl Iterator<Item = Token<'a>>) -> Option<Deallocates<'a>> {
    let mut name = tokens.next()?;
    let mut next = tokens.next();
    if name.is("prepare")
        && let Some(second) = next
    {
        (name, next) = (second, tokens.next());
    }
    if next.is_some() {
        return None;
    }
    match name.kind {
        Kind::Word if name.is("all") => Some(Deallocates::All),
        Kind::Word => Some(Deallocates::One(name.bytes.to_ascii_lowercase().into())),
        Kind::Name => {
            let inner = name.bytes.get(1..name.bytes.len().checked_sub(1)?)?;
            if !inner.contains(&b'"') {
                return Some(Deallocates::One(inner.into()));
            }
            let mut quote = false;
            let single = |byte: &u8| {
                quote = *byte == b'"' && !quote;
                !quote
            };
            Some(Deallocates::One(inner.iter().copied().filter(single).collect::<Vec<u8>>().into()))
        }
        _ => None,
    }
}

/// The tokens of a text but for empty statements before and after.
pub(super) fn significant(text: &[u8]) -> impl Iterator<Item = Token<'_>> {
    let mut started = false;
    let tokens = Tokens::new(text, Reading::STANDARD).filter(move |token| {
        started |= token.kind != Kind::Mark(b';');
        started
    });
    // A semicolon at the very end means nothing.
    let mut tokens = tokens.peekable();
    std::iter::from_fn(move || {
        let token = tokens.next()?;
        let last = token.kind == Kind::Mark(b';') && tokens.peek().is_none();
        (!last).then_some(token)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_exits() {
        for text in ["commit", "  ROLLBACK to a", "/*x*/ end;", "abort", "Prepare Transaction 'x'", "", ";"] {
            assert!(exits(text.as_bytes()), "{text}");
        }
        for text in ["select 1", "prepare x as select 1", "begin", "\"commit\"", "release a", "savepoint a"] {
            assert!(!exits(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn statements_of_rows() {
        for text in
            ["select 1", "/* a */ Select 1;", "-- x\nWITH a as (values (1)) delete from t ;\n", "TABLE t"]
        {
            assert!(is_of_rows(text.as_bytes()), "{text}");
        }
        for text in [
            "select 1; commit",
            "select ';'",
            "/* a; b */ select 1",
            "commit",
            "call f()",
            "do $$ $$",
            "selects",
            "",
            ";",
            "(select 1)",
            "begin",
            "explain select 1",
            "vacuum",
            "set x = 1",
            "copy t from stdin",
        ] {
            assert!(!is_of_rows(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn texts_that_mean_something_else_each_time() {
        for text in ["select 'now'::timestamptz", "select date ' Today '", "select $$x yesterday$$"] {
            assert!(is_dated(text.as_bytes()), "{text}");
        }
        for text in ["select now()", "select 'nowhere'", "select 1 as today"] {
            assert!(!is_dated(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_a_text_deallocates() {
        let one = |text: &'static str| deallocates(text.as_bytes());
        for text in ["deallocate s1", "DEALLOCATE Prepare S1;", "-- x\ndeallocate \"s1\"", ";deallocate s1"] {
            assert_eq!(one(text), Some(Deallocates::One(b"s1".into())), "{text}");
        }
        assert_eq!(one("deallocate \"a\"\"B\""), Some(Deallocates::One(b"a\"B".into())));
        assert_eq!(one("deallocate prepare"), Some(Deallocates::One(b"prepare".into())));
        for text in ["deallocate all", "DEALLOCATE PREPARE ALL;"] {
            assert_eq!(one(text), Some(Deallocates::All), "{text}");
        }
        let others = [
            "deallocate all; select 1",
            "discard all",
            "deallocate a; select 1",
            "deallocate",
            "deallocate 'a'",
        ];
        for text in others {
            assert_eq!(one(text), Some(Deallocates::Others), "{text}");
        }
        for text in ["select 1", "", "delete from t", "/* deallocate */ select 1"] {
            assert_eq!(one(text), None, "{text}");
        }
    }
}
