//! What a handler asks for in its signature.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpMessage, HttpRequest};

use super::Problem;
use crate::idempotency::Key;
use crate::ids::RequestId;

/// The `Idempotency-Key` of a route that requires one.
pub struct RequiredKey(pub Key);

/// That the query string is empty: a parameter that is ignored is a wish that is ignored.
pub struct NoParameters;

impl FromRequest for RequiredKey {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let lines = request.headers().get_all("idempotency-key").map(|line| line.as_bytes());
        ready(Key::from_header(lines).map(Self).map_err(Problem::from))
    }
}

impl FromRequest for NoParameters {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(match first_parameter(request.query_string()) {
            None => Ok(Self),
            Some(name) => Err(Problem::UnknownParameter(name)),
        })
    }
}

/// The name of the first parameter, cut to a length that is fit to be shown.
fn first_parameter(query: &str) -> Option<String> {
    const SHOWN_LENGTH_MAX: usize = 64;
    let (name, _) = url::form_urlencoded::parse(query.as_bytes()).next()?;
    Some(name.chars().take(SHOWN_LENGTH_MAX).collect())
}

impl FromRequest for RequestId {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        // `observe` wraps every route; without it an id of its own is still a right one.
        ready(Ok(request.extensions().get::<Self>().cloned().unwrap_or_else(Self::mint)))
    }
}
