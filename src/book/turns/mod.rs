//! Who is next: the lines that waiters stand in, whose turn it is when a backend is free, and who is refused.
//!
//! `queue` puts waiters into lines and takes them out, `refusals` ends waits that come to nothing. `fair` picks
//! among tenants, `finish` lets those go first who hold something already and makes no grant that `banker`
//! calls unsafe, `groups` lets who goes on with a request go before who begins one. `predict` and `depth` guess
//! what a claim will take; `rows` is what they stand in. It opens no backends (`slots`) and holds no leases (`leases.rs`).

mod agenda;
mod banker;
mod depth;
mod fair;
mod finish;
mod groups;
mod predict;
mod queue;
mod refusals;
mod rows;

pub(super) use agenda::Agenda;
pub(super) use banker::Banker;
pub(super) use fair::{Bar, Entrance, Key, Kind, span, units};
pub(super) use finish::Hold;
pub(super) use groups::{Group, NEW, arrival};
pub(super) use predict::{Guess, Predictor};
pub(super) use queue::{Entry, Line, Waiter};
pub(super) use rows::{Ranking, Row};
