//! What the process tells who started it, as systemd is told (sd_notify(3)).

use crate::support::{Config, Db, PATIENCE, Proxy, msg, signal};
use std::os::unix::net::UnixDatagram;

/// The next datagram that is no sign of life.
fn told(socket: &UnixDatagram) -> String {
    loop {
        let mut buffer = [0; 500];
        let n = socket.recv(&mut buffer).expect("a datagram");
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        if text != "WATCHDOG=1" {
            return text;
        }
    }
}

#[test]
fn a_service_manager_is_told_each_step() {
    let db = Db::new();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut proxy = Proxy::start(&db, Config::one_backend());
    signal(proxy.pid(), "TERM");
    assert_eq!(proxy.wait().code(), Some(0));

    let name = path.display().to_string();
    proxy.start_again_with(&[("NOTIFY_SOCKET", &name), ("WATCHDOG_USEC", "40000")]);
    assert_eq!(told(&socket), "READY=1\nSTATUS=serving");
    let mut busy = proxy.connect();
    busy.batch("begin; select 1");
    for round in 0..3 {
        let mut life = [0; 500];
        let n = socket.recv(&mut life).expect("a sign of life");
        assert_eq!(&life[..n], b"WATCHDOG=1", "round {round}");
    }
    signal(proxy.pid(), "HUP");
    let reloading = told(&socket);
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_default();
    assert!(micros.ends_with("\nSTATUS=reloading"), "{reloading}");
    assert_eq!(told(&socket), "READY=1\nSTATUS=serving");
    // A file that is refused is not the end of it.
    std::fs::write(proxy.config_file(), "nonsense").expect("a bad file");
    signal(proxy.pid(), "HUP");
    assert!(told(&socket).starts_with("RELOADING=1\n"));
    assert_eq!(told(&socket), "READY=1\nSTATUS=serving");

    signal(proxy.pid(), "TERM");
    assert_eq!(told(&socket), "STOPPING=1\nSTATUS=draining");
    busy.send(&msg::query("commit"));
    assert_eq!(busy.recv_to_end().trace(), "C(COMMIT) Z(I) E(FATAL 57P01) EOF");
    assert_eq!(proxy.wait().code(), Some(0));
}
