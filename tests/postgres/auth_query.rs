//! Users that PostgreSQL is asked about, before a server that asks everybody for a password, with the function of
//! `deploy/sql/verifier.sql`; no password of theirs is in Bursar's configuration.

use super::auth::refused;
use super::drivers::installed;
use crate::support::watch::metric;
use crate::support::{Cluster, Config, Db, Login, PATIENCE, Proxy, Stop, Wire, until};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const FUNCTION: &str = include_str!("../../deploy/sql/verifier.sql");
const PASSWORD: &str = "correct horse";

/// Two quotes, a statement, and letters of more than one byte: 63 bytes, as many as a name may have.
fn hostile() -> String {
    let start = "o'; drop role \"app\"; -- \\ ü$1 €";
    format!("{start}{}", "x".repeat(63 - start.len()))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A server that asks for SCRAM, or md5 if a role has that.
pub(super) fn strict() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(new_strict)
}

fn new_strict() -> Cluster {
    let cluster = Cluster::new();
    let mut admin = cluster.admin();
    for batch in [
        FUNCTION.to_owned(),
        format!("alter role bursar password '{PASSWORD}'"),
        format!("create role {} login password '{PASSWORD}'", quoted(&hostile())),
        format!("create role late login password '{PASSWORD}' valid until '2020-01-01'"),
        format!("create role timely login password '{PASSWORD}' valid until '2120-01-01'"),
        "create role boss superuser login password 'boss'".to_owned(),
    ] {
        admin.batch(&batch);
    }
    cluster.admit("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 md5\n");
    until("the server asks for passwords", || {
        Wire::try_login(cluster.addr(), &Login::new("app", "postgres")).is_err()
    });
    cluster
}

pub(super) fn config(method: &str) -> Config {
    Config::of_size(2)
        .with("auth", &format!("method = \"{method}\""))
        .with("auth", "query = \"SELECT * FROM bursar.verifier($1)\"")
        .with("auth", "query_user = \"bursar\"")
        .with("auth", &format!("query_password = \"{PASSWORD}\""))
        .with("auth", "query_ttl = \"1h\"")
}

fn login(db: &Db<'_>, user: &str, password: &str) -> Login {
    Login::new(user, db.name()).password(password)
}

#[test]
fn users_of_the_server_log_in_and_bursar_as_them() {
    let db = Db::within(strict());
    for (method, roles) in [
        ("scram-sha-256", &["scram_user", "plain_user"][..]),
        ("plain", &["scram_user", "md5_user"]),
        ("md5", &["md5_user"]),
    ] {
        let proxy = Proxy::start(&db, config(method));
        for role in roles {
            let mut client = Wire::login(proxy.addr(), &login(&db, role, role));
            assert_eq!(client.query("select current_user").value(), *role, "{method}");
            // Its password is known to nobody here.
            assert_eq!(refused(&proxy, &login(&db, role, "wrong")).code(), "28P01", "{method}");
        }
        proxy.stop();
    }
}

#[test]
fn drivers_log_in_too() {
    let db = Db::within(strict());
    let proxy = Proxy::start(&db, config("scram-sha-256"));
    let port = proxy.addr().port();
    let url = format!("postgresql://scram_user:scram_user@127.0.0.1:{port}/{}", db.name());

    let mut psql = Command::new(db.cluster().program("psql"));
    psql.args(["-XAtc", "select current_user", &url]);
    let script = "import psycopg,sys\nprint(psycopg.connect(sys.argv[1]).execute('select current_user').fetchone()[0])";
    let mut psycopg = Command::new(installed("python/bin/python"));
    psycopg.args(["-c", script, &url]);
    for mut program in [psql, psycopg] {
        let output = program.stdin(Stdio::null()).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim(), "scram_user", "{}", String::from_utf8_lossy(&output.stderr));
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let asked = async {
        let (client, connection) =
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("logged in");
        tokio::spawn(connection);
        client.query_one("select current_user::text", &[]).await.expect("a row").get::<_, String>(0)
    };
    let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await });
    assert_eq!(asked.expect("in time"), "scram_user");
    proxy.stop();
}

