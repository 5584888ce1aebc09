//! The middleware around every request: request id, context, log line, metrics, common header fields and problem
//! documents.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{CACHE_CONTROL, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS, X_FORWARDED_FOR};
use actix_web::http::{ConnectionType, Method, Uri};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, HttpRequest, web};
use percent_encoding::percent_decode;
use tokio::time::Instant;

use super::authorization::VerifiedTenant;
use super::body::Leftover;
use super::body_memory::{AnswerBytes, HeldBytes};
use super::connection::ConnectionState;
use super::extractors::{Deadline, IDEMPOTENCY_KEY};
use super::outgoing::{in_pieces, is_large};
use super::quotas::{self, QuotaStatuses};
use super::routes::Path;
use super::{App, Problem};
use crate::access::Caller;
use crate::ids::RequestId;
use crate::metrics::KeyedOutcome;
use crate::telemetry::RequestContext;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Wraps all routes of both HTTP servers.
pub async fn observe<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let started = Instant::now();
    let app = request.app_data::<web::Data<App>>().expect("the server registers it").clone();
    let request_id = request.headers().get(X_REQUEST_ID).and_then(|id| RequestId::accept(id.as_bytes()));
    let request_id = request_id.unwrap_or_else(RequestId::mint);
    let (method, path) = (method_label(request.method()), Path::of(&request));
    let context = request_context(&request, &request_id, method, route_label(path));
    request.extensions_mut().insert(request_id.clone());
    request.extensions_mut().insert(Deadline(started + app.limits.request_deadline));
    let leftover = Leftover::of(&mut request);
    let connection = request.conn_data::<Rc<ConnectionState>>().cloned();
    let is_last = request.head().connection_type() == ConnectionType::Close;

    let busy = connection.as_ref().map(|connection| connection.start_request(leftover.as_ref().map(Leftover::length)));
    let response = if matches!(busy, Some(None)) {
        request.error_response(Problem::BehindClose)
    } else if is_alias(request.uri()) {
        request.error_response(Problem::RouteNotFound)
    } else {
        context.instrument(next.call(request)).await?.map_into_boxed_body()
    };
    let (response, held) = hold_answer(&app, response);
    let (mut response, problem) = context.in_scope(|| write_problem(&app, response, &request_id));
    // A replica that drains closes its connections, so that the client's next request goes to another replica.
    let mut closes = is_last || app.readiness.is_draining() || problem.is_some_and(|problem| problem.closes);
    if let Some(leftover) = &leftover
        && (problem.is_some() || leftover.is_untouched())
        && !closes
    {
        leftover.drain().await;
    }
    let unread = leftover.filter(Leftover::is_endless);
    closes |= unread.is_some();
    if closes {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
        if let Some(connection) = connection {
            connection.close();
        }
    }
    let code = problem.map(|problem| problem.code);
    write_headers(&mut response, &request_id);
    context.in_scope(|| report(&app, &response, method, path, code, started.elapsed()));
    Ok(in_pieces(response, unread, held, busy.flatten()))
}

/// Reserves memory for a large answer from its tenant's share, until the client has read it. If there is no room, the
/// request is refused instead.
fn hold_answer(app: &App, response: ServiceResponse<BoxBody>) -> (ServiceResponse<BoxBody>, Option<HeldBytes>) {
    let BodySize::Sized(bytes) = response.response().body().size() else { return (response, None) };
    if !is_large(response.response().body()) {
        return (response, None);
    }
    let request = response.request();
    let (reserved, tenant) = {
        let mut extensions = request.extensions_mut();
        (extensions.remove::<AnswerBytes>(), extensions.get::<Caller>().map(|caller| caller.tenant))
    };
    // An answer without a caller belongs to no tenant. Most of them are files in the binary, which need no memory.
    let Some(tenant) = tenant else { return (response, None) };
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let held = match reserved {
        None => app.body_memory.hold(tenant, bytes),
        Some(AnswerBytes(mut held)) => held.resize(bytes).map(|()| held),
    };
    match held {
        Ok(held) => (response, Some(held)),
        Err(refused) => (response.error_response(refused), None),
    }
}

/// The context of a request, with the fields that its head gives.
fn request_context(
    request: &ServiceRequest,
    request_id: &RequestId,
    method: &'static str,
    route: &'static str,
) -> RequestContext {
    let context = RequestContext::new();
    context.record("request_id", request_id.as_str());
    context.record("method", method);
    context.record("route", route);
    if let Some(peer) = request.peer_addr() {
        context.record_value("peer", peer.ip());
    }
    if let Some(client) = forwarded_for(request) {
        context.record_value("forwarded_for", client);
    }
    context
}

