//! The traces of wire.md A2 as the tracker sees them, and a model test.

use super::*;
use bytes::Bytes;

/// Plays a script: `>` kinds are sent by the client, `<` kinds come from the server (`Z` takes its
/// status from the next character). Returns what was forwarded, and what reached the client. `short`:
/// what can be is left to [`Tracker::as_expected`].
fn play(script: &str, short: bool) -> (String, String) {
    let mut tracker = Tracker::default();
    let (mut sent, mut seen) = (String::new(), String::new());
    let mut withheld = None;
    for word in script.split_whitespace() {
        let (side, rest) = word.split_at(1);
        let kind = rest.as_bytes()[0];
        if side == ">" {
            let take = tracker.client(
                Kind::of(kind).unwrap(),
                Note { of_statement: rest.ends_with("Ds"), ..Note::default() },
            );
            match take {
                Take::Forward => sent.push(kind as char),
                Take::Drop => sent.push('-'),
                Take::Hold => sent.push('|'),
            }
            continue;
        }
        if short && tracker.as_expected(kind).is_some() {
            seen.push(kind as char);
            continue;
        }
        let mut out = BytesMut::new();
        match tracker.server(kind, &rest.as_bytes()[1..], &mut out).unwrap_or_else(|e| panic!("{word}: {e}"))
        {
            Give::Pass => seen.push(kind as char),
            Give::Suppress | Give::InjectedError => seen.push('-'),
            Give::Withhold => {
                if withheld.replace(kind).is_some() {
                    seen.push('Z');
                }
            }
            Give::PassWithheld => {
                if withheld.take().is_some() {
                    seen.push('Z');
                }
                seen.push(kind as char);
            }
            Give::DropWithheld => withheld = None,
        }
        seen.extend(out.chunks(5).map(|reply| char::from(reply[0])));
        if tracker.takes_intruder() {
            sent.push_str("(C)");
        }
        if tracker.take_marker() {
            sent.push_str("(SCCS)");
        }
    }
    let end = if tracker.may_release() { " released" } else { " held" };
    (sent, seen + end)
}

fn case(script: &str, sent: &str, seen: &str) {
    for short in [false, true] {
        assert_eq!(play(script, short), (sent.to_owned(), seen.to_owned()), "{script}, {short}");
    }
}

#[test]
fn simple_queries_release_at_idle_only() {
    case(">Q <T <D <C <ZI", "Q", "TDCZ released");
    case(">Q <C <ZT", "Q", "CZ held");
    case(">Q <I <ZI", "Q", "IZ released");
    case(">Q <E <ZI", "Q", "EZ released");
    case(">F <V <ZI", "F", "VZ released");
}

#[test]
fn an_error_in_an_extended_message_sweeps_to_sync() {
    case(">P >B >E >S <E <ZI", "PBES", "EZ released");
    case(">P >Q >S <E <ZI", "PQS", "EZ released");
    case(">P >Q <E >Q >P >H >S <ZI", "PQ---S", "EZ released");
    case(">P >B >E >S >P >B >E >S <1 <2 <E <ZI <1 <2 <C <ZI", "PBESPBES", "12EZ12CZ released");
    case(">P >B >E >S <1 <2 <C <E <ZI", "PBES", "12CEZ released");
}

#[test]
fn a_query_joins_and_ends_an_unsynced_pipeline() {
    case(">P >B >E >H <1 <2 <D <C", "PBEH", "12DC held");
    case(">P >B >E >Q <1 <2 <D <C <T <D <C <ZI", "PBEQ", "12DCTDCZ released");
}

#[test]
fn copy_in_swallows_sync_and_flush() {
    case(">Q <G >d >S >H >c <C <ZI", "QdS-c", "GCZ released");
    case(">P >B >E >S <1 <2 <G >d >c >S <C <ZI", "PBESdcS", "12GCZ released");
    case(">Q <G >d >f <E <ZI >d >c", "Qdf--", "GEZ released");
}

#[test]
fn copy_data_waits_until_the_copy_is_known() {
    case(">Q >d <G", "Q|", "G held");
    case(">Q <E <ZI >d", "Q-", "EZ released");
    case(">Q <G >c <C >d <G >d", "Qc|d", "GCG held");
}

