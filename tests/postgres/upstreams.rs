//! Several servers for one database: which of them will do, and who takes over. A real primary and a real
//! streaming standby.

use crate::support::{Cluster, Config, Db, Login, Proxy, Reply, Stop, Wire, ports, until};

/// Longer than a promotion takes on a busy machine.
const LONG: &str = "max_wait = \"30s\"";

fn hosts(servers: &[&Cluster]) -> String {
    let list: Vec<String> = servers.iter().map(|server| format!("\"{}\"", server.addr())).collect();
    format!("host = [{}]", list.join(", "))
}

fn config(servers: &[&Cluster], attrs: &str) -> Config {
    Config::of_size(3)
        .with("pool", LONG)
        .with("database.\"*\"", &hosts(servers))
        .with("database.\"*\"", &format!("target_session_attrs = \"{attrs}\""))
}

/// Six clients of a primary whose standby is at hand, and a table to write to.
fn six_clients<'c>(primary: &'c Cluster, attrs: &str) -> (Db<'c>, Cluster, Proxy, Vec<Wire>) {
    let db = Db::within(primary);
    db.run(&["create table kept (id int)"]);
    let standby = Cluster::standby_of(primary);
    let proxy = Proxy::start(&db, config(&[primary, &standby], attrs));
    let clients = (0..6).map(|_| proxy.connect()).collect();
    (db, standby, proxy, clients)
}

#[test]
fn a_pool_is_where_its_session_attributes_are() {
    let primary = Cluster::new();
    let db = Db::within(&primary);
    let standby = Cluster::standby_of(&primary);
    let port = |cluster: &Cluster| cluster.addr().port().to_string();
    for (attrs, servers, expected) in [
        ("any", [&standby, &primary], &standby),
        ("read-write", [&standby, &primary], &primary),
        ("primary", [&standby, &primary], &primary),
        ("standby", [&primary, &standby], &standby),
        ("read-only", [&primary, &standby], &standby),
        ("prefer-standby", [&primary, &standby], &standby),
    ] {
        let proxy = Proxy::start(&db, config(&servers, attrs));
        let mut client = proxy.connect();
        assert_eq!(client.query("show port").value(), port(expected), "{attrs}");
        client.bye();
        proxy.stop();
    }
    // A standby that is preferred, and not there.
    standby.stop(Stop::Fast);
    let proxy = Proxy::start(&db, config(&[&standby, &primary], "prefer-standby"));
    assert_eq!(proxy.connect().query("show port").value(), port(&primary));
    proxy.stop();
}

#[test]
fn after_a_failover_writes_go_to_the_new_primary_and_nothing_acknowledged_is_lost() {
    let primary = Cluster::new();
    let (db, standby, proxy, mut clients) = six_clients(&primary, "read-write");
    let mut written = 0;
    for client in &mut clients {
        assert_eq!(client.query("insert into kept values (1)").trace(), "C(INSERT 0 1) Z(I)");
        written += 1;
    }
    let seen =
        || Wire::login(standby.addr(), &Login::new("app", db.name())).query("select count(*) from kept");
    until("the standby has it all", || seen().value() == written.to_string());
    primary.stop(Stop::Immediate);
    standby.promote();
    for client in &mut clients {
        assert_eq!(client.query("insert into kept values (2)").trace(), "C(INSERT 0 1) Z(I)");
        written += 1;
    }
    assert_eq!(seen().value(), written.to_string());
    let rows = proxy.console().query("select breaker from bursar.upstreams").rows();
    assert_eq!(rows, [[Some("closed".to_owned())]]);
    // The old primary comes back and is left alone: the one that served last is asked first.
    primary.start();
    drop(clients);
    let mut late = proxy.connect();
    assert_eq!(late.query("show port").value(), standby.addr().port().to_string());
    drop(late);
    proxy.stop();
}

