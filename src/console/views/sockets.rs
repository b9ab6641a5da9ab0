//! SHOW CLIENTS and SHOW SERVERS: connections, in PgBouncer's columns.

use super::{View, row, stamp};
use crate::book::{Doing, SessionId};
use crate::console::source::Source;
use crate::console::table::{Column, Row, Value, int, text};
use crate::pool::view::{BackendRow, LeaseDetail};
use crate::session::registry::ClientRow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

/// PgBouncer's columns of SHOW CLIENTS and SHOW SERVERS, then the given ones.
macro_rules! socket_columns {
    ($($extra:expr),* $(,)?) => {
        &[
            text("type"),
            text("user"),
            text("database"),
            text("replication"),
            text("state"),
            text("addr"),
            int("port"),
            text("local_addr"),
            int("local_port"),
            text("connect_time"),
            text("request_time"),
            int("wait"),
            int("wait_us"),
            int("close_needed"),
            text("ptr"),
            text("link"),
            int("remote_pid"),
            text("tls"),
            text("application_name"),
            int("prepared_statements"),
            int("id"),
            $($extra),*
        ]
    };
}

const CLIENT_COLUMNS: &[Column] =
    socket_columns![text("doing"), text("tenant"), text("request"), int("backend_pid"), int("age_ms")];
const SERVER_COLUMNS: &[Column] =
    socket_columns![int("lease"), int("client"), text("tenant"), text("request"), int("age_ms")];

pub(super) static CLIENTS: View = View {
    name: "clients",
    what: "one row a client session",
    columns: CLIENT_COLUMNS,
    quotes: &[],
    rows: clients,
};

fn clients(source: &dyn Source) -> Vec<Row> {
    let now = source.now();
    let waiters = source.view().waiters;
    let waits: HashMap<SessionId, Duration> =
        waiters.into_iter().map(|w| (w.session, now.saturating_duration_since(w.since))).collect();
    let row = |client: ClientRow| {
        let (addr, port, pid) = endpoint(&client.client);
        let wait = waits.get(&client.id).copied().unwrap_or_default();
        row![
            "C",
            &client.user,
            &client.database,
            client.replication.name(),
            // PgBouncer knows three states; what the session does exactly is in `doing`.
            match (client.state, client.lease) {
                ("waiting" | "login", _) => client.state,
                (_, Some(_)) => "active",
                (_, None) => "idle",
            },
            addr,
            port,
            "",
            0,
            stamp(source, client.connected),
            client.requested.map_or_else(String::new, |at| stamp(source, at)),
            wait.as_secs(),
            wait.subsec_micros(),
            0,
            client_ptr(client.id),
            if client.backend_pid == 0 { String::new() } else { server_ptr(client.backend_pid) },
            pid,
            client.protection.map_or_else(String::new, |tls| tls.to_string()),
            &client.application,
            client.prepared,
            client.id.0,
            client.state,
            &client.tag.tenant,
            client.tag.request.as_ref(),
            (client.backend_pid != 0).then_some(client.backend_pid),
            Value::millis(now.saturating_duration_since(client.connected)),
        ]
    };
    source.clients().into_iter().map(row).collect()
}

pub(super) static SERVERS: View = View {
    name: "servers",
    what: "one row a backend (server connection)",
    columns: SERVER_COLUMNS,
    quotes: &[],
    rows: servers,
};

/// The state of a leased backend in PgBouncer's words.
pub(super) fn server_state(held: &LeaseDetail) -> &'static str {
    match (held.activity.state, held.cancels) {
        (Doing::Cleaning, 0) => "tested",
        (Doing::Cleaning, _) => "being_canceled",
        _ => "active",
    }
}

