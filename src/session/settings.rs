//! What a session sets, resets and leaves: noted, asked for, carried to its next backend.
//!
//! A text that changes settings is noted by the names it changes. When the lease would end, the
//! backend itself is asked for their values, after the client has its ReadyForQuery, and the session
//! goes on with the set of settings it then has: no pin, no scrub. What has no name, or too long a
//! value, pins the backend as before.
//!
//! `RESET` goes back to what the client's start-up packet said. On the backend it goes to the
//! server's value, since the start-up packet was Bursar's: what the client had asked for is set
//! again in a segment of Bursar's own, before anything else of the client's, and the ReadyForQuery
//! of the `RESET` waits for it. ParameterStatus is told as of then.
//!
//! Also asked, once for each lease that got such a thing and again when a statement may have ended
//! it: whether what pins the backend (LISTEN, a temporary table, …) exists.

use super::private::{self, Row, Trouble};
use super::reply::Fault;
use super::serve::End;
use super::tracker::{Give, Injected, Op, OpKind};
use super::{Session, Socket};
use crate::clock;
use crate::config::PoolMode;
use crate::state::{matters, text};
use crate::wire::backend::{TxStatus, error_field, parameter_status, ready_for_query};
use crate::wire::sql::bound::Bound;
use crate::wire::sql::reserved::mentions;
use crate::wire::sql::scan::{Scan, Traces};
use crate::wire::sql::settings::{IDENTITY, Touched, is_identity, touched, touched_for_now};
use bytes::Bytes;
use std::ops::Range;

/// What the session has done to settings on this lease.
#[derive(Default)]
pub(super) struct Changes {
    /// By texts of the whole lease.
    lease: Touched,
    /// By texts since nothing was outstanding.
    segment: Touched,
    /// By what the unnamed portal was bound to.
    portal: Option<Touched>,
    /// A text has been noted in the segment.
    noted: bool,
    /// A statement of the segment has completed.
    ran: bool,
    /// Something in the segment was undone: an error, a ROLLBACK.
    undone: bool,
    /// The client's next message waits for the end of the segment, which resets something.
    holding: bool,
    /// The segment that sets start-up values again is on its way.
    restoring: bool,
    /// Parameters that have changed meanwhile, and what the client believes.
    reported: Vec<(Bytes, Option<Bytes>)>,
}

impl Changes {
    /// Something in the segment has completed, or was undone.
    pub(super) fn note_outcome(&mut self, ran: bool, undone: bool) {
        self.ran |= ran;
        self.undone |= undone;
    }

    /// A ParameterStatus for the client, in the last segment that was sent, is kept back while the parameter may
    /// change again at once. Returns whether it is. `parameters` is what the backend has reported before.
    pub(super) fn keep_back(&mut self, name: &[u8], parameters: &[(Bytes, Bytes)]) -> bool {
        let resetting = self.holding && self.ran && !self.undone;
        if !self.restoring && !resetting {
            return false;
        }
        if self.reported.iter().all(|(known, _)| *known != *name) {
            self.reported.push((Bytes::copy_from_slice(name), known(parameters, name)));
        }
        true
    }
}

impl<S> Session<S> {
    /// A Query is about to be sent, of whose text a scan says this; or a Parse, of whose every Bind will
    /// not be told.
    pub(super) fn note_scan(&mut self, text: &[u8], scan: Scan) {
        if let Some(touched) = self.note_traces(text, None, scan)
            && let Some(changes) = &mut self.linked.changes
        {
            changes.segment.then(touched);
        }
    }

    /// A text is about to be bound to a portal, with these values where they can be read. What it resets
    /// counts once it is executed; by a portal with a name, at once.
    pub(super) fn note_bind(
        &mut self,
        text: &[u8],
        bound: Option<&Bound<'_>>,
        scan: Scan,
        unnamed_portal: bool,
    ) {
        let touched = self.note_traces(text, bound, scan);
        let Some(changes) = &mut self.linked.changes else { return };
        match touched {
            touched if unnamed_portal => changes.portal = touched,
            Some(touched) => changes.segment.then(touched),
            None => {}
        }
    }

