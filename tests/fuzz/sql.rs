//! Statement texts.

use bursar::wire::sql::assigned::assigned;
use bursar::wire::sql::lex::{Pieces, Reading, Tokens, readings};
use bursar::wire::sql::settings::{touched, touched_for_now};
use bursar::wire::sql::transaction::Verb;
use bursar::wire::sql::{comment, lead, local, reads, reserved, scan};

/// Pieces of SQL that open, close, or mean something, so that random bytes get somewhere.
const WORDS: [&str; 32] = [
    "select ",
    "set ",
    "bursar.",
    "tenant",
    "=",
    "'",
    "\"",
    "$$",
    "$x$",
    "/*",
    "*/",
    "--",
    "\n",
    ";",
    "\\",
    "E'",
    "local ",
    "set_config(",
    ",",
    "true)",
    "temp ",
    "into ",
    "create ",
    "do ",
    "listen x",
    "\u{e9}",
    "x'%41'",
    "reset ",
    "show ",
    "traceparent='00-",
    ":",
    " ",
];

/// Bytes below 128 stand for a word each, the others for themselves.
fn text(input: &[u8]) -> Vec<u8> {
    input.iter().fold(Vec::new(), |mut out, &b| {
        match b {
            0..128 => out.extend_from_slice(WORDS[usize::from(b) % WORDS.len()].as_bytes()),
            _ => out.push(b),
        }
        out
    })
}

fn for_each_text(check: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    bolero::check!().for_each(|input: &[u8]| {
        check(input);
        check(&text(input));
    });
}

#[test]
fn pieces_cover_the_text() {
    for_each_text(|text| {
        for &reading in readings(text) {
            let mut at = 0;
            for piece in Pieces::new(text, reading) {
                assert!(piece.start == at && piece.end > at && piece.end <= text.len());
                at = piece.end;
            }
            assert_eq!(at, text.len());
        }
        let ends = Tokens::new(text, Reading::STANDARD).map(|token| token.start + token.bytes.len());
        assert!(ends.is_sorted() && Tokens::new(text, Reading::STANDARD).all(|t| !t.bytes.is_empty()));
    });
}

#[test]
fn scan_answers() {
    for_each_text(|text| {
        let scan = scan::scan(text);
        assert_eq!(scan.traces, scan::traces(text));
        assert_eq!(scan.tag(b"SET").is_none(), scan.only_local_sets);
        glances(text);
    });
}

/// The other questions that a text is asked: what one of them sees, another must not miss.
fn glances(text: &[u8]) {
    let sets = touched(text, None);
    let for_now = touched_for_now(text, None);
    assert!(sets.unknown || for_now.unknown || sets.names.iter().all(|name| for_now.names.contains(name)));
    for name in for_now.names.iter().filter(|name| reserved::mentions(text, name.as_bytes())) {
        assert!(reserved::sets_any(text, [&**name].into_iter()), "{name}");
    }
    let mut keys = Vec::new();
    let read = reads::reads(text, |_| false, &mut keys);
    assert!(read.is_err() || lead::deallocates(text).is_none());
    let given = assigned(text, ["bursar.x", "tenant"].into_iter());
    assert!(given.is_empty() || reserved::mentions(text, b"set") || reserved::mentions(text, b"discard"));
    if matches!(Verb::of(text), Verb::Commit | Verb::Rollback) {
        assert!(lead::exits(text) && !lead::is_dated(text));
    }
}

#[test]
fn comments_are_cut_within_bounds() {
    for_each_text(|text| {
        let Some(found) = comment::find(text) else { return };
        assert!(found.cut.start < found.cut.end && found.cut.end <= text.len());
        let cut = &text[found.cut.clone()];
        let body = cut.trim_ascii();
        assert!(body.starts_with(b"/*") && body.ends_with(b"*/") && body.len() <= comment::LIMIT);
        assert_eq!(body.windows(2).filter(|w| w == b"/*" || w == b"*/").count(), 2);
        for pair in &found.pairs {
            assert!(comment::is_known(pair.key) && !pair.value.contains(char::is_control));
        }
    });
}

#[test]
fn local_statements_are_whole() {
    for_each_text(|text| {
        if let Some(statements) = local::parse(text) {
            assert!(!statements.is_empty());
            assert!(text.to_ascii_lowercase().windows(6).any(|w| w == b"bursar"));
        }
    });
}
