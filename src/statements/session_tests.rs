//! Statements of a session, message by message.

use super::super::table::{Facts, Planner, Sharing, Table};
use super::*;

#[test]
fn the_unnamed_statement_follows_its_session() {
    let mut statements = Statements::default();
    assert_eq!(statements.use_unnamed(), Before::Close);
    assert_eq!(statements.use_unnamed(), Before::Nothing);
    statements.parse(b"", Some(b"P1"), Scan::default());
    statements.acknowledged();
    statements.acknowledged();
    assert_eq!(statements.use_unnamed(), Before::Nothing);
    statements.moved();
    assert_eq!(statements.use_unnamed(), Before::Parse(b"P1"));
    statements.acknowledged();
    assert!(statements.query());
    statements.acknowledged();
    assert!(!statements.query());
    statements.moved();
    assert_eq!(statements.use_unnamed(), Before::Close);
    assert!(!statements.pins());
}

#[test]
fn a_failed_parse_leaves_none_and_a_swept_one_the_old() {
    let mut statements = Statements::default();
    statements.parse(b"", Some(b"P1"), Scan::default());
    statements.acknowledged();
    statements.parse(b"", Some(b"P2"), Scan::default());
    statements.swept(1, false, &mut Held::default());
    statements.moved();
    assert_eq!(statements.use_unnamed(), Before::Parse(b"P1"));
    statements.acknowledged();
    statements.parse(b"", Some(b"bad"), Scan::default());
    statements.swept(1, true, &mut Held::default());
    statements.moved();
    assert_eq!(statements.use_unnamed(), Before::Close);
}

#[test]
fn a_failed_parse_of_bursars_leaves_the_clients_statement() {
    let mut statements = Statements::default();
    statements.parse(b"", Some(b"P1"), Scan::default());
    statements.acknowledged();
    statements.moved();
    for _ in 0..2 {
        assert_eq!(statements.use_unnamed(), Before::Parse(b"P1"));
        statements.swept(1, true, &mut Held::default());
    }
}

#[test]
fn what_a_bind_binds_is_the_last_parse_that_was_not_swept() {
    let mut statements = Statements::default();
    let local = Scan { only_local_sets: true, ..Scan::default() };
    statements.parse(b"", Some(b"set"), Scan::default());
    statements.acknowledged();
    statements.parse(b"", Some(b"set local"), local);
    assert_eq!(statements.unnamed(), (local, Some(&b"set local"[..])));
    statements.swept(1, false, &mut Held::default());
    assert_eq!(statements.unnamed(), (Scan::default(), Some(&b"set"[..])));
    statements.parse(b"", Some(b"set local"), local);
    statements.acknowledged();
    statements.moved();
    assert_eq!(statements.unnamed(), (local, Some(&b"set local"[..])));
    assert!(statements.query());
    assert_eq!(statements.unnamed(), (Scan::default(), None));
}

/// Drivers that do not name statements parse the same text for each use, in a pipeline as well.
#[test]
fn a_pipeline_that_parses_the_same_again_keeps_one_text() {
    let texts = |statements: &Statements| {
        statements.flight.iter().filter(|(_, flight)| matches!(flight, Flight::Unnamed { .. })).count()
    };
    for acknowledged in 0..=4 {
        for failed in [false, true] {
            let mut statements = Statements::default();
            for _ in 0..2 {
                statements.parse(b"", Some(b"old"), Scan::default());
                statements.acknowledged();
            }
            for _ in 0..4 {
                statements.parse(b"", Some(b"new"), Scan::default());
                assert_eq!(statements.unnamed().1, Some(&b"new"[..]));
            }
            assert_eq!(texts(&statements), 1);
            for _ in 0..acknowledged {
                statements.acknowledged();
                assert_eq!(statements.unnamed().1, Some(&b"new"[..]));
            }
            let left = 4 - acknowledged;
            statements.swept(left, failed, &mut Held::default());
            let has = match (failed && left > 0, acknowledged) {
                (true, _) => None,
                (false, 0) => Some(&b"old"[..]),
                (false, _) => Some(&b"new"[..]),
            };
            assert_eq!(statements.unnamed().1, has, "{acknowledged} acknowledged, the next failed: {failed}");
        }
    }
}

