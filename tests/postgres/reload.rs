//! Another configuration by SIGHUP or RELOAD: what can change does, nobody is dropped for it, and a bad
//! file is refused whole (interface.md, "Signals and exit").

use crate::support::watch::metric;
use crate::support::{Cluster, Config, Db, Proxy, Wire, msg, signal, until};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Sends SIGHUP and waits until the reload is counted with this result.
fn hang_up(proxy: &Proxy, result: &str) {
    let name = format!("bursar_reloads_total{{result=\"{result}\"}}");
    let before = metric(proxy, &name);
    signal(proxy.pid(), "HUP");
    until("the reload is counted", || metric(proxy, &name) > before);
}

/// It was ended by one that came between its first words and the first turn of the task that hears them.
#[test]
fn a_hangup_at_the_moment_of_the_start_is_a_reload() {
    let file = Cluster::shared().subdir("hangup").join("config.toml");
    let text = "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"off\"\n";
    std::fs::write(&file, text).expect("written");
    for _ in 0..20 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bursar"));
        let command = command.arg("--config").arg(&file).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("listening")));
        signal(child.id(), "HUP");
        assert!(lines.any(|line| line.contains("configuration reloaded")), "{:?}", child.wait());
        signal(child.id(), "TERM");
        assert_eq!(child.wait().expect("its end").code(), Some(0));
    }
}

#[test]
fn a_reload_changes_pools_and_drops_nobody() {
    let db = Db::new();
    let config = Config::one_backend().with("pool", "max_wait = \"400ms\"");
    let mut proxy = Proxy::start(&db, config);
    let mut clients: Vec<Wire> = (0..3).map(|_| proxy.connect()).collect();
    clients[0].batch("begin");
    assert_eq!(clients[1].query("begin").code(), "53300");

    proxy.change("pool", "size = 2");
    hang_up(&proxy, "ok");
    clients[1].batch("begin");
    assert_eq!(clients[2].query("begin").code(), "53300", "two and no more");
    assert_eq!(clients[0].query("select 2").value(), "2", "a transaction goes on");

    proxy.change("pool", "max_wait = \"700ms\"");
    hang_up(&proxy, "ok");
    let asked = Instant::now();
    assert_eq!(clients[2].query("begin").code(), "53300");
    assert!(asked.elapsed() >= Duration::from_millis(700), "refused after {:?}", asked.elapsed());

    proxy.change("pool", "size = 1");
    hang_up(&proxy, "ok");
    clients[0].batch("commit");
    clients[1].batch("commit");
    until("the pool has shrunk", || db.pids().len() == 1);
    for client in &mut clients {
        assert_eq!(client.query("select 1").value(), "1");
    }
    drop(clients);
    proxy.stop();
}

#[test]
fn a_pool_goes_where_its_database_is_now() {
    let (db, other) = (Db::new(), Db::new());
    let config = Config::of_size(2).lazy().with("pool", "max_wait = \"10s\"");
    let mut proxy = Proxy::start(&db, config);
    let (mut busy, mut idle) = (proxy.connect(), proxy.connect());
    let place = |wire: &mut Wire| wire.query("select current_database() || ' ' || current_user").value();
    assert_eq!(place(&mut idle), format!("{} app", db.name()));
    busy.batch("begin");
    let pid = busy.query("select pg_backend_pid()").value();

    proxy.change("database.\"*\"", &format!("dbname = \"{}\"", other.name()));
    proxy.change("database.\"*\"", "user = \"scram_user\"");
    proxy.change("database.\"*\"", "password = \"scram_user\"");
    hang_up(&proxy, "ok");
    assert_eq!(place(&mut idle), format!("{} scram_user", other.name()));
    assert_eq!(busy.query("select pg_backend_pid()").value(), pid, "a transaction stays where it is");
    busy.batch("commit");
    assert_eq!(place(&mut busy), format!("{} scram_user", other.name()));
    until("nobody is left behind", || db.pids().is_empty());

    // A server that is not there, and the way back: who waited has waited for that.
    let port = db.cluster().addr().port();
    proxy.change("database.\"*\"", "port = 1");
    hang_up(&proxy, "ok");
    idle.send(&msg::query("select current_database()"));
    until("it waits", || metric(&proxy, "bursar_breaker_state{upstream=\"127.0.0.1:1\"}") > 0.0);
    proxy.change("database.\"*\"", &format!("port = {port}"));
    hang_up(&proxy, "ok");
    assert_eq!(idle.recv_reply().value(), other.name());

    // The same again changes nothing: backends stay.
    let pids = other.pids();
    hang_up(&proxy, "ok");
    assert_eq!(place(&mut idle), format!("{} scram_user", other.name()));
    assert_eq!(other.pids(), pids);
    proxy.stop();
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("pool", "max_wait = \"1s\""));
    let mut client = proxy.connect();
    client.batch("begin");
    let mut console = proxy.console();
    let good = std::fs::read_to_string(proxy.config_file()).expect("the file");
    for (bad, fault) in [
        (
            good.replace("[pool]", "[pool]\nsise = 7"),
            "pool.sise: there is no such key; did you mean pool.size?",
        ),
        (good.replace("size = 1", "size = 0"), "pool.size: "),
    ] {
        std::fs::write(proxy.config_file(), bad).expect("a bad file");
        hang_up(&proxy, "refused");
        assert!(proxy.log().contains(fault), "{}", proxy.log());
        let told = console.query("reload");
        assert_eq!(told.trace(), "E(55000) Z(I)");
        let detail = told.error().and_then(|error| error.field(b'D')).unwrap_or_default();
        assert!(detail.contains(fault), "{detail}");
        assert_eq!(console.query("select value from bursar.config where key = 'pool.size'").value(), "1");
        assert_eq!(proxy.connect().query("select 1").code(), "53300", "the pool is as small as before");
    }
    client.batch("commit");

    std::fs::write(proxy.config_file(), good).expect("the good file");
    assert_eq!(console.query("reload").trace(), "C(RELOAD) Z(I)");
    client.bye();
    proxy.stop();
}

