//! Which transactions are asked to give their backends back, and how they come to others (budgets.md §4.4).
//!
//! A transaction that may be parked idles as any other; the tick asks for its backend once it has idled
//! for long enough and somebody waits, the lease that began first before the others, and no more of them than
//! clients wait. Whether it has only read its session knows, and whether it is still idle by then.
//!
//! Going on it is no new lease of its request (B2), waits before those who only begin, of its tenant if its
//! request is known, and is as old as it was (B10).

use crate::book::report::{Dim, Told};
use crate::book::tick::{Sight, TICK_LEAST};
use crate::book::turns::Line;
use crate::book::who::Who;
use crate::book::{Action, Book, Claim, PoolId, Refusal, WaiterId};
use crate::config::{Mode, ParkMode};
use std::time::Instant;

impl<B, W> Book<B, W> {
    /// Asks for the backend of one lease, if it is time.
    pub(in crate::book) fn park(&mut self, sight: &Sight, actions: &mut Vec<Action<B, W>>) {
        let parking = self.limits.budgets(self.budgets_at(sight.id)).parking;
        let wanted = sight.waiting > 0 || !parking.only_under_pressure;
        if parking.mode != ParkMode::Enforce || !wanted {
            return;
        }
        // It may begin to idle right after this tick.
        self.wake(sight.now + TICK_LEAST);
        let due = sight.idle().is_some_and(|idle| idle >= parking.min_gap);
        let seen = &mut self.pools[sight.pool.0 as usize].seen;
        let enough = parking.only_under_pressure && seen.parks as usize >= sight.waiting;
        if due && sight.activity.parkable && !enough {
            seen.parks += 1;
            actions.push(Action::Park { session: sight.session, lease: sight.id });
        }
    }

    /// Somebody waits from now on: who idles is looked at soon.
    pub(in crate::book) fn look_for_parkable(&mut self, now: Instant) {
        if self.limits.parks {
            self.wake(now + TICK_LEAST / 2);
        }
    }

    /// B10 of a transaction that was parked.
    pub(in crate::book) fn too_old(&mut self, claim: &Claim, who: Who, now: Instant) -> Option<Refusal> {
        let age = now.saturating_duration_since(claim.resumes?);
        let timed = self.limits.budgets(who.budgets).age;
        let acts = timed.mode == Mode::Enforce && self.is_armed(&timed, now);
        let ours = timed.abort.filter(|_| acts);
        let limit = claim.tag.own().age.into_iter().chain(ours).min().filter(|limit| age >= *limit)?;
        self.tally.count(Dim::B10, Told::Abort);
        let refusal = Refusal::TooOld { age, limit };
        self.count_refusal(claim, who, &refusal);
        Some(refusal)
    }

    /// Puts an untagged waiter that goes on before those who begin, the oldest transaction first.
    pub(in crate::book) fn line_up_to_resume(&mut self, id: WaiterId, began: Instant) -> Option<PoolId> {
        let waiter = self.waiters.get_mut(&id)?;
        waiter.line = Line::Finish(began);
        let (pool, order) = (waiter.claim.pool, waiter.order);
        let lines = &mut self.pools[pool.0 as usize];
        lines.finish.insert((began, order), id);
        lines.demand += 1;
        Some(pool)
    }
}
