//! What the book tells: counted, shown, and advised; it decides nothing.
//!
//! `counters` and `peaks` are added to by every other room, `violations` makes an event of a budget that was
//! exceeded. `show` copies the rows of `view`; `advice` and `saturation` say what an operator should change.

pub mod advice;
mod counters;
mod peaks;
pub mod saturation;
mod show;
pub mod view;
mod violations;

pub(super) use counters::{Dim, Histogram, Tally, Told, nanos};
pub(super) use peaks::Peaks;
pub(super) use violations::Events;
pub use violations::Violation;
