//! Group commit: submissions that arrive while a statement is in flight go into the next one.
//!
//! Owns the queue, its bounds, and the requests that wait in it. It knows no SQL and decides nothing about keys. There is
//! no timer: a free writer takes what has arrived, so no submission waits for others to come.

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

/// What a statement did for one submission.
#[derive(Debug)]
pub enum WriteResult {
    /// All is committed, and the key lives until then.
    Inserted(DateTime<Utc>),
    /// The key is taken, by this.
    Conflict(Stored),
    /// The key was taken, and nothing stands there any more or it could not be read.
    Retry,
}

type Answer = Result<WriteResult, DatabaseError>;

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
    writes: VecDeque<Arc<PendingWrite>>,
    closed: bool,
}

/// A submission in the queue, and then in a batch.
pub struct PendingWrite {
    pub since: Instant,
    pub deadline: Instant,
    bytes: usize,
    state: Mutex<WriteState>,
}

/// The request's handle on its write. When the request ends, however it does, an unsent write is cancelled.
struct EnqueuedWrite {
    write: Arc<PendingWrite>,
}

/// How far a write is. The writer marks it as sent; the request may cancel it before that.
enum WriteState {
    /// It can still be cancelled.
    Queued(Load),
    Sent(Load),
    /// It was sent and certainly not committed. It will be sent again.
    Failed(Load),
    /// Cancelled or answered.
    Done,
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

    /// Has the next statement write a submission, and returns the result.
    ///
    /// # Errors
    /// [`DatabaseError`], at `deadline` at the latest; at once if the queue is full, and after [`Bounds::acquire_timeout`] if
    /// nothing was sent by then.
    pub async fn enqueue(&self, submission: Arc<Submission>, deadline: Instant) -> Result<WriteResult, DatabaseError> {
        let (enqueued, mut answer) = self.enter(submission, deadline)?;
        let acquire_ends = deadline.min(Instant::now() + self.bounds.acquire_timeout);
        if let Ok(answered) = timeout_at(acquire_ends, &mut answer).await {
            return answered.unwrap_or(Err(DatabaseError::Unknown));
        }
        if enqueued.write.cancel_if_unsent() {
            return Err(DatabaseError::Shed(Shed::Waited));
        }
        // It was sent, so the truth is worth waiting for.
        match timeout_at(deadline, &mut answer).await {
            Ok(Ok(answered)) => answered,
            _ if enqueued.write.cancel_unless_committed() => Err(DatabaseError::Shed(Shed::Waited)),
            _ => Err(DatabaseError::Unknown),
        }
    }

    /// What a writer sends next, as soon as there is anything; `None` once the queue is closed and all is taken.
    pub async fn next_batch(&self) -> Option<Vec<Arc<PendingWrite>>> {
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
    ) -> Result<(EnqueuedWrite, oneshot::Receiver<Answer>), DatabaseError> {
        let bytes = ROW_BYTES + submission.bytes();
        let room = self.room(submission.draft.tenant, bytes).map_err(DatabaseError::Shed)?;
        let (answer, answered) = oneshot::channel();
        let state = WriteState::Queued(Load { submission, answer, _room: room });
        let write = Arc::new(PendingWrite { since: Instant::now(), deadline, bytes, state: Mutex::new(state) });
        let mut queue = self.queue();
        if queue.closed {
            return Err(DatabaseError::Unavailable("the service is shutting down".to_owned()));
        }
        // The oldest writes time out first, so those that are done are at the front.
        while queue.writes.front().is_some_and(|write| write.is_done()) {
            queue.writes.pop_front();
        }
        queue.writes.push_back(Arc::clone(&write));
        drop(queue);
        self.arrived.notify_one();
        Ok((EnqueuedWrite { write }, answered))
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
            // There is work for another writer.
            self.arrived.notify_one();
        }
        (batch, queue.closed)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingWrite {
    /// The submission to be sent. From now on it cannot be cancelled. `None` if it was.
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

    /// The statement was certainly not committed, and will be sent again.
    pub fn mark_failed(&self) {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, WriteState::Done) {
            WriteState::Sent(load) => WriteState::Failed(load),
            other => other,
        };
    }

    /// Answers the request, once.
    pub fn tell(&self, answer: Answer) {
        if let WriteState::Queued(load) | WriteState::Sent(load) | WriteState::Failed(load) =
            std::mem::replace(&mut *self.state(), WriteState::Done)
        {
            // A client whose request has ended finds the result by its key.
            let _ = load.answer.send(answer);
        }
    }

    /// Cancels it, if it was not sent.
    fn cancel_if_unsent(&self) -> bool {
        self.cancel_if(|state| matches!(state, WriteState::Queued(_)))
    }