    /// A portal is about to be bound to a statement whose text was noted with its Parse.
    pub(super) fn note_bind_of_noted(&mut self, unnamed_portal: bool) {
        if let Some(changes) = self.linked.changes.as_mut().filter(|_| unnamed_portal) {
            changes.portal = None;
        }
    }

    /// The unnamed portal is about to be executed.
    pub(super) fn note_execute(&mut self) {
        if let Some(changes) = &mut self.linked.changes
            && let Some(touched) = &changes.portal
        {
            changes.segment.then(touched.clone());
        }
    }

    /// Returns what settings the text changes, if any.
    fn note_traces(&mut self, text: &[u8], bound: Option<&Bound<'_>>, scan: Scan) -> Option<Touched> {
        self.linked.traces = self.linked.traces.with(scan.traces);
        if self.linked.traces.any(Traces::LOCK) {
            self.linked.may_have_ended |= mentions(text, b"pg_advisory_unlock");
        }
        if scan.sets() && !self.linked.reads_otherwise {
            let touched = touched_for_now(text, bound);
            let named = touched.names.iter().any(|name| matters(name));
            self.linked.reads_otherwise = named || touched.all || touched.unknown;
        }
        scan.traces.any(Traces::SETTING).then(|| self.note_settings(text, bound))
    }

    /// [`Session::note_scan`] of a text in the next message. `text` says where in it.
    pub(super) fn note_span(&mut self, text: Range<usize>, scan: Scan) {
        if scan.traces.is_none() && !scan.sets_locally && self.linked.traces.is_none() {
            return;
        }
        // Of most of what is noted the text does not matter.
        let matters = scan.sets() || self.linked.traces.any(Traces::LOCK);
        let text = if matters { self.up.lane.unwalked()[text].to_vec() } else { Vec::new() };
        self.note_scan(&text, scan);
    }

    fn note_settings(&mut self, text: &[u8], bound: Option<&Bound<'_>>) -> Touched {
        let touched = touched(text, bound);
        if touched.unknown {
            self.linked.traces = self.linked.traces.with(Traces::HIDDEN);
        }
        if self.fence.as_deref().is_some_and(|fence| fence.keys().any(|key| touched.may_change(key))) {
            self.doubt_context();
        }
        let changes = self.linked.changes.get_or_insert_default();
        changes.noted = true;
        changes.lease.then(touched.clone());
        touched
    }

    /// Whether a text with these traces is not to be sent yet: it resets something, and what was
    /// sent before is to be settled first.
    pub(super) fn waits_to_reset(&self, text: &[u8], bound: Option<&Bound<'_>>, traces: Traces) -> bool {
        traces.any(Traces::SETTING)
            && self.tracker.is_clients()
            && !self.tracker.is_unsynced()
            && !self.tracker.is_copying_in()
            && touched(text, bound).has_resets()
    }

    /// A Query or Sync has been sent: if the segment resets what the start-up packet set, nothing
    /// more is taken before that is set again; nor before its tags are, as the client may go on to SET some.
    pub(super) fn hold_for_resets(&mut self) {
        if let Some(changes) = &mut self.linked.changes
            && changes.segment.has_resets()
        {
            let fenced = self
                .fence
                .as_deref()
                .is_some_and(|fence| fence.keys().any(|key| changes.segment.is_reset(key)));
            let startup = || self.startup.settings().iter().any(|(name, _)| changes.segment.is_reset(name));
            let tagged = changes.segment.is_all_reset() && self.tags.is_set();
            changes.holding = tagged || fenced || startup();
        }
    }

    /// Whether the client's next message waits for start-up values to be set again.
    pub(super) fn is_held_for_resets(&self) -> bool {
        self.linked.changes.as_ref().is_some_and(|changes| changes.holding) && !self.tracker.is_copying_in()
    }

