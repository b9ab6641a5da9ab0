//! What sessions set follows them from backend to backend, and never another: wire.md C1 to C3 and I
//! (4), (8), (9). The same programs run straight to PostgreSQL and, with others in between, over
//! several backends in turn; everything the two sessions are told must be the same.

use crate::support::watch::{leases, metric};
use crate::support::{Config, Db, Login, Msg, Proxy, Reply, Wire, msg, until};

/// What a session looks at to know its settings, also those PostgreSQL does not report.
const LOOK: &str = "select current_setting(name, true), name from unnest(array['work_mem', 'search_path', \
     'timezone', 'datestyle', 'application_name', 'statement_timeout', 'app.tenant', 'app.other', 'role', \
     'default_transaction_isolation', 'default_transaction_read_only', 'extra_float_digits', \
     'client_encoding', 'standard_conforming_strings', 'xmloption', 'bytea_output']) name \
     union all select current_user || '/' || session_user, 'users'";

const SETUP: &[&str] = &[
    "create schema elsewhere",
    "create schema \"Quoted \"\", name\"",
    "create table t (id int)",
    "create function secretly() returns text language sql as $$ select set_config('work_mem', '8MB', false) $$",
];

/// Several backends, each in its turn.
fn start(size: usize) -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(SETUP);
    let config = Config::of_size(size).with("pool", "reuse = \"round_robin\"");
    let proxy = Proxy::start(&db, config.with("pool", &format!("min_idle = {size}")));
    let mut clients: Vec<Wire> = (0..size).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(|client| drop(client.batch("begin")));
    clients.into_iter().for_each(Wire::bye);
    (db, proxy)
}

/// A session with start-up parameters of its own.
fn with_start(user: &str, db: &Db<'_>) -> Login {
    Login::new(user, db.name())
        .with("TimeZone", "Asia/Tokyo")
        .with("search_path", "elsewhere, \"Quoted \"\", name\", public")
        .with("application_name", "Foo")
        .with("options", "-c work_mem=5MB -c app.tenant=start")
}

/// One program on two sides: straight, and pooled among others.
struct Twins {
    direct: Wire,
    pooled: Wire,
    others: Vec<Wire>,
    expected: String,
}

impl Twins {
    fn new(db: &Db<'_>, proxy: &Proxy, login: &Login) -> Twins {
        let direct = Wire::login(db.cluster().addr(), login);
        let pooled = Wire::login(proxy.addr(), login);
        let other = Login::new(login_user(login), db.name()).with("application_name", "foo");
        let mut others: Vec<Wire> = (0..2).map(|_| Wire::login(proxy.addr(), &other)).collect();
        let expected = looked(&others[0].batch(LOOK));
        assert_eq!(looked(&others[1].batch(LOOK)), expected);
        Twins { direct, pooled, others, expected }
    }

    /// Sends the same to both and compares what comes back; then others have their turn.
    fn step(&mut self, bytes: &[u8], what: &str) {
        self.direct.send(bytes);
        self.pooled.send(bytes);
        let zs = syncs(bytes);
        let (mut one, mut two) = (String::new(), String::new());
        for _ in 0..zs {
            let (direct, pooled) = (self.direct.recv_reply(), self.pooled.recv_reply());
            one.push_str(&described(&direct));
            two.push_str(&described(&pooled));
        }
        assert_eq!(two, one, "{what}");
        for other in &mut self.others {
            assert_eq!(looked(&other.batch(LOOK)), self.expected, "what others see after: {what}");
        }
    }

    fn simple(&mut self, sql: &str) {
        self.step(&msg::query(sql), sql);
    }

    fn extended(&mut self, sql: &str) {
        let unnamed = [msg::parse("", sql), msg::bind("", ""), msg::execute("", 0), msg::sync()].concat();
        self.step(&unnamed, &format!("extended: {sql}"));
    }

    /// Both have the same settings.
    fn look(&mut self, what: &str) {
        let direct = looked(&self.direct.batch(LOOK));
        assert_eq!(looked(&self.pooled.batch(LOOK)), direct, "settings after: {what}");
        for other in &mut self.others {
            assert_eq!(looked(&other.batch(LOOK)), self.expected, "what others see after: {what}");
        }
    }
}

fn login_user(login: &Login) -> &str {
    &login.parameters[0].1
}

/// How many ReadyForQuery these messages ask for.
fn syncs(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let [kind, a, b, c, d, ..] = bytes {
        count += usize::from(matches!(kind, b'Q' | b'S'));
        bytes = &bytes[1 + u32::from_be_bytes([*a, *b, *c, *d]) as usize..];
    }
    count
}