#[test]
fn a_hostile_name_arrives_as_it_was_sent() {
    let db = Db::within(strict());
    let proxy = Proxy::start(&db, config("scram-sha-256"));
    let name = hostile();
    assert_eq!(name.len(), 63);
    let mut client = Wire::login(proxy.addr(), &login(&db, &name, PASSWORD));
    assert_eq!(client.query("select current_user").value(), name);
    // One byte more is another name, which PostgreSQL would cut.
    assert_eq!(refused(&proxy, &login(&db, &format!("{name}x"), PASSWORD)).code(), "28P01");
    assert_eq!(db.ask("select count(*) from pg_roles where rolname = 'app'"), "1");
    proxy.stop();
}

#[test]
fn who_may_not_log_in_looks_like_a_wrong_password() {
    let db = Db::within(strict());
    for method in ["scram-sha-256", "plain"] {
        let proxy = Proxy::start(&db, config(method));
        drop(Wire::login(proxy.addr(), &login(&db, "timely", PASSWORD)));
        // An expired one (asked, then remembered), nobody, a group, a superuser, and who has no password.
        let seen: Vec<String> = [
            ("timely", "wrong"),
            ("late", PASSWORD),
            ("late", PASSWORD),
            ("nobody", PASSWORD),
            ("group_role", PASSWORD),
            ("boss", "boss"),
            ("app", ""),
        ]
        .iter()
        .map(|(user, password)| {
            let reply = refused(&proxy, &login(&db, user, password));
            let said = reply.error().and_then(|error| error.field(b'M')).expect("a message");
            assert_eq!(said, format!("password authentication failed for user \"{user}\""), "{method}");
            reply.trace()
        })
        .collect();
        assert!(seen.iter().all(|trace| *trace == seen[0]), "{method}: {seen:?}");
        assert!(proxy.log().contains("the password has expired"), "the log says why");
        assert!(!proxy.log().contains(PASSWORD) && !proxy.log().contains("SCRAM-SHA-256$"));
        proxy.stop();
    }
}

#[test]
fn a_new_password_works_though_the_old_one_is_remembered() {
    let db = Db::within(strict());
    for (method, role, attempts) in [("plain", "new_plain", 1), ("scram-sha-256", "new_scram", 2)] {
        let mut admin = db.cluster().admin();
        admin.batch(&format!("create role {role} login password 'old'"));
        let proxy = Proxy::start(&db, config(method));
        drop(Wire::login(proxy.addr(), &login(&db, role, "old")));
        admin.batch(&format!("alter role {role} password 'new'"));
        // In SCRAM the client has answered the old salt by the time that anybody can know.
        for _ in 1..attempts {
            assert_eq!(refused(&proxy, &login(&db, role, "new")).code(), "28P01", "{method}");
        }
        let mut client = Wire::login(proxy.addr(), &login(&db, role, "new"));
        assert_eq!(client.query("select current_user").value(), role);
        assert_eq!(refused(&proxy, &login(&db, role, "old")).code(), "28P01", "{method}");
        // And a backend opened now is opened by the new one.
        db.terminate_backends();
        let mut client = Wire::login(proxy.addr(), &login(&db, role, "new"));
        assert_eq!(client.query("select current_user").value(), role);
        client.bye();
        proxy.stop();
        admin.batch(&format!("drop role {role}"));
    }
}

