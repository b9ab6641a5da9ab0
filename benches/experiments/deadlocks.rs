//! E8 and E8b: requests that hold one backend and wait for another, and a session that waits for a row that
//! its own request has locked.

use crate::clients::{self, Crowd, Window};
use crate::common::Failure;
use crate::common::lab::Setup;
use crate::report::{Measured, Table, Target};
use crate::{Bench, Proxy};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

/// Backends.
const POOL: usize = 10;
/// Requests at once.
const REQUESTS: u64 = 30;
/// Sessions of a request at once, at most.
const DEPTH: u32 = 5;
/// What a session does.
const WORK: &str = "select pg_sleep(0.005)";
/// Before anything counts.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long nothing may happen: detection after 200 ms, and the victim's end.
const STILL: f64 = 250.0;

/// Sessions that are opened within one, in a transaction.
struct Session(Vec<Session>);

impl Session {
    /// So deep at least and at most, with up to two sessions inside each.
    fn random(random: &mut StdRng, least: u32, most: u32) -> Session {
        let inner = match (least, most) {
            (_, 1) => 0,
            (2.., _) => random.random_range(1..=2),
            _ => random.random_range(0..=2),
        };
        Session((0..inner).map(|_| Session::random(random, least.saturating_sub(1), most - 1)).collect())
    }
}

/// What has happened so far.
struct Progress {
    window: Window,
    last: Instant,
    longest: Duration,
    /// Requests that came to their end.
    done: u32,
    /// Sessions that ended with 40P01, and with anything else.
    victims: u32,
    refused: u32,
}

impl Progress {
    /// Something happened, or the end has come.
    fn mark(&mut self) {
        let now = Instant::now().min(self.window.to);
        if now > self.window.from {
            self.longest = self.longest.max(now.saturating_duration_since(self.last.max(self.window.from)));
        }
        self.last = now;
    }
}

/// E8.
pub(crate) async fn random_trees(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let claim = |limit: u32, mode: &str, patience: &str| {
        Setup::of(POOL)
            .with("pool", &format!("max_wait = \"{patience}\""))
            .with("budget.request", &format!("max_concurrent = {{ limit = {limit}, mode = \"{mode}\" }}"))
            .with("budget.request", "max_leases = { warn = \"off\", mode = \"observe\" }")
    };
    let theirs = trees(&bench.pgbouncer(&Setup::of(POOL))?, false, length).await?;
    let right = trees(&bench.bursar(&claim(DEPTH, "enforce", "60s"))?, true, length).await?;
    let wrong = trees(&bench.bursar(&claim(2, "warn", "60s"))?, true, length).await?;
    let untagged = trees(&bench.bursar(&claim(DEPTH, "enforce", "3s"))?, false, length).await?;
    let mut table = Table::default();
    let mut lines = |claims: &str, ours: &Progress, theirs: Option<&Progress>, still, victims, refused| {
        table.group(claims.to_owned());
        let mut line = |metric: &str, unit, value: fn(&Progress) -> f64, target| {
            let theirs = theirs.map_or(Measured::No, |side| Measured::Is(value(side)));
            table.line(metric, unit, Measured::Is(value(ours)), theirs, target);
        };
        line("longest without progress", "ms", |side| side.longest.as_secs_f64() * 1e3, still);
        line("requests done", "", |side| side.done.into(), Target::None);
        line("ended with 40P01", "", |side| side.victims.into(), victims);
        line("ended otherwise", "", |side| side.refused.into(), refused);
    };
    let none = Target::Exactly(0.0);
    lines("right claims", &right, Some(&theirs), Target::AtMost(STILL), none, none);
    lines("claims too small", &wrong, None, Target::AtMost(STILL), Target::None, none);
    // Nobody is aborted on a suspicion: a waiter's own deadline is what ends it.
    lines("untagged", &untagged, None, Target::AtMost(3000.0 + STILL), Target::None, Target::None);
    Ok(table)
}

async fn trees(proxy: &Proxy, tagged: bool, length: Duration) -> Result<Progress, Failure> {
    let window = Window::after(WARM_UP, length);
    let (last, longest) = (window.from, Duration::ZERO);
    let progress = Progress { window, last, longest, done: 0, victims: 0, refused: 0 };
    let progress = Arc::new(Mutex::new(progress));
    let mut crowd = Crowd::default();
    for seed in 0..REQUESTS {
        crowd.join(requests(proxy.port(), tagged, seed, progress.clone()));
    }
    tokio::time::sleep_until(window.to.into()).await;
    drop(crowd);
    // The tasks that hold the others end with the crowd, when they are next looked at.
    let mut all = progress.lock().unwrap_or_else(PoisonError::into_inner);
    all.mark();
    let Progress { window, last, longest, done, victims, refused } = *all;
    Ok(Progress { window, last, longest, done, victims, refused })
}

