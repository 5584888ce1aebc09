//! All metrics of Hapax.
//!
//! `catalogue` describes each metric, `labels` has their labels, and [`Metrics`] updates them. Counters and histograms
//! are updated where the events happen. Gauges are read at each scrape.

mod catalogue;
mod labels;

pub use catalogue::document;
pub use labels::{ClaimResult, JobOutcome, KeyedOutcome, Notified, Recall, Retry, Split, TokenLookup};

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use crate::overload::{Shed, Usage};
use catalogue::*;
use labels::*;

/// A handle to all metrics of the process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    catalogue: Arc<Catalogue>,
}

struct Catalogue {
    registry: Registry,
    ready: Gauge,
    http_requests: Family<RequestLabels, Counter>,
    http_request_duration: Family<RouteLabels, Histogram>,
    http_requests_in_flight: Gauge,
    http_requests_in_flight_limit: Gauge,
    http_connections: Gauge,
    http_connections_limit: Gauge,
    http_body_bytes: Gauge,
    http_body_bytes_limit: Gauge,
    shed_requests: Family<ShedLabels, Counter>,
    quota_refusals: Family<QuotaLabels, Counter>,
    idempotency_outcomes: Family<OutcomeLabels, Counter>,
    replay_cache_lookups: Family<LookupLabels, Counter>,
    replay_cache_bytes: Gauge,
    replay_cache_limit_bytes: Gauge,
    intake_queue: Gauge,
    intake_queue_limit: Gauge,
    group_commit_requests: Family<StatementLabels, Histogram>,
    group_commit_wait: Family<StatementLabels, Histogram>,
    group_commit_splits: Family<SplitLabels, Counter>,
    token_lookups: Family<LookupLabels, Counter>,
    database_retries: Family<RetryLabels, Counter>,
    database_connections: Family<ConnectionLabels, Gauge>,
    database_connections_limit: Family<PoolLabels, Gauge>,
    database_connection_wait: Family<PoolLabels, Histogram>,
    database_statement_duration: Family<StatementLabels, Histogram>,
    purged_keys: Counter,
    kept_keys: Counter,
    purge_failures: Counter,
    purge_lag: Gauge<f64, AtomicU64>,
    claims: Family<LookupLabels, Counter>,
    job_wait: Histogram,
    job_run: Histogram,
    reports: Family<ReportLabels, Counter>,
    settled_jobs: Family<JobLabels, Counter>,
    waiting_requests: Gauge,
    waiting_requests_limit: Gauge,
    notified_events: Family<LookupLabels, Counter>,
    notifications_connected: Gauge,
    lost_leases: Family<JobLabels, Counter>,
    reclaim_failures: Counter,
    reclaim_lag: Gauge<f64, AtomicU64>,
    log_lines_lost: Counter,
}

