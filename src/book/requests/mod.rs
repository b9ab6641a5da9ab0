//! Requests: all leases with one request id in this process (budgets.md §2.1), the ledger of B1 and
//! B2, and the waiters that B1 holds back.
//!
//! Whether a request is over is looked at when its id is next seen; then it starts anew. What is told of its end
//! is `ends`'s.

mod ends;
mod storms;

pub(super) use ends::Endings;
pub use ends::{End, RequestOver};
pub(super) use storms::{Storms, Who as Refused};

use crate::book::limits::{Limits, QUARANTINE, REQUEST_RECALL, later};
use crate::book::report::view::RequestView;
use crate::book::report::{Dim, Told};
use crate::book::roll::Busy;
use crate::book::watch::Watch;
use crate::book::who::Who;
use crate::book::{Action, Book, Claim, Objection, PoolId, Refusal, SessionId, Usage, WaiterId, Warning};
use crate::config::{Mode, Requests};
use crate::tag::Tag;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Request {
    pub(super) tag: Arc<Tag>,
    /// The user and the pool whose work was the first of it (V3).
    pub(super) user_id: Option<Arc<str>>,
    pub(super) pool: Option<PoolId>,
    /// The client's own B1, as it said last.
    pub(super) own: Option<u32>,
    /// The number of its budgets, as of its last checkout.
    pub(super) budgets: u32,
    pub(super) since: Instant,
    used: Instant,
    /// When it was over, if that is known, and why.
    pub(super) ended: Option<Instant>,
    pub(super) end: Option<End>,
    /// It was told that it is too old.
    pub(super) old: bool,
    /// When it, or an earlier request of this id, was closed for all sessions that carried it then.
    closed: Option<Instant>,
    /// Until when its id is refused.
    quarantined: Option<Instant>,
    /// Leases now, logins not counted.
    pub(super) leases: u32,
    leases_peak: u32,
    leases_total: u32,
    /// Waiters now, logins not counted; those held back are among them.
    pub(super) waiting: u32,
    /// Waiters that B1 holds back, by order of arrival. While there are any, leases and waiters
    /// lined up make up the budget, so a lease back or a waiter gone always lets one through.
    pub(super) back: BTreeMap<i64, WaiterId>,
    /// Waiters among their tenants', and those that go first because it holds something.
    pub(super) lined: BTreeMap<i64, WaiterId>,
    pub(super) first: BTreeMap<i64, WaiterId>,
    /// By tenant and pool, what its last lease there left.
    pub(super) groups: SmallVec<[crate::book::turns::Group; 1]>,
    pub(super) episode: Episode,
    /// What it holds, by tenant and pool: what the bankers know of it.
    pub(super) holds: SmallVec<[crate::book::turns::Hold; 1]>,
    waited: Duration,
    held: Duration,
    /// On leases that are back.
    pub(super) active: Duration,
    /// On those that are not, as tick `seen_at` saw them.
    pub(super) running: Duration,
    pub(super) seen_at: u64,
    /// What was said about its time (B3); most requests never come near it.
    pub(super) watch: Option<Box<Watch>>,
    statements: u64,
    rejections: u32,
    /// Dimensions its client was told about ([`Dim::bit`]).
    told: u32,
    /// Leases that tick `stuck_at` found idle in transaction for [`crate::book::limits::STUCK`].
    pub(super) stuck: u32,
    pub(super) stuck_at: u64,
    /// When any of its leases did something last, as tick `seen_at` saw them.
    pub(super) moved: Option<Instant>,
    /// Sessions that have held leases of it, the first [`SESSIONS`]; and whether these are all.
    pub(super) sessions: SmallVec<[SessionId; 2]>,
    pub(super) all_sessions: bool,
    /// First statements of its leases, the first [`STATEMENTS`], and how often each was.
    repeats: SmallVec<[(u64, u32); 2]>,
    /// The most often that one lease has run one statement.
    looped: u32,
}

/// From a request's first lease until it holds none.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Episode {
    /// The kind of its first lease ([`super::turns`]).
    pub(super) kind: u64,
    /// Leases at once that are expected of it; 0 = nothing is known.
    pub(super) claim: u32,
    /// The most it has held, or held and wanted, at once.
    pub(super) most: u32,
}

