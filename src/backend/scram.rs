//! The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677) towards a server that may be hostile.
//!
//! Written here because pgwire's client accepts a nonce that does not extend ours, panics on some
//! iteration counts and needs no server signature, and because the derivation must be done
//! elsewhere and can be reused: it is the caller who turns password, salt and iterations into
//! [`ScramKeys`], between [`Client::challenge`] and [`Challenge::answer`].

use crate::auth::keys::{self, Key, ScramKeys};
use crate::auth::scram::{EndPoint, GS2_BOUND, MECHANISM, MECHANISM_PLUS, bound, is_printable, xor};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::num::NonZeroU32;
use subtle::ConstantTimeEq;

/// Most rounds a server may ask of us: 24 times PostgreSQL's default, about 20 ms. Other drivers
/// draw the same line; beyond it a server could make us compute for hours.
const MAX_ITERATIONS: u32 = 100_000;
/// What a client says of channel binding (RFC 5802 §6).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Binds {
    /// It cannot.
    Cannot,
    /// It could, but the server has not offered it: a server that has will see that somebody took its offer
    /// away.
    Could,
    /// It does.
    To(EndPoint),
}

impl Binds {
    fn gs2(&self) -> &'static str {
        match self {
            Binds::Cannot => "n,,",
            Binds::Could => "y,,",
            Binds::To(_) => GS2_BOUND,
        }
    }
}

/// What is wrong with a server's SCRAM message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramFault {
    /// Not UTF-8, or an attribute is missing, out of order or unreadable.
    #[error("malformed SCRAM message")]
    Syntax,
    /// RFC 5802 §5.1: the server's nonce must extend ours, or it may be a replay.
    #[error("the server's nonce does not extend ours")]
    Nonce,
    /// None, or more than we are willing to compute.
    #[error("the server asks for an unreasonable number of iterations")]
    Iterations,
    /// The server does not know the password either.
    #[error("the server's signature is wrong")]
    Signature,
    /// The server says why it refuses (`e=`).
    #[error("the server refuses the proof")]
    Refused,
}

/// A client that has not been challenged.
pub struct Client {
    nonce: String,
    binds: Binds,
}

/// What the server wants to have computed.
pub struct Challenge {
    /// Salt of the role's password.
    pub salt: Vec<u8>,
    /// Rounds, at most 100,000.
    pub iterations: NonZeroU32,
    /// `client-first-message-bare,server-first-message`
    transcript: String,
    nonce: String,
    binds: Binds,
}

/// A client that waits for the server's proof.
pub struct Proven {
    signature: Key,
}

impl Client {
    /// A client with a fresh nonce, on a connection of this end point ([`Stream::end_point`]); `offers_plus`:
    /// the server has offered channel binding.
    ///
    /// [`Stream::end_point`]: crate::net::stream::Stream::end_point
    #[must_use]
    pub fn new(end_point: Option<EndPoint>, offers_plus: bool) -> Client {
        let binds = match end_point {
            None => Binds::Cannot,
            Some(_) if !offers_plus => Binds::Could,
            Some(end_point) => Binds::To(end_point),
        };
        Client { nonce: STANDARD.encode(keys::random::<18>()), binds }
    }

