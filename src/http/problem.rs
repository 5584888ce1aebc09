//! Every error that a client can see: its code and status, and when to retry.
//!
//! `problem_table` has what is the same for every problem of a code, `problem_details` the text about one request,
//! `problem_document` the answer. `problem_sources` makes problems of the domain's errors.

use std::fmt;

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::HeaderName;
use actix_web::{HttpResponse, ResponseError};
use thiserror::Error;

use super::first_sent::InvalidFirstSent;
use super::parameters::InvalidParameter;
use super::problem_table::{
    BAD_REQUEST, BODY_TOO_LARGE, BROKEN_BODY, CLAIM_ENDED, CLAIM_EXISTS_WITH_OTHER_CONTENT, CLAIM_NOT_FOUND,
    CONTENT_TAKEN, DATABASE_UNAVAILABLE, FIRST_SENT_TOO_OLD, IDEMPOTENCY_KEY_REQUIRED, IDEMPOTENCY_KEY_REUSED,
    INTERNAL_ERROR, INVALID_BATCH, INVALID_CLAIM, INVALID_CLAIM_ID, INVALID_FIRST_SENT, INVALID_IDEMPOTENCY_KEY,
    INVALID_IF_MATCH, INVALID_ITEM, INVALID_JOB, INVALID_JOB_ID, INVALID_JSON, INVALID_PARAMETER, INVALID_RESULTS,
    JOB_DELETED, JOB_EXISTS_WITH_OTHER_CONTENT, JOB_NOT_FINISHED, JOB_NOT_FOUND, JOB_NOT_WAITING, KEY_NOT_FOUND, Kind,
    METHOD_NOT_ALLOWED, MISSING_SCOPE, NOT_READY, OUTCOME_UNKNOWN, OVERLOADED, PRECONDITION_FAILED,
    PRECONDITION_REQUIRED, QUOTA_EXCEEDED, REQUEST_IN_FLIGHT, REQUEST_TIMEOUT, RESULT_TOO_LARGE, ROUTE_NOT_FOUND,
    STATEMENT_TIMEOUT, UNAUTHENTICATED, UNKNOWN_PARAMETER, UNSUPPORTED_CONDITION, UNSUPPORTED_CONTENT_ENCODING,
    UNSUPPORTED_MEDIA_TYPE,
};
use super::quotas::whole_seconds;
use crate::access::{QuotaStatus, Scope};
use crate::database::with_causes;
use crate::idempotency::InvalidKey;
use crate::ids::JobId;
use crate::jobs::{InvalidMember, State};
use crate::json::InvalidJson;
use crate::metrics::Metrics;
use crate::overload::Shed;

#[derive(Debug)]
pub enum Problem {
    InvalidKey(InvalidKey),
    InvalidFirstSent(InvalidFirstSent),
    InvalidJson(InvalidJson),
    InvalidJob(InvalidMember),
    InvalidClaim(InvalidMember),
    InvalidResults(InvalidMember),
    /// The result or the error of a job is too large.
    ResultTooLarge {
        pointer: String,
        limit_bytes: usize,
    },
    UnknownParameter(String),
    InvalidParameter(InvalidParameter),
    Unauthenticated(Unauthenticated),
    MissingScope(Scope),
    RouteNotFound,
    JobNotFound,
    KeyNotFound,
    InvalidJobId,
    InvalidClaimId,
    ClaimNotFound,
    /// The id stands for another request.
    ClaimExists,
    /// The claim holds no job, or was released.
    ClaimEnded,
    InvalidIfMatch,
    UnsupportedCondition,
    InvalidBatch,
    InvalidItem,
    MethodNotAllowed {
        allow: String,
    },
    BodyTooSlow,
    BodyBroken,
    BodyTooLarge {
        limit_bytes: usize,
    },
    UnsupportedMediaType {
        taken: &'static str,
        told_in: HeaderName,
    },
    UnsupportedContentEncoding,
    /// A job with this id and other content exists.
    JobExists {
        job_id: JobId,
        pointers: Vec<String>,
    },
    JobNotWaiting {
        job_id: JobId,
        state: State,
    },
    JobNotFinished {
        job_id: JobId,
        state: State,
    },
    /// Another active job has the content of a unique job.
    ContentTaken {
        job_id: JobId,
    },
    JobDeleted,
    /// The job has another version than `If-Match` names.
    PreconditionFailed {
        job_id: JobId,
        version: i32,
        /// `If-Match` has only weak tags, so it matches no version.
        only_weak_tags: bool,
    },
    PreconditionRequired,
    /// The key of the request may have expired, and no earlier copy has an outcome.
    FirstSentTooOld,
    KeyReused {
        job_id: JobId,
        /// The path of the first request, if it is another path.
        first_path: Option<String>,
        pointers: Vec<String>,
    },
    RequestInFlight,
    QuotaExceeded(QuotaStatus),
    /// Refused because of overload or an open circuit breaker.
    Shed(Shed),
    Unavailable(String),
    /// The database took longer for a statement than `database.statement_timeout`.
    StatementTimeout,
    /// The database is reachable, but its schema does not fit.
    Unfit(String),
    /// The token could not be looked up in the database. The verifier logs the reason, because a client without a valid
    /// token must not be able to fill the log with errors.
    TokenUnverified {
        /// The reason is an unfit schema.
        unfit: bool,
    },
    OutcomeUnknown,
    NotReady(String),
    /// The request came on a connection behind a request with `Connection: close`.
    BehindClose,
    /// Not ready because of a shutdown.
    ShuttingDown,
    Internal(anyhow::Error),
    /// The framework refused the request before any code of Hapax read it.
    Framework(StatusCode),
}

