//! E10: each kind of isolation violation, V1 to V7, again and again among honest operations. Every one must
//! be found, refused where it can be, and nothing else must be taken for one.

use super::link::{Complaint, Link};
use super::model::TENANTS;
use super::{Client, Manner, POOL, Shared, gather, look_after, prepare, series};
use crate::common::Failure;
use crate::common::lab::Setup;
use crate::report::{Measured, Table, Target};
use crate::{Bench, Load};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Honest clients at once.
const HONEST: u64 = 16;
/// Between two rounds of all seven.
const PAUSE: Duration = Duration::from_millis(50);
/// What the last lease has left is found behind its end.
const FOUND_WITHIN: Duration = Duration::from_secs(10);
/// The kinds, and what is done to see them.
const KINDS: [&str; 7] = [
    "V1: the context set by a client",
    "V2: no tenant",
    "V3: one request of two users",
    "V4: something left on a backend",
    "V5: a tenant of another role",
    "V6: another user in a transaction",
    "V7: another request in a transaction",
];

/// How many of a kind Bursar has counted.
pub(super) fn counted(admin: u16, kind: usize) -> Result<f64, Failure> {
    series(admin, &format!("bursar_isolation_violations_total{{kind=\"V{kind}\"}}"))
}

/// The experiment.
pub(crate) fn experiment(bench: &Bench, load: Load) -> Result<Table, Failure> {
    let mut superuser = prepare(bench)?;
    for sql in [
        "create or replace function leaves(what int) returns void language plpgsql as $$ begin \
         case what % 4 when 0 then perform pg_advisory_lock(what); when 1 then create temp table left_here (); \
         when 2 then listen news; else set role app; end case; end $$",
        "truncate written",
    ] {
        superuser.ask(sql)?.map_err(io::Error::from)?;
    }
    let admin = bursar::cli::throwaway::free_port()?;
    let setup = Setup::of(POOL)
        .with("admin", &format!("address = \"127.0.0.1:{admin}\""))
        .with("tenant_context", "key = \"app.tenant_id\"")
        .with("pool", "require_tenant_context = true")
        .with("isolation", "mode = \"enforce\"")
        .with("isolation", "verify = 1")
        // The last tenant is no tenant of the honest clients.
        .with(&format!("tenant.t{}", TENANTS - 1), "users = [\"somebody\"]");
    let proxy = bench.bursar(&setup)?;
    let manner = Manner { tags: true, nobody: false, hidden: false, faults: false, tenants: TENANTS - 1 };
    let (shared, over, port) = (Shared::default(), AtomicBool::new(false), proxy.port());
    let (seen, injected) = std::thread::scope(|scope| {
        let workers = (0..HONEST)
            .map(|number| {
                let random = StdRng::seed_from_u64(load.seed.wrapping_mul(1000).wrapping_add(number));
                let shared = &shared;
                scope.spawn(move || Client::new(port, manner, shared, random)?.work(load.operations))
            })
            .collect();
        let injecting = scope.spawn(|| inject(port, &over));
        let seen = gather(workers);
        over.store(true, Ordering::Relaxed);
        (seen, injecting.join())
    });
    let ((mut tally, written), injected) = (seen?, injected.map_err(|_| "the injector has panicked")??);
    let vanished = look_after(&mut superuser, &written, &mut tally)?;
    tally.examples.iter().for_each(|example| eprintln!("experiments: {example}"));
    let wrong = tally.foreign + tally.missing + tally.wrong + vanished;
    report(admin, load, (tally.compared, wrong), &injected)
}

fn report(
    admin: u16,
    load: Load,
    (compared, wrong): (u64, u64),
    injected: &Injected,
) -> Result<Table, Failure> {
    let mut table = Table::default();
    let mut line = |metric: &str, value: f64, target: Target| {
        table.line(metric, "", Measured::Is(value), Measured::No, target);
    };
    let rounds = injected.rounds as f64;
    line("honest operations", compared as f64, Target::AtLeast(load.operations as f64));
    line("of these answered wrongly, or refused", wrong as f64, Target::Exactly(0.0));
    line("violations of each kind", rounds, Target::None);
    let began = Instant::now();
    while counted(admin, 4)? < rounds && began.elapsed() < FOUND_WITHIN {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut false_alarms = 0.0;
    for (number, kind) in KINDS.iter().enumerate() {
        let found = counted(admin, number + 1)?;
        false_alarms += (found - rounds).max(0.0);
        line(&format!("{kind}: found"), found, Target::Exactly(rounds));
    }
    line("false alarms", false_alarms, Target::Exactly(0.0));
    let refused = injected.refused as f64;
    line("refused with 42501, all but V4", refused, Target::Exactly(6.0 * rounds));
    Ok(table)
}

/// What was done, and what came back.
#[derive(Default)]
struct Injected {
    rounds: u64,
    refused: u64,
}

fn inject(port: u16, over: &AtomicBool) -> Result<Injected, io::Error> {
    let mut injected = Injected::default();
    while !over.load(Ordering::Relaxed) {
        for kind in 1..=KINDS.len() {
            let (prelude, culprit) = violation(kind, injected.rounds);
            let mut first = Link::login(port, "app")?;
            let mut second = Link::login(port, "app")?;
            for sql in prelude {
                let link = if sql.1 { &mut second } else { &mut first };
                link.ask(&sql.0)?.map_err(io::Error::from)?;
            }
            let refused = |said: &Complaint| said.code == "42501" && !said.fatal;
            injected.refused += u64::from(first.ask(&culprit)?.is_err_and(|said| refused(&said)));
        }
        injected.rounds += 1;
        std::thread::sleep(PAUSE);
    }
    Ok(injected)
}

/// What goes before a violation, on the culprit's connection or (true) on another one, and the violation.
fn violation(kind: usize, round: u64) -> (Vec<(String, bool)>, String) {
    let own = |sql: &str| (sql.to_owned(), false);
    let tenant = own("set bursar.tenant = 't1'");
    let inside = |key: &str| {
        let set = |to: &str| format!("set bursar.{key} = '{to}-{round}'");
        (vec![tenant.clone(), own("begin"), own(&set("one")), own("select 1")], set("two"))
    };
    match kind {
        1 => {
            let ways = [
                "set app.tenant_id = 't2'",
                "select set_config('app.tenant_id', 't2', true)",
                "select 1 /* x */; SET LOCAL \"app\".\"TENANT_id\" TO t2",
                "set bursar.tenant = 't2'",
            ];
            let way = (round % 4) as usize;
            let mut before = vec![tenant];
            if way == 3 {
                before.extend([own("begin"), own("select 1")]);
            }
            (before, ways[way].to_owned())
        }
        2 => (Vec::new(), "select 1".to_owned()),
        3 => {
            let set = |user: &str| {
                format!(
                    "set bursar.tenant = 't1'; set bursar.user_id = '{user}'; set bursar.request_id = 'r{round}'"
                )
            };
            let other = [set("ann"), "select 1".to_owned()].map(|sql| (sql, true));
            ([other.to_vec(), vec![own(&set("bob"))]].concat(), "select 1".to_owned())
        }
        4 => (vec![tenant], format!("select leaves({round})")),
        5 => (vec![own(&format!("set bursar.tenant = 't{}'", TENANTS - 1))], "select 1".to_owned()),
        6 => inside("user_id"),
        _ => inside("request_id"),
    }
}
