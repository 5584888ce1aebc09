//! Requests that wait for an event: a worker for a job, a client for the end of a job.
//!
//! A waiting request holds no database connection. The replica that causes an event wakes its own waiters, and tells the
//! other replicas by [`crate::notifications`]. A waiter also looks again from time to time, because not every event wakes
//! it, and a notification may get lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::ids::{JobId, TenantId};
use crate::notifications::{Event, Incoming, Outbox};
use crate::overload::Usage;
use crate::shares::Shares;
use crate::wakeups::{Waiter, Wakeups};

/// The waiting requests of a replica.
pub struct LongPolls {
    queued: Wakeups<Event>,
    finished: Wakeups<Event>,
    /// For other replicas. `None` if they are not told.
    outbox: Option<Arc<Outbox>>,
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
    /// How often a waiting request looks without having been woken.
    pub poll_interval: Duration,
}

impl LongPolls {
    pub fn new(bounds: Bounds, outbox: Option<Arc<Outbox>>) -> Self {
        let places_limit = bounds.waiting.min(Semaphore::MAX_PERMITS);
        Self {
            queued: Wakeups::default(),
            finished: Wakeups::default(),
            outbox,
            places: Semaphore::new(places_limit),
            places_limit,
            shares: Shares::new(bounds.waiting_per_tenant),
            poll_interval: bounds.poll_interval,
        }
    }

    /// Wakes a request that waits for a job in this queue, here and on each other replica.
    pub fn job_queued(&self, tenant: TenantId, queue: &str) {
        let event = || Event::job_queued(tenant, queue);
        self.queued.wake(event, 1);
        if let Some(outbox) = &self.outbox {
            outbox.put(tenant, event());
        }
    }

    /// Wakes all requests that wait for the end of this job, on all replicas.
    pub fn job_finished(&self, tenant: TenantId, id: JobId) {
        let event = || Event::job_finished(tenant, id);
        self.finished.wake(event, usize::MAX);
        if let Some(outbox) = &self.outbox {
            outbox.put(tenant, event());
        }
    }

    /// Wakes requests for what other replicas have committed.
    ///
    /// Each replica wakes one request for each new job, although one of them gets it, because no replica knows where
    /// workers wait. The others find nothing, which costs one statement each, and wait on. To wake all would cost a
    /// statement for each idle worker.
    pub fn learn(&self, incoming: Incoming) {
        match incoming {
            // The hash of an event does not tell of which kind it is. Nothing waits for it in the other place.
            Incoming::Event(event, count) => {
                self.queued.wake(|| event, count);
                self.finished.wake(|| event, usize::MAX);
            }
            Incoming::Gap => {
                self.queued.wake_all();
                self.finished.wake_all();
            }
        }
    }

    /// What other replicas are to be told. `None` if they are not told.
    pub fn outbox(&self) -> Option<&Arc<Outbox>> {
        self.outbox.as_ref()
    }

    /// Registers a request for jobs in these queues. Register before looking for jobs, so that none is missed in between.
    pub fn for_queues(&self, tenant: TenantId, queues: &[String]) -> Waiter<'_, Event> {
        self.queued.register(queues.iter().map(|queue| Event::job_queued(tenant, queue)).collect())
    }

    /// Registers a request for the end of a job.
    pub fn for_end(&self, tenant: TenantId, id: JobId) -> Waiter<'_, Event> {
        self.finished.register(vec![Event::job_finished(tenant, id)])
    }

    /// Waits until the request should look again. `false` if it should not: the time is up, the server drains, or too
    /// many requests wait already.
    pub async fn wait(&self, tenant: TenantId, waiter: Waiter<'_, Event>, until: Instant) -> bool {
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
    use futures_util::poll;
    use uuid::Uuid;

    use super::*;
    use crate::metrics::Metrics;

    const TENANT: TenantId = TenantId(Uuid::nil());
    const BOUNDS: Bounds = Bounds { waiting: 3, waiting_per_tenant: 2, poll_interval: Duration::from_secs(1) };

    fn queues() -> [String; 1] {
        ["default".to_owned()]
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_by_an_event_the_poll_interval_its_end_or_the_drain() {
        let polls = LongPolls::new(BOUNDS, None);
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

    #[tokio::test]
    async fn what_one_replica_commits_wakes_requests_of_another() {
        let [one, other] = [0, 1].map(|_| LongPolls::new(BOUNDS, Some(Arc::new(Outbox::new(Metrics::new())))));
        let id = JobId(Uuid::from_u128(1));
        let workers = [0, 1, 2].map(|_| other.for_queues(TENANT, &queues()));
        let clients = [0, 1].map(|_| other.for_end(TENANT, id));
        let unrelated = other.for_queues(TENANT, &["another".to_owned()]);
        for _ in 0..2 {
            one.job_queued(TENANT, "default");
        }
        one.job_finished(TENANT, id);
        for (event, count) in one.outbox().unwrap().take() {
            other.learn(Incoming::Event(event, count.into()));
        }
        let woken = async |waiter: &Waiter<'_, Event>| poll!(Box::pin(waiter.woken())).is_ready();
        assert!(woken(&clients[0]).await && woken(&clients[1]).await, "all that wait for the end");
        assert!(woken(&workers[0]).await && woken(&workers[1]).await, "one for each job");
        assert!(!woken(&workers[2]).await && !woken(&unrelated).await);
        other.learn(Incoming::Gap);
        assert!(woken(&workers[2]).await && woken(&unrelated).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_has_a_share_of_the_places_and_a_request_beyond_it_does_not_wait() {
        let polls = LongPolls::new(BOUNDS, None);
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
