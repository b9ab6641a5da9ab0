//! What the tenant fence costs: the same tagged statements without one, with a strict one and with a trusted
//! one; of the same tenant each time, and of two tenants in turn.
//!
//! One client at a time, which asks again at once, so that little but the way of one statement is measured: its latency,
//! what Bursar and the server's backends spend on it, and Bursar's system calls. What happens behind a strict fence's
//! lease runs beside the next statement, and is in the figures. For the latency the variants take turns after a few
//! milliseconds, and are compared turn by turn, so that whatever else the machine does hits all of them; for what it
//! costs in longer stretches, as the clock for that ticks slowly.

use super::link::Link;
use super::prepare;
use crate::Bench;
use crate::common::Failure;
use crate::common::lab::{Proxy, Setup};
use crate::common::process::{Cpu, count_syscalls};
use crate::report::{Measured, Table, Target};
use std::io;
use std::time::{Duration, Instant};

/// Backends: while one is taken back from its tenant, the next statement has another one.
const POOL: usize = 4;
/// Of each variant.
const STRETCHES: u32 = 10;
/// Statements before it is the next variant's turn, and transactions that say BEGIN and COMMIT.
const TURN: u32 = 50;
const BLOCKS: u32 = 10;
/// Statements that are counted for system calls.
const COUNTED: u32 = 1000;
/// What the plan allows a fence to add to a transaction, in microseconds.
const PROMISE: f64 = 6.0;
/// What the difference of two equal variants may come to, in microseconds.
const NOTHING: f64 = 1.0;

/// One way to be configured, and the tenants that take turns.
struct Variant {
    name: &'static str,
    policy: &'static str,
    tenants: [&'static str; 2],
}

const VARIANTS: [Variant; 5] = [
    Variant { name: "no fence", policy: "off", tenants: ["t1", "t2"] },
    Variant { name: "strict, one tenant", policy: "strict", tenants: ["t1", "t1"] },
    Variant { name: "strict, two tenants in turn", policy: "strict", tenants: ["t1", "t2"] },
    Variant { name: "trusted, one tenant", policy: "trusted", tenants: ["t1", "t1"] },
    Variant { name: "trusted, two tenants in turn", policy: "trusted", tenants: ["t1", "t2"] },
];

/// A variant while it is measured; times in microseconds.
struct Side {
    proxy: Proxy,
    clients: [Link; 2],
    /// How long a statement took in each turn, and a transaction of three.
    statements: Vec<f64>,
    blocks: Vec<f64>,
    /// What so many more cost the proxy, and the server's backends.
    counted: u32,
    proxys: f64,
    servers: f64,
    /// System calls of the proxy for one.
    calls: f64,
}

impl Side {
    fn open(bench: &Bench, variant: &Variant) -> Result<Side, Failure> {
        let setup = Setup::of(POOL)
            .with("tenant_context", "key = \"app.tenant_id\"")
            .with("tenant_context", &format!("policy = \"{}\"", variant.policy));
        let proxy = bench.lab.start(&bench.bursar, &setup)?;
        let [one, two] = variant.tenants.map(|tenant| -> Result<Link, Failure> {
            let mut link = Link::login(proxy.port(), "app")?;
            link.ask(&format!("set bursar.tenant = '{tenant}'"))?.map_err(io::Error::from)?;
            Ok(link)
        });
        let (clients, statements, blocks) = ([one?, two?], Vec::new(), Vec::new());
        let mut side =
            Side { proxy, clients, statements, blocks, counted: 0, proxys: 0.0, servers: 0.0, calls: 0.0 };
        // Backends are opened, and plans made.
        side.ask(500, &mut Vec::new())?;
        Ok(side)
    }

