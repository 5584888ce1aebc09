//! A request on its way in: all that the statement writes, made before the first attempt and never again.

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::idempotency::{Fingerprint, Outcome, ScopedKey};
use crate::ids::{JobId, RequestId};
use crate::jobs::{self, Job, NewJob};

/// Minted once: however often the statement is sent, it carries this id, this time and these bytes, so the row itself
/// tells whether an attempt of ours was committed.
#[derive(Debug)]
pub struct Submission {
    pub key: ScopedKey,
    pub fingerprint: Fingerprint,
    pub job: NewJob,
    pub request_id: RequestId,
    pub job_id: JobId,
    pub created_at: DateTime<Utc>,
    pub location: String,
    pub body: Bytes,
}

impl Submission {
    /// HTTP status of the answer to the request that makes the job.
    pub const STATUS: i16 = 201;

    pub fn mint(key: ScopedKey, fingerprint: Fingerprint, job: NewJob, request_id: RequestId) -> Self {
        let (job_id, created_at) = (JobId::mint(), jobs::now());
        let body = Job::submitted(job_id, created_at, &job).to_json().into();
        Self { key, fingerprint, job, request_id, job_id, created_at, location: format!("/jobs/{job_id}"), body }
    }

    /// The outcome that this submission has once it is committed.
    pub fn outcome(&self, expires_at: DateTime<Utc>) -> Outcome {
        Outcome {
            fingerprint: self.fingerprint,
            job_id: self.job_id,
            location: Some(self.location.clone()),
            body: self.body.clone(),
            request_id: self.request_id.clone(),
            created_at: self.created_at,
            expires_at,
        }
    }
}
