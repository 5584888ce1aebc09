//! Request bodies, bounded in size, in time and in the memory that they take.

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

/// A whole body that says it is of the media type that the operation takes.
pub struct Body<T> {
    bytes: Bytes,
    media_type: PhantomData<T>,
}

/// A body as it arrives, of the media type that the operation takes.
///
/// Its bytes count against its tenant's share of memory until the request is answered: what is made of them lives so
/// long.
pub struct Incoming<T> {
    request: HttpRequest,
    payload: Payload,
    announced: Option<usize>,
    limit: usize,
    arrived: usize,
    /// Of a body that announces no length: how many of its bytes the quota has been charged for.
    charged: usize,
    /// How much longer the client may take.
    time_left: Duration,
    held: Option<HeldBytes>,
    media_type: PhantomData<T>,
}

/// What an operation takes.
pub trait MediaType: 'static {
    const NAME: &'static str;
    /// Other names for the same.
    const ALIASES: &'static [&'static str] = &[];
    /// All of the names, as a header field lists them.
    const TAKEN: &'static str = Self::NAME;
    /// The header field that tells what is taken to whoever sent something else.
    const TOLD_IN: HeaderName = ACCEPT;
    /// How many times as large as one body it may be.
    const BODIES: usize = 1;
}

/// JSON (RFC 8259).
pub struct Json;

/// JSON Merge Patch (RFC 7396). Generated clients often send it as plain JSON, and no other patch is taken here.
pub struct MergePatch;

/// A JSON text in each line (NDJSON).
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

/// How many times as large as a single submission a batch may be.
const BATCH_BODIES: usize = 16;
/// What a body may take without being counted: requests in flight are.
const UNCOUNTED_BYTES: usize = 4 * 1024;
/// How much memory is taken at once for a body that does not say how long it is.
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
    /// Reads the text, away from the threads that serve HTTP if it is large. The text itself is dropped then: what comes
    /// next may take its time.
    ///
    /// # Errors
    /// [`Problem`], if that is what `read` finds, or if the tenant keeps too many CPUs busy until `deadline`.
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

    /// The next part; `None` after the last.
    ///
    /// # Errors
    /// [`Problem`] if the body is too large, too slow or broken, or if there is no memory for it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        // By the length that is announced and not by the payload's end: with `Upgrade: websocket` on a request, the
        // framework takes all that follows for payload, though nobody upgrades anything here.
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
        // What is announced may never come.
        let mut body = BytesMut::with_capacity(self.announced.unwrap_or(0).min(HELD_BYTES_STEP));
        while let Some(part) = self.next().await? {
            body.extend_from_slice(&part);
        }
        Ok(Body { bytes: body.freeze(), media_type: PhantomData })
    }

    /// Takes memory for what has arrived.
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

    /// Charges for what has arrived of a body that announces no length, with what is around its chunks.
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
    /// What has been made of the body lives until the request is answered.
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.request.extensions_mut().insert(held);
        }
    }
}

/// Refuses by the head alone what need not be read, and says what length is announced.
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

/// The names of UTF-8, and of US-ASCII, which is a part of it. To JSON a charset means nothing (RFC 8259, section 11), so
/// these are no reason to refuse a body. Any other says that the body is in an encoding that would be misread.
const CHARSETS: [&str; 4] = ["utf-8", "utf8", "us-ascii", "ascii"];

/// Whether the media type is one that is taken, with no charset or one of [`CHARSETS`].
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

/// What is left of a request's body once the request has been answered: refused, or carried out without a look at it.
///
/// The framework closes a connection whose request was not read to its end, and a new one costs the client and us six
/// times what the refusal does. A small rest is read and thrown away instead.
pub struct Leftover(Rc<Shared>);

struct Shared {
    payload: RefCell<Payload>,
    connection: Option<Rc<ConnectionState>>,
    length: BodyLength,
    read_bytes: Cell<u64>,
    touched: Cell<bool>,
    ended: Cell<bool>,
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

    /// Whether nobody has begun to read the body.
    pub fn is_untouched(&self) -> bool {
        !self.0.touched.get()
    }

    /// Whether the framework must be kept from reading the rest: of a chunked body it would read any amount, for any
    /// time, to keep the connection.
    pub fn is_endless(&self) -> bool {
        self.0.length == BodyLength::Chunked && !self.0.ended.get()
    }

    /// Reads the rest, within bounds.
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
        // Being late is as good as being done: either way the answer goes out now.
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
    fn only_json_in_utf_8_is_json() {
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
    fn every_name_of_a_media_type_is_taken_and_told() {
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
