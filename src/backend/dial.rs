//! One server connection, and how to get it: resolve, connect, log in, under one deadline.

use super::ask::{AskError, ask};
use super::cancel::CancelHandle;
use super::error::{DialError, ProtocolFault};
use super::login::login;
use super::secure::{Secured, Way, is_of_the_way, ways};
use super::stance::Stance;
use super::target::{Endpoint, Server, Target};
use super::trail::Trail;
use crate::breaker::Failure;
use crate::clock;
use crate::config::SessionAttrs;
use crate::net::stream::{Quiet, Stream};
use crate::state::{Set, fence};
use crate::statements::Held;
use bytes::Bytes;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Terminate, which spares PostgreSQL counting the session as abandoned.
const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// Pause before another attempt at a Unix socket whose queue of connections is full.
const CROWDED: Duration = Duration::from_millis(20);

/// What servers before PostgreSQL 14 do not tell at login.
const ROLE: &str =
    "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')";

/// Parameters one backend may report; PostgreSQL 18 reports 15.
const MAX_PARAMETERS: usize = 128;

/// A server connection that has been ready once.
pub struct Backend {
    /// The socket.
    pub stream: Stream,
    /// PostgreSQL's process id; 0 if the server did not tell.
    pub pid: i32,
    /// ParameterStatus as reported at login, in order.
    pub parameters: Vec<(Bytes, Bytes)>,
    /// What it says of its server, likewise.
    pub stance: Stance,
    /// When it was ready.
    pub connected: Instant,
    /// `host:port` or the socket's path, as configured.
    pub address: Arc<str>,
    /// The store's generation when it was dialled.
    pub generation: u64,
    /// When it was last put into the idle store.
    pub returned_at: Instant,
    /// What it takes to cancel whatever runs here.
    pub cancel: Arc<CancelHandle>,
    /// The settings it carries.
    pub settings: Set,
    /// The shared statements it has.
    pub prepared: Held,
    /// Whose rows it shows.
    pub context: fence::Held,
    /// Leases to go before what they left is looked at.
    pub unseen: u32,
    /// Something of this lease says that its server may no longer be what is wanted: see [`Backend::suits`].
    pub doubted: bool,
    /// Room for the statements of its next lease.
    pub trail: Option<Box<Trail>>,
    /// Thousandths of the configured lifetime that are this one's, 900 to 1,100: a pool that was
    /// opened in one go should not be retired in one.
    lifetime_permille: u32,
}

/// Opens a backend within `within` of having its password, of which each server gets an equal part of what is
/// left, and of that each of its addresses. Not cancel safe: dropped, the attempt is given up.
///
/// As libpq does it: a server that cannot be reached, starts, or is not what is wanted is passed over; one
/// that refuses the role or database has the last word.
///
/// # Errors
/// [`DialError`] other than `NoRoom`; of a server with several addresses the last one.
pub async fn dial(target: &Target, within: Duration) -> Result<Backend, DialError> {
    let asked = target.asked(within).await?;
    let to = asked.as_ref().unwrap_or(target);
    let dialled = timeout(within, dial_any(to, within)).await.unwrap_or(Err(DialError::Timeout));
    if let Err(DialError::Server { code: [b'2', b'8', ..], .. }) = dialled {
        target.disbelieve().await;
    }
    dialled
}

async fn dial_any(target: &Target, within: Duration) -> Result<Backend, DialError> {
    let deadline = clock::now() + within;
    let passes: &[SessionAttrs] = match target.attrs {
        SessionAttrs::PreferStandby => &[SessionAttrs::Standby, SessionAttrs::Any],
        _ => std::slice::from_ref(&target.attrs),
    };
    let servers = target.in_order();
    let mut failed = Vec::new();
    let mut tries = servers.len() * passes.len();
    for wanted in passes {
        failed.clear();
        for (at, server) in &servers {
            let left = deadline.saturating_duration_since(clock::now());
            let share = left / u32::try_from(tries).unwrap_or(u32::MAX).max(1);
            tries -= 1;
            let tried = timeout(share, dial_one(target, server, *wanted, share)).await;
            match tried.unwrap_or(Err(DialError::Timeout)) {
                Ok(backend) => {
                    target.served_by(*at);
                    return Ok(backend);
                }
                Err(error) if matches!(error.kind(), Failure::Unreachable | Failure::Starting) => {
                    failed.push((server.address.clone(), error));
                }
                Err(error) => return Err(error),
            }
        }
    }
    Err(DialError::of_several(failed))
}

