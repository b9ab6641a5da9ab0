//! The server's side of a login, from the first Authentication message to AuthenticationOk.
//!
//! ```text
//!                 first()                    step()
//! Unasked ──trust──────────► Over (Done)
//!         ──plain──────────► Password ─────────────────► Over
//!         ──md5────────────► Md5 ──────────────────────► Over
//!         ──scram-sha-256──► Mechanism ──► Proof ──────► Over
//!                                   └► FirstMessage ┘   (no initial response sent with the name)
//! ```
//!
//! It knows frames, not sockets: the caller reads a `p` message of at most [`Exchange::limit`]
//! bytes, passes its body, and sends what was appended. A login fails only at its last step, in the
//! same way for a wrong password, a user who does not exist, and a secret that does not fit the
//! method; the caller logs the [`Failure`] and tells the client nothing of it.

use super::keys::{self, ITERATIONS, ScramKeys};
use super::passport::Passport;
use super::scram::{Binding, EndPoint, MECHANISM, MECHANISM_PLUS, ScramFault, ScramServer, ScramVerifier};
use super::verifier::{MockKey, SecretKind, Verifier};
use crate::config::AuthMethod;
use crate::wire::walk::cstr;
use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::startup::Authentication;
use std::fmt;
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

/// Largest length field of a PasswordMessage we read, in bytes.
const PASSWORD_LIMIT: usize = 10_000;
/// Largest length field of a SASL message we read: PostgreSQL's `PG_MAX_AUTH_TOKEN_LENGTH`.
const SASL_LIMIT: usize = 65_535;

/// One login.
pub struct Exchange {
    user: Box<str>,
    mock: MockKey,
    /// What decides; `Err` is why it can only fail, found out before the first question.
    secret: Result<Verifier, Failure>,
    /// What will do as well.
    previous: Option<Verifier>,
    /// Which of the two it was.
    matched: Matched,
    /// What the client may bind its proof to.
    end_point: Option<EndPoint>,
    /// What the client has shown, by which a server lets in who shows it.
    passport: Option<Passport>,
    state: State,
    /// The question whose answer was wrong, if it can be checked again.
    answered: Option<State>,
}

enum State {
    Unasked(AuthMethod),
    Password,
    Md5 { salt: [u8; 4] },
    Mechanism,
    FirstMessage(Binding),
    Proof(Box<ScramServer>),
    Over,
}

/// Which of a user's passwords a client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matched {
    /// `password`
    Current,
    /// `previous_password`
    Previous,
}

impl fmt::Display for Matched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Matched::Current => "current",
            Matched::Previous => "previous",
        })
    }
}

/// What follows a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send what was appended and read one more `p` message.
    More,
    /// AuthenticationOk has been appended: the user is who he says.
    Done,
    /// Nothing was appended; close with an error.
    Failed(Failure),
}

/// Why a login failed, for the log. The client is told 28P01 and nothing else, or 08P01 if
/// [`Failure::is_protocol`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The password, or the proof of it, is wrong.
    #[error("wrong password")]
    WrongPassword,
    /// No `[user.*]` of that name, or one without a password.
    #[error("no such user, or a user without a password")]
    NoSecret,
    /// The configuration, or the server, says that the password is not good any more.
    #[error("the password has expired")]
    Expired,
    /// The configured secret cannot answer the configured method.
    #[error("{method} authentication cannot use {secret}")]
    Unfit {
        /// The method.
        method: &'static str,
        /// What the user has.
        secret: SecretKind,
    },
    /// Not a password message: too short, too long, or with something after its NUL.
    #[error("malformed password message")]
    Malformed,
    /// A mechanism that was not offered.
    #[error("the client chose a SASL mechanism that was not offered")]
    Mechanism,
    /// A SCRAM message that is none.
    #[error(transparent)]
    Scram(#[from] ScramFault),
    /// Not a method of messages: who uses it decides before there are any.
    #[error("not proved by messages")]
    Elsewhere,
    /// The process is shutting down.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// Whether the client broke the protocol (08P01), rather than failed to prove itself (28P01).
    #[must_use]
    pub fn is_protocol(self) -> bool {
        matches!(self, Failure::Malformed | Failure::Mechanism | Failure::Scram(_))
    }
}

