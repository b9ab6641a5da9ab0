//! Unix sockets on both sides: `listen.unix_dir` towards clients, a path as `host` towards the server.

use crate::support::watch::{bursar, printed, rows};
use crate::support::{Cluster, Config, Db, PATIENCE, Proxy, eventually, signal, until};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

/// A proxy that listens in a directory of its own, and reaches the test's database by the server's
/// socket; TCP stays the way of the tests' harness.
fn start(db: &Db<'_>, config: Config) -> (Proxy, TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let host = format!("host = \"{}\"", db.cluster().socket_dir().display());
    let config = config.with("listen", &unix_dir(dir.path())).with(&format!("database.{}", db.name()), &host);
    let proxy = Proxy::start(db, config);
    until("the socket takes connections", || UnixStream::connect(socket(&proxy, &dir)).is_ok());
    (proxy, dir)
}

fn unix_dir(dir: &Path) -> String {
    format!("unix_dir = \"{}\"", dir.display())
}

fn socket(proxy: &Proxy, dir: &TempDir) -> PathBuf {
    dir.path().join(format!(".s.PGSQL.{}", proxy.addr().port()))
}

fn psql(proxy: &Proxy, dir: &TempDir, db: &Db<'_>, sql: &str) -> Output {
    let mut command = Command::new(Cluster::shared().program("psql"));
    command.args(["-X", "-w", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "app", "-d", db.name(), "-c", sql]);
    command.arg("-h").arg(dir.path()).args(["-p", &proxy.addr().port().to_string()]);
    command.output().expect("psql runs")
}

#[test]
fn psql_goes_in_and_out_by_unix_sockets() {
    let db = Db::new();
    let (proxy, dir) = start(&db, Config::one_backend());
    let path = socket(&proxy, &dir);
    assert_eq!(std::fs::metadata(&path).expect("the socket").permissions().mode() & 0o777, 0o777);
    let answer = psql(&proxy, &dir, &db, "select inet_client_addr() is null and inet_server_port() is null");
    assert_eq!(printed(&answer), "t\n", "the backend was reached by its socket");

    // Seen by process id, which the kernel tells, in SHOW CLIENTS as in PgBouncer's.
    let mut client = UnixStream::connect(&path).expect("connected");
    std::io::Write::write_all(&mut client, &proxy.as_app().packet()).expect("sent");
    let mut console = proxy.console();
    let seen = eventually("the client is shown", PATIENCE, || {
        rows(&mut console, "select addr, remote_pid from bursar.clients where database <> 'bursar'").pop()
    });
    assert_eq!(seen, ["unix".to_owned(), std::process::id().to_string()]);
    let servers = rows(&mut console, "select addr, port from bursar.servers");
    assert_eq!(servers, [["unix".to_owned(), db.cluster().addr().port().to_string()]]);

    proxy.stop();
    assert!(!path.exists(), "a process that ends takes its socket with it");
}

#[test]
fn a_driver_works_and_cancels_through_unix_sockets() {
    let db = Db::new();
    let (proxy, dir) = start(&db, Config::one_backend());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let all = async {
        let mut to = tokio_postgres::Config::new();
        to.host_path(dir.path()).port(proxy.addr().port()).user("app").dbname(db.name());
        let (client, connection) = to.connect(NoTls).await.expect("connected");
        let connection = tokio::spawn(connection);
        let row = client.query_one("select $1::int + 1", &[&41]).await.expect("a row");
        assert_eq!(row.get::<_, i32>(0), 42);
        let token = client.cancel_token();
        let (slept, ()) = tokio::join!(client.batch_execute("select pg_sleep(60)"), async {
            while db.backends("wait_event = 'PgSleep'") == 0 {
                tokio::task::yield_now().await;
            }
            token.cancel_query(NoTls).await.expect("asked");
        });
        assert_eq!(slept.expect_err("cancelled").code(), Some(&SqlState::QUERY_CANCELED));
        client.batch_execute("select 1").await.expect("the session goes on");

        // A drain tells it why, and closes.
        signal(proxy.pid(), "TERM");
        let end = connection.await.expect("no panic").expect_err("closed by Bursar");
        assert_eq!(end.code(), Some(&SqlState::ADMIN_SHUTDOWN));
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), all).await }).expect("in time");
    let path = socket(&proxy, &dir);
    until("the socket is gone", || !path.exists());
}

