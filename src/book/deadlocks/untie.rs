//! What the book does about a deadlock of a pool: the ladder of budgets.md §3.4.
//!
//! At each tick, while somebody waits, the leases are put before the detector (`knot`). A knot that has
//! stood for `[pool] deadlock_after` is a case, and the weakest step that may help is taken, one at a
//! time: the next tick sees its effect, or takes the next.
//!
//! ```text
//!   (1) park a transaction that has only read      as soon as anybody waits (`watch::park`), where it is enforced
//!   (2) finish first, (3) wait                     the queue's business, before there is a knot
//!   (4) one more backend, if `deadlock_overflow` and `server.max_backends` allow
//!   (5) abort the youngest request                 never on suspicion (untagged clients)
//! ```
//!
//! What the victim leaves goes to the eldest (`aftermath`). Whether a lease's backend is really
//! given back is its session's business ([`crate::book::Action::End`]); until it is, it counts as coming.

use super::cases::{Deadlock, DeadlockKind, Resolution, Until};
use super::knot::{Hold, Knot, Party, Scene, Scope, Wait};
use crate::book::limits::part;
use crate::book::pool::Place;
use crate::book::turns::Bar;
use crate::book::turns::{Line, Waiter};
use crate::book::{
    Action, Activity, Book, ById, Doing, LeaseId, Overstay, PoolId, Refusal, SessionId, WaiterId,
};
use crate::config::Share as Portion;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Of a pool's size, what `deadlock_overflow` may add at most (budgets.md §3.4).
const OVERFLOW_MOST: Portion = Portion::Percent(25.0);
/// For how long.
const OVERFLOW_TTL: Duration = Duration::from_secs(5);
/// Dials in a row that failed, from which on no backend is expected of the next.
const HOPELESS: u32 = 2;
/// Parties named in a case.
const NAMED: usize = 8;

/// What the last tick saw of each lease, and who untagged sessions are.
#[derive(Debug, Default)]
pub(in crate::book) struct Watchman {
    pub(super) sights: ById<LeaseId, Sight>,
    /// Instances of applications, by session.
    instances: ById<SessionId, Known>,
    /// Some pool has more slots than its limit for now.
    extras: bool,
    /// When the server was last asked about locks.
    pub(super) asked: Option<Instant>,
    /// Leases whose statement, which began then, waits for a lock, and of whom.
    pub(in crate::book) locked: ById<LeaseId, (Instant, std::sync::Arc<str>)>,
}

/// A session that is connected.
#[derive(Debug, Clone, Copy)]
struct Known {
    instance: u64,
    /// The request that its last tagged lease was for.
    request: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    pub(super) doing: Doing,
    /// When its statement began, or its pause.
    pub(super) since: Instant,
    /// When its transaction began.
    pub(super) tx: Option<Instant>,
}

impl Watchman {
    pub(in crate::book) fn look_again(&mut self) {
        self.sights.clear();
    }

    /// Whether what a lease has run since then is known to wait for a lock.
    pub(in crate::book) fn is_locked(&self, lease: LeaseId, statement: Instant) -> bool {
        self.locked.get(&lease).is_some_and(|(since, _)| *since == statement)
    }

    /// A lease is back.
    pub(in crate::book) fn forget(&mut self, lease: LeaseId) {
        if !self.locked.is_empty() {
            self.locked.remove(&lease);
        }
    }

    /// A session has a lease of this request.
    pub(in crate::book) fn works_for(&mut self, session: SessionId, request: u32) {
        if let Some(known) = self.instances.get_mut(&session) {
            known.request = Some(request);
        }
    }

    /// Whether a session is connected and has not worked for another request since.
    pub(in crate::book) fn is_with(&self, session: SessionId, request: u32) -> bool {
        self.instances.get(&session).is_some_and(|known| known.request == Some(request))
    }

    pub(in crate::book) fn saw(&mut self, lease: LeaseId, activity: &Activity) {
        let since = activity.statement.unwrap_or(activity.since);
        self.sights.insert(lease, Sight { doing: activity.state, since, tx: activity.tx_start });
    }
}

impl<B, W> Book<B, W> {
    /// A session belongs to this instance of an application (a hash of client address, application
    /// name and role): where it does not tag its requests, that says whom it may wait for.
    pub fn comes_from(&mut self, session: SessionId, instance: u64) {
        self.watchman.instances.insert(session, Known { instance, request: None });
    }

