//! The words of budgets.md §2.5, and the table for readers.

use super::*;
use crate::pool::cell::OwnLock;
use crate::state::SettingsError;
use crate::tag::{Key, TagError};
use crate::wire::startup::StartupError;
use std::collections::BTreeSet;
use std::sync::Arc;

fn standing() -> Box<Standing> {
    Box::new(Standing {
        request: Some("5f0c".into()),
        request_holds: 1,
        request_limit: 3,
        tenant: "acme".into(),
        tenant_holds: 8,
        tenant_limit: 8,
        tenant_waits: 41,
        pool_holds: 17,
        pool_size: 17,
        pool_idle_in_tx: 9,
        longest: Some(Holder {
            route: Some("/api/orders".into()),
            tenant: "acme".into(),
            held: Duration::from_secs(12),
            idle: Some(Duration::from_millis(11_200)),
        }),
        retry: Duration::from_millis(250),
    })
}

fn texts(report: &Report) -> (&str, &str, &str) {
    let text = |field: &'static str, of: &Option<String>| {
        assert!(of.is_some(), "{} without {field}", report.message);
    };
    text("DETAIL", &report.detail);
    text("HINT", &report.hint);
    (
        &report.message,
        report.detail.as_deref().unwrap_or_default(),
        report.hint.as_deref().unwrap_or_default(),
    )
}

#[test]
fn a_wait_in_vain_is_told_word_for_word() {
    let waited = Duration::from_millis(3000);
    let report = refusal(&Refusal::WaitedTooLong { waited, dial_error: None, standing: standing() });
    assert_eq!(
        texts(&report),
        (
            "bursar: no backend became available in time",
            "waited 3000 ms; request 5f0c holds 1 of 3 leases; tenant acme uses 8 of 8 backends, \
             41 waiting; pool 17/17, 9 of them idle in transaction.",
            "Retry after 250 ms. Longest holder: route \"/api/orders\", idle in transaction 11.2 s \
             (SHOW LEASES).",
        )
    );
}

#[test]
fn who_waits_for_whom_is_told_word_for_word() {
    let hint = "Retry the transaction. Avoid opening a session while another one is in a transaction.";
    let many = "17 backends are held by 16 requests that each wait for another backend. This request is the youngest.";
    let report = refusal(&Refusal::Deadlock { backends: 17, requests: 16, standing: standing() });
    assert_eq!(texts(&report), ("bursar: connection pool deadlock", many, hint));
    assert_eq!((report.severity, report.code), (Severity::Error, "40P01"));
    let report = overstay(&Overstay::Deadlock { backends: 1, requests: 1 });
    let alone = "1 backend is held by this request, which waits for another one.";
    let nothing = format!("Nothing was committed. {hint}");
    assert_eq!(texts(&report), ("bursar: connection pool deadlock", alone, &*nothing));

    let (waits, holds) = ((71, "8f1c22".into()), (70, "77ab01".into()));
    let report = own_lock(&OwnLock { waits, holds, idle: Duration::from_millis(1_120) });
    assert_eq!((report.severity, report.code), (Severity::Error, "40P01"));
    assert_eq!(
        texts(&report),
        (
            "bursar: request waits for a lock of its own",
            "statement 8f1c22 (backend 71) waits for a lock of another session of this request, \
             idle in transaction for 1.1 s after statement 77ab01 (backend 70).",
            "Change the row in the session that has it, or finish that one before another changes \
             the same row.",
        )
    );
}

#[test]
fn the_tenth_session_is_told_word_for_word() {
    let report = refusal(&Refusal::TooManyLeases { ordinal: 10, limit: 9, own: true, standing: standing() });
    assert_eq!(
        texts(&report),
        (
            "bursar: request opened too many sessions",
            "request 5f0c opened session 10, budget bursar.max_leases=9.",
            "Reuse one session for the request or batch the statement. Not retryable.",
        )
    );
}

#[test]
fn nesting_too_deep_is_told_word_for_word() {
    let standing = Box::new(Standing { request_holds: 3, ..*standing() });
    let report = refusal(&Refusal::NestsTooDeep { standing });
    assert_eq!(
        texts(&report).1,
        "request 5f0c holds 3 sessions, all idle in transaction, and asked for a 4th (max_concurrent=3)."
    );
    assert_eq!(
        (nth(1), nth(2), nth(3), nth(8)),
        ("a 1st".into(), "a 2nd".into(), "a 3rd".into(), "an 8th".into())
    );
    assert_eq!((nth(11), nth(12), nth(113)), ("an 11th".into(), "a 12th".into(), "a 113th".into()));
}

