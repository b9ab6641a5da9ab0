//! The siege: ten thousand idle clients, two thousand that send their start-up packets a byte a second, and a
//! thousand wrong passwords a second, all from the address of a good client that logs in and asks something.
//!
//! Passwords are checked by SCRAM-SHA-256. The clients here derive the keys of both passwords once: what
//! is measured is the proxy, not PBKDF2 in ten thousand clients.

use crate::Bench;
use crate::clients::{Crowd, Samples, Window};
use crate::common::lab::Setup;
use crate::common::wire::{message, simple};
use crate::common::{Failure, process};
use crate::report::{Measured, Table, Target};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bursar::auth::keys::{ITERATIONS, ScramKeys, hmac};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const IDLE: usize = 10_000;
const SLOW: usize = 2_000;
const GUESSES_PER_SECOND: u32 = 1_000;
const PASSWORD: &str = "the right one";

/// Stated in docs/operations.md: 8 KiB for each client that is there, and the program's own.
const BOUND: f64 = 128.0;

/// How a login ends.
enum Login {
    In(TcpStream),
    Refused,
}

/// `user=postgres`, protocol 3.0.
fn startup() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

async fn read(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]).saturating_sub(4);
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    Ok((head[0], body))
}

/// Up to ReadyForQuery, or an error.
async fn until_ready(stream: &mut TcpStream) -> io::Result<bool> {
    loop {
        match read(stream).await?.0 {
            b'Z' => return Ok(true),
            b'E' => return Ok(false),
            _ => {}
        }
    }
}

/// The server's first SCRAM message, and the stream behind it.
async fn challenge(port: u16) -> io::Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&startup()).await?;
    let (kind, body) = read(&mut stream).await?;
    if kind != b'R' || body[..4] != [0, 0, 0, 10] {
        return Err(io::Error::other("no SASL was asked for"));
    }
    let first = b"n,,n=,r=besieged";
    let body = [b"SCRAM-SHA-256\0", &(first.len() as u32).to_be_bytes()[..], first].concat();
    stream.write_all(&message(b'p', &body)).await?;
    let (_, body) = read(&mut stream).await?;
    let text = body.get(4..).map(String::from_utf8_lossy).unwrap_or_default();
    Ok((stream, text.into_owned()))
}

/// A login with these keys (RFC 5802, 3).
async fn login(port: u16, keys: &ScramKeys) -> io::Result<Login> {
    let (mut stream, challenge) = challenge(port).await?;
    let nonce = challenge.split(',').next().unwrap_or_default();
    let bare = format!("c=biws,{nonce}");
    let signature = hmac(&keys.stored(), format!("n=,r=besieged,{challenge},{bare}").as_bytes());
    let proof: Vec<u8> = keys.client.iter().zip(signature).map(|(key, sign)| key ^ sign).collect();
    let last = format!("{bare},p={}", BASE64.encode(proof));
    stream.write_all(&message(b'p', last.as_bytes())).await?;
    Ok(if until_ready(&mut stream).await? { Login::In(stream) } else { Login::Refused })
}

/// The keys of a password at this proxy, whose verifier has its own salt.
async fn derive(port: u16, password: &str) -> Result<ScramKeys, Failure> {
    let (_, challenge) = challenge(port).await?;
    let salt = challenge.split(',').find_map(|part| part.strip_prefix("s=")).ok_or("no salt")?;
    Ok(ScramKeys::derive(password.as_bytes(), &BASE64.decode(salt)?, ITERATIONS))
}

/// What the attackers and the good client have seen.
#[derive(Default)]
struct Seen {
    refused: AtomicU64,
    /// A guess that was let in, or ended in no answer.
    other: AtomicU64,
    cut_off: AtomicU64,
}

/// Sends its start-up packet a byte a second, and comes again when it is cut off.
async fn slowly(port: u16, seen: Arc<Seen>) {
    loop {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let mut rest = [0; 256];
        for byte in startup() {
            if stream.write_all(&[byte]).await.is_err() {
                break;
            }
            let second = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut rest));
            if matches!(second.await, Ok(Ok(0) | Err(_))) {
                break;
            }
        }
        seen.cut_off.fetch_add(1, Ordering::Relaxed);
    }
}

