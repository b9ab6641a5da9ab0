//! The smallest PostgreSQL client: blocking, trust only, results read and thrown away.
//!
//! pgbench cannot be told to log in now and send a counted number of queries later, nor to sit idle
//! a thousand times; this can. (<https://www.postgresql.org/docs/current/protocol-message-formats.html>)

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// No answer for this long is a failure.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One connection.
pub(crate) struct Client {
    stream: BufReader<Line>,
}

/// A socket, as fast as it goes or as slow as a network.
struct Line {
    tcp: TcpStream,
    /// Bytes a second, both ways together.
    speed: Option<u32>,
    /// When what has passed until now would be through.
    through: Instant,
}

impl Line {
    /// So much passes in one go.
    const BURST: usize = 64 << 10;

    fn passed(&mut self, bytes: usize) {
        let Some(speed) = self.speed else { return };
        let now = Instant::now();
        self.through = self.through.max(now) + Duration::from_secs_f64(bytes as f64 / f64::from(speed));
        let ahead = self.through - now;
        if ahead.as_secs_f64() * f64::from(speed) >= Self::BURST as f64 {
            std::thread::sleep(ahead);
        }
    }
}

impl Read for Line {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.tcp.read(into)?;
        self.passed(read);
        Ok(read)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = if self.speed.is_some() { Self::BURST } else { usize::MAX };
        let written = self.tcp.write(&bytes[..bytes.len().min(most)])?;
        self.passed(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

impl Client {
    /// Logs in as `postgres` to database `postgres` on 127.0.0.1.
    pub(crate) fn connect(port: u16) -> io::Result<Client> {
        Client::over(port, None)
    }

    /// The same, over a network of so many bytes a second.
    pub(crate) fn over(port: u16, speed: Option<u32>) -> io::Result<Client> {
        let tcp = TcpStream::connect(("127.0.0.1", port))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(TIMEOUT))?;
        tcp.set_write_timeout(Some(TIMEOUT))?;
        let line = Line { tcp, speed, through: Instant::now() };
        let mut client = Client { stream: BufReader::with_capacity(Line::BURST, line) };
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
