//! The traces themselves, observed on PostgreSQL 15. `C` shows the command tag, `E` the SQLSTATE.

use super::Step::{Cancelled, Elsewhere, Send};
use super::{Step, Trace};
use crate::support::msg::*;

/// One write, one expected list of replies.
fn once<const N: usize>(name: &'static str, messages: [Vec<u8>; N], expected: &'static str) -> Trace {
    steps(name, [Send(messages.concat(), expected)])
}

fn steps<const N: usize>(name: &'static str, steps: [Step; N]) -> Trace {
    Trace { name, steps: steps.into(), newer: None }
}

/// Parse, Bind and Execute of one text, unnamed.
fn pbe(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", ""), execute("", 0)].concat()
}

/// Proves that the session is where the trace says it is.
fn probe() -> Step {
    Send(query("select 7"), "T D C(SELECT 1) Z(I)")
}

/// Fails at Parse.
const BAD: &str = "select no_such_column";
/// Fails at Bind, where constants are folded.
const FOLDED: &str = "select 1/0";
/// Fails at Execute.
const LATE: &str = "select 1/n from generate_series(0, 0) n";

pub(super) fn simple() -> Vec<Trace> {
    vec![
        once("empty", [query("")], "I Z(I)"),
        once("only a comment", [query("-- nothing")], "I Z(I)"),
        once("rows", [query("select 1 union select 2")], "T D D C(SELECT 2) Z(I)"),
        once(
            "an error drops the rest of the text",
            [query("select 1; select 1/0; select 3")],
            "T D C(SELECT 1) E(22012) Z(I)",
        ),
        once(
            "queries one after the other in one write",
            [query("begin"), query("select 1"), query("commit")],
            "C(BEGIN) Z(T) T D C(SELECT 1) Z(T) C(COMMIT) Z(I)",
        ),
        once(
            "a failed transaction",
            [query("begin"), query("select 1/0"), query("select 1"), query("commit")],
            "C(BEGIN) Z(T) E(22012) Z(E) E(25P02) Z(E) C(ROLLBACK) Z(I)",
        ),
        once(
            "commit and chain",
            [query("begin"), query("commit and chain"), query("rollback and chain"), query("rollback")],
            "C(BEGIN) Z(T) C(COMMIT) Z(T) C(ROLLBACK) Z(T) C(ROLLBACK) Z(I)",
        ),
        once(
            "savepoints",
            [query("begin; savepoint s"), query("select 1/0"), query("rollback to s"), query("commit")],
            "C(BEGIN) C(SAVEPOINT) Z(T) E(22012) Z(E) C(ROLLBACK) Z(T) C(COMMIT) Z(I)",
        ),
        once(
            "transactions inside one text",
            [query("begin; insert into t values (1); commit; select 1; begin"), query("rollback")],
            "C(BEGIN) C(INSERT 0 1) C(COMMIT) T D C(SELECT 1) C(BEGIN) Z(T) C(ROLLBACK) Z(I)",
        ),
        once("a warning", [query("commit")], "N(25P01) C(COMMIT) Z(I)"),
        once(
            "a notice among rows",
            [query("select 1; do $$ begin raise notice 'hear'; end $$; select 2")],
            "T D C(SELECT 1) N(00000) C(DO) T D C(SELECT 1) Z(I)",
        ),
        once("FunctionCall", [function_call(177, &["20", "22"])], "V Z(I)"),
        once("FunctionCall that fails", [function_call(154, &["1", "0"]), query("")], "E(22012) Z(I) I Z(I)"),
        once("FunctionCall of nothing", [function_call(1, &[])], "E(42883) Z(I)"),
        once(
            "a deferred constraint at commit",
            [query("begin; insert into child values (5)"), query("commit")],
            "C(BEGIN) C(INSERT 0 1) Z(T) E(23503) Z(I)",
        ),
    ]
}

