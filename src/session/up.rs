//! From the client to the backend: what to do with each client message.

use super::answers::describe;
use super::claim::uncommented;
use super::message::{is_enough, query_text, too_long, without};
use super::portals::Known;
use super::reply::{self, Fault};
use super::serve::Slow;
use super::tracker::{Injected, Note, OpKind, Take};
use super::{Glance, Session, locals};
use crate::config::PoolMode;
use crate::metrics::Unparkable;
use crate::net::lane::Lane;
use crate::statements::session::Before;
use crate::wire::backend::{TxStatus, bare, ready_for_query};
use crate::wire::error::Report;
use crate::wire::frontend::{Kind, bind_names, execute_portal, target};
use crate::wire::sql::bound::Bound;
use crate::wire::sql::comment;
use crate::wire::sql::lead::{Deallocates, deallocates};
use crate::wire::sql::local::{self, Local};
use crate::wire::sql::scan::{Scan, scan};
use crate::wire::walk::{HEADER, Header, cstr};
use bytes::BytesMut;
use std::borrow::Cow;
use std::ops::Range;

/// Close of the unnamed statement.
const CLOSE_UNNAMED: &[u8] = b"C\0\0\0\x06S\0";

/// Execute of a portal that nobody has: an error.
pub(super) const FAIL: &[u8] = b"E\0\0\0\x10\x01bursar\0\0\0\0\0";

/// Flush.
pub(super) const FLUSH: &[u8] = b"H\0\0\0\x04";

/// Why the walk over the client's bytes stopped.
pub(super) enum Stop {
    /// The next message is not complete.
    More,
    /// The next message waits for replies of the server.
    Hold,
    /// The next message needs a backend.
    NeedBackend,
    /// So it does, and there is none at once.
    Wait(Slow),
    /// Terminate.
    Terminate,
    /// Close without a word, as PostgreSQL does when a length field makes no sense.
    Silence,
    /// The client broke the protocol.
    Fault(Box<Report>),
}

/// What becomes of one message.
pub(super) enum Next {
    /// It is dealt with; go on.
    Done,
    /// Stop before it.
    Stop(Stop),
}

/// What views show of a text that stands at `start` in its message: without the comment of its tags.
fn shown<'t>(text: &'t [u8], start: usize, cut: Option<&Range<usize>>) -> &'t [u8] {
    cut.map_or(text, |cut| uncommented(text, &(cut.start - start..cut.end - start)))
}

impl<S> Session<S> {
    /// Walks what the client has sent as far as can be decided now, staging what passes.
    pub(super) fn walk_up(&mut self) -> Stop {
        loop {
            if self.up.rest > 0 && !self.up.stream() {
                return Stop::More;
            }
            let bytes = self.up.lane.unwalked();
            let Some(head) = Header::read(bytes) else { return Stop::More };
            let Some(kind) = Kind::of(head.kind) else {
                return Stop::Fault(Box::new(reply::fault(&Fault::InvalidMessageType { tag: head.kind })));
            };
            let Some(total) = head.total().filter(|_| head.len <= kind.limit()) else { return Stop::Silence };
            if !is_enough(kind, total, bytes) {
                return Stop::More;
            }
            if kind != Kind::Terminate && (self.tracker.would_hold(kind) || self.is_behind_statement(kind)) {
                return Stop::Hold;
            }
            let held = self.is_held_for_resets() || self.is_held_for_cancel() || self.is_behind_begin(kind);
            if held && kind != Kind::Terminate {
                return Stop::Hold;
            }
            if self.tracker.is_skipping() && !matches!(kind, Kind::Sync | Kind::Terminate) {
                self.glanced = None;
                self.up.take(total, false);
                continue;
            }
            if !self.tx.is_real()
                && let Some(next) = self.hear(kind, total)
            {
                match next {
                    Next::Done => continue,
                    Next::Stop(stop) => return stop,
                }
            }
            if matches!(kind, Kind::Query | Kind::Parse)
                && !self.policy.guarded.is_none()
                && self.refuse_state(kind, total)
            {
                continue;
            }
            if self.fence.is_some()
                && let Some(next) = self.fence_message(kind, total)
            {
                match next {
                    Next::Done => continue,
                    Next::Stop(stop) => return stop,
                }
            }
            if !self.config.tag.tenant_keys.is_empty()
                && let Some(next) = self.hear_tenant(kind, total)
            {
                match next {
                    Next::Done => continue,
                    Next::Stop(stop) => return stop,
                }
            }
            let next = match kind {
                Kind::Terminate => self.terminate(total),
                Kind::Query => self.query(total),
                Kind::Parse => self.parse(total),
                Kind::Bind => self.bind(total),
                Kind::Describe | Kind::Close => self.describe_or_close(kind, total),
                Kind::Execute => self.execute(total),
                Kind::Sync => self.sync(total),
                Kind::FunctionCall => self.function_call(total),
                Kind::CopyData | Kind::CopyDone | Kind::CopyFail if self.lease.is_none() => {
                    // Nobody is copying; PostgreSQL ignores these at idle.
                    self.up.take(total, false);
                    Next::Done
                }
                // A Flush with a body is an error, with which PostgreSQL answers it.
                Kind::Flush if total != HEADER => self.forward(Kind::Close, total, Note::default()),
                Kind::Flush if self.lease.is_none() => {
                    self.flush_here();
                    self.up.take(total, false);
                    Next::Done
                }
                Kind::Flush => {
                    self.emit_made_up();
                    self.forward(kind, total, Note::default())
                }
                _ => self.forward(kind, total, Note::default()),
            };
            if let Next::Stop(stop) = next {
                return stop;
            }
        }
    }

