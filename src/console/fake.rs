//! A planted [`Source`] for the tests of both faces: one moment of a small busy process.

use super::source::{Command, Running, Source};
use crate::adapt::Limits;
use crate::adapt::limits::Managed;
use crate::auth::Users;
use crate::backend::trail::fingerprint;
use crate::book::advice::Advice;
use crate::book::view::{
    CallSiteView, LeaseView, PoolView, RequestView, TenantView, TimesView, UpstreamView, WaiterView,
};
use crate::book::{
    Activity, Deadlock, DeadlockKind, Doing, Evidence, LeakClass, LeakEvent, LeaseId, Outcome, PoolId,
    Resolution, SessionId, Threshold, Usage, View,
};
use crate::config::{Config, Keeper, Mode};
use crate::metrics::{Connect, Login, Metrics};
use crate::pool::view::{BackendRow, LeakDetail, LeaseDetail, ParkingRow, PreparedRow, StatementTrace};
use crate::session::registry::ClientRow;
use crate::tag::Tag;
use crate::wire::error::{Report, Severity};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Fixed readings and a record of the commands run.
pub(crate) struct Fake {
    pub(crate) now: Instant,
    pub(crate) view: View,
    pub(crate) metrics: Metrics,
    /// Nobody is named: who is on this machine may do all.
    pub(crate) config: Mutex<Arc<Config>>,
    pub(crate) users: Arc<Users>,
    pub(crate) draining: bool,
    /// Whether texts of statements are kept: [`Fake::TEXT`].
    pub(crate) quoting: bool,
    /// Leases being made fit again, each with so many cancel requests on their way.
    pub(crate) cleaning: Vec<u32>,
    pub(crate) commands: Mutex<Vec<Command>>,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn tag(tenant: &str, request: Option<&str>) -> Arc<Tag> {
    Arc::new(Tag {
        tenant: tenant.into(),
        request: request.map(Into::into),
        user_id: request.map(|_| "u-19".into()),
        route: request.map(|_| "/api/orders".into()),
        ..Tag::default()
    })
}

impl Fake {
    /// In the text of every statement, and nowhere else.
    pub(crate) const TEXT: &str = "hunter2";

    fn quoted(&self, text: &str) -> Option<String> {
        self.quoting.then(|| format!("{text} /* {} */", Fake::TEXT))
    }

    /// Two pools; `acme` holds a lease idle in transaction and waits for another, `quiet` runs.
    pub(crate) fn planted() -> Fake {
        // Far enough from the clock's origin to subtract from.
        let now = Instant::now() + Duration::from_secs(100_000);
        let metrics = Metrics::default();
        metrics.dialled(Connect::Ok, ms(3));
        metrics.logins.inc(Login::Ok);
        let view = View {
            request_ends: vec![("client", 7), ("idle", 3), ("age", 0)],
            unknown_classes: 1,
            retry_storms: 0,
            budget_usage: vec![("B1", 2, 3), ("B9", 15, 120)],
            pools: vec![pool(0, "web", 2), pool(1, "report", 1)],
            tenants: vec![tenant("acme", 1), tenant("quiet", 0)],
            requests: vec![request("req-1", now), request("req-2", now)],
            leases: leases(now),
            waiters: vec![WaiterView {
                session: SessionId(3),
                pool: PoolId(0),
                tag: tag("acme", Some("req-1")),
                since: now - ms(1_500),
                deadline: now + ms(1_500),
                class: "normal".into(),
                reason: "pool_full",
                continues: true,
            }],
            leaks: vec![
                leak(1, LeakClass::LongTx, Outcome::Returned),
                leak(2, LeakClass::IdleInTx, Outcome::Open),
            ],
            budgets: vec![("B1", "would", 4), ("B1", "reject", 2), ("B9", "ok", 1_500)],
            rejections: vec![(PoolId(0), "54000", 2)],
            leak_totals: vec![("long_tx", "report", "returned", 1), ("idle_in_tx", "report", "open", 1)],
            deadlocks: vec![
                deadlock(1, Resolution::Victim, Some(ms(230)), now),
                deadlock(2, Resolution::Suspected, None, now),
            ],
            deadlock_totals: vec![("pool", "victim", 1), ("pool", "suspected", 1)],
            pins: vec![("listen", 1)],
            leases_peak: 3,
            upstreams: vec![UpstreamView {
                name: "db:5432".into(),
                state: crate::breaker::State::Closed,
                opens: None,
                error: None,
                turns: vec![("connect", 2), ("starting", 1), ("recovered", 3)],
            }],
        };
        Fake {
            now,
            view,
            metrics,
            users: Arc::new(Users::new(&Config::default()).expect("no users")),
            config: Mutex::default(),
            draining: false,
            quoting: false,
            cleaning: Vec::new(),
            commands: Mutex::default(),
        }
        .configured("[auth]\nmethod = \"trust\"")
    }

