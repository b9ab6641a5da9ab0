//! The op queue: which replies are outstanding on one backend, in order (wire.md A3).
//!
//! Pure. It is told every header that crosses in either direction and answers what to do with it:
//! pass it, leave it out, hold it, or give up. It knows the transaction status, skip-until-Sync,
//! COPY, messages that Bursar injected and replies that Bursar made up, and so it alone says when a
//! lease may end. A counter of Sync against ReadyForQuery is not enough: after an error in an
//! extended message the server skips everything up to Sync, Query included, and COPY IN swallows
//! Syncs.
//!
//! ```text
//!                 ┌────────── Z pops Q, F, S ───────────┐
//!   client ──▶ [ P B D E C S Q F … ] ──▶ front: whose reply comes next
//!                 └ E in P B D E C: sweep up to S, or `skipping` if no S was sent yet
//!
//!   copy: None ──G──▶ Open ──c,f──▶ Closing ──C──▶ None        (E from anywhere: None)
//!   a Sync sent while Open is swallowed, unless the COPY had failed before the server read it
//! ```
//!
//! Which of the two it was shows only later. If something else was sent behind such Syncs, its first
//! reply ends the doubt: until then up to so many ReadyForQuery may come that answer them (`slack`).
//! If nothing was, the tracker asks for a marker ([`marker`]) and counts what comes before it.
//! Either way the client sees what PostgreSQL sends, and nothing else.
//!
//! A message that has no place in a COPY IN makes the server close, unless the COPY had failed before
//! it was read. Nothing more is taken from the client until the server has said which.
//!
//! Session state (names, settings, tags) is not kept here.

mod copying;
mod expected;
mod injected;
mod made_up;
pub mod marker;
mod op;
#[cfg(test)]
mod tests;

use crate::wire::backend::{TxStatus, error_field};
use crate::wire::frontend::Kind;
use bytes::BytesMut;
use made_up::MadeUp;
use marker::Marker;
pub use op::{Injected, Note, Op, OpKind};
use std::collections::VecDeque;

/// Outstanding ops above which the client is not read any further.
pub const MAX_OPS: usize = 4096;

/// What to do with a client message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// Send it to the backend.
    Forward,
    /// Leave it out: the server would ignore it.
    Drop,
    /// Keep it unread until more of the server's replies are in.
    Hold,
}

/// What to do with a server message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Give {
    /// Send it to the client.
    Pass,
    /// It answers something that Bursar injected, or nobody asked for it.
    Suppress,
    /// An injected segment failed; the message is for Bursar, not for the client.
    InjectedError,
    /// A ReadyForQuery that may belong to Bursar's marker: keep it back, and send the one kept
    /// back before, if any.
    Withhold,
    /// Send the ReadyForQuery kept back, then this.
    PassWithheld,
    /// The marker is through: drop the ReadyForQuery kept back.
    DropWithheld,
}

/// The backend's replies do not match what was sent: nothing on this connection can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unexpected message {0:#04x} from the server")]
pub struct Desync(pub u8);

/// Where a COPY stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    None,
    /// The server reads data; CopyDone or CopyFail has not been sent yet.
    Open,
    /// CopyDone or CopyFail is on its way; what follows is no longer swallowed.
    Closing,
    /// COPY OUT, or both ways (replication).
    Out,
}

/// The op queue of one session. See the module's page.
#[derive(Debug)]
pub struct Tracker {
    ops: VecDeque<Op>,
    made_up: VecDeque<MadeUp>,
    status: TxStatus,
    skipping: bool,
    unsynced: bool,
    copy: Copy,
    /// Syncs that went into the COPY IN before any data: swallowed, unless a timeout or a cancel
    /// ended it first.
    early_syncs: u32,
    /// Syncs that went in behind data: swallowed, unless that data made the COPY fail.
    late_syncs: u32,
    /// The COPY IN has had data, or its end.
    copy_data: bool,
    /// A message that has no place in a COPY IN has been sent into one.
    intruded: bool,
    /// The client has sent one that Bursar answers; the server is to see one instead.
    lacks_intruder: bool,
    /// What was sent last makes the server reply, but not send its replies yet.
    unflushed: bool,
    /// The server is closing: whatever it still says is the client's.
    doomed: bool,
    /// The front op has failed; its ReadyForQuery is to come.
    failed_query: bool,
    /// ReadyForQuery messages that may come without an op of their own.
    slack: u32,
    /// A made-up reply has been given its place as if none of the Syncs in doubt was answered.
    guessed: bool,
    marker: Marker,
    /// Swept ops that the session wanted to hear about.
    swept: usize,
    /// Swept ops that used a shared statement.
    swept_uses: usize,
    /// Made-up replies sent that the session wanted to hear about.
    told: usize,
    /// Queries and function calls of the client's that are outstanding.
    queries: u32,
    /// Syncs that are outstanding.
    syncs: u32,
    /// A BEGIN of Bursar's has failed, or a context that it lent, and the server skips up to a Sync that the
    /// client, which sent a Query behind it, will not send.
    lacks_sync: bool,
}

