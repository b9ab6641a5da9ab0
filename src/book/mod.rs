//! Who gets a backend, how much, and for how long: the one decision maker.
//!
//! Pure: `now` is an argument, a backend is any `B`, a waiter any `W`; tests put integers where
//! production puts sockets. Every call returns what must be done ([`Action`]) and the caller does it
//! after unlocking.

mod types;
pub mod view;

pub use types::*;
pub use view::View;

/// Bounds of `bursar_lease_wait_seconds` (budgets.md §8.2), in seconds.
pub const WAIT_BOUNDS: [f64; 16] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Bounds of `bursar_lease_hold_seconds` (budgets.md §8.2), in seconds.
pub const HOLD_BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
