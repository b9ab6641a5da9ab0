//! The admin console: the database `bursar`, spoken to in PostgreSQL's protocol, simple and extended,
//! so that psql, any driver and PgBouncer's exporter can ask.
//!
//! It shows what the [`Source`] reads and passes commands to it; it decides nothing about pools, and
//! logs nobody in: [`serve`] starts after ReadyForQuery. `docs/console.md` is its page for users.

mod extended;
mod fault;
mod frame;
mod plan;
mod session;
mod source;
mod sql;
mod table;
pub mod views;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod rights_tests;
#[cfg(test)]
mod tests;

pub use source::{Command, Done, Running, ShutdownMode, Source};
pub use table::{Column, Row, Table, Type, Value};

use crate::config::Keeper;
use crate::wire::error::{Report, Severity};
use bytes::BytesMut;
use frame::{Broken, Frames};
use session::{ENOUGH, Session, Step};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// What the console answers to `version()`; drivers look for the number after "PostgreSQL".
const VERSION_TEXT: &str = concat!("PostgreSQL 16.0 (Bursar ", env!("CARGO_PKG_VERSION"), " console)");

/// The parameters of a console session, for ParameterStatus at login and for SHOW.
pub const PARAMETERS: [(&str, &str); 8] = [
    ("server_version", concat!("16.0 (Bursar ", env!("CARGO_PKG_VERSION"), ")")),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("transaction_isolation", "read committed"),
];

/// How many statements a text has; `None` if it cannot be read. For the fuzz target.
#[doc(hidden)]
#[must_use]
pub fn statements(text: &str) -> Option<usize> {
    sql::parse(text).ok().map(|statements| statements.len())
}

/// Serves one keeper, whose rights are asked for each statement anew, from the first ReadyForQuery (already sent) to the end. Ends by itself
/// when the client leaves, breaks the protocol, or `shutdown` says so (FATAL 57P01). Not cancel safe:
/// dropping it may cut a reply.
///
/// # Errors
/// The connection failed.
pub async fn serve<S>(
    mut stream: S,
    keeper: Keeper,
    source: Arc<dyn Source>,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut frames, mut session, mut out) = (Frames::default(), Session::new(keeper), BytesMut::new());
    loop {
        if !frames.is_ready() || out.len() >= ENOUGH {
            send(&mut stream, &mut out, &shutdown).await?;
        }
        let frame = tokio::select! {
            // First, so that a client that never pauses cannot outlast the process.
            biased;
            () = shutdown.cancelled() => return farewell(&mut stream, out).await,
            frame = frames.next(&mut stream) => frame,
        };
        let mut step = match frame {
            Ok(Some((kind, body))) => session.frame(&*source, kind, &body, &mut out),
            Ok(None) => return Ok(()),
            Err(Broken::Io(error)) => return Err(error),
            Err(broken) => {
                broken.report().encode(&mut out);
                Step::Close
            }
        };
        while step != Step::Next {
            send(&mut stream, &mut out, &shutdown).await?;
            step = match step {
                Step::Close => return stream.shutdown().await,
                Step::Run(command) => tokio::select! {
                    // Its result first: the command may be the very one that cancels `shutdown`.
                    biased;
                    result = source.command(command) => session.done(&*source, result, &mut out),
                    () = shutdown.cancelled() => return farewell(&mut stream, out).await,
                    // Nobody waits for the result any more.
                    gone = frames.hangup(&mut stream) => return gone,
                },
                Step::More | Step::Next => session.resume(&*source, &mut out),
            };
        }
    }
}

/// Writes all there is, unless the client does not take it and the process is leaving.
async fn send<S>(stream: &mut S, out: &mut BytesMut, shutdown: &CancellationToken) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    if out.is_empty() {
        return Ok(());
    }
    tokio::select! {
        // A client that reads gets its reply even now.
        biased;
        written = async { stream.write_all(out).await?; stream.flush().await } => written?,
        () = shutdown.cancelled() => return Err(io::ErrorKind::TimedOut.into()),
    }
    out.clear();
    Ok(())
}

/// The last words, to a client that may not be reading: one attempt without waiting.
async fn farewell<S: AsyncWrite + Unpin>(stream: &mut S, mut out: BytesMut) -> io::Result<()> {
    const MESSAGE: &str = "terminating connection due to administrator command";
    Report::new(Severity::Fatal, "57P01", MESSAGE).encode(&mut out);
    let words = async {
        stream.write_all(&out).await?;
        stream.shutdown().await
    };
    tokio::select! {
        biased;
        written = words => written,
        () = tokio::task::yield_now() => Ok(()),
    }
}