/// Why the request is not authenticated (RFC 6750, section 3).
#[derive(Clone, Copy, Debug, Error)]
pub enum Unauthenticated {
    #[error("the access token is missing. Send `Authorization: Bearer` with an access token")]
    Missing,
    #[error("`Authorization` header is sent more than once. Send it once")]
    Repeated,
    #[error("the access token is malformed. A token of this service is hpx_ and 64 hexadecimal digits")]
    Malformed,
    #[error("the access token is unknown, expired or revoked. Send another one")]
    Unknown,
}

impl Problem {
    pub fn kind(&self) -> &'static Kind {
        match self {
            Self::InvalidKey(InvalidKey::Missing | InvalidKey::MissingInItem) => &IDEMPOTENCY_KEY_REQUIRED,
            Self::InvalidKey(_) => &INVALID_IDEMPOTENCY_KEY,
            Self::InvalidFirstSent(_) => &INVALID_FIRST_SENT,
            Self::InvalidJson(_) => &INVALID_JSON,
            Self::InvalidJob(_) => &INVALID_JOB,
            Self::InvalidClaim(_) => &INVALID_CLAIM,
            Self::InvalidResults(_) => &INVALID_RESULTS,
            Self::ResultTooLarge { .. } => &RESULT_TOO_LARGE,
            Self::InvalidClaimId => &INVALID_CLAIM_ID,
            Self::ClaimNotFound => &CLAIM_NOT_FOUND,
            Self::ClaimExists => &CLAIM_EXISTS_WITH_OTHER_CONTENT,
            Self::ClaimEnded => &CLAIM_ENDED,
            Self::JobNotFinished { .. } => &JOB_NOT_FINISHED,
            Self::ContentTaken { .. } => &CONTENT_TAKEN,
            Self::UnknownParameter(_) => &UNKNOWN_PARAMETER,
            Self::InvalidParameter(_) => &INVALID_PARAMETER,
            Self::BodyBroken => &BROKEN_BODY,
            Self::Unauthenticated(_) => &UNAUTHENTICATED,
            Self::MissingScope(_) => &MISSING_SCOPE,
            Self::InvalidBatch => &INVALID_BATCH,
            Self::InvalidItem => &INVALID_ITEM,
            Self::InvalidJobId => &INVALID_JOB_ID,
            Self::InvalidIfMatch => &INVALID_IF_MATCH,
            Self::UnsupportedCondition => &UNSUPPORTED_CONDITION,
            Self::RouteNotFound => &ROUTE_NOT_FOUND,
            Self::JobNotFound => &JOB_NOT_FOUND,
            Self::KeyNotFound => &KEY_NOT_FOUND,
            Self::MethodNotAllowed { .. } => &METHOD_NOT_ALLOWED,
            Self::BodyTooSlow => &REQUEST_TIMEOUT,
            Self::RequestInFlight => &REQUEST_IN_FLIGHT,
            Self::JobExists { .. } => &JOB_EXISTS_WITH_OTHER_CONTENT,
            Self::JobNotWaiting { .. } => &JOB_NOT_WAITING,
            Self::JobDeleted => &JOB_DELETED,
            Self::PreconditionFailed { .. } => &PRECONDITION_FAILED,
            Self::FirstSentTooOld => &FIRST_SENT_TOO_OLD,
            Self::BodyTooLarge { .. } => &BODY_TOO_LARGE,
            Self::UnsupportedMediaType { .. } => &UNSUPPORTED_MEDIA_TYPE,
            Self::UnsupportedContentEncoding => &UNSUPPORTED_CONTENT_ENCODING,
            Self::KeyReused { .. } => &IDEMPOTENCY_KEY_REUSED,
            Self::PreconditionRequired => &PRECONDITION_REQUIRED,
            Self::QuotaExceeded(_) => &QUOTA_EXCEEDED,
            Self::Internal(_) => &INTERNAL_ERROR,
            Self::Unavailable(_) | Self::Unfit(_) | Self::TokenUnverified { .. } | Self::Shed(Shed::Outage) => {
                &DATABASE_UNAVAILABLE
            }
            Self::Shed(_) => &OVERLOADED,
            Self::StatementTimeout => &STATEMENT_TIMEOUT,
            Self::OutcomeUnknown => &OUTCOME_UNKNOWN,
            Self::NotReady(_) | Self::ShuttingDown => &NOT_READY,
            Self::BehindClose | Self::Framework(_) => &BAD_REQUEST,
        }
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::Framework(status) => *status,
            _ => self.kind().status,
        }
    }

    pub fn code(&self) -> &'static str {
        self.kind().code
    }

    /// Whether the same request may succeed later.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Framework(status) => status.is_server_error(),
            _ => self.kind().retryable,
        }
    }

    /// Whether no other request can follow on the connection.
    pub fn closes_connection(&self) -> bool {
        // The rest of the body is still on its way and would be read as the next request.
        matches!(self, Self::BodyTooSlow | Self::BodyBroken | Self::BodyTooLarge { .. } | Self::BehindClose)
    }

    /// The value of `Retry-After` in seconds. Every retryable problem has one, and no other problem.
    pub fn retry_after(&self) -> Option<u64> {
        self.is_retryable().then(|| match self {
            Self::RequestInFlight => 1,
            Self::QuotaExceeded(quota_status) => whole_seconds(quota_status.retry_after.unwrap_or(quota_status.reset)),
            Self::StatementTimeout => rand::random_range(RETRY_AFTER_TIMEOUT_SECONDS),
            _ => rand::random_range(RETRY_AFTER_SECONDS),
        })
    }

    /// Logs and counts the problem. Called once, where it is handled.
    pub fn report(&self, metrics: &Metrics) {
        self.log();
        self.count(metrics);
    }

    pub fn count(&self, metrics: &Metrics) {
        match self {
            Self::Shed(reason) => metrics.count_shed_request(*reason),
            Self::QuotaExceeded(quota_status) => metrics.count_quota_refusal(quota_status.policy.name),
            _ => {}
        }
    }

    /// Logs a failure of the server or the database, with all causes. Does not log an error of the client, because the
    /// line of the request has the code. Does not log what a task that works for many requests has logged.
    pub fn log(&self) {
        match self {
            Self::Internal(error) => tracing::error!(error = with_causes(error.as_ref()), "the request failed"),
            Self::Unavailable(reason) => tracing::error!(%reason, "the database is not available"),
            Self::StatementTimeout => tracing::warn!("a statement took too long and was cancelled"),
            Self::Unfit(reason) => tracing::error!(%reason, "the database's schema does not fit; run `hapax migrate`"),
            Self::OutcomeUnknown => tracing::error!("the database did not answer in time; the outcome is unknown"),
            _ => {}
        }
    }
}

