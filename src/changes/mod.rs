//! Changes: what a client may do to a job that is there.
//!
//! Owns the change of a job that waits, the cancellation and the deletion, with the statements that do them. It never
//! makes a job, and never begins a transaction.

mod queries;

use std::sync::Arc;

use tokio::time::Instant;

use crate::database::{DatabaseError, SharedPool};
use crate::idempotency::{Answer, Attempt, Effect, Engine, Keyed, KeyedError, KeyedResult, Outcome, WriteOptions};
use crate::ids::{JobId, TenantId};
use crate::jobs::{self, Job, Lookup, Patch, State};

/// The one way to change a job.
pub struct Changes {
    engine: Engine,
}

/// What is to be changed, of which job, and of which versions of it.
#[derive(Debug)]
pub struct Change {
    pub tenant: TenantId,
    pub id: JobId,
    pub patch: Patch,
    pub condition: Condition,
}

/// The versions of a job that a request is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Any,
    OneOf(Vec<i32>),
}

/// Why a job was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    Deleted,
    /// It runs, or is over.
    NotWaiting {
        id: JobId,
        state: State,
    },
    /// It is of a version that the request is not meant for.
    Stale {
        id: JobId,
        version: i32,
    },
}

/// A job as it will be, made from the version that was read.
pub struct Next {
    job: Job,
    made_from: i32,
    answer: Answer,
}

impl Changes {
    pub fn new(engine: Engine) -> Self {
        Self { engine }
    }

    /// Changes the job, or finds the outcome of the request that did.
    ///
    /// # Errors
    /// [`KeyedError`], at `deadline` at the latest.
    pub async fn patch_keyed(
        &self,
        change: &Change,
        keyed: &Keyed,
        deadline: Instant,
    ) -> Result<KeyedResult<Refusal>, KeyedError> {
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

    /// Changes the job. Without a key, a repetition meets the version that the first has made.
    ///
    /// # Errors
    /// [`DatabaseError`], at `deadline` at the latest.
    pub async fn patch(&self, change: &Change, deadline: Instant) -> Result<Result<Answer, Refusal>, DatabaseError> {
        loop {
            let next = match self.next(change, deadline).await? {
                Ok(next) => next,
                Err(refusal) => return Ok(Err(refusal)),
            };
            // Whether an attempt was sent again, since the one before it was lost.
            let mut repeated = false;
            let patch = async |options| {
                let mut attempts = 0;
                let write = async |connection: &mut _| {
                    attempts += 1;
                    queries::patch(connection, change.tenant, &next, options).await
                };
                let written = self.pool().complete("patch", change.tenant, deadline, write).await;
                repeated |= attempts > 1;
                written
            };
            let made = self.engine.with_lock_wait(change.tenant, deadline, patch).await?;
            if made || (repeated && self.was_ours(change, &next, deadline).await?) {
                return Ok(Ok(next.answer));
            }
        }
    }

    /// Cancels a job that waits, and says how it stands, whoever has made it so; `None` if there is none.
    ///
    /// # Errors
    /// [`DatabaseError`], at `deadline` at the latest.
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
            self.engine.with_lock_wait(tenant, deadline, cancel).await?;
            match self.find(tenant, id, deadline).await.map_err(DatabaseError::after_a_write)? {
                // It came into the queue in between.
                Some(Lookup::Job(job)) if job.state == State::Queued => {}
                found => return Ok(found),
            }
        }
    }

    /// Deletes a job, wherever it is. Succeeds if there is none.
    ///
    /// # Errors
    /// [`DatabaseError`], at `deadline` at the latest.
    pub async fn delete(&self, tenant: TenantId, id: JobId, deadline: Instant) -> Result<(), DatabaseError> {
        let delete = async |options| {
            let write = async |connection: &mut _| queries::delete(connection, tenant, id, options).await;
            self.pool().complete("delete", tenant, deadline, write).await
        };
        self.engine.with_lock_wait(tenant, deadline, delete).await
    }

    async fn attempt(
        &self,
        change: &Change,
        keyed: &Keyed,
        options: WriteOptions,
        deadline: Instant,
    ) -> Result<Attempt<Refusal>, DatabaseError> {
        let next = match self.next(change, deadline).await? {
            Ok(next) => next,
            Err(refusal) => return Ok(Attempt::Rejected(refusal)),
        };
        let write = async |connection: &mut _| queries::patch_keyed(connection, keyed, &next, options).await;
        let written = self.pool().complete("patch_keyed", change.tenant, deadline, write).await?;
        Ok(written.map_or(Attempt::NoRows, |expires_at| Attempt::Committed(next.answer, expires_at)))
    }

    /// Reads the job and makes of it what it shall be. That it does not wait comes before its version: RFC 9110, section
    /// 13.2.1, has conditions ignored where the answer would be an error without them, too.
    async fn next(&self, change: &Change, deadline: Instant) -> Result<Result<Next, Refusal>, DatabaseError> {
        let mut job = match self.find(change.tenant, change.id, deadline).await? {
            None => return Ok(Err(Refusal::NotFound)),
            Some(Lookup::Deleted) => return Ok(Err(Refusal::Deleted)),
            Some(Lookup::Job(job)) => job,
        };
        let made_from = job.version;
        if job.state != State::Queued {
            return Ok(Err(Refusal::NotWaiting { id: job.id, state: job.state }));
        }
        if let Condition::OneOf(versions) = &change.condition
            && !versions.contains(&made_from)
        {
            return Ok(Err(Refusal::Stale { id: job.id, version: made_from }));
        }
        change.patch.apply(&mut job);
        let answer = Answer { effect: Effect::Changed, job_id: job.id, job_version: job.version, body: job.to_json() };
        Ok(Ok(Next { job, made_from, answer }))
    }

    /// Whether it was ours that made the version that an attempt of ours has met, after one whose acknowledgement was lost.
    /// RFC 9110, section 13.1.1, has a change answered as done where it appears to be.
    async fn was_ours(&self, change: &Change, next: &Next, deadline: Instant) -> Result<bool, DatabaseError> {
        match self.find(change.tenant, change.id, deadline).await.map_err(DatabaseError::after_a_write)? {
            Some(Lookup::Job(now)) if now.version == next.job.version => Ok(now.to_json() == next.answer.body),
            // Another change hides whether ours came before it.
            _ => Err(DatabaseError::Unknown),
        }
    }

    async fn find(&self, tenant: TenantId, id: JobId, deadline: Instant) -> Result<Option<Lookup<Job>>, DatabaseError> {
        let find = async |connection: &mut _| jobs::queries::find_without_payload(connection, tenant, id).await;
        self.pool().read("find_job_without_payload", tenant, deadline, find).await
    }

    fn pool(&self) -> &SharedPool {
        self.engine.pool()
    }
}
