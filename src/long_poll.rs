//! Requests that wait for an event: a worker for a job, a client for the end of a job.
//!
//! A waiting request holds no database connection. The replica that causes an event wakes its own waiters. For events
//! of other replicas, a waiter looks again from time to time.

use std::hash::Hash;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::ids::{JobId, TenantId};
use crate::overload::Usage;
use crate::shares::Shares;
use crate::wakeups::{Waiter, Wakeups};

/// The waiting requests of a replica.
pub struct LongPolls {
    queued: Wakeups<(TenantId, String)>,
    finished: Wakeups<(TenantId, JobId)>,
    places: Semaphore,
    places_limit: usize,
    shares: Shares,
    poll_interval: Duration,
}

/// The limits of waiting requests.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub waiting: usize,
    pub waiting_per_tenant: usize,
    /// How often a waiting request looks for events of other replicas.
    pub poll_interval: Duration,
}

impl LongPolls {
    pub fn new(bounds: Bounds) -> Self {
        let places_limit = bounds.waiting.min(Semaphore::MAX_PERMITS);
        Self {
            queued: Wakeups::default(),
            finished: Wakeups::default(),
            places: Semaphore::new(places_limit),
            places_limit,
            shares: Shares::new(bounds.waiting_per_tenant),
            poll_interval: bounds.poll_interval,
        }
    }

    /// Wakes a request that waits for a job in this queue.
    pub fn job_queued(&self, tenant: TenantId, queue: &str) {
        self.queued.wake(|| (tenant, queue.to_owned()), 1);
    }

    /// Wakes all requests that wait for the end of this job.
    pub fn job_finished(&self, tenant: TenantId, id: JobId) {
        self.finished.wake(|| (tenant, id), usize::MAX);
    }

    /// Registers a request for jobs in these queues. Register before looking for jobs, so that none is missed in between.
    pub fn for_queues(&self, tenant: TenantId, queues: &[String]) -> Waiter<'_, (TenantId, String)> {
        self.queued.register(queues.iter().map(|queue| (tenant, queue.clone())).collect())
    }

    /// Registers a request for the end of a job.
    pub fn for_end(&self, tenant: TenantId, id: JobId) -> Waiter<'_, (TenantId, JobId)> {
        self.finished.register(vec![(tenant, id)])
    }

    /// Waits until the request should look again. `false` if it should not: the time is up, the server drains, or too
    /// many requests wait already.
    pub async fn wait<K: Hash + Eq + Clone>(&self, tenant: TenantId, waiter: Waiter<'_, K>, until: Instant) -> bool {
        let Some(_share) = self.shares.try_acquire(tenant, 1) else { return false };
        let Ok(_place) = self.places.try_acquire() else { return false };
        let _woken = timeout_at(until.min(Instant::now() + self.poll_interval), waiter.woken()).await;
        Instant::now() < until && !self.queued.is_closed()
    }

    /// The requests that wait.
    pub fn usage(&self) -> Usage {
        Usage { now: self.places_limit - self.places.available_permits(), limit: self.places_limit }
    }

    /// Ends all waits, and lets no request wait any more.
    pub fn close(&self) {
        self.queued.close();
        self.finished.close();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const TENANT: TenantId = TenantId(Uuid::nil());
    const BOUNDS: Bounds = Bounds { waiting: 3, waiting_per_tenant: 2, poll_interval: Duration::from_secs(1) };

    fn queues() -> [String; 1] {
        ["default".to_owned()]
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_by_an_event_the_poll_interval_its_end_or_the_drain() {
        let polls = LongPolls::new(BOUNDS);
        let began = Instant::now();
        let in_a_minute = began + Duration::from_secs(60);
        let waiter = polls.for_queues(TENANT, &queues());
        polls.job_queued(TENANT, "default");
        assert!(polls.wait(TENANT, waiter, in_a_minute).await);
        assert_eq!(began.elapsed(), Duration::ZERO, "an event");
        assert!(polls.wait(TENANT, polls.for_queues(TENANT, &queues()), in_a_minute).await);
        assert_eq!(began.elapsed(), BOUNDS.poll_interval, "the poll interval");
        let soon = Instant::now() + Duration::from_millis(10);
        assert!(!polls.wait(TENANT, polls.for_queues(TENANT, &queues()), soon).await, "its end");
        polls.close();
        assert!(!polls.wait(TENANT, polls.for_queues(TENANT, &queues()), in_a_minute).await, "the drain");
        assert_eq!(Instant::now(), soon);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_has_a_share_of_the_places_and_a_request_beyond_it_does_not_wait() {
        let polls = LongPolls::new(BOUNDS);
        let until = Instant::now() + Duration::from_millis(500);
        let wait = |tenant| polls.wait(tenant, polls.for_queues(tenant, &queues()), until);
        let other = TenantId(Uuid::max());
        let beyond = async {
            tokio::task::yield_now().await;
            assert!(!wait(TENANT).await);
            assert_ne!(Instant::now(), until, "it did not wait");
        };
        let usage = async {
            tokio::task::yield_now().await;
            polls.usage().now
        };
        let (.., waiting) = tokio::join!(wait(TENANT), wait(TENANT), beyond, wait(other), usage);
        assert_eq!(Instant::now(), until);
        assert_eq!((waiting, polls.usage().now, polls.usage().limit), (3, 0, 3));
    }
}