impl Default for Tracker {
    fn default() -> Self {
        Tracker {
            ops: VecDeque::new(),
            made_up: VecDeque::new(),
            status: TxStatus::Idle,
            skipping: false,
            unsynced: false,
            copy: Copy::None,
            early_syncs: 0,
            late_syncs: 0,
            copy_data: false,
            intruded: false,
            lacks_intruder: false,
            unflushed: false,
            doomed: false,
            failed_query: false,
            slack: 0,
            guessed: false,
            marker: Marker::None,
            swept: 0,
            swept_uses: 0,
            told: 0,
            queries: 0,
            syncs: 0,
            lacks_sync: false,
        }
    }
}

impl Tracker {
    /// The transaction status as of the last ReadyForQuery.
    #[must_use]
    pub fn status(&self) -> TxStatus {
        self.status
    }

    /// Whether a ReadyForQuery is outstanding that ends something of the client's.
    #[must_use]
    pub fn awaits_ready(&self) -> bool {
        self.ops.iter().any(|op| op.kind.is_ready_for_query() && op.injected.is_none())
    }

    /// Whether the server owes a reply, or is reading COPY data.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        // A made-up reply needs no server.
        self.ops.len() > self.made_up.len() || self.copy != Copy::None || !self.marker.is_none()
    }

    /// Whether a Query or function call is outstanding.
    #[must_use]
    pub fn is_querying(&self) -> bool {
        self.queries > 0
    }

    /// Whether [`Tracker::status`] is what it will be when the client's next extended message runs,
    /// or that message is skipped.
    #[must_use]
    pub fn knows_status(&self) -> bool {
        self.queries == 0 && self.syncs == 0 && self.copy == Copy::None && self.marker.is_none()
    }

    /// Whether the client's messages are ignored up to its next Sync.
    #[must_use]
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether extended messages were sent that no Sync has closed yet.
    #[must_use]
    pub fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Whether an error that is still to come may make the client's next extended message one that is
    /// skipped. Not in a COPY, where no such message belongs.
    #[must_use]
    pub fn may_be_skipped(&self) -> bool {
        self.unsynced && self.copy != Copy::Open && self.ops.iter().any(|op| !op.made_up)
    }

    /// Whether no more than one ReadyForQuery is to come.
    #[must_use]
    pub fn is_last_segment(&self) -> bool {
        self.queries + self.syncs <= 1
    }

    /// Whether the lease may end (wire.md A4): nothing outstanding, not in a transaction.
    /// Meant to be asked after a ReadyForQuery.
    #[must_use]
    pub fn may_release(&self) -> bool {
        self.status == TxStatus::Idle && !self.is_busy() && !self.skipping && !self.unsynced
    }

    /// The op whose reply comes next.
    #[must_use]
    pub fn front(&self) -> Option<&Op> {
        self.ops.front()
    }

    /// Whether a message of this kind cannot be taken until more of the server's replies are in.
    #[must_use]
    pub fn would_hold(&self, kind: Kind) -> bool {
        self.is_in_doubt()
            || self.ops.len() >= MAX_OPS
            || (self.late_syncs > 0 && self.is_end_in_doubt() && !matches!(kind, Kind::Sync | Kind::Flush))
    }

    /// Whether the server may keep replies to itself until it is sent a Flush; asked once, by who is
    /// about to send one.
    pub fn take_unflushed(&mut self) -> bool {
        std::mem::take(&mut self.unflushed)
    }

    /// A client message is about to be sent; `note` is kept with its op.
    pub fn client(&mut self, kind: Kind, note: Note) -> Take {
        match kind {
            Kind::Terminate => return Take::Forward,
            _ if self.would_hold(kind) => return Take::Hold,
            Kind::CopyData | Kind::CopyDone | Kind::CopyFail => return self.copy_message(kind),
            // The server swallows both while it reads data. A Flush has no reply either way. A Sync
            // has one if the COPY has just failed, so the server must see it and be believed.
            Kind::Flush if self.copy == Copy::Open => return Take::Drop,
            Kind::Sync if self.copy == Copy::Open => {
                *if self.copy_data { &mut self.late_syncs } else { &mut self.early_syncs } += 1;
                return Take::Forward;
            }
            Kind::Sync => (self.skipping, self.unsynced) = (false, false),
            _ if self.skipping => return Take::Drop,
            // They join the implicit transaction of unsynced messages and commit it.
            Kind::Query | Kind::FunctionCall => self.unsynced = false,
            Kind::Flush => {}
            _ => self.unsynced = true,
        }
        let op = OpKind::of(kind, note.of_statement);
        self.unflushed = op.is_some_and(OpKind::is_extended);
        if let Some(op) = op {
            self.intruded = self.copy == Copy::Open;
            match op {
                OpKind::Sync => self.syncs += 1,
                OpKind::Query | OpKind::Function => self.queries += 1,
                _ => {}
            }
            let Note { noted, local_settings, deallocates_all, statement, .. } = note;
            self.ops.push_back(Op { noted, local_settings, deallocates_all, statement, ..Op::new(op) });
        }
        Take::Forward
    }

    /// A server message has arrived. `body` is its first bytes, as many as [`wants`] asks for, or fewer.
    /// Made-up replies whose turn has come are appended to `out`, to be sent after this message.
    ///
    /// # Errors
    /// [`Desync`] when the message answers nothing that was sent; the backend must be closed.
    #[inline]
    pub fn server(&mut self, kind: u8, body: &[u8], out: &mut BytesMut) -> Result<Give, Desync> {
        if self.doomed {
            return Ok(Give::Pass);
        }
        if kind == b'D' && !self.marker.is_sent() {
            // Rows are nearly all there is: decide them first.
            return match self.ops.front() {
                Some(op) if op.injected.is_some() => Ok(Give::Suppress),
                Some(op) if op.expects_rows() => {
                    self.slack = 0;
                    Ok(Give::Pass)
                }
                _ => Err(Desync(kind)),
            };
        }
        let give = match kind {
            b'N' | b'S' | b'A' => return Ok(self.asynchronous()),
            _ if self.marker.is_sent() => return self.marked(kind, body, out),
            b'Z' => self.ready(body)?,
            b'E' => self.error(body)?,
            _ => self.reply(kind)?,
        };
        self.emit(out);
        Ok(give)
    }

    fn asynchronous(&self) -> Give {
        let why = self.ops.front().and_then(|op| op.injected);
        let own = !self.marker.is_none() || why.is_some_and(|why| why != Injected::Instead);
        if own { Give::Suppress } else { Give::Pass }
    }

    /// A reply to the front op that is neither E nor Z nor D (table A3).
    fn reply(&mut self, kind: u8) -> Result<Give, Desync> {
        let front = *self.ops.front().ok_or(Desync(kind))?;
        let pops = match (kind, front.kind) {
            (b'1', OpKind::Parse) | (b'2', OpKind::Bind) | (b'3', OpKind::Close) => true,
            (b't', OpKind::DescribeStatement) => false,
            (b'T' | b'n', OpKind::DescribeStatement | OpKind::DescribePortal) => true,
            (b'T', OpKind::Query) => false,
            (b'C' | b'I', OpKind::Execute) | (b's', OpKind::Execute) => true,
            (b'C' | b'I', OpKind::Query) => false,
            (b'V', OpKind::Function) => false,
            (b'G', OpKind::Query | OpKind::Execute) => {
                self.copy = Copy::Open;
                self.copy_data = false;
                self.swallow_syncs();
                false
            }
            (b'H' | b'W', OpKind::Query | OpKind::Execute) => {
                self.copy = Copy::Out;
                false
            }
            (b'd' | b'c', OpKind::Query | OpKind::Execute) if self.copy == Copy::Out => false,
            _ => return Err(Desync(kind)),
        };
        if kind == b'C' && self.copy != Copy::None {
            self.copy = Copy::None;
            // All of them were read as part of the data, and ignored.
            (self.early_syncs, self.late_syncs) = (0, 0);
        }
        self.slack = 0;
        if pops {
            self.ops.pop_front();
        }
        Ok(if front.injected.is_some() { Give::Suppress } else { Give::Pass })
    }

    fn error(&mut self, body: &[u8]) -> Result<Give, Desync> {
        let front = *self.ops.front().ok_or(Desync(b'E'))?;
        self.slack = 0;
        self.intruded = false;
        let code = error_field(body, b'C');
        if self.copy == Copy::Open && code == Some(b"08P01") {
            // Something that is no COPY message was sent in the middle of one: FATAL follows.
            self.doomed = true;
            return Ok(Give::Pass);
        }
        // Data that is at fault was read, and so was every Sync before it. Class 57 comes from
        // outside (and from CopyFail).
        let intervened = code.is_none_or(|code| code.starts_with(b"57"));
        let early = std::mem::take(&mut self.early_syncs);
        let doubtful = std::mem::take(&mut self.late_syncs) + if intervened { early } else { 0 };
        self.copy = Copy::None;
        self.failed_query = !front.kind.is_extended();
        let intruder = self.ops.get(1).map(|op| op.kind).filter(|kind| *kind != OpKind::Sync);
        if front.kind.is_extended() {
            let (queries, made_up) = (self.queries, self.made_up.len());
            let swept = self.sweep();
            if doubtful > 0 && (swept > 2 || self.made_up.len() < made_up) {
                // Whether these ran depends on the Syncs before them; nobody can tell any more.
                return Err(Desync(b'E'));
            }
            let ahead = matches!(front.injected, Some(Injected::Begin | Injected::Lent));
            if ahead && self.queries < queries {
                self.lacks_sync = true;
                self.skipping = false;
                self.ops.push_back(Op::new(OpKind::Sync));
                self.syncs += 1;
            }
        }
        if doubtful > 0 {
            self.doubt(doubtful, front.kind, intruder)?;
        }
        Ok(match front.injected {
            Some(Injected::Segment | Injected::Fence) => Give::InjectedError,
            Some(Injected::Lent) if code != Some(b"57014") => Give::InjectedError,
            Some(Injected::Failure) => Give::Suppress,
            _ => Give::Pass,
        })
    }

    /// After an error in an extended message the server ignores everything up to Sync. Returns how
    /// many ops that were.
    fn sweep(&mut self) -> usize {
        let mut count = 0;
        while let Some(op) = self.ops.front() {
            if op.kind == OpKind::Sync {
                return count;
            }
            count += 1;
            if op.made_up {
                self.made_up.pop_front();
            }
            self.swept += usize::from(op.noted);
            self.swept_uses += usize::from(op.statement.is_some());
            self.queries -= u32::from(op.is_query());
            self.ops.pop_front();
        }
        self.skipping = true;
        self.unsynced = false;
        count
    }

    fn ready(&mut self, body: &[u8]) -> Result<Give, Desync> {
        if !self.is_before_begin() {
            self.status = status(body)?;
        }
        let op = match self.ops.front() {
            // Every other op has a reply before its ReadyForQuery.
            Some(op) if self.slack > 0 && op.kind != OpKind::Sync && !self.failed_query => {
                if self.guessed {
                    return Err(Desync(b'Z'));
                }
                self.slack -= 1;
                return Ok(Give::Pass);
            }
            Some(op) if op.kind.is_ready_for_query() && !op.made_up => *op,
            _ => return Err(Desync(b'Z')),
        };
        self.queries -= u32::from(op.is_query());
        self.syncs -= u32::from(op.kind == OpKind::Sync && op.injected != Some(Injected::Fence));
        self.ops.pop_front();
        self.failed_query = false;
        if self.marker == Marker::AfterReady {
            self.marker = Marker::due(false, None, false);
        }
        Ok(if op.injected.is_some() { Give::Suppress } else { Give::Pass })
    }

    /// Whether a Sync must be sent now, whose ReadyForQuery ends a Query of the client's that a failure of
    /// Bursar's ahead of it has made the server skip; to be asked after each error.
    #[must_use]
    pub fn takes_sync(&mut self) -> bool {
        std::mem::take(&mut self.lacks_sync)
    }

    /// How many noted ops an error has swept since this was last asked: the session forgets as many
    /// of the names it had in flight.
    pub fn take_swept(&mut self) -> usize {
        std::mem::take(&mut self.swept)
    }

    /// How many ops that use a shared statement are outstanding. Looks at all ops.
    #[must_use]
    pub fn uses(&self) -> usize {
        self.ops.iter().filter(|op| op.statement.is_some()).count()
    }

    /// How many ops that used a shared statement an error has swept since this was last asked.
    pub fn take_swept_uses(&mut self) -> usize {
        std::mem::take(&mut self.swept_uses)
    }
}

fn status(body: &[u8]) -> Result<TxStatus, Desync> {
    body.first().copied().and_then(TxStatus::of).ok_or(Desync(b'Z'))
}

/// How many bytes of a server message's body the tracker or its session needs to see. Everything
/// else streams past. PostgreSQL sends an error's severity and code first, well within this.
#[must_use]
pub fn wants(kind: u8, len: usize) -> usize {
    match kind {
        b'Z' => 1.min(len),
        b'E' => len.min(256),
        b'C' => len.min(64),
        b'S' => len.min(1024),
        _ => 0,
    }
}
