//! What a transaction that no backend has ([`virtual_tx`]) means for the client's messages, and how it
//! comes to its backend.
//!
//! A BEGIN that was answered here goes out as part of the segment that the client's first message
//! begins: Parse, Bind, Execute and Close without a Sync. If it fails, the server skips what follows up
//! to the next Sync, so that nothing of the client's can run outside its transaction; as a Query of its
//! own it could not protect the statement behind it. For the same reason nothing behind the client's
//! first Query or Sync is sent before the BEGIN has been answered.
//!
//! [`virtual_tx`]: super::virtual_tx

use super::message::{query_text, without};
use super::reply::{self, Fault};
use super::serve::End;
use super::tracker::{Injected, OpKind};
use super::up::Next;
use super::virtual_tx::{Lead, Reply, Said, Why};
use super::{Session, Socket, private};
use crate::pool::lease::Lease;
use crate::tag::Tag;
use crate::wire::backend::{TxStatus, bare, command_complete, message};
use crate::wire::compose;
use crate::wire::error::Report;
use crate::wire::frontend::{Kind, bind_names, execute_portal, target};
use crate::wire::sql::local;
use crate::wire::sql::scan::Scan;
use crate::wire::sql::transaction::Verb;
use crate::wire::walk::{HEADER, cstr};
use bytes::{BufMut, BytesMut};
use std::ops::Range;

/// Brings a backend into a transaction that has failed, where no statement but its end may run.
pub(super) const FAILED_BLOCK: &[u8] =
    b"BEGIN; ROLLBACK TO SAVEPOINT bursar_has_rolled_back_this_transaction";

impl<S> Session<S> {
    /// Answers a Query that is a BEGIN alone, with no lease. Returns whether it is one. `cut` is a comment
    /// of ours in it.
    pub(super) fn begins_here(&mut self, total: usize, cut: Option<Range<usize>>) -> bool {
        let bytes = self.up.lane.unwalked();
        if !self.lazy_begin || !self.tx.is_real() || bytes.len() < total {
            return false;
        }
        let tag = match Verb::of(query_text(bytes, total).0) {
            Verb::Begin => "BEGIN",
            Verb::Start => "START TRANSACTION",
            _ => return false,
        };
        let message = without(&bytes[..total], cut);
        let text: Box<[u8]> = query_text(&message, message.len()).0.into();
        self.watch_begin(&text);
        self.tx.begin(text);
        self.tracker.set_status(TxStatus::InTransaction);
        self.drop_unnamed();
        self.make_up(OpKind::Query, total, |_, out| command_complete(out, tag));
        // In the transaction nobody asks any more how old the request tag is.
        self.resolve(self.now);
        self.tags.end_statement(true);
        true
    }

    /// A Query has been answered here: as any other it has dropped the unnamed statement.
    fn drop_unnamed(&mut self) {
        self.statements.drop_unnamed();
        if !self.locals.is_empty() {
            self.locals.forget_statement(b"");
        }
    }

    /// Decides a message in a transaction that no backend has, or that the client has not been told the
    /// end of. `None`: it goes the ordinary way.
    pub(super) fn hear(&mut self, kind: Kind, total: usize) -> Option<Next> {
        let bytes = self.up.lane.unwalked();
        let body = &bytes[HEADER..total.min(bytes.len())];
        let verb = |text: &[u8]| if bytes.len() >= total { Verb::of(text) } else { Verb::Exits };
        let said = match kind {
            Kind::Query => {
                let text = query_text(bytes, total).0;
                if local::parse(text).is_some() {
                    return None;
                }
                Said::Query(verb(text))
            }
            Kind::FunctionCall => Said::Call,
            Kind::Parse => {
                let (name, rest) = cstr(body)?;
                let text = cstr(rest).map_or(rest, |(text, _)| text);
                if local::parse(text).is_some() {
                    return None;
                }
                Said::Parse { name, verb: verb(text) }
            }
            Kind::Bind => {
                let (portal, statement) = bind_names(body)?;
                if self.locals.statement(statement).is_some() {
                    return None;
                }
                Said::Bind { portal, statement }
            }
            Kind::Describe => match target(body)? {
                (b'S', name) if self.locals.statement(name).is_none() => Said::DescribeStatement(name),
                (b'P', name) if self.locals.portal(name).is_none() => Said::DescribePortal(name),
                _ => return None,
            },
            Kind::Execute => {
                let portal = execute_portal(body)?;
                if self.locals.portal(portal).is_some() {
                    return None;
                }
                Said::Execute(portal)
            }
            _ => return None,
        };
        let reply = self.tx.hear(said);
        self.answer_virtually(kind, total, reply).then_some(Next::Done)
    }

