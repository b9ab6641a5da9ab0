//! An application that starves on its own connection pool (budgets.md F8).
//!
//! `QueuePool limit reached` and its like are raised inside the application, before a byte reaches Bursar: no
//! budget here can help, only a wider pool there. From outside it shows: all connections of an instance are
//! in a transaction, there have been that many for a while and no more, and most often each is taken again
//! within a millisecond of being free, because somebody was waiting for it.
//!
//! Looked at once a second. A closed loop of as many workers as connections looks the same; so it is said,
//! and nothing is done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Looks in a row that have to agree.
const LOOKS: u32 = 10;
/// Of its connections, so many in a hundred have to be in a transaction, over those looks.
const BUSY: u64 = 90;
/// Of the times a connection was taken again, so many in a hundred have to have been quick: the median, since
/// a BEGIN that Bursar answers itself, and a busy machine, come in between.
const QUICK: u64 = 50;
/// The same instance is told of again after this.
const AGAIN: Duration = Duration::from_secs(3_600);
/// Instances looked at.
const KEPT: usize = 1_000;

/// An instance of an application: where its connections come from, and what it calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Address, without the port.
    pub host: Arc<str>,
    /// Application name.
    pub application: Arc<str>,
    /// Role.
    pub user: Arc<str>,
}

/// An instance at one look.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Which.
    pub instance: Instance,
    /// Its connections.
    pub sessions: u32,
    /// Those that hold a backend or wait for one.
    pub busy: u32,
    /// How often any of them was taken again within a millisecond, so far.
    pub quick: u64,
    /// How often at all.
    pub taken: u64,
}

/// An instance that starves on its own pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saturated {
    /// Which.
    pub instance: Instance,
    /// Its connections: the size of its pool, as far as can be seen.
    pub sessions: u32,
    /// When it was last found so.
    pub seen: Instant,
}

#[derive(Debug)]
struct Watched {
    sessions: u32,
    looks: u32,
    /// Σ over those looks.
    busy: u64,
    /// Counters when they began.
    quick: u64,
    taken: u64,
    told: Option<Instant>,
    seen: Option<Instant>,
    /// Of the look under way.
    round: u64,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Saturation {
    watched: HashMap<u64, (Instance, Watched)>,
    round: u64,
    total: u64,
}

impl Saturation {
    /// One look at every instance, by a number of its own; returns those that are to be told of.
    pub fn look(&mut self, now: Instant, samples: HashMap<u64, Sample>) -> Vec<Saturated> {
        self.round += 1;
        let mut found = Vec::new();
        for (id, sample) in samples {
            if self.watched.len() >= KEPT && !self.watched.contains_key(&id) {
                continue;
            }
            let (instance, watched) = self
                .watched
                .entry(id)
                .or_insert_with(|| (sample.instance.clone(), Watched::begin(&sample, None)));
            watched.round = self.round;
            if watched.saw(&sample, now) {
                let sessions = sample.sessions;
                found.push(Saturated { instance: instance.clone(), sessions, seen: now });
            }
        }
        let round = self.round;
        self.watched.retain(|_, (_, watched)| watched.round == round);
        self.total += found.len() as u64;
        found.sort_unstable_by(|a, b| (&a.instance.host, a.sessions).cmp(&(&b.instance.host, b.sessions)));
        found
    }

    /// Those found so within the last hour that are still connected.
    #[must_use]
    pub fn lately(&self, now: Instant) -> Vec<Saturated> {
        let lately = |(instance, watched): &(Instance, Watched)| {
            let seen = watched.seen.filter(|seen| now.saturating_duration_since(*seen) < AGAIN)?;
            Some(Saturated { instance: instance.clone(), sessions: watched.sessions, seen })
        };
        let mut rows: Vec<Saturated> = self.watched.values().filter_map(lately).collect();
        rows.sort_unstable_by(|a, b| (&a.instance.host, a.sessions).cmp(&(&b.instance.host, b.sessions)));
        rows
    }

    /// `bursar_client_pool_saturated_total`
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

impl Watched {
    fn begin(sample: &Sample, told: Option<Instant>) -> Watched {
        let Sample { sessions, quick, taken, .. } = *sample;
        Watched { sessions, looks: 0, busy: 0, quick, taken, told, seen: None, round: 0 }
    }

    /// Adds a look; true if the instance is to be told of now.
    fn saw(&mut self, sample: &Sample, now: Instant) -> bool {
        // Counters of sessions that have left are gone from the sums.
        if sample.sessions != self.sessions || sample.taken < self.taken || sample.quick < self.quick {
            let (seen, round) = (self.seen, self.round);
            *self = Watched { seen, round, ..Watched::begin(sample, self.told) };
            return false;
        }
        self.looks += 1;
        self.busy += u64::from(sample.busy);
        if self.looks < LOOKS {
            return false;
        }
        let all = u64::from(self.sessions) * u64::from(self.looks);
        let (quick, taken) = (sample.quick - self.quick, sample.taken - self.taken);
        let starves = self.sessions > 1
            && self.busy * 100 >= all * BUSY
            && taken >= u64::from(self.sessions)
            && quick * 100 >= taken * QUICK;
        (self.looks, self.busy, self.quick, self.taken) = (0, 0, sample.quick, sample.taken);
        if !starves {
            return false;
        }
        self.seen = Some(now);
        let tells = self.told.is_none_or(|told| now.saturating_duration_since(told) >= AGAIN);
        if tells {
            self.told = Some(now);
        }
        tells
    }
}

/// The setting that widens the application's pool, by its name or else by the size that it has by default.
#[must_use]
pub fn setting(application: &str, sessions: u32) -> &'static str {
    let name = application.to_ascii_lowercase();
    let by_name = STACKS.iter().find(|stack| stack.names.iter().any(|word| name.contains(word)));
    let by_size = || STACKS.iter().find(|stack| stack.size == Some(sessions));
    match by_name.or_else(by_size) {
        Some(stack) => stack.setting,
        // Prisma's default is twice the processors and one.
        None if sessions % 2 == 1 && sessions > 4 => PRISMA,
        None => "raise the size of the application's own pool",
    }
}

const PRISMA: &str = "Prisma: connection_limit= in the same URL";

/// A driver or pool: words of its application name, its default size, what to change.
struct Stack {
    names: &'static [&'static str],
    size: Option<u32>,
    setting: &'static str,
}

