//! Logins as a client sees them: the messages, their sizes, and who gets in.

use super::*;
use crate::config::Secret;
use crate::wire::walk::Header;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;

/// The verifier of RFC 7677's example: password `pencil` and its salt.
const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
    WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

fn verifier(text: &str) -> Verifier {
    Verifier::parse(&Secret::new(text.to_owned())).unwrap()
}

/// What one login looked like from outside, and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Type byte, authentication code and length of every message.
    messages: Vec<(u8, i32, usize)>,
    end: Step,
}

/// Takes the messages in `out` apart; returns the last one's body after the code.
fn look(seen: &mut Vec<(u8, i32, usize)>, out: &mut BytesMut) -> Vec<u8> {
    let mut last = Vec::new();
    while let Some(header) = Header::read(out) {
        let message = out.split_to(header.total().unwrap());
        let code = i32::from_be_bytes(message[5..9].try_into().unwrap());
        seen.push((header.kind, code, message.len()));
        if code != 0 {
            last = message[9..].to_vec();
        }
    }
    assert!(out.is_empty());
    last
}

/// Plays a client that knows `password`.
async fn login(method: AuthMethod, user: &str, secret: Option<&Verifier>, password: &str) -> Seen {
    let mut mock = MockKey::random();
    mock.derive_always = method == AuthMethod::Plain;
    play(begin(method, user, secret, &mock), user, password).await.0
}

/// The same of a login that has begun, and which password it was.
async fn play(mut exchange: Exchange, user: &str, password: &str) -> (Seen, Matched) {
    let (mut messages, mut out) = (Vec::new(), BytesMut::new());
    let mut end = exchange.first(&mut out);
    let mut client = sasl::ScramSha256::new(password.as_bytes(), sasl::ChannelBinding::unsupported());
    while end == Step::More {
        let asked = look(&mut messages, &mut out);
        let mut frame = BytesMut::new();
        match messages.last().unwrap().1 {
            3 => frontend::password_message(password.as_bytes(), &mut frame).unwrap(),
            5 => {
                let salt = asked.try_into().unwrap();
                let hash = md5_hash(user.as_bytes(), password.as_bytes(), salt);
                frontend::password_message(hash.as_bytes(), &mut frame).unwrap();
            }
            10 => frontend::sasl_initial_response("SCRAM-SHA-256", client.message(), &mut frame).unwrap(),
            11 => {
                client.update(&asked).unwrap();
                frontend::sasl_response(client.message(), &mut frame).unwrap();
            }
            code => panic!("unexpected code {code}"),
        }
        assert!(frame.len() <= exchange.limit());
        end = exchange.step(&frame[5..], &mut out).await;
    }
    let last = look(&mut messages, &mut out);
    if messages.iter().any(|message| message.1 == 12) {
        client.finish(&last).expect("the server proves that it knows the verifier");
    }
    (Seen { messages, end }, exchange.matched())
}

#[tokio::test]
async fn trust_asks_nobody() {
    for secret in [None, Some(&verifier("x"))] {
        let seen = login(AuthMethod::Trust, "alice", secret, "").await;
        assert_eq!(seen, Seen { messages: vec![(b'R', 0, 9)], end: Step::Done });
    }
}

#[tokio::test]
async fn every_method_takes_every_secret_that_fits() {
    use AuthMethod::{Md5, Plain, ScramSha256};
    let hash = format!("md5{}", std::str::from_utf8(&keys::md5_secret(b"alice", b"pencil")).unwrap());
    let plain = vec![(b'R', 3, 9), (b'R', 0, 9)];
    let md5 = vec![(b'R', 5, 13), (b'R', 0, 9)];
    // Lengths: mechanism list; nonce 24 + 24, salt 24, iterations; signature 44.
    let scram = vec![(b'R', 10, 24), (b'R', 11, 93), (b'R', 12, 55), (b'R', 0, 9)];
    for (method, secrets, messages) in [
        (Plain, vec!["pencil", &hash, PENCIL], plain),
        (Md5, vec!["pencil", &hash], md5),
        (ScramSha256, vec!["pencil", PENCIL], scram),
    ] {
        for text in secrets {
            let secret = verifier(text);
            let right = login(method, "alice", Some(&secret), "pencil").await;
            assert_eq!(right, Seen { messages: messages.clone(), end: Step::Done }, "{method:?} {text}");
            let wrong = login(method, "alice", Some(&secret), "pencils").await;
            assert_eq!(wrong.end, Step::Failed(Failure::WrongPassword), "{method:?} {text}");
        }
    }
}

#[tokio::test]
async fn the_password_before_is_as_good_and_told_apart() {
    use AuthMethod::{Md5, Plain, ScramSha256};
    let mock = MockKey::random();
    let hash = format!("md5{}", std::str::from_utf8(&keys::md5_secret(b"alice", b"pencil")).unwrap());
    for (method, now, before) in [
        (Plain, "pen", "pencil"),
        (Plain, "pen", PENCIL),
        (Plain, "pen", &hash),
        (Md5, "pen", "pencil"),
        (Md5, "pen", &hash),
        (ScramSha256, "pen", "pencil"),
        (ScramSha256, "pen", PENCIL),
        // Only one of them can answer; by rules a user may have both.
        (ScramSha256, &hash, "pen"),
    ] {
        let (now, before) = (verifier(now), verifier(before));
        let salted = |secret: &Verifier| secret.clone().prepared("alice", &mock, before.given());
        let (now, before) = (salted(&now), salted(&before));
        let begun = || begin(method, "alice", Some(&now), &mock).or(Some(&before));
        let unfit = method == ScramSha256 && now.kind() == SecretKind::Md5;
        let (pen, which) = play(begun(), "alice", "pen").await;
        let expected = if unfit { Matched::Previous } else { Matched::Current };
        assert_eq!((pen.end, which), (Step::Done, expected), "{method:?} {now:?} {before:?}");
        let (other, which) = play(begun(), "alice", "pencil").await;
        let wrong = Step::Failed(Failure::WrongPassword);
        let end = if unfit { wrong } else { Step::Done };
        assert_eq!((other.end, which), (end, Matched::Previous), "{method:?} {now:?} {before:?}");
        assert_eq!(play(begun(), "alice", "guess").await.0.end, wrong, "{method:?}");
        // Nobody, or an expired user, has no password before either.
        let none = || begin(method, "alice", None, &mock).or(Some(&before));
        assert_eq!(play(none(), "alice", "pencil").await.0.end, Step::Failed(Failure::NoSecret));
    }
}