    /// In statement mode the next statement is not sent before this one is over: it may have opened a
    /// transaction block, which must be rolled back first.
    fn is_behind_statement(&self, kind: Kind) -> bool {
        self.mode == PoolMode::Statement
            && !matches!(kind, Kind::CopyData | Kind::CopyDone | Kind::CopyFail)
            && !self.tracker.is_copying_in()
            && self.tracker.awaits_ready()
    }

    /// Terminate ends the session, but in the middle of a COPY IN it is a protocol violation, about
    /// which the server has two last words to say.
    fn terminate(&mut self, total: usize) -> Next {
        if self.tracker.is_copying_in() {
            self.up.take(total, true);
            self.linked.doomed = true;
            return Next::Stop(Stop::Hold);
        }
        Next::Stop(Stop::Terminate)
    }

    /// Sends a message on as it is.
    pub(super) fn forward(&mut self, kind: Kind, total: usize, note: Note) -> Next {
        if self.lease.is_none() {
            return Next::Stop(Stop::NeedBackend);
        }
        match self.tracker.client(kind, note) {
            Take::Hold => return Next::Stop(Stop::Hold),
            Take::Drop => self.up.take(total, false),
            Take::Forward => self.up.take(total, true),
        }
        Next::Done
    }

    fn query(&mut self, total: usize) -> Next {
        let next = self.look_at_query(total);
        // Whoever asks for a backend for what follows does so with another message.
        self.is_usual &= matches!(next, Next::Stop(_));
        next
    }

    fn look_at_query(&mut self, total: usize) -> Next {
        let glanced = self.glanced.take();
        let (text, whole) = query_text(self.up.lane.unwalked(), total);
        // In a COPY it is a violation of the protocol, whatever it says.
        let here = whole && !self.tracker.is_copying_in();
        self.is_usual = here && self.usual.as_ref().is_some_and(|usual| usual.is(text));
        let usual = self.is_usual;
        if !usual
            && glanced.is_none()
            && here
            && let Some(statements) = local::parse(text)
        {
            return self.answer_query(&statements, total);
        }
        if !usual
            && here
            && let Some(here) = self.deallocates_here(text)
        {
            return match here {
                Ok(local) => self.answer_query(&locals::Text::from_elem(local, 1), total),
                Err(stop) => Next::Stop(stop),
            };
        }
        let text = HEADER..HEADER + text.len();
        let Glance { cut } = match glanced {
            None if usual => Glance { cut: None },
            None => self.glance(text, whole),
            Some(glance) => glance,
        };
        if !usual && self.lease.is_none() && self.begins_here(total, cut.clone()) {
            return Next::Done;
        }
        let cut = match self.link(cut) {
            Ok(cut) => cut,
            Err(next) => return next,
        };
        let (text, _) = query_text(self.up.lane.unwalked(), total);
        let scanned = match whole {
            true if usual => Scan::default(),
            true => scan(text),
            false => too_long(),
        };
        if self.waits_to_reset(text, None, scanned.traces) {
            self.glanced = Some(Glance { cut });
            return Next::Stop(Stop::Hold);
        }
        let noted = self.statements.query();
        let local_settings = scanned.only_local_sets;
        let deallocated = if usual || !whole { None } else { deallocates(text) };
        if here && !usual {
            self.usual.get_or_insert_default().learn(text, scanned, deallocated.as_ref());
        }
        let deallocates_all = deallocated == Some(Deallocates::All);
        let note = Note { noted, local_settings, deallocates_all, ..Note::default() };
        self.tracker.client(Kind::Query, note);
        self.cell.statement(shown(text, HEADER, cut.as_ref()), self.now);
        let text = HEADER..HEADER + text.len();
        self.fence_sent_query();
        self.watch_query(text.clone(), whole);
        self.note_span(text, scanned);
        if !self.linked.traces.is_none() {
            self.hold_for_resets();
        }
        if !self.locals.is_empty() {
            self.locals.forget_statement(b"");
        }
        if cut.is_some() {
            let shorter = without(&self.up.lane.unwalked()[..total], cut).into_owned();
            self.up.lane.put(&shorter);
            self.up.take(total, false);
        } else {
            self.up.take(total, true);
        }
        Next::Done
    }

