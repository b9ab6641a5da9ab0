//! Very many statements, and very big ones: what Bursar keeps of them stays within its bounds, and other
//! clients do not notice.

use crate::support::watch::peak_mib;
use crate::support::{Config, Db, Proxy, Reply, STATEMENTS, Wire, msg};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What the proxy may grow by, in MiB, once it has seen as many statements as it keeps, and while
/// something big streams through.
const ROOM: u64 = 64;
const MB: usize = 1_000_000;

/// How long PostgreSQL may work on something big while the machine runs other tests.
const LONG: Duration = Duration::from_secs(100);

/// Distinct statements at once. Where statements keep their backend, as many clients as backends have
/// them, and fewer.
const CLIENTS: usize = if STATEMENTS { 100 } else { 20 };
const EACH: usize = if STATEMENTS { 100 } else { 50 };
const BACKENDS: usize = if STATEMENTS { 4 } else { CLIENTS };
/// Statements that a backend may have prepared.
const CAP: usize = 200;

fn text(client: usize, wave: usize, number: usize) -> String {
    // Of the length of what an ORM writes.
    let filler = "a_column_of_a_table, ".repeat(20);
    format!("select {number} + $1::int /* {client} {wave} {filler} */")
}

/// Binds and executes; the answer must be right, and there must be no error of names.
fn run(wire: &mut Wire, prefix: &[u8], name: &str, number: usize) {
    let execute = [msg::bind_with("", name, &[Some("1")]), msg::execute("", 0), msg::sync()].concat();
    let reply = wire.ask(&[prefix, &execute].concat());
    assert!(reply.error().is_none() && !reply.closed, "{name}: {reply:?}");
    assert_eq!(reply.value(), (number + 1).to_string(), "{name}");
}

/// All clients at once, each in a thread: closes what it had, prepares anew, and runs everything twice
/// more in another order.
fn wave(clients: &mut [Wire], wave: usize) {
    std::thread::scope(|scope| {
        for (client, wire) in clients.iter_mut().enumerate() {
            scope.spawn(move || {
                for number in 0..EACH {
                    let name = format!("s{number}");
                    let parse = [msg::close_statement(&name), msg::parse(&name, &text(client, wave, number))];
                    run(wire, &parse.concat(), &name, number);
                }
                for number in (0..EACH).rev().chain(0..EACH) {
                    run(wire, &[], &format!("s{number}"), number);
                }
            });
        }
    });
}

#[test]
fn ten_thousand_statements_are_kept_within_bounds() {
    let db = Db::new();
    let config = Config::of_size(BACKENDS)
        .lazy()
        .with("pool", "max_wait = \"60s\"")
        .with("pool", "reuse = \"round_robin\"")
        .with("pool", &format!("max_prepared = {CAP}"))
        .with("tenant.\"*\"", "mode = \"observe\"");
    let proxy = Proxy::start(&db, config);
    let mut clients: Vec<Wire> = (0..CLIENTS).map(|_| proxy.connect()).collect();
    wave(&mut clients, 0);
    let full = peak_mib(&proxy);
    for again in 1..=2 {
        wave(&mut clients, again);
        let grown = peak_mib(&proxy) - full;
        assert!(grown < ROOM / 4, "{grown} MiB more than {full} with as many statements as before");
    }
    println!("{} statements at once: {full} MiB at most", CLIENTS * EACH);
    let cap = if STATEMENTS { CAP } else { EACH };
    let count = "select count(*) from pg_prepared_statements";
    clients.truncate(BACKENDS);
    // In transactions: each on a backend of its own.
    clients.iter_mut().for_each(|wire| drop(wire.batch("begin")));
    for wire in &mut clients {
        let prepared: usize = wire.query(count).value().parse().expect("a count");
        assert!(prepared > 0 && prepared <= cap, "{prepared} statements on one backend, at most {cap}");
    }
    // What PostgreSQL would refuse is refused, whoever else has it.
    let other = &mut proxy.connect();
    drop(clients);
    let bind = [msg::bind("", "s1"), msg::sync()].concat();
    assert_eq!(other.ask(&bind).code(), "26000");
    proxy.stop();
}

