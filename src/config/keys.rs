//! The one table of keys: name, rule with its limits, and the field it fills.
//!
//! Everything that must know the keys asks here: reading, the nearest name of an unknown one,
//! environment variables, `SHOW CONFIG`, what a reload may change, and the test that holds
//! `config.toml` against the code. A new key is one line.

use super::class::{Expressly, Matching, Reserved};
use super::hosts::Hosts;
use super::login::{self, AliasRule, LoginRules};
use super::rules::*;
use super::scopes::TABLES;
use super::*;

/// Reads a field that is not shown.
type Hidden<T> = Box<dyn Fn(&T) -> Option<Secret>>;

type Write<T> = Box<dyn Fn(&mut T, &Raw) -> Result<(), Wrong>>;

/// One key that fills a field of `T`.
pub(super) struct Key<T> {
    /// With its tables below `T`, joined by dots.
    pub(super) name: String,
    /// Takes effect at start only.
    pub(super) restart: bool,
    /// Its value must not be shown.
    pub(super) secret: bool,
    /// Sets the values other keys start from, so it is read before them and not shown itself.
    pub(super) base: bool,
    write: Write<T>,
    show: Box<dyn Fn(&T) -> String>,
    hidden: Hidden<T>,
}

impl<T: 'static> Key<T> {
    fn new<R: Rule>(name: &str, rule: R, get: fn(&T) -> &R::Value, set: fn(&mut T, R::Value)) -> Self {
        let rule = std::rc::Rc::new(rule);
        let (shown, hidden) = (std::rc::Rc::clone(&rule), std::rc::Rc::clone(&rule));
        Key {
            name: name.to_owned(),
            restart: false,
            secret: false,
            base: false,
            write: Box::new(move |target, raw| {
                set(target, read(&*rule, raw)?);
                Ok(())
            }),
            show: Box::new(move |target| shown.show(get(target))),
            hidden: Box::new(move |target| hidden.hidden(get(target))),
        }
    }

    /// A key whose value is spread over others and not kept.
    fn spread<R: Rule>(name: &str, rule: R, set: fn(&mut T, R::Value)) -> Self {
        Key {
            name: name.to_owned(),
            restart: false,
            secret: false,
            base: true,
            write: Box::new(move |target, raw| {
                set(target, read(&rule, raw)?);
                Ok(())
            }),
            show: Box::new(|_| String::new()),
            hidden: Box::new(|_| None),
        }
    }

    fn restart(self) -> Self {
        Key { restart: true, ..self }
    }

    fn secret(self) -> Self {
        Key { secret: true, ..self }
    }

    /// The same key of a part of `U`, below `table` (or beside `U`'s own keys if that is empty).
    fn within<U: 'static>(self, table: &str, get: fn(&U) -> &T, get_mut: fn(&mut U) -> &mut T) -> Key<U> {
        let Key { name, restart, secret, base, write, show, hidden } = self;
        Key {
            name: if table.is_empty() { name } else { format!("{table}.{name}") },
            restart,
            secret,
            base,
            write: Box::new(move |target, raw| write(get_mut(target), raw)),
            show: Box::new(move |target| show(get(target))),
            hidden: Box::new(move |target| hidden(get(target))),
        }
    }

    /// Fills the field.
    ///
    /// # Errors
    /// [`Wrong::Invalid`] or [`Wrong::NotYet`]; the field is then as it was.
    pub(super) fn write(&self, target: &mut T, raw: &Raw) -> Result<(), Wrong> {
        (self.write)(target, raw).map_err(|wrong| match wrong {
            Wrong::Invalid { expected, .. } if self.secret => {
                Wrong::Invalid { got: "the value".to_owned(), expected }
            }
            wrong => wrong,
        })
    }

    /// The field itself, where it is not shown.
    pub(super) fn hidden(&self, target: &T) -> Option<Secret> {
        (self.hidden)(target)
    }

    /// The field as it could be written; empty if not set.
    pub(super) fn show(&self, target: &T) -> String {
        (self.show)(target)
    }
}

