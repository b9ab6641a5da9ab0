//! Hold and wait: who can still get on, and who waits in a circle (budgets.md §3.4).
//!
//! Backends of a pool are alike, so whoever waits is served by *any* that comes back: a wait-for graph
//! with OR-edges, whose deadlocks are found without a search for cycles. Whoever can get on makes those
//! get on who wait for what it holds, until nothing changes; who is left is stuck. What comes out is a
//! presumption, because an application may finish its outer transaction by itself while an inner
//! one waits; the book gives it `[pool] deadlock_after` to do so.
//!
//! Knows nothing of the book: parties, what they hold, where they wait. Decides whom to abort,
//! not how.

use crate::book::PoolId;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Who holds and waits: all sessions of one request, or, untagged, all of one application instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Party {
    /// The number of a request.
    Request(u32),
    /// A hash of client address, application name and role: a stand-in, good for a suspicion.
    Instance(u64),
}

/// A lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    pub(super) pool: PoolId,
    /// The tenant's number in this pool.
    pub(super) share: u32,
    /// `None`: nobody known to wait for anything, so it comes back by itself.
    pub(super) party: Option<Party>,
    /// Since when nothing runs on it; `None`: something does, or its end is ordered.
    pub(super) idle: Option<Instant>,
}

/// Whose lease, come back, serves a waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Something is on its way already, or somebody else decides (PAUSE, B1 of a request at its cap).
    Coming,
    /// Any of a pool.
    Pool(PoolId),
    /// One of its tenant's in its pool: the tenant is at its cap.
    Share(u32),
    /// Any of any pool: its own pool could have more, but the server's backends are used up.
    Server,
    /// None: others of its own request are served before it (B1).
    Own,
}

/// A waiter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) party: Party,
    pub(super) pool: PoolId,
    pub(super) scope: Scope,
    /// Nothing but the number of its pool's backends stands in its way.
    pub(super) short: bool,
    pub(super) since: Instant,
    /// How long its pool lets a deadlock stand.
    pub(super) patience: Duration,
}

/// Everything held and waited for.
#[derive(Debug, Default)]
pub(super) struct Scene {
    pub(super) holds: Vec<Hold>,
    pub(super) waits: Vec<Wait>,
}

/// Parties that wait for each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Knot {
    /// They alone can undo it, in the order of their numbers.
    pub(super) core: Vec<Party>,
    /// These too get on if one of the core gives up.
    pub(super) followers: Vec<Party>,
    /// The moment the last of the core got stuck.
    pub(super) since: Instant,
    /// How long it may stand.
    pub(super) patience: Duration,
    /// Pools in which the core waits.
    pub(super) pools: Vec<PoolId>,
    /// Those of them where one more backend would do.
    pub(super) short: Vec<PoolId>,
}

/// What a party has in a scene.
struct Side {
    party: Party,
    holds: Vec<Hold>,
    waits: Vec<Wait>,
}

/// Where a lease is about to come back.
#[derive(Debug, Default)]
pub(super) struct Coming {
    pub(super) pools: BTreeSet<PoolId>,
    pub(super) shares: BTreeSet<u32>,
}

impl Coming {
    fn add(&mut self, hold: &Hold) {
        self.pools.insert(hold.pool);
        self.shares.insert(hold.share);
    }

    fn serves(&self, wait: &Wait) -> bool {
        match wait.scope {
            Scope::Coming => true,
            Scope::Pool(pool) => self.pools.contains(&pool),
            Scope::Share(share) => self.shares.contains(&share),
            Scope::Server => !self.pools.is_empty(),
            Scope::Own => false,
        }
    }
}

impl Side {
    /// Stuck at most since then: all it holds is idle, and it waits.
    fn blocked(&self) -> Option<Instant> {
        let asked = self.waits.iter().map(|wait| wait.since).min()?;
        self.holds.iter().try_fold(asked, |at, hold| Some(at.max(hold.idle?)))
    }
}

impl Scene {
    /// What comes back without anybody's help, lease by lease: a look that costs little, and may miss
    /// that another lease of the same party works.
    pub(super) fn coming(&self) -> Coming {
        let mut coming = Coming::default();
        let free = self.holds.iter().filter(|hold| hold.idle.is_none() || hold.party.is_none());
        free.for_each(|hold| coming.add(hold));
        coming
    }

    /// The knots, independent of each other: each is undone by aborting one of its core.
    pub(super) fn knots(&self) -> Vec<Knot> {
        let sides = self.sides();
        let mut coming = Coming::default();
        self.holds.iter().filter(|hold| hold.party.is_none()).for_each(|hold| coming.add(hold));
        let mut stuck: Vec<&Side> = Vec::new();
        for side in &sides {
            match side.blocked() {
                Some(_) => stuck.push(side),
                None => side.holds.iter().for_each(|hold| coming.add(hold)),
            }
        }
        get_on(&mut stuck, &mut coming);
        stuck.retain(|side| !side.holds.is_empty());

        let mut knots = Vec::new();
        while let Some(knot) = deepest(&stuck) {
            stuck.retain(|side| !knot.core.contains(&side.party) && !knot.followers.contains(&side.party));
            knots.push(knot);
        }
        knots
    }

