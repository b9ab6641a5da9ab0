//! How one value is read, checked and shown: a [`Rule`] for each kind of value.
//!
//! A rule knows nothing of keys or tables; `keys.rs` says which key follows which rule.

use super::units::{
    read_day, read_duration, read_moment, read_percent, show_day, show_duration, show_moment,
};
use super::{MAX_PASSWORD, PasswordCommand, Secret, Share, TagSource};
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A value as written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    /// A TOML string.
    Text(String),
    /// A TOML integer that fits.
    Integer(i64),
    /// A TOML boolean.
    Flag(bool),
    /// A TOML array.
    List(Vec<Raw>),
    /// A TOML table, by its keys.
    Table(Vec<(String, Raw)>),
    /// Anything else of TOML: no key takes it.
    Other(&'static str),
    /// Text without TOML's types: from the environment, where lists are separated by commas.
    Loose(String),
    /// The same from the file that a `_file` key names; never shown.
    FromFile {
        /// What is in it.
        text: String,
        /// Its path.
        path: Arc<Path>,
    },
}

impl Raw {
    /// The text of a string.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Raw::Text(text) | Raw::Loose(text) | Raw::FromFile { text, .. } => Some(text),
            _ => None,
        }
    }

    /// A whole number that is not negative.
    fn number(&self) -> Option<u64> {
        match self {
            Raw::Integer(number) => u64::try_from(*number).ok(),
            Raw::Loose(text) | Raw::FromFile { text, .. } => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// What sort of value it is, for a place that takes none of the sort.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Raw::Text(_) | Raw::Loose(_) | Raw::FromFile { .. } => "a text",
            Raw::Integer(_) => "a number",
            Raw::Flag(_) => "a boolean",
            Raw::List(_) => "a list",
            Raw::Table(_) => "a table",
            Raw::Other(kind) => kind,
        }
    }

    /// For a fault: the value, as far as it may be shown.
    pub(super) fn quoted(&self) -> String {
        match self {
            Raw::Text(text) | Raw::Loose(text) => format!("{text:?}"),
            Raw::Integer(number) => number.to_string(),
            Raw::Flag(flag) => flag.to_string(),
            Raw::List(_) => "a list".to_owned(),
            Raw::Table(_) => "a table".to_owned(),
            Raw::Other(kind) => (*kind).to_owned(),
            Raw::FromFile { .. } => "the content of the file".to_owned(),
        }
    }
}

/// Reads and shows one kind of value.
pub(super) trait Rule: 'static {
    /// What comes of it.
    type Value: 'static;
    /// `None` if the raw value is not of this kind or out of its limits.
    fn read(&self, raw: &Raw) -> Option<Self::Value>;
    /// As it could be written; empty if not set.
    fn show(&self, value: &Self::Value) -> String;
    /// The value itself, where it is not shown.
    fn hidden(&self, _value: &Self::Value) -> Option<Secret> {
        None
    }
    /// Kind and limits, for the sentence "expected …".
    fn expected(&self) -> String;
    /// Values that a later version will know.
    fn later(&self, _raw: &Raw) -> bool {
        false
    }
}

/// A whole number between two bounds, both included.
pub(super) struct Count<N> {
    min: N,
    max: N,
}

/// A whole number from `min` to `max`.
pub(super) const fn count<N>(min: N, max: N) -> Count<N> {
    Count { min, max }
}

impl<N: TryFrom<u64> + PartialOrd + Display + 'static> Rule for Count<N> {
    type Value = N;
    fn read(&self, raw: &Raw) -> Option<N> {
        N::try_from(raw.number()?).ok().filter(|n| *n >= self.min && *n <= self.max)
    }
    fn show(&self, value: &N) -> String {
        value.to_string()
    }
    fn expected(&self) -> String {
        format!("a whole number from {} to {}", self.min, self.max)
    }
}

/// A number of threads, or `"auto"`: the CPUs this process may use, cgroup quota included.
pub(super) struct Workers;

const MAX_WORKERS: usize = 1024;

