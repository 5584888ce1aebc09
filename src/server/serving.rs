//! The two HTTP servers of a process, and their connection limits.

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
use crate::claims::Groups;
use crate::configuration::{Configuration, Server};
use crate::http::{self, App, Connection, ConnectionDeadlines, MetricsSources, PIECE_BYTES};
use crate::metrics::CountedConnection;

/// The time in which a request's head must arrive.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long an idle connection stays open. Longer than with the usual load balancer, so that the server does not close
/// a connection on which the load balancer is sending a request.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long the server reads from a connection after it has answered before the end of the request. Otherwise the
/// client's system might discard the answer.
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
    // The framework checks only once a second whether all connections are done.
    let finish = server.shutdown_deadline.saturating_sub(server.drain_delay + LAST_CALL + Duration::from_secs(1));
    let builder = ServerBuilder::new()
        .workers(workers)
        .max_concurrent_connections(worker_connections)
        .disable_signals()
        .shutdown_timeout(finish.as_secs().max(1));
    let deadlines = ConnectionDeadlines { head: HEAD_DEADLINE, write: server.write_deadline };
    let metrics = app.metrics.clone();
    serve(builder, listener, app, deadlines, move || Some(metrics.count_connection()), http::api_routes)
}

/// Serves HTTP/1.1 on [`Connection`]s, which have additional deadlines. `actix_web::HttpServer` has no hook for them.
/// Everything else is as in `HttpServer`.
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

/// Makes the system reset the connection when it is closed, instead of keeping unsent bytes for a client that does not
/// read.
fn discard_unsent(stream: &TcpStream) {
    // If this fails, the system keeps the bytes for a while.
    let _kept = set_socket_linger(stream, Some(Duration::ZERO));
}

/// The number of client connections: as set, or as many as the limit on file descriptors allows. Without free
/// descriptors the server could answer no client and no probe.
fn connections(configuration: &Configuration, workers: usize) -> anyhow::Result<usize> {
    /// For logs, listeners and the files of libraries.
    const RESERVE: usize = 64;
    /// For the runtime of a worker, such as its event queues.
    const PER_WORKER: usize = 4;
    /// The connection for notifications.
    const NOTIFICATIONS: usize = 1;
    let (server, to_database) = (
        &configuration.server,
        configuration.intake.writers
            + configuration.intake.connections
            + configuration.database.connections
            + Groups::KINDS * configuration.claims.writers
            + configuration.claims.connections
            + Pools::FIXED
            + NOTIFICATIONS,
    );
    let reserve = RESERVE + PER_WORKER * workers + OPERATIONS_CONNECTIONS + to_database;
    let left = raise_descriptor_limit().saturating_sub(reserve);
    let wanted = if server.connections == 0 { Server::CONNECTIONS_MAX.min(left) } else { server.connections };
    if left < wanted.max(1) {
        bail!(
            "setting server.connections: {wanted} connections and {reserve} other files exceed the limit on file \
             descriptors; raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
    Ok(wanted)
}

/// Raises the soft limit on file descriptors to the hard limit, and returns it.
fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _kept_as_it_is = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Enough for Prometheus, a few probes and an operator with curl.
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
