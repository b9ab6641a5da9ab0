//! What a held lease is a case of: the classes of budgets.md §5.2, and the thresholds that hold for it.
//!
//! A threshold is learnt where its call site is known well enough: five times what 99 in a hundred take, to
//! tell; ten times, to act. What is configured bounds it: nothing is told later than that, and nothing is
//! taken for a leak sooner.
//!
//! Two classes stand elsewhere than in the table of §5.2, where the first match counts. `nested` comes before
//! those of idle transactions: a request that goes on somewhere else has leaked nothing. `stalled_client`
//! comes before those of statements: a server that waits for the client is not slow.

use crate::book::LeakClass;
use crate::config::Leak;
use std::time::Duration;

/// Times the 99th percentile, to tell: 42 false ones in a million of a lognormal class with σ = 1 (§5.2).
const TELL: u32 = 5;
/// Times the 99th percentile, to act: 2 in a million.
const ACT: u32 = 10;
/// Nothing learnt makes a report sooner than this.
const TOLD_LEAST: Duration = Duration::from_secs(1);
/// A statement that waits for a lock this long is told of.
pub(super) const LOCK: Duration = Duration::from_secs(1);
/// A client that takes nothing for this long is stalled.
pub(super) const STALL: Duration = Duration::from_secs(2);

/// What speaks for a leak beside its being idle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evidence(u8);

impl Evidence {
    /// None.
    pub const NONE: Evidence = Evidence(0);
    /// The request was ended (`bursar.end_request()`, another or no request id) while this lease was held.
    pub const REQUEST_ENDED: Evidence = Evidence(1);
    /// All other sessions of the request are closed, or work for another one.
    pub const SIBLINGS_LEFT: Evidence = Evidence(2);
    /// It has been idle for `[leak] leaked_alone`.
    pub const LONG_IDLE: Evidence = Evidence(4);

    /// Both.
    #[must_use]
    pub fn and(self, other: Evidence) -> Evidence {
        Evidence(self.0 | other.0)
    }

    /// Whether all of `other` is known.
    #[must_use]
    pub fn has(self, other: Evidence) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the request itself is over, as far as anybody can tell from outside.
    #[must_use]
    pub fn is_sure(self) -> bool {
        self.has(Evidence::REQUEST_ENDED) || self.has(Evidence::SIBLINGS_LEFT)
    }

    /// As in views and the log.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            (Evidence::REQUEST_ENDED, "request_ended"),
            (Evidence::SIBLINGS_LEFT, "siblings_left"),
            (Evidence::LONG_IDLE, "long_idle"),
        ];
        all.into_iter().filter(|(each, _)| self.has(*each)).map(|(_, name)| name).collect()
    }
}

/// From when on something is a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// The limit.
    pub limit: Duration,
    /// The 99th percentile that it comes from, and how many times that; `None` = as configured.
    pub learnt: Option<(Duration, u32)>,
}

impl Threshold {
    /// As configured.
    #[must_use]
    pub const fn fixed(limit: Duration) -> Threshold {
        Threshold { limit, learnt: None }
    }

    /// `adaptive` or `static`, as in the log.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.learnt.is_some() { "adaptive" } else { "static" }
    }

    /// To tell: learnt, but never later than configured.
    fn tell(most: Duration, p99: Option<Duration>) -> Threshold {
        match p99 {
            Some(p99) if p99.saturating_mul(TELL).max(TOLD_LEAST) < most => {
                Threshold { limit: p99.saturating_mul(TELL).max(TOLD_LEAST), learnt: Some((p99, TELL)) }
            }
            _ => Threshold::fixed(most),
        }
    }

    /// To act: learnt, but never sooner than configured.
    fn act(least: Duration, p99: Option<Duration>) -> Threshold {
        let limit = p99.map_or(least, |p99| p99.saturating_mul(ACT).max(least));
        Threshold { limit, learnt: p99.map(|p99| (p99, ACT)) }
    }
}

/// The thresholds that hold for a lease; `None` = never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Thresholds {
    pub(super) idle: Option<Threshold>,
    pub(super) leaked: Option<Threshold>,
    pub(super) slow: Option<Threshold>,
    pub(super) lock: Threshold,
    pub(super) stall: Threshold,
    pub(super) long: Option<Threshold>,
    pub(super) pinned: Option<Threshold>,
}

