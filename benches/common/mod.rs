//! What the comparisons with PgBouncer have in common: the servers, a client, what the kernel knows of a
//! process. Each program uses what it needs of it; what is measured is the program's own affair.

pub(crate) mod lab;
pub(crate) mod process;
pub(crate) mod wire;

/// A measurement that could not be made, in words for the report.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
