//! Runs CPU-heavy work outside of the HTTP worker threads.
//!
//! An HTTP worker serves many clients in turn, so a millisecond of work there delays all of them. Large JSON texts are
//! scanned, digested and compared here. One tenant gets only a part of the CPUs.

use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use crate::ids::TenantId;
use crate::overload::Shed;
use crate::shares::Shares;

/// Runs work on large texts in separate threads.
pub struct Offload {
    cpus: Arc<Semaphore>,
    tenants: Shares,
}

/// Smaller texts are processed in place, because handing them over would cost as much.
pub const SMALL_BYTES: usize = 16 * 1024;

impl Offload {
    /// For a machine with this many CPUs. One tenant may use half of them.
    pub fn new(cpus: usize) -> Self {
        Self { cpus: Arc::new(Semaphore::new(cpus.max(1))), tenants: Shares::new((cpus / 2).max(1)) }
    }

    /// Runs `work`, which takes time in proportion to `bytes`.
    ///
    /// # Errors
    /// [`Shed::Cpu`] if no CPU is free before `deadline`.
    pub async fn run<T: Send + 'static>(
        &self,
        tenant: TenantId,
        bytes: usize,
        deadline: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Shed> {
        if bytes <= SMALL_BYTES {
            return Ok(work());
        }
        let waiting = async {
            let share = self.tenants.acquire(tenant, 1).await;
            (share, Arc::clone(&self.cpus).acquire_owned().await)
        };
        let places = timeout_at(deadline, waiting).await.map_err(|_| Shed::Cpu)?;
        // The work keeps its permits until it ends, even if the request has gone.
        let done = spawn_blocking(move || {
            let _places = places;
            work()
        });
        Ok(done.await.unwrap_or_else(|error| resume_unwind(error.into_panic())))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    const ONE: TenantId = TenantId(Uuid::from_u128(1));
    const OTHER: TenantId = TenantId(Uuid::from_u128(2));
    const LARGE: usize = SMALL_BYTES + 1;

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_tenant_at_its_limit_waits_and_another_does_not() {
        let offload = Arc::new(Offload::new(2));
        let (finish, finished) = channel::<()>();
        let busy = Arc::clone(&offload);
        let first = tokio::spawn(async move { busy.run(ONE, LARGE, in_a_minute(), move || finished.recv()).await });
        while offload.cpus.available_permits() == 2 {
            tokio::task::yield_now().await;
        }
        let late = offload.run(ONE, LARGE, Instant::now(), || ()).await;
        assert!(matches!(late, Err(Shed::Cpu)));
        assert!(matches!(offload.run(OTHER, LARGE, in_a_minute(), || 7).await, Ok(7)));
        assert!(matches!(offload.run(ONE, SMALL_BYTES, Instant::now(), || 8).await, Ok(8)), "small texts do not wait");
        finish.send(()).unwrap();
        assert!(first.await.unwrap().unwrap().is_ok());
    }
}
