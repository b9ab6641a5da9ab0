//! Health as probes ask for it: `/livez`, `/readyz`, and the database's in `/healthz/db` (budgets.md
//! §6.4). Readiness does not ask for the database, or one blip of it would take every pod away.

use crate::book::view::UpstreamView;
use crate::book::{Outcome, View, WAIT_BOUNDS};
use crate::breaker::State;
use crate::console::Source;
use serde::Serialize;
use std::time::Duration;

/// A wait above this makes the state degraded: the limit of the service level (budgets.md §8.4).
const GOOD_WAIT: Duration = Duration::from_millis(100);

/// How the pools stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    /// Dials fail, or somebody waits too long.
    Degraded,
    /// Dials fail and there is no backend.
    Down,
}

/// `/healthz/db`
#[derive(Debug, Serialize)]
pub(super) struct Health {
    pub(super) status: Status,
    /// The worst of all servers: `closed`, `half-open` or `open`.
    breaker: &'static str,
    pool: Sums,
    waiting: usize,
    /// Over all pools since start; `null` before the first lease.
    wait_p99_ms: Option<f64>,
    leaks_open: usize,
    /// Σ active ÷ Σ hold since start; `null` before the first lease came back.
    efficiency: Option<f64>,
    failing_dials: u64,
    draining: bool,
}

/// Over all pools.
#[derive(Debug, Default, Serialize)]
struct Sums {
    size: usize,
    in_use: usize,
    idle: usize,
    waiting: usize,
}

impl Health {
    pub(super) fn of(source: &dyn Source) -> Health {
        let (view, failing_dials) = (source.view(), source.metrics().failing_dials());
        let mut pool = Sums::default();
        let (mut held, mut active, mut oldest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        for each in &view.pools {
            pool.size += each.size;
            pool.in_use += each.leased;
            pool.idle += each.idle;
            pool.waiting += each.waiting;
            held += each.held;
            active += each.usage.active;
            oldest = oldest.max(each.oldest_wait);
        }
        let state = |upstream: &UpstreamView| upstream.state;
        let breaker = view.upstreams.iter().map(state).max_by_key(|state| match state {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open { .. } => 2,
        });
        let status = match failing_dials {
            1.. if pool.in_use + pool.idle == 0 => Status::Down,
            1.. => Status::Degraded,
            0 if oldest > GOOD_WAIT => Status::Degraded,
            0 => Status::Ok,
        };
        Health {
            status,
            breaker: breaker.unwrap_or(State::Closed).name(),
            waiting: pool.waiting,
            pool,
            wait_p99_ms: p99(&view).map(|seconds| seconds * 1_000.0),
            leaks_open: view.leaks.iter().filter(|leak| leak.outcome == Outcome::Open).count(),
            efficiency: (!held.is_zero()).then(|| active.as_secs_f64() / held.as_secs_f64()),
            failing_dials,
            draining: source.draining(),
        }
    }
}

/// The 99th percentile of waits in seconds, as PromQL's `histogram_quantile` would say: linear within
/// a bucket, the last bound for what lies beyond it.
fn p99(view: &View) -> Option<f64> {
    let mut counts = [0_u64; WAIT_BOUNDS.len() + 1];
    for pool in &view.pools {
        counts.iter_mut().zip(pool.wait()).for_each(|(sum, count)| *sum += count);
    }
    let total: u64 = counts.iter().sum();
    let rank = total as f64 * 0.99;
    let (mut below, mut lower) = (0.0, 0.0);
    for (count, bound) in counts.iter().zip(WAIT_BOUNDS) {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            return Some(lower + (bound - lower) * (rank - below) / count);
        }
        (below, lower) = (below + count, bound);
    }
    (total > 0).then_some(lower)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::fake::Fake;
    use crate::metrics::Connect;

    #[test]
    fn the_state_follows_dials_and_waits() {
        let mut fake = Fake::planted();
        assert_eq!(Health::of(&fake).status, Status::Degraded, "somebody waits for 1.5 s");
        fake.view.pools[0].oldest_wait = GOOD_WAIT;
        assert_eq!(Health::of(&fake).status, Status::Ok);
        fake.metrics.dialled(Connect::Unreachable, Duration::ZERO);
        assert_eq!(Health::of(&fake).status, Status::Degraded);
        (fake.view.pools[0].leased, fake.view.pools[0].idle) = (0, 0);
        assert_eq!(Health::of(&fake).status, Status::Down);
        fake.metrics.dialled(Connect::Ok, Duration::ZERO);
        assert_eq!((Health::of(&fake).status, Health::of(&fake).breaker), (Status::Ok, "closed"));
        let mut other = fake.view.upstreams[0].clone();
        other.state = State::Open { until: fake.now };
        fake.view.upstreams.insert(0, other);
        assert_eq!(Health::of(&fake).breaker, "open", "the worst of two");
    }

    #[test]
    fn the_percentile_lies_within_its_bucket() {
        let mut fake = Fake::planted();
        let mut wait = vec![0; 17];
        (wait[3], wait[6]) = (98, 2);
        fake.view.pools.truncate(1);
        fake.view.pools[0].times[0].wait = wait;
        // The 99th of 100 is the first of two between 10 and 25 ms: halfway.
        assert!((p99(&fake.view).unwrap() - 0.0175).abs() < 1e-9);
        fake.view.pools[0].times[0].wait = [vec![0; 16], vec![5]].concat();
        assert_eq!(p99(&fake.view), Some(30.0));
        fake.view.pools[0].times[0].wait = vec![0; 17];
        assert_eq!(p99(&fake.view), None);
    }
}
