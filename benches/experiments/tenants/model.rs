//! What a tenant must see: the model of the tables, and the judge of every answer. Pure.
//!
//! An operation is one statement whose answer is compared with what the model says. Statements that only
//! prepare others (SET, BEGIN, COMMIT, Parse) are none, and neither is one whose answer a fault has taken away.

use super::link::{Complaint, column};
use std::collections::{BTreeMap, VecDeque};

/// A tenant's number; its name is `t` and the number.
pub(super) type Tenant = Option<u32>;

/// Tenants there are.
pub(super) const TENANTS: u32 = 200;

/// `docs` never changes. Every row names its tenant in the first column.
pub(super) const SETUP: &[&str] = &[
    "drop table if exists docs, written",
    "create table docs (tenant text not null, id int primary key)",
    "create index on docs (tenant)",
    "insert into docs select 't' || n, n * 8 + k from generate_series(0, 199) n, generate_series(0, n % 5) k",
    "create table written (tenant text not null, client int not null, n int not null default 0)",
    "create index on written (client, tenant)",
    "alter table docs enable row level security",
    "alter table docs force row level security",
    "alter table written enable row level security",
    "alter table written force row level security",
    "create policy own on docs using (tenant = current_setting('app.tenant_id', true))",
    "create policy own on written using (tenant = nullif(current_setting('app.tenant_id', true), ''))",
    "grant all on docs, written to app",
    "create or replace function secretly(who text) returns text language sql as \
     $$ select set_config('app.' || 'tenant_id', who, false) $$",
    "analyze docs",
];

/// The rows of `docs` that a tenant has.
fn rows_of(tenant: Tenant) -> u32 {
    tenant.map_or(0, |tenant| 1 + tenant % 5)
}

/// Whether a row of `docs` is a tenant's.
fn has(tenant: Tenant, id: u32) -> bool {
    tenant.is_some_and(|tenant| id / 8 == tenant && id % 8 < rows_of(Some(tenant)))
}

/// What the answer to a statement has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// All rows of `docs` that are the tenant's.
    Own,
    /// That row of `docs`, if it is the tenant's.
    One(u32),
    /// The rows of `written` that this connection has written for the tenant.
    Written,
    /// That many rows updated.
    Updated,
    /// One row inserted for this tenant.
    Inserted(u32),
    /// 42501: the row is not the tenant's to write.
    Forbidden,
    /// An error of the client's own making; no operation.
    Fails,
    /// The tenant is another one from here on; no operation.
    Tenant(Tenant),
    /// A Parse; no operation.
    Parsed,
    /// Statements have names from here on, or have them no more; no operation.
    Named(bool),
    /// Nothing has been written since BEGIN, and nothing has failed; no operation.
    Back,
    /// A transaction has ended, and another one follows before any ReadyForQuery that says so; no operation.
    Ended,
    /// Answered with anything but an error; no operation.
    Done,
}

impl Expect {
    fn counts(self) -> bool {
        use Expect::{Back, Done, Ended, Fails, Named, Parsed, Tenant};
        !matches!(self, Fails | Tenant(_) | Parsed | Named(_) | Back | Ended | Done)
    }
}

/// What is outstanding.
#[derive(Debug, Clone, Copy)]
pub(super) enum Item {
    /// A statement's answer; the tenant of its own comment, if it has one.
    Statement(Expect, Option<u32>),
    /// ReadyForQuery.
    Ready,
}

/// Rows of a connection for one tenant.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Count {
    /// Acknowledged.
    pub(super) known: u64,
    /// Perhaps there: nobody was told.
    pub(super) unknown: u64,
}

/// What connections have written, by their numbers and tenants.
pub(super) type Written = Vec<(u32, BTreeMap<u32, Count>)>;

/// What all the answers came to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Operations.
    pub(super) compared: u64,
    /// Rows of another tenant, or of any where there is none.
    pub(super) foreign: u64,
    /// Rows of the tenant that were not shown.
    pub(super) missing: u64,
    /// Any other answer that is not what it should be.
    pub(super) wrong: u64,
    /// Answers that a fault took away.
    pub(super) lost: u64,
    /// Words for the first few that were wrong in any way.
    pub(super) examples: Vec<String>,
}

impl Tally {
    /// Both together.
    pub(super) fn add(&mut self, other: Tally) {
        self.compared += other.compared;
        self.foreign += other.foreign;
        self.missing += other.missing;
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.examples.extend(other.examples);
        self.examples.truncate(5);
    }

