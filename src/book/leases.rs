//! The life of a lease: begun at a checkout or a grant, accounted when it comes back.

use super::leaks::Lesson;
use super::pool::Place;
use super::report::{Dim, Told, nanos};
use super::requests::Episode;
use super::turns::{Entrance, units};
use super::turns::{Entry, Waiter};
use super::watch::Watch;
use super::who::Who;
use super::{
    Action, Book, Checkout, Claim, LeaseId, Outcome, PoolId, Refusal, SessionId, Usage, WaiterId, Warning,
};
use crate::config::PoolMode;
use crate::tag::Tag;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) session: SessionId,
    pub(super) pool: PoolId,
    pub(super) tag: Arc<Tag>,
    /// For Bursar's own needs at login.
    login: bool,
    pub(super) who: Who,
    /// When its session asked; from then to `since` it waited.
    pub(super) asked: Instant,
    pub(super) since: Instant,
    /// Charged to its tenant so far, in virtual time.
    pub(super) charged: u64,
    /// Counted among those known to be long.
    pub(super) long: bool,
    /// So much of its hold is in its tenant's last minute.
    pub(super) counted: Duration,
    /// Goes on with a transaction that was parked.
    resumed: bool,
    /// Kept beyond its transaction (B17).
    pub(super) pinned: bool,
    /// Of its first statement; 0 = not known.
    pub(super) fingerprint: u64,
    /// What ticks have said about it; most leases are back before the first.
    pub(super) watch: Option<Box<Watch>>,
}

/// How a lease was asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Instant,
    /// Not judged before, when it was promised a backend that was gone.
    first: bool,
    entrance: Entrance,
}

impl<B, W> Book<B, W> {
    /// Asks for a backend: an idle one at once if nobody of equal right waits, else a place in the
    /// queue, or a refusal (B2, B3, B8, B15). `waiter` is called only to queue. `warnings` gets what a
    /// budget in mode warn has to say about a lease granted here.
    pub fn checkout(
        &mut self,
        now: Instant,
        claim: &Claim,
        waiter: impl FnOnce(WaiterId) -> W,
        warnings: &mut Vec<Warning>,
        actions: &mut Vec<Action<B, W>>,
    ) -> Checkout {
        if self.closing {
            return Checkout::Refused(self.refuse_closing(claim.pool));
        }
        self.clock = Some(now);
        let who = self.who(claim, now);
        if let Some(refusal) = self
            .too_old(claim, who, now)
            .or_else(|| self.too_many_leases(claim, who, now))
            .or_else(|| self.used_up(claim, who, now))
        {
            return Checkout::Refused(refusal);
        }
        let pool = &self.pools[claim.pool.0 as usize];
        // While a backend is idle nobody is in line who may have it: `serve` sees to that.
        if pool.census.at(Place::Idle) > 0
            && !pool.paused
            && !self.held_back(who.request)
            && self.bar(claim.pool, who).is_none()
            && !self.is_behind(claim, who)
        {
            self.shift(claim.pool, Some(Place::Idle), Some(Place::Leased), now);
            let asked = Asked { at: now, first: true, entrance: Entrance::AtOnce };
            let lease = self.begin(claim, who, asked, now, warnings);
            self.look_again(now, actions);
            return Checkout::Idle(lease);
        }
        let refusal = self.unavailable(claim, who, now).or_else(|| self.cannot_make_it(claim, who, now));
        if let Some(refusal) = refusal.or_else(|| self.queue_full(claim, who, now, actions)) {
            return Checkout::Refused(refusal);
        }
        let id = self.enqueue(claim, who, Entry::Back, now, waiter);
        self.serve(claim.pool, now, actions);
        self.look_again(now, actions);
        Checkout::Queued(id)
    }

