//! Metric families at scrape time: a [`Source`] read once, made into the metrics library's families.
//!
//! Built by hand instead of through the library's labelled vectors, whose hash of label values takes
//! ("a", "bc") and ("ab", "c") for one series. Nothing is kept between scrapes but which tenants have
//! series of their own. Names and help are in `metrics.rs`.

use super::tenants::{Series, TopTenants};
use crate::book::view::{PoolView, TimesView, UpstreamView, View};
use crate::book::{HOLD_BOUNDS, LeakClass, Outcome, PoolId, WAIT_BOUNDS};
use crate::breaker::State;
use crate::console::Source;
use crate::metrics::{self, CONNECT_BOUNDS, FAMILIES, Family, Kind};
use crate::pool::view::ParkingRow;
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Everything Bursar itself exports.
pub(super) struct Exported {
    source: Arc<dyn Source>,
    descs: Vec<Desc>,
    tenants: Mutex<TopTenants>,
}

impl Exported {
    /// A collector for one registry.
    ///
    /// # Errors
    /// A family's name, help or labels are not valid: never, by the test of the table.
    pub(super) fn new(source: Arc<dyn Source>) -> prometheus::Result<Exported> {
        let desc = |family: &&Family| {
            let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(family.name.to_owned(), family.help.to_owned(), labels, HashMap::new())
        };
        let descs = FAMILIES.iter().map(desc).collect::<Result<_, _>>()?;
        Ok(Exported { source, descs, tenants: Mutex::default() })
    }
}

impl Collector for Exported {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let source = &*self.source;
        let view = source.view();
        let tenants = self.tenants.lock().series(source.now(), &view.tenants);
        let names = view.pools.iter().map(|pool| (pool.id, pool_name(pool))).collect();
        let mut families = otel(source, &view, &names);
        families.extend(pools(&view, &names));
        families.extend(prepared(source, &view, &names));
        families.extend(parking(source, &names));
        families.extend(of_tenants(&tenants, &names));
        families.extend(over_all(source, &view));
        families.extend(process(source));
        families
    }
}

type Names = HashMap<PoolId, String>;

/// The `pool` label: `user@database`. The user's own `@` and `%` are percent-encoded, so that no two
/// pools share a name.
fn pool_name(pool: &PoolView) -> String {
    format!("{}@{}", pool.user.replace('%', "%25").replace('@', "%40"), pool.database)
}

/// One sample: label values in the family's order, and the value.
struct Sample(Vec<String>, Number);

