//! What workers call: claims, heartbeats and results. And what people read about claims.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use uuid::Uuid;

use crate::access::Caller;
use crate::claims::{
    ClaimSummary, Claimed, ClaimedJob, Held, PAYLOAD_BYTES, Reports, Request, Settled, Settlement, Verdict,
};
use crate::http::authorization::while_waiting;
use crate::http::body::{Body, Json};
use crate::http::body_memory::AnswerBytes;
use crate::http::conditions::NoConditions;
use crate::http::extractors::{Deadline, NoParameters};
use crate::http::handlers::lists::linked;
use crate::http::outgoing::json;
use crate::http::parameters::{CURSOR, next_page, parameters};
use crate::http::routes::CLAIMS;
use crate::http::{App, Problem};
use crate::idempotency::Fingerprint;
use crate::ids::{ClaimId, JobId};
use crate::jobs::State;
use crate::json::Document;
use crate::telemetry::RequestContext;
use crate::timestamp::Timestamp;

/// The claim id in a path, which the worker made.
pub struct PathClaim(ClaimId);

impl FromRequest for PathClaim {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let id = request.match_info().get("claim_id").and_then(ClaimId::parse);
        if let Some(id) = id {
            RequestContext::current().record_value("claim_id", id);
        }
        ready(id.map(Self).ok_or(Problem::InvalidClaimId))
    }
}

/// A claim with its jobs, as its worker gets it.
#[derive(Serialize)]
struct Claim<'a> {
    id: ClaimId,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    queues: &'a [String],
    lease_seconds: u64,
    heartbeat_after_seconds: u64,
    expires_at: Timestamp,
    jobs: Vec<ClaimJob>,
}

#[derive(Serialize)]
struct ClaimJob {
    id: JobId,
    #[serde(rename = "type")]
    kind: String,
    queue: String,
    priority: i16,
    run_at: Timestamp,
    max_attempts: i32,
    attempt: i32,
    token: i32,
    created_at: Timestamp,
    payload: Box<RawValue>,
}

/// The answer to a claim that found nothing. Nothing is stored.
#[derive(Serialize)]
struct NoJobs {
    id: ClaimId,
    jobs: [(); 0],
}

/// `PUT /claims/{claim_id}`: claims jobs. 201 for the first request, 200 with the same jobs when it is repeated, and 200 without
/// jobs when there are none.
pub async fn claim(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    _: NoParameters,
    _: NoConditions,
    id: PathClaim,
    body: Body<Json>,
) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (caller.tenant, id.0);
    let read = move |text: &[u8]| {
        let document = Document::parse(text)?;
        let fingerprint = |canonical: &[u8]| Fingerprint::of(CLAIMS, canonical).into_bytes();
        Request::parse(&document, (tenant, id), fingerprint).map_err(Problem::InvalidClaim)
    };
    let asked = Arc::new(body.read(&app, tenant, Deadline::of(&request), read).await?);
    let until = Instant::now() + asked.wait;
    Deadline::extend(&request, asked.wait);
    let claimed = loop {
        // Registered before the look, so that no job is missed between the look and the wait.
        let waiter = (!asked.wait.is_zero()).then(|| app.long_polls.for_queues(tenant, &asked.queues));
        let deadline = Deadline::of(&request).min(Instant::now() + app.limits.request_deadline);
        let claimed = look(&app, &request, &asked, deadline).await?;
        let look_again = match (&claimed, waiter) {
            (Claimed::Nothing, Some(waiter)) => {
                while_waiting(&app, &request, tenant, app.long_polls.wait(tenant, waiter, until)).await
            }
            _ => false,
        };
        if !look_again {
            break claimed;
        }
    };
    claimed.count(&asked, &app.metrics);
    match claimed {
        Claimed::Nothing | Claimed::Again => Ok(json(&mut HttpResponse::Ok(), &NoJobs { id, jobs: [] })),
        Claimed::OtherRequest => Err(Problem::ClaimExists),
        Claimed::Ended => Err(Problem::ClaimEnded),
        Claimed::Jobs { is_new, expires_at, jobs } => Ok(respond(&app, &asked, is_new, expires_at, jobs)),
    }
}

