//! What can be wrong with a configuration, said so that its author can mend it at once.
//!
//! A [`Fault`] has a place (file, line and column, or the environment variable), the key, what is
//! wrong, and what would be right. No text of the file is ever quoted whole, and no value of a
//! secret key at all: the report may end in a log that more people read than the file.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the file, line and column counted from 1, the column in characters.
    File {
        /// The file as it was named.
        name: Arc<str>,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// In this environment variable.
    Variable(Arc<str>),
    /// Nowhere: the file as a whole, or a default.
    Whole(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Place::Variable(name) => write!(f, "environment variable {name}"),
            Place::Whole(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// The key with its tables, such as `pool.size`; empty when no key is concerned.
    pub key: String,
    /// What, and the way out.
    pub wrong: Wrong,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.place, self.wrong)
        } else {
            write!(f, "{}: {}: {}", self.place, self.key, self.wrong)
        }
    }
}

/// The kinds of fault. `Display` says what is wrong, the limit, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The configuration file itself cannot be read.
    #[error("cannot be read ({0}); check the path and its permissions")]
    Unreadable(ErrorKind),
    /// A file named by a `_file` key cannot be read.
    #[error("the file {} cannot be read ({error}); it must exist, be UTF-8, be at most {limit} bytes long, and be readable for Bursar's user", path.display())]
    UnreadableValue {
        /// The file.
        path: PathBuf,
        /// Why.
        error: ErrorKind,
        /// Longest accepted, in bytes.
        limit: u64,
    },
    /// Not TOML.
    #[error("not valid TOML: {message}")]
    Syntax {
        /// The parser's message, which does not contain the line.
        message: String,
    },
    /// No such key, table or variable.
    #[error("there is no such {what}{}", suggestion(nearest))]
    Unknown {
        /// `key`, `table` or `environment variable`.
        what: &'static str,
        /// The nearest that exists.
        nearest: Option<String>,
    },
    /// Planned, but this version cannot do it.
    #[error("{what} is not available in this version; remove it")]
    NotYet {
        /// `this key`, or the value that is not.
        what: String,
    },
    /// The value is of a wrong type or out of range.
    #[error("{got} is not accepted; expected {expected}")]
    Invalid {
        /// The value, or `the value` if it must not be shown.
        got: String,
        /// Type, limits, and an example where that helps.
        expected: String,
    },
    /// The same setting is made twice under two names.
    #[error("sets the same thing as {other}; keep one of them")]
    Twice {
        /// The other key or variable.
        other: String,
    },
    /// The variable could mean several keys.
    #[error("could mean {}; set the one you mean in the file", candidates.join(" or "))]
    Ambiguous {
        /// Keys it could mean.
        candidates: Vec<String>,
    },
    /// A named table without a name.
    #[error("the name is empty; write [{table}.NAME]")]
    NoName {
        /// `database`, `user`, `tenant` or `class`.
        table: &'static str,
    },
    /// Two values contradict each other.
    #[error("{value} is more than {other}, which is {limit}; lower this one or raise that one")]
    Above {
        /// This value.
        value: String,
        /// The key it must not exceed.
        other: String,
        /// Its value.
        limit: String,
    },
    /// Minimums of tenants and reserves of classes that a pool cannot keep.
    #[error(
        "the minimums of tenants and the reserves of classes come to {sum}, more than {pool}, which is \
         {size}; lower this one or raise that one"
    )]
    PromisedTooMuch {
        /// What they come to.
        sum: usize,
        /// The key of the pool's size.
        pool: String,
        /// Its value.
        size: usize,
    },
    /// A stored password cannot be used with the authentication method.
    #[error(
        "a stored {stored} cannot be checked by auth.method = \"{method}\"; store {remedy}, or change auth.method"
    )]
    PasswordKind {
        /// What is stored.
        stored: &'static str,
        /// The method in use.
        method: &'static str,
        /// What the method can use.
        remedy: &'static str,
    },
    /// A login method without what it needs, or rules that nothing reads.
    #[error("{what}; {remedy}")]
    Login {
        /// What cannot be.
        what: String,
        /// The way out.
        remedy: &'static str,
    },
    /// Nobody to ask about users.
    #[error(
        "users are asked about in the database {database}, which {lacks}; set auth.query_database to one of \
         [database.NAME] and auth.query_user to a role that may ask"
    )]
    Query {
        /// `auth.query_database`
        database: String,
        /// What is missing.
        lacks: &'static str,
    },
    /// A certificate or key that cannot be used.
    #[error("{reason}")]
    Certificate {
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Two listeners on one address.
    #[error("the address is already used by {other}; choose another port")]
    AddressTaken {
        /// The other key.
        other: &'static str,
    },
    /// The console's name.
    #[error(
        "the name \"bursar\" is taken by the admin console; rename the table and set dbname = \"bursar\""
    )]
    ConsoleName,
    /// `check` could not reach the server of a database.
    #[error("{address} cannot be reached ({error}); check host, port and that the server is running")]
    Unreachable {
        /// Where it was tried.
        address: String,
        /// Why not.
        error: ErrorKind,
    },
    /// `check` could not look into the directory of the Unix socket.
    #[error(
        "the directory {} cannot be used ({error}); create it, and let Bursar's user create files there", path.display()
    )]
    NoDirectory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        error: ErrorKind,
    },
    /// `check` reached something that does not answer like PostgreSQL.
    #[error("{address} does not answer like a PostgreSQL server; check host and port")]
    NotPostgres {
        /// Where it was tried.
        address: String,
    },
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// Every fault that was found, in the order of their places; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// `Ok` if there is none.
    ///
    /// # Errors
    /// The faults, sorted by place.
    pub fn none_in(mut faults: Vec<Fault>) -> Result<(), Faults> {
        faults.sort_by(|a, b| (&a.place, &a.key).cmp(&(&b.place, &b.key)));
        faults.dedup();
        if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    /// How many there are; at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Faults(vec![fault])
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// The candidate fewest edits away from `name`, if that is near enough to be a slip of the pen:
/// at most a third of its length, and at least one edit is always allowed.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_else() {
        let keys = ["size", "overflow", "max_wait", "idle_timeout"];
        assert_eq!(nearest("sise", keys), Some("size"));
        assert_eq!(nearest("isze", keys), Some("size"));
        assert_eq!(nearest("idle_timout", keys), Some("idle_timeout"));
        assert_eq!(nearest("colour", keys), None);
    }

    #[test]
    fn faults_are_sorted_and_said_once() {
        let fault = |line, key: &str| Fault {
            place: Place::File { name: "c.toml".into(), line, column: 1 },
            key: key.into(),
            wrong: Wrong::ConsoleName,
        };
        assert_eq!(Faults::none_in(vec![]), Ok(()));
        let faults = Faults::none_in(vec![fault(10, "b"), fault(9, "a"), fault(9, "a")]).unwrap_err();
        assert_eq!(faults.len(), 2);
        assert_eq!(faults.iter().next().unwrap().key, "a");
    }
}
