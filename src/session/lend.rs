//! A tenant context for one transaction: where the first thing that a client does in a transaction is known to
//! be a statement of rows, the context travels within that transaction, as SET LOCAL does
//! ([`Held::lend`](crate::state::fence::Held::lend)).
//!
//! That saves what a segment of its own costs the server before the client's, and another one behind the
//! lease: each ends a transaction, and is answered in a write of its own.
//!
//! ```text
//!  lease ─┬─ statements of rows up to Sync ─▶ lent ahead of them ──────────────────────▶ Segment
//!         ├─ BEGIN ─▶ Opening ─▶ first of rows: lent ahead of it; else: SET LOCAL ─────▶ Block
//!         └─ anything else (CALL, VACUUM, several statements, half a pipeline): brought, for the session
//!
//!  Block ──┬─ COMMIT, ROLLBACK as a Query, or executed ──▶ Segment: nothing follows before it has ended
//!          └─ a Query that may end it and go on: the session gets the context first ──▶ Segment
//!
//!  Segment, ended: the lease is over. Not ended (COMMIT AND CHAIN) ─▶ due again: as behind BEGIN
//! ```
//!
//! What a pipeline executes behind a COMMIT has the context lent ahead of it once more. Where nothing of this
//! reaches, behind a ROLLBACK in the middle of one Query, there is no context, and no row is seen: what the
//! session has besides is looked at with each lending ([`Held::may_have_had`]), and if that is not nothing,
//! no such Query runs.
//!
//! [`Held::may_have_had`]: crate::state::fence::Held::may_have_had

use super::Session;
use super::message::query_text;
use super::settings::known;
use super::tracker::{Injected, Op, OpKind};
use crate::backend::Backend;
use crate::config::PoolMode;
use crate::metrics::Isolation;
use crate::state::fence::{Context, Scope};
use crate::statements::session::Look;
use crate::wire::backend::{TxStatus, first_value};
use crate::wire::compose;
use crate::wire::frontend::{Kind, bind_names, execute_portal, target};
use crate::wire::sql::bound::leading_number;
use crate::wire::sql::lead::is_of_rows;
use crate::wire::sql::scan::{Scan, scan};
use crate::wire::sql::transaction::{Ends, ends_block, is_begin};
use crate::wire::walk::{HEADER, Header, cstr};
use bytes::Bytes;
use smallvec::SmallVec;

/// From this version on a Query behind an extended message without Sync does not end the transaction that
/// they share (`start_xact_command` in postgres.c begins a block).
const BLOCKS: usize = 18;

/// How long the backend of a lease has the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Lent {
    /// As long as the lease: it was brought.
    #[default]
    No,
    /// Not at all yet: a BEGIN is being sent, which needs none.
    Opening,
    /// Until something ends the transaction block.
    Block,
    /// The same, and the session has it too, as a Query that may end the block is about to be sent.
    Outlasting,
    /// To the end of the segment that was sent.
    Segment,
}

impl Lent {
    /// For how long something of Bursar's own has to set it again.
    pub(super) fn scope(self) -> Scope {
        if self == Lent::Block { Scope::Transaction } else { Scope::Session }
    }
}

/// What a statement does to the transaction that it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Begins,
    Ends,
}

impl Turn {
    fn of(text: &[u8]) -> Option<Turn> {
        if is_begin(text) { Some(Turn::Begins) } else { (ends_block(text) != Ends::No).then_some(Turn::Ends) }
    }
}

/// What a client's next segment is, as far as it is here.
enum Segment {
    /// Statements of rows up to its end. `last`: nothing is here behind it.
    Rows { query: bool, last: bool },
    /// A BEGIN, and behind that at most such statements.
    Begin,
    /// Anything else, or half of it.
    Other,
}

/// Whether the rows of a statement of Bursar's own say which context there was.
pub(super) fn tells_context(front: Option<Op>) -> bool {
    front.is_some_and(|op| {
        op.injected == Some(Injected::Lent)
            || op.injected == Some(Injected::Fence) && op.kind == OpKind::Query
    })
}