/// An open client connection. It is counted until this is dropped.
pub struct CountedConnection(Metrics);

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(catalogue::PREFIX);
        let mut catalogue = Catalogue {
            registry: Registry::default(),
            ready: Gauge::default(),
            http_requests: Family::default(),
            http_request_duration: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            http_requests_in_flight: Gauge::default(),
            http_requests_in_flight_limit: Gauge::default(),
            http_connections: Gauge::default(),
            http_connections_limit: Gauge::default(),
            http_body_bytes: Gauge::default(),
            http_body_bytes_limit: Gauge::default(),
            shed_requests: Family::default(),
            quota_refusals: Family::default(),
            idempotency_outcomes: Family::default(),
            replay_cache_lookups: Family::default(),
            replay_cache_bytes: Gauge::default(),
            replay_cache_limit_bytes: Gauge::default(),
            intake_queue: Gauge::default(),
            intake_queue_limit: Gauge::default(),
            group_commit_requests: Family::new_with_constructor(|| Histogram::new(BATCH_BUCKETS)),
            group_commit_wait: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            group_commit_splits: Family::default(),
            token_lookups: Family::default(),
            database_retries: Family::default(),
            database_connections: Family::default(),
            database_connections_limit: Family::default(),
            database_connection_wait: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            database_statement_duration: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            purged_keys: Counter::default(),
            kept_keys: Counter::default(),
            purge_failures: Counter::default(),
            purge_lag: Gauge::default(),
            claims: Family::default(),
            job_wait: Histogram::new(JOB_BUCKETS),
            job_run: Histogram::new(JOB_BUCKETS),
            reports: Family::default(),
            settled_jobs: Family::default(),
            waiting_requests: Gauge::default(),
            waiting_requests_limit: Gauge::default(),
            notified_events: Family::default(),
            notifications_connected: Gauge::default(),
            lost_leases: Family::default(),
            reclaim_failures: Counter::default(),
            reclaim_lag: Gauge::default(),
            log_lines_lost: Counter::default(),
        };
        fn register(registry: &mut Registry, description: &Description, metric: impl Metric) {
            registry.register(description.name, description.help, metric);
        }
        register(&mut registry, &BUILD, Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let start_time = Gauge::<f64, AtomicU64>::default();
        start_time.set(started.as_secs_f64());
        register(&mut registry, &START_TIME, start_time);
        register(&mut registry, &READY, catalogue.ready.clone());
        register(&mut registry, &HTTP_REQUESTS, catalogue.http_requests.clone());
        register(&mut registry, &HTTP_REQUEST_DURATION, catalogue.http_request_duration.clone());
        register(&mut registry, &HTTP_REQUESTS_IN_FLIGHT, catalogue.http_requests_in_flight.clone());
        register(&mut registry, &HTTP_REQUESTS_IN_FLIGHT_LIMIT, catalogue.http_requests_in_flight_limit.clone());
        register(&mut registry, &HTTP_CONNECTIONS, catalogue.http_connections.clone());
        register(&mut registry, &HTTP_CONNECTIONS_LIMIT, catalogue.http_connections_limit.clone());
        register(&mut registry, &HTTP_BODY_BYTES, catalogue.http_body_bytes.clone());
        register(&mut registry, &HTTP_BODY_BYTES_LIMIT, catalogue.http_body_bytes_limit.clone());
        register(&mut registry, &SHED_REQUESTS, catalogue.shed_requests.clone());
        register(&mut registry, &QUOTA_REFUSALS, catalogue.quota_refusals.clone());
        register(&mut registry, &IDEMPOTENCY_OUTCOMES, catalogue.idempotency_outcomes.clone());
        register(&mut registry, &REPLAY_CACHE_LOOKUPS, catalogue.replay_cache_lookups.clone());
        register(&mut registry, &REPLAY_CACHE_BYTES, catalogue.replay_cache_bytes.clone());
        register(&mut registry, &REPLAY_CACHE_LIMIT_BYTES, catalogue.replay_cache_limit_bytes.clone());
        register(&mut registry, &INTAKE_QUEUE, catalogue.intake_queue.clone());
        register(&mut registry, &INTAKE_QUEUE_LIMIT, catalogue.intake_queue_limit.clone());
        register(&mut registry, &GROUP_COMMIT_REQUESTS, catalogue.group_commit_requests.clone());
        register(&mut registry, &GROUP_COMMIT_WAIT, catalogue.group_commit_wait.clone());
        register(&mut registry, &GROUP_COMMIT_SPLITS, catalogue.group_commit_splits.clone());
        register(&mut registry, &TOKEN_LOOKUPS, catalogue.token_lookups.clone());
        register(&mut registry, &DATABASE_RETRIES, catalogue.database_retries.clone());
        register(&mut registry, &DATABASE_CONNECTIONS, catalogue.database_connections.clone());
        register(&mut registry, &DATABASE_CONNECTIONS_LIMIT, catalogue.database_connections_limit.clone());
        register(&mut registry, &DATABASE_CONNECTION_WAIT, catalogue.database_connection_wait.clone());
        register(&mut registry, &DATABASE_STATEMENT_DURATION, catalogue.database_statement_duration.clone());
        register(&mut registry, &PURGED_KEYS, catalogue.purged_keys.clone());
        register(&mut registry, &KEPT_KEYS, catalogue.kept_keys.clone());
        register(&mut registry, &PURGE_FAILURES, catalogue.purge_failures.clone());
        register(&mut registry, &PURGE_LAG, catalogue.purge_lag.clone());
        register(&mut registry, &CLAIMS, catalogue.claims.clone());
        register(&mut registry, &JOB_WAIT, catalogue.job_wait.clone());
        register(&mut registry, &JOB_RUN, catalogue.job_run.clone());
        register(&mut registry, &REPORTS, catalogue.reports.clone());
        register(&mut registry, &SETTLED_JOBS, catalogue.settled_jobs.clone());
        register(&mut registry, &WAITING_REQUESTS, catalogue.waiting_requests.clone());
        register(&mut registry, &WAITING_REQUESTS_LIMIT, catalogue.waiting_requests_limit.clone());
        register(&mut registry, &NOTIFIED_EVENTS, catalogue.notified_events.clone());
        register(&mut registry, &NOTIFICATIONS_CONNECTED, catalogue.notifications_connected.clone());
        register(&mut registry, &LOST_LEASES, catalogue.lost_leases.clone());
        register(&mut registry, &RECLAIM_FAILURES, catalogue.reclaim_failures.clone());
        register(&mut registry, &RECLAIM_LAG, catalogue.reclaim_lag.clone());
        register(&mut registry, &LOG_LINES_LOST, catalogue.log_lines_lost.clone());
        catalogue.registry = registry;
        catalogue.begin_at_zero();
        Self { catalogue: Arc::new(catalogue) }
    }

    /// Counts an answered request. `method` and `route` must come from a fixed set.
    pub fn count_request(&self, method: &'static str, route: &'static str, status: u16, duration: Duration) {
        let catalogue = &self.catalogue;
        catalogue.http_requests.get_or_create(&RequestLabels { method, route, status }).inc();
        let histogram = catalogue.http_request_duration.get_or_create(&RouteLabels { method, route });
        histogram.observe(duration.as_secs_f64());
    }

    /// Counts the outcome of a request on a route that takes an idempotency key, such as `POST /jobs`.
    pub fn count_outcome(&self, route: &'static str, outcome: KeyedOutcome) {
        let labels = OutcomeLabels { route, outcome: outcome.name() };
        self.catalogue.idempotency_outcomes.get_or_create(&labels).inc();
    }

    /// Creates all outcome series of a route, so that they are exposed from the start.
    pub fn expect_outcomes(&self, route: &'static str) {
        for outcome in KeyedOutcome::ALL {
            let labels = OutcomeLabels { route, outcome: outcome.name() };
            drop(self.catalogue.idempotency_outcomes.get_or_create(&labels));
        }
    }

    /// Creates the series of a quota, so that it is exposed from the start.
    pub fn expect_quota_refusals(&self, policy: &'static str) {
        drop(self.catalogue.quota_refusals.get_or_create(&QuotaLabels { policy }));
    }

    /// Creates the series of a status, so that it is exposed from the start.
    pub fn expect_reports(&self, status: &'static str) {
        drop(self.catalogue.reports.get_or_create(&ReportLabels { status }));
    }

    pub fn count_recall(&self, recall: Recall) {
        self.catalogue.replay_cache_lookups.get_or_create(&LookupLabels { result: recall.name() }).inc();
    }

    /// The number of requests in one group commit.
    pub fn observe_group_commit(&self, statement: &'static str, requests: usize) {
        let labels = StatementLabels { statement };
        self.catalogue.group_commit_requests.get_or_create(&labels).observe(requests as f64);
    }

    /// How long the first request of a group commit waited for a writer.
    pub fn observe_group_commit_wait(&self, statement: &'static str, wait: Duration) {
        let labels = StatementLabels { statement };
        self.catalogue.group_commit_wait.get_or_create(&labels).observe(wait.as_secs_f64());
    }

    pub fn count_group_commit_split(&self, statement: &'static str, reason: Split) {
        let labels = SplitLabels { statement, reason: reason.name() };
        self.catalogue.group_commit_splits.get_or_create(&labels).inc();
    }

    /// Creates the series of a statement, so that they are exposed from the start.
    pub fn expect_group_commits(&self, statement: &'static str) {
        for reason in [Split::Locked, Split::Refused] {
            drop(self.catalogue.group_commit_splits.get_or_create(&SplitLabels { statement, reason: reason.name() }));
        }
        drop(self.catalogue.group_commit_requests.get_or_create(&StatementLabels { statement }));
        drop(self.catalogue.group_commit_wait.get_or_create(&StatementLabels { statement }));
    }

    pub fn count_token_lookup(&self, result: TokenLookup) {
        self.catalogue.token_lookups.get_or_create(&LookupLabels { result: result.name() }).inc();
    }

    pub fn count_database_retry(&self, reason: Retry) {
        self.catalogue.database_retries.get_or_create(&RetryLabels { reason: reason.name() }).inc();
    }

    pub fn count_shed_request(&self, reason: Shed) {
        self.catalogue.shed_requests.get_or_create(&ShedLabels { reason: reason.name() }).inc();
    }

    /// `policy` must come from a fixed set.
    pub fn count_quota_refusal(&self, policy: &'static str) {
        self.catalogue.quota_refusals.get_or_create(&QuotaLabels { policy }).inc();
    }

    pub fn observe_statement(&self, statement: &'static str, duration: Duration) {
        let labels = StatementLabels { statement };
        self.catalogue.database_statement_duration.get_or_create(&labels).observe(duration.as_secs_f64());
    }

    /// How long a statement waited for a connection of this pool.
    pub fn observe_connection_wait(&self, pool: &'static str, wait: Duration) {
        self.catalogue.database_connection_wait.get_or_create(&PoolLabels { pool }).observe(wait.as_secs_f64());
    }

    /// Counts a client's connection until the returned value is dropped.
    pub fn count_connection(&self) -> CountedConnection {
        self.catalogue.http_connections.inc();
        CountedConnection(self.clone())
    }

    pub fn set_connections_limit(&self, limit: usize) {
        self.catalogue.http_connections_limit.set(gauge(limit));
    }

    pub fn read_ready(&self, ready: bool) {
        self.catalogue.ready.set(i64::from(ready));
    }

    pub fn read_requests_in_flight(&self, usage: Usage) {
        self.catalogue.http_requests_in_flight.set(gauge(usage.now));
        self.catalogue.http_requests_in_flight_limit.set(gauge(usage.limit));
    }

    pub fn read_body_bytes(&self, usage: Usage) {
        self.catalogue.http_body_bytes.set(gauge(usage.now));
        self.catalogue.http_body_bytes_limit.set(gauge(usage.limit));
    }

    pub fn read_intake_queue(&self, usage: Usage) {
        self.catalogue.intake_queue.set(gauge(usage.now));
        self.catalogue.intake_queue_limit.set(gauge(usage.limit));
    }

    pub fn read_replay_cache(&self, usage: Usage) {
        self.catalogue.replay_cache_bytes.set(gauge(usage.now));
        self.catalogue.replay_cache_limit_bytes.set(gauge(usage.limit));
    }

    pub fn read_waiting_requests(&self, usage: Usage) {
        self.catalogue.waiting_requests.set(gauge(usage.now));
        self.catalogue.waiting_requests_limit.set(gauge(usage.limit));
    }

    /// Counts events that replicas tell each other.
    pub fn count_notified(&self, result: Notified, events: usize) {
        let counter = self.catalogue.notified_events.get_or_create(&LookupLabels { result: result.name() });
        counter.inc_by(u64::try_from(events).unwrap_or(u64::MAX));
    }

    pub fn set_notifications_connected(&self, connected: bool) {
        self.catalogue.notifications_connected.set(i64::from(connected));
    }

    /// Counts the keys that a purge statement deleted, and those that it kept for their jobs.
    pub fn count_purged_keys(&self, deleted: u64, kept: u64) {
        self.catalogue.purged_keys.inc_by(deleted);
        self.catalogue.kept_keys.inc_by(kept);
    }

    pub fn count_claim(&self, result: ClaimResult) {
        self.catalogue.claims.get_or_create(&LookupLabels { result: result.name() }).inc();
    }

    /// How long a job waited until it was claimed.
    pub fn observe_job_wait(&self, wait: Duration) {
        self.catalogue.job_wait.observe(wait.as_secs_f64());
    }

    /// Counts a worker's result. `status` must come from a fixed set.
    pub fn count_report(&self, status: &'static str) {
        self.catalogue.reports.get_or_create(&ReportLabels { status }).inc();
    }

    /// Counts a job whose result was recorded. `run` is how long its worker held it.
    pub fn count_settled_job(&self, outcome: JobOutcome, run: Duration) {
        self.catalogue.settled_jobs.get_or_create(&JobLabels { outcome: outcome.name() }).inc();
        self.catalogue.job_run.observe(run.as_secs_f64());
    }

    /// Counts the jobs that a worker gave back by the end of its claim.
    pub fn count_released_jobs(&self, jobs: u32) {
        let labels = JobLabels { outcome: JobOutcome::Released.name() };
        self.catalogue.settled_jobs.get_or_create(&labels).inc_by(jobs.into());
    }

    pub fn count_lost_log_lines(&self, lines: u64) {
        self.catalogue.log_lines_lost.inc_by(lines);
    }

    /// Counts jobs that were taken from workers, by what became of them.
    pub fn count_reclaimed(&self, requeued: u64, failed: u64, cancelled: u64) {
        for (outcome, jobs) in [("requeued", requeued), ("failed", failed), ("cancelled", cancelled)] {
            self.catalogue.lost_leases.get_or_create(&JobLabels { outcome }).inc_by(jobs);
        }
    }

    pub fn count_reclaim_failure(&self) {
        self.catalogue.reclaim_failures.inc();
    }

    pub fn count_purge_failure(&self) {
        self.catalogue.purge_failures.inc();
    }

    pub fn read_connections(&self, pool: &'static str, busy: Usage, idle: usize) {
        let by_state =
            |state| self.catalogue.database_connections.get_or_create_owned(&ConnectionLabels { pool, state });
        by_state("busy").set(gauge(busy.now));
        by_state("idle").set(gauge(idle));
        self.catalogue.database_connections_limit.get_or_create(&PoolLabels { pool }).set(gauge(busy.limit));
    }

    /// `None` if the database did not answer. The gauge is then NaN, because an old value would mislead.
    pub fn read_purge_lag(&self, lag: Option<Duration>) {
        self.catalogue.purge_lag.set(seconds_or_nan(lag));
    }

    /// `None` as for [`Metrics::read_purge_lag`].
    pub fn read_reclaim_lag(&self, lag: Option<Duration>) {
        self.catalogue.reclaim_lag.set(seconds_or_nan(lag));
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.catalogue.registry).expect("writing to a string cannot fail");
        text
    }
}

