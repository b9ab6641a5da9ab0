//! The short way for what nearly every reply consists of: rows, and messages that are just what their op
//! is answered with. Each comes to the same as telling [`Tracker::server`], without the look at all that
//! might be special about a message.

use super::{Copy, OpKind, Tracker};

impl Tracker {
    /// Rows have arrived where the front op [expects them](super::Op::expects_rows): the same as telling
    /// each to [`Tracker::server`].
    pub fn had_reply(&mut self) {
        self.slack = 0;
    }

    /// Whether no COPY and no marker are about, and the server is not closing.
    #[must_use]
    #[inline]
    pub fn is_calm(&self) -> bool {
        self.marker.is_none() && self.copy == Copy::None && !self.doomed
    }

    /// Whether a server message is what the client's front op is answered with as a rule, and says
    /// nothing else (of a CommandComplete the caller sees to that); it passes then. Returns
    /// [`super::Op::noted`] of that op. `None` = [`Tracker::server`] decides.
    #[inline]
    pub fn as_expected(&mut self, kind: u8) -> Option<bool> {
        let front = *self.ops.front().filter(|op| self.is_calm() && op.injected.is_none() && !op.made_up)?;
        match (kind, front.kind) {
            (b'1', OpKind::Parse) | (b'2', OpKind::Bind) | (b'3', OpKind::Close) => {}
            (b'T' | b'n', OpKind::DescribePortal) => {}
            // Of a shared statement the session has a look at it.
            (b'T' | b'n', OpKind::DescribeStatement) if front.statement.is_none() => {}
            (b'C', OpKind::Execute) => {}
            _ => return None,
        }
        if self.ops.get(1).is_some_and(|next| next.made_up) {
            return None;
        }
        self.slack = 0;
        self.ops.pop_front();
        Some(front.noted)
    }
}
