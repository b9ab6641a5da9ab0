//! The servers: one PostgreSQL for the whole run, and proxies started from generated configurations.

use super::Failure;
use super::wire::Client;
use bursar::cli::throwaway::{self, Cluster};
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// From exec to the first answered query.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// PostgreSQL, for one run.
pub(crate) struct Lab {
    cluster: Cluster,
}

impl Lab {
    /// Starts PostgreSQL; `purpose` is in the name of its directory.
    pub(crate) fn open(purpose: &str) -> Result<Lab, Failure> {
        let settings = [("max_connections", "100"), ("shared_buffers", "512MB")];
        Ok(Lab { cluster: Cluster::start(purpose, &settings)? })
    }

    /// PostgreSQL's own port.
    pub(crate) fn port(&self) -> u16 {
        self.cluster.port()
    }

    /// One of PostgreSQL's programs.
    pub(crate) fn command(&self, name: &str) -> Command {
        self.cluster.command(&self.cluster.program(name))
    }

    /// Where files may be put.
    pub(crate) fn dir(&self) -> &Path {
        self.cluster.dir()
    }

    /// Arguments of PostgreSQL's client programs for a server at this port.
    pub(crate) fn address(&self, port: u16) -> [String; 4] {
        let port = format!("--port={port}");
        ["--host=127.0.0.1".into(), port, "--username=postgres".into(), "postgres".into()]
    }

    /// Files of a certificate and its key, made on the spot.
    fn identity(&self) -> Result<[PathBuf; 2], Failure> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let cert = self.cluster.write_file("proxy.crt", &made.cert.pem())?;
        let key = self.cluster.write_file("proxy.key", &made.signing_key.serialize_pem())?;
        Ok([cert, key])
    }

    /// Starts a proxy and waits until it has answered a query.
    pub(crate) fn start(&self, contender: &Contender, setup: &Setup) -> Result<Proxy, Failure> {
        let port = throwaway::free_port()?;
        let server = self.port();
        let identity = if setup.tls { Some(self.identity()?) } else { None };
        let mut command;
        match contender.kind {
            Kind::PgBouncer => {
                let users = self.cluster.write_file("users.txt", "\"postgres\" \"\"\n\"app\" \"\"\n")?;
                let ini = contender.pgbouncer_ini(setup, server, port, &users) + &identity.map_or_else(String::new, |[cert, key]| {
                    let (cert, key) = (cert.display(), key.display());
                    format!("client_tls_sslmode = allow\nclient_tls_cert_file = {cert}\nclient_tls_key_file = {key}\n")
                });
                // It refuses to run as root, as PostgreSQL does.
                command = self.cluster.command(&contender.program);
                command.arg(self.cluster.write_file(&format!("pgbouncer-{port}.ini"), &ini)?);
            }
            Kind::Bursar => {
                let setup = match identity {
                    Some([cert, key]) => setup
                        .clone()
                        .with("tls.client", "mode = \"allow\"")
                        .with("tls.client", &format!("cert_file = \"{}\"", cert.display()))
                        .with("tls.client", &format!("key_file = \"{}\"", key.display())),
                    None => setup.clone(),
                };
                let toml = contender.bursar_toml(&setup, server, port)?;
                // As ourselves: the directory of a build is often closed to other accounts.
                command = throwaway::command(&contender.program);
                command.arg("--config").arg(self.cluster.write_file(&format!("bursar-{port}.toml"), &toml)?);
            }
        }
        let log_path = self.dir().join(format!("{}-{port}.log", contender.name));
        let log = fs::File::create(&log_path)?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut proxy = Proxy { child, port };
        if let Err(failure) = proxy.wait_ready(setup.bursar.contains_key("auth")) {
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            return Err(format!("{} did not start: {failure}\n{log}", contender.name).into());
        }
        Ok(proxy)
    }
}

/// What a program is configured like; decided by its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    PgBouncer,
    Bursar,
}

/// One side of the comparison.
#[derive(Debug)]
pub(crate) struct Contender {
    /// `pgbouncer` or `bursar`, as in the report.
    pub(crate) name: &'static str,
    /// First line of `--version`.
    pub(crate) version: String,
    program: PathBuf,
    kind: Kind,
    /// It was built with TLS.
    encrypts: bool,
    workers: usize,
}