/// A reply as text: every message in order (parameters that are reported together in any order), and
/// the rows.
fn described(reply: &Reply) -> String {
    let mut texts: Vec<String> = reply.messages.iter().map(Msg::to_string).collect();
    for run in texts.chunk_by_mut(|a, b| a.starts_with("S(") && b.starts_with("S(")) {
        run.sort();
    }
    format!("{} {:?}\n", texts.join(" "), reply.rows())
}

fn looked(reply: &Reply) -> String {
    let rows = reply.rows().into_iter();
    let pair = |row: Vec<Option<String>>| {
        format!("{}={}", row[1].as_deref().unwrap_or(""), row[0].as_deref().unwrap_or("NULL"))
    };
    // A setting of an extension or application that was once there reads '' where it never was reads NULL.
    rows.map(pair)
        .collect::<Vec<_>>()
        .join("\n")
        .replace("app.tenant=NULL", "app.tenant=")
        .replace("app.other=NULL", "app.other=")
}

/// Nobody is pinned, and no lease is held.
fn assert_unpinned(proxy: &Proxy, what: &str) {
    until(&format!("no lease is held after {what}"), || leases(proxy) == 0);
    until(&format!("no pin shows after {what}"), || metric(proxy, "bursar_pins{reason=\"setting\"}") == 0.0);
}