/// Starts a login of `user` by `method` against `secret`; `None` for a user who does not exist.
#[must_use]
pub fn begin(method: AuthMethod, user: &str, secret: Option<&Verifier>, mock: &MockKey) -> Exchange {
    let secret = secret.ok_or(Failure::NoSecret).and_then(|verifier| fit(method, verifier));
    Exchange {
        user: user.into(),
        mock: mock.clone(),
        secret,
        previous: None,
        matched: Matched::Current,
        end_point: None,
        passport: None,
        state: State::Unasked(method),
        answered: None,
    }
}

/// What can answer the method.
fn fit(method: AuthMethod, verifier: &Verifier) -> Result<Verifier, Failure> {
    match (method, verifier.kind()) {
        (AuthMethod::Md5, secret @ SecretKind::Scram) => Err(Failure::Unfit { method: "md5", secret }),
        (AuthMethod::ScramSha256, secret @ SecretKind::Md5) => {
            Err(Failure::Unfit { method: "scram-sha-256", secret })
        }
        _ => Ok(verifier.clone()),
    }
}

impl Exchange {
    /// This one will do as well, if it can answer the method and the login can succeed at all.
    #[must_use]
    pub fn or(mut self, previous: Option<&Verifier>) -> Exchange {
        let State::Unasked(method) = self.state else { return self };
        let previous = previous.and_then(|previous| fit(method, previous).ok());
        match self.secret {
            Ok(_) => self.previous = previous,
            // Rules may ask for a method that only the other one can answer.
            Err(Failure::Unfit { .. }) if previous.is_some() => {
                self.secret = previous.ok_or(Failure::NoSecret);
                self.matched = Matched::Previous;
            }
            Err(_) => {}
        }
        self
    }

    /// It can only fail, for this.
    pub(super) fn failing(self, failure: Failure) -> Exchange {
        Exchange { secret: Err(failure), ..self }
    }

    /// After a failure: there is another secret by now. Whether the client's last message can be checked again,
    /// by [`Exchange::step`]; not in SCRAM, where it answers the salt of the old one.
    #[must_use]
    pub fn again(&mut self, next: Exchange) -> bool {
        let Some(state) = self.answered.take() else { return false };
        self.secret = next.secret;
        self.previous = next.previous;
        self.state = state;
        true
    }

    /// Over TLS: the client may bind its proof to this end point.
    #[must_use]
    pub fn over(self, end_point: Option<EndPoint>) -> Exchange {
        Exchange { end_point, ..self }
    }

    /// Appends the first message: AuthenticationOk for trust ([`Step::Done`]), else the question.
    #[must_use]
    pub fn first(&mut self, out: &mut BytesMut) -> Step {
        let State::Unasked(method) = self.state else { return Step::Failed(Failure::Malformed) };
        let question = match method {
            AuthMethod::Trust => {
                self.state = State::Over;
                return done(out);
            }
            // Nothing that messages could settle.
            AuthMethod::Cert | AuthMethod::Peer | AuthMethod::Hba | AuthMethod::Reject => {
                self.state = State::Over;
                return Step::Failed(Failure::Elsewhere);
            }
            AuthMethod::Plain => {
                self.state = State::Password;
                Authentication::CleartextPassword
            }
            AuthMethod::Md5 => {
                let salt = keys::random();
                self.state = State::Md5 { salt };
                Authentication::MD5Password(salt.to_vec())
            }
            AuthMethod::ScramSha256 => {
                self.state = State::Mechanism;
                // The stronger one first, as PostgreSQL does.
                let plus = self.end_point.as_ref().map(|_| MECHANISM_PLUS);
                Authentication::SASL(plus.into_iter().chain([MECHANISM]).map(str::to_owned).collect())
            }
        };
        send(out, &question)
    }

