//! sqlx, whose every query is a named statement that it has described, by itself and as a pool of its own.

use super::drivers_rust::run_everywhere;
use crate::support::{Config, Db};
use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, Row};
use std::net::SocketAddr;

fn options(addr: SocketAddr, db: &str) -> PgConnectOptions {
    PgConnectOptions::new().host("127.0.0.1").port(addr.port()).username("app").database(db)
}

#[test]
fn sqlx() {
    let db = Db::new();
    let all = |addr: SocketAddr, table: &'static str| {
        let options = options(addr, db.name());
        async move {
            let mut one = options.connect().await.expect("connected");
            queries(&mut one).await;
            transactions(&mut one, table).await;
            copies(&mut one, table).await;
            one.close().await.expect("a clean end");
            let pool = PgPoolOptions::new().max_connections(3).connect_with(options).await;
            pooled(&pool.expect("a pool"), table).await;
        }
    };
    // In session mode each of its connections has a backend.
    let size = |mode: &str| if mode == "session" { 4 } else { 2 };
    let config = |mode: &str| Config::of_size(size(mode)).with("tenant.\"*\"", "mode = \"observe\"");
    run_everywhere(&db, all, ["sqlx_t", "sqlx_a", "sqlx_b"], config);
}

async fn queries(db: &mut PgConnection) {
    for n in 0..8 {
        let query = sqlx::query("select $1::int * 2, $2::text").bind(n).bind("naïve");
        let row = query.fetch_one(&mut *db).await.expect("parameters");
        assert_eq!((row.get::<i32, _>(0), row.get::<&str, _>(1)), (2 * n, "naïve"));
    }
    let error = sqlx::query("select 1 / $1::int").bind(0).fetch_one(&mut *db).await.expect_err("by zero");
    assert_eq!(code(&error), "22012");
    let error = db.execute("selec").await.expect_err("a syntax error");
    assert_eq!(code(&error), "42601");
    let long = "y".repeat(2_000_000);
    let back: String =
        sqlx::query_scalar("select $1::text").bind(&long).fetch_one(&mut *db).await.expect("a long one");
    assert_eq!(back.len(), long.len());
    let many = sqlx::query("select repeat('x', 1000) from generate_series(1, 2000)").fetch(&mut *db);
    let lengths: Vec<usize> =
        many.map_ok(|row| row.get::<&str, _>(0).len()).try_collect().await.expect("all rows");
    assert_eq!(lengths, [1000; 2000]);
}

async fn transactions(db: &mut PgConnection, table: &str) {
    let create =
        format!("drop table if exists {table}; create table {table} (id int primary key, note text)");
    db.execute(&*create).await.expect("a table");
    let insert = format!("insert into {table} values ($1, $2)");
    let insert = |n: i32| sqlx::query(&insert).bind(n).bind("note");

    let mut outer = db.begin().await.expect("begin");
    insert(1).execute(&mut *outer).await.expect("inserted");
    let mut inner = outer.begin().await.expect("a savepoint");
    let error = insert(1).execute(&mut *inner).await.expect_err("twice");
    assert_eq!(code(&error), "23505");
    inner.rollback().await.expect("back to the savepoint");
    outer.commit().await.expect("commit");

    // Left without an end: the driver rolls back.
    let mut left = db.begin().await.expect("begin");
    insert(2).execute(&mut *left).await.expect("inserted");
    drop(left);
    assert_eq!(count(db, table).await, 1);
}

async fn copies(db: &mut PgConnection, table: &str) {
    let into = format!("copy {table} from stdin");
    let mut sink = db.copy_in_raw(&into).await.expect("copy in");
    for n in 100..1100 {
        sink.send(format!("{n}\tcopied\n").as_bytes()).await.expect("taken");
    }
    assert_eq!(sink.finish().await.expect("copied"), 1000);
    let mut sink = db.copy_in_raw(&into).await.expect("copy in");
    sink.send(&b"not a number\tx\n"[..]).await.expect("taken");
    let error = sink.finish().await.expect_err("bad data");
    assert_eq!(code(&error), "22P02");
    let out = format!("copy {table} to stdout");
    let lines = db.copy_out_raw(&out).await.expect("copy out").try_collect::<Vec<_>>().await;
    assert_eq!(lines.expect("all lines").len(), 1001);
}

async fn pooled(pool: &PgPool, table: &str) {
    let text = format!("select count(*) from {table} where id >= $1");
    let ask = |from: i32| sqlx::query_scalar::<_, i64>(&text).bind(from).fetch_one(pool);
    let (a, b, c, d) = tokio::join!(ask(0), ask(100), ask(600), ask(2000));
    assert_eq!([a, b, c, d].map(|count| count.expect("a count")), [1001, 1000, 500, 0]);
    pool.close().await;
}

async fn count(db: &mut PgConnection, table: &str) -> i64 {
    let text = format!("select count(*) from {table}");
    sqlx::query_scalar(&text).fetch_one(db).await.expect("a count")
}

fn code(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.unwrap_or_else(|| panic!("not an error of the server's: {error}")).into_owned()
}
