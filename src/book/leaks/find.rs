//! Leaks, at a tick: which leases are cases, and what is done about them (budgets.md §5).
//!
//! A glance at every lease finds the few that have done nothing, or one thing, for so long that they may be
//! cases; the others cost a comparison. Of these few the facts are put together, evidence included, and
//! `classify` says what they are.
//!
//! Only two classes are acted on here, and only in mode enforce: what is `leaked` is rolled back, and what is
//! `pinned` for too long is ended. The budgets of time (B10 to B13) act by themselves, on whatever class.

use super::cases::{Finding, OpenCase, Spans, acted};
use super::classify::{Evidence, Facts, STALL, Threshold, Thresholds, classify};
use crate::book::leases::Lease;
use crate::book::tick::Sight;
use crate::book::watch::Watch;
use crate::book::{Action, Book, Doing, LeakClass, LeaseId, Overstay};
use crate::config::{Mode, PoolMode};
use std::time::{Duration, Instant};

/// A request that did something this short a time ago is at work.
const AT_WORK: Duration = Duration::from_secs(1);

impl<B, W> Book<B, W> {
    /// Whether a lease may be a case by now; if not, asks to be woken when it may.
    pub(in crate::book) fn is_suspect(&mut self, sight: &Sight, watch: &Watch) -> bool {
        if watch.case.is_some() {
            return true;
        }
        let least = Thresholds::least(&self.limits.leak, self.stall_of(sight.id));
        let limit = |threshold: Option<Threshold>| threshold.map(|threshold| threshold.limit);
        let activity = &sight.activity;
        let since = activity.statement.unwrap_or(activity.since);
        let crossings = match activity.state {
            Doing::IdleInTx => [(Some(since), limit(least.idle)), (Some(since), limit(least.leaked))],
            Doing::Active => {
                let slow = limit(least.slow).into_iter().chain([least.lock.limit]).min();
                [(Some(since), slow), (stalled(sight), Some(least.stall.limit))]
            }
            Doing::Pinned => [(Some(since), limit(least.pinned)), (None, None)],
            Doing::Cleaning => return false,
        };
        let old = (activity.tx_start, limit(least.long));
        for (since, limit) in crossings.into_iter().chain([old]) {
            let Some((since, limit)) = since.zip(limit) else { continue };
            if sight.now.saturating_duration_since(since) >= limit {
                return true;
            }
            self.expect(sight, Some(since), &[Some(limit)]);
        }
        false
    }

    /// Looks at those who may be cases.
    pub(in crate::book) fn report_leaks(&mut self, actions: &mut Vec<Action<B, W>>) {
        let mut suspects = std::mem::take(&mut self.suspects);
        for sight in suspects.drain(..) {
            let Some(lease) = self.leases.get(&sight.id) else { continue };
            let mut watch = lease.watch.as_deref().copied().unwrap_or_default();
            self.close_past(&sight, &mut watch, actions);
            self.report(&sight, &mut watch, actions);
            if let Some(lease) = self.leases.get_mut(&sight.id) {
                **lease.watch.get_or_insert_default() = watch;
            }
        }
        self.suspects = suspects;
    }

    /// A case about a transaction, statement or pause that is over, though the lease goes on.
    fn close_past(&mut self, sight: &Sight, watch: &mut Watch, actions: &mut Vec<Action<B, W>>) {
        let is_past = |case: &mut OpenCase| mark(case.class, sight) != Some(case.mark);
        if let Some(case) = watch.case.take_if(is_past) {
            self.cases.close(case, None, watch, sight.now, actions);
        }
    }

