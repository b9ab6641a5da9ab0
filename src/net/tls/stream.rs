//! An encrypted TCP connection, with what a [`Stream`](crate::net::stream::Stream) knows without asking.

use std::fmt;
use std::io;
use std::num::NonZeroU16;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_rustls::rustls::{CipherSuite, ProtocolVersion};

/// Protocol and cipher suite, by the numbers that TLS has for them. As text such as
/// `TLSv1_3/TLS13_AES_256_GCM_SHA384`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    version: NonZeroU16,
    suite: u16,
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (version, suite) = (ProtocolVersion::from(self.version.get()), CipherSuite::from(self.suite));
        write!(f, "{version:?}/{suite:?}")
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Encrypted {
    inner: TlsStream<TcpStream>,
    /// The last read took all there was room for: there may be more that has been decrypted, of which
    /// the socket knows nothing.
    more: bool,
}

impl Encrypted {
    pub(super) fn new(inner: TlsStream<TcpStream>) -> Encrypted {
        // A client may have sent its first message in one packet with the end of its handshake.
        Encrypted { inner, more: true }
    }

    /// The connection below.
    pub(in crate::net) fn tcp(&self) -> &TcpStream {
        self.inner.get_ref().0
    }

    /// Whether a read may find something although the socket has nothing.
    #[inline]
    pub(in crate::net) fn has_more(&self) -> bool {
        self.more
    }

    /// What protects it.
    pub(in crate::net) fn protection(&self) -> Option<Protection> {
        let connection = self.inner.get_ref().1;
        let version = NonZeroU16::new(connection.protocol_version()?.into())?;
        Some(Protection { version, suite: connection.negotiated_cipher_suite()?.suite().into() })
    }

    /// What a login to the server on the other side may be bound to (RFC 5929 §4).
    pub(in crate::net) fn end_point(&self) -> Option<Arc<[u8]>> {
        super::end_point::of(self.inner.get_ref().1.peer_certificates()?.first()?)
    }

    /// The common name in the other side's certificate, if it has shown one, which was verified then.
    pub(in crate::net) fn common_name(&self) -> Option<String> {
        super::common_name::of(self.inner.get_ref().1.peer_certificates()?.first()?)
    }

    /// Reads once. `Pending` registers the task for a wake-up.
    ///
    /// Where the other side closes without saying so in TLS, that is the end, as without TLS: messages say
    /// themselves where they end.
    pub(in crate::net) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let room = into.len();
        let mut free = ReadBuf::new(into);
        self.more = false;
        match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut free)) {
            Ok(()) => {
                let n = free.filled().len();
                self.more = n == room;
                Poll::Ready(Ok(n))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Writes what can be written at once.
    pub(in crate::net) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.inner).poll_write(&mut cx, bytes) {
            Poll::Ready(written) => {
                let _ = Pin::new(&mut self.inner).poll_flush(&mut cx);
                written
            }
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = ready!(self.get_mut().poll_receive(cx, buf.initialize_unfilled()))?;
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
