//! What the book says no with, and what it says beforehand: refusals, warnings, and why a lease or a statement
//! must end. Each has its numbers; `session/reply.rs` gives it words.

use std::sync::Arc;
use std::time::Duration;

/// Why a lease must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overstay {
    /// B10: FATAL 25P04.
    Age {
        /// How old the transaction is.
        age: Duration,
        /// The budget.
        limit: Duration,
        /// Waiters at that moment.
        waiting: usize,
    },
    /// B3: FATAL 57014.
    DbTime {
        /// Time in which statements of the request ran.
        used: Duration,
        /// The budget.
        limit: Duration,
    },
    /// B11: FATAL 25P03.
    Idle {
        /// How long it has been idle.
        idle: Duration,
        /// The budget.
        limit: Duration,
        /// How old the transaction is.
        age: Duration,
        /// Waiters at that moment.
        waiting: usize,
    },
    /// Leaked (budgets.md §5.2): 25P03, as B11.
    Leaked {
        /// How long it has been idle.
        idle: Duration,
        /// The threshold.
        limit: Duration,
        /// How old the transaction is.
        age: Duration,
        /// Waiters at that moment.
        waiting: usize,
    },
    /// Kept by a pin, doing nothing (`[leak] pinned_close`): FATAL 57P01.
    Pinned {
        /// For how long.
        idle: Duration,
        /// The limit.
        limit: Duration,
        /// What keeps it.
        pin: &'static str,
    },
    /// Its request is the victim of a deadlock of the pool (budgets.md §3.4): 40P01.
    Deadlock {
        /// Backends held by those who wait for each other.
        backends: u32,
        /// Requests that hold them.
        requests: u32,
    },
}

/// Why a statement is cancelled: ERROR 57014, and the session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overrun {
    /// B12.
    Statement {
        /// How long it has run.
        ran: Duration,
        /// The budget.
        limit: Duration,
        /// Whether the client set it itself (`bursar.max_statement_ms`).
        own: bool,
    },
    /// B3.
    DbTime {
        /// Time in which statements of the request ran.
        used: Duration,
        /// The budget.
        limit: Duration,
    },
    /// B13: the client does not take the result.
    Stalled {
        /// For how long.
        stalled: Duration,
        /// The budget.
        limit: Duration,
    },
    /// The client's own `bursar.deadline_ms`.
    Deadline {
        /// Time since it asked for its backend, or since the statement began.
        spent: Duration,
        /// The deadline.
        limit: Duration,
    },
}

/// The scope's numbers at the moment of a refusal, for DETAIL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// The request, if tagged.
    pub request: Option<Arc<str>>,
    /// Leases the request holds.
    pub request_holds: u32,
    /// Its budget (B1).
    pub request_limit: u32,
    /// The tenant.
    pub tenant: Arc<str>,
    /// Leases the tenant holds in this pool.
    pub tenant_holds: u32,
    /// Its cap in this pool (B4).
    pub tenant_limit: u32,
    /// The tenant's waiters in this pool.
    pub tenant_waits: u32,
    /// Leases of the pool.
    pub pool_holds: u32,
    /// Its size.
    pub pool_size: u32,
    /// Of those, idle in transaction (as of the last tick, which may be the one that refuses).
    pub pool_idle_in_tx: u32,
    /// The longest holder, as of the last tick.
    pub longest: Option<Holder>,
    /// When trying again may help.
    pub retry: Duration,
}

/// Who has held a backend longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its route, if tagged.
    pub route: Option<Arc<str>>,
    /// Its tenant.
    pub tenant: Arc<str>,
    /// For how long it has held.
    pub held: Duration,
    /// For how long it has been idle in transaction, if it is.
    pub idle: Option<Duration>,
}

