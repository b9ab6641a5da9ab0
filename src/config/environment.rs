//! Environment variables as keys: `BURSAR_` and the key with its tables, in upper case, everything
//! that is not a letter or digit as `_`.
//!
//! The user's own names stand where they stand in the file: `BURSAR_DATABASE_APP_SIZE` is
//! `database.app.size`. Without a name, `BURSAR_DATABASE_HOST` is `database."*".host`; a shell
//! cannot write the star. A name that the file has keeps its spelling; one it does not have is taken
//! in lower case.

use super::fault::nearest;
use super::keys::{ALIASES, NAMED};
use super::rules::Raw;
use super::written::{Entry, KeyPath, Known, Written, dotted, insert, not_yet};
use super::{Fault, Place, Wrong};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const PREFIX: &str = "BURSAR_";

/// Variables that are not keys: the file's name, for the command line, and what the project's own
/// tests and benchmarks read, which start Bursar with their own environment.
fn is_other_use(rest: &str) -> bool {
    ["CONFIG", "BIN", "PG_BIN"].contains(&rest) || rest.starts_with("TEST_")
}

/// Short names for one key.
const SHORT: [(&str, &str); 1] = [("LOG", "log.level")];

/// Lays the environment's keys over those of the file.
pub(super) fn overlay(
    written: &mut Written,
    env: &BTreeMap<String, String>,
    known: &Known,
    faults: &mut Vec<Fault>,
) {
    let mut entries = BTreeMap::new();
    for (variable, value) in env {
        let Some(rest) = variable.strip_prefix(PREFIX) else { continue };
        if is_other_use(rest) || is_service_link(rest) {
            continue;
        }
        let place = Place::Variable(Arc::from(variable.as_str()));
        let mut meant = candidates(rest, known, written);
        // A key of a table below a name might also be read as a longer name.
        let most = meant.iter().map(|(path, _)| path.len()).max();
        meant.retain(|(path, _)| Some(path.len()) == most);
        let wrong = match meant.len() {
            1 => {
                let (path, in_file) = meant.pop_first().unwrap_or_default();
                let entry = Entry { raw: Raw::Loose(value.clone()), place, name: variable.clone() };
                insert(&mut entries, path, in_file, entry, faults);
                continue;
            }
            0 => unknown(rest, known, written),
            _ => Wrong::Ambiguous { candidates: meant.iter().map(|(path, _)| dotted(path)).collect() },
        };
        faults.push(Fault { place, key: String::new(), wrong });
    }
    for (path, entry) in entries {
        if NAMED.contains(&path[0].as_str()) {
            let table = (path[0].clone(), path[1].clone());
            written.named.entry(table).or_insert_with(|| entry.place.clone());
        }
        written.entries.insert(path, entry);
    }
}

/// Kubernetes and container links describe a service called `bursar` to every pod beside it:
/// `BURSAR_SERVICE_HOST`, `BURSAR_PORT_6432_TCP_ADDR` and their like are no settings.
fn is_service_link(rest: &str) -> bool {
    rest == "PORT"
        || rest == "SERVICE_HOST"
        || rest == "SERVICE_PORT"
        || rest.starts_with("SERVICE_PORT_")
        || rest.strip_prefix("PORT_").is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit()))
}

