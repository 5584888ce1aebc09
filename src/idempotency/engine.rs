//! What every route with a key has in common.
//!
//! A route brings one act: a statement that writes the key together with what the request asks for, or nothing. The
//! engine decides what it means that nothing was written.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::{Answer, Fingerprint, Outcome, ScopedKey, queries};
use crate::database::{DatabaseError, Lane};
use crate::ids::{JobId, RequestId};
use crate::metrics::Shed;

/// A request under a key. Minted once: however often its act is tried, it is the same request, so what is stored tells
/// whether an attempt of ours was committed.
#[derive(Debug)]
pub struct Keyed {
    pub key: ScopedKey,
    pub fingerprint: Fingerprint,
    pub request_id: RequestId,
    pub created_at: DateTime<Utc>,
    /// The job that it makes, of an id that nobody else has; `None` if it changes one that is there.
    pub makes: Option<JobId>,
}

/// What a row that stands under the key means for the act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// The key is taken. Locks nothing; four times as fast on duplicates as the other.
    DoNothing,
    /// The key is taken unless the row has expired; then it becomes ours. Locks the row either way.
    TakeOverExpired,
}

/// On what terms a statement is sent. They are set within it, so that it needs no session of its own.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long the key lives.
    pub time_to_live: Duration,
    /// How long the statement waits for another transaction that holds the key.
    pub lock_wait: Duration,
    /// Commit durably even if somebody has turned the server's synchronous_commit off since we looked.
    pub insist_on_durability: bool,
}

/// What one try at an act came to.
#[derive(Debug)]
pub enum Acted<R> {
    /// Key and effect are committed, and the key lives until then.
    Done(Answer, DateTime<Utc>),
    /// The key is taken, or what the act was made from has changed meanwhile. Nothing was written.
    Not,
    /// The request cannot be carried out as things are, unless it has been already. Nothing was written.
    Refused(R),
}

/// How a request under a key ended well, or as well as it could. But for a refusal, the outcome is committed, and its
/// bytes are the answer.
#[derive(Debug)]
pub enum Performed<R> {
    /// This request did it.
    First(Outcome),
    /// An earlier request with the same key did.
    Replayed(Outcome),
    /// Nobody did, and the key is as it was before.
    Refused(R),
}

/// Why there is no answer. Unless said otherwise, the key is as it was before.
#[derive(Debug, Error)]
pub enum KeyedError {
    #[error("the key stands for another request")]
    KeyReused {
        first: Box<Outcome>,
        /// JSON Pointers to what differs; empty where the first request is not known any more.
        pointers: Vec<String>,
    },
    /// Somebody else's transaction holds the key.
    #[error("the first request with this key is still in flight")]
    InFlight,
    #[error("nothing was written: {0}")]
    Unavailable(String),
    #[error("nothing was written: {0}")]
    Shed(Shed),
    /// The statement was sent and may have been committed. The same key will tell.
    #[error("it is unknown whether the request was carried out")]
    OutcomeUnknown,
    #[error("the statement failed")]
    Failed(#[source] sqlx::Error),
}

/// The way of every keyed request: act, and if nothing was written, look who has the key.
#[derive(Clone)]
pub struct Engine {
    lane: Lane,
    terms: Terms,
    /// Places for those who wait out a lock, so that one held key cannot take every connection.
    patient: Arc<Semaphore>,
}

/// How long a statement waits for a lock at first. Measured: enough for another request's commit, and short enough
/// that the neighbours of a held key hardly notice.
const FIRST_LOCK_WAIT: Duration = Duration::from_millis(20);

impl Engine {
    /// `lane` is for writes alone, of `connections` at the most; `terms.lock_wait` is the longest that a request waits
    /// for another that holds its key.
    pub fn new(lane: Lane, connections: usize, terms: Terms) -> Self {
        let patient = Arc::new(Semaphore::new((connections / 2).max(1)));
        Self { lane, terms, patient }
    }

