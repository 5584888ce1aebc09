//! When tokens were last used: collected from the verifier's look-ups and written in batches.
//!
//! No request waits for these writes. A server that is killed loses what it has collected since the last batch.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{TokenDigest, queries};
use crate::database::Pool;

/// The tokens used since the last batch.
#[derive(Clone, Default)]
pub struct UseTimes(Arc<Mutex<HashSet<TokenDigest>>>);

/// Time between two batches, ±25 %, so that replicas that start together spread out.
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Deadline for one batch. What is not written by then is kept for the next batch.
const DEADLINE: Duration = Duration::from_secs(10);
/// Maximum tokens in memory. More than one replica sees between two batches or while the database is unreachable;
/// further tokens are dropped.
const TOKENS_MAX: usize = 100_000;
/// Tokens in one statement.
const BATCH: usize = 1000;

impl UseTimes {
    /// Records that a valid token was used.
    pub fn record(&self, digest: TokenDigest) {
        self.note_all(&[digest]);
    }

    fn note_all(&self, digests: &[TokenDigest]) {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = TOKENS_MAX.saturating_sub(used.len());
        used.extend(digests.iter().take(room));
    }

    fn take(&self) -> Vec<TokenDigest> {
        let used = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        used.into_iter().collect()
    }

    /// Writes a batch every few minutes, and a last one on `shutdown`.
    pub async fn run(self, pool: Pool, shutdown: CancellationToken) {
        loop {
            let wait = INTERVAL.mul_f64(rand::rng().random_range(0.75..1.25));
            let ends = shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none();
            self.write(&pool).await;
            if ends {
                return;
            }
        }
    }

    async fn write(&self, pool: &Pool) {
        let used = self.take();
        let mut unwritten = &used[..];
        while !unwritten.is_empty() {
            let (batch, rest) = unwritten.split_at(BATCH.min(unwritten.len()));
            let digests: Arc<[TokenDigest]> = batch.into();
            let write = async move |connection: &mut _| queries::record_use(connection, &digests).await;
            if let Err(error) = pool.complete("record_token_use", Instant::now() + DEADLINE, write).await {
                tracing::warn!(%error, "token use times could not be written");
                // The next batch stores the time at which it is written, so these times will be too late.
                return self.note_all(unwritten);
            }
            unwritten = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Token;

    #[tokio::test(start_paused = true)]
    async fn use_times_are_kept_when_a_write_fails() {
        let use_times = UseTimes::default();
        let digest = Token::mint().digest();
        use_times.record(digest);
        use_times.write(&Pool::to_nowhere()).await;
        assert!(use_times.take() == [digest]);
    }

    #[test]
    fn the_number_of_collected_tokens_is_bounded() {
        let use_times = UseTimes::default();
        (0..TOKENS_MAX - 1).for_each(|_| use_times.record(Token::mint().digest()));
        use_times.note_all(&[(); 3].map(|()| Token::mint().digest()));
        assert_eq!(use_times.take().len(), TOKENS_MAX);
    }
}