    /// The largest length field the next `p` message may have, in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        match self.state {
            State::Mechanism | State::FirstMessage(_) | State::Proof(_) => SASL_LIMIT,
            _ => PASSWORD_LIMIT,
        }
    }

    /// Takes the body of a `p` message and appends the answer.
    ///
    /// Ready at once, except that a clear password is checked against a SCRAM verifier on the
    /// blocking pool. Not cancel safe: dropped half way, the login is over.
    #[must_use]
    pub async fn step(&mut self, body: &[u8], out: &mut BytesMut) -> Step {
        let answered = match std::mem::replace(&mut self.state, State::Over) {
            State::Password => {
                self.answered = Some(State::Password);
                self.password(body).await.map(|()| done(out))
            }
            State::Md5 { salt } => {
                self.answered = Some(State::Md5 { salt });
                self.md5(body, salt).map(|()| done(out))
            }
            State::Mechanism => self.mechanism(body, out),
            State::FirstMessage(binding) => self.first_message(body, &binding, out),
            State::Proof(server) => self.proof(*server, body, out),
            State::Unasked(_) | State::Over => Err(Failure::Malformed),
        };
        answered.unwrap_or_else(Step::Failed)
    }

    /// What the client has shown, once the login is [`Step::Done`]: good for a server that has the same
    /// verifier. `None` where nothing was asked, or where a clear password is configured anyway.
    #[must_use]
    pub fn passport(self) -> Option<Passport> {
        self.passport
    }

    /// Which password it was, once the login is [`Step::Done`].
    #[must_use]
    pub fn matched(&self) -> Matched {
        self.matched
    }

    async fn password(&mut self, body: &[u8]) -> Result<(), Failure> {
        let given = password_of(body)?;
        let scram = self.secret.iter().chain(&self.previous).find_map(Verifier::given);
        let mut under = None;
        let derived = if scram.is_some() || self.mock.derive_always {
            let (salt, iterations) = match scram {
                Some(verifier) => (verifier.salt.clone(), verifier.iterations),
                None => (self.mock.salt(&self.user).to_vec(), ITERATIONS),
            };
            let given = Zeroizing::new(given.to_vec());
            let own = salt.clone();
            let derive = move || ScramKeys::derive(&given, &own, iterations);
            under = Some((salt, iterations));
            Some(tokio::task::spawn_blocking(derive).await.map_err(|_| Failure::Interrupted)?)
        } else {
            None
        };
        let right = |secret: &Verifier| {
            secret.check_clear(&self.user, given, &self.mock).unwrap_or_else(|| {
                let same = |(keys, verifier): (&ScramKeys, &ScramVerifier)| {
                    keys.server.ct_eq(&*verifier.server).into()
                };
                derived.as_ref().zip(secret.given()).is_some_and(same)
            })
        };
        let (secret, matched) = self.choose(right)?;
        self.matched = matched;
        self.passport = match secret.kind() {
            SecretKind::Scram => derived.zip(under).map(|(keys, (salt, iterations))| Passport::Scram {
                salt,
                iterations,
                keys,
            }),
            _ => secret.passport(),
        };
        Ok(())
    }

    /// The secret that is right; always looks at both.
    fn choose(&self, right: impl Fn(&Verifier) -> bool) -> Result<(Verifier, Matched), Failure> {
        let secret = self.secret.clone()?;
        let (now, before) = (right(&secret), self.previous.clone().filter(|previous| right(previous)));
        if now {
            return Ok((secret, self.matched));
        }
        before.map(|previous| (previous, Matched::Previous)).ok_or(Failure::WrongPassword)
    }

    fn md5(&mut self, body: &[u8], salt: [u8; 4]) -> Result<(), Failure> {
        let given = password_of(body)?;
        let given = given.strip_prefix(b"md5").unwrap_or_default();
        let right = |digits: Option<[u8; 32]>| -> bool {
            let same = given.ct_eq(&keys::md5_answer(&digits.unwrap_or([0; 32]), salt));
            (same & Choice::from(u8::from(digits.is_some()))).into()
        };
        if self.secret.is_err() {
            // As much work for nobody.
            right(None);
        }
        let (secret, matched) = self.choose(|secret| right(secret.md5(&self.user)))?;
        (self.passport, self.matched) = (secret.passport(), matched);
        Ok(())
    }

    /// SASLInitialResponse: the mechanism's name, and a first message unless its length is -1.
    fn mechanism(&mut self, body: &[u8], out: &mut BytesMut) -> Result<Step, Failure> {
        let (name, rest) = cstr(body).ok_or(Failure::Malformed)?;
        let binding = match &self.end_point {
            None if name == MECHANISM.as_bytes() => Binding::Unavailable,
            Some(_) if name == MECHANISM.as_bytes() => Binding::Declined,
            Some(end_point) if name == MECHANISM_PLUS.as_bytes() => Binding::To(end_point.clone()),
            _ => return Err(Failure::Mechanism),
        };
        let (len, data) = rest.split_first_chunk::<4>().ok_or(Failure::Malformed)?;
        match i32::from_be_bytes(*len) {
            -1 if data.is_empty() => {
                // RFC 4422 §3: the server then asks with an empty challenge.
                self.state = State::FirstMessage(binding);
                Ok(send(out, &Authentication::SASLContinue(bytes::Bytes::new())))
            }
            len if usize::try_from(len) == Ok(data.len()) => self.first_message(data, &binding, out),
            _ => Err(Failure::Malformed),
        }
    }

    fn first_message(
        &mut self,
        message: &[u8],
        binding: &Binding,
        out: &mut BytesMut,
    ) -> Result<Step, Failure> {
        let (server, reply) = ScramServer::first(message, self.scram_verifier(), binding)?;
        let previous = self.previous.as_ref().and_then(|previous| previous.scram(&self.user, &self.mock));
        self.state = State::Proof(Box::new(server.or(previous.cloned())));
        Ok(send(out, &Authentication::SASLContinue(reply.into())))
    }

    fn proof(&mut self, server: ScramServer, message: &[u8], out: &mut BytesMut) -> Result<Step, Failure> {
        let last = server.finish(message)?;
        self.secret.as_ref().map_err(|failure| *failure)?;
        let (last, passport, is_previous) = last.ok_or(Failure::WrongPassword)?;
        if is_previous {
            self.matched = Matched::Previous;
        }
        self.passport = Some(passport);
        send(out, &Authentication::SASLFinal(last.into()));
        Ok(done(out))
    }

    fn scram_verifier(&self) -> ScramVerifier {
        let own = self.secret.as_ref().ok().and_then(|secret| secret.scram(&self.user, &self.mock));
        own.cloned().unwrap_or_else(|| self.mock.verifier(&self.user))
    }
}

/// The password of a PasswordMessage, which is the whole body up to its NUL.
fn password_of(body: &[u8]) -> Result<&[u8], Failure> {
    match cstr(body) {
        Some((password, [])) => Ok(password),
        _ => Err(Failure::Malformed),
    }
}

fn send(out: &mut BytesMut, message: &Authentication) -> Step {
    let at = out.len();
    match message.encode(out) {
        Ok(()) => Step::More,
        // Cannot happen: pgwire refuses only messages of 30,000 bytes and more, and a client's
        // nonce of that size is its own doing.
        Err(_) => {
            out.truncate(at);
            Step::Failed(Failure::Malformed)
        }
    }
}

fn done(out: &mut BytesMut) -> Step {
    match send(out, &Authentication::Ok) {
        Step::More => Step::Done,
        other => other,
    }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
