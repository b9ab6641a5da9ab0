//! One type for every kind of connection, so that sessions and backends need not be generic.
//!
//! It adds to tokio's sockets what a pooler needs of them: a look at an idle connection that costs
//! no system call ([`Stream::quiet`]), a printable peer, and the socket options of a long-lived
//! connection. It buffers nothing.

use super::tls::{Encrypted, Protection};
use socket2::{SockRef, Socket, TcpKeepalive};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Silence after which the kernel starts probing a server connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered probes after which the connection is dead.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long data we sent may stay unacknowledged before the connection is dead. As long as the
/// probes take, because on Linux this bound also ends the probing.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// TCP, with TCP_NODELAY.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<Encrypted>),
}

/// A socket of the system's.
enum Plain<'a> {
    Tcp(&'a TcpStream),
    Unix(&'a UnixStream),
}

/// From where somebody connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// An address.
    Tcp(IpAddr),
    /// The Unix socket, and the number of the user at its other end, as far as the kernel tells.
    Unix(Option<u32>),
}

impl Origin {
    /// Whether that is this machine.
    #[must_use]
    pub fn is_local(self) -> bool {
        // One of IPv4 that came in over IPv6 is taken for what it is.
        self.address().is_none_or(|address| address.to_canonical().is_loopback())
    }

    /// The address; `None` of the Unix socket.
    #[must_use]
    pub fn address(self) -> Option<IpAddr> {
        if let Origin::Tcp(address) = self { Some(address) } else { None }
    }
}

/// What one look at an idle connection shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiet {
    /// Open, and nothing to read.
    Yes,
    /// The peer sent something; it is still there to be read.
    Bytes,
    /// Closed by the peer, or broken.
    Closed,
}

impl Stream {
    /// Who is on the other side: `ip:port`, or `unix(PID)` as far as the kernel tells.
    #[must_use]
    pub fn peer(&self) -> String {
        match self.socket() {
            Plain::Tcp(tcp) => match tcp.peer_addr() {
                Ok(address) => address.to_string(),
                Err(_) => "unknown".to_owned(), // already disconnected
            },
            Plain::Unix(unix) => match unix.peer_cred().ok().and_then(|cred| cred.pid()) {
                Some(pid) => format!("unix({pid})"),
                None => "unix".to_owned(),
            },
        }
    }