/// A value by its rule.
///
/// # Errors
/// [`Wrong::Invalid`] or [`Wrong::NotYet`].
pub(super) fn read<R: Rule>(rule: &R, raw: &Raw) -> Result<R::Value, Wrong> {
    rule.read(raw).ok_or_else(|| {
        if rule.later(raw) {
            Wrong::NotYet { what: raw.quoted() }
        } else {
            Wrong::Invalid { got: raw.quoted(), expected: rule.expected() }
        }
    })
}

/// `key!("name", rule, field.of.target)` for `Key<$target>`.
macro_rules! key {
    ($target:ty, $name:literal, $rule:expr, $($field:ident).+) => {
        Key::<$target>::new($name, $rule, |t| &t.$($field).+, |t, value| t.$($field).+ = value)
    };
}

/// PostgreSQL's own upper bound on connections (`MAX_BACKENDS`, 2^18 - 1).
const MAX_BACKENDS: usize = 262_143;
/// More sessions than one process can have descriptors for.
const MAX_SESSIONS: usize = 1_000_000;
/// Milliseconds of the shortest accepted timer where zero would make no sense.
const TICK: u64 = 1;

pub(super) const MODES: OneOf<Mode> = OneOf {
    words: &[("observe", Mode::Observe), ("warn", Mode::Warn), ("enforce", Mode::Enforce)],
    later: &[],
};
const NAME: Text = Text {
    expected: "a name of 1 to 63 bytes (PostgreSQL's NAMEDATALEN) without NUL",
    check: |t| (1..=63).contains(&t.len()) && !t.contains('\0'),
};
const QUERY: Text = Text {
    expected: "one SELECT of at most 4096 bytes with $1 for the name, such as \"SELECT * FROM bursar.verifier($1)\"",
    check: |t| t.len() <= 4096 && t.contains("$1") && !t.contains('\0'),
};
const HOST: Text = Text {
    expected: "a host name or IP address of at most 255 bytes, or the absolute directory of a Unix socket of at most 92",
    check: |t| {
        let limit = if t.starts_with('/') { SOCKET_DIR_MAX } else { 255 };
        !t.is_empty() && !t.contains(['\0', ' ', '\n']) && t.len() <= limit
    },
};
const FILTER: Text = Text {
    expected: "error, warn, info, debug, trace or off, or a filter such as \"info,bursar::pool=debug\"",
    check: is_filter,
};

/// Level words and `target=level` pairs, separated by commas.
fn is_filter(text: &str) -> bool {
    let level = |l: &str| {
        ["error", "warn", "info", "debug", "trace", "off"].iter().any(|w| w.eq_ignore_ascii_case(l.trim()))
    };
    text.split(',').all(|directive| match directive.split_once('=') {
        None => level(directive),
        Some((target, l)) => {
            !target.trim().is_empty()
                && target.chars().all(|c| c.is_ascii_alphanumeric() || "_:- ".contains(c))
                && level(l)
        }
    })
}

const POOL_MODES: OneOf<PoolMode> = OneOf {
    words: &[
        ("session", PoolMode::Session),
        ("transaction", PoolMode::Transaction),
        ("statement", PoolMode::Statement),
        ("request", PoolMode::Request),
    ],
    later: &[],
};