    /// Cancels it, if it cannot have been committed.
    fn cancel_unless_committed(&self) -> bool {
        self.cancel_if(|state| matches!(state, WriteState::Queued(_) | WriteState::Failed(_)))
    }

    fn cancel_if(&self, may: impl FnOnce(&WriteState) -> bool) -> bool {
        let mut state = self.state();
        let leaves = may(&state);
        if leaves {
            *state = WriteState::Done;
        }
        leaves
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

    fn tell_all(batch: Vec<Arc<PendingWrite>>) -> usize {
        batch.iter().filter(|write| write.mark_sent().is_some()).map(|write| write.tell(Ok(WriteResult::Retry))).count()
    }

    #[tokio::test]
    async fn a_batch_is_what_has_come_up_to_its_bounds() {
        let batcher = Batcher::new(BOUNDS);
        let mut enqueued = Vec::new();
        for (bytes, tenant) in [(10, 0), (10, 1), (10, 0), (6000, 1), (6000, 0)] {
            enqueued.push(enqueued!(batcher, bytes, tenant));
        }
        let mut sizes = Vec::new();
        for _ in 0..3 {
            sizes.push(tell_all(batcher.next_batch().await.unwrap()));
        }
        assert_eq!(sizes, [3, 1, 1], "by count, then by bytes");
        for write in enqueued {
            assert!(matches!(write.await, Ok(WriteResult::Retry)));
        }
        let large = enqueued!(batcher, 100_000);
        assert_eq!(tell_all(batcher.next_batch().await.unwrap()), 1, "larger than any bound, it goes alone");
        assert!(large.await.is_ok());
    }

    #[tokio::test]
    async fn a_full_queue_says_so_at_once_until_somebody_is_answered() {
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
            assert!(matches!(refused, Err(DatabaseError::Shed(Shed::QueueFull))), "what is under way counts");
            tell_all(batch);
            let _write = enqueued!(batcher, bytes);
        }
    }

    #[tokio::test]
    async fn one_tenant_has_half_of_the_queue() {
        for (bytes, fit) in [(10, 3), (5000, 1)] {
            let batcher = Batcher::new(BOUNDS);
            let _writes: Vec<_> = (0..fit).map(|_| batcher.enter(submission(bytes), in_a_minute()).unwrap()).collect();
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
        assert_eq!(batcher.usage().now, 0, "its room is free");
        assert!(batcher.enqueue(submission(10), in_a_minute()).await.is_err());
        assert_eq!(batcher.queue().writes.len(), 1, "without a writer, the next write removes those that are done");
        assert_eq!(tell_all(batcher.next_batch().await.unwrap()), 0);
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
        assert!(batch[0].mark_sent().is_some(), "it may be sent again all the same");
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
        assert_eq!(started.elapsed(), Duration::from_secs(60), "it was about to be sent again");
        assert!(matches!(answer, Err(DatabaseError::Shed(Shed::Waited))), "{answer:?}");
        assert!(batch[0].mark_sent().is_none(), "it has left");
    }

    #[tokio::test]
    async fn a_write_whose_request_ends_before_it_is_sent_is_cancelled() {
        let batcher = Batcher::new(BOUNDS);
        drop(enqueued!(batcher, 10));
        assert_eq!(batcher.usage().now, 0);
        assert_eq!(tell_all(batcher.next_batch().await.unwrap()), 0);
    }

    #[tokio::test]
    async fn a_closed_queue_takes_no_write_and_hands_out_all_that_it_has() {
        let batcher = Batcher::new(BOUNDS);
        let enqueued: Vec<_> = vec![enqueued!(batcher, 10), enqueued!(batcher, 10), enqueued!(batcher, 6000)];
        batcher.close();
        let refused = batcher.enqueue(submission_of(1, 10), in_a_minute()).await;
        assert!(matches!(refused, Err(DatabaseError::Unavailable(_))), "{refused:?}");
        let mut sent = 0;
        while let Some(batch) = batcher.next_batch().await {
            sent += tell_all(batch);
        }
        assert_eq!(sent, enqueued.len());
    }

    #[tokio::test]
    async fn a_writer_that_waits_is_woken_by_an_arrival_and_by_the_end() {
        let batcher = Batcher::new(BOUNDS);
        let mut writers = [Box::pin(batcher.next_batch()), Box::pin(batcher.next_batch())];
        for writer in &mut writers {
            assert!(poll!(writer).is_pending());
        }
        let [one, two] = writers;
        let write = enqueued!(batcher, 10);
        assert_eq!(tell_all(one.await.unwrap()), 1);
        assert!(write.await.is_ok());
        batcher.close();
        assert!(two.await.is_none());
    }
}
