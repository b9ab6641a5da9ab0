//! What operators write: configurations, and statements at the console.

use super::choices::Choices;
use bursar::config::{self, known_keys};
use bursar::console;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Values of every kind, most of them wrong for most keys.
const VALUES: [&str; 24] = [
    "5",
    "0",
    "-1",
    "99999999999999999999",
    "1.5",
    "true",
    "\"5s\"",
    "\"1h\"",
    "\"0ms\"",
    "\"99999999999999d\"",
    "\"50%\"",
    "\"101%\"",
    "\"enforce\"",
    "\"observe\"",
    "\"transaction\"",
    "\"set:bursar.tenant\"",
    "\"127.0.0.1:99999\"",
    "\"(\"",
    "\"\"",
    "[]",
    "[\"user\", \"comment:x\", 3]",
    "{ a = 1 }",
    "\"caf\u{e9}\"",
    "1979-05-27",
];

/// What must not be told to anybody.
const SECRET: &str = "hunter2";

/// Any file and environment is a configuration, or a list of faults that tells no password.
#[test]
fn any_configuration() {
    let keys = known_keys();
    bolero::check!().with_max_len(300).for_each(|input: &[u8]| {
        let mut choices = Choices(input);
        let (mut text, mut environment) = (String::new(), BTreeMap::new());
        if choices.below(4) == 0 {
            text.push_str(&String::from_utf8_lossy(choices.0));
        } else {
            while !choices.0.is_empty() {
                line(&keys, &mut choices, &mut text, &mut environment);
            }
        }
        match config::parse(&text, "any.toml", &environment) {
            Ok(config) => {
                let shown = format!("{config:?}");
                assert!(!shown.contains(SECRET));
            }
            Err(faults) => {
                let told: String = faults.iter().map(|fault| format!("{fault}\n")).collect();
                assert!(faults.len() > 0 && !told.contains(SECRET), "{told}");
            }
        }
    });
}

/// A key with its table and a value, in the file or in the environment.
fn line(keys: &[String], choices: &mut Choices<'_>, text: &mut String, env: &mut BTreeMap<String, String>) {
    let at = usize::from(choices.byte()) << 8 | usize::from(choices.byte());
    let name = choices.one_of(&["app", "*", "\"a.b\"", "APP"]);
    let key = keys[at % keys.len()].replace("NAME", name);
    let key = key.replace(".*", ".\"*\"");
    // No file of this machine is anybody's password.
    if key.contains("file") {
        return;
    }
    let value =
        if key.ends_with("password") { format!("\"{SECRET}\"") } else { choices.one_of(&VALUES).into() };
    match choices.below(6) {
        0 => {
            let variable = key.to_uppercase().replace(|c: char| !c.is_alphanumeric(), "_");
            env.insert(format!("BURSAR_{variable}"), value.trim_matches('"').to_owned());
        }
        1 => writeln!(text, "{key}x = {value}").unwrap(),
        2 => writeln!(text, "{key} = {}", choices.byte()).unwrap(),
        _ => {
            let (table, key) = key.rsplit_once('.').unwrap_or(("pool", &key));
            writeln!(text, "[{table}]\n{key} = {value}").unwrap();
        }
    }
}

/// Pieces of statements at the console.
const WORDS: [&str; 40] = [
    "SELECT ",
    "* ",
    "FROM ",
    "bursar.",
    "leases ",
    "requests",
    "WHERE ",
    "tenant ",
    "NOT ",
    "AND ",
    "OR ",
    "IS NULL ",
    "= ",
    "<> ",
    "<= ",
    "'",
    "''",
    "\"",
    "$1 ",
    "$0",
    "(",
    ")",
    "count(*) ",
    "version() ",
    "ORDER BY ",
    "1 ",
    "DESC ",
    "LIMIT ",
    "-",
    "9223372036854775808 ",
    ";",
    "SHOW ",
    "POOLS ",
    "KILL_CLIENT ",
    "PAUSE ",
    "--",
    "\n",
    "/*",
    "*/",
    "\u{e9}",
];

#[test]
fn any_console_statement() {
    bolero::check!().with_max_len(300).for_each(|input: &[u8]| {
        let words: String = input.iter().map(|&byte| WORDS[usize::from(byte) % WORDS.len()]).collect();
        for text in [&*String::from_utf8_lossy(input), &words] {
            // No more statements than there is text, and the same behind a comment.
            let read = console::statements(text);
            assert!(read.is_none_or(|count| count <= text.len()));
            assert_eq!(console::statements(&format!("/* 'x /* */ */ {text}")), read);
        }
    });
}
