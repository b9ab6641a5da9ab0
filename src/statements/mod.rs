//! Shared prepared statements (wire.md B2): a session's names, wherever it runs.
//!
//! A client names its statements as it likes; on a backend a statement has a name of Bursar's own,
//! the same for every session of the pool that parsed the same text. So a session finds its
//! statements on any backend: where one is missing it is parsed ahead of its use, in the same write.
//!
//! | file | what |
//! |---|---|
//! | [`table`] | the statements of one pool, by text |
//! | [`held`] | which of them one backend has |
//! | [`session`] | the names of one session, and what is in flight, with undo |
//! | [`count`] | how many there are, for whoever looks on |

pub mod count;
pub mod held;
#[cfg(test)]
mod model;
pub mod session;
pub mod table;

pub use count::Count;
pub use held::Held;
pub use table::{Facts, Planner, Sharing, Statement, StatementId, Table};
