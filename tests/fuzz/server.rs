//! A server that answers messages as PostgreSQL does, as far as their order goes: the loop of `postgres.c`
//! (skip until Sync, one ReadyForQuery for each Query, FunctionCall and Sync) and COPY (`copyfromparse.c`).
//!
//! What a message leads to is part of the message, so that two servers that read the same come to the same.

use bursar::wire::backend::TxStatus;
use bursar::wire::frontend::Kind;
use std::collections::VecDeque;

/// What one statement comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Rows,
    Done,
    /// A transaction block begins, or ends.
    Begin,
    End,
    CopyIn,
    CopyOut,
    /// Execute: the portal has more rows.
    Suspended,
    Empty,
    Fail,
}

/// One message from a client.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    /// The statements of a Query, the one of an Execute.
    pub(crate) runs: Vec<Run>,
    /// Anything else goes wrong: a name is not known, data is bad.
    pub(crate) fails: bool,
    /// A Describe names a statement.
    pub(crate) of_statement: bool,
    /// If a COPY IN reads it, it is cancelled just before.
    pub(crate) cancelled: bool,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let odd = [(self.fails, "fails"), (self.of_statement, "statement"), (self.cancelled, "cancelled")];
        write!(f, "{:?}{:?}", self.kind, self.runs)?;
        odd.iter().filter(|(is, _)| *is).try_for_each(|(_, what)| write!(f, " {what}"))
    }
}

impl Message {
    pub(crate) fn new(kind: Kind) -> Message {
        Message { kind, runs: Vec::new(), fails: false, of_statement: false, cancelled: false }
    }
}

/// A message to a client: its type, and as much of its body as matters.
pub(crate) type Reply = (u8, &'static [u8]);

/// What ends a connection.
pub(crate) const FATAL: Reply = (b'E', b"SFATAL\0VFATAL\0C08P01\0\0");
const VIOLATION: Reply = (b'E', b"SERROR\0VERROR\0C08P01\0\0");
const CANCELLED: Reply = (b'E', b"SERROR\0VERROR\0C57014\0\0");
const ERROR: Reply = (b'E', b"SERROR\0VERROR\0C22012\0\0");

/// A COPY that reads data.
struct CopyIn {
    extended: bool,
    /// The statements behind it in its Query.
    rest: VecDeque<Run>,
}

/// See the file's page.
pub(crate) struct Server {
    pub(crate) said: VecDeque<Reply>,
    pub(crate) status: TxStatus,
    pub(crate) skipping: bool,
    pub(crate) closed: bool,
    copy: Option<CopyIn>,
    /// An Execute has returned rows since the last ReadyForQuery: a constraint that was put off may fail yet.
    wrote: bool,
    /// Data has been asked for: Bursar may say more Syncs than the client, and end the transaction by them.
    asked: bool,
}

impl Server {
    pub(crate) fn new() -> Server {
        Server {
            said: VecDeque::new(),
            status: TxStatus::Idle,
            skipping: false,
            closed: false,
            copy: None,
            wrote: false,
            asked: false,
        }
    }

    pub(crate) fn is_copying_in(&self) -> bool {
        self.copy.is_some()
    }

    /// Reads one message.
    pub(crate) fn hear(&mut self, message: &Message) {
        if self.closed {
            return;
        }
        if self.copy.is_some() && message.cancelled {
            self.end_copy(CANCELLED);
        }
        if self.copy.is_some() {
            return self.copy_message(message);
        }
        match message.kind {
            Kind::CopyData | Kind::CopyDone | Kind::CopyFail | Kind::Flush | Kind::Terminate => {}
            Kind::Sync => {
                if !std::mem::take(&mut self.skipping) && self.wrote && !self.asked && message.fails {
                    self.fail(ERROR);
                }
                self.ready();
            }
            _ if self.skipping => {}
            Kind::Query => match message.runs.as_slice() {
                [] => {
                    self.say(b'I');
                    self.ready();
                }
                runs => self.query(runs.iter().copied().collect()),
            },
            Kind::FunctionCall => {
                if message.fails {
                    self.fail(ERROR);
                } else {
                    self.say(b'V');
                }
                self.ready();
            }
            _ if message.fails => {
                self.skipping = true;
                self.fail(ERROR);
            }
            Kind::Parse => self.say(b'1'),
            Kind::Bind => self.say(b'2'),
            Kind::Close => self.say(b'3'),
            Kind::Describe => {
                if message.of_statement {
                    self.say(b't');
                }
                self.say(if message.runs.is_empty() { b'n' } else { b'T' });
            }
            Kind::Execute => self.execute(message.runs.first().copied().unwrap_or(Run::Empty)),
        }
    }

    fn say(&mut self, kind: u8) {
        self.said.push_back((kind, b""));
    }

    fn ready(&mut self) {
        let status: &[u8] = match self.status {
            TxStatus::Idle => b"I",
            TxStatus::InTransaction => b"T",
            TxStatus::Failed => b"E",
        };
        self.said.push_back((b'Z', status));
        self.wrote = false;
    }

    fn fail(&mut self, how: Reply) {
        self.said.push_back(how);
        if self.status == TxStatus::InTransaction {
            self.status = TxStatus::Failed;
        }
    }

    /// Replies of a statement, as both protocols have them. `false`: it failed.
    fn run(&mut self, run: Run) -> bool {
        match run {
            Run::Rows => "DDC".bytes().for_each(|kind| self.say(kind)),
            Run::Done => self.say(b'C'),
            Run::Begin => {
                self.status = TxStatus::InTransaction;
                self.say(b'C');
            }
            Run::End => {
                self.status = TxStatus::Idle;
                self.say(b'C');
            }
            Run::CopyOut => "HddcC".bytes().for_each(|kind| self.say(kind)),
            Run::Suspended => "Ds".bytes().for_each(|kind| self.say(kind)),
            Run::Empty => self.say(b'I'),
            Run::CopyIn => {
                self.asked = true;
                self.say(b'G');
            }
            Run::Fail => self.fail(ERROR),
        }
        run != Run::Fail
    }

    fn query(&mut self, mut runs: VecDeque<Run>) {
        while let Some(run) = runs.pop_front() {
            if run == Run::Rows {
                self.say(b'T');
            }
            if !self.run(run) {
                break;
            }
            if run == Run::CopyIn {
                self.copy = Some(CopyIn { extended: false, rest: runs });
                return;
            }
        }
        self.ready();
    }

    fn execute(&mut self, run: Run) {
        self.skipping = !self.run(run);
        self.wrote |= run == Run::Rows;
        if run == Run::CopyIn {
            self.copy = Some(CopyIn { extended: true, rest: VecDeque::new() });
        }
    }

    fn copy_message(&mut self, message: &Message) {
        match message.kind {
            Kind::Sync | Kind::Flush => {}
            Kind::CopyFail => self.end_copy(CANCELLED),
            Kind::CopyData | Kind::CopyDone if message.fails => self.end_copy(ERROR),
            Kind::CopyData => {}
            Kind::CopyDone => {
                self.say(b'C');
                if let Some(copy) = self.copy.take().filter(|copy| !copy.extended) {
                    self.query(copy.rest);
                }
            }
            _ => {
                self.said.extend([VIOLATION, FATAL]);
                self.closed = true;
            }
        }
    }

    /// The COPY has failed.
    fn end_copy(&mut self, how: Reply) {
        self.fail(how);
        match self.copy.take() {
            Some(copy) if copy.extended => self.skipping = true,
            _ => self.ready(),
        }
    }
}
