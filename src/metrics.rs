//! Every metric family by name, and the counters that no pool or request owns.
//!
//! The families that come from the book are only named here ([`FAMILIES`]); `http/families.rs` fills
//! them from a view at scrape time, so that nothing on the path of a query touches a registry. What
//! the book does not know (logins, dials, cancels, panics) is counted here: plain atomics, written by
//! whoever does the thing, read at scrape. Names: budgets.md §8; the table in `docs/metrics.md` is
//! held against this one by a test. This file knows no pool, no tenant and no socket.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The types of family that Bursar has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows; the name ends in `_total`.
    Counter,
    /// A reading.
    Gauge,
    /// Cumulative buckets with a sum and a count.
    Histogram,
}

impl Kind {
    /// As in a `# TYPE` line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One metric family.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Full name, base unit included.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// The `# HELP` line.
    pub help: &'static str,
}

macro_rules! families {
    ($($id:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $help)]
            pub const $id: Family =
                Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*
        /// Every family that Bursar itself exports; `process_*` is the metrics library's own.
        pub const FAMILIES: &[&Family] = &[$(&$id),*];
    };
}

/// The label that OpenTelemetry's pool metrics carry (`db.client.connection.pool.name`).
pub const OTEL_POOL: &str = "db_client_connection_pool_name";

