//! Random programs of three clients, step by step on PostgreSQL itself and through the proxy, where every
//! transaction that may be parked is parked after every step and goes on at another backend: what comes
//! back is the same (budgets.md §9, E18).
//!
//! Left out is what is documented to differ: `now()` and its like, the backend's process id, its virtual
//! transaction id, what sequences remember of a session (`currval`), and whether a setting of one's own
//! that is not set is NULL or empty, which differs wherever backends are shared. Blocking is left out too:
//! a client writes its own rows only.
//!
//! `BURSAR_TEST_PROGRAMS` is the number of programs, `BURSAR_TEST_SEED` the first one's seed. For ten
//! million statements: `BURSAR_TEST_PROGRAMS=500000 cargo test --release --test postgres parking_random`.

use crate::support::dice::{Dice, number};
use crate::support::watch::series;
use crate::support::{Config, Db, Login, Proxy, Reply, Wire, msg, until};
use std::net::SocketAddr;

const CLIENTS: u64 = 3;

const SETUP: &[&str] = &[
    "create table t (id serial primary key, client int, n int)",
    "create sequence s",
    "create table docs (tenant text, body text)",
    "insert into docs values ('a', 'one'), ('a', 'two'), ('b', 'three')",
    "alter table docs enable row level security",
    "alter table docs force row level security",
    "create policy own on docs using (tenant = current_setting('app.tenant', true))",
    "create function writes(who int) returns int language sql as \
     'insert into t (client, n) values (who, 100) returning n'",
    "create function quietly(who int) returns int language plpgsql as \
     $$ begin perform set_config('app.tenant', 'b', true); return who; end $$",
    "create function counts() returns bigint language sql stable as 'select count(*) from t'",
    "create view plain as select id, n from t where n < 100",
    "create view sneaky as select writes(0) as n",
    "create view nested as select n from sneaky",
];

/// What only reads. `#` stands for a small number, `@` for the client's own.
const READS: &[&str] = &[
    "select id, n from t where client = @ order by id",
    "select count(*), sum(n) from t",
    "select * from plain order by id",
    "with x as (select n from t) select count(*) from x",
    "values (1), (#)",
    "table docs",
    "select tenant, body from docs order by 2",
    "select coalesce(current_setting('app.tenant', true), '')",
    "select coalesce(current_setting('app.n', true), '')",
    "show transaction_isolation",
    "show transaction_read_only",
    "show work_mem",
    "select counts(), lower('A'), random() < 2",
    "select g, # from generate_series(1, 40) g",
    "select 1; select count(*) from t",
    "select pg_is_in_recovery(), clock_timestamp() is null",
];

/// What a transaction sets for itself; twice is not the same as once.
const CONTEXT: &[&str] = &[
    "select set_config('app.tenant', 'a', true)",
    "select set_config('app.tenant', 'b', true)",
    "set local app.tenant = 'a'",
    "set local work_mem = '#MB'",
    "set local app.odd = 'it''s \\ \u{fc}'; select current_setting('app.odd')",
    "select set_config('app.n', (coalesce(nullif(current_setting('app.n', true), ''), '0')::int + 1)::text, true)",
];

/// What keeps its backend, one way or the other.
const MORE: &[&str] = &[
    "insert into t (client, n) values (@, #) returning id, n",
    "update t set n = n + 1 where client = @",
    "delete from t where client = @ and n = #",
    "update t set n = 0 where client = -1",
    "with x as (insert into t (client, n) values (@, #) returning n) select n from x",
    "select n from t where client = @ order by id for update",
    "select nextval('s')",
    "select writes(@)",
    "select quietly(@), current_setting('app.tenant', true)",
    "select n from sneaky",
    "select n from nested",
    "select pg_try_advisory_xact_lock(@)",
    "lock table t in access share mode",
    "notify news",
    "savepoint a",
    "rollback to a",
    "release a",
    "declare c cursor for select id from t order by id",
    "fetch 2 from c",
    "set transaction read only",
    "set transaction isolation level repeatable read",
    "select # / 0",
    "select no_such_column",
    "selec",
];

const TRANSACTION: &[&str] = &[
    "begin",
    "begin",
    "begin",
    "begin read only",
    "start transaction isolation level read committed",
    "begin isolation level repeatable read",
    "commit",
    "commit",
    "rollback",
    "commit and chain",
];

