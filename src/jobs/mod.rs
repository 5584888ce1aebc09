//! Jobs: what a client submits, and what the API shows.
//!
//! Owns [`NewJob`] (as submitted), [`Job`] (as shown), [`Page`] (a page of a list), [`Depths`] (queue depths),
//! [`Patch`] (changes), their rules and their queries. Deduplication is elsewhere: in `idempotency`, `intake` and
//! `changes`.

mod depth;
mod depth_queries;
mod list_queries;
mod members;
mod new_job;
mod page;
mod patch;
pub mod queries;
mod unique;

pub use depth::{Depth, Depths};
pub use members::{InvalidJob, is_name, moment, why_no_moment};
pub use new_job::NewJob;
pub use page::{Filter, Page};
pub use patch::Patch;
pub use unique::ContentDigest;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::ids::JobId;
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
    /// Only of a finished job.
    #[serde(serialize_with = "timestamp_if_any", skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<DateTime<Utc>>,
    /// Only in the answer to GET. It may be large or secret, and the other answers are stored with idempotency keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
}

/// The state of a job. It determines the table that holds the job's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits in `job_queue`. A claim or a cancellation moves it out.
    Queued,
    /// A worker runs it. No operation of this release leads here.
    Running,
    /// Finished, like the two states below: the row is in `job_outcomes`. No operation of this release leads here.
    Succeeded,
    /// No operation of this release leads here.
    Failed,
    /// Cancelled by the client.
    Cancelled,
}

/// The result of looking up a job id that was once assigned.
#[derive(Debug)]
pub enum Lookup<T> {
    Job(T),
    /// The job was deleted. Its id is never used again.
    Deleted,
}

/// Defaults for members that are left out. These values are part of the contract and of fingerprints.
const PRIORITY_DEFAULT: i16 = 2;
/// About three weeks of retries with the usual exponential back-off.
const MAX_ATTEMPTS_DEFAULT: i32 = 25;
/// The same as the default of the column `job_queue.version`.
const VERSION_FIRST: i32 = 1;

impl State {
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
            finished_at: None,
            payload: None,
        }
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
