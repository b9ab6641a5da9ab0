//! The idle backends of one pool and their life cycle, kept by deadpool.
//!
//! deadpool creates, checks before reuse, and forgets; it never queues and never decides. The book
//! says who gets a backend and when to open one, and a busy backend that goes to the next waiter
//! does not come by here at all. Nor does deadpool see a backend that is idle for a moment only: it
//! stays warm, on loan from deadpool, until somebody looks at all the idle ones (the janitor does
//! once a second), because deadpool's way in and out costs more than all else at the end of a lease.
//!
//! So every call is immediate but [`Store::open`], and these of deadpool's features stay unused:
//! waiting (`wait` is zero), its timeouts (a timer each), `resize` (it lets more out than the new
//! size), and its idea of when an object was last used (it counts from checkout; we keep
//! [`Backend::returned_at`]).

use super::dial::{Backend, dial};
use super::error::DialError;
use super::target::Target;
use crate::config::{PoolRules, Reuse};
use crate::net::stream::Quiet;
use arc_swap::ArcSwap;
use deadpool::managed::{self, Metrics, PoolError, QueueMode, RecycleError, RecycleResult, Timeouts};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A backend on loan from its store. Dropping it gives it back as it is; see [`Store::give_back`].
pub type Object = managed::Object<Manager>;

/// Never wait, and set no timer.
const AT_ONCE: Timeouts = Timeouts { wait: Some(Duration::ZERO), create: None, recycle: None };

tokio::task_local! {
    /// The right to dial, and how long it may take. It exists only inside [`Store::open`], so no
    /// other way into the store can ever open a connection.
    static MAY_DIAL: Duration;
}

/// What deadpool asks of us: to open a backend, and whether an idle one may be used again.
#[derive(Debug)]
pub struct Manager {
    target: ArcSwap<Target>,
    /// Backends of older generations are not used again.
    generation: AtomicU64,
    /// Idle backends found unusable at checkout and not yet told of.
    lost: AtomicUsize,
}

/// Why the manager made no backend.
#[derive(Debug)]
pub enum NotCreated {
    /// Nobody has the right to dial here.
    NoTicket,
    /// The dial failed.
    Dial(DialError),
}

impl managed::Manager for Manager {
    /// Boxed, because an object changes hands some ten times between two leases.
    type Type = Box<Backend>;
    type Error = NotCreated;

    async fn create(&self) -> Result<Box<Backend>, NotCreated> {
        let within = MAY_DIAL.try_with(|within| *within).map_err(|_| NotCreated::NoTicket)?;
        // Read before dialling, and before the target: what was opened while either changed is of the old one.
        let generation = self.generation.load(Ordering::Acquire);
        let target = self.target.load_full();
        // Boxed, because deadpool's future is built anew on the stack at every checkout.
        let mut backend = Box::new(Box::pin(dial(&target, within)).await.map_err(NotCreated::Dial)?);
        backend.generation = generation;
        Ok(backend)
    }

    /// Does not wait, so it cannot be cancelled half way. Age is not looked at here, which would
    /// take a clock: an old backend is closed when it is given back, or by the janitor.
    async fn recycle(&self, backend: &mut Box<Backend>, _: &Metrics) -> RecycleResult<NotCreated> {
        self.check(backend).map_err(RecycleError::message)
    }
}

impl Manager {
    /// Whether an idle backend may be used again; one that may not is counted as lost.
    fn check(&self, backend: &mut Backend) -> Result<(), &'static str> {
        let refused = match backend.poke() {
            Quiet::Yes if self.is_current(backend) => return Ok(()),
            Quiet::Yes => {
                backend.say_goodbye();
                "older than RECONNECT"
            }
            Quiet::Bytes => "spoke while idle",
            Quiet::Closed => "closed by the server",
        };
        self.lost.fetch_add(1, Ordering::Relaxed);
        Err(refused)
    }

    fn is_current(&self, backend: &Backend) -> bool {
        backend.generation == self.generation.load(Ordering::Relaxed)
    }
}

/// The idle store of one pool.
#[derive(Debug)]
pub struct Store {
    pool: managed::Pool<Manager>,
    /// Idle, the last one back at the end, and to be handed out before those in deadpool. Where the
    /// last one back is next, these came back after deadpool's; where the first one is, before them, and
    /// there are any only after a dial.
    warm: Mutex<VecDeque<Object>>,
    reuse: Reuse,
}

/// How many backends a store knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Idle and on loan.
    pub open: usize,
    /// Idle.
    pub idle: usize,
}

