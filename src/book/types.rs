//! The nouns of the book; what it says no with is in `verdicts`.

use super::report::Violation;
use super::verdicts::{Overrun, Overstay, Refusal, Warning};
use crate::tag::{Own, Tag};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A pool: one (database, user) pair. An index into the book's table; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u32);

/// A client session, unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl SessionId {
    /// The process id that its client is told and cancels by, where backends change.
    #[must_use]
    pub fn process_id(self) -> u32 {
        (self.0 & 0x7fff_ffff) as u32
    }
}

/// A session's hold on a backend, unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// A queued checkout, unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// Who asks for a lease, and on whose behalf.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The session that asks.
    pub session: SessionId,
    /// The pool it belongs to.
    pub pool: PoolId,
    /// Whose work it is.
    pub tag: Arc<Tag>,
    /// Whether this checkout is for Bursar's own needs at login (parameters to learn): counts for
    /// capacity, not as a lease of the request (B1, B2).
    pub login: bool,
    /// How long it may wait, where that is not for the rules alone to say: a login has `listen.login_timeout` in all.
    pub within: Option<Duration>,
    /// A parked transaction goes on, which began then: no new lease of its request (B2), and it goes before
    /// those that begin.
    pub resumes: Option<Instant>,
    /// Equal for first statements that differ in values only, to guess how long the lease will be; 0 =
    /// not known.
    pub fingerprint: u64,
    /// The start of the first statement's text in lower case, where a class may be recognised by it.
    pub statement: Option<Arc<str>>,
}

/// The answer to a checkout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkout {
    /// A lease on one of the pool's idle backends: take it from the idle store now.
    Idle(LeaseId),
    /// Queued: an [`Action::Grant`] or [`Action::Refuse`] will follow.
    Queued(WaiterId),
    /// Refused at once.
    Refused(Refusal),
}

/// Why a claim may not be made in the name of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection {
    /// The request is another user's work, or another login role's (V3).
    Mixed,
    /// The request was closed after this session was told its id: the tag is stale (budgets.md §2.2).
    Closed,
    /// Its id was used in a way that isolation forbids, again and again (budgets.md §2.4).
    Quarantined {
        /// For how long it is still refused.
        left: Duration,
    },
}

/// What must be done, after unlocking, in order.
#[derive(Debug)]
pub enum Action<B, W> {
    /// Hand a lease to a waiter. With `backend: None` it is on an idle backend, to be taken from
    /// the pool's idle store.
    Grant {
        /// Whom to wake.
        waiter: W,
        /// What it asked for.
        claim: Claim,
        /// The lease.
        lease: LeaseId,
        /// The backend, passed from the last lease or a finished dial.
        backend: Option<B>,
        /// Budgets in `warn` mode that this grant exceeds: to be told as notices.
        warnings: Vec<Warning>,
    },
    /// Tell a waiter that it waited in vain.
    Refuse {
        /// Whom to wake.
        waiter: W,
        /// Why.
        refusal: Refusal,
    },
    /// Open one more backend for this pool; report by `dialled`.
    Dial {
        /// The pool.
        pool: PoolId,
        /// Not before this long from now: zero, or the rest of a backoff that ends before the next
        /// tick would.
        after: Duration,
    },
    /// Put a backend into the pool's idle store.
    Store {
        /// The pool.
        pool: PoolId,
        /// The backend.
        backend: B,
    },
    /// Close a backend that nobody may have again; its slot is already free in the book.
    Close {
        /// The pool.
        pool: PoolId,
        /// The backend.
        backend: B,
    },
    /// Close one idle backend of this pool to make room under `server.max_backends`; report by
    /// `evicted`.
    Evict {
        /// The pool that must give.
        pool: PoolId,
    },
    /// End a session (B10, B11): it tells its client and gives the backend back.
    End {
        /// Which.
        session: SessionId,
        /// The lease meant; a session that has another one by now is left alone.
        lease: LeaseId,
        /// Why.
        why: Overstay,
    },
    /// Cancel what a lease runs (B12, a deadline): its session sends the cancel request and words the
    /// error.
    Cancel {
        /// Which session.
        session: SessionId,
        /// The lease meant.
        lease: LeaseId,
        /// When the statement meant began, as [`Activity::statement`] told; no other one is cancelled.
        statement: Instant,
        /// Why.
        why: Overrun,
    },
    /// A budget in `warn` mode is exceeded by a lease that is held: tell its session.
    Warn {
        /// Which session.
        session: SessionId,
        /// The lease meant.
        lease: LeaseId,
        /// What to tell.
        warning: Warning,
    },
    /// Park the transaction of a lease that has only read, if it still idles.
    Park {
        /// Which session.
        session: SessionId,
        /// The lease meant.
        lease: LeaseId,
    },
    /// A budget that was exceeded, to log.
    Violation(Box<Violation>),
    /// A leak event to log (opened, returned, or reclaimed).
    Leak(Box<super::LeakEvent>),
    /// A request that is over, to log.
    RequestOver(Box<super::RequestOver>),
    /// A deadlock to log, once.
    Deadlock(Box<super::Deadlock>),
    /// A server's breaker has changed its state, to log.
    Breaker(Box<BreakerTurn>),
    /// Ask the server whether these statements wait for locks of their own request; what it says
    /// goes to [`super::Book::locked`].
    AskLocks(Vec<super::Suspect>),
}

