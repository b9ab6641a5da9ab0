//! What a statement does to the transaction it stands in, as far as Bursar may answer it without a
//! backend: BEGIN before the first statement, COMMIT and ROLLBACK of a transaction that no backend has.
//!
//! Only whole texts of one plain statement are told apart ("BEGIN", "COMMIT", "ROLLBACK" in PostgreSQL's
//! reference). Everything that is not understood to its last token is PostgreSQL's.

use super::lead::{exits, is_of_rows, significant};
use super::lex::{Kind, Reading, Token, Tokens, first_word, readings, skip_to_code};

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

/// What a text may do to the transaction block that it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// It leaves it open.
    No,
    /// It ends it, with a chain or without, and does nothing else.
    Alone,
    /// It may end it, and something else may follow.
    Within,
}

/// Reads a text that may have several statements. What nobody can tell ends it: the careful union of all
/// [`readings`].
#[must_use]
pub fn ends_block(text: &[u8]) -> Ends {
    const OFTEN: [&[u8]; 2] = [b"commit", b"rollback"];
    let bare = text.strip_suffix(b";").unwrap_or(text);
    if OFTEN.iter().any(|end| bare.eq_ignore_ascii_case(end)) {
        Ends::Alone
    } else if is_of_rows(text) {
        Ends::No
    } else if is_end_alone(text) {
        Ends::Alone
    } else if readings(text).iter().any(|&reading| has_end(text, reading)) {
        Ends::Within
    } else {
        Ends::No
    }
}

/// Whether a text begins a transaction, with whatever modes, and does nothing else.
#[must_use]
pub fn is_begin(text: &[u8]) -> bool {
    let first = first_word(skip_to_code(text));
    (first.eq_ignore_ascii_case(b"begin") || first.eq_ignore_ascii_case(b"start"))
        && significant(text).all(|token| token.kind != Kind::Mark(b';'))
}

fn is_end_alone(text: &[u8]) -> bool {
    const WORDS: [&str; 8] = ["commit", "end", "rollback", "abort", "work", "transaction", "and", "chain"];
    let mut tokens = significant(text);
    text.len() <= LIMIT
        && tokens.next().is_some_and(|first| WORDS[..4].iter().any(|word| first.is(word)))
        && tokens.all(|token| WORDS[4..].iter().any(|word| token.is(word)) || token.is("no"))
}

fn has_end(text: &[u8], reading: Reading) -> bool {
    let mut tokens = Tokens::new(text, reading);
    let mut starts = true;
    while let Some(token) = tokens.next() {
        if std::mem::replace(&mut starts, token.kind == Kind::Mark(b';')) && is_end(token, tokens.clone()) {
            return true;
        }
    }
    false
}

/// Whether a statement with this first token, and these behind it, ends its transaction.
fn is_end<'a>(first: Token<'a>, rest: Tokens<'a>) -> bool {
    let mut rest = rest.peekable();
    if first.is("rollback") {
        let _ = rest.next_if(|token| token.is("work") || token.is("transaction"));
        return !rest.next().is_some_and(|token| token.is("to"));
    }
    ["commit", "end", "abort"].iter().any(|word| first.is(word))
        || first.is("prepare") && rest.next().is_some_and(|token| token.is("transaction"))
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

    #[test]
    fn what_ends_a_block() {
        let are = |ends: Ends, texts: &[&str]| {
            for text in texts {
                assert_eq!(ends_block(text.as_bytes()), ends, "{text}");
            }
        };
        are(
            Ends::No,
            &[
                "select 1",
                "insert into t values (';commit;')",
                "savepoint a; rollback to a",
                "rollback work to savepoint a",
                "release a",
                "set local x = 1; select 2",
                "prepare a as select 1",
                "do $$ begin commit; end $$",
                "select 'a'; select \"commit\"",
                "/* ; commit */ lock t",
                "",
            ],
        );
        are(
            Ends::Alone,
            &["commit", "END;", "rollback", "-- x\nabort work and no chain", "commit and chain;"],
        );
        are(
            Ends::Within,
            &[
                "commit and chain; select 1",
                "commit 'x'",
                "select 1; commit",
                "rollback;\nselect pg_advisory_unlock_all()",
                "prepare transaction 'x'",
                "rollback to a; end",
                "select 'a\\'; commit; --'",
                "select 'a\\''; commit; --",
                "rollback prepared 'x'",
            ],
        );
    }

    #[test]
    fn what_is_a_begin_alone() {
        for text in ["begin", "BEGIN ISOLATION LEVEL SERIALIZABLE;", "/* a */ start transaction read only"] {
            assert!(is_begin(text.as_bytes()), "{text}");
        }
        for text in ["begin; select 1", "beginning", "select 1", "", "started"] {
            assert!(!is_begin(text.as_bytes()), "{text}");
        }
    }
}
