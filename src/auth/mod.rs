//! Client identity: what Bursar knows of a user, and the exchange that proves it.
//!
//! | file | what |
//! |---|---|
//! | [`verifier`] | one user's secret: clear, md5 hash, or SCRAM verifier |
//! | [`users`] | every user of a configuration |
//! | [`account`] | what a server has answered about a user, for how long |
//! | [`exchange`] | the server's side of a login, driven frame by frame |
//! | [`hba`] | who is asked for what |
//! | [`scram`] | the server's side of SCRAM-SHA-256 |
//! | [`passport`] | what a proof is good for towards a server |
//! | [`damping`] | who fails how often, and how long the answer to that is held back |
//! | [`keys`] | hashes and key derivation, shared with the client's side in `backend` |
//!
//! No socket is touched here, and no SQLSTATE is chosen: a login ends in a typed [`Failure`], and the
//! session gives it words. Every comparison with a secret takes constant time, and a user who does
//! not exist is led through the same messages, of the same sizes, as one who does.

pub mod account;
pub mod damping;
pub mod exchange;
pub mod hba;
pub mod keys;
pub mod passport;
pub mod scram;
pub mod users;
pub mod verifier;

pub use account::{Account, Accounts};
pub use exchange::{Exchange, Failure, Step, begin};
pub use passport::Passport;
pub use users::{UserError, Users};
pub use verifier::{MockKey, SecretKind, Verifier, VerifierError};