    /// The idle backend promised to a lease was not there, or was dead and is closed: the session
    /// gets the next idle one, or the first place in the queue. The lease never was.
    pub fn idle_vanished(
        &mut self,
        now: Instant,
        lease: LeaseId,
        claim: &Claim,
        waiter: impl FnOnce(WaiterId) -> W,
        actions: &mut Vec<Action<B, W>>,
    ) -> Checkout {
        let pool = &self.pools[claim.pool.0 as usize];
        if !self.closing
            && !pool.paused
            && pool.census.at(Place::Idle) > 0
            && self.leases.contains_key(&lease)
        {
            self.shift(claim.pool, Some(Place::Idle), None, now);
            self.serve(claim.pool, now, actions);
            self.feed(now, actions);
            self.look_again(now, actions);
            return Checkout::Idle(lease);
        }
        self.count_retry(now);
        let (who, asked) = match self.leases.remove(&lease) {
            Some(old) => {
                self.shift(old.pool, Some(Place::Leased), None, now);
                self.unbegin(&old);
                (old.who, old.asked)
            }
            None => (self.who(claim, now), now),
        };
        if self.closing {
            return Checkout::Refused(self.refuse_closing(claim.pool));
        }
        let id = self.enqueue(claim, who, Entry::Front(asked), now, waiter);
        self.serve(claim.pool, now, actions);
        self.feed(now, actions);
        self.look_again(now, actions);
        Checkout::Queued(id)
    }

    /// Gives a lease back. `backend: None` says that it is gone, and its connection closed: the slot
    /// is free. `hint` says why it came back, if not by itself: [`Outcome::Reclaimed`] when Bursar
    /// took it, [`Outcome::ClientGone`] when its client left work behind (an open transaction, a
    /// running statement).
    ///
    /// `Some` is the backend, now idle: put it into the pool's store, before the actions. It is not
    /// one of them because this is how nearly every lease ends.
    #[must_use]
    pub fn checkin(
        &mut self,
        now: Instant,
        lease: LeaseId,
        backend: Option<B>,
        usage: Usage,
        hint: Option<Outcome>,
        actions: &mut Vec<Action<B, W>>,
    ) -> Option<B> {
        // A lease nobody knows came back before: its backend, if any, is dropped and so closed.
        let old = self.leases.remove(&lease)?;
        self.account(&old, &usage, now);
        self.close_cases(lease, &old, (hint, usage.active), now, actions);
        self.watchman.forget(lease);
        self.shift(old.pool, Some(Place::Leased), None, now);
        let promoted = self.promote(old.who.request);
        let idle = match backend {
            Some(backend) => self.arrive(old.pool, backend, now, actions),
            None => {
                self.serve(old.pool, now, actions);
                None
            }
        };
        self.serve_all(&promoted, now, actions);
        if !self.hungry.is_empty() {
            self.feed(now, actions);
        }
        self.look_again(now, actions);
        idle
    }

    fn refuse_closing(&mut self, pool: PoolId) -> Refusal {
        let refusal = Refusal::Closing;
        let sofar = &mut self.pools[pool.0 as usize].sofar;
        *sofar.rejections.entry(refusal.sqlstate()).or_default() += 1;
        refusal
    }

    /// Ends a wait with a lease, whose slot is counted already.
    pub(super) fn grant(
        &mut self,
        id: WaiterId,
        backend: Option<B>,
        entrance: Entrance,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let Some(waiter) = self.detach(id, true) else { return };
        let mut warnings = Vec::new();
        let asked = Asked { at: waiter.since, first: !waiter.again, entrance };
        let lease = self.begin(&waiter.claim, waiter.who, asked, now, &mut warnings);
        if actions.capacity() == 0 {
            // Most often it stays the only one, and one is much smaller than what a list begins with.
            actions.reserve_exact(1);
        }
        let Waiter { handle, claim, .. } = waiter;
        actions.push(Action::Grant { waiter: handle, claim, lease, backend, warnings });
    }

