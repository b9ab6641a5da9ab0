//! A PostgreSQL server that nobody has to set up: found, initialised, started on a free port of the
//! loopback interface, and removed again. For `bursar demo` and for the comparison in `benches/versus`.
//!
//! It never touches a cluster of the machine: only the installed binaries are used. It is not a
//! server for anybody's data either: trust authentication, no fsync, a directory that is deleted.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long `initdb` and the start may take on a slow machine.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a child may take to stop when asked, before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at a child that starts or stops.
const POLL: Duration = Duration::from_millis(20);

/// Why there is no throwaway server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No `initdb` anywhere.
    #[error(
        "PostgreSQL's server binaries were not found (looked in $PGBIN, $PATH and the usual places); \
         on Debian or Ubuntu: apt-get install postgresql"
    )]
    NoBinaries,
    /// PostgreSQL refuses to run as root.
    #[error(
        "PostgreSQL refuses to run as root, and this machine lacks {0}; run this as an ordinary user, \
         or install it (Debian or Ubuntu: apt-get install postgresql util-linux)"
    )]
    RootWithout(&'static str),
    /// A program could not be started.
    #[error("{} could not be started: {source}", program.display())]
    Spawn {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program ended in failure.
    #[error("{program} failed:\n{output}")]
    Failed {
        /// Which.
        program: &'static str,
        /// What it said.
        output: String,
    },
    /// The server did not become ready.
    #[error("PostgreSQL was not ready after {} s:\n{log}", START_DEADLINE.as_secs())]
    NotReady {
        /// The server's log.
        log: String,
    },
    /// Files.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The account the server runs as, when that is not our own.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

/// A running throwaway server; dropping it stops it and removes its files.
#[derive(Debug)]
pub struct Cluster {
    server: Option<Child>,
    account: Option<Account>,
    binaries: PathBuf,
    port: u16,
    /// Last, so that it is removed after the server has stopped.
    dir: ScratchDir,
}

impl Cluster {
    /// Initialises and starts a server with superuser `postgres`, trust authentication and no
    /// fsync, on a free port of 127.0.0.1; `settings` are added as `-c name=value`.
    ///
    /// Blocks for a second or two. Call it from the main thread: the server is told to stop when
    /// the thread that started it ends.
    ///
    /// # Errors
    /// The binaries are missing, or they do not run here.
    pub fn start(purpose: &str, settings: &[(&str, &str)]) -> Result<Cluster, Error> {
        let binaries = find_binaries()?;
        let account = account_for_server()?;
        let dir = ScratchDir::create(purpose)?;
        if let Some(Account { uid, gid }) = account {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid))?;
        }
        let mut cluster = Cluster { server: None, account, binaries, port: free_port()?, dir };
        cluster.initialise()?;
        cluster.launch(settings)?;
        Ok(cluster)
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A directory for files that go with the server; removed with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// One of PostgreSQL's own programs, such as `pgbench`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        let beside = self.binaries.join(name);
        if beside.exists() { beside } else { PathBuf::from(name) }
    }

    /// A command that runs as the server's account, in its own process group (Ctrl-C is for us to
    /// handle), and that is told to stop when we die without having been able to clean up.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        command_as(self.account, program)
    }

    /// Writes a file beside the server's data, readable for its account.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_file(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.dir().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn initialise(&self) -> Result<(), Error> {
        let program = self.program("initdb");
        let output = self
            .command(&program)
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg("--pgdata")
            .arg(self.dir().join("data"))
            .output()
            .map_err(|source| Error::Spawn { program, source })?;
        if output.status.success() {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::Failed { program: "initdb", output })
    }

    fn launch(&mut self, settings: &[(&str, &str)]) -> Result<(), Error> {
        let program = self.program("postgres");
        let log_path = self.dir().join("postgres.log");
        let log = fs::File::create(&log_path)?;
        let mut command = self.command(&program);
        command
            .arg("-D")
            .arg(self.dir().join("data"))
            .args(["-p", &self.port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]);
        for (name, value) in settings {
            command.args(["-c", &format!("{name}={value}")]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|source| Error::Spawn { program, source })?;
        self.server = Some(child);
        self.wait_ready(&log_path)
    }

    /// The eighth line of `postmaster.pid` tells readiness; it is what `pg_ctl -w` looks at.
    fn wait_ready(&mut self, log: &Path) -> Result<(), Error> {
        let status = self.dir().join("data/postmaster.pid");
        let deadline = Instant::now() + START_DEADLINE;
        while Instant::now() < deadline {
            let ready = fs::read_to_string(&status)
                .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready"));
            if ready {
                return Ok(());
            }
            if self.server.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
                break;
            }
            std::thread::sleep(POLL);
        }
        Err(Error::NotReady { log: fs::read_to_string(log).unwrap_or_default() })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // SIGINT is PostgreSQL's fast shutdown: open transactions are rolled back.
            stop(&mut server, "INT");
        }
    }
}

