//! What people and their instruments read: every view of the console through psql, its numbers after
//! a known workload, metrics and health.

use crate::support::watch::{get, metric, printed, series, status};
use crate::support::{Config, Db, Login, Proxy, Refused, Wire, msg, until};
use std::collections::BTreeSet;
use std::process::{Command, Output};

const CONSOLE_PAGE: &str = include_str!("../../docs/console.md");
const METRICS_PAGE: &str = include_str!("../../docs/metrics.md");

/// Runs statements in the console by psql, as CSV.
fn psql(db: &Db<'_>, proxy: &Proxy, user: &str, statements: &[&str]) -> Output {
    let mut command = Command::new(db.cluster().program("psql"));
    command.args(["-X", "-w", "--csv", "-v", "ON_ERROR_STOP=1", "-d", "bursar", "-U", user]);
    command.args(["-h", "127.0.0.1", "-p", &proxy.addr().port().to_string()]);
    for statement in statements {
        command.args(["-c", statement]);
    }
    command.output().expect("psql runs")
}

fn psql_text(db: &Db<'_>, proxy: &Proxy, statement: &str) -> String {
    let output = psql(db, proxy, "app", &[statement]);
    assert!(output.status.success(), "{statement}: {}", printed(&output));
    printed(&output)
}

/// Views that the page lists: the name, and the columns it names, with whether these are all.
fn documented() -> Vec<(&'static str, Vec<&'static str>, bool)> {
    let table = CONSOLE_PAGE.lines().skip_while(|line| !line.starts_with("| view |")).skip(2);
    let mut views = Vec::new();
    for line in table.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let columns = cells.get(2).and_then(|cell| cell.split('`').nth(1)).unwrap_or_default();
        let all = cells.get(2).is_some_and(|cell| cell.starts_with('`'));
        for name in cells[0].split(',') {
            let name = name.trim_matches([' ', '●']);
            views.push((name, columns.split_ascii_whitespace().collect(), all));
        }
    }
    views
}

#[test]
fn psql_shows_every_view_of_the_page_with_its_columns() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2));
    let mut held = proxy.connect_for("acme", "x");
    held.batch("begin");
    let views = documented();
    assert_eq!(views.len(), 22, "{views:?}");
    for (name, columns, all) in views {
        let text = psql_text(&db, &proxy, &format!("SHOW {name}"));
        let header: Vec<&str> = text.lines().next().unwrap_or_default().split(',').collect();
        assert!(header.ends_with(&columns), "{name}: {header:?} instead of {columns:?}");
        assert!(!all || header.len() == columns.len(), "{name} has more columns: {header:?}");
        let select = psql_text(&db, &proxy, &format!("SELECT * FROM bursar.{name} LIMIT 0"));
        assert_eq!(select.trim_end(), header.join(","), "SELECT from {name}");
    }
    let request = psql_text(&db, &proxy, "SELECT * FROM bursar.request('x')");
    assert_eq!(request.lines().count(), 2, "{request}");
    assert!(request.lines().nth(1).is_some_and(|row| row.starts_with("x,acme,")), "{request}");
    let nobody = psql_text(&db, &proxy, "SELECT * FROM bursar.request('nobody')");
    assert_eq!(nobody.lines().count(), 1, "{nobody}");
    drop(held);
    proxy.stop();
}

/// A row of a SELECT in the console, as text.
fn row(console: &mut Wire, sql: &str) -> Vec<String> {
    let reply = console.query(sql);
    assert!(reply.error().is_none(), "{sql}: {reply:?}");
    let rows = reply.rows();
    assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
    rows.into_iter().flatten().map(Option::unwrap_or_default).collect()
}

#[test]
fn numbers_are_right_after_a_known_workload() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(3));
    let pool = format!("pool=\"app@{}\"", db.name());
    let mut first = proxy.connect();
    let mut console = proxy.console();
    let count = "select total_xact_count, total_query_count from bursar.stats \
                 where database = '$DB'"
        .replace("$DB", db.name());
    assert_eq!(row(&mut console, &count), ["0", "0"], "a login is not work");

    for _ in 0..4 {
        first.batch("select 1");
    }
    for sql in ["begin", "select 1", "select 2", "commit"] {
        first.batch(sql);
    }
    first.ask(&[msg::parse("", "select 3"), msg::bind("", ""), msg::execute("", 0), msg::sync()].concat());
    let mut second = proxy.connect();
    assert_eq!(second.query("select 1/0").code(), "22012");
    assert_eq!(row(&mut console, &count), ["7", "10"]);
    assert_eq!(metric(&proxy, &format!("bursar_transactions_total{{{pool}}}")), 7.0);
    assert_eq!(metric(&proxy, &format!("bursar_statements_total{{{pool}}}")), 10.0);
    assert_eq!(metric(&proxy, &format!("bursar_leases_in_use{{{pool}}}")), 0.0);

    first.batch("begin");
    second.batch("begin");
    second.batch("commit");
    let pools = "select cl_active, cl_waiting, sv_active, sv_idle, size, leases_peak, paused \
                 from bursar.pools where database = '$DB'"
        .replace("$DB", db.name());
    assert_eq!(row(&mut console, &pools), ["2", "0", "1", "1", "3", "2", "f"]);
    assert_eq!(db.pids().len(), 2);
    assert_eq!(metric(&proxy, &format!("bursar_leases_in_use{{{pool}}}")), 1.0);
    let held = row(&mut console, "select backend_pid, state, client_id from bursar.leases");
    assert_eq!(held[..2], [first.query("select pg_backend_pid()").value(), "idle_in_tx".to_owned()]);
    let port = format!("select port from bursar.clients where id = {}", held[2]);
    assert_eq!(row(&mut console, &port), [first.local_port().to_string()]);
    drop((first, second));
    proxy.stop();
}

