//! Where a pool's backends are, and as whom they log in.
//!
//! Immutable but for a password in a file and one remembered key derivation, or what a client has shown in its place. A changed
//! configuration makes a new target.

use super::command::{CommandFault, Source};
use super::file::PasswordFile;
use crate::adapt::Place;
use crate::auth::keys::{self, Key, ScramKeys};
use crate::auth::{Passport, SecretKind, Verifier};
use crate::config::{Database, Secret, SessionAttrs};
use crate::net::listen::socket_path;
use crate::net::tls::{Connector, Tls};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use zeroize::Zeroizing;

/// One database and role, on one server or on whichever of several is fit.
pub struct Target {
    /// The servers it may be on, in the order configured: at least one.
    servers: Vec<Server>,
    /// The one that served last, which is tried first.
    last: Arc<AtomicUsize>,
    /// Which of them is fit.
    pub attrs: SessionAttrs,
    /// Database on the server.
    pub dbname: String,
    /// Role on the server.
    pub user: String,
    /// What else to say at start-up: nothing for a pool's connections.
    pub parameters: Vec<(String, String)>,
    /// Clear password; `None` = only servers that ask for none will do, or for what a client has shown.
    password: Option<Secret>,
    /// Where the password is, if in a file: what that holds goes before.
    file: Option<Arc<PasswordFile>>,
    /// `host:port` or the socket's path, for views and logs; several with commas between them,
    /// and which of them will do.
    pub address: Arc<str>,
    /// How to be encrypted, which a reload may change, and for which database. `None`: not at all.
    tls: Option<(Arc<ArcSwap<Tls>>, Arc<str>)>,
    /// What prints the password, where it is not known.
    command: Option<Arc<Source>>,
    /// The last SCRAM derivation, or what a client has shown. One is enough: the salt belongs to the role and
    /// changes only with its password.
    passport: Arc<Mutex<Option<Passport>>>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Host name, address, or directory of a Unix socket (starts with `/`).
    pub host: String,
    /// Port.
    pub port: u16,
    /// `host:port` or the socket's path.
    pub address: Arc<str>,
}

