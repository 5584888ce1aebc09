//! What every route with a key has in common.
//!
//! A route brings one act: a statement that writes the key together with what the request asks for, or nothing. The
//! engine decides what it means that nothing was written.

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
use crate::metrics::Shed;
use crate::shares::{Shares, half};

/// A request under a key. Minted once: however often its attempt is tried, it is the same request, so what is stored tells
/// whether an attempt of ours was committed.
#[derive(Debug)]
pub struct Keyed {
    pub key: ScopedKey,
    pub fingerprint: Fingerprint,
    pub request_id: RequestId,
    pub created_at: DateTime<Utc>,
    /// How long the key lives once it is committed.
    pub time_to_live: Duration,
    /// The job that it makes, of an id that nobody else has; `None` if it changes one that is there.
    pub makes: Option<JobId>,
}

/// With which options a statement is sent. They are set within it, so that it needs no session of its own.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// How long the statement waits for another transaction that holds the key.
    pub lock_wait: Duration,
    /// Commit durably even if somebody has turned the server's synchronous_commit off since we looked.
    pub insist_on_durability: bool,
}

impl WriteOptions {
    /// As PostgreSQL takes it. 0 would mean without limit.
    pub fn lock_timeout_ms(&self) -> i32 {
        i32::try_from(self.lock_wait.as_millis()).unwrap_or(i32::MAX).max(1)
    }

    /// Whether the statement may keep others waiting for it.
    pub fn is_brief(&self) -> bool {
        self.lock_wait <= FIRST_LOCK_WAIT
    }
}

/// What one attempt came to.
#[derive(Debug)]
pub enum Attempt<R> {
    /// Key and effect are committed, and the key lives until then.
    Committed(Answer, DateTime<Utc>),
    /// Nothing was written: the key is taken, by this.
    Conflict(queries::Stored),
    /// Nothing was written: the key is taken, or what the attempt was made from has changed meanwhile.
    NoRows,
    /// The request cannot be carried out as things are, unless it has been already. Nothing was written.
    Rejected(R),
}

/// How a request under a key ended well, or as well as it could. But for a refusal, the outcome is committed, and its
/// bytes are the answer.
#[derive(Debug)]
pub enum KeyedResult<R> {
    /// This request did it.
    First(Arc<Outcome>),
    /// An earlier request with the same key did.
    Replayed(Arc<Outcome>),
    /// Nobody did, and the key is as it was before.
    Refused(R),
}

/// Why there is no answer. Unless said otherwise, the key is as it was before.
#[derive(Debug, Error)]
pub enum KeyedError {
    #[error("the key stands for another request")]
    KeyReused {
        first: Arc<Outcome>,
        /// JSON Pointers to what differs; empty where the first request is not known any more.
        pointers: Vec<String>,
    },
    /// Somebody else's transaction holds the key.
    #[error("the first request with this key is still in flight")]
    InFlight,
    #[error("nothing was written: {0}")]
    Unavailable(String),
    #[error("nothing was written: the statement took too long and was cancelled")]
    TimedOut,
    #[error("nothing was written, since the database's schema does not fit: {0}")]
    Unfit(String),
    #[error("nothing was written: {0}")]
    Shed(Shed),
    /// The statement was sent and may have been committed. The same key will tell.
    #[error("it is unknown whether the request was carried out")]
    OutcomeUnknown,
    #[error("the statement failed")]
    Failed(#[source] Arc<sqlx::Error>),
}

/// The way of every keyed request: look into memory, attempt the statement, and if nothing was written, look who has the key.
#[derive(Clone)]
pub struct Engine {
    pool: SharedPool,
    options: WriteOptions,
    /// Places for those who wait out a lock, so that one held key cannot take every connection.
    lock_waiters: Arc<Semaphore>,
    /// One tenant's part of these places.
    lock_waiter_shares: Arc<Shares>,
    replays: Arc<Replays>,
}

/// How long a statement waits for a lock at first. Measured: enough for another request's commit, and short enough
/// that the neighbours of a held key hardly notice.
const FIRST_LOCK_WAIT: Duration = Duration::from_millis(20);
/// Between turns that come to nothing: none after the first, for the row that was in the way has just gone.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_LONGEST: Duration = Duration::from_millis(100);

impl Engine {
    /// `pool` is for writes alone; `options.lock_wait` is the longest that a request waits for another that holds its key.
    pub fn new(pool: SharedPool, options: WriteOptions, replays: Arc<Replays>) -> Self {
        let places = (pool.count().limit / 2).max(1);
        let (lock_waiters, lock_waiter_shares) =
            (Arc::new(Semaphore::new(places)), Arc::new(Shares::new(half(places))));
        Self { pool, options, lock_waiters, lock_waiter_shares, replays }
    }

