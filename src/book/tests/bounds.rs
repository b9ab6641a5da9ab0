//! Rules of the book: how long anybody waits at most (budgets.md §3.3), in pools of any size whose leases
//! end in any order. `fair.rs` has the same rules one by one, and the shares of who always waits.

use super::*;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// The longest that anybody holds a lease here (B10). Below what counts as long.
const HOLD: Duration = Duration::from_millis(200);

/// Somebody who asks, and how long they will hold what they get.
#[derive(Debug, Clone)]
struct Ask {
    who: usize,
    tag: Tag,
    hold: Duration,
}

struct Held {
    lease: LeaseId,
    ask: Ask,
    until: Instant,
}

/// A pool all of whose leases end in time.
struct Shop {
    desk: Desk,
    waiting: BTreeMap<WaiterId, Ask>,
    held: Vec<Held>,
    /// Who was served after waiting, in order.
    served: Vec<usize>,
}

impl Shop {
    fn new(mut setup: Setup, size: usize, change: impl FnOnce(&mut Config)) -> Self {
        setup.rules.max_wait = 3600 * S;
        let mut desk = Desk::new(setup, size);
        let mut config = desk.setup.config();
        change(&mut config);
        desk.book.reconfigure(&config, desk.now, &mut desk.actions);
        desk.take();
        Shop { desk, waiting: BTreeMap::new(), held: Vec::new(), served: Vec::new() }
    }

    /// Whether it was served at once.
    fn ask(&mut self, ask: Ask) -> bool {
        match self.desk.ask(ask.tag.clone()) {
            Checkout::Idle(lease) => {
                self.hold(lease, ask);
                true
            }
            Checkout::Queued(id) => {
                self.waiting.insert(id, ask);
                false
            }
            other => panic!("{other:?}"),
        }
    }

    fn hold(&mut self, lease: LeaseId, ask: Ask) {
        let until = self.desk.now + ask.hold;
        self.held.push(Held { lease, ask, until });
    }

    /// A lease ends. Who held it, and who was served then.
    fn end(&mut self, at: usize) -> (Ask, Vec<Ask>) {
        let held = self.held.swap_remove(at);
        self.desk.checkin(held.lease, Some(0));
        let mut served = Vec::new();
        for action in self.desk.take() {
            if let Action::Grant { waiter, lease, .. } = action {
                let ask = self.waiting.remove(&waiter).expect("who is served has waited");
                self.served.push(ask.who);
                served.push(ask.clone());
                self.hold(lease, ask);
            }
        }
        (held.ask, served)
    }

    /// The next lease to end ends, when it does.
    fn next(&mut self) -> Vec<Ask> {
        let next = (0..self.held.len()).min_by_key(|&at| self.held[at].until).expect("somebody holds one");
        self.desk.now = self.desk.now.max(self.held[next].until);
        if self.desk.book.due().is_some_and(|due| due <= self.desk.now) {
            self.desk.tick(None);
        }
        self.end(next).1
    }

    /// The same, and whoever was served of the first so many asks again at once.
    fn next_of_a_crowd(&mut self, crowd: usize, holds: &mut impl FnMut() -> Duration) {
        for ask in self.next() {
            if ask.who < crowd {
                self.ask(Ask { hold: holds(), ..ask });
            }
        }
    }

    /// Who was served since so many were.
    fn served_since(&self, before: usize) -> &[usize] {
        &self.served[before..]
    }

    fn waits(&self, who: usize) -> bool {
        self.waiting.values().any(|ask| ask.who == who)
    }
}

/// A pool, and tenants in it of whom all have somebody waiting all the time.
#[derive(Debug, Clone)]
struct Crowd {
    size: usize,
    /// Minimum, weight and waiters of each.
    tenants: Vec<(u32, u32, usize)>,
    /// Leases that had ended before.
    before: usize,
    seed: u64,
}

fn crowd() -> impl Strategy<Value = Crowd> {
    let tenant = (0..3u32, 1..4u32, 1..6usize);
    let parts = (1..8usize, prop::collection::vec(tenant, 1..8), 0..60usize, any::<u64>());
    parts.prop_map(|(size, tenants, before, seed)| Crowd { size, tenants, before, seed })
}

