//! `POST /jobs/batch`: many submissions in one request. Each item is handled like a `POST /jobs`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_web::http::StatusCode;
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::value::RawValue;

use super::submissions::submit_within_quota;
use crate::access::Caller;
use crate::http::authorization::reserve_requests;
use crate::http::body::{Incoming, JsonLines, MediaType};
use crate::http::body_memory::AnswerBytes;
use crate::http::extractors::{Deadline, NoParameters};
use crate::http::first_sent::FirstSent;
use crate::http::keyed::{self, Handled, first_status, reserve_key};
use crate::http::lines::{Line, Lines};
use crate::http::routes::{JOBS, SUBMIT};
use crate::http::{App, Problem, ProblemDocument};
use crate::idempotency::{Fingerprint, InvalidKey, Key, KeyedError, Outcome, ScopedKey};
use crate::ids::{RequestId, TenantId};
use crate::intake::Submission;
use crate::jobs::NewJob;
use crate::json::{Document, Kind, Value};
use crate::metrics::KeyedOutcome;
use crate::telemetry::RequestContext;

/// The most items of a batch. More would take longer than a client should wait.
const ITEMS_MAX: usize = 1000;

/// The most bytes of a line around its job: the idempotency key, with every character escaped, and the member names.
const ENVELOPE_BYTES_MAX: usize = 4096;

/// The most bytes of an item's answer. An answer with a job is always smaller.
const ANSWER_BYTES_MAX: usize = 2048;

/// The most items of a batch whose answer lists the differences to the first request with their key. Each of them reads
/// that request's job, which may be large.
const COMPARED_MAX: usize = 10;

/// How much of a batch is parsed at a time.
const READ_AT_ONCE_BYTES: usize = 64 * 1024;

/// One line of a batch.
enum Item {
    Submission(Arc<Submission>),
    Refused(Problem),
}

/// The answer to one item, which is one line.
#[derive(Default, Serialize)]
struct ItemAnswer<'a> {
    /// The index of the item, from 0.
    item: usize,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
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

/// `POST /jobs/batch`. An invalid item does not affect the others. The batch is safe to retry, because each item is.
pub async fn submit(
    request: HttpRequest,
    app: web::Data<App>,
    request_id: RequestId,
    caller: Caller,
    _: NoParameters,
    first_sent: FirstSent,
    body: Incoming<JsonLines>,
) -> Result<HttpResponse, Problem> {
    let time_to_live = app.time_to_live(&caller);
    let reader = ItemReader {
        tenant: caller.tenant,
        request_id: request_id.clone(),
        body_bytes: app.limits.body_bytes,
        time_to_live,
    };
    let items = read(&request, &app, &reader, body).await?;
    let answer_bytes = app.body_memory.hold(caller.tenant, items.len() * ANSWER_BYTES_MAX)?;
    request.extensions_mut().insert(AnswerBytes(answer_bytes));
    let is_too_old = first_sent.limit_deadline(&request, time_to_live).is_err();
    let batch = Batch {
        request: &request,
        app: &app,
        caller: &caller,
        request_id: &request_id,
        is_too_old,
        compared: Cell::new(0),
        tally: RefCell::default(),
    };
    let (one_by_one, in_batches): (Vec<_>, Vec<_>) =
        by_key(items).into_iter().partition(|items| asks_to_be_unique(items));
    let share = app.intake.share();
    let carry_out = |groups, at_once| stream::iter(groups).map(|items| batch.in_turn(items)).buffer_unordered(at_once);
    let mut lines: Vec<(usize, Vec<u8>)> =
        stream::select(carry_out(in_batches, share.in_batches), carry_out(one_by_one, share.one_by_one))
            .flat_map(stream::iter)
            .collect()
            .await;
    batch.tally.into_inner().record();
    lines.sort_unstable_by_key(|(number, _)| *number);
    let lines: Vec<Vec<u8>> = lines.into_iter().map(|(_, line)| line).collect();
    let text = lines.concat();
    Ok(HttpResponse::Ok().content_type(JsonLines::NAME).body(text))
}

