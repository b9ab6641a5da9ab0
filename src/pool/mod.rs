//! The async face of the book: carries out what it decides.
//!
//! [`Pools`] owns the one lock. Under it only pure calls are made; what they return is carried out
//! after unlocking: a lease is handed to its waiter, a backend put into its store, a dial started in
//! a task of its own while its client goes on waiting for *any* backend.
//!
//! | file | what |
//! |---|---|
//! | [`lease`] | a session's hold on a backend, given back by dropping it |
//! | [`cell`] | what others may know of a session and ask of it |
//! | [`wait`] | a queued checkout |
//! | `one` | one pool: its store, its rules, what its backends report |
//! | [`accounts`] | asking PostgreSQL about users |
//! | `actions` | carrying out what the book decided |
//! | `levers` | what the console pulls and sees |
//! | [`janitor`] | deadlines, leaks, idle backends: whatever happens while nobody asks |
//! | `advise` | looking for applications that starve on their own pool; the daily line of advice |
//! | `xids` | asking PostgreSQL whether a transaction that may be leaked has written |
//! | [`limits`] | asking PostgreSQL how many connections it lets in |
//! | `locks` | asking PostgreSQL who waits for a lock of its own request |
//! | [`events`] | leak and deadlock events for the log |
//! | [`view`] | rows for the faces |
//!
//! A mutex and not an actor, because a lease must be given back from `Drop`.

pub mod accounts;
mod actions;
mod advise;
pub mod cell;
pub mod events;
pub mod janitor;
pub mod lease;
mod levers;
pub mod limits;
mod locks;
mod one;
pub mod parking;
pub mod view;
pub mod wait;
mod xids;

use crate::auth::{Passport, Users};
use crate::backend::{Object, Store, Target};
use crate::book::{
    Action, Book, Checkout, Claim, LeaseId, Objection, Outcome, PoolId, Refusal, SessionId, Usage, Warning,
};
use crate::clock;
use crate::config::{Config, Mode};
use crate::metrics::{Isolation, Metrics};
use crate::net::tls::Tls;
use crate::state::fence::Fence;
use crate::state::{self};
use arc_swap::{ArcSwap, ArcSwapOption};
use cell::Cell;
use lease::Lease;
pub use one::{Greeting, NotLetIn, Pool};
use parking::Parking;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use wait::{Waiter, Waiting};

/// Looks at the store for a backend that another thread is just storing.
const PATIENCE: usize = 1000;

/// A pool's name: database and role, as the client has them.
type Name = (Arc<str>, Arc<str>);

/// The answer to [`Pools::checkout`].
pub enum Start {
    /// A lease, and budgets in `warn` mode that it exceeds.
    Ready(Lease, Vec<Warning>),
    /// Queued.
    Wait(Waiting),
    /// Refused.
    Refused(Refusal),
    /// Its request is another user's (V3).
    Mixed,
    /// Its request was closed after the session was told its id: the tag is to be dropped.
    Stale,
    /// Its request is refused for so long.
    Quarantined(Duration),
}

/// Every pool of this process. See the module's page.
pub struct Pools {
    config: ArcSwap<Config>,
    /// Where `config` is, only ever compared: each transaction asks whether it still holds.
    current: AtomicPtr<Config>,
    users: ArcSwap<Users>,
    tls: Arc<ArcSwap<Tls>>,
    directory: ArcSwapOption<accounts::Directory>,
    book: Mutex<Book<Object, Waiter>>,
    pools: RwLock<Vec<Arc<Pool>>>,
    names: RwLock<HashMap<Name, Arc<Pool>>>,
    /// By numbers given out here, so that a fixed seed does no harm.
    cells: Mutex<HashMap<SessionId, Arc<Cell>, foldhash::fast::FixedState>>,
    leaks: Mutex<events::Details>,
    spares: Mutex<locks::Spares>,
    unasked: Mutex<Vec<xids::Open>>,
    saturation: Mutex<crate::book::saturation::Saturation>,
    sizing: limits::Sizing,
    settings: Mutex<state::Table>,
    /// Process counters.
    pub metrics: Arc<Metrics>,
    /// Read buffers.
    pub buffers: crate::net::buffers::Buffers,
    wake: Notify,
    /// When the janitor's next tick is, in nanoseconds since `started`.
    tick_at: AtomicU64,
    started: Instant,
    ids: AtomicU64,
}