/// Sessions of a request that are told apart.
const SESSIONS: usize = 16;
/// First statements of a request that are told apart.
const STATEMENTS: usize = 8;

impl Busy for Request {
    fn busy(&self) -> bool {
        self.leases > 0 || self.waiting > 0
    }
}

impl Request {
    pub(super) fn new(tag: Arc<Tag>, now: Instant) -> Self {
        Request {
            own: tag.max_concurrent,
            user_id: None,
            pool: None,
            budgets: 0,
            tag,
            since: now,
            used: now,
            ended: None,
            end: None,
            old: false,
            closed: None,
            quarantined: None,
            leases: 0,
            leases_peak: 0,
            leases_total: 0,
            waiting: 0,
            back: BTreeMap::new(),
            lined: BTreeMap::new(),
            first: BTreeMap::new(),
            groups: SmallVec::new(),
            episode: Episode::default(),
            holds: SmallVec::new(),
            waited: Duration::ZERO,
            held: Duration::ZERO,
            active: Duration::ZERO,
            running: Duration::ZERO,
            seen_at: 0,
            watch: None,
            statements: 0,
            rejections: 0,
            told: 0,
            stuck: 0,
            stuck_at: 0,
            moved: None,
            sessions: SmallVec::new(),
            all_sessions: true,
            repeats: SmallVec::new(),
            looped: 0,
        }
    }

    /// It is this user's work, in this pool.
    pub(super) fn used_by(&mut self, tag: &Tag, pool: PoolId) {
        self.pool.get_or_insert(pool);
        if self.user_id.is_none() {
            self.user_id.clone_from(&tag.user_id);
        }
    }

    /// Its id is seen again: goes on, or starts over if it was over or has reached its cap. Returns why it
    /// was over, if nobody had noticed.
    pub(super) fn seen(&mut self, tag: &Arc<Tag>, rules: &Requests, now: Instant) -> Option<End> {
        let mut unnoticed = None;
        if self.begins_anew(rules, now) {
            unnoticed = self.end.is_none().then(|| self.end_of(rules, now)).flatten();
            let old = std::mem::replace(self, Request::new(tag.clone(), now));
            (self.leases, self.leases_peak, self.waiting) = (old.leases, old.leases, old.waiting);
            (self.back, self.lined, self.first, self.holds) = (old.back, old.lined, old.first, old.holds);
            self.episode = old.episode;
            (self.sessions, self.all_sessions) = (old.sessions, old.all_sessions);
            (self.closed, self.quarantined) = (old.closed, old.quarantined);
        }
        self.own = tag.max_concurrent;
        self.used = now;
        unnoticed
    }

    /// Time in which its statements have run, as of the last tick.
    pub(super) fn used(&self) -> Duration {
        self.active + self.running
    }

    /// Whoever uses its id from now on begins it anew.
    fn begins_anew(&self, rules: &Requests, now: Instant) -> bool {
        self.over(rules, now) || self.outlived(rules).is_some_and(|at| at <= now)
    }

    fn over(&self, rules: &Requests, now: Instant) -> bool {
        !self.busy() && (self.ended.is_some() || self.is_silent(rules, now))
    }

    /// Nothing has been held or waited for in its name for so long that it is over.
    pub(super) fn is_silent(&self, rules: &Requests, now: Instant) -> bool {
        !self.busy() && now.saturating_duration_since(self.used) >= rules.idle_ttl
    }

    /// When it is over whatever it does, if that is enforced.
    fn outlived(&self, rules: &Requests) -> Option<Instant> {
        rules.max_age.filter(|_| rules.mode == Mode::Enforce).map(|age| later(self.since, age))
    }

    /// Why it is over, if it is.
    fn end_of(&self, rules: &Requests, now: Instant) -> Option<End> {
        let old = || self.outlived(rules).filter(|at| *at <= now).map(|_| End::Age);
        self.end.or_else(old).or_else(|| self.is_silent(rules, now).then_some(End::Idle))
    }

    /// Sessions that were told its id before this moment carry a stale tag.
    fn closed(&self, rules: &Requests, now: Instant) -> Option<Instant> {
        self.closed.max(self.outlived(rules).filter(|at| *at <= now))
    }

