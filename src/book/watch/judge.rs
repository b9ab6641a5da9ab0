//! What a tick says of a budget of time: near, told, beyond, each once.
//!
//! It judges; what is done about it is `overstay`'s and `overrun`'s business.

use crate::book::leaks::OpenCase;
use crate::book::report::{Dim, Tally, Told};
use crate::config::{Mode, Timed};
use std::time::{Duration, Instant};

/// What has been said about a lease so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::book) struct Watch {
    /// Dimensions counted as near, as told, as ones that would have acted, as ones that did
    /// ([`Dim::bit`]).
    near: u32,
    told: u32,
    would: u32,
    acted: u32,
    /// The transaction that B10 and B11 acted on: a pinned lease sees several.
    pub(in crate::book) tx: Option<Instant>,
    /// The statement that B12 acted on.
    pub(super) statement: Option<Instant>,
    /// Since when its client takes nothing, as B13 saw it last.
    pub(super) stall: Option<Instant>,
    /// When to cancel what runs once more, should it still run: a cancel request may be lost.
    pub(super) again: Option<Instant>,
    /// Since when it was idle when B11 acted on it: what has been idle anew may be acted on once more, where
    /// a statement was faster than the order.
    pub(in crate::book) idle_since: Option<Instant>,
    /// A session was told to end it.
    pub(in crate::book) ended: bool,
    /// The open case about it.
    pub(in crate::book) case: Option<OpenCase>,
}

/// What to do about a budget of a lease, with the limit that was crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Nothing,
    Tell(Duration),
    Act {
        limit: Duration,
        /// The client set it itself.
        own: bool,
    },
    /// It would act, but has not been in mode warn for long enough.
    Spare(Duration),
    /// It has been acted on before, and goes on.
    Acted {
        limit: Duration,
        own: bool,
    },
}

/// A budget of time as it holds for a lease, or for a request, now.
pub(super) struct Limit {
    pub(super) dim: Dim,
    /// As configured.
    pub(super) timed: Timed,
    /// What the client has set itself: acts in any mode.
    pub(super) own: Option<Duration>,
    /// As what acting counts.
    pub(super) acts: Told,
    /// It need not have been in mode warn before it acts, or has been.
    pub(super) armed: bool,
}

impl Limit {
    /// Every moment at which something may be to be done.
    pub(super) fn crossings(&self) -> [Option<Duration>; 3] {
        [self.timed.warn, self.timed.abort, self.own]
    }

    /// The limit that acts, and whether it is the client's own.
    fn acting(&self) -> Option<(Duration, bool)> {
        let configured = self.timed.abort.filter(|_| self.timed.mode == Mode::Enforce && self.armed);
        let own = self.own.map(|own| (own, true));
        own.into_iter().chain(configured.map(|limit| (limit, false))).min_by_key(|(limit, _)| *limit)
    }
}

impl Watch {
    pub(in crate::book) fn was_told(&self, dim: Dim) -> bool {
        (self.near | self.told | self.would | self.acted) & dim.bit() != 0
    }

    /// Whether a budget has acted, and not begun anew.
    pub(in crate::book) fn has_acted(&self, dim: Dim) -> bool {
        self.acted & dim.bit() != 0
    }

    /// What these dimensions are about has begun anew: they may act again. Telling is once a lease.
    pub(in crate::book) fn renew(&mut self, dims: &[Dim]) {
        for dim in dims {
            self.would &= !dim.bit();
            self.acted &= !dim.bit();
        }
    }

    /// Holds what is spent against a budget: near, told and beyond count once each.
    pub(super) fn judge(&mut self, limit: &Limit, spent: Duration, tally: &mut Tally) -> Verdict {
        let bit = limit.dim.bit();
        let beyond = |limit: Option<Duration>| limit.filter(|&limit| spent >= limit);
        if let Some((act, own)) = limit.acting().filter(|(act, _)| spent >= *act) {
            if self.acted & bit != 0 {
                return Verdict::Acted { limit: act, own };
            }
            self.acted |= bit;
            self.told |= bit;
            tally.count(limit.dim, limit.acts);
            return Verdict::Act { limit: act, own };
        }
        let timed = &limit.timed;
        // What enforcing would have done; the telling is counted below, and all there is in observe.
        if beyond(timed.abort).is_some() && timed.mode != Mode::Observe && self.would & bit == 0 {
            self.would |= bit;
            tally.count(limit.dim, Told::Would);
            if let (Mode::Enforce, Some(abort)) = (timed.mode, timed.abort) {
                self.told |= bit;
                return Verdict::Spare(abort);
            }
        }
        if self.told & bit != 0 {
            return Verdict::Nothing;
        }
        if let Some(crossed) = beyond(timed.warn).or(beyond(timed.abort)) {
            self.told |= bit;
            tally.count(limit.dim, Told::beyond(timed.mode));
            return if timed.mode == Mode::Observe { Verdict::Nothing } else { Verdict::Tell(crossed) };
        }
        if let Some(first) = timed.warn.or(timed.abort).or(limit.own)
            && self.near & bit == 0
            && spent.saturating_mul(5) >= first.saturating_mul(4)
        {
            self.near |= bit;
            tally.count(limit.dim, Told::Near);
        }
        Verdict::Nothing
    }
}
