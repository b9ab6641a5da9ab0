//! What a statement text may leave behind on a backend (wire.md C2).
//!
//! A glance, not a parser: statement words count at the start of a statement (the text's start and
//! after each `;`), the names of telling functions and schemas count everywhere outside strings and
//! comments. Wrong answers fall on the careful side: a pin too many, never a trace too few, as far as
//! the text shows it. What no text shows: SQL inside functions, in strings given to `EXECUTE`, and
//! names spelled with `U&"…"` escapes; `reset = "always"` is for applications that rely on those.
//! `nextval` and `setseed` leave only numbers behind and are not looked for.

pub use super::traces::{
    Traces, changes_objects, clears_everything, deallocate_all, may_end_traces, says_nothing, tag_traces,
};

use super::lex::{self, Kind, Reading, Token, Tokens};
use super::plain::is_plain;
use smallvec::SmallVec;

/// What one text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scan {
    /// What it may leave behind, if it succeeds.
    pub traces: Traces,
    /// It has a `SET LOCAL` or `SET TRANSACTION` and no other `SET`: the tag `SET` then leaves
    /// nothing behind.
    pub only_local_sets: bool,
    /// It changes a setting for the rest of its transaction.
    pub sets_locally: bool,
}

impl Scan {
    /// What a CommandComplete tag adds for a statement of this text. The default `Scan` stands for
    /// a text nobody scanned.
    #[must_use]
    pub fn tag(self, tag: &[u8]) -> Traces {
        if self.only_local_sets && tag == b"SET" { Traces::NONE } else { tag_traces(tag) }
    }

    /// Whether it changes a setting, if only for its transaction.
    #[must_use]
    pub fn sets(self) -> bool {
        self.sets_locally || self.traces.any(Traces::SETTING)
    }

    /// The careful union of two readings of the same text.
    fn or(self, other: Scan) -> Scan {
        Scan {
            traces: self.traces.with(other.traces),
            only_local_sets: self.only_local_sets && other.only_local_sets,
            sets_locally: self.sets_locally || other.sets_locally,
        }
    }
}

/// What `text` may leave behind; [`scan`] says a little more.
#[must_use]
pub fn traces(text: &[u8]) -> Traces {
    scan(text).traces
}

/// Scans one statement text (without its NUL). Linear time, no allocation.
#[must_use]
pub fn scan(text: &[u8]) -> Scan {
    if is_plain(text) {
        return Scan::default();
    }
    let mut scan = lex::readings(text)
        .iter()
        .map(|&reading| Reader::default().read(text, reading))
        .reduce(Scan::or)
        .unwrap_or_default();
    if scan.traces.any(Traces::SUSPECT) {
        scan.traces = scan.traces.with(hidden(text));
    }
    scan
}

/// What the raw text of a DO or CALL, dollar-quoted body included, may do besides: it names something
/// that sets, listens, locks, loads or makes a temporary object; or something that prepares.
fn hidden(text: &[u8]) -> Traces {
    const NAMES: [&[u8]; 8] =
        [b"set_config", b"set ", b"set\t", b"set\n", b"listen", b"temp", b"advisory", b"load"];
    let mut found = Traces::NONE;
    for at in 0..text.len() {
        let is =
            |name: &[u8]| text.get(at..at + name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name));
        if NAMES.iter().any(|name| is(name)) {
            found = found.with(Traces::HIDDEN);
        }
        if is(b"prepare") {
            found = found.with(Traces::PREPARE);
        }
    }
    found
}

/// The first word of a statement, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lead {
    Set,
    Reset,
    Listen,
    Declare,
    Prepare,
    Load,
    Discard,
    /// DO or CALL.
    Code,
    Other,
}

impl Lead {
    #[inline]
    pub(super) fn of(word: &[u8]) -> Lead {
        let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
        match word.first().map_or(0, |b| b | 0x20) {
            b's' if is(b"set") => Lead::Set,
            b'r' if is(b"reset") => Lead::Reset,
            b'l' if is(b"listen") => Lead::Listen,
            b'l' if is(b"load") => Lead::Load,
            b'd' if is(b"declare") => Lead::Declare,
            b'd' if is(b"discard") => Lead::Discard,
            b'd' if is(b"do") => Lead::Code,
            b'c' if is(b"call") => Lead::Code,
            b'p' if is(b"prepare") => Lead::Prepare,
            _ => Lead::Other,
        }
    }
}