    /// A session has ended.
    pub fn has_left(&mut self, session: SessionId, now: Instant) {
        let known = self.watchman.instances.remove(&session);
        let request = known.and_then(|known| known.request).filter(|at| self.requests.get(*at).is_some());
        if request.is_some_and(|at| self.requests[at].leases > 0) {
            // What another session holds of it may be leaked.
            self.wake(now);
        }
    }

    /// At a tick: finds pools that nobody can get on in, and does something about it.
    pub(in crate::book) fn untie(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        self.end_extras(now, actions);
        self.end_aftermath(now, actions);
        let mut tied = BTreeSet::new();
        if !self.waiters.is_empty() && !self.closing {
            let knots = self.knots();
            for knot in &knots {
                tied.extend(knot.pools.iter().copied());
                let due = knot.since + knot.patience;
                match now >= due {
                    true => self.resolve(knot, now, actions),
                    false => self.wake(due),
                }
            }
        }
        if self.deadlocks.has_open() {
            let (leases, deadlocks) = (&self.leases, &mut self.deadlocks);
            deadlocks.close(now, |pool, until| match until {
                Until::Back(ended) => !ended.iter().any(|lease| leases.contains_key(lease)),
                Until::Untied => !tied.contains(&pool),
            });
        }
    }

    /// Knots of tagged requests; where there are none, those suspected among untagged clients.
    fn knots(&self) -> Vec<Knot> {
        let scene = self.holds();
        let coming = scene.coming();
        let short = |(at, pool): (usize, &crate::book::pool::Pool)| {
            pool.waiting > 0 && !coming.pools.contains(&PoolId(at as u32))
        };
        let capped = |hold: &Hold| {
            let share = &self.shares[hold.share];
            share.waiting > 0 && share.room() == 0 && !coming.shares.contains(&hold.share)
        };
        if !self.pools.iter().enumerate().any(short) && !scene.holds.iter().any(capped) {
            return Vec::new();
        }
        let waits = self.waiters.values().filter_map(|waiter| self.wait_of(waiter));
        let mut scene = Scene { waits: waits.collect(), ..scene };
        let suspected = scene.knots();
        let tagged = |party: &Party| matches!(party, Party::Request(_));
        if suspected.iter().all(|knot| knot.core.iter().all(tagged)) {
            return suspected;
        }
        // Untagged holders may come back by themselves: what is a knot even then is sure.
        scene.holds.iter_mut().for_each(|hold| hold.party = hold.party.filter(tagged));
        scene.waits.retain(|wait| tagged(&wait.party));
        let sure = scene.knots();
        if sure.is_empty() { suspected } else { sure }
    }

    fn holds(&self) -> Scene {
        let mut scene = Scene::default();
        for (&id, lease) in &self.leases {
            let request = lease.who.request;
            let party = match request {
                Some(at) => (self.requests[at].waiting > 0).then_some(Party::Request(at)),
                None => self.watchman.instances.get(&lease.session).map(|of| Party::Instance(of.instance)),
            };
            let ended = lease.watch.as_ref().is_some_and(|watch| watch.ended);
            let idle = match self.watchman.sights.get(&id) {
                Some(sight) if sight.doing == Doing::IdleInTx && !ended => Some(sight.since),
                // Outside a transaction an untagged session holds its backend for good, and for no
                // reason that anybody could wait for.
                Some(sight) if sight.doing == Doing::Pinned && !ended && request.is_some() => {
                    Some(sight.since)
                }
                _ => None,
            };
            scene.holds.push(Hold { pool: lease.pool, share: lease.who.share, party, idle });
        }
        scene
    }

    fn wait_of(&self, waiter: &Waiter<W>) -> Option<Wait> {
        let (pool, session) = (waiter.claim.pool, waiter.claim.session);
        let party = match waiter.who.request {
            Some(at) => (self.requests[at].leases > 0).then_some(Party::Request(at))?,
            None => Party::Instance(self.watchman.instances.get(&session)?.instance),
        };
        let patience = self.pools[pool.0 as usize].rules.deadlock_after;
        let (scope, short) = if patience.is_none() { (Scope::Coming, false) } else { self.scope_of(waiter) };
        let patience = patience.unwrap_or_default();
        Some(Wait { party, pool, scope, short, since: waiter.since, patience })
    }

