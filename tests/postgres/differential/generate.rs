//! Which program a seed stands for: its family, its clients and the pool that it runs before.
//!
//! A seed's remainder by four is its family, so that each grows without changing the programs of the
//! others; kept seeds stay what they were.

use super::ops::{Rng, query, spare_the_server};
use super::{KEPT, Mode, Pool, Program, plain, schema, settings, statements};
use crate::support::Db;

const SETUP: &[&str] = &[
    "create table t (id int primary key, note text)",
    "create table parent (id int primary key)",
    "create table child (id int references parent deferrable initially deferred)",
    "create schema one; create table one.pick (id int, place text); insert into one.pick values (1, 'one')",
    "create schema two; create table two.pick (id int, place text); insert into two.pick values (2, 'two')",
    "create table pick (id int, place text); insert into pick values (0, 'public')",
    "create table shape (id int, v int)",
];

/// Makes what the programs work with.
pub(super) fn set_up(db: &Db<'_>) {
    db.run(SETUP);
    // PostgreSQL never forgets the name of a custom setting: on a backend where one was ever set it is
    // empty, elsewhere unknown. So that this does not show, it is known everywhere (docs/compatibility.md).
    db.cluster().admin().batch(&format!("alter database {} set app.mark = ''", db.name()));
}

/// The data that most programs work on, in one go.
pub(super) const RENEW: &str = "truncate t, parent, child; \
    insert into t select n, 'note ' || n from generate_series(1, 5) n";

/// And what those work on that change a row type.
pub(super) const RENEW_SHAPE: &str = "truncate shape; \
    do $$ declare i regclass; begin \
    for i in select indexrelid from pg_index where indrelid = 'shape'::regclass loop \
        execute 'drop index ' || i; end loop; \
    alter table shape rename w to v; exception when undefined_column then end $$; \
    alter table shape alter v type int using 0; \
    insert into shape values (1, 1)";

pub(super) fn program(seed: u64, mode: Mode) -> Program {
    // Whatever is drawn here must not shift what the family draws.
    let mut rng = Rng(!seed);
    let pool = if rng.one_in(3) { Pool::Three } else { Pool::One };
    let program = match seed % 4 {
        0 => Program { steps: plain::steps(seed / 4), ..Program::of(Pool::One) },
        1 => statements::program(&mut rng, pool),
        2 => settings::program(&mut rng, pool),
        _ => schema::program(&mut rng, pool),
    };
    // Statement mode goes by the words.
    let same = KEPT.contains(&seed) || mode == Mode::Statement;
    let program = if same { program } else { otherwise_said(program, seed) };
    match mode {
        Mode::Transaction => program,
        // Before one backend there is no more than one client at a time.
        Mode::Session => Program { pool: Pool::Three, ..program },
        Mode::Statement => without_blocks(program),
    }
}

/// Other words for the same, in and out of what Bursar answers itself.
const WORDS: [(&str, &[&str]); 3] = [
    (
        "Q(begin)",
        &[
            "BEGIN;",
            "begin work",
            "/* a */ begin transaction -- b",
            "begin isolation level read committed",
            "Begin Read Write ;",
            "begin isolation level repeatable read",
            "start  transaction read write",
            "; begin",
        ],
    ),
    ("Q(commit)", &["COMMIT;", "end", "commit work", "-- a\ncommit", "end transaction and no chain"]),
    ("Q(rollback)", &["abort", "ROLLBACK ;", "rollback work", "abort transaction and no chain"]),
];

/// The same program, its transactions begun and ended in other words now and then.
fn otherwise_said(mut program: Program, seed: u64) -> Program {
    let mut rng = Rng(seed.rotate_left(32) ^ !0);
    for op in program.steps.iter_mut().flat_map(|step| &mut step.ops) {
        if let Some((_, words)) = WORDS.iter().find(|(text, _)| op.text == *text)
            && rng.one_in(2)
        {
            *op = super::Op { pin: op.pin, ..query(rng.pick(words)) };
        }
    }
    program
}

/// Without the messages that would leave a transaction block open.
fn without_blocks(mut program: Program) -> Program {
    for step in &mut program.steps {
        step.ops.retain(|op| !opens_a_block(&op.text));
        step.ops = spare_the_server(std::mem::take(&mut step.ops));
    }
    program
}

fn opens_a_block(text: &str) -> bool {
    let opens =
        |piece: &str| ["begin", "start transaction"].iter().any(|word| piece.trim().starts_with(word));
    let ends = |piece: &str| ["commit", "rollback)"].iter().any(|word| piece.trim().starts_with(word));
    let pieces = || text.split(['(', ',', ';']);
    pieces().any(opens) && !pieces().any(ends)
}
