//! Hostile bytes against the pure readers: no panic, ranges in bounds, no growth by the peer's number.
//!
//! Bolero targets. As plain tests they run a bounded number of random inputs; under a fuzzing engine,
//! as long as it is left running. Each file is one room.

mod sql;
mod startup;
mod tag;
