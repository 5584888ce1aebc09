//! Extractors: the parts of a request that a handler names in its signature.

use std::future::{Ready, ready};
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::HeaderName;
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use percent_encoding::{PercentDecode, percent_decode_str};
use tokio::time::Instant;

use super::Problem;
use super::parameters::parameters;
use crate::idempotency::{InvalidKey, Key};
use crate::ids::{JobId, RequestId};

pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The `Idempotency-Key` of a route that requires one.
pub struct RequiredKey(pub Key);

/// The `Idempotency-Key` of a route on which it is optional.
pub struct OptionalKey(pub Option<Key>);

/// The job id in a path. The job may not exist.
pub struct PathId(pub JobId);

/// The idempotency key in a path, percent-decoded.
pub struct PathKey(pub Key);

/// How long a client waits for the end of a job. Refuses other query parameters.
pub struct WaitSeconds(pub Duration);

/// Refuses a request that has query parameters, because the operation would ignore them.
pub struct NoParameters;

/// The time by which a request must be answered. The time that the body takes to arrive is added to it.
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

    /// Moves the deadline to `to` if that is earlier.
    pub fn limit(request: &impl HttpMessage, to: Instant) {
        if let Some(Self(deadline)) = request.extensions_mut().get_mut() {
            *deadline = to.min(*deadline);
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
    Key::from_header(request.headers().get_all(IDEMPOTENCY_KEY).map(|line| line.as_bytes()))
}

impl FromRequest for PathId {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(request.match_info().get("id").and_then(JobId::parse).map(Self).ok_or(Problem::JobNotFound))
    }
}

impl FromRequest for PathKey {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    /// Reads the path as it was sent, because the framework does not decode all of it.
    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let segment = request.uri().path().rsplit('/').next().unwrap_or_default();
        ready(match percent_decoded(segment) {
            None => Err(Problem::RouteNotFound),
            Some(decoded) => decoded
                .decode_utf8()
                .map_err(|_| InvalidKey::Character)
                .and_then(|text| text.parse())
                .map(Self)
                .map_err(Problem::from),
        })
    }
}

/// Decodes RFC 3986, section 2.1. `None` if a percent sign is not followed by two hexadecimal digits, which the library
/// would leave as it is.
fn percent_decoded(text: &str) -> Option<PercentDecode<'_>> {
    let are_digits = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_hexdigit);
    let is_escape = |rest: &str| rest.as_bytes().get(..2).is_some_and(are_digits);
    text.split('%').skip(1).all(is_escape).then(|| percent_decode_str(text))
}

impl FromRequest for WaitSeconds {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let wait = parameters(request, ["wait_seconds"]).and_then(|[wait]| wait.seconds(0..=30));
        ready(wait.map(Self))
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
