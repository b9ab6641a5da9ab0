//! Budgets of single statements, over the wire: B12, and the client's own deadline. What is said is
//! exact; when it is said is not held here.

use crate::support::wire::Msg;
use crate::support::{Config, Db, Proxy, msg, until};

const SLEEP: &str = "select pg_sleep(60)";

/// SQLSTATE, MESSAGE, HINT, and what DETAIL ends with.
fn words(error: &Msg) -> [String; 4] {
    let field = |code| error.field(code).unwrap_or_default();
    let detail = field(b'D');
    let end = detail.split_once(" (").map_or(detail.as_str(), |(_, end)| end).to_owned();
    [field(b'C'), field(b'M'), field(b'H'), end]
}

fn limited(line: &str) -> Config {
    Config::one_backend().with("budget.statement", line)
}

#[test]
fn a_statement_over_its_budget_is_cancelled_and_told_why() {
    let db = Db::new();
    let proxy = Proxy::start(&db, limited("max_time = { abort = \"100ms\", mode = \"enforce\" }"));
    let mut client = proxy.connect();
    let reply = client.query(SLEEP);
    assert_eq!(reply.trace(), "T E(57014) Z(I)");
    let expected = [
        "57014",
        "bursar: statement canceled after running too long",
        "Make the statement quicker (EXPLAIN), or do less in one.",
        "budget.statement.max_time: 100 ms).",
    ];
    assert_eq!(words(reply.error().expect("an error")), expected);
    // The next one is let alone, on the same backend.
    let pid = client.query("select pg_backend_pid()").value();
    assert_eq!(db.pids(), [pid.parse::<i32>().expect("a pid")]);

    // In a transaction it is an error like any other.
    client.batch("begin");
    assert_eq!(client.query(SLEEP).trace(), "T E(57014) Z(E)");
    assert_eq!(client.query("select 1").trace(), "E(25P02) Z(E)");
    assert_eq!(client.query("rollback").trace(), "C(ROLLBACK) Z(I)");

    // In the extended protocol what comes behind it is skipped.
    let run = |sql| [msg::parse("", sql), msg::bind("", ""), msg::execute("", 0)].concat();
    let reply = client.ask(&[run(SLEEP), run("select 1"), msg::sync()].concat());
    assert_eq!(reply.trace(), "1 2 E(57014) Z(I)");
    assert_eq!(words(reply.error().expect("an error")), expected);
    assert_eq!(client.query("select 2").value(), "2");

    let counts = "select would, enforced from bursar.budgets where dimension = 'B12'";
    assert_eq!(proxy.console().query(counts).rows(), [[Some("0".into()), Some("3".into())]]);
    client.bye();
    proxy.stop();
}

/// Each statement has its own time, as with PostgreSQL's statement_timeout.
#[test]
fn statements_sent_at_once_are_timed_one_by_one() {
    let db = Db::new();
    let proxy = Proxy::start(&db, limited("max_time = { abort = \"1500ms\", mode = \"enforce\" }"));
    let mut client = proxy.connect();
    let queries: Vec<u8> = (0..4).flat_map(|_| msg::query("select pg_sleep(0.6)")).collect();
    client.send(&queries);
    for at in 0..4 {
        assert_eq!(client.recv_reply().trace(), "T D C(SELECT 1) Z(I)", "statement {at}");
    }
    client.bye();
    proxy.stop();
}

#[test]
fn in_warn_mode_a_notice_says_that_it_runs_too_long() {
    let db = Db::new();
    let proxy = Proxy::start(&db, limited("max_time = { warn = \"50ms\", abort = \"100ms\" }"));
    let mut client = proxy.connect_for("acme", "r1");
    let reply = client.query("select pg_sleep(1)");
    let notices: Vec<String> = reply.notices().iter().filter_map(|notice| notice.field(b'M')).collect();
    assert_eq!(notices, ["bursar: statement is running too long"]);
    assert!(reply.error().is_none());
    client.bye();
    proxy.stop();
}

