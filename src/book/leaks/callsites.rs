//! Call sites: what is known of the leases that begin with the same statement on the same route
//! (budgets.md §5.1).
//!
//! A release tells how long the lease was held, how much of it statements ran, and the longest pause in its
//! transaction. From that come the thresholds of the leak classes, the rows of SHOW CALLSITES, and what
//! `report::advice` has to say. It decides nothing itself.
//!
//! Bounded: [`KEPT`] call sites, of which one that was not used lately makes room for a new one. Cheap:
//! of leases shorter than [`QUICK`] one in [`EVERY`] is looked at, once there are many, and counts for all.

use super::sketch::Sketch;
use crate::book::report::view::CallSiteView;
use crate::tag::Tag;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Call sites kept (budgets.md §5.1).
pub(super) const KEPT: usize = 2_000;
/// Leases of a call site that have to be known before they are gone by (budgets.md §5.1).
pub(super) const ENOUGH: u32 = 100;
/// After so long what was learnt counts half.
const HALF_LIFE: Duration = Duration::from_secs(3_600);
/// Leases shorter than this are sampled.
const QUICK: Duration = Duration::from_millis(5);
/// One in so many.
const EVERY: u32 = 8;
/// From so many on.
const ALL: u32 = 1_000;

/// What a lease that is back has to tell.
#[derive(Debug, Clone, Copy)]
pub(in crate::book) struct Lesson {
    pub(in crate::book) held: Duration,
    pub(in crate::book) active: Duration,
    /// The longest pause within a transaction; zero if there was none.
    pub(in crate::book) gap: Duration,
    /// How often it ran the statement that it ran most often, as far as is known.
    pub(in crate::book) repeats: u32,
}

#[derive(Debug)]
struct Row {
    route: Option<Arc<str>>,
    fingerprint: u64,
    /// Where in the application, as it last said.
    call_site: Option<Arc<str>>,
    leases: u64,
    held: Duration,
    active: Duration,
    gaps: Duration,
    repeats: u32,
    leaks: u64,
    hold: Box<Sketch>,
    gap: Option<Box<Sketch>>,
    halved: Instant,
    /// Used since the hand came by.
    touched: bool,
}

/// See the module's page.
#[derive(Debug)]
pub(in crate::book) struct CallSites {
    by_name: HashTable<u32>,
    hasher: RandomState,
    rows: Vec<Row>,
    /// Where a row to drop is looked for next.
    hand: usize,
    /// Quick leases so far, up to [`ALL`].
    quick: u32,
    dice: u64,
}

impl CallSites {
    pub(in crate::book) fn new() -> Self {
        CallSites {
            by_name: HashTable::new(),
            hasher: RandomState::default(),
            rows: Vec::new(),
            hand: 0,
            quick: 0,
            dice: 1,
        }
    }

    /// A lease of this call site is back.
    #[inline]
    pub(in crate::book) fn learn(&mut self, tag: &Tag, fingerprint: u64, lesson: Lesson, now: Instant) {
        let times = if lesson.held >= QUICK { 1 } else { self.sampled() };
        if times > 0 {
            self.learn_as(tag, fingerprint, lesson, times, now);
        }
    }

    fn learn_as(&mut self, tag: &Tag, fingerprint: u64, lesson: Lesson, times: u32, now: Instant) {
        let at = self.row(tag, fingerprint, now);
        let row = &mut self.rows[at];
        row.touched = true;
        while now.saturating_duration_since(row.halved) >= HALF_LIFE {
            row.halve(now);
        }
        if tag.call_site.is_some() {
            row.call_site.clone_from(&tag.call_site);
        }
        row.leases += u64::from(times);
        row.held += lesson.held * times;
        row.active += lesson.active.min(lesson.held) * times;
        row.repeats = row.repeats.max(lesson.repeats);
        row.hold.add(lesson.held, times);
        if !lesson.gap.is_zero() {
            row.gaps += lesson.gap * times;
            row.gap.get_or_insert_with(|| Box::new(Sketch::new())).add(lesson.gap, times);
        }
    }

    /// A leak case of this call site has been opened.
    pub(super) fn leaked(&mut self, tag: &Tag, fingerprint: u64, now: Instant) {
        let at = self.row(tag, fingerprint, now);
        self.rows[at].leaks += 1;
    }

