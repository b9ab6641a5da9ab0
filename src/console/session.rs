//! One console session: messages in, replies out. Pure but for what the views read; the loop that
//! owns the socket is in `mod.rs`.
//!
//! ```text
//!   simple:    Query ──► statements in turn ──► ReadyForQuery
//!   extended:  Parse, Bind, Describe, Execute, Close … ──error──► skipping ──Sync──► ReadyForQuery
//!   either:    a command ──► Step::Run, then done() goes on where it stopped
//! ```
//!
//! What the user may do is asked for each statement anew: a reload may have changed it.
//!
//! Transactions are only a status: drivers open one without being asked, and a view is as consistent
//! inside as outside. After an error inside one, statements are refused until it ends, as drivers
//! expect.

use super::extended::Extended;
use super::fault::Fault;
use super::plan::{Formats, Plan, Query, data_row, describe};
use super::source::{Command, Done, Source};
use super::sql::{Statement, parse};
use crate::config::{Keeper, Rights};
use crate::wire::backend::{TxStatus, bare, command_complete, ready_for_query};
use crate::wire::error::{Report, Severity};
use crate::wire::frontend::Kind;
use crate::wire::walk::cstr;
use bytes::BytesMut;
use std::collections::VecDeque;

/// What the loop does next, after writing what there is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read the next message.
    Next,
    /// Write, then call [`Session::resume`].
    More,
    /// Run this, then call [`Session::done`].
    Run(Command),
    /// Write, then close.
    Close,
}

/// Output at which a series of statements pauses to be written, in bytes.
pub(super) const ENOUGH: usize = 64 * 1024;

/// The state of one console session.
#[derive(Debug)]
pub(super) struct Session {
    keeper: Keeper,
    pub(super) status: TxStatus,
    pub(super) extended: Extended,
    /// After an error in the extended protocol: until Sync.
    skipping: bool,
    /// Statements of the simple query at hand.
    rest: VecDeque<Statement>,
    /// Whether the command that runs came by the simple protocol.
    simple: bool,
}

impl Session {
    /// A session that was told ReadyForQuery.
    pub(super) fn new(keeper: Keeper) -> Session {
        Session {
            keeper,
            status: TxStatus::Idle,
            extended: Extended::default(),
            skipping: false,
            rest: VecDeque::new(),
            simple: false,
        }
    }

    /// Handles one message.
    pub(super) fn frame(&mut self, source: &dyn Source, kind: Kind, body: &[u8], out: &mut BytesMut) -> Step {
        match kind {
            Kind::Terminate => Step::Close,
            Kind::Sync => {
                self.skipping = false;
                self.extended.synced(self.status);
                ready_for_query(out, self.status);
                Step::Next
            }
            _ if self.skipping => Step::Next,
            Kind::Query => {
                self.simple = true;
                self.query(source, body, out)
            }
            Kind::FunctionCall => {
                self.fail(&Fault::FunctionCall, out);
                ready_for_query(out, self.status);
                Step::Next
            }
            // PostgreSQL ignores these outside COPY; after every message the loop flushes anyway.
            Kind::CopyData | Kind::CopyDone | Kind::CopyFail | Kind::Flush => Step::Next,
            Kind::Parse | Kind::Bind | Kind::Describe | Kind::Execute | Kind::Close => {
                self.simple = false;
                match self.message(source, kind, body, out) {
                    Ok(step) => step,
                    Err(Fault::Malformed) => malformed(out),
                    Err(fault) => {
                        self.fail(&fault, out);
                        self.skipping = true;
                        Step::Next
                    }
                }
            }
        }
    }

    fn query(&mut self, source: &dyn Source, body: &[u8], out: &mut BytesMut) -> Step {
        let Some((text, [])) = cstr(body) else { return malformed(out) };
        let text = std::str::from_utf8(text).map_err(|_| Fault::NotUtf8);
        match text.and_then(parse) {
            Ok(statements) if statements.is_empty() => bare(out, b'I'),
            Ok(statements) => self.rest = statements.into(),
            Err(fault) => self.fail(&fault, out),
        }
        self.resume(source, out)
    }

    /// Goes on with the statements of a simple query.
    pub(super) fn resume(&mut self, source: &dyn Source, out: &mut BytesMut) -> Step {
        while let Some(statement) = self.rest.pop_front() {
            match self.statement(source, statement, out) {
                Ok(None) if out.len() >= ENOUGH => return Step::More,
                Ok(None) => {}
                Ok(Some(command)) => return Step::Run(command),
                Err(fault) => {
                    self.fail(&fault, out);
                    self.rest.clear();
                }
            }
        }
        ready_for_query(out, self.status);
        Step::Next
    }

    fn statement(
        &mut self,
        source: &dyn Source,
        statement: Statement,
        out: &mut BytesMut,
    ) -> Result<Option<Command>, Fault> {
        self.permit(&statement)?;
        let plan = Plan::of(statement, &[])?;
        if !plan.parameters().is_empty() {
            return Err(Fault::NoParameter { number: 1 });
        }
        let rights = self.allow(source, &plan)?;
        match plan {
            Plan::Rows(query) => whole(source, rights, &query, out),
            Plan::Command(command) => return Ok(Some(command)),
            Plan::Session(statement) => command_complete(out, self.control(&statement)?),
        }
        Ok(None)
    }

    /// In a failed transaction only its end is permitted.
    pub(super) fn permit(&self, statement: &Statement) -> Result<(), Fault> {
        let ends = matches!(statement, Statement::Commit | Statement::Rollback | Statement::RollbackTo);
        if self.status == TxStatus::Failed && !ends { Err(Fault::Aborted) } else { Ok(()) }
    }

