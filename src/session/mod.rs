//! One client session: handshake → tag → serve → close.
//!
//! ```text
//!                                    ┌──── an idle backend ────┐
//!   accept ─▶ handshake ─▶ ┌ Unlinked ┴▶ Waiting ────lease──────▶ Linked ┐ ─▶ closed
//!                          └◀──────── release (Z with status I) ────────┘
//! ```
//!
//! One task owns the client's socket, the tracker, the tags and, while it holds one, the lease. It
//! moves bytes both ways itself (`relay`); there is no channel and no second task on the path of a
//! query.
//!
//! | file | what |
//! |---|---|
//! | [`handshake`] | the first packets, authentication, the greeting |
//! | `serve` | the only loop: what happens after each event of the relay |
//! | `queue` | waiting for a backend |
//! | `relay` | spans between client and leased backend, both ways, in one poll |
//! | `up`, `down` | what to do with each client message, each server message |
//! | [`message`] | what one client message shows by itself |
//! | [`virtual_tx`] | the transaction the client sees, where its backend's is another one |
//! | `transaction` | what that means for messages and leases |
//! | `abort` | a transaction is taken from a client that stays |
//! | [`tracker`] | the op queue |
//! | `named` | what becomes of named statements where they are shared |
//! | [`locals`], `answers` | prepared statements that are answered here, and the answers |
//! | `overrun` | statements that are over their budget: cancelled, in whose words |
//! | [`passthrough`] | a replication connection, outside the pools |
//! | `park` | a transaction that has only read gives its backend back while its client is silent |
//! | `policy` | what a session may leave on a backend |
//! | `fence` | the tenant context of row-level security: given with a lease, taken back after it |
//! | `lend` | that context for a segment that is a transaction of its own |
//! | `settings` | what a session sets, resets and leaves: noted, asked for, carried on |
//! | `stall` | clients that do not take their results |
//! | `private` | Bursar's own words with a backend: questions, rollback, scrub |
//! | `wind_up` | what is left to do when the client has gone |
//! | [`cancel`] | cancel requests to the backend a session holds *now*, or nowhere |
//! | [`reply`] | the one table of what Bursar says |
//! | [`registry`] | the sessions of this process |

mod abort;
mod answers;
pub mod cancel;
mod claim;
mod down;
mod fence;
pub mod handshake;
mod lend;
pub mod locals;
pub mod message;
mod named;
mod overrun;
mod park;
pub mod passthrough;
mod policy;
mod portals;
mod private;
mod queue;
pub mod registry;
mod relay;
pub mod reply;
mod serve;
mod settings;
mod shapes;
#[cfg(test)]
mod sizes_tests;
mod stall;
mod tenant_keys;
pub mod tracker;
mod transaction;
mod up;
mod usual;
pub mod virtual_tx;
mod wind_up;

use crate::backend::Stance;
use crate::book::Warning;
use crate::config::{Config, PoolMode, PoolRules, Reset};
use crate::net::lane::Lane;
use crate::net::readable::Readable;
use crate::pool::cell::Cell;
use crate::pool::lease::Lease;
use crate::pool::wait::Waiting;
use crate::pool::{Pool, Pools};
use crate::state::Set;
use crate::state::fence::{Context, Fence};
use crate::statements::Planner;
use crate::statements::session::Statements;
use crate::tag::{Tag, Tags};
use crate::wire::error::Report;
use crate::wire::sql::scan::Traces;
use bytes::BytesMut;
use locals::Locals;
use settings::Changes;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::AsyncWrite;
use tracker::Tracker;
use usual::Usual;
use virtual_tx::VirtualTx;

/// What a session needs of its client's socket.
pub trait Socket: Readable + AsyncWrite + Unpin + Send {}
impl<T: Readable + AsyncWrite + Unpin + Send> Socket for T {}

