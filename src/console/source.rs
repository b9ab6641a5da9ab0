//! What the faces may see and do. The house implements it over pools, registry and configuration;
//! tests implement it over planted rows.

use crate::adapt::Limits;
use crate::auth::Users;
use crate::book::advice::Advice;
use crate::book::view::{CallSiteView, RequestView};
use crate::book::{PoolId, View};
use crate::config::{Config, Right};
use crate::metrics::Metrics;
use crate::pool::view::{BackendRow, LeakDetail, LeaseDetail, ParkingRow, PreparedRow};
use crate::session::registry::ClientRow;
use crate::wire::error::Report;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

/// A command that runs: what it came to, or what to tell the administrator.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Done, Report>> + Send + 'a>>;

/// What a command came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// CommandComplete's tag.
    pub tag: String,
    /// Told before it.
    pub notices: Vec<Report>,
}

impl<S: Into<String>> From<S> for Done {
    fn from(tag: S) -> Done {
        Done { tag: tag.into(), notices: Vec::new() }
    }
}

/// The state of this process at one moment, and the levers of the console.
///
/// Every reading is a copy: nothing is held locked while a face renders it.
pub trait Source: Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> Instant;
    /// When the process started.
    fn started(&self) -> Instant;
    /// The configuration as used.
    fn config(&self) -> Arc<Config>;
    /// The users it names, for who logs in over HTTP.
    fn users(&self) -> Arc<Users>;
    /// Pools, tenants, requests, leases, waiters, leaks and budgets.
    fn view(&self) -> View;
    /// One request, current or lately ended; `None` if its id was never seen or is forgotten.
    fn request(&self, id: &str) -> Option<RequestView>;
    /// Every backend.
    fn backends(&self) -> Vec<BackendRow>;
    /// Live detail of the leases held.
    fn leases(&self) -> Vec<LeaseDetail>;
    /// What the book does not know of the leak cases in its view, by case number.
    fn leaks(&self) -> HashMap<u64, LeakDetail>;
    /// What each server said last of the connections that it lets in, by its address.
    fn server_limits(&self) -> BTreeMap<Arc<str>, Arc<Limits>>;
    /// What to change, the gravest first.
    fn advice(&self) -> Vec<Advice>;
    /// How often an application was found to starve on its own pool.
    fn saturated_total(&self) -> u64;
    /// Call sites, the one first whose leases did nothing for longest.
    fn callsites(&self) -> Vec<CallSiteView>;
    /// The shared prepared statements that sessions have most names for, of all pools.
    fn prepared(&self) -> Vec<PreparedRow>;
    /// Shared prepared statements of each pool, and bytes of their texts and parameter types.
    fn prepared_sizes(&self) -> HashMap<PoolId, (usize, usize)>;
    /// Parked transactions of each pool.
    fn parking(&self) -> HashMap<PoolId, ParkingRow>;
    /// Every client session.
    fn clients(&self) -> Vec<ClientRow>;
    /// Counters of the process.
    fn metrics(&self) -> &Metrics;
    /// Whether the process is leaving.
    fn draining(&self) -> bool;
    /// Whether the threads that serve sessions answer.
    fn alive(&self) -> bool;
    /// Runs a command; ready when it is done (PAUSE: when the last lease is back). Dropping the
    /// future gives up waiting, not the command.
    fn command(&self, command: Command) -> Running<'_>;
}

/// What the console can be told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `PAUSE [db]`: no new leases; done when none is held.
    Pause(Option<String>),
    /// `RESUME [db]`
    Resume(Option<String>),
    /// `RELOAD`
    Reload,
    /// `KILL db`: end its sessions and close its backends.
    Kill(String),
    /// `KILL_CLIENT id`
    KillClient(u64),
    /// `KILL_REQUEST id`
    KillRequest(String),
    /// `KILL_TENANT name`
    KillTenant(String),
    /// `RECONNECT [db]`: replace every backend once it is free.
    Reconnect(Option<String>),
    /// `DISABLE db`: no new sessions.
    Disable(String),
    /// `ENABLE db`
    Enable(String),
    /// `WAIT_CLOSE [db]`: wait until the backends of the last RECONNECT are gone.
    WaitClose(Option<String>),
    /// `SHUTDOWN [WAIT_FOR_SERVERS | WAIT_FOR_CLIENTS]`
    Shutdown(ShutdownMode),
    /// `SET key = value`
    Set {
        /// The key.
        key: String,
        /// Its new value.
        value: String,
    },
}

impl Command {
    /// The right that it takes. No wildcard: a new command must say.
    #[must_use]
    pub fn right(&self) -> Right {
        match self {
            Command::Pause(_)
            | Command::Resume(_)
            | Command::Reload
            | Command::Kill(_)
            | Command::KillClient(_)
            | Command::KillRequest(_)
            | Command::KillTenant(_)
            | Command::Reconnect(_)
            | Command::Disable(_)
            | Command::Enable(_)
            | Command::WaitClose(_)
            | Command::Shutdown(_)
            | Command::Set { .. } => Right::Act,
        }
    }
}

/// How to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownMode {
    /// At once.
    Immediate,
    /// When no lease is held.
    WaitForServers,
    /// When no client is connected.
    WaitForClients,
}
