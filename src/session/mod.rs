//! One client session.

pub mod registry;
pub mod tracker;