families! {
    OTEL_COUNT Gauge "db_client_connection_count" ["db_client_connection_pool_name", "state"] "Backends open, by state (idle, used).";
    OTEL_MAX Gauge "db_client_connection_max" ["db_client_connection_pool_name"] "Backends the pool may have.";
    OTEL_IDLE_MAX Gauge "db_client_connection_idle_max" ["db_client_connection_pool_name"] "Idle backends the pool may keep.";
    OTEL_IDLE_MIN Gauge "db_client_connection_idle_min" ["db_client_connection_pool_name"] "Idle backends kept while nobody asks.";
    OTEL_PENDING Gauge "db_client_connection_pending_requests" ["db_client_connection_pool_name"] "Checkouts waiting now.";
    OTEL_TIMEOUTS Counter "db_client_connection_timeouts_total" ["db_client_connection_pool_name"] "Checkouts that waited in vain.";
    OTEL_WAIT Histogram "db_client_connection_wait_time_seconds" ["db_client_connection_pool_name"] "Time from asking for a backend to having one.";
    OTEL_USE Histogram "db_client_connection_use_time_seconds" ["db_client_connection_pool_name"] "Time from checkout to checkin.";
    LEASE_WAIT Histogram "bursar_lease_wait_seconds" ["pool", "class"] "Wait of the leases granted.";
    LEASE_HOLD Histogram "bursar_lease_hold_seconds" ["pool", "class"] "Hold of the leases returned.";
    LEASE_ACTIVE Counter "bursar_lease_active_seconds_total" ["pool", "tenant"] "Time in which a statement ran on a leased backend.";
    LEASE_IDLE Counter "bursar_lease_idle_seconds_total" ["pool", "tenant"] "Time in which a leased backend did nothing; active / (active + idle) is the lease efficiency.";
    LEASES Counter "bursar_leases_total" ["pool"] "Leases granted.";
    LEASES_IN_USE Gauge "bursar_leases_in_use" ["pool"] "Leases held now.";
    LEASES_PEAK Gauge "bursar_leases_peak" ["pool"] "Most leases of the pool at once since start.";
    ALL_LEASES_PEAK Gauge "bursar_all_leases_peak" [] "Most leases at once over all pools since start.";
    LEASE_TIMEOUTS Counter "bursar_lease_timeouts_total" ["pool"] "Waits that ended in ERROR 53300.";
    UNTAGGED Counter "bursar_untagged_leases_total" ["pool"] "Leases of sessions without a request tag.";
    UNSAFE_DEFERRED Counter "bursar_unsafe_grants_deferred_total" ["pool"] "Waiters put off although a backend was free, because requests might have come to wait for one another.";
    UNKNOWN_CLASSES Counter "bursar_unknown_classes_total" [] "Checkouts tagged with a class that is not configured: served as normal.";
    REJECTIONS Counter "bursar_rejections_total" ["pool", "sqlstate"] "Checkouts refused.";
    RETRY_STORMS Counter "bursar_retry_storms_total" [] "Refusals that were at least the third of their request, or session, within ten seconds.";
    QUEUE_LENGTH Gauge "bursar_queue_length" ["pool"] "Checkouts waiting now.";
    QUEUE_OLDEST Gauge "bursar_queue_oldest_seconds" ["pool"] "Longest wait of those waiting now.";
    POOL_SIZE Gauge "bursar_pool_size" ["pool"] "Configured backends, without overflow.";
    POOL_PAUSED Gauge "bursar_pool_paused" ["pool"] "1 while PAUSE is on.";
    BACKENDS Gauge "bursar_backends" ["pool", "state"] "Backends by state (idle, leased, dialling).";
    TRANSACTIONS Counter "bursar_transactions_total" ["pool"] "Client transactions finished.";
    STATEMENTS Counter "bursar_statements_total" ["pool"] "Statements run.";
    CLIENT_BYTES Counter "bursar_client_bytes_total" ["pool", "direction"] "Bytes from clients (in) and to clients (out) while they held a lease.";
    PREPARED_CLIENT_PARSES Counter "bursar_prepared_client_parses_total" ["pool"] "Parses of named statements that clients sent, where these are shared.";
    PREPARED_SERVER_PARSES Counter "bursar_prepared_server_parses_total" ["pool"] "Parses of shared statements that PostgreSQL was sent.";
    PREPARED_BINDS Counter "bursar_prepared_binds_total" ["pool"] "Binds of shared statements.";
    PREPARED_STATEMENTS Gauge "bursar_prepared_statements" ["pool"] "Different statements that sessions share, and those kept for the next one.";
    PREPARED_BYTES Gauge "bursar_prepared_bytes" ["pool"] "Bytes of their texts and parameter types.";
    TENANT_IN_USE Gauge "bursar_tenant_leases_in_use" ["pool", "tenant"] "Leases the tenant holds now.";
    TENANT_QUEUE Gauge "bursar_tenant_queue_length" ["pool", "tenant"] "The tenant's checkouts waiting now.";
    TENANT_LEASES Counter "bursar_tenant_leases_total" ["pool", "tenant"] "Leases granted to the tenant.";
    TENANT_LEASE_SECONDS Counter "bursar_tenant_lease_seconds_total" ["pool", "tenant"] "Time the tenant held backends.";
    TENANT_WAIT_SECONDS Counter "bursar_tenant_wait_seconds_total" ["pool", "tenant"] "Time the tenant waited for backends.";
    TENANT_REJECTIONS Counter "bursar_tenant_rejections_total" ["pool", "tenant"] "The tenant's checkouts refused.";
    PARKABLE Counter "bursar_parkable_seconds_total" ["pool"] "Time beyond parking.min_gap for which clients were silent in transactions that could be parked.";
    PARKED Counter "bursar_parked_seconds_total" ["pool"] "Time that transactions spent parked.";
    PARKED_NOW Gauge "bursar_parked" ["pool"] "Transactions parked now.";
    PARKS Counter "bursar_parks_total" ["pool", "result"] "Parkings, by what became of them.";
    UNPARKABLE Counter "bursar_unparkable_total" ["pool", "reason"] "Transactions that could not be parked, by the first thing that says so.";
    BUDGET Counter "bursar_budget_total" ["dimension", "outcome"] "Budget decisions (B1 to B18) by outcome.";
    LEAKS Counter "bursar_leaks_total" ["class", "action", "outcome"] "Leak reports.";
    LEAKS_OPEN Gauge "bursar_leaks_open" ["class"] "Leak cases open now.";
    DEADLOCKS Counter "bursar_deadlocks_total" ["kind", "resolution"] "Sessions that waited for each other, by what was done.";
    SATURATED Counter "bursar_client_pool_saturated_total" [] "Applications found to starve on their own connection pools.";
    PINS Gauge "bursar_pins" ["reason"] "Leases kept beyond their transaction, by reason.";
    REQUESTS_ENDED Counter "bursar_requests_ended_total" ["by"] "Requests that are over, by why: their client said so, they were idle, or too old.";
    REQUESTS Gauge "bursar_requests" [] "Requests known now.";
    CLIENT_SESSIONS Gauge "bursar_client_sessions" ["state"] "Client sessions by state.";
    LOGINS Counter "bursar_logins_total" ["result"] "Client logins by result.";
    DAMPED Counter "bursar_login_failures_damped_total" ["outcome"] "Failed logins that were not answered at once, by what became of them.";
    LOOKUPS Counter "bursar_user_lookups_total" ["result"] "Questions to PostgreSQL about users (auth.query) by result.";
    LOOKUP_SECONDS Histogram "bursar_user_lookup_seconds" [] "Time from asking about a user to the answer, connecting included.";
    CANCELS Counter "bursar_cancels_total" ["result"] "Cancel requests by what became of them.";
    STALE_TAGS Counter "bursar_stale_tags_total" [] "Request tags dropped because nobody used them, or their request was ended.";
    CONNECTS Counter "bursar_backend_connects_total" ["result"] "Dials to PostgreSQL by result.";
    CONNECT_SECONDS Histogram "bursar_backend_connect_seconds" [] "Time from dial to ready of the dials that succeeded.";
    BREAKER Gauge "bursar_breaker_state" ["upstream"] "A server's circuit breaker: 0 closed, 1 half-open, 2 open.";
    BREAKER_TURNS Counter "bursar_breaker_transitions_total" ["upstream", "reason"] "Changes of a server's circuit breaker.";
    MAX_CONNECTIONS Gauge "bursar_server_max_connections" ["upstream"] "Connections the server lets in, max_connections, once it was asked.";
    RESETS Counter "bursar_backend_resets_total" ["kind"] "Used backends made fit for the next session, by how.";
    ISOLATION Counter "bursar_isolation_violations_total" ["kind"] "Work of different tenants, users or requests that would have mixed, by kind (V1 to V7).";
    CONTEXT_MISMATCHES Counter "bursar_tenant_context_mismatch_total" [] "Backends closed because they did not have the tenant context that they should.";
    PANICS Counter "bursar_panics_total" [] "Sessions ended by a bug in Bursar.";
    RELOADS Counter "bursar_reloads_total" ["result"] "Reloads of the configuration by result.";
    DRAINING Gauge "bursar_draining" [] "1 while the process is leaving.";
    BUILD_INFO Gauge "bursar_build_info" ["version"] "Always 1; the version is in the label.";
}

