//! Bursar's own words with a backend, while no client's are outstanding: learn its parameters,
//! roll back, scrub.

use crate::backend::Backend;
use crate::net::buffers::Buffers;
use crate::net::lane::Lane;
use crate::state::fence::{Context, Fence};
use crate::state::{Set, text};
use crate::wire::backend::{TxStatus, error_field, parameter, row_values};
use crate::wire::sql::scan::Traces;
use crate::wire::walk::{HEADER, Header};
use bytes::{Bytes, BytesMut};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

pub(super) use crate::wire::compose::query;

/// How long a backend may take for a statement of Bursar's own before it is closed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a statement is tried that a session's own timeout ends.
const TRIES: u32 = 5;

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

/// The values of a row.
pub(super) type Row = Vec<Option<Bytes>>;

/// Most rows of an answer, as a rule.
const MAX_ROWS: usize = 8;

/// What a statement of Bursar's own came back with.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The values of its rows; `None` for one that is longer than can be held.
    pub(super) rows: Vec<Option<Row>>,
    /// NotificationResponse messages that came meanwhile: the client's, if it listens.
    pub(super) notifications: BytesMut,
}

/// Runs one simple query and waits for its end. Parameters that change are noted in the backend.
/// Not cancel safe: dropped half way, the backend is of no use to anybody.
///
/// # Errors
/// See [`Trouble`]; also if the backend is in a transaction afterwards.
pub(super) async fn run(backend: &mut Backend, buffers: &Buffers, text: &[u8]) -> Result<(), Trouble> {
    ask(backend, buffers, text).await.map(drop)
}

/// As [`run`], for a text that does no harm twice: tries again if a timeout that the session has set
/// for its own statements ended it.
///
/// # Errors
/// As [`run`].
pub(super) async fn insist(backend: &mut Backend, buffers: &Buffers, text: &[u8]) -> Result<Answer, Trouble> {
    for _ in 1..TRIES {
        match ask(backend, buffers, text).await {
            Err(Trouble::Refused(body)) if error_field(&body, b'C') == Some(b"57014") => {}
            other => return other,
        }
    }
    ask(backend, buffers, text).await
}

/// Runs a simple query that leaves the backend in a transaction that has failed, as PostgreSQL must say.
///
/// # Errors
/// See [`Trouble`].
pub(super) async fn fail_block(backend: &mut Backend, buffers: &Buffers, text: &[u8]) -> Result<(), Trouble> {
    match converse(backend, buffers, text).await?.status {
        Some(TxStatus::Failed) => Ok(()),
        _ => Err(Trouble::Senseless),
    }
}

/// Runs a simple query in the transaction that is open, and leaves it open.
///
/// # Errors
/// See [`Trouble`]; if it was refused, the transaction has failed.
pub(super) async fn look(backend: &mut Backend, buffers: &Buffers, text: &[u8]) -> Result<Answer, Trouble> {
    match converse(backend, buffers, text).await? {
        Said { refused: Some(body), .. } => Err(Trouble::Refused(body)),
        Said { status: Some(TxStatus::InTransaction), answer, .. } => Ok(answer),
        _ => Err(Trouble::Senseless),
    }
}

/// As [`run`], for at most so many rows.
///
/// # Errors
/// See [`Trouble`].
pub(super) async fn list(
    backend: &mut Backend,
    buffers: &Buffers,
    text: &[u8],
    most: usize,
) -> Result<Vec<Option<Row>>, Trouble> {
    let mut lane = Lane::new(buffers.clone());
    lane.make(|out| query(out, text));
    match exchange(backend, lane, most).await? {
        Said { refused: Some(body), .. } => Err(Trouble::Refused(body)),
        Said { status: Some(TxStatus::Idle), answer, .. } => Ok(answer.rows),
        _ => Err(Trouble::Senseless),
    }
}

async fn ask(backend: &mut Backend, buffers: &Buffers, text: &[u8]) -> Result<Answer, Trouble> {
    match converse(backend, buffers, text).await? {
        Said { refused: Some(body), .. } => Err(Trouble::Refused(body)),
        Said { status: Some(TxStatus::Idle), answer, .. } => Ok(answer),
        _ => Err(Trouble::Senseless),
    }
}

