//! What PostgreSQL lets in is read, once and beside all work, and sizes that do not fit are named with the keys to
//! change (docs/pool-sizing.md).

use crate::support::watch::{bursar, leases, metric, printed, rows};
use crate::support::{Cluster, Config, Db, Login, Proxy, Stop, Wire, msg, until};

/// Rows of advice about limits, one a line.
fn advice(proxy: &Proxy, topic: &str) -> Vec<String> {
    let sql = format!("select scope, finding, advice from bursar.advice where topic = '{topic}'");
    rows(&mut proxy.console(), &sql).into_iter().map(|row| row.join(" | ")).collect()
}

/// What is known of the server: `max_connections`, and what of it is reserved.
fn known(proxy: &Proxy) -> Vec<String> {
    rows(&mut proxy.console(), "select max_connections, reserved from bursar.upstreams").concat()
}

/// Warnings and notes about limits in the log.
fn told(proxy: &Proxy) -> usize {
    proxy.log().matches("connection_limit").count()
}

fn enter(proxy: &Proxy, role: &str, db: &Db<'_>) -> Wire {
    let mut client = Wire::login(proxy.addr(), &Login::new(role, db.name()));
    assert_eq!(client.query("select 1").value(), "1");
    client
}

/// A role of this name on the shared server, with such a limit.
fn role(db: &Db<'_>, name: &str, limit: u32) {
    db.cluster().admin().batch(&format!("drop role if exists {name}"));
    db.cluster().admin().batch(&format!("create role {name} login connection limit {limit}"));
}

#[test]
fn sizes_that_fit_are_read_about_and_not_talked_about() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    assert_eq!(client.query("select 1").value(), "1");
    until("the limits are known", || known(&proxy) == ["300", "3"]);
    let version = rows(&mut proxy.console(), "select version, managed from bursar.upstreams").concat();
    let expected = db.value("show server_version");
    assert_eq!(version, [expected.split(' ').next().expect("a version"), "-"]);
    assert_eq!(
        metric(&proxy, &format!("bursar_server_max_connections{{upstream=\"{}\"}}", db.cluster().addr())),
        300.0
    );
    assert_eq!(advice(&proxy, "connection_limit"), [""; 0]);
    assert_eq!(told(&proxy), 0);
    // It was nobody's lease, and took no connection more: the one backend is there as before.
    let total =
        rows(&mut proxy.console(), "select leases_total from bursar.pools where user = 'app'").concat();
    // One for the login, one for the statement.
    assert_eq!((db.pids().len(), leases(&proxy), total), (1, 0, vec!["2".to_owned()]));
    let backends = rows(&mut proxy.console(), "select remote_pid from bursar.servers").concat();
    assert_eq!(backends, [client.query("select pg_backend_pid()").value()]);
    proxy.stop();
}

#[test]
fn a_server_that_lets_in_fewer_is_named_and_read_again_when_it_was_started_anew() {
    let cluster = Cluster::with(&["max_connections=20"]);
    let db = Db::within(&cluster);
    let server = cluster.addr();
    let proxy = Proxy::start(&db, Config::of_size(30).with("pool", "max_wait = \"20s\""));
    let mut client = proxy.connect();
    assert_eq!(client.query("select 1").value(), "1");
    let name = db.name();
    let row = |max: u32, reserved: u32, fit: u32| {
        format!(
            "server {server} | 1 pool may open 30 backends; max_connections = {max}, of which {reserved} are reserved | \
             Set server.max_backends = {fit} and database.{name}.size = {fit}, or raise max_connections."
        )
    };
    until("the finding is there", || advice(&proxy, "connection_limit") == [row(20, 3, 13)]);
    until("it is in the log", || told(&proxy) == 1);
    let line = proxy.log();
    let line = line.lines().find(|line| line.contains("connection_limit")).expect("a line");
    assert!(line.contains("WARN") && line.contains("max_connections = 20"), "{line}");

    // More than PostgreSQL lets in: it is said which limit that was.
    let mut crowd: Vec<Wire> = (0..20).map(|_| proxy.connect()).collect();
    for client in &mut crowd {
        client.send(&msg::query("begin; select 1"));
    }
    let refused = || advice(&proxy, "connection_refused");
    until("PostgreSQL refuses", || {
        refused().iter().any(|row| row.contains("max_connections of the server was used up"))
    });
    until("the log names it", || {
        proxy.log().contains("with SQLSTATE 53300, max_connections of the server being used up")
    });
    drop(crowd);

    // Another server, as far as anybody can tell. Reserved connections there are from PostgreSQL 16 on.
    let newer = db.value("show server_version_num").parse::<u32>().expect("a number") >= 160_000;
    cluster.stop(Stop::Fast);
    cluster.set("max_connections=30");
    cluster.set(if newer { "reserved_connections=4" } else { "superuser_reserved_connections=7" });
    cluster.start();
    until("the new limits are known", || {
        proxy.connect().query("select 1");
        known(&proxy) == ["30", "7"]
    });
    assert_eq!(advice(&proxy, "connection_limit"), [row(30, 7, 18)]);
    until("the change is in the log", || told(&proxy) == 2);
    proxy.stop();
}