    /// A command tag says that settings have been changed: some that nobody can name, if no text has
    /// said which.
    pub(super) fn note_setting_tag(&mut self) {
        let named = |changes: &Changes| changes.noted || changes.lease.all || !changes.lease.names.is_empty();
        if !self.linked.changes.as_deref().is_some_and(named) {
            self.linked.traces = self.linked.traces.with(Traces::HIDDEN);
        }
    }

    /// `DISCARD ALL` has run: of all that the session had on its backend, at most a library is left.
    pub(super) fn note_discard(&mut self) {
        self.linked.traces = self.linked.traces.and(Traces::LOAD);
        self.doubt_context();
        let changes = self.linked.changes.get_or_insert_default();
        changes.segment.then(Touched { all: true, discard: true, ..Touched::default() });
        self.forget_statements();
    }

    /// A ReadyForQuery has come. Returns whether it is kept back, because start-up values are to be
    /// set again first. `op` is what it ends.
    pub(super) fn settle_resets(&mut self, give: Give, op: Option<Op>) -> bool {
        if self.tracker.is_busy() {
            return false;
        }
        let Some(changes) = &mut self.linked.changes else { return false };
        if changes.restoring {
            if op.is_some_and(|op| op.injected.is_some()) {
                changes.restoring = false;
                self.report_parameters();
                let status = self.tracker.status();
                self.down.lane.make(|out| ready_for_query(out, status));
                self.finish_segment();
            }
            return false;
        }
        let status = self.tracker.status();
        let due = changes.holding && changes.ran && !changes.undone && status != TxStatus::Failed;
        let middle = self.up.is_mid_message();
        if due && give == Give::Pass && !middle {
            let reset = |name: &str| changes.segment.is_reset(name);
            let mut text = text::restore(&self.startup, status == TxStatus::InTransaction, reset);
            if let Some(fence) = &self.fence {
                if !text.is_empty() {
                    text.push(b';');
                }
                let pid = self.lease.as_mut().map_or(0, |lease| lease.backend().pid);
                fence.restore(&self.linked.context, pid, self.linked.lent.scope(), &mut text);
            }
            if !text.is_empty() {
                changes.restoring = true;
                // A Query drops the unnamed statement.
                self.statements.unnamed_is_gone();
                self.up.lane.make(|out| private::query(out, &text));
                self.tracker.inject(OpKind::Query, Injected::Segment);
                self.set_injected(true);
                return true;
            }
        }
        self.report_parameters();
        self.finish_segment();
        false
    }

    /// Tells the client which parameters have other values now than it believes.
    fn report_parameters(&mut self) {
        let (Some(changes), Some(lease)) = (&mut self.linked.changes, &mut self.lease) else { return };
        for (name, believed) in std::mem::take(&mut changes.reported) {
            let now = known(&lease.backend().parameters, &name);
            if let Some(value) = now.filter(|value| Some(value) != believed.as_ref()) {
                self.told.hear(&name, &value);
                self.down.lane.make(|out| parameter_status(out, &name, &value));
            }
        }
    }

    /// Before a ReadyForQuery, as PostgreSQL does it: tells the client what the backend has said of its server, where
    /// that is not what the client was told last. After a failover it is of another server; and what it said to
    /// another session, it does not say again.
    pub(super) fn report_stance(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        let (believed, now) = (self.told, lease.backend().stance);
        if believed != now {
            for (name, value) in believed.news(now) {
                self.told.hear(name.as_bytes(), value.as_bytes());
                self.down.lane.make(|out| parameter_status(out, name.as_bytes(), value.as_bytes()));
            }
        }
    }

