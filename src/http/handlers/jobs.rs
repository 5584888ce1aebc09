//! Existing jobs: show, change, cancel, delete and retry.

use std::time::Duration;

use actix_web::http::header::{CONTENT_TYPE, ETAG};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use tokio::time::Instant;

use crate::access::Caller;
use crate::changes::{Change, KeyedChanged, Patched};
use crate::http::authorization::while_waiting;
use crate::http::body::{Body, MergePatch};
use crate::http::conditions::{IfMatch, IfNoneMatch, NoConditions};
use crate::http::extractors::{Deadline, NoParameters, OptionalKey, PathId, RequiredKey, WaitSeconds};
use crate::http::first_sent::{FirstSent, TooOld};
use crate::http::keyed::{Handled, finish, reserve_key, scope, write};
use crate::http::outgoing::json;
use crate::http::routes::{CHANGE, JOBS, RETRY};
use crate::http::{App, Problem};
use crate::idempotency::{Fingerprint, Keyed};
use crate::ids::{JobId, RequestId, TenantId};
use crate::jobs::{self, Attempt, Job, Lookup, Patch};
use crate::json::Document;
use crate::telemetry::RequestContext;

/// `GET /jobs/{id}`: the current state of a job. With `wait_seconds`, once the job is over or the time is up.
pub async fn show(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    WaitSeconds(wait): WaitSeconds,
    id: PathId,
    known: IfNoneMatch,
) -> Result<HttpResponse, Problem> {
    if !wait.is_zero() {
        wait_for_end(&request, &app, caller.tenant, id.0, wait).await?;
    }
    let deadline = Deadline::of(&request).min(Instant::now() + app.limits.request_deadline);
    let find = async |connection: &mut _| jobs::queries::find(connection, caller.tenant, id.0).await;
    let job = there(app.reads.read("find_job", caller.tenant, deadline, find).await?)?;
    if known.has(job.version) {
        return Ok(HttpResponse::NotModified().insert_header((ETAG, jobs::etag(job.version))).finish());
    }
    Ok(answer(&job))
}

/// Returns once the job is over, or `wait` is. A waiting request holds no payload.
async fn wait_for_end(
    request: &HttpRequest,
    app: &App,
    tenant: TenantId,
    id: JobId,
    wait: Duration,
) -> Result<(), Problem> {
    let until = Instant::now() + wait;
    Deadline::extend(request, wait);
    let find = async |connection: &mut _| jobs::queries::find_without_payload(connection, tenant, id).await;
    loop {
        // Registered before the look, so that no end is missed between the look and the wait.
        let waiter = app.long_polls.for_end(tenant, id);
        let deadline = Deadline::of(request).min(Instant::now() + app.limits.request_deadline);
        let found = app.reads.read("find_job_without_payload", tenant, deadline, find).await?;
        let is_over = there(found)?.state.is_final();
        if is_over || !while_waiting(app, request, tenant, app.long_polls.wait(tenant, waiter, until)).await {
            return Ok(());
        }
    }
}

/// `PATCH /jobs/{id}`: changes a queued job if its version matches `If-Match`.
#[expect(clippy::too_many_arguments, reason = "each is something that the request must have")]
pub async fn change(
    request: HttpRequest,
    app: web::Data<App>,
    request_id: RequestId,
    caller: Caller,
    _: NoParameters,
    id: PathId,
    key: OptionalKey,
    first_sent: FirstSent,
    if_match: IfMatch,
    body: Body<MergePatch>,
) -> Result<HttpResponse, Problem> {
    // The fingerprint uses the parsed id, so the spelling of the id in the path does not matter.
    let path = format!("{JOBS}/{}", id.0);
    let read = move |text: &[u8]| {
        let document = Document::parse(text)?;
        Ok((Patch::parse(&document)?, Fingerprint::of(&path, Patch::canonical(document.root()))))
    };
    let (patch, fingerprint) = body.read(&app, caller.tenant, Deadline::of(&request), read).await?;
    RequestContext::current().record_value("job_id", id.0);
    let change = Change { tenant: caller.tenant, id: id.0, patch, condition: if_match.condition.clone() };
    let Some(key) = key.0 else {
        return match app.changes.patch(&change, Deadline::of(&request)).await? {
            Patched::Changed(answer) => Ok(write(&app, &mut HttpResponse::Ok(), &answer)),
            Patched::Refused(refusal) => Err(if_match.explain(refusal.into())),
        };
    };
    let key = scope(&caller, CHANGE, key);
    reserve_key(&app, &caller, &key, &request)?;
    let time_to_live = app.time_to_live(&caller);
    let keyed = Keyed { key, fingerprint, request_id, created_at: jobs::now(), time_to_live, makes: None };
    let handled = match first_sent.limit_deadline(&request, time_to_live) {
        Err(TooOld) => Handled::only_replayed(app.changes.find_outcome(&keyed, Deadline::of(&request)).await),
        Ok(()) => match app.changes.patch_keyed(&change, &keyed, Deadline::of(&request)).await {
            Ok(KeyedChanged::First(outcome)) => Handled::First(outcome),
            Ok(KeyedChanged::Replayed(outcome)) => Handled::Replayed(outcome),
            Ok(KeyedChanged::Refused(refusal)) => Handled::Refused(if_match.explain(refusal.into())),
            Err(error) => Handled::Failed(error),
        },
    };
    finish(&request, &app, handled).map_err(|problem| name_first_path(problem, id.0, ""))
}