enum Number {
    Value(f64),
    /// Bounds in seconds, counts per bucket (one more than bounds, not cumulative), sum in seconds.
    Buckets(&'static [f64], Vec<u64>, f64),
}

macro_rules! sample {
    ($($label:expr),* => $value:expr) => { Sample(vec![$(String::from($label)),*], Number::Value($value as f64)) };
}

fn family(family: &Family, samples: impl IntoIterator<Item = Sample>) -> MetricFamily {
    let metrics = samples.into_iter().map(|Sample(values, number)| {
        debug_assert_eq!(values.len(), family.labels.len(), "{}", family.name);
        let pairs = family.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value);
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        match number {
            Number::Value(value) if family.kind == Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Number::Value(value) => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            Number::Buckets(bounds, counts, sum) => metric.set_histogram(histogram(bounds, &counts, sum)),
        }
        metric
    });
    let mut exported = MetricFamily::default();
    exported.set_name(family.name.to_owned());
    exported.set_help(family.help.to_owned());
    exported.set_field_type(match family.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    exported.set_metric(metrics.collect());
    exported
}

fn histogram(bounds: &[f64], counts: &[u64], sum: f64) -> Histogram {
    let mut cumulative = 0;
    let buckets = bounds.iter().zip(counts).map(|(bound, count)| {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counts.iter().sum());
    histogram.set_sample_sum(sum);
    histogram
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// The families of OpenTelemetry's database conventions.
fn otel(source: &dyn Source, view: &View, names: &Names) -> Vec<MetricFamily> {
    let config = source.config();
    let name = |pool: &PoolView| names[&pool.id].clone();
    let each = |kind: &Family, value: &dyn Fn(&PoolView) -> f64| {
        family(kind, view.pools.iter().map(|pool| sample!(name(pool) => value(pool))))
    };
    let states = view.pools.iter().flat_map(|pool| {
        [sample!(name(pool), "idle" => pool.idle), sample!(name(pool), "used" => pool.leased)]
    });
    let min_idle = |pool: &PoolView| {
        let rules = config.databases.get(&*pool.database).or(config.any_database.as_ref());
        rules.map_or(0.0, |database| database.pool.min_idle as f64)
    };
    vec![
        family(&metrics::OTEL_COUNT, states),
        each(&metrics::OTEL_MAX, &|pool| pool.size as f64),
        each(&metrics::OTEL_IDLE_MAX, &|pool| pool.size as f64),
        each(&metrics::OTEL_IDLE_MIN, &min_idle),
        each(&metrics::OTEL_PENDING, &|pool| pool.waiting as f64),
        each(&metrics::OTEL_TIMEOUTS, &|pool| pool.timeouts as f64),
        family(
            &metrics::OTEL_WAIT,
            view.pools.iter().map(|pool| waits(vec![name(pool)], pool.wait(), pool.waited)),
        ),
        family(
            &metrics::OTEL_USE,
            view.pools.iter().map(|pool| holds(vec![name(pool)], pool.hold(), pool.held)),
        ),
    ]
}

fn waits(labels: Vec<String>, counts: Vec<u64>, sum: Duration) -> Sample {
    Sample(labels, Number::Buckets(&WAIT_BOUNDS, counts, seconds(sum)))
}

fn holds(labels: Vec<String>, counts: Vec<u64>, sum: Duration) -> Sample {
    Sample(labels, Number::Buckets(&HOLD_BOUNDS, counts, seconds(sum)))
}

/// One sample a pool, or a few by one more label.
fn pools(view: &View, names: &Names) -> Vec<MetricFamily> {
    let name = |pool: &PoolView| names[&pool.id].clone();
    let each = |kind: &Family, value: &dyn Fn(&PoolView) -> f64| {
        family(kind, view.pools.iter().map(|pool| sample!(name(pool) => value(pool))))
    };
    let backends = view.pools.iter().flat_map(|pool| {
        let states = [("idle", pool.idle), ("leased", pool.leased), ("dialling", pool.dialling)];
        states.map(|(state, count)| sample!(name(pool), state => count))
    });
    let bytes = view.pools.iter().flat_map(|pool| {
        let directions = [("in", pool.usage.bytes_in), ("out", pool.usage.bytes_out)];
        directions.map(|(direction, bytes)| sample!(name(pool), direction => bytes))
    });
    let rejections = view
        .rejections
        .iter()
        .filter_map(|(pool, sqlstate, count)| Some(sample!(names.get(pool)?.clone(), *sqlstate => *count)));
    let times = || view.pools.iter().flat_map(|pool| pool.times.iter().map(move |times| (pool, times)));
    let labels = |(pool, times): (&PoolView, &TimesView)| vec![name(pool), times.class.to_string()];
    vec![
        family(&metrics::LEASE_WAIT, times().map(|at| waits(labels(at), at.1.wait.clone(), at.1.waited))),
        family(&metrics::LEASE_HOLD, times().map(|at| holds(labels(at), at.1.hold.clone(), at.1.held))),
        each(&metrics::LEASES, &|pool| pool.leases_total as f64),
        each(&metrics::LEASES_IN_USE, &|pool| pool.leased as f64),
        each(&metrics::LEASES_PEAK, &|pool| pool.leases_peak as f64),
        each(&metrics::LEASE_TIMEOUTS, &|pool| pool.timeouts as f64),
        each(&metrics::UNTAGGED, &|pool| pool.untagged as f64),
        each(&metrics::UNSAFE_DEFERRED, &|pool| pool.deferred as f64),
        family(&metrics::REJECTIONS, rejections),
        each(&metrics::QUEUE_LENGTH, &|pool| pool.waiting as f64),
        each(&metrics::QUEUE_OLDEST, &|pool| seconds(pool.oldest_wait)),
        each(&metrics::POOL_SIZE, &|pool| pool.size as f64),
        each(&metrics::POOL_PAUSED, &|pool| f64::from(u8::from(pool.paused))),
        family(&metrics::BACKENDS, backends),
        each(&metrics::TRANSACTIONS, &|pool| pool.usage.transactions as f64),
        each(&metrics::STATEMENTS, &|pool| pool.usage.statements as f64),
        family(&metrics::CLIENT_BYTES, bytes),
    ]
}

/// Shared prepared statements.
fn prepared(source: &dyn Source, view: &View, names: &Names) -> Vec<MetricFamily> {
    let sizes = source.prepared_sizes();
    let each = |kind: &Family, value: &dyn Fn(&PoolView) -> u64| {
        family(kind, view.pools.iter().map(|pool| sample!(names[&pool.id].clone() => value(pool))))
    };
    let size = |pool: &PoolView| sizes.get(&pool.id).copied().unwrap_or_default();
    vec![
        each(&metrics::PREPARED_CLIENT_PARSES, &|pool| pool.usage.client_parses),
        each(&metrics::PREPARED_SERVER_PARSES, &|pool| pool.usage.server_parses),
        each(&metrics::PREPARED_BINDS, &|pool| pool.usage.binds),
        each(&metrics::PREPARED_STATEMENTS, &|pool| size(pool).0 as u64),
        each(&metrics::PREPARED_BYTES, &|pool| size(pool).1 as u64),
    ]
}

/// Parked transactions.
fn parking(source: &dyn Source, names: &Names) -> Vec<MetricFamily> {
    let mut rows: Vec<_> = source.parking().into_iter().filter(|(id, _)| names.contains_key(id)).collect();
    rows.sort_by_key(|(id, _)| *id);
    let each = |kind: &Family, value: &dyn Fn(&ParkingRow) -> f64| {
        family(kind, rows.iter().map(|(id, row)| sample!(names[id].clone() => value(row))))
    };
    let by = |kind: &Family, counts: &dyn Fn(&ParkingRow) -> Vec<(&'static str, u64)>| {
        let samples = rows.iter().flat_map(|(id, row)| {
            counts(row).into_iter().map(|(value, count)| sample!(names[id].clone(), value => count))
        });
        family(kind, samples)
    };
    vec![
        each(&metrics::PARKABLE, &|row| seconds(row.parkable)),
        each(&metrics::PARKED, &|row| seconds(row.parked)),
        each(&metrics::PARKED_NOW, &|row| row.now as f64),
        by(&metrics::PARKS, &|row| row.parks.clone()),
        by(&metrics::UNPARKABLE, &|row| row.unparkable.clone()),
    ]
}

fn of_tenants(tenants: &[Series], names: &Names) -> Vec<MetricFamily> {
    let each = |kind: &Family, value: &dyn Fn(&Series) -> f64| {
        let samples = tenants.iter().filter_map(|series| {
            Some(sample!(names.get(&series.pool)?.clone(), &*series.tenant => value(series)))
        });
        family(kind, samples)
    };
    vec![
        each(&metrics::LEASE_ACTIVE, &|series| series.totals.active),
        each(&metrics::LEASE_IDLE, &|series| (series.totals.held - series.totals.active).max(0.0)),
        each(&metrics::TENANT_IN_USE, &|series| series.in_use as f64),
        each(&metrics::TENANT_QUEUE, &|series| series.queue as f64),
        each(&metrics::TENANT_LEASES, &|series| series.totals.leases),
        each(&metrics::TENANT_LEASE_SECONDS, &|series| series.totals.held),
        each(&metrics::TENANT_WAIT_SECONDS, &|series| series.totals.waited),
        each(&metrics::TENANT_REJECTIONS, &|series| series.totals.rejections),
    ]
}

/// What a client session does, as its row says it.
const STATES: [&str; 6] = ["login", "idle", "waiting", "active", "idle_in_tx", "pinned"];
/// What is counted over all pools.
fn over_all(source: &dyn Source, view: &View) -> Vec<MetricFamily> {
    // Those at zero too: a gauge that comes and goes cannot be compared with zero.
    let mut sessions: BTreeMap<&'static str, u64> = STATES.map(|state| (state, 0)).into();
    for client in source.clients() {
        *sessions.entry(client.state).or_default() += 1;
    }
    let mut open: BTreeMap<&'static str, u64> = LeakClass::ALL.map(|class| (class.name(), 0)).into();
    for leak in view.leaks.iter().filter(|leak| leak.outcome == Outcome::Open) {
        *open.entry(leak.class.name()).or_default() += 1;
    }
    let budgets =
        view.budgets.iter().map(|(dimension, outcome, count)| sample!(*dimension, *outcome => *count));
    let leaks = view.leak_totals.iter();
    let leaks = leaks.map(|(class, action, outcome, count)| sample!(*class, *action, *outcome => *count));
    let deadlocks = view.deadlock_totals.iter();
    let deadlocks = deadlocks.map(|(kind, resolution, count)| sample!(*kind, *resolution => *count));
    let turns = view.upstreams.iter().flat_map(|upstream| {
        upstream.turns.iter().map(|(reason, count)| sample!(&*upstream.name, *reason => *count))
    });
    let limits = source.server_limits();
    let connections = limits.iter().filter_map(|(server, limits)| {
        let max = limits.max_connections?;
        Some(sample!(&**server => max))
    });
    vec![
        family(&metrics::ALL_LEASES_PEAK, [sample!(=> view.leases_peak)]),
        family(&metrics::UNKNOWN_CLASSES, [sample!(=> view.unknown_classes)]),
        family(&metrics::BUDGET, budgets),
        family(&metrics::RETRY_STORMS, [sample!(=> view.retry_storms)]),
        family(&metrics::LEAKS, leaks),
        family(&metrics::LEAKS_OPEN, open.into_iter().map(|(class, count)| sample!(class => count))),
        family(&metrics::DEADLOCKS, deadlocks),
        family(&metrics::BREAKER, view.upstreams.iter().map(breaker)),
        family(&metrics::BREAKER_TURNS, turns),
        family(&metrics::MAX_CONNECTIONS, connections),
        family(&metrics::SATURATED, [sample!(=> source.saturated_total())]),
        family(&metrics::PINS, view.pins.iter().map(|(reason, count)| sample!(*reason => *count))),
        family(&metrics::REQUESTS_ENDED, view.request_ends.iter().map(|(by, count)| sample!(*by => *count))),
        family(&metrics::REQUESTS, [sample!(=> view.requests.len())]),
        family(&metrics::CLIENT_SESSIONS, sessions.into_iter().map(|(state, count)| sample!(state => count))),
    ]
}

fn breaker(upstream: &UpstreamView) -> Sample {
    let state = match upstream.state {
        State::Closed => 0,
        State::HalfOpen => 1,
        State::Open { .. } => 2,
    };
    sample!(&*upstream.name => state)
}

/// What the process counts itself.
fn process(source: &dyn Source) -> Vec<MetricFamily> {
    fn by<'a>(counts: impl Iterator<Item = (&'static str, u64)> + 'a) -> impl Iterator<Item = Sample> + 'a {
        counts.map(|(value, count)| sample!(value => count))
    }
    let counted = source.metrics();
    let times = counted.connect_times();
    let connects = Number::Buckets(&CONNECT_BOUNDS, times.counts(), seconds(times.sum()));
    let asked = &counted.lookup_times;
    let lookups = Number::Buckets(&CONNECT_BOUNDS, asked.counts(), seconds(asked.sum()));
    vec![
        family(&metrics::LOGINS, by(counted.logins.all())),
        family(&metrics::DAMPED, by(counted.damped.all())),
        family(&metrics::LOOKUPS, by(counted.lookups.all())),
        family(&metrics::LOOKUP_SECONDS, [Sample(vec![], lookups)]),
        family(&metrics::CANCELS, by(counted.cancels.all())),
        family(&metrics::STALE_TAGS, [sample!(=> counted.stale_tags.get())]),
        family(&metrics::CONNECTS, by(counted.connects().all())),
        family(&metrics::CONNECT_SECONDS, [Sample(vec![], connects)]),
        family(&metrics::RESETS, by(counted.resets.all())),
        family(&metrics::ISOLATION, by(counted.isolation.all())),
        family(&metrics::CONTEXT_MISMATCHES, [sample!(=> counted.context_mismatches.get())]),
        family(&metrics::PANICS, [sample!(=> counted.panics.get())]),
        family(&metrics::RELOADS, by(counted.reloads.all())),
        family(&metrics::DRAINING, [sample!(=> u8::from(source.draining()))]),
        family(&metrics::BUILD_INFO, [sample!(env!("CARGO_PKG_VERSION") => 1)]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::fake::Fake;
    use std::collections::{BTreeSet, HashSet};

    fn collected(fake: Fake) -> Vec<MetricFamily> {
        Exported::new(Arc::new(fake)).unwrap().collect()
    }

    #[test]
    fn every_family_of_the_table_is_there_with_its_labels_and_no_other() {
        let families = collected(Fake::planted());
        let names: BTreeSet<_> = families.iter().map(MetricFamily::name).collect();
        assert_eq!(names, FAMILIES.iter().map(|family| family.name).collect());
        assert_eq!(families.len(), FAMILIES.len());
        for exported in &families {
            let known = FAMILIES.iter().find(|family| family.name == exported.name()).unwrap();
            assert!(!exported.get_metric().is_empty(), "{} is empty", known.name);
            let mut seen = HashSet::new();
            for metric in exported.get_metric() {
                let labels: Vec<_> = metric.get_label().iter().map(LabelPair::name).collect();
                assert_eq!(labels, known.labels, "{}", known.name);
                let values: Vec<_> = metric.get_label().iter().map(LabelPair::value).collect();
                assert!(seen.insert(values), "{}: a series twice", known.name);
            }
        }
    }

    #[test]
    fn no_two_pools_share_a_name() {
        let mut fake = Fake::planted();
        fake.view.pools[0].user = "a@b".into();
        fake.view.pools[0].database = "c".into();
        fake.view.pools[1].user = "a".into();
        fake.view.pools[1].database = "b@c".into();
        let names: Vec<_> = fake.view.pools.iter().map(pool_name).collect();
        assert_eq!(names, ["a%40b@c", "a@b@c"]);
    }

    #[test]
    fn buckets_are_cumulative_and_the_last_is_all() {
        let families = collected(Fake::planted());
        let wait = families.iter().find(|family| family.name() == "bursar_lease_wait_seconds").unwrap();
        let histogram = wait.get_metric()[0].get_histogram();
        assert_eq!(histogram.get_bucket().len(), WAIT_BOUNDS.len());
        assert_eq!(histogram.get_bucket()[0].cumulative_count(), 998);
        assert_eq!(histogram.get_bucket()[15].cumulative_count(), 998);
        assert_eq!(histogram.get_sample_count(), 1_000);
        assert_eq!(histogram.get_sample_sum(), 2.0);
    }

    #[test]
    fn no_request_query_or_address_is_a_label() {
        for exported in collected(Fake::planted()) {
            for metric in exported.get_metric() {
                for label in metric.get_label() {
                    assert!(
                        !["req-1", "10.2.3.4", "77ab", "sales-web"].iter().any(|s| label.value().contains(s))
                    );
                }
            }
        }
    }

    #[test]
    fn the_page_of_metrics_lists_them_all() {
        let page = include_str!("../../docs/metrics.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|line| {
            let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`'));
            let row = [cells.next()?, cells.next()?, cells.next()?].map(|cell| cell.replace('`', ""));
            (row[0].starts_with("bursar_") || row[0].starts_with("db_client_")).then_some(row)
        });
        let documented: BTreeSet<_> = rows.collect();
        let exported = FAMILIES
            .iter()
            .map(|family| [family.name.to_owned(), family.kind.name().to_owned(), family.labels.join(", ")]);
        assert_eq!(documented, exported.collect());
    }
}