    /// Nothing is outstanding any more. If all settings were reset last, nothing is left to ask for.
    fn finish_segment(&mut self) {
        let Some(changes) = &mut self.linked.changes else { return };
        let segment = std::mem::take(&mut changes.segment);
        let (ran, undone) = (changes.ran, changes.undone);
        (changes.noted, changes.ran, changes.undone, changes.holding) = (false, false, false, false);
        let done = ran && !undone && self.tracker.status() == TxStatus::Idle;
        if done && segment.is_all_reset() {
            // DISCARD ALL, RESET ALL: how drivers' pools take a connection back.
            self.reset_tags();
        }
        let Some(changes) = &mut self.linked.changes else { return };
        // A statement that was prepared before may set again what its text has named.
        let prepared = self.statements.pins() || self.linked.traces.any(Traces::PREPARE);
        if !done || prepared || !segment.is_all_reset() || self.linked.injected_error {
            return;
        }
        let mut settings = self.startup.clone();
        let hidden = self.linked.traces.any(Traces::HIDDEN);
        if !segment.discard {
            if hidden || changes.lease.names.iter().any(|name| is_identity(name)) {
                return;
            }
            let roles = IDENTITY.iter().filter_map(|role| Some((*role, Some(self.settings.value(role)?))));
            match self.pools.settings().change(&settings, roles) {
                Ok(with_roles) => settings = with_roles,
                Err(_) => return,
            }
        }
        changes.lease = Touched::default();
        self.linked.traces = self.linked.traces.without(Traces::SETTING);
        self.settings = settings.clone();
        if let Some(lease) = &mut self.lease {
            lease.backend().settings = settings;
        }
    }

    /// Whether the lease, which otherwise may end, is to be looked at: what pins it may not exist.
    pub(super) fn may_unpin(&self) -> bool {
        let traces = self.linked.traces;
        let free = Traces::SUSPECT.with(Traces::SETTING).with(self.policy.scrubbed);
        self.mode != PoolMode::Session
            && traces.without(free).any(LOOKED_FOR)
            && traces.without(free.with(LOOKED_FOR)).is_none()
            && !self.statements.pins()
            && (self.linked.may_have_ended || !self.linked.confirmed.has(traces.and(LOOKED_FOR)))
    }
}

/// All that [`text::LEFT`] asks for.
const LOOKED_FOR: Traces = {
    let mut all = Traces::NONE;
    let mut at = 0;
    while at < text::LOOKED_FOR.len() {
        all = all.with(text::LOOKED_FOR[at]);
        at += 1;
    }
    all
};

impl<S: Socket> Session<S> {
    /// Asks the backend what there is of what pins it. Returns whether nothing does any more.
    pub(super) async fn unpin(&mut self) -> Result<bool, End> {
        let answer = self.ask(text::LEFT.as_bytes()).await?;
        self.linked.may_have_ended = false;
        let row = answer.ok().and_then(|rows| rows.into_iter().next().flatten());
        for (trace, there) in text::LOOKED_FOR.into_iter().zip(row.unwrap_or_default()) {
            if there.as_deref() == Some(b"f") {
                self.linked.traces = self.linked.traces.without(trace);
            }
        }
        self.linked.confirmed = self.linked.traces.and(LOOKED_FOR);
        let pin = self.pin();
        self.cell.ready(false, pin, self.now);
        Ok(pin.is_empty())
    }

    /// Asks the backend for the settings that the session may have changed, and takes them as its own.
    /// Returns whether it could; if not, the backend is pinned.
    pub(super) async fn carry_settings(&mut self) -> Result<bool, End> {
        let Some(changes) = self.linked.changes.take() else { return Ok(true) };
        let mut names = changes.lease.names.to_vec();
        if changes.lease.all {
            let all = self.settings.settings().iter().chain(self.startup.settings());
            names.extend(all.map(|(name, _)| name.clone()));
            names.sort();
            names.dedup();
        }
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let roles = names.iter().any(|name| is_identity(name)) || text::has_role(&self.settings);
        let Some(read) = self.read_back(&names, roles).await? else { return Ok(self.pin_settings()) };
        let new = |(name, now, base): (&str, Option<Vec<u8>>, Option<Vec<u8>>)| {
            // What is as on any backend need not be set. Once it has been set, an application's
            // setting is '' by default, which is not what it was.
            let default = now == base && self.startup.value(name).is_none() && !name.contains('.');
            (name.to_owned(), now.filter(|_| !default))
        };
        let new: Vec<_> = read.into_iter().map(new).collect();
        let new = new.iter().map(|(name, value)| (&**name, value.as_deref()));
        let changed = self.pools.settings().change(&self.settings, new);
        let Ok(settings) = changed else { return Ok(self.pin_settings()) };
        self.settings = settings.clone();
        if let Some(lease) = &mut self.lease {
            lease.backend().settings = settings;
        }
        self.linked.traces = self.linked.traces.without(Traces::SETTING);
        Ok(true)
    }

