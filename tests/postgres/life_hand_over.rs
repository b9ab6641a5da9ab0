//! A new process takes over from a running one on the same addresses, and no client is refused or reset
//! (docs/operations.md, "Hand-over").

use crate::support::watch::{bursar, printed, status};
use crate::support::{Config, Db, Login, PATIENCE, Proxy, Wire, eventually, msg, signal, until};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

const TERMINATE: &[u8] = b"X\0\0\0\x04";

fn shared() -> Config {
    Config::of_size(4)
        .lazy()
        .with("listen", "reuse_port = true")
        .with("pool", "max_wait = \"30s\"")
        .with("tenant.\"*\"", "max = \"100%\"")
        .with("drain", "deadline = \"15s\"")
}

fn ends(mut old: Child) {
    let status = eventually("the old process ends", PATIENCE, || old.try_wait().expect("its state"));
    assert_eq!(status.code(), Some(0), "it has drained");
}

/// Connects, asks, and leaves, step by step.
fn come_and_go(addr: SocketAddr, login: &Login) {
    let mut wire = Wire::login(addr, login);
    assert_eq!(wire.query("select 1").trace(), "T D C(SELECT 1) Z(I)");
    // It may have been told to go since.
    let _ = wire.try_send(TERMINATE);
}

/// The same by a Unix socket, all at once.
fn dash_through(socket: &Path, packet: &[u8]) {
    let mut stream = UnixStream::connect(socket).expect("the socket is there");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(&[packet, &msg::query("select 1"), TERMINATE].concat()).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer to its end");
    let done = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
    assert!(answer.windows(done.len()).any(|part| part == done), "{}", answer.escape_ascii());
}

#[test]
fn ten_hand_overs_refuse_and_reset_nobody() {
    let db = Db::new();
    let dir = tempfile::tempdir().expect("a directory");
    let mut proxy =
        Proxy::start(&db, shared().with("listen", &format!("unix_dir = \"{}\"", dir.path().display())));
    let socket = dir.path().join(format!(".s.PGSQL.{}", proxy.addr().port()));
    until("the socket is there", || socket.exists());
    let (addr, login) = (proxy.addr(), proxy.as_app());
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let again = |visit: &dyn Fn()| {
        while !over.load(SeqCst) {
            visit();
            served.fetch_add(1, SeqCst);
        }
    };
    std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(scope.spawn(|| again(&|| come_and_go(addr, &login))));
        }
        for _ in 0..2 {
            clients.push(scope.spawn(|| again(&|| dash_through(&socket, &login.packet()))));
        }
        for _ in 0..10 {
            let before = served.load(SeqCst);
            until("there is traffic", || served.load(SeqCst) > before + 50);
            let old = proxy.start_beside();
            until("both serve", || served.load(SeqCst) > before + 100);
            signal(old.id(), "TERM");
            ends(old);
        }
        over.store(true, SeqCst);
        clients.into_iter().for_each(|client| client.join().expect("nobody is refused or reset"));
    });
    assert!(socket.exists(), "an old process leaves the new one's socket alone");
    proxy.stop();
    assert!(!socket.exists());
}

#[test]
fn the_old_process_finishes_and_the_new_one_answers_probes() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, shared());
    let mut held = proxy.connect();
    held.batch("begin; create table kept (id int)");
    let old = proxy.start_beside();
    signal(old.id(), "TERM");
    until("only the new one answers", || (0..30).all(|_| status(&proxy, "/readyz") == 200));
    assert_eq!(proxy.connect().query("select 1").value(), "1");
    held.send(&msg::query("commit"));
    assert_eq!(held.recv_to_end().trace(), "C(COMMIT) Z(I) E(FATAL 57P01) EOF");
    ends(old);
    assert_eq!(db.value("select count(*) from kept"), "0");
    proxy.stop();
}

/// By default two processes on one port are a mistake.
#[test]
fn without_the_key_a_second_process_does_not_start() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let second = bursar(&["--config", &proxy.config_file().display().to_string()]);
    assert_eq!(second.status.code(), Some(1));
    let said = printed(&second);
    assert!(said.contains(&format!("cannot listen on {}", proxy.addr())), "{said}");
    proxy.stop();
}