pub(super) fn extended() -> Vec<Trace> {
    vec![
        once("Sync alone", [sync(), sync(), sync()], "Z(I) Z(I) Z(I)"),
        steps("Flush alone", [Send(flush(), ""), probe()]),
        once("Parse Bind Execute Sync", [pbe("select 1"), sync()], "1 2 D C(SELECT 1) Z(I)"),
        steps(
            "Flush shows the replies, Sync ends the transaction",
            [
                Send([pbe("select 1"), flush()].concat(), "1 2 D C(SELECT 1)"),
                Send([pbe("select 2"), flush()].concat(), "1 2 D C(SELECT 1)"),
                Send(sync(), "Z(I)"),
            ],
        ),
        once(
            "Query joins and commits the implicit transaction",
            [pbe("select 1"), query("select 2")],
            "1 2 D C(SELECT 1) T D C(SELECT 1) Z(I)",
        )
        // A block of the pipeline's own, which the Query does not end any more.
        .from(18, "1 2 D C(SELECT 1) T D C(SELECT 1) Z(T)"),
        once(
            "FunctionCall joins, too",
            [pbe("select 1"), function_call(177, &["1", "2"])],
            "1 2 D C(SELECT 1) V Z(I)",
        )
        .from(18, "1 2 D C(SELECT 1) V Z(T)"),
        once(
            "Describe of statement and portal",
            [
                parse("", "select $1::int, $2::text"),
                describe_statement(""),
                bind_with("", "", &[Some("1"), None]),
                describe_portal(""),
                execute("", 0),
                sync(),
            ],
            "1 t T 2 T D C(SELECT 1) Z(I)",
        ),
        once(
            "a statement without rows",
            [
                parse("", "insert into t values (2)"),
                describe_statement(""),
                bind("", ""),
                describe_portal(""),
                execute("", 0),
                sync(),
            ],
            "1 t n 2 n C(INSERT 0 1) Z(I)",
        ),
        once(
            "an empty statement",
            [parse("", ""), describe_statement(""), bind("", ""), execute("", 0), sync()],
            "1 t n 2 I Z(I)",
        ),
        once(
            "a transaction in pieces",
            [pbe("begin"), sync(), pbe("select 1"), sync(), pbe("commit"), sync()],
            "1 2 C(BEGIN) Z(T) 1 2 D C(SELECT 1) Z(T) 1 2 C(COMMIT) Z(I)",
        ),
        once(
            "a deferred constraint fails at Sync, after CommandComplete",
            [pbe("insert into child values (5)"), sync()],
            "1 2 C(INSERT 0 1) E(23503) Z(I)",
        ),
        once(
            "the same in a pipeline: the segment behind it runs",
            [pbe("insert into child values (5)"), sync(), pbe("select 1"), sync()],
            "1 2 C(INSERT 0 1) E(23503) Z(I) 1 2 D C(SELECT 1) Z(I)",
        ),
        once(
            "BEGIN in a pipeline, then Query commits",
            [pbe("begin"), pbe("select 1"), query("commit")],
            "1 2 C(BEGIN) 1 2 D C(SELECT 1) C(COMMIT) Z(I)",
        ),
    ]
}

