//! Row locks of one's own request (budgets.md §3.4): whom to suspect, and when to ask PostgreSQL.
//!
//! A statement that waits for a row which another session of its request has locked waits for ever,
//! and PostgreSQL cannot see why: the other one is idle, because the application waits for this one.
//! The book sees the pattern and asks, at most once a second; the pool's doors carry the question to
//! the server and act on the answer.

use super::deadlocks::{Deadlock, Suspect};
use super::{Action, Book, Doing, LeaseId, SessionId};
use std::time::{Duration, Instant};

/// A statement that runs for this long beside an idle sibling may wait for its lock.
const LONG: Duration = Duration::from_secs(1);
/// Once the server is asked, it is asked of these too: the next question comes a second later.
const LONGISH: Duration = Duration::from_millis(400);
/// Between two questions. PostgreSQL's manual warns that `pg_blocking_pids` takes the lock manager's
/// own locks.
const ASK_EVERY: Duration = Duration::from_secs(1);

impl<B, W> Book<B, W> {
    /// At a tick: statements that run for long while a lease of their own request is idle in
    /// transaction.
    pub(super) fn suspect_locks(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        let running = self.running_beside_others();
        let Some(oldest) = running.iter().map(|&(_, _, since)| since).min() else { return };
        let earliest = self.watchman.asked.map_or(oldest, |asked| asked + ASK_EVERY);
        let due = earliest.max(oldest + LONG);
        if now < due {
            return self.wake(due);
        }
        let longish = running.into_iter().filter(|&(_, _, since)| now >= since + LONGISH);
        let suspects: Vec<Suspect> =
            longish.filter_map(|(id, request, since)| self.suspect(id, request, since)).collect();
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
