//! Every metric that Hapax has, in one place.
//!
//! Counters and histograms are moved where things happen; gauges are read when Prometheus asks. No label holds
//! anything that a client chooses.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// A cheap handle on all metrics of the process.
#[derive(Clone)]
pub struct Metrics {
    catalogue: Arc<Catalogue>,
}

struct Catalogue {
    registry: Registry,
    http_requests: Family<RequestLabels, Counter>,
    http_request_duration: Family<RouteLabels, Histogram>,
    idempotency_outcomes: Family<OutcomeLabels, Counter>,
    token_lookups: Family<LookupLabels, Counter>,
    database_retries: Family<RetryLabels, Counter>,
    database_connections: Family<ConnectionLabels, Gauge>,
    database_connections_limit: Family<LaneLabels, Gauge>,
    purged_keys: Counter,
    purge_failures: Counter,
    purge_lag: Gauge<f64, AtomicU64>,
}

/// What became of a request under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyedOutcome {
    Created,
    Replayed,
    Mismatch,
    InFlight,
    /// Answered without touching the key.
    Refused,
    /// The deadline came before the database's answer.
    Unknown,
}

/// What the database said of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenLookup {
    Known,
    Unknown,
    Failed,
}

/// Why a statement was sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No connection could be opened.
    Connect,
    /// The connection was lost under way.
    Lost,
    /// The session's prepared statements no longer fit.
    Stale,
    /// A deadlock or a serialization failure.
    Collided,
}

/// One reading of a lane's connections.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    pub busy: usize,
    pub idle: usize,
    pub limit: usize,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("hapax");
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The release that runs", Info::new(build));
        // Declared once each: the catalogue's field and the name that Prometheus knows it by.
        let mut catalogue = Catalogue {
            registry: Registry::default(),
            http_requests: Family::default(),
            http_request_duration: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            idempotency_outcomes: Family::default(),
            token_lookups: Family::default(),
            database_retries: Family::default(),
            database_connections: Family::default(),
            database_connections_limit: Family::default(),
            purged_keys: Counter::default(),
            purge_failures: Counter::default(),
            purge_lag: Gauge::default(),
        };
        registry.register(
            "http_requests",
            "Requests answered, by method, route template and status",
            catalogue.http_requests.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "From a request's head to its answer",
            Unit::Seconds,
            catalogue.http_request_duration.clone(),
        );
        registry.register(
            "idempotency_outcomes",
            "Requests on keyed routes, by what became of them",
            catalogue.idempotency_outcomes.clone(),
        );
        registry.register("token_lookups", "Tokens that the database was asked about", catalogue.token_lookups.clone());
        registry.register("database_retries", "Statements sent again, by why", catalogue.database_retries.clone());
        registry.register(
            "database_connections",
            "Connections to PostgreSQL, by lane and state",
            catalogue.database_connections.clone(),
        );
        registry.register(
            "database_connections_limit",
            "How many connections a lane may have",
            catalogue.database_connections_limit.clone(),
        );
        registry.register("purged_keys", "Expired keys deleted", catalogue.purged_keys.clone());
        registry.register("purge_failures", "Rounds of purging that failed", catalogue.purge_failures.clone());
        registry.register_with_unit(
            "purge_lag",
            "How long the oldest expired key has waited for the purger",
            Unit::Seconds,
            catalogue.purge_lag.clone(),
        );
        catalogue.registry = registry;
        Self { catalogue: Arc::new(catalogue) }
    }

    /// Counts an answered request. `method` and `route` must come from a fixed set.
    pub fn count_request(&self, method: &'static str, route: &'static str, status: u16, duration: Duration) {
        let catalogue = &self.catalogue;
        catalogue.http_requests.get_or_create(&RequestLabels { method, route, status }).inc();
        let histogram = catalogue.http_request_duration.get_or_create(&RouteLabels { method, route });
        histogram.observe(duration.as_secs_f64());
    }

    /// Counts what became of a request on a keyed route, such as `POST /jobs`.
    pub fn count_outcome(&self, route: &'static str, outcome: KeyedOutcome) {
        let labels = OutcomeLabels { route, outcome: outcome.name() };
        self.catalogue.idempotency_outcomes.get_or_create(&labels).inc();
    }

    pub fn count_token_lookup(&self, result: TokenLookup) {
        self.catalogue.token_lookups.get_or_create(&LookupLabels { result: result.name() }).inc();
    }

    pub fn count_database_retry(&self, reason: Retry) {
        self.catalogue.database_retries.get_or_create(&RetryLabels { reason: reason.name() }).inc();
    }

    pub fn count_purged_keys(&self, keys: u64) {
        self.catalogue.purged_keys.inc_by(keys);
    }

    pub fn count_purge_failure(&self) {
        self.catalogue.purge_failures.inc();
    }

    pub fn read_connections(&self, lane: &'static str, reading: Connections) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let by_state =
            |state| self.catalogue.database_connections.get_or_create_owned(&ConnectionLabels { lane, state });
        by_state("busy").set(count(reading.busy));
        by_state("idle").set(count(reading.idle));
        self.catalogue.database_connections_limit.get_or_create(&LaneLabels { lane }).set(count(reading.limit));
    }

    /// `None` where the database could not be asked: no number is better than an old one.
    pub fn read_purge_lag(&self, lag: Option<Duration>) {
        self.catalogue.purge_lag.set(lag.map_or(f64::NAN, |lag| lag.as_secs_f64()));
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.catalogue.registry).expect("writing to a string cannot fail");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl KeyedOutcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Replayed => "replayed",
            Self::Mismatch => "mismatch",
            Self::InFlight => "in_flight",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

impl TokenLookup {
    fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        }
    }
}

impl Retry {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Lost => "lost",
            Self::Stale => "stale",
            Self::Collided => "collided",
        }
    }
}

/// Seconds. From an answer out of memory to a request deadline.
const DURATION_BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    route: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabels {
    lane: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    lane: &'static str,
}
