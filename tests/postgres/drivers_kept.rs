//! Drivers and their pools, when Bursar ends their transactions: an error each, and the connection is kept
//! (budgets.md F7, experiment E15).

use super::drivers::{installed, program, succeed, url};
use crate::support::{Config, Db, Proxy};
use std::process::Command;

/// What each program meets, by route.
const CODES: [&str; 4] = ["25P03", "25P04", "57014", "40P01"];

/// One backend more than the programs use at once, so that nobody waits.
fn strict() -> Config {
    let ends = |key: &str, warn: &str, abort: &str| {
        format!("{key} = {{ warn = \"{warn}\", {abort}, mode = \"enforce\", force = true }}")
    };
    let at_once = "abort = \"100ms\", abort_alone = \"100ms\"";
    Config::of_size(3)
        .lazy()
        .with("budget.transaction", "max_idle = { warn = \"off\", abort = \"off\", abort_alone = \"off\" }")
        .with("route.\"/idle\".budget.transaction", &ends("max_idle", "50ms", at_once))
        .with("route.\"/old\".budget.transaction", &ends("max_age", "200ms", "abort = \"400ms\""))
        .with("route.\"/slow\".budget.statement", "max_time = { abort = \"200ms\", mode = \"enforce\" }")
}

fn is_kept_by(programs: &[&str], command: impl Fn(&str) -> Command) {
    let db = Db::new();
    db.run(&["create table kept (n int)", "insert into kept values (0)", "alter table kept owner to app"]);
    let proxy = Proxy::start(&db, strict());
    let printed = succeed(&command(&url(proxy.addr(), &db)));
    let expected = programs.iter().flat_map(|program| CODES.map(|code| format!("ok {program} {code}\n")));
    assert_eq!(printed, expected.collect::<String>());
    proxy.stop();
}

fn python(script: &str, url: &str) -> Command {
    let mut command = Command::new(installed("python/bin/python"));
    command.arg(program(script)).arg(url);
    command
}

#[test]
fn psycopg_and_sqlalchemy() {
    is_kept_by(&["psycopg", "sqlalchemy"], |url| python("kept_psycopg.py", url));
}

#[test]
fn asyncpg() {
    is_kept_by(&["asyncpg"], |url| python("kept_asyncpg.py", url));
}

#[test]
fn node_postgres() {
    is_kept_by(&["node-postgres"], |url| {
        let mut command = Command::new("node");
        command.env("NODE_PATH", installed("node/node_modules"));
        command.arg(program("kept_node.cjs")).arg(url);
        command
    });
}

/// pgjdbc's own pooled connection says which errors lose the connection: class 53 does, none of these.
#[test]
fn pgjdbc() {
    is_kept_by(&["pgjdbc"], |url| {
        let mut command = Command::new("java");
        let path = format!("/usr/share/java/postgresql.jar:{}", installed("java").display());
        let url = format!("jdbc:{}", url.replace("app@", ""));
        command.args(["-XX:TieredStopAtLevel=1", "-cp", &path, "Kept", &url]);
        command
    });
}
