//! Parking: the backend of a transaction that has only read is given back while its client is silent, and
//! the transaction goes on elsewhere when it speaks again (budgets.md §4.4).
//!
//! ```text
//!   leased, idle in a transaction ──Order::Park──▶ asked: a transaction id? which settings? ──▶ COMMIT
//!        ▲                                              │ has written, or unfit: goes on         │
//!        │                                              ▼                                        ▼
//!        └──── BEGIN + settings + the client's statement, one write ◀── its next message ──── parked
//!                                                                        COMMIT, ROLLBACK: answered here
//! ```
//!
//! What the session says to the door: each statement's text to [`Seen`], which decides; the book says when
//! ([`crate::book::Action::Park`]); what the client sees meanwhile is [`super::virtual_tx`]'s.
//!
//! The settings of the transaction are not said again as the client said them, which might give them other
//! values (`set_config('app.since', now()::text, true)`): the backend is asked for their values before it
//! is given back, and the next one is given those. If one does not take them, nothing of the client's runs
//! there, and its transaction has failed (42501).

use super::private::{self, Trouble};
use super::reply::isolation;
use super::serve::End;
use super::tracker::{Injected, Op, OpKind};
use super::virtual_tx::Resume;
use super::{Session, Socket, begins_lazily};
use crate::book::LeaseId;
use crate::clock;
use crate::config::{Config, ParkMode, PoolMode, PoolRules};
use crate::metrics::{Park, Unparkable};
use crate::pool::lease::Lease;
use crate::pool::parking::Ticket;
use crate::state::parking::Seen;
use crate::state::volatile::{self, Names};
use crate::wire::backend::{TxStatus, error_field};
use crate::wire::compose;
use crate::wire::error::Report;
use crate::wire::walk::{HEADER, cstr};
use bytes::{BufMut, Bytes};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Gives a setting to a transaction, and fails unless that has the value then. The cast is of what only
/// running it tells.
const RESTORE: &[u8] = b"SELECT (CASE WHEN pg_catalog.set_config($1,$2,true) OPERATOR(pg_catalog.=) $2 \
    THEN '1' ELSE 'another value' END)::pg_catalog.int4";

/// What a session knows of its transaction for this.
#[derive(Default)]
pub(super) struct Watch {
    /// Statements are looked at.
    on: bool,
    seen: Seen,
    /// Since when the client has been silent in a transaction that could be parked, or might be.
    idle: Option<Instant>,
    /// Its transaction is parked.
    ticket: Option<Box<Ticket>>,
}

impl Watch {
    /// Of a session in `mode`.
    pub(super) fn of(rules: &PoolRules, mode: PoolMode, config: &Config) -> Watch {
        Watch { on: is_on(rules, mode, config), ..Watch::default() }
    }

    /// The rules have changed, between transactions.
    pub(super) fn renew(&mut self, rules: &PoolRules, mode: PoolMode, config: &Config) {
        self.on = is_on(rules, mode, config);
    }
}

/// Parking needs the BEGIN to wait: so it comes again, with the next statement.
fn is_on(rules: &PoolRules, mode: PoolMode, config: &Config) -> bool {
    begins_lazily(rules, mode) && (config.budget.parking.mode != ParkMode::Off || config.scopes.park())
}

impl<S> Session<S> {
    /// A BEGIN alone is answered here.
    pub(super) fn watch_begin(&mut self, text: &[u8]) {
        if self.park.on {
            self.park.seen.begin(text);
        }
    }

    /// A Query is being sent, its text in that span of the message; `whole`: all of it.
    pub(super) fn watch_query(&mut self, text: Range<usize>, whole: bool) {
        if !self.park.on {
            return;
        }
        if !whole {
            return self.watch_bar(Unparkable::Text);
        }
        let names = self.unsafe_names();
        self.park.seen.statement(&self.up.lane.unwalked()[text], names.as_deref());
        self.tell_bar();
    }

    /// A statement that was parsed with this text is being bound.
    pub(super) fn watch_bind(&mut self, text: &[u8], portal: &[u8]) {
        if self.park.on {
            let names = self.unsafe_names();
            self.park.seen.statement(text, names.as_deref());
            if !portal.is_empty() {
                self.park.seen.bar(Unparkable::Portal);
            }
            self.tell_bar();
        }
    }

