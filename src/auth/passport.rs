//! What a client has shown at its login that lets Bursar in to a server as that client, without any password:
//! the server must have the very verifier that the client was checked against.
//!
//! SCRAM: a proof is the client key under a mask that whoever has the verifier can make, so a right proof bares
//! the key (RFC 5802 §3: ClientKey = ClientProof XOR ClientSignature), and with the verifier's ServerKey that is
//! all a client needs. It is bound to the verifier's salt and iterations. md5: the stored hash is what the
//! protocol's answer is made from.
//!
//! It is kept in memory only, wiped when dropped, and never shown.

use super::keys::{Key, ScramKeys};
use std::fmt;
use std::num::NonZeroU32;
use zeroize::Zeroizing;

/// See the module's page.
#[derive(Clone)]
pub enum Passport {
    /// For a server with a SCRAM verifier of this salt and so many iterations.
    Scram {
        /// Salt of the verifier.
        salt: Vec<u8>,
        /// Its PBKDF2 rounds.
        iterations: NonZeroU32,
        /// What a derivation from the password would give.
        keys: ScramKeys,
    },
    /// For a server that asks for md5: the 32 hex digits that it stores.
    Md5(Zeroizing<Key>),
}

impl fmt::Debug for Passport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Passport::Scram { .. } => "Passport::Scram(…)",
            Passport::Md5(_) => "Passport::Md5(…)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", Passport::Md5(Zeroizing::new([b'a'; 32]))), "Passport::Md5(…)");
    }
}
