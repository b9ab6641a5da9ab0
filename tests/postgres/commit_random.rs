//! Who was told COMMIT has its rows, and nobody else has any: random transactions in every protocol shape,
//! while their budgets roll them back, and their backends are cancelled and killed (budgets.md §2.6 and
//! §9, E15).
//!
//! Each client writes rows of its own, believes what it is told, and compares. `BURSAR_TEST_COMMITS` is
//! the number of transactions of each configuration, `BURSAR_TEST_SEED` the seed.

use crate::support::dice::{Dice, enter, harass, number};
use crate::support::watch::metric;
use crate::support::{Config, Db, Login, Proxy, Reply, Wire, msg};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

const CLIENTS: u64 = 6;
const BACKENDS: usize = 4;
/// Transactions between two comparisons.
const ROUND: usize = 100;
/// Longer than a transaction may be idle.
const PAUSE: Duration = Duration::from_millis(25);
const BUDGET: &str = "max_idle = { warn = \"5ms\", abort = \"10ms\", abort_alone = \"10ms\", mode = \"enforce\", force = true }";

struct Client {
    addr: SocketAddr,
    login: Login,
    wire: Wire,
    dice: Dice,
    /// The number of its next row.
    next: u64,
    /// Rows of the open transaction; where a savepoint begins among them.
    open: Vec<u64>,
    savepoint: Option<usize>,
    /// Rows that it was told are there, and those of which nobody has said anything.
    committed: BTreeSet<u64>,
    unknown: BTreeSet<u64>,
    refused: u64,
    /// Transactions that Bursar rolled back.
    aborted: u64,
}

/// A message or two that mean the same in every shape.
fn shaped(dice: &mut Dice, sql: &str) -> Vec<u8> {
    match dice.roll(3) {
        0 => msg::query(sql),
        1 => [msg::unnamed(sql), msg::sync()].concat(),
        _ => {
            let name = format!("s{}", dice.roll(3));
            let close = [msg::close_statement(&name), msg::parse(&name, sql), msg::bind("", &name)].concat();
            [close, msg::execute("", 0), msg::sync()].concat()
        }
    }
}

fn ends_with(reply: &Reply, status: &str) -> bool {
    reply.messages.last().is_some_and(|last| last.to_string() == status)
}

fn said(reply: &Reply, tag: &str) -> bool {
    reply.messages.iter().any(|message| message.to_string() == tag)
}

impl Client {
    /// `None`: the connection is gone, and what was open is not known.
    fn ask(&mut self, bytes: &[u8]) -> Option<Reply> {
        let reply = self.wire.try_send(bytes).ok().map(|()| self.wire.recv_reply()).filter(|r| !r.closed);
        if reply.is_none() {
            self.unknown.extend(self.open.drain(..));
            self.savepoint = None;
            self.wire = enter(self.addr, &self.login);
        }
        self.aborted += u64::from(reply.as_ref().is_some_and(|reply| reply.code() == "25P03"));
        reply
    }

    fn insert(&mut self) -> String {
        self.next += 1;
        self.open.push(self.next);
        format!("insert into t values ({})", self.next)
    }

    /// The transaction is over: its rows are there or they are not.
    fn over(&mut self, committed: bool) {
        self.savepoint = None;
        if committed {
            self.committed.extend(self.open.drain(..));
        } else {
            self.refused += 1;
            self.open.clear();
        }
    }

    fn transaction(&mut self) {
        if self.dice.roll(6) == 0 {
            return self.all_at_once();
        }
        let begin = shaped(&mut self.dice, "begin");
        let Some(reply) = self.ask(&begin) else { return };
        if !ends_with(&reply, "Z(T)") {
            return self.over(false);
        }
        for _ in 0..self.dice.roll(4) + 1 {
            if !self.step() {
                return;
            }
        }
        let end =
            ["commit", "commit", "commit", "end", "rollback", "commit and chain"][self.dice.roll(6) as usize];
        // With a last row ahead of it, in one write.
        let last = (self.dice.roll(4) == 0).then(|| self.insert());
        let bytes = match last {
            Some(insert) if self.dice.roll(2) == 0 => msg::query(&format!("{insert}; {end}")),
            Some(insert) => [msg::unnamed(&insert), msg::unnamed(end), msg::sync()].concat(),
            None => shaped(&mut self.dice, end),
        };
        self.finish(&bytes);
    }

    fn finish(&mut self, bytes: &[u8]) {
        let Some(reply) = self.ask(bytes) else { return };
        // A chained one is empty.
        let committed = said(&reply, "C(COMMIT)");
        if !ends_with(&reply, "Z(I)") {
            let chained = said(&reply, "C(COMMIT)") || said(&reply, "C(ROLLBACK)");
            if chained {
                self.over(committed);
            }
            while let Some(reply) = self.ask(&msg::query("rollback")) {
                if ends_with(&reply, "Z(I)") {
                    break;
                }
            }
            if chained {
                return;
            }
        }
        self.over(committed);
    }