pub(super) fn portals_and_statements() -> Vec<Trace> {
    const FIVE: &str = "select generate_series(1, 5)";
    vec![
        once(
            "a portal dies with its implicit transaction",
            [parse("", FIVE), bind("p", ""), execute("p", 2), sync(), execute("p", 2), sync()],
            "1 2 D D s Z(I) E(34000) Z(I)",
        ),
        once(
            "inside BEGIN it lives on",
            [
                query("begin"),
                parse("", FIVE),
                bind("p", ""),
                execute("p", 2),
                sync(),
                execute("p", 2),
                execute("p", 2),
                close_portal("p"),
                execute("p", 2),
                sync(),
                query("rollback"),
            ],
            "C(BEGIN) Z(T) 1 2 D D s Z(T) D D s D C(SELECT 1) 3 E(34000) Z(E) C(ROLLBACK) Z(I)",
        ),
        once(
            "Close of nothing",
            [close_statement("x"), close_portal("x"), close_statement(""), sync()],
            "3 3 3 Z(I)",
        ),
        once(
            "a named statement lives across Sync",
            [
                parse("n", "select 1"),
                sync(),
                bind("", "n"),
                execute("", 0),
                sync(),
                close_statement("n"),
                sync(),
                bind("", "n"),
                sync(),
            ],
            "1 Z(I) 2 D C(SELECT 1) Z(I) 3 Z(I) E(26000) Z(I)",
        ),
        once(
            "the same name twice",
            [parse("n", "select 1"), parse("n", "select 2"), sync(), bind("", "n"), execute("", 0), sync()],
            "1 E(42P05) Z(I) 2 D C(SELECT 1) Z(I)",
        ),
        once(
            "Parse, Close, Parse of the same name",
            [parse("n", "select 1"), close_statement("n"), parse("n", "select 2"), sync()],
            "1 3 1 Z(I)",
        ),
        once(
            "the unnamed statement lives across Sync and other errors",
            [
                parse("", "select 1"),
                sync(),
                execute("no_such_portal", 0),
                sync(),
                bind("", ""),
                execute("", 0),
                sync(),
            ],
            "1 Z(I) E(34000) Z(I) 2 D C(SELECT 1) Z(I)",
        ),
        once(
            "the unnamed statement dies of a Query",
            [parse("", "select 1"), sync(), query("select 2"), bind("", ""), sync()],
            "1 Z(I) T D C(SELECT 1) Z(I) E(26000) Z(I)",
        ),
        once(
            "and of a Parse that fails",
            [parse("", "select 1"), sync(), parse("", BAD), sync(), bind("", ""), sync()],
            "1 Z(I) E(42703) Z(I) E(26000) Z(I)",
        ),
        once(
            "statements outlive the rollback of their transaction",
            [
                query("begin"),
                parse("n", "select 1"),
                sync(),
                query("rollback"),
                bind("", "n"),
                execute("", 0),
                sync(),
            ],
            "C(BEGIN) Z(T) 1 Z(T) C(ROLLBACK) Z(I) 2 D C(SELECT 1) Z(I)",
        ),
        once(
            "order of Describe, Close and the rest",
            [
                parse("", "select 1"),
                describe_statement(""),
                bind("", ""),
                describe_portal(""),
                execute("", 0),
                close_portal(""),
                close_statement(""),
                sync(),
            ],
            "1 t T 2 T D C(SELECT 1) 3 3 Z(I)",
        ),
    ]
}

pub(super) fn errors_in_pipelines() -> Vec<Trace> {
    vec![
        once("skip to Sync", [pbe(BAD), sync()], "E(42703) Z(I)"),
        once("Query is skipped", [parse("", BAD), query("select 1"), sync()], "E(42703) Z(I)"),
        once(
            "so is FunctionCall",
            [parse("", BAD), function_call(177, &["1", "2"]), sync()],
            "E(42703) Z(I)",
        ),
        steps(
            "no ReadyForQuery until Sync",
            [
                Send([parse("", BAD), query("select 1")].concat(), "E(42703)"),
                Send([query("select 2"), flush(), pbe("select 3")].concat(), ""),
                Send(sync(), "Z(I)"),
                probe(),
            ],
        ),
        once(
            "what was done before the error is undone",
            [pbe("insert into t values (3)"), pbe(LATE), pbe("select 1"), sync(), query("")],
            "1 2 C(INSERT 0 1) 1 2 E(22012) Z(I) I Z(I)",
        ),
        once(
            "each Sync starts afresh",
            [pbe(FOLDED), sync(), pbe("select 1"), sync(), pbe(BAD), sync()],
            "1 E(22012) Z(I) 1 2 D C(SELECT 1) Z(I) E(42703) Z(I)",
        ),
        once(
            "a statement parsed after the error does not exist",
            [
                parse("a", "select 1"),
                pbe(BAD),
                parse("b", "select 2"),
                sync(),
                bind("", "a"),
                sync(),
                bind("", "b"),
                sync(),
            ],
            "1 E(42703) Z(I) 2 Z(I) E(26000) Z(I)",
        ),
        once(
            "a Close before the error counts",
            [parse("a", "select 1"), sync(), close_statement("a"), pbe(BAD), sync(), bind("", "a"), sync()],
            "1 Z(I) 3 E(42703) Z(I) E(26000) Z(I)",
        ),
        once(
            "an error of Query inside a pipeline does not skip",
            [pbe("select 1"), query("select 1/0"), query("select 2")],
            "1 2 D C(SELECT 1) E(22012) Z(I) T D C(SELECT 1) Z(I)",
        ),
        once(
            "errors in a failed transaction",
            [query("begin"), pbe(LATE), sync(), pbe("select 1"), sync(), pbe("rollback"), sync()],
            "C(BEGIN) Z(T) 1 2 E(22012) Z(E) E(25P02) Z(E) 1 2 C(ROLLBACK) Z(I)",
        ),
        once("Bind of nothing", [bind("", "no_such"), execute("", 0), sync()], "E(26000) Z(I)"),
    ]
}

