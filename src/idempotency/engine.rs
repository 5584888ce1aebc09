//! The engine of all routes with an idempotency key.
//!
//! A route supplies an attempt: one call of a write function, which commits the key together with the effect of the
//! request, or nothing. If nothing was written, the engine finds out why. If the key's row has expired, the engine
//! deletes the row and repeats the attempt.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::clock::Moment;
use super::replays::{CacheLookup, Replays};
use super::{Answer, Effect, Fingerprint, Outcome, ScopedKey, queries};
use crate::database::{DatabaseError, SharedPool};
use crate::ids::{JobId, RequestId, TenantId};
use crate::overload::Shed;
use crate::shares::{Shares, half};

/// A request with an idempotency key. All its attempts use the same values, so the stored row shows whether an earlier
/// attempt was committed.
#[derive(Debug)]
pub struct Keyed {
    pub key: ScopedKey,
    pub fingerprint: Fingerprint,
    pub request_id: RequestId,
    pub created_at: DateTime<Utc>,
    /// How long the key is valid after the commit.
    pub time_to_live: Duration,
    /// The new, unique id of the job that the request creates; `None` if it changes an existing job.
    pub makes: Option<JobId>,
}

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

    /// Whether this is the first try, with a short lock wait. Only then may other submissions share its statement.
    pub fn is_brief(&self) -> bool {
        self.lock_wait <= FIRST_LOCK_WAIT
    }
}

/// The result of one attempt of an operation whose result is a `T`.
#[derive(Debug)]
pub enum Attempt<T> {
    /// Key and effect are committed. The key expires at this time.
    Committed(Answer, DateTime<Utc>),
    /// Nothing was written. The key is taken; this is its row.
    Conflict(queries::Stored),
    /// Nothing was written. The key is taken, or the data that the attempt had read has changed.
    NoRows,
    /// Nothing was written. The request cannot be carried out now. This is its result, unless an earlier request with
    /// the key was carried out.
    Rejected(T),
}

/// The result of a request with a key that was carried out. Its outcome is committed and is the answer.
#[derive(Debug)]
pub enum KeyedResult {
    /// This request committed the outcome.
    First(Arc<Outcome>),
    /// An earlier request with the same key did. This one is a replay.
    Replayed(Arc<Outcome>),
}

/// Why a request has no outcome. Unless noted, the key is unchanged.
#[derive(Debug, Error)]
pub enum KeyedError {
    #[error("the idempotency key was used for another request")]
    KeyReused {
        first: Arc<Outcome>,
        /// JSON Pointers to the differences. Empty if they are unknown.
        pointers: Vec<String>,
    },
    /// Another transaction holds the key, or a copy of the request is in flight on this replica.
    #[error("the first request with this key is still in flight")]
    InFlight,
    #[error("nothing was written: {0}")]
    Unavailable(String),
    #[error("nothing was written: the statement took too long and was cancelled")]
    TimedOut,
    #[error("nothing was written: the database's schema does not fit: {0}")]
    Unfit(String),
    #[error("nothing was written: {0}")]
    Shed(Shed),
    /// The statement was sent and may have been committed. A retry with the same key finds out.
    #[error("it is unknown whether the request was carried out")]
    OutcomeUnknown,
    #[error("the statement failed")]
    Failed(#[source] Arc<sqlx::Error>),
}

/// Carries out requests with a key: looks into the replay cache, makes an attempt, and reads the key's row if nothing
/// was written.
#[derive(Clone)]
pub struct Engine {
    pool: SharedPool,
    options: WriteOptions,
    /// Limits the requests with a long lock wait, so that one held key cannot take every connection.
    lock_waiters: Arc<Semaphore>,
    /// The share of one tenant in `lock_waiters`.
    lock_waiter_shares: Arc<Shares>,
    replays: Arc<Replays>,
}

/// The lock wait of the first try. Measured: enough for the commit of another request, and short enough to hardly delay
/// the other submissions of the batch.
const FIRST_LOCK_WAIT: Duration = Duration::from_millis(20);
/// The pause between attempts without a result. There is none after the first: the conflicting row has just gone.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_LONGEST: Duration = Duration::from_millis(100);

impl Engine {
    /// `pool` is for writes. `options.lock_wait` limits how long a request waits for another transaction.
    pub fn new(pool: SharedPool, options: WriteOptions, replays: Arc<Replays>) -> Self {
        let places = (pool.count().limit / 2).max(1);
        let (lock_waiters, lock_waiter_shares) =
            (Arc::new(Semaphore::new(places)), Arc::new(Shares::new(half(places))));
        Self { pool, options, lock_waiters, lock_waiter_shares, replays }
    }

    /// The options of the first try.
    pub fn first_options(&self) -> WriteOptions {
        WriteOptions { lock_wait: FIRST_LOCK_WAIT.min(self.options.lock_wait), ..self.options }
    }