fn write_headers(response: &mut ServiceResponse<BoxBody>, request_id: &RequestId) {
    let quota_statuses = response.request().extensions_mut().remove::<QuotaStatuses>();
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    let headers = response.headers_mut();
    if let Some(quota_statuses) = quota_statuses {
        quotas::write_headers(&quota_statuses, headers);
    }
    let id = HeaderValue::from_str(request_id.as_str()).expect("a request id is made of plain characters");
    headers.insert(X_REQUEST_ID, id);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // By default, a cache may store 404, 405 and 410 (RFC 9110, section 15.1), so every error gets `no-store`.
    // Documents set their own `Cache-Control`.
    if is_error || !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

/// The client's address as the load balancer reports it: the last address in `X-Forwarded-For`. The client can set the
/// addresses before it to anything.
fn forwarded_for(request: &ServiceRequest) -> Option<IpAddr> {
    let line = request.headers().get_all(X_FORWARDED_FOR).last()?.to_str().ok()?;
    line.rsplit(',').next()?.trim().parse().ok()
}

/// Updates the metrics for a request, and writes its log line.
fn report(
    app: &App,
    response: &ServiceResponse<BoxBody>,
    method: &'static str,
    path: Option<&'static Path>,
    code: Option<&'static str>,
    duration: Duration,
) {
    let status = response.status().as_u16();
    app.metrics.count_request(method, route_label(path), status, duration);
    let key = path.and_then(|path| path.key_use(method));
    if let Some(key) = key.filter(|key| key.required || bears_key(response.request())) {
        let outcome = response.request().extensions().get::<KeyedOutcome>().copied();
        let outcome = outcome.unwrap_or(KeyedOutcome::Refused);
        RequestContext::current().record("idempotency.outcome", outcome.name());
        app.metrics.count_outcome(key.route.0, outcome);
    }
    let duration_ms = (duration.as_secs_f64() * 1e6).round() / 1e3;
    if path.is_some_and(Path::is_polled) && code.is_none() {
        tracing::debug!(status, duration_ms, "answered");
        return;
    }
    if let Some(left_out) = lines_left_out(app, response.request()) {
        let lines_left_out = (left_out > 0).then_some(left_out);
        tracing::info!(status, code = code.map(display), duration_ms, lines_left_out, "answered");
    }
}

/// How many log lines were suppressed before this request's line. `None` if its own line is suppressed.
fn lines_left_out(app: &App, request: &HttpRequest) -> Option<u64> {
    let extensions = request.extensions();
    match extensions.get::<Caller>() {
        Some(_admitted) => Some(0),
        None => app.refused_lines.admit(extensions.get::<VerifiedTenant>().map(|verified| verified.0)),
    }
}

fn bears_key(request: &HttpRequest) -> bool {
    request.headers().contains_key(IDEMPOTENCY_KEY)
}

/// The result of a refused or failed request.
#[derive(Clone, Copy)]
struct Refused {
    code: &'static str,
    /// Whether the connection is closed after the answer.
    closes: bool,
}

/// Replaces the body of an error by its problem document, and logs and counts the error.
fn write_problem(
    app: &App,
    response: ServiceResponse<BoxBody>,
    request_id: &RequestId,
) -> (ServiceResponse<BoxBody>, Option<Refused>) {
    let Some(error) = response.response().error() else {
        return (response, None);
    };
    let framework;
    let problem = match error.as_error::<Problem>() {
        Some(problem) => problem,
        None => {
            framework = Problem::Framework(response.status());
            &framework
        }
    };
    problem.report(&app.metrics);
    let refused = Refused { code: problem.code(), closes: problem.closes_connection() };
    let document = problem.response(request_id, &app.public_url);
    (response.into_response(document), Some(refused))
}

/// Whether a path percent-encodes an unreserved character, which is another spelling of the same path (RFC 3986,
/// section 6.2.2.2). Such paths do not exist, because a path rule in a load balancer would not match them.
fn is_alias(uri: &Uri) -> bool {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_unneeded = |window: &[u8]| window[0] == b'%' && percent_decode(window).next().is_some_and(unreserved);
    uri.path().as_bytes().windows(3).any(is_unneeded)
}

/// The label of a path in metrics and logs. Paths that do not exist share one, because a client can invent any number.
fn route_label(path: Option<&'static Path>) -> &'static str {
    path.map_or("(none)", |path| path.template)
}

/// The label of a method in metrics and logs. It is one of a fixed set, because a client can invent any number of
/// methods.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
