//! The transaction that the client sees, where its backend's is another one or it has no backend.
//!
//! Pure. Two such transactions exist:
//!
//! * **Begun** (budgets.md §4.4): a BEGIN has been answered here. It goes out glued to the first
//!   statement, so that no backend is held between the two; a COMMIT or ROLLBACK that comes before any
//!   statement needs no backend at all.
//! * **Aborted** (budgets.md §2.6): Bursar has rolled the transaction back and taken the backend, but
//!   the client stays. It is told why at its next statement, and then finds a failed transaction.
//!
//! ```text
//!            BEGIN                 first statement: lease, BEGIN ahead of it
//!   Backend ───────▶ Begun ────────────────────────────────────────▶ Backend
//!      │               │ COMMIT, ROLLBACK: answered            ▲
//!      │               └───────────────────────────────────────┤
//!      │ abort                                                 │
//!      └───────▶ Aborted{why} ── COMMIT: ERROR why, 'I' ───────┤
//!                      │ ╰────── ROLLBACK: answered ───────────┤
//!                      │ anything else: ERROR why, 'E'         │
//!                      ▼                                       │
//!                Aborted{} ── COMMIT, ROLLBACK: "ROLLBACK" ────┘
//!                        ╰─── else 25P02, or a lease whose backend is in a failed transaction
//! ```
//!
//! A COMMIT whose transaction was aborted behind the client's back is answered with an error, never
//! with the tag `ROLLBACK` that PostgreSQL would send: nearly nobody reads it. What this is for, and what
//! the model test holds: a client that was told `COMMIT` has its data committed, and hears of every
//! transaction that was aborted before it can begin another, unless it rolled back itself.
//!
//! What needs more than is known here (statements prepared earlier, several statements in one Query)
//! gets a backend in a failed transaction, and PostgreSQL answers. A backend that its session keeps
//! ([`VirtualTx::abort`], `held`) is put there at once.

use crate::wire::backend::TxStatus;
use crate::wire::error::Report;
use crate::wire::sql::transaction::Verb;
use bytes::Bytes;

/// What the client sends. Flush, Sync and Close do not matter here: they mean the same in any
/// transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said<'a> {
    /// A Query.
    Query(Verb),
    /// A FunctionCall.
    Call,
    /// A Parse.
    Parse {
        /// Its name.
        name: &'a [u8],
        /// Its text.
        verb: Verb,
    },
    /// A Bind.
    Bind {
        /// To this portal.
        portal: &'a [u8],
        /// Of this statement.
        statement: &'a [u8],
    },
    /// A Describe of a statement.
    DescribeStatement(&'a [u8]),
    /// A Describe of a portal.
    DescribePortal(&'a [u8]),
    /// An Execute of a portal.
    Execute(&'a [u8]),
}

/// Why a statement is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// What the client has not been told yet.
    Told(Box<Report>),
    /// It knows: the transaction has failed (25P02).
    Failed,
}

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It goes the ordinary way; where that leads to a lease, [`VirtualTx::lease`] says what comes first.
    Pass,
    /// CommandComplete with this tag; the transaction is over.
    Complete(&'static str),
    /// ErrorResponse; this is the status of the ReadyForQuery behind it.
    Fail(Why, TxStatus),
    /// The same, the transaction is over, and the backend that the session keeps is to be rolled back.
    FailAndRollBack(Why),
    /// ParseComplete or BindComplete: of a COMMIT or ROLLBACK that is kept here.
    Acknowledge,
    /// What it names has no rows, and no parameters.
    NoData,
}

/// What a new lease begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lead {
    /// Nothing.
    Nothing,
    /// This BEGIN, without which nothing that follows may run.
    Begin(Box<[u8]>),
    /// The same of a transaction that was parked.
    Resume(Box<Resume>),
    /// A transaction that has failed.
    Failed,
}

