//! The first bytes of a connection: negotiation, parameters, and everything that is not a start-up
//! packet (wire.md F).

use crate::support::msg::{self, gss_request, packet, ssl_request, startup};
use crate::support::{Config, Db, Proxy, Reply, Wire};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

fn start() -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(&["create schema elsewhere"]);
    let proxy = Proxy::start(&db, Config::one_backend());
    (db, proxy)
}

/// What is said to these first bytes, up to ReadyForQuery or the end.
fn say(addr: SocketAddr, bytes: &[u8]) -> Reply {
    let mut wire = Wire::open(addr).expect("a connection");
    // The other side may close while we still write.
    let _ = wire.try_send(bytes);
    wire.recv_reply()
}

/// Everything but what differs from session to session.
fn without_key(reply: &Reply) -> Vec<String> {
    reply.messages.iter().filter(|m| m.kind != b'K').map(|m| format!("{m:?}")).collect()
}

#[test]
fn encryption_is_declined_and_login_goes_on() {
    let (db, proxy) = start();
    let login = || startup(0, [("user", "app"), ("database", db.name())]);
    for requests in [
        vec![ssl_request()],
        vec![gss_request()],
        vec![ssl_request(), gss_request()],
        vec![gss_request(), ssl_request()],
    ] {
        let mut wire = Wire::open(proxy.addr()).expect("a connection");
        for request in &requests {
            wire.send(request);
            assert_eq!(wire.recv_byte(), Some(b'N'));
        }
        wire.send(&login());
        let reply = wire.recv_reply();
        assert!(reply.trace().starts_with("R ") && reply.trace().ends_with(" K Z(I)"), "{reply:?}");
        assert_eq!(wire.query("select 1").value(), "1");
    }
    proxy.stop();
}

#[test]
fn login_says_what_postgresql_says() {
    let (db, proxy) = start();
    for parameters in [
        vec![],
        vec![("application_name", "probe")],
        vec![("TIMEZONE", "Asia/Tokyo"), ("datestyle", "iso, dmy")],
        vec![("client_encoding", "'utf-8'")],
        vec![("client_encoding", "LATIN1")],
        vec![("application_name", "first"), ("application_name", "last")],
    ] {
        let all = [("user", "app"), ("database", db.name())].into_iter().chain(parameters.clone());
        let packet = startup(0, all);
        let (direct, proxied) = (say(db.cluster().addr(), &packet), say(proxy.addr(), &packet));
        let sorted = |reply| {
            let mut lines = without_key(reply);
            lines.sort();
            lines
        };
        assert_eq!(sorted(&proxied), sorted(&direct), "{parameters:?}");
    }
    proxy.stop();
}

#[test]
fn startup_parameters_are_in_force_for_this_session_alone() {
    let (db, proxy) = start();
    for (name, value, setting, shown) in [
        ("application_name", "probe", "application_name", "probe"),
        ("search_path", "elsewhere", "search_path", "elsewhere"),
        ("statement_timeout", "5000", "statement_timeout", "5s"),
        ("extra_float_digits", "2", "extra_float_digits", "2"),
        ("options", "-c work_mem=3MB", "work_mem", "3MB"),
        ("options", "--application_name=a\\ b", "application_name", "a b"),
        ("TimeZone", "Asia/Tokyo", "timezone", "Asia/Tokyo"),
    ] {
        let show = format!("show {setting}");
        let mut plain = proxy.connect();
        let before = plain.query(&show).value();
        plain.bye();
        let login = proxy.as_app().with(name, value);
        assert_eq!(Wire::login(db.cluster().addr(), &login).query(&show).value(), shown, "PostgreSQL itself");
        let mut with = Wire::login(proxy.addr(), &login);
        assert_eq!(with.query(&show).value(), shown, "{name}={value}");
        with.bye();
        let mut after = proxy.connect();
        assert_eq!(after.query(&show).value(), before, "after {name}={value}");
        after.bye();
    }
    proxy.stop();
}

#[test]
fn bad_startup_parameters_are_the_clients_own_trouble() {
    let (db, proxy) = start();
    let mut bystander = proxy.connect();
    let pid = bystander.query("select pg_backend_pid()").value();
    for (name, value) in
        [("work_mem", "much"), ("no_such_setting", "1"), ("TimeZone", "Mars"), ("client_encoding", "x")]
    {
        let packet = startup(0, [("user", "app"), ("database", db.name()), (name, value)]);
        let (direct, proxied) = (say(db.cluster().addr(), &packet), say(proxy.addr(), &packet));
        let error = |reply: &Reply| reply.error().map(|e| (e.to_string(), e.field(b'M')));
        assert_eq!(error(&proxied), error(&direct), "{name}={value}: {proxied:?}");
        assert!(proxied.closed);
    }
    assert_eq!(bystander.query("select pg_backend_pid()").value(), pid, "its backend was not punished");
    bystander.bye();
    proxy.stop();
}

