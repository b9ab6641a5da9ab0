//! The rules of the breaker one by one, and all at once against a twin that keeps the whole history.

use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn breaker() -> (Breaker, Instant) {
    (Breaker::new(BreakerRules::default()), Instant::now())
}

/// Dials at `now`, which must be allowed, and ends it there.
fn try_once(breaker: &mut Breaker, now: Instant, result: Result<(), Failure>) -> Option<Turn> {
    assert_eq!(breaker.room(now), Room::Now);
    breaker.dial();
    breaker.dialled(now, result, 0.5)
}

fn until(breaker: &Breaker, now: Instant) -> Duration {
    match breaker.room(now) {
        Room::At(at) => at - now,
        other => panic!("{other:?}"),
    }
}

/// Fails dials, each as soon as one is allowed, until it opens.
fn open(breaker: &mut Breaker, mut now: Instant) -> Instant {
    loop {
        if let Room::At(at) = breaker.room(now) {
            now = at;
        }
        if let Some(Turn { to: State::Open { .. }, .. }) = try_once(breaker, now, Err(Failure::Unreachable)) {
            return now;
        }
    }
}

#[test]
fn five_failures_in_a_row_open_it_and_each_opening_is_twice_as_long() {
    let (mut breaker, start) = breaker();
    for pause in [95, 190, 380, 760] {
        assert!(breaker.room(start) != Room::Later);
        let now = start + 10 * S;
        assert_eq!(try_once(&mut breaker, now, Err(Failure::Unreachable)), None);
        assert_eq!(until(&breaker, now), pause * MS);
        breaker.next = Some(start);
    }
    let mut now = start + 10 * S;
    let turn = try_once(&mut breaker, now, Err(Failure::Unreachable)).unwrap();
    assert_eq!((turn.from, turn.reason), (State::Closed, Reason::Connect));
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        assert_eq!(until(&breaker, now), seconds * S);
        now += seconds * S;
        assert_eq!(breaker.room(now), Room::Now);
        assert_eq!(breaker.dial().unwrap().to, State::HalfOpen);
        assert_eq!(breaker.room(now), Room::Later, "one dial decides");
        breaker.dialled(now, Err(Failure::Unreachable), 0.5);
    }
    for (fraction, most) in [(0.0, 24_000), (1.0, 36_000)] {
        now += 40 * S;
        breaker.dial();
        breaker.dialled(now, Err(Failure::Unreachable), fraction);
        assert_eq!(until(&breaker, now).as_millis(), most, "30 s, give or take a fifth");
    }
}

#[test]
fn a_success_in_between_starts_the_count_again_and_half_of_twenty_opens_all_the_same() {
    let (mut breaker, mut now) = breaker();
    for at in 0..19 {
        let result = if at % 2 == 0 { Err(Failure::Unreachable) } else { Ok(()) };
        assert_eq!(try_once(&mut breaker, now, result), None, "dial {at}");
        now += S;
    }
    assert_eq!(try_once(&mut breaker, now, Err(Failure::Unreachable)).unwrap().reason, Reason::Connect);

    let (mut breaker, mut now) = super::tests::breaker();
    for at in 0..200 {
        let result = if at % 2 == 0 { Err(Failure::Unreachable) } else { Ok(()) };
        assert_eq!(try_once(&mut breaker, now, result), None, "fewer than 20 in 30 s");
        now += 2 * S;
    }
}

#[test]
fn a_server_that_starts_is_asked_twice_a_second_and_its_answer_is_no_failure() {
    let (mut breaker, mut now) = breaker();
    for _ in 0..20 {
        let turn = try_once(&mut breaker, now, Err(Failure::Starting)).unwrap();
        assert_eq!(turn.reason, Reason::Starting);
        assert_eq!(until(&breaker, now), 500 * MS);
        now += 500 * MS;
    }
    let turn = try_once(&mut breaker, now, Ok(())).unwrap();
    assert_eq!((turn.to, turn.reason), (State::Closed, Reason::Recovered));
}

