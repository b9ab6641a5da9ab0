//! Carrying out what the book decided, with the book unlocked.

use super::cell::Order;
use super::events;
use super::lease::Lease;
use super::one::Opened;
use super::wait::{Granted, Waiter};
use super::{NotLetIn, Pool, Pools};
use crate::adapt::refused::Full;
use crate::backend::{DialError, Object, Store};
use crate::book::{Action, Checkout, Claim, DialFailure, LeaseId, PoolId, SessionId, Warning};
use crate::clock;
use crate::metrics::Connect;
use std::sync::Arc;
use std::time::Duration;

impl Pools {
    /// Does what the book decided, in order, with the book unlocked.
    pub(super) fn carry_out(self: &Arc<Self>, actions: Vec<Action<Object, Waiter>>) {
        for action in actions {
            self.carry_out_one(action);
        }
    }

    fn carry_out_one(self: &Arc<Self>, action: Action<Object, Waiter>) {
        match action {
            Action::Grant { waiter, claim, lease, backend, warnings } => {
                self.grant(waiter, &claim, lease, backend, warnings);
            }
            Action::Refuse { waiter, refusal } => waiter.tell(Granted::Refused(refusal)),
            Action::Dial { pool, after } => self.dial(pool, after),
            Action::Store { pool, backend } => {
                let Some(pool) = self.by_id(pool) else { return };
                if !pool.store.give_back(backend, clock::now(), &pool.rules.load()) {
                    self.idle_closed(&pool, 1);
                }
            }
            Action::Close { backend, .. } => Store::discard(backend),
            Action::Evict { pool } => {
                if let Some(pool) = self.by_id(pool) {
                    pool.store.evict_one();
                }
                let mut actions = Vec::new();
                self.book.lock().evicted(clock::now(), pool, &mut actions);
                self.carry_out(actions);
            }
            Action::End { session, lease, why } => self.order(session, Order::End(lease, why)),
            Action::Cancel { session, lease, statement, why } => {
                self.order(session, Order::Cancel(lease, statement, why));
            }
            Action::Warn { session, lease, warning } => self.order(session, Order::Warn(lease, warning)),
            Action::Park { session, lease } => self.order(session, Order::Park(lease)),
            Action::Violation(violation) => events::violation(self, &violation),
            Action::Leak(event) => events::leak(self, &event),
            Action::RequestOver(over) => events::request_over(&over),
            Action::Deadlock(case) => events::deadlock(self, &case),
            Action::AskLocks(suspects) => self.ask_locks(suspects),
            Action::Breaker(turn) => events::breaker(&turn),
        }
    }

    fn grant(
        self: &Arc<Self>,
        waiter: Waiter,
        claim: &Claim,
        lease: LeaseId,
        backend: Option<Object>,
        warnings: Vec<Warning>,
    ) {
        let Some(pool) = self.by_id(claim.pool) else { return };
        let idle = || {
            let tagged = claim.tag.request.is_some();
            let preferred = tagged.then(|| self.book.lock().preferred(lease)).flatten();
            self.take_idle(&pool, preferred)
        };
        if let Some(object) = backend.or_else(idle) {
            let mut lease = Lease::new(self.clone(), pool, lease, object);
            lease.mark_unused();
            waiter.tell(Granted::Lease(Box::new(lease), warnings));
            return;
        }
        let mut actions = Vec::new();
        let mut back = Some(waiter);
        let answer = self.idle_vanished(
            &pool,
            lease,
            claim,
            |_| match back.take() {
                Some(waiter) => waiter,
                None => unreachable!("the book makes one waiter a call"),
            },
            &mut actions,
        );
        self.carry_out(actions);
        match (answer, back) {
            (Checkout::Idle(lease), Some(waiter)) => self.grant(waiter, claim, lease, None, warnings),
            (Checkout::Refused(refusal), Some(waiter)) => waiter.tell(Granted::Refused(refusal)),
            _ => {}
        }
    }

    /// Opens one more backend in a task of its own.
    fn dial(self: &Arc<Self>, id: PoolId, after: Duration) {
        let pools = self.clone();
        tokio::spawn(async move {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            let Some(pool) = pools.by_id(id) else { return };
            let started = clock::now();
            let opened = pool.store.open(pool.rules.load().connect_timeout).await;
            let lost = pool.store.take_lost();
            if lost > 0 {
                pools.idle_closed(&pool, lost);
            }
            let took = clock::now().saturating_duration_since(started);
            let result = match opened {
                Ok(object) => {
                    pools.metrics.dialled(Connect::Ok, took);
                    pool.hear(&object.parameters);
                    pool.let_in();
                    let mut backends = pool.backends.lock();
                    backends.retain(|backend| backend.cancel.strong_count() > 0);
                    backends.push(Opened {
                        cancel: Arc::downgrade(&object.cancel),
                        connected: object.connected,
                        generation: object.generation,
                        prepared: object.prepared.count(),
                    });
                    pool.note_server(&object, backends.len() == 1);
                    Ok(object)
                }
                Err(error) => {
                    pools.metrics.dialled(failed(&error), took);
                    tracing::warn!(
                        database = %pool.database, user = %pool.user, server = %pool.target().address, %error,
                        "cannot open a backend"
                    );
                    match &error {
                        DialError::Server { body, .. } => {
                            Full::of(body).into_iter().for_each(|full| pool.note_full(full));
                            pool.not_let_in(NotLetIn::Said(body.clone()));
                        }
                        DialError::Auth(fault) => pool.not_let_in(NotLetIn::Unproved(*fault)),
                        // The server's last words are not why.
                        DialError::Command(_) => pool.let_in(),
                        _ => {}
                    }
                    Err(DialFailure { kind: error.kind(), error: error.to_string().into() })
                }
            };
            let mut actions = Vec::new();
            pools.book.lock().dialled(clock::now(), id, result, &mut actions);
            pools.carry_out(actions);
        });
    }

    /// The connection of a backend that a session had broke.
    pub fn broke(self: &Arc<Self>, pool: &Pool) {
        let mut actions = Vec::new();
        self.book.lock().broke(clock::now(), pool.id, &mut actions);
        self.carry_out(actions);
    }

    fn order(&self, session: SessionId, order: Order) {
        if let Some(cell) = self.cells.lock().get(&session) {
            cell.order(order);
        }
    }
}

fn failed(error: &DialError) -> Connect {
    match error {
        DialError::Io(_) | DialError::Unsuitable { .. } | DialError::Several(_) => Connect::Unreachable,
        DialError::Timeout => Connect::Timeout,
        DialError::Server { .. } | DialError::Auth(_) | DialError::Tls(_) | DialError::Command(_) => {
            Connect::Refused
        }
        DialError::Protocol(_) | DialError::NoRoom => Connect::Protocol,
    }
}
