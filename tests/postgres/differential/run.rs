//! One program, twice: directly, each client on a connection of its own, and through the proxy.

use super::{CAP, CLIENTS, Mode, Pin, Pool, Program, Step, generate, same};
use crate::support::wire::Msg;
use crate::support::{self, Config, Db, PATIENCE, Proxy, Refused, SETTINGS, STATEMENTS, Wire, trace};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// After so long a reply that PostgreSQL gave is missing; and once a difference has been found.
const MISSING: Duration = Duration::from_secs(5);
const STILL_MISSING: Duration = Duration::from_secs(1);

/// What one step brought.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Outcome {
    pub(super) messages: Vec<Msg>,
    pub(super) closed: bool,
}

impl Outcome {
    fn text(&self) -> String {
        format!("{}{}", trace(&self.messages), if self.closed { " EOF" } else { "" })
    }
}

/// Where the two runs part.
pub(super) struct Difference {
    step: String,
    direct: Outcome,
    proxied: Outcome,
}

impl Difference {
    fn at(step: String, direct: &Outcome, proxied: Outcome) -> Difference {
        Difference { step, direct: direct.clone(), proxied }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { step, direct, proxied } = self;
        write!(f, "at {step}\n direct: {}\nproxied: {}", direct.text(), proxied.text())?;
        if direct.text() == proxied.text() {
            write!(f, "\n direct: {:?}\nproxied: {:?}", direct.messages, proxied.messages)?;
        }
        Ok(())
    }
}

/// How much was compared.
#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    /// Steps: what a client sends before both sides come to rest.
    pub(super) writes: usize,
    /// Messages in them, without those of logins.
    pub(super) sent: usize,
    /// Messages that came back for them.
    pub(super) replies: usize,
    /// Clients that left because they met another copy of a statement than directly.
    pub(super) by_age: usize,
}

impl Totals {
    fn add(&mut self, more: Totals) {
        self.writes += more.writes;
        self.sent += more.sent;
        self.replies += more.replies;
        self.by_age += more.by_age;
    }

    /// One step more gave the same both ways.
    fn count(&mut self, done: &Done<'_>) {
        self.writes += 1;
        self.sent += done.step.ops.len();
        self.replies += done.outcome.messages.len();
    }
}

/// A step that was carried out directly, and what must be done and seen through the proxy.
struct Done<'p> {
    step: &'p Step,
    /// Those who left before it.
    evicted: Vec<usize>,
    /// Its client was not there yet.
    login: Option<Login>,
    outcome: Outcome,
    /// No reply may come any more until the client says something.
    idle: bool,
}

/// What a client was told when it came: its parameters, or why it may not.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Login {
    Accepted(BTreeMap<String, String>),
    Refused(Vec<Msg>),
}

fn log_in(addr: SocketAddr, db: &Db<'_>, parameters: &[(String, String)]) -> (Option<Wire>, Login) {
    let as_app = support::Login::new("app", db.name());
    let login = parameters.iter().fold(as_app, |login, (name, value)| login.with(name, value));
    match Wire::try_login(addr, &login) {
        Ok(wire) => {
            let parameters = wire.parameters.clone();
            (Some(wire), Login::Accepted(parameters))
        }
        Err(Refused::Said(reply)) => {
            (None, Login::Refused(reply.messages.into_iter().filter(|m| m.kind == b'E').collect()))
        }
        Err(Refused::Io(error)) => panic!("nobody answers at {addr}: {error}"),
    }
}

pub(super) struct Lab<'a> {
    db: &'a Db<'a>,
    mode: Mode,
    one: Proxy,
    three: Proxy,
    /// Watches the backends of direct connections.
    monitor: Wire,
    /// Makes the data anew.
    owner: Wire,
    totals: Totals,
    missing: Duration,
}

