//! How many requests are worked on at once.

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::Problem;
use crate::ids::TenantId;
use crate::metrics::{Shed, Usage};
use crate::shares::Shares;

/// A place for each request that may be worked on; one more is told so at once. A tenant has a share of them, so that one
/// whose bodies take their time does not take everybody's.
pub struct Admission {
    places: Semaphore,
    limit: usize,
    shares: Shares,
}

/// Places that a request holds until this is dropped.
pub struct Places<'a> {
    _place: SemaphorePermit<'a>,
    _share: OwnedSemaphorePermit,
}

impl Admission {
    pub fn new(limit: usize, tenant_limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self { places: Semaphore::new(limit), limit, shares: Shares::new(tenant_limit) }
    }

    /// # Errors
    /// [`Problem::Shed`] if the tenant has its share already, or the places are taken.
    pub fn enter(&self, tenant: TenantId) -> Result<Places<'_>, Problem> {
        let share = self.shares.try_acquire(tenant, 1).ok_or(Problem::Shed(Shed::TenantInFlight))?;
        let place = self.places.try_acquire().map_err(|_| Problem::Shed(Shed::InFlight))?;
        Ok(Places { _place: place, _share: share })
    }

    pub fn usage(&self) -> Usage {
        Usage { now: self.limit - self.places.available_permits(), limit: self.limit }
    }
}
