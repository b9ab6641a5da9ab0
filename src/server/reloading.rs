//! When the configuration is read again, and by whom; see [`crate::reload`].

use super::House;
use crate::clock;
use crate::metrics;
use crate::reload::ReloadError;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How often the file is looked at; Kubernetes swaps a mounted ConfigMap within a minute anyway.
const LOOK: Duration = Duration::from_secs(5);

impl House {
    /// Reads the configuration again and puts it in force.
    ///
    /// # Errors
    /// [`ReloadError`]; everything is as it was then.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        let result = self.try_reload().await;
        let outcome = if result.is_ok() { metrics::Reload::Ok } else { metrics::Reload::Refused };
        self.pools.metrics.reloads.inc(outcome);
        match &result {
            Ok(()) => tracing::info!("configuration reloaded"),
            Err(error) => tracing::error!(%error, "configuration not reloaded"),
        }
        result
    }

    async fn try_reload(&self) -> Result<(), ReloadError> {
        let (reload, running, users) = (self.reload.clone(), self.pools.config(), self.pools.users());
        let read = tokio::task::spawn_blocking(move || reload.read(&running, &users));
        let new = read.await.map_err(|_| ReloadError::Interrupted)??;
        for key in new.needs_restart {
            tracing::warn!(key = %key.key, stays = %key.stays, wanted = %key.wanted, "changes with a restart only");
        }
        self.pools.reconfigure(Arc::new(new.config), new.users, new.tls);
        Ok(())
    }
}

/// Reloads on SIGHUP and when the file changes. Runs for ever.
pub(super) async fn watch(house: Arc<House>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    let mut seen = house.reload.modified();
    let alarm = clock::Alarm::new();
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            () = alarm.after(LOOK) => {
                let now = house.reload.modified();
                if now == seen || now.is_none() {
                    continue;
                }
            }
        }
        // Logged and counted; a bad file changes nothing.
        let _ = house.reload().await;
        seen = house.reload.modified();
    }
}
