//! What others may know of a session and ask of it: the one thing it shares.
//!
//! A session owns everything else alone. It writes here what it is doing, at most a few times a
//! transaction; the janitor, the console and cancel requests read it. Orders go the other way: they
//! are left here and the session is woken.

mod cancel;
mod signs;

pub use cancel::{Begun, CancelTicket, OwnLock};

use super::view::{LeaseDetail, StatementTrace};
use crate::backend::trail::{Trail, fingerprint};
use crate::backend::{Backend, CancelHandle};
use crate::book::{Activity, Doing, LeaseId, Overrun, Overstay, SessionId, Warning};
use crate::statements::Count;
use crate::tag::{Own, Tag};
use crate::wire::startup::Replication;
use atomic_waker::AtomicWaker;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

/// What a session is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// The client wants its queued checkout cancelled: ERROR 57014.
    CancelWait,
    /// End with FATAL 25P04 or 25P03, if it still holds this lease.
    End(LeaseId, Overstay),
    /// Cancel the statement that began then, if it still holds this lease: ERROR 57014.
    Cancel(LeaseId, Instant, Overrun),
    /// Send a notice, if it still holds this lease.
    Warn(LeaseId, Warning),
    /// Give the backend back, if it still holds this lease and has only read in its transaction.
    Park(LeaseId),
    /// End with FATAL 57P01 now.
    Kill,
    /// The same, because the session keeps mixing what is to be kept apart.
    Expel,
    /// End with FATAL 57P01 as soon as no transaction is open.
    Drain,
    /// A cancel that was under way has been delivered: the backend may be given back.
    CancelDone,
}

/// Where a session is between accept and close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not logged in yet.
    Login,
    /// No lease and no wish for one.
    Idle,
    /// Queued for a lease.
    Waiting,
    /// In a transaction that has given its backend back.
    Parked,
    /// Holds a lease that does this.
    Leased(Doing),
}

impl State {
    /// As in `SHOW CLIENTS`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Login => "login",
            State::Idle => "idle",
            State::Waiting => "waiting",
            State::Parked => "parked",
            State::Leased(Doing::Active | Doing::Cleaning) => "active",
            State::Leased(Doing::IdleInTx) => "idle_in_tx",
            State::Leased(Doing::Pinned) => "pinned",
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Cell {
    /// The session.
    pub id: SessionId,
    /// Database asked for.
    pub database: Arc<str>,
    /// User name as sent.
    pub user: Arc<str>,
    /// Application name at login.
    pub application: Arc<str>,
    /// Client address; `unix(PID)` on a Unix socket.
    pub client: Arc<str>,
    /// Its TLS, if it has one.
    pub protection: Option<crate::net::tls::Protection>,
    /// A replication connection, and of what kind.
    pub replication: Replication,
    /// Its instance of an application: a hash of [`Cell::host`], the application name and the role.
    pub instance: u64,
    /// When it connected.
    pub connected: Instant,
    /// Names of shared prepared statements it has.
    pub prepared: Count,
    waker: AtomicWaker,
    ordered: AtomicBool,
    orders: Mutex<Vec<Order>>,
    /// When a statement has ended while more were outstanding, in nanoseconds since `connected`.
    passed: AtomicU64,
    /// Since when the client has not taken what is ready for it, likewise; 0 = it takes it.
    stalled: AtomicU64,
    /// Since when it has not sent the data of a COPY, likewise; 0 = none waits for it.
    silent: AtomicU64,
    /// Its transaction may be parked, when it is idle.
    parkable: AtomicBool,
    /// A cancel request is on its way to its backend: what the session reads with each message.
    cancelling: AtomicBool,
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    state: State,
    since: Instant,
    tag: Arc<Tag>,
    /// When it last asked for something.
    requested: Option<Instant>,
    /// How often it asked anew, and how often that was at once ([`AT_ONCE`]).
    taken: u64,
    quick: u64,
    link: Option<Link>,
    /// The lease it held last, or holds, and its backend's process id: a lease that ends is still
    /// reported on.
    last: Option<(LeaseId, i32)>,
}

/// The lease a session holds at this moment.
#[derive(Debug)]
struct Link {
    lease: LeaseId,
    cancel: Arc<CancelHandle>,
    trail: Box<Trail>,
    tx_start: Option<Instant>,
    /// Rarely any: a cell is kept small.
    own: Option<Box<Own>>,
    pin: &'static str,
    active: Duration,
    statements: u64,
    /// The longest time idle in a transaction so far.
    gap: Duration,
    /// The backend works on something Bursar injected: a cancel must not hit it.
    injected: bool,
    /// Cancel requests on their way to the backend.
    cancels: u32,
    /// What runs is cancelled for this.
    own_lock: Option<Box<OwnLock>>,
}

impl Link {
    fn worked(&self) -> Worked {
        Worked {
            active: self.active,
            statements: self.statements,
            gap: self.gap,
            repeats: self.trail.repeats(self.statements),
        }
    }
}

fn boxed(own: Own) -> Option<Box<Own>> {
    (own != Own::default()).then(|| Box::new(own))
}

/// What a lease came to, told when it is unlinked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Worked {
    /// Time a statement was executing.
    pub active: Duration,
    /// Statements started.
    pub statements: u64,
    /// The longest time that it was idle in a transaction.
    pub gap: Duration,
    /// How often the statement ran that ran most often, of the last ones.
    pub repeats: u32,
}

