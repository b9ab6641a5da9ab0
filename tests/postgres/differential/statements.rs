//! Two to four clients with prepared statements: few names and few texts, so that names collide, texts
//! are shared, and what one client has prepared is on another's backend.

use super::ops::{
    Rng, bind, close_portal, close_statement, describe_portal, describe_statement, execute, flush, kept, op,
    parse, parse_typed, portal_sets, query, spare_the_server, sync,
};
use super::{CLIENTS, Op, Pool, Program, SQL_SEES_NAMES, Step, plain};
use crate::support::msg;
use std::collections::BTreeMap;

/// What a parameter is meant to be.
#[derive(Clone, Copy)]
enum Kind {
    Number,
    Text,
    /// Whatever the declared type says.
    Any,
}
use Kind::{Any, Number, Text};

/// A text and its parameters.
type Sql = (&'static str, &'static [Kind]);

const READS: &[Sql] = &[
    ("select 1", &[]),
    ("select 2 as two, 'x'", &[]),
    ("select * from t order by id", &[]),
    ("select $1::int + 1", &[Number]),
    ("select $1", &[Any]),
    ("select pg_typeof($1)::text, $1", &[Any]),
    ("select $1 || 'x'", &[Text]),
    ("select id, note from t where id = $1", &[Number]),
    ("select note from t where note like $1 and id < $2", &[Text, Number]),
    ("select generate_series(1, $1)", &[Number]),
    ("select generate_series(1, 5)", &[]),
    ("select 7 / $1", &[Number]),
    ("select place from pick", &[]),
    ("select no_such_column", &[]),
    ("selec 1", &[]),
    ("", &[]),
    ("show work_mem", &[]),
    ("copy t to stdout", &[]),
    ("begin", &[]),
    ("commit", &[]),
    ("rollback", &[]),
    ("set local work_mem = '5MB'", &[]),
];

const WRITES: &[Sql] = &[
    ("insert into t values ($1, $2)", &[Number, Text]),
    ("insert into t values ($1, $2) returning id, note", &[Number, Text]),
    ("update t set note = $1 where id = $2", &[Text, Number]),
    ("delete from t where id = $1", &[Number]),
    ("insert into child values (3)", &[]),
];

/// unspecified, int4, int8, text, varchar, unknown.
const TYPES: &[u32] = &[0, 0, 0, 23, 20, 25, 1043, 705];

/// Two that PostgreSQL takes for one: it looks at 63 bytes.
const LONG: [&str; 2] = [
    "a_name_that_is_longer_than_the_sixty_three_bytes_of_a_name_in_PostgreSQL",
    "a_name_that_is_longer_than_the_sixty_three_bytes_of_a_name_in_Postgres",
];

/// As a simple query; drop statements behind the back of whoever counts them.
const FORGETS: &[&str] = &["deallocate all", "discard all", "discard plans", "deallocate nobody"];

/// SQL's own statements, in names that the protocol does not use.
const PREPARES: &[&str] = &[
    "prepare s as select #",
    "prepare s (int) as select $1 + #",
    "execute s",
    "execute s(#)",
    "deallocate s",
    "deallocate prepare s",
];

/// SQL's own statements, in the protocol's names.
const CROSSINGS: &[&str] =
    &["prepare a as select #", "execute a", "execute b", "explain (costs off) execute a"];

/// What a client has prepared, if all went well: so that most Binds fit.
#[derive(Default)]
struct Client {
    known: BTreeMap<String, Sql>,
}

/// The dice and the clients of one program.
struct Writer<'r> {
    rng: &'r mut Rng,
    clients: [Client; CLIENTS],
    writes: bool,
    /// Some statements run in SQL.
    sql: bool,
}

