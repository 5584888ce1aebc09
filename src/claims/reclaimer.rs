//! The reclaimer: every replica takes jobs from claims that have expired.
//!
//! A job of a dead worker is available again within its lease and [`Pace::interval`]. Each statement takes a bounded
//! number of claims. It does not wait for rows that another transaction has locked, and waits a second for a table.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::queries::{self, Reclaimed};
use crate::database::{DatabaseError, Pool};
use crate::metrics::Metrics;

/// How often the reclaimer looks, and how many claims it takes at a time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The longest time between two looks. A random quarter is left out, so that replicas that start together spread out.
    pub interval: Duration,
    /// Claims per statement. A claim holds up to 100 jobs.
    pub batch: u32,
}

/// Longer than the default of PostgreSQL's statement timeout, which ends a statement first.
const DEADLINE: Duration = Duration::from_secs(60);

/// Reclaims until `shutdown`.
pub async fn run(pool: Pool, pace: Pace, metrics: Metrics, shutdown: CancellationToken) {
    let mut batch = pace.batch;
    loop {
        let wait = pace.interval.mul_f64(rand::rng().random_range(0.75..1.0));
        if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        batch = match reclaim(&pool, batch, &metrics, &shutdown).await {
            Ok(()) => batch.saturating_mul(2).min(pace.batch),
            Err(error) => {
                // Halves the batch, so that a batch that exceeds the statement timeout does not fail forever.
                let next = (batch / 2).max(1);
                metrics.count_reclaim_failure();
                tracing::warn!(%error, next_batch = next, "expired claims could not be reclaimed; the next round tries again");
                next
            }
        };
    }
}

/// One round: reclaims until no claim is due.
async fn reclaim(
    pool: &Pool,
    batch: u32,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<(), DatabaseError> {
    loop {
        let (deadline, limit) = (Instant::now() + DEADLINE, i32::try_from(batch).unwrap_or(i32::MAX));
        let look =
            pool.complete("reclaim", deadline, async move |connection| queries::reclaim(connection, limit).await);
        let Some(done) = shutdown.run_until_cancelled(look).await.transpose()? else { return Ok(()) };
        let Reclaimed { looked_at, requeued, failed, cancelled } = done;
        metrics.count_reclaimed(requeued, failed, cancelled);
        if requeued + failed + cancelled > 0 {
            tracing::warn!(requeued, failed, cancelled, "leases expired: jobs were taken from their workers");
        }
        if looked_at < u64::from(batch) {
            return Ok(());
        }
    }
}
