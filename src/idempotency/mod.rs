//! Keys and what they name.
//!
//! Owns the key, the fingerprint, the outcome, what is told of it and what is remembered, the engine that every route
//! with a key goes through, their queries and the purger. It never makes a job and never decides what a request does: it
//! knows which outcome a key names, and whether a request is the one that the key stands for.

mod clock;
mod engine;
mod fingerprint;
mod key;
pub mod purger;
pub mod queries;
mod replays;
mod summary;

pub use engine::{Attempt, Engine, Keyed, KeyedError, KeyedResult, WriteOptions};
pub use fingerprint::Fingerprint;
pub use key::{InvalidKey, KEY_LENGTH_MAX, Key};
pub use replays::Replays;
pub use summary::Summary;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use crate::ids::{JobId, RequestId, TenantId};

/// A method and a path template, such as `POST /jobs`: the same key on two routes is two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route(pub &'static str);

/// A key with all that it is unique within.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScopedKey {
    pub tenant: TenantId,
    pub route: Route,
    pub key: Key,
}

/// A committed answer, stored under its key: every later request with the key is given these bytes.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub fingerprint: Fingerprint,
    pub answer: Answer,
    /// Which request the first one was, and when.
    pub request_id: RequestId,
    pub created_at: DateTime<Utc>,
    /// From when on the key is free again, by PostgreSQL's clock.
    pub expires_at: DateTime<Utc>,
}

/// The answer to a request with a key. The server stores it and sends it again to every replay.
#[derive(Clone, Debug)]
pub struct Answer {
    pub effect: Effect,
    /// The job that the request created, adopted or changed.
    pub job_id: JobId,
    /// The version of the job that the body shows.
    pub job_version: i32,
    pub body: Bytes,
}

/// What a request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It created the job.
    Created,
    /// It found an active job with the same content, and its key now stands for that job.
    Adopted,
    /// It changed the job.
    Changed,
}

impl Effect {
    pub const ALL: [Self; 3] = [Self::Created, Self::Adopted, Self::Changed];

    /// As in the column `effect`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Adopted => "adopted",
            Self::Changed => "changed",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|effect| effect.name() == name)
    }
}

impl ScopedKey {
    /// What logs show instead of the key: equal for equal scoped keys, and not to be linked across tenants.
    pub fn log_digest(&self) -> String {
        const SHOWN_BYTES: usize = 8;
        let mut hash = Sha256::new();
        hash.update(self.tenant.0.as_bytes());
        hash.update(self.route.0);
        hash.update([0]);
        hash.update(self.key.as_str());
        hex::encode(&hash.finalize()[..SHOWN_BYTES])
    }
}
