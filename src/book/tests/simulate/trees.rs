//! E8 of budgets.md §9: random trees of sessions, each of which opens others while it holds a backend.
//! With claims that are right nobody ever waits for nothing; with claims that are wrong, only who
//! needs more than was said can be stuck.

use super::*;

/// A request that goes down to its depth and comes back up, a few times.
#[derive(Debug, Clone)]
struct Tree {
    tag: Tag,
    depth: u32,
    /// Ways down still to go.
    ways: u32,
    held: Vec<LeaseId>,
}

/// A tree's next step: to ask for one more lease, or to give one back.
type Step = usize;

struct Wood {
    world: World<Step>,
    trees: Vec<Tree>,
    /// Trees that were given up because nothing moved.
    aborted: u64,
    finished: u64,
    leases: u64,
}

impl Wood {
    fn plant(seed: u64, count: usize, right: bool) -> Wood {
        let mut dice = Dice(seed);
        let size = 2 + (dice.random() % 11) as u32;
        let k = 2 + (dice.random() % 4) as u32;
        // A tenant's cap is a pool of its own, and may be the tighter one.
        let cap = 1 + (dice.random() % u64::from(size)) as u32;
        let most = k.min(size).min(cap);
        let mut setup = setup();
        setup.rules.size = size as usize;
        setup.rules.min_idle = size as usize;
        setup.rules.max_wait = Duration::from_secs(3_600);
        setup.parallel = size as usize;
        setup.budget.max_concurrent = k;
        setup.budget.max_concurrent_mode = Mode::Enforce;
        setup.tenant.max = Share::Count(cap);
        setup.tenant.mode = Mode::Enforce;
        let world = World::new(&setup, dice.random());
        let trees = (0..count)
            .map(|at| {
                let tagged = !dice.random().is_multiple_of(4);
                let depth = 1 + (dice.random() % u64::from(most)) as u32;
                let depth = match (right, tagged) {
                    (true, true) => depth,
                    (true, false) => 1,
                    (false, _) => (depth + (dice.random() % 3) as u32).min(cap).min(5),
                };
                let request = tagged.then(|| format!("r{at}").into());
                let tenant = format!("t{}", dice.random() % 5).into();
                let ways = 1 + (dice.random() % 3) as u32;
                Tree { tag: Tag { tenant, request, ..Tag::default() }, depth, ways, held: Vec::new() }
            })
            .collect();
        Wood { world, trees, aborted: 0, finished: 0, leases: 0 }
    }

    /// Lets all of them grow to their end.
    fn grow(&mut self) {
        for at in 0..self.trees.len() {
            let after = MS.mul_f64(self.world.dice.uniform() * 5.0);
            self.world.at(after, at);
        }
        loop {
            while let Some(at) = self.world.next() {
                self.step(at);
                self.settle();
            }
            if self.world.waiting.is_empty() {
                break;
            }
            self.give_up_one();
            self.settle();
        }
        assert!(self.world.held.is_empty() && self.world.refused == 0);
        assert!(self.world.book.is_quiet());
        assert_eq!(self.finished + self.aborted, self.trees.len() as u64);
    }

    fn step(&mut self, at: usize) {
        let tree = &mut self.trees[at];
        let going_down = tree.ways > 0 && (tree.held.len() as u32) < tree.depth;
        if going_down {
            let tag = tree.tag.clone();
            return self.world.ask(tag, 0, at);
        }
        // At the bottom, or on the way up: the innermost session ends.
        if tree.held.len() as u32 == tree.depth {
            tree.ways -= 1;
        }
        let lease = tree.held.pop().expect("a tree that steps up holds something");
        self.world.give_back(lease);
        // Another way down begins where this one was left, sometimes from the root.
        if self.trees[at].held.is_empty() && self.trees[at].ways == 0 {
            self.finished += 1;
        } else {
            let after = self.world.dice.about(MS);
            self.world.at(after, at);
        }
    }

    fn settle(&mut self) {
        for (lease, _, at) in std::mem::take(&mut self.world.granted) {
            self.leases += 1;
            self.trees[at].held.push(lease);
            let after = self.world.dice.about(2 * MS);
            self.world.at(after, at);
        }
    }

    /// Nothing moves, and somebody waits: the youngest that holds something is given up, as the
    /// deadlock detector would.
    fn give_up_one(&mut self) {
        let stuck: Vec<usize> = self.world.waiting.values().map(|(_, at)| *at).collect();
        let holds = stuck.iter().copied().filter(|&at| !self.trees[at].held.is_empty());
        let victim = holds.max().expect("nobody who waits holds anything, and nobody is served");
        let token = *self.world.waiting.iter().find(|(_, (_, at))| *at == victim).expect("it waits").0;
        // Tokens are given in order of asking, as the book's own numbers are.
        let id = self.world.book.waiters.iter().find(|(_, waiter)| waiter.handle == token).expect("known").0;
        let id = *id;
        let mut actions = Vec::new();
        assert_eq!(self.world.book.cancel(self.world.now, id, &mut actions), Some(token));
        self.world.waiting.remove(&token);
        self.world.carry_out(actions);
        while let Some(lease) = self.trees[victim].held.pop() {
            self.world.give_back(lease);
        }
        self.trees[victim].ways = 0;
        self.aborted += 1;
    }
}

/// Trees in all; `BURSAR_TEST_TREES=100000` for the full count of E8.
fn trees() -> u64 {
    std::env::var("BURSAR_TEST_TREES").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000)
}

#[test]
fn with_right_claims_nobody_ever_waits_for_nothing() {
    let (mut planted, mut leases, mut seed) = (0, 0, 1);
    while planted < trees() {
        let mut wood = Wood::plant(seed, 25, true);
        wood.grow();
        assert_eq!(wood.aborted, 0, "seed {seed}");
        (planted, leases, seed) = (planted + 25, leases + wood.leases, seed + 1);
    }
    assert!(leases > 2 * planted);
}

#[test]
fn with_wrong_claims_whoever_is_stuck_can_be_freed() {
    let (mut planted, mut aborted, mut finished, mut seed) = (0, 0, 0, 1);
    while planted < trees() / 2 {
        let mut wood = Wood::plant(seed, 25, false);
        wood.grow();
        (planted, aborted, finished) = (planted + 25, aborted + wood.aborted, finished + wood.finished);
        seed += 1;
    }
    assert!(aborted > 0, "no claim was wrong enough to matter, and this test tests nothing");
    assert!(finished > aborted, "most get through");
}
