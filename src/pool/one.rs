//! One pool: the backends of one (database, user), as far as the book does not decide.

use super::parking::Parking;
use crate::auth::Passport;
use crate::backend::{AuthFault, Backend, CancelHandle, Stance, Store, Target};
use crate::book::PoolId;
use crate::config::PoolRules;
use crate::state::fence::Fence;
use crate::state::{Set, SetKey};
use crate::statements;
use crate::tag::Tag;
use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What a client is told of a server at login.
#[derive(Clone)]
pub struct Greeting {
    /// ParameterStatus messages, as they are sent.
    pub statuses: Bytes,
    /// What they say of the server.
    pub stance: Stance,
}

/// Greetings remembered for one pool.
const MAX_GREETINGS: usize = 1_000;

/// The pool of one (database, user).
pub struct Pool {
    /// Its number in the book.
    pub id: PoolId,
    /// Database as the client names it.
    pub database: Arc<str>,
    /// Role as the client names it.
    pub user: Arc<str>,
    pub(super) rules: ArcSwap<PoolRules>,
    pub(super) fence: ArcSwapOption<Fence>,
    pub(super) lifetime: Lifetime,
    pub(super) store: Store,
    /// The prepared statements that its sessions share.
    pub statements: Mutex<statements::Table>,
    /// What its sessions share about parked transactions.
    pub parking: Parking,
    /// What the tags of the last session came to at its login: those of most others come to the same.
    pub tag: Mutex<Arc<Tag>>,
    pub(super) greetings: Mutex<HashMap<SetKey, Greeting>>,
    /// What the last backend that was opened reported.
    pub(super) reported: Mutex<Vec<(Bytes, Bytes)>>,
    /// Why we were last not let in by the server, for logins that wait for a first backend.
    pub(super) refusal: watch::Sender<Option<NotLetIn>>,
    pub(super) backends: Mutex<Vec<Opened>>,
    pub(super) limits: Mutex<super::limits::Known>,
}

/// A backend that was opened, and perhaps is still there.
pub(super) struct Opened {
    pub(super) cancel: Weak<CancelHandle>,
    pub(super) connected: Instant,
    /// The store's when it was opened.
    pub(super) generation: u64,
    /// Shared statements it has.
    pub(super) prepared: statements::Count,
}

/// `rules.lifetime` for the end of every lease, where all the rules would cost more to look at: in
/// nanoseconds, the highest number for off.
pub(super) struct Lifetime(AtomicU64);

impl Lifetime {
    pub(super) fn of(rules: &PoolRules) -> Lifetime {
        Lifetime(AtomicU64::new(nanos(rules)))
    }

    /// Whether a backend's time is over.
    pub(super) fn is_over(&self, backend: &Backend, now: Instant) -> bool {
        let nanos = self.0.load(Ordering::Relaxed);
        let age = now.saturating_duration_since(backend.connected).as_nanos() as u64;
        // No backend's own lifetime is shorter than nine tenths of the pool's.
        age >= nanos / 10 * 9 && backend.expired(now, Some(Duration::from_nanos(nanos)))
    }
}

fn nanos(rules: &PoolRules) -> u64 {
    rules.lifetime.and_then(|lifetime| u64::try_from(lifetime.as_nanos()).ok()).unwrap_or(u64::MAX)
}

/// Why a role is not let in by the server; waiting would not change it.
#[derive(Debug, Clone)]
pub enum NotLetIn {
    /// The server says so: the body of its ErrorResponse.
    Said(Bytes),
    /// There is nothing to prove the role with, or not by what the server asks for.
    Unproved(AuthFault),
}

impl Pool {
    /// Its client has shown this.
    pub(super) fn admit(&self, passport: Option<Passport>) {
        if let Some(passport) = passport {
            self.store.target().admit(&self.user, passport);
        }
    }

    /// Puts new rules in force.
    pub(super) fn set_rules(&self, rules: PoolRules) {
        self.lifetime.0.store(nanos(&rules), Ordering::Relaxed);
        self.fence.store(Fence::of(&rules.tenant_context).map(Arc::new));
        self.rules.store(Arc::new(rules));
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Arc<PoolRules> {
        self.rules.load_full()
    }

    /// What its sessions' rows are fenced by, if anything.
    #[must_use]
    pub fn fence(&self) -> Option<Arc<Fence>> {
        self.fence.load_full()
    }

    /// Where its backends are.
    #[must_use]
    pub fn target(&self) -> Arc<Target> {
        self.store.target()
    }

    /// What to tell a client with these settings at login, if a backend has been asked before.
    #[must_use]
    pub fn greeting(&self, settings: &Set) -> Option<Greeting> {
        self.greetings.lock().get(&settings.key()).cloned()
    }

    /// Remembers what a backend reported with these settings, for as long as somebody has them.
    pub fn learn_greeting(&self, settings: &Set, greeting: Greeting) {
        let mut greetings = self.greetings.lock();
        if greetings.len() >= MAX_GREETINGS {
            greetings.retain(|key, _| key.is_in_use());
        }
        if greetings.len() < MAX_GREETINGS {
            greetings.insert(settings.key(), greeting);
        }
    }

    /// A backend was opened that has reported these parameters. If the one before had others, it was of another
    /// server, or this one has changed: what logins are told is asked for anew.
    pub(super) fn hear(&self, parameters: &[(Bytes, Bytes)]) {
        let mut reported = self.reported.lock();
        if *reported != parameters {
            *reported = parameters.to_vec();
            self.greetings.lock().clear();
        }
    }

    /// Tells logins that wait for a first backend why there will be none, and those that come while its door is
    /// closed.
    pub(super) fn not_let_in(&self, why: NotLetIn) {
        self.refusal.send_replace(Some(why));
    }

    /// What was said before is no reason any more. Nobody who waits is told.
    pub(super) fn let_in(&self) {
        self.refusal.send_if_modified(|why| {
            *why = None;
            false
        });
    }

    /// Tells that the server does not let us in.
    #[must_use]
    pub fn refusals(&self) -> watch::Receiver<Option<NotLetIn>> {
        let mut receiver = self.refusal.subscribe();
        receiver.mark_unchanged();
        receiver
    }
}
