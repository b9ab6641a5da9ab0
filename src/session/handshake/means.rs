//! What is known of a client before it is asked anything, and whether that settles who it is: the method that
//! the rules have for it, its certificate, its user of the system.

use super::{Refused, Visitor};
use crate::auth::hba::{self, Attempt};
use crate::config::AuthMethod;
use crate::net::stream::Origin;
use crate::session::reply::{self, Denied};
use crate::wire::startup::{Replication, Startup};
use nix::unistd::{Uid, User};

/// How the client still has to prove itself: trust, if the connection already says who it is.
pub(super) async fn method(
    visitor: &Visitor<'_>,
    startup: &Startup,
    user: &str,
) -> Result<AuthMethod, Refused> {
    let config = visitor.pools.config();
    let attempt = Attempt {
        address: visitor.origin.address(),
        tls: visitor.protection.is_some(),
        database: &startup.database,
        user,
        replication: startup.replication == Replication::Physical,
    };
    match hba::method(&config.auth, &attempt) {
        None => Err(deny(visitor, user, &Denied::NoRule(&attempt))),
        Some(AuthMethod::Reject | AuthMethod::Hba) => Err(deny(visitor, user, &Denied::Rejected(&attempt))),
        Some(AuthMethod::Cert) => match &visitor.certified {
            Some(name) if name == user => Ok(AuthMethod::Trust),
            Some(_) => Err(deny(visitor, user, &Denied::Certificate { user })),
            None => Err(deny(visitor, user, &Denied::NoCertificate)),
        },
        Some(AuthMethod::Peer) => match visitor.origin {
            Origin::Tcp(_) => Err(deny(visitor, user, &Denied::NoPeer)),
            Origin::Unix(Some(uid))
                if hba::may_be(&config.auth.peer_map, uid, name_of(uid).await.as_deref(), user) =>
            {
                Ok(AuthMethod::Trust)
            }
            Origin::Unix(_) => Err(deny(visitor, user, &Denied::Peer { user })),
        },
        Some(method) => Ok(method),
    }
}

/// The client is not told whom its certificate or its user would be good for; the log is.
fn deny(visitor: &Visitor<'_>, user: &str, why: &Denied<'_>) -> Refused {
    let (client, certified) = (visitor.peer, visitor.certified.as_deref());
    tracing::info!(client, user, certified, origin = ?visitor.origin, "not let in");
    let report = reply::denied(why);
    match why {
        Denied::NoCertificate | Denied::Certificate { .. } | Denied::Peer { .. } => Refused::Unproved(report),
        // Whoever it is: nobody has tried to prove anything.
        Denied::NoRule(_) | Denied::Rejected(_) | Denied::NoPeer => Refused::Told(report),
    }
}

/// The system may ask others for it, so not on a thread that serves sessions.
async fn name_of(uid: u32) -> Option<String> {
    let found = tokio::task::spawn_blocking(move || User::from_uid(Uid::from_raw(uid))).await;
    found.ok()?.ok()?.map(|user| user.name)
}
