//! Which leases are asked to park, and what it means to go on.

use super::*;
use crate::config::{ParkMode, Timed};

fn parking(mode: ParkMode) -> Setup {
    let mut setup = setup();
    setup.budget.parking.mode = mode;
    setup
}

fn asked(desk: &mut Desk) -> Vec<LeaseId> {
    let actions = desk.take().into_iter();
    actions
        .filter_map(|action| if let Action::Park { lease, .. } = action { Some(lease) } else { None })
        .collect()
}

fn silent(since: Instant) -> Option<Activity> {
    idle_in_tx(since).map(|activity| Activity { parkable: true, ..activity })
}

#[test]
fn who_idles_is_asked_when_somebody_waits_and_no_more_than_wait() {
    let mut desk = Desk::new(parking(ParkMode::Enforce), 3);
    let leases = [desk.lease("a"), desk.lease("a"), desk.lease("b")];
    let start = desk.now;
    desk.pass(Duration::from_millis(50));
    desk.tick(silent(start));
    assert_eq!(asked(&mut desk), [], "nobody waits");
    desk.queued("c");
    desk.queued("c");
    assert!(desk.book.due().unwrap() <= desk.now + Duration::from_millis(10), "soon");
    desk.tick(idle_in_tx(start));
    assert_eq!(asked(&mut desk), [], "none has only read");
    desk.tick(silent(desk.now));
    assert_eq!(asked(&mut desk), [], "not silent for long enough");
    desk.tick(silent(start));
    assert_eq!(asked(&mut desk), leases[..2], "as many as wait, those that hold longest");
    let due = desk.tick(silent(desk.now)).unwrap();
    assert!(due <= desk.now + Duration::from_millis(10), "while somebody waits it looks again soon");
}

#[test]
fn nobody_is_asked_unless_it_is_enforced() {
    for mode in [ParkMode::Off, ParkMode::Observe] {
        let mut desk = Desk::new(parking(mode), 1);
        desk.lease("a");
        desk.queued("b");
        let start = desk.now;
        desk.pass(Duration::from_secs(1));
        desk.tick(silent(start));
        assert_eq!(asked(&mut desk), [], "{mode:?}");
    }
    let mut setup = parking(ParkMode::Enforce);
    setup.budget.parking.only_under_pressure = false;
    let mut desk = Desk::new(setup, 1);
    let lease = desk.lease("a");
    let start = desk.now;
    desk.pass(Duration::from_millis(5));
    desk.tick(silent(start));
    assert_eq!(asked(&mut desk), [lease]);
}

/// A claim of a transaction that was parked when it had begun at `began`.
fn resume(desk: &mut Desk, tag: Tag, began: Instant) -> Checkout {
    let claim = Claim { resumes: Some(began), ..desk.claim(tag) };
    desk.book.checkout(desk.now, &claim, |id| id, &mut desk.warnings, &mut desk.actions)
}

#[test]
fn who_goes_on_waits_before_those_who_begin_and_is_no_new_session_of_its_request() {
    let mut setup = parking(ParkMode::Enforce);
    setup.budget.leases_reject = Some(1);
    setup.budget.leases_mode = Mode::Enforce;
    let mut desk = Desk::new(setup, 1);
    let began = desk.now;
    let first = desk.lease_for(of("a", Some("r")));
    desk.checkin(first, Some(0));
    let held = desk.lease("b");
    desk.queued("c");
    let Checkout::Queued(on) = resume(&mut desk, of("a", None), began) else { panic!("not queued") };
    desk.take();
    desk.checkin(held, Some(0));
    let granted = desk.take().into_iter().find_map(|action| match action {
        Action::Grant { waiter, .. } => Some(waiter),
        _ => None,
    });
    assert_eq!(granted, Some(on));
    let Checkout::Queued(_) = resume(&mut desk, of("a", Some("r")), began) else { panic!("refused") };
    assert_eq!(desk.book.request("r", desk.now).unwrap().leases_total, 1);
    assert!(matches!(desk.refused(of("a", Some("r"))), Refusal::TooManyLeases { .. }));
}

#[test]
fn who_goes_on_is_as_old_as_it_is() {
    let mut setup = parking(ParkMode::Enforce);
    let limit = Duration::from_secs(60);
    setup.budget.age = Timed { warn: None, abort: Some(limit), mode: Mode::Enforce, force: true };
    let mut desk = Desk::new(setup, 1);
    let began = desk.now;
    desk.pass(limit - Duration::from_millis(1));
    let Checkout::Idle(lease) = resume(&mut desk, of("a", None), began) else { panic!("not leased") };
    desk.checkin(lease, Some(0));
    desk.pass(Duration::from_millis(1));
    let answer = resume(&mut desk, of("a", None), began);
    let Checkout::Refused(refusal) = answer else { panic!("{answer:?}") };
    assert_eq!((refusal.sqlstate(), desk.count("B10", "abort")), ("25P04", 1));
}
