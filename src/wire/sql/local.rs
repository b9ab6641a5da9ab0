//! Statements answered without a backend: `SET bursar.x`, `RESET bursar.x`, `SHOW bursar.x`, and, alone in
//! its text, `SELECT set_config('bursar.x', …)` or `SELECT bursar.end_request()`.
//!
//! Only whole texts are taken: if one statement of a text is for PostgreSQL, or is not understood to
//! its last token, the whole text goes there. On a bare PostgreSQL the same statements are legal
//! placeholder settings, so nothing breaks there, and its own error says what was wrong with the rest.
//! What the values mean, and whether they are allowed, is [`crate::tag`]'s business.
//!
//! Strings are read as by `standard_conforming_strings = on`.

use super::lex::{self, Kind, Reading, Token, Tokens};
use crate::tag::Key;
use smallvec::SmallVec;

/// The longest text that is looked at, in bytes: eight tags with room to spare.
pub const LIMIT: usize = 4096;

/// What was asked about a key that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// SET or `set_config`.
    Set,
    /// RESET.
    Reset,
    /// SHOW.
    Show,
}

/// A statement to be answered here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// `SET [SESSION | LOCAL] bursar.key { = | TO } value`; answered with the tag `SET`.
    Set {
        /// The key.
        key: Key,
        /// The value; `None` for DEFAULT.
        value: Option<String>,
        /// SET LOCAL.
        local: bool,
    },
    /// `SELECT set_config('bursar.key', 'value', is_local)`: as [`Local::Set`], answered with one row
    /// of one text column `set_config` that holds the value, and the tag `SELECT 1`.
    SetConfig {
        /// The key.
        key: Key,
        /// The value; `None` for NULL.
        value: Option<String>,
        /// The third argument.
        local: bool,
    },
    /// `RESET bursar.key`; answered with the tag `RESET`.
    Reset {
        /// The key.
        key: Key,
    },
    /// `SHOW bursar.key`; answered with one row of one text column `bursar.key`, and the tag `SHOW`.
    Show {
        /// The key.
        key: Key,
    },
    /// `SELECT bursar.end_request() [AS column]`: the request that the session works for is over; answered
    /// with one row of one text column that holds its id (NULL if there is none), and the tag `SELECT 1`.
    EndRequest {
        /// The column's name.
        column: String,
    },
    /// `DEALLOCATE name` of a statement that is shared (never from [`parse`]); answered with the tag
    /// `DEALLOCATE`.
    Deallocate {
        /// The name.
        name: Vec<u8>,
    },
    /// A key that Bursar does not have: answered with ERROR 42704 and the nearest key.
    Unknown {
        /// What follows `bursar.`, as written.
        name: String,
        /// What was asked.
        verb: Verb,
    },
}

/// The statements of a text that needs no backend; `None` for every other text, after a look at its
/// first word. Never empty.
#[must_use]
pub fn parse(text: &[u8]) -> Option<SmallVec<[Local; 1]>> {
    if text.len() > LIMIT || !promising(text) {
        return None;
    }
    let mut tokens = Reader { tokens: Tokens::new(text, Reading::STANDARD) };
    let mut statements = SmallVec::new();
    while let Some(first) = tokens.tokens.next() {
        if first.kind == Kind::Mark(b';') || first.kind == Kind::Mark(0) {
            continue;
        }
        statements.push(if first.is("set") {
            tokens.set()?
        } else if first.is("reset") {
            tokens.name(Verb::Reset)?
        } else if first.is("show") {
            tokens.name(Verb::Show)?
        } else if first.is("select") && statements.is_empty() {
            let found = tokens.select()?;
            // The only statement: its answer is a row, not just a tag.
            return tokens.tokens.all(|t| matches!(t.kind, Kind::Mark(b';' | 0))).then(|| {
                statements.push(found);
                statements
            });
        } else {
            return None;
        });
        match tokens.tokens.next().map(|token| token.kind) {
            None | Some(Kind::Mark(b';' | 0)) => {}
            Some(_) => return None,
        }
    }
    (!statements.is_empty()).then_some(statements)
}