    fn report(&mut self, sight: &Sight, watch: &mut Watch, actions: &mut Vec<Action<B, W>>) {
        let Some(lease) = self.leases.get(&sight.id) else { return };
        let thresholds = Thresholds::of(
            &self.limits.leak,
            self.callsites.gap(&lease.tag, lease.fingerprint),
            self.callsites.hold(&lease.tag, lease.fingerprint),
            self.stall_of(sight.id),
        );
        let facts = self.facts(sight, lease);
        self.expect_more(sight, &thresholds);
        let Some((class, threshold)) = classify(&facts, &thresholds) else { return };
        let acts = self.acts(class, &facts, threshold, sight);
        if acts && !watch.ended && self.limits.leak.mode == Mode::Enforce && self.leaks_are_armed(sight.now) {
            self.end(class, sight, threshold, watch, actions);
        }
        let would = match class {
            LeakClass::Pinned => "would_close",
            _ => "would_abort",
        };
        let action = acted(class, watch).unwrap_or(if acts { would } else { "report" });
        let finding = Finding { class, threshold, evidence: facts.evidence, action };
        self.tell(sight, finding, watch, actions);
    }

    /// Opens a case; or names an open one anew, if what it is about is worse by now.
    fn tell(&mut self, sight: &Sight, finding: Finding, watch: &mut Watch, actions: &mut Vec<Action<B, W>>) {
        let is_news = watch.case.is_none_or(|case| {
            let same = case.class == finding.class && self.cases.action(case) != finding.action;
            same || finding.class < case.class
                && finding.class.of_transaction() == case.class.of_transaction()
        });
        let Some(mark) = mark(finding.class, sight).filter(|_| is_news) else { return };
        let Some(lease) = self.leases.get(&sight.id) else { return };
        let spans = Spans {
            now: sight.now,
            idle: sight.idle().unwrap_or_default(),
            active: sight.active(),
            tx_age: sight.age().unwrap_or_default(),
        };
        let event = self.event_about(sight.id, lease, finding, spans);
        watch.case = Some(match watch.case {
            Some(case) => self.cases.rename(case, event, actions),
            None => {
                self.callsites.leaked(&lease.tag, lease.fingerprint, sight.now);
                self.cases.open(event, mark, actions)
            }
        });
    }

    /// Whether mode enforce would end it: evidence first, or a threshold that is known to be right.
    fn acts(&self, class: LeakClass, facts: &Facts, threshold: Threshold, sight: &Sight) -> bool {
        match class {
            LeakClass::Leaked => facts.evidence.is_sure() || threshold.learnt.is_some(),
            LeakClass::Pinned => {
                let spent = sight.now.saturating_duration_since(sight.activity.since);
                self.limits.leak.pinned_close.is_some_and(|limit| spent >= limit)
            }
            _ => false,
        }
    }

    fn end(
        &mut self,
        class: LeakClass,
        sight: &Sight,
        threshold: Threshold,
        watch: &mut Watch,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let spent = sight.now.saturating_duration_since(sight.activity.since);
        let why = match class {
            LeakClass::Pinned => {
                let limit = self.limits.leak.pinned_close.unwrap_or(spent);
                Overstay::Pinned { idle: spent, limit, pin: sight.activity.pin }
            }
            _ => Overstay::Leaked {
                idle: spent,
                limit: threshold.limit,
                age: sight.age().unwrap_or(spent),
                waiting: sight.waiting,
            },
        };
        watch.ended = true;
        watch.idle_since = Some(sight.activity.since);
        actions.push(Action::End { session: sight.session, lease: sight.id, why });
    }

    fn facts(&self, sight: &Sight, lease: &Lease) -> Facts {
        let activity = &sight.activity;
        let for_so_long = |since: Instant| sight.now.saturating_duration_since(since);
        let lends = self.pools[sight.pool.0 as usize].rules.mode != PoolMode::Session;
        let is_pinned = activity.state == Doing::Pinned && lends;
        let statement = activity.statement.filter(|_| activity.state == Doing::Active);
        Facts {
            gone: false,
            idle: sight.idle(),
            nests: self.nests_in(lease, sight),
            at_work: sight.idle().is_some_and(|idle| self.goes_on(lease, idle, sight.now)),
            evidence: sight.idle().map_or(Evidence::NONE, |idle| self.evidence(lease, idle)),
            runs: statement.map(for_so_long),
            locked: statement.is_some_and(|since| self.watchman.is_locked(sight.id, since)),
            stalled: stalled(sight).map(for_so_long),
            tx_age: sight.age(),
            pinned: is_pinned.then(|| for_so_long(activity.since)),
        }
    }