#[test]
fn limits_of_roles_and_databases_are_named_with_the_keys_to_change() {
    let db = Db::new();
    role(&db, "limits_five", 5);
    let (name, server) = (db.name(), db.cluster().addr());
    let mut proxy = Proxy::start(&db, Config::of_size(10).with("pool", "max_wait = \"20s\""));
    drop(enter(&proxy, "limits_five", &db));
    let of_role = format!(
        "role limits_five at {server} | 1 pool may open 10 backends; the role's CONNECTION LIMIT is 5 | \
         Set database.{name}.size = 5, or raise it (ALTER ROLE … CONNECTION LIMIT 10)."
    );
    until("the role's limit is named", || advice(&proxy, "connection_limit") == [&*of_role]);
    until("it is in the log", || told(&proxy) == 1);

    let mut crowd: Vec<Wire> = (0..7).map(|_| enter(&proxy, "limits_five", &db)).collect();
    for client in &mut crowd {
        client.send(&msg::query("begin; select 1"));
    }
    until("PostgreSQL refuses", || {
        let rows = advice(&proxy, "connection_refused");
        rows.iter().any(|row| row.contains("the role's CONNECTION LIMIT was used up"))
    });
    crowd.into_iter().for_each(drop);

    // What is done about it is seen: there with the next connections, here with the reload.
    db.cluster().admin().batch("alter role limits_five connection limit 10");
    db.cluster().admin().batch(&format!("alter database {name} connection limit 4"));
    let of_database = format!(
        "database {name} at {server} | 1 pool may open 10 backends; the database's CONNECTION LIMIT is 4 | \
         Set database.{name}.size = 4, or raise it (ALTER DATABASE … CONNECTION LIMIT 10)."
    );
    until("no backend is held", || leases(&proxy) == 0);
    proxy.console().batch("reconnect");
    until("the database's limit is named instead", || {
        drop(enter(&proxy, "limits_five", &db));
        advice(&proxy, "connection_limit") == [&*of_database]
    });
    proxy.change("pool", "size = 4");
    proxy.console().batch("reload");
    until("nothing is left to say", || advice(&proxy, "connection_limit").is_empty());
    proxy.stop();
    db.cluster().admin().batch("drop role limits_five");
}

#[test]
fn a_role_that_may_not_look_is_left_alone_with_what_is_known() {
    let db = Db::new();
    role(&db, "limits_kept_out", 5);
    let mut superuser = Wire::login(db.cluster().addr(), &Login::new("postgres", db.name()));
    for view in ["pg_roles", "pg_database", "pg_settings"] {
        superuser.batch(&format!("revoke select on pg_catalog.{view} from public"));
    }
    let proxy = Proxy::start(&db, Config::of_size(10));
    let mut client = enter(&proxy, "limits_kept_out", &db);
    let pid = client.query("select pg_backend_pid()").value();
    until("what may be read is", || known(&proxy) == ["300", "3"]);
    assert_eq!(advice(&proxy, "connection_limit"), [""; 0]);
    assert_eq!(client.query("select pg_backend_pid()").value(), pid, "the backend is as good as before");
    drop(client);
    proxy.stop();
    db.cluster().admin().batch("drop role limits_kept_out");
}

#[test]
fn a_pool_that_never_rests_is_asked_about_beside_it() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    client.batch("begin");
    assert_eq!(client.query("select 1").value(), "1");
    until("the limits are known", || known(&proxy) == ["300", "3"]);
    assert_eq!(client.query("commit").trace(), "C(COMMIT) Z(I)");
    until("the connection beside is gone", || db.pids().len() == 1);
    proxy.stop();
}

#[test]
fn check_logs_in_and_names_what_does_not_fit() {
    let db = Db::new();
    role(&db, "limits_checked", 5);
    let (name, server) = (db.name(), db.cluster().addr());
    let table = format!("database.{name}");
    let config = |size: usize, role: &str| {
        Config::of_size(size)
            .with(&table, &format!("user = \"{role}\""))
            .with("user.limits_checked", "mode = \"transaction\"")
    };
    let check = |proxy: &Proxy, more: &[&str]| {
        let file = proxy.config_file().display().to_string();
        let output = bursar(&[&["check", "--connect", "--config", &file], more].concat());
        (output.status.code(), printed(&output).replace(&file, "FILE"))
    };
    let version = db.value("show server_version");
    let version = version.split(' ').next().expect("a version");
    let asked = format!(
        "database {name} as limits_checked: PostgreSQL {version}, max_connections 300 (3 reserved), \
         limit of the role 5, of the database none\n"
    );
    let caution = format!(
        "FILE: caution: role limits_checked at {server}: 1 pool may open 10 backends; the role's CONNECTION LIMIT \
         is 5. Set database.{name}.size = 5, or raise it (ALTER ROLE … CONNECTION LIMIT 10).\n"
    );
    let proxy = Proxy::start(&db, config(10, "limits_checked"));
    let good = "FILE: good; every server answers\n";
    assert_eq!(check(&proxy, &[]), (Some(0), format!("{asked}{caution}{good}")));
    let bad = "FILE: not good: see above (--strict)\n";
    assert_eq!(check(&proxy, &["--strict"]), (Some(64), format!("{asked}{caution}{bad}")));
    proxy.stop();
    let proxy = Proxy::start(&db, config(5, "limits_checked"));
    assert_eq!(check(&proxy, &["--strict"]), (Some(0), format!("{asked}{good}")));
    proxy.stop();
    let proxy = Proxy::start(&db, config(5, "limits_nobody"));
    let nobody =
        format!("database {name} as limits_nobody: not asked: refused by the server with SQLSTATE 28000\n");
    assert_eq!(check(&proxy, &[]), (Some(0), format!("{nobody}{good}")));
    assert_eq!(check(&proxy, &["--strict"]), (Some(64), format!("{nobody}{bad}")));
    proxy.stop();
    db.cluster().admin().batch("drop role limits_checked");
}
