//! A client that works for one tenant after the other, in every way a driver has, many operations a write;
//! and that sends cancels, and leaves in the middle of things.

use super::link::Link;
use super::model::{Expect, Item, Model, TENANTS, Tally, Written};
use super::msg;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const OWN: &str = "select tenant, id from docs";
/// A login is tried again for so long: its backend may have been ended.
const LOGIN: Duration = Duration::from_secs(60);

/// What a load consists of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Bursar's tags, pipelines, named statements and comments; else SET of the setting itself, and one
    /// statement after the other.
    pub(super) tags: bool,
    /// Sometimes there is no tenant.
    pub(super) nobody: bool,
    /// Functions that change the context unseen.
    pub(super) hidden: bool,
    /// Cancels, and connections that are dropped.
    pub(super) faults: bool,
    /// Tenants, from 0 on.
    pub(super) tenants: u32,
}

/// What the clients of a load share.
#[derive(Default)]
pub(super) struct Shared {
    /// Operations so far.
    pub(super) compared: AtomicU64,
    /// Cancel requests sent.
    pub(super) cancels: AtomicU64,
    /// Connections dropped.
    pub(super) drops: AtomicU64,
    owners: AtomicU32,
}

/// One client; its connection is another one after a fault.
pub(super) struct Client<'a> {
    port: u16,
    manner: Manner,
    shared: &'a Shared,
    random: StdRng,
    link: Link,
    model: Model,
    bytes: Vec<u8>,
    items: VecDeque<Item>,
    tally: Tally,
    written: Written,
}

