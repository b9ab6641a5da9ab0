//! Golden traces: what PostgreSQL answers to a list of byte strings, and that through the proxy the
//! same bytes come back, however the input is cut into reads.
//!
//! Each trace runs directly first, and must give the text in [`golden`]; then through the proxy
//! whole, cut once at every place, and byte by byte.

mod golden;

use crate::support::wire::Msg;
use crate::support::{Config, Db, Proxy, Wire, trace, until};
use std::time::Duration;

/// After so long, a reply is missing.
const MISSING: Duration = Duration::from_secs(5);

/// What is sent, and what is expected back, in the notation of [`crate::support::wire::Msg`].
pub(crate) struct Trace {
    name: &'static str,
    steps: Vec<Step>,
    /// What servers from this major version on say instead.
    newer: Option<(u32, &'static str)>,
}

enum Step {
    /// The client sends bytes; so many replies follow.
    Send(Vec<u8>, &'static str),
    /// Another session runs a statement; replies follow without a cause of our own.
    Elsewhere(&'static str, &'static str),
    /// The client sends bytes, is cancelled once they are being executed, and replies follow.
    Cancelled(Vec<u8>, &'static str),
}

/// How the bytes are sent.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Whole,
    /// Two pieces, the first ending at this offset of all bytes of the trace.
    At(usize),
    Bytewise,
}

const SETUP: &[&str] = &[
    "create table t (id int, note text)",
    "create table parent (id int primary key)",
    "create table child (id int references parent deferrable initially deferred)",
];

/// What came back: for each step its messages, with `EOF` as a trace has it.
#[derive(PartialEq, Eq)]
struct Outcome(Vec<(Vec<Msg>, bool)>);

impl Outcome {
    fn text(&self) -> String {
        let step = |(messages, closed): &(Vec<_>, bool)| {
            let end = if *closed { " EOF" } else { "" };
            format!("{}{end}", trace(messages)).trim_start().to_owned()
        };
        self.0.iter().map(step).collect::<Vec<_>>().join(" | ")
    }

    /// PostgreSQL's own error about a message that never reaches it, which Bursar raises itself: the
    /// same but for the place in PostgreSQL's source.
    fn without_source(mut self) -> Outcome {
        let illegal = |message: &&mut Msg| {
            message.field(b'M').is_some_and(|text| text.starts_with("invalid frontend message type"))
        };
        for message in self.0.iter_mut().flat_map(|(messages, _)| messages).filter(illegal) {
            let fields = message.body.split(|&byte| byte == 0);
            let kept = fields.filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')));
            message.body = kept.collect::<Vec<_>>().join(&0);
        }
        self
    }

    /// PostgreSQL signals a process and then its group, so that one request may now and then hit two
    /// statements (`SendCancelRequest` in postmaster.c).
    fn cancels(&self) -> usize {
        let cancelled = |message: &&Msg| message.field(b'C').as_deref() == Some("57014");
        self.0.iter().flat_map(|(messages, _)| messages).filter(cancelled).count()
    }

    fn detail(&self) -> String {
        self.0.iter().map(|(messages, closed)| format!("  {messages:?} closed={closed}\n")).collect()
    }
}

impl Trace {
    /// The same, but that servers from `major` on say something else.
    fn from(self, major: u32, expected: &'static str) -> Trace {
        Trace { newer: Some((major, expected)), ..self }
    }

    /// What a server of this major version says.
    fn expected_of(&self, major: u32) -> String {
        match self.newer {
            Some((since, text)) if major >= since => text.to_owned(),
            _ => self.expected(),
        }
    }

    fn expected(&self) -> String {
        self.steps.iter().map(Step::expected).collect::<Vec<_>>().join(" | ")
    }

    /// Bytes of all steps together.
    fn len(&self) -> usize {
        self.steps.iter().map(Step::len).sum()
    }

    /// On a session that is as after login.
    fn run(&self, db: &Db<'_>, wire: &mut Wire, cut: Cut) -> Outcome {
        let mut offset = 0;
        let mut steps = Vec::new();
        for step in &self.steps {
            match step {
                Step::Send(bytes, _) => send(wire, bytes, cut, offset),
                Step::Elsewhere(sql, _) => drop(db.ask(sql)),
                Step::Cancelled(bytes, _) => {
                    send(wire, bytes, cut, offset);
                    until("the statement to cancel runs", || db.backends("wait_event = 'PgSleep'") == 1);
                    wire.cancel();
                }
            }
            offset += step.len();
            let mut messages = replies(wire, step.expected());
            for message in messages.iter_mut().filter(|m| m.kind == b'A') {
                // The sender's process id: another one each time.
                message.body[..4].fill(0);
            }
            steps.push((messages, wire.is_closed()));
        }
        Outcome(steps)
    }
}

impl Step {
    fn expected(&self) -> &'static str {
        match self {
            Step::Send(_, expected) | Step::Elsewhere(_, expected) | Step::Cancelled(_, expected) => expected,
        }
    }