    /// The same with this configuration.
    pub(crate) fn configured(mut self, text: &str) -> Fake {
        self.reload(text);
        let config = self.config();
        self.users = Arc::new(Users::new(&config).expect("users"));
        self
    }

    /// Takes this configuration from now on.
    pub(crate) fn reload(&self, text: &str) {
        let config = crate::config::parse(text, "fake.toml", &Default::default());
        *self.config.lock() = Arc::new(config.unwrap_or_else(|faults| panic!("{faults}")));
    }

    /// Somebody on this machine.
    pub(crate) fn keeper() -> Keeper {
        Keeper { user: "keeper".into(), local: true }
    }
}

fn pool(id: u32, user: &str, share: u64) -> PoolView {
    let mut wait = vec![0; 17];
    (wait[0], wait[16]) = (499 * share, share);
    PoolView {
        id: PoolId(id),
        database: "app".into(),
        user: user.into(),
        size: 3,
        leased: if id == 0 { 2 } else { 0 },
        idle: if id == 0 { 1 } else { 0 },
        dialling: if id == 0 { 1 } else { 0 },
        leaving: 0,
        waiting: if id == 0 { 1 } else { 0 },
        oldest_wait: if id == 0 { ms(1_500) } else { Duration::ZERO },
        paused: false,
        logins: 3 * share,
        leases_total: 500 * share,
        usage: Usage {
            transactions: if id == 0 { 900 } else { 500 },
            statements: 1_400 * share,
            active: Duration::from_secs(14 * share),
            bytes_in: 100_000 * share,
            bytes_out: 2_000_000 * share,
            client_parses: 200 * share,
            server_parses: 10 * share,
            binds: 4_000 * share,
            gap_us: 0,
            repeats: 0,
            backend: 0,
        },
        held: Duration::from_secs(35 * id as u64 + if id == 0 { 35 } else { 0 }),
        waited: Duration::from_secs(share),
        timeouts: share,
        untagged: 7,
        deferred: share,
        times: vec![TimesView {
            class: "normal".into(),
            waited: Duration::from_secs(share),
            hold: wait.clone(),
            wait,
            held: Duration::from_secs(35),
        }],
        leases_peak: 3,
    }
}

fn deadlock(id: u64, resolution: Resolution, lasted: Option<Duration>, now: Instant) -> Deadlock {
    let evidence = "request req-1 holds 1 and waits for 1; request req-2 holds 1 and waits for 1";
    Deadlock {
        id,
        kind: DeadlockKind::Pool,
        resolution,
        pool: PoolId(0),
        since: now - ms(5_000),
        detected: ms(210),
        lasted,
        victim: (resolution == Resolution::Victim).then(|| tag("acme", Some("req-2"))),
        holders: 2,
        parties: 2,
        waiters: 2,
        evidence: evidence.into(),
    }
}

fn tenant(name: &str, waiting: u32) -> TenantView {
    TenantView {
        tenant: name.into(),
        pool: PoolId(0),
        weight: 4,
        min: 1,
        cap: 2,
        leased: 1,
        waiting,
        oldest_wait: ms(1_500 * u64::from(waiting)),
        leases_total: 600,
        held: Duration::from_secs(40),
        active: Duration::from_secs(10),
        waited: Duration::from_secs(2),
        rejections: 2 * u64::from(waiting),
        sessions: 1,
        vtime_lag_ms: -12,
        lease_1m: Duration::from_millis(1_500),
        share_1m: 0.5,
        share_due_1m: 0.8,
    }
}

fn request(id: &str, now: Instant) -> RequestView {
    let first = id == "req-1";
    RequestView {
        id: id.into(),
        tag: tag("acme", Some(id)),
        since: now - ms(31_000),
        leases_now: u32::from(first),
        leases_peak: 3,
        leases_total: if first { 26 } else { 4 },
        waiting: u32::from(first),
        waited: ms(1_700),
        active: ms(38),
        held: ms(31_412),
        statements: 52,
        rejections: 2,
        end: (!first).then_some(crate::book::End::Idle),
        leases_left: Some(7),
        mode: Mode::Warn,
        repeats: if first { 6 } else { 1 },
    }
}

fn leases(now: Instant) -> Vec<LeaseView> {
    let lease = |id, session, tag, ago| LeaseView {
        id: LeaseId(id),
        session: SessionId(session),
        pool: PoolId(0),
        tag,
        since: now - ago,
    };
    vec![lease(7, 1, tag("acme", Some("req-1")), ms(31_000)), lease(8, 2, tag("quiet", None), ms(250))]
}

fn leak(id: u64, class: LeakClass, outcome: Outcome) -> LeakEvent {
    let open = outcome == Outcome::Open;
    LeakEvent {
        id,
        lease: LeaseId(if open { 7 } else { 2 }),
        session: SessionId(1),
        pool: PoolId(0),
        class,
        outcome,
        action: "report",
        mode: Mode::Warn,
        threshold: Threshold::fixed(ms(10_000)),
        evidence: if open { Evidence::REQUEST_ENDED } else { Evidence::NONE },
        reported: Instant::now(),
        held: ms(10_100),
        active: ms(38),
        idle: ms(10_000),
        tx_age: ms(10_050),
        tag: tag("acme", open.then_some("req-1")),
        request_leases: 26,
        request_peak: 3,
        request_ended: open,
        waiters: usize::from(open),
        oldest_wait: ms(300),
        blocked_by: None,
    }
}

impl Source for Fake {
    fn now(&self) -> Instant {
        self.now
    }

