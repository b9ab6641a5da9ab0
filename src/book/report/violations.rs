//! One event for every budget that is exceeded, as long as they are few (budgets.md §2.4).
//!
//! A tenant that exceeds a budget a thousand times a second is told ten times a minute, with the number
//! of those left out. Logging is somebody else's business.

use super::counters::Dim;
use crate::book::{Action, Book, Overrun, Overstay, PoolId, Refusal, Warning};
use crate::tag::Tag;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Events of one dimension and tenant within [`WINDOW`].
const MOST: u32 = 10;
/// See [`MOST`].
const WINDOW: Duration = Duration::from_secs(60);
/// Tenants and dimensions that are counted apart; more are counted together.
const REMEMBERED: usize = 10_000;
/// Events kept for the next tick; more are left out.
const PENDING: usize = 1_000;

/// A budget that was exceeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `B1` to `B18`.
    pub dimension: &'static str,
    /// Its table in the configuration; empty if it is not a budget of time.
    pub key: &'static str,
    /// `warn`, `reject`, `cancel` or `abort`; `suppressed` for those left out of a minute that is over.
    pub outcome: &'static str,
    /// The pool; `None` at login.
    pub pool: Option<PoolId>,
    /// Whose.
    pub tag: Arc<Tag>,
    /// What is spent: milliseconds for times, else a count.
    pub spent: u64,
    /// The limit, likewise.
    pub limit: u64,
    /// Events of the same dimension and tenant left out since the last one.
    pub suppressed: u64,
}

#[derive(Debug)]
struct Minute {
    since: Instant,
    told: u32,
    suppressed: u64,
}

type Key = (Dim, Arc<str>);

/// Whose events are left out, as it was found last: who exceeds a budget with every lease costs no search.
#[derive(Debug)]
struct Muted {
    key: Key,
    until: Instant,
    suppressed: u64,
}

/// What is spent, and its limit.
type Figures = (Dim, u64, u64);

#[derive(Debug, Default)]
pub(in crate::book) struct Events {
    pending: Vec<Violation>,
    minutes: HashMap<Key, Minute, foldhash::fast::RandomState>,
    muted: Option<Muted>,
    swept: Option<Instant>,
}

impl Events {
    fn note(
        &mut self,
        figures: Figures,
        outcome: &'static str,
        pool: Option<PoolId>,
        tag: &Arc<Tag>,
        now: Instant,
    ) {
        let (dim, spent, limit) = figures;
        if let Some(muted) = &mut self.muted
            && muted.key.0 == dim
            && *muted.key.1 == *tag.tenant
            && now < muted.until
        {
            muted.suppressed += 1;
            return;
        }
        let mut key = (dim, tag.tenant.clone());
        if self.minutes.len() >= REMEMBERED && !self.minutes.contains_key(&key) {
            key.1 = "_other".into();
        }
        self.unmute();
        let minute = self.minutes.entry(key.clone()).or_insert(Minute { since: now, told: 0, suppressed: 0 });
        if now.saturating_duration_since(minute.since) >= WINDOW {
            (minute.since, minute.told) = (now, 0);
        }
        if minute.told >= MOST || self.pending.len() >= PENDING {
            minute.suppressed += 1;
            self.muted =
                (minute.told >= MOST).then(|| Muted { key, until: minute.since + WINDOW, suppressed: 0 });
            return;
        }
        minute.told += 1;
        let suppressed = std::mem::take(&mut minute.suppressed);
        let (dimension, key, tag) = (dim.name(), dim.key(), tag.clone());
        self.pending.push(Violation { dimension, key, outcome, pool, tag, spent, limit, suppressed });
    }

    fn unmute(&mut self) {
        if let Some(Muted { key, suppressed, .. }) = self.muted.take()
            && let Some(minute) = self.minutes.get_mut(&key)
        {
            minute.suppressed += suppressed;
        }
    }