/// A label with a fixed set of values.
pub trait Label: Copy + 'static {
    /// Every value, in the order of the discriminants.
    const ALL: &'static [Self];
    /// The value's name.
    fn name(self) -> &'static str;
    /// Its place in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$outer:meta])* $id:ident { $($(#[$doc:meta])* $value:ident = $name:literal,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $id { $($(#[$doc])* $value,)* }
        impl Label for $id {
            const ALL: &'static [Self] = &[$($id::$value),*];
            fn name(self) -> &'static str {
                match self { $($id::$value => $name,)* }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// How a dial to PostgreSQL ended.
    Connect {
        /// Ready for a session.
        Ok = "ok",
        /// No such host, connection refused or reset.
        Unreachable = "unreachable",
        /// Not ready within `connect_timeout`.
        Timeout = "timeout",
        /// PostgreSQL said no (password, role, database, too many connections).
        Refused = "refused",
        /// It did not speak the protocol.
        Protocol = "protocol",
    }
}
label! {
    /// How a client's login ended.
    Login {
        /// Ready for queries.
        Ok = "ok",
        /// Unknown user, wrong proof, or the console to somebody who is no administrator.
        Auth = "auth",
        /// B18, `max_clients`, or no backend in time to learn the parameters from.
        Limit = "limit",
        /// Not done within `login_timeout`.
        Timeout = "timeout",
        /// A start-up that is malformed or asks for what there is not.
        Protocol = "protocol",
        /// A TLS handshake that failed.
        Tls = "tls",
        /// The server cannot be reached or says no, or an unknown database.
        Upstream = "upstream",
        /// The process is leaving.
        Draining = "draining",
    }
}
label! {
    /// What became of a failed login that was not to be answered at once.
    Damped {
        /// Answered late.
        Answered = "answered",
        /// Its client did not wait for the answer.
        Gone = "gone",
        /// Closed at once without one, because as many waited as may.
        Closed = "closed",
    }
}
label! {
    /// How a question about a user ended.
    Lookup {
        /// He can log in by password.
        Found = "found",
        /// He does not exist, or has no password.
        Unknown = "unknown",
        /// No answer, or none that can be understood.
        Failed = "failed",
    }
}
label! {
    /// What became of a cancel request.
    Cancel {
        /// Sent to the backend that the session held.
        Forwarded = "forwarded",
        /// The session was still queued: taken out of the queue.
        Queued = "queued",
        /// The session held nothing.
        Idle = "idle",
        /// No session has that key.
        Unknown = "unknown",
    }
}
label! {
    /// How a used backend was made fit for the next session.
    Reset {
        /// Scrubbed, verified and kept.
        Scrubbed = "scrubbed",
        /// Closed, because scrubbing it was not possible or failed.
        Closed = "closed",
    }
}
label! {
    /// What mixed work that is to be kept apart (budgets.md §2.7).
    Isolation {
        /// A tenant context other than the tag's tenant.
        V1 = "V1",
        /// No tenant context where one is required.
        V2 = "V2",
        /// One request id, different users.
        V3 = "V3",
        /// A backend with state that is not its next session's.
        V4 = "V4",
        /// A role that may not act for the tenant.
        V5 = "V5",
        /// Another user inside a transaction.
        V6 = "V6",
        /// Another request inside a transaction.
        V7 = "V7",
    }
}
label! {
    /// What became of a transaction that could be parked (budgets.md §4.4).
    Park {
        /// Its backend was given back.
        Parked = "parked",
        /// It went on, on a backend of its pool.
        Resumed = "resumed",
        /// COMMIT or ROLLBACK came while it was parked, and needed no backend.
        Ended = "ended",
        /// Nobody came back: its client left, or was refused a backend.
        Lost = "lost",
        /// Not parked: it has written after all.
        Wrote = "wrote",
        /// Not parked: it does not read committed data, or has a cursor, or a setting that is too long.
        Unfit = "unfit",
        /// What it had set could not be given again, and it has failed.
        Mismatch = "mismatch",
    }
}
label! {
    /// Why a transaction cannot be parked: the first thing about it that says so.
    Unparkable {
        /// How it began was not seen.
        Begin = "begin",
        /// A statement that does not only read.
        Statement = "statement",
        /// It locks rows.
        Lock = "lock",
        /// It makes a table.
        Into = "into",
        /// It uses a function, a view or a type that may do more than read.
        Function = "function",
        /// It changes a setting that cannot be given again.
        Context = "context",
        /// A text that is not understood.
        Text = "text",
        /// A portal that stays open.
        Portal = "portal",
        /// A prepared statement that is the session's own, a FunctionCall, or a pipeline across transactions.
        Protocol = "protocol",
        /// Its functions are not known yet.
        Catalog = "catalog",
    }
}
label! {
    /// How a reload ended.
    Reload {
        /// The new configuration is in force.
        Ok = "ok",
        /// The file had faults; nothing changed.
        Refused = "refused",
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One counter for each value of a label.
#[derive(Debug)]
pub struct Counters<L> {
    cells: Box<[Counter]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> Default for Counters<L> {
    fn default() -> Self {
        Counters { cells: L::ALL.iter().map(|_| Counter::default()).collect(), label: PhantomData }
    }
}

impl<L: Label> Counters<L> {
    /// Adds one for this value.
    pub fn inc(&self, value: L) {
        self.cells[value.index()].inc();
    }

    /// The number for this value.
    #[must_use]
    pub fn get(&self, value: L) -> u64 {
        self.cells[value.index()].get()
    }

    /// Every value with its number.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        L::ALL.iter().map(|value| (value.name(), self.get(*value)))
    }
}

/// Bounds of `bursar_backend_connect_seconds`, in seconds.
pub const CONNECT_BOUNDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Durations in buckets bounded by [`CONNECT_BOUNDS`], and one more for what lies beyond.
#[derive(Debug, Default)]
pub struct ConnectTimes {
    counts: [AtomicU64; CONNECT_BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl ConnectTimes {
    /// One more.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = CONNECT_BOUNDS.iter().position(|bound| seconds <= *bound);
        self.counts[bucket.unwrap_or(CONNECT_BOUNDS.len())].fetch_add(1, Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Relaxed);
    }

    /// Counts per bucket (not cumulative).
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Relaxed)).collect()
    }

    /// Sum of all durations.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.micros.load(Relaxed))
    }
}

