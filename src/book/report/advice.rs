//! What an operator should change, from what was seen (budgets.md §6.1, F8): the worst few of each kind, each
//! with its figure and what to do about it.
//!
//! Pure: rows in, rows out. Who looks (SHOW ADVICE, the daily line of the log) brings the rows.

use super::saturation::{Saturated, setting};
use super::view::{CallSiteView, PoolView, RequestView};
use crate::book::PoolId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Rows of one topic.
const EACH: usize = 5;
/// Below this a pool's leases mostly do nothing (budgets.md §8.4).
const EFFICIENT: f64 = 0.1;
/// Idleness that is worth a word, in all.
const WORTH: Duration = Duration::from_secs(10);
/// Repeats that are worth a word (budgets.md S0-15).
const REPEATS: u32 = 5;
/// Of a call site, the part of its holds from which on it is called idle.
const HALF: f64 = 0.5;
/// Checkouts that wait longer than ten milliseconds: at most so many (§6.1).
const WAITS: f64 = 0.01;
const WAIT: f64 = 0.01;

/// One thing to change.
#[derive(Debug, Clone, PartialEq)]
pub struct Advice {
    /// `connection_limit`, `connection_refused`, `client_pool_saturated`, `lease_efficiency`, `idle_transactions`, `parking`, `repeated_statements`,
    /// `nested_sessions`, `pool_size`.
    pub topic: &'static str,
    /// Whose it is: a pool, a call site, a route, an instance.
    pub scope: String,
    /// What was seen.
    pub finding: String,
    /// What to do.
    pub advice: String,
    /// The figure it goes by.
    pub value: f64,
}

/// What there is to go by.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Pools.
    pub pools: &'a [PoolView],
    /// Requests, current and lately ended.
    pub requests: &'a [RequestView],
    /// Call sites.
    pub callsites: &'a [CallSiteView],
    /// Applications that starve on their own pools.
    pub saturated: &'a [Saturated],
    /// For how long clients were silent in transactions that could be parked, in pools where they are not.
    pub parkable: &'a [(PoolId, Duration)],
    /// Since when the process runs.
    pub uptime: Duration,
}

/// Everything there is to say, the gravest topic first.
#[must_use]
pub fn advise(seen: &Seen<'_>) -> Vec<Advice> {
    let mut all = saturated(seen.saturated);
    all.extend(inefficient(seen.pools));
    all.extend(idle(seen.callsites));
    all.extend(parkable(seen));
    all.extend(repeated(seen.callsites, seen.requests));
    all.extend(nested(seen.requests));
    all.extend(seen.pools.iter().filter_map(|pool| size(pool, seen.uptime)));
    all
}

fn saturated(saturated: &[Saturated]) -> Vec<Advice> {
    let row = |one: &Saturated| {
        let (instance, sessions) = (&one.instance, one.sessions);
        Advice {
            topic: "client_pool_saturated",
            scope: format!("{} {} as {}", instance.host, or_unnamed(&instance.application), instance.user),
            finding: format!(
                "all its {sessions} connections are in a transaction, and each is taken again at once"
            ),
            advice: format!(
                "Work waits inside the application, where Bursar cannot see it: {}. Bursar queues what comes.",
                setting(&instance.application, sessions)
            ),
            value: sessions.into(),
        }
    };
    saturated.iter().take(EACH).map(row).collect()
}

fn inefficient(pools: &[PoolView]) -> Vec<Advice> {
    let row = |pool: &PoolView| {
        let efficiency = part(pool.usage.active, pool.held);
        (pool.held >= WORTH && efficiency < EFFICIENT).then(|| Advice {
            topic: "lease_efficiency",
            scope: name_of(pool),
            finding: format!(
                "backends were held {} and did nothing in {} of it",
                span(pool.held),
                percent(1.0 - efficiency)
            ),
            advice:
                "Transactions are open while the application does something else: see idle_transactions for \
                     where, and end them before network calls."
                    .into(),
            value: places(efficiency),
        })
    };
    pools.iter().filter_map(row).collect()
}

fn idle(sites: &[CallSiteView]) -> Vec<Advice> {
    let worth = |site: &&CallSiteView| site.idle() >= WORTH && site.efficiency() < HALF;
    let row = |site: &CallSiteView| Advice {
        topic: "idle_transactions",
        scope: place_of(site),
        finding: format!(
            "{} leases were held {}, of which statements ran {}",
            site.leases,
            span(site.held),
            percent(site.efficiency())
        ),
        advice: "Do what needs no database before BEGIN or after COMMIT; a read needs no transaction.".into(),
        value: places(site.idle().as_secs_f64()),
    };
    sites.iter().filter(worth).take(EACH).map(row).collect()
}

