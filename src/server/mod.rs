//! The composition root: creates, starts and stops everything that lives as long as the process.

mod database_connection;
mod database_options;
mod listeners;
mod serving;
mod tasks;

pub use database_connection::{connect, connect_directly, database_settings};
pub use listeners::Listeners;

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use actix_server::{Server as HttpTask, ServerHandle};
use actix_web::web;
use anyhow::Context;
use futures_util::FutureExt;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::access::{Lives, Quota, Rate, TokenPools, UseTimes, Verifier};
use crate::changes::Changes;
use crate::claims::{self, Claims, Groups, SizeLimits, Verdict, reclaimer};
use crate::configuration::{self, Configuration};
use crate::database::{self, Pool, SharedPool, WriteOptions, Writes};
use crate::group_commit::{Bounds, GroupCommit, GroupedWrite};
use crate::http::{self, Admission, App, BodyMemory, Limits, MetricsSources, Quotas, Readiness, RefusedLines};
use crate::idempotency::purger::{self, Pace};
use crate::idempotency::{Engine, Replays};
use crate::intake::{InsertSubmissions, Intake};
use crate::long_poll::{self, LongPolls};
use crate::metrics::Metrics;
use crate::notifications::{self, Outbox};
use crate::offload::Offload;
use database_connection::await_database;
use serving::{serve_api, serve_operations};
use tasks::Tasks;

/// Expired claims that one statement takes. Each holds up to 100 jobs.
const RECLAIM_BATCH: u32 = 20;
/// The jobs and bytes that one statement of claims or of results takes from several requests.
const WORK_BATCH_JOBS: usize = 256;
const WORK_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// A claim holds up to as many.
const JOBS_PER_REQUEST_MAX: usize = 100;
/// For closing the database connections at the end. By then, only a statement of a probe or of a scrape can still run.
const LAST_CALL: Duration = Duration::from_secs(2);

/// Serves until `shutdown`, then finishes the accepted requests.
///
/// # Errors
/// If the database fails a check at the start, or if a task that serving needs has ended.
pub async fn run(
    configuration: &Configuration,
    listeners: Listeners,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let settings = database_settings(configuration)?;
    let allow_loss = configuration.database.allow_losing_acknowledged_jobs;
    match shutdown.run_until_cancelled(await_database(&settings, allow_loss)).await {
        None => return Ok(()),
        Some(looked) => looked?,
    }

    let pools = Pools::new(&settings, configuration, &metrics);
    let use_times = UseTimes::default();
    let groups = compose_groups(configuration, &pools);
    let app = web::Data::new(compose(configuration, &pools, &groups, use_times.clone(), &metrics));

    let (address, operations_address) = (listeners.api.local_addr()?, listeners.operations_address()?);
    let sources = MetricsSources { pools: pools.all().to_vec(), scrapes: pools.metrics.clone() };
    let operations = listeners
        .operations
        .map(|listener| serve_operations(configuration, listener, app.clone(), sources))
        .transpose()?;
    let api = serve_api(configuration, listeners.api, app.clone())?;
    let api_handle = api.handle();

    let mut tasks = Tasks::default();
    // Cancelled later than `shutdown`, because all tasks must run while the server drains.
    let ending = CancellationToken::new();
    groups.start(&mut tasks, write_options(configuration).first_try(), &metrics);
    let verifying = app.clone();
    tasks.start("the token verifier", async move {
        verifying.verifier.run().await;
        Ok(())
    });
    let purging = purger::run(pools.purge.clone(), pace(&configuration.purge), metrics.clone(), ending.clone());
    tasks.start("the purger", purging.map(Ok));
    let reclaiming = reclaimer::Pace { interval: configuration.claims.reclaim_interval, batch: RECLAIM_BATCH };
    let reclaiming = reclaimer::run(pools.reclaim.clone(), reclaiming, metrics.clone(), ending.clone());
    tasks.start("the reclaimer", reclaiming.map(Ok));
    tasks.start("the token use recorder", use_times.run(pools.purge.clone(), ending.clone()).map(Ok));
    if let Some(outbox) = app.long_polls.outbox().cloned() {
        let told = app.clone();
        let incoming = move |incoming| told.long_polls.learn(incoming);
        let notifying = notifications::run(settings, outbox, metrics, incoming, ending.clone());
        tasks.start("the exchange of notifications", notifying.map(Ok));
    }
    let (sources, until) = (app.clone(), ending.clone());
    tasks.start("the readiness check", async move {
        sources.readiness.watch(until).await;
        Ok(())
    });
    let operations_handle = operations.map(|server| start_server(&mut tasks, server));
    tracing::info!(api = %address, metrics = operations_address.as_deref(), "serving");

    let mut api = std::pin::pin!(api);
    let served = async {
        tokio::select! {
            ended = &mut api => return ended,
            () = shutdown.cancelled() => {}
        }
        app.readiness.drain();
        app.long_polls.close();
        tracing::info!(serving_on_for = ?configuration.server.drain_delay, "stopping: no longer ready");
        tokio::select! {
            ended = &mut api => return ended,
            () = sleep(configuration.server.drain_delay) => {}
        }
        tracing::info!("stopping: no new connections; accepted requests are finished first");
        let (ended, ()) = tokio::join!(api, api_handle.stop(true));
        ended
    };
    tokio::select! {
        served = served => served.context("the HTTP server failed")?,
        // Without the task, requests would hang, or housekeeping would stop unnoticed. So the process ends and is
        // restarted.
        error = tasks.ended() => return Err(error),
    }
    ending.cancel();
    groups.close();
    app.verifier.close();
    if let Some(handle) = operations_handle {
        handle.stop(false).await;
    }
    let closing = async {
        tasks.finish().await;
        for pool in pools.all() {
            pool.close().await;
        }
    };
    if timeout(LAST_CALL, closing).await.is_err() {
        tracing::warn!("database connections were closed before their statements had ended");
    }
    tracing::info!("stopped");
    Ok(())
}

