//! What may be shown of an idempotency key: everything except the key itself and the stored answer.

use serde::Serialize;

use super::{Outcome, Route};
use crate::ids::JobId;
use crate::timestamp::Timestamp;

/// What the API and `hapax key show` return for an idempotency key.
#[derive(Debug, Serialize)]
pub struct Summary {
    route: &'static str,
    status: u16,
    job_id: JobId,
    first_request: FirstRequest,
    expires_at: Timestamp,
    fingerprint_prefix: String,
}

#[derive(Debug, Serialize)]
struct FirstRequest {
    id: String,
    at: Timestamp,
}

impl Summary {
    /// `status`: the HTTP status of the first answer.
    pub fn of(route: Route, outcome: &Outcome, status: u16) -> Self {
        /// Enough to tell two requests apart, and too little to guess a payload by.
        const SHOWN_BYTES: usize = 8;
        Self {
            route: route.0,
            status,
            job_id: outcome.answer.job_id,
            first_request: FirstRequest {
                id: outcome.request_id.as_str().to_owned(),
                at: Timestamp(outcome.created_at),
            },
            expires_at: Timestamp(outcome.expires_at),
            fingerprint_prefix: hex::encode(&outcome.fingerprint.as_bytes()[..SHOWN_BYTES]),
        }
    }
}
