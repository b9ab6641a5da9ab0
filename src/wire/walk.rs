//! Message boundaries, found in place.
//!
//! A message is one type byte, a big-endian `i32` length that counts itself but not the type byte,
//! and the body. Nothing is copied and nothing is allocated by the peer's number: the walker only
//! says where a message ends, the reader decides how much of it to hold.

/// Bytes of a message header: type and length.
pub const HEADER: usize = 5;

/// One message header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub kind: u8,
    /// The length field as sent: counts itself, not the type byte. May be hostile.
    pub len: i32,
}

impl Header {
    /// Reads a header from the start of `buf`; `None` while fewer than [`HEADER`] bytes are there.
    #[must_use]
    pub fn read(buf: &[u8]) -> Option<Header> {
        let head = buf.first_chunk::<HEADER>()?;
        Some(Header { kind: head[0], len: i32::from_be_bytes([head[1], head[2], head[3], head[4]]) })
    }

    /// The whole message in bytes, type byte included; `None` if the length field is below 4.
    #[must_use]
    pub fn total(self) -> Option<usize> {
        (self.len >= 4).then(|| self.len as usize + 1)
    }
}

/// Reads a NUL-terminated string at the start of `buf`: the string and what follows its NUL.
#[must_use]
#[inline]
pub fn cstr(buf: &[u8]) -> Option<(&[u8], &[u8])> {
    // Most names are empty.
    let end = if buf.first() == Some(&0) { 0 } else { memchr::memchr(0, buf)? };
    Some((&buf[..end], &buf[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_needs_five_bytes_and_a_sane_length() {
        assert_eq!(Header::read(b"Q\0\0\0"), None);
        assert_eq!(Header::read(b"Q\0\0\0\x05\0").unwrap().total(), Some(6));
        assert_eq!(Header::read(b"Q\0\0\0\x03").unwrap().total(), None);
        assert_eq!(Header::read(b"Q\xff\xff\xff\xff").unwrap().total(), None);
    }

    #[test]
    fn a_string_ends_at_its_nul() {
        assert_eq!(cstr(b"ab\0c"), Some((&b"ab"[..], &b"c"[..])));
        assert_eq!(cstr(b"ab"), None);
    }
}
