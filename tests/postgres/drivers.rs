//! Drivers and tools that people use, unchanged: each runs its program directly and through a small
//! pool, twice, and must find everything in order both times; and so must two copies at once.
//!
//! The programs are in `drivers/`, the drivers themselves below `.work` (`scripts/test-env`).

use crate::support::{Config, Db, Proxy, STATEMENTS, signal, until};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn program(name: &str) -> PathBuf {
    root().join("tests/postgres/drivers").join(name)
}

/// A file that `scripts/test-env` makes.
pub(super) fn installed(path: &str) -> PathBuf {
    let path = root().join(".work").join(path);
    assert!(path.exists(), "{} is missing: run scripts/test-env first", path.display());
    path
}

/// The connection string of the role `app`.
pub(super) fn url(addr: SocketAddr, db: &Db<'_>) -> String {
    format!("postgresql://app@{addr}/{}", db.name())
}

/// What a command prints, in bounded time: a driver that waits for an answer waits for ever.
pub(super) fn output(command: &Command) -> Output {
    output_within(60, command)
}

/// [`output`] of a command that has more to do; the bound is in seconds.
pub(super) fn output_within(seconds: u32, command: &Command) -> Output {
    let mut bounded = Command::new("timeout");
    bounded
        .args(["--kill-after=1", &seconds.to_string()])
        .arg(command.get_program())
        .args(command.get_args());
    bounded.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    bounded.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Standard output of a command that must succeed.
pub(super) fn succeed(command: &Command) -> String {
    let output = output(command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Directly, then twice through pools of both modes, then two copies at once: the same `ok` lines each
/// time, and those. `command` takes the URL and what sets a copy of the program off from others.
fn run_everywhere(command: impl Fn(&str, &str) -> Command, expected: &[&str]) {
    let db = Db::new();
    run_directly(&db, &command, expected);
    for mode in ["transaction", "session"] {
        let config = Config::of_size(2).lazy().with("pool", &format!("mode = \"{mode}\""));
        let proxy = Proxy::start(&db, config.with("pool", "reuse = \"round_robin\""));
        for round in 1..=2 {
            let proxied = succeed(&command(&url(proxy.addr(), &db), ""));
            assert_eq!(proxied, lines(expected), "{mode} mode, round {round}");
        }
        assert!(db.pids().len() <= 2, "more backends than the pool has");
        proxy.stop();
    }
    run_two_copies(&db, &command, expected);
}

/// For programs on top of drivers that run everywhere: directly, then two copies at once.
fn run_in_company(command: impl Fn(&str, &str) -> Command, expected: &[&str]) {
    let db = Db::new();
    run_directly(&db, &command, expected);
    run_two_copies(&db, &command, expected);
}

fn run_directly(db: &Db<'_>, command: impl Fn(&str, &str) -> Command, expected: &[&str]) {
    let direct = succeed(&command(&url(db.cluster().addr(), db), ""));
    assert_eq!(direct, lines(expected), "directly");
}

fn run_two_copies(db: &Db<'_>, command: impl Fn(&str, &str) -> Command, expected: &[&str]) {
    let proxy = Proxy::start(db, for_two_copies());
    std::thread::scope(|scope| {
        let copies = ["_a", "_b"].map(|copy| {
            let command = command(&url(proxy.addr(), db), copy);
            (copy, scope.spawn(move || succeed(&command)))
        });
        for (copy, output) in copies {
            let output = output.join().unwrap_or_else(|_| panic!("copy {copy} fails, see above"));
            assert_eq!(output, lines(expected), "copy {copy} of two");
        }
    });
    proxy.stop();
}

fn lines(expected: &[&str]) -> String {
    expected.iter().map(|line| format!("ok {line}\n")).collect()
}

/// A pool that two copies of a program share: one backend, where prepared statements and settings go
/// where their session goes.
pub(super) fn for_two_copies() -> Config {
    let config = if STATEMENTS { Config::one_backend().lazy() } else { Config::of_size(10).lazy() };
    config.with("pool", "max_wait = \"30s\"").with("tenant.\"*\"", "mode = \"observe\"")
}

fn python(script: &'static str, arguments: &'static [&str]) -> impl Fn(&str, &str) -> Command {
    move |url, copy| {
        let mut command = Command::new(installed("python/bin/python"));
        command.arg(program(script)).args([url, copy]).args(arguments);
        command
    }
}

const PSYCOPG: &[&str] = &[
    "query",
    "parameters",
    "transaction",
    "rollback",
    "errors keep the connection",
    "copy",
    "prepared",
    "pipeline",
    "cursor",
    "cancel",
    "big",
    "notice",
];

#[test]
fn psycopg() {
    run_everywhere(python("psycopg_driver.py", &[]), PSYCOPG);
}

/// Every statement prepared under a name, from its first time on.
#[test]
fn psycopg_that_prepares() {
    run_in_company(python("psycopg_driver.py", &["0"]), PSYCOPG);
}

#[test]
fn asyncpg() {
    run_everywhere(
        python("asyncpg_driver.py", &[]),
        &[
            "query",
            "parameters",
            "transaction",
            "rollback",
            "errors keep the connection",
            "copy",
            "prepared",
            "many",
            "cursor",
            "cancel",
            "big",
            "notice",
            "pool",
        ],
    );
}

const SQLALCHEMY: &[&str] =
    &["query", "many", "prepared", "savepoint and rollback", "stream", "orm", "isolation", "reflection"];

#[test]
fn sqlalchemy_with_psycopg() {
    run_in_company(python("sqlalchemy_driver.py", &["psycopg"]), SQLALCHEMY);
}

#[test]
fn sqlalchemy_with_asyncpg() {
    run_in_company(python("sqlalchemy_driver.py", &["asyncpg"]), SQLALCHEMY);
}

#[test]
fn django() {
    run_in_company(
        python("django_driver.py", &[]),
        &["schema", "queries", "transaction", "rollback", "iterator", "time zone", "reconnect"],
    );
}

/// `threshold` is prepareThreshold: at which use of a statement the driver gives it a name.
fn jdbc(threshold: &'static str) -> impl Fn(&str, &str) -> Command {
    move |url, copy| {
        let mut command = Command::new("java");
        let path = format!("/usr/share/java/postgresql.jar:{}", installed("java").display());
        // The user is set beside the URL, which the driver reads otherwise than others.
        let url = format!("jdbc:{}", url.replace("app@", ""));
        command.args(["-XX:TieredStopAtLevel=1", "-cp", &path, "Jdbc", &url, copy, threshold]);
        command
    }
}

const JDBC: &[&str] = &[
    "query",
    "prepared",
    "transactions",
    "batch and cursor",
    "copy",
    "errors",
    "array",
    "metadata",
    "settings",
    "cancel",
];

#[test]
fn jdbc_as_it_comes() {
    run_everywhere(jdbc(""), JDBC);
}

/// Every statement prepared under a name, from its first time on.
#[test]
fn jdbc_that_prepares() {
    run_in_company(jdbc("1"), JDBC);
}

#[test]
fn node_postgres() {
    let command = |url: &str, copy: &str| {
        let mut command = Command::new("node");
        command.arg(program("node_postgres.cjs")).args([url, copy]);
        command.env("NODE_PATH", installed("node/node_modules"));
        command
    };
    run_everywhere(
        command,
        &[
            "query",
            "parameters",
            "transaction",
            "rollback",
            "errors keep the connection",
            "copy",
            "prepared",
            "queued",
            "cancel",
            "big",
            "notice",
            "pool",
        ],
    );
}

fn psql(db: &Db<'_>, addr: SocketAddr) -> Command {
    let mut command = Command::new(db.cluster().program("psql"));
    command.args(["-X", "-d", &url(addr, db)]).env("LC_ALL", "C");
    command
}

/// Both outputs, without what differs from run to run.
fn psql_script(db: &Db<'_>, addr: SocketAddr) -> String {
    let output = output(psql(db, addr).arg("-a").arg("-f").arg(program("psql.sql")));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    // The sender of a notification is named by its process id.
    let lines = text.lines().map(|line| line.split(" received from server process").next().unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn psql_prints_the_same() {
    let db = Db::new();
    let direct = psql_script(&db, db.cluster().addr());
    for piece in
        ["still here", "23505", "22012", "22P02", "note 5", "hear, too", "1000000", "Indexes:", "ding"]
    {
        assert!(direct.contains(piece), "{piece} in\n{direct}");
    }
    for mode in ["transaction", "session"] {
        let proxy = Proxy::start(&db, Config::of_size(2).lazy().with("pool", &format!("mode = \"{mode}\"")));
        for _ in 0..2 {
            assert_eq!(psql_script(&db, proxy.addr()), direct, "{mode} mode");
        }
        proxy.stop();
    }
}

#[test]
fn psql_is_interrupted() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2).lazy());
    let mut command = psql(&db, proxy.addr());
    command.args(["-c", "select pg_sleep(60)"]).stdin(Stdio::null()).stderr(Stdio::piped());
    let running = command.spawn().expect("psql starts");
    until("the statement runs", || db.running("pg_sleep") == 1);
    signal(running.id(), "INT");
    let output = running.wait_with_output().expect("psql ends");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("canceling statement due to user request"), "{error}");
    proxy.stop();
}

#[test]
fn pg_dump_and_pgbench_in_session_mode() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(4).lazy().with("pool", "mode = \"session\""));
    let (proxied, direct) = (url(proxy.addr(), &db), url(db.cluster().addr(), &db));
    let pgbench = db.cluster().program("pgbench");
    succeed(Command::new(&pgbench).args(["-i", "-q", "-s", "1", &proxied]));
    let dump = |url: &str| {
        let done = Command::new(db.cluster().program("pg_dump")).arg(url).output().expect("pg_dump runs");
        (
            String::from_utf8_lossy(&done.stdout).into_owned(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    let ((through, complaint), (straight, refusal)) = (dump(&proxied), dump(&direct));
    assert_eq!(complaint, refusal);
    // It dumps no server that is newer than itself.
    let too_new = straight.is_empty() && refusal.contains("server version mismatch");
    // Newer versions put a random word into \restrict and \unrestrict.
    let same = |dump: &str| {
        dump.lines().filter(|line| !line.contains("restrict ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(too_new || through.len() > 1_000_000, "100,000 accounts: {complaint}");
    assert!(same(&through) == same(&straight), "a dump through the proxy differs from a direct one");
    for protocol in ["simple", "extended", "prepared"] {
        bench(&pgbench, &["-M", protocol, "-c", "4", "-t", "50", &proxied], 200);
    }
    // The settings pg_dump and pg_restore leave behind are nobody else's.
    assert_eq!(proxy.connect().query("show search_path").value(), "\"$user\", public");
    proxy.stop();
}

#[test]
fn pgbench_in_transaction_mode_stays_within_the_pool() {
    const SIZE: usize = 4;
    let db = Db::new();
    let pgbench = &db.cluster().program("pgbench");
    succeed(Command::new(pgbench).args(["-i", "-q", "-s", "1", &url(db.cluster().addr(), &db)]));
    let config = Config::of_size(SIZE)
        .lazy()
        .with("pool", "max_wait = \"30s\"")
        .with("tenant.\"*\"", "max = \"100%\"");
    let proxy = Proxy::start(&db, config);
    let proxied = &url(proxy.addr(), &db);
    std::thread::scope(|scope| {
        let benches = scope.spawn(move || {
            for protocol in ["simple", "extended"] {
                bench(pgbench, &["-S", "-M", protocol, "-c", "50", "-t", "40", proxied], 2000);
                bench(pgbench, &["-M", protocol, "-c", "20", "-t", "10", proxied], 200);
                bench(pgbench, &["-S", "-C", "-M", protocol, "-c", "5", "-t", "10", proxied], 50);
            }
        });
        let mut looks = 0;
        while !benches.is_finished() {
            let backends = db.pids().len();
            assert!(backends <= SIZE, "{backends} backends for a pool of {SIZE}");
            looks += 1;
        }
        assert!(looks > 10, "the benches were hardly watched");
        benches.join().expect("every transaction succeeds");
    });
    proxy.stop();
}

/// So many transactions, and no failure.
fn bench(pgbench: &Path, arguments: &[&str], transactions: usize) {
    let report = succeed(Command::new(pgbench).arg("-n").args(arguments));
    let done = format!("number of transactions actually processed: {transactions}/{transactions}");
    assert!(report.contains(&done), "{arguments:?}\n{report}");
    assert!(report.contains("number of failed transactions: 0 "), "{arguments:?}\n{report}");
}
