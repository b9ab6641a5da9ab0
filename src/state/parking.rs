//! What a session has seen of its transaction, and whether it may be parked: its backend given back while
//! the client is silent, and the transaction begun again elsewhere when it speaks (budgets.md §4.4).
//!
//! Pure. It hears of each statement before that is sent and of each ReadyForQuery when nothing is
//! outstanding, and fails closed: what it has not seen or not understood keeps the transaction from being
//! parked until its end.
//!
//! ```text
//!            a plain BEGIN                 whatever does not only read
//!   None ──────────────────▶ Open{begin, keys} ────────────────────────▶ Barred{why}
//!    ▲  ╰── a transaction without a BEGIN that was seen ─────────────────────▲ │
//!    ╰───────────────────────── ReadyForQuery 'I', nothing outstanding ────────╯
//! ```
//!
//! What it cannot see (a transaction id, another isolation level by default) the backend is asked for
//! before it is given back.

use super::volatile::Names;
use crate::metrics::Unparkable as Bar;
use crate::wire::backend::TxStatus;
use crate::wire::sql::reads::reads;
use crate::wire::sql::transaction::Verb;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Seen {
    state: State,
    /// A bar that nobody has been told of yet.
    news: Option<Bar>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    None,
    Open(Open),
    Barred(Bar),
}

/// A transaction that has only read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The text of its BEGIN.
    pub begin: Box<[u8]>,
    /// The settings that it has set for itself, in the order of their first mention.
    pub keys: Vec<Box<str>>,
    /// It has had a query. Before the first one a client may still choose another isolation level, and
    /// after it not any more.
    queried: bool,
}

impl Seen {
    /// Whether statements need not be told: no transaction is known that could still be parked.
    #[must_use]
    #[inline]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// A BEGIN alone is answered here, or sent: READ COMMITTED, or the session's default
    /// ([`Verb::Begin`] is nothing else).
    pub fn begin(&mut self, text: &[u8]) {
        match self.state {
            State::None => {
                self.state = State::Open(Open { begin: text.into(), keys: Vec::new(), queried: false })
            }
            // In a transaction it only warns; but perhaps another one has ended on the way.
            _ => self.bar(Bar::Begin),
        }
    }

    /// A statement with this text is about to be sent. `names`: those of its database that are not safe,
    /// if they are known.
    pub fn statement(&mut self, text: &[u8], names: Option<&Names>) {
        let verb = Verb::of(text);
        if matches!(verb, Verb::Begin | Verb::Start) {
            return self.begin(text);
        }
        let State::Open(open) = &mut self.state else { return };
        if matches!(verb, Verb::Commit | Verb::Rollback) {
            // Over, in a way that is no fault of its own.
            self.state = State::Barred(Bar::Statement);
            return;
        }
        let Some(names) = names else { return self.bar(Bar::Catalog) };
        match reads(text, |name| names.has(name), &mut open.keys) {
            Ok(queries) => open.queried |= queries,
            Err(why) => self.bar(why),
        }
    }

    /// Something other than a statement keeps the transaction from being parked.
    pub fn bar(&mut self, why: Bar) {
        if self.is_open() {
            self.news = Some(why);
        }
        if self.state != State::None {
            self.state = State::Barred(why);
        }
    }

    /// ReadyForQuery says this. `busy`: something else is outstanding still.
    pub fn ready(&mut self, status: TxStatus, busy: bool) {
        match (status, &self.state) {
            // What was told meanwhile may belong to the transaction behind.
            (TxStatus::Idle, State::None) => {}
            (TxStatus::Idle, _) if busy => self.state = State::Barred(Bar::Protocol),
            (TxStatus::Idle, _) => self.state = State::None,
            (TxStatus::InTransaction, State::None) => self.state = State::Barred(Bar::Begin),
            (TxStatus::InTransaction, _) => {}
            (TxStatus::Failed, _) => self.state = State::Barred(Bar::Statement),
        }
    }

    /// The transaction, if it may be parked.
    #[must_use]
    pub fn parkable(&self) -> Option<&Open> {
        match &self.state {
            State::Open(open) if open.queried => Some(open),
            _ => None,
        }
    }

