//! What a client costs while it does nothing, and how often the proxy calls the kernel for one query.

use crate::common::Failure;
use crate::common::lab::Proxy;
use crate::common::process;
use crate::common::wire::Client;

/// Idle clients whose memory is measured.
const IDLE_CLIENTS: u32 = 1000;
/// Queries before anything is counted: the backend is open, buffers have their size.
const WARM_UP: u32 = 20;

/// User memory in bytes that one idle client adds to a fresh proxy.
///
/// Each client has logged in and run one query, so that what a proxy keeps for a client that was
/// once active is counted too.
pub(crate) fn bytes_per_client(proxy: &Proxy) -> Result<f64, Failure> {
    let mut first = Client::connect(proxy.port())?;
    for _ in 0..WARM_UP {
        first.query("select 1")?;
    }
    let before = process::anonymous_bytes(proxy.pid())?;
    let mut clients = Vec::new();
    for _ in 0..IDLE_CLIENTS {
        let mut client = Client::connect(proxy.port())?;
        client.query("select 1")?;
        clients.push(client);
    }
    let after = process::anonymous_bytes(proxy.pid())?;
    #[allow(clippy::cast_precision_loss, reason = "bytes of one process fit an f64")]
    let grown = after.saturating_sub(before) as f64;
    Ok(grown / f64::from(IDLE_CLIENTS))
}

/// System calls of the proxy per query of one client that is already logged in.
pub(crate) fn syscalls_per_query(proxy: &Proxy, query: &[u8], count: u32) -> Result<f64, Failure> {
    let mut client = Client::connect(proxy.port())?;
    for _ in 0..WARM_UP {
        client.round_trip(query)?;
    }
    let calls = process::count_syscalls(proxy.pid(), || {
        for _ in 0..count {
            client.round_trip(query)?;
        }
        Ok(())
    })?;
    #[allow(clippy::cast_precision_loss, reason = "a count of a few hundred thousand")]
    let calls = calls as f64;
    Ok(calls / f64::from(count))
}
