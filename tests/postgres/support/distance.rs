//! A server that is far away: whatever passes takes its time in either direction. What happens in an instant beside
//! a server on the same machine, a client's leaving in the middle of a round trip for one, can be met there.
//!
//! `BURSAR_TEST_FAR=300` puts the server of every test so far away, in microseconds one way: for looking, not part
//! of any check.

use super::dice::number;
use super::ports;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// It listens until it is dropped.
pub(crate) struct Distance {
    addr: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Distance {
    /// The way to the server of a test, if it is to be far away.
    pub(super) fn chosen(server: SocketAddr) -> Option<Distance> {
        let delay = Duration::from_micros(number("BURSAR_TEST_FAR", 0));
        (!delay.is_zero()).then(|| Distance::to(server, delay))
    }

    /// The way to `server`, which takes so long in each direction.
    pub(crate) fn to(server: SocketAddr, delay: Duration) -> Distance {
        let listener = TcpListener::bind(("127.0.0.1", ports::free())).expect("a free port");
        let addr = listener.local_addr().expect("its address");
        let over = Arc::new(AtomicBool::new(false));
        let end = over.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().take_while(|_| !end.load(Ordering::Relaxed)).flatten() {
                // Where there is no server, the connection ends.
                let Ok(far) = TcpStream::connect(server) else { continue };
                let back = (far.try_clone().expect("a socket"), near.try_clone().expect("a socket"));
                std::thread::spawn(move || carry(near, far, delay));
                std::thread::spawn(move || carry(back.0, back.1, delay));
            }
        });
        Distance { addr, over }
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr);
    }
}

/// One direction, to its end.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let mut bytes = [0; 65_536];
    let _ = to.set_nodelay(true);
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        std::thread::sleep(delay);
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Write), from.shutdown(Shutdown::Read));
}