/// What is counted for the process as a whole; one for each Bursar, never a static.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Client logins.
    pub logins: Counters<Login>,
    /// Failed logins that were not answered at once.
    pub damped: Counters<Damped>,
    /// Questions about users.
    pub lookups: Counters<Lookup>,
    /// How long those took that were answered.
    pub lookup_times: ConnectTimes,
    /// Cancel requests.
    pub cancels: Counters<Cancel>,
    /// Backends made fit again.
    pub resets: Counters<Reset>,
    /// Reloads.
    pub reloads: Counters<Reload>,
    /// Isolation violations.
    pub isolation: Counters<Isolation>,
    /// Backends without the tenant context that they should have.
    pub context_mismatches: Counter,
    /// Request tags dropped by the stale-tag rule (budgets.md §2.2).
    pub stale_tags: Counter,
    /// Panics caught at the edge of a session.
    pub panics: Counter,
    connects: Counters<Connect>,
    connect_times: ConnectTimes,
    failing: AtomicU64,
}

impl Metrics {
    /// Counts one dial and how long it took; only successful ones enter the histogram.
    pub fn dialled(&self, result: Connect, took: Duration) {
        self.connects.inc(result);
        if result == Connect::Ok {
            self.connect_times.observe(took);
            self.failing.store(0, Relaxed);
        } else {
            self.failing.fetch_add(1, Relaxed);
        }
    }