impl Rule for Workers {
    type Value = usize;
    fn read(&self, raw: &Raw) -> Option<usize> {
        if raw.text() == Some("auto") {
            // An unknowable number of CPUs is one.
            return Some(std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS));
        }
        count(1, MAX_WORKERS).read(raw)
    }
    fn show(&self, value: &usize) -> String {
        value.to_string()
    }
    fn expected(&self) -> String {
        format!("a whole number from 1 to {MAX_WORKERS}, or \"auto\"")
    }
}

/// A duration from `min` to `max`.
pub(super) struct Span {
    min: Duration,
    max: Duration,
}

/// A duration from `min` milliseconds to `days` days.
pub(super) const fn span(min_ms: u64, days: u64) -> Span {
    Span { min: Duration::from_millis(min_ms), max: Duration::from_secs(days * 86_400) }
}

impl Rule for Span {
    type Value = Duration;
    fn read(&self, raw: &Raw) -> Option<Duration> {
        read_duration(raw.text()?.trim()).filter(|d| *d >= self.min && *d <= self.max)
    }
    fn show(&self, value: &Duration) -> String {
        show_duration(*value)
    }
    fn expected(&self) -> String {
        format!(
            "a duration with its unit (ms, s, m, h, d) from \"{}\" to \"{}\"",
            show_duration(self.min),
            show_duration(self.max)
        )
    }
}

/// A day, in days since 1970-01-01.
pub(super) struct Day;

impl Rule for Day {
    type Value = u64;
    fn read(&self, raw: &Raw) -> Option<u64> {
        read_day(raw.text()?.trim())
    }
    fn show(&self, value: &u64) -> String {
        show_day(*value)
    }
    fn expected(&self) -> String {
        "a day such as \"2026-11-01\"".to_owned()
    }
}

/// A moment by RFC 3339, as the time since 1970-01-01 00:00 UTC.
pub(super) struct Moment;

impl Rule for Moment {
    type Value = Duration;
    fn read(&self, raw: &Raw) -> Option<Duration> {
        // The last hours of the year 9999 are in the next one elsewhere, which nobody could write.
        read_moment(raw.text()?.trim()).filter(|at| read_moment(&show_moment(*at)).is_some())
    }
    fn show(&self, value: &Duration) -> String {
        show_moment(*value)
    }
    fn expected(&self) -> String {
        "a moment with its offset such as \"2027-01-31T18:00:00Z\" (RFC 3339, in quotes)".to_owned()
    }
}

/// The same, or `"off"`.
pub(super) struct OrOff<R>(pub(super) R);

impl<R: Rule> Rule for OrOff<R> {
    type Value = Option<R::Value>;
    fn read(&self, raw: &Raw) -> Option<Option<R::Value>> {
        if raw.text() == Some("off") { Some(None) } else { self.0.read(raw).map(Some) }
    }
    fn show(&self, value: &Option<R::Value>) -> String {
        value.as_ref().map_or_else(|| "off".to_owned(), |value| self.0.show(value))
    }
    fn hidden(&self, value: &Option<R::Value>) -> Option<Secret> {
        value.as_ref().and_then(|value| self.0.hidden(value))
    }
    fn expected(&self) -> String {
        format!("{}, or \"off\"", self.0.expected())
    }
}

/// The same where leaving the key out means something of its own.
pub(super) struct Given<R>(pub(super) R);

impl<R: Rule> Rule for Given<R> {
    type Value = Option<R::Value>;
    fn read(&self, raw: &Raw) -> Option<Option<R::Value>> {
        self.0.read(raw).map(Some)
    }
    fn show(&self, value: &Option<R::Value>) -> String {
        value.as_ref().map(|value| self.0.show(value)).unwrap_or_default()
    }
    fn hidden(&self, value: &Option<R::Value>) -> Option<Secret> {
        value.as_ref().and_then(|value| self.0.hidden(value))
    }
    fn expected(&self) -> String {
        self.0.expected()
    }
}

/// `true` or `false`.
pub(super) struct Flag;

impl Rule for Flag {
    type Value = bool;
    fn read(&self, raw: &Raw) -> Option<bool> {
        match raw {
            Raw::Flag(flag) => Some(*flag),
            Raw::Loose(text) | Raw::FromFile { text, .. } => text.trim().parse().ok(),
            _ => None,
        }
    }
    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
    fn expected(&self) -> String {
        "true or false".to_owned()
    }
}

