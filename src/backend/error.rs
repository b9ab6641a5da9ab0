//! Why a backend could not be had.

use super::scram::ScramFault;
use crate::adapt::refused::Full;
use crate::breaker::Failure;
use bytes::Bytes;
use std::io;
use std::sync::Arc;

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No address answered, or the connection broke.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// Not encrypted as the configuration wants it: no TLS there, a handshake that failed, a certificate that
    /// is not accepted.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// Not ready within the connect timeout.
    #[error("no backend within the connect timeout")]
    Timeout,
    /// PostgreSQL refused, in its own words.
    #[error("refused by the server with SQLSTATE {}{}", .code.escape_ascii(), for_want_of(.body))]
    Server {
        /// SQLSTATE, five ASCII characters from a genuine server.
        code: [u8; 5],
        /// The body of its ErrorResponse, to be forwarded as it is.
        body: Bytes,
    },
    /// The server does not keep to the protocol.
    #[error("protocol violation by the server: {0}")]
    Protocol(#[from] ProtocolFault),
    /// The server wants, or does, what we do not accept as authentication.
    #[error("authentication: {0}")]
    Auth(#[from] AuthFault),
    /// There is no password, because the program that prints it did not.
    #[error("the password command {0}")]
    Command(#[from] super::command::CommandFault),
    /// A server that is not what `target_session_attrs` wants.
    #[error("not {wanted}, which target_session_attrs wants")]
    Unsuitable {
        /// The value of that key.
        wanted: &'static str,
    },
    /// None of several servers would do, each for its reason.
    #[error("{}", .0.iter().map(|(server, error)| format!("{server}: {error}")).collect::<Vec<_>>().join("; "))]
    Several(Vec<(Arc<str>, DialError)>),
    /// The store holds as many backends as it may; the book's accounting is off.
    #[error("no room in the store")]
    NoRoom,
}

/// Which limit it was, where it was one.
fn for_want_of(body: &[u8]) -> String {
    Full::of(body).map_or_else(String::new, |full| format!(", {} being used up", full.name()))
}

impl DialError {
    /// Of the servers that were tried, each by its address.
    pub(super) fn of_several(mut failed: Vec<(Arc<str>, DialError)>) -> DialError {
        match failed.pop() {
            Some((_, only)) if failed.is_empty() => only,
            Some(last) => {
                failed.push(last);
                DialError::Several(failed)
            }
            None => DialError::Io(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    /// What it says of the server, for its breaker.
    #[must_use]
    pub fn kind(&self) -> Failure {
        match self {
            DialError::Io(_)
            | DialError::Tls(_)
            | DialError::Timeout
            | DialError::Protocol(_)
            | DialError::Unsuitable { .. } => Failure::Unreachable,
            // Worth asking again as soon as one of them is.
            DialError::Several(all) => match all.iter().any(|(_, error)| error.kind() == Failure::Starting) {
                true => Failure::Starting,
                false => Failure::Unreachable,
            },
            // Shutting down, crashed, starting up: operator intervention (PostgreSQL, appendix A, class 57P).
            DialError::Server { code: [b'5', b'7', b'P', ..], .. } => Failure::Starting,
            // No connection left, or no memory for one more.
            DialError::Server { code: [b'5', b'3', ..], .. } | DialError::NoRoom => Failure::Full,
            // Without its password a role is as good as refused: no other role is the worse for it.
            DialError::Server { .. } | DialError::Auth(_) | DialError::Command(_) => Failure::Refused,
        }
    }
}

/// How a server broke the protocol before it was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolFault {
    /// A length field below 4 or beyond what a login may take.
    #[error("message '{}' with length {len}", .kind.escape_ascii())]
    Length {
        /// Type byte.
        kind: u8,
        /// Length field.
        len: i32,
    },
    /// More bytes or parameters than a login may take.
    #[error("too much before ReadyForQuery")]
    TooMuch,
    /// A message that has no place here.
    #[error("unexpected message '{}'", .0.escape_ascii())]
    Unexpected(u8),
    /// A message whose body does not have its fields.
    #[error("malformed message '{}'", .0.escape_ascii())]
    Malformed(u8),
    /// NegotiateProtocolVersion with a version or options we did not ask for.
    #[error("unacceptable protocol version")]
    Version,
    /// Not idle, or not silent, after login.
    #[error("not idle after login")]
    NotIdle,
}

/// Why authentication towards a server failed on our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthFault {
    /// The server asks for a password and none is configured.
    #[error(
        "the server asks for a password, none is configured, and no client has shown what would serve instead"
    )]
    NoPassword,
    /// What a client has proved to Bursar is of no use: the server's verifier has another salt.
    #[error("the server has another verifier of this role than Bursar, and no password is configured")]
    OtherVerifier,
    /// Kerberos, GSSAPI, SSPI or something newer.
    #[error("the server asks for authentication method {0}, which is not supported")]
    Unsupported(i32),
    /// SASL without SCRAM-SHA-256.
    #[error("the server offers no supported SASL mechanism")]
    Mechanism,
    /// A second question, or an answer to none.
    #[error("authentication messages out of order")]
    Order,
    /// AuthenticationOk in the middle of SCRAM: the server never proved that it knows us.
    #[error("the server broke off SCRAM before proving its identity")]
    Unproven,
    /// A SCRAM message we do not accept.
    #[error(transparent)]
    Scram(#[from] ScramFault),
}