/// What the last token was, as far as the next one needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Last {
    /// Nothing yet in this statement.
    #[default]
    Start,
    /// `SET`, first in its statement.
    Set,
    /// `DISCARD`, first in its statement.
    Discard,
    /// `PREPARE`, first in its statement.
    Prepare,
    /// `PREPARE TRANSACTION`, or a statement named so.
    PrepareTransaction,
    /// A parenthesis.
    Paren,
    /// `CREATE`, `OR REPLACE`, `GLOBAL`, `LOCAL`: TEMP may follow.
    Create,
    /// INSERT or MERGE where a statement may start: INTO names a table that exists.
    Insert,
    /// INTO of a SELECT: TEMP may follow.
    Into,
    With,
    SetConfig,
    Comma,
    CommaTrue,
    Other,
}

#[derive(Default)]
struct Reader {
    traces: Traces,
    local_sets: bool,
    sets_locally: bool,
    session_sets: bool,
    declares: bool,
    last: Last,
    depth: u32,
    /// Depths of the open `set_config(` calls.
    calls: SmallVec<[u32; 4]>,
}

/// Calls of `set_config` inside each other that are told apart; deeper ones count as session-level.
const CALLS: usize = 4;

impl Reader {
    fn read(mut self, text: &[u8], reading: Reading) -> Scan {
        for token in Tokens::new(text, reading) {
            let last = self.last;
            self.last = match token.kind {
                Kind::Mark(mark) => self.mark(mark, last),
                Kind::Word if last == Last::Start => self.first(token.bytes),
                Kind::Word => self.word(token, last),
                Kind::Name => self.name(token.bytes.get(1..token.bytes.len() - 1).unwrap_or(b"")),
                _ => Last::Other,
            };
            match last {
                Last::Set => {
                    let local = token.is("local") || token.is("transaction") || token.is("constraints");
                    self.local_sets |= local;
                    self.sets_locally |= token.is("local");
                    self.session_sets |= !local;
                }
                Last::Discard if token.is("all") => self.leave(Traces::SETTING),
                Last::Prepare if token.is("transaction") => self.last = Last::PrepareTransaction,
                Last::Prepare => self.leave(Traces::PREPARE),
                Last::PrepareTransaction if token.kind != Kind::Text => self.leave(Traces::PREPARE),
                _ => {}
            }
        }
        if self.session_sets || !self.calls.is_empty() {
            self.leave(Traces::SETTING);
        }
        Scan {
            traces: self.traces,
            only_local_sets: self.local_sets && !self.session_sets,
            sets_locally: self.sets_locally,
        }
    }

    fn leave(&mut self, traces: Traces) {
        self.traces = self.traces.with(traces);
    }

    /// A statement's first word.
    fn first(&mut self, word: &[u8]) -> Last {
        match Lead::of(word) {
            Lead::Set => return Last::Set,
            Lead::Prepare => return Last::Prepare,
            Lead::Discard => return Last::Discard,
            Lead::Reset => self.leave(Traces::SETTING),
            Lead::Listen => self.leave(Traces::LISTEN),
            Lead::Load => self.leave(Traces::LOAD),
            Lead::Code => self.leave(Traces::SUSPECT),
            Lead::Declare => self.declares = true,
            Lead::Other => return opening(word).unwrap_or(Last::Other),
        }
        Last::Other
    }

    /// Any later word.
    fn word(&mut self, token: Token<'_>, last: Last) -> Last {
        let word = token.bytes;
        match word.first().map_or(0, |b| b | 0x20) {
            b't' if token.is("temp") || token.is("temporary") => {
                if matches!(last, Last::Create | Last::Into) {
                    self.leave(Traces::TEMP);
                }
            }
            b't' if last == Last::Comma && token.is("true") => return Last::CommaTrue,
            b'c' if token.is("create") => return Last::Create,
            b'r' if token.is("replace") => return Last::Create,
            b'g' if token.is("global") && matches!(last, Last::Create | Last::Into) => return last,
            b'l' if token.is("local") && matches!(last, Last::Create | Last::Into) => return last,
            b'i' if token.is("into") => return if last == Last::Insert { Last::Other } else { Last::Into },
            b'i' | b'm' if last == Last::Paren => return opening(word).unwrap_or(Last::Other),
            b'w' if token.is("with") => return Last::With,
            b'h' if last == Last::With && self.declares && token.is("hold") => self.leave(Traces::HOLD),
            b's' | b'p' | b'd' => {
                // PostgreSQL folds unquoted names; no telling name is longer than this.
                let mut folded = [0u8; 32];
                if let Some(folded) = folded.get_mut(..word.len()) {
                    folded.copy_from_slice(word);
                    folded.make_ascii_lowercase();
                    return self.name(folded);
                }
            }
            _ => {}
        }
        Last::Other
    }

