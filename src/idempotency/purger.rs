//! The purger: every replica deletes expired idempotency keys in small batches.
//!
//! It never deletes jobs, and keeps the keys of jobs that are not over (ADR 0032). An expired key has no effect, so the
//! time of the purge does not matter: the engine deletes an expired key that is used again.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::queries;
use crate::database::{DatabaseError, Pool};
use crate::metrics::Metrics;

/// How many keys are deleted, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time between two rounds, ±25 %, so that replicas that start together spread out.
    pub interval: Duration,
    /// Keys per statement. A request that uses an expired key may have to wait for one such statement.
    pub batch: u32,
    /// Pause between two batches of a round, so that other statements can use the disk.
    pub pause: Duration,
}

/// Longer than the default of PostgreSQL's statement timeout, which ends a batch first.
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
                // Halves the batch, so that a batch that exceeds the statement timeout does not fail forever.
                first = (first / 2).max(1);
                metrics.count_purge_failure();
                tracing::warn!(%error, next_batch = first, "expired keys could not be purged; the next round tries again");
            }
        }
    }
}

/// One round: deletes batches until none is left. Returns the number of deleted keys.
///
/// # Errors
/// [`DatabaseError`] if a batch failed. Earlier batches stay deleted.
pub async fn purge(
    pool: &Pool,
    pace: Pace,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<u64, DatabaseError> {
    purge_from(pace.batch, pool, pace, metrics, shutdown).await
}

/// Starts with a batch of `limit`, which doubles up to the full size while batches succeed.
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
        let rows = i32::try_from(limit).unwrap_or(i32::MAX);
        let deleting = pool.complete("purge", deadline, async move |connection| queries::purge(connection, rows).await);
        let Some(batch) = shutdown.run_until_cancelled(deleting).await.transpose()? else {
            return Ok(deleted);
        };
        deleted += batch.deleted;
        metrics.count_purged_keys(batch.deleted, batch.kept);
        let done = batch.deleted + batch.kept < u64::from(limit);
        limit = limit.saturating_mul(2).min(pace.batch);
        if done || shutdown.run_until_cancelled(tokio::time::sleep(pace.pause)).await.is_none() {
            return Ok(deleted);
        }
    }
}
