//! Clients that mean harm, or too many of them, before anybody has logged in.

use crate::support::watch::metric;
use crate::support::{Config, Db, Proxy, Wire, until, wire};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use std::io::Write;
use std::net::TcpStream;

/// Lets a process have so many descriptors, from now on.
fn limit_descriptors(proxy: &Proxy, to: u64) {
    let pid = Pid::from_raw(proxy.pid().cast_signed()).expect("a process");
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(to), maximum }).expect("a limit");
}

/// Somebody who asks whether there is TLS, and is answered once they have been accepted.
fn asks_for_tls(proxy: &Proxy) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.addr()).expect("connected");
    stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).expect("sent");
    stream.set_nonblocking(true).expect("a socket");
    stream
}

fn is_answered(stream: &TcpStream) -> bool {
    stream.peek(&mut [0]).is_ok_and(|n| n == 1)
}

#[test]
fn out_of_descriptors_it_waits_for_some_and_goes_on() {
    const LIMIT: u64 = 64;
    const COMPLAINT: &str = "cannot accept connections for now";
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    assert_eq!(client.query("select 1").value(), "1");
    let complaints = || proxy.log().matches(COMPLAINT).count();

    limit_descriptors(&proxy, LIMIT);
    // The kernel completes what is not accepted, so none of these fails.
    let mut crowd: Vec<TcpStream> = (0..LIMIT * 2).map(|_| asks_for_tls(&proxy)).collect();
    until("the descriptors are used up", || complaints() == 1);
    // One leaves, another comes in, and there is none left again.
    for _ in 0..8 {
        let answered = |crowd: &[TcpStream]| crowd.iter().filter(|stream| is_answered(stream)).count();
        let (before, at) = (answered(&crowd), crowd.iter().position(is_answered).expect("somebody is in"));
        drop(crowd.remove(at));
        until("another is let in", || answered(&crowd) >= before);
    }
    // Who is in stays in, and it is not said at each attempt.
    for _ in 0..20 {
        assert_eq!(client.query("select pg_sleep(0.05)").code(), "");
    }
    assert_eq!(complaints(), 1, "{}", proxy.log());

    drop(crowd);
    let mut late: Wire = proxy.connect();
    assert_eq!(late.query("select 2").value(), "2");
    drop((client, late));
    proxy.stop();
}

/// Each of these is a connection, a task and a few bytes read; none may be left when it is over.
#[test]
fn floods_of_connects_and_of_cancels_leave_nothing_behind() {
    const EACH: usize = 500;
    let starts = [&b""[..], b"\0", b"\0\0\0\x08\x04\xd2\x16\x2f"];
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    assert_eq!(client.query("select 1").value(), "1");
    let before = descriptors(&proxy);
    let (addr, pid) = (proxy.addr(), client.pid);
    std::thread::scope(|scope| {
        let good = scope.spawn(|| {
            for round in 0..EACH / 5 {
                let mut late = proxy.connect();
                assert_eq!(late.query(&format!("select {round}")).value(), round.to_string());
                assert_eq!(client.query("select 3").value(), "3");
            }
        });
        for first in starts {
            scope.spawn(move || {
                for _ in 0..EACH {
                    let mut stream = TcpStream::connect(addr).expect("connected");
                    stream.write_all(first).expect("room for a few bytes");
                }
            });
        }
        scope.spawn(move || (0..EACH).for_each(|_| wire::cancel(addr, pid, b"nope")));
        good.join().expect("who means well is served meanwhile");
    });
    until("all are gone", || descriptors(&proxy) == before);
    let unknown = metric(&proxy, "bursar_cancels_total{result=\"unknown\"}");
    assert_eq!(unknown, EACH as f64);
    drop(client);
    proxy.stop();
}

/// How many a process has.
fn descriptors(proxy: &Proxy) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).expect("its descriptors").count()
}
