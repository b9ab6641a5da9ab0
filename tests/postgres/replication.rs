//! Replication connections: refused unless the configuration says otherwise, and then passed through
//! to a server connection of their own, by PostgreSQL's own programs.

use crate::support::impostor::{BAIT, Impostor, Script, Then, header};
use crate::support::watch::{printed, row, rows};
use crate::support::{Cluster, Config, Db, Login, Proxy, Refused, Wire, msg, signal, until, wire};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Before a cluster of its own: positions in the log are the server's, not a database's.
fn start(db: &Db<'_>) -> Proxy {
    db.run(&["create table kept (id int, note text)"]);
    Proxy::start(db, Config::one_backend().with("pool", "replication = \"pass\""))
}

/// One of PostgreSQL's programs, through the proxy.
fn program(proxy: &Proxy, name: &str) -> Command {
    let mut command = Command::new(Cluster::shared().program(name));
    command.args(["-w", "-U", "repl", "-h", "127.0.0.1", "-p", &proxy.addr().port().to_string()]);
    command
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", printed(output));
    printed(output)
}

fn logical(db: &Db<'_>) -> Login {
    Login::new("repl", db.name()).with("replication", "database")
}

#[test]
fn it_is_refused_with_the_way_out_unless_the_configuration_says_otherwise() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    for kind in ["true", "database"] {
        let login = Login::new("repl", db.name()).with("replication", kind);
        let Err(Refused::Said(told)) = Wire::try_login(proxy.addr(), &login) else { panic!("let in") };
        assert_eq!(told.trace(), "E(FATAL 0A000) EOF");
        let hint = told.messages[0].field(b'H').expect("a hint");
        assert!(hint.contains("replication = \"pass\""), "{hint}");
    }
    let answer =
        program(&proxy, "pg_receivewal").args(["-D", "/tmp", "--no-loop"]).output().expect("it runs");
    assert!(!answer.status.success() && printed(&answer).contains("replication connections are not let in"));
    // No replication after all, says PostgreSQL of these.
    let login = proxy.as_app().with("replication", "off");
    Wire::login(proxy.addr(), &login).batch("select 1");
    proxy.stop();
}

#[test]
fn pg_receivewal_gets_the_log_byte_for_byte() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    let proxy = start(&db);
    let dir = tempfile::tempdir().expect("a directory");
    let segment = db.value("select pg_walfile_name(pg_current_wal_lsn())");
    let mut receiver = program(&proxy, "pg_receivewal");
    let receiver = receiver.arg("-D").arg(dir.path()).arg("--no-loop").stderr(Stdio::null());
    let mut receiver = receiver.spawn().expect("it runs");
    until("a walsender works", || {
        db.ask("select count(*) from pg_stat_replication where application_name = 'pg_receivewal'") == "1"
    });
    db.run(&["insert into kept select n, repeat('x', 900) from generate_series(1, 8000) n"]);
    db.value("select pg_switch_wal()");
    let whole = dir.path().join(&segment);
    until("the segment is whole", || whole.exists());

    let mut console = proxy.console();
    let shown = row(
        &mut console,
        "select replication, state, \"user\" from bursar.clients where replication <> 'none'",
    );
    assert_eq!(shown, ["physical", "active", "repl"]);
    assert!(rows(&mut console, "show leases").is_empty(), "none of the pool's");

    // A drain tells it so, and it ends.
    signal(proxy.pid(), "TERM");
    assert!(!receiver.wait().expect("its end").success());
    let mut proxy = proxy;
    assert_eq!(proxy.wait().code(), Some(0));
    let sent = std::fs::read(&whole).expect("the copy");
    let kept = std::fs::read(cluster.socket_dir().join("data/pg_wal").join(&segment)).expect("the log");
    assert!(sent == kept, "{} bytes differ from {}", sent.len(), kept.len());
    until("the walsender is gone", || db.ask("select count(*) from pg_stat_replication") == "0");
}

#[test]
fn pg_recvlogical_gets_changes() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    let proxy = start(&db);
    db.value("select 1");
    let mut admin = Wire::login(cluster.addr(), &Login::new("postgres", db.name()));
    admin.batch("create publication all_of_it for all tables");
    let recvlogical = |arguments: &[&str]| {
        let mut command = program(&proxy, "pg_recvlogical");
        command.args(["-d", db.name(), "-S", "a_slot"]).args(arguments);
        good(&command.output().expect("it runs"))
    };
    recvlogical(&["--create-slot", "-P", "pgoutput"]);
    db.run(&["insert into kept values (7, 'a change that is told')"]);
    let end = db.value("select pg_current_wal_lsn()");
    let file = db.cluster().subdir("recvlogical").join("changes");
    let file = file.to_str().expect("a path of plain letters");
    let options = ["-o", "proto_version=1", "-o", "publication_names=all_of_it"];
    recvlogical(&[&["--start", "--no-loop", "--endpos", &end, "-f", file][..], &options].concat());
    let changes = std::fs::read(file).expect("changes");
    let told = String::from_utf8_lossy(&changes);
    assert!(told.contains("a change that is told"), "{told:?}");
    recvlogical(&["--drop-slot"]);
    proxy.stop();
}

#[test]
fn pg_basebackup_makes_a_backup_that_verifies() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    let proxy = start(&db);
    let dir = tempfile::tempdir().expect("a directory");
    let to = dir.path().join("backup");
    let mut backup = program(&proxy, "pg_basebackup");
    good(&backup.arg("-D").arg(&to).args(["-X", "stream", "-c", "fast"]).output().expect("it runs"));
    let mut verify = Command::new(beside(&cluster, "pg_verifybackup"));
    good(&verify.arg(&to).output().expect("it runs"));
    let left = || db.ask("select count(*) from pg_stat_replication");
    until("no walsender is left", || left() == "0");
    proxy.stop();
}

