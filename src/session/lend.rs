//! A tenant context for one segment: where all that a client has sent is a transaction of its own that no
//! statement in it ends, the context travels within that transaction, as SET LOCAL does
//! ([`Held::lend`](crate::state::fence::Held::lend)).
//!
//! That saves what a segment of its own costs the server before the client's, and another one behind the
//! lease: each ends a transaction, and is answered in a write of its own. What is not known to be so simple
//! (a BEGIN, a CALL, VACUUM, several statements in a Query, a pipeline of which only a part is here) has the
//! context brought, which is for [`super::fence`] to do; so has all that a backend needs settings for first.

use super::Session;
use super::message::query_text;
use super::settings::known;
use crate::backend::Backend;
use crate::state::fence::Context;
use crate::statements::session::Look;
use crate::wire::backend::TxStatus;
use crate::wire::frontend::{Kind, bind_names, execute_portal, target};
use crate::wire::sql::bound::leading_number;
use crate::wire::sql::lead::is_of_rows;
use crate::wire::sql::scan::{Scan, scan};
use crate::wire::walk::{HEADER, Header, cstr};
use bytes::Bytes;
use smallvec::SmallVec;

/// From this version on a Query behind an extended message without Sync does not end the transaction that
/// they share (`start_xact_command` in postgres.c begins a block).
const BLOCKS: usize = 18;

impl<S> Session<S> {
    /// A lease begins: lends its backend the context for the client's segment at hand. Returns whether it
    /// did; otherwise nothing is sent.
    pub(super) fn lend_context(&mut self, backend: &mut Backend, context: &Context) -> bool {
        let Some(fence) = self.fence.clone().filter(|fence| fence.is_strict()) else { return false };
        let ready = backend.settings == self.settings
            && self.tx.is_real()
            && self.tracker.status() == TxStatus::Idle
            && !self.tracker.is_busy();
        if !ready || !self.has_one_transaction(&backend.parameters) {
            return false;
        }
        let Some(parses) = self.up.lane.make(|out| backend.context.lend(&fence, context, out)) else {
            return false;
        };
        self.tracker.lend(parses);
        self.linked.context = context.clone();
        self.linked.context_due = false;
        (self.linked.lent, self.linked.lending) = (true, true);
        true
    }

    /// Whether what the client has sent is all of one segment, and that a transaction which only its end
    /// ends, on a server with these parameters.
    fn has_one_transaction(&self, parameters: &[(Bytes, Bytes)]) -> bool {
        let mut rest = self.up.lane.unwalked();
        let (mut parsed, mut bound) = (SmallVec::<[&[u8]; 4]>::new(), SmallVec::<[&[u8]; 4]>::new());
        let mut is_first = true;
        while let Some(head) = Header::read(rest) {
            let (Some(kind), Some(total)) = (Kind::of(head.kind), head.total()) else { return false };
            if rest.len() < total {
                return false;
            }
            let (message, behind) = rest.split_at(total);
            let body = &message[HEADER..];
            rest = behind;
            let leaves_it_alone = match kind {
                Kind::Query => {
                    let text = query_text(message, total).0;
                    return is_first && rest.is_empty() && commits_with_query(parameters) && is_plain(text);
                }
                Kind::Parse => cstr(body).is_some_and(|(name, rest)| {
                    parsed.push(name);
                    cstr(rest).is_some_and(|(text, _)| is_plain(text))
                }),
                Kind::Bind => bind_names(body).is_some_and(|(portal, name)| {
                    bound.push(portal);
                    parsed.contains(&name) || self.is_plain_statement(name)
                }),
                // The unnamed portal is Bursar's until it is bound to something else.
                Kind::Execute => execute_portal(body).is_some_and(|portal| bound.contains(&portal)),
                Kind::Describe => {
                    target(body).is_some_and(|(what, name)| what == b'S' || bound.contains(&name))
                }
                Kind::Sync => return rest.is_empty() && total == HEADER,
                _ => false,
            };
            if !leaves_it_alone {
                return false;
            }
            is_first = false;
        }
        false
    }

    /// Whether a statement that was prepared before is [plain](is_plain).
    fn is_plain_statement(&self, name: &[u8]) -> bool {
        if !name.is_empty() {
            return match self.statements.look(name) {
                Look::Shared(statement) => {
                    statement.facts.scan == Scan::default() && is_of_rows(statement.text())
                }
                Look::Private | Look::None | Look::Replies => false,
            };
        }
        let (scan, message) = self.statements.unnamed();
        let text = message.and_then(|message| cstr(message.get(HEADER + 1..)?));
        scan == Scan::default() && text.is_some_and(|(text, _)| is_of_rows(text))
    }
}

/// Whether a text is one statement of rows, and leaves nothing behind that would have to be looked after.
fn is_plain(text: &[u8]) -> bool {
    is_of_rows(text) && scan(text) == Scan::default()
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
