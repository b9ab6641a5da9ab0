//! Tags in comments: recognised, read, cut (wire.md D2, D3).
//!
//! A comment at the very end of a text (before a final `;`) or at its very start is ours if its whole
//! body is a list of pairs in one of three dialects and at least one key is known:
//! `k='v'` ([sqlcommenter](https://google.github.io/sqlcommenter/spec/): URL-encoded, `\'` inside),
//! `k=v`, and `k:v` (marginalia, Rails query logs). Anything else, hints and notes included, is left
//! where it is.
//!
//! The whole recognised comment is cut, not only its volatile keys: what remains is the same text for
//! every request, which is what statement caches and shared statements need (budgets.md §2.2). Error
//! positions reported by PostgreSQL count without it.
//!
//! A comment's tags are claims of the client; SQL injection can append one. They account and order
//! work, they do not isolate tenants.
//!
//! # Why a candidate at the end needs no lexer
//!
//! A string, a quoted name and a dollar quote end with their own delimiter, a nested comment with the
//! outer `*/`. So a text whose last token ends in `*/` and that PostgreSQL accepts has a comment
//! there, or a `--` comment in which the cut changes nothing either. (An operator `*/` could only be a
//! postfix operator, which PostgreSQL has not had since version 14.) If something is left open before
//! the candidate, PostgreSQL refuses the text, and still does after the cut. This holds for every
//! client encoding and every meaning of backslashes; a test holds it against the lexer.
//!
//! Cost: a text that neither starts with `/*` nor ends with `*/` is done after looking at both ends.

use super::lex;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::ops::Range;

/// The longest comment that is looked at, delimiters included, in bytes.
pub const LIMIT: usize = 1024;
/// The most pairs a comment of ours may have.
const PAIRS: usize = 32;

/// Whether a key, as [`Pair::key`] shows it, makes a comment ours.
#[must_use]
pub fn is_known(key: &str) -> bool {
    matches!(
        key,
        "request_id"
            | "tenant"
            | "traceparent"
            | "tracestate"
            | "route"
            | "controller"
            | "action"
            | "class"
            | "priority"
            | "deadline_ms"
            | "user_id"
            | "thread_id"
            | "session_id"
            | "max_leases"
            | "max_concurrent"
            | "max_statement_ms"
            | "max_idle_ms"
            | "max_age_ms"
            | "call_site"
            | "source_location"
            | "file"
            | "line"
    )
}

/// A pair with a known key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The key, without `bursar_` or `bursar.` before it.
    pub key: &'a str,
    /// The value, decoded: UTF-8 without control characters, possibly empty. For `traceparent` it is
    /// the trace id, 32 hexadecimal digits.
    pub value: Cow<'a, str>,
}

/// A comment of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<'a> {
    /// The bytes to remove from the text: the comment and the blanks that joined it to the rest.
    pub cut: Range<usize>,
    /// The pairs with known keys, in order; a key may come twice. Malformed trace contexts are left
    /// out, so there may be none.
    pub pairs: SmallVec<[Pair<'a>; 4]>,
}

/// Finds the comment of ours in a statement text (with or without its NUL); the one at the end if
/// there are two.
#[must_use]
pub fn find(text: &[u8]) -> Option<Found<'_>> {
    find_with(text, |_| false)
}

/// As [`find`], with further keys that are ours (those of `comment:KEY` in the configuration).
#[must_use]
pub fn find_with(text: &[u8], ours: impl Fn(&str) -> bool) -> Option<Found<'_>> {
    trailing(text, &ours).or_else(|| leading(text, &ours))
}

fn trailing<'a>(text: &'a [u8], ours: &dyn Fn(&str) -> bool) -> Option<Found<'a>> {
    let end =
        text.len() - text.iter().rev().take_while(|&&b| b == b';' || b == 0 || lex::is_blank(b)).count();
    let kept = text[..end].strip_suffix(b"*/")?;
    let open = opening(kept)?;
    let pairs = pairs(&kept[open + 2..], ours)?;
    // Blanks on the comment's own line only: a line end may close a `--` comment before it.
    let blanks = text[..open].iter().rev().take_while(|b| matches!(b, b' ' | b'\t')).count();
    Some(Found { cut: open - blanks..end, pairs })
}

/// The last `/*` of `text`, if it is within [`LIMIT`] of the end.
fn opening(text: &[u8]) -> Option<usize> {
    let window = (text.len() + 2).saturating_sub(LIMIT);
    memchr::memrchr_iter(b'*', &text[window..])
        .map(|star| window + star)
        .find(|&star| star > window && text[star - 1] == b'/')
        .map(|star| star - 1)
}

