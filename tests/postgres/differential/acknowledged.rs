//! Transactions are ended by their budgets at any moment, and commits count (experiment E15): whatever the
//! moment and the messages, the table holds what clients were told is committed and nothing that they were
//! told is not; and no client loses a transaction without an error.

use super::ops::Rng;
use super::{PROGRAMS, SEED, number};
use crate::support::{Config, Db, Proxy, Reply, Wire, msg, until};
use std::collections::BTreeSet;
use std::time::Duration;

const CLIENTS: usize = 4;

/// Fewer backends than clients, so that some wait.
const BACKENDS: usize = 2;

/// Short enough that a client's pause or statement may be longer.
const BUDGETS: [&str; 2] = [
    "max_idle = { warn = \"off\", abort = \"12ms\", abort_alone = \"12ms\", mode = \"enforce\", force = true }",
    "max_age = { warn = \"off\", abort = \"60ms\", mode = \"enforce\", force = true }",
];

/// What a client knows of its rows.
#[derive(Default)]
struct Rows {
    there: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    /// Transactions that were committed, and that Bursar ended.
    commits: usize,
    ended: usize,
    /// Sessions that were ended with their transaction.
    lost: usize,
}

struct Client<'p> {
    proxy: &'p Proxy,
    wire: Wire,
    rng: Rng,
    name: u64,
    next: u64,
    rows: Rows,
    /// Of its transaction: rows that it was told are inserted, and whether it has heard an error.
    mine: Vec<u64>,
    warned: bool,
    /// It has asked for a ROLLBACK itself.
    asked: bool,
    status: u8,
}

#[test]
fn what_was_acknowledged_is_there_and_nothing_else() {
    let (transactions, seed) = (number(PROGRAMS, 160) / CLIENTS as u64, number(SEED, 1));
    let db = Db::new();
    db.run(&["create table ledger (row bigint primary key)"]);
    let config = BUDGETS
        .iter()
        .fold(Config::of_size(BACKENDS).lazy(), |config, line| config.with("budget.transaction", line));
    let config = config.with("pool", "max_wait = \"30s\"").with("tenant.\"*\"", "mode = \"observe\"");
    let proxy = Proxy::start(&db, config);
    let all: Vec<Rows> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS as u64)
            .map(|name| {
                let proxy = &proxy;
                scope.spawn(move || Client::new(proxy, name, seed).live(transactions))
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("no broken promise, see above")).collect()
    });
    until("no transaction is open", || db.backends("state <> 'idle'") == 0);
    let mut wire = db.direct();
    let committed: BTreeSet<u64> =
        wire.query("select row from ledger").rows().iter().map(|row| value(row[0].as_deref())).collect();
    let (mut commits, mut ended, mut lost) = (0, 0, 0);
    for rows in &all {
        assert!(rows.there.is_subset(&committed), "seed {seed}: a row that was told committed is missing");
        assert!(rows.gone.is_disjoint(&committed), "seed {seed}: a row that was told lost is there");
        (commits, ended, lost) = (commits + rows.commits, ended + rows.ended, lost + rows.lost);
    }
    println!(
        "{transactions} transactions of {CLIENTS} clients: {commits} commits, {ended} ended, {lost} lost"
    );
    assert!(commits > 0 && ended > 0, "seed {seed}: {commits} commits, {ended} ended");
    drop(wire);
    until("the look at the table is over", || db.pids().len() <= BACKENDS);
    proxy.stop();
}

fn value(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).expect("a number")
}