    /// Whose lease has to come back for this waiter, and whether one more backend of its pool would do
    /// as well. One that is idle while it waits is none it may have.
    fn scope_of(&self, waiter: &Waiter<W>) -> (Scope, bool) {
        let id = waiter.claim.pool;
        let pool = &self.pools[id.0 as usize];
        match waiter.line {
            // B1 refuses who is at its cap and waits for itself.
            Line::Request if waiter.who.request.is_some_and(|at| self.at_its_cap(at)) => {
                return (Scope::Coming, false);
            }
            Line::Request => return (Scope::Own, false),
            // A victim that has come again holds nothing.
            Line::Behind => return (Scope::Coming, false),
            Line::First | Line::Finish(_) | Line::Tenant | Line::None => {}
        }
        if pool.paused {
            return (Scope::Coming, false);
        }
        let bar = match waiter.line {
            Line::Finish(_) => self.bar_to_finish(id, waiter.who, self.spare(id)),
            _ => self.bar(id, waiter.who),
        };
        match bar {
            Some(Bar::TenantCap) => return (Scope::Share(waiter.who.share), false),
            // What is free or coming is not for this one.
            Some(_) => return (Scope::Pool(id), false),
            None => {}
        }
        let hopeless = pool.dials.failures >= HOPELESS;
        let dialling = pool.census.at(Place::Dialling) > 0 && !hopeless;
        let coming = pool.census.at(Place::Leaving) + pool.census.at(Place::Lent) + pool.awaited;
        if dialling || coming > 0 {
            (Scope::Coming, false)
        } else if pool.census.total() >= pool.limit() || hopeless {
            (Scope::Pool(id), !hopeless)
        } else if self.census.total() < self.limits.max_backends
            || self.census.at(Place::Dialling) + self.census.at(Place::Leaving) > 0
        {
            (Scope::Coming, false)
        } else {
            (Scope::Server, false)
        }
    }

    /// The ladder. One step, whose effect the next ticks see.
    fn resolve(&mut self, knot: &Knot, now: Instant, actions: &mut Vec<Action<B, W>>) {
        if let Some(pool) = knot.short.iter().copied().find(|&pool| self.may_exceed(pool)) {
            let case = self.case(knot, pool, Resolution::Overflow, now);
            self.deadlocks.open(case, Until::Untied, actions);
            self.exceed(pool, now, actions);
            return;
        }
        let requests = |parties: &[Party]| -> Vec<u32> {
            let number = |party: &Party| match party {
                Party::Request(at) => Some(*at),
                Party::Instance(_) => None,
            };
            parties.iter().filter_map(number).collect()
        };
        let (core, followers) = (requests(&knot.core), requests(&knot.followers));
        let pool = knot.pools.first().copied().unwrap_or(PoolId(0));
        if core.len() < knot.core.len() {
            if !self.deadlocks.is_open(pool, Resolution::Suspected) {
                let case = self.case(knot, pool, Resolution::Suspected, now);
                self.deadlocks.open(case, Until::Untied, actions);
            }
            return;
        }
        let youngest = |&&at: &&u32| {
            let request = &self.requests[at];
            (std::cmp::Reverse(request.since), request.active, at)
        };
        let Some(&victim) = core.iter().min_by_key(youngest) else { return };
        core.iter().for_each(|&at| self.learn_from_knot(at));
        let mut case = self.case(knot, pool, Resolution::Victim, now);
        case.victim = Some(self.requests[victim].tag.clone());
        let (backends, parties) = (case.holders, case.parties);
        let others: Vec<u32> = core.into_iter().chain(followers).filter(|&at| at != victim).collect();
        let leases = self.abort(victim, (backends, parties), &others, now, actions);
        self.deadlocks.open(case, Until::Back(leases), actions);
    }

