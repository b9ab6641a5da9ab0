//! E19: the biggest values that PostgreSQL takes stream through beside clients who ask little things: a row of
//! 900 MB, a parameter of 500 MB and a query of 200 MB, again and again.
//!
//! The little questions come by the clock. A client takes its value, or sends it, at the speed of a network. As fast
//! as memory goes, the server and the client that move a value keep two cores busy by themselves, and what the
//! questions then wait for is a core: that is measured too, with no proxy at all, and with the value going straight to
//! the server, past the proxy that answers the questions.

use crate::clients::Samples;
use crate::common::lab::Setup;
use crate::common::wire::{Client, message, simple};
use crate::common::{Failure, process};
use crate::report::{Measured, Table, Target};
use crate::{Bench, Proxy};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Backends: there is always a free one.
const POOL: usize = 4;
/// Clients that ask little things, and how often each asks.
const ASKING: usize = 4;
const EVERY: Duration = Duration::from_millis(2);
const MB: usize = 1_000_000;
/// Bytes a second of a value at the speed of a network: 1 Gbit/s.
const NETWORK: u32 = 125_000_000;
/// Each side has its turn so often.
const ROUNDS: usize = 3;
/// What is measured of a side in a round lasts this part of the length, and at least one value.
const PIECES: u32 = 10;

/// A value, and the messages that move it.
struct Stream {
    name: &'static str,
    bytes: fn() -> Vec<u8>,
}

const STREAMS: [Stream; 3] = [
    Stream { name: "a row of 900 MB", bytes: row },
    Stream { name: "a parameter of 500 MB", bytes: parameter },
    Stream { name: "a query of 200 MB", bytes: query },
];

fn row() -> Vec<u8> {
    simple(&format!("select repeat(repeat('x', {MB}), 900)"))
}

fn parameter() -> Vec<u8> {
    let length = 500 * MB;
    let size = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    // One parameter, binary.
    let bind = [&b"\0\0\0\x01\0\x01\0\x01"[..], &size, &vec![b'z'; length], b"\0\0"].concat();
    [
        message(b'P', b"\0select octet_length($1::bytea)\0\0\0"),
        message(b'B', &bind),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ]
    .concat()
}

fn query() -> Vec<u8> {
    simple(&format!("select length('{}')", "z".repeat(200 * MB)))
}

/// Who carries the questions and the streams.
#[derive(Clone, Copy)]
enum Side<'p> {
    Proxy(&'p Proxy),
    /// Straight to the server: what the machine adds by itself.
    Direct(u16),
}

impl Side<'_> {
    fn port(self) -> u16 {
        match self {
            Side::Proxy(proxy) => proxy.port(),
            Side::Direct(port) => port,
        }
    }
}

/// p99 in milliseconds in one round, of one side.
struct Round {
    idle: f64,
    beside: [Beside; STREAMS.len()],
}

/// The same beside a stream.
#[derive(Clone, Copy)]
struct Beside {
    /// Through the same side at the speed of a network.
    network: f64,
    /// As fast as it goes.
    full: f64,
    /// The same straight to the server, past the side, if that is a proxy.
    past: f64,
}

/// One side, in all its rounds.
#[derive(Default)]
struct Outcome {
    rounds: Vec<Round>,
    /// By how many bytes the proxy's own memory had grown in the end.
    grown: Option<u64>,
}

impl Outcome {
    /// The median of the rounds.
    fn median(&self, value: impl Fn(&Round) -> f64) -> Measured {
        let mut all: Vec<f64> = self.rounds.iter().map(value).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).map_or(Measured::No, |median| Measured::Is(*median))
    }

    #[allow(clippy::cast_precision_loss, reason = "some millions")]
    fn grown(&self) -> Measured {
        self.grown.map_or(Measured::No, |bytes| Measured::Is(bytes as f64 / 1e6))
    }
}

