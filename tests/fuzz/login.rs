//! Logins: of clients that send anything to Bursar, and of Bursar at servers that do.

use super::choices::Choices;
use bursar::auth::{Failure, MockKey, Step, Verifier, begin};
use bursar::backend::{DialError, Target, login};
use bursar::config::{AuthMethod, Database, Secret};
use bursar::wire::backend::message;
use bursar::wire::walk::{HEADER, Header};
use bytes::{BufMut, BytesMut};
use std::cell::Cell;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

/// `pencil` in each form; one round is enough to be wrong about.
const SECRETS: [&str; 3] = [
    "pencil",
    "md54a0a68b43b6cd5cf266fa02f196e2371",
    "SCRAM-SHA-256$1:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
     AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
];

const PENCIL: &[u8] = b"pencil\0";

/// A client that does not know the password does not get in, whatever it sends, and is told little.
#[test]
fn a_client_that_sends_anything() {
    const METHODS: [AuthMethod; 3] = [AuthMethod::Plain, AuthMethod::Md5, AuthMethod::ScramSha256];
    let (runtime, mock) = (runtime(), MockKey::random());
    let verifiers =
        SECRETS.map(|text| Verifier::parse(&secret(text)).unwrap().prepared("alice", &mock, None));
    bolero::check!().with_max_len(400).for_each(|input: &[u8]| {
        let mut choices = Choices(input);
        let method = choices.one_of(&METHODS);
        let known = verifiers.get(choices.below(4));
        let mut exchange = begin(method, "alice", known, &mock);
        let mut out = BytesMut::new();
        let mut step = exchange.first(&mut out);
        for _ in 0..4 {
            assert!(step == Step::More, "{step:?}");
            let asked = out.split();
            assert_eq!(Header::read(&asked).and_then(Header::total), Some(asked.len()));
            assert!(exchange.limit() <= 65_535);
            let body = answer(&asked, &mut choices);
            step = runtime.block_on(exchange.step(&body, &mut out));
            assert!(out.len() <= 200 + 2 * body.len());
            match step {
                Step::More => continue,
                Step::Done => assert!(method == AuthMethod::Plain && body == PENCIL && known.is_some()),
                Step::Failed(_) => assert!(out.is_empty()),
            }
            let again = runtime.block_on(exchange.step(PENCIL, &mut out));
            return assert_eq!(again, Step::Failed(Failure::Malformed));
        }
        panic!("a login without end");
    });
}

/// What the client says when asked this: the right form with something wrong about it, or anything.
fn answer(asked: &[u8], choices: &mut Choices<'_>) -> Vec<u8> {
    const ENDS: [&str; 4] = ["", ",x=y", ",m=ext", "\u{e9}"];
    const BINDINGS: [&str; 4] = ["c=biws", "c=eSws", "c=", "r=x"];
    const PROOFS: [&str; 4] = [",p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", ",p=AAAA", ",p=!", ",x=1"];
    if choices.below(4) == 0 {
        return choices.bytes(100).to_vec();
    }
    let code = asked.get(HEADER..HEADER + 4).unwrap_or_default();
    match code {
        [.., 10] => {
            let starts = ["n,,n=,r=", "y,,n=,r=", "p=tls-unique,,n=,r=", "n,a=root,n=,r=", "n,,m=e,n=,r="];
            let mut first = choices.one_of(&starts).as_bytes().to_vec();
            first.extend(choices.name(30).iter().map(|byte| byte % 128));
            first.extend_from_slice(choices.one_of(&ENDS).as_bytes());
            let mut body = choices.one_of(&[&b"SCRAM-SHA-256\0"[..], b"SCRAM-SHA-256-PLUS\0"]).to_vec();
            match choices.below(8) {
                0 => body.put_i32(-1),
                1 => body.put_i32(i32::MAX),
                _ => {
                    body.put_u32(first.len() as u32);
                    body.extend_from_slice(&first);
                }
            }
            body
        }
        [.., 11] if asked.len() > HEADER + 4 => {
            let reply = String::from_utf8_lossy(&asked[HEADER + 4..]);
            let nonce = reply.split(',').next().unwrap_or_default();
            let (binding, end) = (choices.one_of(&BINDINGS), choices.one_of(&ENDS));
            format!("{binding},{nonce}{end}{}", choices.one_of(&PROOFS)).into_bytes()
        }
        [.., 11] => b"n,,n=,r=abc".to_vec(),
        _ => [choices.one_of(&[&b"pencil"[..], b"md5", b"\0", b""]), choices.bytes(40)].concat(),
    }
}

