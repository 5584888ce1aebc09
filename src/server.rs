//! The composition: everything that lives as long as the process is made, started and stopped here.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use actix_web::dev::{Server as HttpTask, ServerHandle};
use actix_web::middleware::from_fn;
use actix_web::{App as HttpApp, HttpServer, web};
use anyhow::{Context, bail};
use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Verifier;
use crate::configuration::{self, Configuration};
use crate::database::{self, Durability, Lane, Schema};
use crate::http::{self, App, Limits, Readiness, Watched};
use crate::idempotency::purger::{self, Pace};
use crate::intake::{Intake, Terms};
use crate::metrics::Metrics;

/// What the database may take to be looked at before anything is served from it.
const FIRST_LOOK: Duration = Duration::from_secs(30);

/// The addresses that a server has.
pub struct Listeners {
    pub api: TcpListener,
    /// `None` where the default address was taken: a second server on one machine starts without further ado.
    metrics: Option<TcpListener>,
}

impl Listeners {
    /// # Errors
    /// When an address that was asked for cannot be had.
    pub fn bind(configuration: &Configuration) -> anyhow::Result<Self> {
        let bind = configuration.server.bind;
        let api = listen(bind).with_context(|| format!("setting server.bind: {bind} cannot be had"))?;
        let (bind, asked_for) = configuration.metrics_bind();
        let metrics = match listen(bind) {
            Ok(listener) => Some(listener),
            Err(error) if asked_for => {
                return Err(error).with_context(|| format!("setting metrics.bind: {bind} cannot be had"));
            }
            Err(error) => {
                tracing::warn!(%bind, %error, "metrics are not served; set metrics.bind to a free address");
                None
            }
        };
        Ok(Self { api, metrics })
    }
}

/// With room for a burst of connections, where the standard library leaves it at 128.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    const BACKLOG: u32 = 4096;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Serves until `shutdown`, then lets accepted requests finish.
///
/// # Errors
/// When the database is not fit to be served from.
pub async fn run(
    configuration: &Configuration,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let settings = database_settings(configuration)?;
    let allow_loss = configuration.database.allow_losing_acknowledged_jobs;
    match shutdown.run_until_cancelled(timeout(FIRST_LOOK, check_database(&settings, allow_loss))).await {
        None => return Ok(()),
        Some(looked) => looked.context("the database does not answer")??,
    }

    let metrics = Metrics::new();
    let lanes = Lanes::new(&settings, configuration, &metrics);
    let app = web::Data::new(compose(configuration, &lanes, &metrics));

    let (address, observed_at) = (listeners.api.local_addr()?, metrics_address(&listeners)?);
    let watched = Watched { metrics: metrics.clone(), lanes: lanes.named(), probes: lanes.probes.clone() };
    let observer = listeners.metrics.map(|listener| serve_metrics(listener, watched)).transpose()?;
    let api = serve_api(configuration, listeners.api, app.clone())?;
    let api_handle = api.handle();

    let tasks = TaskTracker::new();
    tasks.spawn(purger::run(lanes.purge.clone(), pace(&configuration.purge), metrics, shutdown.clone()));
    let observer_handle = observer.map(|server| spawn_server(&tasks, server));
    tasks.close();
    tracing::info!(api = %address, metrics = observed_at.as_deref(), "serving");

    let mut api = std::pin::pin!(api);
    tokio::select! {
        ended = &mut api => {
            shutdown.cancel();
            ended.context("the HTTP server ended by itself")?;
        }
        () = shutdown.cancelled() => {
            tracing::info!("stopping: accepted requests are finished first");
            app.readiness.drain();
            let (ended, ()) = tokio::join!(api, api_handle.stop(true));
            ended?;
        }
    }
    if let Some(handle) = observer_handle {
        handle.stop(false).await;
    }
    /// Nothing but a statement of the probes can still be under way.
    const LAST_CALL: Duration = Duration::from_secs(5);
    let closing = async {
        tasks.wait().await;
        for (_, lane) in lanes.named() {
            lane.close().await;
        }
    };
    if timeout(LAST_CALL, closing).await.is_err() {
        tracing::warn!("connections to the database were cut off");
    }
    tracing::info!("stopped");
    Ok(())
}

/// A lane for each purpose, so that none starves another.
struct Lanes {
    intake: Lane,
    reads: Lane,
    access: Lane,
    purge: Lane,
    /// Readiness and what `/metrics` asks: nobody waits behind a statement of the service's own.
    probes: Lane,
}

impl Lanes {
    fn new(settings: &database::Settings, configuration: &Configuration, metrics: &Metrics) -> Self {
        let lane = |connections| Lane::new(settings.clone(), connections, metrics.clone());
        Self {
            intake: lane(configuration.intake.connections),
            reads: lane(configuration.database.connections),
            access: lane(Verifier::CONNECTIONS),
            purge: lane(1),
            probes: lane(1),
        }
    }