impl Contender {
    /// Asks the program for its version.
    pub(crate) fn new(name: &'static str, program: PathBuf, workers: usize) -> Result<Contender, Failure> {
        let output = Command::new(&program)
            .arg("--version")
            .output()
            .map_err(|source| format!("{}: {source}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().next().unwrap_or_default().to_owned();
        let file = program.file_name().unwrap_or_default().to_string_lossy();
        let kind = if file.contains("pgbouncer") { Kind::PgBouncer } else { Kind::Bursar };
        let encrypts = kind == Kind::Bursar || text.lines().any(|line| line.starts_with("tls: "));
        Ok(Contender { name, version, program, kind, encrypts, workers })
    }

    /// Why it cannot do named prepared statements in transaction mode, if it cannot.
    pub(crate) fn lacks_prepared(&self) -> Option<String> {
        (self.kind == Kind::PgBouncer && !self.has_max_prepared())
            .then(|| format!("needs PgBouncer 1.21 or newer, found {}", self.version))
    }

    /// Why it cannot encrypt, if it cannot.
    pub(crate) fn lacks_tls(&self) -> Option<String> {
        (!self.encrypts).then(|| format!("{} was built without TLS", self.version))
    }

    fn has_max_prepared(&self) -> bool {
        let digits = self.version.trim_start_matches(|c: char| !c.is_ascii_digit());
        let mut numbers = digits.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (1, 21)
    }

    /// Everything that costs and that the other side does not do is off: logging of connections.
    fn pgbouncer_ini(&self, setup: &Setup, server: u16, port: u16, users: &Path) -> String {
        let (users, pool) = (users.display(), setup.pool);
        let prepared = if self.has_max_prepared() { "max_prepared_statements = 200\n" } else { "" };
        format!(
            "[databases]\n* = host=127.0.0.1 port={server}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\n\
             pool_mode = transaction\ndefault_pool_size = {pool}\nmax_client_conn = 5000\n\
             ignore_startup_parameters = extra_float_digits, options\n\
             log_connections = 0\nlog_disconnections = 0\n{prepared}"
        )
    }

    /// The setup's lines over those that keep limits out of the way: one user is one tenant unless it is
    /// tagged, so a tenant's share is the whole pool.
    fn bursar_toml(&self, setup: &Setup, server: u16, port: u16) -> Result<String, Failure> {
        let admin = throwaway::free_port()?;
        let setup = Setup::of(setup.pool)
            .with("listen", &format!("address = \"127.0.0.1:{port}\""))
            .with("listen", &format!("workers = {}", self.workers))
            .with("listen", "max_clients = 5000")
            .with("admin", &format!("address = \"127.0.0.1:{admin}\""))
            .with("auth", "method = \"trust\"")
            .with("database.\"*\"", "host = \"127.0.0.1\"")
            .with("database.\"*\"", &format!("port = {server}"))
            .with("pool", "mode = \"transaction\"")
            .with("pool", &format!("size = {}", setup.pool))
            .with("pool", "max_wait = \"30s\"")
            .with("server", &format!("max_backends = {}", setup.pool))
            .with("tenant.\"*\"", "max = \"100%\"")
            .with("tenant.\"*\"", "queue = 5000")
            .with("tenant.\"*\"", "max_sessions = 5000")
            .with("log", "level = \"warn\"")
            .over(&setup.bursar);
        Ok(setup.bursar.iter().fold(String::new(), |text, (table, lines)| {
            text + &format!("[{table}]\n{}\n\n", lines.join("\n"))
        }))
    }
}

/// How the proxies of a measurement are configured, beyond what is always so.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Backends of each proxy.
    pub(crate) pool: usize,
    /// Clients may have TLS.
    tls: bool,
    /// Lines of Bursar's file, by table.
    bursar: BTreeMap<String, Vec<String>>,
}

impl Setup {
    /// So many backends.
    pub(crate) fn of(pool: usize) -> Setup {
        Setup { pool, tls: false, bursar: BTreeMap::new() }
    }

    /// Where clients may have TLS.
    pub(crate) fn encrypting(self, tls: bool) -> Setup {
        Setup { tls, ..self }
    }

    /// One line more in a table of Bursar's file; replaces an earlier one of the same key.
    pub(crate) fn with(mut self, table: &str, line: &str) -> Setup {
        let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
        let lines = self.bursar.entry(table.to_owned()).or_default();
        lines.retain(|old| key(old) != key(line));
        lines.push(line.to_owned());
        self
    }

    /// All those lines more.
    fn over(self, lines: &BTreeMap<String, Vec<String>>) -> Setup {
        let lines = lines.iter().flat_map(|(table, lines)| lines.iter().map(move |line| (table, line)));
        lines.fold(self, |setup, (table, line)| setup.with(table, line))
    }
}

/// A running proxy; dropping it stops it.
pub(crate) struct Proxy {
    child: Child,
    port: u16,
}

impl Proxy {
    /// Where clients connect, on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_ready(&mut self, passwords: bool) -> Result<(), Failure> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            // Tagged, as some measurements have everything tagged.
            let look = "select 1 /*tenant='lab'*/";
            let answer = match passwords {
                // The client here has none: that somebody listens must do.
                true => TcpStream::connect(("127.0.0.1", self.port)).map(drop),
                false => Client::connect(self.port).and_then(|mut client| client.query(look)),
            };
            match answer {
                Ok(_) => return Ok(()),
                Err(_) if self.child.try_wait()?.is_some() => return Err("it ended at once".into()),
                Err(failure) if Instant::now() > deadline => return Err(failure.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        throwaway::stop(&mut self.child, "TERM");
    }
}
