//! Bytes ↔ messages. Pure: nothing here owns a socket or waits.
//!
//! The relay never decodes what it can pass on: [`walk`] finds boundaries, [`frontend`] and
//! [`backend`] read the few fields that decide something, [`compose`] says what Bursar has to say to a
//! server, [`startup`] parses the first packet,
//! [`error`] builds what Bursar itself says, and [`sql`] glances at statement text.
//! Facts are PostgreSQL's "Frontend/Backend Protocol" chapter (§55 in version 18's manual).

pub mod backend;
pub mod compose;
pub mod error;
pub mod frontend;
pub mod sql;
pub mod startup;
pub mod walk;
