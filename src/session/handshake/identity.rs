//! Who a client is: the name it gives, what is known of that name, and the proof.

use super::intake::Intake;
use super::{Refused, Visitor, means};
use crate::auth::exchange::{Exchange, Step};
use crate::auth::{Passport, Users};
use crate::clock;
use crate::config::AuthMethod;
use crate::pool::accounts::{Directory, Found, Unavailable};
use crate::session::Socket;
use crate::session::reply::{self, Fault};
use crate::tag;
use crate::wire::startup::Startup;
use bytes::BytesMut;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// Who has proved to be who he says.
pub(super) struct Identity {
    /// The role.
    pub(super) user: String,
    /// The end of the name that was given, where it names a tenant.
    pub(super) suffix: Option<Arc<str>>,
    /// What he has shown.
    pub(super) passport: Option<Passport>,
}

/// A name that somebody gives.
struct Claimed {
    user: String,
    suffix: Option<Arc<str>>,
    /// What the server says of him; `None` = nobody asks the server.
    found: Option<Found>,
}

impl From<Unavailable> for Refused {
    fn from(_: Unavailable) -> Refused {
        Fault::UsersUnavailable.into()
    }
}

/// Leads a client through its login.
pub(super) async fn prove<S: Socket>(
    stream: &mut S,
    intake: &mut Intake,
    visitor: &Visitor<'_>,
    startup: &Startup,
    out: &mut BytesMut,
) -> Result<Identity, Refused> {
    let mut claimed = look_up(visitor, None, &startup.user).await?;
    let mut method = means::method(visitor, startup, &claimed.user).await?;
    // Whoever is not asked for a password need not be known to the server.
    let directory = visitor.pools.directory().filter(|_| method.asks_passwords());
    if directory.is_some() {
        let cut = std::mem::replace(
            &mut claimed,
            visitor.guest.waits_for(look_up(visitor, directory.as_deref(), &startup.user)).await?,
        );
        if claimed.user != cut.user {
            method = means::method(visitor, startup, &claimed.user).await?;
        }
    }
    let Claimed { user, suffix, found } = claimed;
    let users = visitor.pools.users();
    let end_point = visitor.tls.as_ref().filter(|_| visitor.protection.is_some());
    let end_point = end_point.and_then(|acceptor| acceptor.end_point.clone());
    let mut exchange = begin(&users, method, &user, found.as_ref()).over(end_point);
    let mut directory = directory.filter(|_| found.is_some_and(|found| found.remembered));
    let mut step = exchange.first(out);
    loop {
        match step {
            Step::Done => {
                tracing::debug!(client = visitor.peer, user, password = %exchange.matched(), "authenticated");
                return Ok(Identity { user, suffix, passport: exchange.passport() });
            }
            Step::More => {
                stream.write_all(out).await?;
                stream.flush().await?;
                out.clear();
                let body = intake.password(stream, exchange.limit()).await?;
                step = visitor.guest.waits_for(exchange.step(&body, out)).await;
                // He may have a new password. Asked for whoever fails, so that an unknown user takes as long.
                if let Step::Failed(failure) = step
                    && !failure.is_protocol()
                    && let Some(directory) = directory.take()
                    && let Ok(found) = visitor.guest.waits_for(find(visitor, &directory, &user, true)).await
                    && exchange.again(begin(&users, method, &user, Some(&found)))
                {
                    step = exchange.step(&body, out).await;
                }
            }
            Step::Failed(failure) => {
                tracing::info!(client = visitor.peer, user, %failure, "authentication failed");
                return Err(if failure.is_protocol() {
                    Fault::InvalidMessage.into()
                } else {
                    Refused::Unproved(reply::fault(&Fault::WrongPassword { user: user.into() }))
                });
            }
        }
    }
}

fn begin(users: &Users, method: AuthMethod, user: &str, found: Option<&Found>) -> Exchange {
    match found {
        None => users.begin(method, user, clock::since_epoch()),
        Some(found) => users.begin_as(method, user, found.account.secret(clock::since_epoch())),
    }
}

/// Asks the server, and forgets what lets Bursar in as somebody whom it does not know any more.
async fn find(
    visitor: &Visitor<'_>,
    directory: &Directory,
    user: &str,
    news: bool,
) -> Result<Found, Unavailable> {
    let found = directory.find(user, news).await?;
    if !found.remembered && !found.account.exists() {
        visitor.pools.forget_user(user);
    }
    Ok(found)
}

/// The role, and the suffix that names a tenant. Role names may contain dots: a known user has no
/// suffix, and it is cut off only where what is left is a known user. The configuration's users come first.
async fn look_up(
    visitor: &Visitor<'_>,
    directory: Option<&Directory>,
    name: &str,
) -> Result<Claimed, Refused> {
    let config = visitor.pools.config();
    let (cut, suffix) = tag::split_user(name, &config.tag);
    let claimed = |user: &str, suffix: Option<&str>, found| Claimed {
        user: user.to_owned(),
        suffix: suffix.map(Arc::from),
        found,
    };
    if config.users.contains_key(name) {
        return Ok(claimed(name, None, None));
    }
    let whole = match directory {
        Some(directory) => Some(find(visitor, directory, name, false).await?),
        None => None,
    };
    if whole.as_ref().is_some_and(|found| found.account.exists()) {
        return Ok(claimed(name, None, whole));
    }
    if config.users.contains_key(cut) {
        return Ok(claimed(cut, suffix, None));
    }
    if let (Some(directory), true) = (directory, suffix.is_some()) {
        let found = find(visitor, directory, cut, false).await?;
        if found.account.exists() {
            return Ok(claimed(cut, suffix, Some(found)));
        }
    }
    Ok(claimed(name, suffix, whole))
}
