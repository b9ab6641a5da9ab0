//! Hostile bytes against what reads them, from either side: no panic, ranges in bounds, no growth by the peer's
//! number; and what the op queue passes is what a server that keeps to the protocol says.
//!
//! Bolero targets. As plain tests each tries random inputs for a second, with `scripts/fuzz` for as long as it is
//! told. Each file is one room; [`choices`] and [`server`] are what they have in common. Whole sessions beside
//! hostile peers are in `tests/postgres`.

mod choices;
mod config;
mod login;
mod messages;
mod server;
mod sql;
mod startup;
mod tag;
mod tracker;