/// A backend of this server, if it is what is wanted.
async fn dial_one(
    target: &Target,
    server: &Server,
    wanted: SessionAttrs,
    within: Duration,
) -> Result<Backend, DialError> {
    let mut backend = connect(target, server, within).await?;
    if is_wanted(&mut backend, wanted).await? {
        return Ok(backend);
    }
    backend.close();
    Err(DialError::Unsuitable { wanted: wanted.name() })
}

/// Whether a server is what is wanted: as it has told at login (PostgreSQL 14 and newer), or as it says when asked.
async fn is_wanted(backend: &mut Backend, wanted: SessionAttrs) -> Result<bool, DialError> {
    if wanted == SessionAttrs::Any {
        return Ok(true);
    }
    let (standby, read_only) = match backend.stance.known() {
        Some(told) => told,
        None => {
            let rows = ask(backend, ROLE).await.map_err(|error| match error {
                AskError::Io(error) => DialError::Io(error),
                AskError::Refused { .. } | AskError::Senseless => ProtocolFault::Unexpected(b'E').into(),
            })?;
            let value = |at: usize| rows.first().and_then(|row| row.get(at)).and_then(Option::as_ref);
            (value(0).is_some_and(|value| value == "t"), value(1).is_some_and(|value| value == "on"))
        }
    };
    Ok(will_do(wanted, standby, read_only))
}

/// Whether a server will do that is a standby or not, and whose transactions may only read by default or may
/// write too.
fn will_do(wanted: SessionAttrs, standby: bool, read_only: bool) -> bool {
    match wanted {
        SessionAttrs::Any => true,
        SessionAttrs::ReadWrite => !(standby || read_only),
        SessionAttrs::ReadOnly => standby || read_only,
        SessionAttrs::Primary => !standby,
        SessionAttrs::Standby | SessionAttrs::PreferStandby => standby,
    }
}

async fn connect(target: &Target, server: &Server, within: Duration) -> Result<Backend, DialError> {
    let deadline = clock::now() + within;
    let endpoints = server.endpoints().await?;
    let mut failed = DialError::Io(io::ErrorKind::AddrNotAvailable.into());
    for (index, endpoint) in endpoints.iter().enumerate() {
        let parts = u32::try_from(endpoints.len() - index).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(clock::now()) / parts;
        match timeout(share, endpoint.connect()).await {
            // An address that answers is the server: what it says is final.
            Ok(Ok(stream)) => return ready(target, server, stream, endpoint.clone()).await,
            Ok(Err(error)) => failed = error.into(),
            Err(_) => failed = DialError::Timeout,
        }
    }
    Err(failed)
}

/// Logs in by the first way that the server lets Bursar in. The others each begin with a connection of their own.
async fn ready(
    target: &Target,
    server: &Server,
    stream: Stream,
    endpoint: Endpoint,
) -> Result<Backend, DialError> {
    let connector = target.connector();
    // PostgreSQL has no TLS over Unix sockets.
    let ways = if matches!(stream, Stream::Unix(_)) { &[Way::Plain] } else { ways(connector.mode) };
    let secured = Secured::new(connector, &server.host);
    let mut stream = Some(stream);
    let mut failed = DialError::Tls(io::ErrorKind::Unsupported.into());
    for way in ways {
        let socket = match stream.take() {
            Some(stream) => stream,
            None => endpoint.connect().await?,
        };
        match enter(target, server, socket, &endpoint, &secured, *way).await {
            Err(error) if is_of_the_way(&error) => {
                tracing::debug!(server = %server.address, ?way, %error, "not let in this way");
                failed = error;
            }
            done => return done,
        }
    }
    Err(failed)
}

async fn enter(
    target: &Target,
    server: &Server,
    stream: Stream,
    endpoint: &Endpoint,
    secured: &Secured,
    way: Way,
) -> Result<Backend, DialError> {
    let mut stream = secured.secure(stream, way).await?;
    let end_point = stream.end_point();
    let login = login(&mut stream, target, end_point).await?;
    let protection = stream.protection();
    let secured = protection.map(|protection| secured.by(protection));
    let now = clock::now();
    Ok(Backend {
        stream,
        pid: login.pid,
        stance: Stance::of(&login.parameters),
        parameters: login.parameters,
        connected: now,
        address: server.address.clone(),
        generation: 0,
        returned_at: now,
        cancel: Arc::new(CancelHandle {
            endpoint: endpoint.clone(),
            secured,
            pid: login.pid,
            key: login.key,
        }),
        settings: Set::BASE,
        prepared: Held::default(),
        context: fence::Held::of(login.pid),
        unseen: 0,
        doubted: false,
        trail: None,
        lifetime_permille: rand::random_range(900..=1100),
    })
}

