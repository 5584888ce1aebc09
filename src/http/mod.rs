//! The HTTP API. This file has all routes.
//!
//! Owns the routes, the extractors, the problem documents and the observation of requests (logs and metrics). Only this
//! module and `server` use the framework. A handler extracts, calls one function of the domain and maps its result. It
//! has no business rules.

mod admission;
mod authorization;
mod body;
mod body_memory;
mod conditions;
mod connection;
mod extractors;
mod first_sent;
mod handlers;
mod keyed;
mod lines;
mod observation;
mod outgoing;
mod parameters;
mod problem;
mod quotas;
mod readiness;
mod refused_lines;

pub use admission::Admission;
pub use body_memory::BodyMemory;
pub use connection::{Connection, ConnectionDeadlines};
pub use handlers::service::MetricsSources;
pub use keyed::first_status;
pub use observation::observe;
pub use outgoing::PIECE_BYTES;
pub use problem::{Problem, Unauthenticated};
pub use readiness::Readiness;
pub use refused_lines::RefusedLines;

use std::sync::Arc;
use std::time::Duration;

use actix_web::web::{self, ServiceConfig};
use actix_web::{Resource, guard, middleware::from_fn};

use crate::access::{Caller, Quota, Scope, TokenDigest, Verifier};
use crate::changes::Changes;
use crate::database::SharedPool;
use crate::idempotency::{Replays, Route, ScopedKey};
use crate::ids::TenantId;
use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::offload::Offload;
use authorization::authorize;
use handlers::{batches, docs, jobs, keys, lists, service, submissions};
use problem::ProblemDocument;

/// The state that all handlers share.
pub struct App {
    pub intake: Intake,
    pub changes: Changes,
    pub replays: Arc<Replays>,
    /// For requests that only read.
    pub reads: SharedPool,
    pub verifier: Verifier,
    pub quotas: Quotas,
    pub readiness: Readiness,
    pub metrics: Metrics,
    pub limits: Limits,
    /// The limit on requests in flight.
    pub admission: Admission,
    /// The memory limit for request and answer bodies.
    pub body_memory: BodyMemory,
    /// Parses large texts outside of the HTTP threads.
    pub offload: Arc<Offload>,
    pub refused_lines: RefusedLines,
    /// How long an idempotency key lives, unless its tenant has its own setting.
    pub time_to_live: Duration,
    /// The prefix of every URL in an answer. If it is empty, URLs are relative.
    pub public_url: String,
}

impl App {
    /// How long the caller's new idempotency keys live.
    pub fn time_to_live(&self, caller: &Caller) -> Duration {
        caller.key_time_to_live.unwrap_or(self.time_to_live)
    }

    /// The public URL of a path.
    pub fn public(&self, path: &str) -> String {
        format!("{}{path}", self.public_url)
    }
}

/// The quotas of a replica.
pub struct Quotas {
    /// Requests per token.
    pub requests: Quota<TokenDigest>,
    /// New jobs per tenant.
    pub creations: Quota<TenantId>,
    /// Requests per idempotency key.
    pub replays: Quota<ScopedKey>,
}

/// The limits of one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub body_bytes: usize,
    /// The limit on all bodies of the request's tenant together.
    pub body_bytes_per_tenant: usize,
    pub body_deadline: Duration,
    pub request_deadline: Duration,
}

/// The path templates. Logs and metrics use them as the name of a route.
const ROOT: &str = "/";
const HEALTHZ: &str = "/healthz";
const READYZ: &str = "/readyz";
const OPENAPI: &str = "/openapi.yaml";
const DOCS: &str = "/docs";
const DOCS_STYLE: &str = "/docs/page.css";
const DOCS_SCRIPT: &str = "/docs/page.js";
const SWAGGER_UI_STYLE: &str = "/docs/swagger-ui.css";
const SWAGGER_UI_SCRIPT: &str = "/docs/swagger-ui-bundle.js";
const JOBS: &str = "/jobs";
const BATCH: &str = "/jobs/batch";
const JOB: &str = "/jobs/{id}";
const CANCEL: &str = "/jobs/{id}/cancel";
const QUEUES: &str = "/queues";
const KEY: &str = "/idempotency-keys/{key}";
const METRICS: &str = "/metrics";
const TEMPLATES: [&str; 16] = [
    ROOT,
    HEALTHZ,
    READYZ,
    OPENAPI,
    DOCS,
    DOCS_STYLE,
    DOCS_SCRIPT,
    SWAGGER_UI_STYLE,
    SWAGGER_UI_SCRIPT,
    JOBS,
    BATCH,
    JOB,
    CANCEL,
    QUEUES,
    KEY,
    METRICS,
];
/// Routes that machines call every few seconds. A successful call is logged at debug level only.
const PROBES: [&str; 3] = [HEALTHZ, READYZ, METRICS];

