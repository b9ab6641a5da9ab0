//! What programs are made of: the dice, and one [`Op`] for each message of the protocol.

use super::{Op, Pin};
use crate::support::msg;

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("below a usize")
    }

    /// Once in `n` times.
    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// One of these texts, `#` made a small number.
    pub(super) fn sql(&mut self, from: &[&str]) -> String {
        let number = self.below(8);
        self.pick(from).replace('#', &number.to_string())
    }
}

pub(super) fn op(text: impl Into<String>, bytes: Vec<u8>) -> Op {
    Op { text: text.into(), bytes, pin: Pin::None }
}

/// It changes a setting, perhaps.
pub(super) fn setting(op: Op) -> Op {
    Op { pin: Pin::Setting, ..op }
}

/// It leaves what no other backend can have.
pub(super) fn kept(op: Op) -> Op {
    Op { pin: Pin::Kept, ..op }
}

pub(super) fn query(sql: &str) -> Op {
    op(format!("Q({sql})"), msg::query(sql))
}

pub(super) fn sync() -> Op {
    op("S", msg::sync())
}

pub(super) fn flush() -> Op {
    op("H", msg::flush())
}

pub(super) fn parse(name: &str, sql: &str) -> Op {
    parse_typed(name, sql, &[])
}

pub(super) fn parse_typed(name: &str, sql: &str, types: &[u32]) -> Op {
    let shown = if types.is_empty() { String::new() } else { format!(",{types:?}") };
    let parse = op(format!("P({name},{sql}{shown})"), msg::parse_typed(name, sql, types));
    if name.is_empty() { parse } else { Op { pin: Pin::Statement, ..parse } }
}

/// A Parse of `sql`. That a SET is a local one is not known any more when a named portal runs it.
pub(super) fn portal_sets(sql: &str, parse: Op) -> Op {
    if sql.starts_with("set local") { kept(parse) } else { parse }
}

pub(super) fn bind(portal: &str, statement: &str) -> Op {
    op(format!("B({portal},{statement})"), msg::bind(portal, statement))
}

pub(super) fn execute(portal: &str, rows: u32) -> Op {
    op(format!("E({portal},{rows})"), msg::execute(portal, rows))
}

pub(super) fn describe_statement(name: &str) -> Op {
    op(format!("D(S,{name})"), msg::describe_statement(name))
}

pub(super) fn describe_portal(name: &str) -> Op {
    op(format!("D(P,{name})"), msg::describe_portal(name))
}

pub(super) fn close_statement(name: &str) -> Op {
    op(format!("C(S,{name})"), msg::close_statement(name))
}

pub(super) fn close_portal(name: &str) -> Op {
    op(format!("C(P,{name})"), msg::close_portal(name))
}

/// PostgreSQL 15 reads freed memory when the unnamed portal that a failed Query left in a failed
/// transaction is executed or described, and may crash. So that portal is only used in the segment
/// that binds it; elsewhere one is named that nobody binds.
pub(super) fn spare_the_server(mut ops: Vec<Op>) -> Vec<Op> {
    let mut bound = false;
    for op in &mut ops {
        match (op.bytes[0], op.text.as_str()) {
            (b'B', text) if text.starts_with("B(,") => bound = true,
            (b'S' | b'Q' | b'F', _) => bound = false,
            (b'E', text) if text.starts_with("E(,") && !bound => *op = execute("nothing", 0),
            (b'D', "D(P,)") if !bound => *op = describe_portal("nothing"),
            _ => {}
        }
    }
    ops
}