/// One request after another, each a tree of its own.
async fn requests(port: u16, tagged: bool, seed: u64, progress: Arc<Mutex<Progress>>) {
    let mut random = StdRng::seed_from_u64(seed);
    for n in 0.. {
        let least = random.random_range(2..=DEPTH);
        let tree = Session::random(&mut random, least, DEPTH);
        let name = format!("request-{seed}-{n}");
        let tags = [("request_id", name.as_str())];
        let tags: &[(&str, &str)] = if tagged { &tags } else { &[] };
        let result = open(port, tags, &tree, &progress).await;
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => progress.done += 1,
            Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => progress.victims += 1,
            Err(_) => progress.refused += 1,
        }
    }
}

/// A session around those inside it.
fn open<'a>(
    port: u16,
    tags: &'a [(&'a str, &'a str)],
    session: &'a Session,
    progress: &'a Mutex<Progress>,
) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>> {
    Box::pin(async move {
        let client = clients::session(port, tags).await?;
        for statement in ["begin", WORK] {
            client.batch_execute(statement).await?;
        }
        progress.lock().unwrap_or_else(PoisonError::into_inner).mark();
        for inner in &session.0 {
            open(port, tags, inner, progress).await?;
        }
        client.batch_execute("commit").await?;
        progress.lock().unwrap_or_else(PoisonError::into_inner).mark();
        Ok(())
    })
}

/// E8b.
pub(crate) async fn own_row_lock(bench: &Bench, timeout: Duration) -> Result<Table, Failure> {
    let direct = clients::direct(bench.lab.port()).await?;
    direct.batch_execute("create table if not exists locked (id int primary key, n int)").await?;
    direct.batch_execute("insert into locked values (1, 0) on conflict (id) do nothing").await?;
    let theirs = inner_update(bench.pgbouncer(&Setup::of(POOL))?.port(), timeout).await;
    let ours = inner_update(bench.bursar(&Setup::of(POOL))?.port(), timeout).await;
    let (ours, theirs) = (ours?, theirs?);
    let mut table = Table::default();
    let mut line = |metric: &str, unit, value: fn(&Inner) -> f64, target| {
        table.line(metric, unit, Measured::Is(value(&ours)), Measured::Is(value(&theirs)), target);
    };
    line(
        "until the inner session is told",
        "ms",
        |side| side.took.as_secs_f64() * 1e3,
        Target::AtMost(1500.0),
    );
    line("it is told 40P01 (1 = yes)", "", |side| side.deadlock.into(), Target::Exactly(1.0));
    line("the outer session commits (1 = yes)", "", |side| side.outer.into(), Target::Exactly(1.0));
    Ok(table)
}

/// How the inner session ended.
struct Inner {
    took: Duration,
    deadlock: u8,
    outer: u8,
}

/// An outer session updates a row; a session inside it, of the same request, does so too. PostgreSQL sees no
/// deadlock, since the outer one is idle; without help only `lock_timeout` ends it.
async fn inner_update(port: u16, timeout: Duration) -> Result<Inner, Failure> {
    let update = "update locked set n = n + 1 where id = 1";
    let tags = [("request_id", "outer-and-inner")];
    let run = async |client: &Client, statements: &[&str]| -> Result<(), Error> {
        for statement in statements {
            client.batch_execute(statement).await?;
        }
        Ok(())
    };
    let (outer, inner) = (clients::session(port, &tags).await?, clients::session(port, &tags).await?);
    run(&outer, &["begin", update]).await?;
    run(&inner, &["begin", &format!("set local lock_timeout = '{}s'", timeout.as_secs())]).await?;
    let began = Instant::now();
    let error = run(&inner, &[update]).await.err().ok_or("the inner session updated a locked row")?;
    let took = began.elapsed();
    let deadlock = u8::from(error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED));
    let outer = u8::from(run(&outer, &[update, "commit"]).await.is_ok());
    Ok(Inner { took, deadlock, outer })
}