    /// A wrong answer.
    pub(super) fn report(&mut self, words: impl FnOnce() -> String) {
        self.wrong += 1;
        self.example(words);
    }

    fn example(&mut self, words: impl FnOnce() -> String) {
        if self.examples.len() < 5 {
            self.examples.push(words());
        }
    }
}

/// One connection, as the model has it.
#[derive(Debug)]
pub(super) struct Model {
    /// Number of the connection in `written`.
    pub(super) owner: u32,
    /// What the connection says its tenant is.
    pub(super) tenant: Tenant,
    /// Its statements have names.
    pub(super) named: bool,
    /// A transaction is open, failed or not: a cancel may hit its COMMIT.
    pub(super) open: bool,
    /// Errors that come from faults are expected.
    faults: bool,
    written: BTreeMap<u32, Count>,
    /// Rows of the transaction that is open.
    pending: Vec<u32>,
    /// Rows of the answer that is coming in.
    own: u32,
    foreign: u32,
    /// A statement of the open transaction, or of this group up to its Sync, has failed.
    failed: bool,
    /// The transaction's end was not acknowledged, and not denied either.
    doubtful: bool,
}

impl Model {
    /// A connection that has just logged in.
    pub(super) fn new(owner: u32, faults: bool) -> Model {
        Model {
            owner,
            tenant: None,
            named: false,
            open: false,
            faults,
            written: BTreeMap::new(),
            pending: Vec::new(),
            own: 0,
            foreign: 0,
            failed: false,
            doubtful: false,
        }
    }

    /// Looks at one message; `items` is what is outstanding. False: the connection is over.
    pub(super) fn take(
        &mut self,
        (kind, body): (u8, &[u8]),
        items: &mut VecDeque<Item>,
        tally: &mut Tally,
    ) -> bool {
        match (kind, items.front().copied()) {
            (b'D' | b'd', Some(Item::Statement(expect, said))) if expect.counts() => {
                self.row(kind, body, said.or(self.tenant));
            }
            (b'D', Some(Item::Statement(Expect::Done, _))) => {}
            (b'1', Some(Item::Statement(expect @ (Expect::Parsed | Expect::Named(true)), _))) => {
                self.named |= expect != Expect::Parsed;
                items.pop_front();
            }
            (b'C', Some(Item::Statement(expect, said))) => {
                items.pop_front();
                self.complete(expect, said, body, tally);
            }
            (b'E', front) => return self.complain(&Complaint::new(body), front, items, tally),
            (b'Z', Some(Item::Ready)) => {
                items.pop_front();
                self.open = body != b"I";
                if !self.open {
                    self.settle();
                }
            }
            (b'1' | b'2' | b'3' | b'T' | b't' | b'n' | b'H' | b'c' | b'S' | b'N', _) => {}
            (kind, front) => tally.report(|| format!("{} instead of {front:?}", char::from(kind))),
        }
        true
    }

    fn row(&mut self, kind: u8, body: &[u8], tenant: Tenant) {
        let name = match kind {
            b'D' => column(body.get(2..).unwrap_or_default()).map(|(name, _)| name),
            _ => body.split(|byte| *byte == b'\t').next(),
        };
        let number = name.and_then(|name| str::from_utf8(name).ok()?.strip_prefix('t')?.parse().ok());
        if number.is_some() && number == tenant {
            self.own += 1;
        } else {
            self.foreign += 1;
        }
    }

    /// Rows this connection has written for a tenant: at least, and at most.
    fn mine(&self, tenant: Tenant) -> (u64, u64) {
        let Some(tenant) = tenant else { return (0, 0) };
        let Count { known, unknown } = self.written.get(&tenant).copied().unwrap_or_default();
        let pending = self.pending.iter().filter(|of| **of == tenant).count() as u64;
        (known + pending, known + pending + unknown)
    }