/// Programs, statement by statement; each begins in a new session.
const PROGRAMS: &[&[&str]] = &[
    &["set work_mem = '7MB'", "show work_mem", "SET SESSION work_mem TO '9MB'", "show work_mem"],
    &["/* x */ SeT \"Work_Mem\" = 7000", "select 1; set work_mem = '8MB'; select 2", "show work_mem"],
    &[
        "set time zone 'Europe/Paris'",
        "show timezone",
        "set time zone interval '+02:00' hour to minute",
        "show timezone",
    ],
    &[
        "set names 'latin1'",
        "show client_encoding",
        "set names default",
        "set client_encoding to 'SQL_ASCII'",
    ],
    &[
        "set schema 'elsewhere'",
        "show search_path",
        "set search_path to elsewhere, \"Quoted \"\", name\"",
        "show search_path",
    ],
    &["set search_path = ''", "show search_path", "set search_path to default", "show search_path"],
    &["set xml option document", "show xmloption", "set datestyle to german", "select date '2020-01-02'"],
    &[
        "set application_name = 'foo'",
        "set application_name = 'Foo'",
        "set application_name = 'fOO'",
        "show application_name",
    ],
    &["set app.other = 'x'", "show app.other", "set app.tenant = 'y'", "reset app.tenant", "show app.tenant"],
    &[
        "set session characteristics as transaction isolation level serializable, read only",
        "show transaction_isolation",
        "insert into t values (1)",
        "begin read write; insert into t values (1); rollback",
    ],
    &[
        "select set_config('work_mem', '7MB', false)",
        "show work_mem",
        "select set_config('work_mem', '9MB', true)",
        "show work_mem",
    ],
    &[
        "select pg_catalog.\"set_config\"('app.tenant', 'a' || 'b', false), set_config('app.other', 'c', false)",
        "show app.tenant",
    ],
    &[
        "select set_config('work_mem', null, false) is null",
        "show work_mem",
        "select set_config('timezone', null, false) is null",
        "show timezone",
    ],
    &[
        "set work_mem = 'lots'",
        "show work_mem",
        "set nonsense = 1",
        "reset nonsense",
        "set work_mem to '6MB'; select 1/0",
        "show work_mem",
    ],
    &[
        "set server_version = '1'",
        "set log_min_messages = 'error'",
        "set plpgsql.nonsense = 1",
        "set max_connections = 1",
        "set work_mem = '6MB'",
        "show work_mem",
    ],
    &[
        "begin",
        "set timezone = 'UTC'",
        "savepoint a",
        "set log_min_messages = 'error'",
        "rollback to a",
        "set is_superuser = on",
        "rollback to a",
        "commit",
        "show timezone",
    ],
    &[
        "set session_authorization = 'postgres'",
        "set session_authorization = 'app'",
        "set role none",
        "set data_directory = 'x'",
        "set app.other = ''",
        "show app.other",
    ],
    // Transactions.
    &["begin", "set work_mem = '7MB'", "show work_mem", "commit", "show work_mem"],
    &["begin", "set work_mem = '7MB'", "set timezone = 'UTC'", "rollback", "show work_mem"],
    &["begin; set work_mem = '7MB'; commit", "begin; set work_mem = '8MB'; rollback", "show work_mem"],
    &[
        "begin",
        "set work_mem = '7MB'",
        "savepoint a",
        "set work_mem = '8MB'",
        "set app.other = 'x'",
        "rollback to a",
        "show work_mem",
        "commit",
        "show work_mem",
    ],
    &[
        "begin",
        "set work_mem = '7MB'",
        "savepoint a",
        "set work_mem = '8MB'",
        "release a",
        "commit",
        "show work_mem",
    ],
    &["begin", "set work_mem = '7MB'", "select 1/0", "set work_mem = '8MB'", "commit", "show work_mem"],
    &[
        "begin",
        "set local work_mem = '7MB'",
        "set work_mem = '8MB'",
        "set local work_mem = '9MB'",
        "show work_mem",
        "commit",
        "show work_mem",
    ],
    &[
        "begin",
        "set work_mem = '7MB'",
        "set local work_mem = '8MB'",
        "commit and chain",
        "show work_mem",
        "set timezone = 'UTC'",
        "rollback and chain",
        "show timezone",
        "commit",
        "show work_mem",
    ],
    &[
        "begin; set work_mem = '7MB'; commit; set timezone = 'UTC'; begin; set timezone = 'Asia/Tokyo'",
        "rollback",
        "show timezone",
    ],
    &[
        "begin",
        "select set_config('work_mem', '7MB', false)",
        "select set_config('timezone', 'UTC', true)",
        "commit",
        "show work_mem",
    ],
    // Back to the start-up values.
    &["set work_mem = '7MB'", "reset work_mem", "show work_mem", "set work_mem to default", "show work_mem"],
    &[
        "set timezone = 'UTC'",
        "reset timezone",
        "set time zone 'UTC'",
        "set time zone local",
        "set time zone 'UTC'",
        "reset time zone",
        "show timezone",
    ],
    &[
        "reset timezone",
        "reset search_path",
        "reset application_name",
        "show search_path",
        "show application_name",
    ],
    &[
        "set search_path = elsewhere",
        "reset search_path",
        "show search_path",
        "select current_schemas(false)",
    ],
    &[
        "set application_name = 'x'",
        "set work_mem = '7MB'",
        "set timezone = 'UTC'",
        "set app.tenant = 'b'",
        "reset all",
        "show work_mem",
    ],
    &["set application_name = 'x'", "set timezone = 'UTC'", "discard all", "show timezone", "show work_mem"],
    &["select pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;", "show work_mem"],
    &["begin", "set work_mem = '7MB'", "reset work_mem", "show work_mem", "commit", "show work_mem"],
    &[
        "begin",
        "set work_mem = '7MB'",
        "savepoint a",
        "reset work_mem",
        "show work_mem",
        "rollback to a",
        "show work_mem",
        "commit",
        "show work_mem",
    ],
    &["begin", "set timezone = 'UTC'", "reset timezone", "show timezone", "rollback", "show timezone"],
    &["begin", "reset all", "show work_mem", "show timezone", "show app.tenant", "commit", "show app.tenant"],
    &["set timezone = 'UTC'", "begin", "reset all", "show timezone", "rollback", "show timezone"],
    &[
        "begin",
        "reset work_mem",
        "set transaction isolation level serializable",
        "show transaction_isolation",
        "commit",
    ],
    &[
        "begin; reset work_mem; reset search_path",
        "set transaction isolation level serializable",
        "show search_path",
        "select current_schemas(false)",
        "commit",
        "select current_schemas(false)",
    ],
    &[
        "reset work_mem; select 1/0",
        "show work_mem",
        "begin",
        "select 1/0",
        "reset work_mem",
        "rollback",
        "show work_mem",
    ],
    &[
        "set work_mem = '7MB'; reset work_mem; set work_mem = '9MB'",
        "show work_mem",
        "reset all; set work_mem = '3MB'",
        "show work_mem",
    ],
    // Roles.
    &[
        "set role group_role",
        "select current_user",
        "create table elsewhere.no (id int)",
        "set role none",
        "select current_user",
    ],
    &[
        "set role group_role",
        "set work_mem = '7MB'",
        "select current_user",
        "reset role",
        "select current_user",
        "show work_mem",
    ],
    &["begin", "set role group_role", "select current_user", "rollback", "select current_user"],
    &["begin", "set local role group_role", "select current_user", "commit", "select current_user"],
    &["set role group_role", "reset all", "select current_user", "discard all", "select current_user"],
    &["set session authorization default", "set session authorization postgres", "select session_user"],
    &[
        "select set_config('role', 'group_role', false)",
        "select current_user",
        "set role to default",
        "select current_user",
    ],
];

