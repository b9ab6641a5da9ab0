//! A private PostgreSQL cluster, made from the installed binaries: never the machine's own.
//!
//! The server is the child of a small shell, its guardian, that waits for the end of its standard
//! input. When this process ends in whatever way, the pipe closes, and the guardian stops the server
//! and removes its files. A missing server is a failure, not a skip.

use super::{Wire, eventually, ports};
use std::cell::RefCell;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// initdb and start on a slow, busy machine.
const START: Duration = Duration::from_secs(90);

/// Runs the server; a line on standard input is the signal to stop it by, the end of the input stops
/// it at once and removes everything.
const GUARDIAN: &str = r#"
dir=$1; shift
"$@" & server=$!
if read -r how; then
    kill -"$how" $server; wait $server
else
    kill -QUIT $server 2>/dev/null; wait $server; rm -rf "$dir"
fi
"#;

/// `name = value` of postgresql.conf.
const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "max_connections=300",
    "wal_level=logical",
    "fsync=off",
    "full_page_writes=off",
    "shared_buffers=64MB",
    "autovacuum=off",
    "timezone=UTC",
    "log_timezone=UTC",
    "lc_messages=C",
    "client_connection_check_interval=0",
];

/// Who logs in how. The password of each role is its own name.
const HBA: &str = "\
local all all trust
host replication all 127.0.0.1/32 trust
host all scram_user 127.0.0.1/32 scram-sha-256
host all md5_user   127.0.0.1/32 md5
host all plain_user 127.0.0.1/32 password
host all all        127.0.0.1/32 trust
";

const ROLES: &str = "\
create role app login;
create role repl login replication;
set password_encryption = 'scram-sha-256';
create role scram_user login password 'scram_user';
create role plain_user login password 'plain_user';
set password_encryption = 'md5';
create role md5_user login password 'md5_user';
create role group_role role app;
";

/// How a server is stopped.
#[derive(Clone, Copy)]
pub(crate) enum Stop {
    /// Ends sessions with FATAL 57P01.
    Fast,
    /// As in a crash.
    Immediate,
    /// SIGKILL to every process of it at once, as by the kernel or a machine that loses its power.
    Kill,
}

/// A server of its own.
pub(crate) struct Cluster {
    port: u16,
    dir: PathBuf,
    bin: PathBuf,
    account: Option<(u32, u32)>,
    guardian: Mutex<Option<Child>>,
    /// Settings of its own, after [`SETTINGS`].
    settings: Mutex<Vec<String>>,
}