impl Cell {
    /// A session that has just logged in.
    #[must_use]
    pub fn new(
        id: SessionId,
        (database, user, application): (Arc<str>, Arc<str>, Arc<str>),
        client: Arc<str>,
        connected: Instant,
    ) -> Cell {
        let instance = signs::instance(&client, &application, &user);
        Cell {
            id,
            instance,
            database,
            user,
            application,
            client,
            protection: None,
            replication: Replication::No,
            connected,
            prepared: Count::default(),
            waker: AtomicWaker::new(),
            ordered: AtomicBool::new(false),
            orders: Mutex::new(Vec::new()),
            passed: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            silent: AtomicU64::new(0),
            parkable: AtomicBool::new(false),
            cancelling: AtomicBool::new(false),
            live: Mutex::new(Live {
                state: State::Login,
                since: connected,
                tag: Arc::new(Tag::default()),
                requested: None,
                taken: 0,
                quick: 0,
                link: None,
                last: None,
            }),
        }
    }

    /// Leaves an order and wakes the session.
    pub fn order(&self, order: Order) {
        let mut orders = self.orders.lock();
        if !orders.contains(&order) {
            orders.push(order);
        }
        drop(orders);
        self.ordered.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Orders left since the last call.
    #[must_use]
    pub fn take_orders(&self) -> Vec<Order> {
        if !self.ordered.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *self.orders.lock())
    }

    /// Whether orders wait.
    #[must_use]
    pub fn has_orders(&self) -> bool {
        self.ordered.load(Ordering::Acquire)
    }

    /// Registers the task to be woken by an order.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// The session waits for a lease, or is idle again.
    pub fn set_waiting(&self, waiting: bool, tag: &Arc<Tag>, now: Instant) {
        let mut live = self.live.lock();
        if waiting {
            live.take(now);
        }
        live.state = if waiting { State::Waiting } else { State::Idle };
        live.since = now;
        if waiting {
            live.requested = Some(now);
        }
        if !Arc::ptr_eq(&live.tag, tag) {
            live.tag = tag.clone();
        }
    }

    /// The tags have changed while no lease is held.
    pub fn tagged(&self, tag: &Arc<Tag>) {
        self.live.lock().tag = tag.clone();
    }

