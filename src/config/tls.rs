//! `[tls.client]` and `[tls.server]`: encryption towards clients and towards servers, in libpq's words for it
//! (PostgreSQL, "SSL Support", `sslmode`).

use super::{Config, Secret};

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

/// `[database.NAME.tls]`: what of `[tls.server]` is otherwise for this database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseTls {
    /// `mode`
    pub mode: Option<TlsMode>,
    /// As in [`TlsSide`].
    pub cert: Option<Secret>,
    /// As in [`TlsSide`].
    pub key: Option<Secret>,
    /// As in [`TlsSide`].
    pub ca: Option<Secret>,
    /// `min_version`
    pub min_version: Option<TlsVersion>,
}

impl DatabaseTls {
    /// Towards the server of that database; `None` = as towards every other.
    fn over(&self, server: &TlsSide) -> Option<TlsSide> {
        if *self == DatabaseTls::default() {
            return None;
        }
        // A certificate goes with its key.
        let own = self.cert.is_some() || self.key.is_some();
        let (cert, key) = if own { (&self.cert, &self.key) } else { (&server.cert, &server.key) };
        Some(TlsSide {
            mode: self.mode.unwrap_or(server.mode),
            cert: cert.clone(),
            key: key.clone(),
            ca: self.ca.clone().or_else(|| server.ca.clone()),
            min_version: self.min_version.unwrap_or(server.min_version),
        })
    }
}

impl Config {
    /// Databases that have a `tls` of their own, by the table's name, and what it comes to.
    pub fn databases_with_tls(&self) -> impl Iterator<Item = (&str, TlsSide)> {
        let named = self.databases.iter().map(|(name, database)| (&**name, database));
        let any = self.any_database.iter().map(|any| ("*", any));
        named.chain(any).filter_map(|(name, database)| Some((name, database.tls.over(&self.tls.server)?)))
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
