//! One user's secret, in any of the three forms PostgreSQL knows: clear, md5 hash, SCRAM verifier.
//!
//! Which form a text has is decided as PostgreSQL does (`get_password_type`), except that something
//! that announces itself as a SCRAM verifier and is none is an error, not a strange clear password.

use super::keys::{self, ITERATIONS, Key};
use super::passport::Passport;
use super::scram::{MECHANISM, ScramVerifier};
use crate::config::Secret;
use std::fmt;
use std::sync::{Arc, OnceLock};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bytes of salt in verifiers made here, as in PostgreSQL's (`SCRAM_DEFAULT_SALT_LEN`).
const SALT: usize = 16;

/// What a user's login is checked against. Cheap to clone.
#[derive(Clone)]
pub struct Verifier(Arc<Inner>);

struct Inner {
    /// As configured, to see at a reload whether it changed.
    text: Secret,
    form: Form,
}

enum Form {
    /// With the SCRAM verifier made from it, once it has been needed.
    Clear(OnceLock<ScramVerifier>),
    Md5([u8; 32]),
    Scram(ScramVerifier),
}

/// The forms of a secret, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    /// A clear password.
    Clear,
    /// `md5` and 32 hex digits.
    Md5,
    /// `SCRAM-SHA-256$…`
    Scram,
}

impl fmt::Display for SecretKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SecretKind::Clear => "a clear password",
            SecretKind::Md5 => "an md5 hash",
            SecretKind::Scram => "a SCRAM verifier",
        })
    }
}

/// Why a text is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    /// PostgreSQL refuses empty passwords, and so does every login.
    #[error("the password is empty")]
    Empty,
    /// No client could ever send it.
    #[error("the password contains a NUL byte")]
    Nul,
    /// It starts like a SCRAM verifier.
    #[error(
        "malformed SCRAM verifier; expected SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>, \
         as in pg_authid.rolpassword"
    )]
    Scram,
}

impl Verifier {
    /// Reads a secret as configured.
    ///
    /// # Errors
    /// [`VerifierError`], which never quotes the text.
    pub fn parse(text: &Secret) -> Result<Verifier, VerifierError> {
        let shown = text.expose();
        if shown.is_empty() {
            return Err(VerifierError::Empty);
        }
        if shown.contains('\0') {
            return Err(VerifierError::Nul);
        }
        let form = if let Some(digits) = md5_digits(shown) {
            Form::Md5(digits)
        } else if shown.strip_prefix(MECHANISM).is_some_and(|rest| rest.starts_with('$')) {
            Form::Scram(ScramVerifier::parse(shown).ok_or(VerifierError::Scram)?)
        } else {
            Form::Clear(OnceLock::new())
        };
        Ok(Verifier(Arc::new(Inner { text: text.clone(), form })))
    }

    /// The form of the secret.
    #[must_use]
    pub fn kind(&self) -> SecretKind {
        match self.0.form {
            Form::Clear(_) => SecretKind::Clear,
            Form::Md5(_) => SecretKind::Md5,
            Form::Scram(_) => SecretKind::Scram,
        }
    }

    /// Makes the SCRAM verifier of a clear password now (0.8 ms), so that no login has to; with the salt and rounds
    /// of `beside`, where there is such a one.
    #[must_use]
    pub fn prepared(self, user: &str, mock: &MockKey, beside: Option<&ScramVerifier>) -> Verifier {
        let Form::Clear(made) = &self.0.form else { return self };
        let (salt, iterations) = match beside {
            Some(other) => (other.salt.clone(), other.iterations),
            None => (mock.salt(user).to_vec(), ITERATIONS),
        };
        if made.get().is_some_and(|made| made.salt == salt && made.iterations == iterations) {
            return self;
        }
        let password = self.0.text.expose().as_bytes();
        let made = OnceLock::from(ScramVerifier::of_password(password, &salt, iterations));
        Verifier(Arc::new(Inner { text: self.0.text.clone(), form: Form::Clear(made) }))
    }

    /// The SCRAM verifier that it is as configured.
    pub(super) fn given(&self) -> Option<&ScramVerifier> {
        match &self.0.form {
            Form::Scram(verifier) => Some(verifier),
            Form::Clear(_) | Form::Md5(_) => None,
        }
    }

    /// Whether it was read from this very text.
    #[must_use]
    pub(super) fn is_of(&self, text: &Secret) -> bool {
        self.0.text == *text
    }

    /// The verifier for a SCRAM exchange; `None` for an md5 hash, from which there is no way.
    pub(super) fn scram(&self, user: &str, mock: &MockKey) -> Option<&ScramVerifier> {
        match &self.0.form {
            Form::Scram(verifier) => Some(verifier),
            Form::Md5(_) => None,
            Form::Clear(made) => Some(made.get_or_init(|| {
                // The salt by the same rule as an unknown user's: neither changes before the
                // process ends, so asking twice does not tell them apart.
                let password = self.0.text.expose().as_bytes();
                ScramVerifier::of_password(password, &mock.salt(user), ITERATIONS)
            })),
        }
    }

