//! Per-tenant limits on shared resources.

use std::convert::Infallible;
use std::sync::Arc;

use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ids::TenantId;

/// Limits how many units of a resource, such as connections or bytes, each tenant holds at once.
pub struct Shares {
    tenants: Cache<TenantId, Arc<Semaphore>>,
    limit: usize,
}

/// Maximum tenants in memory. A tenant that is evicted while it holds units may briefly exceed its share.
const TENANTS_MAX: usize = 10_000;

impl Shares {
    /// `limit`: how many units one tenant may hold.
    pub fn new(limit: usize) -> Self {
        Self { tenants: Cache::new(TENANTS_MAX), limit: limit.min(Semaphore::MAX_PERMITS) }
    }

    /// Takes units until the permit is dropped; `None` if the tenant would exceed its limit. A larger request than the
    /// limit takes the whole share.
    pub fn try_acquire(&self, tenant: TenantId, units: usize) -> Option<OwnedSemaphorePermit> {
        self.of(tenant).try_acquire_many_owned(self.within_limit(units)).ok()
    }

    /// Like [`Shares::try_acquire`], but waits. Requests of one tenant are served in order.
    pub async fn acquire(&self, tenant: TenantId, units: usize) -> OwnedSemaphorePermit {
        let acquiring = self.of(tenant).acquire_many_owned(self.within_limit(units));
        acquiring.await.expect("nobody closes the semaphore of a share")
    }

    fn of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let new = || Ok::<_, Infallible>(Arc::new(Semaphore::new(self.limit)));
        let Ok(share) = self.tenants.get_or_insert_with(&tenant, new);
        share
    }

    fn within_limit(&self, units: usize) -> u32 {
        u32::try_from(units.min(self.limit)).unwrap_or(u32::MAX)
    }
}

/// One tenant's share of a resource: half, rounded up; all of it only if there is no more than one.
pub fn half(whole: usize) -> usize {
    whole.div_ceil(2).max(1)
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use uuid::Uuid;

    use super::*;

    const ONE: TenantId = TenantId(Uuid::from_u128(1));
    const OTHER: TenantId = TenantId(Uuid::from_u128(2));

    #[test]
    fn one_tenant_never_has_all_of_several() {
        assert_eq!([1, 2, 3, 4, 5, 8].map(half), [1, 1, 2, 2, 3, 4]);
    }

    #[test]
    fn a_tenant_at_its_limit_takes_nothing_from_another() {
        let shares = Shares::new(3);
        let held = shares.try_acquire(ONE, 2).unwrap();
        assert!(shares.try_acquire(ONE, 2).is_none());
        let other = shares.try_acquire(OTHER, 3);
        assert!(other.is_some() && shares.try_acquire(ONE, 1).is_some());
        drop(held);
        assert!(shares.try_acquire(ONE, 100).is_some(), "a request above the limit takes the whole share");
    }

    #[tokio::test]
    async fn a_waiter_gets_what_is_released() {
        let shares = Shares::new(1);
        let held = shares.acquire(ONE, 1).await;
        let mut waiting = Box::pin(shares.acquire(ONE, 1));
        assert!(poll!(&mut waiting).is_pending());
        drop(held);
        drop(waiting.await);
    }
}
