//! Passwords in files, which change while Bursar runs: a Secret of Kubernetes is another after a rotation, and nobody
//! says so.
//!
//! The file is read for each dial, so that no reload is needed. Where it holds no password just then (somebody removes
//! it before he writes the next, or has not finished), the last one serves: the server may well take it still, and one
//! that it does not take is refused in its own words. Why is in the log, once until the file is right again.

use crate::config::{FileFault, Secret};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::timeout;

/// A password and the file that it is in.
pub(super) struct PasswordFile {
    path: PathBuf,
    last: Mutex<Secret>,
    failing: AtomicBool,
    /// Held by the thread that reads, so that a file that hangs (NFS) takes one thread and not more.
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl PasswordFile {
    /// `None` = it is in no file.
    pub(super) fn of(password: &Secret) -> Option<PasswordFile> {
        let (path, last) = (password.file()?.to_owned(), Mutex::new(password.clone()));
        Some(PasswordFile { path, last, failing: AtomicBool::new(false), reading: Arc::default() })
    }

    /// Whether both are the same file.
    pub(super) fn is_like(&self, other: &PasswordFile) -> bool {
        self.path == other.path
    }

    /// What it held when it was last read and held one.
    pub(super) fn last(&self) -> Secret {
        self.last.lock().clone()
    }

    /// Reads it again; whether it holds another one. Cancel safe.
    pub(super) async fn refresh(&self, within: Duration) -> bool {
        match timeout(within, self.read()).await.unwrap_or(Err(FileFault::Timeout)) {
            Ok(now) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(file = %self.path.display(), "the password file can be used again");
                }
                let mut last = self.last.lock();
                let changed = *last != now;
                *last = now;
                changed
            }
            Err(fault) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    let file = self.path.display();
                    tracing::warn!(%file, %fault, "no password in its file: the last one serves");
                }
                false
            }
        }
    }

    async fn read(&self) -> Result<Secret, FileFault> {
        let reading = self.reading.clone().lock_owned().await;
        let last = self.last();
        let read = move || {
            let read = last.read_again();
            drop(reading);
            read
        };
        tokio::task::spawn_blocking(read).await.unwrap_or(Err(FileFault::Timeout))
    }
}
