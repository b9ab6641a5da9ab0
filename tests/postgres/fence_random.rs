//! Two hundred tenants at random, with faults: no foreign row, no missing row, no lost write
//! (budgets.md §9, E9).
//!
//! Each client works for one tenant after the other, in every way a driver has, while statements are
//! cancelled, backends killed and connections dropped. `BURSAR_TEST_FENCE_OPS` is the number of operations
//! of each configuration, `BURSAR_TEST_SEED` the seed. To look at ten million:
//! `BURSAR_TEST_FENCE_OPS=2500000 cargo test --release --test postgres fence_random`.

use crate::support::dice::{Dice, enter, harass, number};
use crate::support::watch::metric;
use crate::support::{Config, Db, Login, Proxy, Reply, Wire, msg};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const TENANTS: u64 = 200;
const CLIENTS: u64 = 6;
const BACKENDS: usize = 4;

const SETUP: &[&str] = &[
    "create table docs (tenant text not null, id int)",
    "create index on docs (tenant)",
    "insert into docs select 't' || n, id from generate_series(0, 199) n, generate_series(1, 3) id",
    "create table written (tenant text not null, client int)",
    "alter table docs enable row level security",
    "alter table docs force row level security",
    "alter table written enable row level security",
    "alter table written force row level security",
    "create policy own on docs using (tenant = current_setting('app.tenant_id', true))",
    "create policy own on written using (tenant = current_setting('app.tenant_id', true))",
    "create function secretly(who text) returns text language sql as \
     $$ select set_config('app.' || 'tenant_id', who, false) $$",
];

const LOOK: &str = "select coalesce(string_agg(distinct tenant, ','), 'none') || ':' || count(*) from docs";

struct Client {
    number: u64,
    addr: SocketAddr,
    login: Login,
    wire: Wire,
    tenant: Option<u64>,
    dice: Dice,
    /// Functions that change the context unseen are part of it.
    hidden: bool,
    looked: u64,
    failed: u64,
    /// What came last, for a failure.
    history: Vec<String>,
    /// Rows that were acknowledged, and those of which nobody knows.
    written: HashMap<u64, (u64, u64)>,
}

/// A Query is refused behind whose COMMIT or ROLLBACK it would see what a function has left.
fn is_foreign(reply: &Reply) -> bool {
    let message = reply.error().and_then(|error| error.field(b'M'));
    message.as_deref() == Some("bursar: a backend has state of another session")
}

impl Client {
    fn expected(&self) -> String {
        self.tenant.map_or("none:0".to_owned(), |tenant| format!("t{tenant}:3"))
    }

    /// A reply that is an error is one of the faults' making. Returns whether it is none.
    fn settle(&mut self, reply: &Reply) -> bool {
        let code = reply.code();
        let known = [
            "", "57014", "57P01", "08006", "08007", "25P01", "25P02", "22012", "3B001", "34000", "53300",
            "40001",
        ];
        // A cancel may hit the segment that sets the context: that closes.
        let unfenced = code == "42501" && (reply.closed || self.hidden && is_foreign(reply));
        assert!(unfenced || known.contains(&code.as_str()), "client {}: {reply:?}", self.number);
        self.history.push(format!("{} {reply:?}", self.expected()));
        if reply.closed {
            self.wire = enter(self.addr, &self.login);
            self.tenant = None;
        }
        self.failed += u64::from(!code.is_empty());
        code.is_empty() && !reply.closed
    }

    fn ask(&mut self, bytes: &[u8]) -> Reply {
        if self.wire.try_send(bytes).is_err() {
            return Reply { messages: Vec::new(), closed: true };
        }
        self.wire.recv_reply()
    }

    fn query(&mut self, sql: &str) -> bool {
        let reply = self.ask(&msg::query(sql));
        self.settle(&reply)
    }

    fn check(&mut self, reply: &Reply) -> bool {
        let (expected, number) = (self.expected(), self.number);
        if reply.error().is_none() && !reply.closed {
            let last = &self.history[self.history.len().saturating_sub(12)..];
            assert_eq!(reply.value(), expected, "client {number} after {} looks: {last:#?}", self.looked);
            self.looked += 1;
        }
        self.settle(reply)
    }

    fn look(&mut self) -> bool {
        let bytes = match self.dice.roll(3) {
            0 => msg::query(LOOK),
            1 => [msg::unnamed(LOOK), msg::sync()].concat(),
            _ => [
                // Where the last one was cancelled, its statement is still there.
                msg::close_statement("look"),
                msg::parse("look", LOOK),
                msg::bind("", "look"),
                msg::execute("", 0),
                msg::sync(),
            ]
            .concat(),
        };
        let reply = self.ask(&bytes);
        self.check(&reply)
    }

