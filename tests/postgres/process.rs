//! The life of the process: how it leaves, takes up another configuration, and obeys the console
//! (interface.md, "Signals and exit" and "Admin console").

use crate::support::watch::{bursar, leases, metric, printed, status};
use crate::support::{Config, Db, Proxy, Wire, cluster, eventually, msg, signal, until};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const TOLD: &str = "E(FATAL 57P01) EOF";

#[test]
fn a_drain_lets_transactions_finish_and_closes_the_idle() {
    let db = Db::new();
    db.run(&["create table kept (id int)"]);
    let config = Config::of_size(2).with("drain", "notice = \"2s\"").with("drain", "deadline = \"20s\"");
    let mut proxy = Proxy::start(&db, config);
    let mut idle: Vec<Wire> = (0..3).map(|_| proxy.connect()).collect();
    idle[0].batch("select 1");
    let mut busy = proxy.connect();
    busy.batch("begin; insert into kept values (1)");
    assert_eq!(status(&proxy, "/readyz"), 200);

    let asked = Instant::now();
    signal(proxy.pid(), "TERM");
    until("it is not ready", || status(&proxy, "/readyz") == 503);
    assert!(asked.elapsed() < Duration::from_secs(2), "at once, not after the notice");
    assert_eq!(status(&proxy, "/livez"), 200);
    idle.push(proxy.connect());
    assert_eq!(idle[1].query("select 2").value(), "2", "served as before during the notice");

    for client in &mut idle {
        assert_eq!(client.recv_to_end().trace(), TOLD);
    }
    assert!(asked.elapsed() >= Duration::from_secs(2), "the notice is kept");
    cluster::wait_closed(proxy.addr());
    assert_eq!(busy.query("insert into kept values (2)").trace(), "C(INSERT 0 1) Z(T)");
    assert_eq!(busy.query("commit").trace(), "C(COMMIT) Z(I)");
    assert_eq!(busy.recv_to_end().trace(), TOLD);
    assert_eq!(proxy.wait().code(), Some(0));
    assert_eq!(db.value("select count(*) from kept"), "2");
}

#[test]
fn what_is_left_at_the_deadline_is_cut() {
    let db = Db::new();
    db.run(&["create table kept (id int)"]);
    let mut proxy = Proxy::start(&db, Config::of_size(3).with("drain", "deadline = \"1s\""));
    let mut stuck = proxy.connect();
    stuck.batch("begin; insert into kept values (1)");
    let mut running = proxy.connect();
    running.send(&msg::query("select pg_sleep(60)"));
    until("the statement runs", || db.backends("state = 'active'") == 1);

    let asked = Instant::now();
    signal(proxy.pid(), "TERM");
    assert_eq!(stuck.recv_to_end().trace(), TOLD);
    assert!(asked.elapsed() >= Duration::from_secs(1), "cut after {:?}", asked.elapsed());
    assert!(running.recv_to_end().closed);
    assert_eq!(proxy.wait().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(5), "left after {:?}", asked.elapsed());
    assert_eq!(db.value("select count(*) from kept"), "0");
}

#[test]
fn a_second_signal_leaves_now() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, Config::one_backend().with("drain", "deadline = \"5m\""));
    let mut stuck = proxy.connect();
    stuck.batch("begin");
    signal(proxy.pid(), "INT");
    cluster::wait_closed(proxy.addr());
    assert!(stuck.recv_arrived().is_empty(), "a transaction may go on");
    signal(proxy.pid(), "TERM");
    assert_eq!(stuck.recv_to_end().trace(), TOLD);
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn shutdown_leaves_when_it_says() {
    let db = Db::new();
    for (command, waits) in [("shutdown", false), ("shutdown wait_for_servers", true)] {
        let mut proxy = Proxy::start(&db, Config::one_backend());
        let mut client = proxy.connect();
        client.batch("begin");
        let answer = proxy.console().query(command);
        assert_eq!(answer.messages.first().map(ToString::to_string).as_deref(), Some("C(SHUTDOWN)"));
        if waits {
            cluster::wait_closed(proxy.addr());
            assert_eq!(client.query("commit").trace(), "C(COMMIT) Z(I)");
        }
        assert_eq!(client.recv_to_end().trace(), TOLD);
        assert_eq!(proxy.wait().code(), Some(0));
    }
    let mut proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    proxy.console().batch("shutdown wait_for_clients");
    cluster::wait_closed(proxy.addr());
    assert_eq!(client.query("select 1").value(), "1", "who is there may stay");
    client.bye();
    assert_eq!(proxy.wait().code(), Some(0));
}