/// One look for jobs. Reserves memory for the answer first.
async fn look(app: &App, request: &HttpRequest, asked: &Arc<Request>, deadline: Instant) -> Result<Claimed, Problem> {
    let memory = app.body_memory.hold(asked.tenant, expected_bytes(asked))?;
    let claimed = app.claims.claim(asked, deadline).await?;
    if matches!(claimed, Claimed::Jobs { .. }) {
        request.extensions_mut().insert(AnswerBytes(memory));
    }
    Ok(claimed)
}

/// The memory to reserve for the answer before a look for jobs. If the answer turns out to be larger and there is no room
/// for it, the worker gets 503, and the same claim again when it repeats the request.
fn expected_bytes(asked: &Request) -> usize {
    let jobs = usize::try_from(asked.max_jobs).unwrap_or(1);
    (jobs * EXPECTED_JOB_BYTES).min(usize::try_from(PAYLOAD_BYTES).unwrap_or(usize::MAX))
}

const EXPECTED_JOB_BYTES: usize = 16 * 1024;

fn respond(app: &App, asked: &Request, is_new: bool, expires_at: DateTime<Utc>, jobs: Vec<ClaimedJob>) -> HttpResponse {
    RequestContext::current().record_value("jobs", jobs.len());
    for ClaimedJob { id, token, attempt, .. } in &jobs {
        tracing::debug!(job_id = %id, token, attempt, "claimed");
    }
    let claim = Claim {
        id: asked.id,
        worker: asked.worker.as_deref(),
        queues: &asked.queues,
        lease_seconds: asked.lease.as_secs(),
        heartbeat_after_seconds: heartbeat_after_seconds(asked.lease),
        expires_at: Timestamp(expires_at),
        jobs: jobs.into_iter().map(ClaimJob::from).collect(),
    };
    let mut response = HttpResponse::build(if is_new { StatusCode::CREATED } else { StatusCode::OK });
    response.insert_header((LOCATION, app.public(&format!("{CLAIMS}/{}", asked.id))));
    json(&mut response, &claim)
}

/// When to send the next heartbeat: after a third of the lease, so that two may be lost.
fn heartbeat_after_seconds(lease: Duration) -> u64 {
    (lease.as_secs() / 3).max(1)
}

impl From<ClaimedJob> for ClaimJob {
    fn from(job: ClaimedJob) -> Self {
        Self {
            id: job.id,
            kind: job.kind,
            queue: job.queue,
            priority: job.priority,
            run_at: Timestamp(job.run_at),
            max_attempts: job.max_attempts,
            attempt: job.attempt,
            token: job.token,
            created_at: Timestamp(job.created_at),
            payload: job.payload,
        }
    }
}

#[derive(Serialize)]
struct Heartbeat {
    id: ClaimId,
    expires_at: Timestamp,
    heartbeat_after_seconds: u64,
    jobs: Vec<HeartbeatJob>,
    draining: bool,
}

#[derive(Serialize)]
struct HeartbeatJob {
    id: JobId,
    cancel_requested: bool,
}

/// `POST /claims/{claim_id}/heartbeat`: extends the claim and tells its worker which jobs it still holds.
pub async fn heartbeat(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    _: NoParameters,
    _: NoConditions,
    id: PathClaim,
) -> Result<HttpResponse, Problem> {
    let held = app.claims.heartbeat(caller.tenant, id.0, Deadline::of(&request)).await?;
    let Held { expires_at, lease, jobs, cancel_requested } = held.ok_or(Problem::ClaimEnded)?;
    RequestContext::current().record_value("jobs", jobs.len());
    let job = |id| HeartbeatJob { id, cancel_requested: cancel_requested.contains(&id) };
    let heartbeat = Heartbeat {
        id: id.0,
        expires_at: Timestamp(expires_at),
        heartbeat_after_seconds: heartbeat_after_seconds(lease),
        jobs: jobs.into_iter().map(job).collect(),
        draining: app.readiness.is_draining(),
    };
    Ok(json(&mut HttpResponse::Ok(), &heartbeat))
}

#[derive(Serialize)]
struct Results {
    results: Vec<ReportResult>,
}

#[derive(Serialize)]
struct ReportResult {
    job_id: JobId,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
}

