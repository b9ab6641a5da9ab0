//! The smallest PostgreSQL client: blocking, trust only, results read and thrown away.
//!
//! pgbench cannot be told to log in now and send a counted number of queries later, nor to sit idle
//! a thousand times; this can. (<https://www.postgresql.org/docs/current/protocol-message-formats.html>)

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// No answer for this long is a failure.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Logs in as `postgres` to database `postgres` on 127.0.0.1.
    pub(crate) fn connect(port: u16) -> io::Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut client = Client { stream: BufReader::new(stream) };
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        body.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        client.round_trip(&with_length(&body))?;
        Ok(client)
    }

    /// Runs a statement by the simple protocol.
    pub(crate) fn query(&mut self, sql: &str) -> io::Result<()> {
        self.round_trip(&simple(sql))
    }

    /// Sends bytes that end in one ReadyForQuery, and reads up to it.
    pub(crate) fn round_trip(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        loop {
            let mut header = [0; 5];
            self.stream.read_exact(&mut header)?;
            let [kind, length @ ..] = header;
            let length = u64::from(u32::from_be_bytes(length)).saturating_sub(4);
            let mut body = (&mut self.stream).take(length);
            if kind == b'E' {
                let mut fields = Vec::new();
                body.read_to_end(&mut fields)?;
                return Err(io::Error::other(String::from_utf8_lossy(&fields).replace('\0', " ")));
            }
            if io::copy(&mut body, &mut io::sink())? < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if kind == b'Z' {
                return Ok(());
            }
        }
    }
}

/// A Query message.
pub(crate) fn simple(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

/// Parse, Bind, Describe, Execute and Sync of the unnamed statement, as libpq sends them.
pub(crate) fn extended(sql: &str) -> Vec<u8> {
    [
        message(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"].concat()),
        message(b'B', b"\0\0\0\0\0\0\0\0"),
        message(b'D', b"P\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ]
    .concat()
}

/// Any message.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&with_length(body));
    bytes
}

fn with_length(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], body].concat()
}