impl Store {
    /// An empty store for at most `max` backends, idle and on loan.
    ///
    /// `max` is a backstop far from where the book stops, not a limit to work with: room for so
    /// many is allocated at once (about 250 bytes each).
    #[must_use]
    pub fn new(target: Arc<Target>, max: usize, reuse: Reuse) -> Store {
        let target = ArcSwap::new(target);
        let manager = Manager { target, generation: AtomicU64::new(0), lost: AtomicUsize::new(0) };
        let queue = match reuse {
            Reuse::Lifo => QueueMode::Lifo,
            Reuse::RoundRobin => QueueMode::Fifo,
        };
        let pool = managed::Pool::builder(manager).max_size(max).queue_mode(queue).build();
        // `build` refuses only timeouts without a runtime, and there are none.
        let pool = pool.unwrap_or_else(|_| unreachable!("no timeouts are set"));
        Store { pool, warm: Mutex::default(), reuse }
    }

    /// The target of its backends.
    #[must_use]
    pub fn target(&self) -> Arc<Target> {
        self.pool.manager().target.load_full()
    }

    /// Opens backends of another target from now on, if this is another; [`Store::close_all`] ends the others.
    /// Whether it is.
    pub fn aim(&self, target: Target) -> bool {
        let manager = self.pool.manager();
        let other = !manager.target.load().is_like(&target);
        if other {
            manager.target.store(Arc::new(target));
        }
        other
    }

    /// An idle backend that looks alive: the preferred one (by process id), where that is idle and the order
    /// of reuse leaves a choice. Never waits and never dials; the dead ones it meets are closed and counted
    /// for [`Store::take_lost`].
    #[must_use]
    pub fn take_idle(&self, preferred: Option<u32>) -> Option<Object> {
        let mut wanted = preferred.and_then(|pid| self.take_preferred(pid));
        while let Some(mut object) = wanted.take().or_else(|| self.take_warm()) {
            match self.pool.manager().check(&mut object) {
                Ok(()) => return Some(object),
                Err(_) => Store::cut(object),
            }
        }
        self.take_cold()
    }

    /// A backend by its process id, if it is idle.
    fn take_preferred(&self, pid: u32) -> Option<Object> {
        if self.reuse == Reuse::RoundRobin {
            return None;
        }
        let at = |warm: &VecDeque<Object>| warm.iter().rposition(|object| object.pid.unsigned_abs() == pid);
        let mut warm = self.warm.lock();
        if let Some(at) = at(&warm) {
            return warm.remove(at);
        }
        drop(warm);
        if self.pool.status().available == 0 {
            return None;
        }
        // Once a second at most: those that the janitor has looked at are back in deadpool.
        let mut warm = self.warm_up();
        let at = at(&warm)?;
        warm.remove(at)
    }

