//! What the console pulls and sees.

use super::{Pool, Pools, view};
use crate::backend::Backend;
use crate::backend::trail::{TEXT, fingerprint};
use crate::book::{LeaseId, PoolId};
use crate::clock;
use crate::statements::Statement;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// Most shared statements that a view shows.
const PREPARED_ROWS: usize = 1000;

impl Pools {
    /// PAUSE: no new leases, of one database or of all.
    pub fn pause(&self, database: Option<&str>) {
        self.book.lock().pause(database);
    }

    /// RESUME.
    pub fn resume(self: &Arc<Self>, database: Option<&str>) {
        let mut actions = Vec::new();
        self.book.lock().resume(database, clock::now(), &mut actions);
        self.carry_out(actions);
    }

    /// Refuses everybody who waits, and everybody who comes: the process is leaving.
    pub fn close(self: &Arc<Self>) {
        let mut actions = Vec::new();
        self.book.lock().close(&mut actions);
        self.carry_out(actions);
    }

    /// RECONNECT: every backend is replaced once it is free.
    pub fn reconnect(self: &Arc<Self>, database: Option<&str>) {
        let pools = self.pools.read().clone();
        for pool in pools.iter().filter(|pool| database.is_none_or(|name| *pool.database == *name)) {
            self.renew(pool);
        }
    }

    /// Closes the backends of a pool: the idle ones now, the others when they come back.
    pub(super) fn renew(self: &Arc<Self>, pool: &Pool) {
        self.renewed(pool, pool.store.close_all());
    }

    /// The server of this backend, between two leases of it, is not what its pool wants any more, if that is so:
    /// every backend of the pool is replaced once it is free, by one of a server that will do. Returns whether
    /// this one is fit.
    pub(super) fn still_suits(self: &Arc<Self>, pool: &Pool, backend: &mut Backend) -> bool {
        backend.doubted = false;
        let suits = backend.suits(pool.target().attrs);
        if suits == Some(false)
            && let Some(closed) = pool.store.close_generation(backend.generation)
        {
            let wanted = pool.target().attrs.name();
            tracing::warn!(
                database = %pool.database, user = %pool.user, server = %backend.address, wanted, "the server has changed"
            );
            pool.target().forget_last();
            self.forget_spare(&pool.target().address);
            self.renewed(pool, closed);
        }
        suits == Some(true)
    }

    fn renewed(self: &Arc<Self>, pool: &Pool, closed: usize) {
        // What the new ones report may differ.
        pool.greetings.lock().clear();
        if closed > 0 {
            self.idle_closed(pool, closed);
        }
    }

    /// Whether any lease of a database (or of any) is held.
    #[must_use]
    pub fn is_leased(&self, database: Option<&str>) -> bool {
        let view = self.view();
        view.pools.iter().any(|pool| pool.leased > 0 && database.is_none_or(|name| *pool.database == *name))
    }

    /// What the book shows.
    #[must_use]
    pub fn view(&self) -> crate::book::View {
        self.book.lock().view(clock::now())
    }

    /// One request.
    #[must_use]
    pub fn request(&self, id: &str) -> Option<crate::book::view::RequestView> {
        self.book.lock().request(id, clock::now())
    }

    /// What is known of each call site.
    #[must_use]
    pub fn callsites(&self) -> Vec<crate::book::view::CallSiteView> {
        self.book.lock().callsites()
    }

    /// What the book does not know of the leak cases it shows, by case.
    #[must_use]
    pub fn leak_details(&self) -> HashMap<u64, view::LeakDetail> {
        self.leaks.lock().all()
    }

    /// The shared prepared statements that sessions have most names for, of all pools.
    #[must_use]
    pub fn prepared(&self, with_text: bool) -> Vec<view::PreparedRow> {
        let mut rows: Vec<view::PreparedRow> = Vec::new();
        for pool in self.pools.read().iter() {
            let row = |(statement, names): (&Statement, usize)| {
                let text = &statement.text()[..statement.text().len().min(TEXT)];
                view::PreparedRow {
                    pool: pool.id,
                    database: pool.database.clone(),
                    user: pool.user.clone(),
                    number: statement.id.number(),
                    names,
                    bytes: statement.tail().len(),
                    fingerprint: fingerprint(text),
                    text: with_text.then(|| String::from_utf8_lossy(text).into_owned()),
                }
            };
            rows.extend(pool.statements.lock().most_named(PREPARED_ROWS).into_iter().map(row));
        }
        rows.sort_by_key(|row| Reverse(row.names));
        rows.truncate(PREPARED_ROWS);
        rows
    }

    /// Shared prepared statements of each pool, and bytes of their texts and parameter types.
    #[must_use]
    pub fn prepared_sizes(&self) -> HashMap<PoolId, (usize, usize)> {
        self.pools.read().iter().map(|pool| (pool.id, pool.statements.lock().size())).collect()
    }

    /// Parked transactions of each pool.
    #[must_use]
    pub fn parking(&self) -> HashMap<PoolId, view::ParkingRow> {
        self.pools.read().iter().map(|pool| (pool.id, pool.parking.row())).collect()
    }

    /// Functions, tables or types of a database have been seen to change.
    pub fn altered(&self, database: &str) {
        for pool in self.pools.read().iter().filter(|pool| *pool.database == *database) {
            pool.parking.altered();
        }
    }

    /// Every backend, idle or leased.
    #[must_use]
    pub fn backends(&self) -> Vec<view::BackendRow> {
        let held: HashMap<i32, LeaseId> = self
            .cells()
            .iter()
            .filter_map(|cell| {
                let (_, _, lease, pid) = cell.glance();
                Some((pid, lease?))
            })
            .collect();
        let mut rows = Vec::new();
        for pool in self.pools.read().iter() {
            let current = pool.store.generation();
            for opened in pool.backends.lock().iter() {
                let Some(backend) = opened.cancel.upgrade() else { continue };
                rows.push(view::BackendRow {
                    pool: pool.id,
                    database: pool.database.clone(),
                    user: pool.user.clone(),
                    pid: backend.pid,
                    address: pool.target().address.clone(),
                    connected: opened.connected,
                    lease: held.get(&backend.pid).copied(),
                    outdated: opened.generation != current,
                    prepared: opened.prepared.get(),
                    protection: backend.secured.as_ref().and_then(|secured| secured.protection),
                });
            }
        }
        rows
    }
}