impl Endpoint {
    /// Connects, with the options of a server connection. Bounded by the caller.
    pub(super) async fn connect(&self) -> io::Result<Stream> {
        let stream = match self {
            Endpoint::Tcp(address) => Stream::Tcp(TcpStream::connect(address).await?),
            Endpoint::Unix(path) => loop {
                match UnixStream::connect(path).await {
                    // The server's queue of connections is full; over TCP the kernel would wait.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(CROWDED).await;
                    }
                    other => break Stream::Unix(other?),
                }
            },
        };
        stream.tune_for_server()?;
        Ok(stream)
    }
}

impl Backend {
    /// A lease ends. Whether it is the one in `every` after which the backend is looked at; 0: none is.
    pub fn is_to_be_seen(&mut self, every: u32) -> bool {
        self.unseen = self.unseen.saturating_add(1);
        every != 0 && self.unseen >= every && std::mem::take(&mut self.unseen) > 0
    }

    /// Its prepared statements are gone.
    pub fn lose_statements(&mut self) {
        self.prepared.clear();
        self.context.lose_statements();
    }

    /// Looks whether an idle backend is still there and silent; see [`Stream::quiet`].
    #[must_use]
    pub fn poke(&self) -> Quiet {
        self.stream.quiet()
    }

    /// Whether it has outlived a pool's `lifetime` (`None`: off), give or take its own ±10 %.
    #[must_use]
    pub fn expired(&self, now: Instant, lifetime: Option<Duration>) -> bool {
        let own = lifetime.and_then(|lifetime| (lifetime / 1000).checked_mul(self.lifetime_permille));
        own.is_some_and(|own| now.saturating_duration_since(self.connected) >= own)
    }