    fn len(&self) -> usize {
        match self {
            Step::Send(bytes, _) | Step::Cancelled(bytes, _) => bytes.len(),
            Step::Elsewhere(..) => 0,
        }
    }
}

/// So many messages as expected, and whatever else has arrived by then. Fewer if they do not come.
fn replies(wire: &mut Wire, expected: &str) -> Vec<Msg> {
    let (count, end) = count_messages(expected);
    let mut messages = Vec::new();
    while messages.len() < count || end {
        match wire.try_recv(MISSING) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) | Err(_) => break,
        }
    }
    messages.extend(wire.recv_arrived());
    messages
}

fn send(wire: &mut Wire, bytes: &[u8], cut: Cut, offset: usize) {
    match cut {
        Cut::At(at) if (offset + 1..offset + bytes.len()).contains(&at) => {
            wire.send_split(bytes, [at - offset]);
        }
        Cut::Bytewise => wire.send_split(bytes, 1..bytes.len()),
        Cut::Whole | Cut::At(_) => wire.send_split(bytes, []),
    }
}

/// Messages of a trace's text, and whether the connection ends after them.
fn count_messages(text: &str) -> (usize, bool) {
    let mut depth = 0;
    let top: String = text
        .chars()
        .filter(|c| {
            depth += match c {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            depth == 0 && *c != ')'
        })
        .collect();
    let mut words: Vec<&str> = top.split_ascii_whitespace().collect();
    let end = words.last() == Some(&"EOF");
    if end {
        words.pop();
    }
    (words.len(), end)
}

fn check(traces: &[Trace]) {
    let db = Db::new();
    db.run(SETUP);
    let direct: Vec<Outcome> =
        traces.iter().map(|t| t.run(&db, &mut db.direct(), Cut::Whole).without_source()).collect();
    let version: u32 = db.value("show server_version_num").parse().expect("a number");
    for (trace, outcome) in traces.iter().zip(&direct) {
        let (got, want) = (outcome.text(), trace.expected_of(version / 10_000));
        assert_eq!(got, want, "{}: PostgreSQL itself says\n{}", trace.name, outcome.detail());
    }
    let proxy = Proxy::start(&db, Config::one_backend().lazy());
    let mut runs = 0;
    let mut wrong = Vec::new();
    for (trace, direct) in traces.iter().zip(&direct) {
        let cuts = (1..trace.len()).map(Cut::At);
        let mut wire = proxy.connect();
        for cut in [Cut::Whole, Cut::Bytewise].into_iter().chain(cuts) {
            if runs > 0 && !renew(&mut wire) {
                wire = proxy.connect();
            }
            runs += 1;
            let mut proxied = trace.run(&db, &mut wire, cut).without_source();
            while proxied.cancels() > direct.cancels() {
                assert!(renew(&mut wire), "{}: closed", trace.name);
                proxied = trace.run(&db, &mut wire, cut).without_source();
            }
            if proxied != *direct {
                wrong.push(difference(trace, cut, direct, &proxied));
                // One wrong cut of a trace tells enough.
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} traces differ\n{}", wrong.len(), traces.len(), wrong.join("\n"));
    assert!(runs > 100, "only {runs} runs");
    proxy.stop();
}

/// Makes a session as it was after login, unless it is closed.
fn renew(wire: &mut Wire) -> bool {
    !wire.is_closed() && {
        if wire.query("discard all").error().is_some() {
            // A transaction is open.
            wire.batch("rollback");
            wire.batch("discard all");
        }
        true
    }
}

fn difference(trace: &Trace, cut: Cut, direct: &Outcome, proxied: &Outcome) -> String {
    let texts = format!(" direct: {}\nproxied: {}\n", direct.text(), proxied.text());
    let details = if direct.text() == proxied.text() {
        format!("{}{}", direct.detail(), proxied.detail())
    } else {
        String::new()
    };
    format!("{}, {cut:?}\n{texts}{details}", trace.name)
}

#[test]
fn simple_queries() {
    check(&golden::simple());
}

#[test]
fn extended_queries() {
    check(&golden::extended());
}

#[test]
fn portals_and_statements() {
    check(&golden::portals_and_statements());
}

#[test]
fn errors_in_pipelines() {
    check(&golden::errors_in_pipelines());
}

#[test]
fn copy_in_and_out() {
    check(&golden::copy());
}

#[test]
fn copy_that_loses_synchronisation() {
    check(&golden::copy_lost());
}

#[test]
fn what_comes_unasked() {
    check(&golden::unasked());
}

#[test]
fn illegal_messages() {
    check(&golden::illegal());
}
