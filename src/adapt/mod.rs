//! Pool-size advice (budgets.md S2-29): what PostgreSQL lets in, what Bursar may open, and what to write where
//! the one does not fit the other.
//!
//! Pure: limits and sizes in, findings out. [`limits`] knows what to ask a server and reads what it says,
//! [`refused`] what it means when a server lets no more in; `pool/limits.rs` does the asking.
//!
//! A limit that was not read is no limit here: nothing is said of it.

pub mod limits;
pub mod refused;

#[cfg(test)]
mod tests;

pub use limits::Limits;

use crate::config::{PoolRules, dotted};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Of what PostgreSQL has for everybody, so much is for Bursar: the rest is for those who connect past it.
const PERCENT: u64 = 80;

/// One pool: what it may open where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Database as clients name it: whose table in the configuration has its size.
    pub database: Arc<str>,
    /// Where its backends are.
    pub place: Place,
    /// `size`.
    pub size: usize,
    /// `overflow`.
    pub overflow: usize,
    /// `deadlock_overflow`.
    pub extra: usize,
    /// `min_idle`.
    pub min_idle: usize,
    /// What its server has said, and the number of that reading, higher for later ones; `None` = nothing yet.
    pub limits: Option<(u64, Arc<Limits>)>,
}

impl Demand {
    /// Of a pool with these rules.
    #[must_use]
    pub fn of(
        database: &Arc<str>,
        place: &Place,
        rules: &PoolRules,
        limits: Option<(u64, Arc<Limits>)>,
    ) -> Demand {
        Demand {
            database: database.clone(),
            place: place.clone(),
            size: rules.size,
            overflow: rules.overflow,
            // It adds at most a quarter (budgets.md §3.4).
            extra: rules.deadlock_overflow.min(rules.size.div_ceil(4)),
            min_idle: rules.min_idle,
            limits,
        }
    }

    fn most(&self) -> usize {
        self.size.saturating_add(self.overflow).saturating_add(self.extra)
    }
}

/// Where connections go, as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The server's address.
    pub server: Arc<str>,
    /// Database on the server.
    pub dbname: Arc<str>,
    /// Role on the server.
    pub role: Arc<str>,
}

/// Everything there is to go by.
#[derive(Debug, Clone, Default)]
pub struct Sizes {
    /// Every pool.
    pub pools: Vec<Demand>,
    /// `server.max_backends`.
    pub max_backends: usize,
    /// Connections beside the pools, that `server.max_backends` does not count.
    pub beside: Vec<Place>,
}

/// Whose limit it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// A role's CONNECTION LIMIT.
    Role(Arc<str>),
    /// A database's CONNECTION LIMIT.
    Database(Arc<str>),
    /// The server's `max_connections`, less what it reserves.
    Server,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// PostgreSQL will refuse (53300) before the pools are full.
    Refusals,
    /// It fits, and leaves less than a fifth to everybody else.
    Tight,
}

/// A limit that the configured sizes do not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The server's address.
    pub server: Arc<str>,
    /// Whose limit.
    pub whose: Whose,
    /// What PostgreSQL gives out.
    pub limit: usize,
    /// Of `limit`, what `max_connections` says, and how much of it is reserved; for [`Whose::Server`].
    pub of: Option<(u32, u32)>,
    /// What Bursar may open.
    pub most: usize,
    /// How many pools that is.
    pub pools: usize,
    /// How bad it is.
    pub severity: Severity,
    /// Keys and what to set them to; empty where nothing would do but a higher limit.
    pub set: Vec<(String, usize)>,
    /// Who runs the server, if that shows.
    pub managed: Option<limits::Managed>,
}

/// What does not fit, by server; a role's limit first, then a database's, then the server's.
#[must_use]
pub fn findings(sizes: &Sizes) -> Vec<Finding> {
    let mut groups: BTreeMap<(Arc<str>, Whose), Vec<&Demand>> = BTreeMap::new();
    for pool in &sizes.pools {
        let mut join = |whose| groups.entry((pool.place.server.clone(), whose)).or_default().push(pool);
        join(Whose::Server);
        // Superusers are let in beyond the limits of roles and databases.
        if !pool.limits.as_ref().is_some_and(|(_, limits)| limits.superuser) {
            join(Whose::Role(pool.place.role.clone()));
            join(Whose::Database(pool.place.dbname.clone()));
        }
    }
    let found = groups.into_iter().filter_map(|((server, whose), pools)| judge(sizes, server, whose, &pools));
    found.collect()
}