/// Keys of `[pool]`, which every `[database.NAME]` takes too.
pub(super) fn pool_keys() -> Vec<Key<PoolRules>> {
    const REUSES: OneOf<Reuse> =
        OneOf { words: &[("lifo", Reuse::Lifo), ("round_robin", Reuse::RoundRobin)], later: &[] };
    const RESETS: OneOf<Reset> =
        OneOf { words: &[("dirty", Reset::Dirty), ("always", Reset::Always)], later: &[] };
    const REPLICATION: OneOf<ReplicationRule> =
        OneOf { words: &[("refuse", ReplicationRule::Refuse), ("pass", ReplicationRule::Pass)], later: &[] };
    let mut keys = vec![
        Key::spread("profile", PROFILES, |rules: &mut PoolRules, profile| profile.apply(rules)),
        key!(PoolRules, "mode", POOL_MODES, mode),
        key!(PoolRules, "size", count(1, MAX_BACKENDS), size),
        key!(PoolRules, "overflow", count(0, MAX_BACKENDS), overflow),
        key!(PoolRules, "overflow_time", OrOff(span(100, 1)), overflow_time),
        key!(PoolRules, "min_idle", count(0, MAX_BACKENDS), min_idle),
        key!(PoolRules, "express", Expressly, express),
        key!(PoolRules, "reuse", REUSES, reuse),
        key!(PoolRules, "reset", RESETS, reset),
        key!(PoolRules, "max_pins", ShareOf, max_pins),
        key!(PoolRules, "replication", REPLICATION, replication),
        key!(PoolRules, "require_tenant_context", Flag, require_tenant_context),
        key!(PoolRules, "max_wait", span(0, 1), max_wait),
        key!(PoolRules, "queue", count(0, MAX_SESSIONS), queue),
        key!(PoolRules, "deadlock_after", OrOff(span(10, 1)), deadlock_after),
        key!(PoolRules, "deadlock_overflow", count(0, MAX_BACKENDS), deadlock_overflow),
        key!(PoolRules, "idle_timeout", OrOff(span(TICK, 30)), idle_timeout),
        key!(PoolRules, "lifetime", OrOff(span(TICK, 30)), lifetime),
        key!(PoolRules, "connect_timeout", span(TICK, 1), connect_timeout),
        key!(PoolRules, "client_gone_grace", span(0, 1), client_gone_grace),
        key!(PoolRules, "max_prepared", count(0, 10_000), max_prepared),
        key!(PoolRules, "lazy_begin", Flag, lazy_begin),
    ];
    let policies = policy_keys().into_iter();
    keys.extend(policies.map(|key| key.within("policy", |r: &PoolRules| &r.policy, |r| &mut r.policy)));
    keys
}

/// Keys of `policy` in `[pool]`.
fn policy_keys() -> Vec<Key<Policies>> {
    const POLICIES: OneOf<Policy> = OneOf {
        words: &[("pin", Policy::Pin), ("scrub", Policy::Scrub), ("refuse", Policy::Refuse)],
        later: &[],
    };
    vec![
        key!(Policies, "listen", POLICIES, listen),
        key!(Policies, "temp_table", POLICIES, temp_table),
        key!(Policies, "advisory_lock", POLICIES, advisory_lock),
        key!(Policies, "hold_cursor", POLICIES, hold_cursor),
        key!(Policies, "prepare", POLICIES, prepare),
        key!(Policies, "load", POLICIES, load),
    ]
}

/// Keys of `[tenant_context]`, and of the table of that name below `[database.NAME]`.
fn context_keys() -> impl Iterator<Item = Key<PoolRules>> {
    const SOURCES: OneOf<ContextSource> = OneOf {
        words: &[
            ("tag:tenant", ContextSource::Tenant),
            ("tag:user_id", ContextSource::UserId),
            ("user", ContextSource::User),
        ],
        later: &[],
    };
    const POLICIES: OneOf<ContextPolicy> = OneOf {
        words: &[
            ("strict", ContextPolicy::Strict),
            ("trusted", ContextPolicy::Trusted),
            ("off", ContextPolicy::Off),
        ],
        later: &[],
    };
    let keys = vec![
        key!(TenantContext, "key", OrOff(SettingName), key),
        key!(TenantContext, "from", SOURCES, from),
        key!(TenantContext, "policy", POLICIES, policy),
        key!(TenantContext, "request_key", OrOff(SettingName), request_key),
        key!(TenantContext, "secret", OrOff(Password), secret).secret(),
    ];
    keys.into_iter()
        .map(|k| k.within("tenant_context", |r: &PoolRules| &r.tenant_context, |r| &mut r.tenant_context))
}

