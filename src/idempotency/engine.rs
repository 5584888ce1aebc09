//! The engine of all routes with an idempotency key.
//!
//! A route supplies an attempt: one call of a write function, which commits the key together with the effect of the
//! request, or nothing. If nothing was written, the engine finds out why. If the key's row has expired, the engine
//! expires the key and repeats the attempt.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::clock::Moment;
use super::replays::{CacheLookup, Replays};
use super::{Answer, Effect, Fingerprint, Outcome, ScopedKey, queries};
use crate::database::{DatabaseError, WriteOptions, Writes};
use crate::ids::{JobId, RequestId};
use crate::overload::Shed;

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
    writes: Writes,
    replays: Arc<Replays>,
}

/// The pause between attempts without a result. There is none after the first: the conflicting row has just gone.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_LONGEST: Duration = Duration::from_millis(100);

impl Engine {
    pub fn new(writes: Writes, replays: Arc<Replays>) -> Self {
        Self { writes, replays }
    }

    /// How the attempts write.
    pub fn writes(&self) -> &Writes {
        &self.writes
    }

    /// The outcome of an earlier request with the same key and content, if it is in this replica's cache.
    pub fn recall(&self, key: &ScopedKey, fingerprint: &Fingerprint) -> Option<Arc<Outcome>> {
        self.replays.recall(key, fingerprint)
    }

    /// Carries out a request, or finds the outcome of an earlier request with its key. Copies that arrive meanwhile
    /// wait for the result, for at most the lock wait.
    ///
    /// `attempt` writes the key and the effect in one statement, by `SharedPool::complete`. It may be called again
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
        let lock_wait_ends = deadline.min(Instant::now() + self.writes.lock_wait());
        let leader = match timeout_at(lock_wait_ends, self.replays.get_or_lead(&request.key)).await {
            Ok(CacheLookup::Outcome(outcome)) => return Ok(replay(request, outcome)?.into()),
            Ok(CacheLookup::Nothing(leader)) => leader,
            Err(_) => return Err(KeyedError::InFlight),
        };
        // An attempt is repeated only if the conflicting row has gone, changed or expired.
        let mut pause = Duration::ZERO;
        loop {
            let asked = Moment::now();
            let attempt = self.writes.with_lock_wait(request.key.tenant, deadline, &mut attempt).await?;
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
                (Some(queries::Stored { outcome, life: Some(life), .. }), _) => {
                    leader.end(Arc::clone(&outcome), asked, life);
                    return Ok(replay(request, outcome)?.into());
                }
                // Kept for its job. Not cached, because nothing says for how long.
                (Some(queries::Stored { outcome, is_kept: true, .. }), Some(_)) => {
                    return Ok(replay(request, outcome)?.into());
                }
                (_, Some(result)) => return Ok(result),
                (None, None) => {}
                (Some(_), None) => self.expire(&request.key, deadline).await?,
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

    /// Deletes the row of the key, so that the next attempt can insert the key. If the key is still kept for its job,
    /// extends its life instead, and the next look-up finds it.
    async fn expire(&self, key: &ScopedKey, deadline: Instant) -> Result<(), DatabaseError> {
        let delete = async |options| {
            let delete = async |connection: &mut _| queries::expire(connection, key, options).await;
            self.writes.pool().complete("expire_key", key.tenant, deadline, delete).await
        };
        self.writes.with_lock_wait(key.tenant, deadline, delete).await
    }

    /// Reads the row of the key after an attempt that was rejected without a write.
    async fn find_after_rejection(
        &self,
        request: &Keyed,
        deadline: Instant,
    ) -> Result<Option<queries::Stored>, KeyedError> {
        let key = &request.key;
        Ok(self
            .writes
            .pool()
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
        let found = self.writes.pool().complete("find_keys", key.tenant, deadline, find).await;
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

    use super::*;
    use crate::database::{Pool, SharedPool};
    use crate::idempotency::{Key, Route};
    use crate::ids::TenantId;
    use crate::metrics::Metrics;

    const TENANT: TenantId = TenantId(uuid::Uuid::nil());

    fn engine(lock_wait: Duration) -> Engine {
        let options = WriteOptions { lock_wait, insist_on_durability: true };
        let writes = Writes::new(SharedPool::new(Pool::to_nowhere()), options);
        Engine::new(writes, Arc::new(Replays::new(0, Metrics::new())))
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
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