/// Whether the first word lets the text be ours. Nearly every text ends here, so no lexer.
fn promising(text: &[u8]) -> bool {
    let mut code = lex::skip_to_code(text);
    while let Some(rest) = code.strip_prefix(b";") {
        code = lex::skip_to_code(rest);
    }
    let starts = |code: &[u8], name: &[u8]| {
        code.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
    };
    // A word that only begins so is told apart by the lexer.
    match (code.first().map(|b| b | 0x20), code.get(2).map(|b| b | 0x20)) {
        (Some(b's'), Some(b'l')) => {
            // The second word tells nearly every SELECT apart by its first letter.
            let next = lex::skip_to_code(code.get(6..).unwrap_or_default());
            let name: &[u8] = match next.first().map(|b| b | 0x20) {
                Some(b's') => b"set_config",
                Some(b'p') => b"pg_catalog",
                Some(b'b') => b"bursar",
                Some(b'"') => b"\"bursar\"",
                _ => return false,
            };
            starts(next, name) && starts(code, b"select")
        }
        (Some(b's'), _) => starts(code, b"set") || starts(code, b"show"),
        (Some(b'r'), _) => starts(code, b"reset"),
        _ => false,
    }
}

/// Reads names and values.
pub(super) struct Reader<'a> {
    pub(super) tokens: Tokens<'a>,
}

impl<'a> Reader<'a> {
    /// After SET.
    fn set(&mut self) -> Option<Local> {
        let mut first = self.tokens.next()?;
        let local = first.is("local");
        if local || first.is("session") {
            first = self.tokens.next()?;
        }
        let name = self.rest_of_name(first)?;
        let separator = self.tokens.next()?;
        if separator.kind != Kind::Mark(b'=') && !separator.is("to") {
            return None;
        }
        let value = self.value()?;
        Some(known(name, Verb::Set, |key| Local::Set { key, value, local }))
    }

    /// After RESET or SHOW.
    fn name(&mut self, verb: Verb) -> Option<Local> {
        let first = self.tokens.next()?;
        let name = self.rest_of_name(first)?;
        Some(known(name, verb, |key| match verb {
            Verb::Reset => Local::Reset { key },
            _ => Local::Show { key },
        }))
    }

    /// A parameter name that starts with `bursar.`, from its first token on: the part behind that.
    fn rest_of_name(&mut self, first: Token<'a>) -> Option<String> {
        let mut name = identifier(first)?;
        while self.peek().is_some_and(|next| next.kind == Kind::Mark(b'.')) {
            self.tokens.next();
            name.push('.');
            name.push_str(&identifier(self.tokens.next()?)?);
        }
        strip_prefix(&name)
    }

