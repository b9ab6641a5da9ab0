//! When the configuration is read again, and by whom; see [`crate::reload`].

use super::House;
use crate::clock;
use crate::config::Changes;
use crate::metrics;
use crate::reload::ReloadError;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often the file is looked at; Kubernetes swaps a mounted ConfigMap within a minute anyway.
const LOOK: Duration = Duration::from_secs(5);

impl House {
    /// Reads the configuration again and puts it in force.
    ///
    /// # Errors
    /// [`ReloadError`]; everything is as it was then.
    pub async fn reload(&self) -> Result<Changes, ReloadError> {
        // Who stops is not ready again.
        let told = (!self.drain.is_leaving()).then_some(&self.notify);
        told.inspect(|notify| notify.reloading());
        let result = self.try_reload().await;
        told.inspect(|notify| notify.ready());
        let outcome = if result.is_ok() { metrics::Reload::Ok } else { metrics::Reload::Refused };
        self.pools.metrics.reloads.inc(outcome);
        match &result {
            Ok(changes) => tell(changes),
            Err(error) => tracing::error!(%error, "configuration not reloaded"),
        }
        result
    }

    async fn try_reload(&self) -> Result<Changes, ReloadError> {
        let (reload, running, users) = (self.reload.clone(), self.pools.config(), self.pools.users());
        let read = tokio::task::spawn_blocking(move || reload.read(&running, &users));
        let new = read.await.map_err(|_| ReloadError::Interrupted)??;
        self.pools.reconfigure(Arc::new(new.config), new.users, new.tls);
        Ok(new.changes)
    }
}

fn tell(changes: &Changes) {
    for change in &changes.made {
        tracing::info!(%change, "configuration changed");
    }
    for key in &changes.needs_restart {
        tracing::warn!(key = %key.key, stays = %key.stays, wanted = %key.wanted, "changes with a restart only");
    }
    let (changed, waiting) = (changes.made.len(), changes.needs_restart.len());
    tracing::info!(changed, waiting, "configuration reloaded");
}

/// From now on SIGHUP does not end the process: before anybody can know that it runs.
pub(super) fn hangup() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Reloads on SIGHUP and when the file changes. Runs for ever.
pub(super) async fn watch(house: Arc<House>, mut hangup: Signal) {
    let mut seen = house.reload.first;
    let alarm = clock::Alarm::new();
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            () = alarm.after(LOOK) => {
                let now = house.reload.version();
                if now == seen || now.is_none() || !house.pools.config().admin.watch {
                    continue;
                }
            }
        }
        // Before it is read, so that what is written meanwhile is read next time.
        seen = house.reload.version();
        // Logged and counted; a bad file changes nothing.
        let _ = house.reload().await;
    }
}