fn servers(source: &dyn Source) -> Vec<Row> {
    let now = source.now();
    let leases = source.view().leases;
    let leases: HashMap<_, _> = leases.into_iter().map(|lease| (lease.id, lease)).collect();
    let details: HashMap<_, _> = source.leases().into_iter().map(|detail| (detail.lease, detail)).collect();
    let clients: HashMap<_, _> = source.clients().into_iter().map(|client| (client.id, client)).collect();
    let row = |backend: BackendRow| {
        let (addr, port, _) = endpoint(&backend.address);
        let lease = backend.lease.and_then(|id| leases.get(&id));
        let detail = backend.lease.and_then(|id| details.get(&id));
        let client = lease.and_then(|lease| clients.get(&lease.session));
        row![
            "S",
            &backend.user,
            &backend.database,
            "none",
            if backend.lease.is_some() { detail.map_or("active", server_state) } else { "idle" },
            addr,
            port,
            "",
            0,
            stamp(source, backend.connected),
            client.and_then(|client| client.requested).map_or_else(String::new, |at| stamp(source, at)),
            0,
            0,
            i64::from(backend.outdated),
            server_ptr(backend.pid),
            lease.map_or_else(String::new, |lease| client_ptr(lease.session)),
            backend.pid,
            backend.protection.map_or_else(String::new, |tls| tls.to_string()),
            client.map_or_else(String::new, |client| client.application.to_string()),
            backend.prepared,
            backend.pid,
            backend.lease.map(|lease| lease.0),
            lease.map(|lease| lease.session.0),
            lease.map(|lease| &lease.tag.tenant),
            lease.and_then(|lease| lease.tag.request.as_ref()),
            Value::millis(now.saturating_duration_since(backend.connected)),
        ]
    };
    source.backends().into_iter().map(row).collect()
}

/// `ptr` and `link` only have to match each other, as PgBouncer's pointers do.
fn client_ptr(session: SessionId) -> String {
    format!("c{}", session.0)
}

fn server_ptr(pid: i32) -> String {
    format!("s{pid}")
}

/// Address, port and process id of `host:port`, `unix(PID)` or a socket's path.
fn endpoint(address: &str) -> (String, u16, i32) {
    if let Some(pid) = address.strip_prefix("unix(").and_then(|rest| rest.strip_suffix(')')) {
        return ("unix".to_owned(), 0, pid.parse().unwrap_or(0));
    }
    if let Ok(address) = address.parse::<SocketAddr>() {
        return (address.ip().to_string(), address.port(), 0);
    }
    let on_unix = address.starts_with('/');
    let split = address.rsplit_once(if on_unix { '.' } else { ':' });
    match split.and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some((host, port)) => (if on_unix { "unix" } else { host }.to_owned(), port, 0),
        None => (address.to_owned(), 0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rights;
    use crate::console::fake::Fake;

    fn names(columns: &[Column]) -> Vec<&str> {
        columns.iter().map(|column| &*column.name).collect()
    }

    #[test]
    fn addresses_come_apart() {
        let split = |address| {
            let (host, port, pid) = endpoint(address);
            (host, port, pid)
        };
        assert_eq!(split("10.2.3.4:5432"), ("10.2.3.4".into(), 5432, 0));
        assert_eq!(split("[::1]:5432"), ("::1".into(), 5432, 0));
        assert_eq!(split("db.local:6000"), ("db.local".into(), 6000, 0));
        assert_eq!(split("unix(77)"), ("unix".into(), 0, 77));
        assert_eq!(split("/run/postgresql/.s.PGSQL.5433"), ("unix".into(), 5433, 0));
        assert_eq!(split("odd"), ("odd".into(), 0, 0));
    }

    #[test]
    fn a_server_links_to_the_client_that_holds_it() {
        let fake = Fake::planted();
        let at = |columns, name| names(columns).iter().position(|column| *column == name).unwrap();
        let (clients, servers) =
            (CLIENTS.table(&fake, Rights::ALL).rows, SERVERS.table(&fake, Rights::ALL).rows);
        assert_eq!(servers[0][at(SERVER_COLUMNS, "link")], clients[0][at(CLIENT_COLUMNS, "ptr")]);
        assert_eq!(clients[0][at(CLIENT_COLUMNS, "link")], servers[0][at(SERVER_COLUMNS, "ptr")]);
        assert_eq!(servers[2][at(SERVER_COLUMNS, "state")], "idle".into());
        let server = |row: usize, name| servers[row][at(SERVER_COLUMNS, name)].clone();
        let asked = clients[0][at(CLIENT_COLUMNS, "request_time")].clone();
        assert_eq!((server(0, "request_time"), server(2, "request_time")), (asked, "".into()));
        let names = [server(0, "application_name"), server(2, "application_name")];
        assert_eq!(names, ["sales-web".into(), "".into()]);
        assert_eq!([0, 1, 2].map(|row| server(row, "close_needed")), [0, 1, 0].map(Value::from));
        assert_eq!(server(0, "prepared_statements"), 12.into());
        assert_eq!(clients[0][at(CLIENT_COLUMNS, "prepared_statements")], 5.into());
    }
}
