//! All routes of both HTTP servers, in one table.
//!
//! The rest of this file derives from the table what else must know the routes: the framework's configuration, the
//! check of scopes, `Allow`, the names of routes in logs and metrics, and the list of routes with an idempotency key.

use actix_web::dev::ServiceRequest;
use actix_web::http::Method;
use actix_web::middleware::from_fn;
use actix_web::web::{self, ServiceConfig};
use actix_web::{Route, guard};

use super::Problem;
use super::authorization::authorize;
use super::handlers::{batches, claims, docs, jobs, keys, lists, service, submissions};
use crate::access::Scope::{self, Manage, Read, Submit, Work};
use crate::idempotency;

// Paths that also occur in answers.
pub const OPENAPI: &str = "/openapi.yaml";
pub const DOCS: &str = "/docs";
pub const DOCS_STYLE: &str = "/docs/page.css";
pub const DOCS_SCRIPT: &str = "/docs/page.js";
pub const SWAGGER_UI_STYLE: &str = "/docs/swagger-ui.css";
pub const SWAGGER_UI_SCRIPT: &str = "/docs/swagger-ui-bundle.js";
pub const JOBS: &str = "/jobs";
pub const QUEUES: &str = "/queues";
pub const CLAIMS: &str = "/claims";
/// The `type` of a problem is this and its code.
pub const PROBLEMS: &str = "/problems";

// The names of the routes that take an idempotency key. They are stored with the keys, so they never change.
pub const SUBMIT: idempotency::Route = idempotency::Route("POST /jobs");
pub const CHANGE: idempotency::Route = idempotency::Route("PATCH /jobs/{id}");
pub const RETRY: idempotency::Route = idempotency::Route("POST /jobs/{id}/retry");

/// The framework takes the first path that matches, so `/jobs/batch` is before `/jobs/{id}`, and the busiest is first.
static ROUTES: &[Path] = &[
    api(
        JOBS,
        &[
            post(Some(Submit), |route| route.to(submissions::submit)).requires_key(SUBMIT),
            get(Some(Read), |route| route.to(lists::jobs)),
        ],
    ),
    api("/", &[get(PUBLIC, |route| route.to(service::about))]),
    probe("/healthz", &[get(PUBLIC, |route| route.to(service::healthz))]),
    probe("/readyz", &[get(PUBLIC, |route| route.to(service::readyz))]),
    api(OPENAPI, &[get(PUBLIC, |route| route.to(service::openapi))]),
    api(DOCS, &[get(PUBLIC, |route| route.to(docs::page))]),
    api(DOCS_STYLE, &[get(PUBLIC, |route| route.to(docs::file))]),
    api(DOCS_SCRIPT, &[get(PUBLIC, |route| route.to(docs::file))]),
    api(SWAGGER_UI_STYLE, &[get(PUBLIC, |route| route.to(docs::file))]),
    api(SWAGGER_UI_SCRIPT, &[get(PUBLIC, |route| route.to(docs::file))]),
    api("/jobs/batch", &[post(Some(Submit), |route| route.to(batches::submit))]),
    api(
        "/jobs/{id}",
        &[
            get(Some(Read), |route| route.to(jobs::show)),
            put(Some(Submit), |route| route.to(submissions::put)),
            patch(Some(Manage), |route| route.to(jobs::change)).takes_key(CHANGE),
            delete(Some(Manage), |route| route.to(jobs::delete)),
        ],
    ),
    api("/jobs/{id}/cancel", &[post(Some(Manage), |route| route.to(jobs::cancel))]),
    api("/jobs/{id}/retry", &[post(Some(Manage), |route| route.to(jobs::retry)).requires_key(RETRY)]),
    api("/jobs/{id}/attempts", &[get(Some(Read), |route| route.to(jobs::attempts))]),
    api(CLAIMS, &[get(Some(Read), |route| route.to(claims::list))]),
    api(
        "/claims/{claim_id}",
        &[
            put(Some(Work), |route| route.to(claims::claim)),
            get(Some(Read), |route| route.to(claims::show)),
            delete(Some(Work), |route| route.to(claims::release)),
        ],
    ),
    api("/claims/{claim_id}/heartbeat", &[post(Some(Work), |route| route.to(claims::heartbeat))]),
    api("/claims/{claim_id}/results", &[post(Some(Work), |route| route.to(claims::results))]),
    api(QUEUES, &[get(Some(Read), |route| route.to(lists::queues))]),
    api("/idempotency-keys/{key}", &[get(Some(Read), |route| route.to(keys::show))]),
    // Errors of the server for operators have a relative `type`, too.
    on_both("/problems/{code}", &[get(PUBLIC, |route| route.to(docs::problem))]),
    operations("/metrics", &[get(PUBLIC, |route| route.to(service::metrics))]),
];