    /// The server reports a parameter. Names beyond a few dozen are a hostile server's and ignored.
    pub fn learn_parameter(&mut self, name: &[u8], value: &[u8]) {
        self.doubted |= self.stance.hear(name, value);
        if let Some((_, known)) = self.parameters.iter_mut().find(|(known, _)| known == name) {
            *known = Bytes::copy_from_slice(value);
        } else if self.parameters.len() < MAX_PARAMETERS {
            self.parameters.push((Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)));
        }
    }

    /// Whether its server still is what was wanted of it when it was dialled, judged between two leases; `None`
    /// = it does not say (before PostgreSQL 14). One that was only preferred will do as whatever it is.
    ///
    /// What a session has set itself says nothing of the server.
    #[must_use]
    pub fn suits(&self, wanted: SessionAttrs) -> Option<bool> {
        if matches!(wanted, SessionAttrs::Any | SessionAttrs::PreferStandby) {
            return Some(true);
        }
        match self.stance.known() {
            Some((standby, read_only)) => {
                let own = self.settings.value("default_transaction_read_only").is_some();
                let read_only = if own { wanted == SessionAttrs::ReadOnly } else { read_only };
                Some(will_do(wanted, standby, read_only))
            }
            // A write that was refused is what is to be expected there.
            None => matches!(wanted, SessionAttrs::ReadOnly | SessionAttrs::Standby).then_some(true),
        }
    }

    /// Says goodbye to an idle backend and closes it. For one with anything outstanding, drop it:
    /// PostgreSQL then rolls back.
    pub fn close(mut self) {
        self.say_goodbye();
    }

    /// Sends Terminate if the socket takes it; a full socket of an idle backend is a dead one.
    pub(super) fn say_goodbye(&mut self) {
        let _ = self.stream.try_write(&TERMINATE);
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("address", &self.address)
            .field("pid", &self.pid)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake;
    use super::super::target::tests::database;
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_backend_comes_with_all_that_the_server_told() {
        let fake = fake::Server::start().await;
        let backend = dial(&fake.target(), Duration::from_secs(5)).await.unwrap();
        assert_eq!((backend.pid, &backend.cancel.key[..]), (1, &b"key1"[..]));
        assert_eq!(backend.parameters, [("server_version".into(), "15.0".into())]);
        assert_eq!(*backend.address, *fake.target().address);
        assert_eq!(backend.poke(), Quiet::Yes);
    }

    #[tokio::test]
    async fn a_server_that_accepts_and_says_nothing_runs_into_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let table = database("127.0.0.1", listener.local_addr().unwrap().port());
        let target = Target::new(&table, "app", "alice", None);
        let error = dial(&target, Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, DialError::Timeout), "{error}");
    }

    #[tokio::test]
    async fn nobody_there_is_an_io_error() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let target = Target::new(&database("127.0.0.1", port), "app", "alice", None);
        let error = dial(&target, Duration::from_secs(5)).await.unwrap_err();
        assert!(
            matches!(&error, DialError::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused),
            "{error}"
        );
        let target = Target::new(&database("/nonexistent", port), "app", "alice", None);
        let error = dial(&target, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(&error, DialError::Io(e) if e.kind() == io::ErrorKind::NotFound), "{error}");
    }

    #[tokio::test]
    async fn a_server_is_judged_by_what_it_says_of_itself_and_not_by_what_a_session_has_set() {
        use SessionAttrs::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};
        const ALL: [SessionAttrs; 6] = [Any, ReadWrite, ReadOnly, Primary, Standby, PreferStandby];
        let fake = fake::Server::start().await;
        let mut backend = dial(&fake.target(), Duration::from_secs(5)).await.unwrap();
        // Before PostgreSQL 14.
        let unknown = [Some(true), None, Some(true), None, Some(true), Some(true)];
        assert_eq!(ALL.map(|wanted| backend.suits(wanted)), unknown);

        backend.learn_parameter(b"TimeZone", b"UTC");
        assert!(!backend.doubted);
        let mut says = |standby: &[u8], read_only: &[u8], own: bool| {
            backend.learn_parameter(b"in_hot_standby", standby);
            backend.learn_parameter(b"default_transaction_read_only", read_only);
            let mut table = crate::state::Table::default();
            let set = [("default_transaction_read_only", &b"on"[..])];
            backend.settings = if own { table.intern(set.into_iter()).unwrap() } else { Set::BASE };
            assert!(std::mem::take(&mut backend.doubted));
            ALL.map(|wanted| backend.suits(wanted) == Some(true))
        };
        assert_eq!(says(b"off", b"off", false), [true, true, false, true, false, true]);
        assert_eq!(says(b"on", b"off", false), [true, false, true, false, true, true]);
        assert_eq!(says(b"off", b"on", false), [true, false, true, true, false, true]);
        assert_eq!(says(b"off", b"on", true), [true, true, true, true, false, true]);
        assert_eq!(says(b"on", b"on", true), [true, false, true, false, true, true]);
    }

    #[tokio::test]
    async fn a_full_queue_of_a_unix_socket_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = crate::net::listen::socket_path(dir.path(), 5432);
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let endpoint = Endpoint::Unix(path.clone());
        let first = endpoint.connect().await.unwrap();
        let direct = UnixStream::connect(&path).await.unwrap_err();
        assert_eq!(direct.kind(), io::ErrorKind::WouldBlock);
        let mut waiting = Box::pin(endpoint.connect());
        assert!(timeout(Duration::from_millis(50), &mut waiting).await.is_err());
        drop(listener.accept().unwrap());
        waiting.await.unwrap();
        drop(first);
    }

    #[tokio::test]
    async fn lifetimes_differ_by_a_tenth_and_each_keeps_its_own() {
        let fake = fake::Server::start().await;
        let mut backend = dial(&fake.target(), Duration::from_secs(5)).await.unwrap();
        assert!((900..=1100).contains(&backend.lifetime_permille));
        let hundred = Some(Duration::from_secs(100));
        let at = |seconds| backend.connected + Duration::from_secs(seconds);
        let (before, after) = (at(89), at(110));
        assert!(!backend.expired(before, hundred));
        assert!(backend.expired(after, hundred));
        backend.lifetime_permille = 950;
        let at = |seconds| backend.connected + Duration::from_secs(seconds);
        assert!(!backend.expired(at(94), hundred) && backend.expired(at(95), hundred));
        assert!(!backend.expired(after, None));
        assert!(!backend.expired(after, Some(Duration::MAX)));
    }
}