    /// Sees to it that a statement has a backend, its tags known: `cut` is what the look at it has
    /// found, which is kept where the message has to be looked at again.
    fn link(&mut self, cut: Option<Range<usize>>) -> Result<Option<Range<usize>>, Next> {
        if self.lease.is_some() {
            return if self.fence.is_some() { self.fence_statement(cut) } else { Ok(cut) };
        }
        match self.begin_at_once() {
            Ok(()) if !self.tracker.is_busy() => Ok(cut),
            // Behind what makes the backend fit, it may have to wait.
            Ok(()) => {
                self.glanced = Some(Glance { cut });
                Err(Next::Done)
            }
            Err(slow) => {
                self.glanced = Some(Glance { cut });
                Err(Next::Stop(Stop::Wait(slow)))
            }
        }
    }

    /// Takes the tags of a statement's comment. `text` says where in the message the statement is.
    fn glance(&mut self, text: Range<usize>, whole: bool) -> Glance {
        let at = text.start;
        let found = if whole { comment::find(&self.up.lane.unwalked()[text]) } else { None };
        let Some(found) = found else { return Glance { cut: None } };
        self.tags.comment(found.pairs.iter().map(|pair| (pair.key, &*pair.value)));
        let cut = at + found.cut.start..at + found.cut.end;
        Glance { cut: self.config.tag.strip_comments.then_some(cut) }
    }

    fn parse(&mut self, total: usize) -> Next {
        let glanced = self.glanced.take();
        let bytes = self.up.lane.unwalked();
        let whole = bytes.len() >= total;
        let bytes = &bytes[..bytes.len().min(total)];
        let Some((name, rest)) = cstr(&bytes[HEADER..]) else {
            return self.forward(Kind::Parse, total, Note::default());
        };
        let at = HEADER + name.len() + 1;
        let text = at..at + cstr(rest).map_or(rest.len(), |(text, _)| text.len());
        let here = whole && !self.tracker.is_copying_in();
        let known = if whole { self.statements.known(bytes) } else { None };
        if glanced.is_none()
            && here
            && known.is_none()
            && let Some(statements) = local::parse(&bytes[text.clone()])
            // PostgreSQL says best why several statements cannot be prepared as one.
            && let [local] = statements.as_slice()
        {
            if self.tracker.is_querying() {
                return Next::Stop(Stop::Hold);
            }
            if let Local::Unknown { name, .. } = local {
                self.refuse_here(OpKind::Parse, total, BytesMut::new(), &reply::unknown_tag(name));
            } else {
                self.locals.parse(name, statements);
                self.make_up(OpKind::Parse, total, |_, out| bare(out, b'1'));
            }
            return Next::Done;
        }
        if here && let Some(here) = self.deallocates_here(&bytes[text.clone()]) {
            return match here {
                Ok(local) => {
                    self.locals.parse(name, locals::Text::from_elem(local, 1));
                    self.make_up(OpKind::Parse, total, |_, out| bare(out, b'1'));
                    Next::Done
                }
                Err(stop) => Next::Stop(stop),
            };
        }
        let shared = whole && !name.is_empty() && self.shares();
        let Glance { cut } = glanced.unwrap_or_else(|| self.glance(text.clone(), whole));
        let cut = match self.link(cut) {
            Ok(cut) => cut,
            Err(next) => return next,
        };
        if shared {
            return self.parse_shared(total, Glance { cut });
        }
        let bytes = self.up.lane.unwalked();
        let bytes = &bytes[..bytes.len().min(total)];
        let look = || if whole { scan(&bytes[text.clone()]) } else { too_long() };
        let scanned = known.unwrap_or_else(look);
        if self.waits_to_reset(&bytes[text.clone()], None, scanned.traces) {
            self.glanced = Some(Glance { cut });
            return Next::Stop(Stop::Hold);
        }
        self.tracker.client(Kind::Parse, Note { noted: true, ..Note::default() });
        if at > HEADER + 1 {
            self.note_span(text.clone(), scanned);
        }
        let bytes = self.up.lane.unwalked();
        let bytes = &bytes[..bytes.len().min(total)];
        let start = text.start;
        let (name, text) = (&bytes[HEADER..at - 1], &bytes[text]);
        self.linked.deallocating |= whole && deallocates(text).is_some();
        self.linked.text_noted = true;
        self.cell.statement(shown(text, start, cut.as_ref()), self.now);
        if !self.locals.is_empty() {
            self.locals.forget_statement(name);
        }
        let message = without(bytes, cut);
        self.statements.parse(name, whole.then_some(&message), scanned);
        if let Cow::Owned(shorter) = message {
            self.up.lane.put(&shorter);
            self.up.take(total, false);
        } else {
            self.up.take(total, true);
        }
        Next::Done
    }

