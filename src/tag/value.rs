//! Which values a tag may have. Every source of tags is held to the same bounds.

use super::Key;

/// The longest value, in bytes.
pub const MAX_VALUE: usize = 128;
/// Why a value is refused; SQLSTATE 22023.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// More than [`MAX_VALUE`] bytes.
    #[error("bursar.{} takes at most 128 bytes, not {len}", key.name())]
    TooLong {
        /// The key.
        key: Key,
        /// The value's length in bytes.
        len: usize,
    },
    /// Control characters.
    #[error("bursar.{} takes printable characters only", key.name())]
    Unprintable {
        /// The key.
        key: Key,
    },
    /// Not a number, or out of [`Key::range`].
    #[error("bursar.{} takes a number from {least} to {most}", key.name())]
    Number {
        /// The key.
        key: Key,
        /// Smallest.
        least: u32,
        /// Largest.
        most: u32,
    },
}

/// Whether any tag may have this value.
pub(super) fn printable(value: &str) -> bool {
    value.len() <= MAX_VALUE && !value.contains(char::is_control)
}

/// Whether a key may have this value; an empty one always.
pub(super) fn check(key: Key, value: &str) -> Result<(), TagError> {
    if value.len() > MAX_VALUE {
        return Err(TagError::TooLong { key, len: value.len() });
    }
    if value.contains(char::is_control) {
        return Err(TagError::Unprintable { key });
    }
    match key.range() {
        Some(range) if !value.is_empty() && !value.parse().is_ok_and(|n: u32| range.contains(&n)) => {
            Err(TagError::Number { key, least: *range.start(), most: *range.end() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_key_and_the_limit() {
        let error = |key, value: &str| check(key, value).unwrap_err();
        let deadline = error(Key::DeadlineMs, "0");
        assert_eq!(deadline.to_string(), "bursar.deadline_ms takes a number from 1 to 3600000");
        let leases = error(Key::MaxLeases, "-1");
        assert_eq!(leases.to_string(), "bursar.max_leases takes a number from 1 to 1000000");
        assert_eq!(error(Key::Tenant, "a\0b"), TagError::Unprintable { key: Key::Tenant });
        let long = "é".repeat(MAX_VALUE / 2 + 1);
        assert_eq!(error(Key::Route, &long), TagError::TooLong { key: Key::Route, len: 130 });
    }

    #[test]
    fn values_at_the_limit_and_empty_ones_pass() {
        assert_eq!(check(Key::Route, &"x".repeat(MAX_VALUE)), Ok(()));
        assert_eq!(check(Key::DeadlineMs, "3600000"), Ok(()));
        assert!(Key::ALL.into_iter().all(|key| check(key, "").is_ok()));
    }
}
