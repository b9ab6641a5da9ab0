//! Rules of the book: the life of requests, and how many are remembered.

use super::*;

#[test]
fn a_request_that_is_over_can_be_asked_about_and_starts_anew() {
    let mut desk = Desk::new(setup(), 1);
    let once = |desk: &mut Desk| {
        let lease = desk.lease_for(of("a", Some("r")));
        desk.checkin(lease, Some(0));
    };
    once(&mut desk);
    once(&mut desk);
    desk.book.request_ended("r", desk.now);
    desk.pass(60 * S);
    let row = desk.book.request("r", desk.now).expect("kept for a while");
    assert_eq!((row.leases_total, row.ended), (2, true));
    once(&mut desk);
    assert_eq!(desk.book.request("r", desk.now).map(|row| row.leases_total), Some(1), "anew");
    desk.pass(31 * S);
    once(&mut desk);
    assert_eq!(desk.book.request("r", desk.now).map(|row| row.leases_total), Some(1), "idle too long");
    desk.pass(300 * S);
    assert!(desk.book.request("r", desk.now).is_none());
    assert!(desk.book.view(desk.now).requests.is_empty());
}

#[test]
fn a_request_goes_on_while_it_holds_a_lease_and_starts_over_after_an_hour() {
    let mut desk = Desk::new(setup(), 2);
    let held = desk.lease_for(of("a", Some("r")));
    desk.pass(40 * S);
    let lease = desk.lease_for(of("a", Some("r")));
    assert_eq!(desk.book.request("r", desk.now).map(|row| row.leases_total), Some(2));
    desk.checkin(lease, Some(0));
    desk.pass(3600 * S);
    let lease = desk.lease_for(of("a", Some("r")));
    let row = desk.book.request("r", desk.now).expect("there");
    assert_eq!((row.leases_total, row.leases_now, row.leases_peak), (1, 2, 2));
    desk.checkin(lease, Some(0));
    desk.checkin(held, Some(1));
    assert_eq!(desk.book.request("r", desk.now).map(|row| row.leases_now), Some(0));
}

#[test]
fn ten_thousand_names_are_remembered_and_no_more() {
    let mut desk = Desk::new(setup(), 1);
    for number in 0..10_050 {
        let name = format!("n{number}");
        let lease = desk.lease_for(of(&name, Some(&name)));
        desk.checkin(lease, Some(0));
    }
    let view = desk.book.view(desk.now);
    assert_eq!((view.requests.len(), view.tenants.len()), (10_000, 10_000));
    assert!(desk.book.request("n0", desk.now).is_none() && desk.book.request("n10049", desk.now).is_some());
    assert_eq!(view.pools[0].leases_total, 10_051, "totals forget nothing");
}

/// The client's own B1 acts in any mode, and a wider one than the configuration's changes nothing.
#[test]
fn a_client_may_tighten_how_much_it_nests() {
    let mut desk = Desk::new(setup(), 5);
    let tag = |own| Tag { max_concurrent: Some(own), ..of("a", Some("r")) };
    let start = desk.now;
    desk.lease_for(tag(1));
    desk.queued_for(tag(1));
    desk.pass(60 * MS);
    desk.tick(idle_in_tx(start));
    let refusals = desk.refusals();
    let [(_, Refusal::NestsTooDeep { standing })] = &refusals[..] else { panic!("{refusals:?}") };
    assert_eq!((standing.request_holds, standing.request_limit), (1, 1));

    let mut setup = setup();
    setup.budget.max_concurrent = 1;
    setup.budget.max_concurrent_mode = Mode::Enforce;
    let mut desk = Desk::new(setup, 5);
    desk.lease_for(tag(3));
    desk.queued_for(tag(3));
}