impl<'p> Client<'p> {
    fn new(proxy: &'p Proxy, name: u64, seed: u64) -> Client<'p> {
        let rng = Rng(seed.wrapping_mul(31).wrapping_add(name));
        let (rows, mine) = (Rows::default(), Vec::new());
        let mut client = Client {
            proxy,
            wire: proxy.connect(),
            rng,
            name,
            next: 0,
            rows,
            mine,
            warned: false,
            asked: false,
            status: b'I',
        };
        client.prepare();
        client
    }

    fn prepare(&mut self) {
        let parse =
            [msg::parse("commit", "commit"), msg::parse("insert", "insert into ledger values ($1::bigint)")];
        assert!(self.wire.ask(&[&parse.concat()[..], &msg::sync()].concat()).error().is_none());
    }

    fn live(mut self, transactions: u64) -> Rows {
        for _ in 0..transactions {
            self.transaction();
        }
        self.wire.bye();
        self.rows
    }

    fn transaction(&mut self) {
        let begin = self.rng.pick(&["begin", "begin", "start transaction read write"]);
        let simple = !self.rng.one_in(4);
        self.say(&if simple { msg::query(begin) } else { unnamed(begin) }, 1, None);
        for _ in 0..self.rng.below(4) {
            self.pause();
            self.statement();
        }
        self.pause();
        // Until it is out of it, as any application would.
        while self.status != b'I' {
            let way = self.rng.below(6);
            self.asked = way == 0 || way == 4 && self.status == b'E';
            let end = match way {
                0 => msg::query("rollback"),
                1 => unnamed("commit"),
                2 => [msg::bind("", "commit"), msg::execute("", 0), msg::sync()].concat(),
                3 => msg::query("commit; select 1"),
                4 if self.status == b'E' => unnamed("rollback"),
                _ => msg::query("commit"),
            };
            self.say(&end, 1, None);
        }
    }

    /// Shorter than a transaction may be idle, or longer.
    fn pause(&mut self) {
        if self.rng.one_in(3) {
            std::thread::sleep(Duration::from_millis(self.rng.below(40) as u64));
        }
    }

    fn statement(&mut self) {
        self.next += 1;
        let row = self.name * 1_000_000 + self.next;
        let text = format!("insert into ledger values ({row})");
        match self.rng.below(9) {
            0 | 1 => self.say(&msg::query(&text), 1, Some(row)),
            2 | 3 => self.say(&unnamed(&text), 1, Some(row)),
            4 => {
                let number = row.to_string();
                let bind = msg::bind_with("", "insert", &[Some(&number)]);
                self.say(&[bind, msg::execute("", 0), msg::sync()].concat(), 1, Some(row));
            }
            5 => self.say(&[unnamed("select 1"), unnamed(&text)].concat(), 2, Some(row)),
            6 => self.say(&msg::query("select pg_sleep(0.03)"), 1, None),
            7 => self.say(&msg::query("select 1 / 0"), 1, None),
            _ => self.say(&msg::query("savepoint a"), 1, None),
        }
    }

    /// Sends something that has so many ReadyForQuery messages, and takes note of what it is told; `row` is
    /// what it inserts.
    fn say(&mut self, bytes: &[u8], replies: usize, row: Option<u64>) {
        if self.wire.try_send(bytes).is_err() {
            return self.lose();
        }
        for _ in 0..replies {
            let reply = self.wire.recv_reply();
            if reply.closed {
                let code = reply.code();
                assert!(["57P01", "08006", "08007"].contains(&code.as_str()), "{}: {reply:?}", self.name);
                return self.lose();
            }
            self.hear(&reply, row);
        }
    }

    fn hear(&mut self, reply: &Reply, row: Option<u64>) {
        for message in &reply.messages {
            match message.to_string().as_str() {
                "C(INSERT 0 1)" => self.mine.extend(row),
                "C(COMMIT)" => {
                    self.rows.commits += usize::from(!self.mine.is_empty());
                    self.rows.there.extend(self.mine.drain(..));
                }
                "C(ROLLBACK)" => self.rows.gone.extend(self.mine.drain(..)),
                error if error.starts_with("E(") => {
                    let ended = ["E(25P03)", "E(25P04)"].contains(&error);
                    self.rows.ended += usize::from(ended);
                    let known = ["E(25P02)", "E(22012)", "E(34000)"].contains(&error);
                    assert!(ended || known, "{}: {reply:?}", self.name);
                    self.warned = true;
                }
                _ => {}
            }
        }
        self.status = reply.messages.last().map_or(b'I', |ready| ready.body[0]);
        assert!(self.status != b'E' || self.warned, "{}: failed without an error: {reply:?}", self.name);
        if self.status == b'I' {
            let rolled_back = reply.messages.iter().any(|message| message.to_string() == "C(ROLLBACK)");
            let silent = rolled_back && !self.asked && !self.warned;
            assert!(!silent, "{}: rolled back without a word: {reply:?}", self.name);
            self.rows.gone.extend(self.mine.drain(..));
            self.warned = false;
        }
    }

    /// Its session is gone, and nobody knows what became of its transaction.
    fn lose(&mut self) {
        self.rows.lost += 1;
        self.mine.clear();
        (self.status, self.warned) = (b'I', false);
        self.wire = self.proxy.connect();
        self.prepare();
    }
}

fn unnamed(sql: &str) -> Vec<u8> {
    [msg::unnamed(sql), msg::sync()].concat()
}
