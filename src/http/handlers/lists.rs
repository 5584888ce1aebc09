//! Lists of jobs and queues, one page at a time.

use actix_web::http::header::LINK;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use serde::Serialize;
use uuid::Uuid;

use crate::access::Caller;
use crate::http::extractors::Deadline;
use crate::http::outgoing::json;
use crate::http::parameters::{CURSOR, next_page, parameters};
use crate::http::routes::{JOBS, QUEUES};
use crate::http::{App, Problem};
use crate::ids::JobId;
use crate::jobs::{self, Depth, Depths, Filter, Job, Page, State};

#[derive(Serialize)]
struct Jobs {
    jobs: Vec<Job>,
}

/// `GET /jobs`: the tenant's jobs, ordered by id.
pub async fn jobs(request: HttpRequest, app: web::Data<App>, caller: Caller) -> Result<HttpResponse, Problem> {
    let names = ["state", "queue", "type", "created_after", "created_before", "limit", CURSOR];
    let given = parameters(&request, names)?;
    let [state, queue, kind, created_after, created_before, limit, cursor] = &given;
    let filter = Filter {
        state: state.read("expected queued, running, succeeded, failed or cancelled", State::parse)?,
        queue: queue.name()?,
        kind: kind.name()?,
        created_after: created_after.moment()?,
        created_before: created_before.moment()?,
    };
    let limit = limit.limit()?;
    let from = cursor.cursor(|bytes| Uuid::from_slice(&bytes).ok().map(JobId))?;
    let read = async |connection: &mut _| Page::read(connection, caller.tenant, &filter, from, limit).await;
    let page = app.reads.read("list_jobs", caller.tenant, Deadline::of(&request), read).await?;
    let link = page.next.map(|id| next_page(&app.public(JOBS), &given, id.0));
    Ok(json(&mut linked(link), &Jobs { jobs: page.jobs }))
}

#[derive(Serialize)]
struct Queues {
    queues: Vec<Depth>,
}

/// `GET /queues`: the tenant's queues, with the number of waiting jobs and the age of the oldest.
pub async fn queues(request: HttpRequest, app: web::Data<App>, caller: Caller) -> Result<HttpResponse, Problem> {
    let given = parameters(&request, ["limit", CURSOR])?;
    let [limit, cursor] = &given;
    let limit = limit.limit()?;
    let from = cursor.cursor(|bytes| String::from_utf8(bytes).ok().filter(|name| jobs::is_name(name)))?;
    let read = async |connection: &mut _| Depths::read(connection, caller.tenant, from.as_deref(), limit).await;
    let page = app.reads.read("queue_depths", caller.tenant, Deadline::of(&request), read).await?;
    let link = page.next.map(|name| next_page(&app.public(QUEUES), &given, name));
    Ok(json(&mut linked(link), &Queues { queues: page.queues }))
}

/// A 200 answer, with a `Link` if there is a next page.
pub fn linked(next: Option<String>) -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    if let Some(next) = next {
        response.insert_header((LINK, next));
    }
    response
}
