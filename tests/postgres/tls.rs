//! TLS on both sides: every mode against every kind of client and server, what slips in between, large
//! transfers, cancels, and certificates that change under way (wire.md F; PostgreSQL, "SSL Support").

use crate::support::watch::metric;
use crate::support::{Cluster, Config, Db, Files, PATIENCE, Proxy, msg, signal, until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A server that has TLS, with a certificate of `files`.
struct Encrypted {
    cluster: Cluster,
    files: Files,
}

/// For all tests of this file. `only_tls` may not log in without, `never_tls` not with it.
fn encrypted() -> &'static Encrypted {
    static SHARED: OnceLock<Encrypted> = OnceLock::new();
    SHARED.get_or_init(|| {
        let (cluster, files) = (Cluster::new(), Files::new());
        cluster.admin().batch("create role only_tls login; create role never_tls login");
        let hba = "hostnossl all only_tls 127.0.0.1/32 reject\nhostssl all never_tls 127.0.0.1/32 reject\n";
        cluster.encrypt(&files.read("server.crt"), &files.read("server.key"), hba);
        Encrypted { cluster, files }
    })
}

/// psql before this proxy, with more connection parameters.
fn psql(db: &Db<'_>, proxy: &Proxy, more: &str) -> Command {
    let mut command = Command::new(db.cluster().program("psql"));
    let (port, name) = (proxy.addr().port(), db.name());
    let parameters = format!("host=127.0.0.1 port={port} user=app dbname={name} gssencmode=disable {more}");
    command.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &parameters]).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(mut command: Command) -> Output {
    command.spawn().expect("psql starts").wait_with_output().expect("psql ends")
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// `tls`, `plain` or `refused`: what becomes of a client, as the console says.
fn outcome(db: &Db<'_>, proxy: &Proxy, parameters: &str) -> &'static str {
    let mut command = psql(db, proxy, &format!("application_name=asked {parameters}"));
    let mut running = command.args(["-c", "select 1", "-c", "\\! cat"]).stdin(Stdio::piped()).spawn();
    let running = running.as_mut().expect("psql starts");
    let mut said = [0; 2];
    let answered = running.stdout.as_mut().expect("piped").read_exact(&mut said).is_ok();
    let seen = if answered {
        assert_eq!(&said, b"1\n");
        let clients = proxy.console().query("show clients");
        let at = |wanted: &str| clients.columns().iter().position(|name| name == wanted).expect("a column");
        let (name, tls) = (at("application_name"), at("tls"));
        let row = clients.rows().into_iter().find(|row| row[name].as_deref() == Some("asked"));
        let row = row.expect("psql is there");
        match row[tls].as_deref() {
            Some("") => "plain",
            Some(tls) => {
                assert!(tls.starts_with("TLSv1_3/TLS13_"), "{tls}");
                "tls"
            }
            None => panic!("no column"),
        }
    } else {
        "refused"
    };
    drop(running.stdin.take());
    running.wait().expect("psql ends");
    seen
}

#[test]
fn clients_come_in_as_both_sides_want_it() {
    let (db, files) = (Db::new(), Files::new());
    let path = |name: &str| files.path(name).display().to_string();
    let known = format!("sslcert={} sslkey={}", path("client.crt"), path("client.key"));
    let unknown = format!("sslcert={} sslkey={}", path("stranger.crt"), path("stranger.key"));
    let trusting = format!("sslmode=verify-full sslrootcert={}", path("ours.crt"));
    let doubting = format!("sslmode=verify-ca sslrootcert={}", path("others.crt"));
    let kinds: [(&str, String); 7] = [
        ("sslmode=disable", "sslmode=disable".into()),
        ("sslmode=prefer", "sslmode=prefer sslcert=/none".into()),
        ("sslmode=require", "sslmode=require sslcert=/none".into()),
        ("sslmode=verify-full", trusting.clone()),
        ("another authority", doubting),
        ("with a certificate", format!("sslmode=require {known}")),
        ("with a stranger's", format!("sslmode=require {unknown}")),
    ];
    let table = [
        ("disable", ["plain", "plain", "refused", "refused", "refused", "refused", "refused"]),
        ("allow", ["plain", "tls", "tls", "tls", "refused", "tls", "tls"]),
        ("prefer", ["plain", "tls", "tls", "tls", "refused", "tls", "tls"]),
        ("require", ["refused", "tls", "tls", "tls", "refused", "tls", "tls"]),
        ("verify-ca", ["refused", "refused", "refused", "refused", "refused", "tls", "refused"]),
        ("verify-full", ["refused", "refused", "refused", "refused", "refused", "tls", "refused"]),
    ];
    for (mode, wanted) in table {
        let config = Config::of_size(2);
        // The console is for whoever asks in the clear, here.
        let config = if mode == "disable" { config } else { files.towards_clients(config, mode) };
        let proxy = Proxy::start(&db, config);
        for ((name, parameters), wanted) in kinds.iter().zip(wanted) {
            if wanted != "refused" && !matches!(mode, "disable" | "allow" | "prefer") {
                // Nobody looks at the console in the clear: the question is whether it is answered.
                let answered = run({
                    let mut command = psql(&db, &proxy, parameters);
                    command.args(["-c", "select 1"]);
                    command
                });
                assert_eq!(out(&answered), "1", "{mode}, {name}");
                continue;
            }
            assert_eq!(outcome(&db, &proxy, parameters), wanted, "{mode}, {name}");
        }
        proxy.stop();
    }
}

#[test]
fn a_client_in_the_clear_is_told_what_to_do() {
    let (db, files) = (Db::new(), Files::new());
    let proxy = Proxy::start(&db, files.towards_clients(Config::one_backend(), "require"));
    let mut command = psql(&db, &proxy, "sslmode=disable");
    command.args(["-c", "select 1"]);
    let error = String::from_utf8_lossy(&run(command).stderr).into_owned();
    assert!(error.contains("FATAL:  bursar: connections without TLS are not let in"), "{error}");
    assert!(error.contains("Connect with sslmode=require"), "{error}");
    proxy.stop();
}

#[test]
fn what_is_slipped_in_behind_a_request_is_not_heard() {
    let (db, files) = (Db::new(), Files::new());
    let proxy = Proxy::start(&db, files.towards_clients(Config::one_backend(), "allow"));
    let mut stream = TcpStream::connect(proxy.addr()).expect("connects");
    // SSLRequest, and in the same packet what somebody in between would have the server hear.
    let mut sent = vec![0, 0, 0, 8, 4, 210, 22, 47];
    let startup = b"\0\x03\0\0user\0app\0database\0x\0\0";
    sent.extend_from_slice(&(startup.len() as u32 + 4).to_be_bytes());
    sent.extend_from_slice(startup);
    stream.write_all(&sent).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an end");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with('S') && answer.contains("received unencrypted data after SSL request"));
    assert!(answer.contains("08P01") && !answer.contains("server_version"), "{answer}");
    proxy.stop();
}

#[test]
fn a_handshake_that_is_none_ends_alone() {
    let (db, files) = (Db::new(), Files::new());
    let config = files.towards_clients(Config::one_backend(), "allow");
    let proxy = Proxy::start(&db, config.with("listen", "login_timeout = \"1s\""));
    let mut client = proxy.connect();
    // Silence, nonsense, and direct TLS that is none: each is closed, and nobody else notices.
    for words in [&b""[..], b"nonsense that is no ClientHello", b"\x16\x03\x01\x00\x05hello"] {
        let mut stream = TcpStream::connect(proxy.addr()).expect("connects");
        if words.first() != Some(&0x16) {
            stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).expect("sent");
            let mut answer = [0];
            stream.read_exact(&mut answer).expect("an answer");
            assert_eq!(&answer, b"S");
        }
        stream.write_all(words).expect("sent");
        let mut rest = Vec::new();
        // An alert, or a connection that is reset under what was not read.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 64, "{rest:?}");
        assert_eq!(client.query("select 1").value(), "1");
    }
    until("they are counted", || {
        metric(&proxy, "bursar_logins_total{result=\"tls\"}") == 2.0
            && metric(&proxy, "bursar_logins_total{result=\"timeout\"}") == 1.0
    });
    proxy.stop();
}

#[test]
fn passwords_are_bound_to_the_connection() {
    let (db, files) = (Db::new(), Files::new());
    let config = files.towards_clients(Config::one_backend(), "allow");
    let config = config.with("auth", "method = \"scram-sha-256\"").with("user.app", "password = \"secret\"");
    let proxy = Proxy::start(&db, config);
    for (password, parameters, wanted) in [
        ("secret", "sslmode=require channel_binding=require", Ok("1")),
        ("secret", "sslmode=require channel_binding=prefer", Ok("1")),
        ("secret", "sslmode=require channel_binding=disable", Ok("1")),
        ("secret", "sslmode=disable", Ok("1")),
        ("secret", "sslmode=disable channel_binding=require", Err("channel binding required")),
        ("wrong", "sslmode=require channel_binding=require", Err("password authentication failed")),
    ] {
        let mut command = psql(&db, &proxy, &format!("{parameters} sslcert=/none"));
        let output = run({
            command.args(["-c", "select 1"]).env("PGPASSWORD", password);
            command
        });
        match wanted {
            Ok(answer) => assert_eq!(out(&output), answer, "{parameters}"),
            Err(why) => {
                let error = String::from_utf8_lossy(&output.stderr);
                assert!(!output.status.success() && error.contains(why), "{parameters}: {error}");
            }
        }
    }
    proxy.stop();
}

#[test]
fn bursar_binds_its_own_password_too() {
    let server = encrypted();
    let db = Db::within(&server.cluster);
    let config = Config::one_backend().with("tls.server", "mode = \"require\"");
    let config = config.with("database.\"*\"", "user = \"scram_user\"");
    let good = config.clone().with("database.\"*\"", "password = \"scram_user\"");
    assert_eq!(backend_of(&db, good, "app"), "t");
    let bad = config.with("database.\"*\"", "password = \"another\"");
    assert!(backend_of(&db, bad, "app").contains("password authentication failed"));
}

/// Whether the backend of a role is encrypted; `refused` with what the client is told.
fn backend_of(db: &Db<'_>, config: Config, role: &str) -> String {
    let proxy = Proxy::start(db, config.with("pool", "max_wait = \"5s\""));
    let mut command = psql(db, &proxy, &format!("sslmode=disable user={role}"));
    command.args(["-c", "select ssl from pg_stat_ssl where pid = pg_backend_pid()"]);
    let output = run(command);
    let seen = match output.status.success() {
        true => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        false => format!("refused: {}", String::from_utf8_lossy(&output.stderr)),
    };
    proxy.stop();
    seen
}

#[test]
fn servers_are_connected_to_as_both_sides_want_it() {
    let server = encrypted();
    let (secure, plain) = (Db::within(&server.cluster), Db::new());
    let config = |mode: &str, ca: &str| {
        let config = Config::one_backend().with("tls.server", &format!("mode = \"{mode}\""));
        let file = |ca| format!("ca_file = \"{}\"", server.files.path(ca).display());
        if ca.is_empty() { config } else { config.with("tls.server", &file(ca)) }
    };
    for (db, role, mode, ca, wanted) in [
        (&secure, "app", "disable", "", "f"),
        (&secure, "app", "allow", "", "f"),
        (&secure, "app", "prefer", "", "t"),
        (&secure, "app", "require", "", "t"),
        (&secure, "app", "verify-ca", "ours.crt", "t"),
        (&secure, "app", "verify-full", "ours.crt", "t"),
        (&secure, "app", "verify-ca", "others.crt", "refused"),
        (&secure, "app", "verify-full", "others.crt", "refused"),
        (&secure, "only_tls", "disable", "", "refused"),
        (&secure, "only_tls", "allow", "", "t"),
        (&secure, "only_tls", "prefer", "", "t"),
        (&secure, "never_tls", "prefer", "", "f"),
        (&secure, "never_tls", "require", "", "refused"),
        (&plain, "app", "prefer", "", "f"),
        (&plain, "app", "allow", "", "f"),
        (&plain, "app", "require", "", "refused"),
    ] {
        let seen = backend_of(db, config(mode, ca), role);
        assert!(seen.starts_with(wanted), "{role}, {mode}, {ca}: {seen}");
        if wanted == "refused" && role == "app" {
            let why = if std::ptr::eq(db, &plain) { "the server does not offer TLS" } else { "certificate" };
            assert!(seen.contains("57P03") || seen.contains(why), "{seen}");
        }
    }
}

#[test]
fn a_database_may_have_its_own_tls() {
    let server = encrypted();
    let db = Db::within(&server.cluster);
    let file = |ca: &str| format!("ca_file = \"{}\"", server.files.path(ca).display());
    let towards = |table: &str, ca: &str| {
        let config = Config::one_backend().with("tls.server", "mode = \"require\"");
        let config = config.with("tls.server", &file("others.crt"));
        let port = format!("port = {}", server.cluster.addr().port());
        let config =
            config.with("database.mine", &port).with("database.mine", &format!("dbname = \"{}\"", db.name()));
        config.with(table, "mode = \"verify-full\"").with(table, &file(ca))
    };
    let asked = |config: Config, name: &str| {
        let proxy = Proxy::start(&db, config.with("pool", "max_wait = \"5s\""));
        let mut command = psql(&db, &proxy, &format!("sslmode=disable dbname={name}"));
        command.args(["-c", "select ssl from pg_stat_ssl where pid = pg_backend_pid()"]);
        let output = run(command);
        let seen = if output.status.success() { output.stdout } else { output.stderr };
        proxy.stop();
        String::from_utf8_lossy(&seen).trim().to_owned()
    };
    // Only what is written there is otherwise, and only there.
    assert_eq!(asked(towards("database.mine.tls", "ours.crt"), "mine"), "t");
    assert!(asked(towards("database.mine.tls", "others.crt"), "mine").contains("cannot be reached"));
    assert_eq!(asked(towards("database.mine.tls", "others.crt"), db.name()), "t");
    // Who has no table is what "*" is; and a table starts from that.
    assert_eq!(asked(towards("database.\"*\".tls", "ours.crt"), db.name()), "t");
    assert!(asked(towards("database.\"*\".tls", "others.crt"), db.name()).contains("cannot be reached"));
    assert!(asked(towards("database.\"*\".tls", "others.crt"), "mine").contains("cannot be reached"));
}

#[test]
fn much_goes_both_ways_and_cancels_arrive() {
    let server = encrypted();
    let db = Db::within(&server.cluster);
    let config = Config::of_size(2).lazy().with("tls.server", "mode = \"require\"");
    let proxy = Proxy::start(&db, server.files.towards_clients(config, "require"));
    let tls = "sslmode=require sslcert=/none";

    db.run(&["create table t (i int, v text)"]);
    let rows: String = (0..200_000).map(|i| format!("{i}\t{}\n", "x".repeat(i % 97))).collect();
    let mut command = psql(&db, &proxy, tls);
    let mut copy = command.args(["-c", "copy t from stdin"]).stdin(Stdio::piped()).spawn().expect("psql");
    copy.stdin.take().expect("piped").write_all(rows.as_bytes()).expect("rows");
    assert_eq!(out(&copy.wait_with_output().expect("psql ends")), "COPY 200000");
    let mut command = psql(&db, &proxy, tls);
    command.args(["-c", "copy (select * from t order by i) to stdout"]);
    assert!(out(&run(command)) == rows.trim(), "what went in comes out");
    let mut command = psql(&db, &proxy, tls);
    command.args(["-c", "select repeat('y', 20000000)"]);
    assert!(out(&run(command)) == "y".repeat(20_000_000), "one long row");

    let mut servers = psql(&db, &proxy, &format!("{tls} dbname=bursar"));
    servers.args(["-F", " ", "-c", "show servers"]);
    assert!(out(&run(servers)).contains(" TLSv1_3/TLS13_"), "the console says it");

    let mut command = psql(&db, &proxy, tls);
    let running = command.args(["-c", "select pg_sleep(60)"]).spawn().expect("psql starts");
    until("the statement runs", || db.running("pg_sleep") == 1);
    signal(running.id(), "INT");
    let output = running.wait_with_output().expect("psql ends");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("canceling statement due to user request"), "{error}");
    proxy.stop();
}

