//! Writes that may have to wait for a lock of another transaction.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::{DatabaseError, SharedPool};
use crate::ids::TenantId;
use crate::shares::{Shares, half};

/// The options of a write. The write function sets them for its transaction, so they need no setting of the session.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// How long the write waits for a lock of another transaction, on a key, a job or a table.
    pub lock_wait: Duration,
    /// Commit durably even if `synchronous_commit` was turned off after the start.
    pub insist_on_durability: bool,
}

impl WriteOptions {
    /// The value for PostgreSQL's `lock_timeout`. At least 1, because 0 means no limit.
    pub fn lock_timeout_ms(&self) -> i32 {
        i32::try_from(self.lock_wait.as_millis()).unwrap_or(i32::MAX).max(1)
    }

    /// The options of the first try, with a short lock wait.
    pub fn first_try(self) -> Self {
        Self { lock_wait: FIRST_LOCK_WAIT.min(self.lock_wait), ..self }
    }

    /// Whether this is the first try, with a short lock wait. Only then may other requests share its statement.
    pub fn is_brief(&self) -> bool {
        self.lock_wait <= FIRST_LOCK_WAIT
    }
}

/// The connections of writes, and how long a write waits for a lock.
#[derive(Clone)]
pub struct Writes {
    pool: SharedPool,
    options: WriteOptions,
    /// Limits the writes with a long lock wait, so that one held row cannot take every connection.
    lock_waiters: Arc<Semaphore>,
    /// The share of one tenant in `lock_waiters`.
    lock_waiter_shares: Arc<Shares>,
}

/// The lock wait of the first try. Measured: enough for the commit of another request, and short enough to hardly delay
/// the other submissions of the batch.
const FIRST_LOCK_WAIT: Duration = Duration::from_millis(20);
impl Writes {
    /// `options.lock_wait` limits how long a request waits for another transaction.
    pub fn new(pool: SharedPool, options: WriteOptions) -> Self {
        let places = (pool.count().limit / 2).max(1);
        let (lock_waiters, lock_waiter_shares) =
            (Arc::new(Semaphore::new(places)), Arc::new(Shares::new(half(places))));
        Self { pool, options, lock_waiters, lock_waiter_shares }
    }

    pub fn pool(&self) -> &SharedPool {
        &self.pool
    }

    pub fn lock_wait(&self) -> Duration {
        self.options.lock_wait
    }

    /// Calls `attempt` with a short lock wait. If that expires, calls it once more with the rest of
    /// `options.lock_wait`. The number of such lock waiters is limited, so that one held row cannot take every
    /// connection. One tenant gets at most half of them.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn with_lock_wait<T>(
        &self,
        tenant: TenantId,
        deadline: Instant,
        mut attempt: impl AsyncFnMut(WriteOptions) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let began = Instant::now();
        let after_loss = match attempt(self.options.first_try()).await {
            Err(DatabaseError::Locked { after_loss }) => after_loss,
            done => return done,
        };
        let lock_wait_ends = deadline.min(began + self.options.lock_wait);
        let permits = async {
            let share = self.lock_waiter_shares.acquire(tenant, 1).await;
            self.lock_waiters.acquire().await.map(|permit| (share, permit))
        };
        let Ok(Ok(_permits)) = timeout_at(lock_wait_ends, permits).await else {
            return Err(DatabaseError::Locked { after_loss });
        };
        let wait = lock_wait_ends.saturating_duration_since(Instant::now());
        // A shorter wait than the first is not worth a second try. Also, `is_brief` tells the two tries apart by their
        // wait.
        if wait <= FIRST_LOCK_WAIT {
            return Err(DatabaseError::Locked { after_loss });
        }
        match attempt(WriteOptions { lock_wait: wait, ..self.options }).await {
            Err(DatabaseError::Locked { after_loss: lost_again }) => {
                Err(DatabaseError::Locked { after_loss: after_loss || lost_again })
            }
            Err(_) if after_loss => Err(DatabaseError::Unknown),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::super::Pool;
    use super::*;

    const TENANT: TenantId = TenantId(uuid::Uuid::nil());

    fn writes(lock_wait: Duration) -> Writes {
        Writes::new(SharedPool::new(Pool::to_nowhere()), WriteOptions { lock_wait, insist_on_durability: true })
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_try_is_made_only_if_it_can_wait_longer_than_the_first() {
        for (lock_wait, second) in [(1, None), (20, None), (35, None), (50, Some(30)), (2000, Some(1980))] {
            let mut waits = Vec::new();
            let attempt = async |options: WriteOptions| {
                waits.push(options);
                sleep(options.lock_wait).await;
                Err::<(), _>(DatabaseError::Locked { after_loss: false })
            };
            let attempt = writes(Duration::from_millis(lock_wait)).with_lock_wait(TENANT, in_a_minute(), attempt).await;
            assert!(matches!(attempt, Err(DatabaseError::Locked { .. })), "{attempt:?}");
            assert!(waits[0].is_brief());
            let waited: Vec<_> =
                waits[1..].iter().map(|options| (options.is_brief(), options.lock_wait.as_millis())).collect();
            assert_eq!(waited, second.map(|wait| (false, wait)).into_iter().collect::<Vec<_>>(), "{lock_wait} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_lost_first_try_a_failed_second_try_has_an_unknown_outcome() {
        let unavailable = || DatabaseError::Unavailable("unreachable".to_owned());
        for after_loss in [false, true] {
            let attempt = async |options: WriteOptions| {
                Err::<(), _>(if options.is_brief() { DatabaseError::Locked { after_loss } } else { unavailable() })
            };
            let attempt = writes(Duration::from_secs(2)).with_lock_wait(TENANT, in_a_minute(), attempt).await;
            assert_eq!(matches!(attempt, Err(DatabaseError::Unknown)), after_loss, "{attempt:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_lock_wait_says_whether_either_try_was_lost() {
        for (first, second) in [(false, false), (false, true), (true, false), (true, true)] {
            let attempt = async |options: WriteOptions| {
                Err::<(), _>(DatabaseError::Locked { after_loss: if options.is_brief() { first } else { second } })
            };
            let attempt = writes(Duration::from_secs(2)).with_lock_wait(TENANT, in_a_minute(), attempt).await;
            assert!(matches!(attempt, Err(DatabaseError::Locked { after_loss }) if after_loss == (first || second)));
        }
    }
}
