//! A new configuration for a running process: whole, or not at all.
//!
//! On SIGHUP, on RELOAD, and when the file changes. A file with any fault changes nothing and its
//! faults are logged. Sessions keep their snapshot until their next transaction.

use crate::auth::{UserError, Users};
use crate::config::{self, Config, Faults, NeedsRestart};
use crate::net::tls::{Tls, TlsError};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// How to read the configuration again.
#[derive(Debug, Clone)]
pub struct Reload {
    /// The file given on the command line.
    pub path: Option<PathBuf>,
    /// The environment at start.
    pub env: BTreeMap<String, String>,
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
    /// Keys that keep their running value.
    pub needs_restart: Vec<NeedsRestart>,
}

impl Reload {
    /// Reads the configuration again. Reads files and derives keys: not for a thread that serves
    /// sessions.
    ///
    /// # Errors
    /// [`ReloadError`]
    pub fn read(&self, running: &Config, users: &Users) -> Result<Reloaded, ReloadError> {
        let new = config::load(self.path.as_deref(), &self.env).map_err(ReloadError::Faults)?;
        let needs_restart = config::reload_faults(running, &new);
        let config = new.keeping(running);
        let users = users.renew(&config)?;
        let tls = Tls::new(&config.tls)?;
        Ok(Reloaded { config, users, tls, needs_restart })
    }

    /// When the file was last changed; `None` without a file.
    ///
    /// Looked up on the spot, microseconds every few seconds: a second thread would make every system
    /// call of the first one dearer (the kernel counts references to a shared file table).
    #[must_use]
    pub fn modified(&self) -> Option<SystemTime> {
        std::fs::metadata(self.path.as_ref()?).ok()?.modified().ok()
    }
}