/// A refusal is a typed value with its numbers; `session/reply.rs` gives it words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// B9: 53300.
    WaitedTooLong {
        /// How long.
        waited: Duration,
        /// The last dial error, if the pool has no backend at all because dialling fails.
        dial_error: Option<Arc<str>>,
        /// The numbers.
        standing: Box<Standing>,
    },
    /// B15: 53300.
    QueueFull {
        /// The cap.
        limit: usize,
        /// The numbers.
        standing: Box<Standing>,
    },
    /// The server is down, or does not let this pool in, for longer than the client waits: 53300.
    Unavailable {
        /// When it is tried again.
        opens: Duration,
        /// Of this role and database alone.
        own: bool,
        /// The last dial error.
        error: Option<Arc<str>>,
        /// The numbers.
        standing: Box<Standing>,
    },
    /// B8: 53400.
    TenantQueueFull {
        /// The cap.
        limit: u32,
        /// The numbers.
        standing: Box<Standing>,
    },
    /// B2: 54000.
    TooManyLeases {
        /// Which lease this would have been.
        ordinal: u32,
        /// The budget.
        limit: u32,
        /// Whether the client set it itself (`bursar.max_leases`).
        own: bool,
        /// The numbers.
        standing: Box<Standing>,
    },
    /// B3: 57014, the request has used up its time.
    DbTimeUsedUp {
        /// Time in which statements of the request ran.
        used: Duration,
        /// The budget.
        limit: Duration,
        /// The numbers.
        standing: Box<Standing>,
    },
    /// B1: 54000, all leases of the request are idle in transaction.
    NestsTooDeep {
        /// The numbers.
        standing: Box<Standing>,
    },
    /// B17: 54000.
    TooManyPins {
        /// The tenant.
        tenant: Arc<str>,
        /// Leases of the tenant that are pinned, and how many may be.
        tenant_pins: (u32, u32),
        /// The same of the pool.
        pool_pins: (u32, u32),
    },
    /// B18, at login: FATAL 53300.
    TooManySessions {
        /// The tenant.
        tenant: Arc<str>,
        /// Its sessions, without this one.
        sessions: u32,
        /// The budget.
        limit: u32,
    },
    /// Its request is the victim of a deadlock of the pool (budgets.md §3.4): 40P01.
    Deadlock {
        /// Backends held by those who wait for each other.
        backends: u32,
        /// Requests that hold them.
        requests: u32,
        /// The numbers.
        standing: Box<Standing>,
    },
    /// B10 of a transaction that was parked: 25P04.
    TooOld {
        /// How old it is.
        age: Duration,
        /// The budget.
        limit: Duration,
    },
    /// The pool is being shut down: 57P01.
    Closing,
}

impl Refusal {
    /// The SQLSTATE of budgets.md §2.5, here because the book counts refusals by it.
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Refusal::WaitedTooLong { .. }
            | Refusal::QueueFull { .. }
            | Refusal::Unavailable { .. }
            | Refusal::TooManySessions { .. } => "53300",
            Refusal::TenantQueueFull { .. } => "53400",
            Refusal::TooManyLeases { .. } | Refusal::NestsTooDeep { .. } | Refusal::TooManyPins { .. } => {
                "54000"
            }
            Refusal::DbTimeUsedUp { .. } => "57014",
            Refusal::Deadlock { .. } => "40P01",
            Refusal::TooOld { .. } => "25P04",
            Refusal::Closing => "57P01",
        }
    }
}

/// A budget exceeded in `warn` mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// B1
    NestsTooDeep {
        /// Leases the request holds with this one.
        holds: u32,
        /// The budget.
        limit: u32,
    },
    /// B2
    TooManyLeases {
        /// Which lease this is.
        ordinal: u32,
        /// The budget.
        limit: u32,
    },
    /// B3
    DbTime {
        /// Time in which statements of the request ran.
        used: Duration,
        /// The budget.
        limit: Duration,
    },
    /// B4
    TenantOverCap {
        /// Leases with this one.
        holds: u32,
        /// The cap.
        limit: u32,
    },
    /// B10
    Age {
        /// How old.
        age: Duration,
        /// The budget.
        limit: Duration,
    },
    /// B11
    Idle {
        /// How long idle.
        idle: Duration,
        /// The budget.
        limit: Duration,
    },
    /// B12
    Statement {
        /// How long it has run.
        ran: Duration,
        /// The budget.
        limit: Duration,
    },
    /// A budget in mode enforce that acts only after a day in mode warn (budgets.md §2.4).
    Spared {
        /// The table of its limits.
        key: &'static str,
        /// What is spent.
        spent: Duration,
        /// The limit that would act.
        limit: Duration,
    },
    /// B13
    Stalled {
        /// For how long the client has not taken the result.
        stalled: Duration,
        /// The budget.
        limit: Duration,
    },
    /// B17
    TooManyPins {
        /// Leases of the tenant that are pinned with this one, and how many may be.
        tenant_pins: (u32, u32),
        /// The same of the pool.
        pool_pins: (u32, u32),
    },
    /// B18
    ManySessions {
        /// Sessions of the tenant with this one.
        sessions: u32,
        /// The budget.
        limit: u32,
    },
}
