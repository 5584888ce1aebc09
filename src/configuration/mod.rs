//! Settings, read and checked before anything starts.
//!
//! Sources, in rising precedence: defaults, a TOML file, the environment (`HAPAX__SECTION__NAME`, and `DATABASE_URL`),
//! the command line. Nothing else in the program reads the environment.

mod database_url;
mod public_url;
mod sources;

pub use database_url::DatabaseUrl;
pub use public_url::PublicUrl;
pub use sources::{Overrides, address, variable};

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::database::Pooler;
use crate::telemetry::LogFormat;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Configuration {
    pub server: Server,
    pub database: Database,
    pub intake: Intake,
    pub idempotency: Idempotency,
    pub purge: Purge,
    pub claims: Claims,
    pub access: Access,
    pub quota: Quota,
    pub metrics: Metrics,
    pub log: Log,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Address of the API.
    pub bind: SocketAddr,
    /// Public URL of the service, if a gateway publishes it under another host or below a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<PublicUrl>,
    /// HTTP worker threads; 0: one per core.
    pub workers: usize,
    /// Maximum size of a request body.
    pub body_limit_bytes: usize,
    /// Time limit for receiving a whole body.
    #[serde(with = "humantime_serde")]
    pub body_deadline: Duration,
    /// Time limit for answering a request once its body has arrived, whatever the database does.
    #[serde(with = "humantime_serde")]
    pub request_deadline: Duration,
    /// A connection is closed if its client accepts no byte of the answer for this long.
    #[serde(with = "humantime_serde")]
    pub write_deadline: Duration,
    /// Maximum open connections; 0: as many as the limit on file descriptors allows, up to [`Server::CONNECTIONS_MAX`].
    pub connections: usize,
    /// Maximum requests in flight. Further requests get 503 immediately.
    pub requests_in_flight: usize,
    /// How many of them one tenant may have.
    pub requests_in_flight_per_tenant: usize,
    /// Memory for the bodies of all requests and answers. A request whose body does not fit gets 503 immediately.
    pub body_bytes_in_flight: usize,
    /// How much of it one tenant may use.
    pub body_bytes_in_flight_per_tenant: usize,
    /// How long the server keeps serving after the stop signal, while `/readyz` fails. Must be longer than the load
    /// balancer takes to notice.
    #[serde(with = "humantime_serde")]
    pub drain_delay: Duration,
    /// Time limit for the whole shutdown, from the stop signal on.
    #[serde(with = "humantime_serde")]
    pub shutdown_deadline: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// The PostgreSQL to use. `DATABASE_URL` sets it, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<DatabaseUrl>,
    /// Whether the URL leads to PostgreSQL itself or to a pooler.
    pub pooler: Pooler,
    /// Connections for reading jobs.
    pub connections: usize,
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long a request waits for a free connection or an unreachable database before it gets 503.
    #[serde(with = "humantime_serde")]
    pub acquire_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub idle_in_transaction_timeout: Duration,
    /// Allow a PostgreSQL whose `fsync` or `synchronous_commit` is off.
    pub allow_losing_acknowledged_jobs: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intake {
    /// Writers of submissions. Each has one connection and writes many submissions in one statement.
    pub writers: usize,
    /// Maximum submissions in one statement.
    pub batch_jobs: usize,
    /// Maximum size of one statement, unless a single submission is larger.
    pub batch_bytes: usize,
    /// Maximum submissions that are queued or in flight. Further ones get 503 immediately.
    pub queue_jobs: usize,
    /// Maximum total size of these submissions.
    pub queue_bytes: usize,
    /// Connections for single writes: changes, named and unique jobs, and submissions that wait for another
    /// transaction.
    pub connections: usize,
    /// How long a write waits for a lock of another transaction, on an idempotency key, a job or a table. Also the lock
    /// timeout of sessions, which limits reads.
    #[serde(with = "humantime_serde")]
    pub lock_wait: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Idempotency {
    /// How long an idempotency key and its stored answer live.
    #[serde(with = "humantime_serde")]
    pub time_to_live: Duration,
    /// Maximum size of the replay cache; 0: no cache.
    pub replay_cache_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Purge {
    /// Time between two rounds, ±25 %.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Expired keys that one statement deletes.
    pub batch: u32,
    /// Time between two statements of a round.
    #[serde(with = "humantime_serde")]
    pub pause: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Writers of claims, and as many each of heartbeats and of results. Each has one connection and writes for many
    /// requests in one statement.
    pub writers: usize,
    /// Connections for releases, and for claims, heartbeats and results that wait for another transaction.
    pub connections: usize,
    /// How often expired claims are looked for. A job of a dead worker is available again within its lease and this time.
    #[serde(with = "humantime_serde")]
    pub reclaim_interval: Duration,
    /// The delay before the second attempt of a failed job. It doubles with each attempt. A random part of up to half is
    /// left out.
    #[serde(with = "humantime_serde")]
    pub retry_delay_min: Duration,
    /// The longest delay before an attempt.
    #[serde(with = "humantime_serde")]
    pub retry_delay_max: Duration,
    /// Maximum size of the result of a job, in bytes of JSON.
    pub result_bytes: usize,
    /// Maximum size of the error of a job, in bytes of JSON.
    pub error_bytes: usize,
    /// Requests that may wait for a job, or for the end of a job, at once. A further one is answered at once, as if its
    /// time were up.
    pub waiting: usize,
    /// How many of them one tenant may have.
    pub waiting_per_tenant: usize,
    /// How often a waiting request looks by itself. It finds what wakes no request: a job whose time has come, that is
    /// tried again or was taken from a dead worker, and what no notification told of.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// Tell the other replicas of new jobs and of ends of jobs, by NOTIFY, and listen for theirs. Takes one connection.
    /// Without effect behind a pooler in pool_mode transaction, where no session can listen.
    pub notify_replicas: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// How long a verified token is cached. A revocation takes effect within this time.
    #[serde(with = "humantime_serde")]
    pub cache_life: Duration,
    /// How long a verified token stays valid while the database does not answer. Revocations have no effect meanwhile.
    #[serde(with = "humantime_serde")]
    pub outage_life: Duration,
}

/// All limits are per replica. A rate of 0 means no limit.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Per token.
    pub requests_per_second: u32,
    pub requests_burst: u32,
    /// Per tenant. Replays do not count.
    pub creations_per_second: u32,
    pub creations_burst: u32,
    /// Per idempotency key.
    pub replays_per_second: u32,
    pub replays_burst: u32,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Address of `/metrics`. Default: 127.0.0.1, at the API's port plus 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<SocketAddr>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    /// A filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 8080)),
            public_url: None,
            workers: 0,
            body_limit_bytes: 1024 * 1024,
            body_deadline: Duration::from_secs(10),
            request_deadline: Duration::from_secs(10),
            write_deadline: Duration::from_secs(20),
            connections: 0,
            requests_in_flight: 1000,
            requests_in_flight_per_tenant: 750,
            body_bytes_in_flight: 256 * 1024 * 1024,
            body_bytes_in_flight_per_tenant: 64 * 1024 * 1024,
            drain_delay: Duration::from_secs(5),
            shutdown_deadline: Duration::from_secs(25),
        }
    }
}

