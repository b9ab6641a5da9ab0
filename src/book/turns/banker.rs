//! The banker's test (Dijkstra): may a backend be given away without risking that requests which
//! hold some and need more wait for one another for ever?
//!
//! One resource, and claims that are small numbers, so the sort of the textbook is an array: requests
//! by what they may still need, with what they hold. A state is safe if they can finish one after
//! another, those who need least first, each giving back what it holds (budgets.md §3.2, §3.4).
//!
//! Only requests that hold something *and* may need more are kept here. Everybody else finishes with
//! what it has, so its backends count as free.

/// The largest need that is told apart; a larger one counts as this, and the detector is the net.
pub(super) const NEED_MOST: u32 = 15;

/// Who holds and may need more, within one pool or one tenant's cap.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::book) struct Banker {
    by_need: [Holders; NEED_MOST as usize + 1],
    all: Holders,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Holders {
    count: u32,
    held: u32,
}

/// A request's part in a pool: leases it holds there, and how many it may still need anywhere.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stake {
    pub(super) need: u32,
    pub(super) held: u32,
}

impl Stake {
    /// Whether it can keep others waiting.
    fn counts(self) -> bool {
        self.need > 0 && self.held > 0
    }
}

impl Banker {
    pub(super) fn add(&mut self, stake: Stake) {
        if stake.counts() {
            for holders in [&mut self.by_need[stake.need.min(NEED_MOST) as usize], &mut self.all] {
                holders.count += 1;
                holders.held += stake.held;
            }
        }
    }

    pub(super) fn remove(&mut self, stake: Stake) {
        if stake.counts() {
            for holders in [&mut self.by_need[stake.need.min(NEED_MOST) as usize], &mut self.all] {
                holders.count -= 1;
                holders.held -= stake.held;
            }
        }
    }

    /// Whether all can finish with `capacity` slots.
    pub(super) fn is_safe(&self, capacity: u32) -> bool {
        self.would_be_safe(capacity, Stake::default(), Stake::default())
    }

    /// Whether all can finish with `capacity` slots once a request's part has changed like this.
    pub(super) fn would_be_safe(&self, capacity: u32, before: Stake, after: Stake) -> bool {
        let moved = |need: u32| {
            let mut holders = self.by_need[need as usize];
            if before.counts() && before.need.min(NEED_MOST) == need {
                holders.count -= 1;
                holders.held -= before.held;
            }
            if after.counts() && after.need.min(NEED_MOST) == need {
                holders.count += 1;
                holders.held += after.held;
            }
            holders
        };
        let held = |stake: Stake| if stake.counts() { stake.held } else { 0 };
        let mut left = self.all.count - u32::from(before.counts()) + u32::from(after.counts());
        let taken = self.all.held - held(before) + held(after);
        let mut free = i64::from(capacity) - i64::from(taken);
        for need in 1..=NEED_MOST {
            if left == 0 || free >= i64::from(NEED_MOST) {
                return true;
            }
            let holders = moved(need);
            if holders.count > 0 && i64::from(need) > free {
                // A request that is left alone has all there is, whatever it claims.
                return left == 1;
            }
            free += i64::from(holders.held);
            left -= holders.count;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stake(need: u32, held: u32) -> Stake {
        Stake { need, held }
    }

    fn banker(stakes: &[(u32, u32)]) -> Banker {
        let mut banker = Banker::default();
        for &(need, held) in stakes {
            banker.add(stake(need, held));
        }
        banker
    }

    #[test]
    fn the_last_slots_are_kept_for_those_who_may_need_them() {
        // Ten slots, claims of three: eight requests may hold one each, a ninth would leave one slot
        // for needs of two.
        let eight = banker(&[(2, 1); 8]);
        assert!(eight.is_safe(10));
        assert!(!eight.would_be_safe(10, Stake::default(), stake(2, 1)));
        // One of them goes on to its second, and may have its third.
        assert!(eight.would_be_safe(10, stake(2, 1), stake(1, 2)));
        let mut nine = eight.clone();
        nine.remove(stake(2, 1));
        nine.add(stake(1, 2));
        assert!(!nine.would_be_safe(10, stake(2, 1), stake(1, 2)), "but not another one beside it");
    }

    #[test]
    fn who_needs_nothing_more_is_never_in_the_way() {
        let mut banker = banker(&[(0, 100), (3, 0)]);
        assert_eq!(banker, Banker::default());
        assert!(banker.would_be_safe(1, Stake::default(), stake(5, 1)), "alone, it has all there is");
        banker.add(stake(5, 1));
        assert!(!banker.would_be_safe(2, Stake::default(), stake(5, 1)));
        banker.remove(stake(5, 1));
        assert_eq!(banker, Banker::default());
    }

    /// The textbook: try to finish anybody, until nobody is left or nobody can.
    fn textbook(capacity: u32, stakes: &[(u32, u32)]) -> bool {
        let mut left: Vec<(u32, u32)> = stakes.to_vec();
        let taken: u32 = left.iter().map(|&(_, held)| held).sum();
        let mut free = i64::from(capacity) - i64::from(taken);
        while left.len() > 1 {
            let Some(at) = left.iter().position(|&(need, _)| i64::from(need) <= free) else { return false };
            free += i64::from(left.swap_remove(at).1);
        }
        true
    }

    proptest! {
        #[test]
        fn it_is_the_textbooks_test(
            capacity in 1..30u32,
            stakes in prop::collection::vec((1..6u32, 1..5u32), 0..12),
        ) {
            prop_assert_eq!(banker(&stakes).is_safe(capacity), textbook(capacity, &stakes));
        }
    }
}
