//! A client that sees each byte: blocking, on `std` alone, with a deadline on every read.
//!
//! No driver hides here what a server said, in which order, or how the bytes arrived; that is what
//! most of these tests are about.

use super::identity::Identity;
use super::unread::Unread;
use super::{PATIENCE, msg};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// One message of the server.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Msg {
    pub(crate) kind: u8,
    pub(crate) body: Vec<u8>,
}

impl Msg {
    /// A field of ErrorResponse or NoticeResponse: `C` is the SQLSTATE, `M` the message.
    pub(crate) fn field(&self, code: u8) -> Option<String> {
        self.body
            .split(|&byte| byte == 0)
            .find(|field| field.first() == Some(&code))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    }

    fn texts(&self) -> Vec<String> {
        self.body.split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }
}

/// As in a trace: `1 2 D C(SELECT 1) Z(I)`.
impl fmt::Display for Msg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = char::from(self.kind);
        match self.kind {
            b'Z' => write!(f, "Z({})", char::from(self.body[0])),
            b'C' => write!(f, "C({})", self.texts()[0]),
            b'S' => write!(f, "S({}={})", self.texts()[0], self.texts()[1]),
            b'A' => {
                write!(f, "A({})", String::from_utf8_lossy(&self.body[4..]).replace('\0', " ").trim_end())
            }
            b'E' | b'N' => {
                let fatal = match self.field(b'V').as_deref() {
                    Some("FATAL") => "FATAL ",
                    _ => "",
                };
                write!(f, "{kind}({fatal}{})", self.field(b'C').unwrap_or_default())
            }
            _ => write!(f, "{kind}"),
        }
    }
}

/// With the text of errors and rows, for failures.
impl fmt::Debug for Msg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            b'E' | b'N' | b'D' | b'K' | b'v' => write!(f, "{self}[{}]", self.body.escape_ascii()),
            _ => write!(f, "{self}"),
        }
    }
}

/// A trace: message after message, and `EOF` if the connection was closed.
pub(crate) fn trace(messages: &[Msg]) -> String {
    messages.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What came back for a query, read to ReadyForQuery or the end of the connection.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) messages: Vec<Msg>,
    pub(crate) closed: bool,
}

impl Reply {
    /// Rows, each value as text.
    pub(crate) fn rows(&self) -> Vec<Vec<Option<String>>> {
        self.messages.iter().filter(|m| m.kind == b'D').map(|m| row(&m.body)).collect()
    }

    /// The first value of the first row; empty if it is NULL.
    pub(crate) fn value(&self) -> String {
        match self.rows().first().and_then(|row| row.first().cloned()) {
            Some(value) => value.unwrap_or_default(),
            None => panic!("a row was expected, and this came: {self:?}"),
        }
    }

    /// The first ErrorResponse.
    pub(crate) fn error(&self) -> Option<&Msg> {
        self.messages.iter().find(|m| m.kind == b'E')
    }

    /// SQLSTATE of the first error; empty without one.
    pub(crate) fn code(&self) -> String {
        self.error().and_then(|e| e.field(b'C')).unwrap_or_default()
    }

    /// NoticeResponses.
    pub(crate) fn notices(&self) -> Vec<&Msg> {
        self.messages.iter().filter(|m| m.kind == b'N').collect()
    }

    /// As a trace, with ` EOF` if the connection was closed.
    pub(crate) fn trace(&self) -> String {
        let closed = if self.closed { " EOF" } else { "" };
        format!("{}{closed}", trace(&self.messages)).trim_start().to_owned()
    }

    /// Column names of the first RowDescription.
    pub(crate) fn columns(&self) -> Vec<String> {
        let Some(description) = self.messages.iter().find(|m| m.kind == b'T') else { return Vec::new() };
        let mut rest = &description.body[2..];
        let mut names = Vec::new();
        while let Some(end) = rest.iter().position(|&b| b == 0) {
            names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
            rest = &rest[end + 1 + 18..];
        }
        names
    }
}

