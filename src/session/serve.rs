//! The only loop: what happens after each event of the relay.

use super::cancel;
use super::policy::Masks;
use super::private;
use super::relay::Event;
use super::reply::{self, Fault};
use super::tracker::{Injected, OpKind};
use super::{Linked, Session, Socket, begins_lazily, prepared_cap};
use crate::book::{Claim, Outcome, Overrun, Overstay, Refusal, Warning};
use crate::clock;
use crate::config::PoolMode;
use crate::metrics::Isolation;
use crate::pool::Start;
use crate::pool::cell::Order;
use crate::pool::lease::Lease;
use crate::state::text;
use crate::tag::{Identity, Tag};
use crate::wire::backend::TxStatus;
use crate::wire::error::{Report, Severity};
use crate::wire::sql::scan::Traces;
use crate::wire::walk::{HEADER, Header};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// How long a client may take to read the last words before its socket is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a session ends.
pub(super) enum End {
    /// The client left; what it sent is finished within this time, or rolled back, and results still
    /// reach it.
    Left(Duration),
    /// The client's socket is broken.
    Lost,
    /// Close without a word.
    Silence,
    /// Told why, FATAL, behind replies to complete work that come within the grace period.
    Told(Box<Report>),
    /// Told why, FATAL, at once: its time is up. Whatever its backend does is cut short.
    Overstayed(Box<Report>),
    /// The backend is gone, and what it said last has been passed on.
    BackendGone,
}

impl End {
    pub(super) fn fault(fault: &Fault) -> End {
        End::Told(Box::new(reply::fault(fault)))
    }
}

/// A checkout that is not over at once, and for whom it is.
pub(super) enum Slow {
    /// Queued; the session has it ([`Session::queued`]).
    Queued,
    /// Refused.
    Refused(Box<Refusal>),
    /// Not to be asked for.
    Forbidden(Box<Report>),
    /// Granted, but the backend has to be asked for something first.
    Unfit(Box<(Lease, Vec<Warning>, Arc<Tag>)>),
}

impl<S: Socket> Session<S> {
    /// Serves the client until it leaves or is told to. Not cancel safe: dropped, the client's
    /// socket and its backend are closed.
    ///
    /// What is rare is boxed: the future of an idle session should be small.
    pub async fn serve(&mut self) {
        self.listen_for_orders().await;
        let end = loop {
            let acted = match poll_fn(|cx| self.poll_event(cx)).await {
                // Not in a box: in a busy pool nearly every checkout is queued.
                Event::Wait(Slow::Queued) => self.begin_queued().await,
                event => self.act(event).await,
            };
            if let Err(end) = acted {
                break end;
            }
        };
        Box::pin(self.close(end)).await;
    }

