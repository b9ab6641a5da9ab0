//! `[tls.client]` and `[tls.server]`: encryption towards clients and towards servers, in libpq's words for it
//! (PostgreSQL, "SSL Support", `sslmode`).

use super::Secret;

/// `sslmode`, as of whoever listens (clients) or connects (servers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// Clients: TLS for who asks for it. Servers: only if the server lets nobody in without.
    Allow,
    /// Clients: as allow. Servers: wherever the server has it.
    Prefer,
    /// Nothing else, whoever the other side is.
    Require,
    /// The other side shows a certificate of an authority in `ca`.
    VerifyCa,
    /// A server's is also for the host that was asked for.
    VerifyFull,
}

impl TlsMode {
    /// Whether the other side must show a certificate.
    #[must_use]
    pub fn verifies(self) -> bool {
        self >= TlsMode::VerifyCa
    }
}

/// The oldest protocol that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

/// One side. Certificates and keys are PEM texts, mostly read from the files that `cert_file`, `key_file` and
/// `ca_file` name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSide {
    /// `mode`
    pub mode: TlsMode,
    /// Bursar's own certificate and those between it and its authority, in this order.
    pub cert: Option<Secret>,
    /// The certificate's private key.
    pub key: Option<Secret>,
    /// Authorities whose certificates the other side may show.
    pub ca: Option<Secret>,
    /// `min_version`
    pub min_version: TlsVersion,
}

impl Default for TlsSide {
    fn default() -> Self {
        TlsSide { mode: TlsMode::Disable, cert: None, key: None, ca: None, min_version: TlsVersion::V1_2 }
    }
}

/// `[tls]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Towards clients.
    pub client: TlsSide,
    /// Towards servers.
    pub server: TlsSide,
}
