//! What all routes with an idempotency key share: the quota, the log fields and the answer.

use std::sync::Arc;
use std::time::SystemTime;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder};

use super::quotas::reserve;
use super::routes::JOBS;
use super::{App, Problem};
use crate::access::Caller;
use crate::idempotency::{Answer, Effect, Key, KeyedError, KeyedResult, Outcome, Route, ScopedKey, Summary};
use crate::ids::JobId;
use crate::jobs;
use crate::metrics::KeyedOutcome;
use crate::telemetry::RequestContext;
use crate::timestamp::Timestamp;

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const IDEMPOTENCY_EXPIRES: HeaderName = HeaderName::from_static("idempotency-expires");
const DEDUPLICATED_BY: HeaderName = HeaderName::from_static("deduplicated-by");

/// How a request with a key ended.
pub enum Handled {
    /// It committed the outcome.
    First(Arc<Outcome>),
    /// An earlier request with the same key did.
    Replayed(Arc<Outcome>),
    /// A quota, the age of the request or the state of a job forbids it. The key is unchanged.
    Refused(Problem),
    Failed(KeyedError),
}

/// Scopes a request's key to its tenant and route, and records the key's digest for the log.
pub fn scope(caller: &Caller, route: Route, key: Key) -> ScopedKey {
    let key = ScopedKey { tenant: caller.tenant, route, key };
    RequestContext::current().record("idempotency.key_digest", &key.log_digest());
    key
}

/// Charges the replay quota for a request with this key, whether it is a replay or not.
///
/// # Errors
/// [`Problem::QuotaExceeded`].
pub fn reserve_key(app: &App, caller: &Caller, key: &ScopedKey, request: &HttpRequest) -> Result<(), Problem> {
    // Never refunded, because this quota limits exactly these requests.
    reserve(&app.quotas.replays, key, caller.settings.replays, request).map(drop)
}

/// Records how a request with a key ended, and makes its answer.
///
/// # Errors
/// [`Problem`] if the request was refused or failed.
pub fn finish(request: &HttpRequest, app: &App, handled: Handled) -> Result<HttpResponse, Problem> {
    record(request, &handled);
    match handled {
        Handled::First(outcome) => Ok(answer(app, first_status(outcome.answer.effect), "false", &outcome)),
        Handled::Replayed(outcome) => Ok(answer(app, StatusCode::OK, "true", &outcome)),
        Handled::Refused(problem) => Err(problem),
        Handled::Failed(error) => Err(error.into()),
    }
}

fn answer(app: &App, status: StatusCode, replayed: &'static str, outcome: &Outcome) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    response
        .insert_header((IDEMPOTENT_REPLAYED, HeaderValue::from_static(replayed)))
        .insert_header((IDEMPOTENCY_EXPIRES, httpdate::fmt_http_date(SystemTime::from(outcome.expires_at))));
    if let Some(by) = deduplicated_by(&outcome.answer) {
        response.insert_header((DEDUPLICATED_BY, by));
    }
    write(app, &mut response, &outcome.answer)
}

/// Writes the header fields and the body of an answer that is stored, or would be if the request had a key. A job that is
/// created or found has a `Location`, a job that is changed an `ETag`.
pub fn write(app: &App, response: &mut HttpResponseBuilder, answer: &Answer) -> HttpResponse {
    response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
    if let Some(location) = location(app, answer) {
        response.insert_header((header::LOCATION, location));
    }
    if answer.effect == Effect::Changed {
        response.insert_header((header::ETAG, jobs::etag(answer.job_version)));
    }
    response.body(answer.body.clone())
}

/// The status of the first answer. Replays get 200.
pub fn first_status(effect: Effect) -> StatusCode {
    match effect {
        Effect::Created => StatusCode::CREATED,
        Effect::Adopted | Effect::Changed => StatusCode::OK,
    }
}

/// What may be shown of a key with this outcome. The status is that of the first answer.
pub fn key_summary(route: Route, outcome: &Outcome) -> Summary {
    Summary::of(route, outcome, first_status(outcome.answer.effect).as_u16())
}

/// Where the job is that a request created or found.
pub fn location(app: &App, answer: &Answer) -> Option<String> {
    match answer.effect {
        Effect::Created | Effect::Adopted => Some(app.public(&format!("{JOBS}/{}", answer.job_id))),
        Effect::Changed => None,
    }
}

/// What a submission had in common with the job that it found.
pub fn deduplicated_by(answer: &Answer) -> Option<&'static str> {
    (answer.effect == Effect::Adopted).then_some("content")
}

/// Records the result for the request's log line.
fn record(request: &HttpRequest, handled: &Handled) {
    request.extensions_mut().insert(handled.outcome());
    let context = RequestContext::current();
    if let Some(job_id) = handled.job_id() {
        context.record_value("job_id", job_id);
    }
    let first = match handled {
        Handled::Replayed(first) | Handled::Failed(KeyedError::KeyReused { first, .. }) => first,
        _ => return,
    };
    context.record("first.request_id", first.request_id.as_str());
    context.record_value("first.at", Timestamp(first.created_at));
}

impl Handled {
    /// For a request whose key may have expired: the stored outcome of an earlier attempt if there is one. The request
    /// itself has no effect.
    pub fn only_replayed(found: Result<Option<Arc<Outcome>>, KeyedError>) -> Self {
        match found {
            Ok(Some(outcome)) => Self::Replayed(outcome),
            Ok(None) => Self::Refused(Problem::FirstSentTooOld),
            Err(error) => Self::Failed(error),
        }
    }

    /// For logs and metrics.
    pub fn outcome(&self) -> KeyedOutcome {
        match self {
            Self::First(outcome) => match outcome.answer.effect {
                Effect::Created => KeyedOutcome::Created,
                Effect::Adopted => KeyedOutcome::Deduplicated,
                Effect::Changed => KeyedOutcome::Changed,
            },
            Self::Replayed(_) => KeyedOutcome::Replayed,
            Self::Failed(KeyedError::KeyReused { .. }) => KeyedOutcome::Mismatch,
            Self::Failed(KeyedError::InFlight) => KeyedOutcome::InFlight,
            Self::Failed(KeyedError::OutcomeUnknown) => KeyedOutcome::Unknown,
            Self::Refused(_)
            | Self::Failed(
                KeyedError::Unavailable(_)
                | KeyedError::Unfit(_)
                | KeyedError::TimedOut
                | KeyedError::Shed(_)
                | KeyedError::Failed(_),
            ) => KeyedOutcome::Refused,
        }
    }

    fn job_id(&self) -> Option<JobId> {
        match self {
            Self::First(outcome) | Self::Replayed(outcome) => Some(outcome.answer.job_id),
            Self::Failed(KeyedError::KeyReused { first, .. }) => Some(first.answer.job_id),
            Self::Refused(_) | Self::Failed(_) => None,
        }
    }
}

impl From<KeyedResult> for Handled {
    fn from(result: KeyedResult) -> Self {
        match result {
            KeyedResult::First(outcome) => Self::First(outcome),
            KeyedResult::Replayed(outcome) => Self::Replayed(outcome),
        }
    }
}