fn beside(cluster: &Cluster, name: &str) -> std::path::PathBuf {
    let path = cluster.program(name);
    if path.components().count() > 1 { path } else { Path::new("/usr/bin").join(name) }
}

#[test]
fn what_the_client_says_at_start_up_reaches_the_server_and_a_cancel_too() {
    let db = Db::new();
    let config = Config::one_backend()
        .with("pool", "replication = \"pass\"")
        .with("auth", "method = \"scram-sha-256\"")
        .with("user.repl", "password = \"of repl\"")
        .with("user.app", "password = \"of app\"");
    let proxy = Proxy::start(&db, config);
    let wrong = logical(&db).password("of app");
    let Err(Refused::Said(told)) = Wire::try_login(proxy.addr(), &wrong) else { panic!("let in") };
    assert_eq!(told.messages.last().expect("a word").to_string(), "E(FATAL 28P01)");
    let login =
        logical(&db).password("of repl").with("application_name", "cdc").with("options", "-c work_mem=7MB");
    let mut client = Wire::login(proxy.addr(), &login);
    assert_eq!(client.query("show work_mem").value(), "7MB");
    let own = "select application_name, backend_type, pid from pg_stat_activity where pid = pg_backend_pid()";
    let seen = client.query(own).rows().remove(0).into_iter().flatten().collect::<Vec<_>>();
    assert_eq!(seen, ["cdc".to_owned(), "walsender".to_owned(), client.pid.to_string()]);
    assert_eq!(client.query("IDENTIFY_SYSTEM").trace(), "T D C(IDENTIFY_SYSTEM) Z(I)");

    client.send(&msg::query("select pg_sleep(60)"));
    until("it sleeps", || {
        db.ask("select count(*) from pg_stat_activity where datname = $DB and wait_event = 'PgSleep'") == "1"
    });
    wire::cancel(proxy.addr(), client.pid, &[1, 2, 3, 4]);
    client.cancel();
    assert_eq!(client.recv_reply().trace(), "T E(57014) Z(I)");

    // The pool of one is free for others all the while.
    assert_eq!(Wire::login(proxy.addr(), &proxy.as_app().password("of app")).query("select 1").value(), "1");
    // What the server refuses is told in its own words.
    let Err(Refused::Said(told)) =
        Wire::try_login(proxy.addr(), &proxy.as_app().password("of app").with("replication", "1"))
    else {
        panic!("let in")
    };
    assert_eq!(told.messages.last().expect("a word").to_string(), "E(FATAL 42501)");
    client.bye();
    until("the walsender is gone", || {
        db.ask("select count(*) from pg_stat_activity where datname = $DB and backend_type = 'walsender'")
            == "0"
    });
    proxy.stop();
}

#[test]
fn a_stream_is_ended_between_two_messages_by_a_drain_and_by_kill() {
    let db = Db::new();
    let mut proxy = start(&db);
    for by_kill in [true, false] {
        let physical = Login::new("repl", db.name()).with("replication", "true");
        let mut client = Wire::login(proxy.addr(), &physical);
        let position = client.query("IDENTIFY_SYSTEM").rows()[0][2].clone().expect("a position");
        client.send(&msg::query(&format!("START_REPLICATION PHYSICAL {position}")));
        assert_eq!(client.recv().expect("an answer").kind, b'W');
        if by_kill {
            let id =
                row(&mut proxy.console(), "select id from bursar.clients where replication = 'physical'");
            proxy.console().batch(&format!("kill_client {}", id[0]));
        } else {
            signal(proxy.pid(), "TERM");
        }
        let end = client.recv_to_end();
        let last = end.messages.last().expect("last words").to_string();
        assert!(end.closed && last == "E(FATAL 57P01)", "{end:?}");
        assert!(end.messages[..end.messages.len() - 1].iter().all(|message| message.kind == b'd'), "{end:?}");
    }
    assert_eq!(proxy.wait().code(), Some(0));
}

/// The drain comes in the middle of a message: its rest is waited for, and what begins behind it is not.
#[test]
fn last_words_wait_for_the_rest_of_a_message() {
    let db = Db::new();
    let half = [msg::message(b'W', &[0, 0, 0]), header(b'd', 4 + 60_000), vec![b'a'; 20_000]].concat();
    let rest = [vec![b'z'; 40_000], header(b'd', 4 + 1000), vec![b'b'; 999]].concat();
    let impostor = Impostor::start(Script::answer(half, Then::OnCue(rest)));
    let config = Config::one_backend()
        .with("pool", "replication = \"pass\"")
        .with("database.evil", &format!("port = {}", impostor.port()));
    let mut proxy = Proxy::start(&db, config);
    let mut client = Wire::login(proxy.addr(), &Login::new("repl", "evil").with("replication", "true"));
    client.send(&msg::query(BAIT));
    assert_eq!(client.recv().expect("an answer").kind, b'W');
    signal(proxy.pid(), "TERM");
    until("it takes nobody any more", || Wire::open(proxy.addr()).is_err());
    impostor.say_on();
    let end = client.recv_to_end();
    assert_eq!(end.trace(), "d E(FATAL 57P01) EOF");
    assert_eq!(end.messages[0].body.len(), 60_000);
    assert_eq!(proxy.wait().code(), Some(0));
}
