//! Random programs that can be run again, and for longer: their seed and length are in the environment.

use super::{Cluster, Login, PATIENCE, Wire, eventually};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A number from the environment.
pub(crate) fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// The same seed, the same throws.
pub(crate) struct Dice(StdRng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(StdRng::seed_from_u64(seed))
    }

    /// Below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0.random_range(0..sides)
    }

    pub(crate) fn pick<'t>(&mut self, from: &[&'t str]) -> &'t str {
        from[self.roll(from.len() as u64) as usize]
    }
}

/// Cancels what runs on a backend of the role `app`, again and again until it is `over`; every so many
/// times (`kills`) it ends the backend. Connections of the application `harness` are left alone.
pub(crate) fn harass(db_name: &str, seed: u64, kills: u64, pause: Duration, over: &AtomicBool) {
    let mut superuser = Cluster::shared().admin();
    let mut dice = Dice::new(seed);
    while !over.load(Ordering::Relaxed) {
        let how = if dice.roll(kills) == 0 { "pg_terminate_backend" } else { "pg_cancel_backend" };
        superuser.query(&format!(
            "select {how}(pid) from pg_stat_activity where datname = '{db_name}' and usename = 'app' \
             and application_name <> 'harness' order by random() limit 1"
        ));
        superuser.query(&format!("select pg_sleep({})", pause.as_secs_f64()));
    }
}

/// A login, again if its backend was harassed.
pub(crate) fn enter(addr: SocketAddr, login: &Login) -> Wire {
    eventually("a login is let in", PATIENCE, || Wire::try_login(addr, login).ok())
}
