//! The op queue: beside a server that says anything, and beside one that keeps to the protocol.

use super::choices::Choices;
use super::server::{FATAL, Message, Run, Server};
use bursar::session::tracker::{Desync, Give, Injected, MAX_OPS, Note, OpKind, Take, Tracker, marker};
use bursar::statements::{Facts, Planner, Sharing, StatementId, Table};
use bursar::wire::backend::{TxStatus, bare, command_complete};
use bursar::wire::frontend::Kind;
use bursar::wire::walk::{HEADER, Header};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

const KINDS: &[u8; 13] = b"QFSPBDECHdcfX";

fn statement() -> StatementId {
    Table::default().intern(Sharing::Among(Planner(0)), b"\0", |_| Facts::default()).unwrap().id
}

/// Whoever sends what, in whatever order: never a panic, and never more than was asked for.
#[test]
fn a_server_that_says_anything() {
    const KINDS_OF_OPS: [OpKind; 6] = [
        OpKind::Parse,
        OpKind::Bind,
        OpKind::DescribeStatement,
        OpKind::Execute,
        OpKind::Close,
        OpKind::Query,
    ];
    const REASONS: [Injected; 4] = [Injected::Segment, Injected::InPlace, Injected::Failure, Injected::Begin];
    const BODIES: [&[u8]; 7] = [b"", b"I", b"T", b"E", b"C57014\0\0", b"C08P01\0\0", b"C22012\0\0"];
    let used = statement();
    bolero::check!().with_max_len(800).for_each(|input: &[u8]| {
        let (mut choices, mut tracker, mut out) = (Choices(input), Tracker::default(), BytesMut::new());
        let (mut asked, mut sent) = (0, 0);
        while !choices.0.is_empty() {
            let before = out.len();
            match choices.below(16) {
                0..6 => {
                    let Some(kind) = Kind::of(choices.one_of(KINDS)) else { unreachable!() };
                    let note = Note { noted: choices.coin(), statement: Some(used), ..Note::default() };
                    let held = tracker.would_hold(kind);
                    let take = tracker.client(kind, note);
                    assert!(!held || take != Take::Forward || kind == Kind::Terminate);
                    sent += usize::from(take == Take::Forward);
                }
                6..12 => {
                    let kind =
                        if choices.coin() { choices.one_of(b"123CDEGHIKRTVWZnst") } else { choices.byte() };
                    if choices.coin() && tracker.as_expected(kind).is_some() {
                        continue;
                    }
                    let told = tracker.server(kind, choices.one_of(&BODIES), &mut out);
                    if told.is_err() {
                        assert_eq!(out.len(), before);
                        return;
                    }
                    let _ = (tracker.take_marker(), tracker.takes_sync(), tracker.takes_intruder());
                }
                12 => tracker.inject(choices.one_of(&KINDS_OF_OPS), choices.one_of(&REASONS)),
                13 => {
                    asked += 5;
                    let ready = choices.coin();
                    asked += if ready { 6 } else { 0 };
                    tracker.answer(choices.one_of(&KINDS_OF_OPS), reply(b'1'), ready, &mut out);
                }
                14 => {
                    asked += 5;
                    tracker.answer_later(choices.one_of(&KINDS_OF_OPS), reply(b'1'), choices.coin());
                }
                _ => match choices.below(8) {
                    0 => tracker.fence(choices.coin()),
                    1 => tracker.probe(used),
                    2 => tracker.ask_shape(),
                    3 => tracker.end_pipeline(),
                    4 => drop(tracker.cut_off()),
                    5 => tracker.skip_to_sync(),
                    6 => tracker.sync_here(),
                    _ => tracker.set_status(TxStatus::Failed),
                },
            }
            // What the marker keeps back are CloseCompletes that were not asked for here.
            assert!(out.len() <= asked + 5 * input.len());
            assert!(tracker.uses() <= sent + input.len() && tracker.uses() <= MAX_OPS + input.len());
            assert!(!tracker.may_release() || (!tracker.is_busy() && tracker.status() == TxStatus::Idle));
            let swept = tracker.take_swept() + tracker.take_swept_uses();
            assert!(swept <= 2 * (sent + input.len()) && tracker.take_told() <= input.len());
            assert!(tracker.is_busy() || !tracker.is_clients());
        }
    });
}

