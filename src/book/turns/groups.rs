//! Request groups: what the leases of one request in one pool, for one tenant, have in common (budgets.md
//! §4.1).
//!
//! * **Who goes on comes before who begins.** A transaction that asks for a backend shortly after its group
//!   has given one back is a continuation: ahead of the same tenant's new requests, behind those of its own
//!   kind that came before it. Which tenant is next is not touched (`fair.rs`), nor is any cap; and it is so
//!   only within what B2 and B3 call usual, or an id that everybody shares would never let go.
//! * **The last backend is the next one, if it is idle.** It has the group's statements, and shows its tenant's
//!   rows. It is never kept idle for that: whoever is next gets what is free.
//!
//! At most k leases at once is B1 (`requests`); who holds something already goes before all (`finish.rs`).

use crate::book::requests::Request;
use crate::book::who::Who;
use crate::book::{Book, Claim, LeaseId};
use std::time::Instant;

/// Groups of one request that are told apart; of more the one used longest ago is forgotten.
const GROUPS: usize = 4;
/// Leases of a request from which on it is no longer put ahead, where B2 says nothing.
const MOST: u32 = 100;
/// Further than any two waiters are apart.
const AHEAD: i64 = 1 << 62;

/// Turns from here on are of those who begin.
pub(in crate::book) const NEW: i64 = -(AHEAD >> 1);

/// The turn of a continuation that came as this one.
pub(super) fn ahead(order: i64) -> i64 {
    order - AHEAD
}

/// As which one the waiter of this turn came.
pub(in crate::book) fn arrival(turn: i64) -> i64 {
    if turn < NEW { turn + AHEAD } else { turn }
}

/// See the module's page.
#[derive(Debug, Clone, Copy)]
pub(in crate::book) struct Group {
    share: u32,
    /// The share's own: its number may be another tenant's by now.
    serial: u32,
    released: Instant,
    /// Process id of the last backend; 0 = not known.
    backend: u32,
}

impl Request {
    /// A lease of the request has come back.
    fn gave_back(&mut self, group: Group) {
        match self.groups.iter_mut().find(|known| known.share == group.share) {
            Some(known) => *known = group,
            None => {
                if self.groups.len() >= GROUPS {
                    let oldest = self.groups.iter().enumerate().min_by_key(|(_, known)| known.released);
                    let at = oldest.map_or(0, |(at, _)| at);
                    self.groups.swap_remove(at);
                }
                self.groups.push(group);
            }
        }
    }
}

impl<B, W> Book<B, W> {
    /// A lease of a request has come back, and used this backend.
    pub(in crate::book) fn note_group(&mut self, who: Who, backend: u32, now: Instant) {
        let Some(at) = who.request else { return };
        let serial = self.shares[who.share].serial;
        self.requests[at].gave_back(Group { share: who.share, serial, released: now, backend });
    }

    fn group(&self, who: Who) -> Option<&Group> {
        let groups = &self.requests[who.request?].groups;
        let group = groups.iter().find(|group| group.share == who.share)?;
        (group.serial == self.shares[who.share].serial).then_some(group)
    }

    /// Whether a claim is a continuation.
    pub(super) fn continues(&self, claim: &Claim, who: Who, now: Instant) -> bool {
        let (Some(ttl), Some(group), Some(at)) =
            (self.limits.request.continuation, self.group(who), who.request)
        else {
            return false;
        };
        let request = &self.requests[at];
        let budget = self.limits.budgets(who.budgets);
        let leases = [budget.leases_warn, budget.leases_reject, claim.tag.max_leases];
        let leases = leases.into_iter().flatten().min().unwrap_or(MOST);
        let time = budget.db_time.warn.into_iter().chain(budget.db_time.abort).min();
        now.saturating_duration_since(group.released) <= ttl
            && request.ended.is_none()
            && request.next_ordinal() <= leases
            && time.is_none_or(|time| request.used() < time)
    }

    /// The process id of the backend that a lease just granted would rather have, if it is idle.
    #[must_use]
    pub fn preferred(&self, lease: LeaseId) -> Option<u32> {
        let group = self.group(self.leases.get(&lease)?.who)?;
        (group.backend != 0).then_some(group.backend)
    }
}
