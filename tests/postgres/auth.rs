//! Who may come in, by every method towards clients and towards the server; and that a wrong
//! password and an unknown user look alike.

use crate::support::{Config, Db, Login, Proxy, Refused, Reply, Wire, until};

const METHODS: [&str; 4] = ["trust", "plain", "md5", "scram-sha-256"];

fn config(method: &str) -> Config {
    let mut config = Config::of_size(2).with("auth", &format!("method = \"{method}\""));
    for role in ["scram_user", "md5_user", "plain_user"] {
        config = config.with(&format!("user.{role}"), &format!("password = \"{role}\""));
    }
    config.with("user.app", "password = \"secret\"")
}

/// What a client is told that must not be let in.
pub(super) fn refused(proxy: &Proxy, login: &Login) -> Reply {
    match Wire::try_login(proxy.addr(), login) {
        Err(Refused::Said(reply)) => reply,
        Err(Refused::Io(error)) => panic!("{error}"),
        Ok(_) => panic!("the login was accepted"),
    }
}

#[test]
fn every_method_of_clients_works_with_every_method_of_the_server() {
    let db = Db::new();
    for method in METHODS {
        let proxy = Proxy::start(&db, config(method));
        for role in ["scram_user", "md5_user", "plain_user"] {
            let mut client = Wire::login(proxy.addr(), &Login::new(role, db.name()).password(role));
            assert_eq!(client.query("select current_user").value(), role, "{method}");
        }
        let mut client = Wire::login(proxy.addr(), &proxy.as_app().password("secret"));
        assert_eq!(client.query("select current_user").value(), "app", "{method}");
        drop(client);
        proxy.stop();
    }
}

#[test]
fn a_wrong_password_and_an_unknown_user_look_alike() {
    let db = Db::new();
    for method in METHODS.into_iter().filter(|method| *method != "trust") {
        let proxy = Proxy::start(&db, config(method));
        let attempts = [("app", Some("wrong")), ("app", Some("")), ("app", None), ("nobody", Some("secret"))];
        let seen: Vec<String> = attempts
            .iter()
            .map(|(user, password)| {
                let mut login = Login::new(user, db.name());
                login.password = password.map(str::to_owned);
                let reply = refused(&proxy, &login);
                let error = reply.error().unwrap_or_else(|| panic!("{method}, {user}: {reply:?}"));
                let said = error.field(b'M').expect("a message");
                assert_eq!(said, format!("password authentication failed for user \"{user}\""), "{method}");
                reply.trace()
            })
            .collect();
        assert!(seen[0].ends_with("E(FATAL 28P01) EOF"), "{method}: {}", seen[0]);
        assert!(seen.iter().all(|trace| *trace == seen[0]), "{method}: {seen:?}");
        // No backend was opened for any of them.
        assert_eq!(db.pids(), Vec::<i32>::new(), "{method}");
        proxy.stop();
    }
}

#[test]
fn trust_is_as_good_as_the_role() {
    let db = Db::new();
    let proxy = Proxy::start(&db, config("trust"));
    let reply = refused(&proxy, &Login::new("nobody", db.name()));
    let error = reply.error().expect("the server's own refusal");
    assert_eq!(error.to_string(), "E(FATAL 28000)", "{reply:?}");
    assert_eq!(error.field(b'M').as_deref(), Some("role \"nobody\" does not exist"));
    proxy.stop();
}

#[test]
fn a_database_that_does_not_exist_is_refused_as_postgresql_does() {
    let db = Db::new();
    let proxy = Proxy::start(&db, config("trust"));
    let reply = refused(&proxy, &Login::new("app", "nowhere"));
    let error = reply.error().expect("the server's own refusal");
    assert_eq!(error.to_string(), "E(FATAL 3D000)", "{reply:?}");
    assert_eq!(error.field(b'M').as_deref(), Some("database \"nowhere\" does not exist"));
    proxy.stop();
}

