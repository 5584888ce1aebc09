//! Intake creates jobs: one job for each submission.
//!
//! Owns the statements that insert jobs. Decides what a submission gets if a job already exists with the same
//! idempotency key, the same content or the same id. It knows nothing of HTTP and never begins a transaction.

mod grouped;
mod queries;
mod submission;

pub use grouped::InsertSubmissions;
pub use submission::{Draft, Submission};

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::database::{DatabaseError, WriteOptions, violates};
use crate::group_commit::GroupCommit;
use crate::idempotency::{Answer, Attempt, Effect, Engine, Fingerprint, KeyedError, KeyedResult, Outcome, ScopedKey};
use crate::ids::{JobId, TenantId};
use crate::jobs::{self, ContentDigest, Lookup, NewJob};
use crate::long_poll::LongPolls;
use crate::offload::Offload;
use crate::overload::{Shed, Usage};
use crate::shares::Shares;
use grouped::Insertion;

/// Creates jobs. Every submission goes through it.
pub struct Intake {
    engine: Engine,
    submissions: Arc<GroupCommit<InsertSubmissions>>,
    /// Compares large jobs.
    offload: Arc<Offload>,
    /// Limits how many submitted jobs a tenant reads at once: a small request may read a large job.
    readers: Shares,
    /// Requests that wait for new jobs.
    long_polls: Arc<LongPolls>,
}

type Submitted = Lookup<(NewJob, DateTime<Utc>)>;

/// The limit of `readers`.
const READERS_MAX: usize = 4;

/// How many submissions one request may have in progress at once.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Submissions that are written in batches.
    pub in_batches: usize,
    /// Unique jobs. Each takes a connection.
    pub one_by_one: usize,
}

/// The result of a `PUT`.
#[derive(Debug)]
pub enum Put {
    Created(Answer),
    /// The job exists with the same content. This is the answer to the request that created it.
    Existing(Answer),
    /// The job exists with other content.
    Other {
        /// JSON Pointers to the differences.
        pointers: Vec<String>,
    },
    Deleted,
}

impl Intake {
    /// The caller runs the writers of `submissions`.
    pub fn new(
        engine: Engine,
        submissions: Arc<GroupCommit<InsertSubmissions>>,
        offload: Arc<Offload>,
        long_polls: Arc<LongPolls>,
    ) -> Self {
        Self { engine, submissions, offload, readers: Shares::new(READERS_MAX), long_polls }
    }

    /// The number of submissions that are not answered yet, and its limit.
    pub fn usage(&self) -> Usage {
        self.submissions.usage()
    }

    /// How many submissions one request may have in progress at once: a part of its tenant's share.
    pub fn share(&self) -> Share {
        let Usage { limit, .. } = self.usage();
        Share { in_batches: (limit / 16).max(1), one_by_one: (self.engine.writes().pool().share() / 2).max(1) }
    }

    /// The outcome of an earlier request with the same key and content, if it is in this replica's cache.
    pub fn recall(&self, key: &ScopedKey, fingerprint: &Fingerprint) -> Option<Arc<Outcome>> {
        self.engine.recall(key, fingerprint)
    }

    /// Creates the job, or finds the outcome of an earlier request with the key, or adopts the active job with the same
    /// content.
    ///
    /// # Errors
    /// [`KeyedError`], at `deadline` at the latest.
    pub async fn submit(&self, submission: &Arc<Submission>, deadline: Instant) -> Result<KeyedResult, KeyedError> {
        match submission.content {
            None => {
                let attempt = async |options| self.insert(submission, options, deadline).await;
                self.engine.perform(&submission.keyed, deadline, attempt).await
            }
            Some(content) => {
                let attempt = async |options| self.insert_or_adopt(submission, content, options, deadline).await;
                self.engine.perform(&submission.keyed, deadline, attempt).await
            }
        }
    }

    /// Does what [`Intake::submit`] does, but creates no job: finds the outcome of an earlier request with the key, or
    /// adopts the active job with the same content. `None` if there is neither.
    ///
    /// # Errors
    /// As [`Intake::submit`].
    pub async fn find_or_adopt(
        &self,
        submission: &Arc<Submission>,
        deadline: Instant,
    ) -> Result<Option<KeyedResult>, KeyedError> {
        let attempt = async |options| {
            let Some(content) = submission.content else { return Ok(Attempt::Rejected(None)) };
            match self.find_content(submission, content, deadline).await? {
                None => Ok(Attempt::Rejected(None)),
                Some(holder) => self.adopt(submission, holder, content, options, deadline).await,
            }
        };
        self.engine.perform(&submission.keyed, deadline, attempt).await
    }

