//! Which settings a text changes, by name (wire.md C2).
//!
//! Asked only of texts that [`scan`](super::scan) says change settings, so it may allocate. It
//! understands `SET`, `RESET` and `DISCARD ALL` as PostgreSQL's grammar has them (VariableSetStmt,
//! VariableResetStmt), and `set_config` with a literal for a name, or a parameter where a Bind is at
//! hand that says what it stands for. Whatever it does not understand to the end makes the answer
//! [`Touched::unknown`]. A name too many does no harm: the backend is asked for the value, and says what
//! it was.

use super::bound::Bound;
use super::lex::{self, Kind, Reading, Token, Tokens};
use smallvec::SmallVec;

/// Names told apart; more make the answer unknown.
const MAX_NAMES: usize = 64;

/// Lower-case names of settings.
pub type Names = SmallVec<[Box<str>; 2]>;

/// What one text does to settings, or several, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    /// Settings that may have another value afterwards; with [`Touched::all`], besides all others.
    pub names: Names,
    /// Of these, those that end at their default (`RESET x`, `SET x TO DEFAULT`).
    pub resets: Names,
    /// `RESET ALL`, or `DISCARD ALL`.
    pub all: bool,
    /// `DISCARD ALL`, which also ends roles.
    pub discard: bool,
    /// Set again behind `RESET ALL`.
    pub since: Names,
    /// It also changes settings that cannot be named.
    pub unknown: bool,
}

impl Touched {
    /// Whether anything goes back to its default.
    #[must_use]
    pub fn has_resets(&self) -> bool {
        self.all || !self.resets.is_empty()
    }

    /// Whether a setting goes back to its default. Roles are left alone by `RESET ALL`.
    #[must_use]
    pub fn is_reset(&self, name: &str) -> bool {
        let all = self.all && (self.discard || !is_identity(name)) && !has(&self.since, name);
        all || has(&self.resets, name)
    }

    /// Whether nothing remains of what was set before: `RESET ALL` or `DISCARD ALL` came last.
    #[must_use]
    pub fn is_all_reset(&self) -> bool {
        self.all && self.since.is_empty() && !self.unknown
    }

    /// Whether a setting may have another value afterwards.
    #[must_use]
    pub fn may_change(&self, name: &str) -> bool {
        self.unknown || self.all || has(&self.names, name)
    }

    /// Another text has been sent behind this.
    pub fn then(&mut self, later: Touched) {
        if later.all {
            self.resets.clear();
            self.since.clear();
            self.all = true;
            self.discard |= later.discard;
        }
        for name in later.names {
            if has(&later.resets, &name) {
                self.reset(name);
            } else if later.all && !has(&later.since, &name) {
                self.name(name);
            } else {
                self.set(name);
            }
        }
        self.unknown |= later.unknown;
    }

    fn set(&mut self, name: Box<str>) {
        self.resets.retain(|other| *other != name);
        if self.all && !has(&self.since, &name) {
            self.since.push(name.clone());
        }
        self.name(name);
    }

    fn reset(&mut self, name: Box<str>) {
        if !has(&self.resets, &name) {
            self.resets.push(name.clone());
        }
        self.since.retain(|other| *other != name);
        self.name(name);
    }

    fn name(&mut self, name: Box<str>) {
        if has(&self.names, &name) {
            return;
        }
        if self.names.len() < MAX_NAMES {
            self.names.push(name);
        } else {
            self.unknown = true;
        }
    }

    /// A statement has changed `name`: to its default, or to something else.
    fn change(&mut self, name: &str, to_default: bool) {
        if !is_name(name) {
            self.unknown = true;
            return;
        }
        // Of the transaction, or no setting at all.
        if matches!(
            name,
            "transaction_isolation" | "transaction_read_only" | "transaction_deferrable" | "seed"
        ) {
            return;
        }
        if to_default {
            self.reset(name.into())
        } else {
            self.set(name.into())
        }
        if name == "session_authorization" {
            self.set("role".into());
        }
    }
}

fn has(names: &Names, name: &str) -> bool {
    names.iter().any(|other| **other == *name)
}

/// As whom a session works, in the order to be set: the first ends the second.
pub const IDENTITY: [&str; 2] = ["session_authorization", "role"];

