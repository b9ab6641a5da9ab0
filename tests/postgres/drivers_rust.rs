//! tokio-postgres, the driver of our own language, with what the others do in [`super::drivers`].

use super::drivers::for_two_copies;
use crate::support::{Config, Db, Proxy};
use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

#[test]
fn tokio_postgres() {
    let db = Db::new();
    let all = |addr: SocketAddr, table: &'static str| {
        let url = format!("postgresql://app@{addr}/{}", db.name());
        async move {
            let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("connected");
            let connection = tokio::spawn(connection);
            queries(&client).await;
            transactions(&mut client, table).await;
            copies(&client, table).await;
            cancel(&client, table).await;
            drop(client);
            connection.await.expect("no panic").expect("a clean end");
        }
    };
    run_everywhere(&db, all, ["rust_t", "rust_a", "rust_b"], |_| Config::of_size(2).lazy());
}

/// Directly, then twice through pools of both modes, then two at once before one backend: as
/// [`super::drivers`] does with programs. `config` is for a mode, `tables` for one alone and for two.
pub(super) fn run_everywhere<F: Future<Output = ()>>(
    db: &Db<'_>,
    all: impl Fn(SocketAddr, &'static str) -> F,
    tables: [&'static str; 3],
    config: impl Fn(&str) -> Config,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let [alone, one, other] = tables;
    let run = |addr: SocketAddr| {
        let bounded = async { tokio::time::timeout(Duration::from_secs(60), all(addr, alone)).await };
        runtime.block_on(bounded).expect("every answer comes");
    };
    run(db.cluster().addr());
    for mode in ["transaction", "session"] {
        let config = config(mode).with("pool", &format!("mode = \"{mode}\""));
        let proxy = Proxy::start(db, config.with("pool", "reuse = \"round_robin\""));
        run(proxy.addr());
        run(proxy.addr());
        proxy.stop();
    }
    let proxy = Proxy::start(db, for_two_copies());
    let two = async {
        let two = async { tokio::join!(all(proxy.addr(), one), all(proxy.addr(), other)) };
        tokio::time::timeout(Duration::from_secs(60), two).await
    };
    runtime.block_on(two).expect("every answer comes, to both");
    proxy.stop();
}

async fn queries(client: &Client) {
    let row = client.query_one("select $1::int + 1, $2::text", &[&41, &"naïve"]).await.expect("parameters");
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (42, "naïve"));

    let statement = client.prepare("select $1::int * 2").await.expect("prepared");
    for n in 0..8 {
        let row = client.query_one(&statement, &[&n]).await.expect("executed");
        assert_eq!(row.get::<_, i32>(0), 2 * n);
    }

    let error = client.query("select 1 / 0", &[]).await.expect_err("division by zero");
    assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));
    let error = client.batch_execute("selec").await.expect_err("a syntax error");
    assert_eq!(error.code(), Some(&SqlState::SYNTAX_ERROR));

    // Pipelined: all three are on their way before the first answer.
    let (a, b, c) = tokio::join!(
        client.query_one("select 1", &[]),
        client.query_one("select 1 / 0", &[]),
        client.query_one("select 3", &[]),
    );
    assert_eq!((a.expect("one").get::<_, i32>(0), c.expect("three").get::<_, i32>(0)), (1, 3));
    assert!(b.is_err());

    let big = client.query("select repeat('x', 1000) from generate_series(1, 2000)", &[]).await.expect("big");
    assert!(big.len() == 2000 && big.iter().all(|row| row.get::<_, &str>(0).len() == 1000));
    let long = "y".repeat(2_000_000);
    let row = client.query_one("select $1::text", &[&long]).await.expect("a long parameter");
    assert_eq!(row.get::<_, &str>(0).len(), long.len());
}

async fn transactions(client: &mut Client, table: &str) {
    client
        .batch_execute(&format!(
            "drop table if exists {table}; create table {table} (id int primary key, note text)"
        ))
        .await
        .expect("a table");
    let transaction = client.transaction().await.expect("begin");
    transaction.execute(&format!("insert into {table} values (1, 'one')"), &[]).await.expect("inserted");
    transaction.commit().await.expect("commit");

    let transaction = client.transaction().await.expect("begin");
    transaction.execute(&format!("insert into {table} values (2, 'two')"), &[]).await.expect("inserted");
    let error = transaction
        .execute(&format!("insert into {table} values (1, 'again')"), &[])
        .await
        .expect_err("twice");
    assert_eq!(error.code(), Some(&SqlState::UNIQUE_VIOLATION));
    let error = transaction.execute("select 1", &[]).await.expect_err("the transaction has failed");
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    transaction.rollback().await.expect("rollback");

    // Left without an end: the driver rolls back.
    let transaction = client.transaction().await.expect("begin");
    transaction.execute(&format!("insert into {table} values (3, 'three')"), &[]).await.expect("inserted");
    drop(transaction);

    let transaction = client.transaction().await.expect("begin");
    let portal = transaction.bind("select generate_series(1, 5)", &[]).await.expect("a portal");
    assert_eq!(transaction.query_portal(&portal, 2).await.expect("some rows").len(), 2);
    assert_eq!(transaction.query_portal(&portal, 0).await.expect("the rest").len(), 3);
    transaction.commit().await.expect("commit");

    assert_eq!(count(client, table).await, 1);
}

async fn copies(client: &Client, table: &str) {
    let mut sink = pin!(client.copy_in(&format!("copy {table} from stdin")).await.expect("copy in"));
    for n in 100..1100 {
        sink.send(Bytes::from(format!("{n}\tcopied\n"))).await.expect("taken");
    }
    assert_eq!(sink.finish().await.expect("copied"), 1000);
    let out = client.copy_out(&format!("copy {table} to stdout")).await.expect("copy out");
    let lines: Vec<Bytes> = out.try_collect().await.expect("all lines");
    assert_eq!(lines.len(), 1001);

    let mut sink = pin!(client.copy_in(&format!("copy {table} from stdin")).await.expect("copy in"));
    sink.send(Bytes::from("not a number\tx\n")).await.expect("taken");
    let error = sink.finish().await.expect_err("bad data");
    assert_eq!(error.code(), Some(&SqlState::INVALID_TEXT_REPRESENTATION));

    // Given up half-way: the driver sends CopyFail.
    let mut sink = Box::pin(client.copy_in(&format!("copy {table} from stdin")).await.expect("copy in"));
    sink.send(Bytes::from("1\tdropped\n")).await.expect("taken");
    drop(sink);
    assert_eq!(count(client, table).await, 1001);
}

async fn cancel(client: &Client, table: &str) {
    let token = client.cancel_token();
    let sleep = client.batch_execute("select pg_sleep(60)");
    let cancel = async {
        // Too early, and it rightly hits nothing: ask again until it has worked.
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            token.cancel_query(NoTls).await.expect("the request is taken");
        }
    };
    let ended = tokio::select! {
        ended = sleep => ended,
        () = cancel => unreachable!("it asks for ever"),
    };
    assert_eq!(ended.expect_err("cancelled").code(), Some(&SqlState::QUERY_CANCELED));
    // A cancel that came late may hit the next statement, directly as well.
    let late = client.batch_execute("select 1").await.err();
    assert!(late.is_none_or(|error| error.code() == Some(&SqlState::QUERY_CANCELED)));
    assert_eq!(count(client, table).await, 1001);
}

async fn count(client: &Client, table: &str) -> i64 {
    client.query_one(&format!("select count(*) from {table}"), &[]).await.expect("a count").get(0)
}
