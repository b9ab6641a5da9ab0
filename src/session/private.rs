//! Bursar's own words with a backend, while no client's are outstanding: learn its parameters,
//! roll back, scrub.

use crate::backend::Backend;
use crate::net::buffers::Buffers;
use crate::net::lane::Lane;
use crate::state::SetId;
use crate::wire::backend::{TxStatus, message, parameter};
use crate::wire::sql::scan::Traces;
use crate::wire::walk::{HEADER, Header};
use bytes::{BufMut, Bytes, BytesMut};
use std::future::poll_fn;
use std::time::Duration;

/// How long a backend may take for a statement of Bursar's own before it is closed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a backend did not do what Bursar asked; it must be closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Its socket broke, or it closed.
    #[error("the connection broke")]
    Gone,
    /// It took too long.
    #[error("no answer in time")]
    Slow,
    /// It does not keep to the protocol, or is not idle afterwards.
    #[error("an answer that makes no sense")]
    Senseless,
    /// It raised an error: the body of its ErrorResponse.
    #[error("the server refused")]
    Refused(Bytes),
}

/// Runs one simple query and waits for its end. Parameters that change are noted in the backend.
/// Not cancel safe: dropped half way, the backend is of no use to anybody.
///
/// # Errors
/// See [`Trouble`]; also if the backend is in a transaction afterwards.
pub(super) async fn run(backend: &mut Backend, buffers: &Buffers, text: &[u8]) -> Result<(), Trouble> {
    let mut lane = Lane::new(buffers.clone());
    lane.make(|out| query(out, text));
    let talk = async {
        poll_fn(|cx| lane.poll_flush(cx, &mut backend.stream)).await.map_err(|_| Trouble::Gone)?;
        let mut refused = None;
        let mut rest = 0;
        loop {
            let n = poll_fn(|cx| lane.poll_fill(cx, &mut backend.stream)).await.map_err(|_| Trouble::Gone)?;
            if n == 0 {
                return Err(Trouble::Gone);
            }
            if let Some(status) = read(&mut lane, &mut rest, backend, &mut refused)? {
                return match (status, refused) {
                    (_, Some(body)) => Err(Trouble::Refused(body)),
                    (TxStatus::Idle, None) => Ok(()),
                    _ => Err(Trouble::Senseless),
                };
            }
        }
    };
    tokio::time::timeout(PATIENCE, talk).await.unwrap_or(Err(Trouble::Slow))
}

/// Appends a Query.
pub(super) fn query(out: &mut BytesMut, text: &[u8]) {
    message(out, b'Q', |out| {
        out.extend_from_slice(text);
        out.put_u8(0);
    });
}

fn read(
    lane: &mut Lane,
    rest: &mut usize,
    backend: &mut Backend,
    refused: &mut Option<Bytes>,
) -> Result<Option<TxStatus>, Trouble> {
    loop {
        let skip = (*rest).min(lane.unwalked().len());
        lane.skip(skip);
        *rest -= skip;
        let bytes = lane.unwalked();
        let Some(head) = Header::read(bytes) else { return Ok(None) };
        let total = head.total().ok_or(Trouble::Senseless)?;
        let held = matches!(head.kind, b'E' | b'S' | b'Z');
        if held && total > Lane::HELD {
            return Err(Trouble::Senseless);
        }
        if held && bytes.len() < total {
            return Ok(None);
        }
        let status = match head.kind {
            b'Z' => Some(bytes.get(HEADER).copied().and_then(TxStatus::of).ok_or(Trouble::Senseless)?),
            b'E' => {
                refused.get_or_insert_with(|| Bytes::copy_from_slice(&bytes[HEADER..total]));
                None
            }
            b'S' => {
                if let Some((name, value)) = parameter(&bytes[HEADER..total]) {
                    backend.learn_parameter(name, value);
                }
                None
            }
            _ => None,
        };
        *rest = total;
        if status.is_some() {
            lane.skip(total);
            return if lane.unwalked().is_empty() { Ok(status) } else { Err(Trouble::Senseless) };
        }
    }
}

/// Makes a used backend fit for the next session: no transaction, none of the traces.
///
/// # Errors
/// It could not be done, and the backend must be closed. So must one with a library loaded, which
/// nothing unloads.
pub(super) async fn scrub(
    backend: &mut Backend,
    buffers: &Buffers,
    in_transaction: bool,
    traces: Traces,
) -> Result<(), Trouble> {
    if traces.any(Traces::LOAD) {
        return Err(Trouble::Senseless);
    }
    if in_transaction {
        run(backend, buffers, b"ROLLBACK").await?;
    }
    if !traces.is_none() {
        // Also ends SET ROLE: DISCARD ALL includes SET SESSION AUTHORIZATION DEFAULT, which resets
        // the role (src/backend/commands/discard.c, miscinit.c).
        run(backend, buffers, b"DISCARD ALL").await?;
        backend.settings = SetId::BASE;
        backend.prepared.clear();
    }
    Ok(())
}
