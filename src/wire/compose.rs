//! The messages that Bursar itself says to a server, ahead of a client's or between two of them.
//!
//! Parameters and results are text, portals unnamed: Bursar says nothing that needs more. What a client says
//! is passed on as it is and not composed anew; what a *server* would say is in [`super::backend`].

use super::backend::message;
use bytes::{BufMut, BytesMut};

/// Sync.
pub const SYNC: &[u8] = b"S\0\0\0\x04";
/// Execute of the unnamed portal, without a limit of rows.
pub const EXECUTE: &[u8] = b"E\0\0\0\x09\0\0\0\0\0";
/// Close of the unnamed portal.
pub const CLOSE_PORTAL: &[u8] = b"C\0\0\0\x06P\0";

/// Appends a Query.
pub fn query(out: &mut BytesMut, text: &[u8]) {
    message(out, b'Q', |out| string(out, text));
}

/// Appends a Parse; an empty name is the unnamed statement's, `types` are the parameters' as far as they are
/// not left to the server.
pub fn parse(out: &mut BytesMut, name: &[u8], text: &[u8], types: &[u32]) {
    message(out, b'P', |out| {
        string(out, name);
        string(out, text);
        out.put_u16(types.len() as u16);
        types.iter().for_each(|oid| out.put_u32(*oid));
    });
}

/// Appends a Bind of that statement to the unnamed portal, with these parameters.
pub fn bind(out: &mut BytesMut, name: &[u8], values: &[&[u8]]) {
    message(out, b'B', |out| {
        string(out, b"");
        string(out, name);
        // No format at all means text.
        out.put_u16(0);
        out.put_u16(values.len() as u16);
        for value in values {
            out.put_u32(value.len() as u32);
            out.put_slice(value);
        }
        out.put_u16(0);
    });
}

fn string(out: &mut BytesMut, text: &[u8]) {
    out.put_slice(text);
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frontend::{Kind, Parse, bind_names, execute_portal, target};
    use crate::wire::walk::{HEADER, Header};

    /// The kind and the body of each message.
    fn read(bytes: &[u8]) -> Vec<(Kind, &[u8])> {
        let (mut at, mut read) = (0, Vec::new());
        while let Some(head) = Header::read(&bytes[at..]) {
            let end = at + head.total().unwrap();
            read.push((Kind::of(head.kind).unwrap(), &bytes[at + HEADER..end]));
            at = end;
        }
        assert_eq!(at, bytes.len());
        read
    }

    #[test]
    fn what_is_composed_reads_back() {
        let mut out = BytesMut::new();
        parse(&mut out, b"s", b"select $1", &[25]);
        bind(&mut out, b"s", &[b"one", b""]);
        out.extend_from_slice(EXECUTE);
        out.extend_from_slice(CLOSE_PORTAL);
        out.extend_from_slice(SYNC);
        query(&mut out, b"select 1");
        let read = read(&out);
        let kinds: Vec<Kind> = read.iter().map(|(kind, _)| *kind).collect();
        let expected = [Kind::Parse, Kind::Bind, Kind::Execute, Kind::Close, Kind::Sync, Kind::Query];
        assert_eq!(kinds, expected);
        let parsed = Parse::read(read[0].1).unwrap();
        assert_eq!((parsed.name, parsed.text), (&b"s"[..], &b"select $1"[..]));
        assert_eq!(parsed.types, b"\0\x01\0\0\0\x19");
        assert_eq!(bind_names(read[1].1), Some((&b""[..], &b"s"[..])));
        assert_eq!(&read[1].1[3..], b"\0\0\0\x02\0\0\0\x03one\0\0\0\0\0\0");
        assert_eq!((execute_portal(read[2].1), read[2].1), (Some(&b""[..]), &b"\0\0\0\0\0"[..]));
        assert_eq!(target(read[3].1), Some((b'P', &b""[..])));
        assert_eq!(read[4].1, b"");
        assert_eq!(read[5].1, b"select 1\0");
    }
}