impl Server {
    /// What one replica serves well. An idle connection takes about 20 KiB.
    pub const CONNECTIONS_MAX: usize = 16_384;
    /// A larger body would occupy a CPU for too long.
    const BODY_LIMIT_BYTES_MAX: usize = 8 * 1024 * 1024;
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: None,
            pooler: Pooler::None,
            connections: 4,
            connect_timeout: Duration::from_secs(1),
            acquire_timeout: Duration::from_secs(1),
            statement_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(10),
            allow_losing_acknowledged_jobs: false,
        }
    }
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            writers: 2,
            batch_jobs: 512,
            batch_bytes: 4 * 1024 * 1024,
            queue_jobs: 4096,
            queue_bytes: 32 * 1024 * 1024,
            connections: 8,
            lock_wait: Duration::from_secs(2),
        }
    }
}

impl Default for Idempotency {
    fn default() -> Self {
        Self { time_to_live: Duration::from_secs(24 * 60 * 60), replay_cache_bytes: 64 * 1024 * 1024 }
    }
}

impl Default for Purge {
    fn default() -> Self {
        Self { interval: Duration::from_secs(60), batch: 5000, pause: Duration::from_millis(100) }
    }
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            writers: 2,
            connections: 4,
            reclaim_interval: Duration::from_secs(5),
            retry_delay_min: Duration::from_secs(5),
            retry_delay_max: Duration::from_secs(15 * 60),
            result_bytes: 64 * 1024,
            error_bytes: 16 * 1024,
            waiting: 1000,
            waiting_per_tenant: 750,
            poll_interval: Duration::from_secs(1),
            notify_replicas: true,
        }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self { cache_life: Duration::from_secs(10), outage_life: Duration::from_secs(60 * 60) }
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            requests_per_second: 1000,
            requests_burst: 2000,
            creations_per_second: 1000,
            creations_burst: 2000,
            replays_per_second: 10,
            replays_burst: 250,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info,actix_server=warn,actix_http=off".to_owned() }
    }
}

