//! Handshakes over loopback with certificates made on the spot: which are accepted, and what a lane may rely on.

use super::*;
use crate::config::{Database, DatabaseTls};
use crate::net::buffers::Buffers;
use crate::net::lane::Lane;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, key: key.serialize_pem(), issuer: Issuer::new(params, key) }
    }

    /// A certificate for these hosts, and its key.
    fn issue(&self, hosts: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let signed = CertificateParams::new(hosts).unwrap().signed_by(&key, &self.issuer).unwrap();
        (signed.pem(), key.serialize_pem())
    }
}

fn secret(pem: &str) -> Option<Secret> {
    Some(Secret::new(pem.to_owned()))
}

fn shows((cert, key): &(String, String), mode: TlsMode) -> TlsSide {
    TlsSide { mode, cert: secret(cert), key: secret(key), ..TlsSide::default() }
}

fn trusts(ca: &str, mode: TlsMode) -> TlsSide {
    TlsSide { mode, ca: secret(ca), ..TlsSide::default() }
}

/// Both ends of a handshake over loopback.
async fn meet(server: &TlsSide, client: &TlsSide, host: &str) -> (io::Result<Stream>, io::Result<Stream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let acceptor = Acceptor::new(server).unwrap().unwrap();
    let connector = Connector::new(client, "tls.server").unwrap();
    let address = listener.local_addr().unwrap();
    let accepts = async { acceptor.accept(Stream::Tcp(listener.accept().await.unwrap().0), true).await };
    let connects = async {
        let mut stream = connector.connect(TcpStream::connect(address).await.unwrap(), host).await?;
        // A server's opinion of a client's certificate comes with its first words (TLS 1.3).
        let mut word = [0];
        stream.read_exact(&mut word).await?;
        Ok(stream)
    };
    let greets = async {
        let mut stream = accepts.await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        Ok(stream)
    };
    tokio::join!(greets, connects)
}

#[tokio::test]
async fn each_mode_accepts_the_certificates_that_libpq_would() {
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let server = shows(&ours.issue(&["localhost", "127.0.0.1"]), TlsMode::Require);
    let other_host = shows(&ours.issue(&["elsewhere"]), TlsMode::Require);
    let itself = shows(&(ours.pem.clone(), ours.key.clone()), TlsMode::Require);
    for (mode, ca, server, host, good) in [
        (TlsMode::Require, &others.pem, &server, "nobody.test", true),
        (TlsMode::Prefer, &others.pem, &other_host, "localhost", true),
        (TlsMode::VerifyCa, &ours.pem, &server, "localhost", true),
        (TlsMode::VerifyCa, &ours.pem, &other_host, "localhost", true),
        (TlsMode::VerifyCa, &others.pem, &server, "localhost", false),
        (TlsMode::VerifyFull, &ours.pem, &server, "localhost", true),
        (TlsMode::VerifyFull, &ours.pem, &server, "127.0.0.1", true),
        (TlsMode::VerifyFull, &ours.pem, &other_host, "localhost", false),
        (TlsMode::VerifyFull, &others.pem, &server, "localhost", false),
        // A certificate of its own making, listed as its own authority.
        (TlsMode::VerifyFull, &ours.pem, &itself, "localhost", true),
        (TlsMode::VerifyCa, &others.pem, &itself, "localhost", false),
    ] {
        let (_, connected) = meet(server, &trusts(ca, mode), host).await;
        assert_eq!(connected.is_ok(), good, "{mode:?} {host}: {connected:?}");
    }
}

#[tokio::test]
async fn clients_show_a_certificate_where_they_must() {
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let known = shows(&ours.issue(&["client"]), TlsMode::Require);
    let unknown = shows(&others.issue(&["client"]), TlsMode::Require);
    let anonymous = TlsSide { mode: TlsMode::Require, ..TlsSide::default() };
    for mode in [TlsMode::VerifyCa, TlsMode::VerifyFull] {
        let server = TlsSide { ca: secret(&ours.pem), ..shows(&ours.issue(&["localhost"]), mode) };
        for (client, good) in [(&known, true), (&unknown, false), (&anonymous, false)] {
            let (accepted, connected) = meet(&server, client, "localhost").await;
            assert_eq!((accepted.is_ok(), connected.is_ok()), (good, good), "{mode:?}");
        }
    }
}

#[tokio::test]
async fn the_oldest_protocol_is_as_configured() {
    let ours = Authority::new("ours");
    let identity = ours.issue(&["localhost"]);
    let server = TlsSide { min_version: TlsVersion::V1_3, ..shows(&identity, TlsMode::Require) };
    let (accepted, _) = meet(&server, &trusts(&ours.pem, TlsMode::VerifyFull), "localhost").await;
    let protection = accepted.unwrap().protection().unwrap().to_string();
    assert!(protection.starts_with("TLSv1_3/TLS13_"), "{protection}");

    let old = Arc::new(
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify::Verifier::none(provider())))
            .with_no_client_auth(),
    );
    for (rules, good) in [(server, false), (shows(&identity, TlsMode::Require), true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let acceptor = Acceptor::new(&rules).unwrap().unwrap();
        let accepts = async { acceptor.accept(Stream::Tcp(listener.accept().await.unwrap().0), false).await };
        let connector = TlsConnector::from(old.clone());
        let (accepted, connected) =
            tokio::join!(accepts, connector.connect("localhost".try_into().unwrap(), tcp));
        assert_eq!((accepted.is_ok(), connected.is_ok()), (good, good));
        // It did not say what it wants to speak, which only direct TLS must.
        if good {
            let again = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let accepts =
                async { acceptor.accept(Stream::Tcp(listener.accept().await.unwrap().0), true).await };
            let (accepted, _) =
                tokio::join!(accepts, connector.connect("localhost".try_into().unwrap(), again));
            assert!(accepted.unwrap_err().to_string().contains("ALPN"));
        }
    }
}

