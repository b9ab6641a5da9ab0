//! Where clients connect: TCP listeners and PostgreSQL's Unix socket, and one accept that never
//! gives up.
//!
//! What happens with an accepted stream, and how many there may be, is decided by the caller.

use super::stream::{Stream, keep_alive, spare_loopback};
use crate::clock;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::fs::{File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Connections the kernel may hold for us; it is cut to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// Rest after an accept that failed for want of descriptors or memory: sessions must end first,
/// and asking again at once would only burn the processor they need for it.
const PAUSE: Duration = Duration::from_millis(100);
/// As often it is said that connections cannot be accepted, while that goes on.
const AGAIN: Duration = Duration::from_secs(60);
/// Silence after which the kernel probes whether a client is still there (budgets.md §5.1): its session may
/// hold a transaction. There is no TCP_USER_TIMEOUT beside it, as for servers, because that also ends a
/// connection whose other side lives and does not read for a while (tcp(7)); B13 is for those.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// Between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Unanswered probes after which the client is gone.
const KEEPALIVE_RETRIES: u32 = 3;
/// What a Unix socket is called before it takes another one's place; no longer than that one's name.
const NEW: &str = ".bursar.new";
/// How often to try for a directory's lock, which others hold for a moment at their own start.
const LOCK_TRIES: u32 = 200;
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// How long a handshake that has begun with a listener that others share may take to end.
const SETTLE: Duration = Duration::from_millis(100);

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// `.s.PGSQL.<port>`, removed on drop.
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket; dropping it removes the file if it is still the one we made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: another process may have replaced the file since.
    identity: (u64, u64),
}

/// When it was last said that no connection can be accepted. Short of descriptors, each session that ends lets one
/// in, and the next fails again.
#[derive(Debug, Default)]
pub struct Complaints(Option<Instant>);

impl Complaints {
    fn are_due(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|last| now.saturating_duration_since(last) >= AGAIN);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

impl Listener {
    /// Listens on a TCP address. Must run inside a tokio runtime.
    ///
    /// Options are set here, on the listening socket, because accepted sockets inherit them: that saves
    /// system calls per connection.
    ///
    /// With `shared`, other processes of the same user may listen there as well, if they say so too
    /// (SO_REUSEPORT, socket(7)).
    ///
    /// # Errors
    /// Those of socket, bind and listen, such as `AddrInUse`.
    pub fn tcp(address: SocketAddr, shared: bool) -> io::Result<Listener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.set_tcp_nodelay(true)?;
        keep_alive(&socket, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES)?;
        if address.ip().is_loopback() {
            spare_loopback(SockRef::from(&socket));
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Listener::Tcp(TcpListener::from_std(socket.into())?))
    }

