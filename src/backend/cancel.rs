//! CancelRequest: a connection of its own that says which process should stop, and is never
//! answered ("Canceling Requests in Progress" in the protocol chapter; wire.md E).
//!
//! Whether the backend still belongs to the session that wants the cancel is the caller's
//! knowledge, and is asked at the last moment.

use super::error::DialError;
use super::secure::{Secured, Way};
use super::target::Endpoint;
use crate::net::stream::Stream;
use bytes::{Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::SecretKey;
use std::fmt;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// How long to wait for the server to close, which says that the signal is out.
const CONFIRM: Duration = Duration::from_secs(1);

/// What it takes to cancel what a backend runs.
#[derive(Clone)]
pub struct CancelHandle {
    /// The address the backend is connected to.
    pub endpoint: Endpoint,
    /// The backend's connection is encrypted, so that its key must not go over the wire in the clear.
    pub secured: Option<Secured>,
    /// PostgreSQL's process id.
    pub pid: i32,
    /// Its cancel key.
    pub key: Bytes,
}

/// What became of a cancel request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// The server closed the connection: the signal is out.
    Signalled,
    /// Sent, but the server did not close within a second: the signal may come at any time.
    Unconfirmed,
    /// No longer wanted once connected; nothing was sent.
    Withdrawn,
}

impl CancelHandle {
    /// Connects within `within`, asks `still_wanted`, sends, and waits up to a second for the end.
    ///
    /// `still_wanted` is called after connecting and immediately before the request is written, so
    /// that a backend which has meanwhile gone to somebody else is left alone. Until this returns,
    /// and after [`Cancelled::Unconfirmed`] or a failure for as long as the caller cares, the
    /// signal may hit whatever the backend runs.
    ///
    /// # Errors
    /// `Io`, `Tls` and `Timeout` of [`DialError`]; `Io` with `Unsupported` if the server gave no key.
    pub async fn send(
        &self,
        within: Duration,
        still_wanted: impl FnOnce() -> bool,
    ) -> Result<Cancelled, DialError> {
        let mut packet = BytesMut::new();
        CancelRequest::new(self.pid, SecretKey::Bytes(self.key.clone()))
            .encode(&mut packet)
            .map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        let connected = timeout(within, self.connect()).await;
        let mut stream = connected.map_err(|_| DialError::Timeout)??;
        if !still_wanted() {
            return Ok(Cancelled::Withdrawn);
        }
        let sent = async {
            stream.write_all(&packet).await?;
            stream.flush().await
        };
        timeout(within, sent).await.map_err(|_| DialError::Timeout)??;
        // The server never sends anything here, so whatever ends the read ends the request.
        match timeout(CONFIRM, stream.read_u8()).await {
            Ok(_) => Ok(Cancelled::Signalled),
            Err(_) => Ok(Cancelled::Unconfirmed),
        }
    }
}

impl CancelHandle {
    async fn connect(&self) -> Result<Stream, DialError> {
        let stream = self.endpoint.connect().await?;
        match &self.secured {
            Some(secured) => secured.secure(stream, Way::Required).await,
            None => Ok(stream),
        }
    }
}

impl fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelHandle")
            .field("endpoint", &self.endpoint)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn listener() -> (TcpListener, CancelHandle) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
        (listener, CancelHandle { endpoint, secured: None, pid: 7, key: Bytes::from_static(b"12345678") })
    }

    #[tokio::test]
    async fn the_request_has_postgresqls_bytes_and_waits_for_the_end() {
        let (listener, handle) = listener().await;
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut packet = [0; 20];
            stream.read_exact(&mut packet).await.unwrap();
            packet
        };
        let (packet, sent) = tokio::join!(server, handle.send(Duration::from_secs(5), || true));
        assert_eq!(&packet, b"\0\0\0\x14\x04\xd2\x16\x2e\0\0\0\x0712345678");
        assert_eq!(sent.unwrap(), Cancelled::Signalled);
    }

    #[tokio::test]
    async fn a_withdrawn_request_is_not_sent() {
        let (listener, handle) = listener().await;
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            got
        };
        let (got, sent) = tokio::join!(server, handle.send(Duration::from_secs(5), || false));
        assert!(got.is_empty());
        assert_eq!(sent.unwrap(), Cancelled::Withdrawn);
    }

    #[tokio::test]
    async fn a_backend_without_a_key_cannot_be_cancelled() {
        let (_listener, mut handle) = listener().await;
        handle.key = Bytes::new();
        let error = handle.send(Duration::from_secs(5), || true).await.unwrap_err();
        assert!(matches!(&error, DialError::Io(e) if e.kind() == io::ErrorKind::Unsupported), "{error}");
    }
}
