//! The nouns of the configuration.

use super::Parking;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Everything a process needs to know, immutable; a reload makes a new one.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[listen]`
    pub listen: Listen,
    /// `[admin]`
    pub admin: Admin,
    /// `[auth]`
    pub auth: Auth,
    /// `[user.NAME]`
    pub users: BTreeMap<String, User>,
    /// `[database.NAME]`, the wildcard `"*"` left out.
    pub databases: BTreeMap<String, Arc<Database>>,
    /// `[database."*"]`
    pub any_database: Option<Arc<Database>>,
    /// `[pool]`: what every database's pool keys start from.
    pub pool: PoolRules,
    /// `[server]`
    pub server: Server,
    /// `[tag]`
    pub tag: TagRules,
    /// `[budget.*]`
    pub budget: Budgets,
    /// `[tenant.NAME.budget]` and its like, and `[mode] routes`.
    pub scopes: super::Scopes,
    /// `[mode] warned_since`: since when budgets have been in mode warn, in days since 1970-01-01.
    pub warned_since: Option<u64>,
    /// `[tenant."*"]`
    pub tenant_default: TenantRule,
    /// `[tenant.NAME]`
    pub tenants: BTreeMap<String, TenantRule>,
    /// `[class.NAME]`, the built-in ones included.
    pub classes: BTreeMap<String, super::ClassRule>,
    /// `[isolation]`
    pub isolation: Isolation,
    /// `[request]`
    pub request: Requests,
    /// `[leak]`
    pub leak: Leak,
    /// `[drain]`
    pub drain: Drain,
    /// `[log]`
    pub log: Log,
}

/// Where clients connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// TCP addresses.
    pub addresses: Vec<SocketAddr>,
    /// Directory for `.s.PGSQL.<port>`; `None` = no Unix socket.
    pub unix_dir: Option<PathBuf>,
    /// Threads that serve sessions, at least 1.
    pub workers: usize,
    /// B18: client sessions in all; always enforced.
    pub max_clients: usize,
    /// From accept to ready, every read before login included.
    pub login_timeout: Duration,
}

/// The HTTP side and who may use the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// HTTP address; `None` = no HTTP.
    pub address: Option<SocketAddr>,
    /// Users that may open the console database `bursar`. Empty = any user with method trust on
    /// loopback only, otherwise nobody.
    pub users: Vec<String>,
}

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// Nobody is asked.
    Trust,
    /// Clear-text password.
    Plain,
    /// PostgreSQL's md5 challenge.
    Md5,
    /// SCRAM-SHA-256 (RFC 5802, RFC 7677).
    ScramSha256,
}

/// `[auth]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Auth {
    /// For every client.
    pub method: AuthMethod,
}

/// A secret that never shows in Debug, logs or views, and is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(zeroize::Zeroizing<String>);

impl Secret {
    /// Wraps a secret text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Secret(zeroize::Zeroizing::new(text))
    }

    /// The text itself; for comparison and key derivation only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What a stored secret is, by its first characters, as PostgreSQL tells (`get_password_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordKind {
    /// A clear password.
    Clear,
    /// `md5` and 32 hexadecimal digits.
    Md5,
    /// A SCRAM-SHA-256 verifier.
    Scram,
}

impl Secret {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> PasswordKind {
        let text = self.expose();
        let hash = text.strip_prefix("md5").filter(|hex| hex.len() == 32);
        if text.starts_with("SCRAM-SHA-256$") {
            PasswordKind::Scram
        } else if hash.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())) {
            PasswordKind::Md5
        } else {
            PasswordKind::Clear
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// `[user.NAME]`: what Bursar knows of a client role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// A clear password, `md5…` hash, or SCRAM verifier (`SCRAM-SHA-256$…`), from the file or `password_file`.
    pub password: Option<Secret>,
    /// When a lease of this role ends, whatever its database's table says; `None` = as that says.
    pub mode: Option<PoolMode>,
}

