//! From the keys as written to the [`Config`] as used: every value through its rule, tables with
//! names laid over what they inherit from, then the checks that need more than one value.
//!
//! Inheritance: a `[database.NAME]` starts from `[database."*"]`, which starts from `[pool]`; a
//! `[tenant.NAME]` starts from `[tenant."*"]`, a `[class.NAME]` from the built-in class of
//! that name; a `budget` below any of them from `[budget]` (`scopes.rs`). Within one table a `profile` is read first.

use super::keys::*;
use super::scopes::{Overlay, TABLES};
use super::units::show_duration;
use super::written::{Entry, Written, dotted};
use super::*;
use std::collections::BTreeSet;

/// The wildcard's name.
const ANY: &str = "*";

/// Builds the configuration. Where a value is at fault its default stands, so that the rest can be
/// checked in the same run.
pub(super) fn assemble(written: &Written, keep_wildcard: bool, faults: &mut Vec<Fault>) -> Config {
    let mut config = Config::default();
    apply(&fixed_keys(), &mut config, "", written.fixed(), faults);
    databases(&mut config, written, keep_wildcard, faults);
    let keys = user_keys();
    for name in names(written, "user") {
        let mut user = User::default();
        apply(&keys, &mut user, &table("user", name), written.of("user", name), faults);
        config.users.insert(name.to_owned(), user);
    }
    let keys = tenant_keys();
    apply(&keys, &mut config.tenant_default, &table("tenant", ANY), written.of("tenant", ANY), faults);
    for name in names(written, "tenant").filter(|name| *name != ANY) {
        let mut tenant = config.tenant_default.clone();
        apply(&keys, &mut tenant, &table("tenant", name), written.of("tenant", name), faults);
        config.tenants.insert(name.to_owned(), tenant);
    }
    let keys = class_keys();
    for name in names(written, "class") {
        let mut class = config.classes.get(name).cloned().unwrap_or_default();
        apply(&keys, &mut class, &table("class", name), written.of("class", name), faults);
        config.classes.insert(name.to_owned(), class);
    }
    scopes(&mut config, written, faults);
    Checks { written, faulty: faults.iter().map(|fault| fault.key.clone()).collect(), faults }.all(&config);
    config
}

fn databases(config: &mut Config, written: &Written, keep_wildcard: bool, faults: &mut Vec<Fault>) {
    let keys = database_keys();
    let mut any = Database { pool: config.pool.clone(), ..Database::default() };
    apply(&keys, &mut any, &table("database", ANY), written.of("database", ANY), faults);
    for name in names(written, "database").filter(|name| *name != ANY) {
        let mut database = any.clone();
        apply(&keys, &mut database, &table("database", name), written.of("database", name), faults);
        config.databases.insert(name.to_owned(), Arc::new(database));
    }
    let named = written.named.contains_key(&("database".to_owned(), ANY.to_owned()));
    config.any_database = (named || keep_wildcard).then(|| Arc::new(any));
}

/// Budgets of a part of the work: read once for their faults, and kept as written.
fn scopes(config: &mut Config, written: &Written, faults: &mut Vec<Fault>) {
    let keys = scoped_budget_keys();
    for name_of in TABLES {
        for name in names(written, name_of) {
            let below = |(key, entry): (String, &'_ Entry)| {
                Some((key.strip_prefix("budget.")?.to_owned(), entry.raw.clone()))
            };
            let said: Vec<_> = written.of(name_of, name).filter_map(below).collect();
            if said.is_empty() {
                continue;
            }
            let entries = written.of(name_of, name);
            let entries = entries.filter_map(|(key, e)| Some((key.strip_prefix("budget.")?.to_owned(), e)));
            let mut budgets = config.budget.clone();
            apply(&keys, &mut budgets, &format!("{}.budget", table(name_of, name)), entries, faults);
            config.scopes.add(name_of, name, Overlay(said));
        }
    }
    for (path, entry) in &written.entries {
        let [mode, routes, route] = &path[..] else { continue };
        if mode != "mode" || routes != "routes" {
            continue;
        }
        match read(&MODES, &entry.raw) {
            Ok(mode) => config.scopes.add_mode(route, mode),
            Err(wrong) => faults.push(Fault { place: entry.place.clone(), key: dotted(path), wrong }),
        }
    }
}