/// One address of a server: what a cancel request must go to, however many the name has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Target {
    /// The target of a client's `dbname` and `user` under a `[database.*]` table, which may replace
    /// both. `fallback` is the `[user.*]` password, used if the table has none and it is a clear one.
    #[must_use]
    pub fn new(database: &Database, dbname: &str, user: &str, fallback: Option<&Secret>) -> Target {
        let is_clear = |secret: &&Secret| {
            Verifier::parse(secret).is_ok_and(|verifier| verifier.kind() == SecretKind::Clear)
        };
        let servers: Vec<Server> =
            database.servers().into_iter().map(|(host, port)| Server::new(host, port)).collect();
        let mut address = servers.iter().map(|server| &*server.address).collect::<Vec<_>>().join(",");
        // Of the same servers, others will do for other pools: what is known of these is not said of those.
        if database.target_session_attrs != SessionAttrs::Any {
            address = format!("{address} ({})", database.target_session_attrs.name());
        }
        let password = match &database.password_command {
            Some(_) => None,
            None => database.password.clone().or_else(|| fallback.filter(is_clear).cloned()),
        };
        Target {
            servers,
            last: Arc::default(),
            attrs: database.target_session_attrs,
            dbname: database.dbname.clone().unwrap_or_else(|| dbname.to_owned()),
            user: database.user.clone().unwrap_or_else(|| user.to_owned()),
            parameters: Vec::new(),
            file: password.as_ref().and_then(PasswordFile::of).map(Arc::new),
            password,
            address: address.into(),
            tls: None,
            command: Source::of(database).map(Arc::new),
            passport: Arc::default(),
        }
    }

    /// Whether a backend of the one could be one of the other: the same servers, database and role, and the
    /// same way to a password. What is in a file changes without making it another.
    pub(super) fn is_like(&self, other: &Target) -> bool {
        let command = |target: &Target| target.command.as_ref().map(|source| source.setup());
        let same_password = match (&self.file, &other.file) {
            (Some(file), Some(other)) => file.is_like(other),
            (None, None) => self.password == other.password,
            _ => false,
        };
        self.servers == other.servers
            && self.attrs == other.attrs
            && (&self.dbname, &self.user) == (&other.dbname, &other.user)
            && same_password
            && command(self) == command(other)
    }

    /// The same, encrypted by what these rules, which may change, say of this database.
    #[must_use]
    pub fn over(self, tls: Arc<ArcSwap<Tls>>, database: &str) -> Target {
        Target { tls: Some((tls, database.into())), ..self }
    }

    /// How a new connection is to be encrypted.
    pub(super) fn connector(&self) -> Connector {
        let own = |(tls, database): &(Arc<ArcSwap<Tls>>, Arc<str>)| tls.load().towards(database).clone();
        self.tls.as_ref().map_or(Connector::NONE, own)
    }

    /// The same server for a connection that is none of the pool's: `pg_stat_activity` says whose it is
    /// (`application_name = 'bursar'`).
    #[must_use]
    pub fn aside(&self) -> Target {
        Target {
            servers: self.servers.clone(),
            last: self.last.clone(),
            attrs: self.attrs,
            dbname: self.dbname.clone(),
            user: self.user.clone(),
            parameters: vec![("application_name".to_owned(), "bursar".to_owned())],
            password: self.password.clone(),
            file: self.file.clone(),
            address: self.address.clone(),
            tls: self.tls.clone(),
            command: self.command.clone(),
            passport: self.passport.clone(),
        }
    }

    /// Where its connections go.
    #[must_use]
    pub fn place(&self) -> Place {
        Place { server: self.address.clone(), dbname: (&*self.dbname).into(), role: (&*self.user).into() }
    }

    /// The same with the password that its command prints; `None` where there is no command. One that is in a
    /// file is read again, in this time at most.
    ///
    /// # Errors
    /// [`CommandFault`]
    pub(super) async fn asked(&self, within: Duration) -> Result<Option<Target>, CommandFault> {
        if let Some(file) = &self.file
            && file.refresh(within).await
        {
            // Derived from another password.
            *self.passport.lock() = None;
        }
        let Some(command) = &self.command else { return Ok(None) };
        let password = Some(command.password(self).await?);
        let passport = Arc::new(Mutex::new(self.passport.lock().clone()));
        Ok(Some(Target { password, passport, parameters: self.parameters.clone(), ..self.aside() }))
    }

    /// The clear password, if there is one.
    pub(super) fn password(&self) -> Option<Secret> {
        self.file.as_ref().map(|file| file.last()).or_else(|| self.password.clone())
    }

    /// The server has refused the password.
    pub(super) async fn disbelieve(&self) {
        if let Some(command) = &self.command {
            command.forget().await;
        }
    }

    /// Its servers with their numbers, in the order to try them: the one that served last, then as configured.
    pub(super) fn in_order(&self) -> Vec<(usize, &Server)> {
        let mut servers: Vec<_> = self.servers.iter().enumerate().collect();
        let last = self.last.load(Ordering::Relaxed);
        servers.sort_by_key(|(at, _)| *at != last);
        servers
    }

    /// Its servers as libpq wants them in `PGHOST` and `PGPORT`.
    pub(super) fn for_libpq(&self) -> (String, String) {
        let all = |one: fn(&Server) -> String| self.servers.iter().map(one).collect::<Vec<_>>().join(",");
        (all(|server| server.host.clone()), all(|server| server.port.to_string()))
    }

    /// This one has served.
    pub(super) fn served_by(&self, at: usize) {
        self.last.store(at, Ordering::Relaxed);
    }

    /// The one that served last is not what is wanted any more: they are tried as configured.
    pub fn forget_last(&self) {
        self.last.store(usize::MAX, Ordering::Relaxed);
    }

    /// A client of this role has shown how to get in. Of no use where the configuration says as whom, or by
    /// which password.
    pub fn admit(&self, role: &str, passport: Passport) {
        if self.password.is_none() && self.user == role {
            *self.passport.lock() = Some(passport);
        }
    }

    /// What a client of this role has shown is not good any more. A password of the configuration is.
    pub fn forget(&self, role: &str) {
        if self.password.is_none() && self.user == role {
            *self.passport.lock() = None;
        }
    }

    /// Whether there is a password, or keys in its place, for a server that speaks SCRAM.
    pub(super) fn has_keys(&self) -> bool {
        self.password.is_some() || matches!(&*self.passport.lock(), Some(Passport::Scram { .. }))
    }

    /// The keys under a salt, if they are the ones remembered.
    pub(super) fn keys(&self, salt: &[u8], iterations: NonZeroU32) -> Option<ScramKeys> {
        match &*self.passport.lock() {
            Some(Passport::Scram { salt: own, iterations: rounds, keys })
                if own == salt && *rounds == iterations =>
            {
                Some(keys.clone())
            }
            _ => None,
        }
    }

    /// Remembers a derivation from this password, unless there is another by now.
    pub(super) fn remember_keys(
        &self,
        password: &Secret,
        salt: Vec<u8>,
        iterations: NonZeroU32,
        keys: ScramKeys,
    ) {
        let mut passport = self.passport.lock();
        if self.password().as_ref() == Some(password) {
            *passport = Some(Passport::Scram { salt, iterations, keys });
        }
    }

    /// The digits that answer a server that asks for md5.
    pub(super) fn md5_digits(&self) -> Option<Zeroizing<Key>> {
        if let Some(password) = self.password() {
            let digits = keys::md5_secret(self.user.as_bytes(), password.expose().as_bytes());
            return Some(Zeroizing::new(digits));
        }
        match &*self.passport.lock() {
            Some(Passport::Md5(digits)) => Some(digits.clone()),
            _ => None,
        }
    }
}

