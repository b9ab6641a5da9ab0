//! What each server lets in, asked when a pool has its first backend there, and what does not fit that, said once
//! (budgets.md S2-29). What it comes to is decided in [`crate::adapt`].
//!
//! The questions go over an idle backend, which the book lends: no connection more, nobody's lease, and nothing
//! that a client would wait for. A pool that never has one idle when the janitor looks is asked about over a
//! connection aside after ten seconds. One pool at a time; what cannot be read is tried again after a minute.

use super::locks::PATIENCE;
use super::{Pool, Pools};
use crate::adapt::limits::{QUESTIONS, together};
use crate::adapt::refused::Full;
use crate::adapt::{Demand, Finding, Limits, Severity, Sizes, findings};
use crate::backend::ask::{AskError, try_ask};
use crate::backend::{Backend, Object, Store, dial};
use crate::book::advice::Advice;
use crate::clock;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long a pool may be too busy to lend a backend.
const BUSY: Duration = Duration::from_secs(10);
/// Between two attempts that fail.
const AGAIN: Duration = Duration::from_secs(60);
/// Rows of advice of one topic.
const EACH: usize = 5;

/// What is known of the limits of one pool.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The last reading and its number.
    limits: Option<(u64, Arc<Limits>)>,
    /// The server that its backends are of.
    of: Option<Origin>,
    /// Since when it is to be read, and not before when.
    due: Option<(Instant, Instant)>,
    /// Backends refused, by the limit that was used up.
    refused: [u64; Full::ALL.len()],
}

/// What tells a server from another: its address, the version that it told at login, and the store's generation.
#[derive(Debug, PartialEq, Eq)]
struct Origin(Arc<str>, Option<Bytes>, u64);

/// Of all pools.
#[derive(Debug, Default)]
pub(super) struct Sizing {
    reading: AtomicBool,
    /// Something has changed that findings go by.
    changed: AtomicBool,
    readings: AtomicU64,
    told: Mutex<Vec<Finding>>,
}

impl Sizing {
    /// Sizes or limits are not what they were.
    pub(super) fn has_changed(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }
}

impl Pool {
    /// A backend was opened. Of another server than before, or the `only` one (the server may have been started
    /// anew): then its limits are read again.
    pub(super) fn note_server(&self, backend: &Backend, only: bool) {
        let version = backend.parameters.iter().find(|(name, _)| name == "server_version");
        let version = version.map(|(_, version)| version.clone());
        let origin = Origin(backend.address.clone(), version, backend.generation);
        let now = clock::now();
        let mut known = self.limits.lock();
        if only || known.of.as_ref() != Some(&origin) {
            known.of = Some(origin);
            known.due = Some((now, now));
        }
    }

    /// PostgreSQL has let no more in, for want of this.
    pub(super) fn note_full(&self, full: Full) {
        self.limits.lock().refused[full as usize] += 1;
    }
}

impl Pools {
    /// Reads what is due, in a task of its own, and tells what is new. For the janitor.
    pub(super) fn look_at_limits(self: &Arc<Self>) {
        if self.sizing.changed.swap(false, Ordering::Relaxed) {
            self.tell_findings();
        }
        let now = clock::now();
        let is_due = |pool: &&Arc<Pool>| pool.limits.lock().due.is_some_and(|(_, at)| at <= now);
        let due: Vec<Arc<Pool>> = self.pools.read().iter().filter(is_due).cloned().collect();
        if due.is_empty() || self.sizing.reading.swap(true, Ordering::Acquire) {
            return;
        }
        let pools = self.clone();
        tokio::spawn(async move {
            for pool in due {
                pools.read_limits(&pool).await;
            }
            pools.sizing.reading.store(false, Ordering::Release);
        });
    }

    async fn read_limits(self: &Arc<Self>, pool: &Arc<Pool>) {
        let Some((since, _)) = pool.limits.lock().due else { return };
        let read = if let Some(mut object) = self.borrow_idle(pool) {
            let read = read_over(&mut object).await;
            let back = match read {
                Some(_) => Some(object),
                None => {
                    Store::cut(object);
                    None
                }
            };
            self.bring_back(pool, back, 0);
            read
        } else if clock::now().saturating_duration_since(since) >= BUSY {
            match dial(&pool.target().aside(), PATIENCE).await {
                Ok(mut backend) => {
                    let read = read_over(&mut backend).await;
                    backend.close();
                    read
                }
                Err(_) => None,
            }
        } else {
            return;
        };
        let mut known = pool.limits.lock();
        let Some(limits) = read else {
            known.due = Some((since, clock::now() + AGAIN));
            tracing::debug!(database = %pool.database, user = %pool.user, "the server's limits were not read");
            return;
        };
        // Unless another server came meanwhile.
        known.due.take_if(|(begun, _)| *begun == since);
        known.limits = Some((self.sizing.readings.fetch_add(1, Ordering::Relaxed), Arc::new(limits)));
        self.sizing.has_changed();
    }

