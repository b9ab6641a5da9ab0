//! What a lane reads from: sockets that may know, without a system call, that there is nothing.

use super::stream::Stream;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// A socket that may know, without a system call, that there is nothing to read or no room to write.
///
/// [`AsyncRead`] asks the runtime twice for a read (is it worth a buffer, and again in the read) and
/// keeps count of what a task may do in one go; both cost more than the question itself. Here a
/// socket is asked what it knows, and the task registered for a wake-up only once there is nothing.
pub trait Readable: AsyncRead {
    /// Whether a read is worth trying.
    fn is_readable(&self) -> bool;

    /// As [`Readable::is_readable`]; `Pending` registers the task for a wake-up.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Reads once; after [`Readable::is_readable`] said yes. `Pending` only if that was wrong: then
    /// the task is registered.
    ///
    /// # Errors
    /// Those of the socket.
    fn poll_receive(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>>;
}

impl Readable for Stream {
    fn is_readable(&self) -> bool {
        Stream::is_readable(self)
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Stream::Tcp(tcp) => tcp.poll_read_ready(cx).map(drop),
            Stream::Tls(tls) if tls.has_more() => Poll::Ready(()),
            Stream::Tls(tls) => tls.tcp().poll_read_ready(cx).map(drop),
            Stream::Unix(unix) => unix.poll_read_ready(cx).map(drop),
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Stream::Tls(tls) = self {
            return tls.poll_receive(cx, into);
        }
        loop {
            match self.try_receive(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.poll_readable(cx)),
                received => return Poll::Ready(received),
            }
        }
    }
}

impl Readable for tokio::io::DuplexStream {
    fn is_readable(&self) -> bool {
        true
    }

    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut free = ReadBuf::new(into);
        ready!(Pin::new(self).poll_read(cx, &mut free))?;
        Poll::Ready(Ok(free.filled().len()))
    }
}
