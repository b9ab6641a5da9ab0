//! From a connected stream to ReadyForQuery, against a server that may be hostile.
//!
//! Every message is read whole, of at most 64 KiB, into a buffer that grows with the bytes that
//! arrive and never by the number that announces them; a login as a whole takes at most 256 KiB.
//! Anything that has no place in a login ends it. The caller sets the deadline.
//!
//! Bodies are read here and not by pgwire, which panics on truncated ones.

use super::error::{AuthFault, DialError, ProtocolFault};
use super::scram::{Client, Proven};
use super::target::Target;
use crate::auth::keys::{self, ScramKeys};
use crate::auth::scram::{EndPoint, MECHANISM_PLUS};
use crate::config::Secret;
use crate::wire::backend::{error_field, message, parameter};
use crate::wire::walk::{Header, cstr};
use bytes::{Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::startup::{SASLInitialResponse, SASLResponse, Startup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroize;

/// Largest length field of one message.
const MAX_LEN: i32 = 64 * 1024;
/// Most bytes before ReadyForQuery; login triggers and settings of a role may be talkative.
const MAX_TOTAL: usize = 256 * 1024;
/// Most distinct ParameterStatus; PostgreSQL 18 sends 15.
const MAX_PARAMETERS: usize = 128;
/// Where reading starts: a whole PostgreSQL login fits.
const FIRST_BUFFER: usize = 2 * 1024;

/// What a server says of a new session.
#[derive(Debug)]
pub struct Login {
    /// Process id; 0 from a server that does not tell (no cancel then).
    pub pid: i32,
    /// Cancel key: 4 bytes, under protocol 3.2 up to 256.
    pub key: Bytes,
    /// ParameterStatus as reported, the last value of each name, in order of first appearance.
    pub parameters: Vec<(Bytes, Bytes)>,
}

/// Logs in and waits for ReadyForQuery. Not cancel safe: dropped half way, the stream is useless.
///
/// # Errors
/// [`DialError`] other than `Timeout`.
pub async fn login<S>(io: &mut S, target: &Target, end_point: Option<EndPoint>) -> Result<Login, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut talk =
        Talk { io, target, end_point, buf: BytesMut::with_capacity(FIRST_BUFFER), left: MAX_TOTAL };
    // 3.2 brings cancel keys longer than 4 bytes; older servers negotiate it down, from 9.3 on.
    let mut startup = Startup::new();
    startup.protocol_number_minor = 2;
    for (name, value) in [("user", &*target.user), ("database", &*target.dbname)] {
        startup.parameters.insert(name.to_owned(), value.to_owned());
    }
    startup.parameters.extend(target.parameters.iter().cloned());
    talk.send(&startup).await?;
    let minor = talk.authenticate().await?;
    talk.settle(minor).await
}

/// How far authentication has come.
enum Stage {
    /// Nothing was asked.
    Start,
    /// SCRAM: the first message is out.
    Scram(Client),
    /// SCRAM: the proof is out.
    Proven(Proven),
    /// Everything that was asked is answered, and a SCRAM server has proven itself.
    Answered,
    /// AuthenticationOk.
    Done,
}

struct Talk<'a, S> {
    io: &'a mut S,
    target: &'a Target,
    /// What the connection's TLS lets SCRAM be bound to.
    end_point: Option<EndPoint>,
    buf: BytesMut,
    /// Bytes the server may still send.
    left: usize,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Talk<'a, S> {
    /// Up to AuthenticationOk; returns the minor protocol version.
    async fn authenticate(&mut self) -> Result<u16, DialError> {
        let mut minor = None;
        let mut stage = Stage::Start;
        loop {
            let (kind, body) = self.frame().await?;
            match kind {
                b'R' => match self.authentication(&body, stage).await? {
                    Stage::Done => return Ok(minor.unwrap_or(2)),
                    next => stage = next,
                },
                b'v' if minor.is_none() && matches!(stage, Stage::Start) => minor = Some(negotiated(&body)?),
                b'N' => {}
                b'E' => return Err(refusal(body)),
                _ => return Err(ProtocolFault::Unexpected(kind).into()),
            }
        }
    }

    /// Answers one Authentication message.
    async fn authentication(&mut self, body: &[u8], stage: Stage) -> Result<Stage, DialError> {
        let (code, rest) = body.split_first_chunk::<4>().ok_or(ProtocolFault::Malformed(b'R'))?;
        Ok(match (i32::from_be_bytes(*code), stage) {
            (0, Stage::Start | Stage::Answered) => Stage::Done,
            (0, _) => return Err(AuthFault::Unproven.into()),
            (3, Stage::Start) => {
                let password = self.password()?;
                self.send_password(&[password.expose().as_bytes()]).await?;
                Stage::Answered
            }
            (5, Stage::Start) => {
                let salt = rest.try_into().map_err(|_| ProtocolFault::Malformed(b'R'))?;
                let secret = self.target.md5_digits().ok_or(AuthFault::NoPassword)?;
                self.send_password(&[b"md5", &keys::md5_answer(&secret, salt)]).await?;
                Stage::Answered
            }
            (10, Stage::Start) => {
                if !self.target.has_keys() {
                    return Err(AuthFault::NoPassword.into());
                }
                let client = Client::new(self.end_point.take(), offers(rest, MECHANISM_PLUS));
                if !offers(rest, client.mechanism()) {
                    return Err(AuthFault::Mechanism.into());
                }
                let (name, first) = (client.mechanism().to_owned(), client.first());
                let first = SASLInitialResponse::new(name, Some(first.into()));
                self.send(&first).await?;
                Stage::Scram(client)
            }
            (11, Stage::Scram(client)) => {
                let challenge = client.challenge(rest).map_err(AuthFault::Scram)?;
                let keys = self.keys(&challenge.salt, challenge.iterations).await?;
                let (answer, proven) = challenge.answer(&keys);
                self.send(&SASLResponse::new(answer.into())).await?;
                Stage::Proven(proven)
            }
            (12, Stage::Proven(proven)) => {
                proven.verify(rest).map_err(AuthFault::Scram)?;
                Stage::Answered
            }
            (3 | 5 | 10 | 11 | 12, _) => return Err(AuthFault::Order.into()),
            (other, _) => return Err(AuthFault::Unsupported(other).into()),
        })
    }

    /// From AuthenticationOk to ReadyForQuery.
    async fn settle(&mut self, minor: u16) -> Result<Login, DialError> {
        let mut login = Login { pid: 0, key: Bytes::new(), parameters: Vec::new() };
        loop {
            let (kind, body) = self.frame().await?;
            match kind {
                b'S' => {
                    let (name, value) = parameter(&body).ok_or(ProtocolFault::Malformed(kind))?;
                    // Copies, so that a small value does not keep the whole read buffer alive.
                    let value = Bytes::copy_from_slice(value);
                    match login.parameters.iter().position(|(known, _)| known == name) {
                        Some(at) => login.parameters[at].1 = value,
                        None if login.parameters.len() < MAX_PARAMETERS => {
                            login.parameters.push((Bytes::copy_from_slice(name), value));
                        }
                        None => return Err(ProtocolFault::TooMuch.into()),
                    }
                }
                b'K' => {
                    let (pid, key) = body.split_first_chunk::<4>().ok_or(ProtocolFault::Malformed(kind))?;
                    let longest = if minor >= 2 { 256 } else { 4 };
                    if !(4..=longest).contains(&key.len()) || !login.key.is_empty() {
                        return Err(ProtocolFault::Malformed(kind).into());
                    }
                    (login.pid, login.key) = (i32::from_be_bytes(*pid), Bytes::copy_from_slice(key));
                }
                b'N' => {}
                b'Z' if body[..] == *b"I" && self.buf.is_empty() => return Ok(login),
                b'Z' => return Err(ProtocolFault::NotIdle.into()),
                b'E' => return Err(refusal(body)),
                _ => return Err(ProtocolFault::Unexpected(kind).into()),
            }
        }
    }

    fn password(&self) -> Result<Secret, AuthFault> {
        self.target.password().ok_or(AuthFault::NoPassword)
    }

    /// The SCRAM keys, from the target's memory or from a thread that may compute. What a client has shown
    /// serves one verifier only.
    async fn keys(&self, salt: &[u8], iterations: std::num::NonZeroU32) -> Result<ScramKeys, DialError> {
        if let Some(keys) = self.target.keys(salt, iterations) {
            return Ok(keys);
        }
        let password = self.password().map_err(|_| AuthFault::OtherVerifier)?;
        let salt = salt.to_vec();
        let derive =
            move || (ScramKeys::derive(password.expose().as_bytes(), &salt, iterations), password, salt);
        let (keys, password, salt) =
            tokio::task::spawn_blocking(derive).await.map_err(std::io::Error::other)?;
        self.target.remember_keys(&password, salt, iterations, keys.clone());
        Ok(keys)
    }

    async fn send(&mut self, packet: &impl Message) -> Result<(), DialError> {
        let mut out = BytesMut::new();
        // pgwire refuses only what is too large: names of more than 10,000 bytes together.
        packet.encode(&mut out).map_err(std::io::Error::other)?;
        self.io.write_all(&out).await?;
        Ok(self.io.flush().await?)
    }

    async fn send_password(&mut self, parts: &[&[u8]]) -> Result<(), DialError> {
        let mut out = BytesMut::with_capacity(256);
        message(&mut out, b'p', |out| {
            parts.iter().for_each(|part| out.extend_from_slice(part));
            out.extend_from_slice(b"\0");
        });
        let sent = self.io.write_all(&out).await;
        out[..].zeroize();
        sent?;
        Ok(self.io.flush().await?)
    }

    /// The next message: type byte and body.
    async fn frame(&mut self) -> Result<(u8, Bytes), DialError> {
        loop {
            if let Some(header) = Header::read(&self.buf) {
                let fault = ProtocolFault::Length { kind: header.kind, len: header.len };
                let total = header.total().filter(|_| header.len <= MAX_LEN).ok_or(fault)?;
                if self.buf.len() >= total {
                    let mut frame = self.buf.split_to(total).freeze();
                    let _header = frame.split_to(crate::wire::walk::HEADER);
                    return Ok((header.kind, frame));
                }
            }
            let read = self.io.read_buf(&mut self.buf).await?;
            if read == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            self.left = self.left.checked_sub(read).ok_or(ProtocolFault::TooMuch)?;
        }
    }
}

/// The minor version of NegotiateProtocolVersion: the newest the server speaks. The field holds the
/// full version; the manual once said the minor alone.
fn negotiated(body: &[u8]) -> Result<u16, ProtocolFault> {
    let (version, rest) = body.split_first_chunk::<4>().ok_or(ProtocolFault::Malformed(b'v'))?;
    let [major @ .., _, _] = *version;
    let minor = u16::from_be_bytes([version[2], version[3]]);
    // We asked for no option, so none can be unknown.
    let known = matches!(major, [0, 0] | [0, 3]) && minor <= 2 && rest == [0; 4];
    if known { Ok(minor) } else { Err(ProtocolFault::Version) }
}

/// Whether a list of mechanisms, each with its NUL, has this one.
fn offers(mut list: &[u8], mechanism: &str) -> bool {
    while let Some((name, rest)) = cstr(list) {
        if name == mechanism.as_bytes() {
            return true;
        }
        list = rest;
    }
    false
}

fn refusal(body: Bytes) -> DialError {
    match error_field(&body, b'C').and_then(|code| code.try_into().ok()) {
        Some(code) => DialError::Server { code, body },
        None => ProtocolFault::Malformed(b'E').into(),
    }
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