    /// Tells of what was left out of minutes that are over, and forgets them.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now.saturating_duration_since(at) < WINDOW) {
            return;
        }
        self.unmute();
        self.swept = Some(now);
        let pending = &mut self.pending;
        self.minutes.retain(|(dim, tenant), minute| {
            let over = now.saturating_duration_since(minute.since) >= WINDOW;
            if over && minute.suppressed > 0 {
                let tag = Arc::new(Tag { tenant: tenant.clone(), ..Tag::default() });
                pending.push(Violation {
                    dimension: dim.name(),
                    key: dim.key(),
                    outcome: "suppressed",
                    pool: None,
                    tag,
                    spent: 0,
                    limit: 0,
                    suppressed: minute.suppressed,
                });
            }
            !over
        });
    }
}

impl<B, W> Book<B, W> {
    fn violated(&mut self, figures: Figures, outcome: &'static str, pool: Option<PoolId>, tag: &Arc<Tag>) {
        let Some(now) = self.clock else { return };
        self.events.note(figures, outcome, pool, tag, now);
        self.wake_to_watch(now);
    }

    /// Something was refused.
    pub(in crate::book) fn refused_event(&mut self, refusal: &Refusal, pool: Option<PoolId>, tag: &Arc<Tag>) {
        if let Some(figures) = of_refusal(refusal) {
            self.violated(figures, "reject", pool, tag);
        }
    }

    /// A budget in mode warn was exceeded.
    pub(in crate::book) fn warned_event(&mut self, warning: &Warning, pool: Option<PoolId>, tag: &Arc<Tag>) {
        self.violated(of_warning(warning), "warn", pool, tag);
    }

