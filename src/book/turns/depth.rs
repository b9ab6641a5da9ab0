//! How many leases at once a kind of request comes to, learnt from requests that deadlocked.
//!
//! Where B1 is enforced it is each request's claim. Where it only warns nobody has promised anything, and a
//! claim for everybody would keep backends from requests that never nest. But a request that was found to
//! wait for its own kind has shown that it does: from then on what such requests have come to lately is
//! taken for their claim, and the banker sees to it that they do not tie themselves up again (budgets.md
//! §3.2, "learned").

/// Episodes that a claim looks back on: one ends when a request holds nothing any more.
const WINDOW: u8 = 32;

/// See the module's page.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::book) struct Depth {
    /// One like it has been part of a deadlock.
    tied: bool,
    /// The claim of the last window.
    last: u8,
    /// The two deepest of this one, the deepest first.
    top: [u8; 2],
    /// Episodes of this window.
    seen: u8,
}

impl Depth {
    /// A request of this kind has waited for others that waited for it, with so many leases held or wanted.
    pub(super) fn tie(&mut self, most: u32) {
        self.tied = true;
        self.last = self.last.max(clamped(most));
    }

    /// A request has held or wanted so many at once, and holds nothing now.
    pub(in crate::book) fn learn(&mut self, most: u32) {
        let most = clamped(most);
        if most > self.top[0] {
            self.top = [most, self.top[0]];
        } else {
            self.top[1] = self.top[1].max(most);
        }
        self.seen += 1;
        if self.seen == WINDOW {
            // What only one in so many came to is not what the others have to wait for.
            *self = Depth { last: self.top[1], top: [0; 2], seen: 0, ..*self };
        }
    }

    /// Leases that a request of this kind has to be expected to hold at once; 0 = nothing is known against
    /// it.
    pub(super) fn claim(self) -> u32 {
        if self.tied { self.last.max(self.top[1]).into() } else { 0 }
    }
}

fn clamped(most: u32) -> u8 {
    u8::try_from(most).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_in_a_deadlock_has_a_claim() {
        let mut depth = Depth::default();
        depth.learn(5);
        depth.learn(5);
        assert_eq!(depth.claim(), 0);
        depth.tie(2);
        assert_eq!(depth.claim(), 5);
        depth.tie(7);
        assert_eq!(depth.claim(), 7);
    }

    #[test]
    fn what_one_alone_comes_to_is_not_expected_of_the_others() {
        let mut depth = Depth::default();
        depth.tie(2);
        for _ in 0..100 {
            depth.learn(3);
        }
        depth.learn(40);
        assert_eq!(depth.claim(), 3);
        depth.learn(40);
        assert_eq!(depth.claim(), 40, "twice is a habit");
        for _ in 0..2 * WINDOW {
            depth.learn(1);
        }
        assert_eq!(depth.claim(), 1, "and a habit is forgotten");
    }
}
