//! Every metric by name, and what it means. Metrics are registered from here, and `docs/metrics.md` is written from
//! here.

use std::fmt::Write;

/// One metric, as Prometheus and a reader know it.
pub struct Description {
    /// Without the prefix, and without the `_total` that the exposition gives a counter.
    pub(super) name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static [&'static str],
    /// In a few words, for the exposition.
    pub(super) help: &'static str,
    /// What its values tell whoever looks at it.
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
    help: "The release that runs",
    meaning: "Always 1; the label tells the release. Two values at once: a deploy is under way.",
};

pub(super) const START_TIME: Description = Description {
    name: "start_time_seconds",
    kind: Kind::Gauge,
    unit: "seconds since 1970",
    labels: &[],
    help: "When the process started",
    meaning: "It changes when the process is replaced: more often than you deploy is a crash loop.",
};

pub(super) const READY: Description = Description {
    name: "ready",
    kind: Kind::Gauge,
    unit: "0 or 1",
    labels: &[],
    help: "Whether requests are welcome",
    meaning: "What `/readyz` would say at the moment of the scrape. 0: shutting down, or the database is away, \
              read-only, too old in its schema or not durable.",
};

pub(super) const HTTP_REQUESTS: Description = Description {
    name: "http_requests",
    kind: Kind::Counter,
    unit: "requests",
    labels: &["method", "route", "status"],
    help: "Requests answered, by method, route template and status",
    meaning: "Traffic and errors. A path that does not exist has the route `(none)`, a method that nobody knows is \
              `other`.",
};

pub(super) const HTTP_REQUEST_DURATION: Description = Description {
    name: "http_request_duration_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    labels: &["method", "route"],
    help: "From a request's head to its answer",
    meaning: "Latency as the server sees it; the time that a body takes to arrive is in it.",
};

pub(super) const HTTP_REQUESTS_IN_FLIGHT: Description = Description {
    name: "http_requests_in_flight",
    kind: Kind::Gauge,
    unit: "requests",
    labels: &[],
    help: "Requests being worked on",
    meaning: "Near its limit: the database is slower than what comes in.",
};

pub(super) const HTTP_REQUESTS_IN_FLIGHT_LIMIT: Description = Description {
    name: "http_requests_in_flight_limit",
    kind: Kind::Gauge,
    unit: "requests",
    labels: &[],
    help: "How many requests may be worked on at once",
    meaning: "`server.requests_in_flight`. One more is answered 503 `overloaded`.",
};

pub(super) const HTTP_CONNECTIONS: Description = Description {
    name: "http_connections",
    kind: Kind::Gauge,
    unit: "connections",
    labels: &[],
    help: "Open connections from clients or the load balancer",
    meaning: "Idle ones included. Near its limit, new ones wait in the system's queue.",
};

pub(super) const HTTP_CONNECTIONS_LIMIT: Description = Description {
    name: "http_connections_limit",
    kind: Kind::Gauge,
    unit: "connections",
    labels: &[],
    help: "How many connections may be open at once",
    meaning: "`server.connections`, or what the limit on file descriptors leaves.",
};

pub(super) const HTTP_BODY_BYTES: Description = Description {
    name: "http_body_bytes",
    kind: Kind::Gauge,
    unit: "bytes",
    labels: &[],
    help: "Memory that request and answer bodies take",
    meaning: "Small bodies are not counted; `server.requests_in_flight` bounds them. Near its limit: large bodies arrive \
              faster than they are worked on, or clients do not read their answers.",
};

pub(super) const HTTP_BODY_BYTES_LIMIT: Description = Description {
    name: "http_body_bytes_limit",
    kind: Kind::Gauge,
    unit: "bytes",
    labels: &[],
    help: "How much memory bodies may take",
    meaning: "`server.body_bytes_in_flight`. One more is answered 503 `overloaded`.",
};

pub(super) const SHED_REQUESTS: Description = Description {
    name: "shed_requests",
    kind: Kind::Counter,
    unit: "requests",
    labels: &["reason"],
    help: "Requests refused with 503 to keep the rest going, by why",
    meaning: "`in_flight`: more than may be worked on at once. `tenant_in_flight`: more than one tenant's share of them. \
              `body_bytes`: bodies take `server.body_bytes_in_flight`. `tenant_body_bytes`: one tenant's bodies take \
              `server.body_bytes_in_flight_per_tenant`. `cpu`: large bodies of one tenant waited for a CPU until their \
              deadline. `waited`: no connection to the database came free, or no writer, within \
              `database.acquire_timeout`. `tenant_waited`: none of the connections that one tenant may use, which is half of a \
              pool, or its only one. `queue_full`: `intake.queue_jobs` or `intake.queue_bytes` are waiting to be written. \
              `tenant_queue_full`: half of that is one tenant's. `outage`: the database has been away for longer than that, and it was another request's turn to look. \
              `unknown_tokens`: too many requests wait for the look-up of a token that this replica has not seen \
              before, or one has waited for 2 s.",
};

pub(super) const QUOTA_REFUSALS: Description = Description {
    name: "quota_refusals",
    kind: Kind::Counter,
    unit: "requests",
    labels: &["policy"],
    help: "Requests refused with 429, by the quota that was used up",
    meaning: "`requests`: of a token. `creations`: of a tenant. `replays`: one key sent too often, a client that retries in a \
              tight loop.",
};

pub(super) const IDEMPOTENCY_OUTCOMES: Description = Description {
    name: "idempotency_outcomes",
    kind: Kind::Counter,
    unit: "requests",
    labels: &["route", "outcome"],
    help: "Requests on keyed routes, by what became of them",
    meaning: "`created`, `changed`, `deduplicated` (another key's job has the content), `replayed`: answered 2xx. \
              `mismatch`: 422, a client's bug. `in_flight`: 409. `refused`: the key was not touched. `unknown`: 503 `outcome-unknown`, an attempt was lost and what became of it could not be \
              found out in time.",
};

pub(super) const REPLAY_CACHE_LOOKUPS: Description = Description {
    name: "replay_cache_lookups",
    kind: Kind::Counter,
    unit: "look-ups",
    labels: &["result"],
    help: "Keys looked for in memory before the database is asked",
    meaning: "`remembered`: a replay that cost the database nothing. Far more replays than that: they come to other replicas \
              than the first request did, later than ten minutes, or `idempotency.replay_cache_bytes` is too small.",
};

pub(super) const REPLAY_CACHE_BYTES: Description = Description {
    name: "replay_cache_bytes",
    kind: Kind::Gauge,
    unit: "bytes",
    labels: &[],
    help: "What the remembered outcomes take",
    meaning: "It grows up to its limit and stays there: what has expired makes room when room is needed.",
};

pub(super) const REPLAY_CACHE_LIMIT_BYTES: Description = Description {
    name: "replay_cache_limit_bytes",
    kind: Kind::Gauge,
    unit: "bytes",
    labels: &[],
    help: "What the remembered outcomes may take",
    meaning: "`idempotency.replay_cache_bytes`.",
};

pub(super) const INTAKE_QUEUE: Description = Description {
    name: "intake_queue_jobs",
    kind: Kind::Gauge,
    unit: "jobs",
    labels: &[],
    help: "Submissions that wait to be written, or are being written",
    meaning: "Near its limit: the database is slower than what comes in.",
};

pub(super) const INTAKE_QUEUE_LIMIT: Description = Description {
    name: "intake_queue_limit_jobs",
    kind: Kind::Gauge,
    unit: "jobs",
    labels: &[],
    help: "How many submissions may wait to be written",
    meaning: "`intake.queue_jobs`. One more is answered 503 `overloaded`.",
};

pub(super) const INTAKE_BATCH: Description = Description {
    name: "intake_batch_jobs",
    kind: Kind::Histogram,
    unit: "jobs",
    labels: &[],
    help: "Submissions in one statement",
    meaning: "1 when it is quiet. At `intake.batch_jobs` for long: the database is the bottleneck.",
};

pub(super) const INTAKE_WAIT: Description = Description {
    name: "intake_wait_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    labels: &[],
    help: "How long the first submission of a batch has waited for a writer",
    meaning: "As long as a statement takes, when there is load. A submission that waits for `database.acquire_timeout` gets 503.",
};

pub(super) const INTAKE_SPLITS: Description = Description {
    name: "intake_batch_splits",
    kind: Kind::Counter,
    unit: "batches",
    labels: &["reason"],
    help: "Batches that failed and were sent again in parts",
    meaning: "`locked`: a transaction elsewhere holds a key for more than 20 ms. `refused`: PostgreSQL would not have one of the \
              jobs, which is a defect: its request is answered 500 and logged.",
};

pub(super) const TOKEN_LOOKUPS: Description = Description {
    name: "token_lookups",
    kind: Kind::Counter,
    unit: "look-ups",
    labels: &["result"],
    help: "Tokens that the database was asked about",
    meaning: "`known`: one a token and `access.cache_life`. `unknown`: garbage, or a token that was revoked. `failed`: the \
              database did not say.",
};

pub(super) const DATABASE_RETRIES: Description = Description {
    name: "database_retries",
    kind: Kind::Counter,
    unit: "attempts",
    labels: &["reason"],
    help: "Statements sent again, by why",
    meaning: "`connect`: no connection could be opened, or an idle one had died. `lost`: one broke under way. `stale`: a migration, a failover or \
              a pooler made its prepared statements useless. `collided`: a deadlock or a serialization failure.",
};

pub(super) const DATABASE_CONNECTIONS: Description = Description {
    name: "database_connections",
    kind: Kind::Gauge,
    unit: "connections",
    labels: &["pool", "state"],
    help: "Connections to PostgreSQL, by pool and state",
    meaning: "`busy` at the pool's limit for long: requests wait for a connection. One tenant uses at most half of intake and of \
              reads, or the only one. Pools: writers, intake, reads, \
              known_tokens, unknown_tokens, purge, probes, metrics.",
};

pub(super) const DATABASE_CONNECTIONS_LIMIT: Description = Description {
    name: "database_connections_limit",
    kind: Kind::Gauge,
    unit: "connections",
    labels: &["pool"],
    help: "How many connections a pool may have",
    meaning: "`intake.writers`, `intake.connections` and `database.connections`; the others are fixed. Their sum, times the replicas, must \
              fit PostgreSQL's `max_connections`.",
};

pub(super) const DATABASE_CONNECTION_WAIT: Description = Description {
    name: "database_connection_wait_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    labels: &["pool"],
    help: "How long a statement waited for a connection that it got",
    meaning: "The queue in front of the database; opening a new connection is in it.",
};

pub(super) const PURGED_KEYS: Description = Description {
    name: "purged_keys",
    kind: Kind::Counter,
    unit: "keys",
    labels: &[],
    help: "Expired keys deleted",
    meaning: "In the long run as many as are created.",
};

pub(super) const PURGE_FAILURES: Description = Description {
    name: "purge_failures",
    kind: Kind::Counter,
    unit: "rounds",
    labels: &[],
    help: "Rounds of purging that failed",
    meaning: "Harmless now and then; in a row, the table grows.",
};

pub(super) const PURGE_LAG: Description = Description {
    name: "purge_lag_seconds",
    kind: Kind::Gauge,
    unit: "seconds",
    labels: &[],
    help: "How long the oldest expired key has waited for the purger",
    meaning: "A few times `purge.interval` is well. NaN: the database could not be asked.",
};

pub(super) const LOG_LINES_LOST: Description = Description {
    name: "log_lines_lost",
    kind: Kind::Counter,
    unit: "lines",
    labels: &[],
    help: "Lines of the log that could not be written",
    meaning: "More than none: whoever reads standard output stalls, or has gone. Requests do not wait for it.",
};

const CATALOGUE: [&Description; 31] = [
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
    &INTAKE_BATCH,
    &INTAKE_WAIT,
    &INTAKE_SPLITS,
    &TOKEN_LOOKUPS,
    &DATABASE_RETRIES,
    &DATABASE_CONNECTIONS,
    &DATABASE_CONNECTIONS_LIMIT,
    &DATABASE_CONNECTION_WAIT,
    &PURGED_KEYS,
    &PURGE_FAILURES,
    &PURGE_LAG,
    &LOG_LINES_LOST,
];

impl Description {
    /// As it stands in the exposition.
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

/// `docs/metrics.md`, which `hapax metrics` prints.
pub fn document() -> String {
    let mut text = "# Metrics\n\nWhat `/metrics` shows, at the address of `metrics.bind`. This page is what `hapax metrics` \
                    prints; a test holds it to the code. Each series belongs to one replica: sum over `instance` for \
                    the service.\n\n| metric | type | unit | labels | what it is | what it tells |\n|---|---|---|---|---|---|\n"
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