#[test]
fn a_server_that_is_back_is_dialled_by_two_and_four_and_reopens_at_the_first_failure() {
    let (mut breaker, start) = breaker();
    let mut now = open(&mut breaker, start) + S;
    try_once(&mut breaker, now, Ok(())).unwrap();
    for most in [2, 4, 8] {
        for _ in 0..most {
            assert_eq!(breaker.room(now), Room::Now);
            breaker.dial();
        }
        assert_eq!(breaker.room(now), Room::Later, "{most} at once");
        assert_eq!(breaker.dialled(now, Ok(()), 0.5), None);
        breaker.dials = 0;
    }
    breaker.dial();
    breaker.dialled(now, Err(Failure::Unreachable), 0.5).unwrap();
    assert_eq!(until(&breaker, now), 2 * S, "the second opening in a row");

    now += 2 * S;
    try_once(&mut breaker, now, Ok(())).unwrap();
    now += 31 * S;
    assert_eq!(try_once(&mut breaker, now, Err(Failure::Unreachable)), None, "the ramp is over");
    open(&mut breaker, now);
    assert!(matches!(breaker.state(), State::Open { .. }));
    assert_eq!(breaker.trips, 1);
}

#[test]
fn three_backends_that_break_within_a_second_call_for_one_dial() {
    let (mut breaker, now) = breaker();
    for at in [0, 600, 1_200, 1_800] {
        assert_eq!(breaker.broke(now + at * MS), None, "two in a second");
    }
    let turn = breaker.broke(now + 1_900 * MS).unwrap();
    assert_eq!((turn.to, turn.reason), (State::HalfOpen, Reason::Broken));
    breaker.dial();
    assert_eq!(breaker.room(now + 2 * S), Room::Later);
    assert!(breaker.dialled(now + 2 * S, Err(Failure::Unreachable), 0.5).is_some());
    let open = breaker.state();
    for _ in 0..9 {
        assert_eq!(breaker.broke(now + 2 * S), None);
    }
    assert_eq!(breaker.state(), open);
}

#[test]
fn whom_the_server_answers_does_not_open_it() {
    for answer in [Failure::Refused, Failure::Full] {
        let (mut breaker, now) = breaker();
        for _ in 0..100 {
            assert_eq!(try_once(&mut breaker, now, Err(answer)), None);
        }
        assert!(breaker.is_calm());
        let now = open(&mut breaker, now) + S;
        assert_eq!(try_once(&mut breaker, now, Err(answer)).unwrap().reason, Reason::Recovered);
    }
}

#[test]
fn the_second_refusal_closes_a_door_and_a_full_server_is_asked_less_and_less() {
    let (rules, now) = (BreakerRules::default(), Instant::now());
    let mut door = Door::default();
    assert_eq!(door.room(now, 7), Room::Now);
    for (refusal, pause) in [(1, 100 * MS), (2, 30 * S), (3, 30 * S)] {
        door.dialled(now, Err(Failure::Refused), &rules, 0.0);
        assert_eq!(door.room(now, 0), Room::At(now + pause), "refusal {refusal}");
        assert_eq!((door.room(now + pause, 1), door.room(now + pause, 0)), (Room::Later, Room::Now));
    }
    door.dialled(now, Err(Failure::Unreachable), &rules, 0.0);
    assert_eq!(door.room(now, 0), Room::At(now + 30 * S), "says nothing of the role");
    door.dialled(now, Ok(()), &rules, 0.0);
    assert_eq!(door, Door::default());
    for pause in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
        door.dialled(now, Err(Failure::Full), &rules, 0.0);
        assert_eq!(door.room(now, 0), Room::At(now + pause * MS));
    }
}

#[derive(Debug, Clone)]
enum Op {
    Pass(u64),
    Dial,
    End(Result<(), Failure>, f64),
    Broke,
}

fn op() -> impl Strategy<Value = Op> {
    let result = prop_oneof![
        4 => Just(Err(Failure::Unreachable)),
        3 => Just(Ok(())),
        1 => Just(Err(Failure::Starting)),
        1 => Just(Err(Failure::Refused)),
        1 => Just(Err(Failure::Full)),
    ];
    prop_oneof![
        3 => (0..1_500_u64).prop_map(Op::Pass),
        1 => (0..60_000_u64).prop_map(Op::Pass),
        5 => Just(Op::Dial),
        5 => (result, 0.0..=1.0).prop_map(|(result, fraction)| Op::End(result, fraction)),
        1 => Just(Op::Broke),
    ]
}

