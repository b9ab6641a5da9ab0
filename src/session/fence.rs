//! Whose rows a session's statements see: its tenant context is given to a backend with the lease, ahead
//! of the client's first bytes and in the same write, and taken back before anybody else has the backend
//! (wire.md C4).
//!
//! Where a transaction is known to begin with statements of rows, the context is lent to it alone (`lend`), and
//! there is nothing to take back.
//!
//! A lease that outlives its transaction (session mode, a pin) gets the context again where each
//! transaction begins, also because the client may have named another tenant. Within a transaction the
//! tenant stays what it was; a statement that says it is another one's is refused.
//!
//! That is a fence between an application's tenants, not against an application: what a text shows of a
//! client's own setting of the context is refused, what a function hides is not.
//!
//! The messages, and what a backend has, are [`crate::state::fence`]'s.

use super::lend::{Lent, Outlasts};
use super::message::query_text;
use super::reply::isolation;
use super::serve::End;
use super::up::{Next, Stop};
use super::{Glance, Session, Socket, private};
use crate::backend::Backend;
use crate::clock;
use crate::config::{Config, Mode, PoolMode, PoolRules};
use crate::metrics::Isolation;
use crate::pool::cell::Order;
use crate::pool::lease::Lease;
use crate::state::fence::Context;
use crate::statements::session::Look;
use crate::tag::{Key, Tag};
use crate::wire::backend::TxStatus;
use crate::wire::error::Report;
use crate::wire::frontend::{Kind, bind_names};
use crate::wire::sql::reserved::{mentions, sets_any};
use crate::wire::walk::{HEADER, Header, cstr};
use std::ops::Range;
use std::sync::Arc;

/// Whether sessions of a pool have to be looked at before they may have a lease.
pub(super) fn guards(rules: &PoolRules, config: &Config) -> bool {
    rules.require_tenant_context
        || rules.tenant_context.kept().is_some()
        || config.tenants.values().any(|tenant| !tenant.users.is_empty())
}

/// How the context of a statement on a held lease compares to the backend's.
enum Standing {
    /// The backend has it.
    Same,
    /// A transaction begins: the backend gets it now.
    Begins,
    /// What runs is another tenant's, and not in a transaction: after that.
    Behind,
    /// It is refused.
    Refused(Report),
}

impl<S> Session<S> {
    /// Whether work with these tags may have a backend.
    ///
    /// # Errors
    /// What the client is told.
    pub(super) fn may_run(&mut self, tag: &Tag) -> Result<(), Report> {
        let users = &self.config.tenant(&tag.tenant).users;
        if !users.is_empty() && !users.iter().any(|user| **user == *self.pool.user) {
            return Err(self.violated(Isolation::V5, tag));
        }
        let tenant = match &self.fence {
            Some(fence) => match fence.tenant(tag, &self.pool.user) {
                Ok(tenant) => tenant.is_some(),
                Err(bad) => return Err(isolation::bad_value(bad)),
            },
            None => tag.has_tenant,
        };
        if !tenant && self.pool.rules().require_tenant_context {
            return Err(self.violated(Isolation::V2, tag));
        }
        Ok(())
    }

    /// Whether a client may name another tenant, user or request at this moment: not in a transaction that
    /// works for one already.
    ///
    /// # Errors
    /// What it is told; the transaction goes on.
    pub(super) fn may_retag(&mut self, key: Key, value: Option<&str>) -> Result<(), Report> {
        let held = self.lease.is_some() || self.tx.is_parked();
        let open = held && (self.tracker.status() != TxStatus::Idle || self.tracker.is_unsynced());
        if !open {
            return Ok(());
        }
        let tag = self.resolve(self.now);
        let told = value.filter(|value| !value.is_empty());
        let differs = |now: &Option<Arc<str>>| now.is_some() && told.is_some() && now.as_deref() != told;
        let kind = match key {
            Key::Tenant if self.fence.is_some() && !self.linked.context_due => {
                let same = value.is_some() && value == self.linked.context.tenant.as_deref();
                return if same { Ok(()) } else { Err(self.violated(Isolation::V1, &tag)) };
            }
            Key::Tenant if self.keys_deny(key, told) => Isolation::V1,
            Key::UserId if differs(&tag.user_id) => Isolation::V6,
            Key::RequestId if differs(&tag.request) => Isolation::V7,
            _ => return Ok(()),
        };
        let mode = self.config.isolation.mode;
        if mode == Mode::Enforce {
            return Err(self.violated(kind, &tag));
        }
        self.pools.metrics.isolation.inc(kind);
        if mode == Mode::Warn {
            crate::pool::events::isolation(kind, &self.cell, &tag, false);
        }
        Ok(())
    }

    /// Whether a parked transaction may go on for whom these tags name.
    ///
    /// # Errors
    /// What the client is told; the transaction has failed.
    pub(super) fn may_resume(&mut self, tag: &Tag) -> Result<(), Report> {
        let tenant = self.fence.as_ref().map(|fence| fence.tenant(tag, &self.pool.user));
        match tenant {
            Some(Ok(tenant)) if tenant != self.linked.context.tenant.as_ref() => {
                Err(self.violated(Isolation::V1, tag))
            }
            Some(Err(bad)) => Err(isolation::bad_value(bad)),
            _ => Ok(()),
        }
    }