/// One of some words; `later` lists words that a later version will know.
pub(super) struct OneOf<V: 'static> {
    pub(super) words: &'static [(&'static str, V)],
    pub(super) later: &'static [&'static str],
}

impl<V: Copy + PartialEq + 'static> Rule for OneOf<V> {
    type Value = V;
    fn read(&self, raw: &Raw) -> Option<V> {
        let text = raw.text()?.trim();
        self.words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }
    fn show(&self, value: &V) -> String {
        self.words.iter().find(|(_, v)| v == value).map_or("", |(word, _)| word).to_owned()
    }
    fn expected(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        format!("one of {}", words.join(", "))
    }
    fn later(&self, raw: &Raw) -> bool {
        raw.text().is_some_and(|text| self.later.contains(&text.trim()))
    }
}

/// A text that a check accepts.
pub(super) struct Text {
    pub(super) expected: &'static str,
    pub(super) check: fn(&str) -> bool,
}

impl Rule for Text {
    type Value = String;
    fn read(&self, raw: &Raw) -> Option<String> {
        raw.text().filter(|text| (self.check)(text)).map(str::to_owned)
    }
    fn show(&self, value: &String) -> String {
        value.clone()
    }
    fn expected(&self) -> String {
        self.expected.to_owned()
    }
}

/// The name of a setting of an application's own, kept in lower case: PostgreSQL compares so.
pub(super) struct SettingName;

impl Rule for SettingName {
    type Value = String;
    fn read(&self, raw: &Raw) -> Option<String> {
        let name = raw.text()?.trim().to_ascii_lowercase();
        let part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let fits = name.len() <= 63 && name.contains('.') && name.split('.').all(part);
        (fits && !name.starts_with("bursar.")).then_some(name)
    }
    fn show(&self, value: &String) -> String {
        value.clone()
    }
    fn expected(&self) -> String {
        "a setting of your own with a dot in its name, such as \"app.tenant_id\", of at most 63 bytes and not \"bursar.…\"".to_owned()
    }
}

/// Certificates or a key, as PEM text: shown only as being there.
pub(super) struct Pem;

impl Rule for Pem {
    type Value = Secret;
    fn read(&self, raw: &Raw) -> Option<Secret> {
        raw.text().filter(|text| text.contains("-----BEGIN ")).map(|text| Secret::new(text.to_owned()))
    }
    fn show(&self, _value: &Secret) -> String {
        "(set)".to_owned()
    }
    fn hidden(&self, value: &Secret) -> Option<Secret> {
        Some(value.clone())
    }
    fn expected(&self) -> String {
        "a text in PEM (\"-----BEGIN …\"), mostly from the file that the key with _file behind its name names"
            .to_owned()
    }
}

/// A password, hash or verifier: shown only as being there.
pub(super) struct Password;

impl Rule for Password {
    type Value = Secret;
    fn read(&self, raw: &Raw) -> Option<Secret> {
        // A NUL ends the field of a PasswordMessage, so a password that has one never matches.
        let fits = |text: &&str| (1..=MAX_PASSWORD).contains(&text.len()) && !text.contains('\0');
        let secret = Secret::new(raw.text().filter(fits)?.to_owned());
        Some(match raw {
            Raw::FromFile { path, .. } => secret.in_file(path.clone()),
            _ => secret,
        })
    }
    fn show(&self, _value: &Secret) -> String {
        "(set)".to_owned()
    }
    fn hidden(&self, value: &Secret) -> Option<Secret> {
        Some(value.clone())
    }
    fn expected(&self) -> String {
        "a text of 1 byte to 64 KiB without a NUL".to_owned()
    }
}

/// A program and its arguments, which are shown only as being there.
pub(super) struct Argv;