impl Cluster {
    /// The one that most tests share; each works in a database of its own ([`Db`]).
    pub(crate) fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Cluster::new)
    }

    /// One more, for tests that stop the server.
    pub(crate) fn new() -> Cluster {
        Cluster::with(&[])
    }

    /// The same, with settings otherwise than usual.
    pub(crate) fn with(settings: &[&str]) -> Cluster {
        let bin = find_binaries();
        let account = server_account();
        let port = ports::free();
        let dir = std::env::temp_dir().join(format!("bursar-test-{}-{port}", std::process::id()));
        let settings = Mutex::new(settings.iter().map(|&setting| setting.to_owned()).collect());
        let cluster = Cluster { port, dir, bin, account, guardian: Mutex::new(None), settings };
        cluster.make_dir(&cluster.dir);
        cluster.initialise();
        cluster.start();
        cluster.admin().batch(ROLES);
        cluster
    }

    /// A streaming standby of another one, which can be read from.
    pub(crate) fn standby_of(primary: &Cluster) -> Cluster {
        let port = ports::free();
        let dir = std::env::temp_dir().join(format!("bursar-test-{}-{port}", std::process::id()));
        let (bin, account) = (primary.bin.clone(), primary.account);
        let settings = Mutex::default();
        let cluster = Cluster { port, dir, bin, account, guardian: Mutex::new(None), settings };
        cluster.make_dir(&cluster.dir);
        let copied = cluster
            .command(&cluster.program("pg_basebackup"))
            .args(["--host=127.0.0.1", "--username=repl", "--write-recovery-conf", "--checkpoint=fast"])
            .args(["--no-sync", &format!("--port={}", primary.port), "--pgdata"])
            .arg(cluster.dir.join("data"))
            .output()
            .expect("pg_basebackup runs");
        assert!(copied.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&copied.stderr));
        cluster.start();
        cluster
    }

    /// Makes it start as a standby of another server from now on.
    pub(crate) fn demote(&self, primary: &Cluster) {
        let data = self.dir.join("data");
        let from = format!("primary_conninfo = 'host=127.0.0.1 port={} user=repl'\n", primary.port);
        std::fs::write(data.join("standby.signal"), "").expect("standby.signal");
        let mut settings = std::fs::OpenOptions::new().append(true).open(data.join("postgresql.auto.conf"));
        settings.as_mut().expect("postgresql.auto.conf").write_all(from.as_bytes()).expect("a line more");
    }

    /// Makes a primary of a standby.
    pub(crate) fn promote(&self) {
        assert_eq!(self.admin().query("select pg_promote()").value(), "t");
    }

    fn initialise(&self) {
        let data = self.dir.join("data");
        let made = self
            .command(&self.bin.join("initdb"))
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg("--pgdata")
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        std::fs::write(data.join("pg_hba.conf"), HBA).expect("pg_hba.conf");
    }

    /// Starts the server, on the port it always has, and waits until it takes connections.
    pub(crate) fn start(&self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file());
        let log = log.expect("the server's log");
        let mut command = self.command(Path::new("sh"));
        command.args(["-c", GUARDIAN, "guardian"]).arg(&self.dir).arg(self.bin.join("postgres"));
        command.arg("-D").arg(self.dir.join("data")).arg(format!("-p{}", self.port));
        command.args(["-c", &format!("unix_socket_directories={}", self.dir.display())]);
        let own = self.settings.lock().expect("not poisoned");
        for setting in SETTINGS.iter().copied().chain(own.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        drop(own);
        command.stdin(Stdio::piped()).stdout(log.try_clone().expect("the log again")).stderr(log);
        *self.guardian.lock().expect("not poisoned") = Some(command.spawn().expect("sh runs"));
        eventually("PostgreSQL takes connections", START, || {
            Wire::try_login(self.addr(), &super::Login::new("postgres", "postgres")).ok()
        });
    }

    /// One more setting, from its next start on.
    pub(crate) fn set(&self, setting: &str) {
        self.settings.lock().expect("not poisoned").push(setting.to_owned());
    }

    /// Stops the server and waits until it is gone. Its data stay.
    pub(crate) fn stop(&self, how: Stop) {
        let mut guardian = self.guardian.lock().expect("not poisoned").take().expect("a running server");
        let line = match how {
            Stop::Fast => "INT\n",
            Stop::Immediate => "QUIT\n",
            Stop::Kill => {
                self.kill_children();
                "KILL\n"
            }
        };
        let mut stdin = guardian.stdin.take().expect("piped");
        stdin.write_all(line.as_bytes()).expect("the guardian listens");
        guardian.wait().expect("the guardian ends");
    }

    /// Stops its first process, so that there are no new ones, and kills all others.
    fn kill_children(&self) {
        let first = std::fs::read_to_string(self.dir.join("data").join("postmaster.pid"));
        let first = first.expect("postmaster.pid").lines().next().expect("a pid").to_owned();
        super::signal(first.parse().expect("a pid"), "STOP");
        let children = std::fs::read_to_string(format!("/proc/{first}/task/{first}/children"));
        for child in children.expect("its children").split_whitespace() {
            super::signal(child.parse().expect("a pid"), "KILL");
        }
    }

    /// Has it take TLS with this certificate and key, and these lines of `pg_hba.conf` before its own.
    pub(crate) fn encrypt(&self, cert: &str, key: &str, hba: &str) {
        for (name, text) in
            [("server.crt", cert), ("server.key", key), ("pg_hba.conf", &format!("{hba}{HBA}"))]
        {
            let path = self.dir.join("data").join(name);
            std::fs::write(&path, text).expect("a file of the server's");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("mode 0600");
            if let Some((uid, gid)) = self.account {
                std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("the file's new owner");
            }
        }
        self.admin().batch("alter system set ssl = on");
        self.admin().batch("select pg_reload_conf()");
        super::until("the server has TLS", || self.admin().query("show ssl").value() == "on");
    }

    /// Puts these lines of `pg_hba.conf` before its own; they count when the server has heard of them.
    pub(crate) fn admit(&self, hba: &str) {
        std::fs::write(self.dir.join("data").join("pg_hba.conf"), format!("{hba}{HBA}"))
            .expect("pg_hba.conf");
        self.admin().batch("select pg_reload_conf()");
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The directory of its Unix socket.
    pub(crate) fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// A new directory beside its data, removed with it.
    pub(crate) fn subdir(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        self.make_dir(&dir);
        dir
    }

    /// In the server's account, so that its guardian can remove it.
    fn make_dir(&self, dir: &Path) {
        std::fs::create_dir(dir).expect("a new directory");
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).expect("mode 0700");
        if let Some((uid, gid)) = self.account {
            std::os::unix::fs::chown(dir, Some(uid), Some(gid)).expect("the directory's new owner");
        }
    }

    /// A superuser's session in the database `postgres`.
    pub(crate) fn admin(&self) -> Wire {
        self.session("postgres")
    }

    fn session(&self, database: &str) -> Wire {
        Wire::login(self.addr(), &Login::new("postgres", database).with("application_name", HARNESS))
    }

    /// One of PostgreSQL's own programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let beside = self.bin.join(name);
        if beside.exists() { beside } else { PathBuf::from(name) }
    }

    /// A command in the server's account and out of reach of the terminal's Ctrl-C.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.process_group(0).current_dir(&self.dir);
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let guardian = self.guardian.get_mut().ok().and_then(Option::take);
        match guardian {
            Some(mut guardian) => {
                drop(guardian.stdin.take());
                let _ = guardian.wait();
            }
            // Stopped by a test: nobody else removes the files.
            None => drop(std::fs::remove_dir_all(&self.dir)),
        }
    }
}

