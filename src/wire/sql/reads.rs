//! Whether a statement text only reads, and so leaves nothing in its transaction that another backend
//! would lack (budgets.md §4.4).
//!
//! Not a parser: a list of what may be there, read token by token. A statement begins with SELECT,
//! VALUES, TABLE, SHOW or WITH, or is a SET LOCAL; no word of it writes, locks rows or names a new table;
//! and no name that occurs in it, wherever it stands, is one that the caller says may do something else:
//! PostgreSQL calls functions by their name alone (`t.f` is `f(t)`), and a view by its. Everything that is
//! not understood is an answer of its own, never a yes.
//!
//! What no text shows (operators, casts, what is inside a view or a policy) is for whoever knows the
//! catalog: [`crate::state::volatile`].

use super::lex::{Kind, Reading, Token, Tokens, readings};
use super::settings::is_name;
use crate::metrics::Unparkable as Bar;

/// The longest text that is looked at, in bytes.
pub const LIMIT: usize = 64 << 10;

/// Settings for a transaction that one may have: they are given again where it goes on.
pub const KEYS: usize = 16;

/// PostgreSQL cuts longer names (NAMEDATALEN - 1), and then they mean another.
const NAME: usize = 63;

/// Settings without a dot that SET LOCAL may change: nothing that the client is told of, or that a text's
/// meaning depends on.
const SETTINGS: [&str; 4] =
    ["idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout", "work_mem"];

/// Reads one text of one or several statements. `unsafe_name` says of a name, folded as PostgreSQL does,
/// whether using it may do more than read. The names of settings that it sets for its transaction are
/// added to `keys`, each once. Returns whether a query is among them, for which PostgreSQL takes a
/// snapshot (SHOW and SET need none).
///
/// # Errors
/// What keeps its transaction from going on at another backend.
pub fn reads(
    text: &[u8],
    unsafe_name: impl Fn(&[u8]) -> bool,
    keys: &mut Vec<Box<str>>,
) -> Result<bool, Bar> {
    if text.len() > LIMIT {
        return Err(Bar::Text);
    }
    let mut all = true;
    for &reading in readings(text) {
        let mut tokens = Tokens::new(text, reading).peekable();
        let mut queries = false;
        while tokens.peek().is_some() {
            queries |= statement(&mut tokens, &unsafe_name, keys)?;
        }
        all &= queries;
    }
    Ok(all)
}

/// Whether an expression (a policy's, a domain's) only reads.
#[must_use]
pub fn is_harmless(expression: &[u8], unsafe_name: impl Fn(&[u8]) -> bool) -> bool {
    let mut tokens = Tokens::new(expression, Reading::STANDARD).peekable();
    let one = readings(expression).len() == 1 && expression.len() <= LIMIT;
    let mut keys = Vec::new();
    one && rest(&mut tokens, &unsafe_name, &mut keys).is_ok() && keys.is_empty() && tokens.next().is_none()
}

type Rest<'a> = std::iter::Peekable<Tokens<'a>>;

/// One statement, with its semicolon. Returns whether it is a query.
fn statement(
    tokens: &mut Rest<'_>,
    unsafe_name: &impl Fn(&[u8]) -> bool,
    keys: &mut Vec<Box<str>>,
) -> Result<bool, Bar> {
    while tokens.next_if(|token| token.kind == Kind::Mark(b'(')).is_some() {}
    let Some(first) = tokens.next() else { return Ok(false) };
    if first.kind == Kind::Mark(b';') {
        return Ok(false);
    }
    if first.is("set") {
        return set_local(tokens, keys).map(|()| false);
    }
    if !["select", "values", "table", "show", "with"].iter().any(|word| first.is(word)) {
        return Err(Bar::Statement);
    }
    rest(tokens, unsafe_name, keys)?;
    Ok(!first.is("show"))
}

/// What follows the first word of a statement that may only read, up to its semicolon.
fn rest(
    tokens: &mut Rest<'_>,
    unsafe_name: &impl Fn(&[u8]) -> bool,
    keys: &mut Vec<Box<str>>,
) -> Result<(), Bar> {
    let mut schema = None;
    while let Some(token) = tokens.next() {
        let before = schema.take();
        match token.kind {
            Kind::Mark(b';') => return Ok(()),
            Kind::Word if token.is("set_config") => {
                // Of another schema's function nobody knows the arguments.
                if before.is_some_and(|name: Option<Token<'_>>| !name.is_some_and(|n| n.is("pg_catalog"))) {
                    return Err(Bar::Function);
                }
                set_config(tokens, unsafe_name, keys)?;
            }
            Kind::Word => word(&token, tokens, unsafe_name)?,
            Kind::Name => name(&token, unsafe_name)?,
            _ => {}
        }
        if tokens.peek().is_some_and(|next| next.kind == Kind::Mark(b'.')) {
            let named = matches!(token.kind, Kind::Word | Kind::Name);
            let dot = tokens.next();
            schema = dot.map(|_| named.then_some(token));
        }
    }
    Ok(())
}