    async fn act(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Wait(slow) => Box::pin(self.begin_slowly(slow)).await,
            Event::Release => Box::pin(self.end_lease()).await,
            Event::Ordered => Box::pin(self.obey()).await,
            Event::ClientLeft => Err(End::Left(self.pool.rules().client_gone_grace)),
            Event::ClientLeftHeld => Box::pin(self.outlast()).await,
            Event::ClientLost => Err(End::Lost),
            Event::Silence => Err(End::Silence),
            Event::Drained => Err(End::fault(&Fault::Shutdown)),
            Event::Fault(report) => Err(End::Told(report)),
            Event::BackendGone => Err(self.backend_gone()),
            Event::Desync if self.linked.unfenced.is_some() => Err(self.unfenced()),
            Event::Desync => {
                tracing::error!(
                    pool = %self.pool.database, session = self.cell.id.0,
                    "the server's replies do not match what was sent; the backend is closed"
                );
                Err(self.backend_gone())
            }
        }
    }

    /// The client has gone, but what it had sent completely is executed, as PostgreSQL would, if that
    /// begins within the grace period.
    async fn outlast(&mut self) -> Result<(), End> {
        let deadline = tokio::time::Instant::now() + self.pool.rules().client_gone_grace;
        loop {
            let event = tokio::time::timeout_at(deadline, poll_fn(|cx| self.poll_event(cx))).await;
            let event = event.map_err(|_| End::Left(Duration::ZERO))?;
            Box::pin(self.act(event)).await?;
        }
    }

    /// An order wakes this task from now on, once.
    pub(super) async fn listen_for_orders(&self) {
        poll_fn(|cx| {
            self.cell.register(cx.waker());
            Poll::Ready(())
        })
        .await;
    }

    /// What takes time has a future of its own, which an idle session has no room for.
    async fn begin_slowly(&mut self, slow: Slow) -> Result<(), End> {
        match slow {
            Slow::Queued => self.begin_queued().await,
            Slow::Refused(refusal) => self.refuse(&refusal),
            Slow::Forbidden(report) => {
                self.reject(&report);
                Ok(())
            }
            Slow::Unfit(unfit) => self.adopt_unfit(unfit).await,
        }
    }

    /// What a session may do as a role it has taken on must not run without it, which it might if both
    /// went out in one write and the role is gone: waits for the answer. So it does for what brings the
    /// backend into a failed transaction.
    pub(super) async fn adopt_unfit(
        &mut self,
        unfit: Box<(Lease, Vec<Warning>, Arc<Tag>)>,
    ) -> Result<(), End> {
        let (mut lease, warnings, tag) = *unfit;
        let fit = private::fit(lease.backend(), &self.pools.buffers, &self.settings);
        if let Err(trouble) = fit.await {
            tracing::warn!(%trouble, session = self.cell.id.0, "a session cannot have its role or settings again");
            return Err(End::fault(&Fault::BackendLost));
        }
        if self.tx.leads_failed() {
            self.bring_failed(&mut lease, &tag).await?;
        }
        self.adopt(lease, &warnings, &tag, self.now);
        Ok(())
    }

    /// In session mode the lease of the login is the session's own until it ends.
    pub(super) fn begin_session_mode(&mut self, lease: Lease) {
        let now = clock::now();
        let tag = self.resolve(now);
        self.adopt(lease, &[], &tag, now);
        self.cell.ready(false, self.pin(), now);
    }

    pub(super) fn refuse(&mut self, refusal: &Refusal) -> Result<(), End> {
        let report = reply::refusal(refusal);
        if report.severity == Severity::Fatal {
            return Err(End::Told(Box::new(report)));
        }
        self.reject(&report);
        Ok(())
    }

    /// Answers the message that asked for a backend with an error, as PostgreSQL would: a Query is
    /// over, a pipeline is skipped up to its Sync.
    pub(super) fn reject(&mut self, report: &Report) {
        self.flush_here();
        self.glanced = None;
        self.down.lane.make(|out| report.encode(out));
        self.fail_unleased();
        let status = self.tracker.status();
        let Some(head) = Header::read(self.up.lane.unwalked()) else { return };
        if matches!(head.kind, b'Q' | b'F') {
            self.up.take(head.total().unwrap_or(HEADER), false);
            self.down.lane.make(|out| crate::wire::backend::ready_for_query(out, status));
        } else {
            self.tracker.skip_to_sync();
        }
        self.tags.end_statement(status != TxStatus::Idle);
    }

    pub(super) async fn end_lease(&mut self) -> Result<(), End> {
        if self.linked.injected_error {
            self.abandon(false);
            return Err(End::fault(&Fault::BackendLost));
        }
        if self.linked.dying {
            return Err(self.backend_gone());
        }
        if self.linked.unbegun {
            // Nothing has run, so nothing is there that would pin it or be carried on.
            self.give_back(false).await;
            self.linked.unbegun = false;
            self.tx.abort(None, false);
            self.tracker.set_status(TxStatus::Failed);
            return Ok(());
        }
        if !self.draining {
            if self.may_unpin() && !Box::pin(self.unpin()).await? {
                return Ok(());
            }
            if self.linked.traces.any(Traces::SETTING) && !Box::pin(self.carry_settings()).await? {
                return Ok(());
            }
        }
        self.give_back(false).await;
        self.tags.used(self.now);
        if self.draining { Err(End::fault(&Fault::Shutdown)) } else { Ok(()) }
    }

    /// Ends the lease, if nothing has to be asked, cleaned or told first: that is for
    /// [`Session::end_lease`]. Returns whether it did.
    pub(super) fn end_at_once(&mut self) -> bool {
        let linked = &self.linked;
        let simple = !self.draining
            && !linked.dying
            && !linked.unbegun
            && !linked.injected_error
            && !linked.traces.any(Traces::SETTING)
            && !self.may_unpin();
        if !simple || self.give_back_at_once(false).is_some() {
            return false;
        }
        self.tags.used(self.now);
        true
    }

    async fn obey(&mut self) -> Result<(), End> {
        self.listen_for_orders().await;
        for order in self.cell.take_orders() {
            match order {
                Order::End(lease, why) if self.holds(lease) => {
                    self.overstayed(&why).await?;
                }
                Order::Cancel(lease, _, why @ Overrun::Stalled { .. }) if self.holds(lease) => {
                    Box::pin(self.unstall(why)).await?;
                }
                Order::Cancel(lease, statement, why) if self.holds(lease) => self.cut(statement, why),
                Order::Warn(lease, warning) if self.holds(lease) => self.warn(&warning),
                Order::Park(lease) => Box::pin(self.park_lease(lease)).await?,
                Order::CancelDone => self.cut_delivered(),
                Order::Kill => return Err(End::fault(&Fault::Shutdown)),
                Order::Expel => {
                    // What a session that mixes work has left on its backend is nobody's to find.
                    self.linked.dying = true;
                    return Err(End::Told(Box::new(reply::isolation::expelled())));
                }
                // Once there is no transaction.
                Order::Drain => self.draining = true,
                // The wait was over before it was cancelled: what has waited runs, or will in a moment.
                Order::CancelWait if self.lease.is_some() => {
                    let cell = self.cell.clone();
                    tokio::spawn(async move { cancel::deliver(&cell).await });
                }
                Order::End(..) | Order::Cancel(..) | Order::Warn(..) | Order::CancelWait => {}
            }
        }
        Ok(())
    }

    /// A lease is in a transaction for too long. If that is for being idle, it may have ceased to be.
    async fn overstayed(&mut self, why: &Overstay) -> Result<(), End> {
        let busy = self.tracker.is_busy();
        let idle = matches!(why, Overstay::Idle { .. } | Overstay::Leaked { .. } | Overstay::Pinned { .. });
        if busy && idle {
            return Ok(());
        }
        if let Some(lease) = &mut self.lease
            && (busy || self.tracker.status() != TxStatus::Idle)
        {
            lease.outcome = Some(Outcome::Reclaimed);
        }
        if matches!(why, Overstay::Pinned { .. }) && self.lease.is_some() {
            // What pins it cannot be taken from under a session without its noticing.
            return Err(End::Told(Box::new(reply::overstay(why))));
        }
        self.soft_abort(reply::overstay(why)).await
    }

    pub(super) fn holds(&self, id: crate::book::LeaseId) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.id() == id)
    }

    /// The backend closed. What it said is passed on; where it said nothing, we say it.
    pub(super) fn backend_gone(&mut self) -> End {
        // Of an open transaction nothing stays, unless a COMMIT may be on its way.
        let in_flight = self.tracker.is_busy();
        let torn = self.down.rest > 0 && self.down.keep;
        let dying = self.linked.dying;
        self.pools.broke(&self.pool);
        self.abandon(false);
        if dying || torn {
            End::BackendGone
        } else {
            End::fault(if in_flight { &Fault::OutcomeUnknown } else { &Fault::BackendLost })
        }
    }

    async fn close(&mut self, end: End) {
        self.watch_lost();
        match end {
            End::Left(grace) => self.wind_up(true, grace).await,
            End::Silence => self.wind_up(true, self.pool.rules().client_gone_grace).await,
            End::Lost => self.wind_up(false, self.pool.rules().client_gone_grace).await,
            End::BackendGone => {}
            End::Told(report) => {
                if self.is_behind_replies() {
                    self.drain_for_client().await;
                }
                self.last_words(&report).await;
                return;
            }
            End::Overstayed(report) => {
                self.last_words(&report).await;
                return;
            }
        }
        self.farewell().await;
    }

    /// Says why the session ends, and ends what it left.
    async fn last_words(&mut self, report: &Report) {
        if self.down.rest == 0 || !self.down.keep {
            self.down.lane.make(|out| report.encode(out));
        }
        self.farewell().await;
        // The client is told; nothing it left running is worth waiting for.
        self.wind_up(false, Duration::ZERO).await;
    }

    /// Whether replies to complete work are still on their way, which the client gets first.
    fn is_behind_replies(&self) -> bool {
        self.lease.is_some()
            && self.tracker.is_busy()
            && !self.tracker.is_unsynced()
            && !self.tracker.is_copying_in()
    }

    async fn farewell(&mut self) {
        let goodbye = async {
            poll_fn(|cx| self.down.lane.poll_flush(cx, &mut self.client)).await?;
            self.client.shutdown().await
        };
        // A client that does not read has no use for the rest.
        let _ = tokio::time::timeout(FAREWELL, goodbye).await;
    }

    /// What a session-mode client left is scrubbed whatever was seen of it.
    pub(super) fn scrubs_always(&self) -> bool {
        self.reset == crate::config::Reset::Always || self.mode == PoolMode::Session
    }
}