/// A path and its operations.
pub struct Path {
    /// The path with its variables, such as `/jobs/{id}`. It is the name of the route in logs and metrics.
    pub template: &'static str,
    operations: &'static [Operation],
    servers: &'static [HttpServer],
    polled: bool,
}

/// One method of a path.
pub struct Operation {
    method: &'static str,
    scope: Option<Scope>,
    key: Option<KeyUse>,
    /// Gives the handler to a route of the framework. A handler has a type of its own, which a table cannot have.
    handler: fn(Route) -> Route,
}

/// An operation that takes an idempotency key.
#[derive(Clone, Copy)]
pub struct KeyUse {
    pub route: idempotency::Route,
    /// Whether the operation refuses a request without a key.
    pub required: bool,
}

#[derive(PartialEq, Eq)]
enum HttpServer {
    /// For clients.
    Api,
    /// For operators, on the address `metrics.bind`.
    Operations,
}

/// The scope of an operation that needs no token.
const PUBLIC: Option<Scope> = None;

const fn api(template: &'static str, operations: &'static [Operation]) -> Path {
    Path { template, operations, servers: &[HttpServer::Api], polled: false }
}

const fn on_both(template: &'static str, operations: &'static [Operation]) -> Path {
    Path { template, operations, servers: &[HttpServer::Api, HttpServer::Operations], polled: false }
}

/// A probe is on both servers, because it must work when the API is at its connection limit.
const fn probe(template: &'static str, operations: &'static [Operation]) -> Path {
    Path { polled: true, ..on_both(template, operations) }
}

const fn operations(template: &'static str, operations: &'static [Operation]) -> Path {
    Path { template, operations, servers: &[HttpServer::Operations], polled: true }
}

/// GET and HEAD.
const fn get(scope: Option<Scope>, handler: fn(Route) -> Route) -> Operation {
    Operation { method: "GET", scope, key: None, handler }
}

const fn post(scope: Option<Scope>, handler: fn(Route) -> Route) -> Operation {
    Operation { method: "POST", scope, key: None, handler }
}

const fn put(scope: Option<Scope>, handler: fn(Route) -> Route) -> Operation {
    Operation { method: "PUT", scope, key: None, handler }
}

const fn patch(scope: Option<Scope>, handler: fn(Route) -> Route) -> Operation {
    Operation { method: "PATCH", scope, key: None, handler }
}

const fn delete(scope: Option<Scope>, handler: fn(Route) -> Route) -> Operation {
    Operation { method: "DELETE", scope, key: None, handler }
}

impl Operation {
    const fn takes_key(self, route: idempotency::Route) -> Self {
        Self { key: Some(KeyUse { route, required: false }), ..self }
    }

    const fn requires_key(self, route: idempotency::Route) -> Self {
        Self { key: Some(KeyUse { route, required: true }), ..self }
    }

    fn register(&self) -> Route {
        let route = match self.method {
            // The framework sends the answer to HEAD without its body (RFC 9110, section 9.3.2).
            "GET" => web::route().guard(guard::Any(guard::Get()).or(guard::Head())),
            method => web::method(Method::from_bytes(method.as_bytes()).expect("the table has valid methods")),
        };
        let route = (self.handler)(route);
        match self.scope {
            Some(scope) => route.wrap(from_fn(move |request, next| authorize(scope, request, next))),
            None => route,
        }
    }
}

