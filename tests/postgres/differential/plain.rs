//! Two clients and both protocols, mostly without what a session leaves on its backend: what real
//! drivers do, and what none of them should.

use super::ops::{
    Rng, bind, close_portal, close_statement, describe_portal, describe_statement, execute, flush, kept, op,
    parse, portal_sets, query, spare_the_server, sync,
};
use super::{Op, Step};
use crate::support::msg;

/// Statements for both protocols. `#` stands for a small number.
pub(super) const PLAIN: &[&str] = &[
    "select 1",
    "select #, 'two', null",
    "select * from t order by id",
    "select count(*) from t",
    "insert into t values (#, 'new')",
    "insert into t values (# + 10, 'new') returning *",
    "update t set note = 'changed' where id = #",
    "delete from t where id = #",
    "insert into child values (#)",
    "select # / 0",
    "select 1 / n from generate_series(1, 0, -1) n",
    "select no_such_column",
    "selec 1",
    "",
    "-- nothing",
    "select generate_series(1, 500), repeat('x', 50)",
    "do $$ begin raise notice 'note #'; end $$",
    "do $$ begin raise exception 'no #'; end $$",
    "set local work_mem = '5MB'",
    "show work_mem",
    "set constraints all immediate",
    "declare c cursor for select * from t order by id",
    "fetch 2 from c",
    "close c",
    "copy t to stdout",
];

pub(super) const TRANSACTION: &[&str] = &[
    "begin",
    "begin read only",
    "start transaction",
    "commit",
    "commit",
    "rollback",
    "savepoint a",
    "rollback to a",
    "release a",
    "commit and chain",
];

/// Only as a simple query.
pub(super) const BATCHES: &[&str] = &[
    "select 1; select 2",
    "select 1; select # / 0; select 3",
    "begin; insert into t values (#); commit; select 1",
    "begin; select 1",
    "commit; select 1",
    "; ;",
    "insert into t values (20); insert into t values (20)",
    "copy t from stdin; select 9",
    "vacuum parent",
];

/// Leaves something on the backend.
const PINNING: &[&str] = &[
    "set work_mem = '6MB'",
    "set timezone = 'Asia/Tokyo'",
    "reset timezone",
    "prepare s as select #",
    "execute s",
    "deallocate s",
    "create temp table mine (id int)",
    "select count(*) from mine",
    "declare h cursor with hold for select * from t order by id",
    "fetch 2 from h",
    "discard all",
];

const PARAMETERS: &[&str] =
    &["select $1::int + 1", "insert into t values ($1::int, 'bound')", "select $1::text"];

pub(super) const COPY_IN: &str = "copy t from stdin";

pub(super) fn steps(seed: u64) -> Vec<Step> {
    let mut rng = Rng(seed);
    // Pins tie a client to the backend for good; most programs do without.
    let pins = rng.one_in(4);
    let mut client = 0;
    let steps = super::steps(3 + rng.below(12));
    (0..steps)
        .map(|_| {
            if rng.one_in(3) {
                client = 1 - client;
            }
            let evict = rng.one_in(3);
            Step { client, ops: spare_the_server(ops(&mut rng, pins)), evict }
        })
        .collect()
}

fn ops(rng: &mut Rng, pins: bool) -> Vec<Op> {
    match rng.below(if pins { 13 } else { 11 }) {
        0 | 1 => (0..=rng.below(3)).map(|_| simple(rng)).collect(),
        2 => vec![query(&rng.sql(TRANSACTION))],
        3 => closed(rng, 1, sync()),
        4 => {
            let (count, end) = (1 + rng.below(4), end(rng));
            closed(rng, count, end)
        }
        5 => portal(rng),
        6 => copy_simple(rng),
        7 => copy_extended(rng),
        8 => vec![function(rng)],
        9 | 10 => (0..2 + rng.below(7)).map(|_| any(rng)).collect(),
        11 => vec![kept(query(&rng.sql(PINNING)))],
        _ => named(rng),
    }
}

/// How a pipeline may end.
pub(super) fn end(rng: &mut Rng) -> Op {
    match rng.below(6) {
        0 => flush(),
        1 => simple(rng),
        2 => function(rng),
        _ => sync(),
    }
}

pub(super) fn simple(rng: &mut Rng) -> Op {
    let from = rng.pick(&[PLAIN, PLAIN, TRANSACTION, BATCHES]);
    query(&rng.sql(from))
}

pub(super) fn function(rng: &mut Rng) -> Op {
    let (divisor, text) = if rng.one_in(3) { ("0", "F(7/0)") } else { ("2", "F(7/2)") };
    op(text, msg::function_call(154, &["7", divisor]))
}

