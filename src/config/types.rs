//! The nouns of the configuration, but for those of pools (`pools`), of what has a mode (`budgets`), and of classes
//! (`class`).

use super::Secret;
use super::budgets::{Budgets, Isolation, Leak, Requests, TenantRule};
use super::pools::{PoolMode, PoolRules};
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
    /// `[breaker]`
    pub breaker: BreakerRules,
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
    /// `[tls.*]`
    pub tls: super::Tls,
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
    /// A new process may listen beside this one, which then hands over.
    pub reuse_port: bool,
    /// Threads that serve sessions, at least 1.
    pub workers: usize,
    /// B18: client sessions in all; always enforced.
    pub max_clients: usize,
    /// Connections that have not proved who they are, in all.
    pub max_logins: usize,
    /// From accept to ready, every read before login included.
    pub login_timeout: Duration,
}

/// The HTTP side and who may use the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// HTTP address; `None` = no HTTP.
    pub address: Option<SocketAddr>,
    /// Reload when the configuration file changes.
    pub watch: bool,
    /// Users with every right on the console and over HTTP. Nobody in any of the four lists = this machine is let
    /// in ([`super::Keeper::rights`], [`Config::anonymous_rights`]), and nobody else.
    pub users: Vec<String>,
    /// Users that may see the views.
    pub view: Vec<String>,
    /// Users that may see them and give commands.
    pub act: Vec<String>,
    /// Users that may see them with the texts of statements.
    pub sql: Vec<String>,
    /// Whether `/metrics` is for users with the right to see the views, too.
    pub metrics_login: bool,
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
    /// The user is who the client's certificate says (PostgreSQL, "Certificate Authentication").
    Cert,
    /// The user is who the kernel says is at the other end of the Unix socket ("Peer Authentication").
    Peer,
    /// As `[[auth.rule]]` says; a rule itself never has it.
    Hba,
    /// Nobody is let in; only of a rule.
    Reject,
}

impl AuthMethod {
    /// Whether the client is asked for its password.
    #[must_use]
    pub fn asks_passwords(self) -> bool {
        matches!(self, AuthMethod::Plain | AuthMethod::Md5 | AuthMethod::ScramSha256)
    }
}

/// `[auth]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// For every client.
    pub method: AuthMethod,
    /// Which users of the system may be which users of the database, besides those of the same name.
    pub peer_map: Vec<super::Alias>,
    /// Who is asked for what, with method `hba`: the first that fits.
    pub rules: Vec<super::LoginRule>,
    /// What the server is asked about users that no `[user.NAME]` names; `$1` is the name. `None` = nothing.
    pub query: Option<String>,
    /// The database, as clients name it, in which it is asked.
    pub query_database: String,
    /// As whom; `None` = as `user` of that database's table.
    pub query_user: Option<String>,
    /// That role's password; `None` = the clear one of its `[user.NAME]`, or none.
    pub query_password: Option<Secret>,
    /// How long an answer is taken for true.
    pub query_ttl: Duration,
    /// Failed logins of one source that are answered at once.
    pub failure_burst: u32,
    /// In which time one of them comes back, and how long the next one waits for its answer. `None` = none does.
    pub failure_delay: Option<Duration>,
}

impl Auth {
    /// Whether some client is asked for its password.
    #[must_use]
    pub fn asks_passwords(&self) -> bool {
        match self.method {
            AuthMethod::Hba => self.rules.iter().any(|rule| rule.method.asks_passwords()),
            method => method.asks_passwords(),
        }
    }
}

/// `[user.NAME]`: what Bursar knows of a client role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// A clear password, `md5…` hash, or SCRAM verifier (`SCRAM-SHA-256$…`), from the file or `password_file`.
    pub password: Option<Secret>,
    /// The one before, which logs in as well while clients change over.
    pub previous_password: Option<Secret>,
    /// Time since 1970-01-01 UTC until which a login by password is good; `None` = for ever.
    pub valid_until: Option<Duration>,
    /// When a lease of this role ends, whatever its database's table says; `None` = as that says.
    pub mode: Option<PoolMode>,
}

/// `[database.NAME]`: where a database lives and how its pools behave.
#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    /// Host name, address, or directory of a Unix socket (starts with `/`); several with commas between
    /// them, see [`Database::servers`].
    pub host: String,
    /// Port, where a host has none of its own.
    pub port: u16,
    /// Which of several servers is fit.
    pub target_session_attrs: super::SessionAttrs,
    /// Name on the server; `None` = the name the client asked for.
    pub dbname: Option<String>,
    /// Role on the server; `None` = the client's own.
    pub user: Option<String>,
    /// Password towards the server; `None` = the `[user.*]` password, if it is a clear one.
    pub password: Option<Secret>,
    /// What prints the password instead.
    pub password_command: Option<PasswordCommand>,
    /// For how long what it has printed is good.
    pub password_command_ttl: Duration,
    /// How long it may run.
    pub password_command_timeout: Duration,
    /// What of `[tls.server]` is otherwise.
    pub tls: super::DatabaseTls,
    /// Pool keys, `[pool]` overlaid by this table.
    pub pool: PoolRules,
}

/// `password_command`: a program that prints a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordCommand {
    /// Name or path of the program.
    pub program: String,
    /// Its arguments, which may be secrets themselves.
    pub arguments: Vec<Secret>,
}

impl PasswordCommand {
    /// The program as it may be shown: up to a space, behind which somebody may have written arguments.
    #[must_use]
    pub fn name(&self) -> &str {
        self.program.split_whitespace().next().unwrap_or_default()
    }
}

impl std::fmt::Display for PasswordCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.name();
        let more = if self.arguments.is_empty() && name == self.program { "" } else { " …" };
        write!(f, "{name}{more}")
    }
}

impl std::fmt::Debug for PasswordCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PasswordCommand({self})")
    }
}

/// `[server]`: the PostgreSQL server as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Backends over all pools of this process.
    pub max_backends: usize,
    /// Dials in flight at once, per server.
    pub connect_parallel: usize,
}

/// `[breaker]`: when a server is not dialled for a while (budgets.md §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerRules {
    /// Failed dials in a row that open it.
    pub failures: u32,
    /// Half of at least 20 dials within this open it too; for as long few dials go out at once after it.
    pub window: Duration,
    /// How long it is open at first, ±20 %; doubles.
    pub open: Duration,
    /// How long at most.
    pub open_max: Duration,
    /// How long it is open while PostgreSQL says that it is starting (57P03).
    pub starting: Duration,
    /// For how long a role and database that were refused twice are not tried again.
    pub refused: Duration,
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
    /// Settings of the application's own that name the tenant, where it sets them; lower case. They go behind a SET of
    /// the tag, and before every other source.
    pub tenant_keys: Vec<String>,
    /// First source that has a value names the request.
    pub request: Vec<TagSource>,
    /// Cut recognised comments from the text before forwarding.
    pub strip_comments: bool,
    /// Stale-tag rule: a SET request tag unused for this long is dropped.
    pub idle_ttl: Duration,
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
