//! The one table: every fault → severity, SQLSTATE and words.
//!
//! `docs/errors.md` is the same table for readers, and a test holds the two against each other.
//! MESSAGE is constant (numbers go to DETAIL, the way out to HINT), except where PostgreSQL's own
//! text names a user, a database or a number and clients know it by heart. FATAL exactly when the
//! connection closes. Nothing here decides whether something is a fault, or sends it.

mod deadlock;
pub mod isolation;
mod login;
mod pinned;
pub mod request;

pub use deadlock::own_lock;
pub use login::{bad_setting, bad_tag, login_result, startup, unknown_tag};

use crate::book::{Holder, Overrun, Overstay, Refusal, Standing, Warning};
use crate::statements::session::{MAX_NAME_BYTES, MAX_NAMES};
use crate::statements::table::{MAX_BYTES, MAX_STATEMENTS};
use crate::tag::Key;
use crate::wire::error::{Report, Severity};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

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
    /// A wrong password or an unknown user: they look alike.
    WrongPassword {
        /// The name sent.
        user: Arc<str>,
    },
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
    /// A console command failed.
    ConsoleFailed {
        /// Why.
        reason: Arc<str>,
    },
}

const TOO_MANY_SESSIONS: &str = "bursar: request opened too many sessions";
const NESTS_TOO_DEEP: &str = "bursar: request nests more sessions than its budget";
const POOL_DEADLOCK: &str = "bursar: connection pool deadlock";
const RETRY: &str = "Retry the transaction. Avoid opening a session while another one is in a transaction.";
const TOO_MANY_CLIENTS: &str = "bursar: too many sessions of this tenant";
const TOO_MANY_PINS: &str = "bursar: too many sessions keep a backend beyond their transaction";
const SLOW_STATEMENT: &str = "bursar: statement canceled after running too long";
const FASTER: &str = "Make the statement quicker (EXPLAIN), or do less in one.";
const DB_TIME: &str = "bursar: request used more database time than its budget";
const LESS_WORK: &str = "Do less in one request, or make its statements quicker. Not retryable.";
const READ: &str = "Read results to their end, fetch less at a time, or use a cursor.";
const UNPIN: &str = "End what keeps backends (SHOW PINS, SHOW LEASES), use session mode for it, or raise max_pins. Not retryable.";
const REUSE: &str = "Reuse one session for the request or batch the statement. Not retryable.";
const UNNEST: &str = "Finish a session before opening another one inside it. Not retryable.";
const SHORTER: &str = "Split the work into shorter transactions.";
const NO_NETWORK: &str = "Do not hold a transaction open across network calls.";
const FEWER_CLIENTS: &str = "Close idle connections, or make the application's pools smaller.";

