//! The house rules, held over every file of `src`: floors, no circle on a floor, purity, a first
//! line that says why, sizes, and words that do not belong. `src/lib.rs` has the plan in prose.
//!
//! It reads text, not syntax: comments and literals are blanked first, then names are looked for as
//! whole words. Test code is held to the sizes and the words only. Each rule is itself tested with a
//! planted violation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A file may name rooms of its own floor and below.
const FLOORS: [(u8, &[&str]); 7] = [
    (6, &["main", "lib", "server", "drain", "reload", "notify", "cli"]),
    (5, &["console", "http"]),
    (4, &["session"]),
    (3, &["net", "backend", "pool", "auth"]),
    (2, &["book", "breaker", "adapt", "statements", "state"]),
    (1, &["wire"]),
    (0, &["tag", "config", "metrics", "clock", "log"]),
];

/// Rooms and files that decide and do not act.
const PURE: [&str; 11] = [
    "breaker",
    "adapt",
    "session/tracker",
    "session/virtual_tx",
    "session/reply",
    "book",
    "statements",
    "state",
    "wire",
    "tag",
    "config",
];

/// What deciding has no need of: sockets, tasks, locks, logging, the clock.
#[rustfmt::skip]
const IMPURE: [&str; 20] = [
    "TcpStream", "TcpListener", "UdpSocket", "UnixStream", "UnixListener", "ToSocketAddrs", "socket2",
    "tokio", "thread::spawn",
    "Mutex", "RwLock", "parking_lot", "arc_swap",
    "tracing", "println", "eprintln",
    "Instant::now", "SystemTime::now", "elapsed", "crate::clock",
];

/// Words that no file may have.
const BANNED: [&str; 4] = ["unsafe", "todo!", "unimplemented!", "dbg!"];

const MAX_LINES: usize = 600;

/// A file of `src`.
struct Source {
    /// Below `src`.
    path: String,
    text: String,
    /// The text with comments and literals blanked.
    code: String,
    /// And without what only tests compile; empty for a file of tests.
    shipped: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let shipped = if is_test(path) { String::new() } else { without_tests(&code) };
        Source { path: path.to_owned(), text: text.to_owned(), code, shipped }
    }

    /// The first name of its path: the room.
    fn room(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    /// How many `super::` lead out of its module to the crate.
    fn depth(&self) -> usize {
        self.path.trim_end_matches("/mod.rs").split('/').count()
    }

    /// The rooms it names by `crate::`, `bursar::` or enough `super::`.
    fn named_rooms(&self) -> BTreeSet<String> {
        let code: String = self.shipped.split_whitespace().collect::<Vec<_>>().join(" ").replace(":: ", "::");
        let supers = "super::".repeat(self.depth());
        let mut rooms = BTreeSet::new();
        for root in ["crate::", "bursar::", supers.as_str()] {
            for (at, _) in code.match_indices(root) {
                if !starts_word(&code, at) {
                    continue;
                }
                let rest = &code[at + root.len()..];
                match rest.strip_prefix('{') {
                    Some(group) => rooms.extend(firsts(group)),
                    None => rooms.extend([word(rest)]),
                }
            }
        }
        rooms.retain(|room| floor(room).is_some());
        rooms
    }
}