    /// The next token, left in place.
    pub(super) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.clone().next()
    }

    /// A value: string, word or number. The outer `None` is no value, the inner one DEFAULT.
    pub(super) fn value(&mut self) -> Option<Option<String>> {
        let first = self.tokens.next()?;
        match first.kind {
            Kind::Word if first.is("default") => Some(None),
            Kind::Word | Kind::Text | Kind::Name => {
                if first.is("e") && self.peek().is_some_and(|next| next.kind == Kind::EscapedText) {
                    return self.tokens.next().and_then(escaped).map(Some);
                }
                if first.kind == Kind::Text { literal(first).map(Some) } else { identifier(first).map(Some) }
            }
            Kind::Number => Some(Some(as_text(first.bytes)?)),
            Kind::Mark(sign @ (b'-' | b'+')) => {
                let number = self.tokens.next().filter(|token| token.kind == Kind::Number)?;
                let digits = as_text(number.bytes)?;
                Some(Some(if sign == b'-' { format!("-{digits}") } else { digits }))
            }
            Kind::EscapedText | Kind::Mark(_) => None,
        }
    }

    /// After SELECT: a call of one of two functions.
    fn select(&mut self) -> Option<Local> {
        let first = self.tokens.next()?;
        if identifier(first).as_deref() == Some("bursar") {
            self.end_request()
        } else {
            self.set_config(first)
        }
    }

    /// After `SELECT bursar`: `.end_request() [AS column]`.
    fn end_request(&mut self) -> Option<Local> {
        self.mark(b'.')?;
        let function = identifier(self.tokens.next()?).filter(|name| name == "end_request")?;
        self.mark(b'(')?;
        self.mark(b')')?;
        let column = match self.peek().filter(|next| next.is("as")) {
            Some(_) => {
                self.tokens.next();
                identifier(self.tokens.next()?)?
            }
            None => function,
        };
        Some(Local::EndRequest { column })
    }

    /// After SELECT: `[pg_catalog.]set_config('bursar.key', 'value' | NULL, true | false)`, of which this is
    /// the first token.
    fn set_config(&mut self, mut function: Token<'a>) -> Option<Local> {
        if function.is("pg_catalog") {
            self.mark(b'.')?;
            function = self.tokens.next()?;
        }
        if !function.is("set_config") {
            return None;
        }
        self.mark(b'(')?;
        let name = self.tokens.next().filter(|token| token.kind == Kind::Text)?;
        let name = strip_prefix(&literal(name)?)?;
        self.mark(b',')?;
        let value = if self.peek()?.is("null") {
            self.tokens.next();
            None
        } else {
            Some(self.string()?)
        };
        self.mark(b',')?;
        let last = self.tokens.next()?;
        let local = last.is("true");
        if !local && !last.is("false") {
            return None;
        }
        self.mark(b')')?;
        Some(known(name, Verb::Set, |key| Local::SetConfig { key, value, local }))
    }

    /// A string literal with or without `E`.
    pub(super) fn string(&mut self) -> Option<String> {
        let first = self.tokens.next()?;
        if first.is("e") {
            return escaped(self.tokens.next().filter(|token| token.kind == Kind::EscapedText)?);
        }
        literal(first)
    }

    /// The next token, if it is this mark.
    pub(super) fn mark(&mut self, mark: u8) -> Option<()> {
        (self.tokens.next()?.kind == Kind::Mark(mark)).then_some(())
    }
}

fn known(name: String, verb: Verb, make: impl FnOnce(Key) -> Local) -> Local {
    match Key::of(&name) {
        Some(key) => make(key),
        None => Local::Unknown { name, verb },
    }
}

/// What follows `bursar.`, which compares as all parameter names do: ASCII case-insensitively.
fn strip_prefix(name: &str) -> Option<String> {
    let (prefix, rest) = name.split_at_checked("bursar.".len())?;
    (prefix.eq_ignore_ascii_case("bursar.") && !rest.is_empty()).then(|| rest.to_owned())
}

fn as_text(bytes: &[u8]) -> Option<String> {
    str::from_utf8(bytes).ok().map(str::to_owned)
}

/// A word, folded as PostgreSQL folds it, or a quoted name.
fn identifier(token: Token<'_>) -> Option<String> {
    match token.kind {
        Kind::Word => as_text(token.bytes).map(|word| word.to_ascii_lowercase()),
        Kind::Name => undouble(token.bytes, '"'),
        _ => None,
    }
}

/// A plain or dollar-quoted string literal's value.
fn literal(token: Token<'_>) -> Option<String> {
    if token.kind != Kind::Text {
        return None;
    }
    if token.bytes.starts_with(b"'") {
        return undouble(token.bytes, '\'');
    }
    let text = str::from_utf8(token.bytes).ok()?;
    let tag = text.split_inclusive('$').take(2).map(str::len).sum();
    let body = text.get(tag..text.len().checked_sub(tag)?)?;
    text.ends_with(&text[..tag]).then(|| body.to_owned())
}

/// The inside of a quoted token with its doubled quotes made single; `None` if it never closed.
fn undouble(bytes: &[u8], quote: char) -> Option<String> {
    let inner = str::from_utf8(bytes).ok()?.strip_prefix(quote)?.strip_suffix(quote)?;
    let double = [quote; 2].iter().collect::<String>();
    let halves = inner.replace(&double, "");
    (!halves.contains(quote)).then(|| inner.replace(&double, &quote.to_string()))
}

