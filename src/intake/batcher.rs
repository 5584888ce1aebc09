//! Group commit: submissions that arrive while a statement is in flight go into the next one.
//!
//! Owns the intake queue, its limits, and the pending writes. It knows no SQL and decides nothing about idempotency
//! keys. There is no timer: a free writer takes what has arrived, so no submission waits for later ones.

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
use crate::overload::{Shed, Usage};
use crate::shares::{Shares, half};

/// The limits of the queue and of one statement. A submission that is larger than a limit of bytes is accepted and sent
/// alone.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub batch_jobs: usize,
    pub batch_bytes: usize,
    /// Counts all submissions that are not answered yet, in the queue or in a statement.
    pub queue_jobs: usize,
    pub queue_bytes: usize,
    /// How long a submission waits until it is sent.
    pub acquire_timeout: Duration,
}

/// The result of a statement for one submission.
#[derive(Debug)]
pub enum WriteResult {
    /// The job is committed. The key expires at this time.
    Inserted(DateTime<Utc>),
    /// The key is taken. This is its row.
    Conflict(Stored),
    /// The key was taken, but its row is gone or could not be read.
    Retry,
}

type Answer = Result<WriteResult, DatabaseError>;

pub struct Batcher {
    queue: Mutex<Queue>,
    arrived: Notify,
    bounds: Bounds,
    jobs: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// One tenant may use half of either limit. So one tenant cannot fill the queue while the database is slow.
    job_shares: Shares,
    byte_shares: Shares,
}

#[derive(Default)]
struct Queue {
    writes: VecDeque<Arc<PendingWrite>>,
    closed: bool,
}

/// A submission in the queue or in a batch.
pub struct PendingWrite {
    pub since: Instant,
    pub deadline: Instant,
    bytes: usize,
    state: Mutex<WriteState>,
}

/// The request's handle to its pending write. Dropping it cancels a write that is not sent.
struct EnqueuedWrite {
    write: Arc<PendingWrite>,
}

/// The progress of a write. The writer marks it as sent. The request may cancel it before that.
enum WriteState {
    /// The request can still cancel it.
    Queued(Load),
    Sent(Load),
    /// It was sent and was certainly not committed. The writer will send it again.
    Failed(Load),
    /// Cancelled or answered.
    Done,
}

struct Load {
    submission: Arc<Submission>,
    answer: oneshot::Sender<Answer>,
    _permits: [OwnedSemaphorePermit; 4],
}