/// A connection pool for each purpose, so that none starves another.
struct Pools {
    writers: Pool,
    intake: Pool,
    reads: Pool,
    /// For claims, heartbeats and results.
    claim_writers: Pool,
    /// For releases, and for claims, heartbeats and results that wait for another transaction.
    claims: Pool,
    tokens: TokenPools,
    /// For housekeeping: the purger, and the times of the last use of tokens.
    purge: Pool,
    /// For the reclaimer, so that a long purge does not delay the jobs of dead workers.
    reclaim: Pool,
    /// For readiness only, so that a probe never waits for a connection that another statement holds.
    probes: Pool,
    /// For the query of `/metrics`. A scrape gives up after a second, but its statement keeps the connection until it
    /// ends. On the connection of the probes, it would make `/readyz` answer 503. On that of the purger, it would make
    /// a purge round fail.
    metrics: Pool,
}

impl Pools {
    /// Total connections of the pools that have a fixed size.
    const FIXED: usize = 6;

    fn new(settings: &database::Settings, configuration: &Configuration, metrics: &Metrics) -> Self {
        let pool = |name, connections| Pool::new(name, settings.clone(), connections, metrics.clone());
        Self {
            writers: pool("writers", configuration.intake.writers),
            intake: pool("intake", configuration.intake.connections),
            reads: pool("reads", configuration.database.connections),
            claim_writers: pool("claim_writers", Groups::KINDS * configuration.claims.writers),
            claims: pool("claims", configuration.claims.connections),
            tokens: TokenPools { known: pool("known_tokens", 1), unknown: pool("unknown_tokens", 1) },
            purge: pool("purge", 1),
            reclaim: pool("reclaim", 1),
            probes: pool("probes", 1),
            metrics: pool("metrics", 1),
        }
    }

    /// The pools that serve requests.
    fn serving(&self) -> [Pool; 7] {
        let Self { writers, intake, reads, claim_writers, claims, tokens, .. } = self;
        [writers, intake, reads, claim_writers, claims, &tokens.known, &tokens.unknown].map(Pool::clone)
    }

    fn all(&self) -> [Pool; 11] {
        let [writers, intake, reads, claim_writers, claims, known, unknown] = self.serving();
        let [purge, reclaim, probes, metrics] =
            [&self.purge, &self.reclaim, &self.probes, &self.metrics].map(Pool::clone);
        [writers, intake, reads, claim_writers, claims, known, unknown, purge, reclaim, probes, metrics]
    }
}

/// Everything that is written by group commit.
struct GroupCommits {
    submissions: Arc<GroupCommit<InsertSubmissions>>,
    work: Groups,
}

