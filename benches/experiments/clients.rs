//! What every load is made of: tagged sessions, crowds that are sent away, and how long things took.

use std::future::Future;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, Error, NoTls, SimpleQueryMessage};

/// A session at this port of 127.0.0.1 with these tags (`tenant`, `request_id`, `class`, …).
///
/// They travel as start-up options: Bursar reads them without a round trip, PgBouncer ignores them.
pub(crate) async fn session(port: u16, tags: &[(&str, &str)]) -> Result<Client, Error> {
    let mut config = Config::new();
    let options: Vec<String> = tags.iter().map(|(key, value)| format!("-c bursar.{key}={value}")).collect();
    if !options.is_empty() {
        config.options(options.join(" "));
    }
    connect(config, port, "postgres").await
}

/// A session with PostgreSQL itself, which is left alone when a measurement begins.
pub(crate) async fn direct(port: u16) -> Result<Client, Error> {
    let mut config = Config::new();
    config.application_name("experiments");
    connect(config, port, "postgres").await
}

/// A session with Bursar's console.
pub(crate) async fn console(port: u16) -> Result<Client, Error> {
    connect(Config::new(), port, "bursar").await
}

async fn connect(mut config: Config, port: u16, database: &str) -> Result<Client, Error> {
    config.host("127.0.0.1").port(port).user("postgres").dbname(database);
    let (client, connection) = config.connect(NoTls).await?;
    // Its error reaches whoever waits for an answer from `client`.
    tokio::spawn(connection);
    Ok(client)
}

/// The columns of the first row.
pub(crate) async fn row(client: &Client, sql: &str) -> Result<Option<Vec<String>>, Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    }))
}

/// What went wrong, with what the server said.
pub(crate) fn in_full(error: &Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => error.to_string(),
    }
}

/// Tasks that would go on for ever; dropping the crowd ends them.
#[derive(Default)]
pub(crate) struct Crowd(JoinSet<()>);

impl Crowd {
    /// One task more.
    pub(crate) fn join(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(task);
    }

    /// Lets go of those that have ended by themselves.
    pub(crate) fn forget(&mut self) {
        while self.0.try_join_next().is_some() {}
    }
}

/// How long things took, ascending.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// In any order.
    pub(crate) fn new(mut all: Vec<Duration>) -> Samples {
        all.sort_unstable();
        Samples(all)
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// So many in a thousand took no longer (nearest rank), in milliseconds; NaN of nothing.
    pub(crate) fn per_mille(&self, rank: usize) -> f64 {
        let index = (self.0.len() * rank).div_ceil(1000).saturating_sub(1);
        self.0.get(index).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }

    /// The longest, in milliseconds.
    pub(crate) fn max(&self) -> f64 {
        self.per_mille(1000)
    }
}

/// A stretch of time that counts: what comes before it warms up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Its beginning.
    pub(crate) from: Instant,
    /// Its end.
    pub(crate) to: Instant,
}

impl Window {
    /// Begins when the warm-up is over.
    pub(crate) fn after(warm_up: Duration, length: Duration) -> Window {
        let from = Instant::now() + warm_up;
        Window { from, to: from + length }
    }

    /// Whether something then is counted.
    pub(crate) fn has(&self, when: Instant) -> bool {
        self.from <= when && when < self.to
    }

    /// Its length in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        (self.to - self.from).as_secs_f64()
    }
}