    fn named(&self) -> Vec<(&'static str, Lane)> {
        let Self { intake, reads, access, purge, probes } = self;
        let named = [("intake", intake), ("reads", reads), ("access", access), ("purge", purge), ("probes", probes)];
        named.map(|(name, lane)| (name, lane.clone())).to_vec()
    }
}

fn compose(configuration: &Configuration, lanes: &Lanes, metrics: &Metrics) -> App {
    let Configuration { server, database, intake, idempotency, access, .. } = configuration;
    App {
        intake: Intake::new(
            lanes.intake.clone(),
            intake.connections,
            Terms {
                time_to_live: idempotency.time_to_live,
                lock_wait: intake.lock_wait,
                insist_on_durability: !database.allow_losing_acknowledged_jobs,
            },
        ),
        reads: lanes.reads.clone(),
        verifier: Verifier::new(lanes.access.clone(), access.cache_life, metrics.clone()),
        readiness: Readiness::new(lanes.probes.clone(), database.allow_losing_acknowledged_jobs),
        metrics: metrics.clone(),
        limits: Limits {
            body_bytes: server.body_limit_bytes,
            body_deadline: server.body_deadline,
            request_deadline: server.request_deadline,
        },
        admission: Semaphore::new(server.requests_in_flight.min(Semaphore::MAX_PERMITS)),
        time_to_live: idempotency.time_to_live,
    }
}

/// How the configured database is connected to.
///
/// # Errors
/// When no URL is set, or it cannot be read; the URL itself is not shown.
pub fn database_settings(configuration: &Configuration) -> anyhow::Result<database::Settings> {
    let url = configuration.database_url()?;
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        bail!("setting database.url: it must begin with postgres://");
    }
    let options: PgConnectOptions =
        url.parse().map_err(|error| anyhow::anyhow!("setting database.url: not a PostgreSQL URL: {error}"))?;
    Ok(database::Settings {
        options: options.application_name("hapax"),
        connect_timeout: configuration.database.connect_timeout,
        statement_timeout: configuration.database.statement_timeout,
        idle_in_transaction_timeout: configuration.database.idle_in_transaction_timeout,
    })
}

/// How the purger is configured.
pub fn pace(purge: &configuration::Purge) -> Pace {
    Pace { interval: purge.interval, batch: purge.batch, pause: purge.pause }
}

async fn check_database(settings: &database::Settings, allow_loss: bool) -> anyhow::Result<()> {
    let mut connection = database::connect(settings).await.context("the database cannot be reached")?;
    match database::schema(&mut connection).await? {
        Schema::Same => {}
        Schema::Newer => tracing::warn!("the database's schema is newer than this release; serving all the same"),
        Schema::Unfit => bail!("the database's schema is not the one this release needs; run `hapax migrate` first"),
    }
    match database::durability(&mut connection).await? {
        Durability::Durable => {}
        Durability::ReadOnly => bail!("the database takes no writes: it is read-only, or a standby"),
        Durability::Lossy(setting) if allow_loss => {
            tracing::warn!(setting, "the database may lose jobs that were acknowledged, as the configuration allows");
        }
        Durability::Lossy(setting) => bail!(
            "the database may lose jobs that were acknowledged: its {setting} is off; turn it on, or set \
             database.allow_losing_acknowledged_jobs to true"
        ),
    }
    Ok(())
}

/// By when a request's head must have arrived, and how long an idle connection is kept: longer than the usual load
/// balancer keeps it, so that it is not closed under a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(75);

fn serve_api(configuration: &Configuration, listener: TcpListener, app: web::Data<App>) -> anyhow::Result<HttpTask> {
    let server = &configuration.server;
    let http = HttpServer::new(move || {
        HttpApp::new().app_data(app.clone()).wrap(from_fn(http::observe)).configure(http::routes)
    });
    let http = if server.workers == 0 { http } else { http.workers(server.workers) };
    Ok(http
        .disable_signals()
        .client_request_timeout(HEAD_DEADLINE)
        .keep_alive(KEEP_ALIVE)
        .shutdown_timeout(server.shutdown_deadline.as_secs().max(1))
        .listen(listener)?
        .run())
}

fn serve_metrics(listener: TcpListener, watched: Watched) -> anyhow::Result<HttpTask> {
    let watched = web::Data::new(watched);
    let http = HttpServer::new(move || HttpApp::new().app_data(watched.clone()).configure(http::metrics_routes));
    Ok(http.workers(1).disable_signals().listen(listener)?.run())
}

fn metrics_address(listeners: &Listeners) -> anyhow::Result<Option<String>> {
    Ok(listeners.metrics.as_ref().map(TcpListener::local_addr).transpose()?.map(|address| address.to_string()))
}

fn spawn_server(tasks: &TaskTracker, server: HttpTask) -> ServerHandle {
    let handle = server.handle();
    tasks.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the metrics server ended");
        }
    });
    handle
}
