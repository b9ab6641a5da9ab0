//! The one table: every fault → severity, SQLSTATE and words.
//!
//! `docs/errors.md` is the same table for readers, and a test holds the two against each other.
//! MESSAGE is constant (numbers go to DETAIL, the way out to HINT), except where PostgreSQL's own
//! text names a user, a database or a number and clients know it by heart. FATAL exactly when the
//! connection closes. Nothing here decides whether something is a fault, or sends it.

mod deadlock;
mod fault;
pub mod isolation;
mod login;
mod pinned;
mod reload;
pub mod request;

pub use deadlock::own_lock;
pub use fault::{Fault, fault};
pub use login::{Denied, bad_setting, bad_tag, denied, login_result, startup, unknown_tag};
pub use reload::reloaded;

use crate::book::{Holder, Overrun, Overstay, Refusal, Standing, Warning};
use crate::tag::Key;
use crate::wire::error::{Report, Severity};
use std::fmt::Write;
use std::time::Duration;

const TOO_MANY_SESSIONS: &str = "bursar: request opened too many sessions";
const NESTS_TOO_DEEP: &str = "bursar: request nests more sessions than its budget";
const POOL_DEADLOCK: &str = "bursar: connection pool deadlock";
const UNAVAILABLE: &str = "bursar: the server cannot be reached";
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
        Refusal::Unavailable { opens, own, error: why, standing } => {
            let mut detail = format!("tried again in {} ms; {}", opens.as_millis(), numbers(standing));
            if let Some(why) = why {
                let _ = write!(detail, " The last try: {why}");
            }
            let after = standing.retry.as_millis();
            let hint = match own {
                true => format!(
                    "Retry after {after} ms. The server does not let this role into this database, or has no room for it."
                ),
                false => {
                    format!("Retry after {after} ms. The server's circuit breaker is open (SHOW UPSTREAMS).")
                }
            };
            error(UNAVAILABLE, detail, hint)
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
        Refusal::Unavailable { .. } => Report { severity: Severity::Fatal, code: "57P03", ..refusal(why) },
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

/// A statement that was sent ahead, and hit by the signal for the one before it.
#[must_use]
pub fn hit_instead(why: &Overrun) -> Report {
    let meant = overrun(why).detail.unwrap_or_default();
    let message = "bursar: statement canceled by the end of the one before it";
    let detail = format!("The one before it was over its limit: {meant}");
    let hint = "Send it again. A statement that is not sent ahead is never hit.";
    report(Severity::Error, "57014", message, detail, hint.into())
}

/// Any of these where the backend does not come to an end, and the session must go with it.
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
