//! The built-in values and the profiles. `config.toml` shows the same; a test compares them.

use super::rules::OneOf;
use super::*;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Default for Config {
    /// What runs without any file: PostgreSQL on this machine, behind loopback only.
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Config {
            listen: Listen {
                addresses: vec![loopback(6432)],
                unix_dir: None,
                reuse_port: false,
                workers: 1,
                max_clients: 10_000,
                max_logins: 2_000,
                login_timeout: seconds(10),
            },
            admin: Admin {
                address: Some(loopback(9432)),
                watch: true,
                users: Vec::new(),
                view: Vec::new(),
                act: Vec::new(),
                sql: Vec::new(),
                metrics_login: false,
            },
            auth: Auth {
                method: AuthMethod::ScramSha256,
                peer_map: Vec::new(),
                rules: Vec::new(),
                query: None,
                query_database: "postgres".to_owned(),
                query_user: None,
                query_password: None,
                query_ttl: seconds(10),
                failure_burst: 10,
                failure_delay: Some(seconds(1)),
            },
            users: BTreeMap::new(),
            databases: BTreeMap::new(),
            any_database: Some(Arc::new(Database::default())),
            pool: PoolRules::default(),
            server: Server { max_backends: 100, connect_parallel: 2 },
            breaker: BreakerRules::default(),
            tag: TagRules::default(),
            budget: Budgets::default(),
            scopes: Scopes::default(),
            warned_since: None,
            tenant_default: TenantRule::default(),
            tenants: BTreeMap::new(),
            classes: super::class::built_in(),
            isolation: Isolation { mode: Mode::Warn, verify: Some(1_000) },
            request: Requests::default(),
            leak: Leak::default(),
            drain: Drain { notice: Duration::ZERO, deadline: seconds(25) },
            tls: Tls::default(),
            log: Log { format: LogFormat::Text, level: "info".to_owned() },
        }
    }
}

impl Default for BreakerRules {
    /// budgets.md §6.3.
    fn default() -> Self {
        BreakerRules {
            failures: 5,
            window: seconds(30),
            open: seconds(1),
            open_max: seconds(30),
            starting: Duration::from_millis(500),
            refused: seconds(30),
        }
    }
}

impl Default for Requests {
    /// budgets.md §2.1 and §4.1.
    fn default() -> Self {
        Requests {
            continuation: Some(Duration::from_millis(100)),
            idle_ttl: seconds(30),
            max_age: Some(seconds(3_600)),
            mode: Mode::Enforce,
        }
    }
}

impl Default for Leak {
    fn default() -> Self {
        Leak {
            hold: Some(seconds(30)),
            idle: Some(seconds(10)),
            leaked: Some(seconds(10)),
            leaked_alone: Some(seconds(60)),
            pinned: Some(seconds(300)),
            pinned_close: Some(seconds(1_800)),
            adaptive: true,
            mode: Mode::Warn,
            force: false,
            statement_text: false,
        }
    }
}

impl Default for Database {
    fn default() -> Self {
        Database {
            host: "127.0.0.1".to_owned(),
            port: 5432,
            target_session_attrs: SessionAttrs::Any,
            dbname: None,
            user: None,
            password: None,
            password_command: None,
            password_command_ttl: seconds(60),
            password_command_timeout: seconds(10),
            tls: DatabaseTls::default(),
            pool: PoolRules::default(),
        }
    }
}

impl Default for PoolRules {
    fn default() -> Self {
        PoolRules {
            mode: PoolMode::Transaction,
            size: 20,
            overflow: 0,
            overflow_time: None,
            min_idle: 0,
            express: Express::Auto,
            reuse: Reuse::Lifo,
            reset: Reset::Dirty,
            max_pins: Share::Percent(20.0),
            policy: Policies::default(),
            replication: ReplicationRule::Refuse,
            require_tenant_context: false,
            tenant_context: TenantContext::default(),
            max_wait: seconds(3),
            queue: 10_000,
            deadlock_after: Some(Duration::from_millis(200)),
            deadlock_overflow: 0,
            idle_timeout: Some(seconds(600)),
            lifetime: Some(seconds(3_600)),
            connect_timeout: seconds(5),
            client_gone_grace: seconds(2),
            max_prepared: 200,
            lazy_begin: true,
        }
    }
}

impl Default for TagRules {
    fn default() -> Self {
        let comment = |key: &str| TagSource::Comment(key.to_owned());
        TagRules {
            tenant: vec![
                TagSource::Set,
                TagSource::Startup,
                TagSource::UserSuffix,
                comment("tenant"),
                TagSource::User,
            ],
            tenant_keys: Vec::new(),
            request: vec![TagSource::Set, comment("request_id"), comment("traceparent"), TagSource::Startup],
            strip_comments: true,
            idle_ttl: seconds(5),
        }
    }
}

impl Default for Budgets {
    /// budgets.md §2.3.
    fn default() -> Self {
        let unlimited = Timed { warn: None, abort: None, mode: Mode::Warn, force: false };
        let timed =
            |warn, abort| Timed { warn: Some(seconds(warn)), abort: Some(seconds(abort)), ..unlimited };
        Budgets {
            max_concurrent: 3,
            max_concurrent_mode: Mode::Warn,
            leases_warn: Some(10),
            leases_reject: None,
            leases_mode: Mode::Warn,
            max_wait: None,
            db_time: Timed { warn: Some(seconds(30)), ..unlimited },
            age: timed(5, 60),
            idle: timed(1, 10),
            idle_abort_alone: Some(seconds(60)),
            idle_warn_only_if_waiters: true,
            statement: unlimited,
            stall: timed(2, 30),
            parking: Parking {
                mode: ParkMode::Observe,
                min_gap: Duration::from_millis(5),
                only_under_pressure: true,
            },
        }
    }
}

impl Default for TenantRule {
    /// budgets.md §2.3: B4, B5, B6, B8, B18.
    fn default() -> Self {
        TenantRule {
            max: Share::Percent(50.0),
            min: 0,
            weight: 1,
            queue: 200,
            max_pins: 2,
            max_sessions: 1_000,
            mode: Mode::Warn,
            users: Vec::new(),
        }
    }
}

/// `profile = "…"`: size, overflow and wait of a kind of application. Every other key stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Profile {
    /// Many short requests; the numbers of problem S2's larger set-up.
    HighPerformance,
    /// The numbers of problem S2's normal set-up.
    Standard,
    /// Prisma's own pool on eight cores, 2 × cores + 1, and room for its migrations.
    Prisma,
    /// Few long jobs that would rather wait than fail.
    Batch,
    /// Small enough that nested sessions show, patient enough for a busy build machine.
    Ci,
}

pub(super) const PROFILES: OneOf<Profile> = OneOf {
    words: &[
        ("high_performance", Profile::HighPerformance),
        ("standard", Profile::Standard),
        ("prisma", Profile::Prisma),
        ("batch", Profile::Batch),
        ("ci", Profile::Ci),
    ],
    later: &[],
};

impl Profile {
    pub(super) fn apply(self, rules: &mut PoolRules) {
        let (size, overflow, wait) = match self {
            Profile::HighPerformance => (15, 25, 3),
            Profile::Standard => (10, 15, 5),
            Profile::Prisma => (17, 4, 10),
            Profile::Batch => (5, 0, 60),
            Profile::Ci => (5, 5, 30),
        };
        (rules.size, rules.overflow, rules.max_wait) = (size, overflow, seconds(wait));
    }
}
