//! What every test of this crate stands on: a private PostgreSQL, the proxy before it, and a client
//! that sees each byte. Knows nothing of what is being tested.

pub(crate) mod certificates;
pub(crate) mod cluster;
pub(crate) mod dice;
pub(crate) mod distance;
pub(crate) mod gate;
pub(crate) mod identity;
pub(crate) mod impostor;
pub(crate) mod msg;
pub(crate) mod ports;
pub(crate) mod proxy;
pub(crate) mod standin;
pub(crate) mod unread;
pub(crate) mod watch;
pub(crate) mod wire;

pub(crate) use certificates::Files;
pub(crate) use cluster::{Cluster, Db, Stop};
pub(crate) use gate::Gate;
pub(crate) use proxy::{Config, Proxy};
pub(crate) use wire::{Login, Msg, Refused, Reply, Wire, trace};

use std::time::{Duration, Instant};

/// How long a test waits for what must happen, on a busy machine, before it calls it a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Looks again and again until there is something to see; fails with `what` after `within`.
pub(crate) fn eventually<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// [`eventually`] for a condition.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, PATIENCE, || holds().then_some(()));
}

/// Prepared statements go where their session goes, so that two sessions that have some can take turns on
/// one backend. Were this false, such a session would keep its backend, and the tests give each its own.
pub(crate) const STATEMENTS: bool = true;

/// As [`STATEMENTS`], for settings.
pub(crate) const SETTINGS: bool = true;

/// Sends a signal, by name, to a process this crate started.
pub(crate) fn signal(pid: u32, name: &str) {
    let sent = std::process::Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status();
    assert!(sent.is_ok_and(|status| status.success()), "signal {name} to process {pid}");
}
