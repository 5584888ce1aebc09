//! One of the few who write: sends what is waiting as one statement, and tells each what came of it.
//!
//! A batch that fails is split until the guilty one stands alone. It never begins a transaction: a batch is one
//! statement, and may be sent again as it is.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::batcher::{Batcher, PendingWrite, WriteResult};
use super::{Submission, queries};
use crate::database::{DatabaseError, Pool};
use crate::idempotency::{self, WriteOptions};
use crate::metrics::{Metrics, Split};

/// Has a connection of its own among those of `pool`.
pub struct Writer {
    pub batcher: Arc<Batcher>,
    pub pool: Pool,
    /// With a short wait for locks.
    pub options: WriteOptions,
    pub metrics: Metrics,
}

/// Some who are sent together.
struct Batch {
    writes: Vec<Arc<PendingWrite>>,
    /// The last of theirs.
    deadline: Instant,
    options: WriteOptions,
    /// An attempt to send them was lost, and may have been committed.
    after_loss: bool,
}

/// Into how many parts a batch is split. A key that is held elsewhere costs its neighbours a lock wait for each time that
/// they are split with it: nine times for 512 jobs if by 2, three times if by 8. The wait is split likewise: whoever
/// holds the key has had the time of a commit before, and where hundreds are held their waits add up.
const PARTS: u8 = 8;
/// The shortest wait for a lock; 0 would mean for ever.
const LOCK_WAIT_MIN: Duration = Duration::from_millis(1);

impl Writer {
    /// Writes until the queue is closed and empty.
    pub async fn run(self) {
        while let Some(writes) = self.batcher.next_batch().await {
            // A defect that one batch brings to light must not stop the others.
            if AssertUnwindSafe(self.write(writes.clone())).catch_unwind().await.is_err() {
                tracing::error!("the writing of a batch panicked; what became of it is unknown");
                writes.iter().for_each(|write| write.tell(Err(DatabaseError::Unknown)));
            }
        }
    }

    async fn write(&self, writes: Vec<Arc<PendingWrite>>) {
        if let Some(first) = writes.first() {
            self.metrics.observe_intake_wait(first.since.elapsed());
        }
        let deadline = writes.iter().map(|write| write.deadline).max().unwrap_or_else(Instant::now);
        let mut batches = VecDeque::from([Batch { writes, deadline, options: self.options, after_loss: false }]);
        while let Some(batch) = batches.pop_front() {
            if let Err(error) = self.send(&batch).await {
                batches.extend(self.split(batch, error));
            }
        }
    }

    /// Sends a batch, and tells everybody in it.
    async fn send(&self, batch: &Batch) -> Result<(), DatabaseError> {
        let (writes, options) = (batch.writes.clone(), batch.options);
        // A write that was cancelled before the first attempt is not in it. One that is in it is in all.
        let write = async move |connection: &mut _| {
            let submissions = mark_all_sent(&writes);
            match submissions.is_empty() {
                true => Ok(Default::default()),
                false => queries::submit_many(connection, &submissions, options).await,
            }
        };
        let made = self.pool.complete("submit_many", batch.deadline, write).await?;
        let mut met = Vec::new();
        for write in &batch.writes {
            let Some(submission) = write.mark_sent() else { continue };
            match made.get(&submission.draft.answer.job_id) {
                Some(expires_at) => write.tell(Ok(WriteResult::Inserted(*expires_at))),
                None => met.push(Arc::clone(write)),
            }
        }
        let carried = made.len() + met.len();
        if carried > 0 {
            self.metrics.observe_batch(carried);
        }
        if !met.is_empty() {
            self.look(met, batch.deadline).await;
        }
        Ok(())
    }