    /// A name, folded or quoted.
    fn name(&mut self, name: &[u8]) -> Last {
        match name {
            b"set_config" => return Last::SetConfig,
            b"pg_advisory_lock"
            | b"pg_advisory_lock_shared"
            | b"pg_try_advisory_lock"
            | b"pg_try_advisory_lock_shared" => self.leave(Traces::LOCK),
            _ if name.starts_with(b"pg_temp") => self.leave(Traces::TEMP),
            _ if name.starts_with(b"dblink_connect") => self.leave(Traces::SUSPECT),
            _ => {}
        }
        Last::Other
    }

    fn mark(&mut self, mark: u8, last: Last) -> Last {
        match mark {
            b';' => Last::Start,
            b',' => Last::Comma,
            b'(' => {
                self.depth = self.depth.saturating_add(1);
                if last == Last::SetConfig {
                    if self.calls.len() < CALLS {
                        self.calls.push(self.depth);
                    } else {
                        self.leave(Traces::SETTING);
                    }
                }
                Last::Paren
            }
            b')' => {
                if self.calls.last() == Some(&self.depth) {
                    self.calls.pop();
                    // `true` alone as the last argument: undone at the transaction's end.
                    if last == Last::CommaTrue {
                        self.sets_locally = true;
                    } else {
                        self.leave(Traces::SETTING);
                    }
                }
                self.depth = self.depth.saturating_sub(1);
                Last::Paren
            }
            _ => Last::Other,
        }
    }
}