    /// The unnamed statement is being bound.
    pub(super) fn watch_bind_unnamed(&mut self, unnamed_portal: bool) {
        if !self.park.on {
            return;
        }
        let names = self.unsafe_names();
        let text = self.statements.unnamed().1.and_then(|message| cstr(&message[HEADER + 1..]));
        match text {
            Some((text, _)) => self.park.seen.statement(text, names.as_deref()),
            None => self.park.seen.bar(Unparkable::Text),
        }
        if !unnamed_portal {
            self.park.seen.bar(Unparkable::Portal);
        }
        self.tell_bar();
    }

    /// A portal is being executed: with a limit of rows it stays open. The message is there.
    pub(super) fn watch_execute(&mut self, total: usize) {
        if self.park.seen.is_open() {
            let body = &self.up.lane.unwalked()[HEADER..total];
            if cstr(body).map(|(_, limit)| limit) != Some(&[0; 4]) {
                self.watch_bar(Unparkable::Portal);
            }
        }
    }

    /// Something else that is not understood is being sent.
    pub(super) fn watch_bar(&mut self, why: Unparkable) {
        if self.park.on {
            self.park.seen.bar(why);
            self.tell_bar();
        }
    }

    /// A ReadyForQuery of the client's has come.
    pub(super) fn watch_ready(&mut self) {
        if self.park.on {
            let status = self.tracker.status();
            self.park.seen.ready(status, self.tracker.is_busy());
            if status == TxStatus::Idle {
                self.park.idle = None;
            }
        }
    }

    /// The backend is ready for the next statement of a transaction, with nothing outstanding.
    pub(super) fn watch_idle(&mut self) {
        if self.park.on {
            let parkable = self.is_parkable();
            self.park.idle = (parkable || self.park.seen.is_blind()).then_some(self.now);
            self.cell.parkable(parkable);
        }
    }

    /// A transaction that no backend has is over.
    pub(super) fn watch_end(&mut self) {
        self.park.seen.ready(TxStatus::Idle, false);
        if let Some(ticket) = self.park.ticket.take() {
            ticket.end(Park::Ended, self.now);
            self.cell.park(false, self.now);
        }
    }

    /// Nobody comes back to a parked transaction.
    pub(super) fn watch_lost(&mut self) {
        if let Some(ticket) = self.park.ticket.take() {
            ticket.end(Park::Lost, self.now);
            self.cell.park(false, self.now);
        }
        self.park.seen.bar(Unparkable::Statement);
    }

    /// When the transaction began that is parked.
    pub(super) fn parked_since(&self) -> Option<Instant> {
        self.park.ticket.as_ref().map(|ticket| ticket.began)
    }

    /// The client speaks. Returns the names that are not safe, if they matter still and are known.
    fn unsafe_names(&mut self) -> Option<std::sync::Arc<Names>> {
        self.end_silence();
        if self.park.seen.is_open() { self.pool.parking.names(self.now) } else { None }
    }

    /// Counts for how long the client was silent. Only then is it worth while to know what is safe: at the
    /// end of this lease, if it is not known or has been for long.
    fn end_silence(&mut self) {
        let Some(since) = self.park.idle.take() else { return };
        let silent = self.now.saturating_duration_since(since);
        let beyond = silent.saturating_sub(self.config.budget.parking.min_gap);
        if beyond == Duration::ZERO {
            return;
        }
        if self.park.seen.is_open() {
            self.pool.parking.add_parkable(beyond);
        }
        self.linked.lists |= self.pool.parking.is_due(self.now);
    }

    fn tell_bar(&mut self) {
        if let Some(why) = self.park.seen.take_news() {
            self.pool.parking.unparkable.inc(why);
        }
    }

    /// Whether the transaction could go on at another backend, as far as is known without asking this one.
    fn is_parkable(&self) -> bool {
        let (linked, tracker) = (&self.linked, &self.tracker);
        let outstanding = tracker.is_busy() || tracker.is_unsynced() || tracker.is_skipping();
        let changed = linked.altered || linked.reads_otherwise || linked.untrusted;
        self.park.seen.parkable().is_some()
            && tracker.status() == TxStatus::InTransaction
            && self.tx.is_real()
            && !outstanding
            && !changed
            && linked.changes.is_none()
            && linked.traces.is_none()
            && !linked.dying
            && !linked.injected_error
            && self.pin().is_empty()
    }