/// Keys of `[database.NAME]`.
pub(super) fn database_keys() -> Vec<Key<Database>> {
    const ATTRS: OneOf<SessionAttrs> = OneOf { words: &SessionAttrs::NAMES, later: &[] };
    let mut keys = vec![
        key!(Database, "host", Hosts(HOST), host),
        key!(Database, "port", count(1, u16::MAX), port),
        key!(Database, "target_session_attrs", ATTRS, target_session_attrs),
        key!(Database, "dbname", Given(NAME), dbname),
        key!(Database, "user", Given(NAME), user),
        // The later of the two is meant: a table's own over one that it inherits.
        Key::new(
            "password",
            Given(Password),
            |d: &Database| &d.password,
            |d, password| (d.password, d.password_command) = (password, None),
        )
        .secret(),
        Key::new(
            "password_command",
            Given(Argv),
            |d: &Database| &d.password_command,
            |d, command| (d.password, d.password_command) = (None, command),
        )
        .secret(),
        key!(Database, "password_command_ttl", span(0, 1), password_command_ttl),
        key!(Database, "password_command_timeout", span(TICK, 1), password_command_timeout),
    ];
    keys.extend(pool_keys().into_iter().map(|key| key.within("", |d: &Database| &d.pool, |d| &mut d.pool)));
    keys.extend(context_keys().map(|key| key.within("", |d: &Database| &d.pool, |d| &mut d.pool)));
    keys.extend(
        database_tls_keys().into_iter().map(|k| k.within("tls", |d: &Database| &d.tls, |d| &mut d.tls)),
    );
    keys
}

/// Keys of `[user.NAME]`.
pub(super) fn user_keys() -> Vec<Key<User>> {
    vec![
        key!(User, "password", Given(Password), password).secret(),
        key!(User, "previous_password", Given(Password), previous_password).secret(),
        key!(User, "valid_until", Given(Moment), valid_until),
        key!(User, "mode", Given(POOL_MODES), mode),
    ]
}

/// Keys of `[tenant.NAME]`.
pub(super) fn tenant_keys() -> Vec<Key<TenantRule>> {
    vec![
        key!(TenantRule, "max", ShareOf, max),
        key!(TenantRule, "min", count(0, 1_000_000), min),
        key!(TenantRule, "weight", count(1, 1_000), weight),
        key!(TenantRule, "queue", count(0, 1_000_000), queue),
        key!(TenantRule, "max_pins", count(0, 1_000_000), max_pins),
        key!(TenantRule, "max_sessions", count(0, 1_000_000), max_sessions),
        key!(TenantRule, "mode", MODES, mode),
        key!(TenantRule, "users", ListOf { each: NAME, least: 0 }, users),
    ]
}

/// Keys of `[class.NAME]`.
pub(super) fn class_keys() -> Vec<Key<ClassRule>> {
    vec![
        key!(ClassRule, "reserve", Reserved, reserve),
        key!(ClassRule, "cap", ShareOf, cap),
        key!(ClassRule, "priority", Given(count(0, 1_000)), priority),
        key!(ClassRule, "max_wait", Given(span(0, 1)), max_wait),
        key!(ClassRule, "match", ListOf { each: Matching, least: 0 }, matches),
    ]
}