#[test]
fn an_idle_transaction_is_told_word_for_word() {
    let seconds = Duration::from_secs;
    let age = Duration::from_millis(31_400);
    let why = Overstay::Idle { idle: seconds(10), limit: seconds(10), age, waiting: 12 };
    assert_eq!(
        texts(&overstay(&why)),
        (
            "bursar: transaction rolled back after being idle too long",
            "idle 10.0 s (budget 10 s) while 12 clients waited; transaction age 31.4 s.",
            "Nothing was committed. Do not hold a transaction open across network calls.",
        )
    );
}

#[test]
fn a_login_that_cannot_go_on_closes() {
    let waited = Duration::from_secs(3);
    let dial_error = Some("connection refused".into());
    let report = refusal_at_login(&Refusal::WaitedTooLong { waited, dial_error, standing: standing() });
    assert_eq!((report.severity, report.code), (Severity::Fatal, "57P03"));
    let report = refusal_at_login(&Refusal::QueueFull { limit: 1, standing: standing() });
    assert_eq!((report.severity, report.code), (Severity::Fatal, "53300"));
}

fn unavailable() -> Refusal {
    let opens = Duration::from_millis(3_600);
    let error = Some("connection refused".into());
    Refusal::Unavailable { opens, own: false, error, standing: standing() }
}

#[test]
fn an_open_breaker_is_told_word_for_word_and_closes_logins_only() {
    let report = refusal(&unavailable());
    assert_eq!((report.severity, report.code), (Severity::Error, "53300"));
    let (message, detail, hint) = texts(&report);
    assert_eq!(message, "bursar: the server cannot be reached");
    assert!(detail.starts_with("tried again in 3600 ms; request 5f0c"), "{detail}");
    assert!(detail.ends_with(" The last try: connection refused"), "{detail}");
    assert!(hint.ends_with(" ms. The server's circuit breaker is open (SHOW UPSTREAMS)."), "{hint}");
    let report = refusal_at_login(&unavailable());
    assert_eq!((report.severity, report.code), (Severity::Fatal, "57P03"));
}

