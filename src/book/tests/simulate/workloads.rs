//! Workloads A and A2 of budgets.md §3.3: how long quiet tenants wait beside greedy ones.

use super::*;

const P: usize = 20;
/// Long enough for every kind of lease to be known: the first long ones are over.
const WARM: Duration = Duration::from_secs(12);
const RUN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
enum What {
    Ask(Client),
    Done(Client, LeaseId),
    Tick,
}

#[derive(Debug, Clone, Copy)]
struct Client {
    tenant: u32,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Leases of 50 ms, one after another.
    Noisy,
    /// Leases of 2 to 10 s, one after another.
    Long,
    /// Leases of 5 ms, four a second, whatever becomes of them.
    Quiet,
}

/// What came of a run.
struct Outcome {
    /// Waits of the quiet, sorted.
    quiet: Vec<Duration>,
    /// Backends in use, of all.
    used: f64,
}

impl Outcome {
    fn percentile(&self, part: f64) -> Duration {
        self.quiet[((self.quiet.len() - 1) as f64 * part) as usize]
    }
}

fn run(setup: &Setup, clients: &[Client]) -> Outcome {
    let mut world: World<What> = World::new(setup, 7);
    for &client in clients {
        let after = MS.mul_f64(world.dice.uniform() * 250.0);
        world.at(after, What::Ask(client));
    }
    world.at(100 * MS, What::Tick);
    let (mut quiet, mut busy) = (Vec::new(), Duration::ZERO);
    let (begin, end) = (world.start + WARM, world.start + WARM + RUN);
    while let Some(what) = world.next().filter(|_| world.now < end) {
        match what {
            What::Tick => {
                world.tick();
                world.at(100 * MS, What::Tick);
            }
            What::Ask(client) => {
                if client.kind == Kind::Quiet {
                    let pause = world.dice.about(250 * MS);
                    world.at(pause, What::Ask(client));
                }
                let tag = Tag { tenant: format!("t{}", client.tenant).into(), ..Tag::default() };
                // All ask the same, so that it is the tenant that says how long it takes.
                world.ask(tag, 1, What::Ask(client));
            }
            What::Done(client, lease) => {
                world.give_back(lease);
                if client.kind != Kind::Quiet {
                    world.at(Duration::ZERO, What::Ask(client));
                }
            }
        }
        for (lease, asked, what) in std::mem::take(&mut world.granted) {
            let What::Ask(client) = what else { unreachable!("only who asks is granted") };
            let hold = match client.kind {
                Kind::Noisy => world.dice.about(50 * MS),
                Kind::Long => MS.mul_f64(2_000.0 + 8_000.0 * world.dice.uniform()),
                Kind::Quiet => world.dice.about(5 * MS),
            };
            if world.now >= begin {
                busy += hold.min(end - world.now);
                if client.kind == Kind::Quiet {
                    quiet.push(world.now - asked);
                }
            }
            world.at(hold, What::Done(client, lease));
        }
    }
    assert_eq!(world.refused, 0);
    assert!(quiet.len() > 5_000, "only {} quiet leases", quiet.len());
    quiet.sort_unstable();
    Outcome { quiet, used: busy.as_secs_f64() / (RUN.as_secs_f64() * P as f64) }
}

fn pool(express: Express) -> Setup {
    let mut setup = setup();
    setup.rules.size = P;
    setup.rules.min_idle = P;
    setup.rules.express = express;
    setup.rules.max_wait = Duration::from_secs(600);
    setup.parallel = P;
    setup
}

fn quiet() -> impl Iterator<Item = Client> {
    (100..150).map(|tenant| Client { tenant, kind: Kind::Quiet })
}

/// A: one tenant with 200 clients, one with ten long ones, fifty quiet ones.
fn a() -> Vec<Client> {
    let noisy = std::iter::repeat_n(Client { tenant: 0, kind: Kind::Noisy }, 200);
    let long = std::iter::repeat_n(Client { tenant: 1, kind: Kind::Long }, 10);
    noisy.chain(long).chain(quiet()).collect()
}

/// A2: twenty tenants with three long clients each, fifty quiet ones.
fn a2() -> Vec<Client> {
    let long = (0..60).map(|at| Client { tenant: at / 3, kind: Kind::Long });
    long.chain(quiet()).collect()
}

#[test]
fn quiet_tenants_do_not_wait_behind_greedy_ones() {
    let outcome = run(&pool(Express::Auto), &a());
    let (p99, most) = (outcome.percentile(0.99), outcome.percentile(1.0));
    assert!(p99 <= 50 * MS, "p99 {p99:?}");
    assert!(most <= 250 * MS, "max {most:?}");
    assert!(outcome.used >= 0.95, "used {}", outcome.used);
}

/// Finding F5: with the virtual time it kept at its cap the greedy tenant would own the pool whenever
/// the cap does not bind, and the quiet would wait for half a second.
#[test]
fn a_cap_makes_nobody_wait_longer() {
    let mut setup = pool(Express::Off);
    setup.tenant.mode = Mode::Enforce;
    setup.tenant.max = Share::Percent(60.0);
    let capped = run(&setup, &a());
    setup.tenant.max = Share::Percent(45.0);
    let tight = run(&setup, &a());
    let (loose, tight) = (capped.percentile(0.99), tight.percentile(0.99));
    assert!(loose <= 50 * MS, "60 %: {loose:?}");
    assert!(tight <= 15 * MS, "45 %: {tight:?}");
}

#[test]
fn express_slots_keep_short_work_from_waiting_behind_long_work() {
    let without = run(&pool(Express::Off), &a2());
    let with = run(&pool(Express::Auto), &a2());
    let (slow, fast) = (without.percentile(0.99), with.percentile(0.99));
    assert!(slow >= 500 * MS, "without express slots p99 is {slow:?}, and this test tests nothing");
    assert!(fast <= 50 * MS, "p99 {fast:?}");
    assert!(without.used - with.used <= 0.10, "lost {}", without.used - with.used);
}