impl GroupCommits {
    /// Starts the writers.
    fn start(&self, tasks: &mut Tasks, options: WriteOptions, metrics: &Metrics) {
        fn start<W: GroupedWrite>(
            (tasks, name): (&mut Tasks, &'static str),
            group: &GroupCommit<W>,
            options: WriteOptions,
            metrics: &Metrics,
        ) {
            metrics.expect_group_commits(W::NAME);
            for writer in group.writers(options, metrics) {
                tasks.start(name, writer.run().map(Ok));
            }
        }
        start((tasks, "a submission writer"), &self.submissions, options, metrics);
        start((tasks, "a claim writer"), &self.work.claims, options, metrics);
        start((tasks, "a heartbeat writer"), &self.work.heartbeats, options, metrics);
        start((tasks, "a result writer"), &self.work.results, options, metrics);
    }

    /// Accepts no more requests. The writers end when all accepted ones are answered.
    fn close(&self) {
        self.submissions.close();
        self.work.claims.close();
        self.work.heartbeats.close();
        self.work.results.close();
    }
}

fn compose_groups(configuration: &Configuration, pools: &Pools) -> GroupCommits {
    let configuration::Intake { writers, batch_jobs, batch_bytes, queue_jobs, queue_bytes, .. } = configuration.intake;
    let acquire_timeout = configuration.database.acquire_timeout;
    let bounds = Bounds { batch_jobs, batch_bytes, queue_jobs, queue_bytes, acquire_timeout };
    let configuration::Claims { writers: claim_writers, retry_delay_min, retry_delay_max, .. } = configuration.claims;
    let settings = claims::Settings { retry_delay_min, retry_delay_max };
    let work_bounds = Bounds {
        batch_jobs: WORK_BATCH_JOBS,
        batch_bytes: WORK_BATCH_BYTES,
        // Not reached: requests in flight are limited, and so are the bytes of their bodies.
        queue_jobs: 2 * JOBS_PER_REQUEST_MAX * configuration.server.requests_in_flight,
        queue_bytes: 2 * configuration.server.body_bytes_in_flight,
        acquire_timeout,
    };
    GroupCommits {
        submissions: Arc::new(GroupCommit::new(InsertSubmissions, pools.writers.clone(), writers, bounds)),
        work: Groups::new(&pools.claim_writers, claim_writers, work_bounds, settings),
    }
}

fn write_options(configuration: &Configuration) -> WriteOptions {
    let lock_wait = configuration.intake.lock_wait;
    WriteOptions { lock_wait, insist_on_durability: !configuration.database.allow_losing_acknowledged_jobs }
}

fn compose(
    configuration: &Configuration,
    pools: &Pools,
    groups: &GroupCommits,
    use_times: UseTimes,
    metrics: &Metrics,
) -> App {
    http::keyed_routes().for_each(|route| metrics.expect_outcomes(route.0));
    Verdict::ALL.iter().for_each(|verdict| metrics.expect_reports(verdict.name()));
    let Configuration { server, database, idempotency, claims, access, .. } = configuration;
    let options = write_options(configuration);
    let offload = Arc::new(Offload::new(available_parallelism().map_or(1, NonZero::get)));
    let replays = Arc::new(Replays::new(idempotency.replay_cache_bytes, metrics.clone()));
    let engine = Engine::new(Writes::new(SharedPool::new(pools.intake.clone()), options), Arc::clone(&replays));
    let waits = long_poll::Bounds {
        waiting: claims.waiting,
        waiting_per_tenant: claims.waiting_per_tenant,
        poll_interval: claims.poll_interval,
    };
    let outbox = configuration.notifies_replicas().then(|| Arc::new(Outbox::new(metrics.clone())));
    let long_polls = Arc::new(LongPolls::new(waits, outbox));
    let reads = SharedPool::new(pools.reads.clone());
    App {
        intake: Intake::new(
            engine.clone(),
            Arc::clone(&groups.submissions),
            Arc::clone(&offload),
            Arc::clone(&long_polls),
        ),
        changes: Changes::new(engine, Arc::clone(&long_polls)),
        claims: Claims::new(
            groups.work.clone(),
            Writes::new(SharedPool::new(pools.claims.clone()), options),
            reads.clone(),
            Arc::clone(&long_polls),
        ),
        long_polls,
        replays,
        reads,
        verifier: Verifier::new(
            pools.tokens.clone(),
            Lives { cache: access.cache_life, outage: access.outage_life },
            use_times,
            metrics.clone(),
        ),
        quotas: quotas(&configuration.quota, metrics),
        readiness: Readiness::new(
            pools.probes.clone(),
            pools.serving().to_vec(),
            database.allow_losing_acknowledged_jobs,
        ),
        metrics: metrics.clone(),
        limits: Limits {
            body_bytes: server.body_limit_bytes,
            body_bytes_per_tenant: server.body_bytes_in_flight_per_tenant,
            body_deadline: server.body_deadline,
            request_deadline: server.request_deadline,
            reports: SizeLimits { result_bytes: claims.result_bytes, error_bytes: claims.error_bytes },
        },
        admission: Admission::new(server.requests_in_flight, server.requests_in_flight_per_tenant),
        body_memory: BodyMemory::new(server.body_bytes_in_flight, server.body_bytes_in_flight_per_tenant),
        offload,
        refused_lines: RefusedLines::default(),
        time_to_live: idempotency.time_to_live,
        public_url: server.public_url.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn quotas(settings: &configuration::Quota, metrics: &Metrics) -> Quotas {
    let (requests, creations, replays) = ("requests", "creations", "replays");
    [requests, creations, replays].into_iter().for_each(|policy| metrics.expect_quota_refusals(policy));
    let rate = |per_second, burst| Rate { per_second, burst };
    Quotas {
        requests: Quota::new(requests, rate(settings.requests_per_second, settings.requests_burst)),
        creations: Quota::new(creations, rate(settings.creations_per_second, settings.creations_burst)),
        replays: Quota::new(replays, rate(settings.replays_per_second, settings.replays_burst)),
    }
}

/// The purger's settings.
pub fn pace(purge: &configuration::Purge) -> Pace {
    Pace { interval: purge.interval, batch: purge.batch, pause: purge.pause }
}

fn start_server(tasks: &mut Tasks, server: HttpTask) -> ServerHandle {
    let handle = server.handle();
    tasks.start("the metrics server", async { Ok(server.await?) });
    handle
}
