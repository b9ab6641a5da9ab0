//! How many backends are in use, as PostgreSQL itself sees it: the same look at both sides.
//!
//! A backend between a transaction's BEGIN and its end is in use, also while its client thinks: nobody else
//! can have it. What a proxy does between two transactions is not.

use crate::clients::{self, Window};
use crate::common::Failure;
use std::time::Duration;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(50);
const IN_USE: &str = "select count(*) from pg_stat_activity \
     where backend_type = 'client backend' and state <> 'idle' and pid <> pg_backend_pid()";

/// Mean number of backends in use during the window.
pub(crate) async fn mean_in_use(server: u16, window: Window) -> Result<f64, Failure> {
    let direct = clients::direct(server).await?;
    let mut ticks = tokio::time::interval_at(window.from.into(), EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let (mut looks, mut sum) = (0_u32, 0_u32);
    loop {
        let tick = ticks.tick().await;
        if tick >= window.to.into() {
            return Ok(f64::from(sum) / f64::from(looks.max(1)));
        }
        let row = clients::row(&direct, IN_USE).await?.ok_or("no count of backends")?;
        sum += row[0].parse::<u32>()?;
        looks += 1;
    }
}
