//! The async face of the book.

pub mod view;