    /// With which options an attempt is tried at first.
    pub fn first_options(&self) -> WriteOptions {
        WriteOptions { lock_wait: FIRST_LOCK_WAIT.min(self.options.lock_wait), ..self.options }
    }

    /// What the attempts are sent on.
    pub fn pool(&self) -> &SharedPool {
        &self.pool
    }

    /// Sends a statement without a key by `attempt`, with a short wait for locks, and where that is not enough once more with
    /// the whole of it, on one of a few places: whoever holds a row must not take every connection from the others. One
    /// tenant has at most half of these places.
    ///
    /// # Errors
    /// [`DatabaseError`], at `deadline` at the latest.
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
        let places = async {
            let share = self.lock_waiter_shares.acquire(tenant, 1).await;
            self.lock_waiters.acquire().await.map(|place| (share, place))
        };
        let Ok(Ok(_places)) = timeout_at(lock_wait_ends, places).await else {
            return Err(DatabaseError::Locked { after_loss });
        };
        let wait = lock_wait_ends.saturating_duration_since(Instant::now());
        // Less than what was not enough is not worth another try; and by its wait a try with the whole of it is told from
        // the first.
        if wait <= FIRST_LOCK_WAIT {
            return Err(DatabaseError::Locked { after_loss });
        }
        match attempt(WriteOptions { lock_wait: wait, ..self.options }).await {
            Err(DatabaseError::Locked { after_loss: again }) => {
                Err(DatabaseError::Locked { after_loss: after_loss || again })
            }
            Err(_) if after_loss => Err(DatabaseError::Unknown),
            done => done,
        }
    }

    /// The outcome of an earlier copy of a request, if this replica remembers it.
    pub fn recall(&self, key: &ScopedKey, fingerprint: &Fingerprint) -> Option<Arc<Outcome>> {
        self.replays.recall(key, fingerprint)
    }

    /// Carries a request out, or finds the outcome of the earlier one that did. Copies that come meanwhile wait for it, as
    /// long as they would wait for another replica's.
    ///
    /// `attempt` writes the key with all that belongs to it in one statement, by [`SharedPool::complete`], and may be called again
    /// after any answer but [`Attempt::Committed`].
    ///
    /// # Errors
    /// [`KeyedError`], at `deadline` at the latest.
    pub async fn perform<R>(
        &self,
        request: &Keyed,
        deadline: Instant,
        mut attempt: impl AsyncFnMut(WriteOptions) -> Result<Attempt<R>, DatabaseError>,
    ) -> Result<KeyedResult<R>, KeyedError> {
        let lock_wait_ends = deadline.min(Instant::now() + self.options.lock_wait);
        let leader = match timeout_at(lock_wait_ends, self.replays.get_or_lead(&request.key)).await {
            Ok(CacheLookup::Outcome(outcome)) => return judge(request, outcome).map(KeyedResult::Replayed),
            Ok(CacheLookup::Nothing(leader)) => leader,
            Err(_) => return Err(KeyedError::InFlight),
        };
        // Each turn ends in an answer, unless what was in the way has gone or changed in between.
        let mut pause = Duration::ZERO;
        loop {
            let asked = Moment::now();
            let attempt = self.with_lock_wait(request.key.tenant, deadline, &mut attempt).await?;
            let (stored, refusal) = match attempt {
                Attempt::Committed(answer, expires_at) => {
                    let outcome = Arc::new(request.outcome(answer, expires_at));
                    leader.end(Arc::clone(&outcome), asked, request.time_to_live);
                    return Ok(KeyedResult::First(outcome));
                }
                Attempt::Rejected(refusal) => (self.find_after_rejection(request, deadline).await?, Some(refusal)),
                Attempt::Conflict(stored) => (Some(stored), None),
                Attempt::NoRows => (self.find_after_conflict(request, deadline).await?, None),
            };
            match (stored, refusal) {
                // An attempt of ours was committed and its acknowledgement lost.
                (Some(stored), _) if request.has_made(&stored.outcome) => {
                    leader.end(Arc::clone(&stored.outcome), asked, stored.life.unwrap_or_default());
                    return Ok(KeyedResult::First(stored.outcome));
                }
                (Some(queries::Stored { outcome, life: Some(life) }), _) => {
                    leader.end(Arc::clone(&outcome), asked, life);
                    return judge(request, outcome).map(KeyedResult::Replayed);
                }
                (_, Some(refusal)) => return Ok(KeyedResult::Refused(refusal)),
                (None, None) => {}
                (Some(_), None) => self.delete_expired(&request.key, deadline).await?,
            }
            sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = (pause * 2).clamp(PAUSE_FIRST, PAUSE_LONGEST);
        }
    }

