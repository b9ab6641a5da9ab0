//! The configuration as used: parsed, defaulted and cross-checked; nobody below asks twice.
//!
//! [`load`] turns a file and environment variables into a [`Config`] or into every fault found at
//! once. `config.toml` at the root of the repository is the reference; a test holds it against
//! this code. Names and units: the key names of `config.toml`; durations and sizes carry a unit.

mod types;

pub use types::*;