    /// The mechanism that it speaks.
    #[must_use]
    pub fn mechanism(&self) -> &'static str {
        if matches!(self.binds, Binds::To(_)) { MECHANISM_PLUS } else { MECHANISM }
    }

    /// The first message. The user name is empty as in libpq: the start-up packet's counts.
    #[must_use]
    pub fn first(&self) -> String {
        format!("{}{}", self.binds.gs2(), self.first_bare())
    }

    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// Takes the server's first message.
    ///
    /// # Errors
    /// [`ScramFault`]; in particular `Nonce` and `Iterations`.
    pub fn challenge(self, message: &[u8]) -> Result<Challenge, ScramFault> {
        let text = std::str::from_utf8(message).map_err(|_| ScramFault::Syntax)?;
        let mut attributes = text.split(',');
        // A mandatory extension (`m=`) would stand first, and is refused by this order.
        let mut next = |name: &str| {
            attributes.next().and_then(|attribute| attribute.strip_prefix(name)).ok_or(ScramFault::Syntax)
        };
        let (nonce, salt, iterations) = (next("r=")?, next("s=")?, next("i=")?);
        let added = nonce.strip_prefix(self.nonce.as_str()).ok_or(ScramFault::Nonce)?;
        if !is_printable(added) {
            return Err(ScramFault::Nonce);
        }
        let salt = STANDARD.decode(salt).map_err(|_| ScramFault::Syntax)?;
        if !iterations.bytes().all(|byte| byte.is_ascii_digit()) || iterations.is_empty() {
            return Err(ScramFault::Syntax);
        }
        let iterations = iterations.parse().ok().filter(|n: &NonZeroU32| n.get() <= MAX_ITERATIONS);
        Ok(Challenge {
            salt,
            iterations: iterations.ok_or(ScramFault::Iterations)?,
            transcript: format!("{},{text}", self.first_bare()),
            nonce: nonce.to_owned(),
            binds: self.binds,
        })
    }
}

impl Challenge {
    /// The final message, with the proof that we hold `keys`.
    #[must_use]
    pub fn answer(self, keys: &ScramKeys) -> (String, Proven) {
        let binding = match &self.binds {
            Binds::To(end_point) => bound(end_point),
            other => STANDARD.encode(other.gs2()),
        };
        let without_proof = format!("c={binding},r={}", self.nonce);
        let transcript = format!("{},{without_proof}", self.transcript);
        let mask = keys::hmac(&keys.stored(), transcript.as_bytes());
        let proof = STANDARD.encode(xor(&keys.client, &mask));
        let signature = keys::hmac(&keys.server[..], transcript.as_bytes());
        (format!("{without_proof},p={proof}"), Proven { signature })
    }
}