fn row(body: &[u8]) -> Vec<Option<String>> {
    let (count, mut rest) = body.split_at(2);
    let count = u16::from_be_bytes([count[0], count[1]]);
    (0..count)
        .map(|_| {
            let (len, tail) = rest.split_at(4);
            let len = i32::from_be_bytes([len[0], len[1], len[2], len[3]]);
            let Ok(len) = usize::try_from(len) else {
                rest = tail;
                return None;
            };
            let (value, tail) = tail.split_at(len);
            rest = tail;
            Some(String::from_utf8_lossy(value).into_owned())
        })
        .collect()
}

/// Who logs in where, and with what.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) minor: u32,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) password: Option<String>,
}

impl Login {
    /// Protocol 3.0, no password.
    pub(crate) fn new(user: &str, database: &str) -> Login {
        Login { minor: 0, parameters: Vec::new(), password: None }
            .with("user", user)
            .with("database", database)
    }

    /// One more start-up parameter.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Login {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A password for whatever method is asked for.
    pub(crate) fn password(mut self, password: &str) -> Login {
        self.password = Some(password.to_owned());
        self
    }

    /// The StartupMessage.
    pub(crate) fn packet(&self) -> Vec<u8> {
        msg::startup(self.minor, self.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())))
    }
}

/// Why there is no session.
#[derive(Debug)]
pub(crate) enum Refused {
    /// What the server said before it closed the connection.
    Said(Reply),
    /// It does not answer at all.
    #[allow(dead_code, reason = "shown by Debug")]
    Io(std::io::Error),
}

/// One connection.
pub(crate) struct Wire {
    /// Kept, since a socket whose other end has reset it can't say.
    peer: SocketAddr,
    stream: TcpStream,
    buffer: Vec<u8>,
    closed: bool,
    /// BackendKeyData
    pub(crate) pid: i32,
    /// BackendKeyData
    pub(crate) key: Vec<u8>,
    /// ParameterStatus of the start-up.
    pub(crate) parameters: BTreeMap<String, String>,
}

impl Wire {
    /// A bare connection, nothing sent.
    pub(crate) fn open(addr: SocketAddr) -> std::io::Result<Wire> {
        Wire::over(TcpStream::connect(addr)?, addr)
    }

