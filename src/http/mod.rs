//! HTTP: every path on one screen.
//!
//! Owns the routes, the extractors, the problem documents and the request's span. Only this module and `server` know
//! the framework. A handler extracts, calls one function of the domain and maps its result; it holds no rule.

mod authorization;
mod body;
mod extractors;
mod handlers;
mod observation;
mod problem;
mod readiness;

pub use handlers::service::Watched;
pub use observation::observe;
pub use problem::{Problem, Unauthenticated};
pub use readiness::Readiness;

use std::time::Duration;

use actix_web::web::{self, ServiceConfig};
use actix_web::{Resource, middleware::from_fn};
use tokio::sync::Semaphore;

use crate::access::{Scope, Verifier};
use crate::database::Lane;
use crate::idempotency::Route;
use crate::intake::Intake;
use crate::metrics::Metrics;
use authorization::authorize;
use handlers::{jobs, service};

/// All that the handlers share.
pub struct App {
    pub intake: Intake,
    /// For everything that only reads.
    pub reads: Lane,
    pub verifier: Verifier,
    pub readiness: Readiness,
    pub metrics: Metrics,
    pub limits: Limits,
    /// A place for each request that may be worked on at once.
    pub admission: Semaphore,
    /// How long a key lives.
    pub time_to_live: Duration,
}

/// What one request may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub body_bytes: usize,
    pub body_deadline: Duration,
    pub request_deadline: Duration,
}

/// The path templates, which are also what logs and metrics call a route.
const ROOT: &str = "/";
const HEALTHZ: &str = "/healthz";
const READYZ: &str = "/readyz";
const OPENAPI: &str = "/openapi.yaml";
const JOBS: &str = "/jobs";
const JOB: &str = "/jobs/{id}";
const TEMPLATES: [&str; 6] = [ROOT, HEALTHZ, READYZ, OPENAPI, JOBS, JOB];

/// The routes that take a key.
const SUBMIT: Route = Route("POST /jobs");
const KEYED_ROUTES: [Route; 1] = [SUBMIT];

pub fn routes(config: &mut ServiceConfig) {
    let may = |scope: Scope| from_fn(move |request, next| authorize(scope, request, next));
    config
        .service(resource(ROOT, "GET").route(web::get().to(service::about)))
        .service(resource(HEALTHZ, "GET").route(web::get().to(service::healthz)))
        .service(resource(READYZ, "GET").route(web::get().to(service::readyz)))
        .service(resource(OPENAPI, "GET").route(web::get().to(service::openapi)))
        .service(resource(JOBS, "POST").route(web::post().to(jobs::submit).wrap(may(Scope::Submit))))
        .service(resource(JOB, "GET").route(web::get().to(jobs::show).wrap(may(Scope::Read))))
        .default_service(web::to(|| async { Err::<String, _>(Problem::RouteNotFound) }));
}

/// Beside the API, on an address of its own.
pub fn metrics_routes(config: &mut ServiceConfig) {
    config.service(web::resource("/metrics").route(web::get().to(service::metrics)));
}

/// A path that answers other methods than those in `allow` with 405.
fn resource(template: &'static str, allow: &'static str) -> Resource {
    debug_assert!(TEMPLATES.contains(&template), "logs and metrics know every route by its template");
    let refuse = move || async move { Err::<String, _>(Problem::MethodNotAllowed { allow }) };
    web::resource(template).default_service(web::to(refuse))
}
