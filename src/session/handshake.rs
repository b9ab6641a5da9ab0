//! From the first byte to ReadyForQuery: start-up packets, authentication, the greeting.
//!
//! Everything before login is hostile input: every read is under the one login deadline, and what is
//! held is bounded by PostgreSQL's own limits (10,000 bytes of start-up packet, 65,535 of SASL).
//!
//! A wrong password and an unknown user look alike, wait alike if they come too often, and nothing about databases is said to anybody
//! who has not proved who he is.

pub mod damper;
mod greeting;
mod identity;
mod intake;
pub mod lobby;
mod means;
mod replication;

use super::passthrough::{Passed, Passthrough};
use super::policy::Masks;
use super::registry::{CancelKey, Registered, Registry};
use super::reply::{self, Fault};
use super::tracker::Tracker;
use super::virtual_tx::VirtualTx;
use super::{Linked, Session, Socket, Stretch, locals};
use crate::auth::Passport;
use crate::backend::Stance;
use crate::book::{Claim, SessionId, Warning};
use crate::clock;
use crate::config::{CONSOLE, Keeper, PoolMode, Right};
use crate::metrics::Login;
use crate::net::lane::Lane;
use crate::net::stream::Origin;
use crate::net::tls::{Acceptor, Protection, Upgrade};
use crate::pool::cell::Cell;
use crate::pool::{Pool, Pools};
use crate::state::Set;
use crate::state::fence::Fence;
use crate::statements::Planner;
use crate::statements::session::Statements;
use crate::tag::{self, Key, Scope, Tag, Tags};
use crate::wire::backend::message;
use crate::wire::error::Report;
use crate::wire::startup::{First, Replication, Startup};
use bytes::{BufMut, BytesMut};
use damper::Damper;
use identity::Identity;
use intake::Intake;
use lobby::{Guest, SentAway};
use replication::Opened;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::AsyncWriteExt;

/// What a connection turned out to be.
pub enum Arrival<S> {
    /// A client session, logged in and greeted.
    Session(Box<LoggedIn<S>>),
    /// A replication connection, logged in and greeted.
    Replication(Box<Passed<S>>),
    /// The console, logged in; its greeting is still to be sent.
    Console(S, BytesMut, Keeper),
    /// A cancel request.
    Cancel {
        /// Its connection, to be closed when it has been dealt with.
        from: S,
        /// Of BackendKeyData.
        pid: u32,
        /// Of BackendKeyData.
        key: CancelKey,
    },
}

/// A session and what its existence holds.
pub struct LoggedIn<S> {
    /// The session, to be served.
    pub session: Session<S>,
    /// Its cancel key.
    pub registered: Registered,
    /// Its place in the book.
    pub seat: Seat,
}

/// A session's place among its tenant's (B18), given back when dropped.
pub struct Seat {
    pools: Arc<Pools>,
    id: SessionId,
    tenant: Arc<str>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.pools.logout(self.id, &self.tenant);
    }
}

/// Why a login ends.
pub(super) enum Refused {
    /// The client is told, FATAL.
    Told(Report),
    /// The same, but not always at once: it is not who it says.
    Unproved(Report),
    /// An ErrorResponse of the server's, passed on as FATAL.
    Server(bytes::Bytes),
    /// Without a word: a socket error, or what PostgreSQL answers with silence.
    Silent,
}

impl From<io::Error> for Refused {
    fn from(_: io::Error) -> Self {
        Refused::Silent
    }
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Refused::Told(reply::fault(&fault))
    }
}

/// Who connects, and to what.
pub struct Visitor<'a> {
    /// Every pool.
    pub pools: &'a Arc<Pools>,
    /// Cancel keys.
    pub registry: &'a Arc<Registry>,
    /// Address of the client, for views.
    pub peer: &'a str,
    /// From where it connects.
    pub origin: Origin,
    /// The name in the certificate that it has shown.
    pub certified: Option<String>,
    /// The encryption that it may have.
    pub tls: Option<Acceptor>,
    /// The one that it has.
    pub protection: Option<Protection>,
    /// Its place among those who have not proved who they are.
    pub guest: &'a Guest,
    /// When its login must be over.
    pub deadline: Instant,
    /// Holds back answers to those who fail.
    pub damper: &'a Damper,
    /// Takes a seat among the sessions; `false` = there is none left.
    pub sit: &'a (dyn Fn() -> bool + Send + Sync),
}