/// Keys of every other table.
pub(super) fn fixed_keys() -> Vec<Key<Config>> {
    const METHODS: OneOf<AuthMethod> = OneOf {
        words: &[
            ("trust", AuthMethod::Trust),
            ("plain", AuthMethod::Plain),
            ("md5", AuthMethod::Md5),
            ("scram-sha-256", AuthMethod::ScramSha256),
            ("cert", AuthMethod::Cert),
            ("peer", AuthMethod::Peer),
            ("hba", AuthMethod::Hba),
        ],
        later: &[],
    };
    const FORMATS: OneOf<LogFormat> =
        OneOf { words: &[("text", LogFormat::Text), ("json", LogFormat::Json)], later: &[] };
    let mut keys = vec![
        Key::spread("mode.default", MODES, |config: &mut Config, mode| {
            config.budget.set_modes(mode);
            config.tenant_default.mode = mode;
            config.leak.mode = mode;
            config.request.mode = mode;
        }),
        key!(Config, "mode.warned_since", OrOff(Day), warned_since),
        key!(Config, "listen.address", ListOf { each: Address, least: 1 }, listen.addresses).restart(),
        key!(Config, "listen.unix_dir", OrOff(SocketDir), listen.unix_dir).restart(),
        key!(Config, "listen.reuse_port", Flag, listen.reuse_port).restart(),
        key!(Config, "listen.workers", Workers, listen.workers).restart(),
        key!(Config, "listen.max_clients", count(1, MAX_SESSIONS), listen.max_clients),
        key!(Config, "listen.max_logins", count(1, MAX_SESSIONS), listen.max_logins),
        key!(Config, "listen.login_timeout", span(TICK, 1), listen.login_timeout),
        key!(Config, "admin.address", OrOff(Address), admin.address).restart(),
        key!(Config, "admin.watch", Flag, admin.watch),
        key!(Config, "admin.users", ListOf { each: NAME, least: 0 }, admin.users),
        key!(Config, "admin.view", ListOf { each: NAME, least: 0 }, admin.view),
        key!(Config, "admin.act", ListOf { each: NAME, least: 0 }, admin.act),
        key!(Config, "admin.sql", ListOf { each: NAME, least: 0 }, admin.sql),
        key!(Config, "admin.metrics_login", Flag, admin.metrics_login),
        key!(Config, "auth.method", METHODS, auth.method),
        key!(Config, "auth.peer_map", ListOf { each: AliasRule, least: 0 }, auth.peer_map),
        Key {
            write: Box::new(|config, raw| {
                config.auth.rules = login::read_rules(raw)?;
                Ok(())
            }),
            ..Key::new("auth.rule", LoginRules, |c: &Config| &c.auth.rules, |c, rules| c.auth.rules = rules)
        },
        key!(Config, "auth.query", OrOff(QUERY), auth.query),
        key!(Config, "auth.query_database", NAME, auth.query_database),
        key!(Config, "auth.query_user", OrOff(NAME), auth.query_user),
        key!(Config, "auth.query_password", OrOff(Password), auth.query_password).secret(),
        key!(Config, "auth.query_ttl", span(0, 1), auth.query_ttl),
        key!(Config, "auth.failure_burst", count(0, 10_000), auth.failure_burst),
        key!(Config, "auth.failure_delay", OrOff(span(TICK, 1)), auth.failure_delay),
        key!(Config, "server.max_backends", count(1, MAX_BACKENDS), server.max_backends),
        key!(Config, "server.connect_parallel", count(1, 1_000), server.connect_parallel),
        key!(Config, "breaker.failures", count(1, 1_000), breaker.failures),
        key!(Config, "breaker.window", span(1_000, 1), breaker.window),
        key!(Config, "breaker.open", span(100, 1), breaker.open),
        key!(Config, "breaker.open_max", span(100, 1), breaker.open_max),
        key!(Config, "breaker.starting", span(100, 1), breaker.starting),
        key!(Config, "breaker.refused", span(100, 1), breaker.refused),
        key!(Config, "tag.tenant", ListOf { each: Source("bursar.tenant"), least: 0 }, tag.tenant),
        key!(Config, "tag.tenant_keys", ListOf { each: SettingName, least: 0 }, tag.tenant_keys),
        key!(Config, "tag.request", ListOf { each: Source("bursar.request_id"), least: 0 }, tag.request),
        key!(Config, "tag.strip_comments", Flag, tag.strip_comments),
        key!(Config, "tag.idle_ttl", span(TICK, 30), tag.idle_ttl),
    ];
    keys.extend(pool_keys().into_iter().map(|key| key.within("pool", |c: &Config| &c.pool, |c| &mut c.pool)));
    keys.extend(
        budget_keys().into_iter().map(|k| k.within("budget", |c: &Config| &c.budget, |c| &mut c.budget)),
    );
    keys.extend(context_keys().map(|key| key.within("", |c: &Config| &c.pool, |c| &mut c.pool)));
    keys.extend(parking_keys().into_iter().map(|k| k.within("", |c: &Config| &c.budget, |c| &mut c.budget)));
    keys.extend(
        tls_keys()
            .into_iter()
            .map(|k| k.within("tls.client", |c: &Config| &c.tls.client, |c| &mut c.tls.client)),
    );
    keys.extend(
        tls_keys()
            .into_iter()
            .map(|k| k.within("tls.server", |c: &Config| &c.tls.server, |c| &mut c.tls.server)),
    );
    keys.extend([
        key!(Config, "isolation.mode", MODES, isolation.mode),
        key!(Config, "isolation.verify", OrOff(count(1, 1_000_000_000)), isolation.verify),
        key!(Config, "request.continuation", OrOff(span(TICK, 1)), request.continuation),
        key!(Config, "request.idle_ttl", span(TICK, 30), request.idle_ttl),
        key!(Config, "request.max_age", OrOff(span(TICK, 60)), request.max_age),
        key!(Config, "request.mode", MODES, request.mode),
        key!(Config, "leak.hold", OrOff(span(TICK, 30)), leak.hold),
        key!(Config, "leak.idle", OrOff(span(TICK, 30)), leak.idle),
        key!(Config, "leak.leaked", OrOff(span(TICK, 30)), leak.leaked),
        key!(Config, "leak.leaked_alone", OrOff(span(TICK, 30)), leak.leaked_alone),
        key!(Config, "leak.pinned", OrOff(span(TICK, 30)), leak.pinned),
        key!(Config, "leak.pinned_close", OrOff(span(TICK, 30)), leak.pinned_close),
        key!(Config, "leak.adaptive", Flag, leak.adaptive),
        key!(Config, "leak.mode", MODES, leak.mode),
        key!(Config, "leak.force", Flag, leak.force),
        key!(Config, "leak.statement_text", Flag, leak.statement_text),
        key!(Config, "drain.notice", span(0, 1), drain.notice),
        key!(Config, "drain.deadline", span(TICK, 1), drain.deadline),
        key!(Config, "log.format", FORMATS, log.format).restart(),
        key!(Config, "log.level", FILTER, log.level).restart(),
    ]);
    keys
}

