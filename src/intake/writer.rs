//! A writer sends the pending writes as one statement and returns each result to its request.
//!
//! A failed batch is split until the submission that causes the failure is alone. A writer never begins a transaction.
//! A batch is one statement and can be sent again unchanged.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::batcher::{Batcher, PendingWrite, WriteResult};
use super::{Submission, queries};
use crate::database::{DatabaseError, Pool, WriteOptions};
use crate::idempotency;
use crate::metrics::{Metrics, Split};

/// `pool` has one connection for each writer.
pub struct Writer {
    pub batcher: Arc<Batcher>,
    pub pool: Pool,
    /// Options with a short lock wait.
    pub options: WriteOptions,
    pub metrics: Metrics,
}

/// Pending writes that are sent in one statement.
struct Batch {
    writes: Vec<Arc<PendingWrite>>,
    /// The latest deadline of the writes.
    deadline: Instant,
    options: WriteOptions,
    /// An attempt was lost and may have been committed.
    after_loss: bool,
}

/// The number of parts into which a batch is split. If another transaction holds one key of a batch, the other
/// submissions wait for its lock once per split: nine times for 512 jobs if split by 2, three times if split by 8. The
/// lock wait is divided by the same number: the other transaction has already had the time of a commit, and if hundreds
/// of keys are held, the waits add up.
const PARTS: u8 = 8;
/// The shortest lock wait. PostgreSQL takes 0 as no limit.
const LOCK_WAIT_MIN: Duration = Duration::from_millis(1);

impl Writer {
    /// Writes until the queue is closed and empty.
    pub async fn run(self) {
        while let Some(writes) = self.batcher.next_batch().await {
            // A panic in one batch must not stop the writer.
            if AssertUnwindSafe(self.write(writes.clone())).catch_unwind().await.is_err() {
                tracing::error!("a batch write panicked; its outcome is unknown");
                writes.iter().for_each(|write| write.answer(Err(DatabaseError::Unknown)));
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

    /// Sends a batch and answers all its writes.
    async fn send(&self, batch: &Batch) -> Result<(), DatabaseError> {
        let (writes, options) = (batch.writes.clone(), batch.options);
        // A write that is cancelled before the first attempt is left out. The others are in every attempt.
        let write = async move |connection: &mut _| {
            let submissions = mark_all_sent(&writes);
            match submissions.is_empty() {
                true => Ok(Default::default()),
                false => queries::submit_many(connection, &submissions, options).await,
            }
        };
        let inserted = self.pool.complete("submit_many", batch.deadline, write).await?;
        let mut conflicts = Vec::new();
        for write in &batch.writes {
            let Some(submission) = write.mark_sent() else { continue };
            match inserted.get(&submission.draft.answer.job_id) {
                Some(expires_at) => write.answer(Ok(WriteResult::Inserted(*expires_at))),
                None => conflicts.push(Arc::clone(write)),
            }
        }
        let size = inserted.len() + conflicts.len();
        if size > 0 {
            self.metrics.observe_batch(size);
        }
        if !conflicts.is_empty() {
            self.resolve_conflicts(conflicts, batch.deadline).await;
        }
        Ok(())
    }

    /// Answers the writes whose keys are taken with the stored rows. This needs a second statement: the snapshot of the
    /// first one is older than the transaction that it waited for.
    async fn resolve_conflicts(&self, writes: Vec<Arc<PendingWrite>>, deadline: Instant) {
        let submissions = mark_all_sent(&writes);
        let find = async move |connection: &mut _| {
            let keys = submissions.iter().map(|submission| &submission.keyed.key);
            idempotency::queries::find_all(connection, keys).await
        };
        let mut found = self.pool.complete("find_keys", deadline, find).await.unwrap_or_else(|error| {
            // Each request then reads its own key. If that fails, too, it gets the error.
            tracing::debug!(%error, "the taken keys of a batch could not be read together");
            Default::default()
        });
        for (place, write) in writes.iter().enumerate() {
            write.answer(Ok(found.remove(&place).map_or(WriteResult::Retry, WriteResult::Conflict)));
        }
    }

    /// The parts of a failed batch to send again. Empty if a split cannot help; then all writes have got the error.
    fn split(&self, mut batch: Batch, error: DatabaseError) -> Vec<Batch> {
        let reason = match &error {
            DatabaseError::Locked { after_loss } => {
                batch.after_loss |= after_loss;
                batch.options.lock_wait = (batch.options.lock_wait / u32::from(PARTS)).max(LOCK_WAIT_MIN);
                Some(Split::Locked)
            }
            DatabaseError::Violation(_) | DatabaseError::Statement(_) => Some(Split::Refused),
            // Rejected after a lost attempt, perhaps because of a single submission.
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
                batch.writes.iter().for_each(|write| write.answer(Err(error.clone())));
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
    async fn after_a_lost_attempt_the_outcome_of_each_part_is_unknown() {
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
        let unavailable = DatabaseError::Unavailable("unreachable".to_owned());
        assert!(writer.split(parts.remove(0), DatabaseError::Locked { after_loss: false }).is_empty());
        assert!(writer.split(parts.remove(0), unavailable).is_empty());
        let (held, other) = (enqueued.remove(0).await, enqueued.remove(0).await);
        assert!(matches!(held, Err(DatabaseError::Locked { after_loss: true })), "{held:?}");
        assert!(matches!(other, Err(DatabaseError::Unknown)), "{other:?}");
    }
}