impl Configuration {
    /// Defaults for `hapax dev`: no quotas and no drain delay, since there is no load balancer.
    pub fn for_development() -> Self {
        let no_limit =
            Quota { requests_per_second: 0, creations_per_second: 0, replays_per_second: 0, ..Quota::default() };
        let server = Server { drain_delay: Duration::ZERO, ..Server::default() };
        Self { server, quota: no_limit, ..Self::default() }
    }

    /// The effective settings as TOML, without secrets.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// The database URL.
    ///
    /// # Errors
    /// If none is set.
    pub fn database_url(&self) -> anyhow::Result<&str> {
        let url = self.database.url.as_ref();
        url.map(DatabaseUrl::expose).context("setting database.url: set it, or DATABASE_URL, to a PostgreSQL URL")
    }

    /// The address of the metrics server, and whether it was set explicitly.
    pub fn metrics_bind(&self) -> (SocketAddr, bool) {
        const DISTANCE: u16 = 1000;
        let port = self.server.bind.port();
        let derived = if port == 0 { 0 } else { port.checked_add(DISTANCE).unwrap_or(port - DISTANCE) };
        let default = SocketAddr::from(([127, 0, 0, 1], derived));
        self.metrics.bind.map_or((default, false), |bind| (bind, true))
    }

    /// Whether replicas tell each other of new jobs.
    pub fn notifies_replicas(&self) -> bool {
        self.claims.notify_replicas && self.database.pooler != Pooler::Transaction
    }