/// `[database.NAME]`: where a database lives and how its pools behave.
#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    /// Host name, address, or directory of a Unix socket (starts with `/`).
    pub host: String,
    /// Port.
    pub port: u16,
    /// Name on the server; `None` = the name the client asked for.
    pub dbname: Option<String>,
    /// Role on the server; `None` = the client's own.
    pub user: Option<String>,
    /// Password towards the server; `None` = the `[user.*]` password, if it is a clear one.
    pub password: Option<Secret>,
    /// Pool keys, `[pool]` overlaid by this table.
    pub pool: PoolRules,
}

/// When a lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// With the client session.
    Session,
    /// With the transaction.
    Transaction,
    /// With the statement: transaction blocks are refused.
    Statement,
    /// With the transaction; and what resets a session's settings ends the request that it worked for.
    Request,
}

/// Which idle backend is used next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// The warmest one.
    Lifo,
    /// Each in turn.
    RoundRobin,
}

/// When a backend is scrubbed between two sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// When the session left state that was seen.
    Dirty,
    /// Always, for applications whose functions change settings unseen.
    Always,
}

/// What becomes of a lease when a statement leaves something on its backend that cannot be carried to
/// another one (wire.md C3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The lease lasts as long as what was left.
    #[default]
    Pin,
    /// The lease ends with its transaction, and what was left is cleared.
    Scrub,
    /// The statement is refused before the server sees it.
    Refuse,
}

/// A [`Policy`] for each kind of thing a statement may leave, by the names that pins have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policies {
    /// LISTEN.
    pub listen: Policy,
    /// A temporary table, view or sequence.
    pub temp_table: Policy,
    /// A session-level advisory lock.
    pub advisory_lock: Policy,
    /// `DECLARE … WITH HOLD`.
    pub hold_cursor: Policy,
    /// SQL-level PREPARE.
    pub prepare: Policy,
    /// LOAD.
    pub load: Policy,
}

/// Where the tenant that row-level security is told comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContextSource {
    /// The tenant tag, as a client, its start-up packet or its user name's suffix has named it; the plain
    /// login role is no tenant.
    #[default]
    Tenant,
    /// `bursar.user_id`
    UserId,
    /// The login role: one role for each tenant.
    User,
}

/// How the tenant context is kept (wire.md C4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContextPolicy {
    /// Not at all.
    Off,
    /// Set when another tenant's lease begins.
    Trusted,
    /// Set at every lease, taken back and verified at its end.
    #[default]
    Strict,
}

/// `[tenant_context]`: what Bursar sets for row-level security (budgets.md §4.5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantContext {
    /// The setting that policies read, in lower case; `None` = no context at all.
    pub key: Option<String>,
    /// What its value is.
    pub from: ContextSource,
    /// How it is kept.
    pub policy: ContextPolicy,
    /// A setting that gets the request tag as well.
    pub request_key: Option<String>,
    /// What tenants are signed with, for policies that check it.
    pub secret: Option<Secret>,
}

impl TenantContext {
    /// The setting, where one is to be kept.
    #[must_use]
    pub fn kept(&self) -> Option<&str> {
        self.key.as_deref().filter(|_| self.policy != ContextPolicy::Off)
    }
}

/// What becomes of a client that asks for a replication connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationRule {
    /// It is refused.
    Refuse,
    /// It gets a server connection of its own, outside the pool.
    Pass,
}

