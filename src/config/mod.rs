//! The configuration as used: parsed, defaulted and cross-checked; nobody below asks twice.
//!
//! [`load`] turns a file and environment variables into a [`Config`] or into every fault found at
//! once. `config.toml` at the root of the repository is the reference; a test holds it against
//! this code. Names and units: the key names of `config.toml`; durations carry a unit.
//!
//! The way of a value: `written.rs` (the file) → `environment.rs` (over it) → `keys.rs` and
//! `rules.rs` (what it may be) → `assemble.rs` (defaults, inheritance, checks) → `types.rs`.
//! Files are read here, once, at start and reload; nothing is watched, logged or connected to. A password knows its
//! file (`secret.rs`), for who must have what is in it now.

mod assemble;
mod budgets;
mod changes;
mod class;
mod defaults;
mod environment;
mod fault;
mod hosts;
mod keys;
mod login;
mod parking;
mod pools;
mod rights;
mod rules;
mod scopes;
mod secret;
mod show;
mod tls;
mod types;
mod units;
mod written;

pub use budgets::{Budgets, Isolation, Leak, Mode, Requests, Share, TenantRule, Timed};
pub use changes::{Change, Changes};
pub use class::{ClassMatch, ClassRule, Express, MatchKey, NORMAL, Pattern, Reserve, STATEMENT_PREFIX};
pub use fault::{Fault, Faults, Place, Wrong};
pub use login::{Alias, Connection, LoginRule, Network};
pub use parking::{ParkMode, Parking};
pub use pools::{
    ContextPolicy, ContextSource, Policies, Policy, PoolMode, PoolRules, ReplicationRule, Reset, Reuse,
    SessionAttrs, TenantContext,
};
pub use rights::{Keeper, Right, Rights};
pub use scopes::{Places, Scope, Scopes};
pub use secret::{FileFault, MAX_PASSWORD, PasswordKind, Secret};
pub use show::{Caution, NeedsRestart, Setting, reload_faults};
pub use tls::{DatabaseTls, Tls, TlsMode, TlsSide, TlsVersion};
pub use types::*;
pub use units::{read_moment, show_moment};
pub use written::dotted;

use defaults::PROFILES;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The file that is read when none is named, if it exists.
pub const DEFAULT_FILE: &str = "config.toml";

/// The database name of the admin console; no `[database.*]` may have it.
pub const CONSOLE: &str = "bursar";

/// Longest configuration file accepted.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// A configuration and where its values were written, for whoever finds more to complain about.
#[derive(Debug, Clone)]
pub struct Traced {
    /// The configuration.
    pub config: Config,
    /// The file, or `built-in defaults`.
    pub origin: Arc<str>,
    places: BTreeMap<String, Place>,
}

impl Traced {
    /// The place of a key such as `database.app.host`; of its table if the key was not written; of
    /// the file as a whole if that was not either.
    #[must_use]
    pub fn place(&self, key: &str) -> Place {
        let table = key.rsplit_once('.').map_or("", |(table, _)| table);
        let found = self.places.get(key).or_else(|| self.places.get(table));
        found.cloned().unwrap_or_else(|| Place::Whole(Arc::clone(&self.origin)))
    }
}

/// Reads the configuration: environment over file over defaults.
///
/// The file is `path`, else `BURSAR_CONFIG`, else [`DEFAULT_FILE`] in the working directory; if no
/// name was given and that one does not exist, the defaults stand alone.
///
/// # Errors
/// Every fault of the file and the environment.
pub fn load(path: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Config, Faults> {
    load_traced(path, env).map(|traced| traced.config)
}

/// [`load`], with the places of what was written.
///
/// # Errors
/// As [`load`].
pub fn load_traced(path: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Traced, Faults> {
    let named = path.map(Path::to_owned).or_else(|| env.get("BURSAR_CONFIG").map(PathBuf::from));
    let file = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    match written::read_bounded(&file, FILE_MAX) {
        Ok(text) => parse_traced(&text, &file.display().to_string(), env),
        Err(std::io::ErrorKind::NotFound) if named.is_none() => parse_traced("", "built-in defaults", env),
        Err(error) => {
            let place = Place::Whole(Arc::from(file.display().to_string()));
            let fault = Fault { place, key: String::new(), wrong: Wrong::Unreadable(error) };
            Err(Faults::from(fault))
        }
    }
}

/// Reads a configuration from its text; `origin` is how faults call it.
///
/// # Errors
/// Every fault of the text and the environment.
pub fn parse(text: &str, origin: &str, env: &BTreeMap<String, String>) -> Result<Config, Faults> {
    parse_traced(text, origin, env).map(|traced| traced.config)
}

fn parse_traced(text: &str, origin: &str, env: &BTreeMap<String, String>) -> Result<Traced, Faults> {
    let known = written::Known::new();
    let mut faults = Vec::new();
    let mut written = written::read_text(text, origin, &known, &mut faults);
    // A file that names its databases means those; one that names none means any.
    let keep_wildcard = !written.named.keys().any(|(table, _)| table == "database");
    environment::overlay(&mut written, env, &known, &mut faults);
    let config = assemble::assemble(&written, keep_wildcard, &mut faults);
    Faults::none_in(faults)?;
    let tables = written.named.into_iter().map(|((t, name), place)| (written::dotted(&[t, name]), place));
    let places = written.entries.into_iter().map(|(path, entry)| (written::dotted(&path), entry.place));
    Ok(Traced { config, origin: Arc::from(origin), places: tables.chain(places).collect() })
}

/// Every key there is, with its tables, `NAME` standing for the user's own names; sorted.
#[must_use]
pub fn known_keys() -> Vec<String> {
    let mut keys = keys::patterns();
    keys.sort();
    keys
}

/// Those of [`known_keys`] whose values must not be shown.
#[must_use]
pub fn secret_keys() -> Vec<String> {
    let secret = |(name, secret): (String, bool)| secret.then_some(name);
    let mut keys: Vec<String> = keys::marked_patterns().into_iter().filter_map(secret).collect();
    keys.sort();
    keys
}

impl Config {
    /// Where a database lives: its own table, else the wildcard's; `None` if there is neither.
    #[must_use]
    pub fn database(&self, name: &str) -> Option<Arc<Database>> {
        self.databases.get(name).or(self.any_database.as_ref()).cloned()
    }

    /// The rules of the pool of a database and a role, as the client names them: those of the database
    /// with the role's own mode; `None` if there is no such database.
    #[must_use]
    pub fn pool_rules(&self, database: &str, user: &str) -> Option<PoolRules> {
        let mut rules = self.database(database)?.pool.clone();
        if let Some(mode) = self.users.get(user).and_then(|user| user.mode) {
            rules.mode = mode;
        }
        Some(rules)
    }

    /// The budgets that hold for this work.
    #[must_use]
    pub fn budgets(&self, scope: &Scope<'_>) -> Budgets {
        self.scopes.lay(&self.budget, self.scopes.places(scope))
    }

    /// The rule of a tenant: its own table, else the wildcard's.
    #[must_use]
    pub fn tenant(&self, name: &str) -> &TenantRule {
        self.tenants.get(name).unwrap_or(&self.tenant_default)
    }
}
