//! Which limit it was that a server lets no more in by (53300).
//!
//! Its message says so in its own language; the name of the function that raised it is the same in all, and has
//! been since PostgreSQL 9.6.

use crate::wire::backend::error_field;

/// A limit that is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The role's CONNECTION LIMIT.
    Role,
    /// The database's.
    Database,
    /// `max_connections`, or what of it is not reserved.
    Server,
}

impl Full {
    /// Every one.
    pub const ALL: [Full; 3] = [Full::Role, Full::Database, Full::Server];

    /// From the body of an ErrorResponse; `None` if that is not what it says.
    #[must_use]
    pub fn of(body: &[u8]) -> Option<Full> {
        if error_field(body, b'C') != Some(b"53300") {
            return None;
        }
        Some(match error_field(body, b'R') {
            Some(b"InitializeSessionUserId") => Full::Role,
            Some(b"CheckMyDatabase") => Full::Database,
            // One function finds that none is left, another that the rest is reserved; a walsender's is its own.
            Some(b"InitProcess" | b"InitPostgres" | b"ProcessStartupPacket" | b"BackendInitialize") => {
                Full::Server
            }
            _ => return None,
        })
    }

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Full::Role => "the role's CONNECTION LIMIT",
            Full::Database => "the database's CONNECTION LIMIT",
            Full::Server => "max_connections of the server",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_that_raised_it_tells_the_limit() {
        let body = |code: &str, routine: &str| {
            format!("SFATAL\0VFATAL\0C{code}\0Mzu viele Verbindungen\0R{routine}\0\0").into_bytes()
        };
        assert_eq!(Full::of(&body("53300", "InitializeSessionUserId")), Some(Full::Role));
        assert_eq!(Full::of(&body("53300", "CheckMyDatabase")), Some(Full::Database));
        assert_eq!(Full::of(&body("53300", "InitProcess")), Some(Full::Server));
        assert_eq!(Full::of(&body("53300", "InitPostgres")), Some(Full::Server));
        assert_eq!(Full::of(&body("53300", "somebody_else")), None);
        assert_eq!(Full::of(&body("53200", "InitProcess")), None);
        assert_eq!(Full::of(b"C53300\0"), None);
    }
}