    fn complete(&mut self, expect: Expect, said: Option<u32>, tag: &[u8], tally: &mut Tally) {
        let tenant = said.or(self.tenant);
        let (own, foreign) = (u64::from(std::mem::take(&mut self.own)), std::mem::take(&mut self.foreign));
        tally.compared += u64::from(expect.counts());
        if foreign > 0 {
            tally.foreign += u64::from(foreign);
            tally.example(|| format!("{tenant:?} was shown {foreign} foreign rows: {expect:?}"));
        }
        let tag = String::from_utf8_lossy(tag.strip_suffix(b"\0").unwrap_or(tag)).into_owned();
        let mut rows = |(least, most): (u64, u64)| {
            if own < least {
                tally.missing += least - own;
                tally.example(|| format!("{tenant:?} was shown {own} rows, not {least}: {expect:?}"));
            }
            if own > most {
                tally.report(|| format!("{tenant:?} was shown {own} rows, not {most}: {expect:?}"));
            }
        };
        match expect {
            Expect::Own => rows((rows_of(tenant).into(), rows_of(tenant).into())),
            Expect::One(id) => rows((has(tenant, id).into(), has(tenant, id).into())),
            Expect::Written => rows(self.mine(tenant)),
            Expect::Updated => {
                let (least, most) = self.mine(tenant);
                let count = tag.strip_prefix("UPDATE ").and_then(|count| count.parse::<u64>().ok());
                if !count.is_some_and(|count| (least..=most).contains(&count)) {
                    tally.report(|| format!("{tenant:?}: {tag}, not {least} to {most}"));
                }
            }
            Expect::Inserted(of) if tag == "INSERT 0 1" => self.pending.push(of),
            Expect::Inserted(_) | Expect::Forbidden | Expect::Fails => {
                tally.report(|| format!("{tenant:?}: {tag} for {expect:?}"));
            }
            Expect::Tenant(tenant) => self.tenant = tenant,
            Expect::Named(named) => self.named = named,
            // What a failed transaction's COMMIT comes to as well.
            Expect::Done if tag == "ROLLBACK" => self.pending.clear(),
            Expect::Ended => {
                if tag == "ROLLBACK" {
                    self.pending.clear();
                }
                self.settle();
            }
            Expect::Back => {
                self.pending.clear();
                self.failed = false;
            }
            Expect::Parsed | Expect::Done => {}
        }
    }

    fn complain(
        &mut self,
        said: &Complaint,
        front: Option<Item>,
        items: &mut VecDeque<Item>,
        tally: &mut Tally,
    ) -> bool {
        self.own = 0;
        tally.foreign += u64::from(std::mem::take(&mut self.foreign));
        let expected = match front {
            Some(Item::Statement(Expect::Forbidden, _)) => said.code == "42501" && !said.fatal,
            Some(Item::Statement(Expect::Fails, _)) => said.code == "22012",
            _ => false,
        };
        if !expected && !self.excuses(said) {
            tally.report(|| format!("{said:?} for {front:?}"));
        }
        if said.fatal {
            return false;
        }
        if let Some(Item::Statement(expect, _)) = front {
            items.pop_front();
            let taken = if expected { &mut tally.compared } else { &mut tally.lost };
            *taken += u64::from(expect.counts());
        }
        // Nothing of this group is answered any more.
        while let Some(Item::Statement(expect, _)) = items.front() {
            tally.lost += u64::from(expect.counts());
            items.pop_front();
        }
        self.doubtful |= said.code.starts_with("08") || said.code == "57P01";
        self.failed = true;
        true
    }

    /// Whether a fault may have come to this.
    fn excuses(&self, said: &Complaint) -> bool {
        let by_faults =
            // 25P01: it was the BEGIN. 40001: it was Bursar's question whether the transaction may be parked.
            ["57014", "57P01", "08006", "08007", "25P01", "40001"].contains(&said.code.as_str())
            // A cancel may hit the segment that sets the context: that closes.
            || (said.fatal && said.code == "42501");
        (self.faults && by_faults) || (self.failed && ["25P02", "3B001"].contains(&said.code.as_str()))
    }

    /// No transaction is open: what it wrote is there, or is not.
    fn settle(&mut self) {
        for tenant in std::mem::take(&mut self.pending) {
            let count = self.written.entry(tenant).or_default();
            if self.doubtful {
                count.unknown += 1;
            } else if !self.failed {
                count.known += 1;
            }
        }
        (self.failed, self.doubtful) = (false, false);
    }

    /// The connection is over, with these outstanding: what it has written, as far as anybody knows.
    pub(super) fn close(mut self, items: &VecDeque<Item>, tally: &mut Tally) -> BTreeMap<u32, Count> {
        for item in items {
            if let Item::Statement(expect, _) = item {
                tally.lost += u64::from(expect.counts());
                if let Expect::Inserted(tenant) = expect {
                    self.pending.push(*tenant);
                }
            }
        }
        self.doubtful = true;
        self.settle();
        self.written
    }
}
