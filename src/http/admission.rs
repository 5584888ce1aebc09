//! How many requests are worked on at once.

use std::convert::Infallible;
use std::sync::Arc;

use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::Problem;
use crate::ids::TenantId;
use crate::metrics::{Level, Shed};

/// A place for each request that may be worked on; one more is told so at once. A tenant has a share of them, so that one
/// whose bodies take their time does not take everybody's.
pub struct Admission {
    places: Semaphore,
    limit: usize,
    tenants: Cache<TenantId, Arc<Semaphore>>,
    tenant_limit: usize,
}

/// Tenants remembered. One that is forgotten with requests under way may have more than its share for a moment.
const TENANTS_MAX: usize = 10_000;

impl Admission {
    pub fn new(limit: usize, tenant_limit: usize) -> Self {
        let (limit, tenant_limit) = (limit.min(Semaphore::MAX_PERMITS), tenant_limit.min(Semaphore::MAX_PERMITS));
        Self { places: Semaphore::new(limit), limit, tenants: Cache::new(TENANTS_MAX), tenant_limit }
    }

    /// A request that is as large as several takes as many places, or all that there are.
    ///
    /// # Errors
    /// [`Problem::Shed`] if the places are taken.
    pub fn enter(&self, places: usize) -> Result<SemaphorePermit<'_>, Problem> {
        self.places.try_acquire_many(within(places, self.limit)).map_err(|_| Problem::Shed(Shed::InFlight))
    }

    /// # Errors
    /// [`Problem::Shed`] if the tenant has its share already.
    pub fn enter_as(&self, tenant: TenantId, places: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let new = || Ok::<_, Infallible>(Arc::new(Semaphore::new(self.tenant_limit)));
        let Ok(share) = self.tenants.get_or_insert_with(&tenant, new);
        share.try_acquire_many_owned(within(places, self.tenant_limit)).map_err(|_| Problem::Shed(Shed::TenantInFlight))
    }

    pub fn level(&self) -> Level {
        Level { now: self.limit - self.places.available_permits(), limit: self.limit }
    }
}

fn within(places: usize, limit: usize) -> u32 {
    u32::try_from(places.min(limit)).unwrap_or(u32::MAX)
}
