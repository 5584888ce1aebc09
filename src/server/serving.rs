//! The two HTTP servers of a process, and how many connections they may hold.

use std::future::ready;
use std::net::TcpListener;
use std::num::NonZero;
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, Protocol};
use actix_server::{Server as HttpTask, ServerBuilder};
use actix_service::{ServiceFactoryExt, fn_service, map_config};
use actix_web::App as HttpApp;
use actix_web::dev::AppConfig;
use actix_web::middleware::from_fn;
use actix_web::web::{self, ServiceConfig};
use anyhow::bail;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;

use super::{LAST_CALL, Pools};
use crate::configuration::{Configuration, Server};
use crate::http::{self, App, Connection, ConnectionDeadlines, MetricsSources, PIECE_BYTES};
use crate::metrics::CountedConnection;

/// By when a request's head must have arrived, and how long an idle connection is kept: longer than the usual load
/// balancer keeps it, so that it is not closed under a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a connection is read from after an answer that came before the request's end. Without it the client's
/// system might throw the answer away.
const LINGER: Duration = Duration::from_secs(1);

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
    // The framework looks once a second whether it is over.
    let finish = server.shutdown_deadline.saturating_sub(server.drain_delay + LAST_CALL + Duration::from_secs(1));
    let builder = ServerBuilder::new()
        .workers(workers)
        .max_concurrent_connections(worker_connections)
        .disable_signals()
        .shutdown_timeout(finish.as_secs().max(1));
    let deadlines = ConnectionDeadlines { head: HEAD_DEADLINE, write: server.write_deadline };
    let metrics = app.metrics.clone();
    serve(builder, listener, app, deadlines, move || Some(metrics.count_connection()), http::routes)
}

/// Serves HTTP/1.1 on connections with deadlines of our own, which is what `actix_web::HttpServer` has no place for. All
/// else is as it would be there.
fn serve(
    builder: ServerBuilder,
    listener: TcpListener,
    app: web::Data<App>,
    deadlines: ConnectionDeadlines,
    count: impl Fn() -> Option<CountedConnection> + Clone + Send + 'static,
    routes: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
) -> anyhow::Result<HttpTask> {
    let address = listener.local_addr()?;
    let shutdown = builder.graceful_shutdown_signal();
    let service = move || {
        let (app, shutdown, count, routes) = (app.clone(), shutdown.clone(), count.clone(), routes.clone());
        let shutting_down = move || {
            let shutdown = shutdown.clone();
            async move { shutdown.notified().await }
        };
        let routed = HttpApp::new().app_data(app).wrap(from_fn(http::observe)).configure(routes);
        let http = HttpService::build()
            .graceful_shutdown_signal(shutting_down)
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(deadlines.head)
            .client_disconnect_timeout(LINGER)
            .h1_write_buffer_size(PIECE_BYTES)
            .local_addr(address)
            .on_connect_ext(|connection: &Connection<TcpStream>, extensions| {
                extensions.insert(connection.state());
            })
            .finish(map_config(routed, |()| AppConfig::default()));
        let accept = move |stream: TcpStream| {
            let peer = stream.peer_addr().ok();
            let connection = Connection::new(stream, discard_unsent, deadlines, count());
            ready(Ok::<_, DispatchError>((connection, Protocol::Http1, peer)))
        };
        fn_service(accept).and_then(http)
    };
    Ok(builder.listen("http", listener, service)?.run())
}

/// Has a connection reset when it is closed, rather than what is unsent kept for a client that does not take it.
fn discard_unsent(stream: &TcpStream) {
    // If it cannot be said, the system keeps the bytes for a while.
    let _kept = set_socket_linger(stream, Some(Duration::ZERO));
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
        configuration.intake.writers
            + configuration.intake.connections
            + configuration.database.connections
            + Pools::FIXED,
    );
    let reserve = RESERVE + OF_A_WORKER * workers + OPERATIONS_CONNECTIONS + to_database;
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

pub fn serve_operations(
    configuration: &Configuration,
    listener: TcpListener,
    app: web::Data<App>,
    sources: MetricsSources,
) -> anyhow::Result<HttpTask> {
    let sources = web::Data::new(sources);
    let builder = ServerBuilder::new().workers(1).max_concurrent_connections(OPERATIONS_CONNECTIONS).disable_signals();
    let deadlines = ConnectionDeadlines { head: HEAD_DEADLINE, write: configuration.server.write_deadline };
    serve(
        builder,
        listener,
        app,
        deadlines,
        || None,
        move |routes| {
            routes.app_data(sources.clone());
            http::operations_routes(routes);
        },
    )
}
