//! The short way for what nearly every reply consists of: rows, and messages that are just what their op
//! is answered with. Each comes to the same as telling [`Tracker::server`], without the look at all that
//! might be special about a message.

use super::{Copy, OpKind, Tracker};

impl Tracker {
    /// Whether no COPY and no marker are about, and the server is not closing.
    #[inline]
    fn is_calm(&self) -> bool {
        self.marker.is_none() && self.copy == Copy::None && !self.doomed
    }

    /// Whether a server message is what the client's front op is answered with as a rule, and says
    /// nothing else (of a CommandComplete the caller sees to that); it passes then, and a row with all that follow
    /// it at once. Returns [`super::Op::noted`] of that op, or `false` if more is to come. `None` =
    /// [`Tracker::server`] decides.
    #[inline]
    pub fn as_expected(&mut self, kind: u8) -> Option<bool> {
        let front = self.ops.front()?;
        if !self.is_calm() || front.injected.is_some() || front.made_up {
            return None;
        }
        match (kind, front.kind) {
            (b'D', OpKind::Query | OpKind::Execute) | (b'T' | b'C', OpKind::Query) => {
                self.slack = 0;
                return Some(false);
            }
            (b'1', OpKind::Parse) | (b'2', OpKind::Bind) | (b'3', OpKind::Close) => {}
            (b'T' | b'n', OpKind::DescribePortal) => {}
            // Of a shared statement the session has a look at it.
            (b'T' | b'n', OpKind::DescribeStatement) if front.statement.is_none() => {}
            (b'C', OpKind::Execute) => {}
            _ => return None,
        }
        // One that was made up would come next.
        if !self.made_up.is_empty() && self.ops.get(1).is_some_and(|next| next.made_up) {
            return None;
        }
        let noted = front.noted;
        self.slack = 0;
        self.ops.pop_front();
        Some(noted)
    }
}
