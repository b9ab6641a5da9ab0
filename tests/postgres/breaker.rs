//! A server that cannot be reached (budgets.md §6.3): who waits is served when it is back, who could not be
//! is told at once, and PostgreSQL never sees more dials than the bound.

use crate::support::watch::{get, metric};
use crate::support::{Cluster, Config, Db, Gate, Login, Proxy, Wire, msg, until};

/// The last row of a view of the console.
fn upstream(proxy: &Proxy, columns: &str) -> Vec<String> {
    let rows = proxy.console().query(&format!("select {columns} from bursar.upstreams")).rows();
    rows.into_iter().flatten().map(Option::unwrap_or_default).collect()
}

fn is(proxy: &Proxy, state: &str) -> bool {
    upstream(proxy, "breaker") == [state]
}

#[test]
fn five_hundred_waiters_outlast_an_outage_and_never_dial_more_than_two_at_once() {
    const CLIENTS: usize = 500;
    let db = Db::new();
    let gate = Gate::before(db.cluster().addr());
    let config = Config::of_size(10).with("pool", "max_wait = \"20s\"");
    let proxy = Proxy::start_at(&gate, &db, config);
    let mut clients: Vec<Wire> = (0..CLIENTS).map(|_| proxy.connect()).collect();
    clients[0].batch("select 1");
    gate.shut();
    for client in &mut clients {
        client.send(&msg::query("select 1"));
    }
    until("the breaker is open", || is(&proxy, "open"));
    // The first two went out at once, before anybody knew.
    let failed = gate.turned_away();
    assert!((5..=6).contains(&failed), "{failed} dials failed before it opened");
    gate.open();
    for client in &mut clients {
        assert_eq!(client.recv_reply().value(), "1", "nobody was refused");
    }
    assert!(gate.take_most() <= 2, "connect_parallel");
    assert!(gate.turned_away() <= failed + 2, "one dial an opening");
    assert!(is(&proxy, "closed"));
    let name = upstream(&proxy, "upstream").remove(0);
    let turns = |reason| {
        metric(
            &proxy,
            &format!("bursar_breaker_transitions_total{{upstream=\"{name}\",reason=\"{reason}\"}}"),
        )
    };
    assert!(turns("connect") >= 1.0);
    assert_eq!(turns("recovered"), 1.0);
    let log = proxy.log();
    let told = |state: &str| log.matches(&format!("state=\"{state}\"")).count();
    assert_eq!(told("open"), turns("connect") as usize, "a line each");
    assert_eq!(told("closed"), 1);
    drop(clients);
    proxy.stop();
}

#[test]
fn who_comes_while_it_is_open_for_longer_than_they_wait_is_told_at_once() {
    let db = Db::new();
    let gate = Gate::before(db.cluster().addr());
    let config = Config::of_size(3)
        .with("pool", "max_wait = \"1s\"")
        .with("breaker", "failures = 2")
        .with("breaker", "open = \"25s\"");
    let proxy = Proxy::start_at(&gate, &db, config);
    let mut client = proxy.connect();
    client.batch("select 1");
    gate.shut();
    assert_eq!(client.query("select 1").trace(), "E(53300) Z(I)");
    assert!(is(&proxy, "open"));
    let dials = gate.came();

    let reply = client.query("select 1");
    assert_eq!(reply.trace(), "E(53300) Z(I)", "the session goes on");
    let error = reply.error().expect("an error");
    assert_eq!(error.field(b'M').as_deref(), Some("bursar: the server cannot be reached"));
    assert!(error.field(b'H').is_some_and(|hint| hint.contains("circuit breaker")), "{error:?}");
    let stranger = Login::new("postgres", db.name());
    let refused = Wire::try_login(proxy.addr(), &stranger).err().expect("no way in");
    let told = format!("{refused:?}");
    assert!(told.contains("FATAL 57P03"), "{told}");
    assert_eq!(gate.came(), dials, "nobody dialled for them");

    let name = upstream(&proxy, "upstream").remove(0);
    assert_eq!(metric(&proxy, &format!("bursar_breaker_state{{upstream=\"{name}\"}}")), 2.0);
    let (_, health) = get(&proxy, "/healthz/db").expect("an answer");
    assert!(health.contains("\"breaker\":\"open\"") && health.contains("\"status\":\"down\""), "{health}");
    assert_eq!(get(&proxy, "/readyz").expect("an answer").0, 200, "no reason to take the pod away");
    drop(client);
    proxy.stop();
}

