//! [`Statements`] and [`Held`] against a naive twin: random programs of a client that sends ahead of the
//! replies, over many segments, on backends that may have one to three statements.
//!
//! The toy server keeps a set of statements and executes one message at a time, in order; an error
//! sweeps what follows up to the next Sync. The twin is PostgreSQL without Bursar: it executes the
//! client's messages at once. Every reply must be the twin's, and after every step the names, and what
//! the backend is believed to have, must be what the server will have executed.

use super::session::{Before, Look, Need, Statements};
use super::table::{Facts, Planner, Sharing, Statement, StatementId, Table};
use super::{Count, Held};
use crate::wire::sql::scan::Scan;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A client's names; 0 is the unnamed statement's.
const NAMES: u8 = 4;
/// Texts, of which the last is one that PostgreSQL does not take.
const TEXTS: u8 = 6;
const BAD: u8 = TEXTS - 1;
/// The text of another session's unnamed statement.
const FOREIGN: u8 = 99;

#[derive(Debug, Clone, Copy)]
enum Op {
    Parse {
        name: u8,
        text: u8,
    },
    Bind {
        name: u8,
        fails: bool,
    },
    Close {
        name: u8,
    },
    /// `all`: it takes every prepared statement away.
    Query {
        all: bool,
        fails: bool,
    },
    Sync,
    /// The server executes its next message.
    Step,
    /// The next lease is on the other backend, where another session has been meanwhile.
    Move {
        text: u8,
        unnamed: bool,
    },
}

impl Op {
    fn of((kind, a, b): (u8, u8, u8)) -> Op {
        let (name, fails) = (a % NAMES, b < 24);
        match kind % 32 {
            0..7 => Op::Parse { name, text: b % TEXTS },
            7..14 => Op::Bind { name, fails },
            14..17 => Op::Close { name },
            17 => Op::Query { all: a < 64, fails },
            18..22 => Op::Sync,
            22..31 => Op::Step,
            _ => Op::Move { text: a % BAD, unnamed: b < 128 },
        }
    }
}

/// What a client is told of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Done,
    /// A Bind of this text.
    Bound(u8),
    Failed,
    /// Skipped up to the Sync.
    Skipped,
}

/// PostgreSQL without Bursar.
#[derive(Debug, Default)]
struct Direct {
    names: BTreeMap<u8, u8>,
    skipping: bool,
}

impl Direct {
    fn run(&mut self, op: Op) -> Reply {
        if self.skipping && !matches!(op, Op::Sync) {
            return Reply::Skipped;
        }
        let reply = self.execute(op);
        self.skipping = reply == Reply::Failed && !matches!(op, Op::Query { .. });
        reply
    }

    fn execute(&mut self, op: Op) -> Reply {
        match op {
            Op::Parse { name, text } => {
                // The old unnamed statement goes first, whatever comes of the new one.
                if name == 0 {
                    self.names.remove(&0);
                }
                if text == BAD || self.names.contains_key(&name) {
                    return Reply::Failed;
                }
                self.names.insert(name, text);
            }
            Op::Bind { name, fails } => {
                return match self.names.get(&name) {
                    Some(text) if !fails => Reply::Bound(*text),
                    _ => Reply::Failed,
                };
            }
            Op::Close { name } => drop(self.names.remove(&name)),
            Op::Query { all, fails } => {
                self.names.remove(&0);
                if fails {
                    return Reply::Failed;
                }
                if all {
                    self.names.clear();
                }
            }
            Op::Sync | Op::Step | Op::Move { .. } => {}
        }
        Reply::Done
    }
}

/// A message on its way to the server, or an answer of Bursar's own in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Bursar's own.
    Parse {
        id: StatementId,
        fails: bool,
    },
    /// Bursar's own.
    Evict(StatementId),
    Named(u8, StatementId),
    Closed(u8),
    /// A Close of nothing.
    Nothing,
    /// A name that is taken: the shared one is, too.
    Probe(StatementId),
    Bind {
        id: StatementId,
        fails: bool,
    },
    Missing,
    ParseUnnamed(u8),
    CloseUnnamed,
    BindUnnamed {
        fails: bool,
    },
    Query {
        all: bool,
        fails: bool,
    },
    Sync,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    what: What,
    /// [`Statements`] is told when it has been executed.
    noted: bool,
    /// It is the client's, who is told.
    client: bool,
}

