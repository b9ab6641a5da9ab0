//! Whether a text sets a setting that is not its author's to set.
//!
//! A guard-rail, not a boundary: it finds `SET`, `RESET`, `set_config` and what is said in the options of
//! roles and functions, in every case and quoting, between comments, and careful where a name is spelled
//! in escapes. What it cannot find is a name that is only put together when the text runs.

use super::lex::{self, Kind, Tokens};
use super::scan::{Traces, scan};
use super::settings::{name, touched_for_now};

/// Whether a text sets or resets one of these settings (lower-case names), as far as it shows.
#[must_use]
pub fn sets_any<'a>(text: &[u8], keys: impl Iterator<Item = &'a str> + Clone) -> bool {
    // `SET`, `RESET` and `set_config` have this in common. Most texts end here.
    if !mentions(text, b"set") {
        return false;
    }
    let is_key = |name: &str| keys.clone().any(|key| key == name);
    let touched = touched_for_now(text, None);
    if touched.names.iter().any(|name| is_key(name)) {
        return true;
    }
    let unsure = touched.unknown || scan(text).traces.any(Traces::SUSPECT);
    if unsure && (keys.clone().any(|key| mentions(text, key.as_bytes())) || mentions(text, b"u&")) {
        return true;
    }
    lex::readings(text).iter().any(|&reading| {
        let mut tokens = Tokens::new(text, reading);
        while let Some(token) = tokens.next() {
            if (token.is("set") || token.is("reset"))
                && names(&mut tokens.clone()).is_some_and(|n| is_key(&n))
            {
                return true;
            }
        }
        false
    })
}

/// The name behind SET or RESET, wherever that stands.
fn names(tokens: &mut Tokens<'_>) -> Option<String> {
    let mut first = tokens.next()?;
    if first.is("local") || first.is("session") {
        first = tokens.next()?;
    }
    matches!(first.kind, Kind::Word | Kind::Name).then(|| name(first, tokens))?
}

/// Whether a word occurs anywhere in a text, in whatever case.
#[must_use]
pub fn mentions(text: &[u8], word: &[u8]) -> bool {
    let Some((&first, _)) = word.split_first() else { return true };
    memchr::memchr2_iter(first.to_ascii_lowercase(), first.to_ascii_uppercase(), text)
        .any(|at| text.get(at..at + word.len()).is_some_and(|found| found.eq_ignore_ascii_case(word)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sets(text: &str) -> bool {
        sets_any(text.as_bytes(), ["app.tenant_id", "app.request_id"].into_iter())
    }

    #[test]
    fn every_spelling_that_a_text_shows() {
        for text in [
            "set app.tenant_id = 'x'",
            "SET LOCAL App.Tenant_Id TO x",
            "set session \"app\".\"tenant_id\" = 'x'",
            "set \"APP.tenant_id\" = 'x'",
            "/* a */ set/**/app . /* b */ tenant_id = $$x$$",
            "-- hello\nset app.tenant_id to default",
            "select 1; reset app.tenant_id",
            "reset \"app.request_id\"",
            "begin; set local app.tenant_id = 'x'; select 1",
            "select set_config('app.tenant_id', 'x', true)",
            "select pg_catalog.set_config('APP.TENANT_ID'::text, $1, false)",
            "select SET_CONFIG ( 'app.tenant_id' , 'x', false ) from t",
            "with x as (select set_config('app.tenant_id', 'x', false)) select * from x",
            "select set_config(E'app.tenant_id', 'x', false)",
            "select set_config($$app.tenant_id$$, 'x', false)",
            "select set_config('app.tenant' || '_id', 'x', false), 'app.tenant_id'",
            "set u&\"app.tenant\\005fid\" = 'x'",
            "select set_config(U&'app.tenant\\005fid', 'x', false)",
            "do $$ begin perform set_config('app.tenant_id', 'x', false); end $$",
            "alter role app set app.tenant_id = 'x'",
            "alter database d reset app.tenant_id",
            "create function f() returns int language sql set app.tenant_id = 'x' as 'select 1'",
        ] {
            assert!(sets(text), "{text}");
        }
    }

    #[test]
    fn what_only_looks_like_it() {
        for text in [
            "select 1",
            "select current_setting('app.tenant_id')",
            "show app.tenant_id",
            "update t set app = 'app.tenant_id', tenant_id = 1",
            "select 'set app.tenant_id = 1'",
            "-- set app.tenant_id = 1\nselect 1",
            "set app.tenant = 'x'",
            "select set_config('app.other', 'app.tenant_id', false)",
            "select set_config($1, $2, true)",
            "reset all",
            "discard all",
            "insert into offsets values ('app.tenant_id')",
        ] {
            assert!(!sets(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn case_blanks_and_comments_hide_nothing(
            upper in prop::collection::vec(any::<bool>(), 32), gap in "( |\n|\t|/\\*x\\*/|--y\n){1,3}", how in 0usize..4) {
            let text = ["set app.tenant_id = 'x'", "set local app.tenant_id to 'x'", "reset app.tenant_id",
                "select set_config('app.tenant_id', 'x', true)"][how];
            let text: String = text.chars().zip(upper.into_iter().cycle())
                .map(|(c, upper)| if upper { c.to_ascii_uppercase() } else { c }).collect();
            prop_assert!(sets(&text.replace(' ', &gap)), "{}", text);
        }

        #[test]
        fn any_bytes_are_read(text in prop::collection::vec(any::<u8>(), 0..80)) {
            let text = [b"set ", &text[..]].concat();
            let _ = sets_any(&text, ["a.b"].into_iter());
        }
    }
}
