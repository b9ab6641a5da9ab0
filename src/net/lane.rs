//! One direction of a session: bytes read from one socket, on their way to another.
//!
//! A lane holds what was read and a list of *pieces*: spans of the read buffer that may pass
//! unchanged, and bytes that Bursar put between them. A flush sends all pieces with one vectored
//! write. Nothing is copied that passes, and nothing is read while pieces wait to be written, which
//! is all the backpressure there is and all it needs.
//!
//! ```text
//!   buf:  [ sent | span | skipped | span | not walked yet | free ]
//!                  └──────────────┴──▶ pieces ──▶ one writev
//! ```

use super::buffers::{Buf, Buffers, Size};
use super::readable::Readable;
use bytes::BytesMut;
use smallvec::SmallVec;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Slices handed to one write; more pieces than this take another write.
const SLICES: usize = 16;

/// A read at least this long is taken as part of a long result: PostgreSQL sends 8 KiB at a time.
const LONG_READ: usize = 8000;

/// Room for what Bursar puts between, in bytes: mostly all that is needed, so that nothing moves while it is
/// written. An idle lane keeps no more than this.
const MADE_ROOM: usize = 256;

/// A run of bytes to send. Every idle session has room for a few of these: they are kept small.
#[derive(Debug, Clone)]
enum Piece {
    /// Of the read buffer.
    Span(Range<u32>),
    /// Of the bytes that Bursar made.
    Made(Range<u32>),
}

/// A place in a buffer, none of which comes near 4 GiB.
fn place(at: usize) -> u32 {
    at as u32
}