impl<S> Session<S> {
    /// Begins a lease if a backend is free, as it nearly always is. Otherwise what the checkout came to
    /// is for [`Session::begin_slowly`].
    pub(super) fn begin_at_once(&mut self) -> Result<(), Slow> {
        let now = self.now;
        if self.tx.is_parked() {
            // Silence within a transaction does not make its tags another's.
            self.tags.used(now);
        } else {
            self.renew_config();
        }
        let tag = self.resolve(now);
        if self.guarded {
            self.may_run(&tag).map_err(|report| Slow::Forbidden(Box::new(report)))?;
        }
        let (fingerprint, statement) = self.first_statement();
        let (session, pool, resumes) = (self.cell.id, self.pool.id, self.parked_since());
        if resumes.is_some() {
            self.may_resume(&tag).map_err(|report| Slow::Forbidden(Box::new(report)))?;
        }
        let claim = Claim { session, pool, tag, login: false, within: None, resumes, fingerprint, statement };
        let mut mixed = false;
        let start = self.pools.checkout(&self.pool, &claim, now, &mut mixed);
        if mixed {
            self.warn_of_mixing(&claim.tag);
        }
        match start {
            Start::Ready(mut lease, warnings) => {
                if self.is_unfit(&mut lease) {
                    return Err(Slow::Unfit(Box::new((lease, warnings, claim.tag))));
                }
                self.adopt(lease, &warnings, &claim.tag, now);
                Ok(())
            }
            Start::Wait(waiting) => {
                self.queued = Some((waiting, claim.tag));
                Err(Slow::Queued)
            }
            Start::Refused(refusal) => Err(Slow::Refused(Box::new(refusal))),
            Start::Mixed => Err(Slow::Forbidden(Box::new(self.violated(Isolation::V3, &claim.tag)))),
            Start::Quarantined(left) => {
                Err(Slow::Forbidden(Box::new(reply::isolation::quarantined(&claim.tag, left))))
            }
            Start::Stale => {
                self.drop_request(&claim.tag);
                self.begin_at_once()
            }
        }
    }

