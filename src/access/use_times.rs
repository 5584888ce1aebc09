//! When tokens were last used: collected from the verifier's look-ups, and written in batches.
//!
//! No request writes or waits for it. A server that is killed loses what it has collected, a few minutes at the most.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{TokenDigest, queries};
use crate::database::Lane;

/// The tokens that have been used since the last batch was written.
#[derive(Clone, Default)]
pub struct UseTimes(Arc<Mutex<HashSet<TokenDigest>>>);

/// Between two batches, give or take a quarter, so that replicas started together drift apart.
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// For one batch; what is not written by then is lost.
const DEADLINE: Duration = Duration::from_secs(10);
/// More tokens than one replica meets between two batches; the use of one more is not noted.
const TOKENS_MAX: usize = 100_000;
/// As many in one statement.
const BATCH: usize = 1000;

impl UseTimes {
    /// Notes that a valid token was used.
    pub fn note(&self, digest: TokenDigest) {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() < TOKENS_MAX {
            used.insert(digest);
        }
    }

    fn take(&self) -> Vec<TokenDigest> {
        let used = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        used.into_iter().collect()
    }

    /// Writes every few minutes until `shutdown`, and once more then.
    pub async fn run(self, lane: Lane, shutdown: CancellationToken) {
        loop {
            let wait = INTERVAL.mul_f64(rand::rng().random_range(0.75..1.25));
            let ends = shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none();
            self.write(&lane).await;
            if ends {
                return;
            }
        }
    }

    async fn write(&self, lane: &Lane) {
        for batch in self.take().chunks(BATCH) {
            let digests: Arc<[TokenDigest]> = batch.into();
            let write = async move |connection: &mut _| queries::note_use(connection, &digests).await;
            if let Err(error) = lane.complete(Instant::now() + DEADLINE, write).await {
                tracing::warn!(%error, "when tokens were last used could not be written");
                return;
            }
        }
    }
}