    fn bind(&mut self, total: usize) -> Next {
        let body = &self.up.lane.unwalked()[HEADER..];
        let Some((portal, statement)) = bind_names(&body[..body.len().min(total - HEADER)]) else {
            return self.forward(Kind::Bind, total, Note::default());
        };
        if !self.locals.is_empty() && self.locals.bind(portal, statement) {
            self.make_up(OpKind::Bind, total, |_, out| bare(out, b'2'));
            return Next::Done;
        }
        let unnamed = statement.is_empty();
        if !unnamed && self.shares() {
            let (portal, statement) = (portal.len() + 1, statement.len() + 1);
            return self.bind_shared(total, portal, statement);
        }
        let portal = HEADER..HEADER + portal.len();
        if !unnamed {
            self.watch_bar(Unparkable::Protocol);
            self.note_bind_of_noted(portal.is_empty());
            self.note_portal(portal, false);
            return self.forward(Kind::Bind, total, Note::default());
        }
        self.bind_unnamed(total, portal)
    }

    /// A Bind of the unnamed statement, the portal's name in that span of the message.
    fn bind_unnamed(&mut self, total: usize, portal: Range<usize>) -> Next {
        let (scan, message) = self.statements.unnamed();
        let look = scan != Scan::default() || !self.linked.traces.is_none() || self.linked.changes.is_some();
        let parse = message.filter(|_| look).map_or_else(Vec::new, |message| message[HEADER + 1..].to_vec());
        let text = cstr(&parse).map_or(&[][..], |(text, _)| text);
        let Some(bind) = self.bind_body(total, scan) else { return Next::Stop(Stop::More) };
        let bound = Bound::read(&parse, &bind);
        if self.waits_to_reset(text, bound.as_ref(), scan.traces) {
            return Next::Stop(Stop::Hold);
        }
        let unnamed_portal = portal.is_empty();
        self.note_portal(portal, scan.only_local_sets);
        let next = self.forward_use(Kind::Bind, total, true, Note::default());
        if matches!(next, Next::Done) {
            self.watch_bind_unnamed(unnamed_portal);
        }
        if look && matches!(next, Next::Done) {
            self.note_bind(text, bound.as_ref(), scan, unnamed_portal);
        }
        next
    }

    /// The body of the Bind at hand, or what is there of a long one, if its values may matter: its text
    /// changes settings. `None`: the rest of it is to be waited for.
    pub(super) fn bind_body(&self, total: usize, scan: Scan) -> Option<Vec<u8>> {
        if !scan.sets() {
            return Some(Vec::new());
        }
        let there = self.up.lane.unwalked();
        let whole = there.len() >= total || total > Lane::HELD;
        whole.then(|| there[HEADER..total.min(there.len())].to_vec())
    }

    /// A portal is about to be bound, its name in that span of the message: `local` if every SET in its
    /// text is a local one.
    pub(super) fn note_portal(&mut self, name: Range<usize>, local: bool) {
        let name = &self.up.lane.unwalked()[name];
        self.linked.portals.note(name, |known| known.local = local);
    }

