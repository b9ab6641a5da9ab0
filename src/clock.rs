//! The one place that reads the clock.
//!
//! Rules take `now` as an argument; doors and sessions ask here, so that a paused tokio clock in a
//! test moves everything at once.

use std::time::Instant;

/// The present moment, on tokio's clock (which a test may pause).
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
