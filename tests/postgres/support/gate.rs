//! A way to a server that can be shut: whoever comes then is turned away, and whoever is through is cut
//! off. Counts who is on the way, so that a test can say how many knocked, and how many at once.

use super::ports;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long it takes to get through, or to be turned away: who comes meanwhile is there at once.
const PASSAGE: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    over: AtomicBool,
    shut: AtomicBool,
    on_the_way: AtomicUsize,
    most: AtomicUsize,
    came: AtomicUsize,
    turned_away: AtomicUsize,
    through: Mutex<Vec<TcpStream>>,
}

/// It listens until it is dropped.
pub(crate) struct Gate {
    addr: SocketAddr,
    state: Arc<State>,
}

impl Gate {
    /// Open, before `server`.
    pub(crate) fn before(server: SocketAddr) -> Gate {
        let listener = TcpListener::bind(("127.0.0.1", ports::free())).expect("a free port");
        let addr = listener.local_addr().expect("its address");
        let state = Arc::new(State::default());
        let own = state.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().take_while(|_| !own.over.load(Ordering::SeqCst)).flatten() {
                let state = own.clone();
                std::thread::spawn(move || state.pass(near, server));
            }
        });
        Gate { addr, state }
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Cuts off whoever is through, and turns away whoever comes.
    pub(crate) fn shut(&self) {
        self.state.shut.store(true, Ordering::SeqCst);
        for stream in self.state.through.lock().expect("not poisoned").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets everybody through again.
    pub(crate) fn open(&self) {
        self.state.shut.store(false, Ordering::SeqCst);
    }

    /// Who has come so far.
    pub(crate) fn came(&self) -> usize {
        self.state.came.load(Ordering::SeqCst)
    }

    /// Who was turned away.
    pub(crate) fn turned_away(&self) -> usize {
        self.state.turned_away.load(Ordering::SeqCst)
    }

    /// The most that were on the way at once, since this was last asked.
    pub(crate) fn take_most(&self) -> usize {
        self.state.most.swap(0, Ordering::SeqCst)
    }
}

impl State {
    fn pass(&self, near: TcpStream, server: SocketAddr) {
        self.came.fetch_add(1, Ordering::SeqCst);
        let now = self.on_the_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(PASSAGE);
        // Before the other side can know, and try again.
        self.on_the_way.fetch_sub(1, Ordering::SeqCst);
        if self.shut.load(Ordering::SeqCst) {
            self.turned_away.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let Ok(far) = TcpStream::connect(server) else { return };
        let mut through = self.through.lock().expect("not poisoned");
        through.extend([near.try_clone(), far.try_clone()].map(|socket| socket.expect("a socket")));
        drop(through);
        let back = (far.try_clone().expect("a socket"), near.try_clone().expect("a socket"));
        std::thread::spawn(move || carry(near, far));
        carry(back.0, back.1);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.shut();
        let _ = TcpStream::connect(self.addr);
    }
}

/// One direction, to its end.
fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0; 65_536];
    let _ = to.set_nodelay(true);
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Write), from.shutdown(Shutdown::Read));
}