    /// Returns whether the message has been answered.
    fn answer_virtually(&mut self, kind: Kind, total: usize, reply: Reply) -> bool {
        let simple = matches!(kind, Kind::Query | Kind::FunctionCall);
        match reply {
            Reply::Pass => return false,
            Reply::Acknowledge if kind == Kind::Bind => {
                self.make_up(OpKind::Bind, total, |_, out| bare(out, b'2'));
            }
            Reply::Acknowledge => self.keep_parse(total),
            Reply::NoData => self.describe_kept(total),
            Reply::Complete(tag) => {
                self.leave_tx();
                if simple {
                    self.drop_unnamed();
                }
                let op = if simple { OpKind::Query } else { OpKind::Execute };
                self.make_up(op, total, |_, out| command_complete(out, tag));
            }
            Reply::Fail(why, status) => {
                let report = self.words(why);
                if status == TxStatus::Idle {
                    self.leave_tx();
                } else {
                    self.tracker.set_status(status);
                }
                if simple {
                    self.drop_unnamed();
                    self.make_up(OpKind::Query, total, |_, out| report.encode(out));
                } else {
                    self.refuse_here(OpKind::Execute, total, BytesMut::new(), &report);
                }
            }
            Reply::FailAndRollBack(why) => {
                let report = self.words(why);
                self.up.lane.make(|out| private::query(out, b"ROLLBACK"));
                self.tracker.inject(OpKind::Query, Injected::Segment);
                self.set_injected(true);
                self.statements.unnamed_is_gone();
                self.make_up(OpKind::Query, total, |_, out| report.encode(out));
            }
        }
        true
    }

    fn words(&mut self, why: Why) -> Report {
        match why {
            Why::Told(report) => *report,
            Why::Failed => reply::fault(&Fault::TransactionFailed),
        }
    }

    /// A Parse of a COMMIT or ROLLBACK is answered. As the unnamed statement it outlives the transaction.
    fn keep_parse(&mut self, total: usize) {
        self.locals.forget_statement(b"");
        let message = &self.up.lane.unwalked()[..total];
        self.statements.parse(b"", Some(message), Scan::default());
        self.statements.acknowledged();
        self.statements.unnamed_is_gone();
        self.make_up(OpKind::Parse, total, |_, out| bare(out, b'1'));
    }

    fn describe_kept(&mut self, total: usize) {
        let statement = self.up.lane.unwalked().get(HEADER) == Some(&b'S');
        let op = if statement { OpKind::DescribeStatement } else { OpKind::DescribePortal };
        self.make_up(op, total, |_, out| {
            if statement {
                message(out, b't', |out| out.put_i16(0));
            }
            bare(out, b'n');
        });
    }

    /// A transaction that no backend has is over.
    fn leave_tx(&mut self) {
        self.tracker.set_status(TxStatus::Idle);
        self.watch_end();
        self.tags.end_statement(false);
        self.tags.used(self.now);
    }

    /// Something was refused without a lease: a transaction that no backend has fails by that.
    pub(super) fn fail_unleased(&mut self) {
        if self.lease.is_none() && !self.tx.is_real() {
            let status = self.tx.refused();
            self.tracker.set_status(status);
            self.watch_lost();
        }
    }

    /// A lease begins, its settings are on their way: the transaction that the client has begun comes to
    /// its backend, ahead of the client's message.
    pub(super) fn bring_transaction(&mut self) {
        let text = match self.tx.lease() {
            Lead::Begin(text) => text,
            Lead::Resume(resume) => return self.resume(&resume),
            Lead::Nothing | Lead::Failed => return,
        };
        self.up.lane.make(|out| {
            compose::parse(out, b"", &text, &[]);
            compose::bind(out, b"", &[]);
            out.extend_from_slice(compose::EXECUTE);
            out.extend_from_slice(compose::CLOSE_PORTAL);
        });
        for kind in [OpKind::Parse, OpKind::Bind, OpKind::Execute, OpKind::Close] {
            self.tracker.inject(kind, Injected::Begin);
        }
        self.linked.beginning = true;
    }

    /// Whether a message must not be sent before what Bursar has sent ahead of the client's, a BEGIN or a
    /// tenant context, has been answered: only what comes up to the first Query or Sync is skipped if that
    /// fails.
    pub(super) fn is_behind_begin(&self, kind: Kind) -> bool {
        if self.linked.unbegun {
            return !self.tracker.is_skipping();
        }
        (self.linked.beginning || self.linked.lending)
            && !matches!(kind, Kind::CopyData | Kind::CopyDone | Kind::CopyFail)
            && self.tracker.awaits_ready()
    }
}

impl<S: Socket> Session<S> {
    /// Brings the backend of a new lease into the failed transaction that the client is in, before
    /// anything of the client's can run on it; with its tenant context, for what it runs behind the end.
    pub(super) async fn bring_failed(&mut self, lease: &mut Lease, tag: &Tag) -> Result<(), End> {
        let context = self.context_of(tag);
        let (backend, buffers) = (lease.backend(), &self.pools.buffers);
        let made = async {
            if backend.settings != self.settings {
                private::fit(backend, buffers, &self.settings).await?;
            }
            if self.fence.is_some() || backend.context.is_kept() {
                private::bring(backend, buffers, self.fence.as_ref().map(|fence| (fence, &context))).await?;
            }
            private::fail_block(backend, buffers, FAILED_BLOCK).await
        };
        made.await.map_err(|trouble| {
            tracing::warn!(%trouble, session = self.cell.id.0, "a failed transaction has no backend");
            End::fault(&Fault::BackendLost)
        })
    }
}
