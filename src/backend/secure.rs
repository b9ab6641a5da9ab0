//! Whether a connection to a server is encrypted: asked before anything else is said, in the order of libpq's
//! `sslmode` (PostgreSQL, "SSL Support"; "SSL Session Encryption" in the protocol chapter).

use super::error::{DialError, ProtocolFault};
use crate::config::TlsMode;
use crate::net::stream::Stream;
use crate::net::tls::{Connector, Protection};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// SSLRequest.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// One way to be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// As the socket is.
    Plain,
    /// Encrypted if the server will.
    Offered,
    /// Encrypted.
    Required,
}

/// The ways to try, in this order; the next one where a server does not let anybody in by the one before.
pub(super) fn ways(mode: TlsMode) -> &'static [Way] {
    match mode {
        TlsMode::Disable => &[Way::Plain],
        TlsMode::Allow => &[Way::Plain, Way::Required],
        TlsMode::Prefer => &[Way::Offered, Way::Plain],
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => &[Way::Required],
    }
}

/// Whether a server that has answered so might let somebody in by another way: `pg_hba.conf` has no line for
/// this one (28000), or the handshake failed.
pub(super) fn is_of_the_way(error: &DialError) -> bool {
    matches!(error, DialError::Tls(_) | DialError::Server { code: [b'2', b'8', b'0', b'0', b'0'], .. })
}

/// What it takes to be encrypted again, for a cancel request.
#[derive(Debug, Clone)]
pub struct Secured {
    connector: Connector,
    host: Arc<str>,
    /// What protects the backend's connection.
    pub protection: Option<Protection>,
}

impl Secured {
    pub(super) fn new(connector: Connector, host: &str) -> Secured {
        Secured { connector, host: host.into(), protection: None }
    }

    /// The same of a connection that has been secured, by this.
    pub(super) fn by(&self, protection: Protection) -> Secured {
        Secured { protection: Some(protection), ..self.clone() }
    }

    /// Asks the server and makes the handshake; [`Way::Offered`] goes on without, if the server has no TLS.
    ///
    /// Exactly one byte is read before the handshake: what somebody slips in behind it is taken for a part of
    /// that, which then fails (CVE-2021-23222).
    pub(super) async fn secure(&self, mut stream: Stream, way: Way) -> Result<Stream, DialError> {
        if way == Way::Plain {
            return Ok(stream);
        }
        stream.write_all(&SSL_REQUEST).await?;
        match (stream.read_u8().await?, way) {
            (b'S', _) => {}
            (b'N', Way::Offered) => return Ok(stream),
            (b'N', _) => {
                let error = "the server does not offer TLS, which tls.server.mode asks for";
                return Err(DialError::Tls(io::Error::new(io::ErrorKind::Unsupported, error)));
            }
            // An error, which nobody vouches for (the manual tells clients not to show it), or nonsense.
            (kind, _) => return Err(ProtocolFault::Unexpected(kind).into()),
        }
        let Stream::Tcp(tcp) = stream else { return Err(ProtocolFault::Unexpected(b'S').into()) };
        self.connector.connect(tcp, &self.host).await.map_err(DialError::Tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_are_those_of_libpqs_table() {
        assert_eq!(ways(TlsMode::Disable), [Way::Plain]);
        assert_eq!(ways(TlsMode::Allow), [Way::Plain, Way::Required]);
        assert_eq!(ways(TlsMode::Prefer), [Way::Offered, Way::Plain]);
        for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
            assert_eq!(ways(mode), [Way::Required]);
        }
    }
}
