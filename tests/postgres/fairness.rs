//! Who asks too much does not push others back (budgets.md §3, experiment E1).

use crate::support::watch::rows;
use crate::support::{Config, Db, Proxy, Wire, until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const GREEDY: usize = 200;

fn median_and_p99(mut waits: Vec<Duration>) -> (Duration, Duration) {
    waits.sort();
    (waits[waits.len() / 2], waits[waits.len() * 99 / 100])
}

/// Two hundred clients of one tenant ask without pause, one of another does beside them. First come,
/// first served would let it wait as long as them; it waits a tenth of that at most.
#[test]
fn a_greedy_tenant_does_not_push_a_quiet_one_back() {
    let db = Db::new();
    let proxy = Proxy::start(
        &db,
        Config::of_size(2).with("pool", "max_wait = \"60s\"").with("tenant.\"*\"", "max = \"100%\""),
    );
    let over = AtomicBool::new(false);
    let ask = |wire: &mut Wire| {
        let asked = Instant::now();
        assert_eq!(wire.query("select pg_sleep(0.005)").trace(), "T D C(SELECT 1) Z(I)");
        asked.elapsed()
    };
    let (quiet, greedy) = thread::scope(|scope| {
        let client = || {
            let mut wire = proxy.connect_for("greedy", "");
            let mut waits = Vec::new();
            while !over.load(Ordering::Relaxed) {
                waits.push(ask(&mut wire));
            }
            waits
        };
        let crowd: Vec<_> = (0..GREEDY).map(|_| scope.spawn(client)).collect();
        let mut console = proxy.console();
        let queue = format!("select queue >= {} from bursar.tenants where tenant = 'greedy'", GREEDY - 5);
        until("the crowd waits", || rows(&mut console, &queue) == [["t"]]);
        let mut wire = proxy.connect_for("quiet", "");
        let quiet: Vec<Duration> = (0..100).map(|_| ask(&mut wire)).collect();
        over.store(true, Ordering::Relaxed);
        (quiet, crowd.into_iter().flat_map(|client| client.join().expect("a client")).collect::<Vec<_>>())
    });
    let ((median, p99), (greedy_median, greedy_p99)) = (median_and_p99(quiet), median_and_p99(greedy));
    println!("quiet: median {median:?}, p99 {p99:?}; greedy: median {greedy_median:?}, p99 {greedy_p99:?}");
    assert!(p99 * 10 < greedy_median, "quiet p99 {p99:?}, greedy median {greedy_median:?}");
    proxy.stop();
}
