//! The store against a fake server on loopback: nothing waits, nothing dials by accident, the dead
//! and the old are not handed out.

use super::super::fake;
use super::super::target::tests::rules;
use super::*;
use crate::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const WITHIN: Duration = Duration::from_secs(5);

fn store(server: &fake::Server, reuse: Reuse) -> Store {
    Store::new(Arc::new(server.target()), 8, reuse)
}

/// Opens so many backends and puts them into the store, pid 1 first.
async fn filled(server: &fake::Server, reuse: Reuse, count: usize) -> Store {
    let store = store(server, reuse);
    let mut open = Vec::new();
    for _ in 0..count {
        open.push(store.open(WITHIN).await.unwrap());
    }
    for object in open {
        assert!(store.give_back(object, clock::now(), &rules()));
    }
    assert_eq!(store.status(), Status { open: count, idle: count });
    store
}

#[tokio::test]
async fn only_open_ever_dials() {
    let server = fake::Server::start().await;
    let store = store(&server, Reuse::Lifo);
    assert!(store.take_idle(None).is_none());
    let opened = store.open(WITHIN).await.unwrap();
    assert!(store.take_idle(None).is_none(), "the only one is on loan");
    assert_eq!(store.status(), Status { open: 1, idle: 0 });
    drop(opened);
    assert_eq!(store.take_idle(None).unwrap().pid, 1);
    assert_eq!((server.logins(), store.take_lost()), (1, 0));
}

#[tokio::test]
async fn a_dial_in_flight_lends_its_right_to_nobody() {
    let server = fake::Server::start().await;
    let store = store(&server, Reuse::Lifo);
    let mut opening = Box::pin(store.open(WITHIN));
    let pending = opening.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(pending.is_pending());
    assert!(store.take_idle(None).is_none());
    assert_eq!(opening.await.unwrap().pid, 1);
    assert_eq!(server.logins(), 1);
}