    fn sides(&self) -> Vec<Side> {
        let mut parties: Vec<Party> = self.holds.iter().filter_map(|hold| hold.party).collect();
        parties.sort_unstable();
        parties.dedup();
        let mut sides: Vec<Side> =
            parties.into_iter().map(|party| Side { party, holds: Vec::new(), waits: Vec::new() }).collect();
        let of = |sides: &[Side], party| sides.binary_search_by_key(&party, |side: &Side| side.party).ok();
        for hold in &self.holds {
            if let Some(at) = hold.party.and_then(|party| of(&sides, party)) {
                sides[at].holds.push(*hold);
            }
        }
        for wait in &self.waits {
            if let Some(at) = of(&sides, wait.party) {
                sides[at].waits.push(*wait);
            }
        }
        sides
    }
}

/// Takes out whoever is served by what is coming, and adds what they hold.
fn get_on(stuck: &mut Vec<&Side>, coming: &mut Coming) {
    loop {
        let before = stuck.len();
        stuck.retain(|side| {
            let served = side.waits.iter().any(|wait| coming.serves(wait));
            if served {
                side.holds.iter().for_each(|hold| coming.add(hold));
            }
            !served
        });
        if stuck.len() == before {
            return;
        }
    }
}

/// Who gets on if this one gives up, itself included.
fn freed_by(one: &Side, stuck: &[&Side]) -> BTreeSet<Party> {
    let mut coming = Coming::default();
    one.holds.iter().for_each(|hold| coming.add(hold));
    let mut left: Vec<&Side> = stuck.iter().copied().filter(|side| side.party != one.party).collect();
    get_on(&mut left, &mut coming);
    let left: BTreeSet<Party> = left.iter().map(|side| side.party).collect();
    stuck.iter().map(|side| side.party).filter(|party| !left.contains(party)).collect()
}