    /// Dials by result.
    #[must_use]
    pub fn connects(&self) -> &Counters<Connect> {
        &self.connects
    }

    /// How long successful dials took.
    #[must_use]
    pub fn connect_times(&self) -> &ConnectTimes {
        &self.connect_times
    }

    /// Dials that failed since the last one that succeeded.
    #[must_use]
    pub fn failing_dials(&self) -> u64 {
        self.failing.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_follow_the_rules() {
        let names: BTreeSet<_> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        for family in FAMILIES {
            assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
            assert!(
                family.labels.iter().all(|l| !["request", "query", "client"].contains(l)),
                "{}",
                family.name
            );
        }
    }

    #[test]
    fn only_successful_dials_are_timed_and_they_end_a_series_of_failures() {
        let metrics = Metrics::default();
        metrics.dialled(Connect::Timeout, Duration::from_secs(5));
        metrics.dialled(Connect::Refused, Duration::from_millis(1));
        assert_eq!(metrics.failing_dials(), 2);
        metrics.dialled(Connect::Ok, Duration::from_millis(3));
        metrics.dialled(Connect::Ok, Duration::from_secs(9));
        assert_eq!(metrics.failing_dials(), 0);
        assert_eq!(metrics.connect_times().counts(), [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(metrics.connect_times().sum(), Duration::from_millis(9003));
        let by_result: Vec<_> = metrics.connects().all().collect();
        assert_eq!(
            by_result,
            [("ok", 2), ("unreachable", 0), ("timeout", 1), ("refused", 1), ("protocol", 0)]
        );
    }
}