fn names<'a>(written: &'a Written, table: &'a str) -> impl Iterator<Item = &'a str> {
    written.named.keys().filter(move |(t, _)| t == table).map(|(_, name)| name.as_str())
}

fn table(table: &str, name: &str) -> String {
    dotted(&[table, name])
}

/// Writes entries into their fields, those that others start from first.
fn apply<'a, T: 'static>(
    keys: &[Key<T>],
    target: &mut T,
    table: &str,
    entries: impl Iterator<Item = (String, &'a Entry)>,
    faults: &mut Vec<Fault>,
) {
    let entries: BTreeMap<String, &Entry> = entries.collect();
    for base in [true, false] {
        for key in keys.iter().filter(|key| key.base == base) {
            let Some(entry) = entries.get(&key.name) else { continue };
            if let Err(wrong) = key.write(target, &entry.raw) {
                let name = if table.is_empty() { key.name.clone() } else { format!("{table}.{}", key.name) };
                faults.push(Fault { place: entry.place.clone(), key: name, wrong });
            }
        }
    }
}

/// The checks between values. One that involves a value already at fault is left out.
struct Checks<'a> {
    written: &'a Written,
    faulty: BTreeSet<String>,
    faults: &'a mut Vec<Fault>,
}

impl Checks<'_> {
    fn all(mut self, config: &Config) {
        self.listeners(config);
        self.login(config);
        self.rights(config);
        self.budgets(&config.budget);
        self.above(
            ("drain.notice", Some(config.drain.notice)),
            ("drain.deadline", Some(config.drain.deadline)),
            |d| show_duration(*d),
        );
        self.above(
            ("breaker.open", Some(config.breaker.open)),
            ("breaker.open_max", Some(config.breaker.open_max)),
            |d| show_duration(*d),
        );
        self.pool("pool", &config.pool);
        for (name, database) in &config.databases {
            let place = self.written.named.get(&("database".to_owned(), name.clone()));
            if let (true, Some(place)) = (name == CONSOLE, place) {
                let key = table("database", name);
                self.faults.push(Fault { place: place.clone(), key, wrong: Wrong::ConsoleName });
            }
            self.pool(&table("database", name), &database.pool);
        }
        if let Some(any) = &config.any_database {
            self.pool("database.\"*\"", &any.pool);
        }
        self.passwords_of_servers();
        self.query(config);
        self.promises(config);
        self.contexts(config);
        for (name, user) in &config.users {
            let table = table("user", name);
            self.password(&format!("{table}.password"), user.password.as_ref(), config.auth.method);
            let previous = format!("{table}.previous_password");
            self.password(&previous, user.previous_password.as_ref(), config.auth.method);
            self.previous(&previous, user);
        }
    }

    /// The place of a key as faults name it, if it was written.
    fn place(&self, key: &str) -> Option<Place> {
        self.written.entries.iter().find(|(path, _)| dotted(path) == key).map(|(_, e)| e.place.clone())
    }

    fn fault(&mut self, place: Place, key: &str, wrong: Wrong) {
        self.faults.push(Fault { place, key: key.to_owned(), wrong });
    }

    /// `this` must not be above `other`; said at whichever of them was written.
    fn above<V: PartialOrd>(
        &mut self,
        this: (&str, Option<V>),
        other: (&str, Option<V>),
        show: impl Fn(&V) -> String,
    ) {
        let (Some(value), Some(limit)) = (this.1, other.1) else { return };
        if value <= limit || self.faulty.contains(this.0) || self.faulty.contains(other.0) {
            return;
        }
        // Where neither was written here both are inherited, and the fault is the parent's.
        let Some(place) = self.place(this.0).or_else(|| self.place(other.0)) else { return };
        let wrong = Wrong::Above { value: show(&value), other: other.0.to_owned(), limit: show(&limit) };
        self.fault(place, this.0, wrong);
    }

    fn pool(&mut self, table: &str, pool: &PoolRules) {
        let (min_idle, size) = (format!("{table}.min_idle"), format!("{table}.size"));
        self.above((&min_idle, Some(pool.min_idle)), (&size, Some(pool.size)), usize::to_string);
    }

    /// A table has its password or a command for it.
    fn passwords_of_servers(&mut self) {
        for name in names(self.written, "database") {
            let key = |key: &str| format!("{}.{key}", table("database", name));
            let (own, command) = (key("password"), key("password_command"));
            if let (Some(_), Some(place)) = (self.place(&own), self.place(&command)) {
                self.fault(place, &command, Wrong::Twice { other: own });
            }
        }
    }

    /// A query needs a database that there is, and a role that is not the client's.
    fn query(&mut self, config: &Config) {
        let Some(place) = self.place("auth.query").filter(|_| config.auth.query.is_some()) else { return };
        let lacks = match config.database(&config.auth.query_database) {
            None => "is not configured",
            Some(table) if table.user.is_none() && config.auth.query_user.is_none() => {
                "has no user of its own"
            }
            Some(_) => return,
        };
        let database = config.auth.query_database.clone();
        self.fault(place, "auth.query", Wrong::Query { database, lacks });
    }

    /// One setting cannot hold both the tenant and the request.
    fn contexts(&mut self, config: &Config) {
        let named = config.databases.iter().map(|(name, database)| (table("database", name), database));
        let any = config.any_database.iter().map(|any| ("database.\"*\"".to_owned(), any));
        let pools = named.chain(any).map(|(table, database)| (format!("{table}."), &database.pool));
        for (table, pool) in [(String::new(), &config.pool)].into_iter().chain(pools) {
            let context = &pool.tenant_context;
            let key = |name: &str| format!("{table}tenant_context.{name}");
            if context.key.is_none() || context.key != context.request_key {
                continue;
            }
            // Where neither was written here both are inherited, and the fault is the parent's.
            let place = self.place(&key("request_key")).or_else(|| self.place(&key("key")));
            if let Some(place) = place {
                self.fault(place, &key("request_key"), Wrong::Twice { other: key("key") });
            }
        }
    }

    /// What tenants and classes are promised must fit into every pool (budgets.md §2.3, B5).
    fn promises(&mut self, config: &Config) {
        let named = config.databases.iter().map(|(name, database)| (table("database", name), database));
        let any = config.any_database.iter().map(|any| ("pool".to_owned(), any));
        for (pool, database) in named.chain(any) {
            let size = database.pool.size;
            let mins = config
                .tenants
                .iter()
                .map(|(name, rule)| (format!("{}.min", table("tenant", name)), rule.min as usize));
            let reserves = config
                .classes
                .iter()
                .map(|(name, rule)| (format!("{}.reserve", table("class", name)), rule.reserved(size)));
            let promised: Vec<(String, usize)> = mins.chain(reserves).filter(|(_, n)| *n > 0).collect();
            let sum = promised.iter().fold(0_usize, |sum, (_, n)| sum.saturating_add(*n));
            // Said at the largest promise that was written, which is the first to look at.
            let written = promised.into_iter().filter_map(|(key, n)| Some((n, self.place(&key)?, key)));
            let largest = written.max_by_key(|(n, ..)| *n);
            if let Some((_, place, key)) = largest.filter(|_| sum > size) {
                self.fault(place, &key, Wrong::PromisedTooMuch { sum, pool: format!("{pool}.size"), size });
            }
        }
    }

    /// A default that is above a limit somebody wrote only never comes to act: no contradiction.
    fn budgets(&mut self, budget: &Budgets) {
        let limits = |(low, high)| {
            let key = |name| format!("budget.{name}");
            (key(low), key(high))
        };
        let (warn, reject) = limits(("request.max_leases.warn", "request.max_leases.reject"));
        if self.place(&warn).is_some() {
            self.above((&warn, budget.leases_warn), (&reject, budget.leases_reject), u32::to_string);
        }
        for (names, low, high) in [
            (("request.db_time.warn", "request.db_time.abort"), budget.db_time.warn, budget.db_time.abort),
            (("transaction.max_age.warn", "transaction.max_age.abort"), budget.age.warn, budget.age.abort),
            (
                ("statement.max_stall.warn", "statement.max_stall.abort"),
                budget.stall.warn,
                budget.stall.abort,
            ),
            (
                ("statement.max_time.warn", "statement.max_time.abort"),
                budget.statement.warn,
                budget.statement.abort,
            ),
            (
                ("transaction.max_idle.warn", "transaction.max_idle.abort"),
                budget.idle.warn,
                budget.idle.abort,
            ),
            (
                ("transaction.max_idle.abort", "transaction.max_idle.abort_alone"),
                budget.idle.abort,
                budget.idle_abort_alone,
            ),
        ] {
            let (this, other) = limits(names);
            if self.place(&this).is_some() {
                self.above((&this, low), (&other, high), |d| show_duration(*d));
            }
        }
    }

    fn listeners(&mut self, config: &Config) {
        let mut seen = BTreeSet::new();
        // Port 0 asks the kernel for a free one, so two of them never meet.
        let fixed = |address: &&SocketAddr| address.port() != 0;
        let admin = config.admin.address.iter().map(|address| ("admin.address", address));
        let listen = config.listen.addresses.iter().map(|address| ("listen.address", address));
        let mut clash = None;
        for (key, address) in listen.chain(admin).filter(|(_, address)| fixed(address)) {
            if !seen.insert(*address) {
                clash = Some(key);
            }
        }
        if let Some(key) = clash {
            let place = self.place(key).or_else(|| self.place("listen.address"));
            let place = place.unwrap_or_else(|| Place::Whole("built-in defaults".into()));
            self.fault(place, key, Wrong::AddressTaken { other: "listen.address" });
        }
    }

    /// Every method must have what it asks for.
    fn login(&mut self, config: &Config) {
        if ["auth.method", "auth.rule"].iter().any(|key| self.faulty.contains(*key)) {
            return;
        }
        for (key, wrong) in super::login::faults(config) {
            if let Some(place) = self.place(key) {
                self.fault(place, key, wrong);
            }
        }
    }

    /// Who is named in `[admin]` must be able to come in.
    fn rights(&mut self, config: &Config) {
        if self.faulty.iter().any(|key| key.starts_with("auth.")) {
            return;
        }
        for (key, wrong) in super::rights::faults(config) {
            if let Some(place) = self.place(key) {
                self.fault(place, key, wrong);
            }
        }
    }

    /// A hash can only be checked by the method that made it (PostgreSQL, "Password Authentication").
    fn password(&mut self, key: &str, secret: Option<&Secret>, method: AuthMethod) {
        let Some(stored) = secret.map(Secret::kind) else { return };
        let wrong = match (stored, method) {
            (PasswordKind::Scram, AuthMethod::Md5) => Wrong::PasswordKind {
                stored: "SCRAM verifier",
                method: "md5",
                remedy: "the clear password or an md5 hash",
            },
            (PasswordKind::Md5, AuthMethod::ScramSha256) => Wrong::PasswordKind {
                stored: "md5 hash",
                method: "scram-sha-256",
                remedy: "the clear password or a SCRAM verifier",
            },
            _ => return,
        };
        if let Some(place) = self.place(key) {
            self.fault(place, key, wrong);
        }
    }

    /// A SCRAM client is told one salt and one number of rounds before it shows which password it has.
    fn previous(&mut self, key: &str, user: &User) {
        let Some(previous) = &user.previous_password else { return };
        let wrong = match user.password.as_ref().map(|password| (password, password.scram_cost())) {
            None => Wrong::Login {
                what: "there is no password beside it".to_owned(),
                remedy: "write it as password, if it is the only one",
            },
            Some((_, Some(cost))) if previous.scram_cost().is_some_and(|other| other != cost) => {
                Wrong::Login {
                    what: "two SCRAM verifiers of different salts or rounds cannot be checked in one login"
                        .to_owned(),
                    remedy: "write one of the two passwords in clear, or make one verifier with the other's salt and rounds",
                }
            }
            Some(_) => return,
        };
        if let Some(place) = self.place(key) {
            self.fault(place, key, wrong);
        }
    }
}