fn hang_up(proxy: &Proxy, result: &str) {
    let name = format!("bursar_reloads_total{{result=\"{result}\"}}");
    let before = metric(proxy, &name);
    signal(proxy.pid(), "HUP");
    until("the reload is counted", || metric(proxy, &name) > before);
}

#[test]
fn a_reload_changes_pools_and_drops_nobody() {
    let db = Db::new();
    let config = Config::one_backend().with("pool", "max_wait = \"100ms\"");
    let mut proxy = Proxy::start(&db, config);
    let mut clients: Vec<Wire> = (0..3).map(|_| proxy.connect()).collect();
    clients[0].batch("begin");
    assert_eq!(clients[1].query("begin").code(), "53300");

    proxy.change("pool", "size = 2");
    hang_up(&proxy, "ok");
    clients[1].batch("begin");
    assert_eq!(clients[2].query("begin").code(), "53300", "two and no more");

    proxy.change("pool", "max_wait = \"700ms\"");
    hang_up(&proxy, "ok");
    let asked = Instant::now();
    assert_eq!(clients[2].query("begin").code(), "53300");
    assert!(asked.elapsed() >= Duration::from_millis(700), "refused after {:?}", asked.elapsed());

    proxy.change("pool", "size = 1");
    hang_up(&proxy, "ok");
    clients[0].batch("commit");
    clients[1].batch("commit");
    until("the pool has shrunk", || db.pids().len() == 1);
    for client in &mut clients {
        assert_eq!(client.query("select 1").value(), "1");
    }
    drop(clients);
    proxy.stop();
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let mut client = proxy.connect();
    client.batch("begin");
    let good = std::fs::read_to_string(proxy.config_file()).expect("the file");
    std::fs::write(proxy.config_file(), good.replace("[pool]", "[pool]\nsise = 7")).expect("a bad file");

    hang_up(&proxy, "refused");
    let fault = "pool.sise: there is no such key; did you mean pool.size?";
    assert!(proxy.log().contains(fault), "{}", proxy.log());
    let mut console = proxy.console();
    let told = console.query("reload");
    assert_eq!(told.trace(), "E(55000) Z(I)");
    let detail = told.error().and_then(|error| error.field(b'D')).unwrap_or_default();
    assert!(detail.contains(fault), "{detail}");
    assert_eq!(console.query("select value from bursar.config where key = 'pool.size'").value(), "1");
    client.batch("commit");

    std::fs::write(proxy.config_file(), good).expect("the good file");
    assert_eq!(console.query("reload").trace(), "C(RELOAD) Z(I)");
    client.bye();
    proxy.stop();
}

#[test]
fn pause_waits_for_leases_and_keeps_new_work_waiting() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2).with("pool", "max_wait = \"60s\""));
    let mut holder = proxy.connect();
    holder.batch("begin");
    let mut newcomer = proxy.connect();
    let (mut pausing, mut console) = (proxy.console(), proxy.console());
    pausing.send(&msg::query("pause"));
    until("the pool is paused", || console.query("select paused from bursar.pools").value() == "t");
    newcomer.send(&msg::query("select 1"));
    until("new work waits", || console.query("show queue").rows().len() == 1);
    assert!(pausing.recv_arrived().is_empty(), "a lease is held");
    holder.batch("commit");
    assert_eq!(pausing.recv_reply().trace(), "C(PAUSE) Z(I)");
    assert_eq!(leases(&proxy), 0);
    assert!(newcomer.recv_arrived().is_empty());
    assert_eq!(console.query("resume").trace(), "C(RESUME) Z(I)");
    assert_eq!(newcomer.recv_reply().value(), "1");
    drop((holder, newcomer));
    proxy.stop();
}