#[test]
fn a_failed_copy_with_syncs_inside_is_resolved_by_a_marker() {
    // The Sync was read after the failure: it has its own ReadyForQuery.
    case(">P >B >E <1 <2 <G >d >S <E <ZI <ZI <3 <3 <ZI", "PBEdS(SCCS)", "12GEZ-- released");
    // It was swallowed: the client is still skipping, and its next Sync is a real one.
    case(">P >B >E <1 <2 <G >S >d <E <ZI <3 <3 <ZI >P >S <ZI", "PBESd(SCCS)-S", "12GE--Z released");
    // One inside, one behind.
    case(">P >B >E <1 <2 <G >d >S >c >S <E <ZI <ZI <ZI <3 <3 <ZI", "PBEdScS(SCCS)", "12GEZZ-- released");
    // Where something else follows, its reply tells, whichever it was.
    case(">P >B >E <1 <2 <G >d >S >c >S >Q <E <ZI <ZI <I <ZI", "PBEdScSQ", "12GEZZIZ released");
    case(">P >B >E <1 <2 <G >d >S >c >S >Q <E <ZI <I <ZI", "PBEdScSQ", "12GEZIZ released");
    case(">Q <G >S >f >Q <E <ZI <C <ZT", "QSfQ", "GEZCZ held");
    case(">Q <G >S >f >Q <E <ZI <ZI <C <ZT", "QSfQ", "GEZZCZ held");
    // A simple COPY: the failure has its own ReadyForQuery first.
    case(">Q <G >d >S <E <ZI <ZI <ZI <3 <3 <ZI", "QdS(SCCS)", "GEZZ-- released");
}

#[test]
fn a_message_without_a_place_in_a_copy_is_waited_for() {
    // The server closes, whatever the client would have said next.
    case(">Q <G >P >c <E08P01 <E", "QP|", "GEE held");
    // The COPY had failed: what comes behind it is like any other message.
    case(">Q <G >d >C >S <E <ZI >S <3 <ZI", "QdC|S", "GEZ3Z released");
    // A Sync lies between, and the COPY was an extended one: swallowed, so that the Describe is
    // skipped with everything else,
    let script = ">P >B >E <1 <2 <G >d >S >d >Dp >S <E";
    case(&format!("{script} <ZI <3 <3 <ZI >S <ZI"), "PBEdSdD|(SCCS)S", "12GE--Z released");
    // or answered, and so is the Describe.
    case(&format!("{script} <ZI <n <ZI <3 <3 <ZI >S <ZI"), "PBEdSdD|(SCCS)S", "12GEZn--Z released");
    case(&format!("{script} <ZI <E <ZI <3 <3 <ZI >P >S <ZI"), "PBEdSdD|(SCCS)-S", "12GEZE--Z released");
    // It had been sent before the COPY was known, and so had a Sync behind it: nothing is skipped any more.
    case(">E >S >E >S <G <E <ZI <E <ZI <ZI <3 <3 <ZI >P <1", "ESES(SCCS)P", "GEZEZ--1 held");
    case(">E >S >E >S <G <E <ZI <C <ZI <ZI <3 <3 <ZI", "ESES(SCCS)", "GEZCZ-- released");
    case(">E >S >E >S <G <E <ZI <ZI <3 <3 <ZI >P <1", "ESES(SCCS)P", "GEZ--1 held");
    // What was sent behind a Sync has no Sync of its own yet, wherever that Sync was read.
    case(">Q >S >E <G <E <ZI <ZI <C", "QSE", "GEZZC held");
    // Nothing is sent behind the end of such a COPY but what ends the doubt.
    case(">P >B >E <1 <2 <G >d >S >c >Q <C >Q <C <ZI", "PBEdSc|Q", "12GCCZ released");
    case(">P >B >E <1 <2 <G >d >S >c >S >Q <C <ZI <C <ZI", "PBEdScSQ", "12GCZCZ released");
    // A Close looks like the marker's own.
    let script = ">P >B >E <1 <2 <G >d >S >d >C <E";
    case(&format!("{script} <ZI <3 <3 <ZI >S <ZI"), "PBEdSdC(SCCS)S", "12GE--Z released");
    case(&format!("{script} <ZI <3 <ZI <3 <3 <ZI >S <ZI"), "PBEdSdC(SCCS)S", "12GE-Z3--Z released");
}

