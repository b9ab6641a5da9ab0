//! The hashes of PostgreSQL's password methods: SCRAM-SHA-256 key derivation (RFC 5802 §3,
//! RFC 7677) and md5 ("SASL Authentication" and AuthenticationMD5Password in the protocol chapter).
//!
//! Pure functions; which side uses which key is decided in [`super::scram`] and `backend`.

use md5::{Digest, Md5};
use ring::{digest, hmac, pbkdf2};
use std::num::NonZeroU32;
use zeroize::Zeroizing;

/// One SHA-256 output.
pub type Key = [u8; 32];

/// PBKDF2 rounds of new verifiers: PostgreSQL's own default (`scram_iterations`).
pub const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();

/// HMAC-SHA-256.
#[must_use]
pub fn hmac(key: &[u8], message: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    first_32(tag.as_ref())
}

/// SHA-256.
#[must_use]
pub fn sha256(message: &[u8]) -> Key {
    first_32(digest::digest(&digest::SHA256, message).as_ref())
}

/// Bytes nobody can guess.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    // Seeded by the operating system and cryptographically secure (`rand::rngs::ThreadRng`).
    rand::random()
}

/// Both keys that come out of a password: what a SCRAM client needs, and all that a server's
/// verifier is made from.
#[derive(Clone)]
pub struct ScramKeys {
    /// `HMAC(SaltedPassword, "Client Key")`
    pub client: Zeroizing<Key>,
    /// `HMAC(SaltedPassword, "Server Key")`
    pub server: Zeroizing<Key>,
}

impl ScramKeys {
    /// Derives them: `iterations` rounds of HMAC, 0.8 ms for PostgreSQL's 4,096. Never on a thread
    /// that serves sessions.
    ///
    /// Passwords are prepared by SASLprep (RFC 4013). As PostgreSQL does, one that SASLprep
    /// prohibits or that is not UTF-8 is used byte for byte.
    #[must_use]
    pub fn derive(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> ScramKeys {
        let mut salted = Zeroizing::new([0; 32]);
        let mut hash = |password: &[u8]| {
            pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password, &mut salted[..]);
        };
        match std::str::from_utf8(password) {
            Ok(text) if !text.is_ascii() => {
                // pgwire has SASLprep, but only together with the derivation.
                let prepared = pgwire::api::auth::sasl::scram::gen_salted_password(
                    text,
                    salt,
                    iterations.get() as usize,
                );
                salted.copy_from_slice(&first_32(&Zeroizing::new(prepared)));
            }
            _ => hash(password),
        }
        ScramKeys {
            client: Zeroizing::new(hmac(&salted[..], b"Client Key")),
            server: Zeroizing::new(hmac(&salted[..], b"Server Key")),
        }
    }

    /// What a server stores to check a client: `H(ClientKey)`.
    #[must_use]
    pub fn stored(&self) -> Key {
        sha256(&self.client[..])
    }
}

/// The 32 hex digits that PostgreSQL stores after `md5`: of password and role name.
#[must_use]
pub fn md5_secret(user: &[u8], password: &[u8]) -> [u8; 32] {
    hex(&Md5::new().chain_update(password).chain_update(user).finalize())
}

/// The 32 hex digits that answer an md5 challenge: of the stored digits and the salt.
#[must_use]
pub fn md5_answer(secret: &[u8; 32], salt: [u8; 4]) -> [u8; 32] {
    hex(&Md5::new().chain_update(secret).chain_update(salt).finalize())
}

fn hex(bytes: &[u8]) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = [0; 32];
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    out
}

/// The first 32 bytes of a hash output that has exactly so many.
fn first_32(bytes: &[u8]) -> Key {
    let mut out = [0; 32];
    out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = *byte);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn md5_is_what_postgresql_stores_and_expects() {
        // SELECT 'md5' || md5('secret' || 'alice') in PostgreSQL.
        let secret = md5_secret(b"alice", b"secret");
        assert_eq!(&secret, b"4a0a68b43b6cd5cf266fa02f196e2371");
        let by_pgwire = pgwire::api::auth::md5pass::hash_md5_password("alice", "secret", &[1, 2, 3, 4]);
        assert_eq!(by_pgwire.as_bytes()[3..], md5_answer(&secret, [1, 2, 3, 4]));
    }

    #[test]
    fn derivation_is_that_of_rfc_7677() {
        // RFC 7677 §3: user "user", password "pencil".
        let salt =
            [0x5b, 0x6d, 0x99, 0x68, 0x9d, 0x12, 0x35, 0x8e, 0xec, 0xa0, 0x4b, 0x14, 0x12, 0x36, 0xfa, 0x81];
        let keys = ScramKeys::derive(b"pencil", &salt, ITERATIONS);
        let messages = b"n=user,r=rOprNGfwEbeRWgbNEkqO,\
            r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
            c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        use base64::{Engine, engine::general_purpose::STANDARD};
        let signature = hmac(&keys.server[..], messages);
        assert_eq!(STANDARD.encode(signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn saslprep_is_applied_where_it_can_be() {
        let derive = |password: &[u8]| *ScramKeys::derive(password, b"salt", ITERATIONS).client;
        // Compatibility forms are the same password (U+2168 ROMAN NUMERAL NINE is "IX") …
        assert_eq!(derive("\u{2168}".as_bytes()), derive(b"IX"));
        // … a prohibited character or a byte that is not UTF-8 leaves it as it stands.
        assert_ne!(derive("\u{2168}\u{7}".as_bytes()), derive(b"IX\x07"));
        assert_ne!(derive(b"\xffIX"), derive(b"IX"));
    }
}