impl Proven {
    /// Takes the server's final message: its proof that it knows our verifier.
    ///
    /// # Errors
    /// [`ScramFault`]; anything but `Ok` must end the connection.
    pub fn verify(self, message: &[u8]) -> Result<(), ScramFault> {
        let text = std::str::from_utf8(message).map_err(|_| ScramFault::Syntax)?;
        let first = text.split(',').next().unwrap_or_default();
        if first.starts_with("e=") {
            return Err(ScramFault::Refused);
        }
        let signature = first.strip_prefix("v=").and_then(|value| STANDARD.decode(value).ok());
        let right: bool = signature.ok_or(ScramFault::Syntax)?.ct_eq(&self.signature[..]).into();
        if right { Ok(()) } else { Err(ScramFault::Signature) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::{Binding, ScramFault as ScramServerFault, ScramServer, ScramVerifier};
    use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth, gen_salted_password};

    use std::sync::Arc;

    const SALT: &[u8] = b"0123456789abcdef";

    fn rounds(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    /// Logs in at pgwire's server, which knows the password `pencil`.
    fn login(password: &str) -> Result<(), &'static str> {
        let salted = gen_salted_password("pencil", SALT, 8);
        let secret = ScramSecret::verifier_from_salted_password(SALT.to_vec(), salted, 8);
        let client = Client::new(None, false);
        let (reply, server) = ScramServerAuth::new()
            .on_client_first_message_with_secret(client.first().as_bytes(), secret)
            .unwrap();
        let challenge = client.challenge(reply.as_bytes()).unwrap();
        assert_eq!((&challenge.salt[..], challenge.iterations), (SALT, rounds(8)));
        let keys = ScramKeys::derive(password.as_bytes(), &challenge.salt, challenge.iterations);
        let (message, proven) = challenge.answer(&keys);
        let last = server.on_client_final_message(message.as_bytes()).map_err(|_| "refused")?;
        proven.verify(last.as_bytes()).map_err(|_| "server not genuine")
    }

    #[test]
    fn an_independent_server_takes_the_right_password_only() {
        assert_eq!(login("pencil"), Ok(()));
        assert_eq!(login("pencils"), Err("refused"));
    }

    /// Logs in at our own server, over a connection of this end point.
    fn login_bound(end_point: &[u8], binding: &Binding) -> Result<Option<()>, ScramServerFault> {
        let client = Client::new(Some(end_point.into()), *binding != Binding::Unavailable);
        let verifier = ScramVerifier::of_password(b"pencil", SALT, rounds(8));
        let (server, reply) = ScramServer::first(client.first().as_bytes(), verifier, binding)?;
        let challenge = client.challenge(reply.as_bytes()).unwrap();
        let keys = ScramKeys::derive(b"pencil", &challenge.salt, challenge.iterations);
        let (message, proven) = challenge.answer(&keys);
        let last = server.finish(message.as_bytes())?;
        Ok(last.map(|(last, ..)| proven.verify(last.as_bytes()).unwrap()))
    }

    #[test]
    fn a_proof_is_bound_where_the_server_offers_it() {
        assert_eq!(login_bound(b"hash", &Binding::To(Arc::from(&b"hash"[..]))), Ok(Some(())));
        let other = Binding::To(Arc::from(&b"other"[..]));
        assert_eq!(login_bound(b"hash", &other), Err(ScramServerFault::ChannelBinding));
        assert_eq!(login_bound(b"hash", &Binding::Unavailable), Ok(Some(())));
        assert_eq!(Client::new(Some(Arc::from(&b"hash"[..])), true).mechanism(), "SCRAM-SHA-256-PLUS");
        assert_eq!(Client::new(Some(Arc::from(&b"hash"[..])), false).mechanism(), "SCRAM-SHA-256");
        assert_eq!(Client::new(None, true).mechanism(), "SCRAM-SHA-256");
    }

    #[test]
    fn hostile_challenges_are_refused() {
        let refused = |message: fn(&str) -> String| {
            let client = Client::new(None, false);
            let message = message(&client.nonce);
            client.challenge(message.as_bytes()).err()
        };
        let fine = |nonce: &str| format!("r={nonce}x,s=c2FsdA==,i=4096");
        assert_eq!(refused(fine), None);
        assert_eq!(refused(|_| "r=mine,s=c2FsdA==,i=4096".into()), Some(ScramFault::Nonce));
        assert_eq!(refused(|n| format!("r={n},s=c2FsdA==,i=4096")), Some(ScramFault::Nonce), "adds nothing");
        for i in ["0", "100001", "4294967296", "99999999999999999999"] {
            let client = Client::new(None, false);
            let message = format!("r={}x,s=c2FsdA==,i={i}", client.nonce);
            assert_eq!(client.challenge(message.as_bytes()).err(), Some(ScramFault::Iterations), "{i}");
        }
        for rest in ["", ",s=!,i=1", ",s=c2FsdA==", ",s=c2FsdA==,i=", ",s=c2FsdA==,i=-1", ",s=c2FsdA==,i=+1"]
        {
            let client = Client::new(None, false);
            let message = format!("r={}x{rest}", client.nonce);
            assert_eq!(client.challenge(message.as_bytes()).err(), Some(ScramFault::Syntax), "{rest}");
        }
        assert_eq!(refused(|n| format!("m=x,{n}")), Some(ScramFault::Syntax));
    }

    #[test]
    fn a_server_that_cannot_sign_is_not_believed() {
        let verify = |message: &str| {
            let client = Client::new(None, false);
            let challenge = format!("r={}x,s=c2FsdA==,i=1", client.nonce);
            let keys = ScramKeys::derive(b"pencil", b"salt", rounds(1));
            let (_, proven) = client.challenge(challenge.as_bytes()).unwrap().answer(&keys);
            proven.verify(message.as_bytes())
        };
        assert_eq!(verify(&format!("v={}", STANDARD.encode([0; 32]))), Err(ScramFault::Signature));
        assert_eq!(verify("v="), Err(ScramFault::Signature));
        assert_eq!(verify("v=!"), Err(ScramFault::Syntax));
        assert_eq!(verify(""), Err(ScramFault::Syntax));
        assert_eq!(verify("e=invalid-proof"), Err(ScramFault::Refused));
    }
}