/// A lone session goes round all backends, and takes what it has set along.
#[test]
fn a_session_changes_backends_with_its_settings() {
    let (_db, proxy) = start(3);
    let mut client = proxy.connect();
    let mut pids = std::collections::BTreeSet::new();
    for n in 1..10 {
        client.batch(&format!("set work_mem = '{n}MB'"));
        for _ in 0..3 {
            let seen = client.batch("select pg_backend_pid(), current_setting('work_mem')").rows().remove(0);
            assert_eq!(seen[1], Some(format!("{n}MB")));
            pids.extend(seen[0].clone());
        }
    }
    assert_eq!(pids.len(), 3);
    proxy.stop();
}

#[test]
fn settings_follow_their_session_and_no_other() {
    let (db, proxy) = start(3);
    let login = with_start("app", &db);
    for program in PROGRAMS {
        let mut twins = Twins::new(&db, &proxy, &login);
        for sql in *program {
            twins.simple(sql);
        }
        twins.look(&program.join("; "));
        twins.look(&program.join("; "));
        assert_unpinned(&proxy, &program.join("; "));
    }
    proxy.stop();
}

#[test]
fn in_the_extended_protocol_too() {
    let (db, proxy) = start(3);
    let login = with_start("app", &db);
    for program in PROGRAMS {
        let mut twins = Twins::new(&db, &proxy, &login);
        for sql in program.iter().flat_map(|sql| sql.split("; ")) {
            twins.extended(sql);
        }
        let what = program.join("; ");
        twins.simple("rollback");
        twins.look(&what);
        assert_unpinned(&proxy, &what);
    }
    proxy.stop();
}

/// In session mode only the start-up values need to be set again.
#[test]
fn and_in_session_mode() {
    let db = Db::new();
    db.run(SETUP);
    let proxy = Proxy::start(&db, Config::of_size(4).with("pool", "mode = \"session\""));
    let login = with_start("app", &db);
    for program in PROGRAMS {
        let mut twins = Twins::new(&db, &proxy, &login);
        for sql in *program {
            twins.simple(sql);
        }
        twins.look(&program.join("; "));
        let Twins { pooled, others, .. } = twins;
        pooled.bye();
        others.into_iter().for_each(Wire::bye);
    }
    proxy.stop();
}

/// Everything sent at once, before any answer.
#[test]
fn a_reset_is_done_before_what_is_sent_behind_it() {
    let (db, proxy) = start(2);
    let login = with_start("app", &db);
    for pipeline in [
        vec![msg::query("set work_mem = '7MB'"), msg::query("reset work_mem"), msg::query("show work_mem")],
        vec![msg::query("set timezone = 'UTC'"), msg::query("discard all"), msg::query("show timezone")],
        vec![
            msg::query("begin"),
            msg::query("reset all"),
            msg::query("show work_mem"),
            msg::query("select 1/0"),
            msg::query("reset work_mem"),
            msg::query("rollback"),
            msg::query("show work_mem"),
        ],
        vec![
            msg::parse("", "reset work_mem"),
            msg::bind("", ""),
            msg::execute("", 0),
            msg::sync(),
            msg::parse("", "show work_mem"),
            msg::bind("", ""),
            msg::execute("", 0),
            msg::sync(),
        ],
        vec![
            msg::parse("", "set work_mem = '7MB'"),
            msg::bind("", ""),
            msg::execute("", 0),
            msg::parse("", "select 1/0"),
            msg::bind("", ""),
            msg::execute("", 0),
            msg::sync(),
            msg::query("show work_mem"),
        ],
        vec![
            msg::query("reset work_mem; copy t from stdin"),
            msg::copy_data("1\n"),
            msg::copy_done(),
            msg::query("show work_mem"),
        ],
    ] {
        let mut twins = Twins::new(&db, &proxy, &login);
        let bytes = pipeline.concat();
        twins.step(&bytes, &String::from_utf8_lossy(&bytes));
        twins.look(&String::from_utf8_lossy(&bytes));
        db.run(&["delete from t"]);
    }
    proxy.stop();
}

/// It has no place in a COPY, as nothing has.
#[test]
fn a_reset_in_the_middle_of_a_copy_is_answered() {
    let (db, proxy) = start(1);
    let login = with_start("app", &db);
    let bytes = [msg::query("copy t from stdin"), msg::query("reset work_mem")].concat();
    let said = |addr| {
        let mut wire = Wire::login(addr, &login);
        wire.send(&bytes);
        wire.recv_to_end().trace()
    };
    assert_eq!(said(proxy.addr()), said(db.cluster().addr()));
    assert_eq!(proxy.connect().query("show work_mem").value(), "4MB");
    proxy.stop();
}

