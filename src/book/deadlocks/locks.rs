//! Row locks of one's own request (budgets.md §3.4): whom to suspect, and when to ask PostgreSQL.
//!
//! A statement that waits for a row which another session of its request has locked waits for ever,
//! and PostgreSQL cannot see why: the other one is idle, because the application waits for this one.
//! The book sees the pattern and asks, at most once a second; the pool's doors carry the question to
//! the server and act on the answer.
//!
//! The same question tells a statement that waits for anybody's lock from one that is slow (budgets.md §5.2,
//! `lock_wait`). It is asked of statements that run for a second while a transaction of several statements,
//! older than they are, is open in the same database: without one there is hardly a lock to wait for, and a
//! server that only has much to do is not asked.

use super::cases::{Deadlock, Suspect};
use crate::book::{Action, Book, Doing, LeaseId, SessionId};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A statement that runs for this long beside an idle sibling may wait for its lock.
const LONG: Duration = Duration::from_secs(1);
/// Once the server is asked, it is asked of these too: the next question comes a second later.
const LONGISH: Duration = Duration::from_millis(400);
/// Between two questions. PostgreSQL's manual warns that `pg_blocking_pids` takes the lock manager's
/// own locks.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Statements asked of at once that may wait for somebody else; the others' turn comes a second later.
const STRANGERS: usize = 50;

impl<B, W> Book<B, W> {
    /// At a tick: statements that run for long while a lease of their own request is idle in
    /// transaction.
    pub(in crate::book) fn suspect_locks(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        let running = self.running_beside_others();
        let oldest = running.iter().map(|&(_, _, since)| since).min();
        let earliest = self.watchman.asked.map_or(now, |asked| asked + ASK_EVERY);
        let due = oldest.map(|oldest| earliest.max(oldest + LONG));
        if let Some(due) = due.filter(|due| now < *due) {
            self.wake(due);
        }
        let mut suspects: Vec<Suspect> = Vec::new();
        if due.is_some_and(|due| now >= due) {
            let longish = running.into_iter().filter(|&(_, _, since)| now >= since + LONGISH);
            suspects.extend(longish.filter_map(|(id, request, since)| self.suspect(id, request, since)));
        }
        if now >= earliest {
            self.suspect_strangers(now, &mut suspects);
        }
        if !suspects.is_empty() {
            self.watchman.asked = Some(now);
            self.wake(now + ASK_EVERY);
            actions.push(Action::AskLocks(suspects));
        }
    }

    /// Leases with a running statement whose requests hold others too; their requests, and since when
    /// it runs. In order of age.
    fn running_beside_others(&self) -> Vec<(LeaseId, u32, Instant)> {
        let sights = self.watchman.sights.iter().filter(|(_, sight)| sight.doing == Doing::Active);
        let row = |id: LeaseId, since: Instant| {
            let lease = self.leases.get(&id)?;
            let request = lease.who.request.filter(|&at| self.requests[at].leases > 1)?;
            let rules = &self.pools[lease.pool.0 as usize].rules;
            rules.deadlock_after.is_some().then_some((id, request, since))
        };
        let mut running: Vec<_> = sights.filter_map(|(&id, sight)| row(id, sight.since)).collect();
        running.sort_unstable();
        running
    }

    /// Statements that may wait for a lock of somebody else, and are not known to.
    fn suspect_strangers(&self, now: Instant, suspects: &mut Vec<Suspect>) {
        let sights = &self.watchman.sights;
        let mut running: Vec<(LeaseId, Instant)> = sights
            .iter()
            .filter(|(_, sight)| sight.doing == Doing::Active && now >= sight.since + LONG)
            .map(|(&id, sight)| (id, sight.since))
            .filter(|&(id, since)| !self.watchman.is_locked(id, since))
            .collect();
        running.sort_unstable();
        let asked = |id| suspects.iter().any(|suspect| suspect.lease == id);
        running.retain(|&(id, _)| !asked(id));
        let stranger = |(id, since): (LeaseId, Instant)| {
            let lease = self.leases.get(&id)?;
            let (session, pool, tag) = (lease.session, lease.pool, lease.tag.clone());
            let database = &self.pools[pool.0 as usize].database;
            let blocks = |(other, sight): (&LeaseId, &super::untie::Sight)| {
                *other != id
                    && sight.tx.is_some_and(|tx| tx < since && tx < sight.since)
                    && self
                        .leases
                        .get(other)
                        .is_some_and(|other| self.pools[other.pool.0 as usize].database == *database)
            };
            let idle = Vec::new();
            sights.iter().any(blocks).then_some(Suspect { lease: id, session, pool, tag, since, idle })
        };
        suspects.extend(running.into_iter().take(STRANGERS).filter_map(stranger));
    }

    /// PostgreSQL has said that what a lease has run since then waits for locks of these others.
    pub fn waits_for_lock(&mut self, lease: LeaseId, statement: Instant, others: Arc<str>, now: Instant) {
        if self.leases.contains_key(&lease) {
            self.watchman.locked.insert(lease, (statement, others));
            self.wake(now);
        }
    }

    fn suspect(&self, id: LeaseId, request: u32, since: Instant) -> Option<Suspect> {
        let lease = self.leases.get(&id)?;
        let siblings = self.leases.iter().filter(|(_, lease)| lease.who.request == Some(request));
        let idle = siblings.filter(|(id, _)| {
            self.watchman.sights.get(*id).is_some_and(|sight| sight.doing == Doing::IdleInTx)
        });
        let mut idle: Vec<(LeaseId, SessionId)> = idle.map(|(&id, lease)| (id, lease.session)).collect();
        idle.sort_unstable();
        let (session, pool, tag) = (lease.session, lease.pool, lease.tag.clone());
        (!idle.is_empty()).then_some(Suspect { lease: id, session, pool, tag, since, idle })
    }

    /// PostgreSQL has said that a statement waits for a lock: the case is filed.
    pub fn locked(&mut self, case: Deadlock, actions: &mut Vec<Action<B, W>>) {
        self.deadlocks.file(case, actions);
    }
}