    /// Over for so long that nobody will ask any more.
    pub(super) fn forgotten(&self, now: Instant) -> bool {
        !self.busy() && now.saturating_duration_since(self.used) >= REQUEST_RECALL
    }

    /// Its client says that it is over. Returns whether that is new.
    fn end(&mut self, now: Instant) -> bool {
        self.ended = Some(now);
        self.used = now;
        self.end.replace(End::Client).is_none()
    }

    /// It is over by itself.
    pub(super) fn end_by_itself(&mut self, end: End, now: Instant) {
        (self.ended, self.end) = (Some(now), Some(end));
        if end == End::Age {
            self.closed = Some(now);
        }
    }

    /// Which lease of the request the next one would be, those queued included.
    pub(super) fn next_ordinal(&self) -> u32 {
        self.leases_total.saturating_add(self.waiting).saturating_add(1)
    }

    pub(super) fn granted(&mut self, waited: Duration) {
        self.leases += 1;
        self.leases_total = self.leases_total.saturating_add(1);
        self.leases_peak = self.leases_peak.max(self.leases);
        self.waited += waited;
    }

    /// The lease just granted is part of a transaction that has had one.
    pub(super) fn went_on(&mut self) {
        self.leases_total = self.leases_total.saturating_sub(1);
    }

    /// That lease came to nothing.
    pub(super) fn did_not_go_on(&mut self) {
        self.leases_total = self.leases_total.saturating_add(1);
    }

    /// The lease just granted is this session's, and begins with this statement.
    pub(super) fn joined(&mut self, session: SessionId, statement: u64) {
        if !self.sessions.contains(&session) {
            match self.sessions.len() < SESSIONS {
                true => self.sessions.push(session),
                false => self.all_sessions = false,
            }
        }
        if let Some((_, times)) = self.repeats.iter_mut().find(|(known, _)| *known == statement) {
            *times = times.saturating_add(1);
        } else if statement != 0 && self.repeats.len() < STATEMENTS {
            self.repeats.push((statement, 1));
        }
    }

    /// How often it has run the statement that it has run most often, as far as is known.
    fn repeats(&self) -> u32 {
        self.repeats.iter().map(|(_, times)| *times).max().unwrap_or(0).max(self.looped)
    }

    pub(super) fn leases_peak(&self) -> u32 {
        self.leases_peak
    }

    /// The last grant came to nothing.
    pub(super) fn ungranted(&mut self, waited: Duration) {
        self.leases -= 1;
        self.waited -= waited;
        self.leases_total = self.leases_total.saturating_sub(1);
    }

    pub(super) fn returned(&mut self, held: Duration, usage: &Usage, now: Instant) {
        self.leases -= 1;
        self.held += held;
        self.active += usage.active;
        // It is in both until the next tick sees those that are left.
        self.running = self.running.saturating_sub(usage.active);
        self.statements += usage.statements;
        self.looped = self.looped.max(usage.repeats);
        // A lease may serve several transactions (a pipeline of them, or a pin), and each is one that
        // the application would have opened a session for (budgets.md §2.1).
        let more = u32::try_from(usage.transactions.saturating_sub(1)).unwrap_or(u32::MAX);
        self.leases_total = self.leases_total.saturating_add(more);
        self.used = now;
    }

    pub(super) fn refused(&mut self) {
        self.rejections = self.rejections.saturating_add(1);
    }

    /// True the first time: a request is told once per dimension (budgets.md §2.4).
    pub(super) fn tell_once(&mut self, dim: Dim) -> bool {
        let first = self.told & dim.bit() == 0;
        self.told |= dim.bit();
        first
    }

    pub(super) fn leases_total(&self) -> u32 {
        self.leases_total
    }

    pub(super) fn row(&self, id: &Arc<str>, limits: &Limits, now: Instant) -> RequestView {
        let budget = limits.budgets(self.budgets);
        let leases = [budget.leases_warn, budget.leases_reject, self.tag.max_leases];
        RequestView {
            end: self.end_of(&limits.request, now),
            leases_left: leases
                .into_iter()
                .flatten()
                .min()
                .map(|most| most.saturating_sub(self.leases_total)),
            mode: budget.leases_mode,
            id: id.clone(),
            tag: self.tag.clone(),
            since: self.since,
            leases_now: self.leases,
            leases_peak: self.leases_peak,
            leases_total: self.leases_total,
            waiting: self.waiting,
            waited: self.waited,
            active: self.active,
            held: self.held,
            statements: self.statements,
            rejections: self.rejections,
            repeats: self.repeats(),
        }
    }
}

