//! The memory limit for request and answer bodies, in total and per tenant.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Problem;
use crate::ids::TenantId;
use crate::overload::{Shed, Usage};
use crate::shares::Shares;

/// A budget of bytes. A body that does not fit is refused immediately. Otherwise the kernel could kill a process in a
/// container, together with the requests of all clients.
pub struct BodyMemory {
    all: Arc<Semaphore>,
    limit: usize,
    tenants: Shares,
}

/// Reserved bytes of the budget. They are free again when this is dropped.
pub struct HeldBytes {
    all: OwnedSemaphorePermit,
    tenant: OwnedSemaphorePermit,
}

/// Memory that a handler reserved for an answer in advance. It is stored in the request's extensions.
pub struct AnswerBytes(pub HeldBytes);

impl BodyMemory {
    pub fn new(limit: usize, tenant_limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self { all: Arc::new(Semaphore::new(limit)), limit, tenants: Shares::new(tenant_limit) }
    }

    /// Reserves bytes.
    ///
    /// # Errors
    /// [`Problem::Shed`] if the tenant's budget or the total budget has too few bytes left.
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

    /// Reserves as many bytes as an answer has: more, or gives some back.
    ///
    /// # Errors
    /// As [`BodyMemory::hold`].
    pub fn resize(&mut self, bytes: usize) -> Result<(), Problem> {
        match self.bytes().checked_sub(bytes) {
            None => self.grow(bytes - self.bytes()),
            Some(surplus) => {
                drop((self.all.split(surplus), self.tenant.split(surplus)));
                Ok(())
            }
        }
    }

    /// Reserves more bytes.
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
    fn the_budget_limits_each_tenant_and_the_total() {
        let memory = BodyMemory::new(100, 60);
        let mut one = memory.hold(ONE, 40).unwrap();
        assert_eq!(reason(memory.hold(ONE, 21)), Some(Shed::TenantBodyBytes));
        assert_eq!(reason(one.grow(21)), Some(Shed::TenantBodyBytes));
        let other = memory.hold(OTHER, 50).unwrap();
        assert_eq!(reason(one.grow(11)), Some(Shed::BodyBytes));
        one.grow(10).unwrap();
        assert_eq!(memory.usage().now, 100);
        one.resize(30).unwrap();
        assert_eq!(memory.usage().now, 80);
        assert_eq!(reason(one.resize(61)), Some(Shed::TenantBodyBytes));
        one.resize(50).unwrap();
        assert_eq!(memory.usage().now, 100);
        drop((one, other));
        assert_eq!(memory.usage().now, 0);
    }
}
