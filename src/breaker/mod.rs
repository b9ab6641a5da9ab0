//! Whether a server is worth dialling: the circuit breaker of one upstream, and the door of one (database,
//! role) at it (budgets.md §6.3).
//!
//! ```text
//!             5 connects failed in a row, or half of 20; 57P03
//!    Closed ───────────────────────────────────────────────────► Open{until}
//!     ▲  │ 3 backends broke in a second                             │  until
//!     │  └──────────────────────────► HalfOpen ◄────────────────────┘
//!     │   the server answered            │ one dial
//!     └──────────────────────────────────┴──────► Open, for twice as long
//! ```
//!
//! Pure: `now` and a fraction (0 to 1, for jitter) are arguments. It refuses no client: the book keeps
//! waiters until their own deadline, and asks here before it dials. What the server itself says about one
//! role or database closes a [`Door`] and not the breaker: others get in.

use crate::config::BreakerRules;
use std::time::{Duration, Instant};

/// Pause after the first failed dial while closed; doubles. Four of them and the first opening see a
/// restart of two seconds through within `max_wait`.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause while closed, and of a [`Door`] that is full.
const PAUSE_MOST: Duration = Duration::from_secs(5);
/// Dials within the window before their ratio says anything.
const TELLING: u32 = 20;
/// So many backends have to break...
const BROKEN: usize = 3;
/// ... within this.
const BROKEN_WITHIN: Duration = Duration::from_secs(1);
/// Refusals of a role or database before its door is closed.
const REFUSALS: u32 = 2;
/// Parts of the window.
const PARTS: u32 = 6;
/// From so many dials at once on the ramp says nothing any more.
const RAMPED: u32 = 64;

/// Why a dial failed, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection, no TLS, no answer in time, no PostgreSQL.
    Unreachable,
    /// PostgreSQL is there and lets nobody in yet, or no more (57P0x).
    Starting,
    /// It does not let this role into this database.
    Refused,
    /// It has no room (53300).
    Full,
}

/// Why a breaker changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Dials failed.
    Connect,
    /// The server starts or stops.
    Starting,
    /// Backends broke.
    Broken,
    /// It was open for its time.
    Probe,
    /// The server answered.
    Recovered,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 5] =
        [Reason::Connect, Reason::Starting, Reason::Broken, Reason::Probe, Reason::Recovered];

    /// As metrics and logs have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Connect => "connect",
            Reason::Starting => "starting",
            Reason::Broken => "broken",
            Reason::Probe => "probe",
            Reason::Recovered => "recovered",
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Dials go out.
    Closed,
    /// None goes out before this.
    Open {
        /// When one will.
        until: Instant,
    },
    /// One goes out, and decides.
    HalfOpen,
}

impl State {
    /// As views have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen => "half-open",
        }
    }
}

/// Whether one more dial may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Now.
    Now,
    /// Not before this.
    At(Instant),
    /// When one of those under way has ended.
    Later,
}

/// A change of state, to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why.
    pub reason: Reason,
}

/// The breaker of one upstream.
#[derive(Debug)]
pub struct Breaker {
    rules: BreakerRules,
    state: State,
    /// Dials under way.
    dials: u32,
    /// Failures in a row.
    run: u32,
    /// No dial before this, while `run` is not zero and the state is closed.
    next: Option<Instant>,
    /// Openings in a row, each twice as long.
    trips: u32,
    /// Dials at once, and until when, after the server came back.
    ramp: Option<(u32, Instant)>,
    window: Window,
    broken: Vec<Instant>,
}

impl Breaker {
    /// Closed.
    #[must_use]
    pub fn new(rules: BreakerRules) -> Breaker {
        Breaker {
            rules,
            state: State::Closed,
            dials: 0,
            run: 0,
            next: None,
            trips: 0,
            ramp: None,
            window: Window::default(),
            broken: Vec::new(),
        }
    }

    /// Puts new rules in force; the state stays.
    pub fn set_rules(&mut self, rules: BreakerRules) {
        self.rules = rules;
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the last dial that ended came through, and nothing says that the next one will not.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.state == State::Closed && self.run == 0
    }

    /// Whether one more dial may go out.
    #[must_use]
    pub fn room(&self, now: Instant) -> Room {
        let alone = if self.dials == 0 { Room::Now } else { Room::Later };
        match self.state {
            State::Open { until } if until > now => Room::At(until),
            State::Open { .. } | State::HalfOpen => alone,
            State::Closed if self.run > 0 => match self.next {
                Some(next) if next > now => Room::At(next),
                _ => alone,
            },
            State::Closed if self.most(now).is_some_and(|most| self.dials >= most) => Room::Later,
            State::Closed => Room::Now,
        }
    }

    /// A dial goes out, which [`Breaker::room`] has allowed.
    pub fn dial(&mut self) -> Option<Turn> {
        self.dials += 1;
        matches!(self.state, State::Open { .. }).then(|| self.turn(State::HalfOpen, Reason::Probe))
    }