impl Thresholds {
    /// With what was learnt of the call site: 99th percentiles of its longest pauses and of its holds.
    pub(super) fn of(leak: &Leak, gap: Option<Duration>, hold: Option<Duration>, stall: Duration) -> Self {
        let (gap, hold) = if leak.adaptive { (gap, hold) } else { (None, None) };
        Thresholds {
            idle: leak.idle.map(|most| Threshold::tell(most, gap)),
            leaked: leak.leaked.map(|least| Threshold::act(least, gap)),
            slow: leak.hold.map(|most| Threshold::tell(most, hold)),
            lock: Threshold::fixed(LOCK),
            stall: Threshold::fixed(stall),
            long: leak.hold.map(Threshold::fixed),
            pinned: leak.pinned.map(Threshold::fixed),
        }
    }

    /// The least that anything learnt could make of them: whoever is below is no case yet.
    pub(super) fn least(leak: &Leak, stall: Duration) -> Self {
        Thresholds::of(leak, Some(Duration::ZERO), Some(Duration::ZERO), stall)
    }
}

/// What is known of a held lease at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Its client has gone and left work behind.
    pub(super) gone: bool,
    /// Idle in a transaction for so long.
    pub(super) idle: Option<Duration>,
    /// Another session of its request runs something, or waits for a backend.
    pub(super) nests: bool,
    /// Or did so a moment ago.
    pub(super) at_work: bool,
    pub(super) evidence: Evidence,
    /// A statement has run for so long.
    pub(super) runs: Option<Duration>,
    /// PostgreSQL has said that it waits for a lock.
    pub(super) locked: bool,
    /// Its client takes nothing, or sends nothing that is waited for, for so long.
    pub(super) stalled: Option<Duration>,
    pub(super) tx_age: Option<Duration>,
    /// Kept by a pin, outside a transaction, doing nothing for so long.
    pub(super) pinned: Option<Duration>,
}