#[test]
fn replies_that_answer_nothing_are_a_desync() {
    let mut out = BytesMut::new();
    for kind in *b"123CDEGHIKRTVWZnst\0" {
        assert!(Tracker::default().server(kind, b"I", &mut out).is_err(), "{}", kind as char);
    }
    let mut tracker = Tracker::default();
    tracker.client(Kind::Bind, Note::default());
    assert_eq!(tracker.server(b'1', b"", &mut out), Err(Desync(b'1')));
}

#[test]
fn asynchronous_messages_pass_at_any_time() {
    let mut out = BytesMut::new();
    for kind in *b"NSA" {
        assert_eq!(Tracker::default().server(kind, b"", &mut out), Ok(Give::Pass));
    }
}

#[test]
fn an_injected_segment_is_invisible() {
    let mut tracker = Tracker::default();
    let mut out = BytesMut::new();
    tracker.inject(OpKind::Query, Injected::Segment);
    assert_eq!(tracker.client(Kind::Query, Note::default()), Take::Forward);
    for kind in *b"TDSC" {
        assert_eq!(tracker.server(kind, b"", &mut out), Ok(Give::Suppress));
    }
    assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Suppress));
    assert_eq!(tracker.server(b'C', b"", &mut out), Ok(Give::Pass));
    assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Pass));
    assert!(tracker.may_release());
}

/// What is asked ahead of a client's message is part of its segment, which the server keeps open until the
/// client's Sync; the answer may come together with the end of the segment before.
#[test]
fn what_is_injected_in_place_begins_the_clients_segment() {
    let mut tracker = Tracker::default();
    let mut out = BytesMut::new();
    tracker.client(Kind::Sync, Note::default());
    tracker.inject(OpKind::Parse, Injected::InPlace);
    tracker.ask_shape();
    assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Pass));
    for kind in *b"1tT" {
        assert_eq!(tracker.server(kind, b"", &mut out), Ok(Give::Suppress));
    }
    assert!(!tracker.is_busy() && tracker.is_unsynced() && !tracker.may_release());
    for (kind, reply) in [(Kind::Bind, b'2'), (Kind::Execute, b'C'), (Kind::Sync, b'Z')] {
        assert!(!tracker.may_release());
        assert_eq!(tracker.client(kind, Note::default()), Take::Forward);
        assert_eq!(tracker.server(reply, b"I", &mut out), Ok(Give::Pass));
    }
    assert!(tracker.may_release());
}

/// The client is in a transaction; that its settings' segment ends outside one is no reason to release.
#[test]
fn a_segment_before_a_begin_does_not_end_the_transaction() {
    let mut tracker = Tracker::default();
    let mut out = BytesMut::new();
    tracker.set_status(TxStatus::InTransaction);
    tracker.inject(OpKind::Query, Injected::Segment);
    tracker.inject(OpKind::Query, Injected::Segment);
    for kind in [OpKind::Parse, OpKind::Bind, OpKind::Execute, OpKind::Close] {
        tracker.inject(kind, Injected::Begin);
    }
    for _ in 0..2 {
        assert_eq!(tracker.server(b'C', b"SET\0", &mut out), Ok(Give::Suppress));
        assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Suppress));
    }
    for kind in *b"12C3" {
        assert_eq!(tracker.server(kind, b"BEGIN\0", &mut out), Ok(Give::Suppress));
    }
    assert!(!tracker.is_busy() && !tracker.may_release());
    assert_eq!(tracker.client(Kind::Query, Note::default()), Take::Forward);
    tracker.server(b'C', b"COMMIT\0", &mut out).unwrap();
    tracker.server(b'Z', b"I", &mut out).unwrap();
    assert!(tracker.may_release());
}

