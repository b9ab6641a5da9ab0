//! Random programs of two to four clients, on PostgreSQL directly and through the proxy before one
//! backend or three, in each mode of a pool: every byte that comes back is the same.
//!
//! A failure prints the shortest program found that still differs, and the seed that repeats it.
//! [`chaos`] does without the comparison: there backends die and statements are cancelled at any time.

mod acknowledged;
mod chaos;
mod generate;
mod ops;
mod plain;
mod run;
mod same;
mod schema;
mod settings;
mod statements;

use crate::support::dice::number;
use crate::support::{Db, SETTINGS};
use run::{Difference, Lab};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Number of programs, the seed of the first, and how often each is run: a difference that depends on how
/// the work is scheduled shows in one run of many.
const PROGRAMS: &str = "BURSAR_TEST_PROGRAMS";
const SEED: &str = "BURSAR_TEST_SEED";
const TIMES: &str = "BURSAR_TEST_TIMES";

/// How many times as many steps a program has: what stays when its clients have logged in is cheaper to
/// try for long, and longer programs get further from where they began.
const LENGTH: &str = "BURSAR_TEST_LENGTH";

/// Programs that differed once.
const KEPT: &[u64] = &[
    40232, 40808, 40936, 41604, 42272, 43832, 44544, 47152, 47264, 47824, 87508, 2, 93, 105, 195, 225, 305,
    882, 3105, 500070, 1000910, 2000149, 3009113,
];
const KEPT_SESSION: &[u64] = &[7001234];
const KEPT_STATEMENT: &[u64] = &[2001230];

/// So small a cap of prepared statements on a backend, as a line of `[pool]`, that programs meet it.
const CAP: Option<&str> = Some("max_prepared = 3");

/// Clients log in with start-up parameters, and RESET goes back to those.
const START_UP: bool = SETTINGS;

/// SQL's EXECUTE and PREPARE see the names of the protocol's Parse: not where those are shared
/// (docs/compatibility.md).
const SQL_SEES_NAMES: bool = false;

/// How long a difference is made shorter.
const SHRINKING: Duration = Duration::from_secs(60);

/// At most so many clients.
const CLIENTS: usize = 4;

/// What a message leaves on the backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pin {
    None,
    /// A prepared statement: it goes where its session goes.
    Statement,
    /// A setting: so does this, once settings do.
    Setting,
    /// Its session keeps the backend.
    Kept,
}

/// One message.
#[derive(Clone)]
struct Op {
    /// For people.
    text: String,
    bytes: Vec<u8>,
    pin: Pin,
}

/// What one client sends in one write, before both sides come to rest.
#[derive(Clone)]
struct Step {
    client: usize,
    ops: Vec<Op>,
    /// If others hold the backends it needs: they leave. Otherwise this step is left out.
    evict: bool,
}

/// The pool that a program runs before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pool {
    One,
    /// Of three backends, each used in its turn.
    Three,
}

impl Pool {
    fn size(self) -> usize {
        match self {
            Pool::One => 1,
            Pool::Three => 3,
        }
    }
}

/// The mode of the pool, and what a program may do there that looks the same as on a direct connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Transaction,
    /// Each client has a backend of its own, from its login on.
    Session,
    /// Without transaction blocks that outlast a statement.
    Statement,
}

impl Mode {
    fn key(self) -> &'static str {
        match self {
            Mode::Transaction => "transaction",
            Mode::Session => "session",
            Mode::Statement => "statement",
        }
    }
}

#[derive(Clone)]
struct Program {
    pool: Pool,
    steps: Vec<Step>,
    /// Start-up parameters of each client; none where there is no entry.
    logins: Vec<Vec<(String, String)>>,
    /// Its clients only read: they may be in transactions at once.
    apart: bool,
    /// It changes a table's row type; a client to whom that shows otherwise than directly leaves.
    reshapes: bool,
}

impl Program {
    /// Nothing yet.
    fn of(pool: Pool) -> Program {
        Program { pool, steps: Vec::new(), logins: Vec::new(), apart: false, reshapes: false }
    }

    fn login(&self, client: usize) -> &[(String, String)] {
        self.logins.get(client).map_or(&[], Vec::as_slice)
    }

    /// What it is made of, to see it become less.
    fn size(&self) -> usize {
        self.steps.iter().map(|step| 1 + step.ops.len()).sum::<usize>()
            + self.logins.iter().map(Vec::len).sum::<usize>()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ops: Vec<&str> = self.ops.iter().map(|op| op.text.as_str()).collect();
        let client = ["A", "B", "C", "D"][self.client];
        write!(f, "{client}{} {}", if self.evict { "!" } else { ":" }, ops.join(" "))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  before {:?}", self.pool)?;
        for (client, login) in self.logins.iter().enumerate().filter(|(_, login)| !login.is_empty()) {
            write!(f, "\n  {} starts with {login:?}", ["A", "B", "C", "D"][client])?;
        }
        self.steps.iter().try_for_each(|step| write!(f, "\n  {step}"))
    }
}