fn leading<'a>(text: &'a [u8], ours: &dyn Fn(&str) -> bool) -> Option<Found<'a>> {
    if text.first().is_some_and(u8::is_ascii_alphabetic) {
        return None;
    }
    let open = blanks(text);
    let body = text[open..].strip_prefix(b"/*")?;
    // Nothing stands before it, so it is a comment; the grammar says that nothing nests in it.
    let len = memchr::memmem::find(&body[..body.len().min(LIMIT - 2)], b"*/")?;
    let pairs = pairs(&body[..len], ours)?;
    let end = open + 2 + len + 2;
    Some(Found { cut: open..end + blanks(&text[end..]), pairs })
}

fn blanks(text: &[u8]) -> usize {
    text.iter().take_while(|&&b| lex::is_blank(b)).count()
}

/// Reads a comment's body; `None` unless all of it matches the grammar and a key is ours.
fn pairs<'a>(body: &'a [u8], ours: &dyn Fn(&str) -> bool) -> Option<SmallVec<[Pair<'a>; 4]>> {
    let body = str::from_utf8(body).ok()?;
    // Neither comment delimiter may occur inside; a slash before the closing `*/` would open one.
    let slash = |at: usize| body.as_bytes().get(at) == Some(&b'/');
    let nests = |at: usize| slash(at + 1) || slash(at.wrapping_sub(1));
    if body.ends_with('/') || memchr::memchr_iter(b'*', body.as_bytes()).any(nests) {
        return None;
    }
    let mut rest = body.trim_ascii();
    let mut pairs = SmallVec::new();
    let mut recognised = false;
    for _ in 0..PAIRS {
        let (key, value, after) = pair(rest)?;
        let key = key.strip_prefix("bursar_").or_else(|| key.strip_prefix("bursar.")).unwrap_or(key);
        if is_known(key) || ours(key) {
            recognised = true;
            pairs.extend(tell(key, value));
        }
        let after = after.trim_ascii_start();
        if after.is_empty() {
            return recognised.then_some(pairs);
        }
        rest = after.strip_prefix(',')?.trim_ascii_start();
    }
    None
}

/// The pair as told to the caller; `None` for a trace context that is none.
fn tell<'a>(key: &'a str, value: Cow<'a, str>) -> Option<Pair<'a>> {
    if key != "traceparent" {
        return Some(Pair { key, value });
    }
    let span = trace_id(&value)?;
    let value = match value {
        Cow::Borrowed(text) => Cow::Borrowed(&text[span]),
        Cow::Owned(text) => Cow::Owned(text[span].to_owned()),
    };
    Some(Pair { key, value })
}

/// Where the trace id stands in a `traceparent` value (W3C Trace Context, version 00):
/// `00-<32 hex>-<16 hex>-<2 hex>` in lower case, neither id all zeros.
#[must_use]
pub fn trace_id(value: &str) -> Option<Range<usize>> {
    let bytes: &[u8; 55] = value.as_bytes().try_into().ok()?;
    // Without early exits, so that it becomes vector code.
    let hex =
        |field: &[u8]| field.iter().fold(true, |ok, b| ok & (b.is_ascii_digit() | (b'a'..=b'f').contains(b)));
    let zero = |id: &[u8]| id.iter().fold(0, |or, b| or | (b ^ b'0')) == 0;
    let (trace, parent, flags) = (&bytes[3..35], &bytes[36..52], &bytes[53..]);
    let dashes = bytes.starts_with(b"00-") && bytes[35] == b'-' && bytes[52] == b'-';
    (dashes && hex(trace) && hex(parent) && hex(flags) && !zero(trace) && !zero(parent)).then_some(3..35)
}

/// One pair from the start of `text`: key, decoded value, what follows.
fn pair(text: &str) -> Option<(&str, Cow<'_, str>, &str)> {
    let key_len = text
        .bytes()
        .take_while(|&b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'%' | b'-'))
        .count();
    let (key, rest) = text.split_at(key_len);
    let starts = key.bytes().next()?;
    if !(starts.is_ascii_alphabetic() || starts == b'_') {
        return None;
    }
    let value = rest.strip_prefix(['=', ':'])?;
    if let Some(quoted) = value.strip_prefix('\'').filter(|_| rest.starts_with('=')) {
        let close = closing_quote(quoted)?;
        return Some((key, decode(&quoted[..close])?, &quoted[close + 1..]));
    }
    let end = value.find(',').unwrap_or(value.len());
    // No blank after the separator: `/* action: drop old rows */` is a note to people.
    let plain = value[..end].trim_ascii_end();
    (!plain.is_empty()
        && !plain.starts_with(['\'', '"', ' ', '\t'])
        && !plain.contains(['\\', ';'])
        && !has_control(plain))
    .then_some((key, Cow::Borrowed(plain), &value[end..]))
}

