//! Changes to existing jobs.
//!
//! Owns the change of a queued job, the cancellation, the deletion and the retry, with their statements. It never creates a job
//! and never begins a transaction.

mod queries;

use std::sync::Arc;

use tokio::time::Instant;

use crate::database::{DatabaseError, SharedPool, WriteOptions, violates};
use crate::idempotency::{Answer, Attempt, Effect, Engine, Keyed, KeyedError, KeyedResult, Outcome};
use crate::ids::{JobId, TenantId};
use crate::jobs::{self, Job, Lookup, Patch, State};
use crate::long_poll::LongPolls;

/// Changes jobs. Every change goes through it.
pub struct Changes {
    engine: Engine,
    /// Requests that wait for jobs.
    long_polls: Arc<LongPolls>,
}

/// What to change, in which job, and in which versions of it.
#[derive(Debug)]
pub struct Change {
    pub tenant: TenantId,
    pub id: JobId,
    pub patch: Patch,
    pub condition: Condition,
}

/// The versions of a job that a request accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Any,
    OneOf(Vec<i32>),
}

/// The result of a change without a key.
#[derive(Debug)]
pub enum Patched {
    /// The job was changed. This is the answer.
    Changed(Answer),
    Refused(Refusal),
}

/// The result of a change with a key.
#[derive(Debug)]
pub enum KeyedChanged {
    /// This request changed the job and committed the outcome.
    First(Arc<Outcome>),
    /// An earlier request with the same key did.
    Replayed(Arc<Outcome>),
    /// Nothing was changed, and the key is unchanged.
    Refused(Refusal),
}

/// Why a job was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    Deleted,
    /// The job is running or finished.
    NotWaiting {
        id: JobId,
        state: State,
    },
    /// The job waits or runs.
    NotFinished {
        id: JobId,
        state: State,
    },
    /// Another active job has the content of a unique job.
    ContentTaken {
        id: JobId,
    },
    /// The job has a version that the request does not accept.
    Stale {
        id: JobId,
        version: i32,
    },
    /// With the new `max_attempts`, the job could not be started again.
    NoAttemptLeft {
        attempt: i32,
    },
}

/// The job's next version, or why it has none.
enum Prepared {
    Changed(Box<ChangedJob>),
    Refused(Refusal),
}

/// A job after the change, computed from the version that was read.
pub struct ChangedJob {
    job: Job,
    base_version: i32,
    answer: Answer,
}

impl Changes {
    pub fn new(engine: Engine, long_polls: Arc<LongPolls>) -> Self {
        Self { engine, long_polls }
    }

    /// Changes the job, or finds the outcome of an earlier request with the key.
    ///
    /// # Errors
    /// [`KeyedError`], by `deadline` at the latest.
    pub async fn patch_keyed(
        &self,
        change: &Change,
        keyed: &Keyed,
        deadline: Instant,
    ) -> Result<KeyedChanged, KeyedError> {
        let attempt = async |options| self.attempt(change, keyed, options, deadline).await;
        self.engine.perform(keyed, deadline, attempt).await
    }

    /// The outcome of an earlier request with the key. Writes nothing.
    ///
    /// # Errors
    /// As [`Changes::patch_keyed`].
    pub async fn find_outcome(&self, keyed: &Keyed, deadline: Instant) -> Result<Option<Arc<Outcome>>, KeyedError> {
        self.engine.find_outcome(keyed, deadline).await
    }

