//! Passwords that a program prints: tokens of a cloud's identity service, or whatever a vault has.
//!
//! It is run without a shell, at the first dial and again once its answer is older than the configuration lets
//! it be, one run at a time for each pool. What it prints is the password and nothing else sees it; the first line
//! that it says on its standard error is for the log.

use super::target::Target;
use crate::clock;
use crate::config::{Database, MAX_PASSWORD, PasswordCommand, Secret};
use std::fmt;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// As much of what is said on standard error is kept for the log, in bytes.
const MAX_COMPLAINT: usize = 512;

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum CommandFault {
    /// It cannot be run.
    #[error("cannot be started: {0}")]
    Start(io::ErrorKind),
    /// It ran longer than `password_command_timeout`.
    #[error("did not end in time")]
    Timeout,
    /// It says itself that it failed.
    #[error("failed: {0}")]
    Failed(ExitStatus),
    /// It printed more than 64 KiB.
    #[error("printed more than 64 KiB")]
    TooLong,
    /// It printed nothing, or something with a NUL, or not UTF-8.
    #[error("printed no password: it must be a text that is not empty and has no NUL")]
    NoPassword,
    /// The pipe to it broke.
    #[error("cannot be read: {0}")]
    Io(io::ErrorKind),
}

/// One command, and what it said last.
pub(super) struct Source {
    command: PasswordCommand,
    ttl: Duration,
    timeout: Duration,
    /// Held while it runs: who comes in the meantime waits for the same answer.
    last: Mutex<Option<(Instant, Secret)>>,
}

impl Source {
    /// `None` = the table has no command.
    pub(super) fn of(database: &Database) -> Option<Source> {
        let command = database.password_command.clone()?;
        let (ttl, timeout) = (database.password_command_ttl, database.password_command_timeout);
        Some(Source { command, ttl, timeout, last: Mutex::new(None) })
    }

    /// What it was made from.
    pub(super) fn setup(&self) -> (PasswordCommand, Duration, Duration) {
        (self.command.clone(), self.ttl, self.timeout)
    }

    /// The password, young enough. Cancel safe: a run that is given up is ended, and the next one begins anew.
    pub(super) async fn password(&self, target: &Target) -> Result<Secret, CommandFault> {
        let mut last = self.last.lock().await;
        let young = |at: Instant| clock::now().saturating_duration_since(at) < self.ttl;
        if let Some((_, secret)) = last.as_ref().filter(|(at, _)| young(*at)) {
            return Ok(secret.clone());
        }
        *last = None;
        // Its life begins somewhere in between.
        let asked = clock::now();
        let secret = self.run(target).await?;
        *last = Some((asked, secret.clone()));
        Ok(secret)
    }

    async fn run(&self, target: &Target) -> Result<Secret, CommandFault> {
        let mut child = start(&self.command, target)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let talk = async {
            let (printed, said) = tokio::join!(printed(out), complaint(err));
            (printed, said, child.wait().await)
        };
        let ended = tokio::time::timeout(self.timeout, talk).await;
        let (printed, said, ended) = ended.map_err(|_| CommandFault::Timeout)?;
        let status = ended.map_err(|error| CommandFault::Io(error.kind()))?;
        if !said.is_empty() {
            let (program, server) = (self.command.name(), &target.address);
            tracing::warn!(program, %server, %status, said, "a password command complains");
        }
        // One that prints too much is cut off and fails for that: say the cause.
        let printed = printed?;
        if !status.success() {
            return Err(CommandFault::Failed(status));
        }
        let text = text_of(&printed).ok_or(CommandFault::NoPassword)?;
        Ok(Secret::new(text.to_owned()))
    }

    /// The server does not take it: the next dial asks again.
    pub(super) async fn forget(&self) {
        *self.last.lock().await = None;
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("command", &self.command).finish_non_exhaustive()
    }
}

fn start(command: &PasswordCommand, target: &Target) -> Result<Child, CommandFault> {
    let mut child = Command::new(&command.program);
    child.args(command.arguments.iter().map(Secret::expose));
    // Bursar's own variables may hold other passwords.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"BURSAR_")) {
        child.env_remove(name);
    }
    let (hosts, ports) = target.for_libpq();
    child.env("PGHOST", hosts).env("PGPORT", ports);
    child.env("PGUSER", &target.user).env("PGDATABASE", &target.dbname);
    child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    child.spawn().map_err(|error| CommandFault::Start(error.kind()))
}

async fn printed(out: Option<impl AsyncRead + Unpin>) -> Result<Zeroizing<Vec<u8>>, CommandFault> {
    let mut all = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD + 2));
    let Some(out) = out else { return Ok(all) };
    // One more for the newline, and one to see that it is too much. Closing the pipe ends who goes on.
    let read = out.take(MAX_PASSWORD as u64 + 2).read_to_end(&mut all).await;
    read.map_err(|error| CommandFault::Io(error.kind()))?;
    let length = text_end(&all);
    if length > MAX_PASSWORD { Err(CommandFault::TooLong) } else { Ok(all) }
}

