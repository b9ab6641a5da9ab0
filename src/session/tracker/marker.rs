//! Which Syncs a failed COPY IN has swallowed, found out by a marker.
//!
//! A Sync sent into a COPY IN is ignored, unless the COPY had failed before the server read it: then
//! it is answered. Where nothing else that was sent can tell, Bursar sends a Sync, which ends the
//! skipping if it still goes on, two Closes, which are always acknowledged, and a Sync. Every
//! ReadyForQuery before that pair is the client's, but for the last, which answers the marker's first
//! Sync; so one is always kept back until the next message shows whose it was.
//!
//! ```text
//!                              extended COPY, one Sync in it     with Close(a statement) behind it
//!   swallowed, still skipping  E │ Z 3 3 Z                       E │ Z 3 3 Z
//!   answered                   E Z │ Z 3 3 Z                     E Z 3 │ Z 3 3 Z
//! ```
//!
//! The one message that may stand behind the Syncs is the *intruder*: one that has no place in a
//! COPY. Its replies, if the server has come to it, are the client's. Because it may be a Close, one
//! CloseComplete alone does not say that the marker is through; two in a row do.

use super::op::OpKind;
use super::{Desync, Give};
use crate::wire::backend::bare;
use bytes::BytesMut;

/// A Close, of a statement that nobody has, and a Flush.
pub const INTRUDER: &[u8] = b"C\0\0\0\x0dS\x01bursar\0H\0\0\0\x04";

/// Sync, such a Close twice, Sync.
pub const BYTES: &[u8] = b"S\0\0\0\x04C\0\0\0\x0dS\x01bursar\0C\0\0\0\x0dS\x01bursar\0S\0\0\0\x04";

/// See the module's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    None,
    /// A simple-protocol COPY has failed: the marker goes out after its ReadyForQuery.
    AfterReady,
    /// To be sent now.
    Due(Doubt),
    /// Sent.
    Sent(Doubt),
    /// Both of its Closes are answered; only its last ReadyForQuery is to come.
    Closing(End),
}

/// What is known of the replies so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doubt {
    /// The COPY was an extended one: unless a Sync of the client's is answered, it is skipping.
    extended: bool,
    intruder: Option<OpKind>,
    /// A Sync stands behind all that: nothing is open or skipped any more.
    synced: bool,
    /// The server has replied to the intruder; with an error if `failed`.
    came: bool,
    failed: bool,
    /// ReadyForQuery messages that have come.
    ready: u32,
    /// One CloseComplete has come, of which the next message says whose it is.
    closed: bool,
}

/// How things stand with the client's messages once the marker is through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) skipping: bool,
    pub(super) unsynced: bool,
}

impl Marker {
    /// Asked for every message: a comparison of whole markers would be a call.
    #[inline]
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Marker::None)
    }

    pub(super) fn due(extended: bool, intruder: Option<OpKind>, synced: bool) -> Marker {
        Marker::Due(Doubt { extended, intruder, synced, came: false, failed: false, ready: 0, closed: false })
    }

    /// Whether it is to be sent; from now on it is.
    pub(super) fn take_due(&mut self) -> bool {
        let Marker::Due(doubt) = *self else { return false };
        *self = Marker::Sent(doubt);
        true
    }

    /// Whether a ReadyForQuery that was kept back has been let go by the one that has just come.
    pub(super) fn lets_go(&self) -> bool {
        matches!(self, Marker::Sent(doubt) if doubt.ready > 1)
    }

    pub(super) fn is_sent(&self) -> bool {
        matches!(self, Marker::Sent(_) | Marker::Closing(_))
    }

    /// A message has come behind the marker's sending, none of the asynchronous ones. Bytes that go
    /// to the client behind what [`Give::Withhold`] lets go are appended to `out`.
    pub(super) fn server(&mut self, kind: u8, out: &mut BytesMut) -> Result<(Give, Option<End>), Desync> {
        let give = match self {
            Marker::Closing(end) if kind == b'Z' => return Ok((Give::DropWithheld, Some(*end))),
            Marker::Sent(doubt) => match kind {
                b'Z' => {
                    if std::mem::take(&mut doubt.closed) {
                        doubt.came = true;
                        bare(out, b'3');
                    }
                    doubt.ready += 1;
                    Give::Withhold
                }
                b'3' if !doubt.closed => {
                    doubt.closed = true;
                    Give::Suppress
                }
                b'3' => {
                    let end = doubt.end();
                    *self = Marker::Closing(end);
                    Give::Suppress
                }
                // Not a second COPY: it would swallow the marker.
                _ if doubt.intruder.is_some() && !doubt.closed && !matches!(kind, b'G' | b'H' | b'W') => {
                    doubt.came = true;
                    doubt.failed |= kind == b'E';
                    Give::PassWithheld
                }
                _ => return Err(Desync(kind)),
            },
            _ => return Err(Desync(kind)),
        };
        Ok((give, None))
    }
}

impl Doubt {
    fn end(&self) -> End {
        let open = !self.synced && self.came && self.intruder.is_some_and(OpKind::is_extended);
        let swallowed = self.extended && self.ready == 1;
        End { skipping: swallowed || (open && self.failed), unsynced: open && !self.failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::walk::Header;

    #[test]
    fn the_marker_is_four_messages() {
        let mut at = 0;
        let mut kinds = String::new();
        while let Some(head) = Header::read(&BYTES[at..]) {
            kinds.push(char::from(head.kind));
            at += head.total().unwrap();
        }
        assert_eq!((kinds.as_str(), at), ("SCCS", BYTES.len()));
    }
}