/// What one client sends in one write, and how many replies that has.
fn step(dice: &mut Dice, client: u64, named: &mut Vec<String>) -> (String, Vec<u8>, usize) {
    let from = match dice.roll(16) {
        0 | 1 => TRANSACTION,
        2 | 3 => CONTEXT,
        4 => MORE,
        _ => READS,
    };
    let sql = dice.pick(from).replace('#', &dice.roll(4).to_string()).replace('@', &client.to_string());
    let alone = !sql.contains(';');
    match dice.roll(6) {
        0 if alone => (format!("unnamed {sql}"), [msg::unnamed(&sql), msg::sync()].concat(), 1),
        1 if alone => {
            let parts = [
                msg::parse("", &sql),
                msg::sync(),
                msg::bind("", ""),
                msg::describe_portal(""),
                msg::execute("", 0),
                msg::sync(),
            ];
            (format!("in two {sql}"), parts.concat(), 2)
        }
        // By the same name again and again, each time on whatever backend that is.
        2 if alone => {
            let known = named.iter().position(|known| *known == sql);
            let at = known.unwrap_or(named.len());
            let name = format!("s{at}");
            let mut bytes = Vec::new();
            if known.is_none() {
                named.push(sql.clone());
            }
            bytes.extend(msg::close_statement(&name));
            bytes.extend(msg::parse(&name, &sql));
            bytes.extend([msg::bind("", &name), msg::execute("", 0), msg::sync()].concat());
            (format!("named {sql}"), bytes, 1)
        }
        3 if alone && dice.roll(3) == 0 => {
            let parts = [msg::parse("", &sql), msg::bind("p", ""), msg::execute("p", 1), msg::sync()];
            (format!("portal {sql}"), parts.concat(), 1)
        }
        _ => (sql.clone(), msg::query(&sql), 1),
    }
}

/// All that a client could tell from one to another.
fn shown(replies: &[Reply]) -> String {
    let one = |reply: &Reply| {
        let error = reply.error().and_then(|error| error.field(b'M'));
        format!("{} {:?} {:?}", reply.trace(), reply.rows(), error)
    };
    replies.iter().map(one).collect::<Vec<_>>().join(" | ")
}

fn ask(wire: &mut Wire, bytes: &[u8], replies: usize) -> String {
    wire.send(bytes);
    shown(&(0..replies).map(|_| wire.recv_reply()).collect::<Vec<_>>())
}

fn parked(proxy: &Proxy) -> f64 {
    let all = series(proxy);
    let of = |name: &&String| name.starts_with("bursar_parks_total") && name.ends_with("result=\"resumed\"}");
    all.keys().filter(of).map(|name| all[name]).sum()
}

struct Bench<'d> {
    direct: &'d Db<'static>,
    through: &'d Db<'static>,
    proxy: &'d Proxy,
    console: Wire,
}

impl Bench<'_> {
    /// Runs the program of a seed; the first difference, with all that led to it.
    fn run(&mut self, seed: u64) -> Result<(), String> {
        let mut dice = Dice::new(seed);
        for db in [self.direct, self.through] {
            db.run(&["truncate t restart identity", "select setval('s', 1)"]);
        }
        let enter = |addr: SocketAddr, db: &Db<'_>| Wire::login(addr, &Login::new("app", db.name()));
        let mut clients: Vec<(Wire, Wire, Vec<String>)> = (0..CLIENTS)
            .map(|_| {
                let direct = enter(self.direct.cluster().addr(), self.direct);
                (direct, enter(self.proxy.addr(), self.through), Vec::new())
            })
            .collect();
        let mut history = Vec::new();
        for _ in 0..15 + dice.roll(20) {
            let client = dice.roll(CLIENTS);
            let (direct, through, named) = &mut clients[client as usize];
            let (text, bytes, replies) = step(&mut dice, client, named);
            let expected = ask(direct, &bytes, replies);
            let found = ask(through, &bytes, replies);
            history.push(format!("{client}: {text} → {expected}"));
            if found != expected {
                return Err(format!("seed {seed}: {}\nbut {found}", history.join("\n")));
            }
            let console = &mut self.console;
            until("whoever may be parked is", || {
                console.query("select id from bursar.leases where parkable = 't'").rows().is_empty()
            });
        }
        for (direct, through, _) in clients {
            direct.bye();
            through.bye();
        }
        let console = &mut self.console;
        until("all is given back", || console.query("show leases").rows().is_empty());
        Ok(())
    }
}

#[test]
fn who_is_parked_all_the_time_sees_what_postgresql_shows() {
    let (direct, through) = (Db::new(), Db::new());
    direct.run(SETUP);
    through.run(SETUP);
    let config = Config::of_size(CLIENTS as usize)
        .lazy()
        .with("pool", "reuse = \"round_robin\"")
        .with("parking", "mode = \"enforce\"")
        .with("parking", "min_gap = \"0ms\"")
        .with("parking", "only_under_pressure = false");
    let proxy = Proxy::start(&through, config);
    let mut bench = Bench { direct: &direct, through: &through, proxy: &proxy, console: proxy.console() };
    let (programs, seed) = (number("BURSAR_TEST_PROGRAMS", 12), number("BURSAR_TEST_SEED", 1));
    let differences: Vec<String> = (seed..seed + programs).filter_map(|seed| bench.run(seed).err()).collect();
    assert!(
        differences.is_empty(),
        "{} of {programs} programs differ:\n{}",
        differences.len(),
        differences.join("\n\n")
    );
    let resumed = parked(&proxy);
    assert!(resumed >= programs as f64 / 4.0, "{resumed} transactions went on in {programs} programs");
    println!("{programs} programs, {resumed} parked transactions went on");
    proxy.stop();
}
