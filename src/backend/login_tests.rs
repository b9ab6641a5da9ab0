//! Logins against scripted servers, genuine and hostile. That they work against PostgreSQL is
//! shown in `tests/postgres_auth.rs`.

use super::super::scram::ScramFault;
use super::super::target::tests::database;
use super::*;
use bytes::BufMut;
use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth, gen_salted_password};
use tokio::io::{DuplexStream, duplex};

const SALT: &[u8] = b"0123456789abcdef";

fn target(password: Option<&str>) -> Target {
    let mut table = database("db", 5432);
    table.password = password.map(|text| Secret::new(text.to_owned()));
    Target::new(&table, "app", "alice", None)
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    message(&mut out, kind, |out| out.extend_from_slice(body));
    out.to_vec()
}

fn auth(code: i32, rest: &[u8]) -> Vec<u8> {
    frame(b'R', &[&code.to_be_bytes(), rest].concat())
}

/// What a login makes of a server that says all of this at once and then stays open.
async fn hears(password: Option<&str>, said: &[Vec<u8>]) -> Result<Login, DialError> {
    let (mut ours, mut theirs) = duplex(1 << 20);
    theirs.write_all(&said.concat()).await.unwrap();
    login(&mut ours, &target(password), None).await
}

async fn protocol_fault(said: &[Vec<u8>]) -> ProtocolFault {
    match hears(Some("pencil"), said).await.unwrap_err() {
        DialError::Protocol(fault) => fault,
        other => panic!("{other}"),
    }
}

async fn auth_fault(password: Option<&str>, said: &[Vec<u8>]) -> AuthFault {
    match hears(password, said).await.unwrap_err() {
        DialError::Auth(fault) => fault,
        other => panic!("{other}"),
    }
}

fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}

/// The body of the next `p` message.
async fn answer(io: &mut DuplexStream) -> Vec<u8> {
    assert_eq!(io.read_u8().await.unwrap(), b'p');
    let len = io.read_i32().await.unwrap();
    let mut body = vec![0; usize::try_from(len).unwrap() - 4];
    io.read_exact(&mut body).await.unwrap();
    body
}

async fn startup(io: &mut DuplexStream) -> Vec<u8> {
    let len = io.read_i32().await.unwrap();
    let mut body = vec![0; usize::try_from(len).unwrap() - 4];
    io.read_exact(&mut body).await.unwrap();
    body
}

#[tokio::test]
async fn the_start_up_packet_asks_for_3_2_and_names_us() {
    let (mut ours, mut theirs) = duplex(4096);
    let target = target(None);
    let server = async {
        let packet = startup(&mut theirs).await;
        theirs.write_all(&[auth(0, b""), ready()].concat()).await.unwrap();
        packet
    };
    let (packet, login) = tokio::join!(server, login(&mut ours, &target, None));
    assert_eq!(packet, b"\0\x03\0\x02database\0app\0user\0alice\0\0");
    let login = login.unwrap();
    assert_eq!((login.pid, login.key.len(), login.parameters.len()), (0, 0, 0));
}

#[tokio::test]
async fn what_the_server_tells_is_kept_and_notices_are_passed_over() {
    let key = [7; 32];
    let said = [
        frame(b'N', b"SNOTICE\0\0"),
        auth(0, b""),
        frame(b'S', b"TimeZone\0UTC\0"),
        frame(b'S', b"server_version\x0018.0\0"),
        frame(b'S', b"TimeZone\0CET\0"),
        frame(b'N', b"SNOTICE\0\0"),
        frame(b'K', &[&42i32.to_be_bytes()[..], &key].concat()),
        ready(),
    ];
    let login = hears(None, &said).await.unwrap();
    assert_eq!((login.pid, &login.key[..]), (42, &key[..]));
    let expected = [("TimeZone".into(), "CET".into()), ("server_version".into(), "18.0".into())];
    assert_eq!(login.parameters, expected);
}

#[tokio::test]
async fn an_old_server_negotiates_3_0_down_and_then_keeps_to_it() {
    let negotiate =
        |version: i32, options: i32| frame(b'v', &[version.to_be_bytes(), options.to_be_bytes()].concat());
    let key = |len: usize| frame(b'K', &vec![7; 4 + len]);
    let old = |key| [negotiate(0x0003_0000, 0), auth(0, b""), key, ready()];
    assert_eq!(hears(None, &old(key(4))).await.unwrap().key.len(), 4);
    assert_eq!(protocol_fault(&old(key(8))).await, ProtocolFault::Malformed(b'K'));
    let minor_alone = [negotiate(0, 0), auth(0, b""), ready()];
    assert!(hears(None, &minor_alone).await.is_ok());
    for bad in [negotiate(0x0003_0003, 0), negotiate(0x0004_0000, 0), negotiate(0x0003_0000, 1)] {
        assert_eq!(protocol_fault(&[bad]).await, ProtocolFault::Version);
    }
    let twice = [negotiate(0, 0), negotiate(0, 0)];
    assert_eq!(protocol_fault(&twice).await, ProtocolFault::Unexpected(b'v'));
}

