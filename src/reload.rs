//! A new configuration for a running process: whole, or not at all.
//!
//! On SIGHUP, on RELOAD, and when the file changes. A file with any fault changes nothing and its
//! faults are logged. Sessions keep their snapshot until their next transaction.

use crate::auth::{UserError, Users};
use crate::config::{self, Changes, Config, Faults};
use crate::net::tls::{Tls, TlsError};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

/// How to read the configuration again.
#[derive(Debug, Clone)]
pub struct Reload {
    /// The file given on the command line.
    pub path: Option<PathBuf>,
    /// The environment at start.
    pub env: BTreeMap<String, String>,
    /// The file as it was before it was first read.
    pub(crate) first: Option<Version>,
}

/// One state of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    file: (u64, u64),
    size: u64,
    modified: SystemTime,
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file.
    #[error("{0}")]
    Faults(Faults),
    /// A user's secret.
    #[error(transparent)]
    User(#[from] UserError),
    /// A certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The task that read it was ended.
    #[error("interrupted")]
    Interrupted,
}

/// What a reload puts in force.
#[derive(Debug)]
pub struct Reloaded {
    /// The configuration, with the running value of every key that needs a restart.
    pub config: Config,
    /// Its users.
    pub users: Users,
    /// Its certificates and keys.
    pub tls: Tls,
    /// What is different.
    pub changes: Changes,
}

impl Reload {
    /// To be made before the file is read for the first time, or a change right behind that is missed.
    #[must_use]
    pub fn new(path: Option<PathBuf>, env: BTreeMap<String, String>) -> Reload {
        let mut reload = Reload { path, env, first: None };
        reload.first = reload.version();
        reload
    }

    /// Reads the configuration again. Reads files and derives keys: not for a thread that serves
    /// sessions.
    ///
    /// # Errors
    /// [`ReloadError`]
    pub fn read(&self, running: &Config, users: &Users) -> Result<Reloaded, ReloadError> {
        let new = config::load(self.path.as_deref(), &self.env).map_err(ReloadError::Faults)?;
        let changes = Changes::between(running, &new);
        let config = new.keeping(running);
        let users = users.renew(&config)?;
        let tls = Tls::new(&config)?;
        Ok(Reloaded { config, users, tls, changes })
    }

    /// What tells this file from another in its place, or from itself before it was changed; `None` without
    /// a file. Links are followed: Kubernetes swaps one.
    ///
    /// Looked up on the spot, microseconds every few seconds: a second thread would make every system
    /// call of the first one dearer (the kernel counts references to a shared file table).
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        let meta = std::fs::metadata(self.path.as_ref()?).ok()?;
        Some(Version { file: (meta.dev(), meta.ino()), size: meta.len(), modified: meta.modified().ok()? })
    }
}
