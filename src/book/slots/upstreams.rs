//! Servers by name, each with its breaker: whether a pool may dial, what its dials tell, and whom that leaves
//! no hope (budgets.md §6.3).
//!
//! Pools of one server share its breaker. A pool has a [`Door`] of its own for what the server says about its
//! role and database alone. Waiters wait on, each until its deadline; refused at once is only who asks when
//! nothing will be dialled before its deadline, and there is no backend that could come back.

use crate::book::report::view::UpstreamView;
use crate::book::who::Who;
use crate::book::{Action, Book, BreakerTurn, Claim, PoolId, Refusal};
use crate::breaker::{Breaker, Door, Failure, Reason, Room, Turn};
use crate::config::BreakerRules;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One server.
#[derive(Debug)]
pub(in crate::book) struct Upstream {
    name: Arc<str>,
    breaker: Breaker,
    /// The last failure since the last success.
    error: Option<Arc<str>>,
    turns: [u64; Reason::ALL.len()],
}

/// What a dial came to, if not to a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialFailure {
    /// What it says of the server.
    pub kind: Failure,
    /// In words.
    pub error: Arc<str>,
}

impl<B, W> Book<B, W> {
    /// The number of a server, which gets one if it has none.
    pub(in crate::book) fn upstream(&mut self, name: &str) -> usize {
        let known = self.upstreams.iter().position(|upstream| *upstream.name == *name);
        known.unwrap_or_else(|| {
            self.upstreams.push(Upstream {
                name: name.into(),
                breaker: Breaker::new(self.limits.breaker),
                error: None,
                turns: [0; Reason::ALL.len()],
            });
            self.upstreams.len() - 1
        })
    }

    /// A pool's backends are on another server from now on, or got otherwise.
    pub fn moved(&mut self, now: Instant, id: PoolId, server: &str, actions: &mut Vec<Action<B, W>>) {
        self.pools[id.0 as usize].bound_for = Some(self.upstream(server));
        self.move_on(id);
        self.serve(id, now, actions);
        self.look_again(now, actions);
    }

    /// Once no dial is under way: the old server's breaker waits for what each of them tells.
    pub(super) fn move_on(&mut self, id: PoolId) {
        let pool = &mut self.pools[id.0 as usize];
        if pool.census.at(crate::book::pool::Place::Dialling) == 0
            && let Some(upstream) = pool.bound_for.take()
        {
            (pool.upstream, pool.dials) = (upstream, crate::book::pool::Dials::default());
        }
    }

    /// New rules; what a reload may have put right is tried again.
    pub(in crate::book) fn set_breaker_rules(&mut self, rules: BreakerRules) {
        self.upstreams.iter_mut().for_each(|upstream| upstream.breaker.set_rules(rules));
        self.pools.iter_mut().for_each(|pool| pool.dials.door = Door::default());
    }

    /// Whether a pool may dial.
    pub(super) fn room(&self, id: PoolId, now: Instant) -> Room {
        let pool = &self.pools[id.0 as usize];
        let dials = pool.census.at(crate::book::pool::Place::Dialling);
        match (pool.dials.door.room(now, dials), self.upstreams[pool.upstream].breaker.room(now)) {
            (Room::At(one), Room::At(other)) => Room::At(one.max(other)),
            (Room::At(at), _) | (_, Room::At(at)) => Room::At(at),
            (Room::Later, _) | (_, Room::Later) => Room::Later,
            (Room::Now, Room::Now) => Room::Now,
        }
    }

    /// Whether Bursar tries again what did not come through.
    pub(super) fn tries_again(&self, id: PoolId) -> bool {
        let pool = &self.pools[id.0 as usize];
        pool.dials.failures > 0 || !self.upstreams[pool.upstream].breaker.is_calm()
    }

    /// Whether that leaves it without a backend.
    pub(in crate::book) fn is_shut_out(&self, id: PoolId) -> bool {
        self.tries_again(id) && self.pools[id.0 as usize].census.up() == 0
    }

