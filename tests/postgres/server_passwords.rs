//! Passwords towards the server that a program prints (`password_command`) or a file holds (`password_file`): long
//! ones, ones that change, and what is told where there is none.

use crate::support::{Cluster, Config, Db, Login, Proxy, Refused, Reply, Wire, until};
use std::path::{Path, PathBuf};

/// A proxy that asks `script` for the password of `plain_user`, whom the server asks for it in the clear.
fn start(db: &Db<'_>, script: &str, more: &[&str]) -> Proxy {
    let command = format!("password_command = [\"sh\", \"-c\", \"{script}\"]");
    let config = over_tcp(db).with(&table(db), &command);
    Proxy::start(db, more.iter().fold(config, |config, line| config.with(&table(db), line)))
}

fn over_tcp(db: &Db<'_>) -> Config {
    Config::of_size(4)
        .with(&table(db), "host = \"127.0.0.1\"")
        .with(&table(db), &format!("port = {}", db.cluster().addr().port()))
        .with("pool", "max_wait = \"15s\"")
}

fn table(db: &Db<'_>) -> String {
    format!("database.{}", db.name())
}

fn log_in(proxy: &Proxy, db: &Db<'_>) -> Wire {
    Wire::login(proxy.addr(), &Login::new("plain_user", db.name()))
}

/// The role's password on the server, and what the script prints.
fn set(db: &Db<'_>, file: &Path, password: &str) {
    set_on_server(db, "plain_user", password);
    std::fs::write(file, format!("{password}\n")).expect("written");
}

fn set_on_server(db: &Db<'_>, role: &str, password: &str) {
    db.cluster().admin().batch(&format!(
        "set password_encryption = 'scram-sha-256'; alter role {role} password '{password}'"
    ));
}

/// A Secret as the kubelet mounts it: `password` is a link into `..data`, and that is a link to the version.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(password: &str) -> Mounted {
        let mounted = Mounted(tempfile::tempdir().expect("a directory"));
        mounted.write(password);
        std::os::unix::fs::symlink("..data/password", mounted.path()).expect("a link");
        mounted
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("password")
    }

    /// Another version: swapped in one step, and the one before is gone.
    fn write(&self, password: &str) {
        let dir = self.0.path();
        let before = std::fs::read_link(dir.join("..data"));
        let now = format!("..{}", std::fs::read_dir(dir).expect("a directory").count());
        std::fs::create_dir(dir.join(&now)).expect("a directory");
        std::fs::write(dir.join(&now).join("password"), format!("{password}\n")).expect("written");
        std::os::unix::fs::symlink(&now, dir.join("..new")).expect("a link");
        std::fs::rename(dir.join("..new"), dir.join("..data")).expect("swapped");
        if let Ok(before) = before {
            std::fs::remove_dir_all(dir.join(before)).expect("removed");
        }
    }
}

fn who(client: &mut Wire) -> String {
    client.query("select current_user").value()
}

/// The next query opens a backend.
fn reopen(proxy: &Proxy) {
    assert_eq!(proxy.console().query("reconnect").trace(), "C(RECONNECT) Z(I)");
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

#[test]
fn a_password_in_a_file_is_read_for_each_new_backend() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    let long = |letter: &str| letter.repeat(12 * 1024);
    // One in the table of the database, which the server asks for in the clear; one in the role's own table.
    let (plain, scram) = (Mounted::new(&long("a")), Mounted::new("first"));
    set_on_server(&db, "plain_user", &long("a"));
    set_on_server(&db, "scram_user", "first");
    let in_file = |file: &Mounted| format!("password_file = \"{}\"", file.path().display());
    let pooled = format!("database.{}_pooled", db.name());
    let config = over_tcp(&db)
        .with("admin", "watch = false")
        .with("user.scram_user", &in_file(&scram))
        .with(&pooled, &format!("dbname = \"{}\"", db.name()))
        .with(&pooled, "host = \"127.0.0.1\"")
        .with(&pooled, &format!("port = {}", cluster.addr().port()))
        .with(&pooled, "user = \"plain_user\"")
        .with(&pooled, &in_file(&plain));
    let proxy = Proxy::start(&db, config);
    let clients = || {
        let to = |database: String| Wire::login(proxy.addr(), &Login::new("scram_user", &database));
        [to(db.name().to_owned()), to(format!("{}_pooled", db.name()))]
    };
    let asked = |mut clients: [Wire; 2]| clients.each_mut().map(who);
    assert_eq!(asked(clients()), ["scram_user", "plain_user"]);

    // Both change, as they do in a cluster: nobody tells Bursar.
    set_on_server(&db, "plain_user", &long("b"));
    set_on_server(&db, "scram_user", "second");
    plain.write(&long("b"));
    scram.write("second");
    reopen(&proxy);
    assert_eq!(asked(clients()), ["scram_user", "plain_user"]);
    let log = proxy.log();
    assert!(!log.contains("28P01"), "{log}");
    assert!(!log.contains("second") && !log.contains(&long("b")[..64]), "{log}");
    proxy.stop();
}

#[test]
fn a_file_that_holds_no_password_for_a_while_is_told_once_and_the_last_one_serves() {
    let db = Db::new();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("password");
    std::fs::write(&file, "plain_user").expect("written");
    let config = over_tcp(&db)
        .with("admin", "watch = false")
        .with(&table(&db), &format!("password_file = \"{}\"", file.display()));
    let proxy = Proxy::start(&db, config);
    let mut client = log_in(&proxy, &db);
    assert_eq!(who(&mut client), "plain_user");
    let lines = |what: &str| proxy.log().lines().filter(|line| line.contains(what)).count();

    for (content, said) in [
        (None, "cannot be read: entity not found"),
        (Some(String::new()), "holds no password: it must be a text that is not empty and has no NUL"),
        (Some("x".repeat(64 * 1024 + 1)), "holds more than 64 KiB"),
    ] {
        match &content {
            Some(text) => std::fs::write(&file, text).expect("written"),
            None => std::fs::remove_file(&file).expect("removed"),
        }
        for _ in 0..2 {
            reopen(&proxy);
            assert_eq!(who(&mut client), "plain_user", "{said}");
        }
        assert_eq!(lines(said), 1, "{}", proxy.log());
        std::fs::write(&file, "plain_user\n").expect("written");
        reopen(&proxy);
        assert_eq!(who(&mut client), "plain_user");
    }
    assert_eq!(lines("the password file can be used again"), 3, "{}", proxy.log());
    proxy.stop();
}

fn refused(proxy: &Proxy, db: &Db<'_>) -> Reply {
    match Wire::try_login(proxy.addr(), &Login::new("plain_user", db.name())) {
        Err(Refused::Said(reply)) => reply,
        Err(Refused::Io(error)) => panic!("{error}"),
        Ok(_) => panic!("the login was accepted"),
    }
}