    /// Refuses what a request waits for, and has what it holds given back.
    fn abort(
        &mut self,
        victim: u32,
        (backends, requests): (u32, u32),
        others: &[u32],
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) -> Vec<LeaseId> {
        let of_victim = |request: Option<u32>| request == Some(victim);
        let mut leases: Vec<LeaseId> = Vec::new();
        let mut sessions: Vec<SessionId> = Vec::new();
        for (&id, lease) in self.leases.iter_mut().filter(|(_, lease)| of_victim(lease.who.request)) {
            lease.watch.get_or_insert_default().ended = true;
            leases.push(id);
            sessions.push(lease.session);
        }
        leases.sort_unstable();
        let waiters = self.waiters.iter().filter(|(_, waiter)| of_victim(waiter.who.request));
        let mut waiters: Vec<(WaiterId, SessionId)> =
            waiters.map(|(&id, waiter)| (id, waiter.claim.session)).collect();
        waiters.sort_unstable();
        sessions.extend(waiters.iter().map(|&(_, session)| session));
        self.settle_knot(victim, sessions, others, now);
        self.advance_favoured();
        for (id, _) in waiters {
            let refusal = |standing| Refusal::Deadlock { backends, requests, standing };
            self.refuse(id, now, actions, refusal);
        }
        for &lease in &leases {
            let Some(session) = self.leases.get(&lease).map(|lease| lease.session) else { continue };
            actions.push(Action::End { session, lease, why: Overstay::Deadlock { backends, requests } });
        }
        self.wake(now + crate::book::limits::STUCK / 2);
        leases
    }

    /// Step 4: whether this pool may have one more slot than its limit for now.
    fn may_exceed(&self, id: PoolId) -> bool {
        let pool = &self.pools[id.0 as usize];
        let most = pool.rules.deadlock_overflow.min(part(OVERFLOW_MOST, pool.rules.size) as usize);
        let used = pool.extra.map_or(0, |(slots, _)| slots);
        // Slots of the last time have to come back before there are new ones.
        let fresh = used > 0 || pool.census.total() <= pool.limit();
        used < most && fresh && self.census.total() < self.limits.max_backends
    }

    fn exceed(&mut self, id: PoolId, now: Instant, actions: &mut Vec<Action<B, W>>) {
        let pool = &mut self.pools[id.0 as usize];
        let (slots, until) = pool.extra.unwrap_or((0, now + OVERFLOW_TTL));
        pool.extra = Some((slots + 1, until));
        self.watchman.extras = true;
        self.wake(until);
        self.serve(id, now, actions);
    }

    /// Slots whose time is over: what is idle goes now, what is leased when it comes back.
    fn end_extras(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        if !self.watchman.extras {
            return;
        }
        for pool in &mut self.pools {
            pool.extra = pool.extra.filter(|(_, until)| now < *until);
        }
        self.watchman.extras = self.pools.iter().any(|pool| pool.extra.is_some());
        self.shrink(now, actions);
    }

    fn case(&self, knot: &Knot, pool: PoolId, resolution: Resolution, now: Instant) -> Deadlock {
        let of = |request: Option<u32>, session: SessionId| match request {
            Some(at) => Some(Party::Request(at)),
            None => self.watchman.instances.get(&session).map(|of| Party::Instance(of.instance)),
        };
        let mut rows: Vec<(Party, u32, u32)> = knot.core.iter().map(|&party| (party, 0, 0)).collect();
        let row = |rows: &mut Vec<(Party, u32, u32)>, party: Option<Party>| {
            rows.iter().position(|row| Some(row.0) == party)
        };
        for lease in self.leases.values() {
            if let Some(at) = row(&mut rows, of(lease.who.request, lease.session)) {
                rows[at].1 += 1;
            }
        }
        for waiter in self.waiters.values() {
            if let Some(at) = row(&mut rows, of(waiter.who.request, waiter.claim.session)) {
                rows[at].2 += 1;
            }
        }
        let named = rows.iter().take(NAMED).map(|&(party, holds, waits)| {
            let name = match party {
                Party::Request(at) => format!("request {}", self.requests.name(at)),
                Party::Instance(_) => "an untagged application".into(),
            };
            format!("{name} holds {holds} and waits for {waits}")
        });
        let mut evidence = named.collect::<Vec<_>>().join("; ");
        if rows.len() > NAMED {
            evidence.push_str(&format!("; and {} more", rows.len() - NAMED));
        }
        Deadlock {
            id: 0,
            kind: DeadlockKind::Pool,
            resolution,
            pool,
            since: knot.since,
            detected: now.saturating_duration_since(knot.since),
            lasted: None,
            victim: None,
            holders: rows.iter().map(|row| row.1).sum(),
            parties: rows.len() as u32,
            waiters: rows.iter().map(|row| row.2).sum(),
            evidence,
        }
    }
}