    /// Changes the job. Without a key, a repeated request finds the version that the first one produced.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn patch(&self, change: &Change, deadline: Instant) -> Result<Patched, DatabaseError> {
        loop {
            let changed = match self.prepare(change, deadline).await? {
                Prepared::Changed(changed) => changed,
                Prepared::Refused(refusal) => return Ok(Patched::Refused(refusal)),
            };
            // Whether the statement was sent again after a lost attempt.
            let mut repeated = false;
            let patch = async |options| {
                let mut attempts = 0;
                let write = async |connection: &mut _| {
                    attempts += 1;
                    queries::patch(connection, change.tenant, &changed, options).await
                };
                let written = self.pool().complete("patch", change.tenant, deadline, write).await;
                repeated |= attempts > 1;
                written
            };
            let written = self.engine.writes().with_lock_wait(change.tenant, deadline, patch).await?;
            if written || (repeated && self.was_committed(change, &changed, deadline).await?) {
                return Ok(Patched::Changed(self.committed(change.tenant, *changed)));
            }
        }
    }

    /// Cancels a job if it is queued, and asks its worker to stop if it runs. Returns the current job, also if it was
    /// cancelled or finished before; `None` if it does not exist.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn cancel(
        &self,
        tenant: TenantId,
        id: JobId,
        deadline: Instant,
    ) -> Result<Option<Lookup<Job>>, DatabaseError> {
        let cancel = async |options| {
            let write = async |connection: &mut _| queries::cancel(connection, tenant, id, options).await;
            self.pool().complete("cancel", tenant, deadline, write).await
        };
        loop {
            self.engine.writes().with_lock_wait(tenant, deadline, cancel).await?;
            match self.find(tenant, id, deadline).await.map_err(DatabaseError::after_a_write)? {
                // The job was put into the queue after the statement.
                Some(Lookup::Job(job)) if job.state == State::Queued => {}
                found => return Ok(found),
            }
        }
    }

    /// Puts a finished job back into its queue with a fresh budget of attempts, or finds the outcome of an earlier request
    /// with the key.
    ///
    /// # Errors
    /// [`KeyedError`], by `deadline` at the latest.
    pub async fn retry(&self, id: JobId, keyed: &Keyed, deadline: Instant) -> Result<KeyedChanged, KeyedError> {
        let attempt = async |options| self.attempt_retry(id, keyed, options, deadline).await;
        self.engine.perform(keyed, deadline, attempt).await
    }

    /// Deletes a job in any state. Succeeds if the job does not exist.
    ///
    /// # Errors
    /// [`DatabaseError`], by `deadline` at the latest.
    pub async fn delete(&self, tenant: TenantId, id: JobId, deadline: Instant) -> Result<(), DatabaseError> {
        let delete = async |options| {
            let write = async |connection: &mut _| queries::delete(connection, tenant, id, options).await;
            self.pool().complete("delete", tenant, deadline, write).await
        };
        self.engine.writes().with_lock_wait(tenant, deadline, delete).await
    }

    async fn attempt(
        &self,
        change: &Change,
        keyed: &Keyed,
        options: WriteOptions,
        deadline: Instant,
    ) -> Result<Attempt<KeyedChanged>, DatabaseError> {
        let changed = match self.prepare(change, deadline).await? {
            Prepared::Changed(changed) => changed,
            Prepared::Refused(refusal) => return Ok(Attempt::Rejected(KeyedChanged::Refused(refusal))),
        };
        let write = async |connection: &mut _| queries::patch_keyed(connection, keyed, &changed, options).await;
        let written = self.pool().complete("patch_keyed", change.tenant, deadline, write).await?;
        Ok(written.map_or(Attempt::NoRows, |expires_at| {
            Attempt::Committed(self.committed(change.tenant, *changed), expires_at)
        }))
    }

    async fn attempt_retry(
        &self,
        id: JobId,
        keyed: &Keyed,
        options: WriteOptions,
        deadline: Instant,
    ) -> Result<Attempt<KeyedChanged>, DatabaseError> {
        let tenant = keyed.key.tenant;
        let refused = |refusal| Ok(Attempt::Rejected(KeyedChanged::Refused(refusal)));
        let mut job = match self.find(tenant, id, deadline).await? {
            None => return refused(Refusal::NotFound),
            Some(Lookup::Deleted) => return refused(Refusal::Deleted),
            Some(Lookup::Job(job)) => job,
        };
        if !job.state.is_final() {
            return refused(Refusal::NotFinished { id, state: job.state });
        }
        let find = async |connection: &mut _| jobs::queries::find_submitted(connection, tenant, id).await;
        let content = match self.pool().read("find_submitted", tenant, deadline, find).await? {
            Some(Lookup::Job((submitted, _))) => submitted.content(),
            _ => return refused(Refusal::Deleted),
        };
        let base_version = job.version;
        job.requeue(keyed.created_at);
        let changed = ChangedJob::new(job, base_version);
        let write = async |connection: &mut _| queries::retry(connection, keyed, &changed, content, options).await;
        match self.pool().complete("retry", tenant, deadline, write).await {
            Err(DatabaseError::Violation(error)) if violates(&error, jobs::CONTENT_TAKEN) => {
                refused(Refusal::ContentTaken { id })
            }
            written => {
                let committed = |expires_at| Attempt::Committed(self.committed(tenant, changed), expires_at);
                Ok(written?.map_or(Attempt::NoRows, committed))
            }
        }
    }

    /// The change is committed. Wakes a worker that waits for the job, if the job may run now. A job of the future is found
    /// by the next look of a worker after its time.
    fn committed(&self, tenant: TenantId, changed: ChangedJob) -> Answer {
        let ChangedJob { job, answer, .. } = changed;
        if job.run_at <= jobs::now() {
            self.long_polls.job_queued(tenant, &job.queue);
        }
        answer
    }

    /// Reads the job and computes its next version. Checks the state before the version: by RFC 9110, section 13.2.1, a
    /// server ignores conditions if the answer would be an error without them, too.
    async fn prepare(&self, change: &Change, deadline: Instant) -> Result<Prepared, DatabaseError> {
        let mut job = match self.find(change.tenant, change.id, deadline).await? {
            None => return Ok(Prepared::Refused(Refusal::NotFound)),
            Some(Lookup::Deleted) => return Ok(Prepared::Refused(Refusal::Deleted)),
            Some(Lookup::Job(job)) => job,
        };
        let base_version = job.version;
        if job.state != State::Queued {
            return Ok(Prepared::Refused(Refusal::NotWaiting { id: job.id, state: job.state }));
        }
        if let Condition::OneOf(versions) = &change.condition
            && !versions.contains(&base_version)
        {
            return Ok(Prepared::Refused(Refusal::Stale { id: job.id, version: base_version }));
        }
        let max_attempts = job.max_attempts;
        change.patch.apply(&mut job);
        // The write functions check it, too. The attempt of this version cannot change.
        if job.max_attempts != max_attempts && job.max_attempts <= job.attempt {
            return Ok(Prepared::Refused(Refusal::NoAttemptLeft { attempt: job.attempt }));
        }
        Ok(Prepared::Changed(Box::new(ChangedJob::new(job, base_version))))
    }

    /// Whether a lost attempt was committed: whether the job now is what the change would have produced. By RFC 9110,
    /// section 13.1.1, a server may then answer that the change is done.
    async fn was_committed(
        &self,
        change: &Change,
        changed: &ChangedJob,
        deadline: Instant,
    ) -> Result<bool, DatabaseError> {
        match self.find(change.tenant, change.id, deadline).await.map_err(DatabaseError::after_a_write)? {
            Some(Lookup::Job(now)) if now.version == changed.job.version => Ok(now.to_json() == changed.answer.body),
            // A later change hides whether the attempt was committed.
            _ => Err(DatabaseError::Unknown),
        }
    }

    async fn find(&self, tenant: TenantId, id: JobId, deadline: Instant) -> Result<Option<Lookup<Job>>, DatabaseError> {
        let find = async |connection: &mut _| jobs::queries::find_without_payload(connection, tenant, id).await;
        self.pool().read("find_job_without_payload", tenant, deadline, find).await
    }

    fn pool(&self) -> &SharedPool {
        self.engine.writes().pool()
    }
}

impl ChangedJob {
    fn new(job: Job, base_version: i32) -> Self {
        let answer = Answer { effect: Effect::Changed, job_id: job.id, job_version: job.version, body: job.to_json() };
        Self { job, base_version, answer }
    }
}

impl From<KeyedResult> for KeyedChanged {
    fn from(result: KeyedResult) -> Self {
        match result {
            KeyedResult::First(outcome) => Self::First(outcome),
            KeyedResult::Replayed(outcome) => Self::Replayed(outcome),
        }
    }
}
