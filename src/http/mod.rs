//! The HTTP API. `routes.rs` has all routes.
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
mod problem_details;
mod problem_document;
mod problem_sources;
mod problem_table;
mod quotas;
mod readiness;
mod refused_lines;
mod routes;

pub use admission::Admission;
pub use body_memory::BodyMemory;
pub use connection::{Connection, ConnectionDeadlines};
pub use handlers::service::MetricsSources;
pub use keyed::key_summary;
pub use observation::observe;
pub use outgoing::PIECE_BYTES;
pub use problem::{Problem, Unauthenticated};
pub use problem_table::document as errors_document;
pub use readiness::Readiness;
pub use refused_lines::RefusedLines;
pub use routes::{SUBMIT, api_routes, keyed_routes, operations_routes};

use std::sync::Arc;
use std::time::Duration;

use crate::access::{Caller, Quota, TokenDigest, Verifier};
use crate::changes::Changes;
use crate::claims::{Claims, SizeLimits};
use crate::database::SharedPool;
use crate::idempotency::{Replays, ScopedKey};
use crate::ids::TenantId;
use crate::intake::Intake;
use crate::long_poll::LongPolls;
use crate::metrics::Metrics;
use crate::offload::Offload;
use problem_document::ProblemDocument;

/// The state that all handlers share.
pub struct App {
    pub intake: Intake,
    pub changes: Changes,
    pub claims: Claims,
    /// Requests that wait for a job or for the end of a job.
    pub long_polls: Arc<LongPolls>,
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
        caller.settings.key_time_to_live.unwrap_or(self.time_to_live)
    }

    /// The public URL of a path.
    pub fn public(&self, path: &str) -> String {
        format!("{}{path}", self.public_url)
    }
}

/// The quotas of a replica, with the configured rates. [`TenantSettings`](crate::access::TenantSettings) replace them
/// for one tenant.
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
    /// Maximum sizes of the results and errors that workers report.
    pub reports: SizeLimits,
}