#[test]
fn versions_are_negotiated() {
    let (db, proxy) = start();
    let login = |minor, extra: &[(&'static str, &'static str)]| {
        let all = [("user", "app"), ("database", db.name())].into_iter().chain(extra.iter().copied());
        say(proxy.addr(), &startup(minor, all))
    };
    let negotiation = |reply: &Reply| reply.messages.iter().find(|m| m.kind == b'v').map(|m| m.body.clone());
    let key = |reply: &Reply| reply.messages.iter().find(|m| m.kind == b'K').map_or(0, |m| m.body.len() - 4);

    let old = login(0, &[]);
    assert_eq!((negotiation(&old), key(&old)), (None, 4));
    let new = login(2, &[]);
    assert_eq!(negotiation(&new), None);
    assert!((5..=256).contains(&key(&new)), "protocol 3.2 has longer keys: {}", key(&new));
    let newer = login(9, &[]);
    assert_eq!(newer.messages[0].kind, b'v', "before authentication: {newer:?}");
    assert_eq!(negotiation(&newer), Some([0x0003_0002u32.to_be_bytes(), [0; 4]].concat()));
    let option = login(0, &[("_pq_.strange", "on")]);
    let expected = [&0x0003_0000u32.to_be_bytes()[..], &1u32.to_be_bytes(), b"_pq_.strange\0"].concat();
    assert_eq!(negotiation(&option), Some(expected));
    for reply in [old, new, newer, option] {
        assert!(reply.trace().ends_with("Z(I)"), "{reply:?}");
    }
    proxy.stop();
}

/// With PostgreSQL's own SQLSTATE, where it says anything at all.
#[test]
fn what_is_no_startup_packet_is_refused_as_postgresql_does() {
    let (db, proxy) = start();
    let good = startup(0, [("user", "app"), ("database", db.name())]);
    let body = |body: &[u8]| packet(0x0003_0000, body);
    let long = "x".repeat(10_100);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("half a length", vec![0, 0]),
        ("length 0", vec![0, 0, 0, 0]),
        ("length 7", vec![0, 0, 0, 7, 0, 3, 0]),
        ("negative length", vec![0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("TLS without asking", vec![0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]),
        ("too long", startup(0, [("user", "app"), ("application_name", long.as_str())])),
        ("no user", startup(0, [("database", db.name())])),
        ("an empty user", startup(0, [("user", ""), ("database", db.name())])),
        ("no terminator", body(b"user\0app\0")),
        ("bytes behind the terminator", body(b"user\0app\0database\0app\0\0x")),
        ("a name without a value", body(b"user\0app\0database\0")),
        ("nothing but a version", body(b"")),
        ("cut off", good[..good.len() - 3].to_vec()),
        ("SSLRequest twice", [ssl_request(), ssl_request()].concat()),
    ];
    for (name, bytes) in cases {
        let half_close = |addr| {
            let mut wire = Wire::open(addr).expect("a connection");
            let _ = wire.try_send(&bytes);
            wire.half_close();
            let mut answer = Vec::new();
            while answer.len() < 2 && bytes.starts_with(&ssl_request()) {
                let Some(byte) = wire.recv_byte() else { break };
                answer.push(byte);
                if answer == b"N" {
                    break;
                }
            }
            let rest = wire.recv_to_end();
            let errors: Vec<String> =
                rest.messages.iter().map(|m| format!("{m} {:?}", m.field(b'M'))).collect();
            (answer, errors)
        };
        assert_eq!(half_close(proxy.addr()), half_close(db.cluster().addr()), "{name}");
    }
    // Whoever comes in order is served.
    assert_eq!(proxy.connect().query("select 1").value(), "1");
    proxy.stop();
}

#[test]
fn login_has_a_deadline() {
    const DEADLINE: Duration = Duration::from_millis(300);
    let db = Db::new();
    let config = Config::one_backend()
        .with("listen", "login_timeout = \"300ms\"")
        .with("auth", "method = \"scram-sha-256\"")
        .with("user.app", "password = \"secret\"");
    let proxy = Proxy::start(&db, config);
    let login = startup(0, [("user", "app"), ("database", db.name())]);
    for (name, bytes, answer) in [
        ("silence", vec![], None),
        ("half a packet", login[..10].to_vec(), None),
        ("SSLRequest and no more", msg::ssl_request(), Some(b'N')),
        ("no password", login.clone(), Some(b'R')),
    ] {
        let begin = Instant::now();
        let mut wire = Wire::open(proxy.addr()).expect("a connection");
        wire.send(&bytes);
        if answer.is_some() {
            assert_eq!(wire.recv_byte(), answer, "{name}");
        }
        // Closed, with or without a last word.
        while wire.recv_byte().is_some() {}
        let took = begin.elapsed();
        assert!(
            took >= DEADLINE && took < DEADLINE + Duration::from_secs(2),
            "{name}: closed after {took:?}"
        );
    }
    proxy.stop();
}

#[test]
fn slow_logins_make_room_for_others() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().with("listen", "max_logins = 3"));
    let mut here = proxy.connect();
    // As many as may log in at once, who say nothing, or not enough.
    let mut slow: Vec<Wire> = (0..3).map(|_| Wire::open(proxy.addr()).expect("a connection")).collect();
    slow[1].send(b"\0\0\0");
    for round in 0..4 {
        assert_eq!(proxy.connect().query("select 1").value(), "1", "round {round}");
        slow.push(Wire::open(proxy.addr()).expect("a connection"));
    }
    // The first that came went first, and was told so; who had logged in before stays.
    let end = slow[0].recv_to_end();
    assert_eq!(end.trace(), "E(FATAL 53300) EOF");
    let said = |field| end.error().and_then(|error| error.field(field)).expect("a field");
    assert_eq!(said(b'M'), "bursar: too many connections are logging in");
    assert_eq!(said(b'D'), "max_logins=3.");
    assert_eq!(here.query("select 1").value(), "1");
    drop(slow);
    proxy.stop();
}
