//! Who may do what on the console and over HTTP: to see the views, to act, to see the texts of statements.

use crate::drivers::installed;
use crate::support::watch::{get, get_as, get_from, printed, psql, row, status};
use crate::support::{Config, Db, Login, Proxy, Wire, msg};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;

const DENIED: &str = "E(42501) Z(I)";
const TEXT: &str = "select 'of a client'";

/// One user for each right, whose password is his name.
fn config() -> Config {
    let mut config = Config::of_size(2)
        .with("leak", "statement_text = true")
        .with("admin", "users = [\"keeper\"]")
        .with("admin", "view = [\"viewer\"]")
        .with("admin", "act = [\"operator\"]")
        .with("admin", "sql = [\"reader\"]");
    for user in ["keeper", "viewer", "operator", "reader", "app"] {
        config = config.with(&format!("user.{user}"), &format!("password = \"{user}\""));
    }
    config
}

/// A client that holds a lease, whose last statement is [`TEXT`].
fn busy(proxy: &Proxy) -> Wire {
    let mut client = proxy.connect_for("acme", "r-1");
    client.batch("begin");
    client.batch(TEXT);
    client
}

#[test]
fn psql_is_answered_as_its_user_may_ask() {
    let db = Db::new();
    let proxy = Proxy::start(&db, config());
    let client = busy(&proxy);
    for (user, acts, reads) in
        [("keeper", true, true), ("viewer", false, false), ("operator", true, false), ("reader", false, true)]
    {
        let seen = psql(&proxy, user, "SELECT tenant, last_statement FROM bursar.leases");
        let text = if reads { TEXT } else { "" };
        assert_eq!(printed(&seen), format!("tenant,last_statement\nacme,{text}\n"), "{user}");
        let shown = psql(&proxy, user, "SHOW LEASES");
        assert_eq!((shown.status.success(), printed(&shown).contains(TEXT)), (true, reads), "{user}");
        let acted = psql(&proxy, user, "RESUME");
        assert_eq!(acted.status.success(), acts, "{user}: {}", printed(&acted));
        if !acts {
            let told = "ERROR:  bursar: a right is missing\nDETAIL:  It takes the right \"act\".\nHINT:  Name the \
                        user in admin.act, or in admin.users for every right, and reload.\n";
            assert_eq!(printed(&acted), told);
        }
    }
    let stranger = psql(&proxy, "app", "SHOW VERSION");
    assert_eq!(stranger.status.code(), Some(2), "psql's code for no connection");
    assert!(printed(&stranger).contains("Name the user in admin.view, or in admin.users for every right."));
    drop(client);
    proxy.stop();
}

#[test]
fn a_right_that_is_taken_away_is_missing_from_the_next_statement_on() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, config().with("admin", "watch = false"));
    let client = busy(&proxy);
    let open = |user: &str| Wire::login(proxy.addr(), &Login::new(user, "bursar"));
    let (mut keeper, mut operator, mut reader) = (open("keeper"), open("operator"), open("reader"));
    reader.ask(&[msg::parse("leases", "select last_statement from bursar.leases"), msg::sync()].concat());
    let execute = [msg::bind("", "leases"), msg::execute("", 0), msg::sync()].concat();
    assert_eq!(operator.query("resume").trace(), "C(RESUME) Z(I)");
    assert_eq!(reader.ask(&execute).value(), TEXT);

    // Both are viewers now.
    proxy.change("admin", "act = []");
    proxy.change("admin", "sql = []");
    proxy.change("admin", "view = [\"operator\", \"reader\"]");
    assert!(keeper.query("reload").trace().ends_with("C(RELOAD) Z(I)"));
    assert_eq!(operator.query("resume").trace(), DENIED);
    assert_eq!(reader.ask(&execute).rows(), [[None]]);
    assert_eq!(row(&mut reader, "select last_statement is null from bursar.leases"), ["t"]);

    proxy.change("admin", "view = []");
    assert!(keeper.query("reload").trace().ends_with("C(RELOAD) Z(I)"));
    for console in [&mut operator, &mut reader] {
        assert_eq!(console.query("show pools").trace(), DENIED);
        assert_eq!(console.query("select 1").value(), "1", "the connection stays");
    }
    assert_eq!(reader.ask(&execute).code(), "42501");
    assert_eq!(keeper.query("show pools").rows().len(), 1);
    drop(client);
    proxy.stop();
}

