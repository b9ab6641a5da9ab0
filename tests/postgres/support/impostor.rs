//! A server that is none: it lets everybody in, agrees to every setting, and answers [`BAIT`] with
//! whatever bytes a test gives it.

use super::{msg, ports};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The query that it answers in its own way.
pub(crate) const BAIT: &str = "select 'bait'";

/// What follows the answer.
#[derive(Clone)]
pub(crate) enum Then {
    /// The end of the connection.
    Close,
    /// Nothing, for as long as the other side stays.
    Silence,
    /// These bytes again and again, for as long as the other side takes them.
    Endless(Vec<u8>),
    /// These bytes once [`Impostor::say_on`] is called, to nobody's question.
    OnCue(Vec<u8>),
}

/// What it says, and when.
#[derive(Clone)]
pub(crate) struct Script {
    greeting: Vec<u8>,
    answer: Option<Vec<u8>>,
    then: Then,
}

impl Script {
    /// Lets a client in, and answers its bait so.
    pub(crate) fn answer(bytes: Vec<u8>, then: Then) -> Script {
        let greeting = [
            msg::message(b'R', &[0; 4]),
            msg::message(b'S', b"server_version\x0015.0\0"),
            msg::message(b'K', &[0, 0, 0, 7, 0, 0, 0, 7]),
            msg::message(b'Z', b"I"),
        ];
        Script { greeting: greeting.concat(), answer: Some(bytes), then }
    }

    /// Answers the start-up packet so.
    pub(crate) fn greeting(bytes: Vec<u8>, then: Then) -> Script {
        Script { greeting: bytes, answer: None, then }
    }
}

/// A header that announces whatever length.
pub(crate) fn header(kind: u8, length: i32) -> Vec<u8> {
    [&[kind][..], &length.to_be_bytes()].concat()
}

/// It listens until it is dropped.
pub(crate) struct Impostor {
    addr: SocketAddr,
    over: Arc<AtomicBool>,
    cue: Arc<Cue>,
}

#[derive(Default)]
struct Cue {
    given: AtomicBool,
    /// Connections on which the bytes are out.
    said: AtomicUsize,
}

impl Impostor {
    /// Plays this to everybody who connects.
    pub(crate) fn start(script: Script) -> Impostor {
        let listener = TcpListener::bind(("127.0.0.1", ports::free())).expect("a free port");
        let addr = listener.local_addr().expect("its address");
        let over = Arc::new(AtomicBool::new(false));
        let cue = Arc::new(Cue::default());
        let (end, to_speak) = (over.clone(), cue.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().take_while(|_| !end.load(Ordering::Relaxed)).flatten() {
                let (script, cue) = (script.clone(), to_speak.clone());
                // It ends when the other side has closed, and how is of no interest.
                std::thread::spawn(move || drop(play(stream, &script, &cue)));
            }
        });
        Impostor { addr, over, cue }
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Gives the cue, and waits until one connection has followed it: the bytes have arrived then.
    pub(crate) fn say_on(&self) {
        self.cue.given.store(true, Ordering::Relaxed);
        super::until("the impostor has spoken", || self.cue.said.load(Ordering::Relaxed) > 0);
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr);
    }
}

fn play(mut stream: TcpStream, script: &Script, cue: &Cue) -> std::io::Result<()> {
    // Otherwise what is written last may wait here for an acknowledgement of what was written first.
    stream.set_nodelay(true)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
    stream.read_exact(&mut packet)?;
    let cancel = msg::cancel_request(0, b"");
    if packet[..4] == cancel[4..8] {
        return Ok(());
    }
    stream.write_all(&script.greeting)?;
    if let Some(answer) = &script.answer {
        while !read_message(&mut stream)?.starts_with(BAIT.as_bytes()) {
            let agreed = [msg::message(b'C', b"SET\0"), msg::message(b'Z', b"I")];
            stream.write_all(&agreed.concat())?;
        }
        stream.write_all(answer)?;
    }
    match &script.then {
        Then::Close => return Ok(()),
        Then::Silence => {}
        Then::OnCue(bytes) => {
            super::until("the cue", || cue.given.load(Ordering::Relaxed));
            stream.write_all(bytes)?;
            cue.said.fetch_add(1, Ordering::Relaxed);
        }
        Then::Endless(bytes) => loop {
            stream.write_all(bytes)?;
        },
    }
    let mut rest = [0; 4096];
    while stream.read(&mut rest)? > 0 {}
    Ok(())
}

/// The body of the next one.
fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body)?;
    Ok(body)
}
