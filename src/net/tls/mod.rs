//! TLS towards clients and towards servers: what `[tls.*]` comes to, and the handshakes.
//!
//! rustls does the work, with ring, which the project has for its other cryptography. Who asks for
//! encryption in which message is decided by who reads and writes messages; here a connected socket
//! becomes an encrypted [`Stream`], or does not.

mod common_name;
mod der;
mod end_point;
mod stream;
mod verify;

pub(super) use stream::Encrypted;
pub use stream::Protection;

use super::stream::Stream;
use crate::config::{Config, Secret, TlsMode, TlsSide, TlsVersion};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls};

/// The protocol's name in ALPN (PostgreSQL, "SSL Session Encryption"; registered with IANA).
const ALPN: &[u8] = b"postgresql";

/// The most plaintext in a record, in bytes, with its header: of longer ones libpq's asynchronous callers may
/// not see the end (wire.md, finding 19).
const RECORD: usize = 8192;

/// Certificates or keys that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct TlsError {
    /// The configuration's key.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// Both sides, ready to use. Immutable; a reload makes a new one.
#[derive(Debug)]
pub struct Tls {
    /// Towards clients; `None`: they are answered that there is none.
    pub clients: Option<Acceptor>,
    /// Towards servers.
    pub servers: Connector,
    /// Towards the servers of databases that have a `tls` of their own, by the table's name.
    databases: HashMap<String, Connector>,
}

impl Tls {
    /// Reads certificates and keys.
    ///
    /// # Errors
    /// [`TlsError`]: the first that cannot be used.
    pub fn new(config: &Config) -> Result<Tls, TlsError> {
        let own = config.databases_with_tls().map(|(name, side)| {
            let quoted = if name == "*" { "\"*\"" } else { name };
            Ok((name.to_owned(), Connector::new(&side, &format!("database.{quoted}.tls"))?))
        });
        let databases = own.collect::<Result<_, _>>()?;
        let clients = Acceptor::new(&config.tls.client)?;
        Ok(Tls { clients, servers: Connector::new(&config.tls.server, "tls.server")?, databases })
    }

    /// Towards the server of a database, as clients name it.
    #[must_use]
    pub fn towards(&self, database: &str) -> &Connector {
        let own = self.databases.get(database).or_else(|| self.databases.get("*"));
        own.unwrap_or(&self.servers)
    }
}

/// Takes clients' handshakes.
#[derive(Clone)]
pub struct Acceptor {
    /// Clients without TLS are turned away.
    pub required: bool,
    /// What a login over one of its connections may be bound to (RFC 5929 §4), if its certificate is of a kind
    /// for which that is defined.
    pub end_point: Option<Arc<[u8]>>,
    config: Arc<ServerConfig>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("required", &self.required).finish_non_exhaustive()
    }
}

impl Acceptor {
    fn new(rules: &TlsSide) -> Result<Option<Acceptor>, TlsError> {
        if rules.mode == TlsMode::Disable {
            return Ok(None);
        }
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions(rules.min_version))
            .map_err(|error| fault("tls.client.min_version", &error))?;
        let builder = if rules.mode.verifies() {
            let trusted = certificates("tls.client.ca", rules.ca.as_ref())?;
            let roots = Arc::new(roots("tls.client.ca", &trusted)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = verifier.build().map_err(|error| fault("tls.client.ca", &error))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let chain = certificates("tls.client.cert", rules.cert.as_ref())?;
        let end_point = chain.first().and_then(|own| end_point::of(own));
        let key = private_key("tls.client.key", rules.key.as_ref())?;
        let mut config =
            builder.with_single_cert(chain, key).map_err(|error| fault("tls.client.key", &error))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.max_fragment_size = Some(RECORD);
        config.ticketer =
            rustls::crypto::ring::Ticketer::new().map_err(|error| fault("tls.client", &error))?;
        Ok(Some(Acceptor { required: rules.mode >= TlsMode::Require, end_point, config: Arc::new(config) }))
    }

    /// The server's part of a handshake. `direct`: the client began with it, and must say that it wants
    /// PostgreSQL. Not cancel safe: dropped, the connection is gone. Bounded by the caller.
    ///
    /// # Errors
    /// Those of the socket, and `InvalidData` for a handshake that failed; the client has been sent an alert.
    pub async fn accept(&self, stream: Stream, direct: bool) -> io::Result<Stream> {
        let Stream::Tcp(tcp) = stream else { return Err(io::ErrorKind::Unsupported.into()) };
        let stream = TlsAcceptor::from(self.config.clone()).accept(tcp).await?;
        if direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "direct TLS without ALPN \"postgresql\""));
        }
        Ok(Stream::Tls(Box::new(Encrypted::new(stream.into()))))
    }
}

