//! Jobs: what a client submits, and what the API shows.
//!
//! Owns [`NewJob`] (as submitted), [`Job`] (as shown), [`Page`] (a page of a list), [`Depths`] (queue depths),
//! [`Patch`] (changes), their rules and their queries. Deduplication is elsewhere: in `idempotency`, `intake` and
//! `changes`.

mod depth;
mod depth_queries;
mod list_queries;
pub mod members;
mod new_job;
mod page;
mod patch;
pub mod queries;
mod unique;

pub use depth::{Depth, Depths};
pub use members::{InvalidMember, is_name, moment, why_no_moment};
pub use new_job::NewJob;
pub use page::{Filter, Page};
pub use patch::Patch;
pub use unique::ContentDigest;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::ids::{ClaimId, JobId};
use crate::timestamp::Timestamp;

/// A job as the API shows it.
#[derive(Debug, Serialize)]
pub struct Job {
    pub id: JobId,
    #[serde(rename = "type")]
    pub kind: String,
    pub queue: String,
    pub priority: i16,
    #[serde(serialize_with = "timestamp")]
    pub run_at: DateTime<Utc>,
    pub max_attempts: i32,
    pub state: State,
    pub attempt: i32,
    /// 1 at first; each change adds 1. [`etag`] turns it into an entity tag.
    pub version: i32,
    #[serde(serialize_with = "timestamp")]
    pub created_at: DateTime<Utc>,
    /// The claim that holds the job, or held it when it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_id: Option<ClaimId>,
    /// When that claim began.
    #[serde(serialize_with = "timestamp_if_any", skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
    /// Only of a running job.
    #[serde(serialize_with = "timestamp_if_any", skip_serializing_if = "Option::is_none")]
    pub cancel_requested_at: Option<DateTime<Utc>>,
    /// Only of a finished job.
    #[serde(serialize_with = "timestamp_if_any", skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<DateTime<Utc>>,
    /// What the worker reported. Only in the answer to GET, like `error` and `payload`: they may be large or secret, and
    /// the other answers are stored with idempotency keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
}

/// The state of a job. It determines the table that holds the job's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits in `job_queue`. A claim or a cancellation moves it out.
    Queued,
    /// A worker holds it: the row is in `job_leases`.
    Running,
    /// Finished, like the two states below: the row is in `job_outcomes`.
    Succeeded,
    /// The last attempt failed, or the worker said that no other attempt makes sense.
    Failed,
    /// Cancelled by the client, or by the worker on the client's request.
    Cancelled,
}

/// An attempt to run a job, as the API shows it.
#[derive(Debug, Serialize)]
pub struct Attempt {
    /// The number of the lease.
    pub token: i32,
    pub attempt: i32,
    pub claim_id: ClaimId,
    /// Unknown some time after the claim has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    #[serde(serialize_with = "timestamp")]
    pub started_at: DateTime<Utc>,
    #[serde(serialize_with = "timestamp_if_any", skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<DateTime<Utc>>,
    /// What the worker reported; `lost` if it reported nothing in time, `running` if the attempt has not ended.
    pub reported: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<RawValue>>,
    /// What the worker reported after its lease was lost. It changed nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_error: Option<Box<RawValue>>,
}

/// The result of looking up a job id that was once assigned.
#[derive(Debug)]
pub enum Lookup<T> {
    Job(T),
    /// The job was deleted. Its id is never used again.
    Deleted,
}

/// The constraint that a write violates if another active job has the content.
pub const CONTENT_TAKEN: &str = "job_uniques_pkey";
/// Defaults for members that are left out. These values are part of the contract and of fingerprints.
const PRIORITY_DEFAULT: i16 = 2;
/// About three weeks of retries with the usual exponential back-off.
const MAX_ATTEMPTS_DEFAULT: i32 = 25;
/// The same as the default of the column `job_queue.version`.
const VERSION_FIRST: i32 = 1;

impl State {
    /// Whether the job has ended. Only a retry changes it then.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

impl Job {
    /// The job that a submission creates, with defaults filled in.
    pub fn submitted(id: JobId, created_at: DateTime<Utc>, new: &NewJob) -> Self {
        Self {
            id,
            kind: new.kind.clone(),
            queue: new.queue_or_default().to_owned(),
            priority: new.priority_or_default(),
            run_at: new.run_at.unwrap_or(created_at),
            max_attempts: new.max_attempts_or_default(),
            state: State::Queued,
            attempt: 0,
            version: VERSION_FIRST,
            created_at,
            claim_id: None,
            started_at: None,
            cancel_requested_at: None,
            finished_at: None,
            result: None,
            error: None,
            payload: None,
        }
    }

    /// The job after a retry: it waits again, with a fresh budget of attempts.
    pub fn requeue(&mut self, run_at: DateTime<Utc>) {
        (self.state, self.run_at, self.attempt) = (State::Queued, run_at, 0);
        self.version = self.version.saturating_add(1);
        (self.claim_id, self.started_at, self.finished_at) = (None, None, None);
    }

    /// The JSON text of the answer. It ends with a newline, for terminals.
    pub fn to_json(&self) -> Bytes {
        /// Long enough for most answers. They are cached, and spare capacity would be cached with them.
        const LENGTH: usize = 336;
        let mut text = Vec::with_capacity(LENGTH);
        serde_json::to_writer(&mut text, self).expect("a job's members all have a JSON form");
        text.push(b'\n');
        text.into_boxed_slice().into()
    }
}

/// The strong entity tag (RFC 9110, section 8.8.3) of a version.
pub fn etag(version: i32) -> String {
    format!("\"{version}\"")
}

/// The current time in the precision of `timestamptz`, so that the answer equals what is later read from the database.
pub fn now() -> DateTime<Utc> {
    microseconds(Utc::now())
}

/// Truncates to whole microseconds and normalizes a leap second, as PostgreSQL does.
fn microseconds(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(at.timestamp_micros()).expect("it came from a valid time")
}

fn timestamp<S: serde::Serializer>(at: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    Timestamp(*at).serialize(serializer)
}

fn timestamp_if_any<S: serde::Serializer>(at: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => timestamp(at, serializer),
        None => serializer.serialize_none(),
    }
}