/// The pool of one (database, user).
#[derive(Debug, Clone, PartialEq)]
pub struct PoolRules {
    /// When a lease ends.
    pub mode: PoolMode,
    /// Backends.
    pub size: usize,
    /// Extra backends while clients wait.
    pub overflow: usize,
    /// B7: for how long at a time; `None` = as long as they wait.
    pub overflow_time: Option<Duration>,
    /// Backends kept open while nobody asks.
    pub min_idle: usize,
    /// Slots for short work.
    pub express: super::Express,
    /// Order of reuse.
    pub reuse: Reuse,
    /// When to scrub.
    pub reset: Reset,
    /// B17: leases kept beyond their transaction at once, of all tenants; in the mode of the tenant that
    /// would have one more.
    pub max_pins: Share,
    /// What may be left on a backend in transaction and statement mode.
    pub policy: Policies,
    /// Whether replication connections are let in.
    pub replication: ReplicationRule,
    /// V2 (budgets.md §2.7): a statement of a session without a tenant is refused.
    pub require_tenant_context: bool,
    /// `[tenant_context]`, which a `[database.NAME.tenant_context]` overrides.
    pub tenant_context: TenantContext,
    /// B9: how long a checkout waits before ERROR 53300; always enforced.
    pub max_wait: Duration,
    /// Waiters in this pool (B15); always enforced.
    pub queue: usize,
    /// For how long nobody may have made progress before that is called a deadlock; `None` = never.
    pub deadlock_after: Option<Duration>,
    /// Extra backends for five seconds when the pool is deadlocked; a quarter of `size` at most.
    pub deadlock_overflow: usize,
    /// An idle backend is closed after this; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// A backend is retired after this, ±10 % jitter; `None` = never.
    pub lifetime: Option<Duration>,
    /// From dial to ready.
    pub connect_timeout: Duration,
    /// How long a running statement may finish after its client has gone (wire.md A6).
    pub client_gone_grace: Duration,
    /// Shared prepared statements one backend may have; 0: they are not shared.
    pub max_prepared: usize,
    /// In transaction mode a BEGIN waits for the first statement (budgets.md §4.4).
    pub lazy_begin: bool,
}

/// `[server]`: the PostgreSQL server as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Backends over all pools of this process.
    pub max_backends: usize,
    /// Dials in flight at once, per server.
    pub connect_parallel: usize,
}

/// One place a tag may come from, in `[tag]`'s lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagSource {
    /// `set:bursar.x`
    Set,
    /// `startup:bursar.x` (start-up packet or `options`)
    Startup,
    /// `comment:KEY`
    Comment(String),
    /// `user_suffix`: what follows the last `.` of the user name.
    UserSuffix,
    /// `user`
    User,
    /// `application_name`
    ApplicationName,
    /// `database`
    Database,
}

/// `[tag]`: budgets.md §2.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRules {
    /// First source that has a value names the tenant.
    pub tenant: Vec<TagSource>,
    /// First source that has a value names the request.
    pub request: Vec<TagSource>,
    /// Cut recognised comments from the text before forwarding.
    pub strip_comments: bool,
    /// Stale-tag rule: a SET request tag unused for this long is dropped.
    pub idle_ttl: Duration,
}

/// What a budget does when it is exceeded (budgets.md §2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Compute and count.
    Observe,
    /// And tell: a NoticeResponse and an event.
    Warn,
    /// And act.
    Enforce,
}

impl Mode {
    /// As in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Observe => "observe",
            Mode::Warn => "warn",
            Mode::Enforce => "enforce",
        }
    }
}

/// `[budget.request]`, `[budget.transaction]` and `[budget.statement]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budgets {
    /// B1: leases one request may hold at once.
    pub max_concurrent: u32,
    /// Mode of B1.
    pub max_concurrent_mode: Mode,
    /// B2: leases of one request in all, from which on it is told.
    pub leases_warn: Option<u32>,
    /// B2: leases of one request in all; one more is refused. A client's own `SET bursar.max_leases`
    /// is always enforced.
    pub leases_reject: Option<u32>,
    /// Mode of B2.
    pub leases_mode: Mode,
    /// B9, where a scope has its own; `None` = the pool's.
    pub max_wait: Option<Duration>,
    /// B3: time in which statements of one request ran, of all its leases; 57014.
    pub db_time: Timed,
    /// B10: transaction age; 25P04.
    pub age: Timed,
    /// B11: idle in transaction; 25P03. Its `abort` holds while others wait.
    pub idle: Timed,
    /// B11: when it acts while nobody waits.
    pub idle_abort_alone: Option<Duration>,
    /// B11 warns only if others wait.
    pub idle_warn_only_if_waiters: bool,
    /// B12: how long one statement runs; 57014.
    pub statement: Timed,
    /// B13: how long a client leaves its result where it is; 57014.
    pub stall: Timed,
    /// `[parking]`
    pub parking: Parking,
}