    /// Everything in one write.
    fn all_at_once(&mut self) {
        let bytes = match self.dice.roll(3) {
            0 => {
                let insert = self.insert();
                shaped(&mut self.dice, &insert)
            }
            1 => {
                let inserts = [self.insert(), self.insert()];
                msg::query(&format!("begin; {}; {}; commit", inserts[0], inserts[1]))
            }
            _ => {
                let inserts = [self.insert(), self.insert()];
                let all = ["begin", &inserts[0], &inserts[1], "commit"].map(msg::unnamed).concat();
                [all, msg::sync()].concat()
            }
        };
        let Some(reply) = self.ask(&bytes) else { return };
        if !ends_with(&reply, "Z(I)") {
            return self.finish(&msg::query("rollback"));
        }
        // What failed in one write of the extended protocol may have failed behind its COMMIT only.
        let committed =
            said(&reply, "C(COMMIT)") || (reply.error().is_none() && said(&reply, "C(INSERT 0 1)"));
        self.over(committed);
    }

    /// One request inside a transaction. False if it is over by then.
    fn step(&mut self) -> bool {
        let before = self.open.len();
        let sql = match self.dice.roll(10) {
            0 => "select 1/0".to_owned(),
            1 => "savepoint a".to_owned(),
            2 if self.savepoint.is_some() => "rollback to a".to_owned(),
            3 => "select count(*) from pg_class".to_owned(),
            _ => self.insert(),
        };
        if self.dice.roll(60) == 0 {
            // Long enough for Bursar to take the backend: the client is told at its next word.
            thread::sleep(PAUSE);
        }
        let bytes = shaped(&mut self.dice, &sql);
        let Some(reply) = self.ask(&bytes) else { return false };
        let worked = reply.error().is_none() && ends_with(&reply, "Z(T)");
        if worked && sql.starts_with("savepoint") {
            self.savepoint = Some(before);
        } else if worked && sql.starts_with("rollback to") {
            self.open.truncate(self.savepoint.unwrap_or(0));
        } else if !worked && sql.starts_with("insert") {
            self.open.truncate(before);
        }
        // After an error the client goes on as it pleases: a COMMIT is a ROLLBACK then.
        assert!(!ends_with(&reply, "Z(I)"), "{sql} ended the transaction: {reply:?}");
        true
    }

    /// What the server has of its rows must be what it was told, then they go.
    fn compare(&mut self, direct: &mut Wire, first: u64) {
        let range = format!("from t where id > {first} and id <= {}", self.next);
        let reply = direct.batch(&format!("select id {range}"));
        let ids = reply.rows().into_iter().filter_map(|row| row[0].as_ref()?.parse().ok());
        let there: BTreeSet<u64> = ids.collect();
        let lost: Vec<_> = self.committed.difference(&there).collect();
        assert!(lost.is_empty(), "told COMMIT, and lost: {lost:?}");
        let extra: Vec<_> =
            there.iter().filter(|id| !self.committed.contains(id) && !self.unknown.contains(id)).collect();
        assert!(extra.is_empty(), "not told COMMIT, and there: {extra:?}");
        self.committed.clear();
        self.unknown.clear();
    }
}

fn run(config: Config, seed: u64) {
    let db = Db::new();
    db.run(&["create table t (id bigint primary key)"]);
    let proxy =
        Proxy::start(&db, config.with("budget.transaction", BUDGET).with("pool", "max_wait = \"20s\""));
    let total = number("BURSAR_TEST_COMMITS", 1_800);
    let (left, over) = (AtomicI64::new(total as i64), AtomicBool::new(false));
    let done = thread::scope(|scope| {
        let (left, over, db_name) = (&left, &over, db.name());
        scope.spawn(move || harass(db_name, seed, 8, Duration::from_millis(5), over));
        let workers: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (addr, login) = (proxy.addr(), proxy.as_app());
                // By a name that the killer leaves alone.
                let own = Login::new("app", db_name).with("application_name", "harness");
                let mut direct = enter(db.cluster().addr(), &own);
                scope.spawn(move || {
                    let wire = enter(addr, &login);
                    let dice = Dice::new(seed.wrapping_mul(31).wrapping_add(number));
                    let (open, savepoint) = (Vec::new(), None);
                    let (committed, unknown) = (BTreeSet::new(), BTreeSet::new());
                    let (refused, aborted) = (0, 0);
                    let next = number << 40;
                    let mut client = Client {
                        addr,
                        login,
                        wire,
                        dice,
                        next,
                        open,
                        savepoint,
                        committed,
                        unknown,
                        refused,
                        aborted,
                    };
                    let mut told = 0;
                    while left.fetch_sub(ROUND as i64, Ordering::Relaxed) > 0 {
                        let first = client.next;
                        (0..ROUND).for_each(|_| client.transaction());
                        told += client.committed.len() as u64;
                        client.compare(&mut direct, first);
                    }
                    [told, client.refused, client.aborted]
                })
            })
            .collect();
        let done: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        over.store(true, Ordering::Relaxed);
        done
    });
    let mut sum = [0; 3];
    for client in done {
        let counts: [u64; 3] = client.unwrap_or_else(|_| panic!("a client failed; seed {seed}"));
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    let [told, refused, aborted] = sum;
    println!("{total} transactions: {told} rows, {refused} not committed, {aborted} rolled back by Bursar");
    assert!(told > total / 2 && refused > total / 20 && aborted > 0, "{sum:?}");
    assert_eq!(metric(&proxy, "bursar_panics_total"), 0.0);
    proxy.stop();
}

#[test]
fn who_was_told_commit_has_its_rows_and_nobody_else_has_any() {
    let seed = number("BURSAR_TEST_SEED", 1);
    run(Config::of_size(BACKENDS).lazy(), seed);
    run(Config::of_size(BACKENDS), seed + 1);
}
