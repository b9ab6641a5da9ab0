//! Two to four clients who change their settings, in every spelling, in transactions and savepoints,
//! with values that are long, quoted or wrong; and who look at them, and at what depends on them.

use super::ops::{
    Rng, bind, close_statement, execute, kept, op, parse, query, setting, spare_the_server, sync,
};
use super::{Op, Pool, Program, START_UP, Step, plain};
use crate::support::msg;

/// Settings, and values as they are written in SET.
const SETTINGS: &[(&str, &[&str])] = &[
    ("work_mem", &["'5MB'", "6144", "'64kB'", "'7 MB'", "'much'", "-1"]),
    ("timezone", &["'Asia/Tokyo'", "'UTC'", "'europe/paris'", "'Nowhere/Land'", "3", "'<+05>-5'"]),
    ("application_name", &["'app'", "'App'", "''", "'it''s'", "'na\u{ef}ve \u{2603}'", "'a\tb'", "LONG"]),
    ("search_path", &["one", "two, public", "\"$user\", public", "'we''ird', \"Quo\"\"ted\"", "''", "LONG"]),
    ("search_path", &["one", "two", "public", "'one, two'"]),
    ("datestyle", &["german", "'ISO, DMY'", "iso, ymd", "'bogus'", "'SQL'"]),
    ("intervalstyle", &["iso_8601", "'postgres'", "Postgres_Verbose"]),
    ("bytea_output", &["escape", "'hex'"]),
    ("extra_float_digits", &["0", "3", "-5", "99"]),
    ("statement_timeout", &["'10min'", "0", "3600000"]),
    ("lock_timeout", &["'10min'", "0"]),
    ("client_min_messages", &["warning", "notice", "error"]),
    ("default_transaction_read_only", &["on", "off", "true"]),
    ("default_transaction_isolation", &["serializable", "'read committed'"]),
    (
        "app.mark",
        &["'#'", "'Quo\"te''s \\ ; drop table t --'", "'na\u{ef}ve'", "''", "'a\nb'", "LONG", "1.5"],
    ),
    ("app.\"Mark two\"", &["'#'"]),
    ("client_encoding", &["'latin1'", "'utf-8'", "UTF8", "'nonsense'"]),
    ("standard_conforming_strings", &["off", "on"]),
    ("role", &["group_role", "none", "'no_such_role'"]),
    ("plan_cache_mode", &["force_generic_plan", "auto"]),
    ("no_such_setting", &["1"]),
    ("server_version", &["'1'"]),
    ("shared_buffers", &["'1GB'"]),
];

/// What is not `SET name = value`.
const SPECIAL: &[&str] = &[
    "set time zone 'Asia/Tokyo'",
    "set time zone local",
    "set time zone interval '-08:00' hour to minute",
    "set names 'latin1'",
    "set names",
    "set schema 'two'",
    "reset role",
    "set session authorization app",
    "set session authorization default",
    "set local role group_role",
    "set session characteristics as transaction isolation level repeatable read, read only",
    "set session characteristics as transaction read write",
    "set transaction isolation level serializable",
    "reset all",
    "discard all",
    "discard temp",
    "reset no_such_setting",
    "reset app.never",
];

const BATCHES: &[&str] = &[
    "set work_mem = '5MB'; select 1 / 0",
    "begin; set work_mem = '5MB'; commit",
    "begin; set work_mem = '5MB'; rollback",
    "set work_mem = '5MB'; begin; set work_mem = '6MB'; rollback",
    "begin; set timezone = 'Asia/Tokyo'; savepoint a; set timezone = 'UTC'; rollback to a; commit",
    "begin; set local app.mark = 'local'; set app.mark = 'session'; commit",
    "begin; set app.mark = 'session'; set local app.mark = 'local'; commit",
    "set search_path = one; select place from pick; set search_path = two; select place from pick",
    "set app.mark = 'a'; commit; set app.mark = 'b'; select 1 / 0",
    "begin; set app.mark = 'a'; commit and chain; set app.mark = 'b'; rollback",
    "begin; set app.mark = 'a'; savepoint a; select 1 / 0",
];