#[test]
fn a_clients_own_times_act_whatever_the_mode() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("mode", "default = \"observe\""));
    let mut client = proxy.connect();
    client.batch("set bursar.max_statement_ms = 100");
    let reply = client.query(SLEEP);
    let [code, message, _, limit] = words(reply.error().expect("an error"));
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("57014", "bursar: statement canceled after running too long")
    );
    assert_eq!(limit, "bursar.max_statement_ms: 100 ms).");
    client.batch("reset bursar.max_statement_ms");

    client.batch("set bursar.deadline_ms = 100");
    let reply = client.query(SLEEP);
    let [code, message, hint, limit] = words(reply.error().expect("an error"));
    assert_eq!((code.as_str(), message.as_str()), ("57014", "bursar: statement canceled at its deadline"));
    assert_eq!(hint, "Give it more time, or less to do.");
    assert_eq!(limit, "bursar.deadline_ms: 100 ms).");
    client.batch("reset bursar.deadline_ms");

    // Said inside a transaction it holds for the statements that follow, and SET LOCAL until its end.
    client.batch("begin");
    client.batch("select 1");
    client.batch("set local bursar.max_statement_ms = 100");
    assert_eq!(client.query(SLEEP).trace(), "T E(57014) Z(E)");
    client.batch("rollback");
    assert_eq!(client.query("select pg_sleep(0.5)").trace(), "T D C(SELECT 1) Z(I)");
    client.bye();
    proxy.stop();
}

/// The cancel is for one statement: whoever has the backend next is not hit, nor is the same client's
/// next statement.
/// However slow the machine is: what comes behind has no budget, and what is far beyond it never ends by itself.
/// Only what was sent ahead may be hit with the one before it, and it is told so.
#[test]
fn nobody_else_is_hit() {
    let db = Db::new();
    let config = limited("max_time = { abort = \"150ms\", mode = \"enforce\" }")
        .with("route.\"/free\".budget.statement", "max_time = { abort = \"off\" }")
        .with("pool", "max_wait = \"60s\"");
    let proxy = Proxy::start(&db, config);
    let mut clients: Vec<_> = (0..4).map(|_| proxy.connect()).collect();
    let mut cut = 0;
    let instead = [
        "57014",
        "bursar: statement canceled by the end of the one before it",
        "Send it again. A statement that is not sent ahead is never hit.",
        "budget.statement.max_time: 150 ms).",
    ];
    for round in 0..20 {
        // Some end just before their budget, some just after, and some far beyond.
        let sleeps = format!("select pg_sleep({})", ["0.147", "0.153", "60", "0.15"][round % 4]);
        for client in &mut clients {
            client.send(&msg::query(&sleeps));
            client.send(&msg::query("select pg_sleep(0.001), 7 /*route='/free'*/"));
        }
        for client in &mut clients {
            let reply = client.recv_reply();
            cut += usize::from(reply.error().is_some());
            assert!(reply.error().is_none_or(|error| error.field(b'C').as_deref() == Some("57014")));
            let ahead = client.recv_reply();
            match ahead.error() {
                Some(error) => assert_eq!(words(error), instead, "after {reply:?}"),
                None => assert_eq!(ahead.trace(), "T D C(SELECT 1) Z(I)", "after {reply:?}"),
            }
            let next = "select pg_sleep(0.002), 7 /*route='/free'*/";
            assert_eq!(client.query(next).trace(), "T D C(SELECT 1) Z(I)", "after {ahead:?}");
        }
    }
    assert!(cut >= 20, "the long ones are cancelled: {cut}");
    drop(clients);
    proxy.stop();
}

/// B3: one request, several sessions, one account of time.
#[test]
fn a_request_that_has_used_up_its_time_is_stopped() {
    let db = Db::new();
    let config = Config::of_size(3).with(
        "budget.request",
        "db_time = { warn = \"off\", abort = \"300ms\", mode = \"enforce\", force = true }",
    );
    let proxy = Proxy::start(&db, config);
    let mut one = proxy.connect_for("acme", "r1");
    let mut two = proxy.connect_for("acme", "r1");
    two.batch("begin");
    let reply = one.query(SLEEP);
    assert_eq!(reply.trace(), "T E(57014) Z(I)");
    let expected = [
        "57014",
        "bursar: request used more database time than its budget",
        "Do less in one request, or make its statements quicker. Not retryable.",
        "budget.request.db_time: 300 ms).",
    ];
    assert_eq!(words(reply.error().expect("an error")), expected);
    let reply = one.query("select 1");
    assert_eq!(reply.trace(), "E(57014) Z(I)", "no more of it");
    assert_eq!(words(reply.error().expect("an error")), expected);
    until("the transaction is rolled back", || db.backends("state = 'idle in transaction'") == 0);
    let end = two.query("select 1");
    assert_eq!(end.trace(), "E(57014) Z(E)");
    assert_eq!(words(&end.messages[0])[1], expected[1]);
    one.batch("set bursar.request_id = 'r2'");
    assert_eq!(one.query("select 1").value(), "1", "another request");
    one.bye();
    proxy.stop();
}

