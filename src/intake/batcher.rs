//! Group commit: submissions that arrive while a statement is in flight ride in the next.
//!
//! Owns the queue, its bounds, and who is still waiting in it. It knows no SQL and judges nobody. There is no timer: a
//! writer that is free takes what there is, so nobody waits for company.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::Submission;
use crate::database::DatabaseError;
use crate::idempotency::queries::Stored;
use crate::ids::TenantId;
use crate::metrics::{Shed, Usage};
use crate::shares::{Shares, half};

/// How much may wait, and how much one statement may carry. A submission that is larger than either limit of bytes is
/// taken all the same, alone.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub batch_jobs: usize,
    pub batch_bytes: usize,
    /// Of all that is not answered yet, in a statement or on the way to one.
    pub queue_jobs: usize,
    pub queue_bytes: usize,
    /// How long a submission waits to be sent.
    pub acquire_timeout: Duration,
}

/// What came of a ride.
#[derive(Debug)]
pub enum Ridden {
    /// All is committed, and the key lives until then.
    Made(DateTime<Utc>),
    /// The key is taken, by this.
    Met(Stored),
    /// The key was taken, and nothing stands there any more or it could not be read.
    Not,
}

type Answer = Result<Ridden, DatabaseError>;

pub struct Batcher {
    queue: Mutex<Queue>,
    arrived: Notify,
    bounds: Bounds,
    jobs: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// One tenant's part of either: half of it, so that a slow database does not make one tenant's jobs fill the queue.
    job_shares: Shares,
    byte_shares: Shares,
}

#[derive(Default)]
struct Queue {
    tickets: VecDeque<Arc<Ticket>>,
    closed: bool,
}

/// A place in the queue, and then in a batch.
pub struct Ticket {
    pub since: Instant,
    pub deadline: Instant,
    bytes: usize,
    rider: Mutex<Rider>,
}

/// A request's own hold on its ticket: with the request it is given up, on whatever way that ends.
struct Ride {
    ticket: Arc<Ticket>,
}

/// Who has a ticket. The writer and the request itself decide between them whether it is sent.
enum Rider {
    /// May still leave.
    Waiting(Load),
    Sent(Load),
    /// Nothing came of it, for certain, and it will be sent again.
    SentInVain(Load),
    /// Has left, or has been told.
    Gone,
}

struct Load {
    submission: Arc<Submission>,
    answer: oneshot::Sender<Answer>,
    _room: [OwnedSemaphorePermit; 4],
}

/// What a row has besides the client's own texts.
const ROW_BYTES: usize = 512;

