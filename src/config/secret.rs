//! Texts that nobody may see, and the files that some of them come from.

use super::rules::{Password, Raw, Rule};
use super::written::read_value;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

/// Longest password, in bytes: what PostgreSQL reads (`PG_MAX_AUTH_TOKEN_LENGTH`), and more than tokens have.
pub const MAX_PASSWORD: usize = 64 * 1024;

/// A secret that never shows in Debug, logs or views, and is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    text: zeroize::Zeroizing<String>,
    /// Of a password that was in a file: which.
    file: Option<Arc<Path>>,
}

/// What a stored secret is, by its first characters, as PostgreSQL tells (`get_password_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordKind {
    /// A clear password.
    Clear,
    /// `md5` and 32 hexadecimal digits.
    Md5,
    /// A SCRAM-SHA-256 verifier.
    Scram,
}

/// Why a file has no password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// It is not there, or not for Bursar, or not UTF-8.
    #[error("cannot be read: {0}")]
    Unreadable(ErrorKind),
    /// It has not been read in time, as on a file system that hangs.
    #[error("cannot be read in time")]
    Timeout,
    /// It has more than [`MAX_PASSWORD`].
    #[error("holds more than 64 KiB")]
    TooLong,
    /// It is empty, or has a NUL.
    #[error("holds no password: it must be a text that is not empty and has no NUL")]
    NoPassword,
    /// It had a clear password, which a server can be told, and has not any more.
    #[error("holds a hash now, where it held a clear password")]
    Hash,
}

impl Secret {
    /// Wraps a secret text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Secret { text: text.into(), file: None }
    }

    /// The same, which came from a file.
    #[must_use]
    pub(super) fn in_file(self, file: Arc<Path>) -> Self {
        Secret { file: Some(file), ..self }
    }

    /// The text itself; for comparison and key derivation only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Of a password that was in a file: which. Other secrets do not know.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What its file holds now, read as it was for the configuration; itself without a file. Blocks on the file.
    ///
    /// # Errors
    /// [`FileFault`]
    pub fn read_again(&self) -> Result<Secret, FileFault> {
        let Some(file) = &self.file else { return Ok(self.clone()) };
        // One byte more is a line break.
        let text = read_value(file, MAX_PASSWORD as u64 + 1).map_err(|kind| match kind {
            ErrorKind::FileTooLarge => FileFault::TooLong,
            kind => FileFault::Unreadable(kind),
        })?;
        if text.len() > MAX_PASSWORD {
            return Err(FileFault::TooLong);
        }
        let now = Password.read(&Raw::FromFile { text, path: file.clone() }).ok_or(FileFault::NoPassword)?;
        let spoilt = self.kind() == PasswordKind::Clear && now.kind() != PasswordKind::Clear;
        if spoilt { Err(FileFault::Hash) } else { Ok(now) }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> PasswordKind {
        let text = self.expose();
        let hash = text.strip_prefix("md5").filter(|hex| hex.len() == 32);
        if text.starts_with("SCRAM-SHA-256$") {
            PasswordKind::Scram
        } else if hash.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())) {
            PasswordKind::Md5
        } else {
            PasswordKind::Clear
        }
    }

    /// Rounds and salt of a SCRAM verifier, as written.
    #[must_use]
    pub(super) fn scram_cost(&self) -> Option<&str> {
        self.expose().strip_prefix("SCRAM-SHA-256$")?.split('$').next()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_as_it_was_read_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let first = Secret::new("first".into()).in_file(path.as_path().into());
        let now = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            first.read_again().map(|secret| {
                assert_eq!(secret.file(), first.file());
                secret.expose().to_owned()
            })
        };
        let longest = "x".repeat(MAX_PASSWORD);
        assert_eq!(now(b"second\n").unwrap(), "second");
        assert_eq!(now(b" a b \n\n").unwrap(), " a b \n");
        assert_eq!(now(format!("{longest}\n").as_bytes()).unwrap(), longest);
        assert_eq!(now(format!("{longest}\n\n").as_bytes()), Err(FileFault::TooLong));
        assert_eq!(now(format!("{longest}x").as_bytes()), Err(FileFault::TooLong));
        assert_eq!(now(b"\n"), Err(FileFault::NoPassword));
        assert_eq!(now(b"a\0b"), Err(FileFault::NoPassword));
        assert_eq!(now(b"\xff"), Err(FileFault::Unreadable(ErrorKind::InvalidData)));
        assert_eq!(now(b"SCRAM-SHA-256$4096:c2FsdA==$a:b"), Err(FileFault::Hash));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(first.read_again(), Err(FileFault::Unreadable(ErrorKind::NotFound)));
        assert_eq!(Secret::new("own".into()).read_again().unwrap().expose(), "own");
    }
}