/// What settings do.
const LOOKS: &[&str] = &[
    "select '2020-02-03 04:05:06+00'::timestamptz, interval '1 day 2 hours', '\\xdead'::bytea, 0.1::float4 / 3",
    "select place from pick",
    "select current_user, session_user, current_schemas(false)",
    "show transaction_isolation",
    "show transaction_read_only",
    "do $$ begin raise notice 'note'; end $$",
    "select 'a\\b'",
    "select '\u{e9}'",
    "insert into t values (#, 'set')",
];

/// Start-up parameters: wanted, odd, and wrong.
const STARTS: &[(&str, &str)] = &[
    ("application_name", "start"),
    ("application_name", "na\u{ef}ve"),
    ("TimeZone", "Asia/Tokyo"),
    ("timezone", "europe/paris"),
    ("search_path", "one"),
    ("search_path", "\"$user\", two"),
    ("datestyle", "german"),
    ("client_encoding", "latin1"),
    ("client_encoding", "'utf-8'"),
    ("app.mark", "start 'quoted'"),
    ("work_mem", "5MB"),
    ("extra_float_digits", "2"),
    ("options", "-c work_mem=6MB"),
    ("options", "-c app.mark=a\\ b --search_path=two"),
    ("options", "-cstatement_timeout=10min -c geqo=off"),
    ("work_mem", "much"),
    ("no_such_setting", "1"),
];

/// Those that are refused.
const WRONG: &[(&str, &str)] = &[("work_mem", "much"), ("no_such_setting", "1")];

pub(super) fn program(rng: &mut Rng, pool: Pool) -> Program {
    let (count, steps) = (2 + rng.below(3), super::steps(6 + rng.below(20)));
    // One setting or few, so that what is set is also read, reset and rolled back.
    let few: Vec<usize> = (0..1 + rng.below(3)).map(|_| rng.below(SETTINGS.len())).collect();
    let mut logins = vec![Vec::new(); count];
    if START_UP {
        for login in &mut logins {
            for _ in 0..rng.below(3) {
                let (name, value) = rng.pick(STARTS);
                // Of two of a name PostgreSQL checks both values and takes the last; which of two wrong ones
                // is named in the error is the order in which they are set.
                let wrong = |(name, value): &(String, String)| WRONG.contains(&(name, value));
                let pair = (name.to_owned(), value.to_owned());
                let twice =
                    login.iter().any(|(other, _): &(String, String)| other.eq_ignore_ascii_case(name));
                if !(twice || wrong(&pair) && login.iter().any(wrong)) {
                    login.push(pair);
                }
            }
        }
    }
    let mut client = 0;
    let steps = (0..steps)
        .map(|_| {
            if rng.one_in(2) {
                client = rng.below(count);
            }
            let evict = rng.one_in(6);
            Step { client, ops: spare_the_server(ops(rng, &few)), evict }
        })
        .collect();
    Program { steps, logins, ..Program::of(pool) }
}

fn ops(rng: &mut Rng, few: &[usize]) -> Vec<Op> {
    match rng.below(20) {
        0..=4 => vec![set(rng, few)],
        5..=9 => vec![look(rng, few)],
        10..=12 => vec![query(&rng.sql(plain::TRANSACTION))],
        13 => vec![setting(query(rng.pick(SPECIAL)))],
        14 => vec![setting(query(rng.pick(BATCHES)))],
        15 => vec![set(rng, few), query(&rng.sql(plain::TRANSACTION)), look(rng, few)],
        16 | 17 => extended(rng, few),
        18 => named(rng, few),
        _ => (0..2 + rng.below(3)).flat_map(|_| [set(rng, few), look(rng, few)]).collect(),
    }
}

