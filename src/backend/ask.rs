//! One question of Bursar's own on a connection that nobody else uses: a simple query, and the rows
//! that come back. For a few short rows; anything unexpected ends it.

use super::dial::Backend;
use crate::wire::backend::{error_field, row_values};
use crate::wire::compose::query;
use crate::wire::walk::{HEADER, Header};
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Most bytes of an answer.
const MAX_ANSWER: usize = 64 << 10;

/// Why there is no answer; the connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It broke, or closed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server raised an error.
    #[error("the server refused the question")]
    Refused {
        /// SQLSTATE; zeros if there was none.
        code: [u8; 5],
    },
    /// Too long, or not the protocol's.
    #[error("an answer that makes no sense")]
    Senseless,
}

/// A row's values, as text.
pub type Row = Vec<Option<Bytes>>;

/// An answer, read to its end.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The body of its RowDescription; empty if there was none.
    pub(super) description: Bytes,
    /// Its rows.
    pub(super) rows: Vec<Row>,
    /// The SQLSTATE of an error in it; zeros if that had none.
    pub(super) refused: Option<[u8; 5]>,
}

/// What to do at an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtError {
    /// It is the end of the answer: nobody needs the connection any more.
    Stop,
    /// Read on, so that the connection is ready for the next question.
    ReadOn,
}

/// Asks, and reads to the end of the answer. Bounded in time by the caller. Not cancel safe: dropped
/// half way, the connection must be closed.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(backend: &mut Backend, text: &str) -> Result<Vec<Row>, AskError> {
    let mut out = BytesMut::new();
    query(&mut out, text.as_bytes());
    backend.stream.write_all(&out).await?;
    answer(backend, AtError::Stop).await?.rows()
}

/// As [`ask`], of a server that may refuse this question and answer the next: `None` = it has. The connection is
/// ready then as after an answer.
///
/// # Errors
/// See [`AskError`]; it is never `Refused`.
pub async fn try_ask(backend: &mut Backend, text: &str) -> Result<Option<Vec<Row>>, AskError> {
    let mut out = BytesMut::new();
    query(&mut out, text.as_bytes());
    backend.stream.write_all(&out).await?;
    Ok(answer(backend, AtError::ReadOn).await?.rows().ok())
}

impl Answer {
    /// The rows, unless there was an error.
    pub(super) fn rows(self) -> Result<Vec<Row>, AskError> {
        match self.refused {
            Some(code) => Err(AskError::Refused { code }),
            None => Ok(self.rows),
        }
    }
}

/// Reads an answer to its ReadyForQuery. Not cancel safe.
pub(super) async fn answer(backend: &mut Backend, at_error: AtError) -> Result<Answer, AskError> {
    let (mut read, mut buf, mut left) = (Answer::default(), BytesMut::new(), MAX_ANSWER);
    loop {
        while let Some(head) = Header::read(&buf) {
            let total = head.total().filter(|&total| total <= MAX_ANSWER).ok_or(AskError::Senseless)?;
            if buf.len() < total {
                break;
            }
            let body = &buf[HEADER..total];
            match head.kind {
                b'T' => read.description = Bytes::copy_from_slice(body),
                b'D' => read.rows.push(row_values(body).ok_or(AskError::Senseless)?),
                b'E' => {
                    let code = error_field(body, b'C').and_then(|code| code.try_into().ok());
                    read.refused = Some(code.unwrap_or_default());
                    if at_error == AtError::Stop {
                        return Ok(read);
                    }
                }
                b'Z' => return Ok(read),
                _ => {}
            }
            buf.advance(total);
        }
        let n = backend.stream.read_buf(&mut buf).await?;
        left = left.checked_sub(n).ok_or(AskError::Senseless)?;
        if n == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{dial, fake};
    use super::*;
    use crate::wire::backend::{TxStatus, command_complete, ready_for_query, text_columns, text_row};
    use std::time::Duration;

    #[tokio::test]
    async fn the_rows_of_an_answer_are_read_to_its_end_and_no_further_than_they_may() {
        let mut fake = fake::Server::start().await;
        let mut backend = dial(&fake.target(), Duration::from_secs(5)).await.unwrap();
        let mut server = fake.end().await;
        let mut answer = BytesMut::new();
        text_columns(&mut answer, ["root", "pid"].into_iter());
        text_row(&mut answer, [Some("1"), None].into_iter());
        command_complete(&mut answer, "SELECT 1");
        ready_for_query(&mut answer, TxStatus::Idle);
        server.write_all(&answer).await.unwrap();
        let rows = ask(&mut backend, "select 1").await.unwrap();
        assert_eq!(rows, [vec![Some(Bytes::from("1")), None]]);
        let mut asked = [0; 14];
        server.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"Q\0\0\0\x0dselect 1\0");

        server.write_all(&[b'N', 0, 1, 0, 0]).await.unwrap();
        server.write_all(&[0; MAX_ANSWER]).await.unwrap();
        assert!(matches!(ask(&mut backend, "select 1").await, Err(AskError::Senseless)));
    }

    #[tokio::test]
    async fn an_error_and_an_end_are_told() {
        let mut fake = fake::Server::start().await;
        let mut backend = dial(&fake.target(), Duration::from_secs(5)).await.unwrap();
        let mut server = fake.end().await;
        server.write_all(b"E\0\0\0\x05\0").await.unwrap();
        let refused = ask(&mut backend, "select").await;
        assert!(matches!(refused, Err(AskError::Refused { code: [0, 0, 0, 0, 0] })));
        server.write_all(b"E\0\0\0\x0cC42P01\0\0").await.unwrap();
        let refused = ask(&mut backend, "select").await;
        assert!(matches!(refused, Err(AskError::Refused { code }) if &code == b"42P01"));
        // Where another question follows, the answer is read to its end.
        server.write_all(b"E\0\0\0\x0cC42501\0\0Z\0\0\0\x05I").await.unwrap();
        assert!(matches!(try_ask(&mut backend, "select").await, Ok(None)));
        server.write_all(b"Z\0\0\0\x05I").await.unwrap();
        assert!(matches!(try_ask(&mut backend, "select").await, Ok(Some(rows)) if rows.is_empty()));
        server.write_all(b"E\0\0\0\x0cC57P01\0\0").await.unwrap();
        drop(server);
        assert!(matches!(try_ask(&mut backend, "select").await, Err(AskError::Io(_))));
        assert!(matches!(ask(&mut backend, "select").await, Err(AskError::Io(_))));
    }
}