    /// From where the other side connects.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self.socket() {
            // One that has disconnected already is nobody's; it will not be let in either.
            Plain::Tcp(tcp) => {
                Origin::Tcp(tcp.peer_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |address| address.ip()))
            }
            Plain::Unix(unix) => Origin::Unix(unix.peer_cred().ok().map(|cred| cred.uid())),
        }
    }

    /// The socket below, with TLS over it or not.
    #[inline]
    fn socket(&self) -> Plain<'_> {
        match self {
            Stream::Tcp(tcp) => Plain::Tcp(tcp),
            Stream::Tls(tls) => Plain::Tcp(tls.tcp()),
            Stream::Unix(unix) => Plain::Unix(unix),
        }
    }

    /// What TLS it has.
    #[must_use]
    pub fn protection(&self) -> Option<Protection> {
        if let Stream::Tls(tls) = self { tls.protection() } else { None }
    }

    /// What a login to the server on the other side may be bound to: the hash of its certificate (RFC 5929 §4).
    #[must_use]
    pub fn end_point(&self) -> Option<Arc<[u8]>> {
        if let Stream::Tls(tls) = self { tls.end_point() } else { None }
    }

    /// The common name in a client's certificate, if it has shown one and that was verified.
    #[must_use]
    pub fn common_name(&self) -> Option<String> {
        if let Stream::Tls(tls) = self { tls.common_name() } else { None }
    }

    /// Whether a client that has just connected begins with a TLS handshake instead of a packet of
    /// PostgreSQL's (`sslnegotiation=direct`). Takes no byte; waits for the first. Cancel safe.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn begins_with_tls(&self) -> io::Result<bool> {
        /// The record type of a handshake (RFC 8446, 5.1).
        const HANDSHAKE: u8 = 0x16;
        let Stream::Tcp(tcp) = self else { return Ok(false) };
        let mut first = [0];
        Ok(tcp.peek(&mut first).await? == 1 && first == [HANDSHAKE])
    }

    /// Looks at a connection that should be idle, without waiting and without taking a byte.
    ///
    /// Costs no system call while the reactor has seen no event on the socket, so an event that is
    /// still in the kernel's queue is missed: a peer that closes in the same instant is found by
    /// the first write or read instead.
    #[must_use]
    pub fn quiet(&self) -> Quiet {
        let mut byte = [MaybeUninit::<u8>::uninit()];
        // Of TLS, what is not a client's or server's message is looked at as if it were one.
        let seen = match self.socket() {
            Plain::Tcp(tcp) => tcp.try_io(Interest::READABLE, || SockRef::from(tcp).peek(&mut byte)),
            Plain::Unix(unix) => unix.try_io(Interest::READABLE, || SockRef::from(unix).peek(&mut byte)),
        };
        match seen {
            Ok(0) => Quiet::Closed,
            Ok(_) => Quiet::Bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Quiet::Yes,
            Err(_) => Quiet::Closed,
        }
    }

    /// Whether the reactor has seen something to read. Costs no system call.
    #[must_use]
    #[inline]
    pub fn is_readable(&self) -> bool {
        let seen = match self.socket() {
            _ if self.has_more() => return true,
            Plain::Tcp(tcp) => tcp.try_io(Interest::READABLE, || Ok(())),
            Plain::Unix(unix) => unix.try_io(Interest::READABLE, || Ok(())),
        };
        seen.is_ok()
    }

    /// Whether TLS has read more than it has given out.
    #[inline]
    fn has_more(&self) -> bool {
        matches!(self, Stream::Tls(tls) if tls.has_more())
    }

    /// Reads once, if the reactor has seen something to read. Not of TLS.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing, and those of the socket.
    #[inline]
    pub(super) fn try_receive(&self, into: &mut [u8]) -> io::Result<usize> {
        let room = into.len();
        self.try_some(Interest::READABLE, room, |mut socket| socket.read(into))
    }

    /// One read or write of up to `most` bytes. A short one has left the socket empty, or full, and the
    /// reactor is told so by the one word it takes for that: the next look costs no system call.
    #[inline]
    fn try_some(
        &self,
        interest: Interest,
        most: usize,
        act: impl FnOnce(&Socket) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut moved = 0;
        let act = |socket: SockRef<'_>| {
            moved = act(&socket)?;
            if 0 < moved && moved < most { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        };
        let done = match self {
            Stream::Tcp(tcp) => tcp.try_io(interest, || act(SockRef::from(tcp))),
            Stream::Unix(unix) => unix.try_io(interest, || act(SockRef::from(unix))),
            Stream::Tls(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        match done {
            Err(error) if moved == 0 => Err(error),
            _ => Ok(moved),
        }
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.socket() {
            Plain::Tcp(tcp) => tcp.poll_write_ready(cx),
            Plain::Unix(unix) => unix.poll_write_ready(cx),
        }
    }

    /// Writes what the socket takes; the runtime is asked for a wake-up only once it takes nothing.
    fn poll_some(
        &self,
        cx: &mut Context<'_>,
        most: usize,
        write: impl Fn(&Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.try_some(Interest::WRITABLE, most, &write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.poll_writable(cx))?,
                written => return Poll::Ready(written),
            }
        }
    }

    /// Waits until there may be something to read. Cancel safe; may wake without cause.
    ///
    /// # Errors
    /// Those of the reactor, at shutdown of the runtime.
    pub async fn readable(&self) -> io::Result<()> {
        match self.socket() {
            _ if self.has_more() => Ok(()),
            Plain::Tcp(tcp) => tcp.readable().await,
            Plain::Unix(unix) => unix.readable().await,
        }
    }

    /// Writes what the socket takes at once.
    ///
    /// # Errors
    /// `WouldBlock` if it takes nothing, and those of the socket.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => tcp.try_write(bytes),
            Stream::Tls(tls) => tls.try_write(bytes),
            Stream::Unix(unix) => unix.try_write(bytes),
        }
    }

    /// Socket options of a connection to a server: no delay of small writes, and a peer that
    /// vanished without a word is noticed within about a minute.
    ///
    /// # Errors
    /// Those of setsockopt.
    pub(crate) fn tune_for_server(&self) -> io::Result<()> {
        let Stream::Tcp(tcp) = self else { return Ok(()) };
        tcp.set_nodelay(true)?;
        let socket = SockRef::from(tcp);
        keep_alive(&socket, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        if self.origin().is_local() {
            spare_loopback(socket);
        }
        Ok(())
    }
}

