//! Sends answer bodies.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::{HttpResponse, HttpResponseBuilder};
use bytes::Bytes;
use serde::Serialize;

use super::body::Leftover;
use super::body_memory::HeldBytes;
use super::connection::Busy;

/// How much of a body the connection gets at a time. The framework copies a whole piece into the connection's write
/// buffer and keeps it there until the client has read it.
pub const PIECE_BYTES: usize = 16 * 1024;

/// A JSON answer. It ends with a newline, for readers at a terminal.
pub fn json(response: &mut HttpResponseBuilder, value: &impl Serialize) -> HttpResponse {
    let mut text = serde_json::to_vec(value).expect("an answer's members all have a JSON form");
    text.push(b'\n');
    response.content_type("application/json").body(text)
}

/// A body that is sent in pieces, with the values that must live until it is sent.
struct Outgoing {
    body: BoxBody,
    /// The unsent rest of the last part of `body`.
    rest: Bytes,
    /// The unread rest of the request's body. While it lives, the framework does not read a chunked body to its end,
    /// which may never come. It closes the connection after this answer.
    _unread: Option<Leftover>,
    /// The memory of the body, reserved from its tenant's share.
    _held: Option<HeldBytes>,
    /// Keeps the next request of the connection from starting before this body is sent.
    _busy: Option<Busy>,
}

/// Makes a body be sent in pieces if it is large, or if `unread` must live until it is sent.
pub fn in_pieces(
    response: ServiceResponse<BoxBody>,
    unread: Option<Leftover>,
    held: Option<HeldBytes>,
    busy: Option<Busy>,
) -> ServiceResponse<BoxBody> {
    if !is_large(response.response().body()) && unread.is_none() {
        return response;
    }
    response.map_body(|_, body| {
        BoxBody::new(Outgoing { body, rest: Bytes::new(), _unread: unread, _held: held, _busy: busy })
    })
}

/// Whether a body is larger than one piece.
pub fn is_large(body: &BoxBody) -> bool {
    match body.size() {
        BodySize::Sized(bytes) => bytes > PIECE_BYTES as u64,
        BodySize::Stream => true,
        BodySize::None => false,
    }
}

impl MessageBody for Outgoing {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Box<dyn std::error::Error>>>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_next(context)) {
                Some(Ok(part)) => self.rest = part,
                ended => return Poll::Ready(ended),
            }
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(self.rest.split_to(piece))))
    }
}
