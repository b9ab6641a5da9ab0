//! Who may log in how: by certificate, by the user of the system, and by rules (docs/login-rules.md).

use crate::support::watch::{metric, printed};
use crate::support::{Config, Db, Files, Login, Proxy, Refused, Wire, signal, until};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

/// psql by TCP or, with a directory, by the Unix socket there.
fn psql(proxy: &Proxy, db: &Db<'_>, host: &str, more: &str) -> Output {
    let mut command = Command::new(db.cluster().program("psql"));
    let (port, name) = (proxy.addr().port(), db.name());
    let parameters = format!("host={host} port={port} dbname={name} gssencmode=disable {more}");
    command.args([
        "-X",
        "-w",
        "-A",
        "-t",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        &parameters,
        "-c",
        "select current_user",
    ]);
    command.env("LC_ALL", "C").env_remove("PGPASSWORD").output().expect("psql runs")
}

fn refusal(output: &Output) -> String {
    assert!(!output.status.success(), "let in: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn with_socket(config: Config, dir: &Path) -> Config {
    config.with("listen", &format!("unix_dir = \"{}\"", dir.display()))
}

fn has_socket(proxy: &Proxy, dir: &Path) {
    let path = dir.join(format!(".s.PGSQL.{}", proxy.addr().port()));
    until("the socket takes connections", || UnixStream::connect(&path).is_ok());
}

/// The name of the user that runs these tests.
fn own_name() -> String {
    let output = Command::new("id").arg("-un").output().expect("id runs");
    printed(&output).trim().to_owned()
}

#[test]
fn a_certificate_is_as_good_as_its_common_name() {
    let db = Db::new();
    let files = Files::new();
    let dir = tempfile::tempdir().expect("a directory");
    let config = files.towards_clients(Config::of_size(2), "verify-ca").with("auth", "method = \"cert\"");
    // What the server asks for is Bursar's to answer.
    let config = config.with("user.plain_user", "password = \"plain_user\"");
    let proxy = Proxy::start(&db, with_socket(config, dir.path()));
    has_socket(&proxy, dir.path());
    let shown = |user: &str, name: &str| {
        let (cert, key) = (files.path(&format!("{name}.crt")), files.path(&format!("{name}.key")));
        let tls = format!("user={user} sslmode=require sslcert={} sslkey={}", cert.display(), key.display());
        psql(&proxy, &db, "127.0.0.1", &tls)
    };
    assert_eq!(printed(&shown("app", "app")), "app\n");
    assert_eq!(printed(&shown("plain_user", "plain_user")), "plain_user\n");
    let told = refusal(&shown("plain_user", "app"));
    assert!(told.contains("FATAL:  certificate authentication failed for user \"plain_user\""), "{told}");
    // Of the right authority, and of nobody.
    let told = refusal(&shown("app", "nameless"));
    assert!(told.contains("FATAL:  connection requires a valid client certificate"), "{told}");
    // Another authority's certificate with the right name does not survive the handshake.
    assert!(!refusal(&shown("app", "stranger")).contains("FATAL"));
    // Through the Unix socket there are no certificates.
    let told = refusal(&psql(&proxy, &db, &dir.path().display().to_string(), "user=app"));
    assert!(told.contains("FATAL:  connection requires a valid client certificate"), "{told}");
    assert_eq!(metric(&proxy, "bursar_logins_total{result=\"auth\"}"), 3.0);
    proxy.stop();
}

#[test]
fn a_user_of_the_system_is_one_of_the_database() {
    let db = Db::new();
    let own = own_name();
    let dir = tempfile::tempdir().expect("a directory");
    db.cluster().admin().batch(&format!(
        "do $$ begin create role \"{own}\" login; exception when duplicate_object then null; end $$"
    ));
    let config = Config::of_size(2).with("auth", "method = \"peer\"");
    let mut proxy = Proxy::start(&db, with_socket(config.clone(), dir.path()));
    has_socket(&proxy, dir.path());
    let socket = dir.path().display().to_string();
    assert_eq!(printed(&psql(&proxy, &db, &socket, &format!("user={own}"))), format!("{own}\n"));
    let told = refusal(&psql(&proxy, &db, &socket, "user=app"));
    assert!(told.contains("FATAL:  Peer authentication failed for user \"app\""), "{told}");
    // TCP has no such thing, whoever it is.
    let told = refusal(&psql(&proxy, &db, "127.0.0.1", &format!("user={own}")));
    assert!(told.contains("FATAL:  bursar: peer authentication is for the Unix socket"), "{told}");
    assert!(told.contains("HINT:  Connect through the socket in listen.unix_dir."), "{told}");

    // By a map, which a reload brings.
    proxy.change("auth", &format!("peer_map = [\"{own}=app\"]"));
    signal(proxy.pid(), "HUP");
    until("the map is in force", || psql(&proxy, &db, &socket, "user=app").status.success());
    let told = refusal(&psql(&proxy, &db, &socket, "user=plain_user"));
    assert!(told.contains("FATAL:  Peer authentication failed for user \"plain_user\""), "{told}");
    proxy.stop();
}

#[test]
fn the_first_rule_that_fits_decides_and_without_one_nobody_comes_in() {
    let db = Db::new();
    let dir = tempfile::tempdir().expect("a directory");
    let rules = format!(
        "rule = [{{ user = \"md5_user\", method = \"reject\" }}, \
         {{ connection = \"host\", user = \"plain_user\", address = \"127.0.0.0/8\", method = \"plain\" }}, \
         {{ connection = \"host\", user = \"scram_user\", database = \"{}\", method = \"scram-sha-256\" }}, \
         {{ connection = \"host\", user = \"app\", address = \"10.0.0.0/8\", method = \"trust\" }}, \
         {{ connection = \"local\", user = \"app\", method = \"trust\" }}]",
        db.name()
    );
    let mut config = Config::of_size(2).with("auth", "method = \"hba\"").with("auth", &rules);
    for role in ["scram_user", "md5_user", "plain_user"] {
        config = config.with(&format!("user.{role}"), &format!("password = \"{role}\""));
    }
    let proxy = Proxy::start(&db, with_socket(config, dir.path()));
    has_socket(&proxy, dir.path());
    for (role, question) in [("plain_user", 3), ("scram_user", 10)] {
        let mut client = Wire::login(proxy.addr(), &Login::new(role, db.name()).password(role));
        assert_eq!(client.query("select current_user").value(), role);
        // Asked by the method of its own rule: AuthenticationCleartextPassword or AuthenticationSASL.
        let asked = refused(&proxy, &Login::new(role, db.name()).password("wrong"));
        let first = asked.messages.first().expect("a question");
        assert_eq!((first.kind, first.body[3]), (b'R', question), "{role}");
        assert_eq!(asked.code(), "28P01", "{role}");
    }
    // The right password does not help where a rule rejects, or none is.
    let detail = |login: &Login| {
        let [(_, user), (_, database)] = &login.parameters[..] else { panic!("{:?}", login.parameters) };
        format!("host \"127.0.0.1\", user \"{user}\", database \"{database}\", no TLS.")
    };
    for (login, message) in [
        (Login::new("md5_user", db.name()).password("md5_user"), "bursar: a rule rejects this connection"),
        (Login::new("app", db.name()), "bursar: no rule lets this connection in"),
        (
            Login::new("scram_user", "elsewhere").password("scram_user"),
            "bursar: no rule lets this connection in",
        ),
        // The console is a database like others.
        (Login::new("app", "bursar"), "bursar: no rule lets this connection in"),
    ] {
        let said = refused(&proxy, &login);
        assert_eq!(said.trace(), "E(FATAL 28000) EOF");
        let error = said.error().expect("an error");
        assert_eq!(error.field(b'M').as_deref(), Some(message));
        assert_eq!(error.field(b'D'), Some(detail(&login)));
    }
    let socket = dir.path().display().to_string();
    assert_eq!(printed(&psql(&proxy, &db, &socket, "user=app")), "app\n");
    // None of those who were kept out has cost the server a connection, or was let in by another rule.
    assert_eq!(metric(&proxy, "bursar_logins_total{result=\"auth\"}"), 6.0);
    proxy.stop();
}

fn refused(proxy: &Proxy, login: &Login) -> crate::support::Reply {
    match Wire::try_login(proxy.addr(), login) {
        Err(Refused::Said(reply)) => reply,
        Err(Refused::Io(error)) => panic!("{error}"),
        Ok(_) => panic!("the login was accepted"),
    }
}