    /// The outcome of an earlier request with the key. Writes nothing.
    ///
    /// # Errors
    /// As [`Intake::submit`].
    pub async fn find_outcome(
        &self,
        submission: &Arc<Submission>,
        deadline: Instant,
    ) -> Result<Option<Arc<Outcome>>, KeyedError> {
        self.engine.find_outcome(&submission.keyed, deadline).await
    }

    /// Adds to a [`KeyedError::KeyReused`] where the two requests differ. For that it reads the job of the first
    /// request. If that fails, the error stays without the pointers.
    pub async fn compare(&self, submission: &Arc<Submission>, error: &mut KeyedError, deadline: Instant) {
        let KeyedError::KeyReused { first, pointers } = error else { return };
        match self.differences(submission, first, deadline).await {
            Ok(found) => *pointers = found,
            Err(error) => tracing::warn!(%error, "could not read the job of the first request to compare it"),
        }
    }

    /// Creates a job under an id that the client chose, or compares with the existing job.
    ///
    /// # Errors
    /// [`DatabaseError`], at `deadline` at the latest.
    pub async fn put(&self, draft: &Arc<Draft>, deadline: Instant) -> Result<Put, DatabaseError> {
        let put = async |options| {
            let write = async |connection: &mut _| queries::put(connection, draft, options).await;
            self.engine.writes().pool().complete("put", draft.tenant, deadline, write).await
        };
        loop {
            if self.engine.writes().with_lock_wait(draft.tenant, deadline, put).await? {
                self.wake_workers(draft);
                return Ok(Put::Created(draft.answer.clone()));
            }
            if let Some(found) = self.find_named(draft, deadline).await.map_err(DatabaseError::after_a_write)? {
                return Ok(found);
            }
        }
    }

    /// Compares a draft with the existing job under its id. `None` if there is none.
    ///
    /// # Errors
    /// As [`Intake::put`].
    pub async fn find_named(&self, draft: &Arc<Draft>, deadline: Instant) -> Result<Option<Put>, DatabaseError> {
        let id = draft.answer.job_id;
        let (_permit, found) = self.submitted(draft.tenant, id, deadline).await?;
        let (job, created_at) = match found {
            None => return Ok(None),
            Some(Lookup::Deleted) => return Ok(Some(Put::Deleted)),
            Some(Lookup::Job(submitted)) => submitted,
        };
        let (bytes, requested) = (job.payload.len() + draft.job.payload.len(), Arc::clone(draft));
        let compare = move || match job.differences(&requested.job) {
            pointers if pointers.is_empty() => Put::Existing(submission::answer(Effect::Adopted, id, created_at, &job)),
            pointers => Put::Other { pointers },
        };
        let compared = self.offload.run(draft.tenant, bytes, deadline, compare).await;
        compared.map(Some).map_err(DatabaseError::Shed)
    }

    async fn insert(
        &self,
        submission: &Arc<Submission>,
        options: WriteOptions,
        deadline: Instant,
    ) -> Result<Attempt<KeyedResult>, DatabaseError> {
        if options.is_brief() {
            return Ok(match self.submissions.enqueue(Arc::clone(submission), deadline).await? {
                Insertion::Inserted(expires_at) => self.committed(submission, expires_at),
                Insertion::Conflict(stored) => Attempt::Conflict(stored),
                Insertion::Retry => Attempt::NoRows,
            });
        }
        let write = async |connection: &mut _| queries::submit(connection, submission, options).await;
        let written = self.engine.writes().pool().complete("submit", submission.draft.tenant, deadline, write).await?;
        Ok(written.map_or(Attempt::NoRows, |expires_at| self.committed(submission, expires_at)))
    }

    /// The key and the job are committed. Wakes a worker that waits for the job.
    fn committed<T>(&self, submission: &Submission, expires_at: DateTime<Utc>) -> Attempt<T> {
        self.wake_workers(&submission.draft);
        Attempt::Committed(submission.draft.answer.clone(), expires_at)
    }

