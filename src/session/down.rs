//! From the backend to the client: what to do with each server message.

use super::lend::tells_context;
use super::reply::{self, Fault};
use super::shapes::tells_shape;
use super::tracker::{Desync, Give, Injected, Op, OpKind, marker, wants};
use super::{Session, named, private};
use crate::config::PoolMode;
use crate::net::lane::Lane;
use crate::wire::backend::{TxStatus, error_field, is_fatal, parameter, ready_for_query};
use crate::wire::compose::SYNC;
use crate::wire::sql::scan::{
    Traces, changes_objects, clears_everything, deallocate_all, may_end_traces, says_nothing, tag_traces,
};
use crate::wire::walk::{HEADER, Header, cstr};
use bytes::BytesMut;
use std::ops::Range;

/// Zeros that complete a CopyData frame the client had half sent when its COPY failed; beyond this
/// much the backend is closed instead (wire.md A5).
const MAX_PADDING: usize = 1 << 20;

/// PostgreSQL never sends a message of 1 GiB or more.
const MAX_MESSAGE: i32 = 0x3fff_ffff;

/// How many bytes of whole rows `bytes` begins with.
fn rows(bytes: &[u8]) -> usize {
    let mut rows = 0;
    while let Some(head) = Header::read(&bytes[rows..]).filter(|head| head.kind == b'D')
        && let Some(total) = head.total().filter(|total| *total <= bytes.len() - rows)
    {
        rows += total;
    }
    rows
}

impl<S> Session<S> {
    /// Walks what the server has sent, staging what passes.
    ///
    /// # Errors
    /// The replies do not match what was sent; the backend must be closed.
    pub(super) fn walk_down(&mut self) -> Result<(), Desync> {
        loop {
            if self.down.rest > 0 && !self.down.stream() {
                return Ok(());
            }
            if self.tracker.front().is_some_and(|op| op.made_up) {
                if let Some(head) = Header::read(self.down.lane.unwalked()) {
                    self.tracker.expect(head.kind);
                }
                self.emit_made_up();
            }
            self.pass_expected();
            let front = self.tracker.front().copied();
            let bytes = self.down.lane.unwalked();
            let Some(head) = Header::read(bytes) else { return Ok(()) };
            let total = head.total().filter(|_| head.len <= MAX_MESSAGE).ok_or(Desync(head.kind))?;
            let named =
                front.and_then(|op| op.statement).filter(|_| head.kind == b'E' && total <= Lane::HELD);
            let shape = tells_shape(head.kind, front);
            let told = shape || head.kind == b'A' || head.kind == b'D' && tells_context(front);
            let whole = named.is_some() || told && total <= Lane::HELD;
            let seen = if whole { total } else { HEADER + wants(head.kind, total - HEADER) };
            if bytes.len() < seen {
                return Ok(());
            }
            let body = &bytes[HEADER..seen];
            let fatal = head.kind == b'E' && is_fatal(body);
            if fatal {
                // The server is closing, whatever it was doing; its last words are the client's, unless
                // it had done all: then the session goes on, on another backend, unless only this one
                // knows its settings.
                let over = self.releases() && !self.linked.traces.any(Traces::SETTING);
                self.linked.dying = !over;
                self.down.take(total, !over);
                continue;
            }
            if head.kind == b'E'
                && self.tracker.would_sweep_lending()
                && let Some(lease) = &mut self.lease
            {
                lease.backend().context.lose_lending();
            }
            let mut give = self.tracker.server(head.kind, body, &mut self.scratch)?;
            if let (true, Some(op)) = (shape, front) {
                self.note_shape(op, seen, total);
            }
            if head.kind == b'D' && tells_context(front) {
                self.note_context(seen);
            }
            if head.kind == b'Z' && self.mode == PoolMode::Statement {
                give = self.end_block(give);
            }
            let kept_back =
                !matches!(head.kind, b'D' | b'd' | b'T' | b'2') && self.note(head.kind, seen, front, give)?;
            self.hear_told();
            let keep = match give {
                _ if kept_back => false,
                Give::Pass if self.is_short_of_rows(head.kind) => return Err(Desync(head.kind)),
                Give::Pass if self.drops(head.kind) => false,
                Give::Pass => head.kind != b'A' || self.linked.traces.any(Traces::LISTEN),
                Give::PassWithheld => {
                    self.send_withheld()?;
                    true
                }
                // What the block had set goes back to what it was.
                Give::Suppress => head.kind == b'S' && self.linked.ending_block,
                _ => false,
            };
            match (named, std::mem::take(&mut self.linked.failed)) {
                _ if keep && head.kind == b'E' && self.says_why_cancelled(seen) => {
                    self.down.take(total, false)
                }
                _ if keep && head.kind == b'E' && self.says_mismatch(seen, front) => {
                    self.down.take(total, false)
                }
                (Some(id), Some(name)) if keep => self.pass_error(total, id, &name),
                _ if keep && head.kind == b'A' && self.pass_own_notification(seen) => {
                    self.down.take(total, false);
                }
                _ => self.down.take(total, keep),
            }
            if !self.scratch.is_empty() {
                self.down.lane.put(&self.scratch);
                self.scratch.clear();
            }
        }
    }