    fn started(&self) -> Instant {
        self.now - Duration::from_secs(100)
    }

    fn config(&self) -> Arc<Config> {
        self.config.lock().clone()
    }

    fn users(&self) -> Arc<Users> {
        self.users.clone()
    }

    fn view(&self) -> View {
        self.view.clone()
    }

    fn request(&self, id: &str) -> Option<RequestView> {
        self.view.requests.iter().find(|request| *request.id == *id).cloned()
    }

    fn backends(&self) -> Vec<BackendRow> {
        let row = |pid, lease: Option<u64>| BackendRow {
            pool: PoolId(0),
            database: "app".into(),
            user: "web".into(),
            pid,
            address: "127.0.0.1:5432".into(),
            connected: self.now - ms(60_000),
            lease: lease.map(LeaseId),
            outdated: pid == 4712,
            prepared: 12,
            protection: None,
        };
        vec![row(4711, Some(7)), row(4712, Some(8)), row(4713, None)]
    }

    fn leases(&self) -> Vec<LeaseDetail> {
        let detail = |lease, session, backend_pid, state, ago| LeaseDetail {
            lease: LeaseId(lease),
            session: SessionId(session),
            backend_pid,
            activity: Activity::doing(state, self.now - ago),
            active: ms(38),
            cancels: 0,
            application: "sales-web".into(),
            client: "10.2.3.4:51122".into(),
            statements: vec![],
        };
        let mut first = detail(7, 1, 4711, Doing::IdleInTx, ms(30_000));
        first.activity.tx_start = Some(self.now - ms(30_900));
        first.statements.push(StatementTrace {
            fingerprint: "00000000000077ab".into(),
            ago: ms(30_000),
            text: self.quoted("select 7"),
        });
        let mut leases = vec![first, detail(8, 2, 4712, Doing::Active, ms(200))];
        for (lease, cancels) in leases.iter_mut().zip(&self.cleaning) {
            (lease.activity.state, lease.cancels) = (Doing::Cleaning, *cancels);
        }
        leases
    }

