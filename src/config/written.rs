//! The configuration as written: the file's keys, then the environment's over them, each with its
//! place. Decides which keys exist, not whether their values make sense.
//!
//! The file is read through TOML's own spanned tree instead of one derived structure, because a
//! derived structure stops at the first key it does not know, and a report shall name them all.

use super::fault::nearest;
use super::keys::{ALIASES, NAMED, NOT_YET, patterns};
use super::rules::Raw;
use super::scopes::TABLES;
use super::{Fault, Place, Wrong};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Longest file that a `_file` key may name: a system's list of authorities has 220 KB.
const VALUE_FILE_MAX: u64 = 1024 * 1024;

/// One key as written.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its value.
    pub(super) raw: Raw,
    /// Where.
    pub(super) place: Place,
    /// The key or variable by the name its author used.
    pub(super) name: String,
}

/// A key's tables and name, one by one.
pub(super) type KeyPath = Vec<String>;

/// Everything that was written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// By canonical path: aliases resolved, `_file` keys replaced by what their files hold.
    pub(super) entries: BTreeMap<KeyPath, Entry>,
    /// The tables with names of the user's own, empty ones included: (`database`, `app`).
    pub(super) named: BTreeMap<(String, String), Place>,
}

impl Written {
    /// The keys of one named table, without its two names.
    pub(super) fn of<'a>(
        &'a self,
        table: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = (String, &'a Entry)> {
        self.entries
            .iter()
            .filter(move |(path, _)| path.len() > 2 && path[0] == table && path[1] == name)
            .map(|(path, entry)| (path[2..].join("."), entry))
    }

    /// The keys of all other tables.
    pub(super) fn fixed(&self) -> impl Iterator<Item = (String, &Entry)> {
        self.entries
            .iter()
            .filter(|(path, _)| !NAMED.contains(&path[0].as_str()))
            .map(|(path, entry)| (path.join("."), entry))
    }
}

/// A path as it is written in TOML, quoted where it must be: `database."*".host`.
#[must_use]
pub fn dotted(path: &[impl AsRef<str>]) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let part = |name: &str| {
        if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { format!("{name:?}") }
    };
    path.iter().map(|name| part(name.as_ref())).collect::<Vec<_>>().join(".")
}

/// The path with the user's own name replaced by `NAME`.
fn pattern_of(path: &[String]) -> String {
    let mut parts: Vec<&str> = path.iter().map(String::as_str).collect();
    if parts.len() > 1 && NAMED.contains(&parts[0]) {
        parts[1] = "NAME";
    } else if parts.len() == 3 && parts[..2] == ["mode", "routes"] {
        parts[2] = "NAME";
    }
    parts.join(".")
}

/// Which keys there are.
pub(super) struct Known {
    keys: BTreeSet<String>,
}

impl Known {
    pub(super) fn new() -> Self {
        Known { keys: patterns().into_iter().collect() }
    }

    pub(super) fn patterns(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }

    /// Whether tables and keys below this pattern exist.
    fn is_table(&self, pattern: &str) -> bool {
        let below = format!("{pattern}.");
        self.keys.range(below.clone()..).next().is_some_and(|key| key.starts_with(&below))
    }

    /// The canonical path of a key, and whether its value is in a file; `None` if there is none.
    fn canonical(&self, path: &[String]) -> Option<(KeyPath, bool)> {
        let exact = |path: &[String]| {
            let pattern = pattern_of(path);
            if let Some((_, target)) = ALIASES.iter().find(|(alias, _)| *alias == pattern) {
                return Some(target.split('.').map(str::to_owned).collect());
            }
            // The same below a name.
            if let Some((scope, below)) = pattern.split_once(".NAME.")
                && TABLES.contains(&scope)
                && let Some((_, target)) = ALIASES.iter().find(|(alias, _)| *alias == below)
                && self.keys.contains(&format!("{scope}.NAME.{target}"))
            {
                let own = path[..2].iter().cloned();
                return Some(own.chain(target.split('.').map(str::to_owned)).collect());
            }
            self.keys.contains(&pattern).then(|| path.to_vec())
        };
        if let Some(found) = exact(path) {
            return Some((found, false));
        }
        let (last, tables) = path.split_last()?;
        let mut stem = tables.to_vec();
        stem.push(last.strip_suffix("_file")?.to_owned());
        exact(&stem).map(|found| (found, true))
    }

    /// The nearest key or table to one that does not exist: beside it, else the same word elsewhere.
    fn nearest(&self, path: &[String]) -> Option<String> {
        let (last, tables) = path.split_last()?;
        let parent = pattern_of(path).rsplit_once('.').map(|(parent, _)| format!("{parent}."));
        let parent = parent.unwrap_or_default();
        let beside = self.keys.iter().map(String::as_str).chain(ALIASES.iter().map(|(alias, _)| *alias));
        let beside: BTreeSet<&str> = beside
            .filter_map(|key| key.strip_prefix(parent.as_str()))
            .map(|rest| rest.split('.').next().unwrap_or(rest))
            .collect();
        if let Some(found) = nearest(last, beside) {
            let mut full = tables.to_vec();
            full.push(found.to_owned());
            return Some(dotted(&full));
        }
        let tail = format!(".{last}");
        self.keys.iter().find(|key| key.ends_with(&tail)).cloned()
    }
}

