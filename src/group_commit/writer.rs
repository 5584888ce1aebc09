//! A writer sends the pending writes as one statement and returns each outcome to its request.
//!
//! A failed batch is split until the request that causes the failure is alone. A writer never begins a transaction. A
//! batch is one statement and can be sent again unchanged.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::PgConnection;
use tokio::time::Instant;

use super::GroupedWrite;
use super::batcher::{Batcher, PendingWrite};
use crate::database::{DatabaseError, Pool, WriteOptions};
use crate::metrics::{Metrics, Split};

/// `pool` has one connection for each writer.
pub struct Writer<W: GroupedWrite> {
    pub(super) write: Arc<W>,
    pub(super) batcher: Arc<Batcher<W>>,
    pub(super) pool: Pool,
    /// Options with a short lock wait.
    pub(super) options: WriteOptions,
    pub(super) metrics: Metrics,
}

/// Pending writes that are sent in one statement.
struct Part<W: GroupedWrite> {
    writes: Vec<Arc<PendingWrite<W>>>,
    /// The latest deadline of the writes.
    deadline: Instant,
    options: WriteOptions,
    /// An attempt was lost and may have been committed.
    after_loss: bool,
}

/// The number of parts into which a batch is split. If another transaction holds one row of a batch, the other
/// requests wait for its lock once per split: nine times for 512 requests if split by 2, three times if split by 8. The
/// lock wait is divided by the same number: the other transaction has already had the time of a commit, and if hundreds
/// of rows are held, the waits add up.
const PARTS: u8 = 8;
/// The shortest lock wait. PostgreSQL takes 0 as no limit.
const LOCK_WAIT_MIN: Duration = Duration::from_millis(1);

impl<W: GroupedWrite> Writer<W> {
    /// Writes until the queue is closed and empty.
    pub async fn run(self) {
        while let Some(batch) = self.batcher.next_batch().await {
            // A panic in one batch must not stop the writer.
            if AssertUnwindSafe(self.send_all(batch.writes.clone())).catch_unwind().await.is_err() {
                tracing::error!(statement = W::NAME, "a batch write panicked; its outcome is unknown");
                batch.writes.iter().for_each(|write| write.answer(Err(DatabaseError::Unknown)));
            }
        }
    }

    async fn send_all(&self, writes: Vec<Arc<PendingWrite<W>>>) {
        if let Some(first) = writes.first() {
            self.metrics.observe_group_commit_wait(W::NAME, first.since.elapsed());
        }
        let deadline = writes.iter().map(|write| write.deadline).max().unwrap_or_else(Instant::now);
        let mut parts = VecDeque::from([Part { writes, deadline, options: self.options, after_loss: false }]);
        while let Some(part) = parts.pop_front() {
            if let Err(error) = self.send(&part).await {
                parts.extend(self.split(part, error));
            }
        }
    }

    /// Sends a statement and answers all its writes.
    async fn send(&self, part: &Part<W>) -> Result<(), DatabaseError> {
        // A write that is cancelled before the first attempt is left out. The others are in every attempt.
        let (statement, writes, options) = (Arc::clone(&self.write), part.writes.clone(), part.options);
        let write = async move |connection: &mut PgConnection| {
            let requests = mark_all_sent(&writes);
            if requests.is_empty() {
                return Ok(Vec::new());
            }
            statement.write(connection, &requests, options).await
        };
        let outcomes = self.pool.complete(W::NAME, part.deadline, write).await?;
        if !outcomes.is_empty() {
            self.metrics.observe_group_commit(W::NAME, outcomes.len());
        }
        let sent = part.writes.iter().filter(|write| write.mark_sent().is_some());
        let mut open = Vec::new();
        for (write, outcome) in sent.zip(outcomes) {
            match outcome {
                Some(outcome) => write.answer(Ok(outcome)),
                None => open.push(write),
            }
        }
        if !open.is_empty() {
            let requests = open.iter().filter_map(|write| write.mark_sent()).collect();
            let mut outcomes = self.write.resolve(&self.pool, requests, part.deadline).await.into_iter();
            open.iter().for_each(|write| write.answer(outcomes.next().ok_or(DatabaseError::Unknown)));
        }
        Ok(())
    }

