//! How the process logs: one line of text or one JSON object an event, to standard error.
//!
//! Only the format is chosen here; what is logged, and that no statement text or secret is, is the
//! concern of whoever logs.

use crate::config::{Log, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `log.level` is neither a level nor a filter.
    #[error("log.level is neither a level nor a filter")]
    Level(#[from] ParseError),
    /// Called twice.
    #[error("logging is already set up")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up logging for the process, once.
///
/// # Errors
/// `log.level` cannot be read, or logging is already set up.
pub fn init(log: &Log) -> Result<(), LogError> {
    let colours = std::io::stderr().is_terminal();
    Ok(subscriber(log, std::io::stderr, colours)?.try_init()?)
}

/// A subscriber that writes as `log` says.
fn subscriber<W>(log: &Log, writer: W, colours: bool) -> Result<tracing::Dispatch, LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&log.level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    Ok(match log.format {
        LogFormat::Text => builder.with_ansi(colours).finish().into(),
        // Fields beside `level` and `message`, not below a key of their own: easier to search by.
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).finish().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::io;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str) -> String {
        let lines = Lines::default();
        let (log, writer) = (Log { format, level: level.to_owned() }, lines.clone());
        let dispatch = subscriber(&log, move || writer.clone(), false).unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::info!(tenant = "a\"b\nc", held_ms = 12, "lease leaked");
            tracing::debug!("too fine");
        });
        let text = lines.0.lock().clone();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn json_is_one_object_a_line_with_typed_fields() {
        let text = logged(LogFormat::Json, "info");
        assert_eq!(text.lines().count(), 1);
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event["message"], "lease leaked");
        assert_eq!(event["tenant"], "a\"b\nc");
        assert_eq!(event["held_ms"], 12);
        assert_eq!(event["level"], "INFO");
        assert!(event["timestamp"].is_string());
    }

    #[test]
    fn text_is_one_line_whatever_the_values_hold() {
        let text = logged(LogFormat::Text, "bursar=info");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("lease leaked") && text.contains("held_ms=12"), "{text}");
    }

    #[test]
    fn a_level_that_is_none_is_an_error() {
        let log = Log { format: LogFormat::Text, level: "a=b=c".to_owned() };
        assert!(matches!(subscriber(&log, io::sink, false), Err(LogError::Level(_))));
    }
}