/// Whether this is one of [`IDENTITY`].
#[must_use]
pub fn is_identity(name: &str) -> bool {
    IDENTITY.contains(&name)
}

/// Whether this could be a setting's name: identifiers of ASCII letters, joined by dots.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= 128
        && name.split('.').all(|part| {
            let mut bytes = part.bytes();
            bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
                && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
        })
}

/// What `text` (without its NUL) does to settings, if all of it succeeds; `bound` is what a Bind of it says.
#[must_use]
pub fn touched(text: &[u8], bound: Option<&Bound<'_>>) -> Touched {
    union(text, bound, false)
}

/// As [`touched`], and what it changes for the rest of its transaction (`SET LOCAL`).
#[must_use]
pub fn touched_for_now(text: &[u8], bound: Option<&Bound<'_>>) -> Touched {
    union(text, bound, true)
}

fn union(text: &[u8], bound: Option<&Bound<'_>>, locals: bool) -> Touched {
    let mut readings = lex::readings(text).iter().map(|&reading| read(text, reading, bound, locals));
    let mut first = readings.next().unwrap_or_default();
    for other in readings {
        if other != first {
            // It depends on settings that are not known here where its strings end.
            first.then(other);
            first.unknown = true;
        }
    }
    first
}

fn read(text: &[u8], reading: Reading, bound: Option<&Bound<'_>>, locals: bool) -> Touched {
    let mut touched = Touched::default();
    let mut tokens = Tokens::new(text, reading);
    let mut at_start = true;
    while let Some(token) = tokens.next() {
        if at_start && token.kind == Kind::Word {
            let understood = if token.is("set") {
                set(&mut tokens.clone(), &mut touched, locals)
            } else if token.is("reset") {
                reset(&mut tokens.clone(), &mut touched)
            } else if token.is("discard") {
                if tokens.clone().next().is_some_and(|next| next.is("all")) {
                    touched.then(Touched { all: true, discard: true, ..Touched::default() });
                }
                Some(())
            } else {
                Some(())
            };
            touched.unknown |= understood.is_none();
        }
        at_start = matches!(token.kind, Kind::Mark(b';' | 0));
        let is_call = matches!(token.kind, Kind::Word | Kind::Name)
            && identifier(token).is_some_and(|name| name == "set_config")
            && tokens.clone().next().is_some_and(|next| next.kind == Kind::Mark(b'('));
        if is_call {
            touched.unknown |= call(&mut tokens.clone(), bound, &mut touched).is_none();
        }
    }
    touched
}

/// Behind SET; `None` if it is not understood.
fn set(tokens: &mut Tokens<'_>, touched: &mut Touched, locals: bool) -> Option<()> {
    let mut first = tokens.next()?;
    if first.is("local") && locals {
        first = tokens.next()?;
    }
    if first.is("local") || first.is("transaction") || first.is("constraints") {
        return Some(());
    }
    if first.is("session") {
        first = tokens.next()?;
        if first.is("characteristics") {
            for name in ["isolation", "read_only", "deferrable"] {
                touched.change(&format!("default_transaction_{name}"), false);
            }
            return Some(());
        }
        if first.is("authorization") {
            let to_default = tokens.next()?.is("default");
            touched.change("session_authorization", to_default);
            return Some(());
        }
    }
    let next = peek(tokens);
    let then = |word: &str| next.is_some_and(|next| next.is(word));
    let assigned = next.is_some_and(|next| next.kind == Kind::Mark(b'=')) || then("to");
    let literal = next.is_some_and(is_string) || then("e");
    if first.is("time") && then("zone") {
        tokens.next();
        let value = tokens.next()?;
        touched.change("timezone", value.is("default") || value.is("local"));
    } else if first.is("xml") && then("option") {
        touched.change("xmloption", false);
    } else if first.is("names") && !assigned && !is_dot(next) {
        let value = tokens.next().filter(|token| !matches!(token.kind, Kind::Mark(_)));
        touched.change("client_encoding", value.is_none_or(|value| value.is("default")));
    } else if first.is("schema") && literal {
        touched.change("search_path", false);
    } else if first.is("role") && !assigned && !is_dot(next) {
        tokens.next()?;
        touched.change("role", false);
    } else {
        let name = name(first, tokens)?;
        let separator = tokens.next()?;
        if separator.kind != Kind::Mark(b'=') && !separator.is("to") {
            return None;
        }
        touched.change(&name, tokens.next()?.is("default"));
    }
    Some(())
}

