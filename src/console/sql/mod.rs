//! The console's small language: SHOW, commands, and SELECT from the views.
//!
//! `lex.rs` cuts text into tokens, `parse.rs` and `expr.rs` make statements of them, `select.rs`
//! resolves names and types and runs a SELECT over rows. Not SQL at large: no joins, no functions beyond the few
//! that drivers ask for at start, no arithmetic. `docs/console.md` has the grammar.

mod expr;
mod lex;
mod parse;
mod select;

pub(super) use parse::{Statement, parse};
pub(super) use select::Bound;