impl Rule for Argv {
    type Value = PasswordCommand;
    fn read(&self, raw: &Raw) -> Option<PasswordCommand> {
        let words = match raw {
            Raw::List(items) => items.iter().map(Raw::text).collect::<Option<Vec<_>>>()?,
            one => vec![one.text()?],
        };
        let (program, arguments) = words.split_first()?;
        let fits = !program.trim().is_empty() && words.iter().all(|word| !word.contains('\0'));
        fits.then(|| PasswordCommand {
            program: (*program).to_owned(),
            arguments: arguments.iter().map(|word| Secret::new((*word).to_owned())).collect(),
        })
    }
    fn show(&self, value: &PasswordCommand) -> String {
        value.to_string()
    }
    fn hidden(&self, value: &PasswordCommand) -> Option<Secret> {
        let words = std::iter::once(value.program.as_str());
        let words: Vec<&str> = words.chain(value.arguments.iter().map(Secret::expose)).collect();
        Some(Secret::new(words.join("\0")))
    }
    fn expected(&self) -> String {
        "a list of a program and its arguments, such as [\"/opt/token\", \"--db\"]; there is no shell"
            .to_owned()
    }
}

/// An address to listen on.
pub(super) struct Address;

impl Rule for Address {
    type Value = SocketAddr;
    fn read(&self, raw: &Raw) -> Option<SocketAddr> {
        raw.text()?.trim().parse().ok()
    }
    fn show(&self, value: &SocketAddr) -> String {
        value.to_string()
    }
    fn expected(&self) -> String {
        "an IP address and a port, such as \"127.0.0.1:6432\" or \"[::]:6432\"".to_owned()
    }
}

/// A directory for a Unix socket.
pub(super) struct SocketDir;

/// Linux's `sun_path` has 108 bytes with its NUL (unix(7)); the rest is `/.s.PGSQL.65535`.
pub(super) const SOCKET_DIR_MAX: usize = 107 - "/.s.PGSQL.65535".len();

impl Rule for SocketDir {
    type Value = PathBuf;
    fn read(&self, raw: &Raw) -> Option<PathBuf> {
        raw.text()
            .filter(|text| Path::new(text).is_absolute() && text.len() <= SOCKET_DIR_MAX)
            .map(PathBuf::from)
    }
    fn show(&self, value: &PathBuf) -> String {
        value.display().to_string()
    }
    fn expected(&self) -> String {
        format!("an absolute directory of at most {SOCKET_DIR_MAX} bytes")
    }
}

/// A share of a pool.
pub(super) struct ShareOf;

impl Rule for ShareOf {
    type Value = Share;
    fn read(&self, raw: &Raw) -> Option<Share> {
        let number = raw.number().and_then(|n| u32::try_from(n).ok()).filter(|n| *n >= 1);
        number.map(Share::Count).or_else(|| read_percent(raw.text()?.trim()))
    }
    fn show(&self, value: &Share) -> String {
        match value {
            Share::Count(count) => count.to_string(),
            Share::Percent(percent) => format!("{percent}%"),
        }
    }
    fn expected(&self) -> String {
        "a whole number from 1, or a share of the pool above \"0%\" up to \"100%\"".to_owned()
    }
}