/// An error sweeps what comes up to the Sync and nothing behind it.
#[test]
fn a_parse_behind_a_sync_counts_on_nothing_before_it() {
    let mut statements = Statements::default();
    statements.parse(b"", Some(b"text"), Scan::default());
    statements.sync();
    statements.parse(b"", Some(b"text"), Scan::default());
    statements.swept(1, true, &mut Held::default());
    assert_eq!(statements.unnamed().1, Some(&b"text"[..]));
    statements.acknowledged();
    assert_eq!(statements.unnamed().1, Some(&b"text"[..]));
}

#[test]
fn private_statements_pin_until_they_are_closed() {
    let mut statements = Statements::default();
    statements.parse(b"a", Some(b"P"), Scan::default());
    assert!(!statements.pins());
    statements.acknowledged();
    assert!(statements.pins());
    statements.close(b"a");
    statements.acknowledged();
    assert!(!statements.pins());
    statements.parse(b"b", None, Scan::default());
    statements.swept(1, true, &mut Held::default());
    assert!(!statements.pins());
    statements.parse(b"", None, Scan::default());
    statements.acknowledged();
    assert!(statements.pins());
}

/// The Parse may be swept by an error before it; what the Bind then meets would be the unnamed
/// statement of whoever had the backend before.
#[test]
fn a_use_behind_a_sync_waits_for_the_parse_before_it() {
    let mut statements = Statements::default();
    statements.parse(b"", Some(b"P1"), Scan::default());
    assert_eq!(statements.use_unnamed(), Before::Nothing);
    statements.sync();
    assert_eq!(statements.use_unnamed(), Before::Replies);
    statements.swept(1, false, &mut Held::default());
    assert_eq!(statements.use_unnamed(), Before::Close);
}

/// The Close of what an earlier segment parses must not be undone into something that never was.
#[test]
fn what_is_on_its_way_is_not_closed_for_another_before_it_is_there() {
    let mut table = Table::default();
    let mut parsed = |tail: &[u8]| {
        table.intern(Sharing::Among(Planner::default()), tail, |_| Facts::default()).unwrap().id
    };
    let (one, two) = (parsed(b"1\0\0\0"), parsed(b"2\0\0\0"));
    let (mut statements, mut held) = (Statements::default(), Held::default());
    assert_eq!(statements.need(one, &mut held, 1), Need::Parse { evict: None });
    statements.sync();
    assert_eq!(statements.need(two, &mut held, 1), Need::Replies);
    statements.swept(1, true, &mut held);
    assert_eq!(statements.need(two, &mut held, 1), Need::Parse { evict: None });
    assert_eq!(statements.need(one, &mut held, 1), Need::Parse { evict: Some(two) });
    statements.swept(3, false, &mut held);
    assert!(held.is_empty());
}

#[test]
fn a_query_drops_what_was_parsed_before_it() {
    let mut statements = Statements::default();
    statements.parse(b"", Some(b"P1"), Scan::default());
    assert!(statements.query());
    statements.acknowledged();
    statements.acknowledged();
    statements.moved();
    assert_eq!(statements.use_unnamed(), Before::Close);
}

#[test]
fn private_statements_are_bounded() {
    let mut statements = Statements::default();
    for i in 0..=MAX_PRIVATE {
        statements.parse(format!("s{i}").as_bytes(), None, Scan::default());
        statements.acknowledged();
    }
    assert_eq!(statements.private.len(), MAX_PRIVATE);
    assert!(statements.pins());
    statements.forget_names();
    assert!(!statements.pins());
}