/// How long budgets that destroy work have to be in mode warn before they act (budgets.md §2.4).
const WARNED: Duration = Duration::from_secs(24 * 3600);

/// When that time is over: counted from the start of the process, which knows nothing of the one before
/// it, or from the day that the configuration names.
fn armed_from(config: &Config, started: Instant, now: Instant) -> Instant {
    let day = |days: u64| Duration::from_secs(days.saturating_mul(86_400));
    let warned = config.warned_since.map(|days| clock::since_epoch().saturating_sub(day(days)));
    let by_file = warned.map(|warned| now + WARNED.saturating_sub(warned));
    (started + WARNED).min(by_file.unwrap_or(started + WARNED))
}

impl Pools {
    /// No pools yet; they are made as clients ask for them.
    #[must_use]
    pub fn new(config: Arc<Config>, users: Users, tls: Tls, metrics: Arc<Metrics>) -> Arc<Pools> {
        let started = clock::now();
        let tls = Arc::new(ArcSwap::from_pointee(tls));
        let mut book = Book::new(&config);
        book.arm(armed_from(&config, started, started));
        Arc::new(Pools {
            directory: ArcSwapOption::new(accounts::Directory::of(&config, &tls, &metrics, None)),
            book: Mutex::new(book),
            current: AtomicPtr::new(Arc::as_ptr(&config).cast_mut()),
            config: ArcSwap::new(config),
            users: ArcSwap::new(Arc::new(users)),
            tls,
            pools: RwLock::default(),
            names: RwLock::default(),
            cells: Mutex::default(),
            leaks: Mutex::default(),
            spares: Mutex::default(),
            unasked: Mutex::default(),
            saturation: Mutex::default(),
            sizing: limits::Sizing::default(),
            settings: Mutex::default(),
            metrics,
            buffers: crate::net::buffers::Buffers::default(),
            wake: Notify::new(),
            tick_at: AtomicU64::new(u64::MAX),
            started,
            ids: AtomicU64::new(1),
        })
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Whether this is the configuration in force.
    #[must_use]
    pub fn is_current(&self, config: &Arc<Config>) -> bool {
        // Whoever asks keeps its own alive, so no other can be at the same address.
        std::ptr::eq(self.current.load(Ordering::Acquire), Arc::as_ptr(config))
    }

    /// The client roles in force.
    #[must_use]
    pub fn users(&self) -> Arc<Users> {
        self.users.load_full()
    }

    /// Where users are looked up that the configuration does not name.
    #[must_use]
    pub fn directory(&self) -> Option<Arc<accounts::Directory>> {
        self.directory.load_full()
    }

    /// How connections are encrypted; what is in it may change.
    #[must_use]
    pub fn tls(&self) -> &Arc<ArcSwap<Tls>> {
        &self.tls
    }

    /// A number for a new session.
    #[must_use]
    pub fn next_session(&self) -> SessionId {
        SessionId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// The interned settings of this process.
    pub fn settings(&self) -> parking_lot::MutexGuard<'_, state::Table> {
        self.settings.lock()
    }

    /// The pool of a database and a role, made at the first call, for a client that has shown this. `None` = no
    /// such database is configured.
    pub fn pool(
        self: &Arc<Self>,
        database: &str,
        user: &str,
        passport: Option<Passport>,
    ) -> Option<Arc<Pool>> {
        let key = (Arc::from(database), Arc::from(user));
        let known = self.names.read().get(&key).cloned();
        if let Some(pool) = known {
            pool.admit(passport);
            return Some(pool);
        }
        let config = self.config();
        let target = Arc::new(self.target(&config, database, user)?);
        let mut names = self.names.write();
        if let Some(pool) = names.get(&key) {
            pool.admit(passport);
            return Some(pool.clone());
        }
        let mut actions = Vec::new();
        let rules = config.pool_rules(database, user)?;
        let id = self.book.lock().pool(database, user, &target.address, &rules, clock::now(), &mut actions);
        let pool = Arc::new(Pool {
            id,
            database: key.0.clone(),
            user: key.1.clone(),
            lifetime: one::Lifetime::of(&rules),
            store: Store::new(target, config.server.max_backends, rules.reuse),
            fence: ArcSwapOption::new(Fence::of(&rules.tenant_context).map(Arc::new)),
            rules: ArcSwap::new(Arc::new(rules)),
            statements: Mutex::default(),
            parking: Parking::default(),
            tag: Mutex::default(),
            greetings: Mutex::default(),
            reported: Mutex::default(),
            refusal: watch::Sender::new(None),
            backends: Mutex::default(),
            limits: Mutex::default(),
        });
        // Before its first backends are opened.
        pool.admit(passport);
        self.pools.write().push(pool.clone());
        names.insert(key, pool.clone());
        drop(names);
        self.carry_out(actions);
        Some(pool)
    }

    /// The server knows no such user any more: what he has shown lets Bursar in no more.
    pub fn forget_user(&self, user: &str) {
        for pool in self.pools.read().iter().filter(|pool| &*pool.user == user) {
            pool.store.target().forget(user);
        }
    }

    /// Where the backends of a pool are by this configuration.
    fn target(&self, config: &Config, database: &str, user: &str) -> Option<Target> {
        let table = config.database(database)?;
        let password = config.users.get(user).and_then(|user| user.password.as_ref());
        Some(Target::new(&table, database, user, password).over(self.tls.clone(), database))
    }

    fn by_id(&self, id: PoolId) -> Option<Arc<Pool>> {
        self.pools.read().iter().find(|pool| pool.id == id).cloned()
    }

    /// A session has logged in: B18 is asked, and the janitor will know it.
    ///
    /// # Errors
    /// The tenant has as many sessions as it may.
    pub fn login(&self, cell: &Arc<Cell>, tenant: &Arc<str>) -> Result<Option<Warning>, Refusal> {
        let mut book = self.book.lock();
        let warning = book.login(tenant)?;
        book.comes_from(cell.id, cell.instance);
        drop(book);
        self.cells.lock().insert(cell.id, cell.clone());
        Ok(warning)
    }

    /// A session has been greeted: one more login of this pool.
    pub fn logged_in(&self, pool: PoolId) {
        self.book.lock().logged_in(pool);
    }

    /// A session has ended.
    pub fn logout(&self, id: SessionId, tenant: &Arc<str>) {
        self.cells.lock().remove(&id);
        let mut book = self.book.lock();
        book.logout(tenant);
        book.has_left(id, clock::now());
        if let Some(due) = book.hastened() {
            self.expect_tick(due);
        }
    }

    /// Asks for a lease. Never waits itself: see [`Start::Wait`]. `mixed` becomes true if the request is
    /// another user's (V3) and its client is to be warned of that.
    pub fn checkout(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        claim: &Claim,
        now: Instant,
        mixed: &mut bool,
    ) -> Start {
        let mut warnings = Vec::new();
        let mut actions = Vec::new();
        let mut wait = None;
        let mut book = self.book.lock();
        if claim.tag.request.is_some()
            && let Some(objection) = book.objects(claim, now)
        {
            match objection {
                Objection::Closed => return Start::Stale,
                Objection::Quarantined { left } => return Start::Quarantined(left),
                Objection::Mixed if self.refuses_mixed(claim) => return Start::Mixed,
                Objection::Mixed => *mixed = self.config.load().isolation.mode == Mode::Warn,
            }
        }
        let mut answer = book.checkout(now, claim, |_| Waiter::new(&mut wait), &mut warnings, &mut actions);
        if let Some(due) = book.hastened() {
            self.expect_tick(due);
        }
        let preferred = match answer {
            Checkout::Idle(lease) if claim.tag.request.is_some() => book.preferred(lease),
            _ => None,
        };
        drop(book);
        loop {
            if !actions.is_empty() {
                self.carry_out(std::mem::take(&mut actions));
            }
            match answer {
                Checkout::Refused(refusal) => return Start::Refused(refusal),
                Checkout::Queued(id) => {
                    return match wait.take() {
                        Some(receiver) => Start::Wait(Waiting::new(self.clone(), id, receiver)),
                        None => unreachable!("a waiter is made for every queued checkout"),
                    };
                }
                Checkout::Idle(lease) => {
                    if let Some(object) = self.take_idle(pool, preferred) {
                        return Start::Ready(Lease::new(self.clone(), pool.clone(), lease, object), warnings);
                    }
                    answer = self.idle_vanished(pool, lease, claim, |_| Waiter::new(&mut wait), &mut actions);
                }
            }
        }
    }

    /// V3: whether it is refused. If not, it is counted here.
    fn refuses_mixed(&self, claim: &Claim) -> bool {
        let mode = self.config.load().isolation.mode;
        if mode != Mode::Enforce {
            self.metrics.isolation.inc(Isolation::V3);
            if let (Mode::Warn, Some(cell)) = (mode, self.cell(claim.session)) {
                events::isolation(Isolation::V3, &cell, &claim.tag, false);
            }
        }
        mode == Mode::Enforce
    }

    /// An idle backend that the book has promised, the preferred one (by process id) if it is idle; `None` =
    /// the idle ones were dead, and are closed.
    fn take_idle(self: &Arc<Self>, pool: &Pool, preferred: Option<u32>) -> Option<Object> {
        for _ in 0..PATIENCE {
            let object = pool.store.take_idle(preferred);
            if object.is_some() {
                self.tell_lost(pool);
                return object;
            }
            if pool.store.has_lost() {
                return None;
            }
            // Another thread was told to store it and has not done so yet.
            std::thread::yield_now();
        }
        None
    }

    /// The idle backend that a lease was granted on is not there.
    fn idle_vanished(
        &self,
        pool: &Pool,
        lease: LeaseId,
        claim: &Claim,
        waiter: impl FnOnce(crate::book::WaiterId) -> Waiter,
        actions: &mut Vec<Action<Object, Waiter>>,
    ) -> Checkout {
        // One of the lost is this lease's own.
        let lost = pool.store.take_lost().saturating_sub(1);
        let now = clock::now();
        let mut book = self.book.lock();
        for _ in 0..lost {
            book.idle_closed(now, pool.id, actions);
        }
        book.idle_vanished(now, lease, claim, waiter, actions)
    }

    /// Idle backends found dead on the way to a good one.
    fn tell_lost(self: &Arc<Self>, pool: &Pool) {
        if pool.store.has_lost() {
            self.idle_closed(pool, pool.store.take_lost());
        }
    }

    fn idle_closed(self: &Arc<Self>, pool: &Pool, count: usize) {
        let mut actions = Vec::new();
        let mut book = self.book.lock();
        for _ in 0..count {
            book.idle_closed(clock::now(), pool.id, &mut actions);
        }
        drop(book);
        self.carry_out(actions);
    }

    /// A lease ends; called by its `Drop`.
    fn checkin(
        self: &Arc<Self>,
        pool: &Pool,
        now: Instant,
        id: LeaseId,
        back: Option<Object>,
        usage: Usage,
        outcome: Option<Outcome>,
    ) {
        let mut actions = Vec::new();
        let mut book = self.book.lock();
        let idle = book.checkin(now, id, back, usage, outcome, &mut actions);
        // A lease was granted with a deadline.
        if let Some(due) = book.hastened() {
            self.expect_tick(due);
        }
        drop(book);
        if let Some(backend) = idle
            && !pool.store.keep(backend, now)
        {
            self.idle_closed(pool, 1);
        }
        if !actions.is_empty() {
            self.carry_out(actions);
        }
    }

    /// A session keeps its lease beyond the transaction from now on (B17); perhaps with a warning.
    pub fn pinned(&self, lease: LeaseId) -> Option<Warning> {
        self.book.lock().pinned(lease)
    }

    /// Whether a session of this tenant may keep a lease so.
    ///
    /// # Errors
    /// B17 is enforced, and there are as many as may be.
    pub fn may_pin(&self, pool: PoolId, tenant: &str) -> Result<(), Refusal> {
        self.book.lock().may_pin(pool, tenant)
    }

    fn cancel_wait(self: &Arc<Self>, id: crate::book::WaiterId) {
        let mut actions = Vec::new();
        let waiter = self.book.lock().cancel(clock::now(), id, &mut actions);
        drop(waiter);
        self.carry_out(actions);
    }

    /// Wakes the janitor if the book's next tick is before the one it sleeps for.
    fn expect_tick(&self, due: Instant) {
        let due = self.stamp(Some(due));
        if due < self.tick_at.load(Ordering::Relaxed) {
            self.tick_at.store(due, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    fn stamp(&self, at: Option<Instant>) -> u64 {
        at.map_or(u64::MAX, |at| at.saturating_duration_since(self.started).as_nanos() as u64)
    }

    /// The cell of a session.
    #[must_use]
    pub fn cell(&self, id: SessionId) -> Option<Arc<Cell>> {
        self.cells.lock().get(&id).cloned()
    }

    /// Every session's cell.
    #[must_use]
    pub fn cells(&self) -> Vec<Arc<Cell>> {
        self.cells.lock().values().cloned().collect()
    }

    /// A session no longer works for this request (`SET bursar.request_id = ''`).
    pub fn request_ended(&self, id: &str) {
        let mut book = self.book.lock();
        book.request_ended(id, clock::now());
        if let Some(due) = book.hastened() {
            self.expect_tick(due);
        }
    }

    /// The client said that its request is over, for all sessions (`bursar.end_request()`).
    pub fn request_closed(&self, id: &str, now: Instant) {
        let mut book = self.book.lock();
        book.request_closed(id, now);
        if let Some(due) = book.hastened() {
            self.expect_tick(due);
        }
    }

    /// Isolation was violated in the name of a request again and again.
    pub fn quarantine(&self, id: &str, now: Instant) {
        self.book.lock().quarantine(id, now);
    }

    /// Puts a new configuration in force. Pools keep their backends; those whose server, role or
    /// password changed open new ones from now on.
    pub fn reconfigure(self: &Arc<Self>, config: Arc<Config>, users: Users, tls: Tls) {
        let mut actions = Vec::new();
        let now = clock::now();
        let mut book = self.book.lock();
        book.reconfigure(&config, now, &mut actions);
        book.arm(armed_from(&config, self.started, now));
        drop(book);
        for pool in self.pools.read().iter() {
            if let Some(rules) = config.pool_rules(&pool.database, &pool.user) {
                pool.set_rules(rules);
            }
            if let Some(target) = self.target(&config, &pool.database, &pool.user)
                && pool.store.aim(target)
            {
                let address = pool.target().address.clone();
                self.renew(pool);
                self.book.lock().moved(now, pool.id, &address, &mut actions);
            }
        }
        self.users.store(Arc::new(users));
        self.tls.store(Arc::new(tls));
        let old = self.directory.load_full();
        let directory = accounts::Directory::of(&config, &self.tls, &self.metrics, old.as_ref());
        self.directory.store(directory);
        let at = Arc::as_ptr(&config).cast_mut();
        self.config.store(config);
        self.current.store(at, Ordering::Release);
        self.sizing.has_changed();
        self.carry_out(actions);
    }
}
