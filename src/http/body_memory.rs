//! Memory for bodies: how much those of all requests and answers may take at once, and how much one tenant's.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Problem;
use crate::ids::TenantId;
use crate::metrics::{Shed, Usage};
use crate::shares::Shares;

/// A budget of bytes. What does not fit is refused at once, so that a process in a container is not killed with
/// everybody's requests in it.
pub struct BodyMemory {
    all: Arc<Semaphore>,
    limit: usize,
    tenants: Shares,
}

/// Bytes of the budget, given back when this is dropped.
pub struct HeldBytes {
    all: OwnedSemaphorePermit,
    tenant: OwnedSemaphorePermit,
}

/// Memory that was taken for an answer before it was known. A request's extensions carry it.
pub struct AnswerBytes(pub HeldBytes);

impl BodyMemory {
    pub fn new(limit: usize, tenant_limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self { all: Arc::new(Semaphore::new(limit)), limit, tenants: Shares::new(tenant_limit) }
    }

    /// Takes so many bytes.
    ///
    /// # Errors
    /// [`Problem::Shed`] if there are not so many left, for the tenant or for all.
    pub fn hold(&self, tenant: TenantId, bytes: usize) -> Result<HeldBytes, Problem> {
        let tenant = self.tenants.try_acquire(tenant, bytes).ok_or(Problem::Shed(Shed::TenantBodyBytes))?;
        let all = take(&self.all, bytes).ok_or(Problem::Shed(Shed::BodyBytes))?;
        Ok(HeldBytes { all, tenant })
    }

    pub fn usage(&self) -> Usage {
        Usage { now: self.limit - self.all.available_permits(), limit: self.limit }
    }
}

impl HeldBytes {
    pub fn bytes(&self) -> usize {
        self.all.num_permits()
    }

    /// Takes so many more.
    ///
    /// # Errors
    /// As [`BodyMemory::hold`].
    pub fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let tenant = take(self.tenant.semaphore(), bytes).ok_or(Problem::Shed(Shed::TenantBodyBytes))?;
        let all = take(self.all.semaphore(), bytes).ok_or(Problem::Shed(Shed::BodyBytes))?;
        self.tenant.merge(tenant);
        self.all.merge(all);
        Ok(())
    }
}

fn take(semaphore: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Arc::clone(semaphore).try_acquire_many_owned(bytes).ok()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const ONE: TenantId = TenantId(Uuid::from_u128(1));
    const OTHER: TenantId = TenantId(Uuid::from_u128(2));

    fn reason<T>(held: Result<T, Problem>) -> Option<Shed> {
        match held {
            Err(Problem::Shed(reason)) => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn a_tenant_takes_its_share_and_all_take_what_there_is() {
        let memory = BodyMemory::new(100, 60);
        let mut one = memory.hold(ONE, 40).unwrap();
        assert_eq!(reason(memory.hold(ONE, 21)), Some(Shed::TenantBodyBytes));
        assert_eq!(reason(one.grow(21)), Some(Shed::TenantBodyBytes));
        let other = memory.hold(OTHER, 50).unwrap();
        assert_eq!(reason(one.grow(11)), Some(Shed::BodyBytes));
        one.grow(10).unwrap();
        assert_eq!(memory.usage().now, 100);
        drop((one, other));
        assert_eq!(memory.usage().now, 0);
    }
}