/// Random for each answer, so that clients that were refused at the same time do not retry at the same time.
const RETRY_AFTER_SECONDS: std::ops::RangeInclusive<u64> = 1..=3;
/// Longer, because the same statement would load a slow database again.
const RETRY_AFTER_TIMEOUT_SECONDS: std::ops::RangeInclusive<u64> = 5..=10;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status()
    }

    /// Has no body. `observe`, which knows the request id, writes the document.
    fn error_response(&self) -> HttpResponse<BoxBody> {
        HttpResponse::new(self.status())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use actix_web::http::header::{ACCEPT, RETRY_AFTER};
    use serde_json::Value;
    use uuid::Uuid;

    use super::*;
    use crate::access::Policy;
    use crate::http::problem_table::KINDS;
    use crate::ids::RequestId;

    /// Every status and code of the table, as `404 job-not-found`.
    fn entries() -> BTreeSet<String> {
        KINDS.iter().map(|kind| format!("{} {}", kind.status.as_u16(), kind.code)).collect()
    }

    /// At least one problem for each code.
    fn every_problem() -> Vec<Problem> {
        let job_id = JobId(Uuid::nil());
        let policy = Policy { name: "requests", quota: 60, window: Duration::from_secs(60) };
        let reset = Duration::from_secs(7);
        let mut problems = vec![
            Problem::InvalidKey(InvalidKey::Missing),
            Problem::InvalidKey(InvalidKey::Character),
            Problem::InvalidJson(InvalidJson { reason: "it is none", offset: 0 }),
            Problem::InvalidJob(InvalidMember { pointer: "/type".to_owned(), detail: "it is missing".to_owned() }),
            Problem::UnknownParameter("x".to_owned()),
            Problem::InvalidParameter(InvalidParameter { name: "limit", why: "it is none".to_owned() }),
            Problem::Unauthenticated(Unauthenticated::Missing),
            Problem::MissingScope(Scope::Read),
            Problem::RouteNotFound,
            Problem::JobNotFound,
            Problem::KeyNotFound,
            Problem::InvalidJobId,
            Problem::InvalidClaim(InvalidMember { pointer: "/queues".to_owned(), detail: "it is missing".to_owned() }),
            Problem::InvalidResults(InvalidMember {
                pointer: "/results".to_owned(),
                detail: "it is missing".to_owned(),
            }),
            Problem::ResultTooLarge { pointer: "/results/0/result".to_owned(), limit_bytes: 1 },
            Problem::InvalidClaimId,
            Problem::ClaimNotFound,
            Problem::ClaimExists,
            Problem::ClaimEnded,
            Problem::JobNotFinished { job_id, state: State::Running },
            Problem::ContentTaken { job_id },
            Problem::InvalidIfMatch,
            Problem::UnsupportedCondition,
            Problem::InvalidBatch,
            Problem::InvalidItem,
            Problem::MethodNotAllowed { allow: "GET".to_owned() },
            Problem::BodyTooSlow,
            Problem::BodyBroken,
            Problem::BodyTooLarge { limit_bytes: 1 },
            Problem::UnsupportedMediaType { taken: "application/json", told_in: ACCEPT },
            Problem::UnsupportedContentEncoding,
            Problem::JobExists { job_id, pointers: Vec::new() },
            Problem::JobNotWaiting { job_id, state: State::Running },
            Problem::JobDeleted,
            Problem::PreconditionFailed { job_id, version: 1, only_weak_tags: false },
            Problem::PreconditionFailed { job_id, version: 1, only_weak_tags: true },
            Problem::PreconditionRequired,
            Problem::InvalidFirstSent(InvalidFirstSent::Malformed),
            Problem::FirstSentTooOld,
            Problem::KeyReused { job_id, first_path: None, pointers: Vec::new() },
            Problem::RequestInFlight,
            Problem::QuotaExceeded(QuotaStatus { policy, remaining: 0, reset, retry_after: None }),
            Problem::Unavailable("it is away".to_owned()),
            Problem::Unfit("it is old".to_owned()),
            Problem::TokenUnverified { unfit: false },
            Problem::StatementTimeout,
            Problem::OutcomeUnknown,
            Problem::NotReady("it is away".to_owned()),
            Problem::BehindClose,
            Problem::ShuttingDown,
            Problem::Internal(anyhow::anyhow!("it broke")),
        ];
        problems.extend(Shed::ALL.map(Problem::Shed));
        problems.extend(
            [400, 408, 431, 500, 503]
                .map(|status| Problem::Framework(StatusCode::from_u16(status).expect("it is a status"))),
        );
        problems
    }

    #[test]
    fn a_problem_is_retryable_exactly_if_it_says_when_to_retry() {
        let mut seen = BTreeSet::new();
        for problem in every_problem() {
            let response = problem.response(&RequestId::mint(), "");
            let seconds = response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap().parse().unwrap());
            let retryable =
                serde_json::to_value(problem.document(&RequestId::mint(), "")).unwrap()["retryable"] == true;
            assert_eq!((seconds.is_some(), problem.retry_after().is_some()), (retryable, retryable), "{problem:?}");
            assert_ne!(seconds, Some(0_u64), "{problem:?}");
            seen.insert(format!("{} {}", problem.status().as_u16(), problem.code()));
        }
        let missing: BTreeSet<_> = entries().difference(&seen).cloned().collect();
        assert!(missing.is_empty(), "add them to every_problem: {missing:?}");
    }

    #[test]
    fn the_contract_has_every_problem_under_its_status_and_no_other() {
        let contract: Value = yaml_serde::from_str(include_str!("../../api-design/jobs-api.yaml")).unwrap();
        let mut documented = BTreeSet::new();
        for response in contract["components"]["responses"].as_object().unwrap().values() {
            let members = &response["content"]["application/problem+json"]["schema"]["properties"];
            let one = std::slice::from_ref(&members["code"]["const"]);
            for code in members["code"]["enum"].as_array().map_or(one, Vec::as_slice) {
                documented.extend(code.as_str().map(|code| format!("{} {code}", members["status"]["const"])));
            }
        }
        // These codes occur only in items of a batch.
        let batch = &contract["components"]["responses"]["Batch"]["content"]["application/x-ndjson"]["examples"];
        for example in batch.as_object().unwrap().values() {
            let problem = &example["value"]["problem"];
            documented.extend(problem["code"].as_str().map(|code| format!("{} {code}", problem["status"])));
        }
        // No operation of the contract returns this code.
        documented.insert("400 bad-request".to_owned());
        assert_eq!(entries(), documented);
    }
}
