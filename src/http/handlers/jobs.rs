//! `/jobs` and what is below it.

use std::time::SystemTime;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use tracing::Span;
use tracing::field::display;

use crate::access::Caller;
use crate::http::body::JsonBody;
use crate::http::extractors::{Deadline, NoParameters, RequiredKey};
use crate::http::quotas::{charge, give_back};
use crate::http::{App, Problem, SUBMIT};
use crate::idempotency::{Fingerprint, Outcome, ScopedKey};
use crate::ids::{JobId, RequestId};
use crate::intake::{Submission, SubmitError, Submitted};
use crate::jobs::{self, NewJob};
use crate::json::Document;
use crate::metrics::KeyedOutcome;

/// `POST /jobs`: 201 once, 200 afterwards.
pub async fn submit(
    request: HttpRequest,
    app: web::Data<App>,
    request_id: RequestId,
    caller: Caller,
    _: NoParameters,
    key: RequiredKey,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    let key = ScopedKey { tenant: caller.tenant, route: SUBMIT, key: key.0 };
    Span::current().record("idempotency.key_digest", display(key.log_digest()));
    let (job, fingerprint) = read(&request, body)?;
    charge(&app.quotas.replays, &key, &request)?;
    let submission = Submission::mint(key, fingerprint, job, request_id);
    let submitted = submit_within_quota(&request, &app, &submission).await?;
    note(&request, &submitted);
    Ok(match submitted? {
        Submitted::Created(outcome) => answer(StatusCode::CREATED, "false", outcome),
        Submitted::Replayed(outcome) => answer(StatusCode::OK, "true", outcome),
    })
}

/// A tenant whose creations are used up still has its replays.
async fn submit_within_quota(
    request: &HttpRequest,
    app: &App,
    submission: &Submission,
) -> Result<Result<Submitted, SubmitError>, Problem> {
    let deadline = Deadline::of(request);
    let exceeded = match charge(&app.quotas.creations, &submission.key.tenant, request) {
        Err(exceeded) => exceeded,
        Ok(charge) => {
            let submitted = app.intake.submit(submission, deadline).await;
            if !matches!(submitted, Ok(Submitted::Created(_)) | Err(SubmitError::OutcomeUnknown)) {
                give_back(charge, request);
            }
            return Ok(submitted);
        }
    };
    match app.intake.replay(submission, deadline).await.transpose() {
        Some(replayed) => Ok(replayed),
        None => Err(exceeded),
    }
}

/// Takes the body by value: it may be large, and what is waited for next may take its time.
fn read(request: &HttpRequest, body: JsonBody) -> Result<(NewJob, Fingerprint), Problem> {
    let document = Document::parse(&body.0)?;
    Ok((NewJob::parse(&document)?, Fingerprint::of(request.path(), &document)))
}

/// `GET /jobs/{id}`: the job as it is now.
pub async fn show(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    _: NoParameters,
    id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let id = JobId::parse(&id).ok_or(Problem::JobNotFound)?;
    let found = app
        .reads
        .read(Deadline::of(&request), async |connection| jobs::queries::find(connection, caller.tenant, id).await);
    let job = found.await?.ok_or(Problem::JobNotFound)?;
    Ok(HttpResponse::Ok().content_type("application/json").body(job.to_json()))
}

fn answer(status: StatusCode, replayed: &'static str, outcome: Outcome) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    response
        .insert_header((header::CONTENT_TYPE, "application/json"))
        .insert_header(("Idempotent-Replayed", replayed))
        .insert_header(("Idempotency-Expires", httpdate::fmt_http_date(SystemTime::from(outcome.expires_at))));
    if let Some(location) = outcome.location {
        response.insert_header((header::LOCATION, location));
    }
    response.body(outcome.body)
}

/// Writes into the request's span what became of it, so that its one log line tells.
fn note(request: &HttpRequest, submitted: &Result<Submitted, SubmitError>) {
    let (noted, job_id) = match submitted {
        Ok(Submitted::Created(outcome)) => (KeyedOutcome::Created, Some(outcome.job_id)),
        Ok(Submitted::Replayed(outcome)) => (KeyedOutcome::Replayed, Some(outcome.job_id)),
        Err(SubmitError::KeyReused { first, .. }) => (KeyedOutcome::Mismatch, Some(first.job_id)),
        Err(SubmitError::InFlight) => (KeyedOutcome::InFlight, None),
        Err(SubmitError::OutcomeUnknown) => (KeyedOutcome::Unknown, None),
        Err(SubmitError::Unavailable(_) | SubmitError::Shed(_) | SubmitError::Failed(_)) => {
            (KeyedOutcome::Refused, None)
        }
    };
    request.extensions_mut().insert(noted);
    let span = Span::current();
    if let Some(job_id) = job_id {
        span.record("job_id", display(job_id));
    }
    let first = match submitted {
        Ok(Submitted::Replayed(first)) => first,
        Err(SubmitError::KeyReused { first, .. }) => first,
        _ => return,
    };
    span.record("first.request_id", display(&first.request_id));
    span.record("first.at", display(jobs::rfc3339(first.created_at)));
}
