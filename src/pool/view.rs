//! What the pools show beyond the book: backends and the live detail of held leases.

use crate::book::{Activity, LeaseId, PoolId, SessionId};
use crate::net::tls::Protection;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One backend.
#[derive(Debug, Clone)]
pub struct BackendRow {
    /// Pool.
    pub pool: PoolId,
    /// Database as the client names it.
    pub database: Arc<str>,
    /// Role as the client names it.
    pub user: Arc<str>,
    /// PostgreSQL's process id.
    pub pid: i32,
    /// `host:port` or the socket's path.
    pub address: Arc<str>,
    /// When it was ready.
    pub connected: Instant,
    /// The lease that holds it; `None` = idle.
    pub lease: Option<LeaseId>,
    /// RECONNECT came after it: it is closed once it is free.
    pub outdated: bool,
    /// Shared prepared statements it has.
    pub prepared: usize,
    /// Its TLS, if it has one.
    pub protection: Option<Protection>,
}

/// One prepared statement that sessions of a pool share.
#[derive(Debug, Clone)]
pub struct PreparedRow {
    /// Pool.
    pub pool: PoolId,
    /// Database as the client names it.
    pub database: Arc<str>,
    /// Role as the client names it.
    pub user: Arc<str>,
    /// Its number; on a backend its name is `bursar_` and this.
    pub number: u32,
    /// Names that sessions have for it now.
    pub names: usize,
    /// Bytes of text and parameter types.
    pub bytes: usize,
    /// Fingerprint of as much of the text as a lease's statements keep, so that they compare.
    pub fingerprint: u64,
    /// As much of the text, only if `[leak] statement_text` allows.
    pub text: Option<String>,
}

/// Parked transactions of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParkingRow {
    /// Time beyond the least gap for which clients were silent in transactions that could be parked.
    pub parkable: Duration,
    /// Time that transactions spent parked, those that are now left out.
    pub parked: Duration,
    /// Parked now.
    pub now: u64,
    /// What became of them.
    pub parks: Vec<(&'static str, u64)>,
    /// Transactions that could not be parked, by reason.
    pub unparkable: Vec<(&'static str, u64)>,
}

/// What the session's cell knows of a held lease.
#[derive(Debug, Clone)]
pub struct LeaseDetail {
    /// Lease.
    pub lease: LeaseId,
    /// Holder.
    pub session: SessionId,
    /// PostgreSQL's process id.
    pub backend_pid: i32,
    /// What it is doing.
    pub activity: Activity,
    /// Active time so far.
    pub active: Duration,
    /// Cancel requests on their way to the backend.
    pub cancels: u32,
    /// Application name of the client.
    pub application: Arc<str>,
    /// Client address; `unix(PID)` on a Unix socket.
    pub client: Arc<str>,
    /// Last statements, oldest first.
    pub statements: Vec<StatementTrace>,
}

/// What the book does not know of a leak case: kept from when it opened, as long as the case is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeakDetail {
    /// PostgreSQL's process id; 0 = the lease had no backend yet.
    pub backend_pid: i32,
    /// Application name of the client.
    pub application: Arc<str>,
    /// Client address; `unix(PID)` on a Unix socket.
    pub client: Arc<str>,
    /// Fingerprint of the statement it had sent last when the case opened.
    pub last_fp: Option<String>,
    /// Whether its transaction had written something when PostgreSQL was asked; `None` = it was not.
    pub xid_assigned: Option<bool>,
}

/// One statement of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementTrace {
    /// Fingerprint: 64 bits of a hash of the text with literals left out, as 16 hex digits.
    pub fingerprint: String,
    /// Started, before now.
    pub ago: Duration,
    /// The text, only if `[leak] statement_text` allows; at most 256 bytes.
    pub text: Option<String>,
}
