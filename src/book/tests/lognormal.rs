//! E7 in virtual time (budgets.md §9): a hundred thousand honest transactions whose pauses are lognormal,
//! some of them long, and leaks among them. None of the honest is ended, and every leak is, in time.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Medians of the call sites' pauses, in milliseconds; σ is 1.
const SITES: [f64; 5] = [5.0, 50.0, 300.0, 1_000.0, 3_000.0];
/// Leases that begin together.
const TOGETHER: usize = 50;
const ROUNDS: usize = 2_000;
/// After so many leases all call sites are known; leaks begin then.
const KNOWN: usize = 2_000;
/// The promise: threshold and a tick.
const PROMISE: Duration = Duration::from_millis(50);

/// What becomes of a lease.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// It comes back after this pause.
    Returns(Duration),
    /// Its request ends, and it does not.
    RequestEnds,
    /// The other session of its request closes, and it does not come back.
    SiblingCloses,
    /// It does not come back, and nothing else is known.
    Silent,
}

struct Held {
    lease: LeaseId,
    idle: Instant,
    fate: Fate,
}

fn lognormal(random: &mut StdRng, median: f64) -> Duration {
    let (u, v): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    let normal = (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos();
    Duration::from_secs_f64(median * normal.exp() / 1e3)
}

#[derive(Default, Debug, PartialEq)]
struct Score {
    honest: usize,
    leaks: usize,
    ended_honest: usize,
    ended_leaks: usize,
    late: usize,
}

#[test]
fn no_honest_lease_of_a_hundred_thousand_is_ended_and_every_leak_is() {
    let mut setup = setup();
    setup.leak = Leak { mode: Mode::Enforce, force: true, ..Leak::default() };
    let mut desk = Desk::new(setup, 2 * TOGETHER);
    let mut random = StdRng::seed_from_u64(7);
    let mut score = Score::default();
    for round in 0..ROUNDS {
        let mut held = Vec::new();
        for n in 0..TOGETHER {
            let number = round * TOGETHER + n;
            let leaks = number > KNOWN && random.random_range(0..1000) == 0;
            held.push(begin(&mut desk, &mut random, number, leaks));
            *(if leaks { &mut score.leaks } else { &mut score.honest }) += 1;
        }
        run(&mut desk, held, &mut score);
    }
    println!("{score:?}");
    assert_eq!(score.honest + score.leaks, 100_000);
    assert!(score.leaks > 50, "{score:?}");
    assert_eq!((score.ended_honest, score.ended_leaks, score.late), (0, score.leaks, 0), "{score:?}");
}

/// One lease: half of them tagged, half of these with a second session of their request.
fn begin(desk: &mut Desk, random: &mut StdRng, number: usize, leaks: bool) -> Held {
    let site = random.random_range(0..SITES.len());
    let (tagged, sibling) = (number.is_multiple_of(2), number.is_multiple_of(4));
    let fate = match number % 4 {
        _ if !leaks => Fate::Returns(lognormal(random, SITES[site])),
        0 => Fate::SiblingCloses,
        2 => Fate::RequestEnds,
        _ => Fate::Silent,
    };
    let request = format!("r{number}");
    let tag = Tag { route: Some(format!("/{site}").into()), ..of("a", tagged.then_some(&*request)) };
    let mut claim = desk.claim(tag.clone());
    claim.fingerprint = site as u64 + 1;
    desk.book.comes_from(claim.session, 1);
    let answer = desk.book.checkout(desk.now, &claim, |id| id, &mut desk.warnings, &mut desk.actions);
    let Checkout::Idle(lease) = answer else { panic!("{answer:?}") };
    if tagged && sibling {
        let inner = desk.claim(tag);
        desk.book.comes_from(inner.session, 1);
        let answer = desk.book.checkout(desk.now, &inner, |id| id, &mut desk.warnings, &mut desk.actions);
        let Checkout::Idle(second) = answer else { panic!("{answer:?}") };
        // Quick, and not of this call site.
        let _ = desk.book.checkin(desk.now, second, Some(0), Usage::default(), None, &mut desk.actions);
        if fate == Fate::SiblingCloses {
            desk.book.has_left(inner.session, desk.now);
        }
    }
    if fate == Fate::RequestEnds {
        desk.book.request_ended(&request, desk.now);
    }
    Held { lease, idle: desk.now, fate }
}

/// Ticks as the book asks for them, until all are back.
fn run(desk: &mut Desk, mut held: Vec<Held>, score: &mut Score) {
    while !held.is_empty() {
        let returns = held.iter().filter_map(|one| match one.fate {
            Fate::Returns(pause) => Some(one.idle + pause),
            _ => None,
        });
        let next = returns.chain(desk.book.due()).min().expect("something is held, so a tick is due");
        desk.now = next.max(desk.now);
        let now = desk.now;
        held.retain(|one| match one.fate {
            Fate::Returns(pause) if one.idle + pause <= now => {
                let usage = Usage { gap_us: pause.as_micros() as u32, ..Usage::default() };
                let _ = desk.book.checkin(now, one.lease, Some(0), usage, None, &mut desk.actions);
                false
            }
            _ => true,
        });
        if desk.book.due().is_some_and(|due| due <= now) {
            let since = |id| held.iter().find(|one| one.lease == id).map(|one| one.idle);
            desk.book.tick(now, &mut |_, id| idle_in_tx(since(id)?), &mut desk.actions);
        }
        for action in desk.take() {
            let Action::End { lease, why: Overstay::Leaked { limit, .. }, .. } = action else { continue };
            let at = held.iter().position(|one| one.lease == lease).expect("it is held");
            let one = held.swap_remove(at);
            let threshold = if one.fate == Fate::Silent { limit.max(60 * S) } else { limit };
            match one.fate {
                Fate::Returns(_) => score.ended_honest += 1,
                _ => score.ended_leaks += 1,
            }
            score.late += usize::from(now - one.idle > threshold + PROMISE);
            let _ = desk.book.checkin(
                now,
                lease,
                Some(0),
                Usage::default(),
                Some(Outcome::Reclaimed),
                &mut desk.actions,
            );
        }
    }
}
