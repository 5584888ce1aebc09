//! What every route with a key has in common: what is charged, written into the log, and answered.

use std::sync::Arc;
use std::time::SystemTime;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder};

use super::quotas::reserve;
use super::{App, Problem};
use crate::access::Caller;
use crate::idempotency::{Answer, Key, KeyedError, KeyedResult, Outcome, Route, ScopedKey};
use crate::metrics::KeyedOutcome;
use crate::telemetry::RequestContext;
use crate::timestamp::Timestamp;

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const IDEMPOTENCY_EXPIRES: HeaderName = HeaderName::from_static("idempotency-expires");
const DEDUPLICATED_BY: HeaderName = HeaderName::from_static("deduplicated-by");

/// The key of a request within its tenant and route, shown in the log by its digest.
pub fn scope(caller: &Caller, route: Route, key: Key) -> ScopedKey {
    let key = ScopedKey { tenant: caller.tenant, route, key };
    RequestContext::current().record("idempotency.key_digest", &key.log_digest());
    key
}

/// Takes what a request with this key costs, new or not.
///
/// # Errors
/// [`Problem::QuotaExceeded`].
pub fn reserve_key(app: &App, key: &ScopedKey, request: &HttpRequest) -> Result<(), Problem> {
    // A replay is what the quota is for, so nothing is ever given back.
    reserve(&app.quotas.replays, key, request).map(drop)
}

/// What became of a request that was first sent longer ago than its key lives: an earlier copy may still have its
/// outcome, and nothing else is done.
///
/// # Errors
/// [`Problem::FirstSentTooOld`].
pub fn only_replayed<R>(
    found: Result<Option<Arc<Outcome>>, KeyedError>,
) -> Result<Result<KeyedResult<R>, KeyedError>, Problem> {
    match found {
        Ok(Some(outcome)) => Ok(Ok(KeyedResult::Replayed(outcome))),
        Ok(None) => Err(Problem::FirstSentTooOld),
        Err(error) => Ok(Err(error)),
    }
}

/// Notes what became of a request with a key, and answers it.
///
/// # Errors
/// [`Problem`], if that is what became of it.
pub fn finish<R: Into<Problem>>(
    request: &HttpRequest,
    app: &App,
    result: Result<KeyedResult<R>, KeyedError>,
) -> Result<HttpResponse, Problem> {
    record(request, &result);
    match result? {
        KeyedResult::First(outcome) => {
            let status = u16::try_from(outcome.answer.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
            Ok(answer(app, status.unwrap_or(StatusCode::OK), "false", &outcome))
        }
        KeyedResult::Replayed(outcome) => Ok(answer(app, StatusCode::OK, "true", &outcome)),
        KeyedResult::Refused(refusal) => Err(refusal.into()),
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

/// The header fields and the body of an answer that is stored, or would be if the request had a key.
/// `Location` is stored as a path, so that each replica can make a URL of it by its own configuration.
pub fn write(app: &App, response: &mut HttpResponseBuilder, answer: &Answer) -> HttpResponse {
    response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
    if let Some(location) = &answer.location {
        response.insert_header((header::LOCATION, app.public(location)));
    }
    if let Some(etag) = &answer.etag {
        response.insert_header((header::ETAG, etag.as_str()));
    }
    response.body(answer.body.clone())
}

/// By what a submission has met another one's job: it is told where the job is, but has not made it.
pub fn deduplicated_by(answer: &Answer) -> Option<&'static str> {
    (answer.location.is_some() && answer.status == 200).then_some("content")
}

/// Notes what became of the request, so that its one log line tells.
fn record<R>(request: &HttpRequest, result: &Result<KeyedResult<R>, KeyedError>) {
    let (noted, job_id) = (outcome(result), job_id(result));
    request.extensions_mut().insert(noted);
    let context = RequestContext::current();
    if let Some(job_id) = job_id {
        context.record_value("job_id", job_id);
    }
    let first = match result {
        Ok(KeyedResult::Replayed(first)) => first,
        Err(KeyedError::KeyReused { first, .. }) => first,
        _ => return,
    };
    context.record("first.request_id", first.request_id.as_str());
    context.record_value("first.at", Timestamp(first.created_at));
}

pub fn outcome<R>(result: &Result<KeyedResult<R>, KeyedError>) -> KeyedOutcome {
    match result {
        Ok(KeyedResult::First(outcome)) if deduplicated_by(&outcome.answer).is_some() => KeyedOutcome::Deduplicated,
        Ok(KeyedResult::First(outcome)) if outcome.answer.location.is_some() => KeyedOutcome::Created,
        Ok(KeyedResult::First(_)) => KeyedOutcome::Changed,
        Ok(KeyedResult::Replayed(_)) => KeyedOutcome::Replayed,
        Err(KeyedError::KeyReused { .. }) => KeyedOutcome::Mismatch,
        Err(KeyedError::InFlight) => KeyedOutcome::InFlight,
        Err(KeyedError::OutcomeUnknown) => KeyedOutcome::Unknown,
        Ok(KeyedResult::Refused(_))
        | Err(
            KeyedError::Unavailable(_)
            | KeyedError::Unfit(_)
            | KeyedError::TimedOut
            | KeyedError::Shed(_)
            | KeyedError::Failed(_),
        ) => KeyedOutcome::Refused,
    }
}

fn job_id<R>(result: &Result<KeyedResult<R>, KeyedError>) -> Option<crate::ids::JobId> {
    match result {
        Ok(KeyedResult::First(outcome) | KeyedResult::Replayed(outcome)) => Some(outcome.answer.job_id),
        Err(KeyedError::KeyReused { first, .. }) => Some(first.answer.job_id),
        _ => None,
    }
}
