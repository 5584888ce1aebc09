//! Look-up of idempotency keys.

use actix_web::{HttpRequest, HttpResponse, web};

use crate::access::Caller;
use crate::http::extractors::{Deadline, PathKey};
use crate::http::outgoing::json;
use crate::http::parameters::parameters;
use crate::http::routes::{SUBMIT, keyed_routes};
use crate::http::{App, Problem, key_summary};
use crate::idempotency::{ScopedKey, queries};

/// `GET /idempotency-keys/{key}`: the first request, status and job of a key on a route, until the key expires.
pub async fn show(
    request: HttpRequest,
    app: web::Data<App>,
    caller: Caller,
    key: PathKey,
) -> Result<HttpResponse, Problem> {
    let [route] = parameters(&request, ["route"])?;
    let names: Vec<&str> = keyed_routes().map(|route| route.0).collect();
    let expected = format!("expected {}", names.join(" or "));
    let route = route.read(&expected, |name| keyed_routes().find(|route| route.0 == name))?;
    let key = ScopedKey { tenant: caller.tenant, route: route.unwrap_or(SUBMIT), key: key.0 };
    let find = async |connection: &mut _| queries::find(connection, &key).await;
    let stored = app.reads.read("find_keys", caller.tenant, Deadline::of(&request), find).await?;
    let stored = stored.filter(|stored| stored.is_kept).ok_or(Problem::KeyNotFound)?;
    Ok(json(&mut HttpResponse::Ok(), &key_summary(key.route, &stored.outcome)))
}