#[test]
fn every_way_that_fails_is_named() {
    let db = Db::new();
    let closed = [ports::free(), ports::free()];
    let servers = format!("host = \"127.0.0.1:{},127.0.0.1:{}\"", closed[0], closed[1]);
    let config = Config::of_size(1).with("database.\"*\"", &servers).with("pool", "max_wait = \"1s\"");
    let proxy = Proxy::start(&db, config);
    let told = format!("{:?}", Wire::try_login(proxy.addr(), &proxy.as_app()).err().expect("no way in"));
    assert!(told.contains("57P03"), "{told}");
    for port in closed {
        assert!(told.contains(&format!("127.0.0.1:{port}: connection failed")), "{told}");
    }
    proxy.stop();

    let standbyless = Config::of_size(1)
        .with("database.\"*\"", &format!("host = \"{}\"", db.cluster().addr()))
        .with("database.\"*\"", "target_session_attrs = \"standby\"")
        .with("pool", "max_wait = \"1s\"");
    let proxy = Proxy::start(&db, standbyless);
    let told = format!("{:?}", Wire::try_login(proxy.addr(), &proxy.as_app()).err().expect("no way in"));
    assert!(told.contains("not standby, which target_session_attrs wants"), "{told}");
    proxy.stop();
}

/// One write of each client: counts those done, and returns how many the server refused.
fn write_on(clients: &mut [Wire], written: &mut usize) -> usize {
    let mut refused = 0;
    for client in clients {
        let reply = client.query("insert into kept values (3)");
        match reply.code().as_str() {
            "" => *written += 1,
            "25006" => refused += 1,
            other => panic!("told {other}"),
        }
    }
    refused
}

#[test]
fn a_primary_that_is_demoted_with_its_connections_open_is_left_after_one_refused_write() {
    const SIZE: usize = 3;
    let primary = Cluster::new();
    let (db, standby, proxy, mut clients) = six_clients(&primary, "read-write");
    // All backends are open, and one is in a transaction that goes on where it is.
    for client in &mut clients[..SIZE] {
        client.batch("begin");
    }
    for client in &mut clients[1..SIZE] {
        client.batch("commit");
    }
    let mut written = 0;
    assert_eq!(write_on(&mut clients[1..], &mut written), 0);
    let at = |cluster: &Cluster| {
        let mut wire = Wire::login(cluster.addr(), &Login::new("app", db.name()));
        wire.query("select count(*) from kept").value()
    };
    until("the standby has it all", || at(&standby) == written.to_string());

    standby.promote();
    primary.admin().batch("alter system set default_transaction_read_only = on");
    primary.admin().batch("select pg_reload_conf()");
    until("the primary has heard", || primary.admin().query("show transaction_read_only").value() == "on");
    assert_eq!(
        write_on(&mut clients[1..2], &mut written),
        1,
        "refused, which says that the server has changed"
    );
    // The client has its answer a moment before the lease ends.
    until("it is noticed", || proxy.log().contains("the server has changed"));
    assert_eq!(write_on(&mut clients[1..], &mut written), 0);
    assert_eq!(at(&standby), written.to_string());
    // Nobody ended the transaction that was open.
    assert_eq!(clients[0].query("show port").value(), primary.addr().port().to_string());
    assert_eq!(clients[0].batch("commit").trace(), "C(COMMIT) Z(I)");
    assert_eq!(clients[0].query("show port").value(), standby.addr().port().to_string());
    drop(clients);
    proxy.stop();
}

#[test]
fn a_primary_that_restarts_as_a_standby_is_left_for_the_other() {
    let primary = Cluster::new();
    let (db, standby, proxy, mut clients) = six_clients(&primary, "primary");
    let mut written = 0;
    assert_eq!(write_on(&mut clients, &mut written), 0);
    // A primary that is asked to stop waits until its standby has everything.
    primary.stop(Stop::Fast);
    standby.promote();
    primary.demote(&standby);
    primary.start();
    assert_eq!(write_on(&mut clients, &mut written), 0);
    let mut direct = Wire::login(standby.addr(), &Login::new("app", db.name()));
    assert_eq!(direct.query("select count(*) from kept").value(), written.to_string());
    drop(clients);
    proxy.stop();
}

#[test]
fn a_promoted_standby_is_left_by_who_wants_a_standby() {
    let primary = Cluster::new();
    let db = Db::within(&primary);
    let (one, other) = (Cluster::standby_of(&primary), Cluster::standby_of(&primary));
    let proxy = Proxy::start(&db, config(&[&one, &other], "standby"));
    let mut client = proxy.connect();
    assert_eq!(client.query("show port").value(), one.addr().port().to_string());
    one.promote();
    // It says what it is with the next answer.
    until("the pool has moved", || client.query("show port").value() == other.addr().port().to_string());
    drop(client);
    proxy.stop();
}

