//! `bursar demo`: what Bursar shows of a busy, unfair and leaky application, with nothing to set up.
//!
//! It starts a throwaway PostgreSQL, Bursar itself (this executable again, with a small pool and a
//! generated configuration) and a workload of three tenants: a quiet one, an ordinary one, and one
//! that takes all it can get. One session of the ordinary tenant begins a transaction and forgets
//! it. Every five seconds the console's views tell who waited, who held, and whose session leaked.
//!
//! It makes no measurements: `bench` and `make versus` do.

use super::driver::{self, Row};
use super::throwaway::{self, Cluster};
use super::{DemoArgs, Exit};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config};

/// Between two summaries.
const SUMMARY_EVERY: Duration = Duration::from_secs(5);
/// From exec to the first answered query.
const START_DEADLINE: Duration = Duration::from_secs(15);
/// Backends for everybody: few enough that clients have to wait.
const POOL: usize = 4;
/// A transaction idle this long is reported …
const LEAK_AFTER: &str = "2s";
/// … and taken back after this, because others wait.
const RECLAIM_AFTER: &str = "10s";
/// The session that is going to be forgotten begins its transaction after this.
const LEAK_PLANTED_AFTER: Duration = Duration::from_secs(1);
/// The quiet and the ordinary tenant; the greedy one has the rest of the clients.
const MODEST_CLIENTS: usize = 2;

/// Why the demo could not go on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Cluster(#[from] throwaway::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("PostgreSQL: {0}")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("Bursar did not answer within {} s:\n{log}", START_DEADLINE.as_secs())]
    NotReady { log: String },
    #[error("Bursar ended unexpectedly:\n{log}")]
    Ended { log: String },
}

/// What a tenant's clients do, over and over.
#[derive(Debug, Clone, Copy)]
struct Habit {
    tenant: &'static str,
    route: &'static str,
    clients: usize,
    /// One statement, inside BEGIN and COMMIT; `$1` is a number.
    sql: &'static str,
    /// Between two requests of one client.
    pause: Duration,
}

/// Runs until interrupted, or for `seconds`. Exit code 1 only if something could not be started or
/// died.
///
/// Blocks its thread for some seconds while PostgreSQL starts and stops; call it from the main
/// thread of a runtime.
pub async fn run(args: &DemoArgs) -> ExitCode {
    let exit = match demo(args).await {
        Ok(()) => Exit::Good,
        Err(error) => {
            eprintln!("bursar demo: {error}");
            Exit::Failed
        }
    };
    exit.into()
}

async fn demo(args: &DemoArgs) -> Result<(), Error> {
    // Before anything is started: an interrupt from now on is ours, and cleans up.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    println!("starting a throwaway PostgreSQL and Bursar …");
    let cluster = Cluster::start("demo", &[("max_connections", "30")])?;
    create_schema(&cluster).await?;
    let mut bursar = Bursar::start(&cluster)?;

    let tour = async {
        let console = bursar.wait_ready().await?;
        let mut workload = start_workload(&bursar.database(), args.clients);
        println!("{}", bursar.invitation());
        let started = Instant::now();
        let end = args.seconds.map(|seconds| started + Duration::from_secs(seconds));
        loop {
            let next = Instant::now() + SUMMARY_EVERY;
            let wake = end.map_or(next, |end| end.min(next));
            tokio::time::sleep_until(wake.into()).await;
            bursar.check_alive()?;
            println!("{}", summary(&console, started.elapsed()).await?);
            println!("{}", bursar.invitation());
            if end.is_some_and(|end| Instant::now() >= end) {
                workload.shutdown().await;
                return Ok::<(), Error>(());
            }
        }
    };
    tokio::select! {
        outcome = tour => outcome?,
        _ = interrupt.recv() => println!("\ninterrupted"),
        _ = terminate.recv() => println!("\nterminated"),
    }
    println!("stopping; the throwaway server and its files are removed");
    Ok(())
}

/// Straight to PostgreSQL, before Bursar is there.
async fn create_schema(cluster: &Cluster) -> Result<(), Error> {
    let admin = driver::connect(&address(cluster.port(), "postgres", "postgres")).await?;
    admin.batch_execute("CREATE ROLE app LOGIN").await?;
    admin.batch_execute("CREATE DATABASE shop OWNER app").await?;
    let owner = driver::connect(&address(cluster.port(), "app", "shop")).await?;
    owner
        .batch_execute(
            "CREATE TABLE orders (id bigserial PRIMARY KEY, customer int NOT NULL, amount int NOT NULL);
             CREATE INDEX ON orders (customer);
             INSERT INTO orders (customer, amount) SELECT i % 100, i FROM generate_series(1, 10000) i",
        )
        .await?;
    Ok(())
}

/// The child process.
struct Bursar {
    child: Child,
    port: u16,
    admin_port: u16,
    log: PathBuf,
}

