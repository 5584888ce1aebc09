//! What a handler asks for in its signature.

use std::future::{Ready, ready};
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use tokio::time::Instant;

use super::Problem;
use super::parameters::parameters;
use crate::idempotency::{InvalidKey, Key};
use crate::ids::{JobId, RequestId};

/// The `Idempotency-Key` of a route that requires one.
pub struct RequiredKey(pub Key);

/// The `Idempotency-Key` of a route that can do without.
pub struct OptionalKey(pub Option<Key>);

/// The id in the path of a job, which need not be there.
pub struct PathId(pub JobId);

/// That the query string is empty: a parameter that is ignored is a wish that is ignored.
pub struct NoParameters;

/// By when a request is answered, whatever the database does. The time that its body takes to arrive does not count.
#[derive(Clone, Copy)]
pub struct Deadline(pub Instant);

impl Deadline {
    pub fn of(request: &impl HttpMessage) -> Instant {
        request.extensions().get::<Self>().expect("`observe` wraps every route").0
    }

    pub fn extend(request: &impl HttpMessage, by: Duration) {
        if let Some(Self(deadline)) = request.extensions_mut().get_mut() {
            *deadline += by;
        }
    }
}

impl FromRequest for RequiredKey {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(key(request).map(Self).map_err(Problem::from))
    }
}

impl FromRequest for OptionalKey {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(match key(request) {
            Ok(key) => Ok(Self(Some(key))),
            Err(InvalidKey::Missing) => Ok(Self(None)),
            Err(invalid) => Err(invalid.into()),
        })
    }
}

fn key(request: &HttpRequest) -> Result<Key, InvalidKey> {
    Key::from_header(request.headers().get_all("idempotency-key").map(|line| line.as_bytes()))
}

impl FromRequest for PathId {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(request.match_info().get("id").and_then(JobId::parse).map(Self).ok_or(Problem::JobNotFound))
    }
}

impl FromRequest for NoParameters {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(parameters(request, []).map(|[]| Self))
    }
}

impl FromRequest for RequestId {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(request.extensions().get::<Self>().expect("`observe` wraps every route").clone()))
    }
}
