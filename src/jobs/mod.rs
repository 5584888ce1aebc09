//! Jobs: what is asked for, and how it is shown.
//!
//! Owns [`NewJob`] (as submitted), [`Job`] (as shown), their rules and their queries. It never decides whether a
//! request is a repetition; that is `idempotency` and `intake`.

mod new_job;
pub mod queries;

pub use new_job::{InvalidJob, NewJob};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::ids::JobId;

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
    #[serde(serialize_with = "timestamp")]
    pub created_at: DateTime<Utc>,
    /// Left out of the answer to a submission: it may be large or secret, and that answer is stored with the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
}

/// Where a job is in its life, which is the table that its row is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits in `job_queue`. A claim moves it out.
    Queued,
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
            created_at,
            payload: None,
        }
    }

    /// The JSON text of the answer.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a job's members all have a JSON form")
    }
}

/// The present moment as a `timestamptz` can hold it, so that what is answered is what is read back.
pub fn now() -> DateTime<Utc> {
    microseconds(Utc::now())
}

/// Cuts to whole microseconds and unfolds a leap second, as PostgreSQL does.
fn microseconds(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(at.timestamp_micros()).expect("it came from a valid time")
}

/// A time as every answer and log line writes it: RFC 3339, UTC, microseconds.
pub fn rfc3339(at: DateTime<Utc>) -> impl std::fmt::Display {
    at.format("%Y-%m-%dT%H:%M:%S%.6fZ")
}

fn timestamp<S: serde::Serializer>(at: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&rfc3339(*at))
}