    /// An idle backend, out of the store, that the book has lent; [`Pools::bring_back`] ends that.
    fn borrow_idle(self: &Arc<Self>, pool: &Pool) -> Option<Object> {
        if !self.book.lock().lend_idle(clock::now(), pool.id) {
            return None;
        }
        let object = self.take_idle(pool, None);
        if object.is_none() {
            // One of the lost is the one that was lent.
            self.bring_back(pool, None, pool.store.take_lost().saturating_sub(1));
        }
        object
    }

    /// `None` = it is gone, and so many idle ones with it.
    fn bring_back(self: &Arc<Self>, pool: &Pool, object: Option<Object>, lost: usize) {
        let (now, mut actions) = (clock::now(), Vec::new());
        let mut book = self.book.lock();
        for _ in 0..lost {
            book.idle_closed(now, pool.id, &mut actions);
        }
        book.bring_back(now, pool.id, object, &mut actions);
        drop(book);
        self.carry_out(actions);
    }

    /// Logs each finding once, and again when it has been gone or says something else.
    fn tell_findings(&self) {
        let found = findings(&self.sizes());
        let mut told = self.sizing.told.lock();
        for finding in found.iter().filter(|finding| !told.iter().any(|old| old.repeats(finding))) {
            let (scope, seen, advice) = (finding.scope(), finding.finding(), finding.advice());
            match finding.severity {
                Severity::Refusals => tracing::warn!(
                    event = "connection_limit",
                    scope,
                    finding = seen,
                    advice,
                    "more backends may be opened than PostgreSQL lets in"
                ),
                Severity::Tight => tracing::info!(
                    event = "connection_limit",
                    scope,
                    finding = seen,
                    advice,
                    "the pools may take nearly every connection of the server"
                ),
            }
        }
        *told = found;
    }

    /// What may be opened where: of the pools that ever had a backend.
    fn sizes(&self) -> Sizes {
        let pools = self.pools.read();
        let demand = |pool: &Arc<Pool>| {
            let known = pool.limits.lock();
            known.of.as_ref()?;
            let limits = known.limits.clone();
            drop(known);
            Some(Demand::of(&pool.database, &pool.target().place(), &pool.rules.load(), limits))
        };
        let pools = pools.iter().filter_map(demand).collect();
        let beside = self.directory().map(|directory| directory.place()).into_iter().collect();
        Sizes { pools, max_backends: self.config().server.max_backends, beside }
    }

    /// What each server said last.
    #[must_use]
    pub fn server_limits(&self) -> BTreeMap<Arc<str>, Arc<Limits>> {
        let pools = self.pools.read();
        let read =
            |pool: &Arc<Pool>| Some((pool.limits.lock().limits.clone()?, pool.target().address.clone()));
        let mut read: Vec<_> = pools.iter().filter_map(read).collect();
        read.sort_by_key(|((number, _), _)| *number);
        read.into_iter().map(|((_, limits), address)| (address, limits)).collect()
    }

    /// Advice about limits: what does not fit, and what has been refused.
    pub(super) fn advice_of_limits(&self) -> Vec<Advice> {
        let row = |finding: &Finding| Advice {
            topic: "connection_limit",
            scope: finding.scope(),
            finding: finding.finding(),
            advice: finding.advice(),
            value: finding.limit as f64,
        };
        let mut rows: Vec<Advice> = findings(&self.sizes()).iter().take(EACH).map(row).collect();
        let mut refusals = Vec::new();
        for pool in self.pools.read().iter() {
            let refused = pool.limits.lock().refused;
            let some = Full::ALL.into_iter().zip(refused).filter(|(_, count)| *count > 0);
            refusals.extend(some.map(|(full, count)| Advice {
                topic: "connection_refused",
                scope: format!("{}/{}", pool.database, pool.user),
                finding: format!("PostgreSQL refused {count} backends since start: {} was used up", full.name()),
                advice: "See connection_limit; if that has no row, others use it up: pg_stat_activity says who.".into(),
                value: count as f64,
            }));
        }
        refusals.sort_by(|one, other| other.value.total_cmp(&one.value));
        rows.extend(refusals.into_iter().take(EACH));
        rows
    }
}

/// Asks everything; `None` if the connection is of no use any more.
pub async fn read_over(backend: &mut Backend) -> Option<Limits> {
    timeout(PATIENCE, read(backend)).await.ok()?.ok()
}

/// In one question, if all of it may be asked.
async fn read(backend: &mut Backend) -> Result<Limits, AskError> {
    if let Some(rows) = try_ask(backend, &together()).await? {
        return Ok(Limits::of(rows.first().map_or(&[], Vec::as_slice)));
    }
    let mut limits = Limits::default();
    for (number, question) in QUESTIONS.into_iter().enumerate() {
        let rows = try_ask(backend, question).await?;
        limits.learn(number, rows.as_ref().and_then(|rows| rows.first()).map(Vec::as_slice));
    }
    Ok(limits)
}
