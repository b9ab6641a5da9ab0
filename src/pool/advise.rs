//! Advice, as the janitor brings it about: a look at every application once a second, a line in the log a day.
//!
//! What is found is decided in [`crate::book::saturation`] and [`crate::book::advice`].

use super::Pools;
use crate::book::advice::{Advice, Seen, advise};
use crate::book::saturation::{Instance, Sample, Saturated, setting};
use crate::clock;
use crate::config::ParkMode;
use std::collections::HashMap;
use std::time::Duration;

/// Between two lines of advice.
pub(super) const DAILY: Duration = Duration::from_secs(86_400);
/// Of the advice, so much is in that line.
const NAMED: usize = 5;

impl Pools {
    /// Looks for applications that starve on their own pool.
    pub(super) fn look_at_instances(&self) {
        let mut samples: HashMap<u64, Sample> = HashMap::new();
        for cell in self.cells.lock().values() {
            let (busy, quick, taken) = cell.use_so_far();
            let sample = samples.entry(cell.instance).or_insert_with(|| Sample {
                instance: Instance {
                    host: cell.host().into(),
                    application: cell.application.clone(),
                    user: cell.user.clone(),
                },
                sessions: 0,
                busy: 0,
                quick: 0,
                taken: 0,
            });
            sample.sessions += 1;
            sample.busy += u32::from(busy);
            sample.quick += quick;
            sample.taken += taken;
        }
        let found = self.saturation.lock().look(clock::now(), samples);
        for Saturated { instance, sessions, .. } in found {
            tracing::warn!(
                event = "client_pool_saturated",
                client = &*instance.host,
                application = &*instance.application,
                user = &*instance.user,
                connections = sessions,
                advice = setting(&instance.application, sessions),
                "an application waits for connections of its own pool"
            );
        }
    }

    /// Applications found so within the last hour.
    #[must_use]
    pub fn saturated(&self) -> Vec<Saturated> {
        self.saturation.lock().lately(clock::now())
    }

    /// How often one was found so.
    #[must_use]
    pub fn saturated_total(&self) -> u64 {
        self.saturation.lock().total()
    }

    /// What to change, from what was seen so far.
    #[must_use]
    pub fn advice(&self) -> Vec<Advice> {
        let now = clock::now();
        let book = self.book.lock();
        let (view, callsites) = (book.view(now), book.callsites());
        drop(book);
        // Where parking is enforced, what could be parked is.
        let observed = self.config().budget.parking.mode == ParkMode::Observe;
        let parking = if observed { self.parking() } else { HashMap::new() };
        let parkable: Vec<_> = parking.into_iter().map(|(pool, row)| (pool, row.parkable)).collect();
        let mut rows = self.advice_of_limits();
        rows.extend(advise(&Seen {
            pools: &view.pools,
            requests: &view.requests,
            callsites: &callsites,
            saturated: &self.saturated(),
            parkable: &parkable,
            uptime: now.saturating_duration_since(self.started),
        }));
        rows
    }

    /// The daily line.
    pub(super) fn log_advice(&self) {
        let rows = self.advice();
        let row = |row: &Advice| format!("{}: {}: {}. {}", row.topic, row.scope, row.finding, row.advice);
        let named = rows.iter().take(NAMED).map(row).collect::<Vec<_>>().join(" | ");
        tracing::info!(event = "advice", rows = rows.len(), advice = named, "what to change (SHOW ADVICE)");
    }
}