    /// A lease begins; a first statement is about to be sent, behind something of Bursar's own if
    /// `injected`.
    pub fn link(&self, lease: LeaseId, backend: &mut Backend, tag: &Arc<Tag>, injected: bool, now: Instant) {
        let mut trail = backend.trail.take().unwrap_or_default();
        trail.clear();
        let mut live = self.live.lock();
        live.take(now);
        live.state = State::Leased(Doing::Active);
        live.since = now;
        live.requested = Some(now);
        if !Arc::ptr_eq(&live.tag, tag) {
            live.tag = tag.clone();
        }
        live.last = Some((lease, backend.cancel.pid));
        // What was on its way to the backend before hits nobody.
        self.cancelling.store(false, Ordering::Release);
        live.link = Some(Link {
            lease,
            cancel: backend.cancel.clone(),
            trail,
            tx_start: None,
            own: boxed(tag.own()),
            pin: "",
            active: Duration::ZERO,
            statements: 0,
            gap: Duration::ZERO,
            injected,
            cancels: 0,
            own_lock: None,
        });
    }

    /// The lease ends, unless a cancel request is on its way to its backend: then `None`, and
    /// [`Order::CancelDone`] follows. A signal must never hit somebody else's statement.
    pub fn unlink(&self, backend: &mut Backend, now: Instant) -> Option<Worked> {
        let mut live = self.live.lock();
        if live.link.as_ref().is_some_and(|link| link.cancels > 0) {
            return None;
        }
        let since = live.since;
        let was_active = live.state == State::Leased(Doing::Active);
        live.state = State::Idle;
        live.since = now;
        let Some(link) = live.link.take() else { return Some(Worked::default()) };
        drop(live);
        let last = if was_active { now.saturating_duration_since(since) } else { Duration::ZERO };
        let mut worked = link.worked();
        worked.active += last;
        backend.trail = Some(link.trail);
        Some(worked)
    }

    /// Whether a cancel request is on its way to the session's backend.
    #[must_use]
    pub fn has_cancels(&self) -> bool {
        self.cancelling.load(Ordering::Acquire)
    }

    /// The lease ends with its backend closed: whatever is on its way there hits nobody.
    pub fn abandon(&self, now: Instant) -> Worked {
        let mut live = self.live.lock();
        live.state = State::Idle;
        live.since = now;
        let link = live.link.take();
        link.map_or_else(Worked::default, |link| link.worked())
    }

    /// A statement with this text (its first bytes will do) is being sent.
    pub fn statement(&self, text: &[u8], now: Instant) {
        let mut live = self.live.lock();
        let mut gap = Duration::ZERO;
        if live.state != State::Leased(Doing::Active) {
            if live.state == State::Leased(Doing::IdleInTx) {
                gap = now.saturating_duration_since(live.since);
            }
            live.state = State::Leased(Doing::Active);
            live.since = now;
        }
        live.requested = Some(now);
        if let Some(link) = &mut live.link {
            link.gap = link.gap.max(gap);
            link.trail.push(text, now);
            link.statements += 1;
            link.tx_start.get_or_insert(now);
        }
    }

    /// A statement has ended, and what runs now is the next one of those sent before.
    #[inline]
    pub fn passed(&self, now: Instant) {
        let since = now.saturating_duration_since(self.connected).as_nanos() as u64;
        self.passed.store(since, Ordering::Relaxed);
    }

    /// What the client has set itself has changed while it holds a lease.
    pub fn bound(&self, own: Own) {
        if let Some(link) = &mut self.live.lock().link {
            link.own = boxed(own);
        }
    }

    /// The backend is ready for the next statement: in a transaction, or kept for `pin`.
    pub fn ready(&self, in_transaction: bool, pin: &'static str, now: Instant) {
        let mut live = self.live.lock();
        let since = live.since;
        let was_active = live.state == State::Leased(Doing::Active);
        live.state = State::Leased(if in_transaction { Doing::IdleInTx } else { Doing::Pinned });
        live.since = now;
        let Some(link) = &mut live.link else { return };
        if was_active {
            link.active += now.saturating_duration_since(since);
        }
        link.pin = pin;
        link.own_lock = None;
        if !in_transaction {
            link.tx_start = None;
        }
    }