/// The knot that holds up most: nobody in it waits for anybody outside, or that one would free more.
fn deepest(stuck: &[&Side]) -> Option<Knot> {
    let freed: Vec<BTreeSet<Party>> = stuck.iter().map(|side| freed_by(side, stuck)).collect();
    let most = freed.iter().map(BTreeSet::len).max()?;
    let first = freed.iter().position(|set| set.len() == most)?;
    let root = stuck[first].party;
    let of_core = |at: usize| freed[first].contains(&stuck[at].party) && freed[at].contains(&root);
    let (core, followers): (Vec<usize>, Vec<usize>) =
        (0..stuck.len()).filter(|&at| freed[first].contains(&stuck[at].party)).partition(|&at| of_core(at));
    let parties = |sides: &[usize]| sides.iter().map(|&at| stuck[at].party).collect();
    let waits = || core.iter().flat_map(|&at| &stuck[at].waits);
    let pools: BTreeSet<PoolId> = waits().map(|wait| wait.pool).collect();
    let short = waits().filter(|wait| wait.short).map(|wait| wait.pool);
    let short: BTreeSet<PoolId> = short.collect();
    Some(Knot {
        since: core.iter().filter_map(|&at| stuck[at].blocked()).max()?,
        patience: waits().map(|wait| wait.patience).max()?,
        pools: pools.into_iter().collect(),
        short: short.into_iter().collect(),
        core: parties(&core),
        followers: parties(&followers),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Draw {
        start: Instant,
        scene: Scene,
    }

    impl Draw {
        fn new() -> Self {
            Draw { start: Instant::now(), scene: Scene::default() }
        }

        fn hold(mut self, request: u32, pool: u32, idle_since: Option<u32>) -> Self {
            let idle = idle_since.map(|ms| self.start + ms * MS);
            let party = Some(Party::Request(request));
            self.scene.holds.push(Hold { pool: PoolId(pool), share: pool * 10, party, idle });
            self
        }

        fn wait(mut self, request: u32, pool: u32, scope: Scope, since: u32) -> Self {
            let since = self.start + since * MS;
            let party = Party::Request(request);
            self.scene.waits.push(Wait {
                party,
                pool: PoolId(pool),
                scope,
                short: true,
                since,
                patience: 200 * MS,
            });
            self
        }

        fn queue(self, request: u32, pool: u32, since: u32) -> Self {
            self.wait(request, pool, Scope::Pool(PoolId(pool)), since)
        }

        /// Core, followers, and since when in milliseconds.
        fn knots(&self) -> Vec<(Vec<u32>, Vec<u32>, u64)> {
            let number = |party: &Party| match party {
                Party::Request(number) => *number,
                Party::Instance(_) => panic!("no instance was drawn"),
            };
            let row = |knot: Knot| {
                let since = knot.since - self.start;
                let numbers = |parties: &[Party]| parties.iter().map(number).collect();
                (numbers(&knot.core), numbers(&knot.followers), since.as_millis() as u64)
            };
            self.scene.knots().into_iter().map(row).collect()
        }
    }

    #[test]
    fn who_hold_all_and_all_wait_are_a_knot_since_the_last_of_them_waits() {
        let drawn = Draw::new().hold(1, 0, Some(5)).hold(2, 0, Some(40)).queue(1, 0, 10).queue(2, 0, 30);
        assert_eq!(drawn.knots(), [(vec![1, 2], vec![], 40)]);
        // Somebody without a backend waits too; that is no part of it.
        assert_eq!(drawn.queue(3, 0, 50).knots(), [(vec![1, 2], vec![], 40)]);
    }

    #[test]
    fn one_that_works_or_does_not_wait_frees_all() {
        let two = || Draw::new().hold(1, 0, Some(5)).queue(1, 0, 10);
        assert_eq!(two().hold(2, 0, None).queue(2, 0, 30).knots(), []);
        assert_eq!(two().hold(2, 0, Some(20)).knots(), []);
        // A request that works somewhere may free all it holds.
        assert_eq!(two().hold(2, 0, Some(20)).hold(2, 1, None).queue(2, 0, 30).knots(), []);
        let mut untagged = two().hold(2, 0, Some(20)).queue(3, 0, 20);
        untagged.scene.holds[1].party = None;
        assert_eq!(untagged.knots(), []);
    }

    #[test]
    fn a_request_may_be_stuck_alone() {
        let alone = Draw::new().hold(1, 0, Some(5)).hold(1, 0, Some(6)).queue(1, 0, 7);
        assert_eq!(alone.knots(), [(vec![1], vec![], 7)]);
    }

    #[test]
    fn a_chain_over_pools_ends_where_somebody_works() {
        // 1 holds in pool 0 and waits in pool 1, where 2 works: both get on.
        let chain = |idle| {
            let drawn = Draw::new().hold(1, 0, Some(5)).queue(1, 1, 6).hold(2, 1, idle);
            drawn.hold(3, 0, Some(4)).queue(3, 0, 8)
        };
        assert_eq!(chain(None).knots(), []);
        // 2 waits behind 1 and 3: everybody waits for everybody.
        assert_eq!(chain(Some(9)).queue(2, 0, 9).knots(), [(vec![1, 2, 3], vec![], 9)]);
    }

    #[test]
    fn the_core_is_who_waits_for_nobody_outside_it() {
        // 1 and 2 block each other in pool 1; 3 only waits for them, with a lease in pool 0, since later.
        let drawn = Draw::new().hold(1, 1, Some(1)).queue(1, 1, 2).hold(2, 1, Some(1)).queue(2, 1, 3);
        let drawn = drawn.hold(3, 0, Some(50)).queue(3, 1, 60).queue(4, 0, 1);
        assert_eq!(drawn.knots(), [(vec![1, 2], vec![3], 3)]);
    }

    #[test]
    fn pools_apart_are_knots_apart_unless_the_server_is_full() {
        let both = |scope: fn(u32) -> Scope| {
            let drawn = Draw::new().hold(1, 0, Some(1)).wait(1, 0, scope(0), 2);
            drawn.hold(2, 1, Some(1)).wait(2, 1, scope(1), 4)
        };
        assert_eq!(both(|pool| Scope::Pool(PoolId(pool))).knots().len(), 2);
        assert_eq!(both(|_| Scope::Server).knots(), [(vec![1, 2], vec![], 4)]);
        // Beside a server that is full, an own pool that is not.
        let drawn = both(|_| Scope::Server).hold(3, 2, None);
        assert_eq!(drawn.knots(), []);
    }

    #[test]
    fn a_tenant_at_its_cap_is_not_helped_by_others() {
        let drawn = Draw::new().hold(1, 0, Some(1)).wait(1, 0, Scope::Share(0), 2);
        assert_eq!(drawn.knots(), [(vec![1], vec![], 2)]);
        let mut other = drawn.hold(2, 0, None);
        other.scene.holds[1].share = 7;
        assert_eq!(other.knots(), [(vec![1], vec![], 2)]);
    }

    #[test]
    fn what_is_coming_is_waited_for() {
        let drawn = Draw::new().hold(1, 0, Some(1)).wait(1, 0, Scope::Coming, 2);
        assert_eq!(drawn.knots(), []);
        // One of two waits of a request is enough.
        let drawn = Draw::new().hold(1, 0, Some(1)).queue(1, 0, 2).wait(1, 1, Scope::Coming, 3);
        assert_eq!(drawn.knots(), []);
    }
}
