//! What a statement does to the transaction it stands in, as far as Bursar may answer it without a
//! backend: BEGIN before the first statement, COMMIT and ROLLBACK of a transaction that no backend has.
//!
//! Only whole texts of one plain statement are told apart ("BEGIN", "COMMIT", "ROLLBACK" in PostgreSQL's
//! reference). Everything that is not understood to its last token is PostgreSQL's.

use super::lead::{exits, significant};
use super::lex::{Kind, Token, first_word, skip_to_code};

/// The longest text that is looked at, in bytes: a comment of tags has room.
pub const LIMIT: usize = 4096;

/// A text, by what it does to its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `BEGIN`, alone, with modes that do not matter before the first statement.
    Begin,
    /// The same as `START TRANSACTION`.
    Start,
    /// `COMMIT` or `END`, alone, without a chain.
    Commit,
    /// `ROLLBACK` or `ABORT`, alone, without a chain or savepoint.
    Rollback,
    /// It begins with something else that PostgreSQL takes in a failed transaction: more statements
    /// behind a COMMIT, `ROLLBACK TO`, `PREPARE TRANSACTION`, an empty text, one too long to look at.
    Exits,
    /// Anything else, which a failed transaction refuses; also what would go on in a chained
    /// transaction of the same kind, because nobody may know its kind any more.
    Other,
}

impl Verb {
    /// Reads a text.
    #[must_use]
    pub fn of(text: &[u8]) -> Verb {
        if text.len() > LIMIT {
            return Verb::Exits;
        }
        // By its first letters nearly every text is told apart: SELECT from START too.
        if let [first, second, ..] = text
            && first.is_ascii_alphabetic()
            && !matches!(
                &[first | 0x20, second | 0x20],
                b"be" | b"st" | b"co" | b"en" | b"ro" | b"ab" | b"pr"
            )
        {
            return Verb::Other;
        }
        let mut code = skip_to_code(text);
        while let Some(rest) = code.strip_prefix(b";") {
            code = skip_to_code(rest);
        }
        let is = |name: &str| {
            let start = code.get(..name.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
                && first_word(code).len() == name.len()
        };
        let plain = match code.first().map_or(0, |b| b | 0x20) {
            b'b' if is("begin") => begin(text).then_some(Verb::Begin),
            b's' if is("start") => start(text).then_some(Verb::Start),
            b'c' if is("commit") => ends(text, Verb::Commit),
            b'e' if is("end") => ends(text, Verb::Commit),
            b'r' if is("rollback") => ends(text, Verb::Rollback),
            b'a' if is("abort") => ends(text, Verb::Rollback),
            b'p' if is("prepare") => None,
            _ if code.is_empty() => return Verb::Exits,
            _ => return Verb::Other,
        };
        plain.unwrap_or_else(|| if exits(text) { Verb::Exits } else { Verb::Other })
    }
}

fn begin(text: &[u8]) -> bool {
    let mut tokens = significant(text).skip(1).peekable();
    let _ = tokens.next_if(|token| token.is("work") || token.is("transaction"));
    modes(tokens)
}

fn start(text: &[u8]) -> bool {
    let mut tokens = significant(text).skip(1);
    tokens.next().is_some_and(|token| token.is("transaction")) && modes(tokens)
}

/// Whether the rest is transaction modes (`transaction_mode_list` in PostgreSQL's grammar) that are the
/// same whenever the transaction begins. With a snapshot of its own a transaction begins where the
/// client says so.
fn modes<'a>(tokens: impl Iterator<Item = Token<'a>>) -> bool {
    let mut tokens = tokens.peekable();
    let mut some = false;
    while let Some(first) = tokens.next() {
        let mut next = |word: &str| tokens.next_if(|token| token.is(word)).is_some();
        let known = if first.is("read") {
            next("only") || next("write")
        } else if first.is("not") {
            next("deferrable")
        } else if first.is("isolation") {
            next("level") && next("read") && (next("committed") || next("uncommitted"))
        } else {
            // One comma between two modes, if any.
            some && first.kind == Kind::Mark(b',') && tokens.peek().is_some_and(|t| t.kind == Kind::Word)
                || first.is("deferrable")
        };
        if !known {
            return false;
        }
        some = first.kind == Kind::Word;
    }
    true
}

/// What follows COMMIT or ROLLBACK: `[WORK | TRANSACTION] [AND NO CHAIN]`. A chain is refused later.
fn ends(text: &[u8], plain: Verb) -> Option<Verb> {
    let mut tokens = significant(text).skip(1).peekable();
    let _ = tokens.next_if(|token| token.is("work") || token.is("transaction"));
    let Some(and) = tokens.next() else { return Some(plain) };
    if !and.is("and") {
        return None;
    }
    let no = tokens.next_if(|token| token.is("no")).is_some();
    let chain = tokens.next().is_some_and(|token| token.is("chain"));
    if !chain || tokens.next().is_some() {
        return None;
    }
    Some(if no { plain } else { Verb::Other })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn are(verb: Verb, texts: &[&str]) {
        for text in texts {
            assert_eq!(Verb::of(text.as_bytes()), verb, "{text}");
        }
    }

    #[test]
    fn what_begins() {
        are(
            Verb::Begin,
            &[
                "begin",
                "BEGIN;",
                " ; begin work ; ",
                "Begin Transaction",
                "/* x */ begin -- y",
                "begin read only",
                "begin isolation level read committed, read write",
                "BEGIN TRANSACTION NOT DEFERRABLE READ ONLY",
                "begin isolation level read uncommitted deferrable",
                "begin /*tenant='acme'*/",
            ],
        );
        are(Verb::Start, &["start transaction", "START TRANSACTION READ ONLY;"]);
        are(
            Verb::Other,
            &[
                "begin isolation level serializable",
                "begin isolation level repeatable read",
                "start transaction isolation level repeatable read, read only",
                "begin; select 1",
                "begin; begin",
                "begin read",
                "begin read only,",
                "begin, read only",
                "begin read only,, read write",
                "begin x",
                "begin 'read' only",
                "begin \"work\"",
                "start",
                "start transactions",
                "beginning",
                "select 1",
                "start work",
            ],
        );
    }

    #[test]
    fn what_ends() {
        are(
            Verb::Commit,
            &["commit", "COMMIT;", "end", "-- x\nend transaction", "commit work and no chain", "; ;commit"],
        );
        are(Verb::Rollback, &["rollback", "abort;", "ROLLBACK TRANSACTION", "abort work and no chain"]);
        are(
            Verb::Exits,
            &[
                "rollback to a",
                "rollback transaction to savepoint a",
                "commit; select 1",
                "rollback; begin",
                "prepare transaction 'x'",
                "commit prepared 'x'",
                "commit and",
                "commit and chain; select 1",
                "",
                " ; ; ",
                "-- nothing",
            ],
        );
        are(
            Verb::Other,
            &[
                "commit and chain",
                "rollback work and chain",
                "release a",
                "savepoint a",
                "prepare x as select 1",
            ],
        );
        are(Verb::Exits, &[&" ".repeat(LIMIT + 1)]);
    }
}