#[test]
fn kills_hit_whom_they_name() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(5));
    let mut console = proxy.console();
    let mut spared = proxy.connect_for("spared", "r-spared");
    spared.batch("begin");

    let mut victim = proxy.connect();
    let named = format!("select id from bursar.clients where port = {}", victim.local_port());
    let id = console.query(&named).value();
    assert_eq!(console.query(&format!("kill_client {id}")).trace(), "C(KILL_CLIENT 1) Z(I)");
    assert_eq!(victim.recv_to_end().trace(), TOLD);
    until("it is gone", || console.query(&named).rows().is_empty());
    assert_eq!(console.query(&format!("kill_client {id}")).trace(), "E(55000) Z(I)");

    let mut victims: Vec<Wire> = (0..2).map(|_| proxy.connect_for("acme", "r-1")).collect();
    victims.iter_mut().for_each(|victim| drop(victim.batch("begin")));
    assert_eq!(console.query("kill_request 'r-1'").trace(), "C(KILL_REQUEST 2) Z(I)");
    victims.iter_mut().for_each(|victim| assert_eq!(victim.recv_to_end().trace(), TOLD));

    let mut victim = proxy.connect_for("acme", "r-2");
    victim.send(&msg::query("select pg_sleep(60)"));
    until("the statement runs", || db.backends("state = 'active'") == 1);
    assert_eq!(console.query("kill_tenant acme").trace(), "C(KILL_TENANT 1) Z(I)");
    assert!(victim.recv_to_end().closed);
    until("PostgreSQL runs it no more", || db.backends("state = 'active'") == 0);

    assert_eq!(spared.query("select 1").value(), "1");
    assert_eq!(console.query(&format!("kill {}", db.name())).trace(), "C(KILL) Z(I)");
    assert_eq!(spared.recv_to_end().trace(), TOLD);
    assert_eq!(proxy.connect().query("select 1").value(), "1", "and who comes anew is served");
    proxy.stop();
}

#[test]
fn reconnect_replaces_every_backend() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2));
    let mut holder = proxy.connect();
    holder.batch("begin");
    let held = holder.query("select pg_backend_pid()").value();
    let mut client = proxy.connect();
    let idle = client.query("select pg_backend_pid()").value();
    let has = |pid: &str| db.pids().iter().any(|each| each.to_string() == pid);

    assert_eq!(proxy.console().query("reconnect").trace(), "C(RECONNECT) Z(I)");
    until("the idle one is closed", || !has(&idle));
    assert_eq!(holder.query("select pg_backend_pid()").value(), held, "the held one stays");
    holder.batch("commit");
    until("the held one is closed once it is back", || !has(&held));
    let pid = client.query("select pg_backend_pid()").value();
    assert!(pid != idle && pid != held, "{pid} is new");
    drop((holder, client));
    proxy.stop();
}

#[test]
fn check_and_health_say_it_with_their_exit_code() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let file = proxy.config_file().display().to_string();
    let good = bursar(&["check", "--config", &file]);
    assert_eq!(good.status.code(), Some(0), "{}", printed(&good));
    assert!(printed(&good).ends_with(": good; every server answers\n"), "{}", printed(&good));
    let health = bursar(&["health", "--config", &file]);
    assert_eq!(health.status.code(), Some(0), "{}", printed(&health));

    let bad = std::fs::read_to_string(&file).expect("the file").replace("size = 1", "size = 0");
    let bad_file = format!("{file}.bad");
    std::fs::write(&bad_file, bad).expect("a bad file");
    let bad = bursar(&["check", "--config", &bad_file]);
    assert_eq!(bad.status.code(), Some(64), "{}", printed(&bad));
    assert!(printed(&bad).contains("pool.size"), "{}", printed(&bad));
    let started = bursar(&["--config", &bad_file]);
    assert_eq!(started.status.code(), Some(64), "{}", printed(&started));

    let address = proxy.admin_addr();
    proxy.stop();
    eventually("nobody listens", Duration::from_secs(5), || TcpStream::connect(address).err());
    assert_eq!(bursar(&["health", "--config", &file]).status.code(), Some(1));
}

#[test]
fn the_bench_finds_every_session_served_and_nothing_left() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(20).with("pool", "max_wait = \"30s\""));
    let url = format!("postgres://app@{}/{}", proxy.addr(), db.name());
    let run = bursar(&["bench", "--sessions", "100", "--url", &url]);
    let text = printed(&run);
    assert_eq!(run.status.code(), Some(0), "{text}");
    assert!(text.contains("100.00 %"), "{text}");
    assert!(text.contains("left behind: leases 0, open transactions 0\n"), "{text}");
    proxy.stop();
}
