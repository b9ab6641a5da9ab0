//! What goes wrong besides budgets: in the login, the protocol, the backend, by order.

use super::{hinted, report};
use crate::config::Right;
use crate::statements::session::{MAX_NAME_BYTES, MAX_NAMES};
use crate::statements::table::{MAX_BYTES, MAX_STATEMENTS};
use crate::wire::error::{Report, Severity};
use std::sync::Arc;

/// What can go wrong besides budgets: at login, in the protocol, with the backend, by order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// B18: `listen.max_clients` sessions are here already.
    TooManyClients {
        /// The bound.
        limit: usize,
    },
    /// Not ready within `listen.login_timeout`.
    LoginTimeout,
    /// One of `listen.max_logins` connections that have not logged in, and slow where another one waits.
    Crowded {
        /// The bound.
        limit: usize,
    },
    /// A wrong password or an unknown user: they look alike.
    WrongPassword {
        /// The name sent.
        user: Arc<str>,
    },
    /// The server cannot be asked about a user (`auth.query`).
    UsersUnavailable,
    /// No `[database]` table of that name, nor one for any name.
    NoSuchDatabase {
        /// The name sent.
        database: Arc<str>,
    },
    /// A start-up packet that is none.
    BadStartup,
    /// A start-up packet without a user.
    NoUser,
    /// Another major version than 3.
    UnsupportedProtocol {
        /// Asked for.
        major: u16,
        /// Asked for.
        minor: u16,
    },
    /// Bytes sent in the clear behind a request for encryption.
    EarlyData,
    /// A start-up packet in the clear where the configuration wants TLS.
    TlsRequired,
    /// `replication` was asked for where the configuration refuses it.
    Replication,
    /// A message type PostgreSQL does not know, or not there.
    InvalidMessageType {
        /// The type byte.
        tag: u8,
    },
    /// A length that cannot be, or is beyond PostgreSQL's own limit.
    InvalidMessageLength,
    /// A message whose body is not what its type says.
    InvalidMessage,
    /// The server cannot be reached, and a login needs it.
    ServerUnreachable {
        /// What the last dial said.
        error: Arc<str>,
    },
    /// The backend went away under a session, with nothing that may have been committed.
    BackendLost,
    /// The backend went away before it said whether a commit was done.
    OutcomeUnknown,
    /// A cancel request reached a session that waited for a backend.
    CancelledInQueue,
    /// A name that the session has given to nothing.
    UndefinedStatement {
        /// The name sent.
        name: Arc<str>,
    },
    /// The rows of a prepared statement have another shape by now than a client was told.
    StalePlan,
    /// The session has as many prepared statements as it may.
    TooManyNames,
    /// The sessions of the pool have as many different prepared statements as they may.
    TooManyStatements,
    /// A statement would leave what the policy of its pool refuses.
    StateRefused {
        /// The kind of it, as the policy's keys are called.
        kind: &'static str,
    },
    /// A transaction block in statement mode.
    TransactionBlock,
    /// A statement in a transaction that has failed.
    TransactionFailed,
    /// Bursar stops.
    Shutdown,
    /// KILL_CLIENT or KILL.
    Killed,
    /// The console does not understand the command.
    ConsoleSyntax,
    /// The console understands but does not do it.
    ConsoleUnsupported,
    /// The console is not for this user.
    ConsoleDenied {
        /// The name sent.
        user: Arc<str>,
    },
    /// The console is for this user, but not for this.
    RightMissing {
        /// What it takes.
        right: Right,
    },
    /// A console command failed.
    ConsoleFailed {
        /// Why.
        reason: Arc<str>,
    },
}

