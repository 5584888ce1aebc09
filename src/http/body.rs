//! Request bodies, with limits on their size, their time and their memory.

use std::cell::{Cell, RefCell};
use std::future::{Ready, ready};
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

use super::authorization::reserve_bytes;
use super::body_memory::HeldBytes;
use super::connection::{BodyLength, ConnectionState};
use super::extractors::Deadline;
use super::{App, Problem};
use crate::access::Caller;
use crate::ids::TenantId;

/// A complete body. Its `Content-Type` is a media type that the operation takes.
pub struct Body<T> {
    bytes: Bytes,
    media_type: PhantomData<T>,
}

/// A body that is read as it arrives. Its `Content-Type` is a media type that the operation takes.
///
/// Its bytes count against the tenant's share of memory until the request is answered, because the values that are
/// parsed from it live until then.
pub struct Incoming<T> {
    request: HttpRequest,
    payload: Payload,
    announced: Option<usize>,
    limit: usize,
    arrived: usize,
    /// For a body without `Content-Length`: the number of bytes that the quota has been charged for.
    charged: usize,
    /// How much longer the body may take to arrive.
    time_left: Duration,
    held: Option<HeldBytes>,
    media_type: PhantomData<T>,
}

/// The media type that an operation takes.
pub trait MediaType: 'static {
    const NAME: &'static str;
    /// Other names of the same media type.
    const ALIASES: &'static [&'static str] = &[];
    /// All names, as a header field lists them.
    const TAKEN: &'static str = Self::NAME;
    /// The header field of a 415 answer that lists the names.
    const TOLD_IN: HeaderName = ACCEPT;
    /// The size limit, as a multiple of the limit on a single body.
    const BODIES: usize = 1;
}

/// JSON (RFC 8259).
pub struct Json;

/// JSON Merge Patch (RFC 7396). It may also be sent as `application/json`, as generated clients often do. That is
/// unambiguous, because no other patch format is supported.
pub struct MergePatch;

/// One JSON text per line (NDJSON).
pub struct JsonLines;

impl MediaType for Json {
    const NAME: &'static str = "application/json";
}

impl MediaType for MergePatch {
    const NAME: &'static str = "application/merge-patch+json";
    const ALIASES: &'static [&'static str] = &["application/json"];
    const TAKEN: &'static str = "application/merge-patch+json, application/json";
    /// RFC 5789, section 2.2.
    const TOLD_IN: HeaderName = HeaderName::from_static("accept-patch");
}

impl MediaType for JsonLines {
    const NAME: &'static str = "application/x-ndjson";
    const ALIASES: &'static [&'static str] = &["application/ndjson"];
    const TAKEN: &'static str = "application/x-ndjson, application/ndjson";
    const BODIES: usize = BATCH_BODIES;
}

/// The size limit of a batch, as a multiple of the limit on a single submission.
const BATCH_BODIES: usize = 16;
/// A body of up to this size is not counted. The limit on requests in flight bounds the memory of such bodies.
const UNCOUNTED_BYTES: usize = 4 * 1024;
/// Memory for a body is reserved in steps of this size.
const HELD_BYTES_STEP: usize = 64 * 1024;

impl<T: MediaType> FromRequest for Incoming<T> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        ready(Self::open(request, payload.take()))
    }
}

impl<T: MediaType> FromRequest for Body<T> {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let incoming = Incoming::<T>::open(request, payload.take());
        Box::pin(async move { incoming?.whole().await })
    }
}

impl<T> Body<T> {
    /// Parses the text with `read`. A large text is parsed outside of the threads that serve HTTP. The text is dropped
    /// afterwards, because the rest of the request may take long.
    ///
    /// # Errors
    /// The [`Problem`] that `read` returns, or [`Problem::Shed`] if none of the tenant's CPUs becomes free before
    /// `deadline`.
    pub async fn read<R: Send + 'static>(
        self,
        app: &App,
        tenant: TenantId,
        deadline: Instant,
        read: impl FnOnce(&[u8]) -> Result<R, Problem> + Send + 'static,
    ) -> Result<R, Problem> {
        let Self { bytes, .. } = self;
        app.offload.run(tenant, bytes.len(), deadline, move || read(&bytes)).await?
    }
}

impl<T: MediaType> Incoming<T> {
    fn open(request: &HttpRequest, payload: Payload) -> Result<Self, Problem> {
        let app = request.app_data::<web::Data<App>>().expect("the server registers it");
        let limit = app.limits.body_bytes.saturating_mul(T::BODIES).min(app.limits.body_bytes_per_tenant);
        let announced = check_head::<T>(request.headers(), limit)?;
        if let Some(bytes) = announced {
            reserve_bytes(app, request, bytes)?;
        }
        Ok(Self {
            request: request.clone(),
            payload,
            announced,
            limit,
            arrived: 0,
            charged: 0,
            time_left: app.limits.body_deadline,
            held: None,
            media_type: PhantomData,
        })
    }