/// What changed is told by the console and the log, secrets only as that they did; and what waits.
#[test]
fn a_reload_says_what_it_changed() {
    let db = Db::new();
    let config = Config::one_backend().with("user.app", "password = \"first secret\"");
    let mut proxy = Proxy::start(&db, config.with("listen", "max_clients = 50"));
    let mut console = proxy.console();
    assert_eq!(console.query("reload").trace(), "C(RELOAD) Z(I)", "nothing has changed");

    proxy.change("pool", "size = 7");
    proxy.change("user.app", "password = \"second secret\"");
    proxy.change("user.more", "mode = \"session\"");
    proxy.change("listen", "max_clients = 60");
    proxy.change("listen", "workers = 2");
    let reply = console.query("reload");
    let expected = [&["N(00000)"; 5][..], &["N(01000)", "C(RELOAD)", "Z(I)"]].concat().join(" ");
    assert_eq!(reply.trace(), expected, "{reply:?}");
    let told: Vec<_> = reply.notices().iter().map(|notice| notice.field(b'D').unwrap_or_default()).collect();
    let changes = [
        "database.\"*\".size: \"1\" → \"7\"",
        "listen.max_clients: \"50\" → \"60\"",
        "pool.size: \"1\" → \"7\"",
        "user.app.password: changed",
        "user.more.mode: \"\" → \"session\"",
        "listen.workers: stays \"1\" until the next start; the new value \"2\" needs a restart",
    ];
    assert_eq!(told, changes);
    let log = proxy.log();
    assert!(changes[..5].iter().all(|change| log.contains(change)), "{log}");
    assert!(log.contains("changed=5 waiting=1"), "{log}");
    assert!(!log.contains("secret"), "{log}");
    let rows = console.query("select value from bursar.config where key = 'listen.max_clients'").value();
    assert_eq!(rows, "60");
    assert_eq!(console.query("reload").trace(), "N(01000) C(RELOAD) Z(I)", "what waits is said again");
    console.bye();
    proxy.stop();
}

/// As Kubernetes changes a ConfigMap: a link to another directory, by renaming.
#[test]
fn a_file_that_changes_is_read_again_by_itself() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let (file, dir) = (proxy.config_file(), tempfile::tempdir().expect("a directory"));
    let swap = |name: &str, line: &str| {
        let text = std::fs::read_to_string(&file).expect("the file").replace("size = 1\n", line);
        std::fs::write(dir.path().join(name), text).expect("another file");
        let link = file.with_file_name("..data");
        std::os::unix::fs::symlink(dir.path().join(name), &link).expect("a link");
        std::fs::rename(&link, &file).expect("swapped");
    };
    let size = |proxy: &Proxy| {
        proxy.console().query("select value from bursar.config where key = 'pool.size'").value()
    };
    swap("one", "size = 2\n");
    until("it is reloaded", || size(&proxy) == "2");
    proxy.stop();
}
