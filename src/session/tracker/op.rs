//! One outstanding message.

use crate::statements::StatementId;
use crate::wire::frontend::Kind;

/// What a message will be answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpKind {
    /// ParseComplete.
    Parse,
    /// BindComplete.
    Bind,
    /// ParameterDescription, then RowDescription or NoData.
    DescribeStatement,
    /// RowDescription or NoData.
    DescribePortal,
    /// Rows, then CommandComplete, EmptyQueryResponse or PortalSuspended; or a COPY.
    Execute,
    /// CloseComplete.
    Close,
    /// ReadyForQuery, perhaps after an error.
    Sync,
    /// Results, then ReadyForQuery.
    Query,
    /// FunctionCallResponse, then ReadyForQuery.
    Function,
}

impl OpKind {
    /// What a client's message is answered with, if with anything of its own. For Describe,
    /// `statement` says whether it names a statement.
    pub(super) fn of(kind: Kind, statement: bool) -> Option<OpKind> {
        Some(match kind {
            Kind::Parse => OpKind::Parse,
            Kind::Bind => OpKind::Bind,
            Kind::Describe if statement => OpKind::DescribeStatement,
            Kind::Describe => OpKind::DescribePortal,
            Kind::Execute => OpKind::Execute,
            Kind::Close => OpKind::Close,
            Kind::Sync => OpKind::Sync,
            Kind::Query => OpKind::Query,
            Kind::FunctionCall => OpKind::Function,
            Kind::Flush | Kind::Terminate | Kind::CopyData | Kind::CopyDone | Kind::CopyFail => return None,
        })
    }

    /// Whether an error in it makes the server skip to Sync.
    #[must_use]
    pub fn is_extended(self) -> bool {
        !self.is_ready_for_query()
    }

    /// Whether ReadyForQuery ends it.
    #[must_use]
    pub fn is_ready_for_query(self) -> bool {
        matches!(self, OpKind::Sync | OpKind::Query | OpKind::Function)
    }
}

/// Why a message was injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injected {
    /// A segment of its own that ends with ReadyForQuery: an error in it is Bursar's.
    Segment,
    /// Part of the client's own segment (a statement of its parsed where it is missing): an error in
    /// it is the client's, at the place where PostgreSQL would raise it.
    InPlace,
    /// The same, of a Parse that the client has just sent itself: what PostgreSQL remarks while it reads the
    /// text is the client's too.
    Instead,
    /// Something that fails on purpose, so that what the client's segment or transaction has done is
    /// undone.
    Failure,
    /// Part of a segment that sets the tenant context: whatever comes behind an error in it is no
    /// answer for the client.
    Fence,
    /// Part of what sets the tenant context for the client's own segment, which it begins: nothing that
    /// follows may run without it. A cancel in it is the client's, any other error Bursar's.
    Lent,
    /// Part of a BEGIN that the client has been answered before: an error in it is the client's, and
    /// nothing that follows may run.
    Begin,
}

impl Injected {
    /// Whether it is part of the client's own segment.
    #[must_use]
    pub fn is_in_place(self) -> bool {
        matches!(self, Injected::InPlace | Injected::Instead)
    }
}

/// One entry of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// What it will be answered with.
    pub kind: OpKind,
    /// Set when Bursar sent it: its replies are left out.
    pub injected: Option<Injected>,
    /// Bursar answers it itself when its turn comes.
    pub made_up: bool,
    /// The session has a name in flight with it: told by [`super::Tracker::take_swept`] if an error
    /// sweeps it.
    pub noted: bool,
    /// Every SET in its text is SET LOCAL or the like: the tag `SET` leaves no trace.
    pub local_settings: bool,
    /// It is `DEALLOCATE ALL` and nothing else: that has run also if its transaction cannot commit, and
    /// then no tag says so.
    pub deallocates_all: bool,
    /// The shared statement it uses.
    pub statement: Option<StatementId>,
}

/// What the session keeps with a message that it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Note {
    /// A Describe that names a statement, and not a portal.
    pub of_statement: bool,
    /// See [`Op::noted`].
    pub noted: bool,
    /// See [`Op::local_settings`].
    pub local_settings: bool,
    /// See [`Op::deallocates_all`].
    pub deallocates_all: bool,
    /// See [`Op::statement`].
    pub statement: Option<StatementId>,
}

impl Op {
    /// Whether rows that arrive now are the client's, if this op is the front one.
    #[must_use]
    pub(super) fn expects_rows(&self) -> bool {
        matches!(self.kind, OpKind::Query | OpKind::Execute) && self.injected.is_none()
    }

    /// Whether it is a Query or function call of the client's that the server sees.
    pub(super) fn is_query(self) -> bool {
        matches!(self.kind, OpKind::Query | OpKind::Function) && self.injected.is_none() && !self.made_up
    }

    pub(super) fn new(kind: OpKind) -> Op {
        let (noted, local_settings, deallocates_all) = (false, false, false);
        Op { kind, injected: None, made_up: false, noted, local_settings, deallocates_all, statement: None }
    }
}