/// The experiment.
pub(crate) async fn experiment(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let setup = Setup::of(POOL).with("tenant.\"*\"", "mode = \"observe\"");
    let (theirs, ours) = (bench.pgbouncer(&setup)?, bench.bursar(&setup)?);
    let server = bench.lab.port();
    // Threads of their own: values are moved by blocking clients.
    let all = tokio::task::spawn_blocking(move || measure(&ours, &theirs, server, length));
    let [ours, theirs, direct] = all.await??;
    let mut table = Table::default();
    let mut line = |metric: &str, unit, value: &dyn Fn(&Round) -> f64, past: bool, target| {
        table.line(metric, unit, ours.median(value), theirs.median(value), target);
        if !past {
            table.direct(direct.median(value));
        }
    };
    line("a little question, p99, nothing else going on", "ms", &|round| round.idle, false, Target::None);
    for (at, stream) in STREAMS.iter().enumerate() {
        let beside = format!("beside {} at 1 Gbit/s, p99", stream.name);
        line(&beside, "ms", &|round| round.beside[at].network, false, Target::None);
        let mut over = |metric: &str, value: fn(&Beside) -> f64, past, target| {
            line(metric, "", &|round| value(&round.beside[at]) / round.idle, past, target);
        };
        over("  over that with nothing else going on", |beside| beside.network, false, Target::AtMost(2.0));
        over("  the same, as fast as it goes", |beside| beside.full, false, Target::None);
        over("  the same, the stream past the proxy", |beside| beside.past, true, Target::None);
    }
    table.line("memory grown", "MB", ours.grown(), theirs.grown(), Target::AtMost(8.0));
    Ok(table)
}

/// Bursar, PgBouncer, and neither. They take turns, so that what else the machine does hits all of them.
fn measure(ours: &Proxy, theirs: &Proxy, server: u16, length: Duration) -> Result<[Outcome; 3], Failure> {
    let sides = [Side::Proxy(ours), Side::Proxy(theirs), Side::Direct(server)];
    let mut outcomes = [(); 3].map(|()| Outcome::default());
    let mut before = [None; 3];
    for round in 0..ROUNDS {
        for at in (0..sides.len()).map(|turn| (turn + round) % sides.len()) {
            let (idle, side) = (ask_idle(sides[at].port(), length / PIECES)?, sides[at]);
            if let (Side::Proxy(proxy), None) = (side, before[at]) {
                before[at] = Some(process::anonymous_bytes(proxy.pid())?);
            }
            let beside = beside(side, server, length / PIECES)?;
            outcomes[at].rounds.push(Round { idle, beside });
            if let (Side::Proxy(proxy), Some(before)) = (side, before[at]) {
                outcomes[at].grown = Some(process::anonymous_bytes(proxy.pid())?.saturating_sub(before));
            }
        }
    }
    Ok(outcomes)
}

fn ask_idle(port: u16, length: Duration) -> Result<f64, Failure> {
    let idle = ask(port, || {
        std::thread::sleep(length);
        Ok(())
    })?;
    Ok(p99(&idle))
}

/// p99 beside each stream.
fn beside(side: Side, server: u16, length: Duration) -> Result<[Beside; STREAMS.len()], Failure> {
    let mut all = [Beside { network: f64::NAN, full: f64::NAN, past: f64::NAN }; STREAMS.len()];
    for (stream, p99s) in STREAMS.iter().zip(&mut all) {
        let bytes = (stream.bytes)();
        let run = |port, speed: Option<u32>| {
            let mut client = Client::over(port, speed)?;
            let samples = ask(side.port(), || {
                let end = Instant::now() + length;
                while Instant::now() < end {
                    client.round_trip(&bytes)?;
                }
                Ok(())
            });
            samples.map(|samples| p99(&samples))
        };
        p99s.network = run(side.port(), Some(NETWORK))?;
        p99s.full = run(side.port(), None)?;
        if matches!(side, Side::Proxy(_)) {
            p99s.past = run(server, None)?;
        }
    }
    Ok(all)
}

fn p99(samples: &Samples) -> f64 {
    samples.per_mille(990)
}

/// What little questions take while `meanwhile` runs, each timed from when it was due.
fn ask(port: u16, meanwhile: impl FnOnce() -> Result<(), Failure>) -> Result<Samples, Failure> {
    let over = AtomicBool::new(false);
    let ask_on = || -> Result<Vec<Duration>, Failure> {
        let mut client = Client::connect(port)?;
        client.query("select 7")?;
        let (mut took, mut due) = (Vec::new(), Instant::now());
        while !over.load(Ordering::Relaxed) {
            due += EVERY;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            client.query("select 7")?;
            took.push(due.elapsed());
        }
        Ok(took)
    };
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..ASKING).map(|_| scope.spawn(ask_on)).collect();
        let done = meanwhile();
        over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for one in asking {
            all.extend(one.join().map_err(|_| "a client that asks has failed")??);
        }
        done.map(|()| Samples::new(all))
    })
}
