//! The server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), as PostgreSQL speaks it: over TLS with channel
//! binding, the user name in the message ignored in favour of the start-up packet's.
//!
//! Written here because pgwire's compares are not constant-time and it knows no user that must
//! fail convincingly. The tests let an independent client log in against it.

use super::keys::{self, Key, ScramKeys};
use super::passport::Passport;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The mechanism that is always offered.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// The one that is bound to its connection: offered where that has something to be bound to.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The gs2 header of the one kind of channel binding that PostgreSQL knows.
pub const GS2_BOUND: &str = "p=tls-server-end-point,,";

/// What a login over TLS is bound to: the hash of the certificate that the server has shown (RFC 5929 §4). Who
/// sits in between has shown another one.
pub type EndPoint = Arc<[u8]>;

/// What a client's first message must say of channel binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// It was not offered.
    Unavailable,
    /// It was, and the client has chosen the other mechanism.
    Declined,
    /// The client has chosen it.
    To(EndPoint),
}

impl Binding {
    /// The `c=` value of the final message, if the first one may have this flag.
    fn of(&self, flag: &str) -> Result<Cow<'static, str>, ScramFault> {
        match (flag, self) {
            ("n", Binding::Unavailable | Binding::Declined) => Ok("biws".into()), // base64 of "n,,"
            ("y", Binding::Unavailable) => Ok("eSws".into()), // base64 of "y,,": it could, and believes rightly that we cannot
            ("y", Binding::Declined) => Err(ScramFault::Downgrade),
            ("p=tls-server-end-point", Binding::To(end_point)) => Ok(bound(end_point).into()),
            ("n" | "y", Binding::To(_)) => Err(ScramFault::ChannelBinding),
            _ if flag.starts_with("p=") => Err(ScramFault::ChannelBinding),
            _ => Err(ScramFault::Syntax),
        }
    }
}

/// The `c=` value of a login that is bound to this end point.
#[must_use]
pub fn bound(end_point: &EndPoint) -> String {
    STANDARD.encode([GS2_BOUND.as_bytes(), end_point].concat())
}

/// What a server stores of a password: enough to check a client, not enough to be one.
#[derive(Clone)]
pub struct ScramVerifier {
    /// Salt, as sent to the client.
    pub salt: Vec<u8>,
    /// PBKDF2 rounds, as sent to the client.
    pub iterations: NonZeroU32,
    /// `H(ClientKey)`
    pub stored: Zeroizing<Key>,
    /// `HMAC(SaltedPassword, "Server Key")`
    pub server: Zeroizing<Key>,
}

impl ScramVerifier {
    /// The verifier of a clear password. As dear as [`ScramKeys::derive`].
    #[must_use]
    pub fn of_password(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> ScramVerifier {
        let keys = ScramKeys::derive(password, salt, iterations);
        let stored = Zeroizing::new(keys.stored());
        ScramVerifier { salt: salt.to_vec(), iterations, stored, server: keys.server }
    }

    /// Whether both ask a client for the same derivation.
    #[must_use]
    pub fn costs_as(&self, other: &ScramVerifier) -> bool {
        self.salt == other.salt && self.iterations == other.iterations
    }

    /// Reads PostgreSQL's `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`
    /// (`pg_authid.rolpassword`; salt and keys in base64).
    #[must_use]
    pub fn parse(text: &str) -> Option<ScramVerifier> {
        let (cost, pair) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = cost.split_once(':')?;
        let (stored, server) = pair.split_once(':')?;
        Some(ScramVerifier {
            // PostgreSQL's own bound is that of a C int.
            iterations: iterations.parse().ok().filter(|n: &NonZeroU32| n.get() <= i32::MAX as u32)?,
            salt: STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?,
            stored: Zeroizing::new(STANDARD.decode(stored).ok()?.try_into().ok()?),
            server: Zeroizing::new(STANDARD.decode(server).ok()?.try_into().ok()?),
        })
    }
}

/// Why a SCRAM message is no SCRAM message. Says nothing about the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramFault {
    /// Not UTF-8, or an attribute is missing or out of order.
    #[error("malformed SCRAM message")]
    Syntax,
    /// Channel binding that was not offered, of another kind, to another connection, or none where the client
    /// has chosen it.
    #[error("channel binding does not match")]
    ChannelBinding,
    /// The client could have had channel binding and was told otherwise, by somebody in between.
    #[error("the offer of channel binding did not reach the client")]
    Downgrade,
    /// The client wants to act as somebody else (`a=`).
    #[error("an authorization identity is not supported")]
    AuthorizationId,
    /// A mandatory extension (`m=`).
    #[error("a mandatory SCRAM extension is not supported")]
    Extension,
    /// The final message is not of this exchange.
    #[error("nonce does not match")]
    Nonce,
}