    /// The 99th percentile of the longest pauses in transactions of this call site, if enough are known.
    pub(super) fn gap(&self, tag: &Tag, fingerprint: u64) -> Option<Duration> {
        self.rows[self.find(tag, fingerprint)?].gap.as_ref()?.p99(ENOUGH)
    }

    /// The 99th percentile of how long its leases are held, if enough are known.
    pub(super) fn hold(&self, tag: &Tag, fingerprint: u64) -> Option<Duration> {
        self.rows[self.find(tag, fingerprint)?].hold.p99(ENOUGH)
    }

    /// Every call site, the one first whose leases did nothing for longest.
    pub(in crate::book) fn views(&self) -> Vec<CallSiteView> {
        let view = |row: &Row| CallSiteView {
            route: row.route.clone(),
            call_site: row.call_site.clone(),
            fingerprint: row.fingerprint,
            leases: row.leases,
            held: row.held,
            active: row.active,
            gaps: row.gaps,
            hold_p99: row.hold.p99(ENOUGH),
            gap_p99: row.gap.as_ref().and_then(|gap| gap.p99(ENOUGH)),
            repeats: row.repeats,
            leaks: row.leaks,
        };
        let mut views: Vec<CallSiteView> = self.rows.iter().map(view).collect();
        views
            .sort_unstable_by(|a, b| b.idle().cmp(&a.idle()).then_with(|| a.fingerprint.cmp(&b.fingerprint)));
        views
    }

    /// For how many leases a quick one counts. At random, since call sites often take turns.
    fn sampled(&mut self) -> u32 {
        if self.quick < ALL {
            self.quick += 1;
            return 1;
        }
        // Knuth's constants (MMIX); the high bits are the good ones.
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if ((self.dice >> 32) as u32).is_multiple_of(EVERY) { EVERY } else { 0 }
    }

    fn find(&self, tag: &Tag, fingerprint: u64) -> Option<usize> {
        let hash = self.hasher.hash_one((tag.route.as_deref(), fingerprint));
        let is = |&at: &u32| self.rows[at as usize].is(tag, fingerprint);
        self.by_name.find(hash, is).map(|&at| at as usize)
    }

    /// The row of a call site, made if it is new.
    fn row(&mut self, tag: &Tag, fingerprint: u64, now: Instant) -> usize {
        if let Some(at) = self.find(tag, fingerprint) {
            return at;
        }
        let row = Row {
            route: tag.route.clone(),
            fingerprint,
            call_site: tag.call_site.clone(),
            leases: 0,
            held: Duration::ZERO,
            active: Duration::ZERO,
            gaps: Duration::ZERO,
            repeats: 0,
            leaks: 0,
            hold: Box::new(Sketch::new()),
            gap: None,
            halved: now,
            touched: false,
        };
        let at = if self.rows.len() < KEPT {
            self.rows.push(row);
            self.rows.len() - 1
        } else {
            let at = self.least_used();
            self.rows[at] = row;
            at
        };
        let (rows, hasher) = (&self.rows, &self.hasher);
        let hash = |row: &Row| hasher.hash_one((row.route.as_deref(), row.fingerprint));
        self.by_name.insert_unique(hash(&rows[at]), at as u32, |&at| hash(&rows[at as usize]));
        at
    }

    /// Makes room: a row that was not used since the hand last came by (second chance, which comes near to
    /// least recently used).
    fn least_used(&mut self) -> usize {
        loop {
            let at = self.hand;
            self.hand = (at + 1) % self.rows.len();
            let row = &mut self.rows[at];
            if !std::mem::take(&mut row.touched) {
                let hash = self.hasher.hash_one((row.route.as_deref(), row.fingerprint));
                if let Ok(entry) = self.by_name.find_entry(hash, |&other| other as usize == at) {
                    entry.remove();
                }
                return at;
            }
        }
    }
}

impl Row {
    fn is(&self, tag: &Tag, fingerprint: u64) -> bool {
        self.fingerprint == fingerprint && self.route.as_deref() == tag.route.as_deref()
    }

