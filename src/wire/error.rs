//! What Bursar itself says: ErrorResponse and NoticeResponse.
//!
//! Built by pgwire's structures, so field order and framing are a library's concern. MESSAGE is
//! constant (no SQL, ids or addresses, budgets.md §2.5); numbers go to DETAIL, the way out to HINT.

use bytes::BytesMut;
use pgwire::error::ErrorInfo;
use pgwire::messages::Message;
use pgwire::messages::response::{ErrorResponse, NoticeResponse};

/// Severity of a report. FATAL exactly when the connection closes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The connection stays.
    Error,
    /// The connection closes.
    Fatal,
    /// A NoticeResponse; nothing changes.
    Warning,
    /// Likewise, and nothing to worry about.
    Notice,
}

impl Severity {
    fn text(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
        }
    }
}

/// One thing Bursar tells a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether the connection goes on.
    pub severity: Severity,
    /// SQLSTATE, five characters.
    pub code: &'static str,
    /// Constant text.
    pub message: std::borrow::Cow<'static, str>,
    /// The numbers.
    pub detail: Option<String>,
    /// The way out.
    pub hint: Option<String>,
    /// PostgreSQL's function that would have raised it, where drivers go by that.
    pub routine: Option<&'static str>,
}

impl Report {
    /// A report without DETAIL and HINT.
    #[must_use]
    pub fn new(
        severity: Severity,
        code: &'static str,
        message: impl Into<std::borrow::Cow<'static, str>>,
    ) -> Self {
        Report { severity, code, message: message.into(), detail: None, hint: None, routine: None }
    }

    /// The same, but the connection closes after it.
    #[must_use]
    pub fn fatal(mut self) -> Self {
        self.severity = Severity::Fatal;
        self
    }

    /// Appends ErrorResponse, or NoticeResponse for a warning.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut info =
            ErrorInfo::new(self.severity.text().into(), self.code.into(), without_nul(&self.message));
        info.severity_nonlocalized = Some(self.severity.text().into());
        info.detail = self.detail.as_deref().map(without_nul);
        info.hint = self.hint.as_deref().map(without_nul);
        info.routine = self.routine.map(str::to_owned);
        let at = out.len();
        let encoded = match self.severity {
            Severity::Warning | Severity::Notice => NoticeResponse::from(info).encode(out),
            Severity::Error | Severity::Fatal => ErrorResponse::from(info).encode(out),
        };
        // pgwire leaves the type byte behind when a message is too large to encode.
        if encoded.is_err() {
            out.truncate(at);
        }
    }
}

/// An embedded NUL would split a field in two.
fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::backend::{error_field, is_fatal};

    #[test]
    fn both_severity_fields_are_sent() {
        let mut out = BytesMut::new();
        let mut report = Report::new(Severity::Fatal, "28P01", "password authentication failed");
        report.hint = Some("a\0b".into());
        report.encode(&mut out);
        assert_eq!(out[0], b'E');
        let body = &out[5..];
        assert!(is_fatal(body));
        assert_eq!(error_field(body, b'S'), Some(&b"FATAL"[..]));
        assert_eq!(error_field(body, b'V'), Some(&b"FATAL"[..]));
        assert_eq!(error_field(body, b'C'), Some(&b"28P01"[..]));
        assert_eq!(error_field(body, b'H'), Some(&b"ab"[..]));
    }
}