#[tokio::test]
async fn nobody_can_tell_an_unknown_user_from_a_wrong_password() {
    for method in [AuthMethod::Plain, AuthMethod::Md5, AuthMethod::ScramSha256] {
        let wrong = login(method, "alice", Some(&verifier("pencil")), "guess").await;
        let unknown = login(method, "ghost", None, "guess").await;
        assert_eq!(unknown.messages, wrong.messages, "{method:?}");
        assert_eq!(wrong.end, Step::Failed(Failure::WrongPassword));
        assert_eq!(unknown.end, Step::Failed(Failure::NoSecret));
    }
}

#[tokio::test]
async fn a_secret_that_does_not_fit_fails_like_a_wrong_password_and_says_why() {
    let scram = verifier(PENCIL);
    let seen = login(AuthMethod::Md5, "alice", Some(&scram), "pencil").await;
    assert_eq!(seen.messages, [(b'R', 5, 13)]);
    let Step::Failed(failure) = seen.end else { panic!("logged in") };
    assert_eq!(failure.to_string(), "md5 authentication cannot use a SCRAM verifier");
    assert!(!failure.is_protocol());

    let md5 = verifier("md54a0a68b43b6cd5cf266fa02f196e2371");
    let seen = login(AuthMethod::ScramSha256, "alice", Some(&md5), "secret").await;
    assert_eq!(seen.messages, [(b'R', 10, 24), (b'R', 11, 93)]);
    let Step::Failed(failure) = seen.end else { panic!("logged in") };
    assert_eq!(failure.to_string(), "scram-sha-256 authentication cannot use an md5 hash");
}

#[tokio::test]
async fn a_scram_client_may_leave_out_its_initial_response() {
    let mut exchange = begin(AuthMethod::ScramSha256, "alice", Some(&verifier("pencil")), &MockKey::random());
    let mut out = BytesMut::new();
    assert_eq!(exchange.first(&mut out), Step::More);
    out.clear();
    assert_eq!(exchange.step(b"SCRAM-SHA-256\0\xff\xff\xff\xff", &mut out).await, Step::More);
    assert_eq!(&out.split()[..], b"R\0\0\0\x08\0\0\0\x0b");
    assert_eq!(exchange.step(b"n,,n=,r=abc", &mut out).await, Step::More);
    assert!(out.starts_with(b"R") && out[9..].starts_with(b"r=abc"));
}

#[tokio::test]
async fn malformed_messages_are_protocol_violations_and_end_the_exchange() {
    use AuthMethod::{Md5, Plain, ScramSha256};
    for (method, body, failure) in [
        (Plain, &b""[..], Failure::Malformed),
        (Plain, b"pencil", Failure::Malformed),
        (Plain, b"pencil\0x", Failure::Malformed),
        (Md5, b"md5", Failure::Malformed),
        (ScramSha256, b"SCRAM-SHA-256", Failure::Malformed),
        (ScramSha256, b"SCRAM-SHA-256\0\0\0", Failure::Malformed),
        (ScramSha256, b"SCRAM-SHA-256\0\x7f\xff\xff\xffn,,", Failure::Malformed),
        (ScramSha256, b"SCRAM-SHA-256\0\xff\xff\xff\xfen,,", Failure::Malformed),
        (ScramSha256, b"SCRAM-SHA-256-PLUS\0\0\0\0\0", Failure::Mechanism),
        (ScramSha256, b"SCRAM-SHA-256\0\0\0\0\0", Failure::Scram(ScramFault::Syntax)),
    ] {
        let mut exchange = begin(method, "alice", Some(&verifier("pencil")), &MockKey::random());
        let mut out = BytesMut::new();
        assert_eq!(exchange.first(&mut out), Step::More);
        out.clear();
        assert_eq!(exchange.step(body, &mut out).await, Step::Failed(failure), "{body:?}");
        assert!(failure.is_protocol());
        // Not even the right password helps now.
        assert_eq!(exchange.step(b"pencil\0", &mut out).await, Step::Failed(Failure::Malformed));
        assert!(out.is_empty());
    }
}

#[tokio::test]
async fn a_nonce_too_long_to_answer_fails_without_half_a_message() {
    let mut exchange = begin(AuthMethod::ScramSha256, "alice", None, &MockKey::random());
    let mut out = BytesMut::new();
    assert_eq!(exchange.first(&mut out), Step::More);
    out.clear();
    let message = format!("n,,n=,r={}", "x".repeat(60_000));
    let mut body = b"SCRAM-SHA-256\0".to_vec();
    body.extend_from_slice(&(message.len() as i32).to_be_bytes());
    body.extend_from_slice(message.as_bytes());
    assert_eq!(exchange.step(&body, &mut out).await, Step::Failed(Failure::Malformed));
    assert!(out.is_empty());
}