/// The value of an `E'…'` string ("String Constants with C-Style Escapes", §4.1.2.2); `None` if it
/// is malformed, continued on another line, or not UTF-8.
fn escaped(token: Token<'_>) -> Option<String> {
    let inner = token.bytes.strip_prefix(b"'")?;
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    loop {
        let (&b, after) = rest.split_first()?;
        rest = after;
        match b {
            b'\'' if rest.is_empty() => return String::from_utf8(out).ok(),
            b'\'' => {
                rest = rest.strip_prefix(b"'")?;
                out.push(b'\'');
            }
            b'\\' => rest = escape(rest, &mut out)?,
            _ => out.push(b),
        }
    }
}

/// One escape, from behind its backslash: appends its bytes, returns what follows.
fn escape<'a>(rest: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (&b, after) = rest.split_first()?;
    let number = |text: &'a [u8], radix: u32, most: usize| {
        let len = text.iter().take(most).take_while(|&&b| char::from(b).is_digit(radix)).count();
        let value = text[..len]
            .iter()
            .fold(0u32, |value, &b| value.wrapping_mul(radix) + char::from(b).to_digit(radix).unwrap_or(0));
        (len, value, &text[len..])
    };
    let exact = |most: usize| match number(after, 16, most) {
        (len, value, rest) if len == most => Some((char::from_u32(value)?, rest)),
        _ => None,
    };
    let (byte, rest) = match b {
        b'b' => (0x08, after),
        b'f' => (0x0c, after),
        b'n' => (b'\n', after),
        b'r' => (b'\r', after),
        b't' => (b'\t', after),
        b'0'..=b'7' => {
            let (_, value, rest) = number(rest, 8, 3);
            (value as u8, rest)
        }
        b'x' => match number(after, 16, 2) {
            (0, ..) => (b'x', after),
            (_, value, rest) => (value as u8, rest),
        },
        b'u' | b'U' => {
            let (char, rest) = exact(if b == b'u' { 4 } else { 8 })?;
            out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(rest);
        }
        _ => (b, after),
    };
    out.push(byte);
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(key: Key, value: &str) -> Local {
        Local::Set { key, value: Some(value.to_owned()), local: false }
    }

    #[track_caller]
    fn is(text: &str, expected: &[Local]) {
        assert_eq!(parse(text.as_bytes()).as_deref(), Some(expected), "{text}");
    }

    #[test]
    fn every_shape_of_set() {
        for text in [
            "SET bursar.request_id = 'r1'",
            "set Bursar.Request_ID to 'r1';",
            "  /* c */ set session bursar.request_id='r1' -- end",
            "SET \"bursar\".\"request_id\" = \"r1\"",
            "SET \"bursar.request_id\" = r1",
            "SET bursar . request_id TO R1 ; ;",
            "SET bursar.request_id = E'r\\x31'",
            "SET bursar.request_id = e'\\162\\u0031'\0",
            "SET bursar.request_id = $$r1$$",
            "SET bursar.request_id = $q$r1$q$",
        ] {
            is(text, &[set(Key::RequestId, "r1")]);
        }
        is("set bursar.deadline_ms = 500", &[set(Key::DeadlineMs, "500")]);
        is("set bursar.deadline_ms = -1.5", &[set(Key::DeadlineMs, "-1.5")]);
        is("set bursar.route = 'it''s'", &[set(Key::Route, "it's")]);
        is("set bursar.tenant = ''", &[set(Key::Tenant, "")]);
        let default = |local| Local::Set { key: Key::Tenant, value: None, local };
        is("set bursar.tenant to default", &[default(false)]);
        is("set local bursar.tenant = DEFAULT", &[default(true)]);
    }

    #[test]
    fn reset_show_and_several() {
        is("RESET bursar.tenant", &[Local::Reset { key: Key::Tenant }]);
        is("show BURSAR.tenant;", &[Local::Show { key: Key::Tenant }]);
        is(
            "set bursar.tenant='a';reset bursar.class ; show bursar.route",
            &[set(Key::Tenant, "a"), Local::Reset { key: Key::Class }, Local::Show { key: Key::Route }],
        );
        let unknown = |name: &str, verb| Local::Unknown { name: name.to_owned(), verb };
        is("set bursar.tenent = 'a'", &[unknown("tenent", Verb::Set)]);
        is("reset bursar.a.b", &[unknown("a.b", Verb::Reset)]);
        is("show bursar.x", &[unknown("x", Verb::Show)]);
    }

    #[test]
    fn set_config_alone() {
        let config = |value: Option<&str>, local| Local::SetConfig {
            key: Key::RequestId,
            value: value.map(str::to_owned),
            local,
        };
        is("select set_config('bursar.request_id', 'r', false)", &[config(Some("r"), false)]);
        is("SELECT pg_catalog.set_config('BURSAR.request_id', E'r', TRUE);", &[config(Some("r"), true)]);
        is("select set_config('bursar.request_id', null, false)", &[config(None, false)]);
        for text in [
            "select set_config('bursar.request_id', $1, false)",
            "select set_config('bursar.request_id', 'r', false), 1",
            "select set_config('bursar.request_id', 'r', false) as x",
            "select set_config('bursar.request_id', 'r', false); select 1",
            "set bursar.tenant='x'; select set_config('bursar.request_id', 'r', false)",
            "select set_config('app.request_id', 'r', false)",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn end_request_alone() {
        let end = |column: &str| Local::EndRequest { column: column.to_owned() };
        for text in [
            "SELECT bursar.end_request()",
            "select Bursar . END_REQUEST ( ) ;",
            "/* c */ select \"bursar\".\"end_request\"() -- end",
        ] {
            is(text, &[end("end_request")]);
        }
        is("SELECT bursar.end_request() AS end_request_1", &[end("end_request_1")]);
        is("SELECT bursar.end_request() as \"Done\"", &[end("Done")]);
        for text in [
            "select bursar.end_request",
            "select bursar.end_request(1)",
            "select bursar.end_request(), 1",
            "select bursar.end_request(); select 1",
            "select bursar.ended()",
            "select end_request()",
            "select bursar_end_request()",
            "select bursar.end_request() as",
            "select bursar.end_request() limit 1",
            "set bursar.tenant = 'a'; select bursar.end_request()",
            "select * from bursar.end_request()",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn everything_else_is_postgresqls() {
        for text in [
            "",
            ";",
            "/* c */",
            "select 1",
            "set x = 1",
            "set bursar = 1",
            "set bursar. = 1",
            "set bursar.tenant",
            "set bursar.tenant =",
            "set bursar.tenant = 'a' 'b'",
            "set bursar.tenant = 'a', 'b'",
            "set bursar.tenant = 'a",
            "set bursar.tenant = 'a'; select 1",
            "select 1; set bursar.tenant = 'a'",
            "set bursar.deadline_ms = 5 ms",
            "set bursar.tenant = E'\\u00'",
            "set bursar.tenant = E'a'\n'b'",
            "set bursar.tenant = $1",
            "set bursar.tenant from current",
            "reset all",
            "reset bursar.tenant x",
            "show all",
            "show bursar",
            "begin; set bursar.tenant = 'a'; commit",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        let long = format!("set bursar.tenant = '{}'", "x".repeat(LIMIT));
        assert_eq!(parse(long.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn values_survive_every_quoting(value in "[^\\pC]{0,40}", how in 0..3) {
            let quoted = match how {
                0 => format!("'{}'", value.replace('\'', "''")),
                1 => format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")),
                _ => format!("$q${}$q$", value.replace('$', "")),
            };
            let expected = if how == 2 { value.replace('$', "") } else { value };
            let text = format!("set bursar.route = {quoted}");
            let found = parse(text.as_bytes());
            prop_assert_eq!(found.as_deref(), Some(&[set(Key::Route, &expected)][..]));
        }
    }
}
