//! The tick: the one round in which what only time brings about is done, and when the next is due.
//!
//! It asks what each held lease is doing, shows each rule that sight once, and has the waits, knots, dials
//! and requests looked at whose time has come. The rules are elsewhere: what a lease may still do
//! in `watch`, what is a leak in `leaks`, who is stuck in `deadlocks`.

use super::limits::{STUCK, later};
use super::report::Dim;
use super::{Action, Activity, Book, Doing, LeaseId, PoolId, SessionId};
use std::cmp::Reverse;
use std::time::{Duration, Instant};

/// No two ticks are closer than this.
pub(super) const TICK_LEAST: Duration = Duration::from_millis(10);
/// No two ticks are further apart while anything is leased or queued.
const TICK_MOST: Duration = Duration::from_millis(250);
/// A leak is named within its threshold and 50 ms (S2-6 in budgets.md); this much of it is the book's.
const LEAK_SLACK: Duration = Duration::from_millis(40);

/// One lease at one tick.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    pub(super) id: LeaseId,
    pub(super) session: SessionId,
    pub(super) pool: PoolId,
    pub(super) activity: Activity,
    pub(super) now: Instant,
    pub(super) waiting: usize,
}

impl Sight {
    pub(super) fn age(&self) -> Option<Duration> {
        Some(self.now.saturating_duration_since(self.activity.tx_start?))
    }

    /// Time in which statements have run on it.
    pub(super) fn active(&self) -> Duration {
        let runs = self.activity.state == Doing::Active;
        let since = self.activity.since;
        let running = if runs { self.now.saturating_duration_since(since) } else { Duration::ZERO };
        self.activity.active + running
    }

    pub(super) fn idle(&self) -> Option<Duration> {
        let idle = self.activity.state == Doing::IdleInTx;
        idle.then(|| self.now.saturating_duration_since(self.activity.since))
    }
}

impl<B, W> Book<B, W> {
    /// Does what time brings about, and says when to come again: `None` when there is nothing to
    /// watch. `probe` says what a held lease is doing; `None` if its session is gone already.
    /// Calls in between may need an earlier tick than was said: see [`Book::due`].
    pub fn tick(
        &mut self,
        now: Instant,
        probe: &mut dyn FnMut(SessionId, LeaseId) -> Option<Activity>,
        actions: &mut Vec<Action<B, W>>,
    ) -> Option<Instant> {
        self.ticks += 1;
        self.due = None;
        self.clock = Some(now);
        self.peaks.turn(now);
        let from = actions.len();
        // First, so that whoever is refused reads figures of this moment.
        self.watch_leases(now, probe, actions);
        self.tell_violations(from, now, actions);
        self.expire(now, actions);
        self.refuse_nested(now, actions);
        self.untie(now, actions);
        self.suspect_locks(now, actions);
        self.watch_bursts(now, actions);
        self.feed(now, actions);
        self.look_again(now, actions);
        self.look_around(now, actions);
        self.requests.forget(32, |request| request.forgotten(now));

        if let Some((Reverse(deadline), _)) = self.deadlines.first(|id| self.waiters.contains_key(&id)) {
            self.wake(deadline);
        }
        if !self.crowded.is_empty() {
            self.wake(now + STUCK / 2);
        }
        if !self.leases.is_empty() || !self.waiters.is_empty() {
            self.wake_to_watch(now);
        }
        self.due = self.due.map(|due| due.max(now + TICK_LEAST));
        self.sooner = false;
        self.due
    }

    /// When the next tick is due, as far as is known without asking the sessions; `None` when there
    /// is nothing to watch. Any call may bring it forward.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// [`Book::due`], if a call since the last tick, or since this was last asked, has brought it
    /// forward.
    pub fn hastened(&mut self) -> Option<Instant> {
        if std::mem::take(&mut self.sooner) { self.due } else { None }
    }

    pub(super) fn wake(&mut self, at: Instant) {
        if self.due.is_none_or(|due| due > at) {
            self.due = Some(at);
            self.sooner = true;
        }
    }

    /// Somebody holds or waits: a lease may go idle right after a tick, so the next one may not be
    /// further off than the shortest leak threshold and its slack.
    pub(super) fn wake_to_watch(&mut self, now: Instant) {
        self.wake(now + self.pace);
    }

    /// Asks for a tick when the next of these limits is crossed.
    pub(super) fn expect(&mut self, sight: &Sight, since: Option<Instant>, limits: &[Option<Duration>]) {
        let Some(since) = since else { return };
        let crossings = limits.iter().flatten().map(|&limit| later(since, limit));
        if let Some(at) = crossings.filter(|&at| at > sight.now).min() {
            self.wake(at);
        }
    }

