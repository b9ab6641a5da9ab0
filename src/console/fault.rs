//! What can be wrong with a statement given to the console, and its SQLSTATE: the console's half of
//! the rule that MESSAGE is constant (budgets.md §2.5). What was written goes to DETAIL, what is
//! known to HINT.

use super::table::Type;
use super::views::{FUNCTION_COLUMNS, VIEWS};
use crate::config::Right;
use crate::session::reply;
use crate::wire::error::{Report, Severity};

/// A statement that cannot be run. Codes: PostgreSQL's appendix "Error Codes".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("syntax error")]
    Syntax { near: String, expected: &'static str },
    #[error("statement nests too deep")]
    TooDeep,
    #[error("column does not exist")]
    NoColumn { name: String, nearest: Option<String> },
    #[error("no such view")]
    NoView { name: String, nearest: Option<String> },
    #[error("function does not exist")]
    NoFunction { name: String },
    #[error("unrecognized configuration parameter")]
    NoSetting { name: String },
    #[error("operator does not exist")]
    Mismatch { left: Type, right: Type },
    #[error("argument of this clause must be boolean")]
    NotBoolean { given: Type },
    #[error("invalid input syntax")]
    BadValue { kind: Type },
    #[error("count(*) and columns cannot be mixed")]
    Mixed,
    #[error("too many columns")]
    TooManyColumns { limit: usize },
    #[error("there is no such parameter")]
    NoParameter { number: usize },
    #[error("parameter type is not supported")]
    ParameterType { oid: u32 },
    #[error("wrong number of parameters")]
    ParameterCount { given: usize, wanted: usize },
    #[error("prepared statement does not exist")]
    NoStatement,
    #[error("portal does not exist")]
    NoPortal,
    #[error("prepared statement already exists")]
    StatementExists,
    #[error("portal already exists")]
    PortalExists,
    #[error("too many prepared statements or portals")]
    TooMany { limit: usize },
    #[error("cannot insert multiple commands into a prepared statement")]
    Several,
    #[error("invalid byte sequence for encoding \"UTF8\"")]
    NotUtf8,
    #[error("current transaction is aborted, commands ignored until end of transaction block")]
    Aborted,
    #[error("a right is missing")]
    Denied { right: Right },
    #[error("function calls are not served here")]
    FunctionCall,
    #[error("invalid message format")]
    Malformed,
}

impl Fault {
    fn code(&self) -> &'static str {
        match self {
            Fault::Syntax { .. } | Fault::Several => "42601",
            Fault::TooDeep => "54001",
            Fault::NoColumn { .. } => "42703",
            Fault::NoView { .. } => "42P01",
            Fault::NoFunction { .. } | Fault::Mismatch { .. } | Fault::FunctionCall => "42883",
            Fault::NoSetting { .. } => "42704",
            Fault::NotBoolean { .. } | Fault::ParameterType { .. } => "42804",
            Fault::BadValue { .. } => "22P02",
            Fault::Mixed => "42803",
            Fault::TooManyColumns { .. } => "54011",
            Fault::NoParameter { .. } => "42P02",
            Fault::ParameterCount { .. } | Fault::Malformed => "08P01",
            Fault::NoStatement => "26000",
            Fault::NoPortal => "34000",
            Fault::StatementExists => "42P05",
            Fault::PortalExists => "42P03",
            Fault::TooMany { .. } => "54000",
            Fault::NotUtf8 => "22021",
            Fault::Aborted => "25P02",
            Fault::Denied { .. } => "42501",
        }
    }

    fn detail(&self) -> Option<String> {
        Some(match self {
            Fault::Syntax { near, .. } if near.is_empty() => "at the end of the statement".to_owned(),
            Fault::Syntax { near, .. } => format!("near \"{near}\""),
            Fault::NoColumn { name, .. }
            | Fault::NoView { name, .. }
            | Fault::NoFunction { name }
            | Fault::NoSetting { name } => format!("\"{name}\""),
            Fault::Mismatch { left, right } => format!("{} compared with {}", left.name(), right.name()),
            Fault::NotBoolean { given } => format!("it is {}", given.name()),
            Fault::BadValue { kind } => format!("for type {}", kind.name()),
            Fault::NoParameter { number } => format!("${number}"),
            Fault::ParameterType { oid } => format!("OID {oid}; known are bool, integers, floats and text"),
            Fault::ParameterCount { given, wanted } => format!("{given} given, {wanted} wanted"),
            Fault::TooManyColumns { limit } => format!("at most {limit}"),
            Fault::TooMany { limit } => format!("at most {limit} of each"),
            _ => return None,
        })
    }

    fn hint(&self) -> Option<String> {
        let nearest = |name: &String| format!("Perhaps you meant \"{name}\".");
        match self {
            Fault::Syntax { expected, .. } => Some(format!("Expected {expected}.")),
            Fault::NoColumn { nearest: Some(name), .. } | Fault::NoView { nearest: Some(name), .. } => {
                Some(nearest(name))
            }
            Fault::NoView { .. } => {
                let names: Vec<_> = VIEWS.iter().map(|view| view.name).collect();
                Some(format!("Known are {} and request('id').", names.join(", ")))
            }
            Fault::NoColumn { .. } => Some("SELECT * shows every column.".to_owned()),
            Fault::NoFunction { .. } => {
                let columns: Vec<_> = FUNCTION_COLUMNS.iter().map(|column| &*column.name).collect();
                Some(format!("Known is bursar.request('id'), with columns {}.", columns.join(", ")))
            }
            Fault::NoSetting { .. } => Some("SHOW HELP lists what can be shown.".to_owned()),
            _ => None,
        }
    }

    /// As it is told.
    pub(super) fn report(&self) -> Report {
        if let Fault::Denied { right } = self {
            return reply::fault(&reply::Fault::RightMissing { right: *right });
        }
        let mut report = Report::new(Severity::Error, self.code(), self.to_string());
        report.detail = self.detail();
        report.hint = self.hint();
        report
    }
}

/// The candidate fewest edits away from `name`, if that is near enough to be a slip of the pen.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let allowed = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}