impl<B, W> Book<B, W> {
    /// Whether a claim may be made in the name of its request; asked before [`Book::checkout`], of tagged
    /// claims.
    #[must_use]
    pub fn objects(&self, claim: &Claim, now: Instant) -> Option<Objection> {
        let id = claim.tag.request.as_ref().filter(|_| !claim.login);
        let request = &self.requests[id.and_then(|id| self.requests.find(0, id))?];
        if let Some(until) = request.quarantined.filter(|until| *until > now) {
            return Some(Objection::Quarantined { left: until - now });
        }
        // What is set anew, or comes with each statement, is meant.
        if let (Some(closed), Some(told)) =
            (request.closed(&self.limits.request, now), claim.tag.request_since)
            && told < closed
        {
            return Some(Objection::Closed);
        }
        self.mixes(request, claim, now).then_some(Objection::Mixed)
    }

    /// V3 (budgets.md §2.7): whether the request of a claim is already another user's work, or another
    /// login role's.
    fn mixes(&self, request: &Request, claim: &Claim, now: Instant) -> bool {
        if request.begins_anew(&self.limits.request, now) {
            return false;
        }
        let role = |pool: PoolId| &*self.pools[pool.0 as usize].user;
        request.pool.is_some_and(|first| first != claim.pool && role(first) != role(claim.pool))
            || matches!((&request.user_id, &claim.tag.user_id), (Some(one), Some(other)) if one != other)
    }

    /// A request is over for all who work for it (`bursar.end_request()`): as [`Book::request_ended`], and
    /// sessions that were told its id before carry a stale tag.
    pub fn request_closed(&mut self, id: &str, now: Instant) {
        self.request_ended(id, now);
        if let Some(at) = self.requests.find(0, id) {
            self.requests[at].closed = Some(now);
        }
    }

    /// Isolation was violated in the name of a request again and again: its id is refused for a minute
    /// (budgets.md §2.4).
    pub fn quarantine(&mut self, id: &str, now: Instant) {
        if let Some(at) = self.requests.find(0, id) {
            self.requests[at].quarantined = Some(later(now, QUARANTINE));
        }
    }

    /// The client says that a request is over: its id starts anew once its last lease is back.
    pub fn request_ended(&mut self, id: &str, now: Instant) {
        if let Some(at) = self.requests.find(0, id) {
            if self.requests[at].end(now) {
                self.endings.count(End::Client);
            }
            if self.requests[at].leases > 0 {
                // What it still holds may be leaked.
                self.wake(now);
            }
        }
    }

    /// One request, also for five minutes after its end, unless 10,000 others came since.
    #[must_use]
    pub fn request(&self, id: &str, now: Instant) -> Option<RequestView> {
        let request = &self.requests[self.requests.find(0, id)?];
        (!request.forgotten(now)).then(|| request.row(&id.into(), &self.limits, now))
    }

    /// B2, before anything is granted or queued: the client's own limit always acts, the
    /// configured one in mode enforce; the tighter of the two is the one named.
    pub(super) fn too_many_leases(&mut self, claim: &Claim, who: Who, now: Instant) -> Option<Refusal> {
        if claim.resumes.is_some() {
            return None;
        }
        let ordinal = self.requests[who.request?].next_ordinal();
        let own = claim.tag.max_leases;
        let budget = self.limits.budgets(who.budgets);
        let ours = budget.leases_reject.filter(|_| budget.leases_mode == Mode::Enforce);
        let limit = own.into_iter().chain(ours).min().filter(|&limit| ordinal > limit)?;
        self.tally.count(Dim::B2, Told::Reject);
        let standing = self.standing(claim.pool, who, claim.session, now);
        let refusal = Refusal::TooManyLeases { ordinal, limit, own: own == Some(limit), standing };
        self.count_refusal(claim, who, &refusal);
        Some(refusal)
    }