    /// What the session has told itself comes from the process that it takes its server for. Returns
    /// whether that is this message, which is all of it.
    fn pass_own_notification(&mut self, total: usize) -> bool {
        const PID: Range<usize> = HEADER..HEADER + 4;
        let Some(lease) = self.lease.as_mut().filter(|_| self.mode != PoolMode::Session) else {
            return false;
        };
        let own = lease.backend().cancel.pid.to_be_bytes();
        let message = &self.down.lane.unwalked()[..total];
        if message.get(PID) != Some(&own) {
            return false;
        }
        let mut told = message.to_vec();
        told[PID].copy_from_slice(&self.cell.id.process_id().to_be_bytes());
        self.down.lane.make(|out| out.extend_from_slice(&told));
        true
    }

    /// Sends the made-up replies whose turn has come.
    pub(super) fn emit_made_up(&mut self) {
        let tracker = &mut self.tracker;
        self.down.lane.make(|out| tracker.emit(out));
        self.hear_told();
    }

    fn hear_told(&mut self) {
        for _ in 0..self.tracker.take_told() {
            self.statements.acknowledged();
        }
    }

    /// Passes all that is as a rule said in answer to what was sent, and says nothing else: the longest run of
    /// whole messages, in one go. What is more to most results is a single ReadyForQuery.
    fn pass_expected(&mut self) {
        if self.linked.drops.is_some() {
            return;
        }
        let bytes = self.down.lane.unwalked();
        let (mut run, mut ended) = (0, false);
        while let Some(head) = Header::read(&bytes[run..])
            && let Some(total) = head.total().filter(|total| *total <= bytes.len() - run)
        {
            let is_end = head.kind == b'C';
            if is_end && (self.linked.changes.is_some() || !says_nothing(&bytes[run + HEADER..run + total])) {
                break;
            }
            let Some(noted) = self.tracker.as_expected(head.kind) else { break };
            if noted && matches!(head.kind, b'1' | b'3') {
                self.statements.acknowledged();
            }
            run += if head.kind == b'D' { rows(&bytes[run..]) } else { total };
            ended |= is_end;
        }
        if ended {
            self.cell.passed(self.now);
        }
        self.down.lane.pass(run);
    }