/// The first line, as far as it can be printed; the rest is read so that nobody has to wait with writing it.
async fn complaint(err: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut err) = err else { return String::new() };
    let (mut kept, mut some) = (Vec::new(), [0; 512]);
    while let Ok(n @ 1..) = err.read(&mut some).await {
        let room = MAX_COMPLAINT - kept.len();
        kept.extend_from_slice(&some[..n.min(room)]);
    }
    let text = String::from_utf8_lossy(&kept);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Where the password ends: before the last line's end.
fn text_end(printed: &[u8]) -> usize {
    let printed =
        printed.strip_suffix(b"\n").map_or(printed, |rest| rest.strip_suffix(b"\r").unwrap_or(rest));
    printed.len()
}

fn text_of(printed: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(&printed[..text_end(printed)]).ok()?;
    (!text.is_empty() && !text.contains('\0')).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::super::target::tests::database;
    use super::*;
    use std::sync::Arc;

    fn source(script: &str, ttl: Duration, timeout: Duration) -> Source {
        let arguments = ["-c", script].map(|text| Secret::new(text.to_owned())).to_vec();
        of(PasswordCommand { program: "sh".into(), arguments }, ttl, timeout)
    }

    fn of(command: PasswordCommand, ttl: Duration, timeout: Duration) -> Source {
        let table = Database {
            password_command: Some(command),
            password_command_ttl: ttl,
            password_command_timeout: timeout,
            ..database("db", 5433)
        };
        Source::of(&table).unwrap()
    }

    fn target() -> Target {
        Target::new(&database("db", 5433), "app", "alice", None)
    }

    const LONG: Duration = Duration::from_secs(60);

    async fn says(script: &str) -> Result<String, String> {
        let said = source(script, LONG, LONG).password(&target()).await;
        said.map(|secret| secret.expose().to_owned()).map_err(|fault| fault.to_string())
    }

    #[tokio::test]
    async fn what_is_printed_is_the_password() {
        assert_eq!(says("echo secret").await.unwrap(), "secret");
        assert_eq!(says("printf 'a b\\r\\n'").await.unwrap(), "a b");
        assert_eq!(says("printf 'two\\nlines\\n\\n'").await.unwrap(), "two\nlines\n");
        let whom = says("echo $PGUSER@$PGHOST:$PGPORT/$PGDATABASE; echo noise >&2").await;
        assert_eq!(whom.unwrap(), "alice@db:5433/app");
        let long = says("head -c 65536 /dev/zero | tr '\\0' x; echo").await.unwrap();
        assert_eq!(long.len(), MAX_PASSWORD);
    }

    #[tokio::test]
    async fn what_is_no_password_is_told_and_not_quoted() {
        for (script, said) in [
            ("head -c 65537 /dev/zero | tr '\\0' x", "printed more than 64 KiB"),
            ("yes", "printed more than 64 KiB"),
            ("true", "printed no password: it must be a text that is not empty and has no NUL"),
            ("printf 'a\\0b'", "printed no password: it must be a text that is not empty and has no NUL"),
            ("printf '\\377'", "printed no password: it must be a text that is not empty and has no NUL"),
            ("echo hunter2; exit 3", "failed: exit status: 3"),
        ] {
            assert_eq!(says(script).await.unwrap_err(), said, "{script}");
        }
        let nobody = PasswordCommand { program: "/nonexistent".into(), arguments: Vec::new() };
        let fault = of(nobody, LONG, LONG).password(&target()).await.unwrap_err();
        assert_eq!(fault.to_string(), "cannot be started: entity not found");
        let slow = source("exec sleep 600", LONG, Duration::from_millis(50));
        assert!(matches!(slow.password(&target()).await.unwrap_err(), CommandFault::Timeout));
    }

    #[tokio::test]
    async fn it_runs_once_for_all_who_wait_and_again_when_its_answer_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("runs");
        let script = format!("echo run >> {0}; wc -l < {0} | tr -d ' '", count.display());
        let source = Arc::new(source(&script, LONG, LONG));
        let asked: Vec<_> = (0..8)
            .map(|_| {
                let source = source.clone();
                tokio::spawn(async move { source.password(&target()).await.unwrap().expose().to_owned() })
            })
            .collect();
        for answer in asked {
            assert_eq!(answer.await.unwrap(), "1");
        }
        source.forget().await;
        assert_eq!(source.password(&target()).await.unwrap().expose(), "2");
        let never = super::tests::source(&script, Duration::ZERO, LONG);
        assert_eq!(never.password(&target()).await.unwrap().expose(), "3");
        assert_eq!(never.password(&target()).await.unwrap().expose(), "4");
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let source = source("token hunter2", LONG, LONG);
        *source.last.try_lock().unwrap() = Some((clock::now(), Secret::new("hunter2".into())));
        assert!(!format!("{source:?}").contains("hunter2"), "{source:?}");
    }
}