    /// One half-life is over, or many.
    fn halve(&mut self, now: Instant) {
        self.hold.halve();
        if let Some(gap) = &mut self.gap {
            gap.halve();
        }
        let empty = self.hold.count() == 0 && self.gap.as_ref().is_none_or(|gap| gap.count() == 0);
        self.halved = if empty { now } else { self.halved + HALF_LIFE };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn on(route: &str) -> Tag {
        Tag { route: Some(route.into()), ..Tag::default() }
    }

    fn lesson(held: Duration, gap: Duration) -> Lesson {
        Lesson { held, active: MS, gap, repeats: 1 }
    }

    #[test]
    fn a_call_site_is_a_route_and_a_first_statement() {
        let (mut sites, now) = (CallSites::new(), Instant::now());
        for _ in 0..ENOUGH {
            sites.learn(&on("/a"), 7, lesson(300 * MS, 200 * MS), now);
        }
        let gap = sites.gap(&on("/a"), 7).unwrap();
        assert!(gap >= 200 * MS && gap <= 225 * MS, "{gap:?}");
        assert!(sites.hold(&on("/a"), 7).is_some_and(|hold| hold >= 300 * MS));
        assert_eq!((sites.gap(&on("/a"), 8), sites.gap(&on("/b"), 7)), (None, None));
        assert_eq!(sites.gap(&Tag::default(), 7), None);
    }

    #[test]
    fn nothing_is_known_of_a_few_leases_and_no_pause_of_those_without() {
        let (mut sites, now) = (CallSites::new(), Instant::now());
        for _ in 1..ENOUGH {
            sites.learn(&on("/a"), 7, lesson(300 * MS, 200 * MS), now);
        }
        assert_eq!(sites.hold(&on("/a"), 7), None);
        sites.learn(&on("/a"), 7, lesson(300 * MS, Duration::ZERO), now);
        assert!(sites.hold(&on("/a"), 7).is_some());
        assert_eq!(sites.gap(&on("/a"), 7), None);
    }

    #[test]
    fn after_some_hours_it_is_as_if_it_had_not_been() {
        let (mut sites, now) = (CallSites::new(), Instant::now());
        for _ in 0..200 {
            sites.learn(&on("/a"), 7, lesson(300 * MS, 200 * MS), now);
        }
        sites.learn(&on("/a"), 7, lesson(10 * MS, MS), now + HALF_LIFE);
        assert!(sites.hold(&on("/a"), 7).is_some(), "101 count");
        sites.learn(&on("/a"), 7, lesson(10 * MS, MS), now + 1_000 * HALF_LIFE);
        assert_eq!(sites.hold(&on("/a"), 7), None);
        assert_eq!(sites.views()[0].leases, 202, "totals are since start");
    }

    #[test]
    fn quick_leases_count_as_many_though_few_are_looked_at() {
        let (mut sites, now) = (CallSites::new(), Instant::now());
        for n in 0..200_000 {
            // Two that take turns.
            sites.learn(&on("/a"), n % 2, lesson(2 * MS, Duration::ZERO), now);
        }
        let views = sites.views();
        for view in &views {
            assert!((95_000..105_000).contains(&view.leases), "{view:?}");
            assert_eq!(view.held, 2 * MS * view.leases as u32);
        }
        assert_eq!(views.len(), 2);
    }

    #[test]
    fn a_flood_of_newcomers_leaves_what_is_used() {
        let (mut sites, now) = (CallSites::new(), Instant::now());
        for n in 0..10 * KEPT as u64 {
            sites.learn(&on("/used"), 1, lesson(20 * MS, MS), now);
            sites.learn(&on("/flood"), n + 2, lesson(20 * MS, MS), now);
        }
        assert_eq!(sites.rows.len(), KEPT);
        assert_eq!(sites.by_name.len(), KEPT);
        assert!(sites.gap(&on("/used"), 1).is_some());
    }

    #[test]
    fn the_view_begins_with_who_holds_and_does_nothing() {
        let (mut sites, now) = (CallSites::new(), Instant::now());
        sites.learn(&on("/busy"), 1, Lesson { active: 900 * MS, ..lesson(900 * MS, MS) }, now);
        sites.learn(&on("/idle"), 2, lesson(500 * MS, 400 * MS), now);
        sites.leaked(&on("/idle"), 2, now);
        let row = |view: &CallSiteView| (view.route.clone().unwrap(), view.idle(), view.leaks);
        let rows: Vec<_> = sites.views().iter().map(row).collect();
        assert_eq!(rows, [("/idle".into(), 499 * MS, 1), ("/busy".into(), Duration::ZERO, 0)]);
    }
}