    /// The parts of a failed batch to send again. Empty if a split cannot help; then all writes have got the error.
    fn split(&self, mut part: Part<W>, error: DatabaseError) -> Vec<Part<W>> {
        let reason = match &error {
            DatabaseError::Locked { after_loss } => {
                part.after_loss |= after_loss;
                part.options.lock_wait = (part.options.lock_wait / u32::from(PARTS)).max(LOCK_WAIT_MIN);
                Some(Split::Locked)
            }
            DatabaseError::Violation(_) | DatabaseError::Statement(_) => Some(Split::Refused),
            // Rejected after a lost attempt, perhaps because of a single request.
            DatabaseError::Unknown if Instant::now() < part.deadline => {
                part.after_loss = true;
                Some(Split::Refused)
            }
            DatabaseError::Unavailable(_)
            | DatabaseError::TimedOut
            | DatabaseError::Unfit(_)
            | DatabaseError::Shed(_)
            | DatabaseError::Unknown => None,
        };
        part.writes.retain(|write| write.mark_sent().is_some());
        match reason {
            Some(reason) if part.writes.len() > 1 => {
                self.metrics.count_group_commit_split(W::NAME, reason);
                if !part.after_loss {
                    part.writes.iter().for_each(|write| write.mark_failed());
                }
                let size = part.writes.len().div_ceil(usize::from(PARTS));
                part.writes.chunks(size).map(|writes| Part { writes: writes.to_vec(), ..part }).collect()
            }
            _ => {
                let error = match error {
                    DatabaseError::Locked { .. } => DatabaseError::Locked { after_loss: part.after_loss },
                    _ if part.after_loss => DatabaseError::Unknown,
                    error => error,
                };
                part.writes.iter().for_each(|write| write.answer(Err(error.clone())));
                Vec::new()
            }
        }
    }
}

fn mark_all_sent<W: GroupedWrite>(writes: &[Arc<PendingWrite<W>>]) -> Vec<Arc<W::Request>> {
    writes.iter().filter_map(|write| write.mark_sent()).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::super::batcher::tests::{BOUNDS, Notes, note};
    use super::*;

    #[tokio::test]
    async fn after_a_lost_attempt_the_outcome_of_each_part_is_unknown() {
        let options = WriteOptions { lock_wait: Duration::from_millis(20), insist_on_durability: true };
        let batcher = Arc::new(Batcher::<Notes<false>>::new(BOUNDS, 1));
        let (write, pool, metrics) = (Arc::new(Notes), Pool::to_nowhere(), Metrics::new());
        let writer = Writer { write, batcher, pool, options, metrics };
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut enqueued: Vec<_> = (0..2).map(|_| Box::pin(writer.batcher.enqueue(note(0, 10), deadline))).collect();
        for write in &mut enqueued {
            assert!(poll!(write).is_pending());
        }
        let writes = writer.batcher.next_batch().await.unwrap().writes.clone();
        let part = Part { writes, deadline, options, after_loss: false };
        let mut parts = writer.split(part, DatabaseError::Locked { after_loss: true });
        assert_eq!(parts.len(), 2);
        let unavailable = DatabaseError::Unavailable("unreachable".to_owned());
        assert!(writer.split(parts.remove(0), DatabaseError::Locked { after_loss: false }).is_empty());
        assert!(writer.split(parts.remove(0), unavailable).is_empty());
        let (held, other) = (enqueued.remove(0).await, enqueued.remove(0).await);
        assert!(matches!(held, Err(DatabaseError::Locked { after_loss: true })), "{held:?}");
        assert!(matches!(other, Err(DatabaseError::Unknown)), "{other:?}");
    }
}
