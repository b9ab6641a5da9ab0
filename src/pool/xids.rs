//! Whether a transaction that may be leaked has written anything, as PostgreSQL tells (`xid_assigned`, budgets.md
//! §5.3).
//!
//! Asked of open cases only, at most once a second, over the connection that row locks are asked over
//! (`locks`). Nobody waits for the answer, and an answer about a transaction that is over by then is none.

use super::Pools;
use super::cell::Cell;
use super::locks::{PATIENCE, ask_over};
use crate::backend::ask::Row;
use crate::book::{LeakClass, LeakEvent, LeaseId, Outcome};
use crate::config::Mode;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::time::timeout;

/// Cases asked about at once; of more nothing is known.
const MOST: usize = 50;

/// A case with a transaction of which nobody knows whether it has written.
pub(super) struct Open {
    case: u64,
    lease: LeaseId,
    cell: Arc<Cell>,
    pid: i32,
    /// When its transaction began.
    tx: Instant,
}

impl Open {
    /// Whether it is still the same transaction.
    fn stands(&self) -> bool {
        self.cell.activity(self.lease).is_some_and(|activity| activity.tx_start == Some(self.tx))
    }
}

impl Pools {
    /// A case is open: it is asked about with the next question.
    pub(super) fn wonder(&self, event: &LeakEvent) {
        use LeakClass::{IdleInTx, Leaked, LongTx, Nested};
        let of_transaction = matches!(event.class, IdleInTx | Leaked | LongTx | Nested);
        if event.outcome != Outcome::Open || event.mode == Mode::Observe || !of_transaction {
            return;
        }
        let Some(cell) = self.cell(event.session) else { return };
        let (Some(pid), Some(activity)) = (cell.backend_of(event.lease), cell.activity(event.lease)) else {
            return;
        };
        let Some(tx) = activity.tx_start else { return };
        let mut open = self.unasked.lock();
        if open.len() < MOST && open.iter().all(|one| one.case != event.id) {
            open.push(Open { case: event.id, lease: event.lease, cell, pid, tx });
        }
    }

    /// Asks each server about its cases, in a task of its own.
    pub(super) fn ask_who_writes(self: &Arc<Self>) {
        let open = std::mem::take(&mut *self.unasked.lock());
        let mut servers: BTreeMap<Arc<str>, (Arc<super::Pool>, Vec<Open>)> = BTreeMap::new();
        for one in open.into_iter().filter(Open::stands) {
            let Some(pool) = self.pool(&one.cell.database, &one.cell.user, None) else { continue };
            let address = pool.target().address.clone();
            servers.entry(address).or_insert((pool, Vec::new())).1.push(one);
        }
        for (address, (pool, open)) in servers {
            let Some(spare) = self.borrow_spare(&address) else {
                self.unasked.lock().extend(open);
                continue;
            };
            let pools = self.clone();
            tokio::spawn(async move {
                let pids = open.iter().map(|one| one.pid.to_string()).collect::<Vec<_>>().join(",");
                let question = question(&pids);
                let answer = timeout(PATIENCE, ask_over(spare, &pool.target(), &question)).await;
                let (backend, rows) = match answer {
                    Ok(Ok((backend, rows))) => (Some(backend), rows),
                    _ => (None, Vec::new()),
                };
                pools.note_writers(&open, &rows);
                pools.return_spare(address, backend);
            });
        }
    }

    fn note_writers(&self, open: &[Open], rows: &[Row]) {
        let mut leaks = self.leaks.lock();
        for one in open.iter().filter(|one| one.stands()) {
            if let Some(wrote) = rows.iter().find_map(|row| wrote(row, one.pid)) {
                leaks.learn_xid(one.case, wrote);
            }
        }
    }
}

/// A role that may not look at another one's backend sees no state of it, and no transaction id either.
fn question(pids: &str) -> String {
    format!(
        "SELECT pid, backend_xid IS NOT NULL FROM pg_catalog.pg_stat_activity \
         WHERE pid = ANY ('{{{pids}}}'::pg_catalog.int4[]) AND state IS NOT NULL"
    )
}

/// What a row says of this process id.
fn wrote(row: &Row, pid: i32) -> Option<bool> {
    let of = std::str::from_utf8(row.first()?.as_ref()?).ok()?.parse::<i32>().ok()?;
    (of == pid).then_some(row.get(1)?.as_deref() == Some(b"t"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_row_speaks_of_its_own_process_only() {
        let row = |pid: &'static str, wrote: &'static str| {
            vec![Some(Bytes::from_static(pid.as_bytes())), Some(Bytes::from_static(wrote.as_bytes()))]
        };
        assert_eq!(wrote(&row("7", "t"), 7), Some(true));
        assert_eq!(wrote(&row("7", "f"), 7), Some(false));
        assert_eq!(wrote(&row("8", "t"), 7), None);
        assert_eq!(wrote(&vec![None, None], 7), None);
        assert_eq!(wrote(&Vec::new(), 7), None);
    }
}