pub(super) fn program(rng: &mut Rng, pool: Pool) -> Program {
    let (count, steps) = (2 + rng.below(3), super::steps(6 + rng.below(20)));
    // With more than one backend there are transactions at once: they must not wait for each other.
    let apart = pool == Pool::Three && rng.one_in(2);
    let sql = rng.one_in(4);
    let mut writer = Writer { rng, clients: Default::default(), writes: !apart, sql };
    let mut client = 0;
    let steps = (0..steps)
        .map(|_| {
            if writer.rng.one_in(2) {
                client = writer.rng.below(count);
            }
            let evict = writer.rng.one_in(6);
            let ops = writer.ops(client);
            Step { client, ops: spare_the_server(ops), evict }
        })
        .collect();
    Program { steps, apart, ..Program::of(pool) }
}

impl Writer<'_> {
    fn ops(&mut self, client: usize) -> Vec<Op> {
        match self.rng.below(20) {
            0 | 1 => return vec![query(&self.rng.sql(plain::TRANSACTION))],
            2 => return vec![self.plain()],
            3 => return vec![self.forgets(client)],
            4 if self.sql => return vec![self.sql(client)],
            5 if self.writes => return self.copy(),
            6 => return plain::portal(self.rng),
            _ => {}
        }
        let mut ops = Vec::new();
        for _ in 0..1 + self.rng.below(4) {
            ops.extend(self.piece(client));
            match self.rng.below(8) {
                0 | 1 => ops.push(sync()),
                2 => ops.push(flush()),
                _ => {}
            }
        }
        ops.push(match self.rng.below(10) {
            0 => flush(),
            1 => self.plain(),
            2 => plain::function(self.rng),
            _ => sync(),
        });
        ops
    }

    /// One statement's worth of messages, or a part of it.
    fn piece(&mut self, client: usize) -> Vec<Op> {
        let name = self.name();
        match self.rng.below(12) {
            0..=4 => {
                let mut ops = vec![self.parse(client, &name)];
                if self.rng.one_in(4) {
                    ops.push(describe_statement(&name));
                }
                ops.extend(self.run(client, &name));
                ops
            }
            5..=7 => self.run(client, &name),
            8 => vec![self.parse(client, &name)],
            9 => vec![describe_statement(&name)],
            10 => {
                self.clients[client].known.remove(&name);
                vec![close_statement(&name)]
            }
            _ => {
                // Closed and prepared anew in one breath.
                self.clients[client].known.remove(&name);
                let mut ops = vec![close_statement(&name), self.parse(client, &name)];
                ops.extend(self.run(client, &name));
                ops
            }
        }
    }

    fn name(&mut self) -> String {
        match self.rng.below(16) {
            0..=3 => String::new(),
            4 => self.rng.pick(&LONG).to_owned(),
            _ => self.rng.pick(&["a", "b", "c"]).to_owned(),
        }
    }

    fn parse(&mut self, client: usize, name: &str) -> Op {
        let from = if self.writes && self.rng.one_in(3) { WRITES } else { READS };
        let sql = self.rng.pick(from);
        let known = &mut self.clients[client].known;
        if name.is_empty() || !known.contains_key(name) {
            known.insert(name.to_owned(), sql);
        }
        let types: Vec<u32> = match self.rng.below(3) {
            0 => sql.1.iter().map(|_| self.rng.pick(TYPES)).collect(),
            _ => Vec::new(),
        };
        let mut text = sql.0.to_owned();
        if self.rng.one_in(6) && !text.is_empty() {
            let id = self.rng.next();
            text = match self.rng.below(3) {
                0 => format!("{text} /*traceparent='00-{id:032x}-{id:016x}-01'*/"),
                1 => format!("{text} /*request_id='{id}'*/"),
                _ => format!("{text} /*action='look',route='%2F{id}'*/"),
            };
        }
        let parse = parse_typed(name, &text, &types);
        portal_sets(&text, parse)
    }

    /// Bind and Execute, with Describe here and there, by an unnamed or a named portal.
    fn run(&mut self, client: usize, name: &str) -> Vec<Op> {
        let portal = if self.rng.one_in(4) { "p" } else { "" };
        let mut ops = vec![self.bind(client, portal, name)];
        if self.rng.one_in(3) {
            ops.push(describe_portal(portal));
        }
        if self.rng.one_in(5) {
            for _ in 0..1 + self.rng.below(3) {
                ops.push(execute(portal, 1 + u32::try_from(self.rng.below(3)).expect("small")));
                if self.rng.one_in(4) {
                    ops.push(sync());
                }
            }
        } else if !self.rng.one_in(12) {
            ops.push(execute(portal, 0));
        }
        if !portal.is_empty() && self.rng.one_in(2) {
            ops.push(close_portal(portal));
        }
        ops
    }

    fn bind(&mut self, client: usize, portal: &str, name: &str) -> Op {
        let known = self.clients[client].known.get(name).map_or(&[][..], |sql| sql.1);
        let parameters = if self.rng.one_in(12) { &[Number][..] } else { known };
        if parameters.is_empty() && !self.rng.one_in(8) {
            return bind(portal, name);
        }
        let values: Vec<(bool, Option<Vec<u8>>)> = parameters.iter().map(|kind| self.value(*kind)).collect();
        let binary = self.rng.one_in(6);
        let shown: Vec<String> = values
            .iter()
            .map(|(binary, value)| match value {
                None => "null".to_owned(),
                Some(value) => format!("{}{}", if *binary { "binary " } else { "" }, value.escape_ascii()),
            })
            .collect();
        let shown =
            format!("B({portal},{name},[{}]{})", shown.join("; "), if binary { ",binary" } else { "" });
        op(shown, msg::bind_formats(portal, name, &values, binary))
    }

    fn value(&mut self, kind: Kind) -> (bool, Option<Vec<u8>>) {
        let number = self.rng.below(9);
        let text = match self.rng.below(10) {
            0 => return (false, None),
            1 => b"x".to_vec(),
            2 => "na\u{ef}ve \u{2603}".as_bytes().to_vec(),
            _ => number.to_string().into_bytes(),
        };
        match kind {
            Number if self.rng.one_in(3) => {
                let number = i32::try_from(number).expect("small");
                (true, Some(number.to_be_bytes().to_vec()))
            }
            // Of four bytes or eight, it may fit the type or not.
            Any if self.rng.one_in(4) => (true, Some((number as u64).to_be_bytes().to_vec())),
            Text if self.rng.one_in(3) => (true, Some(text)),
            Number | Any | Text => (false, Some(text)),
        }
    }

    fn plain(&mut self) -> Op {
        if self.writes {
            plain::simple(self.rng)
        } else {
            let sql =
                self.rng.pick(&["select 1", "select # / 0", "select place from pick", "select 1; select 2"]);
            query(&sql.replace('#', "1"))
        }
    }

    /// Some way to lose prepared statements.
    fn forgets(&mut self, client: usize) -> Op {
        if self.rng.one_in(2) {
            let name = self.rng.pick(&["a", "b", "c"]);
            self.clients[client].known.remove(name);
            return query(&format!("deallocate {name}"));
        }
        let sql = self.rng.pick(FORGETS);
        if matches!(sql, "deallocate all" | "discard all") {
            self.clients[client].known.clear();
        }
        query(sql)
    }

    fn sql(&mut self, _client: usize) -> Op {
        let from = if SQL_SEES_NAMES && self.rng.one_in(3) { CROSSINGS } else { PREPARES };
        let sql = self.rng.sql(from);
        kept(query(&sql))
    }

    /// COPY from a named statement, or as anyone does it.
    fn copy(&mut self) -> Vec<Op> {
        if self.rng.one_in(2) {
            return plain::copy_extended(self.rng);
        }
        let id = 100 + self.rng.below(900);
        vec![
            parse("copy", plain::COPY_IN),
            bind("", "copy"),
            execute("", 0),
            op(format!("d({id})"), msg::copy_data(&format!("{id}\tcopied\n"))),
            op("c", msg::copy_done()),
            sync(),
        ]
    }
}