/// A client's socket, which may become an encrypted one.
pub trait Upgrade: Sized {
    /// As [`Stream::protection`].
    fn protection(&self) -> Option<Protection>;

    /// As [`Stream::common_name`].
    fn common_name(&self) -> Option<String>;

    /// As [`Stream::begins_with_tls`].
    fn begins_with_tls(&self) -> impl Future<Output = io::Result<bool>> + Send;

    /// As [`Acceptor::accept`].
    fn upgrade(self, by: &Acceptor, direct: bool) -> impl Future<Output = io::Result<Self>> + Send;
}

impl Upgrade for Stream {
    fn protection(&self) -> Option<Protection> {
        Stream::protection(self)
    }

    fn common_name(&self) -> Option<String> {
        Stream::common_name(self)
    }

    async fn begins_with_tls(&self) -> io::Result<bool> {
        Stream::begins_with_tls(self).await
    }

    async fn upgrade(self, by: &Acceptor, direct: bool) -> io::Result<Stream> {
        by.accept(self, direct).await
    }
}

/// Makes handshakes with servers.
#[derive(Clone)]
pub struct Connector {
    /// How much of it is wanted.
    pub mode: TlsMode,
    config: Option<Arc<ClientConfig>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Connector {
    /// Of servers that are not asked for TLS.
    pub const NONE: Connector = Connector { mode: TlsMode::Disable, config: None };

    fn new(rules: &TlsSide, table: &str) -> Result<Connector, TlsError> {
        let at = |key: &str| format!("{table}.{key}");
        if rules.mode == TlsMode::Disable {
            return Ok(Connector::NONE);
        }
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions(rules.min_version))
            .map_err(|error| fault(&at("min_version"), &error))?;
        let verifier = match rules.mode.verifies() {
            true => {
                let trusted = certificates(&at("ca"), rules.ca.as_ref())?;
                let roots = roots(&at("ca"), &trusted)?;
                verify::Verifier::of(provider, roots, trusted, rules.mode == TlsMode::VerifyFull)
            }
            false => verify::Verifier::none(provider),
        };
        // "Dangerous" is rustls's word for every rule but its own: libpq's modes are such.
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match (&rules.cert, &rules.key) {
            (None, None) => builder.with_no_client_auth(),
            (cert, key) => {
                let chain = certificates(&at("cert"), cert.as_ref())?;
                let key = private_key(&at("key"), key.as_ref())?;
                let config = builder.with_client_auth_cert(chain, key);
                config.map_err(|error| fault(&at("key"), &error))?
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Connector { mode: rules.mode, config: Some(Arc::new(config)) })
    }

    /// The client's part of a handshake with a server that has said that it is ready for one. Not cancel
    /// safe: dropped, the connection is gone. Bounded by the caller.
    ///
    /// # Errors
    /// Those of the socket, and `InvalidData` for a handshake that failed or a certificate that is not accepted.
    pub async fn connect(&self, tcp: TcpStream, host: &str) -> io::Result<Stream> {
        let config = self.config.clone().ok_or(io::ErrorKind::Unsupported)?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error: InvalidDnsNameError| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let stream = TlsConnector::from(config).connect(name, tcp).await?;
        Ok(Stream::Tls(Box::new(Encrypted::new(stream.into()))))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    const FROM_1_2: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
    const FROM_1_3: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
    match min {
        TlsVersion::V1_2 => FROM_1_2,
        TlsVersion::V1_3 => FROM_1_3,
    }
}

fn fault(key: &str, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError { key: key.to_owned(), reason: reason.to_string() }
}

fn certificates(key: &str, pem: Option<&Secret>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let missing = || fault(key, &"this mode needs one or more certificates in PEM (\"BEGIN CERTIFICATE\")");
    let pem = pem.ok_or_else(missing)?.expose();
    let read = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    // The error itself quotes lines, and somebody may have put a key here.
    let lines = "not valid PEM: each certificate has a line for its BEGIN, base64, and a line for its END";
    let read = read.map_err(|_| fault(key, &lines))?;
    if read.is_empty() { Err(missing()) } else { Ok(read) }
}

fn private_key(key: &str, pem: Option<&Secret>) -> Result<PrivateKeyDer<'static>, TlsError> {
    let wanted = "a private key in PEM, not encrypted (\"BEGIN PRIVATE KEY\")";
    let missing = || fault(key, &format_args!("a certificate needs {wanted}"));
    let pem = pem.ok_or_else(missing)?.expose();
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| fault(key, &format_args!("expected {wanted}")))
}

fn roots(key: &str, trusted: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate.clone()).map_err(|error| fault(key, &error))?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests;
