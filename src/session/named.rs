//! What becomes of named statements where they are shared (wire.md B2).
//!
//! A Parse is answered here once the backend has the statement, a Close at once; Bind and Describe go
//! out with the shared name in place of the client's. A statement that the backend lacks is parsed
//! ahead of the message that needs it, in the same write, so that an error of it comes where
//! PostgreSQL would raise one. Errors about names are raised here, in their place among the replies.
//!
//! What was sent before may change what a name stands for, or skip the message at hand: where that
//! cannot be known yet, the message waits for the replies.

use super::message::without;
use super::reply::{self, Fault};
use super::tracker::{Injected, MAX_OPS, Note, OpKind};
use super::up::{Next, Stop};
use super::{Glance, Session};
use crate::book::Usage;
use crate::metrics::Unparkable;
use crate::pool::lease::Lease;
use crate::statements::session::{Look, Need};
use crate::statements::table::PREFIX;
use crate::statements::{Facts, Planner, Sharing, Statement, StatementId};
use crate::wire::backend::{TxStatus, error_field, error_with_name};
use crate::wire::frontend::{self, Kind};
use crate::wire::sql::bound::Bound;
use crate::wire::sql::lead::{Deallocates, deallocates, is_dated};
use crate::wire::sql::local::Local;
use crate::wire::sql::scan::Traces;
use crate::wire::walk::HEADER;
use bytes::{Bytes, BytesMut};
use std::ops::Range;
use std::sync::Arc;

/// What a client calls a statement.
pub(super) type Name = smallvec::SmallVec<[u8; 24]>;

const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";

/// Largest message that is copied to rename its statement; of a larger one, the names alone are.
const COPIED: usize = 16 << 10;

/// What an error says of the statement that raised it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// What it reads has changed so that its rows have another shape.
    Stale,
    /// The backend does not have it.
    Missing,
    /// Something else.
    Other,
}

impl Failure {
    /// Reads the body of an ErrorResponse. The text is translated, the name of PostgreSQL's function is
    /// not, and SQLSTATE 0A000 alone means much else.
    pub(super) fn of(body: &[u8]) -> Failure {
        match error_field(body, b'C') {
            // A type that a parameter had is gone.
            Some(b"XX000") => Failure::Stale,
            Some(b"0A000") if error_field(body, b'R') == Some(b"RevalidateCachedQuery") => Failure::Stale,
            Some(b"26000") => Failure::Missing,
            _ => Failure::Other,
        }
    }
}

/// What a name in a Bind or Describe comes to.
enum Found {
    Shared(Arc<Statement>),
    /// It is on the session's backend under the client's own name, or nowhere, as PostgreSQL will
    /// say; perhaps SQL's PREPARE has made it.
    Unshared,
    Undefined(Fault),
    Stop(Stop),
}

impl<S> Session<S> {
    /// Whether named statements are shared. In the middle of a COPY IN no such message has a place:
    /// PostgreSQL is to see it, and to close.
    pub(super) fn shares(&self) -> bool {
        self.max_prepared > 0 && !self.tracker.is_copying_in()
    }

    /// A Parse of a named statement, all of which is there, with a lease.
    pub(super) fn parse_shared(&mut self, total: usize, glance: Glance) -> Next {
        let message = without(&self.up.lane.unwalked()[..total], glance.cut.clone()).into_owned();
        let Some(parse) = frontend::Parse::read(&message[HEADER..]).filter(frontend::Parse::is_whole) else {
            // PostgreSQL says best what is wrong with it.
            return self.forward(Kind::Parse, total, Note::default());
        };
        let look = self.statements.look(parse.name);
        if self.is_checking() || self.may_lose_names() || matches!(look, Look::Replies) {
            return self.hold_parse(glance);
        }
        let tail = &message[HEADER + parse.name.len() + 1..];
        // What it means under settings that were changed since the lease began is the session's own.
        let alone = is_dated(parse.text) || self.sets();
        let sharing = if alone { Sharing::Alone } else { Sharing::Among(self.planner()) };
        let interned = self.pool.statements.lock().intern(sharing, tail, Facts::of);
        let Ok(statement) = interned else {
            return self.fail(OpKind::Parse, total, &Fault::TooManyStatements);
        };
        match self.provide(&statement, Injected::Instead) {
            Need::Parse { .. } => {}
            Need::Nothing if self.tracker.knows_status() => {
                let failed = self.tracker.status() == TxStatus::Failed && !self.linked.rolled_back;
                if failed && !statement.facts.exits {
                    if self.tracker.is_unsynced() && self.tracker.is_busy() {
                        // What is ahead of it may roll back.
                        return self.hold_parse(glance);
                    }
                    // PostgreSQL refuses it before it looks at the name.
                    self.probe(parse.name, &statement);
                }
            }
            Need::Nothing | Need::Replies => return self.hold_parse(glance),
        }
        if self.is_checking() {
            return self.hold_parse(glance);
        }
        self.count(|usage| usage.client_parses += 1);
        if !matches!(look, Look::None) {
            // PostgreSQL says so itself of the shared name, which the backend has by now.
            self.probe(parse.name, &statement);
            self.up.take(total, false);
            return Next::Done;
        }
        if !self.locals.is_empty() {
            self.locals.forget_statement(parse.name);
        }
        if self.statements.name(parse.name, statement).is_err() {
            return self.fail(OpKind::Parse, total, &Fault::TooManyNames);
        }
        self.answer_later(OpKind::Parse, total, PARSE_COMPLETE, true);
        Next::Done
    }

