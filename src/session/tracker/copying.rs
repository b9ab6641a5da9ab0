//! What a COPY makes of the messages around it.
//!
//! A COPY IN swallows Flush and Sync, unless it had failed before the server read them. How many it has
//! swallowed is known from what was sent behind them, or from a marker.

use super::marker::Marker;
use super::{Copy, Desync, Give, Injected, Op, OpKind, Take, Tracker, status};
use crate::wire::frontend::Kind;
use bytes::BytesMut;

impl Tracker {
    /// Whether the server reads COPY data and nobody has told it the end yet.
    #[must_use]
    pub fn is_copying_in(&self) -> bool {
        self.copy == Copy::Open
    }

    /// Whether that COPY is a Query's.
    #[must_use]
    pub fn is_query_copying_in(&self) -> bool {
        self.is_copying_in() && self.ops.front().is_some_and(|op| op.kind == OpKind::Query)
    }

    /// Whether only replies that are still to come can say what the server makes of what it was sent around a COPY
    /// that has failed: until then nothing may be sent.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        !self.marker.is_none() || self.intruded
    }

    /// Whether a failure of the extended COPY that ends now would leave open if what comes next is
    /// skipped, because only a Sync that came in the middle of its data could have ended that.
    pub(super) fn is_end_in_doubt(&self) -> bool {
        let mut ops = self.ops.iter().map(|op| op.kind);
        self.copy == Copy::Closing
            && ops.next().is_some_and(OpKind::is_extended)
            && ops.all(|kind| kind != OpKind::Sync)
    }

    pub(super) fn copy_message(&mut self, kind: Kind) -> Take {
        match self.copy {
            Copy::Open => {
                self.copy_data = true;
                if kind != Kind::CopyData {
                    self.copy = Copy::Closing;
                    self.unflushed = true;
                }
                Take::Forward
            }
            // A COPY may be about to begin (its CopyInResponse is not in yet), or the one before is
            // about to end: only the server's next replies say whether this is data or noise.
            _ if self.may_copy() => Take::Hold,
            _ => Take::Drop,
        }
    }

    pub(super) fn may_copy(&self) -> bool {
        self.ops.iter().any(|op| matches!(op.kind, OpKind::Query | OpKind::Execute) && !op.made_up)
    }

    /// COPY IN has begun: Syncs already sent behind it will be read as part of the data, up to the first message
    /// that has no place there.
    pub(super) fn swallow_syncs(&mut self) {
        let intrudes = |op: &Op| op.kind != OpKind::Sync || op.made_up;
        let syncs = self.ops.iter().skip(1).position(intrudes);
        self.intruded = syncs.is_some();
        self.lacks_intruder =
            syncs.is_some_and(|syncs| !self.ops.iter().skip(1 + syncs).any(|op| intrudes(op) && !op.made_up));
        let syncs = syncs.unwrap_or(self.ops.len() - 1);
        self.ops.drain(1..1 + syncs);
        self.early_syncs += syncs as u32;
        self.syncs = self.syncs.saturating_sub(syncs as u32);
        if syncs > 0 {
            // The client's Sync did not end the implicit transaction after all.
            self.unsynced |= self.ops.front().is_some_and(|op| op.kind == OpKind::Execute);
        }
    }

    /// Whether [`INTRUDER`](super::marker::INTRUDER) must be sent now, so that the server does to a client that
    /// breaks into its own COPY what it does (it closes the connection); to be asked after each CopyInResponse.
    pub fn takes_intruder(&mut self) -> bool {
        let takes = std::mem::take(&mut self.lacks_intruder);
        if takes {
            self.ops.push_back(Op { injected: Some(Injected::InPlace), ..Op::new(OpKind::Close) });
        }
        takes
    }

    /// So many Syncs may be answered or not: something sent behind them will tell, or a marker.
    pub(super) fn doubt(&mut self, syncs: u32, copy: OpKind, intruder: Option<OpKind>) -> Result<(), Desync> {
        let extended = copy.is_extended();
        self.guessed = false;
        for op in self.ops.iter().skip(usize::from(!extended)) {
            match op.kind {
                _ if op.made_up => {}
                OpKind::Sync => {}
                // Nobody can tell whether this is what replies, or a message in between that has been swept.
                _ if extended && intruder.is_some() => return Err(Desync(b'E')),
                _ => {
                    self.slack = syncs;
                    return Ok(());
                }
            }
        }
        let synced = self.ops.iter().any(|op| op.kind == OpKind::Sync);
        self.marker = if extended { Marker::due(true, intruder, synced) } else { Marker::AfterReady };
        Ok(())
    }

    /// Whether [`BYTES`](super::marker::BYTES) must be sent now; to be asked after each server message.
    #[must_use]
    pub fn take_marker(&mut self) -> bool {
        self.marker.take_due()
    }

    /// The client gets a ReadyForQuery while it is in doubt how many it is to get. Made-up replies that stand
    /// between two Syncs are given their place as if none in doubt was answered: drivers send a Sync with their
    /// COPY, and give up a COPY with whatever they do next behind it. If there is one more, nobody can tell any
    /// more where they belong.
    fn place_behind_sync(&mut self, out: &mut BytesMut) -> Result<(), Desync> {
        if self.ops.front().is_some_and(|op| op.kind == OpKind::Sync && !op.made_up) {
            self.ops.pop_front();
        } else if self.guessed {
            return Err(Desync(b'Z'));
        }
        while self.is_between_syncs() {
            self.guessed = true;
            self.emit_one(out);
        }
        Ok(())
    }

    /// Whether a made-up reply comes next, and a Sync stands behind it that the server answers.
    pub(super) fn is_between_syncs(&self) -> bool {
        let mut behind = self.ops.iter().skip_while(|op| op.made_up);
        self.ops.front().is_some_and(|op| op.made_up)
            && behind.next().is_some_and(|op| op.kind == OpKind::Sync)
    }

    /// A message that comes while the marker is on its way.
    pub(super) fn marked(&mut self, kind: u8, body: &[u8], out: &mut BytesMut) -> Result<Give, Desync> {
        if kind == b'Z' {
            self.status = status(body)?;
        }
        let (give, end) = self.marker.server(kind, out)?;
        if give == Give::Withhold && self.marker.lets_go() {
            self.place_behind_sync(out)?;
        }
        if let Some(end) = end {
            self.marker = Marker::None;
            // They stand behind a Sync that was answered for certain.
            self.ops.retain(|op| op.made_up);
            (self.queries, self.syncs) = (0, 0);
            (self.skipping, self.unsynced) = (end.skipping, end.unsynced);
            self.emit(out);
        }
        Ok(give)
    }
}
