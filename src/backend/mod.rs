//! One server connection: dialling, proving who we are, liveness, cancelling, and the store of
//! idle ones.
//!
//! | file | what |
//! |---|---|
//! | [`target`] | where a pool's backends are and as whom they log in |
//! | [`mod@dial`] | from an address to a backend that is ready, under one deadline |
//! | [`command`] | passwords that a program prints |
//! | `file` | passwords in files, read for each dial |
//! | [`error`] | why that may fail |
//! | `secure` | whether it is encrypted, asked before anything else |
//! | [`login`] | the messages of that, over any byte stream, from a server that may be hostile |
//! | [`scram`] | the client's side of SCRAM-SHA-256 |
//! | [`cancel`] | CancelRequest on a connection of its own |
//! | [`mod@ask`] | a question of Bursar's own on a connection of its own |
//! | [`mod@inquire`] | the same with a parameter that a client has sent |
//! | [`stance`] | whether the server takes writes, as it says itself |
//! | [`trail`] | the last statements of a lease |
//! | [`store`] | idle backends and their life cycle, by deadpool |
//!
//! What is sent over a backend once it is ready, and who may have it, is decided above.

pub mod ask;
pub mod cancel;
pub mod command;
pub mod dial;
pub mod error;
mod file;
pub mod inquire;
pub mod login;
pub mod scram;
mod secure;
pub mod stance;
pub mod store;
pub mod target;
pub mod trail;

#[cfg(test)]
mod fake;

pub use cancel::{CancelHandle, Cancelled};
pub use dial::{Backend, dial};
pub use error::{AuthFault, DialError, ProtocolFault};
pub use stance::Stance;
pub use store::{Manager, Object, Store};
pub use target::{Endpoint, Target};