/// A key's name as part of a variable's.
fn fold(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// Every key a variable could mean, and whether its value is in a file.
fn candidates(rest: &str, known: &Known, written: &Written) -> BTreeSet<(KeyPath, bool)> {
    let mut meant = BTreeSet::new();
    for (short, key) in SHORT {
        if rest == short {
            meant.insert((path_of(key), false));
        }
    }
    let aliases = ALIASES.into_iter();
    for (name, key) in known.patterns().map(|key| (key, key)).chain(aliases) {
        // A route cannot be spelled in a variable.
        if name.ends_with(".NAME") {
            continue;
        }
        for (suffix, in_file) in [("", false), ("_FILE", true)] {
            let Some(stem) = rest.strip_suffix(suffix) else { continue };
            match name.split_once(".NAME.") {
                None if fold(name) == stem => {
                    meant.insert((path_of(key), in_file));
                }
                None => {}
                Some((table, last)) => {
                    for own in own_names(stem, table, last, written) {
                        let mut path = vec![table.to_owned(), own];
                        path.extend(last.split('.').map(str::to_owned));
                        meant.insert((path, in_file));
                    }
                }
            }
        }
    }
    meant
}

fn path_of(key: &str) -> KeyPath {
    key.split('.').map(str::to_owned).collect()
}

/// The names that stand between table and key in a variable.
fn own_names(stem: &str, table: &str, key: &str, written: &Written) -> Vec<String> {
    let middle = stem
        .strip_prefix(&fold(table))
        .and_then(|rest| rest.strip_prefix('_'))
        .and_then(|rest| rest.strip_suffix(&fold(key)));
    match middle {
        // There is no wildcard user.
        Some("") if table != "user" => vec!["*".to_owned()],
        Some(middle) => {
            let Some(name) = middle.strip_suffix('_').filter(|name| !name.is_empty()) else { return vec![] };
            let spelled: Vec<String> = written
                .named
                .keys()
                .filter(|(t, own)| t == table && fold(own) == name)
                .map(|(_, own)| own.clone())
                .collect();
            if spelled.is_empty() { vec![name.to_ascii_lowercase()] } else { spelled }
        }
        None => vec![],
    }
}

fn unknown(rest: &str, known: &Known, written: &Written) -> Wrong {
    // `NAME` in a pattern of the future stands for any one word here.
    let words = rest.to_ascii_lowercase();
    let later = super::keys::NOT_YET.iter().any(|pattern| match pattern.split_once(".NAME.") {
        Some((table, key)) => words.starts_with(&format!("{table}_")) && words.ends_with(&format!("_{key}")),
        None => {
            let name = fold(pattern);
            not_yet(pattern) && (rest == name || rest.starts_with(&format!("{name}_")))
        }
    });
    if later {
        return Wrong::NotYet { what: "this key".to_owned() };
    }
    let mut names: BTreeSet<String> = BTreeSet::new();
    for pattern in known.patterns().chain(ALIASES.into_iter().map(|(alias, _)| alias)) {
        match pattern.split_once(".NAME.") {
            None => {
                names.insert(fold(pattern));
            }
            Some((table, key)) => {
                names.insert(fold(&format!("{table}.{key}")));
                for (_, own) in written.named.keys().filter(|(t, _)| t == table) {
                    names.insert(fold(&format!("{table}.{own}.{key}")));
                }
            }
        }
    }
    let nearest = nearest(rest, names.iter().map(String::as_str)).map(|name| format!("{PREFIX}{name}"));
    Wrong::Unknown { what: "environment variable", nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_have_one_variable() {
        let known = Known::new();
        let mut seen = BTreeMap::new();
        for key in known.patterns().filter(|key| !key.contains(".NAME.")) {
            for variable in [fold(key), format!("{}_FILE", fold(key))] {
                assert_eq!(seen.insert(variable, key), None, "{key}");
            }
        }
        assert!(seen.len() > 60);
    }

    #[test]
    fn links_to_a_service_of_our_name_are_no_settings() {
        for rest in ["PORT", "SERVICE_HOST", "SERVICE_PORT_PG", "PORT_6432_TCP", "PORT_6432_TCP_ADDR"] {
            assert!(is_service_link(rest), "{rest}");
        }
        for rest in ["PORTS", "SERVICE", "PORT_X", "POOL_SIZE"] {
            assert!(!is_service_link(rest), "{rest}");
        }
    }

    #[test]
    fn no_key_is_hidden_by_a_variable_of_other_use() {
        let known = Known::new();
        for key in known.patterns() {
            assert!(!is_other_use(&fold(key)) && !is_service_link(&fold(key)), "{key}");
        }
    }
}
