//! Drivers against every mode of TLS and every method of authentication: one table for all of them, of
//! what the driver is told to want and what Bursar lets in (wire.md F; PostgreSQL, "SSL Support").
//!
//! Each driver is a program that tries one connection after the other, and says of each what Bursar's
//! console saw of it. tokio-postgres is in this process.

use super::drivers::{installed, program};
use crate::support::{Config, Db, Files, Proxy};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// A connection to try: libpq's parameters.
type Attempt = Vec<(&'static str, String)>;

/// What a driver can be told to want.
#[derive(Clone, Copy)]
struct Able {
    name: &'static str,
    /// `sslmode=allow`
    allow: bool,
    /// `sslmode=prefer`
    prefer: bool,
    /// `sslmode=verify-ca`
    verify_ca: bool,
    /// `sslnegotiation=direct`
    direct: bool,
    /// SCRAM-SHA-256-PLUS
    binds: bool,
}

const DRIVERS: [Able; 5] = [
    // PostgreSQL 17's is the first libpq with sslnegotiation; psycopg brings a newer one than Debian's.
    Able { name: "psql", allow: true, prefer: true, verify_ca: true, direct: false, binds: true },
    Able { name: "psycopg", allow: true, prefer: true, verify_ca: true, direct: true, binds: true },
    Able { name: "node-postgres", allow: false, prefer: false, verify_ca: true, direct: true, binds: true },
    Able { name: "tokio-postgres", allow: false, prefer: true, verify_ca: false, direct: true, binds: true },
    // sslNegotiation and channel binding came with 42.7.4; Debian's is older.
    Able { name: "JDBC", allow: true, prefer: true, verify_ca: true, direct: false, binds: false },
];

impl Able {
    fn can(self, attempt: &Attempt) -> bool {
        attempt.iter().all(|(name, value)| match (*name, value.as_str()) {
            ("sslmode", "allow") => self.allow,
            ("sslmode", "prefer") => self.prefer,
            ("sslmode", "verify-ca") => self.verify_ca,
            ("sslnegotiation", _) => self.direct,
            ("channel_binding", _) => self.binds,
            _ => true,
        })
    }

    /// What becomes of each: `tls`, `plain`, or `refused: ` and why.
    fn try_all(self, db: &Db<'_>, proxy: &Proxy, attempts: &[Attempt]) -> Vec<String> {
        let place = [("host", "127.0.0.1".to_owned()), ("port", proxy.addr().port().to_string())];
        let place = [&place[..], &[("dbname", db.name().to_owned())]].concat();
        let attempts: Vec<Attempt> = attempts.iter().map(|attempt| [&place[..], attempt].concat()).collect();
        let seen = match self.name {
            "psql" => attempts.iter().map(|attempt| psql(db, attempt)).collect(),
            "tokio-postgres" => attempts.iter().map(tokio_postgres).collect(),
            "psycopg" => {
                let mut command = Command::new(installed("python/bin/python"));
                command.arg(program("tls_psycopg.py"));
                lines(command, &attempts)
            }
            "node-postgres" => {
                let mut command = Command::new("node");
                command.arg(program("tls_node.cjs")).env("NODE_PATH", installed("node/node_modules"));
                lines(command, &attempts)
            }
            "JDBC" => {
                let mut command = Command::new("java");
                let path = format!("/usr/share/java/postgresql.jar:{}", installed("java").display());
                command.args(["-XX:TieredStopAtLevel=1", "-cp", &path, "Tls"]);
                lines(command, &attempts)
            }
            other => unreachable!("{other}"),
        };
        assert_eq!(seen.len(), attempts.len(), "{}: {seen:?}", self.name);
        seen
    }
}

impl Able {
    /// Each attempt comes to what is beside it.
    fn expect(self, db: &Db<'_>, proxy: &Proxy, what: &str, rows: &[(Attempt, &str)]) {
        let attempts: Vec<Attempt> = rows.iter().map(|(attempt, _)| attempt.clone()).collect();
        for (seen, (attempt, wanted)) in self.try_all(db, proxy, &attempts).iter().zip(rows) {
            let word = seen.split(':').next().expect("a word");
            assert_eq!(word, *wanted, "{} by {what}, {attempt:?}: {seen}", self.name);
            let wrong = get(attempt, "password") == Some("wrong") && word == "refused";
            assert!(!wrong || seen.contains("password authentication failed"), "{}: {seen}", self.name);
        }
    }
}

fn get<'a>(attempt: &'a Attempt, name: &str) -> Option<&'a str> {
    attempt.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_str())
}