/// `POST /claims/{claim_id}/results`: records what became of jobs. Safe to repeat: what is recorded stays.
pub async fn results(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    _: NoParameters,
    _: NoConditions,
    id: PathClaim,
    body: Body<Json>,
) -> Result<HttpResponse, Problem> {
    let sizes = app.limits.reports;
    let read = move |text: &[u8]| {
        let document = Document::parse_envelope(text)?;
        Ok(Reports::parse(&document, sizes)?)
    };
    let reports = body.read(&app, caller.tenant, Deadline::of(&request), read).await?;
    let settlement = Arc::new(Settlement { tenant: caller.tenant, claim: id.0, reports: reports.0 });
    let settled = app.claims.settle(&settlement, Deadline::of(&request)).await?;
    for (report, settled) in settlement.reports.iter().zip(&settled) {
        settled.count(report.outcome, &app.metrics);
    }
    let lost = settled.iter().filter(|settled| settled.verdict == Verdict::LeaseLost).count();
    RequestContext::current().record_value("jobs", settled.len());
    RequestContext::current().record_value("lost", lost);
    let result = |Settled { job, verdict, state, .. }| {
        tracing::debug!(job_id = %job, status = verdict.name(), "settled");
        ReportResult { job_id: job, status: verdict.name(), state }
    };
    Ok(json(&mut HttpResponse::Ok(), &Results { results: settled.into_iter().map(result).collect() }))
}

/// `DELETE /claims/{claim_id}`: ends the claim and gives its jobs back. Succeeds also if the claim is unknown.
pub async fn release(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    _: NoParameters,
    _: NoConditions,
    id: PathClaim,
) -> Result<HttpResponse, Problem> {
    let released = app.claims.release(caller.tenant, id.0, Deadline::of(&request)).await?;
    app.metrics.count_released_jobs(released);
    RequestContext::current().record_value("jobs", released);
    Ok(HttpResponse::NoContent().finish())
}

/// A claim without the payloads of its jobs.
#[derive(Serialize)]
struct Summary {
    id: ClaimId,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    queues: Vec<String>,
    lease_seconds: u64,
    created_at: Timestamp,
    expires_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    released_at: Option<Timestamp>,
    jobs: Vec<SummaryJob>,
}

#[derive(Serialize)]
struct SummaryJob {
    id: JobId,
    token: i32,
    attempt: i32,
    started_at: Timestamp,
    cancel_requested: bool,
}

impl From<ClaimSummary> for Summary {
    fn from(claim: ClaimSummary) -> Self {
        let jobs = claim.jobs.into_iter().map(|job| SummaryJob {
            id: job.id,
            token: job.token,
            attempt: job.attempt,
            started_at: Timestamp(job.started_at),
            cancel_requested: job.cancel_requested,
        });
        Self {
            id: claim.id,
            worker: claim.worker,
            queues: claim.queues,
            lease_seconds: claim.lease.as_secs(),
            created_at: Timestamp(claim.created_at),
            expires_at: Timestamp(claim.expires_at),
            released_at: claim.released_at.map(Timestamp),
            jobs: jobs.collect(),
        }
    }
}

/// `GET /claims/{claim_id}`: a claim and the jobs that it holds.
pub async fn show(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    _: NoParameters,
    id: PathClaim,
) -> Result<HttpResponse, Problem> {
    let claim = app.claims.find(caller.tenant, id.0, Deadline::of(&request)).await?;
    Ok(json(&mut HttpResponse::Ok(), &Summary::from(claim.ok_or(Problem::ClaimNotFound)?)))
}

#[derive(Serialize)]
struct Claims {
    claims: Vec<Summary>,
}

/// `GET /claims`: the claims that hold jobs, in the order of ids.
pub async fn list(request: HttpRequest, app: web::Data<App>, caller: Caller) -> Result<HttpResponse, Problem> {
    let given = parameters(&request, ["limit", CURSOR])?;
    let [limit, cursor] = &given;
    let limit = limit.limit()?;
    let from = cursor.cursor(|bytes| Uuid::from_slice(&bytes).ok().map(ClaimId))?;
    let (claims, next) = app.claims.list(caller.tenant, from, limit, Deadline::of(&request)).await?;
    let link = next.map(|id| next_page(&app.public(CLAIMS), &given, id.0));
    Ok(json(&mut linked(link), &Claims { claims: claims.into_iter().map(Summary::from).collect() }))
}