/// Whether a later version will know this key, or a table above it.
pub(super) fn not_yet(pattern: &str) -> bool {
    NOT_YET
        .iter()
        .any(|later| pattern.strip_prefix(later).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Reads the file's text; `origin` is how faults call the file.
pub(super) fn read_text(text: &str, origin: &str, known: &Known, faults: &mut Vec<Fault>) -> Written {
    let mut reader = Reader { text, origin: Arc::from(origin), known, written: Written::default(), faults };
    let (root, errors) = DeTable::parse_recoverable(text);
    reader.table(&mut Vec::new(), root.get_ref());
    // What stands on a line that is not TOML was guessed by the parser: no second fault about it.
    let mut broken = BTreeSet::new();
    let mut syntax = Vec::new();
    for error in errors {
        let place = reader.place(error.span().map_or(0, |span| span.start));
        if let Place::File { line, .. } = &place {
            broken.insert(*line);
        }
        let wrong = Wrong::Syntax { message: error.message().replace('\n', "; ") };
        syntax.push(Fault { place, key: String::new(), wrong });
    }
    let mut written = std::mem::take(&mut reader.written);
    let guessed = |place: &Place| matches!(place, Place::File { line, .. } if broken.contains(line));
    written.entries.retain(|_, entry| !guessed(&entry.place));
    faults.retain(|fault| !guessed(&fault.place));
    faults.extend(syntax);
    written
}

struct Reader<'a> {
    text: &'a str,
    origin: Arc<str>,
    known: &'a Known,
    written: Written,
    faults: &'a mut Vec<Fault>,
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Place::File {
            name: Arc::clone(&self.origin),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    fn table(&mut self, path: &mut KeyPath, table: &DeTable<'_>) {
        for (key, value) in table {
            path.push(key.get_ref().clone().into_owned());
            let key_place = self.place(key.span().start);
            self.item(path, value.get_ref(), key_place, value.span().start);
            path.pop();
        }
    }

    fn item(&mut self, path: &mut KeyPath, value: &DeValue<'_>, key_place: Place, value_at: usize) {
        let pattern = pattern_of(path);
        let named = path.len() == 2 && NAMED.contains(&path[0].as_str());
        let wrong = if not_yet(&pattern) {
            Wrong::NotYet { what: "this key".to_owned() }
        } else if let (DeValue::Table(inner), true) = (value, self.known.is_table(&pattern)) {
            if named && path[1].is_empty() {
                let table = NAMED.into_iter().find(|table| *table == path[0]).unwrap_or_default();
                Wrong::NoName { table }
            } else {
                if named {
                    self.written.named.insert((path[0].clone(), path[1].clone()), key_place);
                }
                return self.table(path, inner);
            }
        } else if let Some((canonical, in_file)) = self.known.canonical(path) {
            let entry = Entry { raw: raw(value), place: self.place(value_at), name: dotted(path) };
            return insert(&mut self.written.entries, canonical, in_file, entry, self.faults);
        } else if self.known.is_table(&pattern) {
            let header = if path.len() == 1 && NAMED.contains(&path[0].as_str()) { ".NAME" } else { "" };
            Wrong::Invalid {
                got: raw(value).kind().to_owned(),
                expected: format!("a table [{}{header}]", dotted(path)),
            }
        } else {
            let what = if path.len() == 1 { "table" } else { "key" };
            Wrong::Unknown { what, nearest: self.known.nearest(path) }
        };
        self.faults.push(Fault { place: key_place, key: dotted(path), wrong });
    }
}

/// Puts an entry at its path, unless its source has one there already.
pub(super) fn insert(
    entries: &mut BTreeMap<KeyPath, Entry>,
    path: KeyPath,
    in_file: bool,
    mut entry: Entry,
    faults: &mut Vec<Fault>,
) {
    let key = match entry.place {
        Place::Variable(_) => dotted(&path),
        _ => entry.name.clone(),
    };
    let mut fault = |entry: &Entry, wrong| {
        faults.push(Fault { place: entry.place.clone(), key: key.clone(), wrong });
    };
    if in_file {
        // A key that was pasted where the path of its file belongs has several lines, and is no path to quote.
        let name = entry.raw.text().filter(|name| !name.contains(char::is_control));
        match name.map(|name| (name, read_value(Path::new(name), VALUE_FILE_MAX))) {
            Some((name, Ok(text))) => entry.raw = Raw::FromFile { path: Path::new(name).into(), text },
            Some((name, Err(error))) => {
                return fault(
                    &entry,
                    Wrong::UnreadableValue { path: name.into(), error, limit: VALUE_FILE_MAX },
                );
            }
            None => {
                let expected = "the path of a file".to_owned();
                // Not the value: it may be meant as the secret itself.
                return fault(&entry, Wrong::Invalid { got: entry.raw.kind().to_owned(), expected });
            }
        }
    }
    if let Some(first) = entries.get(&path) {
        return fault(&entry, Wrong::Twice { other: first.name.clone() });
    }
    entries.insert(path, entry);
}

/// What a `_file` key's file holds, without one line break at its end.
pub(super) fn read_value(path: &Path, limit: u64) -> Result<String, ErrorKind> {
    let mut text = read_bounded(path, limit)?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Reads a text file that may be at most `limit` bytes long.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<String, ErrorKind> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| e.kind())?;
    file.take(limit + 1).read_to_string(&mut text).map_err(|e| e.kind())?;
    if text.len() as u64 > limit { Err(ErrorKind::FileTooLarge) } else { Ok(text) }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.clone().into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Other("a number too large"), Raw::Integer),
        DeValue::Boolean(flag) => Raw::Flag(*flag),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Float(_) => Raw::Other("a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(table) => {
            let pair = |(key, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
                (key.get_ref().to_string(), raw(value.get_ref()))
            };
            Raw::Table(table.iter().map(pair).collect())
        }
    }
}
