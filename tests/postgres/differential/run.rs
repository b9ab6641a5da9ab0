//! One program, twice: directly, each client on a connection of its own, and through the proxy.

use super::{Program, Step};
use crate::support::wire::Msg;
use crate::support::{Config, Db, PATIENCE, Proxy, Wire, trace};
use std::fmt;
use std::time::{Duration, Instant};

/// After so long a reply that PostgreSQL gave is missing.
const MISSING: Duration = Duration::from_secs(5);

/// What one step brought.
#[derive(Clone, PartialEq, Eq, Default)]
struct Outcome {
    messages: Vec<Msg>,
    closed: bool,
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
    pub(super) steps: usize,
    pub(super) messages: usize,
}

/// A step that was carried out directly, and what must be done and seen through the proxy.
struct Done<'p> {
    step: &'p Step,
    /// The other client left before it.
    evicts: bool,
    outcome: Outcome,
    /// No reply may come any more until the client says something.
    idle: bool,
}

pub(super) struct Lab<'a> {
    db: &'a Db<'a>,
    proxy: Proxy,
    monitor: Wire,
    totals: Totals,
}

impl<'a> Lab<'a> {
    pub(super) fn new(db: &'a Db<'a>) -> Lab<'a> {
        let proxy = Proxy::start(db, Config::one_backend());
        Lab { db, proxy, monitor: db.cluster().admin(), totals: Totals::default() }
    }

    /// Asks the proxy to end, and looks how.
    pub(super) fn stop(self) {
        self.proxy.stop();
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Runs a program both ways, on fresh sessions and the same data. After a difference the next
    /// program gets a fresh proxy: whatever the last one broke is not to be found twice.
    pub(super) fn compare(&mut self, program: &Program) -> Result<(), Difference> {
        self.db.run(super::generate::RESET);
        let direct = self.run_directly(program);
        self.db.run(super::generate::RESET);
        let compared = self.run_proxied(&direct);
        if compared.is_err() {
            self.proxy = Proxy::start(self.db, Config::one_backend());
        }
        compared?;
        self.totals.steps += direct.len();
        self.totals.messages += direct.iter().map(|done| done.outcome.messages.len()).sum::<usize>();
        Ok(())
    }

    fn run_directly<'p>(&mut self, program: &'p Program) -> Vec<Done<'p>> {
        let mut clients: [Option<Direct>; 2] = [None, None];
        let mut done = Vec::new();
        for step in program.iter().filter(|step| !step.ops.is_empty()) {
            let other = 1 - step.client;
            let held = clients[other].as_ref().is_some_and(|client| client.holds);
            if held && !step.evict {
                continue;
            }
            if held {
                clients[other] = None;
            }
            let client = clients[step.client].get_or_insert_with(|| Direct::new(self.db.direct()));
            let outcome = client.step(step, &mut self.monitor);
            let idle = !client.holds;
            if outcome.closed {
                clients[step.client] = None;
            }
            done.push(Done { step, evicts: held, outcome, idle });
        }
        done
    }

    fn run_proxied(&self, program: &[Done<'_>]) -> Result<(), Difference> {
        let mut clients: [Option<Proxied>; 2] = [None, None];
        for Done { step, evicts, outcome, idle } in program {
            if *evicts {
                clients[1 - step.client] = None;
            }
            let client = clients[step.client].get_or_insert_with(|| Proxied::new(self.proxy.connect()));
            client.idle = *idle;
            // The proxy may rightly close before all was sent.
            let _ = client.wire.try_send(&bytes(step));
            let proxied = client.receive(outcome);
            if proxied != *outcome {
                let direct = outcome.clone();
                return Err(Difference { step: step.to_string(), direct, proxied });
            }
            if outcome.closed {
                clients[step.client] = None;
            }
        }
        for client in &mut clients {
            let Some(client) = client.as_mut().filter(|client| client.idle) else { continue };
            let proxied = client.rest();
            if !proxied.messages.is_empty() {
                return Err(Difference { step: "the end".to_owned(), direct: Outcome::default(), proxied });
            }
        }
        drop(clients);
        self.look_afterwards()
    }

    /// In whatever state the clients left: the backend serves the next one, and nothing is left of them.
    fn look_afterwards(&self) -> Result<(), Difference> {
        let look = |mut wire: Wire| {
            let reply = wire.query("show work_mem");
            Outcome { messages: reply.messages, closed: reply.closed }
        };
        let (direct, proxied) = (look(self.db.direct()), look(self.proxy.connect()));
        let step = || "a new client, afterwards".to_owned();
        if direct == proxied { Ok(()) } else { Err(Difference { step: step(), direct, proxied }) }
    }
}

fn bytes(step: &Step) -> Vec<u8> {
    step.ops.iter().flat_map(|op| op.bytes.clone()).collect()
}

/// A client of the proxy.
struct Proxied {
    wire: Wire,
    /// No reply may come any more until it says something.
    idle: bool,
    /// Replies that came sooner than they did directly: PostgreSQL may keep those to an open pipeline
    /// until a Flush or Sync, and so may send them at any time before it.
    ahead: Vec<Msg>,
}

impl Proxied {
    fn new(wire: Wire) -> Proxied {
        Proxied { wire, idle: true, ahead: Vec::new() }
    }

    /// As many messages as there were directly, and whatever else is there by then.
    fn receive(&mut self, expected: &Outcome) -> Outcome {
        let mut messages = std::mem::take(&mut self.ahead);
        while messages.len() < expected.messages.len() || expected.closed {
            match self.wire.try_recv(MISSING) {
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
        while let Ok(Some(message)) = self.wire.try_recv(MISSING) {
            messages.push(message);
        }
        Outcome { messages, closed: self.wire.is_closed() }
    }
}

/// A client with a backend of its own.
struct Direct {
    wire: Wire,
    /// Through a pool it would keep its backend now.
    holds: bool,
    pinned: bool,
}

impl Direct {
    fn new(wire: Wire) -> Direct {
        Direct { wire, holds: false, pinned: false }
    }

    fn step(&mut self, step: &Step, monitor: &mut Wire) -> Outcome {
        let _ = self.wire.try_send(&bytes(step));
        let outcome = self.settle(monitor);
        self.pinned |= step.ops.iter().any(|op| op.pins);
        // COPY messages while idle neither need a backend nor change the state.
        let last = step.ops.iter().map(|op| op.bytes[0]).rfind(|kind| !b"dcf".contains(kind));
        let ends = last.is_none_or(|kind| b"SQF".contains(&kind));
        let idle = match outcome.messages.last() {
            Some(message) => message.to_string() == "Z(I)",
            None => !self.holds,
        };
        self.holds = self.pinned || !(ends && idle);
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