/// The routes that take an idempotency key.
const SUBMIT: Route = Route("POST /jobs");
const CHANGE: Route = Route("PATCH /jobs/{id}");
pub const KEYED_ROUTES: [Route; 2] = [SUBMIT, CHANGE];
/// The routes that refuse a request without an idempotency key.
const KEY_REQUIRED: [Route; 1] = [SUBMIT];

pub fn routes(config: &mut ServiceConfig) {
    let may = |scope: Scope| from_fn(move |request, next| authorize(scope, request, next));
    // The framework tries the routes in this order, so the busiest one is first.
    config
        .service(
            resource(JOBS, "GET, HEAD, POST")
                .route(web::post().to(submissions::submit).wrap(may(Scope::Submit)))
                .route(read().to(lists::jobs).wrap(may(Scope::Read))),
        )
        .service(resource(ROOT, "GET, HEAD").route(read().to(service::about)))
        .service(resource(HEALTHZ, "GET, HEAD").route(read().to(service::healthz)))
        .service(resource(READYZ, "GET, HEAD").route(read().to(service::readyz)))
        .service(resource(OPENAPI, "GET, HEAD").route(read().to(service::openapi)))
        .service(resource(DOCS, "GET, HEAD").route(read().to(docs::page)))
        .service(resource(DOCS_STYLE, "GET, HEAD").route(read().to(docs::file)))
        .service(resource(DOCS_SCRIPT, "GET, HEAD").route(read().to(docs::file)))
        .service(resource(SWAGGER_UI_STYLE, "GET, HEAD").route(read().to(docs::file)))
        .service(resource(SWAGGER_UI_SCRIPT, "GET, HEAD").route(read().to(docs::file)))
        .service(resource(BATCH, "POST").route(web::post().to(batches::submit).wrap(may(Scope::Submit))))
        .service(
            resource(JOB, "DELETE, GET, HEAD, PATCH, PUT")
                .route(read().to(jobs::show).wrap(may(Scope::Read)))
                .route(web::put().to(submissions::put).wrap(may(Scope::Submit)))
                .route(web::patch().to(jobs::change).wrap(may(Scope::Manage)))
                .route(web::delete().to(jobs::delete).wrap(may(Scope::Manage))),
        )
        .service(resource(CANCEL, "POST").route(web::post().to(jobs::cancel).wrap(may(Scope::Manage))))
        .service(resource(QUEUES, "GET, HEAD").route(read().to(lists::queues).wrap(may(Scope::Read))))
        .service(resource(KEY, "GET, HEAD").route(read().to(keys::show).wrap(may(Scope::Read))))
        .default_service(web::to(|| async { Err::<String, _>(Problem::RouteNotFound) }));
}

/// The routes for operators, on the address `metrics.bind`. The probes are also here, because they must work when the
/// API is at its connection limit.
pub fn operations_routes(config: &mut ServiceConfig) {
    config
        .service(resource(HEALTHZ, "GET, HEAD").route(read().to(service::healthz)))
        .service(resource(READYZ, "GET, HEAD").route(read().to(service::readyz)))
        .service(resource(METRICS, "GET, HEAD").route(read().to(service::metrics)))
        .default_service(web::to(|| async { Err::<String, _>(Problem::RouteNotFound) }));
}

/// A route that answers methods outside of `allow` with 405.
fn resource(template: &'static str, allow: &'static str) -> Resource {
    debug_assert!(TEMPLATES.contains(&template), "logs and metrics know every route by its template");
    let refuse = move || async move { Err::<String, _>(Problem::MethodNotAllowed { allow }) };
    web::resource(template).default_service(web::to(refuse))
}

/// GET and HEAD. The framework sends the answer to HEAD without its body (RFC 9110, section 9.3.2).
fn read() -> actix_web::Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{METRICS, TEMPLATES};

    #[test]
    fn the_openapi_document_has_exactly_the_public_paths() {
        let contract = include_str!("../../api-design/jobs-api.yaml");
        let contract: serde_json::Value = yaml_serde::from_str(contract).unwrap();
        let documented: BTreeSet<&str> = contract["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        // `/metrics` is for operators, at another address. The files below `/docs/` are part of the page.
        let for_clients = |template: &&str| *template != METRICS && !template.starts_with("/docs/");
        let ours: BTreeSet<&str> = TEMPLATES.into_iter().filter(for_clients).collect();
        assert_eq!(documented, ours);
    }
}