/// Why a login is over that nobody has ended.
enum Over {
    Timeout,
    Crowded,
}

/// The bounds on a login, around a part of it.
struct Bounds {
    deadline: tokio::time::Instant,
    sent_away: SentAway,
}

impl Bounds {
    async fn within<T>(&mut self, part: Pin<&mut impl Future<Output = T>>) -> Result<T, Over> {
        tokio::select! {
            biased;
            done = part => Ok(done),
            () = tokio::time::sleep_until(self.deadline) => Err(Over::Timeout),
            () = self.sent_away.wait() => Err(Over::Crowded),
        }
    }
}

/// Brings a connection to its first ReadyForQuery, or tells the client why not. `None` = it is over.
/// Not cancel safe; takes until the visitor's deadline at most, and less if it is sent away.
pub async fn arrive<S: Socket + Upgrade>(
    mut stream: S,
    mut visitor: Visitor<'_>,
    sent_away: SentAway,
) -> Option<Arrival<S>> {
    let mut bounds = Bounds { deadline: visitor.deadline.into(), sent_away };
    let mut intake = Intake::default();
    let met = loop {
        let met = bounds.within(pin!(meet(&mut stream, &mut intake, &visitor))).await;
        match met {
            Ok(Ok(Met::Tls { acceptor, direct })) => {
                stream = upgrade(stream, &acceptor, direct, &mut bounds, &visitor).await?;
                visitor.protection = stream.protection();
                visitor.guest.go_on();
                visitor.certified = stream.common_name();
            }
            Ok(Ok(Met::In(come))) => break Ok(come),
            Ok(Err(refused)) => break Err(refused),
            Err(Over::Timeout) => break Err(Fault::LoginTimeout.into()),
            Err(Over::Crowded) => {
                break Err(Fault::Crowded { limit: visitor.pools.config().listen.max_logins }.into());
            }
        }
    };
    let refused = match met {
        Ok(Come::Cancel { pid, key }) => return Some(Arrival::Cancel { from: stream, pid, key }),
        Ok(Come::Console(out, keeper)) => return Some(Arrival::Console(stream, out, keeper)),
        Ok(Come::Session(part)) => {
            visitor.pools.metrics.logins.inc(Login::Ok);
            visitor.pools.logged_in(part.pool.id);
            return Some(Arrival::Session(Box::new(part.with(stream, &visitor))));
        }
        Ok(Come::Replication(opened)) => {
            visitor.pools.metrics.logins.inc(Login::Ok);
            let Opened { backend, cell, registered, seat, leftover, greeting } = *opened;
            let said = (&leftover[..], &greeting[..]);
            let relay = Passthrough::new(stream, backend, cell, &visitor.pools.buffers, said);
            return Some(Arrival::Replication(Box::new(Passed { relay, registered, seat })));
        }
        Err(refused) => refused,
    };
    Box::pin(turn_away(stream, &visitor, refused)).await;
    None
}

/// The last words to who is not let in.
async fn turn_away<S: Socket>(mut stream: S, visitor: &Visitor<'_>, refused: Refused) {
    let logins = &visitor.pools.metrics.logins;
    let unproved = matches!(refused, Refused::Unproved(_));
    let mut told = BytesMut::new();
    match refused {
        Refused::Told(report) | Refused::Unproved(report) => {
            logins.inc(reply::login_result(&report));
            tracing::info!(client = visitor.peer, code = report.code, message = %report.message, "login refused");
            if unproved && !visitor.damper.hold(&mut stream, visitor, &report.message).await {
                return;
            }
            report.encode(&mut told);
        }
        Refused::Server(body) => {
            logins.inc(Login::Upstream);
            greeting::forward_fatal(&body, &mut told);
        }
        Refused::Silent => return,
    }
    let goodbye = async {
        stream.write_all(&told).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), goodbye).await;
}

