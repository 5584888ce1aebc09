//! A connection pool that tenants share.

use std::sync::Arc;

use sqlx::PgConnection;
use tokio::time::{Instant, timeout_at};

use super::lease::Share;
use super::pool::{Connections, Pool};
use super::retry::{DatabaseError, Loss, RetryState};
use crate::ids::TenantId;
use crate::overload::Shed;
use crate::shares::{Shares, half};

/// A [`Pool`] of which one tenant uses at most half (the only connection if there is one), so that slow statements of
/// one tenant leave the other half to the rest. A connection counts for its tenant until its statement has ended, even
/// if the request has gone. See ADR 0027.
#[derive(Clone)]
pub struct SharedPool {
    pool: Pool,
    share: usize,
    shares: Arc<Shares>,
}

impl SharedPool {
    /// Nothing else may use `pool`.
    pub fn new(pool: Pool) -> Self {
        let share = half(pool.count().limit);
        Self { pool, share, shares: Arc::new(Shares::new(share)) }
    }

    /// [`Pool::complete`] for a tenant.
    ///
    /// # Errors
    /// As [`Pool::complete`]; [`Shed::TenantWaited`] if none of the tenant's connections came free in time.
    pub async fn complete<T>(
        &self,
        statement: &'static str,
        tenant: TenantId,
        deadline: Instant,
        work: impl AsyncFnMut(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T, DatabaseError> {
        let (retry, share) = self.enter(tenant, self.pool.retry(Loss::MustBecomeKnown, deadline)).await?;
        self.pool.run(statement, retry, Some(share), work).await
    }

    /// [`Pool::read`] for a tenant.
    ///
    /// # Errors
    /// As [`Pool::read`]; [`Shed::TenantWaited`] if none of the tenant's connections came free in time.
    pub async fn read<T>(
        &self,
        statement: &'static str,
        tenant: TenantId,
        deadline: Instant,
        work: impl AsyncFnMut(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T, DatabaseError> {
        let (retry, share) = self.enter(tenant, self.pool.retry(Loss::ChangesNothing, deadline)).await?;
        self.pool.run(statement, retry, Some(share), work).await
    }

    /// How many connections one tenant may use at once.
    pub fn share(&self) -> usize {
        self.share
    }

    pub fn count(&self) -> Connections {
        self.pool.count()
    }

    /// Waits for the tenant's share within the acquire timeout. The rest of that time is for the connection itself.
    async fn enter(&self, tenant: TenantId, retry: RetryState) -> Result<(RetryState, Share), DatabaseError> {
        if let Some(share) = self.shares.try_acquire(tenant, 1) {
            return Ok((retry, Arc::new(share)));
        }
        if self.pool.refuses() {
            return Err(DatabaseError::Shed(Shed::Outage));
        }
        match timeout_at(retry.ends(), self.shares.acquire(tenant, 1)).await {
            Ok(share) => Ok((retry, Arc::new(share))),
            Err(_) if self.pool.is_away() => {
                Err(DatabaseError::Unavailable("no connection to the database".to_owned()))
            }
            Err(_) => Err(DatabaseError::Shed(Shed::TenantWaited)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_acquire_timeout_limits_the_wait_for_a_tenants_share() {
        let pool = SharedPool::new(Pool::to_nowhere());
        let tenant = TenantId(Uuid::nil());
        let _held = pool.shares.acquire(tenant, 1).await;
        let began = Instant::now();
        let work = async |_: &mut PgConnection| pending::<sqlx::Result<()>>().await;
        let waited = pool.read("test", tenant, began + Duration::from_secs(60), work).await;
        assert!(matches!(waited, Err(DatabaseError::Shed(Shed::TenantWaited))), "{waited:?}");
        assert_eq!(began.elapsed(), Duration::from_secs(1), "the pool's acquire timeout");
    }
}
