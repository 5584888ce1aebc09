//! Authentication and authorization, before any other part of a request is read.

use std::future::{Ready, pending, ready};
use std::rc::Rc;

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use actix_web::middleware::Next;
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};

use super::admission::Places;
use super::connection::ConnectionState;
use super::extractors::Deadline;
use super::quotas::{reserve, reserve_many};
use super::{App, Problem, Unauthenticated};
use crate::access::{Caller, Recalled, Scope, TokenDigest};
use crate::ids::TenantId;
use crate::telemetry::RequestContext;

/// The tenant of a request's token. Set once the token is verified, even if the request is refused later.
#[derive(Clone, Copy)]
pub struct VerifiedTenant(pub TenantId);

/// Middleware that admits a request if its token is valid and has `scope`, its quota is not used up, and a place among
/// the requests in flight is free. The handler can then extract the [`Caller`].
pub async fn authorize<B: MessageBody + 'static>(
    scope: Scope,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let app = request.app_data::<web::Data<App>>().expect("the server registers it").clone();
    match admit(&app, scope, &request).await {
        Ok((caller, places)) => {
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(places);
            let response = next.call(request).await?;
            // The answer may be sent for a long time. It no longer needs a place.
            drop(response.request().extensions_mut().remove::<Places>());
            Ok(response.map_into_left_body())
        }
        Err(problem) => Ok(request.error_response(problem).map_into_right_body()),
    }
}

/// The caller, and its place among the requests in flight. A place counts for its tenant, so a request with an unknown
/// token takes none before the token is verified.
async fn admit(app: &App, scope: Scope, request: &ServiceRequest) -> Result<(Caller, Places), Problem> {
    let digest = bearer(request.headers()).map_err(Problem::Unauthenticated)?;
    let deadline = Deadline::of(request);
    let (caller, entered) = match app.verifier.recall(&digest) {
        Recalled::Verified(caller) => (caller, None),
        Recalled::Known(caller) => {
            // While the request waits for the renewal, it holds a place of its tenant's share.
            let entered = app.admission.enter(caller.tenant)?;
            (app.verifier.renew(digest, deadline).await?, Some(entered))
        }
        Recalled::Unknown => return Err(Problem::Unauthenticated(Unauthenticated::Unknown)),
        Recalled::Nothing => (app.verifier.verify(digest, deadline).await?, None),
    };
    RequestContext::current().record("tenant", &caller.tenant_name);
    request.extensions_mut().insert(VerifiedTenant(caller.tenant));
    if !caller.scopes.contains(scope) {
        return Err(Problem::MissingScope(scope));
    }
    reserve(&app.quotas.requests, &digest, caller.settings.requests, request)?;
    let entered = entered.map_or_else(|| app.admission.enter(caller.tenant), Ok)?;
    Ok((caller, entered))
}

/// Waits without a place among the requests in flight. `wait` returns whether the request goes on. It does not if no place
/// is free then, or if the client has closed its side of the connection: nobody would get the answer.
pub async fn while_waiting(
    app: &App,
    request: &HttpRequest,
    tenant: TenantId,
    wait: impl Future<Output = bool>,
) -> bool {
    drop(request.extensions_mut().remove::<Places>());
    let connection = request.conn_data::<Rc<ConnectionState>>().cloned();
    let closed_by_client = async {
        match connection {
            Some(connection) => connection.closed_by_client().await,
            None => pending().await,
        }
    };
    // Biased, so that a client that has gone does not take the job that ends its wait.
    let goes_on = tokio::select! {
        biased;
        () = closed_by_client => false,
        goes_on = wait => goes_on,
    };
    if !goes_on {
        return false;
    }
    let places = app.admission.enter(tenant);
    places.map(|places| request.extensions_mut().insert(places)).is_ok()
}

/// A body costs one unit of the caller's request quota for each full 16 KiB. A smaller body is free.
const BYTES_PER_UNIT: usize = 16 * 1024;

/// Charges a request for the bytes of its body, rounded down to whole units. Returns the number of bytes charged for.
///
/// # Errors
/// [`Problem::QuotaExceeded`].
pub fn reserve_bytes(app: &App, request: &HttpRequest, bytes: usize) -> Result<usize, Problem> {
    let units = bytes / BYTES_PER_UNIT;
    reserve_requests(app, request, units)?;
    Ok(units * BYTES_PER_UNIT)
}

/// Charges a request as several requests.
///
/// # Errors
/// [`Problem::QuotaExceeded`].
pub fn reserve_requests(app: &App, request: &HttpRequest, requests: usize) -> Result<(), Problem> {
    if requests == 0 {
        return Ok(());
    }
    let digest = bearer(request.headers()).map_err(Problem::Unauthenticated)?;
    let own_rate = caller(request)?.settings.requests;
    let units = u32::try_from(requests).unwrap_or(u32::MAX);
    reserve_many(&app.quotas.requests, &digest, own_rate, units, request).map(drop)
}

/// The caller of a request that [`authorize`] admitted.
fn caller(request: &HttpRequest) -> Result<Caller, Problem> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or(Problem::Unauthenticated(Unauthenticated::Missing))
}

/// Reads `Authorization: Bearer hpx_…`, which must occur exactly once (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Result<TokenDigest, Unauthenticated> {
    let mut lines = headers.get_all(AUTHORIZATION);
    let line = match (lines.next(), lines.next()) {
        (None, _) => return Err(Unauthenticated::Missing),
        (Some(_), Some(_)) => return Err(Unauthenticated::Repeated),
        (Some(line), None) => line,
    };
    let credentials = line.to_str().ok().and_then(|line| line.split_once(' '));
    match credentials {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            TokenDigest::of(token.trim_matches(' ')).ok_or(Unauthenticated::Malformed)
        }
        _ => Err(Unauthenticated::Missing),
    }
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(caller(request))
    }
}
