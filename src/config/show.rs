//! The configuration shown again: rows of `SHOW CONFIG`, what a reload cannot change, and what is
//! odd without being wrong.

use super::keys::{
    Key, MODES, class_keys, database_keys, fixed_keys, scoped_budget_keys, tenant_keys, user_keys,
};
use super::rules::Rule;
use super::units::show_moment;
use super::written::dotted;
use super::*;
use std::fmt;

/// One row of `SHOW CONFIG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key with its tables, as in `config.toml`.
    pub key: String,
    /// The value as it could be written; `(set)` for a secret, empty if not set.
    pub value: String,
    /// What it would be if this key were left out.
    pub default: String,
    /// Whether a reload can change it.
    pub changeable: bool,
    /// The value itself, where it is not shown.
    pub(super) hidden: Option<Secret>,
}

/// A key whose new value waits for the next start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeedsRestart {
    /// The key.
    pub key: String,
    /// The value that stays in force.
    pub stays: String,
    /// The value in the new file.
    pub wanted: String,
}

impl fmt::Display for NeedsRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, stays, wanted } = self;
        write!(f, "{key}: stays {stays:?} until the next start; the new value {wanted:?} needs a restart")
    }
}

/// Something that works but is probably not meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Caution {
    /// Pools may want more backends than the server is given.
    #[error(
        "the pools of the named databases may want {wanted} backends for one user each, more than \
         server.max_backends = {max}; the last to come will wait, so raise it or make the pools smaller"
    )]
    PoolsOverServer {
        /// Sum of size and overflow over `[database.NAME]`, one user each.
        wanted: usize,
        /// `server.max_backends`.
        max: usize,
    },
    /// Every login will fail.
    #[error(
        "no [user.NAME] has a password and auth.method is not \"trust\", so nobody can log in; add users"
    )]
    NobodyCanLogIn,
    /// A user will be refused.
    #[error("the password of user \"{user}\" was good until {until}; set another, with a later valid_until")]
    Expired {
        /// `[user.NAME]`
        user: String,
        /// `valid_until`
        until: String,
    },
    /// What was meant to act only warns for now.
    #[error(
        "{key}.mode = \"enforce\" only warns in the first 24 hours of a process; set {key}.force = true, or \
         mode.warned_since to the day since when it has been in mode warn, if it is to act at once"
    )]
    WarnsFirst {
        /// The budget.
        key: &'static str,
    },
    /// Anybody can log in from other machines.
    #[error(
        "auth.method = \"trust\" with listen.address = {address} lets in everybody who can reach it; \
         listen on loopback or ask for passwords"
    )]
    OpenToAll {
        /// An address that is not loopback.
        address: SocketAddr,
    },
    /// As before, by a rule.
    #[error(
        "rule {rule} of [[auth.rule]] lets in everybody who can reach it from other machines, without a \
         password; give it an address or a method that asks for one"
    )]
    OpenRule {
        /// Its number, from 1.
        rule: usize,
    },
}

impl Config {
    /// Every setting in force: fixed tables first, then databases, users, tenants and classes by name.
    #[must_use]
    pub fn show(&self) -> Vec<Setting> {
        let mut rows = rows("", &fixed_keys(), self, &Config::default());
        let keys = database_keys();
        let base = Database { pool: self.pool.clone(), ..Database::default() };
        if let Some(any) = &self.any_database {
            rows.extend(rows_of("database", "*", &keys, any, &base));
        }
        let parent = self.any_database.as_deref().unwrap_or(&base);
        for (name, database) in &self.databases {
            rows.extend(rows_of("database", name, &keys, database, parent));
        }
        for (name, user) in &self.users {
            rows.extend(rows_of("user", name, &user_keys(), user, &User::default()));
        }
        for (table, name, overlay) in self.scopes.written() {
            let mut budgets = self.budget.clone();
            for key in scoped_budget_keys() {
                let Some((_, raw)) = overlay.0.iter().find(|(said, _)| *said == key.name) else { continue };
                let default = key.show(&self.budget);
                let _ = key.write(&mut budgets, raw);
                rows.push(Setting {
                    key: format!("{}.budget.{}", dotted(&[table, name]), key.name),
                    value: key.show(&budgets),
                    default,
                    changeable: true,
                    hidden: None,
                });
            }
        }
        for (route, mode) in self.scopes.modes() {
            let (value, default) = (MODES.show(&mode), String::new());
            let key = dotted(&["mode", "routes", route]);
            rows.push(Setting { key, value, default, changeable: true, hidden: None });
        }
        let keys = tenant_keys();
        rows.extend(rows_of("tenant", "*", &keys, &self.tenant_default, &TenantRule::default()));
        for (name, tenant) in &self.tenants {
            rows.extend(rows_of("tenant", name, &keys, tenant, &self.tenant_default));
        }
        let (keys, built_in) = (class_keys(), super::class::built_in());
        for (name, class) in &self.classes {
            let base = built_in.get(name).cloned().unwrap_or_default();
            rows.extend(rows_of("class", name, &keys, class, &base));
        }
        rows
    }