fn floor(room: &str) -> Option<u8> {
    FLOORS.into_iter().find(|(_, rooms)| rooms.contains(&room)).map(|(floor, _)| floor)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn starts_word(code: &str, at: usize) -> bool {
    !code[..at].ends_with(|c| is_word(c) || c == ':')
}

fn word(code: &str) -> String {
    code.chars().take_while(|c| is_word(*c)).collect()
}

/// The first word of each element of a `use` group, up to its closing brace.
fn firsts(group: &str) -> Vec<String> {
    let (mut depth, mut fresh, mut found) = (1, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => fresh = true,
            c if fresh && is_word(c) => {
                found.push(word(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// Whether `name` stands in `code` as a word of its own.
fn has(code: &str, name: &str) -> bool {
    let path = |at: usize| !code[..at].ends_with(is_word);
    let ends = |at: usize| !name.ends_with(is_word) || !code[at + name.len()..].starts_with(is_word);
    code.match_indices(name).any(|(at, _)| path(at) && ends(at))
}

/// Comments and literals as spaces, line breaks kept.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            quoted(rest)
        } else if rest.starts_with("r\"") || rest.starts_with("r#") && !code.ends_with(is_word) {
            let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
            if rest[1 + hashes..].starts_with('"') {
                let end = format!("\"{}", "#".repeat(hashes));
                rest[2 + hashes..].find(&end).map_or(rest.len(), |at| at + 2 + hashes + end.len())
            } else {
                0
            }
        } else if c == '\'' {
            character(rest)
        } else {
            0
        };
        let (gone, kept) = if length == 0 { ("", c.len_utf8()) } else { (&rest[..length], length) };
        code.extend(gone.chars().map(|c| if c == '\n' { c } else { ' ' }));
        if length == 0 {
            code.push(c);
        }
        rest = &rest[kept..];
    }
    code
}

/// The length of a string literal, quotes included.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        // The escaped character itself may be a quote.
        Some((_, '\\')) => text.get(3..).and_then(|rest| rest.find('\'')).map_or(0, |at| at + 4),
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// Whether a file is a test module as a whole, declared under `#[cfg(test)]` in another file.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("tests.rs") || path.ends_with("/model.rs")
}

/// The code without items under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let Some((before, item)) = code.split_once("#[cfg(test)]") else { return code.to_owned() };
    let mut depth = 0;
    let end = item.char_indices().find_map(|(at, c)| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        (depth == 0 && (c == '}' || c == ';')).then_some(at + 1)
    });
    before.to_owned() + &without_tests(&item[end.unwrap_or(item.len())..])
}

// The rules: each returns a line for each violation.

fn floors(files: &[Source]) -> Vec<String> {
    let mut told = Vec::new();
    for file in files {
        let Some(own) = floor(file.room()) else {
            told.push(format!("{}: the room has no floor; give it one in tests/tidy.rs", file.path));
            continue;
        };
        for room in file.named_rooms() {
            if floor(&room).is_some_and(|other| other > own) {
                told.push(format!("{}: names {room}, which is above its floor", file.path));
            }
        }
    }
    told
}

fn circles(files: &[Source]) -> Vec<String> {
    let mut edges: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let same = |room: &String| room != file.room() && floor(room) == floor(file.room());
        edges.entry(file.room()).or_default().extend(file.named_rooms().into_iter().filter(same));
    }
    let reaches = |from: &str, to: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(room) = open.pop() {
            for next in edges.get(room).into_iter().flatten() {
                if next == to {
                    return true;
                }
                if seen.insert(next.as_str()) {
                    open.push(next);
                }
            }
        }
        false
    };
    let rooms = edges.keys().filter(|room| reaches(room, room));
    rooms.map(|room| format!("{room}: leads back to itself over rooms of its own floor")).collect()
}

fn purity(files: &[Source]) -> Vec<String> {
    let pure = |path: &str| {
        PURE.iter().any(|room| path.strip_prefix(room).is_some_and(|rest| rest.starts_with(['/', '.'])))
    };
    words(files.iter().filter(|file| pure(&file.path)), |file| &file.shipped, &IMPURE, "is not pure: has")
}

fn banned(files: &[Source]) -> Vec<String> {
    words(files.iter(), |file| &file.code, &BANNED, "has")
}