    /// The Parse waits for replies; what was found in it is remembered.
    fn hold_parse(&mut self, glance: Glance) -> Next {
        self.glanced = Some(glance);
        Next::Stop(Stop::Hold)
    }

    /// A Bind of a named statement. The names are there, `portal` bytes of the portal's with its NUL.
    pub(super) fn bind_shared(&mut self, total: usize, portal: usize, name: usize) -> Next {
        let name = HEADER + portal..HEADER + portal + name;
        let statement = match self.find(&self.up.lane.unwalked()[name.start..name.end - 1]) {
            Found::Shared(statement) => statement,
            Found::Unshared => {
                self.watch_bar(Unparkable::Protocol);
                self.note_bind_of_noted(portal == 1);
                self.note_portal(HEADER..HEADER + portal - 1, false);
                return self.forward(Kind::Bind, total, Note::default());
            }
            Found::Undefined(fault) => return self.fail(OpKind::Bind, total, &fault),
            Found::Stop(stop) => return Next::Stop(stop),
        };
        let scan = statement.facts.scan;
        let Some(bind) = self.bind_body(total, scan) else { return Next::Stop(Stop::More) };
        let parse = scan.sets().then(|| statement.clone());
        let bound = parse.as_ref().and_then(|parse| Bound::read(parse.tail(), &bind));
        if self.waits_to_reset(statement.text(), bound.as_ref(), scan.traces) {
            return Next::Stop(Stop::Hold);
        }
        let Some(statement) = self.fitting(statement) else {
            return self.fail(OpKind::Bind, total, &Fault::StalePlan);
        };
        if self.waits_for(&statement) {
            return Next::Stop(Stop::Hold);
        }
        if statement.is_stale() {
            return self.fail(OpKind::Bind, total, &Fault::StalePlan);
        }
        self.count(|usage| usage.binds += 1);
        let facts = &statement.facts;
        self.linked.deallocating |= facts.deallocates;
        self.note_bind(statement.text(), bound.as_ref(), scan, portal == 1);
        self.note_portal(HEADER..HEADER + portal - 1, facts.scan.only_local_sets);
        self.note_text(&statement);
        let names_portal: &[u8] = if portal == 1 { b"" } else { b"?" };
        self.watch_bind(statement.text(), names_portal);
        self.rename(Kind::Bind, total, name, statement.id);
        Next::Done
    }

    /// A Describe of a named statement, all of which is there.
    pub(super) fn describe_shared(&mut self, total: usize) -> Next {
        let name = HEADER + 1..total;
        let statement = match self.find(&self.up.lane.unwalked()[name.start..name.end - 1]) {
            Found::Shared(statement) => statement,
            Found::Unshared => {
                return self.forward(Kind::Describe, total, Note { of_statement: true, ..Note::default() });
            }
            Found::Undefined(fault) => return self.fail(OpKind::DescribeStatement, total, &fault),
            Found::Stop(stop) => return Next::Stop(stop),
        };
        let Some(statement) = self.fitting(statement) else {
            return self.fail(OpKind::DescribeStatement, total, &Fault::StalePlan);
        };
        if self.waits_for(&statement) {
            return Next::Stop(Stop::Hold);
        }
        if statement.is_stale() {
            return self.fail(OpKind::DescribeStatement, total, &Fault::StalePlan);
        }
        self.asks_shape(&statement);
        self.rename(Kind::Describe, total, name, statement.id);
        Next::Done
    }

