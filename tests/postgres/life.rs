//! Start, reload and end of the process.

use crate::support::{Config, Db, Proxy, Refused, Wire, msg, signal, until};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

#[test]
fn sigterm_finishes_transactions_and_then_leaves() {
    let db = Db::new();
    db.run(&["create table t (id int)"]);
    let mut proxy = Proxy::start(&db, Config::of_size(2).with("drain", "deadline = \"20s\""));
    let mut idle = proxy.connect();
    idle.batch("select 1");
    let mut busy = proxy.connect();
    busy.batch("begin");
    busy.batch("insert into t values (1)");
    signal(proxy.pid(), "TERM");
    assert_eq!(idle.recv_to_end().trace(), "E(FATAL 57P01) EOF");
    // Whoever comes now is not served; whoever is in a transaction is.
    until("nobody is let in", || Wire::try_login(proxy.addr(), &proxy.as_app()).is_err());
    busy.batch("insert into t values (2)");
    busy.send(&msg::query("commit"));
    let end = busy.recv_to_end();
    assert_eq!(end.trace(), "C(COMMIT) Z(I) E(FATAL 57P01) EOF");
    assert_eq!(proxy.wait().code(), Some(0));
    assert_eq!(db.value("select count(*) from t"), "2");
    until("no backend is left", || db.pids().is_empty());
}

#[test]
fn a_transaction_without_end_does_not_outlast_the_deadline() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, Config::of_size(2).with("drain", "deadline = \"500ms\""));
    let mut endless = proxy.connect();
    endless.batch("begin");
    signal(proxy.pid(), "TERM");
    let begun = Instant::now();
    assert_eq!(endless.recv_to_end().trace(), "E(FATAL 57P01) EOF");
    proxy.wait();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(5), "after {took:?}");
}

#[test]
fn a_second_signal_ends_it_now() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, Config::of_size(2).with("drain", "deadline = \"60s\""));
    let mut endless = proxy.connect();
    endless.batch("begin");
    let mut idle = proxy.connect();
    signal(proxy.pid(), "TERM");
    assert_eq!(idle.recv_to_end().trace(), "E(FATAL 57P01) EOF", "the first signal has been seen");
    signal(proxy.pid(), "TERM");
    proxy.wait();
    assert!(endless.recv_to_end().closed);
}

#[test]
fn sighup_with_a_bad_file_changes_nothing_and_says_why() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, Config::one_backend().with("pool", "max_wait = \"100ms\""));
    let mut client = proxy.connect();
    client.batch("begin");
    proxy.change("pool", "size = 0");
    signal(proxy.pid(), "HUP");
    until("the fault is in the log", || {
        proxy.log().contains("pool.size") || proxy.log().contains("[pool] size")
    });
    assert_eq!(proxy.connect().query("select 1").code(), "53300", "the pool is as small as before");
    client.batch("commit");
    client.bye();
    proxy.stop();
}

#[test]
fn sighup_with_a_good_file_takes_effect_without_dropping_a_session() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, Config::one_backend().with("pool", "max_wait = \"100ms\""));
    let mut first = proxy.connect();
    first.batch("begin");
    let mut second = proxy.connect();
    assert_eq!(second.query("select 1").code(), "53300");
    proxy.change("pool", "size = 2");
    signal(proxy.pid(), "HUP");
    until("there is room for both", || second.query("select 1").error().is_none());
    assert_eq!(first.query("select 2").value(), "2");
    first.batch("commit");
    drop((first, second));
    proxy.stop();
}

/// The program with these arguments, ended.
fn bursar(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bursar"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

#[test]
fn a_bad_configuration_is_refused_with_file_line_and_key() {
    let dir = crate::support::Cluster::shared().subdir("bad-config");
    let file = dir.join("config.toml");
    std::fs::write(&file, "[pool]\nmode = \"transaction\"\nsizze = 3\n\n[drain]\ndeadline = 5\n")
        .expect("written");
    let file = file.to_str().expect("a path of plain letters");
    for arguments in [vec!["--config", file], vec!["check", "--config", file]] {
        let output = bursar(&arguments);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(64), "{said}");
        for piece in ["config.toml:3", "sizze", "size", "config.toml:6", "deadline"] {
            assert!(said.contains(piece), "{piece} in: {said}");
        }
    }
}

#[test]
fn check_tries_the_server() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("user.app", "password = \"unused\""));
    let file = proxy.config_file();
    let checked = bursar(&["check", "--config", file.to_str().expect("plain")]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    proxy.stop();
}

#[test]
fn a_port_in_use_is_a_failure() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let file = proxy.config_file();
    let second = bursar(&["--config", file.to_str().expect("plain")]);
    assert_eq!(second.status.code(), Some(1), "{}", String::from_utf8_lossy(&second.stderr));
    assert!(TcpStream::connect(proxy.addr()).is_ok(), "the first one goes on");
    proxy.stop();
}

/// Nobody is half let in: a login during the drain is told so, or not taken at all.
#[test]
fn a_login_during_the_drain_is_told_so() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, Config::of_size(2));
    let mut busy = proxy.connect();
    busy.batch("begin");
    signal(proxy.pid(), "TERM");
    until("it is not let in", || match Wire::try_login(proxy.addr(), &proxy.as_app()) {
        Ok(_) => false,
        Err(Refused::Said(reply)) => {
            assert!(
                reply.messages.is_empty() || reply.code() == "57P01" || reply.code() == "57P03",
                "{reply:?}"
            );
            true
        }
        Err(Refused::Io(_)) => true,
    });
    busy.bye();
    assert_eq!(proxy.wait().code(), Some(0));
}