/// A server that has sent its first message.
pub struct ScramServer {
    verifier: ScramVerifier,
    /// Of the same salt and rounds.
    other: Option<ScramVerifier>,
    /// The `c=` value that repeats the client's gs2 header.
    binding: Cow<'static, str>,
    nonce: String,
    /// `client-first-message-bare,server-first-message`
    transcript: String,
}

impl ScramServer {
    /// Takes the client's first message; returns the server's.
    ///
    /// # Errors
    /// [`ScramFault`] for anything RFC 5802 §7 does not allow here.
    pub fn first(
        message: &[u8],
        verifier: ScramVerifier,
        binding: &Binding,
    ) -> Result<(ScramServer, String), ScramFault> {
        let text = std::str::from_utf8(message).map_err(|_| ScramFault::Syntax)?;
        let (flag, rest) = text.split_once(',').ok_or(ScramFault::Syntax)?;
        let (authorization, bare) = rest.split_once(',').ok_or(ScramFault::Syntax)?;
        let binding = binding.of(flag)?;
        if !authorization.is_empty() {
            return Err(ScramFault::AuthorizationId);
        }
        let mut attributes = bare.split(',');
        let name = attributes.next().unwrap_or_default();
        if name.starts_with("m=") {
            return Err(ScramFault::Extension);
        }
        let nonce = attributes.next().and_then(|attribute| attribute.strip_prefix("r="));
        let nonce = nonce.filter(|nonce| is_printable(nonce)).ok_or(ScramFault::Syntax)?;
        if !name.starts_with("n=") || !attributes.all(is_attribute) {
            return Err(ScramFault::Syntax);
        }
        let nonce = format!("{nonce}{}", STANDARD.encode(keys::random::<18>()));
        let reply = format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let transcript = format!("{bare},{reply}");
        Ok((ScramServer { verifier, other: None, binding, nonce, transcript }, reply))
    }

    /// A proof of this one's password will do as well, if it has the same salt and rounds.
    #[must_use]
    pub fn or(self, other: Option<ScramVerifier>) -> ScramServer {
        let other = other.filter(|other| other.costs_as(&self.verifier));
        ScramServer { other, ..self }
    }

    /// Takes the client's final message; returns the server's, the keys that the client has shown to have, and
    /// whether they are of the other verifier, or `None` for a wrong proof. The same work is done either way.
    ///
    /// # Errors
    /// [`ScramFault`] for a message that is not of this exchange.
    pub fn finish(self, message: &[u8]) -> Result<Option<(String, Passport, bool)>, ScramFault> {
        let text = std::str::from_utf8(message).map_err(|_| ScramFault::Syntax)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramFault::Syntax)?;
        let proof: Key =
            STANDARD.decode(proof).ok().and_then(|p| p.try_into().ok()).ok_or(ScramFault::Syntax)?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|attribute| attribute.strip_prefix("c="));
        if binding.ok_or(ScramFault::Syntax)? != self.binding {
            return Err(ScramFault::ChannelBinding);
        }
        let nonce = attributes.next().and_then(|attribute| attribute.strip_prefix("r="));
        if !bool::from(nonce.ok_or(ScramFault::Syntax)?.as_bytes().ct_eq(self.nonce.as_bytes())) {
            return Err(ScramFault::Nonce);
        }
        if !attributes.all(is_attribute) {
            return Err(ScramFault::Syntax);
        }

        let transcript = format!("{},{without_proof}", self.transcript);
        let first = judge(self.verifier, &proof, &transcript);
        let other = self.other.and_then(|other| judge(other, &proof, &transcript));
        let first = first.map(|(last, passport)| (last, passport, false));
        Ok(first.or(other.map(|(last, passport)| (last, passport, true))))
    }
}

/// The server's final message and the client's keys, if the proof is of this verifier's password.
fn judge(verifier: ScramVerifier, proof: &Key, transcript: &str) -> Option<(String, Passport)> {
    let mask = keys::hmac(&verifier.stored[..], transcript.as_bytes());
    let client = Zeroizing::new(xor(proof, &mask));
    let right: bool = keys::sha256(&client[..]).ct_eq(&*verifier.stored).into();
    let signature = keys::hmac(&verifier.server[..], transcript.as_bytes());
    let ScramVerifier { salt, iterations, server, .. } = verifier;
    let keys = ScramKeys { client, server };
    right.then(|| (format!("v={}", STANDARD.encode(signature)), Passport::Scram { salt, iterations, keys }))
}

