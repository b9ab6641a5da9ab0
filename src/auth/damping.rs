//! Failed logins by source, and how long each is left without its answer. No clock, no socket: who waits is in
//! `session::handshake`.
//!
//! Each source has a bucket: a failure puts in one `delay`, which takes that long to run out. Up to `burst` of them
//! are answered at once; what is beyond has to run out first, and is never more than five of them. So a source
//! that waits for its answers has one in each `delay`, and whoever waits on many connections at once has each of them
//! held for the longest time. It is of no account whose name was given: who asks for names that nobody has waits as long.
//!
//! Sources cost nothing to invent where addresses do not: of those that are remembered, the one that would be
//! waited for least is forgotten first, so a flood of new ones pushes out each other and not who has failed most.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Sources remembered: some 2 MB at worst.
const MOST: usize = 10_000;
/// The longest time without an answer, in delays.
const LONGEST: u32 = 5;
/// A source is warned of once in so long.
const PERIOD: Duration = Duration::from_secs(60);

/// Who fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// One address.
    V4(Ipv4Addr),
    /// The first half of an address: what one customer has at least (RFC 6177).
    V6(u64),
    /// A user of this system, as far as the kernel tells.
    Unix(Option<u32>),
}

impl From<IpAddr> for Source {
    /// An address of IPv4 that came in over IPv6 is taken for what it is.
    fn from(address: IpAddr) -> Source {
        match address.to_canonical() {
            IpAddr::V4(address) => Source::V4(address),
            IpAddr::V6(address) => Source::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::V4(address) => address.fmt(f),
            Source::V6(prefix) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*prefix) << 64)),
            Source::Unix(Some(uid)) => write!(f, "user {uid} of this system"),
            Source::Unix(None) => f.write_str("unix"),
        }
    }
}

/// `auth.failure_burst` and `auth.failure_delay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damping {
    /// So many are answered at once.
    pub burst: u32,
    /// In which time one of them comes back.
    pub delay: Duration,
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damped {
    /// How long it is not to be answered.
    pub wait: Duration,
    /// It is time for a warning: so many failures of this source since the last one.
    pub warn: Option<u64>,
}

/// Every source that has failed of late.
#[derive(Debug)]
pub struct Failures {
    most: usize,
    known: HashMap<Source, Known>,
    /// By when the bucket is empty.
    order: BTreeSet<(Instant, Source)>,
}

#[derive(Debug)]
struct Known {
    empty: Instant,
    warned: Option<Instant>,
    /// Since the last warning.
    failures: u64,
}

impl Default for Failures {
    fn default() -> Self {
        Failures::of(MOST)
    }
}

impl Failures {
    fn of(most: usize) -> Failures {
        Failures { most, known: HashMap::new(), order: BTreeSet::new() }
    }

    /// A login from there has failed.
    pub fn add(&mut self, source: Source, rules: Damping, now: Instant) -> Damped {
        self.forget(source, now);
        let known = self.known.entry(source).or_insert(Known { empty: now, warned: None, failures: 0 });
        self.order.remove(&(known.empty, source));
        let free = rules.delay * rules.burst;
        let held = known.empty.saturating_duration_since(now) + rules.delay;
        let held = held.min(free + rules.delay * LONGEST);
        known.empty = now + held;
        known.failures += 1;
        self.order.insert((known.empty, source));
        let wait = held.saturating_sub(free);
        let due = known.warned.is_none_or(|warned| now.saturating_duration_since(warned) >= PERIOD);
        let warn = (due && !wait.is_zero()).then(|| {
            known.warned = Some(now);
            std::mem::take(&mut known.failures)
        });
        Damped { wait, warn }
    }