#[test]
fn secrets_may_be_verifiers_and_hashes_and_come_from_files() {
    let db = Db::new();
    let secret = |role: &str| db.ask(&format!("select rolpassword from pg_authid where rolname = '{role}'"));
    let file = db.cluster().subdir("secrets").join("password");
    std::fs::write(&file, "from a file\n").expect("a file");
    for (method, line, password) in [
        ("scram-sha-256", format!("password = \"{}\"", secret("scram_user")), "scram_user"),
        ("scram-sha-256", format!("password_file = \"{}\"", file.display()), "from a file"),
        ("plain", format!("password_file = \"{}\"", file.display()), "from a file"),
        ("plain", format!("password = \"{}\"", secret("scram_user")), "scram_user"),
    ] {
        let user = Config::of_size(1).with("auth", &format!("method = \"{method}\"")).with("user.app", &line);
        let proxy = Proxy::start(&db, user);
        let mut client = Wire::login(proxy.addr(), &proxy.as_app().password(password));
        assert_eq!(client.query("select current_user").value(), "app");
        client.bye();
        let reply = refused(&proxy, &proxy.as_app().password("wrong"));
        assert_eq!(reply.code(), "28P01");
        proxy.stop();
    }
    // An md5 hash is made of the role's own name.
    let hash = Config::of_size(1)
        .with("auth", "method = \"md5\"")
        .with("user.md5_user", &format!("password = \"{}\"", secret("md5_user")))
        .with("database.\"*\"", "password = \"md5_user\"");
    let proxy = Proxy::start(&db, hash);
    let mut client = Wire::login(proxy.addr(), &Login::new("md5_user", db.name()).password("md5_user"));
    assert_eq!(client.query("select current_user").value(), "md5_user");
    client.bye();
    proxy.stop();
}

#[test]
fn no_secret_is_logged() {
    let db = Db::new();
    let proxy = Proxy::start(&db, config("plain").with("log", "level = \"trace\""));
    drop(Wire::login(proxy.addr(), &Login::new("scram_user", db.name()).password("scram_user")));
    let mine = "correct horse battery staple";
    refused(&proxy, &proxy.as_app().password(mine));
    let log = proxy.log();
    assert!(!log.is_empty(), "a trace log says something");
    assert!(!log.contains(mine), "the client's password is in the log");
    proxy.stop();
}

#[test]
fn an_expired_password_is_refused_as_a_wrong_one() {
    let db = Db::new();
    for method in METHODS.into_iter().filter(|method| *method != "trust") {
        let user = |name: &str, year: u32| {
            (
                format!("user.{name}"),
                format!("password = \"{name}\"\nvalid_until = \"{year}-02-01T00:00:00+01:00\""),
            )
        };
        let (late, good) = (user("scram_user", 2020), user("plain_user", 2120));
        let config = Config::of_size(2).with("auth", &format!("method = \"{method}\""));
        let config = config.with(&late.0, &late.1).with(&good.0, &good.1);
        let proxy = Proxy::start(&db, config.with("admin", "users = [\"plain_user\"]"));
        let as_who = |user: &str, password: &str| Login::new(user, db.name()).password(password);
        let mut client = Wire::login(proxy.addr(), &as_who("plain_user", "plain_user"));
        assert_eq!(client.query("select current_user").value(), "plain_user", "{method}");
        client.bye();
        let expired = refused(&proxy, &as_who("scram_user", "scram_user"));
        let wrong = refused(&proxy, &as_who("plain_user", "wrong"));
        assert_eq!(expired.trace(), wrong.trace(), "{method}");
        let said = expired.error().and_then(|error| error.field(b'M'));
        assert_eq!(said.as_deref(), Some("password authentication failed for user \"scram_user\""));
        assert!(proxy.log().contains("the password has expired"), "{method}");

        let mut console =
            Wire::login(proxy.addr(), &Login::new("plain_user", "bursar").password("plain_user"));
        let seen = console.query("select valid_until from bursar.users where name = 'scram_user'");
        assert_eq!(seen.value(), "2020-01-31T23:00:00Z");
        drop(console);
        proxy.stop();
    }
}