impl Bursar {
    fn start(cluster: &Cluster) -> Result<Bursar, Error> {
        let (port, admin_port) = (throwaway::free_port()?, throwaway::free_port()?);
        let config = cluster.write_file("bursar.toml", &config_toml(port, admin_port, cluster.port()))?;
        let log = cluster.dir().join("bursar.log");
        let output = fs::File::create(&log)?;
        let child = throwaway::command(&std::env::current_exe()?)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        Ok(Bursar { child, port, admin_port, log })
    }

    /// Where the workload connects.
    fn database(&self) -> Config {
        address(self.port, "app", "shop")
    }

    /// A client of the console database, once it answers.
    async fn wait_ready(&mut self) -> Result<Client, Error> {
        let console = address(self.port, "app", "bursar");
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Ok(client) = driver::connect(&console).await {
                return Ok(client);
            }
            self.check_alive()?;
            if Instant::now() > deadline {
                return Err(Error::NotReady { log: self.tail() });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn check_alive(&mut self) -> Result<(), Error> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(_) => Err(Error::Ended { log: self.tail() }),
        }
    }

    /// The last lines of its log.
    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn invitation(&self) -> String {
        let (port, admin) = (self.port, self.admin_port);
        format!(
            "look yourself:  psql -h 127.0.0.1 -p {port} -U app bursar -c 'SHOW LEASES'   \
             (or POOLS, TENANTS, REQUESTS, LEAKS, BUDGETS, HELP)\n\
             \u{20}               http://127.0.0.1:{admin}/metrics   http://127.0.0.1:{admin}/healthz/db\n\
             \u{20}               log: {}",
            self.log.display()
        )
    }
}

impl Drop for Bursar {
    fn drop(&mut self) {
        // A second signal means "now": the workload is not worth a graceful drain.
        throwaway::stop(&mut self.child, "TERM");
    }
}

fn address(port: u16, user: &str, database: &str) -> Config {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user(user).dbname(database);
    config.connect_timeout(Duration::from_secs(5));
    config
}

/// A small pool, short thresholds, and B11 enforced so that the leak comes back.
fn config_toml(port: u16, admin_port: u16, server_port: u16) -> String {
    format!(
        r#"[listen]
address = "127.0.0.1:{port}"

[admin]
address = "127.0.0.1:{admin_port}"

[auth]
method = "trust"

[database.shop]
host = "127.0.0.1"
port = {server_port}
size = {POOL}

[budget.transaction]
max_idle = {{ warn = "1s", abort = "{RECLAIM_AFTER}", mode = "enforce", force = true }}

[tenant."*"]
max = "50%"
mode = "enforce"

[leak]
idle = "{LEAK_AFTER}"

[drain]
notice = "0s"
deadline = "2s"
"#
    )
}

/// Starts every client of every tenant, and the one that is going to leak.
fn start_workload(database: &Config, clients: usize) -> JoinSet<()> {
    let habits = [
        Habit {
            tenant: "quiet",
            route: "/account",
            clients: MODEST_CLIENTS,
            sql: "SELECT sum(amount) FROM orders WHERE customer = $1",
            pause: Duration::from_millis(100),
        },
        Habit {
            tenant: "ordinary",
            route: "/orders/new",
            clients: MODEST_CLIENTS,
            sql: "INSERT INTO orders (customer, amount) VALUES ($1, 10)",
            pause: Duration::from_millis(20),
        },
        Habit {
            tenant: "greedy",
            route: "/report",
            clients: clients.saturating_sub(2 * MODEST_CLIENTS).max(1),
            sql: "SELECT pg_sleep(0.05) FROM generate_series(1, 1 + $1 % 3)",
            pause: Duration::ZERO,
        },
    ];
    let mut tasks = JoinSet::new();
    for habit in habits {
        for number in 0..habit.clients {
            let database = database.clone();
            tasks.spawn(async move { keep_asking(&database, habit, number).await });
        }
    }
    let database = database.clone();
    tasks.spawn(async move {
        // An error is the end of the story that the demo tells: FATAL 25P03.
        let _ = forget_a_transaction(&database).await;
    });
    tasks
}

