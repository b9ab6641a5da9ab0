//! The common name in a certificate's subject, by which PostgreSQL's method `cert` knows a user ("Certificate
//! Authentication").

use super::der::{self, OID, SEQUENCE, SET, element};
use tokio_rustls::rustls::pki_types::CertificateDer;

/// `id-at-commonName` (RFC 5280, A.1).
const COMMON_NAME: &[u8] = b"\x55\x04\x03";
/// Tags of what a name may be written in whose bytes are UTF-8 or ASCII: UTF8String, PrintableString, IA5String.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// Tag of `version [0]`, which certificates of version 1 leave out.
const VERSION: u8 = 0xa0;

/// The subject's common name; `None` if it has none or more than one, or one with a NUL, which could be read as a
/// shorter name (CVE-2009-4034).
pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<String> {
    let mut names = Vec::new();
    let mut parts = subject(certificate)?;
    // Name ::= SEQUENCE OF SET OF SEQUENCE { type OID, value }
    while !parts.is_empty() {
        let (mut set, rest) = element(parts, SET)?;
        parts = rest;
        while !set.is_empty() {
            let (pair, rest) = element(set, SEQUENCE)?;
            set = rest;
            let (kind, value) = element(pair, OID)?;
            if kind == COMMON_NAME {
                names.push(der::any(value)?);
            }
        }
    }
    let [(tag, name, _)] = names[..] else { return None };
    let text = std::str::from_utf8(name).ok().filter(|text| TEXTS.contains(&tag) && !text.contains('\0'))?;
    Some(text.to_owned())
}

/// `TBSCertificate ::= SEQUENCE { version [0], serialNumber, signature, issuer, validity, subject, … }`
fn subject(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if let Some((_, behind)) = element(rest, VERSION) {
        rest = behind;
    }
    for _ in ["serialNumber", "signature", "issuer", "validity"] {
        (_, _, rest) = der::any(rest)?;
    }
    Some(element(rest, SEQUENCE)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    fn named(names: &[(DnType, DnValue)]) -> Option<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        of(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    }

    #[test]
    fn the_common_name_is_found_among_others() {
        let text = |text: &str| DnValue::Utf8String(text.to_owned());
        let organisation = (DnType::OrganizationName, text("Example"));
        assert_eq!(named(&[organisation.clone(), (DnType::CommonName, text("äpp"))]).as_deref(), Some("äpp"));
        let printable = DnValue::PrintableString("app".try_into().unwrap());
        assert_eq!(named(&[(DnType::CommonName, printable), organisation.clone()]).as_deref(), Some("app"));
        assert_eq!(named(&[organisation]), None);
        assert_eq!(named(&[(DnType::CommonName, text("app\0.evil"))]), None);
        let wide = DnValue::BmpString("app".try_into().unwrap());
        assert_eq!(named(&[(DnType::CommonName, wide)]), None);
        let twice = DnType::CustomDnType(vec![2, 5, 4, 3]);
        assert_eq!(named(&[(DnType::CommonName, text("app")), (twice, text("root"))]), None);
    }

    proptest! {
        #[test]
        fn nonsense_has_none_and_does_no_harm(der in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = of(&CertificateDer::from(der));
        }
    }
}
