//! Intake: a submission becomes a job, once.
//!
//! Owns the one statement that writes key, job and stored answer together, and the judgement of who comes too late.
//! It knows nothing of HTTP but the status that an answer was given with, and it never begins a transaction.

mod queries;
mod submission;

pub use queries::Terms;
pub use submission::Submission;

use std::time::Duration;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::database::{DatabaseError, Lane};
use crate::idempotency::{self, Outcome};
use crate::jobs;
use crate::metrics::Shed;

use queries::OnConflict;

/// How a submission ended well. Either way the outcome is committed, and its bytes are the answer.
#[derive(Debug)]
pub enum Submitted {
    /// This request made the job.
    Created(Outcome),
    /// An earlier request with the same key did.
    Replayed(Outcome),
}

/// Why there is no answer. Unless said otherwise, the key is as it was before.
#[derive(Debug, Error)]
pub enum SubmitError {
    #[error("the key stands for another request")]
    KeyReused {
        first: Box<Outcome>,
        /// JSON Pointers to what differs; empty if the first request is no longer stored.
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
    #[error("it is unknown whether the job was created")]
    OutcomeUnknown,
    #[error("the statement failed")]
    Failed(#[source] sqlx::Error),
}

/// The one way in. Each submission is one statement on one connection of the lane.
pub struct Intake {
    lane: Lane,
    terms: Terms,
    /// Places for those who wait out a lock, so that one held key cannot take every connection.
    patient: Semaphore,
}

/// How long a statement waits for a lock at first. Measured: enough for another request's commit, and short enough
/// that the neighbours of a held key hardly notice.
const FIRST_LOCK_WAIT: Duration = Duration::from_millis(20);

impl Intake {
    /// `lane` is for intake alone, of `connections` at the most; `terms.lock_wait` is the longest that a submission
    /// waits for another that holds its key.
    pub fn new(lane: Lane, connections: usize, terms: Terms) -> Self {
        let patient = Semaphore::new((connections / 2).max(1));
        Self { lane, terms, patient }
    }

    /// Makes the job, or finds the outcome of the request that did.
    ///
    /// # Errors
    /// [`SubmitError`], at `deadline` at the latest.
    pub async fn submit(&self, submission: &Submission, deadline: Instant) -> Result<Submitted, SubmitError> {
        // Each turn ends in an answer, unless the row that was in the way has gone or expired in between.
        let mut on_conflict = OnConflict::DoNothing;
        loop {
            if let Some(expires_at) = self.write(submission, on_conflict, deadline).await? {
                return Ok(Submitted::Created(submission.outcome(expires_at)));
            }
            on_conflict = match self.find(submission, deadline).await? {
                None => OnConflict::DoNothing,
                Some(stored) if stored.outcome.job_id == submission.job_id => {
                    // An attempt of ours was committed and its acknowledgement lost.
                    return Ok(Submitted::Created(stored.outcome));
                }
                Some(stored) if stored.expired => OnConflict::TakeOverExpired,
                Some(stored) => return self.judge(submission, stored.outcome, deadline).await,
            };
        }
    }

    /// Finds the outcome of an earlier request with the key, and writes nothing. `None`: there is none.
    ///
    /// # Errors
    /// As [`Intake::submit`].
    pub async fn replay(&self, submission: &Submission, deadline: Instant) -> Result<Option<Submitted>, SubmitError> {
        let key = &submission.key;
        let found =
            self.lane.read(deadline, async |connection| idempotency::queries::find(connection, key).await).await;
        match found?.filter(|stored| !stored.expired) {
            Some(stored) => self.judge(submission, stored.outcome, deadline).await.map(Some),
            None => Ok(None),
        }
    }

    /// Sends the statement; `None` says that the key is taken.
    async fn write(
        &self,
        submission: &Submission,
        on_conflict: OnConflict,
        deadline: Instant,
    ) -> Result<Option<DateTime<Utc>>, SubmitError> {
        let began = Instant::now();
        let first_wait = FIRST_LOCK_WAIT.min(self.terms.lock_wait);
        let after_loss = match self.send(submission, on_conflict, first_wait, deadline).await {
            Err(DatabaseError::Locked { after_loss }) => after_loss,
            done => return Ok(done?),
        };
        let patience_ends = deadline.min(began + self.terms.lock_wait);
        let Ok(Ok(_place)) = timeout_at(patience_ends, self.patient.acquire()).await else {
            return Err(SubmitError::InFlight);
        };
        let wait = patience_ends.saturating_duration_since(Instant::now());
        if wait < Duration::from_millis(1) {
            return Err(SubmitError::InFlight);
        }
        match self.send(submission, on_conflict, wait, deadline).await {
            Err(DatabaseError::Unavailable(_) | DatabaseError::Shed(_) | DatabaseError::Statement(_)) if after_loss => {
                Err(SubmitError::OutcomeUnknown)
            }
            done => Ok(done?),
        }
    }

    async fn send(
        &self,
        submission: &Submission,
        on_conflict: OnConflict,
        lock_wait: Duration,
        deadline: Instant,
    ) -> Result<Option<DateTime<Utc>>, DatabaseError> {
        let terms = Terms { lock_wait, ..self.terms };
        self.lane
            .complete(deadline, async |connection| queries::submit(connection, submission, on_conflict, terms).await)
            .await
    }

    /// Reads what stands under the key. There is an outcome, if not of this attempt then of another, so not being able
    /// to read it means that it is unknown.
    async fn find(
        &self,
        submission: &Submission,
        deadline: Instant,
    ) -> Result<Option<idempotency::queries::Stored>, SubmitError> {
        let key = &submission.key;
        let found =
            self.lane.complete(deadline, async |connection| idempotency::queries::find(connection, key).await).await;
        found.map_err(|error| match error {
            DatabaseError::Statement(error) => {
                tracing::error!(%error, "what stands under a key could not be read");
                SubmitError::OutcomeUnknown
            }
            _ => SubmitError::OutcomeUnknown,
        })
    }

    /// Compares with what is stored, whoever wrote it.
    async fn judge(
        &self,
        submission: &Submission,
        first: Outcome,
        deadline: Instant,
    ) -> Result<Submitted, SubmitError> {
        if first.fingerprint == submission.fingerprint {
            return Ok(Submitted::Replayed(first));
        }
        let (tenant, job_id) = (submission.key.tenant, first.job_id);
        let read = self
            .lane
            .read(deadline, async |connection| jobs::queries::find_submitted(connection, tenant, job_id).await)
            .await;
        // Where they differ is a courtesy; that they differ is certain.
        let job = read.unwrap_or_else(|error| {
            tracing::warn!(%error, "the first request could not be read to be compared with");
            None
        });
        let pointers = job.map(|job| job.differences(&submission.job)).unwrap_or_default();
        Err(SubmitError::KeyReused { first: Box::new(first), pointers })
    }
}

impl From<DatabaseError> for SubmitError {
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