    /// The rights of the user now, if they are enough for this.
    pub(super) fn allow(&self, source: &dyn Source, plan: &Plan) -> Result<Rights, Fault> {
        let rights = self.keeper.rights(&source.config());
        match plan.right() {
            Some(right) if !rights.has(right) => Err(Fault::Denied { right }),
            _ => Ok(rights),
        }
    }

    /// Does what concerns only this session; CommandComplete's tag.
    pub(super) fn control(&mut self, statement: &Statement) -> Result<&'static str, Fault> {
        let failed = self.status == TxStatus::Failed;
        Ok(match statement {
            Statement::Begin => {
                self.status = TxStatus::InTransaction;
                "BEGIN"
            }
            Statement::Commit | Statement::Rollback => {
                self.status = TxStatus::Idle;
                if failed || matches!(statement, Statement::Rollback) { "ROLLBACK" } else { "COMMIT" }
            }
            Statement::RollbackTo => {
                if failed {
                    self.status = TxStatus::InTransaction;
                }
                "ROLLBACK"
            }
            Statement::Deallocate(name) => {
                self.extended.deallocate(name.as_deref())?;
                if name.is_some() { "DEALLOCATE" } else { "DEALLOCATE ALL" }
            }
            Statement::Quiet(tag) => tag,
            // `Plan::of` makes rows or commands of the others.
            Statement::Show(_) | Statement::Setting(..) | Statement::Select(_) | Statement::Command(_) => "",
        })
    }

    /// Takes the result of a command and goes on.
    pub(super) fn done(
        &mut self,
        source: &dyn Source,
        result: Result<Done, Report>,
        out: &mut BytesMut,
    ) -> Step {
        match result {
            Ok(done) => {
                done.notices.iter().for_each(|notice| notice.encode(out));
                command_complete(out, &done.tag);
            }
            Err(report) => {
                self.told(&report, out);
                if report.severity == Severity::Fatal {
                    return Step::Close;
                }
                self.rest.clear();
                self.skipping = !self.simple;
            }
        }
        if self.simple { self.resume(source, out) } else { Step::Next }
    }

    fn fail(&mut self, fault: &Fault, out: &mut BytesMut) {
        self.told(&fault.report(), out);
    }

    fn told(&mut self, report: &Report, out: &mut BytesMut) {
        report.encode(out);
        if self.status == TxStatus::InTransaction && report.severity == Severity::Error {
            self.status = TxStatus::Failed;
        }
    }
}

/// A whole result in text format.
fn whole(source: &dyn Source, rights: Rights, query: &Query, out: &mut BytesMut) {
    let (columns, formats) = (query.columns(), Formats::default());
    describe(&columns, &formats, out);
    let rows = query.rows(source, rights, &[]);
    for row in &rows {
        data_row(&columns, row, &formats, out);
    }
    command_complete(out, &query.tag(rows.len()));
}

/// A message whose fields do not fit its length: nobody knows what else is wrong, so close.
fn malformed(out: &mut BytesMut) -> Step {
    let mut report = Fault::Malformed.report();
    report.severity = Severity::Fatal;
    report.encode(out);
    Step::Close
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::fake::Fake;
    use crate::wire::walk::{HEADER, Header};
    use proptest::prelude::*;

    /// Bodies that are nearly right: pieces of statements and of messages, and plain rubbish.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop::sample::select(vec![
            &b"SELECT "[..],
            b"* FROM bursar.leases",
            b"WHERE id < $1",
            b" AND NOT (",
            b")",
            b"'\xc3\xa4''",
            b"count(*)",
            b"KILL_CLIENT 1",
            b"\xff",
            b"\0",
            b"\0\0",
            b"\0\x01",
            b"\0\0\0\x01x",
            b";",
            b"BEGIN",
            b"--",
            b"/*",
            b"S",
            b"P",
        ]);
        let nearly = prop::collection::vec(pieces, 0..12).prop_map(|pieces| pieces.concat());
        prop_oneof![nearly, prop::collection::vec(any::<u8>(), 0..40)]
    }

    proptest! {
        #[test]
        fn any_messages_get_whole_replies_and_a_status(
            frames in prop::collection::vec((prop::sample::select(&b"QPBDECSHFdcf"[..]), body()), 1..20)
        ) {
            let (fake, mut session) = (Fake::planted(), Session::new(Fake::keeper()));
            for (kind, body) in frames {
                let mut out = BytesMut::new();
                let kind = Kind::of(kind).expect("only legal types");
                let mut step = session.frame(&fake, kind, &body, &mut out);
                while matches!(step, Step::Run(_) | Step::More) {
                    step = match step {
                        Step::Run(_) => session.done(&fake, Ok("DONE".into()), &mut out),
                        _ => session.resume(&fake, &mut out),
                    };
                }
                let mut rest = &out[..];
                let mut last = 0;
                while let Some(header) = Header::read(rest) {
                    let total = header.total().expect("a length of ours");
                    prop_assert!(total >= HEADER && total <= rest.len());
                    (last, rest) = (header.kind, &rest[total..]);
                }
                prop_assert!(rest.is_empty());
                if step == Step::Close {
                    prop_assert_eq!(last, b'E', "closed without a word");
                    break;
                }
                if kind == Kind::Sync {
                    prop_assert_eq!(last, b'Z');
                }
            }
        }
    }
}