    /// Counts and tells of an isolation violation (budgets.md §2.7); a session that does it again is
    /// closed. Returns what its client is told.
    pub(super) fn violated(&mut self, kind: Isolation, tag: &Tag) -> Report {
        self.pools.metrics.isolation.inc(kind);
        self.violations = self.violations.saturating_add(1);
        let repeated = self.violations > 1;
        crate::pool::events::isolation(kind, &self.cell, tag, repeated);
        if repeated {
            self.cell.order(Order::Expel);
            if let Some(request) = &tag.request {
                self.pools.quarantine(request, self.now);
            }
        }
        isolation::violation(kind, tag, &self.pool.user)
    }

    /// A lease begins: its backend gets the context before anything else.
    pub(super) fn fence_lease(&mut self, backend: &mut Backend, tag: &Tag) {
        let context = self.context_of(tag);
        if self.mode == PoolMode::Session {
            // No statement has come yet: with the next transaction, then.
            self.linked.context_due = self.fence.is_some();
        } else if self.tx.leads_failed() {
            // None can run. It was brought before the transaction in which they cannot.
            self.linked.context = context;
        } else if !self.lend_context(backend, &context) {
            self.send_context(backend, context);
        }
    }

    /// What work with these tags runs under. A tenant that no context may have gets no lease.
    pub(super) fn context_of(&self, tag: &Tag) -> Context {
        let context = self.fence.as_ref().and_then(|fence| fence.context(tag, &self.pool.user).ok());
        context.unwrap_or_default()
    }

    fn send_context(&mut self, backend: &mut Backend, context: Context) {
        let fence = self.fence.clone();
        let want = fence.as_ref().map(|fence| (fence, &context));
        let again = fence.as_ref().is_some_and(|fence| fence.is_strict());
        let segments = self.up.lane.make(|out| backend.context.bring(want, again, out));
        for parses in &segments {
            self.tracker.fence(*parses);
        }
        self.linked.injected |= !segments.is_empty();
        self.linked.context = context;
        self.linked.context_due = false;
    }

    /// A message of the client's is about to be decided. `Some`: it is dealt with, or waits.
    pub(super) fn fence_message(&mut self, kind: Kind, total: usize) -> Option<Next> {
        let uses =
            matches!(kind, Kind::Bind | Kind::Describe | Kind::Close | Kind::Execute | Kind::FunctionCall);
        if matches!(kind, Kind::Query | Kind::Parse) {
            return self.refuse_reserved(kind, total).then_some(Next::Done);
        }
        if kind == Kind::Bind {
            if self.refuse_reserved_value(total) {
                return Some(Next::Done);
            }
            self.note_turn(total);
        }
        if !uses || self.lease.is_none() {
            return None;
        }
        match self.standing() {
            Standing::Same => None,
            Standing::Begins => {
                self.fence_again();
                Some(Next::Done)
            }
            Standing::Behind => Some(Next::Stop(Stop::Hold)),
            Standing::Refused(report) => {
                self.refuse_message(kind, total, &report);
                Some(Next::Done)
            }
        }
    }

    /// A statement whose tags are known is about to be sent on a held lease. `cut` is what the look at it
    /// has found.
    pub(super) fn fence_statement(
        &mut self,
        cut: Option<Range<usize>>,
    ) -> Result<Option<Range<usize>>, Next> {
        match self.standing() {
            Standing::Same => match self.outlasts_block() {
                Outlasts::No => Ok(cut),
                Outlasts::Set => {
                    self.glanced = Some(Glance { cut });
                    Err(Next::Done)
                }
                Outlasts::Unknown => Err(Next::Stop(Stop::Hold)),
                Outlasts::Refused => {
                    let tag = self.resolve(self.now);
                    let report = isolation::violation(Isolation::V4, &tag, &self.pool.user);
                    self.refuse_next(&report);
                    Err(Next::Done)
                }
            },
            Standing::Begins => {
                self.fence_again();
                self.glanced = Some(Glance { cut });
                Err(Next::Done)
            }
            // Looked at again then: the end of what runs takes the tags of its comment with it.
            Standing::Behind => Err(Next::Stop(Stop::Hold)),
            Standing::Refused(report) => {
                self.refuse_next(&report);
                Err(Next::Done)
            }
        }
    }

    fn refuse_next(&mut self, report: &Report) {
        let head = Header::read(self.up.lane.unwalked());
        if let Some((kind, total)) = head.and_then(|head| Some((Kind::of(head.kind)?, head.total()?))) {
            self.refuse_message(kind, total, report);
        }
    }