    /// Answers the writes whose keys are taken with what is stored there. A statement of its own: the first one's snapshot
    /// is older than the transaction that it has waited for.
    async fn look(&self, writes: Vec<Arc<PendingWrite>>, deadline: Instant) {
        let submissions = mark_all_sent(&writes);
        let find = async move |connection: &mut _| {
            let keys = submissions.iter().map(|submission| &submission.keyed.key);
            idempotency::queries::find_all(connection, keys).await
        };
        let mut found = self.pool.complete("find_keys", deadline, find).await.unwrap_or_else(|error| {
            // Each of them looks for himself, and is told why if he cannot either.
            tracing::debug!(%error, "what stands under some keys could not be read together");
            Default::default()
        });
        for (place, write) in writes.iter().enumerate() {
            write.tell(Ok(found.remove(&place).map_or(WriteResult::Retry, WriteResult::Conflict)));
        }
    }

    /// What is to be sent again after an error; nothing if it was everybody's, who are told so.
    fn split(&self, mut batch: Batch, error: DatabaseError) -> Vec<Batch> {
        let reason = match &error {
            DatabaseError::Locked { after_loss } => {
                batch.after_loss |= after_loss;
                batch.options.lock_wait = (batch.options.lock_wait / u32::from(PARTS)).max(LOCK_WAIT_MIN);
                Some(Split::Locked)
            }
            DatabaseError::Violation(_) | DatabaseError::Statement(_) => Some(Split::Refused),
            // Refused after an attempt that was lost: of one of them, maybe.
            DatabaseError::Unknown if Instant::now() < batch.deadline => {
                batch.after_loss = true;
                Some(Split::Refused)
            }
            DatabaseError::Unavailable(_)
            | DatabaseError::TimedOut
            | DatabaseError::Unfit(_)
            | DatabaseError::Shed(_)
            | DatabaseError::Unknown => None,
        };
        batch.writes.retain(|write| write.mark_sent().is_some());
        match reason {
            Some(reason) if batch.writes.len() > 1 => {
                self.metrics.count_split(reason);
                if !batch.after_loss {
                    batch.writes.iter().for_each(|write| write.mark_failed());
                }
                let size = batch.writes.len().div_ceil(usize::from(PARTS));
                batch.writes.chunks(size).map(|writes| Batch { writes: writes.to_vec(), ..batch }).collect()
            }
            _ => {
                let error = match error {
                    DatabaseError::Locked { .. } => DatabaseError::Locked { after_loss: batch.after_loss },
                    _ if batch.after_loss => DatabaseError::Unknown,
                    error => error,
                };
                batch.writes.iter().for_each(|write| write.tell(Err(error.clone())));
                Vec::new()
            }
        }
    }
}

fn mark_all_sent(writes: &[Arc<PendingWrite>]) -> Vec<Arc<Submission>> {
    writes.iter().filter_map(|write| write.mark_sent()).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::super::batcher::tests::{BOUNDS, submission};
    use super::*;

    #[tokio::test]
    async fn what_was_lost_with_a_batch_is_unknown_of_each_of_its_parts() {
        let options = WriteOptions { lock_wait: Duration::from_millis(20), insist_on_durability: true };
        let batcher = Arc::new(Batcher::new(BOUNDS));
        let writer = Writer { batcher, pool: Pool::to_nowhere(), options, metrics: Metrics::new() };
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut enqueued: Vec<_> = (0..2).map(|_| Box::pin(writer.batcher.enqueue(submission(10), deadline))).collect();
        for write in &mut enqueued {
            assert!(poll!(write).is_pending());
        }
        let writes = writer.batcher.next_batch().await.unwrap();
        let batch = Batch { writes, deadline, options, after_loss: false };
        let mut parts = writer.split(batch, DatabaseError::Locked { after_loss: true });
        assert_eq!(parts.len(), 2);
        let away = DatabaseError::Unavailable("it is away".to_owned());
        assert!(writer.split(parts.remove(0), DatabaseError::Locked { after_loss: false }).is_empty());
        assert!(writer.split(parts.remove(0), away).is_empty());
        let (held, other) = (enqueued.remove(0).await, enqueued.remove(0).await);
        assert!(matches!(held, Err(DatabaseError::Locked { after_loss: true })), "{held:?}");
        assert!(matches!(other, Err(DatabaseError::Unknown)), "{other:?}");
    }
}
