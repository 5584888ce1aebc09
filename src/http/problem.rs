//! Every error that a client can see, as a problem document (RFC 9457). `problem_table` has the fixed parts.

use std::fmt;

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use thiserror::Error;

use super::first_sent::InvalidFirstSent;
use super::parameters::InvalidParameter;
use super::problem_table::{
    BAD_REQUEST, BODY_TOO_LARGE, BROKEN_BODY, DATABASE_UNAVAILABLE, FIRST_SENT_TOO_OLD, IDEMPOTENCY_KEY_REQUIRED,
    IDEMPOTENCY_KEY_REUSED, INTERNAL_ERROR, INVALID_BATCH, INVALID_FIRST_SENT, INVALID_IDEMPOTENCY_KEY,
    INVALID_IF_MATCH, INVALID_ITEM, INVALID_JOB, INVALID_JOB_ID, INVALID_JSON, INVALID_PARAMETER, JOB_DELETED,
    JOB_EXISTS_WITH_OTHER_CONTENT, JOB_NOT_FOUND, JOB_NOT_WAITING, KEY_NOT_FOUND, Kind, METHOD_NOT_ALLOWED,
    MISSING_SCOPE, NOT_READY, OUTCOME_UNKNOWN, OVERLOADED, PRECONDITION_FAILED, PRECONDITION_REQUIRED, QUOTA_EXCEEDED,
    REQUEST_IN_FLIGHT, REQUEST_TIMEOUT, ROUTE_NOT_FOUND, STATEMENT_TIMEOUT, UNAUTHENTICATED, UNKNOWN_PARAMETER,
    UNSUPPORTED_CONDITION, UNSUPPORTED_CONTENT_ENCODING, UNSUPPORTED_MEDIA_TYPE,
};
use super::quotas::whole_seconds;
use super::routes::PROBLEMS;
use crate::access::{Policy, QuotaStatus, Rejection, Scope};
use crate::changes::Refusal;
use crate::database::{DatabaseError, with_causes};
use crate::idempotency::{InvalidKey, KeyedError};
use crate::ids::{JobId, RequestId};
use crate::jobs::{InvalidJob, State, etag};
use crate::json::InvalidJson;
use crate::metrics::Metrics;
use crate::overload::Shed;

#[derive(Debug)]
pub enum Problem {
    InvalidKey(InvalidKey),
    InvalidFirstSent(InvalidFirstSent),
    InvalidJson(InvalidJson),
    InvalidJob(InvalidJob),
    UnknownParameter(String),
    InvalidParameter(InvalidParameter),
    Unauthenticated(Unauthenticated),
    MissingScope(Scope),
    RouteNotFound,
    JobNotFound,
    KeyNotFound,
    InvalidJobId,
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

