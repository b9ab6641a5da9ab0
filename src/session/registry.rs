//! The sessions of this process: who is connected, and how to reach them.

use crate::book::{LeaseId, SessionId};
use crate::tag::Tag;
use std::sync::Arc;
use std::time::Instant;

/// One client session, as `SHOW CLIENTS` tells it.
#[derive(Debug, Clone)]
pub struct ClientRow {
    /// Id, for KILL_CLIENT.
    pub id: SessionId,
    /// Database asked for.
    pub database: Arc<str>,
    /// User name as sent.
    pub user: Arc<str>,
    /// Application name.
    pub application: Arc<str>,
    /// Address; `unix(PID)` on a Unix socket.
    pub client: Arc<str>,
    /// `login`, `idle`, `waiting`, `active`, `idle_in_tx`, `pinned`
    pub state: &'static str,
    /// When it connected.
    pub connected: Instant,
    /// Its tags.
    pub tag: Arc<Tag>,
    /// Its lease.
    pub lease: Option<LeaseId>,
    /// PostgreSQL's process id of its backend now; 0 = none.
    pub backend_pid: i32,
}
