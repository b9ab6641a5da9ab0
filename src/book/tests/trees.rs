//! Deadlocks: random calls that nest sessions, over a book with a virtual clock, and claims that are
//! wrong. Whatever they do, somebody gets on within 250 ms, nobody is aborted who could get on, and
//! all of them finish.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Budgets.md §9, E8.
const STILL: Duration = Duration::from_millis(250);

/// One session of a call: works, thinks, opens those within (one by one, or all at once), works again.
#[derive(Debug, Clone)]
struct Tree {
    pool: usize,
    work: u64,
    think: u64,
    parallel: bool,
    inner: Vec<Tree>,
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = (0..2usize, 1..30u64, 0..30u64).prop_map(|(pool, work, think)| Tree {
        pool,
        work,
        think,
        parallel: false,
        inner: Vec::new(),
    });
    leaf.prop_recursive(4, 10, 3, |inner| {
        let parts = (0..2usize, 1..30u64, 0..30u64, prop::bool::weighted(0.2));
        (parts, prop::collection::vec(inner, 1..4)).prop_map(|((pool, work, think, parallel), inner)| Tree {
            pool,
            work,
            think,
            parallel,
            inner,
        })
    })
}

impl Tree {
    /// Leases at once with which it is sure to get through: of one pool, or of all. Those side by side
    /// may each hold some while they wait for more.
    fn needs(&self, pool: Option<usize>) -> usize {
        let inner = self.inner.iter().map(|inner| inner.needs(pool));
        let inner = if self.parallel { inner.sum() } else { inner.max().unwrap_or(0) };
        inner + usize::from(pool.is_none_or(|pool| self.pool == pool))
    }
}

#[derive(Debug, Clone)]
struct Plan {
    size: usize,
    max: usize,
    cap: u32,
    /// B1 in mode enforce, or a claim that nobody looks at.
    k: Option<u32>,
    overflow: usize,
    /// A retry comes under a new name.
    renamed: bool,
    calls: Vec<(u64, Tree)>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let caps = prop_oneof![3 => Just(u32::MAX), 1 => 1..4u32];
    let numbers =
        (1..5usize, 2..9usize, caps, prop::option::weighted(0.2, 1..4u32), 0..2usize, any::<bool>());
    (numbers, prop::collection::vec((0..200u64, tree()), 1..9)).prop_map(
        |((size, max, cap, k, overflow, renamed), calls)| Plan {
            size,
            // Nobody can tell a call that comes again under another name from a new one, and between
            // pools that share the last backend those are let in one by one.
            max: if renamed { 100 } else { max },
            cap,
            k,
            overflow,
            renamed,
            calls,
        },
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not there yet, or among those that come one by one.
    Unborn,
    Waiting,
    /// Until then, and since when.
    Working(Instant),
    Thinking(Instant),
    /// Those within are open.
    Outer,
    /// Working for the last time.
    Closing(Instant),
    Gone,
}

/// A session of a call.
#[derive(Debug)]
struct Node {
    call: usize,
    tree: Tree,
    inner: Vec<usize>,
    outer: Option<usize>,
    state: State,
    since: Instant,
    session: SessionId,
    lease: Option<LeaseId>,
    waiter: Option<WaiterId>,
}

#[derive(Debug)]
struct Call {
    tree: Tree,
    name: String,
    root: usize,
    /// Not before then.
    starts: Option<Instant>,
    tries: u32,
    over: bool,
    refused: bool,
}

struct Town {
    plan: Plan,
    book: Book<u32, usize>,
    now: Instant,
    pools: Vec<PoolId>,
    nodes: Vec<Node>,
    calls: Vec<Call>,
    /// Backends idle, by pool.
    stores: Vec<Vec<u32>>,
    backends: HashMap<LeaseId, u32>,
    next_backend: u32,
    dials: Vec<(Instant, PoolId)>,
    evictions: Vec<PoolId>,
    /// Leases whose sessions were told to end.
    ending: Vec<(Instant, usize)>,
    /// Since when nobody has got on.
    still: Option<Instant>,
    longest: Duration,
    aborts: u32,
}

impl Town {
    fn new(plan: Plan) -> Self {
        let mut setup = setup();
        setup.rules.deadlock_overflow = plan.overflow;
        setup.rules.max_wait = Duration::from_secs(3600);
        setup.reload(plan.size, plan.max, plan.cap, plan.k.unwrap_or(1));
        if plan.k.is_none() {
            setup.budget.max_concurrent_mode = Mode::Observe;
        }
        let now = Instant::now();
        let mut book = Book::new(&setup.config());
        let mut actions = Vec::new();
        let pools: Vec<PoolId> = (0..2)
            .map(|at| book.pool(&format!("db{at}"), "app", "db:5432", &setup.rules, now, &mut actions))
            .collect();
        assert!(actions.is_empty());
        let call = |(at, (starts, tree)): (usize, &(u64, Tree))| Call {
            tree: tree.clone(),
            name: format!("r{at}"),
            root: 0,
            starts: Some(now + *starts as u32 * MS),
            tries: 0,
            over: false,
            refused: false,
        };
        let calls = plan.calls.iter().enumerate().map(call).collect();
        Town {
            plan,
            book,
            now,
            pools,
            nodes: Vec::new(),
            calls,
            stores: vec![Vec::new(); 2],
            backends: HashMap::new(),
            next_backend: 0,
            dials: Vec::new(),
            evictions: Vec::new(),
            ending: Vec::new(),
            still: None,
            longest: Duration::ZERO,
            aborts: 0,
        }
    }

