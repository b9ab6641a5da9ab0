//! The client's half of PostgreSQL's password methods.

use super::Login;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};

/// One login's answers to AuthenticationRequests.
pub(crate) struct Identity {
    user: String,
    password: String,
    scram: Option<ScramSha256>,
}

impl Identity {
    /// An empty password if the login has none.
    pub(crate) fn new(login: &Login) -> Identity {
        let user = login.parameters.iter().find(|(name, _)| name == "user");
        Identity {
            user: user.map(|(_, value)| value.clone()).unwrap_or_default(),
            password: login.password.clone().unwrap_or_default(),
            scram: None,
        }
    }

    /// The body of the answer; `None` if none is due.
    pub(crate) fn answer(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        let (code, rest) = request.split_at(4);
        match u32::from_be_bytes(code.try_into().expect("four bytes")) {
            0 => None,
            3 => Some([self.password.as_bytes(), b"\0"].concat()),
            5 => {
                let salt = rest[..4].try_into().expect("a salt of four bytes");
                let hash = md5_hash(self.user.as_bytes(), self.password.as_bytes(), salt);
                Some([hash.as_bytes(), b"\0"].concat())
            }
            10 => {
                let scram = ScramSha256::new(self.password.as_bytes(), ChannelBinding::unsupported());
                let first = scram.message();
                let length = u32::try_from(first.len()).expect("short").to_be_bytes();
                let answer = [SCRAM_SHA_256.as_bytes(), b"\0", &length, first].concat();
                self.scram = Some(scram);
                Some(answer)
            }
            11 => {
                let scram = self.scram.as_mut().expect("AuthenticationSASL came first");
                scram.update(rest).expect("a server-first-message");
                Some(scram.message().to_vec())
            }
            12 => {
                let scram = self.scram.as_mut().expect("AuthenticationSASL came first");
                scram.finish(rest).expect("the server knows the password, too");
                None
            }
            other => panic!("AuthenticationRequest {other}"),
        }
    }
}
