//! Creation of jobs.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use crate::access::Caller;
use crate::http::body::{Body, Json};
use crate::http::conditions::NoConditions;
use crate::http::extractors::{Deadline, NoParameters, RequiredKey};
use crate::http::first_sent::{FirstSent, TooOld};
use crate::http::keyed::{Handled, finish, reserve_key, scope, write};
use crate::http::quotas::{refund, reserve};
use crate::http::routes::{JOBS, SUBMIT};
use crate::http::{App, Problem};
use crate::idempotency::{Fingerprint, KeyedError, KeyedResult, Outcome, ScopedKey};
use crate::ids::{JobId, RequestId};
use crate::intake::{Draft, Put, Submission};
use crate::jobs::{ContentDigest, InvalidMember, NewJob};
use crate::json::Document;
use crate::telemetry::RequestContext;

/// `POST /jobs`: 201 for the first request, 200 for its replays.
#[expect(clippy::too_many_arguments, reason = "each is something that the request may have")]
pub async fn submit(
    request: HttpRequest,
    app: web::Data<App>,
    request_id: RequestId,
    caller: Caller,
    _: NoParameters,
    key: RequiredKey,
    first_sent: FirstSent,
    body: Body<Json>,
) -> Result<HttpResponse, Problem> {
    let key = scope(&caller, SUBMIT, key.0);
    let read = {
        let (app, key) = (web::Data::clone(&app), key.clone());
        move |text: &[u8]| read(&app, &key, text)
    };
    let asked = body.read(&app, caller.tenant, Deadline::of(&request), read).await?;
    reserve_key(&app, &caller, &key, &request)?;
    let handled = match asked {
        Asked::Before(outcome) => Handled::Replayed(outcome),
        Asked::New(job, fingerprint) => {
            let time_to_live = app.time_to_live(&caller);
            let submission = Arc::new(Submission::mint(key, fingerprint, job, request_id, time_to_live));
            let too_old = first_sent.limit_deadline(&request, time_to_live);
            let deadline = Deadline::of(&request);
            let mut handled = match too_old {
                Err(TooOld) => Handled::only_replayed(app.intake.find_outcome(&submission, deadline).await),
                Ok(()) => submit_within_quota(&request, &app, &caller, &submission).await,
            };
            if let Handled::Failed(error) = &mut handled {
                app.intake.compare(&submission, error, deadline).await;
            }
            handled
        }
    };
    finish(&request, &app, handled)
}

/// The result of parsing a request's body.
enum Asked {
    /// A replay that the replay cache answers.
    Before(Arc<Outcome>),
    /// A submission that the replay cache does not know.
    New((NewJob, Option<ContentDigest>), Fingerprint),
}

fn read(app: &App, key: &ScopedKey, text: &[u8]) -> Result<Asked, Problem> {
    let document = Document::parse(text)?;
    let fingerprint = Fingerprint::of(JOBS, NewJob::canonical(document.root()));
    if let Some(outcome) = app.intake.recall(key, &fingerprint) {
        return Ok(Asked::Before(outcome));
    }
    Ok(Asked::New(NewJob::parse(document.root())?, fingerprint))
}

/// Submits a job within the tenant's quota of new jobs. If the quota is used up, replays are still answered, and so are
/// submissions with the unique content of an existing job.
pub async fn submit_within_quota(
    request: &HttpRequest,
    app: &App,
    caller: &Caller,
    submission: &Arc<Submission>,
) -> Handled {
    let deadline = Deadline::of(request);
    match reserve(&app.quotas.creations, &caller.tenant, caller.settings.creations, request) {
        Ok(reservation) => {
            let submitted = app.intake.submit(submission, deadline).await;
            let may_have_created = match &submitted {
                Ok(KeyedResult::First(outcome)) => outcome.answer.job_id == submission.draft.answer.job_id,
                Err(KeyedError::OutcomeUnknown) => true,
                _ => false,
            };
            if !may_have_created {
                refund(reservation, request);
            }
            submitted.map_or_else(Handled::Failed, Handled::from)
        }
        Err(exceeded) => match app.intake.find_or_adopt(submission, deadline).await {
            Ok(Some(found)) => found.into(),
            Ok(None) => Handled::Refused(exceeded),
            Err(error) => Handled::Failed(error),
        },
    }
}

/// `PUT /jobs/{id}`: 201 for the first request, 200 afterwards. The job's id takes the place of an idempotency key.
pub async fn put(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    _: NoParameters,
    _: NoConditions,
    id: web::Path<String>,
    body: Body<Json>,
) -> Result<HttpResponse, Problem> {
    let id = JobId::parse(&id).ok_or(Problem::InvalidJobId)?;
    let read = |text: &[u8]| Ok(NewJob::parse(Document::parse(text)?.root())?);
    let (job, content) = body.read(&app, caller.tenant, Deadline::of(&request), read).await?;
    if content.is_some() {
        let detail =
            "PUT does not accept this member, because the id in the path already makes the job unique; remove it"
                .to_owned();
        return Err(InvalidMember { pointer: "/unique".to_owned(), detail }.into());
    }
    RequestContext::current().record_value("job_id", id);
    let draft = Arc::new(Draft::named(caller.tenant, id, job));
    match put_within_quota(&request, &app, &caller, &draft).await? {
        Put::Created(answer) => Ok(write(&app, &mut HttpResponse::build(StatusCode::CREATED), &answer)),
        Put::Existing(answer) => Ok(write(&app, &mut HttpResponse::Ok(), &answer)),
        Put::Other { pointers } => Err(Problem::JobExists { job_id: id, pointers }),
        Put::Deleted => Err(Problem::JobDeleted),
    }
}

/// Creates a job within the tenant's quota of new jobs. If the quota is used up, an existing job is still answered.
async fn put_within_quota(
    request: &HttpRequest,
    app: &App,
    caller: &Caller,
    draft: &Arc<Draft>,
) -> Result<Put, Problem> {
    let deadline = Deadline::of(request);
    match reserve(&app.quotas.creations, &caller.tenant, caller.settings.creations, request) {
        Err(exceeded) => app.intake.find_named(draft, deadline).await?.ok_or(exceeded),
        Ok(reservation) => {
            let put = app.intake.put(draft, deadline).await.map_err(Problem::from);
            if !matches!(put, Ok(Put::Created(_)) | Err(Problem::OutcomeUnknown)) {
                refund(reservation, request);
            }
            put
        }
    }
}