impl Catalogue {
    /// Exposes series at 0, because Prometheus sees no increase in a series whose first value is not 0.
    fn begin_at_zero(&self) {
        for reason in Shed::ALL {
            drop(self.shed_requests.get_or_create(&ShedLabels { reason: reason.name() }));
        }
        for outcome in ["requeued", "failed", "cancelled"] {
            drop(self.lost_leases.get_or_create(&JobLabels { outcome }));
        }
        for result in Notified::ALL {
            drop(self.notified_events.get_or_create(&LookupLabels { result: result.name() }));
        }
        for result in ClaimResult::ALL {
            drop(self.claims.get_or_create(&LookupLabels { result: result.name() }));
        }
        for outcome in JobOutcome::ALL {
            drop(self.settled_jobs.get_or_create(&JobLabels { outcome: outcome.name() }));
        }
        for recall in [Recall::Remembered, Recall::NotRemembered] {
            drop(self.replay_cache_lookups.get_or_create(&LookupLabels { result: recall.name() }));
        }
        for result in [TokenLookup::Known, TokenLookup::Unknown, TokenLookup::Failed] {
            drop(self.token_lookups.get_or_create(&LookupLabels { result: result.name() }));
        }
        for reason in [Retry::Connect, Retry::Lost, Retry::Stale, Retry::Collided] {
            drop(self.database_retries.get_or_create(&RetryLabels { reason: reason.name() }));
        }
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.catalogue.http_connections.dec();
    }
}

fn gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn seconds_or_nan(duration: Option<Duration>) -> f64 {
    duration.map_or(f64::NAN, |duration| duration.as_secs_f64())
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// In requests.
const BATCH_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// In seconds, from a job that a waiting worker gets at once to one that waits or runs for a day.
const JOB_BUCKETS: [f64; 15] =
    [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0];
/// In seconds, from an answer out of the replay cache to a request's deadline.
const DURATION_BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