#[test]
fn the_password_before_logs_in_until_it_is_taken_out() {
    let db = Db::new();
    let file = db.cluster().subdir("previous").join("password");
    std::fs::write(&file, "old\n").expect("a file");
    let secret = db.ask("select rolpassword from pg_authid where rolname = 'scram_user'");
    for (method, password, previous, is) in [
        ("plain", "new", format!("previous_password_file = \"{}\"", file.display()), "old"),
        ("md5", "new", "previous_password = \"old\"".to_owned(), "old"),
        ("scram-sha-256", "new", format!("previous_password_file = \"{}\"", file.display()), "old"),
        ("scram-sha-256", "new", format!("previous_password = \"{secret}\""), "scram_user"),
        ("plain", "new", format!("previous_password = \"{secret}\""), "scram_user"),
    ] {
        let base = Config::of_size(2).with("auth", &format!("method = \"{method}\""));
        let base =
            base.with("user.app", &format!("password = \"{password}\"")).with("log", "level = \"debug\"");
        let proxy = Proxy::start(&db, base.clone().with("user.app", &previous));
        for (given, which) in [(password, "current"), (is, "previous")] {
            let mut client = Wire::login(proxy.addr(), &proxy.as_app().password(given));
            assert_eq!(client.query("select current_user").value(), "app", "{method}");
            client.bye();
            let log = proxy.log();
            let said = log.lines().rfind(|line| line.contains("authenticated")).expect("it is logged");
            assert!(said.contains(&format!("password={which}")), "{said}");
        }
        assert_eq!(refused(&proxy, &proxy.as_app().password("wrong")).code(), "28P01", "{method}");
        proxy.stop();
        let proxy = Proxy::start(&db, base);
        assert_eq!(refused(&proxy, &proxy.as_app().password(is)).code(), "28P01", "{method}");
        proxy.stop();
    }
}

/// A server that asks everybody for SCRAM, or md5, and a Bursar that has verifiers and no password.
#[test]
fn who_has_proved_himself_is_let_in_to_the_server_without_a_password_in_the_configuration() {
    let db = Db::new();
    let secret = |role: &str| db.ask(&format!("select rolpassword from pg_authid where rolname = '{role}'"));
    for (role, method) in
        [("scram_user", "scram-sha-256"), ("scram_user", "plain"), ("md5_user", "md5"), ("md5_user", "plain")]
    {
        let config = Config::of_size(2).with("auth", &format!("method = \"{method}\""));
        let config = config.with(&format!("user.{role}"), &format!("password = \"{}\"", secret(role)));
        let proxy = Proxy::start(&db, config.with("pool", "min_idle = 2"));
        let login = Login::new(role, db.name());
        // A wrong password opens nothing.
        assert_eq!(refused(&proxy, &login.clone().password("wrong")).code(), "28P01");
        assert_eq!(db.pids(), Vec::<i32>::new());
        let mut client = Wire::login(proxy.addr(), &login.password(role));
        assert_eq!(client.query("select current_user").value(), role, "{method}");
        until("as many as are to be idle", || db.pids().len() == 2);
        drop(client);
        proxy.stop();
    }
}

/// It would not get better by waiting, and is told before `max_wait` and `listen.login_timeout`.
#[test]
fn who_has_another_verifier_on_the_server_is_told_so() {
    let db = Db::new();
    let mut admin = db.cluster().admin();
    admin.batch("create role twin_of_scram_user password 'scram_user'");
    // The same password under another salt.
    let other = db.ask("select rolpassword from pg_authid where rolname = 'twin_of_scram_user'");
    let config = |method: &str, user: &str| {
        let config = Config::of_size(1).with("auth", &format!("method = \"{method}\""));
        config
            .with("pool", "max_wait = \"30s\"")
            .with("breaker", "refused = \"5m\"")
            .with("pool", "replication = \"pass\"")
            .with("user.scram_user", user)
    };
    const OTHER: &str = "authentication: the server has another verifier of this role than Bursar, and no password is configured";
    const NONE: &str = "authentication: the server asks for a password, none is configured, and no client has shown what would serve instead";
    let verifier = format!("password = \"{other}\"");
    for (method, user, why) in [
        ("scram-sha-256", verifier.as_str(), OTHER),
        ("plain", &verifier, OTHER),
        ("trust", "mode = \"transaction\"", NONE),
    ] {
        let proxy = Proxy::start(&db, config(method, user));
        let login = Login::new("scram_user", db.name()).password("scram_user");
        // The first time, behind the door that has closed by then, and without a pool.
        for login in [login.clone(), login.clone(), login.clone(), login.with("replication", "database")] {
            let reply = refused(&proxy, &login);
            let error = reply.error().unwrap_or_else(|| panic!("{method}: {reply:?}"));
            assert_eq!(error.to_string(), "E(FATAL 57P03)", "{method}");
            assert_eq!(error.field(b'D').as_deref(), Some(why), "{method}");
        }
        assert!(proxy.log().contains(why), "{method}");
        proxy.stop();
    }
}