#[test]
fn made_up_replies_keep_their_place() {
    let mut tracker = Tracker::default();
    let mut out = BytesMut::new();
    tracker.client(Kind::Query, Note::default());
    tracker.answer(OpKind::Query, Bytes::from_static(b"x"), true, &mut out);
    assert!(out.is_empty());
    tracker.server(b'C', b"BEGIN\0", &mut out).unwrap();
    assert!(out.is_empty());
    tracker.server(b'Z', b"T", &mut out).unwrap();
    assert_eq!(&out[..], b"xZ\0\0\0\x05T");
}

/// A client has closed a name behind what turns out to be a COPY: the server is sent a message in its place.
#[test]
fn what_is_answered_here_has_no_place_in_a_copy_either() {
    let begun = |answered: bool| {
        let (mut tracker, mut out) = (Tracker::default(), BytesMut::new());
        tracker.client(Kind::Query, Note::default());
        if answered {
            tracker.answer(OpKind::Close, Bytes::from_static(b"x"), false, &mut out);
        }
        tracker.client(Kind::Sync, Note::default());
        assert_eq!(tracker.server(b'G', b"", &mut out), Ok(Give::Pass));
        (tracker, out)
    };
    assert!(!begun(false).0.takes_intruder());
    let (mut tracker, mut out) = begun(true);
    assert!(tracker.takes_intruder() && !tracker.takes_intruder());
    assert!(tracker.would_hold(Kind::CopyDone));
    // The server closes,
    let mut closes = begun(true).0;
    closes.takes_intruder();
    for _ in 0..2 {
        assert_eq!(closes.server(b'E', b"C08P01\0\0", &mut out), Ok(Give::Pass));
    }
    // unless the COPY had failed before.
    for (kind, body, give) in [
        (b'E', &b"C57014\0\0"[..], Give::Pass),
        (b'Z', b"I", Give::Pass),
        (b'Z', b"I", Give::Pass),
        (b'3', b"", Give::Suppress),
    ] {
        tracker.expect(kind);
        tracker.emit(&mut out);
        assert_eq!(tracker.server(kind, body, &mut out), Ok(give));
        assert_eq!(&out[..], if kind == b'E' { &b""[..] } else { b"x" });
    }
    assert!(tracker.may_release());
}

#[test]
fn made_up_replies_are_swept_with_their_pipeline() {
    let mut tracker = Tracker::default();
    let mut out = BytesMut::new();
    tracker.client(Kind::Parse, Note { noted: true, ..Note::default() });
    tracker.answer(OpKind::Parse, Bytes::from_static(b"x"), false, &mut out);
    tracker.client(Kind::Sync, Note::default());
    tracker.server(b'E', b"", &mut out).unwrap();
    tracker.server(b'Z', b"I", &mut out).unwrap();
    assert!(out.is_empty());
    assert_eq!(tracker.take_swept(), 1);
    assert!(tracker.may_release());
}

/// A COPY that fails with a Sync in the middle of its data, another one behind it and something that is answered
/// here: the client's ReadyForQuery come first, however many there are.
#[test]
fn made_up_replies_wait_for_what_a_failed_copy_has_made_of_the_syncs() {
    const FAILED: &[u8] = b"C57014\0\0";
    let copy = || {
        let (mut tracker, mut out) = (Tracker::default(), BytesMut::new());
        tracker.client(Kind::Execute, Note::default());
        tracker.server(b'G', b"", &mut out).unwrap();
        for kind in [Kind::CopyData, Kind::Sync, Kind::CopyDone, Kind::Sync] {
            assert_eq!(tracker.client(kind, Note::default()), Take::Forward);
        }
        tracker.answer(OpKind::Bind, Bytes::from_static(b"x"), false, &mut out);
        (tracker, out)
    };
    // What is sent behind it tells.
    for answered in [false, true] {
        let (mut tracker, mut out) = copy();
        tracker.client(Kind::Execute, Note::default());
        tracker.server(b'E', FAILED, &mut out).unwrap();
        for _ in 0..=u8::from(answered) {
            tracker.expect(b'Z');
            tracker.emit(&mut out);
            assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Pass));
        }
        assert_eq!(&out[..], if answered { &b"x"[..] } else { b"" });
        tracker.expect(b'C');
        tracker.emit(&mut out);
        assert_eq!(&out[..], b"x");
        assert_eq!(tracker.server(b'C', b"", &mut out), Ok(Give::Pass));
    }
    // Nothing is: the marker does.
    let (mut tracker, mut out) = copy();
    tracker.server(b'E', FAILED, &mut out).unwrap();
    assert!(tracker.take_marker());
    for (kind, give) in [(b'Z', Give::Withhold), (b'Z', Give::Withhold), (b'3', Give::Suppress)] {
        tracker.emit(&mut out);
        assert_eq!(tracker.server(kind, b"I", &mut out), Ok(give));
    }
    tracker.server(b'3', b"", &mut out).unwrap();
    assert!(out.is_empty());
    assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::DropWithheld));
    assert_eq!(&out[..], b"x");
    assert!(tracker.may_release());
}