    /// A Close of a named statement, all of which is there. `None`: it is one that must be sent.
    pub(super) fn close_shared(&mut self, total: usize) -> Option<Next> {
        let linked = self.lease.is_some();
        let name = &self.up.lane.unwalked()[HEADER + 1..total - 1];
        match self.statements.look(name) {
            _ if linked && self.may_lose_names() => return Some(Next::Stop(Stop::Hold)),
            Look::Replies => return Some(Next::Stop(Stop::Hold)),
            Look::Private => return None,
            Look::Shared(_) => {
                self.statements.unname(name, linked);
                self.answer_later(OpKind::Close, total, CLOSE_COMPLETE, linked);
            }
            // PostgreSQL closes what is not there without complaint.
            Look::None => self.answer_later(OpKind::Close, total, CLOSE_COMPLETE, false),
        }
        Some(Next::Done)
    }

    /// `DEALLOCATE name` of a shared statement: PostgreSQL does not know it by that name. `None`: the
    /// text is PostgreSQL's.
    pub(super) fn deallocates_here(&self, text: &[u8]) -> Option<Result<Local, Stop>> {
        if self.statements.is_empty() || self.tracker.status() == TxStatus::Failed {
            return None;
        }
        let Some(Deallocates::One(name)) = deallocates(text) else { return None };
        match self.statements.look(&name) {
            Look::Replies => Some(Err(Stop::Hold)),
            Look::Shared(_) if self.may_lose_names() => Some(Err(Stop::Hold)),
            Look::Shared(_) => Some(Ok(Local::Deallocate { name: name.into_owned() })),
            Look::Private | Look::None => None,
        }
    }

    /// What a Bind or Describe names, if that can be known and used now.
    fn find(&self, name: &[u8]) -> Found {
        if self.may_lose_names() {
            return Found::Stop(Stop::Hold);
        }
        let reserved = name.starts_with(PREFIX);
        if self.lease.is_none() && !reserved {
            return Found::Stop(Stop::NeedBackend);
        }
        match self.statements.look(name) {
            Look::Replies => Found::Stop(Stop::Hold),
            // On the backend this may be another session's.
            Look::None if reserved => {
                Found::Undefined(Fault::UndefinedStatement { name: String::from_utf8_lossy(name).into() })
            }
            _ if self.lease.is_none() => Found::Stop(Stop::NeedBackend),
            Look::None | Look::Private => Found::Unshared,
            Look::Shared(statement) => Found::Shared(statement),
        }
    }

    /// Whether something on its way may change what a name stands for.
    fn may_lose_names(&self) -> bool {
        (self.linked.deallocating && self.tracker.is_busy()) || self.tracker.is_querying()
    }

    /// What of the session's settings a statement's meaning depends on.
    fn planner(&mut self) -> Planner {
        if self.planner.0 != self.settings {
            self.planner = (self.settings.clone(), self.pools.settings().planner(&self.settings));
        }
        self.planner.1
    }

    /// The statement as it means now: parsed under other settings, it must not be used for sessions
    /// that share it under those of its first Parse. Where the text would be read otherwise now, the copy that
    /// was read at the time of its Parse is taken, which PostgreSQL plans anew as well; `None`: the backend has
    /// none, and what it would read is not what the client has prepared.
    fn fitting(&mut self, statement: Arc<Statement>) -> Option<Arc<Statement>> {
        let planner = self.planner();
        if statement.fits(planner) {
            return Some(statement);
        }
        if !statement.is_read_with(planner) {
            let backend = self.lease.as_mut().map(Lease::backend);
            let is_there = backend.is_some_and(|backend| backend.prepared.touch(statement.id));
            return is_there.then_some(statement);
        }
        let sharing = Sharing::Among(planner);
        let interned = self.pool.statements.lock().intern(sharing, statement.tail(), |_| statement.facts);
        Some(interned.unwrap_or(statement))
    }

    /// Sees to it that the backend has a statement before it is used. Returns whether its use has to wait.
    fn waits_for(&mut self, statement: &Arc<Statement>) -> bool {
        self.is_checking()
            || self.provide(statement, Injected::InPlace) == Need::Replies
            || self.is_checking()
    }

    /// Sees to it that the backend has a statement before whatever is sent next. Its Parse, if it lacks it, is
    /// Bursar's own or the client's.
    fn provide(&mut self, statement: &Arc<Statement>, whose: Injected) -> Need {
        let Some(lease) = &mut self.lease else { return Need::Replies };
        let need = self.statements.need(statement.id, &mut lease.backend().prepared, self.max_prepared);
        if let Need::Parse { evict } = need {
            if let Some(old) = evict {
                self.up.lane.make(|out| old.write_close(out));
                self.tracker.inject(OpKind::Close, Injected::InPlace);
            }
            self.send_parse(statement, whose);
            self.check_shape(statement);
        }
        need
    }

    /// Sends a Parse that is sure to fail: the error is the client's.
    fn probe(&mut self, name: &[u8], statement: &Statement) {
        self.statements.probe();
        self.use_as(name.into());
        self.up.lane.make(|out| statement.write_parse(out));
        self.tracker.probe(statement.id);
        self.note_text(statement);
    }