/// What parking would have freed, where somebody waited for it.
fn parkable(seen: &Seen<'_>) -> Vec<Advice> {
    let row = |pool: &PoolView| {
        let (_, time) = seen.parkable.iter().find(|(id, _)| *id == pool.id)?;
        let backends = time.as_secs_f64() / seen.uptime.as_secs_f64().max(1.0);
        let waited = pool.timeouts > 0 || pool.waited >= WORTH;
        (*time >= WORTH && waited).then(|| Advice {
            topic: "parking",
            scope: name_of(pool),
            finding: format!(
                "clients were silent for {} in transactions that had only read, while others waited {} for backends: \
                 parking would free {backends:.1} of {} on average",
                span(*time),
                span(pool.waited),
                pool.size
            ),
            advice: "For one route first: [route.\"NAME\".budget.parking] mode = \"enforce\"; then [parking] mode = \
                     \"enforce\" (docs/parking.md)."
                .into(),
            value: places(backends),
        })
    };
    seen.pools.iter().filter_map(row).take(EACH).collect()
}

fn repeated(sites: &[CallSiteView], requests: &[RequestView]) -> Vec<Advice> {
    let mut places: BTreeMap<String, u32> = BTreeMap::new();
    let mut saw = |place: String, times: u32| {
        let most = places.entry(place).or_default();
        *most = times.max(*most);
    };
    let leases = sites.iter().filter(|site| site.repeats >= REPEATS);
    leases.for_each(|site| saw(place_of(site), site.repeats));
    let across = requests.iter().filter(|request| request.repeats >= REPEATS);
    across.for_each(|request| saw(route_of(&request.tag.route), request.repeats));
    let row = |(place, times): (String, u32)| {
        Advice {
        topic: "repeated_statements",
        scope: place,
        finding: format!("one request ran the same statement {times} times"),
        advice: "Fetch or write many rows with one statement (IN, = ANY($1), multi-row INSERT), or load relations \
                 at once."
            .into(),
        value: times.into(),
    }
    };
    most(places).into_iter().map(row).collect()
}

fn nested(requests: &[RequestView]) -> Vec<Advice> {
    let mut routes: BTreeMap<String, u32> = BTreeMap::new();
    for request in requests.iter().filter(|request| request.leases_peak > 1) {
        let most = routes.entry(route_of(&request.tag.route)).or_default();
        *most = request.leases_peak.max(*most);
    }
    let row = |(route, peak): (String, u32)| {
        Advice {
        topic: "nested_sessions",
        scope: route,
        finding: format!("one request held {peak} backends at once"),
        advice: "Pass the session on instead of opening another one inside it; max_concurrent bounds it meanwhile."
            .into(),
        value: peak.into(),
    }
    };
    most(routes).into_iter().map(row).collect()
}

/// The size that carries the load there was, by Erlang's formula, where checkouts had to wait for it.
fn size(pool: &PoolView, uptime: Duration) -> Option<Advice> {
    let load = pool.held.as_secs_f64() / uptime.as_secs_f64().max(1.0);
    let mean = pool.held.as_secs_f64() / (pool.leases_total.max(1) as f64);
    let needed = erlang(load, mean)?;
    let waits = pool.timeouts > 0 || pool.waited > pool.held / 10;
    (waits && needed > pool.size && pool.held >= WORTH).then(|| Advice {
        topic: "pool_size",
        scope: name_of(pool),
        finding: format!(
            "{} backends carried a load of {load:.1}, and {} waits ended in 53300; {needed} would do at 1 % above 10 ms",
            pool.size, pool.timeouts
        ),
        advice: "Shorten holds first (lease_efficiency); then raise size, as far as PostgreSQL has processors.".into(),
        value: needed as f64,
    })
}

/// Backends with which at most one checkout in a hundred waits longer than ten milliseconds, for this load
/// (backends held on average) and mean hold in seconds (Erlang C).
fn erlang(load: f64, mean: f64) -> Option<usize> {
    if !(load > 0.0 && mean > 0.0) {
        return None;
    }
    // Erlang B by its recurrence, one server more at each step.
    let mut blocked = 1.0;
    for servers in 1..=10_000_u32 {
        let count = f64::from(servers);
        blocked = load * blocked / (count + load * blocked);
        if count <= load {
            continue;
        }
        let waits = count * blocked / (count - load * (1.0 - blocked));
        if waits * (-(count - load) * WAIT / mean).exp() <= WAITS {
            return Some(servers as usize);
        }
    }
    None
}

fn most(places: BTreeMap<String, u32>) -> Vec<(String, u32)> {
    let mut rows: Vec<(String, u32)> = places.into_iter().collect();
    rows.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    rows.truncate(EACH);
    rows
}

fn name_of(pool: &PoolView) -> String {
    format!("{}/{}", pool.database, pool.user)
}

fn route_of(route: &Option<Arc<str>>) -> String {
    route.as_deref().map_or_else(|| "requests without a route".into(), str::to_owned)
}

fn place_of(site: &CallSiteView) -> String {
    let route = site.route.as_deref().unwrap_or("no route");
    match &site.call_site {
        Some(place) => format!("{route} at {place}, statement {:016x}", site.fingerprint),
        None => format!("{route}, statement {:016x}", site.fingerprint),
    }
}

fn or_unnamed(application: &str) -> &str {
    if application.is_empty() { "(no application_name)" } else { application }
}

fn part(of: Duration, all: Duration) -> f64 {
    if all.is_zero() { 1.0 } else { of.as_secs_f64() / all.as_secs_f64() }
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn span(duration: Duration) -> String {
    format!("{:.0} s", duration.as_secs_f64())
}

fn places(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
#[path = "advice_tests.rs"]
mod tests;