    fn change_tenant(&mut self) {
        let tenant = (self.dice.roll(8) > 0).then(|| self.dice.roll(TENANTS));
        let name = tenant.map(|tenant| format!("t{tenant}")).unwrap_or_default();
        if self.query(&format!("set bursar.tenant = '{name}'")) {
            self.tenant = tenant;
        }
    }

    /// Looks and changes of tenant in one write.
    fn pipeline(&mut self) {
        let tenants: Vec<u64> = (0..4).map(|_| self.dice.roll(TENANTS)).collect();
        let bytes: Vec<u8> = tenants
            .iter()
            .flat_map(|t| [msg::query(&format!("set bursar.tenant = 't{t}'")), msg::query(LOOK)].concat())
            .collect();
        if self.wire.try_send(&bytes).is_err() {
            self.settle(&Reply { messages: Vec::new(), closed: true });
            return;
        }
        for tenant in tenants {
            let reply = self.wire.recv_reply();
            if !self.settle(&reply) {
                if reply.closed {
                    return;
                }
                continue;
            }
            self.tenant = Some(tenant);
            let reply = self.wire.recv_reply();
            self.check(&reply);
            if reply.closed {
                return;
            }
        }
    }

    fn write(&mut self) {
        let Some(tenant) = self.tenant else { return };
        let (number, inserted) =
            (self.number, format!("insert into written values ('t{tenant}', {})", self.number));
        let reply = self.ask(&msg::query(&inserted));
        let acknowledged = reply.error().is_none() && !reply.closed;
        let known = self.written.entry(tenant).or_default();
        known.0 += u64::from(acknowledged);
        known.1 += u64::from(!acknowledged);
        let reply = if self.settle(&reply) {
            // Another tenant's row is not its to write.
            let foreign = (tenant + 1) % TENANTS;
            self.ask(&msg::query(&format!("insert into written values ('t{foreign}', {number})")))
        } else {
            return;
        };
        if reply.code() == "42501" && !reply.closed {
            return;
        }
        assert!(reply.error().is_some() || reply.closed, "a foreign row was written: {reply:?}");
        self.settle(&reply);
    }

    /// A statement of the extended protocol, unnamed or named.
    fn extended(&mut self, sql: &str) -> Vec<u8> {
        if self.dice.roll(2) == 0 {
            return msg::unnamed(sql);
        }
        let (close, parse) = (msg::close_statement("other"), msg::parse("other", sql));
        [close, parse, msg::bind("p", "other"), msg::execute("p", 0), msg::close_portal("p")].concat()
    }

    /// Executes these in one pipeline, the last of them a look.
    fn look_behind(&mut self, statements: &[&str]) -> bool {
        let mut bytes: Vec<u8> = statements.iter().flat_map(|sql| self.extended(sql)).collect();
        bytes.extend([msg::unnamed(LOOK), msg::sync()].concat());
        let reply = self.ask(&bytes);
        self.check(&reply)
    }

    /// A Query of several statements, the last of them a look.
    fn query_look(&mut self, before: &str) -> bool {
        let reply = self.ask(&msg::query(&format!("{before}; {LOOK}")));
        self.check(&reply)
    }

    fn begin(&mut self) -> bool {
        let modes = ["", " isolation level repeatable read", " read only", " isolation level read committed"];
        let begin = format!("begin{}", modes[self.dice.roll(4) as usize]);
        match self.dice.roll(6) {
            0..=2 => self.query(&begin),
            3 => {
                let bytes = [self.extended(&begin), msg::sync()].concat();
                let reply = self.ask(&bytes);
                self.settle(&reply)
            }
            4 => self.look_behind(&[&begin]),
            _ => self.query_look(&begin),
        }
    }

    fn transaction(&mut self) {
        if !self.begin() {
            // Refused, or cancelled, and yet begun.
            let reply = self.ask(&msg::query("rollback"));
            self.settle(&reply);
            return;
        }
        for _ in 0..1 + self.dice.roll(4) {
            let went = match self.dice.roll(16) {
                0 => self.query("reset all"),
                1 => self.query("savepoint s") && !self.query("select 1/0") && self.query("rollback to s"),
                2 => self.query("commit and chain"),
                3 => self.query("rollback and chain"),
                4 => self.query_look("commit; begin"),
                5 => self.query("select 1; rollback; begin; select 2"),
                6 => self.look_behind(&["commit and chain"]),
                7 => self.look_behind(&["rollback and chain"]),
                8 => self.look_behind(&["commit", "begin"]),
                9 => self.query("set local work_mem = '5MB'"),
                _ => self.look(),
            };
            if !went {
                break;
            }
        }
        match self.dice.roll(12) {
            0 => drop(self.query_look("commit")),
            1 => drop(self.look_behind(&["rollback"])),
            2 => drop(self.look_behind(&["commit"])),
            _ => {}
        }
        if self.dice.roll(10) == 0 {
            self.wire.reset_when_dropped();
            self.settle(&Reply { messages: Vec::new(), closed: true });
            return;
        }
        let end = ["commit", "rollback"][self.dice.roll(2) as usize];
        let mut reply = self.ask(&msg::query(end));
        // A cancel may hit the end of a transaction too.
        while !reply.closed && !reply.trace().ends_with("Z(I)") {
            reply = self.ask(&msg::query("rollback"));
        }
        self.settle(&reply);
    }