/// The TLS handshake. `None` = it is over: nobody is there to be told in the clear, or could be in the other way.
async fn upgrade<S: Socket + Upgrade>(
    stream: S,
    acceptor: &Acceptor,
    direct: bool,
    bounds: &mut Bounds,
    visitor: &Visitor<'_>,
) -> Option<S> {
    let failed = match bounds.within(Box::pin(stream.upgrade(acceptor, direct)).as_mut()).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => {
            tracing::info!(client = visitor.peer, %error, "TLS handshake failed");
            Login::Tls
        }
        Err(Over::Timeout) => Login::Timeout,
        Err(Over::Crowded) => Login::Limit,
    };
    visitor.pools.metrics.logins.inc(failed);
    None
}

enum Met {
    /// What the client has come for.
    In(Come),
    /// It waits for a handshake, or has begun one (`direct`).
    Tls { acceptor: Acceptor, direct: bool },
}

enum Come {
    Session(Box<Prepared>),
    Replication(Box<Opened>),
    Console(BytesMut, Keeper),
    Cancel { pid: u32, key: CancelKey },
}

/// A session as far as it exists without its socket.
struct Prepared {
    pool: Arc<Pool>,
    cell: Arc<Cell>,
    suffix: Option<Arc<str>>,
    tags: Tags,
    settings: Set,
    lease: Option<crate::pool::lease::Lease>,
    registered: Registered,
    seat: Seat,
    leftover: BytesMut,
    greeting: BytesMut,
    stance: Stance,
}

impl Prepared {
    fn with<S: Socket>(self, client: S, visitor: &Visitor<'_>) -> LoggedIn<S> {
        let rules = self.pool.rules();
        let buffers = &visitor.pools.buffers;
        let mut session = Session {
            pools: visitor.pools.clone(),
            config: visitor.pools.config(),
            statements: Statements::counted(self.cell.prepared.clone()),
            cell: self.cell,
            suffix: self.suffix,
            tags: self.tags,
            startup: self.settings.clone(),
            settings: self.settings,
            unhurried: Set::BASE,
            mode: rules.mode,
            reset: rules.reset,
            max_prepared: super::prepared_cap(&rules),
            lazy_begin: super::begins_lazily(&rules, rules.mode),
            planner: (Set::BASE, Planner::default()),
            policy: Masks::of(&rules, rules.mode, &visitor.pools.config()),
            guarded: super::fence::guards(&rules, &visitor.pools.config()),
            fence: self.pool.fence(),
            violations: 0,
            told: self.stance,
            verify: visitor.pools.config().isolation.verify.unwrap_or(0),
            park: super::park::Watch::of(&rules, rules.mode, &visitor.pools.config()),
            reads_statements: super::claim::reads_statements(&visitor.pools.config()),
            first: super::claim::First::default(),
            usual: None,
            is_usual: false,
            now: clock::now(),
            client,
            up: Stretch::new(Lane::with(buffers.clone(), &self.leftover)),
            down: Stretch::new(Lane::new(buffers.clone())),
            glanced: None,
            queued: None,
            tracker: Tracker::default(),
            tx: VirtualTx::default(),
            locals: locals::Locals::default(),
            lease: None,
            linked: Linked::default(),
            mixed: None,
            warned: None,
            unflushed: BytesMut::new(),
            draining: false,
            stalled: false,
            silent: false,
            scratch: BytesMut::new(),
            pool: self.pool,
        };
        session.down.lane.put(&self.greeting);
        if let Some(lease) = self.lease {
            session.begin_session_mode(lease);
        }
        LoggedIn { session, registered: self.registered, seat: self.seat }
    }
}

