//! `bursar check --connect`: logs in to each database and says what of the configured sizes does not fit the
//! limits there.
//!
//! As the roles that are known: `user` of the database, or else every `[user.NAME]`. What clients will come as
//! otherwise, and databases that only `"*"` lets in, nobody can know beforehand.

use crate::adapt::{Demand, Limits, Sizes, findings};
use crate::backend::{Target, dial};
use crate::config::{Config, Traced};
use crate::net::tls::Tls;
use crate::pool::accounts::Directory;
use crate::pool::limits::read_over;
use arc_swap::ArcSwap;
use std::io::{self, Write};
use std::sync::Arc;
use tokio::runtime::Builder;

/// Roles of one database that are tried.
const MOST: usize = 20;

/// Asks every database, and writes a line for each and a caution for what does not fit. Returns whether all
/// could be asked, and all fits.
///
/// # Errors
/// What writing to `out` reports, or that the system has no reactor for us.
pub(super) fn run(traced: &Traced, tls: Tls, out: &mut dyn Write) -> io::Result<bool> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let config = &traced.config;
    let tls = Arc::new(ArcSwap::from_pointee(tls));
    let mut well = true;
    let mut sizes = Sizes {
        pools: Vec::new(),
        max_backends: config.server.max_backends,
        beside: Directory::of(config, &tls, &Arc::default(), None)
            .map(|directory| directory.place())
            .into_iter()
            .collect(),
    };
    for (name, database) in &config.databases {
        let roles = roles(config, database.user.as_ref());
        if roles.is_empty() {
            writeln!(out, "database {name}: not asked, no role is known; give it a user, or a [user.NAME]")?;
            well = false;
        }
        for role in roles {
            let password = config.users.get(role).and_then(|user| user.password.as_ref());
            let target = Target::new(database, name, role, password).over(tls.clone(), name).aside();
            let Some(rules) = config.pool_rules(name, role) else { continue };
            let asked = runtime.block_on(async {
                let mut backend =
                    dial(&target, rules.connect_timeout).await.map_err(|error| error.to_string())?;
                let limits = read_over(&mut backend).await.ok_or("no answer")?;
                backend.close();
                Ok::<_, String>(limits)
            });
            let place = target.place();
            match asked {
                Ok(limits) => {
                    writeln!(out, "database {name} as {}: {}", place.role, Said(&limits))?;
                    let limits = Some((sizes.pools.len() as u64, Arc::new(limits)));
                    sizes.pools.push(Demand::of(&name.as_str().into(), &place, &rules, limits));
                }
                Err(error) => {
                    writeln!(out, "database {name} as {}: not asked: {error}", place.role)?;
                    well = false;
                }
            }
        }
    }
    for finding in findings(&sizes) {
        let (scope, seen, advice) = (finding.scope(), finding.finding(), finding.advice());
        writeln!(out, "{}: caution: {scope}: {seen}. {advice}", traced.origin)?;
        well = false;
    }
    Ok(well)
}

fn roles<'a>(config: &'a Config, user: Option<&'a String>) -> Vec<&'a str> {
    match user {
        Some(user) => vec![user.as_str()],
        None => config.users.keys().map(String::as_str).take(MOST).collect(),
    }
}

/// What a server has said, in one line.
struct Said<'a>(&'a Limits);

impl std::fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Limits { version, max_connections, reserved, role, database, .. } = self.0;
        let known = |limit: &Option<u32>| limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
        match max_connections {
            Some(max) => {
                let version = version.as_deref().unwrap_or("of an unknown version");
                write!(f, "PostgreSQL {version}, max_connections {max} ({reserved} reserved)")?;
            }
            None => f.write_str("a server that does not say what it lets in")?,
        }
        write!(f, ", limit of the role {}, of the database {}", known(role), known(database))?;
        self.0.managed.map_or(Ok(()), |managed| write!(f, ", {}", managed.name()))
    }
}