    fn step(&mut self) {
        match self.dice.roll(20) {
            0..=3 => self.change_tenant(),
            4..=9 => drop(self.look()),
            10..=12 => self.transaction(),
            13 => self.write(),
            14 => self.pipeline(),
            15 => {
                let all = ["reset all", "discard all", "deallocate all"][self.dice.roll(3) as usize];
                if self.query(all) && all != "deallocate all" {
                    self.tenant = None;
                }
            }
            16 if self.hidden => {
                let other = self.dice.roll(TENANTS);
                self.query(&format!("select secretly('t{other}')"));
            }
            17 => {
                if self.wire.try_send(&msg::query(LOOK)).is_ok() {
                    self.wire.cancel();
                    let reply = self.wire.recv_reply();
                    self.check(&reply);
                }
            }
            18 => drop(self.query("set work_mem = '5MB'")),
            _ => drop(self.look()),
        }
    }
}

fn run(config: Config, hidden: bool, seed: u64) {
    let db = Db::new();
    db.run(SETUP);
    let config =
        config.with("tenant_context", "key = \"app.tenant_id\"").with("pool", "reuse = \"round_robin\"");
    let proxy = Proxy::start(&db, config.with("pool", "max_wait = \"20s\""));
    let ops = number("BURSAR_TEST_FENCE_OPS", 1_500);
    let (left, over) = (AtomicU64::new(ops), AtomicBool::new(false));
    let clients: Vec<Client> = std::thread::scope(|scope| {
        let (left, over, db_name) = (&left, &over, db.name());
        let killer = scope.spawn(move || harass(db_name, seed, 4, Duration::from_millis(10), over));
        let workers: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (addr, login) = (proxy.addr(), proxy.as_app());
                scope.spawn(move || {
                    let wire = enter(addr, &login);
                    let dice = Dice::new(seed.wrapping_mul(31).wrapping_add(number));
                    let written = HashMap::new();
                    let (looked, failed, tenant, history) = (0, 0, None, Vec::new());
                    let mut client = Client {
                        number,
                        addr,
                        login,
                        wire,
                        tenant,
                        dice,
                        hidden,
                        looked,
                        failed,
                        history,
                        written,
                    };
                    while left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                        .is_ok()
                    {
                        client.step();
                    }
                    client
                })
            })
            .collect();
        let done = workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>();
        over.store(true, Ordering::Relaxed);
        killer.join().expect("the killer");
        done.into_iter()
            .map(|client| client.unwrap_or_else(|_| panic!("a client failed; seed {seed}")))
            .collect()
    });
    let looked: u64 = clients.iter().map(|client| client.looked).sum();
    let failed: u64 = clients.iter().map(|client| client.failed).sum();
    assert!(looked > ops / 4 && failed > 0, "{looked} looks and {failed} failures of {ops} operations");
    for client in clients {
        for (tenant, (known, unknown)) in client.written {
            let count = format!(
                "select count(*) from written where tenant = 't{tenant}' and client = {}",
                client.number
            );
            let count: u64 = db.value(&count).parse().expect("a count");
            assert!(
                (known..=known + unknown).contains(&count),
                "tenant {tenant}: {count} rows, {known} known"
            );
        }
    }
    assert_eq!(metric(&proxy, "bursar_panics_total"), 0.0);
    proxy.stop();
}

#[test]
fn no_foreign_row_and_no_missing_row() {
    let seed = number("BURSAR_TEST_SEED", 1);
    let pool =
        |policy: &str| Config::of_size(BACKENDS).with("tenant_context", &format!("policy = \"{policy}\""));
    run(pool("strict").lazy(), true, seed);
    run(pool("strict"), true, seed + 1);
    run(pool("trusted").lazy(), false, seed + 2);
    let session = pool("strict").with("pool", "mode = \"session\"");
    run(session.with("pool", &format!("size = {}", CLIENTS + 2)), true, seed + 3);
}