    fn take_cold(&self) -> Option<Object> {
        // Ready at the first poll: nothing is waited for, recycle is synchronous, and create
        // refuses at once without the right to dial.
        let taken = pin!(self.pool.timeout_get(&AT_ONCE));
        match taken.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(taken) => taken.ok(),
            Poll::Pending => None,
        }
    }

    fn take_warm(&self) -> Option<Object> {
        let mut warm = self.warm.lock();
        match self.reuse {
            Reuse::Lifo => warm.pop_back(),
            Reuse::RoundRobin => warm.pop_front(),
        }
    }

    /// Takes what is idle out of deadpool, which opens nothing while it has any.
    fn warm_up(&self) -> MutexGuard<'_, VecDeque<Object>> {
        let mut warm = self.warm.lock();
        while let Some(object) = self.take_cold() {
            match self.reuse {
                Reuse::Lifo => warm.push_front(object),
                Reuse::RoundRobin => warm.push_back(object),
            }
        }
        warm
    }

    /// Gives deadpool what is warm, for a look at all that is idle. While the guard lives, nothing
    /// gets warm.
    fn cool(&self) -> MutexGuard<'_, VecDeque<Object>> {
        let mut warm = self.warm.lock();
        if self.reuse == Reuse::RoundRobin && !warm.is_empty() {
            // They are next, and deadpool has no way in at that end.
            drop(warm);
            warm = self.warm_up();
        }
        // A dropped object goes back to deadpool: the longest idle first, as deadpool keeps them.
        warm.drain(..).for_each(drop);
        warm
    }

    /// A new backend, opened within `within`; those that are idle stay so. Dropped half way, it gives
    /// the dial up and leaves nothing behind.
    ///
    /// # Errors
    /// [`DialError`]; `NoRoom` if `max` are open.
    pub async fn open(&self, within: Duration) -> Result<Object, DialError> {
        loop {
            drop(self.warm_up());
            let object = match MAY_DIAL.scope(within, self.pool.timeout_get(&AT_ONCE)).await {
                Ok(object) => object,
                Err(PoolError::Backend(NotCreated::Dial(error))) => return Err(error),
                Err(_) => return Err(DialError::NoRoom),
            };
            if Object::metrics(&object).recycle_count == 0 {
                return Ok(object);
            }
            // It came back between the two steps, and is in nobody's way where the others are.
            self.warm.lock().push_back(object);
        }
    }

    /// Whether a backend was dialled since the last [`Store::close_all`].
    #[must_use]
    pub fn is_current(&self, backend: &Backend) -> bool {
        self.pool.manager().is_current(backend)
    }

    /// Puts a backend that is fit for the next session into the store, unless its time has come.
    /// Returns whether it was stored; if not, it is closed.
    pub fn give_back(&self, object: Object, now: Instant, rules: &PoolRules) -> bool {
        if object.expired(now, rules.lifetime) {
            Store::discard(object);
            return false;
        }
        self.keep(object, now)
    }

    /// [`Store::give_back`] of a backend whose age has been looked at.
    pub fn keep(&self, mut object: Object, now: Instant) -> bool {
        if !self.pool.manager().is_current(&object) {
            Store::discard(object);
            return false;
        }
        object.returned_at = now;
        if self.reuse == Reuse::Lifo {
            self.warm.lock().push_back(object);
        }
        true
    }

    /// Says goodbye to a backend with nothing outstanding and closes it.
    pub fn discard(object: Object) {
        Object::take(object).close();
    }

    /// Closes a backend whatever it is in the middle of, without a word: a Terminate might complete a
    /// message that was half sent, and PostgreSQL would run it. At EOF it rolls back.
    pub fn cut(object: Object) {
        drop(Object::take(object));
    }

    /// Closes the idle backends that are dead, of an older generation, past their lifetime, or
    /// idle for longer than `rules.idle_timeout` (of these, `rules.min_idle` may stay, the ones
    /// used last). Returns how many. For the janitor.
    pub fn close_expired(&self, now: Instant, rules: &PoolRules) -> usize {
        let mut spare = self.status().idle.saturating_sub(rules.min_idle);
        let manager = self.pool.manager();
        // deadpool keeps them in the order they came back, the longest idle first.
        self.close_where(|backend| {
            let idle = now.saturating_duration_since(backend.returned_at);
            let unfit = backend.poke() != Quiet::Yes || !manager.is_current(backend);
            let close = unfit
                || backend.expired(now, rules.lifetime)
                || (spare > 0 && rules.idle_timeout.is_some_and(|timeout| idle >= timeout));
            spare -= usize::from(close && spare > 0);
            close
        })
    }

    /// Closes the backend that has been idle longest, to make room elsewhere. Returns whether
    /// there was one.
    pub fn evict_one(&self) -> bool {
        let mut found = false;
        self.close_where(|_| !std::mem::replace(&mut found, true)) == 1
    }

    /// RECONNECT: closes every idle backend, and lets those on loan and in the making be closed as
    /// they come back. Returns how many it closed now.
    pub fn close_all(&self) -> usize {
        self.pool.manager().generation.fetch_add(1, Ordering::Release);
        self.close_where(|_| true)
    }

    /// [`Store::close_all`], unless there has been one since a backend of this generation was dialled: `None`.
    pub fn close_generation(&self, generation: u64) -> Option<usize> {
        let next = generation.wrapping_add(1);
        let (own, order) = (&self.pool.manager().generation, Ordering::Relaxed);
        own.compare_exchange(generation, next, order, order).ok()?;
        Some(self.close_where(|_| true))
    }

    /// Counts [`Store::close_all`]: a backend of an older generation is closed when it comes back.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.pool.manager().generation.load(Ordering::Relaxed)
    }

    /// How many idle backends were found unusable by [`Store::take_idle`] or [`Store::open`] since
    /// this was last asked: they are closed, and the book does not know yet.
    #[must_use]
    pub fn take_lost(&self) -> usize {
        self.pool.manager().lost.swap(0, Ordering::Relaxed)
    }

    /// Whether [`Store::take_lost`] has something to tell.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.pool.manager().lost.load(Ordering::Relaxed) > 0
    }

    /// How many there are now.
    #[must_use]
    pub fn status(&self) -> Status {
        let warm = self.warm.lock();
        let status = self.pool.status();
        Status { open: status.size, idle: status.available + warm.len() }
    }

    /// Takes idle backends out and closes them once deadpool's lock is released.
    fn close_where(&self, mut doomed: impl FnMut(&Backend) -> bool) -> usize {
        let warm = self.cool();
        let removed = self.pool.retain(|backend, _| !doomed(backend)).removed;
        drop(warm);
        let count = removed.len();
        removed.into_iter().for_each(|backend| backend.close());
        count
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