fn choose(rng: &mut Rng, few: &[usize]) -> (&'static str, String) {
    let (name, values) = if rng.one_in(10) { rng.pick(SETTINGS) } else { SETTINGS[rng.pick(few)] };
    let number = rng.below(8).to_string();
    let value = match rng.pick(values) {
        "LONG" => format!("'{}'", "long, 'value' ".replace('\'', "''").repeat(22)),
        value => value.replace('#', &number),
    };
    (name, value)
}

/// A value as a string literal.
fn literal(value: &str) -> String {
    if value.starts_with('\'') && value.ends_with('\'') && !value.contains(", ") {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', "''"))
    }
}

fn set_text(rng: &mut Rng, few: &[usize]) -> String {
    let (name, value) = choose(rng, few);
    let plain_name = name.replace('"', "");
    match rng.below(12) {
        0..=3 => format!("set {name} = {value}"),
        4 => format!("SET SESSION {name} TO {value}"),
        5 | 6 => format!("set local {name} = {value}"),
        7 => format!("reset {name}"),
        8 => format!("set {name} to default"),
        9 => format!("/* a comment */ set\t{} = {value};", name.to_uppercase()),
        10 => format!("select set_config('{plain_name}', {}, false)", literal(&value)),
        _ => format!("select set_config('{plain_name}', {}, true)", literal(&value)),
    }
}

fn set(rng: &mut Rng, few: &[usize]) -> Op {
    let text = set_text(rng, few);
    named_well(&text, query(&text))
}

/// A message with this text. Of a name that is none nobody can say whether it was set.
fn named_well(text: &str, op: Op) -> Op {
    if text.to_ascii_lowercase().contains("mark two") { kept(op) } else { setting(op) }
}

fn look_text(rng: &mut Rng, few: &[usize]) -> String {
    if rng.one_in(3) {
        return rng.sql(LOOKS);
    }
    let (name, _) = choose(rng, few);
    if rng.one_in(3) {
        format!("show {name}")
    } else {
        format!("select current_setting('{}', true)", name.replace('"', ""))
    }
}

fn look(rng: &mut Rng, few: &[usize]) -> Op {
    query(&look_text(rng, few))
}

/// In the extended protocol, as drivers send them: also with everything a parameter.
fn extended(rng: &mut Rng, few: &[usize]) -> Vec<Op> {
    let mut ops = Vec::new();
    for _ in 0..1 + rng.below(3) {
        let mut resets = false;
        if rng.one_in(3) {
            let (name, value) = choose(rng, few);
            let (name, value) = (name.replace('"', ""), value.trim_matches('\'').replace("''", "'"));
            let local = if rng.one_in(3) { "t" } else { "f" };
            // Which setting it is cannot be seen in the text.
            ops.push(kept(parse("", "select set_config($1, $2, $3)")));
            let values = [Some(name.as_str()), Some(value.as_str()), Some(local)];
            ops.push(op(format!("B(,,{name}; {value}; {local})"), msg::bind_with("", "", &values)));
        } else {
            let text = if rng.one_in(2) { set_text(rng, few) } else { look_text(rng, few) };
            // What follows in the same segment may see the server's value (docs/compatibility.md).
            resets = text.starts_with("reset") || text.ends_with("default");
            ops.push(named_well(&text, parse("", &text)));
            ops.push(bind("", ""));
        }
        ops.push(execute("", 0));
        if rng.one_in(4) || resets {
            ops.push(sync());
        }
    }
    if !rng.one_in(8) {
        ops.push(sync());
    }
    ops
}

/// A SET or a look that is prepared now and runs again later.
fn named(rng: &mut Rng, few: &[usize]) -> Vec<Op> {
    let name = rng.pick(&["a", "b"]);
    let mut ops = Vec::new();
    if rng.one_in(2) {
        let text = if rng.one_in(2) { set_text(rng, few) } else { look_text(rng, few) };
        if rng.one_in(2) {
            ops.push(setting(close_statement(name)));
        }
        ops.push(named_well(&text, parse(name, &text)));
    }
    ops.extend([bind("", name), execute("", 0), sync()].map(setting));
    ops
}
