//! Leases that will not come back by themselves, or not soon (budgets.md §5).
//!
//! `callsites` learns what is usual where (with `sketch`), `classify` says from that what a lease is a case of,
//! `find` asks it at a tick about the few leases that may be one, `cases` keeps what was found.

mod callsites;
mod cases;
mod classify;
mod find;
mod sketch;

pub(super) use callsites::{CallSites, Lesson};
pub use cases::{CLOSED_KEPT, LeakClass, LeakEvent, Outcome};
pub(super) use cases::{Cases, OpenCase};
pub use classify::{Evidence, Threshold};