    /// Sends a message that uses a statement, and what must precede a use of the unnamed one.
    fn forward_use(&mut self, kind: Kind, total: usize, unnamed: bool, note: Note) -> Next {
        if self.lease.is_none() {
            return Next::Stop(Stop::NeedBackend);
        }
        // A Query that copies has dropped the unnamed statement, whatever it was.
        if unnamed && !self.tracker.is_query_copying_in() {
            match self.statements.use_unnamed() {
                Before::Nothing => {}
                Before::Replies => return Next::Stop(Stop::Hold),
                Before::Parse(message) => {
                    self.up.lane.put(message);
                    self.tracker.inject(OpKind::Parse, Injected::InPlace);
                }
                Before::Close => {
                    self.up.lane.put(CLOSE_UNNAMED);
                    self.tracker.inject(OpKind::Close, Injected::InPlace);
                }
            }
        }
        self.forward(kind, total, note)
    }

    fn describe_or_close(&mut self, kind: Kind, total: usize) -> Next {
        let Some((what, name)) = target(&self.up.lane.unwalked()[HEADER..total]) else {
            return self.forward(kind, total, Note::default());
        };
        let statement = what == b'S';
        if !statement && what != b'P' || total != HEADER + 2 + name.len() {
            return self.forward(kind, total, Note::default());
        }
        if kind == Kind::Close {
            let here =
                if statement { self.locals.forget_statement(name) } else { self.locals.forget_portal(name) };
            if statement
                && !here
                && !name.is_empty()
                && self.shares()
                && let Some(next) = self.close_shared(total)
            {
                return next;
            }
            let name = &self.up.lane.unwalked()[HEADER + 1..total - 1];
            if here || self.lease.is_none() {
                // A session without a backend has no statement but the unnamed one, and no portal.
                if statement && !here {
                    self.statements.close(name);
                    self.statements.acknowledged();
                }
                self.make_up(OpKind::Close, total, |_, out| bare(out, b'3'));
                return Next::Done;
            }
            if statement {
                self.statements.close(name);
            }
            return self.forward(kind, total, Note { noted: statement, ..Note::default() });
        }
        if !self.locals.is_empty() {
            let text = if statement { self.locals.statement(name) } else { self.locals.portal(name) };
            if let Some(text) = text.cloned() {
                let op = if statement { OpKind::DescribeStatement } else { OpKind::DescribePortal };
                self.make_up(op, total, |_, out| describe(&text, statement, out));
                return Next::Done;
            }
        }
        if statement && !name.is_empty() && self.shares() {
            return self.describe_shared(total);
        }
        let unnamed = statement && name.is_empty();
        self.forward_use(kind, total, unnamed, Note { of_statement: statement, ..Note::default() })
    }

    fn execute(&mut self, total: usize) -> Next {
        let portal = execute_portal(&self.up.lane.unwalked()[HEADER..total]).unwrap_or_default();
        if !self.locals.is_empty()
            && let Some(text) = self.locals.portal(portal).cloned()
        {
            if self.tracker.may_be_skipped() {
                return Next::Stop(Stop::Hold);
            }
            let mut done = BytesMut::new();
            match text.iter().try_for_each(|local| self.perform(local, false, &mut done)) {
                Ok(()) => self.make_up(OpKind::Execute, total, |_, out| out.unsplit(done)),
                Err(report) => self.refuse_here(OpKind::Execute, total, done, &report),
            }
            return Next::Done;
        }
        let Known { local: local_settings, turn } = self.linked.portals.of(portal);
        if portal.is_empty() {
            self.note_execute();
        }
        self.watch_execute(total);
        if self.lease.is_some() && !std::mem::replace(&mut self.linked.text_noted, true) {
            self.cell.statement(b"(prepared earlier)", self.now);
        }
        let next = self.forward(Kind::Execute, total, Note { local_settings, ..Note::default() });
        if let (Next::Done, Some(turn)) = (&next, turn) {
            self.fence_executed(turn);
        }
        next
    }

    fn function_call(&mut self, total: usize) -> Next {
        self.watch_bar(Unparkable::Protocol);
        if self.lease.is_some() {
            self.cell.statement(b"(function call)", self.now);
        }
        self.forward(Kind::FunctionCall, total, Note::default())
    }

    fn sync(&mut self, total: usize) -> Next {
        if self.lease.is_none() && total == HEADER {
            self.tracker.sync_here();
            self.flush_here();
            let status = self.tracker.status();
            self.tags.end_statement(status != TxStatus::Idle);
            self.down.lane.make(|out| ready_for_query(out, status));
            self.up.take(total, false);
            return Next::Done;
        }
        self.linked.text_noted = false;
        self.statements.sync();
        let next = self.forward(Kind::Sync, total, Note::default());
        self.hold_for_resets();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canned_messages_have_the_right_lengths() {
        for message in [CLOSE_UNNAMED, FLUSH] {
            assert_eq!(Header::read(message).unwrap().total(), Some(message.len()));
        }
    }
}
