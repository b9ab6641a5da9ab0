//! What the wire room costs per message: header walk, and the three glances at a statement text.
//!
//! `cargo bench --bench walk`. The texts are of the sizes and shapes that drivers send; about 300
//! bytes for the typical ones.

use bursar::wire::sql::{comment, local, scan};
use bursar::wire::walk::Header;
use divan::{Bencher, black_box, counter::BytesCount};

fn main() {
    divan::main();
}

const ORM: &str = "SELECT users.id, users.email, users.created_at, orders.id, orders.total, orders.status \
    FROM users JOIN orders ON orders.user_id = users.id WHERE users.tenant_id = $1 AND orders.status = $2 \
    AND orders.created_at >= $3 AND users.deleted_at IS NULL ORDER BY orders.created_at DESC, orders.id \
    LIMIT $4 OFFSET $5";
const LITERALS: &str = "UPDATE accounts SET balance = balance + 1250, note = 'paid by card; thanks', \
    updated_at = '2024-05-01 12:00:00+00', currency = 'EUR' WHERE id = 4711 AND tenant = 'acme' AND \
    status IN ('open', 'pending', 'overdue') AND template IS NOT NULL AND kind <> 'attempt' RETURNING id";
const TAGGED: &str = "SELECT users.id, users.email, users.created_at FROM users WHERE users.tenant_id = $1 AND \
    users.email = $2 AND users.deleted_at IS NULL ORDER BY users.created_at DESC LIMIT 1 \
    /*action='show',controller='users',route='%2Fusers%2F%3Aid',\
    traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'*/";
const SET: &str = "SET bursar.request_id = 'b3f1c2d4-5a6b-4c7d-8e9f-0a1b2c3d4e5f'";
const SHORT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;";
const BATCH: &str = "BEGIN; UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 1; END;";

const TEXTS: [(&str, &str); 6] = [
    ("orm", ORM),
    ("literals", LITERALS),
    ("tagged", TAGGED),
    ("set", SET),
    ("short", SHORT),
    ("batch", BATCH),
];

fn text(name: &str) -> &'static [u8] {
    TEXTS.iter().find(|(found, _)| *found == name).map_or(b"", |(_, text)| text.as_bytes())
}

#[divan::bench(args = TEXTS.map(|(name, _)| name))]
fn scan_text(bencher: Bencher<'_, '_>, name: &str) {
    let text = text(name);
    bencher.counter(BytesCount::of_slice(text)).bench_local(|| scan::scan(black_box(text)));
}

#[divan::bench(args = TEXTS.map(|(name, _)| name))]
fn find_comment(bencher: Bencher<'_, '_>, name: &str) {
    let text = text(name);
    bencher
        .counter(BytesCount::of_slice(text))
        .bench_local(|| comment::find(black_box(text)).map_or(0, |found| found.pairs.len()));
}

#[divan::bench(args = TEXTS.map(|(name, _)| name))]
fn parse_local(bencher: Bencher<'_, '_>, name: &str) {
    let text = text(name);
    bencher
        .counter(BytesCount::of_slice(text))
        .bench_local(|| local::parse(black_box(text)).map_or(0, |all| all.len()));
}

/// 64 KiB of messages with bodies of so many bytes.
#[divan::bench(args = [40, 119, 8192])]
fn walk_headers(bencher: Bencher<'_, '_>, body: usize) {
    let mut buffer = Vec::new();
    while buffer.len() < 64 * 1024 {
        buffer.push(b'D');
        buffer.extend_from_slice(&(body as u32 + 4).to_be_bytes());
        buffer.resize(buffer.len() + body, 0);
    }
    bencher.counter(divan::counter::ItemsCount::new(buffer.len() / (body + 5))).bench_local(|| {
        let mut rest = black_box(&buffer[..]);
        let mut messages = 0u32;
        while let Some(after) = Header::read(rest).and_then(Header::total).and_then(|len| rest.get(len..)) {
            rest = after;
            messages += 1;
        }
        messages
    });
}