/// The class of a lease, and the threshold that it has crossed; `None` = nothing is wrong with it.
pub(super) fn classify(facts: &Facts, thresholds: &Thresholds) -> Option<(LeakClass, Threshold)> {
    let beyond = |spent: Option<Duration>, threshold: Option<Threshold>| {
        threshold.filter(|threshold| spent.is_some_and(|spent| spent >= threshold.limit))
    };
    if facts.gone {
        return Some((LeakClass::AbandonedClient, Threshold::fixed(Duration::ZERO)));
    }
    let is_leaked = !facts.nests && !facts.at_work && facts.evidence != Evidence::NONE;
    let leaked = beyond(facts.idle.filter(|_| is_leaked), thresholds.leaked);
    let idle = beyond(facts.idle, thresholds.idle);
    let stalled = beyond(facts.stalled, Some(thresholds.stall));
    // Who waits for its client is not slow, however short that has been.
    let runs = facts.runs.filter(|_| facts.stalled.is_none());
    let locked = beyond(runs.filter(|_| facts.locked), Some(thresholds.lock));
    // Of a transaction that is mostly one statement, that is what is long.
    let works = facts.tx_age.filter(|age| facts.runs.is_none_or(|runs| runs < *age / 2));
    None.or(leaked.map(|it| (LeakClass::Leaked, it)))
        .or(idle.filter(|_| facts.nests).map(|it| (LeakClass::Nested, it)))
        .or(idle.map(|it| (LeakClass::IdleInTx, it)))
        .or(stalled.map(|it| (LeakClass::StalledClient, it)))
        .or(locked.map(|it| (LeakClass::LockWait, it)))
        .or(beyond(runs, thresholds.slow).map(|it| (LeakClass::SlowQuery, it)))
        .or(beyond(works, thresholds.long).map(|it| (LeakClass::LongTx, it)))
        .or(beyond(facts.pinned, thresholds.pinned).map(|it| (LeakClass::Pinned, it)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    fn fixed() -> Thresholds {
        Thresholds::of(&Leak::default(), None, None, STALL)
    }

    fn class(facts: Facts) -> Option<LeakClass> {
        classify(&facts, &fixed()).map(|(class, _)| class)
    }

    fn idle(seconds: u32, evidence: Evidence) -> Facts {
        let idle = Some(seconds * S);
        Facts { idle, tx_age: idle, evidence, ..Facts::default() }
    }

    #[test]
    fn each_class_has_its_rule() {
        let (runs, none) = (Facts { runs: Some(30 * S), ..Facts::default() }, Evidence::NONE);
        for (expected, facts) in [
            (Some(LeakClass::AbandonedClient), Facts { gone: true, ..runs }),
            (Some(LeakClass::Leaked), idle(10, Evidence::REQUEST_ENDED)),
            (Some(LeakClass::Leaked), idle(10, Evidence::SIBLINGS_LEFT)),
            (Some(LeakClass::Leaked), idle(60, Evidence::LONG_IDLE)),
            (None, idle(9, Evidence::REQUEST_ENDED)),
            (Some(LeakClass::IdleInTx), idle(10, none)),
            (None, idle(9, none)),
            (Some(LeakClass::Nested), Facts { nests: true, ..idle(10, none) }),
            (Some(LeakClass::LockWait), Facts { runs: Some(S), locked: true, ..Facts::default() }),
            (None, Facts { runs: Some(999 * MS), locked: true, ..Facts::default() }),
            (Some(LeakClass::SlowQuery), runs),
            (None, Facts { runs: Some(29 * S), ..Facts::default() }),
            (Some(LeakClass::StalledClient), Facts { stalled: Some(2 * S), ..runs }),
            (Some(LeakClass::LongTx), Facts { runs: Some(S), tx_age: Some(30 * S), ..Facts::default() }),
            (Some(LeakClass::LongTx), Facts { idle: Some(S), tx_age: Some(30 * S), ..Facts::default() }),
            (None, Facts { runs: Some(29 * S), tx_age: Some(30 * S), ..Facts::default() }),
            (Some(LeakClass::Pinned), Facts { pinned: Some(300 * S), ..Facts::default() }),
            (None, Facts { pinned: Some(299 * S), ..Facts::default() }),
        ] {
            assert_eq!(class(facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn who_is_at_work_elsewhere_has_leaked_nothing() {
        let all = Evidence::SIBLINGS_LEFT.and(Evidence::LONG_IDLE);
        assert_eq!(class(Facts { nests: true, ..idle(3_600, all) }), Some(LeakClass::Nested));
        assert_eq!(class(Facts { at_work: true, ..idle(3_600, all) }), Some(LeakClass::IdleInTx));
    }

    #[test]
    fn a_server_that_waits_for_its_client_is_not_slow() {
        let facts = Facts { runs: Some(3_600 * S), stalled: Some(S), locked: true, ..Facts::default() };
        assert_eq!(class(facts), None);
    }

    #[test]
    fn what_is_learnt_tells_sooner_and_acts_later() {
        let leak = Leak::default();
        let of = |gap: Duration| Thresholds::of(&leak, Some(gap), Some(gap), STALL);
        let quick = of(210 * MS);
        let told = Threshold { limit: 1_050 * MS, learnt: Some((210 * MS, 5)) };
        assert_eq!((quick.idle, quick.slow), (Some(told), Some(told)));
        assert_eq!(quick.leaked, Some(Threshold { limit: 10 * S, learnt: Some((210 * MS, 10)) }));
        assert_eq!(of(MS).idle.map(|it| it.limit), Some(S), "no sooner");
        let slow = of(20 * S);
        assert_eq!(slow.idle, Some(Threshold::fixed(10 * S)), "no later");
        assert_eq!(slow.leaked.map(|it| it.limit), Some(200 * S));
        assert_eq!((slow.long, slow.pinned), (fixed().long, fixed().pinned), "as configured");
        let least = Thresholds::least(&leak, STALL);
        assert_eq!(least.idle.map(|it| it.limit), Some(S));
        assert_eq!((told.kind(), Threshold::fixed(S).kind()), ("adaptive", "static"));
    }

    #[test]
    fn nothing_is_learnt_where_that_is_off_or_the_configured_is_short() {
        let off = Leak { adaptive: false, ..Leak::default() };
        assert_eq!(Thresholds::of(&off, Some(S), Some(S), STALL), fixed());
        let short = Leak { idle: Some(300 * MS), ..Leak::default() };
        assert_eq!(Thresholds::of(&short, Some(MS), None, STALL).idle, Some(Threshold::fixed(300 * MS)));
        let never = Leak { idle: None, leaked: None, hold: None, pinned: None, ..Leak::default() };
        let never = Thresholds::of(&never, Some(S), Some(S), STALL);
        assert_eq!((never.idle, never.leaked, never.slow, never.long), (None, None, None, None));
    }

    #[test]
    fn evidence_has_names() {
        let both = Evidence::REQUEST_ENDED.and(Evidence::LONG_IDLE);
        assert_eq!(both.names(), ["request_ended", "long_idle"]);
        assert!(both.is_sure() && !Evidence::LONG_IDLE.is_sure());
        assert_eq!(Evidence::NONE.names(), [""; 0]);
    }
}