/// Asks a child to stop by a signal (a name such as `"TERM"`) and kills it if it does not within 5 s.
///
/// Blocks until it is gone.
pub fn stop(child: &mut Child, signal: &str) {
    let asked = Command::new("/bin/sh")
        .args(["-c", r#"kill -s "$0" "$1""#, signal, &child.id().to_string()])
        .stderr(Stdio::null())
        .status();
    if asked.is_ok() {
        let deadline = Instant::now() + STOP_DEADLINE;
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
    }
    // Both fail only if it has gone by itself, which is what is wanted.
    let _ = child.kill();
    let _ = child.wait();
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
///
/// # Errors
/// The system has none left.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A command that runs as ourselves, in its own process group, and that is told to stop when we die
/// without having been able to clean up.
#[must_use]
pub fn command(program: &Path) -> Command {
    command_as(None, program)
}

fn command_as(account: Option<Account>, program: &Path) -> Command {
    let mut command = match (account, find_in_path("setpriv")) {
        (account, Some(setpriv)) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "INT"]);
            if let Some(Account { uid, gid }) = account {
                command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"]);
            }
            command.arg(program);
            command
        }
        (_, None) => Command::new(program),
    };
    command.process_group(0).current_dir("/");
    command
}

/// Root must step down to the account that PostgreSQL's packages create.
fn account_for_server() -> Result<Option<Account>, Error> {
    if fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() != 0) {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let account = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != "postgres" {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { uid, gid })
    });
    let account = account.ok_or(Error::RootWithout("the account postgres"))?;
    find_in_path("setpriv").ok_or(Error::RootWithout("setpriv"))?;
    Ok(Some(account))
}

/// The directory of `initdb` and `postgres`: `$PGBIN`, `$PATH`, then where packages put them, the
/// newest version first.
fn find_binaries() -> Result<PathBuf, Error> {
    let complete = |dir: &PathBuf| dir.join("initdb").exists() && dir.join("postgres").exists();
    if let Some(dir) = std::env::var_os("PGBIN").map(PathBuf::from) {
        return Some(dir).filter(complete).ok_or(Error::NoBinaries);
    }
    let in_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
        let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
        dirs
    });
    let mut packaged: Vec<(u32, PathBuf)> = Vec::new();
    for (parent, prefix) in
        [("/usr/lib/postgresql", ""), ("/usr", "pgsql-"), ("/opt/homebrew/opt", "postgresql@")]
    {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok());
            if let Some(version) = version {
                packaged.push((version, entry.path().join("bin")));
            }
        }
    }
    packaged.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    in_path
        .chain(packaged.into_iter().map(|(_, dir)| dir))
        .chain([PathBuf::from("/usr/local/pgsql/bin")])
        .find(complete)
        .ok_or(Error::NoBinaries)
}

/// A program of `$PATH`, or of the places of administrators that `$PATH` of a user may lack.
#[must_use]
pub fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A new directory under the system's temporary one; removed when dropped.
#[derive(Debug)]
struct ScratchDir(PathBuf);

impl ScratchDir {
    fn create(purpose: &str) -> io::Result<ScratchDir> {
        let unique = format!("bursar-{purpose}-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let path = std::env::temp_dir().join(unique);
        // `create_dir` fails if the path exists, be it a symbolic link planted by somebody else.
        fs::create_dir(&path)?;
        Ok(ScratchDir(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // Nothing sensible is left to do if it fails; the name says whose it was.
        let _ = fs::remove_dir_all(&self.0);
    }
}