    /// Writes a lease into every ledger.
    fn begin(
        &mut self,
        claim: &Claim,
        who: Who,
        asked: Asked,
        now: Instant,
        warnings: &mut Vec<Warning>,
    ) -> LeaseId {
        let waited = match asked.entrance {
            Entrance::AtOnce => Duration::ZERO,
            Entrance::Turn | Entrance::Other => now.saturating_duration_since(asked.at),
        };
        let leased = self.census.at(Place::Leased) as u64;
        self.leases_peak = self.leases_peak.max(leased);
        let pool = &mut self.pools[claim.pool.0 as usize];
        pool.last_used = now;
        let sofar = &mut pool.sofar;
        sofar.leases += 1;
        sofar.leases_peak = sofar.leases_peak.max(pool.census.at(Place::Leased));
        sofar.granted(who.class, waited);
        sofar.untagged += u64::from(untagged(claim.login, &claim.tag));
        let max_wait = self.limits.budgets(who.budgets).max_wait.unwrap_or(pool.rules.max_wait);
        pool.parts.take(who.class);
        pool.long_in_use += u32::from(who.guess.long);

        let share = &mut self.shares[who.share];
        pool.unmet_mins -= u32::from(share.promised && share.leased < share.min);
        share.leased += 1;
        share.leases_total += 1;
        share.waited += waited;
        if let Some(request) = who.request {
            if self.requests[request].leases == 0 {
                let (kind, claim) = (who.guess.key, self.predictor.claim(who.guess.key));
                self.requests[request].episode = Episode { kind, claim, most: 1 };
            }
            self.requests[request].granted(waited);
            if claim.resumes.is_some() {
                self.requests[request].went_on();
            }
            self.requests[request].joined(claim.session, claim.fingerprint);
            self.watchman.works_for(claim.session, request);
        }
        if asked.first {
            let told = warnings.len();
            self.peaks.saw(Dim::B9, nanos(waited) / 1_000_000);
            self.tally.count(Dim::B9, Told::within(nanos(waited), nanos(max_wait)));
            self.judge_tenant(claim, who, warnings);
            if let Some(request) = who.request {
                self.judge_request(request, warnings);
            }
            for warning in &warnings[told..] {
                self.warned_event(warning, Some(claim.pool), &claim.tag);
            }
        }
        let charged = self.charge(claim.pool, who, asked.entrance);
        self.refresh(who.share);
        if let Some(request) = who.request {
            self.restake(request, who.share, true);
        }

        let id = LeaseId(self.next_lease);
        self.next_lease += 1;
        let &Claim { session, pool, login, fingerprint, .. } = claim;
        let tag = claim.tag.clone();
        if let Some(by) = super::watch::first_look(&self.limits.budgets(who.budgets).statement, &tag.own()) {
            self.wake(super::limits::later(asked.at, by));
        }
        let lease = Lease {
            session,
            pool,
            tag,
            login,
            who,
            asked: asked.at,
            since: now,
            charged,
            long: who.guess.long,
            counted: Duration::ZERO,
            resumed: claim.resumes.is_some(),
            pinned: false,
            fingerprint,
            watch: None,
        };
        self.leases.insert(id, lease);
        self.wake_to_watch(now);
        id
    }

    /// B4 at a grant that went ahead: told where it does not act. Clients are warned of their requests; who has
    /// none is spared a warning with each lease.
    fn judge_tenant(&mut self, claim: &Claim, who: Who, warnings: &mut Vec<Warning>) {
        let share = &self.shares[who.share];
        let (holds, limit) = (share.leased, share.cap);
        let told = match holds > limit {
            true => Told::beyond(share.mode),
            false => Told::within(holds.into(), limit.into()),
        };
        self.tally.count(Dim::B4, told);
        self.peaks.saw(Dim::B4, holds.into());
        if told == Told::Warn {
            let warning = Warning::TenantOverCap { holds, limit };
            match who.request {
                None => self.warned_event(&warning, Some(claim.pool), &claim.tag),
                Some(request) if self.requests[request].tell_once(Dim::B4) => warnings.push(warning),
                Some(_) => {}
            }
        }
    }

