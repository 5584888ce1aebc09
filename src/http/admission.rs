//! The limit on requests in flight.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Problem;
use crate::ids::TenantId;
use crate::overload::{Shed, Usage};
use crate::shares::Shares;

/// Limits the requests in flight. A request above the limit is refused immediately. Each tenant has a share of the
/// places, so that a tenant whose bodies arrive slowly cannot take all of them.
pub struct Admission {
    places: Arc<Semaphore>,
    limit: usize,
    shares: Shares,
}

/// The place of one request. It is free again when this is dropped.
pub struct Places {
    _place: OwnedSemaphorePermit,
    _share: OwnedSemaphorePermit,
}

impl Admission {
    pub fn new(limit: usize, tenant_limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(limit)), limit, shares: Shares::new(tenant_limit) }
    }

    /// # Errors
    /// [`Problem::Shed`] if the tenant's share is used up, or all places are taken.
    pub fn enter(&self, tenant: TenantId) -> Result<Places, Problem> {
        let share = self.shares.try_acquire(tenant, 1).ok_or(Problem::Shed(Shed::TenantInFlight))?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Problem::Shed(Shed::InFlight))?;
        Ok(Places { _place: place, _share: share })
    }

    pub fn usage(&self) -> Usage {
        Usage { now: self.limit - self.places.available_permits(), limit: self.limit }
    }
}