/// What a parked transaction needs to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The text of its BEGIN.
    pub begin: Box<[u8]>,
    /// The settings that it has made for itself, and their values.
    pub settings: Vec<(Box<str>, Bytes)>,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct VirtualTx {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// The transaction is the backend's; without a backend there is none.
    #[default]
    Backend,
    /// The client has been answered this BEGIN, of which no backend knows.
    Begun(Box<[u8]>),
    /// It has only read, and its backend was given back.
    Parked { resume: Box<Resume>, kept: Box<Kept> },
    /// Rolled back by Bursar. `held`: the session keeps its backend, which is in a failed transaction.
    Aborted { why: Option<Box<Report>>, held: bool, kept: Box<Kept> },
}

/// Portals that may be bound to what is kept; one more goes the ordinary way.
const PORTALS: usize = 16;

/// A COMMIT (`true`) or ROLLBACK of the extended protocol, from Parse to Execute. Drivers send them so;
/// a backend for that would be one too many.
#[derive(Debug, Default)]
struct Kept {
    /// The unnamed statement.
    statement: Option<bool>,
    portals: Vec<(Box<[u8]>, bool)>,
}

impl Kept {
    fn statement(&self, name: &[u8]) -> Option<bool> {
        self.statement.filter(|_| name.is_empty())
    }

    fn portal(&self, name: &[u8]) -> Option<bool> {
        self.portals.iter().find(|(other, _)| **other == *name).map(|(_, commit)| *commit)
    }

    /// Whether there is room for the portal.
    fn bind(&mut self, name: &[u8], commit: bool) -> bool {
        self.portals.retain(|(other, _)| **other != *name);
        let room = self.portals.len() < PORTALS;
        if room {
            self.portals.push((name.into(), commit));
        }
        room
    }
}

impl VirtualTx {
    /// Whether the client sees what its backend says.
    #[inline]
    #[must_use]
    pub fn is_real(&self) -> bool {
        matches!(self.state, State::Backend)
    }