/// The unnamed statement is the session's, also where its text sets something.
#[test]
fn an_unnamed_statement_that_sets_is_noted_wherever_it_runs() {
    let (db, proxy) = start(2);
    let mut twins = Twins::new(&db, &proxy, &with_start("app", &db));
    let parse = [msg::parse("", "select set_config('app.other', $1, false)"), msg::sync()].concat();
    twins.step(&parse, "parse");
    for value in ["a", "b"] {
        let run = [msg::bind_with("", "", &[Some(value)]), msg::execute("", 0), msg::sync()].concat();
        twins.step(&run, value);
    }
    twins.look("an unnamed statement");
    assert_unpinned(&proxy, "an unnamed statement");
    proxy.stop();
}

/// A driver's own way to set something: name and value are parameters, in either format.
#[test]
fn a_bound_name_is_as_good_as_a_written_one() {
    let (db, proxy) = start(2);
    let mut twins = Twins::new(&db, &proxy, &with_start("app", &db));
    let text = "select set_config($1, $2, $3) is null";
    let parse = [msg::parse("", text), msg::parse("config", text), msg::sync()].concat();
    twins.step(&parse, "parse");
    for (name, value, local) in [
        ("work_mem", Some("7MB"), "f"),
        ("app.other", Some("a'b"), "false"),
        ("work_mem", Some("9MB"), "t"),
        ("TimeZone", Some("UTC"), "f"),
        // Back to what the start-up packet said.
        ("TimeZone", None, "f"),
        ("work_mem", None, "f"),
        ("no_such_setting", Some("x"), "f"),
    ] {
        for statement in ["config", ""] {
            let bytes = |text: &str| Some(text.as_bytes().to_vec());
            let flag = Some(vec![u8::from(local == "t")]);
            let binary = [(true, bytes(name)), (true, value.and_then(bytes)), (true, flag)];
            for bind in [
                msg::bind_with("", statement, &[Some(name), value, Some(local)]),
                msg::bind_formats("", statement, &binary, false),
            ] {
                let what = format!("{statement:?}: {name} = {value:?}, {local}");
                twins.step(&[bind, msg::execute("", 0), msg::sync()].concat(), &what);
                twins.look(&what);
            }
        }
    }
    assert_unpinned(&proxy, "bound names");
    proxy.stop();
}

/// Shared statements are prepared anywhere and set something here.
#[test]
fn named_statements_that_set_are_noted_wherever_they_run() {
    let (db, proxy) = start(2);
    let mut twins = Twins::new(&db, &proxy, &with_start("app", &db));
    for (name, sql) in [
        ("config", "select set_config('app.other', $1, false)"),
        ("set", "set timezone = 'UTC'"),
        ("reset", "reset timezone"),
        ("path", "set search_path = elsewhere"),
        ("all", "reset all"),
        ("table", "select 'here' from here"),
    ] {
        if name == "table" {
            db.run(&["create table here ()", "create table elsewhere.here (id int)"]);
        }
        twins.step(&[msg::parse(name, sql), msg::sync()].concat(), sql);
    }
    let run = |name: &str| [msg::bind("", name), msg::execute("", 0), msg::sync()].concat();
    for round in 0..3 {
        for value in ["a", "b"] {
            let set =
                [msg::bind_with("", "config", &[Some(value)]), msg::execute("", 0), msg::sync()].concat();
            twins.step(&set, value);
            twins.look("config");
        }
        for name in ["set", "reset", "table", "path", "table", "all", "set", "reset"] {
            twins.step(&run(name), name);
            twins.look(&format!("{name}, round {round}"));
        }
        let one = [
            msg::bind("", "set"),
            msg::execute("", 0),
            msg::bind("", "reset"),
            msg::execute("", 0),
            msg::sync(),
        ];
        twins.step(&one.concat(), "both at once");
        twins.step(&[run("set"), run("reset"), run("path"), run("table"), run("all")].concat(), "one by one");
        twins.look("pipelines");
    }
    assert_unpinned(&proxy, "named statements");
    proxy.stop();
}