#[test]
fn who_is_not_known_any_more_has_shown_nothing() {
    let db = Db::within(strict());
    let mut admin = db.cluster().admin();
    admin.batch("create role leaver login password 'leaver'");
    let config = config("scram-sha-256").with("auth", "query_ttl = \"0s\"");
    let config = config.with("pool", "max_wait = \"2s\"").with("breaker", "refused = \"100ms\"");
    let proxy = Proxy::start(&db, config);
    let leaver = login(&db, "leaver", "leaver");
    let mut client = Wire::login(proxy.addr(), &leaver);
    assert_eq!(client.query("select current_user").value(), "leaver");
    // Whatever else opens backends as him: what he has shown serves.
    db.terminate_backends();
    assert_eq!(client.query("select current_user").value(), "leaver");

    admin.batch("alter role leaver nologin");
    assert_eq!(refused(&proxy, &leaver).code(), "28P01");
    admin.batch("alter role leaver login");
    db.terminate_backends();
    const NOTHING: &str = "no client has shown what would serve instead";
    assert!(!proxy.log().contains(NOTHING), "{}", proxy.log());
    assert_ne!(client.query("select 1").code(), "");
    assert!(proxy.log().contains(NOTHING), "{}", proxy.log());
    // Until he comes again.
    until("he is let in", || Wire::try_login(proxy.addr(), &leaver).is_ok());
    assert_eq!(client.query("select current_user").value(), "leaver");

    let lookups = |result| metric(&proxy, &format!("bursar_user_lookups_total{{result=\"{result}\"}}"));
    assert!(lookups("found") >= 2.0);
    // He is asked for again when his password does not help him.
    assert_eq!((lookups("unknown"), lookups("failed")), (1.0, 0.0));
    let answered = lookups("found") + lookups("unknown");
    assert_eq!(metric(&proxy, "bursar_user_lookup_seconds_count"), answered);
    client.bye();
    proxy.stop();
    admin.batch("drop role leaver");
}

#[test]
fn a_flood_of_logins_of_one_user_asks_once() {
    let db = Db::within(strict());
    let mut admin = db.cluster().admin();
    admin.batch("create sequence questions");
    admin.batch("grant usage on sequence questions to bursar");
    let counted =
        "SELECT v.* FROM (SELECT nextval('questions'), pg_sleep(0.5)) q, LATERAL bursar.verifier($1) v";
    let proxy = Proxy::start(&db, config("scram-sha-256").with("auth", &format!("query = \"{counted}\"")));
    let (addr, login) = (proxy.addr(), login(&db, "scram_user", "scram_user"));
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| drop(Wire::login(addr, &login)));
        }
    });
    assert_eq!(db.ask("select last_value from questions"), "1");
    proxy.stop();
}

#[test]
fn a_server_that_is_away_is_said_to_be_and_the_known_stay_known() {
    let cluster = new_strict();
    let db = Db::within(&cluster);
    let proxy = Proxy::start(&db, config("scram-sha-256").with("pool", "max_wait = \"100ms\""));
    let known = login(&db, "scram_user", "scram_user");
    drop(Wire::login(proxy.addr(), &known));
    cluster.stop(Stop::Fast);
    for _ in 0..3 {
        let reply = refused(&proxy, &login(&db, "plain_user", "plain_user"));
        let error = reply.error().expect("an error");
        assert_eq!(error.to_string(), "E(FATAL 57P03)", "{reply:?}");
        assert_eq!(error.field(b'M').as_deref(), Some("bursar: users cannot be looked up at the moment"));
    }
    assert_eq!(proxy.log().matches("ERROR").count(), 1, "once: {}", proxy.log());
    // Who is known is asked for his password, and told so if it is wrong.
    assert_eq!(refused(&proxy, &login(&db, "scram_user", "wrong")).code(), "28P01");
    cluster.start();
    drop(Wire::login(proxy.addr(), &login(&db, "plain_user", "plain_user")));
    proxy.stop();
}

#[test]
fn users_of_the_configuration_come_first() {
    let db = Db::within(strict());
    let config = config("scram-sha-256").with("user.scram_user", "password = \"of the file\"");
    let config = config.with("database.\"*\"", "user = \"plain_user\"");
    let proxy = Proxy::start(&db, config.with("database.\"*\"", "password = \"plain_user\""));
    let mut client = Wire::login(proxy.addr(), &login(&db, "scram_user", "of the file"));
    // The database's own role serves everybody.
    assert_eq!(client.query("select current_user").value(), "plain_user");
    assert_eq!(refused(&proxy, &login(&db, "scram_user", "scram_user")).code(), "28P01");
    let mut client = Wire::login(proxy.addr(), &login(&db, "timely", PASSWORD));
    assert_eq!(client.query("select current_user").value(), "plain_user");
    proxy.stop();
}