impl<'a> Client<'a> {
    /// Logs in.
    pub(super) fn new(
        port: u16,
        manner: Manner,
        shared: &'a Shared,
        random: StdRng,
    ) -> io::Result<Client<'a>> {
        let (link, model) = enter(port, manner, shared)?;
        let (bytes, items) = (Vec::new(), VecDeque::new());
        let (tally, written) = (Tally::default(), Vec::new());
        Ok(Client { port, manner, shared, random, link, model, bytes, items, tally, written })
    }

    /// Works until so many operations are done by all.
    pub(super) fn work(mut self, operations: u64) -> io::Result<(Tally, Written)> {
        let mut told = 0;
        while self.shared.compared.load(Ordering::Relaxed) < operations {
            self.step()?;
            self.shared.compared.fetch_add(self.tally.compared - told, Ordering::Relaxed);
            told = self.tally.compared;
        }
        let owner = self.model.owner;
        self.written.push((owner, self.model.close(&self.items, &mut self.tally)));
        Ok((self.tally, self.written))
    }

    fn roll(&mut self, sides: u32) -> u32 {
        self.random.random_range(0..sides)
    }

    fn step(&mut self) -> io::Result<()> {
        if self.model.open {
            self.end(false);
            return self.exchange();
        }
        if !self.manner.tags {
            return self.plainly();
        }
        if self.model.tenant.is_none() && !self.manner.nobody {
            self.change_tenant();
        }
        if !self.model.named && self.roll(4) == 0 {
            self.name_statements();
        }
        match self.roll(100) {
            0..=44 => self.burst(),
            45..=59 => self.group(),
            60..=74 => {
                let commit = self.roll(4) > 0;
                self.transaction(commit);
            }
            75..=84 => return self.transaction_in_steps(),
            85..=88 => self.reset(),
            89..=91 if self.manner.hidden => {
                let other = self.roll(TENANTS);
                self.simple(&format!("select secretly('t{other}')"), Expect::Done, None);
            }
            92..=96 => self.comments(),
            97.. => self.strangers(),
            _ => self.burst(),
        }
        self.exchange()
    }

    /// The tenant, and then what it is for, each alone.
    fn plainly(&mut self) -> io::Result<()> {
        if self.roll(4) == 0 {
            return self.transaction_in_steps();
        }
        self.change_tenant();
        self.exchange()?;
        for _ in 0..1 + self.roll(4) {
            self.operation();
            self.exchange()?;
        }
        Ok(())
    }

    /// Changes of tenant and single statements, in one write.
    fn burst(&mut self) {
        for _ in 0..1 + self.roll(16) {
            if self.roll(4) == 0 {
                self.change_tenant();
            }
            self.operation();
        }
    }

    /// Several statements up to one Sync.
    fn group(&mut self) {
        self.change_tenant();
        for _ in 0..2 + self.roll(8) {
            self.extended();
        }
        self.sync();
    }

    /// A transaction in one write.
    fn transaction(&mut self, commit: bool) {
        if self.roll(2) == 0 {
            self.change_tenant();
        }
        self.begin();
        for _ in 0..self.roll(6) {
            self.operation();
        }
        if self.roll(3) == 0 {
            self.simple("select 1/0", Expect::Fails, None);
            self.simple("rollback to s", Expect::Back, None);
            self.operation();
        }
        self.end(commit);
    }

    fn begin(&mut self) {
        let how = ["begin", "begin isolation level repeatable read", "start transaction"];
        let how = how[self.roll(3) as usize];
        self.either(how, Expect::Done);
        match self.roll(4) {
            0 => self.look(),
            1 => {
                self.extended();
                self.sync();
            }
            _ => {}
        }
        self.simple("savepoint s", Expect::Done, None);
    }

    fn end(&mut self, commit: bool) {
        let verb = if commit { "commit" } else { "rollback" };
        if self.roll(8) == 0 {
            self.either(&format!("{verb} and chain"), Expect::Ended);
            self.look();
        }
        if self.roll(8) == 0 {
            // What it executes behind the end, a pipeline executes in another transaction.
            self.bytes.extend(msg::unnamed(verb));
            self.items.push_back(Item::Statement(Expect::Ended, None));
            self.extended();
            self.sync();
        } else {
            self.either(verb, Expect::Done);
        }
    }

    /// A statement in one of the two protocols.
    fn either(&mut self, sql: &str, expect: Expect) {
        if self.roll(3) > 0 {
            return self.simple(sql, expect, None);
        }
        self.bytes.extend(msg::unnamed(sql));
        self.items.push_back(Item::Statement(expect, None));
        self.sync();
    }

    /// Statement by statement, with pauses: others get the backend in between, where it is parked.
    fn transaction_in_steps(&mut self) -> io::Result<()> {
        self.change_tenant();
        let isolation = ["begin", "begin read only"];
        let read_only = self.roll(2) as usize;
        self.simple(isolation[read_only], Expect::Done, None);
        self.exchange()?;
        for _ in 0..1 + self.roll(6) {
            if read_only == 1 || self.roll(2) == 0 {
                self.look();
            } else {
                self.operation();
            }
            self.exchange()?;
            if self.roll(4) == 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        let commit = read_only == 1 || self.roll(4) > 0;
        self.end(commit);
        self.exchange()
    }

    fn change_tenant(&mut self) {
        let tenant = (!self.manner.nobody || self.roll(10) > 0).then(|| self.roll(self.manner.tenants));
        let name = tenant.map(|tenant| format!("t{tenant}")).unwrap_or_default();
        let setting = if self.manner.tags { "bursar.tenant" } else { "app.tenant_id" };
        self.simple(&format!("set {setting} = '{name}'"), Expect::Tenant(tenant), None);
    }

    /// What `model.tenant` will be when what is outstanding has been answered.
    fn tenant_then(&self) -> Option<u32> {
        let set = self.items.iter().rev().find_map(|item| match item {
            Item::Statement(Expect::Tenant(tenant), _) => Some(*tenant),
            _ => None,
        });
        set.unwrap_or(self.model.tenant)
    }

    /// One statement, up to its ReadyForQuery.
    fn operation(&mut self) {
        match self.roll(12) {
            0..=2 => {
                self.extended();
                self.sync();
            }
            3..=5 if self.model.named => {
                self.prepared();
                self.sync();
            }
            6 => self.simple("copy (select tenant, id from docs) to stdout", Expect::Own, None),
            7 => self.write(),
            8 => {
                let update = format!("update written set n = n + 1 where client = {}", self.model.owner);
                self.simple(&update, Expect::Updated, None);
            }
            _ => self.look(),
        }
    }

    fn look(&mut self) {
        let (sql, expect) = self.question();
        self.simple(&sql, expect, None);
    }

    fn question(&mut self) -> (String, Expect) {
        let id = self.some_id();
        match self.roll(5) {
            0 => (
                format!("select tenant, n from written where client = {}", self.model.owner),
                Expect::Written,
            ),
            1 | 2 => (format!("{OWN} where id = {id}"), Expect::One(id)),
            _ => (OWN.to_owned(), Expect::Own),
        }
    }

    /// A row of the tenant's, or of anybody's.
    fn some_id(&mut self) -> u32 {
        let tenant = self.tenant_then().filter(|_| self.roll(2) == 0);
        tenant.unwrap_or_else(|| self.roll(TENANTS)) * 8 + self.roll(5)
    }

    fn write(&mut self) {
        let Some(tenant) = self.tenant_then() else { return self.look() };
        let insert = format!("insert into written values ('t{tenant}', {})", self.model.owner);
        self.simple(&insert, Expect::Inserted(tenant), None);
    }

    fn extended(&mut self) {
        let (sql, expect) = self.question();
        self.bytes.extend(msg::unnamed(&sql));
        self.items.push_back(Item::Statement(expect, None));
    }

    fn prepared(&mut self) {
        let (id, owner) = (self.some_id(), self.model.owner);
        let (bind, expect) = match self.roll(3) {
            0 => (msg::bind_with("", "written", &[Some(&owner.to_string())]), Expect::Written),
            1 => (msg::bind_with("", "one", &[Some(&id.to_string())]), Expect::One(id)),
            _ => (msg::bind("", "own"), Expect::Own),
        };
        self.bytes.extend(bind);
        self.bytes.extend(msg::execute("", 0));
        self.items.push_back(Item::Statement(expect, None));
    }

    /// After a fault some of them may still be there.
    fn name_statements(&mut self) {
        for name in ["own", "one", "written"] {
            self.bytes.extend(msg::close_statement(name));
        }
        self.bytes.extend(msg::parse("own", OWN));
        self.bytes.extend(msg::parse("one", &format!("{OWN} where id = $1")));
        self.bytes.extend(msg::parse("written", "select tenant, n from written where client = $1"));
        for expect in [Expect::Parsed, Expect::Parsed, Expect::Named(true)] {
            self.items.push_back(Item::Statement(expect, None));
        }
        self.sync();
    }

    fn reset(&mut self) {
        let all = ["reset all", "discard all", "deallocate all", "set work_mem = '5MB'"];
        let all = all[self.roll(4) as usize];
        let named = all.starts_with("d");
        self.simple(all, if named { Expect::Named(false) } else { Expect::Done }, None);
        if ["reset all", "discard all"].contains(&all) {
            // The tenant is gone as well: said again, in the same write.
            self.change_tenant();
        }
    }

    /// The tenant in a comment, another one for each statement; a SET goes before it.
    fn comments(&mut self) {
        self.simple("set bursar.tenant = ''", Expect::Tenant(None), None);
        for _ in 0..1 + self.roll(8) {
            let tenant = self.roll(self.manner.tenants);
            let (sql, expect) = self.question();
            self.simple(&format!("{sql} /*tenant='t{tenant}'*/"), expect, Some(tenant));
        }
    }

    /// Rows of others are not the tenant's to write.
    fn strangers(&mut self) {
        let tenant = self.tenant_then();
        let other = (tenant.unwrap_or_default() + 1 + self.roll(TENANTS - 1)) % TENANTS;
        let insert = format!("insert into written values ('t{other}', {})", self.model.owner);
        self.simple(&insert, Expect::Forbidden, None);
    }

    fn simple(&mut self, sql: &str, expect: Expect, tenant: Option<u32>) {
        self.bytes.extend(msg::query(sql));
        self.items.extend([Item::Statement(expect, tenant), Item::Ready]);
    }

    fn sync(&mut self) {
        self.bytes.extend(msg::sync());
        self.items.push_back(Item::Ready);
    }

    /// Sends what has been gathered and judges the answers, unless a fault comes between.
    fn exchange(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        let mut alive = self.link.send(&bytes).is_ok();
        if self.manner.faults && alive {
            match self.roll(200) {
                0 => {
                    self.shared.drops.fetch_add(1, Ordering::Relaxed);
                    alive = false;
                }
                1..=3 => {
                    self.shared.cancels.fetch_add(1, Ordering::Relaxed);
                    self.link.cancel()?;
                }
                _ => {}
            }
        }
        while alive && !self.items.is_empty() {
            match self.link.next() {
                Ok(message) => alive = self.model.take(message, &mut self.items, &mut self.tally),
                Err(failure) => {
                    alive = false;
                    if !self.manner.faults || failure.kind() == io::ErrorKind::WouldBlock {
                        self.tally.report(|| format!("{failure} instead of an answer"));
                    }
                }
            }
        }
        if alive { Ok(()) } else { self.enter_again() }
    }

    fn enter_again(&mut self) -> io::Result<()> {
        let (link, model) = enter(self.port, self.manner, self.shared)?;
        let gone = std::mem::replace(&mut self.model, model);
        let (owner, items) = (gone.owner, std::mem::take(&mut self.items));
        self.written.push((owner, gone.close(&items, &mut self.tally)));
        std::mem::replace(&mut self.link, link).vanish()
    }
}

fn enter(port: u16, manner: Manner, shared: &Shared) -> io::Result<(Link, Model)> {
    let owner = shared.owners.fetch_add(1, Ordering::Relaxed);
    let since = Instant::now();
    loop {
        match Link::login(port, "app") {
            Ok(link) => return Ok((link, Model::new(owner, manner.faults))),
            Err(failure) if !manner.faults || since.elapsed() > LOGIN => return Err(failure),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
