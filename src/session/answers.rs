//! What Bursar answers itself, statement by statement: tags that are set and shown, names of shared
//! statements that are deallocated.
//!
//! Which texts those are is decided by [`crate::wire::sql::local`]; where the reply goes among others, by
//! the walk over the client's messages.

use super::Session;
use super::locals::Text;
use super::reply::{self, Fault};
use super::tracker::{Injected, OpKind};
use super::up::{FAIL, Next, Stop};
use crate::config::{PoolMode, Scope};
use crate::statements::session::Look;
use crate::tag::{self, Key};
use crate::wire::backend::{TxStatus, bare, command_complete, message, text_columns, text_row};
use crate::wire::compose::SYNC;
use crate::wire::error::Report;
use crate::wire::sql::local::Local;
use bytes::{BufMut, BytesMut};
use std::sync::Arc;
use std::time::Duration;

/// Room for the answer to a BEGIN, and most others, in bytes.
const SHORT: usize = 32;

impl<S> Session<S> {
    /// Answers a message here, in its place among the replies still outstanding.
    pub(super) fn make_up(&mut self, op: OpKind, total: usize, write: impl FnOnce(&mut Self, &mut BytesMut)) {
        let mut bytes = BytesMut::with_capacity(SHORT);
        write(self, &mut bytes);
        if self.lease.is_none() && op.is_extended() {
            self.tracker.answer(op, bytes.freeze(), false, &mut self.unflushed);
        } else {
            self.flush_here();
            let (tracker, lane) = (&mut self.tracker, &mut self.down.lane);
            lane.make(|out| tracker.answer(op, bytes.freeze(), op == OpKind::Query, out));
        }
        self.up.take(total, false);
    }

    /// Answers an extended message with an error, behind what it was `done` before: the client's
    /// messages are skipped up to its Sync, and an error, unlike other replies, waits for nothing.
    pub(super) fn refuse_here(&mut self, op: OpKind, total: usize, mut done: BytesMut, why: &Report) {
        why.encode(&mut done);
        self.fail_unleased();
        self.make_up(op, total, |_, out| out.unsplit(done));
        self.flush_here();
        if self.lease.is_some() {
            // What the segment has done is undone. Also brings the replies before it out of the
            // server's buffer.
            self.up.lane.put(FAIL);
            self.tracker.inject(OpKind::Execute, Injected::Failure);
        }
        self.tracker.skip_to_sync();
    }

    /// Sends the replies made here that waited for a Flush, a Sync, or an error.
    pub(super) fn flush_here(&mut self) {
        if !self.unflushed.is_empty() {
            self.down.lane.put(&self.unflushed);
            self.unflushed.clear();
        }
    }

    pub(super) fn answer_query(&mut self, statements: &Text, total: usize) -> Next {
        // A Query before it may open a COPY.
        if self.tracker.may_be_skipped() || self.tracker.is_querying() {
            return Next::Stop(Stop::Hold);
        }
        if self.lease.is_some() && self.tracker.is_unsynced() {
            self.emit_made_up();
            self.up.lane.put(SYNC);
            self.tracker.end_pipeline();
            self.statements.sync();
        }
        self.statements.drop_unnamed();
        self.make_up(OpKind::Query, total, |session, out| {
            for local in statements {
                if let Err(report) = session.perform(local, true, out) {
                    report.encode(out);
                    break;
                }
            }
        });
        Next::Done
    }

    /// Does one statement that is answered here, and writes its reply. `described`: a reply with
    /// rows begins with their description, as in the simple protocol.
    pub(super) fn perform(
        &mut self,
        local: &Local,
        described: bool,
        out: &mut BytesMut,
    ) -> Result<(), Report> {
        match local {
            Local::Set { key, value, local } => {
                self.set_tag(*key, value.as_deref(), *local)?;
                self.note_wider(*key, out);
                command_complete(out, "SET");
            }
            Local::SetConfig { key, value, local } => {
                self.set_tag(*key, value.as_deref(), *local)?;
                self.note_wider(*key, out);
                if described {
                    text_columns(out, ["set_config"].into_iter());
                }
                text_row(out, [value.as_deref()].into_iter());
                command_complete(out, "SELECT 1");
            }
            Local::Reset { key } => {
                self.set_tag(*key, None, false)?;
                command_complete(out, "RESET");
            }
            Local::Show { key } => {
                if described {
                    text_columns(out, [&*format!("bursar.{}", key.name())].into_iter());
                }
                text_row(out, [Some(self.tags.show(*key))].into_iter());
                command_complete(out, "SHOW");
            }
            Local::EndRequest { column } => {
                let ended = self.end_request()?;
                if described {
                    text_columns(out, [&**column].into_iter());
                }
                text_row(out, [ended.as_deref()].into_iter());
                command_complete(out, "SELECT 1");
            }
            Local::Deallocate { name } => {
                if !matches!(self.statements.look(name), Look::Shared(_)) {
                    let name = String::from_utf8_lossy(name).into();
                    return Err(reply::fault(&Fault::UndefinedStatement { name }));
                }
                self.statements.unname(name, false);
                command_complete(out, "DEALLOCATE");
            }
            Local::Unknown { name, .. } => return Err(reply::unknown_tag(name)),
        }
        Ok(())
    }

