//! Bodies, bounded in size and in time.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName};
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::future::LocalBoxFuture;
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout};

use super::extractors::Deadline;
use super::{App, Problem};

/// A whole body that says it is of the media type that the operation takes.
pub struct Body<T> {
    pub bytes: Bytes,
    media_type: PhantomData<T>,
}

/// What an operation takes.
pub trait MediaType: 'static {
    const NAME: &'static str;
    /// The header field that tells what is taken to whoever sent something else.
    const TOLD_IN: HeaderName = ACCEPT;
    /// How many times as large as one body it may be.
    const BODIES: usize = 1;
}

/// JSON (RFC 8259).
pub struct Json;

/// JSON Merge Patch (RFC 7396).
pub struct MergePatch;

/// A JSON text in each line (NDJSON).
pub struct JsonLines;

impl MediaType for Json {
    const NAME: &'static str = "application/json";
}

impl MediaType for MergePatch {
    const NAME: &'static str = "application/merge-patch+json";
    /// RFC 5789, section 2.2.
    const TOLD_IN: HeaderName = HeaderName::from_static("accept-patch");
}

impl MediaType for JsonLines {
    const NAME: &'static str = "application/x-ndjson";
    const BODIES: usize = BATCH_BODIES;
}

/// What a batch may hold, and takes of the places for requests in flight.
pub const BATCH_BODIES: usize = 16;

impl<T: MediaType> FromRequest for Body<T> {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let limits = request.app_data::<web::Data<App>>().expect("the server registers it").limits;
        let limit = limits.body_bytes.saturating_mul(T::BODIES);
        let head = check_head::<T>(request.headers(), limit);
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let announced = head?;
            let began = Instant::now();
            let reading = timeout(limits.body_deadline, read(payload, announced, limit)).await;
            Deadline::extend(&request, began.elapsed());
            let bytes = reading.map_err(|_| Problem::BodyTooSlow)??;
            Ok(Self { bytes, media_type: PhantomData })
        })
    }
}

/// Refuses by the head alone what need not be read, and says what length is announced.
fn check_head<T: MediaType>(headers: &HeaderMap, limit: usize) -> Result<Option<usize>, Problem> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Problem::UnsupportedContentEncoding);
    }
    let mut types = headers.get_all(CONTENT_TYPE);
    let fits = match (types.next(), types.next()) {
        (Some(line), None) => line.to_str().is_ok_and(|line| is_of(T::NAME, line)),
        _ => false,
    };
    if !fits {
        return Err(Problem::UnsupportedMediaType { taken: T::NAME, told_in: T::TOLD_IN });
    }
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let announced = announced.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limit) {
        return Err(Problem::BodyTooLarge { limit_bytes: limit });
    }
    Ok(announced)
}

/// The media type, with no charset but UTF-8 (RFC 8259, section 8.1).
fn is_of(media_type: &str, content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    parts.next().unwrap_or_default().eq_ignore_ascii_case(media_type)
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

/// What is left of a request's body once the request has been answered: refused, or carried out without a look at it.
///
/// The framework closes a connection whose request was not read to its end, and a new one costs the client and us six
/// times what the refusal does. A small rest is read and thrown away instead.
pub struct Leftover(Rc<Shared>);

struct Shared {
    payload: RefCell<Payload>,
    touched: Cell<bool>,
}

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
        let shared = Rc::new(Shared { payload: RefCell::new(payload), touched: Cell::new(false) });
        request.set_payload(Payload::Stream { payload: Box::pin(Reader(Rc::clone(&shared))) });
        Some(Self(shared))
    }

    /// Whether nobody has begun to read the body.
    pub fn is_untouched(&self) -> bool {
        !self.0.touched.get()
    }

    /// Reads the rest, within bounds. Whatever it does not reach, the framework closes the connection over.
    pub async fn drain(self) {
        let mut rest = Reader(self.0);
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

struct Reader(Rc<Shared>);

impl Stream for Reader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.touched.set(true);
        Pin::new(&mut *self.0.payload.borrow_mut()).poll_next(context)
    }
}

#[cfg(test)]
mod tests {
    use super::is_of;

    #[test]
    fn only_json_in_utf_8_is_json() {
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=\"UTF-8\"; v=1"] {
            assert!(is_of("application/json", good), "{good}");
        }
        for bad in
            ["", "text/json", "application/jsonp", "application/json; charset=latin1", "application/json, text/xml"]
        {
            assert!(!is_of("application/json", bad), "{bad}");
        }
    }
}
