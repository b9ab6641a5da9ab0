//! `tls-server-end-point` (RFC 5929 §4): the hash of a server's certificate, by the hash function of its own
//! signature, or SHA-256 where that is MD5 or SHA-1.

use super::der::{OID, SEQUENCE, element};
use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use std::sync::Arc;
use tokio_rustls::rustls::pki_types::CertificateDer;

/// Signature algorithms by the value of their identifiers in DER (RFC 8017 A.2, RFC 5758 3.2, RFC 3279 2.2).
const SIGNED: [(&[u8], &Algorithm); 9] = [
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", &SHA256), // md5WithRSAEncryption
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", &SHA256), // sha1WithRSAEncryption
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", &SHA256), // sha256WithRSAEncryption
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", &SHA384), // sha384WithRSAEncryption
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", &SHA512), // sha512WithRSAEncryption
    (b"\x2a\x86\x48\xce\x3d\x04\x01", &SHA256),         // ecdsa-with-SHA1
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x02", &SHA256),     // ecdsa-with-SHA256
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x03", &SHA384),     // ecdsa-with-SHA384
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x04", &SHA512),     // ecdsa-with-SHA512
];

/// Of this certificate; `None` where it is not defined (Ed25519), or the hash function is in its parameters
/// (RSASSA-PSS), which are not read.
pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Arc<[u8]>> {
    let signed_by = signature_algorithm(certificate)?;
    let (_, algorithm) = SIGNED.into_iter().find(|(known, _)| *known == signed_by)?;
    Some(digest(algorithm, certificate).as_ref().into())
}

/// `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { algorithm OID, … }, … }`
fn signature_algorithm(der: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (_, rest) = element(certificate, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    Some(element(algorithm, OID)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    #[test]
    fn each_certificate_is_hashed_as_it_was_signed() {
        for (algorithm, hash) in [
            (&PKCS_ECDSA_P256_SHA256, Some(&SHA256)),
            (&PKCS_ECDSA_P384_SHA384, Some(&SHA384)),
            (&PKCS_ED25519, None),
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let certificate = CertificateParams::default().self_signed(&key).unwrap();
            let expected = hash.map(|hash| digest(hash, certificate.der()).as_ref().to_vec());
            assert_eq!(of(certificate.der()).as_deref(), expected.as_deref());
        }
    }

    proptest! {
        #[test]
        fn nonsense_has_none_and_does_no_harm(der in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = of(&CertificateDer::from(der));
        }
    }
}