    /// Whether all that keeps it from being parked is that nobody knows its functions.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        self.state == State::Barred(Bar::Catalog)
    }

    /// What has first kept a transaction from being parked, once.
    pub fn take_news(&mut self) -> Option<Bar> {
        self.news.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names() -> Names {
        Names::of(&[(b"n", b"nextval", None)]).unwrap()
    }

    fn say(seen: &mut Seen, text: &str) {
        seen.statement(text.as_bytes(), Some(&names()));
    }

    #[test]
    fn a_transaction_that_only_reads_may_be_parked_with_what_it_has_set() {
        let mut seen = Seen::default();
        say(&mut seen, "select 1");
        assert!(seen.parkable().is_none());
        seen.ready(TxStatus::Idle, false);
        say(&mut seen, "begin read only");
        seen.ready(TxStatus::InTransaction, false);
        say(&mut seen, "select set_config('app.tenant', $1, true)");
        say(&mut seen, "set local app.user = 'x'");
        say(&mut seen, "select * from t");
        seen.ready(TxStatus::InTransaction, false);
        let open = seen.parkable().unwrap();
        assert_eq!(&*open.begin, b"begin read only");
        assert_eq!(open.keys.join(" "), "app.tenant app.user");
        say(&mut seen, "commit");
        assert!(seen.parkable().is_none());
        seen.ready(TxStatus::Idle, false);
        assert_eq!(seen.take_news(), None);
    }

    #[test]
    fn the_first_bar_is_told_once_and_holds_until_the_end() {
        let mut seen = Seen::default();
        say(&mut seen, "begin");
        say(&mut seen, "select nextval('s')");
        say(&mut seen, "insert into t values (1)");
        say(&mut seen, "select 1");
        seen.ready(TxStatus::InTransaction, false);
        assert!(seen.parkable().is_none());
        assert_eq!(seen.take_news(), Some(Bar::Function));
        assert_eq!(seen.take_news(), None);
        seen.ready(TxStatus::Idle, false);
        say(&mut seen, "begin");
        say(&mut seen, "set local app.tenant = 'a'; show app.tenant");
        assert!(seen.parkable().is_none(), "its isolation level is still to be chosen");
        say(&mut seen, "table t");
        assert!(seen.parkable().is_some());
    }

    #[test]
    fn what_was_not_seen_to_begin_is_not_parked() {
        for begin in ["begin; select 1", "begin isolation level serializable", "begin; set x = 1"] {
            let mut seen = Seen::default();
            say(&mut seen, begin);
            seen.ready(TxStatus::InTransaction, false);
            say(&mut seen, "select 1");
            assert!(seen.parkable().is_none(), "{begin}");
        }
        let mut seen = Seen::default();
        say(&mut seen, "begin");
        seen.statement(b"select 1", None);
        assert_eq!(seen.parkable(), None);
        assert_eq!(seen.take_news(), Some(Bar::Catalog));
    }

    /// What a client may send, with what it does to a transaction.
    #[derive(Debug, Clone, Copy)]
    enum Text {
        Begin,
        Read,
        Write,
        End,
        Portal,
    }

    proptest! {
        /// Against a server that runs what is sent whenever it likes: a transaction that is parkable while
        /// nothing is outstanding has begun by a BEGIN that was seen, and nothing but reads has run in it.
        #[test]
        fn pipelines_never_make_a_writing_transaction_parkable(
            steps in prop::collection::vec(
                (prop::sample::select(vec![Text::Begin, Text::Read, Text::Write, Text::End, Text::Portal]), 0usize..4),
                1..60),
        ) {
            let names = names();
            let mut seen = Seen::default();
            // Sent and not run yet; the server's transaction, and whether it has only read.
            let mut sent = std::collections::VecDeque::new();
            let (mut open, mut clean) = (false, true);
            for (text, answers) in steps {
                match text {
                    Text::Begin => seen.statement(b"begin", Some(&names)),
                    Text::Read => seen.statement(b"select 1", Some(&names)),
                    Text::Write => seen.statement(b"insert into t values (1)", Some(&names)),
                    Text::End => seen.statement(b"commit", Some(&names)),
                    Text::Portal => seen.bar(Bar::Portal),
                }
                sent.push_back(text);
                for _ in 0..answers {
                    let Some(text) = sent.pop_front() else { break };
                    match text {
                        Text::Begin if !open => (open, clean) = (true, true),
                        Text::End => open = false,
                        Text::Write | Text::Portal => clean = false,
                        Text::Begin | Text::Read => {}
                    }
                    let status = if open { TxStatus::InTransaction } else { TxStatus::Idle };
                    seen.ready(status, !sent.is_empty());
                    if sent.is_empty() && open && !clean {
                        prop_assert!(seen.parkable().is_none());
                    }
                    if sent.is_empty() && !open {
                        prop_assert!(seen.parkable().is_none());
                    }
                }
            }
        }
    }
}
