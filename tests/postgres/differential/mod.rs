//! Random programs of two clients, on PostgreSQL directly and through the proxy before one backend:
//! every byte that comes back is the same.
//!
//! A failure prints the shortest program found that still differs, and the seed that repeats it.

mod generate;
mod run;

use crate::support::Db;
use run::{Difference, Lab};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of programs, and the seed of the first.
const PROGRAMS: &str = "BURSAR_TEST_PROGRAMS";
const SEED: &str = "BURSAR_TEST_SEED";

/// Programs that differed once.
const KEPT: &[u64] = &[10058, 10202, 10234, 10401, 10568, 10958, 11136, 11788, 11816, 11956, 21877];

/// One message.
#[derive(Clone)]
struct Op {
    /// For people.
    text: String,
    bytes: Vec<u8>,
    /// It may leave something on the backend, so that the backend stays with its session.
    pins: bool,
}

/// What one client sends in one write, before both sides come to rest.
#[derive(Clone)]
struct Step {
    client: usize,
    ops: Vec<Op>,
    /// If the other client holds the backend: it leaves. Otherwise this step is left out.
    evict: bool,
}

type Program = Vec<Step>;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ops: Vec<&str> = self.ops.iter().map(|op| op.text.as_str()).collect();
        write!(f, "{}{} {}", ["A", "B"][self.client], if self.evict { "!" } else { ":" }, ops.join(" "))
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[test]
fn random_programs_see_no_difference() {
    let (programs, first) = (number(PROGRAMS, 300), number(SEED, 1));
    let kept = if std::env::var_os(SEED).is_some() { &[] } else { KEPT };
    let next = AtomicU64::new(0);
    let seeds = programs + kept.len() as u64;
    let seed = |n: u64| kept.get(n as usize).copied().unwrap_or_else(|| first + n - kept.len() as u64);
    let totals: Vec<run::Totals> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let db = Db::new();
                    db.run(generate::SETUP);
                    let mut lab = Lab::new(&db);
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= seeds {
                            break;
                        }
                        let seed = seed(n);
                        let program = generate::program(seed);
                        let _named = Named(seed, &program);
                        if let Err(difference) = lab.compare(&program) {
                            next.store(u64::MAX / 2, Ordering::Relaxed);
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
    let steps: usize = totals.iter().map(|t| t.steps).sum();
    let messages: usize = totals.iter().map(|t| t.messages).sum();
    println!("{programs} programs from seed {first}: {steps} steps, {messages} replies");
    assert!(
        steps as u64 >= programs * 2 && messages as u64 >= programs * 5,
        "the programs do next to nothing"
    );
}

/// Names the program if something else goes wrong with it.
struct Named<'p>(u64, &'p Program);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the program of {SEED}={}\n{}", self.0, lines(self.1));
        }
    }
}

fn report(seed: u64, (program, difference): (Program, Difference)) -> ! {
    panic!("{SEED}={seed} {PROGRAMS}=1 repeats it; shrunk:\n{}\n{difference}", lines(&program));
}

fn lines(program: &Program) -> String {
    program.iter().map(|step| format!("  {step}")).collect::<Vec<_>>().join("\n")
}

/// Leaves out steps, then messages, as long as there is still a difference.
fn shrink(lab: &mut Lab<'_>, mut program: Program, mut difference: Difference) -> (Program, Difference) {
    loop {
        let before = size(&program);
        for step in (0..program.len()).rev() {
            let mut shorter = program.clone();
            shorter.remove(step);
            keep_if_different(lab, shorter, &mut program, &mut difference);
        }
        for step in (0..program.len()).rev() {
            for op in (0..program[step].ops.len()).rev() {
                let mut shorter = program.clone();
                shorter[step].ops.remove(op);
                shorter[step].ops = generate::spare_the_server(std::mem::take(&mut shorter[step].ops));
                keep_if_different(lab, shorter, &mut program, &mut difference);
            }
        }
        if size(&program) == before {
            return (program, difference);
        }
    }
}

fn size(program: &Program) -> usize {
    program.len() + program.iter().map(|step| step.ops.len()).sum::<usize>()
}

fn keep_if_different(lab: &mut Lab<'_>, shorter: Program, best: &mut Program, difference: &mut Difference) {
    if let Err(found) = lab.compare(&shorter) {
        *best = shorter;
        *difference = found;
    }
}