    /// Remembers what a message says about the session or its backend. Returns whether it is kept
    /// back for now.
    fn note(&mut self, kind: u8, seen: usize, front: Option<Op>, give: Give) -> Result<bool, Desync> {
        let mut kept_back = false;
        if kind == b'E' {
            self.aim_cut();
        }
        // Behind the last ReadyForQuery nothing runs.
        if matches!(kind, b'C' | b'E' | b'I' | b's') || kind == b'Z' && self.tracker.is_busy() {
            self.cell.passed(self.now);
        }
        if kind == b'E' || kind == b'C' && front.is_some_and(|op| op.injected == Some(Injected::Lent)) {
            self.linked.lending = false;
        }
        let body = &self.down.lane.unwalked()[HEADER..seen];
        match kind {
            b'G' if self.tracker.takes_intruder() => self.up.lane.put(marker::INTRUDER),
            b'1' | b'3' if front.is_some_and(|op| op.noted) => self.statements.acknowledged(),
            b'3' if front.is_some_and(|op| op.injected == Some(Injected::Begin)) => {
                self.linked.beginning = false;
            }
            b'C' if says_nothing(body) => {
                if let Some(changes) = &mut self.linked.changes
                    && front.is_some_and(|op| op.injected.is_none())
                {
                    changes.note_outcome(true, false);
                }
            }
            b'C' if front.is_some_and(|op| op.injected.is_none()) => {
                let tag = cstr(body).map_or(body, |(tag, _)| tag);
                let local = front.is_some_and(|op| op.local_settings);
                let traces = if local && tag == b"SET" { Traces::NONE } else { tag_traces(tag) };
                self.linked.traces = self.linked.traces.with(traces);
                self.linked.may_have_ended |= may_end_traces(tag);
                let sets = traces.any(Traces::SETTING);
                let (clears, deallocates) = (clears_everything(tag), deallocate_all(tag));
                // By a name that is none of the session's: perhaps one of Bursar's.
                self.linked.untrusted |= tag == b"DEALLOCATE";
                if changes_objects(tag) {
                    self.linked.altered = true;
                    self.linked.reads_otherwise = true;
                }
                let undone = tag == b"ROLLBACK";
                self.linked.rolled_back |= undone;
                if let Some(changes) = &mut self.linked.changes {
                    changes.note_outcome(true, undone);
                }
                if sets {
                    self.note_setting_tag();
                } else if clears {
                    self.note_discard();
                } else if deallocates {
                    self.forget_statements();
                }
            }
            b'S' => {
                let pair = parameter(body);
                if let (Some((name, value)), Some(lease)) = (pair, &mut self.lease) {
                    let backend = lease.backend();
                    if let Some(changes) = &mut self.linked.changes
                        && self.tracker.is_last_segment()
                    {
                        kept_back = changes.keep_back(name, &backend.parameters);
                    }
                    backend.learn_parameter(name, value);
                    if give == Give::Pass && !kept_back {
                        self.told.hear(name, value);
                    }
                }
            }
            b'E' => {
                if let Some(drops) = &mut self.linked.drops {
                    drops.over = true;
                }
                if front.is_some_and(|op| op.injected == Some(Injected::Begin)) {
                    (self.linked.beginning, self.linked.unbegun) = (false, true);
                }
                if self.tracker.takes_sync() {
                    if self.up.is_mid_message() {
                        return Err(Desync(kind));
                    }
                    self.up.lane.put(SYNC);
                    self.statements.sync();
                }
                let failed = front.is_some_and(|op| op.noted);
                let swept = self.tracker.take_swept();
                let error = named::Failure::of(body);
                self.statements_swept(swept, failed);
                self.forget_asked();
                let name = self.swept_use();
                if let Some(id) = front.and_then(|op| op.statement) {
                    self.statement_failed(id, error);
                    self.linked.failed = Some(Box::new(name));
                }
                if front.is_some_and(|op| op.injected.is_none())
                    && let Some(changes) = &mut self.linked.changes
                {
                    changes.note_outcome(false, true);
                }
                let body = &self.down.lane.unwalked()[HEADER..seen];
                // It is not undone with a transaction that cannot commit. In one that has failed it does
                // not run.
                let code = error_field(body, b'C');
                let refused = matches!(code, Some(b"25P02" | b"57014"));
                if let (Some(b"25006"), Some(lease)) = (code, &mut self.lease) {
                    // Perhaps the client's own doing: what the server says of itself decides, at the lease's end.
                    lease.backend().doubted = true;
                }
                let deallocated = front.is_some_and(|op| op.deallocates_all) && !refused;
                if give == Give::InjectedError {
                    if front.is_some_and(|op| matches!(op.injected, Some(Injected::Fence | Injected::Lent))) {
                        // Nothing that follows is an answer for the client.
                        self.linked.unfenced =
                            Some(String::from_utf8_lossy(error_field(body, b'M').unwrap_or_default()).into());
                        return Err(Desync(kind));
                    }
                    self.linked.injected_error = true;
                }
                if deallocated {
                    self.forget_statements();
                }
                self.settle_copy()?;
            }
            b'Z' => {
                if let Some(drops) = &mut self.linked.drops {
                    drops.ended = drops.over;
                }
                // A Query, whose end says that it ran.
                if let Some(op) = front.filter(|op| op.kind == OpKind::Query && op.injected.is_none()) {
                    self.statements.ran_query(op.noted);
                }
                let body = &self.down.lane.unwalked()[HEADER..seen];
                kept_back = self.ready(body.first().copied().unwrap_or(b'I'), give, front)?;
            }
            _ => {}
        }
        Ok(kept_back)
    }

    /// Statement mode: a ReadyForQuery inside a transaction block is held back until the block is
    /// rolled back, and the client is told why, unless the server has just told it of an error. Session
    /// and backend stay.
    fn end_block(&mut self, give: Give) -> Give {
        self.linked.ending_block = false;
        let status = self.tracker.status();
        if give != Give::Pass || status == TxStatus::Idle || self.tracker.is_busy() {
            return give;
        }
        self.linked.ending_block = true;
        self.up.lane.make(|out| private::query(out, b"ROLLBACK"));
        self.tracker.inject(OpKind::Query, Injected::Segment);
        self.set_injected(true);
        let mut told = BytesMut::new();
        if status == TxStatus::InTransaction {
            reply::fault(&Fault::TransactionBlock).encode(&mut told);
        }
        self.tracker.answer(OpKind::Query, told.freeze(), true, &mut self.scratch);
        Give::Suppress
    }

