//! What a client is told once it is in: parameters as a backend reports them with its settings, the
//! cancel key, ReadyForQuery.
//!
//! The first login with a set of settings asks a backend, which also validates them; the answer is
//! remembered in the pool, and later logins need no backend.

use super::Refused;
use crate::backend::DialError;
use crate::book::{Claim, Refusal};
use crate::metrics::Isolation;
use crate::pool::lease::Lease;
use crate::pool::wait::Granted;
use crate::pool::{Greeting, NotLetIn, Pool, Pools, Start};
use crate::session::private::{self, Trouble};
use crate::session::reply::{self, Fault};
use crate::state::Set;
use crate::wire::backend::{TxStatus, message, parameter_status, ready_for_query};
use crate::wire::sql::scan::Traces;
use crate::wire::walk::cstr;
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;

/// Parameters to report, and in session mode the lease that lasts as long as the session, with its
/// backend's process id.
pub(super) async fn greet(
    pools: &Arc<Pools>,
    pool: &Arc<Pool>,
    claim: &Claim,
    settings: &Set,
) -> Result<(Greeting, Option<(Lease, i32)>), Refused> {
    // Otherwise the lease is the session's.
    let session_mode = !claim.login;
    if !session_mode && let Some(greeting) = pool.greeting(settings) {
        return Ok((greeting, None));
    }
    let mut lease = checkout(pools, pool, claim).await?;
    let backend = lease.backend();
    match private::fit(backend, &pools.buffers, settings).await {
        Ok(()) => {}
        Err(Trouble::Refused(body)) => {
            // Part of it may have been done.
            match private::scrub(backend, &pools.buffers, false, Traces::SETTING, false).await {
                Ok(()) => lease.finish(crate::clock::now()),
                Err(trouble) => tracing::debug!(%trouble, "a backend cannot be scrubbed and is closed"),
            }
            return Err(Refused::Server(body));
        }
        Err(trouble) => {
            tracing::warn!(%trouble, server = %pool.target().address, "a backend failed during a login");
            return Err(Fault::BackendLost.into());
        }
    }
    let greeting = Greeting { statuses: statuses(&backend.parameters), stance: backend.stance };
    pool.learn_greeting(settings, greeting.clone());
    let pid = backend.pid;
    if session_mode {
        return Ok((greeting, Some((lease, pid))));
    }
    lease.finish(crate::clock::now());
    Ok((greeting, None))
}

impl From<NotLetIn> for Refused {
    fn from(why: NotLetIn) -> Refused {
        match why {
            NotLetIn::Said(body) => Refused::Server(body),
            NotLetIn::Unproved(fault) => {
                let error = DialError::from(fault).to_string();
                Fault::ServerUnreachable { error: error.into() }.into()
            }
        }
    }
}

/// A lease for a login. If the server refuses to let Bursar in meanwhile (no such database, no such
/// role), the client is told so at once, in the server's words; so is he if there is nothing to prove his role with.
async fn checkout(pools: &Arc<Pools>, pool: &Arc<Pool>, claim: &Claim) -> Result<Lease, Refused> {
    let mut refusals = pool.refusals();
    let waiting = match pools.checkout(pool, claim, crate::clock::now(), &mut false) {
        Start::Ready(lease, _) => return Ok(lease),
        // In the server's own words, where it has some for this role and database.
        Start::Refused(Refusal::Unavailable { own: true, .. }) if refusals.borrow().is_some() => {
            let why = refusals.borrow().clone();
            return Err(why.map_or(Refused::Silent, Refused::from));
        }
        Start::Refused(refusal) => return Err(Refused::Told(reply::refusal_at_login(&refusal))),
        Start::Mixed => {
            let (kind, tag) = (Isolation::V3, &claim.tag);
            pools.metrics.isolation.inc(kind);
            return Err(Refused::Told(reply::isolation::violation(kind, tag, &pool.user).fatal()));
        }
        Start::Quarantined(left) => {
            return Err(Refused::Told(reply::isolation::quarantined(&claim.tag, left).fatal()));
        }
        // Only a SET is ever stale.
        Start::Stale => return Err(Refused::Silent),
        Start::Wait(waiting) => waiting,
    };
    tokio::select! {
        biased;
        granted = waiting => match granted {
            Granted::Lease(lease, _) => Ok(*lease),
            Granted::Refused(refusal) => Err(Refused::Told(reply::refusal_at_login(&refusal))),
        },
        Ok(()) = refusals.changed() => {
            let why = refusals.borrow().clone();
            Err(why.map_or(Refused::Silent, Refused::from))
        }
    }
}

/// ParameterStatus messages.
pub(super) fn statuses(parameters: &[(Bytes, Bytes)]) -> Bytes {
    let mut out = BytesMut::new();
    for (name, value) in parameters {
        parameter_status(&mut out, name, value);
    }
    out.freeze()
}

/// Appends ParameterStatus, BackendKeyData and ReadyForQuery.
pub(super) fn encode(parameters: &Bytes, pid: u32, key: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(parameters);
    message(out, b'K', |out| {
        out.put_u32(pid);
        out.extend_from_slice(key);
    });
    ready_for_query(out, TxStatus::Idle);
}

/// Passes the server's ErrorResponse on with severity FATAL, since the connection closes after it.
pub(super) fn forward_fatal(body: &Bytes, out: &mut BytesMut) {
    message(out, b'E', |out| {
        let mut rest = &body[..];
        while let Some((&field, tail)) = rest.split_first() {
            let Some((value, next)) = cstr(tail).filter(|_| field != 0) else { break };
            out.put_u8(field);
            out.extend_from_slice(if matches!(field, b'S' | b'V') { b"FATAL" } else { value });
            out.put_u8(0);
            rest = next;
        }
        out.put_u8(0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_at_login_becomes_fatal() {
        let mut out = BytesMut::new();
        forward_fatal(&Bytes::from_static(b"SERROR\0VERROR\0C22023\0Mbad\0\0"), &mut out);
        assert_eq!(&out[5..], b"SFATAL\0VFATAL\0C22023\0Mbad\0\0");
    }
}
