//! Dialling, authentication and cancelling against a real PostgreSQL, in a private cluster that
//! lives as long as the tests: never the machine's own server.
//!
//! A machine without PostgreSQL's binaries fails these tests; that is no reason to skip them.

use bursar::auth::{MockKey, SecretKind, Step, Verifier};
use bursar::backend::{AuthFault, Backend, Cancelled, DialError, Store, Target, dial};
use bursar::config::{AuthMethod, Database, PoolRules, Reuse, Secret};
use bursar::net::stream::Quiet;
use bytes::{BufMut, BytesMut};
use cluster::Cluster;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const WITHIN: Duration = Duration::from_secs(20);

fn target(host: &str, port: u16, dbname: &str, user: &str, password: Option<&str>) -> Target {
    let pool =
        PoolRules { idle_timeout: None, lifetime: None, connect_timeout: WITHIN, ..PoolRules::default() };
    let password = password.map(|text| Secret::new(text.to_owned()));
    let table = Database { host: host.into(), port, password, pool, ..Database::default() };
    Target::new(&table, dbname, user, None)
}

/// Sends a simple query; returns type byte and body of every message up to ReadyForQuery.
async fn query(backend: &mut Backend, sql: &str) -> Vec<(u8, Vec<u8>)> {
    let mut out = BytesMut::new();
    out.put_u8(b'Q');
    out.put_i32(i32::try_from(sql.len()).unwrap() + 5);
    out.put_slice(sql.as_bytes());
    out.put_u8(0);
    backend.stream.write_all(&out).await.unwrap();
    let mut said = Vec::new();
    loop {
        let kind = backend.stream.read_u8().await.unwrap();
        let len = backend.stream.read_i32().await.unwrap();
        let mut body = vec![0; usize::try_from(len).unwrap() - 4];
        backend.stream.read_exact(&mut body).await.unwrap();
        said.push((kind, body));
        if kind == b'Z' {
            return said;
        }
    }
}

/// The one value of a query that returns one.
async fn value(backend: &mut Backend, sql: &str) -> String {
    let said = query(backend, sql).await;
    let (_, row) = said.iter().find(|(kind, _)| *kind == b'D').expect("a row");
    String::from_utf8(row[6..].to_vec()).unwrap()
}