    /// Whether the message is kept back for now.
    fn ready(&mut self, status: u8, give: Give, op: Option<Op>) -> Result<bool, Desync> {
        match give {
            Give::Withhold => {
                self.send_withheld()?;
                self.linked.withheld = Some(status);
                return Ok(false);
            }
            Give::DropWithheld => self.linked.withheld = None,
            _ => {}
        }
        self.settle_copy()?;
        if self.linked.injected && !self.tracker.is_own_work() {
            self.set_injected(false);
        }
        if op.is_some_and(|op| op.injected == Some(Injected::Fence)) {
            // Nothing of the client's has ended.
            return Ok(false);
        }
        self.linked.at_ready = true;
        self.linked.rolled_back = false;
        let idle = self.tracker.status() == TxStatus::Idle;
        if idle && std::mem::take(&mut self.linked.altered) {
            // Seen by everybody from now on, or never. Who parses a text anew gets what it means now.
            self.pool.statements.lock().retire_all();
            self.pools.altered(&self.pool.database);
        }
        if give == Give::Pass {
            self.watch_ready();
        }
        if let Some(lease) = &mut self.lease
            && give == Give::Pass
        {
            lease.usage.transactions += u64::from(idle);
        }
        if self.linked.unbegun && give == Give::Pass {
            // The client has been in a transaction, and it has failed.
            self.down.lane.make(|out| ready_for_query(out, TxStatus::Failed));
            self.tags.end_statement(true);
            return Ok(true);
        }
        if self.linked.changes.is_some() && self.settle_resets(give, op) {
            return Ok(true);
        }
        if give == Give::Pass {
            self.report_stance();
        }
        if self.tracker.is_busy() {
            return Ok(false);
        }
        self.end_cut();
        self.fence_ready(idle);
        self.linked.text_noted = false;
        self.linked.deallocating = false;
        self.linked.uses.clear();
        self.forget_all_asked();
        self.tags.end_statement(!idle);
        let pin = self.pin();
        if !idle {
            self.watch_idle();
        }
        if !idle || !pin.is_empty() {
            self.cell.ready(!idle, pin, self.now);
        }
        if idle && !pin.is_empty() && !self.linked.pinned && self.mode != PoolMode::Session {
            self.note_pin();
        }
        Ok(false)
    }

    /// The lease outlives its transaction for the first time.
    fn note_pin(&mut self) {
        self.linked.pinned = true;
        let warning = self.lease.as_ref().and_then(|lease| self.pools.pinned(lease.id()));
        if let Some(warning) = warning {
            self.warn(&warning);
        }
    }

    fn send_withheld(&mut self) -> Result<(), Desync> {
        if let Some(status) = self.linked.withheld.take() {
            let status = TxStatus::of(status).ok_or(Desync(b'Z'))?;
            self.down.lane.make(|out| ready_for_query(out, status));
        }
        Ok(())
    }

    /// Tells who would send a cancel whether it would hit Bursar's own work.
    pub(super) fn set_injected(&mut self, injected: bool) {
        self.linked.injected = injected;
        self.cell.set_injected(injected);
    }

    /// After a COPY IN has failed: sends the marker if one is due, and completes a CopyData frame
    /// that the client has only half sent, so that the backend need not wait for the rest.
    fn settle_copy(&mut self) -> Result<(), Desync> {
        let marker = self.tracker.take_marker();
        let half_sent = self.up.is_mid_message() && !self.tracker.is_copying_in();
        if half_sent && (marker || !self.tracker.is_busy()) {
            if self.up.rest > MAX_PADDING {
                return Err(Desync(b'd'));
            }
            let zeros = [0; 4096];
            let mut rest = self.up.rest;
            while rest > 0 {
                let n = rest.min(zeros.len());
                self.up.lane.put(&zeros[..n]);
                rest -= n;
            }
            self.up.keep = false;
        }
        if marker {
            self.set_injected(true);
            self.up.lane.put(marker::BYTES);
            // What the client had sent behind the COPY may have left anything.
            self.linked.traces = self.linked.traces.with(Traces::SUSPECT);
        }
        Ok(())
    }
}