    /// Listens on `dir/.s.PGSQL.<port>`, open to every local user as PostgreSQL's default
    /// `unix_socket_permissions` is. Must run inside a tokio runtime.
    ///
    /// A socket file on which nobody listens, left behind by a process that was killed, is
    /// replaced. Where PostgreSQL keeps a lock file beside its socket, the directory is locked from
    /// the look at an old file until the new one answers: of several processes that start in the
    /// same instant one listens, and nothing is left lying about.
    ///
    /// With `shared`, one on which somebody listens is replaced too: by renaming, so that there is one
    /// at every moment, and only once the new one answers. The old one keeps who has connected.
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens there or the file is not a socket, `WouldBlock` if others keep
    /// the directory locked for two seconds, and those of bind.
    pub fn unix(dir: &Path, port: u16, shared: bool) -> io::Result<Listener> {
        let path = socket_path(dir, port);
        let _locked = lock(dir)?;
        let bound = if shared { dir.join(NEW) } else { path.clone() };
        if !(shared && is_socket(&path)?) {
            remove_stale(&path)?;
        }
        remove_stale(&bound)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&socket2::SockAddr::unix(&bound)?)?;
        let meta = std::fs::symlink_metadata(&bound)?;
        let mut file = SocketFile { identity: (meta.dev(), meta.ino()), path: bound };
        std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(0o777))?;
        socket.listen(BACKLOG)?;
        if shared {
            std::fs::rename(&file.path, &path)?;
            file.path = path;
        }
        Ok(Listener::Unix(UnixListener::from_std(socket.into())?, file))
    }

    /// Where it listens, for logs: `ip:port` (the real port if 0 was asked for) or the path.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Listener::Tcp(tcp) => tcp.local_addr().map_or_else(|_| "unknown".into(), |a| a.to_string()),
            Listener::Unix(_, file) => file.path.display().to_string(),
        }
    }

    /// The next client and its printable address. Cancel safe.
    ///
    /// Never fails: a client that is gone again is skipped, and when the process is out of
    /// descriptors or memory it rests 100 ms between attempts, and warns as often as `complaints` lets it.
    pub async fn accept(&self, complaints: &mut Complaints) -> (Stream, String) {
        loop {
            let error = match self.accept_once().await {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            if is_of_one_client(&error) {
                continue;
            }
            if complaints.are_due(clock::now()) {
                tracing::warn!(address = %self.address(), %error, "cannot accept connections for now");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Stops listening and returns the connections that the kernel had taken already, which it would
    /// reset with the socket. Not cancel safe.
    ///
    /// A connection belongs to one of the listeners that share an address from its first packet on, and
    /// goes down with it even before it can be accepted (unless net.ipv4.tcp_migrate_req is set). So one
    /// that is shared first ceases to hear of new ones, then waits for those that have begun.
    pub async fn close(self) -> Vec<(Stream, String)> {
        let mut taken = Vec::new();
        match self {
            Listener::Tcp(tcp) => {
                let Ok(tcp) = tcp.into_std() else { return taken };
                if SockRef::from(&tcp).reuse_port().unwrap_or(false) {
                    turn_away(SockRef::from(&tcp));
                    tokio::time::sleep(SETTLE).await;
                }
                while let Ok((stream, address)) = tcp.accept() {
                    if let Ok(stream) =
                        stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream))
                    {
                        taken.push((Stream::Tcp(stream), address.to_string()));
                    }
                }
            }
            Listener::Unix(unix, file) => {
                // Nobody finds it from now on.
                drop(file);
                let Ok(unix) = unix.into_std() else { return taken };
                while let Ok((stream, _)) = unix.accept() {
                    if let Ok(stream) =
                        stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream))
                    {
                        let stream = Stream::Unix(stream);
                        let peer = stream.peer();
                        taken.push((stream, peer));
                    }
                }
            }
        }
        taken
    }

    async fn accept_once(&self) -> io::Result<(Stream, String)> {
        match self {
            Listener::Tcp(tcp) => {
                let (stream, address) = tcp.accept().await?;
                Ok((Stream::Tcp(stream), address.to_string()))
            }
            Listener::Unix(unix, _) => {
                let stream = Stream::Unix(unix.accept().await?.0);
                let peer = stream.peer();
                Ok((stream, peer))
            }
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if ours {
            // Nothing is left to do about a failure; the next start finds the file stale.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The path libpq looks for when its host is a directory.
#[must_use]
pub fn socket_path(dir: &Path, port: u16) -> PathBuf {
    dir.join(format!(".s.PGSQL.{port}"))
}

/// From now on the listener drops the first packet of every new connection. The client sends it again after
/// a second (RFC 6298, 2.1), and finds who listens then.
fn turn_away(listener: SockRef<'_>) {
    #[cfg(target_os = "linux")]
    {
        use socket2::SockFilter;
        /// The byte of a TCP header that has its flags, and SYN (RFC 9293, 3.1).
        const FLAGS: u32 = 13;
        const SYN: u32 = 2;
        /// Load a byte; go on where a bit is set; return.
        const LD: u16 = 0x30;
        const JSET: u16 = 0x45;
        const RET: u16 = 0x06;
        let program = [
            SockFilter::new(LD, 0, 0, FLAGS),
            SockFilter::new(JSET, 0, 1, SYN),
            SockFilter::new(RET, 0, 0, 0),
            SockFilter::new(RET, 0, 0, u32::MAX),
        ];
        if let Err(error) = listener.attach_filter(&program) {
            tracing::warn!(%error, "a connection that begins in this moment may be reset");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = listener;
}

/// Whether there is a socket.
fn is_socket(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(meta.file_type().is_socket()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether an accept failed because of the client alone, so that the next may succeed at once.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Locks a directory against other processes that do the same, until the file is dropped.
fn lock(dir: &Path) -> io::Result<File> {
    let file = File::open(dir)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Removes a socket file that refuses connections.
fn remove_stale(path: &Path) -> io::Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let refuses = meta.file_type().is_socket()
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if !refuses {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_tcp_streams_inherit_their_options() {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let client = TcpStream::connect(listener.address()).await.unwrap();
        let (stream, peer) = listener.accept(&mut Complaints::default()).await;
        assert_eq!(peer, client.local_addr().unwrap().to_string());
        let Stream::Tcp(tcp) = &stream else { panic!("not TCP") };
        assert!(tcp.nodelay().unwrap());
        assert!(SockRef::from(tcp).keepalive().unwrap());
        assert_eq!(SockRef::from(tcp).tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(SockRef::from(tcp).tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(SockRef::from(tcp).tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        #[cfg(target_os = "linux")]
        assert_eq!(
            SockRef::from(tcp).tcp_congestion().unwrap().split(|b| *b == 0).next(),
            Some(&b"reno"[..])
        );
    }

    #[tokio::test]
    async fn the_unix_socket_is_open_to_all_and_goes_away_with_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.6432");
        let listener = Listener::unix(dir.path(), 6432, false).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
        let _client = UnixStream::connect(&path).await.unwrap();
        let (_stream, peer) = listener.accept(&mut Complaints::default()).await;
        assert_eq!(peer, format!("unix({})", std::process::id()));
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_but_a_live_one_and_a_file_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.6432");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind, as a killed process does");
        let first = Listener::unix(dir.path(), 6432, false).unwrap();

        let second = Listener::unix(dir.path(), 6432, false).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());

        // Replaced under our feet: dropping the old listener must not remove the new file.
        std::fs::remove_file(&path).unwrap();
        let _newer = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());

        let plain = dir.path().join(".s.PGSQL.1");
        std::fs::write(&plain, "precious").unwrap();
        assert_eq!(Listener::unix(dir.path(), 1, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&plain).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_shared_unix_socket_is_replaced_while_somebody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.6432");
        // As one that was killed before it had renamed it leaves it.
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(NEW)).unwrap());
        let old = Listener::unix(dir.path(), 6432, true).unwrap();
        assert!(path.exists());
        let early = UnixStream::connect(&path).await.unwrap();
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(NEW)).unwrap());
        let new = Listener::unix(dir.path(), 6432, true).unwrap();
        assert!(!dir.path().join(NEW).exists());
        let late = UnixStream::connect(&path).await.unwrap();
        assert_eq!(old.close().await.len(), 1, "who connected before, and no other");
        let (_stream, _) = new.accept(&mut Complaints::default()).await;
        drop((early, late, new));
        assert!(!path.exists());

        std::fs::write(&path, "precious").unwrap();
        assert_eq!(Listener::unix(dir.path(), 6432, true).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_shared_address_loses_nobody_when_one_of_its_listeners_closes() {
        let old = Listener::tcp("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let address: SocketAddr = old.address().parse().unwrap();
        let new = Listener::tcp(address, true).unwrap();
        assert!(Listener::tcp(address, false).is_err(), "both must say so");
        let clients: Vec<_> =
            (0..40).map(|_| std::net::TcpStream::connect(address).expect("connected")).collect();
        let mut taken = old.close().await;
        assert!(!taken.is_empty(), "the kernel gives some to each");
        while taken.len() < clients.len() {
            taken.push(new.accept(&mut Complaints::default()).await);
        }
        let mut served: Vec<_> = taken.into_iter().map(|(_, peer)| peer).collect();
        let mut asked: Vec<_> = clients.iter().map(|c| c.local_addr().unwrap().to_string()).collect();
        served.sort();
        asked.sort();
        assert_eq!(served, asked);
    }

    /// Without the lock the second takes the first one's socket for stale between its bind and its
    /// listen, and removes it.
    #[tokio::test]
    async fn of_many_that_start_at_once_on_a_stale_socket_one_listens() {
        const STARTERS: usize = 8;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.6432");
        let runtime = tokio::runtime::Handle::current();
        for _ in 0..20 {
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            let gate = std::sync::Barrier::new(STARTERS);
            let listeners: Vec<_> = std::thread::scope(|scope| {
                let start = || {
                    let _entered = runtime.enter();
                    gate.wait();
                    Listener::unix(dir.path(), 6432, false)
                };
                let threads: Vec<_> = (0..STARTERS).map(|_| scope.spawn(start)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let (lucky, others): (Vec<_>, Vec<_>) = listeners.into_iter().partition(Result::is_ok);
            assert_eq!(lucky.len(), 1, "{others:?}");
            assert!(
                others.iter().flat_map(|o| o.as_ref().err()).all(|e| e.kind() == io::ErrorKind::AddrInUse)
            );
            drop(std::os::unix::net::UnixStream::connect(&path).unwrap());
            drop(lucky);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_want_of_descriptors_is_told_once_a_minute() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        let due = [0, 1, 59, 60, 61, 119, 121].map(|at| complaints.are_due(start + Duration::from_secs(at)));
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn only_errors_of_one_client_are_retried_at_once() {
        assert!(is_of_one_client(&io::ErrorKind::ConnectionAborted.into()));
        let emfile = io::Error::from_raw_os_error(24);
        assert!(!is_of_one_client(&emfile));
    }
}