/// Words that decide what a following INTO or TEMP means, where a statement may start.
fn opening(word: &[u8]) -> Option<Last> {
    let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
    if is(b"create") {
        Some(Last::Create)
    } else if is(b"insert") || is(b"merge") {
        Some(Last::Insert)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn leaves(text: &str, expected: Traces) {
        assert_eq!(traces(text.as_bytes()), expected, "{text}");
    }

    #[test]
    fn settings() {
        for text in [
            "SET x = 1",
            "set session x to 1",
            " /* c */ SeT ROLE bob",
            "set session authorization bob",
            "set session characteristics as transaction read only",
            "set \"local\" = 1",
            "reset x",
            "RESET ALL",
            "DISCARD /**/ ALL",
            "begin; set x = 1; commit",
            "set local x = 1; set y = 2",
            "select set_config('a', 'b', false)",
            "select pg_catalog.\"set_config\"('a', 'b', false)",
            "select set_config('a', 'b', $1)",
            "select set_config('a', 'b', not true)",
            "select Set_Config('a', set_config('c', 'd', false), true)",
            "with x as (select set_config('a','b',false)) select * from x",
            "explain analyze select set_config('a', 'b', f(1, true))",
        ] {
            leaves(text, Traces::SETTING);
            assert!(!scan(text.as_bytes()).only_local_sets, "{text}");
        }
    }

    #[test]
    fn settings_of_a_transaction_leave_nothing() {
        for text in
            ["set local x = 1", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "begin; set local x=1;"]
        {
            leaves(text, Traces::NONE);
            assert!(scan(text.as_bytes()).only_local_sets, "{text}");
            assert_eq!(scan(text.as_bytes()).tag(b"SET"), Traces::NONE);
        }
        leaves("set constraints all deferred", Traces::NONE);
        leaves("select set_config('a', 'b', true), set_config('c', 'd', TRUE)", Traces::NONE);
        leaves("select set_config('a', set_config('c', 'd', true), true) as set_config", Traces::NONE);
        assert_eq!(scan(b"select 1").tag(b"SET"), Traces::SETTING);
    }

    #[test]
    fn other_traces_of_statements() {
        leaves("LISTEN a", Traces::LISTEN);
        leaves("unlisten a", Traces::NONE);
        leaves("discard temp", Traces::NONE);
        leaves("load 'x'", Traces::LOAD);
        leaves("prepare a as select 1", Traces::PREPARE);
        leaves("prepare transaction 'x'", Traces::NONE);
        leaves("prepare transaction as select 1", Traces::PREPARE);
        leaves("prepare transaction (int) as select $1", Traces::PREPARE);
        leaves("declare c cursor with hold for select 1", Traces::HOLD);
        leaves("declare c cursor without hold for select 1", Traces::NONE);
        leaves("declare c cursor for select 1", Traces::NONE);
        leaves("select 1; listen b; load 'x'", Traces::LISTEN.with(Traces::LOAD));
        leaves("select dblink_connect('x')", Traces::SUSPECT);
        leaves("select dblink_connect_u('a', 'x')", Traces::SUSPECT);
    }

    #[test]
    fn code_is_suspect_and_pins_when_it_names_a_setting() {
        leaves("do $$ begin perform 1; end $$", Traces::SUSPECT);
        leaves("call p(1)", Traces::SUSPECT);
        let pinned = Traces::SUSPECT.with(Traces::HIDDEN);
        leaves("do $$ begin perform SET_CONFIG('a','b',false); end $$", pinned);
        leaves("do $$ begin execute 'set x = 1'; end $$", pinned);
        leaves("DO 'begin create TEMP table x(); end'", pinned);
        leaves("do $$ begin execute 'PREPARE x as select 1'; end $$", Traces::SUSPECT.with(Traces::PREPARE));
    }

    #[test]
    fn temporary_objects() {
        for text in [
            "create temp table t ()",
            "CREATE LOCAL TEMPORARY TABLE t ()",
            "create global temp table t ()",
            "create or replace temp view v as select 1",
            "create temp sequence s",
            "select 1 as a into temp t",
            "select 1 into temporary table t",
            "select 1 into local temp t",
            "create table pg_temp.t ()",
            "create table \"pg_temp\".t ()",
            "insert into pg_temp_3.t values (1)",
        ] {
            leaves(text, Traces::TEMP);
        }
        for text in [
            "insert into temp values (1)",
            "with x as (select 1) insert into temp select * from x",
            "select temp, temporary from template where attempts < 3",
            "set local temp_buffers = 8",
            "select 'create temp table', /* into temp t */ 1 -- pg_temp",
            "create table temp (temp int)",
        ] {
            leaves(text, Traces::NONE);
        }
    }

    #[test]
    fn advisory_locks_of_a_session() {
        for name in [
            "pg_advisory_lock",
            "PG_Advisory_Lock_Shared",
            "pg_try_advisory_lock",
            "pg_catalog.pg_try_advisory_lock_shared",
        ] {
            leaves(&format!("select {name}(1)"), Traces::LOCK);
        }
        leaves("select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(2)", Traces::NONE);
        leaves("select pg_advisory_unlock(1)", Traces::NONE);
        leaves("select 'pg_advisory_lock'", Traces::NONE);
    }

    #[test]
    fn words_in_strings_say_nothing_and_backslashes_raise_suspicion() {
        leaves("select ';set x = 1'", Traces::NONE);
        leaves("select $$;listen a$$", Traces::NONE);
        leaves("update t set a = ';' where b = 'listen'", Traces::NONE);
        leaves(r"update t set path = 'C:\dir'; select 1", Traces::NONE);
        // Under standard_conforming_strings = off the first string ends later and LISTEN runs.
        leaves(r"select '\'; select ''; listen a; --'", Traces::LISTEN);
        // One SJIS character before the quote: the string ends there.
        assert_eq!(traces(b"select E'\x95\\'; listen a; --'"), Traces::LISTEN);
    }

    fn fragment() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "select ",
            "set ",
            "SET LOCAL ",
            "x = 1",
            ";",
            " ",
            "'",
            "''",
            "\\",
            "E'",
            "\"",
            "$$",
            "$1",
            "--",
            "\n",
            "/*",
            "*/",
            "listen ",
            "set_config(",
            ", true",
            ")",
            "(",
            "pg_advisory_lock",
            "create ",
            "temp ",
            "into ",
            "insert ",
            "pg_temp.",
            "a",
            "do ",
            "declare ",
            "with hold",
            "prepare ",
            "load ",
            "dblink_connect",
            "é",
            "€",
            "temporary",
            "advisory_lock",
            "reset ",
            "call ",
        ])
    }

    proptest! {
        /// The short cut answers as the lexer does.
        #[test]
        fn plain_texts_leave_nothing(list in prop::collection::vec(fragment(), 0..40)) {
            let text = list.concat();
            if is_plain(text.as_bytes()) {
                for &reading in lex::readings(text.as_bytes()) {
                    let slow = Reader::default().read(text.as_bytes(), reading);
                    prop_assert_eq!(slow, Scan::default());
                }
            }
        }

        /// A telling statement is seen wherever it stands among quoted pieces.
        #[test]
        fn statements_are_found_between_quoted_pieces(
            before in prop::collection::vec(prop::sample::select(vec![
                "select 'a;''b'", "select \"x;\"", "/* ; */select 1", "select $q$ ' $q$", "select E'\\''", "-- '\n",
            ]), 0..5),
            what in prop::sample::select(vec![
                ("listen x", Traces::LISTEN), ("load 'x'", Traces::LOAD), ("set a=1", Traces::SETTING),
                ("select pg_advisory_lock(1)", Traces::LOCK), ("create temp table x()", Traces::TEMP),
                ("declare c cursor with hold for select 1", Traces::HOLD),
            ]),
        ) {
            let mut text = before.join(";");
            text.push(';');
            let quiet = traces(text.as_bytes());
            prop_assert_eq!(quiet, Traces::NONE);
            text.push_str(what.0);
            prop_assert!(traces(text.as_bytes()).any(what.1), "{}", text);
        }
    }
}
