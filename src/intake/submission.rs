//! A submission: all that its statement writes, made once, before the first attempt.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::idempotency::{Answer, Effect, Fingerprint, Keyed, ScopedKey};
use crate::ids::{JobId, RequestId, TenantId};
use crate::jobs::{self, ContentDigest, Job, NewJob};

/// A job to insert. Every attempt sends the same id, time and bytes. So the stored row shows whether an earlier attempt
/// was committed.
#[derive(Debug)]
pub struct Draft {
    pub tenant: TenantId,
    pub job: NewJob,
    pub created_at: DateTime<Utc>,
    /// The answer to the request that creates the job.
    pub answer: Answer,
}

/// A draft with an idempotency key.
#[derive(Debug)]
pub struct Submission {
    pub keyed: Keyed,
    pub draft: Draft,
    /// The content that no other active job may have; `None` if the job is not unique.
    pub content: Option<ContentDigest>,
}

impl Draft {
    /// A job whose id the client chose.
    pub fn named(tenant: TenantId, id: JobId, job: NewJob) -> Self {
        Self::new(tenant, id, jobs::now(), job)
    }

    fn new(tenant: TenantId, id: JobId, created_at: DateTime<Utc>, job: NewJob) -> Self {
        Self { tenant, created_at, answer: answer(Effect::Created, id, created_at, &job), job }
    }
}

impl Submission {
    /// The approximate size of the texts of the client.
    pub fn bytes(&self) -> usize {
        let NewJob { payload, kind, queue, .. } = &self.draft.job;
        payload.len() + kind.len() + queue.as_ref().map_or(0, String::len) + self.keyed.key.key.as_str().len()
    }

    /// A job with a new, unique id.
    pub fn mint(
        key: ScopedKey,
        fingerprint: Fingerprint,
        (job, content): (NewJob, Option<ContentDigest>),
        request_id: RequestId,
        time_to_live: Duration,
    ) -> Self {
        let created_at = jobs::now();
        let id = JobId::mint(created_at);
        let draft = Draft::new(key.tenant, id, created_at, job);
        Self {
            keyed: Keyed { key, fingerprint, request_id, created_at, time_to_live, makes: Some(id) },
            draft,
            content,
        }
    }
}

/// The answer to a request that created or adopted a job. It shows the job as it was created.
pub fn answer(effect: Effect, id: JobId, created_at: DateTime<Utc>, job: &NewJob) -> Answer {
    let job = Job::submitted(id, created_at, job);
    Answer { effect, job_id: id, job_version: job.version, body: job.to_json() }
}
