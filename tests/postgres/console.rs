//! The admin console as psql and monitoring use it, and the HTTP side.

use crate::support::{Config, Db, Proxy, Wire, msg, until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

const VIEWS: &[(&str, &[&str])] = &[
    (
        "pools",
        &["database", "user", "cl_active", "cl_waiting", "sv_active", "sv_idle", "maxwait", "pool_mode"],
    ),
    ("clients", &["type", "user", "database", "state", "addr", "port"]),
    ("servers", &["type", "user", "database", "state", "addr", "port", "remote_pid"]),
    ("stats", &["database", "total_xact_count", "total_query_count", "total_wait_time", "avg_wait_time"]),
    ("leases", &["id", "backend_pid", "client", "request", "tenant", "hold_ms", "state", "pin_reason"]),
    ("requests", &["id", "tenant", "leases_now", "leases_peak", "leases_total", "waiting"]),
    ("tenants", &["tenant", "cap", "in_use", "queue", "rejects", "leaks"]),
    ("leaks", &["id", "class", "request", "tenant", "backend_pid", "outcome"]),
    ("budgets", &["dimension", "limit", "mode", "near", "would", "enforced"]),
    ("config", &["key", "value"]),
];

#[test]
fn psql_shows_every_view() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2));
    let mut client = proxy.connect_for("acme", "r1");
    client.batch("begin");
    let url = format!("postgresql://app@{}/bursar", proxy.addr());
    let run = |command: &str| {
        let psql = Command::new(db.cluster().program("psql"))
            .args(["-X", "-A", "-F", ",", &url, "-c", command])
            .output()
            .expect("psql runs");
        let error = String::from_utf8_lossy(&psql.stderr).into_owned();
        assert!(psql.status.success() && error.is_empty(), "{command}: {error}");
        String::from_utf8(psql.stdout).expect("UTF-8")
    };
    for (view, columns) in VIEWS {
        let shown = run(&format!("SHOW {}", view.to_uppercase()));
        let header: Vec<&str> = shown.lines().next().expect("a header").split(',').collect();
        for column in *columns {
            assert!(header.contains(column), "{view} has no {column}: {header:?}");
        }
    }
    assert!(run("show version").contains("Bursar"));
    assert!(run("show help").lines().count() > 10);
    assert!(run("show leases").contains("r1"));
    assert!(run("show tenants").contains("acme"));
    let request = run("select leases_total, peak_leases from bursar.request('r1')");
    assert_eq!(request.lines().nth(1), Some("1,1"), "{request}");
    client.bye();
    proxy.stop();
}

#[test]
fn an_unknown_command_is_an_error_and_no_more() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut console = proxy.console();
    for command in ["show nonsense", "drop table pools", "selec", "select * from bursar.nonsense"] {
        let reply = console.query(command);
        assert!(reply.trace().starts_with("E(42") && reply.trace().ends_with("Z(I)"), "{command}: {reply:?}");
    }
    assert!(console.query("show version").error().is_none());
    let show = [msg::parse("", "show pools"), msg::bind("", ""), msg::execute("", 0), msg::sync()].concat();
    assert!(console.ask(&show).trace().ends_with("C(SHOW) Z(I)"), "the extended protocol");
    console.bye();
    proxy.stop();
}

#[test]
fn pause_holds_work_back_and_resume_lets_it_go() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("pool", "max_wait = \"20s\""));
    let mut client = proxy.connect();
    client.batch("select 1");
    let mut console = proxy.console();
    assert!(console.query("pause").error().is_none());
    client.send(&msg::query("select 2"));
    assert!(client.try_recv(Duration::from_millis(100)).is_err(), "it waits");
    assert!(console.query("resume").error().is_none());
    assert_eq!(client.recv_reply().value(), "2");
    drop((client, console));
    proxy.stop();
}

#[test]
fn kill_ends_sessions_and_their_backends() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2));
    let mut console = proxy.console();
    let mut client = proxy.connect();
    client.batch("begin");
    assert!(console.query(&format!("kill {}", db.name())).error().is_none());
    assert_eq!(client.recv_to_end().trace(), "E(FATAL 57P01) EOF");
    until("its backends are gone", || db.pids().is_empty());
    // PgBouncer's way back in.
    assert!(console.query(&format!("resume {}", db.name())).error().is_none());
    assert_eq!(proxy.connect().query("select 1").value(), "1");
    drop(console);
    proxy.stop();
}

#[test]
fn shutdown_ends_the_process() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, Config::one_backend());
    let mut console = proxy.console();
    console.send(&msg::query("shutdown"));
    assert_eq!(proxy.wait().code(), Some(0));
}

/// Status line and body.
fn get(addr: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(addr).expect("HTTP listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

#[test]
fn http_tells_health_and_metrics() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect_for("acme", "r1");
    client.batch("select 1");
    for path in ["/livez", "/readyz", "/healthz/db", "/metrics"] {
        let (status, body) = get(proxy.admin_addr(), path);
        assert!(status.contains(" 200"), "{path}: {status}\n{body}");
    }
    let (_, metrics) = get(proxy.admin_addr(), "/metrics");
    assert!(metrics.contains("# TYPE bursar_") && metrics.contains("acme"), "{metrics}");
    assert!(!metrics.contains("r1\""), "a request id in a label:\n{metrics}");
    assert!(get(proxy.admin_addr(), "/nonsense").0.contains(" 404"));
    client.bye();
    proxy.stop();
}

/// Nobody else's pool is touched by a look at the console.
#[test]
fn the_console_opens_no_backend() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut console: Wire = proxy.console();
    console.batch("show pools");
    assert_eq!(db.pids(), Vec::<i32>::new());
    console.bye();
    proxy.stop();
}