    /// A dial has ended.
    pub fn dialled(&mut self, now: Instant, result: Result<(), Failure>, fraction: f64) -> Option<Turn> {
        self.dials = self.dials.saturating_sub(1);
        match result {
            // Whoever is refused has been answered.
            Ok(()) | Err(Failure::Refused | Failure::Full) => {
                self.window.add(now, self.rules.window, false);
                (self.run, self.next) = (0, None);
                if self.state == State::Closed {
                    let most = self.most(now).map(|most| most.saturating_mul(2));
                    self.ramp = self.ramp.zip(most.filter(|most| *most < RAMPED)).map(|((_, at), m)| (m, at));
                    return None;
                }
                self.ramp = Some((2, later(now, self.rules.window)));
                Some(self.turn(State::Closed, Reason::Recovered))
            }
            Err(Failure::Starting) => {
                let until = later(now, self.rules.starting);
                let open = matches!(self.state, State::Open { .. });
                (!open).then(|| self.turn(State::Open { until }, Reason::Starting))
            }
            Err(Failure::Unreachable) => {
                self.window.add(now, self.rules.window, true);
                self.failed(now, fraction)
            }
        }
    }

    fn failed(&mut self, now: Instant, fraction: f64) -> Option<Turn> {
        let ramping = self.most(now).is_some();
        match self.state {
            // It was under way when others failed.
            State::Open { .. } => return None,
            State::HalfOpen => {}
            State::Closed if ramping => {}
            State::Closed => {
                self.trips = 0;
                self.run += 1;
                if self.run < self.rules.failures && !self.window.is_bad(now, self.rules.window) {
                    let pause = PAUSE.saturating_mul(1 << (self.run - 1).min(10)).min(PAUSE_MOST);
                    self.next = Some(later(now, pause.mul_f64(1.0 - fraction / 10.0)));
                    return None;
                }
            }
        }
        let open = self.rules.open.saturating_mul(1 << self.trips.min(20)).min(self.rules.open_max);
        self.trips += 1;
        let until = later(now, open.mul_f64(0.8 + 0.4 * fraction));
        Some(self.turn(State::Open { until }, Reason::Connect))
    }

    /// The connection of a backend that was in use, or idle, broke.
    pub fn broke(&mut self, now: Instant) -> Option<Turn> {
        self.broken.retain(|at| now.saturating_duration_since(*at) < BROKEN_WITHIN);
        self.broken.push(now);
        if self.broken.len() < BROKEN {
            return None;
        }
        self.broken.clear();
        (self.state == State::Closed && self.run == 0).then(|| self.turn(State::HalfOpen, Reason::Broken))
    }

    /// Dials at once, while the server has only just come back.
    fn most(&self, now: Instant) -> Option<u32> {
        self.ramp.filter(|(_, until)| *until > now).map(|(most, _)| most)
    }

    fn turn(&mut self, to: State, reason: Reason) -> Turn {
        let from = std::mem::replace(&mut self.state, to);
        (self.run, self.next) = (0, None);
        if to != State::Closed {
            self.ramp = None;
        }
        Turn { from, to, reason }
    }
}

/// Dials of the last while, and how many of them failed.
#[derive(Debug, Default)]
struct Window {
    start: Option<Instant>,
    parts: [(u64, u32, u32); PARTS as usize],
}

impl Window {
    fn part(&self, now: Instant, span: Duration) -> u64 {
        let since = self.start.map_or(Duration::ZERO, |start| now.saturating_duration_since(start));
        let each = (span / PARTS).as_nanos().max(1);
        u64::try_from(since.as_nanos() / each).unwrap_or(u64::MAX)
    }

    fn add(&mut self, now: Instant, span: Duration, failed: bool) {
        self.start.get_or_insert(now);
        let number = self.part(now, span);
        let part = &mut self.parts[(number % u64::from(PARTS)) as usize];
        if part.0 != number {
            *part = (number, 0, 0);
        }
        part.1 = part.1.saturating_add(1);
        part.2 = part.2.saturating_add(u32::from(failed));
    }

    /// Whether at least half of enough dials failed.
    fn is_bad(&self, now: Instant, span: Duration) -> bool {
        let number = self.part(now, span);
        let recent = self.parts.iter().filter(|part| part.0 + u64::from(PARTS) > number);
        let (all, failed) = recent
            .fold((0_u32, 0_u32), |sum, part| (sum.0.saturating_add(part.1), sum.1.saturating_add(part.2)));
        all >= TELLING && failed.saturating_mul(2) >= all
    }
}

/// Whether the server lets one role into one database.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    refused: u32,
    full: u32,
    until: Option<Instant>,
}

impl Door {
    /// A dial has ended.
    pub fn dialled(
        &mut self,
        now: Instant,
        result: Result<(), Failure>,
        rules: &BreakerRules,
        fraction: f64,
    ) {
        let pause = match result {
            Ok(()) => return *self = Door::default(),
            // Of these the breaker takes care.
            Err(Failure::Unreachable | Failure::Starting) => return,
            Err(Failure::Refused) => {
                self.refused += 1;
                if self.refused < REFUSALS { PAUSE } else { rules.refused }
            }
            Err(Failure::Full) => {
                self.full += 1;
                let pause = PAUSE.saturating_mul(1 << (self.full - 1).min(10)).min(PAUSE_MOST);
                pause.mul_f64(1.0 + fraction / 4.0)
            }
        };
        self.until = Some(later(now, pause));
    }

    /// Whether one more dial may go out, with so many under way.
    #[must_use]
    pub fn room(&self, now: Instant, dials: usize) -> Room {
        match self.until {
            None => Room::Now,
            Some(until) if until > now => Room::At(until),
            Some(_) if dials > 0 => Room::Later,
            Some(_) => Room::Now,
        }
    }
}

/// `at + by`; a duration too long for the clock means at once, which no rule allows.
fn later(at: Instant, by: Duration) -> Instant {
    at.checked_add(by).unwrap_or(at)
}

#[cfg(test)]
mod tests;
