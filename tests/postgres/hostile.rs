//! Peers that break the protocol, by error or by intent, on either side. Each harms its own session
//! only: others go on, nothing panics, nothing grows, no lease is kept.

use crate::support::impostor::{BAIT, Impostor, Script, Then, header};
use crate::support::watch::{leases, metric, peak_mib};
use crate::support::{Config, Db, Login, PATIENCE, Proxy, Refused, Wire, msg, until};
use std::time::Duration;

/// What the proxy may grow by, in MiB.
const ROOM: u64 = 64;

/// A proxy before a real database and, as the database `evil`, before an impostor; and somebody who
/// works with the real one all the time.
struct Scene {
    _db: Db<'static>,
    proxy: Proxy,
    bystander: Wire,
    before: u64,
}

impl Scene {
    fn new(config: Config) -> Scene {
        let db = Db::new();
        let proxy = Proxy::start(&db, config);
        let mut bystander = proxy.connect();
        bystander.batch("select 1");
        let before = peak_mib(&proxy);
        Scene { _db: db, proxy, bystander, before }
    }

    fn evil(impostor: &Impostor) -> Scene {
        let config = Config::of_size(2)
            .lazy()
            .with("database.evil", "host = \"127.0.0.1\"")
            .with("database.evil", &format!("port = {}", impostor.port()))
            .with("database.evil", "max_wait = \"1s\"")
            .with("database.evil", "connect_timeout = \"500ms\"");
        Scene::new(config)
    }

    fn login(&self) -> Result<Wire, Refused> {
        Wire::try_login(self.proxy.addr(), &Login::new("app", "evil"))
    }

    /// The others work, and what was taken has been given back.
    fn check(&mut self, what: &str) {
        assert_eq!(self.bystander.query("select 'well'").value(), "well", "after {what}");
        until(&format!("no lease is kept after {what}"), || leases(&self.proxy) == 0);
        assert_eq!(metric(&self.proxy, "bursar_panics_total"), 0.0, "after {what}");
        let grown = peak_mib(&self.proxy) - self.before;
        assert!(grown < ROOM, "after {what} the proxy has grown by {grown} MiB");
    }

    fn stop(self) {
        drop(self.bystander);
        self.proxy.stop();
    }
}

/// xorshift64: the same bytes in every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(&mut next).take(length).collect()
}

const UNKNOWN: &str = "E(FATAL 08007) EOF";

#[test]
fn a_server_that_breaks_the_protocol_ends_the_session_it_serves() {
    let ready = || msg::message(b'Z', b"I");
    let done = || msg::message(b'C', b"SELECT 0\0");
    let cases: Vec<(&str, Vec<u8>, Then, &str)> = vec![
        ("the longest length", header(b'T', i32::MAX), Then::Silence, UNKNOWN),
        ("a length of -1", header(b'T', -1), Then::Silence, UNKNOWN),
        ("a length of 0", header(b'D', 0), Then::Silence, UNKNOWN),
        ("a length of 3", header(b'D', 3), Then::Silence, UNKNOWN),
        ("an error of 1 GiB", header(b'E', 1 << 30), Then::Endless(vec![b'x'; 4096]), UNKNOWN),
        ("an unknown type", msg::message(b'y', b""), Then::Silence, UNKNOWN),
        ("type 0", vec![0; 64], Then::Silence, UNKNOWN),
        ("ParseComplete for a Query", msg::message(b'1', b""), Then::Silence, UNKNOWN),
        ("NoData for a Query", msg::message(b'n', b""), Then::Silence, UNKNOWN),
        ("a login question", msg::message(b'R', &[0, 0, 0, 3]), Then::Silence, UNKNOWN),
        ("a new key", msg::message(b'K', &[0; 8]), Then::Silence, UNKNOWN),
        ("ReadyForQuery without a status", msg::message(b'Z', b""), Then::Silence, UNKNOWN),
        ("ReadyForQuery of a status unknown", msg::message(b'Z', b"X"), Then::Silence, UNKNOWN),
        ("the end", Vec::new(), Then::Close, UNKNOWN),
        ("half a message", [header(b'T', 100), vec![0; 9]].concat(), Then::Close, "EOF"),
        ("half a header", vec![b'T', 0], Then::Close, UNKNOWN),
        (
            "two ends",
            [done(), ready(), ready()].concat(),
            Then::Silence,
            "C(SELECT 0) Z(I) E(FATAL 08006) EOF",
        ),
    ];
    for (what, bytes, then, expected) in cases {
        let impostor = Impostor::start(Script::answer(bytes, then));
        let mut scene = Scene::evil(&impostor);
        for _ in 0..2 {
            let mut client = scene.login().expect("the impostor lets everybody in");
            client.send(&msg::query(BAIT));
            assert_eq!(client.recv_to_end().trace(), expected, "{what}");
            scene.check(what);
        }
        scene.stop();
    }
}