/// A server that says anything ends the login, or has it, within bounds; one that asks for a proof gets no
/// session without its own.
#[test]
fn a_server_that_sends_anything() {
    let runtime = runtime();
    let table = Database { host: "db".into(), ..Database::default() };
    bolero::check!().with_max_len(120).for_each(|input: &[u8]| {
        let mut choices = Choices(input);
        let password = secret("pencil");
        let target = Target::new(&table, "app", "alice", choices.coin().then_some(&password));
        let (mut ours, theirs) = duplex(512);
        let end_point = choices.coin().then(|| Arc::from([7; 32]));
        let asked = Cell::new(false);
        let login = runtime.block_on(async {
            let mut login = std::pin::pin!(login::login(&mut ours, &target, end_point));
            tokio::select! {
                login = &mut login => login,
                // It has hung up.
                () = serve(theirs, choices, &asked) => login.await,
            }
        });
        match login {
            Ok(login) => {
                assert!(!asked.get(), "logged in without a proof");
                assert!(login.parameters.len() <= 128);
                assert!(login.key.is_empty() || (4..=256).contains(&login.key.len()));
            }
            Err(DialError::Server { code, body }) => {
                assert!(body.windows(5).any(|five| five == code) && body.len() <= 64 << 10);
            }
            Err(DialError::Timeout) => panic!("nobody looks at the clock"),
            Err(_) => {}
        }
    });
}

/// Says what the choices say, and notes whether it has asked for a proof.
async fn serve(mut io: DuplexStream, mut choices: Choices<'_>, asked: &Cell<bool>) {
    let (mut heard, mut out) = ([0; 1024], BytesMut::new());
    let mut nonce = String::new();
    // Often the beginning and the end are what they should be.
    let (opens, ends) = (choices.coin(), choices.coin());
    if opens {
        message(&mut out, b'R', |out| {
            out.put_i32(10);
            out.extend_from_slice(b"SCRAM-SHA-256\0\0");
        });
        asked.set(true);
    }
    while !choices.0.is_empty() {
        let kind = choices.one_of(b"RRRRSKZNEvT");
        let mut code = 0;
        match choices.below(8) {
            0 => out.extend_from_slice(choices.bytes(40)),
            1 => {
                out.put_u8(kind);
                out.put_u32(choices.one_of(&[0, 3, 4, 60_000, 65_537, 0x7fff_ffff, 0xffff_ffff]));
            }
            2 if choices.below(8) == 0 => message(&mut out, b'N', |out| out.put_bytes(b'x', 60_000)),
            _ => message(&mut out, kind, |out| code = say(kind, &mut choices, &nonce, out)),
        }
        asked.set(asked.get() || code == 10);
        // In two pieces, however long it is.
        let first = out.split_to(usize::from(choices.byte()).min(out.len()));
        for piece in [first, out.split()] {
            if io.write_all(&piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        if choices.coin() {
            let n = tokio::select! {
                biased;
                n = io.read(&mut heard) => n.unwrap_or(0),
                () = tokio::task::yield_now() => 0,
            };
            let text = String::from_utf8_lossy(&heard[..n]);
            if let Some((_, told)) = text.split_once("n,,n=,r=") {
                told.clone_into(&mut nonce);
            }
        }
    }
    if ends {
        message(&mut out, b'R', |out| out.put_i32(0));
        message(&mut out, b'Z', |out| out.put_u8(b'I'));
        let _ = io.write_all(&out).await;
    }
}

/// A body of this type, of which something may be wrong. Returns the code of an Authentication message.
fn say(kind: u8, choices: &mut Choices<'_>, nonce: &str, out: &mut BytesMut) -> i32 {
    let mut code = 0;
    match kind {
        b'R' => {
            code = choices.one_of(&[0, 10, 11, 12, 3, 5, 7, -1]);
            out.put_i32(code);
            match code {
                5 => out.extend_from_slice(choices.bytes(5)),
                10 => {
                    out.extend_from_slice(choices.one_of(&[&b"SCRAM-SHA-256\0\0"[..], b"PLAIN\0\0", b"SC"]))
                }
                11 => {
                    let rounds = choices.one_of(&[
                        "1",
                        "8",
                        "0",
                        "100001",
                        "4294967297",
                        "-1",
                        "",
                        "99999999999999999999",
                    ]);
                    let (more, salt) =
                        (choices.one_of(&["x", "", ",", "\u{e9}"]), choices.one_of(&["c2FsdA==", "", "!"]));
                    out.extend_from_slice(format!("r={nonce}{more},s={salt},i={rounds}").as_bytes());
                }
                12 => out.extend_from_slice(choices.one_of(&[&b"v=AAAA"[..], b"e=no", b"v=", b"\xff"])),
                _ => out.extend_from_slice(choices.bytes(2)),
            }
        }
        b'K' => {
            out.put_i32(7);
            out.put_bytes(1, choices.one_of(&[4, 0, 3, 32, 255]));
            out.extend_from_slice(choices.bytes(3));
        }
        b'Z' => out.extend_from_slice(choices.one_of(&[&b"I"[..], b"T", b"", b"II"])),
        b'v' => {
            out.put_u32(choices.one_of(&[0x0003_0000, 0x0003_0002, 0, 0x0003_0003, 0x0004_0000]));
            out.put_u32(choices.one_of(&[0, 1]));
        }
        b'E' => {
            out.extend_from_slice(choices.one_of(&[&b"SFATAL\0C28P01\0\0"[..], b"C28\0\0", b"C28P01", b""]))
        }
        _ => {
            out.extend_from_slice(&choices.name(10));
            out.put_u8(0);
            out.extend_from_slice(&choices.name(10));
            out.extend_from_slice(choices.one_of(&[&b"\0"[..], b""]));
        }
    }
    code
}