/// A checkout that was refused. The connection stays, unless Bursar stops or it is a login.
#[must_use]
pub fn refusal(refusal: &Refusal) -> Report {
    let code = refusal.sqlstate();
    let error = |message, detail, hint| report(Severity::Error, code, message, detail, hint);
    match refusal {
        Refusal::WaitedTooLong { waited, dial_error, standing } => {
            let mut detail = format!("waited {} ms; {}", waited.as_millis(), numbers(standing));
            let hint = match dial_error {
                Some(error) => {
                    let _ = write!(detail, " No backend could be opened: {error}");
                    let after = standing.retry.as_millis();
                    format!("Retry after {after} ms. The server cannot be reached or refuses connections.")
                }
                None => retry(standing),
            };
            error("bursar: no backend became available in time", detail, hint)
        }
        Refusal::QueueFull { limit, standing } => {
            let detail = format!("{limit} clients wait for this pool (queue={limit}); {}", numbers(standing));
            error("bursar: too many clients wait for a backend", detail, retry(standing))
        }
        Refusal::TenantQueueFull { limit, standing } => {
            let detail = format!(
                "{} clients of this tenant wait (queue={limit}); {}",
                standing.tenant_waits,
                numbers(standing)
            );
            error("bursar: too many clients of this tenant wait for a backend", detail, retry(standing))
        }
        Refusal::TooManyLeases { ordinal, limit, own, standing } => {
            let budget = if *own { "bursar.max_leases" } else { "max_leases" };
            let detail = format!("{} opened session {ordinal}, budget {budget}={limit}.", request(standing));
            error(TOO_MANY_SESSIONS, detail, REUSE.into())
        }
        Refusal::DbTimeUsedUp { used, limit, standing } => {
            let detail = format!("{} used {}.", request(standing), db_time(*used, *limit));
            error(DB_TIME, detail, LESS_WORK.into())
        }
        Refusal::NestsTooDeep { standing } => {
            let detail = format!(
                "{} holds {}, all idle in transaction, and asked for {} (max_concurrent={}).",
                request(standing),
                count(standing.request_holds as usize, "session"),
                nth(standing.request_holds + 1),
                standing.request_limit
            );
            error(NESTS_TOO_DEEP, detail, UNNEST.into())
        }
        Refusal::TooManyPins { tenant, tenant_pins, pool_pins } => {
            error(TOO_MANY_PINS, format!("tenant {tenant}: {}", pins(*tenant_pins, *pool_pins)), UNPIN.into())
        }
        Refusal::TooManySessions { tenant, sessions, limit } => report(
            Severity::Fatal,
            code,
            TOO_MANY_CLIENTS,
            format!("tenant {tenant} has {} (max_sessions={limit}).", count(*sessions as usize, "session")),
            FEWER_CLIENTS.into(),
        ),
        Refusal::Deadlock { backends, requests, .. } => {
            error(POOL_DEADLOCK, deadlock::tied(*backends, *requests), RETRY.into())
        }
        Refusal::TooOld { age, limit } => overstay(&Overstay::Age { age: *age, limit: *limit, waiting: 0 }),
        Refusal::Closing => fault(&Fault::Shutdown),
    }
}

/// The same during a login, after which the connection cannot stay.
#[must_use]
pub fn refusal_at_login(why: &Refusal) -> Report {
    match why {
        Refusal::WaitedTooLong { dial_error: Some(error), .. } => {
            fault(&Fault::ServerUnreachable { error: error.clone() })
        }
        _ => Report { severity: Severity::Fatal, ..refusal(why) },
    }
}

/// A transaction that Bursar ends (B3, B10, B11); its session goes on.
#[must_use]
pub fn overstay(why: &Overstay) -> Report {
    let error = |code, message, detail, hint| {
        report(Severity::Error, code, message, detail, format!("Nothing was committed. {hint}"))
    };
    match *why {
        Overstay::Age { age, limit, waiting } => error(
            "25P04",
            "bursar: transaction rolled back after running too long",
            format!("transaction age {} (budget {}) while {}.", spent(age), span(limit), waited(waiting)),
            SHORTER,
        ),
        Overstay::DbTime { used, limit } => {
            error("57014", DB_TIME, format!("request used {}.", db_time(used, limit)), LESS_WORK)
        }
        Overstay::Idle { idle, limit, age, waiting } | Overstay::Leaked { idle, limit, age, waiting } => {
            error(
                "25P03",
                "bursar: transaction rolled back after being idle too long",
                format!(
                    "idle {} (budget {}) while {}; transaction age {}.",
                    spent(idle),
                    span(limit),
                    waited(waiting),
                    spent(age)
                ),
                NO_NETWORK,
            )
        }
        Overstay::Pinned { idle, limit, pin } => pinned::closed(idle, limit, pin),
        Overstay::Deadlock { backends, requests } => {
            error("40P01", POOL_DEADLOCK, deadlock::tied(backends, requests), RETRY)
        }
    }
}