impl<'a> Lab<'a> {
    pub(super) fn new(db: &'a Db<'a>, mode: Mode) -> Lab<'a> {
        let (one, three) = (start(db, mode, Pool::One), start(db, mode, Pool::Three));
        let (monitor, owner) = (db.cluster().admin(), db.direct());
        Lab { db, mode, one, three, monitor, owner, totals: Totals::default(), missing: MISSING }
    }

    /// Asks the proxies to end, and looks how.
    pub(super) fn stop(self) {
        self.one.stop();
        self.three.stop();
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// From now on it is known that replies differ: waits no longer for those that are missing.
    pub(super) fn hurry(&mut self) {
        self.missing = STILL_MISSING;
    }

    fn proxy(&self, pool: Pool) -> &Proxy {
        match pool {
            Pool::One => &self.one,
            Pool::Three => &self.three,
        }
    }

    /// Runs a program both ways, on fresh sessions and the same data. After a difference, and once one
    /// has been found, the next program gets a fresh proxy: whatever the last one broke is not to be
    /// found twice, and what it left makes no difference.
    pub(super) fn compare(&mut self, program: &Program) -> Result<(), Difference> {
        self.renew(program);
        let direct = self.run_directly(program);
        self.renew(program);
        let compared = self.run_proxied(program, &direct);
        if compared.is_err() || self.missing != MISSING {
            let fresh = start(self.db, self.mode, program.pool);
            match program.pool {
                Pool::One => self.one = fresh,
                Pool::Three => self.three = fresh,
            }
        }
        self.totals.add(compared?);
        Ok(())
    }

    /// The same data and the same object ids before each run.
    fn renew(&mut self, program: &Program) {
        self.owner.batch(generate::RENEW);
        if program.reshapes {
            self.owner.batch(generate::RENEW_SHAPE);
        }
    }

    fn run_directly<'p>(&mut self, program: &'p Program) -> Vec<Done<'p>> {
        let mut clients: [Option<Direct>; CLIENTS] = Default::default();
        let mut done = Vec::new();
        for step in program.steps.iter().filter(|step| !step.ops.is_empty()) {
            let evicted = in_the_way(program, &clients, step.client);
            if !evicted.is_empty() && !step.evict {
                continue;
            }
            for &other in &evicted {
                clients[other] = None;
            }
            let mut login = None;
            let client = &mut clients[step.client];
            if client.is_none() {
                let addr = self.db.cluster().addr();
                let (wire, told) = log_in(addr, self.db, program.login(step.client));
                login = Some(told);
                *client = wire.map(|wire| Direct::new(wire, self.mode));
            }
            let outcome = client.as_mut().map(|client| client.step(step, &mut self.monitor));
            let idle = client.as_ref().is_none_or(|client| !client.open && !client.pinned);
            let outcome = outcome.unwrap_or_default();
            if self.mode == Mode::Statement && outcome.messages.iter().any(leaves_a_block) {
                // There the block is over by now: from here on the two do different things.
                break;
            }
            if outcome.closed {
                *client = None;
            }
            done.push(Done { step, evicted, login, outcome, idle });
        }
        done
    }

    /// How much was the same, and how often the two differed only as [`same::differs_by_age`] and its like say.
    fn run_proxied(&self, program: &Program, direct: &[Done<'_>]) -> Result<Totals, Difference> {
        let mut totals = Totals::default();
        let mut clients: [Option<Proxied>; CLIENTS] = Default::default();
        for done in direct {
            for &other in &done.evicted {
                clients[other] = None;
            }
            let index = done.step.client;
            if done.login.is_some() {
                clients[index] = self.start_client(program, done)?;
            }
            let Some(client) = clients[index].as_mut() else { continue };
            client.idle = done.idle;
            client.rereads |= same::sets_reading(&done.step.to_string());
            // The proxy may rightly close before all was sent.
            let _ = client.wire.try_send(&bytes(done.step));
            let proxied = client.receive(&done.outcome, program.reshapes);
            if !same::same(&done.outcome, &proxied) {
                if same::differs_by_failed_parse(&done.outcome, &proxied) {
                    // What it would have done next is not done: there is nothing left to compare.
                    totals.by_age += 1;
                    return Ok(totals);
                }
                let excused = program.reshapes && same::differs_by_age(&done.outcome, &proxied)
                    || client.rereads && same::differs_by_reading(&done.outcome, &proxied);
                if !excused {
                    return Err(Difference::at(done.step.to_string(), &done.outcome, proxied));
                }
                totals.by_age += 1;
                clients[index] = None;
                continue;
            }
            totals.count(done);
            if done.outcome.closed {
                clients[index] = None;
            }
        }
        for client in clients.iter_mut().flatten().filter(|client| client.idle) {
            let proxied = client.rest();
            if !proxied.messages.is_empty() {
                return Err(Difference::at("the end".to_owned(), &Outcome::default(), proxied));
            }
        }
        drop(clients);
        self.look_afterwards(program)?;
        Ok(totals)
    }

    fn start_client(&self, program: &Program, done: &Done<'_>) -> Result<Option<Proxied>, Difference> {
        let parameters = program.login(done.step.client);
        let (wire, told) = log_in(self.proxy(program.pool).addr(), self.db, parameters);
        let expected = done.login.as_ref().expect("asked because it logs in");
        if told == *expected {
            return Ok(wire.map(|wire| Proxied::new(wire, self.missing)));
        }
        let step = format!("the login before {}: {expected:?}, and through the proxy {told:?}", done.step);
        Err(Difference::at(step, &Outcome::default(), Outcome::default()))
    }

    /// In whatever state the clients left: the backend serves the next one, and nothing is left of them.
    fn look_afterwards(&self, program: &Program) -> Result<(), Difference> {
        let look = |mut wire: Wire| {
            let reply = wire.query(LOOK);
            Outcome { messages: reply.messages, closed: reply.closed }
        };
        let direct = look(self.db.direct());
        for _ in 0..program.pool.size() {
            let proxied = look(self.proxy(program.pool).connect());
            if direct != proxied {
                return Err(Difference::at("a new client, afterwards".to_owned(), &direct, proxied));
            }
        }
        Ok(())
    }
}