/// A logged-in session. See the module's page.
pub struct Session<S> {
    pools: Arc<Pools>,
    pool: Arc<Pool>,
    config: Arc<Config>,
    cell: Arc<Cell>,
    suffix: Option<Arc<str>>,
    tags: Tags,
    /// The settings of its start-up packet, to which a RESET goes back.
    startup: Set,
    /// The settings it has, as of the end of its last lease.
    settings: Set,
    /// Settings a backend of its had that cut nothing short ([`crate::state::text::is_hasty`]).
    unhurried: Set,
    mode: PoolMode,
    reset: Reset,
    /// Shared statements a backend may have; 0: named statements are the backend's own.
    max_prepared: usize,
    /// A BEGIN waits for the first statement.
    lazy_begin: bool,
    /// What of which settings prepared statements depend on.
    planner: (Set, Planner),
    policy: policy::Masks,
    /// What tells row-level security whose rows to show.
    fence: Option<Arc<Fence>>,
    /// Not everybody may have a lease.
    guarded: bool,
    /// How often it has mixed what is to be kept apart.
    violations: u8,
    /// What its client has been told of the server.
    told: Stance,
    /// After one lease in so many its backend is looked at (V4); 0: after none.
    verify: u32,
    /// Whether its transaction may be parked.
    park: park::Watch,
    /// Classes are recognised by first statements.
    reads_statements: bool,
    /// The fingerprint of the last lease's first statement.
    first: claim::First,
    /// The last Query, if it is worth remembering; and whether the one at hand is the same but for numbers.
    usual: Option<Box<Usual>>,
    is_usual: bool,

    /// When something was last read from either side: one look at the clock a wake-up.
    now: Instant,
    client: S,
    /// From the client to its backend.
    up: Stretch,
    /// From the backend to the client.
    down: Stretch,
    /// What was found in the next client message, which waits for a backend.
    glanced: Option<Glance>,
    /// Its place in the queue for a backend, and for whose work.
    queued: Option<(Waiting, Arc<Tag>)>,
    tracker: Tracker,
    tx: VirtualTx,
    statements: Statements,
    locals: Locals,
    lease: Option<Lease>,
    linked: Linked,
    /// The last request that it was told is another user's too.
    mixed: Option<Arc<str>>,
    /// What the client has been warned of.
    warned: Option<Box<Warned>>,
    /// Replies of the extended protocol that were made here wait for a Flush or Sync, as PostgreSQL's
    /// would.
    unflushed: BytesMut,
    /// To end once no transaction is open.
    draining: bool,
    /// The client does not take what is staged for it.
    stalled: bool,
    /// A COPY waits for the client, which has sent all it has for now.
    silent: bool,
    /// Made-up replies on their way from the tracker to the lane.
    scratch: BytesMut,
}

/// For which request, and of what.
type Warned = (Option<Arc<str>>, Vec<std::mem::Discriminant<Warning>>);

/// A lane, and the message that streams through it without being looked at.
struct Stretch {
    lane: Lane,
    /// Bytes of it still to come.
    rest: usize,
    /// They pass, or they are left out.
    keep: bool,
}

impl Stretch {
    fn new(lane: Lane) -> Stretch {
        Stretch { lane, rest: 0, keep: false }
    }

    /// Decides the next message, of `total` bytes: what is there of it now, the rest as it comes.
    #[inline]
    fn take(&mut self, total: usize, keep: bool) {
        self.keep = keep;
        if keep && total <= self.lane.unwalked().len() {
            self.rest = 0;
            return self.lane.pass(total);
        }
        self.rest = total;
        self.stream();
    }

    /// Moves what has come of the streaming message. Returns whether it is complete.
    fn stream(&mut self) -> bool {
        let n = self.rest.min(self.lane.unwalked().len());
        if self.keep {
            self.lane.pass(n);
        } else {
            self.lane.skip(n);
        }
        self.rest -= n;
        self.rest == 0
    }

    /// Whether half of a message has been passed on, whose other half may never come.
    fn is_mid_message(&self) -> bool {
        self.rest > 0 && self.keep
    }
}

/// A look at a statement's text that need not be taken twice.
struct Glance {
    /// The bytes of the message to leave out: a comment of ours.
    cut: Option<std::ops::Range<usize>>,
}