    /// A dial goes out.
    pub(super) fn begin_dial(&mut self, id: PoolId, actions: &mut Vec<Action<B, W>>) {
        let at = self.pools[id.0 as usize].upstream;
        let turn = self.upstreams[at].breaker.dial();
        self.tell_turn(at, turn, actions);
    }

    /// What a dial that has ended tells.
    pub(super) fn end_dial(
        &mut self,
        id: PoolId,
        failure: Option<&DialFailure>,
        now: Instant,
        actions: &mut Vec<Action<B, W>>,
    ) {
        let (result, fraction) =
            (failure.map_or(Ok(()), |failure| Err(failure.kind)), self.jitter.fraction());
        let pool = &mut self.pools[id.0 as usize];
        let at = pool.upstream;
        let upstream = &mut self.upstreams[at];
        match failure {
            None => (pool.dials, upstream.error) = (crate::book::pool::Dials::default(), None),
            Some(failure) => {
                pool.dials.door.dialled(now, result, &self.limits.breaker, fraction);
                pool.dials.failures = pool.dials.failures.saturating_add(1);
                pool.dials.error = Some(failure.error.clone());
                upstream.error = match failure.kind {
                    Failure::Unreachable | Failure::Starting => Some(failure.error.clone()),
                    Failure::Refused | Failure::Full => None,
                };
            }
        }
        let turn = upstream.breaker.dialled(now, result, fraction);
        self.tell_turn(at, turn, actions);
    }

    /// The connection of a backend of this pool broke.
    pub fn broke(&mut self, now: Instant, pool: PoolId, actions: &mut Vec<Action<B, W>>) {
        let at = self.pools[pool.0 as usize].upstream;
        let turn = self.upstreams[at].breaker.broke(now);
        self.tell_turn(at, turn, actions);
    }

    fn tell_turn(&mut self, at: usize, turn: Option<Turn>, actions: &mut Vec<Action<B, W>>) {
        let Some(turn) = turn else { return };
        let upstream = &mut self.upstreams[at];
        upstream.turns[turn.reason as usize] += 1;
        let (upstream, error) = (upstream.name.clone(), upstream.error.clone());
        actions.push(Action::Breaker(Box::new(BreakerTurn { upstream, turn, error })));
    }

    /// Why the last dials of a pool failed, if its server or its door keeps it from dialling.
    pub(in crate::book) fn dial_error(&self, id: PoolId) -> Option<Arc<str>> {
        let pool = &self.pools[id.0 as usize];
        pool.dials.error.clone().or_else(|| self.upstreams[pool.upstream].error.clone())
    }

    /// Nothing will be dialled before the deadline of a newcomer, and no backend is there that could come
    /// back: it is told so at once.
    pub(in crate::book) fn unavailable(&mut self, claim: &Claim, who: Who, now: Instant) -> Option<Refusal> {
        let id = claim.pool;
        let Room::At(at) = self.room(id, now) else { return None };
        let pool = &self.pools[id.0 as usize];
        let opens = at.saturating_duration_since(now);
        if pool.census.up() > 0 || opens <= self.patience(claim, who) {
            return None;
        }
        let own = !matches!(pool.dials.door.room(now, 0), Room::Now);
        let error = self.dial_error(id);
        let mut standing = self.standing(id, who, claim.session, now);
        // Whole seconds, so that nobody comes back a moment too soon.
        standing.retry = Duration::from_secs(opens.as_secs() + 1);
        let refusal = Refusal::Unavailable { opens, own, error, standing };
        self.count_refusal(claim, who, &refusal);
        Some(refusal)
    }

    /// For views.
    pub(in crate::book) fn upstream_rows(&self, now: Instant) -> Vec<UpstreamView> {
        let row = |upstream: &Upstream| UpstreamView {
            name: upstream.name.clone(),
            state: upstream.breaker.state(),
            opens: match upstream.breaker.room(now) {
                Room::At(at) => Some(at.saturating_duration_since(now)),
                Room::Now | Room::Later => None,
            },
            error: upstream.error.clone(),
            turns: Reason::ALL.map(|reason| (reason.name(), upstream.turns[reason as usize])).to_vec(),
        };
        self.upstreams.iter().map(row).collect()
    }
}