    fn leaks(&self) -> HashMap<u64, LeakDetail> {
        let detail = |backend_pid, last_fp: &str| LeakDetail {
            backend_pid,
            application: "sales-web".into(),
            client: "10.2.3.4:51122".into(),
            last_fp: Some(last_fp.into()),
            xid_assigned: (backend_pid == 4711).then_some(true),
        };
        HashMap::from([(1, detail(4700, "0000000000000001")), (2, detail(4711, "0000000000000002"))])
    }

    fn server_limits(&self) -> BTreeMap<Arc<str>, Arc<Limits>> {
        let limits = Limits {
            version: Some("16.4".into()),
            max_connections: Some(100),
            reserved: 3,
            managed: Some(Managed::Rds),
            ..Limits::default()
        };
        BTreeMap::from([("db:5432".into(), Arc::new(limits))])
    }

    fn advice(&self) -> Vec<Advice> {
        vec![Advice {
            topic: "lease_efficiency",
            scope: "app/web".into(),
            finding: "backends were held 1000 s and did nothing in 98.8 % of it".into(),
            advice: "End transactions before network calls.".into(),
            value: 0.012,
        }]
    }

    fn saturated_total(&self) -> u64 {
        2
    }

    fn callsites(&self) -> Vec<CallSiteView> {
        let site = |route: &str, fingerprint, held, active| CallSiteView {
            route: Some(route.into()),
            call_site: Some("orders.service.ts:88".into()),
            fingerprint,
            leases: 400,
            held: Duration::from_secs(held),
            active: Duration::from_secs(active),
            gaps: Duration::from_secs(held - active),
            hold_p99: Some(ms(6_000)),
            gap_p99: None,
            repeats: 12,
            leaks: 3,
        };
        vec![site("/api/orders", 0x77ab, 1_200, 12), site("/api/health", 1, 3, 2)]
    }

    fn prepared(&self) -> Vec<PreparedRow> {
        let row = |number: u32, names, text: &[u8]| PreparedRow {
            pool: PoolId(0),
            database: "app".into(),
            user: "web".into(),
            number,
            names,
            bytes: text.len() + 3,
            fingerprint: fingerprint(text),
            text: self.quoted("select 1"),
        };
        vec![row(3, 40, b"select * from orders where id = $1"), row(1, 0, b"select 1")]
    }

    fn prepared_sizes(&self) -> HashMap<PoolId, (usize, usize)> {
        HashMap::from([(PoolId(0), (2, 48))])
    }

    fn parking(&self) -> HashMap<PoolId, ParkingRow> {
        HashMap::from([(PoolId(0), crate::pool::parking::Parking::default().row())])
    }

    fn clients(&self) -> Vec<ClientRow> {
        let row = |id, state, lease: Option<u64>, backend_pid| ClientRow {
            protection: None,
            replication: crate::wire::startup::Replication::No,
            id: SessionId(id),
            database: "app".into(),
            user: if id == 2 { "web.quiet" } else { "web" }.into(),
            application: "sales-web".into(),
            client: "10.2.3.4:51122".into(),
            state,
            connected: self.now - ms(90_000),
            requested: Some(self.now - ms(30_000)),
            tag: tag("acme", Some("req-1")),
            lease: lease.map(LeaseId),
            backend_pid,
            prepared: 5,
        };
        vec![row(1, "idle_in_tx", Some(7), 4711), row(2, "active", Some(8), 4712), row(3, "waiting", None, 0)]
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn draining(&self) -> bool {
        self.draining
    }

    fn alive(&self) -> bool {
        true
    }

    fn command(&self, command: Command) -> Running<'_> {
        Box::pin(async move {
            self.commands.lock().push(command.clone());
            match command {
                Command::Pause(Some(_)) => Ok("PAUSE".into()),
                Command::WaitClose(_) => std::future::pending().await,
                Command::KillClient(_) => {
                    Err(Report::new(Severity::Error, "22023", "no such client session"))
                }
                _ => Ok("DONE".into()),
            }
        })
    }
}
