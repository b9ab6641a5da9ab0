//! Deadlock cases: counted, one event each, the last thousand kept that are over.
//!
//! What is a deadlock is decided in `knot` (of the pool) or by PostgreSQL (of row locks), what is done
//! about it in `untie` and by the pool's doors.

use crate::book::{Action, LeaseId, PoolId, SessionId};
use crate::tag::Tag;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Cases kept after they are over, for SHOW DEADLOCKS.
pub const DEADLOCKS_KEPT: usize = 1_000;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeadlockKind {
    /// A backend of the pool.
    Pool,
    /// A lock in PostgreSQL.
    Lock,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resolution {
    /// One more backend for a while.
    Overflow,
    /// A request was aborted.
    Victim,
    /// Nothing: untagged clients are suspected only.
    Suspected,
    /// The statement that waited for a lock of its own request was cancelled.
    Cancelled,
    /// Nothing: the lock is another request's.
    Reported,
}

impl DeadlockKind {
    /// As in `SHOW DEADLOCKS` and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DeadlockKind::Pool => "pool",
            DeadlockKind::Lock => "lock",
        }
    }
}

impl Resolution {
    /// As in `SHOW DEADLOCKS` and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Resolution::Overflow => "overflow",
            Resolution::Victim => "victim",
            Resolution::Suspected => "suspected",
            Resolution::Cancelled => "cancelled",
            Resolution::Reported => "reported",
        }
    }
}

/// Every kind with what can come of it: these series exist from the start.
const OUTCOMES: [(DeadlockKind, Resolution); 5] = [
    (DeadlockKind::Pool, Resolution::Overflow),
    (DeadlockKind::Pool, Resolution::Victim),
    (DeadlockKind::Pool, Resolution::Suspected),
    (DeadlockKind::Lock, Resolution::Cancelled),
    (DeadlockKind::Lock, Resolution::Reported),
];

/// One case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlock {
    /// Case number; 0 until it is filed.
    pub id: u64,
    /// What is waited for.
    pub kind: DeadlockKind,
    /// What was done.
    pub resolution: Resolution,
    /// The pool; of several, the first.
    pub pool: PoolId,
    /// When nobody could get on any more.
    pub since: Instant,
    /// From then until it was noticed.
    pub detected: Duration,
    /// From then until somebody got on again; `None` = not yet.
    pub lasted: Option<Duration>,
    /// Whose work was aborted; of a suspicion and a report, nobody's.
    pub victim: Option<Arc<Tag>>,
    /// Backends held by those who wait for each other.
    pub holders: u32,
    /// Requests, or instances of applications, that hold them.
    pub parties: u32,
    /// Their waiters.
    pub waiters: u32,
    /// Who holds and waits, for people.
    pub evidence: String,
}

/// A statement that runs for long beside an idle transaction of its own request: it may wait for a
/// lock that this one has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// Its lease.
    pub lease: LeaseId,
    /// Its session.
    pub session: SessionId,
    /// Its pool.
    pub pool: PoolId,
    /// Whose work it is.
    pub tag: Arc<Tag>,
    /// When it began.
    pub since: Instant,
    /// The request's leases that are idle in transaction.
    pub idle: Vec<(LeaseId, SessionId)>,
}

/// What ends an open case.
#[derive(Debug, Clone)]
pub(super) enum Until {
    /// The victim's leases are back.
    Back(Vec<LeaseId>),
    /// Its pool is in no knot any more.
    Untied,
}

/// Open and past cases.
#[derive(Debug, Default)]
pub(in crate::book) struct Deadlocks {
    next: u64,
    open: Vec<(Deadlock, Until)>,
    over: VecDeque<Deadlock>,
    totals: BTreeMap<(DeadlockKind, Resolution), u64>,
}

impl Deadlocks {
    /// Whether a case of this pool and kind of outcome is open.
    pub(super) fn is_open(&self, pool: PoolId, resolution: Resolution) -> bool {
        self.open.iter().any(|(case, _)| (case.pool, case.resolution) == (pool, resolution))
    }