/// Holds of at most so long, at random; or all alike.
fn holds(seed: u64, alike: bool) -> impl FnMut() -> Duration {
    let mut random = StdRng::seed_from_u64(seed);
    move || if alike { HOLD } else { random.random_range(1..=HOLD.as_millis() as u32) * MS }
}

impl Crowd {
    /// The shop when the crowd is in it. One more tenant has this minimum, and has not come yet; the
    /// minimums of the others are cut down until all fit the pool.
    fn shop(&self, min: u32, holds: &mut impl FnMut() -> Duration) -> Shop {
        let mut shop = Shop::new(setup(), self.size, |config| {
            let mut left = self.size as u32 - min;
            for (at, &(min, weight, _)) in self.tenants.iter().enumerate() {
                let min = min.min(left);
                left -= min;
                config.tenants.insert(format!("t{at}"), TenantRule { min, weight, ..setup().tenant });
            }
            config.tenants.insert("newcomer".into(), TenantRule { min, ..setup().tenant });
        });
        // The pool is full before the crowd begins to wait.
        for _ in 0..self.size {
            assert!(shop.ask(Ask { who: 0, tag: of("t0", None), hold: holds() }));
        }
        for (who, &(.., waiters)) in self.tenants.iter().enumerate() {
            for _ in 0..waiters {
                shop.ask(Ask { who, tag: of(&format!("t{who}"), None), hold: holds() });
            }
        }
        for _ in 0..self.before {
            shop.next_of_a_crowd(self.tenants.len(), holds);
        }
        shop
    }

