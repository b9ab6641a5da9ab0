//! What a server sends: readers for the few fields that decide something, and builders for the
//! few messages that Bursar answers itself.
//!
//! Builders append to the given buffer and never fail: everything they write is bounded by Bursar.

use super::walk::cstr;
use bytes::{BufMut, Bytes, BytesMut};
use std::hash::{BuildHasher, Hash, Hasher};

/// The transaction status of ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxStatus {
    /// `I`: not in a transaction block.
    Idle,
    /// `T`: in a transaction block.
    InTransaction,
    /// `E`: in a failed transaction block.
    Failed,
}

impl TxStatus {
    /// From ReadyForQuery's byte.
    #[must_use]
    pub fn of(byte: u8) -> Option<TxStatus> {
        match byte {
            b'I' => Some(TxStatus::Idle),
            b'T' => Some(TxStatus::InTransaction),
            b'E' => Some(TxStatus::Failed),
            _ => None,
        }
    }

    /// ReadyForQuery's byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            TxStatus::Idle => b'I',
            TxStatus::InTransaction => b'T',
            TxStatus::Failed => b'E',
        }
    }
}

/// What a RowDescription (its body; empty for NoData) says of the rows, as a number: names, types and
/// type modifiers, which is what PostgreSQL compares (`equalRowTypes` in tupdesc.c); not of which table
/// a column is.
#[must_use]
pub fn row_shape(body: &[u8]) -> u64 {
    /// Behind a column's name: table (4), column (2), **type (4), its size (2), modifier (4)**, format (2).
    const FIELDS: usize = 18;
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some((name, fields)) = cstr(rest).filter(|(_, fields)| fields.len() >= FIELDS) {
        name.hash(&mut hasher);
        fields[6..16].hash(&mut hasher);
        rest = &fields[FIELDS..];
    }
    hasher.finish()
}

/// Appends one message: type byte, length, and what `body` writes.
pub fn message(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    let at = out.len();
    out.put_i32(0);
    body(out);
    let len = (out.len() - at) as i32;
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends ReadyForQuery.
pub fn ready_for_query(out: &mut BytesMut, status: TxStatus) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status.byte()]);
}

/// Appends a message without a body, such as ParseComplete (`1`), BindComplete (`2`),
/// CloseComplete (`3`), NoData (`n`) or EmptyQueryResponse (`I`).
pub fn bare(out: &mut BytesMut, kind: u8) {
    out.extend_from_slice(&[kind, 0, 0, 0, 4]);
}

/// Appends CommandComplete.
pub fn command_complete(out: &mut BytesMut, tag: &str) {
    message(out, b'C', |out| {
        out.extend_from_slice(tag.as_bytes());
        out.put_u8(0);
    });
}

/// Appends ParameterStatus.
pub fn parameter_status(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    message(out, b'S', |out| {
        out.extend_from_slice(name);
        out.put_u8(0);
        out.extend_from_slice(value);
        out.put_u8(0);
    });
}

/// Appends a RowDescription of text columns.
pub fn text_columns<'a>(out: &mut BytesMut, names: impl ExactSizeIterator<Item = &'a str>) {
    message(out, b'T', |out| {
        out.put_i16(names.len() as i16);
        for name in names {
            out.extend_from_slice(name.as_bytes());
            out.put_u8(0);
            out.put_i32(0); // no table
            out.put_i16(0); // no column number
            out.put_i32(25); // text
            out.put_i16(-1); // variable length
            out.put_i32(-1); // no modifier
            out.put_i16(0); // text format
        }
    });
}

/// Appends a DataRow of text values; `None` is NULL.
pub fn text_row<'a>(out: &mut BytesMut, values: impl ExactSizeIterator<Item = Option<&'a str>>) {
    message(out, b'D', |out| {
        out.put_i16(values.len() as i16);
        for value in values {
            match value {
                None => out.put_i32(-1),
                Some(value) => {
                    out.put_i32(value.len() as i32);
                    out.extend_from_slice(value.as_bytes());
                }
            }
        }
    });
}

/// Name and value of a ParameterStatus body.
#[must_use]
pub fn parameter(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = cstr(body)?;
    Some((name, cstr(rest)?.0))
}

/// The first value of a DataRow body, `Some(None)` if it is NULL; `None` if there is none.
#[must_use]
pub fn first_value(body: &[u8]) -> Option<Option<&[u8]>> {
    let (len, values) = body.get(2..)?.split_first_chunk::<4>()?;
    match usize::try_from(i32::from_be_bytes(*len)) {
        Ok(len) => values.get(..len).map(Some),
        Err(_) => Some(None),
    }
}