#[test]
fn random_programs_see_no_difference() {
    compare(Mode::Transaction, 360, KEPT);
}

#[test]
fn random_programs_in_session_mode_see_no_difference() {
    compare(Mode::Session, 120, KEPT_SESSION);
}

#[test]
fn random_programs_in_statement_mode_see_no_difference() {
    compare(Mode::Statement, 120, KEPT_STATEMENT);
}

/// So many programs, or as many as the environment says.
fn compare(mode: Mode, programs: u64, kept: &[u64]) {
    let (programs, first, times) = (number(PROGRAMS, programs), number(SEED, 1), number(TIMES, 1).max(1));
    let kept = if std::env::var_os(SEED).is_some() { &[] } else { kept };
    let next = AtomicU64::new(0);
    let runs = (programs + kept.len() as u64) * times;
    let seed = |n: u64| kept.get(n as usize).copied().unwrap_or_else(|| first + n - kept.len() as u64);
    let totals: Vec<run::Totals> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let db = Db::new();
                    generate::set_up(&db);
                    let mut lab = Lab::new(&db, mode);
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= runs {
                            break;
                        }
                        let seed = seed(n / times);
                        let program = generate::program(seed, mode);
                        let _named = Named(seed, &program);
                        if let Err(difference) = lab.compare(&program) {
                            next.store(u64::MAX / 2, Ordering::Relaxed);
                            eprintln!("{SEED}={seed} differs {difference}");
                            report(seed, shrink(&mut lab, program.clone(), difference));
                        }
                    }
                    let totals = lab.totals();
                    lab.stop();
                    totals
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no difference, see above")).collect()
    });
    let sum = |of: fn(&run::Totals) -> usize| totals.iter().map(of).sum::<usize>() as u64;
    let (writes, sent, replies) = (sum(|t| t.writes), sum(|t| t.sent), sum(|t| t.replies));
    let by_age = sum(|t| t.by_age);
    println!(
        "{} mode: {runs} programs, the random ones from seed {first}, {writes} steps of {sent} messages, \
         {replies} replies, {by_age} by age",
        mode.key()
    );
    assert!(writes >= runs * 2 && replies >= runs * 5, "the programs do next to nothing");
    assert!(
        by_age <= runs * number(LENGTH, 1),
        "every program that changes a row type would differ several times"
    );
}

/// So many steps, made [`LENGTH`] times as many.
fn steps(count: usize) -> usize {
    count * usize::try_from(number(LENGTH, 1)).expect("a usize")
}

/// Names the program if something else goes wrong with it.
struct Named<'p>(u64, &'p Program);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the program of {SEED}={}\n{}", self.0, self.1);
        }
    }
}

fn report(seed: u64, (program, difference): (Program, Difference)) -> ! {
    let length = number(LENGTH, 1);
    panic!("{SEED}={seed} {PROGRAMS}=1 {LENGTH}={length} repeats it; shrunk:\n{program}\n{difference}");
}

/// Leaves out steps, start-up parameters, then messages, as long as there is still a difference, and time.
fn shrink(lab: &mut Lab<'_>, program: Program, difference: Difference) -> (Program, Difference) {
    lab.hurry();
    let mut best = Best { lab, program, difference, since: Instant::now() };
    loop {
        let before = best.program.size();
        // Half of it at once, a quarter, and so on to one by one.
        let mut length = best.program.steps.len().div_ceil(2);
        while length > 0 {
            for start in (0..best.program.steps.len()).step_by(length).rev() {
                best.without(|program| {
                    let end = program.steps.len().min(start + length);
                    program.steps.drain(start.min(end)..end);
                });
            }
            length /= 2;
        }
        for client in 0..best.program.logins.len() {
            for parameter in (0..best.program.logins[client].len()).rev() {
                best.without(|program| drop(program.logins[client].remove(parameter)));
            }
        }
        for step in (0..best.program.steps.len()).rev() {
            for op in (0..best.program.steps[step].ops.len()).rev() {
                best.without(|program| {
                    let ops = &mut program.steps[step].ops;
                    ops.remove(op);
                    *ops = ops::spare_the_server(std::mem::take(ops));
                });
            }
        }
        if best.program.size() == before {
            return (best.program, best.difference);
        }
    }
}

/// The shortest program so far that differs.
struct Best<'l, 'db> {
    lab: &'l mut Lab<'db>,
    program: Program,
    difference: Difference,
    since: Instant,
}

impl Best<'_, '_> {
    /// Keeps it without that piece, if it still differs.
    fn without(&mut self, piece: impl FnOnce(&mut Program)) {
        let mut shorter = self.program.clone();
        piece(&mut shorter);
        if shorter.size() == self.program.size() || self.since.elapsed() > SHRINKING {
            return;
        }
        if let Err(found) = self.lab.compare(&shorter) {
            (self.program, self.difference) = (shorter, found);
        }
    }
}