pub(super) fn copy() -> Vec<Trace> {
    const IN: &str = "copy t from stdin";
    vec![
        once("in", [query(IN), copy_data("1\ta\n"), copy_done()], "G C(COPY 1) Z(I)"),
        steps(
            "in, waiting for G",
            [
                Send(query(IN), "G"),
                Send([copy_data("1\ta\n2"), copy_data("\tb\n"), copy_done()].concat(), "C(COPY 2) Z(I)"),
                probe(),
            ],
        ),
        steps(
            "given up",
            [
                Send([query(IN), copy_data("1\ta\n"), copy_fail("enough")].concat(), "G E(57014) Z(I)"),
                probe(),
            ],
        ),
        steps(
            "bad data; what follows is ignored",
            [
                Send([query(IN), copy_data("x\ta\n"), copy_done()].concat(), "G E(22P02) Z(I)"),
                Send([copy_data("1\ta\n"), copy_done(), copy_fail("late")].concat(), ""),
                probe(),
            ],
        ),
        once(
            "Sync and Flush inside are swallowed",
            [query(IN), copy_data("1\ta\n"), sync(), flush(), copy_done()],
            "G C(COPY 1) Z(I)",
        ),
        once(
            "extended, as libpq does it",
            [pbe(IN), sync(), copy_data("1\ta\n"), copy_done(), sync()],
            "1 2 G C(COPY 1) Z(I)",
        ),
        once(
            "the same with bad data",
            [pbe(IN), sync(), copy_data("x\ta\n"), copy_done(), sync(), query("")],
            "1 2 G E(22P02) Z(I) I Z(I)",
        ),
        once(
            "bad data before Sync, then CopyDone and Sync: two ReadyForQuery",
            [pbe(IN), copy_data("x\ta\n"), sync(), copy_done(), sync(), query("")],
            "1 2 G E(22P02) Z(I) Z(I) I Z(I)",
        ),
        once(
            "two in one text, then a query",
            [
                query("copy t from stdin; copy t from stdin; select 9"),
                copy_data("1\ta\n"),
                copy_done(),
                copy_data("2\tb\n"),
                copy_done(),
            ],
            "G C(COPY 1) G C(COPY 1) T D C(SELECT 1) Z(I)",
        ),
        once(
            "copy messages while idle are ignored",
            [copy_data("1\ta\n"), copy_done(), copy_fail("no"), query("")],
            "I Z(I)",
        ),
        once(
            "in a transaction that fails",
            [
                query("begin"),
                query(IN),
                copy_data("x\ta\n"),
                copy_done(),
                query("select 1"),
                query("rollback"),
            ],
            "C(BEGIN) Z(T) G E(22P02) Z(E) E(25P02) Z(E) C(ROLLBACK) Z(I)",
        ),
        once("that fails at once", [query("copy nothing from stdin"), query("")], "E(42P01) Z(I) I Z(I)"),
        once("out", [query("copy (values (1), (2)) to stdout"), query("")], "H d d c C(COPY 2) Z(I) I Z(I)"),
        once("out, extended", [pbe("copy (values (1)) to stdout"), sync()], "1 2 H d c C(COPY 1) Z(I)"),
        once(
            "out, an error in the middle",
            [query("copy (select 1/(2-n) from generate_series(1, 3) n) to stdout"), query("")],
            "H d E(22012) Z(I) I Z(I)",
        ),
    ]
}