fn word(token: &Token<'_>, tokens: &mut Rest<'_>, unsafe_name: &impl Fn(&[u8]) -> bool) -> Result<(), Bar> {
    let is = |words: &[&str]| words.iter().any(|word| token.is(word));
    if is(&["insert", "update", "delete", "merge"]) {
        return Err(Bar::Statement);
    }
    if is(&["into"]) {
        return Err(Bar::Into);
    }
    let next = |words: &[&str], tokens: &mut Rest<'_>| {
        tokens.peek().is_some_and(|next| words.iter().any(|word| next.is(word)))
    };
    if is(&["for"]) && next(&["update", "share", "no", "key"], tokens) {
        return Err(Bar::Lock);
    }
    let end = token.start + token.bytes.len();
    // U&"…" spells a name in escapes.
    if is(&["u"]) && tokens.peek().is_some_and(|next| next.kind == Kind::Mark(b'&') && next.start == end) {
        return Err(Bar::Text);
    }
    let mut folded = [0u8; NAME];
    let Some(folded) = folded.get_mut(..token.bytes.len()) else { return Err(Bar::Text) };
    if !token.bytes.is_ascii() {
        // How it is folded is the server's locale's business.
        return Err(Bar::Text);
    }
    folded.copy_from_slice(token.bytes);
    folded.make_ascii_lowercase();
    if unsafe_name(folded) { Err(Bar::Function) } else { Ok(()) }
}

fn name(token: &Token<'_>, unsafe_name: &impl Fn(&[u8]) -> bool) -> Result<(), Bar> {
    let inner = token.bytes.get(1..token.bytes.len() - 1).ok_or(Bar::Text)?;
    if inner.len() > NAME || inner.contains(&b'"') || !inner.is_ascii() {
        return Err(Bar::Text);
    }
    if inner == b"set_config" || unsafe_name(inner) { Err(Bar::Function) } else { Ok(()) }
}

/// `(key, value, true)` behind `set_config`. The value is anything that only reads.
fn set_config(
    tokens: &mut Rest<'_>,
    unsafe_name: &impl Fn(&[u8]) -> bool,
    keys: &mut Vec<Box<str>>,
) -> Result<(), Bar> {
    let mark = |tokens: &mut Rest<'_>, mark| tokens.next_if(|t| t.kind == Kind::Mark(mark)).is_some();
    if !mark(tokens, b'(') {
        return Err(Bar::Context);
    }
    let key = tokens.next().filter(|token| token.kind == Kind::Text).ok_or(Bar::Context)?;
    let key = key.bytes.strip_prefix(b"'").and_then(|key| key.strip_suffix(b"'")).ok_or(Bar::Context)?;
    if !mark(tokens, b',') {
        return Err(Bar::Context);
    }
    let (mut depth, mut comma, mut local) = (0u32, false, false);
    while let Some(token) = tokens.next() {
        let last = std::mem::take(&mut comma);
        let was_local = std::mem::take(&mut local);
        match token.kind {
            Kind::Mark(b'(' | b'[') => depth += 1,
            Kind::Mark(b')') if depth == 0 => {
                return if was_local { remember(key, keys) } else { Err(Bar::Context) };
            }
            Kind::Mark(b')' | b']') => depth = depth.checked_sub(1).ok_or(Bar::Text)?,
            Kind::Mark(b',') if depth == 0 => comma = true,
            Kind::Mark(b';') => return Err(Bar::Text),
            Kind::Word if token.is("true") && last => local = true,
            // One inside the other is understood by nobody.
            Kind::Word if token.is("set_config") => return Err(Bar::Context),
            Kind::Word => word(&token, tokens, unsafe_name)?,
            Kind::Name => name(&token, unsafe_name)?,
            _ => {}
        }
    }
    Err(Bar::Text)
}

/// `LOCAL key = value` behind `SET`, with its semicolon.
fn set_local(tokens: &mut Rest<'_>, keys: &mut Vec<Box<str>>) -> Result<(), Bar> {
    if tokens.next_if(|token| token.is("local")).is_none() {
        return Err(Bar::Context);
    }
    let mut key = Vec::new();
    loop {
        let part = tokens.next().ok_or(Bar::Context)?;
        match part.kind {
            Kind::Word => key.extend_from_slice(part.bytes),
            Kind::Name => key.extend_from_slice(&part.bytes[1..part.bytes.len().max(2) - 1]),
            _ => return Err(Bar::Context),
        }
        match tokens.next() {
            Some(next) if next.kind == Kind::Mark(b'.') => key.push(b'.'),
            Some(next) if next.kind == Kind::Mark(b'=') || next.is("to") => break,
            _ => return Err(Bar::Context),
        }
    }
    // A value is a list of words, numbers and strings: it cannot do anything.
    for token in tokens.by_ref() {
        match token.kind {
            Kind::Mark(b';') => break,
            Kind::Mark(b',' | b'-' | b'+') | Kind::Word | Kind::Name | Kind::Number | Kind::Text => {}
            Kind::EscapedText => {}
            Kind::Mark(_) => return Err(Bar::Context),
        }
    }
    remember(&key, keys)
}

