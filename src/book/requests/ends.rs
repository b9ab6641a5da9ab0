//! How requests end (budgets.md §2.1): their client says so, they have been silent for too long, or they have
//! reached their hard end. What is counted and told of that.
//!
//! Nothing waits for a look from here: whoever uses an id asks itself whether the request is over
//! (`mod.rs`). A look around, once a second, sees the others: it ends what has been silent, so that it is
//! told while somebody still knows what it was, and what is too old, which then is evidence of a leak.

use crate::book::limits::later;
use crate::book::{Action, Book};
use crate::config::Mode;
use crate::tag::Tag;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Of each look, at least so many requests, or an eighth.
const STEPS: usize = 64;

/// Why a request is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its client said so.
    Client,
    /// None of its sessions has done anything for `request.idle_ttl`.
    Idle,
    /// It has reached `request.max_age`.
    Age,
}

impl End {
    /// Each of them.
    const ALL: [End; 3] = [End::Client, End::Idle, End::Age];

    /// As in views, metrics and the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            End::Client => "client",
            End::Idle => "idle",
            End::Age => "age",
        }
    }
}

/// A request that is over by itself, or too old, to be logged.
#[derive(Debug, Clone)]
pub struct RequestOver {
    /// Why.
    pub end: End,
    /// What was done about it: an `Age` is only told in mode warn.
    pub mode: Mode,
    /// Whose work it was.
    pub tag: Arc<Tag>,
    /// How old it is.
    pub age: Duration,
    /// The row that is shown of it.
    pub row: crate::book::report::view::RequestView,
}

/// See the module's page.
#[derive(Debug, Default)]
pub(in crate::book) struct Endings {
    counts: [u64; End::ALL.len()],
    /// Where the look around goes on, and when.
    next: usize,
    due: Option<Instant>,
}

impl Endings {
    pub(in crate::book) fn count(&mut self, end: End) {
        self.counts[end as usize] += 1;
    }

    pub(in crate::book) fn rows(&self) -> Vec<(&'static str, u64)> {
        End::ALL.iter().map(|end| (end.name(), self.counts[*end as usize])).collect()
    }
}

impl<B, W> Book<B, W> {
    /// Once a second: a look at some of the requests. While there are any, there is a next one.
    pub(in crate::book) fn look_around(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        if self.requests.len() == 0 {
            return;
        }
        if self.endings.due.is_none_or(|due| due <= now) {
            let steps = STEPS.max(self.requests.len() / 8);
            let (found, next) = self.requests.round(self.endings.next, steps);
            self.endings.next = next;
            for at in found {
                self.look_at_request(at, now, actions);
            }
            self.endings.due = Some(later(now, EVERY));
        }
        if let Some(due) = self.endings.due {
            self.wake(due);
        }
    }

    fn look_at_request(&mut self, at: u32, now: Instant, actions: &mut Vec<Action<B, W>>) {
        let rules = self.limits.request;
        let request = &mut self.requests[at];
        if request.end.is_some() {
            return;
        }
        let age = now.saturating_duration_since(request.since);
        let end = if request.is_silent(&rules, now) {
            request.end_by_itself(End::Idle, now);
            End::Idle
        } else if !request.old && rules.max_age.is_some_and(|most| age >= most) {
            request.old = true;
            if rules.mode == Mode::Enforce {
                request.end_by_itself(End::Age, now);
            }
            End::Age
        } else {
            return;
        };
        if end == End::Idle || rules.mode == Mode::Enforce {
            self.endings.count(end);
        }
        if end == End::Age && rules.mode == Mode::Observe {
            return;
        }
        let row = self.requests[at].row(self.requests.name(at), &self.limits, now);
        let (mode, tag) = (rules.mode, row.tag.clone());
        actions.push(Action::RequestOver(Box::new(RequestOver { end, mode, tag, age, row })));
    }
}