#[derive(Debug, Default)]
struct Backend {
    held: Held,
    has: BTreeSet<StatementId>,
    unnamed: Option<u8>,
}

struct Model {
    texts: Vec<Arc<Statement>>,
    cap: usize,
    statements: Statements,
    names: Count,
    /// Names as acknowledged.
    acknowledged: BTreeMap<u8, StatementId>,
    backend: Backend,
    other: Backend,
    queue: VecDeque<Sent>,
    /// The client's messages are skipped up to its Sync.
    skipping: bool,
    /// Something of the extended protocol was sent since the last Sync.
    unsynced: bool,
    direct: Direct,
    expected: VecDeque<Reply>,
    seen: Seen,
}

/// How often: a Bind found its statement, a statement was closed for another, an error swept a message
/// that was noted, a message had to wait for replies.
#[derive(Debug, Clone, Copy, Default)]
struct Seen([u64; 4]);

impl std::ops::Add for Seen {
    type Output = Seen;

    fn add(self, other: Seen) -> Seen {
        Seen(std::array::from_fn(|at| self.0[at] + other.0[at]))
    }
}

/// A message that cannot be sent before a reply has come.
struct Hold;

impl Model {
    fn new(cap: usize) -> Model {
        let mut table = Table::default();
        let mut text = |text: u8| {
            let sharing = Sharing::Among(Planner::default());
            table.intern(sharing, &[b'a' + text, 0, 0, 0], |_| Facts::default()).unwrap()
        };
        let names = Count::default();
        Model {
            texts: (0..TEXTS).map(&mut text).collect(),
            cap,
            statements: Statements::counted(names.clone()),
            names,
            acknowledged: BTreeMap::new(),
            backend: Backend::default(),
            other: Backend::default(),
            queue: VecDeque::new(),
            skipping: false,
            unsynced: false,
            direct: Direct::default(),
            expected: VecDeque::new(),
            seen: Seen::default(),
        }
    }