    /// A job of the future is found by the next look of a worker after its time.
    fn wake_workers(&self, draft: &Draft) {
        if draft.job.run_at.is_none_or(|run_at| run_at <= draft.created_at) {
            self.long_polls.job_queued(draft.tenant, draft.job.queue_or_default());
        }
    }

    /// Reads first which active job has the content. `hapax.submit` cannot both find that the content is taken and
    /// insert a key for the job that has it.
    async fn insert_or_adopt(
        &self,
        submission: &Submission,
        content: ContentDigest,
        options: WriteOptions,
        deadline: Instant,
    ) -> Result<Attempt<KeyedResult>, DatabaseError> {
        if let Some(holder) = self.find_content(submission, content, deadline).await? {
            return self.adopt(submission, holder, content, options, deadline).await;
        }
        let write = async |connection: &mut _| queries::submit(connection, submission, options).await;
        match self.engine.writes().pool().complete("submit", submission.draft.tenant, deadline, write).await {
            // Another submission was faster. The next attempt finds its job.
            Err(DatabaseError::Violation(error)) if violates(&error, jobs::CONTENT_TAKEN) => Ok(Attempt::NoRows),
            written => Ok(written?.map_or(Attempt::NoRows, |expires_at| self.committed(submission, expires_at))),
        }
    }

    /// Stores the key with an answer about the job that has the content.
    async fn adopt<T>(
        &self,
        submission: &Submission,
        holder: JobId,
        content: ContentDigest,
        options: WriteOptions,
        deadline: Instant,
    ) -> Result<Attempt<T>, DatabaseError> {
        let (permit, found) = self.submitted(submission.draft.tenant, holder, deadline).await?;
        let (job, created_at) = match found {
            Some(Lookup::Job(submitted)) => submitted,
            // The deletion has freed the content.
            Some(Lookup::Deleted) => return Ok(Attempt::NoRows),
            None => {
                return Err(DatabaseError::Statement(Arc::new(sqlx::Error::Decode(
                    "the job that has the content does not exist".into(),
                ))));
            }
        };
        let answer = submission::answer(Effect::Adopted, holder, created_at, &job);
        drop((job, permit));
        let write =
            async |connection: &mut _| queries::adopt(connection, &submission.keyed, &answer, content, options).await;
        let written = self.engine.writes().pool().complete("adopt", submission.draft.tenant, deadline, write).await?;
        Ok(written.map_or(Attempt::NoRows, |expires_at| Attempt::Committed(answer, expires_at)))
    }

    async fn find_content(
        &self,
        submission: &Submission,
        content: ContentDigest,
        deadline: Instant,
    ) -> Result<Option<JobId>, DatabaseError> {
        let tenant = submission.draft.tenant;
        let find = async |connection: &mut _| queries::find_content(connection, tenant, content).await;
        self.engine.writes().pool().read("find_content", tenant, deadline, find).await
    }

    async fn differences(
        &self,
        submission: &Arc<Submission>,
        first: &Outcome,
        deadline: Instant,
    ) -> Result<Vec<String>, DatabaseError> {
        let tenant = submission.draft.tenant;
        if first.answer.effect != Effect::Created {
            // It adopted a job that another request had created.
            return Ok(Vec::new());
        }
        let (_permit, found) = self.submitted(tenant, first.answer.job_id, deadline).await?;
        let Some(Lookup::Job((job, _))) = found else { return Ok(Vec::new()) };
        let (bytes, submission) = (job.payload.len() + submission.draft.job.payload.len(), Arc::clone(submission));
        let compare = move || job.differences(&submission.draft.job);
        self.offload.run(tenant, bytes, deadline, compare).await.map_err(DatabaseError::Shed)
    }

    /// A job as it was submitted, and a permit of `readers`. The caller holds the permit as long as the job, which may
    /// be large.
    async fn submitted(
        &self,
        tenant: TenantId,
        id: JobId,
        deadline: Instant,
    ) -> Result<(OwnedSemaphorePermit, Option<Submitted>), DatabaseError> {
        let permit = timeout_at(deadline, self.readers.acquire(tenant, 1)).await;
        let permit = permit.map_err(|_| DatabaseError::Shed(Shed::TenantWaited))?;
        let find = async |connection: &mut _| jobs::queries::find_submitted(connection, tenant, id).await;
        Ok((permit, self.engine.writes().pool().read("find_submitted", tenant, deadline, find).await?))
    }
}