async fn meet<S: Socket + Upgrade>(
    stream: &mut S,
    intake: &mut Intake,
    visitor: &Visitor<'_>,
) -> Result<Met, Refused> {
    let tls = visitor.tls.as_ref().filter(|_| visitor.protection.is_none());
    if let Some(acceptor) = tls
        && intake.is_new()
        && stream.begins_with_tls().await?
    {
        intake.has_tls();
        return Ok(Met::Tls { acceptor: acceptor.clone(), direct: true });
    }
    let startup = loop {
        let first = intake.first(stream).await?;
        visitor.guest.go_on();
        match first {
            // Each at most once. Whoever did not wait for the answer might have meant it to be
            // encrypted, or is somebody in between (CVE-2021-23214).
            First::Ssl | First::GssEnc => {
                let tls = tls.filter(|_| matches!(first, First::Ssl));
                stream.write_all(if tls.is_some() { b"S" } else { b"N" }).await?;
                if intake.has_more() {
                    return Err(Fault::EarlyData.into());
                }
                if let Some(acceptor) = tls {
                    return Ok(Met::Tls { acceptor: acceptor.clone(), direct: false });
                }
            }
            First::Cancel { pid, key } => return Ok(Met::In(Come::Cancel { pid, key })),
            First::Startup(startup) => break startup,
        }
    };
    if tls.is_some_and(|acceptor| acceptor.required) {
        return Err(Fault::TlsRequired.into());
    }
    let mut out = BytesMut::new();
    if startup.must_negotiate() {
        negotiate(&startup, &mut out);
    }
    let Identity { user, suffix, passport } =
        identity::prove(stream, intake, visitor, &startup, &mut out).await?;
    visitor.guest.stay();
    // Who looks after a crowded house must come in.
    if startup.database == CONSOLE && startup.replication == Replication::No {
        let keeper = Keeper { user: user.into(), local: visitor.origin.is_local() };
        return if keeper.rights(&visitor.pools.config()).has(Right::View) {
            Ok(Met::In(Come::Console(out, keeper)))
        } else {
            Err(Fault::ConsoleDenied { user: (*keeper.user).into() }.into())
        };
    }
    if !(visitor.sit)() {
        return Err(Fault::TooManyClients { limit: visitor.pools.config().listen.max_clients }.into());
    }
    may_set(visitor, &startup)?;
    if startup.replication != Replication::No {
        let leftover = std::mem::take(intake).leftover();
        let opened = replication::open(visitor, startup, (user, passport), suffix, leftover, out).await?;
        return Ok(Met::In(Come::Replication(Box::new(opened))));
    }
    let leftover = std::mem::take(intake).leftover();
    let prepared = prepare(visitor, startup, (user, passport), suffix, leftover, out).await?;
    Ok(Met::In(Come::Session(Box::new(prepared))))
}

/// NegotiateProtocolVersion: the version we speak in full, and the options we do not know.
fn negotiate(startup: &Startup, out: &mut BytesMut) {
    message(out, b'v', |out| {
        out.put_u32(0x0003_0000 | u32::from(startup.agreed_minor()));
        out.put_u32(startup.extensions.len() as u32);
        for name in &startup.extensions {
            out.extend_from_slice(name.as_bytes());
            out.put_u8(0);
        }
    });
}

/// The tenant context is not a client's to set, in whatever form its first packet says it.
fn may_set(visitor: &Visitor<'_>, startup: &Startup) -> Result<(), Refused> {
    let database = visitor.pools.config().database(&startup.database);
    let Some(fence) = database.and_then(|database| Fence::of(&database.pool.tenant_context)) else {
        return Ok(());
    };
    let reserved = |name: &str| fence.keys().any(|key| key.eq_ignore_ascii_case(name));
    match startup.parameters.iter().find(|parameter| reserved(&parameter.name)) {
        Some(parameter) => Err(Refused::Told(reply::isolation::reserved_at_login(&parameter.name))),
        None => Ok(()),
    }
}

async fn prepare(
    visitor: &Visitor<'_>,
    startup: Startup,
    (user, passport): (String, Option<Passport>),
    suffix: Option<Arc<str>>,
    leftover: BytesMut,
    mut out: BytesMut,
) -> Result<Prepared, Refused> {
    let pools = visitor.pools;
    let no_database = || Fault::NoSuchDatabase { database: startup.database.as_str().into() };
    let pool = pools.pool(&startup.database, &user, passport).ok_or_else(no_database)?;
    let settings = settings(visitor, &startup)?;
    let cell = Arc::new(new_cell(visitor, &startup, pool.database.clone(), pool.user.clone()));
    let (tags, tag, warning, seat) = admit(visitor, &cell, Some(&pool), &startup, suffix.as_deref())?;

    let session_mode = pool.rules().mode == PoolMode::Session;
    // A tenth of what is left is for saying why there is no backend.
    let within = visitor.deadline.saturating_duration_since(clock::now()).mul_f64(0.9);
    let claim = Claim {
        session: cell.id,
        pool: pool.id,
        tag: tag.clone(),
        login: !session_mode,
        within: Some(within),
        resumes: None,
        fingerprint: 0,
        statement: None,
    };
    let (told, lease) = greeting::greet(pools, &pool, &claim, &settings).await?;
    // In session mode the client may use the process id with pg_terminate_backend and the like.
    let pid = lease.as_ref().map_or(cell.id.process_id(), |(_, pid)| *pid as u32);
    let registered = welcome(visitor, &startup, &cell, pid, &told.statuses, warning, &mut out);
    cell.set_waiting(false, &tag, clock::now());
    Ok(Prepared {
        pool,
        cell,
        suffix,
        tags,
        settings,
        lease: lease.map(|(lease, _)| lease),
        registered,
        seat,
        leftover,
        greeting: out,
        stance: told.stance,
    })
}

