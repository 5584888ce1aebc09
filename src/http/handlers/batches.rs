//! `POST /jobs/batch`: many submissions in one request, each of which is a `POST /jobs`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::SystemTime;

use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::value::RawValue;

use super::submissions::submit_within_quota;
use crate::access::Caller;
use crate::http::body::{Body, JsonLines, MediaType};
use crate::http::extractors::NoParameters;
use crate::http::keyed::{self, charge_key};
use crate::http::{App, JOBS, Problem, ProblemDocument, SUBMIT};
use crate::idempotency::{Fingerprint, InvalidKey, Key, KeyedError, Outcome, Performed, ScopedKey};
use crate::ids::RequestId;
use crate::intake::Submission;
use crate::jobs::NewJob;
use crate::json::{Document, Kind, Value};
use crate::metrics::KeyedOutcome;

/// More would hold a connection for longer than a client should wait for all of them.
const ITEMS_MAX: usize = 1000;

/// What is asked for in one line.
enum Item {
    Submission(Box<Submission>),
    Refused(Problem),
}

/// What one item is answered, in a line.
#[derive(Serialize)]
struct Line<'a> {
    /// The number of the item, from 0.
    item: usize,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotent_replayed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deduplicated_by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<ProblemDocument>,
}

/// One bad item costs the others nothing, and the whole may be sent again because each of them may be.
pub async fn submit(
    request: HttpRequest,
    app: web::Data<App>,
    request_id: RequestId,
    caller: Caller,
    _: NoParameters,
    body: Body<JsonLines>,
) -> Result<HttpResponse, Problem> {
    let items = read(&caller, &request_id, app.limits.body_bytes, body).await?;
    let count = items.len();
    let mut lines: Vec<(usize, Vec<u8>)> = stream::iter(by_key(items))
        .map(|items| in_turn(&request, &app, &request_id, items))
        .buffer_unordered(app.intake.share())
        .flat_map(stream::iter)
        .collect()
        .await;
    lines.sort_unstable_by_key(|(number, _)| *number);
    debug_assert_eq!(lines.len(), count, "each item has its line");
    let text: Vec<u8> = lines.into_iter().flat_map(|(_, line)| line).collect();
    Ok(HttpResponse::Ok().content_type(JsonLines::NAME).body(text))
}

/// Takes the body by value: what it says is copied from it, and it may be large.
async fn read(
    caller: &Caller,
    request_id: &RequestId,
    line_bytes: usize,
    body: Body<JsonLines>,
) -> Result<Vec<Item>, Problem> {
    let mut items = Vec::new();
    for line in body.bytes.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if items.len() == ITEMS_MAX {
            return Err(Problem::InvalidBatch);
        }
        items.push(read_item(caller, request_id, line_bytes, line).unwrap_or_else(Item::Refused));
        // Others are served on this thread.
        tokio::task::yield_now().await;
    }
    if items.is_empty() { Err(Problem::InvalidBatch) } else { Ok(items) }
}

fn read_item(caller: &Caller, request_id: &RequestId, line_bytes: usize, line: &[u8]) -> Result<Item, Problem> {
    if line.len() > line_bytes {
        return Err(Problem::BodyTooLarge { limit_bytes: line_bytes });
    }
    let document = Document::parse(line)?;
    let (key, job) = envelope(document.root())?;
    let key = ScopedKey { tenant: caller.tenant, route: SUBMIT, key };
    let submission = Submission::mint(key, Fingerprint::of(JOBS, job), NewJob::parse(job)?, request_id.clone());
    Ok(Item::Submission(Box::new(submission)))
}

/// `{"idempotency_key": …, "job": …}`
fn envelope<'d, 'a>(item: Value<'d, 'a>) -> Result<(Key, Value<'d, 'a>), Problem> {
    let (mut key, mut job) = (None, None);
    for (name, value) in item.members() {
        let slot = match name.as_ref() {
            "idempotency_key" => &mut key,
            "job" => &mut job,
            _ => return Err(Problem::InvalidItem),
        };
        if slot.replace(value).is_some() {
            return Err(Problem::InvalidItem);
        }
    }
    let job = job.filter(|_| item.kind() == Kind::Object).ok_or(Problem::InvalidItem)?;
    let key = key.ok_or(InvalidKey::Missing)?;
    Ok((Key::parse(&key.as_str().ok_or(Problem::InvalidItem)?)?, job))
}