/// A budget of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timed {
    /// From when on it is told; `None` = never.
    pub warn: Option<Duration>,
    /// When it acts, in mode enforce; `None` = never.
    pub abort: Option<Duration>,
    /// Its mode.
    pub mode: Mode,
    /// Whether it acts without having been in mode warn before (budgets.md §2.4). Only where acting
    /// destroys work.
    pub force: bool,
}

impl Budgets {
    /// Sets the mode of all of them.
    pub(super) fn set_modes(&mut self, mode: Mode) {
        for each in [
            &mut self.max_concurrent_mode,
            &mut self.leases_mode,
            &mut self.db_time.mode,
            &mut self.age.mode,
            &mut self.idle.mode,
            &mut self.statement.mode,
            &mut self.stall.mode,
        ] {
            *each = mode;
        }
    }
}

/// A tenant's share of a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// So many backends.
    Count(u32),
    /// Percent of the pool's size, rounded up, at least 1.
    Percent(f64),
}

/// `[tenant.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct TenantRule {
    /// B4: leases at once.
    pub max: Share,
    /// B5: leases that are given to this tenant before others get their shares, in each pool.
    pub min: u32,
    /// B6: its share of backend-seconds, against the weights of others that wait.
    pub weight: u32,
    /// B8: waiters.
    pub queue: u32,
    /// B17: leases kept beyond their transaction at once, in one pool.
    pub max_pins: u32,
    /// B18: client sessions of this tenant.
    pub max_sessions: u32,
    /// Mode of B4, B8, B17 and B18.
    pub mode: Mode,
    /// V5: login roles that may act for it; none named: any.
    pub users: Vec<String>,
}

/// `[isolation]`: budgets.md §2.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isolation {
    /// What becomes of V3, V6 and V7. The others act wherever something else asks for them.
    pub mode: Mode,
    /// V4: one lease in so many is followed by a look at what it left; `None` = never.
    pub verify: Option<u32>,
}

/// `[request]`: the life of requests (budgets.md §2.1, §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requests {
    /// A transaction that asks so soon after the last one of its request goes before new requests of its
    /// tenant; `None` = never.
    pub continuation: Option<Duration>,
    /// A request that has held nothing and waited for nothing for this long is over.
    pub idle_ttl: Duration,
    /// A request this old is over, by its mode; `None` = at no age.
    pub max_age: Option<Duration>,
    /// What becomes of one that is older.
    pub mode: Mode,
}

/// `[leak]`: budgets.md §5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// A transaction this old, or a statement running this long, is reported; `None` = never.
    pub hold: Option<Duration>,
    /// A transaction idle this long is reported; `None` = never.
    pub idle: Option<Duration>,
    /// A transaction idle this long is a leak if something else says so too; `None` = never.
    pub leaked: Option<Duration>,
    /// A transaction idle this long is a leak whatever else is known; `None` = never.
    pub leaked_alone: Option<Duration>,
    /// A lease that a pin keeps and that does nothing for this long is reported; `None` = never.
    pub pinned: Option<Duration>,
    /// And ended, in mode enforce; `None` = never.
    pub pinned_close: Option<Duration>,
    /// What is reported sooner, or is a leak later, than said above is learnt from each call site.
    pub adaptive: bool,
    /// Whether leaks are ended, or only told.
    pub mode: Mode,
    /// Whether they are without having been in mode warn before (budgets.md §2.4).
    pub force: bool,
    /// Statement texts may appear in reports.
    pub statement_text: bool,
}

/// `[drain]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// From the signal to the end of accepting: not ready, still serving.
    pub notice: Duration,
    /// From the signal to the end, whatever runs.
    pub deadline: Duration,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter.
    pub level: String,
}