#[tokio::test]
async fn what_a_lane_has_flushed_has_left_the_stream_too() {
    let ours = Authority::new("ours");
    let server = shows(&ours.issue(&["localhost"]), TlsMode::Require);
    let (near, far) = meet(&server, &trusts(&ours.pem, TlsMode::VerifyCa), "localhost").await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let bytes: Vec<u8> = (0..3_000_000).map(|i| (i % 251) as u8).collect();
    let mut lane = Lane::new(Buffers::default());
    let writes = async {
        // More than the sockets hold: the last part waits in the stream for the reader.
        for part in bytes.chunks(100_000) {
            lane.put(part);
            std::future::poll_fn(|cx| lane.poll_flush(cx, &mut near)).await.unwrap();
        }
        near
    };
    let reads = async {
        tokio::task::yield_now().await;
        let mut got = vec![0; bytes.len()];
        far.read_exact(&mut got).await.unwrap();
        (got, far)
    };
    let (near, (got, mut far)) = tokio::join!(writes, reads);
    assert!(got == bytes);
    drop(near);
    assert_eq!(far.read(&mut [0; 16]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_lane_that_is_not_flushed_says_so() {
    let ours = Authority::new("ours");
    let server = shows(&ours.issue(&["localhost"]), TlsMode::Require);
    let (near, _far) = meet(&server, &trusts(&ours.pem, TlsMode::VerifyCa), "localhost").await;
    let (mut near, mut lane) = (near.unwrap(), Lane::new(Buffers::default()));
    let mut cx = Context::from_waker(Waker::noop());
    // Nobody reads: at some point the stream has taken all, and the socket has not.
    loop {
        lane.put(&[7; 1000]);
        tokio::task::yield_now().await;
        match lane.poll_flush(&mut cx, &mut near) {
            Poll::Ready(flushed) => flushed.unwrap(),
            Poll::Pending => break,
        }
        assert_eq!(lane.staged(), 0);
    }
    assert!(lane.staged() > 0, "who looks at that would never flush again");
}

#[test]
fn what_cannot_be_used_is_named_by_its_key() {
    let ours = Authority::new("ours");
    let (cert, key) = ours.issue(&["localhost"]);
    let (_, other_key) = ours.issue(&["localhost"]);
    let with = |tls| Tls::new(&Config { tls, ..Config::default() });
    let client = |side: TlsSide| with(crate::config::Tls { client: side, ..Default::default() });
    let server = |side: TlsSide| with(crate::config::Tls { server: side, ..Default::default() });
    let towards = |name: &str, mode| {
        let mut config = Config::default();
        let tls = DatabaseTls { mode: Some(mode), ..DatabaseTls::default() };
        let database = Database { tls, ..Database::default() };
        match name {
            "*" => config.any_database = Some(database.into()),
            name => drop(config.databases.insert(name.into(), database.into())),
        }
        Tls::new(&config)
    };
    let of = |mode| TlsSide { mode, ..TlsSide::default() };
    let good = shows(&(cert.clone(), key.clone()), TlsMode::Require);
    for (made, wanted) in [
        (client(of(TlsMode::Allow)), "tls.client.cert: this mode needs"),
        (client(TlsSide { cert: secret("x"), ..good.clone() }), "tls.client.cert: this mode needs"),
        (client(TlsSide { key: None, ..good.clone() }), "tls.client.key: a certificate needs"),
        (client(TlsSide { key: secret(&cert), ..good.clone() }), "tls.client.key: expected a private key"),
        (client(TlsSide { key: secret(&other_key), ..good.clone() }), "tls.client.key: "),
        (client(TlsSide { mode: TlsMode::VerifyCa, ..good.clone() }), "tls.client.ca: this mode needs"),
        (server(of(TlsMode::VerifyFull)), "tls.server.ca: this mode needs"),
        (towards("app", TlsMode::VerifyCa), "database.app.tls.ca: this mode needs"),
        (towards("*", TlsMode::VerifyCa), "database.\"*\".tls.ca: this mode needs"),
        (server(TlsSide { cert: secret(&cert), ..of(TlsMode::Require) }), "tls.server.key: a certificate"),
    ] {
        let error = made.unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{error}, not {wanted}");
        assert!(!error.contains("PRIVATE KEY-----\n"), "{error}");
    }
    assert!(client(of(TlsMode::Disable)).unwrap().clients.is_none());
    assert!(!client(shows(&(cert.clone(), key.clone()), TlsMode::Allow)).unwrap().clients.unwrap().required);
    assert!(client(good).unwrap().clients.unwrap().required);
}