/// What is said of it.
#[must_use]
pub fn fault(fault: &Fault) -> Report {
    let fatal = |code, message: &'static str| Report::new(Severity::Fatal, code, message);
    let named = |code, message: String| Report::new(Severity::Fatal, code, message);
    let error = |code, message: &'static str| Report::new(Severity::Error, code, message);
    match fault {
        Fault::TooManyClients { limit } => report(
            Severity::Fatal,
            "53300",
            "bursar: too many clients already",
            format!("max_clients={limit}."),
            "Close idle connections, or raise listen.max_clients.".into(),
        ),
        Fault::LoginTimeout => fatal("57014", "canceling authentication due to timeout"),
        Fault::Crowded { limit } => report(
            Severity::Fatal,
            "53300",
            "bursar: too many connections are logging in",
            format!("max_logins={limit}."),
            "Log in as soon as you are connected, or raise listen.max_logins.".into(),
        ),
        Fault::WrongPassword { user } => {
            named("28P01", format!("password authentication failed for user \"{user}\""))
        }
        // Nothing of the server is said to somebody who has not proved who he is.
        Fault::UsersUnavailable => hinted(
            fatal("57P03", "bursar: users cannot be looked up at the moment"),
            "Connect again after a pause.",
        ),
        Fault::NoSuchDatabase { database } => {
            named("3D000", format!("database \"{database}\" does not exist"))
        }
        Fault::BadStartup => fatal("08P01", "invalid startup packet"),
        Fault::NoUser => fatal("28000", "no PostgreSQL user name specified in startup packet"),
        Fault::UnsupportedProtocol { major, minor } => named(
            "0A000",
            format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2"),
        ),
        Fault::EarlyData => fatal("08P01", "received unencrypted data after SSL request"),
        Fault::TlsRequired => hinted(
            fatal("28000", "bursar: connections without TLS are not let in"),
            "Connect with sslmode=require, or set tls.client.mode = \"allow\".",
        ),
        Fault::Replication => hinted(
            fatal("0A000", "bursar: replication connections are not let in"),
            "Set replication = \"pass\" in [pool] or [database.NAME], or connect to PostgreSQL itself.",
        ),
        Fault::InvalidMessageType { tag } => named("08P01", format!("invalid frontend message type {tag}")),
        Fault::InvalidMessageLength => fatal("08P01", "invalid message length"),
        Fault::InvalidMessage => fatal("08P01", "invalid message format"),
        Fault::ServerUnreachable { error } => report(
            Severity::Fatal,
            "57P03",
            "bursar: the server cannot be reached",
            format!("{error}"),
            "Connect again after a pause.".into(),
        ),
        Fault::BackendLost => hinted(
            fatal("08006", "bursar: the backend connection was lost"),
            "Nothing was committed that was not acknowledged. Connect again and retry the transaction.",
        ),
        Fault::OutcomeUnknown => hinted(
            fatal("08007", "bursar: the backend connection was lost, transaction outcome unknown"),
            "The transaction may have been committed. Look before you retry.",
        ),
        Fault::TransactionFailed => {
            error("25P02", "current transaction is aborted, commands ignored until end of transaction block")
        }
        Fault::CancelledInQueue => error("57014", "canceling statement due to user request"),
        Fault::StateRefused { kind } => report(
            Severity::Error,
            "0A000",
            "bursar: the statement would keep its backend beyond the transaction",
            format!("{} (policy.{kind} = \"refuse\").", statement_of(kind)),
            format!("Set policy.{kind} = \"pin\" for this database, or use one with mode = \"session\"."),
        ),
        Fault::TransactionBlock => report(
            Severity::Error,
            "0A000",
            "bursar: transaction blocks are not allowed in statement mode",
            "The transaction block was rolled back.".into(),
            "Send the statements in one query, or set mode = \"transaction\" for this database or user."
                .into(),
        ),
        Fault::UndefinedStatement { name } => {
            Report::new(Severity::Error, "26000", format!("prepared statement \"{name}\" does not exist"))
        }
        Fault::StalePlan => {
            // The text is translated where PostgreSQL says it; this is what drivers know it by.
            let routine = Some("RevalidateCachedQuery");
            let text = "cached plan must not change result type";
            Report { routine, ..Report::new(Severity::Error, "0A000", text) }
        }
        Fault::TooManyNames => report(
            Severity::Error,
            "53400",
            "bursar: too many prepared statements of one session",
            format!("A session may have {MAX_NAMES} of them, and {MAX_NAME_BYTES} bytes of names."),
            "Close statements that are not used any more, or limit the driver's statement cache.".into(),
        ),
        Fault::TooManyStatements => report(
            Severity::Error,
            "53400",
            "bursar: too many different prepared statements",
            format!(
                "The sessions of a pool may have {MAX_STATEMENTS} of them, and {MAX_BYTES} bytes of text."
            ),
            "Use parameters instead of values in the text, or limit the drivers' statement caches.".into(),
        ),
        Fault::Shutdown | Fault::Killed => {
            fatal("57P01", "terminating connection due to administrator command")
        }
        Fault::ConsoleSyntax => {
            hinted(error("42601", "bursar: the console does not know this command"), "Try SHOW HELP.")
        }
        Fault::ConsoleUnsupported => {
            hinted(error("0A000", "bursar: the console does not support this"), "Try SHOW HELP.")
        }
        Fault::ConsoleDenied { user } => hinted(
            named("42501", format!("permission denied for database \"bursar\" to user \"{user}\"")),
            "Name the user in admin.view, or in admin.users for every right.",
        ),
        Fault::RightMissing { right } => report(
            Severity::Error,
            "42501",
            "bursar: a right is missing",
            format!("It takes the right \"{}\".", right.name()),
            format!("Name the user in {}, or in admin.users for every right, and reload.", right.key()),
        ),
        Fault::ConsoleFailed { reason } => {
            Report { detail: Some(reason.to_string()), ..error("55000", "bursar: the command failed") }
        }
    }
}

/// What leaves a kind of state, in the words of SQL.
fn statement_of(kind: &str) -> &'static str {
    match kind {
        "listen" => "LISTEN needs the same backend for as long as it listens",
        "temp_table" => "a temporary table exists on its own backend only",
        "advisory_lock" => {
            "a session-level advisory lock is held by its backend; pg_advisory_xact_lock is not"
        }
        "hold_cursor" => "a cursor WITH HOLD exists on its own backend only",
        "prepare" => "PREPARE names a statement on its own backend only; what drivers prepare is not meant",
        "load" => "LOAD changes its own backend only, for as long as that lives",
        _ => "its effect is on its own backend only",
    }
}