/// Items of one key stay together, so that the first of them is the first that is tried.
fn by_key(items: Vec<Item>) -> Vec<Vec<(usize, Item)>> {
    let mut groups: Vec<Vec<(usize, Item)>> = Vec::new();
    let mut group_of: HashMap<Key, usize> = HashMap::new();
    for (number, item) in items.into_iter().enumerate() {
        let group = match &item {
            Item::Submission(submission) => *group_of.entry(submission.keyed.key.key.clone()).or_insert(groups.len()),
            Item::Refused(_) => groups.len(),
        };
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push((number, item));
    }
    groups
}

async fn in_turn(
    request: &HttpRequest,
    app: &App,
    request_id: &RequestId,
    items: Vec<(usize, Item)>,
) -> Vec<(usize, Vec<u8>)> {
    let mut lines = Vec::new();
    for (number, item) in items {
        let line = match item {
            Item::Submission(submission) => answer(request, app, request_id, number, &submission).await,
            Item::Refused(problem) => refuse(app, request_id, number, KeyedOutcome::Refused, &problem),
        };
        lines.push((number, line));
    }
    lines
}

async fn answer(
    request: &HttpRequest,
    app: &App,
    request_id: &RequestId,
    number: usize,
    submission: &Submission,
) -> Vec<u8> {
    let key = &submission.keyed.key;
    let submitted = match charge_key(app, key, request) {
        Ok(()) => submit_within_quota(request, app, submission).await,
        Err(exceeded) => Err(exceeded),
    };
    let submitted: Result<Performed<Infallible>, KeyedError> = match submitted {
        Ok(submitted) => submitted,
        Err(problem) => return refuse(app, request_id, number, KeyedOutcome::Refused, &problem),
    };
    let outcome = keyed::outcome(&submitted);
    let (status, replayed, stored) = match submitted {
        Ok(Performed::First(stored)) => (stored.answer.status, false, stored),
        Ok(Performed::Replayed(stored)) => (200, true, stored),
        Ok(Performed::Refused(never)) => match never {},
        Err(error) => return refuse(app, request_id, number, outcome, &error.into()),
    };
    app.metrics.count_outcome(SUBMIT.0, outcome);
    tracing::info!(
        item = number,
        status,
        idempotency.outcome = outcome.name(),
        idempotency.key_digest = key.log_digest(),
        job_id = %stored.answer.job_id,
        first.request_id = replayed.then_some(stored.request_id.as_str()),
        "item answered"
    );
    success(number, status, replayed, &stored)
}

fn success(number: usize, status: i16, replayed: bool, stored: &Outcome) -> Vec<u8> {
    write(&Line {
        item: number,
        status: status.unsigned_abs(),
        location: stored.answer.location.as_deref(),
        idempotent_replayed: Some(replayed),
        idempotency_expires: Some(httpdate::fmt_http_date(SystemTime::from(stored.expires_at))),
        deduplicated_by: keyed::deduplicated_by(&stored.answer),
        job: Some(serde_json::from_slice(&stored.answer.body).expect("what is stored is JSON")),
        retry_after: None,
        problem: None,
    })
}

fn refuse(app: &App, request_id: &RequestId, number: usize, outcome: KeyedOutcome, problem: &Problem) -> Vec<u8> {
    problem.report(&app.metrics);
    app.metrics.count_outcome(SUBMIT.0, outcome);
    let (status, code) = (problem.status().as_u16(), problem.code());
    tracing::info!(item = number, status, code, idempotency.outcome = outcome.name(), "item answered");
    write(&Line {
        item: number,
        status,
        location: None,
        idempotent_replayed: None,
        idempotency_expires: None,
        deduplicated_by: None,
        job: None,
        retry_after: problem.retry_after(),
        problem: Some(problem.document(request_id)),
    })
}

fn write(line: &Line<'_>) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).expect("a line's members all have a JSON form");
    text.push(b'\n');
    text
}
