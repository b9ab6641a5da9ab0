//! The rows of a prepared statement keep the shape that a client was told.
//!
//! On a direct connection a statement whose rows would have another shape than when it was prepared
//! fails: "cached plan must not change result type" (`RevalidateCachedQuery` in plancache.c). A driver
//! that has asked once what the rows look like relies on it, in binary above all. A backend on which
//! the statement is parsed for the first time does not know what was said elsewhere; so what a
//! client's Describe was told is remembered, and such a backend is asked ahead of the first use. If it
//! says something else, the error is raised here, and whoever parses the text anew gets a statement of
//! its own.
//!
//! Who never asked, or asks the portal each time, costs nobody a round trip.

use super::Session;
use super::tracker::{Injected, Op, OpKind};
use crate::statements::Statement;
use crate::wire::backend::row_shape;
use crate::wire::walk::HEADER;
use std::sync::Arc;

/// Describes on their way whose answer is remembered; further ones are not.
const MAX_ASKED: usize = 64;

/// What is being asked about statements on this lease.
#[derive(Default)]
pub(super) struct Asked {
    /// By the client, oldest first.
    client: Vec<Arc<Statement>>,
    /// By Bursar; what uses the statement waits for the answer.
    own: Option<Arc<Statement>>,
}

impl<S> Session<S> {
    /// The client asks what a statement's rows look like.
    pub(super) fn asks_shape(&mut self, statement: &Arc<Statement>) {
        let asked = &mut self.linked.shapes;
        if statement.shape().is_none() && asked.client.len() < MAX_ASKED {
            asked.client.push(statement.clone());
        }
    }

    /// A statement is on its way to a backend that did not have it: if a client knows its shape, asks
    /// for the one that it has there.
    pub(super) fn check_shape(&mut self, statement: &Arc<Statement>) {
        if statement.shape().is_some() {
            self.up.lane.make(|out| statement.id.write_describe(out));
            self.tracker.ask_shape();
            self.linked.shapes.own = Some(statement.clone());
        }
    }

    /// Whether a use of a statement waits for its shape.
    pub(super) fn is_checking(&self) -> bool {
        self.linked.shapes.own.is_some()
    }

    /// RowDescription, or NoData, has come for `op`; of its `total` bytes so many are there, which are all
    /// unless it is too long.
    pub(super) fn note_shape(&mut self, op: Op, seen: usize, total: usize) {
        let shape = (seen == total).then(|| row_shape(&self.down.lane.unwalked()[HEADER..total]));
        let asked = &mut self.linked.shapes;
        if op.injected == Some(Injected::InPlace) {
            let Some(statement) = asked.own.take() else { return };
            if shape != statement.shape() {
                statement.make_stale();
                self.pool.statements.lock().retire(statement.id);
            }
        } else if let Some(at) = asked.client.iter().position(|other| Some(other.id) == op.statement) {
            let statement = asked.client.remove(at);
            if let Some(shape) = shape {
                statement.learn_shape(shape);
            }
        }
    }

    /// An error has come. What was asked behind it in its segment is not answered any more, but what is
    /// asked in the next one is: its answer must not be taken for that to a later question.
    pub(super) fn forget_asked(&mut self) {
        if !self.tracker.is_asking() {
            self.linked.shapes.own = None;
        }
    }

    /// All replies have come.
    pub(super) fn forget_all_asked(&mut self) {
        if !self.linked.shapes.client.is_empty() || self.linked.shapes.own.is_some() {
            self.linked.shapes = Asked::default();
        }
    }
}

/// Whether a message of this type answers a Describe of a statement.
pub(super) fn tells_shape(kind: u8, front: Option<Op>) -> bool {
    matches!(kind, b'T' | b'n')
        && front.is_some_and(|op| {
            op.kind == OpKind::DescribeStatement && (op.statement.is_some() || op.injected.is_some())
        })
}
