//! Every view and every command against every set of rights, as statements of either protocol.

use super::fake::Fake;
use super::session::{Session, Step};
use super::source::Command;
use super::sql::{Statement, parse};
use super::tests::{Replies, Say, field, kinds};
use super::views::{COMMANDS, VIEWS};
use crate::config::Right;
use crate::wire::frontend::Kind;
use bytes::BytesMut;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Lists that name the keeper, and what he may.
const SETS: [(&[&str], &[Right]); 6] = [
    (&[], &[]),
    (&["view"], &[Right::View]),
    (&["act"], &[Right::View, Right::Act]),
    (&["sql"], &[Right::View, Right::Sql]),
    (&["act", "sql"], &Right::ALL),
    (&["users"], &Right::ALL),
];

/// With these lists naming the keeper, and another one in any case.
fn config(lists: &[&str]) -> String {
    let line = |list: &str| {
        let keeper = if lists.contains(&list) { ", \"keeper\"" } else { "" };
        format!("{list} = [\"other\"{keeper}]\n")
    };
    let lines: String = ["users", "view", "act", "sql"].into_iter().map(line).collect();
    format!("[auth]\nmethod = \"trust\"\n[admin]\n{lines}")
}

fn fake(lists: &[&str]) -> Arc<Fake> {
    Arc::new(Fake { quoting: true, ..Fake::planted().configured(&config(lists)) })
}

/// The same statement by both protocols, each in a session of its own.
async fn both(fake: &Arc<Fake>, text: &str) -> [Replies; 2] {
    let simple = Say::default().query(text).query("select 1").hear(fake).await;
    let extended = Say::default().parse("", text).bind("").execute(0).sync().query("select 1");
    [simple, extended.hear(fake).await]
}

/// What follows is refused for want of this right, and nothing else is.
fn refused(replies: &Replies, right: Right, what: &str) {
    let error = replies.iter().find(|(kind, _)| *kind == b'E').unwrap_or_else(|| panic!("{what} is allowed"));
    let hint =
        format!("Name the user in admin.{0}, or in admin.users for every right, and reload.", right.name());
    assert_eq!([b'S', b'C', b'M'].map(|f| field(error, f)), ["ERROR", "42501", "bursar: a right is missing"]);
    assert_eq!(field(error, b'D'), format!("It takes the right \"{}\".", right.name()), "{what}");
    assert_eq!(field(error, b'H'), hint, "{what}");
    assert!(kinds(replies).ends_with("EZTDCZ"), "{what}: and the session goes on: {}", kinds(replies));
}

fn says(replies: &Replies, text: &str) -> bool {
    replies.iter().any(|(_, body)| body.windows(text.len()).any(|part| part == text.as_bytes()))
}

#[tokio::test]
async fn every_view_is_for_who_may_see_it_and_statements_for_who_may_see_those() {
    let mut quoting = BTreeSet::new();
    for (lists, rights) in SETS {
        let fake = fake(lists);
        for view in VIEWS {
            let text = format!("select * from bursar.{}", view.name);
            for statement in [format!("show {}", view.name), text] {
                for replies in both(&fake, &statement).await {
                    let what = format!("{statement} with {lists:?}");
                    if rights.contains(&Right::View) {
                        assert!(!kinds(&replies).contains('E'), "{what}");
                        assert!(kinds(&replies).contains("DC"), "{what}");
                    } else {
                        refused(&replies, Right::View, &what);
                    }
                    let sees = rights.contains(&Right::Sql) && !view.quotes.is_empty();
                    assert_eq!(says(&replies, Fake::TEXT), sees, "{what}");
                    quoting.extend(sees.then_some(view.name));
                }
            }
        }
        let request = both(&fake, "select id from bursar.request('req-1')").await;
        for replies in request {
            assert_eq!(says(&replies, "req-1"), rights.contains(&Right::View));
        }
    }
    assert_eq!(quoting, BTreeSet::from(["leases", "prepared"]));
}

#[test]
fn columns_that_quote_statements_exist() {
    for view in VIEWS {
        for quoted in view.quotes {
            assert!(view.columns.iter().any(|column| column.name == *quoted), "{}.{quoted}", view.name);
        }
    }
}

/// What cannot be seen cannot be asked after, either.
#[tokio::test]
async fn a_hidden_statement_is_null_wherever_it_is_named() {
    let select = format!("select id from leases where last_statement = 'select 7 /* {} */'", Fake::TEXT);
    for (lists, count, hidden) in [(&["view"][..], "0", "2"), (&["act"], "0", "2"), (&["sql"], "1", "1")] {
        let fake = fake(lists);
        for replies in both(&fake, "select count(*) from leases where last_statement is null").await {
            assert!(says(&replies, &format!("\0\x01\0\0\0\x01{hidden}")), "{lists:?}");
        }
        for replies in both(&fake, &select.replace("select id", "select count(*)")).await {
            assert!(says(&replies, &format!("\0\x01\0\0\0\x01{count}")), "{lists:?}");
        }
        for replies in both(&fake, "select id from leases order by last_statement").await {
            assert_eq!(kinds(&replies).matches('D').count(), 3, "{lists:?}");
        }
    }
}

