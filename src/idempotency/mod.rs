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

pub use engine::{Attempt, Engine, Keyed, KeyedError, KeyedResult, OnConflict, WriteOptions};
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

/// What a keyed request is answered with when it has done what it asked for, and ever after.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The job that the request made, found or changed.
    pub job_id: JobId,
    /// HTTP status of the first answer.
    pub status: i16,
    pub location: Option<String>,
    pub etag: Option<String>,
    pub body: Bytes,
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