/// One simple query, up to its ReadyForQuery.
async fn converse(backend: &mut Backend, buffers: &Buffers, text: &[u8]) -> Result<Said, Trouble> {
    let mut lane = Lane::new(buffers.clone());
    lane.make(|out| query(out, text));
    exchange(backend, lane, MAX_ROWS).await
}

/// Sends what is staged, which ends with a Query or a Sync, and reads up to its ReadyForQuery.
async fn exchange(backend: &mut Backend, mut lane: Lane, most: usize) -> Result<Said, Trouble> {
    let talk = async {
        poll_fn(|cx| lane.poll_flush(cx, &mut backend.stream)).await.map_err(|_| Trouble::Gone)?;
        let mut said = Said { most, ..Said::default() };
        loop {
            let n = poll_fn(|cx| lane.poll_fill(cx, &mut backend.stream)).await.map_err(|_| Trouble::Gone)?;
            if n == 0 {
                return Err(Trouble::Gone);
            }
            read(&mut lane, backend, &mut said)?;
            // Notifications come whenever they like, and a piece of one must not be lost.
            if said.status.is_some() && lane.unwalked().is_empty() {
                return Ok(said);
            }
        }
    };
    tokio::time::timeout(PATIENCE, talk).await.unwrap_or(Err(Trouble::Slow))
}

/// What has been read of a reply.
#[derive(Default)]
struct Said {
    /// Bytes still to come of a message that is left out.
    rest: usize,
    /// Rows that are kept.
    most: usize,
    /// Of its ReadyForQuery.
    status: Option<TxStatus>,
    refused: Option<Bytes>,
    answer: Answer,
}

fn read(lane: &mut Lane, backend: &mut Backend, said: &mut Said) -> Result<(), Trouble> {
    loop {
        let skip = said.rest.min(lane.unwalked().len());
        lane.skip(skip);
        said.rest -= skip;
        let bytes = lane.unwalked();
        let Some(head) = Header::read(bytes) else { return Ok(()) };
        let total = head.total().ok_or(Trouble::Senseless)?;
        let held = matches!(head.kind, b'E' | b'S' | b'Z' | b'A' | b'D');
        if held && total > Lane::HELD && head.kind != b'D' {
            return Err(Trouble::Senseless);
        }
        if held && bytes.len() < total.min(Lane::HELD) {
            return Ok(());
        }
        if said.status.is_some() && !matches!(head.kind, b'A' | b'N' | b'S') {
            return Err(Trouble::Senseless);
        }
        said.rest = total;
        // A row longer than can be held is no answer, however much of it happens to be there.
        let body = if total <= Lane::HELD { bytes.get(HEADER..total) } else { None }.unwrap_or_default();
        match head.kind {
            b'Z' => {
                said.status = Some(body.first().copied().and_then(TxStatus::of).ok_or(Trouble::Senseless)?);
            }
            b'E' => {
                said.refused.get_or_insert_with(|| Bytes::copy_from_slice(body));
            }
            b'S' => {
                if let Some((name, value)) = parameter(body) {
                    backend.learn_parameter(name, value);
                }
            }
            b'A' => said.answer.notifications.extend_from_slice(&bytes[..total]),
            b'D' if said.answer.rows.len() < said.most => said.answer.rows.push(row_values(body)),
            _ => {}
        }
    }
}

/// Makes a backend carry a set of settings.
///
/// # Errors
/// See [`Trouble`]; the backend may then carry part of it.
pub(super) async fn fit(backend: &mut Backend, buffers: &Buffers, settings: &Set) -> Result<(), Trouble> {
    let difference = text::difference(&backend.settings, settings);
    for text in [difference.undo, difference.apply].iter().filter(|text| !text.is_empty()) {
        run(backend, buffers, text).await?;
    }
    backend.settings = settings.clone();
    Ok(())
}

