//! Clients that mean harm, or too many of them, before anybody has logged in.

use crate::support::{Config, Db, Proxy, Wire, until};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use std::net::TcpStream;

/// Lets a process have so many descriptors, from now on.
fn limit_descriptors(proxy: &Proxy, to: u64) {
    let pid = Pid::from_raw(proxy.pid().cast_signed()).expect("a process");
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(to), maximum }).expect("a limit");
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
    let crowd: Vec<TcpStream> =
        (0..LIMIT * 2).map(|_| TcpStream::connect(proxy.addr()).expect("connected")).collect();
    until("the descriptors are used up", || complaints() == 1);
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
