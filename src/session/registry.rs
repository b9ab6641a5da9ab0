//! The sessions of this process: who is connected, and how to reach them.

use crate::book::{LeaseId, SessionId};
use crate::pool::cell::Cell;
use crate::tag::Tag;
use crate::wire::startup::Replication;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use subtle::ConstantTimeEq;

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
    /// Its TLS, if it has one.
    pub protection: Option<crate::net::tls::Protection>,
    /// A replication connection, and of what kind.
    pub replication: Replication,
    /// `login`, `idle`, `waiting`, `active`, `idle_in_tx`, `pinned`
    pub state: &'static str,
    /// When it connected.
    pub connected: Instant,
    /// When it last asked for something; `None` = not yet.
    pub requested: Option<Instant>,
    /// Its tags.
    pub tag: Arc<Tag>,
    /// Its lease.
    pub lease: Option<LeaseId>,
    /// PostgreSQL's process id of its backend now; 0 = none.
    pub backend_pid: i32,
    /// Names of shared prepared statements it has.
    pub prepared: usize,
}

/// What a client says to have its statement cancelled, beside a process id.
pub type CancelKey = SmallVec<[u8; 32]>;

/// The cancel keys of this process, and its sessions' rows.
#[derive(Debug, Default)]
pub struct Registry {
    keys: Mutex<HashMap<u32, SmallVec<[Keyed; 1]>>>,
}

#[derive(Debug)]
struct Keyed {
    key: CancelKey,
    cell: Arc<Cell>,
}

/// A session's cancel key, valid while this exists.
#[derive(Debug)]
pub struct Registered {
    registry: Arc<Registry>,
    pid: u32,
    id: SessionId,
}

impl Registry {
    /// Gives a session a random cancel key of `len` bytes (4, or 32 with protocol 3.2) under a
    /// process id, which several sessions may share. The key is to be told to the client.
    #[must_use]
    pub fn register(self: &Arc<Self>, pid: u32, len: usize, cell: &Arc<Cell>) -> (Registered, CancelKey) {
        let mut key = SmallVec::from_elem(0, len);
        rand::fill(&mut key[..]);
        let keyed = Keyed { key: key.clone(), cell: cell.clone() };
        self.keys.lock().entry(pid).or_default().push(keyed);
        (Registered { registry: self.clone(), pid, id: cell.id }, key)
    }

    /// The session of a process id and key; keys are compared in constant time.
    #[must_use]
    pub fn by_key(&self, pid: u32, key: &[u8]) -> Option<Arc<Cell>> {
        let keys = self.keys.lock();
        let found = keys.get(&pid)?.iter().find(|keyed| keyed.key.ct_eq(key).into());
        found.map(|keyed| keyed.cell.clone())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut keys = self.registry.keys.lock();
        if let Some(list) = keys.get_mut(&self.pid) {
            list.retain(|keyed| keyed.cell.id != self.id);
            if list.is_empty() {
                keys.remove(&self.pid);
            }
        }
    }
}

/// The row of a session.
#[must_use]
pub fn row(cell: &Cell) -> ClientRow {
    let (state, tag, lease, backend_pid) = cell.glance();
    ClientRow {
        id: cell.id,
        database: cell.database.clone(),
        user: cell.user.clone(),
        application: cell.application.clone(),
        client: cell.client.clone(),
        protection: cell.protection,
        replication: cell.replication,
        state: state.name(),
        connected: cell.connected,
        requested: cell.requested(),
        tag,
        lease,
        backend_pid,
        prepared: cell.prepared.get(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(id: u64) -> Arc<Cell> {
        let names = ("db".into(), "user".into(), "app".into());
        Arc::new(Cell::new(SessionId(id), names, "client".into(), Instant::now()))
    }

    #[test]
    fn a_key_is_good_for_its_session_while_it_lasts() {
        let registry = Arc::new(Registry::default());
        let (one, one_key) = registry.register(7, 4, &cell(1));
        let (two, two_key) = registry.register(7, 32, &cell(2));
        assert_eq!(registry.by_key(7, &one_key).unwrap().id, SessionId(1));
        assert_eq!(registry.by_key(7, &two_key).unwrap().id, SessionId(2));
        assert!(registry.by_key(8, &one_key).is_none());
        assert!(registry.by_key(7, &two_key[..4]).is_none());
        drop(one);
        assert!(registry.by_key(7, &one_key).is_none());
        drop(two);
        assert!(registry.keys.lock().is_empty());
    }
}
