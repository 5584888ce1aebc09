//! Housekeeping: expired keys are deleted, in small batches, by every replica.
//!
//! Nothing depends on when it comes by: an expired key already counts for nothing. It never touches a job.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::queries;
use crate::database::{DatabaseError, Pool};
use crate::metrics::Metrics;

/// How much is deleted, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between one round and the next, give or take a quarter, so that replicas started together drift apart.
    pub interval: Duration,
    /// Keys in one statement: as long as a request that takes over an expired key may have to wait.
    pub batch: u32,
    /// Between two batches of a round, which leaves the disk to those who are waiting for it.
    pub pause: Duration,
}

/// More than PostgreSQL's own limit on a statement, which ends a batch first.
const BATCH_DEADLINE: Duration = Duration::from_secs(60);

/// Purges until `shutdown`.
pub async fn run(pool: Pool, pace: Pace, metrics: Metrics, shutdown: CancellationToken) {
    let mut first = pace.batch;
    loop {
        let wait = pace.interval.mul_f64(rand::rng().random_range(0.75..1.25));
        if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        match purge_from(first, &pool, pace, &metrics, &shutdown).await {
            Ok(deleted) => {
                first = pace.batch;
                if deleted > 0 {
                    tracing::info!(deleted, "expired keys purged");
                }
            }
            Err(error) => {
                // A batch that PostgreSQL cannot finish in its time must not fail for ever.
                first = (first / 2).max(1);
                metrics.count_purge_failure();
                tracing::warn!(%error, next_batch = first, "expired keys could not be purged; the next round tries again");
            }
        }
    }
}

/// One round: batch after batch until none is left. Answers how many keys it deleted.
///
/// # Errors
/// [`DatabaseError`] if a batch failed; those before it stay deleted.
pub async fn purge(
    pool: &Pool,
    pace: Pace,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<u64, DatabaseError> {
    purge_from(pace.batch, pool, pace, metrics, shutdown).await
}

/// Begins with a batch of `limit`, which grows to the full one while all goes well.
async fn purge_from(
    mut limit: u32,
    pool: &Pool,
    pace: Pace,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<u64, DatabaseError> {
    let mut deleted = 0;
    loop {
        let deadline = Instant::now() + BATCH_DEADLINE;
        let rows = i64::from(limit);
        let deleting = pool.complete(deadline, async move |connection| queries::purge(connection, rows).await);
        let Some(batch) = shutdown.run_until_cancelled(deleting).await.transpose()? else {
            return Ok(deleted);
        };
        deleted += batch;
        metrics.count_purged_keys(batch);
        let done = batch < u64::from(limit);
        limit = limit.saturating_mul(2).min(pace.batch);
        if done || shutdown.run_until_cancelled(tokio::time::sleep(pace.pause)).await.is_none() {
            return Ok(deleted);
        }
    }
}