    /// The next part. `None` after the last one.
    ///
    /// # Errors
    /// [`Problem`] if the body is too large, too slow or broken, if there is no memory for it, or if the quota is used
    /// up.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        // The end is decided by `Content-Length`, not by the end of the payload. If a request has `Upgrade: websocket`,
        // the framework takes everything that follows as payload, although Hapax does not support upgrades.
        if self.announced == Some(self.arrived) {
            return Ok(None);
        }
        let began = Instant::now();
        let arriving = timeout(self.time_left, self.payload.next()).await;
        let waited = began.elapsed();
        self.time_left = self.time_left.saturating_sub(waited);
        Deadline::extend(&self.request, waited);
        self.charge_unannounced()?;
        let mut part = match arriving {
            Err(_) => return Err(Problem::BodyTooSlow),
            Ok(Some(Ok(part))) => part,
            Ok(Some(Err(PayloadError::Overflow))) => return Err(self.too_large()),
            Ok(Some(Err(_))) => return Err(Problem::BodyBroken),
            Ok(None) if self.announced.is_some() => return Err(Problem::BodyBroken),
            Ok(None) => return Ok(None),
        };
        if let Some(announced) = self.announced {
            part.truncate(announced - self.arrived);
        }
        self.arrived += part.len();
        if self.arrived > self.limit {
            return Err(self.too_large());
        }
        self.hold()?;
        Ok(Some(part))
    }

    async fn whole(mut self) -> Result<Body<T>, Problem> {
        // At first no more than one step, because the announced bytes may never arrive.
        let mut body = BytesMut::with_capacity(self.announced.unwrap_or(0).min(HELD_BYTES_STEP));
        while let Some(part) = self.next().await? {
            body.extend_from_slice(&part);
        }
        Ok(Body { bytes: body.freeze(), media_type: PhantomData })
    }

    /// Reserves memory for the bytes that have arrived.
    fn hold(&mut self) -> Result<(), Problem> {
        let held = self.held.as_ref().map_or(0, HeldBytes::bytes);
        if self.arrived <= held.max(UNCOUNTED_BYTES) {
            return Ok(());
        }
        let step = (self.announced.unwrap_or(self.limit) - held).min(HELD_BYTES_STEP);
        let more = step.max(self.arrived - held);
        match &mut self.held {
            Some(held) => held.grow(more),
            None => {
                let app = self.request.app_data::<web::Data<App>>().expect("the server registers it");
                let tenant = self.request.extensions().get::<Caller>().map(|caller| caller.tenant);
                let tenant = tenant.expect("only an authorized request has its body read");
                self.held = Some(app.body_memory.hold(tenant, more)?);
                Ok(())
            }
        }
    }

    /// Charges the quota for the bytes that have arrived of a body without `Content-Length`, chunk framing included.
    fn charge_unannounced(&mut self) -> Result<(), Problem> {
        let connection = self.request.conn_data::<Rc<ConnectionState>>();
        let (None, Some(arrived)) = (self.announced, connection.map(|connection| connection.body_bytes())) else {
            return Ok(());
        };
        let app = self.request.app_data::<web::Data<App>>().expect("the server registers it");
        self.charged += reserve_bytes(app, &self.request, arrived - self.charged)?;
        Ok(())
    }

    fn too_large(&self) -> Problem {
        Problem::BodyTooLarge { limit_bytes: self.limit }
    }
}

impl<T> Drop for Incoming<T> {
    /// Keeps the memory reserved until the request is answered, because the parsed values live until then.
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.request.extensions_mut().insert(held);
        }
    }
}

/// Refuses a body that is invalid by its header fields alone. Returns its `Content-Length`.
fn check_head<T: MediaType>(headers: &HeaderMap, limit: usize) -> Result<Option<usize>, Problem> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Problem::UnsupportedContentEncoding);
    }
    let mut types = headers.get_all(CONTENT_TYPE);
    let fits = match (types.next(), types.next()) {
        (Some(line), None) => line.to_str().is_ok_and(is_of::<T>),
        _ => false,
    };
    if !fits {
        return Err(Problem::UnsupportedMediaType { taken: T::TAKEN, told_in: T::TOLD_IN });
    }
    let announced = content_length(headers).map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limit) {
        return Err(Problem::BodyTooLarge { limit_bytes: limit });
    }
    Ok(announced)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// The accepted charsets: UTF-8, and US-ASCII as a subset of it. JSON defines no charset parameter (RFC 8259, section
/// 11), so these are harmless. Any other charset means that the body has an encoding that the server would misread.
const CHARSETS: [&str; 4] = ["utf-8", "utf8", "us-ascii", "ascii"];

