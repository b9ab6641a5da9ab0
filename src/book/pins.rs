//! B17: leases kept beyond their transaction, by tenant and by pool.
//!
//! Sessions tell when a lease gets its first pin; it stays counted until it comes back. Two sessions
//! that ask and pin in the same instant may be one too many, which harms nobody.

use super::limits::part;
use super::report::{Dim, Told};
use super::{Book, LeaseId, PoolId, Refusal, Warning};
use crate::config::Mode;

/// How many pins there are, and how many there may be.
type Pins = (u32, u32);

impl<B, W> Book<B, W> {
    /// A session keeps this lease beyond its transaction from now on; perhaps with a warning.
    pub fn pinned(&mut self, id: LeaseId) -> Option<Warning> {
        let lease = self.leases.get_mut(&id).filter(|lease| !lease.pinned)?;
        lease.pinned = true;
        let (at, pool, tag) = (lease.who.share, lease.pool, lease.tag.clone());
        self.shares[at].pinned += 1;
        self.pools[pool.0 as usize].pinned += 1;
        let (tenant_pins, pool_pins) = (self.pins_of(at), self.pins_in(pool));
        let both = [tenant_pins, pool_pins];
        let near = |(pins, limit): Pins| Told::within(pins.into(), limit.into()) == Told::Near;
        let told = if both.iter().any(|(pins, limit)| pins > limit) {
            Told::beyond(self.shares[at].mode)
        } else if both.into_iter().any(near) {
            Told::Near
        } else {
            Told::Ok
        };
        self.tally.count(Dim::B17, told);
        self.peaks.saw(Dim::B17, tenant_pins.0.into());
        let warning = (told == Told::Warn).then_some(Warning::TooManyPins { tenant_pins, pool_pins })?;
        self.warned_event(&warning, Some(pool), &tag);
        Some(warning)
    }

    /// Whether a lease of this tenant may be kept beyond its transaction; only where that is enforced.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooManyPins`] if the tenant or the pool has as many as it may.
    pub fn may_pin(&mut self, pool: PoolId, tenant: &str) -> Result<(), Refusal> {
        let rule = self.limits.tenant(tenant);
        let (mode, limit) = (rule.mode, rule.max_pins);
        let at = self.shares.find(pool.0, tenant);
        let tenant_pins = at.map_or((0, limit), |at| self.pins_of(at));
        let pool_pins = self.pins_in(pool);
        if mode != Mode::Enforce || [tenant_pins, pool_pins].iter().all(|(pins, limit)| pins < limit) {
            return Ok(());
        }
        self.tally.count(Dim::B17, Told::Reject);
        if let Some(at) = at {
            self.shares[at].rejections += 1;
        }
        let refusal = Refusal::TooManyPins { tenant: tenant.into(), tenant_pins, pool_pins };
        self.refused_event(&refusal, Some(pool), &super::of_tenant(&tenant.into()));
        let sofar = &mut self.pools[pool.0 as usize].sofar;
        *sofar.rejections.entry(refusal.sqlstate()).or_default() += 1;
        Err(refusal)
    }

    fn pins_of(&self, share: u32) -> Pins {
        let share = &self.shares[share];
        (share.pinned, share.max_pins)
    }

    fn pins_in(&self, pool: PoolId) -> Pins {
        let pool = &self.pools[pool.0 as usize];
        (pool.pinned, part(pool.rules.max_pins, pool.rules.size))
    }
}
