//! Who waits for one another, and what is done about it (budgets.md §3.4).
//!
//! `knot` finds those who can never get on by themselves, `untie` takes the weakest step that helps, `aftermath` sees to
//! it that it helps for good. `locks` suspects row locks, which only PostgreSQL can tell of. `cases` remembers
//! them all. That it seldom comes to this is `turns::finish`'s doing.

mod aftermath;
mod cases;
mod knot;
mod locks;
mod untie;

pub(super) use aftermath::Aftermath;
pub(super) use cases::Deadlocks;
pub use cases::{DEADLOCKS_KEPT, Deadlock, DeadlockKind, Resolution, Suspect};
pub(super) use untie::Watchman;
