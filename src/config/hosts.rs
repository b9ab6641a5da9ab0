//! `host` of a database: one server, or several in the order to try them (PostgreSQL, "Specifying Multiple Hosts"
//! of libpq), each perhaps with a port of its own.

use super::Database;
use super::rules::{Raw, Rule, Text};

/// A host, or several: a list, or a text with commas. Kept with commas.
pub(super) struct Hosts(pub(super) Text);

impl Rule for Hosts {
    type Value = String;
    fn read(&self, raw: &Raw) -> Option<String> {
        let texts: Vec<&str> = match raw {
            Raw::List(items) => items.iter().map(Raw::text).collect::<Option<_>>()?,
            one => one.text()?.split(',').collect(),
        };
        let fits = |text: &&str| split(text, 1).is_some_and(|(host, _)| (self.0.check)(&host));
        let texts: Vec<&str> = texts.into_iter().map(str::trim).collect();
        (!texts.is_empty() && texts.iter().all(fits)).then(|| texts.join(","))
    }
    fn show(&self, value: &String) -> String {
        value.clone()
    }
    fn expected(&self) -> String {
        format!("{}; or a list of them, each perhaps with :PORT", self.0.expected)
    }
}

/// Host and port of one server: `name`, `name:5433`, `::1`, `[::1]:5433`, `/run/postgresql`.
fn split(text: &str, port: u16) -> Option<(String, u16)> {
    let (host, own) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, (!after.is_empty()).then(|| after.strip_prefix(':')).map(Option::unwrap_or_default))
        }
        None if text.starts_with('/') || text.matches(':').count() != 1 => (text, None),
        None => text.split_once(':').map(|(host, port)| (host, Some(port)))?,
    };
    let own = own.map(|port| port.parse().ok().filter(|port| *port > 0));
    Some((host.to_owned(), own.unwrap_or(Some(port))?))
}

impl Database {
    /// Host and port of each server it may be on, in the order to try them.
    #[must_use]
    pub fn servers(&self) -> Vec<(String, u16)> {
        self.host.split(',').filter_map(|text| split(text, self.port)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &Raw) -> Option<String> {
        let check = |text: &str| !text.is_empty() && !text.contains(' ');
        Hosts(Text { expected: "a host", check }).read(raw)
    }

    #[test]
    fn one_or_several_as_a_text_or_a_list() {
        let text = |text: &str| Raw::Text(text.into());
        for (written, kept) in [
            (text("db"), Some("db")),
            (text("a, b:1"), Some("a,b:1")),
            (Raw::List(vec![text("a:1"), text("[::1]:2"), text("/run/pg")]), Some("a:1,[::1]:2,/run/pg")),
            (text("a,,b"), None),
            (text("a:b"), None),
            (text("a:0"), None),
            (text("a:65536"), None),
            (text("[::1"), None),
            (text("[::1]5"), None),
            (text(""), None),
            (Raw::List(vec![]), None),
            (Raw::List(vec![Raw::Integer(1)]), None),
        ] {
            assert_eq!(read(&written).as_deref(), kept, "{written:?}");
        }
    }

    #[test]
    fn a_port_of_its_own_wins() {
        let database = Database { host: "a,b:1,::1,[::2]:3,[::3],/run/pg".into(), ..Database::default() };
        let expected = [("a", 5432), ("b", 1), ("::1", 5432), ("::2", 3), ("::3", 5432), ("/run/pg", 5432)];
        let servers = database.servers();
        assert_eq!(servers.iter().map(|(host, port)| (&**host, *port)).collect::<Vec<_>>(), expected);
    }
}