/// Has the kernel probe a peer that has been silent for `idle`, every `interval`, and give it up after so many
/// probes without an answer (`SO_KEEPALIVE` and its `TCP_KEEP*`, tcp(7)).
pub(super) fn keep_alive(
    socket: &Socket,
    idle: Duration,
    interval: Duration,
    retries: u32,
) -> io::Result<()> {
    let probes = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries);
    socket.set_tcp_keepalive(&probes)
}

/// Takes the plainest congestion control for a connection that never leaves this machine: nothing gets
/// lost there, and what the system may have as its default (bbr measures and paces each packet) is
/// paid for at every write. Where that is not allowed, everything stays as it was.
pub(super) fn spare_loopback(socket: SockRef<'_>) {
    #[cfg(target_os = "linux")]
    if let Err(error) = socket.set_tcp_congestion(b"reno") {
        tracing::debug!(%error, "the default congestion control stays for a local connection");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buf),
            Stream::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, buf),
            plain => plain.poll_some(cx, buf.len(), |mut socket| socket.write(buf)),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let most = bufs.iter().map(|buf| buf.len()).sum();
        match self.get_mut() {
            Stream::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, bufs),
            plain => plain.poll_some(cx, most, |mut socket| socket.write_vectored(bufs)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(tcp) => tcp.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
            Stream::Unix(unix) => unix.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
            Stream::Unix(unix) => Pin::new(unix).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
            Stream::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn tcp_pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Stream::Tcp(ours), listener.accept().await.unwrap().0)
    }

    async fn looks(mut ours: Stream, mut theirs: impl AsyncWrite + Unpin) {
        assert_eq!(ours.quiet(), Quiet::Yes);
        theirs.write_all(b"ab").await.unwrap();
        ours.readable().await.unwrap();
        assert_eq!(ours.quiet(), Quiet::Bytes);
        assert_eq!(ours.quiet(), Quiet::Bytes, "a look takes nothing");
        let mut buf = [0; 8];
        assert_eq!(ours.read(&mut buf).await.unwrap(), 2);
        assert_eq!(ours.quiet(), Quiet::Yes);
        drop(theirs);
        ours.readable().await.unwrap();
        assert_eq!(ours.quiet(), Quiet::Closed);
    }

    #[tokio::test]
    async fn a_look_tells_silence_bytes_and_end_apart() {
        let (ours, theirs) = tcp_pair().await;
        looks(ours, theirs).await;
        let (ours, theirs) = UnixStream::pair().unwrap();
        looks(Stream::Unix(ours), theirs).await;
    }

    #[tokio::test]
    async fn server_connections_have_their_options_and_peers_a_name() {
        let (ours, theirs) = tcp_pair().await;
        ours.tune_for_server().unwrap();
        let Stream::Tcp(tcp) = &ours else { unreachable!() };
        assert!(tcp.nodelay().unwrap());
        let socket = SockRef::from(tcp);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        assert_eq!(ours.peer(), theirs.local_addr().unwrap().to_string());

        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(Stream::Unix(ours).peer(), format!("unix({})", std::process::id()));
    }

    #[tokio::test]
    async fn both_kinds_write_several_slices_at_once() {
        let (ours, _theirs) = tcp_pair().await;
        assert!(ours.is_write_vectored());
        let (mut ours, mut theirs) =
            UnixStream::pair().map(|(a, b)| (Stream::Unix(a), Stream::Unix(b))).unwrap();
        assert!(ours.is_write_vectored());
        let slices = [io::IoSlice::new(b"ab"), io::IoSlice::new(b"cd")];
        assert_eq!(ours.write_vectored(&slices).await.unwrap(), 4);
        let mut buf = [0; 4];
        theirs.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"abcd");
    }
}