#[tokio::test]
async fn a_dial_given_up_leaves_nothing_behind() {
    let server = fake::Server::start().await;
    let store = Store::new(Arc::new(server.target()), 1, Reuse::Lifo);
    let mut opening = Box::pin(store.open(WITHIN));
    assert!(opening.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(opening);
    assert_eq!(store.status(), Status { open: 0, idle: 0 });
    let held = store.open(WITHIN).await.unwrap();
    assert!(matches!(store.open(WITHIN).await.unwrap_err(), DialError::NoRoom));
    drop(held);
}

#[tokio::test]
async fn reuse_decides_which_idle_backend_is_next() {
    let server = fake::Server::start().await;
    let next = |store: &Store| {
        let object = store.take_idle(None).unwrap();
        let pid = object.pid;
        assert!(store.give_back(object, clock::now(), &rules()));
        pid
    };
    let warm = filled(&server, Reuse::Lifo, 3).await;
    assert_eq!([(); 3].map(|()| next(&warm)), [3, 3, 3]);
    drop(warm.cool());
    assert_eq!([(); 3].map(|()| next(&warm)), [3, 3, 3], "deadpool has the same order");
    let fair = filled(&server, Reuse::RoundRobin, 3).await;
    assert_eq!([(); 4].map(|()| next(&fair)), [4, 5, 6, 4]);
}

#[tokio::test]
async fn a_preferred_backend_is_taken_if_it_is_idle_wherever_it_is_kept() {
    let server = fake::Server::start().await;
    let store = filled(&server, Reuse::Lifo, 3).await;
    let taken = store.take_idle(Some(1)).unwrap();
    assert_eq!(taken.pid, 1);
    assert_eq!(store.take_idle(Some(1)).unwrap().pid, 3, "it is busy: the last one back");
    assert!(store.give_back(taken, clock::now(), &rules()));
    drop(store.cool());
    let taken = store.take_idle(Some(2)).unwrap();
    assert_eq!(taken.pid, 2, "deadpool had it");
    assert!(store.give_back(taken, clock::now(), &rules()));
    assert_eq!(store.take_idle(Some(9)).unwrap().pid, 2, "there is no such one: the last one back");
    // Where use is spread nobody stays where it was.
    let fair = filled(&server, Reuse::RoundRobin, 3).await;
    assert_eq!(fair.take_idle(Some(6)).unwrap().pid, 4);
}

#[tokio::test]
async fn deadpool_gets_what_is_warm_at_the_next_look_and_opens_nothing_beside_it() {
    let server = fake::Server::start().await;
    let store = filled(&server, Reuse::Lifo, 3).await;
    assert_eq!(store.pool.status().available, 0, "all three came back just now");
    assert_eq!(store.close_expired(clock::now(), &rules()), 0);
    assert_eq!(store.pool.status().available, 3);

    let (three, two) = (store.take_idle(None).unwrap(), store.take_idle(None).unwrap());
    assert!(store.give_back(two, clock::now(), &rules()));
    assert_eq!((store.take_idle(None).unwrap().pid, three.pid), (2, 3), "the warm one before the cold one");
    assert_eq!(store.take_idle(None).unwrap().pid, 2, "dropped, it is with the cold ones, the last of them");
}

#[tokio::test]
async fn a_dial_opens_a_new_one_beside_the_idle_ones_and_leaves_their_order() {
    let server = fake::Server::start().await;
    let order = |store: &Store| std::iter::from_fn(|| store.take_idle(None)).collect::<Vec<_>>();
    let pids = |objects: &[Object]| objects.iter().map(|object| object.pid).collect::<Vec<_>>();

    let lifo = filled(&server, Reuse::Lifo, 3).await;
    let warm = lifo.take_idle(None).unwrap();
    drop(lifo.cool());
    assert!(lifo.give_back(warm, clock::now(), &rules()));
    let fourth = lifo.open(WITHIN).await.unwrap();
    assert_eq!((fourth.pid, lifo.status()), (4, Status { open: 4, idle: 3 }));
    let all = order(&lifo);
    assert_eq!(pids(&all), [3, 2, 1]);

    let fair = filled(&server, Reuse::RoundRobin, 3).await;
    let fourth = fair.open(WITHIN).await.unwrap();
    assert!(fair.give_back(fourth, clock::now(), &rules()));
    assert_eq!(fair.close_expired(clock::now(), &rules()), 0);
    let all = order(&fair);
    assert_eq!(pids(&all), [5, 6, 7, 8]);
    assert_eq!(server.logins(), 8);
}

#[tokio::test]
async fn dead_and_talkative_backends_are_passed_over_and_counted() {
    let mut server = fake::Server::start().await;
    let store = filled(&server, Reuse::Lifo, 3).await;
    let (_first, mut second, third) = (server.end().await, server.end().await, server.end().await);
    second.write_all(b"N").await.unwrap();
    drop(third);
    // Let the reactor see both events, as any await in a session does.
    let (a, b) = (store.take_idle(None).unwrap(), store.take_idle(None).unwrap());
    assert_eq!((a.pid, b.pid), (3, 2), "nothing was seen yet");
    a.stream.readable().await.unwrap();
    b.stream.readable().await.unwrap();
    assert!(store.give_back(b, clock::now(), &rules()));
    drop(store.cool());
    assert!(store.give_back(a, clock::now(), &rules()));

    assert_eq!(store.take_idle(None).unwrap().pid, 1, "neither the warm one nor the cold one");
    assert_eq!((store.take_lost(), store.take_lost()), (2, 0));
    assert_eq!(store.status(), Status { open: 1, idle: 1 });
}

#[tokio::test]
async fn the_janitor_closes_what_has_been_idle_too_long_but_for_min_idle() {
    let server = fake::Server::start().await;
    let store = filled(&server, Reuse::Lifo, 4).await;
    let mut rules = rules();
    rules.idle_timeout = Some(Duration::from_secs(10));
    rules.min_idle = 2;
    let fresh = store.take_idle(None).unwrap();
    let later = fresh.returned_at + Duration::from_secs(10);
    assert!(store.give_back(fresh, later, &rules));

    assert_eq!(store.close_expired(later, &rules), 2);
    assert_eq!(store.close_expired(later, &rules), 0);
    rules.min_idle = 0;
    assert_eq!(store.close_expired(later, &rules), 1, "the one just returned stays");
    assert_eq!(store.take_idle(None).unwrap().pid, 4);
    rules.idle_timeout = None;
    assert_eq!(store.close_expired(later + Duration::from_secs(600), &rules), 0);
}

#[tokio::test]
async fn lifetime_ends_idle_and_returning_backends_whatever_min_idle() {
    let server = fake::Server::start().await;
    let store = filled(&server, Reuse::Lifo, 2).await;
    let mut rules = rules();
    rules.min_idle = 2;
    rules.lifetime = Some(Duration::from_secs(100));
    let now = clock::now();
    assert_eq!(store.close_expired(now + Duration::from_secs(80), &rules), 0);
    let held = store.take_idle(None).unwrap();
    assert_eq!(store.close_expired(now + Duration::from_secs(111), &rules), 1);
    assert!(!store.give_back(held, now + Duration::from_secs(111), &rules));
    assert_eq!(store.status(), Status { open: 0, idle: 0 });
}

#[tokio::test]
async fn eviction_takes_the_coldest_and_says_goodbye() {
    let mut server = fake::Server::start().await;
    let store = filled(&server, Reuse::Lifo, 2).await;
    let mut first = server.end().await;
    assert!(store.evict_one());
    let mut said = Vec::new();
    first.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"X\0\0\0\x04");
    assert_eq!(store.take_idle(None).unwrap().pid, 2);
    assert!(store.evict_one());
    assert!(!store.evict_one());
}

#[tokio::test]
async fn reconnect_ends_idle_backends_now_and_others_as_they_return() {
    let server = fake::Server::start().await;
    let store = filled(&server, Reuse::Lifo, 3).await;
    let (held, dropped) = (store.take_idle(None).unwrap(), store.take_idle(None).unwrap());
    assert_eq!(store.close_all(), 1);
    assert!(!store.give_back(held, clock::now(), &rules()));
    // One that a panicking session merely dropped is caught at the next checkout.
    drop(dropped);
    assert_eq!(store.status(), Status { open: 1, idle: 1 });
    assert!(store.take_idle(None).is_none());
    assert_eq!(store.take_lost(), 1);

    let fresh = store.open(WITHIN).await.unwrap();
    assert!(store.give_back(fresh, clock::now(), &rules()));
    assert_eq!(store.take_idle(None).unwrap().pid, 4);
}

#[tokio::test]
async fn a_generation_is_closed_once() {
    let server = fake::Server::start().await;
    let store = filled(&server, Reuse::Lifo, 3).await;
    let (one, two) = (store.take_idle(None).unwrap(), store.take_idle(None).unwrap());
    assert!(store.is_current(&one));
    assert_eq!(store.close_generation(one.generation), Some(1));
    assert!(!store.is_current(&one) && !store.is_current(&two));
    let fresh = store.open(WITHIN).await.unwrap();
    assert_eq!(store.close_generation(two.generation), None, "the fresh one has nothing to do with it");
    assert!(store.is_current(&fresh));
}
