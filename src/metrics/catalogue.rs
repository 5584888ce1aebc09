//! The name, type and meaning of every metric. Metrics are registered from this file, and `docs/metrics.md` is
//! generated from it.

use std::fmt::Write;

/// The description of one metric.
pub struct Description {
    /// Without the prefix, and without the suffix `_total` or `_info` that the exposition adds.
    pub(super) name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static [&'static str],
    /// One line, shown on `/metrics`.
    pub(super) help: &'static str,
    /// How to read its values.
    meaning: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Info,
    Gauge,
    Counter,
    Histogram,
}

pub(super) const PREFIX: &str = "hapax";

pub(super) const BUILD: Description = Description {
    name: "build",
    kind: Kind::Info,
    unit: "none",
    labels: &["version"],
    help: "The running release",
    meaning: "Always 1; the label `version` is the release. Two versions at the same time: a deploy is in progress.",
};

pub(super) const START_TIME: Description = Description {
    name: "start_time_seconds",
    kind: Kind::Gauge,
    unit: "seconds since 1970",
    labels: &[],
    help: "When the process started",
    meaning: "Changes when the process restarts. More changes than deploys: a crash loop.",
};

pub(super) const READY: Description = Description {
    name: "ready",
    kind: Kind::Gauge,
    unit: "0 or 1",
    labels: &[],
    help: "Whether the replica is ready to take requests",
    meaning: "The result of `/readyz` at the time of the scrape. 0: the replica is shutting down, or the database is \
              unreachable, read-only, not durable, or does not have the schema that this release needs.",
};

pub(super) const HTTP_REQUESTS: Description = Description {
    name: "http_requests",
    kind: Kind::Counter,
    unit: "requests",
    labels: &["method", "route", "status"],
    help: "Requests answered, by method, route template and status",
    meaning: "Traffic and errors. An unknown path has the route `(none)`; an unknown method is `other`.",
};

pub(super) const HTTP_REQUEST_DURATION: Description = Description {
    name: "http_request_duration_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    labels: &["method", "route"],
    help: "Time from the end of a request's head to its answer",
    meaning: "Latency as the server sees it. Includes the time that the body takes to arrive.",
};

pub(super) const HTTP_REQUESTS_IN_FLIGHT: Description = Description {
    name: "http_requests_in_flight",
    kind: Kind::Gauge,
    unit: "requests",
    labels: &[],
    help: "Requests in flight",
    meaning: "Near its limit: requests arrive faster than the database can serve them.",
};

pub(super) const HTTP_REQUESTS_IN_FLIGHT_LIMIT: Description = Description {
    name: "http_requests_in_flight_limit",
    kind: Kind::Gauge,
    unit: "requests",
    labels: &[],
    help: "Maximum number of requests in flight",
    meaning: "`server.requests_in_flight`. Further requests get 503 `overloaded`.",
};

pub(super) const HTTP_CONNECTIONS: Description = Description {
    name: "http_connections",
    kind: Kind::Gauge,
    unit: "connections",
    labels: &[],
    help: "Open connections from clients or the load balancer",
    meaning: "Includes idle connections. At its limit, new connections wait in the backlog of the operating system.",
};

pub(super) const HTTP_CONNECTIONS_LIMIT: Description = Description {
    name: "http_connections_limit",
    kind: Kind::Gauge,
    unit: "connections",
    labels: &[],
    help: "Maximum number of open client connections",
    meaning: "`server.connections`, or what the limit on file descriptors allows.",
};

pub(super) const HTTP_BODY_BYTES: Description = Description {
    name: "http_body_bytes",
    kind: Kind::Gauge,
    unit: "bytes",
    labels: &[],
    help: "Memory used by request and answer bodies",
    meaning: "Small bodies are not counted; `server.requests_in_flight` bounds them. Near its limit: large bodies \
              arrive faster than the server processes them, or clients do not read their answers.",
};

pub(super) const HTTP_BODY_BYTES_LIMIT: Description = Description {
    name: "http_body_bytes_limit",
    kind: Kind::Gauge,
    unit: "bytes",
    labels: &[],
    help: "Maximum memory for request and answer bodies",
    meaning: "`server.body_bytes_in_flight`. A body that does not fit gets 503 `overloaded`.",
};

pub(super) const SHED_REQUESTS: Description = Description {
    name: "shed_requests",
    kind: Kind::Counter,
    unit: "requests",
    labels: &["reason"],
    help: "Requests shed with 503, by reason",
    meaning: "`in_flight`: `server.requests_in_flight` is reached. `tenant_in_flight`: one tenant has reached \
              `server.requests_in_flight_per_tenant`. `body_bytes`: a request or answer body does not fit into \
              `server.body_bytes_in_flight`. `tenant_body_bytes`: one tenant's bodies do not fit into \
              `server.body_bytes_in_flight_per_tenant`. `cpu`: a large body waited for one of its tenant's CPUs until \
              the request's deadline. `waited`: no database connection or writer became free within \
              `database.acquire_timeout`. `tenant_waited`: within that time, none of the tenant's share of a \
              connection pool became free; the share is half of the pool, or its only connection. `queue_full`: \
              `intake.queue_jobs` or `intake.queue_bytes` is reached. `tenant_queue_full`: one tenant has reached half \
              of either. `outage`: the circuit breaker is open, because the database has been unreachable for longer \
              than `database.acquire_timeout`; one request every 250 ms still tries. `unknown_tokens`: too many \
              requests wait for the look-up of a token that this replica has never seen, or one waited for 2 s.",
};

pub(super) const QUOTA_REFUSALS: Description = Description {
    name: "quota_refusals",
    kind: Kind::Counter,
    unit: "requests",
    labels: &["policy"],
    help: "Requests refused with 429, by quota",
    meaning: "`requests`: the requests of one token. `creations`: the new jobs of one tenant. `replays`: the requests \
              with one idempotency key; the client retries in a tight loop.",
};

pub(super) const IDEMPOTENCY_OUTCOMES: Description = Description {
    name: "idempotency_outcomes",
    kind: Kind::Counter,
    unit: "requests",
    labels: &["route", "outcome"],
    help: "Requests and batch items that need or have an idempotency key, by outcome",
    meaning: "`created`, `changed`, `deduplicated` (a job with the same unique content exists under another key), \
              `replayed`: 2xx. `mismatch`: 422, a bug in the client. `in_flight`: 409. `refused`: the request did not \
              use the key. `unknown`: 503 `outcome-unknown`; an attempt was lost, and the server could not find out \
              whether it was committed.",
};

pub(super) const REPLAY_CACHE_LOOKUPS: Description = Description {
    name: "replay_cache_lookups",
    kind: Kind::Counter,
    unit: "look-ups",
    labels: &["result"],
    help: "Look-ups of an idempotency key in the replay cache",
    meaning: "`remembered`: answered without the database. Many more replays than that: they arrive at another replica \
              than the first request or more than ten minutes after it, or `idempotency.replay_cache_bytes` is too \
              small.",
};

pub(super) const REPLAY_CACHE_BYTES: Description = Description {
    name: "replay_cache_bytes",
    kind: Kind::Gauge,
    unit: "bytes",
    labels: &[],
    help: "Memory used by the replay cache",
    meaning: "Grows to its limit and stays there. Expired entries are removed only when space is needed.",
};

pub(super) const REPLAY_CACHE_LIMIT_BYTES: Description = Description {
    name: "replay_cache_limit_bytes",
    kind: Kind::Gauge,
    unit: "bytes",
    labels: &[],
    help: "Maximum memory for the replay cache",
    meaning: "`idempotency.replay_cache_bytes`.",
};

pub(super) const INTAKE_QUEUE: Description = Description {
    name: "intake_queue_jobs",
    kind: Kind::Gauge,
    unit: "jobs",
    labels: &[],
    help: "Submissions that are queued or being written",
    meaning: "Near its limit: submissions arrive faster than the database can write them.",
};

pub(super) const INTAKE_QUEUE_LIMIT: Description = Description {
    name: "intake_queue_limit_jobs",
    kind: Kind::Gauge,
    unit: "jobs",
    labels: &[],
    help: "Maximum number of submissions in the intake queue",
    meaning: "`intake.queue_jobs`. Further submissions get 503 `overloaded`.",
};

pub(super) const GROUP_COMMIT_REQUESTS: Description = Description {
    name: "group_commit_requests",
    kind: Kind::Histogram,
    unit: "requests",
    labels: &["statement"],
    help: "Requests in one group commit",
    meaning: "1 under low load. Statements: `submit_many`, `claim`, `heartbeat` and `settle`. At `intake.batch_jobs` for \
              long: the database is the bottleneck.",
};

pub(super) const GROUP_COMMIT_WAIT: Description = Description {
    name: "group_commit_wait_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    labels: &["statement"],
    help: "Time that the first request of a group commit waited for a writer",
    meaning: "Under load, about the time of one statement. A request that waits for `database.acquire_timeout` gets 503.",
};

pub(super) const GROUP_COMMIT_SPLITS: Description = Description {
    name: "group_commit_splits",
    kind: Kind::Counter,
    unit: "statements",
    labels: &["statement", "reason"],
    help: "Group commits that failed and were split",
    meaning: "`locked`: another transaction held a row, such as an idempotency key, for more than 20 ms. `refused`: \
              PostgreSQL rejected one of the requests. That is a defect in Hapax: the request gets 500 and the error is \
              logged. Or PostgreSQL rejected the statement after a lost attempt, for any reason.",
};

pub(super) const TOKEN_LOOKUPS: Description = Description {
    name: "token_lookups",
    kind: Kind::Counter,
    unit: "look-ups",
    labels: &["result"],
    help: "Look-ups of tokens in the database",
    meaning: "`known`: a valid token, about one look-up for each in `access.cache_life`. `unknown`: an invalid, \
              expired or revoked token. `failed`: the database did not answer.",
};

pub(super) const DATABASE_RETRIES: Description = Description {
    name: "database_retries",
    kind: Kind::Counter,
    unit: "attempts",
    labels: &["reason"],
    help: "Statements that were retried, by reason",
    meaning: "`connect`: no connection could be opened, or an idle connection was dead. `lost`: a connection broke \
              during a statement, or gave no answer within `database.statement_timeout` plus 0.5 s. `stale`: a \
              migration, a failover or a pooler invalidated the prepared statements, the schema does not fit, or the \
              server is read-only. `collided`: a deadlock or a serialization failure.",
};

pub(super) const DATABASE_CONNECTIONS: Description = Description {
    name: "database_connections",
    kind: Kind::Gauge,
    unit: "connections",
    labels: &["pool", "state"],
    help: "Connections to PostgreSQL, by pool and state",
    meaning: "`busy` at the pool's limit for long: requests wait for a connection. One tenant uses at most half of \
              `intake`, of `reads` and of `claims`, or the only connection. Pools: `writers`, `intake`, `reads`, `known_tokens`, \
              `unknown_tokens`, `claim_writers`, `claims`, `purge`, `reclaim`, `probes`, `metrics`.",
};

pub(super) const DATABASE_CONNECTIONS_LIMIT: Description = Description {
    name: "database_connections_limit",
    kind: Kind::Gauge,
    unit: "connections",
    labels: &["pool"],
    help: "Maximum number of connections in a pool",
    meaning: "`writers`: `intake.writers`; `intake`: `intake.connections`; `reads`: `database.connections`; \
              `claim_writers`: three times `claims.writers`; `claims`: `claims.connections`; the others have one each. Their sum times the number of replicas must fit into PostgreSQL's `max_connections`.",
};

pub(super) const DATABASE_CONNECTION_WAIT: Description = Description {
    name: "database_connection_wait_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    labels: &["pool"],
    help: "Time that a statement waited for a connection",
    meaning: "The queue in front of the database. Includes the time to open a new connection; counts only statements \
              that got a connection.",
};

pub(super) const DATABASE_STATEMENT_DURATION: Description = Description {
    name: "database_statement_duration_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    labels: &["statement"],
    help: "Time from sending a statement to its answer",
    meaning: "Shows which statement is slow. The label is the name in the comment that the statement begins with, so \
              `pg_stat_activity` shows the same name. Counts each attempt that ended in time, also one that failed or \
              whose connection broke. Does not count an attempt that got no answer in time.",
};

pub(super) const PURGED_KEYS: Description = Description {
    name: "purged_keys",
    kind: Kind::Counter,
    unit: "keys",
    labels: &[],
    help: "Expired keys deleted",
    meaning: "In the long run, as many as are created.",
};

pub(super) const KEPT_KEYS: Description = Description {
    name: "kept_keys",
    kind: Kind::Counter,
    unit: "keys",
    labels: &[],
    help: "Expired keys kept for their jobs",
    meaning: "A key lives as long as its job, and a time to live after the job's end. The purger looks at a kept key \
              again each time to live, so this rises with the number of jobs that live longer than their keys.",
};

pub(super) const PURGE_FAILURES: Description = Description {
    name: "purge_failures",
    kind: Kind::Counter,
    unit: "rounds",
    labels: &[],
    help: "Purge rounds that failed",
    meaning: "A single failure is harmless. Repeated failures: the table `idempotency_keys` grows.",
};

pub(super) const PURGE_LAG: Description = Description {
    name: "purge_lag_seconds",
    kind: Kind::Gauge,
    unit: "seconds",
    labels: &[],
    help: "Time since the oldest unpurged key expired",
    meaning: "A few times `purge.interval` is normal. NaN: the database did not answer the scrape.",
};

pub(super) const CLAIMS: Description = Description {
    name: "claims",
    kind: Kind::Counter,
    unit: "requests",
    labels: &["result"],
    help: "Requests for a claim, by result",
    meaning: "`claimed`: 201, a new claim. `repeated`: 200 with the jobs that the claim still holds, usually because an \
              answer was lost. `nothing`: 200 without jobs. `other`: 409 `claim-exists-with-other-content`, a bug in \
              the worker. `ended`: 410 `claim-ended`. Errors count only in `hapax_http_requests_total`.",
};

pub(super) const JOB_WAIT: Description = Description {
    name: "job_wait_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    labels: &[],
    help: "Time from a job's run_at to its claim",
    meaning: "How long jobs wait for a worker. `_count` is the number of jobs claimed. A `run_at` before the job's \
              creation counts from the creation. A job of a lost lease counts from its old `run_at`. Jobs that nobody \
              claims do not count.",
};

pub(super) const JOB_RUN: Description = Description {
    name: "job_run_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    labels: &[],
    help: "Time from a job's claim to its recorded result",
    meaning: "How long workers hold jobs. Jobs that a worker claims and runs one after the other wait for each other \
              meanwhile. Lost leases and claims ended by DELETE do not count.",
};

pub(super) const REPORTS: Description = Description {
    name: "reports",
    kind: Kind::Counter,
    unit: "results",
    labels: &["status"],
    help: "Results sent by workers, by status",
    meaning: "`recorded`: the result counts. `already-recorded`: a repetition, usually because an answer was lost. \
              `recorded-otherwise`: the claim reported another outcome before. `lease-lost`: the claim does not hold \
              the job, so the result has no effect.",
};

pub(super) const SETTLED_JOBS: Description = Description {
    name: "settled_jobs",
    kind: Kind::Counter,
    unit: "jobs",
    labels: &["outcome"],
    help: "Jobs with a recorded result, by what became of them",
    meaning: "`succeeded`, `failed`, `cancelled`: the job is finished. `retried`: the attempt failed, and the job is \
              queued again. `released`: the worker gave the job back, by a result or by DELETE of its claim; with DELETE \
              also one that ended as cancelled, because its cancellation was requested. Lost \
              leases are in `hapax_lost_leases_total`.",
};

pub(super) const WAITING_REQUESTS: Description = Description {
    name: "waiting_requests",
    kind: Kind::Gauge,
    unit: "requests",
    labels: &[],
    help: "Requests that wait for a job, or for the end of a job",
    meaning: "Requests with `wait_seconds`. Idle workers wait here, so many are normal. They are not among the requests \
              in flight.",
};

pub(super) const WAITING_REQUESTS_LIMIT: Description = Description {
    name: "waiting_requests_limit",
    kind: Kind::Gauge,
    unit: "requests",
    labels: &[],
    help: "Maximum number of waiting requests",
    meaning: "`claims.waiting`. A further request is answered at once, as if its time were up, so workers without a \
              pause of their own send requests in a tight loop.",
};

pub(super) const NOTIFIED_EVENTS: Description = Description {
    name: "notified_events",
    kind: Kind::Counter,
    unit: "events",
    labels: &["result"],
    help: "New jobs and ends of jobs that replicas tell each other",
    meaning: "`sent`: told to the other replicas; the new jobs of a queue within 5 ms count once. `received`: told by \
              another replica. `dropped`: more than 256 events of one tenant, or 2048 of all, waited to be sent. Requests \
              that wait for them look within `claims.poll_interval`. Rises while `hapax_notifications_connected` is 0.",
};

pub(super) const NOTIFICATIONS_CONNECTED: Description = Description {
    name: "notifications_connected",
    kind: Kind::Gauge,
    unit: "0 or 1",
    labels: &[],
    help: "Whether the replica has its connection for notifications",
    meaning: "0 for long: new jobs of other replicas wait for up to `claims.poll_interval`, here and there. Also 0 if \
              `claims.notify_replicas` is off, or behind a pooler in `pool_mode = transaction`.",
};

pub(super) const LOST_LEASES: Description = Description {
    name: "lost_leases",
    kind: Kind::Counter,
    unit: "jobs",
    labels: &["outcome"],
    help: "Jobs taken from workers whose lease had expired",
    meaning: "`requeued`: another worker gets the job. `failed`: it was the last attempt. `cancelled`: a cancellation was \
              requested. Rises when workers die, or when their heartbeats are too slow for the lease.",
};

pub(super) const RECLAIM_FAILURES: Description = Description {
    name: "reclaim_failures",
    kind: Kind::Counter,
    unit: "rounds",
    labels: &[],
    help: "Reclaim rounds that failed",
    meaning: "A single failure is harmless. Repeated failures: jobs of dead workers stay with them.",
};

pub(super) const RECLAIM_LAG: Description = Description {
    name: "reclaim_lag_seconds",
    kind: Kind::Gauge,
    unit: "seconds",
    labels: &[],
    help: "Time since the oldest due claim should have been looked at by the reclaimer",
    meaning: "Up to `claims.reclaim_interval` is normal. More: jobs of dead workers stay with them. NaN: the database did \
              not answer the scrape.",
};

pub(super) const LOG_LINES_LOST: Description = Description {
    name: "log_lines_lost",
    kind: Kind::Counter,
    unit: "lines",
    labels: &[],
    help: "Log lines that were lost",
    meaning: "Above 0: the reader of standard output is too slow or has closed it. Requests never wait for the log.",
};

const CATALOGUE: [&Description; 45] = [
    &BUILD,
    &START_TIME,
    &READY,
    &HTTP_REQUESTS,
    &HTTP_REQUEST_DURATION,
    &HTTP_REQUESTS_IN_FLIGHT,
    &HTTP_REQUESTS_IN_FLIGHT_LIMIT,
    &HTTP_CONNECTIONS,
    &HTTP_CONNECTIONS_LIMIT,
    &HTTP_BODY_BYTES,
    &HTTP_BODY_BYTES_LIMIT,
    &SHED_REQUESTS,
    &QUOTA_REFUSALS,
    &IDEMPOTENCY_OUTCOMES,
    &REPLAY_CACHE_LOOKUPS,
    &REPLAY_CACHE_BYTES,
    &REPLAY_CACHE_LIMIT_BYTES,
    &INTAKE_QUEUE,
    &INTAKE_QUEUE_LIMIT,
    &GROUP_COMMIT_REQUESTS,
    &GROUP_COMMIT_WAIT,
    &GROUP_COMMIT_SPLITS,
    &TOKEN_LOOKUPS,
    &DATABASE_RETRIES,
    &DATABASE_CONNECTIONS,
    &DATABASE_CONNECTIONS_LIMIT,
    &DATABASE_CONNECTION_WAIT,
    &DATABASE_STATEMENT_DURATION,
    &PURGED_KEYS,
    &KEPT_KEYS,
    &PURGE_FAILURES,
    &PURGE_LAG,
    &CLAIMS,
    &JOB_WAIT,
    &JOB_RUN,
    &REPORTS,
    &SETTLED_JOBS,
    &WAITING_REQUESTS,
    &WAITING_REQUESTS_LIMIT,
    &NOTIFIED_EVENTS,
    &NOTIFICATIONS_CONNECTED,
    &LOST_LEASES,
    &RECLAIM_FAILURES,
    &RECLAIM_LAG,
    &LOG_LINES_LOST,
];

impl Description {
    /// The name on `/metrics`.
    fn exposed_name(&self) -> String {
        let suffix = match self.kind {
            Kind::Info => "_info",
            Kind::Counter => "_total",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{PREFIX}_{}{suffix}", self.name)
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// The text of `docs/metrics.md`, which `hapax metrics` prints.
pub fn document() -> String {
    let mut text = "# Metrics\n\nThe metrics on `/metrics`, at the address `metrics.bind`. `hapax metrics` prints \
                    this page; do not edit it by hand. Each series belongs to one replica: sum over `instance` for \
                    the whole service.\n\n| metric | type | unit | labels | what it counts | how to read it |\n\
                    |---|---|---|---|---|---|\n"
        .to_owned();
    for metric in CATALOGUE {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, unit) = (metric.exposed_name(), metric.kind.name(), metric.unit);
        let (labels, help, meaning) = (labels.join(", "), metric.help, metric.meaning);
        writeln!(text, "| `{name}` | {kind} | {unit} | {labels} | {help} | {meaning} |")
            .expect("writing to a string cannot fail");
    }
    text
}
