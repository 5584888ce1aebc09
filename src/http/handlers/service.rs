//! Information about the service itself. These routes need no token.

use std::time::Duration;

use actix_web::http::header::CACHE_CONTROL;
use actix_web::{HttpResponse, web};
use serde_json::json;
use tokio::time::Instant;

use crate::database::{Connections, Pool};
use crate::http::extractors::NoParameters;
use crate::http::routes::{DOCS, OPENAPI, key_uses};
use crate::http::{App, Problem, outgoing};
use crate::idempotency::queries::Lags;
use crate::idempotency::{self, KEY_LENGTH_MAX};
use crate::overload::Usage;

const CONTRACT: &str = include_str!("../../../api-design/jobs-api.yaml");
/// The only server in the OpenAPI document. Clients that are generated from the document send their requests to it.
const CONTRACT_SERVER: &str = "\n  - url: /\n";

/// How long a client may use the document without revalidation. After an upgrade, it may use the old one for this long.
const CONTRACT_CACHE_CONTROL: &str = "max-age=300";

/// `GET /`: the name and version of the service, its documents, and its idempotency settings.
pub async fn about(app: web::Data<App>, _: NoParameters) -> HttpResponse {
    let taken_on: Vec<&str> = key_uses().map(|key| key.route.0).collect();
    let required_on: Vec<&str> = key_uses().filter(|key| key.required).map(|key| key.route.0).collect();
    let about = json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "documents": { "docs": app.public(DOCS), "openapi": app.public(OPENAPI) },
        "idempotency": {
            "header": "Idempotency-Key",
            "required_on": required_on,
            "taken_on": taken_on,
            "key_length_max": KEY_LENGTH_MAX,
            "time_to_live_seconds": app.time_to_live.as_secs(),
        },
    });
    outgoing::json(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-cache")), &about)
}

/// `GET /healthz`: liveness. Does not use the database, so that an outage of the database does not restart replicas.
pub async fn healthz(_: NoParameters) -> HttpResponse {
    outgoing::json(&mut HttpResponse::Ok(), &json!({ "status": "alive" }))
}

/// `GET /readyz`: readiness.
pub async fn readyz(app: web::Data<App>, _: NoParameters) -> Result<HttpResponse, Problem> {
    app.readiness.check().await?;
    Ok(outgoing::json(&mut HttpResponse::Ok(), &json!({ "status": "ready" })))
}

/// `GET /openapi.yaml`: the OpenAPI document (media type: RFC 9512).
pub async fn openapi(app: web::Data<App>, _: NoParameters) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response.content_type("application/yaml").insert_header((CACHE_CONTROL, CONTRACT_CACHE_CONTROL));
    match app.public_url.as_str() {
        "" => response.body(CONTRACT),
        url => response.body(CONTRACT.replacen(CONTRACT_SERVER, &format!("\n  - url: {url}\n"), 1)),
    }
}

/// What a scrape of `/metrics` reads.
pub struct MetricsSources {
    pub pools: Vec<Pool>,
    /// The pool for the query of a scrape.
    pub scrapes: Pool,
}

/// `GET /metrics`, on the address `metrics.bind`.
pub async fn metrics(app: web::Data<App>, sources: web::Data<MetricsSources>) -> HttpResponse {
    let metrics = &app.metrics;
    for pool in &sources.pools {
        let Connections { busy, idle, limit } = pool.count();
        metrics.read_connections(pool.name(), Usage { now: busy, limit }, idle);
    }
    metrics.read_requests_in_flight(app.admission.usage());
    metrics.read_body_bytes(app.body_memory.usage());
    metrics.read_intake_queue(app.intake.usage());
    metrics.read_replay_cache(app.replays.usage());
    metrics.read_waiting_requests(app.long_polls.usage());
    metrics.read_ready(app.readiness.check().await.is_ok());
    let lags = lags(&sources.scrapes).await;
    metrics.read_purge_lag(lags.as_ref().map(|lags| lags.purge));
    metrics.read_reclaim_lag(lags.map(|lags| lags.reclaim));
    HttpResponse::Ok().content_type("application/openmetrics-text; version=1.0.0; charset=utf-8").body(metrics.encode())
}

/// `None` if the database does not answer within a second, because a scrape must not wait for a slow database.
async fn lags(scrapes: &Pool) -> Option<Lags> {
    const DEADLINE: Duration = Duration::from_secs(1);
    let deadline = Instant::now() + DEADLINE;
    scrapes.read("lags", deadline, async |connection| idempotency::queries::lags(connection).await).await.ok()
}