    /// For [`Book::wake_to_watch`], from a new configuration or with a new pool.
    pub(super) fn set_pace(&mut self) {
        let leak = &self.limits.leak;
        let leaks = leak.idle.into_iter().chain(leak.hold).min();
        let leaks = leaks.map(|shortest| shortest.saturating_add(LEAK_SLACK));
        // A deadlock that begins right after a tick is seen by the next one to have stood for its time:
        // what is left of the 250 ms of budgets.md §3.4 is for ending it.
        let deadlocks = self.pools.iter().filter_map(|pool| pool.rules.deadlock_after).min();
        self.pace = leaks.into_iter().chain(deadlocks).min().unwrap_or(TICK_MOST).min(TICK_MOST);
    }

    fn watch_leases(
        &mut self,
        now: Instant,
        probe: &mut dyn FnMut(SessionId, LeaseId) -> Option<Activity>,
        actions: &mut Vec<Action<B, W>>,
    ) {
        self.pins.clear();
        self.watchman.look_again();
        for pool in &mut self.pools {
            pool.seen = super::pool::Seen::default();
        }
        let mut ids = std::mem::take(&mut self.scratch);
        ids.extend(self.leases.keys().copied());
        // In order of age, so that two runs say the same things in the same order.
        ids.sort_unstable();
        for id in ids.drain(..) {
            let Some(lease) = self.leases.get(&id) else { continue };
            let Some(activity) = probe(lease.session, id) else { continue };
            let (session, pool) = (lease.session, lease.pool);
            let waiting = self.pools[pool.0 as usize].waiting;
            let sight = Sight { id, session, pool, activity, now, waiting };
            self.note(&sight);
            self.charge_held(id, now);
            self.watchman.saw(id, &activity);
            if activity.state != Doing::Cleaning {
                self.watch_one(&sight, actions);
            }
        }
        self.scratch = ids;
        self.report_leaks(actions);
        self.watch_requests(now, probe, actions);
    }

    /// What the views and refusals say until the next tick.
    fn note(&mut self, sight: &Sight) {
        let Some(lease) = self.leases.get(&sight.id) else { return };
        let activity = &sight.activity;
        let idle_since = (activity.state == Doing::IdleInTx).then_some(activity.since);
        let seen = &mut self.pools[sight.pool.0 as usize].seen;
        seen.idle_in_tx += u32::from(idle_since.is_some());
        if seen.longest.is_none_or(|(_, since, _)| lease.since < since) {
            seen.longest = Some((sight.id, lease.since, idle_since));
        }
        if let Some(at) = lease.who.request
            && sight.idle().is_some_and(|idle| idle >= STUCK)
        {
            let request = &mut self.requests[at];
            let before = if request.stuck_at == self.ticks { request.stuck } else { 0 };
            (request.stuck, request.stuck_at) = (before + 1, self.ticks);
        }
        if let Some(at) = lease.who.request {
            let request = &mut self.requests[at];
            if request.seen_at != self.ticks {
                (request.running, request.seen_at) = (Duration::ZERO, self.ticks);
                request.moved = None;
                self.spending.push(at);
            }
            request.running += sight.active();
            let works = matches!(activity.state, Doing::Active | Doing::Cleaning);
            request.moved = request.moved.max(Some(if works { sight.now } else { activity.since }));
        }
        if !activity.pin.is_empty() {
            match self.pins.iter_mut().find(|(pin, _)| *pin == activity.pin) {
                Some((_, count)) => *count += 1,
                None => self.pins.push((activity.pin, 1)),
            }
        }
    }

    fn watch_one(&mut self, sight: &Sight, actions: &mut Vec<Action<B, W>>) {
        self.note_times(sight);
        let Some(lease) = self.leases.get(&sight.id) else { return };
        let mut watch = lease.watch.as_deref().copied().unwrap_or_default();
        if watch.tx != sight.activity.tx_start {
            watch.tx = sight.activity.tx_start;
            watch.renew(&[Dim::B10, Dim::B11]);
        }
        self.overstay(sight, &mut watch, actions);
        if !watch.ended {
            self.overrun(sight, &mut watch, actions);
            self.stall(sight, &mut watch, actions);
            self.park(sight, actions);
        }
        if self.is_suspect(sight, &watch) {
            self.suspects.push(*sight);
        }
        if let Some(lease) = self.leases.get_mut(&sight.id) {
            **lease.watch.get_or_insert_default() = watch;
        }
    }
}