/// One of everything, with the placeholders `docs/errors.md` uses.
fn everything() -> Vec<Report> {
    let time = Duration::from_secs(1);
    let name = || Arc::<str>::from("x");
    let refusals = [
        Refusal::WaitedTooLong { waited: time, dial_error: None, standing: standing() },
        Refusal::QueueFull { limit: 1, standing: standing() },
        unavailable(),
        Refusal::TenantQueueFull { limit: 1, standing: standing() },
        Refusal::TooManyLeases { ordinal: 2, limit: 1, own: false, standing: standing() },
        Refusal::DbTimeUsedUp { used: time, limit: time, standing: standing() },
        Refusal::NestsTooDeep { standing: standing() },
        Refusal::TooManyPins { tenant: name(), tenant_pins: (2, 2), pool_pins: (3, 4) },
        Refusal::TooManySessions { tenant: name(), sessions: 1, limit: 1 },
        Refusal::Deadlock { backends: 2, requests: 2, standing: standing() },
        Refusal::TooOld { age: time, limit: time },
        Refusal::Closing,
    ];
    let overstays = [
        Overstay::Age { age: time, limit: time, waiting: 0 },
        Overstay::DbTime { used: time, limit: time },
        Overstay::Idle { idle: time, limit: time, age: time, waiting: 0 },
        Overstay::Leaked { idle: time, limit: time, age: time, waiting: 0 },
        Overstay::Pinned { idle: time, limit: time, pin: "listen" },
        Overstay::Deadlock { backends: 2, requests: 2 },
    ];
    let overruns = [
        Overrun::Statement { ran: time, limit: time, own: false },
        Overrun::DbTime { used: time, limit: time },
        Overrun::Stalled { stalled: time, limit: time },
        Overrun::Deadline { spent: time, limit: time },
    ];
    let warnings = [
        Warning::NestsTooDeep { holds: 2, limit: 1 },
        Warning::TooManyLeases { ordinal: 2, limit: 1 },
        Warning::DbTime { used: time, limit: time },
        Warning::TenantOverCap { holds: 2, limit: 1 },
        Warning::Age { age: time, limit: time },
        Warning::Idle { idle: time, limit: time },
        Warning::Statement { ran: time, limit: time },
        Warning::Spared { key: "budget.transaction.max_age", spent: time, limit: time },
        Warning::Stalled { stalled: time, limit: time },
        Warning::TooManyPins { tenant_pins: (3, 2), pool_pins: (3, 4) },
        Warning::ManySessions { sessions: 2, limit: 1 },
    ];
    let faults = [
        Fault::TooManyClients { limit: 1 },
        Fault::LoginTimeout,
        Fault::Crowded { limit: 1 },
        Fault::UsersUnavailable,
        Fault::WrongPassword { user: name() },
        Fault::NoSuchDatabase { database: name() },
        Fault::BadStartup,
        Fault::NoUser,
        Fault::UnsupportedProtocol { major: 2, minor: 0 },
        Fault::EarlyData,
        Fault::TlsRequired,
        Fault::Replication,
        Fault::InvalidMessageType { tag: 0 },
        Fault::InvalidMessageLength,
        Fault::InvalidMessage,
        Fault::ServerUnreachable { error: name() },
        Fault::BackendLost,
        Fault::OutcomeUnknown,
        Fault::CancelledInQueue,
        Fault::UndefinedStatement { name: name() },
        Fault::StalePlan,
        Fault::TooManyNames,
        Fault::TooManyStatements,
        Fault::StateRefused { kind: "listen" },
        Fault::TransactionBlock,
        Fault::TransactionFailed,
        Fault::Shutdown,
        Fault::Killed,
        Fault::ConsoleSyntax,
        Fault::ConsoleUnsupported,
        Fault::ConsoleDenied { user: name() },
        Fault::RightMissing { right: crate::config::Right::Act },
        Fault::ConsoleFailed { reason: name() },
    ];
    let all = refusals.iter().map(refusal).chain(overstays.iter().map(overstay));
    let all = all.chain(overruns.iter().map(overrun));
    let stalled = overrun(&Overrun::Stalled { stalled: time, limit: time });
    let all = all.chain([stalled.fatal(), hit_instead(&overruns[0])]);
    let all = all.chain(overstays.iter().map(|why| closing(overstay(why))));
    let all = all.chain(warnings.iter().map(warning)).chain(faults.iter().map(fault));
    let all = all.chain([loosens(Key::MaxLeases, "9", "max_leases=8")]);
    let own = own_lock(&OwnLock { waits: (1, "a".into()), holds: (2, "b".into()), idle: time });
    let all = all.chain([own]);
    let startups = [
        StartupError::Layout,
        StartupError::NoUser,
        StartupError::Encoding("x".into()),
        StartupError::Replication("x".into()),
        StartupError::Switch("x".into()),
        StartupError::SwitchValue("x".into()),
    ];
    let tags = [unknown_tag("x"), bad_tag(&TagError::Unprintable { key: Key::Tenant })];
    let tags = tags.into_iter().chain([request::over("x")]);
    let settings = [SettingsError::Name("x".into()), SettingsError::TooMany];
    let all = all.chain(isolation()).chain(kept_out());
    all.chain(startups.iter().map(startup)).chain(tags).chain(settings.iter().map(bad_setting)).collect()
}

/// Who is not let in without having been asked for a password.
fn kept_out() -> Vec<Report> {
    let attempt =
        crate::auth::hba::Attempt { address: None, tls: false, database: "x", user: "x", replication: false };
    [
        Denied::NoRule(&attempt),
        Denied::Rejected(&attempt),
        Denied::NoCertificate,
        Denied::Certificate { user: "x" },
        Denied::NoPeer,
        Denied::Peer { user: "x" },
    ]
    .iter()
    .map(denied)
    .collect()
}

/// What is said where work would mix. V4 is nobody's to be told.
fn isolation() -> Vec<Report> {
    use super::isolation::*;
    use crate::metrics::{Isolation, Label};
    let tag = crate::tag::Tag::default();
    let told = Isolation::ALL.iter().filter(|kind| **kind != Isolation::V4);
    let told = told.map(|kind| violation(*kind, &tag, "app"));
    let mut warned = violation(Isolation::V3, &tag, "app");
    (warned.severity, warned.code) = (Severity::Warning, "01000");
    told.chain([warned])
        .chain([
            expelled(),
            quarantined(&tag, Duration::from_secs(60)),
            unfenced(),
            bad_value(crate::state::fence::BadValue),
            reserved_at_login("x"),
            unrestored(),
            lost("x"),
        ])
        .collect()
}

