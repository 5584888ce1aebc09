//! Bodies, bounded in size and in time.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::future::LocalBoxFuture;
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout};

use super::extractors::Deadline;
use super::{App, Limits, Problem};

/// A whole body that says it is JSON.
pub struct JsonBody(pub Bytes);

impl FromRequest for JsonBody {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let limits = request.app_data::<web::Data<App>>().expect("the server registers it").limits;
        let head = check_head(request.headers(), limits);
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let announced = head?;
            let began = Instant::now();
            let reading = timeout(limits.body_deadline, read(payload, announced, limits.body_bytes)).await;
            Deadline::extend(&request, began.elapsed());
            reading.map_err(|_| Problem::BodyTooSlow)?.map(Self)
        })
    }
}

/// Refuses by the head alone what need not be read, and says what length is announced.
fn check_head(headers: &HeaderMap, limits: Limits) -> Result<Option<usize>, Problem> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Problem::UnsupportedContentEncoding);
    }
    let mut types = headers.get_all(CONTENT_TYPE);
    let is_json = match (types.next(), types.next()) {
        (Some(line), None) => line.to_str().is_ok_and(is_json),
        _ => false,
    };
    if !is_json {
        return Err(Problem::UnsupportedMediaType);
    }
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let announced = announced.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limits.body_bytes) {
        return Err(Problem::BodyTooLarge { limit_bytes: limits.body_bytes });
    }
    Ok(announced)
}

/// `application/json`, with no charset but UTF-8 (RFC 8259, section 8.1).
fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    media_type.eq_ignore_ascii_case("application/json")
        && parts.all(|parameter| match parameter.split_once('=') {
            Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
                value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        })
}

async fn read(mut payload: Payload, announced: Option<usize>, limit: usize) -> Result<Bytes, Problem> {
    let mut body = BytesMut::with_capacity(announced.unwrap_or(0));
    // By the length that is announced and not by the payload's end: with `Upgrade: websocket` on a request, the
    // framework takes all that follows for payload, though nobody upgrades anything here.
    while announced.is_none_or(|length| body.len() < length) {
        let Some(chunk) = payload.next().await else { break };
        let chunk = chunk.map_err(|error| match error {
            PayloadError::Overflow => Problem::BodyTooLarge { limit_bytes: limit },
            _ => Problem::BodyBroken,
        })?;
        if body.len() + chunk.len() > limit {
            return Err(Problem::BodyTooLarge { limit_bytes: limit });
        }
        body.extend_from_slice(&chunk);
    }
    body.truncate(announced.unwrap_or(usize::MAX));
    Ok(body.freeze())
}

/// What is left of a request's body once the request has been refused.
///
/// The framework closes a connection whose request was not read to its end, and a new one costs the client and us six
/// times what the refusal does. A small rest is read and thrown away instead.
pub struct Leftover(Rc<RefCell<Payload>>);

/// As much as is worth reading, and waiting for, to keep a connection.
const LEFTOVER_BYTES_MAX: usize = 64 * 1024;
const LEFTOVER_DEADLINE: Duration = Duration::from_millis(500);

impl Leftover {
    /// Keeps a hand on the body; the request has it as before. `None` if there is none.
    pub fn of(request: &mut ServiceRequest) -> Option<Self> {
        let payload = request.take_payload();
        if matches!(payload, Payload::None) {
            return None;
        }
        let shared = Rc::new(RefCell::new(payload));
        request.set_payload(Payload::Stream { payload: Box::pin(Shared(Rc::clone(&shared))) });
        Some(Self(shared))
    }

    /// Reads the rest, within bounds. Whatever it does not reach, the framework closes the connection over.
    pub async fn drain(self) {
        let mut rest = Shared(self.0);
        let mut bytes = 0;
        let draining = async {
            while let Some(Ok(chunk)) = rest.next().await {
                bytes += chunk.len();
                if bytes > LEFTOVER_BYTES_MAX {
                    return;
                }
            }
        };
        // Being late is as good as being done: either way the answer goes out now.
        let _late = timeout(LEFTOVER_DEADLINE, draining).await;
    }
}

struct Shared(Rc<RefCell<Payload>>);

impl Stream for Shared {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(context)
    }
}

#[cfg(test)]
mod tests {
    use super::is_json;

    #[test]
    fn only_json_in_utf_8_is_json() {
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=\"UTF-8\"; v=1"] {
            assert!(is_json(good), "{good}");
        }
        for bad in
            ["", "text/json", "application/jsonp", "application/json; charset=latin1", "application/json, text/xml"]
        {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