    fn plant(&mut self, call: usize, tree: &Tree, outer: Option<usize>) -> usize {
        let at = self.nodes.len();
        let session = SessionId(at as u64);
        self.nodes.push(Node {
            call,
            tree: Tree { inner: Vec::new(), ..tree.clone() },
            inner: Vec::new(),
            outer,
            state: State::Unborn,
            since: self.now,
            session,
            lease: None,
            waiter: None,
        });
        let inner = tree.inner.iter().map(|inner| self.plant(call, inner, Some(at))).collect();
        self.nodes[at].inner = inner;
        at
    }

    fn ask(&mut self, at: usize) {
        let node = &self.nodes[at];
        let tag = Tag {
            tenant: "t".into(),
            request: Some(self.calls[node.call].name.as_str().into()),
            ..Tag::default()
        };
        let pool = self.pools[node.tree.pool];
        let (session, tag) = (node.session, Arc::new(tag));
        let claim = Claim {
            session,
            pool,
            tag,
            login: false,
            within: None,
            resumes: None,
            fingerprint: 0,
            statement: None,
        };
        let (mut actions, mut warnings) = (Vec::new(), Vec::new());
        self.nodes[at].state = State::Waiting;
        self.nodes[at].since = self.now;
        match self.book.checkout(self.now, &claim, |_| at, &mut warnings, &mut actions) {
            Checkout::Idle(lease) => {
                let backend = self.stores[pool.0 as usize].pop();
                self.granted(at, lease, backend.expect("it is counted"));
            }
            Checkout::Queued(id) => self.nodes[at].waiter = Some(id),
            Checkout::Refused(refusal) => panic!("{refusal:?}"),
        }
        self.carry_out(actions);
    }

    fn granted(&mut self, at: usize, lease: LeaseId, backend: u32) {
        self.backends.insert(lease, backend);
        let node = &mut self.nodes[at];
        (node.lease, node.waiter, node.since) = (Some(lease), None, self.now);
        node.state = State::Working(self.now + node.tree.work as u32 * MS);
    }

    fn carry_out(&mut self, actions: Vec<Action<u32, usize>>) {
        for action in actions {
            match action {
                Action::Grant { waiter, claim, lease, backend, .. } => {
                    let backend = backend.or_else(|| self.stores[claim.pool.0 as usize].pop());
                    self.granted(waiter, lease, backend.expect("it is counted"));
                }
                Action::Refuse { waiter, refusal } => self.refused(waiter, &refusal),
                Action::Dial { pool, after } => self.dials.push((self.now + after + MS, pool)),
                Action::Store { pool, backend } => self.stores[pool.0 as usize].push(backend),
                Action::Evict { pool } => self.evictions.push(pool),
                Action::End { session, lease, why } => {
                    assert!(matches!(why, Overstay::Deadlock { .. }));
                    let at = session.0 as usize;
                    assert_eq!(self.nodes[at].lease, Some(lease));
                    self.ending.push((self.now + (lease.0 % 5) as u32 * MS, at));
                }
                Action::Warn { .. } | Action::Park { .. } | Action::Leak(_) => {}
                Action::Violation(_) | Action::RequestOver(_) => {}
                Action::Deadlock(_) | Action::AskLocks(_) | Action::Breaker(_) => {}
                Action::Close { .. } | Action::Cancel { .. } => panic!("nothing is closed or cancelled"),
            }
        }
    }

    fn refused(&mut self, at: usize, refusal: &Refusal) {
        let call = self.nodes[at].call;
        self.nodes[at].state = State::Gone;
        self.nodes[at].waiter = None;
        match refusal {
            Refusal::Deadlock { .. } => {
                self.aborts += 1;
                assert!(!self.may_get_on(call), "{} could get on", self.calls[call].name);
            }
            Refusal::NestsTooDeep { .. } => {
                let k = self.plan.k.expect("enforced") as usize;
                assert!(self.calls[call].tree.needs(None) > k, "no deeper than it may");
                // Told not to try again.
                self.calls[call].refused = true;
                self.ending.push((self.now, self.calls[call].root));
            }
            other => panic!("{other:?}"),
        }
    }