    /// What is odd about this configuration without being wrong, at this time since 1970-01-01 UTC.
    #[must_use]
    pub fn cautions(&self, now: Duration) -> Vec<Caution> {
        let mut found = Vec::new();
        for (user, rule) in &self.users {
            if let Some(until) = rule.valid_until.filter(|until| *until < now) {
                found.push(Caution::Expired { user: user.clone(), until: show_moment(until) });
            }
        }
        let each = self.databases.values().map(|database| database.pool.size + database.pool.overflow);
        let (wanted, max) = (each.fold(0_usize, usize::saturating_add), self.server.max_backends);
        if wanted > max {
            found.push(Caution::PoolsOverServer { wanted, max });
        }
        let budget = &self.budget;
        for (key, timed) in [
            ("budget.request.db_time", &budget.db_time),
            ("budget.transaction.max_age", &budget.age),
            ("budget.transaction.max_idle", &budget.idle),
            ("budget.statement.max_stall", &budget.stall),
        ] {
            let acts = timed.mode == Mode::Enforce && timed.abort.is_some() && !timed.force;
            if acts && self.warned_since.is_none() {
                found.push(Caution::WarnsFirst { key });
            }
        }
        let trust = self.auth.method == AuthMethod::Trust;
        let asks = self.auth.asks_passwords() && self.auth.query.is_none();
        if asks && self.users.values().all(|user| user.password.is_none()) {
            found.push(Caution::NobodyCanLogIn);
        }
        if let (true, Some(address)) = (trust, self.listen.addresses.iter().find(|a| !a.ip().is_loopback())) {
            found.push(Caution::OpenToAll { address: *address });
        }
        if !trust && let Some(rule) = super::login::open_rule(self) {
            found.push(Caution::OpenRule { rule });
        }
        found
    }

    /// This configuration with the values of `running` where a reload cannot change them.
    #[must_use]
    pub fn keeping(mut self, running: &Config) -> Config {
        let Listen { max_clients, login_timeout, .. } = self.listen;
        self.listen = Listen { max_clients, login_timeout, ..running.listen.clone() };
        self.admin.address = running.admin.address;
        self.log = running.log.clone();
        self
    }
}

/// The keys that differ and that a reload cannot change; [`Config::keeping`] leaves them as they are.
#[must_use]
pub fn reload_faults(old: &Config, new: &Config) -> Vec<NeedsRestart> {
    fixed_keys()
        .into_iter()
        .filter(|key| key.restart)
        .map(|key| NeedsRestart { stays: key.show(old), wanted: key.show(new), key: key.name })
        .filter(|change| change.stays != change.wanted)
        .collect()
}

fn rows_of<T: 'static>(table: &str, name: &str, keys: &[Key<T>], now: &T, default: &T) -> Vec<Setting> {
    rows(&format!("{}.", dotted(&[table, name])), keys, now, default)
}

fn rows<T: 'static>(prefix: &str, keys: &[Key<T>], now: &T, default: &T) -> Vec<Setting> {
    keys.iter()
        .filter(|key| !key.base)
        .map(|key| Setting {
            key: format!("{prefix}{}", key.name),
            value: key.show(now),
            default: key.show(default),
            changeable: !key.restart,
            hidden: key.hidden(now),
        })
        .collect()
}
