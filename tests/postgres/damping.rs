//! Failed logins that come too often from one source: their answers are held back, and nobody else's are.

use super::auth_query;
use crate::support::watch::metric;
use crate::support::{Config, Db, Files, Login, PATIENCE, Proxy, Refused, Reply, Wire, signal, until};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any test: who waits for it has not been answered.
const NEVER: &str = "10m";

fn source(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

fn config(method: &str, burst: u32, delay: &str) -> Config {
    Config::of_size(2)
        .with("auth", &format!("method = \"{method}\""))
        .with("auth", &format!("failure_burst = {burst}"))
        .with("auth", &format!("failure_delay = \"{delay}\""))
        .with("user.app", "password = \"secret\"")
}

fn log_in(from: Ipv4Addr, to: SocketAddr, login: &Login) -> Result<Wire, Refused> {
    Wire::open_from(from, to).map_err(Refused::Io)?.log_in(login)
}

/// What a client is told that must not be let in, and after which time.
fn refused(from: Ipv4Addr, to: SocketAddr, login: &Login) -> (Reply, Duration) {
    let start = Instant::now();
    match log_in(from, to, login) {
        Err(Refused::Said(reply)) => (reply, start.elapsed()),
        Err(Refused::Io(error)) => panic!("{error}"),
        Ok(_) => panic!("the login was accepted"),
    }
}

fn damped(proxy: &Proxy, outcome: &str) -> f64 {
    metric(proxy, &format!("bursar_login_failures_damped_total{{outcome=\"{outcome}\"}}"))
}

fn failed(proxy: &Proxy) -> f64 {
    metric(proxy, "bursar_logins_total{result=\"auth\"}")
}

#[test]
fn guesses_are_not_answered_at_once_and_good_logins_are() {
    const BURST: u32 = 3;
    /// A quarter of `listen.max_logins`.
    const HELD: u32 = 20;
    let db = Db::new();
    // Fewer where a guess is dear for who makes it.
    for (method, guesses) in [("scram-sha-256", 30), ("md5", 100), ("plain", 100)] {
        let config = config(method, BURST, NEVER).with("listen", "max_logins = 80");
        let proxy = Proxy::start(&db, config.with("listen", "login_timeout = \"20m\""));
        let (to, good, wrong) =
            (proxy.addr(), proxy.as_app().password("secret"), proxy.as_app().password("x"));
        let guess = |_: u32| {
            let wire = Wire::open_from(source(2), to).expect("a connection");
            let hang_up = wire.handle();
            let wrong = wrong.clone();
            (hang_up, thread::spawn(move || wire.log_in(&wrong)))
        };
        let made: Vec<(TcpStream, _)> = (0..guesses).map(guess).collect();
        until("all are found to be wrong", || failed(&proxy) == f64::from(guesses));
        until("more than may wait are closed", || {
            damped(&proxy, "closed") == f64::from(guesses - BURST - HELD)
        });

        // While they wait, who is right comes in: from the same source, and from another one also after an error.
        for (from, errors) in [(2, 0), (1, 1)] {
            for _ in 0..errors {
                assert_eq!(refused(source(from), to, &wrong).0.code(), "28P01", "{method}");
            }
            let mut client = log_in(source(from), to, &good).unwrap_or_else(|error| panic!("{error:?}"));
            assert_eq!(client.query("select current_user").value(), "app", "{method}");
            client.bye();
        }
        assert_eq!(damped(&proxy, "answered") + damped(&proxy, "gone"), 0.0, "{method}");
        assert_eq!(proxy.log().matches("answers to them are held back").count(), 1, "{}", proxy.log());
        assert!(proxy.log().contains("source=127.0.0.2 failures=4"), "{}", proxy.log());

        // Those who hang up are rid of at once.
        for (hang_up, _) in &made {
            let _ = hang_up.shutdown(Shutdown::Both);
        }
        until("all have gone", || damped(&proxy, "gone") == f64::from(HELD));
        let answers = made.into_iter().map(|(_, login)| login.join().expect("no panic"));
        let told = answers.filter(|login| match login {
            Err(Refused::Said(reply)) => reply.code() == "28P01",
            Err(Refused::Io(_)) => false,
            Ok(_) => panic!("a guess was right"),
        });
        assert_eq!(told.count(), BURST as usize, "{method}");
        proxy.stop();
    }
}

#[test]
fn whoever_fails_waits_alike() {
    let db = Db::within(auth_query::strict());
    let mut waiting = Vec::new();
    for method in ["scram-sha-256", "md5", "plain"] {
        // The users of the configuration, and those of the server.
        for base in [Config::of_size(1).with("user.app", "password = \"secret\""), auth_query::config(method)]
        {
            let config = base.with("auth", &format!("method = \"{method}\""));
            let config = config.with("auth", "failure_burst = 0").with("auth", "failure_delay = \"1s\"");
            let config = config.with("listen", "login_timeout = \"1m\"");
            let proxy = Proxy::start(&db, config);
            let attempts: Vec<_> = ["app", "scram_user", "nobody"]
                .into_iter()
                .enumerate()
                .map(|(n, user)| {
                    let (to, login) = (proxy.addr(), Login::new(user, db.name()).password("wrong"));
                    thread::spawn(move || refused(source(10 + n as u8), to, &login))
                })
                .collect();
            waiting.push((proxy, attempts));
        }
    }
    for (proxy, attempts) in waiting {
        let seen: Vec<_> = attempts.into_iter().map(|attempt| attempt.join().expect("no panic")).collect();
        for (reply, took) in &seen {
            assert_eq!(reply.code(), "28P01");
            assert_eq!(reply.trace(), seen[0].0.trace());
            assert!(*took >= Duration::from_secs(1), "{took:?}");
        }
        assert_eq!(damped(&proxy, "answered"), 3.0);
        proxy.stop();
    }
}

#[test]
fn certificates_and_users_of_the_system_are_guesses_too() {
    let db = Db::new();
    let files = Files::new();
    let dir = tempfile::tempdir().expect("a directory");
    let rules = "rule = [{ connection = \"hostssl\", method = \"cert\" }, { connection = \"local\", method = \"peer\" }]";
    let config = files.towards_clients(config("hba", 0, "1s"), "verify-ca").with("auth", rules);
    let proxy = Proxy::start(&db, config.with("listen", &format!("unix_dir = \"{}\"", dir.path().display())));
    let port = proxy.addr().port();
    until("the socket takes connections", || {
        UnixStream::connect(dir.path().join(format!(".s.PGSQL.{port}"))).is_ok()
    });
    let (cert, key) = (files.path("app.crt"), files.path("app.key"));
    let shown = format!("host=127.0.0.1 sslmode=require sslcert={} sslkey={}", cert.display(), key.display());
    for (more, told) in [
        (shown, "certificate authentication failed for user \"plain_user\""),
        (format!("host={}", dir.path().display()), "Peer authentication failed for user \"plain_user\""),
    ] {
        let log_in = |user: &str| {
            let parameters =
                format!("{more} port={port} user={user} dbname={} gssencmode=disable", db.name());
            let mut psql = Command::new(db.cluster().program("psql"));
            let psql = psql.args(["-X", "-w", "-d", &parameters, "-c", "select 1"]).env("LC_ALL", "C");
            psql.output().expect("psql runs")
        };
        let before = damped(&proxy, "answered");
        let said = String::from_utf8_lossy(&log_in("plain_user").stderr).into_owned();
        assert!(said.contains(told), "{said}");
        assert_eq!(damped(&proxy, "answered"), before + 1.0, "{told}");
    }
    // Nobody is guessing who is not let in whoever he is.
    let client = proxy.as_app();
    for _ in 0..3 {
        assert_eq!(refused(source(5), proxy.addr(), &client).0.code(), "28000");
    }
    assert_eq!(damped(&proxy, "answered"), 2.0);
    proxy.stop();
}

#[test]
fn it_takes_no_longer_than_a_login_and_holds_up_no_leaving() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, config("md5", 0, NEVER).with("listen", "login_timeout = \"1s\""));
    let wrong = proxy.as_app().password("wrong");
    let (reply, took) = refused(source(1), proxy.addr(), &wrong);
    assert_eq!(reply.code(), "28P01");
    assert!(took >= Duration::from_secs(1) && took < PATIENCE, "{took:?}");

    proxy.change("listen", "login_timeout = \"20m\"");
    signal(proxy.pid(), "HUP");
    until("it is in force", || metric(&proxy, "bursar_reloads_total{result=\"ok\"}") == 1.0);
    let waits = {
        let (to, wrong) = (proxy.addr(), wrong.clone());
        thread::spawn(move || refused(source(3), to, &wrong))
    };
    until("it waits", || proxy.log().contains("source=127.0.0.3"));
    signal(proxy.pid(), "TERM");
    let (reply, took) = waits.join().expect("no panic");
    assert_eq!(reply.code(), "28P01");
    assert!(took < PATIENCE, "{took:?}");
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn it_can_be_turned_off() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, config("md5", 0, NEVER));
    Wire::login(proxy.addr(), &proxy.as_app().password("secret")).bye();
    proxy.change("auth", "failure_delay = \"off\"");
    signal(proxy.pid(), "HUP");
    until("it is in force", || metric(&proxy, "bursar_reloads_total{result=\"ok\"}") == 1.0);
    for _ in 0..20 {
        let wrong = proxy.as_app().password("wrong");
        assert_eq!(refused(source(1), proxy.addr(), &wrong).0.code(), "28P01");
    }
    for outcome in ["answered", "gone", "closed"] {
        assert_eq!(damped(&proxy, outcome), 0.0);
    }
    proxy.stop();
}