    /// A message that uses a statement goes out; the client knows it by this name.
    fn use_as(&mut self, name: Name) {
        if self.linked.uses.len() >= 2 * MAX_OPS {
            let answered = self.linked.uses.len() - self.tracker.uses();
            self.linked.uses.drain(..answered);
        }
        self.linked.uses.push(name);
    }

    /// Whether a text may mean something else here than at the beginning of the lease.
    fn sets(&self) -> bool {
        // A temporary table hides one that others mean.
        self.linked.reads_otherwise || self.linked.traces.any(Traces::HIDDEN.with(Traces::TEMP))
    }

    fn send_parse(&mut self, statement: &Statement, whose: Injected) {
        // What it means under settings that have changed is not what others share.
        self.linked.untrusted |= self.sets() && !statement.is_alone();
        self.count(|usage| usage.server_parses += 1);
        self.up.lane.make(|out| statement.write_parse(out));
        self.tracker.inject(OpKind::Parse, whose);
        self.note_text(statement);
    }

    fn count(&mut self, add: impl FnOnce(&mut Usage)) {
        if let Some(lease) = &mut self.lease {
            add(&mut lease.usage);
        }
    }

    fn note_text(&mut self, statement: &Statement) {
        if !std::mem::replace(&mut self.linked.text_noted, true) {
            self.cell.statement(statement.text(), self.now);
        }
    }

    /// Sends a message with the shared name in place of the client's, which is `name` with its NUL.
    fn rename(&mut self, kind: Kind, total: usize, name: Range<usize>, id: StatementId) {
        let of_statement = kind == Kind::Describe;
        self.use_as(self.up.lane.unwalked()[name.start..name.end - 1].into());
        self.tracker.client(kind, Note { of_statement, statement: Some(id), ..Note::default() });
        let copied = total <= COPIED && self.up.lane.unwalked().len() >= total;
        let end = if copied { total } else { name.end };
        self.up.lane.rewrite(end, |old, out| {
            frontend::rename(old, total, name, |out| id.write_name(out), out);
        });
        self.up.take(total - end, true);
    }

    /// Answers a message of an extended segment here: when its turn comes, and not before PostgreSQL
    /// would.
    fn answer_later(&mut self, op: OpKind, total: usize, reply: &'static [u8], noted: bool) {
        let reply = Bytes::from_static(reply);
        if self.lease.is_some() {
            self.tracker.answer_later(op, reply, noted);
        } else {
            self.tracker.answer(op, reply, false, &mut self.unflushed);
        }
        self.up.take(total, false);
    }

    fn fail(&mut self, op: OpKind, total: usize, fault: &Fault) -> Next {
        self.refuse_here(op, total, BytesMut::new(), &reply::fault(fault));
        Next::Done
    }

    /// An error has swept messages that were in flight.
    pub(super) fn statements_swept(&mut self, count: usize, failed: bool) {
        if let Some(lease) = &mut self.lease {
            self.statements.swept(count, failed, &mut lease.backend().prepared);
        }
    }

    /// An error has swept messages that were in flight. Returns what the client calls the statement that
    /// the first of them used.
    pub(super) fn swept_use(&mut self) -> Name {
        if self.linked.uses.is_empty() {
            return Name::new();
        }
        let (swept, left) = (self.tracker.take_swept_uses(), self.tracker.uses());
        let behind = self.linked.uses.len() - left;
        self.linked.uses.drain(..behind).nth(behind - swept).unwrap_or_default()
    }

    /// A message that used a shared statement has raised an error.
    pub(super) fn statement_failed(&mut self, id: StatementId, failure: Failure) {
        match failure {
            Failure::Stale => self.pool.statements.lock().retire(id),
            Failure::Missing => {
                self.linked.untrusted = true;
                if let Some(lease) = &mut self.lease {
                    lease.backend().prepared.remove(id);
                }
            }
            Failure::Other => {}
        }
    }

    /// Passes an error that a use of a statement has raised, all of which is there, with the client's
    /// name of it where PostgreSQL says the shared one.
    pub(super) fn pass_error(&mut self, total: usize, id: StatementId, name: &[u8]) {
        self.down.lane.rewrite(total, |old, out| {
            let mut shared = BytesMut::new();
            id.write_name(&mut shared);
            shared.truncate(shared.len() - 1);
            error_with_name(out, &old[HEADER..], &shared, name);
        });
    }

    /// Every prepared statement of the backend is gone, and with them the session's.
    pub(super) fn forget_statements(&mut self) {
        self.statements.forget_names();
        if let Some(lease) = &mut self.lease {
            lease.backend().lose_statements();
        }
    }
}
