//! A replication connection: authenticated like any other, then given a server connection of its own,
//! outside the pools, that is opened with what its client asked for.
//!
//! It cannot be shared or lent: the server takes `replication` at start-up only, and what follows
//! ("Streaming Replication Protocol") knows no end of a transaction.

use super::greeting::statuses;
use super::{Refused, Seat, Visitor, admit, new_cell, welcome};
use crate::auth::Passport;
use crate::backend::{Backend, DialError, Target, dial};
use crate::book::LeaseId;
use crate::clock;
use crate::config::{CONSOLE, ReplicationRule};
use crate::pool::cell::Cell;
use crate::session::registry::Registered;
use crate::session::reply::{self, Fault};
use crate::wire::startup::{Startup, StartupError};
use bytes::BytesMut;
use std::sync::Arc;

/// No lease of the book, whose numbers begin at 1.
const NO_LEASE: LeaseId = LeaseId(0);

/// A replication connection as far as it exists without its client's socket.
pub(super) struct Opened {
    pub(super) backend: Backend,
    pub(super) cell: Arc<Cell>,
    pub(super) registered: Registered,
    pub(super) seat: Seat,
    pub(super) leftover: BytesMut,
    pub(super) greeting: BytesMut,
}

/// Opens the server connection of a client that has proved who it is.
pub(super) async fn open(
    visitor: &Visitor<'_>,
    startup: Startup,
    (user, passport): (String, Option<Passport>),
    suffix: Option<Arc<str>>,
    leftover: BytesMut,
    mut out: BytesMut,
) -> Result<Opened, Refused> {
    let config = visitor.pools.config();
    let no_database = || Fault::NoSuchDatabase { database: startup.database.as_str().into() };
    let table = config.database(&startup.database).ok_or_else(no_database)?;
    if startup.database == CONSOLE || table.pool.replication == ReplicationRule::Refuse {
        return Err(Fault::Replication.into());
    }
    let password = config.users.get(&user).and_then(|user| user.password.as_ref());
    let mut target = Target::new(&table, &startup.database, &user, password)
        .over(visitor.pools.tls().clone(), &startup.database);
    target.parameters = parameters(&startup)?;
    if let Some(passport) = passport {
        target.admit(&user, passport);
    }

    let mut cell = new_cell(visitor, &startup, startup.database.as_str().into(), user.as_str().into());
    cell.replication = startup.replication;
    let cell = Arc::new(cell);
    let (_, tag, warning, seat) = admit(visitor, &cell, None, &startup, suffix.as_deref())?;

    let mut backend = dial(&target, table.pool.connect_timeout).await.map_err(|error| {
        tracing::warn!(
            database = startup.database, user, server = %target.address, %error,
            "cannot open a replication connection"
        );
        match error {
            DialError::Server { body, .. } => Refused::Server(body),
            error => Fault::ServerUnreachable { error: error.to_string().into() }.into(),
        }
    })?;
    let told = statuses(&std::mem::take(&mut backend.parameters));
    let registered = welcome(visitor, &startup, &cell, backend.pid as u32, &told, warning, &mut out);
    cell.link(NO_LEASE, &mut backend, &tag, false, clock::now());
    Ok(Opened { backend, cell, registered, seat, leftover, greeting: out })
}

/// What the server is told at start-up besides user and database: all that the client said.
fn parameters(startup: &Startup) -> Result<Vec<(String, String)>, Refused> {
    let mut all = vec![("replication".to_owned(), startup.replication.value().to_owned())];
    for parameter in &startup.parameters {
        let value = String::from_utf8(parameter.value.clone())
            .map_err(|_| Refused::Told(reply::startup(&StartupError::Encoding(parameter.name.clone()))))?;
        all.push((parameter.name.clone(), value));
    }
    Ok(all)
}