    /// Whether another session of an idle lease's request runs something, or waits for a backend.
    fn nests_in(&self, lease: &Lease, sight: &Sight) -> bool {
        let Some(at) = lease.who.request.filter(|_| sight.idle().is_some()) else { return false };
        let request = &self.requests[at];
        !ended_under(request, lease) && (request.waiting > 0 || request.moved == Some(sight.now))
    }

    /// The same, or has done so lately: the inner one of two may be between its statements.
    fn goes_on(&self, lease: &Lease, idle: Duration, now: Instant) -> bool {
        let Some(at) = lease.who.request else { return false };
        let request = &self.requests[at];
        let lately = |moved: Instant| now.saturating_duration_since(moved) < AT_WORK.min(idle);
        !ended_under(request, lease) && (request.waiting > 0 || request.moved.is_some_and(lately))
    }

    fn evidence(&self, lease: &Lease, idle: Duration) -> Evidence {
        let mut evidence = Evidence::NONE;
        if self.limits.leak.leaked_alone.is_some_and(|alone| idle >= alone) {
            evidence = evidence.and(Evidence::LONG_IDLE);
        }
        let Some(at) = lease.who.request else { return evidence };
        let request = &self.requests[at];
        if ended_under(request, lease) {
            evidence = evidence.and(Evidence::REQUEST_ENDED);
        }
        let mut others = request.sessions.iter().filter(|other| **other != lease.session).peekable();
        let has_others = others.peek().is_some() && request.all_sessions;
        if has_others && !others.any(|other| self.watchman.is_with(*other, at)) {
            evidence = evidence.and(Evidence::SIBLINGS_LEFT);
        }
        evidence
    }

    /// Asks for a tick when the next of its thresholds is crossed.
    fn expect_more(&mut self, sight: &Sight, thresholds: &Thresholds) {
        let limit = |threshold: Option<Threshold>| threshold.map(|threshold| threshold.limit);
        let (leak, activity) = (&self.limits.leak, &sight.activity);
        let (alone, close) = (leak.leaked_alone, leak.pinned_close);
        let since = Some(activity.statement.unwrap_or(activity.since));
        match activity.state {
            Doing::IdleInTx => {
                self.expect(sight, since, &[limit(thresholds.idle), limit(thresholds.leaked), alone]);
            }
            Doing::Active => {
                self.expect(sight, since, &[limit(thresholds.slow)]);
                self.expect(sight, stalled(sight), &[Some(thresholds.stall.limit)]);
            }
            Doing::Pinned => self.expect(sight, since, &[limit(thresholds.pinned), close]),
            Doing::Cleaning => {}
        }
        self.expect(sight, activity.tx_start, &[limit(thresholds.long)]);
    }

    /// From when on a client is stalled: as B13 warns.
    fn stall_of(&self, lease: LeaseId) -> Duration {
        self.limits.budgets(self.budgets_at(lease)).stall.warn.unwrap_or(STALL)
    }

    fn leaks_are_armed(&self, now: Instant) -> bool {
        self.limits.leak.force || self.armed.is_none_or(|from| from <= now)
    }
}

/// Whether a request was said to be over while this lease was held.
fn ended_under(request: &crate::book::requests::Request, lease: &Lease) -> bool {
    request.ended.is_some_and(|ended| ended >= lease.since)
}

/// Since when a statement waits for its client, whichever way.
fn stalled(sight: &Sight) -> Option<Instant> {
    let activity = &sight.activity;
    activity.stalled.or(activity.silent).filter(|_| activity.state == Doing::Active)
}

/// What tells a case of this class from the next one of the same lease: when its transaction, statement,
/// stall or pause began.
fn mark(class: LeakClass, sight: &Sight) -> Option<Instant> {
    let activity = &sight.activity;
    match class {
        LeakClass::StalledClient => stalled(sight),
        LeakClass::LockWait | LeakClass::SlowQuery => {
            activity.statement.filter(|_| activity.state == Doing::Active)
        }
        LeakClass::Pinned => Some(activity.since),
        LeakClass::AbandonedClient => None,
        _ => activity.tx_start,
    }
}
