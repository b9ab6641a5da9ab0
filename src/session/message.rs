//! What can be said of one client message by looking at it alone: whether enough of it is there, where its
//! text is, what it is without a comment.

use crate::net::lane::Lane;
use crate::wire::frontend::{Kind, bind_names};
use crate::wire::sql::scan::{Scan, Traces};
use crate::wire::walk::HEADER;
use std::borrow::Cow;
use std::ops::Range;

/// Whether enough of a message is there to decide it: all of it where its text or a name at its end
/// matters, as long as it can be held; a Bind's two names; of everything else the header.
#[must_use]
pub fn is_enough(kind: Kind, total: usize, bytes: &[u8]) -> bool {
    let there = bytes.len();
    match kind {
        Kind::Query | Kind::Parse => there >= total.min(Lane::HELD),
        Kind::Bind => there >= total.min(Lane::HELD) || bind_names(&bytes[HEADER..]).is_some(),
        Kind::Describe | Kind::Close | Kind::Execute => there >= total,
        _ => true,
    }
}

/// The text of a Query, or as much of it as is there, and whether that is all.
#[must_use]
pub fn query_text(bytes: &[u8], total: usize) -> (&[u8], bool) {
    let there = &bytes[HEADER..total.min(bytes.len())];
    (there.strip_suffix(&[0]).unwrap_or(there), bytes.len() >= total)
}

/// A text too long to scan may do anything.
pub(super) fn too_long() -> Scan {
    Scan { traces: Traces::SUSPECT.with(Traces::HIDDEN), only_local_sets: false, sets_locally: false }
}

/// A whole message without the bytes to be cut from it, its length corrected.
#[must_use]
pub fn without(message: &[u8], cut: Option<Range<usize>>) -> Cow<'_, [u8]> {
    let Some(cut) = cut else { return message.into() };
    let mut shorter = Vec::with_capacity(message.len());
    shorter.extend_from_slice(&message[..cut.start]);
    shorter.extend_from_slice(&message[cut.end..]);
    let len = (shorter.len() - 1) as i32;
    shorter[1..HEADER].copy_from_slice(&len.to_be_bytes());
    shorter.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_message_has_the_right_length() {
        let message = b"Q\0\0\0\x13select 1 /*a*/\0";
        let cut = without(message, Some(13..19));
        assert_eq!(&cut[..], b"Q\0\0\0\x0dselect 1\0");
        assert_eq!(&without(message, None)[..], message);
    }

    #[test]
    fn bulk_is_decided_by_its_header() {
        assert!(is_enough(Kind::CopyData, 1 << 20, b"d\0\x10\0\0"));
        assert!(!is_enough(Kind::Query, 100, b"Q\0\0\0\x63select"));
        assert!(is_enough(Kind::Bind, 1 << 20, b"B\0\x10\0\0\0\0\0"));
        assert!(!is_enough(Kind::Bind, 1 << 20, b"B\0\x10\0\0p"));
    }
}