    /// Tells a client that has set itself a wider budget than it has that this changes nothing.
    fn note_wider(&mut self, key: Key, out: &mut BytesMut) {
        use Key::{MaxAgeMs, MaxConcurrent, MaxIdleMs, MaxLeases, MaxStatementMs};
        if !matches!(key, MaxAgeMs | MaxConcurrent | MaxIdleMs | MaxLeases | MaxStatementMs) {
            return;
        }
        let tag = self.resolve(self.now);
        let budgets = self.config.budgets(&Scope {
            database: &self.pool.database,
            user: &self.pool.user,
            class: tag.class.as_deref(),
            route: tag.route.as_deref(),
            tenant: &tag.tenant,
        });
        let asked = self.tags.show(key);
        let Ok(number) = asked.parse::<u32>() else { return };
        let count = |name: &str, limit: Option<u32>| {
            limit.filter(|limit| number > *limit).map(|limit| format!("{name}={limit}"))
        };
        let time = |name: &str, limit: Option<Duration>| {
            let wider = limit.filter(|limit| Duration::from_millis(number.into()) > *limit);
            wider.map(|limit| format!("{name}.abort={}", reply::span(limit)))
        };
        let wider = match key {
            MaxConcurrent => count("max_concurrent", Some(budgets.max_concurrent)),
            MaxLeases => count("max_leases", budgets.leases_reject),
            MaxStatementMs => time("max_time", budgets.statement.abort),
            MaxAgeMs => time("max_age", budgets.age.abort),
            // It is wider only if it is so when nobody waits.
            _ => time("max_idle", budgets.idle_abort_alone),
        };
        if let Some(budget) = wider {
            reply::loosens(key, asked, &budget).encode(out);
        }
    }

    /// The client says that its request is over, for all sessions that work for it. Returns which.
    fn end_request(&mut self) -> Result<Option<Arc<str>>, Report> {
        let ended = self.resolve(self.now).request.clone();
        self.set_tag(Key::RequestId, None, false)?;
        if let Some(ended) = &ended {
            self.pools.request_closed(ended, self.now);
        }
        Ok(ended)
    }

    /// RESET ALL or DISCARD ALL has run: what the session's tags were set to is gone, as PostgreSQL's settings
    /// are. In mode request it ends the request as well, as RESET of its tag would.
    pub(super) fn reset_tags(&mut self) {
        if self.mode == PoolMode::Request {
            // Without a value there is nothing to refuse.
            let _ = self.tags.set(tag::Scope::Session, Key::RequestId, None, self.now);
            if let Some(ended) = self.tags.take_ended() {
                self.pools.request_ended(&ended);
            }
        }
        if self.tags.is_set() {
            self.tags.reset_all();
            let tag = self.resolve(self.now);
            self.cell.bound(tag.own());
        }
    }

    fn set_tag(&mut self, key: Key, value: Option<&str>, local: bool) -> Result<(), Report> {
        if local && self.lease.is_none() && self.tracker.status() == TxStatus::Idle {
            return Ok(()); // SET LOCAL outside a transaction has no effect
        }
        self.may_retag(key, value)?;
        let scope = if local { tag::Scope::Local } else { tag::Scope::Session };
        let set = self.tags.set(scope, key, value, self.now);
        set.map_err(|error| reply::bad_tag(&error))?;
        if let Some(ended) = self.tags.take_ended() {
            self.pools.request_ended(&ended);
        }
        let tag = self.resolve(self.now);
        match self.lease {
            None => self.cell.tagged(&tag),
            // What it has asked for before goes on as another one's work, but in its own time.
            Some(_) => self.cell.bound(tag.own()),
        }
        Ok(())
    }
}

/// The answer to a Describe of a text answered here.
pub(super) fn describe(text: &Text, statement: bool, out: &mut BytesMut) {
    if statement {
        message(out, b't', |out| out.put_i16(0));
    }
    match text.first() {
        Some(Local::Show { key }) => text_columns(out, [&*format!("bursar.{}", key.name())].into_iter()),
        Some(Local::EndRequest { column }) => text_columns(out, [&**column].into_iter()),
        Some(Local::SetConfig { .. }) => text_columns(out, ["set_config"].into_iter()),
        _ => bare(out, b'n'),
    }
}
