//! One tenant in one pool: its caps, what it has had, and its waiters that are lined up.

use super::class::ClassId;
use super::limits::{Limits, cap};
use super::roll::Busy;
use super::turns::Banker;
use super::turns::{Key, Kind, Row};
use super::turns::{NEW, arrival};
use super::{PoolId, WaiterId};
use crate::config::Mode;
use smallvec::SmallVec;
use std::time::{Duration, Instant};

/// See the module's page.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) pool: PoolId,
    /// Never used again, as its number in the table may be: what is known of a tenant that was forgotten
    /// must not be taken for another's.
    pub(super) serial: u32,
    /// B4
    pub(super) cap: u32,
    /// B5
    pub(super) min: u32,
    /// Named in the configuration, so that its minimum is part of a sum that fits.
    pub(super) promised: bool,
    /// B6
    pub(super) weight: u32,
    pub(super) queue: u32,
    pub(super) mode: Mode,
    pub(super) leased: u32,
    /// B17
    pub(super) max_pins: u32,
    /// Of those leased, kept beyond their transaction.
    pub(super) pinned: u32,
    /// Waiters, those held back included.
    pub(super) waiting: u32,
    /// What it has had, by class: mostly one.
    flows: SmallVec<[Flow; 1]>,
    /// Waiters lined up; no line is empty.
    pub(super) lanes: SmallVec<[Lane; 1]>,
    /// How many of those its cap allows; counted into the pool's.
    pub(super) demand: usize,
    /// Requests of this tenant that hold leases and may need more: its cap is a pool of its own.
    pub(super) banker: Option<Box<Banker>>,
    pub(super) minute: Minute,
    pub(super) leases_total: u64,
    pub(super) held: Duration,
    pub(super) active: Duration,
    pub(super) waited: Duration,
    pub(super) rejections: u64,
}

/// A tenant's virtual time within a class.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) class: ClassId,
    pub(super) v: u64,
}

/// Waiters of a tenant that are alike to the scheduler: those that go on with a request first
/// ([`super::turns`]), then by order of arrival.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) class: ClassId,
    pub(super) kind: Kind,
    pub(super) ready: Row<WaiterId>,
    /// Its place in the pool's lines, while it may have a backend.
    pub(super) key: Option<Key>,
}

impl Lane {
    /// When the first of it arrived, as a number of its own.
    pub(super) fn oldest(&self) -> i64 {
        let front = self.ready.first().map_or(i64::MAX, |(turn, _)| turn);
        match arrival(front) {
            arrived if arrived == front => front,
            arrived => self.ready.first_from(NEW).map_or(arrived, |new| new.min(arrived)),
        }
    }
}

impl Busy for Share {
    fn busy(&self) -> bool {
        self.leased > 0 || self.waiting > 0
    }
}

impl Share {
    pub(super) fn new(pool: PoolId, name: &str, limits: &Limits, size: usize, now: Instant) -> Self {
        let mut share = Share {
            pool,
            serial: 0,
            cap: 0,
            min: 0,
            promised: false,
            weight: 1,
            queue: 0,
            mode: Mode::Observe,
            leased: 0,
            max_pins: 0,
            pinned: 0,
            waiting: 0,
            flows: SmallVec::new(),
            lanes: SmallVec::new(),
            demand: 0,
            banker: None,
            minute: Minute { until: now + MINUTE, now: Duration::ZERO, before: Duration::ZERO },
            leases_total: 0,
            held: Duration::ZERO,
            active: Duration::ZERO,
            waited: Duration::ZERO,
            rejections: 0,
        };
        share.rule(name, limits, size);
        share
    }

    /// Takes over its rule for a pool of this size.
    pub(super) fn rule(&mut self, name: &str, limits: &Limits, size: usize) {
        let rule = limits.tenant(name);
        self.promised = limits.promises(name);
        (self.cap, self.min, self.weight) = (cap(rule, size), rule.min, rule.weight.max(1));
        (self.queue, self.max_pins, self.mode) = (rule.queue, rule.max_pins, rule.mode);
    }

    /// Leases B4 still allows.
    pub(super) fn room(&self) -> u32 {
        self.limit().saturating_sub(self.leased)
    }

    /// Leases B4 allows in all.
    pub(super) fn limit(&self) -> u32 {
        if self.mode == Mode::Enforce { self.cap } else { u32::MAX }
    }

    /// Its virtual time in a class, not before the class's own if it is new there.
    pub(super) fn flow(&mut self, class: ClassId, v_now: u64) -> &mut Flow {
        let at = self.flows.iter().position(|flow| flow.class == class).unwrap_or_else(|| {
            self.flows.push(Flow { class, v: v_now });
            self.flows.len() - 1
        });
        &mut self.flows[at]
    }

    pub(super) fn flows(&self) -> &[Flow] {
        &self.flows
    }

    /// The line of a class and kind, made if there is none.
    pub(super) fn lane(&mut self, class: ClassId, kind: Kind) -> &mut Lane {
        let same = |lane: &Lane| lane.class == class && lane.kind == kind;
        let at = self.lanes.iter().position(same).unwrap_or_else(|| {
            self.lanes.push(Lane { class, kind, ready: Row::new(), key: None });
            self.lanes.len() - 1
        });
        &mut self.lanes[at]
    }

    /// Waiters lined up.
    pub(super) fn ready(&self) -> usize {
        self.lanes.iter().map(|lane| lane.ready.len()).sum()
    }
}

/// Backend-seconds of about the last minute: those of this minute, and of the one before as far as it
/// lies within sixty seconds, taken as spread evenly.
#[derive(Debug)]
pub(super) struct Minute {
    /// When this minute is over.
    until: Instant,
    now: Duration,
    before: Duration,
}

const MINUTE: Duration = Duration::from_secs(60);

impl Minute {
    pub(super) fn add(&mut self, held: Duration, now: Instant) {
        if now >= self.until {
            self.before = if now < self.until + MINUTE { self.now } else { Duration::ZERO };
            (self.until, self.now) = (now + MINUTE, Duration::ZERO);
        }
        self.now += held;
    }

    pub(super) fn sum(&self, now: Instant) -> Duration {
        match self.until.checked_duration_since(now) {
            Some(left) => self.now + self.before.mul_f64(left.as_secs_f64() / 60.0),
            None => self.now.mul_f64((1.0 - now.duration_since(self.until).as_secs_f64() / 60.0).max(0.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_slides() {
        let start = Instant::now();
        let s = Duration::from_secs;
        let mut minute = Minute { until: start + MINUTE, now: s(0), before: s(0) };
        minute.add(s(30), start + s(1));
        assert_eq!(minute.sum(start + s(59)), s(30));
        assert_eq!(minute.sum(start + s(90)), s(15));
        minute.add(s(10), start + s(60));
        assert_eq!(minute.sum(start + s(90)), s(25));
        assert_eq!(minute.sum(start + s(600)), s(0));
        minute.add(s(1), start + s(600));
        assert_eq!(minute.sum(start + s(600)), s(1));
    }
}
