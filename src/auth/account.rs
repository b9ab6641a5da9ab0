//! What a server has answered about its users, and for how long that is taken for true. No clock, no socket: who
//! asks is in `pool`.
//!
//! A user who does not exist is remembered for a shorter time, and is the first to be forgotten: names cost
//! nothing to invent. An answer whose time is over still serves for a while if nobody can be asked.

use super::{Failure, SecretKind, Verifier};
use crate::config::{Secret, read_moment};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Users remembered: some 4 MB at worst.
const MAX_ACCOUNTS: usize = 10_000;
/// Longest time for which nobody is taken to be there.
const UNKNOWN: Duration = Duration::from_secs(5);
/// How much longer an answer serves while the server cannot be asked.
const STALE: Duration = Duration::from_secs(600);

/// The names of a column that says until when the password is good.
const UNTIL: [&str; 3] = ["valid_until", "rolvaliduntil", "valuntil"];

/// One user, as the server knows him.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// `None`: there is no such user, or he has no password that is of use here.
    verifier: Option<Verifier>,
    /// Time since the epoch until which the password is good. `None` = for ever.
    until: Option<Duration>,
}

/// An answer that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// More than one row.
    #[error("auth.query has answered with more than one row")]
    Rows,
    /// Not (verifier), (name, verifier), each with or without a column valid_until.
    #[error(
        "auth.query must answer with the columns verifier or name and verifier, and may with valid_until"
    )]
    Columns,
    /// The name in the answer is not the one that was asked for.
    #[error("auth.query has answered about another user")]
    OtherUser,
    /// Neither an md5 hash nor a SCRAM verifier.
    #[error("auth.query has answered with what is neither an md5 hash nor a SCRAM verifier")]
    Secret,
    /// Not a timestamp with time zone.
    #[error("valid_until in the answer of auth.query is no timestamp with time zone from 1970 to 9999")]
    Until,
}

impl Account {
    /// Reads the rows of an answer.
    ///
    /// # Errors
    /// [`AnswerError`], which quotes nothing.
    pub fn read(user: &str, columns: &[Bytes], rows: &[Vec<Option<Bytes>>]) -> Result<Account, AnswerError> {
        let row = match rows {
            [] => return Ok(Account::default()),
            [row] if row.len() == columns.len() => row,
            [_] => return Err(AnswerError::Columns),
            _ => return Err(AnswerError::Rows),
        };
        let is_until = |name: &Bytes| UNTIL.iter().any(|until| until.as_bytes() == name);
        let named = columns.iter().position(is_until);
        let until = named.or((columns.len() == 3).then_some(2));
        let rest: Vec<_> = (0..row.len()).filter(|at| Some(*at) != until).map(|at| &row[at]).collect();
        let (name, verifier) = match rest[..] {
            [verifier] => (None, verifier),
            [name, verifier] => (Some(name), verifier),
            _ => return Err(AnswerError::Columns),
        };
        if name.is_some_and(|name| name.as_deref() != Some(user.as_bytes())) {
            return Err(AnswerError::OtherUser);
        }
        let text = |value: &Option<Bytes>| value.as_ref().map(|value| String::from_utf8(value.to_vec()));
        let verifier = match text(verifier) {
            None => None,
            Some(Ok(text)) => Some(verifier_of(text)?),
            Some(Err(_)) => return Err(AnswerError::Secret),
        };
        let until = match until.and_then(|at| text(&row[at])) {
            None => None,
            Some(Ok(text)) => read_until(&text)?,
            Some(Err(_)) => return Err(AnswerError::Until),
        };
        Ok(Account { verifier, until })
    }

    /// Whether there is such a user.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.verifier.is_some()
    }

    /// What a login is checked against at this time since the epoch.
    ///
    /// # Errors
    /// Why it can only fail.
    pub fn secret(&self, now: Duration) -> Result<&Verifier, Failure> {
        if self.until.is_some_and(|until| until < now) {
            return Err(Failure::Expired);
        }
        self.verifier.as_ref().ok_or(Failure::NoSecret)
    }
}

fn verifier_of(text: String) -> Result<Verifier, AnswerError> {
    let verifier = Verifier::parse(&Secret::new(text)).map_err(|_| AnswerError::Secret)?;
    // A clear password would have to be derived from at each login, and has no business in a table.
    if verifier.kind() == SecretKind::Clear { Err(AnswerError::Secret) } else { Ok(verifier) }
}

fn read_until(text: &str) -> Result<Option<Duration>, AnswerError> {
    match text {
        "infinity" => Ok(None),
        "-infinity" => Ok(Some(Duration::ZERO)),
        text => read_moment(text).map(Some).ok_or(AnswerError::Until),
    }
}

/// The answers remembered.
#[derive(Debug, Default)]
pub struct Accounts {
    ttl: Duration,
    known: HashMap<Arc<str>, (Arc<Account>, Instant)>,
}

impl Accounts {
    /// None yet, each to be taken for true for so long.
    #[must_use]
    pub fn new(ttl: Duration) -> Accounts {
        Accounts { ttl, known: HashMap::new() }
    }

    /// What is known of a user, if that still counts.
    #[must_use]
    pub fn fresh(&self, user: &str, now: Instant) -> Option<Arc<Account>> {
        self.within(user, now, |exists| if exists { self.ttl } else { self.ttl.min(UNKNOWN) })
    }