#[tokio::test]
async fn a_refusal_is_kept_word_for_word() {
    let body = b"SFATAL\0VFATAL\0C3D000\0Mdatabase \"app\" does not exist\0\0";
    for said in [vec![frame(b'E', body)], vec![auth(0, b""), frame(b'E', body)]] {
        match hears(None, &said).await.unwrap_err() {
            DialError::Server { code, body: kept } => {
                assert_eq!((&code, &kept[..]), (b"3D000", &body[..]));
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(protocol_fault(&[frame(b'E', b"SFATAL\0\0")]).await, ProtocolFault::Malformed(b'E'));
}

#[tokio::test]
async fn clear_and_md5_passwords_are_sent_as_postgresql_expects() {
    for (ask, expected) in [
        (auth(3, b""), b"pencil\0".to_vec()),
        (auth(5, &[1, 2, 3, 4]), {
            let hash = pgwire::api::auth::md5pass::hash_md5_password("alice", "pencil", &[1, 2, 3, 4]);
            [hash.as_bytes(), b"\0"].concat()
        }),
    ] {
        let (mut ours, mut theirs) = duplex(4096);
        let target = target(Some("pencil"));
        let server = async {
            startup(&mut theirs).await;
            theirs.write_all(&ask).await.unwrap();
            let answer = answer(&mut theirs).await;
            theirs.write_all(&[auth(0, b""), ready()].concat()).await.unwrap();
            answer
        };
        let (answer, login) = tokio::join!(server, login(&mut ours, &target, None));
        assert_eq!(answer, expected);
        login.unwrap();
    }
}

/// What a scripted SCRAM server does when it is time to prove itself.
enum Last {
    Signature,
    WrongSignature,
    JustOk,
    Refusal,
}

/// A SCRAM login at pgwire's server, which knows `pencil`.
async fn scram(target: &Target, last: Last) -> Result<Login, DialError> {
    let (mut ours, mut theirs) = duplex(4096);
    let server = async {
        startup(&mut theirs).await;
        theirs.write_all(&auth(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")).await.unwrap();
        let first = answer(&mut theirs).await;
        let message = first.strip_prefix(b"SCRAM-SHA-256\0").unwrap();
        let salted = gen_salted_password("pencil", SALT, 4096);
        let secret = ScramSecret::verifier_from_salted_password(SALT.to_vec(), salted, 4096);
        let (reply, server) =
            ScramServerAuth::new().on_client_first_message_with_secret(&message[4..], secret).unwrap();
        theirs.write_all(&auth(11, reply.as_bytes())).await.unwrap();
        let proof = answer(&mut theirs).await;
        let signature = server.on_client_final_message(&proof);
        let said = match last {
            Last::Signature => auth(12, signature.unwrap().as_bytes()),
            Last::WrongSignature => auth(12, b"v=AAAA"),
            Last::JustOk => Vec::new(),
            Last::Refusal => auth(12, b"e=invalid-proof"),
        };
        // The client may hang up as soon as it has seen enough.
        let _ = theirs.write_all(&[said, auth(0, b""), ready()].concat()).await;
    };
    tokio::join!(server, login(&mut ours, target, None)).1
}

#[tokio::test]
async fn scram_derives_once_and_a_server_must_prove_itself() {
    let target = target(Some("pencil"));
    assert!(scram(&target, Last::Signature).await.is_ok());
    let rounds = std::num::NonZeroU32::new(4096).unwrap();
    assert!(target.keys(SALT, rounds).is_some());
    assert!(target.keys(b"other", rounds).is_none());
    assert!(scram(&target, Last::Signature).await.is_ok());

    for (last, fault) in [
        (Last::WrongSignature, AuthFault::Scram(ScramFault::Signature)),
        (Last::JustOk, AuthFault::Unproven),
        (Last::Refusal, AuthFault::Scram(ScramFault::Refused)),
    ] {
        match scram(&target, last).await.unwrap_err() {
            DialError::Auth(found) => assert_eq!(found, fault),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn hostile_authentication_is_refused() {
    let pencil = Some("pencil");
    let sasl = || auth(10, b"SCRAM-SHA-256\0\0");
    for ask in [auth(3, b""), auth(5, b"1234"), sasl()] {
        assert_eq!(auth_fault(None, &[ask]).await, AuthFault::NoPassword);
    }
    for code in [1, 2, 6, 7, 9, 13, -1] {
        assert_eq!(auth_fault(pencil, &[auth(code, b"")]).await, AuthFault::Unsupported(code));
    }
    assert_eq!(auth_fault(pencil, &[auth(10, b"OAUTHBEARER\0\0")]).await, AuthFault::Mechanism);
    assert_eq!(auth_fault(pencil, &[auth(10, b"SCRAM-SHA-256")]).await, AuthFault::Mechanism);
    assert_eq!(auth_fault(pencil, &[sasl(), auth(0, b"")]).await, AuthFault::Unproven);
    assert_eq!(auth_fault(pencil, &[sasl(), auth(3, b"")]).await, AuthFault::Order, "downgrade");
    assert_eq!(auth_fault(pencil, &[sasl(), auth(12, b"v=")]).await, AuthFault::Order);
    assert_eq!(auth_fault(pencil, &[auth(11, b"")]).await, AuthFault::Order);
    assert_eq!(auth_fault(pencil, &[auth(3, b""), auth(3, b"")]).await, AuthFault::Order);
    let replay = auth(11, b"r=somebody-elses,s=c2FsdA==,i=4096");
    assert_eq!(auth_fault(pencil, &[sasl(), replay]).await, AuthFault::Scram(ScramFault::Nonce));
    assert_eq!(protocol_fault(&[frame(b'R', b"\0")]).await, ProtocolFault::Malformed(b'R'));
    assert_eq!(protocol_fault(&[auth(5, b"123")]).await, ProtocolFault::Malformed(b'R'));
}

#[tokio::test]
async fn hostile_lengths_are_refused_by_their_header_alone() {
    for len in [i32::MAX, MAX_LEN + 1, 3, 0, -1, i32::MIN] {
        let mut header = vec![b'S'];
        header.put_i32(len);
        let fault = protocol_fault(&[auth(0, b""), header]).await;
        assert_eq!(fault, ProtocolFault::Length { kind: b'S', len });
    }
}

#[tokio::test]
async fn a_server_that_never_comes_to_the_point_is_cut_off() {
    let notice = frame(b'N', &[b'x'; 60_000]);
    let endless = vec![notice; 5];
    assert_eq!(protocol_fault(&endless).await, ProtocolFault::TooMuch);
    let mut parameters = vec![auth(0, b"")];
    parameters.extend((0..=MAX_PARAMETERS).map(|n| frame(b'S', format!("p{n}\0v\0").as_bytes())));
    assert_eq!(protocol_fault(&parameters).await, ProtocolFault::TooMuch);
    parameters.pop();
    parameters.push(ready());
    assert_eq!(hears(None, &parameters).await.unwrap().parameters.len(), MAX_PARAMETERS);
}

#[tokio::test]
async fn messages_without_a_place_in_a_login_end_it() {
    for (said, fault) in [
        (vec![frame(b'D', b"")], ProtocolFault::Unexpected(b'D')),
        (vec![frame(b'S', b"a\0b\0")], ProtocolFault::Unexpected(b'S')),
        (vec![auth(0, b""), auth(0, b"")], ProtocolFault::Unexpected(b'R')),
        (vec![auth(0, b""), frame(b'T', b"")], ProtocolFault::Unexpected(b'T')),
        (vec![auth(0, b""), frame(b'S', b"a\0b")], ProtocolFault::Malformed(b'S')),
        (vec![auth(0, b""), frame(b'K', b"\0\0")], ProtocolFault::Malformed(b'K')),
        (vec![auth(0, b""), frame(b'K', &[0; 4 + 3])], ProtocolFault::Malformed(b'K')),
        (vec![auth(0, b""), frame(b'K', &[0; 4 + 257])], ProtocolFault::Malformed(b'K')),
        (vec![auth(0, b""), frame(b'Z', b"T")], ProtocolFault::NotIdle),
        (vec![auth(0, b""), frame(b'Z', b"")], ProtocolFault::NotIdle),
        (vec![auth(0, b""), ready(), frame(b'N', b"")], ProtocolFault::NotIdle),
    ] {
        assert_eq!(protocol_fault(&said).await, fault, "{said:?}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_is_an_io_error() {
    let (mut ours, mut theirs) = duplex(4096);
    theirs.write_all(&auth(0, b"")[..5]).await.unwrap();
    theirs.shutdown().await.unwrap();
    let error = login(&mut ours, &target(None), None).await.unwrap_err();
    assert!(matches!(&error, DialError::Io(e) if e.kind() == std::io::ErrorKind::UnexpectedEof), "{error}");
}

proptest::proptest! {
    #[test]
    fn hostile_bytes_never_panic(kinds in "[RSKZENv]{1,6}", body in proptest::collection::vec(0..20u8, 0..24)) {
        let said: Vec<_> = kinds.bytes().map(|kind| frame(kind, &body)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut ours, mut theirs) = duplex(1 << 16);
            theirs.write_all(&said.concat()).await.unwrap();
            theirs.shutdown().await.unwrap();
            let _ = login(&mut ours, &target(Some("pencil")), None).await;
        });
    }
}