/// What others see of a session that has proved who it is.
fn new_cell(visitor: &Visitor<'_>, startup: &Startup, database: Arc<str>, user: Arc<str>) -> Cell {
    let application = startup.parameter("application_name").unwrap_or_default();
    let names = (database, user, String::from_utf8_lossy(application).into());
    let mut cell = Cell::new(visitor.pools.next_session(), names, visitor.peer.into(), clock::now());
    cell.protection = visitor.protection;
    cell
}

/// Makes the session known to cancel requests, and appends what its client is told last of all.
fn welcome(
    visitor: &Visitor<'_>,
    startup: &Startup,
    cell: &Arc<Cell>,
    pid: u32,
    parameters: &bytes::Bytes,
    warning: Option<Warning>,
    out: &mut BytesMut,
) -> Registered {
    let key_len = if startup.agreed_minor() >= 2 { 32 } else { 4 };
    let (registered, key) = visitor.registry.register(pid, key_len, cell);
    if let Some(warning) = warning {
        reply::warning(&warning).encode(out);
    }
    greeting::encode(parameters, pid, &key, out);
    registered
}

/// A session's tags, and its place among its tenant's, perhaps with a warning.
fn admit(
    visitor: &Visitor<'_>,
    cell: &Arc<Cell>,
    pool: Option<&Pool>,
    startup: &Startup,
    suffix: Option<&str>,
) -> Result<(Tags, Arc<Tag>, Option<Warning>, Seat), Refused> {
    let pools = visitor.pools;
    let mut tags = startup_tags(startup)?;
    let identity = tag::Identity {
        user: &cell.user,
        database: &cell.database,
        application_name: &cell.application,
        user_suffix: suffix,
    };
    let (config, now) = (pools.config(), clock::now());
    tags.resolve(&config.tag, &identity, now);
    if let Some(pool) = pool {
        tags.share(&mut pool.tag.lock());
    }
    let tag = tags.resolve(&config.tag, &identity, now).clone();
    let warning =
        pools.login(cell, &tag.tenant).map_err(|refusal| Refused::Told(reply::refusal_at_login(&refusal)))?;
    let seat = Seat { pools: pools.clone(), id: cell.id, tenant: tag.tenant.clone() };
    Ok((tags, tag, warning, seat))
}

/// The client's settings, interned. `application_name` always belongs to them: a backend must not
/// keep the name of the session before.
fn settings(visitor: &Visitor<'_>, startup: &Startup) -> Result<Set, Refused> {
    let nameless = [("application_name", &b""[..])];
    let given = startup.parameters.iter().map(|parameter| (&*parameter.name, &parameter.value[..]));
    let interned = visitor.pools.settings().intern(nameless.into_iter().chain(given));
    interned.map_err(|error| Refused::Told(reply::bad_setting(&error)))
}

fn startup_tags(startup: &Startup) -> Result<Tags, Refused> {
    let mut tags = Tags::default();
    for (name, value) in &startup.tags {
        let key = Key::of(name).ok_or_else(|| Refused::Told(reply::unknown_tag(name).fatal()))?;
        let set = tags.set(Scope::Startup, key, Some(value), clock::now());
        set.map_err(|error| Refused::Told(reply::bad_tag(&error).fatal()))?;
    }
    Ok(tags)
}