/// `a XOR b`: hides a client key behind a signature, or bares it.
#[must_use]
pub fn xor(a: &Key, b: &Key) -> Key {
    std::array::from_fn(|i| a[i] ^ b[i])
}

/// RFC 5802 `printable`: what a nonce is made of.
#[must_use]
pub fn is_printable(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, 0x21..=0x7e) && byte != b',')
}

/// An optional extension, to be ignored: a letter, `=`, and whatever.
fn is_attribute(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b'='
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use proptest::prelude::*;

    fn verifier(password: &str) -> ScramVerifier {
        // Few rounds: the tests are about messages.
        ScramVerifier::of_password(password.as_bytes(), b"0123456789abcdef", NonZeroU32::new(8).unwrap())
    }

    /// The whole exchange with an independent client; what the server said last.
    fn login(password: &str, binding: ChannelBinding) -> Option<String> {
        try_login(password, binding, &Binding::Unavailable).unwrap()
    }

    fn try_login(
        password: &str,
        wants: ChannelBinding,
        binding: &Binding,
    ) -> Result<Option<String>, ScramFault> {
        let mut client = ScramSha256::new(password.as_bytes(), wants);
        let (server, reply) = ScramServer::first(client.message(), verifier("right"), binding)?;
        client.update(reply.as_bytes()).unwrap();
        let last = server.finish(client.message())?.map(|(last, ..)| last);
        if let Some(last) = &last {
            client.finish(last.as_bytes()).expect("the client accepts the server's signature");
        }
        Ok(last)
    }

    #[test]
    fn a_login_is_bound_to_the_certificate_that_the_client_has_seen() {
        let to = |end_point: &[u8]| Binding::To(end_point.into());
        let wants = |end_point: &[u8]| ChannelBinding::tls_server_end_point(end_point.to_vec());
        assert!(try_login("right", wants(b"hash"), &to(b"hash")).unwrap().is_some());
        assert_eq!(try_login("wrong", wants(b"hash"), &to(b"hash")), Ok(None));
        // The certificate of somebody in between.
        assert_eq!(try_login("right", wants(b"other"), &to(b"hash")), Err(ScramFault::ChannelBinding));
        assert_eq!(try_login("right", wants(b"hash"), &Binding::Declined), Err(ScramFault::ChannelBinding));
        // The mechanism is chosen, its binding left out.
        let without = || ChannelBinding::unsupported();
        assert_eq!(try_login("right", without(), &to(b"hash")), Err(ScramFault::ChannelBinding));
        assert!(try_login("right", without(), &Binding::Declined).unwrap().is_some());
        // The client could, and was told that the server cannot.
        let told = ChannelBinding::unrequested();
        assert_eq!(try_login("right", told, &Binding::Declined), Err(ScramFault::Downgrade));
    }

    #[test]
    fn an_independent_client_logs_in_with_the_right_password_only() {
        assert!(login("right", ChannelBinding::unsupported()).is_some());
        assert!(login("right", ChannelBinding::unrequested()).is_some());
        assert!(login("wrong", ChannelBinding::unsupported()).is_none());
    }

    #[test]
    fn a_right_proof_bares_the_keys_of_the_password() {
        let mut client = ScramSha256::new(b"right", ChannelBinding::unsupported());
        let (server, reply) =
            ScramServer::first(client.message(), verifier("right"), &Binding::Unavailable).unwrap();
        client.update(reply.as_bytes()).unwrap();
        let Some((_, Passport::Scram { salt, iterations, keys }, false)) =
            server.finish(client.message()).unwrap()
        else {
            panic!("a right password")
        };
        let own = ScramKeys::derive(b"right", &salt, iterations);
        assert_eq!((*keys.client, *keys.server), (*own.client, *own.server));
    }

    #[test]
    fn either_of_two_passwords_is_right_and_its_own_keys_are_bared() {
        let login = |password: &str, other: ScramVerifier| {
            let mut client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
            let first = ScramServer::first(client.message(), verifier("right"), &Binding::Unavailable);
            let (server, reply) = first.unwrap();
            client.update(reply.as_bytes()).unwrap();
            let (last, passport, is_other) = server.or(Some(other)).finish(client.message()).unwrap()?;
            client.finish(last.as_bytes()).expect("the client accepts the server's signature");
            let Passport::Scram { salt, iterations, keys } = passport else { panic!("SCRAM") };
            assert_eq!(*keys.client, *ScramKeys::derive(password.as_bytes(), &salt, iterations).client);
            Some(is_other)
        };
        assert_eq!(login("right", verifier("old")), Some(false));
        assert_eq!(login("right", verifier("right")), Some(false));
        assert_eq!(login("old", verifier("old")), Some(true));
        assert_eq!(login("wrong", verifier("old")), None);
        // The client's proof is of another salt: it could not be right, and must not be tried.
        let salted = ScramVerifier::of_password(b"old", b"another", NonZeroU32::new(8).unwrap());
        assert_eq!(login("old", salted), None);
    }

    #[test]
    fn first_messages_that_rfc_5802_does_not_allow_are_refused() {
        let first = |message: &str| {
            ScramServer::first(message.as_bytes(), verifier("x"), &Binding::Unavailable).err()
        };
        assert_eq!(first("n,,n=,r=abc"), None);
        assert_eq!(first("n,,n=bob,r=abc,x=ignored"), None);
        assert_eq!(first("p=tls-server-end-point,,n=,r=abc"), Some(ScramFault::ChannelBinding));
        assert_eq!(first("n,a=root,n=,r=abc"), Some(ScramFault::AuthorizationId));
        assert_eq!(first("n,,m=ext,n=,r=abc"), Some(ScramFault::Extension));
        for bad in ["", "n", "n,,", "n,,r=abc", "n,,n=,r=", "n,,n=,r=a\u{e9}", "z,,n=,r=abc", "n,,n=,r=a,5=x"]
        {
            assert_eq!(first(bad), Some(ScramFault::Syntax), "{bad}");
        }
    }

    #[test]
    fn final_messages_of_another_exchange_are_refused() {
        let finish = |edit: fn(&str) -> String| {
            let mut client = ScramSha256::new(b"right", ChannelBinding::unsupported());
            let (server, reply) =
                ScramServer::first(client.message(), verifier("right"), &Binding::Unavailable).unwrap();
            client.update(reply.as_bytes()).unwrap();
            let text = std::str::from_utf8(client.message()).unwrap().to_owned();
            server.finish(edit(&text).as_bytes()).map(|done| done.map(|(last, ..)| last))
        };
        assert!(finish(str::to_owned).unwrap().is_some());
        assert_eq!(finish(|m| m.replace("c=biws", "c=eSws")), Err(ScramFault::ChannelBinding));
        assert_eq!(finish(|m| m.replace(",r=", ",r=x")), Err(ScramFault::Nonce));
        assert_eq!(finish(|m| m.replace(",p=", ",p=AAAA")), Err(ScramFault::Syntax));
        assert_eq!(finish(|m| m.replace(",p=", "")), Err(ScramFault::Syntax));
        // An inserted attribute is legal in form but was not signed.
        assert_eq!(finish(|m| m.replace(",p=", ",x=1,p=")), Ok(None));
    }

    #[test]
    fn verifiers_are_read_as_postgresql_writes_them() {
        let keys =
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        let read = ScramVerifier::parse(&format!("SCRAM-SHA-256$4096:c2FsdA==${keys}")).unwrap();
        assert_eq!((read.iterations.get(), &read.salt[..]), (4096, &b"salt"[..]));
        assert_eq!((*read.stored, *read.server), ([0; 32], [1; 32]));
        for cost in ["0:c2FsdA==", "-1:c2FsdA==", "2147483648:c2FsdA==", "4096:", "4096:!", "4096"] {
            assert!(ScramVerifier::parse(&format!("SCRAM-SHA-256${cost}${keys}")).is_none(), "{cost}");
        }
        assert!(ScramVerifier::parse("SCRAM-SHA-256$4096:c2FsdA==$AAAA:AAAA").is_none());
    }

    proptest! {
        #[test]
        fn hostile_messages_never_panic(first in ".{0,64}", last in "[nypcrmav=,A-Za-z+/\u{e9}]{0,96}") {
            for binding in [Binding::Unavailable, Binding::Declined, Binding::To(Arc::new([1; 32]))] {
                let _ = ScramServer::first(first.as_bytes(), verifier("x"), &binding);
            }
            let first = ScramServer::first(b"n,,n=,r=abc", verifier("x"), &Binding::Unavailable);
            let (server, _) = first.unwrap();
            prop_assert!(!matches!(server.finish(last.as_bytes()), Ok(Some(_))));
        }
    }
}