const STACKS: [Stack; 9] = [
    Stack { names: &["prisma"], size: Some(17), setting: PRISMA },
    Stack {
        names: &["sqlalchemy", "psycopg", "python"],
        size: Some(15),
        setting: "SQLAlchemy: poolclass=NullPool, or max_overflow=-1",
    },
    Stack {
        names: &["jdbc", "hikari", "spring"],
        size: Some(10),
        setting: "HikariCP: maximumPoolSize (node-postgres: max; asyncpg: max_size; their default is 10 as well)",
    },
    Stack { names: &["asyncpg"], size: None, setting: "asyncpg: max_size of create_pool" },
    Stack {
        names: &["node", "sequelize"],
        size: None,
        setting: "node-postgres: max of new Pool (Sequelize: pool.max)",
    },
    Stack {
        names: &["rails", "puma", "sidekiq"],
        size: Some(5),
        setting: "Rails: pool: in database.yml (Sequelize: pool.max)",
    },
    Stack { names: &["pgx", "golang"], size: Some(4), setting: "pgx: pool_max_conns in the URL" },
    Stack {
        names: &["npgsql", "dotnet"],
        size: Some(100),
        setting: "Npgsql: Maximum Pool Size in the connection string",
    },
    Stack { names: &["sqlx", "rust"], size: None, setting: "sqlx: PgPoolOptions::max_connections" },
];

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn sample(sessions: u32, busy: u32, quick: u64, taken: u64) -> Sample {
        let instance = Instance { host: "10.0.0.1".into(), application: "".into(), user: "app".into() };
        Sample { instance, sessions, busy, quick, taken }
    }

    /// What `looks` looks a second apart come to, each with this many more takings.
    fn looks(saturation: &mut Saturation, from: Instant, looks: u32, of: impl Fn(u64) -> Sample) -> usize {
        let look = |n: u32| saturation.look(from + n * S, HashMap::from([(7, of(n.into()))])).len();
        (0..looks).map(look).sum()
    }

    #[test]
    fn a_pool_that_is_full_for_ten_looks_and_never_rests_is_told_of_once_an_hour() {
        let (mut saturation, now) = (Saturation::default(), Instant::now());
        let starving = |n: u64| sample(17, 17, 40 * n, 40 * n);
        assert_eq!(looks(&mut saturation, now, 9, starving), 0);
        assert_eq!(looks(&mut saturation, now + 9 * S, 3_000, |n| starving(n + 9)), 1);
        assert_eq!(saturation.lately(now + 3_000 * S).len(), 1);
        assert_eq!(looks(&mut saturation, now + 3_010 * S, 700, |n| starving(n + 3_010)), 1);
        assert_eq!(saturation.total(), 2);
    }

    #[test]
    fn who_has_room_or_rests_or_grows_does_not_starve() {
        for of in [
            |n| sample(17, 15, 40 * n, 40 * n),
            |n| sample(17, 17, 19 * n, 40 * n),
            |n| sample(17 + n as u32 % 2, 17, 40 * n, 40 * n),
            |n| sample(1, 1, 40 * n, 40 * n),
            |_| sample(17, 17, 0, 0),
        ] {
            let mut saturation = Saturation::default();
            assert_eq!(looks(&mut saturation, Instant::now(), 100, of), 0, "{:?}", of(1));
        }
    }

    #[test]
    fn an_instance_that_has_left_is_forgotten() {
        let (mut saturation, now) = (Saturation::default(), Instant::now());
        assert_eq!(looks(&mut saturation, now, 30, |n| sample(4, 4, 9 * n, 9 * n)), 1);
        saturation.look(now + 30 * S, HashMap::new());
        assert!(saturation.watched.is_empty() && saturation.lately(now).is_empty());
    }

    #[test]
    fn the_setting_is_that_of_the_stack() {
        assert_eq!(setting("sales-prisma", 10), PRISMA);
        assert_eq!(setting("", 17), PRISMA);
        assert_eq!(setting("", 33), PRISMA, "twice sixteen processors and one");
        assert!(setting("PostgreSQL JDBC Driver", 30).starts_with("HikariCP: maximumPoolSize"));
        assert!(setting("web", 15).starts_with("SQLAlchemy"));
        assert_eq!(setting("web", 8), "raise the size of the application's own pool");
    }
}