    /// The digits for an md5 exchange; `None` for a SCRAM verifier.
    pub(super) fn md5(&self, user: &str) -> Option<[u8; 32]> {
        match &self.0.form {
            Form::Md5(digits) => Some(*digits),
            Form::Clear(_) => Some(keys::md5_secret(user.as_bytes(), self.0.text.expose().as_bytes())),
            Form::Scram(_) => None,
        }
    }

    /// What the stored form itself is good for towards a server: an md5 hash is as good as its password.
    pub(super) fn passport(&self) -> Option<Passport> {
        match &self.0.form {
            Form::Md5(digits) => Some(Passport::Md5(Zeroizing::new(*digits))),
            Form::Clear(_) | Form::Scram(_) => None,
        }
    }

    /// Whether a password sent in clear is the right one, unless that takes a derivation.
    pub(super) fn check_clear(&self, user: &str, given: &[u8], mock: &MockKey) -> Option<bool> {
        match &self.0.form {
            Form::Clear(_) => Some(mock.same(given, self.0.text.expose().as_bytes())),
            Form::Md5(digits) => Some(keys::md5_secret(user.as_bytes(), given).ct_eq(digits).into()),
            Form::Scram(_) => None,
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Verifier").field(&self.kind()).finish()
    }
}

/// `md5` and 32 lower-case hex digits; anything else that starts with `md5` is a clear password.
fn md5_digits(text: &str) -> Option<[u8; 32]> {
    let digits: [u8; 32] = text.strip_prefix("md5")?.as_bytes().try_into().ok()?;
    digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).then_some(digits)
}

/// A secret of this process, from which the salts of users who do not exist are made, so that they
/// are asked the same question every time, as real ones are.
///
/// What it cannot hide: after a restart the salt of a user with a SCRAM verifier in the file stays,
/// everybody else's changes. Giving that up would take a secret kept on disk.
#[derive(Clone)]
pub struct MockKey {
    key: Zeroizing<Key>,
    /// Some user's clear-text login takes a key derivation, so every one must.
    pub(super) derive_always: bool,
}

impl MockKey {
    /// A new one.
    #[must_use]
    pub fn random() -> MockKey {
        MockKey { key: Zeroizing::new(keys::random()), derive_always: false }
    }

    /// The salt of a user who has none of his own.
    pub(super) fn salt(&self, user: &str) -> [u8; SALT] {
        let full = self.derived(b"salt", user);
        std::array::from_fn(|i| full[i])
    }

    /// A verifier that looks like any other and that no password satisfies.
    pub(super) fn verifier(&self, user: &str) -> ScramVerifier {
        ScramVerifier {
            salt: self.salt(user).to_vec(),
            iterations: ITERATIONS,
            stored: Zeroizing::new(self.derived(b"stored", user)),
            server: Zeroizing::new(self.derived(b"server", user)),
        }
    }

    /// Compares two texts of any lengths in a time that depends on neither's content.
    fn same(&self, a: &[u8], b: &[u8]) -> bool {
        keys::hmac(&self.key[..], a).ct_eq(&keys::hmac(&self.key[..], b)).into()
    }

    fn derived(&self, purpose: &[u8], user: &str) -> Key {
        keys::hmac(&keys::hmac(&self.key[..], purpose), user.as_bytes())
    }
}

impl fmt::Debug for MockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MockKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Verifier, VerifierError> {
        Verifier::parse(&Secret::new(text.to_owned()))
    }

    #[test]
    fn forms_are_told_apart_as_postgresql_does() {
        let kind = |text: &str| parse(text).unwrap().kind();
        assert_eq!(kind("hunter2"), SecretKind::Clear);
        assert_eq!(kind("md54a0a68b43b6cd5cf266fa02f196e2371"), SecretKind::Md5);
        assert_eq!(kind("md54A0A68B43B6CD5CF266FA02F196E2371"), SecretKind::Clear, "upper case");
        assert_eq!(kind("md5"), SecretKind::Clear);
        assert_eq!(kind("SCRAM-SHA-256"), SecretKind::Clear);
        assert_eq!(parse("").unwrap_err(), VerifierError::Empty);
        assert_eq!(parse("a\0b").unwrap_err(), VerifierError::Nul);
        assert_eq!(parse("SCRAM-SHA-256$4096:").unwrap_err(), VerifierError::Scram);
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?} {:?}", parse("hunter2").unwrap(), MockKey::random());
        assert_eq!(shown, "Verifier(Clear) MockKey(…)");
    }

    #[test]
    fn a_clear_password_is_derived_once() {
        let mock = MockKey::random();
        let verifier = parse("hunter2").unwrap().prepared("alice", &mock, None);
        let first = std::ptr::from_ref(verifier.scram("alice", &mock).unwrap());
        let again = std::ptr::from_ref(verifier.clone().scram("alice", &mock).unwrap());
        assert_eq!(first, again);
    }

    #[test]
    fn an_unknown_user_keeps_his_salt_for_the_life_of_the_process() {
        let mock = MockKey::random();
        assert_eq!(mock.verifier("ghost").salt, mock.clone().verifier("ghost").salt);
        assert_ne!(mock.verifier("ghost").salt, mock.verifier("other").salt);
        assert_ne!(mock.verifier("ghost").salt, MockKey::random().verifier("ghost").salt);
    }
}