/// The size of a row without the texts of the client.
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

    /// Adds a submission to the queue and returns the result of its statement.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest; immediately if the queue is full, and after
    /// [`Bounds::acquire_timeout`] if the submission was not sent by then.
    pub async fn enqueue(&self, submission: Arc<Submission>, deadline: Instant) -> Result<WriteResult, DatabaseError> {
        let (enqueued, mut answer) = self.push(submission, deadline)?;
        let acquire_ends = deadline.min(Instant::now() + self.bounds.acquire_timeout);
        if let Ok(answered) = timeout_at(acquire_ends, &mut answer).await {
            return answered.unwrap_or(Err(DatabaseError::Unknown));
        }
        if enqueued.write.cancel_if_unsent() {
            return Err(DatabaseError::Shed(Shed::Waited));
        }
        // It was sent and may be committed, so the request waits for the result.
        match timeout_at(deadline, &mut answer).await {
            Ok(Ok(answered)) => answered,
            _ if enqueued.write.cancel_unless_committed() => Err(DatabaseError::Shed(Shed::Waited)),
            _ => Err(DatabaseError::Unknown),
        }
    }

    /// Waits for the next batch. `None` once the queue is closed and empty.
    pub async fn next_batch(&self) -> Option<Vec<Arc<PendingWrite>>> {
        loop {
            let arrived = self.arrived.notified();
            let (batch, closed) = self.take();
            if !batch.is_empty() {
                return Some(batch);
            }
            if closed {
                return None;
            }
            arrived.await;
        }
    }

    /// Accepts no more submissions. Those in the queue are still written.
    pub fn close(&self) {
        self.queue().closed = true;
        self.arrived.notify_waiters();
    }

    /// The number of submissions that are not answered yet, and its limit.
    pub fn usage(&self) -> Usage {
        Usage { now: self.bounds.queue_jobs - self.jobs.available_permits(), limit: self.bounds.queue_jobs }
    }

    fn push(
        &self,
        submission: Arc<Submission>,
        deadline: Instant,
    ) -> Result<(EnqueuedWrite, oneshot::Receiver<Answer>), DatabaseError> {
        let bytes = ROW_BYTES + submission.bytes();
        let permits = self.acquire(submission.draft.tenant, bytes).map_err(DatabaseError::Shed)?;
        let (answer, answered) = oneshot::channel();
        let state = WriteState::Queued(Load { submission, answer, _permits: permits });
        let write = Arc::new(PendingWrite { since: Instant::now(), deadline, bytes, state: Mutex::new(state) });
        let mut queue = self.queue();
        if queue.closed {
            return Err(DatabaseError::Unavailable("the service is shutting down".to_owned()));
        }
        // The oldest writes time out first, so the cancelled ones are at the front.
        while queue.writes.front().is_some_and(|write| write.is_done()) {
            queue.writes.pop_front();
        }
        queue.writes.push_back(Arc::clone(&write));
        drop(queue);
        self.arrived.notify_one();
        Ok((EnqueuedWrite { write }, answered))
    }

    /// The permits for one submission: first from the share of its tenant, then from the queue.
    fn acquire(&self, tenant: TenantId, bytes: usize) -> Result<[OwnedSemaphorePermit; 4], Shed> {
        let own_job = self.job_shares.try_acquire(tenant, 1).ok_or(Shed::TenantQueueFull)?;
        let own_bytes = self.byte_shares.try_acquire(tenant, bytes).ok_or(Shed::TenantQueueFull)?;
        let full = |_| Shed::QueueFull;
        let job = Arc::clone(&self.jobs).try_acquire_owned().map_err(full)?;
        let bytes = u32::try_from(bytes.min(self.bounds.queue_bytes)).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(bytes).map_err(full)?;
        Ok([own_job, own_bytes, job, bytes])
    }

    /// The next batch, within the limits of one statement, and whether the queue is closed.
    fn take(&self) -> (Vec<Arc<PendingWrite>>, bool) {
        let mut queue = self.queue();
        let mut bytes = 0;
        let mut fits = |write: &Arc<PendingWrite>| {
            bytes += write.bytes;
            bytes <= self.bounds.batch_bytes
        };
        let jobs = queue.writes.iter().take(self.bounds.batch_jobs).take_while(|write| fits(write)).count();
        let jobs = jobs.max(1).min(queue.writes.len());
        let batch = queue.writes.drain(..jobs).collect();
        if !queue.writes.is_empty() {
            // Another writer can take the rest.
            self.arrived.notify_one();
        }
        (batch, queue.closed)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingWrite {
    /// Returns the submission to send. From now on it cannot be cancelled. `None` if it is cancelled or answered.
    pub fn mark_sent(&self) -> Option<Arc<Submission>> {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, WriteState::Done) {
            WriteState::Queued(load) | WriteState::Sent(load) | WriteState::Failed(load) => WriteState::Sent(load),
            WriteState::Done => WriteState::Done,
        };
        match &*state {
            WriteState::Sent(load) => Some(Arc::clone(&load.submission)),
            _ => None,
        }
    }

    /// Records that the statement was certainly not committed. The writer sends it again.
    pub fn mark_failed(&self) {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, WriteState::Done) {
            WriteState::Sent(load) => WriteState::Failed(load),
            other => other,
        };
    }

    /// Sends the result to the request, once.
    pub fn answer(&self, answer: Answer) {
        if let WriteState::Queued(load) | WriteState::Sent(load) | WriteState::Failed(load) =
            std::mem::replace(&mut *self.state(), WriteState::Done)
        {
            // If the request has ended, a retry with the same key finds the result.
            let _ = load.answer.send(answer);
        }
    }

    /// Cancels the write if it was not sent. Returns whether it did.
    fn cancel_if_unsent(&self) -> bool {
        self.cancel_if(|state| matches!(state, WriteState::Queued(_)))
    }

    /// Cancels the write if it cannot have been committed. Returns whether it did.
    fn cancel_unless_committed(&self) -> bool {
        self.cancel_if(|state| matches!(state, WriteState::Queued(_) | WriteState::Failed(_)))
    }

    fn cancel_if(&self, may_cancel: impl FnOnce(&WriteState) -> bool) -> bool {
        let mut state = self.state();
        let cancelled = may_cancel(&state);
        if cancelled {
            *state = WriteState::Done;
        }
        cancelled
    }

    fn is_done(&self) -> bool {
        matches!(*self.state(), WriteState::Done)
    }

    fn state(&self) -> MutexGuard<'_, WriteState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EnqueuedWrite {
    fn drop(&mut self) {
        self.write.cancel_if_unsent();
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

    macro_rules! enqueued {
        ($batcher:expr, $bytes:expr) => {
            enqueued!($batcher, $bytes, 0)
        };
        ($batcher:expr, $bytes:expr, $tenant:expr) => {{
            let mut write = Box::pin($batcher.enqueue(submission_of($tenant, $bytes), in_a_minute()));
            assert!(poll!(&mut write).is_pending());
            write
        }};
    }

    fn answer_all(batch: Vec<Arc<PendingWrite>>) -> usize {
        batch
            .iter()
            .filter(|write| write.mark_sent().is_some())
            .map(|write| write.answer(Ok(WriteResult::Retry)))
            .count()
    }

    #[tokio::test]
    async fn a_batch_takes_what_has_arrived_within_its_limits() {
        let batcher = Batcher::new(BOUNDS);
        let mut enqueued = Vec::new();
        for (bytes, tenant) in [(10, 0), (10, 1), (10, 0), (6000, 1), (6000, 0)] {
            enqueued.push(enqueued!(batcher, bytes, tenant));
        }
        let mut sizes = Vec::new();
        for _ in 0..3 {
            sizes.push(answer_all(batcher.next_batch().await.unwrap()));
        }
        assert_eq!(sizes, [3, 1, 1], "by count, then by bytes");
        for write in enqueued {
            assert!(matches!(write.await, Ok(WriteResult::Retry)));
        }
        let large = enqueued!(batcher, 100_000);
        assert_eq!(answer_all(batcher.next_batch().await.unwrap()), 1, "too large for a batch, it is sent alone");
        assert!(large.await.is_ok());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_immediately_until_a_submission_is_answered() {
        for (bytes, fit) in [(10, 5), (5000, 2)] {
            let batcher = Batcher::new(BOUNDS);
            let mut enqueued = Vec::new();
            for tenant in 0..fit {
                enqueued.push(enqueued!(batcher, bytes, tenant));
            }
            let refused = batcher.enqueue(submission_of(fit, bytes), in_a_minute()).await;
            assert!(matches!(refused, Err(DatabaseError::Shed(Shed::QueueFull))), "{refused:?}");
            let batch = batcher.next_batch().await.unwrap();
            let refused = batcher.enqueue(submission_of(fit, bytes), in_a_minute()).await;
            assert!(matches!(refused, Err(DatabaseError::Shed(Shed::QueueFull))), "a submission in a statement counts");
            answer_all(batch);
            let _write = enqueued!(batcher, bytes);
        }
    }

    #[tokio::test]
    async fn one_tenant_can_use_half_of_the_queue() {
        for (bytes, fit) in [(10, 3), (5000, 1)] {
            let batcher = Batcher::new(BOUNDS);
            let _writes: Vec<_> = (0..fit).map(|_| batcher.push(submission(bytes), in_a_minute()).unwrap()).collect();
            let refused = batcher.enqueue(submission(bytes), in_a_minute()).await;
            assert!(matches!(refused, Err(DatabaseError::Shed(Shed::TenantQueueFull))), "{refused:?}");
            let _other = enqueued!(batcher, bytes, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_not_sent_in_time_is_cancelled() {
        let batcher = Batcher::new(BOUNDS);
        let started = Instant::now();
        let unsent = batcher.enqueue(submission(10), in_a_minute()).await;
        assert!(matches!(unsent, Err(DatabaseError::Shed(Shed::Waited))), "{unsent:?}");
        assert_eq!(started.elapsed(), BOUNDS.acquire_timeout);
        assert_eq!(batcher.usage().now, 0, "its permits are free");
        assert!(batcher.enqueue(submission(10), in_a_minute()).await.is_err());
        assert_eq!(batcher.queue().writes.len(), 1, "without a writer, the next write removes cancelled ones");
        assert_eq!(answer_all(batcher.next_batch().await.unwrap()), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_was_sent_waits_until_its_deadline() {
        let batcher = Batcher::new(BOUNDS);
        let started = Instant::now();
        let write = enqueued!(batcher, 10);
        let batch = batcher.next_batch().await.unwrap();
        assert!(batch[0].mark_sent().is_some());
        let answer = write.await;
        assert!(matches!(answer, Err(DatabaseError::Unknown)), "{answer:?}");
        assert_eq!(started.elapsed(), Duration::from_secs(60));
        assert!(batch[0].mark_sent().is_some(), "it may still be sent again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_whose_statement_failed_can_be_cancelled() {
        let batcher = Batcher::new(BOUNDS);
        let write = enqueued!(batcher, 10);
        let batch = batcher.next_batch().await.unwrap();
        assert!(batch[0].mark_sent().is_some());
        batch[0].mark_failed();
        let started = Instant::now();
        let answer = write.await;
        assert_eq!(started.elapsed(), Duration::from_secs(60), "the writer was going to send it again");
        assert!(matches!(answer, Err(DatabaseError::Shed(Shed::Waited))), "{answer:?}");
        assert!(batch[0].mark_sent().is_none(), "it is cancelled");
    }

    #[tokio::test]
    async fn a_write_whose_request_ends_before_it_is_sent_is_cancelled() {
        let batcher = Batcher::new(BOUNDS);
        drop(enqueued!(batcher, 10));
        assert_eq!(batcher.usage().now, 0);
        assert_eq!(answer_all(batcher.next_batch().await.unwrap()), 0);
    }

    #[tokio::test]
    async fn a_closed_queue_accepts_no_write_and_empties() {
        let batcher = Batcher::new(BOUNDS);
        let enqueued: Vec<_> = vec![enqueued!(batcher, 10), enqueued!(batcher, 10), enqueued!(batcher, 6000)];
        batcher.close();
        let refused = batcher.enqueue(submission_of(1, 10), in_a_minute()).await;
        assert!(matches!(refused, Err(DatabaseError::Unavailable(_))), "{refused:?}");
        let mut sent = 0;
        while let Some(batch) = batcher.next_batch().await {
            sent += answer_all(batch);
        }
        assert_eq!(sent, enqueued.len());
    }

    #[tokio::test]
    async fn a_waiting_writer_wakes_when_a_write_arrives_or_the_queue_closes() {
        let batcher = Batcher::new(BOUNDS);
        let mut writers = [Box::pin(batcher.next_batch()), Box::pin(batcher.next_batch())];
        for writer in &mut writers {
            assert!(poll!(writer).is_pending());
        }
        let [one, two] = writers;
        let write = enqueued!(batcher, 10);
        assert_eq!(answer_all(one.await.unwrap()), 1);
        assert!(write.await.is_ok());
        batcher.close();
        assert!(two.await.is_none());
    }
}