/// A client of our own over TLS, which reads when it likes.
fn slow_client(proxy: &Proxy, db: &Db<'_>) -> StreamOwned<ClientConnection, TcpStream> {
    let mut stream = TcpStream::connect(proxy.addr()).expect("connects");
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).expect("sent");
    let mut answer = [0];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"S");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut roots = RootCertStore::empty();
    let pem = encrypted().files.read("ours.crt");
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("an authority");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let name = "127.0.0.1".try_into().expect("a name");
    let connection = ClientConnection::new(config.into(), name).expect("a connection");
    let mut client = StreamOwned::new(connection, stream);
    client.write_all(&msg::startup(0, [("user", "app"), ("database", db.name())])).expect("sent");
    read_until_ready(&mut client);
    client
}

/// Reads up to ReadyForQuery; how many bytes that was.
fn read_until_ready(client: &mut impl Read) -> usize {
    let mut total = 0;
    loop {
        let mut head = [0; 5];
        client.read_exact(&mut head).expect("a message");
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; len - 4];
        client.read_exact(&mut body).expect("its body");
        total += len + 1;
        if head[0] == b'Z' {
            return total;
        }
    }
}

#[test]
fn a_slow_reader_gets_the_end_after_its_backend_has_gone_to_others() {
    let db = Db::new();
    let config = Config::one_backend().with("pool", "max_wait = \"300ms\"");
    let proxy = Proxy::start(&db, encrypted().files.towards_clients(config, "allow"));
    let mut slow = slow_client(&proxy, &db);
    let mut other = proxy.connect();
    // The longer the result, the nearer its end is to where the socket takes no more: with some of these
    // the backend is free while the last bytes wait in Bursar, encrypted.
    let mut lent = 0;
    for size in (1..120).map(|n| n * 40_000) {
        slow.write_all(&msg::query(&format!("select repeat('x', {size})"))).expect("sent");
        slow.flush().expect("flushed");
        let free = !other.query("select 1").rows().is_empty();
        assert!(read_until_ready(&mut slow) > size, "all of it arrives");
        if !free && lent > 0 {
            break;
        }
        lent += usize::from(free);
    }
    assert!(lent > 0, "no backend was given back before its client had read all");
    proxy.stop();
}