    /// The backend finished what it was doing and the lease is about to end.
    pub fn finished(&self, now: Instant) {
        let mut live = self.live.lock();
        let since = live.since;
        let was_active = live.state == State::Leased(Doing::Active);
        if let Some(link) = &mut live.link
            && was_active
        {
            link.active += now.saturating_duration_since(since);
        }
        live.state = State::Leased(Doing::Cleaning);
        live.since = now;
    }

    /// Whether the backend works on something of Bursar's own, which a cancel must not hit.
    pub fn set_injected(&self, injected: bool) {
        if let Some(link) = &mut self.live.lock().link {
            link.injected = injected;
        }
    }

    /// What the lease is doing, if the session still holds it.
    #[must_use]
    pub fn activity(&self, lease: LeaseId) -> Option<Activity> {
        let live = self.live.lock();
        let link = live.link.as_ref().filter(|link| link.lease == lease)?;
        let State::Leased(state) = live.state else { return None };
        Some(self.activity_of(&live, link, state))
    }

    fn activity_of(&self, live: &Live, link: &Link, state: Doing) -> Activity {
        let statement = self.statement_of(live);
        let since = |at: &AtomicU64| {
            let nanos = Some(at.load(Ordering::Relaxed)).filter(|nanos| *nanos > 0)?;
            Some(self.connected + Duration::from_nanos(nanos))
        };
        Activity {
            parkable: self.is_parkable(),
            stalled: since(&self.stalled),
            silent: since(&self.silent),
            tx_start: link.tx_start,
            pin: link.pin,
            statement,
            first: link.statements <= 1,
            active: link.active,
            own: link.own.as_deref().copied().unwrap_or_default(),
            ..Activity::doing(state, live.since)
        }
    }

    /// When the statement that runs began.
    fn statement_of(&self, live: &Live) -> Option<Instant> {
        let passed = self.connected + Duration::from_nanos(self.passed.load(Ordering::Relaxed));
        (live.state == State::Leased(Doing::Active)).then(|| live.since.max(passed))
    }

    /// When the statement that runs began; `None` = none does.
    #[must_use]
    pub fn runs_since(&self) -> Option<Instant> {
        self.statement_of(&self.live.lock())
    }

    /// State, tag, lease and backend pid, for views.
    #[must_use]
    pub fn glance(&self) -> (State, Arc<Tag>, Option<LeaseId>, i32) {
        let live = self.live.lock();
        let link = live.link.as_ref();
        (live.state, live.tag.clone(), link.map(|link| link.lease), link.map_or(0, |link| link.cancel.pid))
    }

    /// When the session last asked for something; `None` = not yet.
    #[must_use]
    pub fn requested(&self) -> Option<Instant> {
        self.live.lock().requested
    }

    /// The backend of this lease, if it is the last one the session had.
    #[must_use]
    pub fn backend_of(&self, lease: LeaseId) -> Option<i32> {
        self.live.lock().last.filter(|(last, _)| *last == lease).map(|(_, pid)| pid)
    }

    /// The live detail of the lease it holds.
    #[must_use]
    pub fn detail(&self, with_text: bool, now: Instant) -> Option<LeaseDetail> {
        let live = self.live.lock();
        let link = live.link.as_ref()?;
        let State::Leased(state) = live.state else { return None };
        let running =
            if state == Doing::Active { now.saturating_duration_since(live.since) } else { Duration::ZERO };
        let statements = link.trail.iter().map(|(text, at)| StatementTrace {
            fingerprint: format!("{:016x}", fingerprint(text)),
            ago: now.saturating_duration_since(at),
            text: with_text.then(|| String::from_utf8_lossy(text).into_owned()),
        });
        Some(LeaseDetail {
            lease: link.lease,
            session: self.id,
            backend_pid: link.cancel.pid,
            activity: self.activity_of(&live, link, state),
            active: link.active + running,
            cancels: link.cancels,
            application: self.application.clone(),
            client: self.client.clone(),
            statements: statements.collect(),
        })
    }
}