#[test]
fn the_table_for_readers_says_the_same() {
    let page = include_str!("../../../docs/errors.md");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.split(" | ").map(str::trim).collect();
        let [_, severity, code, message, ..] = cells[..] else { return None };
        let code = code.strip_prefix('`')?.strip_suffix('`')?;
        Some((severity.to_owned(), code.to_owned(), message.trim_matches('`').to_owned()))
    });
    let told: BTreeSet<_> = rows.collect();
    let done: BTreeSet<_> = everything()
        .into_iter()
        .map(|report| {
            let severity = format!("{:?}", report.severity).to_uppercase();
            (severity, report.code.to_owned(), report.message.into_owned())
        })
        .collect();
    let only_told: Vec<_> = told.difference(&done).collect();
    let only_done: Vec<_> = done.difference(&told).collect();
    assert!(only_told.is_empty() && only_done.is_empty(), "page: {only_told:?}, code: {only_done:?}");
    assert_eq!(done.len(), 97, "every row is another one");
}

#[test]
fn budgets_name_numbers_and_the_way_out_and_keep_them_out_of_the_message() {
    for report in everything() {
        if report.message.starts_with("bursar:") && report.code != "0A000" {
            assert!(report.message.chars().all(|c| !c.is_ascii_digit()), "{}", report.message);
            assert!(report.detail.is_some() || report.hint.is_some(), "{}", report.message);
        }
        assert_eq!(report.code.len(), 5);
    }
}

/// What is thrown away by its SQLSTATE, as far as it is known: pgjdbc's pooled connections
/// (`PGPooledConnection.fatalClasses`), HikariCP (`ProxyConnection.checkException`).
#[test]
fn no_pool_throws_a_live_connection_away() {
    let evicts = |code: &str| {
        ["08", "53", "58", "60", "99", "F0", "XX"].iter().any(|class| code.starts_with(class))
            || ["0A000", "57P01", "57P02", "57P03", "01002", "JZ0C0", "JZ0C1"].contains(&code)
    };
    let evicted: BTreeSet<_> = everything()
        .into_iter()
        .filter(|report| report.severity == Severity::Error && evicts(report.code))
        .map(|report| (report.code, report.message.into_owned()))
        .collect();
    let evicted: Vec<_> = evicted.iter().map(|(code, message)| (*code, &**message)).collect();
    // Too many is too many, and is for pgjdbc's own pools only. What a pool does not offer it never will.
    let known = [
        ("0A000", "bursar: the console does not support this"),
        ("0A000", "bursar: the statement would keep its backend beyond the transaction"),
        ("0A000", "bursar: transaction blocks are not allowed in statement mode"),
        ("0A000", "cached plan must not change result type"),
        ("53300", "bursar: no backend became available in time"),
        ("53300", "bursar: the server cannot be reached"),
        ("53300", "bursar: too many clients wait for a backend"),
        ("53400", "bursar: too many clients of this tenant wait for a backend"),
        ("53400", "bursar: too many different prepared statements"),
        ("53400", "bursar: too many prepared statements of one session"),
    ];
    assert_eq!(evicted, known);
    let ended =
        [Overstay::Age { age: Duration::ZERO, limit: Duration::ZERO, waiting: 0 }].map(|why| overstay(&why));
    for report in &ended {
        assert!(report.severity == Severity::Error && !evicts(report.code));
    }
}

#[test]
fn a_login_counts_as_what_ended_it() {
    use crate::metrics::Login;
    let user: Arc<str> = "app".into();
    for (told, result) in [
        (fault(&Fault::WrongPassword { user: user.clone() }), Login::Auth),
        (fault(&Fault::ConsoleDenied { user }), Login::Auth),
        (denied(&Denied::NoCertificate), Login::Auth),
        (fault(&Fault::TooManyClients { limit: 1 }), Login::Limit),
        (fault(&Fault::LoginTimeout), Login::Timeout),
        (fault(&Fault::Crowded { limit: 1 }), Login::Limit),
        (fault(&Fault::BadStartup), Login::Protocol),
        (fault(&Fault::NoSuchDatabase { database: "x".into() }), Login::Upstream),
        (fault(&Fault::ServerUnreachable { error: "refused".into() }), Login::Upstream),
        (refusal_at_login(&Refusal::Closing), Login::Draining),
        (bad_setting(&SettingsError::TooMany), Login::Limit),
        (startup(&StartupError::Layout), Login::Protocol),
    ] {
        assert_eq!(login_result(&told), result, "{}", told.message);
    }
}
