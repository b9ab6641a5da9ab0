//! What is wrong with a start-up packet, a setting or a tag, and who is not let in unasked.

use super::hinted;
use crate::auth::hba::Attempt;
use crate::metrics::Login;
use crate::state::SettingsError;
use crate::tag::{Key, TagError};
use crate::wire::error::{Report, Severity};
use crate::wire::startup::StartupError;

/// As what a login counts that ended with this report (`bursar_logins_total`).
#[must_use]
pub fn login_result(told: &Report) -> Login {
    match told.code {
        "28P01" | "28000" | "42501" => Login::Auth,
        "53300" | "53400" => Login::Limit,
        "57014" => Login::Timeout,
        "57P03" | "08006" | "3D000" => Login::Upstream,
        "57P01" => Login::Draining,
        _ => Login::Protocol,
    }
}

/// Why somebody is not let in whom nobody has asked for a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied<'a> {
    /// No `[[auth.rule]]` is for this login.
    NoRule(&'a Attempt<'a>),
    /// A rule for it has the method `reject`.
    Rejected(&'a Attempt<'a>),
    /// The method is `cert`, and there is no certificate.
    NoCertificate,
    /// The certificate is somebody else's.
    Certificate {
        /// The name sent.
        user: &'a str,
    },
    /// The method is `peer`, and the connection has no such thing.
    NoPeer,
    /// The kernel says that it is somebody else.
    Peer {
        /// The name sent.
        user: &'a str,
    },
}

/// What is said of it; in PostgreSQL's words where it has some that fit.
#[must_use]
pub fn denied(why: &Denied<'_>) -> Report {
    let fatal = |message: &'static str| Report::new(Severity::Fatal, "28000", message);
    let who = |attempt: &Attempt<'_>| {
        let host = attempt.address.map_or_else(|| "[local]".to_owned(), |ip| ip.to_canonical().to_string());
        let Attempt { user, database, .. } = attempt;
        let tls = if attempt.tls { "TLS" } else { "no TLS" };
        let replication = if attempt.replication { ", replication" } else { "" };
        Some(format!("host \"{host}\", user \"{user}\", database \"{database}\", {tls}{replication}."))
    };
    match why {
        Denied::NoRule(attempt) => {
            let report = fatal("bursar: no rule lets this connection in");
            hinted(Report { detail: who(attempt), ..report }, "Add an [[auth.rule]] for it.")
        }
        Denied::Rejected(attempt) => {
            Report { detail: who(attempt), ..fatal("bursar: a rule rejects this connection") }
        }
        Denied::NoCertificate => fatal("connection requires a valid client certificate"),
        Denied::Certificate { user } => {
            let text = format!("certificate authentication failed for user \"{user}\"");
            Report::new(Severity::Fatal, "28000", text)
        }
        Denied::NoPeer => hinted(
            fatal("bursar: peer authentication is for the Unix socket"),
            "Connect through the socket in listen.unix_dir.",
        ),
        Denied::Peer { user } => {
            Report::new(Severity::Fatal, "28000", format!("Peer authentication failed for user \"{user}\""))
        }
    }
}

/// A start-up packet that is refused; in PostgreSQL's words where it has some.
#[must_use]
pub fn startup(error: &StartupError) -> Report {
    let code = match error {
        StartupError::Length | StartupError::Request | StartupError::Layout => "08P01",
        StartupError::Protocol { .. } => "0A000",
        StartupError::NoUser => "28000",
        StartupError::Encoding(_) => "22021",
        StartupError::Replication(_) => "22023",
        StartupError::Switch(_) | StartupError::SwitchValue(_) => "42601",
    };
    Report::new(Severity::Fatal, code, error.to_string())
}

/// A start-up parameter that cannot be one.
#[must_use]
pub fn bad_setting(error: &SettingsError) -> Report {
    match error {
        SettingsError::Name(name) => {
            let text = format!("unrecognized configuration parameter \"{name}\"");
            Report::new(Severity::Fatal, "42704", text)
        }
        SettingsError::TooMany => hinted(
            Report::new(Severity::Fatal, "53400", "bursar: too many different sets of start-up parameters"),
            "Send what differs from connection to connection by SET, or as a tag.",
        ),
    }
}

/// `bursar.NAME` where there is no such tag. FATAL at login ([`Report::fatal`]).
#[must_use]
pub fn unknown_tag(name: &str) -> Report {
    let nearest =
        Key::nearest(name).map_or_else(String::new, |key| format!(" Did you mean bursar.{}?", key.name()));
    Report {
        detail: Some(format!("bursar.{name} is not a tag.{nearest}")),
        hint: Some(format!("Tags are {}.", Key::ALL.map(|key| format!("bursar.{}", key.name())).join(", "))),
        ..Report::new(Severity::Error, "42704", "bursar: unknown tag")
    }
}

/// A value that a tag cannot have. FATAL at login ([`Report::fatal`]).
#[must_use]
pub fn bad_tag(error: &TagError) -> Report {
    let report = Report::new(Severity::Error, "22023", "bursar: invalid value for a tag");
    Report { detail: Some(error.to_string()), ..report }
}
