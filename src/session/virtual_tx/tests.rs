//! The machine between a model of a client and one of PostgreSQL: aborts come at any moment.

use super::*;
use crate::wire::error::Severity;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn why() -> Box<Report> {
    Box::new(Report::new(Severity::Error, "25P03", "idle too long"))
}

fn told(status: TxStatus) -> Reply {
    Reply::Fail(Why::Told(why()), status)
}

fn aborted() -> VirtualTx {
    let mut tx = VirtualTx::default();
    tx.abort(Some(why()), false);
    tx
}

const FAILED: Reply = Reply::Fail(Why::Failed, TxStatus::Failed);

const BIND: Said<'_> = Said::Bind { portal: b"", statement: b"named" };

fn parse(name: &'static str, verb: Verb) -> Said<'static> {
    Said::Parse { name: name.as_bytes(), verb }
}

/// Parse, Bind, Describe, Execute, all unnamed: what the last is answered with.
fn execute(tx: &mut VirtualTx, verb: Verb) -> Reply {
    assert_eq!(tx.hear(parse("", verb)), Reply::Acknowledge);
    assert_eq!(tx.hear(Said::DescribeStatement(b"")), Reply::NoData);
    assert_eq!(tx.hear(Said::Bind { portal: b"p", statement: b"" }), Reply::Acknowledge);
    assert_eq!(tx.hear(Said::DescribePortal(b"p")), Reply::NoData);
    tx.hear(Said::Execute(b"p"))
}

/// The table of budgets.md §2.6, row by row.
#[test]
fn an_abort_that_the_client_has_not_seen() {
    use Verb::*;
    for said in [
        Said::Query(Other),
        Said::Query(Exits),
        Said::Query(Begin),
        Said::Call,
        BIND,
        Said::Execute(b""),
        Said::DescribePortal(b""),
        Said::DescribeStatement(b""),
        parse("named", Commit),
        parse("", Other),
    ] {
        let mut tx = aborted();
        assert_eq!(tx.hear(said), told(TxStatus::Failed), "{said:?}");
        assert_eq!(tx.hear(Said::Query(Other)), FAILED, "once");
        assert!(tx.is_aborted());
    }
    let mut tx = aborted();
    assert_eq!(tx.hear(Said::Query(Commit)), told(TxStatus::Idle), "never a tag that looks like success");
    assert!(tx.is_real());
    let mut tx = aborted();
    assert_eq!(tx.hear(Said::Query(Rollback)), Reply::Complete("ROLLBACK"));
    assert!(tx.is_real());
    for (verb, reply) in [(Commit, told(TxStatus::Idle)), (Rollback, Reply::Complete("ROLLBACK"))] {
        let mut tx = aborted();
        assert_eq!(execute(&mut tx, verb), reply);
        assert!(tx.is_real());
        assert_eq!(tx.hear(Said::Execute(b"p")), Reply::Pass, "nothing is kept for the next transaction");
    }
}

#[test]
fn an_abort_that_the_client_has_seen() {
    use Verb::*;
    let seen = || {
        let mut tx = VirtualTx::default();
        tx.abort(None, false);
        tx
    };
    for verb in [Commit, Rollback] {
        let mut tx = seen();
        assert_eq!(tx.hear(Said::Query(verb)), Reply::Complete("ROLLBACK"), "as PostgreSQL");
        assert!(tx.is_real());
        assert_eq!(execute(&mut seen(), verb), Reply::Complete("ROLLBACK"));
    }
    for said in [Said::Query(Other), Said::Query(Begin), Said::Call, parse("named", Other), parse("", Begin)]
    {
        assert_eq!(seen().hear(said), FAILED, "{said:?}");
    }
    for said in [Said::Query(Exits), BIND, Said::Execute(b""), parse("named", Commit)] {
        let mut tx = seen();
        assert_eq!(tx.hear(said), Reply::Pass, "{said:?}");
        assert!(tx.leads_failed());
        assert_eq!(tx.lease(), Lead::Failed);
        assert!(tx.is_real());
    }
}

#[test]
fn what_is_kept_is_what_was_parsed_last() {
    let mut tx = aborted();
    assert_eq!(tx.hear(parse("", Verb::Commit)), Reply::Acknowledge);
    assert_eq!(tx.hear(parse("", Verb::Rollback)), Reply::Acknowledge);
    assert_eq!(tx.hear(Said::Bind { portal: b"", statement: b"" }), Reply::Acknowledge);
    assert_eq!(tx.hear(Said::Query(Verb::Other)), told(TxStatus::Failed));
    assert_eq!(tx.hear(Said::Bind { portal: b"", statement: b"" }), Reply::Pass, "a Query drops it");
    assert_eq!(tx.hear(Said::Execute(b"")), Reply::Complete("ROLLBACK"));
    let mut tx = aborted();
    assert_eq!(tx.hear(parse("", Verb::Commit)), Reply::Acknowledge);
    for portal in 0..PORTALS as u8 {
        assert_eq!(tx.hear(Said::Bind { portal: &[portal], statement: b"" }), Reply::Acknowledge);
    }
    assert_eq!(tx.hear(Said::Bind { portal: b"more", statement: b"" }), told(TxStatus::Failed), "bounded");
}

#[test]
fn an_abort_of_a_session_that_keeps_its_backend() {
    use Verb::*;
    let held = || {
        let mut tx = VirtualTx::default();
        tx.abort(Some(why()), true);
        tx
    };
    for (said, reply) in [
        (Said::Query(Other), told(TxStatus::Failed)),
        (parse("", Rollback), told(TxStatus::Failed)),
        (BIND, told(TxStatus::Failed)),
        (Said::Query(Commit), Reply::FailAndRollBack(Why::Told(why()))),
        (Said::Query(Rollback), Reply::Pass),
    ] {
        let mut tx = held();
        assert_eq!(tx.hear(said), reply, "{said:?}");
        assert!(tx.is_real(), "PostgreSQL answers everything else");
    }
}

#[test]
fn a_begin_waits_for_the_first_statement() {
    let begun = || {
        let mut tx = VirtualTx::default();
        tx.begin(b"begin".as_slice().into());
        tx
    };
    assert_eq!(begun().hear(Said::Query(Verb::Commit)), Reply::Complete("COMMIT"));
    assert_eq!(begun().hear(Said::Query(Verb::Rollback)), Reply::Complete("ROLLBACK"));
    for said in [Said::Query(Verb::Other), Said::Query(Verb::Begin), Said::Query(Verb::Exits), BIND] {
        let mut tx = begun();
        assert_eq!(tx.hear(said), Reply::Pass, "{said:?}");
        assert_eq!(tx.lease(), Lead::Begin(b"begin".as_slice().into()));
        assert!(tx.is_real());
    }
    let mut tx = begun();
    assert_eq!(tx.refused(), TxStatus::Failed);
    assert_eq!(tx.hear(Said::Query(Verb::Commit)), Reply::Complete("ROLLBACK"), "it was told");
    assert_eq!(VirtualTx::default().refused(), TxStatus::Idle);
}

#[test]
fn a_parked_transaction_goes_on_with_the_first_statement_and_ends_without_one() {
    use Verb::*;
    let resume = || Resume { begin: b"begin".as_slice().into(), settings: vec![("a.b".into(), "x".into())] };
    let parked = || {
        let mut tx = VirtualTx::default();
        tx.park(resume());
        tx
    };
    for said in [Said::Query(Other), Said::Query(Begin), Said::Query(Exits), Said::Call, BIND] {
        let mut tx = parked();
        assert_eq!(tx.hear(said), Reply::Pass, "{said:?}");
        assert!(tx.is_parked() && !tx.is_real());
        assert_eq!(tx.lease(), Lead::Resume(Box::new(resume())));
        assert!(tx.is_real());
    }
    for (verb, tag) in [(Commit, "COMMIT"), (Rollback, "ROLLBACK")] {
        let mut tx = parked();
        assert_eq!(tx.hear(Said::Query(verb)), Reply::Complete(tag));
        assert!(tx.is_real());
        let mut tx = parked();
        assert_eq!(tx.hear(parse("", verb)), Reply::Acknowledge);
        assert_eq!(execute(&mut tx, verb), Reply::Complete(tag));
    }
    let mut tx = parked();
    assert_eq!(tx.refused(), TxStatus::Failed);
    assert!(!tx.is_parked());
    assert_eq!(tx.hear(Said::Query(Commit)), Reply::Complete("ROLLBACK"), "it was told");
}

/// What a client sends in the model; every statement is a Query, or Parse, Bind, Execute and Sync.
#[derive(Debug, Clone, Copy)]
enum Step {
    Send(Text, bool),
    /// Bursar takes the backend.
    Abort,
    /// It does so of a transaction that has only read.
    Park,
    /// The next lease is refused.
    Refuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Begin,
    Insert,
    Bad,
    Commit,
    Rollback,
    CommitThenInsert,
    /// A COMMIT that was prepared under a name, long ago.
    PreparedCommit,
}

impl Text {
    fn verb(self) -> Verb {
        match self {
            Text::Begin => Verb::Begin,
            Text::Insert | Text::Bad => Verb::Other,
            Text::Commit | Text::PreparedCommit => Verb::Commit,
            Text::Rollback => Verb::Rollback,
            Text::CommitThenInsert => Verb::Exits,
        }
    }
}

/// PostgreSQL, as far as it matters.
#[derive(Default)]
struct Postgres {
    block: Option<bool>,
    pending: Vec<u32>,
    committed: BTreeSet<u32>,
}

/// What a client hears of one message: a tag, or an error.
type Heard = Result<&'static str, ()>;

impl Postgres {
    fn status(&self) -> TxStatus {
        match self.block {
            None => TxStatus::Idle,
            Some(true) => TxStatus::InTransaction,
            Some(false) => TxStatus::Failed,
        }
    }

    fn run(&mut self, text: Text, row: u32) -> Vec<Heard> {
        match (text, self.block) {
            (Text::Commit | Text::PreparedCommit, Some(true)) => {
                self.committed.extend(self.pending.drain(..));
                self.block = None;
                vec![Ok("COMMIT")]
            }
            (Text::Commit | Text::PreparedCommit, None) => vec![Ok("COMMIT")],
            (Text::Commit | Text::PreparedCommit | Text::Rollback, _) => {
                self.pending.clear();
                self.block = None;
                vec![Ok("ROLLBACK")]
            }
            (Text::CommitThenInsert, _) => {
                let mut heard = self.run(Text::Commit, row);
                heard.extend(self.run(Text::Insert, row));
                heard
            }
            (_, Some(false)) => vec![Err(())],
            (Text::Begin, _) => {
                self.block = Some(true);
                vec![Ok("BEGIN")]
            }
            (Text::Insert, Some(true)) => {
                self.pending.push(row);
                vec![Ok("INSERT")]
            }
            (Text::Insert, None) => {
                self.committed.insert(row);
                vec![Ok("INSERT")]
            }
            (Text::Bad, block) => {
                self.block = block.map(|_| false);
                vec![Err(())]
            }
        }
    }
}

/// A session, as far as it matters.
struct Bench {
    tx: VirtualTx,
    postgres: Postgres,
    linked: bool,
    /// It keeps its backend: session mode.
    keeps: bool,
    refuse: bool,
}

impl Bench {
    fn abort(&mut self) {
        // The orders are about a lease that is in a transaction; nothing is in flight.
        if !self.linked || self.postgres.status() == TxStatus::Idle {
            return;
        }
        self.postgres.run(Text::Rollback, 0);
        if self.keeps {
            self.postgres.run(Text::Begin, 0);
            self.postgres.run(Text::Bad, 0);
        }
        self.linked = self.keeps;
        self.tx.abort(Some(why()), self.keeps);
    }

    fn park(&mut self) {
        let reads = self.postgres.pending.is_empty() && self.postgres.block == Some(true);
        if self.linked && !self.keeps && reads && self.tx.is_real() {
            self.postgres.run(Text::Commit, 0);
            self.linked = false;
            self.tx.park(Resume { begin: b"begin".as_slice().into(), settings: Vec::new() });
        }
    }

    /// Returns what the client hears, and the status of the ReadyForQuery.
    fn send(&mut self, text: Text, extended: bool, row: u32) -> (Vec<Heard>, TxStatus) {
        if self.tx.is_real() && !self.linked && !extended && text == Text::Begin {
            self.tx.begin(b"begin".as_slice().into());
            return (vec![Ok("BEGIN")], TxStatus::InTransaction);
        }
        let verb = text.verb();
        let mut reply = match (extended, text) {
            (_, Text::PreparedCommit) => self.tx.hear(BIND),
            (false, _) => self.tx.hear(Said::Query(verb)),
            (true, _) => self.tx.hear(parse("", verb)),
        };
        if reply == Reply::Acknowledge {
            reply = execute(&mut self.tx, verb);
        }
        match reply {
            Reply::Acknowledge | Reply::NoData => unreachable!("not of an Execute or Query"),
            Reply::Complete(tag) => (vec![Ok(tag)], TxStatus::Idle),
            Reply::Fail(_, status) => {
                assert!(!self.linked || status == self.postgres.status());
                (vec![Err(())], status)
            }
            Reply::FailAndRollBack(_) => {
                self.postgres.run(Text::Rollback, 0);
                (vec![Err(())], self.postgres.status())
            }
            Reply::Pass => self.pass(text, row),
        }
    }

    fn pass(&mut self, text: Text, row: u32) -> (Vec<Heard>, TxStatus) {
        if !self.linked {
            if std::mem::take(&mut self.refuse) {
                return (vec![Err(())], self.tx.refused());
            }
            self.linked = true;
            match self.tx.lease() {
                Lead::Nothing => {}
                Lead::Begin(_) | Lead::Resume(_) => drop(self.postgres.run(Text::Begin, 0)),
                Lead::Failed => {
                    self.postgres.run(Text::Begin, 0);
                    self.postgres.run(Text::Bad, 0);
                }
            }
        }
        let heard = self.postgres.run(text, row);
        let status = self.postgres.status();
        self.linked = self.keeps || status != TxStatus::Idle;
        (heard, status)
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Text::*;
    let text = prop::sample::select(vec![
        Begin,
        Begin,
        Insert,
        Insert,
        Insert,
        Bad,
        Commit,
        Commit,
        Rollback,
        CommitThenInsert,
        PreparedCommit,
    ]);
    let step = prop_oneof![
        8 => (text, any::<bool>()).prop_map(|(text, extended)| Step::Send(text, extended && text != CommitThenInsert)),
        2 => Just(Step::Abort),
        2 => Just(Step::Park),
        1 => Just(Step::Refuse),
    ];
    prop::collection::vec(step, 1..40)
}

/// How many sequences the model test makes; `BURSAR_TEST_SEQUENCES` asks for more.
fn sequences() -> u32 {
    std::env::var("BURSAR_TEST_SEQUENCES").ok().and_then(|count| count.parse().ok()).unwrap_or(2000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(sequences()))]
    #[test]
    fn who_was_told_commit_has_it_and_every_abort_is_told(steps in steps(), keeps in any::<bool>()) {
        let mut bench = Bench {
            tx: VirtualTx::default(), postgres: Postgres::default(), linked: keeps, keeps, refuse: false,
        };
        // Of the client: what it has inserted since its BEGIN, and what it must find, or must not.
        let (mut open, mut mine, mut there, mut gone) = (false, Vec::new(), BTreeSet::new(), BTreeSet::new());
        let mut untold = false;
        for (row, step) in steps.into_iter().enumerate() {
            let row = row as u32;
            let (text, extended) = match step {
                Step::Send(text, extended) => (text, extended),
                Step::Abort => {
                    untold |= bench.linked && bench.postgres.status() != TxStatus::Idle;
                    bench.abort();
                    continue;
                }
                Step::Park => {
                    bench.park();
                    continue;
                }
                Step::Refuse => {
                    bench.refuse = !keeps;
                    continue;
                }
            };
            let was_open = open;
            let (heard, status) = bench.send(text, extended, row);
            for reply in &heard {
                match reply {
                    Ok("BEGIN") => {
                        prop_assert!(!untold, "a transaction begins, and the client knows nothing of the last");
                        if !was_open { mine.clear(); }
                    }
                    Ok("INSERT") if status == TxStatus::InTransaction => mine.push(row),
                    Ok("INSERT") => drop(there.insert(row)),
                    Ok("COMMIT") => {
                        prop_assert!(!untold, "told COMMIT of a transaction that was aborted");
                        there.extend(mine.drain(..));
                    }
                    Ok("ROLLBACK") => {
                        // Not unless it asked for that, or knows that the transaction has failed.
                        prop_assert!(!untold || text == Text::Rollback);
                        untold = false;
                        gone.extend(mine.drain(..));
                    }
                    _ => untold = false,
                }
            }
            open = status != TxStatus::Idle;
            if !open {
                gone.extend(mine.drain(..));
            }
            if !bench.linked && bench.tx.is_real() {
                prop_assert_eq!(status, TxStatus::Idle);
            }
        }
        let committed = &bench.postgres.committed;
        prop_assert!(there.is_subset(committed), "{:?} in {:?}", there, committed);
        prop_assert!(gone.is_disjoint(committed), "{:?} in {:?}", gone, committed);
    }
}