/// What is known of the backend at hand; begins anew with each lease.
#[derive(Default)]
struct Linked {
    /// What the session has left on it.
    traces: Traces,
    /// Whose rows it shows.
    context: Context,
    /// To be given to it again before the next statement, with which a transaction begins.
    context_due: bool,
    /// Where it only has it for a while: for how long.
    lent: lend::Lent,
    /// It has not said yet that it has it for a while; nothing may overtake that.
    lending: bool,
    /// Another session's context was found on it.
    foreign: bool,
    /// The backend is looked at before it is given back (V4).
    looks: bool,
    /// It could not be given, for this.
    unfenced: Option<Box<str>>,
    /// What was bound to its portals.
    portals: portals::Portals,
    /// Tables, types or functions have been changed since the transaction began.
    altered: bool,
    /// A setting has been changed on which the meaning of a text depends, or what it names: what is
    /// parsed from now on is the session's own.
    reads_otherwise: bool,
    /// The text of what is being executed has been noted since the last Sync or ReadyForQuery.
    text_noted: bool,
    /// The server said FATAL: it is closing.
    dying: bool,
    /// There was an error in a segment that Bursar injected.
    injected_error: bool,
    /// A ReadyForQuery kept back while a failed COPY is resolved (its status byte).
    withheld: Option<u8>,
    /// The backend works on something of Bursar's own, and the cell knows.
    injected: bool,
    /// The lease is kept beyond its transaction, and the book knows.
    pinned: bool,
    /// A transaction block that statement mode does not allow is being rolled back.
    ending_block: bool,
    /// The client has broken the protocol in a way that makes the server close.
    doomed: bool,
    /// What the session does to its settings, if anything.
    changes: Option<Box<Changes>>,
    /// Of the traces, those that the backend was asked for and has.
    confirmed: Traces,
    /// Something has run that may have ended one of them.
    may_have_ended: bool,
    /// A ReadyForQuery has just been walked: the moment to ask whether the lease may end.
    at_ready: bool,
    /// A ROLLBACK, whole or to a savepoint, has completed since: the transaction has not failed any more,
    /// though no ReadyForQuery has said so.
    rolled_back: bool,
    /// Something that takes prepared statements away may be on its way.
    deallocating: bool,
    /// What the client calls the statement whose use has just failed.
    failed: Option<Box<named::Name>>,
    /// What the client calls the statements that messages sent since the last rest use: mostly one.
    uses: SmallVec<[named::Name; 1]>,
    /// The backend may have other prepared statements than it is believed to.
    untrusted: bool,
    /// What is being asked about the rows of statements.
    shapes: shapes::Asked,
    /// A statement is being cancelled for its budget.
    cut: Option<Box<overrun::Cut>>,
    /// The rows of that statement are dropped, because the client does not read.
    drops: Option<stall::Drops>,
    /// A BEGIN that the client was answered before is on its way; nothing may overtake its answer.
    beginning: bool,
    /// And is part of what begins a parked transaction again.
    resumes: bool,
    /// It has failed: nothing has run, and the lease ends.
    unbegun: bool,
    /// The backend is asked for the names of unsafe functions before it is given back.
    lists: bool,
    /// What is told in place of the server's error about a statement that Bursar cancels.
    verdict: Option<Box<Report>>,
}

/// Whether a BEGIN may wait for its first statement. In session mode the backend is the session's own.
fn begins_lazily(rules: &PoolRules, mode: PoolMode) -> bool {
    rules.lazy_begin && matches!(mode, PoolMode::Transaction | PoolMode::Request)
}

/// Shared statements that a backend of this pool may have; 0 where a session keeps its backend anyway.
fn prepared_cap(rules: &PoolRules) -> usize {
    if rules.mode == PoolMode::Session { 0 } else { rules.max_prepared }
}

impl<S> Session<S> {
    /// Why the lease outlives its transaction; empty if it does not.
    fn pin(&self) -> &'static str {
        if self.mode == PoolMode::Session {
            "session_mode"
        } else if self.statements.pins() {
            Traces::STATEMENT.reason()
        } else {
            let free = Traces::SUSPECT.with(Traces::SETTING).with(self.policy.scrubbed);
            self.linked.traces.without(free).reason()
        }
    }
}