/// A statement that Bursar had PostgreSQL cancel (B3, B12, B13, deadlines). What becomes of the transaction is
/// PostgreSQL's rule for an error.
#[must_use]
pub fn overrun(why: &Overrun) -> Report {
    let error = |message, detail, hint: &str| report(Severity::Error, "57014", message, detail, hint.into());
    match *why {
        Overrun::Statement { ran, limit, own } => {
            let budget = if own { "bursar.max_statement_ms" } else { "budget.statement.max_time" };
            let detail = format!("statement ran {} ({budget}: {}).", spent(ran), span(limit));
            error(SLOW_STATEMENT, detail, FASTER)
        }
        Overrun::DbTime { used, limit } => {
            error(DB_TIME, format!("request used {}.", db_time(used, limit)), LESS_WORK)
        }
        Overrun::Stalled { stalled, limit } => {
            let detail = format!("{} (budget.statement.max_stall: {}).", not_taken(stalled), span(limit));
            error("bursar: statement canceled because the client does not read its result", detail, READ)
        }
        Overrun::Deadline { spent: took, limit } => error(
            "bursar: statement canceled at its deadline",
            format!(
                "{} since it asked for a backend or began (bursar.deadline_ms: {}).",
                spent(took),
                span(limit)
            ),
            "Give it more time, or less to do.",
        ),
    }
}

/// The same where the backend does not come to an end, and the session must go with it.
#[must_use]
pub fn closing(why: Report) -> Report {
    let hint = "A COMMIT that had been sent may have been done: look before you retry.";
    hinted(Report { severity: Severity::Fatal, code: "57P01", ..why }, hint)
}

/// A budget in mode warn: a notice, and nothing changes.
#[must_use]
pub fn warning(warning: &Warning) -> Report {
    let (message, detail, hint) = match *warning {
        Warning::NestsTooDeep { holds, limit } => {
            let holds = count(holds as usize, "session");
            (NESTS_TOO_DEEP, format!("request holds {holds} (max_concurrent={limit})."), UNNEST)
        }
        Warning::TooManyLeases { ordinal, limit } => (
            TOO_MANY_SESSIONS,
            format!("request opened session {ordinal}, budget max_leases={limit}."),
            REUSE,
        ),
        Warning::DbTime { used, limit } => {
            (DB_TIME, format!("request used {}.", db_time(used, limit)), LESS_WORK)
        }
        Warning::TenantOverCap { holds, limit } => (
            "bursar: tenant uses more backends than its share",
            format!("tenant uses {holds} of {limit} backends."),
            "More will wait once the budget is enforced.",
        ),
        Warning::Age { age, limit } => (
            "bursar: transaction is running too long",
            format!("transaction age {} (budget {}).", spent(age), span(limit)),
            SHORTER,
        ),
        Warning::Idle { idle, limit } => (
            "bursar: transaction is idle too long",
            format!("idle {} (budget {}).", spent(idle), span(limit)),
            NO_NETWORK,
        ),
        Warning::Statement { ran, limit } => (
            "bursar: statement is running too long",
            format!("statement has run {} (budget {}).", spent(ran), span(limit)),
            FASTER,
        ),
        Warning::Spared { key, spent: used, limit } => (
            "bursar: budget exceeded, not enforced yet",
            format!("{} ({key}: {}).", spent(used), span(limit)),
            "It acts after a day in mode warn. To let it act now, set force = true beside the limit, or mode.warned_since.",
        ),
        Warning::Stalled { stalled, limit } => (
            "bursar: client does not read its result",
            format!("{} (budget {}).", not_taken(stalled), span(limit)),
            READ,
        ),
        Warning::TooManyPins { tenant_pins, pool_pins } => {
            (TOO_MANY_PINS, pins(tenant_pins, pool_pins), UNPIN)
        }
        Warning::ManySessions { sessions, limit } => {
            let sessions = count(sessions as usize, "session");
            (TOO_MANY_CLIENTS, format!("tenant has {sessions} (max_sessions={limit})."), FEWER_CLIENTS)
        }
    };
    report(Severity::Warning, "01000", message, detail, hint.into())
}