/// Behind RESET.
fn reset(tokens: &mut Tokens<'_>, touched: &mut Touched) -> Option<()> {
    let first = tokens.next()?;
    let next = peek(tokens);
    let then = |word: &str| next.is_some_and(|next| next.is(word));
    if first.is("all") {
        touched.then(Touched { all: true, ..Touched::default() });
    } else if first.is("time") && then("zone") {
        touched.change("timezone", true);
    } else if first.is("session") && then("authorization") {
        touched.change("session_authorization", true);
    } else if !(first.is("transaction") && then("isolation")) {
        touched.change(&name(first, tokens)?, true);
    }
    Some(())
}

/// Behind `set_config`: what is set, if a literal says so, or what is bound.
fn call(tokens: &mut Tokens<'_>, bound: Option<&Bound<'_>>, touched: &mut Touched) -> Option<()> {
    tokens.next()?;
    let first = tokens.next()?;
    let name = match parameter(first, tokens) {
        Some(number) => str::from_utf8(bound?.text(number)??).ok().filter(|name| is_name(name))?,
        None => literal(first)?,
    };
    let name = name.to_ascii_lowercase();
    argument_ends(tokens)?;
    // NULL stands for the default.
    let value = tokens.next()?;
    let number = parameter(value, tokens);
    let is_bound_null = || bound.zip(number).and_then(|(bound, number)| bound.value(number)) == Some(None);
    let mut to_default = false;
    if value.is("null") || is_bound_null() {
        argument_ends(tokens)?;
        to_default = !flag(tokens, bound)?;
    }
    touched.change(&name, to_default);
    Some(())
}

/// Casts to text, and the comma behind them.
fn argument_ends(tokens: &mut Tokens<'_>) -> Option<()> {
    loop {
        match tokens.next()?.kind {
            Kind::Mark(b',') => return Some(()),
            Kind::Mark(b':') => {
                tokens.next().filter(|token| token.kind == Kind::Mark(b':'))?;
                tokens.next().filter(|token| token.is("text"))?;
            }
            _ => return None,
        }
    }
}

/// The `n` of `$n`, of which `first` is the first token.
pub(super) fn parameter(first: Token<'_>, tokens: &mut Tokens<'_>) -> Option<usize> {
    let digits = peek(tokens).filter(|next| {
        first.kind == Kind::Mark(b'$') && next.kind == Kind::Number && next.start == first.start + 1
    })?;
    tokens.next();
    str::from_utf8(digits.bytes).ok()?.parse().ok()
}

/// TRUE or FALSE, written or bound, in either format.
fn flag(tokens: &mut Tokens<'_>, bound: Option<&Bound<'_>>) -> Option<bool> {
    let token = tokens.next()?;
    if token.is("true") || token.is("false") {
        return Some(token.is("true"));
    }
    match bound?.value(parameter(token, tokens)?)?? {
        b"t" | b"true" | [1] => Some(true),
        b"f" | b"false" | [0] => Some(false),
        _ => None,
    }
}

fn peek<'a>(tokens: &Tokens<'a>) -> Option<Token<'a>> {
    tokens.clone().next()
}

fn is_dot(token: Option<Token<'_>>) -> bool {
    token.is_some_and(|token| token.kind == Kind::Mark(b'.'))
}

/// A setting's name from its first token on, in lower case.
pub(super) fn name(first: Token<'_>, tokens: &mut Tokens<'_>) -> Option<String> {
    let mut name = identifier(first)?;
    while is_dot(peek(tokens)) {
        tokens.next();
        name.push('.');
        name.push_str(&identifier(tokens.next()?)?);
    }
    Some(name)
}

/// A word or a quoted name, in lower case: settings are found in any.
fn identifier(token: Token<'_>) -> Option<String> {
    let text = str::from_utf8(token.bytes).ok()?;
    match token.kind {
        Kind::Word => Some(text.to_ascii_lowercase()),
        Kind::Name => Some(text.strip_prefix('"')?.strip_suffix('"')?.to_ascii_lowercase()),
        _ => None,
    }
}