    /// As the naive see it: by what sessions really do. Whoever waits gets on if anybody does who
    /// holds what it waits for.
    fn may_get_on(&self, call: usize) -> bool {
        let holds =
            |call: usize| self.nodes.iter().filter(move |node| node.call == call && node.lease.is_some());
        let moves =
            |node: &Node| matches!(node.state, State::Working(_) | State::Thinking(_) | State::Closing(_));
        let mut able: BTreeSet<usize> = self
            .nodes
            .iter()
            .filter(|node| node.lease.is_some() && moves(node))
            .map(|node| node.call)
            .collect();
        able.extend(self.ending.iter().map(|&(_, at)| self.nodes[at].call).filter(|&other| other != call));
        loop {
            let waits = |other: usize| {
                self.nodes.iter().filter(move |node| node.call == other && node.state == State::Waiting)
            };
            let full = self.backends.len() >= self.plan.max;
            let near = |node: &Node, holder: &Node| {
                let pool = self.pools[node.tree.pool];
                let own = self.backends.keys().filter(|lease| self.pool_of(**lease) == Some(pool)).count();
                holder.tree.pool == node.tree.pool || (full && own < self.plan.size)
            };
            let more = (0..self.calls.len()).find(|&other| {
                !able.contains(&other)
                    && waits(other)
                        .any(|node| able.iter().any(|&one| holds(one).any(|holder| near(node, holder))))
            });
            match more {
                Some(other) => able.insert(other),
                None => return able.contains(&call),
            };
        }
    }

    fn pool_of(&self, lease: LeaseId) -> Option<PoolId> {
        self.book.leases.get(&lease).map(|lease| lease.pool)
    }

    /// A session commits or rolls back, and is gone.
    fn leave(&mut self, at: usize) {
        self.nodes[at].state = State::Gone;
        let mut actions = Vec::new();
        if let Some(waiter) = self.nodes[at].waiter.take() {
            self.book.cancel(self.now, waiter, &mut actions);
        }
        if let Some(lease) = self.nodes[at].lease.take() {
            let backend = self.backends.remove(&lease).expect("it is held");
            let pool = self.nodes[at].tree.pool;
            let usage = Usage::default();
            let idle = self.book.checkin(self.now, lease, Some(backend), usage, None, &mut actions);
            self.stores[pool].extend(idle);
        }
        self.carry_out(actions);
    }

    /// A call whose session was aborted gives up the others, and is tried again unless it was told not to.
    fn fail(&mut self, call: usize) {
        let mine: Vec<usize> = (0..self.nodes.len())
            .filter(|&at| self.nodes[at].call == call && self.nodes[at].state != State::Gone)
            .collect();
        mine.into_iter().for_each(|at| self.leave(at));
        self.ending.retain(|&(_, at)| self.nodes[at].call != call);
        let one = &mut self.calls[call];
        (one.over, one.tries) = (one.refused, one.tries + 1);
        if self.plan.renamed {
            one.name = format!("r{call}.{}", one.tries);
        }
        one.starts = (!one.refused).then_some(self.now + 10 * MS);
    }

    /// When something happens next without the book.
    fn next_event(&self) -> Option<Instant> {
        let timers = self.nodes.iter().filter_map(|node| match node.state {
            State::Working(at) | State::Thinking(at) | State::Closing(at) => Some(at),
            _ => None,
        });
        let starts = self.calls.iter().filter_map(|call| call.starts);
        let dials = self.dials.iter().map(|&(at, _)| at);
        timers.chain(starts).chain(dials).chain(self.ending.iter().map(|&(at, _)| at)).min()
    }

    fn events(&mut self) {
        while let Some(pool) = self.evictions.pop() {
            let mut actions = Vec::new();
            self.stores[pool.0 as usize].pop().expect("what leaves is in the store");
            self.book.evicted(self.now, pool, &mut actions);
            self.carry_out(actions);
        }
        while let Some(at) = self.dials.iter().position(|&(at, _)| at <= self.now) {
            let (_, pool) = self.dials.swap_remove(at);
            self.next_backend += 1;
            let mut actions = Vec::new();
            self.book.dialled(self.now, pool, Ok(self.next_backend), &mut actions);
            self.carry_out(actions);
        }
        while let Some(at) = self.ending.iter().position(|&(at, _)| at <= self.now) {
            let (_, at) = self.ending.swap_remove(at);
            self.fail(self.nodes[at].call);
        }
        for call in 0..self.calls.len() {
            if self.calls[call].starts.is_some_and(|at| at <= self.now) {
                let tree = self.calls[call].tree.clone();
                (self.calls[call].starts, self.calls[call].root) = (None, self.nodes.len());
                let root = self.plant(call, &tree, None);
                self.ask(root);
            }
        }
        for at in 0..self.nodes.len() {
            self.advance(at);
        }
    }