/// Far more than what lies between the sockets.
const MUCH: &str = "select repeat('x', 1000) from generate_series(1, 200000)";

fn stalls(mode: &str) -> Config {
    let stall =
        format!("max_stall = {{ warn = \"off\", abort = \"100ms\", mode = \"{mode}\", force = true }}");
    limited(&stall).with("pool", "max_wait = \"60s\"")
}

/// Reads to the end of a reply: how many rows, and the last two messages but for those.
fn read_on(client: &mut crate::support::Wire) -> (usize, String) {
    let (mut rows, mut rest) = (0, Vec::new());
    while rest.last().is_none_or(|last: &Msg| last.kind != b'Z') {
        match client.recv().expect("the connection stays") {
            message if matches!(message.kind, b'D' | b'd') => rows += 1,
            message => rest.push(message),
        }
    }
    (rows, crate::support::wire::trace(&rest))
}

#[test]
fn a_client_that_does_not_read_loses_its_statement_and_not_its_session() {
    let db = Db::new();
    let proxy = Proxy::start(&db, stalls("enforce"));
    let copy = "copy (select repeat('x', 1000) from generate_series(1, 200000)) to stdout";
    for (sql, first) in [(MUCH, "T"), (copy, "H")] {
        let mut lazy = proxy.connect();
        lazy.send(&msg::query(sql));
        // The one backend is free for others, and is the same one.
        let pid = proxy.connect().query("select pg_backend_pid()").value();
        assert_eq!(db.pids(), [pid.parse::<i32>().expect("a pid")]);
        let (rows, rest) = read_on(&mut lazy);
        assert_eq!(rest, format!("{first} E(57014) Z(I)"));
        assert!(rows > 0 && rows < 200_000, "{rows} rows");
        assert_eq!(lazy.query("select 1").value(), "1");
        lazy.bye();
    }
    let counts = "select enforced from bursar.budgets where dimension = 'B13'";
    assert_eq!(proxy.console().query(counts).value(), "2");
    proxy.stop();
}

/// Each statement that it has sent ahead is ended in its turn, so that the backend is free in the end.
#[test]
fn a_client_that_does_not_read_loses_what_it_had_sent_ahead_too() {
    let db = Db::new();
    let proxy = Proxy::start(&db, stalls("enforce"));
    let mut lazy = proxy.connect();
    lazy.send(&[msg::query(MUCH), msg::query(MUCH)].concat());
    let pid = proxy.connect().query("select pg_backend_pid()").value();
    assert_eq!(db.pids(), [pid.parse::<i32>().expect("a pid")]);
    for _ in 0..2 {
        let (rows, rest) = read_on(&mut lazy);
        assert_eq!(rest, "T E(57014) Z(I)");
        assert!(rows < 200_000, "{rows} rows");
    }
    assert_eq!(lazy.query("select 1").value(), "1");
    lazy.bye();
    proxy.stop();
}

#[test]
fn a_client_that_reads_slowly_gets_everything() {
    let db = Db::new();
    let proxy = Proxy::start(&db, stalls("observe"));
    let mut lazy = proxy.connect();
    lazy.send(&msg::query(MUCH));
    let mut console = proxy.console();
    crate::support::until("it has stalled", || {
        console.query("select would from bursar.budgets where dimension = 'B13'").value() == "1"
    });
    assert_eq!(read_on(&mut lazy), (200_000, "T C(SELECT 200000) Z(I)".to_owned()));
    lazy.bye();
    proxy.stop();
}