fn reply(kind: u8) -> Bytes {
    let mut out = BytesMut::new();
    bare(&mut out, kind);
    out.freeze()
}

/// How Bursar deals with a message of a client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Forward,
    /// Behind a Parse of its own, which the message needs.
    Behind,
    /// Behind a segment of its own, if it may begin one now.
    Apart,
    /// It is answered here, at once or with what is around it.
    Here,
    Later,
    /// It is refused here.
    Refuse,
}

/// A session, as far as the order of messages goes: what `session::up` and `session::down` do.
struct Middle {
    tracker: Tracker,
    server: Server,
    /// From the client, and not decided yet.
    pending: VecDeque<(Message, Way)>,
    /// What the client has been told: types, and of ReadyForQuery its status.
    seen: Vec<u8>,
    withheld: Option<u8>,
    /// Usual replies take the short way.
    short: bool,
    /// A Sync was sent in a COPY.
    doubtful: bool,
    /// For people: what the client said, what reached the server, what came back.
    story: String,
}

fn text(replies: impl IntoIterator<Item = (u8, &'static [u8])>) -> Vec<u8> {
    let shown = replies.into_iter().flat_map(|(kind, body)| {
        let status = if kind == b'Z' { body } else { b"" };
        std::iter::once(kind).chain(status.iter().copied())
    });
    shown.collect()
}

impl Middle {
    fn see(&mut self, out: &[u8]) {
        let mut rest = out;
        while let Some(head) = Header::read(rest) {
            let (message, behind) = rest.split_at(head.total().unwrap());
            self.seen.push(head.kind);
            if head.kind == b'Z' {
                self.seen.push(message[HEADER]);
            }
            rest = behind;
        }
    }

    fn emit(&mut self) {
        let mut out = BytesMut::new();
        self.tracker.emit(&mut out);
        self.see(&out);
    }

    /// The server reads a message.
    fn send(&mut self, message: &Message) {
        self.story.push_str(&format!(" →{:?}", message.kind));
        let copying = self.server.is_copying_in() || self.tracker.is_copying_in();
        self.doubtful |= message.kind == Kind::Sync && copying;
        self.server.hear(message);
    }

    /// The server reads a message of Bursar's.
    fn send_own(&mut self, kind: Kind, runs: &[Run]) {
        self.send(&Message { runs: runs.to_vec(), ..Message::new(kind) });
    }

    /// Decides what the client has sent, as far as that can be.
    fn walk_up(&mut self) {
        while let Some((message, way)) = self.pending.front().cloned() {
            if self.tracker.would_hold(message.kind) {
                return;
            }
            let skips = self.tracker.is_skipping() && message.kind != Kind::Sync;
            if !skips && !self.decide(&message, way) {
                return;
            }
            self.pending.pop_front();
        }
    }

    /// Whether the message need not wait.
    fn decide(&mut self, message: &Message, way: Way) -> bool {
        let op = match message.kind {
            Kind::Parse => OpKind::Parse,
            Kind::Bind => OpKind::Bind,
            Kind::Describe if message.of_statement => OpKind::DescribeStatement,
            Kind::Describe => OpKind::DescribePortal,
            Kind::Execute => OpKind::Execute,
            Kind::Close => OpKind::Close,
            _ => OpKind::Query,
        };
        match way {
            // The server is to see it, and to close.
            _ if self.tracker.is_copying_in() => {}
            Way::Here if message.kind == Kind::Query => return self.answer_query(),
            Way::Here | Way::Later | Way::Refuse if self.tracker.is_querying() => return false,
            Way::Here | Way::Later if message.kind == Kind::Execute && self.tracker.may_be_skipped() => {
                return false;
            }
            Way::Here => {
                let mut out = BytesMut::new();
                self.tracker.answer(op, acknowledges(message), false, &mut out);
                self.see(&out);
                return true;
            }
            Way::Later => {
                self.tracker.answer_later(op, acknowledges(message), false);
                return true;
            }
            Way::Refuse => {
                let mut out = BytesMut::new();
                self.tracker.answer(op, reply(b'E'), false, &mut out);
                self.see(&out);
                self.send_own(Kind::Execute, &[Run::Fail]);
                self.tracker.inject(OpKind::Execute, Injected::Failure);
                self.tracker.skip_to_sync();
                return true;
            }
            Way::Behind => {
                self.send_own(Kind::Parse, &[]);
                self.tracker.inject(OpKind::Parse, Injected::InPlace);
            }
            Way::Apart if !self.tracker.is_busy() && !self.tracker.is_unsynced() => {
                self.send_own(Kind::Query, &[Run::Done]);
                self.tracker.inject(OpKind::Query, Injected::Segment);
                self.send_own(Kind::Bind, &[]);
                self.send_own(Kind::Execute, &[Run::Rows]);
                self.send_own(Kind::Sync, &[]);
                self.tracker.fence(false);
            }
            _ => {}
        }
        if message.kind == Kind::Flush {
            self.emit();
        }
        let note = Note { of_statement: message.of_statement, ..Note::default() };
        match self.tracker.client(message.kind, note) {
            Take::Hold => return false,
            Take::Forward => self.send(message),
            Take::Drop => {}
        }
        true
    }

    fn answer_query(&mut self) -> bool {
        if self.tracker.may_be_skipped() || self.tracker.is_querying() {
            return false;
        }
        if self.tracker.is_unsynced() {
            self.emit();
            self.send_own(Kind::Sync, &[]);
            self.tracker.end_pipeline();
        }
        let (mut told, mut out) = (BytesMut::new(), BytesMut::new());
        command_complete(&mut told, "SET");
        self.tracker.answer(OpKind::Query, told.freeze(), true, &mut out);
        self.see(&out);
        true
    }

    /// Where the backend may be given to somebody else, nothing of this client's is left on it.
    fn may_release(&self) {
        let Server { said, skipping, closed, status, .. } = &self.server;
        if self.tracker.may_release() && !closed {
            let copying = self.server.is_copying_in();
            let rests = said.is_empty() && !skipping && !copying && *status == TxStatus::Idle;
            assert!(rests, "released:{}", self.story);
        }
    }

    /// Takes one message of the server's. `false`: there is none.
    fn walk_down(&mut self) -> Result<bool, Desync> {
        let Some((kind, body)) = self.server.said.pop_front() else { return Ok(false) };
        self.story.push_str(&format!(" ←{}", char::from(kind)));
        if self.tracker.front().is_some_and(|op| op.made_up) {
            self.tracker.expect(kind);
            self.emit();
        }
        if self.short && self.tracker.as_expected(kind).is_some() {
            self.seen.push(kind);
            self.may_release();
            return Ok(true);
        }
        let mut out = BytesMut::new();
        let give =
            if (kind, body) == FATAL { Give::Pass } else { self.tracker.server(kind, body, &mut out)? };
        let told = text([(kind, body)]);
        match give {
            Give::Pass => self.seen.extend(told),
            Give::Suppress => {}
            Give::InjectedError => panic!("nothing of Bursar's own fails here"),
            Give::Withhold => {
                let before = self.withheld.replace(body[0]);
                self.seen.extend(before.iter().flat_map(|status| [b'Z', *status]));
            }
            Give::PassWithheld => {
                let before = self.withheld.take();
                self.seen.extend(before.iter().flat_map(|status| [b'Z', *status]));
                self.seen.extend(told);
            }
            Give::DropWithheld => self.withheld = None,
        }
        self.see(&out);
        self.may_release();
        if self.tracker.takes_intruder() {
            self.send_own(Kind::Close, &[]);
        }
        if self.tracker.take_marker() {
            assert_eq!(marker::BYTES.iter().filter(|&&byte| byte == b'C').count(), 2);
            for kind in [Kind::Sync, Kind::Close, Kind::Close, Kind::Sync] {
                self.send_own(kind, &[]);
            }
        }
        Ok(true)
    }
}

/// What answers a message that goes well, and leads to no rows.
fn acknowledges(message: &Message) -> Bytes {
    let mut server = Server::new();
    server.hear(message);
    let mut out = BytesMut::new();
    for (kind, _) in server.said {
        bare(&mut out, kind);
    }
    out.freeze()
}

/// The client's next message, and what becomes of it at Bursar.
fn message(choices: &mut Choices<'_>, copying: bool) -> (Message, Way) {
    const RUNS: [Run; 9] = [
        Run::Rows,
        Run::Done,
        Run::CopyIn,
        Run::Fail,
        Run::Begin,
        Run::End,
        Run::CopyOut,
        // Of an Execute only.
        Run::Suspended,
        Run::Empty,
    ];
    let usual = if copying { &b"dddScfHPQC"[..] } else { b"QPBESPBESDCHFdc" };
    let Some(kind) = Kind::of(choices.one_of(usual)) else { unreachable!() };
    let mut message = Message::new(kind);
    let runs = match kind {
        Kind::Query => choices.below(4),
        Kind::Execute => 1,
        Kind::Describe => choices.below(2),
        _ => 0,
    };
    let known = if kind == Kind::Execute { &RUNS[..] } else { &RUNS[..7] };
    message.runs = (0..runs).map(|_| choices.one_of(known)).collect();
    message.of_statement = kind == Kind::Describe && choices.coin();
    let odd = choices.byte();
    message.fails = odd % 8 == 1;
    message.cancelled = odd % 8 == 2 && matches!(kind, Kind::Sync | Kind::CopyData);
    let may = match kind {
        Kind::Query => &[Way::Apart, Way::Here][..],
        Kind::Parse | Kind::Bind | Kind::Describe | Kind::Execute | Kind::Close => {
            &[Way::Behind, Way::Apart, Way::Here, Way::Later, Way::Refuse]
        }
        _ => &[Way::Forward],
    };
    let way = if odd < 96 { choices.one_of(may) } else { Way::Forward };
    match way {
        Way::Here | Way::Later => {
            (message.fails, message.of_statement) = (false, false);
            message.runs = if matches!(kind, Kind::Query | Kind::Execute) { vec![Run::Done] } else { vec![] };
        }
        Way::Refuse if kind == Kind::Execute => message.runs = vec![Run::Fail],
        Way::Refuse => message.fails = true,
        _ => {}
    }
    (message, way)
}

/// The client of a server that keeps to the protocol is told what it would be told without Bursar, whatever
/// Bursar says in between, and in the end nothing is outstanding.
#[test]
fn a_server_that_keeps_to_the_protocol() {
    bolero::check!().with_max_len(200).for_each(|input: &[u8]| {
        let mut choices = Choices(input);
        let mut direct = Server::new();
        let mut middle = Middle {
            tracker: Tracker::default(),
            server: Server::new(),
            pending: VecDeque::new(),
            seen: Vec::new(),
            withheld: None,
            short: choices.coin(),
            doubtful: false,
            story: String::new(),
        };
        let mut ending = [Kind::CopyFail, Kind::Sync].into_iter();
        loop {
            let over = choices.0.is_empty();
            let told = match choices.below(3) {
                _ if over => None,
                0 => Some(message(&mut choices, direct.is_copying_in())),
                1 => {
                    middle.walk_up();
                    continue;
                }
                _ => None,
            };
            if let Some((mut message, way)) = told {
                // A cancel that comes before a message of Bursar's has broken into the COPY saves it.
                message.cancelled &= !direct.closed;
                direct.hear(&message);
                middle.story.push_str(&format!(" [{message:?} {way:?}]"));
                middle.pending.push_back((message, way));
                continue;
            }
            match middle.walk_down() {
                Ok(true) => continue,
                Ok(false) if !over => continue,
                Ok(false) => {}
                // Whether what followed such a COPY ran, nobody can tell; nor behind a second one.
                Err(Desync(_)) if middle.doubtful => return,
                Err(error) => panic!("{error}:{}", middle.story),
            }
            let waiting = middle.pending.len();
            middle.walk_up();
            if middle.pending.len() < waiting || !middle.server.said.is_empty() {
                continue;
            }
            let Some(kind) = ending.next() else { break };
            direct.hear(&Message::new(kind));
            middle.pending.push_back((Message::new(kind), Way::Forward));
        }
        let expected = text(direct.said);
        assert_eq!(
            String::from_utf8_lossy(&middle.seen),
            String::from_utf8_lossy(&expected),
            "{}",
            middle.story
        );
        if !direct.closed {
            assert!(middle.pending.is_empty() && !middle.tracker.is_busy());
            assert_eq!(middle.tracker.status(), direct.status);
            assert_eq!(middle.tracker.may_release(), direct.status == TxStatus::Idle);
        }
    });
}