/// Under one of the readings every string is one with escapes.
fn is_string(token: Token<'_>) -> bool {
    matches!(token.kind, Kind::Text | Kind::EscapedText)
}

/// The value of a plain string literal without anything to be unescaped in it.
fn literal(token: Token<'_>) -> Option<&str> {
    let inner = token.bytes.strip_prefix(b"'")?.strip_suffix(b"'")?;
    str::from_utf8(inner).ok().filter(|text| is_string(token) && is_name(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> Touched {
        touched(text.as_bytes(), None)
    }

    #[track_caller]
    fn names(text: &str, expected: &[&str]) {
        let touched = of(text);
        assert_eq!(touched.names.iter().map(|name| &**name).collect::<Vec<_>>(), expected, "{text}");
        assert!(!touched.unknown && !touched.has_resets(), "{text}: {touched:?}");
    }

    #[test]
    fn every_form_of_set() {
        for text in [
            "SET work_mem = 1",
            "set session Work_Mem to '1'",
            "/* c */ SET \"work_mem\" = '1', '2' -- x",
            "select 1; set work_mem to 1; set local x = 2",
            "select set_config('work_mem', $1, false)",
            "select pg_catalog.\"set_config\" ( 'Work_Mem'::text, 'a' || $1, f(true))",
            "with x as (select set_config('work_mem','1',false)) select 'set_config(', * from x",
        ] {
            names(text, &["work_mem"]);
        }
        names("set a.b = 1; set \"A\".c . \"D\" to x", &["a.b", "a.c.d"]);
        names("set time zone 'UTC'", &["timezone"]);
        names("set session time zone interval '1' hour to minute", &["timezone"]);
        names("set schema 'a'", &["search_path"]);
        names("set search_path to a, b", &["search_path"]);
        names("set names 'latin1'", &["client_encoding"]);
        names("set xml option document", &["xmloption"]);
        names("set role bob", &["role"]);
        names("set session role none", &["role"]);
        names("set session authorization bob", &["session_authorization", "role"]);
        names("set session_authorization to bob", &["session_authorization", "role"]);
        let characteristics = [
            "default_transaction_isolation",
            "default_transaction_read_only",
            "default_transaction_deferrable",
        ];
        names("set session characteristics as transaction read only", &characteristics);
        names("select set_config('a', set_config('b', 'c', false), false)", &["a", "b"]);
        names(
            "set names = 1; set role to bob; set schema = 'a'; set time to 1",
            &["names", "role", "schema", "time"],
        );
    }

    #[test]
    fn what_is_no_setting_of_the_session() {
        for text in [
            "set local x = 1",
            "SET TRANSACTION READ ONLY",
            "set constraints all deferred",
            "set seed = 0.5",
            "set transaction_isolation to serializable",
            "reset transaction isolation level",
            "discard temp",
            "select set_config",
            "select 'set x = 1'; update t set a = 1",
        ] {
            assert_eq!(of(text), Touched::default(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_named() {
        for text in [
            "select set_config($1, 'a', false)",
            "select set_config('a' || 'b', 'c', false)",
            "select set_config(E'a', 'b', false)",
            "select set_config('a b', 'b', false)",
            "set u&\"a\" = 1",
            "set x",
            "set",
            "reset",
            "set é = 1",
            "set x from current",
            "reset \"a",
            "select set_config('a', null, $1)",
            "set \"a\"\"b\" = 1",
        ] {
            assert!(of(text).unknown, "{text}: {:?}", of(text));
        }
        // Under standard_conforming_strings = off the second statement is in a string.
        assert!(of(r"select '\'; set x = 1; --'").unknown);
        names(r"set x = 'C:\dir'", &["x"]);
        names(r"select set_config('app.mark', 'a\b ''c''', false)", &["app.mark"]);
        names(r"set schema 'a\b'", &["search_path"]);
        let many: String = (0..=MAX_NAMES).map(|n| format!("set a{n} = 1;")).collect();
        assert!(of(&many).unknown);
    }

    #[test]
    fn resets() {
        for text in [
            "reset x",
            "RESET \"X\"",
            "set x to default",
            "set session x = DEFAULT",
            "select set_config('x', null, false)",
            "set x = 1; reset x",
        ] {
            let touched = of(text);
            assert!(touched.is_reset("x") && !touched.all && !touched.unknown, "{text}: {touched:?}");
            assert_eq!(touched.names[..], ["x".into()], "{text}");
        }
        assert!(of("reset time zone").is_reset("timezone"));
        assert!(of("set time zone local").is_reset("timezone"));
        assert!(of("set names default").is_reset("client_encoding"));
        assert!(of("set names").is_reset("client_encoding"));
        let session = of("reset session authorization");
        assert!(session.is_reset("session_authorization") && session.names.contains(&"role".into()));
        assert!(!of("reset x; set x = 1").has_resets());
        assert!(!of("select set_config('x', null, true)").has_resets());
    }

    #[test]
    fn what_a_bind_says() {
        // Parameters 1 to 4: a name, a value, NULL, false.
        let bind = b"\0\0\0\0\0\x04\0\0\0\x08Work_Mem\0\0\0\x031MB\xff\xff\xff\xff\0\0\0\x01f\0\0";
        let of = |text: &str| {
            let parse = [text.as_bytes(), b"\0\0\0"].concat();
            touched(text.as_bytes(), Bound::read(&parse, bind).as_ref())
        };
        let (set, reset) = (super::tests::of("set work_mem = 1"), super::tests::of("reset work_mem"));
        assert_eq!(of("select set_config($1, $2, false)"), set);
        assert_eq!(of("select set_config($1::text, $2::text, $4)"), set);
        assert_eq!(of("select set_config('work_mem', $2, $4)"), set);
        assert_eq!(of("select set_config($1, $3, false)"), reset);
        assert_eq!(of("select set_config('work_mem', $3::text, $4)"), reset);
        assert!(!of("select set_config($1, $3, true)").has_resets());
        for text in [
            "select set_config($2, $1, false)",
            "select set_config($3, $2, false)",
            "select set_config($5, $2, false)",
            "select set_config($1 || $2, $2, false)",
            "select set_config($1, $3 || 'x', false)",
            "select set_config($1, $3, $2)",
            "select $1::regclass, set_config($1, $2, false)",
        ] {
            assert!(of(text).unknown, "{text}: {:?}", of(text));
        }
    }

    #[test]
    fn all_are_reset() {
        let all = of("select pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;");
        assert!(all.is_all_reset() && all.is_reset("x") && !all.is_reset("role"));
        let discarded = of("discard all");
        assert!(discarded.is_all_reset() && discarded.is_reset("role"));
        let again = of("set z = 1; reset all; set x = 1; reset role");
        assert!(
            !again.is_all_reset() && !again.is_reset("x") && again.is_reset("z") && again.is_reset("role")
        );
        assert!(of("reset all; set x = 1; reset x").is_all_reset());
    }

    fn statement() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec!["a", "b.c", "role", "session_authorization"]);
        (name, 0..5).prop_map(|(name, what)| match what {
            0 => "reset all".to_owned(),
            1 => format!("reset {name}"),
            2 => format!("set {name} to default"),
            3 => format!("select set_config('{name}', 'v', false)"),
            _ => format!("set {name} = 'v'"),
        })
    }

    proptest! {
        /// One text after the other says what both together say.
        #[test]
        fn texts_add_up(one in prop::collection::vec(statement(), 0..5), two in prop::collection::vec(statement(), 0..5)) {
            let (one, two) = (one.join(";"), two.join(";"));
            let mut sum = of(&one);
            sum.then(of(&two));
            let both = of(&format!("{one};{two}"));
            for name in ["a", "b.c", "role", "session_authorization", "d"] {
                prop_assert_eq!(sum.is_reset(name), both.is_reset(name), "{}: {} | {}", name, &one, &two);
                prop_assert_eq!(has(&sum.names, name), has(&both.names, name));
            }
            prop_assert_eq!(sum.is_all_reset(), both.is_all_reset());
        }

        #[test]
        fn any_bytes_are_read(text in prop::collection::vec(prop_oneof![
            any::<u8>(), prop::sample::select(&b"'\"$-/*\\(),;=. setrolconfig"[..])], 0..120)) {
            let _ = touched(&text, None);
        }
    }
}