    /// The same from another address of this machine.
    pub(crate) fn open_from(source: Ipv4Addr, addr: SocketAddr) -> std::io::Result<Wire> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        socket.connect(&addr.into())?;
        Wire::over(socket.into(), addr)
    }

    fn over(stream: TcpStream, addr: SocketAddr) -> std::io::Result<Wire> {
        stream.set_nodelay(true)?;
        let (pid, key, parameters) = (0, Vec::new(), BTreeMap::new());
        Ok(Wire { peer: addr, stream, buffer: Vec::new(), closed: false, pid, key, parameters })
    }

    /// A session ready for queries.
    pub(crate) fn login(addr: SocketAddr, login: &Login) -> Wire {
        Wire::try_login(addr, login).unwrap_or_else(|refused| panic!("login refused: {refused:?}"))
    }

    /// A session, or what was said instead of ReadyForQuery.
    pub(crate) fn try_login(addr: SocketAddr, login: &Login) -> Result<Wire, Refused> {
        Wire::open(addr).map_err(Refused::Io)?.log_in(login)
    }

    /// The same on a connection that has said nothing yet.
    pub(crate) fn log_in(self, login: &Login) -> Result<Wire, Refused> {
        let mut wire = self;
        wire.try_send(&login.packet()).map_err(Refused::Io)?;
        let mut identity = Identity::new(login);
        let mut seen = Vec::new();
        while let Some(message) = wire.try_recv(PATIENCE).map_err(Refused::Io)? {
            match message.kind {
                b'Z' => return Ok(wire),
                b'K' => {
                    wire.pid = i32::from_be_bytes(message.body[..4].try_into().expect("four bytes"));
                    wire.key = message.body[4..].to_vec();
                }
                b'S' => {
                    let texts = message.texts();
                    wire.parameters.insert(texts[0].clone(), texts[1].clone());
                }
                b'R' => {
                    if let Some(answer) = identity.answer(&message.body) {
                        wire.try_send(&msg::message(b'p', &answer)).map_err(Refused::Io)?;
                    }
                }
                _ => {}
            }
            seen.push(message);
        }
        Err(Refused::Said(Reply { messages: seen, closed: true }))
    }

    /// Its socket, for another thread.
    pub(crate) fn handle(&self) -> TcpStream {
        self.stream.try_clone().expect("the socket again")
    }

    /// Sends all of it in one write.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the connection takes bytes");
    }

    /// Sends; the other side may have closed already.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends in pieces that end at these offsets, each piece only after the one before it was read
    /// by the other side, so that the pieces are separate reads there.
    pub(crate) fn send_split(&mut self, bytes: &[u8], ends: impl IntoIterator<Item = usize>) {
        let mut start = 0;
        for end in ends.into_iter().chain([bytes.len()]) {
            // The other side may close in the middle, as PostgreSQL does: the reply tells.
            if self.try_send(&bytes[start..end]).is_err() {
                return;
            }
            start = end;
            if start < bytes.len() {
                self.wait_taken();
            }
        }
    }

    /// Waits until the other side has read all that was sent; not for ever, since a side that holds
    /// its client back is right to let bytes lie.
    pub(crate) fn wait_taken(&self) -> bool {
        let mut unread = self.unread_by_peer();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            if unread.bytes() == 0 {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    /// What the other side has still to read.
    pub(crate) fn unread_by_peer(&self) -> Unread {
        let port = |addr: std::io::Result<SocketAddr>| addr.map_or(0, |addr| addr.port());
        Unread::of(port(self.stream.peer_addr()), port(self.stream.local_addr()))
    }

    /// The next message, or `None` when the connection is closed.
    pub(crate) fn recv(&mut self) -> Option<Msg> {
        self.try_recv(PATIENCE).unwrap_or_else(|error| {
            panic!("no message came: {error}; {} bytes of an incomplete one", self.buffer.len())
        })
    }

    /// The next message within a time; an error of kind `WouldBlock` if none came.
    pub(crate) fn try_recv(&mut self, within: Duration) -> std::io::Result<Option<Msg>> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(message) = self.take_message() {
                return Ok(Some(message));
            }
            if self.closed {
                return Ok(None);
            }
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 65_536];
            match self.stream.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(n) => self.buffer.extend(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => self.closed = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads a message of any size and forgets its body: its type, and how long the body was. `None` when
    /// the connection is closed before its end.
    pub(crate) fn skip_message(&mut self) -> Option<(u8, usize)> {
        let header = loop {
            if let Some(header) = self.buffer.get(..5) {
                break [header[0], header[1], header[2], header[3], header[4]];
            }
            self.fill()?;
        };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize - 4;
        self.buffer.drain(..5);
        let mut rest = length;
        loop {
            let here = rest.min(self.buffer.len());
            self.buffer.drain(..here);
            rest -= here;
            if rest == 0 {
                return Some((header[0], length));
            }
            self.fill()?;
        }
    }

    /// Reads whatever is there into the buffer; `None` at the end.
    fn fill(&mut self) -> Option<()> {
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut chunk = [0; 65_536];
        let n = self.stream.read(&mut chunk).expect("bytes, or the end");
        self.buffer.extend(&chunk[..n]);
        (n > 0).then_some(())
    }

    fn take_message(&mut self) -> Option<Msg> {
        let header = self.buffer.get(..5)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let kind = header[0];
        let body = self.buffer.get(5..length + 1)?.to_vec();
        self.buffer.drain(..length + 1);
        Some(Msg { kind, body })
    }

    /// Single bytes, as in the answer to SSLRequest; `None` when the connection is closed.
    pub(crate) fn recv_byte(&mut self) -> Option<u8> {
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut byte = [0];
        match self.stream.read(&mut byte).expect("a byte or the end") {
            0 => None,
            _ => Some(byte[0]),
        }
    }

    /// So many messages, or fewer if the connection is closed.
    pub(crate) fn recv_count(&mut self, count: usize) -> Vec<Msg> {
        std::iter::from_fn(|| self.recv()).take(count).collect()
    }

    /// All messages to the next ReadyForQuery or the end of the connection.
    pub(crate) fn recv_reply(&mut self) -> Reply {
        let mut messages = Vec::new();
        while let Some(message) = self.recv() {
            let ready = message.kind == b'Z';
            messages.push(message);
            if ready {
                return Reply { messages, closed: false };
            }
        }
        Reply { messages, closed: true }
    }

    /// As [`Wire::recv_reply`], for clean-up where nobody minds.
    pub(crate) fn try_recv_until_ready(&mut self) -> Option<()> {
        while self.try_recv(PATIENCE).ok()??.kind != b'Z' {}
        Some(())
    }

    /// All messages to the end of the connection.
    pub(crate) fn recv_to_end(&mut self) -> Reply {
        let messages = std::iter::from_fn(|| self.recv()).collect();
        Reply { messages, closed: true }
    }

    /// What has arrived by now, without waiting.
    pub(crate) fn recv_arrived(&mut self) -> Vec<Msg> {
        self.stream.set_nonblocking(true).expect("non-blocking");
        let mut chunk = [0; 65_536];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.closed = true;
                    break;
                }
                Ok(n) => self.buffer.extend(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.closed = true;
                    break;
                }
            }
        }
        self.stream.set_nonblocking(false).expect("blocking");
        std::iter::from_fn(|| self.take_message()).collect()
    }

    /// Whether the end of the connection has been read.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Sends these messages and reads to the next ReadyForQuery.
    pub(crate) fn ask(&mut self, bytes: &[u8]) -> Reply {
        self.send(bytes);
        self.recv_reply()
    }

    /// A simple query.
    pub(crate) fn query(&mut self, sql: &str) -> Reply {
        self.ask(&msg::query(sql))
    }

    /// A simple query that must succeed.
    pub(crate) fn batch(&mut self, sql: &str) -> Reply {
        let reply = self.query(sql);
        assert!(reply.error().is_none() && !reply.closed, "{sql}: {reply:?}");
        reply
    }

    /// Says that no more bytes will come, and goes on reading.
    pub(crate) fn half_close(&self) {
        // A server that has reset the connection already has nothing left to close.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// From now on the end of this connection is a reset: the other side hears of it at once, and loses
    /// what it has not read.
    pub(crate) fn reset_when_dropped(&self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("a linger of 0");
    }

    /// Sends Terminate and waits until the server has closed.
    pub(crate) fn bye(mut self) {
        self.send(&msg::terminate());
        let rest = self.recv_to_end();
        assert!(rest.messages.is_empty(), "after Terminate: {rest:?}");
    }

    /// Asks the server at `addr` to cancel what this session runs, and waits until it has taken note.
    pub(crate) fn cancel(&self) {
        cancel(self.peer, self.pid, &self.key);
    }

    /// The port of this end.
    pub(crate) fn local_port(&self) -> u16 {
        self.stream.local_addr().expect("a bound socket").port()
    }
}

/// Sends a CancelRequest and waits for the end of the connection: the signal has been sent then.
pub(crate) fn cancel(addr: SocketAddr, pid: i32, key: &[u8]) {
    let mut wire = Wire::open(addr).expect("a connection to cancel by");
    wire.send(&msg::cancel_request(pid, key));
    let answer = wire.recv_to_end();
    assert!(answer.messages.is_empty(), "a CancelRequest has no answer: {answer:?}");
}
