//! A busy process is told to leave, with drivers that connect again: no transaction that had begun and was
//! shorter than the deadline fails, and who was told COMMIT has its row (docs/operations.md, "Drain").

use crate::support::{Config, Db, Proxy, Wire, cluster, msg, signal, until};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio_postgres::{Client, NoTls};

/// What drivers were told.
#[derive(Default)]
struct Told {
    committed: AtomicUsize,
    /// Nothing had begun.
    between: AtomicUsize,
    over: AtomicBool,
}

const TABLE: &str = "create table written (n int)";

fn busy() -> Config {
    Config::of_size(3)
        .lazy()
        .with("pool", "max_wait = \"30s\"")
        .with("tenant.\"*\"", "max = \"100%\"")
        .with("drain", "deadline = \"30s\"")
}

/// A transaction of a few statements, with pauses. `Ok(false)`: it had not begun.
async fn transaction(client: &Client, pause: Duration) -> Result<bool, tokio_postgres::Error> {
    if client.batch_execute("begin").await.is_err() {
        return Ok(false);
    }
    tokio::time::sleep(pause).await;
    client.execute("insert into written values ($1)", &[&1]).await?;
    tokio::time::sleep(pause).await;
    client.batch_execute("select 1").await?;
    client.batch_execute("commit").await?;
    Ok(true)
}

/// Works until told that it is over, on a connection after the other.
async fn work(addr: SocketAddr, database: &str, told: &Told, number: u64) {
    let url = format!("postgresql://app@{addr}/{database}");
    while !told.over.load(SeqCst) {
        let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            told.between.fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let connection = tokio::spawn(connection);
        loop {
            let done = if number.is_multiple_of(3) {
                // In one statement, which waits for a backend most of the time.
                let sql = "insert into written select 1 from pg_sleep(0.02)";
                client.batch_execute(sql).await.is_ok()
            } else {
                let pause = Duration::from_millis(10 * (number % 7));
                transaction(&client, pause).await.unwrap_or_else(|error| panic!("it had begun: {error:?}"))
            };
            if !done {
                told.between.fetch_add(1, SeqCst);
                break;
            }
            told.committed.fetch_add(1, SeqCst);
            if told.over.load(SeqCst) {
                break;
            }
        }
        drop(client);
        let _ = connection.await;
    }
}

/// Drivers at work beside `change`, and their counts held against the table.
fn beside_drivers(db: &Db<'_>, addr: SocketAddr, change: impl FnOnce(&Told)) {
    let told = Told::default();
    std::thread::scope(|scope| {
        let (told, database) = (&told, db.name());
        let driver = |number| {
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let work = work(addr, database, told, number);
                let bounded = async { tokio::time::timeout(Duration::from_secs(100), work).await };
                runtime.expect("a runtime").block_on(bounded).expect("it ends");
            })
        };
        let drivers: Vec<_> = (0..12).map(driver).collect();
        until("they are at work", || told.committed.load(SeqCst) > 50);
        change(told);
        told.over.store(true, SeqCst);
        drivers.into_iter().for_each(|driver| driver.join().expect("no transaction fails"));
    });
    let (committed, between) = (told.committed.load(SeqCst), told.between.load(SeqCst));
    assert_eq!(
        db.value("select count(*) from written"),
        committed.to_string(),
        "{between} were told between"
    );
}

#[test]
fn a_drain_fails_no_transaction_that_had_begun() {
    let db = Db::new();
    db.run(&[TABLE]);
    let mut proxy = Proxy::start(&db, busy());
    beside_drivers(&db, proxy.addr(), |told| {
        signal(proxy.pid(), "TERM");
        assert_eq!(proxy.wait().code(), Some(0));
        assert!(told.between.load(SeqCst) > 0, "nobody noticed");
    });
}

/// One process after the other on the same port, none beside the other.
#[test]
fn a_process_that_follows_finds_every_row_of_the_one_before() {
    let db = Db::new();
    db.run(&[TABLE]);
    let mut proxy = Proxy::start(&db, busy());
    beside_drivers(&db, proxy.addr(), |told| {
        for _ in 0..5 {
            signal(proxy.pid(), "TERM");
            assert_eq!(proxy.wait().code(), Some(0));
            proxy.start_again();
            let before = told.committed.load(SeqCst);
            until("they are at work again", || told.committed.load(SeqCst) > before + 20);
        }
    });
    proxy.stop();
}

/// What has been sent before a session is told to go has begun as far as its client knows.
#[test]
fn a_transaction_that_waits_for_a_backend_is_served_in_a_drain() {
    let db = Db::new();
    db.run(&[TABLE]);
    let mut proxy = Proxy::start(&db, busy().with("pool", "size = 1"));
    let mut idle = proxy.connect();
    idle.batch("select 1");
    let mut holder = proxy.connect();
    holder.batch("begin; insert into written values (1)");
    let (mut statement, mut block) = (proxy.connect(), proxy.connect());
    statement.send(&msg::query("insert into written values (2)"));
    assert_eq!(block.query("begin").trace(), "C(BEGIN) Z(T)");
    block.send(&msg::query("insert into written values (3)"));
    let mut console = proxy.console();
    until("both wait", || console.query("show queue").rows().len() == 2);
    signal(proxy.pid(), "TERM");
    assert_eq!(idle.recv_to_end().trace(), "E(FATAL 57P01) EOF", "the drain has come this far");
    cluster::wait_closed(proxy.addr());
    holder.send(&msg::query("commit"));
    assert_eq!(holder.recv_to_end().trace(), "C(COMMIT) Z(I) E(FATAL 57P01) EOF");
    assert_eq!(statement.recv_to_end().trace(), "C(INSERT 0 1) Z(I) E(FATAL 57P01) EOF");
    assert_eq!(block.recv_reply().trace(), "C(INSERT 0 1) Z(T)");
    block.send(&msg::query("commit"));
    assert_eq!(block.recv_to_end().trace(), "C(COMMIT) Z(I) E(FATAL 57P01) EOF");
    assert_eq!(proxy.wait().code(), Some(0));
    assert_eq!(db.value("select count(*) from written"), "3");
}

/// A connection that the kernel has taken is served: its login, and its first transaction.
#[test]
fn who_has_just_connected_may_run_a_transaction() {
    let db = Db::new();
    let mut proxy = Proxy::start(&db, busy());
    let mut early = Wire::open(proxy.addr()).expect("a connection");
    let mut busy = proxy.connect();
    busy.batch("begin");
    let mut fresh = proxy.connect();
    signal(proxy.pid(), "TERM");
    cluster::wait_closed(proxy.addr());
    assert_eq!(fresh.query("select 1").value(), "1");
    early.send(&proxy.as_app().packet());
    early.send(&msg::query("select 2"));
    assert!(early.recv_to_end().trace().contains("T D C(SELECT 1) Z(I)"), "logged in and served");
    busy.bye();
    assert_eq!(proxy.wait().code(), Some(0));
}
