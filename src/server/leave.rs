//! What is done at each step of leaving; see [`crate::drain`].

use super::House;
use crate::cli::Exit;
use crate::clock;
use crate::drain::{How, Signals};
use crate::pool::cell::Order;
use std::time::Duration;

/// How often sessions are told to go.
const AGAIN: Duration = Duration::from_millis(200);

/// A client that has just come wants something: it would rather be served than sent away. As long as this it
/// may take, or half the time there is.
const UNUSED: Duration = Duration::from_secs(5);

/// How long the last words to killed sessions may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Waits until told to leave, and leaves. Not cancel safe.
pub(super) async fn until_left(house: &House, mut signals: Signals) -> Exit {
    let how = tokio::select! {
        () = signals.next() => How::Drain,
        how = house.drain.asked() => how,
    };
    house.drain.leave();
    house.notify.stopping();
    tracing::info!(?how, "leaving");
    tokio::select! {
        biased;
        () = signals.next() => tracing::info!("second signal"),
        () = leave(house, how) => {}
    }
    house.drain.closing().cancel();
    cut(house).await;
    house.drain.stopped().cancel();
    tracing::info!("stopped");
    Exit::Good
}

async fn leave(house: &House, how: How) {
    let config = house.pools.config();
    match how {
        How::Now => {}
        How::WaitForClients => {
            house.drain.closing().cancel();
            house.empty().await;
        }
        How::Drain => {
            tokio::time::sleep(config.drain.notice).await;
            house.drain.closing().cancel();
            let left = config.drain.deadline.saturating_sub(config.drain.notice);
            let unused = UNUSED.min(left / 2);
            if tokio::time::timeout(left, drain(house, unused)).await.is_err() {
                tracing::warn!("drain.deadline has passed; what is left is cut");
            }
        }
    }
}

/// Tells sessions to go until none is left; again and again, since a login may just have ended. `unused` is how
/// long after its login one may take to ask for something.
async fn drain(house: &House, unused: Duration) {
    loop {
        let now = clock::now();
        for cell in house.pools.cells() {
            let age = now.saturating_duration_since(cell.connected);
            if cell.requested().is_some() || age >= unused {
                cell.order(Order::Drain);
            }
        }
        if tokio::time::timeout(AGAIN, house.empty()).await.is_ok() {
            return;
        }
    }
}

async fn cut(house: &House) {
    house.pools.close();
    for cell in house.pools.cells() {
        cell.order(Order::Kill);
    }
    let _ = tokio::time::timeout(LAST_WORDS, house.empty()).await;
}
