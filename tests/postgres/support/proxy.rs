//! The real program before a database of its own: generated configuration, captured log, and an end
//! that is checked.

use super::distance::Distance;
use super::{Db, Gate, Login, PATIENCE, Wire, eventually, ports, signal, standin};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A configuration file, table by table.
#[derive(Clone, Default)]
pub(crate) struct Config {
    tables: BTreeMap<String, Vec<String>>,
}

impl Config {
    /// Transaction mode before one backend, no authentication, and a drain that does not dawdle. A BEGIN
    /// takes a lease: that is what most tests begin a transaction for.
    pub(crate) fn one_backend() -> Config {
        Config::of_size(1)
    }

    /// As [`Config::one_backend`], with so many.
    pub(crate) fn of_size(size: usize) -> Config {
        Config::default()
            .with("auth", "method = \"trust\"")
            .with("pool", &format!("size = {size}"))
            .with("pool", "lazy_begin = false")
            .with("drain", "deadline = \"5s\"")
    }

    /// A BEGIN waits for its first statement, as it does by default.
    pub(crate) fn lazy(self) -> Config {
        self.with("pool", "lazy_begin = true")
    }

    /// One line more in a table; replaces an earlier one of the same key.
    pub(crate) fn with(mut self, table: &str, line: &str) -> Config {
        let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
        let lines = self.tables.entry(table.to_owned()).or_default();
        lines.retain(|old| key(old) != key(line));
        lines.push(line.to_owned());
        self
    }

    /// The value of a key as written, if it is.
    pub(super) fn get(&self, table: &str, key: &str) -> Option<&str> {
        let line = self.tables.get(table)?.iter().find(|line| line.starts_with(key))?;
        Some(line.split_once('=')?.1.trim().trim_matches('"'))
    }

    fn render(&self) -> String {
        self.tables.iter().fold(String::new(), |mut text, (table, lines)| {
            let _ = writeln!(text, "[{table}]\n{}\n", lines.join("\n"));
            text
        })
    }
}

/// A running proxy; killed when dropped, unless [`Proxy::stop`] asked it to end.
pub(crate) struct Proxy {
    child: Option<Child>,
    port: u16,
    admin_port: u16,
    dir: PathBuf,
    config: Config,
    database: String,
    /// The way to its server, if that is far away.
    _far: Option<Distance>,
}

impl Proxy {
    /// Starts it and waits until it takes connections.
    pub(crate) fn start(db: &Db<'_>, config: Config) -> Proxy {
        Proxy::start_behind(Distance::chosen(db.cluster().addr()), db, config)
    }

    /// As [`Proxy::start`], with its server so far away, one way.
    pub(crate) fn start_far(db: &Db<'_>, config: Config, delay: Duration) -> Proxy {
        Proxy::start_behind(Some(Distance::to(db.cluster().addr(), delay)), db, config)
    }

    /// As [`Proxy::start`], with a gate between it and its server.
    pub(crate) fn start_at(gate: &Gate, db: &Db<'_>, config: Config) -> Proxy {
        let config = config.with("database.\"*\"", &format!("port = {}", gate.port()));
        Proxy::start_behind(None, db, config)
    }

