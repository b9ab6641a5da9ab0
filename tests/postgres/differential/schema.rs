//! Two clients who read a table by prepared statements while a third changes the table's row type.

use super::ops::{
    Rng, bind, close_statement, describe_portal, describe_statement, execute, parse, query, sync,
};
use super::{Op, Pool, Program, Step};

const READS: &[&str] = &[
    "select * from shape",
    "select * from shape",
    "select v from shape",
    "select id from shape",
    "select count(*) from shape",
];

const CHANGES: &[&str] = &[
    "alter table shape alter v type text using v::text",
    "alter table shape alter v type int using length(v::text)",
    "alter table shape alter v type numeric(8, 2) using 1",
    "alter table shape rename v to w",
    "alter table shape rename w to v",
    "analyze shape",
    "create index on shape (id)",
];

/// The client who changes the table; it uses simple queries alone.
const MIGRATOR: usize = 2;

pub(super) fn program(rng: &mut Rng, pool: Pool) -> Program {
    let steps = super::steps(6 + rng.below(14));
    let steps = (0..steps)
        .map(|_| match rng.below(4) {
            0 => Step { client: MIGRATOR, ops: vec![query(rng.pick(CHANGES))], evict: true },
            _ => Step { client: rng.below(2), ops: reads(rng), evict: rng.one_in(4) },
        })
        .collect();
    Program { steps, reshapes: true, ..Program::of(pool) }
}

fn reads(rng: &mut Rng) -> Vec<Op> {
    if rng.one_in(6) {
        return vec![query(rng.pick(&["begin", "commit", "rollback", "select * from shape"]))];
    }
    let mut ops = Vec::new();
    for _ in 0..1 + rng.below(3) {
        let name = rng.pick(&["a", "b", "a", "b", ""]);
        match rng.below(6) {
            0 | 1 => ops.push(parse(name, rng.pick(READS))),
            2 => ops.extend([close_statement(name), parse(name, rng.pick(READS))]),
            3 => ops.push(describe_statement(name)),
            _ => {}
        }
        ops.push(bind("", name));
        if rng.one_in(3) {
            ops.push(describe_portal(""));
        }
        ops.push(execute("", 0));
        if rng.one_in(3) {
            ops.push(sync());
        }
    }
    ops.push(sync());
    ops
}
