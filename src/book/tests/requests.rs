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
    assert_eq!((row.leases_total, row.end), (2, Some(End::Client)));
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

/// What is told of the ends of requests: (id, why, leases so far).
fn told(desk: &mut Desk) -> Vec<(Arc<str>, End, u32)> {
    let actions = desk.take().into_iter();
    let over = actions.filter_map(|action| match action {
        Action::RequestOver(over) => Some((over.row.id.clone(), over.end, over.row.leases_total)),
        _ => None,
    });
    over.collect()
}

fn ends(desk: &Desk) -> Vec<u64> {
    desk.book.view(desk.now).request_ends.iter().map(|(_, count)| *count).collect()
}

#[test]
fn a_request_that_falls_silent_is_told_once_and_while_it_holds_something_it_is_not_over() {
    let mut desk = Desk::new(setup(), 2);
    let lease = desk.lease_for(of("a", Some("silent")));
    desk.checkin(lease, Some(0));
    let start = desk.now;
    let held = desk.lease_for(of("a", Some("holds")));
    desk.pass(29 * S);
    desk.tick(idle_in_tx(start));
    assert_eq!(told(&mut desk), []);
    desk.pass(S);
    let due = desk.tick(idle_in_tx(start));
    assert_eq!(told(&mut desk), [("silent".into(), End::Idle, 1)]);
    assert!(due.is_some_and(|due| due <= desk.now + S), "{due:?}");
    desk.pass(S);
    desk.tick(idle_in_tx(start));
    assert_eq!(told(&mut desk), [], "once");
    desk.checkin(held, Some(1));
    assert_eq!(desk.tick(None).map(|due| due <= desk.now + S), Some(true), "somebody may fall silent yet");
    desk.pass(30 * S);
    assert_eq!(ends(&desk), [0, 1, 0]);
    assert_eq!(desk.book.request("holds", desk.now).and_then(|row| row.end), Some(End::Idle), "told or not");
    let lease = desk.lease_for(of("a", Some("holds")));
    assert_eq!(ends(&desk), [0, 2, 0], "noticed when it begins anew");
    desk.book.request_ended("holds", desk.now);
    desk.book.request_ended("holds", desk.now);
    desk.checkin(lease, Some(1));
    desk.pass(31 * S);
    desk.tick(None);
    assert_eq!((ends(&desk), told(&mut desk)), (vec![1, 2, 0], vec![]));
}

#[test]
fn a_request_that_is_too_old_is_over_by_its_mode() {
    for mode in [Mode::Observe, Mode::Warn, Mode::Enforce] {
        let mut setup = setup();
        setup.request.mode = mode;
        let mut desk = Desk::new(setup, 2);
        let start = desk.now;
        let tag = Tag { request_since: Some(start), ..of("a", Some("r")) };
        let lease = desk.lease_for(tag.clone());
        desk.pass(3599 * S);
        desk.tick(idle_in_tx(start));
        assert_eq!((told(&mut desk), ends(&desk)), (vec![], vec![0, 0, 0]));
        let claim = desk.claim(tag.clone());
        assert_eq!(desk.book.objects(&claim, desk.now), None);
        desk.pass(S);
        desk.tick(idle_in_tx(start));
        desk.pass(S);
        desk.tick(idle_in_tx(start));
        let enforced = mode == Mode::Enforce;
        let expected = if mode == Mode::Observe { vec![] } else { vec![("r".into(), End::Age, 1)] };
        assert_eq!(told(&mut desk), expected, "{mode:?}");
        assert_eq!(ends(&desk), [0, 0, u64::from(enforced)]);
        // Who was told its id before is told that it is over; who brings it anew begins anew.
        assert_eq!(desk.book.objects(&claim, desk.now), enforced.then_some(Objection::Closed), "{mode:?}");
        let row = desk.book.request("r", desk.now).expect("there");
        assert_eq!((row.end, row.leases_total), (enforced.then_some(End::Age), 1));
        desk.checkin(lease, Some(0));
        desk.lease_for(Tag { request_since: Some(desk.now), ..tag });
        let row = desk.book.request("r", desk.now).expect("there");
        assert_eq!((row.end, row.leases_total), (None, if enforced { 1 } else { 2 }), "{mode:?}");
    }
}

#[test]
fn an_ended_request_is_over_for_who_was_told_its_id_before_and_for_nobody_else() {
    let mut desk = Desk::new(setup(), 3);
    let told = |at| Tag { request_since: at, ..of("a", Some("r")) };
    let before = desk.now;
    let held = desk.lease_for(told(Some(before)));
    desk.pass(MS);
    desk.book.request_closed("r", desk.now);
    let objects = |desk: &mut Desk, at| {
        let claim = desk.claim(told(at));
        desk.book.objects(&claim, desk.now)
    };
    assert_eq!(objects(&mut desk, Some(before)), Some(Objection::Closed));
    assert_eq!(objects(&mut desk, None), None, "a comment, or a start-up packet");
    let now = desk.now;
    assert_eq!(objects(&mut desk, Some(now)), None, "told at the same moment");
    // It begins anew, and who was left behind before stays behind.
    desk.checkin(held, Some(0));
    desk.lease_for(told(Some(now)));
    assert_eq!(objects(&mut desk, Some(before)), Some(Objection::Closed));
    assert_eq!(objects(&mut desk, Some(now)), None);
}

#[test]
fn a_quarantine_is_over_after_a_minute() {
    let mut desk = Desk::new(setup(), 2);
    let lease = desk.lease_for(of("a", Some("r")));
    desk.book.quarantine("r", desk.now);
    desk.book.quarantine("nobody's", desk.now);
    desk.checkin(lease, Some(0));
    desk.book.request_ended("r", desk.now);
    desk.pass(59 * S);
    let claim = desk.claim(of("a", Some("r")));
    assert_eq!(desk.book.objects(&claim, desk.now), Some(Objection::Quarantined { left: S }));
    desk.pass(S);
    assert_eq!(desk.book.objects(&claim, desk.now), None);
}