/// A COPY has been cancelled that had Syncs sent into it, and what was sent behind them may have run or not,
/// or stands between them and others.
#[test]
fn what_depends_on_a_sync_in_doubt_is_given_up() {
    const MADE_UP: u8 = b'=';
    // A reply that is made up; a message that may have failed, and be taken for what is behind it.
    for script in [&b"ES="[..], b"ES=S", b"ESBSQ", b"ESPB"] {
        let (mut tracker, mut out) = (Tracker::default(), BytesMut::new());
        for &kind in script {
            if kind == MADE_UP {
                tracker.answer(OpKind::Bind, Bytes::from_static(b"x"), false, &mut out);
            } else {
                assert_eq!(tracker.client(Kind::of(kind).unwrap(), Note::default()), Take::Forward);
            }
        }
        tracker.server(b'G', b"", &mut out).unwrap();
        let told = tracker.server(b'E', b"C57014\0\0", &mut out);
        assert_eq!(told, Err(Desync(b'E')), "{}", String::from_utf8_lossy(script));
    }
}

/// tokio-postgres sends a Sync with each COPY, and closes the statement of one that it has given up.
#[test]
fn a_reply_made_between_two_syncs_behind_a_copy_is_in_its_place_or_the_session_ends() {
    let given_up = || {
        let (mut tracker, mut out) = (Tracker::default(), BytesMut::new());
        tracker.client(Kind::Execute, Note::default());
        tracker.client(Kind::Sync, Note::default());
        tracker.server(b'G', b"", &mut out).unwrap();
        tracker.client(Kind::CopyFail, Note::default());
        tracker.client(Kind::Sync, Note::default());
        tracker.answer(OpKind::Close, Bytes::from_static(b"x"), false, &mut out);
        tracker.client(Kind::Sync, Note::default());
        (tracker, out)
    };
    for answered in [false, true] {
        // The marker tells.
        let (mut tracker, mut out) = given_up();
        assert_eq!(tracker.server(b'E', b"C57014\0\0", &mut out), Ok(Give::Pass));
        assert!(tracker.take_marker());
        assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Withhold));
        assert_eq!(&out[..], b"");
        assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Withhold));
        assert_eq!(&out[..], b"x", "behind the ReadyForQuery that was kept back");
        assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Withhold));
        if answered {
            assert_eq!(tracker.server(b'Z', b"I", &mut out), Err(Desync(b'Z')));
        } else {
            for (kind, give) in [(b'3', Give::Suppress), (b'3', Give::Suppress), (b'Z', Give::DropWithheld)] {
                assert_eq!(tracker.server(kind, b"I", &mut out), Ok(give));
            }
            assert_eq!(&out[..], b"x");
            assert!(tracker.may_release());
        }
        // What was sent behind it does.
        let (mut tracker, mut out) = given_up();
        tracker.client(Kind::Parse, Note::default());
        assert_eq!(tracker.server(b'E', b"C57014\0\0", &mut out), Ok(Give::Pass));
        assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Pass));
        assert_eq!(&out[..], b"x");
        assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Pass));
        let next = tracker.server(if answered { b'Z' } else { b'1' }, b"I", &mut out);
        assert_eq!(next, if answered { Err(Desync(b'Z')) } else { Ok(Give::Pass) });
    }
}

