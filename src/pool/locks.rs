//! Row locks, of one's own request or of others: the question to PostgreSQL, and what its answer comes to.
//!
//! The question goes over a connection of Bursar's own, because it must be heard when every backend of
//! the pool is taken. There is one a server, opened when a statement is suspected, beside
//! `server.max_backends`, and closed when there was nothing to ask for [`KEEP`]. A server that has no
//! room for it is asked again a second later; nobody waits for the answer.

use super::cell::OwnLock;
use super::{Cell, Pool, Pools};
use crate::backend::{Backend, Target, ask, dial};
use crate::book::{Deadlock, DeadlockKind, LeaseId, Resolution, Suspect};
use crate::clock;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long the connection is kept without a question.
const KEEP: Duration = Duration::from_secs(10);
/// How long an answer, or a cancel request's connection, may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Rows of an answer: of a queue for one row that is longer, the first will do.
const MAX_ROWS: usize = 500;

/// What is known of a server between two questions.
#[derive(Debug, Default)]
pub(super) struct Spare {
    /// `None` while a question is on its way, or if there is no connection.
    backend: Option<Backend>,
    asking: bool,
    asked: Option<Instant>,
    /// Statements that wait for another request's lock, told of once: lease and when it began.
    told: Vec<(LeaseId, Instant)>,
}

/// Servers by address.
pub(super) type Spares = HashMap<Arc<str>, Spare>;

/// A suspect whose backend is known.
struct Asked {
    suspect: Suspect,
    cell: Arc<Cell>,
    pid: i32,
}

impl Pools {
    /// Asks each server about its suspects, in a task of its own.
    pub(super) fn ask_locks(self: &Arc<Self>, suspects: Vec<Suspect>) {
        let mut servers: BTreeMap<Arc<str>, (Arc<Pool>, Vec<Asked>)> = BTreeMap::new();
        for suspect in suspects {
            let (Some(pool), Some(cell)) = (self.by_id(suspect.pool), self.cell(suspect.session)) else {
                continue;
            };
            let Some(pid) = cell.backend_of(suspect.lease) else { continue };
            let address = pool.target().address.clone();
            servers.entry(address).or_insert((pool, Vec::new())).1.push(Asked { suspect, cell, pid });
        }
        for (address, (pool, asked)) in servers {
            let Some(backend) = self.borrow_spare(&address) else { continue };
            tokio::spawn(self.clone().ask_server(address, pool, backend, asked));
        }
    }

    async fn ask_server(
        self: Arc<Self>,
        address: Arc<str>,
        pool: Arc<Pool>,
        backend: Option<Backend>,
        asked: Vec<Asked>,
    ) {
        let answer = question(backend, &pool.target(), &asked).await;
        let (backend, blockers) = match answer {
            Ok((backend, blockers)) => (Some(backend), blockers),
            Err(error) => {
                tracing::warn!(server = %address, %error, "cannot ask who waits for locks");
                (None, HashMap::new())
            }
        };
        for one in &asked {
            if let Some(blockers) = blockers.get(&one.pid) {
                self.judge(&address, one, blockers).await;
            }
        }
        let running = |&(lease, since): &(LeaseId, Instant)| {
            asked.iter().any(|one| (one.suspect.lease, one.suspect.since) == (lease, since))
        };
        self.spares.lock().entry(address.clone()).or_default().told.retain(running);
        self.return_spare(address, backend);
    }

    /// For a question: the connection to a server, if there is one. `None` while another is on its way.
    pub(super) fn borrow_spare(&self, address: &Arc<str>) -> Option<Option<Backend>> {
        let mut spares = self.spares.lock();
        let spare = spares.entry(address.clone()).or_default();
        (!std::mem::replace(&mut spare.asking, true)).then(|| spare.backend.take())
    }

    /// The connection to a server that is not what it was; one that asks ends by itself.
    pub(super) fn forget_spare(&self, address: &Arc<str>) {
        if let Some(spare) = self.spares.lock().get_mut(address) {
            spare.backend = None;
        }
    }

    /// The question has been asked.
    pub(super) fn return_spare(&self, address: Arc<str>, backend: Option<Backend>) {
        let mut spares = self.spares.lock();
        let spare = spares.entry(address).or_default();
        (spare.backend, spare.asking, spare.asked) = (backend, false, Some(clock::now()));
    }

    /// A suspect waits for a lock of these backends, or of those they wait for.
    async fn judge(self: &Arc<Self>, address: &Arc<str>, asked: &Asked, blockers: &[i32]) {
        let Asked { suspect, cell, pid } = asked;
        let own = suspect.idle.iter().find_map(|&(lease, session)| {
            let holder = self.cell(session)?;
            let at = holder.backend_of(lease).filter(|at| blockers.contains(at))?;
            Some((holder, lease, at))
        });
        let Some((holder, lease, holder_pid)) = own else {
            let others = self.chain(blockers);
            if !suspect.idle.is_empty() {
                self.report_foreign(address, asked, &others);
            }
            let mut book = self.book.lock();
            book.waits_for_lock(suspect.lease, suspect.since, others.into(), clock::now());
            if let Some(due) = book.hastened() {
                self.expect_tick(due);
            }
            return;
        };
        let idle = holder.activity(lease).map(|activity| activity.since);
        let lock = OwnLock {
            waits: (*pid, last_statement(cell)),
            holds: (holder_pid, last_statement(&holder)),
            idle: idle.map_or(Duration::ZERO, |since| clock::now().saturating_duration_since(since)),
        };
        let evidence = format!(
            "statement {} of backend {} waits for a lock of backend {}, idle in transaction after statement {}",
            lock.waits.1, lock.waits.0, lock.holds.0, lock.holds.1
        );
        // Told before the signal is out, so that the session knows when the error comes.
        let Some(ticket) = cell.begin_own_cancel(suspect.lease, suspect.since, lock) else { return };
        let handle = ticket.handle.clone();
        match handle.send(PATIENCE, || ticket.is_wanted()).await {
            Ok(crate::backend::Cancelled::Withdrawn) => {}
            Ok(_) => self.file(suspect, Resolution::Cancelled, evidence),
            Err(error) => {
                tracing::warn!(%error, session = cell.id.0, "cannot cancel a statement that waits for its own request");
            }
        }
    }