/// The first quote that no backslash escapes.
fn closing_quote(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'\'', b'\\', &bytes[at..])?;
        if bytes[at] == b'\'' {
            return Some(at);
        }
        at += 2;
        if at > bytes.len() {
            return None;
        }
    }
}

/// Decodes `%41`, `\'` and the `%%` of drivers that double percent signs. `None` for a broken
/// escape, for what is not UTF-8 and for control characters.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    let decoded = if memchr::memchr2(b'%', b'\\', text.as_bytes()).is_none() {
        Cow::Borrowed(text)
    } else {
        let mut out = Vec::with_capacity(text.len());
        let mut bytes = text.bytes().peekable();
        while let Some(b) = bytes.next() {
            match b {
                b'\\' => out.push(bytes.next()?),
                b'%' => {
                    bytes.next_if_eq(&b'%');
                    let mut digit = || char::from(bytes.next()?).to_digit(16);
                    let (high, low) = (digit()?, digit()?);
                    out.push((high * 16 + low) as u8);
                }
                _ => out.push(b),
            }
        }
        Cow::Owned(String::from_utf8(out).ok()?)
    };
    (!has_control(&decoded)).then_some(decoded)
}

/// Whether a control character is in `text`; quick for ASCII, which nearly all values are.
fn has_control(text: &str) -> bool {
    let ascii = text.bytes().fold(false, |found, b| found | (b < 0x20) | (b == 0x7f));
    ascii || (!text.is_ascii() && text.contains(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::super::lex::{Part, Piece, Pieces};
    use super::*;
    use proptest::prelude::*;

    /// What is left of the text, and the pairs.
    fn cut(text: &str) -> Option<(String, Vec<(&str, String)>)> {
        let found = find(text.as_bytes())?;
        let left = format!("{}{}", &text[..found.cut.start], &text[found.cut.end..]);
        Some((left, found.pairs.into_iter().map(|p| (p.key, p.value.into_owned())).collect()))
    }

    #[track_caller]
    fn reads(text: &str, left: &str, pairs: &[(&str, &str)]) {
        let (found, read) = cut(text).expect(text);
        assert_eq!(found, left);
        let read: Vec<_> = read.iter().map(|(k, v)| (*k, v.as_str())).collect();
        assert_eq!(read, pairs);
    }

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn three_dialects_at_either_end() {
        let trailing = format!("select 1 /*route='%2Fpolls%201',traceparent='{PARENT}'*/");
        reads(&trailing, "select 1", &[("route", "/polls 1"), ("traceparent", TRACE)]);
        reads("select 1 /*tenant='a\\'b'*/;\n", "select 1;\n", &[("tenant", "a'b")]);
        reads("select 1\t/* tenant=x */", "select 1", &[("tenant", "x")]);
    }

    #[test]
    fn plain_dialects() {
        reads(
            "select 1 /* tenant=acme, request_id=r-1 */ ; \0",
            "select 1 ; \0",
            &[("tenant", "acme"), ("request_id", "r-1")],
        );
        reads(
            "select 1 /*application:Shop,controller:carts,action:show,line:/app/x.rb:12:in `index'*/",
            "select 1",
            &[("controller", "carts"), ("action", "show"), ("line", "/app/x.rb:12:in `index'")],
        );
        reads(
            "/*bursar_request_id='r',bursar.tenant='t'*/ select 1",
            "select 1",
            &[("request_id", "r"), ("tenant", "t")],
        );
        reads("\n/*tenant:a*/", "\n", &[("tenant", "a")]);
        reads("select 1 -- x\n/*tenant=a*/;", "select 1 -- x\n;", &[("tenant", "a")]);
        reads("select '%%' /*tenant='a%%20b'*/", "select '%%'", &[("tenant", "a b")]);
        reads("select 1 /*traceparent='00-zz-1-1'*/", "select 1", &[]);
        reads("select 1 /*tenant=''*/", "select 1", &[("tenant", "")]);
    }

    #[test]
    fn comments_that_are_not_ours_stay() {
        for text in [
            "",
            ";",
            "select 1",
            "/*/",
            "*/",
            "select 1 /* a note */",
            "select 1 /* action: drop old rows */",
            "select 1 /* tenant = x */",
            "select 1 /*+ IndexScan(t) */",
            "select 1 /*unknown='x'*/",
            "select 1 /*tenant='x',*/",
            "select 1 /*tenant='x' and more*/",
            "select 1 /*tenant='%zz'*/",
            "select 1 /*tenant='%ff'*/",
            "select 1 /*tenant='a%00b'*/",
            "select 1 /*tenant='a%0Ab'*/",
            "select 1 /*tenant='x\\'*/",
            "select 1 /*tenant=x*/ + 2",
            "select '/*tenant=x*/'",
            "select $$/*tenant=x*/$$",
            "select 1 as \"/*tenant=x*/\"",
            "select '/*tenant=', 'x*/'",
            "select 1 /*tenant=x*/ -- end",
            "/* /*tenant=x*/ */",
            "select 1 /* /* */ tenant=x*/",
            "select 1 /*tenant=x/*/",
            "/*tenant=x/*/ select 1",
            "/*tenant=x/*/ select 1 */ */",
        ] {
            assert_eq!(find(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn long_comments_are_left_alone() {
        let text = |len: usize| format!("select 1 /*tenant={}*/", "x".repeat(len));
        assert!(find(text(LIMIT - 11).as_bytes()).is_some());
        assert!(find(text(LIMIT - 10).as_bytes()).is_none());
        let lead = |len: usize| format!("/*tenant={}*/select 1", "x".repeat(len));
        assert!(find(lead(LIMIT - 11).as_bytes()).is_some());
        assert!(find(lead(LIMIT - 10).as_bytes()).is_none());
    }

    #[test]
    fn configured_keys_are_ours_too() {
        let text = b"select 1 /*org='7'*/";
        assert_eq!(find(text), None);
        assert_eq!(find_with(text, |key| key == "org").unwrap().pairs[0].value, "7");
    }

    #[test]
    fn only_version_00_of_trace_context_is_read() {
        assert_eq!(trace_id(PARENT).map(|span| &PARENT[span]), Some(TRACE));
        assert_eq!(trace_id(&PARENT.replace("00-4", "01-4")), None);
        assert_eq!(trace_id(&PARENT.to_uppercase()), None);
        assert_eq!(trace_id(&format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32))), None);
        assert_eq!(trace_id(&format!("{PARENT}-x")), None);
    }

    fn encode(value: &str) -> String {
        value.bytes().fold(String::new(), |mut out, b| {
            match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(char::from(b)),
                b'\'' => out.push_str("\\'"),
                _ => out.push_str(&format!("%{b:02X}")),
            }
            out
        })
    }

    proptest! {
        #[test]
        fn what_a_library_writes_is_read_back(
            code in prop::sample::select(vec!["select $1", "select '/*'", "select $$*/$$ -- x\n", "select E'\\'' /* n */"]),
            tenant in "[^\\pC]{0,20}", request in "[^\\pC]{0,20}", end in "[ ;]{0,3}",
        ) {
            let text = format!(
                "{code} /*app='x%27',request_id='{}',tenant='{}'*/{end}", encode(&request), encode(&tenant),
            );
            let (left, pairs) = cut(&text).unwrap();
            prop_assert_eq!(left, format!("{}{end}", code));
            prop_assert_eq!(pairs, vec![("request_id", request), ("tenant", tenant)]);
        }

        /// Whatever PostgreSQL would accept: what is cut is a comment, or the end of one.
        #[test]
        fn only_comments_are_cut(
            list in prop::collection::vec(prop::sample::select(vec![
                "select ", "1", ",", "'a'", "'", "\"", "\"b\"", "$$", "$x$", "/*", "*/", "--", "\n", "E'\\'", "\\",
                "tenant=x", "tenant='x'", "/*tenant=x*/", "/*tenant='x'*/", ";", " ", "/", "é",
            ]), 0..24),
        ) {
            let text = list.concat();
            let Some(found) = find(text.as_bytes()) else { return Ok(()) };
            let last = found.cut.end - 1;
            let before = text.as_bytes()[last] == b' ' || text.as_bytes()[last] == b'\n';
            for &reading in lex::readings(text.as_bytes()) {
                let pieces: Vec<Piece> = Pieces::new(text.as_bytes(), reading).collect();
                let piece = pieces.iter().find(|piece| piece.end > last).unwrap();
                // A piece that reaches the text's end without closing makes the text invalid.
                let open = piece.end == text.len() && piece.part != Part::Comment;
                prop_assert!(before || open || piece.part == Part::Comment, "{}", text);
            }
        }
    }
}