/// What comes after the lease has ended must reach nobody.
#[test]
fn what_a_server_says_to_nobody_reaches_nobody() {
    let row = || msg::message(b'D', &[0, 1, 0, 0, 0, 1, b'!']);
    let ready = || msg::message(b'Z', b"I");
    let answer = || [msg::message(b'C', b"SELECT 0\0"), ready()].concat();
    let cases = [
        ("a row", row()),
        ("an end", ready()),
        ("an answer", [row(), answer()].concat()),
        ("half a message", header(b'D', 100)),
        ("an error", msg::message(b'E', b"SERROR\0VERROR\0C22012\0Mno\0\0")),
        ("last words", msg::message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mbye\0\0")),
    ];
    for (what, bytes) in cases {
        let impostor = Impostor::start(Script::answer(answer(), Then::OnCue(bytes)));
        let mut scene = Scene::evil(&impostor);
        let mut first = scene.login().expect("the impostor lets everybody in");
        assert_eq!(first.query(BAIT).trace(), "C(SELECT 0) Z(I)", "{what}");
        until("the lease is over", || leases(&scene.proxy) == 0);
        impostor.say_on();
        assert_eq!(first.query("set a.b = 'c'").trace(), "C(SET) Z(I)", "{what}");
        let mut second = scene.login().expect("the impostor lets everybody in");
        assert_eq!(second.query("set a.b = 'c'").trace(), "C(SET) Z(I)", "{what}");
        drop((first, second));
        scene.check(what);
        scene.stop();
    }
}

/// A backend that is ended right behind its answer: what it says of that comes in one read with the
/// answer, whose session goes on.
#[test]
fn last_words_right_behind_an_answer_reach_nobody() {
    let answer = [msg::message(b'C', b"SELECT 0\0"), msg::message(b'Z', b"I")].concat();
    let bye = msg::message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mbye\0\0");
    let impostor = Impostor::start(Script::answer([answer, bye].concat(), Then::Close));
    let mut scene = Scene::evil(&impostor);
    let mut client = scene.login().expect("the impostor lets everybody in");
    for _ in 0..3 {
        assert_eq!(client.query(BAIT).trace(), "C(SELECT 0) Z(I)");
        // To be read with the next answer, if it were sent.
        assert_eq!(client.query("set bursar.request_id = 'r'").trace(), "C(SET) Z(I)");
    }
    drop(client);
    scene.check("last words");
    scene.stop();
}

#[test]
fn a_server_of_noise_harms_nobody_else() {
    for seed in 1..=20 {
        let bytes = noise(seed, 4096);
        let impostor = Impostor::start(Script::answer(bytes, Then::Close));
        let mut scene = Scene::evil(&impostor);
        let mut client = scene.login().expect("the impostor lets everybody in");
        client.send(&msg::query(BAIT));
        assert!(client.recv_to_end().closed);
        scene.check(&format!("noise of seed {seed}"));
        scene.stop();
    }
}

/// Such a server cannot be told from a slow one; but the client can leave, and its lease ends then.
#[test]
fn a_server_that_never_ends_is_left_with_its_client() {
    let row = msg::message(b'D', &[&[0, 1, 0, 0, 3, 232][..], &[b'r'; 1000]].concat());
    let columns = msg::message(b'T', &[0, 0]);
    let notice = msg::message(b'N', b"SNOTICE\0C00000\0Mdrip\0\0");
    let cases = vec![
        ("silence", Vec::new(), Then::Silence),
        ("half a message and silence", [header(b'T', 100), vec![0; 9]].concat(), Then::Silence),
        ("half an error and silence", [header(b'E', 1000), b"SERROR\0".to_vec()].concat(), Then::Silence),
        ("rows without end", columns, Then::Endless(row)),
        ("notices without end", Vec::new(), Then::Endless(notice)),
        ("an error of almost 1 GiB", header(b'E', 0x3fff_fff0), Then::Endless(vec![b'x'; 65_536])),
    ];
    // Side by side: each takes the patience of the proxy.
    std::thread::scope(|scope| {
        for (what, bytes, then) in cases {
            scope.spawn(move || leave_during(what, bytes, then));
        }
    });
}

fn leave_during(what: &str, bytes: Vec<u8>, then: Then) {
    let impostor = Impostor::start(Script::answer(bytes, then));
    let mut scene = Scene::evil(&impostor);
    let mut client = scene.login().expect("the impostor lets everybody in");
    client.send(&msg::query(BAIT));
    until("the lease is held", || leases(&scene.proxy) == 1);
    assert_eq!(scene.bystander.query("select 'well'").value(), "well", "during {what}");
    drop(client);
    scene.check(what);
    scene.stop();
}

#[test]
fn a_server_that_breaks_the_login_lets_nobody_in() {
    let notice = msg::message(b'N', b"SNOTICE\0C00000\0Mdrip\0\0");
    let cases = vec![
        ("the longest length", header(b'R', i32::MAX), Then::Silence),
        ("a length of -1", header(b'R', -1), Then::Silence),
        ("silence", Vec::new(), Then::Silence),
        ("the end", Vec::new(), Then::Close),
        ("an error without end", header(b'E', 1 << 30), Then::Endless(vec![b'x'; 4096])),
        ("notices without end", Vec::new(), Then::Endless(notice)),
        ("an unknown method", msg::message(b'R', &[0, 0, 0, 99]), Then::Silence),
        ("rows", msg::message(b'D', &[0, 0]), Then::Silence),
        ("noise", noise(7, 4096), Then::Silence),
    ];
    for (what, bytes, then) in cases {
        let impostor = Impostor::start(Script::greeting(bytes, then));
        let mut scene = Scene::evil(&impostor);
        match scene.login() {
            Err(Refused::Said(reply)) => assert_eq!(reply.trace(), "E(FATAL 57P03) EOF", "{what}"),
            Err(Refused::Io(error)) => panic!("{what}: {error}"),
            Ok(_) => panic!("{what}: a login"),
        }
        scene.check(what);
        scene.stop();
    }
}

/// PostgreSQL itself says what is right.
#[test]
fn a_client_that_breaks_the_protocol_is_treated_as_by_postgres() {
    let mut scene = Scene::new(Config::of_size(2).lazy());
    let good = || [msg::parse("", "select 1"), msg::bind("", ""), msg::execute("", 0)].concat();
    let query = || msg::query("select 1");
    let mut cases: Vec<Vec<u8>> = Vec::new();
    for length in [-1, 0, 3, i32::MAX, i32::MIN, 0x4000_0000] {
        for kind in [b'Q', b'P', b'B', b'S', b'd'] {
            cases.push(header(kind, length));
            cases.push([query(), header(kind, length), vec![0; 16]].concat());
        }
    }
    for kind in [0, b'!', b'a', b'z', 255] {
        cases.push(msg::message(kind, b"whatever"));
        cases.push([query(), msg::message(kind, b"")].concat());
        cases.push([good(), msg::sync(), msg::message(kind, b""), good(), msg::sync()].concat());
    }
    for end in [1, 4, 5, 9] {
        cases.push(query()[..end].to_vec());
        cases.push([query(), query()[..end].to_vec()].concat());
    }
    cases.push(scene.proxy.as_app().packet());
    for bytes in cases {
        let what = bytes.escape_ascii().to_string();
        let tell = |mut wire: Wire| {
            wire.send(&bytes);
            wire.half_close();
            wire.recv_to_end().trace()
        };
        let right = tell(scene._db.direct());
        assert_eq!(tell(scene.proxy.connect()), right, "{what}");
        scene.check(&what);
    }
    scene.stop();
}

#[test]
fn clients_of_noise_harm_nobody_else() {
    let mut scene = Scene::new(Config::of_size(2).lazy());
    for seed in 1..=200 {
        let mut client = scene.proxy.connect();
        let mut bytes = noise(seed, 1 + (seed as usize * 37) % 2000);
        if seed % 2 == 0 {
            // A header of sense, so that the noise is in the message.
            let head = header(b"QPBDECFdHS"[seed as usize / 2 % 10], 20 + (seed % 400) as i32);
            bytes.splice(..0, head);
        }
        // It may be thrown out while it still sends.
        let _ = client.try_send(&bytes);
        if seed % 3 > 0 {
            client.half_close();
            assert!(client.recv_to_end().closed);
        }
    }
    scene.check("noise");
    scene.stop();
}

#[test]
fn ten_thousand_pipelined_messages_are_answered_when_they_are_read() {
    const COUNT: usize = 10_000;
    let mut scene = Scene::new(Config::of_size(2).lazy());
    let pipeline = [msg::parse("", "select 1"), msg::sync()].concat().repeat(COUNT);
    let mut client = scene.proxy.connect();
    client.send(&pipeline);
    assert_eq!(scene.bystander.query("select 1").value(), "1");
    for n in 0..COUNT {
        assert_eq!(client.recv_reply().trace(), "1 Z(I)", "number {n}");
    }
    client.send(&pipeline);
    drop(client);
    scene.check("a pipeline that nobody reads");
    scene.stop();
}

#[test]
fn a_slow_reader_of_much_holds_up_nobody() {
    let mut scene = Scene::new(Config::of_size(2).lazy());
    let mut slow = scene.proxy.connect();
    slow.send(&msg::query("select repeat('x', 1000) from generate_series(1, 300000)"));
    let first = slow.try_recv(PATIENCE).expect("a message in time").expect("an open connection");
    assert_eq!(first.kind, b'T');
    for _ in 0..200 {
        assert_eq!(scene.bystander.query("select 1").value(), "1");
    }
    assert_eq!(leases(&scene.proxy), 1, "it has not read yet");
    let rest = slow.recv_reply();
    assert_eq!(rest.messages.iter().filter(|message| message.kind == b'D').count(), 300_000);
    assert!(rest.trace().ends_with("C(SELECT 300000) Z(I)"));

    slow.send(&msg::query("select repeat('x', 1000) from generate_series(1, 300000)"));
    until("rows arrive", || slow.try_recv(Duration::from_millis(100)).is_ok());
    drop(slow);
    scene.check("a reader that left");
    scene.stop();
}