/// A setting of the transaction, if it is one that can be asked for and given again.
fn remember(key: &[u8], keys: &mut Vec<Box<str>>) -> Result<(), Bar> {
    let key = std::str::from_utf8(key).map_err(|_| Bar::Context)?.to_ascii_lowercase();
    if !is_name(&key) || !(key.contains('.') || SETTINGS.contains(&&*key)) {
        return Err(Bar::Context);
    }
    if keys.iter().any(|known| **known == *key) {
        return Ok(());
    }
    if keys.len() >= KEYS {
        return Err(Bar::Context);
    }
    keys.push(key.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_unsafe(name: &[u8]) -> bool {
        [&b"nextval"[..], b"audit", b"Odd"].contains(&name)
    }

    fn read(text: &str) -> Result<Vec<Box<str>>, Bar> {
        let mut keys = Vec::new();
        reads(text.as_bytes(), is_unsafe, &mut keys).map(|_| keys)
    }

    #[test]
    fn what_only_reads() {
        for text in [
            "",
            ";;",
            "select 1",
            "SELECT * FROM t WHERE a = $1 AND b IN (SELECT b FROM u) ORDER BY 1 LIMIT 5",
            "(select 1) union (select 2)",
            "with x as materialized (select 1) select * from x",
            "values (1), (2)",
            "table t",
            "show work_mem",
            "select 'insert into t', \"update\" from t -- delete",
            "select /* for update */ substring('abc' from 1 for 2)",
            "select $$nextval('s')$$, '\\d'",
            "select 1; select lower(a) from t; values (2);",
            "select a.b.c, t.* from t tablesample system (10)",
            "select E'a\\'b', 'nextval'",
        ] {
            assert_eq!(read(text), Ok(vec![]), "{text}");
        }
    }

    #[test]
    fn what_does_more_than_read() {
        for (text, bar) in [
            ("insert into t values (1)", Bar::Statement),
            ("update t set a = 1", Bar::Statement),
            ("with x as (delete from t returning *) select * from x", Bar::Statement),
            ("select 1; update t set a = 1", Bar::Statement),
            ("merge into t using u on true when matched then delete", Bar::Statement),
            ("begin", Bar::Statement),
            ("commit", Bar::Statement),
            ("savepoint a", Bar::Statement),
            ("lock table t", Bar::Statement),
            ("listen a", Bar::Statement),
            ("notify a", Bar::Statement),
            ("copy t to stdout", Bar::Statement),
            ("declare c cursor for select 1", Bar::Statement),
            ("prepare p as select 1", Bar::Statement),
            ("execute p", Bar::Statement),
            ("explain analyze select 1", Bar::Statement),
            ("do $$begin end$$", Bar::Statement),
            ("call p()", Bar::Statement),
            ("create temp table t ()", Bar::Statement),
            ("1", Bar::Statement),
            ("select * into u from t", Bar::Into),
            ("select * from t for update", Bar::Lock),
            ("select * from t FOR /**/ SHARE of t", Bar::Lock),
            ("select * from t for no key update", Bar::Lock),
            ("select * from (select * from t for key share) x", Bar::Lock),
            ("select nextval('s')", Bar::Function),
            ("select NextVal('s')", Bar::Function),
            ("select \"nextval\"('s')", Bar::Function),
            ("select \"Odd\"(1)", Bar::Function),
            ("select pg_catalog . nextval('s')", Bar::Function),
            ("select t.audit from t", Bar::Function),
            ("select audit from t", Bar::Function),
            ("table audit", Bar::Function),
            ("select U&\"\\006eextval\"('s')", Bar::Text),
            ("select überfall()", Bar::Text),
            ("select \"a\"\"b\"()", Bar::Text),
        ] {
            assert_eq!(read(text), Err(bar), "{text}");
        }
        assert_eq!(read("select odd(1)"), Ok(vec![]));
        assert_eq!(read(&format!("select {}", "x".repeat(64))), Err(Bar::Text));
        assert_eq!(read(&format!("select '{}'", "x".repeat(LIMIT))), Err(Bar::Text));
    }

    #[test]
    fn every_way_to_read_a_backslash_has_to_be_harmless() {
        assert_eq!(read(r"select 'a\' , nextval('s') , ' b'"), Err(Bar::Function));
        assert_eq!(read(r"select 'a\'' , nextval('s') , ''"), Err(Bar::Function));
    }

    #[test]
    fn settings_of_the_transaction_are_remembered() {
        let keys = |text: &str| read(text).map(|keys| keys.join(" "));
        for (text, expected) in [
            ("set local app.tenant = 'a'", "app.tenant"),
            ("SET LOCAL App.Tenant TO a, 'b', -1; select 1", "app.tenant"),
            ("set local \"app.tenant\" = 'x'", "app.tenant"),
            ("set local statement_timeout = '5s'", "statement_timeout"),
            (
                "select set_config('app.a', $1, true), pg_catalog.set_config('app.b', f(1, 2), TRUE)",
                "app.a app.b",
            ),
            ("select set_config('app.a', coalesce((select x from t), 'y')::text, true) from u", "app.a"),
            ("select set_config('app.a', '1', true), set_config('App.A', '2', true)", "app.a"),
        ] {
            assert_eq!(keys(text).as_deref(), Ok(expected), "{text}");
        }
        for text in [
            "set app.tenant = 'a'",
            "set session app.tenant = 'a'",
            "set local role bob",
            "set local time zone 'UTC'",
            "set local search_path = a",
            "set local application_name = a",
            "set local app.x = (select 1)",
            "set transaction read only",
            "set constraints all deferred",
            "select set_config('app.a', 'x', false)",
            "select set_config('app.a', 'x', $1)",
            "select set_config('app.a', 'x', not true)",
            "select set_config('app.a', 'x', true or f)",
            "select set_config($1, 'x', true)",
            "select set_config('a' || 'b', 'x', true)",
            "select set_config('app.a', set_config('app.b', 'x', true), true)",
            "select set_config('role', 'x', true)",
            "select set_config(setting_name => 'app.a', new_value => 'x', is_local => true)",
            "select set_config",
        ] {
            assert_eq!(read(text), Err(Bar::Context), "{text}");
        }
        assert_eq!(read("select mine.set_config('app.a', 'x', true)"), Err(Bar::Function));
        assert_eq!(read("select \"set_config\"('app.a', 'x', true)"), Err(Bar::Function));
        assert_eq!(read("select set_config('app.a', nextval('s')::text, true)"), Err(Bar::Function));
        let many: String = (0..=KEYS).map(|n| format!("set local app.k{n} = 1;")).collect();
        assert_eq!(read(&many), Err(Bar::Context));
    }

    #[test]
    fn queries_are_told_from_what_needs_no_snapshot() {
        let queries = |text: &str| reads(text.as_bytes(), is_unsafe, &mut Vec::new());
        for text in
            ["select 1", "(values (1))", "table t", "with x as (select 1) table x", "show a; select 1"]
        {
            assert_eq!(queries(text), Ok(true), "{text}");
        }
        for text in ["", "-- select", "show work_mem", "set local app.a = 1"] {
            assert_eq!(queries(text), Ok(false), "{text}");
        }
    }

    #[test]
    fn expressions_are_read_likewise() {
        for text in ["(tenant = current_setting('app.tenant'::text, true))", "CHECK ((VALUE > 0))"] {
            assert!(is_harmless(text.as_bytes(), is_unsafe), "{text}");
        }
        for text in ["(nextval('s') > 0)", "set_config('app.a', 'x', true) = 'x'", "a ; b", "x = E'\\'"] {
            assert!(!is_harmless(text.as_bytes(), is_unsafe), "{text}");
        }
    }

    proptest! {
        /// Whatever stands around it, a name that is not safe is found as code and not as a string.
        #[test]
        fn an_unsafe_name_is_found_anywhere(
            before in prop::collection::vec(prop::sample::select(vec!["(", "a", "'x'", ",", "1", "--c\n", "/*c*/", "t.", "::"]), 0..8),
            after in prop::collection::vec(prop::sample::select(vec!["(", ")", "a", "'x'", ",", ";", "$1"]), 0..8),
            upper in any::<bool>(),
        ) {
            let name = if upper { "NEXTVAL" } else { "nextval" };
            let text = format!("select {} {name} {}", before.join(" "), after.join(" "));
            prop_assert!(read(&text).is_err(), "{}", text);
            let quoted = format!("select {} 'nextval' {}", before.join(" "), "a");
            prop_assert!(read(&quoted).is_ok(), "{}", quoted);
        }

        #[test]
        fn any_bytes_are_survived(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = reads(&text, is_unsafe, &mut Vec::new());
            let _ = is_harmless(&text, is_unsafe);
        }
    }
}