/// A place a tag comes from; holds the tag's own name, such as `bursar.tenant`.
pub(super) struct Source(pub(super) &'static str);

impl Rule for Source {
    type Value = TagSource;
    fn read(&self, raw: &Raw) -> Option<TagSource> {
        let text = raw.text()?.trim();
        match text.split_once(':') {
            Some(("set", name)) if name == self.0 => Some(TagSource::Set),
            Some(("startup", name)) if name == self.0 => Some(TagSource::Startup),
            Some(("comment", key)) if !key.is_empty() => Some(TagSource::Comment(key.to_owned())),
            Some(_) => None,
            None => match text {
                "user_suffix" => Some(TagSource::UserSuffix),
                "user" => Some(TagSource::User),
                "application_name" => Some(TagSource::ApplicationName),
                "database" => Some(TagSource::Database),
                _ => None,
            },
        }
    }
    fn show(&self, value: &TagSource) -> String {
        match value {
            TagSource::Set => format!("set:{}", self.0),
            TagSource::Startup => format!("startup:{}", self.0),
            TagSource::Comment(key) => format!("comment:{key}"),
            TagSource::UserSuffix => "user_suffix".to_owned(),
            TagSource::User => "user".to_owned(),
            TagSource::ApplicationName => "application_name".to_owned(),
            TagSource::Database => "database".to_owned(),
        }
    }
    fn expected(&self) -> String {
        format!(
            "\"set:{0}\", \"startup:{0}\", \"comment:KEY\", \"user_suffix\", \"user\", \
             \"application_name\" or \"database\"",
            self.0
        )
    }
}

/// A list, or one element without brackets.
pub(super) struct ListOf<R> {
    pub(super) each: R,
    /// Fewest elements.
    pub(super) least: usize,
}

impl<R: Rule> Rule for ListOf<R> {
    type Value = Vec<R::Value>;
    fn read(&self, raw: &Raw) -> Option<Vec<R::Value>> {
        let list: Vec<R::Value> = match raw {
            Raw::List(items) => items.iter().map(|item| self.each.read(item)).collect::<Option<_>>()?,
            Raw::Loose(text) | Raw::FromFile { text, .. } => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| self.each.read(&Raw::Loose(item.to_owned())))
                .collect::<Option<_>>()?,
            one => vec![self.each.read(one)?],
        };
        (list.len() >= self.least).then_some(list)
    }
    fn show(&self, value: &Vec<R::Value>) -> String {
        value.iter().map(|item| self.each.show(item)).collect::<Vec<_>>().join(",")
    }
    fn expected(&self) -> String {
        let least = if self.least > 0 { format!(" of at least {}", self.least) } else { String::new() };
        format!("a list{least}, each {}", self.each.expected())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    #[test]
    fn a_quoted_number_is_refused_in_toml_and_fine_in_the_environment() {
        let rule = count(1_u32, 9);
        assert_eq!(rule.read(&Raw::Integer(9)), Some(9));
        assert_eq!(rule.read(&Raw::Loose("9".into())), Some(9));
        assert_eq!(rule.read(&text("9")), None);
        assert_eq!(rule.read(&Raw::Integer(0)), None);
        assert_eq!(rule.read(&Raw::Integer(10)), None);
        assert_eq!(rule.read(&Raw::Integer(-1)), None);
        assert_eq!(rule.expected(), "a whole number from 1 to 9");
    }

    #[test]
    fn off_is_a_value_of_its_own() {
        let rule = OrOff(span(1, 1));
        assert_eq!(rule.read(&text("off")), Some(None));
        assert_eq!(rule.read(&text("5s")), Some(Some(Duration::from_secs(5))));
        assert_eq!(rule.read(&text("25h")), None);
        assert_eq!(rule.read(&text("0s")), None);
        assert_eq!(rule.show(&None), "off");
    }

    #[test]
    fn lists_take_one_or_many() {
        let rule = ListOf { each: Address, least: 1 };
        let two = Raw::List(vec![text("127.0.0.1:1"), text("[::1]:2")]);
        assert_eq!(rule.read(&two).unwrap().len(), 2);
        assert_eq!(rule.read(&text("127.0.0.1:1")).unwrap().len(), 1);
        assert_eq!(rule.read(&Raw::Loose("127.0.0.1:1, [::1]:2".into())).unwrap().len(), 2);
        assert_eq!(rule.read(&Raw::List(vec![])), None);
        assert_eq!(rule.read(&Raw::Integer(6432)), None);
        assert_eq!(rule.show(&rule.read(&two).unwrap()), "127.0.0.1:1,[::1]:2");
    }

    #[test]
    fn sources_name_their_own_tag_only() {
        let rule = Source("bursar.tenant");
        assert_eq!(rule.read(&text("set:bursar.tenant")), Some(TagSource::Set));
        assert_eq!(rule.read(&text("set:bursar.request_id")), None);
        assert_eq!(rule.read(&text("comment:")), None);
        for shown in ["set:bursar.tenant", "startup:bursar.tenant", "comment:t", "user_suffix", "user"] {
            assert_eq!(rule.show(&rule.read(&text(shown)).unwrap()), shown);
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let raw = Raw::FromFile { text: "hunter2".to_owned(), path: Path::new("/run/pw").into() };
        assert_eq!(Password.show(&Password.read(&raw).unwrap()), "(set)");
        assert!(!raw.quoted().contains("hunter2"));
    }
}
