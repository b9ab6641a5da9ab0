//! Which certificates of servers are accepted: libpq's modes, which rustls does not know.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;
use tokio_rustls::rustls;

/// Accepts what a mode accepts.
#[derive(Debug)]
pub(super) struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: whoever can prove to hold the key of any certificate.
    trust: Option<Trust>,
}

#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// The same certificates: a server may show one of them itself, as OpenSSL lets it.
    listed: Vec<CertificateDer<'static>>,
    /// It must be the host's.
    named: bool,
}

impl Verifier {
    /// `require` and below.
    pub(super) fn none(provider: Arc<CryptoProvider>) -> Verifier {
        Verifier { provider, trust: None }
    }

    /// `verify-ca`, or with `named` `verify-full`.
    pub(super) fn of(
        provider: Arc<CryptoProvider>,
        roots: RootCertStore,
        listed: Vec<CertificateDer<'static>>,
        named: bool,
    ) -> Verifier {
        Verifier { provider, trust: Some(Trust { roots, listed, named }) }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trust) = &self.trust {
            let parsed = ParsedCertificate::try_from(certificate)?;
            if !trust.listed.contains(certificate) {
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&parsed, &trust.roots, between, now, algorithms)?;
            }
            if trust.named {
                verify_server_name(&parsed, server)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