/// What one limit comes to for the pools under it.
fn judge(sizes: &Sizes, server: Arc<str>, whose: Whose, pools: &[&Demand]) -> Option<Finding> {
    // Read for each pool, of which the last is right for all of the same role, database or server.
    let last = |known: fn(&Limits) -> bool| {
        let read = pools.iter().filter_map(|pool| pool.limits.as_ref());
        let last = read.filter(|(_, limits)| known(limits)).max_by_key(|(number, _)| *number);
        last.map(|(_, limits)| &**limits)
    };
    let beside = |one: &&Place| {
        one.server == server
            && match &whose {
                Whose::Role(role) => one.role == *role,
                Whose::Database(database) => one.dbname == *database,
                Whose::Server => true,
            }
    };
    let beside = sizes.beside.iter().filter(beside).count();
    let all = pools.iter().map(|pool| pool.most()).fold(0, usize::saturating_add);
    let most = all.min(sizes.max_backends).saturating_add(beside);
    let (limit, of) = match &whose {
        Whose::Role(_) => (last(|_| true)?.role?, None),
        Whose::Database(_) => (last(|_| true)?.database?, None),
        Whose::Server => {
            let limits = last(|limits| limits.free().is_some())?;
            (limits.free()?, limits.max_connections.zip(Some(limits.reserved)))
        }
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let wanted = if whose == Whose::Server { share(limit) } else { limit };
    if most <= wanted {
        return None;
    }
    let room = wanted.saturating_sub(beside);
    let set = if whose == Whose::Server && pools.len() == sizes.pools.len() {
        bound(sizes.max_backends, pools, room)
    } else {
        spread(sizes.max_backends, pools, room)
    };
    let severity = if most > limit { Severity::Refusals } else { Severity::Tight };
    let managed = last(|limits| limits.managed.is_some()).and_then(|limits| limits.managed);
    Some(Finding { server, whose, limit, of, most, pools: pools.len(), severity, set, managed })
}

/// Bursar's part of what a server gives out.
fn share(limit: usize) -> usize {
    usize::try_from(limit as u64 * PERCENT / 100).unwrap_or(limit)
}

/// All pools are on this server: one key bounds them together, and no pool is larger than that.
fn bound(max_backends: usize, pools: &[&Demand], room: usize) -> Vec<(String, usize)> {
    if room == 0 {
        return Vec::new();
    }
    let mut set = Vec::new();
    if max_backends > room {
        set.push(("server.max_backends".to_owned(), room));
    }
    set.extend(caps(pools, room));
    set
}

/// For each pool the same bound, the highest with which all fit; if not even one backend each does, what
/// bounds them together.
fn spread(max_backends: usize, pools: &[&Demand], room: usize) -> Vec<(String, usize)> {
    let sum = |cap: usize| pools.iter().map(|pool| pool.most().min(cap)).fold(0, usize::saturating_add);
    let largest = pools.iter().map(|pool| pool.most()).max().unwrap_or(0);
    // The sum grows with the bound: the last one that fits is found by halving.
    let (mut fits, mut too_many) = (0, largest.saturating_add(1));
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        if sum(middle) <= room {
            fits = middle;
        } else {
            too_many = middle;
        }
    }
    if fits == 0 { bound(max_backends, pools, room) } else { caps(pools, fits) }
}

/// Keys that keep every pool within `cap`: its size first, and what is left of it for its overflows.
fn caps(pools: &[&Demand], cap: usize) -> Vec<(String, usize)> {
    let mut set = BTreeMap::new();
    for pool in pools.iter().filter(|pool| pool.most() > cap) {
        let size = pool.size.min(cap);
        let overflow = pool.overflow.min(cap - size);
        let extra = pool.extra.min(cap - size - overflow);
        let keys = [
            ("size", pool.size, size),
            ("overflow", pool.overflow, overflow),
            ("deadlock_overflow", pool.extra, extra),
            ("min_idle", pool.min_idle, pool.min_idle.min(size)),
        ];
        for (at, (key, now, then)) in keys.into_iter().enumerate().filter(|(_, (_, now, then))| now != then) {
            debug_assert!(then < now);
            set.insert((pool.database.clone(), at), (dotted(&["database", &pool.database, key]), then));
        }
    }
    set.into_values().collect()
}

impl Finding {
    /// Whether there is nothing new in it beside another: what changes when a pool is added is none.
    #[must_use]
    pub fn repeats(&self, other: &Finding) -> bool {
        let key =
            |it: &Finding| (it.server.clone(), it.whose.clone(), it.limit, it.severity == Severity::Tight);
        key(self) == key(other)
    }

    /// Whose limit it is, and where.
    #[must_use]
    pub fn scope(&self) -> String {
        match &self.whose {
            Whose::Role(role) => format!("role {role} at {}", self.server),
            Whose::Database(database) => format!("database {database} at {}", self.server),
            Whose::Server => format!("server {}", self.server),
        }
    }

    /// What was read and what is configured.
    #[must_use]
    pub fn finding(&self) -> String {
        let pools = if self.pools == 1 { "1 pool".to_owned() } else { format!("{} pools", self.pools) };
        let most = format!("{pools} may open {} backends", self.most);
        match (&self.whose, self.of) {
            (Whose::Server, Some((max, reserved))) => {
                format!("{most}; max_connections = {max}, of which {reserved} are reserved")
            }
            (Whose::Role(_), _) => format!("{most}; the role's CONNECTION LIMIT is {}", self.limit),
            _ => format!("{most}; the database's CONNECTION LIMIT is {}", self.limit),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> String {
        if self.set.is_empty() {
            return format!("No size fits: {}.", self.other_way());
        }
        format!("{}, or {}.", Keys(&self.set), self.other_way())
    }

    /// What may be done in PostgreSQL instead.
    fn other_way(&self) -> String {
        match &self.whose {
            Whose::Role(_) => format!("raise it (ALTER ROLE … CONNECTION LIMIT {})", self.most),
            Whose::Database(_) => format!("raise it (ALTER DATABASE … CONNECTION LIMIT {})", self.most),
            Whose::Server => match self.managed {
                Some(managed) => format!("raise max_connections ({})", managed.place()),
                None => "raise max_connections".to_owned(),
            },
        }
    }
}

/// Keys as a sentence.
struct Keys<'a>(&'a [(String, usize)]);

impl fmt::Display for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (key, value)) in self.0.iter().enumerate() {
            f.write_str(match at {
                0 => "Set ",
                _ if at + 1 == self.0.len() => " and ",
                _ => ", ",
            })?;
            write!(f, "{key} = {value}")?;
        }
        Ok(())
    }
}
