//! The process: listeners, one task a session, and the levers of the faces.
//!
//! [`run`] builds the house from a configuration, serves until told to leave, and says how it went.

mod leave;
mod levers;
mod reloading;

use crate::auth::Users;
use crate::cli::Exit;
use crate::config::{Config, Keeper, Traced};
use crate::console::{self, Source};
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::net::listen::{Complaints, Listener, socket_path};
use crate::net::stream::Stream;
use crate::notify::Notify;
use crate::pool::{Pools, janitor};
use crate::reload::Reload;
use crate::session::cancel;
use crate::session::handshake::damper::Damper;
use crate::session::handshake::lobby::{Guest, Lobby, SentAway};
use crate::session::handshake::{Arrival, LoggedIn, Visitor, arrive};
use crate::session::registry::Registry;
use crate::wire::backend::{TxStatus, message, parameter_status, ready_for_query};
use bytes::BytesMut;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long a login that has begun may take once the process has begun to close.
const LAST_LOGIN: Duration = Duration::from_secs(5);

/// Everything a running process shares.
pub struct House {
    /// Pools, sessions' cells, configuration in force.
    pub pools: Arc<Pools>,
    /// Cancel keys.
    pub registry: Arc<Registry>,
    /// How far leaving has come.
    pub drain: Drain,
    /// How to read the configuration again.
    pub reload: Reload,
    /// When it started.
    pub started: Instant,
    /// Who started it, if that wants to know.
    notify: Notify,
    /// Session tasks.
    tasks: TaskTracker,
    /// Sessions, replication connections among them.
    clients: AtomicUsize,
    /// Those who have not logged in.
    lobby: Arc<Lobby>,
    /// Those who have failed to.
    damper: Damper,
}

/// Why a process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be opened.
    #[error("cannot listen on {0}: {1}")]
    Listen(String, io::Error),
    /// The Unix socket could not be opened.
    #[error("cannot listen on {} (listen.unix_dir): {error}; {}", path.display(), unix_remedy(error))]
    ListenUnix {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A user's secret cannot be used.
    #[error(transparent)]
    User(#[from] crate::auth::UserError),
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] crate::net::tls::TlsError),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(io::Error),
}

/// Runs until drained. Not cancel safe.
///
/// # Errors
/// [`StartError`]; nothing was served then.
pub async fn run(traced: Traced, reload: Reload) -> Result<Exit, StartError> {
    let config = Arc::new(traced.config);
    let metrics = Arc::new(Metrics::default());
    let users = Users::new(&config)?;
    let tls = crate::net::tls::Tls::new(&config)?;
    let notify = Notify::new(&reload.env);
    let drain = Drain::default();
    let house = Arc::new(House {
        pools: Pools::new(config.clone(), users, tls, metrics),
        registry: Arc::default(),
        damper: Damper::until(drain.closing()),
        drain,
        reload,
        started: crate::clock::now(),
        notify,
        tasks: TaskTracker::new(),
        clients: AtomicUsize::new(0),
        lobby: Arc::default(),
    });
    let signals = crate::drain::Signals::new().map_err(StartError::Signals)?;
    let hangup = reloading::hangup().map_err(StartError::Signals)?;
    let listeners = listen(&config)?;
    let source: Arc<dyn Source> = Arc::new(levers::Levers::new(house.clone()));
    if let Some(address) = config.admin.address {
        let listener = Listener::tcp(address, config.listen.reuse_port);
        let listener = listener.map_err(|error| StartError::Listen(address.to_string(), error))?;
        let (source, stopped) = (source.clone(), house.drain.stopped());
        // Where another process may answer, it does.
        let closing = if config.listen.reuse_port { house.drain.leaving() } else { stopped.clone() };
        tokio::spawn(async move {
            if let Err(error) = crate::http::serve(listener, source, closing, stopped).await {
                tracing::error!(%error, "metrics cannot be registered; HTTP is off");
            }
        });
    }
    tokio::spawn(janitor::run(house.pools.clone()));
    tokio::spawn(reloading::watch(house.clone(), hangup));
    for listener in listeners {
        tracing::info!(address = listener.address(), "listening");
        house.tasks.spawn(accept(house.clone(), listener, source.clone()));
    }
    house.notify.ready();
    let alive = house.clone();
    tokio::spawn(async move { alive.notify.live().await });
    Ok(leave::until_left(&house, signals).await)
}

fn listen(config: &Config) -> Result<Vec<Listener>, StartError> {
    let mut listeners = Vec::new();
    for address in &config.listen.addresses {
        let listener = Listener::tcp(*address, config.listen.reuse_port);
        listeners.push(listener.map_err(|error| StartError::Listen(address.to_string(), error))?);
    }
    if let Some(dir) = &config.listen.unix_dir {
        // The same port as on TCP, so that clients change nothing but the host.
        let port = config.listen.addresses.first().map_or(6432, std::net::SocketAddr::port);
        let listener = Listener::unix(dir, port, config.listen.reuse_port);
        let failed = |error| StartError::ListenUnix { path: socket_path(dir, port), error };
        listeners.push(listener.map_err(failed)?);
    }
    Ok(listeners)
}

/// What to do about a Unix socket that cannot be opened.
fn unix_remedy(error: &io::Error) -> &'static str {
    use io::ErrorKind::{AddrInUse, NotADirectory, NotFound, PermissionDenied, WouldBlock};
    match error.kind() {
        NotFound | NotADirectory => "create the directory, or name another one",
        PermissionDenied => {
            "Bursar's user must be allowed to create and remove files in the directory; \
             an old socket of another user is for that user to remove"
        }
        AddrInUse => {
            "a process listens there, or the file is no socket: stop it, or take another port or directory"
        }
        WouldBlock => "another process keeps the directory locked",
        _ => "choose another directory",
    }
}