    /// Whether the backend has to be asked for something first: the session has taken on a role that it
    /// does not have, or is in a failed transaction.
    pub(super) fn is_unfit(&self, lease: &mut Lease) -> bool {
        self.tx.leads_failed() || lease.backend().settings != self.settings && text::has_role(&self.settings)
    }

    /// A new configuration counts from the next transaction on.
    fn renew_config(&mut self) {
        if !self.pools.is_current(&self.config) {
            self.config = self.pools.config();
            let rules = self.pool.rules();
            self.reset = rules.reset;
            self.max_prepared = prepared_cap(&rules);
            self.lazy_begin = begins_lazily(&rules, self.mode);
            self.policy = Masks::of(&rules, self.mode, &self.config);
            self.park.renew(&rules, self.mode, &self.config);
            self.fence = self.pool.fence();
            self.guarded = super::fence::guards(&rules, &self.config);
            self.verify = self.config.isolation.verify.unwrap_or(0);
            self.reads_statements = super::claim::reads_statements(&self.config);
            self.tags.invalidate();
        }
    }

    /// A lease begins: the backend is made fit in the same write as the client's first message.
    pub(super) fn adopt(&mut self, mut lease: Lease, warnings: &[Warning], tag: &Arc<Tag>, now: Instant) {
        self.linked = Linked::default();
        self.down.lane.reads_anew();
        self.flush_here();
        self.statements.moved();
        let id = lease.id();
        let backend = lease.backend();
        if self.fence.is_some() || backend.context.is_kept() {
            self.fence_lease(backend, tag);
        }
        if backend.settings != self.settings {
            let difference = text::difference(&backend.settings, &self.settings);
            backend.settings = self.settings.clone();
            for text in [difference.undo, difference.apply].iter().filter(|text| !text.is_empty()) {
                self.up.lane.make(|out| private::query(out, text));
                self.tracker.inject(OpKind::Query, Injected::Segment);
                self.linked.injected = true;
            }
        }
        // Known to be injected from the first moment, or a cancel might hit it.
        self.cell.link(id, backend, tag, self.linked.injected, now);
        self.lease = Some(lease);
        self.tags.leased();
        self.bring_transaction();
        for warning in warnings {
            self.warn(warning);
        }
    }

    /// Tells the client of a budget it exceeds: once a dimension and request (budgets.md §2.4), and
    /// only who tags its requests, since nobody else could know what is meant. Not while a message
    /// is half way through.
    pub(super) fn warn(&mut self, warning: &Warning) {
        let request = self.cell.request();
        if request.is_none() || self.down.rest > 0 {
            return;
        }
        let kind = std::mem::discriminant(warning);
        let warned = self.warned.get_or_insert_default();
        if warned.0 != request {
            **warned = (request, Vec::new());
        }
        if !warned.1.contains(&kind) {
            warned.1.push(kind);
            self.down.lane.make(|out| reply::warning(warning).encode(out));
        }
    }

    /// Whose work the session does now.
    pub(super) fn resolve(&mut self, now: Instant) -> Arc<Tag> {
        let identity = Identity {
            user: &self.cell.user,
            database: &self.cell.database,
            application_name: &self.cell.application,
            user_suffix: self.suffix.as_deref(),
        };
        let stale = self.tags.stale();
        let tag = self.tags.resolve(&self.config.tag, &identity, now).clone();
        if self.tags.stale() > stale {
            self.pools.metrics.stale_tags.inc();
        }
        tag
    }
}
