//! The two HTTP servers of a process, and how many connections they may hold.

use std::net::TcpListener;
use std::num::NonZero;
use std::time::Duration;

use actix_web::dev::Server as HttpTask;
use actix_web::middleware::from_fn;
use actix_web::{App as HttpApp, HttpServer, web};
use anyhow::bail;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::LAST_CALL;
use crate::access::Verifier;
use crate::configuration::{Configuration, Server};
use crate::http::{self, App, Watched};

/// By when a request's head must have arrived, and how long an idle connection is kept: longer than the usual load
/// balancer keeps it, so that it is not closed under a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(75);

pub fn serve_api(
    configuration: &Configuration,
    listener: TcpListener,
    app: web::Data<App>,
) -> anyhow::Result<HttpTask> {
    let server = &configuration.server;
    let workers = match server.workers {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        workers => workers,
    };
    let connections = connections(configuration, workers)?;
    let workers = workers.min(connections);
    let worker_connections = connections / workers;
    app.metrics.set_connections_limit(worker_connections * workers);
    let metrics = app.metrics.clone();
    let http = HttpServer::new(move || {
        HttpApp::new().app_data(app.clone()).wrap(from_fn(http::observe)).configure(http::routes)
    });
    // The framework looks once a second whether it is over.
    let finish = server.shutdown_deadline.saturating_sub(server.drain_delay + LAST_CALL + Duration::from_secs(1));
    Ok(http
        .workers(workers)
        .max_connections(worker_connections)
        .on_connect(move |_, extensions| drop(extensions.insert(metrics.count_connection())))
        .disable_signals()
        .client_request_timeout(HEAD_DEADLINE)
        .keep_alive(KEEP_ALIVE)
        .shutdown_timeout(finish.as_secs().max(1))
        .listen(listener)?
        .run())
}

/// As many connections as are asked for, or as the limit on file descriptors leaves: with none left, nobody could be
/// answered, not even the probes.
fn connections(configuration: &Configuration, workers: usize) -> anyhow::Result<usize> {
    /// Logs, listeners, and what a library may open.
    const RESERVE: usize = 64;
    /// A runtime of its own: event queues and the like.
    const OF_A_WORKER: usize = 4;
    let (server, to_database) = (
        &configuration.server,
        configuration.intake.writers + configuration.intake.connections + configuration.database.connections,
    );
    let reserve = RESERVE + OF_A_WORKER * workers + OPERATIONS_CONNECTIONS + Verifier::CONNECTIONS + 2 + to_database;
    let left = raise_descriptor_limit().saturating_sub(reserve);
    let wanted = if server.connections == 0 { Server::CONNECTIONS_MAX.min(left) } else { server.connections };
    if left < wanted.max(1) {
        bail!(
            "setting server.connections: {wanted} and {reserve} for other purposes are more than the limit on file \
             descriptors; raise it (ulimit -n, LimitNOFILE)"
        );
    }
    Ok(wanted)
}

/// Takes as many file descriptors as the system allows without asking, and says how many that is.
fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _kept_as_it_is = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Prometheus, a few probes, and somebody with curl.
const OPERATIONS_CONNECTIONS: usize = 64;

pub fn serve_operations(listener: TcpListener, app: web::Data<App>, watched: Watched) -> anyhow::Result<HttpTask> {
    let watched = web::Data::new(watched);
    let http = HttpServer::new(move || {
        HttpApp::new()
            .app_data(app.clone())
            .app_data(watched.clone())
            .wrap(from_fn(http::observe))
            .configure(http::operations_routes)
    });
    Ok(http.workers(1).max_connections(OPERATIONS_CONNECTIONS).disable_signals().listen(listener)?.run())
}