fn refused(error: DialError) -> (String, String) {
    let DialError::Server { code, body } = error else { panic!("not refused by the server: {error}") };
    (String::from_utf8(code.to_vec()).unwrap(), String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn every_method_logs_in_over_tcp_and_over_the_unix_socket() {
    let cluster = Cluster::shared();
    for user in ["by_trust", "by_password", "by_md5", "by_scram"] {
        for host in ["127.0.0.1", "localhost", cluster.dir()] {
            let target = target(host, cluster.port, "postgres", user, Some("s3cret µ"));
            let mut backend = dial(&target, WITHIN).await.unwrap_or_else(|e| panic!("{user}@{host}: {e}"));
            assert_eq!(backend.poke(), Quiet::Yes);
            assert_eq!(value(&mut backend, "select current_user").await, user);
            assert_eq!(value(&mut backend, "select pg_backend_pid()").await, backend.pid.to_string());
            // The name belongs to the session that is served, so a backend comes without one.
            assert_eq!(value(&mut backend, "show application_name").await, "");
            let version = value(&mut backend, "show server_version").await;
            let told = backend.parameters.iter().find(|(name, _)| name == "server_version").unwrap();
            assert_eq!(told.1, version);
            // Asked for protocol 3.2, version 18 gives long keys; older ones negotiate down to 3.0.
            let major: u32 = version.split('.').next().unwrap().parse().unwrap();
            assert_eq!(backend.cancel.key.len(), if major >= 18 { 32 } else { 4 });
            backend.close();
        }
    }
}

#[tokio::test]
async fn refusals_are_postgresqls_own() {
    let cluster = Cluster::shared();
    let dial_as = async |dbname: &str, user: &str, password: Option<&str>| {
        dial(&target("127.0.0.1", cluster.port, dbname, user, password), WITHIN).await.unwrap_err()
    };
    for user in ["by_password", "by_md5", "by_scram", "nobody_scram"] {
        let (code, body) = refused(dial_as("postgres", user, Some("wrong")).await);
        assert_eq!(code, "28P01", "{user}");
        assert!(body.starts_with("SFATAL\0VFATAL\0C28P01\0M"), "{body}");
        assert!(body.ends_with("\0\0"), "{body}");
    }
    let (code, body) = refused(dial_as("nowhere", "by_trust", None).await);
    assert_eq!(code, "3D000");
    assert!(body.contains("Mdatabase \"nowhere\" does not exist\0"), "{body}");
    let error = dial_as("postgres", "by_scram", None).await;
    assert!(matches!(error, DialError::Auth(AuthFault::NoPassword)), "{error}");
}

#[tokio::test]
async fn scram_logs_in_again_with_remembered_keys() {
    let cluster = Cluster::shared();
    let target = target("127.0.0.1", cluster.port, "postgres", "by_scram", Some("s3cret µ"));
    dial(&target, WITHIN).await.unwrap().close();
    dial(&target, WITHIN).await.unwrap().close();
}

#[tokio::test]
async fn cancel_stops_a_running_statement_and_nothing_else() {
    let cluster = Cluster::shared();
    let target = target("127.0.0.1", cluster.port, "postgres", "by_trust", None);
    let mut backend = dial(&target, WITHIN).await.unwrap();
    let mut watcher = dial(&target, WITHIN).await.unwrap();
    let handle = backend.cancel.clone();
    let pid = backend.pid;

    assert_eq!(handle.send(WITHIN, || false).await.unwrap(), Cancelled::Withdrawn);
    let sleeping = async { (query(&mut backend, "select pg_sleep(60)").await, Instant::now()) };
    let cancelling = async {
        let running =
            format!("select count(*) from pg_stat_activity where pid = {pid} and wait_event = 'PgSleep'");
        while value(&mut watcher, &running).await != "1" {}
        let sent = Instant::now();
        assert_eq!(handle.send(WITHIN, || true).await.unwrap(), Cancelled::Signalled);
        sent
    };
    let ((said, ended), sent) = tokio::join!(sleeping, cancelling);
    assert!(ended.saturating_duration_since(sent) < Duration::from_secs(30));
    let (_, error) = said.iter().find(|(kind, _)| *kind == b'E').expect("an error");
    assert!(error.windows(7).any(|field| field == b"C57014\0"));
    assert_eq!(value(&mut backend, "select 1").await, "1");
}

#[tokio::test]
async fn a_backend_that_postgresql_ended_is_not_handed_out() {
    let cluster = Cluster::shared();
    let target = Arc::new(target("127.0.0.1", cluster.port, "postgres", "by_trust", None));
    let store = Store::new(target, 4, Reuse::Lifo);
    let victim = store.open(WITHIN).await.unwrap();
    let mut other = store.open(WITHIN).await.unwrap();
    let end = format!("select pg_terminate_backend({}, 20000)", victim.pid);
    assert_eq!(value(&mut other, &end).await, "t");
    victim.stream.readable().await.unwrap();
    assert_eq!(victim.poke(), Quiet::Bytes, "PostgreSQL says FATAL 57P01 before it closes");
    drop(victim);
    assert!(store.take_idle(None).is_none());
    assert_eq!((store.take_lost(), store.status().open), (1, 1));
}

#[tokio::test]
async fn a_secret_that_postgresql_wrote_lets_a_client_in() {
    let cluster = Cluster::shared();
    let root = target("127.0.0.1", cluster.port, "postgres", "postgres", None);
    let mut root = dial(&root, WITHIN).await.unwrap();
    for (user, kind) in [("by_md5", SecretKind::Md5), ("by_scram", SecretKind::Scram)] {
        let sql = format!("select rolpassword from pg_authid where rolname = '{user}'");
        let secret = Verifier::parse(&Secret::new(value(&mut root, &sql).await)).unwrap();
        assert_eq!(secret.kind(), kind);
        for (password, end) in [("s3cret µ\0", true), ("s3cret u\0", false)] {
            let mock = MockKey::random();
            let mut exchange = bursar::auth::begin(AuthMethod::Plain, user, Some(&secret), &mock);
            let mut out = BytesMut::new();
            assert_eq!(exchange.first(&mut out), Step::More);
            let step = exchange.step(password.as_bytes(), &mut out).await;
            assert_eq!(step == Step::Done, end, "{user} {password:?} {step:?}");
        }
    }
}

/// A throwaway PostgreSQL on a free loopback port.
mod cluster {
    use std::fs;
    use std::io::Write;
    use std::net::TcpListener;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::{Arc, Mutex, Weak};

    /// First match wins: user, then method.
    const HBA: &str = "\
        local all by_password password\nlocal all by_md5 md5\nlocal all by_scram scram-sha-256\n\
        local all all trust\n\
        host all by_password all password\nhost all by_md5 all md5\n\
        host all by_scram all scram-sha-256\nhost all nobody_scram all scram-sha-256\n\
        host all all all trust\n";

    /// One statement a line, for single-user mode.
    const ROLES: &str = "\
        create role by_trust login\n\
        set password_encryption = 'scram-sha-256'\n\
        create role by_password login password 's3cret µ'\n\
        create role by_scram login password 's3cret µ'\n\
        set password_encryption = 'md5'\n\
        create role by_md5 login password 's3cret µ'\n";

    /// Stopped and deleted when the last test that uses it ends.
    pub(super) struct Cluster {
        dir: tempfile::TempDir,
        bin: PathBuf,
        pub(super) port: u16,
    }

    /// Weak, because statics are never dropped and a server must not outlive the tests.
    static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

    impl Cluster {
        pub(super) fn shared() -> Arc<Cluster> {
            let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let cluster = Arc::new(Cluster::start());
                *shared = Arc::downgrade(&cluster);
                cluster
            })
        }

        /// Where its Unix socket is.
        pub(super) fn dir(&self) -> &str {
            self.dir.path().to_str().unwrap()
        }

        fn start() -> Cluster {
            let dir = tempfile::tempdir().unwrap();
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let cluster = Cluster { bin: binaries(), dir, port };
            if is_root() {
                let given = Command::new("chown").arg("postgres:").arg(cluster.dir.path()).status();
                assert!(given.unwrap().success(), "no user postgres?");
            }
            cluster
                .run("initdb", &["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "-D", "data"]);
            let data = cluster.dir.path().join("data");
            fs::write(data.join("pg_hba.conf"), HBA).unwrap();
            let settings = format!(
                "listen_addresses = 'localhost'\nport = {port}\nfsync = off\n\
                 unix_socket_directories = '{}'\n",
                cluster.dir()
            );
            fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
            cluster.make_roles();
            cluster.run("pg_ctl", &["start", "-w", "-t", "60", "-D", "data", "-l", "log"]);
            cluster
        }

        /// In single-user mode, which needs no client program.
        fn make_roles(&self) {
            let mut postgres = self.command("postgres", &["--single", "-D", "data", "postgres"]);
            let mut postgres =
                postgres.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            postgres.stdin.take().unwrap().write_all(ROLES.as_bytes()).unwrap();
            let said = postgres.wait_with_output().unwrap().stderr;
            let said = String::from_utf8_lossy(&said);
            assert!(!said.contains("ERROR") && !said.contains("FATAL"), "{said}");
        }

        fn run(&self, program: &str, args: &[&str]) {
            let done = self.command(program, args).output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{program} failed: {said}");
        }

        /// PostgreSQL refuses to run as root, so root hands the work to user postgres.
        fn command(&self, program: &str, args: &[&str]) -> Command {
            let path = self.bin.join(program);
            let mut command = if is_root() {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(path);
                command
            } else {
                Command::new(path)
            };
            command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
            command.env("LC_ALL", "C.UTF-8");
            command
        }
    }

    impl Drop for Cluster {
        fn drop(&mut self) {
            // By the pid in this data directory and no other way.
            let stop = self.command("pg_ctl", &["stop", "-w", "-m", "immediate", "-D", "data"]).output();
            drop(stop);
        }
    }

    fn is_root() -> bool {
        fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
    }

    /// The directory of `initdb`: `BURSAR_PG_BIN`, else on PATH, else the newest that a Debian
    /// package installed.
    fn binaries() -> PathBuf {
        if let Some(dir) = std::env::var_os("BURSAR_PG_BIN") {
            return dir.into();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let packaged = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut packaged: Vec<_> = packaged.map(|version| version.path().join("bin")).collect();
        let number = |bin: &Path| bin.parent().and_then(Path::file_name)?.to_str()?.parse::<u32>().ok();
        packaged.sort_by_key(|bin| std::cmp::Reverse(number(bin)));
        let found = std::env::split_paths(&path).chain(packaged).find(|bin| bin.join("initdb").exists());
        found.expect("PostgreSQL's initdb, on PATH or in /usr/lib/postgresql/*/bin")
    }
}