/// Names the path of the first request with a key, if that was a request for another job than `id`. `rest` is what
/// follows the id in the path.
fn name_first_path(mut problem: Problem, id: JobId, rest: &str) -> Problem {
    if let Problem::KeyReused { job_id, first_path, .. } = &mut problem
        && *job_id != id
    {
        *first_path = Some(format!("{JOBS}/{job_id}{rest}"));
    }
    problem
}

/// `POST /jobs/{id}/cancel`: cancels a job. A job that has already ended is answered as it is.
pub async fn cancel(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    _: NoParameters,
    _: NoConditions,
    id: PathId,
) -> Result<HttpResponse, Problem> {
    RequestContext::current().record_value("job_id", id.0);
    let job = there(app.changes.cancel(caller.tenant, id.0, Deadline::of(&request)).await?)?;
    if job.state.is_final() {
        app.long_polls.job_finished(caller.tenant, id.0);
    }
    Ok(answer(&job))
}

/// `POST /jobs/{id}/retry`: puts a finished job back into its queue.
#[expect(clippy::too_many_arguments, reason = "each is something that the request may have")]
pub async fn retry(
    request: HttpRequest,
    app: web::Data<App>,
    request_id: RequestId,
    caller: Caller,
    _: NoParameters,
    _: NoConditions,
    id: PathId,
    key: RequiredKey,
    first_sent: FirstSent,
) -> Result<HttpResponse, Problem> {
    RequestContext::current().record_value("job_id", id.0);
    let key = scope(&caller, RETRY, key.0);
    reserve_key(&app, &caller, &key, &request)?;
    let fingerprint = Fingerprint::of(&format!("{JOBS}/{}/retry", id.0), "");
    let time_to_live = app.time_to_live(&caller);
    let keyed = Keyed { key, fingerprint, request_id, created_at: jobs::now(), time_to_live, makes: None };
    let handled = match first_sent.limit_deadline(&request, time_to_live) {
        Err(TooOld) => Handled::only_replayed(app.changes.find_outcome(&keyed, Deadline::of(&request)).await),
        Ok(()) => match app.changes.retry(id.0, &keyed, Deadline::of(&request)).await {
            Ok(KeyedChanged::First(outcome)) => Handled::First(outcome),
            Ok(KeyedChanged::Replayed(outcome)) => Handled::Replayed(outcome),
            Ok(KeyedChanged::Refused(refusal)) => Handled::Refused(refusal.into()),
            Err(error) => Handled::Failed(error),
        },
    };
    finish(&request, &app, handled).map_err(|problem| name_first_path(problem, id.0, "/retry"))
}

#[derive(Serialize)]
struct Attempts {
    attempts: Vec<Attempt>,
}

/// `GET /jobs/{id}/attempts`: the attempts of a job, oldest first.
pub async fn attempts(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    _: NoParameters,
    id: PathId,
) -> Result<HttpResponse, Problem> {
    let find = async |connection: &mut _| jobs::queries::find_attempts(connection, caller.tenant, id.0).await;
    let attempts = match app.reads.read("find_attempts", caller.tenant, Deadline::of(&request), find).await? {
        Some(Lookup::Job(attempts)) => attempts,
        Some(Lookup::Deleted) => return Err(Problem::JobDeleted),
        None => return Err(Problem::JobNotFound),
    };
    Ok(json(&mut HttpResponse::Ok(), &Attempts { attempts }))
}

/// `DELETE /jobs/{id}`: deletes a job. Succeeds also if the job does not exist.
pub async fn delete(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    _: NoParameters,
    _: NoConditions,
    id: PathId,
) -> Result<HttpResponse, Problem> {
    RequestContext::current().record_value("job_id", id.0);
    app.changes.delete(caller.tenant, id.0, Deadline::of(&request)).await?;
    app.long_polls.job_finished(caller.tenant, id.0);
    Ok(HttpResponse::NoContent().finish())
}

fn there(found: Option<Lookup<Job>>) -> Result<Job, Problem> {
    match found {
        Some(Lookup::Job(job)) => Ok(job),
        Some(Lookup::Deleted) => Err(Problem::JobDeleted),
        None => Err(Problem::JobNotFound),
    }
}

fn answer(job: &Job) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "application/json"))
        .insert_header((ETAG, jobs::etag(job.version)))
        .body(job.to_json())
}