const TLS_MODES: OneOf<TlsMode> = OneOf {
    words: &[
        ("disable", TlsMode::Disable),
        ("allow", TlsMode::Allow),
        ("prefer", TlsMode::Prefer),
        ("require", TlsMode::Require),
        ("verify-ca", TlsMode::VerifyCa),
        ("verify-full", TlsMode::VerifyFull),
    ],
    later: &[],
};

const TLS_VERSIONS: OneOf<TlsVersion> =
    OneOf { words: &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)], later: &[] };

/// Keys of `[tls.client]` and `[tls.server]`.
fn tls_keys() -> Vec<Key<TlsSide>> {
    vec![
        key!(TlsSide, "mode", TLS_MODES, mode),
        key!(TlsSide, "cert", OrOff(Pem), cert).secret(),
        key!(TlsSide, "key", OrOff(Pem), key).secret(),
        key!(TlsSide, "ca", OrOff(Pem), ca).secret(),
        key!(TlsSide, "min_version", TLS_VERSIONS, min_version),
    ]
}

/// Keys of `[database.NAME.tls]`.
fn database_tls_keys() -> Vec<Key<DatabaseTls>> {
    vec![
        key!(DatabaseTls, "mode", Given(TLS_MODES), mode),
        key!(DatabaseTls, "cert", Given(Pem), cert).secret(),
        key!(DatabaseTls, "key", Given(Pem), key).secret(),
        key!(DatabaseTls, "ca", Given(Pem), ca).secret(),
        key!(DatabaseTls, "min_version", Given(TLS_VERSIONS), min_version),
    ]
}