/// One client of a tenant: a request after the other, for ever. Connects again when its session has
/// been ended.
async fn keep_asking(database: &Config, habit: Habit, number: usize) {
    let mut database = database.clone();
    // The tenant is known from the first packet on, as with a connection string of its own.
    database.application_name(format!("{}-app", habit.tenant));
    database.options(format!("-c bursar.tenant={}", habit.tenant));
    loop {
        if let Ok(client) = driver::connect(&database).await {
            for count in 0_u32.. {
                let request = format!("{}-{number}-{count}", habit.tenant);
                if one_request(&client, &habit, &request, count).await.is_err() && client.is_closed() {
                    break;
                }
                tokio::time::sleep(habit.pause).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn one_request(
    client: &Client,
    habit: &Habit,
    request: &str,
    count: u32,
) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&format!("SET bursar.request_id = '{request}'")).await?;
    client.batch_execute(&format!("SET bursar.route = '{}'", habit.route)).await?;
    client.batch_execute("BEGIN").await?;
    let customer = i32::try_from(count % 100).unwrap_or(0);
    let outcome = client.query_typed(habit.sql, &[(&customer, Type::INT4)]).await;
    // After an error COMMIT is answered by ROLLBACK, which is what is wanted.
    client.batch_execute("COMMIT").await?;
    outcome.map(drop)
}

/// Begins a transaction and keeps it for as long as Bursar lets it.
async fn forget_a_transaction(database: &Config) -> Result<(), tokio_postgres::Error> {
    tokio::time::sleep(LEAK_PLANTED_AFTER).await;
    let mut database = database.clone();
    database.application_name("checkout-worker").options("-c bursar.tenant=ordinary");
    let client = driver::connect(&database).await?;
    for setting in [
        "request_id = 'lost-cart-4711'",
        "user_id = 'anna'",
        "route = '/checkout/confirm'",
        "thread_id = 't-7'",
    ] {
        client.batch_execute(&format!("SET bursar.{setting}")).await?;
    }
    client.batch_execute("BEGIN").await?;
    client.batch_execute("UPDATE orders SET amount = amount + 1 WHERE id = 1").await?;
    // The mistake: a call to somewhere else, with the transaction still open.
    std::future::pending().await
}

/// The whole story at one moment, from the console.
async fn summary(console: &Client, after: Duration) -> Result<String, Error> {
    let mut text = format!("\n──── after {} s ────\n", after.as_secs());
    for (question, sql, columns) in VIEWS {
        let rows = driver::rows(console, sql).await?;
        text.push_str(&format!("{question}  ({sql})\n{}\n", table(&rows, columns)));
    }
    Ok(text)
}

/// Question, view, and the columns that answer it.
const VIEWS: [(&str, &str, &[&str]); 4] = [
    (
        "how busy is the pool?",
        "SHOW POOLS",
        &["database", "user", "cl_active", "cl_waiting", "sv_active", "sv_idle", "maxwait", "pool_mode"],
    ),
    (
        "who waited, who held?",
        "SHOW TENANTS",
        &["tenant", "in_use", "cap", "queue", "leases_total", "wait_ms", "hold_ms", "active_ms", "rejects"],
    ),
    (
        "who holds a backend now?",
        "SHOW LEASES",
        &["tenant", "request", "user_id", "state", "hold_ms", "idle_ms", "backend_pid"],
    ),
    (
        "whose session leaked?",
        "SHOW LEAKS",
        &["class", "outcome", "tenant", "request", "route", "hold_ms", "idle_ms", "client", "backend_pid"],
    ),
];

/// The named columns that the view has, aligned.
fn table(rows: &[Row], columns: &[&str]) -> String {
    if rows.is_empty() {
        return "  nobody\n".to_owned();
    }
    let shown: Vec<&str> =
        columns.iter().copied().filter(|column| rows.iter().any(|row| row.contains_key(*column))).collect();
    let cell = |row: &Row, column: &str| row.get(column).cloned().unwrap_or_default();
    let widths: Vec<usize> = shown
        .iter()
        .map(|column| {
            let cells = rows.iter().map(|row| cell(row, column).chars().count());
            cells.max().unwrap_or(0).max(column.len())
        })
        .collect();
    let line = |cells: Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("  {cell:<width$}"));
        padded.collect::<String>().trim_end().to_owned() + "\n"
    };
    let mut text = line(shown.iter().map(|column| (*column).to_owned()).collect());
    for row in rows {
        text.push_str(&line(shown.iter().map(|column| cell(row, column)).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::collections::BTreeMap;

    #[test]
    fn the_generated_configuration_has_no_fault() {
        let config = config::parse(&config_toml(6432, 9432, 5432), "demo", &BTreeMap::new()).unwrap();
        let shop = config.database("shop").unwrap();
        assert_eq!((shop.port, shop.pool.size), (5432, POOL));
        assert_eq!(config.budget.idle.mode, config::Mode::Enforce);
        assert_eq!(config.leak.idle, Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_table_shows_the_columns_that_exist() {
        let row = |pairs: &[(&str, &str)]| -> Row {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let rows = [row(&[("tenant", "quiet"), ("cap", "2")]), row(&[("tenant", "greedy"), ("cap", "10")])];
        assert_eq!(table(&rows, &["tenant", "missing", "cap"]), "  tenant  cap\n  quiet   2\n  greedy  10\n");
        assert_eq!(table(&[], &["tenant"]), "  nobody\n");
    }
}