/// The commands of HELP, each written as shortly as it can be.
fn commands() -> Vec<(String, Command)> {
    let example = |help: &&str| help.split_once(" [").map_or(*help, |(short, _)| short).replace(" id", " 7");
    let examples: Vec<String> = COMMANDS.iter().map(|(help, _)| example(help)).collect();
    let commands = examples.into_iter().filter(|text| !text.starts_with("SELECT"));
    let parsed = |text: String| match parse(&text).map(|mut all| all.pop()) {
        Ok(Some(Statement::Command(command))) => (text, command),
        other => panic!("{text}: {other:?}"),
    };
    commands.map(parsed).collect()
}

#[tokio::test]
async fn every_command_is_for_who_may_act() {
    let commands = commands();
    assert_eq!(commands.len(), 13);
    for (text, command) in commands {
        assert_eq!(command.right(), Right::Act, "{text}");
        for (lists, rights) in SETS {
            let fake = fake(lists);
            // Those that wait for ever in the planted house are only looked at.
            if rights.contains(&Right::Act) && matches!(command, Command::WaitClose(_)) {
                continue;
            }
            for replies in both(&fake, &text).await {
                let what = format!("{text} with {lists:?}");
                if rights.contains(&Right::Act) {
                    assert_eq!(fake.commands.lock().pop().as_ref(), Some(&command), "{what}");
                } else {
                    refused(&replies, Right::Act, &what);
                }
            }
            assert!(fake.commands.lock().is_empty(), "{lists:?} {text}");
        }
    }
}

#[tokio::test]
async fn what_drivers_ask_of_any_server_takes_no_right() {
    let fake = fake(&[]);
    for text in [
        "select 1",
        "select version()",
        "show server_version",
        "show transaction isolation level",
        "begin",
        "commit",
        "rollback",
        "savepoint a",
        "set client_encoding to 'UTF8'",
        "discard all",
        "deallocate all",
    ] {
        for replies in both(&fake, text).await {
            assert!(!kinds(&replies).contains('E'), "{text}: {}", kinds(&replies));
        }
    }
}

#[tokio::test]
async fn a_refusal_ends_the_query_and_fails_the_transaction() {
    let fake = fake(&["view"]);
    let replies =
        Say::default().query("begin; show version; pause; show version").query("commit").hear(&fake).await;
    assert_eq!(kinds(&replies), "CTDCEZCZ");
    assert_eq!((&replies[5].1[..], &replies[6].1[..]), (&b"E"[..], &b"ROLLBACK\0"[..]));
    assert!(fake.commands.lock().is_empty());
}

/// One message to a session that is there already.
fn tell(session: &mut Session, fake: &Fake, kind: Kind, body: &[u8]) -> (Step, String) {
    let mut out = BytesMut::new();
    let step = session.frame(fake, kind, body, &mut out);
    (step, String::from_utf8_lossy(&out).into_owned())
}

#[test]
fn a_reload_holds_from_the_next_statement_on() {
    let fake = fake(&["users"]);
    let mut session = Session::new(Fake::keeper());
    let query = |session: &mut Session, text: &str| {
        let (step, said) = tell(session, &fake, Kind::Query, format!("{text}\0").as_bytes());
        (matches!(step, Step::Run(_)), said.contains("42501"), said.contains(Fake::TEXT))
    };
    let execute = |session: &mut Session| {
        tell(session, &fake, Kind::Bind, b"\0p\0\0\0\0\0\0\0");
        let (_, said) = tell(session, &fake, Kind::Execute, b"\0\0\0\0\0");
        tell(session, &fake, Kind::Sync, b"");
        (said.contains("42501"), said.contains(Fake::TEXT))
    };
    tell(&mut session, &fake, Kind::Parse, b"p\0show leases\0\0\0");
    for (lists, sees, acts, reads) in [
        (&["users"][..], true, true, true),
        (&["act"], true, true, false),
        (&["sql"], true, false, true),
        (&["view"], true, false, false),
        (&[], false, false, false),
        (&["users"], true, true, true),
    ] {
        fake.reload(&config(lists));
        assert_eq!(query(&mut session, "show leases"), (false, !sees, reads), "{lists:?}");
        assert_eq!(execute(&mut session), (!sees, reads), "{lists:?}");
        assert_eq!(query(&mut session, "reload"), (acts, !acts, false), "{lists:?}");
        if acts {
            session.done(&*fake, Ok("RELOAD".into()), &mut BytesMut::new());
        }
    }
    // With nobody named the console is this machine's, as long as nobody is asked for a password.
    fake.reload("[auth]\nmethod = \"trust\"");
    assert_eq!(query(&mut session, "show leases"), (false, false, true));
    fake.reload("[auth]\nmethod = \"scram-sha-256\"");
    assert_eq!(query(&mut session, "show leases"), (false, true, false));
}
