//! The op queue.