/// Reads the items as they arrive, some at a time, so that the whole body is never in memory.
async fn read(
    request: &HttpRequest,
    app: &App,
    reader: &ItemReader,
    body: Incoming<JsonLines>,
) -> Result<Vec<Item>, Problem> {
    let mut lines = Lines::of(body, reader.body_bytes + ENVELOPE_BYTES_MAX);
    let mut items = Vec::new();
    loop {
        let (some, bytes) = lines.next(READ_AT_ONCE_BYTES).await?;
        if items.len() + some.len() > ITEMS_MAX || (items.is_empty() && some.is_empty()) {
            return Err(Problem::InvalidBatch);
        }
        if some.is_empty() {
            return Ok(items);
        }
        let (tenant, reader) = (reader.tenant, reader.clone());
        let read = move || -> Vec<Item> {
            some.into_iter().map(|line| reader.read(line).unwrap_or_else(Item::Refused)).collect()
        };
        let some = app.offload.run(tenant, bytes, Deadline::of(request), read).await?;
        // A valid item is charged later, as a submission. An invalid one is charged as a request, because it is
        // answered.
        reserve_requests(app, request, some.iter().filter(|item| matches!(item, Item::Refused(_))).count())?;
        items.extend(some);
    }
}

/// What is needed to parse a line.
#[derive(Clone)]
struct ItemReader {
    tenant: TenantId,
    request_id: RequestId,
    body_bytes: usize,
    time_to_live: Duration,
}

impl ItemReader {
    fn read(&self, line: Line) -> Result<Item, Problem> {
        let too_large = Problem::BodyTooLarge { limit_bytes: self.body_bytes };
        let Line::Text(line) = line else { return Err(too_large) };
        let document = Document::parse_envelope(&line)?;
        let (key, job) = envelope(document.root())?;
        if job.text().len() > self.body_bytes {
            return Err(too_large);
        }
        let key = ScopedKey { tenant: self.tenant, route: SUBMIT, key };
        let (fingerprint, job) = (Fingerprint::of(JOBS, NewJob::canonical(job)), NewJob::parse(job)?);
        let submission = Submission::mint(key, fingerprint, job, self.request_id.clone(), self.time_to_live);
        Ok(Item::Submission(Arc::new(submission)))
    }
}

/// Reads `{"idempotency_key": …, "job": …}`.
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
    let key = key.ok_or(InvalidKey::MissingInItem)?;
    Ok((key.as_str().ok_or(Problem::InvalidItem)?.parse()?, job))
}

/// Groups the items by key. The items of a group are processed in order, so the first one is the first attempt.
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

/// What the items of a batch share.
struct Batch<'a> {
    request: &'a HttpRequest,
    app: &'a App,
    caller: &'a Caller,
    request_id: &'a RequestId,
    /// The result of [`FirstSent::limit_deadline`], for all items.
    is_too_old: bool,
    /// How many items were compared with the first request of their key.
    compared: Cell<usize>,
    tally: RefCell<Tally>,
}

/// The number of items by outcome and by problem code. The log line of the request shows it. A line for each item would
/// let a small request write a large log.
#[derive(Default)]
struct Tally {
    outcomes: BTreeMap<&'static str, usize>,
    codes: BTreeMap<&'static str, usize>,
}

/// The outcome of an item, and how to answer it.
struct Done {
    status: StatusCode,
    replayed: bool,
    outcome: Arc<Outcome>,
    /// The stored answer.
    job: Box<RawValue>,
}

impl Done {
    fn of(handled: Handled, tenant: TenantId) -> Result<Self, Problem> {
        let (status, replayed, outcome) = match handled {
            Handled::First(outcome) => (first_status(outcome.answer.effect), false, outcome),
            Handled::Replayed(outcome) => (StatusCode::OK, true, outcome),
            Handled::Refused(problem) => return Err(problem),
            Handled::Failed(error) => return Err(error.into()),
        };
        let job = serde_json::from_slice(&outcome.answer.body).map_err(|error| {
            // Names the row without its key, which no log shows.
            let words = format!(
                "the answer is not JSON in the row of hapax.idempotency_keys with tenant_id {tenant}, job_id {} and \
                 request_id {}",
                outcome.answer.job_id,
                outcome.request_id.as_str(),
            );
            Problem::Internal(anyhow::Error::new(error).context(words))
        })?;
        Ok(Self { status, replayed, outcome, job })
    }
}