    fn newcomer(&self, hold: Duration) -> Ask {
        Ask { who: self.tenants.len(), tag: of("newcomer", None), hold }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Who has been promised so many backends has all of them within the longest hold, whoever else waits,
    /// and whatever these were promised, as long as the promises fit the pool.
    #[test]
    fn a_minimum_is_there_within_the_longest_hold(crowd in crowd(), promised in any::<u32>(), alike: bool) {
        let min = 1 + promised % crowd.size as u32;
        let mut holds = holds(crowd.seed, alike);
        let mut shop = crowd.shop(min, &mut holds);
        let (came, before) = (shop.desk.now, shop.served.len());
        for _ in 0..min {
            shop.ask(crowd.newcomer(HOLD));
        }
        let newcomer = crowd.tenants.len();
        while shop.waits(newcomer) {
            shop.next_of_a_crowd(newcomer, &mut holds);
        }
        prop_assert!(shop.desk.now - came <= HOLD, "{:?}", shop.desk.now - came);
        // And where every backend turns over but once in that time, no more than these.
        prop_assert!(!alike || shop.served_since(before).len() <= crowd.size);
    }

    /// A tenant that begins to wait for its share waits no longer than one lease of each other one takes,
    /// spread over the pool, and one of its own turn; also where one of them comes back that has asked for
    /// nothing for long.
    #[test]
    fn a_share_is_there_after_one_turn_of_each_other_tenant(crowd in crowd()) {
        // None was promised anything, and each counts alike. The first fills the pool, and leaves.
        let others = crowd.tenants.iter().map(|&(.., waiters)| (0, 1, waiters));
        let crowd = Crowd { tenants: std::iter::once((0, 1, 0)).chain(others).collect(), ..crowd };
        let mut holds = holds(crowd.seed, true);
        let mut shop = crowd.shop(0, &mut holds);
        let (came, before) = (shop.desk.now, shop.served.len());
        shop.ask(crowd.newcomer(HOLD));
        for _ in 0..5 {
            shop.ask(Ask { who: 0, tag: of("t0", None), hold: HOLD });
        }
        let newcomer = crowd.tenants.len();
        while shop.waits(newcomer) {
            shop.next_of_a_crowd(newcomer, &mut holds);
        }
        let turns = shop.served_since(before);
        for who in 0..newcomer {
            prop_assert!(turns.iter().filter(|&&served| served == who).count() <= 1, "{turns:?}");
        }
        let rounds = (newcomer + 1).div_ceil(crowd.size) as u32;
        prop_assert!(shop.desk.now - came <= rounds * HOLD, "{:?}", shop.desk.now - came);
    }

    /// While a request that holds a lease waits for another one, nobody goes before it but requests that
    /// hold one too and are older: not one that is new, whatever its class or its tenant's minimum.
    #[test]
    fn nobody_overtakes_who_goes_on_but_older_requests_that_hold_something(
        size in 2..8usize, seed: u64, most in 2..4u32, mins in prop::collection::vec(0..2u32, 3),
    ) {
        let mut setup = setup();
        (setup.budget.max_concurrent, setup.budget.max_concurrent_mode) = (most, Mode::Warn);
        let mut shop = Shop::new(setup, size, |config| {
            for (at, &min) in mins.iter().enumerate() {
                let rule = TenantRule { min, ..config.tenant_default.clone() };
                config.tenants.insert(format!("t{at}"), rule);
            }
        });
        let mut random = StdRng::seed_from_u64(seed);
        for step in 0..300 {
            shop.desk.pass(MS);
            let holds = |shop: &Shop, who: usize| shop.held.iter().filter(|held| held.ask.who == who).count();
            // Its number is its age. Some are of no request.
            let (known, next) = (random.random_bool(0.6), shop.held.len());
            let held = (next > 0).then(|| shop.held[random.random_range(0..next)].ask.clone());
            let ask = match held.filter(|_| known) {
                Some(ask) => ask,
                None => {
                    let (tenant, request) = (format!("t{}", random.random_range(0..3)), format!("r{step}"));
                    Ask { who: step, tag: of(&tenant, random.random_bool(0.8).then_some(&request)), hold: MS }
                }
            };
            let leases = holds(&shop, ask.who) as u32;
            let may = leases < if ask.tag.request.is_some() { most } else { 1 };
            if may && shop.waiting.len() < 12 && !shop.waits(ask.who) {
                shop.ask(ask);
            }
            // Who waits does not end what it holds, unless nobody else is left to.
            let free = (0..shop.held.len()).filter(|&at| !shop.waits(shop.held[at].ask.who));
            let free: Vec<usize> = free.collect();
            if shop.held.len() < size || random.random_bool(0.6) {
                continue;
            }
            let at = *free.get(random.random_range(0..free.len().max(1))).unwrap_or(&0);
            let goes_on = |who: &usize| shop.held.iter().enumerate()
                .any(|(other, held)| other != at && held.ask.who == *who);
            let first = shop.waiting.values().map(|ask| ask.who).filter(goes_on).min();
            let (_, served) = shop.end(at);
            if let (Some(first), Some(served)) = (first, served.first()) {
                prop_assert_eq!(served.who, first);
            }
        }
    }

    /// Of a class with a reserve so many are served at once, whoever else waits; and who is one more
    /// waits for nobody but its own class, and the one turn in twenty of the lowest.
    #[test]
    fn a_class_with_a_reserve_waits_only_for_itself(
        crowd in crowd(), reserved in any::<u32>(), visits in prop::collection::vec(0..3u8, 1..60),
    ) {
        let size = crowd.size + 1;
        let reserve = 1 + reserved % (size as u32 - 1);
        let rule = ClassRule {
            reserve: Reserve::Of(Share::Count(reserve)),
            priority: Some(100),
            ..ClassRule::default()
        };
        let mut shop = Shop::new(setup(), size, |config| {
            config.classes.insert("billing".into(), rule);
        });
        let mut holds = holds(crowd.seed, false);
        for (who, &(.., waiters)) in crowd.tenants.iter().enumerate() {
            for at in 0..waiters + size {
                let class = (at % 3 == 0).then(|| "batch".into());
                let tag = Tag { class, ..of(&format!("t{who}"), None) };
                shop.ask(Ask { who, tag, hold: holds() });
            }
        }
        let bill = Tag { class: Some("billing".into()), ..of("pays", None) };
        let billing = crowd.tenants.len();
        let mut overtaken = 0;
        for (step, visit) in visits.into_iter().enumerate() {
            let using = shop.held.iter().filter(|held| held.ask.who == billing).count();
            if visit == 0 {
                let at_once = shop.ask(Ask { who: billing, tag: bill.clone(), hold: holds() });
                prop_assert!(at_once || using >= reserve as usize, "step {step}: {using} of {reserve} in use");
                continue;
            }
            let waits = shop.waits(billing);
            for ask in shop.next() {
                overtaken += usize::from(waits && ask.who != billing);
                if ask.who != billing {
                    shop.ask(Ask { hold: holds(), ..ask });
                }
            }
        }
        prop_assert!(overtaken <= 1 + shop.served.len() / 20, "{overtaken} of {}", shop.served.len());
    }

    /// The lowest class that waits has one turn in twenty, however many wait in the classes above it.
    #[test]
    fn the_lowest_class_has_one_turn_in_twenty(
        crowd in crowd(), ranks in prop::collection::vec(11..100u32, 0..4),
    ) {
        let mut shop = Shop::new(setup(), crowd.size, |config| {
            for (at, &rank) in ranks.iter().enumerate() {
                let rule = ClassRule { priority: Some(rank), ..ClassRule::default() };
                config.classes.insert(format!("c{at}"), rule);
            }
        });
        let mut holds = holds(crowd.seed, false);
        let ask = |who: usize, class: &str, hold| {
            Ask { who, tag: Tag { class: Some(class.into()), ..of(&format!("t{who}"), None) }, hold }
        };
        let batch = crowd.tenants.len();
        for _ in 0..crowd.size {
            shop.ask(ask(0, "normal", holds()));
        }
        for _ in 0..3 {
            shop.ask(ask(batch, "batch", holds()));
        }
        for (who, &(.., waiters)) in crowd.tenants.iter().enumerate() {
            let class = match ranks.get(who % (ranks.len() + 1)) {
                Some(_) => format!("c{}", who % (ranks.len() + 1)),
                None => "normal".into(),
            };
            for _ in 0..waiters {
                shop.ask(ask(who, &class, holds()));
            }
        }
        for _ in 0..(200 + crowd.before) {
            shop.next_of_a_crowd(batch + 1, &mut holds);
        }
        let turns: Vec<usize> = (0..shop.served.len()).filter(|&at| shop.served[at] == batch).collect();
        let apart: Vec<usize> = turns.windows(2).map(|pair| pair[1] - pair[0]).collect();
        prop_assert!(turns[0] <= 20 && apart.iter().all(|&apart| apart == 20), "{turns:?}");
    }

    /// Half of what minimums promise is not lent to long work while its owner is away; all of it is lent to
    /// short work. The owner, back, has that half at once where only long work is about.
    #[test]
    fn half_of_a_promise_is_lent_to_short_work_only(size in 1..8usize, promised in any::<u32>(), seed: u64) {
        let min = 1 + promised % size as u32;
        let mut shop = Shop::new(setup(), size, |config| {
            config.tenants.insert("owner".into(), TenantRule { min, ..setup().tenant });
        });
        let mut random = StdRng::seed_from_u64(seed);
        let long = Tag { route: Some("/report".into()), ..of("a", None) };
        let ask = |who, tag: &Tag, hold| Ask { who, tag: tag.clone(), hold };
        // The book learns what is long.
        for _ in 0..4 {
            shop.ask(ask(0, &long, 2 * S));
            while !shop.held.is_empty() {
                shop.next();
            }
        }
        let kept = size.min(min.div_ceil(2) as usize);
        let mut longest = 0;
        for _ in 0..200 {
            match random.random_range(0..4) {
                0 if shop.waiting.len() < 20 => drop(shop.ask(ask(0, &long, 2 * S))),
                1 if shop.waiting.len() < 20 => drop(shop.ask(ask(1, &of("b", None), MS))),
                _ if !shop.held.is_empty() => drop(shop.next()),
                _ => {}
            }
            let held = shop.held.iter().filter(|held| held.ask.who == 0).count();
            longest = longest.max(held);
            prop_assert!(held <= size - kept, "{held} long ones where {kept} of {size} are not lent");
        }
        prop_assert!(longest > 0 || kept == size);
        // Only long work is about: what it may not have is free for short work, or for the owner.
        while shop.held.iter().any(|held| held.ask.who == 1) || shop.waiting.values().any(|ask| ask.who == 1) {
            shop.next();
        }
        while shop.held.len() < size - kept {
            shop.ask(ask(0, &long, 2 * S));
        }
        let (who, tag) = if random.random() { (1, of("b", None)) } else { (2, of("owner", None)) };
        for _ in 0..kept {
            prop_assert!(shop.ask(ask(who, &tag, MS)));
        }
        prop_assert!(!shop.ask(ask(who, &tag, MS)));
    }
}