    /// The outcome of an earlier request with the key, for one that must not be carried out itself.
    ///
    /// # Errors
    /// As [`Engine::perform`].
    pub async fn find_outcome(&self, request: &Keyed, deadline: Instant) -> Result<Option<Arc<Outcome>>, KeyedError> {
        match self.perform(request, deadline, async |_| Ok(Attempt::Rejected(()))).await? {
            KeyedResult::First(outcome) | KeyedResult::Replayed(outcome) => Ok(Some(outcome)),
            KeyedResult::Refused(()) => Ok(None),
        }
    }

    /// Deletes the expired row that holds the key. The next attempt inserts it anew.
    async fn delete_expired(&self, key: &ScopedKey, deadline: Instant) -> Result<(), DatabaseError> {
        let delete = async |options| {
            let delete = async |connection: &mut _| queries::delete_expired(connection, key, options).await;
            self.pool.complete("delete_expired_key", key.tenant, deadline, delete).await
        };
        self.with_lock_wait(key.tenant, deadline, delete).await
    }

    /// Reads what stands under the key for a request that has written nothing.
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

    /// The same for one that came too late, maybe behind itself. There may be an outcome, if not of this attempt then of
    /// another, so not being able to read it means that it is unknown.
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

    /// Whether this very request has left an outcome, and not a copy of it. Where a job was made, its id tells. Where none
    /// was, two copies would have to bear one `X-Request-Id` and be accepted in one microsecond to be mixed up; they then
    /// differ in nothing but who is told that it came first.
    fn has_made(&self, outcome: &Outcome) -> bool {
        if self.makes.is_some() && outcome.answer.effect == Effect::Created {
            return self.makes == Some(outcome.answer.job_id);
        }
        outcome.request_id == self.request_id
            && outcome.created_at == self.created_at
            && outcome.fingerprint == self.fingerprint
    }
}

/// Compares with what is stored, whoever wrote it.
fn judge(request: &Keyed, first: Arc<Outcome>) -> Result<Arc<Outcome>, KeyedError> {
    if first.fingerprint == request.fingerprint {
        return Ok(first);
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
            // The lost attempt may have been committed, and may be what holds the lock.
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
    async fn a_second_try_waits_longer_than_the_first_or_is_none() {
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
    async fn an_attempt_that_was_lost_is_remembered_when_the_second_try_fails() {
        let unavailable = || DatabaseError::Unavailable("it is away".to_owned());
        for after_loss in [false, true] {
            let attempt = async |options: WriteOptions| {
                Err::<(), _>(if options.is_brief() { DatabaseError::Locked { after_loss } } else { unavailable() })
            };
            let attempt = engine(Duration::from_secs(2)).with_lock_wait(TENANT, in_a_minute(), attempt).await;
            assert_eq!(matches!(attempt, Err(DatabaseError::Unknown)), after_loss, "{attempt:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_wait_remembers_an_attempt_that_either_try_has_lost() {
        for (first, second) in [(false, false), (false, true), (true, false), (true, true)] {
            let attempt = async |options: WriteOptions| {
                Err::<(), _>(DatabaseError::Locked { after_loss: if options.is_brief() { first } else { second } })
            };
            let attempt = engine(Duration::from_secs(2)).with_lock_wait(TENANT, in_a_minute(), attempt).await;
            assert!(matches!(attempt, Err(DatabaseError::Locked { after_loss }) if after_loss == (first || second)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_waits_for_the_first_as_long_as_for_a_lock() {
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
        let never = async |_| pending::<Result<Attempt<()>, DatabaseError>>().await;
        let mut first = Box::pin(engine.perform(&request, in_a_minute(), never));
        assert!(poll!(&mut first).is_pending());
        let began = Instant::now();
        let copy = engine.perform(&request, in_a_minute(), never).await;
        assert!(matches!(copy, Err(KeyedError::InFlight)), "{copy:?}");
        assert_eq!(began.elapsed(), lock_wait);
    }
}