pub(super) fn copy_lost() -> Vec<Trace> {
    const IN: &str = "copy t from stdin";
    const LOST: &str = "G E(08P01) E(FATAL 08P01) EOF";
    vec![
        once("Query inside", [query(IN), copy_data("1\ta\n"), query("select 1")], LOST),
        once("Parse inside", [query(IN), parse("", "select 1")], LOST),
        once("Terminate inside", [query(IN), copy_data("1\ta\n"), terminate()], LOST),
        // What Bursar answers itself where there is no COPY.
        once(
            "DEALLOCATE inside",
            [parse("a", "select 1"), sync(), query(IN), query("deallocate a")],
            "1 Z(I) G E(08P01) E(FATAL 08P01) EOF",
        ),
        once("a tag command inside", [query(IN), query("set bursar.tenant = 'a'")], LOST),
        once("Parse of a tag command inside", [query(IN), parse("", "set bursar.tenant = 'a'")], LOST),
    ]
}

pub(super) fn unasked() -> Vec<Trace> {
    const TERMINATE: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                             where datname = $DB and pid <> pg_backend_pid()";
    vec![
        once(
            "a reported setting",
            [query("set timezone = 'Asia/Tokyo'"), query("reset timezone")],
            "C(SET) S(TimeZone=Asia/Tokyo) Z(I) C(RESET) S(TimeZone=UTC) Z(I)",
        ),
        once(
            "a reported setting, undone with its transaction",
            [query("begin; set local timezone = 'Asia/Tokyo'"), query("rollback")],
            "C(BEGIN) C(SET) S(TimeZone=Asia/Tokyo) Z(T) C(ROLLBACK) S(TimeZone=UTC) Z(I)",
        ),
        once(
            "a notification to oneself",
            [query("listen bell"), query("notify bell, 'ding'")],
            "C(LISTEN) Z(I) C(NOTIFY) A(bell ding) Z(I)",
        ),
        steps(
            "cancelled in a pipeline: the next segment runs",
            [Cancelled(
                [pbe("select pg_sleep(60)"), sync(), pbe("select 1"), sync()].concat(),
                "1 2 E(57014) Z(I) 1 2 D C(SELECT 1) Z(I)",
            )],
        ),
        steps(
            "cancelled in a transaction",
            [
                Send(query("begin"), "C(BEGIN) Z(T)"),
                Cancelled(query("select pg_sleep(60)"), "T E(57014) Z(E)"),
                Send(query("rollback"), "C(ROLLBACK) Z(I)"),
            ],
        ),
        steps(
            "terminated in a transaction",
            [
                Send(query("begin; select 1"), "C(BEGIN) T D C(SELECT 1) Z(T)"),
                Elsewhere(TERMINATE, "E(FATAL 57P01) EOF"),
            ],
        ),
        steps(
            "idle in transaction too long",
            [Send(
                query("set idle_in_transaction_session_timeout = 20; begin"),
                "C(SET) C(BEGIN) Z(T) E(FATAL 25P03) EOF",
            )],
        ),
    ]
}

pub(super) fn illegal() -> Vec<Trace> {
    let with_length = |kind: u8, length: i32| [&[kind][..], &length.to_be_bytes(), b"xxxx"].concat();
    vec![
        once("Sync with a body", [message(b'S', b"x"), query("")], "E(08P01) Z(I) I Z(I)"),
        once("Flush with a body", [message(b'H', b"x"), sync()], "E(08P01) Z(I)"),
        once(
            "Query with bytes behind its text",
            [message(b'Q', b"select 1\0x"), query("")],
            "E(08P01) Z(I) I Z(I)",
        ),
        once("Query without an end", [message(b'Q', b"select 1"), query("")], "E(08P01) Z(I) I Z(I)"),
        once("Close of neither", [message(b'C', b"?x\0"), sync()], "E(08P01) Z(I)"),
        once("no such type", [message(b'!', b"")], "E(FATAL 08P01) EOF"),
        once("a password after login", [message(b'p', b"secret\0")], "E(FATAL 08P01) EOF"),
        once("length 3", [with_length(b'Q', 3)], "EOF"),
        once("negative length", [with_length(b'Q', -1)], "EOF"),
        once("a Sync above the limit", [with_length(b'S', 10_005)], "EOF"),
        once("a Query above the limit", [with_length(b'Q', i32::MAX)], "EOF"),
        once(
            "a good query before a bad length",
            [query("select 1"), with_length(b'Q', 2)],
            "T D C(SELECT 1) Z(I) EOF",
        ),
    ]
}