/// A value of everything the programs set.
const LOOK: &str = "select current_setting('work_mem'), current_setting('timezone'), \
    current_setting('application_name'), current_setting('search_path'), current_setting('datestyle'), \
    current_setting('statement_timeout'), current_setting('client_encoding'), \
    current_setting('standard_conforming_strings'), coalesce(current_setting('app.mark', true), ''), \
    current_setting('default_transaction_read_only'), current_setting('transaction_isolation'), \
    current_setting('client_min_messages'), current_user, session_user, \
    (select count(*) from pg_cursors), to_regclass('pg_temp.mine')";

fn start(db: &Db<'_>, mode: Mode, pool: Pool) -> Proxy {
    let config = Config::of_size(pool.size())
        .with("pool", &format!("mode = \"{}\"", mode.key()))
        .lazy()
        .with("pool", "reuse = \"round_robin\"")
        .with("pool", "client_gone_grace = \"200ms\"");
    // All clients are one tenant, who may have the whole pool and keep it; and nobody is warned.
    let config = config
        .with("tenant.\"*\"", "mode = \"observe\"")
        .with("mode", "default = \"observe\"")
        .with("pool", "max_pins = \"100%\"")
        .with("budget.transaction", "max_age = { warn = \"off\", mode = \"observe\" }")
        .with("budget.transaction", "max_idle = { warn = \"off\", mode = \"observe\" }");
    Proxy::start(db, CAP.iter().fold(config, |config, cap| config.with("pool", cap)))
}

/// Those who hold the backends that a client's step needs, and must leave before it.
fn in_the_way(program: &Program, clients: &[Option<Direct>], client: usize) -> Vec<usize> {
    let others = || (0..clients.len()).filter(|other| *other != client);
    let is = |other: &usize, what: fn(&Direct) -> bool| clients[*other].as_ref().is_some_and(what);
    let mut leave: Vec<usize> = match program.apart {
        true => Vec::new(),
        // They would wait for each other's locks.
        false => others().filter(|other| is(other, |direct| direct.open)).collect(),
    };
    let holders: Vec<usize> = others().filter(|other| is(other, |d| d.open || d.pinned)).collect();
    let holds = clients[client].as_ref().is_some_and(|d| d.open || d.pinned);
    if !holds && holders.len() >= program.pool.size() {
        let staying = holders.iter().filter(|other| !leave.contains(other)).count();
        let surplus = (staying + 1).saturating_sub(program.pool.size());
        let more: Vec<usize> =
            holders.into_iter().filter(|other| !leave.contains(other)).take(surplus).collect();
        leave.extend(more);
    }
    leave
}

/// A ReadyForQuery inside a transaction block.
fn leaves_a_block(message: &Msg) -> bool {
    message.kind == b'Z' && message.body != b"I"
}

fn bytes(step: &Step) -> Vec<u8> {
    step.ops.iter().flat_map(|op| op.bytes.clone()).collect()
}