/// Parse, Bind, Execute, with Describe here and there; sometimes a piece is missing.
fn statement(rng: &mut Rng) -> Vec<Op> {
    let mut ops = if rng.one_in(4) {
        let sql = rng.pick(PARAMETERS);
        let value = rng.pick(&[Some("41"), Some("x"), None]);
        let text = format!("B(,,{})", value.unwrap_or("null"));
        vec![parse("", sql), op(text, msg::bind_with("", "", &[value])), execute("", 0)]
    } else {
        let from = rng.pick(&[PLAIN, PLAIN, TRANSACTION]);
        vec![parse("", &rng.sql(from)), bind("", ""), execute("", 0)]
    };
    if rng.one_in(4) {
        ops.insert(2, describe_portal(""));
    }
    if rng.one_in(4) {
        ops.insert(1, describe_statement(""));
    }
    if rng.one_in(10) {
        ops.remove(rng.below(ops.len()));
    }
    ops
}

pub(super) fn closed(rng: &mut Rng, statements: usize, end: Op) -> Vec<Op> {
    let mut ops: Vec<Op> = (0..statements).flat_map(|_| statement(rng)).collect();
    ops.push(end);
    ops
}

pub(super) fn portal(rng: &mut Rng) -> Vec<Op> {
    let mut ops = vec![parse("", "select generate_series(1, 5)"), bind("p", "")];
    for _ in 0..2 + rng.below(3) {
        ops.push(execute("p", u32::try_from(rng.below(4)).expect("small")));
        match rng.below(8) {
            0 => ops.push(sync()),
            1 => ops.push(flush()),
            2 => ops.push(close_portal("p")),
            _ => {}
        }
    }
    if rng.one_in(2) {
        ops.insert(0, query("begin"));
    }
    if rng.one_in(3) {
        ops.push(query("commit"));
    } else {
        ops.push(sync());
    }
    ops
}

fn named(rng: &mut Rng) -> Vec<Op> {
    let name = rng.pick(&["n", "m"]);
    let mut ops = Vec::new();
    for _ in 0..1 + rng.below(3) {
        match rng.below(4) {
            0 | 1 => ops.push(parse(name, &rng.sql(PLAIN))),
            2 => ops.push(close_statement(name)),
            _ => {}
        }
        ops.push(bind("", name));
        ops.push(execute("", 0));
        if rng.one_in(3) {
            ops.push(sync());
        }
    }
    ops.push(sync());
    ops
}

fn data(rng: &mut Rng) -> Op {
    match rng.below(5) {
        0 => op("d(bad)", msg::copy_data("x\tbad\n")),
        1 => op("d(half)", msg::copy_data("4")),
        2 => op("d(0\\tzero)", msg::copy_data("0\tzero\n")),
        _ => {
            let id = 100 + rng.below(900);
            op(format!("d({id})"), msg::copy_data(&format!("{id}\tcopied\n")))
        }
    }
}

fn copy_end(rng: &mut Rng) -> Op {
    if rng.one_in(4) { op("f", msg::copy_fail("enough")) } else { op("c", msg::copy_done()) }
}

fn copy_body(rng: &mut Rng) -> Vec<Op> {
    let mut ops: Vec<Op> = (0..rng.below(4)).map(|_| data(rng)).collect();
    if rng.one_in(4) {
        ops.insert(rng.below(ops.len() + 1), sync());
    }
    if rng.one_in(4) {
        ops.insert(rng.below(ops.len() + 1), flush());
    }
    // Now and then the end comes with a later step, or never.
    if !rng.one_in(6) {
        ops.push(copy_end(rng));
    }
    ops
}

pub(super) fn copy_simple(rng: &mut Rng) -> Vec<Op> {
    let mut ops = vec![query(COPY_IN)];
    ops.extend(copy_body(rng));
    if rng.one_in(3) {
        ops.push(simple(rng));
    }
    ops
}

pub(super) fn copy_extended(rng: &mut Rng) -> Vec<Op> {
    let mut ops = vec![parse("", COPY_IN), bind("", ""), execute("", 0)];
    if rng.one_in(2) {
        ops.push(sync());
    }
    ops.extend(copy_body(rng));
    ops.push(sync());
    ops
}

/// Any message at all, wherever it falls.
pub(super) fn any(rng: &mut Rng) -> Op {
    match rng.below(14) {
        0 | 1 => simple(rng),
        2 => {
            let sql = rng.sql(PLAIN);
            portal_sets(&sql, parse("", &sql))
        }
        3 => bind("", ""),
        4 => bind("p", ""),
        5 => execute("", 0),
        6 => execute("p", 1),
        7 => describe_portal(""),
        8 => close_statement(""),
        9 => flush(),
        10 => copy_end(rng),
        11 => data(rng),
        _ => sync(),
    }
}