fn places(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// See the module's page.
#[derive(Debug)]
pub struct Lane {
    buffers: Buffers,
    buf: Option<Buf>,
    /// Bytes of `buf` before this have been walked: they are pieces, sent, or skipped.
    walked: usize,
    pieces: SmallVec<[Piece; 2]>,
    made: BytesMut,
    staged: usize,
    size: Size,
    closed: bool,
    /// The socket last read from had nothing, and wakes this task when it has.
    registered: bool,
    /// The last read was a long one, or took as much as there was room for.
    streams: bool,
    /// Some has been written since the stream was last flushed: an encrypted one may still hold it.
    unflushed: bool,
}

impl Lane {
    /// An empty lane that borrows from `buffers` when there is something to read.
    #[must_use]
    pub fn new(buffers: Buffers) -> Lane {
        Lane {
            buffers,
            buf: None,
            walked: 0,
            pieces: SmallVec::new(),
            made: BytesMut::new(),
            staged: 0,
            size: Size::Small,
            closed: false,
            registered: false,
            streams: false,
            unflushed: false,
        }
    }

    /// What is read next comes from another socket, or somebody else has read from this one.
    pub fn reads_anew(&mut self) {
        self.registered = false;
    }

    /// A lane that begins with bytes that were read elsewhere: what came in one packet with the
    /// last message of a login.
    ///
    /// `bytes` may be at most [`Lane::HELD`] long.
    #[must_use]
    pub fn with(buffers: Buffers, bytes: &[u8]) -> Lane {
        let mut lane = Lane::new(buffers);
        if !bytes.is_empty() {
            let mut buf = lane.buffers.lend(Size::Middle);
            let len = bytes.len().min(Lane::HELD);
            buf.data[..len].copy_from_slice(&bytes[..len]);
            buf.end = len;
            lane.buf = Some(buf);
        }
        lane
    }

    /// Whether the sender has closed its side; what was read before is still there.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Bytes waiting to be written; at least one while an encrypted stream holds some that it has taken.
    #[must_use]
    pub fn staged(&self) -> usize {
        self.staged.max(usize::from(self.unflushed))
    }

    /// Bytes read and not walked yet.
    #[must_use]
    pub fn unwalked(&self) -> &[u8] {
        self.buf.as_ref().map_or(&[], |buf| &buf.data[self.walked..buf.end])
    }

    /// The largest message that can be held whole.
    pub const HELD: usize = Size::Middle.bytes();

    /// Passes the next `n` unwalked bytes.
    #[inline]
    pub fn pass(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        let span = place(self.walked)..place(self.walked + n);
        match self.pieces.last_mut() {
            Some(Piece::Span(last)) if last.end == span.start => last.end = span.end,
            _ => self.pieces.push(Piece::Span(span)),
        }
        self.staged += n;
        self.walked += n;
    }

    /// Leaves the next `n` unwalked bytes out.
    pub fn skip(&mut self, n: usize) {
        self.walked += n;
        self.settle();
    }

    /// Sends bytes of Bursar's own after everything staged so far.
    pub fn put(&mut self, bytes: &[u8]) {
        self.make(|made| made.extend_from_slice(bytes));
    }

    /// Lets `write` append bytes of Bursar's own after everything staged so far.
    pub fn make<R>(&mut self, write: impl FnOnce(&mut BytesMut) -> R) -> R {
        if self.made.capacity() == 0 {
            self.made.reserve(MADE_ROOM);
        }
        let start = self.made.len();
        let result = write(&mut self.made);
        let end = self.made.len();
        if end > start {
            match self.pieces.last_mut() {
                Some(Piece::Made(last)) if last.end == place(start) => last.end = place(end),
                _ => self.pieces.push(Piece::Made(place(start)..place(end))),
            }
            self.staged += end - start;
        }
        result
    }

    /// Sends what `write` makes of the next `n` unwalked bytes in their place, after everything staged
    /// so far.
    pub fn rewrite(&mut self, n: usize, write: impl FnOnce(&[u8], &mut BytesMut)) {
        let Some(buf) = self.buf.take() else { return };
        let old = self.walked..self.walked + n;
        self.make(|made| write(&buf.data[old], made));
        self.buf = Some(buf);
        self.skip(n);
    }

    /// Forgets everything staged: nobody is there to read it.
    pub fn discard(&mut self) {
        self.pieces.clear();
        self.made.clear();
        self.staged = 0;
        self.unflushed = false;
        self.settle();
    }

    /// Forgets everything read and staged.
    pub fn clear(&mut self) {
        self.discard();
        if let Some(buf) = self.buf.take() {
            self.buffers.take_back(buf);
        }
        self.walked = 0;
        self.closed = false;
        self.registered = false;
    }

    /// Reads once into the free part of the buffer. To be called only with nothing staged.
    /// `Ready(Ok(0))` = the sender has closed its side, or the buffer is full of one message.
    ///
    /// Always by the same task and from the same socket, or [`Lane::reads_anew`] is told: while a
    /// socket is known to wake the task it is not asked to again.
    ///
    /// Cancel safe: a byte is either in the lane or still in the socket.
    pub fn poll_fill<R: Readable + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Ok(0));
        }
        // Before a buffer is borrowed for nothing. In a long stream, of which another thread may tell
        // the reactor as fast as this one reads, the runtime says whether it is another task's turn.
        let goes_on = std::mem::take(&mut self.streams);
        if goes_on || !from.is_readable() {
            if self.registered {
                return Poll::Pending;
            }
            // A task that has used up its turn is told to wait without being registered.
            let fresh = tokio::task::coop::has_budget_remaining();
            if from.poll_readable(cx).is_pending() {
                self.registered = fresh;
                return Poll::Pending;
            }
        }
        self.registered = false;
        self.make_room();
        let buf = match &mut self.buf {
            Some(buf) => buf,
            none => none.insert(self.buffers.lend(self.size)),
        };
        let room = buf.data.len() - buf.end;
        let n = match from.poll_receive(cx, &mut buf.data[buf.end..]) {
            Poll::Ready(Ok(n)) => n,
            unread => {
                self.settle();
                return unread;
            }
        };
        buf.end += n;
        let size = buf.size();
        self.streams = n == room || n >= LONG_READ;
        self.closed = n == 0 && room > 0;
        self.adapt(n, room, size);
        if n == 0 {
            self.settle();
        }
        Poll::Ready(Ok(n))
    }

    /// The next buffer's size: long reads want a large one, short ones a small one.
    ///
    /// A large one that comes back full is part of a stream that is faster than we are. Larger reads would
    /// save nothing more there, and everybody else waits while one is made: it goes on in middle ones, until
    /// it is the slower side again.
    fn adapt(&mut self, n: usize, room: usize, from: Size) {
        let full = n == room;
        self.size = match from {
            Size::Large if full => Size::Middle,
            Size::Middle if full => Size::Middle,
            _ if n >= LONG_READ => Size::Large,
            _ if full => self.size.max(Size::Middle),
            _ if n < LONG_READ / 4 => Size::Small,
            _ => self.size,
        };
    }

    /// Makes room behind an incomplete message: moves it to the front, or to a larger buffer.
    fn make_room(&mut self) {
        let Some(buf) = &mut self.buf else { return };
        if buf.end < buf.data.len() && !(buf.size() < self.size && self.walked == buf.end) {
            return;
        }
        let rest = self.walked..buf.end;
        if rest.start == 0 && buf.size() < Size::Middle {
            let mut larger = self.buffers.lend(self.size.max(Size::Middle));
            larger.data[..rest.len()].copy_from_slice(&buf.data[rest.clone()]);
            larger.end = rest.len();
            let full = std::mem::replace(buf, larger);
            self.buffers.take_back(full);
        } else {
            buf.data.copy_within(rest.clone(), 0);
            buf.end = rest.len();
        }
        self.walked = 0;
    }

    /// Keeps what is not walked in the smallest buffer that has room: it will be there for a while.
    pub fn shrink(&mut self) {
        let rest = self.unwalked().len();
        if rest == 0 || rest > Size::Tiny.bytes() || self.staged > 0 {
            return;
        }
        if let Some(buf) = self.buf.take_if(|buf| buf.size() > Size::Tiny) {
            let mut tiny = self.buffers.lend(Size::Tiny);
            tiny.data[..rest].copy_from_slice(&buf.data[self.walked..buf.end]);
            tiny.end = rest;
            self.buffers.take_back(buf);
            self.buf = Some(tiny);
            self.walked = 0;
        }
    }

    /// Gives the buffer back once nothing in it is needed.
    fn settle(&mut self) {
        if self.staged == 0
            && let Some(buf) = self.buf.take_if(|buf| self.walked == buf.end)
        {
            self.buffers.take_back(buf);
            self.walked = 0;
        }
    }

    /// Writes what is staged, as much as the socket takes.
    ///
    /// Cancel safe: a byte is either still staged or in the socket.
    #[inline]
    pub fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        let nothing = self.staged == 0 && !self.unflushed;
        if nothing { Poll::Ready(Ok(())) } else { self.poll_flush_staged(cx, to) }
    }

    fn poll_flush_staged<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.staged > 0 {
            let n = ready!(self.poll_write(cx, to))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(n);
            self.unflushed = true;
        }
        self.made.clear();
        if self.made.capacity() > MADE_ROOM {
            self.made = BytesMut::new();
        }
        self.settle();
        ready!(Pin::new(to).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn slice(&self, piece: &Piece) -> &[u8] {
        match piece {
            Piece::Span(range) => self.buf.as_ref().map_or(&[], |buf| &buf.data[places(range)]),
            Piece::Made(range) => &self.made[places(range)],
        }
    }

    fn poll_write<W: AsyncWrite + Unpin>(&self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<usize>> {
        if let [piece] = &self.pieces[..] {
            return Pin::new(to).poll_write(cx, self.slice(piece));
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = self.pieces.len().min(SLICES);
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(self.slice(piece));
        }
        Pin::new(to).poll_write_vectored(cx, &slices[..count])
    }

    fn advance(&mut self, mut n: usize) {
        self.staged -= n;
        let mut gone = 0;
        for piece in &mut self.pieces {
            let (Piece::Span(range) | Piece::Made(range)) = piece;
            let taken = n.min(range.len());
            range.start += place(taken);
            n -= taken;
            if range.start < range.end {
                break;
            }
            gone += 1;
        }
        self.pieces.drain(..gone);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(buf) = self.buf.take() {
            self.buffers.take_back(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn fill(lane: &mut Lane, from: &mut (impl Readable + Unpin)) -> usize {
        std::future::poll_fn(|cx| lane.poll_fill(cx, from)).await.unwrap()
    }

    async fn flush(lane: &mut Lane, to: &mut (impl AsyncWrite + Unpin)) {
        std::future::poll_fn(|cx| lane.poll_flush(cx, to)).await.unwrap();
    }

    #[tokio::test]
    async fn a_drained_lane_owns_no_buffer() {
        let (mut near, mut far) = tokio::io::duplex(1024);
        let mut lane = Lane::new(Buffers::default());
        far.write_all(b"hello").await.unwrap();
        assert_eq!(fill(&mut lane, &mut near).await, 5);
        assert_eq!(lane.unwalked(), b"hello");
        lane.pass(2);
        lane.skip(2);
        lane.put(b"-");
        lane.pass(1);
        flush(&mut lane, &mut near).await;
        let mut got = [0; 4];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"he-o");
        assert!(lane.buf.is_none());
    }

    #[tokio::test]
    async fn what_waits_is_kept_in_a_tiny_buffer_and_goes_on_from_there() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let mut lane = Lane::new(Buffers::default());
        let sent: Vec<u8> = (0..3000).map(|i| (i % 251) as u8).collect();
        far.write_all(&sent[..700]).await.unwrap();
        assert_eq!(fill(&mut lane, &mut near).await, 700);
        lane.skip(100);
        lane.shrink();
        assert_eq!(lane.buf.as_ref().unwrap().size(), Size::Tiny);
        assert_eq!(lane.unwalked(), &sent[100..700]);
        far.write_all(&sent[700..]).await.unwrap();
        while lane.unwalked().len() < 2900 {
            assert!(fill(&mut lane, &mut near).await > 0);
        }
        assert_eq!(lane.unwalked(), &sent[100..]);
        lane.shrink();
        assert_eq!(lane.unwalked(), &sent[100..], "too much for a tiny one");
    }

    #[tokio::test]
    async fn a_message_larger_than_the_buffer_is_held_up_to_the_middle_size() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let mut lane = Lane::new(Buffers::default());
        far.write_all(&vec![7; Lane::HELD + 1]).await.unwrap();
        while lane.unwalked().len() <= Lane::HELD {
            assert!(fill(&mut lane, &mut near).await > 0);
        }
        assert!(!lane.is_closed());
    }

    #[tokio::test]
    async fn a_long_result_is_read_at_once_and_a_stream_that_never_ends_in_slices() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let mut lane = Lane::new(Buffers::default());
        far.write_all(&vec![7; 900_000]).await.unwrap();
        let mut reads = Vec::new();
        for _ in 0..5 {
            reads.push(fill(&mut lane, &mut near).await);
            lane.pass(lane.unwalked().len());
            flush(&mut lane, &mut tokio::io::sink()).await;
        }
        assert_eq!(reads, [16 << 10, 256 << 10, 64 << 10, 64 << 10, 64 << 10]);
        let rest = 900_000 - reads.iter().sum::<usize>();
        let mut left = rest;
        while left > 0 {
            left -= fill(&mut lane, &mut near).await;
            lane.pass(lane.unwalked().len());
            flush(&mut lane, &mut tokio::io::sink()).await;
        }
        // The last of them was not full: the stream is the slower side again.
        far.write_all(&vec![7; 200_000]).await.unwrap();
        assert_eq!(fill(&mut lane, &mut near).await, 200_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]
        /// Whatever is passed, skipped and put arrives in order, through any pipe width.
        #[test]
        fn bytes_keep_their_order(
            steps in prop::collection::vec((0..3u8, 1..9000usize), 1..40),
            width in 1..4096usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut source, mut feeder) = tokio::io::duplex(1 << 20);
                let (mut sink, mut reader) = tokio::io::duplex(width);
                let mut lane = Lane::new(Buffers::default());
                let total: usize = steps.iter().map(|step| step.1).sum();
                let bytes: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
                let mut expected = Vec::new();
                let got = tokio::spawn(async move {
                    let mut got = Vec::new();
                    reader.read_to_end(&mut got).await.unwrap();
                    got
                });
                feeder.write_all(&bytes).await.unwrap();
                drop(feeder);
                let mut at = 0;
                for (what, mut n) in steps {
                    if what == 2 {
                        lane.put(&bytes[at..at + n]);
                        expected.extend_from_slice(&bytes[at..at + n]);
                    }
                    while n > 0 {
                        let there = lane.unwalked().len().min(n);
                        if there == 0 {
                            flush(&mut lane, &mut sink).await;
                            fill(&mut lane, &mut source).await;
                            continue;
                        }
                        if what == 0 {
                            lane.pass(there);
                            expected.extend_from_slice(&bytes[at..at + there]);
                        } else {
                            lane.skip(there);
                        }
                        at += there;
                        n -= there;
                    }
                }
                flush(&mut lane, &mut sink).await;
                drop(sink);
                assert_eq!(got.await.unwrap(), expected);
            });
        }
    }
}