impl<S> Session<S> {
    /// A lease begins: lends its backend the context for the client's segment at hand, or waits with that until
    /// the transaction has begun. Returns whether it does; otherwise nothing is sent.
    pub(super) fn lend_context(&mut self, backend: &mut Backend, context: &Context) -> bool {
        let Some(fence) = self.fence.clone().filter(|fence| fence.is_strict()) else { return false };
        if !backend.context.may_lend(&fence) {
            return false;
        }
        let begun = self.tx.is_begun();
        let idle = self.tx.is_real() && self.tracker.status() == TxStatus::Idle && !self.tracker.is_busy();
        let lent = match self.segment() {
            Segment::Rows { .. } if begun => Lent::Block,
            Segment::Rows { query, last } if idle && last && backend.settings == self.settings => {
                if query && !commits_with_query(&backend.parameters) {
                    return false;
                }
                Lent::Segment
            }
            Segment::Begin if idle && self.mode != PoolMode::Statement => Lent::Opening,
            _ => return false,
        };
        self.linked.lent = lent;
        self.linked.context = context.clone();
        self.linked.context_due = lent != Lent::Segment;
        if lent == Lent::Segment
            && let Some(parses) = self.up.lane.make(|out| backend.context.lend(&fence, context, out))
        {
            self.tracker.lend(parses);
            self.linked.lending = true;
        }
        true
    }

    /// A transaction has begun without the context, or goes on without it: its backend gets it now, ahead of
    /// the client's next message.
    pub(super) fn lend_within(&mut self, backend: &mut Backend, context: &Context) {
        let Some(fence) = self.fence.clone() else { return };
        // Behind a BEGIN that has waited for it, the segment is known.
        let joins = self.tracker.is_unsynced() || self.linked.beginning;
        if joins || matches!(self.segment(), Segment::Rows { .. }) {
            let parses = self.up.lane.make(|out| match backend.context.lend(&fence, context, out) {
                Some(parses) => parses,
                None => backend.context.lend_again(&fence, context, out),
            });
            self.tracker.lend(parses);
            self.linked.lending = true;
        } else {
            self.set_context(backend, context, Scope::Transaction);
        }
        if self.linked.lent != Lent::Segment {
            self.linked.lent = Lent::Block;
        }
        self.linked.context = context.clone();
        self.linked.context_due = false;
    }

    /// The same as a Query, which needs no snapshot and may be undone with its transaction.
    fn set_context(&mut self, backend: &mut Backend, context: &Context, scope: Scope) {
        let Some(fence) = &self.fence else { return };
        let mut text = Vec::new();
        if scope == Scope::Transaction {
            fence.show(&mut text);
        }
        fence.restore(context, backend.pid, scope, &mut text);
        backend.context.set_within(scope);
        self.statements.unnamed_is_gone();
        self.up.lane.make(|out| compose::query(out, &text));
        self.tracker.inject(OpKind::Query, Injected::Fence);
        self.linked.injected = true;
    }

    /// A Query is about to be sent while the context is lent. Returns whether it must wait: the session gets the
    /// context as well, because the Query may end the transaction and go on.
    pub(super) fn outlasts_block(&mut self) -> Outlasts {
        if self.linked.lent != Lent::Block || self.query_ends() != Ends::Within {
            return Outlasts::No;
        }
        if self.linked.foreign {
            return Outlasts::Refused;
        }
        // In a pipeline, or in a transaction that has failed, nothing can be set ahead of it.
        if self.tracker.is_unsynced() {
            return Outlasts::No;
        }
        if !self.tracker.knows_status() {
            return Outlasts::Unknown;
        }
        if self.tracker.status() != TxStatus::InTransaction {
            return Outlasts::No;
        }
        let context = self.linked.context.clone();
        let Some(mut lease) = self.lease.take() else { return Outlasts::No };
        self.set_context(lease.backend(), &context, Scope::Session);
        self.lease = Some(lease);
        self.linked.lent = Lent::Outlasting;
        self.set_injected(true);
        Outlasts::Set
    }

