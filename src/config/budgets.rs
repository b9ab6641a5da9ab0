//! The nouns of what has a mode: `[budget]`, `[tenant]`, `[isolation]`, `[request]`, `[leak]`.

use super::Parking;
use std::time::Duration;

/// What a budget does when it is exceeded (budgets.md §2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Compute and count.
    Observe,
    /// And tell: a NoticeResponse and an event.
    Warn,
    /// And act.
    Enforce,
}

impl Mode {
    /// As in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Observe => "observe",
            Mode::Warn => "warn",
            Mode::Enforce => "enforce",
        }
    }
}

/// `[budget.request]`, `[budget.transaction]` and `[budget.statement]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budgets {
    /// B1: leases one request may hold at once.
    pub max_concurrent: u32,
    /// Mode of B1.
    pub max_concurrent_mode: Mode,
    /// B2: leases of one request in all, from which on it is told.
    pub leases_warn: Option<u32>,
    /// B2: leases of one request in all; one more is refused. A client's own `SET bursar.max_leases`
    /// is always enforced.
    pub leases_reject: Option<u32>,
    /// Mode of B2.
    pub leases_mode: Mode,
    /// B9, where a scope has its own; `None` = the pool's.
    pub max_wait: Option<Duration>,
    /// B3: time in which statements of one request ran, of all its leases; 57014.
    pub db_time: Timed,
    /// B10: transaction age; 25P04.
    pub age: Timed,
    /// B11: idle in transaction; 25P03. Its `abort` holds while others wait.
    pub idle: Timed,
    /// B11: when it acts while nobody waits.
    pub idle_abort_alone: Option<Duration>,
    /// B11 warns only if others wait.
    pub idle_warn_only_if_waiters: bool,
    /// B12: how long one statement runs; 57014.
    pub statement: Timed,
    /// B13: how long a client leaves its result where it is; 57014.
    pub stall: Timed,
    /// `[parking]`
    pub parking: Parking,
}

/// A budget of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timed {
    /// From when on it is told; `None` = never.
    pub warn: Option<Duration>,
    /// When it acts, in mode enforce; `None` = never.
    pub abort: Option<Duration>,
    /// Its mode.
    pub mode: Mode,
    /// Whether it acts without having been in mode warn before (budgets.md §2.4). Only where acting
    /// destroys work.
    pub force: bool,
}

impl Budgets {
    /// Sets the mode of all of them.
    pub(super) fn set_modes(&mut self, mode: Mode) {
        for each in [
            &mut self.max_concurrent_mode,
            &mut self.leases_mode,
            &mut self.db_time.mode,
            &mut self.age.mode,
            &mut self.idle.mode,
            &mut self.statement.mode,
            &mut self.stall.mode,
        ] {
            *each = mode;
        }
    }
}

/// A tenant's share of a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// So many backends.
    Count(u32),
    /// Percent of the pool's size, rounded up, at least 1.
    Percent(f64),
}

/// `[tenant.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct TenantRule {
    /// B4: leases at once.
    pub max: Share,
    /// B5: leases that are given to this tenant before others get their shares, in each pool.
    pub min: u32,
    /// B6: its share of backend-seconds, against the weights of others that wait.
    pub weight: u32,
    /// B8: waiters.
    pub queue: u32,
    /// B17: leases kept beyond their transaction at once, in one pool.
    pub max_pins: u32,
    /// B18: client sessions of this tenant.
    pub max_sessions: u32,
    /// Mode of B4, B8, B17 and B18.
    pub mode: Mode,
    /// V5: login roles that may act for it; none named: any.
    pub users: Vec<String>,
}

/// `[isolation]`: budgets.md §2.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isolation {
    /// What becomes of V3, V6 and V7, and of V1 without a fence. The others act wherever something else asks for them.
    pub mode: Mode,
    /// V4: one lease in so many is followed by a look at what it left; `None` = never.
    pub verify: Option<u32>,
}

/// `[request]`: the life of requests (budgets.md §2.1, §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requests {
    /// A transaction that asks so soon after the last one of its request goes before new requests of its
    /// tenant; `None` = never.
    pub continuation: Option<Duration>,
    /// A request that has held nothing and waited for nothing for this long is over.
    pub idle_ttl: Duration,
    /// A request this old is over, by its mode; `None` = at no age.
    pub max_age: Option<Duration>,
    /// What becomes of one that is older.
    pub mode: Mode,
}

/// `[leak]`: budgets.md §5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// A transaction this old, or a statement running this long, is reported; `None` = never.
    pub hold: Option<Duration>,
    /// A transaction idle this long is reported; `None` = never.
    pub idle: Option<Duration>,
    /// A transaction idle this long is a leak if something else says so too; `None` = never.
    pub leaked: Option<Duration>,
    /// A transaction idle this long is a leak whatever else is known; `None` = never.
    pub leaked_alone: Option<Duration>,
    /// A lease that a pin keeps and that does nothing for this long is reported; `None` = never.
    pub pinned: Option<Duration>,
    /// And ended, in mode enforce; `None` = never.
    pub pinned_close: Option<Duration>,
    /// What is reported sooner, or is a leak later, than said above is learnt from each call site.
    pub adaptive: bool,
    /// Whether leaks are ended, or only told.
    pub mode: Mode,
    /// Whether they are without having been in mode warn before (budgets.md §2.4).
    pub force: bool,
    /// Statement texts may appear in reports.
    pub statement_text: bool,
}