    /// The settings of the session can be on this backend only. Returns that they are not carried.
    fn pin_settings(&mut self) -> bool {
        self.linked.traces = self.linked.traces.with(Traces::HIDDEN);
        self.cell.ready(false, self.pin(), self.now);
        false
    }

    /// The values of settings: of each that can be set its name, what it is, and what it would be if
    /// it were reset. `None` = they cannot be had.
    async fn read_back<'a>(
        &mut self,
        names: &[&'a str],
        roles: bool,
    ) -> Result<Option<Vec<Reading<'a>>>, End> {
        if names.is_empty() {
            return Ok(Some(Vec::new()));
        }
        if let Ok(rows) = self.ask(&text::read_back(names, roles)).await? {
            return Ok(readings(names, rows));
        }
        // One of them is no setting, or not one for everybody.
        let mut all = Vec::new();
        for &name in names {
            match self.ask(&text::read_back(&[name], roles)).await? {
                Ok(rows) => match readings(&[name], rows) {
                    Some(reading) => all.extend(reading),
                    None => return Ok(None),
                },
                // Nobody has set it: it does not exist, or the server's configuration alone does.
                Err(body) if matches!(error_field(&body, b'C'), Some(b"42704" | b"42602" | b"55P02")) => {}
                // Perhaps a function with more rights has.
                Err(_) => self.linked.traces = self.linked.traces.with(Traces::SUSPECT),
            }
        }
        Ok(Some(all))
    }

    /// A question of Bursar's own, between two statements of the client's: its rows, or the body of the
    /// error with which it was refused.
    async fn ask(&mut self, question: &[u8]) -> Result<Result<Vec<Option<Row>>, Bytes>, End> {
        let Some(lease) = &mut self.lease else { return Ok(Ok(Vec::new())) };
        self.down.lane.reads_anew();
        self.cell.set_injected(true);
        let asked = private::insist(lease.backend(), &self.pools.buffers, question);
        let answer = Box::pin(asked).await;
        self.cell.set_injected(false);
        self.now = clock::now();
        // A Query drops the unnamed statement.
        self.statements.unnamed_is_gone();
        match answer {
            Ok(answer) => {
                if self.linked.traces.any(Traces::LISTEN) {
                    self.down.lane.put(&answer.notifications);
                }
                Ok(Ok(answer.rows))
            }
            Err(Trouble::Refused(body)) => Ok(Err(body)),
            Err(trouble) => {
                tracing::warn!(%trouble, session = self.cell.id.0, "a backend failed while its session was idle");
                self.abandon(false);
                Err(End::fault(&Fault::BackendLost))
            }
        }
    }
}

/// A setting: its name, its value, and its default.
type Reading<'a> = (&'a str, Option<Vec<u8>>, Option<Vec<u8>>);

/// What the two rows of [`text::read_back`] say.
fn readings<'a>(names: &[&'a str], rows: Vec<Option<Row>>) -> Option<Vec<Reading<'a>>> {
    let [Some(now), Some(base)] = <[_; 2]>::try_from(rows).ok()? else { return None };
    let value = |hex: Option<Bytes>| hex.map_or(Some(None), |hex| text::from_hex(&hex).map(Some));
    let pairs = now.into_iter().zip(base);
    names.iter().zip(pairs).map(|(name, (now, base))| Some((*name, value(now)?, value(base)?))).collect()
}

pub(super) fn known(parameters: &[(Bytes, Bytes)], name: &[u8]) -> Option<Bytes> {
    parameters.iter().find(|(known, _)| *known == *name).map(|(_, value)| value.clone())
}