impl Batcher {
    pub fn new(bounds: Bounds) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self {
            queue: Mutex::default(),
            arrived: Notify::new(),
            jobs: semaphore(bounds.queue_jobs),
            bytes: semaphore(bounds.queue_bytes),
            job_shares: Shares::new(half(bounds.queue_jobs)),
            byte_shares: Shares::new(half(bounds.queue_bytes)),
            bounds,
        }
    }

    /// Rides in the next statement, and says what came of it.
    ///
    /// # Errors
    /// [`DatabaseError`], at `deadline` at the latest; at once if the queue is full, and after [`Bounds::acquire_timeout`] if
    /// nothing was sent by then.
    pub async fn ride(&self, submission: Arc<Submission>, deadline: Instant) -> Result<Ridden, DatabaseError> {
        let (ride, mut answer) = self.enter(submission, deadline)?;
        let acquire_ends = deadline.min(Instant::now() + self.bounds.acquire_timeout);
        if let Ok(answered) = timeout_at(acquire_ends, &mut answer).await {
            return answered.unwrap_or(Err(DatabaseError::Unknown));
        }
        if ride.ticket.leave() {
            return Err(DatabaseError::Shed(Shed::Waited));
        }
        // It was sent, so the truth is worth waiting for.
        match timeout_at(deadline, &mut answer).await {
            Ok(Ok(answered)) => answered,
            _ if ride.ticket.leave_at_last() => Err(DatabaseError::Shed(Shed::Waited)),
            _ => Err(DatabaseError::Unknown),
        }
    }

    /// What a writer sends next, as soon as there is anything; `None` once the queue is closed and all is taken.
    pub async fn next_batch(&self) -> Option<Vec<Arc<Ticket>>> {
        loop {
            let arrived = self.arrived.notified();
            let (batch, is_over) = self.take();
            if !batch.is_empty() {
                return Some(batch);
            }
            if is_over {
                return None;
            }
            arrived.await;
        }
    }

    /// Takes no more; what was taken is answered.
    pub fn close(&self) {
        self.queue().closed = true;
        self.arrived.notify_waiters();
    }

    /// How many submissions are not answered yet, of those that may be.
    pub fn usage(&self) -> Usage {
        Usage { now: self.bounds.queue_jobs - self.jobs.available_permits(), limit: self.bounds.queue_jobs }
    }

    fn enter(
        &self,
        submission: Arc<Submission>,
        deadline: Instant,
    ) -> Result<(Ride, oneshot::Receiver<Answer>), DatabaseError> {
        let bytes = ROW_BYTES + submission.bytes();
        let room = self.room(submission.draft.tenant, bytes).map_err(DatabaseError::Shed)?;
        let (answer, answered) = oneshot::channel();
        let rider = Rider::Waiting(Load { submission, answer, _room: room });
        let ticket = Arc::new(Ticket { since: Instant::now(), deadline, bytes, rider: Mutex::new(rider) });
        let mut queue = self.queue();
        if queue.closed {
            return Err(DatabaseError::Unavailable("the service is shutting down".to_owned()));
        }
        // Whoever came first gives up first, so the tickets of those who have gone are at the front.
        while queue.tickets.front().is_some_and(|ticket| ticket.is_of_nobody()) {
            queue.tickets.pop_front();
        }
        queue.tickets.push_back(Arc::clone(&ticket));
        drop(queue);
        self.arrived.notify_one();
        Ok((Ride { ticket }, answered))
    }

    /// Room for one submission: in its tenant's share first, then in the queue.
    fn room(&self, tenant: TenantId, bytes: usize) -> Result<[OwnedSemaphorePermit; 4], Shed> {
        let own_job = self.job_shares.try_acquire(tenant, 1).ok_or(Shed::TenantQueueFull)?;
        let own_bytes = self.byte_shares.try_acquire(tenant, bytes).ok_or(Shed::TenantQueueFull)?;
        let full = |_| Shed::QueueFull;
        let job = Arc::clone(&self.jobs).try_acquire_owned().map_err(full)?;
        let bytes = u32::try_from(bytes.min(self.bounds.queue_bytes)).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(bytes).map_err(full)?;
        Ok([own_job, own_bytes, job, bytes])
    }

    /// As much as one statement may carry, and whether there will never be any more.
    fn take(&self) -> (Vec<Arc<Ticket>>, bool) {
        let mut queue = self.queue();
        let mut bytes = 0;
        let mut fits = |ticket: &Arc<Ticket>| {
            bytes += ticket.bytes;
            bytes <= self.bounds.batch_bytes
        };
        let jobs = queue.tickets.iter().take(self.bounds.batch_jobs).take_while(|ticket| fits(ticket)).count();
        let jobs = jobs.max(1).min(queue.tickets.len());
        let batch = queue.tickets.drain(..jobs).collect();
        if !queue.tickets.is_empty() {
            // There is work for another writer.
            self.arrived.notify_one();
        }
        (batch, queue.closed)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// What is sent for it, from now on whatever its request does; `None` if that has left.
    pub fn board(&self) -> Option<Arc<Submission>> {
        let mut rider = self.rider();
        *rider = match std::mem::replace(&mut *rider, Rider::Gone) {
            Rider::Waiting(load) | Rider::Sent(load) | Rider::SentInVain(load) => Rider::Sent(load),
            Rider::Gone => Rider::Gone,
        };
        match &*rider {
            Rider::Sent(load) => Some(Arc::clone(&load.submission)),
            _ => None,
        }
    }

    /// Notes that nothing came of what was sent, and that it will be sent again.
    pub fn note_in_vain(&self) {
        let mut rider = self.rider();
        *rider = match std::mem::replace(&mut *rider, Rider::Gone) {
            Rider::Sent(load) => Rider::SentInVain(load),
            other => other,
        };
    }

    /// Says what came of it, once.
    pub fn tell(&self, answer: Answer) {
        if let Rider::Waiting(load) | Rider::Sent(load) | Rider::SentInVain(load) =
            std::mem::replace(&mut *self.rider(), Rider::Gone)
        {
            // Whoever does not listen any more finds out by the key.
            let _ = load.answer.send(answer);
        }
    }

    /// Gives up, if it was not sent.
    fn leave(&self) -> bool {
        self.leave_if(|rider| matches!(rider, Rider::Waiting(_)))
    }

    /// Gives up, if nothing can have come of it.
    fn leave_at_last(&self) -> bool {
        self.leave_if(|rider| matches!(rider, Rider::Waiting(_) | Rider::SentInVain(_)))
    }

    fn leave_if(&self, may: impl FnOnce(&Rider) -> bool) -> bool {
        let mut rider = self.rider();
        let leaves = may(&rider);
        if leaves {
            *rider = Rider::Gone;
        }
        leaves
    }

    fn is_of_nobody(&self) -> bool {
        matches!(*self.rider(), Rider::Gone)
    }

    fn rider(&self) -> MutexGuard<'_, Rider> {
        self.rider.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ride {
    fn drop(&mut self) {
        self.ticket.leave();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use futures_util::poll;

    use super::*;
    use crate::idempotency::{Fingerprint, Key, Route, ScopedKey};
    use crate::ids::RequestId;
    use crate::jobs::NewJob;
    use crate::json::Document;

    pub const BOUNDS: Bounds = Bounds {
        batch_jobs: 3,
        batch_bytes: 8192,
        queue_jobs: 5,
        queue_bytes: 16 * 1024,
        acquire_timeout: Duration::from_secs(1),
    };

    pub fn submission(payload_bytes: usize) -> Arc<Submission> {
        submission_of(0, payload_bytes)
    }

    fn submission_of(tenant: u128, payload_bytes: usize) -> Arc<Submission> {
        let body = format!(r#"{{"type":"t","payload":"{}"}}"#, "x".repeat(payload_bytes));
        let document = Document::parse(body.as_bytes()).unwrap();
        let key: Key = "k".parse().unwrap();
        let key = ScopedKey { tenant: TenantId(uuid::Uuid::from_u128(tenant)), route: Route("POST /jobs"), key };
        let job = NewJob::parse(document.root()).unwrap();
        Arc::new(Submission::mint(
            key,
            Fingerprint::of("/jobs", NewJob::canonical(document.root())),
            job,
            RequestId::mint(),
            Duration::from_secs(1),
        ))
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    macro_rules! riding {
        ($batcher:expr, $bytes:expr) => {
            riding!($batcher, $bytes, 0)
        };
        ($batcher:expr, $bytes:expr, $tenant:expr) => {{
            let mut ride = Box::pin($batcher.ride(submission_of($tenant, $bytes), in_a_minute()));
            assert!(poll!(&mut ride).is_pending());
            ride
        }};
    }

    fn tell_all(batch: Vec<Arc<Ticket>>) -> usize {
        batch.iter().filter(|ticket| ticket.board().is_some()).map(|ticket| ticket.tell(Ok(Ridden::Not))).count()
    }

    #[tokio::test]
    async fn a_batch_is_what_has_come_up_to_its_bounds() {
        let batcher = Batcher::new(BOUNDS);
        let mut rides = Vec::new();
        for (bytes, tenant) in [(10, 0), (10, 1), (10, 0), (6000, 1), (6000, 0)] {
            rides.push(riding!(batcher, bytes, tenant));
        }
        let mut sizes = Vec::new();
        for _ in 0..3 {
            sizes.push(tell_all(batcher.next_batch().await.unwrap()));
        }
        assert_eq!(sizes, [3, 1, 1], "by count, then by bytes");
        for ride in rides {
            assert!(matches!(ride.await, Ok(Ridden::Not)));
        }
        let large = riding!(batcher, 100_000);
        assert_eq!(tell_all(batcher.next_batch().await.unwrap()), 1, "larger than any bound, it goes alone");
        assert!(large.await.is_ok());
    }

    #[tokio::test]
    async fn a_full_queue_says_so_at_once_until_somebody_is_answered() {
        for (bytes, fit) in [(10, 5), (5000, 2)] {
            let batcher = Batcher::new(BOUNDS);
            let mut rides = Vec::new();
            for tenant in 0..fit {
                rides.push(riding!(batcher, bytes, tenant));
            }
            let refused = batcher.ride(submission_of(fit, bytes), in_a_minute()).await;
            assert!(matches!(refused, Err(DatabaseError::Shed(Shed::QueueFull))), "{refused:?}");
            let batch = batcher.next_batch().await.unwrap();
            let refused = batcher.ride(submission_of(fit, bytes), in_a_minute()).await;
            assert!(matches!(refused, Err(DatabaseError::Shed(Shed::QueueFull))), "what is under way counts");
            tell_all(batch);
            let _ride = riding!(batcher, bytes);
        }
    }

    #[tokio::test]
    async fn one_tenant_has_half_of_the_queue() {
        for (bytes, fit) in [(10, 3), (5000, 1)] {
            let batcher = Batcher::new(BOUNDS);
            let _rides: Vec<_> = (0..fit).map(|_| batcher.enter(submission(bytes), in_a_minute()).unwrap()).collect();
            let refused = batcher.ride(submission(bytes), in_a_minute()).await;
            assert!(matches!(refused, Err(DatabaseError::Shed(Shed::TenantQueueFull))), "{refused:?}");
            let _other = riding!(batcher, bytes, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_not_sent_in_time_leaves_and_is_never_sent() {
        let batcher = Batcher::new(BOUNDS);
        let started = Instant::now();
        let unsent = batcher.ride(submission(10), in_a_minute()).await;
        assert!(matches!(unsent, Err(DatabaseError::Shed(Shed::Waited))), "{unsent:?}");
        assert_eq!(started.elapsed(), BOUNDS.acquire_timeout);
        assert_eq!(batcher.usage().now, 0, "its room is free");
        assert!(batcher.ride(submission(10), in_a_minute()).await.is_err());
        assert_eq!(batcher.queue().tickets.len(), 1, "with no writer, whoever comes clears away those who have left");
        assert_eq!(tell_all(batcher.next_batch().await.unwrap()), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_sent_waits_until_his_deadline() {
        let batcher = Batcher::new(BOUNDS);
        let started = Instant::now();
        let ride = riding!(batcher, 10);
        let batch = batcher.next_batch().await.unwrap();
        assert!(batch[0].board().is_some());
        let answer = ride.await;
        assert!(matches!(answer, Err(DatabaseError::Unknown)), "{answer:?}");
        assert_eq!(started.elapsed(), Duration::from_secs(60));
        assert!(batch[0].board().is_some(), "it may be sent again all the same");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_sent_in_vain_knows_that_nothing_came_of_it() {
        let batcher = Batcher::new(BOUNDS);
        let ride = riding!(batcher, 10);
        let batch = batcher.next_batch().await.unwrap();
        assert!(batch[0].board().is_some());
        batch[0].note_in_vain();
        let started = Instant::now();
        let answer = ride.await;
        assert_eq!(started.elapsed(), Duration::from_secs(60), "it was about to be sent again");
        assert!(matches!(answer, Err(DatabaseError::Shed(Shed::Waited))), "{answer:?}");
        assert!(batch[0].board().is_none(), "it has left");
    }

    #[tokio::test]
    async fn whoever_is_dropped_before_he_is_sent_leaves() {
        let batcher = Batcher::new(BOUNDS);
        drop(riding!(batcher, 10));
        assert_eq!(batcher.usage().now, 0);
        assert_eq!(tell_all(batcher.next_batch().await.unwrap()), 0);
    }

    #[tokio::test]
    async fn a_closed_queue_takes_nobody_and_gives_out_all_that_it_has() {
        let batcher = Batcher::new(BOUNDS);
        let rides: Vec<_> = vec![riding!(batcher, 10), riding!(batcher, 10), riding!(batcher, 6000)];
        batcher.close();
        let refused = batcher.ride(submission_of(1, 10), in_a_minute()).await;
        assert!(matches!(refused, Err(DatabaseError::Unavailable(_))), "{refused:?}");
        let mut sent = 0;
        while let Some(batch) = batcher.next_batch().await {
            sent += tell_all(batch);
        }
        assert_eq!(sent, rides.len());
    }

    #[tokio::test]
    async fn a_writer_that_waits_is_woken_by_an_arrival_and_by_the_end() {
        let batcher = Batcher::new(BOUNDS);
        let mut writers = [Box::pin(batcher.next_batch()), Box::pin(batcher.next_batch())];
        for writer in &mut writers {
            assert!(poll!(writer).is_pending());
        }
        let [one, two] = writers;
        let ride = riding!(batcher, 10);
        assert_eq!(tell_all(one.await.unwrap()), 1);
        assert!(ride.await.is_ok());
        batcher.close();
        assert!(two.await.is_none());
    }
}