async fn accept(house: Arc<House>, listener: Listener, source: Arc<dyn Source>) {
    let closing = house.drain.closing();
    let mut complaints = Complaints::default();
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            accepted = listener.accept(&mut complaints) => accepted,
        };
        let most = house.pools.config().listen.max_logins;
        let guest = tokio::select! {
            biased;
            () = closing.cancelled() => house.lobby.admit(usize::MAX).await,
            guest = house.lobby.admit(most) => guest,
        };
        arrival(&house, stream, peer, guest, &source);
    }
    // The kernel has taken these already, and would reset them.
    for (stream, peer) in listener.close().await {
        let guest = house.lobby.admit(usize::MAX).await;
        arrival(&house, stream, peer, guest, &source);
    }
}

fn arrival(
    house: &Arc<House>,
    stream: Stream,
    peer: String,
    guest: (Guest, SentAway),
    source: &Arc<dyn Source>,
) {
    let token = house.tasks.token();
    tokio::spawn(connection(house.clone(), stream, peer, guest, source.clone(), token));
}

/// One more session, while it is there.
struct Counted(Watched);

/// Counts a panic while it is there.
struct Watched(Arc<House>);

impl Counted {
    /// `None` = there are as many as there may be (B18).
    fn new(house: &Arc<House>, limit: usize) -> Option<Counted> {
        let before = house.clients.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Watched(house.clone()));
        (before < limit).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.pools.metrics.panics.inc();
        }
    }
}

/// `here` keeps the process from leaving before the login is over.
async fn connection(
    house: Arc<House>,
    stream: Stream,
    peer: String,
    (guest, sent_away): (Guest, SentAway),
    source: Arc<dyn Source>,
    here: TaskTrackerToken,
) {
    let _watched = Watched(house.clone());
    let limit = house.pools.config().listen.max_clients;
    let seat = OnceLock::new();
    let visitor = Visitor {
        pools: &house.pools,
        registry: &house.registry,
        origin: stream.origin(),
        certified: None,
        peer: &peer,
        // PostgreSQL has none over Unix sockets.
        tls: house.pools.tls().load().clients.clone().filter(|_| matches!(stream, Stream::Tcp(_))),
        protection: None,
        guest: &guest,
        deadline: crate::clock::now() + house.pools.config().listen.login_timeout,
        damper: &house.damper,
        sit: &|| Counted::new(&house, limit).is_some_and(|counted| seat.set(counted).is_ok()),
    };
    let arrival = tokio::select! {
        arrival = arrive(stream, visitor, sent_away) => arrival,
        () = too_late(&house) => None,
    };
    let Some(arrival) = arrival else { return };
    match arrival {
        // One more of those who have not logged in, until it is dealt with.
        Arrival::Cancel { from, pid, key } => {
            cancel::request(&house.registry, &house.pools.metrics, pid, &key).await;
            drop((from, guest));
        }
        Arrival::Console(stream, greeting, keeper) => {
            // The console sees the process leave.
            drop(here);
            serve_console(stream, (greeting, keeper), source, house.drain.stopped()).await;
        }
        Arrival::Replication(mut passed) => {
            let seat = seat.into_inner();
            house.tasks.spawn(async move {
                passed.relay.serve().await;
                drop((passed, seat));
            });
        }
        // The login's memory is freed with this task; a session keeps only what it needs.
        Arrival::Session(logged_in) => {
            house.tasks.spawn(serve(logged_in, seat.into_inner()));
        }
    }
}

/// Ready some time after the process has begun to close. Cancel safe.
async fn too_late(house: &House) {
    house.drain.closing().cancelled().await;
    tokio::time::sleep(LAST_LOGIN).await;
}

async fn serve(mut logged_in: Box<LoggedIn<Stream>>, seat: Option<Counted>) {
    logged_in.session.serve().await;
    drop((logged_in, seat));
}

impl House {
    /// Waits until no session is left. Cancel safe.
    pub async fn empty(&self) {
        // Sessions that are being accepted still come; closed for good only by who stops accepting.
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The console, greeted and served until it is left.
async fn serve_console(
    mut stream: Stream,
    (mut greeting, keeper): (BytesMut, Keeper),
    source: Arc<dyn Source>,
    stopped: tokio_util::sync::CancellationToken,
) {
    greet_console(&mut greeting);
    let served = async {
        stream.write_all(&greeting).await?;
        console::serve(stream, keeper, source, stopped).await
    };
    if let Err(error) = served.await {
        tracing::debug!(%error, "a console connection broke");
    }
}

/// What ends a login to the console. Nothing it runs can be cancelled, so its key is nobody's.
fn greet_console(out: &mut BytesMut) {
    for (name, value) in console::PARAMETERS {
        parameter_status(out, name.as_bytes(), value.as_bytes());
    }
    message(out, b'K', |out| out.extend_from_slice(&[0; 8]));
    ready_for_query(out, TxStatus::Idle);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of what such a function returns.
    fn size<A, B, C, D, E, F, R>(_: fn(A, B, C, D, E, F) -> R) -> usize {
        size_of::<R>()
    }

    /// It is moved some seven times until it runs, and there may be `listen.max_logins` of them.
    #[test]
    fn a_login_is_small() {
        assert!(size(connection) <= 5_632, "{} bytes", size(connection));
    }
}