    /// Makes room for one more. What has been empty for a period has nothing to say any more: two of them at a
    /// time, so that they become fewer.
    fn forget(&mut self, source: Source, now: Instant) {
        for _ in 0..2 {
            let Some(&(empty, first)) = self.order.first() else { return };
            let crowded = self.known.len() >= self.most && !self.known.contains_key(&source);
            if empty + PERIOD > now && !crowded {
                return;
            }
            self.order.pop_first();
            self.known.remove(&first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: Damping = Damping { burst: 3, delay: Duration::from_millis(100) };

    fn v4(n: u8) -> Source {
        Source::V4(Ipv4Addr::new(192, 0, 2, n))
    }

    /// A source's bucket, a millisecond at a time, and how long ago it was warned of.
    #[derive(Default, Clone)]
    struct Twin {
        held: u64,
        quiet: Option<u64>,
    }

    impl Twin {
        fn pass(&mut self) {
            self.held = self.held.saturating_sub(1);
            self.quiet = self.quiet.map(|ms| ms + 1);
        }

        fn fail(&mut self, burst: u64, delay: u64) -> (u64, bool) {
            self.held += delay;
            while self.held > (burst + 5) * delay {
                self.held -= 1;
            }
            let wait = self.held.saturating_sub(burst * delay);
            let warn = wait > 0 && self.quiet.is_none_or(|ms| ms >= 60_000);
            self.quiet = if warn { Some(0) } else { self.quiet };
            (wait, warn)
        }
    }

    proptest! {
        #[test]
        fn every_source_has_its_own_bucket(
            burst in 0u32..5, delay in 1u64..50,
            // Mostly close together, and now and then longer apart than a warning.
            events in prop::collection::vec((0u8..3, prop_oneof![29 => 0u64..60, 1 => 0u64..130_000]), 1..60)
        ) {
            let rules = Damping { burst, delay: Duration::from_millis(delay) };
            let start = Instant::now();
            let (mut failures, mut twins, mut now) = (Failures::default(), vec![Twin::default(); 3], 0);
            for (n, later) in events {
                now += later;
                (0..later).for_each(|_| twins.iter_mut().for_each(Twin::pass));
                let damped = failures.add(v4(n), rules, start + Duration::from_millis(now));
                let expected = twins[usize::from(n)].fail(burst.into(), delay);
                prop_assert_eq!((damped.wait.as_millis() as u64, damped.warn.is_some()), expected);
            }
        }

        #[test]
        fn a_flood_of_sources_pushes_out_itself(pauses in prop::collection::vec(0u64..5, 1..300)) {
            let start = Instant::now();
            let (mut failures, mut now) = (Failures::of(4), start);
            let worst = Source::Unix(Some(7));
            for _ in 0..20 {
                failures.add(worst, RULES, now);
            }
            for (n, later) in pauses.into_iter().enumerate() {
                now += Duration::from_millis(later);
                failures.add(Source::V6(n as u64), RULES, now);
                prop_assert_eq!(failures.known.len(), (n + 2).min(4));
                prop_assert_eq!(failures.order.len(), failures.known.len());
                // As long as more of its bucket is left than of anybody's who has failed once.
                if now + RULES.delay < start + RULES.delay * (RULES.burst + LONGEST) {
                    prop_assert!(failures.known.contains_key(&worst));
                }
            }
        }
    }

    #[test]
    fn who_waits_for_the_answers_has_one_in_each_delay() {
        let (start, mut failures) = (Instant::now(), Failures::default());
        let mut now = start;
        for answered in 0..20u32 {
            now += failures.add(v4(1), RULES, now).wait;
            assert_eq!(now, start + RULES.delay * answered.saturating_sub(2), "{answered}");
        }
        // On many connections at once, each waits for the longest time; another source for none.
        for n in 1..=LONGEST + 5 {
            assert_eq!(failures.add(v4(1), RULES, now).wait, RULES.delay * n.min(LONGEST));
        }
        assert_eq!(failures.add(v4(2), RULES, now).wait, Duration::ZERO);
        // It comes back with time.
        now += RULES.delay * (LONGEST + 3);
        assert_eq!(failures.add(v4(1), RULES, now).wait, Duration::ZERO);
    }

    #[test]
    fn it_is_said_once_in_a_period_and_forgotten_after_one() {
        let (start, mut failures) = (Instant::now(), Failures::default());
        let mut warned = |n: u32, seconds: u64| -> Vec<u64> {
            let now = start + Duration::from_secs(seconds);
            (0..n).filter_map(|_| failures.add(v4(1), RULES, now).warn).collect()
        };
        assert_eq!(warned(3, 0), [0; 0]);
        assert_eq!(warned(10, 0), [4]);
        assert_eq!(warned(10, 59), [0; 0]);
        assert_eq!(warned(10, 60), [9 + 10 + 4]);
        assert_eq!(warned(3, 300), [0; 0], "no bucket is left");
        assert_eq!(failures.known.len(), 1);
        for n in 2..=100 {
            failures.add(v4(n), RULES, start + Duration::from_secs(300));
        }
        assert_eq!(failures.known.len(), 100);
        for n in 101..=200 {
            failures.add(v4(n), RULES, start + Duration::from_secs(600));
        }
        assert_eq!(failures.known.len(), 100, "they go as others come");
    }

    #[test]
    fn a_source_is_an_address_half_an_address_or_a_user() {
        let of = |address: &str| Source::from(address.parse::<IpAddr>().unwrap());
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8:0:1:a::1").to_string(), "2001:db8:0:1::/64");
        assert_eq!(of("192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(Source::Unix(Some(1000)).to_string(), "user 1000 of this system");
    }
}