/// A change of a server's breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerTurn {
    /// The server.
    pub upstream: Arc<str>,
    /// From what to what, and why.
    pub turn: crate::breaker::Turn,
    /// The last failure since the last success.
    pub error: Option<Arc<str>>,
}

/// What a lease was used for, told at checkin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Transactions finished.
    pub transactions: u64,
    /// Statements (Query, Execute, FunctionCall).
    pub statements: u64,
    /// Time a statement was executing.
    pub active: Duration,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// Parses of named statements that the client sent, where these are shared.
    pub client_parses: u64,
    /// Parses of shared statements that PostgreSQL was sent, for this session or the next.
    pub server_parses: u64,
    /// Binds of shared statements.
    pub binds: u64,
    /// The longest time that it was idle within a transaction, in microseconds: an hour fits, and a lease is
    /// moved about.
    pub gap_us: u32,
    /// How often it ran the statement that it ran most often, of its last few.
    pub repeats: u32,
    /// Process id of its backend; 0 = not known.
    pub backend: u32,
}

/// What a held lease is doing, asked from its session's cell at each tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// What.
    pub state: Doing,
    /// Since when.
    pub since: Instant,
    /// When the transaction began; `None` outside a transaction.
    pub tx_start: Option<Instant>,
    /// Why the lease outlives its transaction; empty if it does not.
    pub pin: &'static str,
    /// When the statement that runs began; `None` = none does. No two statements of a lease that last
    /// a millisecond have begun at the same time.
    pub statement: Option<Instant>,
    /// Whether that is the first one of the lease.
    pub first: bool,
    /// Time in which statements have run on this lease, without the one that runs now.
    pub active: Duration,
    /// Whether the transaction may be parked, while it idles.
    pub parkable: bool,
    /// Since when the client has not taken what is ready for it; `None` = it takes it.
    pub stalled: Option<Instant>,
    /// Since when it has not sent the data of a COPY that waits for it; `None` = it does, or nothing does.
    pub silent: Option<Instant>,
    /// What the client has set itself.
    pub own: Own,
}

impl Activity {
    /// A lease that does this outside a transaction, with nothing else to say of it.
    #[must_use]
    pub fn doing(state: Doing, since: Instant) -> Activity {
        let statement = (state == Doing::Active).then_some(since);
        Activity {
            state,
            since,
            tx_start: None,
            pin: "",
            statement,
            first: false,
            active: Duration::ZERO,
            parkable: false,
            stalled: None,
            silent: None,
            own: Own::default(),
        }
    }
}

/// The states of a held lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// A statement runs.
    Active,
    /// In a transaction, nothing runs.
    IdleInTx,
    /// Kept by a pin or by session mode, outside a transaction, nothing runs.
    Pinned,
    /// Being scrubbed or drained on behalf of nobody.
    Cleaning,
}