/// Keys of `[budget.*]`.
fn budget_keys() -> Vec<Key<Budgets>> {
    const LEASES: Count<u32> = count(1, 1_000_000);
    const TIMER: OrOff<Span> = OrOff(span(TICK, 30));
    vec![
        key!(Budgets, "request.max_concurrent.limit", LEASES, max_concurrent),
        key!(Budgets, "request.max_concurrent.mode", MODES, max_concurrent_mode),
        key!(Budgets, "request.max_leases.warn", OrOff(LEASES), leases_warn),
        key!(Budgets, "request.max_leases.reject", OrOff(LEASES), leases_reject),
        key!(Budgets, "request.max_leases.mode", MODES, leases_mode),
        key!(Budgets, "request.db_time.warn", TIMER, db_time.warn),
        key!(Budgets, "request.db_time.abort", TIMER, db_time.abort),
        key!(Budgets, "request.db_time.mode", MODES, db_time.mode),
        key!(Budgets, "request.db_time.force", Flag, db_time.force),
        key!(Budgets, "transaction.max_age.warn", TIMER, age.warn),
        key!(Budgets, "transaction.max_age.abort", TIMER, age.abort),
        key!(Budgets, "transaction.max_age.mode", MODES, age.mode),
        key!(Budgets, "transaction.max_age.force", Flag, age.force),
        key!(Budgets, "transaction.max_idle.warn", TIMER, idle.warn),
        key!(Budgets, "transaction.max_idle.abort", TIMER, idle.abort),
        key!(Budgets, "transaction.max_idle.abort_alone", TIMER, idle_abort_alone),
        key!(Budgets, "transaction.max_idle.only_if_waiters", Flag, idle_warn_only_if_waiters),
        key!(Budgets, "transaction.max_idle.mode", MODES, idle.mode),
        key!(Budgets, "transaction.max_idle.force", Flag, idle.force),
        key!(Budgets, "statement.max_time.warn", TIMER, statement.warn),
        key!(Budgets, "statement.max_time.abort", TIMER, statement.abort),
        key!(Budgets, "statement.max_time.mode", MODES, statement.mode),
        key!(Budgets, "statement.max_stall.warn", TIMER, stall.warn),
        key!(Budgets, "statement.max_stall.abort", TIMER, stall.abort),
        key!(Budgets, "statement.max_stall.mode", MODES, stall.mode),
        key!(Budgets, "statement.max_stall.force", Flag, stall.force),
    ]
}

/// Keys of `[parking]`, and of `budget.parking` below `[tenant.NAME]` and its like.
fn parking_keys() -> Vec<Key<Budgets>> {
    const MODES: OneOf<ParkMode> = OneOf {
        words: &[("off", ParkMode::Off), ("observe", ParkMode::Observe), ("enforce", ParkMode::Enforce)],
        later: &[],
    };
    vec![
        key!(Budgets, "parking.mode", MODES, parking.mode),
        key!(Budgets, "parking.min_gap", span(0, 1), parking.min_gap),
        key!(Budgets, "parking.only_under_pressure", Flag, parking.only_under_pressure),
    ]
}

/// Keys of `budget` below `[tenant.NAME]` and its like.
pub(super) fn scoped_budget_keys() -> Vec<Key<Budgets>> {
    let mut keys = budget_keys();
    keys.extend(parking_keys());
    keys.push(key!(Budgets, "request.max_wait", Given(span(0, 1)), max_wait));
    keys
}

/// Tables whose second name is the user's own; their keys are written with `NAME` in its place.
pub(super) const NAMED: [&str; 5] = ["database", "user", "tenant", "class", "route"];

/// Other ways to write a key: a shorter one, and B9 beside the budgets of a request.
pub(super) const ALIASES: [(&str, &str); 2] = [
    ("budget.request.max_concurrent", "budget.request.max_concurrent.limit"),
    ("budget.request.max_wait", "pool.max_wait"),
];

/// Tables and keys that the design knows and this version does not build: refused with a word of
/// their own, so that nobody believes them to be in force.
pub(super) const NOT_YET: &[&str] = &[
    "admin.write",
    "auth.hba_file",
    "fleet",
    "listen.tls",
    "pool.tls",
    "readiness",
    "server.tls",
    "tenant.NAME.burst",
];

/// Every key with its tables, `NAME` for the user's own names.
pub(super) fn patterns() -> Vec<String> {
    let mut all: Vec<String> = marked_patterns().into_iter().map(|(name, _)| name).collect();
    all.push("mode.routes.NAME".to_owned());
    all
}

/// The same, but for the routes, each with whether its value is secret.
pub(super) fn marked_patterns() -> Vec<(String, bool)> {
    fn marked<T>(table: &str, keys: Vec<Key<T>>) -> impl Iterator<Item = (String, bool)> {
        keys.into_iter().map(move |key| (format!("{table}{}", key.name), key.secret))
    }
    let mut all: Vec<(String, bool)> = marked("", fixed_keys()).collect();
    all.extend(marked("database.NAME.", database_keys()));
    all.extend(marked("user.NAME.", user_keys()));
    all.extend(marked("tenant.NAME.", tenant_keys()));
    all.extend(marked("class.NAME.", class_keys()));
    for table in TABLES {
        all.extend(marked(&format!("{table}.NAME.budget."), scoped_budget_keys()));
    }
    all
}