#[test]
fn a_client_that_makes_itself_read_only_moves_nobody() {
    let db = Db::new();
    db.run(&["create table kept (id int)"]);
    let config = Config::of_size(1)
        .with("database.\"*\"", &format!("host = \"{}\"", db.cluster().addr()))
        .with("database.\"*\"", "target_session_attrs = \"read-write\"");
    let proxy = Proxy::start(&db, config);
    let mut client = proxy.connect();
    let mut other = proxy.connect();
    let pid = other.query("select pg_backend_pid()").value();
    for sql in [
        "begin read only; insert into kept values (1)",
        "set default_transaction_read_only = on",
        "insert into kept values (1)",
        "set session characteristics as transaction read write",
        "set session characteristics as transaction read only",
        "insert into kept values (1)",
    ] {
        let reply = client.query(sql);
        assert_eq!(reply.code(), if sql.contains("insert") { "25006" } else { "" }, "{sql}");
        client.query("rollback");
        assert_eq!(other.query("select pg_backend_pid()").value(), pid, "behind {sql}");
        assert_eq!(other.query("show transaction_read_only").value(), "off");
    }
    drop((client, other));
    proxy.stop();
}

/// What a reply says of the server, in the order told.
fn reported(reply: &Reply) -> Vec<String> {
    let about =
        |text: &String| text.contains("in_hot_standby") || text.contains("default_transaction_read_only");
    reply.messages.iter().map(|message| message.to_string()).filter(about).collect()
}

#[test]
fn clients_are_told_what_their_server_is_now() {
    let primary = Cluster::new();
    let db = Db::within(&primary);
    let standby = Cluster::standby_of(&primary);
    let config = Config::of_size(1).with("pool", LONG).with("database.\"*\"", &hosts(&[&primary, &standby]));
    let proxy = Proxy::start(&db, config);
    let [mut one, mut other] = [proxy.connect(), proxy.connect()];
    let told = |client: &Wire| client.parameters["in_hot_standby"].clone();
    assert_eq!([told(&one), told(&other)], ["off", "off"]);
    assert_eq!(reported(&one.query("select 1")), [""; 0], "nothing new");

    primary.stop(Stop::Immediate);
    for client in [&mut one, &mut other] {
        assert_eq!(client.query("select 1").trace(), "T D C(SELECT 1) S(in_hot_standby=on) Z(I)");
        assert_eq!(reported(&client.query("select 1")), [""; 0], "once");
    }
    let mut late = proxy.connect();
    assert_eq!(told(&late), "on", "what was known of the old server is forgotten");

    // What one of them sets itself is its own affair.
    assert_eq!(
        one.query("set default_transaction_read_only = on").trace(),
        "C(SET) S(default_transaction_read_only=on) Z(I)"
    );
    assert_eq!(reported(&other.query("select 1")), [""; 0]);
    assert_eq!(reported(&one.query("begin")), [""; 0]);
    one.batch("commit");
    assert_eq!(
        reported(&one.query("reset default_transaction_read_only")),
        ["S(default_transaction_read_only=off)"]
    );

    // The server says it once on each connection, to whoever has that then.
    standby.promote();
    until("it is said", || reported(&one.query("select 1")) == ["S(in_hot_standby=off)"]);
    for client in [&mut other, &mut late] {
        assert_eq!(reported(&client.query("select 1")), ["S(in_hot_standby=off)"]);
        assert_eq!(reported(&client.query("select 1")), [""; 0], "once");
    }
    // So it is with the other.
    standby.admin().batch("alter system set default_transaction_read_only = on");
    standby.admin().batch("select pg_reload_conf()");
    until("it is said", || reported(&one.query("select 1")) == ["S(default_transaction_read_only=on)"]);
    assert_eq!(reported(&other.query("select 1")), ["S(default_transaction_read_only=on)"]);
    drop((one, other, late));
    proxy.stop();
}
