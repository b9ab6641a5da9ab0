//! What happens while nobody asks: deadlines, budgets of time, leaks, idle backends.
//!
//! One task. It sleeps until the book's next deadline while anything is leased or queued, and looks
//! at the idle backends once a second.

use super::Pools;
use super::advise::DAILY;
use crate::clock;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often idle backends are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Runs for ever. Cancel safe between two ticks.
pub async fn run(pools: Arc<Pools>) {
    let mut housekeeping = clock::now();
    let mut advised = housekeeping;
    let alarm = clock::Alarm::new();
    loop {
        let now = clock::now();
        if now.saturating_duration_since(housekeeping) >= HOUSEKEEPING {
            housekeeping = now;
            pools.close_expired();
            pools.ask_who_writes();
            pools.close_spares();
            pools.look_at_instances();
            pools.look_at_limits();
            if now.saturating_duration_since(advised) >= DAILY {
                advised = now;
                pools.log_advice();
            }
        }
        pools.tick();
        let sleep = pools.until_tick().clamp(Duration::from_millis(1), HOUSEKEEPING);
        tokio::select! {
            biased;
            // Somebody has begun to hold or to wait, with a deadline before the one we know.
            () = pools.wake.notified() => {}
            () = alarm.after(sleep) => {}
        }
    }
}

impl Pools {
    fn tick(self: &Arc<Self>) {
        let mut actions = Vec::new();
        let mut book = self.book.lock();
        let due = book.tick(
            clock::now(),
            &mut |session, lease| self.cells.lock().get(&session)?.activity(lease),
            &mut actions,
        );
        // Under the book's lock, so that whoever brings the next tick forward sees this one.
        self.tick_at.store(self.stamp(due), Ordering::Relaxed);
        drop(book);
        self.carry_out(actions);
    }

    /// Time until the next tick.
    fn until_tick(&self) -> Duration {
        let at = Duration::from_nanos(self.tick_at.load(Ordering::Relaxed));
        at.saturating_sub(clock::now().saturating_duration_since(self.started))
    }

    fn close_expired(self: &Arc<Self>) {
        let now = clock::now();
        let pools = self.pools.read().clone();
        for pool in pools {
            let closed = pool.store.close_expired(now, &pool.rules.load()) + pool.store.take_lost();
            if closed > 0 {
                self.idle_closed(&pool, closed);
            }
        }
    }
}