    /// So many statements, the clients in turn; how long each took.
    fn ask(&mut self, count: u32, took: &mut Vec<f64>) -> io::Result<()> {
        for number in 0..count {
            let began = Instant::now();
            self.clients[number as usize % 2].ask("select 1")?.map_err(io::Error::from)?;
            took.push(began.elapsed().as_secs_f64() * 1e6);
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let (mut statements, mut blocks) = (Vec::new(), Vec::new());
        self.ask(TURN, &mut statements)?;
        for number in 0..BLOCKS {
            let (client, began) = (&mut self.clients[number as usize % 2], Instant::now());
            for sql in ["begin", "select 1", "commit"] {
                client.ask(sql)?.map_err(io::Error::from)?;
            }
            blocks.push(began.elapsed().as_secs_f64() * 1e6);
        }
        self.statements.push(median(&mut statements));
        self.blocks.push(median(&mut blocks));
        Ok(())
    }

    fn stretch(&mut self, superuser: &mut Link, length: Duration) -> Result<(), Failure> {
        let before = (Cpu::of(self.proxy.pid())?, of_backends(superuser)?);
        let began = Instant::now();
        while began.elapsed() < length {
            self.ask(TURN, &mut Vec::new())?;
            self.counted += TURN;
        }
        let cpu = Cpu::of(self.proxy.pid())?.since(before.0);
        self.proxys += (cpu.user + cpu.system).as_secs_f64() * 1e6;
        self.servers += of_backends(superuser)? - before.1;
        Ok(())
    }

    fn count(&mut self) -> Result<(), Failure> {
        let pid = self.proxy.pid();
        let calls = count_syscalls(pid, || Ok(self.ask(COUNTED, &mut Vec::new())?))?;
        self.calls = calls as f64 / f64::from(COUNTED);
        Ok(())
    }
}

/// The experiment; `length` is a variant's, all its stretches together.
pub(crate) fn experiment(bench: &Bench, length: Duration) -> Result<Table, Failure> {
    let mut superuser = prepare(bench)?;
    let sides = VARIANTS.iter().map(|variant| Side::open(bench, variant));
    let mut sides = sides.collect::<Result<Vec<_>, _>>()?;
    let began = Instant::now();
    while began.elapsed() < length * VARIANTS.len() as u32 / 2 {
        // Now in one order and now in the other: none is always behind the same one.
        sides.iter_mut().try_for_each(Side::turn)?;
        sides.iter_mut().rev().try_for_each(Side::turn)?;
    }
    for _ in 0..STRETCHES {
        for side in &mut sides {
            side.stretch(&mut superuser, length / STRETCHES / 2)?;
        }
    }
    sides.iter_mut().try_for_each(Side::count)?;
    let mut table = Table::default();
    let bare = &sides[0];
    for (variant, side) in VARIANTS.iter().zip(&sides) {
        let count = f64::from(side.counted);
        table.group(variant.name.into());
        let mut line = |metric: &str, unit: &'static str, value: f64, target: Target| {
            table.line(metric, unit, Measured::Is(value), Measured::No, target);
        };
        line("a statement, median", "us", median(&mut side.statements.clone()), Target::None);
        let (added, calls) = match (variant.policy, variant.tenants) {
            ("strict", _) => (Target::AtMost(PROMISE), Target::None),
            ("trusted", [one, two]) if one == two => {
                (Target::AtMost(NOTHING), Target::AtMost(bare.calls + 0.05))
            }
            _ => (Target::None, Target::None),
        };
        line("more than without a fence", "us", more(&side.statements, &bare.statements), added);
        line("BEGIN, it, COMMIT, median", "us", median(&mut side.blocks.clone()), Target::None);
        line("more than without a fence for all three", "us", more(&side.blocks, &bare.blocks), added);
        line("CPU of Bursar", "us", side.proxys / count, Target::None);
        line("CPU of the server's backends", "us", side.servers / count, Target::None);
        line("system calls of Bursar", "", side.calls, calls);
    }
    Ok(table)
}

/// What all backends of the role have spent so far, in microseconds.
fn of_backends(superuser: &mut Link) -> Result<f64, Failure> {
    let sql = "select pid from pg_stat_activity where usename = 'app'";
    let mut spent = 0.0;
    for row in superuser.ask(sql)?.map_err(io::Error::from)? {
        let cpu = Cpu::of(row[0].parse()?)?;
        spent += (cpu.user + cpu.system).as_secs_f64() * 1e6;
    }
    Ok(spent)
}

/// The median of what each turn took more than the other's of the same round.
fn more(turns: &[f64], others: &[f64]) -> f64 {
    median(&mut turns.iter().zip(others).map(|(turn, other)| turn - other).collect::<Vec<_>>())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