/// Values that nobody should take apart.
#[test]
fn values_arrive_byte_by_byte() {
    let (db, proxy) = start(3);
    let long = "x".repeat(300);
    let huge = "é'\\".repeat(3000);
    let values = [
        "",
        " ",
        "'",
        "''",
        "\\",
        "\\'",
        "a'b\\c\"d",
        "'; set role group_role; --",
        "E'\\x41'",
        "$$x$$",
        "%s %n",
        "\t\n\r\u{1}\u{7f}",
        "grüße, 世界 🦀",
        "ÿ\u{fe}",
        "/* */ -- x",
        "'),pg_sleep(1),('",
        &long,
        &huge,
    ];
    for encoding in ["UTF8", "LATIN1"] {
        let login = with_start("app", &db).with("client_encoding", encoding);
        let mut twins = Twins::new(&db, &proxy, &login);
        for value in values {
            let Some(sent) = encoded(value, encoding) else { continue };
            let literal = [b"set app.other = E'", &escaped(&sent)[..], b"'"].concat();
            twins.step(&message(b'Q', &literal), value);
            twins.simple("select encode(convert_to(current_setting('app.other'), 'UTF8'), 'hex')");
            twins.simple("show app.other");
            let set = [
                msg::parse("", "select length(set_config('app.tenant', $1, false))"),
                bind_bytes(&sent),
                msg::execute("", 0),
                msg::sync(),
            ]
            .concat();
            twins.step(&set, value);
            twins.simple("select encode(convert_to(current_setting('app.tenant'), 'UTF8'), 'hex')");
            twins.look(value);
        }
        // What was stored under one encoding reads the same under another.
        for other in ["UTF8", "LATIN1", "UTF8"] {
            twins.step(&msg::query("set app.other = 'x'"), "ascii");
            twins.simple(&format!("set client_encoding = '{other}'"));
            let sent = encoded("gr\u{fc}n", other).expect("both have it");
            twins.step(&message(b'Q', &[b"set app.other = '", &sent[..], b"'"].concat()), other);
            twins.simple("select encode(convert_to(current_setting('app.other'), 'UTF8'), 'hex')");
        }
    }
    assert_unpinned(&proxy, "all values");
    proxy.stop();
}