    /// Whether a BEGIN has been answered that no backend has heard of.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        matches!(self.state, State::Begun(_))
    }

    /// Whether the client's transaction is one that Bursar has rolled back.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        matches!(self.state, State::Aborted { .. })
    }

    /// A BEGIN with this text has been answered, without a lease.
    pub fn begin(&mut self, text: Box<[u8]>) {
        self.state = State::Begun(text);
    }

    /// The client's transaction, which has only read, has no backend any more until it goes on.
    pub fn park(&mut self, resume: Resume) {
        self.state = State::Parked { resume: Box::new(resume), kept: Box::default() };
    }

    /// Whether it is so.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        matches!(self.state, State::Parked { .. })
    }

    /// The client's transaction has been rolled back, `why` is what it will be told, or `None` if it has
    /// been. `held`: its session keeps the backend, and has brought it into a failed transaction.
    pub fn abort(&mut self, why: Option<Box<Report>>, held: bool) {
        // The failed transaction of the backend is what the client is to see.
        self.state = if held && why.is_none() {
            State::Backend
        } else {
            State::Aborted { why, held, kept: Box::default() }
        };
    }

    /// The client was refused something (a lease, a statement) while no backend had its transaction,
    /// which, if it has begun, has failed now. Returns what the next ReadyForQuery says.
    pub fn refused(&mut self) -> TxStatus {
        match &mut self.state {
            State::Backend => TxStatus::Idle,
            State::Begun(_) | State::Parked { .. } => {
                self.abort(None, false);
                TxStatus::Failed
            }
            State::Aborted { why, .. } => {
                *why = None;
                TxStatus::Failed
            }
        }
    }

    /// A lease begins for what was passed: the transaction is the backend's from now on.
    pub fn lease(&mut self) -> Lead {
        match std::mem::take(&mut self.state) {
            State::Backend => Lead::Nothing,
            State::Begun(text) => Lead::Begin(text),
            State::Parked { resume, .. } => Lead::Resume(resume),
            State::Aborted { .. } => Lead::Failed,
        }
    }

    /// Whether a lease would begin with a transaction that has failed.
    #[must_use]
    pub fn leads_failed(&self) -> bool {
        matches!(self.state, State::Aborted { held: false, .. })
    }

    /// A message has come.
    pub fn hear(&mut self, said: Said<'_>) -> Reply {
        match &mut self.state {
            State::Backend => Reply::Pass,
            State::Begun(_) => match said {
                Said::Query(Verb::Commit) => self.complete("COMMIT"),
                Said::Query(Verb::Rollback) => self.complete("ROLLBACK"),
                _ => Reply::Pass,
            },
            State::Parked { kept, .. } => match end(kept, said) {
                Some(Ok(commit)) => self.complete(if commit { "COMMIT" } else { "ROLLBACK" }),
                Some(Err(reply)) => reply,
                None => Reply::Pass,
            },
            State::Aborted { held: true, why, .. } => {
                let why = why.take();
                self.hear_held(said, why)
            }
            State::Aborted { why, kept, .. } => match end(kept, said) {
                Some(Ok(commit)) => {
                    let why = why.take();
                    self.end(commit, why)
                }
                Some(Err(reply)) => reply,
                None => match (why.take(), said) {
                    (Some(why), _) => Reply::Fail(Why::Told(why), TxStatus::Failed),
                    (None, Said::Query(verb) | Said::Parse { verb, .. }) if !may_run(verb) => {
                        Reply::Fail(Why::Failed, TxStatus::Failed)
                    }
                    (None, Said::Call) => Reply::Fail(Why::Failed, TxStatus::Failed),
                    (None, _) => Reply::Pass,
                },
            },
        }
    }

    fn complete(&mut self, tag: &'static str) -> Reply {
        self.state = State::Backend;
        Reply::Complete(tag)
    }

    /// A COMMIT or ROLLBACK of what no backend has.
    fn end(&mut self, commit: bool, why: Option<Box<Report>>) -> Reply {
        match why.filter(|_| commit) {
            Some(why) => {
                self.state = State::Backend;
                Reply::Fail(Why::Told(why), TxStatus::Idle)
            }
            None => self.complete("ROLLBACK"),
        }
    }

    /// The session's backend is in a failed transaction; only the reason is still to be told.
    fn hear_held(&mut self, said: Said<'_>, why: Option<Box<Report>>) -> Reply {
        self.state = State::Backend;
        match (said, why) {
            (Said::Query(Verb::Rollback), _) | (_, None) => Reply::Pass,
            (Said::Query(Verb::Commit), Some(why)) => Reply::FailAndRollBack(Why::Told(why)),
            (_, Some(why)) => Reply::Fail(Why::Told(why), TxStatus::Failed),
        }
    }
}

/// What a message is to what is kept: the end of the transaction (whether by COMMIT), something on the
/// way there, or nothing.
fn end(kept: &mut Kept, said: Said<'_>) -> Option<Result<bool, Reply>> {
    match said {
        Said::Query(verb) => {
            // A Query drops the unnamed statement.
            kept.statement = None;
            plain(verb).map(Ok)
        }
        Said::Call => None,
        Said::Parse { name, verb } => {
            if name.is_empty() {
                kept.statement = plain(verb);
            }
            kept.statement(name).map(|_| Err(Reply::Acknowledge))
        }
        Said::Bind { portal, statement } => {
            let commit = kept.statement(statement)?;
            kept.bind(portal, commit).then_some(Err(Reply::Acknowledge))
        }
        Said::DescribeStatement(name) => kept.statement(name).map(|_| Err(Reply::NoData)),
        Said::DescribePortal(name) => kept.portal(name).map(|_| Err(Reply::NoData)),
        Said::Execute(name) => kept.portal(name).map(Ok),
    }
}

/// Whether it is a COMMIT; `None` = neither that nor a ROLLBACK.
fn plain(verb: Verb) -> Option<bool> {
    match verb {
        Verb::Commit => Some(true),
        Verb::Rollback => Some(false),
        _ => None,
    }
}

/// Whether PostgreSQL takes it in a failed transaction (`IsTransactionExitStmt`).
fn may_run(verb: Verb) -> bool {
    matches!(verb, Verb::Commit | Verb::Rollback | Verb::Exits)
}

#[cfg(test)]
mod tests;