    fn advance(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        match node.state {
            State::Working(until) if until <= self.now => {
                node.state = State::Thinking(self.now + node.tree.think as u32 * MS);
                node.since = self.now;
            }
            State::Thinking(until) if until <= self.now => {
                node.state = State::Outer;
                self.open_inner(at);
            }
            State::Closing(until) if until <= self.now => {
                let outer = node.outer;
                self.leave(at);
                match outer {
                    Some(outer) => self.open_inner(outer),
                    None => self.calls[self.nodes[at].call].over = true,
                }
            }
            _ => {}
        }
    }

    /// Opens the next of those within, or all, or closes if all are done.
    fn open_inner(&mut self, at: usize) {
        let unborn: Vec<usize> = self.nodes[at]
            .inner
            .iter()
            .copied()
            .filter(|&in_| self.nodes[in_].state == State::Unborn)
            .collect();
        let busy = self.nodes[at]
            .inner
            .iter()
            .any(|&in_| !matches!(self.nodes[in_].state, State::Unborn | State::Gone));
        let many = if self.nodes[at].tree.parallel { unborn.len() } else { usize::from(!busy) };
        if unborn.is_empty() && !busy {
            let node = &mut self.nodes[at];
            node.state = State::Closing(self.now + node.tree.work as u32 * MS);
            node.since = self.now;
        }
        unborn.into_iter().take(many).for_each(|at| self.ask(at));
    }

    fn tick(&mut self) {
        let doing: BTreeMap<LeaseId, Activity> = self
            .nodes
            .iter()
            .filter_map(|node| {
                let works = matches!(node.state, State::Working(_) | State::Closing(_));
                let state = if works { Doing::Active } else { Doing::IdleInTx };
                let activity = Activity { tx_start: Some(node.since), ..Activity::doing(state, node.since) };
                Some((node.lease?, activity))
            })
            .collect();
        let mut actions = Vec::new();
        self.book.tick(self.now, &mut |_, lease| doing.get(&lease).copied(), &mut actions);
        self.carry_out(actions);
    }

    /// Nobody who holds anything does anything, and somebody waits.
    fn is_still(&self) -> bool {
        let moves =
            |node: &Node| matches!(node.state, State::Working(_) | State::Thinking(_) | State::Closing(_));
        self.dials.is_empty()
            && self.ending.is_empty()
            && self.nodes.iter().any(|node| node.state == State::Waiting)
            && !self.nodes.iter().any(moves)
    }

    fn run(&mut self) {
        for _ in 0..3_000 {
            // What was opened for one who was served by another may be on its way yet.
            if self.calls.iter().all(|call| call.over) && self.dials.is_empty() {
                assert!(self.book.is_quiet());
                return;
            }
            let next = self.next_event().into_iter().chain(self.book.due()).min();
            self.now = next.expect("all wait, and nobody looks after them").max(self.now);
            self.events();
            if self.book.due().is_some_and(|due| due <= self.now) {
                self.tick();
            }
            match (self.still, self.is_still()) {
                (None, true) => self.still = Some(self.now),
                (Some(since), true) => {
                    self.longest = self.longest.max(self.now - since);
                    assert!(self.now - since <= STILL, "nobody gets on");
                }
                (_, false) => self.still = None,
            }
        }
        panic!("they never finish: {} aborts", self.aborts);
    }
}

/// A call that can never have all it needs would be tried for ever.
fn fits(plan: &Plan, tree: &Tree) -> bool {
    let cap = plan.size.min(plan.cap as usize);
    (0..2).all(|pool| tree.needs(Some(pool)) <= cap) && tree.needs(None) <= plan.max
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    #[test]
    fn somebody_always_gets_on_and_all_finish(mut plan in plan()) {
        let all = plan.clone();
        plan.calls.retain(|(_, tree)| fits(&all, tree));
        let calls = plan.calls.len() as u32;
        let depth = plan.calls.iter().map(|(_, tree)| tree.needs(None)).max().unwrap_or(0) as u32;
        let mut town = Town::new(plan);
        town.run();
        // Each deadlock lets one call through, and costs every other at most one try a level.
        prop_assert!(town.aborts <= calls * calls * depth * 3, "{} aborts of {calls} calls", town.aborts);
    }
}
