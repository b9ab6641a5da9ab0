//! Statements that run too long: B12, the client's own deadline, and results that nobody takes (B13).
//!
//! Part of the tick. It names the statement by its beginning; the session cancels that one or none.

use super::judge::{Limit, Verdict, Watch};
use crate::book::limits::later;
use crate::book::report::{Dim, Told};
use crate::book::tick::Sight;
use crate::book::{Action, Book, Doing, Overrun, Warning};
use crate::config::{Mode, Timed};
use std::time::Duration;

/// A statement that still runs this long after it was cancelled is cancelled once more.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

impl<B, W> Book<B, W> {
    /// B12 and the deadline of what a lease runs.
    pub(in crate::book) fn overrun(
        &mut self,
        sight: &Sight,
        watch: &mut Watch,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let budgets = self.budgets_at(sight.id);
        let Some(statement) = sight.activity.statement else {
            // The next one may begin right after this tick.
            if let Some(by) = first_look(&self.limits.budgets(budgets).statement, &sight.activity.own) {
                self.wake(later(sight.now, by));
            }
            return;
        };
        if watch.statement != Some(statement) {
            (watch.statement, watch.again) = (Some(statement), None);
            watch.renew(&[Dim::B12]);
        }
        let own = sight.activity.own;
        let ran = sight.now.saturating_duration_since(statement);
        let timed = self.limits.budgets(budgets).statement;
        let limit = Limit { dim: Dim::B12, timed, own: own.statement, acts: Told::Cancel, armed: true };
        let verdict = watch.judge(&limit, ran, &mut self.tally);
        if let Verdict::Tell(limit) = verdict {
            let warning = Warning::Statement { ran, limit };
            actions.push(Action::Warn { session: sight.session, lease: sight.id, warning });
        }
        let why = match verdict {
            Verdict::Act { limit, own } | Verdict::Acted { limit, own } => {
                Some(Overrun::Statement { ran, limit, own })
            }
            _ => None,
        };
        self.expect(sight, Some(statement), &limit.crossings());

        // The first statement is what the lease was asked for, so its wait counts.
        let asked = self.leases.get(&sight.id).filter(|_| sight.activity.first).map(|lease| lease.asked);
        let since = asked.unwrap_or(statement);
        let spent = sight.now.saturating_duration_since(since);
        let late = own.deadline.filter(|limit| spent >= *limit && why.is_none());
        let why = why.or(late.map(|limit| Overrun::Deadline { spent, limit }));
        self.expect(sight, Some(since), &[own.deadline]);

        let Some(why) = why else { return };
        if watch.again.is_some_and(|at| sight.now < at) {
            return;
        }
        if late.is_some() && watch.again.is_none() {
            self.tally.count(Dim::B12, Told::Cancel);
        }
        watch.again = Some(sight.now + AGAIN);
        actions.push(Action::Cancel { session: sight.session, lease: sight.id, statement, why });
    }

    /// B13: what a lease runs for a client that does not take the result. Acts once a stall.
    pub(in crate::book) fn stall(
        &mut self,
        sight: &Sight,
        watch: &mut Watch,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let stall = sight.activity.stalled.filter(|_| sight.activity.state == Doing::Active);
        // A client may take something between two ticks, and then nothing again.
        if std::mem::replace(&mut watch.stall, stall) != stall {
            watch.renew(&[Dim::B13]);
        }
        let Some(since) = stall else { return };
        let (session, lease) = (sight.session, sight.id);
        let stalled = sight.now.saturating_duration_since(since);
        let timed = self.limits.budgets(self.budgets_at(lease)).stall;
        let armed = self.is_armed(&timed, sight.now);
        let limit = Limit { dim: Dim::B13, timed, own: None, acts: Told::Cancel, armed };
        match watch.judge(&limit, stalled, &mut self.tally) {
            Verdict::Nothing | Verdict::Acted { .. } => {}
            Verdict::Tell(limit) => {
                let warning = Warning::Stalled { stalled, limit };
                actions.push(Action::Warn { session, lease, warning });
            }
            Verdict::Spare(limit) => {
                let warning = Dim::B13.spared(stalled, limit);
                actions.push(Action::Warn { session, lease, warning });
            }
            Verdict::Act { limit, .. } => {
                let why = Overrun::Stalled { stalled, limit };
                actions.push(Action::Cancel { session, lease, statement: since, why });
            }
        }
        self.expect(sight, Some(since), &limit.crossings());
    }
}

/// When a lease should be looked at first, from when it is asked for, so that a short budget of its
/// statement is not missed until the next tick.
pub(in crate::book) fn first_look(timed: &Timed, own: &crate::tag::Own) -> Option<Duration> {
    let configured = timed.abort.filter(|_| timed.mode == Mode::Enforce);
    [own.deadline, own.statement, configured].into_iter().flatten().min()
}
