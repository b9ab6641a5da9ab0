//! One connection whose messages are looked at as they come: bytes out, messages in, nothing decoded that
//! nobody asks for. Blocking, a thread a connection; tokio-postgres cannot be told to pipeline simple queries,
//! nor to leave in the middle of an answer.
//! (<https://www.postgresql.org/docs/current/protocol-message-formats.html>)

use super::msg;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Silence for this long is a wrong answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Read at once.
const CHUNK: usize = 16 * 1024;

/// An ErrorResponse.
#[derive(Debug, Clone)]
pub(super) struct Complaint {
    /// SQLSTATE.
    pub(super) code: String,
    /// The connection ends with it.
    pub(super) fatal: bool,
    /// MESSAGE.
    text: String,
}

impl Complaint {
    /// From the body of an ErrorResponse.
    pub(super) fn new(body: &[u8]) -> Complaint {
        let field = |wanted: u8| {
            let fields = body.split(|byte| *byte == 0);
            let found = fields.filter_map(|field| field.split_first()).find(|(kind, _)| **kind == wanted);
            found.map(|(_, text)| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
        };
        Complaint { code: field(b'C'), fatal: field(b'V') == "FATAL", text: field(b'M') }
    }
}

impl From<Complaint> for io::Error {
    fn from(complaint: Complaint) -> io::Error {
        io::Error::other(format!("{} {}", complaint.code, complaint.text))
    }
}

/// One connection to 127.0.0.1.
pub(super) struct Link {
    stream: TcpStream,
    port: u16,
    /// Of the cancel request: process id and secret.
    key: (i32, Vec<u8>),
    /// Never cleared: zeroing it for each answer would be most of what a small one takes, unoptimised.
    buffer: Vec<u8>,
    /// How much of it has been read, and how much of that looked at.
    filled: usize,
    seen: usize,
}

impl Link {
    /// Logs in to database `postgres` by trust.
    pub(super) fn login(port: u16, user: &str) -> io::Result<Link> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut link = Link { stream, port, key: (0, Vec::new()), buffer: Vec::new(), filled: 0, seen: 0 };
        link.send(&msg::startup(0, [("user", user), ("database", "postgres")]))?;
        loop {
            match link.next()? {
                (b'K', body) => {
                    let (pid, secret) = body.split_first_chunk().ok_or(io::ErrorKind::InvalidData)?;
                    link.key = (i32::from_be_bytes(*pid), secret.to_vec());
                }
                (b'E', body) => return Err(Complaint::new(body).into()),
                (b'Z', _) => return Ok(link),
                _ => {}
            }
        }
    }

    /// Writes all of it.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next message: its type and its body.
    pub(super) fn next(&mut self) -> io::Result<(u8, &[u8])> {
        loop {
            let unseen = &self.buffer[self.seen..self.filled];
            if let Some((&[kind, a, b, c, d], _)) = unseen.split_first_chunk() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize + 1;
                if unseen.len() >= length {
                    let from = self.seen + 5;
                    self.seen += length;
                    return Ok((kind, &self.buffer[from..self.seen]));
                }
            }
            self.buffer.copy_within(self.seen..self.filled, 0);
            self.filled -= std::mem::take(&mut self.seen);
            if self.buffer.len() < self.filled + CHUNK {
                self.buffer.resize(self.filled + CHUNK, 0);
            }
            let read = self.stream.read(&mut self.buffer[self.filled..])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.filled += read;
        }
    }

    /// Runs one Query; its rows, every column as text, or what the server said against it.
    pub(super) fn ask(&mut self, sql: &str) -> io::Result<Result<Vec<Vec<String>>, Complaint>> {
        self.send(&msg::query(sql))?;
        self.answer()
    }

    /// The answer up to ReadyForQuery, or up to the FATAL that ends the connection.
    pub(super) fn answer(&mut self) -> io::Result<Result<Vec<Vec<String>>, Complaint>> {
        let (mut rows, mut complaint) = (Vec::new(), None);
        loop {
            match self.next()? {
                (b'D', body) => rows.push(columns(body)),
                (b'E', body) => {
                    let said = Complaint::new(body);
                    if said.fatal {
                        return Ok(Err(said));
                    }
                    complaint = Some(said);
                }
                (b'Z', _) => return Ok(complaint.map_or(Ok(rows), Err)),
                _ => {}
            }
        }
    }

    /// Asks the server, over another connection, to cancel what runs here.
    pub(super) fn cancel(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.write_all(&msg::cancel_request(self.key.0, &self.key.1))
    }

    /// Leaves without a word, and with a reset.
    pub(super) fn vanish(self) -> io::Result<()> {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }
}

/// A DataRow's columns; NULL as an empty text.
fn columns(body: &[u8]) -> Vec<String> {
    let mut rest = body.get(2..).unwrap_or_default();
    let mut columns = Vec::new();
    while let Some((value, behind)) = column(rest) {
        columns.push(String::from_utf8_lossy(value).into_owned());
        rest = behind;
    }
    columns
}

/// The first column and what is behind it.
pub(super) fn column(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    rest.split_at_checked(length)
}
