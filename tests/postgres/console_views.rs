//! What the console shows: every view of its page through psql, and their numbers after a known
//! workload.

use crate::support::watch::{metric, printed, psql, row, rows};
use crate::support::{Config, Db, Login, Proxy, Wire, msg};

const PAGE: &str = include_str!("../../docs/console.md");

/// Columns of PgBouncer that dashboards and exporters read.
const PGBOUNCERS: &[(&str, &[&str])] = &[
    (
        "pools",
        &["database", "user", "cl_active", "cl_waiting", "sv_active", "sv_idle", "maxwait", "pool_mode"],
    ),
    ("clients", &["type", "user", "database", "state", "addr", "port"]),
    ("servers", &["type", "user", "database", "state", "addr", "port", "remote_pid"]),
    ("stats", &["database", "total_xact_count", "total_query_count", "total_wait_time", "avg_wait_time"]),
    ("config", &["key", "value"]),
];

/// What psql prints for a statement in the console; no warning may be among it.
fn shown(proxy: &Proxy, statement: &str) -> String {
    let output = psql(proxy, "app", statement);
    assert!(output.status.success() && output.stderr.is_empty(), "{statement}: {}", printed(&output));
    printed(&output)
}

fn header(text: &str) -> Vec<&str> {
    text.lines().next().unwrap_or_default().split(',').collect()
}

/// Views that the page lists: the name, and the columns it names, with whether these are all.
fn documented() -> Vec<(&'static str, Vec<&'static str>, bool)> {
    let table = PAGE.lines().skip_while(|line| !line.starts_with("| view |")).skip(2);
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
    assert_eq!(views.len(), 27, "{views:?}");
    for (name, columns, all) in views {
        let text = shown(&proxy, &format!("SHOW {name}"));
        let header = header(&text);
        assert!(header.ends_with(&columns), "{name}: {header:?} instead of {columns:?}");
        assert!(!all || header.len() == columns.len(), "{name} has more columns: {header:?}");
        let select = shown(&proxy, &format!("SELECT * FROM bursar.{name} LIMIT 0"));
        assert_eq!(select.trim_end(), header.join(","), "SELECT from {name}");
    }
    for (name, columns) in PGBOUNCERS {
        let text = shown(&proxy, &format!("show {name}"));
        for column in *columns {
            assert!(header(&text).contains(column), "{name} has no {column}: {text}");
        }
    }
    assert!(shown(&proxy, "SHOW VERSION").contains("Bursar"));
    assert!(shown(&proxy, "SHOW HELP").lines().count() > 10);
    assert!(shown(&proxy, "SHOW LEASES").contains(",x,acme,"));
    assert!(shown(&proxy, "SHOW TENANTS").contains("\nacme,"));
    let request = shown(&proxy, "SELECT * FROM bursar.request('x')");
    assert_eq!(request.lines().count(), 2, "{request}");
    assert!(request.lines().nth(1).is_some_and(|row| row.starts_with("x,acme,")), "{request}");
    let counted = shown(&proxy, "select leases_total, peak_leases from bursar.request('x')");
    assert_eq!(counted, "leases_total,peak_leases\n1,1\n");
    let nobody = shown(&proxy, "SELECT * FROM bursar.request('nobody')");
    assert_eq!(nobody.lines().count(), 1, "{nobody}");
    drop(held);
    proxy.stop();
}

#[test]
fn a_look_opens_no_backend() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut console = proxy.console();
    console.batch("show pools");
    let show = console.ask(&[msg::unnamed("show pools"), msg::sync()].concat());
    assert!(show.trace().starts_with("1 2 T ") && show.trace().ends_with("C(SHOW) Z(I)"), "{show:?}");
    assert_eq!(db.pids(), Vec::<i32>::new());
    console.bye();
    proxy.stop();
}

#[test]
fn shared_statements_are_counted_and_listed() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut console = proxy.console();
    let (mut first, mut second) = (proxy.connect(), proxy.connect());
    let parse = [msg::parse("mine", "select 41 + 1"), msg::sync()].concat();
    let bind = [msg::bind("", "mine"), msg::execute("", 0), msg::sync()].concat();
    assert_eq!(first.ask(&parse).trace(), "1 Z(I)");
    assert_eq!(second.ask(&parse).trace(), "1 Z(I)");
    assert_eq!(second.ask(&[msg::parse("other", "select 'secret'"), msg::sync()].concat()).trace(), "1 Z(I)");
    for client in [&mut first, &mut second] {
        assert_eq!(client.ask(&bind).value(), "42");
    }

    let seen = "select name, names, bytes, statement, database, user from bursar.prepared";
    let named = |number: u32, names: u32, bytes: u32| {
        [&format!("bursar_{number}"), &*names.to_string(), &*bytes.to_string(), "-", db.name(), "app"]
            .map(str::to_owned)
            .to_vec()
    };
    assert_eq!(rows(&mut console, seen), [named(1, 2, 16), named(2, 1, 18)]);
    let parses = "select total_client_parse_count, total_server_parse_count, total_bind_count \
                  from bursar.stats where database = '$DB'"
        .replace("$DB", db.name());
    assert_eq!(row(&mut console, &parses), ["3", "2", "2"]);
    let clients = "select prepared_statements from bursar.clients where database = '$DB' order by id"
        .replace("$DB", db.name());
    assert_eq!(rows(&mut console, &clients), [["1"], ["2"]]);
    assert_eq!(row(&mut console, "select prepared_statements from bursar.servers"), ["2"]);
    let pool = format!("{{pool=\"app@{}\"}}", db.name());
    for (name, value) in [
        ("client_parses_total", 3.0),
        ("server_parses_total", 2.0),
        ("binds_total", 2.0),
        ("statements", 2.0),
        ("bytes", 34.0),
    ] {
        assert_eq!(metric(&proxy, &format!("bursar_prepared_{name}{pool}")), value, "{name}");
    }

    assert_eq!(second.query("deallocate other").trace(), "C(DEALLOCATE) Z(I)");
    assert_eq!(first.ask(&[msg::close_statement("mine"), msg::sync()].concat()).trace(), "3 Z(I)");
    assert_eq!(rows(&mut console, &clients), [["0"], ["1"]]);
    assert_eq!(rows(&mut console, seen), [named(1, 1, 16), named(2, 0, 18)]);
    assert_eq!(second.query("discard all").trace(), "C(DISCARD ALL) Z(I)");
    assert_eq!(rows(&mut console, &clients), [["0"], ["0"]]);
    assert_eq!(row(&mut console, "select prepared_statements from bursar.servers"), ["0"]);
    proxy.stop();
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
    let logins =
        format!("select total_client_login_count from bursar.stats where database = '{}'", db.name());
    assert_eq!(row(&mut console, &logins), ["1"]);
    let refused = Login::new("app", db.name()).with("bursar.nonsense", "x");
    assert!(Wire::try_login(proxy.addr(), &refused).is_err());

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
    assert_eq!(row(&mut console, &logins), ["2"], "without the one refused");
    let logins = ["ok", "protocol"].map(|result| format!("bursar_logins_total{{result=\"{result}\"}}"));
    assert_eq!(logins.map(|name| metric(&proxy, &name)), [2.0, 1.0]);
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
    let asked = "select request_time from bursar.clients where request_time <> ''";
    let served = "select application_name, request_time from bursar.servers where state = 'active'";
    let asked = row(&mut console, &format!("{asked} and id = {}", held[2])).remove(0);
    assert_eq!(row(&mut console, served), ["", &asked], "this client has no name");
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