    /// What went wrong in this request, for a person. Never contains a token, a key, a payload or an error text of the
    /// database.
    fn detail(&self) -> String {
        match self {
            Self::InvalidKey(error) => sentence(error),
            Self::InvalidFirstSent(error) => sentence(error),
            Self::InvalidJson(error) => sentence(error),
            Self::InvalidJob(error) if error.pointer.is_empty() => sentence(error),
            Self::InvalidJob(error) => format!("{}: {error}.", error.pointer),
            Self::UnknownParameter(name) => {
                format!("This operation has no query parameter {name:?}. Remove it, or correct its name.")
            }
            Self::InvalidParameter(error) => format!("{}: {}.", error.name, error.why),
            Self::Unauthenticated(why) => sentence(why),
            Self::MissingScope(scope) => {
                format!("The access token does not have the scope {:?}. Use a token that has it.", scope.name())
            }
            Self::RouteNotFound => {
                "No operation has this path. Paths must match exactly. /openapi.yaml lists them.".to_owned()
            }
            Self::JobNotFound => "You have no job with this id. Check the id and the access token.".to_owned(),
            Self::KeyNotFound => {
                "You have no committed request with this key on this route, or the key has expired. Check the key and \
                 the query parameter `route`."
                    .to_owned()
            }
            Self::MethodNotAllowed { allow } => {
                format!("Use a method that this path supports: {}.", allow.replace(", ", " or "))
            }
            Self::BodyTooSlow => {
                "The whole body did not arrive in time, and nothing was written. Send the request again.".to_owned()
            }
            Self::BodyBroken => {
                "The connection or the transfer coding broke within the body, and nothing was written. Send the request \
                 again."
                    .to_owned()
            }
            Self::BodyTooLarge { limit_bytes } => {
                format!("The limit is {limit_bytes} bytes. Send less, for example a reference to data that is elsewhere.")
            }
            Self::UnsupportedMediaType { taken, .. } => {
                let taken = taken.replace(", ", "` or `");
                format!("Send `Content-Type: {taken}` and a body in UTF-8. A charset parameter may be UTF-8 or US-ASCII.")
            }
            Self::UnsupportedContentEncoding => {
                "The body is compressed or encoded in another way. Send it as it is, without `Content-Encoding`.".to_owned()
            }
            Self::KeyReused { first_path: Some(path), .. } => format!(
                "This idempotency key belongs to an earlier request on another path, {path}. Send a new key with a new \
                 request."
            ),
            Self::KeyReused { .. } => {
                "This idempotency key belongs to an earlier request with other content. Send a new key with a new \
                 request. To retry the earlier request, send its content unchanged."
                    .to_owned()
            }
            Self::RequestInFlight => {
                "An earlier attempt of this request, or other work on the same rows, is still in progress. Send the same \
                 request again after `Retry-After` to get its result."
                    .to_owned()
            }
            Self::InvalidBatch => {
                "The batch is empty or has more than 1000 items. Send 1 to 1000 items, one per line.".to_owned()
            }
            Self::InvalidItem => {
                "The line is not an object with exactly these members, each once: `idempotency_key`, a string, and `job`. \
                 Correct the line."
                    .to_owned()
            }
            Self::InvalidJobId => {
                "The id in the path cannot be a job id. Send a UUID with hyphens, other than the nil UUID and the max \
                 UUID."
                    .to_owned()
            }
            Self::InvalidIfMatch => {
                "Send the job's `ETag` with its quotation marks, such as \"1\", several of them with commas between, or *."
                    .to_owned()
            }
            Self::UnsupportedCondition => {
                "This operation does not support `If-Match`, `If-None-Match` and `If-Unmodified-Since`. Remove them: the \
                 operation is safe to repeat without them."
                    .to_owned()
            }
            Self::JobExists { .. } => {
                "A job with other content has this id. Send a new id with a new job. To retry the earlier request, send \
                 its content unchanged."
                    .to_owned()
            }
            Self::JobNotWaiting { state, .. } => {
                format!("The job is {}. Only a queued job can be changed.", state.name())
            }
            Self::JobDeleted => {
                "The job with this id was deleted, and its id cannot be used again. Send a new id with a new job."
                    .to_owned()
            }
            Self::PreconditionFailed { only_weak_tags: true, .. } => {
                "`If-Match` has only weak tags (W/), which never match, and nothing was changed. A proxy that compresses \
                 responses makes tags weak. Send the job's `version` in quotation marks instead, such as \"1\"."
                    .to_owned()
            }
            Self::PreconditionFailed { .. } => {
                "The job has another version than `If-Match` names, and nothing was changed. `ETag` has the current \
                 version. Read the job and decide again."
                    .to_owned()
            }
            Self::PreconditionRequired => {
                "`If-Match` header is missing. Send the `ETag` of the job that you have read, or its `version` in \
                 quotation marks. Send * to change any version."
                    .to_owned()
            }
            Self::FirstSentTooOld => {
                "The request was not carried out. Its idempotency key may have expired, so it is unknown whether an \
                 earlier attempt succeeded. Look for the job before you send a new request with a new key."
                    .to_owned()
            }
            Self::QuotaExceeded(quota_status) => {
                let Policy { name, quota, window } = quota_status.policy;
                format!(
                    "The quota \"{name}\" of {quota} in {} s is used up, and nothing was written. Send the same request \
                     again after `Retry-After`.",
                    whole_seconds(window)
                )
            }
            Self::Unavailable(_) | Self::TokenUnverified { unfit: false } | Self::Shed(Shed::Outage) => {
                "The database is not reachable or did not accept the statement, and nothing was written. Send the same \
                 request again after `Retry-After`."
                    .to_owned()
            }
            Self::Shed(_) => {
                "The service has too many requests at the moment, and nothing was written. Send the same request again \
                 after `Retry-After`."
                    .to_owned()
            }
            Self::StatementTimeout => {
                "The database did not finish within the time limit of a statement, and nothing was written. Send the same \
                 request again after `Retry-After`."
                    .to_owned()
            }
            Self::Unfit(_) | Self::TokenUnverified { unfit: true } => {
                "The database does not have the schema that this release needs, and nothing was written. An operator must \
                 run `hapax migrate`; then send the same request again."
                    .to_owned()
            }
            Self::OutcomeUnknown => {
                "The database did not confirm in time whether the request was carried out. Send the same request again, \
                 with the same idempotency key if it had one."
                    .to_owned()
            }
            Self::NotReady(reason) => sentence(reason),
            Self::ShuttingDown => "The replica is shutting down. Send requests to another replica.".to_owned(),
            Self::Internal(_) => {
                "The server's log has the cause under the request id in `instance`. Send the same request again. If that \
                 fails too, report the request id to the operator."
                    .to_owned()
            }
            Self::BehindClose => {
                "The request came on a connection behind a request with `Connection: close`. Send it on a new connection."
                    .to_owned()
            }
            Self::Framework(_) => "The request is malformed. Compare it with /openapi.yaml.".to_owned(),
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
    fn is_retryable(&self) -> bool {
        match self {
            Self::Framework(status) => status.is_server_error(),
            _ => self.kind().retryable,
        }
    }

    /// The document and its headers.
    pub fn response(&self, request_id: &RequestId, public_url: &str) -> HttpResponse {
        let document = self.document(request_id, public_url);
        let mut response = HttpResponse::build(self.status());
        if let Some(seconds) = self.retry_after() {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        match self {
            Self::Unauthenticated(Unauthenticated::Missing) => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"hapax\""))
            }
            Self::Unauthenticated(_) => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"hapax\", error=\"invalid_token\""))
            }
            Self::MissingScope(scope) => {
                let challenge =
                    format!("Bearer realm=\"hapax\", error=\"insufficient_scope\", scope=\"{}\"", scope.name());
                response.insert_header((header::WWW_AUTHENTICATE, challenge))
            }
            Self::MethodNotAllowed { allow } => response.insert_header((header::ALLOW, allow.as_str())),
            Self::UnsupportedMediaType { taken, told_in } => response.insert_header((told_in.clone(), *taken)),
            Self::PreconditionFailed { version, .. } => response.insert_header((header::ETAG, etag(*version))),
            Self::UnsupportedContentEncoding => response.insert_header((header::ACCEPT_ENCODING, "identity")),
            _ => &mut response,
        };
        let mut text = serde_json::to_vec(&document).expect("a problem's members all have a JSON form");
        text.push(b'\n');
        response.insert_header((header::CONTENT_TYPE, "application/problem+json")).body(text)
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

    /// The document without headers. `public_url` is the prefix of its `type`, as of every URL in an answer.
    pub fn document(&self, request_id: &RequestId, public_url: &str) -> ProblemDocument {
        let Kind { code, title, .. } = self.kind();
        ProblemDocument {
            // A relative reference has the full path (RFC 9457, section 3.1.1). ADR 0029.
            kind: format!("{public_url}{PROBLEMS}/{code}"),
            title,
            status: self.status().as_u16(),
            detail: self.detail(),
            instance: format!("urn:hapax:request:{request_id}"),
            code,
            retryable: self.is_retryable(),
            job_id: match self {
                Self::KeyReused { job_id, .. }
                | Self::JobExists { job_id, .. }
                | Self::JobNotWaiting { job_id, .. }
                | Self::PreconditionFailed { job_id, .. } => Some(*job_id),
                _ => None,
            },
            pointers: match self {
                Self::KeyReused { pointers, .. } | Self::JobExists { pointers, .. } => pointers.clone(),
                Self::InvalidJob(error) => vec![error.pointer.clone()],
                _ => Vec::new(),
            },
            violated_policies: match self {
                Self::QuotaExceeded(quota_status) => vec![quota_status.policy.name],
                _ => Vec::new(),
            },
        }
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

/// An error's text with a capital letter and a full stop.
fn sentence(words: &impl fmt::Display) -> String {
    let words = words.to_string();
    let mut characters = words.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    format!("{}{}.", first.map(String::from).unwrap_or_default(), characters.as_str())
}

#[derive(Serialize)]
pub struct ProblemDocument {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    instance: String,
    code: &'static str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<JobId>,
    /// JSON Pointers (RFC 6901) into the request's body.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) pointers: Vec<String>,
    /// The names of the quotas that are used up (draft-ietf-httpapi-ratelimit-headers-11).
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    violated_policies: Vec<&'static str>,
}

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

impl From<InvalidKey> for Problem {
    fn from(error: InvalidKey) -> Self {
        Self::InvalidKey(error)
    }
}

impl From<InvalidJson> for Problem {
    fn from(error: InvalidJson) -> Self {
        Self::InvalidJson(error)
    }
}

impl From<InvalidJob> for Problem {
    fn from(error: InvalidJob) -> Self {
        Self::InvalidJob(error)
    }
}

impl From<Shed> for Problem {
    fn from(reason: Shed) -> Self {
        Self::Shed(reason)
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Unknown => Self::Unauthenticated(Unauthenticated::Unknown),
            Rejection::Unavailable | Rejection::TimedOut | Rejection::Failed => Self::TokenUnverified { unfit: false },
            Rejection::Unfit => Self::TokenUnverified { unfit: true },
            Rejection::Shed(reason) => Self::Shed(reason),
        }
    }
}