impl Server {
    fn new(host: String, port: u16) -> Server {
        let address = match unix_path(&host, port) {
            Some(path) => path.display().to_string(),
            None if host.contains(':') => format!("[{host}]:{port}"),
            None => format!("{host}:{port}"),
        };
        Server { host, port, address: address.into() }
    }

    /// Its addresses, in the order to try them. A name is asked for each time.
    ///
    /// # Errors
    /// Those of name resolution.
    pub(super) async fn endpoints(&self) -> std::io::Result<Vec<Endpoint>> {
        if let Some(path) = unix_path(&self.host, self.port) {
            return Ok(vec![Endpoint::Unix(path)]);
        }
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        Ok(found.map(Endpoint::Tcp).collect())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address)
            .field("dbname", &self.dbname)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

fn unix_path(host: &str, port: u16) -> Option<PathBuf> {
    host.starts_with('/').then(|| socket_path(Path::new(host), port))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::PoolRules;

    pub(crate) fn rules() -> PoolRules {
        PoolRules { queue: 1000, client_gone_grace: Duration::from_secs(5), ..PoolRules::default() }
    }

    pub(crate) fn database(host: &str, port: u16) -> Database {
        Database { host: host.into(), port, pool: rules(), ..Database::default() }
    }

    #[test]
    fn the_table_overrides_the_client_and_the_users_password_must_be_clear() {
        let secret = |text: &str| Secret::new(text.to_owned());
        let mut table = database("db", 5432);
        let target = Target::new(&table, "app", "alice", Some(&secret("pw")));
        assert_eq!((&target.dbname[..], &target.user[..]), ("app", "alice"));
        assert_eq!(target.password().unwrap().expose(), "pw");
        assert_eq!(&*target.address, "db:5432");

        let md5 = secret("md54a0a68b43b6cd5cf266fa02f196e2371");
        assert!(Target::new(&table, "app", "alice", Some(&md5)).password().is_none());

        table.dbname = Some("main".into());
        table.user = Some("pool".into());
        table.password = Some(secret("own"));
        let target = Target::new(&table, "app", "alice", Some(&secret("pw")));
        assert_eq!((&target.dbname[..], &target.user[..]), ("main", "pool"));
        assert_eq!(target.password().unwrap().expose(), "own");
        assert!(!format!("{target:?}").contains("own"));
    }

    #[test]
    fn what_a_client_has_shown_serves_its_own_role_where_no_password_is_configured() {
        let passport = || Passport::Md5(Zeroizing::new([b'a'; 32]));
        let mut table = database("db", 5432);
        let target = Target::new(&table, "app", "alice", None);
        target.admit("alice", passport());
        assert_eq!(target.md5_digits().as_deref(), Some(&[b'a'; 32]));
        assert_eq!(target.aside().md5_digits().as_deref(), Some(&[b'a'; 32]));
        assert!(!target.has_keys(), "not for SCRAM");
        assert!(!format!("{target:?}").contains("aaa"));
        target.forget("bob");
        assert!(target.md5_digits().is_some());
        target.forget("alice");
        assert!(target.md5_digits().is_none());

        table.user = Some("pool".into());
        let other = Target::new(&table, "app", "alice", None);
        other.admit("alice", passport());
        assert!(other.md5_digits().is_none(), "alice is not pool");
        table.user = None;
        table.password = Some(Secret::new("pw".into()));
        let own = Target::new(&table, "app", "alice", None);
        own.admit("alice", passport());
        own.forget("alice");
        assert_eq!(own.md5_digits().as_deref(), Some(&keys::md5_secret(b"alice", b"pw")));
    }

    #[tokio::test]
    async fn addresses_are_printable_and_resolved() {
        let unix = Target::new(&database("/run/pg", 5433), "a", "b", None);
        assert_eq!(&*unix.address, "/run/pg/.s.PGSQL.5433");
        let endpoints = async |target: &Target| target.servers[0].endpoints().await.unwrap();
        assert_eq!(endpoints(&unix).await, [Endpoint::Unix("/run/pg/.s.PGSQL.5433".into())]);
        let v6 = Target::new(&database("::1", 5433), "a", "b", None);
        assert_eq!(&*v6.address, "[::1]:5433");
        assert_eq!(endpoints(&v6).await, [Endpoint::Tcp("[::1]:5433".parse().unwrap())]);
    }

    #[test]
    fn several_servers_have_their_own_ports_and_the_last_to_serve_is_first() {
        let target = Target::new(&database("a,b:1,[::1]:2,::2,/run/pg", 5432), "a", "b", None);
        assert_eq!(&*target.address, "a:5432,b:1,[::1]:2,[::2]:5432,/run/pg/.s.PGSQL.5432");
        let order = |target: &Target| target.in_order().iter().map(|(at, _)| *at).collect::<Vec<_>>();
        assert_eq!(order(&target), [0, 1, 2, 3, 4]);
        target.served_by(2);
        assert_eq!(order(&target), [2, 0, 1, 3, 4]);
        assert_eq!(order(&target.aside()), [2, 0, 1, 3, 4]);
    }
}