use super::Login;

/// How the tests' own sessions call themselves, to be told from those that are tested.
const HARNESS: &str = "harness";

/// A database of its own, owned by the role `app`; dropped at the end.
pub(crate) struct Db<'a> {
    cluster: &'a Cluster,
    name: String,
    /// In the database `postgres`: not one of those that are counted.
    admin: RefCell<Wire>,
}

impl Db<'static> {
    /// In the shared cluster.
    pub(crate) fn new() -> Db<'static> {
        Db::within(Cluster::shared())
    }
}

impl<'a> Db<'a> {
    /// In this cluster.
    pub(crate) fn within(cluster: &'a Cluster) -> Db<'a> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut admin = cluster.admin();
        admin.batch(&format!("create database {name} owner app template template0"));
        Db { cluster, name, admin: RefCell::new(admin) }
    }

    /// Where it lives.
    pub(crate) fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The role `app`, straight to PostgreSQL.
    pub(crate) fn direct(&self) -> Wire {
        Wire::login(self.cluster.addr(), &Login::new("app", &self.name))
    }

    /// Runs statements, each in a transaction of its own, as the owner.
    pub(crate) fn run(&self, statements: &[&str]) {
        let mut app = Wire::login(
            self.cluster.addr(),
            &Login::new("app", &self.name).with("application_name", HARNESS),
        );
        for statement in statements {
            app.batch(statement);
        }
    }