impl From<KeyedError> for Problem {
    fn from(error: KeyedError) -> Self {
        match error {
            KeyedError::KeyReused { first, pointers } => {
                Self::KeyReused { job_id: first.answer.job_id, first_path: None, pointers }
            }
            KeyedError::InFlight => Self::RequestInFlight,
            KeyedError::Unavailable(reason) => Self::Unavailable(reason),
            KeyedError::TimedOut => Self::StatementTimeout,
            KeyedError::Unfit(reason) => Self::Unfit(reason),
            KeyedError::Shed(reason) => Self::Shed(reason),
            KeyedError::OutcomeUnknown => Self::OutcomeUnknown,
            KeyedError::Failed(_) => Self::Internal(error.into()),
        }
    }
}

/// The same rules with a key and without one, so that a failure has the same answer on every route.
impl From<DatabaseError> for Problem {
    fn from(error: DatabaseError) -> Self {
        KeyedError::from(error).into()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound => Self::JobNotFound,
            Refusal::Deleted => Self::JobDeleted,
            Refusal::NotWaiting { id, state } => Self::JobNotWaiting { job_id: id, state },
            Refusal::Stale { id, version } => Self::PreconditionFailed { job_id: id, version, only_weak_tags: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use std::sync::Arc;
    use std::time::Duration;

    use actix_web::http::header::{ACCEPT, RETRY_AFTER};
    use serde_json::Value;
    use uuid::Uuid;

    use super::*;
    use crate::http::problem_table::KINDS;

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
            Problem::InvalidJob(InvalidJob { pointer: "/type".to_owned(), detail: "it is missing".to_owned() }),
            Problem::UnknownParameter("x".to_owned()),
            Problem::InvalidParameter(InvalidParameter { name: "limit", why: "it is none".to_owned() }),
            Problem::Unauthenticated(Unauthenticated::Missing),
            Problem::MissingScope(Scope::Read),
            Problem::RouteNotFound,
            Problem::JobNotFound,
            Problem::KeyNotFound,
            Problem::InvalidJobId,
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
    fn a_database_error_has_one_answer_on_routes_with_a_key_and_without_one() {
        let failed = || Arc::new(sqlx::Error::PoolClosed);
        for (error, code) in [
            (DatabaseError::Unavailable("it is away".to_owned()), "database-unavailable"),
            (DatabaseError::Shed(Shed::Waited), "overloaded"),
            (DatabaseError::Unknown, "outcome-unknown"),
            (DatabaseError::Locked { after_loss: false }, "request-in-flight"),
            (DatabaseError::Locked { after_loss: true }, "outcome-unknown"),
            (DatabaseError::Violation(failed()), "internal-error"),
            (DatabaseError::Statement(failed()), "internal-error"),
        ] {
            let keyed = Problem::from(KeyedError::from(error.clone()));
            assert_eq!((Problem::from(error).code(), keyed.code()), (code, code));
        }
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