fn encoded(value: &str, encoding: &str) -> Option<Vec<u8>> {
    if encoding == "UTF8" {
        return Some(value.as_bytes().to_vec());
    }
    value.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

fn escaped(value: &[u8]) -> Vec<u8> {
    value.iter().flat_map(|&b| if b"'\\".contains(&b) { vec![b, b] } else { vec![b] }).collect()
}

fn message(kind: u8, text: &[u8]) -> Vec<u8> {
    msg::message(kind, &[text, b"\0"].concat())
}

/// Bind of one text parameter.
fn bind_bytes(value: &[u8]) -> Vec<u8> {
    let len = u32::try_from(value.len()).expect("short").to_be_bytes();
    msg::message(b'B', &[b"\0\0\0\0\0\x01", &len[..], value, b"\0\0"].concat())
}

/// A superuser has more to lose.
#[test]
fn session_authorization_comes_and_goes() {
    let (db, proxy) = start(3);
    let login = with_start("postgres", &db);
    for program in [
        &[
            "set session authorization app",
            "select session_user, current_user",
            "set log_min_messages = 'error'",
            "reset session authorization",
            "select session_user",
        ][..],
        &[
            "set log_min_messages = 'error'",
            "set session authorization app",
            "set role group_role",
            "set work_mem = '7MB'",
            "show log_min_messages",
            "select session_user, current_user",
            "reset role",
            "select current_user",
            "reset all",
            "select session_user, current_user",
        ],
        &[
            "set role group_role",
            "set session authorization app",
            "select session_user, current_user",
            "set session authorization default",
            "select session_user, current_user",
        ],
        &[
            "set session authorization app",
            "set role group_role",
            "discard all",
            "select session_user, current_user",
        ],
        &[
            "begin",
            "set session authorization app",
            "savepoint a",
            "set role group_role",
            "rollback to a",
            "commit",
            "select session_user, current_user",
        ],
    ] {
        let mut twins = Twins::new(&db, &proxy, &login);
        for sql in program {
            twins.simple(sql);
        }
        twins.look(&program.join("; "));
        assert_unpinned(&proxy, &program.join("; "));
    }
    proxy.stop();
}

/// A role that is gone is not silently left out.
#[test]
fn a_session_without_its_role_ends() {
    let (db, proxy) = start(1);
    let role = format!("gone_{}", db.name());
    db.ask(&format!("create role {role} role app; select ''"));
    let mut first = proxy.connect();
    first.batch(&format!("set role {role}"));
    let mut second = proxy.connect();
    assert_eq!(second.query("select current_user").value(), "app");
    db.ask(&format!("drop role {role}; select ''"));
    assert_eq!(first.query("select current_user").trace(), "E(FATAL 08006) EOF");
    assert_eq!(second.query("select current_user").value(), "app");
    proxy.stop();
}

/// What a text does not name pins, as does a value too long to carry; DISCARD ALL unpins.
#[test]
fn what_cannot_be_named_pins() {
    let (_db, proxy) = start(2);
    let mut client = proxy.connect();
    for made in [
        "select set_config('work' || '_mem', '7MB', false)",
        "do $$ begin perform set_config('work_mem', '7MB', false); end $$",
        "set work_mem = '7MB'; select set_config('app.long', repeat('x', 40000), false)",
    ] {
        client.batch(made);
        until(&format!("the pin shows: {made}"), || metric(&proxy, "bursar_pins{reason=\"setting\"}") == 1.0);
        assert_eq!(client.query("show work_mem").value(), "7MB", "{made}");
        client.batch("discard all");
        assert_unpinned(&proxy, made);
        assert_eq!(client.query("show work_mem").value(), "4MB");
    }
    let set = [
        msg::parse("", "select set_config($1 || '', $2, false)"),
        msg::bind_with("", "", &[Some("work_mem"), Some("7MB")]),
        msg::execute("", 0),
        msg::sync(),
    ]
    .concat();
    client.ask(&set);
    until("the pin shows", || metric(&proxy, "bursar_pins{reason=\"setting\"}") == 1.0);
    client.bye();
    let mut others: Vec<Wire> = (0..2).map(|_| proxy.connect()).collect();
    for other in &mut others {
        other.batch("begin");
        assert_eq!(other.query("show work_mem").value(), "4MB");
    }
    proxy.stop();
}

/// A session that does not say goodbye leaves nothing either.
#[test]
fn a_session_that_vanishes_leaves_nothing() {
    let (_db, proxy) = start(1);
    for left in [
        "begin; set work_mem = '7MB'",
        "set role group_role; select pg_sleep(0.2)",
        "set statement_timeout = 1",
    ] {
        let mut first = proxy.connect();
        first.send(&msg::query(left));
        drop(first);
        let mut second = proxy.connect();
        let seen = second
            .batch("select current_setting('work_mem'), current_user, current_setting('statement_timeout')");
        assert_eq!(seen.rows()[0], ["4MB", "app", "0"].map(|value| Some(value.to_owned())), "{left}");
    }
    proxy.stop();
}

/// A session's timeout is for its own statements.
#[test]
fn timeouts_of_one_session_end_nothing_else() {
    let (_db, proxy) = start(1);
    let mut hasty = proxy.connect();
    let mut other = proxy.connect();
    hasty.batch("set statement_timeout = '1ms'; set application_name = 'hasty'");
    for round in 0..50 {
        assert_eq!(other.query("select pg_sleep(0.003), 7").rows()[0][1].as_deref(), Some("7"));
        if round % 10 == 0 {
            assert_eq!(hasty.query("select pg_sleep(1)").code(), "57014");
        }
        assert_eq!(other.query("show statement_timeout").value(), "0");
    }
    hasty.query("set statement_timeout = '5s'");
    assert_unpinned(&proxy, "timeouts");
    proxy.stop();
}

/// A counter in a setting makes as many sets as it counts; only those in use take room.
#[test]
fn sets_that_nobody_uses_any_more_take_no_room() {
    let (_db, proxy) = start(1);
    let mut client = proxy.connect();
    for n in 0..11_000 {
        client.batch(&format!("set application_name = 'n{n}'"));
    }
    assert_eq!(client.query("show application_name").value(), "n10999");
    assert_unpinned(&proxy, "many sets");
    let mut second = proxy.connect();
    assert_eq!(second.query("show application_name").value(), "");
    proxy.stop();
}

/// What pins is gone: so is the pin.
#[test]
fn a_pin_lasts_as_long_as_what_it_is_for() {
    let (_db, proxy) = start(1);
    let mut client = proxy.connect();
    for (made, ended) in [
        ("listen bell", "unlisten *"),
        ("listen bell", "unlisten bell"),
        ("create temp table mine (id int)", "drop table mine"),
        ("create temp table mine (id int)", "discard temp"),
        ("create function pg_temp.f() returns int language sql as 'select 1'", "drop function pg_temp.f"),
        ("select pg_advisory_lock(7)", "select pg_advisory_unlock(7)"),
        ("select pg_try_advisory_lock(7), pg_advisory_lock(8)", "select pg_advisory_unlock_all()"),
        ("begin; declare c cursor with hold for select 1; commit", "close c"),
        ("begin; declare c cursor with hold for select 1; commit", "close all"),
        ("prepare mine as select 1", "deallocate mine"),
        ("prepare mine as select 1", "deallocate all"),
    ] {
        client.batch(made);
        client.batch("select 1");
        assert_eq!(leases(&proxy), 1, "{made}");
        client.batch(ended);
        until(&format!("nobody is pinned after {made}, {ended}"), || leases(&proxy) == 0);
    }
    // And what never was, or went with its transaction, does not pin.
    for passing in [
        "begin; listen bell; rollback",
        "create temp table pg_catalog.mine (id int)",
        "begin; create temp table mine (id int) on commit drop; commit",
        "select pg_advisory_lock(7), pg_advisory_unlock(7)",
        "begin; declare c cursor with hold for select 1; rollback",
        "prepare mine as select nonsense",
    ] {
        client.query(passing);
        until(&format!("nobody is pinned after {passing}"), || leases(&proxy) == 0);
    }
    proxy.stop();
}

/// A notification that comes while Bursar looks at the backend is not lost.
#[test]
fn notifications_arrive_while_bursar_looks() {
    let (db, proxy) = start(1);
    let mut client = proxy.connect();
    client.batch("listen bell");
    let mut direct = db.direct();
    for n in 0..200 {
        // Each makes Bursar look again.
        client.send(&msg::query("unlisten other"));
        direct.batch(&format!("notify bell, '{n}'"));
        let mut heard = false;
        let mut ready = false;
        while !heard || !ready {
            let message = client.recv().expect("a message").to_string();
            heard |= message == format!("A(bell {n})");
            ready |= message == "Z(I)";
        }
    }
    proxy.stop();
}

/// Programs tell their own notifications from others' by the process id they were given at login.
#[test]
fn a_notification_of_ones_own_comes_from_ones_own_process() {
    let db = Db::new();
    for mode in ["transaction", "session"] {
        let proxy = Proxy::start(&db, Config::of_size(2).with("pool", &format!("mode = \"{mode}\"")));
        let (mut client, mut other) = (proxy.connect(), proxy.connect());
        client.batch("listen bell");
        let from = |message: &Msg| i32::from_be_bytes(message.body[..4].try_into().expect("a pid"));
        let reply = client.query("notify bell, 'own'");
        let heard: Vec<&Msg> = reply.messages.iter().filter(|message| message.kind == b'A').collect();
        assert_eq!(heard.iter().map(|message| message.to_string()).collect::<Vec<_>>(), ["A(bell own)"]);
        assert_eq!(from(heard[0]), client.pid, "{mode} mode");
        other.batch("notify bell, 'other'");
        let message = client.recv().expect("a message");
        assert_eq!(message.to_string(), "A(bell other)");
        assert_ne!(from(&message), client.pid, "{mode} mode");
        proxy.stop();
    }
}

/// A bad start-up value is the client's own trouble, on whatever backend it is found.
#[test]
fn a_bad_start_up_value_harms_nobody() {
    let (db, proxy) = start(1);
    let mut other = proxy.connect();
    other.batch("set work_mem = '7MB'");
    let pid = other.query("select pg_backend_pid()").value();
    for (name, value) in [("work_mem", "lots"), ("nonsense", "1"), ("role", "nobody"), ("timezone", "Mars")] {
        let login = Login::new("app", db.name()).with("datestyle", "German").with(name, value);
        let direct = Wire::try_login(db.cluster().addr(), &login).err().map(said);
        let pooled = Wire::try_login(proxy.addr(), &login).err().map(said);
        assert_eq!(pooled, direct, "{name} = {value}");
        assert_eq!(other.query("show work_mem").value(), "7MB");
        assert_eq!(other.query("show datestyle").value(), "ISO, MDY");
    }
    assert_eq!(other.query("select pg_backend_pid()").value(), pid, "the backend survives");
    proxy.stop();
}

fn said(refused: crate::support::Refused) -> String {
    let crate::support::Refused::Said(reply) = refused else { panic!("{refused:?}") };
    let error = reply.error().expect("an error");
    format!("{error} {:?}", error.field(b'M'))
}

#[test]
fn a_timeout_that_would_cut_everything_short_can_be_reset() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let (mut one, mut two) = (proxy.connect(), proxy.connect());
    one.batch("set statement_timeout = '30ms'");
    assert_eq!(two.query("show statement_timeout").value(), "0");
    // The backend that it gets is led to these settings first, and is not given back before its turn.
    one.batch("reset statement_timeout");
    assert_eq!(one.query("show statement_timeout").value(), "0");
    one.batch("set statement_timeout = '30ms'");
    assert_eq!(
        one.ask(&[msg::unnamed("reset statement_timeout"), msg::sync()].concat()).trace(),
        "1 2 n C(RESET) Z(I)"
    );
    proxy.stop();
}

/// A RESET later in the same flight keeps back what is reported in its own segment, and not in those before.
#[test]
fn a_parameter_is_reported_at_the_end_of_its_own_segment() {
    let (db, proxy) = start(1);
    let told = |mut wire: Wire| {
        let begun = [msg::unnamed("select 1"), msg::unnamed("reset application_name"), msg::sync()].concat();
        wire.send(&[msg::unnamed("set intervalstyle = 'iso_8601'"), msg::sync(), begun].concat());
        [wire.recv_reply(), wire.recv_reply()].map(|reply| (reply.trace(), reply.messages))
    };
    let direct = told(db.direct());
    assert_eq!(direct[0].0, "1 2 n C(SET) S(IntervalStyle=iso_8601) Z(I)");
    assert_eq!(told(proxy.connect()), direct);
    proxy.stop();
}
