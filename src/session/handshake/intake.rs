//! Reads of a login: exact packets from a stream that may send anything, at any pace.

use super::Refused;
use crate::session::reply::{self, Fault};
use crate::wire::startup::{self, First, StartupError};
use crate::wire::walk::{HEADER, Header};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes read at a time, as long as not more are there.
const STEP: usize = 512;

/// What was read and not used yet. Holds one packet and whatever came with it.
#[derive(Default)]
pub(super) struct Intake {
    buf: BytesMut,
    ssl: bool,
    gss: bool,
}

impl Intake {
    /// One of the first packets. Not cancel safe.
    pub(super) async fn first<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<First, Refused> {
        self.fill(stream, 4).await?;
        let mut len = [0; 4];
        len.copy_from_slice(&self.buf[..4]);
        let len = startup::length(len).map_err(|error| refused(&error))?;
        self.fill(stream, len).await?;
        let packet = self.buf.split_to(len);
        let first = startup::parse(&packet).map_err(|error| refused(&error))?;
        let again = match first {
            First::Ssl => std::mem::replace(&mut self.ssl, true),
            First::GssEnc => std::mem::replace(&mut self.gss, true),
            First::Cancel { .. } | First::Startup(_) => false,
        };
        if again { Err(Fault::BadStartup.into()) } else { Ok(first) }
    }

    /// The body of one `p` message whose length field is at most `limit`. Not cancel safe.
    pub(super) async fn password<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        limit: usize,
    ) -> Result<Bytes, Refused> {
        self.fill(stream, HEADER).await?;
        let head = Header::read(&self.buf).ok_or(Refused::Silent)?;
        if head.kind == b'X' {
            return Err(Refused::Silent);
        }
        let total = head.total().filter(|total| head.kind == b'p' && *total - 1 <= limit);
        let total = total.ok_or(Fault::InvalidMessage)?;
        self.fill(stream, total).await?;
        Ok(self.buf.split_to(total).freeze().slice(HEADER..))
    }

    /// Whether nothing has been read yet.
    pub(super) fn is_new(&self) -> bool {
        self.buf.is_empty() && !self.ssl && !self.gss
    }

    /// The client is encrypted, without having asked: it may not ask any more.
    pub(super) fn has_tls(&mut self) {
        self.ssl = true;
    }

    /// Whether the client has sent more than was asked for.
    pub(super) fn has_more(&self) -> bool {
        !self.buf.is_empty()
    }

    /// What the client sent behind its last message, without waiting for the answer.
    pub(super) fn leftover(self) -> BytesMut {
        self.buf
    }

    /// Room is made for as much again as is there, not for what was announced.
    async fn fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S, len: usize) -> Result<(), Refused> {
        while self.buf.len() < len {
            let missing = len - self.buf.len();
            self.buf.reserve(missing.min(self.buf.len()).max(STEP));
            if stream.read_buf(&mut self.buf).await? == 0 {
                return Err(Refused::Silent);
            }
        }
        Ok(())
    }
}

fn refused(error: &StartupError) -> Refused {
    match error {
        StartupError::Length | StartupError::Request => Refused::Silent,
        told => Refused::Told(reply::startup(told)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn packets_may_come_in_any_pieces_and_more_may_follow() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let ssl = [0, 0, 0, 8, 4, 210, 22, 47];
        let feed = tokio::spawn(async move {
            for byte in ssl.iter().chain(b"p\0\0\0\x07abcQ") {
                far.write_all(&[*byte]).await.unwrap();
            }
            far
        });
        let mut intake = Intake::default();
        assert!(matches!(intake.first(&mut near).await, Ok(First::Ssl)));
        let password = intake.password(&mut near, 100).await;
        assert!(matches!(password, Ok(body) if &body[..] == b"abc"));
        drop(feed.await.unwrap());
        assert!(matches!(intake.first(&mut near).await, Err(Refused::Silent)));
    }

    #[tokio::test]
    async fn a_length_beyond_the_limit_is_refused_before_it_is_read() {
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(b"p\x7f\xff\xff\xff").await.unwrap();
        let mut intake = Intake::default();
        assert!(matches!(intake.password(&mut near, 10_000).await, Err(Refused::Told(_))));
        assert!(intake.buf.capacity() < 4096);
    }

    #[tokio::test]
    async fn nothing_is_allocated_by_the_length_that_a_client_announces() {
        for announced in [&b"\0\0\x27\x10"[..], b"p\0\0\xff\xff"] {
            let (mut near, mut far) = tokio::io::duplex(64);
            let mut intake = Intake::default();
            far.write_all(announced).await.unwrap();
            let read = async {
                match announced.len() {
                    4 => drop(intake.first(&mut near).await),
                    _ => drop(intake.password(&mut near, 65_535).await),
                }
            };
            tokio::select! {
                biased;
                () = read => panic!("not all of it is there"),
                () = tokio::task::yield_now() => {}
            }
            assert!(intake.buf.capacity() <= 2 * STEP, "{}", intake.buf.capacity());
        }
    }
}