impl Path {
    /// The path of a request, on whichever of the two servers it is.
    pub fn of(request: &ServiceRequest) -> Option<&'static Self> {
        // Most paths equal their template. `match_pattern` is slower, because it tries one pattern after the other.
        let find = |template: &str| ROUTES.iter().find(|path| path.template == template);
        find(request.path()).or_else(|| find(&request.match_pattern()?))
    }

    /// How the operation with this method uses an idempotency key, if it does.
    pub fn key_use(&self, method: &str) -> Option<KeyUse> {
        self.operations.iter().find(|operation| operation.method == method)?.key
    }

    /// Whether machines call this path every few seconds. A successful call is logged at debug level only.
    pub fn is_polled(&self) -> bool {
        self.polled
    }

    /// The value of `Allow`, in alphabetical order.
    fn allow(&self) -> String {
        let mut methods: Vec<&str> = self.operations.iter().map(|operation| operation.method).collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.sort_unstable();
        methods.join(", ")
    }

    fn register(&'static self, config: &mut ServiceConfig) {
        let refuse = || async { Err::<String, _>(Problem::MethodNotAllowed { allow: self.allow() }) };
        let resource = web::resource(self.template).default_service(web::to(refuse));
        let add = |resource: actix_web::Resource, operation: &Operation| resource.route(operation.register());
        config.service(self.operations.iter().fold(resource, add));
    }
}

/// Configures the server for clients.
pub fn api_routes(config: &mut ServiceConfig) {
    register(config, &HttpServer::Api);
}

/// Configures the server for operators.
pub fn operations_routes(config: &mut ServiceConfig) {
    register(config, &HttpServer::Operations);
}

fn register(config: &mut ServiceConfig, server: &HttpServer) {
    ROUTES.iter().filter(|path| path.servers.contains(server)).for_each(|path| path.register(config));
    config.default_service(web::to(|| async { Err::<String, _>(Problem::RouteNotFound) }));
}

/// The operations that take an idempotency key.
pub fn key_uses() -> impl Iterator<Item = KeyUse> {
    ROUTES.iter().flat_map(|path| path.operations).filter_map(|operation| operation.key)
}

/// The names of the routes that take an idempotency key.
pub fn keyed_routes() -> impl Iterator<Item = idempotency::Route> {
    key_uses().map(|key| key.route)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

    use super::*;

    fn all() -> impl Iterator<Item = (&'static Path, &'static Operation)> {
        ROUTES.iter().flat_map(|path| path.operations.iter().map(move |operation| (path, operation)))
    }

    /// The paths, methods and scopes that an OpenAPI document describes.
    fn documented(contract: &Value) -> BTreeMap<(String, String), Option<String>> {
        let mut documented = BTreeMap::new();
        for (path, item) in contract["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters") {
                let scope = operation["security"][0]["accessToken"][0].as_str().map(str::to_owned);
                documented.insert((path.clone(), method.to_uppercase()), scope);
            }
        }
        documented
    }

    #[test]
    fn the_openapi_document_has_exactly_these_paths_methods_and_scopes() {
        let contract = include_str!("../../api-design/jobs-api.yaml");
        // `/metrics` is for operators. The files below `/docs/` are part of the page.
        let is_for_clients =
            |path: &Path| path.servers.contains(&HttpServer::Api) && !path.template.starts_with("/docs/");
        let ours: BTreeMap<_, _> = all()
            .filter(|(path, _)| is_for_clients(path))
            .map(|(path, operation)| {
                let scope = operation.scope.map(|scope| scope.name().to_owned());
                ((path.template.to_owned(), operation.method.to_owned()), scope)
            })
            .collect();
        assert_eq!(ours, documented(&yaml_serde::from_str(contract).unwrap()));
    }

    #[test]
    fn no_path_occurs_twice() {
        let templates: BTreeSet<&str> = ROUTES.iter().map(|path| path.template).collect();
        assert_eq!(templates.len(), ROUTES.len());
    }

    #[test]
    fn the_stored_name_of_a_route_is_its_method_and_path() {
        for (path, operation) in all() {
            if let Some(key) = operation.key {
                assert_eq!(key.route.0, format!("{} {}", operation.method, path.template));
            }
        }
    }

    /// `hapax token create --help` shows these texts.
    #[test]
    fn the_description_of_a_scope_names_its_operations() {
        for (path, Operation { method, scope, .. }) in all() {
            let Some(scope) = scope else { continue };
            let expected = if *method == "GET" { "GET".to_owned() } else { format!("{method} {}", path.template) };
            let named = scope.permits().split([':', ',']).map(str::trim).any(|part| part == expected);
            assert!(named, "{:?} does not name {method} {}", scope.permits(), path.template);
        }
    }
}
