//! `POST /jobs/batch`: many submissions in one request, each of which is a `POST /jobs`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
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

/// What a line may have around the job: a key, with every character escaped, and the members' names.
const ENVELOPE_BYTES_MAX: usize = 4096;

/// What is asked for in one line.
enum Item {
    Submission(Arc<Submission>),
    Refused(Problem),
}

/// What one item is answered, in a line.
#[derive(Default, Serialize)]
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
    let batch = Batch { request: &request, app: &app, request_id: &request_id };
    let (one_by_one, in_batches): (Vec<_>, Vec<_>) =
        by_key(items).into_iter().partition(|items| asks_to_be_unique(items));
    let share = app.intake.share();
    let carry_out = |groups, at_once| stream::iter(groups).map(|items| batch.in_turn(items)).buffer_unordered(at_once);
    let mut lines: Vec<(usize, Vec<u8>)> =
        stream::select(carry_out(in_batches, share.in_batches), carry_out(one_by_one, share.one_by_one))
            .flat_map(stream::iter)
            .collect()
            .await;
    lines.sort_unstable_by_key(|(number, _)| *number);
    let text: Vec<u8> = lines.into_iter().flat_map(|(_, line)| line).collect();
    Ok(HttpResponse::Ok().content_type(JsonLines::NAME).body(text))
}

/// Takes the body by value: what it says is copied from it, and it may be large.
async fn read(
    caller: &Caller,
    request_id: &RequestId,
    body_bytes: usize,
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
        items.push(read_item(caller, request_id, body_bytes, line).unwrap_or_else(Item::Refused));
        // Others are served on this thread.
        tokio::task::yield_now().await;
    }
    if items.is_empty() { Err(Problem::InvalidBatch) } else { Ok(items) }
}

fn read_item(caller: &Caller, request_id: &RequestId, body_bytes: usize, line: &[u8]) -> Result<Item, Problem> {
    let too_large = Problem::BodyTooLarge { limit_bytes: body_bytes };
    if line.len() > body_bytes + ENVELOPE_BYTES_MAX {
        return Err(too_large);
    }
    let document = Document::parse_envelope(line)?;
    let (key, job) = envelope(document.root())?;
    if job.text().len() > body_bytes {
        return Err(too_large);
    }
    let key = ScopedKey { tenant: caller.tenant, route: SUBMIT, key };
    let submission = Submission::mint(key, Fingerprint::of(JOBS, job), NewJob::parse(job)?, request_id.clone());
    Ok(Item::Submission(Arc::new(submission)))
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
    Ok((key.as_str().ok_or(Problem::InvalidItem)?.parse()?, job))
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

fn asks_to_be_unique(items: &[(usize, Item)]) -> bool {
    items.iter().any(|(_, item)| matches!(item, Item::Submission(submission) if submission.content.is_some()))
}

/// What the items of one batch have in common.
struct Batch<'a> {
    request: &'a HttpRequest,
    app: &'a App,
    request_id: &'a RequestId,
}

/// An item's outcome, as it is told this time.
struct Done {
    status: i16,
    replayed: bool,
    outcome: Arc<Outcome>,
}

impl Batch<'_> {
    async fn in_turn(&self, items: Vec<(usize, Item)>) -> Vec<(usize, Vec<u8>)> {
        let mut lines = Vec::new();
        for (number, item) in items {
            let (digest, noted, done) = match item {
                Item::Refused(problem) => (None, KeyedOutcome::Refused, Err(problem)),
                Item::Submission(submission) => {
                    let (noted, done) = self.carry_out(&submission).await;
                    (Some(submission.keyed.key.log_digest()), noted, done)
                }
            };
            self.note(number, digest, noted, &done);
            lines.push((number, self.line(number, done)));
        }
        lines
    }

    async fn carry_out(&self, submission: &Arc<Submission>) -> (KeyedOutcome, Result<Done, Problem>) {
        let submitted = match charge_key(self.app, &submission.keyed.key, self.request) {
            Ok(()) => submit_within_quota(self.request, self.app, submission).await,
            Err(exceeded) => Err(exceeded),
        };
        let submitted: Result<Performed<Infallible>, KeyedError> = match submitted {
            Ok(submitted) => submitted,
            Err(problem) => return (KeyedOutcome::Refused, Err(problem)),
        };
        let noted = keyed::outcome(&submitted);
        let done = match submitted {
            Ok(Performed::First(outcome)) => Ok(Done { status: outcome.answer.status, replayed: false, outcome }),
            Ok(Performed::Replayed(outcome)) => Ok(Done { status: 200, replayed: true, outcome }),
            Ok(Performed::Refused(never)) => match never {},
            Err(error) => Err(error.into()),
        };
        (noted, done)
    }

    /// An item is a request: it is counted as one, and has a line in the log.
    fn note(&self, item: usize, digest: Option<String>, noted: KeyedOutcome, done: &Result<Done, Problem>) {
        self.app.metrics.count_outcome(SUBMIT.0, noted);
        let (status, code) = match done {
            Ok(done) => (done.status.unsigned_abs(), None),
            Err(problem) => (problem.status().as_u16(), Some(problem.code())),
        };
        let outcome = done.as_ref().ok().map(|done| &done.outcome);
        let first = done.as_ref().ok().filter(|done| done.replayed).map(|done| done.outcome.request_id.as_str());
        tracing::info!(
            item,
            status,
            code,
            idempotency.outcome = noted.name(),
            idempotency.key_digest = digest,
            job_id = outcome.map(|outcome| display(outcome.answer.job_id)),
            first.request_id = first,
            "item answered"
        );
    }

    fn line(&self, item: usize, done: Result<Done, Problem>) -> Vec<u8> {
        let mut text = match done {
            Ok(Done { status, replayed, outcome }) => serde_json::to_vec(&Line {
                item,
                status: status.unsigned_abs(),
                location: outcome.answer.location.as_deref(),
                idempotent_replayed: Some(replayed),
                idempotency_expires: Some(httpdate::fmt_http_date(SystemTime::from(outcome.expires_at))),
                deduplicated_by: keyed::deduplicated_by(&outcome.answer),
                job: Some(serde_json::from_slice(&outcome.answer.body).expect("what is stored is JSON")),
                ..Line::default()
            }),
            Err(problem) => {
                problem.report(&self.app.metrics);
                serde_json::to_vec(&Line {
                    item,
                    status: problem.status().as_u16(),
                    retry_after: problem.retry_after(),
                    problem: Some(problem.document(self.request_id)),
                    ..Line::default()
                })
            }
        }
        .expect("a line's members all have a JSON form");
        text.push(b'\n');
        text
    }
}