fn words<'a>(
    files: impl Iterator<Item = &'a Source>,
    code: fn(&Source) -> &str,
    names: &[&str],
    says: &str,
) -> Vec<String> {
    files
        .flat_map(|file| {
            names
                .iter()
                .filter(|name| has(code(file), name))
                .map(|name| format!("{}: {says} {name}", file.path))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn openings(files: &[Source]) -> Vec<String> {
    let silent = files.iter().filter(|file| !file.text.starts_with("//! "));
    silent.map(|file| format!("{}: does not open with //! and why it exists", file.path)).collect()
}

fn sizes(files: &[Source]) -> Vec<String> {
    let lines = |file: &Source| file.text.lines().count();
    let long = files.iter().filter(|file| lines(file) > MAX_LINES);
    long.map(|file| format!("{}: {} lines, at most {MAX_LINES}", file.path, lines(file))).collect()
}

fn sources(dir: &Path, below: &str, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{below}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            sources(&path, &format!("{name}/"), found);
        } else if name.ends_with(".rs") {
            found.push(Source::new(&name, &std::fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn the_house_is_tidy() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    assert!(files.len() > 20, "only {} files found", files.len());
    let mut told = Vec::new();
    for rule in [floors, circles, purity, banned, openings, sizes] {
        told.extend(rule(&files));
    }
    assert!(told.is_empty(), "\n{}", told.join("\n"));
}

#[test]
fn floors_finds_a_name_from_above() {
    for planted in [
        "use crate::pool::Pool;",
        "use crate::{tag::{self, Key}, pool};",
        "use crate::{\n    pool::{Pool, X},\n};",
        "fn f() -> crate::pool::Pool {}",
        "use super::super::pool::Pool;",
    ] {
        assert_eq!(floors(&[Source::new("wire/walk.rs", planted)]).len(), 1, "{planted}");
    }
    for fine in [
        "use crate::tag::Key;",
        "use super::pool;",
        "// use crate::pool;",
        "const A: &str = \"crate::pool\";",
        "#[cfg(test)]\nmod tests { use crate::pool::Pool; }",
        "use othercrate::pool;",
    ] {
        assert_eq!(floors(&[Source::new("wire/walk.rs", fine)]), [""; 0], "{fine}");
    }
    assert_eq!(floors(&[Source::new("attic.rs", "")]).len(), 1);
    assert_eq!(floors(&[Source::new("tag.rs", "use super::wire;")]).len(), 1);
    assert_eq!(floors(&[Source::new("main.rs", "use bursar::cli;")]), [""; 0]);
}

#[test]
fn circles_finds_a_way_back() {
    let one = |room: &str, uses: &str| Source::new(room, &format!("use crate::{uses};"));
    let line = [one("net/mod.rs", "auth"), one("auth.rs", "backend"), one("backend/x.rs", "wire")];
    assert_eq!(circles(&line), [""; 0]);
    let ring = [one("net/mod.rs", "auth"), one("auth.rs", "backend"), one("backend/x.rs", "net")];
    assert_eq!(circles(&ring).len(), 3);
}

#[test]
fn purity_finds_what_acts() {
    for planted in [
        "use std::net::TcpStream;",
        "async fn f() { tokio::spawn(g()); }",
        "let now = Instant::now();",
        "let age = since.elapsed();",
        "use std::sync::{Arc, Mutex};",
        "tracing::info!(x);",
    ] {
        assert_eq!(purity(&[Source::new("session/tracker/mod.rs", planted)]).len(), 1, "{planted}");
        assert_eq!(purity(&[Source::new("session/relay.rs", planted)]), [""; 0], "{planted}");
    }
    let fine = "use std::net::SocketAddr;\nuse crate::book::ElapsedMutexes;\n// tokio\n";
    assert_eq!(purity(&[Source::new("book/mod.rs", fine)]), [""; 0]);
    assert_eq!(purity(&[Source::new("book/mod.rs", "#[cfg(test)] mod t { use tokio; }")]), [""; 0]);
}

#[test]
fn banned_finds_the_words() {
    for planted in ["unsafe { x }", "todo!()", "dbg!(x)", "#[cfg(test)] mod t { fn f() { todo!() } }"] {
        assert_eq!(banned(&[Source::new("pool/mod.rs", planted)]).len(), 1, "{planted}");
    }
    let fine =
        "#![forbid(unsafe_code)]\n// unsafe\nlet quote = '\\''; let s = \"unsafe\"; let r = r#\"dbg!(\"#;";
    assert_eq!(banned(&[Source::new("pool/mod.rs", fine)]), [""; 0]);
    let hidden = "fn f<'a>(c: char) -> &'a str { if c == '\"' { unsafe { g() } } else { \"\" } }";
    assert_eq!(banned(&[Source::new("pool/mod.rs", hidden)]).len(), 1);
}

#[test]
fn openings_and_sizes_find_theirs() {
    assert_eq!(openings(&[Source::new("tag.rs", "use std::fmt;\n")]).len(), 1);
    assert_eq!(openings(&[Source::new("tag.rs", "//! Tags.\n")]), [""; 0]);
    assert_eq!(sizes(&[Source::new("tag.rs", &"//\n".repeat(601))]).len(), 1);
    assert_eq!(sizes(&[Source::new("tag.rs", &"//\n".repeat(600))]), [""; 0]);
}

/// Each promise of SECURITY.md names tests that there are.
#[test]
fn what_is_promised_is_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let named: Vec<(&str, &str)> = page.split('`').filter_map(|code| code.split_once(".rs::")).collect();
    assert!(named.len() > 20, "{named:?}");
    for (file, test) in named {
        let code = std::fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_default();
        let written = ["#[test]\nfn", "#[tokio::test]\nasync fn"].map(|head| format!("{head} {test}() {{"));
        assert!(written.iter().any(|head| code.contains(head)), "{file}.rs has no test {test}");
    }
}