    /// Refuses a text that would set what is Bursar's to set. Returns whether it did.
    fn refuse_reserved(&mut self, kind: Kind, total: usize) -> bool {
        let bytes = self.up.lane.unwalked();
        // Looked at before, too long to be looked at, or in a COPY, where the server has more to say.
        if self.glanced.is_some() || bytes.len() < total || self.tracker.is_copying_in() {
            return false;
        }
        let Some(fence) = &self.fence else { return false };
        let text = match kind {
            Kind::Query => Some(query_text(bytes, total).0),
            _ => cstr(&bytes[HEADER..total]).and_then(|(_, rest)| cstr(rest)).map(|(text, _)| text),
        };
        text.is_some_and(|text| sets_any(text, fence.keys())) && self.refuse_v1(kind, total)
    }

    /// Refuses a Bind that names the context in a parameter of a statement that sets what it is told to.
    /// Returns whether it did.
    fn refuse_reserved_value(&mut self, total: usize) -> bool {
        let bytes = self.up.lane.unwalked();
        let body = &bytes[HEADER..bytes.len().min(total)];
        let (Some(fence), Some((_, name))) = (&self.fence, bind_names(body)) else { return false };
        let sets = match name {
            b"" => self.statements.unnamed().0.sets(),
            name => match self.statements.look(name) {
                Look::Shared(statement) => statement.facts.scan.sets(),
                Look::Private => true,
                Look::None | Look::Replies => false,
            },
        };
        sets && fence.keys().any(|key| mentions(body, key.as_bytes())) && self.refuse_v1(Kind::Bind, total)
    }

    fn refuse_v1(&mut self, kind: Kind, total: usize) -> bool {
        let tag = self.resolve(self.now);
        let report = self.violated(Isolation::V1, &tag);
        self.refuse_message(kind, total, &report);
        true
    }

    fn standing(&mut self) -> Standing {
        if self.fence.is_none() || self.tracker.is_copying_in() {
            return Standing::Same;
        }
        match self.linked.lent {
            // The BEGIN itself, unless it was not sent for some reason, and its segment was.
            Lent::Opening if !self.tracker.awaits_ready() => return Standing::Same,
            Lent::Opening => return Standing::Behind,
            // The segment that has the context is complete; behind it there is none.
            Lent::Segment if !self.tracker.is_unsynced() => return Standing::Behind,
            _ => {}
        }
        let tag = self.resolve(self.now);
        if self.linked.context_due {
            if self.linked.lent == Lent::Block && !self.tracker.is_unsynced() && !self.tracker.knows_status()
            {
                return Standing::Behind;
            }
            if self.tracker.status() == TxStatus::Failed && self.linked.lent != Lent::Segment {
                // Nothing but its end runs there, or what leads back to where it had not failed; behind an end
                // in the same pipeline it has ended.
                return Standing::Same;
            }
            return match self.may_run(&tag) {
                Ok(()) => Standing::Begins,
                Err(report) => Standing::Refused(report),
            };
        }
        let Some(fence) = &self.fence else { return Standing::Same };
        if fence.is_same_tenant(&self.linked.context, &tag, &self.pool.user) {
            return Standing::Same;
        }
        match fence.tenant(&tag, &self.pool.user) {
            _ if self.tracker.status() == TxStatus::Idle && !self.tracker.is_unsynced() => Standing::Behind,
            Ok(_) => Standing::Refused(self.violated(Isolation::V1, &tag)),
            Err(bad) => Standing::Refused(isolation::bad_value(bad)),
        }
    }

    /// A transaction begins on a held lease.
    fn fence_again(&mut self) {
        let tag = self.resolve(self.now);
        let context = self.context_of(&tag);
        let Some(mut lease) = self.lease.take() else { return };
        if self.linked.lent != Lent::No || self.tracker.status() == TxStatus::InTransaction {
            self.lend_within(lease.backend(), &context);
        } else {
            self.send_context(lease.backend(), context);
        }
        self.lease = Some(lease);
        let injected = self.linked.injected;
        self.set_injected(injected);
    }

    /// Something of the client's may change the context.
    pub(super) fn doubt_context(&mut self) {
        if self.fence.is_some() {
            self.lease.iter_mut().for_each(|lease: &mut Lease| lease.backend().context.doubt());
        }
    }
}

impl<S: Socket> Session<S> {
    /// V4: whether the backend of a lease that has ended is as it should be. If not, it must be closed.
    pub(super) async fn looks_clean(&mut self, lease: &mut Lease) -> bool {
        self.cell.finished(self.now);
        let clean = private::is_clean(lease.backend(), &self.pools.buffers).await;
        self.now = clock::now();
        if let Ok(false) = clean {
            self.pools.metrics.isolation.inc(Isolation::V4);
            crate::pool::events::isolation(Isolation::V4, &self.cell, &self.cell.glance().1, false);
        }
        clean.unwrap_or(false)
    }

    /// The backend did not take the context. What the client sent behind it has run as nobody, or as the
    /// tenant it was meant for, and nobody is told what came of it.
    pub(super) fn unfenced(&mut self) -> End {
        let error = self.linked.unfenced.take().unwrap_or_default();
        tracing::error!(
            pool = %self.pool.database, session = self.cell.id.0, %error,
            "a backend did not take its tenant context and is closed"
        );
        self.pools.metrics.context_mismatches.inc();
        self.abandon(false);
        End::Told(Box::new(isolation::unfenced()))
    }
}
