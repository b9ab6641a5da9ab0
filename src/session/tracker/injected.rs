//! Messages that Bursar sends on its own account: the client sees nothing of them but what is noted.

use super::{Copy, Injected, Op, OpKind, Tracker};
use crate::statements::StatementId;

impl Tracker {
    /// Whether a cancel now would hit Bursar's own work. What is part of the client's segment is the
    /// client's, and so is its BEGIN: an error of theirs lands where PostgreSQL would raise it.
    #[must_use]
    pub fn is_own_work(&self) -> bool {
        let own =
            |op: &Op| matches!(op.injected, Some(Injected::Segment | Injected::Failure | Injected::Fence));
        !self.marker.is_none() || self.front().is_some_and(own)
    }

    /// Whether the front is Bursar's own work ahead of a BEGIN that the client has been answered already:
    /// what the server says of its transaction there says nothing of the client's.
    pub(super) fn is_before_begin(&self) -> bool {
        let begins = |op: &Op| op.injected == Some(Injected::Begin);
        (self.is_own_work() || self.front().is_some_and(begins)) && self.ops.iter().any(begins)
    }

    /// Bursar sends a message of its own ahead of the client's: its replies are left out. What is part of
    /// the client's segment begins it: only the client's Sync ends what the server has begun by then.
    pub fn inject(&mut self, kind: OpKind, what: Injected) {
        self.unflushed = kind.is_extended();
        let joins = what.is_in_place() || what == Injected::Lent;
        self.unsynced |= joins && kind.is_extended();
        self.ops.push_back(Op { injected: Some(what), noted: what.is_in_place(), ..Op::new(kind) });
    }

    /// Bursar sends a segment that sets the tenant context, a Parse of its statement first or not. It
    /// leaves the transaction status as it is: nothing of the client's waits for its end.
    pub fn fence(&mut self, parses: bool) {
        let kinds = [OpKind::Parse, OpKind::Bind, OpKind::Execute, OpKind::Sync];
        for kind in kinds.into_iter().skip(usize::from(!parses)) {
            self.inject(kind, Injected::Fence);
        }
    }

    /// Bursar begins the client's segment with the tenant context, a Parse of its statement first or not.
    pub fn lend(&mut self, parses: bool) {
        let kinds = [OpKind::Parse, OpKind::Bind, OpKind::Execute];
        for kind in kinds.into_iter().skip(usize::from(!parses)) {
            self.inject(kind, Injected::Lent);
        }
    }

    /// Whether an error that comes now keeps the Parse of [`Tracker::lend`] from running.
    #[must_use]
    pub fn would_sweep_lending(&self) -> bool {
        let parses = |op: &Op| op.kind == OpKind::Parse && op.injected == Some(Injected::Lent);
        self.front().is_some_and(|op| op.kind.is_extended())
            && self.ops.iter().take_while(|op| op.kind != OpKind::Sync).any(parses)
    }

    /// Whether anything of the client's is outstanding: not only segments of Bursar's own, which change
    /// nothing about what the client has done.
    #[must_use]
    pub fn is_clients(&self) -> bool {
        let own = |op: &Op| matches!(op.injected, Some(Injected::Fence | Injected::Segment));
        let clients = |op: &Op| !own(op) && !op.made_up;
        self.is_busy() && (self.ops.iter().any(clients) || self.copy != Copy::None || !self.marker.is_none())
    }

    /// Bursar sends a Parse that is sure to fail, of a statement: the error is the client's.
    pub fn probe(&mut self, statement: StatementId) {
        self.inject(OpKind::Parse, Injected::InPlace);
        if let Some(op) = self.ops.back_mut() {
            op.statement = Some(statement);
        }
    }

    /// Whether a Describe of Bursar's own is outstanding.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.ops.iter().any(|op| op.kind == OpKind::DescribeStatement && op.injected.is_some())
    }

    /// Bursar sends a Describe of a statement, for itself.
    pub fn ask_shape(&mut self) {
        (self.unflushed, self.unsynced) = (true, true);
        let op = Op::new(OpKind::DescribeStatement);
        self.ops.push_back(Op { injected: Some(Injected::InPlace), ..op });
    }
}