    fn start_behind(far: Option<Distance>, db: &Db<'_>, config: Config) -> Proxy {
        let (port, admin_port) = (ports::free(), ports::free());
        let dir = db.cluster().subdir(&format!("proxy-{port}"));
        let server = far.as_ref().map_or(db.cluster().addr().port(), Distance::port);
        let port_of_server = config.get("database.\"*\"", "port").map_or(server.to_string(), str::to_owned);
        // A test may want another address; the port is ours.
        let admin = config.get("admin", "address").unwrap_or("127.0.0.1").to_owned();
        let config = config
            .with("listen", &format!("address = \"127.0.0.1:{port}\""))
            .with("admin", &format!("address = \"{admin}:{admin_port}\""));
        let elsewhere = config.get("database.\"*\"", "host").is_some();
        let config = if elsewhere { config } else { config.with("database.\"*\"", "host = \"127.0.0.1\"") };
        let config = config.with("database.\"*\"", &format!("port = {port_of_server}"));
        let database = db.name().to_owned();
        let mut proxy = Proxy { child: None, port, admin_port, dir, config, database, _far: far };
        proxy.write_config();
        let choice = standin::chosen();
        let has_admin = matches!(choice, standin::Choice::Bursar(_));
        let mut command = match choice {
            standin::Choice::Bursar(program) => {
                let mut command = Command::new(program);
                command.arg("--config").arg(proxy.config_file());
                command
            }
            standin::Choice::PgBouncer => standin::pgbouncer(db.cluster(), &proxy.dir, port, &proxy.config),
            standin::Choice::Direct => {
                proxy.port = db.cluster().addr().port();
                return proxy;
            }
        };
        let log = std::fs::File::create(proxy.log_file()).expect("the proxy's log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log again")).stderr(log);
        proxy.child = Some(command.spawn().expect("the proxy starts"));
        eventually("the proxy takes connections", PATIENCE, || {
            let over = proxy.child.as_mut().and_then(|child| child.try_wait().expect("its state"));
            assert!(over.is_none(), "the proxy ended at once: {over:?}\n{}", proxy.log());
            // The door for clients is open a moment before that for HTTP.
            let doors = [Some(proxy.addr()), has_admin.then(|| proxy.admin_addr())];
            doors.into_iter().flatten().try_for_each(|door| TcpStream::connect(door).map(drop)).ok()
        });
        proxy
    }

    /// Another process with the same configuration, when the one before has ended.
    pub(crate) fn start_again(&mut self) {
        self.start_again_with(&[]);
    }

    /// The same with these environment variables.
    pub(crate) fn start_again_with(&mut self, env: &[(&str, &str)]) {
        assert!(self.child.is_none(), "one at a time");
        let mut command = Command::new(env!("CARGO_BIN_EXE_bursar"));
        self.spawn(command.envs(env.iter().copied()).arg("--config").arg(self.config_file()));
    }

    /// Another process with the same configuration beside this one, which is returned.
    pub(crate) fn start_beside(&mut self) -> Child {
        let old = self.child.take().expect("a running proxy");
        self.start_again();
        old
    }

    /// Starts the process and waits until it says that it listens.
    fn spawn(&mut self, command: &mut Command) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file());
        let log = log.expect("the proxy's log");
        let before = self.log().len();
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log again")).stderr(log);
        let mut child = command.spawn().expect("the proxy starts");
        let listening = format!("listening address=\"{}\"", self.addr());
        eventually("the proxy listens", PATIENCE, || {
            let over = child.try_wait().expect("its state");
            assert!(over.is_none(), "the proxy ended at once: {over:?}\n{}", self.log());
            self.log()[before..].contains(&listening).then_some(())
        });
        self.child = Some(child);
    }

    /// Where clients connect.
    pub(crate) fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Where HTTP answers.
    pub(crate) fn admin_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.admin_port))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running proxy").id()
    }

    /// How the role `app` logs in to the test's database.
    pub(crate) fn as_app(&self) -> Login {
        Login::new("app", &self.database)
    }

    /// A session of the role `app`.
    pub(crate) fn connect(&self) -> Wire {
        Wire::login(self.addr(), &self.as_app())
    }

    /// A session that says whose work it does.
    pub(crate) fn connect_for(&self, tenant: &str, request: &str) -> Wire {
        let mut wire = self.connect();
        wire.batch(&format!("set bursar.tenant = '{tenant}'"));
        wire.batch(&format!("set bursar.request_id = '{request}'"));
        wire
    }

    /// A session with the admin console.
    pub(crate) fn console(&self) -> Wire {
        Wire::login(self.addr(), &Login::new("app", "bursar"))
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The configuration file.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Changes a line of the configuration file; takes effect with a reload.
    pub(crate) fn change(&mut self, table: &str, line: &str) {
        self.config = self.config.clone().with(table, line);
        self.write_config();
    }

    fn write_config(&self) {
        std::fs::write(self.config_file(), self.config.render()).expect("config.toml");
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Asks it to end by SIGTERM; it must leave with exit code 0, without a panic in its log.
    pub(crate) fn stop(mut self) {
        if !matches!(standin::chosen(), standin::Choice::Bursar(_)) {
            return;
        }
        signal(self.pid(), "TERM");
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "exit code of a drained proxy\n{}", self.log());
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("a running proxy");
        let status = eventually("the proxy ends", PATIENCE, || child.try_wait().expect("its state"));
        self.child = None;
        assert!(!self.log().contains("panicked"), "a panic in the proxy:\n{}", self.log());
        status
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("-- log of the proxy, its end\n{}", end_of(&self.log_file()));
        } else {
            let panicked = self.log().contains("panicked");
            assert!(!panicked, "a panic in the proxy:\n{}", self.log());
        }
    }
}

fn end_of(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
