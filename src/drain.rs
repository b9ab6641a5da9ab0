//! Leaving: Running → Leaving{notice} → Closing → Stopped (interface.md, "Signals and exit").
//!
//! TERM or INT: not ready at once, still serving for `drain.notice`; then no new connections, idle
//! sessions are closed with 57P01, transactions finish; whatever is left at `drain.deadline` is cut.
//! A second signal leaves at once. What is done at each step is `server`'s; here is how far it has come.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// As on TERM.
    Drain,
    /// When the last client has gone; no new ones.
    WaitForClients,
    /// At once.
    Now,
}

/// How far leaving has come; shared by everybody whom it concerns.
#[derive(Debug)]
pub struct Drain {
    leaving: CancellationToken,
    closing: CancellationToken,
    stopped: CancellationToken,
    asked: watch::Sender<Option<How>>,
}

impl Default for Drain {
    fn default() -> Self {
        Drain {
            leaving: CancellationToken::new(),
            closing: CancellationToken::new(),
            stopped: CancellationToken::new(),
            asked: watch::Sender::new(None),
        }
    }
}

impl Drain {
    /// Whether the process is leaving: `/readyz` says no.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Cancelled when the process is leaving.
    #[must_use]
    pub fn leaving(&self) -> CancellationToken {
        self.leaving.clone()
    }

    /// Cancelled when no new connections are wanted.
    #[must_use]
    pub fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Cancelled when the process is about to end.
    #[must_use]
    pub fn stopped(&self) -> CancellationToken {
        self.stopped.clone()
    }

    /// From now on the process is leaving.
    pub fn leave(&self) {
        self.leaving.cancel();
    }

    /// Waits until SHUTDOWN is asked for. Cancel safe.
    pub async fn asked(&self) -> How {
        let mut asked = self.asked.subscribe();
        let asked = asked.wait_for(Option::is_some).await;
        asked.ok().and_then(|how| *how).unwrap_or(How::Drain)
    }

    /// SHUTDOWN.
    pub fn shut_down(&self, how: How) {
        self.asked.send_replace(Some(how));
    }
}

/// The signals a process listens to.
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// Those of sigaction.
    pub fn new() -> io::Result<Signals> {
        Ok(Signals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The next one. Cancel safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