    /// A lease begins for a parked transaction: it comes to its backend, with its settings, ahead of the
    /// client's message. `None` in `values`: not set.
    pub(super) fn resume(&mut self, resume: &Resume) {
        if let Some(ticket) = self.park.ticket.take() {
            self.cell.began(ticket.began);
            ticket.end(Park::Resumed, self.now);
        }
        let mut ops = vec![OpKind::Parse, OpKind::Bind, OpKind::Execute];
        self.up.lane.make(|out| {
            compose::parse(out, b"", &resume.begin, &[]);
            compose::bind(out, b"", &[]);
            out.put_slice(compose::EXECUTE);
            // It has had a query before, and so it has again: it cannot choose another isolation level.
            let text = if resume.settings.is_empty() { &b"SELECT"[..] } else { RESTORE };
            compose::parse(out, b"", text, &[]);
            ops.push(OpKind::Parse);
            if resume.settings.is_empty() {
                compose::bind(out, b"", &[]);
                out.put_slice(compose::EXECUTE);
                ops.extend([OpKind::Bind, OpKind::Execute]);
            }
            for (key, value) in &resume.settings {
                compose::bind(out, b"", &[key.as_bytes(), value]);
                out.put_slice(compose::EXECUTE);
                ops.extend([OpKind::Bind, OpKind::Execute]);
            }
            out.put_slice(compose::CLOSE_PORTAL);
            ops.push(OpKind::Close);
        });
        for kind in ops {
            self.tracker.inject(kind, Injected::Begin);
        }
        self.linked.beginning = true;
        self.linked.resumes = true;
    }

    /// An error for the client: if it comes of what begins its parked transaction again, says so instead,
    /// and parks no more of its like. Returns whether it does. A cancel is the client's.
    pub(super) fn says_mismatch(&mut self, seen: usize, front: Option<Op>) -> bool {
        let begins = front.is_some_and(|op| op.injected == Some(Injected::Begin));
        let body = &self.down.lane.unwalked()[HEADER..seen];
        if !self.linked.resumes || !begins || error_field(body, b'C') == Some(b"57014") {
            return false;
        }
        let error = String::from_utf8_lossy(error_field(body, b'M').unwrap_or_default()).into_owned();
        let tag = self.cell.glance().1;
        let route = tag.route.as_deref().unwrap_or("(none)");
        tracing::warn!(
            pool = %self.pool.database, session = self.cell.id.0, route, %error,
            "a parked transaction could not be begun again as it was; its route is not parked any more"
        );
        self.pool.parking.parks.inc(Park::Mismatch);
        self.pool.parking.bar(tag.route.clone());
        self.down.lane.make(|out| isolation::unrestored().encode(out));
        true
    }
}

impl<S: Socket> Session<S> {
    /// The book asks for the backend. Nothing happens if the client has spoken meanwhile.
    ///
    /// # Errors
    /// The backend is gone, and with it a transaction of which nobody can say what it was.
    pub(super) async fn park_lease(&mut self, lease: LeaseId) -> Result<(), End> {
        let torn = self.up.rest > 0 || self.down.rest > 0 || self.up.lane.staged() > 0;
        let spoken = !self.up.lane.unwalked().is_empty() || !self.down.lane.unwalked().is_empty();
        if !self.holds(lease) || torn || spoken || !self.is_parkable() {
            return Ok(());
        }
        let route = self.cell.glance().1.route.clone();
        let Some(open) = self.park.seen.parkable().cloned() else { return Ok(()) };
        // A cancel on its way is meant for what ran before, and must not hit what is said now.
        if self.pool.parking.is_barred(route.as_ref()) || self.cell.has_cancels() {
            return Ok(());
        }
        let began = self.cell.tx_start().unwrap_or(self.now);
        let since = self.now;
        match self.look_at_transaction(&open.keys).await? {
            Fit::Yes(settings) => {
                self.end_silence();
                // Before somebody else has the backend and asks how that came.
                self.park.ticket = Some(Box::new(Ticket::new(&self.pool, began, since)));
                self.give_up_backend().await;
                self.tx.park(Resume { begin: open.begin, settings });
                self.cell.park(true, self.now);
                Ok(())
            }
            Fit::No(what, why) => {
                self.pool.parking.parks.inc(what);
                self.watch_bar(why);
                self.park.idle = None;
                self.cell.parkable(false);
                Ok(())
            }
            Fit::Failed(report) => {
                // The server's words about a transaction that the client believes to be well.
                self.roll_back_parked().await;
                self.tx.abort(Some(report), false);
                self.tracker.set_status(TxStatus::Failed);
                self.watch_lost();
                Ok(())
            }
        }
    }

