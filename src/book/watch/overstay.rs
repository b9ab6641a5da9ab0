//! Leases that stay too long: transactions that are too old (B10) or idle for too long (B11).
//!
//! Part of the tick. It does not end anything itself: the session does, and may have moved on by the time it
//! hears of it.

use super::judge::{Limit, Verdict, Watch};
use crate::book::report::{Dim, Told};
use crate::book::tick::Sight;
use crate::book::{Action, Book, Overstay, Warning};
use crate::config::Timed;
use std::time::{Duration, Instant};

impl<B, W> Book<B, W> {
    /// B10 and B11 of one lease.
    pub(in crate::book) fn overstay(
        &mut self,
        sight: &Sight,
        watch: &mut Watch,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let (&Sight { id: lease, session, waiting, .. }, Some(age)) = (sight, sight.age()) else { return };
        let own = sight.activity.own;
        let budgets = self.budgets_at(lease);
        let limit = self.age_limit(budgets, own.age, sight.now);
        let verdict = watch.judge(&limit, age, &mut self.tally);
        let told = |warning| Action::Warn { session, lease, warning };
        match verdict {
            Verdict::Nothing | Verdict::Acted { .. } => {}
            Verdict::Tell(limit) => actions.push(told(Warning::Age { age, limit })),
            Verdict::Spare(limit) => actions.push(told(Dim::B10.spared(age, limit))),
            Verdict::Act { limit, .. } => {
                watch.ended = true;
                actions.push(Action::End { session, lease, why: Overstay::Age { age, limit, waiting } });
                return;
            }
        }
        self.expect(sight, sight.activity.tx_start, &limit.crossings());

        let Some(idle) = sight.idle() else { return };
        let limit = self.idle_limit(budgets, waiting, own.idle, sight.now);
        if watch.idle_since.is_some_and(|since| since != sight.activity.since) {
            watch.renew(&[Dim::B11]);
        }
        match watch.judge(&limit, idle, &mut self.tally) {
            Verdict::Nothing | Verdict::Acted { .. } => {}
            Verdict::Tell(limit) => actions.push(told(Warning::Idle { idle, limit })),
            Verdict::Spare(limit) => actions.push(told(Dim::B11.spared(idle, limit))),
            Verdict::Act { limit, .. } => {
                watch.ended = true;
                watch.idle_since = Some(sight.activity.since);
                let why = Overstay::Idle { idle, limit, age, waiting };
                actions.push(Action::End { session, lease, why });
                return;
            }
        }
        self.expect(sight, Some(sight.activity.since), &limit.crossings());
    }

    fn age_limit(&self, budgets: u32, own: Option<Duration>, now: Instant) -> Limit {
        let timed = self.limits.budgets(budgets).age;
        Limit { dim: Dim::B10, timed, own, acts: Told::Abort, armed: self.is_armed(&timed, now) }
    }

    /// B11 is stricter while others wait.
    fn idle_limit(&self, budgets: u32, waiting: usize, own: Option<Duration>, now: Instant) -> Limit {
        let budget = self.limits.budgets(budgets);
        let alone = waiting == 0;
        let timed = Timed {
            warn: budget.idle.warn.filter(|_| !(alone && budget.idle_warn_only_if_waiters)),
            abort: budget.idle.abort.filter(|_| !alone).or(budget.idle_abort_alone),
            ..budget.idle
        };
        Limit { dim: Dim::B11, timed, own, acts: Told::Abort, armed: self.is_armed(&timed, now) }
    }
}
