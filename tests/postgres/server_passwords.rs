//! Passwords towards the server that a program prints (`password_command`): long ones, ones that change, and what
//! is told where there is none.

use crate::support::{Cluster, Config, Db, Login, Proxy, Refused, Reply, Wire, until};
use std::path::Path;

/// A proxy that asks `script` for the password of `plain_user`, whom the server asks for it in the clear.
fn start(db: &Db<'_>, script: &str, more: &[&str]) -> Proxy {
    let table = format!("database.{}", db.name());
    let command = format!("password_command = [\"sh\", \"-c\", \"{script}\"]");
    let config = Config::of_size(4)
        .with(&table, "host = \"127.0.0.1\"")
        .with(&table, &format!("port = {}", db.cluster().addr().port()))
        .with("pool", "max_wait = \"15s\"")
        .with(&table, &command);
    let config = more.iter().fold(config, |config, line| config.with(&table, line));
    Proxy::start(db, config)
}

fn log_in(proxy: &Proxy, db: &Db<'_>) -> Wire {
    Wire::login(proxy.addr(), &Login::new("plain_user", db.name()))
}

/// The role's password on the server, and what the script prints.
fn set(db: &Db<'_>, file: &Path, password: &str) {
    db.cluster().admin().batch(&format!(
        "set password_encryption = 'scram-sha-256'; alter role plain_user password '{password}'"
    ));
    std::fs::write(file, format!("{password}\n")).expect("written");
}

#[test]
fn a_token_of_many_kib_passes_and_is_asked_for_again_when_it_has_expired() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    let dir = tempfile::tempdir().expect("a directory");
    let (file, runs) = (dir.path().join("token"), dir.path().join("runs"));
    let count = || std::fs::read_to_string(&runs).unwrap_or_default().lines().count();
    let token = |letter: &str| letter.repeat(12 * 1024);
    set(&db, &file, &token("a"));
    let script = format!("echo run >> {}; cat {}", runs.display(), file.display());
    let proxy = start(&db, &script, &["password_command_ttl = \"1h\""]);
    let mut clients: Vec<Wire> = (0..3).map(|_| log_in(&proxy, &db)).collect();
    // Three backends and one run.
    for client in &mut clients {
        client.batch("begin");
    }
    assert_eq!(clients[0].query("select current_user").value(), "plain_user");
    for client in &mut clients {
        client.batch("commit");
    }
    assert_eq!((db.pids().len(), count()), (3, 1));

    // Another token: what is known of the old one is forgotten as soon as the server refuses it.
    set(&db, &file, &token("b"));
    db.terminate_backends();
    until("the new token is used", || {
        log_in(&proxy, &db).query("select current_user").rows() == [[Some("plain_user".to_owned())]]
    });
    assert_eq!(count(), 2);
    let log = proxy.log();
    assert!(log.contains("28P01"), "{log}");
    assert!(!log.contains(&token("a")[..64]) && !log.contains(&token("b")[..64]));
    drop(clients);
    proxy.stop();
}

#[test]
fn a_command_that_fails_is_told_in_the_log_and_its_output_nowhere() {
    let db = Db::new();
    let script = "echo hunter2; echo the vault is sealed >&2; exit 7";
    let proxy = start(&db, script, &["max_wait = \"1s\""]);
    let said = refused(&proxy, &db);
    assert_eq!(said.trace(), "E(FATAL 57P03) EOF");
    let detail = said.error().and_then(|error| error.field(b'D')).expect("a detail");
    assert_eq!(detail, "the password command failed: exit status: 7");
    let log = proxy.log();
    let complaint = log.lines().find(|line| line.contains("a password command complains")).expect("a line");
    assert!(
        complaint.contains("said=\"the vault is sealed\"") && complaint.contains("program=\"sh\""),
        "{complaint}"
    );
    assert!(!log.contains("hunter2"), "{log}");
    // Neither is it in what shows the configuration, where arguments could be secrets.
    let shown = format!("{:?}", proxy.console().query("show config"));
    assert!(shown.contains("password_command") && !shown.contains("hunter2"), "{shown}");
    proxy.stop();
}

#[test]
fn a_command_that_does_not_end_is_ended() {
    let db = Db::new();
    let dir = tempfile::tempdir().expect("a directory");
    let pids = dir.path().join("pids");
    let script = format!("echo $$ >> {}; exec sleep 600", pids.display());
    let proxy = start(&db, &script, &["password_command_timeout = \"200ms\"", "max_wait = \"1s\""]);
    let said = refused(&proxy, &db);
    let detail = said.error().and_then(|error| error.field(b'D')).expect("a detail");
    assert_eq!(detail, "the password command did not end in time");
    let started = || std::fs::read_to_string(&pids).expect("it ran");
    let first = started().lines().next().expect("a process").to_owned();
    until("the first one is gone", || !is_running(&first));
    // Nor does the one that runs while Bursar ends outlive it.
    proxy.stop();
    for pid in started().lines() {
        until("none is left", || !is_running(pid));
    }
}

/// Whether the script of this process sleeps: not one that has ended and that nobody has waited for yet.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.contains("(sleep)") && !stat.contains(") Z ")
}

fn refused(proxy: &Proxy, db: &Db<'_>) -> Reply {
    match Wire::try_login(proxy.addr(), &Login::new("plain_user", db.name())) {
        Err(Refused::Said(reply)) => reply,
        Err(Refused::Io(error)) => panic!("{error}"),
        Ok(_) => panic!("the login was accepted"),
    }
}