    /// What a tick has decided about held leases, and events that wait: into its actions.
    pub(in crate::book) fn tell_violations(
        &mut self,
        from: usize,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) {
        for action in &actions[from..] {
            let (lease, figures, outcome) = match action {
                Action::Warn { lease, warning, .. } => (*lease, of_warning(warning), "warn"),
                Action::Cancel { lease, why, .. } => (*lease, of_overrun(why), "cancel"),
                Action::End { lease, why, .. } => match of_overstay(why) {
                    Some(figures) => (*lease, figures, "abort"),
                    None => continue,
                },
                _ => continue,
            };
            let Some(lease) = self.leases.get(&lease) else { continue };
            let (pool, tag) = (lease.pool, lease.tag.clone());
            self.events.note(figures, outcome, Some(pool), &tag, now);
        }
        self.events.sweep(now);
        actions.extend(self.events.pending.drain(..).map(|violation| Action::Violation(Box::new(violation))));
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn of_refusal(refusal: &Refusal) -> Option<Figures> {
    Some(match refusal {
        Refusal::WaitedTooLong { waited, .. } => (Dim::B9, millis(*waited), millis(*waited)),
        Refusal::QueueFull { limit, .. } => (Dim::B15, *limit as u64 + 1, *limit as u64),
        Refusal::TenantQueueFull { limit, .. } => (Dim::B8, u64::from(*limit) + 1, (*limit).into()),
        Refusal::TooManyLeases { ordinal, limit, .. } => (Dim::B2, (*ordinal).into(), (*limit).into()),
        Refusal::DbTimeUsedUp { used, limit, .. } => (Dim::B3, millis(*used), millis(*limit)),
        Refusal::NestsTooDeep { standing } => {
            (Dim::B1, u64::from(standing.request_holds) + 1, standing.request_limit.into())
        }
        Refusal::TooManyPins { tenant_pins: (pins, limit), .. } => {
            (Dim::B17, u64::from(*pins) + 1, (*limit).into())
        }
        Refusal::TooManySessions { sessions, limit, .. } => {
            (Dim::B18, u64::from(*sessions) + 1, (*limit).into())
        }
        Refusal::TooOld { age, limit } => (Dim::B10, millis(*age), millis(*limit)),
        // No budget, and an event of its own.
        Refusal::Unavailable { .. } | Refusal::Deadlock { .. } | Refusal::Closing => return None,
    })
}

fn of_warning(warning: &Warning) -> Figures {
    match warning {
        Warning::NestsTooDeep { holds, limit } => (Dim::B1, (*holds).into(), (*limit).into()),
        Warning::TooManyLeases { ordinal, limit } => (Dim::B2, (*ordinal).into(), (*limit).into()),
        Warning::DbTime { used, limit } => (Dim::B3, millis(*used), millis(*limit)),
        Warning::TenantOverCap { holds, limit } => (Dim::B4, (*holds).into(), (*limit).into()),
        Warning::Age { age, limit } => (Dim::B10, millis(*age), millis(*limit)),
        Warning::Idle { idle, limit } => (Dim::B11, millis(*idle), millis(*limit)),
        Warning::Statement { ran, limit } => (Dim::B12, millis(*ran), millis(*limit)),
        Warning::Stalled { stalled, limit } => (Dim::B13, millis(*stalled), millis(*limit)),
        Warning::Spared { key, spent, limit } => {
            let dim = [Dim::B3, Dim::B10, Dim::B11, Dim::B13].into_iter().find(|dim| dim.key() == *key);
            (dim.unwrap_or(Dim::B10), millis(*spent), millis(*limit))
        }
        Warning::TooManyPins { tenant_pins: (pins, limit), .. } => {
            (Dim::B17, (*pins).into(), (*limit).into())
        }
        Warning::ManySessions { sessions, limit } => (Dim::B18, (*sessions).into(), (*limit).into()),
    }
}

fn of_overrun(why: &Overrun) -> Figures {
    match why {
        Overrun::Statement { ran, limit, .. } => (Dim::B12, millis(*ran), millis(*limit)),
        Overrun::Deadline { spent, limit } => (Dim::B12, millis(*spent), millis(*limit)),
        Overrun::DbTime { used, limit } => (Dim::B3, millis(*used), millis(*limit)),
        Overrun::Stalled { stalled, limit } => (Dim::B13, millis(*stalled), millis(*limit)),
    }
}

fn of_overstay(why: &Overstay) -> Option<Figures> {
    Some(match why {
        Overstay::Age { age, limit, .. } => (Dim::B10, millis(*age), millis(*limit)),
        Overstay::Idle { idle, limit, .. } => (Dim::B11, millis(*idle), millis(*limit)),
        Overstay::DbTime { used, limit } => (Dim::B3, millis(*used), millis(*limit)),
        // Told as what they are: cases of their own.
        Overstay::Deadlock { .. } | Overstay::Leaked { .. } | Overstay::Pinned { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_minute_and_the_number_of_those_left_out() {
        let mut events = Events::default();
        let tag = |tenant: &str| Arc::new(Tag { tenant: tenant.into(), ..Tag::default() });
        let start = Instant::now();
        let mut note = |tenant, after| {
            events.note((Dim::B8, 3, 2), "reject", None, &tag(tenant), start + Duration::from_secs(after));
            events.pending.pop().map(|event| event.suppressed)
        };
        assert!((0..10).all(|second| note("a", second) == Some(0)));
        assert_eq!([note("a", 10), note("a", 59), note("b", 59)], [None, None, Some(0)]);
        assert_eq!(note("a", 60), Some(2));
        assert!((0..12).all(|_| note("c", 61).is_none_or(|suppressed| suppressed == 0)));
        // Two that take turns are each counted.
        assert!((0..20).all(|at| note(["d", "e"][at % 2], 61) == Some(0)));
        assert!((0..7).all(|at| note(["d", "e"][at % 2], 62).is_none()));
        events.sweep(start + Duration::from_secs(122));
        let told = events.pending.iter().map(|event| (event.outcome, &*event.tag.tenant, event.suppressed));
        let mut told: Vec<_> = told.collect();
        told.sort_unstable();
        assert_eq!(told, [("suppressed", "c", 2), ("suppressed", "d", 4), ("suppressed", "e", 3)]);
        assert_eq!(events.minutes.len(), 0);
    }
}