/// A client has set itself a wider budget than it has.
#[must_use]
pub fn loosens(key: Key, asked: &str, budget: &str) -> Report {
    report(
        Severity::Warning,
        "01000",
        "bursar: a client may only tighten its own budget",
        format!("bursar.{}={asked} is wider than {budget}, which stays.", key.name()),
        "Widen it in Bursar's configuration, for this tenant, route or class if not for all.".into(),
    )
}

/// Everything else.
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
        Fault::WrongPassword { user } => {
            named("28P01", format!("password authentication failed for user \"{user}\""))
        }
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
            Report::new(Severity::Error, "0A000", "cached plan must not change result type".to_owned())
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
            "Name the user in admin.users.",
        ),
        Fault::ConsoleFailed { reason } => {
            Report { detail: Some(reason.to_string()), ..error("55000", "bursar: the command failed") }
        }
    }
}

fn report(
    severity: Severity,
    code: &'static str,
    message: &'static str,
    detail: String,
    hint: String,
) -> Report {
    Report { detail: Some(detail), hint: Some(hint), ..Report::new(severity, code, message) }
}

fn hinted(report: Report, hint: &'static str) -> Report {
    Report { hint: Some(hint.into()), ..report }
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

/// The standing of a scope, widest last (budgets.md §2.5).
fn numbers(standing: &Standing) -> String {
    let mut text = String::new();
    if let Some(request) = &standing.request {
        let (holds, limit) = (standing.request_holds, standing.request_limit);
        let _ = write!(text, "request {request} holds {holds} of {limit} leases; ");
    }
    let _ = write!(
        text,
        "tenant {} uses {} of {} backends, {} waiting; pool {}/{}, {} of them idle in transaction.",
        standing.tenant,
        standing.tenant_holds,
        standing.tenant_limit,
        standing.tenant_waits,
        standing.pool_holds,
        standing.pool_size,
        standing.pool_idle_in_tx
    );
    text
}

fn retry(standing: &Standing) -> String {
    let mut text = format!("Retry after {} ms.", standing.retry.as_millis());
    if let Some(Holder { route, tenant, held, idle }) = &standing.longest {
        let _ = match route {
            Some(route) => write!(text, " Longest holder: route \"{route}\", "),
            None => write!(text, " Longest holder: tenant {tenant}, "),
        };
        let _ = match idle {
            Some(idle) => write!(text, "idle in transaction {} (SHOW LEASES).", spent(*idle)),
            None => write!(text, "held for {} (SHOW LEASES).", spent(*held)),
        };
    }
    text
}

fn request(standing: &Standing) -> String {
    match &standing.request {
        Some(request) => format!("request {request}"),
        None => "an untagged request".into(),
    }
}

fn pins(tenant: (u32, u32), pool: (u32, u32)) -> String {
    format!(
        "{} of this tenant (max_pins={}), {} in the pool (max_pins={}).",
        tenant.0, tenant.1, pool.0, pool.1
    )
}

fn db_time(used: Duration, limit: Duration) -> String {
    format!("{} of database time (budget.request.db_time: {})", spent(used), span(limit))
}

fn not_taken(stalled: Duration) -> String {
    format!("the client has taken nothing of it for {}", spent(stalled))
}

fn waited(clients: usize) -> String {
    match clients {
        0 => "nobody waited".into(),
        many => format!("{} waited", count(many, "client")),
    }
}

fn count(many: usize, what: &str) -> String {
    let plural = if many == 1 { "" } else { "s" };
    format!("{many} {what}{plural}")
}

/// `a 4th`, `an 8th`.
fn nth(number: u32) -> String {
    let article = match number {
        8 | 11 | 18 | 80..=89 => "an",
        _ => "a",
    };
    let suffix = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{article} {number}{suffix}")
}

/// What was measured: tenths of a second.
fn spent(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// What was configured: as short as it is exact.
pub(super) fn span(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{} s", duration.as_secs()),
        _ => format!("{} ms", duration.as_millis()),
    }
}

#[cfg(test)]
mod tests;