    /// B1: whether one more checkout of this request has to wait in its own line.
    pub(super) fn held_back(&self, request: Option<u32>) -> bool {
        request.is_some_and(|at| self.at_its_cap(at) || !self.requests[at].back.is_empty())
    }

    /// B1: whether this request may not have one more lease.
    pub(super) fn at_its_cap(&self, request: u32) -> bool {
        self.requests[request].leases >= self.concurrency(request)
    }

    /// B1 as it acts on this request: the client's own limit always does, the configured one in mode
    /// enforce.
    pub(super) fn concurrency(&self, request: u32) -> u32 {
        let budget = self.limits.budgets(self.requests[request].budgets);
        let ours = Some(budget.max_concurrent).filter(|_| budget.max_concurrent_mode == Mode::Enforce);
        self.requests[request].own.into_iter().chain(ours).min().unwrap_or(u32::MAX)
    }

    /// B1 at a grant that went ahead, where it only tells; and B2 likewise.
    pub(super) fn judge_request(&mut self, request: u32, warnings: &mut Vec<Warning>) {
        let request = &mut self.requests[request];
        let budget = self.limits.budgets(request.budgets);

        let (holds, limit) = (request.leases, budget.max_concurrent);
        let told = if holds > limit {
            Told::beyond(budget.max_concurrent_mode)
        } else {
            Told::within(holds.into(), limit.into())
        };
        self.tally.count(Dim::B1, told);
        self.peaks.saw(Dim::B1, holds.into());
        self.peaks.saw(Dim::B2, request.leases_total.into());
        if told == Told::Warn && request.tell_once(Dim::B1) {
            warnings.push(Warning::NestsTooDeep { holds, limit });
        }

        let ordinal = request.leases_total;
        let warn = budget.leases_warn.filter(|&warn| ordinal >= warn);
        let reject = budget.leases_reject.filter(|&reject| ordinal > reject);
        let first = budget.leases_warn.or(budget.leases_reject).or(request.tag.max_leases);
        let told = match (reject.or(warn), first) {
            (Some(_), _) => Told::beyond(budget.leases_mode),
            (None, Some(limit)) => Told::within(ordinal.into(), limit.into()),
            (None, None) => Told::Ok,
        };
        self.tally.count(Dim::B2, told);
        if let Some(limit) = reject.or(warn)
            && told == Told::Warn
            && request.tell_once(Dim::B2)
        {
            warnings.push(Warning::TooManyLeases { ordinal, limit });
        }
    }

    /// Lets held-back waiters of a request into their tenants' lines, as far as B1 has room again.
    /// The pools where that happened are to be served.
    #[inline]
    pub(super) fn promote(&mut self, request: Option<u32>) -> SmallVec<[PoolId; 2]> {
        request.map_or_else(SmallVec::new, |request| self.promote_within(request))
    }

    fn promote_within(&mut self, at: u32) -> SmallVec<[PoolId; 2]> {
        let mut pools = SmallVec::new();
        let limit = self.concurrency(at);
        loop {
            let request = &mut self.requests[at];
            let lined_up = request.waiting - request.back.len() as u32;
            if request.leases.saturating_add(lined_up) >= limit {
                break;
            }
            let Some((_, waiter)) = request.back.pop_first() else { break };
            pools.extend(self.line_up(waiter));
        }
        if self.requests[at].back.is_empty() {
            self.crowded.remove(&at);
        }
        pools
    }

    /// Refuses those who wait behind leases of their own request that all sit idle in transaction:
    /// it nests deeper than its budget, and no lease will come back before this one is granted.
    pub(super) fn refuse_nested(&mut self, now: Instant, actions: &mut Vec<Action<B, W>>) {
        let crowded: Vec<u32> = self.crowded.iter().copied().collect();
        for at in crowded {
            let request = &self.requests[at];
            let stuck = request.stuck_at == self.ticks
                && request.stuck >= request.leases
                && request.leases >= self.concurrency(at);
            if !stuck {
                continue;
            }
            let back: Vec<WaiterId> = request.back.values().copied().collect();
            for waiter in back {
                if self.waited(waiter, now) >= Some(crate::book::limits::STUCK) {
                    self.tally.count(Dim::B1, Told::Reject);
                    self.refuse(waiter, now, actions, |standing| Refusal::NestsTooDeep { standing });
                }
            }
        }
    }
}