/// The values of a DataRow body, in whatever format they have; `None` if it is malformed.
#[must_use]
pub fn row_values(body: &[u8]) -> Option<Vec<Option<Bytes>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let Ok(len) = usize::try_from(i32::from_be_bytes(*len)) else {
            values.push(None);
            rest = tail;
            continue;
        };
        let (value, tail) = tail.split_at_checked(len)?;
        values.push(Some(Bytes::copy_from_slice(value)));
        rest = tail;
    }
    rest.is_empty().then_some(values)
}

/// One field of an ErrorResponse or NoticeResponse body, by its type byte. A prefix of the body
/// will do for the fields that PostgreSQL sends first (`S`, `V`, `C`).
#[must_use]
pub fn error_field(body: &[u8], field: u8) -> Option<&[u8]> {
    let mut rest = body;
    loop {
        let (&kind, tail) = rest.split_first()?;
        if kind == 0 {
            return None;
        }
        let (value, next) = cstr(tail)?;
        if kind == field {
            return Some(value);
        }
        rest = next;
    }
}

/// Appends an ErrorResponse with this body, but with the statement's name that the client knows where the
/// message says `shared`. That name ends in a number, and is not the beginning of another one's.
pub fn error_with_name(out: &mut BytesMut, body: &[u8], shared: &[u8], name: &[u8]) {
    message(out, b'E', |out| {
        for field in body.split_inclusive(|&byte| byte == 0) {
            let at = memchr::memmem::find(field, shared).filter(|_| field[0] == b'M');
            let end = at.map_or(0, |at| at + shared.len());
            match at {
                Some(at) if !field.get(end).is_some_and(u8::is_ascii_digit) => {
                    out.extend_from_slice(&field[..at]);
                    out.extend_from_slice(name);
                    out.extend_from_slice(&field[end..]);
                }
                _ => out.extend_from_slice(field),
            }
        }
    });
}

/// Whether an ErrorResponse body says that the server is closing: severity FATAL or PANIC.
/// Reads `V` (never localised, PostgreSQL 9.6 and later) before `S`.
#[must_use]
pub fn is_fatal(body: &[u8]) -> bool {
    let severity = error_field(body, b'V').or_else(|| error_field(body, b'S'));
    matches!(severity, Some(b"FATAL" | b"PANIC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_messages_have_postgres_bytes() {
        let mut out = BytesMut::new();
        command_complete(&mut out, "SET");
        bare(&mut out, b'1');
        ready_for_query(&mut out, TxStatus::Failed);
        assert_eq!(&out[..], b"C\0\0\0\x08SET\x001\0\0\0\x04Z\0\0\0\x05E");
    }

    #[test]
    fn rows_are_read() {
        let mut out = BytesMut::new();
        text_row(&mut out, [Some("a"), None, Some("")].into_iter());
        let values = row_values(&out[5..]).unwrap();
        assert_eq!(values, [Some(Bytes::from_static(b"a")), None, Some(Bytes::new())]);
        assert_eq!(row_values(&out[5..out.len() - 1]), None);
        assert_eq!(row_values(b"\0"), None);
        assert_eq!(first_value(&out[5..]), Some(Some(&b"a"[..])));
        assert_eq!((first_value(b"\0\x01\xff\xff\xff\xff"), first_value(&out[5..11])), (Some(None), None));
    }

    #[test]
    fn the_clients_name_stands_in_the_message_of_an_error() {
        let told = |body: &[u8]| {
            let mut out = BytesMut::new();
            error_with_name(&mut out, body, b"bursar_1", b"mine");
            out.to_vec()
        };
        let body = b"C26000\0Mno \"bursar_1\" here\0Rbursar_1\0\0";
        assert_eq!(told(body), b"E\0\0\0\x26C26000\0Mno \"mine\" here\0Rbursar_1\0\0");
        // A server that breaks off before the NUL is answered as well as any.
        assert_eq!(told(b"Mbursar_1"), b"E\0\0\0\x09Mmine");
        assert_eq!(told(b"Mno \"bursar_12\"\0\0"), b"E\0\0\0\x15Mno \"bursar_12\"\0\0");
    }

    #[test]
    fn error_fields_are_found_in_a_prefix_too() {
        let body = b"SFATAL\0VFATAL\0C57P01\0Mterminating";
        assert!(is_fatal(body));
        assert_eq!(error_field(body, b'C'), Some(&b"57P01"[..]));
        assert_eq!(error_field(body, b'M'), None);
        assert!(!is_fatal(b"SERROR\0VERROR\0C22012\0\0"));
    }
}