/// Makes a used backend fit for the next session: no transaction, none of the traces; with `all`, as
/// good as new.
///
/// # Errors
/// It could not be done, and the backend must be closed. So must one with a library loaded, which
/// nothing unloads.
pub(super) async fn scrub(
    backend: &mut Backend,
    buffers: &Buffers,
    in_transaction: bool,
    traces: Traces,
    all: bool,
) -> Result<(), Trouble> {
    if traces.any(Traces::LOAD) {
        return Err(Trouble::Senseless);
    }
    if in_transaction {
        insist(backend, buffers, b"ROLLBACK").await?;
    }
    // Also ends SET ROLE: DISCARD ALL includes SET SESSION AUTHORIZATION DEFAULT, which resets the
    // role (src/backend/commands/discard.c, miscinit.c).
    let text = if all { b"DISCARD ALL".to_vec() } else { text::scrub(traces) };
    if !text.is_empty() {
        insist(backend, buffers, &text).await?;
    }
    if all || text::clears_statements(traces) {
        backend.lose_statements();
    }
    if all || text::clears_settings(traces) {
        backend.settings = Set::BASE;
        backend.context.doubt();
    }
    Ok(())
}

/// Whether a backend that is believed to be fit for anybody is: no tenant's context but the one it is
/// known for, no role, nothing that pins.
///
/// # Errors
/// See [`Trouble`].
pub(super) async fn is_clean(backend: &mut Backend, buffers: &Buffers) -> Result<bool, Trouble> {
    let mut text = text::LEFT.as_bytes().to_vec();
    text.extend_from_slice(b",pg_catalog.current_setting('role')");
    let context = backend.context.known();
    for (key, _) in &context {
        text.extend_from_slice(format!(",pg_catalog.current_setting('{key}',true)").as_bytes());
    }
    let role = backend.settings.value("role").unwrap_or(b"none").to_vec();
    let answer = insist(backend, buffers, &text).await?;
    let row = answer.rows.into_iter().next().flatten().unwrap_or_default();
    let expected = text::LOOKED_FOR.iter().map(|_| &b"f"[..]).chain([&role[..]]);
    let mut expected = expected.chain(context.iter().map(|(_, value)| value.as_bytes()));
    Ok(row.iter().all(|value| value.as_deref() == expected.next()) && expected.next().is_none())
}

/// Gives a backend a tenant context ([`Held::bring`](crate::state::fence::Held::bring)), or takes away whatever
/// it has, and waits until it has taken it.
///
/// # Errors
/// It is not known to have it, and must be closed.
pub(super) async fn bring(
    backend: &mut Backend,
    buffers: &Buffers,
    want: Option<(&Arc<Fence>, &Context)>,
) -> Result<(), Trouble> {
    let mut segments = BytesMut::new();
    backend.context.bring(want, true, &mut segments);
    let mut end = 0;
    while let Some(head) = Header::read(&segments[end..]) {
        end += head.total().ok_or(Trouble::Senseless)?;
        if head.kind != b'S' {
            continue;
        }
        let segment = segments.split_to(std::mem::take(&mut end));
        let mut lane = Lane::new(buffers.clone());
        lane.put(&segment);
        match exchange(backend, lane, 0).await? {
            Said { refused: Some(body), .. } => return Err(Trouble::Refused(body)),
            Said { status: Some(TxStatus::Idle), .. } => {}
            _ => return Err(Trouble::Senseless),
        }
    }
    Ok(())
}

/// Takes the tenant context back, and looks whether it is gone.
///
/// # Errors
/// It is not known to be, and the backend must be closed.
pub(super) async fn deny(backend: &mut Backend, buffers: &Buffers) -> Result<(), Trouble> {
    for _ in 0..TRIES {
        let mut lane = Lane::new(buffers.clone());
        let Some(columns) = lane.make(|out| backend.context.write_deny(out)) else { return Ok(()) };
        let said = exchange(backend, lane, MAX_ROWS).await?;
        match said {
            // A cancel that was meant for a statement before, or a timeout of the session's.
            Said { refused: Some(body), .. } if error_field(&body, b'C') == Some(b"57014") => {}
            Said { refused: Some(body), .. } => return Err(Trouble::Refused(body)),
            Said { status: Some(TxStatus::Idle), answer, .. } => {
                let empty = |value: &Option<Bytes>| value.as_deref() == Some(b"");
                let all = |row: &Row| row.len() == columns && row.iter().all(empty);
                if !matches!(&answer.rows[..], [Some(row)] if all(row)) {
                    return Err(Trouble::Senseless);
                }
                backend.context.denied();
                return Ok(());
            }
            _ => return Err(Trouble::Senseless),
        }
    }
    Err(Trouble::Slow)
}