    fn check(&self) -> anyhow::Result<()> {
        let (server, database) = (&self.server, &self.database);
        let year = Duration::from_secs(366 * 24 * 60 * 60);
        let (millisecond, hour) = (Duration::from_millis(1), Duration::from_secs(60 * 60));
        let lock_wait = self.intake.lock_wait;
        const RATE_MAX: u32 = 1_000_000;
        let (quota, claims) = (&self.quota, &self.claims);
        let rates = [
            (quota.requests_per_second, quota.requests_burst),
            (quota.creations_per_second, quota.creations_burst),
            (quota.replays_per_second, quota.replays_burst),
        ];
        let rules = [
            (server.workers <= 1024, "server.workers: at most 1024"),
            (
                (1024..=Server::BODY_LIMIT_BYTES_MAX).contains(&server.body_limit_bytes),
                "server.body_limit_bytes: from 1024 (1 KiB) to 8388608 (8 MiB)",
            ),
            (
                server.body_limit_bytes <= server.body_bytes_in_flight_per_tenant,
                "server.body_bytes_in_flight_per_tenant: at least server.body_limit_bytes",
            ),
            (
                server.body_bytes_in_flight_per_tenant <= server.body_bytes_in_flight
                    && server.body_bytes_in_flight <= 4_000_000_000,
                "server.body_bytes_in_flight: from server.body_bytes_in_flight_per_tenant to 4000000000",
            ),
            ((millisecond..=hour).contains(&server.body_deadline), "server.body_deadline: from 1ms to 1h"),
            ((millisecond..=hour).contains(&server.request_deadline), "server.request_deadline: from 1ms to 1h"),
            ((millisecond..=hour).contains(&server.write_deadline), "server.write_deadline: from 1ms to 1h"),
            (
                server.shutdown_deadline >= server.drain_delay.saturating_add(Duration::from_secs(5)),
                "server.shutdown_deadline: at least 5s longer than server.drain_delay",
            ),
            (server.requests_in_flight >= 1, "server.requests_in_flight: at least 1"),
            (server.requests_in_flight_per_tenant >= 1, "server.requests_in_flight_per_tenant: at least 1"),
            ((1..=1000).contains(&database.connections), "database.connections: from 1 to 1000"),
            (database.connect_timeout >= millisecond, "database.connect_timeout: at least 1ms"),
            ((millisecond..=hour).contains(&database.acquire_timeout), "database.acquire_timeout: from 1ms to 1h"),
            (server.drain_delay <= hour, "server.drain_delay: at most 1h"),
            (database.statement_timeout >= millisecond, "database.statement_timeout: at least 1ms"),
            (
                database.statement_timeout < server.request_deadline,
                "database.statement_timeout: shorter than server.request_deadline",
            ),
            (database.idle_in_transaction_timeout >= millisecond, "database.idle_in_transaction_timeout: at least 1ms"),
            ((1..=64).contains(&self.intake.writers), "intake.writers: from 1 to 64"),
            ((1..=10_000).contains(&self.intake.batch_jobs), "intake.batch_jobs: from 1 to 10000"),
            (
                (1024..=256 * 1024 * 1024).contains(&self.intake.batch_bytes),
                "intake.batch_bytes: from 1024 (1 KiB) to 268435456 (256 MiB)",
            ),
            ((1..=1_000_000).contains(&self.intake.queue_jobs), "intake.queue_jobs: from 1 to 1000000"),
            (
                (1024..=4_000_000_000).contains(&self.intake.queue_bytes),
                "intake.queue_bytes: from 1024 (1 KiB) to 4000000000",
            ),
            ((2..=1000).contains(&self.intake.connections), "intake.connections: from 2 to 1000"),
            (lock_wait >= millisecond, "intake.lock_wait: at least 1ms"),
            (lock_wait < database.statement_timeout, "intake.lock_wait: shorter than database.statement_timeout"),
            (
                (Duration::from_secs(1)..=year).contains(&self.idempotency.time_to_live),
                "idempotency.time_to_live: from 1s to 366days",
            ),
            (
                self.idempotency.replay_cache_bytes <= 1 << 40,
                "idempotency.replay_cache_bytes: at most 1099511627776 (1 TiB)",
            ),
            (self.purge.interval >= millisecond, "purge.interval: at least 1ms"),
            ((1..=100_000).contains(&self.purge.batch), "purge.batch: from 1 to 100000"),
            ((1..=100).contains(&claims.writers), "claims.writers: from 1 to 100"),
            ((1..=1000).contains(&claims.connections), "claims.connections: from 1 to 1000"),
            ((millisecond..=hour).contains(&claims.reclaim_interval), "claims.reclaim_interval: from 1ms to 1h"),
            (claims.retry_delay_min >= millisecond, "claims.retry_delay_min: at least 1ms"),
            (
                (claims.retry_delay_min..=hour * 24).contains(&claims.retry_delay_max),
                "claims.retry_delay_max: from claims.retry_delay_min to 24h",
            ),
            ((1..=1024 * 1024).contains(&claims.result_bytes), "claims.result_bytes: from 1 to 1048576 (1 MiB)"),
            ((1..=1024 * 1024).contains(&claims.error_bytes), "claims.error_bytes: from 1 to 1048576 (1 MiB)"),
            (claims.waiting <= 1_000_000, "claims.waiting: at most 1000000"),
            (claims.waiting_per_tenant <= claims.waiting, "claims.waiting_per_tenant: at most claims.waiting"),
            ((millisecond..=hour).contains(&claims.poll_interval), "claims.poll_interval: from 1ms to 1h"),
            (rates.iter().all(|(rate, _)| *rate <= RATE_MAX), "quota: at most 1000000 per second"),
            (
                rates.iter().all(|(rate, burst)| *rate == 0 || (1..=RATE_MAX).contains(burst)),
                "quota: a burst from 1 to 1000000; a rate of 0 is no limit",
            ),
            (self.access.cache_life <= hour, "access.cache_life: at most 1h"),
            (self.access.outage_life <= hour * 24, "access.outage_life: at most 24h"),
        ];
        for (holds, rule) in rules {
            if !holds {
                bail!("setting {rule}");
            }
        }
        Ok(())
    }
}