    /// The connections of the attempts.
    pub fn pool(&self) -> &SharedPool {
        &self.pool
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
        let after_loss = match attempt(self.first_options()).await {
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

    /// The outcome of an earlier request with the same key and content, if it is in this replica's cache.
    pub fn recall(&self, key: &ScopedKey, fingerprint: &Fingerprint) -> Option<Arc<Outcome>> {
        self.replays.recall(key, fingerprint)
    }

    /// Carries out a request, or finds the outcome of an earlier request with its key. Copies that arrive meanwhile
    /// wait for the result, for at most `options.lock_wait`.
    ///
    /// `attempt` writes the key and the effect in one statement, by [`SharedPool::complete`]. It may be called again
    /// after any result but [`Attempt::Committed`].
    ///
    /// `T` is the result of the route's operation: a [`KeyedResult`], or an enum with more cases if attempts can be
    /// rejected.
    ///
    /// # Errors
    /// [`KeyedError`], by `deadline` at the latest.
    pub async fn perform<T: From<KeyedResult>>(
        &self,
        request: &Keyed,
        deadline: Instant,
        mut attempt: impl AsyncFnMut(WriteOptions) -> Result<Attempt<T>, DatabaseError>,
    ) -> Result<T, KeyedError> {
        let lock_wait_ends = deadline.min(Instant::now() + self.options.lock_wait);
        let leader = match timeout_at(lock_wait_ends, self.replays.get_or_lead(&request.key)).await {
            Ok(CacheLookup::Outcome(outcome)) => return Ok(replay(request, outcome)?.into()),
            Ok(CacheLookup::Nothing(leader)) => leader,
            Err(_) => return Err(KeyedError::InFlight),
        };
        // An attempt is repeated only if the conflicting row has gone, changed or expired.
        let mut pause = Duration::ZERO;
        loop {
            let asked = Moment::now();
            let attempt = self.with_lock_wait(request.key.tenant, deadline, &mut attempt).await?;
            let (stored, rejected) = match attempt {
                Attempt::Committed(answer, expires_at) => {
                    let outcome = Arc::new(request.outcome(answer, expires_at));
                    leader.end(Arc::clone(&outcome), asked, request.time_to_live);
                    return Ok(KeyedResult::First(outcome).into());
                }
                Attempt::Rejected(result) => (self.find_after_rejection(request, deadline).await?, Some(result)),
                Attempt::Conflict(stored) => (Some(stored), None),
                Attempt::NoRows => (self.find_after_conflict(request, deadline).await?, None),
            };
            match (stored, rejected) {
                // An earlier attempt was committed, but its acknowledgement was lost.
                (Some(stored), _) if request.produced(&stored.outcome) => {
                    leader.end(Arc::clone(&stored.outcome), asked, stored.life.unwrap_or_default());
                    return Ok(KeyedResult::First(stored.outcome).into());
                }
                (Some(queries::Stored { outcome, life: Some(life) }), _) => {
                    leader.end(Arc::clone(&outcome), asked, life);
                    return Ok(replay(request, outcome)?.into());
                }
                (_, Some(result)) => return Ok(result),
                (None, None) => {}
                (Some(_), None) => self.delete_expired(&request.key, deadline).await?,
            }
            sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = (pause * 2).clamp(PAUSE_FIRST, PAUSE_LONGEST);
        }
    }

    /// The outcome of an earlier request with the key. Does not carry out this one.
    ///
    /// # Errors
    /// As [`Engine::perform`].
    pub async fn find_outcome(&self, request: &Keyed, deadline: Instant) -> Result<Option<Arc<Outcome>>, KeyedError> {
        match self.perform(request, deadline, async |_| Ok(Attempt::Rejected(None))).await? {
            Some(KeyedResult::First(outcome) | KeyedResult::Replayed(outcome)) => Ok(Some(outcome)),
            None => Ok(None),
        }
    }

    /// Deletes the expired row of the key, so that the next attempt can insert the key.
    async fn delete_expired(&self, key: &ScopedKey, deadline: Instant) -> Result<(), DatabaseError> {
        let delete = async |options| {
            let delete = async |connection: &mut _| queries::delete_expired(connection, key, options).await;
            self.pool.complete("delete_expired_key", key.tenant, deadline, delete).await
        };
        self.with_lock_wait(key.tenant, deadline, delete).await
    }

    /// Reads the row of the key after an attempt that was rejected without a write.
    async fn find_after_rejection(
        &self,
        request: &Keyed,
        deadline: Instant,
    ) -> Result<Option<queries::Stored>, KeyedError> {
        let key = &request.key;
        Ok(self
            .pool
            .read("find_keys", key.tenant, deadline, async |connection| queries::find(connection, key).await)
            .await?)
    }

    /// Reads the row of the key after a conflict. The conflict may be with an earlier attempt of the same request. So
    /// if the read fails, the outcome is unknown.
    async fn find_after_conflict(
        &self,
        request: &Keyed,
        deadline: Instant,
    ) -> Result<Option<queries::Stored>, KeyedError> {
        let key = &request.key;
        let find = async |connection: &mut _| queries::find(connection, key).await;
        let found = self.pool.complete("find_keys", key.tenant, deadline, find).await;
        Ok(found.map_err(DatabaseError::after_a_write)?)
    }
}

impl Keyed {
    fn outcome(&self, answer: Answer, expires_at: DateTime<Utc>) -> Outcome {
        Outcome {
            fingerprint: self.fingerprint,
            answer,
            request_id: self.request_id.clone(),
            created_at: self.created_at,
            expires_at,
        }
    }

    /// Whether this request produced the outcome, and not a copy of it. If a job was created, its id decides. Otherwise
    /// two copies are mistaken for each other only if they have the same `X-Request-Id` and were accepted in the same
    /// microsecond. Then both get the answer of a first request, which has the same bytes.
    fn produced(&self, outcome: &Outcome) -> bool {
        if self.makes.is_some() && outcome.answer.effect == Effect::Created {
            return self.makes == Some(outcome.answer.job_id);
        }
        outcome.request_id == self.request_id
            && outcome.created_at == self.created_at
            && outcome.fingerprint == self.fingerprint
    }
}

/// The stored outcome, if the request has the same content as the first one.
fn replay(request: &Keyed, first: Arc<Outcome>) -> Result<KeyedResult, KeyedError> {
    if first.fingerprint == request.fingerprint {
        return Ok(KeyedResult::Replayed(first));
    }
    Err(KeyedError::KeyReused { first, pointers: Vec::new() })
}

impl From<DatabaseError> for KeyedError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Locked { after_loss: false } => Self::InFlight,
            DatabaseError::Unavailable(reason) => Self::Unavailable(reason),
            DatabaseError::TimedOut => Self::TimedOut,
            DatabaseError::Unfit(reason) => Self::Unfit(reason),
            DatabaseError::Shed(reason) => Self::Shed(reason),
            // The lost attempt may have been committed, or may hold the lock.
            DatabaseError::Unknown | DatabaseError::Locked { after_loss: true } => Self::OutcomeUnknown,
            DatabaseError::Statement(error) | DatabaseError::Violation(error) => Self::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::poll;
    use tokio::time::sleep;

    use super::*;
    use crate::database::Pool;
    use crate::idempotency::{Key, Route};
    use crate::ids::TenantId;
    use crate::metrics::Metrics;

    const TENANT: TenantId = TenantId(uuid::Uuid::nil());

    fn engine(lock_wait: Duration) -> Engine {
        let options = WriteOptions { lock_wait, insist_on_durability: true };
        Engine::new(SharedPool::new(Pool::to_nowhere()), options, Arc::new(Replays::new(0, Metrics::new())))
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
            let attempt = engine(Duration::from_millis(lock_wait)).with_lock_wait(TENANT, in_a_minute(), attempt).await;
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
            let attempt = engine(Duration::from_secs(2)).with_lock_wait(TENANT, in_a_minute(), attempt).await;
            assert_eq!(matches!(attempt, Err(DatabaseError::Unknown)), after_loss, "{attempt:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_lock_wait_says_whether_either_try_was_lost() {
        for (first, second) in [(false, false), (false, true), (true, false), (true, true)] {
            let attempt = async |options: WriteOptions| {
                Err::<(), _>(DatabaseError::Locked { after_loss: if options.is_brief() { first } else { second } })
            };
            let attempt = engine(Duration::from_secs(2)).with_lock_wait(TENANT, in_a_minute(), attempt).await;
            assert!(matches!(attempt, Err(DatabaseError::Locked { after_loss }) if after_loss == (first || second)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_waits_for_the_first_request_as_long_as_for_a_lock() {
        let lock_wait = Duration::from_secs(2);
        let engine = engine(lock_wait);
        let key: Key = "k".parse().unwrap();
        let request = Keyed {
            key: ScopedKey { tenant: TENANT, route: Route("POST /jobs"), key },
            fingerprint: Fingerprint::of("/jobs", "{}"),
            request_id: RequestId::mint(),
            created_at: Utc::now(),
            time_to_live: Duration::from_secs(1),
            makes: None,
        };
        let never = async |_| pending::<Result<Attempt<KeyedResult>, DatabaseError>>().await;
        let mut first = Box::pin(engine.perform(&request, in_a_minute(), never));
        assert!(poll!(&mut first).is_pending());
        let began = Instant::now();
        let copy = engine.perform(&request, in_a_minute(), never).await;
        assert!(matches!(copy, Err(KeyedError::InFlight)), "{copy:?}");
        assert_eq!(began.elapsed(), lock_wait);
    }
}
