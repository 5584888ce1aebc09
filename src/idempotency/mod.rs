//! Idempotency keys and their outcomes.
//!
//! Owns the key, the fingerprint, the outcome and its summary, the replay cache, the engine of the routes with a key,
//! the queries and the purger. It finds the outcome of a key and decides whether a request is a replay. It never
//! creates a job and never decides what a request does.

mod clock;
mod engine;
mod fingerprint;
mod key;
pub mod purger;
pub mod queries;
mod replays;
mod summary;

pub use engine::{Attempt, Engine, Keyed, KeyedError, KeyedResult};
pub use fingerprint::Fingerprint;
pub use key::{InvalidKey, KEY_LENGTH_MAX, Key};
pub use replays::Replays;
pub use summary::Summary;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use crate::ids::{JobId, RequestId, TenantId};

/// A method and a path template, such as `POST /jobs`. The same key on two routes is two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route(pub &'static str);

/// An idempotency key with its scope. It is unique within tenant and route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScopedKey {
    pub tenant: TenantId,
    pub route: Route,
    pub key: Key,
}

/// A committed answer, stored with its key. Every replay gets its bytes.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub fingerprint: Fingerprint,
    pub answer: Answer,
    /// The id of the first request, and when it was accepted.
    pub request_id: RequestId,
    pub created_at: DateTime<Utc>,
    /// When the key expires, by PostgreSQL's clock.
    pub expires_at: DateTime<Utc>,
}

/// The answer to a request with a key. The server stores it and sends it to every replay.
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
    /// A digest for logs, which never show the key. The same key of two tenants or routes has different digests.
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
