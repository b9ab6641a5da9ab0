//! Glances at statement text. Never a parser: each answers one question, soundly.
//!
//! All work on bytes in whatever encoding the client uses; only ASCII is interpreted, which is
//! sound for every client encoding whose multi-byte sequences contain no ASCII quote, dash, star
//! or slash; see [`lex`] for the backslashes of the encodings where that does not hold.

pub mod assigned;
pub mod bound;
pub mod comment;
pub mod lead;
pub mod lex;
pub mod local;
pub mod numbers;
mod plain;
pub mod reads;
pub mod reserved;
pub mod scan;
pub mod settings;
mod traces;
pub mod transaction;