    /// Somebody else has the lock: told once a statement, nothing is done.
    fn report_foreign(self: &Arc<Self>, address: &Arc<str>, asked: &Asked, others: &str) {
        let Asked { suspect, cell, pid } = asked;
        let key = (suspect.lease, suspect.since);
        let mut spares = self.spares.lock();
        let told = &mut spares.entry(address.clone()).or_default().told;
        if told.contains(&key) {
            return;
        }
        told.push(key);
        drop(spares);
        let evidence =
            format!("statement {} of backend {pid} waits for a lock of {others}", last_statement(cell));
        self.file(suspect, Resolution::Reported, evidence);
    }

    /// Who is in the way, the nearest eight.
    fn chain(&self, blockers: &[i32]) -> String {
        blockers.iter().take(8).map(|pid| self.describe(*pid)).collect::<Vec<_>>().join(", ")
    }

    fn describe(&self, pid: i32) -> String {
        let cells = self.cells();
        let holder = cells.iter().find(|cell| {
            let (_, _, lease, of) = cell.glance();
            lease.is_some() && of == pid
        });
        match holder {
            Some(cell) => {
                let (state, tag, ..) = cell.glance();
                let request = tag.request.as_deref().unwrap_or("none");
                format!("backend {pid} ({}, request {request}, tenant {})", state.name(), tag.tenant)
            }
            None => format!("backend {pid} (not one of Bursar's leases)"),
        }
    }

    fn file(self: &Arc<Self>, suspect: &Suspect, resolution: Resolution, evidence: String) {
        let mut actions = Vec::new();
        let case = Deadlock {
            id: 0,
            kind: DeadlockKind::Lock,
            resolution,
            pool: suspect.pool,
            since: suspect.since,
            detected: clock::now().saturating_duration_since(suspect.since),
            lasted: None,
            victim: (resolution == Resolution::Cancelled).then(|| suspect.tag.clone()),
            holders: suspect.idle.len() as u32 + 1,
            parties: 1,
            waiters: 1,
            evidence,
        };
        self.book.lock().locked(case, &mut actions);
        self.carry_out(actions);
    }

    /// Closes connections that nobody has asked over for a while.
    pub(super) fn close_spares(&self) {
        let now = clock::now();
        self.spares.lock().retain(|_, spare| {
            let fresh = spare.asked.is_none_or(|asked| now.saturating_duration_since(asked) < KEEP);
            if !fresh && let Some(backend) = spare.backend.take() {
                backend.close();
            }
            spare.asking || fresh
        });
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error(transparent)]
    Dial(#[from] crate::backend::DialError),
    #[error(transparent)]
    Ask(#[from] ask::AskError),
    #[error("no answer in time")]
    Slow,
}

/// Asks over a connection, or a new one.
pub(super) async fn ask_over(
    backend: Option<Backend>,
    target: &Target,
    text: &str,
) -> Result<(Backend, Vec<ask::Row>), Unanswered> {
    let mut backend = match backend {
        Some(backend) => backend,
        None => dial(&target.aside(), PATIENCE).await?,
    };
    let rows = timeout(PATIENCE, ask::ask(&mut backend, text)).await.map_err(|_| Unanswered::Slow)??;
    Ok((backend, rows))
}

/// Who blocks whom, by the process id of a suspect, over as many others as lie between.
async fn question(
    backend: Option<Backend>,
    target: &Target,
    asked: &[Asked],
) -> Result<(Backend, HashMap<i32, Vec<i32>>), Unanswered> {
    let pids = asked.iter().map(|one| one.pid.to_string()).collect::<Vec<_>>().join(",");
    let text = format!(
        "WITH RECURSIVE chain(root, pid) AS (\
         SELECT w.pid, b.pid FROM pg_catalog.unnest('{{{pids}}}'::pg_catalog.int4[]) AS w(pid), \
         pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) AS b(pid) \
         UNION SELECT c.root, b.pid FROM chain AS c, \
         pg_catalog.unnest(pg_catalog.pg_blocking_pids(c.pid)) AS b(pid)) \
         SELECT root, pid FROM chain LIMIT {MAX_ROWS}"
    );
    let (backend, rows) = ask_over(backend, target, &text).await?;
    let mut blockers: HashMap<i32, Vec<i32>> = HashMap::new();
    let number = |value: Option<&bytes::Bytes>| std::str::from_utf8(value?).ok()?.parse::<i32>().ok();
    for row in &rows {
        let pair = row.first().zip(row.get(1));
        let pair = pair.and_then(|(root, pid)| number(root.as_ref()).zip(number(pid.as_ref())));
        if let Some((root, pid)) = pair {
            blockers.entry(root).or_default().push(pid);
        }
    }
    Ok((backend, blockers))
}

fn last_statement(cell: &Cell) -> String {
    let detail = cell.detail(false, clock::now());
    let last = detail.and_then(|detail| detail.statements.last().map(|last| last.fingerprint.clone()));
    last.unwrap_or_else(|| "unknown".into())
}