    /// What the acts are sent on.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// For a statement without a key, which waits for whom it meets as long as one with a key does.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Carries a request out, or finds the outcome of the earlier one that did.
    ///
    /// `act` writes the key with all that belongs to it in one statement, by [`Lane::complete`], and may be called again
    /// after any answer but [`Acted::Done`].
    ///
    /// # Errors
    /// [`KeyedError`], at `deadline` at the latest.
    pub async fn perform<R>(
        &self,
        request: &Keyed,
        deadline: Instant,
        mut act: impl AsyncFnMut(OnConflict, Terms) -> Result<Acted<R>, DatabaseError>,
    ) -> Result<Performed<R>, KeyedError> {
        // Each turn ends in an answer, unless the row that was in the way has gone or expired in between.
        let mut on_conflict = OnConflict::DoNothing;
        loop {
            let refusal = match self.try_patiently(on_conflict, deadline, &mut act).await? {
                Acted::Done(answer, expires_at) => return Ok(Performed::First(request.outcome(answer, expires_at))),
                Acted::Refused(refusal) => Some(refusal),
                Acted::Not => None,
            };
            on_conflict = match self.find(request, deadline).await? {
                // An attempt of ours was committed and its acknowledgement lost.
                Some(stored) if request.has_made(&stored.outcome) => return Ok(Performed::First(stored.outcome)),
                Some(stored) if !stored.expired => return judge(request, stored.outcome).map(Performed::Replayed),
                other => match (refusal, other) {
                    (Some(refusal), _) => return Ok(Performed::Refused(refusal)),
                    (None, None) => OnConflict::DoNothing,
                    (None, Some(_)) => OnConflict::TakeOverExpired,
                },
            };
        }
    }

    /// Finds the outcome of an earlier request with the key, and writes nothing. `None`: there is none.
    ///
    /// # Errors
    /// As [`Engine::perform`].
    pub async fn replay(&self, request: &Keyed, deadline: Instant) -> Result<Option<Outcome>, KeyedError> {
        let key = &request.key;
        let found = self.lane.read(deadline, async |connection| queries::find(connection, key).await).await;
        found?.filter(|stored| !stored.expired).map(|stored| judge(request, stored.outcome)).transpose()
    }

    /// Tries with a short wait for locks, and where that is not enough once more with the whole of it.
    async fn try_patiently<R>(
        &self,
        on_conflict: OnConflict,
        deadline: Instant,
        act: &mut impl AsyncFnMut(OnConflict, Terms) -> Result<Acted<R>, DatabaseError>,
    ) -> Result<Acted<R>, KeyedError> {
        let began = Instant::now();
        let terms = |lock_wait| Terms { lock_wait, ..self.terms };
        let after_loss = match act(on_conflict, terms(FIRST_LOCK_WAIT.min(self.terms.lock_wait))).await {
            Err(DatabaseError::Locked { after_loss }) => after_loss,
            done => return Ok(done?),
        };
        let patience_ends = deadline.min(began + self.terms.lock_wait);
        let Ok(Ok(_place)) = timeout_at(patience_ends, self.patient.acquire()).await else {
            return Err(KeyedError::InFlight);
        };
        let wait = patience_ends.saturating_duration_since(Instant::now());
        if wait < Duration::from_millis(1) {
            return Err(KeyedError::InFlight);
        }
        match act(on_conflict, terms(wait)).await {
            Err(DatabaseError::Unavailable(_) | DatabaseError::Shed(_) | DatabaseError::Statement(_)) if after_loss => {
                Err(KeyedError::OutcomeUnknown)
            }
            done => Ok(done?),
        }
    }

    /// Reads what stands under the key. There may be an outcome, if not of this attempt then of another, so not being
    /// able to read it means that it is unknown.
    async fn find(&self, request: &Keyed, deadline: Instant) -> Result<Option<queries::Stored>, KeyedError> {
        let key = &request.key;
        let found = self.lane.complete(deadline, async |connection| queries::find(connection, key).await).await;
        found.map_err(|error| {
            if let DatabaseError::Statement(error) = error {
                tracing::error!(%error, "what stands under a key could not be read");
            }
            KeyedError::OutcomeUnknown
        })
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

    /// Whether this very request has left an outcome, and not a copy of it. Where no job tells, two copies would have to
    /// bear one `X-Request-Id` and be accepted in one microsecond to be mixed up, and then differ in nothing that matters.
    fn has_made(&self, outcome: &Outcome) -> bool {
        match self.makes {
            Some(job_id) => outcome.answer.job_id == job_id,
            None => outcome.request_id == self.request_id && outcome.created_at == self.created_at,
        }
    }
}

/// Compares with what is stored, whoever wrote it.
fn judge(request: &Keyed, first: Outcome) -> Result<Outcome, KeyedError> {
    if first.fingerprint == request.fingerprint {
        return Ok(first);
    }
    Err(KeyedError::KeyReused { first: Box::new(first), pointers: Vec::new() })
}

impl From<DatabaseError> for KeyedError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Locked { .. } => Self::InFlight,
            DatabaseError::Unavailable(reason) => Self::Unavailable(reason),
            DatabaseError::Shed(reason) => Self::Shed(reason),
            DatabaseError::Unknown => Self::OutcomeUnknown,
            DatabaseError::Statement(error) => Self::Failed(error),
        }
    }
}