    /// A Query has been sent.
    pub(super) fn fence_sent_query(&mut self) {
        match self.linked.lent {
            Lent::Opening => self.linked.lent = Lent::Block,
            Lent::Block | Lent::Outlasting if self.query_ends() != Ends::No => {
                self.linked.lent = Lent::Segment;
            }
            _ => {}
        }
    }

    /// What the message at hand may do to the transaction, if it is a Query.
    fn query_ends(&self) -> Ends {
        let bytes = self.up.lane.unwalked();
        let head = Header::read(bytes).filter(|head| Kind::of(head.kind) == Some(Kind::Query));
        let Some(total) = head.and_then(|head| head.total()) else { return Ends::No };
        let (text, whole) = query_text(bytes, total);
        if whole { ends_block(text) } else { Ends::Within }
    }

    /// A Bind is about to be sent: what its portal does to the transaction.
    pub(super) fn note_turn(&mut self, total: usize) {
        if self.linked.lent == Lent::No {
            return;
        }
        let bytes = self.up.lane.unwalked();
        let body = &bytes[HEADER..bytes.len().min(total)];
        let Some((portal, name)) = bind_names(body) else { return };
        let turn = self.turn_of(name);
        self.linked.portals.note(portal, |known| known.turn = turn);
    }

    /// A portal that begins or ends a transaction has been executed.
    pub(super) fn fence_executed(&mut self, turn: Turn) {
        match (turn, self.linked.lent) {
            (Turn::Begins, Lent::Opening) => self.linked.lent = Lent::Block,
            (Turn::Ends, Lent::Block | Lent::Segment) => {
                // What its pipeline executes behind it has none.
                self.linked.lent = Lent::Segment;
                self.linked.context_due = true;
            }
            _ => {}
        }
    }

    /// Everything that was sent has been answered.
    pub(super) fn fence_ready(&mut self, idle: bool) {
        let linked = &mut self.linked;
        if idle {
            linked.portals.forget_turns();
        }
        if matches!(linked.lent, Lent::Block | Lent::Outlasting) && !idle {
            return;
        }
        let chained = linked.lent == Lent::Segment;
        linked.context_due = self.fence.is_some() && (idle || chained || linked.context_due);
        linked.lent = Lent::No;
    }

    /// The server says which tenant's context it had when another one was lent to it. One that a function has
    /// left there is taken back behind the lease.
    pub(super) fn note_context(&mut self, seen: usize) {
        let had = first_value(&self.down.lane.unwalked()[HEADER..seen]);
        let Some(lease) = &mut self.lease else { return };
        let may = had.is_some_and(|had| lease.backend().context.may_have_had(had, &self.linked.context));
        if may {
            return;
        }
        lease.backend().context.doubt();
        if !std::mem::replace(&mut self.linked.foreign, true) {
            self.pools.metrics.isolation.inc(Isolation::V4);
            crate::pool::events::isolation(Isolation::V4, &self.cell, &self.cell.glance().1, false);
        }
    }

