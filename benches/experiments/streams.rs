//! E19: the biggest values that PostgreSQL takes stream through beside clients who ask little things: a row of
//! 900 MB, a parameter of 500 MB and a query of 200 MB, again and again.
//!
//! The little questions come by the clock. The machine adds to them what its cores are busy with, above all
//! the server and the client that move the value: so the same is measured with the value going straight to the
//! server, past the proxy that answers the questions.

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

/// One side.
struct Outcome {
    idle: Samples,
    /// Beside each stream through the proxy, and beside the same straight to the server.
    beside: Vec<[Samples; 2]>,
    /// By how much the proxy's own memory had grown in the end.
    grown: f64,
}

/// The experiment.
pub(crate) async fn experiment(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let setup = Setup::of(POOL).with("tenant.\"*\"", "mode = \"observe\"");
    let (theirs, ours) = (bench.pgbouncer(&setup)?, bench.bursar(&setup)?);
    let server = bench.lab.port();
    // Threads of their own: values are moved by blocking clients.
    let both = tokio::task::spawn_blocking(move || {
        Ok::<_, Failure>([measure(&theirs, server, length)?, measure(&ours, server, length)?])
    });
    let [theirs, ours] = both.await??;
    let mut table = Table::default();
    let mut line = |metric: &str, value: &dyn Fn(&Outcome) -> f64, target| {
        table.line(metric, "ms", Measured::Is(value(&ours)), Measured::Is(value(&theirs)), target);
    };
    let p99 = |samples: &Samples| samples.per_mille(990);
    let idle = p99(&ours.idle);
    line("a little question, p99, nothing else going on", &|side| p99(&side.idle), Target::None);
    for (at, stream) in STREAMS.iter().enumerate() {
        let (through, past) = (format!("beside {}, p99", stream.name), "  past the proxy, p99".to_owned());
        line(&through, &|side| p99(&side.beside[at][0]), Target::AtMost(2.0 * idle));
        line(&past, &|side| p99(&side.beside[at][1]), Target::None);
    }
    let [grown, their_grown] = [&ours, &theirs].map(|side| Measured::Is(side.grown));
    table.line("memory grown", "MB", grown, their_grown, Target::AtMost(8.0));
    Ok(table)
}

fn measure(proxy: &Proxy, server: u16, length: Duration) -> Result<Outcome, Failure> {
    let idle = ask(proxy.port(), || {
        std::thread::sleep(length / 4);
        Ok(())
    })?;
    let before = process::anonymous_bytes(proxy.pid())?;
    let mut beside = Vec::new();
    for stream in &STREAMS {
        let bytes = (stream.bytes)();
        let run = |port| {
            let mut client = Client::connect(port)?;
            ask(proxy.port(), || {
                let end = Instant::now() + length / 4;
                while Instant::now() < end {
                    client.round_trip(&bytes)?;
                }
                Ok(())
            })
        };
        beside.push([run(proxy.port())?, run(server)?]);
    }
    #[allow(clippy::cast_precision_loss, reason = "some millions")]
    let grown = (process::anonymous_bytes(proxy.pid())?.saturating_sub(before)) as f64 / 1e6;
    Ok(Outcome { idle, beside, grown })
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