#[test]
fn a_role_that_is_refused_is_left_alone_and_others_are_not_concerned() {
    let db = Db::new();
    let gate = Gate::before(db.cluster().addr());
    let config = Config::of_size(2).with("user.md5_user", "password = \"wrong\"");
    let proxy = Proxy::start_at(&gate, &db, config);
    let refused = Login::new("md5_user", db.name());
    let mut knocks = Vec::new();
    for _ in 0..4 {
        let told = Wire::try_login(proxy.addr(), &refused).err().expect("no way in");
        let told = format!("{told:?}");
        assert!(told.contains("FATAL 28P01"), "in PostgreSQL's words: {told}");
        knocks.push(gate.came());
    }
    assert_eq!(knocks, [1, 2, 2, 2], "after the second, PostgreSQL is not asked");
    let mut other = proxy.connect();
    assert_eq!(other.query("select 1").value(), "1");
    assert!(is(&proxy, "closed"));
    drop(other);
    proxy.stop();
}

#[test]
fn a_server_without_room_is_no_reason_to_open_it() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    let proxy = Proxy::start(&db, Config::of_size(4).with("pool", "max_wait = \"15s\""));
    let mut client = proxy.connect();
    client.batch("begin");
    db.cluster().admin().batch("alter role app connection limit 1");
    let mut second = proxy.connect();
    second.send(&msg::query("select 1"));
    until("PostgreSQL has refused", || proxy.log().matches("53300").count() >= 3);
    assert!(is(&proxy, "closed"));
    client.batch("commit");
    assert_eq!(second.recv_reply().value(), "1", "by the backend that came back");
    drop((client, second));
    proxy.stop();
}

#[test]
fn a_login_is_told_that_the_server_is_away_before_its_own_time_is_up() {
    let db = Db::new();
    let gate = Gate::before(db.cluster().addr());
    let config = Config::of_size(3)
        .with("pool", "max_wait = \"10m\"")
        .with("listen", "login_timeout = \"5s\"")
        .with("breaker", "failures = 2")
        .with("breaker", "open = \"25s\"");
    let proxy = Proxy::start_at(&gate, &db, config);
    gate.shut();
    let refused =
        || format!("{:?}", Wire::try_login(proxy.addr(), &proxy.as_app()).err().expect("no way in"));
    // It waits as long as it can, and then says for what.
    let told = refused();
    assert!(told.contains("FATAL 57P03") && told.contains("connection failed"), "{told}");
    assert!(is(&proxy, "open"));
    let dials = gate.came();
    let told = refused();
    assert!(told.contains("FATAL 57P03") && told.contains("circuit breaker"), "at once: {told}");
    assert_eq!(gate.came(), dials, "nobody dialled for it");
    proxy.stop();
}

#[test]
fn what_the_server_said_once_is_not_said_when_there_is_another_reason() {
    let db = Db::new();
    let dir = tempfile::tempdir().expect("a directory");
    let token = dir.path().join("token");
    let table = format!("database.{}", db.name());
    let config = Config::of_size(1)
        .with("pool", "max_wait = \"1s\"")
        .with(&table, "host = \"127.0.0.1\"")
        .with(&table, &format!("port = {}", db.cluster().addr().port()))
        .with(&table, &format!("password_command = [\"cat\", \"{}\"]", token.display()));
    let proxy = Proxy::start(&db, config);
    let refused = || {
        let to = Login::new("plain_user", db.name());
        format!("{:?}", Wire::try_login(proxy.addr(), &to).err().expect("no way in"))
    };
    std::fs::write(&token, "wrong").expect("written");
    let told = refused();
    assert!(told.contains("FATAL 28P01"), "in PostgreSQL's words: {told}");
    // Nobody asks PostgreSQL any more.
    std::fs::remove_file(&token).expect("removed");
    for _ in 0..2 {
        let told = refused();
        assert!(told.contains("FATAL 57P03") && told.contains("the password command failed"), "{told}");
    }
    proxy.stop();
}