#[test]
fn a_socket_that_a_killed_process_left_is_replaced_and_a_live_one_is_not() {
    let db = Db::new();
    let (proxy, dir) = start(&db, Config::one_backend());
    let (path, file) = (socket(&proxy, &dir), proxy.config_file().display().to_string());
    assert_eq!(printed(&psql(&proxy, &dir, &db, "select 1")), "1\n");

    // Another TCP address, and the same socket: what is there is in use.
    let elsewhere = std::fs::read_to_string(&file).expect("the file").replace("127.0.0.1:", "127.0.0.2:");
    let second = format!("{file}.second");
    std::fs::write(&second, elsewhere).expect("a second file");
    let refused = bursar(&["--config", &second]);
    assert_eq!(refused.status.code(), Some(1), "{}", printed(&refused));
    for piece in [&*path.display().to_string(), "listen.unix_dir", "a process listens there"] {
        assert!(printed(&refused).contains(piece), "{piece} in: {}", printed(&refused));
    }
    assert_eq!(printed(&psql(&proxy, &dir, &db, "select 2")), "2\n", "the first one goes on");

    signal(proxy.pid(), "KILL");
    until("nobody listens", || UnixStream::connect(&path).is_err());
    assert!(path.exists(), "a killed process leaves its socket");
    let mut again = Command::new(env!("CARGO_BIN_EXE_bursar"));
    again.args(["--config", &file]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut again = again.spawn().expect("it starts");
    until("the socket answers again", || UnixStream::connect(&path).is_ok());
    assert_eq!(printed(&psql(&proxy, &dir, &db, "select 3")), "3\n");
    signal(again.id(), "TERM");
    assert_eq!(again.wait().expect("its end").code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn what_is_wrong_with_the_directory_is_said_with_the_way_out() {
    let db = Db::new();
    let (proxy, dir) = start(&db, Config::one_backend());
    let port = proxy.addr().port();
    let file = proxy.config_file().display().to_string();
    proxy.stop();
    let text = std::fs::read_to_string(&file).expect("the file");
    // By the server's account, which is not that of the directory where root runs this.
    let refused = |to: &Path, pieces: &[&str]| {
        let changed = format!("{file}.changed");
        std::fs::write(&changed, text.replace(&unix_dir(dir.path()), &unix_dir(to))).expect("written");
        let mut command = db.cluster().command(Path::new(env!("CARGO_BIN_EXE_bursar")));
        let started = command.args(["--config", &changed]).output().expect("it runs");
        assert_eq!(started.status.code(), Some(1), "{}", printed(&started));
        for piece in pieces {
            assert!(printed(&started).contains(piece), "{piece} in: {}", printed(&started));
        }
        changed
    };
    let allow = |mode| std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).expect("a mode");
    allow(0o555);
    refused(
        dir.path(),
        &["listen.unix_dir", "ermission denied", "must be allowed to create and remove files"],
    );
    allow(0o777);
    let nowhere = dir.path().join("nowhere");
    let changed = refused(&nowhere, &["listen.unix_dir", "create the directory"]);
    let checked = bursar(&["check", "--config", &changed]);
    assert_eq!(checked.status.code(), Some(64), "{}", printed(&checked));
    for piece in ["config.toml", "listen.unix_dir", "cannot be used", "create it"] {
        assert!(printed(&checked).contains(piece), "{piece} in: {}", printed(&checked));
    }

    // A file that is no socket is somebody's; it stays.
    let taken = dir.path().join(format!(".s.PGSQL.{port}"));
    std::fs::write(&taken, "precious").expect("written");
    refused(dir.path(), &["listen.unix_dir", "no socket"]);
    assert_eq!(std::fs::read(&taken).expect("still there"), b"precious");
}

#[test]
fn a_server_without_a_socket_is_named() {
    let db = Db::new();
    let empty = tempfile::tempdir().expect("a directory");
    let host = format!("host = \"{}\"", empty.path().display());
    let proxy = Proxy::start(&db, Config::one_backend().with("database.gone", &host));
    let checked = bursar(&["check", "--config", &proxy.config_file().display().to_string()]);
    assert_eq!(checked.status.code(), Some(64), "{}", printed(&checked));
    let path = empty.path().join(format!(".s.PGSQL.{}", db.cluster().addr().port()));
    for piece in ["database.gone.host", &*path.display().to_string(), "cannot be reached"] {
        assert!(printed(&checked).contains(piece), "{piece} in: {}", printed(&checked));
    }
    proxy.stop();
}