    /// What the client's next segment is.
    fn segment(&self) -> Segment {
        let mut rest = self.up.lane.unwalked();
        let mut statements = SmallVec::<[(&[u8], Option<Turn>); 4]>::new();
        let mut portals = SmallVec::<[(&[u8], Option<Turn>); 4]>::new();
        let (mut is_first, mut begins, mut begun, mut runs) = (true, false, false, false);
        while let Some(head) = Header::read(rest) {
            let (Some(kind), Some(total)) = (Kind::of(head.kind), head.total()) else {
                return Segment::Other;
            };
            if rest.len() < total {
                return Segment::Other;
            }
            let (message, behind) = rest.split_at(total);
            let body = &message[HEADER..];
            rest = behind;
            let bound =
                |name: &[u8]| portals.iter().rev().find(|(portal, _)| *portal == name).map(|(_, turn)| *turn);
            let fits = match kind {
                Kind::Query => {
                    let text = query_text(message, total).0;
                    return match opens(text) {
                        Some(None) if is_first => Segment::Rows { query: true, last: rest.is_empty() },
                        Some(Some(_)) if is_first => Segment::Begin,
                        _ => Segment::Other,
                    };
                }
                Kind::Parse => cstr(body).is_some_and(|(name, rest)| {
                    let opens = cstr(rest).and_then(|(text, _)| opens(text));
                    opens.is_some_and(|turn| {
                        statements.push((name, turn));
                        begins |= turn.is_some();
                        true
                    })
                }),
                Kind::Bind => bind_names(body).is_some_and(|(portal, name)| {
                    let parsed = statements.iter().rev().find(|(statement, _)| *statement == name);
                    let opens = parsed.map_or_else(|| self.prepared_opens(name), |(_, turn)| Some(*turn));
                    opens.is_some_and(|turn| {
                        portals.push((portal, turn));
                        begins |= turn.is_some();
                        true
                    })
                }),
                // The unnamed portal is Bursar's until it is bound to something else.
                Kind::Execute => match execute_portal(body).and_then(bound) {
                    Some(Some(_)) => !std::mem::replace(&mut begun, true) && !runs,
                    Some(None) => {
                        runs = true;
                        begun || !begins
                    }
                    None => false,
                },
                Kind::Describe => {
                    target(body).is_some_and(|(what, name)| what == b'S' || bound(name).is_some())
                }
                Kind::Sync if total == HEADER && begun => return Segment::Begin,
                Kind::Sync if total == HEADER && !begins => {
                    return Segment::Rows { query: false, last: rest.is_empty() };
                }
                _ => false,
            };
            if !fits {
                return Segment::Other;
            }
            is_first = false;
        }
        Segment::Other
    }

    /// [`opens`] of a statement that was prepared before.
    fn prepared_opens(&self, name: &[u8]) -> Option<Option<Turn>> {
        if !name.is_empty() {
            return match self.statements.look(name) {
                Look::Shared(statement) => opens_with(statement.text(), statement.facts.scan),
                Look::Private | Look::None | Look::Replies => None,
            };
        }
        let (scan, message) = self.statements.unnamed();
        let (text, _) = cstr(message?.get(HEADER + 1..)?)?;
        opens_with(text, scan)
    }

    /// What a statement that was prepared before does to the transaction it runs in.
    fn turn_of(&self, name: &[u8]) -> Option<Turn> {
        if !name.is_empty() {
            return match self.statements.look(name) {
                Look::Shared(statement) => Turn::of(statement.text()),
                // Whatever it is, to be lent the context behind it does no harm.
                Look::Private | Look::None => Some(Turn::Ends),
                Look::Replies => None,
            };
        }
        let (text, _) = cstr(self.statements.unnamed().1?.get(HEADER + 1..)?)?;
        Turn::of(text)
    }
}

/// What is to become of a Query that may end the transaction to which the context is lent.
pub(super) enum Outlasts {
    /// It may be sent.
    No,
    /// As soon as what has just been sent for it has been taken.
    Set,
    /// As soon as the transaction's status is known.
    Unknown,
    /// Never: what runs behind the end would see the rows of whoever left its context there.
    Refused,
}

/// Whether a context may be lent with this text: `Some(None)` to one statement of rows, which leaves nothing
/// behind that would have to be looked after; behind a BEGIN, otherwise.
fn opens(text: &[u8]) -> Option<Option<Turn>> {
    opens_with(text, scan(text))
}

fn opens_with(text: &[u8], scan: Scan) -> Option<Option<Turn>> {
    if is_of_rows(text) {
        (scan == Scan::default()).then_some(None)
    } else {
        is_begin(text).then_some(Some(Turn::Begins))
    }
}

fn commits_with_query(parameters: &[(Bytes, Bytes)]) -> bool {
    known(parameters, b"server_version")
        .and_then(|version| leading_number(&version))
        .is_some_and(|number| number < BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_query_ends_the_transaction_before_it() {
        let on = |version: &'static str| {
            commits_with_query(&[("server_version".into(), Bytes::from_static(version.as_bytes()))])
        };
        assert!(on("15.18 (Debian 15.18-0+deb12u1)") && on("9.6.24") && on("17beta1"));
        assert!(!on("18.0") && !on("19devel") && !on("") && !on("x") && !commits_with_query(&[]));
    }
}