/// What happened, in order, from which everything else can be told.
#[derive(Default)]
struct Twin {
    under_way: u32,
    /// Ended dials since it was last closed: whether the server was reached.
    run: u32,
    ended: Vec<(Instant, bool)>,
    broken: Vec<Instant>,
    recovered: Option<Instant>,
}

impl Twin {
    fn check(&self, breaker: &Breaker, turn: Turn, now: Instant) {
        let rules = &breaker.rules;
        assert_ne!(turn.from, turn.to);
        assert_eq!(breaker.state(), turn.to);
        match (turn.reason, turn.to) {
            (Reason::Connect, State::Open { until }) => {
                let open = until - now;
                assert!(open >= rules.open.mul_f64(0.8) && open <= rules.open_max.mul_f64(1.2), "{open:?}");
                let ramp = self.recovered.is_some_and(|at| now - at < rules.window);
                let recent = self.ended.iter().filter(|(at, _)| now - *at <= rules.window);
                let (all, failed) = recent
                    .fold((0, 0), |(all, failed), (_, reached)| (all + 1, failed + usize::from(!reached)));
                let bad = all >= 20 && failed * 2 + 1 >= all.min(20);
                assert!(turn.from == State::HalfOpen || ramp || self.run >= rules.failures || bad);
            }
            (Reason::Starting, State::Open { until }) => assert_eq!(until - now, rules.starting),
            (Reason::Broken, State::HalfOpen) => {
                let recent = self.broken.iter().filter(|at| now - **at < Duration::from_secs(1));
                assert!(recent.count() >= 3 && turn.from == State::Closed);
            }
            (Reason::Probe, State::HalfOpen) => {
                assert!(matches!(turn.from, State::Open { until } if until <= now));
                assert_eq!(self.under_way, 1, "the only one");
            }
            (Reason::Recovered, State::Closed) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn run(ops: Vec<Op>) {
    let (mut breaker, mut now) = breaker();
    let mut twin = Twin::default();
    for op in ops {
        match op {
            Op::Pass(millis) => now += Duration::from_millis(millis),
            Op::Dial if breaker.room(now) == Room::Now => {
                let alone = !breaker.is_calm();
                twin.under_way += 1;
                assert!(!alone || twin.under_way == 1, "one at a time while there is doubt");
                if let Some(turn) = breaker.dial() {
                    twin.check(&breaker, turn, now);
                }
            }
            Op::Dial => {
                let open = matches!(breaker.state(), State::Open { until } if until > now);
                let at = matches!(breaker.room(now), Room::At(at) if at > now);
                assert!(at || (!open && twin.under_way > 0), "no dial, and nothing to wait for");
            }
            Op::End(result, fraction) if twin.under_way > 0 => {
                twin.under_way -= 1;
                let reached = result != Err(Failure::Unreachable);
                twin.run = if reached { 0 } else { twin.run + 1 };
                if result != Err(Failure::Starting) {
                    twin.ended.push((now, reached));
                }
                let turn = breaker.dialled(now, result, fraction);
                if let Some(turn) = turn {
                    twin.check(&breaker, turn, now);
                    if turn.to == State::Closed {
                        twin.recovered = Some(now);
                    }
                }
                let closed = breaker.state() == State::Closed;
                assert!(closed || !matches!(result, Ok(()) | Err(Failure::Refused | Failure::Full)));
                assert!(!closed || twin.run < breaker.rules.failures);
            }
            Op::End(..) => {}
            Op::Broke => {
                twin.broken.push(now);
                if let Some(turn) = breaker.broke(now) {
                    twin.check(&breaker, turn, now);
                }
            }
        }
        assert_eq!(breaker.dials, twin.under_way);
    }
    // However it went, a server that is back is found within the longest opening.
    for _ in 0..twin.under_way {
        breaker.dialled(now, Err(Failure::Unreachable), 1.0);
    }
    if let Room::At(at) = breaker.room(now) {
        assert!(at - now <= Duration::from_secs(36));
        now = at;
    }
    assert_eq!(breaker.room(now), Room::Now);
    breaker.dial();
    breaker.dialled(now, Ok(()), 0.0);
    assert!(breaker.is_calm() && breaker.room(now) == Room::Now);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_breaker_keeps_to_its_table(ops in prop::collection::vec(op(), 1..200)) {
        run(ops);
    }
}