#[test]
fn a_session_that_ends_says_so_in_tls_too() {
    let db = Db::new();
    let proxy = Proxy::start(&db, encrypted().files.towards_clients(Config::one_backend(), "allow"));
    let mut client = slow_client(&proxy, &db);
    proxy.stop();
    let mut last = Vec::new();
    // An end without close_notify would be an error here (RFC 8446, 6.1).
    client.read_to_end(&mut last).expect("an end that is meant");
    assert!(String::from_utf8_lossy(&last).contains("57P01"), "{last:?}");
}

/// Whether a client that trusts only this authority is let in.
fn trusts(db: &Db<'_>, proxy: &Proxy, ca: &Path) -> bool {
    let mut command = psql(db, proxy, &format!("sslmode=verify-ca sslrootcert={}", ca.display()));
    command.args(["-c", "select 1"]);
    run(command).status.success()
}

#[test]
fn certificates_change_and_sessions_stay() {
    let (db, files, next) = (Db::new(), Files::new(), Files::new());
    let proxy = Proxy::start(&db, files.towards_clients(Config::one_backend(), "allow"));
    let (before, after) = (files.path("ours.crt"), next.path("ours.crt"));
    assert!(trusts(&db, &proxy, &before) && !trusts(&db, &proxy, &after));

    let mut command = psql(&db, &proxy, "sslmode=require sslcert=/none");
    let mut session = command.stdin(Stdio::piped()).spawn().expect("psql starts");
    let (mut asks, mut told) = (session.stdin.take().expect("piped"), session.stdout.take().expect("piped"));
    let mut ask = |number: u8| {
        writeln!(asks, "select {number};").expect("psql listens");
        let mut answer = [0; 2];
        told.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, [b'0' + number, b'\n']);
    };
    ask(1);

    // Half of a change is none: this key is not that certificate's.
    let reloads = |result: &str| metric(&proxy, &format!("bursar_reloads_total{{result=\"{result}\"}}"));
    files.write("server.crt", next.read("server.crt"));
    signal(proxy.pid(), "HUP");
    until("the reload is refused", || reloads("refused") == 1.0);
    assert!(proxy.log().contains("tls.client.key"), "{}", proxy.log());
    assert!(trusts(&db, &proxy, &before), "the old certificate stays in use");

    files.write("server.key", next.read("server.key"));
    signal(proxy.pid(), "HUP");
    until("the reload is done", || reloads("ok") == 1.0);
    assert!(trusts(&db, &proxy, &after) && !trusts(&db, &proxy, &before));
    ask(2);
    drop(asks);
    assert!(session.wait().expect("psql ends").success());
    proxy.stop();
}
