//! What a client may send after login, how long it may be, and the fields that decide something.
//!
//! Limits are PostgreSQL's own (`SocketBackend` in postgres.c): small messages 10,000 bytes, large
//! ones below 1 GiB.

use super::walk::{HEADER, cstr};
use bytes::BytesMut;
use smallvec::SmallVec;
use std::ops::Range;

/// PostgreSQL's limit on messages that carry no bulk data (`PQ_SMALL_MESSAGE_LIMIT`), in bytes.
pub const SMALL: i32 = 10_000;
/// PostgreSQL's limit on messages that carry bulk data (`PQ_LARGE_MESSAGE_LIMIT`), in bytes.
pub const LARGE: i32 = 0x3fff_ffff - 1;

/// A frontend message after login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `Q` simple query.
    Query,
    /// `F` function call.
    FunctionCall,
    /// `S` sync.
    Sync,
    /// `P` parse.
    Parse,
    /// `B` bind.
    Bind,
    /// `D` describe.
    Describe,
    /// `E` execute.
    Execute,
    /// `C` close.
    Close,
    /// `H` flush.
    Flush,
    /// `d` copy data.
    CopyData,
    /// `c` copy done.
    CopyDone,
    /// `f` copy fail.
    CopyFail,
    /// `X` terminate.
    Terminate,
}

impl Kind {
    /// The kind of a type byte, or `None` for what PostgreSQL answers with
    /// `invalid frontend message type`.
    #[must_use]
    pub fn of(byte: u8) -> Option<Kind> {
        Some(match byte {
            b'Q' => Kind::Query,
            b'F' => Kind::FunctionCall,
            b'S' => Kind::Sync,
            b'P' => Kind::Parse,
            b'B' => Kind::Bind,
            b'D' => Kind::Describe,
            b'E' => Kind::Execute,
            b'C' => Kind::Close,
            b'H' => Kind::Flush,
            b'd' => Kind::CopyData,
            b'c' => Kind::CopyDone,
            b'f' => Kind::CopyFail,
            b'X' => Kind::Terminate,
            _ => return None,
        })
    }

    /// The largest length field PostgreSQL takes for this kind; it closes without a word above it.
    #[must_use]
    pub fn limit(self) -> i32 {
        match self {
            Kind::Query | Kind::FunctionCall | Kind::Parse | Kind::Bind | Kind::CopyData => LARGE,
            _ => SMALL,
        }
    }
}

/// A Parse body: name, text and where the text starts (offsets are from the start of the body).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Statement name; empty for the unnamed statement.
    pub name: &'a [u8],
    /// Statement text, without its NUL.
    pub text: &'a [u8],
    /// Everything after the text's NUL: parameter type count and OIDs.
    pub types: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Reads a whole Parse body.
    #[must_use]
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let (name, rest) = cstr(body)?;
        let (text, types) = cstr(rest)?;
        Some(Parse { name, text, types })
    }

    /// Whether there are as many parameter types as it says.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.types
            .split_first_chunk::<2>()
            .is_some_and(|(count, types)| types.len() == 4 * usize::from(u16::from_be_bytes(*count)))
    }
}

/// The two names at the start of a Bind body: (portal, statement). A prefix of the body will do.
#[must_use]
pub fn bind_names(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (portal, rest) = cstr(body)?;
    let (statement, _) = cstr(rest)?;
    Some((portal, statement))
}

/// The values of a Bind body, `None` for NULL. A text has the same bytes in both formats (`textsend` in
/// varlena.c).
#[must_use]
pub fn bind_values(body: &[u8]) -> Option<SmallVec<[Option<&[u8]>; 4]>> {
    let (_, rest) = cstr(body)?;
    let (_, rest) = cstr(rest)?;
    let (formats, rest) = count(rest)?;
    let (count, mut rest) = count(rest.get(2 * formats..)?)?;
    let mut values = SmallVec::new();
    for _ in 0..count {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        rest = behind;
        // -1 stands for NULL.
        values.push(match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                let value = rest.get(..length)?;
                rest = &rest[length..];
                Some(value)
            }
            Err(_) => None,
        });
    }
    Some(values)
}

fn count(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    Some((usize::from(u16::from_be_bytes(*count)), rest))
}

/// Appends a Bind or Describe with another statement's name, or the beginning of one: `there` are its first
/// bytes, up to the end of the name at least, of `total`. The name with its NUL is at `name`; `write` appends
/// the other one with its own.
pub fn rename(
    there: &[u8],
    total: usize,
    name: Range<usize>,
    write: impl FnOnce(&mut BytesMut),
    out: &mut BytesMut,
) {
    let start = out.len();
    out.extend_from_slice(&there[..name.start]);
    let before = out.len();
    write(out);
    let len = total - 1 - name.len() + (out.len() - before);
    out.extend_from_slice(&there[name.end..]);
    out[start + 1..start + HEADER].copy_from_slice(&(len as i32).to_be_bytes());
}

/// What a Describe or Close names: `b'S'` statement or `b'P'` portal, and the name.
#[must_use]
pub fn target(body: &[u8]) -> Option<(u8, &[u8])> {
    let (&kind, rest) = body.split_first()?;
    let (name, _) = cstr(rest)?;
    Some((kind, name))
}

/// The portal of an Execute body.
#[must_use]
pub fn execute_portal(body: &[u8]) -> Option<&[u8]> {
    Some(cstr(body)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_parse_bind_and_close() {
        let parse = Parse::read(b"s1\0select $1\0\0\x01\0\0\0\x17").unwrap();
        assert_eq!((parse.name, parse.text), (&b"s1"[..], &b"select $1"[..]));
        assert_eq!(parse.types, b"\0\x01\0\0\0\x17");
        assert_eq!(bind_names(b"p\0s1\0\0\0"), Some((&b"p"[..], &b"s1"[..])));
        assert_eq!(bind_names(b"p\0s1"), None);
        let bind = b"\0\0\0\x01\0\0\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\x01c\0\0";
        let values = bind_values(bind).unwrap();
        assert_eq!(values.as_slice(), [Some(&b"ab"[..]), None, Some(b"c")]);
        for cut in 0..bind.len() - 2 {
            assert_eq!(bind_values(&bind[..cut]), None, "{cut}");
        }
        assert_eq!(target(b"Ss1\0"), Some((b'S', &b"s1"[..])));
        assert_eq!(execute_portal(b"p1\0\0\0\0\0"), Some(&b"p1"[..]));
    }

    #[test]
    fn every_legal_type_has_a_limit_and_no_other_byte_is_legal() {
        let legal = (0..=255u8).filter_map(Kind::of).count();
        assert_eq!(legal, 13);
        assert!((0..=255u8).filter_map(Kind::of).all(|kind| kind.limit() >= SMALL));
        assert_eq!(Kind::of(b'p'), None);
    }
}
