//! Backends die and statements are cancelled at any time: no byte is compared with a direct connection
//! here, only what must hold whatever the moment. Each client's literals bear its name, and no reply
//! ever bears another's; whoever did not lose a backend or a statement notices nothing; in the end the
//! pool is as it was.

use super::ops::Rng;
use super::{SEED, number};
use crate::support::watch::leases;
use crate::support::{Config, Db, Msg, PATIENCE, Proxy, SETTINGS, STATEMENTS, Wire, msg, until, wire};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const CLIENTS: usize = 5;
/// Blows, and rounds that each client lives at least.
const BLOWS: usize = 120;
const ROUNDS: usize = 150;

/// What the one who strikes and the one who is struck both know of a client.
#[derive(Default)]
struct Victim {
    key: Mutex<(i32, Vec<u8>)>,
    /// CancelRequests that were sent for it, counted before.
    cancels: AtomicUsize,
}

/// Everybody.
struct Field<'a> {
    proxy: &'a Proxy,
    victims: [Victim; CLIENTS],
    kills: AtomicUsize,
    lost: AtomicUsize,
    rounds: AtomicUsize,
    over: AtomicBool,
}

#[test]
fn who_is_not_struck_notices_nothing() {
    let db = Db::new();
    let size = if STATEMENTS { 2 } else { CLIENTS };
    let config = Config::of_size(size)
        .lazy()
        .with("pool", "reuse = \"round_robin\"")
        .with("pool", "max_wait = \"15s\"")
        .with("tenant.\"*\"", "mode = \"observe\"");
    let proxy = Proxy::start(&db, config);
    let field = Field {
        proxy: &proxy,
        victims: Default::default(),
        kills: AtomicUsize::new(0),
        lost: AtomicUsize::new(0),
        rounds: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    };
    let seed = number(SEED, 1);
    let cancelled: usize = std::thread::scope(|scope| {
        let client = |name: usize| {
            let rng = Rng(seed.wrapping_mul(31).wrapping_add(name as u64));
            let field = &field;
            scope.spawn(move || Client::new(field, name, rng).live())
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        let blows = strike(&db, &field, Rng(seed), || clients.iter().any(|client| client.is_finished()));
        field.over.store(true, Ordering::Relaxed);
        let cancelled = clients.into_iter().map(|client| client.join().expect("untroubled, see above")).sum();
        assert_eq!(blows, BLOWS, "seed {seed}: a client gave up");
        cancelled
    });
    let (kills, lost) = (field.kills.into_inner(), field.lost.into_inner());
    assert!(lost <= kills, "seed {seed}: {lost} sessions ended by {kills} backends");
    assert!(lost > 0 && cancelled > 0, "seed {seed}: {lost} lost, {cancelled} cancelled: nobody was struck");
    until("nobody holds a backend", || leases(&proxy) == 0);
    assert!(db.pids().len() <= size, "more backends than the pool has");
    let mut all: Vec<Wire> = (0..size).map(|_| proxy.connect()).collect();
    for wire in &mut all {
        wire.batch("begin");
        assert_eq!(wire.query("select coalesce(current_setting('app.mark', true), '')").value(), "");
    }
    drop(all);
    proxy.stop();
}

/// Cancels and kills, now and then, as the clients get on. How often.
fn strike(db: &Db<'_>, field: &Field<'_>, mut rng: Rng, given_up: impl Fn() -> bool) -> usize {
    for blow in 0..BLOWS {
        let next = field.rounds.load(Ordering::Relaxed) + 1 + rng.below(8);
        let waits = || field.rounds.load(Ordering::Relaxed) < next;
        let start = std::time::Instant::now();
        while waits() {
            if given_up() || start.elapsed() > PATIENCE {
                return blow;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        if rng.one_in(3) {
            let pids = db.pids();
            if pids.is_empty() {
                continue;
            }
            let pid = rng.pick(&pids);
            field.kills.fetch_add(1, Ordering::SeqCst);
            db.ask(&format!("select pg_terminate_backend({pid})"));
        } else {
            let victim = &field.victims[rng.below(CLIENTS)];
            let (pid, key) = victim.key.lock().expect("not poisoned").clone();
            victim.cancels.fetch_add(1, Ordering::SeqCst);
            wire::cancel(field.proxy.addr(), pid, &key);
        }
    }
    BLOWS
}

/// One client: what it says, and what it may hear.
struct Client<'f> {
    field: &'f Field<'f>,
    name: usize,
    rng: Rng,
    wire: Wire,
    /// What it has set `app.mark` to; empty if it has not.
    mark: String,
    /// The named statement is prepared.
    prepared: bool,
    cancelled: usize,
    count: usize,
}

/// Its backend, or its session, is gone.
struct Lost;

impl<'f> Client<'f> {
    fn new(field: &'f Field<'f>, name: usize, rng: Rng) -> Client<'f> {
        let wire = field.proxy.connect();
        let mut client =
            Client { field, name, rng, wire, mark: String::new(), prepared: false, cancelled: 0, count: 0 };
        client.told_key();
        client
    }

    fn told_key(&mut self) {
        let victim = &self.field.victims[self.name];
        *victim.key.lock().expect("not poisoned") = (self.wire.pid, self.wire.key.clone());
    }

    /// How many of its statements were cancelled.
    fn live(mut self) -> usize {
        let mut rounds = 0;
        while rounds < ROUNDS || !self.field.over.load(Ordering::Relaxed) {
            if self.round().is_err() {
                self.field.lost.fetch_add(1, Ordering::SeqCst);
                self.wire = self.field.proxy.connect();
                (self.mark, self.prepared) = (String::new(), false);
                self.told_key();
            }
            self.field.rounds.fetch_add(1, Ordering::Relaxed);
            rounds += 1;
        }
        self.cancelled
    }

    fn next_mark(&mut self) -> String {
        self.count += 1;
        format!("client{}-{}", self.name, self.count)
    }

    fn round(&mut self) -> Result<(), Lost> {
        let mark = self.next_mark();
        match self.rng.below(8) {
            0 => self.expect(&msg::query(&format!("select '{mark}'")), &[&mark]),
            1 => self.expect(&msg::query(&format!("select '{mark}', pg_sleep(0.005)")), &[&mark]),
            2 => self.expect(&[msg::unnamed(&format!("select '{mark}'")), msg::sync()].concat(), &[&mark]),
            3 => self.named(&mark),
            4 => self.transaction(&mark),
            5 if SETTINGS => self.setting(&mark),
            6 => {
                let rows = format!("select '{mark}' from generate_series(1, 2000)");
                self.expect(&msg::query(&rows), &vec![mark.as_str(); 2000])
            }
            _ => {
                let one = [msg::unnamed(&format!("select '{mark}', pg_sleep(0.002)")), msg::sync()].concat();
                self.wire.try_send(&one.repeat(3)).map_err(|_| Lost)?;
                (0..3).try_for_each(|_| self.answer(&[&mark]).map(drop))
            }
        }
    }

    fn named(&mut self, mark: &str) -> Result<(), Lost> {
        let mut bytes = Vec::new();
        if !self.prepared {
            // Its own text, so that it is nobody else's statement.
            bytes.extend(msg::parse("n", &format!("select 'client{}-' || $1::text", self.name)));
        }
        let number = mark.rsplit('-').next().expect("a number");
        bytes.extend(msg::bind_with("", "n", &[Some(number)]));
        bytes.extend([msg::execute("", 0), msg::sync()].concat());
        self.wire.try_send(&bytes).map_err(|_| Lost)?;
        let parsed = self.answer(&[mark])?;
        self.prepared |= parsed.iter().any(|message| message.kind == b'1');
        Ok(())
    }

    fn setting(&mut self, mark: &str) -> Result<(), Lost> {
        let set = self.ask(&msg::query(&format!("set app.mark = '{mark}'")), &[])?;
        if set.iter().any(|message| message.to_string() == "C(SET)") {
            self.mark = mark.to_owned();
        }
        let mark = self.mark.clone();
        self.expect(&msg::query("select coalesce(current_setting('app.mark', true), '')"), &[&mark])
    }

    fn transaction(&mut self, mark: &str) -> Result<(), Lost> {
        for sql in ["begin", "savepoint a"] {
            self.ask(&msg::query(sql), &[])?;
        }
        self.ask(&[msg::unnamed(&format!("select '{mark}'")), msg::sync()].concat(), &[mark])?;
        let end = self.rng.pick(&["commit", "rollback"]);
        self.ask(&msg::query(end), &[])?;
        // A cancel may have come before the end and kept the transaction open.
        self.ask(&msg::query("rollback"), &[]).map(drop)
    }

    fn expect(&mut self, bytes: &[u8], rows: &[&str]) -> Result<(), Lost> {
        self.ask(bytes, rows).map(drop)
    }

    fn ask(&mut self, bytes: &[u8], rows: &[&str]) -> Result<Vec<Msg>, Lost> {
        self.wire.try_send(bytes).map_err(|_| Lost)?;
        self.answer(rows)
    }

    /// Reads to ReadyForQuery. Either the first values of the rows are these, or there is an error that
    /// a blow accounts for.
    fn answer(&mut self, rows: &[&str]) -> Result<Vec<Msg>, Lost> {
        let mut messages = Vec::new();
        loop {
            match self.wire.try_recv(PATIENCE) {
                Ok(Some(message)) => messages.push(message),
                // A reset, or the end: it was in its right if a backend died.
                Ok(None) => return Err(Lost),
                Err(error) => panic!("client {} waits in vain ({error}) after {messages:?}", self.name),
            }
            let last = messages.last().expect("just pushed");
            self.is_its_own(last);
            if last.kind == b'Z' {
                break;
            }
        }
        match messages.iter().find(|message| message.kind == b'E') {
            None => {
                let seen: Vec<String> = messages.iter().filter(|m| m.kind == b'D').map(first_value).collect();
                assert_eq!(seen, rows, "client {}: rows of {messages:?}", self.name);
            }
            Some(error) => self.accept(error, &messages),
        }
        Ok(messages)
    }

    /// No other client's name is in it.
    fn is_its_own(&self, message: &Msg) {
        for at in 0..message.body.len() {
            if let Some(rest) = message.body[at..].strip_prefix(b"client")
                && let [digit @ b'0'..=b'9', b'-', ..] = rest
            {
                let name = usize::from(digit - b'0');
                assert_eq!(name, self.name, "client {} was sent client {name}'s {message:?}", self.name);
            }
        }
    }

    fn accept(&mut self, error: &Msg, messages: &[Msg]) {
        match error.field(b'C').as_deref() {
            Some("57014") => {
                self.cancelled += 1;
                let sent = self.field.victims[self.name].cancels.load(Ordering::SeqCst);
                // PostgreSQL signals the process and then its group: that may be two statements.
                let (name, most) = (self.name, 2 * sent);
                assert!(
                    self.cancelled <= most,
                    "client {name}: {sent} cancels, one more error: {messages:?}"
                );
            }
            // After a cancelled statement of the same transaction.
            Some("25P02") => {}
            // After a cancelled BEGIN.
            Some("25P01") => {}
            _ => panic!("client {}: {messages:?}", self.name),
        }
    }
}

fn first_value(row: &Msg) -> String {
    let length = row.body[2..6].try_into().expect("a length");
    let length = usize::try_from(i32::from_be_bytes(length)).expect("not NULL");
    String::from_utf8_lossy(&row.body[6..6 + length]).into_owned()
}