    /// The first value of a query, as a superuser in this database.
    pub(crate) fn value(&self, sql: &str) -> String {
        self.cluster.session(&self.name).query(sql).value()
    }

    /// The first value of a query about this database from outside, `$DB` standing for its name as a
    /// literal.
    pub(crate) fn ask(&self, sql: &str) -> String {
        let sql = sql.replace("$DB", &format!("'{}'", self.name));
        self.admin.borrow_mut().query(&sql).value()
    }

    /// Backends of those tested for which a condition on pg_stat_activity holds.
    pub(crate) fn backends(&self, condition: &str) -> usize {
        self.ask(&format!("select count(*) from {} and {condition}", tested())).parse().expect("a count")
    }

    /// How many backends of those tested run a statement with this in its text. Who only looks for a busy
    /// one may see what Bursar asks a new backend before the statement comes, or a login.
    pub(crate) fn running(&self, text: &str) -> usize {
        self.backends(&format!("state = 'active' and query like '%{text}%'"))
    }

    /// Process ids of all backends of those tested, in order.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let list = self
            .ask(&format!("select coalesce(string_agg(pid::text, ',' order by pid), '') from {}", tested()));
        list.split_terminator(',').map(|pid| pid.parse().expect("a pid")).collect()
    }

    /// Ends all backends of those tested, and waits until they are gone.
    pub(crate) fn terminate_backends(&self) {
        let pids = self.pids();
        self.ask(&format!("select count(pg_terminate_backend(pid)) from {}", tested()));
        super::until("terminated backends are gone", || self.pids().iter().all(|pid| !pids.contains(pid)));
    }
}

fn tested() -> String {
    format!(
        "pg_stat_activity where datname = $DB and backend_type = 'client backend' \
         and application_name not in ('{HARNESS}', 'bursar')"
    )
}

impl Drop for Db<'_> {
    fn drop(&mut self) {
        // A server that a test has stopped takes its databases with it.
        if TcpStream::connect(self.cluster.addr()).is_ok()
            && let Ok(mut admin) = Wire::try_login(self.cluster.addr(), &Login::new("postgres", "postgres"))
        {
            admin.send(&super::msg::query(&format!("drop database {} with (force)", self.name)));
            let _ = admin.try_recv_until_ready();
        }
    }
}

/// `$BURSAR_PG_BIN`, then the newest of Debian's directories, then PATH.
fn find_binaries() -> PathBuf {
    if let Some(dir) = std::env::var_os("BURSAR_PG_BIN") {
        return PathBuf::from(dir);
    }
    let mut installed: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    installed.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = installed.into_iter().rev().map(|(_, dir)| dir).chain(std::env::split_paths(&path));
    for dir in candidates {
        if dir.join("initdb").is_file() && dir.join("postgres").is_file() {
            return dir;
        }
    }
    panic!(
        "these tests need PostgreSQL's server binaries (initdb, postgres), and found none in \
         $BURSAR_PG_BIN, /usr/lib/postgresql/*/bin or PATH. On Debian or Ubuntu: apt-get install postgresql"
    );
}

/// PostgreSQL refuses to run as root: then the account `postgres` runs it.
fn server_account() -> Option<(u32, u32)> {
    let me = std::fs::metadata("/proc/self").expect("/proc is mounted");
    if std::os::unix::fs::MetadataExt::uid(&me) != 0 {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let line = passwd.lines().find(|line| line.starts_with("postgres:"));
    let line = line.expect("run as root, these tests need the account postgres to run the server");
    let mut fields = line.split(':').skip(2).map(|id| id.parse().expect("a numeric id"));
    Some((fields.next().expect("uid"), fields.next().expect("gid")))
}

/// Waits until a server is gone from its port.
pub(crate) fn wait_closed(addr: SocketAddr) {
    super::until("the port is closed", || std::net::TcpStream::connect(addr).is_err());
}