    /// The same where the server cannot be asked.
    #[must_use]
    pub fn stale(&self, user: &str, now: Instant) -> Option<Arc<Account>> {
        self.within(user, now, |exists| if exists { self.ttl + STALE } else { Duration::ZERO })
    }

    fn within(&self, user: &str, now: Instant, limit: impl Fn(bool) -> Duration) -> Option<Arc<Account>> {
        let (account, asked) = self.known.get(user)?;
        (now.saturating_duration_since(*asked) < limit(account.exists())).then(|| account.clone())
    }

    /// The server has answered.
    pub fn learn(&mut self, user: &Arc<str>, account: Arc<Account>, now: Instant) {
        if self.known.len() >= MAX_ACCOUNTS && !self.known.contains_key(user) {
            let order =
                |(_, (account, asked)): &(&Arc<str>, &(Arc<Account>, Instant))| (account.exists(), *asked);
            let least = self.known.iter().min_by_key(order).map(|(name, _)| name.clone());
            least.map(|name| self.known.remove(&name));
        }
        self.known.insert(user.clone(), (account, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    fn read(columns: &[&'static str], row: &[Option<&'static str>]) -> Result<Account, AnswerError> {
        let columns: Vec<Bytes> = columns.iter().map(|name| Bytes::from(*name)).collect();
        Account::read("alice", &columns, &[row.iter().map(|value| value.map(Bytes::from)).collect()])
    }

    #[test]
    fn answers_are_read_in_every_shape_that_is_allowed() {
        let at = Duration::from_secs;
        let soon = Some("1970-01-01 00:00:10+00");
        for (columns, row) in [
            (&["passwd", "valid_until"][..], &[Some(VERIFIER), soon][..]),
            (&["usename", "passwd", "any"], &[Some("alice"), Some(VERIFIER), soon]),
            (&["rolvaliduntil", "n", "p"], &[soon, Some("alice"), Some(VERIFIER)]),
        ] {
            let account = read(columns, row).unwrap();
            assert!(account.secret(at(10)).is_ok());
            assert_eq!(account.secret(at(11)).err(), Some(Failure::Expired));
        }
        let for_ever = read(&["p", "valid_until"], &[Some(VERIFIER), Some("infinity")]).unwrap();
        assert!(for_ever.secret(Duration::MAX).is_ok());
        assert!(read(&["p"], &[Some(VERIFIER)]).unwrap().secret(Duration::MAX).is_ok());
        assert!(!read(&["p"], &[None]).unwrap().exists());
        assert!(!Account::read("alice", &[], &[]).unwrap().exists());
        let never = read(&["p", "valid_until"], &[Some(VERIFIER), Some("-infinity")]).unwrap();
        assert_eq!(never.secret(at(1)).err(), Some(Failure::Expired));
    }

    #[test]
    fn what_cannot_be_understood_lets_nobody_in() {
        let fault = |columns: &[&'static str], row: &[Option<&'static str>]| read(columns, row).unwrap_err();
        assert_eq!(fault(&[], &[]), AnswerError::Columns);
        assert_eq!(fault(&["n", "p"], &[Some("bob"), Some(VERIFIER)]), AnswerError::OtherUser);
        assert_eq!(fault(&["n", "p"], &[None, Some(VERIFIER)]), AnswerError::OtherUser);
        assert_eq!(fault(&["p"], &[Some("hunter2")]), AnswerError::Secret);
        assert_eq!(fault(&["p", "valid_until"], &[Some(VERIFIER), Some("soon")]), AnswerError::Until);
        assert_eq!(fault(&["a", "b", "c", "d"], &[None, None, None, None]), AnswerError::Columns);
        let twice = Account::read("alice", &["p".into()], &[vec![None], vec![None]]);
        assert_eq!(twice.unwrap_err(), AnswerError::Rows);
    }

    #[test]
    fn answers_count_for_their_time_and_longer_if_nobody_can_be_asked() {
        let start = Instant::now();
        let mut accounts = Accounts::new(Duration::from_secs(60));
        let known = Arc::new(read(&["p"], &[Some(VERIFIER)]).unwrap());
        accounts.learn(&"alice".into(), known, start);
        accounts.learn(&"ghost".into(), Arc::default(), start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(accounts.fresh("alice", at(59)).is_some() && accounts.fresh("alice", at(60)).is_none());
        assert!(accounts.stale("alice", at(659)).is_some() && accounts.stale("alice", at(660)).is_none());
        assert!(accounts.fresh("ghost", at(4)).is_some() && accounts.fresh("ghost", at(5)).is_none());
        assert!(accounts.stale("ghost", at(4)).is_none());
        assert!(accounts.fresh("bob", start).is_none());
    }

    #[test]
    fn a_flood_of_names_does_not_push_out_who_exists() {
        let start = Instant::now();
        let mut accounts = Accounts::new(Duration::from_secs(60));
        let known = Arc::new(read(&["p"], &[Some(VERIFIER)]).unwrap());
        accounts.learn(&"alice".into(), known, start);
        for n in 0..MAX_ACCOUNTS + 10 {
            accounts.learn(
                &format!("ghost{n}").into(),
                Arc::default(),
                start + Duration::from_millis(n as u64),
            );
        }
        assert_eq!(accounts.known.len(), MAX_ACCOUNTS);
        assert!(accounts.fresh("alice", start).is_some());
    }
}