/// Wrong passwords by the clock, whatever becomes of the earlier ones.
async fn guess(port: u16, wrong: Arc<ScramKeys>, seen: Arc<Seen>) {
    let mut clock = tokio::time::interval(Duration::from_secs(1) / GUESSES_PER_SECOND);
    let mut guesses = Crowd::default();
    loop {
        clock.tick().await;
        let (wrong, seen) = (wrong.clone(), seen.clone());
        guesses.join(async move {
            match login(port, &wrong).await {
                Ok(Login::Refused) => seen.refused.fetch_add(1, Ordering::Relaxed),
                _ => seen.other.fetch_add(1, Ordering::Relaxed),
            };
        });
        guesses.forget();
    }
}

pub(crate) async fn experiment(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let setup = Setup::of(20)
        .with("auth", "method = \"scram-sha-256\"")
        .with("user.postgres", &format!("password = \"{PASSWORD}\""))
        .with("listen", "max_clients = 12000")
        .with("listen", "login_timeout = \"5s\"")
        .with("tenant.\"*\"", "max_sessions = 12000")
        .with("log", "level = \"error\"");
    let bursar = bench.bursar(&setup)?;
    let port = bursar.port();
    let (right, wrong) = (derive(port, PASSWORD).await?, derive(port, "a guess").await?);
    let empty = process::anonymous_bytes(bursar.pid())?;
    let mut idle = Vec::with_capacity(IDLE);
    while idle.len() < IDLE {
        match login(port, &right).await? {
            Login::In(stream) => idle.push(stream),
            Login::Refused => return Err("an idle client was refused".into()),
        }
    }
    let crowded = process::anonymous_bytes(bursar.pid())?;

    let (seen, mut attackers) = (Arc::new(Seen::default()), Crowd::default());
    for _ in 0..SLOW {
        attackers.join(slowly(port, seen.clone()));
    }
    attackers.join(guess(port, Arc::new(wrong), seen.clone()));
    let window = Window::after(Duration::from_secs(5), length);
    let (mut took, mut failed, mut most) = (Vec::new(), 0, 0);
    let mut clock = tokio::time::interval(Duration::from_millis(100));
    while Instant::now() < window.to {
        clock.tick().await;
        let start = Instant::now();
        let good = async {
            match login(port, &right).await? {
                Login::In(mut stream) => {
                    stream.write_all(&simple("select 1")).await?;
                    until_ready(&mut stream).await
                }
                Login::Refused => Ok(false),
            }
        };
        let answered = tokio::time::timeout(Duration::from_secs(10), good).await;
        if window.has(start) {
            took.push(start.elapsed());
            failed += u32::from(!matches!(answered, Ok(Ok(true))));
        }
        most = most.max(process::anonymous_bytes(bursar.pid())?);
    }
    drop(attackers);
    // Every idle client is still there.
    let mut lost = 0;
    for stream in &mut idle {
        let asked = async {
            stream.write_all(&simple("select 1")).await?;
            until_ready(stream).await
        };
        lost += u32::from(!matches!(asked.await, Ok(true)));
    }

    let mut table = Table::default();
    let took = Samples::new(took);
    let megabytes = |bytes: u64| Measured::Is(bytes as f64 / 1e6);
    let mut line = |metric: &str, unit, value, target| table.line(metric, unit, value, Measured::No, target);
    line("good logins", "", Measured::Is(took.count() as f64), Target::None);
    line("good logins that failed", "", Measured::Is(failed.into()), Target::Exactly(0.0));
    line("good login and query, p50", "ms", Measured::Is(took.per_mille(500)), Target::None);
    line("good login and query, p99", "ms", Measured::Is(took.per_mille(990)), Target::None);
    line("good login and query, the longest", "ms", Measured::Is(took.max()), Target::AtMost(1000.0));
    line("idle clients lost", "", Measured::Is(lost.into()), Target::Exactly(0.0));
    let refused = seen.refused.load(Ordering::Relaxed) as f64;
    line("wrong passwords refused", "", Measured::Is(refused), Target::None);
    let other = seen.other.load(Ordering::Relaxed) as f64;
    line("wrong passwords cut off", "", Measured::Is(other), Target::None);
    let cut_off = seen.cut_off.load(Ordering::Relaxed) as f64;
    line("slow clients cut off", "", Measured::Is(cut_off), Target::None);
    line("memory without clients", "MB", megabytes(empty), Target::None);
    line("memory with the idle clients", "MB", megabytes(crowded), Target::None);
    line("memory under siege, the most", "MB", megabytes(most), Target::AtMost(BOUND));
    Ok(table)
}
