//! Prepared statements: which ones a session has, wherever it runs.
//!
//! | file | what |
//! |---|---|
//! | [`session`] | the statements of one session, as PostgreSQL would keep them |

pub mod session;