/// As sqlcommenter sends them: every call has a text of its own.
#[test]
fn a_comment_that_changes_leaves_one_statement() {
    const CALLS: usize = 5_000;
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend().lazy());
    let mut client = proxy.connect();
    let mut call = |number: usize, name: &str| {
        let comment = format!("/*traceparent='00-{number:032x}-{number:016x}-01'*/");
        let parse = msg::parse(name, &format!("select {} + $1::int {comment}", 7));
        run(&mut client, &[msg::close_statement(name), parse].concat(), name, 7);
    };
    for number in 0..CALLS / 10 {
        call(number, if number % 2 == 0 { "s" } else { "" });
    }
    let before = peak_mib(&proxy);
    for number in CALLS / 10..CALLS {
        call(number, if number % 2 == 0 { "s" } else { "" });
    }
    let grown = peak_mib(&proxy) - before;
    // Each call is a request of its own, of which Bursar remembers some thousands.
    assert!(grown <= 4, "the proxy grew by {grown} MiB");
    let texts = client.query("select count(*) from pg_prepared_statements").value();
    assert!(["0", "1"].contains(&texts.as_str()), "{texts} statements for one text");
    let text = client.query("select coalesce(max(statement), '') from pg_prepared_statements").value();
    assert!(!text.contains("traceparent"), "{text}");
    client.bye();
    proxy.stop();
}

/// A message whose body is too long to be made whole.
fn send_long(wire: &mut Wire, kind: u8, start: &[u8], length: usize, end: &[u8]) {
    let total = u32::try_from(4 + start.len() + length + end.len()).expect("below 4 GiB");
    wire.send(&[&[kind][..], &total.to_be_bytes(), start].concat());
    let chunk = vec![b'z'; MB];
    for sent in (0..length).step_by(MB) {
        wire.send(&chunk[..MB.min(length - sent)]);
    }
    wire.send(end);
}

#[test]
fn the_biggest_values_stream_through_while_others_work() {
    let db = Db::new();
    let config = Config::of_size(2).lazy().with("tenant.\"*\"", "mode = \"observe\"");
    let proxy = Proxy::start(&db, config);
    let mut client = proxy.connect();
    client.batch("select 1");
    let before = peak_mib(&proxy);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let bystander = scope.spawn(|| work_until(&proxy, &over));
        let stream = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stream(&mut client)));
        over.store(true, Ordering::Relaxed);
        let mut took = bystander.join().expect("the bystander is served");
        stream.expect("everything streams, see above");
        took.sort();
        let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
        println!(
            "meanwhile {} queries of another client: {median:?} in the middle, {worst:?} at worst",
            took.len()
        );
        assert!(took.len() > 100, "the bystander had only {} answers", took.len());
        assert!(
            median < Duration::from_millis(50) && worst < Duration::from_secs(2),
            "{median:?}, {worst:?}"
        );
    });
    let grown = peak_mib(&proxy) - before;
    assert!(grown < ROOM, "the proxy grew by {grown} MiB from {before}");
    assert_eq!(client.query("select 1").value(), "1", "and the session goes on");
    client.bye();
    proxy.stop();
}

fn stream(client: &mut Wire) {
    let length = 500 * MB;
    client.send(&msg::parse("big", "select octet_length($1::bytea)"));
    // One parameter, binary.
    let start = [&b"\0big\0\0\x01\0\x01\0\x01"[..], &u32::try_from(length).expect("small").to_be_bytes()];
    send_long(client, b'B', &start.concat(), length, b"\0\0");
    client.send(&[msg::execute("", 0), msg::close_statement("big"), msg::sync()].concat());
    assert_eq!(reply(client).value(), length.to_string(), "a parameter of 500 MB");

    let length = 200 * MB;
    send_long(client, b'Q', b"select length('", length, b"')\0");
    assert_eq!(reply(client).value(), length.to_string(), "a query of 200 MB");

    let length = 900 * MB;
    client.send(&msg::query(&format!("select repeat(repeat('x', {MB}), 900)")));
    assert_eq!(client.try_recv(LONG).expect("a description").map(|message| message.kind), Some(b'T'));
    assert_eq!(client.skip_message(), Some((b'D', 2 + 4 + length)), "a row of 900 MB");
    assert_eq!(client.recv_reply().trace(), "C(SELECT 1) Z(I)");
}

/// A reply that takes PostgreSQL long.
fn reply(client: &mut Wire) -> Reply {
    let first = client.try_recv(LONG).expect("an answer").expect("an open connection");
    let rest = client.recv_reply();
    Reply { messages: [vec![first], rest.messages].concat(), closed: rest.closed }
}

/// One small query after the other; how long each took.
fn work_until(proxy: &Proxy, over: &AtomicBool) -> Vec<Duration> {
    let mut wire = proxy.connect();
    let mut took = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        assert_eq!(wire.query("select 7").value(), "7");
        took.push(asked.elapsed());
    }
    took
}