#[test]
fn requests_are_counted_across_their_sessions() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(3));
    let mut sessions: Vec<Wire> = (0..2).map(|_| proxy.connect_for("acme", "r-7")).collect();
    for session in &mut sessions {
        session.batch("begin");
        session.batch("select 1");
    }
    let mut console = proxy.console();
    let request = "select tenant, leases_now, peak_leases, leases_total, waiting from bursar.request('r-7')";
    assert_eq!(row(&mut console, request), ["acme", "2", "2", "2", "0"]);
    for session in &mut sessions {
        session.batch("commit");
        session.batch("select 1");
    }
    assert_eq!(row(&mut console, request), ["acme", "0", "2", "4", "0"]);
    assert_eq!(row(&mut console, "select leases_total < 10 from bursar.request('r-7')"), ["t"]);
    drop(sessions);
    proxy.stop();
}

const LEAK: &str = "bursar_leaks_open{class=\"idle_in_tx\"}";

#[test]
fn metrics_have_every_family_of_the_page() {
    let db = Db::new();
    let config = Config::of_size(2).with("pool", "max_wait = \"50ms\"").with("leak", "idle = \"50ms\"");
    let proxy = Proxy::start(&db, config);
    // A family without series is not shown: so one of each, of what need not happen.
    let mut client = proxy.connect_for("acme", "r-1");
    client.batch("begin; select 1");
    let mut pinned = proxy.connect_for("acme", "r-2");
    pinned.batch("listen bell");
    assert_eq!(proxy.connect_for("acme", "r-3").query("select 1").code(), "53300");
    until("the idle transaction is reported", || metric(&proxy, LEAK) == 1.0);
    let (code, text) = get(&proxy, "/metrics").expect("an answer");
    assert_eq!(code, 200);
    let typed: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let documented: Vec<(&str, &str)> = METRICS_PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter_map(|(name, rest)| Some((name, rest.split(" |").next()?)))
        .filter(|(_, kind)| ["gauge", "counter", "histogram"].contains(kind))
        .collect();
    assert!(documented.len() > 40, "{documented:?}");
    let absent: Vec<&str> = documented
        .iter()
        .filter(|(name, kind)| !typed.contains(format!("{name} {kind}").as_str()))
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(absent, [""; 0], "on the page only");
    let names: BTreeSet<&str> = documented.iter().map(|(name, _)| *name).collect();
    for each in typed {
        let name = each.split(' ').next().unwrap_or_default();
        assert!(name.starts_with("process_") || names.contains(name), "{name} is not on the page");
    }
    let series = series(&proxy);
    assert_eq!(series.get("bursar_panics_total"), Some(&0.0));
    assert!(series.keys().all(|name| !name.contains("r-1")), "a request id is never a label");
    drop((client, pinned));
    proxy.stop();
}

#[test]
fn health_answers() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    proxy.connect().batch("select 1");
    until("healthy", || status(&proxy, "/healthz/db") == 200);
    assert_eq!((status(&proxy, "/livez"), status(&proxy, "/readyz")), (200, 200));
    let (_, body) = get(&proxy, "/healthz/db").expect("an answer");
    let health: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&health["status"], &health["draining"]), (&"ok".into(), &false.into()), "{body}");
    assert_eq!(status(&proxy, "/nowhere"), 404);
    proxy.stop();
}

#[test]
fn the_console_is_for_admins_only() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("admin", "users = [\"keeper\"]"));
    let keeper = psql(&db, &proxy, "keeper", &["SHOW VERSION"]);
    assert!(keeper.status.success(), "{}", printed(&keeper));
    let refused = psql(&db, &proxy, "app", &["SHOW VERSION"]);
    assert_eq!(refused.status.code(), Some(2), "psql's code for no connection");
    let words = "permission denied for database \"bursar\" to user \"app\"";
    assert!(printed(&refused).contains(words), "{}", printed(&refused));
    match Wire::try_login(proxy.addr(), &Login::new("app", "bursar")) {
        Err(Refused::Said(reply)) => assert_eq!(reply.trace(), "E(FATAL 42501) EOF"),
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(proxy.connect().query("select 1").value(), "1", "and databases are for everybody");
    proxy.stop();
}
