//! HTTP: every path on one screen.
//!
//! Owns the routes, the extractors, the problem documents and what is noted of a request. Only this module and `server` know
//! the framework. A handler extracts, calls one function of the domain and maps its result; it holds no rule.

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

/// All that the handlers share.
pub struct App {
    pub intake: Intake,
    pub changes: Changes,
    pub replays: Arc<Replays>,
    /// For everything that only reads.
    pub reads: SharedPool,
    pub verifier: Verifier,
    pub quotas: Quotas,
    pub readiness: Readiness,
    pub metrics: Metrics,
    pub limits: Limits,
    /// A place for each request that may be worked on at once.
    pub admission: Admission,
    /// Memory for the bodies of requests and answers.
    pub body_memory: BodyMemory,
    /// Where large texts are worked on.
    pub offload: Arc<Offload>,
    pub refused_lines: RefusedLines,
    /// How long a key lives, unless its tenant has a time of its own.
    pub time_to_live: Duration,
    /// What every URL of the service in an answer begins with; empty: they are relative.
    pub public_url: String,
}

impl App {
    /// How long a key of the caller's lives.
    pub fn time_to_live(&self, caller: &Caller) -> Duration {
        caller.key_time_to_live.unwrap_or(self.time_to_live)
    }

    /// A path of the service as clients outside reach it.
    pub fn public(&self, path: &str) -> String {
        format!("{}{path}", self.public_url)
    }
}

/// How much each may have in a while.
pub struct Quotas {
    /// Requests of a token.
    pub requests: Quota<TokenDigest>,
    /// Jobs of a tenant.
    pub creations: Quota<TenantId>,
    /// Requests that bear one key.
    pub replays: Quota<ScopedKey>,
}

/// What one request may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub body_bytes: usize,
    /// What all bodies of its tenant may take together.
    pub body_bytes_per_tenant: usize,
    pub body_deadline: Duration,
    pub request_deadline: Duration,
}

/// The path templates, which are also what logs and metrics call a route.
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
/// What machines ask every few seconds.
const PROBES: [&str; 3] = [HEALTHZ, READYZ, METRICS];

/// The routes that take a key.
const SUBMIT: Route = Route("POST /jobs");
const CHANGE: Route = Route("PATCH /jobs/{id}");
pub const KEYED_ROUTES: [Route; 2] = [SUBMIT, CHANGE];
/// Those of them that refuse a request without one.
const KEY_REQUIRED: [Route; 1] = [SUBMIT];

pub fn routes(config: &mut ServiceConfig) {
    let may = |scope: Scope| from_fn(move |request, next| authorize(scope, request, next));
    // Tried in this order, so the busiest comes first.
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

/// Beside the API, on an address of its own: what operators ask. The probes are here, too, for the day when every
/// connection to the API is taken.
pub fn operations_routes(config: &mut ServiceConfig) {
    config
        .service(resource(HEALTHZ, "GET, HEAD").route(read().to(service::healthz)))
        .service(resource(READYZ, "GET, HEAD").route(read().to(service::readyz)))
        .service(resource(METRICS, "GET, HEAD").route(read().to(service::metrics)))
        .default_service(web::to(|| async { Err::<String, _>(Problem::RouteNotFound) }));
}

/// A path that answers other methods than those in `allow` with 405.
fn resource(template: &'static str, allow: &'static str) -> Resource {
    debug_assert!(TEMPLATES.contains(&template), "logs and metrics know every route by its template");
    let refuse = move || async move { Err::<String, _>(Problem::MethodNotAllowed { allow }) };
    web::resource(template).default_service(web::to(refuse))
}

/// GET, and HEAD with it: the same answer, which the framework then sends without its body (RFC 9110, section 9.3.2).
fn read() -> actix_web::Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{METRICS, TEMPLATES};

    #[test]
    fn the_contract_has_every_path_and_no_other() {
        let contract = include_str!("../../api-design/jobs-api.yaml");
        let contract: serde_json::Value = yaml_serde::from_str(contract).unwrap();
        let documented: BTreeSet<&str> = contract["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        // Metrics are for the operator, at another address; the files below `/docs/` for the page alone.
        let for_clients = |template: &&str| *template != METRICS && !template.starts_with("/docs/");
        let ours: BTreeSet<&str> = TEMPLATES.into_iter().filter(for_clients).collect();
        assert_eq!(documented, ours);
    }
}