    /// Asks the backend what no text shows.
    async fn look_at_transaction(&mut self, keys: &[Box<str>]) -> Result<Fit, End> {
        // A function that is taken to only read may have opened a cursor for its caller.
        let mut text = b"SELECT pg_catalog.txid_current_if_assigned() IS NULL,\
            NOT EXISTS (SELECT FROM pg_catalog.pg_cursor()),\
            pg_catalog.current_setting('transaction_isolation')"
            .to_vec();
        for key in keys {
            text.extend_from_slice(format!(",pg_catalog.current_setting('{key}',true)").as_bytes());
        }
        self.set_injected(true);
        // A Query drops the unnamed statement.
        self.statements.unnamed_is_gone();
        let Some(lease) = self.lease.as_mut() else { return Err(self.backend_gone()) };
        let asked = private::look(lease.backend(), &self.pools.buffers, &text).await;
        self.now = clock::now();
        self.set_injected(false);
        let row = match asked {
            Ok(answer) => answer.rows.into_iter().next().flatten().unwrap_or_default(),
            Err(Trouble::Refused(body)) => return Ok(Fit::Failed(Box::new(told(&body)))),
            Err(_) => return Err(self.backend_gone()),
        };
        let [unwritten, closed, isolation, ..] = &row[..] else {
            return Ok(Fit::No(Park::Unfit, Unparkable::Context));
        };
        if unwritten.as_deref() != Some(b"t") {
            return Ok(Fit::No(Park::Wrote, Unparkable::Statement));
        }
        if closed.as_deref() != Some(b"t") {
            return Ok(Fit::No(Park::Unfit, Unparkable::Portal));
        }
        let committed = [&b"read committed"[..], b"read uncommitted"];
        if !isolation.as_deref().is_some_and(|isolation| committed.contains(&isolation)) {
            return Ok(Fit::No(Park::Unfit, Unparkable::Begin));
        }
        let values = row.into_iter().skip(3);
        let settings = keys.iter().zip(values).filter_map(|(key, value)| Some((key.clone(), value?)));
        Ok(Fit::Yes(settings.collect()))
    }

    /// Ends the backend's transaction, which has nothing to lose, and the lease.
    async fn give_up_backend(&mut self) {
        if let Some(lease) = self.lease.as_mut() {
            let ended = private::run(lease.backend(), &self.pools.buffers, b"COMMIT").await;
            self.now = clock::now();
            if let Err(trouble) = ended {
                tracing::debug!(%trouble, "the backend of a parked transaction is closed");
                self.abandon(false);
            }
        }
        self.leave_backend().await;
        self.tracker.set_status(TxStatus::InTransaction);
    }

    async fn roll_back_parked(&mut self) {
        if let Some(lease) = self.lease.as_mut()
            && private::run(lease.backend(), &self.pools.buffers, b"ROLLBACK").await.is_err()
        {
            self.abandon(false);
        }
        self.now = clock::now();
        self.leave_backend().await;
    }

    async fn leave_backend(&mut self) {
        self.tracker.set_status(TxStatus::Idle);
        self.linked.at_ready = false;
        self.cell.parkable(false);
        if self.lease.is_some() {
            self.give_back(false).await;
        }
    }

    /// At the end of a lease: asks its backend for the names that are not safe, if nobody else does.
    /// Returns whether the backend is fit still.
    pub(super) async fn list_names(&mut self, lease: &mut Lease) -> bool {
        let Some(edition) = self.pool.parking.ask(self.now) else { return true };
        let question = volatile::QUESTION.as_bytes();
        let listed = private::list(lease.backend(), &self.pools.buffers, question, volatile::MOST + 1).await;
        self.now = clock::now();
        let names = listed.as_ref().ok().map(|rows| unsafe_of(rows));
        if let Some(None) = names {
            tracing::warn!(pool = %self.pool.database, "what statements do cannot be judged here: nothing is parked");
        }
        self.pool.parking.learn(edition, names, self.now);
        matches!(listed, Ok(_) | Err(Trouble::Refused(_)))
    }
}

/// What a transaction is, by its backend.
enum Fit {
    /// It may be parked, and has set these.
    Yes(Vec<(Box<str>, Bytes)>),
    No(Park, Unparkable),
    /// Asking has made it fail.
    Failed(Box<Report>),
}

fn unsafe_of(rows: &[Option<private::Row>]) -> Option<Names> {
    let mut read = Vec::with_capacity(rows.len());
    for row in rows {
        let [Some(kind), Some(name), text] = &row.as_ref()?[..] else { return None };
        read.push((&kind[..], &name[..], text.as_deref()));
    }
    Names::of(&read)
}

/// The server's own words.
fn told(body: &[u8]) -> Report {
    let field = |tag| String::from_utf8_lossy(error_field(body, tag).unwrap_or_default()).into_owned();
    isolation::lost(&field(b'M'))
}