#[test]
fn http_asks_who_you_are_and_shows_what_you_may_see() {
    let db = Db::new();
    let proxy = Proxy::start(&db, config());
    let client = busy(&proxy);
    for path in ["/livez", "/readyz", "/healthz/db", "/metrics"] {
        assert_eq!(status(&proxy, path), 200, "{path}");
    }
    for path in ["/", "/api/leases"] {
        assert_eq!(status(&proxy, path), 401, "{path}");
        assert_eq!(get_as(&proxy, path, "keeper", "wrong").map(|answer| answer.0), Some(401));
        assert_eq!(get_as(&proxy, path, "nobody", "nobody").map(|answer| answer.0), Some(401));
        assert_eq!(get_as(&proxy, path, "app", "app").map(|answer| answer.0), Some(403));
        assert_eq!(get_as(&proxy, path, "operator", "operator").map(|answer| answer.0), Some(200));
    }
    // A client that knows nothing of Bursar answers the challenge.
    let script = "import sys, urllib.request as web\n\
        words = web.HTTPPasswordMgrWithDefaultRealm()\n\
        words.add_password('bursar', sys.argv[1], sys.argv[2], sys.argv[2])\n\
        print(web.build_opener(web.HTTPBasicAuthHandler(words)).open(sys.argv[1] + '/api/leases').read().decode())";
    for (user, text) in [("keeper", Some(TEXT)), ("reader", Some(TEXT)), ("viewer", None), ("operator", None)]
    {
        let mut browser = Command::new(installed("python/bin/python"));
        browser
            .args(["-c", script, &format!("http://{}", proxy.admin_addr()), user])
            .env_remove("http_proxy");
        let output = browser.output().expect("Python runs");
        let leases: serde_json::Value = serde_json::from_str(&printed(&output)).unwrap_or_else(|error| {
            panic!("{user}: {error}: {}", printed(&output));
        });
        assert_eq!((&leases[0]["tenant"], leases.as_array().map(Vec::len)), (&"acme".into(), Some(1)));
        assert_eq!(leases[0]["last_statement"].as_str(), text, "{user}");
    }
    let log = proxy.log();
    assert!(log.contains("authentication over HTTP failed"), "{log}");
    assert!(!log.contains("wrong\"") && !log.contains("Basic") && !log.contains("a2VlcGVy"), "{log}");
    drop(client);
    proxy.stop();
}

/// An address of this machine that is not loopback, if it has any. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

#[test]
fn from_elsewhere_only_health_and_metrics_are_open() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2).with("admin", "address = \"0.0.0.0\""));
    assert_eq!(
        get(&proxy, "/api/pools").map(|answer| answer.0),
        Some(200),
        "this machine, and nobody is named"
    );
    assert_eq!(status(&proxy, "/"), 200);
    // A machine without a network has nowhere else to come from; src/http tests that part of it.
    if let Some(address) = own_address() {
        let elsewhere = SocketAddr::new(address, proxy.admin_addr().port());
        for (path, expected) in [
            ("/livez", 200),
            ("/readyz", 200),
            ("/healthz/db", 200),
            ("/metrics", 200),
            ("/", 401),
            ("/api/pools", 401),
        ] {
            let answer = get_from(elsewhere, path, "").map(|answer| answer.0);
            assert_eq!(answer, Some(expected), "{path} from {address}");
        }
    }
    proxy.stop();
}
