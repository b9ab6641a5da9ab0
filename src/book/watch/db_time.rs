//! B3: the time in which statements of one request ran, of all its leases together.
//!
//! Leases that are back have told theirs; of those that are held the tick asks.

use super::judge::{Limit, Verdict};
use super::overrun::AGAIN;
use crate::book::report::{Dim, Told};
use crate::book::who::Who;
use crate::book::{
    Action, Activity, Book, Claim, Doing, LeaseId, Overrun, Overstay, Refusal, SessionId, Warning,
};
use crate::config::Mode;
use std::time::{Duration, Instant};

impl<B, W> Book<B, W> {
    /// Judges every request that holds a lease. Beyond the limit that acts, what runs is cancelled and
    /// what idles in a transaction is ended.
    pub(in crate::book) fn watch_requests(
        &mut self,
        now: Instant,
        probe: &mut dyn FnMut(SessionId, LeaseId) -> Option<Activity>,
        actions: &mut Vec<Action<B, W>>,
    ) {
        for at in std::mem::take(&mut self.spending) {
            let request = &self.requests[at];
            let timed = self.limits.budgets(request.budgets).db_time;
            let used = request.used();
            self.peaks.saw_time(Dim::B3, used);
            let first = timed.warn.into_iter().chain(timed.abort).min();
            let Some(first) = first.filter(|first| used >= *first / 5 * 4) else { continue };
            self.wake(now + first.saturating_sub(used).max(crate::book::tick::TICK_LEAST));

            let armed = self.is_armed(&timed, now);
            let limit = Limit { dim: Dim::B3, timed, own: None, acts: Told::Cancel, armed };
            let request = &mut self.requests[at];
            let watch = request.watch.get_or_insert_default();
            let verdict = watch.judge(&limit, used, &mut self.tally);
            let again = watch.again.is_none_or(|at| at <= now);
            let limit = match verdict {
                Verdict::Nothing => continue,
                Verdict::Tell(limit) | Verdict::Spare(limit) => limit,
                Verdict::Act { limit, .. } | Verdict::Acted { limit, .. } if again => {
                    watch.again = Some(now + AGAIN);
                    limit
                }
                Verdict::Act { .. } | Verdict::Acted { .. } => continue,
            };
            self.tell_request(at, verdict, (used, limit), probe, actions);
        }
    }

    fn tell_request(
        &mut self,
        request: u32,
        verdict: Verdict,
        (used, limit): (Duration, Duration),
        probe: &mut dyn FnMut(SessionId, LeaseId) -> Option<Activity>,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let mut held: Vec<LeaseId> = self.leases.keys().copied().collect();
        held.sort_unstable();
        for id in held {
            let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.who.request == Some(request))
            else {
                continue;
            };
            let session = lease.session;
            if let Verdict::Tell(_) | Verdict::Spare(_) = verdict {
                let warning = match verdict {
                    Verdict::Spare(_) => Dim::B3.spared(used, limit),
                    _ => Warning::DbTime { used, limit },
                };
                actions.push(Action::Warn { session, lease: id, warning });
                return;
            }
            let Some(activity) = probe(session, id) else { continue };
            if let Some(statement) = activity.statement {
                let why = Overrun::DbTime { used, limit };
                actions.push(Action::Cancel { session, lease: id, statement, why });
            } else if activity.state == Doing::IdleInTx {
                lease.watch.get_or_insert_default().ended = true;
                actions.push(Action::End { session, lease: id, why: Overstay::DbTime { used, limit } });
            }
        }
    }

    /// B3, before anything is granted or queued: a request that has used up its time gets no more of it.
    pub(in crate::book) fn used_up(&mut self, claim: &Claim, who: Who, now: Instant) -> Option<Refusal> {
        let used = self.requests[who.request?].used();
        let timed = &self.limits.budgets(who.budgets).db_time;
        let acts = timed.mode == Mode::Enforce && self.is_armed(timed, now);
        let limit = timed.abort.filter(|limit| acts && used >= *limit)?;
        self.tally.count(Dim::B3, Told::Reject);
        let standing = self.standing(claim.pool, who, claim.session, now);
        let refusal = Refusal::DbTimeUsedUp { used, limit, standing };
        self.count_refusal(claim, who, &refusal);
        Some(refusal)
    }
}
