//! Whole messages from an administrator, bounded, one at a time; and a reader of their fields.
//!
//! The relay's reader streams what it never holds; a console holds each message whole, so it has a
//! bound of its own, far below PostgreSQL's.

use crate::wire::error::{Report, Severity};
use crate::wire::frontend::Kind;
use crate::wire::walk::{HEADER, Header, cstr};
use bytes::{Buf, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest message taken, type byte included, in bytes.
pub(super) const LIMIT: usize = 64 * 1024;

/// Why no further message can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("connection failed")]
    Io(#[from] io::Error),
    #[error("invalid frontend message type")]
    Kind,
    #[error("invalid message length")]
    Length,
}

impl Broken {
    /// What to tell before closing: the stream has no next message boundary.
    pub(super) fn report(&self) -> Report {
        let mut report = Report::new(Severity::Fatal, "08P01", self.to_string());
        if matches!(self, Broken::Length) {
            report.hint = Some(format!("The console takes messages of at most {LIMIT} bytes."));
        }
        report
    }
}

/// Bytes received and not yet handled.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buf: BytesMut,
}

impl Frames {
    /// Whether the next call of [`Frames::next`] will be ready at once.
    pub(super) fn is_ready(&self) -> bool {
        match self.header() {
            Ok(Some((_, total))) => self.buf.len() >= total,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Kind and length of the next message, if its header is there.
    fn header(&self) -> Result<Option<(Kind, usize)>, Broken> {
        let Some(header) = Header::read(&self.buf) else { return Ok(None) };
        let kind = Kind::of(header.kind).ok_or(Broken::Kind)?;
        let total = header.total().filter(|total| *total <= LIMIT).ok_or(Broken::Length)?;
        Ok(Some((kind, total)))
    }

    /// The next message: its kind and body. `None` once the client has gone, between messages or
    /// within one. Cancel safe: what was read stays.
    ///
    /// # Errors
    /// No message can begin here, or the connection failed.
    pub(super) async fn next<S>(&mut self, stream: &mut S) -> Result<Option<(Kind, BytesMut)>, Broken>
    where
        S: AsyncRead + Unpin,
    {
        loop {
            let missing = match self.header()? {
                Some((kind, total)) if self.buf.len() >= total => {
                    let mut frame = self.buf.split_to(total);
                    frame.advance(HEADER);
                    return Ok(Some((kind, frame)));
                }
                Some((_, total)) => total - self.buf.len(),
                None => HEADER,
            };
            self.buf.reserve(missing);
            if stream.read_buf(&mut self.buf).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Ready when the client has gone; keeps what else it sends, up to [`LIMIT`]. Cancel safe.
    ///
    /// # Errors
    /// The connection failed.
    pub(super) async fn hangup<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> io::Result<()> {
        while self.buf.len() < LIMIT {
            if stream.read_buf(&mut self.buf).await? == 0 {
                return Ok(());
            }
        }
        std::future::pending().await
    }
}

/// Reads the fields of a body; every method is `None` where the body is too short.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(super) fn i16(&mut self) -> Option<i16> {
        Some(i16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(super) fn i32(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(super) fn cstr(&mut self) -> Option<&'a [u8]> {
        let (text, rest) = cstr(self.0)?;
        self.0 = rest;
        Some(text)
    }

    /// A count and as many items. The items must be there: nothing is allocated by the count alone.
    pub(super) fn list<T>(&mut self, item: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.i16()? as u16;
        (0..count).map(|_| item(self)).collect()
    }

    /// Whether everything was read.
    pub(super) fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_whole_however_they_are_cut() {
        let bytes = b"Q\0\0\0\x06x\0S\0\0\0\x04Q";
        for cut in 0..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            let mut stream = AsyncReadExt::chain(first, second);
            let mut frames = Frames::default();
            let (kind, body) = frames.next(&mut stream).await.unwrap().unwrap();
            assert_eq!((kind, &body[..]), (Kind::Query, &b"x\0"[..]), "cut at {cut}");
            let (kind, body) = frames.next(&mut stream).await.unwrap().unwrap();
            assert_eq!((kind, body.len()), (Kind::Sync, 0));
            assert!(frames.next(&mut stream).await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn no_message_begins_with_a_bad_length_or_type() {
        for bad in [&b"Q\0\0\0\x03"[..], b"Q\xff\xff\xff\xff", b"Q\0\x01\0\x01", b"B\x3f\xff\xff\xff"] {
            let mut stream = bad;
            assert!(matches!(Frames::default().next(&mut stream).await, Err(Broken::Length)), "{bad:?}");
        }
        let mut stream = &b"p\0\0\0\x04"[..];
        assert!(matches!(Frames::default().next(&mut stream).await, Err(Broken::Kind)));
        let mut frames = Frames::default();
        let mut stream = &b"Q\0\x00\xff\xff"[..];
        assert!(frames.next(&mut stream).await.unwrap().is_none());
        assert!(frames.buf.capacity() <= 2 * LIMIT);
    }

    #[test]
    fn a_count_without_its_items_is_no_list() {
        let mut fields = Fields(b"\xff\xff\0\x01");
        assert_eq!(fields.list(Fields::i16), None);
        let mut fields = Fields(b"\0\x02\0\x01\0\x02");
        assert_eq!(fields.list(Fields::i16), Some(vec![1, 2]));
        assert_eq!(fields.end(), Some(()));
    }
}