    fn text(&self, id: StatementId) -> u8 {
        self.texts.iter().position(|statement| statement.id == id).unwrap() as u8
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Step => self.step(),
            Op::Move { text, unnamed } => self.change_backend(text, unnamed),
            op => {
                let reply = self.direct.run(op);
                self.expected.push_back(reply);
                while let Err(Hold) = self.client(op) {
                    assert!(!self.queue.is_empty(), "it waits for replies, and none is due");
                    self.seen.0[3] += 1;
                    self.step();
                }
            }
        }
        self.check();
    }

    fn change_backend(&mut self, text: u8, unnamed: bool) {
        if !self.queue.is_empty() || self.unsynced {
            return;
        }
        std::mem::swap(&mut self.backend, &mut self.other);
        self.statements.moved();
        self.backend.unnamed = unnamed.then_some(FOREIGN);
        let id = self.texts[text as usize].id;
        if self.backend.has.len() < self.cap && self.backend.has.insert(id) {
            self.backend.held.add(id);
        }
    }

    /// What the session does with a message of its client.
    fn client(&mut self, op: Op) -> Result<(), Hold> {
        if self.skipping && !matches!(op, Op::Sync) {
            self.told(Reply::Skipped);
            return Ok(());
        }
        match op {
            Op::Parse { name: 0, text } => {
                self.statements.parse(b"", Some(&[text]), Scan::default());
                self.send(What::ParseUnnamed(text), true, true);
            }
            Op::Bind { name: 0, fails } => self.bind_unnamed(fails)?,
            Op::Close { name: 0 } => {
                self.statements.close(b"");
                self.send(What::CloseUnnamed, true, true);
            }
            Op::Parse { name, text } => self.parse(name, text)?,
            Op::Bind { name, fails } => self.bind(name, fails)?,
            Op::Close { name } => self.close(name)?,
            Op::Query { all, fails } => {
                let noted = self.statements.query();
                self.send(What::Query { all, fails }, noted, true);
            }
            Op::Sync => {
                self.skipping = false;
                self.unsynced = false;
                self.statements.sync();
                self.send(What::Sync, false, true);
                return Ok(());
            }
            Op::Step | Op::Move { .. } => {}
        }
        self.unsynced |= !matches!(op, Op::Query { .. });
        Ok(())
    }

    fn look(&self, name: u8) -> Result<Option<Arc<Statement>>, Hold> {
        // A Query may take names away.
        if self.queue.iter().any(|sent| matches!(sent.what, What::Query { .. })) {
            return Err(Hold);
        }
        match self.statements.look(&[name]) {
            Look::Shared(statement) => Ok(Some(statement)),
            Look::None => Ok(None),
            Look::Replies => Err(Hold),
            Look::Private => unreachable!("none was parsed"),
        }
    }

    fn provide(&mut self, id: StatementId, fails: bool) -> Result<(), Hold> {
        match self.statements.need(id, &mut self.backend.held, self.cap) {
            Need::Nothing => {}
            Need::Replies => return Err(Hold),
            Need::Parse { evict } => {
                if let Some(old) = evict {
                    self.seen.0[1] += 1;
                    self.send(What::Evict(old), true, false);
                }
                self.send(What::Parse { id, fails }, true, false);
            }
        }
        Ok(())
    }

    fn parse(&mut self, name: u8, text: u8) -> Result<(), Hold> {
        let taken = self.look(name)?.is_some();
        let statement = self.texts[text as usize].clone();
        let id = statement.id;
        self.provide(id, false)?;
        if taken {
            self.statements.probe();
            self.send(What::Probe(id), true, true);
        } else {
            self.statements.name(&[name], statement).unwrap();
            self.send(What::Named(name, id), true, true);
        }
        Ok(())
    }

    fn bind(&mut self, name: u8, fails: bool) -> Result<(), Hold> {
        match self.look(name)? {
            None => self.send(What::Missing, false, true),
            Some(statement) => {
                self.provide(statement.id, fails)?;
                self.send(What::Bind { id: statement.id, fails }, false, true);
            }
        }
        Ok(())
    }

    fn close(&mut self, name: u8) -> Result<(), Hold> {
        if self.look(name)?.is_some() {
            self.statements.unname(&[name], true);
            self.send(What::Closed(name), true, true);
        } else {
            self.send(What::Nothing, false, true);
        }
        Ok(())
    }

    fn bind_unnamed(&mut self, fails: bool) -> Result<(), Hold> {
        match self.statements.use_unnamed() {
            Before::Nothing => {}
            Before::Replies => return Err(Hold),
            Before::Close => self.send(What::CloseUnnamed, true, false),
            Before::Parse(&[text]) => self.send(What::ParseUnnamed(text), true, false),
            Before::Parse(other) => panic!("{other:?} was never parsed"),
        }
        self.send(What::BindUnnamed { fails }, false, true);
        Ok(())
    }

    fn send(&mut self, what: What, noted: bool, client: bool) {
        self.queue.push_back(Sent { what, noted, client });
    }

    /// The server executes its next message, and Bursar hears of it.
    fn step(&mut self) {
        let Some(sent) = self.queue.pop_front() else { return };
        match (self.execute(sent.what), sent.what) {
            (Some(reply), what) => {
                if let What::Query { .. } = what {
                    self.statements.ran_query(sent.noted);
                } else if sent.noted {
                    self.statements.acknowledged();
                }
                if sent.client {
                    self.told(reply);
                }
            }
            (None, What::Query { .. }) => {
                self.statements.swept(0, sent.noted, &mut self.backend.held);
                self.statements.ran_query(sent.noted);
                self.told(Reply::Failed);
            }
            (None, _) => self.sweep(sent),
        }
    }

    fn sweep(&mut self, failed: Sent) {
        let sync = self.queue.iter().position(|sent| sent.what == What::Sync);
        self.skipping = sync.is_none();
        let behind = self.queue.drain(..sync.unwrap_or(self.queue.len()));
        let swept: Vec<Sent> = std::iter::once(failed).chain(behind).collect();
        let noted = swept.iter().filter(|sent| sent.noted).count();
        self.seen.0[2] += noted as u64;
        self.statements.swept(noted, failed.noted, &mut self.backend.held);
        let mut reply = Reply::Failed;
        for _ in swept.iter().filter(|sent| sent.client) {
            self.told(reply);
            reply = Reply::Skipped;
        }
        assert_eq!(reply, Reply::Skipped, "an error of Bursar's own message is the client's");
    }

    /// `None`: an error.
    fn execute(&mut self, what: What) -> Option<Reply> {
        match what {
            What::Parse { id, fails } => {
                if fails || self.text(id) == BAD {
                    return None;
                }
                assert!(self.backend.has.insert(id), "parsed where it is already");
            }
            What::Evict(id) => drop(self.backend.has.remove(&id)),
            What::Named(name, id) => drop(self.acknowledged.insert(name, id)),
            What::Closed(name) => drop(self.acknowledged.remove(&name)),
            What::Nothing | What::Sync => {}
            What::Missing => return None,
            What::Probe(id) => {
                assert!(self.backend.has.contains(&id), "the server would take it");
                return None;
            }
            What::Bind { id, fails } => {
                assert!(self.backend.has.contains(&id), "bound where it is not");
                return (!fails).then_some(Reply::Bound(self.text(id)));
            }
            What::ParseUnnamed(text) => {
                self.backend.unnamed = (text != BAD).then_some(text);
                self.backend.unnamed?;
            }
            What::CloseUnnamed => self.backend.unnamed = None,
            What::BindUnnamed { fails } => {
                return self.backend.unnamed.filter(|_| !fails).map(Reply::Bound);
            }
            What::Query { all, fails } => {
                self.backend.unnamed = None;
                if fails {
                    return None;
                }
                if all {
                    self.backend.has.clear();
                    self.acknowledged.clear();
                    self.statements.forget_names();
                    self.backend.held.clear();
                }
            }
        }
        Some(Reply::Done)
    }

    fn told(&mut self, reply: Reply) {
        self.seen.0[0] += u64::from(matches!(reply, Reply::Bound(_)));
        assert_eq!(Some(reply), self.expected.pop_front());
    }

    /// Names and statements are what they will be once everything sent has been executed.
    fn check(&self) {
        let (mut has, mut names) = (self.backend.has.clone(), self.acknowledged.clone());
        for sent in &self.queue {
            match sent.what {
                What::Parse { id, .. } => drop(has.insert(id)),
                What::Evict(id) => drop(has.remove(&id)),
                What::Named(name, id) => drop(names.insert(name, id)),
                What::Closed(name) => drop(names.remove(&name)),
                _ => {}
            }
        }
        let held = &self.backend.held;
        assert_eq!(held.ids().collect::<BTreeSet<_>>(), has);
        let known: BTreeMap<_, _> = self.statements.names().map(|(name, id)| (name[0], id)).collect();
        assert_eq!(known, names);
        assert_eq!((held.count().get(), self.names.get()), (has.len(), names.len()));
        assert!(!self.statements.pins());
        if self.queue.is_empty() {
            let names: BTreeMap<_, _> = names.iter().map(|(name, id)| (*name, self.text(*id))).collect();
            let mut direct = self.direct.names.clone();
            direct.remove(&0);
            assert_eq!(names, direct);
            assert!(self.expected.is_empty());
        }
    }
}

/// Nearly two hundred thousand steps in a debug build, millions in a release build.
const CASES: u32 = if cfg!(debug_assertions) { 600 } else { 8000 };

#[test]
fn names_and_backends_are_what_postgresql_would_have() {
    let seen = Cell::new(Seen::default());
    let ops = prop::collection::vec(any::<(u8, u8, u8)>().prop_map(Op::of), 1..600);
    let mut runner = TestRunner::new(ProptestConfig { cases: CASES, ..ProptestConfig::default() });
    let ran = runner.run(&(1..4usize, ops), |(cap, ops)| {
        let mut model = Model::new(cap);
        for op in ops {
            model.run(op);
        }
        while !model.queue.is_empty() {
            model.run(Op::Step);
        }
        seen.set(seen.get() + model.seen);
        Ok(())
    });
    ran.unwrap_or_else(|failed| panic!("{failed}"));
    let Seen([bound, evicted, undone, held]) = seen.get();
    assert!([bound, evicted, undone, held].iter().all(|&count| count > u64::from(CASES)), "{:?}", seen.get());
}