/// An error of Bursar's own in the middle of a pipeline: told in its place, and raised on the server.
#[test]
fn a_failure_on_purpose_is_not_seen() {
    let mut tracker = Tracker::default();
    let mut out = BytesMut::new();
    tracker.client(Kind::Execute, Note::default());
    tracker.answer(OpKind::Parse, Bytes::from_static(b"x"), false, &mut out);
    tracker.inject(OpKind::Execute, Injected::Failure);
    tracker.skip_to_sync();
    assert_eq!(tracker.client(Kind::Execute, Note::default()), Take::Drop);
    assert_eq!(tracker.client(Kind::Sync, Note::default()), Take::Forward);
    assert_eq!(tracker.server(b'C', b"INSERT 0 1\0", &mut out), Ok(Give::Pass));
    assert_eq!(&out[..], b"x");
    assert_eq!(tracker.server(b'E', b"", &mut out), Ok(Give::Suppress));
    assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Pass));
    assert!(tracker.may_release());
}

#[test]
fn ops_are_bounded() {
    let mut tracker = Tracker::default();
    let taken = (0..MAX_OPS + 1).map(|_| tracker.client(Kind::Sync, Note::default()));
    assert_eq!(taken.filter(|take| *take == Take::Forward).count(), MAX_OPS);
}

#[test]
fn a_fence_ahead_of_a_begin_says_nothing_of_the_clients_transaction() {
    let (mut tracker, mut out) = (Tracker::default(), BytesMut::new());
    tracker.set_status(TxStatus::InTransaction);
    tracker.fence(true);
    [OpKind::Parse, OpKind::Bind, OpKind::Execute, OpKind::Close]
        .into_iter()
        .for_each(|kind| tracker.inject(kind, Injected::Begin));
    for (kind, body) in [(b'1', &b""[..]), (b'2', b""), (b'C', b"SELECT 1\0"), (b'Z', b"I")] {
        assert!(tracker.is_own_work(), "a cancel must not hit it");
        assert_eq!(tracker.server(kind, body, &mut out), Ok(Give::Suppress));
    }
    assert_eq!(tracker.status(), TxStatus::InTransaction);
    assert!(!tracker.is_own_work() && tracker.knows_status());
}

/// The context lent to a Query, failing: by a cancel, which is the client's, or by itself.
#[test]
fn what_follows_a_context_that_cannot_be_lent_is_skipped_to_a_sync_of_bursars() {
    let lent = |body: &'static [u8]| {
        let (mut tracker, mut out) = (Tracker::default(), BytesMut::new());
        tracker.lend(false);
        assert!(tracker.is_unsynced() && !tracker.is_own_work(), "a cancel is for what it is part of");
        tracker.client(Kind::Query, Note::default());
        assert!(!tracker.is_unsynced());
        assert_eq!(tracker.server(b'2', b"", &mut out), Ok(Give::Suppress));
        let give = tracker.server(b'E', body, &mut out);
        assert!(tracker.takes_sync() && !tracker.takes_sync());
        assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Pass));
        assert!(tracker.may_release() && !tracker.is_skipping());
        give
    };
    assert_eq!(lent(b"SERROR\0C57014\0\0"), Ok(Give::Pass));
    assert_eq!(lent(b"SERROR\0C42501\0\0"), Ok(Give::InjectedError));
}

#[test]
fn a_context_lent_to_a_pipeline_is_part_of_it() {
    let (mut tracker, mut out) = (Tracker::default(), BytesMut::new());
    tracker.lend(true);
    for kind in [Kind::Bind, Kind::Execute, Kind::Sync] {
        tracker.client(kind, Note::default());
    }
    for (kind, body) in [(b'1', &b""[..]), (b'2', b""), (b'D', b""), (b'C', b"SELECT 1\0")] {
        assert_eq!(tracker.server(kind, body, &mut out), Ok(Give::Suppress));
    }
    assert_eq!(tracker.server(b'2', b"", &mut out), Ok(Give::Pass));
    assert_eq!(tracker.server(b'E', b"SERROR\0C22012\0\0", &mut out), Ok(Give::Pass));
    assert!(!tracker.takes_sync(), "the client has sent one");
    assert_eq!(tracker.server(b'Z', b"I", &mut out), Ok(Give::Pass));
    assert!(tracker.may_release());
}
