//! `[parking]` as used. Its keys are those of a budget, so that a route or a tenant may have its own.

use std::time::Duration;

/// What becomes of a transaction that has only read, while its client is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkMode {
    /// Nothing, and no statement is looked at for it.
    Off,
    /// What parking would have freed is counted.
    Observe,
    /// Its backend is given back.
    Enforce,
}

/// `[parking]`: budgets.md §4.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parking {
    /// Whether.
    pub mode: ParkMode,
    /// Not before it has been silent for this long.
    pub min_gap: Duration,
    /// Only while somebody waits for a backend of the pool.
    pub only_under_pressure: bool,
}