    /// Takes a lease out of the ledgers as if it had not been; its wait goes on.
    fn unbegin(&mut self, old: &Lease) {
        let waited = old.since.saturating_duration_since(old.asked);
        let sofar = &mut self.pools[old.pool.0 as usize].sofar;
        sofar.leases -= 1;
        sofar.untagged -= u64::from(untagged(old.login, &old.tag));
        sofar.ungranted(old.who.class, waited);
        let share = &mut self.shares[old.who.share];
        share.leases_total -= 1;
        share.waited -= waited;
        if let Some(request) = old.who.request {
            self.requests[request].ungranted(waited);
            if old.resumed {
                self.requests[request].did_not_go_on();
            }
        }
        self.give_back(old, 0);
    }

    /// What a lease took of its tenant, class and request, back; `due` is what it cost.
    fn give_back(&mut self, old: &Lease, due: u64) {
        let who = old.who;
        let pool = &mut self.pools[old.pool.0 as usize];
        pool.parts.give(who.class);
        pool.long_in_use -= u32::from(old.long);
        let share = &mut self.shares[who.share];
        share.leased -= 1;
        pool.unmet_mins += u32::from(share.promised && share.leased < share.min);
        self.correct(who, old.charged, due);
        self.refresh(who.share);
        self.shares.settle(who.share);
        if let Some(request) = who.request {
            self.restake(request, who.share, false);
            self.requests.settle(request);
        }
    }

    fn account(&mut self, old: &Lease, usage: &Usage, now: Instant) {
        let held = now.saturating_duration_since(old.since);
        let pool = &mut self.pools[old.pool.0 as usize];
        pool.last_used = now;
        pool.hold.add(held);
        pool.sofar.returned(old.who.class, held);
        pool.sofar.usage.add(usage);
        pool.pinned -= u32::from(old.pinned);
        let share = &mut self.shares[old.who.share];
        share.pinned -= u32::from(old.pinned);
        share.held += held;
        share.active += usage.active;
        share.minute.add(held.saturating_sub(old.counted), now);
        let due = units(held, share.weight);
        if let Some(request) = old.who.request {
            self.requests[request].returned(held, usage, now);
            if self.requests[request].leases == 0 {
                let Episode { kind, most, .. } = self.requests[request].episode;
                self.predictor.depth(kind).learn(most);
            }
            self.note_group(old.who, usage.backend, now);
        }
        let key = old.who.guess.key;
        if old.long && !old.who.guess.long {
            self.predictor.learn_the_rest(key, held);
        } else if self.predictor.learn(key, held) {
            self.regard_anew(old.who);
        }
        self.learn(old, held, usage, now);
        self.give_back(old, due);
        for dim in [Dim::B10, Dim::B11, Dim::B12, Dim::B13] {
            if !old.watch.as_ref().is_some_and(|watch| watch.was_told(dim)) {
                self.tally.count(dim, Told::Ok);
            }
        }
    }
}

impl<B, W> Book<B, W> {
    /// What a lease tells of its call site, if it has come back by itself and says something of others:
    /// not one whose end was forced, nor one that outlived its transaction.
    #[inline]
    fn learn(&mut self, old: &Lease, held: Duration, usage: &Usage, now: Instant) {
        let forced = old.watch.as_ref().is_some_and(|watch| watch.ended);
        let lends = self.pools[old.pool.0 as usize].rules.mode != PoolMode::Session;
        if old.login || old.pinned || forced || !lends {
            return;
        }
        let lesson = Lesson {
            held,
            active: usage.active,
            gap: Duration::from_micros(usage.gap_us.into()),
            repeats: usage.repeats,
        };
        self.callsites.learn(&old.tag, old.fingerprint, lesson, now);
    }
}

fn untagged(login: bool, tag: &Tag) -> bool {
    !login && tag.request.is_none()
}