/// A line for each attempt in, a line for each out.
fn lines(command: Command, attempts: &[Attempt]) -> Vec<String> {
    let mut text = String::new();
    for attempt in attempts {
        let pairs: Vec<String> = attempt.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let _ = writeln!(text, "{}", pairs.join("\t"));
    }
    let mut bounded = Command::new("timeout");
    bounded.args(["--kill-after=1", "120"]).arg(command.get_program()).args(command.get_args());
    bounded.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    bounded.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = bounded.spawn().expect("the driver starts");
    running.stdin.take().expect("piped").write_all(text.as_bytes()).expect("the driver listens");
    let output = running.wait_with_output().expect("the driver ends");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn psql(db: &Db<'_>, attempt: &Attempt) -> String {
    let start = |database: &str| {
        let pairs: Vec<String> = attempt
            .iter()
            .map(|(name, value)| match *name {
                "dbname" => format!("dbname={database}"),
                "password" => format!("password='{value}'"),
                _ => format!("{name}={value}"),
            })
            .collect();
        let parameters = format!("{} gssencmode=disable connect_timeout=20", pairs.join(" "));
        let mut command = Command::new(db.cluster().program("psql"));
        command.args(["-X", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-d", &parameters]).env("LC_ALL", "C");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("psql starts")
    };
    let mut session = start(db.name());
    let mut asks = session.stdin.take().expect("piped");
    // One that was not let in does not listen.
    let _ = writeln!(asks, "select 42;");
    let mut answer = [0; 3];
    if session.stdout.as_mut().expect("piped").read_exact(&mut answer).is_err() {
        let output = session.wait_with_output().expect("psql ends");
        let error = String::from_utf8_lossy(&output.stderr);
        return format!("refused: {}", error.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    assert_eq!(&answer, b"42\n");
    let mut console = start("bursar");
    let sql = format!("select tls from bursar.clients where database = '{}';", db.name());
    console.stdin.take().expect("piped").write_all(sql.as_bytes()).expect("psql listens");
    let output = console.wait_with_output().expect("psql ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    drop(asks);
    session.wait().expect("psql ends");
    say(&String::from_utf8_lossy(&output.stdout))
}

/// The column `tls` of the console, in a word.
fn say(seen: &str) -> String {
    if seen.starts_with("TLSv1_3/TLS13_") { "tls".into() } else { format!("plain{}", seen.trim()) }
}

/// As `sslmode=require`: whoever it is.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// rustls as libpq's parameters want it.
fn connector(attempt: &Attempt) -> MakeRustlsConnect {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let builder = match get(attempt, "sslrootcert") {
        Some(file) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(file).expect("PEM")).expect("an authority");
            builder.with_root_certificates(roots)
        }
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
    };
    let mut config = match get(attempt, "sslcert").zip(get(attempt, "sslkey")) {
        Some((cert, key)) => {
            let cert = CertificateDer::from_pem_file(cert).expect("PEM");
            let key = PrivateKeyDer::from_pem_file(key).expect("PEM");
            builder.with_client_auth_cert(vec![cert], key).expect("a certificate and its key")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    MakeRustlsConnect::new(config)
}

fn tokio_postgres(attempt: &Attempt) -> String {
    let want = |name| get(attempt, name);
    let connect = async |database: &str| {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(want("port").expect("a port").parse().expect("a number"));
        config.user(want("user").expect("a user")).dbname(database);
        config.password(want("password").unwrap_or_default());
        config.ssl_mode(match want("sslmode") {
            Some("disable") => SslMode::Disable,
            Some("prefer") => SslMode::Prefer,
            _ => SslMode::Require,
        });
        if want("sslnegotiation").is_some() {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        if want("channel_binding").is_some() {
            config.channel_binding(ChannelBinding::Require);
        }
        let (client, connection) = config.connect(connector(attempt)).await?;
        tokio::spawn(connection);
        Ok::<_, tokio_postgres::Error>(client)
    };
    let all = async {
        let client = connect(want("dbname").expect("a database")).await?;
        let n: i32 = client.query_one("select 41 + $1::int", &[&1]).await?.get(0);
        assert_eq!(n, 42);
        let console = connect("bursar").await?;
        let sql =
            format!("select tls from bursar.clients where database = '{}'", want("dbname").unwrap_or(""));
        let rows = console.simple_query(&sql).await?;
        let seen = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(say),
            _ => None,
        });
        Ok::<_, tokio_postgres::Error>(seen.expect("a row"))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bounded = async { tokio::time::timeout(std::time::Duration::from_secs(60), all).await };
    runtime.block_on(bounded).expect("an answer comes").unwrap_or_else(|error| {
        let why = std::error::Error::source(&error).map_or(String::new(), ToString::to_string);
        format!("refused: {error}: {why}")
    })
}

/// A connection of the role `app`, with these parameters.
fn attempt(parameters: &[(&'static str, &str)]) -> Attempt {
    let user = if parameters.iter().any(|(name, _)| *name == "user") { None } else { Some(("user", "app")) };
    user.iter().chain(parameters).map(|(name, value)| (*name, (*value).to_owned())).collect()
}

#[test]
fn every_driver_in_every_mode() {
    let (db, files) = (Db::new(), Files::new());
    let path = |name: &str| files.path(name).display().to_string();
    let (ours, others) = (path("ours.crt"), path("others.crt"));
    let with = |name: &str| {
        let (cert, key) = (path(&format!("{name}.crt")), path(&format!("{name}.key")));
        attempt(&[("sslmode", "require"), ("sslcert", &cert), ("sslkey", &key)])
    };
    const REFUSED: &str = "refused";
    // What clients want, and what becomes of them by mode: disable; allow and prefer; require; verify-ca
    // and verify-full.
    let rows: [(Attempt, [&str; 4]); 11] = [
        (attempt(&[("sslmode", "disable")]), ["plain", "plain", REFUSED, REFUSED]),
        (attempt(&[("sslmode", "allow")]), ["plain", "plain", "tls", REFUSED]),
        (attempt(&[("sslmode", "prefer")]), ["plain", "tls", "tls", REFUSED]),
        (attempt(&[("sslmode", "require")]), [REFUSED, "tls", "tls", REFUSED]),
        (attempt(&[("sslmode", "verify-ca"), ("sslrootcert", &ours)]), [REFUSED, "tls", "tls", REFUSED]),
        (attempt(&[("sslmode", "verify-full"), ("sslrootcert", &ours)]), [REFUSED, "tls", "tls", REFUSED]),
        (attempt(&[("sslmode", "verify-ca"), ("sslrootcert", &others)]), [REFUSED; 4]),
        (attempt(&[("sslmode", "verify-full"), ("sslrootcert", &others)]), [REFUSED; 4]),
        (attempt(&[("sslmode", "require"), ("sslnegotiation", "direct")]), [REFUSED, "tls", "tls", REFUSED]),
        (with("client"), [REFUSED, "tls", "tls", "tls"]),
        (with("stranger"), [REFUSED, "tls", "tls", REFUSED]),
    ];
    let mut tried = 0;
    for (mode, column) in
        [("disable", 0), ("allow", 1), ("prefer", 1), ("require", 2), ("verify-ca", 3), ("verify-full", 3)]
    {
        let config = Config::of_size(2);
        let proxy =
            Proxy::start(&db, if mode == "disable" { config } else { files.towards_clients(config, mode) });
        for driver in DRIVERS {
            let able: Vec<_> = rows.iter().filter(|(attempt, _)| driver.can(attempt)).collect();
            let attempts: Vec<Attempt> = able.iter().map(|(attempt, _)| attempt.clone()).collect();
            for (seen, (attempt, wanted)) in driver.try_all(&db, &proxy, &attempts).iter().zip(able) {
                let word = seen.split(':').next().expect("a word");
                assert_eq!(word, wanted[column], "{} at {mode}, {attempt:?}: {seen}", driver.name);
                tried += 1;
            }
        }
        proxy.stop();
    }
    assert_eq!(tried, 6 * (10 + 11 + 9 + 8 + 10), "each driver tried all that it can");
}

#[test]
fn every_driver_by_every_method() {
    let (db, files) = (Db::new(), Files::new());
    for method in ["trust", "plain", "md5", "scram-sha-256"] {
        let config = Config::of_size(2).with("auth", &format!("method = \"{method}\""));
        let config = config.with("user.app", "password = \"secret\"").with("admin", "users = [\"app\"]");
        let proxy = Proxy::start(&db, files.towards_clients(config, "allow"));
        for driver in DRIVERS {
            let mut rows = Vec::new();
            for (mode, seen) in [("disable", "plain"), ("require", "tls")] {
                for (password, wanted) in [("secret", seen), ("wrong", "refused"), ("", "refused")] {
                    let wanted = if method == "trust" { seen } else { wanted };
                    rows.push((attempt(&[("sslmode", mode), ("password", password)]), wanted));
                }
            }
            // The password is bound to the connection, or the driver gives it to nobody.
            if method == "scram-sha-256" && driver.binds {
                for (password, wanted) in [("secret", "tls"), ("wrong", "refused")] {
                    let bound =
                        [("sslmode", "require"), ("channel_binding", "require"), ("password", password)];
                    rows.push((attempt(&bound), wanted));
                }
            }
            driver.expect(&db, &proxy, method, &rows);
        }
        proxy.stop();
    }
}

#[test]
fn every_driver_by_certificate_by_rules_and_by_what_the_server_says() {
    let (db, files) = (Db::new(), Files::new());
    let certified = |name: &str| {
        let path = |end: &str| files.path(&format!("{name}.{end}")).display().to_string();
        attempt(&[("sslmode", "require"), ("sslcert", &path("crt")), ("sslkey", &path("key"))])
    };
    let of_app = |config: Config| config.with("admin", "users = [\"app\"]");
    let by_password = |user: &str, mode: &str, password: &str| {
        attempt(&[("user", user), ("sslmode", mode), ("password", password)])
    };
    let config = of_app(Config::of_size(2)).with("auth", "method = \"cert\"");
    let proxy = Proxy::start(&db, files.towards_clients(config, "verify-ca"));
    let rows = [
        (certified("app"), "tls"),
        (certified("plain_user"), "refused"),
        (certified("nameless"), "refused"),
        (certified("stranger"), "refused"),
        (attempt(&[("sslmode", "require")]), "refused"),
    ];
    DRIVERS.iter().for_each(|driver| driver.expect(&db, &proxy, "cert", &rows));
    proxy.stop();

    let rules = "rule = [{ connection = \"hostssl\", user = \"app\", method = \"scram-sha-256\" }, \
                 { user = \"app\", method = \"reject\" }]";
    let config = of_app(Config::of_size(2)).with("auth", "method = \"hba\"").with("auth", rules);
    let config =
        config.with("user.app", "password = \"secret\"").with("user.plain_user", "password = \"secret\"");
    let proxy = Proxy::start(&db, files.towards_clients(config, "allow"));
    let rows = [
        (by_password("app", "require", "secret"), "tls"),
        (by_password("app", "require", "wrong"), "refused"),
        (by_password("plain_user", "require", "secret"), "refused"),
    ];
    // Rejected, whatever the password.
    let clear = [(attempt(&[("sslmode", "disable"), ("password", "secret")]), "refused")];
    for driver in DRIVERS {
        driver.expect(&db, &proxy, "rules", &rows);
        driver.expect(&db, &proxy, "rules", &clear);
    }
    proxy.stop();

    let db = Db::within(super::auth_query::strict());
    let config = super::auth_query::config("scram-sha-256").with("admin", "users = [\"scram_user\"]");
    let proxy = Proxy::start(&db, files.towards_clients(config, "allow"));
    let rows = [
        (by_password("scram_user", "disable", "scram_user"), "plain"),
        (by_password("scram_user", "require", "scram_user"), "tls"),
        (by_password("scram_user", "require", "wrong"), "refused"),
        (by_password("nobody", "require", "wrong"), "refused"),
    ];
    DRIVERS.iter().for_each(|driver| driver.expect(&db, &proxy, "auth.query", &rows));
    proxy.stop();
}

#[test]
fn what_is_older_or_another_is_refused() {
    let (db, files) = (Db::new(), Files::new());
    let ours = files.path("ours.crt").display().to_string();
    let config = files.towards_clients(Config::of_size(2), "allow");
    let proxy = Proxy::start(&db, config.with("tls.client", "min_version = \"1.3\""));
    let full = |host: &str, version: &str| {
        let mut attempt = attempt(&[("sslmode", "verify-full"), ("sslrootcert", &ours)]);
        attempt.push(("ssl_max_protocol_version", version.to_owned()));
        // libpq connects to hostaddr, and compares the certificate with host.
        attempt.extend([("hostaddr", "127.0.0.1".to_owned()), ("host", host.to_owned())]);
        attempt
    };
    let rows = [
        (full("127.0.0.1", "TLSv1.3"), "tls", ""),
        (full("127.0.0.1", "TLSv1.2"), "refused", "protocol version"),
        (full("db.example", "TLSv1.3"), "refused", "does not match host name"),
    ];
    let attempts: Vec<Attempt> = rows.iter().map(|(attempt, ..)| attempt.clone()).collect();
    for driver in &DRIVERS[..2] {
        for (seen, (_, wanted, why)) in driver.try_all(&db, &proxy, &attempts).iter().zip(&rows) {
            assert_eq!(seen.split(':').next(), Some(*wanted), "{}: {seen}", driver.name);
            assert!(seen.contains(why), "{}: {seen}", driver.name);
        }
    }
    proxy.stop();
}
