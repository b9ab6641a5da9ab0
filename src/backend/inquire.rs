//! A question with one parameter, by the extended protocol, on a connection that nobody else uses: what a client
//! has sent goes beside the statement and never into it.

use super::ask::{AskError, AtError, Row, answer};
use super::dial::Backend;
use crate::wire::backend::message;
use crate::wire::compose::parse;
use crate::wire::walk::cstr;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

/// Most rows asked for: one is right, two are too many.
const MAX_ROWS: i32 = 2;

/// The names of an answer's columns, and its rows.
pub type Answer = (Vec<Bytes>, Vec<Row>);

/// Asks; `None` if the server says that the parameter is none (SQLSTATE class 22: a character that its encoding
/// does not have). Bounded in time by the caller. Not cancel safe, and after an error or `None` the connection
/// must be closed.
///
/// # Errors
/// See [`AskError`].
pub async fn inquire(backend: &mut Backend, text: &str, parameter: &str) -> Result<Option<Answer>, AskError> {
    backend.stream.write_all(&question(text, parameter)).await?;
    backend.stream.flush().await?;
    let answer = answer(backend, AtError::Stop).await?;
    if let Some([b'2', b'2', ..]) = answer.refused {
        return Ok(None);
    }
    let columns = match &*answer.description {
        [] => Vec::new(),
        description => column_names(description).ok_or(AskError::Senseless)?,
    };
    Ok(Some((columns, answer.rows()?)))
}

/// Parse, Bind, Describe, Execute, Sync, all unnamed and in text.
fn question(text: &str, parameter: &str) -> BytesMut {
    let mut out = BytesMut::new();
    parse(&mut out, b"", text.as_bytes(), &[]);
    message(&mut out, b'B', |out| {
        // No names; formats are text; one value; results in text.
        out.extend_from_slice(b"\0\0\0\0\0\x01");
        out.put_u32(parameter.len() as u32);
        out.extend_from_slice(parameter.as_bytes());
        out.extend_from_slice(b"\0\0");
    });
    message(&mut out, b'D', |out| out.extend_from_slice(b"P\0"));
    message(&mut out, b'E', |out| {
        out.extend_from_slice(b"\0");
        out.put_i32(MAX_ROWS);
    });
    message(&mut out, b'S', |_| {});
    out
}

/// Names from a RowDescription; each is followed by 18 bytes about its type.
fn column_names(body: &[u8]) -> Option<Vec<Bytes>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut names = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (name, tail) = cstr(rest)?;
        names.push(Bytes::copy_from_slice(name));
        rest = tail.get(18..)?;
    }
    rest.is_empty().then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::backend::text_columns;
    use crate::wire::walk::HEADER;

    #[test]
    fn names_of_columns_are_read_and_half_a_description_is_none() {
        let mut out = BytesMut::new();
        text_columns(&mut out, ["passwd", "valid_until"].into_iter());
        let body = &out[HEADER..];
        assert_eq!(column_names(body), Some(vec![Bytes::from("passwd"), Bytes::from("valid_until")]));
        for end in 0..body.len() {
            assert_eq!(column_names(&body[..end]), None);
        }
    }
}