impl Batch<'_> {
    async fn in_turn(&self, items: Vec<(usize, Item)>) -> Vec<(usize, Vec<u8>)> {
        let mut lines = Vec::new();
        for (number, item) in items {
            let (digest, handled) = match item {
                Item::Refused(problem) => (None, Handled::Refused(problem)),
                Item::Submission(submission) => {
                    (Some(submission.keyed.key.log_digest()), self.carry_out(&submission).await)
                }
            };
            let (keyed_outcome, done) = (handled.outcome(), Done::of(handled, self.caller.tenant));
            self.record(number, digest, keyed_outcome, &done);
            lines.push((number, self.line(number, done)));
        }
        lines
    }

    async fn carry_out(&self, submission: &Arc<Submission>) -> Handled {
        let deadline = Deadline::of(self.request);
        let mut handled = match reserve_key(self.app, self.caller, &submission.keyed.key, self.request) {
            Ok(()) if self.is_too_old => {
                Handled::only_replayed(self.app.intake.find_outcome(submission, deadline).await)
            }
            Ok(()) => submit_within_quota(self.request, self.app, self.caller, submission).await,
            Err(exceeded) => Handled::Refused(exceeded),
        };
        if let Handled::Failed(reused @ KeyedError::KeyReused { .. }) = &mut handled
            && self.compared.replace(self.compared.get() + 1) < COMPARED_MAX
        {
            self.app.intake.compare(submission, reused, deadline).await;
        }
        handled
    }

    /// Counts an item as a `POST /jobs`, and logs it.
    fn record(&self, item: usize, digest: Option<String>, keyed_outcome: KeyedOutcome, done: &Result<Done, Problem>) {
        self.app.metrics.count_outcome(SUBMIT.0, keyed_outcome);
        let mut tally = self.tally.borrow_mut();
        *tally.outcomes.entry(keyed_outcome.name()).or_default() += 1;
        if let Err(problem) = done {
            problem.count(&self.app.metrics);
            let times = tally.codes.entry(problem.code()).or_default();
            if *times == 0 {
                problem.log();
            }
            *times += 1;
        }
        let outcome = done.as_ref().ok().map(|done| &done.outcome);
        let first = done.as_ref().ok().filter(|done| done.replayed).map(|done| done.outcome.request_id.as_str());
        tracing::debug!(
            item,
            code = done.as_ref().err().map(Problem::code),
            idempotency.outcome = keyed_outcome.name(),
            idempotency.key_digest = digest,
            job_id = outcome.map(|outcome| display(outcome.answer.job_id)),
            first.request_id = first,
            "item answered"
        );
    }

    fn line(&self, item: usize, done: Result<Done, Problem>) -> Vec<u8> {
        match done {
            Ok(Done { status, replayed, outcome, job }) => text_line(&ItemAnswer {
                item,
                status: status.as_u16(),
                location: keyed::location(self.app, &outcome.answer),
                idempotent_replayed: Some(replayed),
                idempotency_expires: Some(httpdate::fmt_http_date(SystemTime::from(outcome.expires_at))),
                deduplicated_by: keyed::deduplicated_by(&outcome.answer),
                job: Some(&job),
                ..ItemAnswer::default()
            }),
            Err(problem) => problem_line(&mut ItemAnswer {
                item,
                status: problem.status().as_u16(),
                retry_after: problem.retry_after(),
                problem: Some(problem.document(self.request_id, &self.app.public_url)),
                ..ItemAnswer::default()
            }),
        }
    }
}

fn text_line(answer: &ItemAnswer<'_>) -> Vec<u8> {
    let mut text = serde_json::to_vec(answer).expect("a line's members all have a JSON form");
    text.push(b'\n');
    text
}

/// Omits pointers until the line fits into the memory that is reserved for it.
fn problem_line(answer: &mut ItemAnswer<'_>) -> Vec<u8> {
    loop {
        let text = text_line(answer);
        let pointers = answer.problem.as_mut().map(|problem| &mut problem.pointers);
        match pointers.filter(|pointers| text.len() > ANSWER_BYTES_MAX && !pointers.is_empty()) {
            // Removes half of them at a time. Most lines are short, and a few attempts are cheap.
            Some(pointers) => pointers.truncate(pointers.len() / 2),
            None => return text,
        }
    }
}

impl Tally {
    fn record(&self) {
        let context = RequestContext::current();
        for (name, counts) in [("items.outcomes", &self.outcomes), ("items.codes", &self.codes)] {
            let counts: Vec<String> = counts.iter().map(|(what, times)| format!("{what}={times}")).collect();
            if !counts.is_empty() {
                context.record(name, &counts.join(" "));
            }
        }
    }
}
