//! Jobs: what is asked for, and how it is shown.
//!
//! Owns [`NewJob`] (as submitted), [`Job`] (as shown), [`Page`] (many of them), [`Depths`] (how
//! many wait), [`Patch`] (what may be changed), their rules and their queries. It never decides whether a request is a
//! repetition; that is `idempotency`, `intake` and `changes`.

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
pub use members::{InvalidJob, is_name, moment};
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
    /// 1 at first, and one more with each change. [`etag`] makes of it what HTTP compares.
    pub version: i32,
    #[serde(serialize_with = "timestamp")]
    pub created_at: DateTime<Utc>,
    /// Once it is over.
    #[serde(serialize_with = "timestamp_if_any", skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<DateTime<Utc>>,
    /// Left out of every answer but that of GET: it may be large or secret, and answers are stored with keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
}

/// Where a job is in its life, which is the table that its row is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits in `job_queue`. A claim moves it out, and so does its cancellation.
    Queued,
    /// A worker has it. No operation of this release leads here.
    Running,
    /// Over, like the two below: it stays in `job_outcomes`. No operation of this release leads here.
    Succeeded,
    /// No operation of this release leads here.
    Failed,
    /// The client did not want it any more.
    Cancelled,
}

/// What stands under an id that has been given out.
#[derive(Debug)]
pub enum Lookup<T> {
    Job(T),
    /// The job was deleted; its id is not used again.
    Deleted,
}

/// What a member that is left out means. These values are part of the contract, and of what fingerprints are made of.
const PRIORITY_DEFAULT: i16 = 2;
/// With the usual exponential back-off, about three weeks of trying.
const MAX_ATTEMPTS_DEFAULT: i32 = 25;
/// As `job_queue.version` has it by default.
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
    /// The job that a submission makes, with everything filled in that it left out.
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

    /// The JSON text of the answer, with a newline at its end for whoever reads it at a terminal.
    pub fn to_json(&self) -> Bytes {
        /// Of most answers, which are kept: what a buffer has to spare is kept with them.
        const LENGTH: usize = 336;
        let mut text = Vec::with_capacity(LENGTH);
        serde_json::to_writer(&mut text, self).expect("a job's members all have a JSON form");
        text.push(b'\n');
        text.into_boxed_slice().into()
    }
}

/// What the API calls a version: an entity tag (RFC 9110, section 8.8.3), strong, since every change makes another.
pub fn etag(version: i32) -> String {
    format!("\"{version}\"")
}

/// The present moment as a `timestamptz` can hold it, so that what is answered is what is read back.
pub fn now() -> DateTime<Utc> {
    microseconds(Utc::now())
}

/// Cuts to whole microseconds and unfolds a leap second, as PostgreSQL does.
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