/// A client of the proxy.
struct Proxied {
    wire: Wire,
    missing: Duration,
    /// No reply may come any more until it says something.
    idle: bool,
    /// It may have changed how its texts are read; see [`same::differs_by_reading`].
    rereads: bool,
    /// Replies that came sooner than they did directly: PostgreSQL may keep those to an open pipeline
    /// until a Flush or Sync, and so may send them at any time before it.
    ahead: Vec<Msg>,
}

impl Proxied {
    fn new(wire: Wire, missing: Duration) -> Proxied {
        Proxied { wire, missing, idle: true, rereads: false, ahead: Vec::new() }
    }

    /// As many messages as there were directly, and whatever else is there by then. `by_segments`: it
    /// may be fewer, and ends with as many segments.
    fn receive(&mut self, expected: &Outcome, by_segments: bool) -> Outcome {
        let ends = |messages: &[Msg]| messages.iter().filter(|m| m.kind == b'Z').count();
        let mut messages = std::mem::take(&mut self.ahead);
        while messages.len() < expected.messages.len() || expected.closed {
            let all = ends(&messages) == ends(&expected.messages);
            if by_segments && all && messages.last().is_some_and(|m| m.kind == b'Z') {
                break;
            }
            match self.wire.try_recv(self.missing) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) | Err(_) => break,
            }
        }
        messages.extend(self.wire.recv_arrived());
        let closed = self.wire.is_closed();
        if !self.idle && !closed && messages.len() > expected.messages.len() {
            self.ahead = messages.split_off(expected.messages.len());
        }
        Outcome { messages, closed }
    }

    /// What comes after the last reply, up to the end of the connection.
    fn rest(&mut self) -> Outcome {
        self.wire.half_close();
        let mut messages = std::mem::take(&mut self.ahead);
        while let Ok(Some(message)) = self.wire.try_recv(self.missing) {
            messages.push(message);
        }
        Outcome { messages, closed: self.wire.is_closed() }
    }
}

/// A client with a backend of its own.
struct Direct {
    wire: Wire,
    /// In the middle of a transaction, a pipeline or a COPY.
    open: bool,
    /// Through a pool it would keep its backend in any case.
    pinned: bool,
}

impl Direct {
    fn new(wire: Wire, mode: Mode) -> Direct {
        Direct { wire, open: false, pinned: mode == Mode::Session }
    }

    fn step(&mut self, step: &Step, monitor: &mut Wire) -> Outcome {
        let _ = self.wire.try_send(&bytes(step));
        let outcome = self.settle(monitor);
        self.pinned |= step.ops.iter().any(|op| match op.pin {
            Pin::None => false,
            Pin::Statement => !STATEMENTS,
            Pin::Setting => !SETTINGS,
            Pin::Kept => true,
        });
        // COPY messages while idle neither need a backend nor change the state.
        let last = step.ops.iter().map(|op| op.bytes[0]).rfind(|kind| !b"dcf".contains(kind));
        let ends = last.is_none_or(|kind| b"SQF".contains(&kind));
        let idle = match outcome.messages.last() {
            Some(message) => message.to_string() == "Z(I)",
            None => !self.open,
        };
        self.open = !(ends && idle);
        outcome
    }

    /// Reads until the backend has read all it was sent, and waits for more.
    fn settle(&mut self, monitor: &mut Wire) -> Outcome {
        let state = format!(
            "select wait_event is not distinct from 'ClientRead' from pg_stat_get_activity({})",
            self.wire.pid
        );
        let mut unread = self.wire.unread_by_peer();
        let start = Instant::now();
        let mut messages = Vec::new();
        loop {
            assert!(start.elapsed() < PATIENCE, "PostgreSQL does not come to rest");
            messages.extend(self.wire.recv_arrived());
            if unread.bytes() == 0 {
                match monitor.query(&state).rows().first() {
                    // It waits: what it has sent has arrived.
                    Some(row) if row[0].as_deref() == Some("t") => {
                        messages.extend(self.wire.recv_arrived());
                        return Outcome { messages, closed: self.wire.is_closed() };
                    }
                    Some(_) => {}
                    None => {
                        messages.extend(self.wire.recv_to_end().messages);
                        return Outcome { messages, closed: true };
                    }
                }
            }
        }
    }
}