    pub(super) fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Files a case that has just been noticed.
    pub(super) fn open<B, W>(&mut self, case: Deadlock, until: Until, actions: &mut Vec<Action<B, W>>) {
        let case = self.count(case, actions);
        self.open.push((case, until));
    }

    /// Files a case that is over with its being noticed.
    pub(super) fn file<B, W>(&mut self, case: Deadlock, actions: &mut Vec<Action<B, W>>) {
        let mut case = self.count(case, actions);
        case.lasted.get_or_insert(case.detected);
        self.keep(case);
    }

    fn count<B, W>(&mut self, mut case: Deadlock, actions: &mut Vec<Action<B, W>>) -> Deadlock {
        self.next += 1;
        case.id = self.next;
        *self.totals.entry((case.kind, case.resolution)).or_default() += 1;
        actions.push(Action::Deadlock(Box::new(case.clone())));
        case
    }

    /// Closes what is over, as `is_over` says of a case's pool and what it is open until.
    pub(super) fn close(&mut self, now: Instant, mut is_over: impl FnMut(PoolId, &Until) -> bool) {
        let mut over = Vec::new();
        self.open.retain_mut(|(case, until)| {
            let ends = is_over(case.pool, until);
            if ends {
                case.lasted = Some(now.saturating_duration_since(case.since));
                over.push(case.clone());
            }
            !ends
        });
        over.into_iter().for_each(|case| self.keep(case));
    }

    fn keep(&mut self, case: Deadlock) {
        if self.over.len() == DEADLOCKS_KEPT {
            self.over.pop_front();
        }
        self.over.push_back(case);
    }

    /// By number, so the newest is last.
    pub(in crate::book) fn rows(&self) -> Vec<Deadlock> {
        let open = self.open.iter().map(|(case, _)| case);
        let mut rows: Vec<Deadlock> = self.over.iter().chain(open).cloned().collect();
        rows.sort_unstable_by_key(|case| case.id);
        rows
    }

    /// `bursar_deadlocks_total{kind, resolution}`.
    pub(in crate::book) fn totals(&self) -> Vec<(&'static str, &'static str, u64)> {
        let count = |of| self.totals.get(&of).copied().unwrap_or(0);
        OUTCOMES.into_iter().map(|of| (of.0.name(), of.1.name(), count(of))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_told_once_and_kept_when_it_is_over() {
        let now = Instant::now();
        let case = |resolution| Deadlock {
            id: 0,
            kind: DeadlockKind::Pool,
            resolution,
            pool: PoolId(1),
            since: now,
            detected: Duration::from_millis(200),
            lasted: None,
            victim: None,
            holders: 2,
            parties: 2,
            waiters: 2,
            evidence: String::new(),
        };
        let mut cases = Deadlocks::default();
        let mut actions: Vec<Action<(), ()>> = Vec::new();
        cases.open(case(Resolution::Suspected), Until::Untied, &mut actions);
        cases.file(case(Resolution::Victim), &mut actions);
        assert_eq!(actions.len(), 2);
        assert!(cases.is_open(PoolId(1), Resolution::Suspected));
        assert!(!cases.is_open(PoolId(1), Resolution::Victim));
        let later = now + Duration::from_secs(1);
        cases.close(later, |pool, _| pool != PoolId(1));
        assert!(cases.has_open());
        cases.close(later, |pool, until| pool == PoolId(1) && matches!(until, Until::Untied));
        let lasted: Vec<_> = cases.rows().iter().map(|case| (case.id, case.lasted)).collect();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(lasted, [(1, ms(1000)), (2, ms(200))]);
        let totals = cases.totals();
        assert_eq!(totals[..3], [("pool", "overflow", 0), ("pool", "victim", 1), ("pool", "suspected", 1)]);
        for _ in 0..DEADLOCKS_KEPT {
            cases.file(case(Resolution::Victim), &mut actions);
        }
        let kept = cases.rows();
        assert_eq!((kept.len(), kept[0].id), (DEADLOCKS_KEPT, 3));
    }
}
