//! What a text gives to one of some settings, as far as the text shows: `SET`, `RESET`, `DISCARD ALL`, and
//! `set_config` wherever it stands, with a value that is written there or is a parameter.
//!
//! For a tag that is read along the way (budgets.md §2.2): what is not understood is nothing, and nobody is
//! refused on its account. Whether a text may set something at all is [`super::reserved`]'s question.

use super::lex::{Kind, Reading, Tokens};
use super::local::Reader;
use super::reserved::mentions;
use super::settings::{name, parameter};

/// The longest text that is looked at, in bytes.
const LIMIT: usize = 4096;

/// What a setting is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// This value.
    Value(String),
    /// The value of `$n`.
    Parameter(usize),
    /// What it had in the start: RESET, DEFAULT, NULL.
    Default,
}

/// One assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The value.
    pub given: Given,
    /// Until the end of the transaction: `SET LOCAL`, or `set_config(…, true)`.
    pub local: bool,
}

/// The assignments of a text to any of these settings (lower-case names), in its order.
#[must_use]
pub fn assigned<'k>(text: &[u8], keys: impl Iterator<Item = &'k str> + Clone) -> Vec<Assigned> {
    let mut found = Vec::new();
    // `SET`, `RESET` and `set_config` have this in common. Most texts end here.
    if text.len() > LIMIT || !(mentions(text, b"set") || mentions(text, b"discard")) {
        return found;
    }
    let mut tokens = Tokens::new(text, Reading::STANDARD);
    let mut at_start = true;
    while let Some(token) = tokens.next() {
        let mut reader = Reader { tokens: tokens.clone() };
        found.extend(if at_start && token.is("set") {
            set(&mut reader, &keys)
        } else if at_start && (token.is("reset") || token.is("discard")) {
            reset(&mut reader, token.is("reset"), &keys)
        } else if token.is("set_config") {
            call(&mut reader, &keys)
        } else {
            None
        });
        at_start = matches!(token.kind, Kind::Mark(b';' | 0));
    }
    found
}

/// Behind SET.
fn set<'k>(reader: &mut Reader<'_>, keys: &(impl Iterator<Item = &'k str> + Clone)) -> Option<Assigned> {
    let mut first = reader.tokens.next()?;
    let local = first.is("local");
    if local || first.is("session") {
        first = reader.tokens.next()?;
    }
    let name = name(first, &mut reader.tokens)?;
    let separator = reader.tokens.next()?;
    if !keys.clone().any(|key| key == name) || separator.kind != Kind::Mark(b'=') && !separator.is("to") {
        return None;
    }
    let given = reader.value()?.map_or(Given::Default, Given::Value);
    Some(Assigned { given, local })
}

/// Behind RESET, or DISCARD.
fn reset<'k>(
    reader: &mut Reader<'_>,
    named: bool,
    keys: &(impl Iterator<Item = &'k str> + Clone),
) -> Option<Assigned> {
    let first = reader.tokens.next()?;
    let name = name(first, &mut reader.tokens)?;
    let meant = name == "all" || (named && keys.clone().any(|key| key == name));
    meant.then_some(Assigned { given: Given::Default, local: false })
}

/// Behind `set_config`.
fn call<'k>(reader: &mut Reader<'_>, keys: &(impl Iterator<Item = &'k str> + Clone)) -> Option<Assigned> {
    reader.mark(b'(')?;
    let name = reader.string()?.to_ascii_lowercase();
    cast(reader)?;
    reader.mark(b',')?;
    let mut behind = reader.tokens.clone();
    let first = behind.next()?;
    let given = if let Some(number) = parameter(first, &mut behind) {
        reader.tokens = behind;
        Given::Parameter(number)
    } else if first.is("null") {
        reader.tokens = behind;
        Given::Default
    } else {
        Given::Value(reader.string()?)
    };
    cast(reader)?;
    reader.mark(b',')?;
    let last = reader.tokens.next()?;
    let local = last.is("true");
    let known = (local || last.is("false")) && keys.clone().any(|key| key == name);
    known.then_some(Assigned { given, local })
}

/// `::text`, or nothing.
fn cast(reader: &mut Reader<'_>) -> Option<()> {
    while reader.peek()?.kind == Kind::Mark(b':') {
        reader.mark(b':')?;
        reader.mark(b':')?;
        reader.tokens.next().filter(|token| token.is("text") || token.is("varchar"))?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> Vec<Assigned> {
        assigned(text.as_bytes(), ["app.tenant_id", "app.org"].into_iter())
    }

    fn value(value: &str, local: bool) -> Assigned {
        Assigned { given: Given::Value(value.to_owned()), local }
    }

    #[test]
    fn every_way_to_give_a_value() {
        for (text, local) in [
            ("set app.tenant_id = 'acme'", false),
            ("SET LOCAL App.Tenant_Id TO acme", true),
            ("/* x */ set session \"app\".\"tenant_id\" = E'acme'", false),
            ("begin; set local app.org = 'acme'; select 1", true),
            ("select set_config('app.tenant_id', 'acme', true)", true),
            ("SELECT pg_catalog.set_config('APP.tenant_id'::text, 'acme'::text, FALSE)", false),
            ("with x as (select set_config('app.org', $$acme$$, true)) select 1", true),
        ] {
            assert_eq!(of(text), [value("acme", local)], "{text}");
        }
        assert_eq!(of("set app.org = 'a'; set local app.org = 'b'"), [value("a", false), value("b", true)]);
    }

    #[test]
    fn a_parameter_is_told_by_its_number() {
        let parameter = |n, local| [Assigned { given: Given::Parameter(n), local }];
        assert_eq!(of("select set_config('app.tenant_id', $1, TRUE)"), parameter(1, true));
        assert_eq!(of("select set_config('app.tenant_id', $12::text, false)"), parameter(12, false));
    }

    #[test]
    fn what_takes_the_value_away() {
        for text in [
            "reset app.org",
            "reset all",
            "discard all",
            "set app.org to default",
            "select set_config('app.org', null, false)",
        ] {
            assert_eq!(of(text), [Assigned { given: Given::Default, local: false }], "{text}");
        }
    }

    #[test]
    fn what_says_nothing() {
        for text in [
            "select 1",
            "set app.other = 'x'",
            "set app.tenant_id",
            "select set_config($1, 'x', true)",
            "select set_config('app.org', 'a' || $1, true)",
            "select set_config('app.org', 'a', $1)",
            "select 'set app.org = 1'",
            "update t set app = 'app.org'",
            "discard plans",
            "reset work_mem",
        ] {
            assert_eq!(of(text), [], "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(text in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = assigned(&[b"set ", &text[..]].concat(), ["a.b"].into_iter());
        }
    }
}