/// Whether the media type is accepted, without a charset or with one of [`CHARSETS`].
fn is_of<T: MediaType>(content_type: &str) -> bool {
    let is_one_of = |names: &[&str], text: &str| names.iter().any(|name| name.eq_ignore_ascii_case(text));
    let mut parts = content_type.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    (is_one_of(&[T::NAME], media_type) || is_one_of(T::ALIASES, media_type))
        && parts.all(|parameter| match parameter.split_once('=') {
            Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
                is_one_of(&CHARSETS, value.trim().trim_matches('"'))
            }
            _ => true,
        })
}

/// The unread rest of a request's body after the request was answered, for example because it was refused.
///
/// The framework closes a connection whose request was not read to its end. A new connection costs the client and the
/// server six times as much as the refusal. So a small rest is read and discarded instead.
pub struct Leftover(Rc<Shared>);

struct Shared {
    payload: RefCell<Payload>,
    connection: Option<Rc<ConnectionState>>,
    length: BodyLength,
    read_bytes: Cell<u64>,
    touched: Cell<bool>,
    ended: Cell<bool>,
}

/// The most bytes to read, and the longest time to wait, in order to keep a connection.
const LEFTOVER_BYTES_MAX: usize = 64 * 1024;
const LEFTOVER_DEADLINE: Duration = Duration::from_millis(500);

impl Leftover {
    /// Wraps the request's body, which the handler can read as before. `None` if there is no body.
    pub fn of(request: &mut ServiceRequest) -> Option<Self> {
        let payload = request.take_payload();
        if matches!(payload, Payload::None) {
            return None;
        }
        let shared = Rc::new(Shared {
            payload: RefCell::new(payload),
            connection: request.conn_data::<Rc<ConnectionState>>().cloned(),
            length: content_length(request.headers()).map_or(BodyLength::Chunked, BodyLength::Bytes),
            read_bytes: Cell::new(0),
            touched: Cell::new(false),
            ended: Cell::new(false),
        });
        request.set_payload(Payload::Stream { payload: Box::pin(Reader(Rc::clone(&shared))) });
        Some(Self(shared))
    }

    pub fn length(&self) -> BodyLength {
        self.0.length
    }

    /// Whether reading of the body has not begun.
    pub fn is_untouched(&self) -> bool {
        !self.0.touched.get()
    }

    /// Whether the framework must not read the rest. To keep the connection, it would read any amount of a chunked
    /// body, for any time.
    pub fn is_endless(&self) -> bool {
        self.0.length == BodyLength::Chunked && !self.0.ended.get()
    }

    /// Reads and discards the rest, within the limits on bytes and time.
    pub async fn drain(&self) {
        let mut rest = Reader(Rc::clone(&self.0));
        let mut bytes = 0;
        let draining = async {
            while let Some(Ok(chunk)) = rest.next().await {
                bytes += chunk.len();
                if bytes > LEFTOVER_BYTES_MAX {
                    return;
                }
            }
        };
        // After a timeout, too, the answer is sent now.
        let _late = timeout(LEFTOVER_DEADLINE, draining).await;
    }
}

impl Shared {
    fn end(&self) {
        self.ended.set(true);
        if let Some(connection) = &self.connection {
            connection.body_ended();
        }
    }
}

struct Reader(Rc<Shared>);

impl Stream for Reader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let shared = &self.0;
        if !shared.touched.replace(true)
            && let Some(connection) = &shared.connection
        {
            connection.want_body();
        }
        let part = Pin::new(&mut *shared.payload.borrow_mut()).poll_next(context);
        match &part {
            Poll::Ready(None) => shared.end(),
            Poll::Ready(Some(Ok(part))) => {
                shared.read_bytes.update(|bytes| bytes + part.len() as u64);
                if shared.length == BodyLength::Bytes(shared.read_bytes.get()) {
                    shared.end();
                }
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_in_utf_8_is_accepted() {
        for good in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/json;charset=\"UTF-8\"; v=1",
            "application/json; charset=utf8",
            "application/json; Charset=US-ASCII",
            "application/json; charset=\"ascii\"",
        ] {
            assert!(is_of::<Json>(good), "{good}");
        }
        for bad in [
            "",
            "text/json",
            "application/jsonp",
            "application/json; charset=latin1",
            "application/json; charset=utf-16",
            "application/json; charset=",
            "application/json; charset=utf-8; charset=latin1",
            "application/json, text/xml",
        ] {
            assert!(!is_of::<Json>(bad), "{bad}");
        }
    }

    #[test]
    fn every_name_of_a_media_type_is_accepted_and_listed() {
        fn holds<T: MediaType>(taken: &[&str], refused: &str) {
            assert_eq!(T::TAKEN, taken.join(", "));
            for name in taken {
                assert!(is_of::<T>(&format!("{name}; charset=utf-8")), "{name}");
            }
            assert!(!is_of::<T>(refused), "{refused}");
        }
        holds::<Json>(&["application/json"], "application/merge-patch+json");
        holds::<MergePatch>(&["application/merge-patch+json", "application/json"], "application/json-patch+json");
        holds::<JsonLines>(&["application/x-ndjson", "application/ndjson"], "application/json");
    }
}
