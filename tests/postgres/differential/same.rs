//! When two replies count as the same. Byte for byte, but for what is written here with its reason.

use super::run::Outcome;
use crate::support::Msg;

/// In a failed transaction the Parse that is sent ahead of a Bind fails in its place: the same error from
/// another place in PostgreSQL's source.
const ELSEWHERE: [&str; 1] = ["25P02"];

pub(super) fn same(direct: &Outcome, proxied: &Outcome) -> bool {
    let (ours, theirs) = (in_order(&proxied.messages), in_order(&direct.messages));
    direct.closed == proxied.closed
        && ours.len() == theirs.len()
        && theirs.iter().zip(ours).all(|(direct, proxied)| same_message(direct, proxied))
}

/// Several settings that change at once are told of in the order of the server's own table of what has
/// changed since it began: it depends on what each backend was asked before.
fn in_order(messages: &[Msg]) -> Vec<&Msg> {
    let mut all: Vec<&Msg> = messages.iter().collect();
    for told in all.chunk_by_mut(|one, next| one.kind == b'S' && next.kind == b'S') {
        told.sort_by(|one, other| one.body.cmp(&other.body));
    }
    all
}

/// Such an error has all that a driver looks at, but not the place in PostgreSQL's source.
fn same_message(direct: &Msg, proxied: &Msg) -> bool {
    let elsewhere =
        |m: &Msg| m.kind == b'E' && m.field(b'C').is_some_and(|c| ELSEWHERE.contains(&c.as_str()));
    direct == proxied
        || broke_into_copy(direct) && broke_into_copy(proxied)
        || elsewhere(direct)
            && elsewhere(proxied)
            && without_place(&direct.body) == without_place(&proxied.body)
}

/// The server names the message that broke into a COPY: a Parse of what the backend has already is not
/// sent, and so the Bind behind it is the first.
fn broke_into_copy(m: &Msg) -> bool {
    let says = |code, start: &str| m.field(code).is_some_and(|text| text.starts_with(start));
    m.kind == b'E' && says(b'C', "08P01") && says(b'M', "unexpected message type 0x")
}

fn without_place(body: &[u8]) -> Vec<&[u8]> {
    let place = |field: &&[u8]| !field.first().is_some_and(|code| b"FLR".contains(code));
    body.split(|&byte| byte == 0).filter(place).collect()
}

/// What both say from their first difference on.
fn parted<'a>(direct: &'a Outcome, proxied: &'a Outcome) -> (&'a [Msg], &'a [Msg]) {
    let pairs = direct.messages.iter().zip(&proxied.messages);
    let at = pairs.take_while(|(direct, proxied)| same_message(direct, proxied)).count();
    (&direct.messages[at..], &proxied.messages[at..])
}

/// Whether the first difference is that in a failed transaction a statement was used that the backend had
/// to parse first, which fails there. Directly it is prepared: a Describe of one without a result works,
/// and a Bind of too few parameters says so.
pub(super) fn differs_by_failed_parse(direct: &Outcome, proxied: &Outcome) -> bool {
    let (direct, proxied) = parted(direct, proxied);
    let is = |m: &Msg, code, value| m.field(code).as_deref() == Some(value);
    let failed = |m: &Msg| m.kind == b'E' && is(m, b'C', "25P02") && is(m, b'R', "exec_parse_message");
    let differs = |m: &Msg| m.kind == b't' || m.kind == b'E' && is(m, b'C', "08P01");
    matches!((direct, proxied), ([first, ..], [error, ..]) if differs(first) && failed(error))
}

/// Whether the first difference is one that sharing makes after a table's row type has changed: which
/// copy of a statement a session meets, an old one ("cached plan must not change result type") or a new
/// one, depends on when its backend parsed it; and an error in a text that was right when it was first
/// parsed comes at the next message rather than at Parse; or ahead of a Describe's first answer rather than
/// behind it, where the statement must be parsed anew.
pub(super) fn differs_by_age(direct: &Outcome, proxied: &Outcome) -> bool {
    let (direct, proxied) = parted(direct, proxied);
    let old_plan = |m: &[Msg]| m.first().is_some_and(is_old_plan);
    let late = is_one_later(direct, proxied, b'1') || is_one_later(proxied, direct, b't');
    old_plan(direct) || old_plan(proxied) || late
}

/// Whether a step may change how its client's texts are read from then on.
pub(super) fn sets_reading(step: &str) -> bool {
    let step = step.to_ascii_lowercase();
    let names = ["client_encoding", "names", "standard_conforming_strings", "backslash_quote", "all"];
    names.iter().any(|name| step.contains(name))
}

/// Whether the first difference is that the proxy refuses a text whose client has changed how it is read, on a
/// backend that lacks it (docs/prepared-statements.md).
pub(super) fn differs_by_reading(direct: &Outcome, proxied: &Outcome) -> bool {
    parted(direct, proxied).1.first().is_some_and(is_old_plan)
}

/// The same error, behind one message more of this type.
fn is_one_later(error: &[Msg], later: &[Msg], kind: u8) -> bool {
    let is = |m: &Msg, of: u8| m.kind == of;
    matches!((error, later), ([error, ..], [before, late, ..])
        if is(error, b'E') && is(before, kind) && is(late, b'E') && error.field(b'C') == late.field(b'C'))
}

fn is_old_plan(message: &Msg) -> bool {
    let is = |code, value| message.field(code).as_deref() == Some(value);
    message.kind == b'E' && is(b'C', "0A000") && is(b'R', "RevalidateCachedQuery")
}
