//! The proxy as its keepers see it: the console, HTTP, the memory of its process, its other subcommands.

use super::{Cluster, Proxy, Wire};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output};

/// Status and body of `GET path` on the admin address; `None` if nobody answers there.
pub(crate) fn get(proxy: &Proxy, path: &str) -> Option<(u16, String)> {
    get_from(proxy.admin_addr(), path, "")
}

/// The same as this user.
pub(crate) fn get_as(proxy: &Proxy, path: &str, user: &str, password: &str) -> Option<(u16, String)> {
    let credentials = STANDARD.encode(format!("{user}:{password}"));
    get_from(proxy.admin_addr(), path, &format!("Authorization: Basic {credentials}\r\n"))
}

/// Status and body of `GET path` with these headers at this address; `None` if nobody answers there.
pub(crate) fn get_from(address: SocketAddr, path: &str, headers: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(super::PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n{headers}Connection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// The status of `GET path`; 0 if nobody answers.
pub(crate) fn status(proxy: &Proxy, path: &str) -> u16 {
    get(proxy, path).map_or(0, |(status, _)| status)
}

/// Every series of /metrics, `name{labels}`, with its value. Fails on a line that is none.
pub(crate) fn series(proxy: &Proxy) -> BTreeMap<String, f64> {
    let (status, text) = get(proxy, "/metrics").expect("an answer of /metrics");
    assert_eq!(status, 200, "{text}");
    let parse = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| parse(line).unwrap_or_else(|| panic!("not a series: {line}"))).collect()
}

/// One series of /metrics; 0 if it is not there.
pub(crate) fn metric(proxy: &Proxy, name: &str) -> f64 {
    series(proxy).get(name).copied().unwrap_or_default()
}

/// The most memory the process ever had, in MiB.
pub(crate) fn peak_mib(proxy: &Proxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("its /proc entry");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let kib = line.split_ascii_whitespace().next().and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("a number of KiB") / 1024
}

/// Runs `bursar` with these arguments to its end.
pub(crate) fn bursar(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bursar")).args(arguments).output().expect("the program runs")
}

/// Runs a statement in the console by psql, as CSV.
pub(crate) fn psql(proxy: &Proxy, user: &str, statement: &str) -> Output {
    let mut command = Command::new(Cluster::shared().program("psql"));
    command.args(["-X", "-w", "--csv", "-v", "ON_ERROR_STOP=1", "-d", "bursar", "-U", user]);
    command.args(["-h", "127.0.0.1", "-p", &proxy.addr().port().to_string(), "-c", statement]);
    command.output().expect("psql runs")
}

/// What a program printed, both streams.
pub(crate) fn printed(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

/// Rows of a console query as text, `-` for NULL.
pub(crate) fn rows(console: &mut Wire, sql: &str) -> Vec<Vec<String>> {
    let reply = console.query(sql);
    assert!(reply.error().is_none(), "{sql}: {reply:?}");
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    reply.rows().into_iter().map(|row| row.into_iter().map(text).collect()).collect()
}

/// The only row of a console query.
pub(crate) fn row(console: &mut Wire, sql: &str) -> Vec<String> {
    let mut rows = rows(console, sql);
    assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
    rows.remove(0)
}

/// Leases of a request so far, as the console tells.
pub(crate) fn leases_of(proxy: &Proxy, request: &str) -> String {
    proxy.console().query(&format!("select leases_total from bursar.request('{request}')")).value()
}

/// Leases held now, as the console tells.
pub(crate) fn leases(proxy: &Proxy) -> usize {
    proxy.console().query("show leases").rows().len()
}
